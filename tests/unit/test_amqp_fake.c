/* AMQP links against a broker that does what a real one does rarely or never. */
#include "amqp_fake.h"

#include <openssl/pem.h>
#include <unistd.h>

static int fake_setup(void **state)
{
    *state = fake_new();
    return 0;
}

static int fake_teardown(void **state)
{
    fake_free(*state);
    return 0;
}

/* --- publishing --- */

static void confirms_out_of_order_and_multiple_find_their_publishes(void **state)
{
    struct fake *fake = *state;
    struct sent sent[6] = {0};

    fake_connect(fake);
    for (size_t i = 0; i < countof(sent); i++)
        send_text(fake->world, &sent[i], "x", "k", "hello");
    until(fake->world, fake->published == 6);
    assert_string_equal(fake->publishes[0].body, "hello");
    assert_true(fake->publishes[0].mandatory);
    fake_confirm(fake, 3, false, true);
    fake_confirm(fake, 2, false, false);
    fake_confirm(fake, 5, true, true);
    fake_confirm(fake, 99, false, true); /* nobody's */
    fake_confirm(fake, 6, false, true);
    until(fake->world, sent[5].calls);
    for (size_t i = 0; i < countof(sent); i++) {
        assert_int_equal(sent[i].calls, 1);
        assert_int_equal(sent[i].err, i == 1 ? ERR_UNAVAILABLE : ERR_OK);
    }
    assert_true(sent[2].order < sent[1].order && sent[1].order < sent[0].order);
    assert_true(sent[0].order < sent[3].order && sent[3].order < sent[4].order);
    struct amqp_counters counters = amqp_link_counters(fake->world->link);
    assert_int_equal(counters.confirmed_total, 5);
    assert_int_equal(counters.nacked_total, 1);
    assert_int_equal(counters.pending, 0);
    assert_int_equal(counters.pending_bytes, 0);
    assert_true(amqp_link_up(fake->world->link));
}

static void a_return_before_the_ack_makes_a_publish_unroutable(void **state)
{
    struct fake *fake = *state;
    struct sent sent[3] = {0};

    fake_connect(fake);
    for (size_t i = 0; i < countof(sent); i++)
        send_text(fake->world, &sent[i], "x", "k", "same id, same body");
    until(fake->world, fake->published == 3);
    fake_return(fake, fake->publishes[1].correlation);
    fake_return(fake, "not one of ours!");
    fake_return(fake, "");
    fake_confirm(fake, 3, true, true);
    until(fake->world, sent[2].calls);
    assert_int_equal(sent[0].err, ERR_OK);
    assert_int_equal(sent[1].err, ERR_UNROUTABLE);
    assert_int_equal(sent[2].err, ERR_OK);
}

static void a_channel_closed_for_one_exchange_ends_only_its_publishes(void **state)
{
    struct fake *fake = *state;
    struct sent sent[4] = {0};
    static const char *const exchanges[] = {"good", "bad", "good", "good"};

    fake_connect(fake);
    for (size_t i = 0; i < countof(sent); i++)
        send_text(fake->world, &sent[i], exchanges[i], "k", "hello");
    until(fake->world, fake->published == 4);
    fake_confirm(fake, 1, false, true);
    fake_close_channel(fake, 2, 404, "NOT_FOUND - no exchange 'bad' in vhost '/'");
    until(fake->world, fake->published == 6 && sent[1].calls);
    assert_int_equal(sent[1].err, ERR_UNROUTABLE);
    assert_int_equal(fake->close_oks, 1);
    assert_int_equal(fake->opened[2], 2);
    fake_confirm(fake, 2, true, true); /* tags begin again with the channel */
    until(fake->world, sent[3].calls);
    assert_int_equal(sent[0].err, ERR_OK);
    assert_int_equal(sent[2].err, ERR_OK);
    assert_int_equal(sent[3].err, ERR_OK);
    assert_int_equal(fake->connections, 1);
}

static void a_channel_closed_without_a_culprit_ends_all_its_publishes(void **state)
{
    struct fake *fake = *state;
    struct sent sent[3] = {0};

    fake_connect(fake);
    send_text(fake->world, &sent[0], "x", "k", "hello");
    send_text(fake->world, &sent[1], "x", "k", "hello");
    until(fake->world, fake->published == 2);
    fake_close_channel(fake, 2, 406, "PRECONDITION_FAILED - message is strange");
    until(fake->world, sent[0].calls && sent[1].calls);
    assert_int_equal(sent[0].err, ERR_LOST);
    assert_int_equal(sent[1].err, ERR_LOST);
    send_text(fake->world, &sent[2], "x", "k", "hello");
    until(fake->world, fake->published == 3);
    fake_confirm(fake, 1, false, true);
    until(fake->world, sent[2].calls);
    assert_int_equal(sent[2].err, ERR_OK);
}

