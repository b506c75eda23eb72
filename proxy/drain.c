/*
 * Streams are sent away: because this instance stops, or because others have been added that carry less.
 *
 * `migrate` names where to go and holds the ticket for it. The reader opens a stream there first, with its own cursors,
 * and then leaves here, so it misses nothing. Streams are told one after another: if all came to the other instances at
 * once they would be a storm there.
 */
#include "core.h"

#include <inttypes.h>
#include <stdlib.h>
#include <time.h>

#define TICK_MS 20
#define LEAST_PER_S 100     /* few streams are not worth waiting for */
#define CLOSE_FRAMES_MS 500 /* for the close frames to leave */
#define ROOMS_LOOKED_AT 100 /* when choosing a place for a stream of many rooms */

#define EVEN_TICKS_A_BEAT 4
#define EVEN_LEAST_ABOVE 300 /* streams above the mean: less is no load, and moving costs as much */
#define EVEN_PART \
    16 /* of what is missing elsewhere, each tick: what others say is up to three seconds (12 ticks) old */
#define INSTANCES_MAX 64

static void on_tick(uv_timer_t *timer);
static void close_the_rest(struct proxy *proxy);
static void on_over(uv_timer_t *timer);

/* --------------------------------------------------------------- one stream */

/* "endpoints":[…] are in json; false: there is nowhere to go, or no ticket for it. */
static bool tell(struct stream *stream, struct buf *json, int64_t within_ms)
{
    char *ticket = xmalloc(ROOMD_TICKET_MAX_BYTES + 1);
    size_t n = 0;
    bool good = ticket_for_stream(stream->proxy, stream, ticket, &n);

    if (good && stream->bare)
        buf_reset(json);
    if (good && stream->bare)
        buf_text(json, "{\"type\":\"migrate\"");
    else if (good)
        buf_printf(json, ",\"ticket\":\"%s\"", ticket);
    if (good) {
        buf_printf(json, ",\"within_ms\":%" PRId64 "}", within_ms);
        stream_say(stream, buf_str(json));
    }
    free(ticket);
    return good;
}

static void remember(struct stream *stream)
{
    if (stream->state != STREAM_LIVE) /* cut, because it took nothing */
        return;
    list_remove(&stream->all_link);
    list_push_back(&stream->proxy->sent_away, &stream->all_link);
    if (!stream->told)
        stream->proxy->told_count++;
    stream->told = true;
}

static void send_away(struct stream *stream)
{
    struct proxy *proxy = stream->proxy;
    struct str rooms[ROOMS_LOOKED_AT];
    struct buf json = {0};
    size_t count = 0;
    struct sub *sub;

    list_for_each (sub, &stream->subs, stream_link)
        if (count < countof(rooms))
            rooms[count++] = view_room_id(sub->view);
    buf_text(&json, "{\"type\":\"migrate\",\"endpoints\":");
    if (endpoints_write(proxy, &json, rooms, count, true) &&
        tell(stream, &json, (int64_t)(proxy->drain_until_ms - uv_now(proxy->loop)))) {
        proxy->count.sent_away++;
        remember(stream);
    } else {
        stream_end(stream, CLOSE_DRAIN, ERR_OK, NULL);
    }
    buf_clear(&json);
}

/* -------------------------------------------------------------------- drain */

void proxy_take_no_more(struct proxy *proxy)
{
    proxy->draining = true;
    uv_timer_stop(&proxy->even_timer);
}

static bool is_alone(struct proxy *proxy)
{
    struct buf json = {0};
    bool alone = endpoints_write(proxy, &json, NULL, 0, true) == 0;

    buf_clear(&json);
    return alone;
}

