/* Messages of the feed as bytes: what is written is read, what is not one is refused whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "history/feed_format.h"

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
    struct feed_message message;
    struct feed_item item;

    (void)state;
    assert_int_equal(feed_read(buf_str(&body), &message), FEED_GOOD);
    assert_int_equal(message.kind, FEED_TOLD);
    assert_true(str_is(message.sender, INSTANCE));
    assert_true(feed_next(&message.items, &item));
    assert_item(&item, &typing);
    assert_true(feed_next(&message.items, &item));
    assert_item(&item, &hidden);
    assert_false(feed_next(&message.items, &item));
    buf_clear(&body);
}

static void an_event_above_64_kib_keeps_its_length(void **state)
{
    struct buf body = {0}, json = {0};
    struct feed_item item = {FEED_TO_ROOM, STR(ROOM), {0}};
    struct feed_message message;

    (void)state;
    buf_text(&json, "{\"content\":\"");
    for (int i = 0; i < 70000; i++)
        buf_char(&json, 'x');
    buf_text(&json, "\"}");
    item.json = buf_str(&json);
    feed_write_head(&body, FEED_TOLD, INSTANCE);
    feed_write_item(&body, &item);
    assert_int_equal(feed_read(buf_str(&body), &message), FEED_GOOD);
    assert_true(feed_next(&message.items, &item));
    assert_true(str_eq(item.json, buf_str(&json)));
    buf_clear(&json);
    buf_clear(&body);
}

/* In memory of exactly its length, so that a reader that goes too far is caught. */
static void a_message_cut_anywhere_is_bad_or_ends_with_an_item(void **state)
{
    struct buf body = two_items();
    size_t first = 2 + 26 + 6 + typing.name.n + typing.json.n;
    struct feed_message message;

    (void)state;
    for (size_t n = 0; n < body.n; n++) {
        char *cut = xmemdup(body.p, n);
        bool whole = n == 28 || n == first;

        assert_int_equal(feed_read((struct str){cut, n}, &message), whole ? FEED_GOOD : FEED_BAD);
        free(cut);
    }
    buf_clear(&body);
}

static void a_message_of_a_later_program_is_unknown_not_bad(void **state)
{
    struct buf body = two_items();
    struct feed_message message;

    (void)state;
    body.p[0] = 2;
    assert_int_equal(feed_read(buf_str(&body), &message), FEED_UNKNOWN);
    body.p[0] = 1;
    body.p[1] = 99;
    assert_int_equal(feed_read(buf_str(&body), &message), FEED_UNKNOWN);
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
    struct feed_message message;

    (void)state;
    for (size_t i = 0; i < countof(bad); i++) {
        struct buf body = two_items();

        feed_write_item(&body, &bad[i]);
        assert_int_equal(feed_read(buf_str(&body), &message), FEED_BAD);
        buf_clear(&body);
    }
}

/* --- what owners, beats and callers' answers look like --- */

static struct entry *an_entry(uint64_t seq)
{
    return entry_new(&(struct entry_parts){
        .room_id = STR(ROOM),
        .room_no = 77,
        .epoch = 5,
        .seq = seq,
        .at = 1770000000000,
        .counted = seq - 1,
        .type = ENTRY_MESSAGE,
        .client_msg_id = STR("c"),
        .sender = STR("ada"),
        .kind = STR("text"),
        .content = STR("\"hello\""),
    });
}

static struct buf a_log(void)
{
    struct entry *first = an_entry(8), *second = an_entry(9);
    struct buf body = {0};

    feed_write_head(&body, FEED_LOG, INSTANCE);
    feed_write_log_head(&body, STR("s07"), 6, 41);
    feed_write_entry(&body, STR(ROOM), first, true);
    feed_write_entry(&body, STR(ROOM), second, false);
    feed_write_mark(&body, STR(ROOM), 77, 8, 5);
    entry_drop(first);
    entry_drop(second);
    return body;
}

