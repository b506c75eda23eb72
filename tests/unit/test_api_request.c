/* Fields of a call: what is accepted, and what is said about what is not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "room/server/api_request.c" /* the program's own files are in no library */

static void read_text(struct fields *fields, const char *body)
{
    fields_read(fields, str_of(body));
}

static void assert_refused(struct fields *fields, enum err err, const char *field)
{
    assert_int_equal(fields->err, err);
    if (field)
        assert_string_equal(fields->field, field);
    else
        assert_null(fields->field);
    assert_true(strlen(fields->why) > 5);
    fields_clear(fields);
}

static void assert_str(struct str s, const char *text)
{
    assert_int_equal(s.n, strlen(text));
    assert_memory_equal(s.p, text, s.n);
}

static void a_body_that_is_no_object_is_refused(void **state)
{
    static const char *const bodies[] = {"", "null", "[]", "1", "\"x\"", "{", "{}x", "{\"a\":1,\"a\":2}",
        "{\"a\":\"\\u0000\"}", "{\"a\":\"\\ud800\"}", "{\"a\":\"\xff\"}", "{'a':1}", "{\"a\":NaN}", "\xef\xbb\xbf{}"};
    struct fields fields;

    (void)state;
    for (size_t i = 0; i < countof(bodies); i++) {
        read_text(&fields, bodies[i]);
        assert_refused(&fields, ERR_BAD_REQUEST, NULL);
    }
}

static void the_first_problem_stays(void **state)
{
    struct fields fields;

    (void)state;
    read_text(&fields, "{\"a\":1,\"b\":2}");
    assert_null(field_account(&fields, "a", REQUIRED).p);
    assert_null(field_account(&fields, "b", REQUIRED).p);
    assert_int_equal(field_integer(&fields, "b", 0, 9, 7), 7);
    assert_refused(&fields, ERR_BAD_REQUEST, "a");
}

static void unknown_fields_are_ignored_and_absent_ones_have_their_fallback(void **state)
{
    static const char *const words[] = {"x", "y", NULL};
    struct fields fields;
    size_t count;

    (void)state;
    read_text(&fields, "{\"surprise\":[{}]}");
    assert_null(field_account(&fields, "owner", OPTIONAL).p);
    assert_null(field_text(&fields, "name", 5).p);
    assert_null(field_object(&fields, "extra", 5).p);
    assert_int_equal(field_integer(&fields, "limit", 1, 9, 5), 5);
    assert_int_equal(field_word(&fields, "word", words, 1), 1);
    assert_true(field_boolean(&fields, "flag", true));
    assert_null(field_accounts(&fields, "members", OPTIONAL, 5, &count));
    assert_int_equal(count, 0);
    assert_int_equal(fields.err, ERR_OK);
    fields_clear(&fields);
}

static void escaped_texts_stay_while_others_are_read(void **state)
{
    struct fields fields;
    struct str one, two;

    (void)state;
    read_text(&fields, "{\"one\":\"\\u00e4\\n\",\"two\":\"\\ud83d\\ude00\",\"three\":\"\\\"\"}");
    one = field_text(&fields, "one", 10);
    two = field_text(&fields, "two", 10);
    assert_str(field_text(&fields, "three", 10), "\"");
    assert_str(one, "\xc3\xa4\n");
    assert_str(two, "\xf0\x9f\x98\x80");
    fields_clear(&fields);
}

static void an_account_follows_its_rule(void **state)
{
    static const char *const bad[] = {"\"\"", "\"@alice\"", "\"a\\u0001\"", "\"a\\u007f\"", "\"a\\u0085\"", "5", "null",
        "[\"a\"]", "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\""};
    struct fields fields;
    char body[200];

    (void)state;
    for (size_t i = 0; i < countof(bad); i++) {
        snprintf(body, sizeof body, "{\"account_id\":%s}", bad[i]);
        read_text(&fields, body);
        (void)field_account(&fields, "account_id", REQUIRED);
        assert_refused(&fields, ERR_BAD_REQUEST, "account_id");
    }
    read_text(&fields, "{\"account_id\":\"'; DROP TABLE room; --\"}");
    assert_str(field_account(&fields, "account_id", REQUIRED), "'; DROP TABLE room; --");
    fields_clear(&fields);
    read_text(&fields, "{}");
    (void)field_account(&fields, "account_id", REQUIRED);
    assert_refused(&fields, ERR_BAD_REQUEST, "account_id");
}

static void a_text_that_can_be_no_room_is_a_room_that_is_not_found(void **state)
{
    struct fields fields;

    (void)state;
    read_text(&fields, "{\"room_id\":\"nope\"}");
    (void)field_room_id(&fields, "room_id", REQUIRED);
    assert_refused(&fields, ERR_NO_SUCH_ROOM, NULL);
    read_text(&fields, "{\"room_id\":\"\"}");
    (void)field_room_id(&fields, "room_id", REQUIRED);
    assert_refused(&fields, ERR_BAD_REQUEST, "room_id");
    read_text(&fields, "{\"room_id\":\"s07.01KC46E0D7X8BQXSRB29FJP960\"}");
    assert_str(field_room_id(&fields, "room_id", REQUIRED), "s07.01KC46E0D7X8BQXSRB29FJP960");
    fields_clear(&fields);
}

