/* The adapter library's calls and streams against HTTP servers of a few lines that say exactly what a test wants. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "gateway-adapter/roomd_adapter_uv.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WAIT_MS = 30000, SCRIPT_MAX = 8, CONNS_MAX = 16 };
#define CUT "<cut>"   /* the connection is closed in place of an answer */
#define MUTE "<mute>" /* nothing is answered */

struct server {
    uv_tcp_t listener;
    char url[64];
    const char *script[SCRIPT_MAX]; /* answers, in the order of requests; the last one stays */
    bool one_byte;                  /* answers come byte by byte */
    int requests, connections;
    char last[8192], before[8192]; /* the newest requests, whole */
};

struct conn {
    uv_tcp_t tcp;
    struct server *server;
    char in[8192];
    size_t n;
};

struct site {
    uv_loop_t loop;
    uv_timer_t pulse;
    struct server one, two;
    struct roomd_client *client;
    struct roomd_uv glue;
    char urls[160], events[1024];
    int ended;
    enum roomd_code ended_code;
};

#define until(site, condition)                               \
    do {                                                     \
        uint64_t until_ms = uv_hrtime() / 1000000 + WAIT_MS; \
        while (!(condition)) {                               \
            if (uv_hrtime() / 1000000 > until_ms)            \
                fail_msg("still not: %s", #condition);       \
            uv_run(&(site)->loop, UV_RUN_ONCE);              \
        }                                                    \
    } while (0)

#define ANSWER(status, text) "HTTP/1.1 " status "\r\nContent-Type: application/json\r\n" text
#define OK(body) ANSWER("200 OK", "Content-Length: #\r\n\r\n" body) /* #: what it is */
#define UNREAD_ANSWER OK("{\"rooms\":[],\"total\": 7}")

static void on_closed(uv_handle_t *handle)
{
    free(handle->data);
}

static void hang_up(struct conn *conn)
{
    conn->tcp.data = conn;
    if (!uv_is_closing((uv_handle_t *)&conn->tcp))
        uv_close((uv_handle_t *)&conn->tcp, on_closed);
}

static void on_wrote(uv_write_t *write, int status)
{
    (void)status;
    free(write);
}

static void say(struct conn *conn, const char *text, size_t n)
{
    uv_write_t *write = malloc(sizeof(*write) + n);
    uv_buf_t out = uv_buf_init((char *)(write + 1), (unsigned)n);

    memcpy(write + 1, text, n);
    assert_int_equal(uv_write(write, (uv_stream_t *)&conn->tcp, &out, 1, on_wrote), 0);
}

/* The script's text with its length put in. */
static const char *with_length(const char *text, char *out, size_t size)
{
    const char *sign = strstr(text, "Content-Length: #"), *body = strstr(text, "\r\n\r\n");

    if (!sign)
        return text;
    snprintf(out, size, "%.*s%zu%s", (int)(sign + 16 - text), text, strlen(body + 4), sign + 17);
    return out;
}

static void answer(struct conn *conn)
{
    char room[1024];
    struct server *server = conn->server;
    int at = server->requests < SCRIPT_MAX ? server->requests : SCRIPT_MAX - 1;
    const char *text;

    while (at > 0 && !server->script[at])
        at--;
    assert_non_null(server->script[at]);
    text = with_length(server->script[at], room, sizeof(room));
    server->requests++;
    memcpy(server->before, server->last, sizeof(server->last));
    snprintf(server->last, sizeof(server->last), "%s", conn->in);
    conn->n = 0;
    if (strcmp(text, CUT) == 0)
        hang_up(conn);
    else if (strcmp(text, MUTE) != 0 && server->one_byte)
        for (; *text; text++)
            say(conn, text, 1);
    else if (strcmp(text, MUTE) != 0)
        say(conn, text, strlen(text));
}

static void on_alloc(uv_handle_t *handle, size_t hint, uv_buf_t *out)
{
    struct conn *conn = (struct conn *)(void *)handle;

    (void)hint;
    *out = uv_buf_init(conn->in + conn->n, (unsigned)(sizeof(conn->in) - conn->n - 1));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *in)
{
    struct conn *conn = (struct conn *)(void *)stream;
    const char *body, *length;

    (void)in;
    if (n < 0) {
        hang_up(conn);
        return;
    }
    conn->n += (size_t)n;
    conn->in[conn->n] = '\0';
    body = strstr(conn->in, "\r\n\r\n");
    length = strstr(conn->in, "Content-Length: ");
    if (body && conn->n >= (size_t)(body + 4 - conn->in) + (length ? strtoul(length + 16, NULL, 10) : 0))
        answer(conn);
}

static void on_accept(uv_stream_t *listener, int status)
{
    struct server *server = (struct server *)(void *)listener;
    struct conn *conn = calloc(1, sizeof(*conn));

    assert_int_equal(status, 0);
    conn->server = server;
    uv_tcp_init(listener->loop, &conn->tcp);
    assert_int_equal(uv_accept(listener, (uv_stream_t *)&conn->tcp), 0);
    uv_tcp_nodelay(&conn->tcp, 1);
    server->connections++;
    uv_read_start((uv_stream_t *)&conn->tcp, on_alloc, on_read);
}

static void server_start(struct site *site, struct server *server)
{
    struct sockaddr_in any;
    int n = sizeof(any);

    uv_ip4_addr("127.0.0.1", 0, &any);
    uv_tcp_init(&site->loop, &server->listener);
    assert_int_equal(uv_tcp_bind(&server->listener, (struct sockaddr *)&any, 0), 0);
    assert_int_equal(uv_listen((uv_stream_t *)&server->listener, 16, on_accept), 0);
    uv_tcp_getsockname(&server->listener, (struct sockaddr *)&any, &n);
    snprintf(server->url, sizeof(server->url), "http://127.0.0.1:%u", ntohs(any.sin_port));
}

static void on_pulse(uv_timer_t *timer)
{
    (void)timer;
}

static void site_start(struct site *site, struct roomd_settings settings)
{
    settings.instance_urls = settings.instance_urls ? settings.instance_urls : site->urls;
    settings.service_key = "the-key";
    assert_int_equal(roomd_client_open(&site->client, &settings, NULL), ROOMD_OK);
    assert_int_equal(roomd_uv_start(&site->glue, &site->loop, site->client), 0);
}

static int site_setup(void **state)
{
    struct site *site = calloc(1, sizeof(*site));

    signal(SIGPIPE, SIG_DFL);
    uv_loop_init(&site->loop);
    uv_timer_init(&site->loop, &site->pulse);
    uv_timer_start(&site->pulse, on_pulse, 10, 10);
    server_start(site, &site->one);
    server_start(site, &site->two);
    snprintf(site->urls, sizeof(site->urls), "%s,%s", site->one.url, site->two.url);
    *state = site;
    return 0;
}

static void close_any(uv_handle_t *handle, void *arg)
{
    struct site *site = arg;
    bool ours = handle == (uv_handle_t *)&site->pulse || handle == (uv_handle_t *)&site->one.listener ||
                handle == (uv_handle_t *)&site->two.listener;

    if (uv_is_closing(handle))
        return;
    if (ours) {
        uv_close(handle, NULL);
    } else {
        handle->data = handle;
        uv_close(handle, on_closed);
    }
}

static int site_teardown(void **state)
{
    struct site *site = *state;

    if (site->client) {
        roomd_uv_stop(&site->glue, NULL);
        uv_run(&site->loop, UV_RUN_NOWAIT);
        roomd_client_close(site->client);
    }
    uv_walk(&site->loop, close_any, site);
    uv_run(&site->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&site->loop), 0);
    free(site);
    return 0;
}

