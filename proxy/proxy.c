/*
 * The proxy: start and stop, news from history, and the end of a loop turn, at which everything that gathered during
 * the turn leaves. See proxy.h, core.h.
 */
#include "core.h"

#include <inttypes.h>
#include <stdlib.h>

#define EPHEMERAL_MAX_BYTES (256 * 1024) /* of one room in one turn */
#define FULL_OVER_MS 10000

static void turn_end(struct proxy *proxy);
static void on_prepare(uv_prepare_t *prepare);
static void on_check(uv_check_t *check);
static void on_handle_closed(uv_handle_t *handle);
static void proxy_free_when_empty(struct proxy *proxy);

/* ------------------------------------------------------------ start and stop */

static void lists_init(struct proxy *proxy)
{
    struct list *const lists[] = {&proxy->streams, &proxy->sent_away, &proxy->closing, &proxy->partial, &proxy->holding,
        &proxy->dirty_views, &proxy->dirty_streams, &proxy->marks, &proxy->suspects, &proxy->unproven, &proxy->retry,
        &proxy->batch_all, &proxy->batch_at, &proxy->gathering.attaches, &proxy->batches, &proxy->rechecks,
        &proxy->pulls, &proxy->reads_waiting, &proxy->reads_sent};

    for (size_t i = 0; i < countof(lists); i++)
        list_init(lists[i]);
    map_init(&proxy->views);
    map_init(&proxy->audiences);
    map_init(&proxy->reads);
    follow_open(proxy);
    typing_open(proxy);
    enter_open(proxy);
    presence_open(proxy);
}

static void handles_open(struct proxy *proxy)
{
    uv_prepare_init(proxy->loop, &proxy->prepare);
    uv_check_init(proxy->loop, &proxy->check);
    uv_timer_init(proxy->loop, &proxy->wheel);
    uv_timer_init(proxy->loop, &proxy->mark_timer);
    uv_timer_init(proxy->loop, &proxy->drain_timer);
    uv_timer_init(proxy->loop, &proxy->even_timer);
    uv_timer_init(proxy->loop, &proxy->follow_timer);
    uv_timer_init(proxy->loop, &proxy->gather_timer);
    proxy->prepare.data = proxy->check.data = proxy->wheel.data = proxy->mark_timer.data = proxy->drain_timer.data =
        proxy->even_timer.data = proxy->follow_timer.data = proxy->gather_timer.data = proxy;
    proxy->handles_open = 8;
    /* Check comes behind what the poll brought; prepare behind timers and callbacks that came after check, before the
     * loop sleeps. */
    uv_prepare_start(&proxy->prepare, on_prepare);
    uv_check_start(&proxy->check, on_check);
    uv_unref((uv_handle_t *)&proxy->prepare);
    uv_unref((uv_handle_t *)&proxy->check);
}

enum err proxy_start(struct proxy **out, uv_loop_t *loop, const struct config *config, const char *advertise_url,
    struct history *history, struct cluster *cluster, struct pg *pg, const struct proxy_client_calls *calls)
{
    struct proxy *proxy = xcalloc(1, sizeof *proxy);
    const char *why;

    if (!roomd_ticket_keys_read(&proxy->keys, config->ticket_keys, &why)) {
        log_error("proxy.ticket_keys", "why=%s", log_quote(str_of(why)));
        free(proxy);
        return ERR_BAD_REQUEST;
    }
    proxy->loop = loop;
    proxy->config = config;
    proxy->history = history;
    proxy->cluster = cluster;
    proxy->pg = pg;
    if (calls)
        proxy->calls = *calls;
    proxy->url = xstrdup(advertise_url ? advertise_url : "");
    lists_init(proxy);
    handles_open(proxy);
    even_start(proxy);
    *out = proxy;
    return ERR_OK;
}

void proxy_set_advertise_url(struct proxy *proxy, const char *url)
{
    free(proxy->url);
    proxy->url = xstrdup(url);
}