static void publishes_without_a_confirm_are_sent_again_in_order(void **state)
{
    struct fake *fake = *state;
    struct sent sent[20] = {0};

    fake_connect(fake);
    for (size_t i = 0; i < 10; i++)
        send_text(fake->world, &sent[i], "x", "k", (char[]){(char)('a' + i), '\0'});
    until(fake->world, fake->published == 10);
    fake_confirm(fake, 2, false, true);
    until(fake->world, sent[1].calls);
    fake_hang_up(fake);
    until(fake->world, fake->world->downs == 1);
    for (size_t i = 10; i < 20; i++) /* away for less than a second: accepted */
        send_text(fake->world, &sent[i], "x", "k", (char[]){(char)('a' + i), '\0'});
    until(fake->world, fake->published == 29);
    for (size_t i = 0, at = 10; i < 20; i++) {
        if (i != 1)
            assert_int_equal(fake->publishes[at++].body[0], 'a' + i);
    }
    fake_confirm(fake, 19, true, true);
    until(fake->world, sent[19].calls);
    for (size_t i = 0; i < countof(sent); i++) {
        assert_int_equal(sent[i].calls, 1);
        assert_int_equal(sent[i].err, ERR_OK);
    }
    assert_int_equal(amqp_link_counters(fake->world->link).reconnects_total, 1);
}

static void a_publish_ends_at_its_deadline(void **state)
{
    struct fake *fake = *state;
    struct amqp_settings settings = world_settings(fake->world, fake->url);
    struct sent sent[4] = {0};

    settings.publish_timeout_ms = 400;
    fake_connect_with(fake, &settings);
    until(fake->world, amqp_link_up(fake->world->link));
    send_text(fake->world, &sent[0], "x", "k", "never confirmed");
    until(fake->world, sent[0].calls);
    assert_int_equal(sent[0].err, ERR_TIMEOUT);
    fake_confirm(fake, 1, false, true); /* too late, and nobody's */

    fake->mute_login = true;
    send_text(fake->world, &sent[1], "x", "k", "sent, then the link breaks");
    until(fake->world, fake->published == 2);
    fake_hang_up(fake);
    until(fake->world, fake->world->downs == 1);
    send_text(fake->world, &sent[2], "x", "k", "never sent");
    until(fake->world, sent[1].calls && sent[2].calls);
    assert_int_equal(sent[1].err, ERR_LOST);
    assert_int_equal(sent[2].err, ERR_UNAVAILABLE);
    assert_int_equal(fake->published, 2);
}

static void a_link_that_is_away_refuses_at_once(void **state)
{
    struct fake *fake = *state;
    struct amqp_settings settings = world_settings(fake->world, fake->url);
    struct sent sent[2] = {0};
    uint64_t began;

    fake->mute_login = true;
    fake_connect_with(fake, &settings);
    began = uv_hrtime();
    send_text(fake->world, &sent[0], "x", "k", "the first second is grace");
    until(fake->world, uv_hrtime() - began > 1200 * 1000000ull);
    assert_int_equal(sent[0].calls, 0);
    send_text(fake->world, &sent[1], "x", "k", "hello");
    began = uv_hrtime();
    until(fake->world, sent[1].calls);
    assert_true(uv_hrtime() - began < 900 * 1000000ull); /* not another second */
    assert_int_equal(sent[1].err, ERR_UNAVAILABLE);
    assert_int_equal(sent[0].calls, 0);
    world_close_link(fake->world);
    until(fake->world, sent[0].calls);
    assert_int_equal(sent[0].err, ERR_CLOSED);
}

static void a_blocked_connection_refuses_and_keeps_what_was_sent(void **state)
{
    struct fake *fake = *state;
    struct amqp_message feed = {.exchange = STR("feed"), .body = STR("f"), .transient = true};
    struct sent sent[3] = {0};

    fake_connect(fake);
    send_text(fake->world, &sent[0], "x", "k", "hello");
    until(fake->world, fake->published == 1);
    fake_blocked(fake, true);
    until(fake->world, amqp_link_blocked(fake->world->link));
    send_text(fake->world, &sent[1], "x", "k", "hello");
    assert_false(amqp_publish_unconfirmed(fake->world->link, &feed, 1 << 20));
    until(fake->world, sent[1].calls);
    assert_int_equal(sent[1].err, ERR_UNAVAILABLE);
    assert_int_equal(sent[0].calls, 0);
    fake_blocked(fake, false);
    fake_confirm(fake, 1, false, true);
    until(fake->world, sent[0].calls && !amqp_link_blocked(fake->world->link));
    assert_int_equal(sent[0].err, ERR_OK);
    send_text(fake->world, &sent[2], "x", "k", "hello");
    until(fake->world, fake->published == 2);
    fake_confirm(fake, 2, false, true);
    until(fake->world, sent[2].calls);
    assert_int_equal(sent[2].err, ERR_OK);
}

static void what_is_pending_is_bounded_in_number_and_bytes(void **state)
{
    struct fake *fake = *state;
    struct amqp_settings settings = world_settings(fake->world, fake->url);
    struct amqp_message big = {.exchange = STR("x"), .body = {NULL, 60000}};
    struct sent sent[5] = {0};

    settings.max_pending = 3;
    settings.max_pending_bytes = 100000;
    fake_connect_with(fake, &settings);
    until(fake->world, amqp_link_up(fake->world->link));
    big.body.p = xcalloc(1, big.body.n);
    send_message(fake->world, &sent[0], &big);
    send_message(fake->world, &sent[1], &big); /* one byte too many, many times */
    send_text(fake->world, &sent[2], "x", "k", "hello");
    send_text(fake->world, &sent[3], "x", "k", "hello");
    send_text(fake->world, &sent[4], "x", "k", "the fourth");
    until(fake->world, sent[1].calls && sent[4].calls && fake->published == 3);
    assert_int_equal(sent[1].err, ERR_UNAVAILABLE);
    assert_int_equal(sent[4].err, ERR_UNAVAILABLE);
    fake_confirm(fake, 3, true, true);
    until(fake->world, sent[3].calls);
    assert_int_equal(sent[0].err, ERR_OK);
    assert_int_equal(amqp_link_counters(fake->world->link).pending_bytes, 0);
    free((void *)(uintptr_t)big.body.p);
}

