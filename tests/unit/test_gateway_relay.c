/* What the gateway's hop lets pass: everything as it is, but for migrate; and what it seals. */
#include "gateway-adapter/gateway/relay.h"
#include "gateway-adapter/gateway/seal.h"
#include "gateway-adapter/gateway/server_url.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static void rewrite(void *arg, struct str account, struct str event, struct buf *out)
{
    (void)arg;
    (void)event;
    buf_printf(out, "{\"type\":\"migrate\",\"for\":\"%.*s\"}", STR_ARG(account));
}

static const struct relays relays = {.migrate = rewrite};

/* The scan's output for `input` cut into pieces of `piece` bytes. */
static bool scanned(struct buf *out, bool websocket, struct str input, size_t piece)
{
    struct relay_scan scan = {.websocket = websocket};
    bool ok = true;

    for (size_t at = 0; ok && at < input.n; at += piece) {
        size_t n = input.n - at < piece ? input.n - at : piece;

        ok = relay_scan(&scan, &relays, STR("ann"), (struct str){input.p + at, n}, out);
    }
    if (ok)
        assert_null(scan.held.p); /* nothing is held between events */
    relay_scan_clear(&scan);
    return ok;
}

static void put_frame(struct buf *out, unsigned char first, const char *text, size_t n)
{
    buf_char(out, (char)first);
    if (n < 126) {
        buf_char(out, (char)n);
    } else {
        buf_char(out, 126);
        buf_char(out, (char)(n >> 8));
        buf_char(out, (char)n);
    }
    buf_add(out, text, n);
}

static const char migrate[] =
    "{\"type\":\"migrate\",\"endpoints\":[{\"url\":\"http://10.0.0.5:7400\"}],\"ticket\":\"eyJ\"}";
static const char message[] = "{\"type\":\"message\",\"content\":{\"type\":\"migrate\"}}";
static const char rewritten[] = "{\"type\":\"migrate\",\"for\":\"ann\"}";

static void only_migrate_is_rewritten_however_frames_are_cut(void **state)
{
    struct buf input = {0}, wanted = {0}, out = {0};
    char big[3000];

    (void)state;
    memset(big, 'x', sizeof big);
    put_frame(&input, 0x81, message, sizeof message - 1);
    put_frame(&input, 0x89, "", 0);
    buf_add(&wanted, input.p, input.n);
    put_frame(&input, 0x81, migrate, sizeof migrate - 1);
    put_frame(&wanted, 0x81, rewritten, sizeof rewritten - 1);
    for (int i = 0; i < 2; i++) {
        struct buf *both[] = {&input, &wanted};

        put_frame(both[i], 0x81, big, sizeof big);
        put_frame(both[i], 0x88, "\x0f\xa0", 2);
    }
    for (size_t piece = 1; piece <= input.n; piece += piece < 150 ? 1 : 97) {
        buf_reset(&out);
        assert_true(scanned(&out, true, buf_str(&input), piece));
        assert_int_equal(out.n, wanted.n);
        assert_memory_equal(out.p, wanted.p, wanted.n);
    }
    buf_clear(&input);
    buf_clear(&wanted);
    buf_clear(&out);
}

static void only_migrate_is_rewritten_however_lines_are_cut(void **state)
{
    struct buf input = {0}, wanted = {0}, out = {0};

    (void)state;
    buf_printf(&input, "id: s01.X@1:2\ndata: %s\n\ndata: %s\n\ndata: {}\n\n", message, migrate);
    buf_printf(&wanted, "id: s01.X@1:2\ndata: %s\n\ndata: %s\n\ndata: {}\n\n", message, rewritten);
    for (size_t piece = 1; piece <= input.n; piece++) {
        buf_reset(&out);
        assert_true(scanned(&out, false, buf_str(&input), piece));
        assert_int_equal(out.n, wanted.n);
        assert_memory_equal(out.p, wanted.p, wanted.n);
    }
    buf_clear(&input);
    buf_clear(&wanted);
    buf_clear(&out);
}

