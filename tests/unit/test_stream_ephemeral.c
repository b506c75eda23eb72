/* Who types is told once in a while; what an account has hidden from itself is left out of its streams, of nobody
 * else's. */
#include "proxy_fakes.h"

static struct fake_room *room_of_two(void)
{
    struct fake_room *room = room_new();

    join(room, "alice", 0);
    join(room, "bob", 0);
    return room;
}

static void hide(struct fake_room *room, const char *account, uint64_t seq)
{
    room->hidden_by = account;
    room->hidden[room->hidden_count++] = seq;
}

static void hide_and_tell(struct fake_room *room, const char *account, uint64_t seq)
{
    char json[128];

    hide(room, account, seq);
    snprintf(json, sizeof json, "{\"type\":\"message.hidden\",\"room_id\":\"%s\",\"seq\":%d}", room->id, (int)seq);
    proxy_tell_account(world.proxy, str_of(account), str_of(json));
}

static struct client *listen_to(struct fake_room *room, const char *account, enum deliver deliver, const char *cursor)
{
    char position[128];
    const char *rooms[] = {position, NULL};

    snprintf(position, sizeof position, cursor ? "%s@%s" : "%s", room->id, cursor);
    return client_open("ndjson", ticket_of(account, deliver, false, rooms));
}

static void assert_shows(struct fake_room *room, const char *account, const char *words)
{
    static const enum deliver ways[] = {DELIVER_EARLY, DELIVER_DURABLE};

    for (size_t i = 0; i < countof(ways); i++) {
        struct client *client = listen_to(room, account, ways[i], "1:1");

        turns(4);
        assert_string_equal(transcript(client), words);
        client_free(client);
    }
}

static void what_is_hidden_is_left_out_when_read_from_the_store(void **state)
{
    struct fake_room *room = room_of_two();

    (void)state;
    log_before(room, 6);
    hide(room, "alice", 3);
    hide(room, "alice", 6);
    assert_shows(room, "alice", "hello 2 4 5");
    assert_shows(room, "bob", "hello 2 3 4 5 6");
}

static void what_is_hidden_is_left_out_when_read_from_the_tail(void **state)
{
    struct fake_room *room = room_of_two();
    struct client *near;

    (void)state;
    log_before(room, 1);
    near = listen_to(room, "bob", DELIVER_EARLY, NULL);
    say_early(room, 5);
    commit(room);
    turns(2);
    hide(room, "alice", 2);
    hide(room, "alice", 4);
    assert_shows(room, "alice", "hello 3 5 6");
    assert_shows(room, "bob", "hello 2 3 4 5 6");
    assert_int_equal(world.ranges_read, 0);
    client_free(near);
}

static void a_stream_whose_backlog_is_all_hidden_goes_live(void **state)
{
    struct fake_room *room = room_of_two();
    struct client *alice;

    (void)state;
    log_before(room, 3);
    hide(room, "alice", 2);
    hide(room, "alice", 3);
    alice = listen_to(room, "alice", DELIVER_EARLY, "1:1");
    turns(3);
    say_early(room, 1);
    turns(2);
    assert_string_equal(transcript(alice), "hello 4");
    client_free(alice);
}

static void who_begins_at_the_head_is_not_asked_about(void **state)
{
    struct fake_room *room = room_of_two();

    (void)state;
    log_before(room, 3);
    client_free(listen_to(room, "alice", DELIVER_EARLY, NULL));
    client_free(listen_to(room, "alice", DELIVER_EARLY, "1:3"));
    assert_int_equal(world.hiddens_asked, 0);
}

static void what_is_hidden_while_a_stream_opens_is_left_out(void **state)
{
    struct fake_room *room = room_of_two();
    char position[128];
    const char *rooms[] = {position, NULL};
    struct client *alice;

    (void)state;
    log_before(room, 4);
    snprintf(position, sizeof position, "%s@1:1", room->id);
    alice = client_ask("ndjson", ticket_of("alice", DELIVER_EARLY, false, rooms), "", NULL);
    hide_and_tell(room, "alice", 3); /* registered, nothing known */
    room->hidden_count = 0;          /* as if it had been asked just before */
    turns(3);
    client_go_on(alice);
    turns(4);
    assert_string_equal(transcript(alice), "hello 2 4");
    client_free(alice);
}

static void a_durable_stream_leaves_out_what_was_hidden_before_its_turn(void **state)
{
    struct fake_room *room = room_of_two();
    struct client *alice = listen_to(room, "alice", DELIVER_DURABLE, NULL);
    struct client *bob = listen_to(room, "bob", DELIVER_DURABLE, NULL);

    (void)state;
    say_early(room, 3);
    turns(2);
    hide_and_tell(room, "alice", 2);
    commit(room);
    turns(2);
    assert_string_equal(transcript(alice), "hello message.hidden:2 1 3");
    assert_string_equal(transcript(bob), "hello 1 2 3");
    client_free(alice);
    client_free(bob);
}