static void an_unconfirmed_publish_is_a_message_and_nothing_else(void **state)
{
    struct fake *fake = *state;
    struct amqp_message feed = {.exchange = STR("feed"), .routing_key = STR("s"), .body = STR("f"), .transient = true};
    struct sent sent = {0};

    fake_connect(fake);
    assert_true(amqp_publish_unconfirmed(fake->world->link, &feed, 1 << 20));
    until(fake->world, fake->published == 1);
    assert_int_equal(fake->publishes[0].channel, 3);
    assert_false(fake->publishes[0].mandatory);
    assert_string_equal(fake->publishes[0].correlation, "");
    assert_int_equal(amqp_link_counters(fake->world->link).pending, 0);
    fake_close_channel(fake, 3, 404, "NOT_FOUND - no exchange 'feed' in vhost '/'");
    until(fake->world, fake->close_oks == 1);
    assert_true(amqp_publish_unconfirmed(fake->world->link, &feed, 1 << 20));
    send_text(fake->world, &sent, "x", "k", "hello");
    until(fake->world, fake->published == 3);
    assert_int_equal(fake->opened[3], 2);
    fake_confirm(fake, 1, false, true);
    until(fake->world, sent.calls);
    assert_int_equal(sent.err, ERR_OK);
}

/* --- the connection --- */

static void a_log_in_in_single_bytes_succeeds(void **state)
{
    struct fake *fake = *state;
    struct reader reader = {0};

    fake->one_byte = true;
    fake_connect(fake);
    assert_string_equal(fake->user, "me");
    assert_int_equal(fake->tuned.frame_max, 131072);
    assert_int_equal(fake->tuned.heartbeat, 10);
    read_queue(fake->world, &reader, "q", 10);
    until(fake->world, reader.started);
    fake_deliver(fake, 4, 1, "12 byte by byte");
    until(fake->world, reader.delivered);
    assert_int_equal(reader.last.body.n, 15);
    assert_string_equal(reader.message_id, "m1");
    assert_string_equal(reader.routing_key, "key");
    buf_clear(&reader.body);
}

static void a_silent_broker_is_left_after_two_heartbeats(void **state)
{
    struct fake *fake = *state;
    struct amqp_settings settings = world_settings(fake->world, fake->url);
    uint64_t began, took_ms;

    settings.heartbeat_ms = 1000;
    fake_connect_with(fake, &settings);
    until(fake->world, amqp_link_up(fake->world->link));
    began = uv_hrtime();
    until(fake->world, fake->world->downs == 1);
    took_ms = (uv_hrtime() - began) / 1000000;
    assert_in_range(took_ms, 1900, 4500); /* 2100, where this process gets its time */
    assert_in_range(fake->heartbeats, 1, took_ms / 500);
    until(fake->world, fake->world->ups == 2);
}

static void a_pause_keeps_deliveries_back_and_is_no_silence(void **state)
{
    struct fake *fake = *state;
    struct amqp_settings settings = world_settings(fake->world, fake->url);
    struct reader reader = {0};
    uint64_t began;

    settings.heartbeat_ms = 1000;
    fake_connect_with(fake, &settings);
    until(fake->world, amqp_link_up(fake->world->link));
    read_queue(fake->world, &reader, "q", 10);
    until(fake->world, reader.started);
    amqp_link_pause(fake->world->link, true);
    fake_deliver(fake, 4, 1, "1");
    began = uv_hrtime();
    until(fake->world, uv_hrtime() - began > 2500 * 1000000ull);
    until(fake->world, fake->heartbeats >= 3);
    assert_int_equal(reader.delivered, 0);
    assert_int_equal(fake->world->downs, 0);
    amqp_ack(reader.consumer, 1, false); /* acks go on */
    until(fake->world, fake->acks == 1);
    amqp_link_pause(fake->world->link, false);
    until(fake->world, reader.delivered == 1);
    buf_clear(&reader.body);
}

static void pause_after_first(struct reader *reader)
{
    if (reader->delivered == 1)
        amqp_link_pause(reader->world->link, true);
}

static void a_pause_in_a_delivery_holds_back_the_very_next(void **state)
{
    struct fake *fake = *state;
    struct reader reader = {.then = pause_after_first};
    struct sent sent = {0};

    fake_connect(fake);
    read_queue(fake->world, &reader, "q", 10);
    until(fake->world, reader.started);
    fake_deliver(fake, 4, 1, "1");
    fake_deliver(fake, 4, 2, "2");
    until(fake->world, reader.delivered);
    send_text(fake->world, &sent, "x", "k", "publishing goes on");
    until(fake->world, fake->published == 1);
    assert_int_equal(reader.delivered, 1);
    amqp_link_pause(fake->world->link, false);
    until(fake->world, reader.delivered == 2);
    fake_confirm(fake, 1, false, true);
    until(fake->world, sent.calls);
    buf_clear(&reader.body);
}

