/*
 * What comes over the feed: to the streams, to callers that wait; and what was missed.
 *
 * A shard's news are believed under the highest epoch heard of only. Its counter tells whether all of them came: the
 * first one after this instance began to follow, one under a higher epoch and one that is not the next say that
 * somebody has to look at the heads in the database, once, and then all goes on from there.
 */
#include "feed_impl.h"

#include <inttypes.h>
#include <stdlib.h>

#include "reader.h"
#include "room/base/log.h"

void feed_show(struct history *history, const struct feed_item *item)
{
    if (history->events.ephemeral)
        history->events.ephemeral(history->events.arg, item->to == FEED_TO_ROOM ? item->name : STR(""),
            item->to == FEED_TO_ACCOUNT ? item->name : STR(""), item->json);
}

/* ------------------------------------------------------------------------------------------- epochs and counters */

static uint64_t lease_epoch(const struct feed_shard *from)
{
    const struct cluster_shard *lease = cluster_find_shard(from->feed->history->cluster, str_of(from->name));

    return lease ? lease->epoch : 0;
}

bool feed_heard_epoch(struct feed_shard *from, uint64_t epoch)
{
    struct history *history = from->feed->history;
    struct shard *own = history_find_shard(history, str_of(from->name));

    if (epoch < from->epoch || epoch < lease_epoch(from) || (own && epoch <= own->epoch))
        return false;
    if (epoch == from->epoch)
        return true;
    from->epoch = epoch;
    from->known = from->tells = false;
    if (own) /* said again with each beat of the new owner, which waits for our channel to be closed */
        shard_lost(own, "another instance holds it under a higher epoch");
    if (history->events.epoch)
        history->events.epoch(history->events.arg, str_of(from->name), epoch, false);
    reader_epoch(history->reader, str_of(from->name), epoch, false);
    return true;
}

void feed_heard_counter(struct feed_shard *from, uint64_t counter, bool next)
{
    bool expected = from->known && counter == from->counter + next;

    if (from->known && !expected) {
        from->feed->count.holes++;
        log_debug("feed.hole", "shard=%s counter=%" PRIu64 " after=%" PRIu64, from->name, counter, from->counter);
    }
    from->known = true;
    from->counter = counter;
    if (!expected)
        feed_miss(from);
}

void feed_miss(struct feed_shard *from)
{
    if (list_empty(&from->missed_link))
        list_push_back(&from->feed->missed, &from->missed_link);
}

/* At most so often for one shard: an owner that drops every other message must not make us read all the time. */
void feed_in_turn(struct feed *feed)
{
    struct history *history = feed->history;
    uint64_t now = uv_now(history->loop);
    struct feed_shard *from;
    struct list due;

    list_init(&due);
    list_for_each (from, &feed->missed, missed_link) {
        uint64_t since = now - from->missed_ms;

        if (from->missed_ms && since < FEED_MISSED_APART_MS) {
            feed_wake(feed, FEED_MISSED_APART_MS - since);
            continue;
        }
        list_remove(&from->missed_link);
        list_push_back(&due, &from->missed_link);
    }
    while (!list_empty(&due)) {
        from = list_entry(list_pop_front(&due), struct feed_shard, missed_link);
        from->missed_ms = now;
        if (history->events.missed)
            history->events.missed(history->events.arg, str_of(from->name));
        reader_missed(history->reader, str_of(from->name));
    }
}

/* ------------------------------------------------------------------------------------------------ what owners show */

static struct entry *entry_of(const struct feed_log_item *item)
{
    struct entry *entry = xmalloc(sizeof *entry + item->json.n);

    entry->holders = 1;
    entry->n = (uint32_t)item->json.n;
    entry->room_no = item->room_no;
    entry->epoch = item->epoch;
    entry->seq = item->seq;
    entry->at = item->at;
    entry->counted = item->counted;
    entry->type = item->type;
    memcpy(entry->json, item->json.p, item->json.n);
    return entry;
}

static void take_entry(struct feed *feed, const struct feed_log_item *item)
{
    const struct history_events *events = &feed->history->events;
    struct entry *entry;

    if (!events->shown || (events->listens && !events->listens(events->arg, item->room_id))) {
        feed->count.entries_skipped++;
        return;
    }
    feed->count.entries_received++;
    entry = entry_of(item);
    events->shown(events->arg, item->room_id, entry, item->what == FEED_LOG_DURABLE);
    entry_drop(entry);
}

static void take_mark(struct feed *feed, const struct feed_log_item *item)
{
    const struct history_events *events = &feed->history->events;

    if (events->durable)
        events->durable(events->arg, item->room_id, item->seq);
    reader_durable(feed->history->reader, item->room_id, item->room_no, item->seq, item->epoch);
}

static void take_log(struct feed *feed, const struct feed_message *message)
{
    struct feed_shard *from = feed_shard_find(feed, message->shard);
    struct str rest = message->items;
    struct feed_log_item item;

    if (!from || !from->bound)
        return; /* not followed any more; or not yet: the beat tells what to begin with */
    if (!feed_heard_epoch(from, message->epoch)) {
        feed->count.stale++;
        return;
    }
    feed_heard_counter(from, message->counter, true);
    while (feed_next_log(&rest, &item)) {
        if (item.what == FEED_LOG_MARK)
            take_mark(feed, &item);
        else
            take_entry(feed, &item);
    }
}

/* -------------------------------------------------------------------------------------------------------- the rest */

static void take_told(struct feed *feed, struct str items)
{
    struct feed_item item;

    while (feed_next(&items, &item)) {
        feed->count.received++;
        feed_show(feed->history, &item);
    }
}

static void take_settled(struct feed *feed, struct str items)
{
    struct feed_settled settled;

    while (feed_next_settled(&items, &settled))
        calls_told(feed->history->calls, &settled);
}

void feed_delivered(void *owner, const struct amqp_delivery *delivery)
{
    struct feed *feed = owner;
    struct feed_message message;
    enum feed_reading reading;

    if (feed_is_from(delivery->body, cluster_self(feed->history->cluster))) {
        feed->count.own++; /* was shown when it was told */
        return;
    }
    reading = feed_read(delivery->body, &message);
    if (reading == FEED_UNKNOWN) {
        feed->count.unknown++;
        return;
    }
    if (reading == FEED_BAD || delivery->body_bytes > delivery->body.n) {
        feed->count.bad++;
        return;
    }
    feed->count.in[message.kind]++;
    switch (message.kind) {
    case FEED_TOLD:
        take_told(feed, message.items);
        break;
    case FEED_LOG:
        take_log(feed, &message);
        break;
    case FEED_BEAT:
        beat_heard(feed, feed_peer_get(feed, message.sender), &message.beat);
        break;
    case FEED_ENTERED:
        entered_heard(feed, feed_peer_get(feed, message.sender), &message);
        break;
    case FEED_SETTLED:
        take_settled(feed, message.items);
        break;
    case FEED_ASK:
        survey_asked(feed, &message);
        break;
    case FEED_ANSWER:
        survey_answered(feed, &message);
        break;
    case FEED_KINDS:
        break;
    }
}