static void unread_of(struct site *site, struct roomd_call *call, struct roomd_history_unread_of *got)
{
    roomd_history_unread(site->client, call, &(struct roomd_history_unread){.account_id = "alice"}, got);
}

/* --- requests and answers --- */

static void a_request_is_what_the_protocol_says(void **state)
{
    struct site *site = *state;
    struct roomd_call call = {.request_id = "r1"};

    site->one.script[0] = OK("{\"added\":[\"bob\"],\"already\":[\"\\u00e9\"]}");
    site_start(site, (struct roomd_settings){0});
    struct roomd_room_accounts_added got;
    struct roomd_room_add_accounts add = {.room_id = "s07.X", .by = "al\"ice", .account_ids = ROOMD_TEXTS("bob", "é")};
    roomd_room_add_accounts(site->client, &call, &add, &got);
    assert_false(call.finished);
    until(site, call.finished);
    assert_int_equal(call.code, ROOMD_OK);
    assert_int_equal(got.added.n, 1);
    assert_string_equal(got.added.p[0], "bob");
    assert_string_equal(got.already.p[0], "é");
    assert_non_null(strstr(site->one.last, "POST /v1/room/AddAccount2Room HTTP/1.1\r\n"));
    assert_non_null(strstr(site->one.last, "Authorization: Bearer the-key\r\n"));
    assert_non_null(
        strstr(site->one.last, "\r\n\r\n{\"room_id\":\"s07.X\",\"by\":\"al\\\"ice\",\"account_ids\":[\"bob\","
                               "\"é\"],\"request_id\":\"r1\"}"));
    roomd_call_clear(&call);
}

