#include "room/base/pg.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

/* A result of one row, as if the server had sent it. */
static PGresult *row(int columns, const struct str *values)
{
    PGresult *result = PQmakeEmptyPGresult(NULL, PGRES_TUPLES_OK);
    PGresAttDesc description[8] = {{0}};

    for (int i = 0; i < columns; i++)
        description[i] = (PGresAttDesc){.name = "c", .format = 1, .typlen = -1};
    assert_int_equal(PQsetResultAttrs(result, columns, description), 1);
    for (int i = 0; i < columns; i++)
        assert_int_equal(
            PQsetvalue(result, 0, i, (char *)(uintptr_t)values[i].p, values[i].p ? (int)values[i].n : -1), 1);
    return result;
}

static struct str param(const struct pg_params *params, int i)
{
    return (struct str){params->data.p + params->value[i].at, (size_t)params->value[i].n};
}

static void numbers_are_big_endian(void **state)
{
    struct pg_params params = {.count = 0};

    (void)state;
    pg_param_i64(&params, -2);
    pg_param_i32(&params, 0x01020304);
    pg_param_bool(&params, true);
    assert_int_equal(params.count, 3);
    assert_true(str_eq(param(&params, 0), STR("\xff\xff\xff\xff\xff\xff\xff\xfe")));
    assert_true(str_eq(param(&params, 1), STR("\1\2\3\4")));
    assert_true(str_eq(param(&params, 2), STR("\1")));
    pg_params_clear(&params);
}

static void numbers_of_each_width_keep_their_sign(void **state)
{
    PGresult *result =
        row(4, (struct str[]){STR("\xff\xfe"), STR("\x80\0\0\0"), STR("\x7f\xff\xff\xff\xff\xff\xff\xff"), {NULL, 0}});

    (void)state;
    assert_true(pg_get_i64(result, 0, 0) == -2);
    assert_true(pg_get_i64(result, 0, 1) == INT32_MIN);
    assert_true(pg_get_i64(result, 0, 2) == INT64_MAX);
    assert_true(pg_get_i64(result, 0, 3) == 0);
    assert_true(pg_is_null(result, 0, 3));
    assert_false(pg_is_null(result, 0, 0));
    PQclear(result);
}

static void a_null_parameter_has_no_length(void **state)
{
    struct pg_params params = {.count = 0};

    (void)state;
    pg_param_null(&params);
    assert_int_equal(params.value[0].n, -1);
    pg_params_reset(&params);
    assert_int_equal(params.count, 0);
    pg_params_clear(&params);
}

static void text_ends_with_nul_unless_it_holds_one(void **state)
{
    struct pg_params params = {.count = 0};

    (void)state;
    pg_param_text(&params, STR("abc"));
    pg_param_text(&params, STR(""));
    pg_param_text(&params, STR("a\0b"));
    assert_int_equal(params.value[0].format, 0);
    assert_string_equal(params.data.p + params.value[0].at, "abc");
    assert_string_equal(params.data.p + params.value[1].at, "");
    assert_int_equal(params.value[2].format, 1);
    assert_int_equal(params.value[2].n, 3);
    pg_params_clear(&params);
}

static void an_array_reads_back_as_it_was_written(void **state)
{
    struct pg_array array = {.count = 0};
    struct pg_params params = {.count = 0};
    struct str items[5];
    PGresult *result;
    struct str value;

    (void)state;
    pg_array_reset(&array, PG_TEXT);
    pg_array_bytes(&array, STR("one"));
    pg_array_null(&array);
    pg_array_bytes(&array, STR(""));
    pg_param_array(&params, &array);
    value = param(&params, 0);
    result = row(1, &value);
    assert_int_equal(pg_get_array(result, 0, 0, items, 5), 3);
    assert_true(str_eq(items[0], STR("one")));
    assert_null(items[1].p);
    assert_int_equal(items[2].n, 0);
    assert_int_equal(pg_get_array(result, 0, 0, items, 2), 2);
    PQclear(result);
    pg_array_clear(&array);
    pg_params_clear(&params);
}

static void the_head_of_an_array_says_what_is_in_it(void **state)
{
    struct pg_array array = {.count = 0};
    struct pg_params params = {.count = 0};

    (void)state;
    pg_array_reset(&array, PG_INT2);
    pg_array_i16(&array, -1);
    pg_param_array(&params, &array);
    assert_true(str_eq(param(&params, 0), STR("\0\0\0\1"
                                              "\0\0\0\0"
                                              "\0\0\0\x15"
                                              "\0\0\0\1"
                                              "\0\0\0\1"
                                              "\0\0\0\2\xff\xff")));
    pg_array_null(&array);
    pg_param_array(&params, &array);
    assert_int_equal(param(&params, 1).p[7], 1);
    pg_array_clear(&array);
    pg_params_clear(&params);
}

static void an_empty_array_has_no_dimension(void **state)
{
    struct pg_array array = {.count = 0};
    struct pg_params params = {.count = 0};

    (void)state;
    pg_array_reset(&array, PG_INT8);
    pg_param_array(&params, &array);
    assert_true(str_eq(param(&params, 0), STR("\0\0\0\0\0\0\0\0\0\0\0\x14")));
    pg_array_i64(&array, 1);
    pg_array_reset(&array, PG_UUID);
    assert_int_equal(array.count, 0);
    pg_array_clear(&array);
    pg_params_clear(&params);
}

static void a_broken_array_gives_what_is_whole(void **state)
{
    struct str items[4];
    struct str cut = STR("\0\0\0\1\0\0\0\0\0\0\0\x19\0\0\0\2\0\0\0\1\0\0\0\1a\0\0\1\0short");
    struct str two_dimensions = STR("\0\0\0\2\0\0\0\0\0\0\0\x19\0\0\0\1\0\0\0\1\0\0\0\1\0\0\0\1");
    PGresult *result = row(4, (struct str[]){cut, two_dimensions, STR("\0\0"), {NULL, 0}});

    (void)state;
    assert_int_equal(pg_get_array(result, 0, 0, items, 4), 1);
    assert_int_equal(pg_get_array(result, 0, 1, items, 4), 0);
    assert_int_equal(pg_get_array(result, 0, 2, items, 4), 0);
    assert_int_equal(pg_get_array(result, 0, 3, items, 4), 0);
    PQclear(result);
}

static void ids_and_booleans_of_another_size_are_nothing(void **state)
{
    struct id128 id = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}};
    PGresult *result = row(4, (struct str[]){{(char *)id.b, 16}, STR("short"), STR("\1"), STR("")});

    (void)state;
    assert_true(id128_eq(pg_get_uuid(result, 0, 0), id));
    assert_true(id128_is_zero(pg_get_uuid(result, 0, 1)));
    assert_true(pg_get_bool(result, 0, 2));
    assert_false(pg_get_bool(result, 0, 3));
    assert_string_equal(pg_sqlstate(result), "00000");
    assert_string_equal(pg_sqlstate(NULL), "00000");
    PQclear(result);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_are_big_endian),
        cmocka_unit_test(numbers_of_each_width_keep_their_sign),
        cmocka_unit_test(a_null_parameter_has_no_length),
        cmocka_unit_test(text_ends_with_nul_unless_it_holds_one),
        cmocka_unit_test(an_array_reads_back_as_it_was_written),
        cmocka_unit_test(the_head_of_an_array_says_what_is_in_it),
        cmocka_unit_test(an_empty_array_has_no_dimension),
        cmocka_unit_test(a_broken_array_gives_what_is_whole),
        cmocka_unit_test(ids_and_booleans_of_another_size_are_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
