/* Calls about rooms: Create, Get and the lists ask the store; what changes a room goes through the room's queue and
 * comes back durable. */
#include "api.h"

#include <stdlib.h>

#include "room/base/clock.h"
#include "room/base/log.h"

#define MUTE_MAX_MS INT64_C(315360000000) /* ten years */

static void create_on_done(struct room_create *create, enum err err);
static void get_on_done(struct room_get *get, enum err err);
static void update_on_done(struct history_op *op, enum err err);
static void update_on_read(struct room_get *get, enum err err);
static void remove_on_done(struct history_op *op, enum err err);
static void members_on_done(struct history_op *op, enum err err);
static void list_accounts_on_done(struct room_list_accounts *list, enum err err);
static void list_rooms_on_done(struct room_list_rooms *list, enum err err);

/* -------------------------------------------------------------------------------------------------------- Create */

/* The founders: members, and the owner behind them when it is not among them. */
static size_t with_owner(struct call *call, const struct str *members, size_t count, struct str owner)
{
    struct str *all;

    call->create.members = members;
    if (!owner.n)
        return count;
    for (size_t i = 0; i < count; i++)
        if (str_eq(members[i], owner))
            return count;
    all = xcalloc(count + 1, sizeof *all);
    for (size_t i = 0; i < count; i++)
        all[i] = members[i];
    all[count] = owner;
    call->create.members = call->slices = all;
    return count + 1;
}

static void check_direct(struct call *call)
{
    struct fields *fields = &call->fields;

    if (!str_is(call->create.kind, "direct"))
        return;
    if (call->create.key.p)
        fields_refuse(fields, ERR_BAD_REQUEST, "key", "a direct room has no key: its two members are its key");
    if (call->create.member_count != 2)
        fields_refuse(fields, ERR_BAD_REQUEST, "members", "a direct room takes exactly two different members");
}

void api_room_create(struct call *call)
{
    static const char *const kinds[] = {"group", "direct", "live", "system", NULL};
    static const char *const histories[] = {"all", "since_join", NULL};
    struct fields *fields = &call->fields;
    struct room_create *create = &call->create;
    size_t count;
    const struct str *members = field_accounts(fields, "members", OPTIONAL, ROOM_CREATE_MEMBERS_MAX, &count);

    create->kind = str_of(kinds[field_word(fields, "kind", kinds, 0)]);
    create->key = field_key(fields, "key");
    create->name = field_text(fields, "name", ROOM_NAME_MAX_BYTES);
    create->owner = field_account(fields, "owner", OPTIONAL);
    create->member_limit = (int32_t)field_integer(fields, "member_limit", 0, INT32_MAX, 0);
    create->since_join = field_word(fields, "history", histories, 0) == 1;
    create->extra = field_object(fields, "extra", ROOM_EXTRA_MAX_BYTES);
    create->request_id = field_client_id(fields, "request_id");
    if (fields->err == ERR_OK)
        create->member_count = with_owner(call, members, count, create->owner);
    if (fields->err == ERR_OK)
        check_direct(call);
    if (create->member_limit && create->member_count > (size_t)create->member_limit)
        fields_refuse(fields, ERR_ROOM_FULL, "members", "%zu members are more than member_limit", create->member_count);
    if (!call_checked(call))
        return;
    create->request_hash = content_hash(STR("room/Create"), (struct str){fields->object.p, fields->object.n});
    create->now_ms = cluster_now_ms(call->service->cluster);
    if (!create->now_ms)
        create->now_ms = clock_unix_ms();
    create->done = create_on_done;
    room_create(call->service->rooms, create);
}

/* What could not be announced is found by the other instances when they hear of us again, so it is no error. */
static void create_on_announced(struct history_announce *announce, enum err err)
{
    struct call *call = container_of(announce, struct call, announce);

    if (err)
        log_info("room.not_announced", "room=%.*s error=%s", STR_ARG(announce->room_id), err_code(err));
    call_answer(call, buf_str(&call->text));
}

