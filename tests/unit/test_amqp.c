/*
 * AMQP links with a real RabbitMQ, named by ROOMD_TEST_AMQP_URL; what needs an operator also wants
 * ROOMD_TEST_RABBITMQCTL, a command such as "rabbitmqctl -n node". Without them the tests skip.
 */
#include "amqp_world.h"

#include "room/base/amqp_codec.h"

#include <amqp_tcp_socket.h>
#include <unistd.h>

static const char *url;
static char queue[64];

/* --- the broker's other side --- */

/* Deletes a queue over a blocking connection of its own. */
static void delete_queue(const char *name)
{
    char *text = xstrdup(url);
    struct amqp_connection_info info;
    amqp_connection_state_t connection = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(connection);

    assert_int_equal(amqp_parse_url(text, &info), AMQP_STATUS_OK);
    assert_int_equal(amqp_socket_open(socket, info.host, info.port), AMQP_STATUS_OK);
    assert_int_equal(
        amqp_login(connection, info.vhost, 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, info.user, info.password).reply_type,
        AMQP_RESPONSE_NORMAL);
    amqp_channel_open(connection, 1);
    amqp_queue_delete(connection, 1, amqp_cstring_bytes(name), 0, 0);
    amqp_destroy_connection(connection);
    free(text);
}

static void ctl_ended(uv_process_t *process, int64_t status, int signal_number)
{
    (void)signal_number;
    *(int *)process->data = status ? 2 : 1;
    uv_close((uv_handle_t *)process, NULL);
}

/* rabbitmqctl takes half a second: the loop goes on meanwhile, as it must. */
static void ctl(struct world *world, const char *words)
{
    char line[512];
    char *args[] = {"sh", "-c", line, NULL};
    uv_process_options_t options = {.exit_cb = ctl_ended, .file = "sh", .args = args};
    uv_process_t process;
    int ended = 0;

    snprintf(line, sizeof(line), "exec %s %s >/dev/null 2>&1", getenv("ROOMD_TEST_RABBITMQCTL"), words);
    process.data = &ended;
    assert_int_equal(uv_spawn(&world->loop, &process, &options), 0);
    until(world, ended);
    assert_int_equal(ended, 1);
    until(world, !uv_is_active((uv_handle_t *)&process));
    uv_run(&world->loop, UV_RUN_ONCE); /* its close callback */
}

static void connect_with(struct world *world, const struct amqp_settings *settings)
{
    assert_int_equal(amqp_link_open(&world->link, &world->loop, settings), ERR_OK);
    until(world, amqp_link_up(world->link));
}

static void declare(struct world *world, const struct amqp_queue_options *options, enum err expected)
{
    struct answer answer = {0};

    amqp_declare_queue(world->link, queue, options, on_answer, &answer);
    until(world, answer.calls);
    assert_int_equal(answer.err, expected);
}

static int broker_setup(void **state)
{
    static int number;
    struct amqp_settings settings;

    if (!url)
        return 0;
    snprintf(queue, sizeof(queue), "roomd.test.%d.%d", (int)getpid(), ++number);
    *state = world_new();
    settings = world_settings(*state, url);
    connect_with(*state, &settings);
    return 0;
}

static int broker_teardown(void **state)
{
    if (!*state)
        return 0;
    world_free(*state);
    delete_queue(queue);
    return 0;
}

static struct world *world_or_skip(void **state, bool needs_ctl)
{
    if (!*state || (needs_ctl && !getenv("ROOMD_TEST_RABBITMQCTL")))
        skip();
    return *state;
}

static const struct amqp_queue_options quorum = {.quorum = true, .durable = true};

/* Publishes `count` messages whose bodies are their numbers. */
static struct sent *publish_numbers(struct world *world, int count)
{
    struct sent *sent = xcalloc((size_t)count, sizeof(*sent));
    char body[129];

    memset(body, ' ', sizeof(body));
    for (int i = 0; i < count; i++) {
        body[snprintf(body, sizeof(body), "%d", i)] = ' ';
        body[128] = '\0';
        send_text(world, &sent[i], "", queue, body);
    }
    return sent;
}

