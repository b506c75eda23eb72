#include "relay.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "server_url.h"
#include "answer.h"
#include "room/base/conn.h"
#include "room/base/log.h"
#include "room/base/mem.h"

#define HEAD_MAX_BYTES 16384
#define ANSWER_MAX_BYTES (2u << 20) /* of a poll, or of a refusal */

enum relay_state { CONNECTING, ASKING, ANSWERING, TAKING_OVER, FLOWING, ENDED };

/* What is needed until the connection flows; freed then. */
struct order {
    struct buf text; /* all texts, one behind the other */
    struct str *urls;
    size_t url_count, next;
    struct str target, ticket, websocket_key, websocket_protocols, last_event_id, body;
    struct server_url to;
    struct buf head;    /* of the instance's answer, then its body */
    size_t body_at;     /* where the body begins in it */
    int64_t body_bytes; /* -1: to the end of the connection */
    int status;
    struct buf refusal; /* the last instance's, when all refuse */
    int refusal_status;
    uv_timer_t *timer;
};

struct relay {
    struct list link;
    struct relays *relays;
    enum relay_state state;
    enum relay_kind kind;
    struct http_reply *reply; /* until answered */
    struct order *order;      /* until FLOWING */
    struct conn *hop;         /* to the instance */
    struct wire *wire;
    struct relay_scan scan;
    struct buf down; /* given to the wire, until it is written */
    struct buf own;  /* events of ours, which wait for the end of the instance's frame */
    struct relay_upstream up;
    bool judging;  /* the message at the front of `up` is being judged */
    bool unjudged; /* what comes now is no WebSocket: the instance will say so */
    bool in_go_on;
    bool ending; /* the instance has closed: what is being written is the last */
    void (*ended)(void *arg, void *owner);
    void *owner;
    uint64_t ends_unix_ms;
    size_t account_n;
    char account[];
};

/* The way of a relay - the steps, in the order they run. */
static void try_next(struct relay *relay);
static void on_connected(void *owner);
static void on_read(void *owner);
static void on_answer(struct relay *relay, struct str bytes);
static void on_head(struct relay *relay);
static void take_over(struct relay *relay);
static void on_taken(void *owner, struct wire *wire);
static void pass_down(struct relay *relay, struct str bytes);
static void write_down(struct relay *relay);
static size_t pass_up(void *owner, const char *p, size_t n);
static void relay_end(struct relay *relay);

static struct str account_of(struct relay *relay)
{
    return (struct str){relay->account, relay->account_n};
}

void relays_open(struct relays *relays)
{
    list_init(&relays->all);
}

void relays_cut_old(struct relays *relays, uint64_t now_unix_ms)
{
    struct relay *relay;

    list_for_each (relay, &relays->all, link)
        if (relay->ends_unix_ms && relay->ends_unix_ms <= now_unix_ms && relay->state == FLOWING && !relay->ending)
            relay_end(relay);
}

void relays_close(struct relays *relays)
{
    struct relay *relay;

    list_for_each (relay, &relays->all, link)
        relay_end(relay);
}

/* ------------------------------------------------------------------------------------------------------- the order */

static struct str keep(struct buf *text, struct str given)
{
    struct str at = {text->p + text->n, given.n};

    buf_add(text, given.p, given.n);
    return at;
}

static struct order *order_copy(const struct relay_order *given)
{
    struct order *order = xcalloc(1, sizeof *order);
    size_t bytes = 1 + given->target.n + given->ticket.n + given->websocket_key.n + given->websocket_protocols.n +
                   given->last_event_id.n + given->body.n;

    for (size_t i = 0; i < given->url_count; i++)
        bytes += given->urls[i].n;
    buf_reserve(&order->text, bytes); /* once: slices of it stay good */
    order->urls = xcalloc(given->url_count + 1, sizeof *order->urls);
    order->url_count = given->url_count;
    for (size_t i = 0; i < given->url_count; i++)
        order->urls[i] = keep(&order->text, given->urls[i]);
    order->target = keep(&order->text, given->target);
    order->ticket = keep(&order->text, given->ticket);
    order->websocket_key = keep(&order->text, given->websocket_key);
    order->websocket_protocols = keep(&order->text, given->websocket_protocols);
    order->last_event_id = keep(&order->text, given->last_event_id);
    order->body = keep(&order->text, given->body);
    return order;
}

