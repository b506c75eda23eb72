/* Tickets: what is good passes, everything else is refused before it can do harm. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "gateway-adapter/roomd_ticket.h"

#define NOW 1770000000000u
#define LIFE 300000u
#define SECRET "0123456789abcdef0123456789abcdef"

static struct roomd_ticket_keys keys;
static struct roomd_ticket ticket;

static int keys_make(void **state)
{
    const char *why;

    (void)state;
    assert_true(roomd_ticket_keys_read(&keys, "k1:" SECRET ", old:fedcba9876543210fedcba9876543210", &why));
    return 0;
}

static size_t sample(char text[ROOMD_TICKET_MAX_BYTES + 1])
{
    static struct roomd_ticket made;
    size_t len;

    memset(&made, 0, sizeof made);
    made.account = (struct roomd_text){"ali\"ce\\", 7};
    made.platform = (struct roomd_text){"web", 3};
    made.deliver = ROOMD_DELIVER_DURABLE;
    made.issued_unix_ms = NOW;
    made.expires_unix_ms = NOW + 1500;
    made.rooms[0] = (struct roomd_text){"s00.01KC46E0D7X8BQXSRB29FJP960@3:57", 35};
    made.rooms[1] = (struct roomd_text){"s01.01KC46E0D7X8BQXSRB29FJP961", 30};
    made.room_count = 2;
    assert_int_equal(roomd_ticket_sign(text, &len, &made, &keys), ROOMD_TICKET_OK);
    assert_int_equal(strlen(text), len);
    return len;
}

static void encode(char *out, const void *p, size_t n)
{
    size_t length = (size_t)EVP_EncodeBlock((unsigned char *)out, p, (int)n);

    while (length && out[length - 1] == '=')
        out[--length] = 0;
    for (char *c = out; *c; c++)
        *c = *c == '+' ? '-' : *c == '/' ? '_' : *c;
}

/* A ticket as somebody who knows the key would forge it. */
static enum roomd_ticket_result verify_made(const char *header, const char *claims)
{
    static char text[20000];
    unsigned char mac[32];
    unsigned n;

    encode(text, header, strlen(header));
    strcat(text, ".");
    encode(text + strlen(text), claims, strlen(claims));
    HMAC(EVP_sha256(), SECRET, 32, (unsigned char *)text, strlen(text), mac, &n);
    strcat(text, ".");
    encode(text + strlen(text), mac, 32);
    return roomd_ticket_verify(&ticket, text, strlen(text), &keys, NOW, LIFE);
}

#define HEADER "{\"alg\":\"HS256\",\"typ\":\"JWT\",\"kid\":\"k1\"}"
#define GOOD "{\"iss\":\"roomd\",\"sub\":\"a\",\"iat\":1770000000,\"exp\":1770000100,\"all\":true"

static void what_was_signed_is_read_back(void **state)
{
    char text[ROOMD_TICKET_MAX_BYTES + 1];
    size_t len = sample(text);

    (void)state;
    assert_int_equal(roomd_ticket_verify(&ticket, text, len, &keys, NOW + 1499, LIFE), ROOMD_TICKET_OK);
    assert_int_equal(ticket.account.n, 7);
    assert_memory_equal(ticket.account.p, "ali\"ce\\", 7);
    assert_int_equal(ticket.deliver, ROOMD_DELIVER_DURABLE);
    assert_int_equal(ticket.expires_unix_ms, NOW + 1500);
    assert_int_equal(ticket.room_count, 2);
    assert_memory_equal(ticket.rooms[0].p, "s00.01KC46E0D7X8BQXSRB29FJP960@3:57", 35);
    assert_false(ticket.all);
    assert_int_equal(roomd_ticket_verify(&ticket, text, len, &keys, NOW + 1500, LIFE), ROOMD_TICKET_EXPIRED);
}