/* The `all` streams of the founders enter the room, on every instance. The texts of `create` end with its done. */
static bool announce(struct call *call)
{
    struct str room_id = call->create.room_id, founders = call->create.founders_json;
    struct str *accounts = xcalloc(ROOM_CREATE_MEMBERS_MAX + 1, sizeof *accounts);
    struct buf *texts = &call->announced;
    struct json list = {.n = founders.n, .type = JSON_ARRAY}, item;
    struct json_walk walk;
    size_t count = 0;

    buf_reserve(texts, room_id.n + 2 * founders.n); /* never moves */
    buf_add_str(texts, room_id);
    buf_add_str(texts, founders);
    list.p = texts->p + room_id.n;
    for (walk = json_walk(list); count <= ROOM_CREATE_MEMBERS_MAX && json_next_item(&walk, &item);)
        count += json_string(item, texts, &accounts[count]);
    free((void *)(uintptr_t)call->slices);
    call->slices = accounts;
    if (!count)
        return false;
    call->announce = (struct history_announce){
        .room_id = {texts->p, room_id.n}, .accounts = accounts, .account_count = count, .done = create_on_announced};
    history_announce_entered(call->service->history, &call->announce);
    return true;
}

static void create_on_done(struct room_create *create, enum err err)
{
    struct call *call = container_of(create, struct call, create);

    if (err) {
        call_fail(call, err, NULL, err == ERR_CONFLICT ? "this request_id was used before with another body" : NULL);
        return;
    }
    buf_text(&call->text, "{\"room\":");
    buf_add_str(&call->text, create->room_json);
    buf_printf(&call->text, ",\"created\":%s}", create->created ? "true" : "false");
    if (!announce(call))
        call_answer(call, buf_str(&call->text));
}

/* ----------------------------------------------------------------------------------------------------------- Get */

void api_room_get(struct call *call)
{
    struct fields *fields = &call->fields;
    int given = field_given(fields, "room_id") + field_given(fields, "key") + field_given(fields, "room_ids");
    struct room_get *get = &call->get;
    struct str *one;

    if (given != 1)
        fields_refuse(fields, ERR_BAD_REQUEST, "room_id", "give exactly one of room_id, key and room_ids");
    if (field_given(fields, "room_ids")) {
        get->room_ids = field_room_ids(fields, "room_ids", ROOM_GET_MAX, &get->room_id_count);
    } else if (field_given(fields, "key")) {
        get->key = field_key(fields, "key");
        call->one = true;
    } else {
        call->slices = one = xcalloc(1, sizeof *one);
        *one = field_room_id(fields, "room_id", OPTIONAL);
        get->room_ids = one;
        get->room_id_count = 1;
        call->one = true;
    }
    if (!call_checked(call))
        return;
    get->done = get_on_done;
    room_get(call->service->rooms, get);
}

/* The one room of an array of rooms. */
static struct str only_room(struct str rooms_json)
{
    return (struct str){rooms_json.p + 1, rooms_json.n - 2};
}

static void answer_room(struct call *call, struct str room)
{
    buf_reset(&call->text);
    buf_text(&call->text, "{\"room\":");
    buf_add_str(&call->text, room);
    buf_char(&call->text, '}');
    call_answer(call, buf_str(&call->text));
}

static void get_on_done(struct room_get *get, enum err err)
{
    struct call *call = container_of(get, struct call, get);

    if (!err && call->one && !get->found)
        err = ERR_NO_SUCH_ROOM;
    if (err) {
        call_fail(call, err, NULL, NULL);
    } else if (call->one) {
        answer_room(call, only_room(get->rooms_json));
    } else {
        buf_text(&call->text, "{\"rooms\":");
        buf_add_str(&call->text, get->rooms_json);
        buf_char(&call->text, '}');
        call_answer(call, buf_str(&call->text));
    }
}

/* -------------------------------------------------------------------------------------- changes: through the log */

static void begin_arg(struct call *call, const char *name)
{
    buf_printf(&call->text, "%s\"%s\":", call->text.n ? "," : "", name);
}

static void add_member_raw(struct call *call, const char *name)
{
    struct str raw = field_raw(&call->fields, name);

    if (!raw.n)
        return;
    begin_arg(call, name);
    buf_add_str(&call->text, raw);
}

static void submit(struct call *call, enum op_kind kind, void (*done)(struct history_op *op, enum err err))
{
    call->op.kind = kind;
    call->op.args = buf_str(&call->text);
    call->op.done = done;
    history_submit_op(call->service->history, &call->op);
}

/* Whose act it is may be said: then that account's role is asked. */
static void op_fields(struct call *call)
{
    call->op.room_id = field_room_id(&call->fields, "room_id", REQUIRED);
    call->op.request_id = field_client_id(&call->fields, "request_id");
    call->op.by = field_account(&call->fields, "by", OPTIONAL);
}