void proxy_drain(struct proxy *proxy, int64_t within_ms, void (*done)(void *arg), void *arg)
{
    uint64_t telling_ms = within_ms > 0 ? (uint64_t)within_ms * 2 / 3 : 0;

    proxy_take_no_more(proxy);
    proxy->drained = done;
    proxy->drained_arg = arg;
    proxy->drain_began_ms = uv_now(proxy->loop);
    proxy->drain_until_ms = proxy->drain_began_ms + (uint64_t)(within_ms > 0 ? within_ms : 0);
    /* Those that were told to leave for other reasons are told again: they may have chosen to stay. */
    list_splice_back(&proxy->streams, &proxy->sent_away);
    proxy->drain_per_s = (uint32_t)((uint64_t)proxy->stream_count * 1000 / (telling_ms + 1)) + 1;
    if (proxy->drain_per_s < LEAST_PER_S)
        proxy->drain_per_s = LEAST_PER_S;
    log_info("proxy.drain", "streams=%u within_ms=%" PRId64 " a_second=%u", proxy->stream_count, within_ms,
        proxy->drain_per_s);
    if (proxy->stream_count && is_alone(proxy))
        close_the_rest(proxy);
    else if (proxy->stream_count)
        uv_timer_start(&proxy->drain_timer, on_tick, 0, TICK_MS);
    else
        uv_timer_start(&proxy->drain_timer, on_over, 0, 0);
}

static void close_the_rest(struct proxy *proxy)
{
    struct stream *stream;
    uint32_t count = 0;

    list_splice_back(&proxy->streams, &proxy->sent_away);
    list_for_each (stream, &proxy->streams, all_link)
        if (stream->state == STREAM_LIVE) {
            stream_end(stream, CLOSE_DRAIN, ERR_OK, NULL);
            count++;
        }
    log_info("proxy.drain_late", "closed=%u", count);
    uv_timer_start(&proxy->drain_timer, on_over, CLOSE_FRAMES_MS, 0);
}

static void on_tick(uv_timer_t *timer)
{
    struct proxy *proxy = timer->data;
    /* By the clock and not by ticks: a busy machine must not leave the last ones untold. */
    uint64_t due = (uv_now(proxy->loop) - proxy->drain_began_ms + TICK_MS) * proxy->drain_per_s / 1000;
    struct stream *stream;

    if (uv_now(proxy->loop) >= proxy->drain_until_ms) {
        close_the_rest(proxy);
        return;
    }
    list_for_each (stream, &proxy->streams, all_link) {
        if (stream->state != STREAM_LIVE) /* opening: its turn comes when it is open */
            continue;
        if (proxy->drain_told >= due)
            return;
        proxy->drain_told++;
        if (stream->poll)
            poll_end(stream, ERR_OK, NULL);
        else
            send_away(stream);
    }
}

static void on_over(uv_timer_t *timer)
{
    struct proxy *proxy = timer->data;
    void (*drained)(void *) = proxy->drained;

    proxy->drained = NULL;
    uv_timer_stop(timer);
    if (drained)
        drained(proxy->drained_arg);
}

void drain_stream_gone(struct proxy *proxy)
{
    if (proxy->drained)
        uv_timer_start(&proxy->drain_timer, on_over, 0, 0);
}

/* -------------------------------------------------------------- evening out */

/* What an instance carries, and what would be its part of all. */
struct share {
    const struct cluster_instance *instance;
    double streams, part;
};

static double above(const struct share *share)
{
    return share->streams > share->part ? share->streams - share->part : 0;
}

static double below(const struct share *share)
{
    return share->streams < share->part ? share->part - share->streams : 0;
}

static double weight_of(const struct cluster_instance *instance)
{
    return instance->weight ? instance->weight : 100;
}

/* Ours comes first; 0: we are not known yet. */
static size_t shares_find(struct proxy *proxy, struct share *shares)
{
    const struct cluster_instance *instances;
    size_t count = cluster_instances(proxy->cluster, &instances), n = 1;
    double streams = 0, weights = 0;

    shares[0].instance = NULL;
    for (size_t i = 0; i < count && n < INSTANCES_MAX; i++) {
        struct share *share = instances[i].self ? &shares[0] : &shares[n];

        if (!instances[i].self && (!instances[i].alive || instances[i].draining))
            continue;
        n += !instances[i].self;
        share->instance = &instances[i];
        /* Those that were told to go count no more: they are about to leave, or will not however often
         * they are told. */
        share->streams = instances[i].self ? proxy->stream_count - proxy->told_count : instances[i].streams;
        streams += instances[i].self ? proxy->stream_count : instances[i].streams;
        weights += weight_of(&instances[i]);
    }
    if (!shares[0].instance)
        return 0;
    for (size_t i = 0; i < n; i++)
        shares[i].part = streams * weight_of(shares[i].instance) / weights;
    return n;
}

