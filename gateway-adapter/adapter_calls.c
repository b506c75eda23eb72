/*
 * The typed calls: for each the fields of its request and of its answer, in tables; one writer and one reader for all.
 */
#include "adapter.h"

#include <stdlib.h>

/* ------------------------------------------------------------------ requests */

enum put { PUT_TEXT, PUT_JSON, PUT_TEXTS, PUT_U64, PUT_I64, PUT_U64_AT, PUT_BOOL, PUT_POSITIONS, PUT_CONTENT };
enum { NEEDED = 1 };

struct put_field {
    const char *name;
    enum put put;
    unsigned needed;
    size_t at, also_at; /* also_at: the count of positions; the JSON form of content */
};
struct request_shape {
    const char *path;
    const struct put_field *fields;
    size_t count;
    const char *id; /* what makes a repeat a repeat; NULL: the call changes nothing, or repeats do no harm */
};

struct writing {
    struct adapter_buf body;
    const char *field; /* to blame */
    const char *why;
};

static void blame(struct writing *out, const char *field, const char *why)
{
    if (!out->why) {
        out->field = field;
        out->why = why;
    }
}

static void put_name(struct writing *out, const char *name)
{
    adapter_buf_text(&out->body, out->body.n > 1 ? ",\"" : "\"");
    adapter_buf_text(&out->body, name);
    adapter_buf_text(&out->body, "\":");
}

static void put_string(struct writing *out, const char *field, const char *text)
{
    size_t n = strlen(text);

    if (!adapter_utf8_valid(text, n))
        blame(out, field, "this text is not UTF-8");
    else
        adapter_json_string(&out->body, text, n);
}

static void put_texts(struct writing *out, const char *field, const struct roomd_texts *texts)
{
    for (size_t i = 0; i < texts->n; i++) {
        adapter_buf_text(&out->body, i ? "," : "[");
        if (texts->p[i])
            put_string(out, field, texts->p[i]);
        else
            blame(out, field, "one of these texts is NULL");
    }
    adapter_buf_text(&out->body, "]");
}

static void put_positions(struct writing *out, const char *field, const struct roomd_position *positions, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        adapter_buf_text(&out->body, i ? ",{\"room_id\":" : "[{\"room_id\":");
        put_string(out, field, positions[i].room_id ? positions[i].room_id : "");
        if (positions[i].after) {
            adapter_buf_text(&out->body, ",\"after\":");
            put_string(out, field, positions[i].after);
        }
        adapter_buf_text(&out->body, "}");
    }
    adapter_buf_text(&out->body, "]");
}

static void put_json(struct writing *out, const char *field, const char *json)
{
    size_t n = strlen(json);

    if (!adapter_json_valid(json, n, ADAPTER_JSON_CONTENT_DEPTH_MAX))
        blame(out, field, "this is not JSON (one value, at most 31 levels)");
    else
        adapter_buf_add(&out->body, json, n);
}

static bool is_given(const struct put_field *field, const char *request)
{
    const void *at = request + field->at;

    switch (field->put) {
    case PUT_TEXT:
    case PUT_JSON:
        return *(const char *const *)at != NULL;
    case PUT_CONTENT:
        return *(const char *const *)at != NULL ||
               *(const char *const *)(const void *)(request + field->also_at) != NULL;
    case PUT_TEXTS:
        return ((const struct roomd_texts *)at)->n > 0;
    case PUT_U64:
        return *(const uint64_t *)at != 0;
    case PUT_I64:
        return *(const int64_t *)at != 0;
    case PUT_U64_AT:
        return *(const uint64_t *const *)at != NULL;
    case PUT_BOOL:
        return *(const bool *)at;
    case PUT_POSITIONS:
        return *(const size_t *)(const void *)(request + field->also_at) > 0;
    }
    return false;
}

static void put_value(struct writing *out, const struct put_field *field, const char *request)
{
    const void *at = request + field->at, *also = request + field->also_at;
    const char *text, *json;

    switch (field->put) {
    case PUT_TEXT:
        put_string(out, field->name, *(const char *const *)at);
        break;
    case PUT_JSON:
        put_json(out, field->name, *(const char *const *)at);
        break;
    case PUT_CONTENT:
        text = *(const char *const *)at;
        json = *(const char *const *)also;
        if (text && json)
            blame(out, field->name, "text and content are given; one is enough");
        else if (text)
            put_string(out, field->name, text);
        else
            put_json(out, field->name, json);
        break;
    case PUT_TEXTS:
        put_texts(out, field->name, at);
        break;
    case PUT_U64:
        adapter_buf_printf(&out->body, "%llu", (unsigned long long)*(const uint64_t *)at);
        break;
    case PUT_I64:
        adapter_buf_printf(&out->body, "%lld", (long long)*(const int64_t *)at);
        break;
    case PUT_U64_AT:
        adapter_buf_printf(&out->body, "%llu", (unsigned long long)**(const uint64_t *const *)at);
        break;
    case PUT_BOOL:
        adapter_buf_text(&out->body, "true");
        break;
    case PUT_POSITIONS:
        put_positions(out, field->name, *(const struct roomd_position *const *)at, *(const size_t *)also);
        break;
    }
}

/* An id of the call's own, given or made: it makes trying again safe. */
static void put_id(struct writing *out, const char *name, const char *given)
{
    char made[27];

    if (!given && !roomd_mint(made)) {
        blame(out, name, "the system gives no randomness for an id");
        return;
    }
    put_name(out, name);
    put_string(out, name, given ? given : made);
}

static void request_write(struct writing *out, const struct request_shape *shape, const void *request)
{
    adapter_buf_text(&out->body, "{");
    for (size_t i = 0; i < shape->count; i++) {
        const struct put_field *field = &shape->fields[i];

        if (is_given(field, request)) {
            put_name(out, field->name);
            put_value(out, field, request);
        } else if (field->needed) {
            blame(out, field->name, "this field is needed");
        }
    }
}

struct answer_shape;

static void call_begin(struct roomd_client *client, struct roomd_call *call, const struct request_shape *shape,
    const void *request, const struct answer_shape *reader, void *answer, int64_t extra_ms)
{
    struct writing out = {0};
    struct adapter_call_plan plan = {.path = shape->path, .reader = reader, .answer = answer, .extra_ms = extra_ms};

    request_write(&out, shape, request);
    roomd_call_clear(call); /* only now: the request may point into the answer that goes */
    if (shape->id)
        put_id(&out, shape->id, call->request_id);
    adapter_buf_text(&out.body, "}");
    if (out.why) {
        adapter_buf_clear(&out.body);
        adapter_call_refuse(client, call, ROOMD_BAD_REQUEST, out.field, out.why);
    } else {
        adapter_call_start(client, call, &plan, &out.body);
    }
}

