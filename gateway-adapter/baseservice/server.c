/*
 * HTTP/1.1 for files: bodies go to disk and come from it piece by piece, so that a connection holds a few buffers
 * however large a file is. (The shim of room/base collects a whole body before it shows a request.) The disk is touched
 * in worker threads only, one step of a connection at a time; nothing is read from a socket meanwhile.
 *
 *   HEAD ─▶ BODY (upload, or a small JSON) ─▶ ANSWER ─▶ SENDING (a file) ─▶ HEAD … or LINGER ─▶ closed
 *     └───────────────────────────────────────▶ ANSWER
 *
 * Source: RFC 9110 (9.3.1, 10.1.1, 13, 14), RFC 9112.
 */
#include "answer.h"
#include "baseservice.h"
#include "files.h"
#include "room/base/http_guard.h"
#include "room/base/json.h"
#include "room/base/list.h"
#include "room/base/log.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <unistd.h>

#define CHUNK_BYTES 65536
#define JSON_MAX_BYTES 4096
#define LINGER_MS 2000 /* for a client that sends on while it is refused: a reset would eat the answer */

enum state { HEAD, BODY, ANSWER, SENDING, LINGER };

struct server {
    uv_loop_t *loop;
    uv_tcp_t listener;
    const struct options *options;
    const struct file_store *store;
    struct list connections;
    size_t count;
    bool draining, listener_closed;
    void (*idle)(void *arg);
    void *idle_arg;
};

struct connection {
    struct server *server;
    uv_tcp_t tcp;
    uv_timer_t timer;
    struct list link;
    enum state state;
    struct buf in;        /* arrived, not used yet */
    struct request asked; /* points into `head` */
    struct buf head;
    bool keep, closing, working;
    int handles;

    uint64_t body_left;
    struct buf json;
    struct upload *upload;
    enum file_kind kind;
    char id[FILE_ID_BYTES + 1];
    struct file_facts facts;
    int fd; /* of the file that is sent; -1: none */
    uint64_t at, left;
    char *chunk;

    uv_work_t work;
    void (*run)(struct connection *c);  /* in a worker */
    void (*done)(struct connection *c); /* on the loop again */
    enum file_result result;
    size_t step; /* bytes of this step */
    uv_write_t write;
    struct buf out;
};

static void on_connection(uv_stream_t *listener, int status);
static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf);
static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf);
static void on_quiet(uv_timer_t *timer);
static void go_on(struct connection *c);
static bool head_read(struct connection *c);
static void route(struct connection *c);
static void work(struct connection *c, void (*run)(struct connection *), void (*done)(struct connection *));
static void refuse(struct connection *c, int status, const char *code, const char *sentence);
static void answer_json(struct connection *c, struct buf *json);
static void answer(struct connection *c);
static void answer_done(struct connection *c);
static void connection_close(struct connection *c);

/* ------------------------------------------------------------ the listener */

struct server *server_open(uv_loop_t *loop, const struct options *options, struct file_store *store)
{
    struct server *server = xcalloc(1, sizeof *server);
    struct sockaddr_storage address;
    int port = (int)options->listen_port, failure = UV_EINVAL;

    *server = (struct server){.loop = loop, .options = options, .store = store};
    list_init(&server->connections);
    uv_tcp_init(loop, &server->listener);
    server->listener.data = server;
    if (uv_ip4_addr(options->listen_address, port, (struct sockaddr_in *)&address) == 0 ||
        uv_ip6_addr(options->listen_address, port, (struct sockaddr_in6 *)&address) == 0)
        failure = uv_tcp_bind(&server->listener, (struct sockaddr *)&address, 0);
    if (failure == 0)
        failure = uv_listen((uv_stream_t *)&server->listener, 511, on_connection);
    if (failure == 0)
        return server;
    log_error("http.listen", "address=%s port=%d error=%s", log_quote(str_of(options->listen_address)), port,
        uv_strerror(failure));
    server_free(server);
    return NULL;
}

int server_port(const struct server *server)
{
    struct sockaddr_storage address;
    int size = sizeof address;

    if (uv_tcp_getsockname(&server->listener, (struct sockaddr *)&address, &size))
        return -1;
    return ntohs(((struct sockaddr_in *)&address)->sin_port); /* at the same place in both families */
}

static void stop_listening(struct server *server)
{
    if (!server->listener_closed)
        uv_close((uv_handle_t *)&server->listener, NULL);
    server->listener_closed = true;
}