static void look_busy(struct proxy *proxy)
{
    struct timespec cpu;
    uint64_t now = clock_mono_us(), used;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    used = (uint64_t)cpu.tv_sec * 1000000 + (uint64_t)cpu.tv_nsec / 1000;
    if (proxy->even.at_us && now > proxy->even.at_us)
        proxy->even.busy =
            0.75 * proxy->even.busy + 0.25 * (double)(used - proxy->even.cpu_us) / (double)(now - proxy->even.at_us);
    proxy->even.cpu_us = used;
    proxy->even.at_us = now;
}

/* It begins above 1.25 times our part, and ends at our part: what others send us meanwhile does not turn it around. */
static bool has_too_many(struct proxy *proxy, const struct share *ours)
{
    bool going =
        proxy->even.going ? above(ours) >= 1 : ours->streams > 1.25 * ours->part && above(ours) > EVEN_LEAST_ABOVE;

    if (going != proxy->even.going)
        log_info("proxy.even", "step=%s streams=%.0f share=%.0f", going ? "begin" : "end", ours->streams, ours->part);
    proxy->even.going = going;
    return going;
}

/* Tells up to `count` streams, the oldest first, to go to the instance. */
static uint32_t send_to(struct proxy *proxy, const struct cluster_instance *instance, uint32_t count)
{
    struct stream *stream;
    uint32_t sent = 0;

    list_for_each (stream, &proxy->streams, all_link) {
        struct buf json = {0};

        if (sent == count)
            break;
        if (stream->state != STREAM_LIVE || stream->poll || stream->bare) /* bare: it might come back here */
            continue;
        buf_printf(&json, "{\"type\":\"migrate\",\"endpoints\":[{\"instance\":\"%s\",\"url\":", instance->id);
        buf_json_string(&json, str_of(instance->url));
        buf_text(&json, "}]");
        if (tell(stream, &json, proxy->config->drain_ms)) {
            remember(stream);
            sent++;
        }
        buf_clear(&json);
    }
    proxy->count.evened += sent;
    return sent;
}

static void on_even(uv_timer_t *timer)
{
    struct proxy *proxy = timer->data;
    struct share shares[INSTANCES_MAX];
    size_t n = shares_find(proxy, shares);
    int64_t tick_ms = proxy->config->beat_ms / EVEN_TICKS_A_BEAT;
    uint32_t left = (uint32_t)((proxy->config->rebalance_streams_per_s * tick_ms + 999) / 1000);
    double too_many = 0;

    look_busy(proxy);
    if (n < 2 || !has_too_many(proxy, &shares[0]) || proxy->even.busy * 100 > (double)proxy->config->rebalance_busy_max)
        return;
    for (size_t i = 0; i < n; i++)
        too_many += above(&shares[i]);
    if (left > (uint32_t)above(&shares[0]))
        left = (uint32_t)above(&shares[0]);
    for (size_t i = 1; i < n && left; i++) {
        const struct cluster_instance *to = shares[i].instance;
        /* Others that have too many send too. */
        double wanted = below(&shares[i]) / EVEN_PART * above(&shares[0]) / too_many;

        if (wanted > 0 && to->url[0] && to->ready && !to->overloaded)
            left -= send_to(proxy, to, wanted >= left ? left : (uint32_t)wanted + 1);
    }
}

void even_start(struct proxy *proxy)
{
    uint64_t tick_ms = (uint64_t)proxy->config->beat_ms / EVEN_TICKS_A_BEAT;

    if (proxy->config->rebalance_streams_per_s)
        uv_timer_start(&proxy->even_timer, on_even, tick_ms, tick_ms);
}
