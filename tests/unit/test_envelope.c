/* What a broker body must be, and what the owner makes of it. */
#define _GNU_SOURCE /* memmem */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "history/content.h"
#include "history/entry.h"
#include "history/envelope.h"

#define ROOM "s01.01KC46E0D7X8BQXSRB29FJP960"
#define HEAD "{\"room_id\":\"" ROOM "\",\"sender\":\"a\",\"client_msg_id\":\"c1\","

static enum err read_as(
    struct envelope **envelope, const char *body, size_t n, bool op, const char *type, const char **why)
{
    return envelope_read(envelope, (struct str){body, n},
        &(struct envelope_source){
            .from_op_exchange = op, .shard = STR("s01"), .content_type = str_of(type), .content_max_bytes = 1024},
        why);
}

static enum err verdict(const char *body, bool op)
{
    struct envelope *envelope;
    const char *why = NULL;
    enum err err = read_as(&envelope, body, strlen(body), op, NULL, &why);

    assert_true(err == ERR_OK || (why && strlen(why) > 5));
    envelope_free(envelope);
    return err;
}

static void a_message_is_read_with_its_content_as_it_came(void **state)
{
    static const char body[] =
        "{ \"v\":1, \"room_id\" : \"" ROOM
        "\", \"sender\":\"a\\u00e9\", \"kind\":\"text\", \"content\" : {\"body\": \"h\\u4f60\" , \"x\":1.50} ,"
        "\"client_msg_id\":\"c1\",\"sent_at\":5,\"mentions\":[\"b\",\"b\",\"@all\"],\"quote_seq\":7,\"unknown\":[1]}";
    struct envelope *envelope;
    const char *why;

    (void)state;
    assert_int_equal(read_as(&envelope, body, sizeof body - 1, false, "application/json; charset=utf-8", &why), ERR_OK);
    assert_true(str_is(envelope->room_id, ROOM));
    assert_true(str_is(envelope->shard, "s01"));
    assert_true(str_is(envelope->sender, "a\xc3\xa9"));
    assert_true(str_is(envelope->content, "{\"body\": \"h\\u4f60\" , \"x\":1.50}"));
    assert_true(str_is(envelope->meta, "\"sent_at\":5,\"quote_seq\":7,\"mentions\":[\"b\",\"@all\"]"));
    assert_int_equal(envelope->quote_seq, 7);
    assert_true(envelope->counted && !envelope->transient && !envelope->op);
    assert_true(id128_eq(envelope->message_id, message_id_of(str_of(ROOM), str_of("a\xc3\xa9"), str_of("c1"))));
    envelope_free(envelope);
}