static void free_timer(uv_handle_t *handle)
{
    free(handle);
}

static void order_free(struct order *order)
{
    if (!order)
        return;
    if (order->timer) {
        uv_timer_stop(order->timer);
        uv_close((uv_handle_t *)order->timer, free_timer);
        order->timer = NULL;
    }
    buf_clear(&order->text);
    buf_clear(&order->head);
    buf_clear(&order->refusal);
    free(order->urls);
    free(order);
}

void relay_start(struct relays *relays, struct http_reply *reply, const struct relay_order *given)
{
    struct relay *relay = xcalloc(1, sizeof *relay + given->account.n);

    relay->relays = relays;
    relay->kind = given->kind;
    relay->reply = reply;
    relay->ended = given->ended;
    relay->owner = given->owner;
    relay->ends_unix_ms = given->ends_unix_ms;
    relay->scan.websocket = given->kind == RELAY_WEBSOCKET;
    relay->account_n = given->account.n;
    memcpy(relay->account, given->account.p, given->account.n);
    relay->order = order_copy(given);
    relay->order->timer = xcalloc(1, sizeof *relay->order->timer);
    relay->order->timer->data = relay;
    uv_timer_init(relays->loop, relay->order->timer);
    list_push_back(&relays->all, &relay->link);
    relays->count++;
    try_next(relay);
}

/* ----------------------------------------------------------------------------------------------------- connecting */

static void hop_drop(struct relay *relay)
{
    if (relay->hop)
        conn_drop(relay->hop);
    relay->hop = NULL;
}

static void fail(struct relay *relay, const char *what, const char *detail)
{
    struct order *order = relay->order;

    log_info("relay.endpoint_failed", "endpoint=%s what=%s detail=%s",
        order->next ? log_quote(order->urls[order->next - 1]) : "", what, log_quote(str_of(detail)));
    relay->relays->next_endpoint_total++;
    http_reply_on_gone(relay->reply, NULL, NULL);
    try_next(relay);
}

static void on_slow(uv_timer_t *timer)
{
    struct relay *relay = timer->data;

    if (relay->state == ANSWERING) {
        http_reply_on_gone(relay->reply, NULL, NULL);
        http_reply_error(relay->reply, ERR_TIMEOUT, NULL, "the instance does not go on; try again");
        relay->reply = NULL;
        relay_end(relay);
    } else {
        fail(relay, "timeout", "");
    }
}

static void answer_failure(struct relay *relay)
{
    struct order *order = relay->order;

    relay->relays->failed_total++;
    if (order->refusal_status)
        http_reply_json(relay->reply, order->refusal_status, buf_str(&order->refusal));
    else
        http_reply_error(relay->reply, ERR_UNAVAILABLE, NULL, "no instance could be reached; try again");
    relay->reply = NULL;
    relay_end(relay);
}

static void on_ended(void *owner, const char *why)
{
    struct relay *relay = owner;

    if (relay->state == FLOWING || relay->state == TAKING_OVER) {
        relay->ending = true;
        if (relay->wire && !wire_writing(relay->wire))
            wire_close(relay->wire);
    } else if (relay->state == ANSWERING && relay->order->body_bytes < 0) {
        relay->order->body_bytes = (int64_t)(relay->order->head.n - relay->order->body_at);
        on_answer(relay, STR(""));
    } else {
        fail(relay, relay->state == CONNECTING ? "connect" : "closed", why);
    }
}

static const struct conn_events hop_events = {.connected = on_connected, .received = on_read, .broken = on_ended};

