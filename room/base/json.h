/*
 * JSON, read strictly and without building a tree: a text is checked once as a whole and its values are slices of it.
 * That is what lets message content come back as the same JSON text it was sent as. Strict means RFC 8259 and: UTF-8
 * only, no U+0000, no lone surrogates, no duplicate keys, no bytes before or behind, depth <= JSON_DEPTH_MAX.
 * Thread: pure functions. Memory: nothing is kept.
 */
#ifndef ROOMD_BASE_JSON_H
#define ROOMD_BASE_JSON_H

#include "buf.h"
#include "err.h"

#define JSON_DEPTH_MAX 32

/* jansson, which libjwt brings into the program, has functions of these names: a call of libjwt would end up here. */
#define json_string roomd_json_string
#define json_integer roomd_json_integer

enum json_type { JSON_NONE, JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

/* One value inside a text that was checked: its raw text, quotes and brackets included. */
struct json {
    const char *p;
    size_t n;
    enum json_type type; /* JSON_NONE: absent */
    bool escaped;        /* a string that holds a backslash */
};

struct json_member {
    struct str key; /* raw, without quotes; may hold escapes when key_escaped */
    bool key_escaped;
    struct json value;
};

/*
 * Check all of `text` and hand out the members of the object it is, in order.
 * *count is their number; those above `max` are checked but not handed out.
 *   false: not an acceptable text, or not an object; *why is a static sentence fit for an error message
 */
MUST_USE bool json_object_read(
    struct str text, struct json_member *members, size_t max, size_t *count, const char **why);

/* Check all of `text`, any type. */
MUST_USE bool json_check(struct str text, struct json *value, const char **why);

/* Walk a checked object or array. Start with struct json_walk w = json_walk(value); false at the end. */
struct json_walk {
    const char *at, *end;
};
struct json_walk json_walk(struct json container);
bool json_next_member(struct json_walk *walk, struct json_member *member);
bool json_next_item(struct json_walk *walk, struct json *item);

/* The member `key` of a checked object; type JSON_NONE when absent. */
struct json json_get(struct json object, const char *key);
bool json_key_is(const struct json_member *member, const char *key);

/* The text of a checked string. Without escapes *out points into the value; else it is written to `scratch` (behind
 * what is there; the slice is good until the next use of scratch that grows it). */
MUST_USE bool json_string(struct json value, struct buf *scratch, struct str *out);

/* An exact integer (no fraction, no exponent, in range of int64). */
MUST_USE bool json_integer(struct json value, int64_t *out);

bool utf8_valid(struct str s);

#endif
