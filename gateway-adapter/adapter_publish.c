/*
 * The publisher: messages wait, fly, come back or are spooled, and each ends exactly once.
 *
 *   roomd_send -> QUEUED -> FLYING -confirm-> settled
 *                   |  ^      |  \-nack-> NACKED -its turn-> FLYING
 *                   |  \-lost-/
 *   (room held) -> HELD -room is free-> QUEUED        any but settled -> spooled (settled for the caller)
 *
 * The order of a room: a message that was refused (nack), or lies in the spool, holds its room; what comes later waits.
 * What flies already is the broker's: it confirms or refuses each. Callbacks are gathered and handed out at the end of
 * a turn, so that none comes in the middle of something.
 */
#include "adapter_link.h"
#include "adapter_message.h"
#include "adapter_spool.h"

#include <stdio.h>
#include <stdlib.h>

enum {
    WINDOW = 512,        /* messages without a confirm on a link: more only adds latency (measured: 200 are enough) */
    REPLAY_WINDOW = 128, /* of them, out of the spool */
    UNSENT_MAX_BYTES = 1 << 20,
    ROOM_BUCKETS = 4096,
    RETRY_MIN_MS = 100, /* after all brokers were tried in vain; doubles */
    RETRY_MAX_MS = 2000,
    NACK_MIN_MS = 20, /* after a refusal of the same message; doubles */
    NACK_MAX_MS = 1000,
    STEADY_MS = 5000, /* a link that lived shorter counts as a failed attempt */
    RETURN_MS = 3000, /* how often the brokers before the one in use are tried */
    DRAIN_MS = 2000   /* how long the old link may take to confirm before the better one is used */
};

enum place { QUEUED, FLYING, NACKED, HELD, SETTLED };

struct message {
    struct roomd_link link; /* by place: the queue, none, its room's nacked or held, notices */
    struct roomd_link all;  /* the publisher's `all`, or `replays` */
    struct room *room;
    struct roomd_send *send; /* NULL: out of the spool */
    enum place place;
    enum roomd_code code;
    uint64_t tag, spool_end;
    int64_t deadline, retry_at;
    uint32_t nacks;
    bool sent, returned, transient, retried; /* retried: it holds its room */
    char message_id[27];
    size_t body_n;
    char *body;
};

struct room {
    struct roomd_link bucket;
    struct roomd_link nacked, held; /* messages, in order */
    uint32_t messages, retried, spooled;
    bool retry_flies; /* one refused message at a time */
    char shard[ADAPTER_SHARD_MAX_BYTES + 1], id[ADAPTER_ROOM_ID_MAX_BYTES + 1];
};

struct adapter_publisher {
    struct roomd_client *client;
    struct adapter_address brokers[ADAPTER_ADDRESSES_MAX];
    size_t broker_count, next_broker;
    struct adapter_link *link, *better; /* better: to an earlier broker; takes over when `link` has drained */
    int64_t link_up_at, connect_at, return_at, drain_until;
    int64_t trouble_since; /* -1: the broker takes messages */
    uint32_t failures;
    char problem[640];

    struct roomd_link all, queue, done; /* all: in the order of the sends; done: of roomd_send */
    struct roomd_link replays, notices;
    struct message *flying[WINDOW]; /* by tag modulo; a link's tags begin at 1 */
    uint64_t oldest_tag;            /* no smaller one flies */
    uint32_t flying_count, replay_count, replay_nacked, nacked_count;
    struct roomd_link rooms[ROOM_BUCKETS];
    bool spools;
    struct adapter_spool spool;
    struct roomd_counters counters;
    struct adapter_buf scratch;
};

static void link_up(struct adapter_link *link);
static void link_confirmed(struct adapter_link *link, uint64_t tag, bool multiple, bool accepted);
static void link_returned(struct adapter_link *link, uint64_t tag);
static void link_refused(struct adapter_link *link, unsigned code);
static void link_broken(struct adapter_link *link);
static const struct adapter_link_events link_events = {
    link_up, link_confirmed, link_returned, link_refused, link_broken};

/* ------------------------------------------------------------------ rooms */

static struct roomd_link *room_bucket(struct adapter_publisher *publisher, const char *id)
{
    uint32_t hash = 2166136261u; /* FNV-1a */

    for (; *id; id++)
        hash = (hash ^ (unsigned char)*id) * 16777619u;
    return &publisher->rooms[hash % ROOM_BUCKETS];
}

