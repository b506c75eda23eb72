/* The adapter library's publisher against a broker that does what a real one does rarely, on a libuv loop. */
#include "amqp_fake.h"

#include "gateway-adapter/adapter_spool.h"
#include "gateway-adapter/adapter_text.h"
#include "gateway-adapter/roomd_adapter_uv.h"

#include <fcntl.h>
#include <unistd.h>

#define ROOM_A "s07.01KC46E0D7X8BQXSRB29FJP960"
#define ROOM_B "s03.01KC46E0D7X8BQXSRB29FJP961"

struct site {
    struct fake *fake;
    struct roomd_client *client;
    struct roomd_uv glue;
    bool glued;
    char spool[64];
    int settled;
    enum roomd_code settled_code;
};

static void on_spool_settled(void *arg, const char *message_id, enum roomd_code code)
{
    struct site *site = arg;

    assert_int_equal(strlen(message_id), 26);
    site->settled++;
    site->settled_code = code;
}

static int site_setup(void **state)
{
    static int number;
    struct site *site = xcalloc(1, sizeof(*site));

    site->fake = fake_new();
    site->fake->publish_channel = 1;
    signal(SIGPIPE, SIG_DFL); /* a guest cannot ask its host to ignore it */
    snprintf(site->spool, sizeof(site->spool), "/tmp/test_adapter.%d.%d", getpid(), number++);
    *state = site;
    return 0;
}

static void on_glue_closed(struct roomd_uv *glue)
{
    container_of(glue, struct site, glue)->glued = false;
}

static void site_stop(struct site *site)
{
    if (!site->client)
        return;
    roomd_uv_stop(&site->glue, on_glue_closed);
    until(site->fake->world, !site->glued);
    roomd_client_close(site->client);
    site->client = NULL;
}

static int site_teardown(void **state)
{
    struct site *site = *state;

    site_stop(site);
    fake_free(site->fake);
    unlink(site->spool);
    free(site);
    return 0;
}

static void site_start(struct site *site, struct roomd_settings settings)
{
    const char *why;

    settings.broker_urls = settings.broker_urls ? settings.broker_urls : site->fake->url;
    settings.spool_settled = on_spool_settled;
    settings.arg = site;
    assert_int_equal(roomd_client_open(&site->client, &settings, &why), ROOMD_OK);
    assert_int_equal(roomd_uv_start(&site->glue, &site->fake->world->loop, site->client), 0);
    site->glued = true;
}

static void send_as(struct site *site, struct roomd_send *send, const char *room, const char *id)
{
    roomd_send(site->client, send,
        &(struct roomd_message){.room_id = room, .sender = "alice", .text = "hello", .client_msg_id = id});
}

static bool published_is(struct site *site, int number, const char *id)
{
    char expected[80];

    snprintf(expected, sizeof(expected), "\"client_msg_id\":\"%s\"", id);
    return site->fake->published > number && strstr(site->fake->publishes[number].body, expected);
}

#define until_finished(site, send, expected)         \
    do {                                             \
        until((site)->fake->world, (send).finished); \
        assert_int_equal((send).code, expected);     \
    } while (0)

/* --- confirms, returns, refusals --- */

static void a_confirmed_message_is_ok_and_has_the_id_the_owner_computes(void **state)
{
    struct site *site = *state;
    struct roomd_send one = {0};

    site_start(site, (struct roomd_settings){0});
    send_as(site, &one, ROOM_A, "first");
    assert_string_equal(one.message_id, "7ARB17YVYZCJ3FJ416SZPB1BE0");
    until(site->fake->world, site->fake->published == 1);
    assert_false(one.finished);
    assert_true(site->fake->publishes[0].mandatory);
    assert_string_equal(site->fake->publishes[0].exchange, "roomd.room");
    assert_string_equal(site->fake->publishes[0].routing_key, "s07");
    assert_string_equal(site->fake->publishes[0].body,
        "{\"room_id\":\"" ROOM_A
        "\",\"sender\":\"alice\",\"kind\":\"text\",\"client_msg_id\":\"first\",\"content\":\"hello\"}");
    fake_confirm(site->fake, 1, false, true);
    until_finished(site, one, ROOMD_OK);
    assert_int_equal(roomd_client_counters(site->client).pending, 0);
    assert_int_equal(roomd_client_counters(site->client).pending_bytes, 0);
}