static void a_refused_log_in_is_tried_again(void **state)
{
    struct fake *fake = *state;
    struct amqp_settings settings = world_settings(fake->world, fake->url);

    fake->refuse_login = true;
    fake_connect_with(fake, &settings);
    until(fake->world, fake->connections == 3);
    assert_int_equal(fake->world->ups + fake->world->downs, 0);
    fake->refuse_login = false;
    until(fake->world, fake->world->ups == 1);
}

static void a_broker_that_talks_nonsense_is_left(void **state)
{
    static const struct {
        const char *bytes;
        size_t n;
    } greetings[] = {
        {"AMQP\0\0\x09\1", 8}, {"HTTP/1.1 400 Bad Request\r\n\r\n", 28},
        {"\1\0\0\0\0\0\2\0\x0a\xCE", 10},                               /* undersized method */
        {"\1\0\0\0\0\0\0\xCE", 8},                                      /* none at all */
        {"\1\0\0\0\0\0\4\0\x0a\0\x0a\x00", 12},                         /* wrong end byte */
        {"\1\0\0\xff\xff\xff\xff", 7},                                  /* oversized */
        {"\1\0\0\0\0\0\4\0\x0a\0\x0a\xCE", 12},                         /* an empty start */
        {"\1\0\0\0\0\0\x0a\0\x0a\0\x0a\0\x09\xff\xff\xff\xff\xCE", 18}, /* its table ends nowhere */
        {"\1\0\0\0\0\0\x0c\0\x0a\0\x1e\0\0\0\0\0\0\0\0\xCE", 20},       /* tune first */
        {"\1\0\5\0\0\0\5\0\x14\0\x0b\0\xCE", 13},                       /* a channel's frame */
        {"\2\0\0\0\0\0\0\xCE", 8},                                      /* content on channel 0 */
        {"\1\0\0\0\0\0\4\0\x0a\0\x32\xCE", 12},                         /* a close that is too short */
    };
    struct fake *fake = *state;
    struct amqp_settings settings = world_settings(fake->world, fake->url);

    for (size_t i = 0; i < countof(greetings); i++) {
        int before = fake->connections;

        fake->greeting = greetings[i].bytes;
        fake->greeting_n = greetings[i].n;
        fake_connect_with(fake, &settings);
        until(fake->world, fake->connections == before + 2);
        assert_int_equal(fake->world->ups, 0);
        world_close_link(fake->world);
    }
    fake->greeting = NULL;
    fake->frame_max = 4095; /* 4096 is the least there may be */
    int before = fake->connections;
    fake_connect_with(fake, &settings);
    until(fake->world, fake->connections == before + 2);
    assert_int_equal(fake->world->ups, 0);
    fake->frame_max = 0; /* no limit: ours */
    until(fake->world, fake->world->ups == 1);
    assert_int_equal(fake->tuned.frame_max, 131072);
}

struct nonsense {
    int type;
    uint16_t channel;
    const char *payload;
    size_t n;
    int lie;
    bool in_delivery; /* after a deliver method that wants its header */
};

static void nonsense_on_a_channel_breaks_the_connection_and_nothing_else(void **state)
{
    static const struct nonsense cases[] = {
        {CODEC_METHOD, 4, "", 0, 0, false},
        {CODEC_METHOD, 4, "\0\x3c", 2, 0, false},
        {CODEC_METHOD, 4, "\0\x3c\0\x3c\xff", 5, 0, false},                /* deliver, cut off */
        {CODEC_METHOD, 4, "\0\x3c\0\x3c\2t", 6, 0, false},                 /* a string longer than all */
        {CODEC_METHOD, 4, "\0\x5a\0\x5a", 4, 0, false},                    /* no such method */
        {CODEC_METHOD, 4, "\0\x3c\0\x3c", 4, 200000, false},               /* frame_max */
        {CODEC_METHOD, 4, "\0\x3c\0\x3c", 4, -1, false},                   /* the end is elsewhere */
        {CODEC_METHOD, 9, "\0\x3c\0\x3c", 4, 0, false},                    /* a channel we did not open */
        {CODEC_METHOD, 3000, "\0\x3c\0\x3c", 4, 0, false},                 /* above channel_max */
        {CODEC_METHOD, 1, "\0\x32\0\x0b", 4, 0, false},                    /* topology: not open */
        {CODEC_METHOD, 2, "\0\x3c\0\x50\0\0\0\0\0\0\0\1\0", 13, 0, false}, /* publishing: not open */
        {CODEC_HEADER, 4, "\0\x3c\0\0\0\0\0\0\0\0\0\1\0\0", 14, 0, false}, /* content of nothing */
        {CODEC_BODY, 4, "x", 1, 0, false},
        {CODEC_METHOD, 4, "\0\x3c\0\x3c", 4, 0, true}, /* method instead of header */
        {CODEC_BODY, 4, "x", 1, 0, true},
        {CODEC_HEADER, 4, "\0\x3c\0\0\0\0\0\0\0\0\0", 11, 0, true},
        {CODEC_HEADER, 4, "\0\x3d\0\0\0\0\0\0\0\0\0\1\0\0", 14, 0, true}, /* another class */
        {CODEC_METHOD, 0, "\0\x0a\0\x0a", 4, 0, false},                   /* start again */
        {7, 4, "", 0, 0, false},
    };
    struct fake *fake = *state;

    fake_connect(fake);
    for (size_t i = 0; i < countof(cases); i++) {
        struct reader reader = {0};

        read_queue(fake->world, &reader, "q", 10);
        until(fake->world, reader.started);
        assert_int_equal(fake->consumer_channel, 4);
        if (cases[i].in_delivery)
            fake_deliver_method(fake, 4, 1);
        fake_frame(fake, cases[i].type, cases[i].channel, cases[i].payload, cases[i].n, cases[i].lie);
        until(fake->world, reader.lost);
        assert_int_equal(reader.err, ERR_LOST);
        assert_int_equal(reader.delivered, 0);
        until(fake->world, fake->world->ups == (int)i + 2);
        buf_clear(&reader.body);
    }
}