static struct room *room_get(struct adapter_publisher *publisher, const char *id)
{
    struct roomd_link *bucket = room_bucket(publisher, id);
    struct room *room;

    for (struct roomd_link *at = bucket->next; at != bucket; at = at->next) {
        room = container_of(at, struct room, bucket);
        if (strcmp(room->id, id) == 0)
            return room;
    }
    room = calloc(1, sizeof(*room));
    if (!room)
        return NULL;
    snprintf(room->id, sizeof(room->id), "%s", id);
    snprintf(room->shard, sizeof(room->shard), "%.*s", (int)strcspn(id, "."), id);
    adapter_list_init(&room->nacked);
    adapter_list_init(&room->held);
    adapter_list_push(bucket, &room->bucket);
    return room;
}

static void room_drop(struct room *room)
{
    if (room->messages || room->spooled)
        return;
    adapter_list_remove(&room->bucket);
    free(room);
}

static bool room_is_held(const struct room *room)
{
    return room->retried > 0 || room->spooled > 0;
}

static void room_release(struct adapter_publisher *publisher, struct room *room)
{
    if (room_is_held(room))
        return;
    for (struct roomd_link *at = room->held.next; at != &room->held; at = at->next)
        container_of(at, struct message, link)->place = QUEUED;
    adapter_list_splice(&publisher->queue, &room->held);
}

/* Messages that wait in the queue although their room is held by now. */
static void queue_hold(struct adapter_publisher *publisher)
{
    struct roomd_link *at, *next;

    for (at = publisher->queue.next; at != &publisher->queue; at = next) {
        struct message *message = container_of(at, struct message, link);

        next = at->next;
        if (message->send && room_is_held(message->room)) {
            adapter_list_remove(&message->link);
            adapter_list_push(&message->room->held, &message->link);
            message->place = HELD;
        }
    }
}

/* ------------------------------------------------------------------ a message's ends */

static struct message *message_new(
    struct adapter_publisher *publisher, const char *room_id, const char *message_id, const char *body, size_t n)
{
    struct room *room = room_get(publisher, room_id);
    struct message *message = room ? calloc(1, sizeof(*message)) : NULL;

    if (message && !(message->body = malloc(n ? n : 1))) {
        free(message);
        message = NULL;
    }
    if (!message) {
        if (room)
            room_drop(room);
        return NULL;
    }
    memcpy(message->body, body, n);
    message->body_n = n;
    message->room = room;
    room->messages++;
    snprintf(message->message_id, sizeof(message->message_id), "%s", message_id);
    adapter_list_init(&message->link);
    adapter_list_init(&message->all);
    return message;
}

static void message_free(struct message *message)
{
    free(message->body);
    free(message);
}

/* Out of where it is; the room is not released yet. */
static void message_detach(struct adapter_publisher *publisher, struct message *message)
{
    if (message->place == FLYING) {
        publisher->flying[message->tag % WINDOW] = NULL;
        publisher->flying_count--;
        if (message->retried)
            message->room->retry_flies = false;
    } else if (message->place == NACKED) {
        publisher->nacked_count--;
        publisher->replay_nacked -= !message->send;
    }
    adapter_list_remove(&message->link);
}

static void message_unretry(struct message *message)
{
    message->room->retried -= message->retried;
    message->retried = false;
}

static void send_finish(struct adapter_publisher *publisher, struct roomd_send *send, enum roomd_code code,
    const char *field, const char *text)
{
    send->code = code;
    send->field = field;
    send->text = text;
    adapter_list_push(&publisher->done, &send->private_link);
    adapter_client_kick(publisher->client);
}

static const char *sentence_of(enum roomd_code code)
{
    switch (code) {
    case ROOMD_OK:
        return "confirmed";
    case ROOMD_NO_SUCH_ROOM:
        return "no queue takes messages for this room: its shard does not exist";
    case ROOMD_SPOOLED:
        return "on this machine's disk, to be sent when the broker is back";
    case ROOMD_UNAVAILABLE:
        return "it could not be sent by its deadline: the brokers are away, blocked, or refuse it";
    case ROOMD_TIMEOUT:
        return "it was sent, and the broker did not confirm by its deadline; again with the same client_msg_id is "
               "right";
    case ROOMD_FORBIDDEN:
        return "the broker's user may not write the exchange roomd.room";
    default:
        return "the client was closed before the broker confirmed";
    }
}