static void every_flipped_bit_is_refused(void **state)
{
    char text[ROOMD_TICKET_MAX_BYTES + 1];
    size_t len = sample(text);

    (void)state;
    for (size_t i = 0; i < len; i++)
        for (int bit = 0; bit < 8; bit++) {
            text[i] = (char)(text[i] ^ 1 << bit);
            assert_int_not_equal(roomd_ticket_verify(&ticket, text, len, &keys, NOW, LIFE), ROOMD_TICKET_OK);
            text[i] = (char)(text[i] ^ 1 << bit);
        }
    assert_int_equal(roomd_ticket_verify(&ticket, text, len, &keys, NOW, LIFE), ROOMD_TICKET_OK);
}

static void every_cut_and_every_tail_is_refused(void **state)
{
    char text[ROOMD_TICKET_MAX_BYTES + 1];
    size_t len = sample(text);

    (void)state;
    for (size_t n = 0; n < len; n++)
        assert_int_equal(roomd_ticket_verify(&ticket, text, n, &keys, NOW, LIFE), ROOMD_TICKET_MALFORMED);
    for (int c = 0; c < 256; c++) {
        text[len] = (char)c;
        assert_int_equal(roomd_ticket_verify(&ticket, text, len + 1, &keys, NOW, LIFE), ROOMD_TICKET_MALFORMED);
    }
}

static void nonsense_is_malformed(void **state)
{
    static char large[70000];

    (void)state;
    memset(large, 'A', sizeof large);
    assert_int_equal(roomd_ticket_verify(&ticket, NULL, 0, &keys, NOW, LIFE), ROOMD_TICKET_MALFORMED);
    assert_int_equal(roomd_ticket_verify(&ticket, "x", 1, &keys, NOW, LIFE), ROOMD_TICKET_MALFORMED);
    assert_int_equal(roomd_ticket_verify(&ticket, large, sizeof large, &keys, NOW, LIFE), ROOMD_TICKET_MALFORMED);
    assert_int_equal(
        roomd_ticket_verify(&ticket, large, ROOMD_TICKET_MAX_BYTES, &keys, NOW, LIFE), ROOMD_TICKET_MALFORMED);
    memset(large, '.', 200);
    assert_int_equal(roomd_ticket_verify(&ticket, large, 200, &keys, NOW, LIFE), ROOMD_TICKET_MALFORMED);
}

static void only_our_algorithm_and_known_keys_count(void **state)
{
    static const char *const headers[] = {"{\"alg\":\"none\",\"typ\":\"JWT\",\"kid\":\"k1\"}",
        "{\"alg\":\"RS256\",\"kid\":\"k1\"}", "{\"alg\":\"HS256\"}",
        "{\"alg\":\"HS256\",\"alg\":\"HS256\",\"kid\":\"k1\"}", "{\"alg\":\"HS256\",\"kid\":\"k1\",\"jku\":\"x\"}",
        "{}", "{\"kid\":\"k1\"}", "[]", "{\"alg\":\"hs256\",\"kid\":\"k1\"}", "{\"alg\":\"HS256\",\"kid\":1}",
        "{ \"alg\":\"HS256\",\"kid\":\"k1\"}", "{\"alg\":\"HS256\",\"kid\":\"k1\",}"};

    (void)state;
    assert_int_equal(verify_made(HEADER, GOOD "}"), ROOMD_TICKET_OK);
    assert_int_equal(verify_made("{\"typ\":\"JWT\",\"kid\":\"k1\",\"alg\":\"HS256\"}", GOOD "}"), ROOMD_TICKET_OK);
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++)
        assert_int_equal(verify_made(headers[i], GOOD "}"), ROOMD_TICKET_MALFORMED);
    assert_int_equal(verify_made("{\"alg\":\"HS256\",\"kid\":\"../../dev/null\"}", GOOD "}"), ROOMD_TICKET_BAD_KEY);
    assert_int_equal(verify_made("{\"alg\":\"HS256\",\"kid\":\"k2\"}", GOOD "}"), ROOMD_TICKET_BAD_KEY);
    assert_int_equal(verify_made("{\"alg\":\"HS256\",\"kid\":\"\"}", GOOD "}"), ROOMD_TICKET_BAD_KEY);
    assert_int_equal(verify_made("{\"alg\":\"HS256\",\"kid\":\"old\"}", GOOD "}"), ROOMD_TICKET_FORGED);
}