/* ------------------------------------------------------------------ answers */

enum get { GET_TEXT, GET_JSON, GET_TEXTS, GET_U64, GET_I64, GET_BOOL, GET_INSIDE, GET_ITEMS, GET_ONE, GET_SELF };

struct get_field {
    const char *name;
    enum get get;
    unsigned needed;
    size_t at, also_at;                /* also_at: the count of items */
    const struct answer_shape *inside; /* of objects */
};
struct answer_shape {
    size_t bytes;
    const struct get_field *fields;
    size_t count;
};

struct reading {
    struct adapter_arena *arena;
    bool no_memory;
};

static bool object_read(struct reading *in, const struct answer_shape *shape, struct roomd_text object, void *answer);

static char *text_of(struct reading *in, struct roomd_text value)
{
    char *text = adapter_json_text(in->arena, value);

    in->no_memory = in->no_memory || !text;
    return text;
}

static size_t items_count(struct roomd_text array)
{
    struct adapter_json_walk walk;
    size_t n = 0;

    adapter_json_walk(&walk, array);
    while (adapter_json_next_item(&walk))
        n++;
    return n;
}

static void *items_room(struct reading *in, size_t count, size_t bytes)
{
    void *room = adapter_arena_get(in->arena, count ? count * bytes : 1);

    in->no_memory = in->no_memory || !room;
    return room;
}

static bool texts_read(struct reading *in, struct roomd_text array, struct roomd_texts *texts)
{
    size_t count = items_count(array), i = 0;
    const char **p = items_room(in, count, sizeof(*p));
    struct adapter_json_walk walk;

    if (!p)
        return false;
    adapter_json_walk(&walk, array);
    while (adapter_json_next_item(&walk)) {
        if (adapter_json_type(walk.value) != ADAPTER_JSON_STRING || !(p[i++] = text_of(in, walk.value)))
            return false;
    }
    *texts = (struct roomd_texts){p, count};
    return true;
}

static bool items_read(struct reading *in, struct roomd_text array, const struct get_field *field, char *answer)
{
    size_t count = items_count(array), i = 0;
    char *items = items_room(in, count, field->inside->bytes);
    struct adapter_json_walk walk;

    if (!items)
        return false;
    adapter_json_walk(&walk, array);
    while (adapter_json_next_item(&walk))
        if (!object_read(in, field->inside, walk.value, items + i++ * field->inside->bytes))
            return false;
    *(const void **)(void *)(answer + field->at) = items;
    *(size_t *)(void *)(answer + field->also_at) = count;
    return true;
}

static bool json_keep(struct reading *in, struct roomd_text value, struct roomd_text *out)
{
    char *copy = adapter_arena_get(in->arena, value.n + 1);

    if (!copy) {
        in->no_memory = true;
        return false;
    }
    memcpy(copy, value.p, value.n);
    *out = (struct roomd_text){copy, value.n};
    return true;
}

static bool one_read(struct reading *in, struct roomd_text value, const struct get_field *field, void *at)
{
    void *one = items_room(in, 1, field->inside->bytes);

    if (!one || !object_read(in, field->inside, value, one))
        return false;
    *(const void **)at = one;
    return true;
}

static bool value_read(struct reading *in, const struct get_field *field, struct roomd_text value, char *answer)
{
    void *at = answer + field->at;
    enum adapter_json_type type = adapter_json_type(value);
    uint64_t number;

    switch (field->get) {
    case GET_TEXT:
        return type == ADAPTER_JSON_STRING && (*(const char **)at = text_of(in, value)) != NULL;
    case GET_JSON:
        return json_keep(in, value, at);
    case GET_TEXTS:
        return type == ADAPTER_JSON_ARRAY && texts_read(in, value, at);
    case GET_U64:
        return type == ADAPTER_JSON_NUMBER && adapter_json_u64(value, at);
    case GET_I64:
        if (type != ADAPTER_JSON_NUMBER || !adapter_json_u64(value, &number))
            return false;
        *(int64_t *)at = (int64_t)number;
        return true;
    case GET_BOOL:
        *(bool *)at = value.p[0] == 't';
        return type == ADAPTER_JSON_BOOL;
    case GET_INSIDE:
        return object_read(in, field->inside, value, at);
    case GET_ITEMS:
        return type == ADAPTER_JSON_ARRAY && items_read(in, value, field, answer);
    case GET_ONE:
        return one_read(in, value, field, at);
    case GET_SELF:
        break;
    }
    return true;
}

/* null counts as absent; what is not in the table is ignored. */
static bool object_read(struct reading *in, const struct answer_shape *shape, struct roomd_text object, void *answer)
{
    uint64_t seen = 0;
    struct adapter_json_walk walk;

    if (adapter_json_type(object) != ADAPTER_JSON_OBJECT)
        return false;
    adapter_json_walk(&walk, object);
    while (adapter_json_next_member(&walk)) {
        for (size_t i = 0; i < shape->count; i++) {
            const struct get_field *field = &shape->fields[i];

            if (field->get == GET_SELF || strlen(field->name) != walk.key.n ||
                memcmp(field->name, walk.key.p, walk.key.n) != 0)
                continue;
            seen |= 1ull << i;
            if (adapter_json_type(walk.value) != ADAPTER_JSON_NULL && !value_read(in, field, walk.value, answer))
                return false;
        }
    }
    for (size_t i = 0; i < shape->count; i++) {
        const struct get_field *field = &shape->fields[i];

        if (field->get == GET_SELF && !json_keep(in, object, (void *)((char *)answer + field->at)))
            return false;
        if (field->needed && !(seen >> i & 1))
            return false;
    }
    return true;
}

bool adapter_call_answer(
    const void *reader, void *answer, struct adapter_arena *arena, struct roomd_text body, bool *no_memory)
{
    const struct answer_shape *shape = reader;
    struct reading in = {.arena = arena};
    bool good;

    if (!shape || !answer)
        return true;
    memset(answer, 0, shape->bytes);
    good = object_read(&in, shape, body, answer);
    *no_memory = in.no_memory;
    if (!good)
        memset(answer, 0, shape->bytes);
    return good;
}

