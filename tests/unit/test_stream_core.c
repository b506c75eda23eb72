/* What streams show: order, holes, overflow, resume, reset, joins and leaves. */
#include "proxy_fakes.h"

static struct fake_room *room_with(const char *account)
{
    struct fake_room *room = room_new();

    join(room, account, 0);
    return room;
}

static struct client *listen_to(struct fake_room *room, const char *account, enum deliver deliver, const char *cursor)
{
    char position[128];
    const char *rooms[] = {position, NULL};

    snprintf(position, sizeof position, cursor ? "%s@%s" : "%s", room->id, cursor);
    return client_open("ndjson", ticket_of(account, deliver, false, rooms));
}

static void a_live_stream_shows_entries_in_order_as_they_come(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice = listen_to(room, "alice", DELIVER_EARLY, NULL);

    (void)state;
    say_early(room, 2);
    turns(2);
    assert_string_equal(transcript(alice), "hello 1 2");
    say_early(room, 1);
    commit(room);
    turns(2);
    assert_string_equal(transcript(alice), "3 durable:3");
    client_free(alice);
}

static void a_durable_stream_shows_nothing_before_its_commit(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice = listen_to(room, "alice", DELIVER_DURABLE, NULL);

    (void)state;
    say_early(room, 3);
    turns(2);
    assert_string_equal(transcript(alice), "hello");
    commit(room);
    turns(2);
    assert_string_equal(transcript(alice), "1 2 3");
    client_free(alice);
}

static void a_stream_resumes_after_its_cursor(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice;

    (void)state;
    log_before(room, 5);
    alice = listen_to(room, "alice", DELIVER_EARLY, "1:2");
    turns(3);
    say_early(room, 1);
    turns(3);
    assert_string_equal(transcript(alice), "hello 3 4 5 6");
    client_free(alice);
}

static void without_a_cursor_a_stream_begins_at_the_head(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice;

    (void)state;
    log_before(room, 5);
    alice = listen_to(room, "alice", DELIVER_EARLY, NULL);
    say_early(room, 1);
    turns(2);
    assert_string_equal(transcript(alice), "hello 6");
    client_free(alice);
}

static void entries_that_come_while_a_stream_opens_are_neither_lost_nor_repeated(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *alice;
    char position[128];

    (void)state;
    log_before(room, 3);
    snprintf(position, sizeof position, "%s@1:1", room->id);
    rooms[0] = position;
    alice = client_ask("ndjson", ticket_of("alice", DELIVER_EARLY, false, rooms), "", NULL);
    say_early(room, 1); /* registered, not answered */
    turn();
    say_early(room, 1); /* answered, not taken over */
    turns(2);
    client_go_on(alice);
    say_early(room, 1);
    turns(4);
    commit(room);
    turns(4);
    assert_memory_equal(transcript(alice), "hello 2 3 4 5 6", 15);
    client_free(alice);
}

static void a_hole_above_the_durable_head_waits_for_the_commit(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice;

    (void)state;
    log_before(room, 2);
    say_early(room, 2); /* 3 and 4: shown before anybody here listened */
    alice = listen_to(room, "alice", DELIVER_EARLY, "1:1");
    say_early(room, 1);
    turns(4);
    assert_string_equal(transcript(alice), "hello 2");
    commit(room);
    turns(6);
    assert_string_equal(transcript(alice), "3 4 5");
    client_free(alice);
}

static void a_hole_among_live_entries_is_filled_from_the_store(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice = listen_to(room, "alice", DELIVER_EARLY, NULL);

    (void)state;
    say_early(room, 1);
    turns(2);
    put_entry(room, ENTRY_MESSAGE, STR("\"missed\""));
    say_early(room, 1);
    turns(3);
    assert_string_equal(transcript(alice), "hello 1");
    commit(room);
    turns(6);
    assert_string_equal(transcript(alice), "2 3");
    client_free(alice);
}

static void a_slow_reader_gets_everything_in_order_at_its_own_pace(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice = listen_to(room, "alice", DELIVER_EARLY, NULL);
    char expected[8192] = "hello";

    (void)state;
    world.config.stream_pending_max_bytes = 4096;
    alice->wire.stuck = true;
    for (int i = 1; i <= 600; i++) {
        say_early(room, 1);
        if (i % 3 == 0)
            turn();
        if (i % 50 == 0)
            commit(room);
        snprintf(expected + strlen(expected), sizeof expected - strlen(expected), " %d", i);
    }
    assert_true(world.proxy->count.overflows > 0);
    alice->wire.stuck = false;
    turns(600);
    transcript(alice);
    for (char *mark; (mark = strstr(alice->words, " durable:"));) /* marks may stand anywhere */
        memmove(mark, strchr(mark + 1, ' ') ? strchr(mark + 1, ' ') : "",
            strchr(mark + 1, ' ') ? strlen(strchr(mark + 1, ' ')) + 1 : 1);
    assert_string_equal(alice->words, expected);
    client_free(alice);
}

