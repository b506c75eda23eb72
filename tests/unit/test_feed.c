/* Messages of the feed as bytes: what is written is read, what is not one is refused whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "history/feed.h"

#define INSTANCE "01KC46E0D7X8BQXSRB29FJP960"
#define ROOM "s07.01KC46E0D7X8BQXSRB29FJP961"

static const struct feed_item typing = {FEED_TO_ROOM, STR(ROOM), STR("{\"type\":\"typing\"}")};
static const struct feed_item hidden = {FEED_TO_ACCOUNT, STR("ada"), STR("{\"type\":\"message.hidden\"}")};

static struct buf two_items(void)
{
    struct buf body = {0};

    feed_write_head(&body, FEED_TOLD, INSTANCE);
    feed_write_item(&body, &typing);
    feed_write_item(&body, &hidden);
    return body;
}

static void assert_item(const struct feed_item *item, const struct feed_item *expected)
{
    assert_int_equal(item->to, expected->to);
    assert_true(str_eq(item->name, expected->name));
    assert_true(str_eq(item->json, expected->json));
}

static void what_is_written_is_read(void **state)
{
    struct buf body = two_items();
    struct str sender, items;
    struct feed_item item;

    (void)state;
    assert_int_equal(feed_read(buf_str(&body), &sender, &items), FEED_GOOD);
    assert_true(str_is(sender, INSTANCE));
    assert_true(feed_next(&items, &item));
    assert_item(&item, &typing);
    assert_true(feed_next(&items, &item));
    assert_item(&item, &hidden);
    assert_false(feed_next(&items, &item));
    buf_clear(&body);
}

static void an_event_above_64_kib_keeps_its_length(void **state)
{
    struct buf body = {0}, json = {0};
    struct feed_item item = {FEED_TO_ROOM, STR(ROOM), {0}};
    struct str sender, items;

    (void)state;
    buf_text(&json, "{\"content\":\"");
    for (int i = 0; i < 70000; i++)
        buf_char(&json, 'x');
    buf_text(&json, "\"}");
    item.json = buf_str(&json);
    feed_write_head(&body, FEED_TOLD, INSTANCE);
    feed_write_item(&body, &item);
    assert_int_equal(feed_read(buf_str(&body), &sender, &items), FEED_GOOD);
    assert_true(feed_next(&items, &item));
    assert_true(str_eq(item.json, buf_str(&json)));
    buf_clear(&json);
    buf_clear(&body);
}

/* In memory of exactly its length, so that a reader that goes too far is caught. */
static void a_message_cut_anywhere_is_bad_or_ends_with_an_item(void **state)
{
    struct buf body = two_items();
    size_t first = 2 + 26 + 6 + typing.name.n + typing.json.n;
    struct str sender, items;

    (void)state;
    for (size_t n = 0; n < body.n; n++) {
        char *cut = xmemdup(body.p, n);
        bool whole = n == 28 || n == first;

        assert_int_equal(feed_read((struct str){cut, n}, &sender, &items), whole ? FEED_GOOD : FEED_BAD);
        free(cut);
    }
    buf_clear(&body);
}

static void a_message_of_a_later_program_is_unknown_not_bad(void **state)
{
    struct buf body = two_items();
    struct str sender, items;

    (void)state;
    body.p[0] = 2;
    assert_int_equal(feed_read(buf_str(&body), &sender, &items), FEED_UNKNOWN);
    body.p[0] = 1;
    body.p[1] = 9;
    assert_int_equal(feed_read(buf_str(&body), &sender, &items), FEED_UNKNOWN);
    buf_clear(&body);
}

static void one_bad_item_makes_the_whole_message_bad(void **state)
{
    static const struct feed_item bad[] = {
        {(enum feed_to)3, STR(ROOM), STR("{}")},
        {FEED_TO_ROOM, STR("no room"), STR("{}")},
        {FEED_TO_ACCOUNT, STR("@all"), STR("{}")},
        {FEED_TO_ACCOUNT, STR(""), STR("{}")},
        {FEED_TO_ROOM, STR(ROOM), STR("{\"a\":\n1}")},
        {FEED_TO_ROOM, STR(ROOM), STR("[]")},
        {FEED_TO_ROOM, STR(ROOM), STR("")},
    };
    struct str sender, items;

    (void)state;
    for (size_t i = 0; i < countof(bad); i++) {
        struct buf body = two_items();

        feed_write_item(&body, &bad[i]);
        assert_int_equal(feed_read(buf_str(&body), &sender, &items), FEED_BAD);
        buf_clear(&body);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(an_event_above_64_kib_keeps_its_length),
        cmocka_unit_test(a_message_cut_anywhere_is_bad_or_ends_with_an_item),
        cmocka_unit_test(a_message_of_a_later_program_is_unknown_not_bad),
        cmocka_unit_test(one_bad_item_makes_the_whole_message_bad),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