static void the_next_address_is_tried_when_one_refuses(void **state)
{
    struct fake *fake = *state;
    struct amqp_settings settings = world_settings(fake->world, fake->urls);
    struct sockaddr_in any;
    uv_tcp_t nobody; /* bound and not listening: refuses */
    int n = sizeof(any);
    uint64_t began = uv_hrtime();

    uv_ip4_addr("127.0.0.1", 0, &any);
    uv_tcp_init(&fake->world->loop, &nobody);
    uv_tcp_bind(&nobody, (struct sockaddr *)&any, 0);
    uv_tcp_getsockname(&nobody, (struct sockaddr *)&any, &n);
    snprintf(fake->urls, sizeof(fake->urls), "amqp://127.0.0.1:%u,amqp://no-such-host.invalid,%s", ntohs(any.sin_port),
        fake->url);
    fake_connect_with(fake, &settings);
    until(fake->world, amqp_link_up(fake->world->link));
    assert_true(uv_hrtime() - began < 20000 * 1000000ull); /* a name is looked up in between */
    uv_close((uv_handle_t *)&nobody, NULL);
    world_close_link(fake->world);
    until(fake->world, fake->goodbyes == 1);
}

static void addresses_that_cannot_be_parsed_are_refused(void **state)
{
    struct fake *fake = *state;
    struct amqp_settings settings = world_settings(fake->world, "amqp://u:p@h:port");
    struct amqp_link *link = NULL;

    log_set_level(LOG_ERROR + 1);
    assert_int_equal(amqp_link_open(&link, &fake->world->loop, &settings), ERR_BAD_REQUEST);
    settings.urls = "amqps://h";
    settings.ca_file = "/nonexistent/ca.pem";
    assert_int_equal(amqp_link_open(&link, &fake->world->loop, &settings), ERR_BAD_REQUEST);
    assert_null(link);
}

/* --- closing --- */

static void a_link_closes_without_an_answer_too(void **state)
{
    struct fake *fake = *state;
    struct sent sent[2] = {0};
    struct reader reader = {0};
    uint64_t began;

    fake->mute_goodbye = true;
    fake_connect(fake);
    read_queue(fake->world, &reader, "q", 10);
    send_text(fake->world, &sent[0], "x", "k", "hello");
    until(fake->world, reader.started && fake->published == 1);
    send_text(fake->world, &sent[1], "x", "k", "hello");
    world_close_link(fake->world);
    assert_int_equal(sent[0].calls, 0);
    began = uv_hrtime();
    until(fake->world, sent[0].calls && sent[1].calls);
    assert_int_equal(sent[0].err, ERR_CLOSED);
    assert_int_equal(sent[1].err, ERR_CLOSED);
    until(fake->world, fake->goodbyes == 1);
    assert_int_equal(fake->published, 2);
    until(fake->world, !fake->conn); /* hung up on us */
    assert_in_range((uv_hrtime() - began) / 1000000, 400, 3000);
    assert_int_equal(reader.lost + reader.closed + fake->world->downs, 0);
}

static void close_in_delivery(struct reader *reader)
{
    world_close_link(reader->world);
}

static void close_in_done(struct sent *sent)
{
    world_close_link(sent->world);
}

static void close_in_changed(struct world *world, bool up)
{
    (void)up;
    world_close_link(world);
}

static void close_when_down(struct world *world, bool up)
{
    if (!up)
        world_close_link(world);
}

