/*
 * Which shards this instance wants to be told about: those with a room view. When the last view of a shard goes,
 * another may come soon (a reader that reconnects), so the shard is let go only a while later.
 */
#include "core.h"

#include <stdlib.h>

#define UNFOLLOW_AFTER_MS 60000

struct followed {
    struct map_link link;
    struct list idle_link; /* proxy->followed_idle while it has no views, the longest first */
    uint32_t views, idle_since;
    uint8_t n;
    char shard[SHARD_MAX_BYTES];
};

static void on_timer(uv_timer_t *timer)
{
    struct proxy *proxy = timer->data;

    follow_sweep(proxy, proxy_now(proxy));
}

static struct str shard_of(const struct followed *followed)
{
    return (struct str){followed->shard, followed->n};
}

static bool followed_is(const struct map_link *link, const void *key)
{
    return str_eq(shard_of(container_of(link, struct followed, link)), *(const struct str *)key);
}

static struct followed *followed_find(struct proxy *proxy, struct str shard)
{
    struct map_link *link = map_find(&proxy->followed, map_hash(shard.p, shard.n), followed_is, &shard);

    return link ? container_of(link, struct followed, link) : NULL;
}

void follow_open(struct proxy *proxy)
{
    map_init(&proxy->followed);
    list_init(&proxy->followed_idle);
}

void follow_close(struct proxy *proxy)
{
    struct map_link *link = map_next(&proxy->followed, NULL), *next;

    for (; link; link = next) {
        next = map_next(&proxy->followed, link);
        free(container_of(link, struct followed, link));
    }
    map_clear(&proxy->followed);
}

void follow_view(struct view *view)
{
    struct proxy *proxy = view->proxy;
    struct followed *followed;
    struct str shard;

    if (view->followed || !room_id_read(view_room_id(view), &shard))
        return;
    view->followed = true;
    followed = followed_find(proxy, shard);
    if (!followed) {
        followed = xcalloc(1, sizeof *followed);
        list_init(&followed->idle_link);
        followed->n = (uint8_t)shard.n;
        memcpy(followed->shard, shard.p, shard.n);
        map_insert(&proxy->followed, map_hash(shard.p, shard.n), &followed->link);
        history_follow(proxy->history, shard, true);
    }
    list_remove(&followed->idle_link);
    followed->views++;
}

void follow_leave(struct view *view)
{
    struct proxy *proxy = view->proxy;
    struct followed *followed;
    struct str shard;

    if (!view->followed || proxy->stopping || !room_id_read(view_room_id(view), &shard))
        return;
    view->followed = false;
    followed = followed_find(proxy, shard);
    if (--followed->views)
        return;
    followed->idle_since = proxy_now(proxy);
    list_push_back(&proxy->followed_idle, &followed->idle_link);
    if (!uv_is_active((uv_handle_t *)&proxy->follow_timer))
        uv_timer_start(&proxy->follow_timer, on_timer, UNFOLLOW_AFTER_MS, 0);
}

void follow_sweep(struct proxy *proxy, uint32_t now)
{
    while (!list_empty(&proxy->followed_idle)) {
        struct followed *followed = list_entry(proxy->followed_idle.next, struct followed, idle_link);
        uint32_t idle_ms = now - followed->idle_since;

        if (idle_ms < UNFOLLOW_AFTER_MS) {
            uv_timer_start(&proxy->follow_timer, on_timer, UNFOLLOW_AFTER_MS - idle_ms, 0);
            return;
        }
        history_follow(proxy->history, shard_of(followed), false);
        list_remove(&followed->idle_link);
        map_remove(&proxy->followed, &followed->link);
        free(followed);
    }
}