static void confirms_out_of_order_and_multiple_find_their_messages(void **state)
{
    struct site *site = *state;
    struct roomd_send sends[4] = {{0}};

    site_start(site, (struct roomd_settings){0});
    for (size_t i = 0; i < 4; i++)
        send_as(site, &sends[i], ROOM_A, NULL);
    until(site->fake->world, site->fake->published == 4);
    fake_confirm(site->fake, 3, false, true);
    until_finished(site, sends[2], ROOMD_OK);
    assert_false(sends[0].finished);
    fake_confirm(site->fake, 99, false, true); /* nobody's */
    fake_confirm(site->fake, 4, true, true);
    until_finished(site, sends[3], ROOMD_OK);
    assert_true(sends[0].finished && sends[1].finished);
}

static void a_returned_message_has_no_room_though_it_is_confirmed(void **state)
{
    struct site *site = *state;
    struct roomd_send sends[2] = {{0}};

    site_start(site, (struct roomd_settings){0});
    send_as(site, &sends[0], ROOM_A, NULL);
    send_as(site, &sends[1], ROOM_B, NULL);
    until(site->fake->world, site->fake->published == 2);
    fake_method(site->fake, 1, AMQP_BASIC_RETURN_METHOD, &(amqp_basic_return_t){.reply_code = 312});
    char header[] = "\0\x3c\0\0\0\0\0\0\0\0\0\2\x94\x80\x10"
                    "application/json\2\x10"
                    "0000000000000002"
                    "\2id";
    fake_frame(site->fake, CODEC_HEADER, 1, header, sizeof(header) - 1, 0);
    fake_frame(site->fake, CODEC_BODY, 1, "xy", 2, 0);
    fake_confirm(site->fake, 2, true, true);
    until_finished(site, sends[1], ROOMD_NO_SUCH_ROOM);
    until_finished(site, sends[0], ROOMD_OK);
}

static void a_refused_message_holds_its_room_and_no_other(void **state)
{
    struct site *site = *state;
    struct roomd_send a1 = {0}, a2 = {0}, a3 = {0}, b1 = {0};

    site_start(site, (struct roomd_settings){0});
    send_as(site, &a1, ROOM_A, "a1");
    until(site->fake->world, site->fake->published == 1);
    fake_confirm(site->fake, 1, false, false);
    until(site->fake->world, roomd_client_counters(site->client).nacked_total == 1);
    send_as(site, &a2, ROOM_A, "a2");
    send_as(site, &a3, ROOM_A, "a3");
    send_as(site, &b1, ROOM_B, "b1");
    until(site->fake->world, site->fake->published == 3);
    assert_true(published_is(site, 1, "b1") || published_is(site, 2, "b1"));
    assert_true(published_is(site, 1, "a1") || published_is(site, 2, "a1"));
    fake_confirm(site->fake, 3, true, false); /* a1 again, and b1 */
    until(site->fake->world, site->fake->published == 5);
    fake_confirm(site->fake, 5, true, true);
    until_finished(site, a1, ROOMD_OK);
    until(site->fake->world, site->fake->published == 7);
    assert_true(published_is(site, 5, "a2") && published_is(site, 6, "a3"));
    fake_confirm(site->fake, 7, true, true);
    until_finished(site, a3, ROOMD_OK);
    assert_true(a2.finished && b1.finished);
}

static void two_refused_messages_of_a_room_come_back_one_by_one(void **state)
{
    struct site *site = *state;
    struct roomd_send one = {0}, two = {0};

    site_start(site, (struct roomd_settings){0});
    send_as(site, &one, ROOM_A, "one");
    send_as(site, &two, ROOM_A, "two");
    until(site->fake->world, site->fake->published == 2);
    fake_confirm(site->fake, 2, false, false);
    fake_confirm(site->fake, 1, false, false);
    until(site->fake->world, site->fake->published == 3);
    assert_true(published_is(site, 2, "one"));
    fake_confirm(site->fake, 3, false, true);
    until_finished(site, one, ROOMD_OK);
    until(site->fake->world, site->fake->published == 4);
    assert_true(published_is(site, 3, "two"));
    fake_confirm(site->fake, 4, false, true);
    until_finished(site, two, ROOMD_OK);
}

