#include "conn.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum {
    IN_BYTES = 1 << 18,      /* two of AMQP's largest frames: a part of one in front, room for a whole one behind */
    IN_LEAN_BYTES = 1 << 16, /* more than a TLS record, and few enough for the allocator to have them at hand */
    IN_READS = 8,            /* for one turn: others want theirs */
    OUT_KEEP_BYTES = 1 << 20 /* an empty buffer above this gives its memory back */
};

/* RESOLVING -> CONNECTING (each address) -> TLS -> OPEN; any -> DEAD */
enum conn_state { CONN_RESOLVING, CONN_CONNECTING, CONN_TLS, CONN_OPEN, CONN_DEAD };

/* libuv wants handle and descriptor to outlive the connection by a turn. */
struct conn_socket {
    uv_poll_t poll;
    struct conn *conn;
    int fd, interest;
};

struct conn_lookup {
    uv_getaddrinfo_t request;
    struct conn *conn; /* NULL when nobody waits any more */
};

struct conn {
    uv_loop_t *loop;
    const struct conn_events *events;
    void *owner;
    char *host;
    SSL_CTX *tls;
    SSL *ssl;
    enum conn_state state;
    struct conn_lookup *lookup;
    struct addrinfo *addresses, *next_address;
    struct conn_socket *socket;
    uint32_t holders; /* the owner, the lookup, each socket */
    uint64_t deadline_ms, heard_ms, sent_ms;
    bool lean, paused, want_write;
    bool draining; /* drained() is owed */
    bool deaf;     /* the peer takes nothing any more, but has left something to read */
    struct buf out;
    size_t out_sent, in_start, in_end;
    char *in;
    char why[256];
};

static void conn_looked_up(uv_getaddrinfo_t *request, int status, struct addrinfo *found);
static void conn_close_socket(struct conn *conn);
static void conn_try_next(struct conn *conn);
static void conn_polled(uv_poll_t *poll, int status, int events);
static void conn_connected(struct conn *conn);
static void conn_handshake(struct conn *conn);
static void conn_opened(struct conn *conn);

static void conn_release(struct conn *conn)
{
    if (--conn->holders)
        return;
    SSL_free(conn->ssl);
    if (conn->addresses)
        uv_freeaddrinfo(conn->addresses);
    buf_clear(&conn->out);
    free(conn->in);
    free(conn->host);
    free(conn);
}

static void conn_break(struct conn *conn, const char *why)
{
    if (conn->state == CONN_DEAD)
        return;
    conn->state = CONN_DEAD;
    conn_close_socket(conn); /* it would go on telling its end */
    conn->events->broken(conn->owner, why);
}

struct conn *conn_open(uv_loop_t *loop, const char *host, uint16_t port, SSL_CTX *tls, enum conn_kind kind,
    const struct conn_events *events, void *owner)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    struct conn *conn = xcalloc(1, sizeof(*conn));
    char service[8];
    int failed;

    conn->loop = loop;
    conn->events = events;
    conn->owner = owner;
    conn->host = xstrdup(host);
    conn->tls = tls;
    conn->lean = kind == CONN_LEAN;
    conn->holders = 2;
    conn->deadline_ms = uv_now(loop) + CONN_STEP_MS;
    conn->lookup = xcalloc(1, sizeof(*conn->lookup));
    conn->lookup->conn = conn;
    snprintf(service, sizeof(service), "%u", port);
    failed = uv_getaddrinfo(loop, &conn->lookup->request, conn_looked_up, host, service, &hints);
    if (failed) { /* a name libuv itself refuses: told when the first step is over */
        free(conn->lookup);
        conn->lookup = NULL;
        conn->holders = 1;
        snprintf(conn->why, sizeof(conn->why), "%s: %s", host, uv_strerror(failed));
        conn->deadline_ms = 0;
    }
    return conn;
}

static void socket_closed(uv_handle_t *handle)
{
    struct conn_socket *socket = container_of(handle, struct conn_socket, poll);

    close(socket->fd);
    conn_release(socket->conn);
    free(socket);
}

static void conn_close_socket(struct conn *conn)
{
    if (!conn->socket)
        return;
    uv_poll_stop(&conn->socket->poll);
    uv_close((uv_handle_t *)&conn->socket->poll, socket_closed);
    conn->socket = NULL;
}