void server_drain(struct server *server, void (*idle)(void *arg), void *arg)
{
    struct connection *c;

    stop_listening(server);
    server->draining = true;
    server->idle = idle;
    server->idle_arg = arg;
    list_for_each (c, &server->connections, link) {
        c->keep = false;
        if (c->state == HEAD && !c->in.n)
            connection_close(c);
    }
    if (server->count == 0)
        idle(arg);
}

void server_free(struct server *server)
{
    struct connection *c;

    stop_listening(server);
    server->idle = NULL;
    list_for_each (c, &server->connections, link)
        connection_close(c);
    while (uv_run(server->loop, UV_RUN_ONCE) && server->count)
        ;
    uv_run(server->loop, UV_RUN_NOWAIT); /* the listener's close */
    free(server);
}

static void on_connection(uv_stream_t *listener, int status)
{
    struct server *server = listener->data;
    struct connection *c;

    if (status < 0)
        return;
    c = xcalloc(1, sizeof *c);
    c->server = server;
    c->fd = -1;
    c->handles = 2;
    uv_tcp_init(server->loop, &c->tcp);
    uv_timer_init(server->loop, &c->timer);
    c->tcp.data = c->timer.data = c->work.data = c->write.data = c;
    list_push_back(&server->connections, &c->link);
    server->count++;
    if (uv_accept(listener, (uv_stream_t *)&c->tcp) || server->count > (size_t)server->options->connections_max) {
        connection_close(c);
        return;
    }
    uv_tcp_nodelay(&c->tcp, 1);
    go_on(c);
}

/* -------------------------------------------------------------- connections */

static void on_handle_closed(uv_handle_t *handle)
{
    struct connection *c = handle->data;
    struct server *server = c->server;

    if (--c->handles)
        return;
    list_remove(&c->link);
    buf_clear(&c->in);
    buf_clear(&c->head);
    buf_clear(&c->json);
    buf_clear(&c->out);
    free(c->chunk);
    free(c);
    if (--server->count == 0 && server->idle)
        server->idle(server->idle_arg);
}

static void run_abandon(struct connection *c)
{
    if (c->upload)
        upload_abandon(c->upload);
    c->upload = NULL;
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}

static void close_handles(struct connection *c)
{
    uv_close((uv_handle_t *)&c->tcp, on_handle_closed);
    uv_close((uv_handle_t *)&c->timer, on_handle_closed);
}

/* A worker that is busy with it finishes first; then what is half done is taken back, in a worker too. */
static void connection_close(struct connection *c)
{
    if (c->closing && (c->working || uv_is_closing((uv_handle_t *)&c->tcp)))
        return;
    c->closing = true;
    if (c->working) {
        uv_read_stop((uv_stream_t *)&c->tcp);
        return;
    }
    if (c->upload || c->fd >= 0)
        work(c, run_abandon, close_handles);
    else
        close_handles(c);
}

/* Whatever the connection waits for now: the peer gets so long to move. */
static void on_quiet(uv_timer_t *timer)
{
    struct connection *c = timer->data;

    if (!c->working)
        connection_close(c);
}

static void quiet_until(struct connection *c, uint64_t ms)
{
    if (!c->closing)
        uv_timer_start(&c->timer, on_quiet, ms, 0);
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct connection *c = handle->data;

    (void)suggested;
    *buf = uv_buf_init(buf_reserve(&c->in, CHUNK_BYTES), CHUNK_BYTES);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct connection *c = stream->data;

    (void)buf;
    if (n == 0)
        return;
    if (n < 0) {
        connection_close(c);
        return;
    }
    uv_read_stop(stream);
    c->in.n += (size_t)n;
    go_on(c);
}

static void read_more(struct connection *c)
{
    if (c->state != LINGER)
        quiet_until(c, (uint64_t)c->server->options->idle_timeout_ms);
    uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read);
}

/* ---- worker steps ---- */

static void in_worker(uv_work_t *request)
{
    struct connection *c = request->data;

    c->run(c);
}

static void after_worker(uv_work_t *request, int status)
{
    struct connection *c = request->data;

    (void)status;
    c->working = false;
    if (c->closing && c->done != close_handles)
        connection_close(c);
    else
        c->done(c);
}

static void work(struct connection *c, void (*run)(struct connection *), void (*done)(struct connection *))
{
    assert(!c->working);
    c->working = true;
    c->run = run;
    c->done = done;
    uv_queue_work(c->server->loop, &c->work, in_worker, after_worker);
}

/* ------------------------------------------------------------------ uploads */

static void run_write(struct connection *c)
{
    c->result = c->upload ? FILE_OK
                          : upload_begin(&c->upload, c->server->store, c->kind,
                                request_header(&c->asked, "content-type"), c->body_left);
    if (!c->result)
        c->result = upload_write(c->upload, c->in.p, c->step);
}