static void try_next(struct relay *relay)
{
    struct order *order = relay->order;

    hop_drop(relay);
    buf_reset(&order->head);
    order->body_at = 0;
    relay->state = CONNECTING;
    while (order->next < order->url_count && !server_url_read(&order->to, order->urls[order->next])) {
        log_warn("relay.endpoint_unusable", "endpoint=%s hint=\"http://host:port or https://host:port is wanted\"",
            log_quote(order->urls[order->next]));
        order->next++;
    }
    if (order->next == order->url_count) {
        answer_failure(relay);
        return;
    }
    order->next++;
    uv_timer_start(order->timer, on_slow, (uint64_t)relay->relays->connect_timeout_ms, 0);
    relay->hop = conn_open(relay->relays->loop, order->to.host, order->to.port,
        order->to.tls ? relay->relays->tls : NULL, CONN_LEAN, &hop_events, relay);
}

static void write_request(struct relay *relay, struct buf *out)
{
    const struct order *order = relay->order;

    buf_printf(out, "%s %.*s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %.*s\r\n", order->body.n ? "POST" : "GET",
        STR_ARG(order->target), order->to.authority, STR_ARG(order->ticket));
    if (relay->kind == RELAY_WEBSOCKET) {
        buf_printf(out,
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %.*s\r\n",
            STR_ARG(order->websocket_key));
        if (order->websocket_protocols.n)
            buf_printf(out, "Sec-WebSocket-Protocol: %.*s\r\n", STR_ARG(order->websocket_protocols));
    } else {
        buf_text(out, "Connection: close\r\n");
    }
    if (order->last_event_id.n)
        buf_printf(out, "Last-Event-ID: %.*s\r\n", STR_ARG(order->last_event_id));
    if (order->body.n)
        buf_printf(out, "Content-Type: application/json\r\nContent-Length: %zu\r\n", order->body.n);
    buf_text(out, "\r\n");
    buf_add_str(out, order->body);
}

static void on_connected(void *owner)
{
    struct relay *relay = owner;

    relay->state = ASKING;
    write_request(relay, conn_out(relay->hop));
    conn_flush(relay->hop);
}

static void on_read(void *owner)
{
    struct relay *relay = owner;
    struct str bytes = conn_in(relay->hop);

    conn_consume(relay->hop, bytes.n); /* they stay for this call */
    relay->relays->bytes_down_total += bytes.n;
    if (relay->state == FLOWING)
        pass_down(relay, bytes);
    else
        on_answer(relay, bytes);
}

/* ------------------------------------------------------------------------------------------------------ the answer */

static struct str head_of(const struct order *order)
{
    return (struct str){order->head.p, order->body_at};
}

static void on_answer(struct relay *relay, struct str bytes)
{
    struct order *order = relay->order;

    buf_add_str(&order->head, bytes);
    if (relay->state == ASKING) {
        order->body_at = answer_head(buf_str(&order->head), &order->status);
        if (order->body_at)
            on_head(relay);
        else if (order->head.n > HEAD_MAX_BYTES)
            fail(relay, "answer", "its head is too large");
        return;
    }
    if (order->head.n - order->body_at > ANSWER_MAX_BYTES) {
        fail(relay, "answer", "it is too large");
        return;
    }
    if (order->body_bytes < 0 || order->head.n - order->body_at < (size_t)order->body_bytes)
        return;
    if (order->status == 503 || order->status == 429) { /* it says so itself: perhaps another one can */
        buf_reset(&order->refusal);
        buf_add(&order->refusal, order->head.p + order->body_at, (size_t)order->body_bytes);
        order->refusal_status = order->status;
        fail(relay, "refused", "unavailable");
        return;
    }
    http_reply_on_gone(relay->reply, NULL, NULL);
    http_reply_json(
        relay->reply, order->status, (struct str){order->head.p + order->body_at, (size_t)order->body_bytes});
    relay->reply = NULL;
    relay->relays->opened_total += relay->kind == RELAY_POLL && order->status == 200;
    relay_end(relay);
}

static void on_frontend_gone(void *arg)
{
    struct relay *relay = arg;

    http_reply_error(relay->reply, ERR_CLOSED, NULL, NULL); /* goes nowhere, but is owed */
    relay->reply = NULL;
    relay_end(relay);
}