/* Says good-bye to everything at once. The memory goes when the last wire has reported its end. */
void proxy_stop(struct proxy *proxy)
{
    uv_handle_t *const handles[] = {(uv_handle_t *)&proxy->prepare, (uv_handle_t *)&proxy->check,
        (uv_handle_t *)&proxy->wheel, (uv_handle_t *)&proxy->mark_timer, (uv_handle_t *)&proxy->drain_timer,
        (uv_handle_t *)&proxy->even_timer, (uv_handle_t *)&proxy->follow_timer, (uv_handle_t *)&proxy->gather_timer};
    struct stream *stream;

    proxy->stopping = proxy->draining = true;
    pulls_free(proxy);
    presence_close(proxy);
    list_splice_back(&proxy->streams, &proxy->sent_away);
    list_for_each (stream, &proxy->streams, all_link) {
        struct http_reply *reply = stream->poll ? stream->poll->reply : NULL;
        bool opening = stream->state == STREAM_OPENING;

        stream_leave_rooms(stream);
        stream_cut(stream);
        if (!reply && !opening)
            continue;
        stream_free(stream);
        if (reply)
            http_reply_error(reply, ERR_UNAVAILABLE, NULL, NULL);
    }
    list_for_each (stream, &proxy->closing, all_link)
        stream_cut(stream);
    attach_batches_free(proxy);
    leaves_free(proxy);
    enter_close(proxy);
    view_free_all(proxy);
    pieces_clear(proxy);
    for (size_t i = 0; i < countof(handles); i++)
        uv_close(handles[i], on_handle_closed);
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct proxy *proxy = handle->data;

    proxy->handles_open--;
    proxy_free_when_empty(proxy);
}

static void proxy_free_when_empty(struct proxy *proxy)
{
    if (!proxy->stopping || proxy->handles_open || proxy->stream_count)
        return;
    map_clear(&proxy->views);
    map_clear(&proxy->audiences);
    map_clear(&proxy->reads);
    follow_close(proxy);
    typing_close(proxy);
    free(proxy->slots);
    buf_clear(&proxy->scratch);
    free(proxy->url);
    free(proxy);
}

/* -------------------------------------------------------- the end of a turn */

/* In a storm it is full and not full many times a second: its end is told when it has been over for a while. */
static void load_tell(struct proxy *proxy)
{
    bool full = proxy_overloaded(proxy);

    cluster_set_load(proxy->cluster, proxy->stream_count, full);
    if (full)
        proxy->full_at = proxy_now(proxy);
    if (full == proxy->said_full || (!full && proxy_now(proxy) - proxy->full_at < FULL_OVER_MS))
        return;
    proxy->said_full = full;
    log_at(full ? LOG_WARN : LOG_INFO, "proxy.full", "step=%s streams=%" PRIu32 " refused=%" PRIu64,
        full ? "begin" : "end", proxy->stream_count, proxy->count.refused);
}

static void turn_end(struct proxy *proxy)
{
    struct list *link;

    if (proxy->stopping)
        return;
    load_tell(proxy);
    attach_batches(proxy);
    while ((link = list_pop_front(&proxy->dirty_views))) {
        struct view *view = list_entry(link, struct view, dirty_link);

        view_flush_ephemeral(view);
        view_advance(view);
    }
    while ((link = list_pop_front(&proxy->dirty_streams))) {
        struct stream *stream = list_entry(link, struct stream, dirty_link);

        stream_pump(stream);
        stream_flush(stream); /* may free it */
    }
    pieces_clear(proxy);
}

static void on_prepare(uv_prepare_t *prepare)
{
    turn_end(prepare->data);
}

static void on_check(uv_check_t *check)
{
    turn_end(check->data);
}

/* -------------------------------------------------------------------- news */

struct change {
    struct proxy *proxy;
    struct view *view; /* NULL: nobody here listens to the room */
    struct str room_id;
    struct cursor after;
    bool advanced;
};

