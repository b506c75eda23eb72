/*
 * Beats: once a second, and at once when it matters, each instance tells the others whether its database is well, what
 * it holds, how far it has counted, and what it follows. So an owner knows whether anybody wants its entries, a reader
 * whether it has all of them, and an owner that is cut off from the database that others are not.
 *
 * Who begins to follow a shard binds its queue first, then says so; the owner tells from then on, and answers with a
 * beat at once. That beat's counter is what the reader goes on from, after it has looked at the heads: nothing falls in
 * between.
 */
#include "feed_impl.h"

#include <inttypes.h>
#include <stdlib.h>

#include "room/base/log.h"

#define FORGET_MS 600000 /* a peer that was silent for so long; what it had counted is not remembered */
/* Without the database, while others have it, for so many times of a lease: they have taken ours by then. */
#define CUT_OFF_LEASES 2

static void on_timer(uv_timer_t *timer);
static void beat_send(struct feed *feed);
static void peers_sweep(struct feed *feed);
static void look_at_database(struct feed *feed);

/* --------------------------------------------------------------------------------------------------------- sending */

void beat_begin(struct feed *feed)
{
    uv_timer_start(feed->beat_timer, on_timer, 0, FEED_BEAT_MS);
}

void beat_soon(struct feed *feed)
{
    uint64_t since = uv_now(feed->history->loop) - feed->beat_sent_ms;
    uint64_t wait = feed->beat_sent_ms && since < FEED_BEATS_APART_MS ? FEED_BEATS_APART_MS - since : 0;

    if (!feed->history->cluster)
        return; /* the first one comes when it is there */
    if (!uv_is_active((uv_handle_t *)feed->beat_timer) || uv_timer_get_due_in(feed->beat_timer) > wait)
        uv_timer_start(feed->beat_timer, on_timer, wait, FEED_BEAT_MS);
}

static void on_timer(uv_timer_t *timer)
{
    struct feed *feed = timer->data;

    look_at_database(feed);
    peers_sweep(feed);
    feed_follow_sweep(feed);
    beat_send(feed);
}

static void write_held(struct feed *feed, struct buf *body)
{
    uint64_t counters[FEED_WAYS];
    const struct shard *shard;
    size_t count = 0;

    list_for_each (shard, &feed->history->shards, link)
        count++;
    entered_counters(feed, counters);
    feed_write_beat_head(body, !feed->database_lost_ms, counters, count);
    list_for_each (shard, &feed->history->shards, link) {
        const struct feed_held held = {
            .shard = str_of(shard->name),
            .epoch = shard->epoch,
            .counter = shard->feed->told,
            .flags =
                (shard->state == SHARD_RUNNING ? FEED_HELD_CONSUMES : 0) | (shard->feed->telling ? FEED_HELD_TELLS : 0),
        };

        feed_write_held(body, &held);
    }
}

static void write_followed(struct feed *feed, struct buf *body)
{
    struct map_link *link;
    size_t count = 0;

    for (link = map_next(&feed->shards, NULL); link; link = map_next(&feed->shards, link))
        count += container_of(link, struct feed_shard, by_name)->bound;
    feed_write_count(body, count);
    for (link = map_next(&feed->shards, NULL); link; link = map_next(&feed->shards, link)) {
        const struct feed_shard *shard = container_of(link, struct feed_shard, by_name);

        if (shard->bound)
            feed_write_name(body, str_of(shard->name));
    }
}

/* What was shown before it leaves before it: the counters say what has been sent. */
static void beat_send(struct feed *feed)
{
    struct buf body = {0};

    if (!feed->history->publish || !amqp_link_up(feed->history->publish) || topology_missing(feed->history->topology))
        return;
    feed->beat_sent_ms = uv_now(feed->history->loop);
    feed_write_head(&body, FEED_BEAT, cluster_self(feed->history->cluster));
    write_held(feed, &body);
    write_followed(feed, &body);
    feed_publish(feed, "beat", FEED_BEAT, &body);
    buf_clear(&body);
}

/* ----------------------------------------------------------------------------------------------------------- peers */

static bool is_peer(const struct map_link *link, const void *key)
{
    return str_is(*(const struct str *)key, container_of(link, const struct feed_peer, by_id)->id);
}

struct feed_peer *feed_peer_get(struct feed *feed, struct str id)
{
    uint64_t hash = map_hash(id.p, id.n);
    struct map_link *link = map_find(&feed->peers, hash, is_peer, &id);
    struct feed_peer *peer;

    if (link)
        return container_of(link, struct feed_peer, by_id);
    peer = xcalloc(1, sizeof *peer);
    memcpy(peer->id, id.p, FEED_INSTANCE_BYTES);
    peer->heard_ms = uv_now(feed->history->loop);
    map_insert(&feed->peers, hash, &peer->by_id);
    return peer;
}

static void follows_nothing(struct feed_peer *peer)
{
    for (size_t i = 0; i < peer->follow_count; i++) {
        peer->follows[i]->followers--;
        feed_tell(peer->follows[i]);
    }
    peer->follow_count = 0;
    buf_reset(&peer->followed);
}

static void peer_free(struct feed *feed, struct feed_peer *peer)
{
    map_remove(&feed->peers, &peer->by_id);
    buf_clear(&peer->followed);
    free(peer->follows);
    free(peer);
}

void feed_peers_free(struct feed *feed)
{
    struct map_link *link;

    while ((link = map_next(&feed->peers, NULL)))
        peer_free(feed, container_of(link, struct feed_peer, by_id));
    map_clear(&feed->peers);
}

