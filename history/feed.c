/*
 * The feed: what is not kept reaches the streams of this instance at once and those of others through the broker, best
 * effort. All that is told in one turn of the loop leaves as one message per routing key.
 *
 *   CLOSED ─exchange declared, time to try─▶ DECLARING ─queue and bindings there─▶ SUBSCRIBING ─consume-ok─▶ OPEN
 *      ▲──────────────────────────── refused, cancelled, link lost ────────────────────────────────┘
 *
 * The queue is exclusive: it ends with its connection, and what was in it is not missed by anybody. Publishes are never
 * in the way of those that must arrive: no confirm, and none at all while the link is blocked or behind.
 */
#include "feed.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "internal.h"
#include "room/base/log.h"

#define QUEUE_MAX_BYTES (64 << 20)    /* of a receiver that stands still; the oldest go */
#define MESSAGE_MAX_BYTES (256 << 10) /* more for one routing key makes another message */
#define TURN_MAX_BYTES (2 << 20)      /* more in one turn is dropped */
#define BEHIND_MAX_BYTES (1 << 20)    /* that wait for the socket: publishes with a confirm stand behind them */
#define KEEP_BYTES (16 << 10)
#define RETRY_FIRST_MS 100
#define RETRY_MAX_MS 5000

enum feed_state { FEED_CLOSED, FEED_DECLARING, FEED_SUBSCRIBING, FEED_OPEN };

#define KEY_MAX_BYTES (5 + SHARD_MAX_BYTES) /* room.<shard> */

/* What gathers for one routing key. Kept: there are as many as shards. */
struct feed_out {
    struct map_link by_key;
    struct list full_link; /* feed->full */
    struct buf body;
    uint32_t events;
    char key[KEY_MAX_BYTES + 1];
};

struct followed {
    struct map_link by_shard;
    char key[KEY_MAX_BYTES + 1];
};

struct feed {
    struct history *history;
    uv_timer_t *timer;
    enum feed_state state;
    struct amqp_consumer *consumer; /* SUBSCRIBING, OPEN */
    int answers;                    /* of the broker, still to come */
    bool refused;                   /* one of them said no */
    unsigned failures;              /* in a row */
    char queue[64];
    struct map followed, outs;
    struct list full;
    size_t turn_bytes;
    struct {
        uint64_t told, sent, dropped, received;                   /* events */
        uint64_t messages_sent, taken, own, bad, unknown, opened; /* messages */
    } count;
};

static void feed_try(struct feed *feed);
static void feed_down(struct feed *feed);
static void on_answer(void *arg, enum err err, struct str text);
static void on_started(void *owner);
static void on_delivered(void *owner, const struct amqp_delivery *delivery);
static void on_lost(void *owner, enum err err, struct str text);

static const struct amqp_consumer_events consumer_events = {
    .started = on_started, .delivered = on_delivered, .lost = on_lost};

/* -------------------------------------------------------------------------------------------------------- life of it
 */

static void on_timer(uv_timer_t *timer)
{
    feed_try(timer->data);
}

struct feed *feed_open(struct history *history)
{
    struct feed *feed = xcalloc(1, sizeof *feed);

    feed->history = history;
    feed->timer = xcalloc(1, sizeof *feed->timer);
    uv_timer_init(history->loop, feed->timer);
    feed->timer->data = feed;
    map_init(&feed->followed);
    map_init(&feed->outs);
    list_init(&feed->full);
    return feed;
}

static void free_timer(uv_handle_t *handle)
{
    free(handle);
}

void feed_close(struct feed *feed)
{
    struct map_link *link, *next;

    uv_close((uv_handle_t *)feed->timer, free_timer);
    for (link = map_next(&feed->outs, NULL); link; link = next) {
        struct feed_out *out = container_of(link, struct feed_out, by_key);

        next = map_next(&feed->outs, link);
        buf_clear(&out->body);
        free(out);
    }
    for (link = map_next(&feed->followed, NULL); link; link = next) {
        next = map_next(&feed->followed, link);
        free(container_of(link, struct followed, by_shard));
    }
    map_clear(&feed->outs);
    map_clear(&feed->followed);
    free(feed); /* the consumer is its link's */
}

void feed_link_up(struct feed *feed)
{
    uint64_t number;

    /* Another name each time: the broker may not have noticed yet that the last connection, and its queue, are gone. */
    random_bytes(&number, sizeof number);
    snprintf(
        feed->queue, sizeof feed->queue, "roomd.feed.%s.%016" PRIx64, cluster_self(feed->history->cluster), number);
    feed->failures = 0;
    uv_timer_stop(feed->timer);
}

void feed_declared(struct feed *feed)
{
    if (!uv_is_active((uv_handle_t *)feed->timer)) /* else it was refused, and waits */
        feed_try(feed);
}