void account_left(struct proxy *proxy, struct str account, struct view *view, const char *reason)
{
    struct audience *audience = audience_find(proxy, account);
    struct list leaving;
    struct stream *stream;
    struct sub *sub;

    if (!audience)
        return;
    /* A stream that loses its last room may free the audience: collect first. */
    list_init(&leaving);
    list_for_each (stream, &audience->streams, audience_link)
        if ((sub = sub_find(stream, view))) {
            list_remove(&sub->view_link);
            list_push_back(&leaving, &sub->view_link);
        }
    while (!list_empty(&leaving)) {
        sub = list_entry(leaving.next, struct sub, view_link);
        if (sub->state == SUB_OPENING) { /* stays until its attach is finished */
            list_remove(&sub->view_link);
            list_push_back(&view->subs[VIEW_OTHERS], &sub->view_link);
        }
        if (list_empty(&leaving) && view->sub_count == 1) { /* the view goes with its last sub */
            sub_left(sub, reason);
            return;
        }
        sub_left(sub, reason);
    }
}

static void on_left(void *arg, struct str account)
{
    struct change *change = arg;

    /* The view may be gone with an earlier account's last stream. */
    change->view = view_find(change->proxy, change->room_id);
    if (!change->view || !audience_find(change->proxy, account))
        return;
    if (!change->advanced) {
        view_advance(change->view); /* live subs get everything up to the leave, itself included */
        change->advanced = true;
    }
    account_left(change->proxy, account, change->view, "removed");
}

static void on_joined(void *arg, struct str account)
{
    const struct change *change = arg;

    enter_room(change->proxy, account, change->room_id, change->after);
}

void proxy_shown(void *arg, struct str room_id, struct entry *entry, bool durable)
{
    struct proxy *proxy = arg;
    struct view *view = view_find(proxy, room_id);
    struct change change = {proxy, view, room_id, {entry->epoch, entry->seq - 1}, false};

    if (view)
        view_shown(view, entry, durable);
    if (entry->type == ENTRY_LEFT && view)
        entry_accounts(entry, on_left, &change);
    else if (entry->type == ENTRY_JOINED && proxy->audiences.count)
        entry_accounts(entry, on_joined, &change);
}

bool proxy_listens(void *arg, struct str room_id)
{
    return view_find(arg, room_id);
}

void proxy_durable(void *arg, struct str room_id, uint64_t seq)
{
    struct view *view = view_find(arg, room_id);

    if (view)
        view_learn_durable(view, seq);
}

void proxy_ephemeral(struct proxy *proxy, struct str room_id, struct str json)
{
    struct view *view = view_find(proxy, room_id);

    if (!view || view->ephemeral.n + json.n + 1 > EPHEMERAL_MAX_BYTES)
        return;
    buf_add_str(&view->ephemeral, json);
    buf_char(&view->ephemeral, '\n');
    view_dirty(view);
}

void proxy_tell_account(struct proxy *proxy, struct str account, struct str json)
{
    struct audience *audience = audience_find(proxy, account);
    struct stream *stream;

    if (!audience)
        return;
    hidden_told(proxy, audience, json);
    list_for_each (stream, &audience->streams, audience_link)
        if (stream->state == STREAM_LIVE)
            stream_say_droppable(stream, json);
}

static bool is_of(const struct view *view, struct str shard)
{
    return view->room_id_n > shard.n && memcmp(view->room_id_text, shard.p, shard.n) == 0 &&
           view->room_id_text[shard.n] == '.';
}

void proxy_epoch(void *arg, struct str shard, uint64_t epoch, bool ours)
{
    struct proxy *proxy = arg;

    for (struct map_link *link = map_next(&proxy->views, NULL); link; link = map_next(&proxy->views, link)) {
        struct view *view = container_of(link, struct view, link);

        if (!is_of(view, shard))
            continue;
        if (ours || epoch > view->epoch)
            view_new_epoch(view, epoch);
        else
            view_suspect(view);
    }
}

void proxy_missed(void *arg, struct str shard)
{
    struct proxy *proxy = arg;

    for (struct map_link *link = map_next(&proxy->views, NULL); link; link = map_next(&proxy->views, link)) {
        struct view *view = container_of(link, struct view, link);

        if (is_of(view, shard))
            view_missed(view);
    }
}

/* -------------------------------------------------------------------- HTTP */

