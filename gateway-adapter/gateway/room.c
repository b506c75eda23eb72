/* Rooms as somebody in them sees them: chats are opened, people come and go, lists show what is new. */
#include "gateway.h"

#include <inttypes.h>
#include <string.h>

#define MEMBERS_MOST 1000
#define NAMES_AT_ONCE 100

static void write_text(struct buf *out, const char *name, const char *text)
{
    buf_printf(out, ",\"%s\":", name);
    if (text)
        buf_json_string(out, str_of(text));
    else
        buf_text(out, "null");
}

static void write_texts(struct buf *out, const char *name, const struct roomd_texts *texts)
{
    buf_printf(out, "\"%s\":[", name);
    for (size_t i = 0; i < texts->n; i++) {
        if (i)
            buf_char(out, ',');
        buf_json_string(out, str_of(texts->p[i]));
    }
    buf_char(out, ']');
}

static void write_room(struct buf *out, const struct roomd_room *room)
{
    buf_text(out, "{\"room_id\":");
    buf_json_string(out, str_of(room->room_id));
    write_text(out, "kind", room->kind);
    write_text(out, "name", room->name);
    write_text(out, "notice", room->notice);
    write_text(out, "owner", room->owner);
    write_text(out, "state", room->state);
    write_text(out, "head", room->head);
    buf_printf(out, ",\"members\":%" PRIu64 ",\"last_at\":%" PRId64 ",\"created_at\":%" PRId64, room->members,
        room->last_at, room->created_at);
    if (room->extra.n) {
        buf_text(out, ",\"extra\":");
        buf_add(out, room->extra.p, room->extra.n);
    }
}

static bool is_direct(const struct roomd_room *room)
{
    return room->kind && strcmp(room->kind, "direct") == 0;
}

/* The other one of a direct chat, as open_direct wrote it down when the room was made. false: it was made elsewhere. */
static bool noted_peer(const struct ask *ask, const struct roomd_room *room, struct buf *scratch, struct str *peer)
{
    struct json extra, both, item;
    struct json_walk walk;
    const char *why;

    if (!json_check((struct str){room->extra.p, room->extra.n}, &extra, &why) || extra.type != JSON_OBJECT)
        return false;
    both = json_get(extra, "between");
    walk = json_walk(both);
    while (both.type == JSON_ARRAY && json_next_item(&walk, &item)) {
        buf_reset(scratch);
        if (item.type == JSON_STRING && json_string(item, scratch, peer) && !str_is(*peer, ask->account))
            return true;
    }
    return false;
}

/* `asked`: who the service says it is; NULL or empty: not asked. */
static void write_peer(struct ask *ask, const struct roomd_room *room, const char *asked)
{
    struct buf scratch = {0};
    struct str peer = str_of(asked ? asked : "");

    if (is_direct(room) && (noted_peer(ask, room, &scratch, &peer) || peer.n)) {
        buf_text(&ask->out, ",\"peer\":");
        buf_json_string(&ask->out, peer);
    }
    buf_clear(&scratch);
}

/* ------------------------------------------------------------------------------------------------------- to open */

static void on_created(struct ask *ask)
{
    buf_text(&ask->out, "{\"room\":");
    write_room(&ask->out, &ask->created.room);
    write_peer(ask, &ask->created.room, ask->text);
    buf_printf(&ask->out, "},\"created\":%s}", ask->created.created ? "true" : "false");
    ask_json(ask, buf_str(&ask->out));
}

static void open_direct(struct ask *ask, const char *with)
{
    const char *refused = policy_refuses(
        ask->gateway->policy, &(struct policy_question){.account = str_of(ask->account), .peer = str_of(with)});
    const char **both;
    struct roomd_room_create create = {.kind = "direct"};
    struct buf extra = {0};

    if (refused) {
        ask_refuse(ask, ERR_FORBIDDEN, "account_id", "%s", refused);
        return;
    }
    if (!strcmp(with, ask->account)) {
        ask_refuse(ask, ERR_BAD_REQUEST, "account_id", "a chat with oneself is a group of one");
        return;
    }
    ask->text = with;
    both = ask_keep(ask, 2 * sizeof *both);
    both[0] = ask->account;
    both[1] = with;
    create.members = (struct roomd_texts){both, 2};
    buf_text(&extra, "{"); /* lists show whom the chat is with, without asking for its members */
    write_texts(&extra, "between", &create.members);
    buf_char(&extra, '}');
    create.extra = ask_copy(ask, buf_str(&extra));
    buf_clear(&extra);
    ask_call(ask, on_created);
    roomd_room_create(ask->gateway->client, &ask->call, &create, &ask->created);
}

/* {kind: "direct", account_id} is the chat of both, made when it is not there; {kind: "group", name, members} a new
 * one. */