static void claims_that_have_no_business_here_are_refused(void **state)
{
    static const char *const claims[] = {GOOD ",\"admin\":true}", GOOD ",\"sub\":\"b\"}", GOOD ",\"aud\":\"x\"}",
        GOOD ",\"rooms\":[]}", GOOD ",\"rooms\":[1]}", GOOD ",\"deliver\":\"fast\"}", GOOD ",\"deliver\":1}",
        GOOD ",\"platform\":[]}", GOOD "}x", "[]", "\"a\"", "{}", "",
        "{\"iss\":\"other\",\"sub\":\"a\",\"iat\":1770000000,\"exp\":1770000100,\"all\":true}",
        "{\"sub\":\"a\",\"iat\":1770000000,\"exp\":1770000100,\"all\":true}",
        "{\"iss\":\"roomd\",\"sub\":\"\",\"iat\":1770000000,\"exp\":1770000100,\"all\":true}",
        "{\"iss\":\"roomd\",\"sub\":\"a\",\"iat\":1770000000,\"all\":true}",
        "{\"iss\":\"roomd\",\"sub\":\"a\",\"exp\":1770000100,\"all\":true}",
        "{\"iss\":\"roomd\",\"sub\":\"a\",\"iat\":1770000000,\"exp\":1770000100}",
        "{\"iss\":\"roomd\",\"sub\":\"a\",\"iat\":1770000000,\"exp\":1770000100,\"all\":false}",
        "{\"iss\":\"roomd\",\"sub\":\"a\",\"iat\":1770000000,\"exp\":9223372036854775808,\"all\":true}",
        "{\"iss\":\"roomd\",\"sub\":\"a\",\"iat\":1770000000,\"exp\":-1,\"all\":true}",
        "{\"iss\":\"roomd\",\"sub\":\"a\",\"iat\":1770000000,\"exp\":\"1770000100\",\"all\":true}",
        "{\"iss\":\"roomd\",\"sub\":\"a\\u0000b\",\"iat\":1770000000,\"exp\":1770000100,\"all\":true}"};

    (void)state;
    for (size_t i = 0; i < sizeof claims / sizeof *claims; i++)
        assert_int_equal(verify_made(HEADER, claims[i]), ROOMD_TICKET_MALFORMED);
}

static enum roomd_ticket_result with_times(const char *iat, const char *exp)
{
    char claims[256];

    snprintf(claims, sizeof claims, "{\"iss\":\"roomd\",\"sub\":\"a\",\"iat\":%s,\"exp\":%s,\"all\":true}", iat, exp);
    return verify_made(HEADER, claims);
}

static void times_are_bounded_on_both_sides(void **state)
{
    (void)state;
    assert_int_equal(with_times("1769999900", "1770000000"), ROOMD_TICKET_EXPIRED);
    assert_int_equal(with_times("1769999900", "1769999999"), ROOMD_TICKET_EXPIRED);
    assert_int_equal(with_times("1769999900", "1770000000.5"), ROOMD_TICKET_OK);
    assert_int_equal(with_times("1770000000", "1770000300"), ROOMD_TICKET_OK);
    assert_int_equal(with_times("1770000000", "1770000301"), ROOMD_TICKET_TOO_LONG_LIVED);
    assert_int_equal(with_times("1770000000", "2085000000"), ROOMD_TICKET_TOO_LONG_LIVED); /* ten years */
    assert_int_equal(with_times("1770000029", "1770000100"), ROOMD_TICKET_OK);
    assert_int_equal(with_times("1770000031", "1770000100"), ROOMD_TICKET_TOO_LONG_LIVED);
    assert_int_equal(with_times("1770000100", "1770000100"), ROOMD_TICKET_TOO_LONG_LIVED);
}

