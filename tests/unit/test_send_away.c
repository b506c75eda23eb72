/* Streams that are sent away: by an instance that stops, and by one that carries more than its share. */
#include "proxy_fakes.h"

static struct client *clients[1000];
static size_t client_count;

static void instances_are(uint32_t others, uint32_t streams_of_each)
{
    memset(fake_instances, 0, sizeof fake_instances);
    fake_instance_count = others + 1;
    for (uint32_t i = 0; i <= others; i++) {
        struct cluster_instance *instance = &fake_instances[i];

        snprintf(instance->id, sizeof instance->id, "01KC46E0D7X8BQXSRB29FJP96%u", i);
        snprintf(instance->url, sizeof instance->url, "http://host%u", i);
        instance->alive = instance->ready = true;
        instance->self = i == 0;
        instance->weight = 100;
        instance->streams = i ? streams_of_each : 0;
    }
}

/* However long that takes, nobody is told to go meanwhile. */
static void streams_open(size_t count)
{
    struct fake_room *room = room_new();
    const char *rooms[] = {room->id, NULL};
    int64_t rate = world.config.rebalance_streams_per_s;

    join(room, "alice", 0);
    world.config.rebalance_streams_per_s = 0;
    for (client_count = 0; client_count < count; client_count++)
        clients[client_count] = client_open("ndjson", ticket_of("alice", DELIVER_EARLY, false, rooms));
    world.config.rebalance_streams_per_s = rate;
}

static void streams_leave(void)
{
    while (client_count)
        client_free(clients[--client_count]);
}

static size_t told(void)
{
    size_t count = 0;

    for (size_t i = 0; i < client_count; i++)
        count += holds(&clients[i]->wire.out, "\"type\":\"migrate\"");
    return count;
}

static long within_ms_of(struct client *client)
{
    const char *text = NULL;

    buf_char(&client->wire.out, '\0');
    text = strstr(client->wire.out.p, "\"within_ms\":");
    client->wire.out.n--;
    assert_non_null(text);
    return strtol(text + 12, NULL, 10);
}

static void on_drained(void *arg)
{
    (void)arg;
    world.drained = true;
}

static void turns_until(bool (*good)(void))
{
    for (uint64_t end = clock_mono_ms() + 30000; !good(); turns_for(1))
        assert_true(clock_mono_ms() < end);
}

static bool is_drained(void)
{
    return world.drained;
}

static bool all_are_told(void)
{
    return told() == client_count;
}

static bool half_are_told(void)
{
    return told() >= client_count / 2 - 10;
}

static bool some_are_told(void)
{
    return told() > 0;
}

static void streams_are_told_one_after_another_each_its_own_time(void **state)
{
    uint64_t began, took_ms;
    size_t before;

    (void)state;
    instances_are(1, 0);
    streams_open(300);
    began = clock_mono_ms();
    proxy_drain(world.proxy, 6000, on_drained, NULL); /* 100 a second: told within 3 s */
    turns_for(100);
    before = told();
    took_ms = clock_mono_ms() - began; /* 100, where this process gets its time */
    assert_in_range(before, 1, (took_ms + 40) / 10 + 1);
    turns_until(all_are_told);
    assert_in_range(within_ms_of(clients[0]), 6000 - (long)took_ms, 6000);
    assert_in_range(within_ms_of(clients[client_count - 1]), 1, 3100);
    assert_true(within_ms_of(clients[client_count / 2]) > within_ms_of(clients[client_count - 1]));
    assert_false(world.drained);
    streams_leave();
    turns_until(is_drained);
    assert_true(clock_mono_ms() - began < 5900); /* and nobody waited for the end of the window */
}

static void few_streams_are_told_soon(void **state)
{
    uint64_t began = clock_mono_ms();

    (void)state;
    instances_are(1, 0);
    streams_open(10);
    proxy_drain(world.proxy, 60000, on_drained, NULL);
    turns_until(all_are_told);
    assert_true(clock_mono_ms() - began < 10000);
    streams_leave();
    turns_until(is_drained);
}

