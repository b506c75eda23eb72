/*
 * Bodies that are not collected. libh2o 2.2.5 shows a request when all of its body is in memory. For POSTs to the
 * server's raw_path the head is therefore looked at before libh2o sees it, and its Content-Length renamed: to libh2o it
 * is a request without a body, and what follows is read from the socket here, piece by piece, while libh2o waits for
 * the answer. Then it goes on with the next request on the connection.
 *
 * libh2o's own reader is taken aside where a request can begin: after the accept (after the handshake with TLS) and
 * after each answer. A request that came in behind another one before that was answered is not seen here, and is
 * refused by its size or type like any other body: no browser pipelines.
 */
#define _GNU_SOURCE /* memmem */
#include "http_guard.h"
#include "http_impl.h"

#include <stdlib.h>
#include <strings.h>

#define PIECE_BYTES 65536

static const char length_name[] = "content-length", other_name[] = "x-body-length-";
_Static_assert(sizeof length_name == sizeof other_name, "one is written over the other");

static bool looked_at(struct wire *wire);
static void on_first_bytes(h2o_socket_t *sock, const char *error);
static void on_answer_written(h2o_socket_t *sock, const char *error);
static void on_handshake(h2o_socket_t *sock, const char *error);
static void on_handshake_late(h2o_timeout_entry_t *entry);
static void on_body(h2o_socket_t *sock, const char *error);

/* ---- where requests begin ---- */

static void watch_first_bytes(struct wire *wire)
{
    h2o_socket_t *sock = wire->sock;

    if (uv_is_closing((uv_handle_t *)&wire->tcp) || !sock->_cb.read || sock->_cb.read == on_first_bytes)
        return;
    wire->h2o_read = sock->_cb.read;
    sock->_cb.read = on_first_bytes;
}

void body_accept(struct wire *wire)
{
    struct http_server *server = wire->server;
    h2o_accept_ctx_t *accept = &server->accept_ctx;

    if (accept->ssl_ctx) {
        wire->late.cb = on_handshake_late;
        h2o_timeout_link(server->loop, &server->h2o.handshake_timeout, &wire->late);
        h2o_socket_ssl_handshake(wire->sock, accept->ssl_ctx, NULL, on_handshake);
    } else {
        h2o_http1_accept(accept, wire->sock, *h2o_get_timestamp(&server->h2o, NULL, NULL));
        watch_first_bytes(wire);
    }
}

static void on_handshake(h2o_socket_t *sock, const char *error)
{
    struct wire *wire = sock->on_close.data;
    struct http_server *server = wire->server;

    h2o_timeout_unlink(&wire->late);
    if (error) {
        h2o_socket_close(sock);
        return;
    }
    if (sock->input->size) /* what came with the end of the handshake is read at once */
        (void)looked_at(wire);
    h2o_http1_accept(&server->accept_ctx, sock, *h2o_get_timestamp(&server->h2o, NULL, NULL));
    watch_first_bytes(wire);
}

static void on_handshake_late(h2o_timeout_entry_t *entry)
{
    h2o_socket_close(container_of(entry, struct wire, late)->sock);
}

void body_answered(struct wire *wire)
{
    h2o_socket_t *sock = wire->sock;

    wire->body_left = -1;
    if (!wire->server->raw_path || !sock->_cb.write || sock->_cb.write == on_answer_written)
        return;
    wire->h2o_written = sock->_cb.write;
    sock->_cb.write = on_answer_written;
}

/* libh2o closes the connection now, or begins to read the next request. */
static void on_answer_written(h2o_socket_t *sock, const char *error)
{
    struct wire *wire = sock->on_close.data;

    wire->h2o_written(sock, error);
    watch_first_bytes(wire);
}

/* Can this be the head of a POST to the raw path? */
static bool begins_like_one(const struct http_server *server, const char *p, size_t n)
{
    const char *path = server->raw_path;
    size_t path_n = strlen(path), method_n = 5;

    if (memcmp(p, "POST ", n < method_n ? n : method_n) != 0)
        return false;
    if (n <= method_n)
        return true;
    p += method_n;
    n -= method_n;
    return memcmp(p, path, n < path_n ? n : path_n) == 0 && (n <= path_n || p[path_n] == '?' || p[path_n] == ' ');
}

/* The line of a header, from its name on; NULL: there is none. */
static char *line_find(char *head, size_t bytes, const char *name, struct str *value)
{
    size_t name_n = strlen(name);

    for (char *line = head, *end; (end = memchr(line, '\n', bytes - (size_t)(line - head))); line = end + 1) {
        if ((size_t)(end - line) <= name_n || line[name_n] != ':' || strncasecmp(line, name, name_n) != 0)
            continue;
        *value = (struct str){line + name_n + 1, (size_t)(end - line) - name_n - 1};
        while (value->n && (*value->p == ' ' || *value->p == '\t'))
            value->p++, value->n--;
        while (value->n && strchr(" \t\r", value->p[value->n - 1]))
            value->n--;
        return line;
    }
    return NULL;
}