void room_open(struct ask *ask)
{
    bool ok = true;
    const char *kind = ask_text(ask, "kind", 16, &ok),
               *with = ok ? ask_text(ask, "account_id", ACCOUNT_MAX, &ok) : NULL;
    const char *name = ok ? ask_text(ask, "name", 256, &ok) : NULL;
    const char *request = ok ? ask_text(ask, "request_id", 64, &ok) : NULL;
    struct roomd_texts members = ok ? ask_texts(ask, "members", MEMBERS_MOST, &ok) : (struct roomd_texts){0};

    if (!ok)
        return;
    if (!kind || (strcmp(kind, "direct") != 0 && strcmp(kind, "group") != 0)) {
        ask_refuse(ask, ERR_BAD_REQUEST, "kind", "kind must be direct or group");
    } else if (*kind == 'd' && !with) {
        ask_refuse(ask, ERR_BAD_REQUEST, "account_id", "account_id: with whom?");
    } else if (*kind == 'd') {
        open_direct(ask, with);
    } else {
        ask_call(ask, on_created);
        ask->call.request_id = request;
        roomd_room_create(ask->gateway->client, &ask->call,
            &(struct roomd_room_create){.kind = "group", .name = name, .owner = ask->account, .members = members},
            &ask->created);
    }
}

/* ------------------------------------------------------------------------------------------------------- to look */

static void on_got(struct ask *ask)
{
    buf_text(&ask->out, "{\"room\":");
    write_room(&ask->out, &ask->got.room);
    write_peer(ask, &ask->got.room, ask->standing.peer);
    buf_text(&ask->out, "}}");
    ask_json(ask, buf_str(&ask->out));
}

static void on_standing(struct standing *standing)
{
    struct ask *ask = standing->arg;

    /* Who is muted may look all the same. */
    if (standing->code != ROOMD_OK && standing->code != ROOMD_FORBIDDEN) {
        ask_refuse_code(ask, standing->code, NULL, standing->message);
        return;
    }
    ask->then(ask);
}

/* `next` comes when the account is in the room. */
static void members_only(struct ask *ask, void (*next)(struct ask *ask))
{
    ask->then = next;
    ask->standing =
        (struct standing){.account = ask->account, .room_id = ask->room_id, .done = on_standing, .arg = ask};
    standing_ask(ask->gateway->standings, &ask->standing);
}

static void show(struct ask *ask)
{
    ask_call(ask, on_got);
    roomd_room_get(ask->gateway->client, &ask->call, &(struct roomd_room_get){.room_id = ask->room_id}, &ask->got);
}

void room_show(struct ask *ask)
{
    members_only(ask, show);
}

/* A page of rooms, and whom the direct ones that were made without this gateway are with. */
enum { PEERS_ASKED_MAX = 50 };
struct peers {
    struct ask *ask;
    size_t waiting;
    const char **of; /* by the number of the room; NULL: not asked */
};
struct peer_asked {
    struct standing standing;
    struct peers *peers;
    size_t room;
};
static void ask_peers(struct ask *ask);
static void on_peer(struct standing *standing);
static void write_rooms(struct peers *peers);

static void ask_peers(struct ask *ask)
{
    struct peers *peers = ask_keep(ask, sizeof *peers);
    size_t count = ask->rooms.room_count, asked = 0;
    struct buf scratch = {0};
    struct str noted;

    *peers = (struct peers){.ask = ask, .waiting = 1, .of = ask_keep(ask, (count + 1) * sizeof *peers->of)};
    for (size_t i = 0; i < count; i++) {
        const struct roomd_room *room = &ask->rooms.rooms[i];
        struct peer_asked *one;

        peers->of[i] = NULL;
        if (!is_direct(room) || asked >= PEERS_ASKED_MAX || noted_peer(ask, room, &scratch, &noted))
            continue;
        asked++;
        peers->waiting++;
        one = ask_keep(ask, sizeof *one);
        *one = (struct peer_asked){.standing = {.account = ask->account, .room_id = room->room_id, .done = on_peer},
            .peers = peers,
            .room = i};
        standing_ask(ask->gateway->standings, &one->standing);
    }
    buf_clear(&scratch);
    if (--peers->waiting == 0)
        write_rooms(peers);
}

static void on_peer(struct standing *standing)
{
    struct peer_asked *one = container_of(standing, struct peer_asked, standing);

    one->peers->of[one->room] = standing->peer; /* empty when it could not be learned */
    if (--one->peers->waiting == 0)
        write_rooms(one->peers);
}