static void a_stream_that_does_not_leave_is_closed_at_the_end(void **state)
{
    (void)state;
    instances_are(1, 0);
    streams_open(3);
    proxy_drain(world.proxy, 1500, on_drained, NULL);
    turns_until(is_drained);
    assert_int_equal(told(), 3);
    for (size_t i = 0; i < client_count; i++)
        assert_true(clients[i]->wire.gone || clients[i]->wire.closing);
    streams_leave();
}

static void where_nobody_else_lives_streams_are_closed_at_once(void **state)
{
    uint64_t began = clock_mono_ms();

    (void)state;
    instances_are(0, 0);
    streams_open(100);
    proxy_drain(world.proxy, 600000, on_drained, NULL);
    turns_until(is_drained);
    assert_true(clock_mono_ms() - began < 5000);
    assert_int_equal(told(), 0);
    streams_leave();
}

static void polls_are_answered_with_what_they_have(void **state)
{
    struct fake_room *room = room_new();
    const char *rooms[] = {room->id, NULL};
    struct client *poll;

    (void)state;
    instances_are(1, 0);
    join(room, "alice", 0);
    poll = client_open("poll", ticket_of("alice", DELIVER_EARLY, false, rooms));
    assert_int_equal(poll->reply.status, 0);
    proxy_drain(world.proxy, 60000, on_drained, NULL);
    turns_until(is_drained);
    assert_int_equal(poll->reply.status, 200);
    assert_true(holds(&poll->reply.body, "{\"events\":[],\"after\":["));
    client_free(poll);
}

static void a_stream_that_was_just_opening_is_told_too(void **state)
{
    struct fake_room *room = room_new();
    const char *rooms[] = {room->id, NULL};
    struct client *late;

    (void)state;
    instances_are(1, 0);
    join(room, "alice", 0);
    streams_open(1);
    late = client_ask("ndjson", ticket_of("alice", DELIVER_EARLY, false, rooms), "", NULL);
    proxy_drain(world.proxy, 60000, on_drained, NULL);
    uv_run(&world.loop, UV_RUN_NOWAIT);
    assert_int_equal(proxy_streams(world.proxy), 2);
    turns(4);
    client_go_on(late);
    turns_for(100);
    assert_true(holds(&late->wire.out, "migrate"));
    client_free(late);
    streams_leave();
    turns_until(is_drained);
}

static void nothing_new_is_taken_and_open_streams_go_on_before_they_are_told(void **state)
{
    struct fake_room *room;
    struct client *refused;
    const char *rooms[] = {NULL, NULL};

    (void)state;
    instances_are(1, 0);
    streams_open(1);
    room = world.rooms[0];
    rooms[0] = room->id;
    proxy_take_no_more(world.proxy);
    refused = client_ask("ndjson", ticket_of("alice", DELIVER_EARLY, false, rooms), "", NULL);
    assert_int_equal(refused->reply.status, 503);
    say_early(room, 2);
    turns(2);
    assert_string_equal(transcript(clients[0]), "hello 1 2");
    client_free(refused);
    streams_leave();
}

/* ----------------------------------------------------------- evening out */

static int even_world_open(void **state)
{
    int result = world_open(state);

    /* The test itself keeps a core busy. */
    world.config.rebalance_busy_max = 1000;
    world.config.rebalance_streams_per_s = 4000;
    world.config.beat_ms = 100;
    even_start(world.proxy);
    return result;
}

/* Two ticks in which somebody was told, however busy the machine is. */
static void two_ticks(void)
{
    for (int i = 0; i < 2; i++) {
        uint64_t before = world.proxy->count.evened, end = clock_mono_ms() + 100;

        while (world.proxy->count.evened == before && clock_mono_ms() < end) {
            uv_update_time(&world.loop);
            turn();
        }
    }
}