static void all_settled(struct world *world, struct sent *sent, int count, enum err expected)
{
    for (int i = 0; i < count; i++) {
        until(world, sent[i].calls);
        assert_int_equal(sent[i].err, expected);
        assert_int_equal(sent[i].calls, 1);
    }
    free(sent);
}

/* --- tests --- */

static void publishes_are_confirmed_returned_or_refused(void **state)
{
    struct world *world = world_or_skip(state, false);
    struct sent good[2] = {0}, nowhere = {0}, no_exchange = {0};
    struct reader reader = {0};
    struct answer bound = {0}, unbound = {0};

    declare(world, &quorum, ERR_OK);
    amqp_bind_queue(world->link, queue, "amq.direct", queue, on_answer, &bound);
    until(world, bound.calls);
    assert_int_equal(bound.err, ERR_OK);
    send_text(world, &good[0], "amq.direct", queue, "0 hello");
    send_text(world, &nowhere, "amq.direct", "nowhere", "hello");
    send_text(world, &no_exchange, "roomd.test.no-such-exchange", queue, "hello");
    send_text(world, &good[1], "amq.direct", queue, "1 hello");
    until(world, good[1].calls && no_exchange.calls && nowhere.calls && good[0].calls);
    assert_int_equal(good[0].err, ERR_OK);
    assert_int_equal(nowhere.err, ERR_UNROUTABLE);
    assert_int_equal(no_exchange.err, ERR_UNROUTABLE);
    assert_int_equal(good[1].err, ERR_OK);
    read_queue(world, &reader, queue, 10);
    until(world, reader.delivered >= 2);
    assert_string_equal(reader.exchange, "amq.direct");
    assert_string_equal(reader.routing_key, queue);
    assert_string_equal(reader.content_type, "text/plain");
    assert_string_equal(reader.message_id, "m1");
    assert_int_equal(reader.last.delivery_mode, 2);
    assert_false(reader.last.redelivered);
    amqp_unbind_queue(world->link, queue, "amq.direct", queue, on_answer, &unbound);
    until(world, unbound.calls);
    send_text(world, &nowhere, "amq.direct", queue, "hello");
    until(world, nowhere.calls);
    assert_int_equal(nowhere.err, ERR_UNROUTABLE);
    assert_int_equal(world->downs, 0);
    buf_clear(&reader.body);
}

static void ack_as_they_come(struct reader *reader)
{
    if (reader->delivered % 100 == 0)
        amqp_ack(reader->consumer, reader->last.tag, true);
}

static void sixty_thousand_go_both_ways_in_order(void **state)
{
    struct world *world = world_or_skip(state, false);
    struct reader reader = {.then = ack_as_they_come};

    declare(world, &quorum, ERR_OK);
    all_settled(world, publish_numbers(world, 60000), 60000, ERR_OK);
    read_queue(world, &reader, queue, 1000);
    until(world, reader.delivered == 60000);
    assert_true(reader.in_order);
    assert_int_equal(reader.last.body.n, 128);
    buf_clear(&reader.body);
}

static void long_bodies_arrive_as_they_were_sent(void **state)
{
    struct world *world = world_or_skip(state, false);
    struct amqp_message message = {.routing_key = str_of(queue), .body = {xcalloc(1, 700000), 700000}};
    struct sent sent[3] = {0};
    struct reader reader = {0};

    for (size_t i = 0; i < message.body.n; i++)
        ((char *)(uintptr_t)message.body.p)[i] = (char)('a' + i % 23);
    declare(world, &quorum, ERR_OK);
    for (int i = 0; i < 3; i++)
        send_message(world, &sent[i], &message);
    until(world, sent[2].calls);
    read_queue(world, &reader, queue, 10);
    until(world, reader.delivered == 3);
    assert_int_equal(reader.last.body_bytes, 700000);
    assert_int_equal(reader.body.n, 700001);
    assert_memory_equal(reader.body.p, message.body.p, message.body.n);
    free((void *)(uintptr_t)message.body.p);
    buf_clear(&reader.body);
}