static void write_rooms(struct peers *peers)
{
    struct ask *ask = peers->ask;
    struct buf *out = &ask->out;

    buf_text(out, "{\"rooms\":[");
    for (size_t i = 0; i < ask->rooms.room_count; i++) {
        const struct roomd_room *room = &ask->rooms.rooms[i];

        if (i)
            buf_char(out, ',');
        write_room(out, room);
        write_peer(ask, room, peers->of[i]);
        buf_printf(out,
            ",\"read_seq\":%" PRIu64 ",\"unread\":%" PRIu64 ",\"mentioned\":%" PRIu64 ",\"last\":", room->read_seq,
            room->unread, room->mentioned);
        if (room->last)
            buf_add(out, room->last->json.p, room->last->json.n);
        else
            buf_text(out, "null");
        buf_char(out, '}');
    }
    buf_char(out, ']');
    if (ask->rooms.next)
        write_text(out, "next", ask->rooms.next);
    buf_char(out, '}');
    ask_json(ask, buf_str(out));
}

void room_list(struct ask *ask)
{
    bool ok = true;
    uint64_t limit = ask_param_number(ask, "limit", 1000, 100, &ok);
    struct roomd_room_list_rooms list = {.account_id = ask->account, .limit = limit};

    if (!ok)
        return;
    list.after = ask_param(ask, "after");
    ask_call(ask, ask_peers);
    roomd_room_list_rooms(ask->gateway->client, &ask->call, &list, &ask->rooms);
}

/* A page of members, and the BaseService's names for them, so many at a time. */
static void ask_names(struct ask *ask);

static void write_member(struct buf *out, const struct roomd_member *member, struct json names)
{
    buf_text(out, out->p[out->n - 1] == '[' ? "{\"account_id\":" : ",{\"account_id\":");
    buf_json_string(out, str_of(member->account_id));
    buf_text(out, ",\"name\":");
    add_name(out, names, member->account_id);
    write_text(out, "role", member->role);
    buf_printf(out, ",\"joined_at\":%" PRId64 ",\"join_seq\":%" PRIu64 ",\"read_seq\":%" PRIu64, member->joined_at,
        member->join_seq, member->read_seq);
    if (member->muted_until)
        buf_printf(out, ",\"muted_until\":%" PRId64, member->muted_until);
    buf_char(out, '}');
}

static void on_names(struct fetch *fetch)
{
    struct ask *ask = fetch->arg;
    struct json names = {.type = JSON_NONE};
    const char *why;
    size_t i = ask->number, end = i + NAMES_AT_ONCE;

    /* Without names the accounts themselves are shown. */
    if (fetch->status == 200 && !json_check(fetch->answer, &names, &why))
        names = (struct json){.type = JSON_NONE};
    for (; i < ask->accounts.account_count && i < end; i++)
        write_member(&ask->out, &ask->accounts.accounts[i], names);
    ask->number = i;
    ask_names(ask);
}

static void ask_names(struct ask *ask)
{
    const struct roomd_room_accounts *page = &ask->accounts;
    struct buf path = {0};

    if (ask->number >= page->account_count) {
        buf_char(&ask->out, ']');
        if (page->next)
            write_text(&ask->out, "next", page->next);
        buf_char(&ask->out, '}');
        ask_json(ask, buf_str(&ask->out));
        return;
    }
    buf_text(&path, "/accounts?ids=");
    for (size_t i = ask->number; i < page->account_count && i < ask->number + NAMES_AT_ONCE; i++) {
        if (i > ask->number)
            buf_char(&path, ',');
        add_percent(&path, str_of(page->accounts[i].account_id));
    }
    ask->fetch = (struct fetch){.method = "GET", .path = ask_copy(ask, buf_str(&path)), .done = on_names, .arg = ask};
    buf_clear(&path);
    fetch_start(ask->gateway->fetches, &ask->fetch);
}

static void on_members(struct ask *ask)
{
    buf_text(&ask->out, "{\"accounts\":[");
    ask->number = 0;
    ask_names(ask);
}

static void list_members(struct ask *ask)
{
    bool ok = true;
    struct roomd_room_list_accounts list = {.room_id = ask->room_id};

    list.limit = ask_param_number(ask, "limit", MEMBERS_MOST, 200, &ok);
    if (ok)
        list.has_read = ask_param_number(ask, "has_read", INT64_MAX, 0, &ok);
    if (!ok)
        return;
    list.after = ask_param(ask, "after");
    ask_call(ask, on_members);
    roomd_room_list_accounts(ask->gateway->client, &ask->call, &list, &ask->accounts);
}

void room_members(struct ask *ask)
{
    members_only(ask, list_members);
}

/* ----------------------------------------------------------------------------------------------------- to change */

static void on_added(struct ask *ask)
{
    buf_char(&ask->out, '{');
    write_texts(&ask->out, "added", &ask->added.added);
    buf_char(&ask->out, ',');
    write_texts(&ask->out, "already", &ask->added.already);
    buf_char(&ask->out, '}');
    ask_json(ask, buf_str(&ask->out));
}

