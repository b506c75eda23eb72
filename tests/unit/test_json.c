/* Strict JSON: what is accepted, what is refused, and that walking gives back what was checked. */
#include "room/base/json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static bool accepts(struct str text)
{
    /* An exact heap copy, so that the address sanitizer sees every read beyond the end. */
    char *copy = xmemdup(text.p, text.n);
    struct json value;
    const char *why = NULL;
    bool ok = json_check((struct str){copy, text.n}, &value, &why);

    assert_true(ok || (why && *why));
    free(copy);
    return ok;
}

static struct json checked(const char *text)
{
    struct json value = {0};
    const char *why = "";

    if (!json_check(str_of(text), &value, &why))
        fail_msg("%s: %s", text, why);
    return value;
}

/* --- texts --- */

static void what_rfc_8259_allows_is_accepted(void **state)
{
    static const struct str good[] = {STR("{}"), STR("[]"), STR("\"\""), STR("0"), STR("-0"), STR("null"), STR("true"),
        STR("false"), STR(" \t\r\n{ \"a\" : [ 1 , 2 ] , \"b\" : { } } \n"), STR("1e999"), STR("-1.5E+3"), STR("0.0"),
        STR("1e-5"), STR("123456789012345678901234567890"), STR("9223372036854775808"), STR("[[[]],{}]"),
        STR("\"\\u00e9\\ud83d\\ude00\""), STR("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\""), STR("\"\x7f\""),
        STR("\"\xc3\xa9 \xe4\xbd\xa0 \xf0\x9f\x98\x80\""),
        STR("\"\xf4\x8f\xbf\xbf\xef\xbf\xbf\xed\x9f\xbf\xee\x80\x80\xc2\x80\xe0\xa0\x80\xf0\x90\x80\x80\""),
        STR("\"\\uffff\""), STR("{\"\":1}"), STR("{\"a\":1,\"A\":2,\"aa\":3}"), STR("[true,false,null]"),
        STR("\"\\uDBFF\\uDFFF\"")};

    (void)state;
    for (size_t i = 0; i < countof(good); i++)
        if (!accepts(good[i]))
            fail_msg("refused: %.*s", STR_ARG(good[i]));
}

static void what_it_does_not_allow_is_refused(void **state)
{
    static const struct str bad[] = {STR(""), STR("   "), STR("\xef\xbb\xbf{}"), STR("{}x"), STR("{} {}"), STR("[]\0"),
        STR("1 2"), STR("{'a':1}"), STR("{a:1}"), STR("{\"a\":1,}"), STR("[1,]"), STR("[,1]"), STR("[1 2]"),
        STR("{\"a\" 1}"), STR("{\"a\":}"), STR("{,}"), STR("{\"a\"}"), STR("{1:2}"), STR("[1}"), STR("{\"a\":1]"),
        STR("/* c */ 1"), STR("1 // c"), STR("# 1"), STR("NaN"), STR("nan"), STR("Infinity"), STR("-Infinity"),
        STR("-"), STR("+1"), STR("01"), STR("-01"), STR("00"), STR("1."), STR(".5"), STR("1.e5"), STR("1e"), STR("1e+"),
        STR("0x10"), STR("1_000"), STR("1a"), STR("True"), STR("tru"), STR("truex"), STR("nul"), STR("undefined"),
        STR("]"), STR("}"), STR(","), STR(":"), STR("\""), STR("\"\n\""), STR("\"\x01\""), STR("\"\x1f\""),
        STR("\"\0\""), STR("\"\t\""), STR("\"\\\""), STR("\"\\x41\""), STR("\"\\'\""), STR("\"\\a\""), STR("\"\\u12\""),
        STR("\"\\u12g4\""), STR("\"\\U0041\""), STR("\v1"), STR("\f1"),
        STR("\xc2\xa0"
            "1"),
        STR("1\0"), STR("'a'"), STR("`a`"), STR("\"\\u 041\""), STR("\"\\u+041\""), STR("[1]]"), STR("{\"a\":1}}"),
        STR("[\"a\",\"b\""), STR("\\u0022a\"")};

    (void)state;
    for (size_t i = 0; i < countof(bad); i++)
        if (accepts(bad[i]))
            fail_msg("accepted number %zu: %.*s", i, STR_ARG(bad[i]));
}