static void prefetch_bounds_what_is_unacked(void **state)
{
    struct world *world = world_or_skip(state, false);
    struct reader reader = {0};
    struct answer counted = {0};

    declare(world, &quorum, ERR_OK);
    all_settled(world, publish_numbers(world, 30), 30, ERR_OK);
    read_queue(world, &reader, queue, 10);
    until(world, reader.delivered == 10);
    do { /* the counts of a quorum queue are a little late */
        counted.calls = 0;
        amqp_inspect_queue(world->link, queue, on_inspected, &counted);
        until(world, counted.calls);
        assert_int_equal(counted.err, ERR_OK);
    } while (counted.messages != 20 || counted.consumers != 1);
    assert_int_equal(reader.delivered, 10);
    amqp_ack(reader.consumer, reader.last.tag, true);
    until(world, reader.delivered == 20);
    amqp_ack(reader.consumer, reader.first_tag + 10, false);
    until(world, reader.delivered == 21);
    assert_true(reader.in_order);
    buf_clear(&reader.body);
}

static void the_unacked_come_again_in_order_after_close(void **state)
{
    struct world *world = world_or_skip(state, false);
    struct amqp_queue_options options = {.quorum = true, .durable = true, .single_active_consumer = true};
    struct reader first = {0}, second = {0};

    declare(world, &options, ERR_OK);
    all_settled(world, publish_numbers(world, 30), 30, ERR_OK);
    read_queue(world, &first, queue, 10);
    until(world, first.delivered == 10);
    amqp_ack(first.consumer, first.first_tag + 2, true);
    amqp_consumer_close(first.consumer, on_closed);
    until(world, first.closed);
    read_queue(world, &second, queue, 100);
    until(world, second.delivered >= 1);
    until(world, second.delivered + 3 >= 30);
    assert_int_equal(second.next, 30);
    assert_true(second.in_order);
    assert_int_equal(second.delivered, 27);
    buf_clear(&first.body);
    buf_clear(&second.body);
}

static void a_full_queue_refuses_publishes(void **state)
{
    struct world *world = world_or_skip(state, false);
    struct amqp_queue_options options = {.quorum = true,
        .durable = true,
        .single_active_consumer = true,
        .reject_publish = true,
        .max_length_bytes = 10000};
    struct amqp_message message = {.routing_key = str_of(queue), .body = {xcalloc(1, 5000), 5000}};
    struct sent sent = {0};
    int accepted = 0;

    declare(world, &options, ERR_OK);
    for (int tries = 0; tries < 1000; tries++) {
        send_message(world, &sent, &message);
        until(world, sent.calls);
        if (sent.err)
            break;
        accepted++;
    }
    assert_int_equal(sent.err, ERR_UNAVAILABLE);
    assert_in_range(accepted, 2, 100);
    assert_int_equal(amqp_link_counters(world->link).nacked_total, 1);
    free((void *)(uintptr_t)message.body.p);
}

static void refusals_are_told_with_the_brokers_words(void **state)
{
    struct world *world = world_or_skip(state, false);
    struct amqp_queue_options other = {.durable = true};
    struct answer declared = {0}, inspected = {0}, good = {0};
    struct reader reader = {0};

    declare(world, &quorum, ERR_OK);
    amqp_declare_queue(world->link, queue, &other, on_answer, &declared);
    amqp_inspect_queue(world->link, "roomd.test.no-such-queue", on_inspected, &inspected);
    amqp_declare_exchange(world->link, "amq.direct", "direct", true, on_answer, &good);
    until(world, declared.calls && inspected.calls && good.calls);
    assert_int_equal(declared.err, ERR_CONFLICT);
    assert_non_null(strstr(declared.text, "PRECONDITION_FAILED"));
    assert_int_equal(inspected.err, ERR_CONFLICT);
    assert_int_equal(good.err, ERR_OK);
    read_queue(world, &reader, "roomd.test.no-such-queue", 10);
    until(world, reader.lost);
    assert_int_equal(reader.err, ERR_CONFLICT);
    assert_non_null(strstr(reader.why, "NOT_FOUND"));
    assert_int_equal(world->downs, 0);
}

static void a_deleted_queue_loses_its_consumer(void **state)
{
    struct world *world = world_or_skip(state, false);
    struct reader reader = {0}, again = {0};

    declare(world, &quorum, ERR_OK);
    read_queue(world, &reader, queue, 10);
    until(world, reader.started);
    delete_queue(queue);
    until(world, reader.lost);
    assert_int_equal(reader.err, ERR_UNAVAILABLE);
    assert_int_equal(world->downs, 0);
    declare(world, &quorum, ERR_OK);
    read_queue(world, &again, queue, 10);
    until(world, again.started);
}

