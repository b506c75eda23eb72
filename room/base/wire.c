/*
 * Accepted sockets. While one speaks HTTP it is libh2o's; after a take-over it is read and written here.
 *
 * Writing is the hottest path of the program, so a plain socket is written to directly (one gathering system call, no
 * request, no copy) and libuv gets only what the kernel did not take. Reading a plain socket goes through one buffer
 * that all share: an idle wire has none. TLS goes through libh2o, which has OpenSSL between itself and the socket.
 */
#include "http_impl.h"

#include <assert.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* One WebSocket message has at most 128 KiB by default, 16 MiB by setting; an owner that uses nothing of
 * this is wrong. */
#define WIRE_REST_MAX_BYTES (17u << 20)

/* What the kernel did not take at once, on its way through libuv. */
struct wire_tail {
    uv_write_t request;
    struct wire *wire;
    uv_buf_t bufs[];
};

static char read_buffer[65536]; /* the loop's: filled, handed out, and free again before the next read */

static void tune_socket(const struct http_server *server, uv_tcp_t *tcp, int fd);
static void wire_on_closed(uv_handle_t *handle);
static void wire_read_start(struct wire *wire);
static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf);
static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf);
static void on_read_tls(h2o_socket_t *sock, const char *error);
static void wire_arrived(struct wire *wire, const char *p, size_t n);
static void wire_push(struct wire *wire, const uv_buf_t *bufs, size_t count, size_t taken);
static void on_tail_written(uv_write_t *request, int status);
static void on_written_tls(h2o_socket_t *sock, const char *error);
static void wire_written_soon(struct wire *wire);

static struct wire *wire_of(h2o_socket_t *sock)
{
    return sock->on_close.data;
}

void wire_open(struct http_server *server, int fd)
{
    struct wire *wire = xcalloc(1, sizeof *wire);

    wire->server = server;
    list_init(&wire->turn);
    list_push_back(&server->connections, &wire->link);
    server->counters.connections_open++;
    uv_tcp_init(server->loop, &wire->tcp);
    wire->sock = h2o_uv_socket_create((uv_stream_t *)&wire->tcp, wire_on_closed);
    wire->sock->on_close.data = wire;
    if (uv_tcp_open(&wire->tcp, fd)) {
        close(fd);
        h2o_socket_close(wire->sock);
        return;
    }
    tune_socket(server, &wire->tcp, fd);
    wire->body_left = -1;
    if (server->raw_path)
        body_accept(wire);
    else
        h2o_accept(&server->accept_ctx, wire->sock);
}

/* Small events must not wait for more (Nagle); a slow reader shall show up here and not in megabytes of kernel memory;
 * a peer that vanished without a word is found by the kernel: idle ones after 60 s and some probes, others when nothing
 * was acknowledged for twice the time a reader has. */
static void tune_socket(const struct http_server *server, uv_tcp_t *tcp, int fd)
{
    int bytes = (int)server->send_buffer_bytes;
    unsigned silent_ms = (unsigned)server->write_timeout_ms * 2;

    uv_tcp_nodelay(tcp, 1);
    uv_tcp_keepalive(tcp, 1, 60);
    if (bytes > 0)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &silent_ms, sizeof silent_ms);
}

static void wire_on_closed(uv_handle_t *handle)
{
    struct wire *wire = container_of(handle, struct wire, tcp);
    struct http_server *server = wire->server;

    list_remove(&wire->turn);
    list_remove(&wire->link);
    server->counters.connections_open--;
    if (wire->events)
        wire->events->closed(wire->owner);
    buf_clear(&wire->rest);
    free(wire);
    server_settle(server);
}

void wire_cut(struct wire *wire)
{
    int fd;

    if (!uv_is_closing((uv_handle_t *)&wire->tcp) && uv_fileno((uv_handle_t *)&wire->tcp, &fd) == 0)
        shutdown(fd, SHUT_RDWR);
}

/* ---- taken over ---- */

void wire_take(struct wire *wire, size_t request_bytes, const struct wire_events *events, void *owner)
{
    h2o_buffer_t **input = &wire->sock->input;

    wire->events = events;
    wire->owner = owner;
    h2o_buffer_consume(input, request_bytes);
    if ((*input)->size)
        buf_add(&wire->rest, (*input)->bytes, (*input)->size);
    h2o_buffer_dispose(input);
    h2o_buffer_init(input, &h2o_socket_buffer_prototype);
    wire_read_start(wire);
}

static void wire_read_start(struct wire *wire)
{
    if (wire->sock->ssl)
        h2o_socket_read_start(wire->sock, on_read_tls);
    else if (uv_read_start((uv_stream_t *)&wire->tcp, on_alloc, on_read))
        wire_close(wire);
}

void wire_stop_reading(struct wire *wire)
{
    if (wire->closing)
        return;
    if (wire->sock->ssl)
        h2o_socket_read_stop(wire->sock);
    else
        uv_read_stop((uv_stream_t *)&wire->tcp);
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    (void)handle;
    (void)suggested;
    *buf = uv_buf_init(read_buffer, sizeof read_buffer);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct wire *wire = container_of(stream, struct wire, tcp);

    if (n < 0)
        wire_close(wire); /* FIN too: nobody half-closes a stream and stays to read it */
    else if (n > 0)
        wire_arrived(wire, buf->base, (size_t)n);
}