static void a_link_may_be_closed_from_any_of_its_callbacks(void **state)
{
    struct fake *fake = *state;
    struct reader reader = {.then = close_in_delivery};
    struct sent sent[3] = {{.then = close_in_done}};
    struct amqp_settings settings = world_settings(fake->world, fake->url);

    fake_connect(fake);
    read_queue(fake->world, &reader, "q", 10);
    until(fake->world, reader.started);
    fake_deliver(fake, 4, 1, "1");
    fake_deliver(fake, 4, 2, "2");
    until(fake->world, fake->goodbyes == 1);
    assert_int_equal(reader.delivered, 1);
    buf_clear(&reader.body);

    fake_connect(fake);
    for (size_t i = 0; i < countof(sent); i++)
        send_text(fake->world, &sent[i], "x", "k", "hello");
    until(fake->world, fake->published == 3);
    fake_confirm(fake, 3, true, true);
    until(fake->world, fake->goodbyes == 2);
    assert_int_equal(sent[0].err, ERR_OK);
    assert_int_equal(sent[1].err, ERR_CLOSED);
    assert_int_equal(sent[2].err, ERR_CLOSED);

    fake->world->on_changed = close_in_changed;
    fake_connect_with(fake, &settings);
    until(fake->world, fake->goodbyes == 3);

    fake->world->on_changed = close_when_down;
    fake_connect(fake);
    fake_hang_up(fake);
    until(fake->world, !fake->world->link);

    /* before it was ever up */
    fake->world->on_changed = NULL;
    fake_connect_with(fake, &settings);
    send_text(fake->world, &sent[0], "x", "k", "hello");
    sent[0].then = NULL;
    world_close_link(fake->world);
    until(fake->world, sent[0].calls);
    assert_int_equal(sent[0].err, ERR_CLOSED);
}

/* --- topology --- */

static void a_refused_declaration_does_not_harm_those_behind_it(void **state)
{
    struct fake *fake = *state;
    struct amqp_queue_options options = {.durable = true};
    struct answer first = {0}, second = {0}, third = {0}, fourth = {0};

    fake_connect(fake);
    fake->mute_answers = true;
    amqp_declare_exchange(fake->world->link, "x", "direct", true, on_answer, &first);
    amqp_declare_queue(fake->world->link, "q", &options, on_answer, &second);
    amqp_inspect_queue(fake->world->link, "q", on_inspected, &third);
    until(fake->world, fake->requests == 3); /* all at once */
    fake_method(fake, 1, AMQP_EXCHANGE_DECLARE_OK_METHOD, &(amqp_exchange_declare_ok_t){0});
    fake->mute_answers = false;
    fake_close_channel(fake, 1, 406, "PRECONDITION_FAILED - inequivalent arg");
    until(fake->world, third.calls);
    assert_int_equal(first.err, ERR_OK);
    assert_int_equal(second.err, ERR_CONFLICT);
    assert_string_equal(second.text, "PRECONDITION_FAILED - inequivalent arg");
    assert_int_equal(third.err, ERR_OK);
    assert_true(third.messages == 7 && third.consumers == 3);
    amqp_bind_queue(fake->world->link, "q", "x", "k", on_answer, &fourth);
    until(fake->world, fourth.calls);
    assert_int_equal(fourth.err, ERR_OK);
    assert_int_equal(first.calls + second.calls + third.calls + fourth.calls, 4);
    assert_int_equal(fake->opened[1], 2);
}