static void on_head(struct relay *relay)
{
    struct order *order = relay->order;

    if (!order->status) {
        fail(relay, "answer", "not HTTP/1.1");
        return;
    }
    if (order->status == (relay->kind == RELAY_WEBSOCKET ? 101 : 200) && relay->kind != RELAY_POLL) {
        take_over(relay);
        return;
    }
    relay->state = ANSWERING;
    order->body_bytes = answer_length(head_of(order));
    uv_timer_start(order->timer, on_slow, (uint64_t)relay->relays->hold_max_ms, 0);
    http_reply_on_gone(relay->reply, on_frontend_gone, relay);
    on_answer(relay, STR(""));
}

/* ------------------------------------------------------------------------------------------------------- it flows */

static void on_written(void *owner)
{
    struct relay *relay = owner;

    buf_clear(&relay->down);
    if (relay->ending)
        wire_close(relay->wire);
    else if (relay->own.n && !relay->scan.passing && !relay->scan.held.n)
        write_down(relay);
    else if (relay->hop)
        conn_pause(relay->hop, false);
}

static void on_wire_closed(void *owner)
{
    struct relay *relay = owner;

    relay->wire = NULL;
    relay_end(relay);
}

static const struct wire_events wire_events = {.read = pass_up, .written = on_written, .closed = on_wire_closed};

static char *copy_header(const struct order *order, const char *name)
{
    struct str value = answer_header(head_of(order), name);

    return value.n ? xstrndup(value.p, value.n) : NULL;
}

static void take_over(struct relay *relay)
{
    struct order *order = relay->order;
    struct http_reply *reply = relay->reply;
    char *accept = copy_header(order, "sec-websocket-accept"), *protocol = copy_header(order, "sec-websocket-protocol");
    const char *socket[] = {
        "upgrade", "websocket", "sec-websocket-accept", accept ? accept : "", "sec-websocket-protocol", protocol, NULL};
    const char *sse[] = {"content-type", "text/event-stream", "cache-control", "no-store", "x-accel-buffering", "no",
        "x-content-type-options", "nosniff", NULL};
    struct buf first = {0};
    struct str rest = {order->head.p + order->body_at, order->head.n - order->body_at};

    conn_pause(relay->hop, true);
    uv_timer_stop(order->timer);
    if (!protocol)
        socket[4] = NULL;
    if (!relay_scan(&relay->scan, relay->relays, account_of(relay), rest, &first)) {
        fail(relay, "answer", "not a stream of events");
    } else {
        relay->state = TAKING_OVER;
        relay->reply = NULL;
        relay->relays->opened_total++;
        http_reply_take_over(reply, order->status, relay->kind == RELAY_WEBSOCKET ? socket : sse, buf_str(&first),
            &wire_events, relay, on_taken);
    }
    buf_clear(&first);
    free(accept);
    free(protocol);
}

static void on_taken(void *owner, struct wire *wire)
{
    struct relay *relay = owner;

    order_free(relay->order);
    relay->order = NULL;
    relay->wire = wire;
    if (!wire) {
        relay_end(relay);
        return;
    }
    relay->state = FLOWING;
    if (relay->ending || !relay->hop)
        wire_close(wire);
    else
        conn_pause(relay->hop, false);
}

/* Nothing is read from the instance until the frontend has taken this. */
static void write_down(struct relay *relay)
{
    uv_buf_t buf;

    if (relay->own.n && !relay->scan.passing && !relay->scan.held.n) {
        buf_add(&relay->down, relay->own.p, relay->own.n);
        buf_clear(&relay->own);
    }
    if (!relay->down.n)
        return;
    if (relay->hop)
        conn_pause(relay->hop, true);
    buf = uv_buf_init(relay->down.p, (unsigned)relay->down.n);
    wire_write(relay->wire, &buf, 1);
}

static void pass_down(struct relay *relay, struct str bytes)
{
    assert(!relay->down.n);
    if (!relay_scan(&relay->scan, relay->relays, account_of(relay), bytes, &relay->down)) {
        log_warn("relay.nonsense", "kind=%d", (int)relay->kind);
        wire_close(relay->wire);
        return;
    }
    write_down(relay);
}

