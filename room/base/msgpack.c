#include "msgpack.h"

#include "json.h"

#include <float.h>
#include <math.h>
#include <msgpack.h>
#include <stdio.h>
#include <stdlib.h>

static bool scan(struct str packed, const char **why);
static bool write_json(const msgpack_object *object, struct buf *out, const char **why);
static bool write_packed(struct json value, msgpack_packer *packer, struct buf *scratch);

bool msgpack_to_json(struct str packed, struct buf *out, const char **why)
{
    size_t begin = out->n, used = 0;
    msgpack_unpacked unpacked;
    bool ok;

    /* The library makes room for as many items as a header declares: first make sure that they can be there. */
    if (!scan(packed, why))
        return false;
    msgpack_unpacked_init(&unpacked);
    *why = "the MessagePack body cannot be read";
    ok = msgpack_unpack_next(&unpacked, packed.p, packed.n, &used) == MSGPACK_UNPACK_SUCCESS && used == packed.n &&
         write_json(&unpacked.data, out, why);
    msgpack_unpacked_destroy(&unpacked);
    if (!ok)
        out->n = begin;
    return ok;
}

/* --- the shape of a packed value: github.com/msgpack/msgpack/blob/master/spec.md --- */

struct scan {
    const unsigned char *p, *end;
    uint64_t promised; /* items that open containers still lack; each takes a byte at least */
    unsigned depth;
    struct {
        uint64_t left; /* items, keys included */
        bool map;
    } open[JSON_DEPTH_MAX];
};

static bool scan_open(struct scan *scan, uint64_t items, bool map, const char **why)
{
    if (scan->depth == JSON_DEPTH_MAX) {
        *why = "the MessagePack body is nested deeper than 32";
        return false;
    }
    scan->promised += items;
    if (scan->promised > (uint64_t)(scan->end - scan->p)) {
        *why = "the MessagePack body ends before its last value";
        return false;
    }
    if (items > 0) {
        scan->open[scan->depth].left = items;
        scan->open[scan->depth++].map = map;
    }
    return true;
}

/* The big-endian number of `n` bytes behind the type byte. */
static bool scan_number(struct scan *scan, unsigned n, uint64_t *number)
{
    *number = 0;
    if ((size_t)(scan->end - scan->p) < n)
        return false;
    while (n--)
        *number = *number << 8 | *scan->p++;
    return true;
}

static bool scan_skip(struct scan *scan, uint64_t n)
{
    if (n > (uint64_t)(scan->end - scan->p))
        return false;
    scan->p += n;
    return true;
}

static bool is_string(unsigned char type)
{
    return (type >= 0xa0 && type <= 0xbf) || (type >= 0xd9 && type <= 0xdb);
}

static bool scan_item(struct scan *scan, const char **why)
{
    unsigned char type = *scan->p++;
    uint64_t n;

    *why = "the MessagePack body ends before its last value";
    if (type <= 0x7f || type >= 0xe0) /* small integers */
        return true;
    if (type <= 0x8f)
        return scan_open(scan, 2 * (uint64_t)(type & 15), true, why);
    if (type <= 0x9f)
        return scan_open(scan, type & 15, false, why);
    if (type <= 0xbf)
        return scan_skip(scan, type & 31);
    switch (type) {
    case 0xc0: /* nil, false, true */
    case 0xc2:
    case 0xc3:
        return true;
    case 0xca: /* float */
        return scan_skip(scan, 4);
    case 0xcb:
        return scan_skip(scan, 8);
    case 0xcc: /* unsigned and signed integers of 1, 2, 4 and 8 bytes */
    case 0xcd:
    case 0xce:
    case 0xcf:
        return scan_skip(scan, UINT64_C(1) << (type - 0xcc));
    case 0xd0:
    case 0xd1:
    case 0xd2:
    case 0xd3:
        return scan_skip(scan, UINT64_C(1) << (type - 0xd0));
    case 0xd9: /* strings */
    case 0xda:
    case 0xdb:
        return scan_number(scan, 1u << (type - 0xd9), &n) && scan_skip(scan, n);
    case 0xdc: /* arrays and maps */
    case 0xdd:
        return scan_number(scan, 2u << (type - 0xdc), &n) && scan_open(scan, n, false, why);
    case 0xde:
    case 0xdf:
        return scan_number(scan, 2u << (type - 0xde), &n) && scan_open(scan, 2 * n, true, why);
    case 0xc1:
        *why = "the MessagePack body holds the byte c1, which means nothing";
        return false;
    default:
        *why = "bin and ext have no place in a message; send text, or a file_id";
        return false;
    }
}