/* Replayed messages end in the order of the file, whatever order their confirms came in. */
static void replays_advance(struct adapter_publisher *publisher)
{
    while (!adapter_list_empty(&publisher->replays)) {
        struct message *message = container_of(publisher->replays.next, struct message, all);

        if (message->place != SETTLED)
            break;
        adapter_list_remove(&message->all);
        publisher->replay_count--;
        adapter_spool_settled(&publisher->spool, message->spool_end);
        adapter_list_push(&publisher->notices, &message->link);
    }
    if (adapter_list_empty(&publisher->replays) && publisher->spool.next > publisher->spool.done &&
        publisher->spool.next == publisher->spool.end)
        adapter_spool_settled(&publisher->spool, publisher->spool.end); /* behind damage that ends the file */
    adapter_client_kick(publisher->client);
}

static void message_settle(struct adapter_publisher *publisher, struct message *message, enum roomd_code code)
{
    struct room *room = message->room;

    message_detach(publisher, message);
    message_unretry(message);
    message->place = SETTLED;
    message->code = code;
    room->messages--;
    message->room = NULL;
    if (!message->send) {
        room->spooled--;
        publisher->counters.replayed_total++;
        replays_advance(publisher);
    } else {
        adapter_list_remove(&message->all);
        publisher->counters.pending--;
        publisher->counters.pending_bytes -= message->body_n;
        send_finish(publisher, message->send, code, NULL, sentence_of(code));
        message_free(message);
    }
    room_release(publisher, room);
    room_drop(room);
}

/* ------------------------------------------------------------------ sending */

static bool publisher_may_send(const struct adapter_publisher *publisher)
{
    return publisher->link && publisher->link->up && !publisher->link->blocked &&
           !(publisher->better && publisher->better->up);
}

static bool window_has_room(const struct adapter_publisher *publisher)
{
    uint64_t next = publisher->link->last_tag + 1;

    return next - publisher->oldest_tag < WINDOW && adapter_link_unsent(publisher->link) < UNSENT_MAX_BYTES;
}

/* false: no memory; the message stays where it is. */
static bool message_fly(struct adapter_publisher *publisher, struct message *message)
{
    uint64_t tag = adapter_link_publish(
        publisher->link, message->room->shard, message->message_id, message->transient, message->body, message->body_n);

    if (!tag) { /* half a message may be in the buffer: this link is over, on the next turn */
        publisher->link->deadline = 0;
        publisher->link->up = false;
        return false;
    }
    publisher->counters.resent_total += message->sent;
    adapter_list_remove(&message->link);
    message->place = FLYING;
    message->tag = tag;
    message->sent = true;
    message->returned = false;
    publisher->flying[tag % WINDOW] = message;
    publisher->flying_count++;
    return true;
}

static void pump_nacked(struct adapter_publisher *publisher)
{
    for (size_t i = 0; i < ROOM_BUCKETS && publisher->nacked_count; i++)
        for (struct roomd_link *at = publisher->rooms[i].next; at != &publisher->rooms[i]; at = at->next) {
            struct room *room = container_of(at, struct room, bucket);
            struct message *first;

            if (adapter_list_empty(&room->nacked) || room->retry_flies)
                continue;
            first = container_of(room->nacked.next, struct message, link);
            if (first->retry_at > publisher->client->now || !publisher->link->up || !window_has_room(publisher))
                continue;
            if (!message_fly(publisher, first))
                return;
            publisher->nacked_count--;
            publisher->replay_nacked -= !first->send;
            room->retry_flies = true;
        }
}

static bool replay_next(struct adapter_publisher *publisher)
{
    struct adapter_spool_record record;
    struct message *message;
    uint64_t before = publisher->spool.next;

    if (!adapter_spool_read(&publisher->spool, &record)) {
        replays_advance(publisher);
        return false;
    }
    message = message_new(publisher, record.room_id, record.message_id, record.body, record.body_n);
    if (!message) {
        publisher->spool.next = before;
        return false;
    }
    message->spool_end = record.end;
    adapter_list_push(&publisher->replays, &message->all);
    publisher->replay_count++;
    adapter_list_push(&publisher->queue, &message->link);
    return message_fly(publisher, message);
}

static void publisher_pump(struct adapter_publisher *publisher)
{
    if (!publisher_may_send(publisher))
        return;
    if (publisher->nacked_count)
        pump_nacked(publisher);
    while (publisher->spools && publisher->spool.next < publisher->spool.end && !publisher->replay_nacked &&
           publisher->replay_count < REPLAY_WINDOW && publisher->link->up && window_has_room(publisher)) {
        if (!replay_next(publisher))
            break;
    }
    while (!adapter_list_empty(&publisher->queue) && publisher->link->up && window_has_room(publisher))
        if (!message_fly(publisher, container_of(publisher->queue.next, struct message, link)))
            break;
    adapter_link_flush(publisher->link);
}