void api_room_update(struct call *call)
{
    struct fields *fields = &call->fields;
    struct str name, notice, owner;

    op_fields(call);
    name = field_text(fields, "name", ROOM_NAME_MAX_BYTES);
    notice = field_text(fields, "notice", ROOM_NOTICE_MAX_BYTES);
    owner = field_account(fields, "owner", OPTIONAL);
    (void)field_integer(fields, "member_limit", 0, INT32_MAX, 0);
    (void)field_object(fields, "extra", ROOM_EXTRA_MAX_BYTES);
    if (!name.p && !notice.p && !owner.p && !field_given(fields, "member_limit") && !field_given(fields, "extra"))
        fields_refuse(
            fields, ERR_BAD_REQUEST, "name", "give at least one of name, notice, owner, member_limit and extra");
    if (!call_checked(call))
        return;
    add_member_raw(call, "name");
    add_member_raw(call, "notice");
    add_member_raw(call, "owner");
    add_member_raw(call, "member_limit");
    add_member_raw(call, "extra");
    submit(call, OP_ROOM_UPDATE, update_on_done);
}

static void update_on_done(struct history_op *op, enum err err)
{
    struct call *call = container_of(op, struct call, op);
    struct str *one, room_id = op->room_id;

    if (err) {
        api_op_fail(call, err);
        return;
    }
    /* The answer shows what is durable now. op and get share their place: take from op what is needed first. */
    call->slices = one = xcalloc(1, sizeof *one);
    *one = room_id;
    call->get = (struct room_get){.room_ids = one, .room_id_count = 1, .done = update_on_read};
    room_get(call->service->rooms, &call->get);
}

static void update_on_read(struct room_get *get, enum err err)
{
    struct call *call = container_of(get, struct call, get);

    if (!err && !get->found)
        err = ERR_NO_SUCH_ROOM;
    if (err)
        call_fail(call, err, NULL, NULL);
    else
        answer_room(call, only_room(get->rooms_json));
}

void api_room_remove(struct call *call)
{
    op_fields(call);
    (void)field_text(&call->fields, "reason", REASON_MAX_BYTES);
    if (!call_checked(call))
        return;
    add_member_raw(call, "reason");
    submit(call, OP_ROOM_REMOVE, remove_on_done);
}

static void remove_on_done(struct history_op *op, enum err err)
{
    struct call *call = container_of(op, struct call, op);

    if (err && err != ERR_ROOM_GONE)
        api_op_fail(call, err);
    else
        call_answer(call, STR("{}"));
}

/* account_id, or account_ids; as account_ids in the op. */
static void accounts_fields(struct call *call)
{
    struct fields *fields = &call->fields;
    bool one = field_given(fields, "account_id"), many = field_given(fields, "account_ids");
    const struct str *accounts;
    struct str account;
    size_t count = 1;

    if (one == many)
        fields_refuse(
            fields, ERR_BAD_REQUEST, one ? "account_ids" : "account_id", "give either account_id or account_ids");
    if (one) {
        account = field_account(fields, "account_id", REQUIRED);
        accounts = &account;
    } else {
        accounts = field_accounts(fields, "account_ids", REQUIRED, OP_ACCOUNTS_MAX, &count);
    }
    if (fields->err)
        return;
    begin_arg(call, "account_ids");
    buf_char(&call->text, '[');
    for (size_t i = 0; i < count; i++) {
        if (i)
            buf_char(&call->text, ',');
        buf_json_string(&call->text, accounts[i]);
    }
    buf_char(&call->text, ']');
}

void api_room_add_accounts(struct call *call)
{
    static const char *const roles[] = {"member", "admin", NULL};

    op_fields(call);
    accounts_fields(call);
    if (field_word(&call->fields, "role", roles, 0) == 1)
        buf_text(&call->text, ",\"role\":\"admin\"");
    if (call_checked(call))
        submit(call, OP_MEMBER_ADD, members_on_done);
}

void api_room_remove_accounts(struct call *call)
{
    op_fields(call);
    accounts_fields(call);
    (void)field_text(&call->fields, "reason", REASON_MAX_BYTES);
    if (!call_checked(call))
        return;
    add_member_raw(call, "reason");
    submit(call, OP_MEMBER_REMOVE, members_on_done);
}

/* A call that says how long is the same call when it is repeated later: the owner adds for_ms to the time
 * of the first. */
