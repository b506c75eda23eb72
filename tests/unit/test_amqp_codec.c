/* AMQP addresses and bytes, without a socket. */
#include "room/base/amqp_codec.h"
#include "room/base/amqp_url.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

/* --- addresses --- */

struct parsed {
    struct amqp_address addresses[AMQP_ADDRESSES_MAX];
    size_t count;
    char bad[256];
};

static enum err parse(struct parsed *parsed, const char *urls)
{
    *parsed = (struct parsed){0};
    return amqp_addresses_parse(parsed->addresses, &parsed->count, urls, parsed->bad, sizeof(parsed->bad));
}

static void parsed_clear(struct parsed *parsed)
{
    for (size_t i = 0; i < parsed->count; i++)
        amqp_address_clear(&parsed->addresses[i]);
}

static void an_address_is_read_in_its_parts(void **state)
{
    static const struct {
        const char *url, *user, *password, *host, *vhost, *name;
        int port;
        bool tls;
    } cases[] = {
        {"amqp://u:p@h:5673/v", "u", "p", "h", "v", "h:5673/v", 5673, false},
        {"amqp://h", "guest", "guest", "h", "/", "h:5672/", 5672, false},
        {"amqp://h/", "guest", "guest", "h", "/", "h:5672/", 5672, false},
        {"amqps://h/%2f", "guest", "guest", "h", "/", "h:5671/", 5671, true},
        {"amqp://a%40b:p%2C%3A%2F%25@h/x%20y", "a@b", "p,:/%", "h", "x y", "h:5672/x y", 5672, false},
        {"amqp://u:p@x:y@h/", "u", "p@x:y", "h", "/", "h:5672/", 5672, false},
        {"amqp://u@h", "u", "", "h", "/", "h:5672/", 5672, false},
        {"amqp://[::1]:1/v", "guest", "guest", "::1", "v", "[::1]:1/v", 1, false},
        {" amqp://[fe80::1] ", "guest", "guest", "fe80::1", "/", "[fe80::1]:5672/", 5672, false},
    };
    struct parsed parsed;

    (void)state;
    for (size_t i = 0; i < countof(cases); i++) {
        const struct amqp_address *address = parsed.addresses;

        assert_int_equal(parse(&parsed, cases[i].url), ERR_OK);
        assert_int_equal(parsed.count, 1);
        assert_string_equal(address->user, cases[i].user);
        assert_string_equal(address->password, cases[i].password);
        assert_string_equal(address->host, cases[i].host);
        assert_string_equal(address->vhost, cases[i].vhost);
        assert_string_equal(address->name, cases[i].name);
        assert_int_equal(address->port, cases[i].port);
        assert_int_equal(address->tls, cases[i].tls);
        parsed_clear(&parsed);
    }
}

static void several_addresses_keep_their_order(void **state)
{
    struct parsed parsed;

    (void)state;
    assert_int_equal(parse(&parsed, "amqp://a, amqps://b:1 ,amqp://c/v"), ERR_OK);
    assert_int_equal(parsed.count, 3);
    assert_string_equal(parsed.addresses[0].name, "a:5672/");
    assert_string_equal(parsed.addresses[1].name, "b:1/");
    assert_string_equal(parsed.addresses[2].name, "c:5672/v");
    parsed_clear(&parsed);
}

static void what_is_no_address_is_refused_and_named_without_its_password(void **state)
{
    static const struct {
        const char *urls, *bad;
    } cases[] = {
        {"", ""},
        {"http://h", "(not shown: it may be a part of a password)"},
        {"amqp://", "amqp://"},
        {"amqp://h:0", "amqp://h:0"},
        {"amqp://h:65536", "amqp://h:65536"},
        {"amqp://h:12x", "amqp://h:12x"},
        {"amqp://h:", "amqp://h:"},
        {"amqp://h/a/b", "amqp://h/a/b"},
        {"amqp://h/v?heartbeat=1", "amqp://h/v?heartbeat=1"},
        {"amqp://h/%2", "amqp://h/%2"},
        {"amqp://h/%zz", "amqp://h/%zz"},
        {"amqp://h/%00", "amqp://h/%00"},
        {"amqp://h%0a", "amqp://h%0a"},
        {"amqp://[::1", "amqp://[::1"},
        {"amqp://[::1]x", "amqp://[::1]x"},
        {"amqp://u:secret@h:x", "…@h:x"},
        {"amqp://u:sec@ret@h:x", "…@h:x"},
        {"amqp://u:%zzsecret@h", "…@h"},
        {"amqp://:secret@h", "…@h"},
        {"amqp://a,amqp://u:secret@:1", "…@:1"},
        {"amqp://a,", "(not shown: it may be a part of a password)"},
        {"amqp://u:sec,ret@h", "(not shown: it may be a part of a password)"},
    };
    struct parsed parsed;
    char many[AMQP_ADDRESSES_MAX * 10 + 20] = "amqp://h";

    (void)state;
    for (size_t i = 0; i < countof(cases); i++) {
        assert_int_equal(parse(&parsed, cases[i].urls), ERR_BAD_REQUEST);
        assert_null(strstr(parsed.bad, "sec"));
        if (*cases[i].urls)
            assert_string_equal(parsed.bad, cases[i].bad);
    }
    for (int i = 0; i < AMQP_ADDRESSES_MAX; i++)
        strcat(many, ",amqp://h");
    assert_int_equal(parse(&parsed, many), ERR_BAD_REQUEST);
}

