/*
 * A stream: one open connection of one account. Its queue holds references to shared bytes; what gathers in a loop turn
 * leaves in one write at the end of it. The first `in_flight` items are with the kernel, the others may still be taken
 * back.
 *
 * A stream that takes less than its rooms produce is not dropped: what waits is let go, and its subs go on from tail or
 * store at its own pace.
 */
#include "core.h"
#include "tcp_progress.h"

#include <inttypes.h>
#include <stdlib.h>

#define GATHER_MAX 64

static void items_drop_front(struct stream *stream, uint32_t count);
static void on_written(void *owner);
static void on_closed(void *owner);
static size_t on_unasked_bytes(void *owner, const char *p, size_t n);

const struct wire_events stream_wire_events = {on_unasked_bytes, on_written, on_closed};
const struct wire_events ws_wire_events = {ws_read, on_written, on_closed};

/* ------------------------------------------------------------ life of it */

static bool audience_is(const struct map_link *link, const void *key)
{
    const struct audience *audience = container_of(link, struct audience, link);

    return str_eq((struct str){audience->account, audience->n}, *(const struct str *)key);
}

struct audience *audience_find(struct proxy *proxy, struct str account)
{
    struct map_link *link = map_find(&proxy->audiences, map_hash(account.p, account.n), audience_is, &account);

    return link ? container_of(link, struct audience, link) : NULL;
}

static struct audience *audience_get(struct proxy *proxy, struct str account)
{
    struct audience *audience = audience_find(proxy, account);

    if (audience)
        return audience;
    audience = xcalloc(1, sizeof *audience + account.n);
    list_init(&audience->streams);
    audience->n = (uint8_t)account.n;
    memcpy(audience->account, account.p, account.n);
    map_insert(&proxy->audiences, map_hash(account.p, account.n), &audience->link);
    return audience;
}

struct stream *stream_new(struct proxy *proxy, enum transport transport, struct str account)
{
    struct stream *stream = xcalloc(1, sizeof *stream);

    stream->proxy = proxy;
    stream->transport = (uint8_t)transport;
    stream->items = stream->inline_items;
    stream->item_capacity = countof(stream->inline_items);
    stream->heard_at = proxy_now(proxy);
    list_init(&stream->audience_link);
    list_init(&stream->wheel_link);
    list_init(&stream->dirty_link);
    list_init(&stream->partial_link);
    list_init(&stream->subs);
    list_init(&stream->behind);
    list_init(&stream->replies);
    list_push_back(&proxy->streams, &stream->all_link);
    if (account.n) {
        stream->audience = audience_get(proxy, account);
        list_push_back(&stream->audience->streams, &stream->audience_link);
    }
    proxy->stream_count++;
    proxy->by_transport[transport]++;
    wheel_start(proxy);
    return stream;
}

/* Everything that ties the stream to rooms and accounts; what is queued stays. */
void stream_leave_rooms(struct stream *stream)
{
    while (stream->attaches)
        attach_abandon(stream->attaches);
    while (!list_empty(&stream->subs))
        sub_free(list_entry(stream->subs.next, struct sub, stream_link));
    list_remove(&stream->wheel_link);
    list_remove(&stream->partial_link);
    list_remove(&stream->audience_link);
    if (stream->audience && list_empty(&stream->audience->streams)) {
        map_remove(&stream->proxy->audiences, &stream->audience->link);
        free(stream->audience);
    }
    stream->audience = NULL;
}

void stream_free(struct stream *stream)
{
    struct proxy *proxy = stream->proxy;

    stream->state = STREAM_CLOSING;
    stream_leave_rooms(stream);
    replies_orphan(stream);
    presence_stream_gone(stream);
    items_drop_front(stream, stream->item_count);
    if (stream->items != stream->inline_items)
        free(stream->items);
    ws_message_free(stream->message);
    free(stream->named);
    free(stream->platform);
    poll_free(stream);
    list_remove(&stream->dirty_link);
    list_remove(&stream->all_link);
    proxy->stream_count--;
    proxy->told_count -= stream->told;
    proxy->by_transport[stream->transport]--;
    free(stream);
    proxy_stream_gone(proxy);
}