void conn_drop(struct conn *conn)
{
    conn->state = CONN_DEAD;
    if (conn->lookup) {
        conn->lookup->conn = NULL;
        uv_cancel((uv_req_t *)&conn->lookup->request);
        conn->lookup = NULL;
        conn->holders--;
    }
    conn_close_socket(conn);
    conn_release(conn);
}

void conn_tick(struct conn *conn, uint64_t now_ms)
{
    if (conn->state >= CONN_OPEN || now_ms < conn->deadline_ms)
        return;
    if (conn->state == CONN_CONNECTING) {
        snprintf(conn->why, sizeof(conn->why), "connect: no answer");
        conn_try_next(conn);
    } else {
        conn_break(conn, conn->deadline_ms == 0    ? conn->why
                         : conn->state == CONN_TLS ? "TLS: no answer"
                                                   : "no address in time");
    }
}

/* --- the steps, in the order they run --- */

static void conn_looked_up(uv_getaddrinfo_t *request, int status, struct addrinfo *found)
{
    struct conn_lookup *lookup = container_of(request, struct conn_lookup, request);
    struct conn *conn = lookup->conn;

    free(lookup);
    if (!conn) {
        uv_freeaddrinfo(found);
        return;
    }
    conn->lookup = NULL;
    conn->addresses = conn->next_address = found;
    if (status) {
        snprintf(conn->why, sizeof(conn->why), "%s: %s", conn->host, uv_strerror(status));
        conn_break(conn, conn->why);
    } else {
        conn->state = CONN_CONNECTING;
        conn_try_next(conn);
    }
    conn_release(conn);
}

static void conn_set_interest(struct conn *conn, int interest)
{
    struct conn_socket *socket = conn->socket;

    if (socket->interest == interest)
        return;
    socket->interest = interest;
    if (interest)
        uv_poll_start(&socket->poll, interest, conn_polled);
    else
        uv_poll_stop(&socket->poll);
}

static bool conn_try(struct conn *conn, const struct addrinfo *address)
{
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct conn_socket *socket;

    if (fd < 0)
        goto fail;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    if (connect(fd, address->ai_addr, address->ai_addrlen) && errno != EINPROGRESS)
        goto fail_close;
    socket = xcalloc(1, sizeof(*socket));
    if (uv_poll_init(conn->loop, &socket->poll, fd)) {
        free(socket);
        goto fail_close;
    }
    socket->fd = fd;
    socket->conn = conn;
    conn->socket = socket;
    conn->holders++;
    conn->deadline_ms = uv_now(conn->loop) + CONN_STEP_MS;
    conn_set_interest(conn, UV_WRITABLE);
    return true;

fail_close:
    on = errno;
    close(fd);
    errno = on;
fail:
    snprintf(conn->why, sizeof(conn->why), "connect: %s", strerror(errno));
    return false;
}

static void conn_try_next(struct conn *conn)
{
    conn_close_socket(conn);
    while (conn->next_address) {
        const struct addrinfo *address = conn->next_address;

        conn->next_address = address->ai_next;
        if (conn_try(conn, address))
            return;
    }
    conn_break(conn, conn->why);
}

static void conn_connected(struct conn *conn)
{
    int error = 0;
    socklen_t n = sizeof(error);

    if (getsockopt(conn->socket->fd, SOL_SOCKET, SO_ERROR, &error, &n))
        error = errno;
    if (error) {
        snprintf(conn->why, sizeof(conn->why), "connect: %s", strerror(error));
        conn_try_next(conn);
        return;
    }
    if (!conn->tls) {
        conn_opened(conn);
        return;
    }
    conn->state = CONN_TLS;
    conn->deadline_ms = uv_now(conn->loop) + CONN_STEP_MS;
    conn->ssl = SSL_new(conn->tls);
    if (!conn->ssl || !SSL_set_fd(conn->ssl, conn->socket->fd)) {
        conn_break(conn, "TLS: out of memory");
        return;
    }
    unsigned char ip[16];
    if (inet_pton(AF_INET, conn->host, ip) == 1 || inet_pton(AF_INET6, conn->host, ip) == 1) {
        X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(conn->ssl), conn->host);
    } else {
        SSL_set_tlsext_host_name(conn->ssl, conn->host);
        SSL_set1_host(conn->ssl, conn->host);
    }
    SSL_set_connect_state(conn->ssl);
    conn_handshake(conn);
}

