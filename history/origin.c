/*
 * Whose call a delivery is. An instance with a caller that waits for the outcome of its message names itself in the
 * property reply-to, and is told the outcome over the feed. Best effort: what is not remembered here, or is lost on its
 * way, the waiting instance finds in the log half a second later.
 *
 *   reply-to: durable.<instance id>, or sequenced.<instance id> of one that waits for the seq only
 */
#include <stdio.h>
#include <stdlib.h>

#include "internal.h"

enum {
    ORIGINS_MAX = 65536, /* more than are on their way; the oldest go */
    KEEP_MS = 60000,     /* longer than anybody waits: op_timeout_ms at most */
};

struct origin {
    struct map_link by_id;
    struct list link; /* the oldest first */
    struct id128 message_id;
    uint64_t noted_ms; /* loop clock */
    bool sequenced;
    char instance[FEED_INSTANCE_BYTES + 1];
};

struct origins {
    struct history *history;
    struct map by_id;
    struct list all;
    size_t sequenced; /* that wait for a seq only */
    uint64_t dropped_total;
};

struct origins *origins_open(struct history *history)
{
    struct origins *origins = xcalloc(1, sizeof *origins);

    origins->history = history;
    map_init(&origins->by_id);
    list_init(&origins->all);
    return origins;
}

static void origin_free(struct origins *origins, struct origin *origin)
{
    map_remove(&origins->by_id, &origin->by_id);
    list_remove(&origin->link);
    origins->sequenced -= origin->sequenced;
    free(origin);
}

void origins_close(struct origins *origins)
{
    while (!list_empty(&origins->all))
        origin_free(origins, list_entry(origins->all.next, struct origin, link));
    map_clear(&origins->by_id);
    free(origins);
}

static bool is_of_id(const struct map_link *link, const void *key)
{
    return id128_eq(container_of(link, const struct origin, by_id)->message_id, *(const struct id128 *)key);
}

static struct origin *find(const struct origins *origins, struct id128 id)
{
    struct map_link *link = map_find(&origins->by_id, map_hash(id.b, sizeof id.b), is_of_id, &id);

    return link ? container_of(link, struct origin, by_id) : NULL;
}

size_t origins_write(char out[REPLY_TO_MAX + 1], const char *instance, bool sequenced)
{
    return (size_t)snprintf(out, REPLY_TO_MAX + 1, "%s.%s", sequenced ? "sequenced" : "durable", instance);
}

static bool reply_to_read(struct str reply_to, bool *sequenced, struct str *instance)
{
    static const struct str durable = STR("durable."), seq = STR("sequenced.");
    struct id128 id;

    *sequenced = reply_to.n == seq.n + ULID_TEXT;
    if (!*sequenced && reply_to.n != durable.n + ULID_TEXT)
        return false;
    if (memcmp(reply_to.p, *sequenced ? seq.p : durable.p, *sequenced ? seq.n : durable.n) != 0)
        return false;
    *instance = (struct str){reply_to.p + reply_to.n - ULID_TEXT, ULID_TEXT};
    return ulid_read(&id, *instance);
}

void origins_note(struct origins *origins, struct id128 message_id, struct str reply_to)
{
    uint64_t now = uv_now(origins->history->loop);
    struct origin *origin;
    struct str instance;
    bool sequenced;

    while (!list_empty(&origins->all)) {
        origin = list_entry(origins->all.next, struct origin, link);
        if (origins->by_id.count < ORIGINS_MAX && now - origin->noted_ms < KEEP_MS)
            break;
        origins->dropped_total++;
        origin_free(origins, origin);
    }
    if (!reply_to_read(reply_to, &sequenced, &instance) || str_is(instance, cluster_self(origins->history->cluster)))
        return; /* a stranger's, or our own: that call is told without the feed */
    origin = xcalloc(1, sizeof *origin);
    origin->message_id = message_id;
    origin->noted_ms = now;
    origin->sequenced = sequenced;
    memcpy(origin->instance, instance.p, instance.n);
    map_insert(&origins->by_id, map_hash(message_id.b, sizeof message_id.b), &origin->by_id);
    list_push_back(&origins->all, &origin->link);
    origins->sequenced += sequenced;
}

void origins_settled(struct origins *origins, const struct feed_settled *settled)
{
    struct feed_settled told = *settled;
    struct origin *origin;

    if (!origins->by_id.count)
        return;
    while ((origin = find(origins, settled->message_id))) {
        feed_settled(origins->history->feed, origin->instance, &told);
        origin_free(origins, origin);
        /* The same once more, from another instance: the log tells it what it is, by hash and time. */
        told = (struct feed_settled){.what = FEED_SETTLED_LOOK, .message_id = settled->message_id};
    }
}

void origins_shown(struct origins *origins, const struct entry *entry)
{
    struct feed_settled told = {.what = FEED_SETTLED_SEQUENCED, .seq = entry->seq};
    struct origin *origin;

    if (!origins->sequenced || !entry_message_id(entry, &told.message_id))
        return;
    origin = find(origins, told.message_id);
    if (!origin || !origin->sequenced)
        return;
    feed_settled(origins->history->feed, origin->instance, &told);
    origin_free(origins, origin);
}

void origins_metrics(const struct origins *origins, struct buf *out)
{
    buf_printf(out,
        "# HELP roomd_callers_elsewhere Calls on other instances that wait for what becomes of a message here.\n"
        "# TYPE roomd_callers_elsewhere gauge\nroomd_callers_elsewhere %zu\n",
        origins->by_id.count);
}
