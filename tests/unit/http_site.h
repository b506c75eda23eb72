/*
 * A server in this process and clients on plain sockets, all on one loop and one thread: a test says what is sent and
 * runs the loop until what it expects has come, or a deadline has passed. Every test ends by closing the server and
 * checks that no descriptor and no handle is left.
 */
#ifndef ROOMD_TESTS_HTTP_SITE_H
#define ROOMD_TESTS_HTTP_SITE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "room/base/clock.h"
#include "room/base/http.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define DEADLINE_MS 30000
#define BIG_BYTES (6u << 20)

/* What the handler of /stream and /upgrade keeps of a wire. */
struct held_wire {
    struct wire *wire;
    bool ready, closed;
    unsigned written;
    struct buf got, out;
    bool echo, hold; /* hold: uses nothing until a newline is there */
};

struct site {
    uv_loop_t loop;
    uv_timer_t tick;
    struct http_server *server;
    struct http_settings settings;
    SSL_CTX *client_tls;
    char certificate[64], key[64];
    char *big;
    size_t fds_before;
    unsigned calls;           /* of the handler */
    struct http_reply *reply; /* /wait and /stay */
    unsigned gone;
    struct held_wire held;
};

struct client {
    struct site *site;
    int fd;
    SSL *ssl;
    struct buf in;
    bool ended, reset;
};

/* ---- the loop ---- */

static inline void on_tick(uv_timer_t *timer)
{
    (void)timer;
}

static inline void turn(struct site *site)
{
    uv_run(&site->loop, UV_RUN_ONCE); /* the tick ends it within a millisecond */
}

#define until(site, condition)                                                          \
    do {                                                                                \
        uint64_t deadline_ms = clock_mono_ms() + DEADLINE_MS;                           \
        while (!(condition)) {                                                          \
            if (clock_mono_ms() > deadline_ms)                                          \
                fail_msg("%s:%d: never came true: %s", __FILE__, __LINE__, #condition); \
            turn(site);                                                                 \
        }                                                                               \
    } while (0)

static inline size_t open_fds(void)
{
    DIR *dir = opendir("/proc/self/fd");
    size_t n = 0;

    assert_non_null(dir);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

/* ---- the handler under the server ---- */

static inline size_t held_read(void *owner, const char *p, size_t n)
{
    struct held_wire *held = owner;
    uv_buf_t out;

    if (held->hold && !memchr(p, '\n', n))
        return 0;
    buf_add(&held->got, p, n);
    if (held->echo && !wire_writing(held->wire)) {
        buf_reset(&held->out);
        buf_add(&held->out, p, n);
        out = uv_buf_init(held->out.p, (unsigned)held->out.n);
        wire_write(held->wire, &out, 1);
    }
    return n;
}

static inline void held_written(void *owner)
{
    struct held_wire *held = owner;

    held->written++;
}

static inline void held_closed(void *owner)
{
    struct held_wire *held = owner;

    assert_false(held->closed);
    held->closed = true;
    held->wire = NULL;
}

static inline void held_ready(void *owner, struct wire *wire)
{
    struct held_wire *held = owner;

    assert_false(held->ready);
    held->ready = true;
    held->wire = wire;
}

static inline const struct wire_events *held_events(void)
{
    static const struct wire_events events = {held_read, held_written, held_closed};

    return &events;
}

static inline void held_forget(struct held_wire *held)
{
    buf_clear(&held->got);
    buf_clear(&held->out);
    memset(held, 0, sizeof *held);
}

static inline void on_gone(void *arg)
{
    struct site *site = arg;

    site->gone++;
}

static inline void take_over(struct site *site, struct http_reply *reply, int status)
{
    static const char *const stream_headers[] = {"content-type", "text/event-stream", NULL};
    static const char *const upgrade_headers[] = {"upgrade", "websocket", "x-more", "yes", NULL};

    http_reply_take_over(reply, status, status == 101 ? upgrade_headers : stream_headers, STR("hello\n"), held_events(),
        &site->held, held_ready);
}

static inline void answer_seen(const struct http_request *request, struct http_reply *reply)
{
    struct buf out = {0}, scratch = {0};
    struct str value = {NULL, 0};

    buf_text(&out, "{\"method\":");
    buf_json_string(&out, request->method_text);
    buf_text(&out, ",\"path\":");
    buf_json_string(&out, request->path);
    buf_text(&out, ",\"query\":");
    buf_json_string(&out, request->query);
    buf_printf(
        &out, ",\"version\":%d,\"body\":%zu,\"has_body\":%d", request->version, request->body.n, request->has_body);
    buf_text(&out, ",\"host\":");
    buf_json_string(&out, http_header(request, "host"));
    buf_text(&out, ",\"x\":");
    buf_json_string(&out, http_header(request, "x-custom"));
    for (size_t i = 0; i < 2; i++) {
        bool found = http_query_param(request, "after", i, &scratch, &value);

        buf_printf(&out, ",\"after%zu\":", i);
        if (found)
            buf_json_string(&out, value);
        else
            buf_text(&out, "null");
    }
    buf_char(&out, '}');
    http_reply_json(reply, 200, buf_str(&out));
    buf_clear(&out);
    buf_clear(&scratch);
}

static inline void handle(void *context, struct http_request *request, struct http_reply *reply)
{
    struct site *site = context;

    site->calls++;
    if (str_is(request->path, "/echo")) {
        http_reply_json(reply, 200, request->has_body ? request->body : STR("{}"));
    } else if (str_is(request->path, "/seen")) {
        answer_seen(request, reply);
    } else if (str_is(request->path, "/limited")) {
        http_reply_error(reply, ERR_RATE_LIMITED, "room_id", "room %d has enough", 7);
    } else if (str_is(request->path, "/method")) {
        http_reply_header(reply, "allow", "POST");
        http_reply_error(reply, ERR_METHOD_NOT_ALLOWED, NULL, NULL);
    } else if (str_is(request->path, "/big")) {
        http_reply_text(reply, 200, "text/plain", (struct str){site->big, BIG_BYTES});
    } else if (str_is(request->path, "/wait") || str_is(request->path, "/stay")) {
        assert_null(site->reply);
        site->reply = reply;
        if (str_is(request->path, "/wait"))
            http_reply_on_gone(reply, on_gone, site);
    } else if (str_is(request->path, "/stream")) {
        take_over(site, reply, 200);
    } else if (str_is(request->path, "/upgrade") && str_is(http_header(request, "upgrade"), "websocket")) {
        take_over(site, reply, 101);
    } else {
        http_reply_error(reply, ERR_NO_SUCH_METHOD, NULL, NULL);
    }
}

/* ---- the server ---- */

static inline void certificate_write(struct site *site)
{
    EVP_PKEY *key = EVP_RSA_gen(2048);
    X509 *certificate = X509_new();
    FILE *file;
    int fd;

    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate), 0);
    X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
    X509_set_pubkey(certificate, key);
    X509_NAME_add_entry_by_txt(
        X509_get_subject_name(certificate), "CN", MBSTRING_ASC, (const unsigned char *)"localhost", -1, -1, 0);
    X509_set_issuer_name(certificate, X509_get_subject_name(certificate));
    assert_true(X509_sign(certificate, key, EVP_sha256()) > 0);
    snprintf(site->certificate, sizeof site->certificate, "/tmp/test_http_cert_XXXXXX");
    snprintf(site->key, sizeof site->key, "/tmp/test_http_key_XXXXXX");
    assert_true((fd = mkstemp(site->certificate)) >= 0);
    file = fdopen(fd, "w");
    PEM_write_X509(file, certificate);
    fclose(file);
    assert_true((fd = mkstemp(site->key)) >= 0);
    file = fdopen(fd, "w");
    PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL);
    fclose(file);
    X509_free(certificate);
    EVP_PKEY_free(key);
}

