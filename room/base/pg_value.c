/* PostgreSQL's binary formats: parameters, one-dimensional arrays, and the columns of a result. Source: the *_recv and
 * *_send functions of PostgreSQL 15. */
#include "pg.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>

/* Head of an array (array_recv): dimensions, has-null flag, item type, then length and lower bound of each dimension;
 * all int4. */
enum {
    ARRAY_HEAD_BYTES = 20,
    ARRAY_EMPTY_BYTES = 12,
    ARRAY_HAS_NULL_AT = 4,
    ARRAY_TYPE_AT = 8,
    ARRAY_LENGTH_AT = 12,
    ARRAY_BOUND_AT = 16
};

static void put_u16(char *p, uint16_t value)
{
    p[0] = (char)(value >> 8);
    p[1] = (char)value;
}

static void put_u32(char *p, uint32_t value)
{
    put_u16(p, (uint16_t)(value >> 16));
    put_u16(p + 2, (uint16_t)value);
}

static void put_u64(char *p, uint64_t value)
{
    put_u32(p, (uint32_t)(value >> 32));
    put_u32(p + 4, (uint32_t)value);
}

static uint64_t get_unsigned(const char *p, size_t n)
{
    uint64_t value = 0;

    for (size_t i = 0; i < n; i++)
        value = value << 8 | (uint8_t)p[i];
    return value;
}

/* --- parameters --- */

void pg_params_reset(struct pg_params *params)
{
    buf_reset(&params->data);
    params->count = 0;
}

void pg_params_clear(struct pg_params *params)
{
    buf_clear(&params->data);
    params->count = 0;
}

/* Where the n bytes of the next parameter go. */
static char *param_room(struct pg_params *params, size_t n)
{
    char *p = buf_reserve(&params->data, n);

    assert(params->count < PG_PARAMS_MAX && n <= INT_MAX);
    params->value[params->count].at = params->data.n;
    params->value[params->count].n = (int)n;
    params->value[params->count].format = 1;
    params->count++;
    params->data.n += n;
    return p;
}

void pg_param_null(struct pg_params *params)
{
    param_room(params, 0);
    params->value[params->count - 1].n = -1;
}

void pg_param_i64(struct pg_params *params, int64_t value)
{
    put_u64(param_room(params, 8), (uint64_t)value);
}

void pg_param_i32(struct pg_params *params, int32_t value)
{
    put_u32(param_room(params, 4), (uint32_t)value);
}

void pg_param_bool(struct pg_params *params, bool value)
{
    *param_room(params, 1) = (char)value;
}

static void param_bytes(struct pg_params *params, struct str value)
{
    char *p = param_room(params, value.n);

    if (value.n > 0)
        memcpy(p, value.p, value.n);
}

/* Text format, so that the server reads it as whatever the statement says it is: jsonb's binary format is not its text.
 * libpq takes the length of a text parameter from its NUL; a value that holds one goes in binary, where the server
 * refuses it (22021) instead of storing what stands before it. */
void pg_param_text(struct pg_params *params, struct str value)
{
    param_bytes(params, value);
    *buf_reserve(&params->data, 1) = '\0';
    params->data.n++;
    params->value[params->count - 1].format = value.n > 0 && memchr(value.p, 0, value.n) != NULL;
}

void pg_param_bytea(struct pg_params *params, struct str value)
{
    param_bytes(params, value);
}

void pg_param_uuid(struct pg_params *params, struct id128 value)
{
    memcpy(param_room(params, sizeof value.b), value.b, sizeof value.b);
}

/* --- arrays --- */

void pg_array_reset(struct pg_array *array, enum pg_type type)
{
    char *head;

    buf_reset(&array->data);
    array->count = 0;
    array->type = type;
    head = buf_reserve(&array->data, ARRAY_HEAD_BYTES);
    memset(head, 0, ARRAY_HEAD_BYTES);
    put_u32(head + ARRAY_TYPE_AT, (uint32_t)type);
    array->data.n = ARRAY_HEAD_BYTES;
}

void pg_array_clear(struct pg_array *array)
{
    buf_clear(&array->data);
    array->count = 0;
}

static char *item_room(struct pg_array *array, size_t n)
{
    char *p = buf_reserve(&array->data, n + 4);

    assert(array->data.n >= ARRAY_HEAD_BYTES && n <= INT_MAX); /* pg_array_reset came first */
    put_u32(p, (uint32_t)n);
    array->data.n += n + 4;
    array->count++;
    return p + 4;
}

