/*
 * The server around libh2o: listening, accepting, draining, closing. See http.h.
 *
 *   http.c          this
 *   http_guard.c    which request heads are refused, from their raw bytes
 *   http_request.c  what a handler gets to see: body, types, headers, query
 *   http_answer.c   the one answer, and when its reader leaves or does not read
 *   http_body.c     bodies that are read piece by piece instead of being collected
 *   http_tls.c      the certificate
 *   http_linger.c   who is still sending when it is refused
 *   wire.c          the sockets themselves, and those taken over
 */
#define _GNU_SOURCE /* accept4 */
#include "http_impl.h"
#include "log.h"

#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define LISTEN_BACKLOG 4096 /* 10,000 streams come back at once after a failover; the kernel caps it (somaxconn) */
#define ACCEPTS_PER_TURN 64 /* so that a flood of connections does not hold up the streams */
#define ACCEPT_PAUSE_MS 100 /* out of descriptors: the listener stays readable, so look away for a while */

struct request_handler {
    h2o_handler_t super;
    struct http_server *server;
};

static enum err listen_open(int *out, const char *address, int port);
static void h2o_open(struct http_server *server, const struct http_settings *settings);
static int on_request(h2o_handler_t *handler, h2o_req_t *req);
static void on_connection(uv_poll_t *poll, int status, int events);
static void on_accept_again(uv_timer_t *timer);
static void on_turn(uv_idle_t *idle);
static void h2o_stop(struct http_server *server);
static void on_handle_closed(uv_handle_t *handle);

enum err http_server_open(struct http_server **out, uv_loop_t *loop, const struct http_settings *settings,
    http_handler handler, void *context)
{
    struct http_server *server;
    SSL_CTX *tls = NULL;
    enum err err;
    int fd;

    if (settings->tls_certificate_file && *settings->tls_certificate_file &&
        (err = tls_open(&tls, settings->tls_certificate_file, settings->tls_key_file)))
        return err;
    if ((err = listen_open(&fd, settings->address, settings->port)))
        goto fail_tls;

    signal(SIGPIPE, SIG_IGN); /* a reader that left is an error code, not the end of the process */
    server = xcalloc(1, sizeof *server);
    server->loop = loop;
    server->handler = handler;
    server->context = context;
    server->request_max_bytes = settings->request_max_bytes;
    server->connections_max = settings->connections_max;
    server->raw_path = settings->raw_path;
    server->send_buffer_bytes = settings->send_buffer_bytes;
    server->write_timeout_ms = (uint64_t)settings->write_timeout_ms;
    list_init(&server->connections);
    list_init(&server->replies);
    list_init(&server->sending);
    list_init(&server->turn);
    list_init(&server->strays);
    list_init(&server->lingers);
    uv_timer_init(loop, &server->accept_again);
    uv_timer_init(loop, &server->cut);
    uv_idle_init(loop, &server->turn_idle);
    server->accept_again.data = server->cut.data = server->turn_idle.data = server;
    h2o_open(server, settings);
    server->accept_ctx.ssl_ctx = tls;
    server->listen_fd = fd;
    uv_poll_init(loop, &server->listener, fd);
    uv_poll_start(&server->listener, UV_READABLE, on_connection);
    *out = server;
    return ERR_OK;

fail_tls:
    SSL_CTX_free(tls);
    return err;
}

static enum err listen_open(int *out, const char *address, int port)
{
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE, .ai_socktype = SOCK_STREAM},
                    *found;
    char service[16];
    int fd = -1, on = 1, failure;

    snprintf(service, sizeof service, "%d", port);
    if ((failure = getaddrinfo(address, service, &hints, &found))) {
        log_error("http.listen", "address=%s port=%d error=%s", log_quote(str_of(address)), port,
            log_quote(str_of(gai_strerror(failure))));
        return ERR_BAD_REQUEST;
    }
    fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) ||
        bind(fd, found->ai_addr, found->ai_addrlen) || listen(fd, LISTEN_BACKLOG)) {
        log_error("http.listen", "address=%s port=%d error=%s", log_quote(str_of(address)), port,
            log_quote(str_of(strerror(errno))));
        freeaddrinfo(found);
        if (fd >= 0)
            close(fd);
        return ERR_UNAVAILABLE;
    }
    freeaddrinfo(found);
    *out = fd;
    return ERR_OK;
}