static void run_commit(struct connection *c)
{
    c->result = upload_commit(c->upload, c->id, &c->facts);
    c->upload = NULL;
}

static void refuse_result(struct connection *c)
{
    if (c->result == FILE_WRONG_TYPE)
        refuse(c, 415, "unsupported_media_type",
            "the bytes are not of the kind that was named; see docs/baseservice.md#files");
    else if (c->result == FILE_NONE)
        refuse(c, 404, "no_such_file", "there is no file with this id");
    else
        refuse(c, 503, "unavailable", "the disk refuses; see the log");
}

static void on_committed(struct connection *c)
{
    struct buf json = {0};

    if (c->result) {
        refuse_result(c);
        return;
    }
    facts_write(&json, c->id, &c->facts);
    log_info("file.stored", "id=%s kind=%s bytes=%llu", c->id, file_kind_names[c->facts.kind],
        (unsigned long long)c->facts.size);
    answer_json(c, &json);
}

static void on_written_to_disk(struct connection *c)
{
    buf_consume(&c->in, c->step);
    c->body_left -= c->step;
    if (c->result) {
        c->keep = c->keep && c->body_left == 0;
        refuse_result(c);
    } else if (c->body_left) {
        go_on(c);
    } else {
        work(c, run_commit, on_committed);
    }
}

static void body_on(struct connection *c)
{
    c->step = c->in.n < c->body_left ? c->in.n : (size_t)c->body_left;
    if (!c->step && c->body_left) {
        read_more(c);
        return;
    }
    if (str_is(c->asked.path, "/files")) {
        work(c, run_write, on_written_to_disk);
        return;
    }
    buf_add(&c->json, c->in.p, c->step);
    buf_consume(&c->in, c->step);
    c->body_left -= c->step;
    if (c->body_left)
        read_more(c);
    else
        route(c);
}

/* ------------------------------------------------------------- what is asked */

static void go_on(struct connection *c)
{
    if (c->closing)
        return;
    if (c->state == LINGER)
        buf_reset(&c->in);
    if (c->state == HEAD && c->in.n && !head_read(c))
        return;
    if (c->state == BODY)
        body_on(c);
    else
        read_more(c);
}

static bool length_read(struct str text, uint64_t *length)
{
    *length = 0;
    for (size_t i = 0; i < text.n; i++) {
        if (text.p[i] < '0' || text.p[i] > '9' || i >= 15)
            return false;
        *length = *length * 10 + (uint64_t)(text.p[i] - '0');
    }
    return text.n > 0;
}

/* Takes the head off what arrived and begins to answer. false: that is all for now. */
static bool head_read(struct connection *c)
{
    const char *end = memmem(c->in.p, c->in.n, "\r\n\r\n", 4), *why;
    struct http_head head;
    struct str length;
    int status;

    if (!end && c->in.n <= HTTP_HEAD_MAX_BYTES)
        return true; /* more of it is on its way */
    c->keep = false;
    if (!http_head_check(&head, c->in.p, c->in.n, &status, &why)) {
        refuse(c, status, status == 431 ? "too_large" : "bad_request", why);
        return false;
    }
    buf_reset(&c->head);
    buf_add(&c->head, c->in.p, head.bytes);
    request_read(&c->asked, c->head.p, &head, c->in.p);
    buf_consume(&c->in, head.bytes);
    buf_reset(&c->json);
    c->body_left = 0;
    length = request_header(&c->asked, "content-length");
    c->keep = head.version == 11 && !c->server->draining && !request_lists(&c->asked, "connection", "close");
    if (request_header(&c->asked, "transfer-encoding").p)
        refuse(c, 411, "bad_request", "send the body with a Content-Length");
    else if (length.p && !length_read(length, &c->body_left))
        refuse(c, 400, "bad_request", "Content-Length is a number");
    else
        route(c);
    return false;
}

static void continue_body(struct connection *c)
{
    static const char go[] = "HTTP/1.1 100 Continue\r\n\r\n";
    uv_buf_t buf = uv_buf_init((char *)(uintptr_t)go, sizeof go - 1);

    c->state = BODY;
    if (request_lists(&c->asked, "expect", "100-continue") && !c->in.n)
        uv_try_write((uv_stream_t *)&c->tcp, &buf, 1); /* a fresh socket takes it; who waits in vain sends after all */
    body_on(c);
}

