/*
 * Ownership of one shard: from the lease to the running consumer, and the way back (states: internal.h).
 *
 * Only the holder of the lease subscribes, and only after the broker says that nobody else consumes the queue. A
 * consumer that waits behind another would be given newer messages before the unacknowledged older ones when the other
 * closes gracefully (measured 4 of 4; never when it subscribes after close-ok, 12 of 12). For the same reason a shard
 * is moved in this order: sequence nothing more, commit and ack what has a seq, close the channel, wait for close-ok,
 * release the lease.
 */
#include "internal.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "room/base/log.h"

#define LOOK_EVERY_MS 100
/* No such queue: it is not declared yet, or somebody deleted it. */
#define LOOK_AGAIN_MS 500
#define COMPLAIN_AFTER_MS 10000

static struct shard *shard_new(struct history *history, struct str name, uint64_t epoch);
static void shard_subscribe(struct shard *shard);
static void shard_enter(struct shard *shard, enum shard_state next);
static void shard_close_channel(struct shard *shard);
static void on_released(void *owner);
static void on_gone(void *owner);
static void shard_release(struct shard *shard);
static void shard_leave(struct shard *shard);
static void shard_free(struct shard *shard);

static const char *const state_name[] = {"waiting", "subscribing", "running", "draining", "closing", "gone"};
static const unsigned may_follow[] = {
    [SHARD_WAITING] = 1u << SHARD_SUBSCRIBING | 1u << SHARD_DRAINING | 1u << SHARD_CLOSING | 1u << SHARD_GONE,
    [SHARD_SUBSCRIBING] =
        1u << SHARD_WAITING | 1u << SHARD_RUNNING | 1u << SHARD_DRAINING | 1u << SHARD_CLOSING | 1u << SHARD_GONE,
    [SHARD_RUNNING] = 1u << SHARD_WAITING | 1u << SHARD_DRAINING | 1u << SHARD_CLOSING | 1u << SHARD_GONE,
    [SHARD_DRAINING] = 1u << SHARD_CLOSING | 1u << SHARD_GONE,
    [SHARD_CLOSING] = 1u << SHARD_GONE,
    [SHARD_GONE] = 0,
};

void shard_taken(struct history *history, struct str name, uint64_t epoch)
{
    struct shard *shard = history_find_shard(history, name);

    if (shard && shard->epoch == epoch)
        return;
    if (shard)
        shard_lost(shard, "taken again");
    if (history->draining || name.n > SHARD_MAX_BYTES) {
        cluster_release(history->cluster, name);
        return;
    }
    shard = shard_new(history, name, epoch);
    log_info("shard.taken", "shard=%s epoch=%" PRIu64, shard->name, epoch);
    if (history->events.epoch)
        history->events.epoch(history->events.arg, name, epoch, true);
    reader_epoch(history->reader, name, epoch, true);
    shard_look(shard);
}

/* Caches are bounded per instance; a shard gets the part it has if all living instances own the same number. */
static size_t part_of_cache(const struct history *history, int64_t whole, size_t least)
{
    const struct cluster_instance *instances;
    size_t count = cluster_instances(history->cluster, &instances), alive = 0,
           shards = cluster_shard_count(history->cluster), part;

    for (size_t i = 0; i < count; i++)
        alive += instances[i].alive;
    if (alive < 1)
        alive = 1;
    part = (size_t)whole * alive / (shards ? shards : 1);
    return part < least ? least : part;
}

static struct shard *shard_new(struct history *history, struct str name, uint64_t epoch)
{
    struct shard *shard = xcalloc(1, sizeof *shard);
    struct sequencer_events events = history_sequencer_events;
    struct rules rules;
    const char *why;

    if (!rules_read(&rules, history->config->role_rules, &why)) /* told when the configuration was read */
        rules_default(&rules);
    shard->history = history;
    memcpy(shard->name, name.p, name.n);
    snprintf(shard->queue, sizeof shard->queue, "roomd.shard.%s", shard->name);
    shard->epoch = epoch;
    shard->taken_at_ms = shard->waits_since_ms = uv_now(history->loop);
    list_init(&shard->dirty_link);
    list_init(&shard->facts_link);
    list_init(&shard->write_link);
    list_push_back(&history->shards, &shard->link);
    map_insert(&history->shards_by_name, map_hash(name.p, name.n), &shard->by_name);
    events.arg = shard;
    shard->sequencer = sequencer_new(
        &(struct sequencer_settings){
            .shard = str_of(shard->name),
            .epoch = epoch,
            .dedup_window = (size_t)history->config->dedup_window,
            .room_cache = part_of_cache(history, history->config->room_cache, 100),
            .member_cache = part_of_cache(history, history->config->member_cache, 1000),
            .target_cache = part_of_cache(history, history->config->target_cache, 100),
            .recall_window_ms = (uint64_t)history->config->recall_window_ms,
            .rules = rules,
        },
        &events);
    shard->feed = feed_shard_taken(history->feed, shard);
    return shard;
}

static bool name_equal(const struct map_link *link, const void *key)
{
    return str_is(*(const struct str *)key, container_of(link, const struct shard, by_name)->name);
}