/* --- frames --- */

static void a_frame_is_whole_only_with_its_last_byte(void **state)
{
    struct buf out = {0};
    struct codec_frame frame;

    (void)state;
    codec_add_ack(&out, 7, 0x0102030405060708, true);
    codec_add_heartbeat(&out);
    for (size_t n = 0; n < 21; n++) {
        char *exact = xmemdup(out.p, n + !n); /* the sanitizer sees a read behind it */

        assert_int_equal(codec_read_frame((struct str){exact, n}, 4096, &frame), 0);
        free(exact);
    }
    assert_int_equal(codec_read_frame(buf_str(&out), 4096, &frame), 21);
    assert_int_equal(frame.type, CODEC_METHOD);
    assert_int_equal(frame.channel, 7);
    assert_int_equal(codec_method(frame.payload), AMQP_BASIC_ACK_METHOD);
    struct codec_confirm confirm;
    assert_true(codec_read_confirm(frame.payload, &confirm));
    assert_true(confirm.tag == 0x0102030405060708);
    assert_true(confirm.multiple);
    assert_int_equal(codec_read_frame((struct str){out.p + 21, 8}, 4096, &frame), 8);
    assert_int_equal(frame.type, CODEC_HEARTBEAT);
    buf_clear(&out);
}

static void what_is_no_frame_is_noticed(void **state)
{
    static const struct {
        const char *bytes;
        size_t n;
        ptrdiff_t result;
    } cases[] = {
        {"\x08\0\0\0\0\0\0\xCE", 8, 8},
        {"\x08\0\0\0\0\0\0\xCD", 8, -1},     /* wrong end byte */
        {"\x01\0\1\0\0\x0f\xf8", 7, 0},      /* the largest that is allowed */
        {"\x01\0\1\0\0\x0f\xf9", 7, -1},     /* one more */
        {"\x01\0\1\xff\xff\xff\xff", 7, -1}, /* a lie */
        {"\x00", 1, -1},
        {"\x04", 1, -1},
        {"\x09", 1, -1},
        {"AMQP\0\0\x09\1", 8, -1}, /* the broker wants another version */
        {"HTTP/1.1 400 Bad", 16, -1},
    };
    struct codec_frame frame;

    (void)state;
    for (size_t i = 0; i < countof(cases); i++)
        assert_int_equal(codec_read_frame((struct str){cases[i].bytes, cases[i].n}, 4096, &frame), cases[i].result);
}

static void a_publish_says_what_it_was_told(void **state)
{
    struct amqp_message message = {.exchange = STR("x"),
        .routing_key = STR("s07"),
        .content_type = STR("a/b"),
        .reply_to = STR("there"),
        .message_id = STR("id"),
        .app_id = STR("app"),
        .headers = {{"reason", "bad"}, {"v", "1"}},
        .body = STR("hello")};
    struct buf out = {0};
    struct codec_frame method, header, body;
    struct codec_content content;
    amqp_pool_t pool;
    void *decoded;
    size_t correlation_at, at;
    uint64_t tag;

    (void)state;
    init_amqp_pool(&pool, 4096);
    buf_text(&out, "in front");
    assert_int_equal(codec_add_publish(&out, 2, &message, &correlation_at), ERR_OK);
    codec_set_correlation(out.p + 8 + correlation_at, 0xfedcba9876543210);
    codec_add_body(&out, 2, 4096, message.body);
    at = 8;
    at += (size_t)codec_read_frame((struct str){out.p + at, out.n - at}, 4096, &method);
    at += (size_t)codec_read_frame((struct str){out.p + at, out.n - at}, 4096, &header);
    at += (size_t)codec_read_frame((struct str){out.p + at, out.n - at}, 4096, &body);
    assert_int_equal(at, out.n);
    assert_int_equal(amqp_decode_method(AMQP_BASIC_PUBLISH_METHOD, &pool,
                         codec_bytes((struct str){method.payload.p + 4, method.payload.n - 4}), &decoded),
        0);
    amqp_basic_publish_t *publish = decoded;
    assert_true(str_is(codec_str(publish->exchange), "x") && str_is(codec_str(publish->routing_key), "s07"));
    assert_true(publish->mandatory && !publish->immediate);
    assert_int_equal(amqp_decode_properties(AMQP_BASIC_CLASS, &pool,
                         codec_bytes((struct str){header.payload.p + 12, header.payload.n - 12}), &decoded),
        0);
    amqp_basic_properties_t *properties = decoded;
    assert_int_equal(properties->delivery_mode, 2);
    assert_true(str_is(codec_str(properties->app_id), "app"));
    assert_int_equal(properties->headers.num_entries, 2);
    assert_true(str_is(codec_str(properties->headers.entries[0].key), "reason"));
    assert_true(str_is(codec_str(properties->headers.entries[0].value.value.bytes), "bad"));
    assert_true(codec_read_content(header.payload, &content));
    assert_true(content.body_bytes == 5 && content.delivery_mode == 2);
    assert_true(
        str_is(content.content_type, "a/b") && str_is(content.message_id, "id") && str_is(content.reply_to, "there"));
    assert_true(codec_read_hex(content.correlation_id, &tag) && tag == 0xfedcba9876543210);
    assert_true(str_is(body.payload, "hello"));
    empty_amqp_pool(&pool);
    buf_clear(&out);
}

