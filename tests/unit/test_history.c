/* The owner of shards against real servers: what is confirmed is in the log once, in order, whatever breaks. */
#include "history_rig.h"

#include <signal.h>

struct story {
    struct rig *rig; /* NULL: no servers, skip */
};

static void wait_confirmed(struct rig *rig)
{
    rig_wait(rig, rig_all_confirmed);
    assert_int_equal(rig_publish_failures, 0);
}

static bool drained;

static void on_drained(void *arg)
{
    (void)arg;
    drained = true;
}

static bool is_drained(void *arg)
{
    (void)arg;
    return drained;
}

/* An orderly end: everything committed is acknowledged, nothing is left in the queues. */
static void stop_in_order(struct rig *rig)
{
    drained = false;
    history_drain(rig->history, WAIT_MS, on_drained, NULL);
    rig_wait(rig, is_drained);
    assert_int_equal(rig->cluster.released, RIG_SHARDS);
    assert_int_equal(rig_queued(rig), 0);
    rig_crash(rig);
}

/* Copies of all dead letters of the broker, from the moment of listening. */
struct letters {
    struct amqp_consumer *consumer;
    bool started;
    size_t count;
    char bodies[8][1200];
};

static void letters_on_started(void *owner)
{
    ((struct letters *)owner)->started = true;
}

static void letters_on_delivered(void *owner, const struct amqp_delivery *delivery)
{
    struct letters *letters = owner;

    if (letters->count < countof(letters->bodies))
        snprintf(letters->bodies[letters->count++], sizeof letters->bodies[0], "%.*s", STR_ARG(delivery->body));
}

static void letters_on_lost(void *owner, enum err err, struct str text)
{
    (void)owner;
    fail_msg("%s %.*s", err_code(err), STR_ARG(text));
}

static const struct amqp_consumer_events letters_events = {letters_on_started, letters_on_delivered, letters_on_lost};

static int letters_bound;

static void letters_on_bound(void *arg, enum err err, struct str text)
{
    (void)arg;
    (void)text;
    assert_int_equal(err, ERR_OK);
    letters_bound++;
}

static bool letters_all_bound(void *arg)
{
    (void)arg;
    return letters_bound == 2;
}

static bool letters_ready(void *arg)
{
    return ((struct letters *)arg)->started;
}

static void letters_listen(struct rig *rig, struct letters *letters)
{
    char queue[48];

    *letters = (struct letters){0};
    letters_bound = 0;
    snprintf(queue, sizeof queue, "test.letters.%s", rig->cluster.self);
    amqp_declare_queue(rig->publish, queue, &(struct amqp_queue_options){.auto_delete = true}, letters_on_bound, NULL);
    amqp_bind_queue(rig->publish, queue, "roomd.dead", "dead", letters_on_bound, NULL);
    rig_wait(rig, letters_all_bound);
    letters->consumer = amqp_consume(rig->publish, queue, 100, true, &letters_events, letters);
    assert_true(loop_until(rig->loop, letters_ready, letters, WAIT_MS));
}

static bool letters_one(void *arg)
{
    return ((struct letters *)arg)->count >= 1;
}

static bool outbox_all_sent(void *arg)
{
    return rig_number(arg, "SELECT count(*) FROM outbox WHERE sent_at IS NULL") == 0;
}

/* --------------------------------------------------------------------------------------------------- the plain way */

static void ten_thousand_messages_in_fifty_rooms_are_in_the_log_once_and_in_order(void **state)
{
    RIG_OR_SKIP(rig);
    start_with_rooms(rig, 50);

    for (size_t i = 0; i < 10000; i += 1000) {
        rig_say_many(rig, 50, i, i + 1000);
        wait_confirmed(rig);
    }
    wait_durable(rig, 10000);

    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry WHERE type = 1"), 10000);
    assert_int_equal(rig->early_total, 10000);
    rig_check_log(rig);
    rig_check_order(rig);
    stop_in_order(rig);
}

