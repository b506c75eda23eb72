#include "room/base/text.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static void a_hexadecimal_digit_has_its_value_and_nothing_else_has_one(void **state)
{
    static const char digits[] = "0123456789abcdef";

    (void)state;
    for (int i = 0; i < 16; i++)
        assert_int_equal(hex_digit(digits[i]), i);
    assert_int_equal(hex_digit('A'), 10);
    assert_int_equal(hex_digit('F'), 15);
    for (int c = 0; c < 256; c++)
        if (!strchr("0123456789abcdefABCDEF", c) || !c)
            assert_int_equal(hex_digit((char)c), -1);
}

static void only_spaces_and_tabs_are_trimmed(void **state)
{
    (void)state;
    assert_true(str_is(str_trimmed(STR(" \t a b\t ")), "a b"));
    assert_true(str_is(str_trimmed(STR(" \t")), ""));
    assert_true(str_is(str_trimmed((struct str){NULL, 0}), ""));
    assert_true(str_is(str_trimmed(STR("\va\r\n")), "\va\r\n")); /* a server that passes over these can be fooled */
}

static void a_list_gives_its_items_trimmed_and_the_empty_ones_too(void **state)
{
    static const char *const items[] = {"a", "", "b c"};
    struct str list = STR(" a,,\tb c "), item;
    size_t n = 0;

    (void)state;
    for (; str_next_item(&list, &item); n++) {
        assert_true(n < countof(items));
        assert_true(str_is(item, items[n]));
    }
    assert_int_equal(n, countof(items));
}

static void an_empty_list_has_no_item(void **state)
{
    struct str list = {NULL, 0}, item;

    (void)state;
    assert_false(str_next_item(&list, &item));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_hexadecimal_digit_has_its_value_and_nothing_else_has_one),
        cmocka_unit_test(only_spaces_and_tabs_are_trimmed),
        cmocka_unit_test(a_list_gives_its_items_trimmed_and_the_empty_ones_too),
        cmocka_unit_test(an_empty_list_has_no_item),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
