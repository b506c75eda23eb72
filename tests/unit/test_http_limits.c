/* What is too much or too slow, answers that are waited for, and the end of a server. */
#define _GNU_SOURCE
#include "http_site.h"

#include <sys/resource.h>

#define JSON "Content-Type: application/json\r\n"
#define NEXT "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"

static void assert_body(struct str body, const char *text)
{
    if (!str_is(body, text))
        fail_msg("body is %.*s, not %s", STR_ARG(body), text);
}

/* ---- too much, too slow ---- */

static void bodies_above_the_limit_are_refused_with_the_limit(void **state)
{
    struct site *site = *state;
    char *body = malloc(100001), head[256];
    struct client *client;
    static const char too_large[] =
        "{\"error\":{\"code\":\"too_large\",\"message\":\"the body is larger than the limit of 100000 bytes\"}}";

    memset(body, '1', 100001);
    for (int chunked = 0; chunked < 2; chunked++) {
        for (int bytes = 100000; bytes <= 100001; bytes++) {
            struct str answer;

            client = dial(site);
            snprintf(head, sizeof head,
                "POST /seen HTTP/1.1\r\nHost: h\r\n" JSON "%s: ", chunked ? "Transfer-Encoding" : "Content-Length");
            say(client, head);
            snprintf(head, sizeof head, chunked ? "chunked\r\n\r\n%x\r\n" : "%d\r\n\r\n", (unsigned)bytes);
            say(client, head);
            say_bytes(client, body, (size_t)bytes);
            say(client, chunked ? "\r\n0\r\n\r\n" : "");
            until(site, answered(client, &answer));
            assert_int_equal(status_of(client), bytes == 100000 ? 200 : 413);
            if (bytes > 100000)
                assert_body(answer, too_large);
            leave(client, LEAVE_FIN);
        }
    }
    client = dial(site);
    assert_body(
        ask(client, POST("/seen", JSON "Content-Length: 1000000000\r\nExpect: 100-continue\r\n", "")), too_large);
    assert_false(heard(client, "100 Continue"));
    until(site, heard_end(client));
    leave(client, LEAVE_FIN);
    client = dial(site);
    ask(client, POST("/seen", JSON "Content-Length: 2\r\nExpect: 200-ok\r\n", ""));
    assert_int_equal(status_of(client), 417);
    leave(client, LEAVE_FIN);
    free(body);
}

static void an_endless_chunked_body_is_cut_off(void **state)
{
    struct site *site = *state;
    struct client *client = dial(site);
    char *chunk = malloc(65536 + 16);
    int n = snprintf(chunk, 16, "10000\r\n");

    memset(chunk + n, '1', 65536);
    memcpy(chunk + n + 65536, "\r\n", 3);
    say(client, POST("/seen", JSON "Transfer-Encoding: chunked\r\n", ""));
    for (int i = 0; i < 64 && !client->ended; i++)
        say(client, chunk);
    until(site, heard_end(client));
    assert_int_equal(status_of(client), 413);
    assert_int_equal(site->calls, 0);
    leave(client, LEAVE_FIN);
    free(chunk);
}

static void large_heads_are_refused(void **state)
{
    struct site *site = *state;
    struct client *client = dial(site);
    char *head = calloc(1, 40000);

    strcpy(head, "GET /echo HTTP/1.1\r\nHost: h\r\nX: ");
    memset(head + strlen(head), 'x', 33000);
    strcat(head, "\r\n\r\n");
    ask(client, head);
    assert_int_equal(status_of(client), 431);
    until(site, heard_end(client));
    leave(client, LEAVE_FIN);

    client = dial(site);
    strcpy(head, "GET /echo HTTP/1.1\r\nHost: h\r\n");
    for (int i = 0; i < 101; i++)
        strcat(head, "X: y\r\n");
    strcat(head, "\r\n");
    say(client, head);
    until(site, heard_end(client));
    assert_int_equal(status_of(client), 400);
    leave(client, LEAVE_FIN);
    assert_int_equal(site->calls, 0);
    free(head);
}