static void the_same_message_said_again_is_one_entry(void **state)
{
    RIG_OR_SKIP(rig);
    start_with_rooms(rig, 5);

    for (int i = 0; i < 3; i++)
        rig_say_many(rig, 5, 0, 200);
    wait_confirmed(rig);
    rig_say_many(rig, 5, 200, 205); /* behind all of them, in each shard */
    wait_durable(rig, 205);

    stop_in_order(rig);
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry"), 205);
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM outbox"), 0);
    rig_check_log(rig);
}

static void other_content_under_the_same_id_is_a_dead_letter_with_its_body_unchanged(void **state)
{
    RIG_OR_SKIP(rig);
    struct letters letters;

    start_with_rooms(rig, 1);
    letters_listen(rig, &letters);
    rig_say(rig, 0, "ada", "m1", "the first");
    rig_say(rig, 0, "ada", "m1", "the  second");
    assert_true(loop_until(rig->loop, letters_one, &letters, WAIT_MS));
    rig_wait(rig, outbox_all_sent);

    assert_non_null(
        strstr(letters.bodies[0], "\"client_msg_id\":\"m1\",\"kind\":\"text\",\"content\":\"the  second\"}"));
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM outbox WHERE reason = 'conflict' AND room_id <> ''"), 1);
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry WHERE content = '\"the first\"'"), 1);
    assert_int_equal(rig->rejected_total, 1);
    assert_non_null(strstr(rig->rejected, "\"client_msg_id\":\"m1\""));
    assert_non_null(strstr(rig->rejected, "\"code\":\"conflict\",\"message\":\""));
    stop_in_order(rig);
}

static bool four_dead(void *arg)
{
    return rig_number(arg, "SELECT count(*) FROM outbox WHERE sent_at IS NOT NULL") == 4;
}

static void what_cannot_be_accepted_is_a_dead_letter_and_what_follows_goes_on(void **state)
{
    RIG_OR_SKIP(rig);
    start_with_rooms(rig, 1);

    rig_publish_body(rig, rig->cluster.shards[0].name, "no json");
    rig_say(rig, 4, "ada", "m1", "no such room");
    rig_say(rig, 0, "eve", "m2", "a stranger");
    rig_say(rig, 0, "bob", "m3", "fine");
    rig_publish_body(rig, rig->cluster.shards[1].name, "{\"op\":\"room.remove\",\"room_id\":\"x\"}");
    wait_durable(rig, 1);
    rig_wait(rig, four_dead);

    assert_int_equal(rig_number(rig, "SELECT count(*) FROM outbox WHERE reason = 'no_such_room'"), 1);
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM outbox WHERE reason = 'not_member'"), 1);
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry"), 1);
    stop_in_order(rig);
}

/* ------------------------------------------------------------------------------------------------ broken databases */

static bool write_lane_down(void *arg)
{
    return !pg_up(((struct rig *)arg)->pg, PG_WRITE);
}

static void while_the_database_is_away_messages_are_shown_early_and_committed_later(void **state)
{
    RIG_OR_SKIP(rig);
    start_with_rooms(rig, 5);
    rig_say_many(rig, 5, 0, 100); /* rooms and members are in memory now */
    wait_durable(rig, 100);

    relay_cut(&rig->relay);
    rig_wait(rig, write_lane_down);
    rig_say_many(rig, 5, 100, 1100);
    wanted = 1100;
    rig_wait(rig, enough_shown);
    assert_int_equal(rig_sum(rig->durable), 100);
    relay_listen(&rig->relay);
    wait_durable(rig, 1100);

    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry"), 1100);
    rig_check_log(rig);
    rig_check_order(rig);
    stop_in_order(rig);
}

static bool inbox_paused(void *arg)
{
    struct buf out = {0};
    bool paused;

    history_metrics(((struct rig *)arg)->history, &out);
    buf_char(&out, '\0');
    paused = strstr(out.p, "\nroomd_inbox_paused 1\n") != NULL;
    buf_clear(&out);
    return paused;
}

