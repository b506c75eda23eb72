/* Streams of rooms whose owner is elsewhere, when its news are missed; and how many streams are let in at once. */
#include "proxy_fakes.h"

static struct fake_room *room_with(const char *account)
{
    struct fake_room *room = room_new();

    join(room, account, 0);
    return room;
}

static struct client *listen_to(struct fake_room *room, const char *account, enum deliver deliver)
{
    const char *rooms[] = {room->id, NULL};

    return client_open("ndjson", ticket_of(account, deliver, false, rooms));
}

static void what_was_missed_comes_from_the_store_when_that_is_told(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *early = listen_to(room, "alice", DELIVER_EARLY),
                  *durable = listen_to(room, "alice", DELIVER_DURABLE);

    (void)state;
    say_early(room, 1);
    commit(room);
    turns(3);
    assert_string_equal(transcript(early), "hello 1 durable:1");
    assert_string_equal(transcript(durable), "hello 1");
    log_before(room, 2); /* committed, and nobody here heard of it */
    turns(3);
    assert_string_equal(transcript(early), "");
    proxy_missed(world.proxy, STR("s00"));
    turns(6);
    assert_memory_equal(transcript(early), "2 3", 3);
    assert_string_equal(transcript(durable), "2 3");
    client_free(early);
    client_free(durable);
}

static void news_of_another_shard_ask_nothing(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice = listen_to(room, "alice", DELIVER_EARLY);
    int asked = world.accesses_asked;

    (void)state;
    proxy_missed(world.proxy, STR("s01"));
    proxy_missed(world.proxy, STR("s0"));
    turns(3);
    assert_int_equal(world.accesses_asked, asked);
    client_free(alice);
}

static void what_is_missed_while_a_head_is_asked_for_is_asked_for_again(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice = listen_to(room, "alice", DELIVER_EARLY);
    int asked = world.accesses_asked;

    (void)state;
    for (int i = 0; i < 5; i++)
        proxy_missed(world.proxy, STR("s00"));
    assert_int_equal(world.accesses_asked, asked + 1);
    turn();
    assert_int_equal(world.accesses_asked, asked + 2); /* the others in one */
    turns(4);
    assert_int_equal(world.accesses_asked, asked + 2);
    client_free(alice);
}

static void what_is_missed_while_a_stream_opens_is_not_lost(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *alice = client_ask("ndjson", ticket_of("alice", DELIVER_EARLY, false, rooms), "", NULL);
    int asked = world.accesses_asked;

    (void)state;
    proxy_missed(world.proxy, STR("s00"));
    turns(2);
    client_go_on(alice);
    turns(4);
    assert_int_equal(world.accesses_asked, asked + 1);
    client_free(alice);
}

static void a_head_that_could_not_be_asked_for_is_asked_for_later(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice = listen_to(room, "alice", DELIVER_EARLY);

    (void)state;
    transcript(alice);
    log_before(room, 1);
    world.database_away = true;
    proxy_missed(world.proxy, STR("s00"));
    turns(3);
    world.database_away = false;
    turns_for(RETRY_MS + 300);
    assert_memory_equal(transcript(alice), "1", 1);
    client_free(alice);
}

static void an_owner_that_is_not_heard_is_looked_after_and_one_that_is_heard_is_not(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice = listen_to(room, "alice", DELIVER_EARLY);
    int asked = world.accesses_asked;

    (void)state;
    transcript(alice);
    turns_for(RETRY_MS + 300);
    assert_int_equal(world.accesses_asked, asked);
    world.deaf = true;
    log_before(room, 1);
    turns_for(RETRY_MS + 300);
    assert_memory_equal(transcript(alice), "1", 1);
    client_free(alice);
}

static void an_epoch_that_is_heard_of_is_enough_for_a_reset(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice = listen_to(room, "alice", DELIVER_EARLY);

    (void)state;
    say_early(room, 2);
    turns(2);
    assert_string_equal(transcript(alice), "hello 1 2");
    take_over(room);
    proxy_epoch(world.proxy, STR("s00"), 2, false);
    turns(4);
    assert_string_equal(transcript(alice), "reset:0");
    client_free(alice);
}

static void leave_unheard(struct fake_room *room, const char *account)
{
    char accounts[64];

    snprintf(accounts, sizeof accounts, "\"account_ids\":[\"%s\"]", account);
    put_entry(room, ENTRY_LEFT, str_of(accounts));
    for (int i = 0; i < room->member_count; i++)
        if (strcmp(room->members[i], account) == 0)
            room->members[i][0] = '\0';
    room->committed = room->shown;
}

