#include "room/base/ulid.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#define NOW_MS UINT64_C(1770000000000)

static struct id128 read_back(const char *text)
{
    struct id128 id;

    if (!ulid_read(&id, str_of(text)))
        fail_msg("not read: %s", text);
    return id;
}

static void known_ids_have_their_known_text(void **state)
{
    static const struct {
        struct id128 id;
        const char *text;
    } cases[] = {
        {{{0}}, "00000000000000000000000000"},
        {{{[15] = 1}}, "00000000000000000000000001"},
        {{{[15] = 32}}, "00000000000000000000000010"},
        {{{0x80}}, "40000000000000000000000000"},
        {{{255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255}},
            "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"},
        /* The example of github.com/ulid/spec: 01ARYZ6S41 is 1469918176385 = 0x01563df36481. */
        {{{0x01, 0x56, 0x3d, 0xf3, 0x64, 0x81}}, "01ARYZ6S410000000000000000"},
    };

    (void)state;
    for (size_t i = 0; i < countof(cases); i++) {
        char text[ULID_TEXT + 1] = {0};

        ulid_write(text, cases[i].id);
        assert_string_equal(text, cases[i].text);
        assert_true(id128_eq(read_back(text), cases[i].id));
    }
    assert_true(id128_is_zero(read_back("00000000000000000000000000")));
}

static void random_ids_survive_text_and_back_in_either_case(void **state)
{
    (void)state;
    for (int i = 0; i < 10000; i++) {
        struct id128 id, again;
        char text[ULID_TEXT];

        random_bytes(&id, sizeof id);
        ulid_write(text, id);
        assert_true(ulid_read(&again, (struct str){text, ULID_TEXT}));
        assert_true(id128_eq(id, again));
        for (size_t at = 0; at < ULID_TEXT; at++)
            if (text[at] >= 'A')
                text[at] = (char)(text[at] + 32);
        assert_true(ulid_read(&again, (struct str){text, ULID_TEXT}));
        assert_true(id128_eq(id, again));
    }
}

static void what_is_no_ulid_is_refused(void **state)
{
    static const struct str bad[] = {STR(""), STR("0000000000000000000000000"), STR("000000000000000000000000000"),
        STR("80000000000000000000000000"), STR("Z0000000000000000000000000"), STR("0000000000000I000000000000"),
        STR("0000000000000L000000000000"), STR("0000000000000O000000000000"), STR("0000000000000u000000000000"),
        STR("0000000000000 000000000000"), STR("0000000000000-000000000000"),
        STR("0000000000000\0"
            "000000000000"),
        STR("0000000000000\xc3"
            "000000000000"),
        STR("0000000000000@000000000000"), STR(" 1ARYZ6S410000000000000000"),
        STR("\xff"
            "1ARYZ6S410000000000000000"),
        STR("/1ARYZ6S410000000000000000")};
    struct id128 id;

    (void)state;
    for (size_t i = 0; i < countof(bad); i++)
        if (ulid_read(&id, bad[i]))
            fail_msg("accepted number %zu", i);
}

static uint64_t ms_of(struct id128 id)
{
    uint64_t ms = 0;

    for (int i = 0; i < 6; i++)
        ms = ms << 8 | id.b[i];
    return ms;
}

static void ids_of_one_millisecond_ascend(void **state)
{
    struct id128 last = ulid_new(NOW_MS);

    (void)state;
    assert_true(ms_of(last) == NOW_MS);
    for (int i = 0; i < 10000; i++) {
        struct id128 id = ulid_new(NOW_MS);

        assert_true(memcmp(last.b, id.b, sizeof id.b) < 0);
        last = id;
    }
    assert_true(ms_of(last) == NOW_MS);
}

static void ids_of_later_milliseconds_are_larger_and_not_guessable(void **state)
{
    struct id128 first = ulid_new(NOW_MS + 1), second = ulid_new(NOW_MS + 2);

    (void)state;
    assert_true(memcmp(first.b, second.b, sizeof first.b) < 0);
    assert_true(ms_of(second) == NOW_MS + 2);
    assert_memory_not_equal(first.b + 6, second.b + 6, 10);
}

static void a_small_step_back_of_the_clock_keeps_the_order_a_large_one_is_followed(void **state)
{
    struct id128 before = ulid_new(NOW_MS + 100), after = ulid_new(NOW_MS + 50), later = ulid_new(NOW_MS - 60000);

    (void)state;
    assert_true(memcmp(before.b, after.b, sizeof before.b) < 0);
    assert_true(ms_of(later) == NOW_MS - 60000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_ids_have_their_known_text),
        cmocka_unit_test(random_ids_survive_text_and_back_in_either_case),
        cmocka_unit_test(what_is_no_ulid_is_refused),
        cmocka_unit_test(ids_of_one_millisecond_ascend),
        cmocka_unit_test(ids_of_later_milliseconds_are_larger_and_not_guessable),
        cmocka_unit_test(a_small_step_back_of_the_clock_keeps_the_order_a_large_one_is_followed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