static void after_a_lost_connection_the_same_messages_leave_again_in_order(void **state)
{
    struct site *site = *state;
    struct roomd_send sends[3] = {{0}};
    char id[16];

    site_start(site, (struct roomd_settings){0});
    for (int i = 0; i < 3; i++) {
        snprintf(id, sizeof(id), "m%d", i);
        send_as(site, &sends[i], ROOM_A, id);
    }
    until(site->fake->world, site->fake->published == 3);
    fake_confirm(site->fake, 1, false, true);
    until_finished(site, sends[0], ROOMD_OK);
    fake_hang_up(site->fake);
    until(site->fake->world, site->fake->published == 5);
    assert_true(published_is(site, 3, "m1") && published_is(site, 4, "m2"));
    fake_confirm(site->fake, 2, true, true);
    until_finished(site, sends[2], ROOMD_OK);
    assert_int_equal(roomd_client_counters(site->client).resent_total, 2);
}

static void a_user_that_may_not_write_is_told_so(void **state)
{
    struct site *site = *state;
    struct roomd_send one = {0};

    site_start(site, (struct roomd_settings){0});
    send_as(site, &one, ROOM_A, NULL);
    until(site->fake->world, site->fake->published == 1);
    fake_close_channel(site->fake, 1, 403, "ACCESS_REFUSED");
    until_finished(site, one, ROOMD_FORBIDDEN);
}

/* --- deadlines and bounds --- */

static void a_blocked_broker_is_unavailable_at_the_deadline(void **state)
{
    struct site *site = *state;
    struct roomd_send sent = {.deadline_ms = 1500}, waits = {.deadline_ms = 200}, after = {0};

    site_start(site, (struct roomd_settings){0});
    send_as(site, &sent, ROOM_A, NULL);
    until(site->fake->world, site->fake->published == 1);
    fake_blocked(site->fake, true);
    until(site->fake->world, roomd_client_counters(site->client).broker_blocked);
    send_as(site, &waits, ROOM_A, NULL);
    until_finished(site, waits, ROOMD_UNAVAILABLE);
    until_finished(site, sent, ROOMD_TIMEOUT);
    assert_int_equal(site->fake->published, 1);
    send_as(site, &after, ROOM_A, NULL);
    fake_blocked(site->fake, false);
    until(site->fake->world, site->fake->published == 2);
    fake_confirm(site->fake, 2, false, true);
    until_finished(site, after, ROOMD_OK);
}

static void no_broker_is_unavailable_at_the_deadline(void **state)
{
    struct site *site = *state;
    struct roomd_send one = {.deadline_ms = 150};

    site_start(site, (struct roomd_settings){.broker_urls = "amqp://127.0.0.1:1,amqp://[::1]:1"});
    send_as(site, &one, ROOM_A, NULL);
    until_finished(site, one, ROOMD_UNAVAILABLE);
    until(site->fake->world, strstr(roomd_client_broker_problem(site->client), "refused"));
}

static void what_is_above_the_bounds_is_unavailable_at_once(void **state)
{
    struct site *site = *state;
    struct roomd_send sends[3] = {{0}};

    site_start(site, (struct roomd_settings){.pending_max = 2});
    for (size_t i = 0; i < 3; i++)
        send_as(site, &sends[i], ROOM_A, NULL);
    until_finished(site, sends[2], ROOMD_UNAVAILABLE);
    assert_false(sends[0].finished || sends[1].finished);
    site_stop(site);
}

static void a_message_that_no_owner_would_take_is_refused_here(void **state)
{
    struct site *site = *state;
    struct roomd_message good = {.room_id = ROOM_A, .sender = "alice", .text = "x"}, bad;
    struct roomd_send one = {0};

    site_start(site, (struct roomd_settings){.content_max_bytes = 100});
#define REFUSED(change, expected, name)     \
    bad = good;                             \
    bad.change;                             \
    roomd_send(site->client, &one, &bad);   \
    until(site->fake->world, one.finished); \
    assert_int_equal(one.code, expected);   \
    assert_string_equal(one.field, name)
    REFUSED(room_id = "nonsense", ROOMD_NO_SUCH_ROOM, "room_id");
    REFUSED(sender = "@all", ROOMD_BAD_REQUEST, "sender");
    REFUSED(sender = "a\nb", ROOMD_BAD_REQUEST, "sender");
    REFUSED(kind = "no spaces", ROOMD_BAD_REQUEST, "kind");
    REFUSED(text = "\xff", ROOMD_BAD_REQUEST, "content");
    REFUSED(content = "{}", ROOMD_BAD_REQUEST, "content");
    REFUSED(client_msg_id = "", ROOMD_BAD_REQUEST, "client_msg_id");
    bad = good;
    bad.text = NULL;
    bad.kind = "custom/x";
    bad.content = "{\"a\":1,}";
    roomd_send(site->client, &one, &bad);
    until_finished(site, one, ROOMD_BAD_REQUEST);
    bad.content = "\"0123456789012345678901234567890123456789012345678901234567890123456789"
                  "012345678901234567890123456789\"";
    roomd_send(site->client, &one, &bad);
    until_finished(site, one, ROOMD_TOO_LARGE);
    assert_int_equal(site->fake->published, 0);
}

