/* MessagePack in and out: the same meaning as JSON, and no header that makes memory grow. */
#include "room/base/json.h"
#include "room/base/msgpack.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static bool unpacks(struct str packed, struct buf *out)
{
    char *copy = xmemdup(packed.p, packed.n); /* exact, for the address sanitizer */
    const char *why = NULL;
    bool ok = msgpack_to_json((struct str){copy, packed.n}, out, &why);

    assert_true(ok || (why && *why));
    free(copy);
    return ok;
}

static void every_type_that_json_knows_comes_through(void **state)
{
    static const struct {
        struct str packed;
        const char *json;
    } cases[] = {
        {STR("\xc0"), "null"},
        {STR("\xc2"), "false"},
        {STR("\xc3"), "true"},
        {STR("\x00"), "0"},
        {STR("\x7f"), "127"},
        {STR("\xff"), "-1"},
        {STR("\xe0"), "-32"},
        {STR("\xcc\xff"), "255"},
        {STR("\xcd\xff\xff"), "65535"},
        {STR("\xce\xff\xff\xff\xff"), "4294967295"},
        {STR("\xcf\xff\xff\xff\xff\xff\xff\xff\xff"), "18446744073709551615"},
        {STR("\xcf\x80\x00\x00\x00\x00\x00\x00\x00"), "9223372036854775808"},
        {STR("\xcf\x7f\xff\xff\xff\xff\xff\xff\xff"), "9223372036854775807"},
        {STR("\xd0\x80"), "-128"},
        {STR("\xd0\x05"), "5"},
        {STR("\xd1\x80\x00"), "-32768"},
        {STR("\xd2\x80\x00\x00\x00"), "-2147483648"},
        {STR("\xd3\x80\x00\x00\x00\x00\x00\x00\x00"), "-9223372036854775808"},
        {STR("\xca\x3f\xc0\x00\x00"), "1.5"},
        {STR("\xcb\x3f\xb9\x99\x99\x99\x99\x99\x9a"), "0.1"},
        {STR("\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00"), "1.0"},
        {STR("\xcb\x80\x00\x00\x00\x00\x00\x00\x00"), "-0.0"},
        {STR("\xcb\x7f\xef\xff\xff\xff\xff\xff\xff"), "1.7976931348623157e+308"},
        {STR("\xcb\x3f\xd5\x55\x55\x55\x55\x55\x55"), "0.3333333333333333"},
        {STR("\xcb\x00\x00\x00\x00\x00\x00\x00\x01"), "4.94065645841247e-324"},
        {STR("\xa0"), "\"\""},
        {STR("\xa2hi"), "\"hi\""},
        {STR("\xd9\x02hi"), "\"hi\""},
        {STR("\xda\x00\x02hi"), "\"hi\""},
        {STR("\xdb\x00\x00\x00\x02hi"), "\"hi\""},
        {STR("\xa4\"\\\n\x01"), "\"\\\"\\\\\\n\\u0001\""},
        {STR("\xa3\xe4\xbd\xa0"), "\"\xe4\xbd\xa0\""},
        {STR("\x90"), "[]"},
        {STR("\x93\x01\x90\x80"), "[1,[],{}]"},
        {STR("\xdc\x00\x01\x01"), "[1]"},
        {STR("\xdd\x00\x00\x00\x01\x01"), "[1]"},
        {STR("\x80"), "{}"},
        {STR("\x82\xa1"
             "a\x01\xa1"
             "b\x81\xa1"
             "c\x92\x02\xc0"),
            "{\"a\":1,\"b\":{\"c\":[2,null]}}"},
        {STR("\xde\x00\x01\xa1k\xc3"), "{\"k\":true}"},
        {STR("\xdf\x00\x00\x00\x01\xa1k\xc3"), "{\"k\":true}"},
    };

    (void)state;
    for (size_t i = 0; i < countof(cases); i++) {
        struct buf out = {0};
        struct json value;
        const char *why;

        buf_char(&out, '>'); /* what stands in the buffer stays */
        if (!unpacks(cases[i].packed, &out))
            fail_msg("refused: the packed form of %s", cases[i].json);
        buf_char(&out, '\0');
        assert_string_equal(out.p + 1, cases[i].json);
        assert_true(json_check(str_of(out.p + 1), &value, &why));
        buf_clear(&out);
    }
}

