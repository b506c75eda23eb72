/* One connection to a server of this test's own: what is read, what is written, and how it ends. */
#include "room/base/conn.h"

#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "room/base/mem.h"

enum { DEADLINE_MS = 5000 };

struct peer {
    uv_loop_t loop;
    struct conn *conn;
    int listener, fd;
    struct buf heard;
    bool connected, drained, broken;
};

static void on_connected(void *owner)
{
    ((struct peer *)owner)->connected = true;
}

static void on_received(void *owner)
{
    struct peer *peer = owner;
    struct str bytes = conn_in(peer->conn);

    buf_add_str(&peer->heard, bytes);
    conn_consume(peer->conn, bytes.n);
}

static void on_drained(void *owner)
{
    ((struct peer *)owner)->drained = true;
}

static void on_broken(void *owner, const char *why)
{
    assert_true(*why);
    ((struct peer *)owner)->broken = true;
}

static const struct conn_events events = {
    .connected = on_connected, .received = on_received, .drained = on_drained, .broken = on_broken};

static void run_until(struct peer *peer, const bool *done)
{
    uint64_t end = uv_now(&peer->loop) + DEADLINE_MS;

    while (!*done && uv_now(&peer->loop) < end) {
        uv_run(&peer->loop, UV_RUN_NOWAIT);
        uv_sleep(1);
    }
    assert_true(*done);
}

static int peer_open(void **state)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct peer *peer = xcalloc(1, sizeof *peer);
    socklen_t n = sizeof address;

    uv_loop_init(&peer->loop);
    peer->listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(peer->listener, (struct sockaddr *)&address, n), 0);
    assert_int_equal(listen(peer->listener, 1), 0);
    getsockname(peer->listener, (struct sockaddr *)&address, &n);
    peer->conn = conn_open(&peer->loop, "127.0.0.1", ntohs(address.sin_port), NULL, CONN_LEAN, &events, peer);
    run_until(peer, &peer->connected);
    peer->fd = accept(peer->listener, NULL, NULL);
    *state = peer;
    return 0;
}

static int peer_close(void **state)
{
    struct peer *peer = *state;

    conn_drop(peer->conn);
    uv_run(&peer->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&peer->loop), 0);
    close(peer->listener);
    if (peer->fd >= 0)
        close(peer->fd);
    buf_clear(&peer->heard);
    free(peer);
    return 0;
}

/* An instance or a broker that gives up says why, and resets the connection because something of ours was not read. */
static void what_a_peer_said_before_it_reset_is_read_though_writing_fails(void **state)
{
    static const char last_words[] = "goodbye";
    const struct linger reset = {.l_onoff = 1};
    struct peer *peer = *state;

    assert_int_equal(send(peer->fd, last_words, sizeof last_words - 1, 0), (ssize_t)sizeof last_words - 1);
    setsockopt(peer->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(peer->fd);
    peer->fd = -1;
    buf_text(conn_out(peer->conn), "are you there?");
    conn_flush(peer->conn);
    assert_false(peer->broken);
    run_until(peer, &peer->broken);
    assert_true(str_is(buf_str(&peer->heard), last_words));
    assert_false(peer->drained);
}

static void drained_comes_on_a_later_turn_when_the_peer_has_taken_all(void **state)
{
    struct peer *peer = *state;
    size_t most = 8 << 20, got = 0;
    char piece[65536] = {0};

    for (size_t n = 0; n < most; n += sizeof piece)
        buf_add(conn_out(peer->conn), piece, sizeof piece);
    conn_flush(peer->conn);
    assert_true(conn_unsent(peer->conn) > 0);
    uv_run(&peer->loop, UV_RUN_NOWAIT);
    assert_false(peer->drained);
    while (got < most) {
        ssize_t n = recv(peer->fd, piece, sizeof piece, MSG_DONTWAIT);

        got += n > 0 ? (size_t)n : 0;
        uv_run(&peer->loop, UV_RUN_NOWAIT);
    }
    run_until(peer, &peer->drained);
    assert_int_equal(conn_unsent(peer->conn), 0);
    assert_null(conn_out(peer->conn)->p); /* an idle one holds no buffer */
    peer->drained = false;
    buf_text(conn_out(peer->conn), "a little");
    conn_flush(peer->conn);
    assert_false(peer->drained); /* never from inside a call */
    run_until(peer, &peer->drained);
}

static void who_is_paused_loses_nothing(void **state)
{
    struct peer *peer = *state;

    conn_pause(peer->conn, true);
    assert_int_equal(send(peer->fd, "late", 4, 0), 4);
    for (int i = 0; i < 20; i++)
        uv_run(&peer->loop, UV_RUN_NOWAIT);
    assert_int_equal(peer->heard.n, 0);
    close(peer->fd);
    peer->fd = -1;
    conn_pause(peer->conn, false);
    run_until(peer, &peer->broken);
    assert_true(str_is(buf_str(&peer->heard), "late"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, peer_open, peer_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_a_peer_said_before_it_reset_is_read_though_writing_fails),
        TEST(drained_comes_on_a_later_turn_when_the_peer_has_taken_all),
        TEST(who_is_paused_loses_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