enum encoding stream_encoding(const struct stream *stream)
{
    switch (stream->transport) {
    case TRANSPORT_WS:
        return ENC_WS;
    case TRANSPORT_SSE:
        if (stream->one_room)
            return ENC_SSE_ONE;
        return list_empty(&stream->behind) && !stream->attaches ? ENC_SSE_MANY : ENC_SSE_PLAIN;
    default:
        return ENC_LINES;
    }
}

uint64_t stream_complete_ms(const struct stream *stream)
{
    const struct sub *sub;

    list_for_each (sub, &stream->subs, stream_link)
        if (sub->state != SUB_LIVE && sub->state != SUB_SIGNALLED)
            return 0;
    return proxy_unix_ms(stream->proxy);
}

/* --------------------------------------------------------------- its queue */

static void dirty(struct stream *stream)
{
    if (list_empty(&stream->dirty_link))
        list_push_back(&stream->proxy->dirty_streams, &stream->dirty_link);
}

bool stream_has_room(const struct stream *stream, size_t n)
{
    return stream->pending_bytes == 0 ||
           stream->pending_bytes + n <= (size_t)stream->proxy->config->stream_pending_max_bytes;
}

void stream_push(struct stream *stream, struct bytes *bytes, struct sub *sub, uint64_t before)
{
    if (stream->item_count == stream->item_capacity) {
        bool was_inline = stream->items == stream->inline_items;

        stream->item_capacity *= 2;
        stream->items = xrealloc(was_inline ? NULL : stream->items, stream->item_capacity * sizeof *stream->items);
        if (was_inline)
            memcpy(stream->items, stream->inline_items, sizeof stream->inline_items);
    }
    stream->items[stream->item_count++] = (struct item){bytes_hold(bytes), sub, before};
    stream->pending_bytes += bytes->n;
    dirty(stream);
}

static void items_drop_front(struct stream *stream, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        stream->pending_bytes -= stream->items[i].bytes->n;
        bytes_drop(stream->items[i].bytes);
    }
    stream->item_count -= count;
    memmove(stream->items, stream->items + count, stream->item_count * sizeof *stream->items);
    /* Idle streams keep no memory for their queue. */
    if (stream->items != stream->inline_items && stream->item_count == 0) {
        free(stream->items);
        stream->items = stream->inline_items;
        stream->item_capacity = countof(stream->inline_items);
    }
}

/* Takes items out that are not on their way and `goes` says so about. */
static void items_sift(
    struct stream *stream, bool (*goes)(struct item *item, const struct sub *sub), const struct sub *sub)
{
    uint32_t kept = stream->in_flight;

    for (uint32_t i = stream->in_flight; i < stream->item_count; i++) {
        struct item *item = &stream->items[i];

        if (goes(item, sub)) {
            stream->pending_bytes -= item->bytes->n;
            bytes_drop(item->bytes);
        } else {
            stream->items[kept++] = *item;
        }
    }
    stream->item_count = kept;
}

static bool may_go(struct item *item, const struct sub *sub)
{
    (void)sub;
    return item->before != ITEM_KEEP;
}

static bool belongs_to(struct item *item, const struct sub *sub)
{
    return item->sub == sub && item->before != ITEM_KEEP;
}

void stream_overflow(struct stream *stream)
{
    stream->proxy->count.overflows++;
    /* Backwards, so that each sub ends at the place before its first entry that is let go; and never further on than
     * where it stands: a reset that stays in the queue takes the reader back there. */
    for (uint32_t i = stream->item_count; i-- > stream->in_flight;) {
        struct item *item = &stream->items[i];

        if (item->sub && item->before < ITEM_DROP) {
            uint64_t stands = sub_stands_at(item->sub);

            sub_behind(item->sub, item->before < stands ? item->before : stands);
        }
    }
    items_sift(stream, may_go, NULL);
}

void stream_forget_sub(struct stream *stream, struct sub *sub)
{
    for (uint32_t i = 0; i < stream->item_count; i++)
        if (stream->items[i].sub == sub) {
            stream->items[i].sub = NULL;
            stream->items[i].before = ITEM_KEEP; /* nobody could go on from before it */
        }
}