static void an_answer_in_pieces_and_chunks_is_whole(void **state)
{
    struct site *site = *state;
    struct roomd_call call = {0};
    struct roomd_history_unread_of got;

    site->one.script[0] = ANSWER("200 OK",
        "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"roo\r\nB;x=y\r\nms\":[],\"tot\r\n7\r\nal\": 7}\r\n0\r\n\r\n");
    site->one.one_byte = true;
    site_start(site, (struct roomd_settings){0});
    for (int i = 0; i < 2; i++) {
        unread_of(site, &call, &got);
        until(site, call.finished);
        assert_int_equal(call.code, ROOMD_OK);
        assert_int_equal(got.total, 7);
    }
    assert_int_equal(site->one.connections, 1); /* it is kept */
    roomd_call_clear(&call);
}

static void who_is_connected_is_told_by_account_and_platform(void **state)
{
    struct site *site = *state;
    struct roomd_call call = {0};
    struct roomd_proxy_online_accounts got;
    char text[512];

    snprintf(text, sizeof(text), ANSWER("200 OK", "Content-Length: #\r\n\r\n%s"),
        "{\"accounts\":[{\"account_id\":\"a\",\"streams\":3,\"platforms\":[{\"platform\":\"ios\",\"streams\":1},"
        "{\"platform\":\"web\",\"streams\":2}]},{\"account_id\":\"b\",\"streams\":0,\"platforms\":[]}],"
        "\"missing\":1}");
    site->one.script[0] = text;
    site_start(site, (struct roomd_settings){0});
    roomd_proxy_online(site->client, &call, &(struct roomd_proxy_online){.account_ids = ROOMD_TEXTS("a", "b")}, &got);
    until(site, call.finished);
    assert_int_equal(call.code, ROOMD_OK);
    assert_non_null(strstr(site->one.last, "POST /v1/proxy/Online HTTP/1.1\r\n"));
    assert_non_null(strstr(site->one.last, "\r\n\r\n{\"account_ids\":[\"a\",\"b\"]}"));
    assert_int_equal(got.account_count, 2);
    assert_int_equal(got.missing, 1);
    assert_string_equal(got.accounts[0].account_id, "a");
    assert_int_equal(got.accounts[0].streams, 3);
    assert_int_equal(got.accounts[0].platform_count, 2);
    assert_string_equal(got.accounts[0].platforms[1].platform, "web");
    assert_int_equal(got.accounts[0].platforms[1].streams, 2);
    assert_int_equal(got.accounts[1].streams, 0);
    assert_int_equal(got.accounts[1].platform_count, 0);
    roomd_call_clear(&call);
}

static void a_page_is_read_whatever_numbers_a_content_holds(void **state)
{
    struct site *site = *state;
    struct roomd_call call = {0};
    struct roomd_history_pulled got;
    char text[512];
    const char *body = "{\"entries\":[{\"type\":\"message\",\"seq\":5,\"epoch\":2,\"kind\":\"custom/x\",\"content\":"
                       "{\"n\": 1e999, \"big\":123456789012345678901234567890},\"unknown\":[1],\"sender\":null}],"
                       "\"head\":\"2:5\",\"durable_seq\":5,\"more\":false}";

    snprintf(text, sizeof(text), ANSWER("200 OK", "Content-Length: #\r\n\r\n%s"), body);
    site->one.script[0] = text;
    site_start(site, (struct roomd_settings){0});
    roomd_history_pull(site->client, &call, &(struct roomd_history_pull){.room_id = "r", .after = "0:0"}, &got);
    until(site, call.finished);
    assert_int_equal(call.code, ROOMD_OK);
    assert_int_equal(got.entry_count, 1);
    assert_int_equal(got.entries[0].seq, 5);
    assert_null(got.entries[0].sender);
    assert_memory_equal(
        got.entries[0].content.p, "{\"n\": 1e999, \"big\":123456789012345678901234567890}", got.entries[0].content.n);
    assert_memory_equal(got.entries[0].json.p, "{\"type\":\"message\"", 17);
    assert_string_equal(got.head, "2:5");
    roomd_call_clear(&call);
}

