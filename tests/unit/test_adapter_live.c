/*
 * Every call of the adapter library with a real service, named by ROOMD_TEST_INSTANCE_URLS, ROOMD_TEST_SERVICE_KEY and
 * ROOMD_TEST_GATEWAY_URL (the broker, as a gateway may use it); without them the test skips. ROOMD_TEST_CA_FILE: whom
 * to trust over TLS; ROOMD_TEST_CALL_MS: the calls' deadline.
 * tests/blackbox/test_adapter.py gives them.
 */
#define _GNU_SOURCE /* memmem */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "gateway-adapter/roomd_adapter.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct roomd_client *client;
static struct roomd_call call;
static char room_id[64], accounts[4][40];
static uint64_t last_seq;

#define done_ok()                                                                                             \
    do {                                                                                                      \
        if (roomd_call_wait(client, &call))                                                                   \
            fail_msg("%s: %s (%s)", roomd_code_name(call.code), call.message, call.field ? call.field : "-"); \
    } while (0)

static void rooms_are_made_found_changed_and_listed(void **state)
{
    struct roomd_room_created made, again;
    struct roomd_room_got got;
    struct roomd_room_updated updated;
    struct roomd_room_rooms rooms;
    struct roomd_room_create create = {.key = accounts[3],
        .name = "Ärzte \"1\"",
        .owner = accounts[0],
        .members = ROOMD_TEXTS(accounts[0], accounts[1]),
        .member_limit = 5,
        .history = "all",
        .extra = "{\"n\": 1.50}"};

    (void)state;
    roomd_room_create(client, &call, &create, &made);
    done_ok();
    assert_true(made.created);
    assert_int_equal(made.room.members, 2);
    assert_string_equal(made.room.owner, accounts[0]);
    assert_memory_equal(made.room.extra.p, "{\"n\": 1.50}", 11);
    snprintf(room_id, sizeof(room_id), "%s", made.room.room_id);
    roomd_room_create(client, &call, &create, &again);
    done_ok();
    assert_false(again.created);
    assert_string_equal(again.room.room_id, room_id);
    roomd_room_get(client, &call, &(struct roomd_room_get){.key = accounts[3]}, &got);
    done_ok();
    assert_string_equal(got.room.name, "Ärzte \"1\"");
    struct roomd_room_get many = {.room_ids = ROOMD_TEXTS(room_id)};
    roomd_room_get(client, &call, &many, &got);
    done_ok();
    assert_int_equal(got.room_count, 1);
    assert_string_equal(got.rooms[0].room_id, room_id);
    roomd_room_update(client, &call,
        &(struct roomd_room_update){
            .room_id = room_id, .notice = "read me", .member_limit = &(uint64_t){0}, .by = accounts[0]},
        &updated);
    done_ok();
    assert_string_equal(updated.room.notice, "read me");
    assert_int_equal(updated.room.member_limit, 0);
    roomd_room_list_rooms(
        client, &call, &(struct roomd_room_list_rooms){.account_id = accounts[1], .limit = 10}, &rooms);
    done_ok();
    assert_int_equal(rooms.room_count, 1);
    assert_string_equal(rooms.rooms[0].room_id, room_id);
    assert_non_null(rooms.rooms[0].last);
    assert_string_equal(rooms.rooms[0].last->type, "room.updated");
    assert_null(rooms.next);
}

static void accounts_come_go_and_have_roles(void **state)
{
    struct roomd_room_accounts_added added;
    struct roomd_room_accounts_removed removed;
    struct roomd_room_role_set role;
    struct roomd_room_muted muted;
    struct roomd_room_accounts listed;
    struct roomd_room_add_accounts add = {
        .room_id = room_id, .by = accounts[0], .account_ids = ROOMD_TEXTS(accounts[1], accounts[2])};
    struct roomd_room_set_role set = {.room_id = room_id, .role = "admin", .account_ids = ROOMD_TEXTS(accounts[1])};
    struct roomd_room_mute mute = {.room_id = room_id, .for_ms = 60000, .account_ids = ROOMD_TEXTS(accounts[2])};
    struct roomd_room_mute unmute = {
        .room_id = room_id, .until = &(uint64_t){0}, .account_ids = ROOMD_TEXTS(accounts[2])};
    struct roomd_room_rm_accounts rm = {.room_id = room_id, .reason = "bye", .account_ids = ROOMD_TEXTS(accounts[2])};

    (void)state;
    roomd_room_add_accounts(client, &call, &add, &added);
    done_ok();
    assert_int_equal(added.added.n, 1);
    assert_string_equal(added.already.p[0], accounts[1]);
    roomd_room_set_role(client, &call, &set, &role);
    done_ok();
    assert_string_equal(role.changed.p[0], accounts[1]);
    roomd_room_mute(client, &call, &mute, &muted);
    done_ok();
    assert_string_equal(muted.muted.p[0], accounts[2]);
    struct roomd_room_list_accounts list = {.room_id = room_id, .account_ids = ROOMD_TEXTS(accounts[2])};
    roomd_room_list_accounts(client, &call, &list, &listed);
    done_ok();
    assert_int_equal(listed.account_count, 1);
    assert_true(listed.accounts[0].muted_until > listed.accounts[0].joined_at);
    roomd_room_mute(client, &call, &unmute, &muted);
    done_ok();
    roomd_room_rm_accounts(client, &call, &rm, &removed);
    done_ok();
    assert_string_equal(removed.removed.p[0], accounts[2]);
}

