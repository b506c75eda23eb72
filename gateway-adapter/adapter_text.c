/* Bytes; see adapter_text.h. */
#include "adapter_text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { CHUNK_BYTES = 4096, ARENA_ALIGN = 16 };

/* ------------------------------------------------------------------ buffer */

char *adapter_buf_reserve(struct adapter_buf *buf, size_t n)
{
    size_t capacity = buf->capacity ? buf->capacity : 256;
    char *p;

    if (buf->failed || n > SIZE_MAX / 4 - buf->n)
        goto fail;
    while (capacity < buf->n + n)
        capacity *= 2;
    if (capacity != buf->capacity) {
        p = realloc(buf->p, capacity);
        if (!p)
            goto fail;
        buf->p = p;
        buf->capacity = capacity;
    }
    return buf->p + buf->n;

fail:
    buf->failed = true;
    return NULL;
}

void adapter_buf_add(struct adapter_buf *buf, const void *p, size_t n)
{
    char *to = adapter_buf_reserve(buf, n);

    if (to && n) {
        memcpy(to, p, n);
        buf->n += n;
    }
}

void adapter_buf_text(struct adapter_buf *buf, const char *text)
{
    adapter_buf_add(buf, text, strlen(text));
}

void adapter_buf_printf(struct adapter_buf *buf, const char *format, ...)
{
    char text[512];
    va_list arguments;
    int n;

    va_start(arguments, format);
    n = vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    if (n < 0 || (size_t)n >= sizeof(text))
        buf->failed = true; /* only short things of bounded length are printed */
    else
        adapter_buf_add(buf, text, (size_t)n);
}

void adapter_buf_consume(struct adapter_buf *buf, size_t n)
{
    if (n == 0)
        return; /* it may have no memory at all */
    memmove(buf->p, buf->p + n, buf->n - n);
    buf->n -= n;
}

void adapter_buf_clear(struct adapter_buf *buf)
{
    free(buf->p);
    *buf = (struct adapter_buf){0};
}

/* ------------------------------------------------------------------ arena */

struct adapter_chunk {
    struct adapter_chunk *next;
    size_t used, capacity;
    _Alignas(ARENA_ALIGN) char p[];
};

void *adapter_arena_get(struct adapter_arena *arena, size_t n)
{
    struct adapter_chunk *chunk = arena->chunks;
    void *at;

    if (n > SIZE_MAX / 2)
        return NULL;
    n = (n + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    if (!chunk || chunk->capacity - chunk->used < n) {
        size_t capacity = n > CHUNK_BYTES ? n : CHUNK_BYTES;

        chunk = calloc(1, sizeof(*chunk) + capacity);
        if (!chunk)
            return NULL;
        chunk->capacity = capacity;
        chunk->next = arena->chunks;
        arena->chunks = chunk;
    }
    at = chunk->p + chunk->used;
    chunk->used += n;
    return at;
}

void adapter_arena_clear(struct adapter_arena *arena)
{
    while (arena->chunks) {
        struct adapter_chunk *next = arena->chunks->next;

        free(arena->chunks);
        arena->chunks = next;
    }
}

/* ------------------------------------------------------------------ UTF-8 and strings out */

/* Bytes of the character at p, 0 when it is none (RFC 3629: no overlong forms, no surrogates, up to U+10FFFF). */
static size_t utf8_step(const unsigned char *p, size_t n)
{
    size_t more = p[0] < 0x80 ? 0 : p[0] >= 0xc2 && p[0] < 0xe0 ? 1 : (p[0] & 0xf0) == 0xe0 ? 2 : 3;

    if (more == 0)
        return 1;
    if (p[0] < 0xc2 || p[0] > 0xf4 || n <= more)
        return 0;
    for (size_t i = 1; i <= more; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf0 && p[1] < 0x90) ||
        (p[0] == 0xf4 && p[1] > 0x8f))
        return 0;
    return more + 1;
}

bool adapter_utf8_valid(const char *p, size_t n)
{
    while (n) {
        size_t step = utf8_step((const unsigned char *)p, n);

        if (step == 0)
            return false;
        p += step;
        n -= step;
    }
    return true;
}

void adapter_json_string(struct adapter_buf *out, const char *text, size_t n)
{
    char *to = n < SIZE_MAX / 8 ? adapter_buf_reserve(out, 6 * n + 2) : NULL;
    char *start = to;

    if (!to) {
        out->failed = true;
        return;
    }
    *to++ = '"';
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];

        if (c < 0x20 || c == 0x7f) {
            memcpy(to, "\\u00", 4);
            to[4] = "0123456789abcdef"[c >> 4];
            to[5] = "0123456789abcdef"[c & 15];
            to += 6;
            continue;
        }
        if (c == '"' || c == '\\')
            *to++ = '\\';
        *to++ = (char)c;
    }
    *to++ = '"';
    out->n += (size_t)(to - start);
}

