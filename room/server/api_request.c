#include "api_request.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "room/base/map.h"

void fields_read(struct fields *fields, struct str body)
{
    const char *why = NULL;

    *fields = (struct fields){0};
    if (!body.n) {
        fields_refuse(
            fields, ERR_BAD_REQUEST, NULL, "the body is empty; send a JSON object with the fields of the call");
        return;
    }
    fields->text = xmemdup(body.p, body.n);
    if (!json_check((struct str){fields->text, body.n}, &fields->object, &why))
        fields_refuse(fields, ERR_BAD_REQUEST, NULL, "the body is not acceptable JSON: %s", why);
    else if (fields->object.type != JSON_OBJECT)
        fields_refuse(fields, ERR_BAD_REQUEST, NULL, "the body must be a JSON object");
    /* Unescaped texts are never longer than escaped ones, so that the scratch never moves under the
     * slices given out. */
    buf_reserve(&fields->scratch, body.n);
}

void fields_clear(struct fields *fields)
{
    for (size_t i = 0; i < fields->owned_count; i++)
        free(fields->owned[i]);
    buf_clear(&fields->scratch);
    free(fields->text);
    *fields = (struct fields){0};
}

void fields_refuse(struct fields *fields, enum err err, const char *field, const char *format, ...)
{
    va_list args;

    if (fields->err)
        return;
    fields->err = err;
    fields->field = field;
    va_start(args, format);
    vsnprintf(fields->why, sizeof fields->why, format, args);
    va_end(args);
}

void fields_refuse_part(struct fields *fields, enum err err, const char *path, const char *why)
{
    if (fields->err)
        return;
    snprintf(fields->path, sizeof fields->path, "%s", path);
    fields_refuse(fields, err, fields->path, "%s", why);
}

static struct json get(const struct fields *fields, const char *name)
{
    if (fields->err)
        return (struct json){.type = JSON_NONE};
    return json_get(fields->object, name);
}

bool field_given(const struct fields *fields, const char *name)
{
    return get(fields, name).type != JSON_NONE;
}

struct str field_raw(const struct fields *fields, const char *name)
{
    struct json value = get(fields, name);

    return (struct str){value.p, value.n};
}

/* ------------------------------------------------------------------------------------------------------- strings */

/* false: absent, or refused. */
static bool take_string(struct fields *fields, const char *name, enum need need, struct str *out)
{
    struct json value = get(fields, name);

    *out = (struct str){NULL, 0};
    if (fields->err)
        return false;
    if (value.type == JSON_NONE) {
        if (need == REQUIRED)
            fields_refuse(fields, ERR_BAD_REQUEST, name, "%s is missing", name);
        return false;
    }
    if (value.type != JSON_STRING || !json_string(value, &fields->scratch, out)) {
        fields_refuse(fields, ERR_BAD_REQUEST, name, "%s must be a string", name);
        return false;
    }
    if (!out->p)
        out->p = ""; /* given, and empty */
    return true;
}

static bool room_id_possible(struct fields *fields, const char *name, struct str room_id)
{
    struct str shard;

    if (!client_id_valid(room_id)) {
        fields_refuse(fields, ERR_BAD_REQUEST, name, "%s must be the id of a room, as Create answered it", name);
        return false;
    }
    return room_id_read(room_id, &shard);
}

struct str field_room_id(struct fields *fields, const char *name, enum need need)
{
    struct str room_id;

    if (take_string(fields, name, need, &room_id) && !room_id_possible(fields, name, room_id))
        fields_refuse(fields, ERR_NO_SUCH_ROOM, NULL, "there is no room with this id");
    return room_id;
}

#define ACCOUNT_RULE "1-64 bytes of UTF-8 without control characters, not beginning with @"

struct str field_account(struct fields *fields, const char *name, enum need need)
{
    struct str account;

    if (take_string(fields, name, need, &account) && !account_valid(account))
        fields_refuse(fields, ERR_BAD_REQUEST, name, "%s must be an account: " ACCOUNT_RULE, name);
    return account;
}