static void a_stuck_reader_does_not_hold_up_the_others(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *stuck, *brisk;

    (void)state;
    join(room, "bob", 0);
    stuck = listen_to(room, "alice", DELIVER_EARLY, NULL);
    brisk = listen_to(room, "bob", DELIVER_EARLY, NULL);
    world.config.stream_pending_max_bytes = 4096;
    stuck->wire.stuck = true;
    for (int i = 0; i < 200; i++) {
        say_early(room, 1);
        turn();
    }
    turns(2);
    assert_non_null(strstr(transcript(brisk), " 199 200"));
    client_free(stuck);
    client_free(brisk);
}

static void after_a_lost_tail_early_readers_are_told_to_go_back(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice = listen_to(room, "alice", DELIVER_EARLY, NULL),
                  *careful = listen_to(room, "alice", DELIVER_DURABLE, NULL);

    (void)state;
    say_early(room, 2);
    commit(room);
    say_early(room, 3);
    turns(2);
    transcript(alice);
    take_over(room); /* 3, 4, 5 were never committed */
    say_early(room, 1);
    turns(4);
    assert_string_equal(transcript(alice), "reset:2 3");
    commit(room);
    turns(4);
    assert_string_equal(transcript(careful), "hello 1 2 3");
    client_free(alice);
    client_free(careful);
}

static void news_of_an_epoch_alone_are_enough_for_a_reset(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice = listen_to(room, "alice", DELIVER_EARLY, NULL);

    (void)state;
    say_early(room, 2);
    turns(2);
    take_over(room);
    proxy_epoch(world.proxy, STR("s00"), room->epoch, true);
    turns(4);
    assert_string_equal(transcript(alice), "hello 1 2 reset:0");
    client_free(alice);
}

static void a_tail_that_was_committed_after_all_needs_no_reset(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice = listen_to(room, "alice", DELIVER_EARLY, NULL);

    (void)state;
    say_early(room, 2);
    turns(2);
    room->committed = 2; /* the answer to the COMMIT was lost with the owner */
    take_over(room);
    say_early(room, 1);
    turns(4);
    assert_non_null(strstr(transcript(alice), "hello 1 2"));
    assert_null(strstr(alice->words, "reset"));
    assert_non_null(strstr(alice->words, "3"));
    client_free(alice);
}

static void a_cursor_of_a_lost_tail_is_reset_when_it_comes_back(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice;

    (void)state;
    log_before(room, 3);
    take_over(room);
    log_before(room, 3); /* 4, 5, 6 of epoch 2 */
    alice = listen_to(room, "alice", DELIVER_EARLY, "1:5");
    turns(4);
    assert_string_equal(transcript(alice), "hello reset:3 4 5 6");
    client_free(alice);
}

static void an_old_cursor_that_is_in_the_log_is_not_reset(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice;

    (void)state;
    log_before(room, 3);
    take_over(room);
    log_before(room, 1);
    alice = listen_to(room, "alice", DELIVER_EARLY, "1:2");
    turns(4);
    assert_string_equal(transcript(alice), "hello 3 4");
    assert_int_equal(world.validities_asked, 1);
    client_free(alice);
}

static void a_cursor_above_the_head_is_reset_and_not_silent(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice;

    (void)state;
    log_before(room, 3);
    alice = listen_to(room, "alice", DELIVER_EARLY, "7:9"); /* of an epoch nobody has heard of */
    turns(4);
    assert_string_equal(transcript(alice), "hello reset:3");
    client_free(alice);
}

static void an_early_cursor_is_reset_when_another_owner_puts_other_entries_there(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice;

    (void)state;
    log_before(room, 3);
    alice = listen_to(room, "alice", DELIVER_EARLY, "1:5"); /* she comes before the takeover is known here */
    turns(3);
    take_over(room);
    say_early(room, 3); /* 4, 5, 6 of epoch 2: not hers */
    turns(4);
    commit(room);
    turns(4);
    assert_string_equal(transcript(alice), "hello reset:3 4 5 6 durable:6");
    client_free(alice);
}

/* An instance that stood still has entries that never came to be; who comes from elsewhere has what is in the log. */
static void what_an_instance_takes_back_is_not_taken_back_from_who_comes_with_the_log(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice, *bob;

    (void)state;
    join(room, "bob", 0);
    log_before(room, 3);
    bob = listen_to(room, "bob", DELIVER_EARLY, NULL);
    say_early(room, 2); /* 4, 5 of epoch 1 */
    turns(3);
    take_over(room);
    log_before(room, 6); /* 4 to 9 of epoch 2, and nobody told */
    alice = listen_to(room, "alice", DELIVER_EARLY, "2:9");
    turns(6);
    say_early(room, 1);
    turns(3);
    assert_string_equal(transcript(alice), "hello 10 durable:9");
    assert_non_null(strstr(transcript(bob), "reset:3 4 5 6 7 8 9 10"));
    client_free(alice);
    client_free(bob);
}