static bool scan(struct str packed, const char **why)
{
    struct scan scan = {.p = (const unsigned char *)packed.p, .promised = 1};

    scan.end = packed.n ? scan.p + packed.n : scan.p;
    if (packed.n == 0) {
        *why = "the MessagePack body is empty";
        return false;
    }
    while (scan.promised > 0) {
        if (scan.p == scan.end) {
            *why = "the MessagePack body ends before its last value";
            return false;
        }
        scan.promised--;
        if (scan.depth) {
            uint64_t left = scan.open[scan.depth - 1].left--;

            if (scan.open[scan.depth - 1].map && left % 2 == 0 && !is_string(*scan.p)) {
                *why = "the keys of a MessagePack map must be strings";
                return false;
            }
        }
        if (!scan_item(&scan, why))
            return false;
        while (scan.depth && scan.open[scan.depth - 1].left == 0)
            scan.depth--;
    }
    if (scan.p != scan.end) {
        *why = "something stands behind the end of the MessagePack value";
        return false;
    }
    return true;
}

/* --- into JSON --- */

static bool write_string(msgpack_object_str string, struct buf *out, const char **why)
{
    struct str text = {string.ptr, string.size};

    if (!utf8_valid(text)) {
        *why = "a MessagePack string is not valid UTF-8";
        return false;
    }
    if (text.n && memchr(text.p, '\0', text.n)) {
        *why = "a MessagePack string holds U+0000";
        return false;
    }
    buf_json_string(out, text);
    return true;
}

/* The shortest digits that read back as the same number; with a point or exponent, so that it stays a float. */
static bool write_float(double number, struct buf *out, const char **why)
{
    char text[40];

    if (!isfinite(number)) {
        *why = "NaN and infinities have no place in a message";
        return false;
    }
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, number);
        if (strtod(text, NULL) == number)
            break;
    }
    buf_text(out, text);
    if (!strpbrk(text, ".e"))
        buf_text(out, ".0");
    return true;
}

static bool write_map(const msgpack_object_map *map, struct buf *out, const char **why)
{
    buf_char(out, '{');
    for (uint32_t i = 0; i < map->size; i++) {
        if (i)
            buf_char(out, ',');
        if (!write_string(map->ptr[i].key.via.str, out, why)) /* scan saw that it is one */
            return false;
        buf_char(out, ':');
        if (!write_json(&map->ptr[i].val, out, why))
            return false;
    }
    buf_char(out, '}');
    return true;
}

static bool write_array(const msgpack_object_array *array, struct buf *out, const char **why)
{
    buf_char(out, '[');
    for (uint32_t i = 0; i < array->size; i++) {
        if (i)
            buf_char(out, ',');
        if (!write_json(&array->ptr[i], out, why))
            return false;
    }
    buf_char(out, ']');
    return true;
}

/* The recursion is as deep as scan allowed. */
static bool write_json(const msgpack_object *object, struct buf *out, const char **why)
{
    switch (object->type) {
    case MSGPACK_OBJECT_NIL:
        buf_text(out, "null");
        return true;
    case MSGPACK_OBJECT_BOOLEAN:
        buf_text(out, object->via.boolean ? "true" : "false");
        return true;
    case MSGPACK_OBJECT_POSITIVE_INTEGER:
        buf_u64(out, object->via.u64);
        return true;
    case MSGPACK_OBJECT_NEGATIVE_INTEGER:
        buf_i64(out, object->via.i64);
        return true;
    case MSGPACK_OBJECT_FLOAT32:
    case MSGPACK_OBJECT_FLOAT64:
        return write_float(object->via.f64, out, why);
    case MSGPACK_OBJECT_STR:
        return write_string(object->via.str, out, why);
    case MSGPACK_OBJECT_ARRAY:
        return write_array(&object->via.array, out, why);
    case MSGPACK_OBJECT_MAP:
        return write_map(&object->via.map, out, why);
    default:
        *why = "bin and ext have no place in a message; send text, or a file_id";
        return false;
    }
}