static void strings_hold_no_nul_no_half_surrogates_and_no_bad_utf8(void **state)
{
    static const struct str bad[] = {STR("\"\\u0000\""), STR("\"a\\u0000b\""), STR("\"\\ud800\""), STR("\"\\udc00\""),
        STR("\"\\udfff\""), STR("\"\\ud800x\""), STR("\"\\ud800\\n\""), STR("\"\\ud800\\u0041\""),
        STR("\"\\ud800\\ud800\""), STR("\"\\udc00\\ud800\""), STR("\"\\ud83d\\ude0\""), STR("\"\\ud83d\\\""),
        STR("\"\x80\""), STR("\"\xbf\""), STR("\"\xc0\x80\""), STR("\"\xc1\xbf\""), STR("\"\xe0\x80\x80\""),
        STR("\"\xe0\x9f\xbf\""), STR("\"\xf0\x80\x80\x80\""), STR("\"\xf0\x8f\xbf\xbf\""), STR("\"\xed\xa0\x80\""),
        STR("\"\xed\xbf\xbf\""), STR("\"\xf4\x90\x80\x80\""), STR("\"\xf5\x80\x80\x80\""), STR("\"\xff\""),
        STR("\"\xfe\""), STR("\"\xc3\""), STR("\"\xc3\xc3\""), STR("\"\xe4\xbd\""), STR("\"\xe4\xbd\x22\""),
        STR("\"\xf0\x9f\x98\""), STR("\"\xf8\x88\x80\x80\x80\""), STR("{\"\xff\":1}"), STR("{\"\\u0000\":1}"),
        STR("{\"\\ud800\":1}"), STR("\"aaaaaaa\xc3\""),
        STR("\"aaaaaaaa\x80"
            "aaaaaaaa\"")};

    (void)state;
    for (size_t i = 0; i < countof(bad); i++)
        if (accepts(bad[i]))
            fail_msg("accepted number %zu: %.*s", i, STR_ARG(bad[i]));
}

/* The eight-bytes-at-once path must find every special byte at every place. */
static void a_special_byte_is_seen_at_every_offset(void **state)
{
    static const char special[] = {0x00, 0x01, 0x1f, '\n', (char)0x80, (char)0xff};

    (void)state;
    for (size_t n = 0; n < 40; n++) {
        for (size_t at = 0; at < n; at++) {
            char text[64] = "\"";

            for (unsigned fill = 0x20; fill < 0x80; fill++) {
                if (fill == '"' || fill == '\\')
                    continue;
                memset(text + 1, (int)fill, n);
                text[n + 1] = '"';
                assert_true(accepts((struct str){text, n + 2}));
                text[1 + at] = special[(fill + at) % sizeof special];
                assert_false(accepts((struct str){text, n + 2}));
                text[1 + at] = '"'; /* ends too early, and something stands behind */
                assert_false(accepts((struct str){text, n + 2}));
            }
        }
    }
}

static const char sample[] =
    " {\"room_id\" : \"s07.01KC\\u0034\", \"n\":-12.5e+3, \"deep\":[{\"a\":[1,2,{\"b\":null}]},true,false], "
    "\"t\":\"\xe4\xbd\xa0\xf0\x9f\x98\x80\\ud83d\\ude00 x\",\"empty\":{} ,\"list\":[ ] } ";