/* ------------------------------------------------------------------ the tables */

static const struct put_field room_create_fields[] = {
    {"kind", PUT_TEXT, 0, offsetof(struct roomd_room_create, kind), 0},
    {"key", PUT_TEXT, 0, offsetof(struct roomd_room_create, key), 0},
    {"name", PUT_TEXT, 0, offsetof(struct roomd_room_create, name), 0},
    {"owner", PUT_TEXT, 0, offsetof(struct roomd_room_create, owner), 0},
    {"members", PUT_TEXTS, 0, offsetof(struct roomd_room_create, members), 0},
    {"member_limit", PUT_U64, 0, offsetof(struct roomd_room_create, member_limit), 0},
    {"history", PUT_TEXT, 0, offsetof(struct roomd_room_create, history), 0},
    {"extra", PUT_JSON, 0, offsetof(struct roomd_room_create, extra), 0},
};
static const struct request_shape room_create = {
    "/v1/room/Create", room_create_fields, countof(room_create_fields), "request_id"};

static const struct put_field room_get_fields[] = {
    {"room_id", PUT_TEXT, 0, offsetof(struct roomd_room_get, room_id), 0},
    {"key", PUT_TEXT, 0, offsetof(struct roomd_room_get, key), 0},
    {"room_ids", PUT_TEXTS, 0, offsetof(struct roomd_room_get, room_ids), 0},
};
static const struct request_shape room_get = {"/v1/room/Get", room_get_fields, countof(room_get_fields), NULL};

static const struct put_field room_update_fields[] = {
    {"room_id", PUT_TEXT, NEEDED, offsetof(struct roomd_room_update, room_id), 0},
    {"name", PUT_TEXT, 0, offsetof(struct roomd_room_update, name), 0},
    {"notice", PUT_TEXT, 0, offsetof(struct roomd_room_update, notice), 0},
    {"owner", PUT_TEXT, 0, offsetof(struct roomd_room_update, owner), 0},
    {"extra", PUT_JSON, 0, offsetof(struct roomd_room_update, extra), 0},
    {"by", PUT_TEXT, 0, offsetof(struct roomd_room_update, by), 0},
    {"member_limit", PUT_U64_AT, 0, offsetof(struct roomd_room_update, member_limit), 0},
};
static const struct request_shape room_update = {
    "/v1/room/Update", room_update_fields, countof(room_update_fields), "request_id"};

static const struct put_field room_remove_fields[] = {
    {"room_id", PUT_TEXT, NEEDED, offsetof(struct roomd_room_remove, room_id), 0},
    {"reason", PUT_TEXT, 0, offsetof(struct roomd_room_remove, reason), 0},
    {"by", PUT_TEXT, 0, offsetof(struct roomd_room_remove, by), 0},
};
static const struct request_shape room_remove = {
    "/v1/room/Remove", room_remove_fields, countof(room_remove_fields), "request_id"};

static const struct put_field room_add_accounts_fields[] = {
    {"room_id", PUT_TEXT, NEEDED, offsetof(struct roomd_room_add_accounts, room_id), 0},
    {"role", PUT_TEXT, 0, offsetof(struct roomd_room_add_accounts, role), 0},
    {"by", PUT_TEXT, 0, offsetof(struct roomd_room_add_accounts, by), 0},
    {"account_ids", PUT_TEXTS, NEEDED, offsetof(struct roomd_room_add_accounts, account_ids), 0},
};
static const struct request_shape room_add_accounts = {
    "/v1/room/AddAccount2Room", room_add_accounts_fields, countof(room_add_accounts_fields), "request_id"};

static const struct put_field room_rm_accounts_fields[] = {
    {"room_id", PUT_TEXT, NEEDED, offsetof(struct roomd_room_rm_accounts, room_id), 0},
    {"reason", PUT_TEXT, 0, offsetof(struct roomd_room_rm_accounts, reason), 0},
    {"by", PUT_TEXT, 0, offsetof(struct roomd_room_rm_accounts, by), 0},
    {"account_ids", PUT_TEXTS, NEEDED, offsetof(struct roomd_room_rm_accounts, account_ids), 0},
};
static const struct request_shape room_rm_accounts = {
    "/v1/room/RmAccountFromRoom", room_rm_accounts_fields, countof(room_rm_accounts_fields), "request_id"};

static const struct put_field room_mute_fields[] = {
    {"room_id", PUT_TEXT, NEEDED, offsetof(struct roomd_room_mute, room_id), 0},
    {"by", PUT_TEXT, 0, offsetof(struct roomd_room_mute, by), 0},
    {"account_ids", PUT_TEXTS, 0, offsetof(struct roomd_room_mute, account_ids), 0},
    {"until", PUT_U64_AT, 0, offsetof(struct roomd_room_mute, until), 0},
    {"for_ms", PUT_U64, 0, offsetof(struct roomd_room_mute, for_ms), 0},
};
static const struct request_shape room_mute = {
    "/v1/room/Mute", room_mute_fields, countof(room_mute_fields), "request_id"};

static const struct put_field room_set_role_fields[] = {
    {"room_id", PUT_TEXT, NEEDED, offsetof(struct roomd_room_set_role, room_id), 0},
    {"role", PUT_TEXT, NEEDED, offsetof(struct roomd_room_set_role, role), 0},
    {"by", PUT_TEXT, 0, offsetof(struct roomd_room_set_role, by), 0},
    {"account_ids", PUT_TEXTS, NEEDED, offsetof(struct roomd_room_set_role, account_ids), 0},
};
static const struct request_shape room_set_role = {
    "/v1/room/SetRole", room_set_role_fields, countof(room_set_role_fields), "request_id"};

static const struct put_field room_list_accounts_fields[] = {
    {"room_id", PUT_TEXT, NEEDED, offsetof(struct roomd_room_list_accounts, room_id), 0},
    {"after", PUT_TEXT, 0, offsetof(struct roomd_room_list_accounts, after), 0},
    {"limit", PUT_U64, 0, offsetof(struct roomd_room_list_accounts, limit), 0},
    {"account_ids", PUT_TEXTS, 0, offsetof(struct roomd_room_list_accounts, account_ids), 0},
    {"has_read", PUT_U64, 0, offsetof(struct roomd_room_list_accounts, has_read), 0},
};
static const struct request_shape room_list_accounts = {
    "/v1/room/ListAccounts", room_list_accounts_fields, countof(room_list_accounts_fields), NULL};

