/* Requests to the BaseService: one connection each, answered whole. */
#include "gateway.h"

#include <stdlib.h>

#include "answer.h"
#include "room/base/conn.h"
#include "room/base/log.h"
#include "room/base/mem.h"

#define ANSWER_MAX_BYTES (1u << 20)
#define DEADLINE_MS 5000

struct fetches {
    struct gateway *gateway;
    struct list all;
};

struct line {
    struct list link;
    struct fetches *fetches;
    struct fetch *fetch; /* NULL: answered */
    struct conn *conn;
    uv_timer_t timer;
    struct buf answer;
};

static void on_connected(void *owner);
static void on_read(void *owner);
static void on_ended(void *owner, const char *why);

static const struct conn_events line_events = {.connected = on_connected, .received = on_read, .broken = on_ended};

struct fetches *fetches_open(struct gateway *gateway)
{
    struct fetches *fetches = xcalloc(1, sizeof *fetches);

    fetches->gateway = gateway;
    list_init(&fetches->all);
    return fetches;
}

static void line_free(uv_handle_t *timer)
{
    struct line *line = timer->data;

    list_remove(&line->link);
    buf_clear(&line->answer);
    free(line);
}

static void line_end(struct line *line, int status, struct str answer)
{
    struct fetch *fetch = line->fetch;

    if (!fetch)
        return;
    line->fetch = NULL;
    conn_drop(line->conn);
    uv_close((uv_handle_t *)&line->timer, line_free);
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

    log_warn("base.timeout", "url=%s", line->fetches->gateway->settings->base_url);
    line_end(line, 0, STR(""));
}

void fetch_start(struct fetches *fetches, struct fetch *fetch)
{
    struct gateway *gateway = fetches->gateway;
    struct line *line = xcalloc(1, sizeof *line);
    struct buf *out;

    line->fetches = fetches;
    line->fetch = fetch;
    fetch->impl = line;
    list_push_back(&fetches->all, &line->link);
    uv_timer_init(gateway->loop, &line->timer);
    line->timer.data = line;
    uv_timer_start(&line->timer, on_late, DEADLINE_MS, 0);
    line->conn = base_connect(gateway, &line_events, line);
    out = conn_out(line->conn);
    buf_printf(out, "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nConnection: close\r\n", fetch->method,
        fetch->path, gateway->base.authority, gateway->settings->base_key);
    if (fetch->body.n)
        buf_printf(out, "Content-Type: application/json\r\nContent-Length: %zu\r\n", fetch->body.n);
    buf_text(out, "\r\n");
    buf_add_str(out, fetch->body);
}

static void on_connected(void *owner)
{
    struct line *line = owner;

    conn_flush(line->conn);
}

/* Whole when the connection ends (we asked for that), or its length is there. */
static void look(struct line *line, bool ended)
{
    struct str head = buf_str(&line->answer), body;
    int64_t length;
    int status;

    head.n = answer_head(head, &status);
    if (line->answer.n > ANSWER_MAX_BYTES || (ended && !head.n)) {
        line_end(line, 0, STR(""));
        return;
    }
    if (!head.n)
        return;
    body = (struct str){line->answer.p + head.n, line->answer.n - head.n};
    length = answer_length(head);
    if (ended || (length >= 0 && body.n >= (size_t)length))
        line_end(line, status, body);
}

static void on_read(void *owner)
{
    struct line *line = owner;
    struct str bytes = conn_in(line->conn);

    buf_add_str(&line->answer, bytes);
    conn_consume(line->conn, bytes.n);
    look(line, false);
}

static void on_ended(void *owner, const char *why)
{
    struct line *line = owner;

    if (!line->answer.n)
        log_warn("base.connect", "url=%s error=%s", line->fetches->gateway->settings->base_url, log_quote(str_of(why)));
    look(line, true);
}

struct conn *base_connect(struct gateway *gateway, const struct conn_events *events, void *owner)
{
    const struct server_url *base = &gateway->base;

    return conn_open(gateway->loop, base->host, base->port, base->tls ? gateway->tls : NULL, CONN_LEAN, events, owner);
}
