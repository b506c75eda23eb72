/*
 * The feed: life of its queue, and what of it this instance wants (feed.h).
 *
 *   CLOSED ─exchange declared, time to try─▶ DECLARING ─queue and bindings there─▶ SUBSCRIBING ─consume-ok─▶ OPEN
 *      ▲──────────────────────────── refused, cancelled, link lost ────────────────────────────────┘
 *
 * The queue is exclusive: it ends with its connection, and what was in it is found missing by the counters.
 */
#include "feed_impl.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "room/base/log.h"

#define QUEUE_MAX_BYTES (64 << 20) /* of a receiver that stands still; the oldest go */
#define RETRY_FIRST_MS 100
#define RETRY_MAX_MS 5000

static void feed_try(struct feed *feed);
static void feed_down(struct feed *feed);
static void on_answer(void *arg, enum err err, struct str text);
static void on_bound(void *arg, enum err err, struct str text);
static void on_started(void *owner);
static void on_lost(void *owner, enum err err, struct str text);

static const struct amqp_consumer_events consumer_events = {
    .started = on_started,
    .delivered = feed_delivered,
    .lost = on_lost,
};

/* ----------------------------------------------------------------------------------------------------- life of it */

static void on_open_timer(uv_timer_t *timer)
{
    feed_try(timer->data);
}

static uv_timer_t *timer_new(struct feed *feed)
{
    uv_timer_t *timer = xcalloc(1, sizeof *timer);

    uv_timer_init(feed->history->loop, timer);
    timer->data = feed;
    return timer;
}

struct feed *feed_open(struct history *history)
{
    struct feed *feed = xcalloc(1, sizeof *feed);

    feed->history = history;
    feed->open_timer = timer_new(feed);
    feed->beat_timer = timer_new(feed);
    feed->wake_timer = timer_new(feed);
    feed->survey_timer = timer_new(feed);
    map_init(&feed->shards);
    map_init(&feed->outs);
    map_init(&feed->peers);
    list_init(&feed->full);
    list_init(&feed->logs);
    list_init(&feed->missed);
    list_init(&feed->announcing);
    list_init(&feed->awaited);
    list_init(&feed->surveys);
    return feed;
}

static void free_timer(uv_handle_t *handle)
{
    free(handle);
}

void feed_close(struct feed *feed)
{
    uv_timer_t *const timers[] = {feed->open_timer, feed->beat_timer, feed->wake_timer, feed->survey_timer};
    struct map_link *link, *next;

    for (size_t i = 0; i < countof(timers); i++)
        uv_close((uv_handle_t *)timers[i], free_timer);
    survey_close(feed);
    entered_close(feed);
    feed_out_close(feed);
    feed_peers_free(feed);
    for (link = map_next(&feed->shards, NULL); link; link = next) {
        next = map_next(&feed->shards, link);
        free(container_of(link, struct feed_shard, by_name));
    }
    map_clear(&feed->shards);
    free(feed); /* the consumer is its link's */
}

void feed_connected(struct feed *feed)
{
    feed->connected_ms = feed->complete_ms = history_now_ms(feed->history);
    beat_begin(feed);
}

void feed_link_up(struct feed *feed)
{
    uint64_t number;

    /* Another name each time: the broker may not have noticed yet that the last connection, and its queue, are gone. */
    random_bytes(&number, sizeof number);
    snprintf(
        feed->queue, sizeof feed->queue, "roomd.feed.%s.%016" PRIx64, cluster_self(feed->history->cluster), number);
    feed->failures = 0;
    uv_timer_stop(feed->open_timer);
}

void feed_declared(struct feed *feed)
{
    if (!uv_is_active((uv_handle_t *)feed->open_timer)) /* else it was refused, and waits */
        feed_try(feed);
}

bool feed_is_open(const struct feed *feed)
{
    return feed->state == FEED_OPEN;
}

static void on_wake(uv_timer_t *timer)
{
    (void)timer; /* a turn follows */
}

void feed_wake(struct feed *feed, uint64_t ms)
{
    if (!uv_is_active((uv_handle_t *)feed->wake_timer) || uv_timer_get_due_in(feed->wake_timer) > ms)
        uv_timer_start(feed->wake_timer, on_wake, ms, 0);
}

/* ------------------------------------------------------------------------------------------------------- the queue */