static void weak_keys_are_refused_at_start(void **state)
{
    struct roomd_ticket_keys read;
    const char *why;

    (void)state;
    assert_false(roomd_ticket_keys_read(&read, "", &why));
    assert_false(roomd_ticket_keys_read(&read, NULL, &why));
    assert_false(roomd_ticket_keys_read(&read, "k1:short", &why));
    assert_false(roomd_ticket_keys_read(&read, SECRET, &why));
    assert_false(roomd_ticket_keys_read(&read, "k1:00000000000000000000000000000000", &why));
    assert_false(roomd_ticket_keys_read(&read, "k 1:" SECRET, &why));
    assert_false(roomd_ticket_keys_read(&read, "k1:" SECRET ",k1:" SECRET, &why));
    assert_non_null(why);
}

static void what_does_not_fit_is_not_signed(void **state)
{
    static struct roomd_ticket large;
    static char room[129], text[ROOMD_TICKET_MAX_BYTES + 1];
    size_t len;

    (void)state;
    memset(room, 'x', 128);
    memset(&large, 0, sizeof large);
    large.account = (struct roomd_text){"a", 1};
    large.issued_unix_ms = NOW;
    large.expires_unix_ms = NOW + 1000;
    for (; large.room_count < ROOMD_TICKET_ROOMS_MAX; large.room_count++)
        large.rooms[large.room_count] = (struct roomd_text){room, 128};
    assert_int_equal(roomd_ticket_sign(text, &len, &large, &keys), ROOMD_TICKET_TOO_LARGE);
    large.room_count = 0;
    assert_int_equal(roomd_ticket_sign(text, &len, &large, &keys), ROOMD_TICKET_MALFORMED);
}

static void a_hundred_rooms_with_positions_fit(void **state)
{
    static struct roomd_ticket many;
    static char rooms[100][64], text[ROOMD_TICKET_MAX_BYTES + 1];
    size_t len;

    (void)state;
    memset(&many, 0, sizeof many);
    many.account = (struct roomd_text){"a", 1};
    many.issued_unix_ms = NOW;
    many.expires_unix_ms = NOW + 1000;
    for (; many.room_count < 100; many.room_count++) {
        snprintf(rooms[many.room_count], 64, "s%02zu.01KC46E0D7X8BQXSRB29FJP960@12345:123456789", many.room_count);
        many.rooms[many.room_count] = (struct roomd_text){rooms[many.room_count], strlen(rooms[many.room_count])};
    }
    assert_int_equal(roomd_ticket_sign(text, &len, &many, &keys), ROOMD_TICKET_OK);
    assert_int_equal(roomd_ticket_verify(&ticket, text, len, &keys, NOW, LIFE), ROOMD_TICKET_OK);
    assert_int_equal(ticket.room_count, 100);
}

static void a_bad_ticket_is_cheap(void **state)
{
    char text[ROOMD_TICKET_MAX_BYTES + 1];
    size_t len = sample(text);
    struct timespec begin, end;
    double us;

    (void)state;
    text[len - 2] = text[len - 2] == 'A' ? 'B' : 'A';
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
    for (int i = 0; i < 20000; i++)
        assert_int_equal(roomd_ticket_verify(&ticket, text, len, &keys, NOW, LIFE), ROOMD_TICKET_FORGED);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    us = ((double)(end.tv_sec - begin.tv_sec) * 1e9 + (double)(end.tv_nsec - begin.tv_nsec)) / 20000 / 1000;
    print_message("a forged ticket costs %.2f us\n", us);
    assert_true(us < 50); /* loose: sanitizers, busy machines; the bar of 5 is measured without */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_signed_is_read_back),
        cmocka_unit_test(every_flipped_bit_is_refused),
        cmocka_unit_test(every_cut_and_every_tail_is_refused),
        cmocka_unit_test(nonsense_is_malformed),
        cmocka_unit_test(only_our_algorithm_and_known_keys_count),
        cmocka_unit_test(claims_that_have_no_business_here_are_refused),
        cmocka_unit_test(times_are_bounded_on_both_sides),
        cmocka_unit_test(weak_keys_are_refused_at_start),
        cmocka_unit_test(what_does_not_fit_is_not_signed),
        cmocka_unit_test(a_hundred_rooms_with_positions_fit),
        cmocka_unit_test(a_bad_ticket_is_cheap),
    };

    return cmocka_run_group_tests(tests, keys_make, NULL);
}