static void an_early_cursor_of_a_moment_ago_waits_for_its_commit(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice;

    (void)state;
    log_before(room, 3);
    say_early(room, 2); /* the reader has these two from its last stream */
    alice = listen_to(room, "alice", DELIVER_EARLY, "1:5");
    turns(3);
    assert_string_equal(transcript(alice), "hello");
    commit(room);
    turns(3);
    say_early(room, 1);
    turns(3);
    assert_memory_equal(transcript(alice), "durable:5 6", 11);
    client_free(alice);
}

/* What stands at 4 and 5 is of another owner, and committed: that is not said of what the reader has there. */
static void the_mark_is_of_the_readers_entries_or_comes_after_the_reset(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *bob, *alice;
    struct buf hello = {0};

    (void)state;
    join(room, "bob", 0);
    log_before(room, 3);
    bob = listen_to(room, "bob", DELIVER_EARLY, NULL);
    say_early(room, 2);
    turns(3);
    take_over(room);
    log_before(room, 3); /* and nobody here heard of it */
    alice = listen_to(room, "alice", DELIVER_EARLY, "1:5");
    turns(6);
    buf_add(&hello, alice->wire.out.p, alice->wire.out.n);
    buf_char(&hello, 0);
    assert_non_null(strstr(hello.p, "\"durable_seq\":0,\"from\":\"1:5\""));
    assert_memory_equal(transcript(alice), "hello reset:3 durable:6 4 5 6", 29);
    buf_clear(&hello);
    client_free(alice);
    client_free(bob);
}

/* Sequenced and shown, here or elsewhere; the COMMIT finds it in the log already. */
static void take_back(struct fake_room *room, uint64_t seq, bool heard)
{
    uint64_t shown = room->shown;

    room->shown = seq - 1;
    put_entry(room, ENTRY_VOID, STR("\"of_seq\":1"));
    if (heard)
        proxy_shown(world.proxy, str_of(room->id), room->log[seq], true);
    room->shown = shown;
}

static const char *hello_of(struct client *client)
{
    static char text[4096];

    snprintf(text, sizeof text, "%.*s", (int)client->wire.out.n, client->wire.out.p);
    return text;
}

static void who_was_cut_off_before_a_void_is_told_of_it_and_then_of_the_mark(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice;

    (void)state;
    log_before(room, 5);
    take_back(room, 3, false);
    take_back(room, 4, false);
    alice = listen_to(room, "alice", DELIVER_EARLY, "1:4");
    turns(4);
    assert_non_null(strstr(hello_of(alice), "\"durable_seq\":2,\"from\":\"1:4\""));
    assert_string_equal(transcript(alice), "hello void:3 void:4 durable:5 5");
    client_free(alice);
    alice = listen_to(room, "alice", DELIVER_EARLY, "1:2"); /* she has not seen what stood there */
    turns(4);
    assert_non_null(strstr(hello_of(alice), "\"durable_seq\":5"));
    assert_string_equal(transcript(alice), "hello void:3 void:4 5");
    client_free(alice);
}

static void a_void_below_the_join_is_not_told(void **state)
{
    struct fake_room *room = room_new();
    struct client *alice;

    (void)state;
    room->since_join = true;
    log_before(room, 5);
    take_back(room, 2, false);
    take_back(room, 4, false);
    join(room, "alice", 4);
    alice = listen_to(room, "alice", DELIVER_EARLY, "1:5");
    turns(4);
    assert_string_equal(transcript(alice), "hello void:4 durable:5");
    client_free(alice);
}

/* The void is not in the log yet when she comes; this instance hears of it, or does not. */
static void who_comes_back_before_the_void_is_told_of_it_before_the_mark(void **state)
{
    struct fake_room *rooms[] = {room_with("alice"), room_with("alice")};

    (void)state;
    for (int heard = 0; heard < 2; heard++) {
        struct fake_room *room = rooms[heard];
        const char expected[] = "void:3 durable:4 5";
        struct client *alice;

        log_before(room, 2);
        say_early(room, 2);
        alice = listen_to(room, "alice", DELIVER_EARLY, "1:4");
        turns(3);
        assert_string_equal(transcript(alice), "hello");
        take_back(room, 3, heard);
        turns(2);
        commit(room);
        turns(4);
        say_early(room, 1);
        turns(2);
        assert_memory_equal(transcript(alice), expected, sizeof expected - 1);
        client_free(alice);
    }
}