static void bind_to(struct feed *feed, const char *key)
{
    feed->answers++;
    amqp_bind_queue(feed->history->publish, feed->queue, FEED_EXCHANGE, key, on_answer, feed);
}

static void bind_shard(struct feed_shard *shard)
{
    shard->answers++;
    shard->feed->answers++;
    amqp_bind_queue(shard->feed->history->publish, shard->feed->queue, FEED_EXCHANGE, shard->key, on_bound, shard);
}

static void feed_try(struct feed *feed)
{
    struct history *history = feed->history;
    const struct amqp_queue_options options = {
        .exclusive = true, .auto_delete = true, .drop_head = true, .max_length_bytes = QUEUE_MAX_BYTES};
    char own[FEED_KEY_MAX + 1];

    if (feed->state != FEED_CLOSED || feed->answers || !history->publish || !amqp_link_up(history->publish) ||
        topology_missing(history->topology))
        return; /* another try comes with the last answer, or when the exchange is declared */
    uv_timer_stop(feed->open_timer);
    feed->state = FEED_DECLARING;
    feed->refused = false;
    feed->answers++;
    amqp_declare_queue(history->publish, feed->queue, &options, on_answer, feed);
    bind_to(feed, "account");
    bind_to(feed, "beat");
    snprintf(own, sizeof own, "instance.%s", cluster_self(history->cluster));
    bind_to(feed, own);
    for (struct map_link *link = map_next(&feed->shards, NULL); link; link = map_next(&feed->shards, link)) {
        struct feed_shard *shard = container_of(link, struct feed_shard, by_name);

        if (shard->follows)
            bind_shard(shard);
    }
}

static void on_answer(void *arg, enum err err, struct str text)
{
    struct feed *feed = arg;

    feed->answers--;
    if (err && !feed->refused) {
        feed->refused = true;
        if (err != ERR_LOST) /* the link has said so */
            log_warn("feed.refused", "queue=%s error=%s text=%s", feed->queue, err_code(err), log_quote(text));
    }
    if (feed->answers)
        return;
    if (feed->refused || feed->state == FEED_CLOSED) {
        feed_down(feed);
        if (err == ERR_CONFLICT && text.n >= 9 && memcmp(text.p, "NOT_FOUND", 9) == 0)
            topology_repair(feed->history->topology); /* the exchange, most likely */
    } else if (feed->state == FEED_DECLARING) {
        feed->state = FEED_SUBSCRIBING;
        feed->consumer = amqp_consume(feed->history->publish, feed->queue, 0, true, &consumer_events, feed);
    }
}

/* Bound: what comes from now on is all that is told, so the owner may be asked for it. */
static void on_bound(void *arg, enum err err, struct str text)
{
    struct feed_shard *shard = arg;
    struct feed *feed = shard->feed;

    if (--shard->answers == 0 && !err && shard->follows && feed->state != FEED_CLOSED) {
        shard->bound = true;
        beat_soon(feed);
    }
    on_answer(feed, err, text);
}

static void hear_nothing(struct feed_shard *shard)
{
    shard->bound = shard->known = shard->tells = false;
    list_remove(&shard->missed_link);
}

/* Closed until the next try: soon, then later and later, and not all instances at once. */
static void feed_down(struct feed *feed)
{
    uint64_t wait_ms = RETRY_MAX_MS;
    uint32_t random;

    if (feed->consumer)
        amqp_consumer_close(feed->consumer, NULL);
    feed->consumer = NULL;
    feed->state = FEED_CLOSED;
    for (struct map_link *link = map_next(&feed->shards, NULL); link; link = map_next(&feed->shards, link))
        hear_nothing(container_of(link, struct feed_shard, by_name));
    feed_peers_void(feed);
    if (feed->failures < 6)
        wait_ms = (uint64_t)RETRY_FIRST_MS << feed->failures;
    feed->failures++;
    random_bytes(&random, sizeof random);
    uv_timer_start(feed->open_timer, on_open_timer, wait_ms / 2 + random % (wait_ms / 2 + 1), 0);
}

static void on_started(void *owner)
{
    struct feed *feed = owner;

    feed->state = FEED_OPEN;
    feed->failures = 0;
    log_info("feed.open", "queue=%s", feed->queue);
    entered_opened(feed);
    feed->count.opened++;
    beat_soon(feed);
}