static void entries_and_marks_are_read_as_they_were_shown(void **state)
{
    struct buf body = a_log();
    struct entry *shown = an_entry(8);
    struct feed_message message;
    struct feed_log_item item;

    (void)state;
    assert_int_equal(feed_read(buf_str(&body), &message), FEED_GOOD);
    assert_int_equal(message.kind, FEED_LOG);
    assert_true(str_is(message.shard, "s07"));
    assert_int_equal(message.epoch, 6);
    assert_int_equal(message.counter, 41);
    assert_true(feed_next_log(&message.items, &item));
    assert_int_equal(item.what, FEED_LOG_DURABLE);
    assert_true(str_is(item.room_id, ROOM));
    assert_int_equal(item.room_no, 77);
    assert_int_equal(item.epoch, 5);
    assert_int_equal(item.seq, 8);
    assert_int_equal(item.at, 1770000000000);
    assert_int_equal(item.counted, 7);
    assert_int_equal(item.type, ENTRY_MESSAGE);
    assert_true(str_eq(item.json, entry_json(shown)));
    assert_true(feed_next_log(&message.items, &item));
    assert_int_equal(item.what, FEED_LOG_EARLY);
    assert_int_equal(item.seq, 9);
    assert_true(feed_next_log(&message.items, &item));
    assert_int_equal(item.what, FEED_LOG_MARK);
    assert_int_equal(item.seq, 8);
    assert_int_equal(item.epoch, 5);
    assert_false(feed_next_log(&message.items, &item));
    entry_drop(shown);
    buf_clear(&body);
}

static struct buf a_beat(void)
{
    const uint64_t entered[FEED_WAYS] = {3, 4};
    struct buf body = {0};

    feed_write_head(&body, FEED_BEAT, INSTANCE);
    feed_write_beat_head(&body, true, entered, 1);
    feed_write_held(&body, &(struct feed_held){STR("s07"), 6, 41, FEED_HELD_CONSUMES});
    feed_write_count(&body, 2);
    feed_write_name(&body, STR("s01"));
    feed_write_name(&body, STR("s02"));
    return body;
}

static void a_beat_says_what_is_held_counted_and_followed(void **state)
{
    struct buf body = a_beat();
    struct feed_message message;
    struct feed_held held;
    struct str name;

    (void)state;
    buf_text(&body, "and what a later program adds");
    assert_int_equal(feed_read(buf_str(&body), &message), FEED_GOOD);
    assert_true(message.beat.database_ok);
    assert_int_equal(message.beat.entered[FEED_WAY_ANNOUNCED], 3);
    assert_int_equal(message.beat.entered[FEED_WAY_JOINED], 4);
    assert_true(feed_next_held(&message.beat.held, &held));
    assert_true(str_is(held.shard, "s07"));
    assert_int_equal(held.epoch, 6);
    assert_int_equal(held.counter, 41);
    assert_int_equal(held.flags, FEED_HELD_CONSUMES);
    assert_false(feed_next_held(&message.beat.held, &held));
    assert_true(feed_next_name(&message.beat.followed, &name));
    assert_true(str_is(name, "s01"));
    assert_true(feed_next_name(&message.beat.followed, &name));
    assert_true(str_is(name, "s02"));
    assert_false(feed_next_name(&message.beat.followed, &name));
    buf_clear(&body);
}

static struct buf an_entering(void)
{
    struct buf body = {0};

    feed_write_head(&body, FEED_ENTERED, INSTANCE);
    feed_write_entered_head(&body, FEED_WAY_JOINED, 12);
    feed_write_entered(&body, STR(ROOM), (struct cursor){5, 7}, 2);
    feed_write_name(&body, STR("ada"));
    feed_write_name(&body, STR("bob"));
    return body;
}