/* Times far above the deadline: a test that needs the server's own cut asks for it. */
static inline struct site *site_new(bool tls)
{
    struct site *site = calloc(1, sizeof *site);

    site->settings = (struct http_settings){.address = "127.0.0.1",
        .request_max_bytes = 100000,
        .request_timeout_ms = 60000,
        .write_timeout_ms = 60000,
        .connections_max = 1000,
        .send_buffer_bytes = 65536,
        .tls_certificate_file = "",
        .tls_key_file = ""};
    if (tls) {
        certificate_write(site);
        site->settings.tls_certificate_file = site->certificate;
        site->settings.tls_key_file = site->key;
        site->client_tls = SSL_CTX_new(TLS_client_method());
    }
    site->big = malloc(BIG_BYTES);
    memset(site->big, 'b', BIG_BYTES);
    uv_loop_init(&site->loop); /* the first loop of a process opens what all share and nobody closes */
    uv_loop_close(&site->loop);
    site->fds_before = open_fds();
    uv_loop_init(&site->loop);
    uv_timer_init(&site->loop, &site->tick);
    uv_timer_start(&site->tick, on_tick, 1, 1);
    return site;
}

static inline struct site *site_open(struct site *site)
{
    assert_int_equal(http_server_open(&site->server, &site->loop, &site->settings, handle, site), ERR_OK);
    return site;
}

static inline void site_close(struct site *site)
{
    if (site->server)
        http_server_close(site->server);
    if (site->reply)
        http_reply_json(site->reply, 200, STR("{}"));
    site->reply = NULL;
    uv_close((uv_handle_t *)&site->tick, NULL);
    uv_run(&site->loop, UV_RUN_DEFAULT); /* ends when no handle of the server is left */
    assert_int_equal(uv_loop_close(&site->loop), 0);
    assert_int_equal(open_fds(), site->fds_before);
    held_forget(&site->held);
    if (site->client_tls) {
        SSL_CTX_free(site->client_tls);
        unlink(site->certificate);
        unlink(site->key);
    }
    free(site->big);
    free(site);
}

