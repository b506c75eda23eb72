/* Requests and answers: types, and which requests are refused. Limits and time are test_http_limits.c's, sockets
 * test_wire.c's. */
#define _GNU_SOURCE
#include "http_site.h"

#include "room/base/http_guard.h"
#include "room/base/msgpack.h"

static void assert_body(struct str body, const char *text)
{
    if (!str_is(body, text))
        fail_msg("body is %.*s, not %s", STR_ARG(body), text);
}

static void a_json_call_is_answered_in_json(void **state)
{
    struct client *client = dial(*state);
    struct str body =
        ask(client, POST("/echo", "Content-Type: application/json\r\nContent-Length: 7\r\n", "{\"a\":1}"));

    assert_int_equal(status_of(client), 200);
    assert_body(body, "{\"a\":1}");
    assert_true(heard(client, "content-type: application/json\r\n"));
    assert_true(heard(client, "cache-control: no-store\r\n"));
    assert_true(heard(client, "x-content-type-options: nosniff\r\n"));
    assert_false(heard(client, "erver: "));
    leave(client, LEAVE_FIN);
}

static void messagepack_goes_both_ways(void **state)
{
    struct client *client = dial(*state);
    struct buf json = {0};
    struct str body =
        ask(client, POST("/echo", "Content-Type: application/msgpack\r\nContent-Length: 9\r\n", "\x81\xa1k\xa5value"));
    const char *why;

    assert_int_equal(status_of(client), 200);
    assert_true(heard(client, "content-type: application/msgpack\r\n"));
    assert_true(msgpack_to_json(body, &json, &why));
    assert_body(buf_str(&json), "{\"k\":\"value\"}");
    buf_clear(&json);
    leave(client, LEAVE_FIN);
}