/* ------------------------------------------------------------------ what the broker says */

static void link_returned(struct adapter_link *link, uint64_t tag)
{
    struct adapter_publisher *publisher = link->publisher;
    struct message *message = publisher->flying[tag % WINDOW];

    if (link == publisher->link && message && message->tag == tag)
        message->returned = true;
}

static void message_nacked(struct adapter_publisher *publisher, struct message *message)
{
    struct room *room = message->room;
    struct roomd_link *at = room->nacked.next;
    bool first = !room_is_held(room);
    int64_t pause = NACK_MIN_MS << (message->nacks < 6 ? message->nacks : 6);

    message_detach(publisher, message);
    publisher->counters.nacked_total++;
    publisher->nacked_count++;
    publisher->replay_nacked += !message->send;
    message->nacks++;
    message->place = NACKED;
    message->retry_at = publisher->client->now + (pause < NACK_MAX_MS ? pause : NACK_MAX_MS);
    /* One that is refused again was the first of its room; others come in the order of their tags. */
    if (message->retried) {
        adapter_list_before(at, &message->link);
    } else {
        while (at != &room->nacked && (container_of(at, struct message, link)->nacks > 1 ||
                                          container_of(at, struct message, link)->tag < message->tag))
            at = at->next;
        adapter_list_before(at, &message->link);
    }
    room->retried += !message->retried;
    message->retried = true;
    if (first)
        queue_hold(publisher);
}

static void message_confirmed(struct adapter_publisher *publisher, struct message *message, bool accepted)
{
    if (!accepted) {
        message_nacked(publisher, message);
    } else if (message->returned) {
        publisher->counters.returned_total++;
        message_settle(publisher, message, ROOMD_NO_SUCH_ROOM);
    } else {
        publisher->counters.confirmed_total++;
        message_settle(publisher, message, ROOMD_OK);
    }
}

static void oldest_advance(struct adapter_publisher *publisher)
{
    while (publisher->oldest_tag <= publisher->link->last_tag && !publisher->flying[publisher->oldest_tag % WINDOW])
        publisher->oldest_tag++;
}

static void link_confirmed(struct adapter_link *link, uint64_t tag, bool multiple, bool accepted)
{
    struct adapter_publisher *publisher = link->publisher;
    uint64_t first = multiple ? publisher->oldest_tag : tag;

    if (link != publisher->link || (multiple && tag == 0))
        tag = link == publisher->link ? link->last_tag : 0;
    if (tag > link->last_tag)
        return;
    for (uint64_t one = first; one <= tag; one++) {
        struct message *message = publisher->flying[one % WINDOW];

        if (message && message->tag == one) /* else it was given up meanwhile */
            message_confirmed(publisher, message, accepted);
    }
    oldest_advance(publisher);
    adapter_client_kick(publisher->client);
}

/* All that flies was meant for one exchange, and the broker says it may not, or is not there. */
static void link_refused(struct adapter_link *link, unsigned code)
{
    struct adapter_publisher *publisher = link->publisher;

    for (size_t i = 0; link == publisher->link && i < WINDOW; i++) {
        struct message *message = publisher->flying[i];

        if (message && code == 403 && message->send)
            message_settle(publisher, message, ROOMD_FORBIDDEN);
        else if (message && code == 404)
            message->sent = false; /* no exchange yet: surely nothing happened */
    }
}

/* What flew goes back to the front, in its order. */
static void flying_requeue(struct adapter_publisher *publisher)
{
    for (uint64_t tag = publisher->link->last_tag; publisher->flying_count && tag >= publisher->oldest_tag; tag--) {
        struct message *message = publisher->flying[tag % WINDOW];
        struct room *room;

        if (!message || message->tag != tag)
            continue;
        room = message->room;
        publisher->flying[tag % WINDOW] = NULL;
        publisher->flying_count--;
        if (message->retried) {
            room->retry_flies = false;
            adapter_list_push_front(&room->nacked, &message->link);
            message->place = NACKED;
            publisher->nacked_count++;
            publisher->replay_nacked += !message->send;
        } else if (message->send && room_is_held(room)) {
            adapter_list_push_front(&room->held, &message->link);
            message->place = HELD;
        } else {
            adapter_list_push_front(&publisher->queue, &message->link);
            message->place = QUEUED;
        }
    }
}