static void on_lost(void *owner, enum err err, struct str text)
{
    struct feed *feed = owner;

    log_info("feed.lost", "queue=%s error=%s text=%s", feed->queue, err_code(err), log_quote(text));
    amqp_consumer_free(feed->consumer);
    feed->consumer = NULL;
    feed_down(feed);
}

/* ------------------------------------------------------------------------------------------------------- the shards */

static bool is_named(const struct map_link *link, const void *key)
{
    return str_is(*(const struct str *)key, container_of(link, const struct feed_shard, by_name)->name);
}

struct feed_shard *feed_shard_find(const struct feed *feed, struct str name)
{
    struct map_link *link = map_find(&feed->shards, map_hash(name.p, name.n), is_named, &name);

    return link ? container_of(link, struct feed_shard, by_name) : NULL;
}

struct feed_shard *feed_shard_get(struct feed *feed, struct str name)
{
    struct feed_shard *shard = feed_shard_find(feed, name);

    if (shard)
        return shard;
    assert(name.n <= SHARD_MAX_BYTES);
    shard = xcalloc(1, sizeof *shard);
    shard->feed = feed;
    memcpy(shard->name, name.p, name.n);
    snprintf(shard->key, sizeof shard->key, "room.%s", shard->name);
    list_init(&shard->missed_link);
    list_init(&shard->log_link);
    list_init(&shard->marks);
    map_init(&shard->marks_by_room);
    map_insert(&feed->shards, map_hash(name.p, name.n), &shard->by_name);
    return shard;
}

/* ------------------------------------------------------------------------------------------------------- following */

static void follow_update(struct feed_shard *shard)
{
    struct feed *feed = shard->feed;
    uint64_t now = uv_now(feed->history->loop);
    bool wants = shard->wanted || shard->waits || (shard->waited_ms && now - shard->waited_ms < FEED_FOLLOW_ON_MS);

    if (wants == shard->follows)
        return;
    shard->follows = wants;
    if (wants) {
        if (feed->state != FEED_CLOSED)
            bind_shard(shard);
        return;
    }
    shard->waited_ms = 0;
    hear_nothing(shard);
    if (feed->state == FEED_CLOSED)
        return;
    shard->answers++;
    feed->answers++;
    amqp_unbind_queue(feed->history->publish, feed->queue, FEED_EXCHANGE, shard->key, on_bound, shard);
}

void feed_follow_sweep(struct feed *feed)
{
    for (struct map_link *link = map_next(&feed->shards, NULL); link; link = map_next(&feed->shards, link))
        follow_update(container_of(link, struct feed_shard, by_name));
}

void history_follow(struct history *history, struct str name, bool follow)
{
    struct feed_shard *shard = feed_shard_get(history->feed, name);

    shard->wanted = follow;
    follow_update(shard);
}

void feed_wait(struct feed *feed, struct str name, bool begins)
{
    struct feed_shard *shard = feed_shard_find(feed, name);

    if (!shard && begins && feed->history->cluster && cluster_find_shard(feed->history->cluster, name))
        shard = feed_shard_get(feed, name); /* anybody may wait for a room of a shard that does not exist */
    if (!shard || (!begins && !shard->waits))
        return;
    shard->waits = begins ? shard->waits + 1 : shard->waits - 1;
    shard->waited_ms = uv_now(feed->history->loop);
    if (begins)
        follow_update(shard);
}

bool history_hears(const struct history *history, struct str name)
{
    const struct shard *own = history_find_shard(history, name);
    const struct feed_shard *shard = feed_shard_find(history->feed, name);

    if (own)
        return shard_is_sequencing(own);
    return shard && history->feed->state == FEED_OPEN && shard->bound && shard->known && shard->tells &&
           list_empty(&shard->missed_link) && uv_now(history->loop) - shard->heard_ms < FEED_HEARD_MS;
}

uint64_t feed_epoch(const struct feed *feed, struct str name)
{
    const struct feed_shard *shard = feed_shard_find(feed, name);

    return shard ? shard->epoch : 0;
}

/* --------------------------------------------------------------------------------------------------------- metrics */

static size_t count_shards(const struct feed *feed, bool (*counts)(const struct feed_shard *shard))
{
    size_t count = 0;

    for (struct map_link *link = map_next(&feed->shards, NULL); link; link = map_next(&feed->shards, link))
        count += counts(container_of(link, struct feed_shard, by_name));
    return count;
}

static bool is_followed(const struct feed_shard *shard)
{
    return shard->follows;
}

static bool is_told(const struct feed_shard *shard)
{
    return shard->telling;
}