struct shard *history_find_shard(const struct history *history, struct str name)
{
    struct map_link *link = map_find(&history->shards_by_name, map_hash(name.p, name.n), name_equal, &name);

    return link ? container_of(link, struct shard, by_name) : NULL;
}

struct shard *history_find_shard_of(const struct history *history, struct str room_id)
{
    const char *dot = room_id.n ? memchr(room_id.p, '.', room_id.n) : NULL;

    return dot ? history_find_shard(history, (struct str){room_id.p, (size_t)(dot - room_id.p)}) : NULL;
}

bool shard_is_closing(const struct history *history, struct str name)
{
    struct shard *shard;

    list_for_each (shard, &history->closing, link)
        if (str_is(name, shard->name))
            return true;
    return false;
}

void shard_mark_dirty(struct shard *shard)
{
    if (list_empty(&shard->dirty_link) && shard->state != SHARD_GONE)
        list_push_back(&shard->history->dirty, &shard->dirty_link);
}

bool shard_is_sequencing(const struct shard *shard)
{
    return shard->state <= SHARD_RUNNING;
}

static void shard_enter(struct shard *shard, enum shard_state next)
{
    assert(may_follow[shard->state] & 1u << next);
    log_debug("shard.state", "shard=%s epoch=%" PRIu64 " from=%s to=%s", shard->name, shard->epoch,
        state_name[shard->state], state_name[next]);
    shard->state = next;
    if (next != SHARD_WAITING)
        return;
    shard->waits_since_ms = uv_now(shard->history->loop);
    shard->busy_since_ms = 0;
    shard->complained = false;
}

/* ------------------------------------------------------------------------------------------- waiting for the queue */

/* The answer may come when the shard is gone, or is another one of the same name. */
struct look {
    struct list link; /* history->looking */
    struct history *history;
    uint64_t number;
    char name[SHARD_MAX_BYTES + 1];
};

static void look_later(struct shard *shard, uint64_t ms)
{
    shard->next_look_ms = uv_now(shard->history->loop) + ms;
    history_keep_looking(shard->history);
}

static void on_looked(void *arg, enum err err, uint32_t messages, uint32_t consumers)
{
    struct look look = *(struct look *)arg;
    struct shard *shard = history_find_shard(look.history, str_of(look.name));

    (void)messages;
    list_remove(&((struct look *)arg)->link);
    free(arg);
    if (!shard || shard->looking != look.number)
        return;
    shard->looking = 0;
    if (shard->state != SHARD_WAITING)
        return;
    if (!err && consumers == 0) {
        shard_subscribe(shard);
        return;
    }
    if (err == ERR_CONFLICT)
        topology_repair(shard->history->topology);
    if (err)
        shard->busy_since_ms = 0;
    else if (!shard->busy_since_ms)
        shard->busy_since_ms = uv_now(shard->history->loop);
    else if (!shard->complained && uv_now(shard->history->loop) - shard->busy_since_ms > COMPLAIN_AFTER_MS) {
        shard->complained = true;
        log_warn("shard.busy", "shard=%s queue=%s consumers=%u hint=\"somebody consumes it without the lease\"",
            shard->name, shard->queue, consumers);
    }
    look_later(shard, err ? LOOK_AGAIN_MS : LOOK_EVERY_MS);
}

void shard_look(struct shard *shard)
{
    struct history *history = shard->history;
    struct look *look;

    if (shard->state != SHARD_WAITING || shard->looking || !history->consume || !amqp_link_up(history->consume))
        return;
    if (feed_says_cut_off(history->feed)) { /* others have the database, and want it */
        look_later(shard, LOOK_AGAIN_MS);
        return;
    }
    look = xcalloc(1, sizeof *look);
    look->history = history;
    look->number = shard->looking = ++history->looks;
    memcpy(look->name, shard->name, sizeof look->name);
    list_push_back(&history->looking, &look->link);
    amqp_inspect_queue(history->consume, shard->queue, on_looked, look);
}

static void shard_subscribe(struct shard *shard)
{
    shard_enter(shard, SHARD_SUBSCRIBING);
    shard->consumer = amqp_consume(
        shard->history->consume, shard->queue, (uint16_t)shard->history->config->prefetch, false, &inbox_events, shard);
}

void shard_channel_started(struct shard *shard)
{
    if (shard->state != SHARD_SUBSCRIBING)
        return;
    shard_enter(shard, SHARD_RUNNING);
    log_info("shard.running", "shard=%s epoch=%" PRIu64 " after_ms=%" PRIu64, shard->name, shard->epoch,
        uv_now(shard->history->loop) - shard->waits_since_ms);
}

/* Rows that have a seq stay and are committed; the redelivery of their messages finds them by id. */
void shard_channel_lost(struct shard *shard, enum err err, struct str text)
{
    amqp_consumer_free(shard->consumer);
    shard->consumer = NULL;
    log_at(err == ERR_LOST ? LOG_DEBUG : LOG_WARN, "shard.channel_lost", "shard=%s error=%s text=%s", shard->name,
        err_code(err), log_quote(text));
    sequencer_channel_lost(shard->sequencer);
    shard_mark_dirty(shard);
    if (shard->state == SHARD_DRAINING)
        return;
    shard_enter(shard, SHARD_WAITING);
    look_later(shard, LOOK_EVERY_MS);
}