static void who_entered_is_read_with_the_cursor(void **state)
{
    struct buf body = an_entering();
    struct feed_message message;
    struct feed_entered entered;
    struct str account;

    (void)state;
    assert_int_equal(feed_read(buf_str(&body), &message), FEED_GOOD);
    assert_int_equal(message.way, FEED_WAY_JOINED);
    assert_int_equal(message.counter, 12);
    assert_true(feed_next_entered(&message.items, &entered));
    assert_true(str_is(entered.room_id, ROOM));
    assert_int_equal(entered.after.epoch, 5);
    assert_int_equal(entered.after.seq, 7);
    assert_int_equal(entered.count, 2);
    assert_true(feed_next_name(&entered.accounts, &account));
    assert_true(str_is(account, "ada"));
    assert_true(feed_next_name(&entered.accounts, &account));
    assert_true(str_is(account, "bob"));
    assert_false(feed_next_name(&entered.accounts, &account));
    assert_false(feed_next_entered(&message.items, &entered));
    buf_clear(&body);
}

static struct buf an_answer(void)
{
    const struct feed_settled settled = {FEED_SETTLED_DONE, {{1, 2, 3}}, true, 99, STR("ok"), STR("\"added\":[]")};
    struct buf body = {0};

    feed_write_head(&body, FEED_SETTLED, INSTANCE);
    feed_write_settled(&body, &settled);
    return body;
}

static void what_became_of_a_message_is_read_with_its_result(void **state)
{
    struct buf body = an_answer();
    struct feed_message message;
    struct feed_settled settled;

    (void)state;
    assert_int_equal(feed_read(buf_str(&body), &message), FEED_GOOD);
    assert_true(feed_next_settled(&message.items, &settled));
    assert_int_equal(settled.what, FEED_SETTLED_DONE);
    assert_int_equal(settled.message_id.b[2], 3);
    assert_true(settled.duplicate);
    assert_int_equal(settled.seq, 99);
    assert_true(str_is(settled.code, "ok"));
    assert_true(str_is(settled.result, "\"added\":[]"));
    assert_false(feed_next_settled(&message.items, &settled));
    buf_clear(&body);
}

static struct buf a_question(void)
{
    struct buf body = {0};

    feed_write_head(&body, FEED_ASK, INSTANCE);
    feed_write_question(&body, 7, STR("online ada"));
    return body;
}

static void a_question_is_its_number_and_any_text(void **state)
{
    struct buf body = a_question();
    struct feed_message message;

    (void)state;
    assert_int_equal(feed_read(buf_str(&body), &message), FEED_GOOD);
    assert_int_equal(message.counter, 7);
    assert_true(str_is(message.items, "online ada"));
    buf_clear(&body);
}

/* In memory of exactly its length, as above. What has items may end behind one of them. */
static void no_message_is_read_beyond_its_end(void **state)
{
    struct buf bodies[] = {a_log(), a_beat(), an_entering(), an_answer(), a_question()};
    struct feed_message message;

    (void)state;
    for (size_t i = 0; i < countof(bodies); i++) {
        size_t good = 0;

        for (size_t n = 0; n < bodies[i].n; n++) {
            char *cut = xmemdup(bodies[i].p, n);

            good += feed_read((struct str){cut, n}, &message) == FEED_GOOD;
            free(cut);
        }
        assert_int_equal(good, i == 0 ? 3 : i == 4 ? sizeof "online ada" - 1 : i == 1 ? 0 : 1);
        buf_clear(&bodies[i]);
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
        cmocka_unit_test(entries_and_marks_are_read_as_they_were_shown),
        cmocka_unit_test(a_beat_says_what_is_held_counted_and_followed),
        cmocka_unit_test(who_entered_is_read_with_the_cursor),
        cmocka_unit_test(what_became_of_a_message_is_read_with_its_result),
        cmocka_unit_test(a_question_is_its_number_and_any_text),
        cmocka_unit_test(no_message_is_read_beyond_its_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
