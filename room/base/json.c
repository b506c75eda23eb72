#include "json.h"

#include "map.h"
#include "text.h"

#include <assert.h>
#include <stdlib.h>

/* Where the reading stands. On false `why` says what is wrong. */
struct reader {
    const char *p, *end;
    const char *why;
};

static bool read_text(struct reader *reader, struct json *value);
static bool read_value(struct reader *reader, struct json *value, unsigned depth);
static bool read_object(struct reader *reader, struct json_member *members, size_t max, size_t *count, unsigned depth);
static bool read_array(struct reader *reader, unsigned depth);
static bool read_string(struct reader *reader, bool *escaped);
static bool read_escape(struct reader *reader);
static bool read_number(struct reader *reader);
static bool read_literal(struct reader *reader, const char *literal, size_t n);

/* The keys of one object, to tell duplicates. Few keys, the usual case, are compared with each other; many go into a
 * hash table, so that a text made of nothing but keys costs no more than its length. */
enum { FEW_KEYS = 16 };
struct key {
    struct str raw;
    uint64_t hash; /* in the table only */
    bool escaped;
};
struct keys {
    size_t count;
    uint64_t seen; /* a bit per kind of key (see kind_of): no bit, no duplicate */
    bool any_escaped;
    struct key few[FEW_KEYS];
    struct key *table; /* raw.p NULL: free */
    size_t table_size; /* a power of two */
};
static bool keys_add(struct keys *keys, struct str raw, bool escaped);

/* The bytes of a string's raw text with its escapes undone, one by one. */
struct chars {
    const char *p, *end;
    unsigned char waiting[3];
    unsigned waiting_count;
};
static int chars_next(struct chars *chars);

/* --- checking --- */

static bool fail(struct reader *reader, const char *why)
{
    reader->why = why;
    return false;
}

static inline bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static inline void skip_space(struct reader *reader)
{
    while (reader->p < reader->end && is_space(*reader->p))
        reader->p++;
}

/* What may stand before and behind the one value of a text: white space. */
static bool begin_text(struct reader *reader)
{
    if (reader->end - reader->p >= 3 && memcmp(reader->p, "\xef\xbb\xbf", 3) == 0)
        return fail(reader, "a byte order mark stands before the JSON text; leave it out");
    skip_space(reader);
    if (reader->p == reader->end)
        return fail(reader, "the JSON text is empty");
    return true;
}

static bool end_text(struct reader *reader)
{
    skip_space(reader);
    if (reader->p != reader->end)
        return fail(reader, "something stands behind the end of the JSON value");
    return true;
}

bool json_object_read(struct str text, struct json_member *members, size_t max, size_t *count, const char **why)
{
    struct reader reader = {.p = text.p, .end = text.n ? text.p + text.n : text.p};

    *count = 0;
    if (!begin_text(&reader))
        goto fail;
    if (*reader.p != '{') {
        reader.why = "a JSON object is expected";
        goto fail;
    }
    if (!read_object(&reader, members, max, count, 1) || !end_text(&reader))
        goto fail;
    return true;

fail:
    *why = reader.why;
    return false;
}

bool json_check(struct str text, struct json *value, const char **why)
{
    struct reader reader = {.p = text.p, .end = text.n ? text.p + text.n : text.p};

    if (read_text(&reader, value))
        return true;
    *why = reader.why;
    return false;
}

static bool read_text(struct reader *reader, struct json *value)
{
    return begin_text(reader) && read_value(reader, value, 0) && end_text(reader);
}