static void integers_are_exact_and_in_range(void **state)
{
    static const char *const bad[] = {"0", "501", "-1", "1.5", "5.0", "1e2", "1e999", "\"5\"", "true", "null",
        "9007199254740993000000", "9223372036854775808", "18446744073709551616", "-9223372036854775809"};
    struct fields fields;
    char body[100];

    (void)state;
    for (size_t i = 0; i < countof(bad); i++) {
        snprintf(body, sizeof body, "{\"limit\":%s}", bad[i]);
        read_text(&fields, body);
        (void)field_integer(&fields, "limit", 1, 500, 50);
        assert_refused(&fields, ERR_BAD_REQUEST, "limit");
    }
    read_text(&fields, "{\"limit\":500}");
    assert_int_equal(field_integer(&fields, "limit", 1, 500, 50), 500);
    fields_clear(&fields);
}

static void a_maximum_is_refused_not_clamped(void **state)
{
    struct fields fields;
    size_t count;

    (void)state;
    read_text(&fields, "{\"name\":\"123456\"}");
    (void)field_text(&fields, "name", 5);
    assert_refused(&fields, ERR_BAD_REQUEST, "name");
    read_text(&fields, "{\"extra\":{\"a\":1}}");
    (void)field_object(&fields, "extra", 6);
    assert_refused(&fields, ERR_BAD_REQUEST, "extra");
    read_text(&fields, "{\"members\":[\"a\",\"b\",\"c\"]}");
    (void)field_accounts(&fields, "members", REQUIRED, 2, &count);
    assert_refused(&fields, ERR_BAD_REQUEST, "members");
}

static void items_of_an_array_come_once_in_the_order_given(void **state)
{
    struct fields fields;
    const struct str *accounts;
    size_t count;

    (void)state;
    read_text(&fields, "{\"members\":[\"b\",\"a\",\"\\u0062\",\"c\",\"a\"]}");
    accounts = field_accounts(&fields, "members", REQUIRED, 10, &count);
    assert_int_equal(count, 3);
    assert_str(accounts[0], "b");
    assert_str(accounts[1], "a");
    assert_str(accounts[2], "c");
    fields_clear(&fields);
}

static void an_array_of_other_things_is_refused(void **state)
{
    static const char *const bad[] = {"\"a\"", "{}", "[1]", "[\"a\",null]", "[\"\"]", "[\"@all\"]", "[]"};
    struct fields fields;
    size_t count;
    char body[100];

    (void)state;
    for (size_t i = 0; i < countof(bad); i++) {
        snprintf(body, sizeof body, "{\"account_ids\":%s}", bad[i]);
        read_text(&fields, body);
        (void)field_accounts(&fields, "account_ids", REQUIRED, 10, &count);
        assert_refused(&fields, ERR_BAD_REQUEST, "account_ids");
    }
}

static void a_word_is_one_of_those_named(void **state)
{
    static const char *const words[] = {"all", "since_join", NULL};
    struct fields fields;

    (void)state;
    read_text(&fields, "{\"history\":\"since_join\"}");
    assert_int_equal(field_word(&fields, "history", words, 0), 1);
    fields_clear(&fields);
    read_text(&fields, "{\"history\":\"ALL\"}");
    (void)field_word(&fields, "history", words, 0);
    assert_non_null(strstr(fields.why, "all, since_join"));
    assert_refused(&fields, ERR_BAD_REQUEST, "history");
}

static void a_part_of_a_field_is_named_by_a_path_that_stays(void **state)
{
    struct fields fields;
    char path[] = "content.parts[2].type";

    (void)state;
    read_text(&fields, "{}");
    fields_refuse_part(&fields, ERR_BAD_REQUEST, path, "100% wrong");
    memset(path, 'x', sizeof path - 1);
    assert_string_equal(fields.why, "100% wrong");
    assert_refused(&fields, ERR_BAD_REQUEST, "content.parts[2].type");
}

static void a_message_id_is_26_characters_of_an_id(void **state)
{
    static const char *const bad[] = {
        "5", "\"\"", "\"01KC46E0D7X8BQXSRB29FJP96\"", "\"01KC46E0D7X8BQXSRB29FJP96U\"", "null"};
    struct fields fields;
    char body[100];

    (void)state;
    read_text(&fields, "{\"message_id\":\"01KCHJS21883W55RJF4XQE69KR\"}");
    assert_str(field_message_id(&fields, "message_id"), "01KCHJS21883W55RJF4XQE69KR");
    fields_clear(&fields);
    for (size_t i = 0; i < countof(bad); i++) {
        snprintf(body, sizeof body, "{\"message_id\":%s}", bad[i]);
        read_text(&fields, body);
        (void)field_message_id(&fields, "message_id");
        assert_refused(&fields, ERR_BAD_REQUEST, "message_id");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_body_that_is_no_object_is_refused),
        cmocka_unit_test(the_first_problem_stays),
        cmocka_unit_test(unknown_fields_are_ignored_and_absent_ones_have_their_fallback),
        cmocka_unit_test(escaped_texts_stay_while_others_are_read),
        cmocka_unit_test(an_account_follows_its_rule),
        cmocka_unit_test(a_text_that_can_be_no_room_is_a_room_that_is_not_found),
        cmocka_unit_test(integers_are_exact_and_in_range),
        cmocka_unit_test(a_maximum_is_refused_not_clamped),
        cmocka_unit_test(items_of_an_array_come_once_in_the_order_given),
        cmocka_unit_test(an_array_of_other_things_is_refused),
        cmocka_unit_test(a_word_is_one_of_those_named),
        cmocka_unit_test(a_part_of_a_field_is_named_by_a_path_that_stays),
        cmocka_unit_test(a_message_id_is_26_characters_of_an_id),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
