/*
 * Reading the fields of a call, typed: strings by the rules of names, exact integers in range, arrays with bounds.
 * Unknown fields are ignored; everything else that does not fit is told with the field's name. A null is a wrong type,
 * not an absent field.
 *
 * The first problem stays: after it every reader gives its fallback, so that a handler reads all it needs and asks
 * once, at the end, whether it was well formed. Everything returned lives until fields_clear. Thread: the loop's.
 */
#ifndef ROOMD_SERVER_API_REQUEST_H
#define ROOMD_SERVER_API_REQUEST_H

#include "room/base/json.h"
#include "room/name.h"

#define ROOM_NAME_MAX_BYTES 256
#define ROOM_NOTICE_MAX_BYTES 8192
#define ROOM_EXTRA_MAX_BYTES 16384
#define ROOM_KEY_MAX_BYTES 128
#define REASON_MAX_BYTES 256
#define AFTER_MAX_BYTES 256
#define TIME_MAX_MS INT64_C(253402300799999) /* the end of the year 9999 */

enum need { OPTIONAL, REQUIRED };

struct fields {
    char *text; /* a copy of the body: the request's own is gone when the handler returns */
    struct json object;
    struct buf scratch;
    void *owned[4];
    size_t owned_count;
    /* The first problem. */
    enum err err;      /* ERR_OK: none */
    const char *field; /* a name, or `path` */
    char why[256], path[96];
};

void fields_read(struct fields *fields, struct str body); /* the whole body is checked here */
void fields_clear(struct fields *fields);
/* A problem the handler itself found. */
void fields_refuse(struct fields *fields, enum err err, const char *field, const char *format, ...) PRINTF_LIKE(4, 5);
/* The same for a part of a field ("content.parts[2].type"); `path` is copied. */
void fields_refuse_part(struct fields *fields, enum err err, const char *path, const char *why);

bool field_given(const struct fields *fields, const char *name);
/* Raw JSON of a field of any type; empty when absent. */
struct str field_raw(const struct fields *fields, const char *name);

/* Strings. p is NULL when absent. */
/* a text that can be no room's id: no_such_room */
struct str field_room_id(struct fields *fields, const char *name, enum need need);
struct str field_account(struct fields *fields, const char *name, enum need need);
struct str field_sender(struct fields *fields, const char *name); /* an account or @system */
struct str field_client_id(struct fields *fields, const char *name);
struct str field_kind(struct fields *fields, const char *name);
struct str field_key(struct fields *fields, const char *name);
struct str field_text(struct fields *fields, const char *name, size_t max_bytes);
struct str field_message_id(struct fields *fields, const char *name); /* 26 characters that are an id */
/* The index of one of the words (NULL-terminated); `fallback` when absent. */
int field_word(struct fields *fields, const char *name, const char *const *words, int fallback);

int64_t field_integer(struct fields *fields, const char *name, int64_t least, int64_t most, int64_t fallback);
bool field_boolean(struct fields *fields, const char *name, bool fallback);
struct str field_object(struct fields *fields, const char *name, size_t max_bytes); /* raw JSON; p NULL when absent */

/* Arrays, each item once, in the order given. An absent optional one is empty. */
const struct str *field_accounts(struct fields *fields, const char *name, enum need need, size_t max, size_t *count);
const struct str *field_room_ids(struct fields *fields, const char *name, size_t max, size_t *count);

#endif