/* At the first character of a value. `depth`: containers around it; they are bounded, so the recursion is. */
static bool read_value(struct reader *reader, struct json *value, unsigned depth)
{
    const char *begin = reader->p;
    bool ok;

    value->escaped = false;
    if (begin == reader->end)
        return fail(reader, "the JSON text ends where a value is expected");
    switch (*begin) {
    case '"':
        value->type = JSON_STRING;
        ok = read_string(reader, &value->escaped);
        break;
    case '{':
        value->type = JSON_OBJECT;
        ok = read_object(reader, NULL, 0, NULL, depth + 1);
        break;
    case '[':
        value->type = JSON_ARRAY;
        ok = read_array(reader, depth + 1);
        break;
    case 't':
        value->type = JSON_TRUE;
        ok = read_literal(reader, "true", 4);
        break;
    case 'f':
        value->type = JSON_FALSE;
        ok = read_literal(reader, "false", 5);
        break;
    case 'n':
        value->type = JSON_NULL;
        ok = read_literal(reader, "null", 4);
        break;
    default:
        value->type = JSON_NUMBER;
        ok = read_number(reader);
    }
    value->p = begin;
    value->n = (size_t)(reader->p - begin);
    return ok;
}

static bool read_member(struct reader *reader, struct json_member *member, struct keys *keys, unsigned depth)
{
    skip_space(reader);
    if (reader->p == reader->end || *reader->p != '"')
        return fail(reader, "a key in double quotes is expected in a JSON object");
    member->key.p = reader->p + 1;
    if (!read_string(reader, &member->key_escaped))
        return false;
    member->key.n = (size_t)(reader->p - 1 - member->key.p);
    if (!keys_add(keys, member->key, member->key_escaped))
        return fail(reader, "a key stands twice in a JSON object");
    skip_space(reader);
    if (reader->p == reader->end || *reader->p != ':')
        return fail(reader, "a colon is expected behind a key of a JSON object");
    reader->p++;
    skip_space(reader);
    return read_value(reader, &member->value, depth);
}

/* Steps over `,` (true: another item follows) or `close` (false, *ok). */
static bool another_follows(struct reader *reader, char close, bool *ok)
{
    skip_space(reader);
    *ok = true;
    if (reader->p < reader->end) {
        char c = *reader->p++;

        if (c == ',')
            return true;
        if (c == close)
            return false;
    }
    *ok = fail(reader,
        close == '}' ? "a comma or } is expected in a JSON object" : "a comma or ] is expected in a JSON array");
    return false;
}

/* True when the container that begins here is empty; steps over its bracket or brackets. */
static bool enter(struct reader *reader, char close)
{
    reader->p++;
    skip_space(reader);
    if (reader->p == reader->end || *reader->p != close)
        return false;
    reader->p++;
    return true;
}

static bool read_object(struct reader *reader, struct json_member *members, size_t max, size_t *count, unsigned depth)
{
    struct json_member unwanted;
    struct keys keys;
    size_t n = 0;
    bool ok;

    if (depth > JSON_DEPTH_MAX)
        return fail(reader, "the JSON text is nested deeper than 32");
    if (enter(reader, '}'))
        return true;
    keys.count = 0; /* not the whole struct: it is large, and this is the hot path */
    keys.seen = 0;
    keys.any_escaped = false;
    keys.table = NULL;
    do {
        ok = read_member(reader, n < max ? &members[n] : &unwanted, &keys, depth);
        n++;
    } while (ok && another_follows(reader, '}', &ok));
    free(keys.table);
    if (count)
        *count = n;
    return ok;
}

static bool read_array(struct reader *reader, unsigned depth)
{
    struct json item;
    bool ok;

    if (depth > JSON_DEPTH_MAX)
        return fail(reader, "the JSON text is nested deeper than 32");
    if (enter(reader, ']'))
        return true;
    do {
        skip_space(reader);
        ok = read_value(reader, &item, depth);
    } while (ok && another_follows(reader, ']', &ok));
    return ok;
}

static bool read_literal(struct reader *reader, const char *literal, size_t n)
{
    if ((size_t)(reader->end - reader->p) < n || memcmp(reader->p, literal, n) != 0)
        return fail(reader, "a JSON value is expected");
    reader->p += n;
    return true;
}

static inline bool is_digit(const char *p, const char *end)
{
    return p < end && *p >= '0' && *p <= '9';
}

static bool skip_digits(struct reader *reader)
{
    if (!is_digit(reader->p, reader->end))
        return fail(reader, "a digit is expected in a JSON number");
    do
        reader->p++;
    while (is_digit(reader->p, reader->end));
    return true;
}