void pg_array_null(struct pg_array *array)
{
    put_u32(item_room(array, 0) - 4, UINT32_MAX);
    put_u32(array->data.p + ARRAY_HAS_NULL_AT, 1);
}

void pg_array_i64(struct pg_array *array, int64_t value)
{
    assert(array->type == PG_INT8);
    put_u64(item_room(array, 8), (uint64_t)value);
}

void pg_array_i32(struct pg_array *array, int32_t value)
{
    assert(array->type == PG_INT4);
    put_u32(item_room(array, 4), (uint32_t)value);
}

void pg_array_i16(struct pg_array *array, int16_t value)
{
    assert(array->type == PG_INT2);
    put_u16(item_room(array, 2), (uint16_t)value);
}

void pg_array_bool(struct pg_array *array, bool value)
{
    assert(array->type == PG_BOOL);
    *item_room(array, 1) = (char)value;
}

void pg_array_bytes(struct pg_array *array, struct str value)
{
    char *p = item_room(array, value.n);

    assert(array->type == PG_TEXT || array->type == PG_BYTEA);
    if (value.n > 0)
        memcpy(p, value.p, value.n);
}

void pg_array_uuid(struct pg_array *array, struct id128 value)
{
    assert(array->type == PG_UUID);
    memcpy(item_room(array, sizeof value.b), value.b, sizeof value.b);
}

void pg_array_uuid_or_null(struct pg_array *array, struct id128 value)
{
    if (id128_is_zero(value))
        pg_array_null(array);
    else
        pg_array_uuid(array, value);
}

void pg_param_array(struct pg_params *params, struct pg_array *array)
{
    assert(array->data.n >= ARRAY_HEAD_BYTES);
    if (array->count == 0) { /* an array of length 0 has no dimension */
        param_bytes(params, (struct str){array->data.p, ARRAY_EMPTY_BYTES});
        return;
    }
    put_u32(array->data.p, 1);
    put_u32(array->data.p + ARRAY_LENGTH_AT, (uint32_t)array->count);
    put_u32(array->data.p + ARRAY_BOUND_AT, 1);
    param_bytes(params, buf_str(&array->data));
}

/* --- results --- */

const char *pg_sqlstate(const PGresult *result)
{
    const char *code = result ? PQresultErrorField(result, PG_DIAG_SQLSTATE) : NULL;

    return code ? code : "00000";
}

bool pg_is_null(const PGresult *result, int row, int column)
{
    return PQgetisnull(result, row, column) != 0;
}

struct str pg_get_str(const PGresult *result, int row, int column)
{
    assert(row < PQntuples(result) && column < PQnfields(result));
    return (struct str){PQgetvalue(result, row, column), (size_t)PQgetlength(result, row, column)};
}

int64_t pg_get_i64(const PGresult *result, int row, int column)
{
    struct str value = pg_get_str(result, row, column);

    switch (value.n) {
    case 2:
        return (int16_t)get_unsigned(value.p, 2);
    case 4:
        return (int32_t)get_unsigned(value.p, 4);
    case 8:
        return (int64_t)get_unsigned(value.p, 8);
    default:
        return 0;
    }
}

bool pg_get_bool(const PGresult *result, int row, int column)
{
    struct str value = pg_get_str(result, row, column);

    return value.n == 1 && value.p[0] != 0;
}

struct id128 pg_get_uuid(const PGresult *result, int row, int column)
{
    struct str value = pg_get_str(result, row, column);
    struct id128 id = {{0}};

    if (value.n == sizeof id.b)
        memcpy(id.b, value.p, sizeof id.b);
    return id;
}

int pg_get_array(const PGresult *result, int row, int column, struct str *items, int max)
{
    struct str value = pg_get_str(result, row, column);
    size_t at = ARRAY_HEAD_BYTES;
    uint64_t length;
    int n = 0;

    if (value.n < ARRAY_HEAD_BYTES || get_unsigned(value.p, 4) != 1)
        return 0; /* empty, NULL, or not one-dimensional */
    length = get_unsigned(value.p + ARRAY_LENGTH_AT, 4);
    while (n < max && (uint64_t)n < length && at + 4 <= value.n) {
        uint64_t size = get_unsigned(value.p + at, 4);

        at += 4;
        if (size == UINT32_MAX) {
            items[n++] = (struct str){NULL, 0};
            continue;
        }
        if (size > value.n - at)
            break;
        items[n++] = (struct str){value.p + at, size};
        at += size;
    }
    return n;
}