/* libh2o with one host whose fallback path gets everything: no path is special, none is redirected. */
static void h2o_open(struct http_server *server, const struct http_settings *settings)
{
    h2o_globalconf_t *config = &server->config;
    struct request_handler *handler;
    h2o_hostconf_t *host;

    h2o_config_init(config);
    config->server_name = (h2o_iovec_t){NULL, 0}; /* no Server header: it would tell the version */
    /* One more than is allowed: libh2o counts a chunked body as too large when it reaches the limit. */
    config->max_request_entity_size = (size_t)settings->request_max_bytes + 1;
    config->handshake_timeout = (uint64_t)settings->request_timeout_ms;
    config->http1.req_timeout = (uint64_t)settings->request_timeout_ms;
    config->http1.upgrade_to_http2 = 0; /* CVE-2023-44487 is open in this libh2o */
    host = h2o_config_register_host(config, h2o_iovec_init(H2O_STRLIT("default")), 65535);
    host->fallback_path.error_log.emit_request_errors = 0;
    handler = (struct request_handler *)h2o_create_handler(&host->fallback_path, sizeof *handler);
    handler->super.on_req = on_request;
    handler->server = server;
    error_filter_add(server, &host->fallback_path);
    h2o_context_init(&server->h2o, server->loop, config);
    server->accept_ctx = (h2o_accept_ctx_t){.ctx = &server->h2o, .hosts = config->hosts};
}

int http_server_port(const struct http_server *server)
{
    struct sockaddr_in6 address; /* the larger of the two; the port stands at the same place */
    socklen_t size = sizeof address;

    if (server->listen_fd < 0 || getsockname(server->listen_fd, (struct sockaddr *)&address, &size))
        return -1;
    return ntohs(address.sin6_port);
}

struct http_counters http_server_counters(const struct http_server *server)
{
    return server->counters;
}

/* ---- connections and requests ---- */

static void on_connection(uv_poll_t *poll, int status, int events)
{
    struct http_server *server = container_of(poll, struct http_server, listener);

    (void)status;
    (void)events;
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        int fd = accept4(server->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)) {
            log_warn("http.accept", "error=%s connections=%" PRIu64, log_quote(str_of(strerror(errno))),
                server->counters.connections_open);
            uv_poll_stop(&server->listener);
            uv_timer_start(&server->accept_again, on_accept_again, ACCEPT_PAUSE_MS, 0);
            return;
        }
        if (fd < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        if (fd < 0)
            continue; /* that one connection had a fault: accept(2) hands out errors of the network */
        if (server->counters.connections_open >= (uint64_t)server->connections_max) {
            server->counters.refused_total++;
            close(fd);
            continue;
        }
        wire_open(server, fd);
    }
}

static void on_accept_again(uv_timer_t *timer)
{
    struct http_server *server = container_of(timer, struct http_server, accept_again);

    uv_poll_start(&server->listener, UV_READABLE, on_connection);
}

static int on_request(h2o_handler_t *handler, h2o_req_t *req)
{
    struct http_server *server = ((struct request_handler *)handler)->server;
    struct http_reply *reply = reply_new(server, req);
    struct http_request request;
    struct buf scratch = {0};

    server->counters.requests_total++;
    if (request_read(&request, reply, &scratch))
        server->handler(server->context, &request, reply);
    buf_clear(&scratch);
    return 0;
}

/* ---- the turn: what was noticed inside a call and is told outside of it ---- */