static void what_was_taken_back_is_asked_again_when_the_database_was_away(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice;

    (void)state;
    log_before(room, 2);
    say_early(room, 2);
    alice = listen_to(room, "alice", DELIVER_EARLY, "1:4");
    turns(3);
    assert_string_equal(transcript(alice), "hello");
    take_back(room, 3, false);
    world.database_away = true;
    commit(room);
    turns(4);
    assert_string_equal(transcript(alice), "");
    world.database_away = false;
    for (int i = 0; i < 60 && alice->read == alice->wire.out.n; i++)
        turns_for(100);
    assert_string_equal(transcript(alice), "void:3 durable:4");
    client_free(alice);
}

static void a_poll_tells_of_a_void_with_its_next_answer(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    char query[128];
    struct client *poll;

    (void)state;
    log_before(room, 4);
    take_back(room, 3, false);
    snprintf(query, sizeof query, "after=%s@1:4", room->id);
    poll = client_ask("poll", ticket_of("alice", DELIVER_EARLY, false, rooms), query, NULL);
    turns(4);
    assert_int_equal(poll->reply.status, 0);
    say_early(room, 1);
    turns(3);
    assert_int_equal(poll->reply.status, 200);
    buf_char(&poll->reply.body, 0);
    assert_non_null(strstr(poll->reply.body.p, "{\"events\":[{\"type\":\"void\","));
    assert_non_null(strstr(poll->reply.body.p, "},{\"type\":\"message\","));
    client_free(poll);
}

static void history_since_join_is_never_shown_below_the_join(void **state)
{
    struct fake_room *room = room_new();
    struct client *alice;

    (void)state;
    room->since_join = true;
    log_before(room, 6);
    join(room, "alice", 5);
    alice = listen_to(room, "alice", DELIVER_EARLY, "0:0");
    turns(4);
    assert_string_equal(transcript(alice), "hello 5 6");
    client_free(alice);
}

static void a_removed_account_gets_its_leave_and_nothing_after_it(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice = listen_to(room, "alice", DELIVER_EARLY, NULL);

    (void)state;
    say_early(room, 1);
    say_op(room, ENTRY_LEFT, STR("\"account_ids\":[\"alice\"]"));
    say_early(room, 1);
    turns(4);
    assert_string_equal(transcript(alice), "hello 1 member.left:2 durable:2 room.left");
    assert_true(alice->wire.gone); /* no room left */
    client_free(alice);
}

static void a_slow_reader_that_was_removed_is_told_nothing_more_of_the_room(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice = listen_to(room, "alice", DELIVER_EARLY, NULL);

    (void)state;
    world.config.stream_pending_max_bytes = 4096;
    alice->wire.stuck = true;
    for (int i = 0; i < 100; i++) {
        say_early(room, 1);
        turn();
    }
    say_op(room, ENTRY_LEFT, STR("\"account_ids\":[\"alice\"]"));
    alice->wire.stuck = false;
    turns(20);
    transcript(alice);
    assert_null(strstr(alice->words, " 100"));
    assert_non_null(strstr(alice->words, "room.left"));
    client_free(alice);
}

static void a_leave_that_overtakes_the_membership_answer_wins(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *alice = client_ask("ndjson", ticket_of("alice", DELIVER_EARLY, false, rooms), "", NULL);

    (void)state;
    say_op(room, ENTRY_LEFT, STR("\"account_ids\":[\"alice\"]")); /* the answer still says member */
    turns(3);
    assert_int_equal(alice->reply.status, 403);
    client_free(alice);
}

static void a_stranger_is_refused(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *mallory = listen_to(room, "mallory", DELIVER_EARLY, NULL);

    (void)state;
    assert_int_equal(mallory->reply.status, 403);
    assert_int_equal(mallory->wire.out.n, 0);
    assert_int_equal(world.proxy->views.count, 0);
    client_free(mallory);
}

static void a_removed_room_ends_its_streams_after_the_last_entry(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice = listen_to(room, "alice", DELIVER_EARLY, NULL);

    (void)state;
    say_early(room, 1);
    say_op(room, ENTRY_REMOVED, STR(""));
    turns(4);
    assert_string_equal(transcript(alice), "hello 1 room.removed:2 room.left");
    assert_true(alice->wire.gone);
    client_free(alice);
}

static void marks_are_not_sent_more_often_than_the_interval(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice = listen_to(room, "alice", DELIVER_EARLY, NULL);

    (void)state;
    world.config.durable_mark_ms = 1000;
    for (int i = 0; i < 10; i++) {
        say_early(room, 1);
        commit(room);
        turns(2);
    }
    assert_string_equal(transcript(alice), "hello 1 durable:1 2 3 4 5 6 7 8 9 10");
    for (int i = 0; i < 100 && alice->read == alice->wire.out.n; i++)
        turns_for(100);
    assert_string_equal(transcript(alice), "durable:10");
    client_free(alice);
}