/* ------------------------------------------------------------------ links */

static void publisher_in_trouble(struct adapter_publisher *publisher)
{
    if (publisher->trouble_since < 0)
        publisher->trouble_since = publisher->client->now;
}

static void link_use(struct adapter_publisher *publisher, struct adapter_link *link)
{
    publisher->link = link;
    publisher->oldest_tag = 1;
    publisher->link_up_at = publisher->client->now;
    publisher->return_at = publisher->client->now + RETURN_MS;
    publisher->problem[0] = '\0';
    adapter_client_kick(publisher->client);
}

static void link_up(struct adapter_link *link)
{
    struct adapter_publisher *publisher = link->publisher;

    publisher->counters.connects_total++;
    if (link == publisher->link)
        link_use(publisher, link);
    else
        publisher->drain_until = publisher->client->now + DRAIN_MS;
    adapter_client_kick(publisher->client);
}

/* The next broker at once; after the last one a pause. */
static void connect_later(struct adapter_publisher *publisher, size_t failed)
{
    int64_t pause = RETRY_MIN_MS << (publisher->failures < 5 ? publisher->failures : 5);

    publisher->connect_at = publisher->client->now;
    publisher->next_broker = failed + 1;
    if (publisher->next_broker < publisher->broker_count)
        return;
    publisher->next_broker = 0;
    publisher->failures++;
    pause = pause < RETRY_MAX_MS ? pause : RETRY_MAX_MS;
    publisher->connect_at += pause / 2 + adapter_random_below(pause / 2);
}

static void main_link_lost(struct adapter_publisher *publisher)
{
    struct adapter_link *link = publisher->link;
    bool steady = link->up && publisher->client->now - publisher->link_up_at >= STEADY_MS;
    size_t index = link->index;

    flying_requeue(publisher);
    adapter_link_free(link);
    publisher->link = NULL;
    if (publisher->better && publisher->better->up) {
        link_use(publisher, publisher->better);
        publisher->better = NULL;
        return;
    }
    publisher_in_trouble(publisher);
    if (steady) { /* one that worked: all of them again, this moment */
        publisher->failures = 0;
        publisher->next_broker = 0;
        publisher->connect_at = publisher->client->now;
    } else {
        connect_later(publisher, index);
    }
}

static void link_broken(struct adapter_link *link)
{
    struct adapter_publisher *publisher = link->publisher;
    size_t index = link->index;

    if (link == publisher->better) {
        adapter_link_free(link);
        publisher->better = NULL;
        if (publisher->link && index + 1 < publisher->link->index)
            publisher->better = adapter_link_open(
                publisher->client, publisher, &link_events, &publisher->brokers[index + 1], index + 1);
        return;
    }
    snprintf(publisher->problem, sizeof(publisher->problem), "%s", link->why);
    main_link_lost(publisher);
    adapter_client_kick(publisher->client);
}

static void publisher_connect(struct adapter_publisher *publisher)
{
    size_t index = publisher->next_broker;

    if (publisher->link || publisher->client->now < publisher->connect_at)
        return;
    publisher->link = adapter_link_open(publisher->client, publisher, &link_events, &publisher->brokers[index], index);
    if (!publisher->link) {
        snprintf(publisher->problem, sizeof(publisher->problem), "no connection could be made");
        connect_later(publisher, index);
    }
}

/* On a later broker: is an earlier one back? When it is, and what flies has landed, it takes over. */
static void publisher_return(struct adapter_publisher *publisher)
{
    int64_t now = publisher->client->now;

    if (!publisher->better && publisher->link && publisher->link->up && publisher->link->index > 0 &&
        now >= publisher->return_at) {
        publisher->return_at = now + RETURN_MS + adapter_random_below(RETURN_MS);
        publisher->better = adapter_link_open(publisher->client, publisher, &link_events, &publisher->brokers[0], 0);
    }
    if (!publisher->better || !publisher->better->up)
        return;
    if (publisher->link && publisher->flying_count && now < publisher->drain_until)
        return;
    if (publisher->link) {
        flying_requeue(publisher);
        adapter_link_free(publisher->link);
    }
    link_use(publisher, publisher->better);
    publisher->better = NULL;
}

/* ------------------------------------------------------------------ the spool */

