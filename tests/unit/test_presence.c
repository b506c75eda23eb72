/* Who is connected: what one instance knows, what all say together, and streams that are closed for an account. */
#include "proxy_fakes.h"

static struct {
    bool done;
    enum err err;
    char json[4096];
    struct proxy_survey survey;
} asked;

static void on_done(struct proxy_survey *survey, enum err err, struct str json)
{
    (void)survey;
    asked.done = true;
    asked.err = err;
    snprintf(asked.json, sizeof asked.json, "%.*s", STR_ARG(json));
}

static const char *settle(void)
{
    assert_false(asked.done); /* never from inside the call */
    turn();
    assert_true(asked.done);
    return asked.json;
}

static const char *online(const char *account, const char *other)
{
    struct str accounts[] = {str_of(account), str_of(other ? other : "")};

    asked.done = false;
    asked.survey = (struct proxy_survey){.done = on_done};
    proxy_ask_online(world.proxy, &asked.survey, accounts, other ? 2 : 1);
    return settle();
}

static const char *connections(const struct fake_room *room)
{
    asked.done = false;
    asked.survey = (struct proxy_survey){.done = on_done};
    proxy_ask_connections(world.proxy, &asked.survey, str_of(room->id));
    return settle();
}

static const char *kick(const char *account, const char *platform, const char *reason)
{
    asked.done = false;
    asked.survey = (struct proxy_survey){.done = on_done};
    proxy_kick(world.proxy, &asked.survey, str_of(account), str_of(platform), str_of(reason));
    return settle();
}

static struct fake_room *room_with(const char *account)
{
    struct fake_room *room = room_new();

    join(room, account, 0);
    return room;
}

static char *platform_ticket(const char *platform, const char *account, const char *const *rooms)
{
    char *text;

    ticket_platform = platform;
    text = ticket_of(account, DELIVER_EARLY, false, rooms);
    ticket_platform = "";
    return text;
}

static void leave(struct client *client)
{
    if (client->reply.gone && !client->reply.status) /* a poll that is held */
        client->reply.gone(client->reply.gone_arg);
    client_free(client);
}

static const char *const transports[] = {"ws", "sse", "ndjson", "poll"};

static void streams_of_all_transports_are_counted_by_platform(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *clients[5];
    char expected[256];

    (void)state;
    assert_string_equal(online("alice", NULL),
        "\"accounts\":[{\"account_id\":\"alice\",\"streams\":0,\"platforms\":[]}],\"missing\":0");
    for (size_t i = 0; i < 4; i++)
        clients[i] = client_open(transports[i], platform_ticket(i % 2 ? "web" : "ios", "alice", rooms));
    clients[4] = client_open("ws", platform_ticket("", "alice", rooms));
    assert_string_equal(online("nobody", "alice"),
        "\"accounts\":[{\"account_id\":\"nobody\",\"streams\":0,\"platforms\":[]},{\"account_id\":\"alice\","
        "\"streams\":5,\"platforms\":[{\"platform\":\"ios\",\"streams\":2},{\"platform\":\"web\",\"streams\":2}]}],"
        "\"missing\":0");
    snprintf(expected, sizeof expected,
        "\"room_id\":\"%s\",\"streams\":5,\"platforms\":[{\"platform\":\"ios\",\"streams\":2},{\"platform\":\"web\","
        "\"streams\":2}],\"missing\":0",
        room->id);
    assert_string_equal(connections(room), expected);
    for (size_t i = 0; i < 5; i++)
        leave(clients[i]);
    turns(3);
    assert_string_equal(online("alice", NULL),
        "\"accounts\":[{\"account_id\":\"alice\",\"streams\":0,\"platforms\":[]}],\"missing\":0");
}

static void what_others_say_is_added_and_who_says_nothing_is_missing(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *alice = client_open("ws", platform_ticket("ios", "alice", rooms));

    (void)state;
    world.others_say[0] = "[[1,\"web\",2],[0,\"ios\",1],[0,\"\\\"odd\\\"\",1]]";
    world.others_say[1] = ""; /* just starting */
    world.others_say[2] = "{\"later\":\"program\"}";
    world.others_missing = 1;
    assert_string_equal(online("alice", "bob"),
        "\"accounts\":[{\"account_id\":\"alice\",\"streams\":3,\"platforms\":[{\"platform\":\"\\\"odd\\\"\","
        "\"streams\":1},{\"platform\":\"ios\",\"streams\":2}]},{\"account_id\":\"bob\",\"streams\":2,"
        "\"platforms\":[{\"platform\":\"web\",\"streams\":2}]}],\"missing\":1");
    assert_string_equal(world.question, "online [\"alice\",\"bob\"]");
    leave(alice);
}