static void a_reader_is_not_silent_because_the_instance_stood_still(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *alice;
    size_t said;

    (void)state;
    world.config.heartbeat_ms = 600;
    alice = client_open("ws", ticket_of("alice", DELIVER_EARLY, false, rooms));
    turns_for(20);
    uv_sleep(1500); /* this is the pause, not a wait */
    said = alice->wire.out.n;
    for (int i = 0; i < 500 && alice->wire.out.n == said; i++)
        turns_for(10); /* it is pinged, or closed */
    assert_int_equal(world.proxy->count.closed_silent, 0);
    for (int i = 0; i < 100 && !world.proxy->count.closed_silent; i++)
        turns_for(100); /* this is its own silence */
    assert_int_equal(world.proxy->count.closed_silent, 1);
    client_free(alice);
}

static void a_ping_that_comes_late_names_all_that_moved_since_the_last_one(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *alice;

    (void)state;
    world.config.heartbeat_ms = 200;
    alice = client_open("ndjson", ticket_of("alice", DELIVER_EARLY, false, rooms));
    turns_for(20);
    say_early(room, 1);
    turns(2);
    uv_sleep(700); /* this is the pause, not a wait */
    for (int i = 0; i < 100 && !holds(&alice->wire.out, "\"heads\":[{"); i++)
        turns_for(100); /* where time is short a turn of the wheel takes longer */
    assert_true(holds(&alice->wire.out, "\"heads\":[{"));
    client_free(alice);
}

static void a_view_lives_as_long_as_somebody_listens(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice = listen_to(room, "alice", DELIVER_EARLY, NULL);

    (void)state;
    assert_int_equal(world.proxy->views.count, 1);
    say_early(room, 3);
    client_free(alice);
    assert_int_equal(world.proxy->views.count, 0);
    assert_int_equal(world.proxy->audiences.count, 0);
    assert_int_equal(proxy_streams(world.proxy), 0);
}

static void equal_reads_of_many_streams_are_one(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *clients[20];
    char position[128];
    const char *rooms[] = {position, NULL};

    (void)state;
    log_before(room, 50);
    snprintf(position, sizeof position, "%s@1:40", room->id);
    for (size_t i = 0; i < countof(clients); i++)
        clients[i] = client_ask("ndjson", ticket_of("alice", DELIVER_EARLY, false, rooms), "", NULL);
    turns(4);
    for (size_t i = 0; i < countof(clients); i++)
        client_go_on(clients[i]);
    turns(6);
    assert_int_equal(world.ranges_read, 1);
    for (size_t i = 0; i < countof(clients); i++) {
        assert_string_equal(transcript(clients[i]), "hello 41 42 43 44 45 46 47 48 49 50");
        client_free(clients[i]);
    }
}

static void a_database_that_is_away_delays_catching_up_and_loses_nothing(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *alice;

    (void)state;
    log_before(room, 5);
    alice = listen_to(room, "alice", DELIVER_EARLY, NULL);
    put_entry(room, ENTRY_MESSAGE, STR("\"missed\""));
    say_early(room, 1);
    commit(room);
    world.database_away = true;
    turns(5);
    assert_string_equal(transcript(alice), "hello");
    world.database_away = false;
    turns_for(2500);
    assert_non_null(strstr(transcript(alice), "6 7"));
    client_free(alice);
}

static void a_poll_answers_at_once_when_there_is_something(void **state)
{
    struct fake_room *room = room_with("alice");
    char position[128];
    const char *rooms[] = {position, NULL};
    struct client *alice;

    (void)state;
    log_before(room, 3);
    snprintf(position, sizeof position, "%s@1:1", room->id);
    alice = client_open("poll", ticket_of("alice", DELIVER_EARLY, false, rooms));
    turns(4);
    assert_int_equal(alice->reply.status, 200);
    assert_non_null(strstr(alice->reply.body.p, "\"seq\":3"));
    assert_null(strstr(alice->reply.body.p, "\"seq\":1,"));
    assert_non_null(strstr(alice->reply.body.p, "@1:3\"]"));
    assert_int_equal(proxy_streams(world.proxy), 0);
    client_free(alice);
}

static void a_poll_is_held_until_something_comes(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *alice = client_open("poll", ticket_of("alice", DELIVER_EARLY, false, rooms));

    (void)state;
    assert_int_equal(alice->reply.status, 0);
    say_early(room, 1);
    turns(2);
    assert_int_equal(alice->reply.status, 200);
    assert_non_null(strstr(alice->reply.body.p, "@1:1\"]"));
    client_free(alice);
}