static void a_text_cut_anywhere_is_refused(void **state)
{
    size_t whole = sizeof sample - 2; /* without the space at the end */

    (void)state;
    assert_true(accepts((struct str){sample, whole}));
    for (size_t n = 0; n < whole; n++)
        assert_false(accepts((struct str){sample, n}));
}

static void any_single_byte_changed_never_reads_out_of_bounds(void **state)
{
    char text[sizeof sample - 1];

    (void)state;
    for (size_t at = 0; at < sizeof text; at++) {
        for (int c = 0; c < 256; c++) {
            memcpy(text, sample, sizeof text);
            text[at] = (char)c;
            (void)accepts((struct str){text, sizeof text});
        }
    }
}

static void depth_32_is_accepted_and_33_refused(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        for (size_t depth = 31; depth <= 34; depth++) {
            struct buf text = {0};

            for (size_t i = 0; i < depth; i++)
                buf_text(&text, (kind == 0 || (kind == 2 && i % 2)) ? "[" : i + 1 < depth ? "{\"a\":" : "{");
            for (size_t i = depth; i-- > 0;)
                buf_text(&text, (kind == 0 || (kind == 2 && i % 2)) ? "]" : "}");
            assert_int_equal(accepts(buf_str(&text)), depth <= 32);
            buf_clear(&text);
        }
    }
}

static void a_million_brackets_do_not_overflow_the_stack(void **state)
{
    struct str text = {xmalloc(1000000), 1000000};

    (void)state;
    memset((char *)(uintptr_t)text.p, '[', text.n);
    assert_false(accepts(text));
    free((void *)(uintptr_t)text.p);
}

/* --- duplicate keys --- */

static void a_key_may_stand_once_however_it_is_written(void **state)
{
    static const char *const bad[] = {"{\"a\":1,\"a\":2}", "{\"a\":1,\"\\u0061\":2}", "{\"\\u0061\":1,\"a\":2}",
        "{\"\\u0061\":1,\"\\u0061\":2}", "{\"\":1,\"\":2}", "{\"x\":{\"k\":1,\"l\":2,\"k\":3}}", "[{\"k\":1,\"k\":1}]",
        "{\"\xc3\xa9\":1,\"\\u00e9\":2}", "{\"\xc3\xa9\":1,\"\\u00E9\":2}", "{\"\\u4f60\":1,\"\xe4\xbd\xa0\":2}",
        "{\"\xf0\x9f\x98\x80\":1,\"\\ud83d\\ude00\":2}", "{\"a\\/b\":1,\"a/b\":2}", "{\"\\n\":1,\"\\u000a\":2}",
        "{\"\\\\\":1,\"\\u005c\":2}", "{\"b\":0,\"a\":1,\"c\":0,\"\\u0061\":2}"};
    static const char *const good[] = {"{\"a\":1,\"b\":2}", "{\"a\":{\"a\":1},\"b\":{\"a\":1}}",
        "{\"\\u0061\":1,\"\\u0062\":2}", "{\"a\":1,\"a \":2}", "{\"\\\\u0061\":1,\"a\":2}",
        "{\"ab\":1,\"a\\u0062c\":2}", "[{\"a\":1},{\"a\":1}]"};

    (void)state;
    for (size_t i = 0; i < countof(bad); i++)
        if (accepts(str_of(bad[i])))
            fail_msg("accepted: %s", bad[i]);
    for (size_t i = 0; i < countof(good); i++)
        if (!accepts(str_of(good[i])))
            fail_msg("refused: %s", good[i]);
}

/* {"k0":0,...,"k<n-1>":0} with the key at `twice` once more at the end, escaped if wanted; -1: none. */
static void many_keys(struct buf *text, size_t n, long twice, bool escaped)
{
    buf_reset(text);
    buf_char(text, '{');
    for (size_t i = 0; i < n; i++)
        buf_printf(text, "%s\"%s%zu\":0", i ? "," : "", i % 7 == 3 ? "\\u006b" : "k", i);
    if (twice >= 0)
        buf_printf(text, ",\"%s%ld\":0", escaped ? "\\u006B" : "k", twice);
    buf_char(text, '}');
}