static void a_wrong_password_or_vhost_never_comes_up(void **state)
{
    struct world *world = world_or_skip(state, false);
    const char *at = strrchr(url, '@'), *slash = strchr(at, '/');
    int n = (int)(slash ? slash - at : (ptrdiff_t)strlen(at));
    struct amqp_settings settings;
    char urls[2][256];

    snprintf(urls[0], sizeof(urls[0]), "amqp://nobody:wrong%s", at);
    snprintf(urls[1], sizeof(urls[1]), "%.*s%.*s/no-such-vhost", (int)(at - url), url, n, at);
    world_close_link(world);
    world->ups = 0;
    for (int i = 0; i < 2; i++) {
        uint64_t began = uv_hrtime();

        settings = world_settings(world, urls[i]);
        assert_int_equal(amqp_link_open(&world->link, &world->loop, &settings), ERR_OK);
        until(world, uv_hrtime() - began > 700 * 1000000ull);
        assert_int_equal(world->ups, 0);
        world_close_link(world);
    }
}

static void closed_connections_come_back_with_everything(void **state)
{
    struct world *world = world_or_skip(state, true);
    struct reader reader = {0}, again = {0};
    struct sent *sent;

    declare(world, &quorum, ERR_OK);
    read_queue(world, &reader, queue, 10);
    until(world, reader.started);
    ctl(world, "close_all_connections test");
    until(world, reader.lost);
    assert_int_equal(reader.err, ERR_LOST);
    sent = publish_numbers(world, 100); /* while it is away */
    until(world, world->ups == 2);
    all_settled(world, sent, 100, ERR_OK);
    read_queue(world, &again, queue, 1000);
    until(world, again.delivered >= 100);
    assert_int_equal(again.next, 100);
    assert_int_equal(amqp_link_counters(world->link).reconnects_total, 1);
    buf_clear(&again.body);
}

static void a_memory_alarm_refuses_publishes_at_once(void **state)
{
    struct world *world = world_or_skip(state, true);
    struct sent first = {0}, then = {0}, after = {0};
    uint64_t began;

    declare(world, &quorum, ERR_OK);
    send_text(world, &first, "", queue, "before");
    until(world, first.calls);
    ctl(world, "set_vm_memory_high_watermark 0");
    send_text(world, &first, "", queue, "the one that makes the broker say it");
    until(world, amqp_link_blocked(world->link));
    began = uv_hrtime();
    send_text(world, &then, "", queue, "refused");
    until(world, then.calls);
    assert_int_equal(then.err, ERR_UNAVAILABLE);
    assert_true(uv_hrtime() - began < 2000 * 1000000ull); /* it could wait for a confirm for 5 s */
    ctl(world, "set_vm_memory_high_watermark 0.4");
    until(world, !amqp_link_blocked(world->link) && first.calls);
    assert_int_equal(first.err, ERR_OK);
    send_text(world, &after, "", queue, "after");
    until(world, after.calls);
    assert_int_equal(after.err, ERR_OK);
    assert_int_equal(world->downs, 0);
}

#define broker_test(name) cmocka_unit_test_setup_teardown(name, broker_setup, broker_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        broker_test(publishes_are_confirmed_returned_or_refused),
        broker_test(sixty_thousand_go_both_ways_in_order),
        broker_test(long_bodies_arrive_as_they_were_sent),
        broker_test(prefetch_bounds_what_is_unacked),
        broker_test(the_unacked_come_again_in_order_after_close),
        broker_test(a_full_queue_refuses_publishes),
        broker_test(refusals_are_told_with_the_brokers_words),
        broker_test(a_deleted_queue_loses_its_consumer),
        broker_test(a_wrong_password_or_vhost_never_comes_up),
        broker_test(closed_connections_come_back_with_everything),
        broker_test(a_memory_alarm_refuses_publishes_at_once),
    };

    url = getenv("ROOMD_TEST_AMQP_URL");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