static void a_poll_that_comes_back_with_an_early_cursor_goes_on_there(void **state)
{
    struct fake_room *room = room_with("alice");
    char position[128];
    const char *rooms[] = {position, NULL};
    struct client *alice;

    (void)state;
    say_early(room, 2); /* what the poll before this one brought; nobody has listened since */
    snprintf(position, sizeof position, "%s@1:2", room->id);
    alice = client_open("poll", ticket_of("alice", DELIVER_EARLY, false, rooms));
    assert_int_equal(alice->reply.status, 0);
    say_early(room, 1);
    turns(4);
    assert_int_equal(alice->reply.status, 200);
    assert_true(holds(&alice->reply.body, "\"seq\":3,"));
    assert_false(holds(&alice->reply.body, "reset"));
    assert_non_null(strstr(alice->reply.body.p, "@1:3\"]"));
    client_free(alice);
}

static void a_poll_whose_client_leaves_is_forgotten(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *alice = client_open("poll", ticket_of("alice", DELIVER_EARLY, false, rooms));

    (void)state;
    alice->reply.gone(alice->reply.gone_arg);
    assert_int_equal(proxy_streams(world.proxy), 0);
    client_free(alice);
}

static void an_sse_stream_of_one_room_tells_positions_as_ids(void **state)
{
    struct fake_room *room = room_with("alice");
    char expected[160];
    const char *rooms[] = {room->id, NULL};
    struct client *alice = client_open("sse", ticket_of("alice", DELIVER_EARLY, false, rooms));

    (void)state;
    say_early(room, 1);
    turns(2);
    snprintf(expected, sizeof expected, "id: %s@1:1\ndata: {\"type\":\"message\"", room->id);
    assert_true(holds(&alice->wire.out, expected));
    client_free(alice);
}

static void websocket_frames_are_answered_in_order_with_their_req_id(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *alice = client_open("ws", ticket_of("alice", DELIVER_EARLY, false, rooms));

    (void)state;
    ws_say(alice, "{\"type\":\"ping\",\"req_id\":1}");
    ws_say(alice, "{\"type\":\"nonsense\",\"req_id\":\"x\"}");
    assert_string_equal(ws_transcript(alice), "hello pong error");
    assert_true(holds(&alice->wire.out, "\"req_id\":1}"));
    assert_true(holds(&alice->wire.out, "\"req_id\":\"x\"}"));
    say_early(room, 2);
    turns(2);
    assert_string_equal(ws_transcript(alice), "1 2");
    client_free(alice);
}

static void a_websocket_may_leave_a_room_and_come_back_to_it(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *alice = client_open("ws", ticket_of("alice", DELIVER_EARLY, false, rooms));
    char frame[256];

    (void)state;
    snprintf(frame, sizeof frame, "{\"type\":\"unsubscribe\",\"payload\":{\"room_ids\":[\"%s\"]}}", room->id);
    ws_say(alice, frame);
    say_early(room, 2);
    commit(room);
    snprintf(frame, sizeof frame,
        "{\"type\":\"subscribe\",\"payload\":{\"rooms\":[{\"room_id\":\"%s\",\"after\":\"1:1\"}]}}", room->id);
    ws_say(alice, frame);
    turns(4);
    assert_string_equal(ws_transcript(alice), "hello ack ack room.entered 2");
    snprintf(frame, sizeof frame,
        "{\"type\":\"subscribe\",\"payload\":{\"rooms\":[{\"room_id\":\"s00.01KC46E0D7X8BQXSRB29FJP999\"}]}}");
    ws_say(alice, frame);
    assert_string_equal(ws_transcript(alice), "error");
    client_free(alice);
}

static void a_refused_websocket_is_told_why_after_101(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *mallory = client_open("ws", ticket_of("mallory", DELIVER_EARLY, false, rooms));

    (void)state;
    assert_int_equal(mallory->reply.status, 101);
    turns(2);
    assert_string_equal(ws_transcript(mallory), "error (close 4503)");
    client_free(mallory);
}

static void a_draining_instance_sends_its_streams_away(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *alice;

    (void)state;
    fake_instance_count = 2;
    memset(fake_instances, 0, sizeof fake_instances);
    fake_instances[0] =
        (struct cluster_instance){.id = "01KC46E0D7X8BQXSRB29FJP960", .url = "http://me", .alive = true, .self = true};
    fake_instances[1] =
        (struct cluster_instance){.id = "01KC46E0D7X8BQXSRB29FJP961", .url = "http://other", .alive = true};
    alice = client_open("ws", ticket_of("alice", DELIVER_EARLY, false, rooms));
    proxy_drain(world.proxy, 1000, NULL, NULL);
    turns(2);
    assert_string_equal(ws_transcript(alice), "hello migrate");
    assert_true(holds(&alice->wire.out, "http://other"));
    assert_false(holds(&alice->wire.out, "http://me"));
    turns_for(1100);
    assert_string_equal(ws_transcript(alice), "(close 4000)");
    client_free(alice);
}

