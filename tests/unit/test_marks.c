/* Read cursors against a real database: they move forward only, merged, and nobody else waits for one that cannot. */
#include "reads_world.h"

static const char schema[] = "roomd_marks";

static int begin(void **state)
{
    struct world *world = world_begin(schema);

    *state = world;
    return 0;
}

static int end(void **state)
{
    world_end(*state, schema);
    return 0;
}

#define WORLD_OR_SKIP(world)        \
    struct world *(world) = *state; \
    if (!(world))                   \
        skip();

enum { MARKS_MAX = 5000 };

/* --- rooms and what is said in them --- */

/* Room `number` with ada, bob and cyd in it from the beginning. */
static void make_room(struct world *world, int number, const char *kind, int members)
{
    char sql[700];

    snprintf(sql, sizeof sql,
        "WITH r AS (INSERT INTO room (room_id, shard, kind, members, created_at) VALUES ('s00.%026d', 's00', '%s', %d, "
        "1) RETURNING room_no), h AS (INSERT INTO room_head (room_no) SELECT room_no FROM r) "
        "INSERT INTO room_member (room_no, account, role, joined_at, join_seq) "
        "SELECT room_no, a, 1, 1, 0 FROM r, (VALUES ('ada'), ('bob'), ('cyd')) v(a)",
        number, kind, members);
    database_run(world->sql, sql);
}

static struct str room_id(int number)
{
    static char text[2][32];
    static int turn;

    turn = !turn;
    return (struct str){text[turn], (size_t)snprintf(text[turn], sizeof text[turn], "s00.%026d", number)};
}

/* `count` messages of `sender`, committed. */
static void say(struct world *world, int number, const char *sender, int count)
{
    char sql[700];

    snprintf(sql, sizeof sql,
        "INSERT INTO log_entry (room_no, seq, epoch, at, counted, hash, type, sender, client_msg_id, kind, content) "
        "SELECT r.room_no, h.last_seq + n, 1, 1, h.counted + n, 0, 1, '%s', '', 'text', '1' "
        "FROM room r JOIN room_head h USING (room_no), generate_series(1, %d) n WHERE room_id = 's00.%026d'; "
        "UPDATE room_head SET last_seq = last_seq + %d, counted = counted + %d FROM room "
        "WHERE room.room_no = room_head.room_no AND room_id = 's00.%026d'",
        sender, count, number, count, count, number);
    database_run(world->sql, sql);
}

static long cursor_of(struct world *world, int number, const char *account, const char *column)
{
    char sql[300];

    snprintf(sql, sizeof sql,
        "SELECT coalesce((SELECT %s FROM room_member JOIN room USING (room_no) WHERE room_id = 's00.%026d' AND account "
        "= '%s'), -1)",
        column, number, account);
    return database_number(world->sql, sql);
}

/* --- marking --- */

struct marking {
    struct history_mark mark;
    char room_id[32], account[32];
    enum err err;
    bool done;
};
static struct marking markings[MARKS_MAX];
static size_t marking_count, markings_open;

static void on_mark(struct history_mark *mark, enum err err)
{
    struct marking *marking = container_of(mark, struct marking, mark);

    assert_false(marking->done);
    marking->done = true;
    marking->err = err;
    markings_open--;
}

static struct marking *mark(struct world *world, int number, const char *account, uint64_t seq)
{
    struct marking *marking = &markings[marking_count++];

    assert_true(marking_count <= MARKS_MAX);
    *marking = (struct marking){.mark = {.read_seq = seq, .done = on_mark}};
    snprintf(marking->room_id, sizeof marking->room_id, "s00.%026d", number);
    snprintf(marking->account, sizeof marking->account, "%s", account);
    marking->mark.room_id = str_of(marking->room_id);
    marking->mark.account = str_of(marking->account);
    markings_open++;
    history_mark_read(world->history, &marking->mark);
    return marking;
}

static bool all_answered(void *arg)
{
    (void)arg;
    return markings_open == 0;
}

static bool all_written(void *arg)
{
    return marks_idle(((struct world *)arg)->history->marks);
}

static void settle(struct world *world)
{
    world_wait(world, all_answered, NULL);
    world_wait(world, all_written, world);
}

static long metric(struct world *world, const char *name)
{
    struct buf out = {0};
    const char *at;
    char line[100];
    long value;

    history_metrics(world->history, &out);
    buf_char(&out, '\0');
    snprintf(line, sizeof line, "\n%s ", name);
    at = strstr(out.p, line);
    assert_non_null(at);
    value = atol(at + strlen(line));
    buf_clear(&out);
    return value;
}