/* RFC 8259 6: no leading zeros or plus, digits on both sides of the point. */
static bool read_number(struct reader *reader)
{
    const char *begin;

    if (*reader->p == '-')
        reader->p++;
    else if (!is_digit(reader->p, reader->end))
        return fail(reader, "a JSON value is expected");
    begin = reader->p;
    if (!skip_digits(reader))
        return false;
    if (*begin == '0' && reader->p - begin > 1)
        return fail(reader, "a JSON number does not begin with 0");
    if (reader->p < reader->end && *reader->p == '.') {
        reader->p++;
        if (!skip_digits(reader))
            return false;
    }
    if (reader->p < reader->end && (*reader->p == 'e' || *reader->p == 'E')) {
        reader->p++;
        if (reader->p < reader->end && (*reader->p == '+' || *reader->p == '-'))
            reader->p++;
        return skip_digits(reader);
    }
    return true;
}

/* --- strings --- */

/* What a byte means inside a string; the text of most strings is PLAIN. */
enum byte_class { PLAIN, QUOTE, BACKSLASH, CONTROL, HIGH };
static const unsigned char byte_class[256] = {
    [0 ... 0x1f] = CONTROL,
    ['"'] = QUOTE,
    ['\\'] = BACKSLASH,
    [0x80 ... 0xff] = HIGH,
};

static inline const char *skip_plain(const char *p, const char *end)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    const uint64_t ones = UINT64_C(0x0101010101010101);

    /* Eight bytes at a time. The lowest marked byte is exact; what is marked above it may be a borrow's doing. */
    while (end - p >= 8) {
        uint64_t word, quote, backslash, marked;

        memcpy(&word, p, 8);
        quote = word ^ (ones * '"');
        backslash = word ^ (ones * '\\');
        marked = ((quote - ones) & ~quote) | ((backslash - ones) & ~backslash) | ((word - ones * 0x20) & ~word) | word;
        marked &= ones * 0x80;
        if (marked)
            return p + (__builtin_ctzll(marked) >> 3);
        p += 8;
    }
#endif
    while (p < end && byte_class[(unsigned char)*p] == PLAIN)
        p++;
    return p;
}

/* Length of the well-formed sequence (Unicode 15, table 3-7) at `p`, whose first byte is >= 0x80; 0 when
 * there is none. */
static inline size_t utf8_sequence(const char *text, const char *end)
{
    const unsigned char *p = (const unsigned char *)text;
    size_t left = (size_t)(end - text);
    unsigned char least = 0x80, most = 0xbf;

    if (p[0] < 0xc2 || p[0] > 0xf4)
        return 0;
    if (p[0] < 0xe0)
        return left >= 2 && (p[1] & 0xc0) == 0x80 ? 2 : 0;
    if (p[0] == 0xe0)
        least = 0xa0; /* shorter forms exist */
    else if (p[0] == 0xed)
        most = 0x9f; /* surrogates */
    else if (p[0] == 0xf0)
        least = 0x90;
    else if (p[0] == 0xf4)
        most = 0x8f; /* above U+10FFFF */
    if (left < 3 || p[1] < least || p[1] > most || (p[2] & 0xc0) != 0x80)
        return 0;
    if (p[0] < 0xf0)
        return 3;
    return left >= 4 && (p[3] & 0xc0) == 0x80 ? 4 : 0;
}

/* At the opening quote; ends behind the closing one. */
static bool read_string(struct reader *reader, bool *escaped)
{
    const char *end = reader->end;
    size_t n;

    *escaped = false;
    reader->p++;
    for (;;) {
        reader->p = skip_plain(reader->p, end);
        if (reader->p == end)
            return fail(reader, "the JSON text ends inside a string");
        switch (byte_class[(unsigned char)*reader->p]) {
        case QUOTE:
            reader->p++;
            return true;
        case BACKSLASH:
            *escaped = true;
            if (!read_escape(reader))
                return false;
            break;
        case CONTROL:
            return fail(reader, "a control character in a JSON string must be written as an escape");
        default:
            do {
                n = utf8_sequence(reader->p, end);
                if (n == 0)
                    return fail(reader, "a JSON string is not valid UTF-8");
                reader->p += n;
            } while (reader->p < end && (unsigned char)*reader->p >= 0x80);
        }
    }
}