void server_turn_start(struct http_server *server)
{
    uv_idle_start(&server->turn_idle, on_turn);
}

static void on_turn(uv_idle_t *idle)
{
    struct http_server *server = container_of(idle, struct http_server, turn_idle);
    struct list now, *link;

    list_init(&now);
    list_splice_back(&now, &server->turn); /* what is written meanwhile is told on the next turn */
    while ((link = list_pop_front(&now)))
        wire_written(list_entry(link, struct wire, turn));
    while ((link = list_pop_front(&server->strays)))
        reply_stray(list_entry(link, struct http_reply, sending));

    if (server->disposed && --server->turns_to_free == 0) {
        server->handles_to_close = 3;
        uv_close((uv_handle_t *)&server->accept_again, on_handle_closed);
        uv_close((uv_handle_t *)&server->cut, on_handle_closed);
        uv_close((uv_handle_t *)&server->turn_idle, on_handle_closed);
    } else if (!server->disposed && list_empty(&server->turn)) {
        uv_idle_stop(idle);
    }
}

/* ---- the end ---- */

void http_server_stop_listening(struct http_server *server)
{
    if (server->draining)
        return;
    server->draining = true;
    uv_timer_stop(&server->accept_again);
    uv_close((uv_handle_t *)&server->listener, NULL); /* before the number can mean another file */
    close(server->listen_fd);
    server->listen_fd = -1;
    /* The next answers say Connection: close. (h2o_context_request_shutdown would start a timer of HTTP/2 too.) */
    server->h2o.shutdown_requested = 1;
}

void http_server_close(struct http_server *server)
{
    struct http_reply *reply;
    struct wire *wire;

    http_server_stop_listening(server);
    lingers_end(server);
    list_for_each (reply, &server->replies, link) {
        if (!reply->answered)
            reply_orphan(reply);
    }
    list_for_each (wire, &server->connections, link) {
        if (wire->events)
            wire_close(wire);
        else
            wire_cut(wire); /* libh2o closes it when it sees the end */
    }
    server->closing = true;
    server_settle(server);
}

void server_settle(struct http_server *server)
{
    if (!server->closing || server->disposed || !list_empty(&server->connections) || !list_empty(&server->replies))
        return;
    server->disposed = true;
    h2o_stop(server);
    server->turns_to_free = 3; /* libuv needs the memory of libh2o's timers until the turn after their close */
    server_turn_start(server);
}

/* What h2o_context_dispose does, except that it also runs the loop, inside whatever runs now. */
static void h2o_stop(struct http_server *server)
{
    h2o_context_t *h2o = &server->h2o;
    h2o_timeout_t *const timeouts[] = {&h2o->zero_timeout, &h2o->one_sec_timeout, &h2o->hundred_ms_timeout,
        &h2o->handshake_timeout, &h2o->http1.req_timeout, &h2o->http2.idle_timeout,
        &h2o->http2.graceful_shutdown_timeout, &h2o->proxy.io_timeout};

    for (size_t i = 0; server->config.hosts[i]; i++)
        h2o_context_dispose_pathconf_context(h2o, &server->config.hosts[i]->fallback_path);
    free(h2o->_pathconfs_inited.entries);
    free(h2o->_module_configs);
    for (size_t i = 0; i < countof(timeouts); i++)
        h2o_timeout_dispose(server->loop, timeouts[i]);
    h2o_filecache_destroy(h2o->filecache);
    h2o_multithread_unregister_receiver(h2o->queue, &h2o->receivers.hostinfo_getaddr);
    h2o_multithread_destroy_queue(h2o->queue);
    if (h2o->_timestamp_cache.value)
        h2o_mem_release_shared(h2o->_timestamp_cache.value);
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct http_server *server = handle->data;

    if (--server->handles_to_close)
        return;
    h2o_config_dispose(&server->config);
    SSL_CTX_free(server->accept_ctx.ssl_ctx);
    free(server);
}