static void on_removed(struct ask *ask)
{
    buf_char(&ask->out, '{');
    write_texts(&ask->out, "removed", &ask->removed.removed);
    buf_char(&ask->out, ',');
    write_texts(&ask->out, "absent", &ask->removed.absent);
    buf_char(&ask->out, '}');
    ask_json(ask, buf_str(&ask->out));
}

static bool read_accounts(struct ask *ask, struct roomd_texts *accounts, const char **reason)
{
    bool ok = true;

    *accounts = ask_texts(ask, "account_ids", MEMBERS_MOST, &ok);
    *reason = ok ? ask_text(ask, "reason", 256, &ok) : NULL;
    if (ok && !accounts->n) {
        ask_refuse(ask, ERR_BAD_REQUEST, "account_ids", "account_ids: whom?");
        return false;
    }
    return ok;
}

void room_add_members(struct ask *ask)
{
    struct roomd_room_add_accounts add = {.room_id = ask->room_id, .by = ask->account};
    const char *reason;

    if (!read_accounts(ask, &add.account_ids, &reason))
        return;
    ask_call(ask, on_added);
    roomd_room_add_accounts(ask->gateway->client, &ask->call, &add, &ask->added);
}

/* Oneself: to leave. */
void room_remove_members(struct ask *ask)
{
    struct roomd_room_rm_accounts gone = {.room_id = ask->room_id, .by = ask->account};

    if (!read_accounts(ask, &gone.account_ids, &gone.reason))
        return;
    ask_call(ask, on_removed);
    roomd_room_rm_accounts(ask->gateway->client, &ask->call, &gone, &ask->removed);
}

static void on_updated(struct ask *ask)
{
    buf_text(&ask->out, "{\"room\":");
    write_room(&ask->out, &ask->updated.room);
    write_peer(ask, &ask->updated.room, NULL);
    buf_text(&ask->out, "}}");
    ask_json(ask, buf_str(&ask->out));
}

void room_update(struct ask *ask)
{
    bool ok = true;
    struct roomd_room_update update = {.room_id = ask->room_id, .by = ask->account};

    update.name = ask_text(ask, "name", 256, &ok);
    if (ok)
        update.notice = ask_text(ask, "notice", 8192, &ok);
    if (ok)
        update.owner = ask_text(ask, "owner", ACCOUNT_MAX, &ok);
    if (!ok)
        return;
    ask_call(ask, on_updated);
    roomd_room_update(ask->gateway->client, &ask->call, &update, &ask->updated);
}

static void on_muted(struct ask *ask)
{
    buf_char(&ask->out, '{');
    write_texts(&ask->out, "muted", &ask->muted.muted);
    buf_char(&ask->out, ',');
    write_texts(&ask->out, "absent", &ask->muted.absent);
    buf_char(&ask->out, '}');
    ask_json(ask, buf_str(&ask->out));
}

/* {"account_ids"?: […], "for_ms": n}; 0 ends it. Without accounts: the whole room. */
void room_mute(struct ask *ask)
{
    static const uint64_t over = 0;
    bool ok = true;
    struct roomd_room_mute mute = {.room_id = ask->room_id, .by = ask->account};

    mute.account_ids = ask_texts(ask, "account_ids", MEMBERS_MOST, &ok);
    if (ok)
        mute.for_ms = ask_number(ask, "for_ms", 315360000000, &ok);
    if (!ok)
        return;
    if (!mute.for_ms)
        mute.until = &over;
    ask_call(ask, on_muted);
    roomd_room_mute(ask->gateway->client, &ask->call, &mute, &ask->muted);
}

static void on_role(struct ask *ask)
{
    buf_char(&ask->out, '{');
    write_texts(&ask->out, "changed", &ask->role_set.changed);
    buf_char(&ask->out, ',');
    write_texts(&ask->out, "absent", &ask->role_set.absent);
    buf_char(&ask->out, '}');
    ask_json(ask, buf_str(&ask->out));
}

void room_role(struct ask *ask)
{
    bool ok = true;
    struct roomd_room_set_role set = {.room_id = ask->room_id, .by = ask->account};

    set.role = ask_text(ask, "role", 16, &ok);
    if (ok)
        set.account_ids = ask_texts(ask, "account_ids", MEMBERS_MOST, &ok);
    if (!ok)
        return;
    if (!set.role || !set.account_ids.n) {
        ask_refuse(ask, ERR_BAD_REQUEST, set.role ? "account_ids" : "role", "role and account_ids are wanted");
        return;
    }
    ask_call(ask, on_role);
    roomd_room_set_role(ask->gateway->client, &ask->call, &set, &ask->role_set);
}