static void a_masked_frame_of_an_instance_is_refused(void **state)
{
    struct buf out = {0};

    (void)state;
    assert_false(scanned(&out, true, (struct str){"\x81\x85xxxxhello", 11}, 11));
    buf_clear(&out);
}

static void a_sealed_text_opens_for_its_purpose_and_key_only(void **state)
{
    struct seal_key key, other;
    struct buf sealed = {0}, plain = {0};

    (void)state;
    assert_false(seal_key_from(&key, STR("too short")));
    assert_true(seal_key_from(&key, STR("0123456789abcdef0123456789abcdef")));
    assert_true(seal_key_from(&other, STR("0123456789abcdef0123456789abcdeX")));
    for (size_t n = 0; n < 70; n++) {
        char text[70];

        memset(text, 'a' + (int)(n % 26), n);
        buf_reset(&sealed);
        buf_reset(&plain);
        seal(&sealed, &key, "session", (struct str){text, n});
        assert_true(seal_open(&plain, &key, "session", buf_str(&sealed)));
        assert_int_equal(plain.n, n);
        assert_memory_equal(plain.p ? plain.p : "", text, n);
        assert_false(seal_open(&plain, &key, "address", buf_str(&sealed)));
        assert_false(seal_open(&plain, &other, "session", buf_str(&sealed)));
    }
    for (size_t i = 0; i < sealed.n; i++) { /* one altered character, or one missing */
        char was = sealed.p[i];

        sealed.p[i] = was == 'A' ? 'B' : 'A';
        assert_false(seal_open(&plain, &key, "session", buf_str(&sealed)));
        sealed.p[i] = was;
    }
    assert_false(seal_open(&plain, &key, "session", STR("")));
    assert_false(seal_open(&plain, &key, "session", STR("not base64url!")));
    buf_clear(&sealed);
    buf_clear(&plain);
}

static void a_server_is_found_by_its_url(void **state)
{
    static const struct {
        const char *url, *host, *authority;
        uint16_t port;
        bool tls;
    } good[] = {
        {"http://10.0.0.5:7400", "10.0.0.5", "10.0.0.5:7400", 7400, false},
        {"https://chat.example.com", "chat.example.com", "chat.example.com:443", 443, true},
        {"HTTP://a/", "a", "a:80", 80, false},
        {"https://[fd00::5]:7400/", "fd00::5", "[fd00::5]:7400", 7400, true},
        {"http://[::1]", "::1", "[::1]:80", 80, false},
    };
    static const char *const bad[] = {"", "http://", "https:///", "ftp://a", "a:80", "http://:80",
        "http://a:", "http://a:0", "http://a:65536", "http://a:8x", "http://a/path", "http://u@a", "http://[::1",
        "http://[]:1", "http://[::1]7", "http://a:7400:1"};
    struct server_url server;

    (void)state;
    for (size_t i = 0; i < countof(good); i++) {
        assert_true(server_url_read(&server, str_of(good[i].url)));
        assert_string_equal(server.host, good[i].host);
        assert_string_equal(server.authority, good[i].authority);
        assert_int_equal(server.port, good[i].port);
        assert_int_equal(server.tls, good[i].tls);
    }
    for (size_t i = 0; i < countof(bad); i++)
        if (server_url_read(&server, str_of(bad[i])))
            fail_msg("%s was taken for %s", bad[i], server.authority);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_migrate_is_rewritten_however_frames_are_cut),
        cmocka_unit_test(only_migrate_is_rewritten_however_lines_are_cut),
        cmocka_unit_test(a_masked_frame_of_an_instance_is_refused),
        cmocka_unit_test(a_sealed_text_opens_for_its_purpose_and_key_only),
        cmocka_unit_test(a_server_is_found_by_its_url),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