/* The owner's news were missed while the account was removed: the catch-up must not run past its leave. */
static void who_left_while_nothing_was_heard_gets_nothing_behind_the_leave(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice, *bob;

    (void)state;
    join(room, "bob", 0);
    alice = listen_to(room, "alice", DELIVER_EARLY);
    bob = listen_to(room, "bob", DELIVER_EARLY);
    say_early(room, 1);
    commit(room);
    turns(3);
    transcript(alice);
    transcript(bob);
    log_before(room, 1);
    leave_unheard(room, "alice");
    log_before(room, 3);
    proxy_missed(world.proxy, STR("s00"));
    turn(); /* the head is known */
    world.access_waits = true;
    turns(12);
    assert_null(strstr(transcript(alice), "4"));
    world.access_waits = false;
    turns(4);
    assert_null(strstr(transcript(alice), "4"));
    assert_non_null(strstr(transcript(bob), "4 5 6"));
    client_free(alice);
    client_free(bob);
}

static void who_left_and_may_have_come_back_waits_until_that_is_known(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice = listen_to(room, "alice", DELIVER_EARLY);

    (void)state;
    turns(2);
    transcript(alice);
    put_entry(room, ENTRY_LEFT, STR("\"account_ids\":[\"alice\"]"));
    put_entry(room, ENTRY_JOINED, STR("\"account_ids\":[\"alice\"]"));
    log_before(room, 2);
    proxy_missed(world.proxy, STR("s00"));
    turn(); /* the head is known */
    world.access_waits = true;
    turns(6);
    assert_null(strstr(transcript(alice), "3"));
    world.database_away = true;
    world.access_waits = false;
    turns(2);
    world.database_away = false;
    turns_for(RETRY_MS + 500);
    assert_non_null(strstr(transcript(alice), "3 4"));
    client_free(alice);
}

/* Where members see only what is said while they are in it: it was out from 2 to 4. */
static void alice_comes_back_unheard(struct fake_room *room)
{
    room->since_join = true;
    put_entry(room, ENTRY_LEFT, STR("\"account_ids\":[\"alice\"]"));
    log_before(room, 2);
    put_entry(room, ENTRY_JOINED, STR("\"account_ids\":[\"alice\"]"));
    room->join_seq[0] = room->shown;
    log_before(room, 1);
    proxy_missed(world.proxy, STR("s00"));
    turns(12);
}

static void who_came_back_unheard_is_not_shown_what_was_said_without_it(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *named = listen_to(room, "alice", DELIVER_EARLY), *all = listen_to(room, "alice", DELIVER_EARLY);
    struct audience *audience = audience_find(world.proxy, STR("alice"));
    const char *words;

    (void)state;
    list_entry(audience->streams.prev, struct stream, audience_link)->all = true;
    turns(2);
    transcript(named);
    transcript(all);
    alice_comes_back_unheard(room);
    words = transcript(named);
    assert_null(strstr(words, "2"));
    assert_null(strstr(words, "3"));
    assert_non_null(strstr(words, "room.left"));
    words = transcript(all);
    assert_null(strstr(words, "2"));
    assert_null(strstr(words, "3"));
    assert_non_null(strstr(words, "room.left room.entered member.joined:4 5"));
    client_free(named);
    client_free(all);
}

static struct client *opening; /* its rooms are asked for until the world ends */

static int world_close_opening(void **state)
{
    int status = world_close(state);

    client_free(opening);
    return status;
}

static void when_entering_was_missed_the_database_is_asked_once(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *named = listen_to(room, "alice", DELIVER_EARLY);
    int asked = world.queries_asked;

    (void)state;
    proxy_entered_missed(world.proxy, 5);
    assert_int_equal(world.queries_asked, asked); /* nobody here follows an account */
    opening = client_ask("ndjson", ticket_of("alice", DELIVER_EARLY, true, NULL), "", NULL);
    asked = world.queries_asked;
    proxy_entered_missed(world.proxy, 5);
    proxy_entered_missed(world.proxy, 4);
    proxy_entered_missed(world.proxy, 6);
    assert_int_equal(world.queries_asked, asked + 1);
    client_free(named);
}