static void on_given_back(void *owner)
{
    (void)owner;
}

void shard_give_back(struct shard *shard, const char *why)
{
    log_warn("shard.given_back", "shard=%s reason=\"%s\"", shard->name, why);
    amqp_consumer_close(shard->consumer, on_given_back);
    shard->consumer = NULL;
    sequencer_channel_lost(shard->sequencer);
    shard_mark_dirty(shard);
    shard_enter(shard, SHARD_WAITING);
    look_later(shard, LOOK_EVERY_MS);
}

/* --------------------------------------------------------------------------------------------------------- the end */

void shard_drain(struct shard *shard)
{
    if (shard->state > SHARD_RUNNING)
        return;
    shard_enter(shard, SHARD_DRAINING);
    facts_forget_shard(shard->history->facts, shard);
    shard_mark_dirty(shard);
}

void shard_drain_check(struct shard *shard)
{
    if (shard->state != SHARD_DRAINING || shard->in_flight || sequencer_counters(shard->sequencer).rows)
        return;
    shard_close_channel(shard);
}

void shard_drain_force(struct shard *shard)
{
    if (shard->state != SHARD_DRAINING)
        return;
    log_warn("shard.not_drained", "shard=%s rows=%zu", shard->name, sequencer_counters(shard->sequencer).rows);
    writer_forget_shard(shard->history->writer, shard);
    shard_close_channel(shard);
}

void shard_give_up(struct shard *shard, const char *why)
{
    log_error("shard.given_up", "shard=%s epoch=%" PRIu64 " why=\"%s\"", shard->name, shard->epoch, why);
    assert(shard->state < SHARD_CLOSING);
    writer_forget_shard(shard->history->writer, shard);
    facts_forget_shard(shard->history->facts, shard);
    shard_close_channel(shard);
}

static void shard_close_channel(struct shard *shard)
{
    struct amqp_consumer *consumer = shard->consumer;

    shard_enter(shard, SHARD_CLOSING);
    if (!consumer) {
        shard_release(shard);
        return;
    }
    shard->consumer = NULL;
    amqp_consumer_close(consumer, on_released);
}

static void on_released(void *owner)
{
    struct shard *shard = owner;

    if (shard->state == SHARD_GONE) /* lost while it was closing */
        on_gone(shard);
    else
        shard_release(shard);
}

static void shard_release(struct shard *shard)
{
    struct history *history = shard->history;

    log_info("shard.released", "shard=%s epoch=%" PRIu64, shard->name, shard->epoch);
    cluster_release(history->cluster, str_of(shard->name));
    shard_leave(shard);
    shard_free(shard);
    history_drained_check(history);
}

void shard_lost(struct shard *shard, const char *why)
{
    struct history *history = shard->history;
    struct amqp_consumer *consumer = shard->consumer;
    bool closing = shard->state == SHARD_CLOSING;

    log_warn("shard.lost", "shard=%s epoch=%" PRIu64 " why=\"%s\"", shard->name, shard->epoch, why);
    shard_leave(shard);
    if (consumer || closing) {
        list_push_back(&history->closing, &shard->link);
        shard->consumer = NULL;
        if (consumer)
            amqp_consumer_close(consumer, on_gone);
    } else {
        shard_free(shard);
    }
    history_drained_check(history);
}

static void on_gone(void *owner)
{
    struct shard *shard = owner;

    list_remove(&shard->link);
    shard_free(shard);
}

/* Out of everybody's sight. */
static void shard_leave(struct shard *shard)
{
    struct history *history = shard->history;

    shard_enter(shard, SHARD_GONE);
    feed_shard_left(shard->feed);
    writer_forget_shard(history->writer, shard);
    facts_forget_shard(history->facts, shard);
    list_remove(&shard->dirty_link);
    list_remove(&shard->link);
    map_remove(&history->shards_by_name, &shard->by_name);
    history_bury(history, shard->sequencer);
    history->unpersisted_bytes -= shard->unpersisted_bytes;
    sequencer_free(shard->sequencer);
    shard->sequencer = NULL;
    if (history->events.epoch)
        history->events.epoch(history->events.arg, str_of(shard->name), shard->epoch, false);
    reader_epoch(history->reader, str_of(shard->name), shard->epoch, false);
}

static void shard_free(struct shard *shard)
{
    free(shard);
}

void shard_free_all(struct history *history)
{
    struct shard *shard;
    struct look *look;

    list_for_each (shard, &history->shards, link) {
        writer_forget_shard(history->writer, shard);
        facts_forget_shard(history->facts, shard);
        list_remove(&shard->link);
        sequencer_free(shard->sequencer);
        shard_free(shard);
    }
    list_for_each (shard, &history->closing, link) {
        list_remove(&shard->link);
        shard_free(shard);
    }
    list_for_each (look, &history->looking, link) {
        list_remove(&look->link);
        free(look);
    }
    map_clear(&history->shards_by_name);
}