/* The first statement finds the connection. */
static void start(struct world *world)
{
    marking_count = markings_open = 0;
    world_start(world);
    assert_int_equal(mark(world, 999, "ada", 1)->err, ERR_OK);
    settle(world);
    marking_count = 0;
}

/* --- the claims --- */

static void a_cursor_moves_forward_only(void **state)
{
    struct marking *first, *back, *on;

    WORLD_OR_SKIP(world)
    make_room(world, 1, "group", 3);
    say(world, 1, "bob", 10);
    start(world);
    first = mark(world, 1, "ada", 7);
    settle(world);
    back = mark(world, 1, "ada", 3);
    settle(world);
    assert_int_equal(first->err, ERR_OK);
    assert_int_equal(first->mark.read_seq, 7);
    assert_int_equal(first->mark.unread, 3);
    assert_int_equal(back->err, ERR_OK);
    assert_int_equal(back->mark.read_seq, 7);
    assert_int_equal(back->mark.unread, 3);
    assert_int_equal(cursor_of(world, 1, "ada", "read_seq"), 7);
    assert_int_equal(cursor_of(world, 1, "ada", "read_n"), 7);
    on = mark(world, 1, "ada", 10);
    settle(world);
    assert_int_equal(on->mark.unread, 0);
}

static void a_cursor_never_stands_below_the_join(void **state)
{
    struct marking *marking;

    WORLD_OR_SKIP(world)
    make_room(world, 1, "group", 3);
    say(world, 1, "bob", 10);
    database_run(world->sql, "UPDATE room_member SET join_seq = 8, read_seq = 8, read_n = 8 WHERE account = 'cyd'");
    start(world);
    marking = mark(world, 1, "cyd", 5);
    settle(world);
    assert_int_equal(marking->err, ERR_OK);
    assert_int_equal(marking->mark.read_seq, 8);
    assert_int_equal(marking->mark.unread, 2);
}

static void who_is_not_there_is_told_so(void **state)
{
    struct marking *no_room, *stranger, *far;

    WORLD_OR_SKIP(world)
    make_room(world, 1, "group", 3);
    say(world, 1, "bob", 2);
    world->config.mark_wait_ms = 0;
    start(world);
    no_room = mark(world, 2, "ada", 1);
    stranger = mark(world, 1, "eve", 1);
    far = mark(world, 1, "ada", UINT64_MAX);
    settle(world);
    assert_int_equal(no_room->err, ERR_NO_SUCH_ROOM);
    assert_int_equal(stranger->err, ERR_NOT_MEMBER);
    assert_int_equal(far->err, ERR_BAD_REQUEST);
    assert_int_equal(cursor_of(world, 1, "ada", "read_seq"), 0);
}

static void many_marks_are_one_statement(void **state)
{
    char account[16];
    long before;

    WORLD_OR_SKIP(world)
    make_room(world, 1, "group", 3);
    say(world, 1, "bob", 5);
    database_run(world->sql,
        "INSERT INTO room_member (room_no, account, role, joined_at, join_seq) SELECT room_no, 'r' "
        "|| n, 1, 1, 0 FROM room, generate_series(0, 999) n");
    start(world);
    before = metric(world, "roomd_mark_statements_total");
    for (int i = 0; i < 1000; i++) {
        snprintf(account, sizeof account, "r%d", i);
        mark(world, 1, account, 2);
        mark(world, 1, account, 4);
        mark(world, 1, account, 3);
    }
    settle(world);
    assert_int_equal(metric(world, "roomd_mark_statements_total") - before, 1);
    for (size_t i = 0; i < marking_count; i++) {
        assert_int_equal(markings[i].err, ERR_OK);
        assert_int_equal(markings[i].mark.read_seq, 4);
        assert_int_equal(markings[i].mark.unread, 1);
    }
    assert_int_equal(
        database_number(world->sql, "SELECT count(*) FROM room_member WHERE read_seq = 4 AND read_n = 4"), 1000);
}

static void more_than_a_statement_holds_goes_right_behind(void **state)
{
    uint64_t begin_ms;
    char account[16];

    WORLD_OR_SKIP(world)
    make_room(world, 1, "group", 3);
    say(world, 1, "bob", 5);
    database_run(world->sql,
        "INSERT INTO room_member (room_no, account, role, joined_at, join_seq) SELECT room_no, 'r' "
        "|| n, 1, 1, 0 FROM room, generate_series(0, 4499) n");
    world->config.mark_flush_ms = 60000; /* who had to wait for the next window would not come in time */
    world_start(world);
    marking_count = markings_open = 0;
    begin_ms = clock_unix_ms();
    for (int i = 0; i < 4500; i++) {
        snprintf(account, sizeof account, "r%d", i);
        mark(world, 1, account, 5);
    }
    settle(world);
    assert_int_equal(metric(world, "roomd_mark_statements_total"), 3);
    assert_int_equal(database_number(world->sql, "SELECT count(*) FROM room_member WHERE read_seq = 5"), 4500);
    assert_true(clock_unix_ms() - begin_ms < 30000);
}

