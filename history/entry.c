#define _GNU_SOURCE /* memmem */
#include "entry.h"

#include <assert.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include "room/base/json.h"

static const char *const type_names[ENTRY_TYPES] = {
    [ENTRY_VOID] = "void",
    [ENTRY_MESSAGE] = "message",
    [ENTRY_EDITED] = "message.edited",
    [ENTRY_RECALLED] = "message.recalled",
    [ENTRY_DELETED] = "message.deleted",
    [ENTRY_JOINED] = "member.joined",
    [ENTRY_LEFT] = "member.left",
    [ENTRY_UPDATED] = "room.updated",
    [ENTRY_REMOVED] = "room.removed",
    [ENTRY_MEMBER_UPDATED] = "member.updated",
};
static const char *const state_names[] = {NULL, "edited", "recalled", "deleted"};

void one_line(char *json, size_t n)
{
    for (char *at = json; (at = memchr(at, '\n', n - (size_t)(at - json)));)
        *at = ' ';
    for (char *at = json; (at = memchr(at, '\r', n - (size_t)(at - json)));)
        *at = ' ';
}

const char *entry_type_name(enum entry_type type)
{
    assert(type < ENTRY_TYPES);
    return type_names[type];
}

/* Writing into memory known to be large enough: no growth checks on the hot path. */
static char *put(char *at, const char *p, size_t n)
{
    memcpy(at, p, n);
    return at + n;
}
#define PUT(at, literal) put((at), (literal), sizeof(literal) - 1)

static char *put_u64(char *at, uint64_t value)
{
    char digits[20];
    size_t n = sizeof digits;

    do
        digits[--n] = (char)('0' + value % 10);
    while (value /= 10);
    return put(at, digits + n, sizeof digits - n);
}

/* As buf_json_string; room for 6 bytes per byte is the caller's. */
static char *put_string(char *at, struct str s)
{
    static const char hex[] = "0123456789abcdef";

    *at++ = '"';
    for (size_t i = 0; i < s.n; i++) {
        unsigned char c = (unsigned char)s.p[i];

        if (c == '"' || c == '\\') {
            *at++ = '\\';
            *at++ = (char)c;
        } else if (c < 0x20) {
            at = PUT(at, "\\u00");
            *at++ = hex[c >> 4];
            *at++ = hex[c & 15];
        } else {
            *at++ = (char)c;
        }
    }
    *at++ = '"';
    return at;
}

static char *put_message(char *at, const struct entry_parts *parts)
{
    bool gone = parts->state >= 2;

    at = PUT(at, ",\"message_id\":\"");
    ulid_write(at, parts->message_id);
    at += ULID_TEXT;
    at = PUT(at, "\",\"client_msg_id\":");
    at = put_string(at, parts->client_msg_id);
    at = PUT(at, ",\"sender\":");
    at = put_string(at, parts->sender);
    at = PUT(at, ",\"kind\":");
    at = put_string(at, parts->kind);
    if (!gone) {
        at = PUT(at, ",\"content\":");
        at = put(at, parts->content.p, parts->content.n);
        if (parts->meta.n) {
            *at++ = ',';
            at = put(at, parts->meta.p, parts->meta.n);
        }
    }
    if (parts->state) {
        at = PUT(at, ",\"state\":\"");
        at = put(at, state_names[parts->state], strlen(state_names[parts->state]));
        *at++ = '"';
    }
    return at;
}

struct entry *entry_new(const struct entry_parts *parts)
{
    const char *name = entry_type_name(parts->type);
    size_t most = 256 + parts->room_id.n + parts->content.n + parts->meta.n +
                  6 * (parts->sender.n + parts->client_msg_id.n) + parts->kind.n;
    struct entry *entry = xmalloc(sizeof *entry + most);
    char *at = entry->json;

    entry->holders = 1;
    entry->room_no = parts->room_no;
    entry->epoch = parts->epoch;
    entry->seq = parts->seq;
    entry->at = parts->at;
    entry->counted = parts->counted;
    entry->type = parts->type;

    at = PUT(at, "{\"type\":\"");
    at = put(at, name, strlen(name));
    at = PUT(at, "\",\"room_id\":\"");
    at = put(at, parts->room_id.p, parts->room_id.n);
    at = PUT(at, "\",\"epoch\":");
    at = put_u64(at, parts->epoch);
    at = PUT(at, ",\"seq\":");
    at = put_u64(at, parts->seq);
    at = PUT(at, ",\"at\":");
    at = put_u64(at, parts->at);
    if (parts->type == ENTRY_MESSAGE) {
        at = put_message(at, parts);
    } else if (parts->content.n) {
        *at++ = ',';
        at = put(at, parts->content.p, parts->content.n);
        if (parts->type == ENTRY_EDITED && parts->meta.n) {
            *at++ = ',';
            at = put(at, parts->meta.p, parts->meta.n);
        }
    }
    *at++ = '}';
    entry->n = (uint32_t)(at - entry->json);
    one_line(entry->json, entry->n); /* content is the JSON text it came as: line breaks may stand between its tokens */
    assert(entry->n <= most);
    return entry;
}

