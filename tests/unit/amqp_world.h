/*
 * For tests of AMQP links: a loop that is turned until a condition holds, publishes and consumers that write down what
 * happened to them.
 */
#ifndef TESTS_UNIT_AMQP_WORLD_H
#define TESTS_UNIT_AMQP_WORLD_H

#include "room/base/amqp.h"
#include "room/base/log.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

enum { WAIT_MS = 30000, UNSETTLED = ERR_COUNT };

struct world {
    uv_loop_t loop;
    uv_timer_t pulse; /* turns the loop now and then, so that a condition that never comes is noticed */
    struct amqp_link *link;
    int ups, downs;
    void (*on_changed)(struct world *world, bool up);
};

struct sent {
    struct amqp_publish publish;
    enum err err; /* UNSETTLED before */
    int calls;
    int order; /* the how many-th to be settled */
    void (*then)(struct sent *sent);
    struct world *world;
};

struct reader {
    struct world *world;
    struct amqp_consumer *consumer;
    int started, delivered, lost, closed;
    enum err err;
    char why[256];
    struct amqp_delivery last; /* its texts are in the fields below */
    char message_id[256], exchange[256], routing_key[256], content_type[256];
    struct buf body;
    uint64_t first_tag;
    bool in_order; /* bodies that begin with a number: each one more than the one before */
    long next;
    void (*then)(struct reader *reader);
};

static inline void on_pulse(uv_timer_t *timer)
{
    (void)timer;
}

#define until(world, condition)                              \
    do {                                                     \
        uint64_t until_ms = uv_hrtime() / 1000000 + WAIT_MS; \
        while (!(condition)) {                               \
            if (uv_hrtime() / 1000000 > until_ms)            \
                fail_msg("still not: %s", #condition);       \
            uv_run(&(world)->loop, UV_RUN_ONCE);             \
        }                                                    \
    } while (0)

static inline void world_changed(void *arg, bool up)
{
    struct world *world = arg;

    if (up)
        world->ups++;
    else
        world->downs++;
    if (world->on_changed)
        world->on_changed(world, up);
}

static inline struct world *world_new(void)
{
    struct world *world = xcalloc(1, sizeof(*world));

    signal(SIGPIPE, SIG_IGN);
    log_set_level(getenv("ROOMD_TEST_LOG") ? LOG_DEBUG : LOG_ERROR);
    uv_loop_init(&world->loop);
    uv_timer_init(&world->loop, &world->pulse);
    uv_timer_start(&world->pulse, on_pulse, 10, 10);
    return world;
}

static inline struct amqp_settings world_settings(struct world *world, const char *urls)
{
    return (struct amqp_settings){.name = "test",
        .urls = urls,
        .heartbeat_ms = 10000,
        .publish_timeout_ms = 20000,
        .max_pending = 100000,
        .max_pending_bytes = 64 << 20,
        .changed = world_changed,
        .arg = world};
}

static inline void world_close_link(struct world *world)
{
    struct amqp_link *link = world->link;

    world->link = NULL;
    if (link)
        amqp_link_close(link);
}

/* Everything the loop still has ends by itself within the wait; a handle that does not is a leak. */
static inline void world_free(struct world *world)
{
    world_close_link(world);
    uv_close((uv_handle_t *)&world->pulse, NULL);
    uv_run(&world->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&world->loop), 0);
    free(world);
}

/* --- publishes --- */

static int sent_settled;

static inline void on_sent(struct amqp_publish *publish, enum err err)
{
    struct sent *sent = container_of(publish, struct sent, publish);

    sent->err = err;
    sent->calls++;
    sent->order = ++sent_settled;
    if (sent->then)
        sent->then(sent);
}

static inline void send_message(struct world *world, struct sent *sent, const struct amqp_message *message)
{
    sent->world = world;
    sent->publish.done = on_sent;
    sent->err = (enum err)UNSETTLED;
    sent->calls = 0;
    amqp_publish(world->link, &sent->publish, message);
    assert_int_equal(sent->calls, 0); /* never from inside the call */
}

static inline void send_text(
    struct world *world, struct sent *sent, const char *exchange, const char *key, const char *body)
{
    struct amqp_message message = {.exchange = str_of(exchange),
        .routing_key = str_of(key),
        .content_type = STR("text/plain"),
        .message_id = STR("m1"),
        .body = str_of(body)};

    send_message(world, sent, &message);
}

/* --- consumers --- */

static inline void on_started(void *owner)
{
    struct reader *reader = owner;

    reader->started++;
}

static inline void copy_text(char to[256], struct str from)
{
    memcpy(to, from.p ? from.p : "", from.n);
    to[from.n] = '\0';
}

static inline void on_delivered(void *owner, const struct amqp_delivery *delivery)
{
    struct reader *reader = owner;
    long number;

    if (!reader->delivered++) {
        reader->first_tag = delivery->tag;
        reader->in_order = true;
    }
    reader->last = *delivery;
    copy_text(reader->message_id, delivery->message_id);
    copy_text(reader->exchange, delivery->exchange);
    copy_text(reader->routing_key, delivery->routing_key);
    copy_text(reader->content_type, delivery->content_type);
    buf_reset(&reader->body);
    buf_add_str(&reader->body, delivery->body);
    buf_char(&reader->body, '\0');
    number = atol(reader->body.p);
    if (reader->delivered > 1 && number != reader->next)
        reader->in_order = false;
    reader->next = number + 1;
    if (reader->then)
        reader->then(reader);
}

static inline void on_lost(void *owner, enum err err, struct str text)
{
    struct reader *reader = owner;

    reader->lost++;
    reader->err = err;
    snprintf(reader->why, sizeof(reader->why), "%.*s", STR_ARG(text));
    amqp_consumer_free(reader->consumer);
    reader->consumer = NULL;
}

static inline void on_closed(void *owner)
{
    struct reader *reader = owner;

    reader->closed++;
    reader->consumer = NULL;
}

static const struct amqp_consumer_events reader_events = {on_started, on_delivered, on_lost};

static inline void read_queue(struct world *world, struct reader *reader, const char *queue, uint16_t prefetch)
{
    reader->world = world;
    reader->consumer = amqp_consume(world->link, queue, prefetch, false, &reader_events, reader);
}

/* --- declarations --- */

struct answer {
    int calls;
    enum err err;
    char text[256];
    uint32_t messages, consumers;
};

static inline void on_answer(void *arg, enum err err, struct str text)
{
    struct answer *answer = arg;

    answer->calls++;
    answer->err = err;
    snprintf(answer->text, sizeof(answer->text), "%.*s", STR_ARG(text));
}

static inline void on_inspected(void *arg, enum err err, uint32_t messages, uint32_t consumers)
{
    struct answer *answer = arg;

    answer->calls++;
    answer->err = err;
    answer->messages = messages;
    answer->consumers = consumers;
}

#endif