static struct client *answered_poll(struct fake_room *room, const char *const *rooms)
{
    struct client *poll = client_open("poll", platform_ticket("ios", "alice", rooms));

    say_early(room, 1);
    turns(2);
    assert_int_equal(poll->reply.status, 200);
    return poll;
}

static void a_poll_counts_also_between_two_requests(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *first = answered_poll(room, rooms), *second;

    (void)state;
    assert_int_equal(proxy_streams(world.proxy), 0);
    assert_non_null(
        strstr(online("alice", NULL), "\"streams\":1,\"platforms\":[{\"platform\":\"ios\",\"streams\":1}]"));
    assert_non_null(strstr(connections(room), "\"streams\":1,"));
    second = client_open("poll", platform_ticket("ios", "alice", rooms));
    assert_non_null(strstr(online("alice", NULL), "\"streams\":1,"));
    assert_non_null(strstr(connections(room), "\"streams\":1,"));
    leave(first);
    leave(second);
}

/* The program ends meanwhile. */
static void a_poll_that_is_still_asking_stands_in_for_the_one_before(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *first = answered_poll(room, rooms), *second;

    (void)state;
    world.access_waits = true;
    second = client_open("poll", platform_ticket("ios", "alice", rooms));
    assert_non_null(strstr(online("alice", NULL), "\"streams\":1,"));
    client_free(first);
    proxy_stop(world.proxy);
    world.stopped = true;
    assert_int_equal(second->reply.status, 503);
    client_free(second);
}

static void a_poll_that_does_not_come_again_is_gone_soon(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *poll = answered_poll(room, rooms);

    (void)state;
    turns_for(3100);
    assert_non_null(strstr(online("alice", NULL), "\"streams\":0,"));
    leave(poll);
}

static void a_kick_closes_the_streams_of_every_transport_with_the_reason(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *clients[4], *bob;

    (void)state;
    join(room, "bob", 0);
    for (size_t i = 0; i < 4; i++)
        clients[i] = client_open(transports[i], platform_ticket("ios", "alice", rooms));
    bob = client_open("ndjson", platform_ticket("ios", "bob", rooms));
    assert_string_equal(kick("alice", "", "signed in elsewhere"), "\"closed\":4");
    assert_int_equal(asked.err, ERR_OK);
    turns(3);
    assert_string_equal(ws_transcript(clients[0]), "hello error (close 4502)");
    for (size_t i = 0; i < 3; i++)
        assert_true(holds(
            &clients[i]->wire.out, "{\"type\":\"error\",\"code\":\"forbidden\",\"message\":\"signed in elsewhere\"}"));
    assert_true(clients[1]->wire.gone && clients[2]->wire.gone);
    assert_int_equal(clients[3]->reply.status, 403);
    say_early(room, 1);
    turns(2);
    assert_string_equal(transcript(bob), "hello 1");
    for (size_t i = 0; i < 4; i++)
        leave(clients[i]);
    leave(bob);
}

static void a_kick_of_one_platform_leaves_the_others(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *ios = client_open("ws", platform_ticket("ios", "alice", rooms)),
                  *web = client_open("ws", platform_ticket("web", "alice", rooms)),
                  *none = client_open("ws", platform_ticket("", "alice", rooms));

    (void)state;
    assert_string_equal(kick("alice", "ios", ""), "\"closed\":1");
    turns(3);
    assert_string_equal(ws_transcript(ios), "hello error (close 4502)");
    assert_string_equal(ws_transcript(web), "hello");
    assert_string_equal(ws_transcript(none), "hello");
    assert_string_equal(kick("nobody", "", ""), "\"closed\":0");
    leave(ios);
    leave(web);
    leave(none);
}

static void a_stream_that_is_just_opening_is_closed_too(void **state)
{
    static const struct http_pair upgrade[] = {{"upgrade", "websocket"}, {"connection", "Upgrade"},
        {"sec-websocket-version", "13"}, {"sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="}, {NULL, NULL}};
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *clients[4];

    (void)state;
    for (size_t i = 0; i < 4; i++)
        clients[i] = client_ask(transports[i], platform_ticket("ios", "alice", rooms), "", i == 0 ? upgrade : NULL);
    assert_int_equal(proxy_streams(world.proxy), 4);
    /* Asked before the answers that let them in. */
    asked.done = false;
    asked.survey = (struct proxy_survey){.done = on_done};
    proxy_kick(world.proxy, &asked.survey, STR("alice"), STR(""), STR(""));
    fake_answer_survey();
    assert_string_equal(asked.json, "\"closed\":4");
    turns(3);
    client_go_on(clients[0]);
    turns(3);
    assert_string_equal(ws_transcript(clients[0]), "error (close 4502)");
    for (size_t i = 1; i < 4; i++)
        assert_int_equal(clients[i]->reply.status, 403);
    turns(3);
    for (size_t i = 0; i < 4; i++)
        leave(clients[i]);
}