static void more_streams_at_once_than_the_bucket_holds_are_told_when_to_come_back(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *clients[6];
    int let_in = 0, later = 0;

    (void)state;
    world.config.attach_burst = 4;
    world.config.attach_rate_per_s = 2;
    for (size_t i = 0; i < countof(clients); i++) {
        clients[i] = client_ask("ndjson", ticket_of("alice", DELIVER_EARLY, false, rooms), "", NULL);
        let_in += clients[i]->reply.status == 0;
        later += clients[i]->reply.status == 503;
    }
    assert_int_equal(let_in, 4);
    assert_int_equal(later, 2);
    assert_true(proxy_overloaded(world.proxy));
    turn();
    assert_true(world.overloaded); /* the registry is told */
    turns_for(1200);               /* both have had their turn */
    assert_false(proxy_overloaded(world.proxy));
    for (size_t i = 0; i < countof(clients); i++) {
        if (clients[i]->reply.wants_wire)
            client_go_on(clients[i]);
        client_free(clients[i]);
    }
}

static void those_who_are_sent_away_come_back_at_the_rate_and_not_in_step(void **state)
{
    uint32_t first, last = 0, later;

    (void)state;
    world.config.attach_burst = 1;
    world.config.attach_rate_per_s = 100;
    first = admission_later_ms(world.proxy);
    assert_in_range(first, 1, 1011);
    for (int i = 0; i < 500; i++)
        last = admission_later_ms(world.proxy);
    assert_in_range(last, 4900, 6100); /* 500 at 100 in a second */
    for (int i = 0; i < 50000; i++)
        last = admission_later_ms(world.proxy);
    later = admission_later_ms(world.proxy);
    assert_in_range(last, 15000, 16001);
    for (int i = 0; i < 20 && later == last; i++)
        later = admission_later_ms(world.proxy);
    assert_int_not_equal(later, last);
    /* Who comes again at once, however often, keeps nobody else away for longer than anybody is told to wait. */
    assert_in_range(world.proxy->admission.waiting / 100, 14000, 15000);
}

static void streams_that_open_together_ask_the_database_together(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *clients[60];
    int turns_that_asked = 0, asked;

    (void)state;
    world.config.attach_gather_ms = 1000;
    for (size_t i = 0; i < countof(clients); i++) {
        asked = world.accesses_asked;
        clients[i] = client_ask("ndjson", ticket_of("alice", DELIVER_EARLY, false, rooms), "", NULL);
        turn();
        turns_that_asked += world.accesses_asked > asked;
    }
    for (int i = 0; i < 5000 && world.accesses_asked < (int)countof(clients); i++) {
        asked = world.accesses_asked;
        turns_for(1);
        turns_that_asked += world.accesses_asked > asked;
    }
    assert_int_equal(world.accesses_asked, countof(clients));
    assert_in_range(turns_that_asked, 10, 13); /* the first nine do not know yet that many come */
    turns(4);
    for (size_t i = 0; i < countof(clients); i++) {
        client_go_on(clients[i]);
        assert_string_equal(transcript(clients[i]), "hello");
        client_free(clients[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            what_was_missed_comes_from_the_store_when_that_is_told, world_open, world_close),
        cmocka_unit_test_setup_teardown(news_of_another_shard_ask_nothing, world_open, world_close),
        cmocka_unit_test_setup_teardown(
            what_is_missed_while_a_head_is_asked_for_is_asked_for_again, world_open, world_close),
        cmocka_unit_test_setup_teardown(what_is_missed_while_a_stream_opens_is_not_lost, world_open, world_close),
        cmocka_unit_test_setup_teardown(a_head_that_could_not_be_asked_for_is_asked_for_later, world_open, world_close),
        cmocka_unit_test_setup_teardown(
            an_owner_that_is_not_heard_is_looked_after_and_one_that_is_heard_is_not, world_open, world_close),
        cmocka_unit_test_setup_teardown(an_epoch_that_is_heard_of_is_enough_for_a_reset, world_open, world_close),
        cmocka_unit_test_setup_teardown(
            who_left_while_nothing_was_heard_gets_nothing_behind_the_leave, world_open, world_close),
        cmocka_unit_test_setup_teardown(
            who_left_and_may_have_come_back_waits_until_that_is_known, world_open, world_close),
        cmocka_unit_test_setup_teardown(
            who_came_back_unheard_is_not_shown_what_was_said_without_it, world_open, world_close),
        cmocka_unit_test_setup_teardown(
            when_entering_was_missed_the_database_is_asked_once, world_open, world_close_opening),
        cmocka_unit_test_setup_teardown(
            more_streams_at_once_than_the_bucket_holds_are_told_when_to_come_back, world_open, world_close),
        cmocka_unit_test_setup_teardown(
            those_who_are_sent_away_come_back_at_the_rate_and_not_in_step, world_open, world_close),
        cmocka_unit_test_setup_teardown(streams_that_open_together_ask_the_database_together, world_open, world_close),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