struct str field_sender(struct fields *fields, const char *name)
{
    struct str sender;

    if (take_string(fields, name, REQUIRED, &sender) && !account_valid(sender) && !str_is(sender, "@system"))
        fields_refuse(fields, ERR_BAD_REQUEST, name, "%s must be @system or an account: " ACCOUNT_RULE, name);
    return sender;
}

struct str field_client_id(struct fields *fields, const char *name)
{
    struct str id;

    if (take_string(fields, name, OPTIONAL, &id) && !client_id_valid(id))
        fields_refuse(fields, ERR_BAD_REQUEST, name, "%s must be 1-64 bytes of UTF-8 without control characters", name);
    return id;
}

struct str field_kind(struct fields *fields, const char *name)
{
    struct str kind;

    if (take_string(fields, name, REQUIRED, &kind) && !kind_valid(kind))
        fields_refuse(fields, ERR_BAD_REQUEST, name, "%s must be 1-64 characters of A-Z a-z 0-9 _ . / -", name);
    return kind;
}

struct str field_key(struct fields *fields, const char *name)
{
    struct str key;

    if (!take_string(fields, name, OPTIONAL, &key))
        return key;
    for (size_t i = 0; i < key.n; i++)
        if ((unsigned char)key.p[i] < 0x20 || key.p[i] == 0x7f)
            fields_refuse(fields, ERR_BAD_REQUEST, name, "%s must not hold control characters", name);
    if (key.n < 1 || key.n > ROOM_KEY_MAX_BYTES)
        fields_refuse(fields, ERR_BAD_REQUEST, name, "%s must have 1-%d bytes", name, ROOM_KEY_MAX_BYTES);
    return key;
}

struct str field_text(struct fields *fields, const char *name, size_t max_bytes)
{
    struct str text;

    if (take_string(fields, name, OPTIONAL, &text) && text.n > max_bytes)
        fields_refuse(fields, ERR_BAD_REQUEST, name, "%s must not be longer than %zu bytes", name, max_bytes);
    return text;
}

struct str field_message_id(struct fields *fields, const char *name)
{
    struct str text;
    struct id128 id;

    if (take_string(fields, name, OPTIONAL, &text) && !ulid_read(&id, text))
        fields_refuse(fields, ERR_BAD_REQUEST, name, "%s must be the message_id of a message: 26 characters", name);
    return text;
}

int field_word(struct fields *fields, const char *name, const char *const *words, int fallback)
{
    struct str text;
    struct buf choice = {0};

    if (!take_string(fields, name, OPTIONAL, &text))
        return fallback;
    for (int i = 0; words[i]; i++) {
        if (str_is(text, words[i])) {
            buf_clear(&choice);
            return i;
        }
        buf_printf(&choice, "%s%s", i ? ", " : "", words[i]);
    }
    fields_refuse(fields, ERR_BAD_REQUEST, name, "%s must be one of: %.*s", name, STR_ARG(buf_str(&choice)));
    buf_clear(&choice);
    return fallback;
}

/* ------------------------------------------------------------------------------------------------- other scalars */

int64_t field_integer(struct fields *fields, const char *name, int64_t least, int64_t most, int64_t fallback)
{
    struct json value = get(fields, name);
    int64_t number;

    if (value.type == JSON_NONE)
        return fallback;
    if (value.type != JSON_NUMBER || !json_integer(value, &number) || number < least || number > most) {
        fields_refuse(fields, ERR_BAD_REQUEST, name, "%s must be an integer from %lld to %lld", name, (long long)least,
            (long long)most);
        return fallback;
    }
    return number;
}

bool field_boolean(struct fields *fields, const char *name, bool fallback)
{
    struct json value = get(fields, name);

    if (value.type == JSON_NONE)
        return fallback;
    if (value.type != JSON_TRUE && value.type != JSON_FALSE) {
        fields_refuse(fields, ERR_BAD_REQUEST, name, "%s must be true or false", name);
        return fallback;
    }
    return value.type == JSON_TRUE;
}