/* ------------------------------------------------------------------ JSON: checking and stepping */

struct reader {
    const char *p, *end;
    int depth; /* brackets that may still be opened */
};

static void skip_space(struct reader *in)
{
    while (in->p < in->end && (*in->p == ' ' || *in->p == '\t' || *in->p == '\n' || *in->p == '\r'))
        in->p++;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* The 4 digits behind \u; -1 when they are none. */
static long hex4(const char *p, const char *end)
{
    long value = 0;

    if (end - p < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        int digit = hex_digit(p[i]);

        if (digit < 0)
            return -1;
        value = value << 4 | digit;
    }
    return value;
}

static bool skip_escape(struct reader *in)
{
    long code;

    if (in->end - in->p < 2)
        return false;
    if (in->p[1] != 'u') {
        bool known = strchr("\"\\/bfnrt", in->p[1]) != NULL && in->p[1];

        in->p += 2;
        return known;
    }
    code = hex4(in->p + 2, in->end);
    if (code <= 0 || (code >= 0xdc00 && code < 0xe000))
        return false;
    in->p += 6;
    if (code < 0xd800 || code > 0xdfff)
        return true;
    if (in->end - in->p < 6 || in->p[0] != '\\' || in->p[1] != 'u')
        return false;
    code = hex4(in->p + 2, in->end);
    in->p += 6;
    return code >= 0xdc00 && code < 0xe000;
}

static bool skip_string(struct reader *in)
{
    if (in->p == in->end || *in->p++ != '"')
        return false;
    while (in->p < in->end) {
        unsigned char c = (unsigned char)*in->p;
        size_t step;

        if (c == '"') {
            in->p++;
            return true;
        }
        if (c == '\\') {
            if (!skip_escape(in))
                return false;
            continue;
        }
        if (c < 0x20 || !(step = utf8_step((const unsigned char *)in->p, (size_t)(in->end - in->p))))
            return false;
        in->p += step;
    }
    return false;
}

static size_t skip_digits(struct reader *in)
{
    const char *start = in->p;

    while (in->p < in->end && *in->p >= '0' && *in->p <= '9')
        in->p++;
    return (size_t)(in->p - start);
}

static bool skip_number(struct reader *in)
{
    if (in->p < in->end && *in->p == '-')
        in->p++;
    if (in->p < in->end && *in->p == '0')
        in->p++;
    else if (!skip_digits(in))
        return false;
    if (in->p < in->end && *in->p == '.') {
        in->p++;
        if (!skip_digits(in))
            return false;
    }
    if (in->p < in->end && (*in->p == 'e' || *in->p == 'E')) {
        in->p++;
        if (in->p < in->end && (*in->p == '+' || *in->p == '-'))
            in->p++;
        return skip_digits(in) > 0;
    }
    return true;
}

static bool skip_word(struct reader *in, const char *word)
{
    size_t n = strlen(word);

    if ((size_t)(in->end - in->p) < n || memcmp(in->p, word, n) != 0)
        return false;
    in->p += n;
    return true;
}

static bool skip_value(struct reader *in);

/* Behind the opening bracket. */
static bool skip_members(struct reader *in, char close)
{
    if (in->depth-- == 0)
        return false;
    skip_space(in);
    if (in->p < in->end && *in->p == close) {
        in->p++;
        in->depth++;
        return true;
    }
    for (;;) {
        skip_space(in);
        if (close == '}') {
            if (!skip_string(in))
                return false;
            skip_space(in);
            if (in->p == in->end || *in->p++ != ':')
                return false;
        }
        if (!skip_value(in))
            return false;
        skip_space(in);
        if (in->p == in->end)
            return false;
        if (*in->p == close) {
            in->p++;
            in->depth++;
            return true;
        }
        if (*in->p++ != ',')
            return false;
    }
}

static bool skip_value(struct reader *in)
{
    skip_space(in);
    if (in->p == in->end)
        return false;
    switch (*in->p) {
    case '{':
        in->p++;
        return skip_members(in, '}');
    case '[':
        in->p++;
        return skip_members(in, ']');
    case '"':
        return skip_string(in);
    case 't':
        return skip_word(in, "true");
    case 'f':
        return skip_word(in, "false");
    case 'n':
        return skip_word(in, "null");
    default:
        return skip_number(in);
    }
}

bool adapter_json_valid(const char *p, size_t n, int depth)
{
    struct reader in = {p, p + n, depth};

    if (!skip_value(&in))
        return false;
    skip_space(&in);
    return in.p == in.end;
}

enum adapter_json_type adapter_json_type(struct roomd_text value)
{
    if (value.n == 0)
        return ADAPTER_JSON_NONE;
    switch (value.p[0]) {
    case '{':
        return ADAPTER_JSON_OBJECT;
    case '[':
        return ADAPTER_JSON_ARRAY;
    case '"':
        return ADAPTER_JSON_STRING;
    case 't':
    case 'f':
        return ADAPTER_JSON_BOOL;
    case 'n':
        return ADAPTER_JSON_NULL;
    default:
        return ADAPTER_JSON_NUMBER;
    }
}

void adapter_json_walk(struct adapter_json_walk *walk, struct roomd_text object_or_array)
{
    struct reader in = {object_or_array.p, object_or_array.p + object_or_array.n, 0};

    *walk = (struct adapter_json_walk){0};
    if (object_or_array.n == 0)
        return;
    skip_space(&in);
    if (in.p < in.end && (*in.p == '{' || *in.p == '['))
        walk->rest = (struct roomd_text){in.p + 1, (size_t)(in.end - in.p - 1)};
}

static bool walk_next(struct adapter_json_walk *walk, bool members)
{
    struct reader in = {walk->rest.p, walk->rest.p + walk->rest.n, ADAPTER_JSON_DEPTH_MAX};
    const char *start;

    if (walk->rest.n == 0)
        return false;
    skip_space(&in);
    if (in.p < in.end && *in.p == ',') {
        in.p++;
        skip_space(&in);
    }
    if (members) {
        start = in.p;
        if (!skip_string(&in))
            return false;
        walk->key = (struct roomd_text){start + 1, (size_t)(in.p - start - 2)};
        skip_space(&in);
        if (in.p == in.end || *in.p++ != ':')
            return false;
        skip_space(&in);
    }
    start = in.p;
    if (in.p == in.end || *in.p == ']' || !skip_value(&in))
        return false;
    walk->value = (struct roomd_text){start, (size_t)(in.p - start)};
    walk->rest = (struct roomd_text){in.p, (size_t)(in.end - in.p)};
    return true;
}

bool adapter_json_next_member(struct adapter_json_walk *walk)
{
    return walk_next(walk, true);
}

bool adapter_json_next_item(struct adapter_json_walk *walk)
{
    return walk_next(walk, false);
}

struct roomd_text adapter_json_member(struct roomd_text object, const char *name)
{
    struct adapter_json_walk walk;
    size_t n = strlen(name);

    adapter_json_walk(&walk, object);
    while (adapter_json_next_member(&walk))
        if (walk.key.n == n && memcmp(walk.key.p, name, n) == 0)
            return walk.value;
    return (struct roomd_text){NULL, 0};
}

/* ------------------------------------------------------------------ JSON: values */

static char *put_utf8(char *to, unsigned long code)
{
    if (code < 0x80) {
        *to++ = (char)code;
        return to;
    }
    if (code < 0x800) {
        *to++ = (char)(0xc0 | code >> 6);
    } else {
        if (code < 0x10000) {
            *to++ = (char)(0xe0 | code >> 12);
        } else {
            *to++ = (char)(0xf0 | code >> 18);
            *to++ = (char)(0x80 | (code >> 12 & 0x3f));
        }
        *to++ = (char)(0x80 | (code >> 6 & 0x3f));
    }
    *to++ = (char)(0x80 | (code & 0x3f));
    return to;
}

/* The escape at p, which is valid; p behind it. */
static const char *put_escape(char **to, const char *p, const char *end)
{
    static const char letters[] = "bfnrt", meant[] = "\b\f\n\r\t";
    const char *letter;
    long code, low;

    if (p[1] != 'u') {
        letter = strchr(letters, p[1]);
        *(*to)++ = letter ? meant[letter - letters] : p[1];
        return p + 2;
    }
    code = hex4(p + 2, end);
    p += 6;
    if (code >= 0xd800 && code < 0xdc00) {
        low = hex4(p + 2, end);
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        p += 6;
    }
    *to = put_utf8(*to, (unsigned long)code);
    return p;
}

char *adapter_json_text(struct adapter_arena *arena, struct roomd_text value)
{
    char *out = adapter_arena_get(arena, value.n), *to = out;
    const char *p = value.p + 1, *end = value.p + value.n - 1;

    if (!out)
        return NULL;
    while (p < end) {
        if (*p == '\\')
            p = put_escape(&to, p, end);
        else
            *to++ = *p++;
    }
    *to = '\0';
    return out;
}

bool adapter_json_u64(struct roomd_text value, uint64_t *number)
{
    uint64_t sum = 0;

    if (value.n == 0 || value.n > 19)
        return false;
    for (size_t i = 0; i < value.n; i++) {
        if (value.p[i] < '0' || value.p[i] > '9')
            return false;
        sum = sum * 10 + (uint64_t)(value.p[i] - '0');
    }
    if (sum > INT64_MAX)
        return false;
    *number = sum;
    return true;
}