static void a_duplicate_is_found_among_any_number_of_keys(void **state)
{
    struct buf text = {0};

    (void)state;
    for (size_t n = 1; n < 140; n++) {
        many_keys(&text, n, -1, false);
        assert_true(accepts(buf_str(&text)));
        for (size_t twice = 0; twice < n; twice++) {
            many_keys(&text, n, (long)twice, twice % 2);
            assert_false(accepts(buf_str(&text)));
        }
    }
    many_keys(&text, 100000, -1, false);
    assert_true(accepts(buf_str(&text)));
    many_keys(&text, 100000, 99999, true);
    assert_false(accepts(buf_str(&text)));
    buf_clear(&text);
}

/* --- members handed out --- */

static void members_come_in_order_as_slices(void **state)
{
    struct json_member members[8];
    size_t count;
    const char *why;

    (void)state;
    assert_true(json_object_read(str_of(sample), members, 8, &count, &why));
    assert_int_equal(count, 6);
    assert_true(str_is(members[0].key, "room_id"));
    assert_int_equal(members[0].value.type, JSON_STRING);
    assert_true(members[0].value.escaped);
    assert_true(str_is((struct str){members[0].value.p, members[0].value.n}, "\"s07.01KC\\u0034\""));
    assert_true(str_is((struct str){members[1].value.p, members[1].value.n}, "-12.5e+3"));
    assert_int_equal(members[1].value.type, JSON_NUMBER);
    assert_int_equal(members[2].value.type, JSON_ARRAY);
    assert_int_equal(members[4].value.type, JSON_OBJECT);
    assert_true(str_is((struct str){members[4].value.p, members[4].value.n}, "{}"));
    assert_true(str_is((struct str){members[5].value.p, members[5].value.n}, "[ ]"));
}

static void members_above_max_are_counted_and_checked(void **state)
{
    struct json_member members[2];
    size_t count;
    const char *why;

    (void)state;
    memset(members, 0x55, sizeof members);
    assert_true(json_object_read(STR("{\"a\":1,\"b\":2,\"c\":3}"), members, 1, &count, &why));
    assert_int_equal(count, 3);
    assert_true(str_is(members[0].key, "a"));
    assert_int_equal(*(unsigned char *)&members[1], 0x55);
    assert_false(json_object_read(STR("{\"a\":1,\"b\":2,\"a\":3}"), members, 1, &count, &why));
    assert_false(json_object_read(STR("{\"a\":1,\"b\":x}"), members, 1, &count, &why));
    assert_true(json_object_read(STR(" { } "), members, 1, &count, &why));
    assert_int_equal(count, 0);
    assert_true(json_object_read(STR("{\"a\":1}"), NULL, 0, &count, &why));
    assert_int_equal(count, 1);
}

static void only_an_object_is_an_object(void **state)
{
    static const char *const not_objects[] = {
        "[]", "1", "\"a\"", "null", "", " ", "{", "{}{}", "{\"a\":1}]", "\xef\xbb\xbf{}"};
    struct json_member member;
    size_t count;

    (void)state;
    for (size_t i = 0; i < countof(not_objects); i++) {
        const char *why = NULL;

        assert_false(json_object_read(str_of(not_objects[i]), &member, 1, &count, &why));
        assert_non_null(why);
    }
    assert_false(json_object_read((struct str){NULL, 0}, &member, 1, &count, &(const char *){NULL}));
}

/* --- walking --- */