static void a_publish_that_does_not_fit_adds_nothing(void **state)
{
    char long_name[300], long_value[4000];
    struct amqp_message names[6] = {0}, headers = {.headers = {{"k", long_value}}},
                        key = {.headers = {{long_name, ""}}};
    struct str name = {long_name, CODEC_NAME_MAX + 1};
    struct buf out = {0};
    size_t at;

    (void)state;
    memset(long_name, 'n', sizeof(long_name) - 1);
    memset(long_value, 'v', sizeof(long_value) - 1);
    long_name[sizeof(long_name) - 1] = long_value[sizeof(long_value) - 1] = '\0';
    names[0].exchange = names[1].routing_key = names[2].content_type = names[3].message_id = names[4].app_id =
        names[5].reply_to = name;
    for (size_t i = 0; i < countof(names); i++)
        assert_int_equal(codec_add_publish(&out, 2, &names[i], &at), ERR_BAD_REQUEST);
    assert_int_equal(codec_add_publish(&out, 2, &headers, &at), ERR_TOO_LARGE);
    assert_int_equal(codec_add_publish(&out, 2, &key, &at), ERR_BAD_REQUEST);
    assert_int_equal(out.n, 0);

    /* The longest of everything does. */
    long_value[2700] = '\0';
    name.n = CODEC_NAME_MAX;
    headers.exchange = headers.routing_key = headers.content_type = headers.message_id = headers.app_id =
        headers.reply_to = name;
    assert_int_equal(codec_add_publish(&out, 2, &headers, &at), ERR_OK);
    struct codec_frame frame;
    ptrdiff_t n = codec_read_frame(buf_str(&out), CODEC_FRAME_MIN_MAX, &frame);
    assert_true(n > 0);
    assert_true(codec_read_frame((struct str){out.p + n, out.n - (size_t)n}, CODEC_FRAME_MIN_MAX, &frame) > 0);
    buf_clear(&out);
}

static void a_long_body_is_cut_into_frames(void **state)
{
    char *body = xcalloc(1, 10000);
    struct buf out = {0};
    struct codec_frame frame;
    size_t at = 0, sum = 0, frames = 0;

    (void)state;
    codec_add_body(&out, 2, 4096, (struct str){body, 10000});
    while (at < out.n) {
        ptrdiff_t n = codec_read_frame((struct str){out.p + at, out.n - at}, 4096, &frame);

        assert_true(n > 0 && n <= 4096);
        at += (size_t)n;
        sum += frame.payload.n;
        frames++;
    }
    assert_int_equal(sum, 10000);
    assert_int_equal(frames, 3);
    out.n = 0;
    codec_add_body(&out, 2, 4096, (struct str){"", 0});
    assert_int_equal(out.n, 0);
    buf_clear(&out);
    free(body);
}

static void methods_cut_off_anywhere_are_refused(void **state)
{
    amqp_basic_deliver_t deliver = {.consumer_tag = amqp_cstring_bytes("tag"),
        .delivery_tag = 5,
        .redelivered = 1,
        .exchange = amqp_cstring_bytes("ex"),
        .routing_key = amqp_cstring_bytes("key")};
    struct codec_deliver read;
    struct codec_confirm confirm;
    struct buf out = {0};
    struct codec_frame frame;

    (void)state;
    codec_add_method(&out, 9, AMQP_BASIC_DELIVER_METHOD, &deliver);
    assert_true(codec_read_frame(buf_str(&out), 4096, &frame) > 0);
    assert_true(codec_read_deliver(frame.payload, &read));
    assert_true(read.tag == 5 && read.redelivered && str_is(read.exchange, "ex") && str_is(read.routing_key, "key"));
    for (size_t n = 0; n < frame.payload.n; n++) {
        char *exact = xmemdup(frame.payload.p, n + !n);

        assert_false(codec_read_deliver((struct str){exact, n}, &read));
        if (n < 13)
            assert_false(codec_read_confirm((struct str){exact, n}, &confirm));
        assert_int_equal(codec_method((struct str){exact, n}) == 0, n < 4);
        free(exact);
    }
    buf_clear(&out);
}