/* The number in \uXXXX at `p`, -1 when that is not what stands there. */
static int32_t code_unit(const char *p, const char *end)
{
    int32_t unit = 0;

    if (end - p < 6 || p[0] != '\\' || p[1] != 'u')
        return -1;
    for (int i = 2; i < 6; i++) {
        int digit = hex_digit(p[i]);

        if (digit < 0)
            return -1;
        unit = unit * 16 + digit;
    }
    return unit;
}

static inline bool is_high_surrogate(int32_t unit)
{
    return unit >= 0xd800 && unit <= 0xdbff;
}

static inline bool is_low_surrogate(int32_t unit)
{
    return unit >= 0xdc00 && unit <= 0xdfff;
}

static bool read_escape(struct reader *reader)
{
    int32_t unit;

    if (reader->end - reader->p < 2)
        return fail(reader, "the JSON text ends inside a string");
    switch (reader->p[1]) {
    case '"':
    case '\\':
    case '/':
    case 'b':
    case 'f':
    case 'n':
    case 'r':
    case 't':
        reader->p += 2;
        return true;
    case 'u':
        break;
    default:
        return fail(reader, "an unknown escape in a JSON string");
    }
    unit = code_unit(reader->p, reader->end);
    if (unit < 0)
        return fail(reader, "four hexadecimal digits are expected behind \\u in a JSON string");
    if (unit == 0)
        return fail(reader, "a JSON string holds U+0000");
    reader->p += 6;
    if (is_high_surrogate(unit)) {
        if (!is_low_surrogate(code_unit(reader->p, reader->end)))
            return fail(reader, "half a surrogate pair in a JSON string");
        reader->p += 6;
    } else if (is_low_surrogate(unit)) {
        return fail(reader, "half a surrogate pair in a JSON string");
    }
    return true;
}

bool utf8_valid(struct str s)
{
    const char *p = s.p, *end = s.n ? s.p + s.n : s.p;

    while (p < end) {
        size_t n = 1;

        if ((unsigned char)*p >= 0x80 && (n = utf8_sequence(p, end)) == 0)
            return false;
        p += n;
    }
    return true;
}

/* --- escapes undone, in strings that were checked --- */

static struct chars chars_of(struct str raw)
{
    return (struct chars){.p = raw.p, .end = raw.p + raw.n};
}

/* -1 at the end. */
static int chars_next(struct chars *chars)
{
    int32_t c;

    if (chars->waiting_count)
        return chars->waiting[--chars->waiting_count];
    if (chars->p == chars->end)
        return -1;
    if (*chars->p != '\\')
        return (unsigned char)*chars->p++;
    c = code_unit(chars->p, chars->end);
    if (c < 0) {
        static const char meaning[128] = {['b'] = '\b', ['f'] = '\f', ['n'] = '\n', ['r'] = '\r', ['t'] = '\t'};
        unsigned char letter = (unsigned char)chars->p[1];

        chars->p += 2;
        return meaning[letter & 127] ? meaning[letter & 127] : letter;
    }
    chars->p += 6;
    if (is_high_surrogate(c)) {
        c = 0x10000 + ((c - 0xd800) << 10) + (code_unit(chars->p, chars->end) - 0xdc00);
        chars->p += 6;
    }
    if (c < 0x80)
        return c;
    /* The first byte is returned; those behind it wait, the last at the bottom. */
    chars->waiting[chars->waiting_count++] = (unsigned char)(0x80 | (c & 0x3f));
    if (c < 0x800)
        return 0xc0 | c >> 6;
    chars->waiting[chars->waiting_count++] = (unsigned char)(0x80 | (c >> 6 & 0x3f));
    if (c < 0x10000)
        return 0xe0 | c >> 12;
    chars->waiting[chars->waiting_count++] = (unsigned char)(0x80 | (c >> 12 & 0x3f));
    return 0xf0 | c >> 18;
}