static void mute_fields(struct call *call)
{
    struct fields *fields = &call->fields;
    bool until = field_given(fields, "until"), for_ms = field_given(fields, "for_ms");

    if (until == for_ms)
        fields_refuse(fields, ERR_BAD_REQUEST, "until",
            "give until, in ms since 1970 (0: may speak again), or for_ms, how long from now");
    (void)field_integer(fields, "until", 0, TIME_MAX_MS, 0);
    (void)field_integer(fields, "for_ms", 1, MUTE_MAX_MS, 1);
}

void api_room_mute(struct call *call)
{
    struct fields *fields = &call->fields;

    op_fields(call);
    mute_fields(call);
    if (field_given(fields, "account_id") || field_given(fields, "account_ids"))
        accounts_fields(call);
    if (!call_checked(call))
        return;
    add_member_raw(call, "until");
    add_member_raw(call, "for_ms");
    submit(call, OP_ROOM_MUTE, members_on_done);
}

void api_room_set_role(struct call *call)
{
    static const char *const roles[] = {"member", "admin", NULL};
    struct fields *fields = &call->fields;
    int role;

    op_fields(call);
    accounts_fields(call);
    if (!field_given(fields, "role"))
        fields_refuse(fields, ERR_BAD_REQUEST, "role", "role is missing: member or admin");
    role = field_word(fields, "role", roles, 0);
    begin_arg(call, "role");
    buf_printf(&call->text, "\"%s\"", roles[role]);
    if (call_checked(call))
        submit(call, OP_MEMBER_ROLE, members_on_done);
}

static void members_on_done(struct history_op *op, enum err err)
{
    struct call *call = container_of(op, struct call, op);
    struct buf json = {0};

    if (err) {
        api_op_fail(call, err);
        return;
    }
    buf_char(&json, '{');
    buf_add_str(&json, op->result);
    buf_char(&json, '}');
    call_answer(call, buf_str(&json));
    buf_clear(&json);
}

/* --------------------------------------------------------------------------------------------------------- lists */

#define LIST_LIMIT 100

static struct str field_after(struct fields *fields)
{
    struct str after = field_text(fields, "after", AFTER_MAX_BYTES);

    if (after.p && !after.n)
        fields_refuse(
            fields, ERR_BAD_REQUEST, "after", "after must be what next said; leave it out for the first page");
    return after;
}

void api_room_list_accounts(struct call *call)
{
    struct fields *fields = &call->fields;
    struct room_list_accounts *list = &call->list_accounts;

    list->room_id = field_room_id(fields, "room_id", REQUIRED);
    list->after = field_after(fields);
    list->limit = (int)field_integer(fields, "limit", 1, ROOM_PAGE_MAX, LIST_LIMIT);
    list->has_read = (uint64_t)field_integer(fields, "has_read", 1, INT64_MAX, 0);
    if (field_given(fields, "account_ids")) {
        list->account_ids = field_accounts(fields, "account_ids", REQUIRED, ROOM_PAGE_MAX, &list->account_count);
        if (list->after.n)
            fields_refuse(fields, ERR_BAD_REQUEST, "after",
                "after does not go with account_ids: all of them are answered at once");
    }
    if (!call_checked(call))
        return;
    list->done = list_accounts_on_done;
    room_list_accounts(call->service->rooms, list);
}

static void list_fail(struct call *call, enum err err)
{
    if (err == ERR_BAD_REQUEST)
        call_fail(call, err, "after", "after must be what next said");
    else
        call_fail(call, err, NULL, NULL);
}

static void list_accounts_on_done(struct room_list_accounts *list, enum err err)
{
    struct call *call = container_of(list, struct call, list_accounts);

    if (err)
        list_fail(call, err);
    else
        call_answer(call, list->answer_json);
}

void api_room_list_rooms(struct call *call)
{
    struct fields *fields = &call->fields;
    struct room_list_rooms *list = &call->list_rooms;

    list->account = field_account(fields, "account_id", REQUIRED);
    list->after = field_after(fields);
    list->limit = (int)field_integer(fields, "limit", 1, ROOM_PAGE_MAX, LIST_LIMIT);
    if (!call_checked(call))
        return;
    list->done = list_rooms_on_done;
    room_list_rooms(call->service->rooms, list);
}

static void list_rooms_on_done(struct room_list_rooms *list, enum err err)
{
    struct call *call = container_of(list, struct call, list_rooms);

    if (err)
        list_fail(call, err);
    else
        call_answer(call, list->answer_json);
}