static void pipelined_requests_are_answered_in_order(void **state)
{
    struct site *site = *state;
    struct client *client = dial(site);
    char wanted[64];

    for (int i = 0; i < 300; i++) {
        char request[128];

        snprintf(request, sizeof request, "GET /seen?after=%d HTTP/1.1\r\nHost: h\r\n\r\n", i);
        say(client, request);
    }
    for (int i = 0; i < 300; i++) {
        const char *at;

        snprintf(wanted, sizeof wanted, "\"after0\":\"%d\"", i);
        until(site, heard(client, wanted));
        at = memmem(client->in.p, client->in.n, wanted, strlen(wanted));
        buf_consume(&client->in, (size_t)(at - client->in.p));
    }
    assert_int_equal(connections(site), 1);
    leave(client, LEAVE_FIN);
}

static int open_hasty(void **state)
{
    struct site *site = site_new(false);

    site->settings.request_timeout_ms = 1000; /* what is to be served before has its time, too */
    site->settings.write_timeout_ms = 1000;
    *state = site_open(site);
    return 0;
}

static void slow_and_silent_clients_are_cut(void **state)
{
    static const char *const begun[] = {"", "GET /echo HT",
        "GET /echo HTTP/1.1\r\nHost: h\r\nX: ", POST("/echo", JSON "Content-Length: 10\r\n", "12345"),
        POST("/echo", JSON "Transfer-Encoding: chunked\r\n", "5\r\n123"), "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n"};
    struct site *site = *state;
    struct client *clients[countof(begun)];

    for (size_t i = 0; i < countof(begun); i++) {
        clients[i] = dial(site);
        say(clients[i], begun[i]);
    }
    for (size_t i = 0; i < countof(begun); i++) {
        until(site, heard_end(clients[i]));
        leave(clients[i], LEAVE_FIN);
    }
    assert_int_equal(site->calls, 1);
}

static void dripping_bytes_do_not_gain_time(void **state)
{
    struct site *site = *state;
    struct client *client = dial(site);
    uint64_t begun_ms = clock_mono_ms(), said_ms = begun_ms;

    say(client, "GET /echo HTTP/1.1\r\nHost: h\r\nX: ");
    while (!heard_end(client)) {
        assert_true(clock_mono_ms() < begun_ms + DEADLINE_MS);
        if (clock_mono_ms() > said_ms + 10) {
            said_ms = clock_mono_ms();
            say(client, "x");
        }
        turn(site);
    }
    leave(client, LEAVE_FIN);
}

static void an_answer_nobody_reads_is_cut(void **state)
{
    struct site *site = *state;
    struct client *client = dial_with(site, 4096);
    size_t got = 0;

    say(client, "GET /big HTTP/1.1\r\nHost: h\r\n\r\n" NEXT);
    until(site, site->calls == 1);
    until(site, connections(site) == 0);
    while (pump(client))
        got = client->in.n;
    assert_true(client->ended && got < BIG_BYTES);
    assert_int_equal(site->calls, 1); /* what was pipelined behind it is not served */
    leave(client, LEAVE_FIN);
}

static void a_big_answer_reaches_a_reader_that_reads(void **state)
{
    struct client *client = dial(*state);

    assert_int_equal(ask(client, "GET /big HTTP/1.1\r\nHost: h\r\n\r\n").n, BIG_BYTES);
    leave(client, LEAVE_FIN);
}

static int open_small(void **state)
{
    struct site *site = site_new(false);

    site->settings.connections_max = 3;
    *state = site_open(site);
    return 0;
}

