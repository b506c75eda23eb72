/*
 * Bytes: a growing buffer, an arena, JSON in and out. Pure, any thread. Memory that runs out is remembered in the
 * buffer or answered NULL; nothing aborts.
 *
 * JSON is read in slices, not into a tree: a number that no C type can hold, in the content of somebody's message, must
 * not make a whole page unreadable, and content has to come back as the same text.
 */
#ifndef ROOMD_ADAPTER_TEXT_H
#define ROOMD_ADAPTER_TEXT_H

#include "roomd_ticket.h"

#include <string.h>

/* --- a growing buffer --- */

struct adapter_buf {
    char *p;
    size_t n, capacity;
    bool failed; /* out of memory once: what is in it is not whole */
};
/* NULL (and failed) when there is no memory; else room for `n` more bytes, which count after buf->n grew. */
char *adapter_buf_reserve(struct adapter_buf *buf, size_t n);
void adapter_buf_add(struct adapter_buf *buf, const void *p, size_t n);
void adapter_buf_text(struct adapter_buf *buf, const char *text);
void adapter_buf_printf(struct adapter_buf *buf, const char *format, ...) __attribute__((format(printf, 2, 3)));
void adapter_buf_consume(struct adapter_buf *buf, size_t n);
void adapter_buf_clear(struct adapter_buf *buf); /* frees */

/* --- an arena: many small pieces, freed together --- */

struct adapter_arena {
    struct adapter_chunk *chunks;
};
void *adapter_arena_get(struct adapter_arena *arena, size_t n); /* zeroed, aligned */
void adapter_arena_clear(struct adapter_arena *arena);

/* --- JSON --- */

bool adapter_utf8_valid(const char *p, size_t n);
/* Text as a JSON string, quotes and all. The text must be valid UTF-8. */
void adapter_json_string(struct adapter_buf *out, const char *text, size_t n);
/* The service takes 32 levels in a request and puts what was in one some levels deeper into answers. */
enum { ADAPTER_JSON_DEPTH_MAX = 48, ADAPTER_JSON_CONTENT_DEPTH_MAX = 31 };
/* Is it one JSON value and nothing else (RFC 8259, at most `depth` brackets deep, no U+0000, no lone surrogates)? */
bool adapter_json_valid(const char *p, size_t n, int depth);

enum adapter_json_type {
    ADAPTER_JSON_NONE,
    ADAPTER_JSON_NULL,
    ADAPTER_JSON_BOOL,
    ADAPTER_JSON_NUMBER,
    ADAPTER_JSON_STRING,
    ADAPTER_JSON_ARRAY,
    ADAPTER_JSON_OBJECT
};
enum adapter_json_type adapter_json_type(struct roomd_text value);
/* Steps through the members of a valid object: *at begins as the object itself; false at the end. */
struct adapter_json_walk {
    struct roomd_text rest;
    struct roomd_text key; /* still escaped, without quotes */
    struct roomd_text value;
};
void adapter_json_walk(struct adapter_json_walk *walk, struct roomd_text object_or_array);
bool adapter_json_next_member(struct adapter_json_walk *walk);
bool adapter_json_next_item(struct adapter_json_walk *walk);
/* The value of a member; type NONE when there is none. */
struct roomd_text adapter_json_member(struct roomd_text object, const char *name);
/* A string value decoded, NUL-terminated, in the arena; NULL without memory. */
char *adapter_json_text(struct adapter_arena *arena, struct roomd_text value);
/* A number without sign, point and exponent, below 2^63. */
bool adapter_json_u64(struct roomd_text value, uint64_t *number);

#endif
