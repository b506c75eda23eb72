/*
 * What streams are told of a room that has no place in its log: durable marks and signals (how far it is committed),
 * and ephemeral events.
 */
#include "core.h"

#include <inttypes.h>

#define CROWD 1000 /* streams; above, a mark waits for a message to ride on */
#define MARK_PATIENCE_MS 250

static void send_to(struct list *subs, struct str json, struct bytes *by_encoding[ENCODINGS])
{
    struct sub *sub;

    list_for_each (sub, subs, view_link) {
        enum encoding encoding = stream_encoding(sub->stream);

        if (sub->state == SUB_OPENING)
            continue;
        if (encoding == ENC_SSE_ONE || encoding == ENC_SSE_MANY)
            encoding = ENC_SSE_PLAIN; /* no id: these have no place in the log */
        if (!by_encoding[encoding])
            by_encoding[encoding] = event_encode(encoding, json, STR(""));
        /* First to go under load: a quarter of the bound is theirs. */
        if (stream_has_room(sub->stream, 3 * (size_t)sub->stream->proxy->config->stream_pending_max_bytes / 4))
            stream_push(sub->stream, by_encoding[encoding], sub, ITEM_DROP);
    }
}

static void send_mark(struct view *view)
{
    struct bytes *marks[ENCODINGS] = {0}, *signals[ENCODINGS] = {0};
    struct buf json = {0};
    char head[CURSOR_TEXT_MAX];

    view->mark_at = proxy_now(view->proxy);
    view->mark_seq = view->durable.seq;
    if (!list_empty(&view->subs[VIEW_LIVE_EARLY])) {
        event_durable(&json, view_room_id(view), view->durable.seq);
        send_to(&view->subs[VIEW_LIVE_EARLY], buf_str(&json), marks);
        view->proxy->count.marks++;
    }
    if (!list_empty(&view->subs[VIEW_SIGNALLED])) {
        buf_reset(&json);
        cursor_write(head, view->durable);
        buf_printf(
            &json, "{\"type\":\"signal\",\"room_id\":\"%.*s\",\"head\":\"%s\"}", STR_ARG(view_room_id(view)), head);
        send_to(&view->subs[VIEW_SIGNALLED], buf_str(&json), signals);
        view->proxy->count.signals++;
    }
    for (int i = 0; i < ENCODINGS; i++) {
        bytes_drop(marks[i]);
        bytes_drop(signals[i]);
    }
    buf_clear(&json);
}

/* How long until the mark of this room is due. In a crowded room a mark of its own costs as much as a message; it waits
 * a little for a message to ride on. */
static int64_t mark_due_ms(const struct view *view)
{
    uint32_t now = proxy_now(view->proxy);
    int64_t pause = view->proxy->config->durable_mark_ms - (int64_t)(uint32_t)(now - view->mark_at);
    int64_t patience = view->sub_count > CROWD ? MARK_PATIENCE_MS - (int64_t)(uint32_t)(now - view->mark_wanted_at) : 0;

    return pause > patience ? pause : patience;
}

void view_want_mark(struct view *view, bool riding)
{
    struct proxy *proxy = view->proxy;
    bool waits = !list_empty(&view->mark_link);

    if (view->durable.seq == view->mark_seq ||
        (list_empty(&view->subs[VIEW_LIVE_EARLY]) && list_empty(&view->subs[VIEW_SIGNALLED])))
        return;
    if (!waits)
        view->mark_wanted_at = proxy_now(proxy);
    if (mark_due_ms(view) <= 0 ||
        (riding && (int64_t)(uint32_t)(proxy_now(proxy) - view->mark_at) >= proxy->config->durable_mark_ms)) {
        list_remove(&view->mark_link);
        send_mark(view);
    } else if (!waits) {
        list_push_back(&proxy->marks, &view->mark_link);
        if (!uv_is_active((uv_handle_t *)&proxy->mark_timer))
            view_marks(proxy);
    }
}

static void marks_due(uv_timer_t *timer)
{
    view_marks(timer->data);
}

void view_marks(struct proxy *proxy)
{
    int64_t interval = proxy->config->durable_mark_ms, next = interval / 4 + 1; /* not coarser: others come meanwhile */
    struct view *view;

    list_for_each (view, &proxy->marks, mark_link) {
        int64_t due = mark_due_ms(view);

        if (due <= 0) {
            list_remove(&view->mark_link);
            if (view->durable.seq != view->mark_seq)
                send_mark(view);
        } else if (due < next) {
            next = due;
        }
    }
    /* Not finer than a twentieth, so that one walk serves all that are due about now. */
    if (!list_empty(&proxy->marks))
        uv_timer_start(&proxy->mark_timer, marks_due, (uint64_t)(next > interval / 20 ? next : interval / 20 + 1), 0);
}

void view_flush_ephemeral(struct view *view)
{
    struct bytes *by_encoding[ENCODINGS] = {0};
    struct str lines = {view->ephemeral.p, view->ephemeral.n};

    if (!lines.n)
        return;
    lines.n--; /* the last separator */
    for (int i = 0; i < VIEW_LISTS; i++)
        if (i != VIEW_SIGNALLED)
            send_to(&view->subs[i], lines, by_encoding);
    for (int i = 0; i < ENCODINGS; i++)
        bytes_drop(by_encoding[i]);
    buf_clear(&view->ephemeral);
}