static const struct put_field room_list_rooms_fields[] = {
    {"account_id", PUT_TEXT, NEEDED, offsetof(struct roomd_room_list_rooms, account_id), 0},
    {"after", PUT_TEXT, 0, offsetof(struct roomd_room_list_rooms, after), 0},
    {"limit", PUT_U64, 0, offsetof(struct roomd_room_list_rooms, limit), 0},
};
static const struct request_shape room_list_rooms = {
    "/v1/room/ListRooms", room_list_rooms_fields, countof(room_list_rooms_fields), NULL};

static const struct put_field history_push_fields[] = {
    {"room_id", PUT_TEXT, NEEDED, offsetof(struct roomd_history_push, room_id), 0},
    {"sender", PUT_TEXT, NEEDED, offsetof(struct roomd_history_push, sender), 0},
    {"kind", PUT_TEXT, NEEDED, offsetof(struct roomd_history_push, kind), 0},
    {"content", PUT_CONTENT, NEEDED, offsetof(struct roomd_history_push, text),
        offsetof(struct roomd_history_push, content)},
    {"sent_at", PUT_I64, 0, offsetof(struct roomd_history_push, sent_at), 0},
    {"mentions", PUT_TEXTS, 0, offsetof(struct roomd_history_push, mentions), 0},
    {"quote_seq", PUT_U64, 0, offsetof(struct roomd_history_push, quote_seq), 0},
    {"transient", PUT_BOOL, 0, offsetof(struct roomd_history_push, transient), 0},
    {"wait", PUT_TEXT, 0, offsetof(struct roomd_history_push, wait), 0},
};
static const struct request_shape history_push = {
    "/v1/history/Push", history_push_fields, countof(history_push_fields), "client_msg_id"};

static const struct put_field history_pull_fields[] = {
    {"room_id", PUT_TEXT, NEEDED, offsetof(struct roomd_history_pull, room_id), 0},
    {"account_id", PUT_TEXT, 0, offsetof(struct roomd_history_pull, account_id), 0},
    {"after", PUT_TEXT, 0, offsetof(struct roomd_history_pull, after), 0},
    {"before", PUT_U64, 0, offsetof(struct roomd_history_pull, before), 0},
    {"limit", PUT_U64, 0, offsetof(struct roomd_history_pull, limit), 0},
    {"wait_ms", PUT_U64, 0, offsetof(struct roomd_history_pull, wait_ms), 0},
};
static const struct request_shape history_pull = {
    "/v1/history/Pull", history_pull_fields, countof(history_pull_fields), NULL};

static const struct put_field history_open_fields[] = {
    {"account_id", PUT_TEXT, NEEDED, offsetof(struct roomd_history_open, account_id), 0},
    {"rooms", PUT_POSITIONS, 0, offsetof(struct roomd_history_open, rooms),
        offsetof(struct roomd_history_open, room_count)},
    {"all", PUT_BOOL, 0, offsetof(struct roomd_history_open, all), 0},
    {"deliver", PUT_TEXT, 0, offsetof(struct roomd_history_open, deliver), 0},
    {"platform", PUT_TEXT, 0, offsetof(struct roomd_history_open, platform), 0},
    {"ttl_ms", PUT_U64, 0, offsetof(struct roomd_history_open, ttl_ms), 0},
};
static const struct request_shape history_open = {
    "/v1/history/PullByActiveConnection", history_open_fields, countof(history_open_fields), NULL};

static const struct put_field history_edit_fields[] = {
    {"room_id", PUT_TEXT, NEEDED, offsetof(struct roomd_history_edit, room_id), 0},
    {"account_id", PUT_TEXT, 0, offsetof(struct roomd_history_edit, account_id), 0},
    {"message_id", PUT_TEXT, 0, offsetof(struct roomd_history_edit, message_id), 0},
    {"seq", PUT_U64, 0, offsetof(struct roomd_history_edit, seq), 0},
    {"content", PUT_CONTENT, NEEDED, offsetof(struct roomd_history_edit, text),
        offsetof(struct roomd_history_edit, content)},
};
static const struct request_shape history_edit = {
    "/v1/history/Edit", history_edit_fields, countof(history_edit_fields), "request_id"};

static const struct put_field history_recall_fields[] = {
    {"room_id", PUT_TEXT, NEEDED, offsetof(struct roomd_history_recall, room_id), 0},
    {"account_id", PUT_TEXT, 0, offsetof(struct roomd_history_recall, account_id), 0},
    {"message_id", PUT_TEXT, 0, offsetof(struct roomd_history_recall, message_id), 0},
    {"seq", PUT_U64, 0, offsetof(struct roomd_history_recall, seq), 0},
};
static const struct request_shape history_recall = {
    "/v1/history/Recall", history_recall_fields, countof(history_recall_fields), "request_id"};

static const struct put_field history_delete_fields[] = {
    {"room_id", PUT_TEXT, NEEDED, offsetof(struct roomd_history_delete, room_id), 0},
    {"account_id", PUT_TEXT, 0, offsetof(struct roomd_history_delete, account_id), 0},
    {"message_id", PUT_TEXT, 0, offsetof(struct roomd_history_delete, message_id), 0},
    {"seq", PUT_U64, 0, offsetof(struct roomd_history_delete, seq), 0},
    {"scope", PUT_TEXT, 0, offsetof(struct roomd_history_delete, scope), 0},
};
static const struct request_shape history_delete = {
    "/v1/history/Delete", history_delete_fields, countof(history_delete_fields), "request_id"};

static const struct put_field history_mark_read_fields[] = {
    {"room_id", PUT_TEXT, NEEDED, offsetof(struct roomd_history_mark_read, room_id), 0},
    {"account_id", PUT_TEXT, NEEDED, offsetof(struct roomd_history_mark_read, account_id), 0},
    {"read_seq", PUT_U64, 0, offsetof(struct roomd_history_mark_read, read_seq), 0},
};
static const struct request_shape history_mark_read = {
    "/v1/history/MarkRead", history_mark_read_fields, countof(history_mark_read_fields), NULL};

