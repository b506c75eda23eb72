/* Buffers, counted bytes and the small words of mem.h. */
#include "room/base/buf.h"
#include "room/base/bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static void holds(struct buf *buf, const char *text)
{
    if (!str_is(buf_str(buf), text))
        fail_msg("holds \"%.*s\", not \"%s\"", STR_ARG(buf_str(buf)), text);
    buf_reset(buf);
}

static void what_is_added_stands_in_order(void **state)
{
    struct buf buf = {0};

    (void)state;
    buf_add(&buf, NULL, 0);
    buf_add_str(&buf, (struct str){NULL, 0});
    assert_int_equal(buf.n, 0);
    buf_text(&buf, "a");
    buf_char(&buf, 'b');
    buf_add(&buf, "cdX", 2);
    buf_add_str(&buf, STR("e"));
    buf_text(&buf, "");
    holds(&buf, "abcde");
    buf_clear(&buf);
    buf_text(&buf, "again");
    holds(&buf, "again");
    buf_clear(&buf);
    assert_null(buf.p);
}

static void numbers_are_written_whole(void **state)
{
    static const int64_t numbers[] = {0, 1, -1, 9, 10, -10, 12345678901234, INT64_MAX, INT64_MIN, INT64_MIN + 1};
    struct buf buf = {0};
    char text[40];

    (void)state;
    for (size_t i = 0; i < countof(numbers); i++) {
        snprintf(text, sizeof text, "%lld", (long long)numbers[i]);
        buf_i64(&buf, numbers[i]);
        holds(&buf, text);
        snprintf(text, sizeof text, "%llu", (unsigned long long)numbers[i]);
        buf_u64(&buf, (uint64_t)numbers[i]);
        holds(&buf, text);
    }
    buf_clear(&buf);
}

static void printf_fits_at_every_fill(void **state)
{
    (void)state;
    for (int fill = 0; fill < 140; fill++) {
        for (int length = 0; length < 140; length += 7) {
            struct buf buf = {0};

            for (int i = 0; i < fill; i++)
                buf_char(&buf, 'x');
            buf_printf(&buf, "%0*d", length, 0);
            assert_int_equal(buf.n, fill + (length ? length : 1));
            assert_int_equal(buf.p[buf.n - 1], '0');
            buf_clear(&buf);
        }
    }
}

static void many_bytes_keep_their_place(void **state)
{
    struct buf buf = {0};

    (void)state;
    for (uint32_t i = 0; i < 100000; i++)
        buf_add(&buf, &i, sizeof i);
    for (uint32_t i = 0; i < 100000; i++)
        assert_memory_equal(buf.p + i * sizeof i, &i, sizeof i);
    buf_consume(&buf, 99999 * sizeof(uint32_t));
    assert_int_equal(buf.n, 4);
    assert_memory_equal(buf.p, &(uint32_t){99999}, 4);
    buf_consume(&buf, 0);
    buf_consume(&buf, 4);
    assert_int_equal(buf.n, 0);
    buf_clear(&buf);
}

static void a_json_string_escapes_what_it_must_and_nothing_else(void **state)
{
    struct buf buf = {0};

    (void)state;
    buf_json_string(&buf, (struct str){NULL, 0});
    holds(&buf, "\"\"");
    buf_json_string(&buf, STR("plain /\x7f \xe4\xbd\xa0"));
    holds(&buf, "\"plain /\x7f \xe4\xbd\xa0\"");
    buf_json_string(&buf, STR("\"\\\b\f\n\r\t"));
    holds(&buf, "\"\\\"\\\\\\b\\f\\n\\r\\t\"");
    buf_json_string(&buf, STR("a\0b\x01\x1f"
                              "c\n"));
    holds(&buf, "\"a\\u0000b\\u0001\\u001fc\\n\"");
    buf_clear(&buf);
}

static void bytes_live_as_long_as_a_holder(void **state)
{
    struct bytes *bytes = bytes_new("abc", 3);

    (void)state;
    assert_ptr_equal(bytes_hold(bytes), bytes);
    bytes_drop(bytes);
    assert_true(str_is(bytes_str(bytes), "abc"));
    bytes_drop(bytes); /* the leak checker sees that it is freed, the address sanitizer that it was not freed before */
    bytes_drop(NULL);
    bytes = bytes_new(NULL, 0);
    assert_int_equal(bytes_str(bytes).n, 0);
    bytes_drop(bytes);
    bytes = bytes_room(2);
    memcpy(bytes->p, "xy", 2);
    assert_true(str_is(bytes_str(bytes), "xy"));
    bytes_drop(bytes);
}

static void texts_are_compared_by_length_and_bytes(void **state)
{
    char *copy = xstrndup("abcdef", 3);

    (void)state;
    assert_string_equal(copy, "abc");
    free(copy);
    copy = xstrdup("");
    assert_string_equal(copy, "");
    free(copy);
    copy = xstrndup(NULL, 0);
    assert_string_equal(copy, "");
    free(copy);
    free(xmalloc(0));
    free(xcalloc(0, 8));
    assert_true(str_eq(str_of(NULL), STR("")));
    assert_true(str_is(STR("a"), "a"));
    assert_false(str_is(STR("a\0"), "a"));
    assert_false(str_is(STR("a"), "b"));
    assert_false(str_is(STR("a"), "ab"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_added_stands_in_order),
        cmocka_unit_test(numbers_are_written_whole),
        cmocka_unit_test(printf_fits_at_every_fill),
        cmocka_unit_test(many_bytes_keep_their_place),
        cmocka_unit_test(a_json_string_escapes_what_it_must_and_nothing_else),
        cmocka_unit_test(bytes_live_as_long_as_a_holder),
        cmocka_unit_test(texts_are_compared_by_length_and_bytes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
