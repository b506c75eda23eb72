/* Sockets taken over from HTTP, TLS, and that nothing is left of those who leave without a word. */
#define _GNU_SOURCE
#include "http_site.h"

static const char stream[] = "GET /stream HTTP/1.1\r\nHost: h\r\n\r\n";
static const char upgrade[] = "GET /upgrade HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

static struct client *dial_wire(struct site *site, const char *request)
{
    struct client *client = dial(site);

    say(client, request);
    until(site, site->held.ready && heard(client, "hello\n"));
    assert_non_null(site->held.wire);
    return client;
}

static void an_upgrade_answers_101_and_hands_the_socket_over(void **state)
{
    struct site *site = *state;
    struct client *client = dial_wire(site, upgrade);

    site->held.echo = true;
    assert_int_equal(status_of(client), 101);
    assert_true(heard(client, "HTTP/1.1 101 Switching Protocols\r\n"));
    assert_true(heard(client, "Connection: upgrade\r\n"));
    assert_true(heard(client, "upgrade: websocket\r\nx-more: yes\r\n\r\nhello\n"));
    assert_false(heard(client, "close"));
    say(client, "echo this\n");
    until(site, heard(client, "hello\necho this\n"));
    until(site, site->held.written == 1);
    assert_false(wire_writing(site->held.wire));
    leave(client, LEAVE_FIN);
    until(site, site->held.closed && connections(site) == 0);
}

static void a_stream_answers_200_until_the_end_of_the_connection(void **state)
{
    struct site *site = *state;
    struct client *client = dial_wire(site, stream);

    assert_int_equal(status_of(client), 200);
    assert_true(heard(client, "\r\nconnection: close\r\n"));
    assert_true(heard(client, "content-type: text/event-stream\r\n"));
    assert_false(heard(client, "Transfer-Encoding") || heard(client, "Content-Length"));
    wire_close(site->held.wire);
    assert_false(site->held.closed); /* never from inside the call */
    assert_true(wire_writing(site->held.wire));
    wire_write(site->held.wire, &(uv_buf_t){"x", 1}, 1); /* too late, and harmless */
    until(site, site->held.closed && heard_end(client));
    leave(client, LEAVE_FIN);
}

static void bytes_sent_with_the_request_are_not_lost(void **state)
{
    struct site *site = *state;
    struct client *client = dial(site);
    char text[256];

    site->held.hold = true;
    snprintf(text, sizeof text, "%searly, without an end", upgrade);
    say(client, text);
    until(site, site->held.ready && heard(client, "hello\n"));
    for (int i = 0; i < 10; i++)
        turn(site);
    assert_int_equal(site->held.got.n, 0); /* what the owner did not use */
    say(client, " yet");
    for (int i = 0; i < 10; i++)
        turn(site);
    say(client, "\n");
    until(site, site->held.got.n); /* comes again with more */
    assert_true(str_is(buf_str(&site->held.got), "early, without an end yet\n"));
    leave(client, LEAVE_FIN);
    until(site, site->held.closed);
}

static void leaving_is_seen_at_once(void **state)
{
    struct site *site = *state;

    for (int i = 0; i < 6; i++) {
        struct client *client = dial_wire(site, i & 1 ? stream : upgrade);

        if (i >= 4)
            shutdown(client->fd, SHUT_WR);
        else
            leave(client, i & 2 ? LEAVE_RESET : LEAVE_FIN);
        until(site, site->held.closed && connections(site) == 0);
        assert_int_equal(site->held.written, 0);
        if (i >= 4)
            leave(client, LEAVE_FIN);
        held_forget(&site->held);
    }
}

/* Many buffers, more than one system call takes, to a reader that is slow to begin. */
static void a_large_write_arrives_whole_and_in_order(void **state)
{
    enum { BUFS = 5000 };
    struct site *site = *state;
    struct client *client = dial_wire(site, upgrade);
    uv_buf_t *bufs = malloc(BUFS * sizeof *bufs);
    char *numbers = malloc(BUFS * 8 + 1);
    size_t total = 0, head;

    for (size_t i = 0; i < BUFS; i++) {
        snprintf(numbers + i * 8, 9, "%07zu\n", i);
        bufs[i] = uv_buf_init(numbers + i * 8, i % 7 ? 8 : 0);
        if (i == 2500)
            bufs[i] = uv_buf_init(site->big, BIG_BYTES);
        total += bufs[i].len;
    }
    head = client->in.n;
    wire_write(site->held.wire, bufs, BUFS);
    memset(bufs, 0, BUFS * sizeof *bufs); /* the array is not needed any more, what it points to is */
    free(bufs);
    assert_true(wire_writing(site->held.wire));
    for (int i = 0; i < 20; i++)
        turn(site);
    assert_int_equal(site->held.written, 0);
    until(site, (heard_end(client), client->in.n == head + total));
    until(site, site->held.written == 1);
    for (size_t i = 0, at = head; i < BUFS; i++) {
        if (i == 2500) {
            assert_memory_equal(client->in.p + at, site->big, BIG_BYTES);
            at += BIG_BYTES;
        } else if (i % 7) {
            assert_memory_equal(client->in.p + at, numbers + i * 8, 8);
            at += 8;
        }
    }
    free(numbers);
    leave(client, LEAVE_FIN);
    until(site, site->held.closed);
}