/* What waits in a queue is dropped when it is too much, and read again: also then it must not come. */
static void a_slow_stream_that_goes_back_leaves_out_what_was_hidden_meanwhile(void **state)
{
    struct fake_room *room = room_of_two();
    struct client *alice = listen_to(room, "alice", DELIVER_EARLY, NULL);
    const char *words;

    (void)state;
    world.config.stream_pending_max_bytes = 4096;
    alice->wire.stuck = true;
    say_early(room, 1); /* on its way */
    turns(2);
    say_early(room, 1); /* in the queue */
    turns(2);
    hide_and_tell(room, "alice", 2);
    say_early(room, 40);
    commit(room);
    turns(4);
    assert_in_range(world.proxy->count.overflows, 1, 100);
    alice->wire.stuck = false;
    turns(40);
    words = transcript(alice);
    assert_non_null(strstr(words, " 1 "));
    assert_null(strstr(words, " 2 "));
    assert_non_null(strstr(words, " 3 4 5 "));
    assert_non_null(strstr(words, " 41 42"));
    client_free(alice);
}

static void nonsense_that_looks_like_a_hidden_message_is_let_through(void **state)
{
    struct fake_room *room = room_of_two();
    struct client *alice = listen_to(room, "alice", DELIVER_EARLY, NULL);

    (void)state;
    proxy_tell_account(world.proxy, STR("alice"), STR("{\"type\":\"message.hidden\",\"room_id\":1,\"seq\":\"x\"}"));
    proxy_tell_account(world.proxy, STR("alice"), STR("{\"type\":\"message.hidden\",\"seq\":-1}"));
    turns(2);
    assert_string_equal(transcript(alice), "hello message.hidden message.hidden:-1");
    client_free(alice);
}

/* ------------------------------------------------------------------ typing */

static void typing_is_told_once_for_each_account_and_room(void **state)
{
    struct fake_room *room = room_of_two(), *other = room_of_two();
    const char *rooms[] = {room->id, other->id, NULL};
    struct client *bob = client_open("ndjson", ticket_of("bob", DELIVER_EARLY, false, rooms));

    (void)state;
    for (int i = 0; i < 10; i++) {
        proxy_typing(world.proxy, str_of(room->id), STR("alice"));
        proxy_typing(world.proxy, str_of(room->id), STR("carol"));
        proxy_typing(world.proxy, str_of(other->id), STR("alice"));
    }
    turns(2);
    assert_string_equal(transcript(bob), "hello typing typing typing");
    assert_int_equal(world.proxy->count.typings_suppressed, 27);
    client_free(bob);
}

static void typing_is_told_again_when_the_time_is_over(void **state)
{
    struct fake_room *room = room_of_two();
    struct client *bob;

    (void)state;
    world.config.typing_every_ms = 30;
    bob = listen_to(room, "bob", DELIVER_EARLY, NULL);
    proxy_typing(world.proxy, str_of(room->id), STR("alice"));
    turns_for(40);
    proxy_typing(world.proxy, str_of(room->id), STR("alice"));
    proxy_typing(world.proxy, str_of(room->id), STR("alice"));
    turns(2);
    assert_string_equal(transcript(bob), "hello typing typing");
    assert_int_equal(world.proxy->typings.count, 1);
    client_free(bob);
}

/* ----------------------------------------------------------------- following */

static void a_shard_is_followed_from_its_first_view_to_a_minute_after_its_last(void **state)
{
    struct fake_room *room = room_of_two();
    struct client *alice;
    uint32_t now;

    (void)state;
    assert_false(world.followed);
    alice = listen_to(room, "alice", DELIVER_EARLY, NULL);
    assert_true(world.followed);
    client_free(alice);
    turns(2);
    now = proxy_now(world.proxy);
    follow_sweep(world.proxy, now + 59000);
    assert_true(world.followed);

    alice = listen_to(room, "alice", DELIVER_EARLY, NULL); /* comes back: the fakes would see it followed twice */
    follow_sweep(world.proxy, now + 61000);
    assert_true(world.followed);
    client_free(alice);
    turns(2);
    follow_sweep(world.proxy, proxy_now(world.proxy) + 60000);
    assert_false(world.followed);
}

static void a_room_that_is_not_there_makes_nobody_follow_its_shard(void **state)
{
    const char *rooms[] = {"s00.01KC46E0D7X8BQXSRB29FJP9ZZ", NULL};

    (void)state;
    client_free(client_open("ndjson", ticket_of("alice", DELIVER_EARLY, false, rooms)));
    assert_false(world.followed);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, world_open, world_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_is_hidden_is_left_out_when_read_from_the_store),
        TEST(what_is_hidden_is_left_out_when_read_from_the_tail),
        TEST(a_stream_whose_backlog_is_all_hidden_goes_live),
        TEST(who_begins_at_the_head_is_not_asked_about),
        TEST(what_is_hidden_while_a_stream_opens_is_left_out),
        TEST(a_durable_stream_leaves_out_what_was_hidden_before_its_turn),
        TEST(a_slow_stream_that_goes_back_leaves_out_what_was_hidden_meanwhile),
        TEST(nonsense_that_looks_like_a_hidden_message_is_let_through),
        TEST(typing_is_told_once_for_each_account_and_room),
        TEST(typing_is_told_again_when_the_time_is_over),
        TEST(a_shard_is_followed_from_its_first_view_to_a_minute_after_its_last),
        TEST(a_room_that_is_not_there_makes_nobody_follow_its_shard),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