/* One sync for all of them; only then are they called spooled. */
static void spool_commit(struct adapter_publisher *publisher, struct roomd_link *written)
{
    bool safe = !adapter_list_empty(written) && adapter_spool_commit(&publisher->spool);
    struct roomd_link *at, *next;

    for (at = written->next; safe && at != written; at = next) {
        struct message *message = container_of(at, struct message, all);

        next = at->next;
        message->room->spooled++;
        publisher->counters.spooled_total++;
        message_settle(publisher, message, ROOMD_SPOOLED);
    }
    if (safe) {
        queue_hold(publisher);
    } else { /* taken back: they are where they were, in their order */
        adapter_list_splice(written, &publisher->all);
        adapter_list_splice(&publisher->all, written);
    }
}

/* Everything, or what is due; in the order of the sends, so that each room's order is kept. */
static void publisher_spool(struct adapter_publisher *publisher, bool everything)
{
    struct roomd_link written, *at, *next;

    adapter_list_init(&written);
    for (at = publisher->all.next; at != &publisher->all; at = next) {
        struct message *message = container_of(at, struct message, all);

        next = at->next;
        if (message->transient || (!everything && message->deadline > publisher->client->now))
            continue;
        if (!adapter_spool_add(
                &publisher->spool, message->room->id, message->message_id, message->body, message->body_n))
            break; /* full; a smaller one behind it must not overtake it */
        adapter_list_remove(&message->all);
        adapter_list_push(&written, &message->all);
    }
    spool_commit(publisher, &written);
}

/* ------------------------------------------------------------------ turns */

static void publisher_notice_trouble(struct adapter_publisher *publisher)
{
    bool fine = publisher->link && publisher->link->up && !publisher->link->blocked;

    if (fine)
        publisher->trouble_since = -1;
    else
        publisher_in_trouble(publisher);
}

static bool publisher_should_spool(const struct adapter_publisher *publisher)
{
    return publisher->spools && publisher->trouble_since >= 0 &&
           publisher->client->now - publisher->trouble_since >= publisher->client->settings.spool_after_ms;
}

static void publisher_deadlines(struct adapter_publisher *publisher)
{
    struct roomd_link *at, *next;

    if (publisher_should_spool(publisher))
        publisher_spool(publisher, true);
    for (at = publisher->all.next; at != &publisher->all; at = next) {
        struct message *message = container_of(at, struct message, all);

        next = at->next;
        if (message->deadline > publisher->client->now)
            continue;
        if (publisher->spools && !message->transient) {
            publisher_spool(publisher, false); /* all that are due at once */
            break;
        }
        message_settle(publisher, message, message->sent ? ROOMD_TIMEOUT : ROOMD_UNAVAILABLE);
    }
    for (at = publisher->all.next; at != &publisher->all; at = next) { /* the spool did not take these */
        struct message *message = container_of(at, struct message, all);

        next = at->next;
        if (message->deadline <= publisher->client->now)
            message_settle(publisher, message, message->sent ? ROOMD_TIMEOUT : ROOMD_UNAVAILABLE);
    }
    if (publisher->link && publisher->link->up)
        oldest_advance(publisher);
}

static void publisher_hand_out(struct adapter_publisher *publisher)
{
    struct roomd_client *client = publisher->client;
    struct roomd_link due;

    /* not those that are refused meanwhile: a caller that tries again at once would never end */
    adapter_list_init(&due);
    adapter_list_splice(&due, &publisher->done);
    while (!adapter_list_empty(&due)) {
        struct roomd_send *send = container_of(due.next, struct roomd_send, private_link);

        adapter_list_remove(&send->private_link);
        send->finished = true;
        if (send->done)
            send->done(send);
    }
    while (!adapter_list_empty(&publisher->notices)) {
        struct message *message = container_of(publisher->notices.next, struct message, link);

        adapter_list_remove(&message->link);
        if (client->settings.spool_settled)
            client->settings.spool_settled(client->settings.arg, message->message_id, message->code);
        message_free(message);
    }
}

void adapter_publisher_turn(struct adapter_publisher *publisher)
{
    publisher_notice_trouble(publisher);
    publisher_connect(publisher);
    publisher_return(publisher);
    if (publisher_should_spool(publisher) && !adapter_list_empty(&publisher->all))
        publisher_spool(publisher, true);
    publisher_pump(publisher);
    publisher_hand_out(publisher);
    publisher_pump(publisher); /* what done() has sent leaves in this turn */
}

void adapter_publisher_tick(struct adapter_publisher *publisher)
{
    if (publisher->link)
        adapter_link_tick(publisher->link);
    if (publisher->better)
        adapter_link_tick(publisher->better);
    publisher_deadlines(publisher);
}