static void write_messages(const struct feed *feed, struct buf *out)
{
    static const char *const kinds[FEED_KINDS] = {NULL, "told", "log", "beat", "entered", "settled", "ask", "answer"};

    buf_text(out,
        "# HELP roomd_feed_messages_total Messages of the feed by kind: sent, dropped before that, taken from others; "
        "own, bad and unknown ones that came.\n# TYPE roomd_feed_messages_total counter\n");
    for (int i = FEED_TOLD; i < FEED_KINDS; i++)
        buf_printf(out,
            "roomd_feed_messages_total{kind=\"%s\",result=\"sent\"} %" PRIu64
            "\nroomd_feed_messages_total{kind=\"%s\",result=\"dropped\"} %" PRIu64
            "\nroomd_feed_messages_total{kind=\"%s\",result=\"taken\"} %" PRIu64 "\n",
            kinds[i], feed->count.out[i], kinds[i], feed->count.lost[i], kinds[i], feed->count.in[i]);
    buf_printf(out,
        "roomd_feed_messages_total{kind=\"any\",result=\"own\"} %" PRIu64
        "\nroomd_feed_messages_total{kind=\"any\",result=\"bad\"} %" PRIu64
        "\nroomd_feed_messages_total{kind=\"any\",result=\"unknown\"} %" PRIu64 "\n",
        feed->count.own, feed->count.bad, feed->count.unknown);
}

void feed_metrics(const struct feed *feed, struct buf *out)
{
    buf_printf(out,
        "# HELP roomd_feed_events_total Events that are not kept: told by this instance; of these sent to others or "
        "dropped; received from others.\n"
        "# TYPE roomd_feed_events_total counter\n"
        "roomd_feed_events_total{result=\"told\"} %" PRIu64 "\nroomd_feed_events_total{result=\"sent\"} %" PRIu64
        "\nroomd_feed_events_total{result=\"dropped\"} %" PRIu64
        "\nroomd_feed_events_total{result=\"received\"} %" PRIu64 "\n",
        feed->count.told, feed->count.sent, feed->count.dropped, feed->count.received);
    write_messages(feed, out);
    buf_printf(out,
        "# HELP roomd_feed_entries_total Log entries: sent to instances with streams of their rooms; received and "
        "shown; received and of no room with streams here; of an owner that is none any more.\n"
        "# TYPE roomd_feed_entries_total counter\n"
        "roomd_feed_entries_total{result=\"sent\"} %" PRIu64 "\nroomd_feed_entries_total{result=\"received\"} %" PRIu64
        "\nroomd_feed_entries_total{result=\"skipped\"} %" PRIu64
        "\nroomd_feed_entries_total{result=\"stale\"} %" PRIu64 "\n"
        "# HELP roomd_feed_holes_total Times a counter showed that messages were missed.\n"
        "# TYPE roomd_feed_holes_total counter\n"
        "roomd_feed_holes_total{of=\"log\"} %" PRIu64 "\nroomd_feed_holes_total{of=\"entered\"} %" PRIu64 "\n",
        feed->count.entries_sent, feed->count.entries_received, feed->count.entries_skipped, feed->count.stale,
        feed->count.holes, feed->count.entered_holes);
    buf_printf(out,
        "# HELP roomd_feed_opened_total Times the feed's queue was opened.\n# TYPE roomd_feed_opened_total counter\n"
        "roomd_feed_opened_total %" PRIu64 "\n"
        "# HELP roomd_feed_open 1: what other instances tell comes in, for all shards followed.\n# TYPE "
        "roomd_feed_open gauge\n"
        "roomd_feed_open %d\n"
        "# HELP roomd_feed_shards_followed Shards whose rooms have streams or long polls here.\n"
        "# TYPE roomd_feed_shards_followed gauge\nroomd_feed_shards_followed %zu\n"
        "# HELP roomd_feed_shards_told Shards of ours that other instances follow.\n"
        "# TYPE roomd_feed_shards_told gauge\nroomd_feed_shards_told %zu\n"
        "# HELP roomd_feed_peers Other instances heard in the last 5 s.\n"
        "# TYPE roomd_feed_peers gauge\nroomd_feed_peers %zu\n",
        feed->count.opened, feed->state == FEED_OPEN && !feed->answers, count_shards(feed, is_followed),
        count_shards(feed, is_told), feed_peers_alive(feed));
}