static void a_kick_meets_a_poll_between_two_requests(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *first = client_open("poll", platform_ticket("ios", "alice", rooms)), *second, *third;

    (void)state;
    say_early(room, 1);
    turns(2);
    assert_int_equal(first->reply.status, 200);
    assert_string_equal(kick("alice", "", ""), "\"closed\":1");
    assert_non_null(strstr(online("alice", NULL), "\"streams\":0,"));
    second = client_open("poll", platform_ticket("ios", "alice", rooms));
    assert_int_equal(second->reply.status, 403);
    third = client_open("poll", platform_ticket("ios", "alice", rooms)); /* it came back although it was told not to */
    assert_int_equal(third->reply.status, 0);
    leave(first);
    leave(second);
    leave(third);
}

static void a_kick_that_not_everybody_heard_says_so(void **state)
{
    (void)state;
    world.others_say[0] = "2";
    assert_string_equal(kick("alice", "", ""), "\"closed\":2");
    assert_string_equal(world.question, "kick {\"account_id\":\"alice\"}");
    world.others_missing = 1;
    kick("alice", "ios", "a \"reason\"");
    assert_int_equal(asked.err, ERR_TIMEOUT);
    assert_string_equal(
        world.question, "kick {\"account_id\":\"alice\",\"platform\":\"ios\",\"reason\":\"a \\\"reason\\\"\"}");
}

static void a_question_of_a_later_program_is_not_answered(void **state)
{
    static const char *const questions[] = {"where alice", "online", "online {", "online {}", "kick []", "kick", ""};
    struct buf answer = {0};

    (void)state;
    for (size_t i = 0; i < countof(questions); i++)
        proxy_asked(world.proxy, str_of(questions[i]), &answer);
    assert_int_equal(answer.n, 0);
    proxy_asked(world.proxy, STR("online [1,[],null]"), &answer);
    assert_true(str_is(buf_str(&answer), "[]"));
    buf_clear(&answer);
}

static void a_question_is_answered_when_the_instance_stops(void **state)
{
    (void)state;
    asked.done = false;
    asked.survey = (struct proxy_survey){.done = on_done};
    proxy_ask_online(world.proxy, &asked.survey, NULL, 0);
    presence_close(world.proxy);
    assert_true(asked.done);
    assert_int_equal(asked.err, ERR_CLOSED);
}

static void a_migrating_stream_stays_of_its_platform(void **state)
{
    struct fake_room *room = room_with("alice");
    const char *rooms[] = {room->id, NULL};
    struct client *alice = client_open("ndjson", platform_ticket("ios", "alice", rooms));
    struct roomd_ticket *ticket = xcalloc(1, sizeof *ticket);
    const char *at, *end;

    (void)state;
    fake_instance_count = 2;
    memset(fake_instances, 0, sizeof fake_instances);
    fake_instances[0] = (struct cluster_instance){.id = "01KC46E0D7X8BQXSRB29FJP960", .alive = true, .self = true};
    fake_instances[1] =
        (struct cluster_instance){.id = "01KC46E0D7X8BQXSRB29FJP961", .url = "http://other", .alive = true};
    proxy_drain(world.proxy, 60000, NULL, NULL);
    turns_for(50);
    buf_char(&alice->wire.out, '\0');
    at = strstr(alice->wire.out.p, "\"ticket\":\"");
    assert_non_null(at);
    at += 10;
    end = strchr(at, '"');
    assert_int_equal(
        roomd_ticket_verify(ticket, at, (size_t)(end - at), &world.keys, world.now_ms, 3600000), ROOMD_TICKET_OK);
    assert_int_equal(ticket->platform.n, 3);
    assert_memory_equal(ticket->platform.p, "ios", 3);
    free(ticket);
    leave(alice);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, world_open, world_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(streams_of_all_transports_are_counted_by_platform),
        TEST(what_others_say_is_added_and_who_says_nothing_is_missing),
        TEST(a_poll_counts_also_between_two_requests),
        TEST(a_poll_that_is_still_asking_stands_in_for_the_one_before),
        TEST(a_poll_that_does_not_come_again_is_gone_soon),
        TEST(a_kick_closes_the_streams_of_every_transport_with_the_reason),
        TEST(a_kick_of_one_platform_leaves_the_others),
        TEST(a_stream_that_is_just_opening_is_closed_too),
        TEST(a_kick_meets_a_poll_between_two_requests),
        TEST(a_kick_that_not_everybody_heard_says_so),
        TEST(a_question_of_a_later_program_is_not_answered),
        TEST(a_question_is_answered_when_the_instance_stops),
        TEST(a_migrating_stream_stays_of_its_platform),
    };

    log_set_level(LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