static void what_cannot_be_accepted_is_refused_with_a_sentence(void **state)
{
    static const struct {
        const char *body;
        enum err err;
    } cases[] = {
        {"", ERR_BAD_REQUEST},
        {"x", ERR_BAD_REQUEST},
        {"[]", ERR_BAD_REQUEST},
        {"null", ERR_BAD_REQUEST},
        {"{}", ERR_BAD_REQUEST},
        {"{\"room_id\":1}", ERR_BAD_REQUEST},
        {"{\"room_id\":\"nowhere\"}", ERR_BAD_REQUEST},
        {"{\"room_id\":\"s02.01KC46E0D7X8BQXSRB29FJP960\",\"sender\":\"a\",\"kind\":\"text\",\"content\":\"x\"}",
            ERR_BAD_REQUEST},
        {"{\"room_id\":\"s01.01KC46E0D7X8BQXSRB29FJP96U\",\"sender\":\"a\",\"kind\":\"text\",\"content\":\"x\"}",
            ERR_BAD_REQUEST},
        {"{\"v\":2,\"room_id\":\"" ROOM "\",\"sender\":\"a\",\"kind\":\"text\",\"content\":\"x\"}", ERR_BAD_REQUEST},
        {"{\"v\":\"1\",\"room_id\":\"" ROOM "\",\"sender\":\"a\",\"kind\":\"text\",\"content\":\"x\"}",
            ERR_BAD_REQUEST},
        {"{\"room_id\":\"" ROOM "\",\"kind\":\"text\",\"content\":\"x\"}", ERR_BAD_REQUEST},
        {"{\"room_id\":\"" ROOM "\",\"sender\":\"\",\"kind\":\"text\",\"content\":\"x\"}", ERR_BAD_REQUEST},
        {"{\"room_id\":\"" ROOM "\",\"sender\":\"@all\",\"kind\":\"text\",\"content\":\"x\"}", ERR_BAD_REQUEST},
        {"{\"room_id\":\"" ROOM "\",\"sender\":\"a\\nb\",\"kind\":\"text\",\"content\":\"x\"}", ERR_BAD_REQUEST},
        {"{\"room_id\":\"" ROOM "\",\"sender\":[\"a\"],\"kind\":\"text\",\"content\":\"x\"}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"text\"}", ERR_BAD_REQUEST},
        {HEAD "\"content\":\"x\"}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"\",\"content\":\"x\"}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"a b\",\"content\":\"x\"}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"text\",\"content\":1}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"text\",\"content\":{\"text\":\"x\"}}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"image\",\"content\":\"id\"}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"image\",\"content\":{\"file_id\":\"\"}}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"image\",\"content\":{\"file_id\":7}}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"rich_text\",\"content\":{}}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"rich_text\",\"content\":{\"parts\":[{\"body\":\"x\"}]}}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"rich_text\",\"content\":{\"parts\":[{\"type\":\"mention\"}]}}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"rich_text\",\"content\":{\"parts\":[],\"quote_message_seq\":0}}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"forward\",\"content\":{\"messages\":[]}}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"forward\",\"content\":{\"messages\":[{\"content\":{}}]}}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"text\",\"content\":\"x\",\"sent_at\":-1}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"text\",\"content\":\"x\",\"sent_at\":1.5}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"text\",\"content\":\"x\",\"sent_at\":99999999999999999999}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"text\",\"content\":\"x\",\"mentions\":\"b\"}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"text\",\"content\":\"x\",\"mentions\":[\"@system\"]}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"text\",\"content\":\"x\",\"quote_seq\":0}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"text\",\"content\":\"x\",\"transient\":1}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"text\",\"content\":\"x\",\"kind\":\"tip\"}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"text\",\"content\":\"\\u0000\"}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"text\",\"content\":\"\\ud800\"}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"text\",\"content\":\"\xff\"}", ERR_BAD_REQUEST},
        {HEAD "\"kind\":\"text\",\"content\":\"x\"} x", ERR_BAD_REQUEST},
        {"{\"op\":\"member.add\",\"op_id\":\"01KC46E0D7X8BQXSRB29FJP960\",\"room_id\":\"" ROOM
         "\",\"account_ids\":[\"b\"]}",
            ERR_FORBIDDEN},
        {HEAD "\"kind\":\"text\",\"content\":\"x\"}", ERR_OK},
        {HEAD "\"kind\":\"custom/x\",\"content\":[1,2,{\"a\":null}]}", ERR_OK},
        {HEAD "\"kind\":\"text\",\"content\":\"x\",\"sent_at\":null}", ERR_OK},
    };

    (void)state;
    for (size_t i = 0; i < countof(cases); i++)
        if (verdict(cases[i].body, false) != cases[i].err)
            fail_msg("%s: %s", cases[i].body, err_code(verdict(cases[i].body, false)));
}

static void ops_are_taken_from_their_own_exchange_only(void **state)
{
#define OP "{\"v\":1,\"op_id\":\"01KC46E0D7X8BQXSRB29FJP960\",\"room_id\":\"" ROOM "\","
    (void)state;
    assert_int_equal(verdict(HEAD "\"kind\":\"text\",\"content\":\"x\"}", true), ERR_FORBIDDEN);
    assert_int_equal(
        verdict(OP "\"op\":\"member.add\",\"account_ids\":[\"b\",\"c\",\"b\"],\"role\":\"admin\"}", true), ERR_OK);
    assert_int_equal(verdict(OP "\"op\":\"member.add\",\"account_ids\":[]}", true), ERR_BAD_REQUEST);
    assert_int_equal(verdict(OP "\"op\":\"member.add\",\"account_ids\":[\"@x\"]}", true), ERR_BAD_REQUEST);
    assert_int_equal(
        verdict(OP "\"op\":\"member.add\",\"account_ids\":[\"b\"],\"role\":\"owner\"}", true), ERR_BAD_REQUEST);
    assert_int_equal(verdict(OP "\"op\":\"nothing\"}", true), ERR_BAD_REQUEST);
    assert_int_equal(verdict(OP "\"op\":\"room.update\",\"member_limit\":-1}", true), ERR_BAD_REQUEST);
    assert_int_equal(verdict(OP "\"op\":\"room.update\",\"extra\":[]}", true), ERR_BAD_REQUEST);
    assert_int_equal(verdict(OP "\"op\":\"room.update\",\"name\":\"n\",\"extra\":{\"a\":1}}", true), ERR_OK);
    assert_int_equal(verdict(OP "\"op\":\"room.remove\"}", true), ERR_OK);
}