static void an_error_brings_its_code_sentence_and_field(void **state)
{
    struct site *site = *state;
    struct roomd_call call = {0};

    site->one.script[0] =
        ANSWER("403 Forbidden", "Content-Length: #\r\n\r\n{\"error\":{\"code\":\"not_member\",\"message\":\"not in "
                                "it\",\"field\":\"sender\"}}");
    site_start(site, (struct roomd_settings){0});
    unread_of(site, &call, NULL);
    until(site, call.finished);
    assert_int_equal(call.code, ROOMD_NOT_MEMBER);
    assert_int_equal(call.http_status, 403);
    assert_string_equal(call.message, "not in it");
    assert_string_equal(call.field, "sender");
    assert_int_equal(site->two.requests, 0);
    roomd_call_clear(&call);
}

static void what_is_no_answer_is_a_bad_answer(void **state)
{
    struct site *site = *state;
    struct roomd_call call = {0};
    struct roomd_history_unread_of got = {.total = 99};

    site->one.script[0] = OK("{\"rooms\":{}}");
    site_start(site, (struct roomd_settings){0});
    unread_of(site, &call, &got);
    until(site, call.finished);
    assert_int_equal(call.code, ROOMD_BAD_ANSWER);
    assert_int_equal(got.total, 0);
    roomd_call_clear(&call);
}

static void a_request_that_cannot_be_right_is_not_sent(void **state)
{
    struct site *site = *state;
    struct roomd_call call = {0};

    site_start(site, (struct roomd_settings){0});
    unread_of(site, &call, NULL);
    roomd_call_cancel(site->client, &call);
    until(site, call.finished);
    assert_int_equal(call.code, ROOMD_CLOSED);
    roomd_history_unread(site->client, &call, &(struct roomd_history_unread){0}, NULL);
    until(site, call.finished);
    assert_int_equal(call.code, ROOMD_BAD_REQUEST);
    assert_string_equal(call.field, "account_id");
    roomd_room_create(site->client, &call, &(struct roomd_room_create){.extra = "{]"}, NULL);
    until(site, call.finished);
    assert_string_equal(call.field, "extra");
    assert_int_equal(site->one.requests, 0);
    roomd_call_clear(&call);
}

/* --- instances that fail --- */

static void a_dead_instance_is_stepped_over_and_left_aside(void **state)
{
    struct site *site = *state;
    struct roomd_call call = {0};
    struct roomd_history_unread_of got;
    char urls[160];

    site->two.script[0] = UNREAD_ANSWER;
    snprintf(urls, sizeof(urls), "http://127.0.0.1:1,%s", site->two.url);
    site_start(site, (struct roomd_settings){.instance_urls = urls});
    unread_of(site, &call, &got);
    until(site, call.finished);
    assert_int_equal(call.code, ROOMD_OK);
    assert_int_equal(got.total, 7);
    roomd_call_clear(&call);
}

static void a_call_that_was_cut_off_is_made_again_with_the_same_id(void **state)
{
    struct site *site = *state;
    struct roomd_call call = {0};
    struct roomd_room_created got;
    char text[300];

    snprintf(text, sizeof(text), OK("{\"room\":{\"room_id\":\"s1.A\"},\"created\":true}"));
    site->one.script[0] = CUT;
    site->two.script[0] = text;
    site_start(site, (struct roomd_settings){0});
    roomd_room_create(site->client, &call, &(struct roomd_room_create){.name = "n"}, &got);
    until(site, call.finished);
    assert_int_equal(call.code, ROOMD_OK);
    assert_true(got.created);
    assert_non_null(strstr(site->one.last, "\"request_id\":\""));
    assert_string_equal(strstr(site->one.last, "\r\n\r\n"), strstr(site->two.last, "\r\n\r\n"));
    roomd_call_clear(&call);
}