/* To the instance, as far as it takes it; the rest is held, up to a bound. */
static void upload(struct relay *relay, const char *p, size_t n)
{
    relay->relays->bytes_up_total += n;
    buf_add(conn_out(relay->hop), p, n);
    conn_flush(relay->hop);
    if (conn_unsent(relay->hop) > relay->relays->pending_max_bytes)
        wire_close(relay->wire);
}

/* Works through what the client has sent until it is at its end, or at a message that is being judged. */
static void go_on_up(struct relay *relay)
{
    struct relay_upstream *up = &relay->up;
    size_t n;

    while (relay->state == FLOWING && relay->hop && !relay->ending && !relay->judging) {
        enum relay_step step = relay_upstream_step(up, &n);

        if (step == RELAY_MORE)
            break;
        if (step == RELAY_NONSENSE) { /* the instance knows what to say to it, with the right close code */
            relay->unjudged = true;
            upload(relay, up->held.p, up->held.n);
            relay_upstream_clear(up);
            return;
        }
        if (step == RELAY_PASS) {
            upload(relay, up->held.p, n);
            buf_consume(&up->held, n);
            continue;
        }
        relay->judging = true;
        relay->relays->judge(relay->relays->arg, relay, account_of(relay), buf_str(&up->text));
    }
    if (!up->held.n)
        relay_upstream_clear(up); /* an idle relay holds nothing */
    else if (up->held.n > relay->relays->pending_max_bytes && relay->wire)
        wire_close(relay->wire);
}

/* An event of ours between the instance's: only between two of its frames. */
static void say(struct relay *relay, struct str event)
{
    relay_put_frame(&relay->own, event);
    if (!wire_writing(relay->wire) && !relay->scan.passing)
        write_down(relay);
}

void relay_judged(struct relay *relay, bool allowed, struct str refusal)
{
    struct relay_upstream *up = &relay->up;

    assert(relay->judging);
    relay->judging = false;
    if (relay->state != FLOWING || !relay->wire || !relay->hop || relay->ending) {
        if (relay->state == ENDED)
            relay_end(relay); /* it waited for this answer only */
        return;
    }
    if (allowed)
        upload(relay, up->held.p, up->message_bytes);
    else
        say(relay, refusal);
    buf_consume(&up->held, up->message_bytes);
    buf_reset(&up->text);
    up->message_bytes = 0;
    if (!relay->in_go_on) {
        relay->in_go_on = true;
        go_on_up(relay);
        relay->in_go_on = false;
    }
}

static size_t pass_up(void *owner, const char *p, size_t n)
{
    struct relay *relay = owner;

    if (relay->kind != RELAY_WEBSOCKET || !relay->hop || relay->ending)
        return n; /* nothing is expected from a reader of SSE */
    if (!relay->relays->judge || relay->unjudged) {
        upload(relay, p, n);
        return n;
    }
    buf_add(&relay->up.held, p, n);
    if (!relay->in_go_on) {
        relay->in_go_on = true;
        go_on_up(relay);
        relay->in_go_on = false;
    }
    return n;
}

/* --------------------------------------------------------------------------------------------------------- the end */

/* The one way out; a wire that is still there comes back here when it is closed. */
static void relay_end(struct relay *relay)
{
    hop_drop(relay);
    if (relay->state == TAKING_OVER && relay->order) { /* on_taken comes in any case */
        relay->ending = true;
        return;
    }
    relay->state = ENDED;
    if (relay->wire) {
        relay->ending = true;
        wire_close(relay->wire);
        return;
    }
    if (relay->judging) /* relay_judged frees it */
        return;
    if (relay->reply) {
        http_reply_on_gone(relay->reply, NULL, NULL);
        http_reply_error(relay->reply, ERR_UNAVAILABLE, NULL, "the gateway is stopping; try again");
    }
    order_free(relay->order);
    relay_scan_clear(&relay->scan);
    relay_upstream_clear(&relay->up);
    buf_clear(&relay->down);
    buf_clear(&relay->own);
    list_remove(&relay->link);
    relay->relays->count--;
    if (relay->ended)
        relay->ended(relay->relays->arg, relay->owner);
    free(relay);
}