static void a_crowded_room_gets_signals_and_later_everything_it_missed(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *clients[12];

    (void)state;
    world.config.signal_above_streams = 10;
    for (size_t i = 0; i < countof(clients); i++)
        clients[i] = listen_to(room, "alice", DELIVER_EARLY, NULL);
    say_early(room, 3);
    commit(room);
    turns(3);
    assert_string_equal(transcript(clients[0]), "hello signal");
    for (size_t i = 8; i < countof(clients); i++)
        client_free(clients[i]);
    turns(6);
    assert_string_equal(transcript(clients[0]), "1 2 3");
    for (size_t i = 0; i < 8; i++)
        client_free(clients[i]);
}

static void structs_of_an_idle_stream_are_small(void **state)
{
    (void)state;
    assert_in_range(sizeof(struct stream) + sizeof(struct sub) + sizeof(struct audience), 1, 640);
}

/* What a stream shows that resumes at `cursor` after the message was recalled; and that the content is not in it. */
static void assert_resumes_without(
    struct fake_room *room, const char *transport, enum deliver deliver, const char *cursor, const char *content)
{
    char position[128];
    const char *rooms[] = {position, NULL};
    struct client *client;

    snprintf(position, sizeof position, "%s@%s", room->id, cursor);
    client = client_open(transport, ticket_of("alice", deliver, false, rooms));
    turns(4);
    assert_true(holds(&client->wire.out, "\"state\":\"recalled\""));
    assert_true(holds(&client->wire.out, "message.recalled"));
    assert_false(holds(&client->wire.out, content));
    client_free(client);
}

static void assert_all_resume_without(struct fake_room *room, const char *cursor, const char *content)
{
    static const char *const transports[] = {"ws", "sse", "ndjson"};

    for (size_t i = 0; i < countof(transports); i++) {
        assert_resumes_without(room, transports[i], DELIVER_EARLY, cursor, content);
        assert_resumes_without(room, transports[i], DELIVER_DURABLE, cursor, content);
    }
}

static void say_secret(struct fake_room *room)
{
    proxy_shown(world.proxy, str_of(room->id), put_entry(room, ENTRY_MESSAGE, STR("\"secret\"")), false);
}

static void who_resumes_from_the_tail_after_a_recall_never_gets_the_content(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *near;

    (void)state;
    join(room, "bob", 0);
    log_before(room, 1);
    near = listen_to(room, "bob", DELIVER_EARLY, NULL);
    say_secret(room);
    commit(room);
    turns(2);
    change(room, ENTRY_EDITED, 2, ",\"content\":\"secret too\"");
    turns(2);
    assert_true(holds(&near->wire.out, "secret too"));
    change(room, ENTRY_RECALLED, 2, "");
    turns(2);
    assert_all_resume_without(room, "1:1", "secret");
    assert_int_equal(world.ranges_read, 0);
    client_free(near);
}

static void a_recall_reaches_a_live_stream_in_the_turn_of_its_message(void **state)
{
    struct fake_room *room = room_with("alice");
    struct client *durable = listen_to(room, "alice", DELIVER_DURABLE, NULL);

    (void)state;
    say_secret(room);
    change(room, ENTRY_RECALLED, 1, "");
    turns(2);
    assert_string_equal(transcript(durable), "hello 1 message.recalled:2");
    assert_false(holds(&durable->wire.out, "secret"));
    client_free(durable);
}

static void who_resumes_from_the_store_after_a_recall_never_gets_the_content(void **state)
{
    struct fake_room *room = room_with("alice");

    (void)state;
    log_before(room, 1);
    say_secret(room);
    commit(room);
    change(room, ENTRY_RECALLED, 2, "");
    assert_all_resume_without(room, "1:1", "secret");
    assert_in_range(world.ranges_read, 1, 6);
}