static void what_json_cannot_say_is_refused(void **state)
{
    static const struct str bad[] = {STR(""), STR("\xc1"), STR("\xc4\x01x"), STR("\xc5\x00\x01x"),
        STR("\xc6\x00\x00\x00\x01x"), STR("\xc7\x01\x05x"), STR("\xc8\x00\x01\x05x"), STR("\xc9\x00\x00\x00\x01\x05x"),
        STR("\xd4\x05x"), STR("\xd5\x05xx"), STR("\xd6\xff\x00\x00\x00\x00"), STR("\xd7\x05xxxxxxxx"),
        STR("\xd8\x05xxxxxxxxxxxxxxxx"), STR("\xca\x7f\xc0\x00\x00"), STR("\xca\x7f\x80\x00\x00"),
        STR("\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00"), STR("\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00"),
        STR("\xcb\xff\xf0\x00\x00\x00\x00\x00\x00"),
        /* keys that are no strings */
        STR("\x81\x01\x02"), STR("\x81\xc0\x02"), STR("\x81\x90\x02"), STR("\x81\x80\x02"),
        STR("\x81\xc4\x01"
            "a\x02"),
        STR("\x82\xa1"
            "a\x01\x05\x06"),
        STR("\x81\xa1"
            "a\x81\x01\x02"),
        STR("\x81\xca\x3f\xc0\x00\x00\x01"),
        /* texts that are none */
        STR("\xa1\xff"), STR("\xa2\xc0\x80"), STR("\xa3\xed\xa0\x80"), STR("\xa1\0"),
        STR("\xa3"
            "a\0b"),
        STR("\x81\xa1\0\x01"), STR("\x81\xa1\xff\x01"),
        /* bytes behind */
        STR("\xc0\xc0"), STR("\x80\x00"), STR("\x91\x01\x01"),
        STR("\xa1"
            "ab")};
    struct buf out = {0};

    (void)state;
    for (size_t i = 0; i < countof(bad); i++) {
        if (unpacks(bad[i], &out))
            fail_msg("accepted number %zu", i);
        assert_int_equal(out.n, 0); /* nothing half is left */
    }
    buf_clear(&out);
}

static void a_length_beyond_the_body_is_refused_before_anything_is_allocated(void **state)
{
    static const struct str bad[] = {STR("\xdd\xff\xff\xff\xff"), STR("\xdf\xff\xff\xff\xff"),
        STR("\xdb\xff\xff\xff\xff"), STR("\xdc\xff\xff\x01"),
        STR("\xde\x80\x00\xa1"
            "a\x01"),
        STR("\xda\xff\xffhi"), STR("\xd9\x03hi"), STR("\x92\x01"),
        STR("\x81\xa1"
            "a"),
        STR("\xdd\x7f\xff\xff\xff\x01\x02\x03"),
        /* each array promises no more than is there, all together do */
        STR("\x94\x94\x94\x94\x94"), STR("\xdd\x00\x00\x00\x06\xdd\x00\x00\x00\x05\x01\x01"),
        STR("\xdf\x80\x00\x00\x00")};
    struct buf out = {0};

    (void)state;
    for (size_t i = 0; i < countof(bad); i++)
        assert_false(unpacks(bad[i], &out));
    buf_clear(&out);
}

static void depth_32_is_accepted_and_33_refused(void **state)
{
    (void)state;
    for (size_t depth = 30; depth <= 34; depth++) {
        for (int kind = 0; kind < 3; kind++) {
            struct buf packed = {0}, out = {0};

            for (size_t i = 0; i + 1 < depth; i++)
                buf_text(&packed, kind == 1 ? "\x81\xa1k" : "\x91");
            buf_char(&packed, kind == 2 ? (char)0x91 : (char)0x90);
            if (kind == 2)
                buf_char(&packed, 7);
            assert_int_equal(unpacks(buf_str(&packed), &out), depth <= 32);
            buf_clear(&packed);
            buf_clear(&out);
        }
    }
}