void stream_purge_sub(struct stream *stream, struct sub *sub)
{
    items_sift(stream, belongs_to, sub);
}

static void say(struct stream *stream, struct str json, uint64_t before)
{
    char id[32] = "";
    size_t n = 0;
    struct bytes *bytes;

    if (stream->state == STREAM_CLOSING)
        return;
    if (stream->transport == TRANSPORT_SSE && !stream->one_room && before == ITEM_KEEP) {
        uint64_t ms = stream_complete_ms(stream);

        if (ms && list_empty(&stream->behind)) {
            struct buf text = {0};

            buf_printf(&text, "~%" PRIu64, ms);
            n = text.n < sizeof id ? text.n : 0;
            memcpy(id, text.p, n);
            buf_clear(&text);
        }
    }
    bytes = event_encode(stream_encoding(stream), json, (struct str){id, n});
    stream_push(stream, bytes, NULL, before);
    bytes_drop(bytes);
    /* What must arrive cannot be let go; a peer that asks and does not read is cut. */
    if (stream->pending_bytes > 2 * (size_t)stream->proxy->config->stream_pending_max_bytes + CHUNK_BYTES &&
        stream->wire && !stream->poll) {
        stream->proxy->count.closed_slow++;
        stream->close_code = CLOSE_TOO_SLOW;
        stream_cut(stream);
    }
}

void stream_say(struct stream *stream, struct str json)
{
    say(stream, json, ITEM_KEEP);
}

void stream_say_droppable(struct stream *stream, struct str json)
{
    if (stream_has_room(stream, (size_t)stream->proxy->config->stream_pending_max_bytes / 2))
        say(stream, json, ITEM_DROP);
}

/* ------------------------------------------------------------------ writing */

/* Room for a whole chunk: what is read from the store must not be thrown away and read again. */
static bool may_pump(const struct stream *stream)
{
    return stream->pending_bytes == 0 || (stream->pending_bytes < CHUNK_BYTES && stream_has_room(stream, CHUNK_BYTES));
}

void stream_pump(struct stream *stream)
{
    while (stream->state == STREAM_LIVE && !list_empty(&stream->behind) && may_pump(stream)) {
        struct sub *sub = list_entry(stream->behind.next, struct sub, work_link);
        uint32_t items = stream->item_count;

        sub_pump(sub);
        if (stream->item_count == items && stream->behind.next == &sub->work_link)
            break; /* no room for its piece */
    }
}

static void finish_closing(struct stream *stream)
{
    /* The WebSocket peer answers the close frame first (RFC 6455 7.1.1); closing_at bounds the wait. */
    if (stream->transport != TRANSPORT_WS || stream->no_more_input)
        stream_cut(stream);
}

void stream_flush(struct stream *stream)
{
    uv_buf_t bufs[GATHER_MAX];
    uint32_t n;

    if (stream->poll) {
        poll_flush(stream);
        return;
    }
    if (!stream->wire || wire_writing(stream->wire))
        return;
    if (stream->item_count == 0) {
        if (stream->state == STREAM_CLOSING)
            finish_closing(stream);
        return;
    }
    for (n = 0; n < stream->item_count && n < GATHER_MAX; n++)
        bufs[n] = uv_buf_init(stream->items[n].bytes->p, stream->items[n].bytes->n);
    stream->in_flight = n;
    stream->write_at = proxy_now(stream->proxy);
    stream->pong_waits = false;
    stream->proxy->count.writes++;
    wire_write(stream->wire, bufs, n);
}

static void on_written(void *owner)
{
    struct stream *stream = owner;
    uint32_t n = stream->in_flight;

    stream->in_flight = 0;
    items_drop_front(stream, n);
    if (stream->item_count || !list_empty(&stream->behind) || stream->state == STREAM_CLOSING)
        dirty(stream); /* goes on at the end of this turn, together with what is new */
}

/* SSE and NDJSON readers have nothing to say after their request. */
static size_t on_unasked_bytes(void *owner, const char *p, size_t n)
{
    (void)owner;
    (void)p;
    return n;
}

/* ------------------------------------------------------------------ the end */

