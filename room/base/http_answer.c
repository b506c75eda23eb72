/* Answers: a reply is the right to give one, once, whenever. See http.h. */
#include "http_impl.h"
#include "json.h"
#include "msgpack.h"

#include <assert.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/*
 * A reader's departure before the answer. libh2o does not read while a request is answered, and reading in its place
 * has traps (a read error makes its next write wait for ever; the request's texts lie in the read buffer), so a second
 * descriptor of the socket is asked for nothing but the hang-up. Requests sent behind stay in the kernel.
 */
struct watch {
    uv_poll_t poll;
    int fd;
    struct http_reply *reply;
};

static void on_request_over(void *cell);
static void reply_free(struct http_reply *reply);
static void reply_detach(struct http_reply *reply);
static void sending_start(struct http_reply *reply);
static void headers_add(struct http_reply *reply, int status, const char *content_type, size_t bytes);
static const char *reason_of(int status);
static void on_hang_up(uv_poll_t *poll, int status, int events);
static void watch_stop(struct http_reply *reply);
static void on_watch_closed(uv_handle_t *handle);
static void on_taken_over(void *arg, h2o_socket_t *sock, size_t request_bytes);

struct http_reply *reply_new(struct http_server *server, h2o_req_t *req)
{
    struct http_reply *reply = xcalloc(1, sizeof *reply);
    h2o_socket_t *sock = req->conn->callbacks->get_socket(req->conn);

    reply->server = server;
    reply->req = req;
    reply->wire = sock->on_close.data;
    list_push_back(&server->replies, &reply->link);
    list_init(&reply->sending);
    reply->cell = h2o_mem_alloc_shared(&req->pool, sizeof *reply->cell, on_request_over);
    *reply->cell = reply;
    return reply;
}

/* The request's memory goes: the answer has been sent, or cannot be. */
static void on_request_over(void *cell)
{
    struct http_reply *reply = *(struct http_reply **)cell;

    if (!reply)
        return;
    reply->req = NULL;
    list_remove(&reply->sending);
    watch_stop(reply);
    if (reply->answered && !reply->taking)
        reply_free(reply);
}

static void reply_free(struct http_reply *reply)
{
    struct http_server *server = reply->server;

    list_remove(&reply->link);
    free(reply);
    server_settle(server);
}

/* ---- the answer ---- */

void http_reply_json(struct http_reply *reply, int status, struct str json)
{
    struct buf packed = {0};

    if (reply->wants_msgpack && msgpack_from_json(json, &packed))
        reply_end(reply, status, "application/msgpack", buf_str(&packed));
    else
        reply_end(reply, status, "application/json", json);
    buf_clear(&packed);
}

void http_reply_text(struct http_reply *reply, int status, const char *content_type, struct str body)
{
    reply_end(reply, status, content_type, body);
}

void http_reply_error(struct http_reply *reply, enum err err, const char *field, const char *format, ...)
{
    int status = err_http(err);
    struct buf json = {0};
    char message[512];
    va_list args;

    if (format) {
        va_start(args, format);
        vsnprintf(message, sizeof message, format, args);
        va_end(args);
    }
    error_json(&json, err, field, str_of(format ? message : err_sentence(err)));
    if (status == 429 || status == 503)
        http_reply_header(reply, "retry-after", "1");
    http_reply_json(reply, status, buf_str(&json));
    buf_clear(&json);
}

void error_json(struct buf *out, enum err err, const char *field, struct str message)
{
    if (!utf8_valid(message)) /* cut in the middle of a character, or an echo of something odd */
        message = str_of(err_sentence(err));
    buf_text(out, "{\"error\":{\"code\":");
    buf_json_string(out, str_of(err_code(err)));
    buf_text(out, ",\"message\":");
    buf_json_string(out, message);
    if (field) {
        buf_text(out, ",\"field\":");
        buf_json_string(out, str_of(field));
    }
    buf_text(out, "}}");
}

void reply_refuse(struct http_reply *reply, int status, enum err err, const char *why)
{
    struct buf json = {0};

    reply->server->counters.refused_total++;
    reply->close = true; /* where the next request begins is anybody's guess */
    error_json(&json, err, NULL, str_of(why));
    http_reply_json(reply, status, buf_str(&json));
    buf_clear(&json);
}

void http_reply_header(struct http_reply *reply, const char *name, const char *value)
{
    h2o_iovec_t copy;

    assert(!strpbrk(value, "\r\n"));
    if (!reply->req)
        return;
    copy = h2o_strdup(&reply->req->pool, value, SIZE_MAX);
    h2o_add_header_by_str(
        &reply->req->pool, &reply->req->res.headers, name, strlen(name), 1, NULL, copy.base, copy.len);
}

void reply_end(struct http_reply *reply, int status, const char *content_type, struct str body)
{
    h2o_req_t *req = reply->req;
    struct wire *wire = reply->wire; /* the reply may be gone after it is sent */

    assert(!reply->answered);
    reply->answered = true;
    watch_stop(reply);
    if (!req) {
        reply_free(reply);
        return;
    }
    headers_add(reply, status, content_type, body.n);
    body_ends(reply);
    if (reply->close || reply->server->draining)
        req->http1_is_persistent = 0;
    sending_start(reply);
    reply->server->answering = req;
    h2o_send_inline(req, body.n ? body.p : "", body.n);
    reply->server->answering = NULL;
    body_answered(wire);
}

/* ---- in pieces ---- */

static void on_proceed(h2o_generator_t *pieces, h2o_req_t *req)
{
    struct http_reply *reply = container_of(pieces, struct http_reply, pieces);

    (void)req;
    list_remove(&reply->sending);
    reply->more(reply->pieces_arg);
}

/* libh2o gives the answer up; the request's memory goes, and the reply with it. */
static void on_stop(h2o_generator_t *pieces, h2o_req_t *req)
{
    struct http_reply *reply = container_of(pieces, struct http_reply, pieces);

    (void)req;
    if (!reply->last)
        reply->left(reply->pieces_arg);
}

bool http_reply_begin(
    struct http_reply *reply, int status, int64_t length, void (*more)(void *arg), void (*gone)(void *arg), void *arg)
{
    h2o_req_t *req = reply->req;

    assert(!reply->answered);
    reply->answered = true;
    watch_stop(reply);
    if (!req) {
        reply_free(reply);
        return false;
    }
    reply->pieces = (h2o_generator_t){on_proceed, on_stop};
    reply->more = more;
    reply->left = gone;
    reply->pieces_arg = arg;
    body_ends(reply);
    if (reply->close || reply->server->draining)
        req->http1_is_persistent = 0;
    req->res.status = status;
    req->res.reason = reason_of(status);
    req->res.content_length = length < 0 ? SIZE_MAX : (size_t)length;
    reply->server->answering = req; /* filters are set up here */
    h2o_start_response(req, &reply->pieces);
    reply->server->answering = NULL;
    return true;
}

void http_reply_piece(struct http_reply *reply, struct str bytes, bool last)
{
    h2o_iovec_t piece = {(char *)(uintptr_t)bytes.p, bytes.n};
    struct wire *wire = reply->wire;

    reply->last = last;
    if (last && bytes.n) /* nobody is told when it has gone */
        piece = h2o_strdup(&reply->req->pool, bytes.p, bytes.n);
    sending_start(reply);
    h2o_send(reply->req, &piece, bytes.n ? 1 : 0, last ? H2O_SEND_STATE_FINAL : H2O_SEND_STATE_IN_PROGRESS);
    if (last)
        body_answered(wire);
}

void http_reply_break(struct http_reply *reply)
{
    wire_cut(reply->wire);
}

static void headers_add(struct http_reply *reply, int status, const char *content_type, size_t bytes)
{
    h2o_req_t *req = reply->req;

    req->res.status = status;
    req->res.reason = reason_of(status);
    req->res.content_length = bytes;
    http_reply_header(reply, "content-type", content_type);
    http_reply_header(reply, "cache-control", "no-store");
    http_reply_header(reply, "x-content-type-options", "nosniff");
}

static const char *reason_of(int status)
{
    static const struct {
        int status;
        const char *reason;
    } table[] = {{101, "Switching Protocols"}, {200, "OK"}, {201, "Created"}, {202, "Accepted"}, {204, "No Content"},
        {206, "Partial Content"}, {304, "Not Modified"}, {400, "Bad Request"}, {401, "Unauthorized"},
        {403, "Forbidden"}, {404, "Not Found"}, {405, "Method Not Allowed"}, {409, "Conflict"}, {410, "Gone"},
        {413, "Content Too Large"}, {415, "Unsupported Media Type"}, {416, "Range Not Satisfiable"},
        {417, "Expectation Failed"}, {426, "Upgrade Required"}, {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"}, {500, "Internal Server Error"}, {502, "Bad Gateway"},
        {503, "Service Unavailable"}, {504, "Gateway Timeout"}};

    for (size_t i = 0; i < countof(table); i++) {
        if (table[i].status == status)
            return table[i].reason;
    }
    return status < 400 ? "OK" : "Error";
}

/* ---- an answer nobody reads ---- */

/* All have the same time, so the list is in the order of their ends. */
static void sending_start(struct http_reply *reply)
{
    struct http_server *server = reply->server;

    reply->cut_at_ms = uv_now(server->loop) + server->write_timeout_ms;
    list_push_back(&server->sending, &reply->sending);
    if (!uv_is_active((uv_handle_t *)&server->cut))
        uv_timer_start(&server->cut, replies_cut_late, server->write_timeout_ms, 0);
}

void replies_cut_late(uv_timer_t *timer)
{
    struct http_server *server = container_of(timer, struct http_server, cut);
    uint64_t now = uv_now(server->loop);

    while (!list_empty(&server->sending)) {
        struct http_reply *reply = list_entry(server->sending.next, struct http_reply, sending);
        if (reply->cut_at_ms > now) {
            uv_timer_start(timer, replies_cut_late, reply->cut_at_ms - now, 0);
            return;
        }
        list_remove(&reply->sending);
        reply->req->http1_is_persistent = 0;
        wire_cut(reply->wire);
    }
}

/* ---- a reader that leaves before the answer ---- */

void http_reply_on_gone(struct http_reply *reply, void (*gone)(void *arg), void *arg)
{
    struct watch *watch;
    int fd;

    reply->gone = gone;
    reply->gone_arg = arg;
    if (!gone)
        watch_stop(reply);
    if (!gone || reply->watch || !reply->req || reply->answered)
        return;
    if ((fd = fcntl(wire_fd(reply->wire), F_DUPFD_CLOEXEC, 0)) < 0)
        return; /* out of descriptors: it is noticed when the answer is written */
    watch = xcalloc(1, sizeof *watch);
    watch->fd = fd;
    watch->reply = reply;
    if (uv_poll_init(reply->server->loop, &watch->poll, fd)) {
        close(fd);
        free(watch);
        return;
    }
    reply->watch = watch;
    uv_poll_start(&watch->poll, UV_DISCONNECT, on_hang_up);
}

/* A client that only half-closes looks the same: who waits for an answer must keep its side open. */
static void on_hang_up(uv_poll_t *poll, int status, int events)
{
    struct http_reply *reply = container_of(poll, struct watch, poll)->reply;
    void (*gone)(void *) = reply->gone;
    void *arg = reply->gone_arg;

    (void)status; /* a reset comes as an error here */
    (void)events;
    wire_cut(reply->wire);
    reply_detach(reply);
    if (gone)
        gone(arg);
}

void reply_gone(struct http_reply *reply)
{
    wire_cut(reply->wire);
    reply_detach(reply);
    reply->piece(reply->piece_arg, (struct str){"", 0});
}

static void watch_stop(struct http_reply *reply)
{
    struct watch *watch = reply->watch;

    if (!watch)
        return;
    reply->watch = NULL;
    uv_close((uv_handle_t *)&watch->poll, on_watch_closed);
    close(watch->fd);
}

static void on_watch_closed(uv_handle_t *handle)
{
    free(container_of(handle, struct watch, poll));
}

/* Ends the request on libh2o's side with an empty answer; the reply stays until its owner answers it. */
static void reply_detach(struct http_reply *reply)
{
    h2o_req_t *req = reply->req;

    watch_stop(reply);
    if (!req)
        return;
    body_ends(reply);
    *reply->cell = NULL;
    reply->req = NULL;
    req->http1_is_persistent = 0;
    req->res.status = 503;
    req->res.reason = reason_of(503);
    req->res.content_length = 0;
    reply->server->answering = req;
    h2o_send_inline(req, "", 0);
    reply->server->answering = NULL;
}

void reply_orphan(struct http_reply *reply)
{
    reply_detach(reply);
}

/* ---- taking over ---- */

void http_reply_take_over(struct http_reply *reply, int status, const char *const *headers, struct str head,
    const struct wire_events *events, void *owner, void (*ready)(void *owner, struct wire *wire))
{
    h2o_req_t *req = reply->req;
    h2o_iovec_t first;

    assert(!reply->answered);
    reply->answered = true;
    reply->taking = true;
    reply->events = events;
    reply->owner = owner;
    reply->ready = ready;
    watch_stop(reply);
    if (!req) {
        list_push_back(&reply->server->strays, &reply->sending);
        server_turn_start(reply->server);
        return;
    }
    for (; headers && headers[0]; headers += 2)
        http_reply_header(reply, headers[0], headers[1]);
    /* libh2o writes `Connection: upgrade` whatever the status is; a second line says that the end is the end. */
    if (status != 101)
        http_reply_header(reply, "connection", "close");
    req->res.status = status;
    req->res.reason = reason_of(status);
    req->http1_is_persistent = 0;
    first = h2o_strdup(&req->pool, head.n ? head.p : "", head.n);
    sending_start(reply);
    h2o_http1_upgrade(req, &first, first.len ? 1 : 0, on_taken_over, reply);
}

static void on_taken_over(void *arg, h2o_socket_t *sock, size_t request_bytes)
{
    struct http_reply *reply = arg;
    struct wire *wire = reply->wire;

    if (!sock) {
        reply_stray(reply);
        return;
    }
    wire_take(wire, request_bytes, reply->events, reply->owner);
    reply->ready(reply->owner, wire);
    reply_free(reply);
    wire_read_rest(wire);
}

void reply_stray(struct http_reply *reply)
{
    reply->ready(reply->owner, NULL);
    reply_free(reply);
}

/* ---- libh2o's own refusals, told in our words ---- */

struct error_filter {
    h2o_filter_t super;
    struct http_server *server;
};

struct error_stream {
    h2o_ostream_t super;
    h2o_iovec_t body;
};

static void error_stream_send(
    h2o_ostream_t *stream, h2o_req_t *req, h2o_iovec_t *bufs, size_t count, h2o_send_state_t state)
{
    struct error_stream *self = (struct error_stream *)stream;
    bool head_only = h2o_memis(req->input.method.base, req->input.method.len, H2O_STRLIT("HEAD"));

    (void)bufs;
    (void)count;
    h2o_ostream_send_next(stream, req, &self->body, head_only ? 0 : 1, state);
}

/* 413 and broken framing are answered by libh2o itself, in plain text. What it cannot parse at all is beyond reach:
 * there it writes a fixed `400 Bad Request` to the socket and closes. */
static void on_setup_ostream(h2o_filter_t *filter, h2o_req_t *req, h2o_ostream_t **slot)
{
    struct http_server *server = ((struct error_filter *)filter)->server;
    struct error_stream *stream;
    struct buf json = {0};
    enum err err = req->res.status == 413 ? ERR_TOO_LARGE : ERR_BAD_REQUEST;
    char message[128];

    if (server->answering == req) {
        h2o_setup_next_ostream(req, slot);
        return;
    }
    server->counters.requests_total++;
    server->counters.refused_total++;
    if (err == ERR_TOO_LARGE) {
        linger_start(server, h2o_socket_get_fd(req->conn->callbacks->get_socket(req->conn)));
        snprintf(message, sizeof message, "the body is larger than the limit of %lld bytes",
            (long long)server->request_max_bytes);
    } else if (req->res.status == 417) {
        snprintf(message, sizeof message, "the only Expect here is 100-continue");
    } else {
        snprintf(message, sizeof message, "the length or the chunks of the body are broken");
    }
    error_json(&json, err, NULL, str_of(message));

    stream = (struct error_stream *)h2o_add_ostream(req, sizeof *stream, slot);
    stream->super.do_send = error_stream_send;
    stream->body = h2o_strdup(&req->pool, json.p, json.n);
    req->res.content_length = json.n;
    req->res.headers.size = 0;
    h2o_add_header_by_str(
        &req->pool, &req->res.headers, H2O_STRLIT("content-type"), 1, NULL, H2O_STRLIT("application/json"));
    h2o_add_header_by_str(&req->pool, &req->res.headers, H2O_STRLIT("cache-control"), 1, NULL, H2O_STRLIT("no-store"));
    h2o_add_header_by_str(
        &req->pool, &req->res.headers, H2O_STRLIT("x-content-type-options"), 1, NULL, H2O_STRLIT("nosniff"));
    buf_clear(&json);
    h2o_setup_next_ostream(req, &stream->super.next);
}

void error_filter_add(struct http_server *server, h2o_pathconf_t *path)
{
    struct error_filter *filter = (struct error_filter *)h2o_create_filter(path, sizeof *filter);

    filter->super.on_setup_ostream = on_setup_ostream;
    filter->server = server;
}