static void what_is_accepted_while_the_database_is_away_is_bounded(void **state)
{
    RIG_OR_SKIP(rig);
    rig->config.unpersisted_max_bytes = 100000; /* some hundred messages; the prefetch would be 2,000 */
    start_with_rooms(rig, 4);
    rig_say_many(rig, 4, 0, 100);
    wait_durable(rig, 100);

    relay_cut(&rig->relay);
    rig_wait(rig, write_lane_down);
    rig_say_many(rig, 4, 100, 3100);
    wait_confirmed(rig);
    rig_wait(rig, inbox_paused);
    assert_true(rig_sum(rig->shown) < 1500);
    relay_listen(&rig->relay);
    wait_durable(rig, 3100);

    assert_false(inbox_paused(rig));
    rig_check_log(rig);
    rig_check_order(rig);
    stop_in_order(rig);
}

static void fifty_backends_that_die_during_commits_lose_and_repeat_nothing(void **state)
{
    RIG_OR_SKIP(rig);
    char sql[200];

    start_with_rooms(rig, 10);

    for (size_t i = 0; i < 50; i++) {
        rig_say_many(rig, 10, i * 200, i * 200 + 200);
        wanted = i * 200 + 1 + i; /* somewhere in the middle of it */
        rig_wait(rig, enough_durable);
        snprintf(sql, sizeof sql,
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid = %d "
            "AND query LIKE 'SELECT append(%%'",
            rig->cluster.backend_pid); /* no other's: other tests run beside this one */
        rig_number(rig, sql);
    }
    wait_durable(rig, 10000);
    wait_confirmed(rig);

    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry WHERE type = 1"), 10000);
    rig_check_log(rig);
    rig_check_order(rig);
    stop_in_order(rig);
}

/* The relay cuts both directions: the answer to a COMMIT that happened is lost, or the batch before it arrived. */
static void connections_cut_at_any_moment_lose_and_repeat_nothing(void **state)
{
    RIG_OR_SKIP(rig);
    start_with_rooms(rig, 10);

    for (size_t i = 0; i < 20; i++) {
        rig_say_many(rig, 10, i * 100, i * 100 + 100);
        wanted = i * 100 + 1 + i * 4;
        rig_wait(rig, enough_shown);
        if (i % 2) { /* first silence, for a turn: what was sent is not answered */
            relay_freeze(&rig->relay);
            uv_run(rig->loop, UV_RUN_ONCE);
        }
        relay_cut(&rig->relay);
        uv_run(rig->loop, UV_RUN_ONCE);
        relay_listen(&rig->relay);
    }
    wait_durable(rig, 2000);

    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry WHERE type = 1"), 2000);
    rig_check_log(rig);
    rig_check_order(rig);
    stop_in_order(rig);
}

static void what_the_database_refuses_becomes_a_void_and_its_neighbours_stay(void **state)
{
    RIG_OR_SKIP(rig);
    start_with_rooms(rig, 3);
    database_run(rig->sql, "ALTER TABLE log_entry ADD CHECK (content <> '\"poison\"')");

    relay_cut(&rig->relay); /* so that all gather into large batches */
    rig_wait(rig, write_lane_down);
    relay_listen(&rig->relay);
    for (size_t i = 0; i < 300; i++) {
        char id[32], content[32];

        snprintf(id, sizeof id, "m%zu", i);
        snprintf(content, sizeof content, "%zu", i);
        rig_say(rig, i % 3, "ada", id, i == 100 || i == 101 || i == 250 ? "poison" : content);
    }
    wait_durable(rig, 300);
    rig_wait(rig, outbox_all_sent);

    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry WHERE type = 1"), 297);
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry WHERE type = 0 AND message_id IS NULL"), 3);
    assert_int_equal(
        rig_number(rig,
            "SELECT count(*) FROM outbox WHERE reason = 'bad_request' AND convert_from(body, 'UTF8') LIKE '%poison%'"),
        3);
    assert_int_equal(rig->voids_over_early, 3);
    rig_check_log(rig);
    rig_check_order(rig);
    stop_in_order(rig);
}