static void accounts_of_an_op_stand_once_in_the_order_given(void **state)
{
    static const char body[] = OP "\"op\":\"member.remove\",\"account_ids\":[\"c\",\"a\",\"c\",\"b\",\"a\"]}";
    struct envelope *envelope;
    const char *why;

    (void)state;
    assert_int_equal(read_as(&envelope, body, sizeof body - 1, true, NULL, &why), ERR_OK);
    assert_int_equal(envelope->account_count, 3);
    assert_true(str_is(envelope->accounts[0], "c"));
    assert_true(str_is(envelope->accounts[1], "a"));
    assert_true(str_is(envelope->accounts[2], "b"));
    envelope_free(envelope);
}

static void too_large_content_says_so(void **state)
{
    struct buf body = {0};

    (void)state;
    buf_text(&body, HEAD "\"kind\":\"text\",\"content\":\"");
    for (int i = 0; i < 1022; i++)
        buf_char(&body, 'x');
    buf_text(&body, "\"}");
    buf_char(&body, '\0');
    assert_int_equal(verdict(body.p, false), ERR_OK);
    buf_reset(&body);
    buf_text(&body, HEAD "\"kind\":\"text\",\"content\":\"");
    for (int i = 0; i < 1023; i++)
        buf_char(&body, 'x');
    buf_text(&body, "\"}");
    buf_char(&body, '\0');
    assert_int_equal(verdict(body.p, false), ERR_TOO_LARGE);
    buf_clear(&body);
}

static void other_media_types_and_encodings_are_refused(void **state)
{
    static const char body[] = HEAD "\"kind\":\"text\",\"content\":\"x\"}";
    struct envelope *envelope;
    const char *why;

    (void)state;
    assert_int_equal(read_as(&envelope, body, sizeof body - 1, false, "text/plain", &why), ERR_BAD_REQUEST);
    envelope_free(envelope);
    assert_int_equal(
        envelope_read(&envelope, (struct str){body, sizeof body - 1},
            &(struct envelope_source){.shard = STR("s01"), .content_encoding = STR("gzip"), .content_max_bytes = 1024},
            &why),
        ERR_BAD_REQUEST);
    envelope_free(envelope);
}

static void a_message_without_an_id_takes_the_property(void **state)
{
    static const char body[] =
        "{\"room_id\":\"" ROOM "\",\"sender\":\"a\",\"kind\":\"text\",\"content\":\"x\",\"sent_at\":1}";
    struct envelope_source source = {.shard = STR("s01"), .content_max_bytes = 1024, .message_id = STR("property-1")};
    struct envelope *envelope;
    const char *why;

    (void)state;
    assert_int_equal(envelope_read(&envelope, (struct str){body, sizeof body - 1}, &source, &why), ERR_OK);
    assert_true(str_is(envelope->client_msg_id, "property-1"));
    assert_true(str_is(envelope->meta, "\"sent_at\":1"));
    envelope_free(envelope);
    source.message_id = (struct str){NULL, 0};
    assert_int_equal(envelope_read(&envelope, (struct str){body, sizeof body - 1}, &source, &why), ERR_OK);
    assert_int_equal(envelope->client_msg_id.n, ULID_TEXT);
    envelope_free(envelope);
}

static void the_hash_sees_content_not_its_writing(void **state)
{
    struct str kind = STR("text");

    (void)state;
    assert_true(content_hash(kind, STR("{\"body\":\"\xe4\xbd\xa0\",\"n\":[1,2]}")) ==
                content_hash(kind, STR("{ \"body\" : \"\\u4f60\", \"n\": [1, 2] }")));
    assert_true(content_hash(kind, STR("\"\\ud83d\\ude00\"")) == content_hash(kind, STR("\"\xf0\x9f\x98\x80\"")));
    assert_true(content_hash(kind, STR("\"a b\"")) != content_hash(kind, STR("\"ab\"")));
    assert_true(content_hash(kind, STR("\"a\"")) != content_hash(STR("tip"), STR("\"a\"")));
    assert_true(content_hash(kind, STR("[\"a\",\"b\"]")) != content_hash(kind, STR("[\"a,b\"]")));
}