static void on_read_tls(h2o_socket_t *sock, const char *error)
{
    struct wire *wire = wire_of(sock);
    h2o_buffer_t *input = sock->input;

    if (error) {
        wire_close(wire); /* and never a write: after a failed read libh2o would wait for ever, or abort */
        return;
    }
    if (input->size == 0)
        return;
    h2o_buffer_init(&sock->input, &h2o_socket_buffer_prototype); /* an idle wire keeps no buffer */
    wire_arrived(wire, input->bytes, input->size);
    h2o_buffer_dispose(&input);
}

static void wire_arrived(struct wire *wire, const char *p, size_t n)
{
    size_t used;

    if (wire->rest.n) {
        buf_add(&wire->rest, p, n);
        wire_read_rest(wire);
        return;
    }
    used = wire->events->read(wire->owner, p, n);
    if (used < n && !wire->closing)
        buf_add(&wire->rest, p + used, n - used);
}

void wire_read_rest(struct wire *wire)
{
    if (wire->rest.n == 0 || wire->closing)
        return;
    buf_consume(&wire->rest, wire->events->read(wire->owner, wire->rest.p, wire->rest.n));
    if (wire->rest.n == 0)
        buf_clear(&wire->rest);
    else if (wire->rest.n > WIRE_REST_MAX_BYTES)
        wire_close(wire);
}

void wire_write(struct wire *wire, const uv_buf_t *bufs, size_t count)
{
    assert(!wire->writing);
    if (wire->closing)
        return; /* closed() is on its way and gives the buffers back */
    wire->writing = true;
    if (wire->sock->ssl) /* uv_buf_t and h2o_iovec_t are both struct iovec; libh2o's libuv backend builds on it too */
        h2o_socket_write(wire->sock, (h2o_iovec_t *)(uintptr_t)bufs, count, on_written_tls);
    else
        wire_push(wire, bufs, count, 0);
}

/* Gives the kernel as much as it takes; `taken` bytes of the first buffer are gone already. */
static void wire_push(struct wire *wire, const uv_buf_t *bufs, size_t count, size_t taken)
{
    struct wire_tail *tail;
    int n = 0;

    while (count) {
        if (taken == 0) {
            n = uv_try_write((uv_stream_t *)&wire->tcp, bufs, (unsigned)count);
        } else {
            uv_buf_t first = uv_buf_init(bufs->base + taken, (unsigned)(bufs->len - taken));
            n = uv_try_write((uv_stream_t *)&wire->tcp, &first, 1);
        }
        if (n < 0)
            break;
        for (taken += (size_t)n; count && taken >= bufs->len; bufs++, count--)
            taken -= bufs->len;
    }
    if (count == 0) {
        wire_written_soon(wire);
        return;
    }
    if (n != UV_EAGAIN) {
        wire_close(wire);
        return;
    }
    tail = xmalloc(sizeof *tail + count * sizeof *bufs);
    tail->wire = wire;
    memcpy(tail->bufs, bufs, count * sizeof *bufs);
    tail->bufs[0] = uv_buf_init(bufs->base + taken, (unsigned)(bufs->len - taken));
    wire->tail = tail;
    if (uv_write(&tail->request, (uv_stream_t *)&wire->tcp, tail->bufs, (unsigned)count, on_tail_written)) {
        wire->tail = NULL;
        free(tail);
        wire_close(wire);
    }
}

static void on_tail_written(uv_write_t *request, int status)
{
    struct wire_tail *tail = container_of(request, struct wire_tail, request);
    struct wire *wire = tail->wire;

    free(tail);
    wire->tail = NULL;
    if (wire->closing)
        return; /* libuv gives the request back before the close callback */
    if (status)
        wire_close(wire);
    else
        wire_written(wire);
}

static void on_written_tls(h2o_socket_t *sock, const char *error)
{
    struct wire *wire = wire_of(sock);

    if (error)
        wire_close(wire);
    else
        wire_written(wire);
}

/* Told on the next turn: whoever calls wire_write may still be busy with what it writes. */
static void wire_written_soon(struct wire *wire)
{
    list_push_back(&wire->server->turn, &wire->turn);
    server_turn_start(wire->server);
}

void wire_written(struct wire *wire)
{
    wire->writing = false;
    wire->events->written(wire->owner);
}

bool wire_writing(const struct wire *wire)
{
    return wire->writing || wire->closing;
}

void wire_close(struct wire *wire)
{
    if (wire->closing)
        return;
    wire->closing = true;
    list_remove(&wire->turn);
    h2o_socket_close(wire->sock); /* frees sock; wire_on_closed comes on a later turn */
    wire->sock = NULL;
}

int wire_fd(const struct wire *wire)
{
    int fd;

    return uv_fileno((const uv_handle_t *)&wire->tcp, &fd) ? -1 : fd;
}