static void a_duplicate_that_memory_forgot_becomes_a_void(void **state)
{
    RIG_OR_SKIP(rig);
    rig->config.dedup_window = 0;
    start_with_rooms(rig, 2);
    rig_say_many(rig, 2, 0, 100);
    wait_durable(rig, 100);

    rig_say_many(rig, 2, 40, 60);
    rig_say(rig, 0, "ada", "m0", "other content");
    rig_say_many(rig, 2, 100, 150);
    wait_durable(rig, 171);

    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry WHERE type = 1"), 150);
    assert_int_equal(
        rig_number(rig, "SELECT count(*) FROM log_entry WHERE type = 0 AND content LIKE '\"of_seq\":%'"), 21);
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM outbox WHERE reason = 'conflict'"), 1);
    rig_check_log(rig);
    rig_check_order(rig);
    stop_in_order(rig);
}

/* ------------------------------------------------------------------------------------------------------- ownership */

static void after_a_crash_what_was_not_acknowledged_comes_again_and_is_recognised(void **state)
{
    RIG_OR_SKIP(rig);
    start_with_rooms(rig, 10);

    for (size_t i = 0; i < 5; i++) {
        rig_say_many(rig, 10, i * 1000, i * 1000 + 1000);
        wait_confirmed(rig);
        wanted = i * 1000 + 500;
        rig_wait(rig, enough_durable);
        rig_crash(rig);
        rig_start(rig);
        rig_take_all(rig);
    }
    rig_say_many(rig, 10, 5000, 5010); /* behind all that comes again, in each shard */
    wait_durable(rig, 5010);

    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry WHERE type = 1"), 5010);
    assert_true(rig_number(rig, "SELECT count(DISTINCT epoch) FROM log_entry") > 1);
    rig_check_log(rig);
    rig_check_order(rig);
    stop_in_order(rig);
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry"), 5010);
}

/* Rows that have a seq stay and are committed; their redelivery finds them by id. Every other time the database is away
 * as well. */
static void a_consuming_connection_that_breaks_loses_and_repeats_nothing(void **state)
{
    RIG_OR_SKIP(rig);
    start_with_rooms(rig, 10);

    for (size_t i = 0; i < 10; i++) {
        rig_say_many(rig, 10, i * 300, i * 300 + 300);
        wanted = i * 300 + 1 + i * 20;
        rig_wait(rig, enough_shown);
        relay_cut(&rig->consume_relay);
        if (i % 2)
            relay_cut(&rig->relay);
        uv_run(rig->loop, UV_RUN_ONCE);
        relay_listen(&rig->consume_relay);
        if (i % 2)
            relay_listen(&rig->relay);
        wanted = i * 300 + 300;
        rig_wait(rig, enough_shown);
    }
    rig_say_many(rig, 10, 3000, 3010); /* behind all that comes again, in each shard */
    wait_durable(rig, 3010);

    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry WHERE type = 1"), 3010);
    assert_int_equal(rig_number(rig, "SELECT count(DISTINCT epoch) FROM log_entry"), 1);
    rig_check_log(rig);
    rig_check_order(rig);
    stop_in_order(rig);
}

static bool all_lost(void *arg)
{
    return ((struct rig *)arg)->lost == RIG_SHARDS;
}

static void behind_the_fence_nothing_is_written_and_nothing_is_acknowledged(void **state)
{
    RIG_OR_SKIP(rig);
    start_with_rooms(rig, 8);
    rig_say_many(rig, 8, 0, 80);
    wait_durable(rig, 80);

    database_run(rig->sql, "UPDATE shard_lease SET epoch = epoch + 1, holder = 'somebody else'");
    rig_say_many(rig, 8, 80, 180);
    rig_wait(rig, all_lost);
    wait_confirmed(rig);
    rig_crash(rig);
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry"), 80);

    rig_start(rig); /* all that was refused is still there */
    rig_take_all(rig);
    wait_durable(rig, 180);
    rig_check_log(rig);
    rig_check_order(rig);
    stop_in_order(rig);
}

