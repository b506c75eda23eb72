/* Requests to the BaseService: one connection each, answered whole. */
#include "gateway.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "answer.h"
#include "room/base/log.h"
#include "room/base/mem.h"

#define ANSWER_MAX_BYTES (1u << 20)
#define DEADLINE_MS 5000

struct fetches {
    struct gateway *gateway;
    struct list all;
    char host[256], port[8];
};

struct line {
    struct list link;
    struct fetches *fetches;
    struct fetch *fetch; /* NULL: answered */
    uv_tcp_t tcp;
    uv_timer_t timer;
    uv_getaddrinfo_t resolve;
    uv_connect_t connect;
    uv_write_t write;
    struct buf request, answer;
    int handles;    /* not yet closed */
    bool resolving; /* the look-up is on its way */
    bool closing;
};

static void on_resolved(uv_getaddrinfo_t *resolve, int status, struct addrinfo *found);
static void on_connected(uv_connect_t *connect, int status);
static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf);

/* http://host:port */
static void read_base_url(struct fetches *fetches, const char *url)
{
    const char *at = strstr(url, "://"), *end, *colon;

    at = at ? at + 3 : url;
    end = at + strcspn(at, "/");
    colon = memchr(at, ':', (size_t)(end - at));
    snprintf(fetches->host, sizeof fetches->host, "%.*s", (int)((colon ? colon : end) - at), at);
    snprintf(fetches->port, sizeof fetches->port, "%.*s", colon ? (int)(end - colon - 1) : 2, colon ? colon + 1 : "80");
}

struct fetches *fetches_open(struct gateway *gateway)
{
    struct fetches *fetches = xcalloc(1, sizeof *fetches);

    fetches->gateway = gateway;
    list_init(&fetches->all);
    read_base_url(fetches, gateway->settings->base_url);
    return fetches;
}

void fetches_address(const struct fetches *fetches, const char **host, const char **port)
{
    *host = fetches->host;
    *port = fetches->port;
}

static void line_free(struct line *line)
{
    if (line->handles || line->resolving)
        return;
    list_remove(&line->link);
    buf_clear(&line->request);
    buf_clear(&line->answer);
    free(line);
}

static void on_closed(uv_handle_t *handle)
{
    struct line *line = handle->data;

    line->handles--;
    line_free(line);
}

static void line_end(struct line *line, int status, struct str answer)
{
    struct fetch *fetch = line->fetch;

    line->fetch = NULL;
    if (!line->closing) {
        line->closing = true;
        uv_close((uv_handle_t *)&line->tcp, on_closed);
        uv_close((uv_handle_t *)&line->timer, on_closed);
    }
    if (!fetch)
        return;
    fetch->status = status;
    fetch->answer = answer;
    fetch->impl = NULL;
    fetch->done(fetch);
}

void fetches_close(struct fetches *fetches)
{
    struct line *line;

    list_for_each (line, &fetches->all, link)
        line_end(line, 0, STR(""));
}

static void on_late(uv_timer_t *timer)
{
    struct line *line = timer->data;

    log_warn("base.timeout", "host=%s port=%s", line->fetches->host, line->fetches->port);
    line_end(line, 0, STR(""));
}

void fetch_start(struct fetches *fetches, struct fetch *fetch)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    uv_loop_t *loop = fetches->gateway->loop;
    struct line *line = xcalloc(1, sizeof *line);

    line->fetches = fetches;
    line->fetch = fetch;
    fetch->impl = line;
    list_push_back(&fetches->all, &line->link);
    buf_printf(&line->request, "%s %s HTTP/1.1\r\nHost: %s:%s\r\nAuthorization: Bearer %s\r\nConnection: close\r\n",
        fetch->method, fetch->path, fetches->host, fetches->port, fetches->gateway->settings->base_key);
    if (fetch->body.n)
        buf_printf(&line->request, "Content-Type: application/json\r\nContent-Length: %zu\r\n", fetch->body.n);
    buf_text(&line->request, "\r\n");
    buf_add_str(&line->request, fetch->body);
    uv_tcp_init(loop, &line->tcp);
    uv_timer_init(loop, &line->timer);
    line->handles = 2;
    line->tcp.data = line->timer.data = line->resolve.data = line->connect.data = line->write.data = line;
    uv_timer_start(&line->timer, on_late, DEADLINE_MS, 0);
    line->resolving = uv_getaddrinfo(loop, &line->resolve, on_resolved, fetches->host, fetches->port, &hints) == 0;
    if (!line->resolving)
        uv_timer_start(&line->timer, on_late, 0, 0); /* never answered from inside */
}

static void on_resolved(uv_getaddrinfo_t *resolve, int status, struct addrinfo *found)
{
    struct line *line = resolve->data;

    line->resolving = false;
    if (line->closing)
        line_free(line);
    else if (status || uv_tcp_connect(&line->connect, &line->tcp, found->ai_addr, on_connected))
        line_end(line, 0, STR(""));
    uv_freeaddrinfo(found);
}

static void give_room(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct line *line = handle->data;

    (void)suggested;
    *buf = uv_buf_init(buf_reserve(&line->answer, 16384), 16384);
}

static void on_connected(uv_connect_t *connect, int status)
{
    struct line *line = connect->data;
    uv_buf_t buf = uv_buf_init(line->request.p, (unsigned)line->request.n);

    if (line->closing)
        return;
    if (status || uv_write(&line->write, (uv_stream_t *)&line->tcp, &buf, 1, NULL) ||
        uv_read_start((uv_stream_t *)&line->tcp, give_room, on_read))
        line_end(line, 0, STR(""));
}

/* Whole when the connection ends (we asked for that), or its length is there. */
static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct line *line = stream->data;
    struct str head, body;
    int64_t length;
    int status;

    (void)buf;
    if (n == 0)
        return;
    if (n > 0)
        line->answer.n += (size_t)n;
    head = buf_str(&line->answer);
    head.n = answer_head(head, &status);
    if (line->answer.n > ANSWER_MAX_BYTES || (n < 0 && !head.n)) {
        line_end(line, 0, STR(""));
        return;
    }
    if (!head.n)
        return;
    body = (struct str){line->answer.p + head.n, line->answer.n - head.n};
    length = answer_length(head);
    if (n < 0 || (length >= 0 && body.n >= (size_t)length))
        line_end(line, status, body);
}