static void who_is_connected_is_asked_and_sent_away(void **state)
{
    struct roomd_proxy_online_accounts online;
    struct roomd_proxy_room_connections connections;
    struct roomd_proxy_kicked kicked;

    (void)state;
    roomd_proxy_online(
        client, &call, &(struct roomd_proxy_online){.account_ids = ROOMD_TEXTS(accounts[0], "nobody")}, &online);
    done_ok();
    assert_int_equal(online.account_count, 2);
    assert_string_equal(online.accounts[1].account_id, "nobody");
    assert_int_equal(online.accounts[1].streams, 0);
    assert_int_equal(online.missing, 0);
    roomd_proxy_connections(client, &call, &(struct roomd_proxy_connections){.room_id = room_id}, &connections);
    done_ok();
    assert_int_equal(connections.streams, 0);
    assert_int_equal(connections.platform_count, 0);
    roomd_proxy_kick(client, &call,
        &(struct roomd_proxy_kick){.account_id = accounts[0], .platform = "web", .reason = "why"}, &kicked);
    done_ok();
    assert_int_equal(kicked.closed, 0);
}

static void messages_are_pushed_edited_recalled_deleted_and_read(void **state)
{
    struct roomd_history_pushed pushed;
    struct roomd_history_changed changed;
    struct roomd_history_marked marked;
    struct roomd_history_unread_of unread;
    struct roomd_history_pulled page;
    char message_id[27];

    (void)state;
    roomd_history_push(client, &call,
        &(struct roomd_history_push){.room_id = room_id, .sender = accounts[0], .text = "one", .wait = "durable"},
        &pushed);
    done_ok();
    assert_true(pushed.seq > 0);
    assert_int_equal(strlen(pushed.client_msg_id), 26);
    snprintf(message_id, sizeof(message_id), "%s", pushed.message_id);
    roomd_history_edit(client, &call,
        &(struct roomd_history_edit){
            .room_id = room_id, .account_id = accounts[0], .message_id = message_id, .text = "two"},
        &changed);
    done_ok();
    assert_true(changed.seq > pushed.seq);
    roomd_history_unread(client, &call, &(struct roomd_history_unread){.account_id = accounts[1]}, &unread);
    done_ok();
    assert_int_equal(unread.total, 1);
    assert_int_equal(unread.rooms[0].unread, 1);
    roomd_history_mark_read(client, &call,
        &(struct roomd_history_mark_read){
            .room_id = room_id, .account_id = accounts[1], .read_seq = unread.rooms[0].head_seq},
        &marked);
    done_ok();
    assert_int_equal(marked.unread, 0);
    roomd_history_delete(client, &call,
        &(struct roomd_history_delete){
            .room_id = room_id, .account_id = accounts[1], .message_id = message_id, .scope = "me"},
        &changed);
    done_ok();
    assert_int_equal(changed.seq, 0);
    roomd_history_recall(client, &call,
        &(struct roomd_history_recall){.room_id = room_id, .account_id = accounts[0], .message_id = message_id},
        &changed);
    done_ok();
    last_seq = changed.seq;
    roomd_history_pull(client, &call,
        &(struct roomd_history_pull){.room_id = room_id, .account_id = accounts[0], .after = "0:0", .limit = 500},
        &page);
    done_ok();
    assert_int_equal(page.entries[page.entry_count - 1].seq, last_seq);
    assert_string_equal(page.entries[page.entry_count - 1].type, "message.recalled");
    for (size_t i = 0; i < page.entry_count; i++)
        assert_int_equal(page.entries[i].seq, i + 1);
}