static bool all_released(void *arg)
{
    return ((struct rig *)arg)->cluster.released >= 1;
}

static bool write_lane_up(void *arg)
{
    return pg_up(((struct rig *)arg)->pg, PG_WRITE);
}

/* The deliveries that the old owner has and did not commit, the ones that it has and gave no seq, and what waits behind
 * them at the broker: the next owner gets all that is left in this order. */
static void a_move_with_a_backlog_behind_unacked_deliveries_keeps_the_order(void **state)
{
    RIG_OR_SKIP(rig);
    rig->config.prefetch = 10;
    start_with_rooms(rig, 4); /* one in each shard */
    rig_say_many(rig, 4, 0, 4);
    wait_durable(rig, 4);

    relay_cut(&rig->relay);
    rig_wait(rig, write_lane_down);
    rig_say_many(rig, 4, 4, 404);
    wait_confirmed(rig);
    wanted = 4 + 4 * 10; /* the prefetch is used up, 90 wait in each queue */
    rig_wait(rig, enough_shown);
    history_lease_move(rig->history, str_of(rig->cluster.shards[0].name));
    assert_int_equal(rig->cluster.released, 0); /* not before all that has a seq is committed */
    relay_listen(&rig->relay);
    rig_wait(rig, all_released);
    rig_wait(rig, write_lane_up);
    assert_int_equal(rig_number(rig, "SELECT last_seq FROM room_head WHERE room_no = 1"), 11);
    rig_take_row(rig, 0);
    history_lease_taken(rig->history, str_of(rig->cluster.shards[0].name), rig->cluster.shards[0].epoch);
    wait_durable(rig, 404);

    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry WHERE type = 1"), 404);
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry WHERE epoch = 2 AND room_no = 1"), 90);
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry WHERE epoch <> 1 AND room_no > 1"), 0);
    rig_check_log(rig);
    rig_check_order(rig);
    rig->cluster.released = 0;
    stop_in_order(rig);
}

static void a_head_that_somebody_moved_ends_the_ownership(void **state)
{
    RIG_OR_SKIP(rig);
    start_with_rooms(rig, 1);
    rig_say_many(rig, 1, 0, 10);
    wait_durable(rig, 10);

    database_run(rig->sql,
        "DELETE FROM log_entry WHERE seq > 7; UPDATE room_head SET last_seq = 7, counted = 7"); /* an old backup */
    rig_say(rig, 0, "ada", "m10", "10");
    rig_wait(rig, all_released);
    assert_int_equal(rig_number(rig, "SELECT last_seq FROM room_head"), 7);
    rig_crash(rig);
}

/* ----------------------------------------------------------------------------------------------------------- calls */

struct push_call {
    struct history_push push;
    bool answered;
    enum err err;
};

static void on_pushed(struct history_push *push, enum err err)
{
    struct push_call *call = container_of(push, struct push_call, push);

    assert_false(call->answered);
    call->answered = true;
    call->err = err;
}

static bool push_answered(void *arg)
{
    return ((struct push_call *)arg)->answered;
}

static struct push_call push(
    struct rig *rig, const char *sender, const char *id, const char *content, enum history_wait wait)
{
    char room_id[ROOM_ID_MAX_BYTES + 1];
    struct push_call call = {0};

    rig_room_id(rig, 0, room_id);
    call.push = (struct history_push){
        .room_id = str_of(room_id),
        .sender = str_of(sender),
        .kind = STR("text"),
        .content = str_of(content),
        .client_msg_id = str_of(id),
        .wait = wait,
        .done = on_pushed,
    };
    history_push(rig->history, &call.push);
    assert_true(loop_until(rig->loop, push_answered, &call, WAIT_MS));
    return call;
}

