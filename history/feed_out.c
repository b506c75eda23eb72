/*
 * What leaves over the feed: what was told in one turn of the loop is one message per routing key, what the owner of a
 * shard showed is one message per shard. Publishes are never in the way of those that must arrive: no confirm, and none
 * at all while the link is blocked or behind.
 */
#include "feed_impl.h"

#include <stdio.h>
#include <stdlib.h>

#define TURN_MAX_BYTES (2 << 20) /* of what is not kept; more in one turn is dropped */
/* So many wait for the socket already: what is not kept is dropped sooner, because publishes with a confirm stand
 * behind; entries later, because the store would have to be read for each reader of theirs. */
#define BEHIND_MAX_BYTES (1 << 20)
#define LOG_BEHIND_MAX_BYTES (8 << 20)
#define KEEP_BYTES (16 << 10)

bool feed_publish(struct feed *feed, const char *key, enum feed_kind kind, const struct buf *body)
{
    struct amqp_link *link = feed->history->publish;
    const struct amqp_message message = {
        .exchange = STR(FEED_EXCHANGE),
        .routing_key = str_of(key),
        .content_type = STR("application/x-roomd-feed"),
        .body = buf_str(body),
        .transient = true,
    };
    bool sent = link && body->n <= AMQP_BODY_MAX_BYTES &&
                amqp_publish_unconfirmed(link, &message, kind == FEED_TOLD ? BEHIND_MAX_BYTES : LOG_BEHIND_MAX_BYTES);

    if (sent)
        feed->count.out[kind]++;
    else
        feed->count.lost[kind]++;
    return sent;
}

static void shrink(struct buf *body)
{
    if (body->capacity > KEEP_BYTES)
        buf_clear(body);
    else
        buf_reset(body);
}

/* --------------------------------------------------------------------------------------------- what the owner shows */

static void log_begin(struct feed_shard *to)
{
    if (!to->log.n) {
        feed_write_head(&to->log, FEED_LOG, cluster_self(to->feed->history->cluster));
        feed_write_log_head(&to->log, str_of(to->name), to->ours->epoch, to->told + 1);
    }
    if (list_empty(&to->log_link))
        list_push_back(&to->feed->logs, &to->log_link);
}

static void marks_clear(struct feed_shard *to, bool write)
{
    struct list *link;

    while ((link = list_pop_front(&to->marks))) {
        struct feed_mark *mark = list_entry(link, struct feed_mark, link);

        if (write)
            feed_write_mark(&to->log, (struct str){mark->room_id, mark->n}, mark->room_no, mark->seq, mark->epoch);
        map_remove(&to->marks_by_room, &mark->by_room);
        free(mark);
    }
}

/* Marks come last: what they say of is shown before them, and later is never too late. */
static void log_send(struct feed_shard *to)
{
    struct feed *feed = to->feed;

    list_remove(&to->log_link);
    marks_clear(to, true);
    to->told++; /* also when it is dropped: the hole tells */
    if (feed_publish(feed, to->key, FEED_LOG, &to->log))
        feed->count.entries_sent += to->log_items;
    to->log_items = 0;
    shrink(&to->log);
}

void feed_shown(struct feed_shard *to, struct str room_id, const struct entry *entry, bool durable)
{
    if (!to->telling)
        return;
    if (to->log_items && to->log.n + entry->n > FEED_MESSAGE_BYTES)
        log_send(to);
    log_begin(to);
    feed_write_entry(&to->log, room_id, entry, durable);
    to->log_items++;
}

static bool is_of_room(const struct map_link *link, const void *key)
{
    return container_of(link, const struct feed_mark, by_room)->room_no == *(const int64_t *)key;
}

void feed_durable(struct feed_shard *to, struct str room_id, int64_t room_no, uint64_t seq, uint64_t epoch)
{
    uint64_t hash = map_hash_u64((uint64_t)room_no);
    struct map_link *link;
    struct feed_mark *mark;

    if (!to->telling || room_id.n > ROOM_ID_MAX_BYTES)
        return;
    link = map_find(&to->marks_by_room, hash, is_of_room, &room_no);
    mark = link ? container_of(link, struct feed_mark, by_room) : xcalloc(1, sizeof *mark);
    mark->seq = seq;
    mark->epoch = epoch;
    if (link)
        return;
    mark->room_no = room_no;
    mark->n = (uint8_t)room_id.n;
    memcpy(mark->room_id, room_id.p, room_id.n);
    map_insert(&to->marks_by_room, hash, &mark->by_room);
    list_push_back(&to->marks, &mark->link);
    log_begin(to);
}

static void log_forget(struct feed_shard *to)
{
    list_remove(&to->log_link);
    marks_clear(to, false);
    to->log_items = 0;
    buf_clear(&to->log);
}

/* Beginning counts as one: who has heard the counter before must look, because until now nothing was told. */
void feed_tell(struct feed_shard *to)
{
    bool tell = to->ours && to->followers;

    if (tell == to->telling)
        return;
    to->telling = tell;
    if (tell)
        to->told++;
    else
        log_forget(to);
}

struct feed_shard *feed_shard_taken(struct feed *feed, const struct shard *shard)
{
    struct feed_shard *to = feed_shard_get(feed, str_of(shard->name));