static void sending_moves_the_senders_own_cursor_and_says_nothing(void **state)
{
    WORLD_OR_SKIP(world)
    make_room(world, 1, "group", 3);
    say(world, 1, "ada", 6);
    start(world);
    marks_sent(world->history->marks, room_id(1), STR("ada"), 3);
    marks_sent(world->history->marks, room_id(1), STR("ada"), 6);
    marks_sent(world->history->marks, room_id(1), STR("ada"), 5);
    marks_sent(world->history->marks, room_id(1), STR("gone"), 5); /* left meanwhile */
    settle(world);
    assert_int_equal(cursor_of(world, 1, "ada", "read_seq"), 6);
    assert_int_equal(world->told.n, 0);
}

static void a_mark_above_the_durable_head_waits_for_it(void **state)
{
    struct marking *early, *low;

    WORLD_OR_SKIP(world)
    make_room(world, 1, "group", 3);
    say(world, 1, "bob", 4);
    world->config.mark_wait_ms = WAIT_MS;
    world->config.mark_flush_ms = 20;
    start(world);
    early = mark(world, 1, "ada", 6);
    low = mark(world, 1, "ada", 3); /* merged with it, and not held up by it */
    while (!low->done)
        uv_run(&world->loop, UV_RUN_ONCE);
    assert_int_equal(low->err, ERR_OK);
    assert_int_equal(low->mark.read_seq, 3);
    assert_false(early->done);
    say(world, 1, "bob", 3);
    settle(world);
    assert_int_equal(early->err, ERR_OK);
    assert_int_equal(early->mark.read_seq, 6);
    assert_int_equal(early->mark.unread, 1);
}

static void what_never_becomes_durable_is_refused_in_the_end(void **state)
{
    struct marking *early;
    uint64_t begin_ms = clock_unix_ms();

    WORLD_OR_SKIP(world)
    make_room(world, 1, "group", 3);
    say(world, 1, "bob", 4);
    world->config.mark_wait_ms = 200;
    world->config.mark_flush_ms = 20;
    start(world);
    early = mark(world, 1, "ada", 5);
    settle(world);
    assert_int_equal(early->err, ERR_BAD_REQUEST);
    assert_true(clock_unix_ms() - begin_ms >= 200);
    assert_int_equal(cursor_of(world, 1, "ada", "read_seq"), 0);
}

static void a_locked_row_holds_up_nobody_else(void **state)
{
    struct marking *locked, *free_one;

    WORLD_OR_SKIP(world)
    make_room(world, 1, "group", 3);
    say(world, 1, "bob", 4);
    world->config.mark_flush_ms = 20;
    world->config.mark_wait_ms = WAIT_MS;
    start(world);
    database_run(world->sql, "BEGIN; UPDATE room_member SET role = 2 WHERE account = 'ada'");
    locked = mark(world, 1, "ada", 4);
    free_one = mark(world, 1, "cyd", 4);
    while (!free_one->done)
        uv_run(&world->loop, UV_RUN_ONCE);
    assert_int_equal(free_one->err, ERR_OK);
    assert_false(locked->done);
    database_run(world->sql, "COMMIT");
    settle(world);
    assert_int_equal(locked->err, ERR_OK);
    assert_int_equal(cursor_of(world, 1, "ada", "read_seq"), 4);
    assert_int_equal(cursor_of(world, 1, "ada", "role"), 2);
}

/* Deadlocks cannot come from locks that are not waited for, so one is made: the first two updates fail
 * with its code. */
static void a_deadlock_is_tried_again(void **state)
{
    struct marking *marking;

    WORLD_OR_SKIP(world)
    make_room(world, 1, "group", 3);
    say(world, 1, "bob", 4);
    database_run(world->sql,
        "CREATE SEQUENCE tries; CREATE FUNCTION deadlock() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF nextval('tries') <= 2 THEN RAISE EXCEPTION 'made' USING ERRCODE = '40P01'; END IF; RETURN NEW; END $$; "
        "CREATE TRIGGER deadlock BEFORE UPDATE ON room_member FOR EACH ROW EXECUTE FUNCTION deadlock()");
    start(world);
    marking = mark(world, 1, "ada", 4);
    marks_sent(world->history->marks, room_id(1), STR("bob"), 4);
    settle(world);
    assert_int_equal(marking->err, ERR_OK);
    assert_int_equal(cursor_of(world, 1, "ada", "read_seq"), 4);
    assert_int_equal(cursor_of(world, 1, "bob", "read_seq"), 4);
    assert_true(database_number(world->sql, "SELECT last_value FROM tries") > 2);
}