static void a_push_waits_for_what_it_was_asked_to_wait_for(void **state)
{
    RIG_OR_SKIP(rig);
    struct push_call call;

    start_with_rooms(rig, 1);
    call = push(rig, "ada", "p1", "\"one\"", WAIT_DURABLE);
    assert_int_equal(call.err, ERR_OK);
    assert_int_equal(call.push.seq, 1);
    assert_false(call.push.duplicate);
    call = push(rig, "ada", "p1", "\"one\"", WAIT_DURABLE);
    assert_int_equal(call.err, ERR_OK);
    assert_int_equal(call.push.seq, 1);
    assert_true(call.push.duplicate);
    call = push(rig, "ada", "p1", "\"two\"", WAIT_DURABLE);
    assert_int_equal(call.err, ERR_CONFLICT);
    call = push(rig, "ada", "", "\"three\"", WAIT_SEQUENCED);
    assert_int_equal(call.err, ERR_OK);
    assert_int_equal(call.push.seq, 2);
    assert_int_equal(strlen(call.push.client_msg_id_text), ULID_TEXT);
    call = push(rig, "ada", "p4", "\"four\"", WAIT_CONFIRMED);
    assert_int_equal(call.err, ERR_OK);
    call = push(rig, "eve", "p5", "\"five\"", WAIT_CONFIRMED);
    assert_int_equal(call.err, ERR_NOT_MEMBER);
    wait_durable(rig, 3);
    stop_in_order(rig);
}

static struct rig_op op(struct rig *rig, enum op_kind kind, const char *args, const char *request_id)
{
    struct rig_op op;

    rig_submit_op(rig, &op, kind, NULL, args, request_id);
    rig_await_op(rig, &op);
    return op;
}

static void an_op_is_answered_when_it_is_durable_and_its_repeat_alike(void **state)
{
    static const char eve[] = "\"account_ids\":[\"eve\",\"bob\"],\"role\":\"member\"";
    RIG_OR_SKIP(rig);
    struct rig_op call;

    start_with_rooms(rig, 1);
    call = op(rig, OP_MEMBER_ADD, eve, "r1");
    assert_int_equal(call.err, ERR_OK);
    assert_int_equal(call.op.seq, 1);
    assert_false(call.op.duplicate);
    assert_string_equal(call.result, "\"added\":[\"eve\"],\"already\":[\"bob\"]");
    assert_int_equal(rig_number(rig, "SELECT join_seq FROM room_member WHERE account = 'eve'"), 1);
    assert_int_equal(rig_number(rig, "SELECT members FROM room"), 3);

    call = op(rig, OP_MEMBER_ADD, eve, "r1");
    assert_int_equal(call.err, ERR_OK);
    assert_int_equal(call.op.seq, 1);
    assert_true(call.op.duplicate);
    assert_string_equal(call.result, "\"added\":[\"eve\"],\"already\":[\"bob\"]");
    call = op(rig, OP_MEMBER_REMOVE, "\"account_ids\":[\"eve\"]", "r1");
    assert_int_equal(call.err, ERR_CONFLICT);

    call = op(rig, OP_ROOM_UPDATE, "\"member_limit\":3,\"name\":\"Tea\"", "");
    assert_int_equal(call.err, ERR_OK);
    call = op(rig, OP_MEMBER_ADD, "\"account_ids\":[\"kim\"],\"role\":\"member\"", "r2");
    assert_int_equal(call.err, ERR_ROOM_FULL);
    call = op(rig, OP_MEMBER_ADD, "\"account_ids\":[\"kim\"],\"role\":\"member\"", "r2");
    assert_int_equal(call.err, ERR_ROOM_FULL);
    assert_int_equal(push(rig, "eve", "e1", "\"hi\"", WAIT_DURABLE).err, ERR_OK);
    call = op(rig, OP_MEMBER_REMOVE, "\"account_ids\":[\"eve\",\"joe\"],\"reason\":\"spam\"", "");
    assert_int_equal(call.err, ERR_OK);
    assert_string_equal(call.result, "\"removed\":[\"eve\"],\"absent\":[\"joe\"]");
    assert_int_equal(push(rig, "eve", "e2", "\"hi\"", WAIT_DURABLE).err, ERR_NOT_MEMBER);
    call = op(rig, OP_ROOM_REMOVE, "", "");
    assert_int_equal(call.err, ERR_OK);
    assert_int_equal(push(rig, "ada", "e3", "\"hi\"", WAIT_DURABLE).err, ERR_ROOM_GONE);
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM room WHERE removed AND name = 'Tea' AND members = 2"), 1);
    rig_check_log(rig);
    stop_in_order(rig);
}