static void conn_note_tls_error(struct conn *conn)
{
    unsigned long code = ERR_peek_last_error();
    long verify = SSL_get_verify_result(conn->ssl);

    if (verify != X509_V_OK)
        snprintf(conn->why, sizeof(conn->why), "TLS: certificate: %s", X509_verify_cert_error_string(verify));
    else if (code)
        snprintf(conn->why, sizeof(conn->why), "TLS: %s", ERR_reason_error_string(code));
    else
        snprintf(conn->why, sizeof(conn->why), "TLS: closed by the peer");
}

static void conn_handshake(struct conn *conn)
{
    ERR_clear_error();
    int result = SSL_do_handshake(conn->ssl);

    if (result == 1) {
        conn_opened(conn);
        return;
    }
    switch (SSL_get_error(conn->ssl, result)) {
    case SSL_ERROR_WANT_READ:
        conn_set_interest(conn, UV_READABLE);
        break;
    case SSL_ERROR_WANT_WRITE:
        conn_set_interest(conn, UV_WRITABLE);
        break;
    default:
        conn_note_tls_error(conn);
        conn_break(conn, conn->why);
    }
}

static void conn_opened(struct conn *conn)
{
    conn->state = CONN_OPEN;
    conn->heard_ms = conn->sent_ms = uv_now(conn->loop);
    conn_set_interest(conn, conn->paused ? 0 : UV_READABLE);
    conn->events->connected(conn->owner);
}

/* --- bytes --- */

/* > 0 bytes, 0 = later, -1 = broken (why is set). */
static ssize_t tls_result(struct conn *conn, int result)
{
    if (result > 0)
        return result;
    switch (SSL_get_error(conn->ssl, result)) {
    case SSL_ERROR_WANT_READ:
        return 0; /* a write that waits for a read goes on with the next bytes in: poll watches them anyway */
    case SSL_ERROR_WANT_WRITE:
        conn->want_write = true;
        return 0;
    default:
        conn_note_tls_error(conn);
        return -1;
    }
}