static void message_ids_are_what_any_publisher_computes(void **state)
{
    char text[ULID_TEXT];

    (void)state;
    /* python3: hashlib.sha256(b"s01.01KC46E0D7X8BQXSRB29FJP960\0alice\0c-1").digest()[:16], Crockford base 32 */
    ulid_write(text, message_id_of(str_of(ROOM), str_of("alice"), str_of("c-1")));
    assert_memory_equal(text, "00SXX2592FPFNGJHKB5K2EH4NJ", ULID_TEXT);
}

static void cursors_are_read_strictly(void **state)
{
    static const char *const bad[] = {
        "", ":", "1:", ":1", "1:2:3", "-1", "01", "1:01", "+1", " 1", "1 ", "1e3", "9999999999999999999", "1:x", "0x1"};
    struct cursor cursor;
    struct str room_id;
    char text[CURSOR_TEXT_MAX];

    (void)state;
    for (size_t i = 0; i < countof(bad); i++)
        assert_false(cursor_read(&cursor, str_of(bad[i])));
    assert_true(cursor_read(&cursor, STR("3:57")));
    assert_int_equal(cursor.epoch, 3);
    assert_int_equal(cursor.seq, 57);
    cursor_write(text, cursor);
    assert_string_equal(text, "3:57");
    assert_true(cursor_read(&cursor, STR("57")));
    assert_true(cursor.epoch == UINT64_MAX);
    assert_true(position_read(STR(ROOM "@0:0"), &room_id, &cursor));
    assert_true(str_is(room_id, ROOM));
    assert_false(position_read(STR("@0:0"), &room_id, &cursor));
    assert_false(position_read(STR(ROOM), &room_id, &cursor));
}

static void entries_are_one_line_of_json_each(void **state)
{
    struct entry_parts parts = {.room_id = STR(ROOM),
        .epoch = 3,
        .seq = 57,
        .at = 1000,
        .type = ENTRY_MESSAGE,
        .client_msg_id = STR("c\"1"),
        .sender = STR("a"),
        .kind = STR("text"),
        .content = STR("\"hi\""),
        .meta = STR("\"sent_at\":5")};
    struct entry *entry = entry_new(&parts);
    struct json json;
    const char *why;

    (void)state;
    assert_true(json_check(entry_json(entry), &json, &why));
    assert_memory_equal(entry->json,
        "{\"type\":\"message\",\"room_id\":\"" ROOM "\",\"epoch\":3,\"seq\":57,\"at\":1000,\"message_id\":"
        "\"00000000000000000000000000\",\"client_msg_id\":\"c\\\"1\","
        "\"sender\":\"a\",\"kind\":\"text\",\"content\":\"hi\",\"sent_at\":5}",
        entry->n);
    entry_drop(entry);
    parts.content = STR("{\r\n \"body\":\"a\\nb\"\n}");
    entry = entry_new(&parts);
    assert_null(memchr(entry->json, '\n', entry->n));
    assert_null(memchr(entry->json, '\r', entry->n));
    assert_non_null(memmem(entry->json, entry->n, "{   \"body\":\"a\\nb\" }", 19));
    entry_drop(entry);
    parts.content = STR("\"hi\"");
    parts.state = 2;
    entry = entry_new(&parts);
    assert_null(memmem(entry->json, entry->n, "hi", 2));
    assert_non_null(memmem(entry->json, entry->n, "\"state\":\"recalled\"", 18));
    entry_drop(entry);
}

static struct envelope *read_op(const char *body)
{
    struct envelope *envelope;
    const char *why = "";

    if (read_as(&envelope, body, strlen(body), true, NULL, &why))
        fail_msg("%s: %s", body, why);
    return envelope;
}