static const struct put_field history_unread_fields[] = {
    {"account_id", PUT_TEXT, NEEDED, offsetof(struct roomd_history_unread, account_id), 0},
    {"room_ids", PUT_TEXTS, 0, offsetof(struct roomd_history_unread, room_ids), 0},
};
static const struct request_shape history_unread = {
    "/v1/history/Unread", history_unread_fields, countof(history_unread_fields), NULL};

static const struct put_field history_typing_fields[] = {
    {"room_id", PUT_TEXT, NEEDED, offsetof(struct roomd_history_typing, room_id), 0},
    {"account_id", PUT_TEXT, NEEDED, offsetof(struct roomd_history_typing, account_id), 0},
};
static const struct request_shape history_typing = {
    "/v1/history/Typing", history_typing_fields, countof(history_typing_fields), NULL};

static const struct put_field proxy_online_fields[] = {
    {"account_ids", PUT_TEXTS, NEEDED, offsetof(struct roomd_proxy_online, account_ids), 0},
};
static const struct request_shape proxy_online = {
    "/v1/proxy/Online", proxy_online_fields, countof(proxy_online_fields), NULL};

static const struct put_field proxy_connections_fields[] = {
    {"room_id", PUT_TEXT, NEEDED, offsetof(struct roomd_proxy_connections, room_id), 0},
};
static const struct request_shape proxy_connections = {
    "/v1/proxy/Connections", proxy_connections_fields, countof(proxy_connections_fields), NULL};

static const struct put_field proxy_kick_fields[] = {
    {"account_id", PUT_TEXT, NEEDED, offsetof(struct roomd_proxy_kick, account_id), 0},
    {"platform", PUT_TEXT, 0, offsetof(struct roomd_proxy_kick, platform), 0},
    {"reason", PUT_TEXT, 0, offsetof(struct roomd_proxy_kick, reason), 0},
};
static const struct request_shape proxy_kick = {"/v1/proxy/Kick", proxy_kick_fields, countof(proxy_kick_fields), NULL};

static const struct get_field entry_answer[] = {
    {"type", GET_TEXT, NEEDED, offsetof(struct roomd_entry, type), 0, NULL},
    {"room_id", GET_TEXT, 0, offsetof(struct roomd_entry, room_id), 0, NULL},
    {"epoch", GET_U64, 0, offsetof(struct roomd_entry, epoch), 0, NULL},
    {"seq", GET_U64, 0, offsetof(struct roomd_entry, seq), 0, NULL},
    {"at", GET_I64, 0, offsetof(struct roomd_entry, at), 0, NULL},
    {"message_id", GET_TEXT, 0, offsetof(struct roomd_entry, message_id), 0, NULL},
    {"client_msg_id", GET_TEXT, 0, offsetof(struct roomd_entry, client_msg_id), 0, NULL},
    {"sender", GET_TEXT, 0, offsetof(struct roomd_entry, sender), 0, NULL},
    {"kind", GET_TEXT, 0, offsetof(struct roomd_entry, kind), 0, NULL},
    {"state", GET_TEXT, 0, offsetof(struct roomd_entry, state), 0, NULL},
    {"content", GET_JSON, 0, offsetof(struct roomd_entry, content), 0, NULL},
    {"sent_at", GET_I64, 0, offsetof(struct roomd_entry, sent_at), 0, NULL},
    {"quote_seq", GET_U64, 0, offsetof(struct roomd_entry, quote_seq), 0, NULL},
    {"target_seq", GET_U64, 0, offsetof(struct roomd_entry, target_seq), 0, NULL},
    {"mentions", GET_TEXTS, 0, offsetof(struct roomd_entry, mentions), 0, NULL},
    {"account_ids", GET_TEXTS, 0, offsetof(struct roomd_entry, account_ids), 0, NULL},
    {"by", GET_TEXT, 0, offsetof(struct roomd_entry, by), 0, NULL},
    {"role", GET_TEXT, 0, offsetof(struct roomd_entry, role), 0, NULL},
    {"reason", GET_TEXT, 0, offsetof(struct roomd_entry, reason), 0, NULL},
    {"json", GET_SELF, 0, offsetof(struct roomd_entry, json), 0, NULL},
};
static const struct answer_shape entry_shape = {sizeof(struct roomd_entry), entry_answer, countof(entry_answer)};

static const struct get_field room_answer[] = {
    {"room_id", GET_TEXT, NEEDED, offsetof(struct roomd_room, room_id), 0, NULL},
    {"key", GET_TEXT, 0, offsetof(struct roomd_room, key), 0, NULL},
    {"kind", GET_TEXT, 0, offsetof(struct roomd_room, kind), 0, NULL},
    {"name", GET_TEXT, 0, offsetof(struct roomd_room, name), 0, NULL},
    {"notice", GET_TEXT, 0, offsetof(struct roomd_room, notice), 0, NULL},
    {"owner", GET_TEXT, 0, offsetof(struct roomd_room, owner), 0, NULL},
    {"history", GET_TEXT, 0, offsetof(struct roomd_room, history), 0, NULL},
    {"state", GET_TEXT, 0, offsetof(struct roomd_room, state), 0, NULL},
    {"head", GET_TEXT, 0, offsetof(struct roomd_room, head), 0, NULL},
    {"members", GET_U64, 0, offsetof(struct roomd_room, members), 0, NULL},
    {"member_limit", GET_U64, 0, offsetof(struct roomd_room, member_limit), 0, NULL},
    {"extra", GET_JSON, 0, offsetof(struct roomd_room, extra), 0, NULL},
    {"last_at", GET_I64, 0, offsetof(struct roomd_room, last_at), 0, NULL},
    {"created_at", GET_I64, 0, offsetof(struct roomd_room, created_at), 0, NULL},
    {"muted_until", GET_I64, 0, offsetof(struct roomd_room, muted_until), 0, NULL},
    {"read_seq", GET_U64, 0, offsetof(struct roomd_room, read_seq), 0, NULL},
    {"unread", GET_U64, 0, offsetof(struct roomd_room, unread), 0, NULL},
    {"mentioned", GET_U64, 0, offsetof(struct roomd_room, mentioned), 0, NULL},
    {"last", GET_ONE, 0, offsetof(struct roomd_room, last), 0, &entry_shape},
};
static const struct answer_shape room_shape = {sizeof(struct roomd_room), room_answer, countof(room_answer)};