static void route_upload(struct connection *c)
{
    const struct options *options = c->server->options;
    const int64_t most[FILE_KINDS] = {
        options->image_max_bytes, options->voice_max_bytes, options->video_max_bytes, options->file_max_bytes};
    struct str kind = request_param(&c->asked, "kind");
    char sentence[100];
    size_t i = 0;

    while (i < FILE_KINDS && !str_is(kind, file_kind_names[i]))
        i++;
    if (i == FILE_KINDS) {
        refuse(c, 400, "bad_request", "kind is image, voice, video or file");
    } else if (!request_header(&c->asked, "content-length").p) {
        refuse(c, 411, "bad_request", "send the file as body, with a Content-Length");
    } else if (c->body_left == 0) {
        refuse(c, 400, "bad_request", "the file is empty");
    } else if (c->body_left > (uint64_t)most[i]) {
        snprintf(sentence, sizeof sentence, "a file of the kind %s has at most %lld bytes", file_kind_names[i],
            (long long)most[i]);
        refuse(c, 413, "too_large", sentence);
    } else {
        c->kind = (enum file_kind)i;
        continue_body(c);
    }
}

static void login(struct connection *c)
{
    struct buf scratch = {0}, json = {0};
    struct str id = {NULL, 0}, password = {NULL, 0}, name = {NULL, 0};
    struct json body;
    const char *why = "account_id and password are strings";
    bool good = json_check(buf_str(&c->json), &body, &why) && body.type == JSON_OBJECT;

    buf_reserve(&scratch, 2 * JSON_MAX_BYTES); /* so that the first slice stays where it is */
    good = good && json_get(body, "account_id").type == JSON_STRING && json_get(body, "password").type == JSON_STRING &&
           json_string(json_get(body, "account_id"), &scratch, &id) &&
           json_string(json_get(body, "password"), &scratch, &password);
    if (good)
        name = account_login(c->server->options->accounts, id, password);
    if (!good) {
        refuse(c, 400, "bad_request", why);
    } else if (!name.p) {
        refuse(c, 401, "unauthenticated", "account and password do not fit");
    } else {
        buf_text(&json, "{\"account_id\":");
        buf_json_string(&json, id);
        buf_text(&json, ",\"name\":");
        buf_json_string(&json, name);
        buf_char(&json, '}');
        answer_json(c, &json);
    }
    buf_clear(&scratch);
}

static void accounts(struct connection *c)
{
    struct buf json = {0}, scratch = {0};
    struct str ids = request_param(&c->asked, "ids"), match = request_param(&c->asked, "match");

    if (!param_decode(&ids, &scratch) || !param_decode(&match, &scratch)) {
        refuse(c, 400, "bad_request", "the query is not well encoded");
    } else {
        buf_text(&json, "{\"accounts\":[");
        accounts_write(c->server->options->accounts, ids, match, &json);
        buf_text(&json, "]}");
        answer_json(c, &json);
    }
    buf_clear(&scratch);
}

/* ---------------------------------------------------------------- downloads */

static struct str file_id(const struct connection *c)
{
    struct str id = {c->asked.path.p + 7, c->asked.path.n - 7};

    if (id.n > 5 && memcmp(id.p + id.n - 5, "/info", 5) == 0)
        id.n -= 5;
    return id;
}

static void run_open(struct connection *c)
{
    struct str id = file_id(c);

    c->result = file_open(c->server->store, id, &c->fd, &c->facts);
    if (!c->result) {
        memcpy(c->id, id.p, id.n);
        c->id[id.n] = '\0';
    }
}

static void close_file(struct connection *c)
{
    if (c->fd >= 0)
        close(c->fd); /* read only: nothing is waited for */
    c->fd = -1;
}

static void on_opened(struct connection *c)
{
    struct buf json = {0};
    struct file_range range;

    if (c->result) {
        refuse_result(c);
    } else if (c->asked.path.n > 7 + FILE_ID_BYTES) {
        close_file(c);
        facts_write(&json, c->id, &c->facts);
        answer_json(c, &json);
    } else {
        range = range_of(&c->asked, c->id, &c->facts);
        c->at = FILE_HEAD_BYTES + range.first;
        c->left = range.bytes;
        file_head_write(&c->out, c->id, &c->facts, &range, c->keep);
        if (str_is(c->asked.method, "HEAD") || !c->left)
            close_file(c);
        c->state = ANSWER;
        answer(c);
    }
}

static void run_pread(struct connection *c)
{
    ssize_t n;

    if (!c->chunk)
        c->chunk = xmalloc(CHUNK_BYTES);
    do
        n = pread(c->fd, c->chunk, c->left < CHUNK_BYTES ? (size_t)c->left : CHUNK_BYTES, (off_t)c->at);
    while (n < 0 && errno == EINTR);
    c->step = n > 0 ? (size_t)n : 0;
}