static void closing_answers_what_is_under_way(void **state)
{
    struct site *site = *state;
    struct roomd_send one = {0};

    site_start(site, (struct roomd_settings){0});
    send_as(site, &one, ROOM_A, NULL);
    until(site->fake->world, site->fake->published == 1);
    site_stop(site);
    assert_true(one.finished);
    assert_int_equal(one.code, ROOMD_CLOSED);
}

/* --- several brokers --- */

static void the_first_broker_is_returned_to_when_it_is_back(void **state)
{
    struct site *site = *state;
    struct fake *second = site->fake, *first = fake_new();
    struct roomd_send one = {0}, two = {0};
    struct sockaddr_in address;
    char urls[200];
    int n = sizeof(address);

    first->publish_channel = 1;
    uv_tcp_getsockname(&first->listener, (struct sockaddr *)&address, &n);
    snprintf(urls, sizeof(urls), "%s,%s", first->url, second->url);
    fake_free(first); /* away */
    site_start(site, (struct roomd_settings){.broker_urls = urls});
    send_as(site, &one, ROOM_A, "one");
    until(second->world, second->published == 1);
    fake_confirm(second, 1, false, true);
    until_finished(site, one, ROOMD_OK);
    assert_int_equal(roomd_client_counters(site->client).broker, 1);

    first = xcalloc(1, sizeof(*first)); /* back, on the same port and on the loop of the second */
    first->world = second->world;
    first->frame_max = 131072;
    first->publish_channel = 1;
    init_amqp_pool(&first->pool, 4096);
    uv_tcp_init(&second->world->loop, &first->listener);
    assert_int_equal(uv_tcp_bind(&first->listener, (struct sockaddr *)&address, 0), 0);
    assert_int_equal(uv_listen((uv_stream_t *)&first->listener, 16, fake_accept), 0);
    until(second->world, roomd_client_counters(site->client).broker_up && first->connections &&
                             roomd_client_counters(site->client).broker == 0);
    send_as(site, &two, ROOM_A, "two");
    until(second->world, first->published == 1);
    fake_confirm(first, 1, false, true);
    until_finished(site, two, ROOMD_OK);
    assert_int_equal(second->published, 1);
    site_stop(site);
    fake_hang_up(first);
    uv_close((uv_handle_t *)&first->listener, NULL);
    uv_run(&second->world->loop, UV_RUN_NOWAIT);
    uv_run(&second->world->loop, UV_RUN_NOWAIT);
    empty_amqp_pool(&first->pool);
    free(first);
}

static void over_tls_nothing_is_said_to_a_peer_that_is_not_the_right_one(void **state)
{
    struct site *site = *state;
    char path[] = "/tmp/test_adapter_XXXXXX", url[64];
    struct roomd_send one = {.deadline_ms = 300}, two = {.deadline_ms = 300}, three = {0};

    close(mkstemp(path));
    snprintf(url, sizeof(url), "amqps://localhost:%s", strrchr(site->fake->url, ':') + 1);
    fake_use_tls(site->fake, "another.example", path); /* a good certificate, of someone else */
    site_start(site, (struct roomd_settings){.broker_urls = url, .ca_file = path});
    send_as(site, &one, ROOM_A, "one");
    until_finished(site, one, ROOMD_UNAVAILABLE);
    until(site->fake->world, strstr(roomd_client_broker_problem(site->client), "certificate"));
    site_stop(site);

    fake_use_tls(site->fake, "localhost", path);
    site_start(site, (struct roomd_settings){.broker_urls = url}); /* unknown to the system */
    send_as(site, &two, ROOM_A, "two");
    until_finished(site, two, ROOMD_UNAVAILABLE);
    until(site->fake->world, strstr(roomd_client_broker_problem(site->client), "certificate"));
    site_stop(site);
    assert_string_equal(site->fake->user, "");

    site_start(site, (struct roomd_settings){.broker_urls = url, .ca_file = path});
    send_as(site, &three, ROOM_A, "three");
    until(site->fake->world, site->fake->published == 1);
    assert_true(published_is(site, 0, "three"));
    fake_confirm(site->fake, 1, false, true);
    until_finished(site, three, ROOMD_OK);
    unlink(path);
}