static const struct get_field member_answer[] = {
    {"account_id", GET_TEXT, NEEDED, offsetof(struct roomd_member, account_id), 0, NULL},
    {"role", GET_TEXT, 0, offsetof(struct roomd_member, role), 0, NULL},
    {"joined_at", GET_I64, 0, offsetof(struct roomd_member, joined_at), 0, NULL},
    {"muted_until", GET_I64, 0, offsetof(struct roomd_member, muted_until), 0, NULL},
    {"join_seq", GET_U64, 0, offsetof(struct roomd_member, join_seq), 0, NULL},
    {"read_seq", GET_U64, 0, offsetof(struct roomd_member, read_seq), 0, NULL},
};
static const struct answer_shape member_shape = {sizeof(struct roomd_member), member_answer, countof(member_answer)};

static const struct get_field endpoint_answer[] = {
    {"instance", GET_TEXT, 0, offsetof(struct roomd_endpoint, instance), 0, NULL},
    {"url", GET_TEXT, NEEDED, offsetof(struct roomd_endpoint, url), 0, NULL},
};
static const struct answer_shape endpoint_shape = {
    sizeof(struct roomd_endpoint), endpoint_answer, countof(endpoint_answer)};

static const struct get_field room_head_answer[] = {
    {"room_id", GET_TEXT, NEEDED, offsetof(struct roomd_room_head, room_id), 0, NULL},
    {"head", GET_TEXT, 0, offsetof(struct roomd_room_head, head), 0, NULL},
};
static const struct answer_shape room_head_shape = {
    sizeof(struct roomd_room_head), room_head_answer, countof(room_head_answer)};

static const struct get_field unread_room_answer[] = {
    {"room_id", GET_TEXT, NEEDED, offsetof(struct roomd_unread_room, room_id), 0, NULL},
    {"head_seq", GET_U64, 0, offsetof(struct roomd_unread_room, head_seq), 0, NULL},
    {"read_seq", GET_U64, 0, offsetof(struct roomd_unread_room, read_seq), 0, NULL},
    {"unread", GET_U64, 0, offsetof(struct roomd_unread_room, unread), 0, NULL},
    {"mentioned", GET_U64, 0, offsetof(struct roomd_unread_room, mentioned), 0, NULL},
};
static const struct answer_shape unread_room_shape = {
    sizeof(struct roomd_unread_room), unread_room_answer, countof(unread_room_answer)};

static const struct get_field room_created_answer[] = {
    {"room", GET_INSIDE, NEEDED, offsetof(struct roomd_room_created, room), 0, &room_shape},
    {"created", GET_BOOL, 0, offsetof(struct roomd_room_created, created), 0, NULL},
};
static const struct answer_shape room_created_shape = {
    sizeof(struct roomd_room_created), room_created_answer, countof(room_created_answer)};

static const struct get_field room_got_answer[] = {
    {"room", GET_INSIDE, 0, offsetof(struct roomd_room_got, room), 0, &room_shape},
    {"rooms", GET_ITEMS, 0, offsetof(struct roomd_room_got, rooms), offsetof(struct roomd_room_got, room_count),
        &room_shape},
};
static const struct answer_shape room_got_shape = {
    sizeof(struct roomd_room_got), room_got_answer, countof(room_got_answer)};

static const struct get_field room_updated_answer[] = {
    {"room", GET_INSIDE, NEEDED, offsetof(struct roomd_room_updated, room), 0, &room_shape},
};
static const struct answer_shape room_updated_shape = {
    sizeof(struct roomd_room_updated), room_updated_answer, countof(room_updated_answer)};

static const struct get_field room_accounts_added_answer[] = {
    {"added", GET_TEXTS, NEEDED, offsetof(struct roomd_room_accounts_added, added), 0, NULL},
    {"already", GET_TEXTS, 0, offsetof(struct roomd_room_accounts_added, already), 0, NULL},
};
static const struct answer_shape room_accounts_added_shape = {
    sizeof(struct roomd_room_accounts_added), room_accounts_added_answer, countof(room_accounts_added_answer)};

static const struct get_field room_accounts_removed_answer[] = {
    {"removed", GET_TEXTS, NEEDED, offsetof(struct roomd_room_accounts_removed, removed), 0, NULL},
    {"absent", GET_TEXTS, 0, offsetof(struct roomd_room_accounts_removed, absent), 0, NULL},
};
static const struct answer_shape room_accounts_removed_shape = {
    sizeof(struct roomd_room_accounts_removed), room_accounts_removed_answer, countof(room_accounts_removed_answer)};

static const struct get_field room_muted_answer[] = {
    {"muted", GET_TEXTS, 0, offsetof(struct roomd_room_muted, muted), 0, NULL},
    {"absent", GET_TEXTS, 0, offsetof(struct roomd_room_muted, absent), 0, NULL},
};
static const struct answer_shape room_muted_shape = {
    sizeof(struct roomd_room_muted), room_muted_answer, countof(room_muted_answer)};

static const struct get_field room_role_set_answer[] = {
    {"changed", GET_TEXTS, NEEDED, offsetof(struct roomd_room_role_set, changed), 0, NULL},
    {"absent", GET_TEXTS, 0, offsetof(struct roomd_room_role_set, absent), 0, NULL},
};
static const struct answer_shape room_role_set_shape = {
    sizeof(struct roomd_room_role_set), room_role_set_answer, countof(room_role_set_answer)};

static const struct get_field room_accounts_answer[] = {
    {"accounts", GET_ITEMS, NEEDED, offsetof(struct roomd_room_accounts, accounts),
        offsetof(struct roomd_room_accounts, account_count), &member_shape},
    {"next", GET_TEXT, 0, offsetof(struct roomd_room_accounts, next), 0, NULL},
};
static const struct answer_shape room_accounts_shape = {
    sizeof(struct roomd_room_accounts), room_accounts_answer, countof(room_accounts_answer)};

static const struct get_field room_rooms_answer[] = {
    {"rooms", GET_ITEMS, NEEDED, offsetof(struct roomd_room_rooms, rooms),
        offsetof(struct roomd_room_rooms, room_count), &room_shape},
    {"next", GET_TEXT, 0, offsetof(struct roomd_room_rooms, next), 0, NULL},
};
static const struct answer_shape room_rooms_shape = {
    sizeof(struct roomd_room_rooms), room_rooms_answer, countof(room_rooms_answer)};