/* Who was told goes there, and the others say so with their next beat. */
static void even_out(uint32_t others, uint32_t until_streams)
{
    uint64_t end = clock_mono_ms() + 30000;

    while (proxy_streams(world.proxy) > until_streams && clock_mono_ms() < end) {
        two_ticks();
        for (size_t i = 0; i < client_count; i++)
            for (uint32_t k = 1; k <= others; k++) {
                char url[32];

                snprintf(url, sizeof url, "http://host%u\"", k);
                if (!holds(&clients[i]->wire.out, url))
                    continue;
                fake_instances[k].streams++;
                client_free(clients[i]);
                clients[i--] = clients[--client_count];
                break;
            }
    }
}

static void who_carries_too_much_sends_streams_until_all_have_their_part(void **state)
{
    (void)state;
    instances_are(2, 0);
    fake_instances[2].weight = 50;
    world.config.rebalance_streams_per_s = 1000; /* few in a tick: what the others say is old */
    streams_open(900);
    even_out(2, 360);
    /* 900 in parts of 100 : 100 : 50 */
    turns_for(200);
    assert_in_range(proxy_streams(world.proxy), 358, 361);
    /* What they say is old by some ticks. */
    assert_in_range(fake_instances[1].streams, 320, 400);
    assert_in_range(fake_instances[2].streams, 140, 220);
    streams_leave();
}

static void a_difference_that_does_not_matter_moves_nobody(void **state)
{
    (void)state;
    instances_are(1, 0);
    streams_open(590); /* 295 above the mean */
    turns_for(500);
    assert_int_equal(told(), 0);
    fake_instances[1].streams = 100;
    turns_for(300);
    assert_int_equal(told(), 0);
    streams_leave();
}

static void nobody_is_told_twice_to_go(void **state)
{
    (void)state;
    instances_are(1, 0);
    streams_open(700);
    turns_until(half_are_told);
    turns_for(1000); /* nobody goes */
    assert_in_range(told(), 340, 351);
    for (size_t i = 0; i < client_count; i++) {
        const char *first;

        buf_char(&clients[i]->wire.out, '\0');
        first = strstr(clients[i]->wire.out.p, "\"migrate\"");
        assert_true(!first || !strstr(first + 1, "\"migrate\""));
    }
    streams_leave();
}

static void a_busy_instance_and_a_target_that_is_overloaded_or_lacks_the_broker_move_nobody(void **state)
{
    (void)state;
    instances_are(1, 0);
    fake_instances[1].overloaded = true;
    streams_open(700);
    turns_for(500);
    assert_int_equal(told(), 0);
    fake_instances[1].overloaded = false;
    fake_instances[1].ready = false;
    turns_for(500);
    assert_int_equal(told(), 0);
    fake_instances[1].ready = true;
    world.config.rebalance_busy_max = 1;
    turns_for(500);
    assert_int_equal(told(), 0);
    world.config.rebalance_busy_max = 1000;
    turns_until(some_are_told);
    streams_leave();
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, world_open, world_close)
#define EVEN_TEST(name) cmocka_unit_test_setup_teardown(name, even_world_open, world_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(streams_are_told_one_after_another_each_its_own_time),
        TEST(few_streams_are_told_soon),
        TEST(a_stream_that_does_not_leave_is_closed_at_the_end),
        TEST(where_nobody_else_lives_streams_are_closed_at_once),
        TEST(polls_are_answered_with_what_they_have),
        TEST(a_stream_that_was_just_opening_is_told_too),
        TEST(nothing_new_is_taken_and_open_streams_go_on_before_they_are_told),
        EVEN_TEST(who_carries_too_much_sends_streams_until_all_have_their_part),
        EVEN_TEST(a_difference_that_does_not_matter_moves_nobody),
        EVEN_TEST(nobody_is_told_twice_to_go),
        EVEN_TEST(a_busy_instance_and_a_target_that_is_overloaded_or_lacks_the_broker_move_nobody),
    };

    log_set_level(LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