/* --- the spool --- */

static void without_a_broker_a_message_is_spooled_and_a_later_client_sends_it(void **state)
{
    struct site *site = *state;
    struct roomd_send sends[3] = {{0}}, later = {0};
    char id[16];

    site_start(site,
        (struct roomd_settings){.broker_urls = "amqp://127.0.0.1:1", .spool_file = site->spool, .spool_after_ms = 50});
    for (int i = 0; i < 3; i++) {
        snprintf(id, sizeof(id), "m%d", i);
        send_as(site, &sends[i], ROOM_A, id);
        until_finished(site, sends[i], ROOMD_SPOOLED);
    }
    site_stop(site);

    site_start(site, (struct roomd_settings){.spool_file = site->spool});
    send_as(site, &later, ROOM_A, "later");
    until(site->fake->world, site->fake->published == 3);
    assert_true(published_is(site, 0, "m0") && published_is(site, 1, "m1") && published_is(site, 2, "m2"));
    fake_confirm(site->fake, 2, false, true); /* out of order: the file is settled in its own */
    fake_confirm(site->fake, 1, false, true);
    until(site->fake->world, site->settled == 2);
    assert_int_equal(site->fake->published, 3); /* its room is held until all of the room is out of the spool */
    fake_confirm(site->fake, 3, false, true);
    until(site->fake->world, site->fake->published == 4);
    assert_true(published_is(site, 3, "later"));
    fake_confirm(site->fake, 4, false, true);
    until_finished(site, later, ROOMD_OK);
    assert_int_equal(site->settled, 3);
    assert_int_equal(site->settled_code, ROOMD_OK);
    assert_int_equal(roomd_client_counters(site->client).spool_bytes, 0);
}

static void a_message_in_flight_at_its_deadline_is_spooled_and_sent_again(void **state)
{
    struct site *site = *state;
    struct roomd_send one = {.deadline_ms = 1500};

    site_start(site, (struct roomd_settings){.spool_file = site->spool});
    send_as(site, &one, ROOM_A, "one");
    until(site->fake->world, site->fake->published == 1);
    until_finished(site, one, ROOMD_SPOOLED);
    until(site->fake->world, site->fake->published == 2);
    assert_string_equal(site->fake->publishes[0].body, site->fake->publishes[1].body);
    fake_confirm(site->fake, 2, true, true);
    until(site->fake->world, site->settled == 1);
}

static void a_full_spool_is_no_success(void **state)
{
    struct site *site = *state;
    struct roomd_send sends[5] = {{0}};
    int spooled = 0;

    site_start(site, (struct roomd_settings){.broker_urls = "amqp://127.0.0.1:1",
                         .spool_file = site->spool,
                         .spool_after_ms = 50,
                         .spool_max_bytes = 500,
                         .send_ms = 400});
    for (size_t i = 0; i < 5; i++)
        send_as(site, &sends[i], ROOM_A, NULL);
    for (size_t i = 0; i < 5; i++) {
        until(site->fake->world, sends[i].finished);
        spooled += sends[i].code == ROOMD_SPOOLED;
        assert_int_equal(sends[i].code, i < 2 ? ROOMD_SPOOLED : ROOMD_UNAVAILABLE);
    }
    assert_int_equal(spooled, 2);
}

static void a_small_message_does_not_overtake_one_that_the_spool_has_no_room_for(void **state)
{
    struct site *site = *state;
    struct roomd_send large = {0}, small = {0};
    char text[401];

    site_start(site, (struct roomd_settings){.broker_urls = "amqp://127.0.0.1:1",
                         .spool_file = site->spool,
                         .spool_after_ms = 50,
                         .spool_max_bytes = 500,
                         .send_ms = 300});
    memset(text, 'x', 400);
    text[400] = '\0';
    roomd_send(site->client, &large, &(struct roomd_message){.room_id = ROOM_A, .sender = "alice", .text = text});
    send_as(site, &small, ROOM_A, NULL);
    until_finished(site, small, ROOMD_UNAVAILABLE);
    until_finished(site, large, ROOMD_UNAVAILABLE);
}