static void a_chunked_body_arrives_whole(void **state)
{
    struct client *client = dial(*state);
    struct str body = ask(client, POST("/echo", "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n",
                                      "3;x=y\r\n{\"a\r\n4\r\n\":1}\r\n0\r\nTrailer: t\r\n\r\n"));

    assert_body(body, "{\"a\":1}");
    body = ask(client, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n"); /* and the next request is found behind it */
    assert_body(body, "{}");
    leave(client, LEAVE_FIN);
}

static void accept_names_the_type_of_the_answer(void **state)
{
    static const struct {
        const char *headers;
        bool msgpack;
    } cases[] = {
        {"", false},
        {"Accept: */*\r\n", false},
        {"Accept: application/msgpack\r\n", true},
        {"Accept: Application/MsgPack;q=0.5, application/json;q=0.4\r\n", true},
        {"Accept: application/msgpack;q=0.400, application/json;q=0.5\r\n", false},
        {"Accept: application/msgpack, */*;q=0.1\r\n", true},
        {"Accept: application/json;q=0, */*\r\n", true},
        {"Accept: application/msgpack;q=0\r\n", false},
        {"Accept: text/event-stream\r\n", false},
        {"Accept: ,;,\"a,b;\r\n", false},
    };
    struct client *client = dial(*state);
    char request[512];

    for (size_t i = 0; i < countof(cases); i++) {
        snprintf(request, sizeof request, "GET /limited HTTP/1.1\r\nHost: h\r\n%s\r\n", cases[i].headers);
        ask(client, request);
        assert_int_equal(status_of(client), 429); /* errors come in that type too */
        if (heard(client, "application/msgpack") != cases[i].msgpack)
            fail_msg("%s", cases[i].headers);
    }
    leave(client, LEAVE_FIN);
}

static void errors_tell_code_message_and_field(void **state)
{
    struct client *client = dial(*state);

    assert_body(ask(client, "GET /limited HTTP/1.1\r\nHost: h\r\n\r\n"),
        "{\"error\":{\"code\":\"rate_limited\",\"message\":\"room 7 has enough\",\"field\":\"room_id\"}}");
    assert_true(heard(client, "retry-after: 1\r\n"));
    assert_body(ask(client, "DELETE /method HTTP/1.1\r\nHost: h\r\n\r\n"),
        "{\"error\":{\"code\":\"method_not_allowed\",\"message\":\"use the method named in Allow\"}}");
    assert_true(heard(client, "allow: POST\r\n"));
    assert_int_equal(status_of(client), 405);
    leave(client, LEAVE_FIN);
}

static void bodies_of_other_kinds_are_refused(void **state)
{
    static const struct {
        const char *headers;
        int status;
    } cases[] = {
        {"", 415},
        {"Content-Type: text/plain\r\n", 415},
        {"Content-Type: application/x-www-form-urlencoded\r\n", 415},
        {"Content-Type: application/jsonx\r\n", 415},
        {"Content-Type: application/json; charset=utf-16\r\n", 415},
        {"Content-Type: application/json; charset=\"utf-16\"\r\n", 415},
        {"Content-Type: application/json\r\nContent-Encoding: gzip\r\n", 415},
        {"Content-Type: application/json\r\nContent-Encoding: br, identity\r\n", 415},
        {"Content-Type: application/msgpack\r\n", 400}, /* `{}` is two integers */
        {"Content-Type: application/json\r\nContent-Type: application/json\r\n", 400},
        {"Content-Type: application/json; charset=UTF-8\r\n", 200},
        {"Content-Type: application/json;charset=\"utf-8\"; v=1\r\n", 200},
        {"Content-Type: APPLICATION/JSON\r\nContent-Encoding: identity\r\n", 200},
    };
    struct site *site = *state;
    char request[512];

    for (size_t i = 0; i < countof(cases); i++) {
        struct client *client = dial(site);
        unsigned calls = site->calls;

        snprintf(request, sizeof request, "POST /echo HTTP/1.1\r\nHost: h\r\n%sContent-Length: 2\r\n\r\n{}",
            cases[i].headers);
        ask(client, request);
        if (status_of(client) != cases[i].status || (site->calls != calls) != (cases[i].status == 200))
            fail_msg("%d for %s", status_of(client), cases[i].headers);
        leave(client, LEAVE_FIN);
    }
    struct client *client = dial(site);
    assert_body(ask(client, POST("/echo", "Content-Length: 0\r\n", "")), "{}"); /* no body needs no type */
    ask(client, "GET /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}");
    assert_int_equal(status_of(client), 400);
    leave(client, LEAVE_FIN);
}

static void a_handler_sees_the_request_as_it_was_sent(void **state)
{
    struct client *client = dial(*state);

    assert_body(
        ask(client, "TRACE /seen?after=a%40b%3a1&x=&after=c+d HTTP/1.0\r\nX-Custom:  v 1 \r\nHost: a.b:1\r\n\r\n"),
        "{\"method\":\"TRACE\",\"path\":\"/seen\",\"query\":\"after=a%40b%3a1&x=&after=c+d\",\"version\":10,\"body\":0,"
        "\"has_body\":0,\"host\":\"a.b:1\",\"x\":\"v 1\",\"after0\":\"a@b:1\",\"after1\":\"c d\"}");
    until((struct site *)*state, heard_end(client)); /* HTTP/1.0 closes */
    leave(client, LEAVE_FIN);
    client = dial(*state);
    assert_body(ask(client, "get /seen?after=%zz&after&after=%00 HTTP/1.1\r\nHost: h\r\n\r\n"),
        "{\"method\":\"get\",\"path\":\"/seen\",\"query\":\"after=%zz&after&after=%00\",\"version\":11,\"body\":0,"
        "\"has_body\":0,\"host\":\"h\",\"x\":\"\",\"after0\":null,\"after1\":\"\"}");
    leave(client, LEAVE_FIN);
}

static void head_gets_no_body(void **state)
{
    struct client *client = dial(*state);

    say(client, "HEAD /echo HTTP/1.1\r\nHost: h\r\n\r\nGET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    until((struct site *)*state, heard(client, "nosniff\r\n\r\nHTTP/1.1 200 OK\r\n"));
    leave(client, LEAVE_FIN);
}

/* ---- requests that two programs in a row could read differently ---- */

#define NEXT "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
#define JSON "Content-Type: application/json\r\n"
#define CHUNKS "2\r\n{}\r\n0\r\n\r\n"

static void ambiguous_requests_are_refused_and_the_connection_closed(void **state)
{
    static const char *const cases[] = {
        POST("/echo", JSON "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", CHUNKS),
        POST("/echo", JSON "Transfer-Encoding: chunked\r\nContent-Length: 12\r\n", CHUNKS),
        POST("/echo", JSON "Content-Length: 2\r\nContent-Length: 2\r\n", "{}"),
        POST("/echo", JSON "Content-Length: 2\r\nContent-Length: 40\r\n", "{}"),
        "POST /echo HTTP/1.0\r\nHost: h\r\n" JSON "Transfer-Encoding: chunked\r\n\r\n" CHUNKS,
        POST("/echo", JSON "Transfer-Encoding: gzip, chunked\r\n", CHUNKS),
        POST("/echo", JSON "Transfer-Encoding: xchunked\r\n", CHUNKS),
        POST("/echo", JSON "Transfer-Encoding: chunked, chunked\r\n", CHUNKS),
        POST("/echo", JSON "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", CHUNKS),
        POST("/echo", JSON "Transfer-Encoding: identity\r\n", ""),
        POST("/echo", JSON "Content-Length: +2\r\n", "{}"),
        POST("/echo", JSON "Content-Length: 2,2\r\n", "{}"),
        POST("/echo", JSON "Content-Length: -1\r\n", "{}"),
        POST("/echo", JSON "Content-Length: 0x2\r\n", "{}"),
        POST("/echo", JSON "Content-Length: \r\n", ""),
        POST("/echo", JSON "Content-Length: 99999999999999999999\r\n", ""),
        POST("/echo", JSON "Transfer-Encoding: chunked\r\n", "fffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
        POST("/echo", JSON "Transfer-Encoding: chunked\r\n", "-2\r\n{}\r\n0\r\n\r\n"),
        POST("/echo", JSON "Transfer-Encoding: chunked\r\n", "zz\r\n{}\r\n0\r\n\r\n"),
        POST("/echo", JSON "Content-Length : 2\r\n", "{}"),
        "GET /echo HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n",
        "GET /echo HTTP/1.1\r\nX: y\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: user@h\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: h/path\r\n\r\n",
        "GET /echo HTTP/1.1\nHost: h\n\n",
        "GET /echo HTTP/1.1\r\nHost: h\nX: y\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: h\r\nX: y\r\n folded\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: h\r\nX : y\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: h\r\nX\x80: y\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: h\r\nX: \x01\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: h\r\n: no name\r\n\r\n",
        "GET http://h/echo HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET h:80 HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET echo HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /echo HTTP/1.9\r\nHost: h\r\n\r\n",
        "GET /echo HTTP/2.0\r\nHost: h\r\n\r\n",
        "GET /echo HTTP/0.9\r\nHost: h\r\n\r\n",
        "GET /echo\r\nHost: h\r\n\r\n",
        "GET  /echo HTTP/1.1\r\nHost: h\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
    };
    struct site *site = *state;

    for (size_t i = 0; i < countof(cases); i++) {
        struct client *client = dial(site);

        say(client, cases[i]);
        say(client, NEXT);
        until(site, heard_end(client));
        if (status_of(client) != 400 || heard(client, "HTTP/1.1 404") || site->calls)
            fail_msg("%d, handler called %u times for case %zu: %s", status_of(client), site->calls, i, cases[i]);
        leave(client, LEAVE_FIN);
    }
    until(site, connections(site) == 0);
}

static void upgrades_to_http2_are_not_offered(void **state)
{
    struct client *client = dial(*state);

    ask(client, "GET /echo HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
                "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n");
    assert_int_equal(status_of(client), 200);
    leave(client, LEAVE_FIN);
}

static void a_head_is_judged_wherever_it_ends(void **state)
{
    static const char text[] =
        "\r\nPOST /a?b HTTP/1.1\r\nHOST: h\r\nContent-Length: 1\r\nX-Utf8: \xc3\xa9\t\r\n\r\nbody";
    struct http_head head;
    const char *why;
    int status;

    (void)state;
    for (size_t n = 0; n < sizeof text - 1; n++) {
        char *copy = xmemdup(text, n); /* so that reading past the end is seen */

        assert_true(http_head_check(&head, copy, n, &status, &why) == (n >= sizeof text - 5));
        assert_true(n >= sizeof text - 5 || (status == 400 && why));
        free(copy);
    }
    assert_true(http_head_check(&head, text, sizeof text - 1, &status, &why));
    assert_int_equal(head.bytes, sizeof text - 5); /* `body` and the NUL are behind it */
    assert_int_equal(head.version, 11);
    assert_true(str_is(head.method, "POST") && str_is(head.target, "/a?b"));
}

#define PLAIN(name) cmocka_unit_test_setup_teardown(name, open_plain, close_site)

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLAIN(a_json_call_is_answered_in_json),
        PLAIN(messagepack_goes_both_ways),
        PLAIN(a_chunked_body_arrives_whole),
        PLAIN(accept_names_the_type_of_the_answer),
        PLAIN(errors_tell_code_message_and_field),
        PLAIN(bodies_of_other_kinds_are_refused),
        PLAIN(a_handler_sees_the_request_as_it_was_sent),
        PLAIN(head_gets_no_body),
        PLAIN(ambiguous_requests_are_refused_and_the_connection_closed),
        PLAIN(upgrades_to_http2_are_not_offered),
        cmocka_unit_test(a_head_is_judged_wherever_it_ends),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