void feed_peers_void(struct feed *feed)
{
    for (struct map_link *link = map_next(&feed->peers, NULL); link; link = map_next(&feed->peers, link))
        for (int way = 0; way < FEED_WAYS; way++)
            container_of(link, struct feed_peer, by_id)->entered[way].known = false;
}

static bool heard_within(const struct feed *feed, const struct feed_peer *peer, uint64_t ms)
{
    return peer->beats && uv_now(feed->history->loop) - peer->heard_ms < ms;
}

static void peers_sweep(struct feed *feed)
{
    struct map_link *link, *next;

    for (link = map_next(&feed->peers, NULL); link; link = next) {
        struct feed_peer *peer = container_of(link, struct feed_peer, by_id);

        next = map_next(&feed->peers, link);
        if (!heard_within(feed, peer, FEED_GONE_MS))
            follows_nothing(peer);
        if (uv_now(feed->history->loop) - peer->heard_ms >= FORGET_MS)
            peer_free(feed, peer);
    }
}

size_t feed_peers_alive(const struct feed *feed)
{
    size_t count = 0;

    for (struct map_link *link = map_next(&feed->peers, NULL); link; link = map_next(&feed->peers, link))
        count += heard_within(feed, container_of(link, struct feed_peer, by_id), FEED_GONE_MS);
    return count;
}

/* --------------------------------------------------------------------------------------------------------- hearing */

static bool was_in(const struct feed_peer *peer, const struct feed_shard *shard, size_t before)
{
    for (size_t i = 0; i < before; i++)
        if (peer->follows[i] == shard)
            return true;
    return false;
}

/* New ones are added behind the old ones, which go then: a shard that stays followed is told without a break. */
static void take_followed(struct feed *feed, struct feed_peer *peer, const struct feed_beat *beat)
{
    size_t before = peer->follow_count, count = before;
    struct str rest = beat->followed, name;
    bool new_to_us = false, all_known = true;

    if (str_eq(buf_str(&peer->followed), beat->followed))
        return;
    peer->follows = xrealloc(peer->follows, (before + beat->followed_count) * sizeof *peer->follows);
    while (feed_next_name(&rest, &name)) {
        struct feed_shard *shard;

        if (!cluster_find_shard(feed->history->cluster, name)) {
            all_known = false;
            continue;
        }
        shard = feed_shard_get(feed, name);
        new_to_us |= shard->ours && !was_in(peer, shard, before);
        shard->followers++;
        peer->follows[count++] = shard;
        feed_tell(shard);
    }
    for (size_t i = 0; i < before; i++) {
        peer->follows[i]->followers--;
        feed_tell(peer->follows[i]);
    }
    memmove(peer->follows, peer->follows + before, (count - before) * sizeof *peer->follows);
    peer->follow_count = count - before;
    buf_reset(&peer->followed);
    if (all_known) /* else the same list says more once the registry has been read again */
        buf_add_str(&peer->followed, beat->followed);
    if (new_to_us)
        beat_soon(feed);
}

static void take_held(struct feed *feed, const struct feed_held *held)
{
    struct feed_shard *from = feed_shard_find(feed, held->shard);

    if (!from && cluster_find_shard(feed->history->cluster, held->shard))
        from = feed_shard_get(feed, held->shard);
    if (!from || !feed_heard_epoch(from, held->epoch))
        return;
    from->tells = held->flags & FEED_HELD_TELLS;
    from->heard_ms = uv_now(feed->history->loop);
    if (from->bound)
        feed_heard_counter(from, held->counter, false);
}

void beat_heard(struct feed *feed, struct feed_peer *peer, const struct feed_beat *beat)
{
    struct str rest = beat->held;
    struct feed_held held;

    if (!peer->beats)
        log_info("feed.peer", "instance=%s", peer->id);
    peer->beats = true;
    peer->database_ok = beat->database_ok;
    peer->heard_ms = uv_now(feed->history->loop);
    feed->complete_ms = history_now_ms(feed->history);
    entered_beat(feed, peer, beat->entered);
    take_followed(feed, peer, beat);
    while (feed_next_held(&rest, &held))
        take_held(feed, &held);
}

/* ------------------------------------------------------------------------------------------- cut off, alone of all */

static bool others_are_well(const struct feed *feed)
{
    for (struct map_link *link = map_next(&feed->peers, NULL); link; link = map_next(&feed->peers, link)) {
        const struct feed_peer *peer = container_of(link, struct feed_peer, by_id);

        if (peer->database_ok && heard_within(feed, peer, FEED_HEARD_MS))
            return true;
    }
    return false;
}

bool feed_says_cut_off(const struct feed *feed)
{
    uint64_t away_ms = feed->database_lost_ms ? uv_now(feed->history->loop) - feed->database_lost_ms : 0;

    return away_ms >= CUT_OFF_LEASES * (uint64_t)feed->history->config->lease_ttl_ms && away_ms &&
           others_are_well(feed);
}

/* An owner without the database goes on with what it is fed, because mostly it is away for everybody. When it is not,
 * the others have taken the leases and wait for our channels to be closed. */
static void look_at_database(struct feed *feed)
{
    struct shard *shard;

    if (cluster_database_ok(feed->history->cluster)) {
        feed->database_lost_ms = 0;
        return;
    }
    if (!feed->database_lost_ms)
        feed->database_lost_ms = uv_now(feed->history->loop);
    if (!feed_says_cut_off(feed))
        return;
    list_for_each (shard, &feed->history->shards, link)
        if (shard->state == SHARD_SUBSCRIBING || shard->state == SHARD_RUNNING) {
            feed->count.given_up++;
            shard_give_back(shard, "the database is away from here, not from others");
        }
}
