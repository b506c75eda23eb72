/* RFC 6455 as a server must read it: what is a frame, what is not, and how messages grow from fragments. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "room/base/ws_frame.h"

#define MAX 131072
#define MASK "abcd" /* in front of a payload */
#define BYTES(text) (text), sizeof(text) - 1

static void headers_are_judged_by_the_letter(void **state)
{
    static const struct {
        const char *what;
        const char *bytes;
        size_t n;
        int64_t expected;
    } table[] = {
        {"nothing", BYTES(""), 0},
        {"half a header", BYTES("\x81"), 0},
        {"empty text", BYTES("\x81\x80" MASK), 6},
        {"one byte", BYTES("\x81\x81" MASK "X"), 7},
        {"payload missing", BYTES("\x81\x82" MASK "X"), 0},
        {"mask missing",
            BYTES("\x81\x81"
                  "ab"),
            0},
        {"not masked", BYTES("\x81\x01X"), -1002},
        {"RSV1", BYTES("\xc1\x80" MASK), -1002},
        {"RSV2", BYTES("\xa1\x80" MASK), -1002},
        {"RSV3", BYTES("\x91\x80" MASK), -1002},
        {"RSV1 in the first byte alone", BYTES("\xc1"), -1002},
        {"opcode 3", BYTES("\x83\x80" MASK), -1002},
        {"opcode 7", BYTES("\x87\x80" MASK), -1002},
        {"opcode 11", BYTES("\x8b\x80" MASK), -1002},
        {"opcode 15", BYTES("\x8f\x80" MASK), -1002},
        {"fragmented ping", BYTES("\x09\x80" MASK), -1002},
        {"ping of 126 bytes", BYTES("\x89\xfe\x00\x7e"), -1002},
        {"ping", BYTES("\x89\x80" MASK), 6},
        {"pong nobody asked for", BYTES("\x8a\x80" MASK), 6},
        {"length not minimal, 16 bits", BYTES("\x81\xfe\x00\x7d"), -1002},
        {"length not minimal, 64 bits", BYTES("\x81\xff\x00\x00\x00\x00\x00\x00\xff\xff"), -1002},
        {"length of 2^63", BYTES("\x81\xff\x80\x00\x00\x00\x00\x00\x00\x00"), -1002},
        {"length of 2^62", BYTES("\x81\xff\x40\x00\x00\x00\x00\x00\x00\x00"), -1009},
        {"larger than allowed, told by the header", BYTES("\x81\xff\x00\x00\x00\x00\x00\x02\x00\x01"), -1009},
        {"as large as allowed", BYTES("\x81\xff\x00\x00\x00\x00\x00\x02\x00\x00"), 0},
        {"binary", BYTES("\x82\x80" MASK), 6},
        {"continuation", BYTES("\x80\x80" MASK), 6},
    };
    struct ws_frame frame;

    (void)state;
    for (size_t i = 0; i < countof(table); i++) {
        int64_t got = ws_frame_read(&frame, table[i].bytes, table[i].n, MAX);

        if (got != table[i].expected)
            print_error("%s: %lld\n", table[i].what, (long long)got);
        assert_int_equal(got, table[i].expected);
    }
}

static struct ws_frame frame_of(uint8_t opcode, bool fin, const char *payload, size_t n)
{
    static char masked[4096];
    struct ws_frame frame = {.opcode = opcode, .fin = fin, .mask = {1, 2, 3, 4}, .payload = masked, .n = n};

    for (size_t i = 0; i < n; i++)
        masked[i] = (char)(payload[i] ^ frame.mask[i & 3]);
    return frame;
}

static uint16_t add(
    struct ws_message **message, uint8_t opcode, bool fin, const char *payload, size_t n, bool *complete)
{
    struct ws_frame frame = frame_of(opcode, fin, payload, n);

    return ws_message_add(message, &frame, 1000, complete);
}

static void fragments_become_a_message(void **state)
{
    struct ws_message *message = NULL;
    bool complete;

    (void)state;
    assert_int_equal(add(&message, WS_TEXT, false, "gr\xc3", 3, &complete), 0); /* split inside a character */
    assert_false(complete);
    assert_int_equal(add(&message, WS_CONTINUATION, false, "", 0, &complete), 0);
    assert_int_equal(add(&message, WS_CONTINUATION, true,
                         "\xbc\xc3\x9f"
                         "e",
                         4, &complete),
        0);
    assert_true(complete);
    assert_int_equal(message->text.n, 7);
    assert_memory_equal(message->text.p,
        "gr\xc3\xbc\xc3\x9f"
        "e",
        7);
    ws_message_free(message);
}

static void fragments_keep_their_order_and_bounds(void **state)
{
    struct ws_message *message = NULL;
    char large[600] = {0};
    bool complete;
    uint16_t wrong = 0;

    (void)state;
    memset(large, 'x', sizeof large);
    assert_int_equal(add(&message, WS_CONTINUATION, true, "x", 1, &complete), 1002);
    assert_int_equal(add(&message, WS_TEXT, false, "x", 1, &complete), 0);
    assert_int_equal(add(&message, WS_TEXT, true, "x", 1, &complete), 1002);
    ws_message_free(message);
    message = NULL;
    assert_int_equal(add(&message, WS_TEXT, false, large, 600, &complete), 0);
    assert_int_equal(add(&message, WS_CONTINUATION, true, large, 600, &complete), 1009);
    ws_message_free(message);
    message = NULL;
    for (int i = 0; i < 2000 && !wrong; i++)
        wrong = add(&message, i ? WS_CONTINUATION : WS_TEXT, false, "", 0, &complete);
    assert_int_equal(wrong, 1009); /* empty fragments without end */
    ws_message_free(message);
}