static bool same_chars(struct chars a, struct chars b)
{
    int from_a, from_b;

    do {
        from_a = chars_next(&a);
        from_b = chars_next(&b);
    } while (from_a == from_b && from_a >= 0);
    return from_a == from_b;
}

static void add_chars(struct buf *out, struct str raw)
{
    struct chars chars = chars_of(raw);
    int c;

    buf_reserve(out, raw.n); /* undoing an escape never makes it longer */
    while ((c = chars_next(&chars)) >= 0)
        buf_char(out, (char)c);
}

/* --- keys --- */

static bool same_key(const struct key *a, const struct key *b)
{
    if (!a->escaped && !b->escaped)
        return str_eq(a->raw, b->raw);
    return same_chars(chars_of(a->raw), chars_of(b->raw));
}

static inline uint64_t kind_of(struct str raw)
{
    unsigned sum = (unsigned)raw.n * 5;

    if (raw.n)
        sum += (unsigned char)raw.p[0] + 3u * (unsigned char)raw.p[raw.n - 1];
    return UINT64_C(1) << (sum & 63);
}

static struct key *slot_of(const struct keys *keys, const struct key *key)
{
    size_t mask = keys->table_size - 1, at = key->hash & mask;

    while (keys->table[at].raw.p && !(keys->table[at].hash == key->hash && same_key(&keys->table[at], key)))
        at = (at + 1) & mask;
    return &keys->table[at];
}

static uint64_t hash_of(const struct key *key)
{
    struct buf text = {0};
    uint64_t hash;

    if (!key->escaped)
        return map_hash(key->raw.p, key->raw.n);
    add_chars(&text, key->raw);
    hash = map_hash(text.p, text.n);
    buf_clear(&text);
    return hash;
}

/* Doubles the table; the first time it takes in the few. */
static void keys_grow(struct keys *keys)
{
    bool first = !keys->table;
    struct key *old = first ? keys->few : keys->table;
    size_t old_size = first ? FEW_KEYS : keys->table_size;

    keys->table_size = first ? (size_t)4 * FEW_KEYS : 2 * old_size;
    keys->table = xcalloc(keys->table_size, sizeof *keys->table);
    for (size_t i = 0; i < old_size; i++) {
        if (!old[i].raw.p)
            continue;
        if (first)
            old[i].hash = hash_of(&old[i]);
        *slot_of(keys, &old[i]) = old[i];
    }
    if (!first)
        free(old);
}

static bool keys_add_to_table(struct keys *keys, struct key *key)
{
    struct key *slot;

    if (!keys->table || keys->count * 2 >= keys->table_size)
        keys_grow(keys);
    key->hash = hash_of(key);
    slot = slot_of(keys, key);
    if (slot->raw.p)
        return false;
    *slot = *key;
    keys->count++;
    return true;
}

/* False: it is there already. */
static bool keys_add(struct keys *keys, struct str raw, bool escaped)
{
    struct key key = {.raw = raw, .escaped = escaped};
    uint64_t kind = kind_of(raw);

    if (keys->count >= FEW_KEYS)
        return keys_add_to_table(keys, &key);
    keys->any_escaped |= escaped;
    if (keys->seen & kind || keys->any_escaped)
        for (size_t i = 0; i < keys->count; i++)
            if (same_key(&keys->few[i], &key))
                return false;
    keys->seen |= kind;
    keys->few[keys->count++] = key;
    return true;
}

/* --- walking texts that were checked --- */

static const char *pass_space(const char *p, const char *end)
{
    while (p < end && is_space(*p))
        p++;
    return p;
}

/* From the opening quote to behind the closing one. */
static const char *pass_string(const char *p, bool *escaped)
{
    *escaped = false;
    for (p++; *p != '"'; p++) {
        if (*p == '\\') {
            *escaped = true;
            p++;
        }
    }
    return p + 1;
}

static const char *pass_container(const char *p)
{
    unsigned depth = 0;
    bool escaped;

    do {
        if (*p == '"') {
            p = pass_string(p, &escaped);
            continue;
        }
        if (*p == '{' || *p == '[')
            depth++;
        else if (*p == '}' || *p == ']')
            depth--;
        p++;
    } while (depth);
    return p;
}