void stream_end(struct stream *stream, uint16_t code, enum err err, const char *message)
{
    stream_refuse(stream, code, err, message, 0);
}

void stream_refuse(struct stream *stream, uint16_t code, enum err err, const char *message, uint32_t retry_after_ms)
{
    struct buf json = {0};

    if (stream->state == STREAM_CLOSING)
        return;
    if (stream->poll) {
        poll_end(stream, err, message);
        return;
    }
    items_sift(stream, may_go, NULL);
    if (err) {
        event_error(&json, err, message, retry_after_ms, STR(""));
        stream_say(stream, buf_str(&json));
        buf_clear(&json);
    }
    if (stream->transport == TRANSPORT_WS && !stream->close_sent) {
        char body[2] = {(char)(code >> 8), (char)(code & 0xff)};
        struct bytes *frame = ws_frame_bytes(WS_CLOSE, (struct str){body, 2});

        stream_push(stream, frame, NULL, ITEM_KEEP);
        bytes_drop(frame);
        stream->close_sent = true;
    }
    log_debug("stream.end", "code=%u account=%s", code,
        log_quote(stream->audience ? (struct str){stream->audience->account, stream->audience->n} : STR("")));
    stream->close_code = code;
    stream->state = STREAM_CLOSING;
    stream_leave_rooms(stream);
    stream->closing_at = proxy_now(stream->proxy);
    list_remove(&stream->all_link);
    list_push_back(&stream->proxy->closing, &stream->all_link);
    dirty(stream);
}

void stream_cut(struct stream *stream)
{
    struct wire *wire = stream->wire;

    /* Its rooms are left when closed() comes: who calls may be walking through them. */
    stream->state = STREAM_CLOSING;
    stream->wire = NULL;
    if (wire)
        wire_close(wire);
}

static void on_closed(void *owner)
{
    struct stream *stream = owner;

    stream->wire = NULL;
    stream->in_flight = 0;
    stream_free(stream);
}

/* ------------------------------------------------------------- heartbeats */

/* A long write to a slow reader is progress as long as the peer acknowledges some of it. */
static bool makes_progress(struct stream *stream)
{
    uint64_t acked;

    if (!stream->in_flight)
        return true;
    acked = tcp_acked_bytes(wire_fd(stream->wire));
    if (acked != stream->acked) {
        stream->acked = acked;
        stream->write_at = proxy_now(stream->proxy);
        return true;
    }
    return (int64_t)(uint32_t)(proxy_now(stream->proxy) - stream->write_at) <
           stream->proxy->config->stream_no_progress_ms;
}

static void ping(struct stream *stream)
{
    struct proxy *proxy = stream->proxy;
    /* What moved since the last one, however late this one comes. */
    uint32_t now = proxy_now(proxy), since = now - stream->pinged_at;
    struct buf json = {0};
    struct sub *sub;
    bool first = true;

    stream->pinged_at = now;
    buf_printf(&json, "{\"type\":\"ping\",\"at\":%" PRIu64 ",\"heads\":[", proxy_unix_ms(proxy));
    list_for_each (sub, &stream->subs, stream_link) {
        /* The mark speaks of the log: not yet to whom shows something that may not be in it, or may have left. */
        if (sub->state == SUB_OPENING || sub->unproven || sub->held || now - sub->view->moved_at > since)
            continue;
        buf_text(&json, first ? "{" : ",{");
        event_head(&json, view_room_id(sub->view), view_head(sub->view, stream->deliver), sub->view->durable.seq);
        buf_char(&json, '}');
        first = false;
    }
    buf_text(&json, "]}");
    if (stream->transport == TRANSPORT_WS) {
        struct bytes *frame = ws_frame_bytes(WS_PING, STR(""));

        stream_push(stream, frame, NULL, ITEM_DROP);
        bytes_drop(frame);
    }
    say(stream, buf_str(&json), stream->transport == TRANSPORT_SSE ? ITEM_KEEP : ITEM_DROP);
    buf_clear(&json);
}