/* A content header of `body_bytes` with flags and whatever follows. */
static struct str content_header(struct buf *buf, unsigned flags, const void *rest, size_t n)
{
    static const char fixed[] = {0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3};

    buf_reset(buf);
    buf_add(buf, fixed, sizeof(fixed));
    buf_char(buf, (char)(flags >> 8));
    buf_char(buf, (char)flags);
    buf_add(buf, rest, n);
    return buf_str(buf);
}

static void a_strangers_properties_never_stop_a_message(void **state)
{
    struct buf buf = {0}, deep = {0};
    struct codec_content content;

    (void)state;
    /* headers nested 1,000 deep (arrays in arrays), then the message id */
    buf_add(&deep, "\1k", 2);
    for (int i = 0; i < 1000; i++) {
        size_t left = (size_t)(999 - i) * 5;

        buf_char(&deep, 'A');
        for (int shift = 24; shift >= 0; shift -= 8)
            buf_char(&deep, (char)(left >> shift));
    }
    buf_add(&deep, "\2id", 3);
    char length[4] = {0, 0, (char)((deep.n - 3) >> 8), (char)(deep.n - 3)};
    struct buf rest = {0};
    buf_add(&rest, length, 4);
    buf_add(&rest, deep.p, deep.n);
    assert_true(codec_read_content(content_header(&buf, 1 << 13 | 1 << 7, rest.p, rest.n), &content));
    assert_true(content.body_bytes == 3 && str_is(content.message_id, "id"));

    /* a headers table that claims more than there is; a string that does; flags without anything; endless flags */
    assert_true(codec_read_content(content_header(&buf, 1 << 13 | 1 << 15, "\3a/b\xff\xff\xff\xff", 8), &content));
    assert_true(content.body_bytes == 3 && content.content_type.n == 0 && content.message_id.n == 0);
    assert_true(codec_read_content(content_header(&buf, 1 << 7, "\5id", 3), &content));
    assert_int_equal(content.message_id.n, 0);
    assert_true(codec_read_content(content_header(&buf, 0xfffe, "", 0), &content));
    assert_true(codec_read_content(content_header(&buf, 1, "\0\1\0\1\0\1", 6), &content));
    assert_true(content.body_bytes == 3);

    /* but the broker's part must be there */
    assert_false(codec_read_content((struct str){buf.p, 11}, &content));
    buf.p[1] = 61;
    assert_false(codec_read_content(buf_str(&buf), &content));
    buf_clear(&buf);
    buf_clear(&deep);
    buf_clear(&rest);
}

static void a_start_is_understood_or_refused(void **state)
{
    static const char good[] = "\0\x0a\0\x0a\0\x09\0\0\0\2xx\0\0\0\x0e"
                               "PLAIN AMQPLAIN\0\0\0\5en_US";
    char other[sizeof(good)];
    bool plain;

    (void)state;
    assert_true(codec_read_start((struct str){good, sizeof(good) - 1}, &plain));
    assert_true(plain);
    for (size_t n = 4; n < sizeof(good) - 1; n++)
        assert_false(codec_read_start((struct str){good, n}, &plain));
    memcpy(other, good, sizeof(good));
    memcpy(strstr(other + 16, "PLAIN "), "PLAINX", 6);
    assert_true(codec_read_start((struct str){other, sizeof(good) - 1}, &plain));
    assert_false(plain);
    other[4] = 1; /* version 1.9 */
    assert_false(codec_read_start((struct str){other, sizeof(good) - 1}, &plain));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_address_is_read_in_its_parts),
        cmocka_unit_test(several_addresses_keep_their_order),
        cmocka_unit_test(what_is_no_address_is_refused_and_named_without_its_password),
        cmocka_unit_test(a_frame_is_whole_only_with_its_last_byte),
        cmocka_unit_test(what_is_no_frame_is_noticed),
        cmocka_unit_test(a_publish_says_what_it_was_told),
        cmocka_unit_test(a_publish_that_does_not_fit_adds_nothing),
        cmocka_unit_test(a_long_body_is_cut_into_frames),
        cmocka_unit_test(methods_cut_off_anywhere_are_refused),
        cmocka_unit_test(a_strangers_properties_never_stop_a_message),
        cmocka_unit_test(a_start_is_understood_or_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