static void closing_puts_into_the_spool_what_is_not_confirmed(void **state)
{
    struct site *site = *state;
    struct roomd_send one = {0};

    site_start(site, (struct roomd_settings){.spool_file = site->spool});
    send_as(site, &one, ROOM_A, NULL);
    until(site->fake->world, site->fake->published == 1);
    site_stop(site);
    assert_int_equal(one.code, ROOMD_SPOOLED);
}

static void spool_fill(struct site *site, int count)
{
    struct adapter_spool spool;
    const char *why;
    char body[32];

    assert_int_equal(adapter_spool_open(&spool, site->spool, 1 << 20, &why), ROOMD_OK);
    for (int i = 0; i < count; i++) {
        snprintf(body, sizeof(body), "body %d", i);
        assert_true(adapter_spool_add(&spool, ROOM_A, "7ARB17YVYZCJ3FJ416SZPB1BE0", body, strlen(body)));
    }
    assert_true(adapter_spool_commit(&spool));
    adapter_spool_close(&spool);
}

/* The bodies that come out, as "0 1 2 ". */
static void spool_read(struct site *site, char *out, uint64_t *damaged)
{
    struct adapter_spool spool;
    struct adapter_spool_record record;
    const char *why;

    *out = '\0';
    assert_int_equal(adapter_spool_open(&spool, site->spool, 1 << 20, &why), ROOMD_OK);
    while (adapter_spool_read(&spool, &record)) {
        assert_string_equal(record.room_id, ROOM_A);
        strncat(out, record.body + 5, record.body_n - 5);
        strcat(out, " ");
    }
    *damaged = spool.damaged;
    adapter_spool_close(&spool);
}

static void a_torn_last_record_is_cut_off_and_damage_is_stepped_over(void **state)
{
    struct site *site = *state;
    uint64_t damaged;
    char out[64];
    off_t size;
    int fd;

    spool_fill(site, 4);
    spool_read(site, out, &damaged);
    assert_string_equal(out, "0 1 2 3 ");
    fd = open(site->spool, O_RDWR);
    size = lseek(fd, 0, SEEK_END);
    assert_int_equal(ftruncate(fd, size - 3), 0);
    spool_read(site, out, &damaged);
    assert_string_equal(out, "0 1 2 ");
    assert_int_equal(damaged, 0);
    assert_int_equal(pwrite(fd, "\xff", 1, 32 + (size - 32) / 4 + 20), 1); /* in the second of four */
    spool_read(site, out, &damaged);
    assert_string_equal(out, "0 2 ");
    assert_int_equal(damaged, 1);
    close(fd);
}

static void a_spool_is_open_once_and_is_no_other_file(void **state)
{
    struct site *site = *state;
    struct adapter_spool spool, again;
    const char *why;
    FILE *other;

    assert_int_equal(adapter_spool_open(&spool, site->spool, 1 << 20, &why), ROOMD_OK);
    assert_int_equal(adapter_spool_open(&again, site->spool, 1 << 20, &why), ROOMD_CONFLICT);
    adapter_spool_close(&spool);
    other = fopen(site->spool, "w");
    fputs("somebody's diary, which is longer than the head of a spool\n", other);
    fclose(other);
    assert_int_equal(adapter_spool_open(&spool, site->spool, 1 << 20, &why), ROOMD_UNAVAILABLE);
}

/* --- text --- */

static void json_is_checked_as_the_service_checks_it(void **state)
{
    static const char *const good[] = {"null", " {\"a\": [1, -0.5e+3, \"\\u00e9\\ud83d\\ude00\"]} ", "1e999", "[]"};
    static const char *const bad[] = {"", "01", "[1,]", "{\"a\"}", "\"\\u0000\"", "\"\\ud800\"", "\"\x01\"", "nul",
        "1 2", "\"\xc0\x80\"", "[[[[", "+1", "{1:2}", "\"", "\"\\x\""};
    char deep[80];

    (void)state;
    for (size_t i = 0; i < countof(good); i++)
        assert_true(adapter_json_valid(good[i], strlen(good[i]), 31));
    for (size_t i = 0; i < countof(bad); i++)
        if (adapter_json_valid(bad[i], strlen(bad[i]), 31))
            fail_msg("taken: %s", bad[i]);
    memset(deep, '[', 32);
    memset(deep + 32, ']', 32);
    assert_true(adapter_json_valid(deep + 1, 62, 31));
    assert_false(adapter_json_valid(deep, 64, 31));
}