static const char *pass_scalar(const char *p, const char *end)
{
    while (p < end && *p != ',' && *p != ']' && *p != '}' && !is_space(*p))
        p++;
    return p;
}

static const char *pass_value(const char *p, const char *end, struct json *value)
{
    value->p = p;
    value->escaped = false;
    switch (*p) {
    case '"':
        value->type = JSON_STRING;
        p = pass_string(p, &value->escaped);
        break;
    case '{':
    case '[':
        value->type = *p == '{' ? JSON_OBJECT : JSON_ARRAY;
        p = pass_container(p);
        break;
    default:
        value->type = *p == 't' ? JSON_TRUE : *p == 'f' ? JSON_FALSE : *p == 'n' ? JSON_NULL : JSON_NUMBER;
        p = pass_scalar(p, end);
    }
    value->n = (size_t)(p - value->p);
    return p;
}

struct json_walk json_walk(struct json container)
{
    if (container.type != JSON_OBJECT && container.type != JSON_ARRAY)
        return (struct json_walk){0};
    return (struct json_walk){container.p + 1, container.p + container.n - 1};
}

/* To the next key or item; false at the end. */
static bool walk_on(struct json_walk *walk)
{
    walk->at = pass_space(walk->at, walk->end);
    if (walk->at < walk->end && *walk->at == ',')
        walk->at = pass_space(walk->at + 1, walk->end);
    return walk->at < walk->end;
}

bool json_next_member(struct json_walk *walk, struct json_member *member)
{
    const char *p;

    if (!walk_on(walk))
        return false;
    member->key.p = walk->at + 1;
    p = pass_string(walk->at, &member->key_escaped);
    member->key.n = (size_t)(p - 1 - member->key.p);
    p = pass_space(p, walk->end);
    assert(*p == ':');
    walk->at = pass_value(pass_space(p + 1, walk->end), walk->end, &member->value);
    return true;
}

bool json_next_item(struct json_walk *walk, struct json *item)
{
    if (!walk_on(walk))
        return false;
    walk->at = pass_value(walk->at, walk->end, item);
    return true;
}

struct json json_get(struct json object, const char *key)
{
    struct json_walk walk = json_walk(object);
    struct json_member member;

    if (object.type == JSON_OBJECT)
        while (json_next_member(&walk, &member))
            if (json_key_is(&member, key))
                return member.value;
    return (struct json){0};
}

bool json_key_is(const struct json_member *member, const char *key)
{
    struct str plain = str_of(key);
    struct chars chars = chars_of(member->key);
    size_t i = 0;
    int c;

    if (!member->key_escaped)
        return str_eq(member->key, plain);
    /* A backslash in `key` would be a backslash, no escape. */
    while ((c = chars_next(&chars)) >= 0)
        if (i == plain.n || (unsigned char)plain.p[i++] != c)
            return false;
    return i == plain.n;
}

bool json_string(struct json value, struct buf *scratch, struct str *out)
{
    size_t begin = scratch->n;
    struct str raw;

    if (value.type != JSON_STRING)
        return false;
    raw = (struct str){value.p + 1, value.n - 2};
    if (!value.escaped) {
        *out = raw;
        return true;
    }
    add_chars(scratch, raw);
    *out = (struct str){scratch->p + begin, scratch->n - begin};
    return true;
}

bool json_integer(struct json value, int64_t *out)
{
    bool negative;
    uint64_t sum = 0, limit;
    size_t i;

    if (value.type != JSON_NUMBER)
        return false;
    negative = value.p[0] == '-';
    limit = negative ? UINT64_C(1) << 63 : INT64_MAX;
    for (i = negative ? 1 : 0; i < value.n; i++) {
        unsigned digit = (unsigned)(value.p[i] - '0');

        if (digit > 9 || sum > (limit - digit) / 10)
            return false;
        sum = sum * 10 + digit;
    }
    if (!negative)
        *out = (int64_t)sum;
    else
        *out = sum == limit ? INT64_MIN : -(int64_t)sum;
    return true;
}