static void a_lost_database_is_told_to_callers_and_kept_from_senders(void **state)
{
    struct marking *marking;

    WORLD_OR_SKIP(world)
    make_room(world, 1, "group", 3);
    say(world, 1, "bob", 4);
    start(world);
    relay_freeze(&world->relay);
    marking = mark(world, 1, "ada", 4);
    marks_sent(world->history->marks, room_id(1), STR("bob"), 4);
    while (!pg_counters(world->pg, PG_READ).in_flight)
        uv_run(&world->loop, UV_RUN_ONCE);
    relay_cut(&world->relay);
    world_wait(world, all_answered, NULL);
    assert_int_equal(marking->err, ERR_UNAVAILABLE);
    assert_false(all_written(world));
    relay_listen(&world->relay);
    settle(world);
    assert_int_equal(cursor_of(world, 1, "bob", "read_seq"), 4);
}

static void who_reads_is_told_to_small_rooms_and_else_to_the_reader(void **state)
{
    WORLD_OR_SKIP(world)
    make_room(world, 1, "group", 200);
    make_room(world, 2, "group", 201);
    make_room(world, 3, "direct", 201);
    for (int i = 1; i <= 3; i++)
        say(world, i, "bob", 4);
    start(world);
    mark(world, 1, "ada", 2);
    mark(world, 2, "ada", 3);
    mark(world, 3, "ada", 4);
    settle(world);
    mark(world, 1, "ada", 1); /* moves nothing, says nothing */
    settle(world);
    assert_string_equal((buf_char(&world->told, '\0'), world->told.p),
        "room s00.00000000000000000000000001 {\"type\":\"read\",\"room_id\":\"s00.00000000000000000000000001\","
        "\"account_id\":\"ada\",\"read_seq\":2}\n"
        "account ada {\"type\":\"read\",\"room_id\":\"s00.00000000000000000000000002\",\"account_id\":\"ada\","
        "\"read_seq\":3}\n"
        "room s00.00000000000000000000000003 {\"type\":\"read\",\"room_id\":\"s00.00000000000000000000000003\","
        "\"account_id\":\"ada\",\"read_seq\":4}\n");
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

static void a_drain_ends_after_the_senders_cursors_are_written(void **state)
{
    WORLD_OR_SKIP(world)
    make_room(world, 1, "group", 3);
    say(world, 1, "ada", 6);
    world->config.sent_flush_ms = 60000;
    start(world);
    marks_sent(world->history->marks, room_id(1), STR("ada"), 1);
    settle(world);
    marks_sent(world->history->marks, room_id(1), STR("ada"), 6); /* would wait for its window */
    drained = false;
    history_drain(world->history, WAIT_MS, on_drained, NULL);
    world_wait(world, is_drained, NULL);
    assert_int_equal(cursor_of(world, 1, "ada", "read_seq"), 6);
}

static void what_is_open_at_the_end_is_forgotten(void **state)
{
    WORLD_OR_SKIP(world)
    make_room(world, 1, "group", 3);
    say(world, 1, "bob", 4);
    start(world);
    mark(world, 1, "ada", 2);
    uv_run(&world->loop, UV_RUN_NOWAIT); /* on its way */
    mark(world, 1, "ada", 4);
    mark(world, 1, "ada", 9);
    marks_sent(world->history->marks, room_id(1), STR("bob"), 4);
    world_stop(world);
    uv_run(&world->loop, UV_RUN_NOWAIT);
    assert_int_equal(markings_open, 3);
}

#define WITH_WORLD(claim) cmocka_unit_test_setup_teardown(claim, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_WORLD(a_cursor_moves_forward_only),
        WITH_WORLD(a_cursor_never_stands_below_the_join),
        WITH_WORLD(who_is_not_there_is_told_so),
        WITH_WORLD(many_marks_are_one_statement),
        WITH_WORLD(more_than_a_statement_holds_goes_right_behind),
        WITH_WORLD(sending_moves_the_senders_own_cursor_and_says_nothing),
        WITH_WORLD(a_mark_above_the_durable_head_waits_for_it),
        WITH_WORLD(what_never_becomes_durable_is_refused_in_the_end),
        WITH_WORLD(a_locked_row_holds_up_nobody_else),
        WITH_WORLD(a_deadlock_is_tried_again),
        WITH_WORLD(a_lost_database_is_told_to_callers_and_kept_from_senders),
        WITH_WORLD(who_reads_is_told_to_small_rooms_and_else_to_the_reader),
        WITH_WORLD(a_drain_ends_after_the_senders_cursors_are_written),
        WITH_WORLD(what_is_open_at_the_end_is_forgotten),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