static ssize_t plain_result(struct conn *conn, ssize_t result, const char *what)
{
    if (result > 0)
        return result;
    if (result < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return 0;
    if (result == 0)
        snprintf(conn->why, sizeof(conn->why), "closed by the peer");
    else
        snprintf(conn->why, sizeof(conn->why), "%s: %s", what, strerror(errno));
    return -1;
}

static ssize_t conn_recv(struct conn *conn, char *p, size_t n)
{
    assert(n > 0); /* the owner reads whole frames out as long as it is not paused */
    if (!conn->ssl)
        return plain_result(conn, recv(conn->socket->fd, p, n, 0), "read");
    ERR_clear_error();
    return tls_result(conn, SSL_read(conn->ssl, p, (int)n));
}

static ssize_t conn_send(struct conn *conn, const char *p, size_t n)
{
    if (!conn->ssl) {
        ssize_t sent = plain_result(conn, send(conn->socket->fd, p, n, MSG_NOSIGNAL), "write");

        conn->want_write = sent >= 0 && (size_t)sent < n;
        return sent;
    }
    ERR_clear_error();
    return tls_result(conn, SSL_write(conn->ssl, p, n > 1 << 30 ? 1 << 30 : (int)n));
}

static void conn_watch(struct conn *conn)
{
    if (conn->state == CONN_OPEN)
        conn_set_interest(
            conn, (conn->paused ? 0 : UV_READABLE) | (conn->want_write || conn->draining ? UV_WRITABLE : 0));
}

/* Nothing stays behind unseen by poll: there is room for more than a TLS record, so OpenSSL never keeps a part. */
static void conn_read(struct conn *conn)
{
    size_t capacity = conn->lean ? IN_LEAN_BYTES : IN_BYTES;
    bool more = true;

    if (!conn->in)
        conn->in = xmalloc(capacity);
    for (int i = 0; i < IN_READS && more && conn->state == CONN_OPEN && !conn->paused; i++) {
        memmove(conn->in, conn->in + conn->in_start, conn->in_end - conn->in_start);
        conn->in_end -= conn->in_start;
        conn->in_start = 0;
        ssize_t n = conn_recv(conn, conn->in + conn->in_end, capacity - conn->in_end);

        if (n < 0)
            conn_break(conn, conn->why);
        if (n <= 0)
            break;
        conn->in_end += (size_t)n;
        conn->heard_ms = uv_now(conn->loop);
        more = conn->ssl != NULL; /* a record has 16 KiB at most; TCP filled the buffer already */
        conn->events->received(conn->owner);
    }
    if (conn->lean && conn->in_start == conn->in_end) {
        free(conn->in);
        conn->in = NULL;
        conn->in_start = conn->in_end = 0;
    }
    conn_watch(conn);
}

struct str conn_in(const struct conn *conn)
{
    return (struct str){conn->in + conn->in_start, conn->in_end - conn->in_start};
}

void conn_consume(struct conn *conn, size_t n)
{
    conn->in_start += n;
    assert(conn->in_start <= conn->in_end);
}

struct buf *conn_out(struct conn *conn)
{
    return &conn->out;
}

size_t conn_unsent(const struct conn *conn)
{
    return conn->out.n - conn->out_sent;
}

/* A peer that gives up says why before it closes: what it has said is read, though it takes nothing any more. */
static void conn_write_failed(struct conn *conn)
{
    if (conn->paused || !conn_has_unread(conn)) {
        conn_break(conn, conn->why);
        return;
    }
    conn->deaf = true;
    conn->want_write = conn->draining = false;
    conn->out_sent = 0;
    buf_clear(&conn->out);
    conn_watch(conn);
}

void conn_flush(struct conn *conn)
{
    if (conn->state != CONN_OPEN)
        return;
    if (conn->deaf) {
        buf_clear(&conn->out);
        return;
    }
    conn->want_write = false;
    conn->draining = conn->draining || (conn->events->drained && conn_unsent(conn));
    while (conn->out_sent < conn->out.n) {
        ssize_t n = conn_send(conn, conn->out.p + conn->out_sent, conn->out.n - conn->out_sent);

        if (n < 0) {
            conn_write_failed(conn);
            return;
        }
        if (n > 0)
            conn->sent_ms = uv_now(conn->loop);
        conn->out_sent += (size_t)n;
        if (n == 0 || conn->want_write)
            break;
    }
    if (conn->out_sent == conn->out.n) {
        conn->out_sent = 0;
        if (conn->lean || conn->out.capacity > OUT_KEEP_BYTES)
            buf_clear(&conn->out);
        else
            buf_reset(&conn->out);
    } else if (conn->out_sent > conn->out.n / 2) { /* moves each byte at most once */
        buf_consume(&conn->out, conn->out_sent);
        conn->out_sent = 0;
    }
    conn_watch(conn);
}

static void conn_polled(uv_poll_t *poll, int status, int events)
{
    struct conn *conn = container_of(poll, struct conn_socket, poll)->conn;

    switch (conn->state) {
    case CONN_CONNECTING:
        conn_connected(conn);
        break;
    case CONN_TLS:
        conn_handshake(conn);
        break;
    case CONN_OPEN:
        if (status < 0)
            conn->socket->interest = 0; /* libuv has stopped it */
        if (events & UV_WRITABLE || (conn->ssl && conn_unsent(conn)))
            conn_flush(conn);
        if (conn->state == CONN_OPEN && conn->draining && !conn_unsent(conn)) {
            conn->draining = false;
            conn_watch(conn);
            conn->events->drained(conn->owner);
        }
        if (conn->state == CONN_OPEN && (events & UV_READABLE || status < 0))
            conn_read(conn);
        break;
    case CONN_RESOLVING:
    case CONN_DEAD:
        break;
    }
}

void conn_pause(struct conn *conn, bool pause)
{
    conn->paused = pause;
    conn_watch(conn);
}

bool conn_has_unread(const struct conn *conn)
{
    int n = 0;

    return conn->state == CONN_OPEN && ioctl(conn->socket->fd, FIONREAD, &n) == 0 && n > 0;
}

uint64_t conn_heard_ms(const struct conn *conn)
{
    return conn->heard_ms;
}

uint64_t conn_sent_ms(const struct conn *conn)
{
    return conn->sent_ms;
}

SSL_CTX *conn_tls_new(const char *ca_file)
{
    SSL_CTX *tls = SSL_CTX_new(TLS_client_method());

    if (!tls)
        return NULL;
    SSL_CTX_set_min_proto_version(tls, TLS1_2_VERSION);
    SSL_CTX_set_verify(tls, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    if (*ca_file ? SSL_CTX_load_verify_file(tls, ca_file) : SSL_CTX_set_default_verify_paths(tls))
        return tls;
    SSL_CTX_free(tls);
    return NULL;
}