static void an_instance_that_drains_sends_the_call_to_the_next(void **state)
{
    struct site *site = *state;
    struct roomd_call call = {0};

    site->one.script[0] =
        ANSWER("503 Service Unavailable", "Retry-After: 1\r\nContent-Length: #\r\n\r\n"
                                          "{\"error\":{\"code\":\"unavailable\",\"message\":\"draining\"}}");
    site->two.script[0] = UNREAD_ANSWER;
    site_start(site, (struct roomd_settings){0});
    for (int i = 0; i < 3; i++) {
        unread_of(site, &call, NULL);
        until(site, call.finished);
        assert_int_equal(call.code, ROOMD_OK);
    }
    assert_int_equal(site->one.requests, 1); /* left aside for a while */
    roomd_call_clear(&call);
}

static void a_frozen_instance_takes_one_try_and_not_the_whole_deadline(void **state)
{
    struct site *site = *state;
    struct roomd_call call = {0};

    site->one.script[0] = MUTE;
    site->two.script[0] = UNREAD_ANSWER;
    site_start(site, (struct roomd_settings){.try_ms = 1500});
    unread_of(site, &call, NULL);
    until(site, call.finished);
    assert_int_equal(call.code, ROOMD_OK);
    assert_int_equal(site->one.requests, 1);
    roomd_call_clear(&call);
}

static void at_the_deadline_a_call_says_whether_it_may_have_happened(void **state)
{
    struct site *site = *state;
    struct roomd_call call = {.deadline_ms = 300}, never = {.deadline_ms = 1500};

    site->one.script[0] = site->two.script[0] = MUTE;
    site_start(site, (struct roomd_settings){.try_ms = 100});
    unread_of(site, &call, NULL);
    until(site, call.finished);
    assert_int_equal(call.code, ROOMD_TIMEOUT);
    roomd_call_clear(&call);
    roomd_uv_stop(&site->glue, NULL);
    uv_run(&site->loop, UV_RUN_NOWAIT);
    roomd_client_close(site->client);

    site_start(site, (struct roomd_settings){.instance_urls = "http://127.0.0.1:1"});
    unread_of(site, &never, NULL);
    until(site, never.finished);
    assert_int_equal(never.code, ROOMD_UNAVAILABLE);
    assert_non_null(strstr(never.message, "refused"));
    roomd_call_clear(&never);
}

static void a_kept_connection_that_was_closed_meanwhile_is_no_failure(void **state)
{
    struct site *site = *state;
    struct roomd_call call = {0};

    site->one.script[0] = UNREAD_ANSWER;
    site->one.script[1] = CUT;
    site->one.script[2] = UNREAD_ANSWER;
    site->two.script[0] = MUTE;
    site_start(site, (struct roomd_settings){0});
    for (int i = 0; i < 2; i++) {
        unread_of(site, &call, NULL);
        until(site, call.finished);
        assert_int_equal(call.code, ROOMD_OK);
    }
    assert_int_equal(site->one.requests, 3);
    assert_int_equal(site->two.requests, 0);
    roomd_call_clear(&call);
}

static void closing_answers_calls_under_way(void **state)
{
    struct site *site = *state;
    struct roomd_call call = {0};

    site->one.script[0] = MUTE;
    site_start(site, (struct roomd_settings){0});
    unread_of(site, &call, NULL);
    until(site, site->one.requests == 1);
    roomd_uv_stop(&site->glue, NULL);
    uv_run(&site->loop, UV_RUN_NOWAIT);
    roomd_client_close(site->client);
    site->client = NULL;
    assert_true(call.finished);
    assert_int_equal(call.code, ROOMD_CLOSED);
    roomd_call_clear(&call);
}

/* --- streams --- */

static void on_event(void *arg, const char *json, size_t n)
{
    struct site *site = arg;

    strncat(site->events, json, n);
    strcat(site->events, ";");
}

static void on_ended(void *arg, enum roomd_code code, const char *message)
{
    struct site *site = arg;

    assert_non_null(message);
    site->ended++;
    site->ended_code = code;
}