static void a_body_cut_anywhere_is_refused(void **state)
{
    struct buf packed = {0}, out = {0};

    (void)state;
    assert_true(msgpack_from_json(
        STR("{\"room_id\":\"s07.01KC46E0D7X8BQXSRB29FJP960\",\"n\":[1,-70000,1.5,1770000000000,null,true],"
            "\"content\":{\"a\":{\"b\":[[],{}]}}}"),
        &packed));
    assert_true(unpacks(buf_str(&packed), &out));
    buf_reset(&out);
    for (size_t n = 0; n < packed.n; n++)
        assert_false(unpacks((struct str){packed.p, n}, &out));
    for (size_t at = 0; at < packed.n; at++) {
        for (int c = 0; c < 256; c++) {
            char was = packed.p[at];

            packed.p[at] = (char)c;
            (void)unpacks(buf_str(&packed), &out);
            packed.p[at] = was;
        }
    }
    buf_clear(&packed);
    buf_clear(&out);
}

static void there_and_back_it_is_the_same(void **state)
{
    static const char *const texts[] = {"null", "true", "false", "0", "-1", "-32", "-33", "127", "128", "255", "256",
        "65535", "65536", "4294967296", "9223372036854775807", "-9223372036854775808", "9223372036854775808",
        "18446744073709551615", "1.5", "-0.1", "1e+300", "\"\"", "\"a\\n\\\"\\\\\xe4\xbd\xa0\xf0\x9f\x98\x80\"", "[]",
        "{}", "[1,[2,[3,{}]],\"x\"]", "{\"a\":{\"b\":[null]},\"c\\n\":\"\"}",
        "[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]"};

    (void)state;
    for (size_t i = 0; i < countof(texts); i++) {
        struct buf packed = {0}, out = {0};

        assert_true(msgpack_from_json(str_of(texts[i]), &packed));
        assert_true(unpacks(buf_str(&packed), &out));
        buf_char(&out, '\0');
        assert_string_equal(out.p, texts[i]);
        buf_clear(&packed);
        buf_clear(&out);
    }
}

static void packing(const char *json, struct str packed)
{
    struct buf out = {0};

    assert_true(msgpack_from_json(str_of(json), &out));
    if (!str_eq(buf_str(&out), packed))
        fail_msg("%s is packed as %zu other bytes", json, out.n);
    buf_clear(&out);
}

static void the_packed_form_is_the_shortest(void **state)
{
    (void)state;
    packing(" { \"\\u0061\" : [ 1 , -1 , 300 ] } ", STR("\x81\xa1"
                                                        "a\x93\x01\xff\xcd\x01\x2c"));
    packing("1.0", STR("\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00"));
    packing("-0", STR("\x00"));
    packing("\"\\ud83d\\ude00\"", STR("\xa4\xf0\x9f\x98\x80"));
}

/* Content may hold any JSON number, and a reader of MessagePack must get an answer nevertheless. */
static void numbers_no_double_can_hold_become_the_largest(void **state)
{
    (void)state;
    packing("1e999", STR("\xcb\x7f\xef\xff\xff\xff\xff\xff\xff"));
    packing("-1e999", STR("\xcb\xff\xef\xff\xff\xff\xff\xff\xff"));
    packing("18446744073709551616", STR("\xcb\x43\xf0\x00\x00\x00\x00\x00\x00"));
    packing("-9223372036854775809", STR("\xcb\xc3\xe0\x00\x00\x00\x00\x00\x00"));
    packing("100000000000000000000000000", STR("\xcb\x45\x54\xad\xf4\xb7\x32\x03\x35"));
}

static void broken_json_is_not_packed(void **state)
{
    struct buf out = {0};

    (void)state;
    assert_false(msgpack_from_json(STR("{\"a\":}"), &out));
    assert_false(msgpack_from_json(STR(""), &out));
    assert_int_equal(out.n, 0);
    buf_clear(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_that_json_knows_comes_through),
        cmocka_unit_test(what_json_cannot_say_is_refused),
        cmocka_unit_test(a_length_beyond_the_body_is_refused_before_anything_is_allocated),
        cmocka_unit_test(depth_32_is_accepted_and_33_refused),
        cmocka_unit_test(a_body_cut_anywhere_is_refused),
        cmocka_unit_test(there_and_back_it_is_the_same),
        cmocka_unit_test(the_packed_form_is_the_shortest),
        cmocka_unit_test(numbers_no_double_can_hold_become_the_largest),
        cmocka_unit_test(broken_json_is_not_packed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