static void a_write_of_nothing_is_written(void **state)
{
    struct site *site = *state;
    struct client *client = dial_wire(site, stream);

    wire_write(site->held.wire, NULL, 0);
    assert_int_equal(site->held.written, 0);
    until(site, site->held.written == 1);
    leave(client, LEAVE_FIN);
    until(site, site->held.closed);
}

static void a_wire_closed_in_a_write_says_closed_and_not_written(void **state)
{
    struct site *site = *state;

    for (int i = 0; i < 3; i++) {
        struct client *client = dial_wire(site, stream);
        uv_buf_t buf = uv_buf_init(site->big, i == 2 ? 10 : BIG_BYTES);

        wire_write(site->held.wire, &buf, 1);
        if (i == 1)
            leave(client, LEAVE_RESET);
        else
            wire_close(site->held.wire);
        until(site, site->held.closed);
        assert_int_equal(site->held.written, 0);
        if (i != 1)
            leave(client, LEAVE_FIN);
        held_forget(&site->held);
    }
}

static void a_wire_that_stopped_reading_still_writes(void **state)
{
    struct site *site = *state;
    struct client *client = dial_wire(site, stream);

    wire_stop_reading(site->held.wire);
    say(client, "nobody reads this");
    for (int i = 0; i < 10; i++)
        turn(site);
    assert_int_equal(site->held.got.n, 0);
    wire_write(site->held.wire, &(uv_buf_t){"still here\n", 11}, 1);
    until(site, heard(client, "still here\n"));
    until(site, site->held.written == 1);
    wire_close(site->held.wire);
    until(site, site->held.closed);
    leave(client, LEAVE_FIN);
}

/* ---- those who leave without a word ---- */

enum leaving_from {
    NOTHING_SAID,
    HALF_A_HEAD,
    HALF_A_BODY,
    HALF_A_CHUNK,
    TOLD_TO_CONTINUE,
    ANSWER_UNREAD,
    ANSWER_STUCK,
    ANSWER_WAITED_FOR,
    ANSWER_LATE,
    BETWEEN_REQUESTS,
    REFUSED,
    STREAM_IDLE,
    STREAM_UNREAD,
    STREAM_STUCK,
    STREAM_NOT_READING,
    STREAM_CLOSING,
    UPGRADE_ASKED,
    STATES
};

static const char *const said[STATES] = {
    [HALF_A_HEAD] = "GET /echo HTTP/1.1\r\nHo",
    [HALF_A_BODY] = "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc",
    [HALF_A_CHUNK] = "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nabc",
    [TOLD_TO_CONTINUE] = "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n",
    [ANSWER_UNREAD] = "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n",
    [ANSWER_STUCK] = "GET /big HTTP/1.1\r\nHost: h\r\n\r\n",
    [ANSWER_WAITED_FOR] = "GET /wait HTTP/1.1\r\nHost: h\r\n\r\n",
    [ANSWER_LATE] = "GET /stay HTTP/1.1\r\nHost: h\r\n\r\n",
    [BETWEEN_REQUESTS] = "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n",
    [REFUSED] = "GET /echo HTTP/1.1\r\n\r\n",
    [STREAM_IDLE] = stream,
    [STREAM_UNREAD] = stream,
    [STREAM_STUCK] = stream,
    [STREAM_NOT_READING] = stream,
    [STREAM_CLOSING] = upgrade,
    [UPGRADE_ASKED] = upgrade,
};

/* Brings a client into a state and lets it leave; afterwards the server has nothing of it. */
static void leave_from(struct site *site, enum leaving_from from, enum leaving how)
{
    uv_buf_t big = uv_buf_init(site->big, BIG_BYTES), more = uv_buf_init(site->big, 4096);
    unsigned calls = site->calls;
    struct client *client = dial_with(site, 4096);
    struct str body;

    until(site, connections(site) == 1);
    if (said[from])
        say(client, said[from]);
    if (from == ANSWER_WAITED_FOR || from == ANSWER_LATE || from == ANSWER_STUCK || from == ANSWER_UNREAD)
        until(site, site->calls > calls);
    if (from == TOLD_TO_CONTINUE)
        until(site, heard(client, "100 Continue"));
    if (from == BETWEEN_REQUESTS)
        until(site, answered(client, &body));
    if (from >= STREAM_IDLE && from <= STREAM_CLOSING)
        until(site, site->held.ready && heard(client, "hello\n"));
    if (from == STREAM_STUCK || from == STREAM_UNREAD)
        wire_write(site->held.wire, from == STREAM_STUCK ? &big : &more, 1);
    if (from == STREAM_NOT_READING)
        wire_stop_reading(site->held.wire);
    for (int i = 0; i < 3; i++)
        turn(site);
    if (from == STREAM_CLOSING)
        wire_close(site->held.wire);
    leave(client, how);
    for (int i = 0; i < 3; i++)
        turn(site);
    if (from == STREAM_NOT_READING) /* it is found out by writing: the first write may still meet open ears */
        until(site,
            site->held.closed || (wire_writing(site->held.wire) ? 0 : (wire_write(site->held.wire, &more, 1), 0)));
    if (from == ANSWER_WAITED_FOR || from == ANSWER_LATE) {
        http_reply_json(site->reply, 200, STR("{}"));
        site->reply = NULL;
    }
    until(site, connections(site) == 0);
    assert_true(!site->held.ready || !site->held.wire);
    held_forget(&site->held);
}