static const struct get_field history_pushed_answer[] = {
    {"message_id", GET_TEXT, NEEDED, offsetof(struct roomd_history_pushed, message_id), 0, NULL},
    {"client_msg_id", GET_TEXT, 0, offsetof(struct roomd_history_pushed, client_msg_id), 0, NULL},
    {"seq", GET_U64, 0, offsetof(struct roomd_history_pushed, seq), 0, NULL},
    {"duplicate", GET_BOOL, 0, offsetof(struct roomd_history_pushed, duplicate), 0, NULL},
};
static const struct answer_shape history_pushed_shape = {
    sizeof(struct roomd_history_pushed), history_pushed_answer, countof(history_pushed_answer)};

static const struct get_field history_pulled_answer[] = {
    {"entries", GET_ITEMS, NEEDED, offsetof(struct roomd_history_pulled, entries),
        offsetof(struct roomd_history_pulled, entry_count), &entry_shape},
    {"head", GET_TEXT, 0, offsetof(struct roomd_history_pulled, head), 0, NULL},
    {"durable_seq", GET_U64, 0, offsetof(struct roomd_history_pulled, durable_seq), 0, NULL},
    {"more", GET_BOOL, 0, offsetof(struct roomd_history_pulled, more), 0, NULL},
    {"reset", GET_TEXT, 0, offsetof(struct roomd_history_pulled, reset), 0, NULL},
};
static const struct answer_shape history_pulled_shape = {
    sizeof(struct roomd_history_pulled), history_pulled_answer, countof(history_pulled_answer)};

static const struct get_field history_changed_answer[] = {
    {"seq", GET_U64, 0, offsetof(struct roomd_history_changed, seq), 0, NULL},
};
static const struct answer_shape history_changed_shape = {
    sizeof(struct roomd_history_changed), history_changed_answer, countof(history_changed_answer)};

static const struct get_field history_marked_answer[] = {
    {"read_seq", GET_U64, NEEDED, offsetof(struct roomd_history_marked, read_seq), 0, NULL},
    {"unread", GET_U64, 0, offsetof(struct roomd_history_marked, unread), 0, NULL},
};
static const struct answer_shape history_marked_shape = {
    sizeof(struct roomd_history_marked), history_marked_answer, countof(history_marked_answer)};

static const struct get_field history_unread_of_answer[] = {
    {"rooms", GET_ITEMS, NEEDED, offsetof(struct roomd_history_unread_of, rooms),
        offsetof(struct roomd_history_unread_of, room_count), &unread_room_shape},
    {"total", GET_U64, 0, offsetof(struct roomd_history_unread_of, total), 0, NULL},
};
static const struct answer_shape history_unread_of_shape = {
    sizeof(struct roomd_history_unread_of), history_unread_of_answer, countof(history_unread_of_answer)};

static const struct get_field platform_streams_answer[] = {
    {"platform", GET_TEXT, NEEDED, offsetof(struct roomd_platform_streams, platform), 0, NULL},
    {"streams", GET_U64, NEEDED, offsetof(struct roomd_platform_streams, streams), 0, NULL},
};
static const struct answer_shape platform_streams_shape = {
    sizeof(struct roomd_platform_streams), platform_streams_answer, countof(platform_streams_answer)};

static const struct get_field online_account_answer[] = {
    {"account_id", GET_TEXT, NEEDED, offsetof(struct roomd_online_account, account_id), 0, NULL},
    {"streams", GET_U64, NEEDED, offsetof(struct roomd_online_account, streams), 0, NULL},
    {"platforms", GET_ITEMS, 0, offsetof(struct roomd_online_account, platforms),
        offsetof(struct roomd_online_account, platform_count), &platform_streams_shape},
};
static const struct answer_shape online_account_shape = {
    sizeof(struct roomd_online_account), online_account_answer, countof(online_account_answer)};

static const struct get_field proxy_online_accounts_answer[] = {
    {"accounts", GET_ITEMS, NEEDED, offsetof(struct roomd_proxy_online_accounts, accounts),
        offsetof(struct roomd_proxy_online_accounts, account_count), &online_account_shape},
    {"missing", GET_U64, 0, offsetof(struct roomd_proxy_online_accounts, missing), 0, NULL},
};
static const struct answer_shape proxy_online_accounts_shape = {
    sizeof(struct roomd_proxy_online_accounts), proxy_online_accounts_answer, countof(proxy_online_accounts_answer)};

static const struct get_field proxy_room_connections_answer[] = {
    {"streams", GET_U64, NEEDED, offsetof(struct roomd_proxy_room_connections, streams), 0, NULL},
    {"platforms", GET_ITEMS, 0, offsetof(struct roomd_proxy_room_connections, platforms),
        offsetof(struct roomd_proxy_room_connections, platform_count), &platform_streams_shape},
    {"missing", GET_U64, 0, offsetof(struct roomd_proxy_room_connections, missing), 0, NULL},
};
static const struct answer_shape proxy_room_connections_shape = {
    sizeof(struct roomd_proxy_room_connections), proxy_room_connections_answer, countof(proxy_room_connections_answer)};

static const struct get_field proxy_kicked_answer[] = {
    {"closed", GET_U64, NEEDED, offsetof(struct roomd_proxy_kicked, closed), 0, NULL},
};
static const struct answer_shape proxy_kicked_shape = {
    sizeof(struct roomd_proxy_kicked), proxy_kicked_answer, countof(proxy_kicked_answer)};

/* paths and backoff are objects of their own on the wire; here their fields stand beside the others. */
#define OPENED(name) offsetof(struct roomd_history_opened, name)
static const struct get_field paths_answer[] = {
    {"websocket", GET_TEXT, 0, OPENED(websocket_path), 0, NULL},
    {"sse", GET_TEXT, 0, OPENED(sse_path), 0, NULL},
    {"ndjson", GET_TEXT, NEEDED, OPENED(ndjson_path), 0, NULL},
    {"poll", GET_TEXT, 0, OPENED(poll_path), 0, NULL},
};
static const struct answer_shape paths_shape = {
    sizeof(struct roomd_history_opened), paths_answer, countof(paths_answer)};
static const struct get_field backoff_answer[] = {
    {"base_ms", GET_U64, 0, OPENED(backoff_base_ms), 0, NULL},
    {"factor", GET_U64, 0, OPENED(backoff_factor), 0, NULL},
    {"max_ms", GET_U64, 0, OPENED(backoff_max_ms), 0, NULL},
};
static const struct answer_shape backoff_shape = {
    sizeof(struct roomd_history_opened), backoff_answer, countof(backoff_answer)};