static void beat(struct stream *stream)
{
    struct proxy *proxy = stream->proxy;

    if (stream->state != STREAM_LIVE || stream->poll || !stream->wire)
        return;
    if (!makes_progress(stream)) {
        log_debug("stream.too_slow", "pending=%u", stream->pending_bytes);
        proxy->count.closed_slow++;
        stream_cut(stream);
        return;
    }
    if (stream->transport == TRANSPORT_WS &&
        (int64_t)(uint32_t)(proxy_now(proxy) - stream->heard_at) > 2 * proxy->config->heartbeat_ms) {
        proxy->count.closed_silent++;
        stream_end(stream, CLOSE_NO_PONG, ERR_OK, NULL);
        return;
    }
    if (stream->pending_bytes < CHUNK_BYTES / 2)
        ping(stream);
}

static void housekeeping(struct proxy *proxy)
{
    uint32_t now = proxy_now(proxy);
    struct stream *stream;

    list_for_each (stream, &proxy->closing, all_link)
        if (now - stream->closing_at > CLOSING_MS && stream->wire)
            stream_cut(stream);
    list_for_each (stream, &proxy->partial, partial_link)
        if (now - stream->partial_at > FRAME_MS)
            stream_end(stream, CLOSE_POLICY, ERR_OK, NULL);
    poll_due(proxy);
    if (now - proxy->housekept_at >= RETRY_MS) {
        proxy->housekept_at = now;
        catch_up_retry(proxy);
        unproven_check(proxy);
        view_recheck(proxy);
        leaves_retry(proxy);
        view_look_abroad(proxy);
    }
}

static uint32_t later(uint32_t at, uint32_t by, uint32_t now)
{
    return now - at > by ? at + by : now;
}

/* This process stood still, or its machine: that is nobody's silence. What readers sent meanwhile is still to be read,
 * and they were not pinged. */
static void pause_check(struct proxy *proxy)
{
    uint32_t now = proxy_now(proxy), gap = now - proxy->turned_at;
    struct stream *stream;

    proxy->turned_at = now;
    if ((int64_t)gap <= proxy->config->heartbeat_ms / 4)
        return;
    for (uint32_t i = 0; i < proxy->slot_count; i++)
        list_for_each (stream, &proxy->slots[i], wheel_link) {
            stream->heard_at = later(stream->heard_at, gap, now);
            stream->write_at = later(stream->write_at, gap, now);
        }
}

static void wheel_turns(uv_timer_t *timer)
{
    struct proxy *proxy = timer->data;
    struct stream *stream;

    pause_check(proxy);
    proxy->slot_at = (proxy->slot_at + 1) % proxy->slot_count;
    list_for_each (stream, &proxy->slots[proxy->slot_at], wheel_link)
        beat(stream);
    housekeeping(proxy);
}

/* Streams are dealt out over the slots of one turn of the wheel, so that pings are spread over the interval. */
void wheel_add(struct stream *stream)
{
    struct proxy *proxy = stream->proxy;

    list_push_back(&proxy->slots[proxy->slot_fill], &stream->wheel_link);
    proxy->slot_fill = (proxy->slot_fill + 1) % proxy->slot_count;
    stream->pinged_at = proxy_now(proxy); /* hello has told the rest */
}

void wheel_start(struct proxy *proxy)
{
    if (!proxy->slots) {
        int64_t tick = proxy->config->heartbeat_ms / 64;

        proxy->tick_ms = (uint32_t)(tick < 5 ? 5 : tick > 250 ? 250 : tick);
        proxy->slot_count = (uint32_t)(proxy->config->heartbeat_ms / proxy->tick_ms);
        proxy->slots = xcalloc(proxy->slot_count, sizeof *proxy->slots);
        for (uint32_t i = 0; i < proxy->slot_count; i++)
            list_init(&proxy->slots[i]);
    }
    if (uv_is_active((uv_handle_t *)&proxy->wheel))
        return;
    proxy->turned_at = proxy_now(proxy);
    uv_timer_start(&proxy->wheel, wheel_turns, proxy->tick_ms, proxy->tick_ms);
}

void wheel_stop(struct proxy *proxy)
{
    uv_timer_stop(&proxy->wheel);
}

void wheel_clear(struct proxy *proxy)
{
    wheel_stop(proxy);
    free(proxy->slots);
    proxy->slots = NULL;
}