bool adapter_publisher_busy(const struct adapter_publisher *publisher)
{
    return publisher->counters.pending > 0 || !publisher->link || !publisher->link->up || publisher->better ||
           (publisher->spools && !adapter_spool_empty(&publisher->spool)) || !adapter_list_empty(&publisher->done);
}

/* ------------------------------------------------------------------ roomd_send */

static struct adapter_problem send_prepare(
    struct adapter_publisher *publisher, struct roomd_send *send, const struct roomd_message *message)
{
    const struct roomd_settings *settings = &publisher->client->settings;
    struct adapter_problem problem = adapter_message_problem(message);

    if (problem.code)
        return problem;
    if (message->client_msg_id)
        snprintf(send->client_msg_id, sizeof(send->client_msg_id), "%s", message->client_msg_id);
    else if (!roomd_mint(send->client_msg_id))
        return (struct adapter_problem){ROOMD_UNAVAILABLE, NULL, "the system gives no randomness for a client_msg_id"};
    if (!adapter_message_write(&publisher->scratch, message, send->client_msg_id, settings->content_max_bytes))
        return (struct adapter_problem){ROOMD_TOO_LARGE, "content", "the content is larger than content_max_bytes"};
    if (publisher->counters.pending >= settings->pending_max ||
        publisher->counters.pending_bytes + publisher->scratch.n > settings->pending_max_bytes)
        return (struct adapter_problem){
            ROOMD_UNAVAILABLE, NULL, "too many messages wait for the broker (pending_max, _bytes)"};
    roomd_message_id(send->message_id, message->room_id, message->sender, send->client_msg_id);
    if (publisher->scratch.failed || !send->message_id[0]) {
        adapter_buf_clear(&publisher->scratch);
        return (struct adapter_problem){ROOMD_NO_MEMORY, NULL, "out of memory"};
    }
    return problem;
}

static void send_start(struct adapter_publisher *publisher, struct roomd_send *send, const struct roomd_message *given)
{
    struct roomd_client *client = publisher->client;
    struct adapter_problem problem = send_prepare(publisher, send, given);
    struct message *message = NULL;

    if (!problem.code && !(message = message_new(publisher, given->room_id, send->message_id, publisher->scratch.p,
                               publisher->scratch.n)))
        problem = (struct adapter_problem){ROOMD_NO_MEMORY, NULL, "out of memory"};
    if (publisher->scratch.capacity > 256 << 10)
        adapter_buf_clear(&publisher->scratch);
    if (given->transient || problem.code)
        send->message_id[0] = '\0';
    if (problem.code) {
        send_finish(publisher, send, problem.code, problem.field, problem.text);
        return;
    }
    message->send = send;
    message->transient = given->transient;
    message->deadline = client->now + (send->deadline_ms > 0 ? send->deadline_ms : client->settings.send_ms);
    message->place = room_is_held(message->room) ? HELD : QUEUED;
    adapter_list_push(message->place == HELD ? &message->room->held : &publisher->queue, &message->link);
    adapter_list_push(&publisher->all, &message->all);
    publisher->counters.pending++;
    publisher->counters.pending_bytes += message->body_n;
    adapter_client_kick(client);
}

void roomd_send(struct roomd_client *client, struct roomd_send *send, const struct roomd_message *message)
{
    *send = (struct roomd_send){.done = send->done, .arg = send->arg, .deadline_ms = send->deadline_ms};
    client->now = adapter_now();
    if (!client->publisher) { /* no list to wait in, and nothing to wait for: the one answer that is there at once */
        send->code = ROOMD_BAD_REQUEST;
        send->text = "the settings name no broker_urls";
        send->finished = true;
    } else if (client->closing) {
        send_finish(client->publisher, send, ROOMD_CLOSED, NULL, sentence_of(ROOMD_CLOSED));
    } else {
        send_start(client->publisher, send, message);
    }
}

/* ------------------------------------------------------------------ opening and closing */

static bool brokers_read(struct adapter_publisher *publisher, const char *urls)
{
    for (;;) {
        size_t n = strcspn(urls, ","), skip = strspn(urls, " \t\n"), end = n;

        while (end > skip && strchr(" \t\n", urls[end - 1]))
            end--;
        if (publisher->broker_count == ADAPTER_ADDRESSES_MAX || skip >= end ||
            !adapter_address_read(&publisher->brokers[publisher->broker_count++], urls + skip, end - skip, true))
            return false;
        if (!urls[n])
            return true;
        urls += n + 1;
    }
}