/* --- out of JSON --- */

static int pack_into_buf(void *data, const char *p, size_t n)
{
    buf_add(data, p, n);
    return 0;
}

bool msgpack_from_json(struct str text, struct buf *out)
{
    size_t begin = out->n;
    struct buf scratch = {0};
    msgpack_packer packer;
    struct json value;
    const char *why;
    bool ok;

    msgpack_packer_init(&packer, out, pack_into_buf);
    ok = json_check(text, &value, &why) && write_packed(value, &packer, &scratch);
    buf_clear(&scratch);
    if (!ok)
        out->n = begin;
    return ok;
}

static bool pack_string(struct str text, msgpack_packer *packer)
{
    return text.n <= UINT32_MAX && msgpack_pack_str_with_body(packer, text.p, text.n) == 0;
}

/* Content may hold any JSON number. What no integer of 64 bits can hold becomes a double, and what no double can hold
 * the largest one: infinity would be refused by those who read strictly, as we do. */
static bool pack_number(struct json value, msgpack_packer *packer, struct buf *scratch)
{
    int64_t integer;
    char *end;
    double number;

    if (json_integer(value, &integer))
        return msgpack_pack_int64(packer, integer) == 0;
    buf_reset(scratch);
    buf_add(scratch, value.p, value.n);
    buf_char(scratch, '\0');
    if (!strpbrk(scratch->p, ".eE-") && value.n <= 20) {
        unsigned long long big = strtoull(scratch->p, &end, 10);

        if (value.n < 20 || big < UINT64_MAX || strcmp(scratch->p, "18446744073709551615") == 0)
            return msgpack_pack_uint64(packer, big) == 0;
    }
    number = strtod(scratch->p, NULL);
    if (isinf(number))
        number = number > 0 ? DBL_MAX : -DBL_MAX;
    return msgpack_pack_double(packer, number) == 0;
}

static bool pack_object(struct json value, msgpack_packer *packer, struct buf *scratch)
{
    struct json_walk walk = json_walk(value), count_walk = walk;
    struct json_member member;
    struct str key;
    size_t n = 0;

    while (json_next_member(&count_walk, &member))
        n++;
    if (msgpack_pack_map(packer, n))
        return false;
    while (json_next_member(&walk, &member)) {
        struct json raw = {member.key.p - 1, member.key.n + 2, JSON_STRING, member.key_escaped};

        buf_reset(scratch);
        if (!json_string(raw, scratch, &key) || !pack_string(key, packer) ||
            !write_packed(member.value, packer, scratch))
            return false;
    }
    return true;
}

static bool pack_array(struct json value, msgpack_packer *packer, struct buf *scratch)
{
    struct json_walk walk = json_walk(value), count_walk = walk;
    struct json item;
    size_t n = 0;

    while (json_next_item(&count_walk, &item))
        n++;
    if (msgpack_pack_array(packer, n))
        return false;
    while (json_next_item(&walk, &item))
        if (!write_packed(item, packer, scratch))
            return false;
    return true;
}

/* The recursion is as deep as json_check allowed. */
static bool write_packed(struct json value, msgpack_packer *packer, struct buf *scratch)
{
    struct str text;

    switch (value.type) {
    case JSON_NULL:
        return msgpack_pack_nil(packer) == 0;
    case JSON_FALSE:
        return msgpack_pack_false(packer) == 0;
    case JSON_TRUE:
        return msgpack_pack_true(packer) == 0;
    case JSON_NUMBER:
        return pack_number(value, packer, scratch);
    case JSON_STRING:
        buf_reset(scratch);
        return json_string(value, scratch, &text) && pack_string(text, packer);
    case JSON_ARRAY:
        return pack_array(value, packer, scratch);
    case JSON_OBJECT:
        return pack_object(value, packer, scratch);
    default:
        return false;
    }
}