struct str field_object(struct fields *fields, const char *name, size_t max_bytes)
{
    struct json value = get(fields, name);

    if (value.type == JSON_NONE)
        return (struct str){NULL, 0};
    if (value.type != JSON_OBJECT)
        fields_refuse(fields, ERR_BAD_REQUEST, name, "%s must be an object", name);
    else if (value.n > max_bytes)
        fields_refuse(fields, ERR_BAD_REQUEST, name, "%s must not be longer than %zu bytes of JSON", name, max_bytes);
    return (struct str){value.p, value.n};
}

/* -------------------------------------------------------------------------------------------------------- arrays */

/* A set of slices by their place: a thousand items must not cost a million comparisons. */
struct seen {
    struct map map;
    struct seen_item {
        struct map_link link;
        struct str text;
    } * items;
    size_t count;
};

static bool seen_equal(const struct map_link *link, const void *key)
{
    return str_eq(container_of(link, struct seen_item, link)->text, *(const struct str *)key);
}

static bool seen_before(struct seen *seen, struct str text)
{
    uint64_t hash = map_hash(text.p, text.n);

    if (map_find(&seen->map, hash, seen_equal, &text))
        return true;
    seen->items[seen->count].text = text;
    map_insert(&seen->map, hash, &seen->items[seen->count++].link);
    return false;
}

typedef void (*item_check)(struct fields *fields, const char *name, struct str item);

static const struct str *take_array(
    struct fields *fields, const char *name, size_t max, size_t *count, item_check check)
{
    struct json value = get(fields, name), item;
    struct json_walk walk;
    struct seen seen = {0};
    struct str *items;
    size_t given = 0;

    *count = 0;
    if (value.type == JSON_NONE)
        return NULL;
    if (value.type != JSON_ARRAY) {
        fields_refuse(fields, ERR_BAD_REQUEST, name, "%s must be an array of strings", name);
        return NULL;
    }
    assert(fields->owned_count < countof(fields->owned));
    items = fields->owned[fields->owned_count++] = xcalloc(max, sizeof *items);
    seen.items = xcalloc(max, sizeof *seen.items);
    map_init(&seen.map);
    for (walk = json_walk(value); !fields->err && json_next_item(&walk, &item);) {
        struct str text;

        if (++given > max)
            fields_refuse(fields, ERR_BAD_REQUEST, name, "%s must not hold more than %zu items", name, max);
        else if (item.type != JSON_STRING || !json_string(item, &fields->scratch, &text))
            fields_refuse(fields, ERR_BAD_REQUEST, name, "%s must be an array of strings", name);
        else {
            check(fields, name, text);
            if (!fields->err && !seen_before(&seen, text))
                items[(*count)++] = text;
        }
    }
    map_clear(&seen.map);
    free(seen.items);
    return items;
}

static void check_account(struct fields *fields, const char *name, struct str item)
{
    if (!account_valid(item))
        fields_refuse(fields, ERR_BAD_REQUEST, name, "%s must hold accounts only: " ACCOUNT_RULE, name);
}

static void check_room_id(struct fields *fields, const char *name, struct str item)
{
    (void)room_id_possible(fields, name, item); /* one that can be no room's is one that is not found */
}

const struct str *field_accounts(struct fields *fields, const char *name, enum need need, size_t max, size_t *count)
{
    const struct str *accounts = take_array(fields, name, max, count, check_account);

    if (need == REQUIRED && !*count)
        fields_refuse(fields, ERR_BAD_REQUEST, name, accounts ? "%s is empty" : "%s is missing", name);
    return accounts;
}

const struct str *field_room_ids(struct fields *fields, const char *name, size_t max, size_t *count)
{
    return take_array(fields, name, max, count, check_room_id);
}