/* Writes a checked value back in one form: no spaces, escapes undone and put back. */
static void rewrite(struct json value, struct buf *out)
{
    struct json_walk walk = json_walk(value);
    struct buf scratch = {0};
    struct json_member member;
    struct json item;
    struct str text;
    bool first = true;

    switch (value.type) {
    case JSON_STRING:
        assert_true(json_string(value, &scratch, &text));
        assert_true(utf8_valid(text));
        buf_json_string(out, text);
        break;
    case JSON_ARRAY:
        buf_char(out, '[');
        for (; json_next_item(&walk, &item); first = false) {
            buf_text(out, first ? "" : ",");
            rewrite(item, out);
        }
        buf_char(out, ']');
        break;
    case JSON_OBJECT:
        buf_char(out, '{');
        for (; json_next_member(&walk, &member); first = false) {
            buf_text(out, first ? "" : ",");
            rewrite((struct json){member.key.p - 1, member.key.n + 2, JSON_STRING, member.key_escaped}, out);
            buf_char(out, ':');
            rewrite(member.value, out);
        }
        buf_char(out, '}');
        break;
    default:
        buf_add(out, value.p, value.n);
    }
    buf_clear(&scratch);
}

static void walking_gives_back_what_was_checked(void **state)
{
    static const struct {
        const char *text, *same;
    } cases[] = {
        {" [ 1 ,\t2 , [ ] , { } , \"a\\\"]}\" ] ", "[1,2,[],{},\"a\\\"]}\"]"},
        {"{ \"a\" : { \"b\" : [ null , true ] } , \"c}\" : -1.5e3 }", "{\"a\":{\"b\":[null,true]},\"c}\":-1.5e3}"},
        {"\"\\ud83d\\ude00\\u00e9\\u4f60\\u0041\\/\"", "\"\xf0\x9f\x98\x80\xc3\xa9\xe4\xbd\xa0"
                                                       "A/\""},
        {"\"\\\\\"", "\"\\\\\""},
        {"[\"\\\\\",\"\\\\\\\"\",1]", "[\"\\\\\",\"\\\\\\\"\",1]"},
        {"{\"\\u0061\\n\":\"\"}", "{\"a\\n\":\"\"}"},
    };

    (void)state;
    for (size_t i = 0; i < countof(cases); i++) {
        struct buf out = {0};

        rewrite(checked(cases[i].text), &out);
        buf_char(&out, '\0');
        assert_string_equal(out.p, cases[i].same);
        buf_clear(&out);
    }
}

static void a_member_is_found_by_its_unescaped_name(void **state)
{
    struct json object = checked("{\"x\":1,\"r\\u006fom\":2,\"\\\\u0061\":3,\"list\":[\"room\"]}");

    (void)state;
    assert_true(str_is((struct str){json_get(object, "room").p, 1}, "2"));
    assert_true(str_is((struct str){json_get(object, "\\u0061").p, 1}, "3"));
    assert_int_equal(json_get(object, "a").type, JSON_NONE);
    assert_int_equal(json_get(object, "roo").type, JSON_NONE);
    assert_int_equal(json_get(object, "rooms").type, JSON_NONE);
    assert_int_equal(json_get(object, "").type, JSON_NONE);
    assert_int_equal(json_get(checked("[1]"), "x").type, JSON_NONE);
    assert_int_equal(json_get((struct json){0}, "x").type, JSON_NONE);
}

static void strings_without_escapes_are_not_copied(void **state)
{
    struct buf scratch = {0};
    struct json value = checked("\"plain \xc3\xa9\"");
    struct str text, first, second;

    (void)state;
    assert_true(json_string(value, &scratch, &text));
    assert_ptr_equal(text.p, value.p + 1);
    assert_int_equal(scratch.n, 0);
    buf_reserve(&scratch, 100);
    assert_true(json_string(checked("\"\\u0061\""), &scratch, &first));
    assert_true(json_string(checked("\"b\\n\""), &scratch, &second));
    assert_true(str_is(first, "a"));
    assert_true(str_is(second, "b\n"));
    assert_false(json_string(checked("1"), &scratch, &text));
    assert_false(json_string((struct json){0}, &scratch, &text));
    buf_clear(&scratch);
}