static void declarations_are_lost_with_the_link(void **state)
{
    struct fake *fake = *state;
    struct amqp_settings settings = world_settings(fake->world, fake->url);
    struct amqp_queue_options options = {.durable = true};
    struct answer early = {0}, cut = {0}, long_name = {0}, inspected = {0};
    char name[300];

    memset(name, 'q', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    fake_connect_with(fake, &settings);
    amqp_declare_exchange(fake->world->link, "x", "direct", true, on_answer, &early);
    assert_int_equal(early.calls, 0);
    until(fake->world, early.calls);
    assert_int_equal(early.err, ERR_LOST);

    until(fake->world, amqp_link_up(fake->world->link));
    fake->mute_answers = true;
    amqp_declare_queue(fake->world->link, "q", &options, on_answer, &cut);
    amqp_declare_queue(fake->world->link, name, &options, on_answer, &long_name);
    amqp_inspect_queue(fake->world->link, name, on_inspected, &inspected);
    until(fake->world, fake->requests == 1);
    fake_hang_up(fake);
    until(fake->world, cut.calls && long_name.calls && inspected.calls);
    assert_int_equal(cut.err, ERR_LOST);
    assert_int_equal(long_name.err, ERR_BAD_REQUEST);
    assert_int_equal(inspected.err, ERR_BAD_REQUEST);
}

/* --- consuming --- */

static void bodies_in_many_frames_and_channels_come_whole(void **state)
{
    struct fake *fake = *state;
    struct reader first = {0}, second = {0};

    fake_connect(fake);
    read_queue(fake->world, &first, "q", 10);
    read_queue(fake->world, &second, "q", 10);
    until(fake->world, first.started && second.started);
    fake_deliver_method(fake, 4, 1);
    fake_deliver_method(fake, 5, 1);
    fake_header(fake, 5, 4, NULL);
    fake_header(fake, 4, 6, "first");
    fake_frame(fake, CODEC_BODY, 4, "12", 2, 0);
    fake_frame(fake, CODEC_BODY, 5, "7", 1, 0);
    fake_frame(fake, CODEC_BODY, 4, "", 0, 0);
    fake_frame(fake, CODEC_BODY, 5, "890", 3, 0);
    fake_frame(fake, CODEC_BODY, 4, "3456", 4, 0);
    fake_deliver(fake, 5, 2, "");
    until(fake->world, first.delivered == 1 && second.delivered == 2);
    assert_string_equal(first.body.p, "123456");
    assert_string_equal(first.message_id, "first");
    assert_string_equal(first.exchange, "ex");
    assert_int_equal(second.last.body.n, 0);
    amqp_ack(second.consumer, 2, true);
    until(fake->world, fake->acks == 1);
    assert_true(fake->last_ack == 2 && fake->last_ack_multiple);
    buf_clear(&first.body);
    buf_clear(&second.body);
}

static void a_huge_body_is_cut_and_says_so(void **state)
{
    struct fake *fake = *state;
    struct reader reader = {0};
    size_t n = 131064;
    char *part = xcalloc(1, n);

    fake_connect(fake);
    read_queue(fake->world, &reader, "q", 10);
    until(fake->world, reader.started);
    fake_deliver_method(fake, 4, 1);
    fake_header(fake, 4, 40 * n, "huge");
    for (int i = 0; i < 40; i++)
        fake_frame(fake, CODEC_BODY, 4, part, n, 0);
    until(fake->world, reader.delivered == 1);
    assert_int_equal(reader.last.body.n, AMQP_BODY_MAX_BYTES);
    assert_int_equal(reader.last.body_bytes, 40 * n);
    fake_deliver(fake, 4, 2, "5 small");
    until(fake->world, reader.delivered == 2);
    assert_string_equal(reader.body.p, "5 small");
    /* 2^63 bytes are announced: nothing is reserved for them */
    fake_deliver_method(fake, 4, 3);
    fake_header(fake, 4, 1ull << 63, "lie");
    fake_frame(fake, CODEC_BODY, 4, part, n, 0);
    fake_hang_up(fake);
    until(fake->world, reader.lost);
    free(part);
    buf_clear(&reader.body);
}

static void a_message_with_unreadable_properties_still_arrives(void **state)
{
    static const char bad[] = "\0\x3c\0\0\0\0\0\0\0\0\0\1\x20\x80\xff\xff\xff\xff\1";
    struct fake *fake = *state;
    struct reader reader = {0};

    fake_connect(fake);
    read_queue(fake->world, &reader, "q", 10);
    until(fake->world, reader.started);
    fake_deliver_method(fake, 4, 1);
    fake_frame(fake, CODEC_HEADER, 4, bad, sizeof(bad) - 1, 0);
    fake_frame(fake, CODEC_BODY, 4, "x", 1, 0);
    until(fake->world, reader.delivered == 1);
    assert_string_equal(reader.body.p, "x");
    assert_string_equal(reader.message_id, "");
    buf_clear(&reader.body);
}

static void a_channel_number_waits_for_close_ok(void **state)
{
    struct fake *fake = *state;
    struct reader first = {0}, second = {0};

    fake_connect(fake);
    read_queue(fake->world, &first, "q", 10);
    until(fake->world, first.started);
    assert_int_equal(fake->consumer_channel, 4);
    fake->mute_close_ok = true;
    amqp_consumer_close(first.consumer, on_closed);
    until(fake->world, fake->closed[4] == 1);
    fake_deliver(fake, 4, 9, "too late");        /* was under way */
    fake_close_channel(fake, 4, 406, "crossed"); /* and this too */
    until(fake->world, fake->close_oks == 1);
    for (int i = 5; i < 9; i++) {
        read_queue(fake->world, &second, "q", 10);
        until(fake->world, second.started == i - 4);
        assert_int_equal(fake->consumer_channel, i);
        assert_string_not_equal(fake->consumer_tag, fake->tag_before);
    }
    assert_int_equal(first.closed + first.delivered + first.lost, 0);
    fake_method(fake, 4, AMQP_CHANNEL_CLOSE_OK_METHOD, &(amqp_channel_close_ok_t){0});
    until(fake->world, first.closed == 1);
    assert_int_equal(fake->connections, 1);
    buf_clear(&first.body);
}

static void a_cancelled_consumer_is_lost_and_its_channel_closed(void **state)
{
    struct fake *fake = *state;
    struct reader reader = {0}, refused = {0};
    amqp_basic_cancel_t cancel = {.consumer_tag = amqp_cstring_bytes("t")};

    fake_connect(fake);
    read_queue(fake->world, &reader, "q", 10);
    until(fake->world, reader.started);
    fake_method(fake, 4, AMQP_BASIC_CANCEL_METHOD, &cancel);
    until(fake->world, reader.lost);
    assert_int_equal(reader.err, ERR_UNAVAILABLE);
    until(fake->world, fake->closed[4] == 1);

    read_queue(fake->world, &refused, "q", 10);
    until(fake->world, refused.started);
    fake_close_channel(fake, fake->consumer_channel, 404, "NOT_FOUND - no queue");
    until(fake->world, refused.lost && fake->close_oks == 1);
    assert_int_equal(refused.err, ERR_CONFLICT);
    assert_string_equal(refused.why, "NOT_FOUND - no queue");
    assert_int_equal(fake->connections, 1);
}

static void a_closing_consumer_is_closed_when_the_link_breaks(void **state)
{
    struct fake *fake = *state;
    struct reader on = {0}, closing = {0}, late = {0}, never = {0};

    fake_connect(fake);
    read_queue(fake->world, &on, "q", 10);
    read_queue(fake->world, &closing, "q", 10);
    until(fake->world, on.started && closing.started);
    fake->mute_close_ok = true;
    amqp_consumer_close(closing.consumer, on_closed);
    until(fake->world, fake->closed[5] == 1);
    fake_hang_up(fake);
    until(fake->world, on.lost);
    assert_int_equal(closing.closed, 1);
    assert_int_equal(closing.lost, 0);
    /* while it is away */
    read_queue(fake->world, &late, "q", 10);
    read_queue(fake->world, &never, "q", 10);
    amqp_ack(late.consumer, 1, true); /* nothing */
    amqp_consumer_close(never.consumer, on_closed);
    assert_int_equal(late.lost + never.closed, 0);
    until(fake->world, late.lost && never.closed);
    assert_int_equal(late.err, ERR_LOST);
    assert_int_equal(never.lost, 0);
}

/* --- TLS --- */

static void tls_carries_much_both_ways_and_trusts_only_the_right_peer(void **state)
{
    struct fake *fake = *state;
    char path[] = "/tmp/test_amqp_XXXXXX";
    struct amqp_settings settings = world_settings(fake->world, fake->urls);
    struct reader reader = {0};
    struct sent sent[FAKE_PUBLISHES] = {0};
    struct amqp_message big = {.exchange = STR("x"), .body = {xcalloc(1, 100000), 100000}};

    close(mkstemp(path));
    snprintf(fake->urls, sizeof(fake->urls), "amqps://localhost:%s", strrchr(fake->url, ':') + 1);
    settings.ca_file = path;

    fake_use_tls(fake, "another.example", path); /* a good certificate, of someone else */
    fake_connect_with(fake, &settings);
    until(fake->world, fake->connections >= 2);
    world_close_link(fake->world);
    fake_use_tls(fake, "localhost", path);
    settings.ca_file = ""; /* unknown to the system */
    fake_connect_with(fake, &settings);
    int before = fake->connections;
    until(fake->world, fake->connections >= before + 2);
    world_close_link(fake->world);
    assert_int_equal(fake->world->ups, 0);

    settings.ca_file = path;
    fake_connect_with(fake, &settings);
    until(fake->world, amqp_link_up(fake->world->link));
    for (size_t i = 0; i < 200; i++)
        send_message(fake->world, &sent[i], &big);
    until(fake->world, fake->published == 200);
    fake_confirm(fake, 200, true, true);
    until(fake->world, sent[199].calls);
    assert_int_equal(sent[0].err, ERR_OK);
    read_queue(fake->world, &reader, "q", 10);
    until(fake->world, reader.started);
    for (int i = 0; i < 20000; i++) {
        char body[16];

        snprintf(body, sizeof(body), "%d", i);
        fake_deliver(fake, 4, (uint64_t)i + 1, body);
    }
    until(fake->world, reader.delivered == 20000);
    assert_true(reader.in_order);
    fake_hang_up(fake);
    until(fake->world, reader.lost);
    until(fake->world, fake->world->ups == 2);
    world_close_link(fake->world);
    until(fake->world, fake->goodbyes == 1);
    free((void *)(uintptr_t)big.body.p);
    buf_clear(&reader.body);
    unlink(path);
}

#define fake_test(name) cmocka_unit_test_setup_teardown(name, fake_setup, fake_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        fake_test(confirms_out_of_order_and_multiple_find_their_publishes),
        fake_test(a_return_before_the_ack_makes_a_publish_unroutable),
        fake_test(a_channel_closed_for_one_exchange_ends_only_its_publishes),
        fake_test(a_channel_closed_without_a_culprit_ends_all_its_publishes),
        fake_test(publishes_without_a_confirm_are_sent_again_in_order),
        fake_test(a_publish_ends_at_its_deadline),
        fake_test(a_link_that_is_away_refuses_at_once),
        fake_test(a_blocked_connection_refuses_and_keeps_what_was_sent),
        fake_test(what_is_pending_is_bounded_in_number_and_bytes),
        fake_test(an_unconfirmed_publish_is_a_message_and_nothing_else),
        fake_test(a_log_in_in_single_bytes_succeeds),
        fake_test(a_silent_broker_is_left_after_two_heartbeats),
        fake_test(a_pause_keeps_deliveries_back_and_is_no_silence),
        fake_test(a_pause_in_a_delivery_holds_back_the_very_next),
        fake_test(a_refused_log_in_is_tried_again),
        fake_test(a_broker_that_talks_nonsense_is_left),
        fake_test(nonsense_on_a_channel_breaks_the_connection_and_nothing_else),
        fake_test(the_next_address_is_tried_when_one_refuses),
        fake_test(addresses_that_cannot_be_parsed_are_refused),
        fake_test(a_link_closes_without_an_answer_too),
        fake_test(a_link_may_be_closed_from_any_of_its_callbacks),
        fake_test(a_refused_declaration_does_not_harm_those_behind_it),
        fake_test(declarations_are_lost_with_the_link),
        fake_test(bodies_in_many_frames_and_channels_come_whole),
        fake_test(a_huge_body_is_cut_and_says_so),
        fake_test(a_message_with_unreadable_properties_still_arrives),
        fake_test(a_channel_number_waits_for_close_ok),
        fake_test(a_cancelled_consumer_is_lost_and_its_channel_closed),
        fake_test(a_closing_consumer_is_closed_when_the_link_breaks),
        fake_test(tls_carries_much_both_ways_and_trusts_only_the_right_peer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