static inline uint64_t connections(struct site *site)
{
    return http_server_counters(site->server).connections_open;
}

/* ---- clients ---- */

static inline struct client *dial_with(struct site *site, int receive_bytes)
{
    struct sockaddr_in to = {.sin_family = AF_INET,
        .sin_port = htons((uint16_t)http_server_port(site->server)),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct client *client = calloc(1, sizeof *client);

    client->site = site;
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(client->fd >= 0);
    if (receive_bytes)
        setsockopt(client->fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
    assert_int_equal(connect(client->fd, (struct sockaddr *)&to, sizeof to), 0);
    fcntl(client->fd, F_SETFL, O_NONBLOCK);
    if (site->client_tls) {
        int done;

        client->ssl = SSL_new(site->client_tls);
        SSL_set_fd(client->ssl, client->fd);
        until(site, (done = SSL_connect(client->ssl)) == 1 || SSL_get_error(client->ssl, done) == SSL_ERROR_SSL);
        assert_int_equal(done, 1);
    }
    return client;
}

static inline struct client *dial(struct site *site)
{
    return dial_with(site, 0);
}

/* Reads what is there; true when something came or the end. */
static inline bool pump(struct client *client)
{
    char *at = buf_reserve(&client->in, 65536);
    ssize_t n;

    if (client->ended)
        return false;
    if (client->ssl) {
        n = SSL_read(client->ssl, at, 65536);
        if (n <= 0 && SSL_get_error(client->ssl, (int)n) == SSL_ERROR_WANT_READ)
            return false;
    } else {
        n = recv(client->fd, at, 65536, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return false;
        client->reset = n < 0;
    }
    client->ended = n <= 0;
    client->in.n += n > 0 ? (size_t)n : 0;
    return true;
}

static inline void say_bytes(struct client *client, const void *p, size_t n)
{
    const char *at = p;
    size_t left = n;

    while (left) {
        ssize_t done = client->ssl ? SSL_write(client->ssl, at, (int)left) : send(client->fd, at, left, MSG_NOSIGNAL);

        if (done > 0) {
            at += done;
            left -= (size_t)done;
        } else if (!client->ssl && errno != EAGAIN) {
            return; /* the server has closed: what it said before is what counts */
        } else {
            pump(client);
            turn(client->site);
        }
    }
}

static inline void say(struct client *client, const char *text)
{
    say_bytes(client, text, strlen(text));
}

static inline bool heard(struct client *client, const char *text)
{
    while (pump(client))
        ;
    return client->in.n && memmem(client->in.p, client->in.n, text, strlen(text));
}

static inline bool heard_end(struct client *client)
{
    while (pump(client))
        ;
    return client->ended;
}

static inline int status_of(const struct client *client)
{
    char first[13] = {0};

    memcpy(first, client->in.p, client->in.n < 12 ? client->in.n : 12);
    return strncmp(first, "HTTP/1.1 ", 9) == 0 ? atoi(first + 9) : -1;
}

/* The body of the first answer, once it is whole; false before. */
static inline bool answered(struct client *client, struct str *body)
{
    const char *end, *length;
    size_t n = 0, head;

    while (pump(client))
        ;
    if (!client->in.n || !(end = memmem(client->in.p, client->in.n, "\r\n\r\n", 4)))
        return false;
    head = (size_t)(end - client->in.p) + 4;
    if ((length = memmem(client->in.p, head, "Content-Length: ", 16)))
        n = strtoul(length + 16, NULL, 10);
    *body = (struct str){client->in.p + head, n};
    return client->in.n >= head + n;
}

/* One call and its answer. */
static inline struct str ask(struct client *client, const char *text)
{
    struct str body;

    buf_reset(&client->in);
    say(client, text);
    until(client->site, answered(client, &body));
    return body;
}

enum leaving { LEAVE_FIN, LEAVE_RESET };

static inline void leave(struct client *client, enum leaving how)
{
    struct linger at_once = {1, 0};

    if (how == LEAVE_RESET)
        setsockopt(client->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    if (client->ssl)
        SSL_free(client->ssl); /* without close_notify */
    close(client->fd);
    buf_clear(&client->in);
    free(client);
}

/* ---- for setup and teardown: a site in *state, open, in the clear or over TLS ---- */

static inline int open_plain(void **state)
{
    *state = site_open(site_new(false));
    return 0;
}

static inline int open_tls(void **state)
{
    *state = site_open(site_new(true));
    return 0;
}

static inline int close_site(void **state)
{
    site_close(*state);
    return 0;
}

/* ---- what is sent ---- */

#define POST(path, headers, body) "POST " path " HTTP/1.1\r\nHost: h\r\n" headers "\r\n" body

#endif
