/*
 * Accounts that enter rooms: their `all` streams, on whatever instance, have to begin to carry the room, whether or not
 * its shard is followed there. The owner tells of members that were added, unconfirmed and counted; whoever creates a
 * room announces its founders and answers when the broker has confirmed it. The two take different channels, so each
 * has a counter of its own; a beat names of the announcements only those that are confirmed.
 */
#include <stdlib.h>

#include "feed_impl.h"

#define MARGIN_MS 5000 /* clocks of two instances, and a commit that is told late */

struct announcing {
    struct list link;         /* feed->announcing, in the order of their counters */
    struct list awaited_link; /* feed->awaited, in the same order */
    struct amqp_publish publish;
    struct feed *feed;                 /* NULL: closed meanwhile */
    struct history_announce *announce; /* NULL: it does not wait any more */
    uint64_t counter, due_ms;
};

/* --------------------------------------------------------------------------------------------------------- telling */

static void begin(struct feed *feed, struct buf *body, enum feed_way way)
{
    feed_write_head(body, FEED_ENTERED, cluster_self(feed->history->cluster));
    feed_write_entered_head(body, way, ++feed->entered[way]);
}

struct joined {
    struct buf names;
    size_t count;
};

static void add_joined(void *arg, struct str account)
{
    struct joined *joined = arg;

    if (account.n > ACCOUNT_MAX_BYTES)
        return;
    feed_write_name(&joined->names, account);
    joined->count++;
}

void feed_joined(struct feed *feed, struct str room_id, const struct entry *entry)
{
    struct joined joined = {0};
    struct buf body = {0};

    entry_accounts(entry, add_joined, &joined);
    if (joined.count) {
        begin(feed, &body, FEED_WAY_JOINED);
        feed_write_entered(&body, room_id, (struct cursor){entry->epoch, entry->seq - 1}, joined.count);
        buf_add_str(&body, buf_str(&joined.names));
        feed_publish(feed, "account", FEED_ENTERED, &body);
    }
    buf_clear(&joined.names);
    buf_clear(&body);
}

static void answer(struct announcing *announcing, enum err err)
{
    struct history_announce *announce = announcing->announce;

    announcing->announce = NULL;
    list_remove(&announcing->awaited_link);
    announce->impl = NULL;
    announce->done(announce, err);
}

static void on_published(struct amqp_publish *publish, enum err err)
{
    struct announcing *announcing = container_of(publish, struct announcing, publish);

    if (announcing->feed) {
        list_remove(&announcing->link);
        if (announcing->announce)
            answer(announcing, err == ERR_LOST || err == ERR_TIMEOUT ? ERR_TIMEOUT : err ? ERR_UNAVAILABLE : ERR_OK);
    }
    free(announcing);
}

/* Whoever waits for the broker longer than that is answered; the news goes out all the same, as soon as it can. */
static void answer_late(struct feed *feed)
{
    uint64_t now = uv_now(feed->history->loop);

    while (!list_empty(&feed->awaited)) {
        struct announcing *first = list_entry(feed->awaited.next, struct announcing, awaited_link);

        if (first->due_ms > now) {
            feed_wake(feed, first->due_ms - now);
            return;
        }
        answer(first, ERR_TIMEOUT);
    }
}

void history_announce_entered(struct history *history, struct history_announce *announce)
{
    struct feed *feed = history->feed;
    struct announcing *announcing = xcalloc(1, sizeof *announcing);
    struct buf body = {0};

    announcing->feed = feed;
    announcing->announce = announce;
    announcing->publish.done = on_published;
    announcing->due_ms = uv_now(history->loop) + HISTORY_ANNOUNCE_MS;
    announce->impl = announcing;
    list_push_back(&feed->announcing, &announcing->link);
    list_push_back(&feed->awaited, &announcing->awaited_link);
    feed_wake(feed, HISTORY_ANNOUNCE_MS);
    begin(feed, &body, FEED_WAY_ANNOUNCED);
    announcing->counter = feed->entered[FEED_WAY_ANNOUNCED];
    feed_write_entered(&body, announce->room_id, announce->after, announce->account_count);
    for (size_t i = 0; i < announce->account_count; i++)
        feed_write_name(&body, announce->accounts[i]);
    amqp_publish(history->publish, &announcing->publish,
        &(struct amqp_message){
            .exchange = STR(FEED_EXCHANGE),
            .routing_key = STR("account"),
            .content_type = STR("application/x-roomd-feed"),
            .body = buf_str(&body),
            .transient = true,
        });
    feed->count.out[FEED_ENTERED]++;
    buf_clear(&body);
    if (history->events.entered)
        history->events.entered(
            history->events.arg, announce->room_id, announce->accounts, announce->account_count, announce->after);
}