static void connections_above_the_most_are_closed_at_once(void **state)
{
    struct site *site = *state;
    struct client *inside[3], *outside;

    for (int i = 0; i < 3; i++) {
        inside[i] = dial(site);
        ask(inside[i], "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    outside = dial(site);
    until(site, heard_end(outside));
    assert_int_equal(outside->in.n, 0);
    assert_int_equal(http_server_counters(site->server).refused_total, 1);
    leave(outside, LEAVE_FIN);
    leave(inside[0], LEAVE_FIN);
    until(site, connections(site) == 2);
    outside = dial(site);
    ask(outside, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    leave(outside, LEAVE_FIN);
    leave(inside[1], LEAVE_FIN);
    leave(inside[2], LEAVE_FIN);
}

static void running_out_of_descriptors_pauses_accepting(void **state)
{
    struct site *site = *state;
    struct client *client = dial(site);
    struct rlimit before, none;
    unsigned turns = 0;
    uint64_t begun_ms;

    getrlimit(RLIMIT_NOFILE, &before);
    none = before;
    none.rlim_cur = (rlim_t)client->fd + 1; /* the next one would be above */
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    for (begun_ms = clock_mono_ms(); clock_mono_ms() < begun_ms + 80; turns++)
        turn(site);
    assert_int_equal(connections(site), 0);
    assert_true(turns < 200); /* the tick alone makes 80 */
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    ask(client, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_int_equal(status_of(client), 200);
    leave(client, LEAVE_FIN);
}

/* ---- answers that are waited for ---- */

static void a_waiting_answer_comes_when_it_is_given(void **state)
{
    struct site *site = *state;
    struct client *client = dial(site);
    struct str body;

    say(client, "GET /wait HTTP/1.1\r\nHost: h\r\n\r\nGET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    until(site, site->reply);
    for (int i = 0; i < 20; i++)
        turn(site);
    assert_int_equal(site->calls, 1); /* the second one waits for its turn */
    http_reply_json(site->reply, 200, STR("{\"late\":1}"));
    site->reply = NULL;
    until(site, answered(client, &body));
    assert_body(body, "{\"late\":1}");
    until(site, site->calls == 2);
    assert_int_equal(site->gone, 0);
    leave(client, LEAVE_FIN);
}

static void a_waiting_answer_learns_that_its_reader_left(void **state)
{
    struct site *site = *state;

    for (int i = 0; i < 6; i++) {
        struct client *client = dial(site);

        say(client, "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n");
        if (i >= 2)
            say(client, NEXT); /* what lies unread in the kernel hides nothing */
        until(site, site->reply);
        if (i >= 4)
            shutdown(client->fd, SHUT_WR); /* and neither does a half-close */
        else
            leave(client, i & 1 ? LEAVE_RESET : LEAVE_FIN);
        until(site, site->gone == (unsigned)i + 1);
        until(site, connections(site) == 0); /* at once, not only when the answer is given */
        assert_int_equal(site->calls, i + 1);
        if (i & 1)
            http_reply_json(site->reply, 200, STR("{}"));
        else
            http_reply_take_over(site->reply, 200, NULL, STR(""), held_events(), &site->held, held_ready);
        assert_false(site->held.ready);
        site->reply = NULL;
        until(site, (i & 1) || site->held.ready);
        assert_null(site->held.wire);
        held_forget(&site->held);
        if (i >= 4)
            leave(client, LEAVE_FIN);
    }
}

static void a_reply_may_stop_watching(void **state)
{
    struct site *site = *state;
    struct client *client = dial(site);

    say(client, "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n");
    until(site, site->reply);
    http_reply_on_gone(site->reply, NULL, NULL);
    leave(client, LEAVE_FIN);
    for (int i = 0; i < 20; i++)
        turn(site);
    assert_int_equal(site->gone, 0);
    http_reply_json(site->reply, 200, STR("{}"));
    site->reply = NULL;
    until(site, connections(site) == 0);
}

/* ---- the end ---- */

static void a_draining_server_ends_keep_alive_with_the_next_answer(void **state)
{
    struct site *site = *state;
    struct client *idle = dial(site), *waiting = dial(site);
    struct str body;

    ask(idle, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(heard(idle, "Connection: keep-alive"));
    say(waiting, "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n");
    until(site, site->reply);
    http_server_stop_listening(site->server);
    assert_int_equal(http_server_port(site->server), -1);
    ask(idle, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_true(heard(idle, "Connection: close"));
    until(site, heard_end(idle));
    http_reply_json(site->reply, 200, STR("{}"));
    site->reply = NULL;
    until(site, answered(waiting, &body));
    assert_true(heard(waiting, "Connection: close"));
    until(site, heard_end(waiting));
    leave(idle, LEAVE_FIN);
    leave(waiting, LEAVE_FIN);
}

static void closing_cuts_everyone_and_waits_for_nobody(void **state)
{
    struct site *site = *state;
    struct client *idle = dial(site), *half = dial(site), *stream = dial(site), *unread = dial_with(site, 4096),
                  *waiting = dial(site);

    say(half, "GET /ec");
    say(stream, "GET /stream HTTP/1.1\r\nHost: h\r\n\r\n");
    until(site, heard(stream, "hello\n"));
    say(unread, "GET /big HTTP/1.1\r\nHost: h\r\n\r\n");
    say(waiting, "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n");
    until(site, site->reply && connections(site) == 5);
    http_server_close(site->server);
    until(site, heard_end(idle) && heard_end(half) && heard_end(stream) && heard_end(unread) && heard_end(waiting));
    assert_int_equal(status_of(waiting), 503);
    until(site, site->held.closed);
    http_reply_json(site->reply, 200, STR("{}")); /* its owner answers all the same; the server goes after that */
    site->reply = NULL;
    site->server = NULL;
    leave(idle, LEAVE_FIN);
    leave(half, LEAVE_FIN);
    leave(stream, LEAVE_FIN);
    leave(unread, LEAVE_FIN);
    leave(waiting, LEAVE_FIN);
}

static void a_port_in_use_is_an_error(void **state)
{
    struct site *site = *state;
    struct http_settings same = site->settings;
    struct http_server *other;

    same.port = http_server_port(site->server);
    assert_int_equal(http_server_open(&other, &site->loop, &same, handle, site), ERR_UNAVAILABLE);
    same.address = "not an address";
    assert_int_equal(http_server_open(&other, &site->loop, &same, handle, site), ERR_BAD_REQUEST);
    same.tls_certificate_file = same.tls_key_file = "/nowhere";
    assert_int_equal(http_server_open(&other, &site->loop, &same, handle, site), ERR_BAD_REQUEST);
}

#define PLAIN(name) cmocka_unit_test_setup_teardown(name, open_plain, close_site)
#define HASTY(name) cmocka_unit_test_setup_teardown(name, open_hasty, close_site)

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLAIN(bodies_above_the_limit_are_refused_with_the_limit),
        PLAIN(an_endless_chunked_body_is_cut_off),
        PLAIN(large_heads_are_refused),
        PLAIN(pipelined_requests_are_answered_in_order),
        HASTY(slow_and_silent_clients_are_cut),
        HASTY(dripping_bytes_do_not_gain_time),
        HASTY(an_answer_nobody_reads_is_cut),
        PLAIN(a_big_answer_reaches_a_reader_that_reads),
        cmocka_unit_test_setup_teardown(connections_above_the_most_are_closed_at_once, open_small, close_site),
        PLAIN(running_out_of_descriptors_pauses_accepting),
        PLAIN(a_waiting_answer_comes_when_it_is_given),
        PLAIN(a_waiting_answer_learns_that_its_reader_left),
        PLAIN(a_reply_may_stop_watching),
        PLAIN(a_draining_server_ends_keep_alive_with_the_next_answer),
        PLAIN(closing_cuts_everyone_and_waits_for_nobody),
        PLAIN(a_port_in_use_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