static void a_refusal_is_the_services(void **state)
{
    (void)state;
    roomd_history_push(
        client, &call, &(struct roomd_history_push){.room_id = room_id, .sender = "nobody", .text = "x"}, NULL);
    assert_int_equal(roomd_call_wait(client, &call), ROOMD_NOT_MEMBER);
    assert_int_equal(call.http_status, 403);
    assert_true(strlen(call.message) > 10);
    roomd_room_get(client, &call, &(struct roomd_room_get){.room_id = "s00.01KC46E0D7X8BQXSRB29FJP960"}, NULL);
    assert_int_equal(roomd_call_wait(client, &call), ROOMD_NO_SUCH_ROOM);
}

static void on_event(void *arg, const char *json, size_t n)
{
    bool *seen = arg;

    *seen = *seen || memmem(json, n, "through the broker", 18) != NULL;
}

static void a_sent_message_comes_out_of_a_stream(void **state)
{
    struct roomd_history_opened opened;
    struct roomd_send send = {0};
    struct roomd_stream *stream;
    struct roomd_position from = {.room_id = room_id, .after = "0:0"};
    bool seen = false;

    (void)state;
    roomd_history_open(client, &call,
        &(struct roomd_history_open){
            .account_id = accounts[1], .rooms = &from, .room_count = 1, .deliver = "durable", .platform = "test"},
        &opened);
    done_ok();
    assert_true(opened.endpoint_count >= 1 && opened.heartbeat_ms > 0 && opened.backoff_factor == 2);
    assert_string_equal(opened.rooms[0].room_id, room_id);
    stream = roomd_stream_open(client, &opened, &(struct roomd_stream_events){.event = on_event}, &seen);
    assert_non_null(stream);
    roomd_send(client, &send,
        &(struct roomd_message){.room_id = room_id, .sender = accounts[0], .text = "through the broker"});
    assert_int_equal(roomd_send_wait(client, &send), ROOMD_OK);
    for (int i = 0; i < 1000 && !seen; i++)
        roomd_client_wait(client, 30);
    assert_true(seen);
    roomd_stream_close(stream);
    roomd_send(client, &send,
        &(struct roomd_message){.room_id = "zz9.01KC46E0D7X8BQXSRB29FJP960", .sender = accounts[0], .text = "x"});
    assert_int_equal(roomd_send_wait(client, &send), ROOMD_NO_SUCH_ROOM);
}

static void a_removed_room_is_gone(void **state)
{
    (void)state;
    roomd_room_remove(client, &call, &(struct roomd_room_remove){.room_id = room_id, .by = accounts[0]});
    done_ok();
    roomd_history_push(
        client, &call, &(struct roomd_history_push){.room_id = room_id, .sender = accounts[0], .text = "x"}, NULL);
    assert_int_equal(roomd_call_wait(client, &call), ROOMD_ROOM_GONE);
}

static int open_client(void **state)
{
    struct roomd_settings settings = {.instance_urls = getenv("ROOMD_TEST_INSTANCE_URLS"),
        .service_key = getenv("ROOMD_TEST_SERVICE_KEY"),
        .broker_urls = getenv("ROOMD_TEST_GATEWAY_URL"),
        .ca_file = getenv("ROOMD_TEST_CA_FILE"),
        .call_ms = getenv("ROOMD_TEST_CALL_MS") ? atoi(getenv("ROOMD_TEST_CALL_MS")) : 30000,
        .try_ms = 15000};

    (void)state;
    for (int i = 0; i < 4; i++) {
        roomd_mint(accounts[i]);
        strcat(accounts[i], "-x");
    }
    return roomd_client_open(&client, &settings, NULL);
}

static int close_client(void **state)
{
    (void)state;
    roomd_call_clear(&call);
    roomd_client_close(client);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rooms_are_made_found_changed_and_listed),
        cmocka_unit_test(accounts_come_go_and_have_roles),
        cmocka_unit_test(messages_are_pushed_edited_recalled_deleted_and_read),
        cmocka_unit_test(who_is_connected_is_asked_and_sent_away),
        cmocka_unit_test(a_refusal_is_the_services),
        cmocka_unit_test(a_sent_message_comes_out_of_a_stream),
        cmocka_unit_test(a_removed_room_is_gone),
    };

    if (!getenv("ROOMD_TEST_INSTANCE_URLS") || !getenv("ROOMD_TEST_SERVICE_KEY") || !getenv("ROOMD_TEST_GATEWAY_URL")) {
        printf("ROOMD_TEST_INSTANCE_URLS, …_SERVICE_KEY and …_GATEWAY_URL are not set: skipped\n");
        return 0;
    }
    return cmocka_run_group_tests(tests, open_client, close_client);
}
