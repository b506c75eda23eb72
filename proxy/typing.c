/*
 * Who types where. A client says so with every key; the room is told at most once in typing_every_ms for each account,
 * and forgets it by itself after for_ms. All that is kept is when each account was last told of, for some seconds and
 * for a bounded number of accounts; above that nobody new is told of: typing is the first to go missing under load.
 */
#include "core.h"

#include <inttypes.h>
#include <stdlib.h>

#define TYPINGS_MAX 65536

struct typing {
    struct map_link link;
    struct list age_link; /* proxy->typings_by_age, the oldest first */
    uint32_t at;
    uint8_t room_id_n, account_n;
    char text[]; /* room id, account */
};

struct typing_key {
    struct str room_id, account;
};

void typing_open(struct proxy *proxy)
{
    map_init(&proxy->typings);
    list_init(&proxy->typings_by_age);
}

static void forget_oldest(struct proxy *proxy)
{
    struct typing *oldest = list_entry(list_pop_front(&proxy->typings_by_age), struct typing, age_link);

    map_remove(&proxy->typings, &oldest->link);
    free(oldest);
}

void typing_close(struct proxy *proxy)
{
    while (!list_empty(&proxy->typings_by_age))
        forget_oldest(proxy);
    map_clear(&proxy->typings);
}

static bool typing_is(const struct map_link *link, const void *key)
{
    const struct typing *typing = container_of(link, struct typing, link);
    const struct typing_key *wanted = key;

    return str_eq((struct str){typing->text, typing->room_id_n}, wanted->room_id) &&
           str_eq((struct str){typing->text + typing->room_id_n, typing->account_n}, wanted->account);
}

/* Remembers it when it may be told. */
static bool typing_is_new(struct proxy *proxy, const struct typing_key *key)
{
    uint64_t hash = map_hash(key->room_id.p, key->room_id.n) ^ map_hash(key->account.p, key->account.n);
    struct typing *typing;

    while (!list_empty(&proxy->typings_by_age)) {
        typing = list_entry(proxy->typings_by_age.next, struct typing, age_link);
        if ((int64_t)(uint32_t)(proxy_now(proxy) - typing->at) < proxy->config->typing_every_ms)
            break;
        forget_oldest(proxy);
    }
    if (proxy->typings.count == TYPINGS_MAX || map_find(&proxy->typings, hash, typing_is, key))
        return false;
    typing = xcalloc(1, sizeof *typing + key->room_id.n + key->account.n);
    typing->at = proxy_now(proxy);
    typing->room_id_n = (uint8_t)key->room_id.n;
    typing->account_n = (uint8_t)key->account.n;
    memcpy(typing->text, key->room_id.p, key->room_id.n);
    memcpy(typing->text + key->room_id.n, key->account.p, key->account.n);
    map_insert(&proxy->typings, hash, &typing->link);
    list_push_back(&proxy->typings_by_age, &typing->age_link);
    return true;
}

void proxy_typing(struct proxy *proxy, struct str room_id, struct str account)
{
    struct buf json = {0};

    if (room_id.n > ROOM_ID_MAX_BYTES || account.n > ACCOUNT_MAX_BYTES)
        return;
    if (!typing_is_new(proxy, &(struct typing_key){room_id, account})) {
        proxy->count.typings_suppressed++;
        return;
    }
    proxy->count.typings_told++;
    buf_text(&json, "{\"type\":\"typing\",\"room_id\":");
    buf_json_string(&json, room_id);
    buf_text(&json, ",\"account_id\":");
    buf_json_string(&json, account);
    buf_printf(&json, ",\"for_ms\":%" PRId64 "}", 2 * proxy->config->typing_every_ms);
    history_tell_room(proxy->history, room_id, buf_str(&json));
    buf_clear(&json);
}