/* --- numbers --- */

static void only_exact_integers_in_range_are_integers(void **state)
{
    static const struct {
        const char *text;
        int64_t is;
    } good[] = {{"0", 0}, {"-0", 0}, {"1", 1}, {"-1", -1}, {"1770000000000", 1770000000000},
        {"9223372036854775807", INT64_MAX}, {"-9223372036854775807", -INT64_MAX}, {"-9223372036854775808", INT64_MIN},
        {"9007199254740993", 9007199254740993}};
    static const char *const bad[] = {"9223372036854775808", "-9223372036854775809", "18446744073709551616", "1.0",
        "1e0", "1E2", "0.5", "-0.0", "123456789012345678901234567890", "1e999", "\"1\"", "null", "true", "[1]",
        "92233720368547758070", "-92233720368547758080"};
    int64_t number;

    (void)state;
    for (size_t i = 0; i < countof(good); i++) {
        if (!json_integer(checked(good[i].text), &number))
            fail_msg("refused: %s", good[i].text);
        assert_true(number == good[i].is);
    }
    for (size_t i = 0; i < countof(bad); i++)
        if (json_integer(checked(bad[i]), &number))
            fail_msg("accepted: %s", bad[i]);
    assert_false(json_integer((struct json){0}, &number));
}

static void utf8_is_judged_by_the_standard(void **state)
{
    unsigned long valid = 0;

    (void)state;
    assert_true(utf8_valid((struct str){NULL, 0}));
    assert_true(utf8_valid(STR("a\0b"))); /* U+0000 is UTF-8; json refuses it, this does not */
    /* Of all byte pairs only pairs of ASCII and the two-byte sequences are text. */
    for (unsigned pair = 0; pair < 65536; pair++) {
        char text[2] = {(char)(pair >> 8), (char)pair};

        valid += utf8_valid((struct str){text, 2});
    }
    assert_int_equal(valid, 128 * 128 + 30 * 64);
    /* Behind these heads: as many texts as there are characters from U+0800 on without the surrogates. */
    valid = 0;
    for (unsigned head = 0xe0; head < 0x100; head++) {
        for (unsigned rest = 0; rest < 65536; rest++) {
            char text[4] = {(char)head, (char)(rest >> 8), (char)rest, (char)0x80};

            valid += utf8_valid((struct str){text, 3});
            valid += 64 * utf8_valid((struct str){text, 4});
        }
    }
    assert_int_equal(valid, 0x10000 - 0x800 - 0x800 + 0x100000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_rfc_8259_allows_is_accepted),
        cmocka_unit_test(what_it_does_not_allow_is_refused),
        cmocka_unit_test(strings_hold_no_nul_no_half_surrogates_and_no_bad_utf8),
        cmocka_unit_test(a_special_byte_is_seen_at_every_offset),
        cmocka_unit_test(a_text_cut_anywhere_is_refused),
        cmocka_unit_test(any_single_byte_changed_never_reads_out_of_bounds),
        cmocka_unit_test(depth_32_is_accepted_and_33_refused),
        cmocka_unit_test(a_million_brackets_do_not_overflow_the_stack),
        cmocka_unit_test(a_key_may_stand_once_however_it_is_written),
        cmocka_unit_test(a_duplicate_is_found_among_any_number_of_keys),
        cmocka_unit_test(members_come_in_order_as_slices),
        cmocka_unit_test(members_above_max_are_counted_and_checked),
        cmocka_unit_test(only_an_object_is_an_object),
        cmocka_unit_test(walking_gives_back_what_was_checked),
        cmocka_unit_test(a_member_is_found_by_its_unescaped_name),
        cmocka_unit_test(strings_without_escapes_are_not_copied),
        cmocka_unit_test(only_exact_integers_in_range_are_integers),
        cmocka_unit_test(utf8_is_judged_by_the_standard),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