static void a_string_comes_back_as_it_was(void **state)
{
    struct adapter_arena arena = {0};
    struct adapter_buf out = {0};
    const char *text = "quote \" slash \\ line \n \x7f \xe4\xbd\xa0\xf0\x9f\x98\x80";
    const char *escaped = "\"\\ud83d\\ude00\\u00e9\\b\\/\"";

    (void)state;
    adapter_json_string(&out, text, strlen(text));
    assert_true(adapter_json_valid(out.p, out.n, 1));
    assert_string_equal(adapter_json_text(&arena, (struct roomd_text){out.p, out.n}), text);
    assert_string_equal(
        adapter_json_text(&arena, (struct roomd_text){escaped, strlen(escaped)}), "\xf0\x9f\x98\x80\xc3\xa9\b/");
    adapter_buf_clear(&out);
    adapter_arena_clear(&arena);
}

static void settings_that_make_no_sense_are_refused_with_a_sentence(void **state)
{
    static const struct roomd_settings bad[] = {{.broker_urls = "http://x"}, {.broker_urls = "amqp://u:p@h:99999"},
        {.broker_urls = "amqp://h/a/b"}, {.broker_urls = "amqp://%zz@h"}, {.broker_urls = "amqp://a,"},
        {.instance_urls = "ftp://h", .service_key = "k"}, {.instance_urls = "http://h"},
        {.instance_urls = "http://h", .service_key = "a\r\nb"}, {.spool_file = "/tmp/x"}, {.send_ms = -1},
        {.broker_urls = "amqp://h", .ca_file = "/nowhere"}};
    struct roomd_client *client;
    const char *why;

    (void)state;
    for (size_t i = 0; i < countof(bad); i++) {
        why = NULL;
        assert_int_equal(roomd_client_open(&client, &bad[i], &why), ROOMD_BAD_REQUEST);
        assert_non_null(why);
    }
    assert_int_equal(
        roomd_client_open(&client, &(struct roomd_settings){.broker_urls = "amqps://u:p%40@[::1]:5/%2fx"}, &why),
        ROOMD_OK);
    roomd_client_close(client);
}

#define WITH_SITE(test) cmocka_unit_test_setup_teardown(test, site_setup, site_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_SITE(a_confirmed_message_is_ok_and_has_the_id_the_owner_computes),
        WITH_SITE(confirms_out_of_order_and_multiple_find_their_messages),
        WITH_SITE(a_returned_message_has_no_room_though_it_is_confirmed),
        WITH_SITE(a_refused_message_holds_its_room_and_no_other),
        WITH_SITE(two_refused_messages_of_a_room_come_back_one_by_one),
        WITH_SITE(after_a_lost_connection_the_same_messages_leave_again_in_order),
        WITH_SITE(a_user_that_may_not_write_is_told_so),
        WITH_SITE(a_blocked_broker_is_unavailable_at_the_deadline),
        WITH_SITE(no_broker_is_unavailable_at_the_deadline),
        WITH_SITE(what_is_above_the_bounds_is_unavailable_at_once),
        WITH_SITE(a_message_that_no_owner_would_take_is_refused_here),
        WITH_SITE(closing_answers_what_is_under_way),
        WITH_SITE(the_first_broker_is_returned_to_when_it_is_back),
        WITH_SITE(over_tls_nothing_is_said_to_a_peer_that_is_not_the_right_one),
        WITH_SITE(without_a_broker_a_message_is_spooled_and_a_later_client_sends_it),
        WITH_SITE(a_message_in_flight_at_its_deadline_is_spooled_and_sent_again),
        WITH_SITE(a_full_spool_is_no_success),
        WITH_SITE(a_small_message_does_not_overtake_one_that_the_spool_has_no_room_for),
        WITH_SITE(closing_puts_into_the_spool_what_is_not_confirmed),
        WITH_SITE(a_torn_last_record_is_cut_off_and_damage_is_stepped_over),
        WITH_SITE(a_spool_is_open_once_and_is_no_other_file),
        cmocka_unit_test(json_is_checked_as_the_service_checks_it),
        cmocka_unit_test(a_string_comes_back_as_it_was),
        cmocka_unit_test(settings_that_make_no_sense_are_refused_with_a_sentence),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
