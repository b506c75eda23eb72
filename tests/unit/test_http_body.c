/* Bodies that are not collected (raw_path): they come in pieces, when they are asked for, and end where they say. */
#define _GNU_SOURCE
#include "http_site.h"

#include <inttypes.h>
#include <signal.h>

#define LONG_BYTES 300000u

/* What the handler of the raw path does, and what it got. */
static struct upload {
    struct site *site;
    struct http_reply *reply;
    int64_t raw_bytes, got, stop_at; /* stop_at: answers when so much has come; -1: at the end */
    uint32_t sum;
    unsigned pieces, largest;
    bool wait, gone, collected;
} upload;

static void ask_on(void);

static void answer_upload(void)
{
    struct http_reply *reply = upload.reply;
    struct buf out = {0};

    upload.reply = NULL;
    buf_printf(&out, "{\"n\":%" PRId64 ",\"sum\":%u}", upload.got, upload.sum);
    if (upload.stop_at >= 0)
        http_reply_error(reply, ERR_TOO_LARGE, NULL, "enough");
    else
        http_reply_json(reply, 200, buf_str(&out));
    buf_clear(&out);
}

static void on_piece(void *arg, struct str bytes)
{
    (void)arg;
    upload.pieces++;
    upload.largest = bytes.n > upload.largest ? (unsigned)bytes.n : upload.largest;
    upload.gone = bytes.n == 0;
    for (size_t i = 0; i < bytes.n; i++)
        upload.sum = upload.sum * 31 + (unsigned char)bytes.p[i];
    upload.got += (int64_t)bytes.n;
    if (upload.gone || upload.got == upload.raw_bytes || (upload.stop_at >= 0 && upload.got >= upload.stop_at))
        answer_upload();
    else if (!upload.wait)
        ask_on();
}

static void ask_on(void)
{
    http_reply_read(upload.reply, on_piece, NULL);
}

static void handle_raw(void *context, struct http_request *request, struct http_reply *reply)
{
    if (!str_is(request->path, "/files")) {
        handle(context, request, reply);
        return;
    }
    upload.site = context;
    upload.site->calls++;
    upload.raw_bytes = request->raw_bytes;
    upload.collected = request->raw_bytes < 0;
    upload.got = 0;
    upload.sum = 0;
    upload.reply = reply;
    if (upload.collected || upload.raw_bytes == 0 || upload.stop_at == 0)
        answer_upload();
    else if (!upload.wait)
        ask_on();
}

static struct site *open_raw(bool tls)
{
    struct site *site = site_new(tls);

    upload = (struct upload){.stop_at = -1};
    site->settings.raw_path = "/files";
    assert_int_equal(http_server_open(&site->server, &site->loop, &site->settings, handle_raw, site), ERR_OK);
    return site;
}

static int open_raw_plain(void **state)
{
    *state = open_raw(false);
    return 0;
}

static int open_raw_tls(void **state)
{
    *state = open_raw(true);
    return 0;
}

#define HEAD(headers) "POST /files?kind=image HTTP/1.1\r\nHost: h\r\nContent-Type: image/png\r\n" headers "\r\n"
#define NEXT "GET /seen?after=next HTTP/1.1\r\nHost: h\r\n\r\n"

/* A whole upload with what follows it on the connection. */
static void write_upload(struct buf *out, size_t bytes, const char *behind)
{
    buf_printf(out,
        "POST /files?kind=image HTTP/1.1\r\nHost: h\r\nContent-Type: image/png\r\nContent-Length: %zu\r\n\r\n", bytes);
    for (size_t i = 0; i < bytes; i++)
        buf_char(out, (char)(i * 7 + i / 251));
    buf_text(out, behind);
}

static uint32_t sum_of(size_t bytes)
{
    uint32_t sum = 0;

    for (size_t i = 0; i < bytes; i++)
        sum = sum * 31 + (unsigned char)(i * 7 + i / 251);
    return sum;
}

static void assert_uploaded(struct client *client, size_t bytes)
{
    struct str body;
    char expected[64];

    snprintf(expected, sizeof expected, "{\"n\":%zu,\"sum\":%u}", bytes, sum_of(bytes));
    until(client->site, answered(client, &body));
    if (!str_is(body, expected))
        fail_msg("answer is %.*s, not %s", STR_ARG(body), expected);
}