static void what_is_not_utf8_is_refused_as_soon_as_it_shows(void **state)
{
    static const char *const bad[] = {"\x80", "\xc0\xaf", "\xc1\xbf", "\xe0\x80\xaf", "\xed\xa0\x80",
        "\xf0\x80\x80\xaf", "\xf4\x90\x80\x80", "\xf5", "\xff", "a\xc3(", "\xe2\x28\xa1", "\xf0\x9f\x92(",
        "\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80"};
    static const char *const good[] = {"", "a", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
        "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf",
        "gr\xc3\xbc\xc3\x9f"
        "e \xf0\x9f\x8e\x88"};
    bool complete;

    (void)state;
    for (size_t i = 0; i < countof(bad); i++) {
        struct ws_message *message = NULL;

        /* before the message ends */
        assert_int_equal(add(&message, WS_TEXT, false, bad[i], strlen(bad[i]), &complete), 1007);
        ws_message_free(message);
    }
    for (size_t i = 0; i < countof(good); i++)
        for (size_t cut = 0; cut <= strlen(good[i]); cut++) {
            struct ws_message *message = NULL;

            assert_int_equal(add(&message, WS_TEXT, false, good[i], cut, &complete), 0);
            assert_int_equal(add(&message, WS_CONTINUATION, true, good[i] + cut, strlen(good[i]) - cut, &complete), 0);
            assert_true(complete);
            ws_message_free(message);
        }
    for (size_t n = 1; n < 4; n++) { /* a message that ends inside a character */
        struct ws_message *message = NULL;

        assert_int_equal(add(&message, WS_TEXT, true, "\xf0\x9f\x8e\x88", n, &complete), 1007);
        ws_message_free(message);
    }
}

static uint16_t close_of(const char *payload, size_t n, uint16_t *code)
{
    struct ws_frame frame = frame_of(WS_CLOSE, true, payload, n);

    return ws_close_read(&frame, code);
}

static void close_codes_are_checked(void **state)
{
    static const uint16_t good[] = {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999};
    static const uint16_t bad[] = {0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535};
    uint16_t code;
    char body[2];

    (void)state;
    assert_int_equal(close_of("", 0, &code), 0);
    assert_int_equal(code, 1005);
    assert_int_equal(close_of("\x03", 1, &code), 1002);
    for (size_t i = 0; i < countof(good); i++) {
        body[0] = (char)(good[i] >> 8);
        body[1] = (char)(good[i] & 255);
        assert_int_equal(close_of(body, 2, &code), 0);
        assert_int_equal(code, good[i]);
    }
    for (size_t i = 0; i < countof(bad); i++) {
        body[0] = (char)(bad[i] >> 8);
        body[1] = (char)(bad[i] & 255);
        assert_int_equal(close_of(body, 2, &code), 1002);
    }
    assert_int_equal(close_of("\x03\xe8"
                              "bye",
                         5, &code),
        0);
    assert_int_equal(close_of("\x03\xe8\xff", 3, &code), 1007);
    assert_int_equal(close_of("\x03\xe8\xc3", 3, &code), 1007);
}

static void headers_we_write_have_the_shortest_length(void **state)
{
    static const struct {
        size_t n, header;
    } table[] = {{0, 2}, {125, 2}, {126, 4}, {65535, 4}, {65536, 10}};
    unsigned char header[WS_HEADER_MAX];

    (void)state;
    for (size_t i = 0; i < countof(table); i++)
        assert_int_equal(ws_header_write(header, WS_TEXT, table[i].n), table[i].header);
    assert_int_equal(header[0], 0x81);
    assert_memory_equal(header + 1, "\x7f\x00\x00\x00\x00\x00\x01\x00\x00", 9);
}

static void the_key_is_answered_as_in_the_rfc(void **state)
{
    char accept[29];

    (void)state;
    assert_true(ws_accept_key(STR("dGhlIHNhbXBsZSBub25jZQ=="), accept));
    assert_string_equal(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_false(ws_accept_key(STR("dGhlIHNhbXBsZSBub25jZQ="), accept));
    assert_false(ws_accept_key(STR("dGhlIHNhbXBsZSBub25jZQAA"), accept));
    assert_false(ws_accept_key(STR("!Ghl!HNhbXBsZSBub25jZQ=="), accept));
    assert_false(ws_accept_key(STR(""), accept));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(headers_are_judged_by_the_letter),
        cmocka_unit_test(fragments_become_a_message),
        cmocka_unit_test(fragments_keep_their_order_and_bounds),
        cmocka_unit_test(what_is_not_utf8_is_refused_as_soon_as_it_shows),
        cmocka_unit_test(close_codes_are_checked),
        cmocka_unit_test(headers_we_write_have_the_shortest_length),
        cmocka_unit_test(the_key_is_answered_as_in_the_rfc),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