static const struct get_field history_opened_answer[] = {
    {"endpoints", GET_ITEMS, NEEDED, OPENED(endpoints), OPENED(endpoint_count), &endpoint_shape},
    {"paths", GET_INSIDE, NEEDED, 0, 0, &paths_shape},
    {"ticket", GET_TEXT, NEEDED, OPENED(ticket), 0, NULL},
    {"expires_at", GET_I64, 0, OPENED(expires_at), 0, NULL},
    {"heartbeat_ms", GET_U64, 0, OPENED(heartbeat_ms), 0, NULL},
    {"backoff", GET_INSIDE, 0, 0, 0, &backoff_shape},
    {"rooms", GET_ITEMS, 0, OPENED(rooms), OPENED(room_count), &room_head_shape},
};
static const struct answer_shape history_opened_shape = {
    sizeof(struct roomd_history_opened), history_opened_answer, countof(history_opened_answer)};

/* ------------------------------------------------------------------ the calls */

void roomd_room_create(struct roomd_client *client, struct roomd_call *call, const struct roomd_room_create *request,
    struct roomd_room_created *answer)
{
    call_begin(client, call, &room_create, request, &room_created_shape, answer, 0);
}

void roomd_room_get(struct roomd_client *client, struct roomd_call *call, const struct roomd_room_get *request,
    struct roomd_room_got *answer)
{
    call_begin(client, call, &room_get, request, &room_got_shape, answer, 0);
}

void roomd_room_update(struct roomd_client *client, struct roomd_call *call, const struct roomd_room_update *request,
    struct roomd_room_updated *answer)
{
    call_begin(client, call, &room_update, request, &room_updated_shape, answer, 0);
}

void roomd_room_remove(struct roomd_client *client, struct roomd_call *call, const struct roomd_room_remove *request)
{
    call_begin(client, call, &room_remove, request, NULL, NULL, 0);
}

void roomd_room_add_accounts(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_room_add_accounts *request, struct roomd_room_accounts_added *answer)
{
    call_begin(client, call, &room_add_accounts, request, &room_accounts_added_shape, answer, 0);
}

void roomd_room_rm_accounts(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_room_rm_accounts *request, struct roomd_room_accounts_removed *answer)
{
    call_begin(client, call, &room_rm_accounts, request, &room_accounts_removed_shape, answer, 0);
}

void roomd_room_mute(struct roomd_client *client, struct roomd_call *call, const struct roomd_room_mute *request,
    struct roomd_room_muted *answer)
{
    call_begin(client, call, &room_mute, request, &room_muted_shape, answer, 0);
}

void roomd_room_set_role(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_room_set_role *request, struct roomd_room_role_set *answer)
{
    call_begin(client, call, &room_set_role, request, &room_role_set_shape, answer, 0);
}

void roomd_room_list_accounts(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_room_list_accounts *request, struct roomd_room_accounts *answer)
{
    call_begin(client, call, &room_list_accounts, request, &room_accounts_shape, answer, 0);
}

void roomd_room_list_rooms(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_room_list_rooms *request, struct roomd_room_rooms *answer)
{
    call_begin(client, call, &room_list_rooms, request, &room_rooms_shape, answer, 0);
}

void roomd_history_push(struct roomd_client *client, struct roomd_call *call, const struct roomd_history_push *request,
    struct roomd_history_pushed *answer)
{
    struct roomd_history_push with_kind = *request;
    const char *request_id = call->request_id;

    if (!with_kind.kind && with_kind.text)
        with_kind.kind = "text";
    call->request_id = request->client_msg_id; /* Push has this one for it */
    call_begin(client, call, &history_push, &with_kind, &history_pushed_shape, answer, 0);
    call->request_id = request_id;
}

void roomd_history_pull(struct roomd_client *client, struct roomd_call *call, const struct roomd_history_pull *request,
    struct roomd_history_pulled *answer)
{
    call_begin(client, call, &history_pull, request, &history_pulled_shape, answer,
        (int64_t)(request->wait_ms < 60000 ? request->wait_ms : 60000));
}

void roomd_history_open(struct roomd_client *client, struct roomd_call *call, const struct roomd_history_open *request,
    struct roomd_history_opened *answer)
{
    call_begin(client, call, &history_open, request, &history_opened_shape, answer, 0);
}

void roomd_history_edit(struct roomd_client *client, struct roomd_call *call, const struct roomd_history_edit *request,
    struct roomd_history_changed *answer)
{
    call_begin(client, call, &history_edit, request, &history_changed_shape, answer, 0);
}

void roomd_history_recall(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_history_recall *request, struct roomd_history_changed *answer)
{
    call_begin(client, call, &history_recall, request, &history_changed_shape, answer, 0);
}

void roomd_history_delete(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_history_delete *request, struct roomd_history_changed *answer)
{
    call_begin(client, call, &history_delete, request, &history_changed_shape, answer, 0);
}

void roomd_history_mark_read(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_history_mark_read *request, struct roomd_history_marked *answer)
{
    call_begin(client, call, &history_mark_read, request, &history_marked_shape, answer, 0);
}

void roomd_history_unread(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_history_unread *request, struct roomd_history_unread_of *answer)
{
    call_begin(client, call, &history_unread, request, &history_unread_of_shape, answer, 0);
}

void roomd_history_typing(
    struct roomd_client *client, struct roomd_call *call, const struct roomd_history_typing *request)
{
    call_begin(client, call, &history_typing, request, NULL, NULL, 0);
}

void roomd_proxy_online(struct roomd_client *client, struct roomd_call *call, const struct roomd_proxy_online *request,
    struct roomd_proxy_online_accounts *answer)
{
    call_begin(client, call, &proxy_online, request, &proxy_online_accounts_shape, answer, 0);
}

void roomd_proxy_connections(struct roomd_client *client, struct roomd_call *call,
    const struct roomd_proxy_connections *request, struct roomd_proxy_room_connections *answer)
{
    call_begin(client, call, &proxy_connections, request, &proxy_room_connections_shape, answer, 0);
}

void roomd_proxy_kick(struct roomd_client *client, struct roomd_call *call, const struct roomd_proxy_kick *request,
    struct roomd_proxy_kicked *answer)
{
    call_begin(client, call, &proxy_kick, request, &proxy_kicked_shape, answer, 0);
}
