/* Messages of the feed as bytes: see feed.h. */
#include "feed.h"

#include "room/name.h"

#define VERSION 1
#define HEAD_BYTES (2 + FEED_INSTANCE_BYTES)
#define ITEM_HEAD_BYTES 6

void feed_write_head(struct buf *out, enum feed_kind kind, const char *instance)
{
    buf_char(out, VERSION);
    buf_char(out, (char)kind);
    buf_add(out, instance, FEED_INSTANCE_BYTES);
}

void feed_write_item(struct buf *out, const struct feed_item *item)
{
    const char head[ITEM_HEAD_BYTES] = {(char)item->to, (char)item->name.n, (char)(item->json.n >> 24),
        (char)(item->json.n >> 16), (char)(item->json.n >> 8), (char)item->json.n};

    buf_add(out, head, sizeof head);
    buf_add_str(out, item->name);
    buf_add_str(out, item->json);
}

static struct str take(struct str *from, size_t n)
{
    struct str taken = {from->p, n};

    from->p += n;
    from->n -= n;
    return taken;
}

/* A line break inside would make two events of one on every transport; the rest of the text is its writer's affair. */
static bool is_event(struct str json)
{
    return json.n >= 2 && json.p[0] == '{' && json.p[json.n - 1] == '}' && !memchr(json.p, '\n', json.n);
}

bool feed_next(struct str *items, struct feed_item *item)
{
    const unsigned char *p = (const unsigned char *)items->p;
    size_t name_n, json_n;
    struct str shard;

    if (items->n < ITEM_HEAD_BYTES)
        return false;
    name_n = p[1];
    json_n = (size_t)p[2] << 24 | (size_t)p[3] << 16 | (size_t)p[4] << 8 | p[5];
    if (items->n - ITEM_HEAD_BYTES < name_n + json_n)
        return false;
    item->to = (enum feed_to)p[0];
    take(items, ITEM_HEAD_BYTES);
    item->name = take(items, name_n);
    item->json = take(items, json_n);
    return is_event(item->json) &&
           (item->to == FEED_TO_ROOM ? room_id_read(item->name, &shard)
                                     : item->to == FEED_TO_ACCOUNT && account_valid(item->name));
}

enum feed_reading feed_read(struct str body, struct str *sender, struct str *items)
{
    struct feed_item item;
    struct str rest;

    if (body.n < 2)
        return FEED_BAD;
    if (body.p[0] != VERSION || body.p[1] != FEED_TOLD)
        return FEED_UNKNOWN;
    if (body.n < HEAD_BYTES)
        return FEED_BAD;
    take(&body, 2);
    *sender = take(&body, FEED_INSTANCE_BYTES);
    *items = rest = body;
    while (rest.n)
        if (!feed_next(&rest, &item))
            return FEED_BAD;
    return FEED_GOOD;
}