    to->ours = shard;
    to->told = 0;
    to->epoch = shard->epoch > to->epoch ? shard->epoch : to->epoch;
    feed_tell(to);
    beat_soon(feed);
    return to;
}

void feed_shard_left(struct feed_shard *to)
{
    if (!list_empty(&to->log_link))
        log_send(to);
    to->ours = NULL;
    feed_tell(to);
}

/* ------------------------------------------------------------------------------------------------- what is not kept */

static void out_free(struct feed *feed, struct feed_out *out)
{
    map_remove(&feed->outs, &out->by_key);
    list_remove(&out->full_link);
    buf_clear(&out->body);
    free(out);
}

static void out_send(struct feed *feed, struct feed_out *out)
{
    bool sent = feed_publish(feed, out->key, out->kind, &out->body);

    if (out->kind == FEED_TOLD && sent)
        feed->count.sent += out->events;
    else if (out->kind == FEED_TOLD)
        feed->count.dropped += out->events;
    out->events = 0;
    shrink(&out->body);
}

static bool goes_to(const struct map_link *link, const void *key)
{
    return strcmp(container_of(link, struct feed_out, by_key)->key, key) == 0;
}

static struct feed_out *out_get(struct feed *feed, const char *key, enum feed_kind kind)
{
    uint64_t hash = map_hash(key, strlen(key));
    struct map_link *link = map_find(&feed->outs, hash, goes_to, key);
    struct feed_out *out;

    if (link)
        return container_of(link, struct feed_out, by_key);
    out = xcalloc(1, sizeof *out);
    list_init(&out->full_link);
    out->kind = kind;
    snprintf(out->key, sizeof out->key, "%s", key);
    map_insert(&feed->outs, hash, &out->by_key);
    return out;
}

/* Where the next item of `n` bytes for the key is to be written. */
static struct feed_out *out_room(struct feed *feed, const char *key, enum feed_kind kind, size_t n)
{
    struct feed_out *out = out_get(feed, key, kind);

    if (out->body.n && out->body.n + n > FEED_MESSAGE_BYTES)
        out_send(feed, out);
    if (!out->body.n)
        feed_write_head(&out->body, kind, cluster_self(feed->history->cluster));
    if (list_empty(&out->full_link))
        list_push_back(&feed->full, &out->full_link);
    out->events++;
    return out;
}

static void gather(struct feed *feed, const char *key, const struct feed_item *item)
{
    feed->count.told++;
    if (!feed->history->cluster || item->json.n > FEED_MESSAGE_BYTES ||
        feed->turn_bytes + item->json.n > TURN_MAX_BYTES) {
        feed->count.dropped++;
        return;
    }
    feed_write_item(&out_room(feed, key, FEED_TOLD, item->json.n)->body, item);
    feed->turn_bytes += item->json.n;
}

void history_tell_room(struct history *history, struct str room_id, struct str json)
{
    const struct feed_item item = {FEED_TO_ROOM, room_id, json};
    char key[5 + SHARD_MAX_BYTES + 1];
    struct str shard;

    if (!room_id_read(room_id, &shard))
        return;
    feed_show(history, &item);
    snprintf(key, sizeof key, "room.%.*s", STR_ARG(shard));
    gather(history->feed, key, &item);
}

void history_tell_account(struct history *history, struct str account, struct str json)
{
    const struct feed_item item = {FEED_TO_ACCOUNT, account, json};

    if (!account_valid(account))
        return; /* the sender of something that was refused for just that */
    feed_show(history, &item);
    gather(history->feed, "account", &item);
}

void feed_settled(struct feed *feed, const char *instance, const struct feed_settled *settled)
{
    char key[FEED_KEY_MAX + 1];

    snprintf(key, sizeof key, "instance.%s", instance);
    feed_write_settled(&out_room(feed, key, FEED_SETTLED, settled->result.n + 64)->body, settled);
}

/* --------------------------------------------------------------------------------------------------- end of a turn */

void feed_out_turn(struct feed *feed)
{
    struct list *link;

    while ((link = list_pop_front(&feed->logs)))
        log_send(list_entry(link, struct feed_shard, log_link));
    while ((link = list_pop_front(&feed->full))) {
        struct feed_out *out = list_entry(link, struct feed_out, full_link);

        out_send(feed, out);
        if (out->kind != FEED_TOLD) /* there are as many keys of those as shards; instances come and go */
            out_free(feed, out);
    }
    feed->turn_bytes = 0;
}

void feed_turn(struct feed *feed)
{
    feed_out_turn(feed);
    feed_in_turn(feed);
    entered_turn(feed);
}

void feed_out_close(struct feed *feed)
{
    struct map_link *link;

    while ((link = map_next(&feed->outs, NULL)))
        out_free(feed, container_of(link, struct feed_out, by_key));
    map_clear(&feed->outs);
    for (link = map_next(&feed->shards, NULL); link; link = map_next(&feed->shards, link)) {
        struct feed_shard *to = container_of(link, struct feed_shard, by_name);

        log_forget(to);
        map_clear(&to->marks_by_room);
    }
}