/* The length leaves libh2o's sight: up to 15 digits and nothing else. What is sent in another way is collected. */
static void length_take(struct wire *wire, char *head, size_t bytes)
{
    struct str value;
    char *line = line_find(head, bytes, length_name, &value);
    int64_t length = 0;

    if (!line || !value.n || value.n > 15)
        return;
    for (size_t i = 0; i < value.n; i++) {
        if (value.p[i] < '0' || value.p[i] > '9')
            return;
        length = length * 10 + (value.p[i] - '0');
    }
    memcpy(line, other_name, sizeof other_name - 1);
    wire->body_left = length;
    wire->expects = line_find(head, bytes, "expect", &value) != NULL;
}

/* false: it may become one, when more of its head is here. */
static bool looked_at(struct wire *wire)
{
    h2o_buffer_t *input = wire->sock->input;
    struct http_head head;
    const char *why;
    int status;

    if (!begins_like_one(wire->server, input->bytes, input->size))
        return true;
    if (!memmem(input->bytes, input->size, "\r\n\r\n", 4) && input->size <= HTTP_HEAD_MAX_BYTES)
        return false;
    if (http_head_check(&head, input->bytes, input->size, &status, &why))
        length_take(wire, input->bytes, head.bytes);
    return true;
}

static void on_first_bytes(h2o_socket_t *sock, const char *error)
{
    struct wire *wire = sock->on_close.data;

    if (!error && !looked_at(wire))
        return; /* libh2o's own timer cuts off who is too slow with the rest */
    sock->_cb.read = wire->h2o_read;
    wire->h2o_read(sock, error);
}

/* ---- the body ---- */

/* libh2o has left the request's texts in the read buffer, which moves when more is read. */
static void keep_texts(h2o_req_t *req)
{
    h2o_iovec_t *texts[] = {&req->input.method, &req->input.path, &req->input.authority, &req->method, &req->path,
        &req->path_normalized, &req->authority, &req->upgrade};

    for (size_t i = 0; i < countof(texts); i++)
        if (texts[i]->base)
            *texts[i] = h2o_strdup(&req->pool, texts[i]->base, texts[i]->len);
    for (size_t i = 0; i < req->headers.size; i++) {
        h2o_header_t *header = &req->headers.entries[i];

        header->value = h2o_strdup(&req->pool, header->value.base, header->value.len);
        if (!h2o_iovec_is_token(header->name)) {
            h2o_iovec_t *name = h2o_mem_alloc_pool(&req->pool, sizeof *name);

            *name = h2o_strdup(&req->pool, header->name->base, header->name->len);
            header->name = name;
        }
    }
}

/* What came behind the head leaves the buffer before it is told: whoever hears it may answer. */
static void tell(struct http_reply *reply)
{
    struct wire *wire = reply->wire;
    h2o_buffer_t *input = wire->sock->input;
    size_t n = input->size - wire->head_bytes;
    char *piece;

    if (n > PIECE_BYTES)
        n = PIECE_BYTES;
    if ((int64_t)n > wire->body_left)
        n = (size_t)wire->body_left;
    piece = xmalloc(n + 1);
    memcpy(piece, input->bytes + wire->head_bytes, n);
    memmove(input->bytes + wire->head_bytes, input->bytes + wire->head_bytes + n, input->size - wire->head_bytes - n);
    input->size -= n;
    wire->body_left -= (int64_t)n;
    reply->piece(reply->piece_arg, (struct str){piece, n});
    free(piece);
}

void http_reply_read(struct http_reply *reply, void (*piece)(void *arg, struct str bytes), void *arg)
{
    static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";
    struct wire *wire = reply->wire;
    uv_buf_t buf = uv_buf_init((char *)(uintptr_t)go_on, sizeof go_on - 1);
    bool first = !reply->piece;
    h2o_socket_t *sock;

    reply->piece = piece;
    reply->piece_arg = arg;
    if (!reply->req) {
        piece(arg, (struct str){"", 0});
        return;
    }
    sock = wire->sock;
    if (first) {
        keep_texts(reply->req);
        /* A fresh socket takes it; who waits in vain sends after all. */
        if (wire->expects && sock->input->size == wire->head_bytes && !sock->ssl)
            uv_try_write((uv_stream_t *)&wire->tcp, &buf, 1);
    }
    if (sock->input->size > wire->head_bytes) {
        tell(reply);
        return;
    }
    wire->reading = reply;
    h2o_socket_read_start(sock, on_body);
}

static void on_body(h2o_socket_t *sock, const char *error)
{
    struct wire *wire = sock->on_close.data;
    struct http_reply *reply = wire->reading;

    if (!error && sock->input->size == wire->head_bytes)
        return; /* TLS: a record without data */
    h2o_socket_read_stop(sock);
    wire->reading = NULL;
    if (error)
        reply_gone(reply);
    else
        tell(reply);
}

void body_ends(struct http_reply *reply)
{
    struct wire *wire = reply->wire;

    if (wire->body_left < 0)
        return;
    if (wire->reading)
        h2o_socket_read_stop(wire->sock);
    wire->reading = NULL;
    if (wire->body_left > 0) { /* refused in the middle: what is still to come would be taken for a request */
        reply->req->http1_is_persistent = 0;
        linger_start(reply->server, wire_fd(wire));
    }
}