/* The read of who came first was asked before the recall, and is slow. */
static void a_read_on_its_way_is_not_shared_with_who_comes_later(void **state)
{
    struct fake_room *room = room_with("alice");
    char position[128];
    const char *rooms[] = {position, NULL};
    struct client *first, *later;
    struct list slow;

    (void)state;
    log_before(room, 1);
    say_secret(room);
    commit(room);
    snprintf(position, sizeof position, "%s@1:1", room->id);
    first = client_ask("ndjson", ticket_of("alice", DELIVER_DURABLE, false, rooms), "", NULL);
    turn();
    assert_false(list_empty(&world.ranges));
    list_init(&slow);
    list_splice_back(&slow, &world.ranges);

    room->log[2] = (entry_drop(room->log[2]), entry_new(&(struct entry_parts){.room_id = str_of(room->id),
                                                  .room_no = room->room_no,
                                                  .epoch = 1,
                                                  .seq = 2,
                                                  .type = ENTRY_MESSAGE,
                                                  .client_msg_id = STR("c"),
                                                  .sender = STR("bob"),
                                                  .kind = STR("text"),
                                                  .state = 2}));
    later = client_ask("ndjson", ticket_of("alice", DELIVER_DURABLE, false, rooms), "", NULL);
    turns(2);
    client_go_on(later);
    turns(4);
    assert_true(holds(&later->wire.out, "\"state\":\"recalled\""));
    assert_false(holds(&later->wire.out, "secret"));
    list_splice_back(&world.ranges, &slow);
    turns(2);
    client_go_on(first);
    turns(4);
    assert_string_equal(transcript(first), "hello 2");
    client_free(first);
    client_free(later);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, world_open, world_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_live_stream_shows_entries_in_order_as_they_come),
        TEST(a_durable_stream_shows_nothing_before_its_commit),
        TEST(a_stream_resumes_after_its_cursor),
        TEST(without_a_cursor_a_stream_begins_at_the_head),
        TEST(entries_that_come_while_a_stream_opens_are_neither_lost_nor_repeated),
        TEST(a_hole_above_the_durable_head_waits_for_the_commit),
        TEST(a_hole_among_live_entries_is_filled_from_the_store),
        TEST(a_slow_reader_gets_everything_in_order_at_its_own_pace),
        TEST(a_stuck_reader_does_not_hold_up_the_others),
        TEST(after_a_lost_tail_early_readers_are_told_to_go_back),
        TEST(news_of_an_epoch_alone_are_enough_for_a_reset),
        TEST(a_tail_that_was_committed_after_all_needs_no_reset),
        TEST(a_cursor_of_a_lost_tail_is_reset_when_it_comes_back),
        TEST(an_old_cursor_that_is_in_the_log_is_not_reset),
        TEST(a_cursor_above_the_head_is_reset_and_not_silent),
        TEST(an_early_cursor_is_reset_when_another_owner_puts_other_entries_there),
        TEST(what_an_instance_takes_back_is_not_taken_back_from_who_comes_with_the_log),
        TEST(an_early_cursor_of_a_moment_ago_waits_for_its_commit),
        TEST(the_mark_is_of_the_readers_entries_or_comes_after_the_reset),
        TEST(who_was_cut_off_before_a_void_is_told_of_it_and_then_of_the_mark),
        TEST(a_void_below_the_join_is_not_told),
        TEST(who_comes_back_before_the_void_is_told_of_it_before_the_mark),
        TEST(what_was_taken_back_is_asked_again_when_the_database_was_away),
        TEST(a_poll_tells_of_a_void_with_its_next_answer),
        TEST(history_since_join_is_never_shown_below_the_join),
        TEST(a_removed_account_gets_its_leave_and_nothing_after_it),
        TEST(a_slow_reader_that_was_removed_is_told_nothing_more_of_the_room),
        TEST(a_leave_that_overtakes_the_membership_answer_wins),
        TEST(a_stranger_is_refused),
        TEST(a_removed_room_ends_its_streams_after_the_last_entry),
        TEST(marks_are_not_sent_more_often_than_the_interval),
        TEST(a_reader_is_not_silent_because_the_instance_stood_still),
        TEST(a_ping_that_comes_late_names_all_that_moved_since_the_last_one),
        TEST(a_view_lives_as_long_as_somebody_listens),
        TEST(equal_reads_of_many_streams_are_one),
        TEST(a_database_that_is_away_delays_catching_up_and_loses_nothing),
        TEST(a_poll_answers_at_once_when_there_is_something),
        TEST(a_poll_is_held_until_something_comes),
        TEST(a_poll_that_comes_back_with_an_early_cursor_goes_on_there),
        TEST(a_poll_whose_client_leaves_is_forgotten),
        TEST(an_sse_stream_of_one_room_tells_positions_as_ids),
        TEST(websocket_frames_are_answered_in_order_with_their_req_id),
        TEST(a_websocket_may_leave_a_room_and_come_back_to_it),
        TEST(a_refused_websocket_is_told_why_after_101),
        TEST(a_draining_instance_sends_its_streams_away),
        TEST(a_crowded_room_gets_signals_and_later_everything_it_missed),
        TEST(who_resumes_from_the_tail_after_a_recall_never_gets_the_content),
        TEST(a_recall_reaches_a_live_stream_in_the_turn_of_its_message),
        TEST(who_resumes_from_the_store_after_a_recall_never_gets_the_content),
        TEST(a_read_on_its_way_is_not_shared_with_who_comes_later),
        TEST(structs_of_an_idle_stream_are_small),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