struct entry *entry_tombstone(const struct entry *entry, int state)
{
    /* Only ever a member's name in our own text: inside a string its quotes would be escaped. What follows content are
     * members that go with it. */
    static const char name[] = ",\"content\":";
    const char *cut = memmem(entry->json, entry->n, name, sizeof name - 1);
    size_t kept = cut ? (size_t)(cut - entry->json) : entry->n - 1;
    struct entry *tombstone = xmalloc(sizeof *tombstone + kept + 32);
    char *at = put(tombstone->json, entry->json, kept);

    assert(state == 2 || state == 3);
    memcpy(tombstone, entry, offsetof(struct entry, json));
    tombstone->holders = 1;
    if (entry->type == ENTRY_MESSAGE && cut) {
        at = PUT(at, ",\"state\":\"");
        at = put(at, state_names[state], strlen(state_names[state]));
        *at++ = '"';
    }
    *at++ = '}';
    tombstone->n = (uint32_t)(at - tombstone->json);
    return tombstone;
}

uint64_t entry_target(const struct entry *entry)
{
    static const char name[] = ",\"target_seq\":";
    const char *at = NULL;
    uint64_t seq = 0;

    if (entry->type == ENTRY_EDITED || entry->type == ENTRY_RECALLED || entry->type == ENTRY_DELETED)
        at = memmem(entry->json, entry->n, name, sizeof name - 1);
    if (!at)
        return 0;
    for (at += sizeof name - 1; *at >= '0' && *at <= '9'; at++)
        seq = seq * 10 + (uint64_t)(*at - '0');
    return seq;
}

void entry_accounts(const struct entry *entry, void (*each)(void *arg, struct str account), void *arg)
{
    struct json object, item;
    struct json_walk walk;
    struct buf scratch = {0};
    struct str account;
    const char *why;

    if (!json_check(entry_json(entry), &object, &why) || object.type != JSON_OBJECT)
        return;
    item = json_get(object, "account_ids");
    if (item.type != JSON_ARRAY)
        return;
    for (walk = json_walk(item); json_next_item(&walk, &item);) {
        buf_reset(&scratch);
        if (item.type == JSON_STRING && json_string(item, &scratch, &account))
            each(arg, account);
    }
    buf_clear(&scratch);
}

bool entry_message_id(const struct entry *entry, struct id128 *id)
{
    static const char name[] = "\"message_id\":\"";
    const char *at = NULL;

    if (entry->type == ENTRY_MESSAGE) /* the first one is ours: before it stand numbers and the room only */
        at = memmem(entry->json, entry->n, name, sizeof name - 1);
    return at && (size_t)(entry->json + entry->n - at) >= sizeof name - 1 + ULID_TEXT &&
           ulid_read(id, (struct str){at + sizeof name - 1, ULID_TEXT});
}

bool entry_hides_since(const struct entry *entry, uint64_t first_seq)
{
    return first_seq && entry->type == ENTRY_EDITED && entry_target(entry) < first_seq;
}

struct entry *entry_since(struct entry *entry, uint64_t first_seq)
{
    return entry_hides_since(entry, first_seq) ? entry_tombstone(entry, 2) : entry_hold(entry);
}

struct entry *entry_hold(struct entry *entry)
{
    entry->holders++;
    return entry;
}

void entry_drop(struct entry *entry)
{
    if (entry && --entry->holders == 0)
        free(entry);
}

/* Decimal without sign, leading zeros or overflow; at most 18 digits, which is what the database can hold. */
static bool number_read(struct str text, uint64_t *value)
{
    if (text.n < 1 || text.n > 18 || (text.n > 1 && text.p[0] == '0'))
        return false;
    *value = 0;
    for (size_t i = 0; i < text.n; i++) {
        if (text.p[i] < '0' || text.p[i] > '9')
            return false;
        *value = *value * 10 + (uint64_t)(text.p[i] - '0');
    }
    return true;
}

bool cursor_read(struct cursor *cursor, struct str text)
{
    const char *colon = text.n ? memchr(text.p, ':', text.n) : NULL;
    struct cursor read = {UINT64_MAX, 0};

    if (colon) {
        size_t n = (size_t)(colon - text.p);

        if (!number_read((struct str){text.p, n}, &read.epoch) ||
            !number_read((struct str){colon + 1, text.n - n - 1}, &read.seq))
            return false;
    } else if (!number_read(text, &read.seq)) {
        return false;
    }
    *cursor = read;
    return true;
}

size_t cursor_write(char text[CURSOR_TEXT_MAX], struct cursor cursor)
{
    char *at = text;

    if (cursor.epoch != UINT64_MAX) {
        at = put_u64(at, cursor.epoch);
        *at++ = ':';
    }
    at = put_u64(at, cursor.seq);
    *at = '\0';
    return (size_t)(at - text);
}

bool position_read(struct str text, struct str *room_id, struct cursor *cursor)
{
    const char *at = text.n ? memchr(text.p, '@', text.n) : NULL;
    size_t n;

    if (!at)
        return false;
    n = (size_t)(at - text.p);
    if (n == 0 || !cursor_read(cursor, (struct str){at + 1, text.n - n - 1}))
        return false;
    *room_id = (struct str){text.p, n};
    return true;
}