/* ------------------------------------------------------------------------------------------------------- the queue */

static void bind_to(struct feed *feed, const char *key)
{
    feed->answers++;
    amqp_bind_queue(feed->history->publish, feed->queue, FEED_EXCHANGE, key, on_answer, feed);
}

static void feed_try(struct feed *feed)
{
    struct history *history = feed->history;
    const struct amqp_queue_options options = {
        .exclusive = true, .auto_delete = true, .drop_head = true, .max_length_bytes = QUEUE_MAX_BYTES};

    if (feed->state != FEED_CLOSED || feed->answers || !history->publish || !amqp_link_up(history->publish) ||
        topology_missing(history->topology))
        return; /* another try comes with the last answer, or when the exchange is declared */
    uv_timer_stop(feed->timer);
    feed->state = FEED_DECLARING;
    feed->refused = false;
    feed->answers++;
    amqp_declare_queue(history->publish, feed->queue, &options, on_answer, feed);
    bind_to(feed, "account");
    for (struct map_link *link = map_next(&feed->followed, NULL); link; link = map_next(&feed->followed, link))
        bind_to(feed, container_of(link, struct followed, by_shard)->key);
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

/* Closed until the next try: soon, then later and later, and not all instances at once. */
static void feed_down(struct feed *feed)
{
    uint64_t wait_ms = RETRY_MAX_MS;
    uint32_t random;

    if (feed->consumer)
        amqp_consumer_close(feed->consumer, NULL);
    feed->consumer = NULL;
    feed->state = FEED_CLOSED;
    if (feed->failures < 6)
        wait_ms = (uint64_t)RETRY_FIRST_MS << feed->failures;
    feed->failures++;
    random_bytes(&random, sizeof random);
    uv_timer_start(feed->timer, on_timer, wait_ms / 2 + random % (wait_ms / 2 + 1), 0);
}

static void on_started(void *owner)
{
    struct feed *feed = owner;

    feed->state = FEED_OPEN;
    feed->failures = 0;
    feed->count.opened++;
    log_info("feed.open", "queue=%s", feed->queue);
}

static void on_lost(void *owner, enum err err, struct str text)
{
    struct feed *feed = owner;

    log_info("feed.lost", "queue=%s error=%s text=%s", feed->queue, err_code(err), log_quote(text));
    amqp_consumer_free(feed->consumer);
    feed->consumer = NULL;
    feed_down(feed);
}

/* --------------------------------------------------------------------------------------------------------- following
 */

static bool follows(const struct map_link *link, const void *key)
{
    return strcmp(container_of(link, struct followed, by_shard)->key, key) == 0;
}

void history_follow(struct history *history, struct str shard, bool follow)
{
    struct feed *feed = history->feed;
    char key[KEY_MAX_BYTES + 1];
    int n = snprintf(key, sizeof key, "room.%.*s", STR_ARG(shard));
    uint64_t hash = map_hash(key, (size_t)n);
    struct map_link *link;
    struct followed *followed;

    if (shard.n > SHARD_MAX_BYTES)
        return;
    link = map_find(&feed->followed, hash, follows, key);
    if (follow == (link != NULL))
        return;
    if (follow) {
        followed = xcalloc(1, sizeof *followed);
        memcpy(followed->key, key, (size_t)n);
        map_insert(&feed->followed, hash, &followed->by_shard);
        if (feed->state != FEED_CLOSED)
            bind_to(feed, key);
        return;
    }
    map_remove(&feed->followed, link);
    free(container_of(link, struct followed, by_shard));
    if (feed->state == FEED_CLOSED)
        return;
    feed->answers++;
    amqp_unbind_queue(history->publish, feed->queue, FEED_EXCHANGE, key, on_answer, feed);
}

/* ------------------------------------------------------------------------------------------------------------ the way
 * out */

static void out_send(struct feed *feed, struct feed_out *out)
{
    struct amqp_link *link = feed->history->publish;
    const struct amqp_message message = {
        .exchange = STR(FEED_EXCHANGE),
        .routing_key = str_of(out->key),
        .content_type = STR("application/x-roomd-feed"),
        .body = buf_str(&out->body),
        .transient = true,
    };

    if (link && amqp_publish_unconfirmed(link, &message, BEHIND_MAX_BYTES)) {
        feed->count.messages_sent++;
        feed->count.sent += out->events;
    } else {
        feed->count.dropped += out->events;
    }
    out->events = 0;
    if (out->body.capacity > KEEP_BYTES)
        buf_clear(&out->body);
    else
        buf_reset(&out->body);
}

void feed_turn(struct feed *feed)
{
    struct list *link;

    while ((link = list_pop_front(&feed->full)))
        out_send(feed, list_entry(link, struct feed_out, full_link));
    feed->turn_bytes = 0;
}

static bool goes_to(const struct map_link *link, const void *key)
{
    return strcmp(container_of(link, struct feed_out, by_key)->key, key) == 0;
}

static struct feed_out *out_get(struct feed *feed, const char *key)
{
    uint64_t hash = map_hash(key, strlen(key));
    struct map_link *link = map_find(&feed->outs, hash, goes_to, key);
    struct feed_out *out;

    if (link)
        return container_of(link, struct feed_out, by_key);
    out = xcalloc(1, sizeof *out);
    list_init(&out->full_link);
    snprintf(out->key, sizeof out->key, "%s", key);
    map_insert(&feed->outs, hash, &out->by_key);
    return out;
}

static void gather(struct feed *feed, const char *key, const struct feed_item *item)
{
    struct feed_out *out;

    feed->count.told++;
    if (!feed->history->cluster || item->json.n > MESSAGE_MAX_BYTES ||
        feed->turn_bytes + item->json.n > TURN_MAX_BYTES) {
        feed->count.dropped++;
        return;
    }
    out = out_get(feed, key);
    if (out->body.n + item->json.n > MESSAGE_MAX_BYTES)
        out_send(feed, out);
    if (!out->body.n)
        feed_write_head(&out->body, FEED_TOLD, cluster_self(feed->history->cluster));
    feed_write_item(&out->body, item);
    out->events++;
    feed->turn_bytes += item->json.n;
    if (list_empty(&out->full_link))
        list_push_back(&feed->full, &out->full_link);
}

static void show(struct history *history, const struct feed_item *item)
{
    if (history->events.ephemeral)
        history->events.ephemeral(history->events.arg, item->to == FEED_TO_ROOM ? item->name : STR(""),
            item->to == FEED_TO_ACCOUNT ? item->name : STR(""), item->json);
}

void history_tell_room(struct history *history, struct str room_id, struct str json)
{
    const struct feed_item item = {FEED_TO_ROOM, room_id, json};
    char key[KEY_MAX_BYTES + 1];
    struct str shard;

    if (!room_id_read(room_id, &shard))
        return;
    show(history, &item);
    snprintf(key, sizeof key, "room.%.*s", STR_ARG(shard));
    gather(history->feed, key, &item);
}

void history_tell_account(struct history *history, struct str account, struct str json)
{
    const struct feed_item item = {FEED_TO_ACCOUNT, account, json};

    if (!account_valid(account))
        return; /* the sender of something that was refused for just that */
    show(history, &item);
    gather(history->feed, "account", &item);
}

/* ------------------------------------------------------------------------------------------------------------ the way
 * in */

static void on_delivered(void *owner, const struct amqp_delivery *delivery)
{
    struct feed *feed = owner;
    struct str sender, items;
    struct feed_item item;

    switch (feed_read(delivery->body, &sender, &items)) {
    case FEED_BAD:
        feed->count.bad++;
        return;
    case FEED_UNKNOWN:
        feed->count.unknown++;
        return;
    case FEED_GOOD:
        break;
    }
    if (str_is(sender, cluster_self(feed->history->cluster))) {
        feed->count.own++; /* was shown when it was told */
        return;
    }
    feed->count.taken++;
    while (feed_next(&items, &item)) {
        feed->count.received++;
        show(feed->history, &item);
    }
}

/* ----------------------------------------------------------------------------------------------------------- metrics
 */

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
    buf_printf(out,
        "# HELP roomd_feed_messages_total Messages of the feed: sent; taken, own, bad and unknown ones that came.\n"
        "# TYPE roomd_feed_messages_total counter\n"
        "roomd_feed_messages_total{result=\"sent\"} %" PRIu64 "\nroomd_feed_messages_total{result=\"taken\"} %" PRIu64
        "\nroomd_feed_messages_total{result=\"own\"} %" PRIu64 "\nroomd_feed_messages_total{result=\"bad\"} %" PRIu64
        "\nroomd_feed_messages_total{result=\"unknown\"} %" PRIu64 "\n",
        feed->count.messages_sent, feed->count.taken, feed->count.own, feed->count.bad, feed->count.unknown);
    buf_printf(out,
        "# HELP roomd_feed_opened_total Times the feed's queue was opened.\n# TYPE roomd_feed_opened_total counter\n"
        "roomd_feed_opened_total %" PRIu64 "\n"
        "# HELP roomd_feed_open 1: events of other instances come in, for all shards followed.\n# TYPE roomd_feed_open "
        "gauge\n"
        "roomd_feed_open %d\n"
        "# HELP roomd_feed_shards_followed Shards whose rooms have streams here.\n"
        "# TYPE roomd_feed_shards_followed gauge\nroomd_feed_shards_followed %zu\n",
        feed->count.opened, feed->state == FEED_OPEN && !feed->answers, feed->followed.count);
}