/* ---- how it comes ---- */

static void a_body_is_whole_wherever_it_is_cut(void **state)
{
    struct site *site = *state;
    struct buf text = {0};

    write_upload(&text, 40, "");
    for (size_t cut = 1; cut < text.n; cut++) {
        struct client *client = dial(site);

        say_bytes(client, text.p, cut);
        for (int i = 0; i < 3; i++)
            turn(site);
        say_bytes(client, text.p + cut, text.n - cut);
        assert_uploaded(client, 40);
        leave(client, LEAVE_FIN);
    }
    buf_clear(&text);
}

static void a_long_body_comes_in_pieces_and_the_next_request_follows(void **state)
{
    struct site *site = *state;
    struct client *client = dial(site);
    struct buf text = {0};

    write_upload(&text, LONG_BYTES, "");
    for (int again = 0; again < 3; again++) {
        buf_reset(&client->in);
        say_bytes(client, text.p, text.n);
        assert_uploaded(client, LONG_BYTES);
    }
    assert_true(upload.pieces >= 3 * (LONG_BYTES / 65536));
    assert_true(upload.largest <= 65536);
    ask(client, NEXT);
    assert_true(heard(client, "\"after0\":\"next\""));
    leave(client, LEAVE_FIN);
    buf_clear(&text);
}

static void what_stands_behind_the_body_is_the_next_request_and_no_part_of_it(void **state)
{
    struct site *site = *state;
    struct client *client = dial(site);
    struct buf text = {0};

    site->calls = 0;
    write_upload(&text, 500, NEXT);
    say_bytes(client, text.p, text.n);
    assert_uploaded(client, 500);
    until(site, heard(client, "\"after0\":\"next\""));
    assert_int_equal(site->calls, 2);
    leave(client, LEAVE_FIN);
    buf_clear(&text);
}

static void nothing_is_read_that_was_not_asked_for(void **state)
{
    struct site *site = *state;
    struct client *client = dial(site);
    char *zeros = calloc(1, BIG_BYTES), head[200];
    size_t sent = 0;

    upload.wait = true;
    snprintf(head, sizeof head, "POST /files HTTP/1.1\r\nHost: h\r\nContent-Length: %u\r\n\r\n", 8 * BIG_BYTES);
    say(client, head);
    until(site, upload.reply);
    for (int quiet = 0; quiet < 20; quiet++) { /* until the kernel takes no more */
        ssize_t n = send(client->fd, zeros, BIG_BYTES, MSG_NOSIGNAL | MSG_DONTWAIT);

        sent += n > 0 ? (size_t)n : 0;
        quiet = n > 0 ? 0 : quiet;
        turn(site);
    }
    assert_true(sent < 8 * BIG_BYTES);
    assert_int_equal(upload.got, 0);
    for (unsigned asked = 0; asked < 40; asked++) { /* piece by piece room comes back */
        unsigned pieces = upload.pieces;

        ask_on();
        until(site, upload.pieces == pieces + 1);
        assert_true(upload.got <= (int64_t)(asked + 1) * 65536);
    }
    leave(client, LEAVE_RESET);
    upload.wait = false; /* on to the end */
    ask_on();
    until(site, upload.gone);
    free(zeros);
}

static void a_client_that_waits_for_leave_to_send_gets_it(void **state)
{
    struct site *site = *state;
    struct client *client = dial(site);

    say(client, HEAD("Content-Length: 5\r\nExpect: 100-continue\r\n"));
    until(site, heard(client, "HTTP/1.1 100 Continue\r\n\r\n"));
    buf_reset(&client->in);
    say(client, "hello");
    until(site, heard(client, "{\"n\":5,"));
    leave(client, LEAVE_FIN);
}

static void an_empty_body_is_none(void **state)
{
    struct site *site = *state;
    struct client *client = dial(site);

    say(client, HEAD("Content-Length: 0\r\n"));
    assert_uploaded(client, 0);
    assert_int_equal(upload.pieces, 0);
    ask(client, NEXT);
    assert_true(heard(client, "\"after0\":\"next\""));
    leave(client, LEAVE_FIN);
}