void entered_counters(const struct feed *feed, uint64_t counters[FEED_WAYS])
{
    counters[FEED_WAY_JOINED] = feed->entered[FEED_WAY_JOINED];
    counters[FEED_WAY_ANNOUNCED] = list_empty(&feed->announcing)
                                       ? feed->entered[FEED_WAY_ANNOUNCED]
                                       : list_entry(feed->announcing.next, struct announcing, link)->counter - 1;
}

void entered_close(struct feed *feed)
{
    struct announcing *announcing;

    list_for_each (announcing, &feed->announcing, link) { /* its link answers it still */
        list_remove(&announcing->link);
        if (announcing->announce)
            announcing->announce->impl = NULL;
        announcing->feed = NULL;
    }
}

/* --------------------------------------------------------------------------------------------------------- hearing */

static void miss(struct feed *feed, uint64_t complete_ms)
{
    uint64_t since = complete_ms > MARGIN_MS ? complete_ms - MARGIN_MS : 1;

    if (!feed->entered_missed_since || since < feed->entered_missed_since)
        feed->entered_missed_since = since;
}

/* As of now all that this peer has told is known. */
static void complete(struct feed *feed, struct feed_peer *peer, enum feed_way way, uint64_t counter)
{
    peer->entered[way].known = true;
    peer->entered[way].counter = counter;
    peer->complete_ms = history_now_ms(feed->history);
}

/* What a peer that was never heard before has told cannot be older than itself, and concerns no stream that was here
 * before we were. */
static uint64_t first_ms(const struct feed *feed, const struct feed_peer *peer)
{
    struct id128 id;
    uint64_t born_ms = 0;

    if (ulid_read(&id, str_of(peer->id)))
        for (int i = 0; i < 6; i++)
            born_ms = born_ms << 8 | id.b[i];
    return born_ms > feed->connected_ms ? born_ms : feed->connected_ms;
}

/* A peer not heard before is new when it begins with its first one; else it was there while we did not hear it. */
static void hear(struct feed *feed, struct feed_peer *peer, enum feed_way way, uint64_t counter, uint64_t expected)
{
    if (counter != expected || (!peer->entered[way].known && peer->complete_ms)) {
        feed->count.entered_holes += peer->entered[way].known;
        miss(feed, peer->complete_ms ? peer->complete_ms : first_ms(feed, peer));
    }
    complete(feed, peer, way, counter);
}

void entered_beat(struct feed *feed, struct feed_peer *peer, const uint64_t counters[FEED_WAYS])
{
    uint64_t was_complete_ms = peer->complete_ms;

    for (int i = 0; i < FEED_WAYS; i++) {
        enum feed_way way = (enum feed_way)i;
        bool known = peer->entered[way].known;

        /* Announcements that are not confirmed yet may have come before the beat. */
        if (known && way == FEED_WAY_ANNOUNCED && counters[way] <= peer->entered[way].counter)
            continue;
        peer->complete_ms = was_complete_ms; /* the ways are one as to time */
        hear(feed, peer, way, counters[way], known ? peer->entered[way].counter : 0);
    }
    peer->complete_ms = history_now_ms(feed->history);
}

static void tell(struct feed *feed, const struct feed_entered *entered)
{
    const struct history_events *events = &feed->history->events;
    struct str *accounts, rest = entered->accounts;
    size_t count = 0;

    if (!events->entered || !entered->count)
        return;
    accounts = xcalloc(entered->count, sizeof *accounts);
    while (count < entered->count && feed_next_name(&rest, &accounts[count]))
        count++;
    events->entered(events->arg, entered->room_id, accounts, count, entered->after);
    free(accounts);
}

void entered_heard(struct feed *feed, struct feed_peer *peer, const struct feed_message *message)
{
    struct str rest = message->items;
    struct feed_entered entered;
    uint64_t known = peer->entered[message->way].known ? peer->entered[message->way].counter : 0;

    /* What was sent again after a broken connection may come again. */
    if (!peer->entered[message->way].known || message->counter > known)
        hear(feed, peer, message->way, message->counter, known + 1);
    while (feed_next_entered(&rest, &entered))
        tell(feed, &entered);
}

/* Who has gone meanwhile cannot tell any more. */
void entered_opened(struct feed *feed)
{
    if (feed->count.opened)
        miss(feed, feed->complete_ms);
}

void entered_turn(struct feed *feed)
{
    const struct history_events *events = &feed->history->events;
    uint64_t now = uv_now(feed->history->loop), since = feed->entered_missed_since;

    answer_late(feed);
    if (!since)
        return;
    if (feed->entered_missed_ms && now - feed->entered_missed_ms < FEED_MISSED_APART_MS) {
        feed_wake(feed, FEED_MISSED_APART_MS - (now - feed->entered_missed_ms));
        return;
    }
    feed->entered_missed_since = 0;
    feed->entered_missed_ms = now;
    if (events->entered_missed)
        events->entered_missed(events->arg, since);
}