bool proxy_serve(struct proxy *proxy, struct http_request *request, struct http_reply *reply)
{
    static const struct {
        const char *path;
        enum transport transport;
    } paths[] = {{"/v1/stream/ws", TRANSPORT_WS}, {"/v1/stream/sse", TRANSPORT_SSE},
        {"/v1/stream/ndjson", TRANSPORT_NDJSON}, {"/v1/stream/poll", TRANSPORT_POLL}};

    for (size_t i = 0; i < countof(paths); i++)
        if (str_is(request->path, paths[i].path)) {
            open_serve(proxy, request, reply, paths[i].transport);
            return true;
        }
    return false;
}

void proxy_stream_gone(struct proxy *proxy)
{
    if (proxy->stream_count)
        return;
    if (proxy->stopping) {
        proxy_free_when_empty(proxy);
        return;
    }
    wheel_stop(proxy);
    drain_stream_gone(proxy);
}

/* ------------------------------------------------------------------ numbers */

uint64_t proxy_unix_ms(const struct proxy *proxy)
{
    uint64_t database_ms = cluster_now_ms(proxy->cluster);

    return database_ms ? database_ms : clock_unix_ms();
}

uint32_t proxy_streams(const struct proxy *proxy)
{
    return proxy->stream_count;
}

static void metric(struct buf *out, const char *name, const char *type, const char *help, uint64_t value)
{
    buf_printf(
        out, "# HELP roomd_%s %s\n# TYPE roomd_%s %s\nroomd_%s %" PRIu64 "\n", name, help, name, type, name, value);
}

void proxy_metrics(const struct proxy *proxy, struct buf *out)
{
    static const char *const names[TRANSPORTS] = {"websocket", "sse", "ndjson", "poll"};
    const struct proxy_counters *count = &proxy->count;

    buf_text(out, "# HELP roomd_streams Open streams.\n# TYPE roomd_streams gauge\n");
    for (int i = 0; i < TRANSPORTS; i++)
        buf_printf(out, "roomd_streams{transport=\"%s\"} %u\n", names[i], proxy->by_transport[i]);
    buf_text(out,
        "# HELP roomd_streams_opened_total Streams that were opened.\n# TYPE roomd_streams_opened_total counter\n");
    for (int i = 0; i < TRANSPORTS; i++)
        buf_printf(out, "roomd_streams_opened_total{transport=\"%s\"} %" PRIu64 "\n", names[i], count->opened[i]);
    metric(out, "room_views", "gauge", "Rooms that streams here listen to.", proxy->views.count);
    metric(out, "streams_sent_away_total", "counter", "Streams that were told to migrate because this instance stops.",
        count->sent_away);
    metric(out, "streams_evened_total", "counter",
        "Streams that were told to migrate because this instance carried more than its share.", count->evened);
    metric(out, "streams_kicked_total", "counter", "Streams that were closed by a Kick.", count->kicked);
    metric(out, "streams_refused_total", "counter", "Streams that were refused.", count->refused);
    metric(out, "stream_deliveries_total", "counter", "Entries queued for streams.", count->deliveries);
    metric(out, "stream_chunks_total", "counter", "Chunks of entries made for live streams.", count->chunks);
    metric(out, "stream_writes_total", "counter", "Gathered writes to streams.", count->writes);
    metric(out, "stream_marks_total", "counter", "Durable marks sent, one per room.", count->marks);
    metric(out, "stream_signals_total", "counter", "Signals sent, one per room.", count->signals);
    metric(out, "stream_resets_total", "counter", "Rooms whose streams were told to go back.", count->resets);
    metric(out, "stream_overflows_total", "counter",
        "Times a stream's queue was full and it went on from tail or store.", count->overflows);
    metric(out, "stream_reads_total", "counter", "Reads of the store for streams that catch up.", count->reads);
    metric(out, "streams_closed_slow_total", "counter", "Streams cut because they took nothing.", count->closed_slow);
    metric(out, "streams_closed_silent_total", "counter", "WebSockets closed because nothing was heard.",
        count->closed_silent);
    metric(out, "typings_told_total", "counter", "Typing that was told to rooms.", count->typings_told);
    metric(out, "typings_suppressed_total", "counter", "Typing that came too soon after the last one, or was too much.",
        count->typings_suppressed);
}