/* Rooms with messages in the spool are held from the beginning. */
static bool spooled_rooms_read(struct adapter_publisher *publisher)
{
    struct adapter_spool_record record;
    uint64_t damaged = publisher->spool.damaged;

    while (adapter_spool_read(&publisher->spool, &record)) {
        struct room *room = room_get(publisher, record.room_id);

        if (!room)
            return false;
        room->spooled++;
    }
    publisher->spool.next = publisher->spool.done;
    publisher->spool.damaged = damaged; /* counted when it is stepped over for good */
    return true;
}

static void publisher_free(struct adapter_publisher *publisher)
{
    if (publisher->link)
        adapter_link_free(publisher->link);
    if (publisher->better)
        adapter_link_free(publisher->better);
    if (publisher->spools)
        adapter_spool_close(&publisher->spool);
    for (size_t i = 0; i < ROOM_BUCKETS; i++)
        while (!adapter_list_empty(&publisher->rooms[i])) {
            struct room *room = container_of(publisher->rooms[i].next, struct room, bucket);

            adapter_list_remove(&room->bucket);
            free(room);
        }
    adapter_buf_clear(&publisher->scratch);
    OPENSSL_cleanse(publisher->brokers, sizeof(publisher->brokers));
    free(publisher);
}

static void publisher_init(struct adapter_publisher *publisher, struct roomd_client *client)
{
    struct roomd_link *lists[] = {
        &publisher->all, &publisher->queue, &publisher->done, &publisher->replays, &publisher->notices};

    for (size_t i = 0; i < countof(lists); i++)
        adapter_list_init(lists[i]);
    for (size_t i = 0; i < ROOM_BUCKETS; i++)
        adapter_list_init(&publisher->rooms[i]);
    publisher->client = client;
    publisher->connect_at = client->now;
    publisher->trouble_since = client->now;
    publisher->oldest_tag = 1;
}

enum roomd_code adapter_publisher_open(
    struct roomd_client *client, const struct roomd_settings *settings, const char **why)
{
    struct adapter_publisher *publisher = calloc(1, sizeof(*publisher));
    enum roomd_code code;

    if (!publisher)
        return ROOMD_NO_MEMORY;
    publisher_init(publisher, client);
    if (!brokers_read(publisher, settings->broker_urls)) {
        *why = "broker_urls cannot be read: amqp://user:password@host:port/vhost, separated by commas, at most 16";
        code = ROOMD_BAD_REQUEST;
        goto fail;
    }
    if (settings->spool_file) {
        code = adapter_spool_open(&publisher->spool, settings->spool_file, client->settings.spool_max_bytes, why);
        if (code)
            goto fail;
        publisher->spools = true;
        code = ROOMD_NO_MEMORY;
        if (!spooled_rooms_read(publisher))
            goto fail;
    }
    client->publisher = publisher;
    return ROOMD_OK;

fail:
    publisher_free(publisher);
    return code;
}

void adapter_publisher_close(struct adapter_publisher *publisher)
{
    if (publisher->spools) /* better than "it may have happened": it will */
        publisher_spool(publisher, true);
    while (!adapter_list_empty(&publisher->all))
        message_settle(publisher, container_of(publisher->all.next, struct message, all), ROOMD_CLOSED);
    while (!adapter_list_empty(&publisher->replays)) { /* they stay in the file */
        struct message *message = container_of(publisher->replays.next, struct message, all);

        adapter_list_remove(&message->all);
        if (message->place != SETTLED)
            message_detach(publisher, message);
        message_free(message);
    }
    while (!adapter_list_empty(&publisher->done) || !adapter_list_empty(&publisher->notices))
        publisher_hand_out(publisher); /* done() may send more: refused, and handed out here, too */
    publisher_free(publisher);
}

void adapter_publisher_counters(const struct adapter_publisher *publisher, struct roomd_counters *counters)
{
    uint32_t calls = counters->calls;

    *counters = publisher->counters;
    counters->calls = calls;
    counters->spool_bytes = publisher->spools ? publisher->spool.end - publisher->spool.done : 0;
    counters->spool_damaged_total = publisher->spool.damaged;
    counters->broker_up = publisher->link && publisher->link->up;
    counters->broker_blocked = counters->broker_up && publisher->link->blocked;
    counters->broker = counters->broker_up ? (uint32_t)publisher->link->index : 0;
}

const char *adapter_publisher_problem(const struct adapter_publisher *publisher)
{
    return publisher->problem;
}