static void ops_on_messages_name_one_by_seq_or_by_id(void **state)
{
    struct envelope *edit = read_op(OP "\"op\":\"message.edit\",\"target_seq\":5,\"content\": {\"body\" :\"b\"}}");
    struct envelope *recall =
        read_op(OP "\"op\":\"message.recall\",\"target_id\":\"01KC46E0D7X8BQXSRB29FJP961\",\"by\":\"a\",\"at\":7}");
    struct envelope *delete = read_op(OP "\"op\":\"message.delete\",\"target_seq\":1}");
    struct id128 id;

    (void)state;
    assert_int_equal(edit->op, OP_MESSAGE_EDIT);
    assert_int_equal(edit->target_seq, 5);
    assert_true(id128_is_zero(edit->target_id));
    assert_true(str_is((struct str){edit->new_content.p, edit->new_content.n}, "{\"body\" :\"b\"}"));
    assert_int_equal(recall->op, OP_MESSAGE_RECALL);
    assert_true(ulid_read(&id, STR("01KC46E0D7X8BQXSRB29FJP961")) && id128_eq(recall->target_id, id));
    assert_true(str_is(recall->by, "a") && recall->called_at == 7 && !recall->target_seq);
    assert_int_equal(delete->op, OP_MESSAGE_DELETE);
    envelope_free(edit);
    envelope_free(recall);
    envelope_free(delete);
}

static void a_mute_ends_at_a_time_or_so_long_after_the_call(void **state)
{
    struct envelope *until = read_op(OP "\"op\":\"room.mute\",\"until\":0}");
    struct envelope *some =
        read_op(OP "\"op\":\"room.mute\",\"account_ids\":[\"b\",\"c\",\"b\"],\"at\":1000,\"for_ms\":50}");
    struct envelope *role = read_op(OP "\"op\":\"member.role\",\"account_ids\":[\"b\"],\"role\":\"admin\"}");

    (void)state;
    assert_int_equal(until->op, OP_ROOM_MUTE);
    assert_true(!until->until && !until->account_count);
    assert_int_equal(some->until, 1050);
    assert_int_equal(some->account_count, 2);
    assert_int_equal(role->op, OP_MEMBER_ROLE);
    assert_int_equal(role->role, ROLE_ADMIN);
    envelope_free(until);
    envelope_free(some);
    envelope_free(role);
}

static void bad_ops_are_refused_with_a_sentence(void **state)
{
    static const char *const bad[] = {
        "\"op\":\"message.edit\",\"content\":\"x\"}",
        "\"op\":\"message.edit\",\"target_seq\":1}",
        "\"op\":\"message.edit\",\"target_seq\":0,\"content\":\"x\"}",
        "\"op\":\"message.edit\",\"target_seq\":\"1\",\"content\":\"x\"}",
        "\"op\":\"message.edit\",\"target_id\":\"short\",\"content\":\"x\"}",
        "\"op\":\"message.edit\",\"target_id\":\"00000000000000000000000000\",\"content\":\"x\"}",
        "\"op\":\"message.recall\"}",
        "\"op\":\"message.recall\",\"target_seq\":1,\"target_id\":\"01KC46E0D7X8BQXSRB29FJP961\"}",
        "\"op\":\"message.delete\",\"target_seq\":1.5}",
        "\"op\":\"message.delete\",\"target_seq\":1,\"by\":\"@system\"}",
        "\"op\":\"room.mute\"}",
        "\"op\":\"room.mute\",\"until\":-1}",
        "\"op\":\"room.mute\",\"until\":1,\"for_ms\":1,\"at\":1}",
        "\"op\":\"room.mute\",\"for_ms\":1}",
        "\"op\":\"room.mute\",\"for_ms\":0,\"at\":1}",
        "\"op\":\"room.mute\",\"for_ms\":253402300799999,\"at\":1}",
        "\"op\":\"room.mute\",\"until\":1,\"account_ids\":[]}",
        "\"op\":\"room.mute\",\"until\":1,\"account_ids\":\"b\"}",
        "\"op\":\"member.role\",\"account_ids\":[\"b\"]}",
        "\"op\":\"member.role\",\"account_ids\":[\"b\"],\"role\":\"owner\"}",
        "\"op\":\"member.role\",\"role\":\"admin\"}",
        "\"op\":\"message.hide\",\"target_seq\":1}",
    };
    char body[2000];

    (void)state;
    for (size_t i = 0; i < countof(bad); i++) {
        snprintf(body, sizeof body, OP "%s", bad[i]);
        assert_int_equal(verdict(body, true), ERR_BAD_REQUEST);
        assert_int_equal(verdict(body, false), ERR_FORBIDDEN);
    }
    snprintf(body, sizeof body, OP "\"op\":\"message.edit\",\"target_seq\":1,\"content\":\"%01500d\"}", 0);
    assert_int_equal(verdict(body, true), ERR_TOO_LARGE);
}

