/*
 * May this account say something in this room, and to whom? Asked of roomd, remembered for a moment: an answer that is
 * some seconds old is good enough here, because the owner of the room judges again.
 *
 *   room/Get (what kind of room; only the first time) ─▶ room/ListAccounts (both of a direct chat, else this one)
 */
#include "gateway.h"

#include <stdlib.h>
#include <string.h>

#include "room/base/clock.h"
#include "room/base/mem.h"

#define REMEMBERED_MS 3000
#define REMEMBERED_MAX 50000

struct known {
    struct map_link by_both;
    struct list age;
    uint64_t asked_at; /* loop clock */
    int64_t muted_until;
    char peer[ACCOUNT_MAX + 1];
    size_t n; /* room_id NUL account */
    char both[];
};

struct standings {
    struct gateway *gateway;
    struct map known;
    struct list age;
};

struct inquiry {
    struct standings *standings;
    struct standing *standing;
    struct roomd_call call;
    struct roomd_room_got got;
    struct roomd_room_accounts accounts;
    char text[120];
};

static void ask_kind(struct inquiry *inquiry);
static void on_kind(struct roomd_call *call);
static void on_accounts(struct roomd_call *call);

struct standings *standings_open(struct gateway *gateway)
{
    struct standings *standings = xcalloc(1, sizeof *standings);

    standings->gateway = gateway;
    map_init(&standings->known);
    list_init(&standings->age);
    return standings;
}

static void forget(struct standings *standings, struct known *known)
{
    map_remove(&standings->known, &known->by_both);
    list_remove(&known->age);
    free(known);
}

void standings_close(struct standings *standings)
{
    while (!list_empty(&standings->age))
        forget(standings, list_entry(standings->age.next, struct known, age));
    map_clear(&standings->known);
    free(standings);
}

static bool is_both(const struct map_link *link, const void *key)
{
    const struct known *known = container_of(link, const struct known, by_both);

    return str_eq((struct str){known->both, known->n}, *(const struct str *)key);
}

static size_t write_both(char both[ROOM_ID_MAX + ACCOUNT_MAX + 2], const struct standing *standing)
{
    size_t room_n = strnlen(standing->room_id, ROOM_ID_MAX), account_n = strnlen(standing->account, ACCOUNT_MAX);

    memcpy(both, standing->room_id, room_n);
    both[room_n] = '\0';
    memcpy(both + room_n + 1, standing->account, account_n);
    return room_n + 1 + account_n;
}

static void finish(struct standing *standing, enum roomd_code code, const char *message)
{
    standing->code = code;
    standing->message = message;
    standing->impl = NULL;
    standing->done(standing);
}

static void judge(struct standing *standing)
{
    if (standing->muted_until > (int64_t)clock_unix_ms())
        finish(standing, ROOMD_FORBIDDEN, "you are muted in this room");
    else
        finish(standing, ROOMD_OK, "");
}

void standing_ask(struct standings *standings, struct standing *standing)
{
    char both[ROOM_ID_MAX + ACCOUNT_MAX + 2];
    struct str key = {both, write_both(both, standing)};
    struct map_link *link = map_find(&standings->known, map_hash(key.p, key.n), is_both, &key);
    struct known *known = link ? container_of(link, struct known, by_both) : NULL;
    struct inquiry *inquiry;

    if (known && uv_now(standings->gateway->loop) - known->asked_at < REMEMBERED_MS) {
        memcpy(standing->peer, known->peer, sizeof standing->peer);
        standing->muted_until = known->muted_until;
        judge(standing);
        return;
    }
    if (known)
        forget(standings, known);
    inquiry = xcalloc(1, sizeof *inquiry);
    inquiry->standings = standings;
    inquiry->standing = standing;
    standing->impl = inquiry;
    ask_kind(inquiry);
}

static void ask_kind(struct inquiry *inquiry)
{
    inquiry->call = (struct roomd_call){.done = on_kind};
    roomd_room_get(inquiry->standings->gateway->client, &inquiry->call,
        &(struct roomd_room_get){.room_id = inquiry->standing->room_id}, &inquiry->got);
}

static void inquiry_end(struct inquiry *inquiry, enum roomd_code code, const char *message)
{
    struct standing *standing = inquiry->standing;

    strncpy(inquiry->text, message ? message : "", sizeof inquiry->text - 1);
    roomd_call_clear(&inquiry->call);
    finish(standing, code, inquiry->text);
    free(inquiry);
}

static void on_kind(struct roomd_call *call)
{
    struct inquiry *inquiry = container_of(call, struct inquiry, call);
    const char *only[] = {inquiry->standing->account};
    bool direct;

    if (call->code != ROOMD_OK) {
        inquiry_end(inquiry, call->code, call->message);
        return;
    }
    if (inquiry->got.room.state && !strcmp(inquiry->got.room.state, "removed")) {
        inquiry_end(inquiry, ROOMD_ROOM_GONE, "this room is no more");
        return;
    }
    direct = inquiry->got.room.kind && !strcmp(inquiry->got.room.kind, "direct");
    roomd_call_clear(&inquiry->call);
    inquiry->call = (struct roomd_call){.done = on_accounts};
    roomd_room_list_accounts(inquiry->standings->gateway->client, &inquiry->call,
        &(struct roomd_room_list_accounts){
            .room_id = inquiry->standing->room_id,
            .account_ids = {only, direct ? 0 : 1},
            .limit = direct ? 2 : 0,
        },
        &inquiry->accounts);
}

static void remember(struct standings *standings, const struct standing *standing)
{
    char both[ROOM_ID_MAX + ACCOUNT_MAX + 2];
    size_t n = write_both(both, standing);
    struct known *known = xcalloc(1, sizeof *known + n);

    memcpy(known->both, both, n);
    known->n = n;
    known->asked_at = uv_now(standings->gateway->loop);
    known->muted_until = standing->muted_until;
    memcpy(known->peer, standing->peer, sizeof known->peer);
    map_insert(&standings->known, map_hash(both, n), &known->by_both);
    list_push_back(&standings->age, &known->age);
    if (standings->known.count > REMEMBERED_MAX)
        forget(standings, list_entry(standings->age.next, struct known, age));
}

static void on_accounts(struct roomd_call *call)
{
    struct inquiry *inquiry = container_of(call, struct inquiry, call);
    struct standing *standing = inquiry->standing;
    bool member = false;

    if (call->code != ROOMD_OK) {
        inquiry_end(inquiry, call->code, call->message);
        return;
    }
    for (size_t i = 0; i < inquiry->accounts.account_count; i++) {
        const struct roomd_member *one = &inquiry->accounts.accounts[i];

        if (!strcmp(one->account_id, standing->account)) {
            member = true;
            standing->muted_until = one->muted_until;
        } else {
            strncpy(standing->peer, one->account_id, ACCOUNT_MAX);
        }
    }
    if (!member) {
        inquiry_end(inquiry, ROOMD_NOT_MEMBER, "you are not in this room");
        return;
    }
    remember(inquiry->standings, standing);
    roomd_call_clear(&inquiry->call);
    free(inquiry);
    judge(standing);
}