static void nothing_is_left_of_those_who_leave_without_a_word(void **state)
{
    struct site *site = *state;
    size_t fds;

    leave_from(site, NOTHING_SAID, LEAVE_FIN); /* with the first socket libuv opens a spare descriptor for the loop */
    fds = open_fds();
    for (int from = 0; from < STATES; from++) {
        for (int round = 0; round < 6; round++) {
            leave_from(site, (enum leaving_from)from, round & 1 ? LEAVE_RESET : LEAVE_FIN);
            if (open_fds() != fds)
                fail_msg("%zu descriptors instead of %zu after state %d, round %d", open_fds(), fds, from, round);
        }
    }
}

static void nothing_is_left_of_a_broken_handshake(void **state)
{
    static const char hello[] = "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    struct site *site = *state;
    SSL_CTX *tls = site->client_tls;

    site->client_tls = NULL; /* so that dial only connects */
    for (int i = 0; i < 8; i++) {
        struct client *client = dial(site);

        if (i & 2)
            say_bytes(client, i & 4 ? "GET / HTTP/1.1\r\n\r\n" : hello, i & 4 ? 18 : sizeof hello - 1);
        until(site, connections(site) == 1);
        for (int j = 0; j < 3; j++)
            turn(site);
        leave(client, i & 1 ? LEAVE_RESET : LEAVE_FIN);
        until(site, connections(site) == 0);
    }
    site->client_tls = tls;
}

static void garbage_inside_tls_ends_a_wire(void **state)
{
    struct site *site = *state;

    for (int i = 0; i < 2; i++) {
        struct client *client = dial_wire(site, stream);
        uv_buf_t big = uv_buf_init(site->big, BIG_BYTES);

        if (i)
            wire_write(site->held.wire, &big, 1);
        assert_int_equal(send(client->fd, "this is not a TLS record, and long enough to be one", 51, MSG_NOSIGNAL), 51);
        until(site, site->held.closed);
        leave(client, LEAVE_FIN);
        held_forget(&site->held);
    }
}

/* ---- TLS ---- */

static void tls_offers_http11_and_nothing_below_1_2(void **state)
{
    static const unsigned char both[] = "\x02h2\x08http/1.1";
    struct site *site = *state;
    const unsigned char *chosen;
    struct client *client;
    unsigned n;

    SSL_CTX_set_alpn_protos(site->client_tls, both, sizeof both - 1);
    client = dial(site);
    SSL_get0_alpn_selected(client->ssl, &chosen, &n);
    assert_true(n == 8 && memcmp(chosen, "http/1.1", 8) == 0);
    assert_true(str_is(ask(client, "GET /echo HTTP/1.1\r\nHost: h\r\n\r\n"), "{}"));
    leave(client, LEAVE_FIN);

    SSL *old = SSL_new(site->client_tls);
    int done;
    SSL_CTX *tls = site->client_tls;
    site->client_tls = NULL;
    client = dial(site);
    site->client_tls = tls;
    SSL_set_security_level(old, 0);
    SSL_set_min_proto_version(old, TLS1_VERSION);
    SSL_set_max_proto_version(old, TLS1_1_VERSION);
    SSL_set_fd(old, client->fd);
    until(site, (done = SSL_connect(old)) == 1 || SSL_get_error(old, done) != SSL_ERROR_WANT_READ);
    assert_int_not_equal(done, 1);
    SSL_free(old);
    leave(client, LEAVE_FIN);
}

#define PLAIN(name) cmocka_unit_test_setup_teardown(name, open_plain, close_site)
#define TLS(name)                                           \
    {                                                       \
#name "_over_tls", name, open_tls, close_site, NULL \
    }
#define BOTH(name) PLAIN(name), TLS(name)

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(an_upgrade_answers_101_and_hands_the_socket_over),
        BOTH(a_stream_answers_200_until_the_end_of_the_connection),
        BOTH(bytes_sent_with_the_request_are_not_lost),
        BOTH(leaving_is_seen_at_once),
        BOTH(a_large_write_arrives_whole_and_in_order),
        PLAIN(a_write_of_nothing_is_written),
        BOTH(a_wire_closed_in_a_write_says_closed_and_not_written),
        BOTH(a_wire_that_stopped_reading_still_writes),
        BOTH(nothing_is_left_of_those_who_leave_without_a_word),
        TLS(nothing_is_left_of_a_broken_handshake),
        TLS(garbage_inside_tls_ends_a_wire),
        TLS(tls_offers_http11_and_nothing_below_1_2),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