static int64_t hash_of_op(const char *body)
{
    struct envelope *envelope = read_op(body);
    int64_t hash = envelope->hash;

    envelope_free(envelope);
    return hash;
}

static void the_hash_of_an_op_covers_all_it_asks_for(void **state)
{
    static const char *const different[] = {
        OP "\"op\":\"message.recall\",\"target_seq\":1}",
        OP "\"op\":\"message.delete\",\"target_seq\":1}",
        OP "\"op\":\"message.recall\",\"target_seq\":1,\"by\":\"a\"}",
        OP "\"op\":\"message.recall\",\"target_seq\":2}",
        OP "\"op\":\"message.recall\",\"target_id\":\"01KC46E0D7X8BQXSRB29FJP961\"}",
        OP "\"op\":\"message.edit\",\"target_seq\":1,\"content\":\"x\"}",
        OP "\"op\":\"message.edit\",\"target_seq\":1,\"content\":\"y\"}",
        OP "\"op\":\"room.mute\",\"at\":3,\"until\":5}",
        OP "\"op\":\"room.mute\",\"at\":3,\"for_ms\":5}",
        OP "\"op\":\"room.mute\",\"at\":3,\"for_ms\":6}",
        OP "\"op\":\"room.mute\",\"at\":3,\"for_ms\":6,\"account_ids\":[\"b\"]}",
    };

    (void)state;
    for (size_t i = 0; i < countof(different); i++)
        for (size_t j = 0; j < i; j++)
            assert_int_not_equal(hash_of_op(different[i]), hash_of_op(different[j]));
    assert_int_equal(hash_of_op(OP "\"op\":\"room.mute\",\"at\":3,\"for_ms\":5}"),
        hash_of_op(OP "\"op\":\"room.mute\",\"at\":4,\"for_ms\":5}")); /* called again: the same */
    /* It is stored: ops of older logs keep theirs. */
    assert_int_equal(hash_of_op(OP "\"op\":\"member.add\",\"account_ids\":[\"b\"]}"),
        content_hash(STR("member.add"), STR(",,[\"b\"],,,,,,,")));
}

static void mentions_of_a_message_are_at_hand(void **state)
{
    static const char rich[] = HEAD "\"kind\":\"rich_text\",\"sent_at\":9,\"mentions\":[\"b\"],\"content\":{\"parts\":["
                                    "{\"type\":\"mention\",\"mention_type\":\"all\"}],\"quote_message_seq\":3}}";
    static const char plain[] = HEAD "\"kind\":\"text\",\"content\":\"x\"}";
    struct envelope *envelope;
    const char *why;

    (void)state;
    assert_int_equal(read_as(&envelope, rich, sizeof rich - 1, false, NULL, &why), ERR_OK);
    assert_true(str_is(envelope->mentions, "[\"@all\",\"b\"]"));
    assert_true(envelope->mentions_all && envelope->quote_seq == 3 && envelope->sent_at == 9);
    envelope_free(envelope);
    assert_int_equal(read_as(&envelope, plain, sizeof plain - 1, false, NULL, &why), ERR_OK);
    assert_true(!envelope->mentions.n && !envelope->mentions_all && envelope->sent_at == UINT64_MAX);
    envelope_free(envelope);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_message_is_read_with_its_content_as_it_came),
        cmocka_unit_test(what_cannot_be_accepted_is_refused_with_a_sentence),
        cmocka_unit_test(ops_are_taken_from_their_own_exchange_only),
        cmocka_unit_test(ops_on_messages_name_one_by_seq_or_by_id),
        cmocka_unit_test(a_mute_ends_at_a_time_or_so_long_after_the_call),
        cmocka_unit_test(bad_ops_are_refused_with_a_sentence),
        cmocka_unit_test(the_hash_of_an_op_covers_all_it_asks_for),
        cmocka_unit_test(mentions_of_a_message_are_at_hand),
        cmocka_unit_test(accounts_of_an_op_stand_once_in_the_order_given),
        cmocka_unit_test(too_large_content_says_so),
        cmocka_unit_test(other_media_types_and_encodings_are_refused),
        cmocka_unit_test(a_message_without_an_id_takes_the_property),
        cmocka_unit_test(the_hash_sees_content_not_its_writing),
        cmocka_unit_test(message_ids_are_what_any_publisher_computes),
        cmocka_unit_test(cursors_are_read_strictly),
        cmocka_unit_test(entries_are_one_line_of_json_each),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