static void over_tls_it_is_the_same(void **state)
{
    a_long_body_comes_in_pieces_and_the_next_request_follows(state);
    what_stands_behind_the_body_is_the_next_request_and_no_part_of_it(state);
}

/* ---- how it ends before its end ---- */

static void a_refusal_in_the_middle_ends_the_connection_and_the_rest_is_no_request(void **state)
{
    struct site *site = *state;

    for (int64_t stop_at = 0; stop_at <= 70000; stop_at += 70000) {
        struct client *client = dial(site);
        char head[200];
        struct str body;

        upload.stop_at = stop_at;
        site->calls = 0;
        snprintf(head, sizeof head, "POST /files HTTP/1.1\r\nHost: h\r\nContent-Length: %u\r\n\r\n", LONG_BYTES);
        say(client, head);
        for (size_t i = 0; i < LONG_BYTES / (sizeof NEXT - 1) && !client->ended; i++)
            say(client, NEXT); /* what the body holds would be requests */
        until(site, answered(client, &body));
        assert_int_equal(status_of(client), 413);
        until(site, heard_end(client));
        assert_int_equal(site->calls, 1);
        leave(client, LEAVE_FIN);
    }
}

static void a_client_that_leaves_is_told_once_and_answering_goes_nowhere(void **state)
{
    struct site *site = *state;

    for (int how = LEAVE_FIN; how <= LEAVE_RESET; how++) {
        struct client *client = dial(site);

        upload.gone = false;
        say(client, HEAD("Content-Length: 100000\r\n") "the beginning");
        until(site, upload.got == 13);
        leave(client, how);
        until(site, upload.gone);
        assert_null(upload.reply);
        until(site, connections(site) == 0);
    }
}

/* ---- what is no such body ---- */

static void other_ways_to_send_a_body_are_collected_or_refused_as_elsewhere(void **state)
{
    struct site *site = *state;
    static const struct {
        const char *request;
        int status;
    } cases[] = {
        {"POST /files HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
         "2\r\n{}\r\n0\r\n\r\n",
            200},
        {HEAD("Transfer-Encoding: chunked\r\n") "2\r\nab\r\n0\r\n\r\n", 415},
        {HEAD("Content-Length: 2\r\nContent-Length: 3\r\n") "abc", 400},
        {HEAD("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n") "0\r\n\r\n", 400},
        {HEAD("Content-Length: +2\r\n") "ab", 400},
        {HEAD("Content-Length: 9999999999999999999\r\n") "ab", 413},
        {"POST /filesystem HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab", 415},
    };

    for (size_t i = 0; i < countof(cases); i++) {
        struct client *client = dial(site);
        struct str body;

        upload.collected = false;
        say(client, cases[i].request);
        until(site, answered(client, &body) || heard_end(client));
        if (status_of(client) != cases[i].status)
            fail_msg("case %zu: %d, not %d", i, status_of(client), cases[i].status);
        assert_true(upload.collected == (cases[i].status == 200));
        leave(client, LEAVE_FIN);
    }
    assert_int_equal(upload.pieces, 0);
}

#define PLAIN(name) cmocka_unit_test_setup_teardown(name, open_raw_plain, close_site)

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLAIN(a_body_is_whole_wherever_it_is_cut),
        PLAIN(a_long_body_comes_in_pieces_and_the_next_request_follows),
        PLAIN(what_stands_behind_the_body_is_the_next_request_and_no_part_of_it),
        PLAIN(nothing_is_read_that_was_not_asked_for),
        PLAIN(a_client_that_waits_for_leave_to_send_gets_it),
        PLAIN(an_empty_body_is_none),
        cmocka_unit_test_setup_teardown(over_tls_it_is_the_same, open_raw_tls, close_site),
        PLAIN(a_refusal_in_the_middle_ends_the_connection_and_the_rest_is_no_request),
        PLAIN(a_client_that_leaves_is_told_once_and_answering_goes_nowhere),
        PLAIN(other_ways_to_send_a_body_are_collected_or_refused_as_elsewhere),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