static void stream_open(struct site *site, const char *first_url)
{
    struct roomd_endpoint endpoints[] = {{"1", first_url}, {"2", site->two.url}};
    struct roomd_history_opened answer = {.endpoints = endpoints,
        .endpoint_count = 2,
        .ndjson_path = "/v1/stream/ndjson",
        .ticket = "the-ticket",
        .heartbeat_ms = 20000};
    struct roomd_stream_events events = {on_event, on_ended};

    assert_non_null(roomd_stream_open(site->client, &answer, &events, site));
}

static void a_stream_opens_at_the_next_endpoint_and_tells_each_event(void **state)
{
    struct site *site = *state;

    site->two.script[0] = ANSWER("200 OK", "Transfer-Encoding: chunked\r\n\r\n"
                                           "e\r\n{\"a\":1}\n{\"b\":2\r\n2\r\n}\n\r\n0\r\n\r\n");
    site->two.one_byte = true;
    site_start(site, (struct roomd_settings){0});
    stream_open(site, "http://127.0.0.1:1");
    until(site, site->ended);
    assert_string_equal(site->events, "{\"a\":1};{\"b\":2};");
    assert_int_equal(site->ended_code, ROOMD_OK);
    assert_non_null(strstr(site->two.last, "GET /v1/stream/ndjson HTTP/1.1\r\n"));
    assert_non_null(strstr(site->two.last, "Authorization: Bearer the-ticket\r\n"));
}

static void a_refused_stream_ends_with_the_code(void **state)
{
    struct site *site = *state;

    site->one.script[0] = ANSWER("401 Unauthorized",
        "Content-Length: #\r\n\r\n{\"error\":{\"code\":\"ticket_expired\",\"message\":\"too old\"}}");
    site_start(site, (struct roomd_settings){0});
    stream_open(site, site->one.url);
    until(site, site->ended);
    assert_int_equal(site->ended_code, ROOMD_TICKET_IS_EXPIRED);
    assert_int_equal(site->two.requests, 0);
}

static void endpoints_are_tried_in_order_with_pauses_that_grow(void **state)
{
    struct roomd_history_opened answer = {
        .endpoint_count = 2, .backoff_base_ms = 100, .backoff_factor = 2, .backoff_max_ms = 300};
    static const int64_t most[] = {0, 0, 100, 0, 200, 0, 300, 0, 300};
    struct roomd_walk walk = {0};
    int64_t wait_ms;

    (void)state;
    for (size_t i = 0; i < sizeof(most) / sizeof(most[0]); i++) {
        assert_int_equal(roomd_walk_next(&walk, &answer, (uint64_t)most[i], &wait_ms), i % 2);
        assert_int_equal(wait_ms, most[i]);
    }
}

#define WITH_SITE(test) cmocka_unit_test_setup_teardown(test, site_setup, site_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SITE(a_request_is_what_the_protocol_says),
        WITH_SITE(an_answer_in_pieces_and_chunks_is_whole),
        WITH_SITE(who_is_connected_is_told_by_account_and_platform),
        WITH_SITE(a_page_is_read_whatever_numbers_a_content_holds),
        WITH_SITE(an_error_brings_its_code_sentence_and_field),
        WITH_SITE(what_is_no_answer_is_a_bad_answer),
        WITH_SITE(a_request_that_cannot_be_right_is_not_sent),
        WITH_SITE(a_dead_instance_is_stepped_over_and_left_aside),
        WITH_SITE(a_call_that_was_cut_off_is_made_again_with_the_same_id),
        WITH_SITE(an_instance_that_drains_sends_the_call_to_the_next),
        WITH_SITE(a_frozen_instance_takes_one_try_and_not_the_whole_deadline),
        WITH_SITE(at_the_deadline_a_call_says_whether_it_may_have_happened),
        WITH_SITE(a_kept_connection_that_was_closed_meanwhile_is_no_failure),
        WITH_SITE(closing_answers_calls_under_way),
        WITH_SITE(a_stream_opens_at_the_next_endpoint_and_tells_each_event),
        WITH_SITE(a_refused_stream_ends_with_the_code),
        cmocka_unit_test(endpoints_are_tried_in_order_with_pauses_that_grow),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