static void on_sent(uv_write_t *request, int status);

static void on_chunk(struct connection *c)
{
    uv_buf_t buf = uv_buf_init(c->chunk, (unsigned)c->step);

    if (!c->step) { /* cut short: the length was promised, so only the end of the connection can tell */
        log_error("file.read", "id=%s", c->id);
        connection_close(c);
        return;
    }
    c->at += c->step;
    c->left -= c->step;
    quiet_until(c, (uint64_t)c->server->options->idle_timeout_ms);
    if (uv_write(&c->write, (uv_stream_t *)&c->tcp, &buf, 1, on_sent))
        connection_close(c);
}

/* ------------------------------------------------------------------ answers */

static void route(struct connection *c)
{
    struct str path = c->asked.path;
    bool get = str_is(c->asked.method, "GET") || str_is(c->asked.method, "HEAD"),
         post = str_is(c->asked.method, "POST");

    if (get && c->body_left)
        refuse(c, 400, "bad_request", "GET and HEAD take no body");
    else if (get && str_is(path, "/healthz"))
        answer_json(c, &(struct buf){0});
    else if (!key_valid(c->server->options->service_keys, request_header(&c->asked, "authorization")))
        refuse(c, 401, "unauthenticated", "send a valid service key as Authorization: Bearer");
    else if (post && str_is(path, "/files"))
        route_upload(c);
    else if (get && path.n > 7 && memcmp(path.p, "/files/", 7) == 0)
        work(c, run_open, on_opened);
    else if (get && str_is(path, "/accounts"))
        accounts(c);
    else if (post && str_is(path, "/accounts/login") && c->body_left > JSON_MAX_BYTES)
        refuse(c, 413, "too_large", "the body has at most 4096 bytes");
    else if (post && str_is(path, "/accounts/login") && c->body_left)
        continue_body(c);
    else if (post && str_is(path, "/accounts/login"))
        login(c);
    else
        refuse(c, 404, "no_such_method", "there is no such call; see docs/baseservice.md");
}

static void refuse(struct connection *c, int status, const char *code, const char *sentence)
{
    struct buf json = {0};

    c->keep = c->keep && !c->body_left; /* what is still to come would be taken for a request */
    buf_printf(&json, "{\"error\":{\"code\":\"%s\",\"message\":", code);
    buf_json_string(&json, str_of(sentence));
    buf_text(&json, "}}");
    json_head_write(&c->out, status, json.n, c->keep);
    if (!str_is(c->asked.method, "HEAD"))
        buf_add_str(&c->out, buf_str(&json));
    buf_clear(&json);
    c->state = ANSWER;
    answer(c);
}

static void answer_json(struct connection *c, struct buf *json)
{
    if (!json->n)
        buf_text(json, "{}");
    json_head_write(&c->out, 200, json->n, c->keep);
    if (!str_is(c->asked.method, "HEAD"))
        buf_add_str(&c->out, buf_str(json));
    buf_clear(json);
    c->state = ANSWER;
    answer(c);
}

static void answer(struct connection *c)
{
    uv_buf_t buf = uv_buf_init(c->out.p, (unsigned)c->out.n);

    quiet_until(c, (uint64_t)c->server->options->idle_timeout_ms);
    if (uv_write(&c->write, (uv_stream_t *)&c->tcp, &buf, 1, on_sent))
        connection_close(c);
}

static void on_sent(uv_write_t *request, int status)
{
    struct connection *c = request->data;

    if (c->closing || status < 0) {
        if (!c->closing)
            connection_close(c);
        return;
    }
    buf_reset(&c->out);
    if (c->fd >= 0 && c->left) {
        c->state = SENDING;
        work(c, run_pread, on_chunk);
        return;
    }
    close_file(c);
    if (c->upload) { /* refused in the middle: what is half written goes first */
        work(c, run_abandon, answer_done);
        return;
    }
    answer_done(c);
}

static void on_shut(uv_shutdown_t *request, int status)
{
    (void)status;
    free(request);
}

/* The next request, or a good-bye that the peer can read: it may still be sending what we do not want. */
static void answer_done(struct connection *c)
{
    uv_shutdown_t *shut;

    c->state = c->keep ? HEAD : LINGER;
    if (c->keep && c->server->draining && !c->in.n) {
        connection_close(c);
        return;
    }
    if (!c->keep) {
        quiet_until(c, LINGER_MS); /* not longer, also while it goes on sending */
        shut = xmalloc(sizeof *shut);
        if (uv_shutdown(shut, (uv_stream_t *)&c->tcp, on_shut))
            free(shut);
    }
    go_on(c);
}