/* Two instances on one loop: the second owns nothing, and finds its answers in the log. */
static void a_call_at_another_instance_finds_its_answer_in_the_log(void **state)
{
    RIG_OR_SKIP(rig);
    struct rig *other = xcalloc(1, sizeof *other);
    struct push_call said;
    struct rig_op asked;

    start_with_rooms(rig, 1);
    *other = *rig;
    other->cluster.rig = other;
    rig_start(other);
    rig_wait(other, rig_is_ready);

    said = push(other, "ada", "o1", "\"one\"", WAIT_DURABLE);
    assert_int_equal(said.err, ERR_OK);
    assert_int_equal(said.push.seq, 1);
    assert_false(said.push.duplicate);
    said = push(other, "ada", "o1", "\"one\"", WAIT_DURABLE);
    assert_int_equal(said.err, ERR_OK);
    assert_true(said.push.duplicate);
    said = push(other, "ada", "o1", "\"other\"", WAIT_SEQUENCED);
    assert_int_equal(said.err, ERR_CONFLICT);
    asked = op(other, OP_MEMBER_ADD, "\"account_ids\":[\"eve\"],\"role\":\"admin\"", "r1");
    assert_int_equal(asked.err, ERR_OK);
    assert_int_equal(asked.op.seq, 2);
    assert_string_equal(asked.result, "\"added\":[\"eve\"],\"already\":[]");
    asked = op(other, OP_ROOM_UPDATE, "\"owner\":\"nobody\"", "r2");
    assert_int_equal(asked.err, ERR_NOT_MEMBER);

    rig_crash(other);
    free(other);
    stop_in_order(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            ten_thousand_messages_in_fifty_rooms_are_in_the_log_once_and_in_order, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(the_same_message_said_again_is_one_entry, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(
            other_content_under_the_same_id_is_a_dead_letter_with_its_body_unchanged, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(
            what_cannot_be_accepted_is_a_dead_letter_and_what_follows_goes_on, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(
            while_the_database_is_away_messages_are_shown_early_and_committed_later, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(
            what_is_accepted_while_the_database_is_away_is_bounded, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(
            fifty_backends_that_die_during_commits_lose_and_repeat_nothing, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(connections_cut_at_any_moment_lose_and_repeat_nothing, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(
            what_the_database_refuses_becomes_a_void_and_its_neighbours_stay, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(a_duplicate_that_memory_forgot_becomes_a_void, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(
            after_a_crash_what_was_not_acknowledged_comes_again_and_is_recognised, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(
            a_consuming_connection_that_breaks_loses_and_repeats_nothing, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(
            behind_the_fence_nothing_is_written_and_nothing_is_acknowledged, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(
            a_move_with_a_backlog_behind_unacked_deliveries_keeps_the_order, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(a_head_that_somebody_moved_ends_the_ownership, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(a_push_waits_for_what_it_was_asked_to_wait_for, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(
            an_op_is_answered_when_it_is_durable_and_its_repeat_alike, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(
            a_call_at_another_instance_finds_its_answer_in_the_log, rig_setup, rig_teardown),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
