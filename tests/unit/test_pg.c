#include "room/base/pg.h"

#include "database.h"
#include "room/base/log.h"
#include "room/base/pg_address.h"

#define SCHEMA "test_pg"

struct fixture {
    uv_loop_t loop;
    char *url;
    struct pg *pg;
    struct relay relay;
    int ups, downs, backend_pid;
};

/* One query that counts how it ended. */
struct probe {
    struct pg_query query;
    int calls;
    enum err err;
    char sqlstate[6];
    int64_t number;
    int rows;
    int *all_calls; /* counts for many */
    struct probe **order;
};

static const struct pg_statement plus_one = {"plus_one", "SELECT $1::int8 + 1", 1};
static const struct pg_statement divide = {"divide", "SELECT 10 / $1::int8", 1};
static const struct pg_statement no_table = {"no_table", "SELECT n FROM comes_later WHERE n = $1::int8", 1};
static const struct pg_statement nap = {"nap", "SELECT pg_sleep($1::int8)", 1};
static const struct pg_statement terminate = {"terminate", "SELECT pg_terminate_backend($1::int4)", 1};
static const struct pg_statement own_pid = {"own_pid", "SELECT pg_backend_pid()", 0};
static const struct pg_statement insert = {"insert", "INSERT INTO item (n) VALUES ($1::int8)", 1};
static const struct pg_statement insert_late = {"insert_late", "INSERT INTO item_late (n) VALUES ($1::int8)", 1};
static const struct pg_statement sizes = {
    "sizes", "SELECT count(*), sum(octet_length(b)) FROM unnest($1::bytea[]) b", 1};
static const struct pg_statement large = {"large", "SELECT repeat('x', $1::int8::int)", 1};
static const struct pg_statement every_column = {"every_column", "SELECT * FROM changing", 0};
static const struct pg_statement setting = {"setting", "SELECT (current_setting($1) = $2)::int", 2};

static void probe_done(struct pg_query *query, enum err err, const PGresult *result)
{
    struct probe *probe = container_of(query, struct probe, query);

    probe->calls++;
    probe->err = err;
    assert_true((result != NULL) == (err == ERR_OK || err == ERR_DATABASE));
    snprintf(probe->sqlstate, sizeof probe->sqlstate, "%s", pg_sqlstate(result));
    probe->rows = result ? PQntuples(result) : 0;
    if (probe->rows > 0 && PQnfields(result) > 0)
        probe->number = pg_get_i64(result, 0, 0);
    if (probe->all_calls)
        ++*probe->all_calls;
    if (probe->order)
        *probe->order++ = probe;
}

static void submit_params(struct fixture *f, struct probe *probe, const struct pg_statement *statement,
    enum pg_lane lane, const struct pg_params *params)
{
    probe->query.statement = statement;
    probe->query.lane = lane;
    probe->query.done = probe_done;
    pg_submit(f->pg, &probe->query, params);
    assert_int_equal(probe->query.state == PG_IDLE, 0); /* never called back from inside */
}

static void submit(
    struct fixture *f, struct probe *probe, const struct pg_statement *statement, enum pg_lane lane, int64_t number)
{
    struct pg_params params = {.count = 0};

    if (statement->params) {
        if (statement == &terminate)
            pg_param_i32(&params, (int32_t)number);
        else
            pg_param_i64(&params, number);
    }
    submit_params(f, probe, statement, lane, &params);
    pg_params_clear(&params);
}

static bool is_done(void *arg)
{
    return ((struct probe *)arg)->calls > 0;
}

static void await(struct fixture *f, struct probe *probe)
{
    assert_true(loop_until(&f->loop, is_done, probe, WAIT_MS));
    assert_int_equal(probe->calls, 1);
}

static bool all_up(void *arg)
{
    struct fixture *f = arg;

    return pg_up(f->pg, PG_WRITE) && pg_up(f->pg, PG_READ) && pg_up(f->pg, PG_CONTROL);
}

static bool write_down(void *arg)
{
    return !pg_up(((struct fixture *)arg)->pg, PG_WRITE);
}

static void on_state(void *arg, bool up, int backend_pid)
{
    struct fixture *f = arg;

    f->ups += up;
    f->downs += !up;
    f->backend_pid = backend_pid;
}

static void open_pool(struct fixture *f, const char *url, struct pg_settings settings)
{
    settings.url = url;
    settings.read_connections = settings.read_connections ? settings.read_connections : 3;
    settings.timeout_ms = settings.timeout_ms ? settings.timeout_ms : WAIT_MS;
    settings.queue_max = settings.queue_max ? settings.queue_max : 20000;
    assert_int_equal(pg_open(&f->pg, &f->loop, &settings), ERR_OK);
    pg_on_state(f->pg, PG_WRITE, on_state, f);
}

static void open_and_wait(struct fixture *f, const char *url, struct pg_settings settings)
{
    open_pool(f, url, settings);
    assert_true(loop_until(&f->loop, all_up, f, WAIT_MS));
}

static void close_pool(struct fixture *f)
{
    if (f->pg)
        pg_close(f->pg);
    f->pg = NULL;
    relay_cut(&f->relay);
    uv_run(&f->loop, UV_RUN_DEFAULT);
}

static int begin(void **state)
{
    struct fixture *f = xcalloc(1, sizeof *f);

    f->url = database_begin(SCHEMA);
    uv_loop_init(&f->loop);
    *state = f;
    return 0;
}

static int end(void **state)
{
    struct fixture *f = *state;

    close_pool(f);
    database_end(f->url, SCHEMA);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    free(f);
    return 0;
}

#define NEEDS_DATABASE(f) \
    if (!(f)->url)        \
    skip()

static bool counts_all(void *arg)
{
    int *left = arg;

    return left[0] == left[1];
}

/* The program asks for its tables before it has a writer: the session that writes is up when somebody listens. */
static void a_listener_that_comes_late_is_told_of_the_session_that_is_up(void **state)
{
    struct fixture *f = *state;

    NEEDS_DATABASE(f);
    open_and_wait(f, f->url, (struct pg_settings){0});
    f->ups = f->backend_pid = 0;
    pg_on_state(f->pg, PG_WRITE, on_state, f);
    assert_int_equal(f->ups, 1);
    assert_true(f->backend_pid > 0);
}

/* --- order and number --- */

static void ten_thousand_pipelined_reads_are_each_answered_once(void **state)
{
    enum { N = 10000 };
    struct fixture *f = *state;
    struct probe *probes;
    int calls[2] = {0, N};

    NEEDS_DATABASE(f);
    open_and_wait(f, f->url, (struct pg_settings){0});
    probes = xcalloc(N, sizeof *probes);
    for (int i = 0; i < N; i++) {
        probes[i].all_calls = calls;
        submit(f, &probes[i], &plus_one, PG_READ, i);
    }
    assert_true(loop_until(&f->loop, counts_all, calls, WAIT_MS));
    for (int i = 0; i < N; i++) {
        assert_int_equal(probes[i].calls, 1);
        assert_int_equal(probes[i].err, ERR_OK);
        assert_int_equal(probes[i].number, i + 1);
    }
    assert_int_equal(pg_counters(f->pg, PG_READ).statements_total, N);
    assert_int_equal(pg_counters(f->pg, PG_READ).waiting, 0);
    assert_int_equal(pg_counters(f->pg, PG_READ).in_flight, 0);
    free(probes);
}

static void writes_are_answered_in_the_order_of_submission(void **state)
{
    enum { N = 500 };
    struct fixture *f = *state;
    struct probe *probes, **order;
    int calls[2] = {0, N};

    NEEDS_DATABASE(f);
    open_and_wait(f, f->url, (struct pg_settings){0});
    probes = xcalloc(N, sizeof *probes);
    order = xcalloc(N, sizeof *order);
    for (int i = 0; i < N; i++) {
        probes[i].all_calls = calls;
        probes[i].order = &order[i];
        submit(f, &probes[i], i % 7 == 3 ? &divide : &plus_one, PG_WRITE, i % 7 == 3 ? 0 : i);
    }
    assert_true(loop_until(&f->loop, counts_all, calls, WAIT_MS));
    for (int i = 0; i < N; i++)
        assert_ptr_equal(order[i], &probes[i]);
    free(order);
    free(probes);
}

/* --- refusals --- */

static void a_refused_statement_leaves_its_neighbours_alone(void **state)
{
    struct fixture *f = *state;
    struct probe before = {0}, bad = {0}, after = {0};

    NEEDS_DATABASE(f);
    open_and_wait(f, f->url, (struct pg_settings){0});
    submit(f, &before, &plus_one, PG_WRITE, 1);
    submit(f, &bad, &divide, PG_WRITE, 0);
    submit(f, &after, &plus_one, PG_WRITE, 2);
    await(f, &after);
    assert_int_equal(before.number, 2);
    assert_int_equal(bad.err, ERR_DATABASE);
    assert_string_equal(bad.sqlstate, "22012");
    assert_int_equal(after.err, ERR_OK);
    assert_int_equal(after.number, 3);
    assert_int_equal(pg_counters(f->pg, PG_WRITE).errors_total, 1);
}

static void a_statement_that_cannot_be_prepared_does_not_poison_later_ones(void **state)
{
    struct fixture *f = *state;
    struct probe bad[3] = {{.calls = 0}}, good = {0}, later = {0}, again = {0};
    PGconn *own;

    NEEDS_DATABASE(f);
    own = database_connect(f->url);
    open_and_wait(f, f->url, (struct pg_settings){0});
    for (int i = 0; i < 3; i++)
        submit(f, &bad[i], &no_table, PG_WRITE, i);
    submit(f, &good, &plus_one, PG_WRITE, 1);
    await(f, &good);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(bad[i].err, ERR_DATABASE);
        assert_string_equal(bad[i].sqlstate, "42P01"); /* each for the true reason, also those behind the first Parse */
    }
    assert_int_equal(good.number, 2);

    database_run(own, "CREATE TABLE comes_later AS SELECT 7::int8 AS n");
    submit(f, &later, &no_table, PG_WRITE, 7);
    submit(f, &again, &no_table, PG_WRITE, 7);
    await(f, &again);
    assert_int_equal(later.err, ERR_OK);
    assert_int_equal(later.number, 7);
    assert_int_equal(again.number, 7);
    assert_int_equal(f->downs, 0);
    PQfinish(own);
}

static void a_commit_that_is_refused_at_its_end_is_refused(void **state)
{
    struct fixture *f = *state;
    struct probe late = {0}, after = {0};
    PGconn *own;

    NEEDS_DATABASE(f);
    own = database_connect(f->url);
    database_run(
        own, "CREATE TABLE item_late (n int8 UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO item_late VALUES (1)");
    open_and_wait(f, f->url, (struct pg_settings){0});
    submit(f, &late, &insert_late, PG_WRITE, 1);
    submit(f, &after, &plus_one, PG_WRITE, 1);
    await(f, &after);
    assert_int_equal(late.err, ERR_DATABASE);
    assert_string_equal(late.sqlstate, "23505");
    assert_int_equal(after.number, 2);
    assert_int_equal(f->downs, 0);
    PQfinish(own);
}

static void a_table_that_changed_under_a_prepared_statement_is_read_again(void **state)
{
    struct fixture *f = *state;
    struct probe first = {0}, second = {0}, third = {0};
    PGconn *own;

    NEEDS_DATABASE(f);
    own = database_connect(f->url);
    database_run(own, "CREATE TABLE changing AS SELECT 1::int8 AS a");
    open_and_wait(f, f->url, (struct pg_settings){0});
    submit(f, &first, &every_column, PG_CONTROL, 0);
    await(f, &first);
    database_run(own, "ALTER TABLE changing ADD COLUMN b int");
    submit(f, &second, &every_column, PG_CONTROL, 0);
    await(f, &second);
    assert_string_equal(second.sqlstate, "0A000");
    submit(f, &third, &every_column, PG_CONTROL, 0);
    await(f, &third);
    assert_int_equal(third.err, ERR_OK);
    PQfinish(own);
}

/* --- connections that end --- */

static void a_terminated_backend_is_replaced_and_its_queries_are_lost_once(void **state)
{
    struct fixture *f = *state;
    struct probe sleeping = {0}, behind = {0}, kill = {0}, refused = {0}, after = {0};

    NEEDS_DATABASE(f);
    open_and_wait(f, f->url, (struct pg_settings){0});
    submit(f, &sleeping, &nap, PG_WRITE, 600);
    submit(f, &behind, &plus_one, PG_WRITE, 1);
    submit(f, &kill, &terminate, PG_CONTROL, f->backend_pid);
    assert_true(loop_until(&f->loop, write_down, f, WAIT_MS));
    assert_int_equal(sleeping.calls, 1);
    assert_int_equal(sleeping.err, ERR_LOST);
    assert_int_equal(behind.err, ERR_LOST);
    assert_int_equal(f->downs, 1);
    submit(f, &refused, &plus_one, PG_WRITE, 1); /* the writer decides what to do, nothing waits here */
    await(f, &refused);
    assert_int_equal(refused.err, ERR_UNAVAILABLE);
    assert_true(loop_until(&f->loop, all_up, f, WAIT_MS));
    assert_int_equal(f->ups, 2);
    submit(f, &after, &own_pid, PG_WRITE, 0);
    await(f, &after);
    assert_int_equal(after.number, f->backend_pid);
    assert_int_equal(sleeping.calls + behind.calls + kill.calls, 3);
}

struct storm {
    struct fixture *f;
    struct probe *probes;
    int calls, count, by_err[ERR_COUNT];
};

static bool half_done(void *arg)
{
    struct storm *storm = arg;

    return storm->calls >= storm->count / 4;
}

static bool storm_done(void *arg)
{
    struct storm *storm = arg;

    return storm->calls == storm->count;
}

static void storm_submit(struct storm *storm, int count)
{
    for (int i = 0; i < count; i++) {
        struct probe *probe = &storm->probes[storm->count++];

        probe->all_calls = &storm->calls;
        submit(storm->f, probe, i % 3 == 0 ? &insert : &plus_one,
            i % 3 == 0   ? PG_WRITE
            : i % 3 == 1 ? PG_READ
                         : PG_CONTROL,
            i);
    }
}

/* What was committed is in the table; nothing that was not; what is unknown may be either. */
static void storm_check(struct storm *storm, PGconn *own)
{
    int committed = 0, unknown = 0;

    for (int i = 0; i < storm->count; i++) {
        assert_int_equal(storm->probes[i].calls, 1);
        if (storm->probes[i].query.statement != &insert)
            continue;
        committed += storm->probes[i].err == ERR_OK;
        unknown += storm->probes[i].err == ERR_LOST;
    }
    assert_in_range(database_number(own, "SELECT count(*) FROM item"), committed, committed + unknown);
}

static void every_query_ends_once_when_the_server_vanishes_in_the_middle(void **state)
{
    struct fixture *f = *state;
    struct storm storm = {.f = f};
    PGconn *own;
    char *url;

    NEEDS_DATABASE(f);
    own = database_connect(f->url);
    database_run(own, "CREATE TABLE item (n int8)");
    url = relay_begin(&f->relay, &f->loop, f->url);
    open_and_wait(f, url, (struct pg_settings){0});
    storm.probes = xcalloc(10000, sizeof *storm.probes);
    storm_submit(&storm, 6000);
    assert_true(loop_until(&f->loop, half_done, &storm, WAIT_MS));
    relay_cut(&f->relay);
    assert_true(loop_until(&f->loop, write_down, f, WAIT_MS));
    storm_submit(&storm, 2000);
    relay_listen(&f->relay);
    assert_true(loop_until(&f->loop, storm_done, &storm, WAIT_MS));
    assert_true(loop_until(&f->loop, all_up, f, WAIT_MS));
    storm_submit(&storm, 300);
    assert_true(loop_until(&f->loop, storm_done, &storm, WAIT_MS));
    for (int i = storm.count - 300; i < storm.count; i++)
        assert_int_equal(storm.probes[i].err, ERR_OK);
    storm_check(&storm, own);
    free(storm.probes);
    PQfinish(own);
    free(url);
}

static void on_exit_of(uv_process_t *process, int64_t status, int signal)
{
    *(int *)process->data = signal ? 128 + signal : (int)status;
    uv_close((uv_handle_t *)process, NULL);
}

static bool has_exited(void *arg)
{
    return *(int *)arg >= 0;
}

/* ROOMD_TEST_DATABASE_RESTART: a shell command that stops the server at once and starts it again. Only for a server of
 * one's own. */
static void every_query_ends_once_when_the_server_is_restarted(void **state)
{
    struct fixture *f = *state;
    char *command = getenv("ROOMD_TEST_DATABASE_RESTART");
    char *arguments[] = {(char[]){"/bin/sh"}, (char[]){"-c"}, command, NULL};
    uv_process_options_t options = {.file = "/bin/sh", .args = arguments, .exit_cb = on_exit_of};
    struct storm storm = {.f = f};
    uv_process_t process;
    int status = -1;
    PGconn *own;

    NEEDS_DATABASE(f);
    if (!command)
        skip();
    own = database_connect(f->url);
    database_run(own, "CREATE TABLE item (n int8)");
    PQfinish(own);
    open_and_wait(f, f->url, (struct pg_settings){0});
    storm.probes = xcalloc(30000, sizeof *storm.probes);
    process.data = &status;
    assert_int_equal(uv_spawn(&f->loop, &process, &options), 0);
    while (
        storm.count < 20000 && !(f->downs && status >= 0)) { /* keeps asking until the server has gone and come back */
        storm_submit(&storm, 90);
        assert_true(loop_until(&f->loop, storm_done, &storm, WAIT_MS));
    }
    assert_true(loop_until(&f->loop, has_exited, &status, WAIT_MS));
    assert_int_equal(status, 0);
    assert_int_equal(f->downs, 1);
    assert_true(loop_until(&f->loop, all_up, f, WAIT_MS));
    storm_submit(&storm, 300);
    assert_true(loop_until(&f->loop, storm_done, &storm, WAIT_MS));
    own = database_connect(f->url);
    storm_check(&storm, own);
    free(storm.probes);
    PQfinish(own);
}

/* --- bounds --- */

static void a_read_without_an_answer_times_out_and_its_connection_is_replaced(void **state)
{
    struct fixture *f = *state;
    struct probe slow = {0}, beside = {0}, after = {0};

    NEEDS_DATABASE(f);
    open_and_wait(f, f->url, (struct pg_settings){.read_connections = 1, .timeout_ms = 10000});
    slow.query.timeout_ms = 100;
    submit(f, &slow, &nap, PG_READ, 600);
    submit(f, &beside, &plus_one, PG_READ, 1); /* in the same pipeline */
    submit(f, &after, &plus_one, PG_READ, 5);
    await(f, &slow);
    assert_int_equal(slow.err, ERR_TIMEOUT);
    await(f, &beside);
    assert_int_equal(beside.err, ERR_LOST);
    after.calls = 0;
    submit(f, &after, &plus_one, PG_READ, 5);
    await(f, &after);
    assert_int_equal(after.err, ERR_OK);
    assert_int_equal(pg_counters(f->pg, PG_READ).reconnects_total, 1);
    assert_int_equal(f->downs, 0);
}

static void a_query_is_given_up_when_no_connection_comes_in_time(void **state)
{
    struct fixture *f = *state;
    struct probe reads[3] = {{.calls = 0}}, write = {0};
    char *url;

    NEEDS_DATABASE(f);
    url = relay_begin(&f->relay, &f->loop, f->url);
    relay_freeze(&f->relay); /* connections are taken, nothing is said */
    open_pool(f, url, (struct pg_settings){.timeout_ms = 150});
    for (int i = 0; i < 3; i++)
        submit(f, &reads[i], &plus_one, i ? PG_READ : PG_CONTROL, 1);
    submit(f, &write, &plus_one, PG_WRITE, 1);
    for (int i = 0; i < 3; i++) {
        await(f, &reads[i]);
        assert_int_equal(reads[i].err, ERR_UNAVAILABLE);
    }
    assert_int_equal(write.err, ERR_UNAVAILABLE);
    assert_false(pg_up(f->pg, PG_READ));
    free(url);
}

static void more_than_the_queue_holds_is_refused(void **state)
{
    enum { DEPTH = 8, QUEUE = 10, MORE = 5, N = DEPTH + QUEUE + MORE };
    struct fixture *f = *state;
    struct probe probes[N] = {{.calls = 0}};
    int calls[2] = {0, N}, refused = 0;

    NEEDS_DATABASE(f);
    open_and_wait(f, f->url, (struct pg_settings){.read_connections = 1, .queue_max = QUEUE});
    for (int i = 0; i < N; i++) {
        probes[i].all_calls = calls;
        submit(f, &probes[i], &plus_one, PG_READ, i);
    }
    assert_int_equal(pg_counters(f->pg, PG_READ).waiting, QUEUE);
    assert_int_equal(pg_counters(f->pg, PG_READ).in_flight, DEPTH);
    assert_true(loop_until(&f->loop, counts_all, calls, WAIT_MS));
    for (int i = 0; i < N; i++)
        refused += probes[i].err == ERR_UNAVAILABLE;
    assert_int_equal(refused, MORE);
}

static void a_forgotten_query_is_not_called_back(void **state)
{
    enum { N = 30 };
    struct fixture *f = *state;
    struct probe probes[N] = {{.calls = 0}}, last = {0}, write = {0};

    NEEDS_DATABASE(f);
    open_and_wait(f, f->url, (struct pg_settings){.read_connections = 1});
    for (int i = 0; i < N; i++)
        submit(f, &probes[i], &plus_one, PG_READ, i);
    for (int i = 0; i < N; i += 2)
        pg_forget(&probes[i].query);
    pg_forget(&last.query);
    submit(f, &last, &plus_one, PG_READ, 99);
    await(f, &last);
    for (int i = 0; i < N; i++)
        assert_int_equal(probes[i].calls, i % 2);
    assert_int_equal(probes[29].number, 30);
    submit(f, &write, &plus_one, PG_WRITE, 1);
    pg_close(f->pg);
    pg_forget(&write.query);
    f->pg = NULL;
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(write.calls, 0);
}

static void a_batch_of_four_megabytes_does_not_stop_the_loop(void **state)
{
    enum { ITEMS = 4096, READS = 200 };
    struct fixture *f = *state;
    struct probe batch = {0}, reads[READS] = {{.calls = 0}};
    struct pg_array array = {.count = 0};
    struct pg_params params = {.count = 0};
    int calls[2] = {0, READS};
    uint64_t began;
    char *item;

    NEEDS_DATABASE(f);
    item = xcalloc(1, 1024);
    open_and_wait(f, f->url, (struct pg_settings){0});
    pg_array_reset(&array, PG_BYTEA);
    for (int i = 0; i < ITEMS; i++)
        pg_array_bytes(&array, (struct str){item, 1024});
    pg_param_array(&params, &array);
    began = clock_mono_ms();
    for (int i = 0; i < READS; i++) {
        reads[i].all_calls = calls;
        if (i == READS / 2)
            submit_params(f, &batch, &sizes, PG_WRITE, &params);
        submit(f, &reads[i], &plus_one, PG_READ, i);
    }
    assert_true(clock_mono_ms() - began < 5000);
    pg_params_clear(&params);
    assert_true(loop_until(&f->loop, counts_all, calls, WAIT_MS));
    await(f, &batch);
    assert_int_equal(batch.err, ERR_OK);
    assert_int_equal(batch.number, ITEMS);
    pg_array_clear(&array);
    free(item);
}

/* The server takes nothing: the bytes wait here, and the loop goes on. */
static void a_batch_into_a_frozen_server_does_not_stop_the_loop(void **state)
{
    struct fixture *f = *state;
    struct probe batch = {0};
    struct pg_array array = {.count = 0};
    struct pg_params params = {.count = 0};
    char *item, *url;

    NEEDS_DATABASE(f);
    item = xcalloc(1, 8 << 20);
    url = relay_begin(&f->relay, &f->loop, f->url);
    open_and_wait(f, url, (struct pg_settings){0});
    relay_freeze(&f->relay);
    pg_array_reset(&array, PG_BYTEA);
    pg_array_bytes(&array, (struct str){item, 8 << 20});
    pg_param_array(&params, &array);
    batch.query.timeout_ms = 200;
    submit_params(f, &batch, &sizes, PG_WRITE, &params);
    await(f, &batch);
    assert_int_equal(batch.err, ERR_TIMEOUT);
    assert_true(loop_until(&f->loop, write_down, f, WAIT_MS));
    pg_params_clear(&params);
    pg_array_clear(&array);
    free(item);
    free(url);
}

static void a_large_answer_arrives_whole(void **state)
{
    struct fixture *f = *state;
    struct probe probe = {0}, small = {0};

    NEEDS_DATABASE(f);
    open_and_wait(f, f->url, (struct pg_settings){.read_connections = 1});
    submit(f, &probe, &large, PG_READ, 20 << 20);
    submit(f, &small, &plus_one, PG_READ, 1);
    await(f, &small);
    assert_int_equal(probe.err, ERR_OK);
    assert_int_equal(probe.rows, 1);
}

/* --- addresses --- */

static char *url_with(const struct fixture *f, const char *key, const char *value)
{
    struct buf url = {0};

    buf_printf(&url, "%s", f->url);
    add_setting(&url, key, value);
    return url.p;
}

static void a_host_name_is_looked_up_beside_the_loop(void **state)
{
    struct fixture *f = *state;
    PGconn *own;
    char *url;

    NEEDS_DATABASE(f);
    own = database_connect(f->url);
    if (strcmp(PQhostaddr(own), "127.0.0.1") != 0) {
        PQfinish(own);
        skip();
    }
    PQfinish(own);
    url = url_with(f, "host", "localhost");
    open_and_wait(f, url, (struct pg_settings){0});
    free(url);
}

static void of_several_hosts_the_one_that_answers_is_taken(void **state)
{
    struct fixture *f = *state;
    char hosts[100], ports[100];
    struct probe probe = {0};
    char *with_hosts, *url;
    struct buf both = {0};
    PGconn *own;

    NEEDS_DATABASE(f);
    own = database_connect(f->url);
    snprintf(hosts, sizeof hosts, "no-such-host.invalid,127.0.0.1,%s", PQhostaddr(own));
    snprintf(ports, sizeof ports, "5432,1,%s", PQport(own));
    PQfinish(own);
    with_hosts = url_with(f, "host", hosts);
    buf_printf(&both, "%s", with_hosts);
    add_setting(&both, "port", ports);
    url = both.p;
    open_and_wait(f, url, (struct pg_settings){0});
    submit(f, &probe, &plus_one, PG_WRITE, 1);
    await(f, &probe);
    assert_int_equal(probe.err, ERR_OK);
    free(with_hosts);
    free(url);
}

static void a_host_that_hangs_does_not_hide_the_next(void **state)
{
    struct fixture *f = *state;
    struct buf url = {0};
    char ports[100], *hung;
    PGconn *own;

    NEEDS_DATABASE(f);
    own = database_connect(f->url);
    if (strcmp(PQhostaddr(own), "127.0.0.1") != 0) {
        PQfinish(own);
        skip();
    }
    hung = relay_begin(&f->relay, &f->loop, f->url);
    relay_freeze(&f->relay);
    snprintf(ports, sizeof ports, "%d,%s", f->relay.port, PQport(own));
    PQfinish(own);
    buf_printf(&url, "%s", f->url);
    add_setting(&url, "host", "127.0.0.1,127.0.0.1");
    add_setting(&url, "port", ports);
    add_setting(&url, "connect_timeout", "1");
    open_and_wait(f, url.p, (struct pg_settings){0});
    buf_clear(&url);
    free(hung);
}

/* As the names were looked up: what libpq is told to want. */
static void wants(const char *url, int found, const char *expected)
{
    struct pg_lookup lookup = {.found = found};
    struct pg_address *address;
    PQconninfoOption *options;
    PGconn *connection;

    assert_int_equal(pg_address_parse(&address, url), ERR_OK);
    for (int i = 0; i < found; i++) {
        buf_text(&lookup.hosts, i ? ",db" : "db");
        buf_text(&lookup.addresses, i ? ",127.0.0.1" : "127.0.0.1");
        buf_text(&lookup.ports, i ? ",1" : "1");
    }
    lookup.any_address = true;
    connection = pg_address_connect(address, &lookup, "");
    options = PQconninfo(connection);
    for (const PQconninfoOption *option = options; option->keyword; option++)
        if (strcmp(option->keyword, "target_session_attrs") == 0)
            assert_string_equal(option->val, expected);
    PQconninfoFree(options);
    PQfinish(connection);
    pg_lookup_clear(&lookup);
    pg_address_free(address);
}

static void of_several_hosts_and_of_a_name_of_several_the_one_to_write_to_is_wanted(void **state)
{
    (void)state;
    wants("postgresql://db/x", 1, "any");
    wants("postgresql://db/x", 2, "read-write");
    wants("postgresql://db,db/x", 2, "read-write");
    wants("postgresql://db,db/x", 1, "read-write");
    wants("postgresql://db,db/x?target_session_attrs=any", 2, "any");
}

static void what_is_no_connection_string_is_refused(void **state)
{
    struct fixture *f = *state;
    struct pg_settings settings = {.url = "postgresql://[", .read_connections = 1, .queue_max = 1};

    assert_int_equal(pg_open(&f->pg, &f->loop, &settings), ERR_BAD_REQUEST);
    f->pg = NULL;
}

static void assert_setting(struct fixture *f, enum pg_lane lane, const char *name, const char *value)
{
    struct pg_params params = {.count = 0};
    struct probe probe = {0};

    pg_param_text(&params, str_of(name));
    pg_param_text(&params, str_of(value));
    submit_params(f, &probe, &setting, lane, &params);
    pg_params_clear(&params);
    await(f, &probe);
    assert_int_equal(probe.err, ERR_OK);
    if (probe.number != 1)
        fail_msg("%s is not %s", name, value);
}

static void a_session_has_our_settings_unless_the_url_says_otherwise(void **state)
{
    struct fixture *f = *state;
    char *url;

    NEEDS_DATABASE(f);
    url = url_with(f, "application_name", "somebody");
    open_and_wait(f, url, (struct pg_settings){0});
    free(url);
    assert_setting(f, PG_READ, "search_path", SCHEMA); /* from the options in the URL */
    assert_setting(f, PG_READ, "application_name", "somebody");
    assert_setting(f, PG_WRITE, "statement_timeout", "0");
    for (int lane = 0; lane < PG_LANES; lane++) {
        assert_setting(f, (enum pg_lane)lane, "client_connection_check_interval", "1s");
        assert_setting(f, (enum pg_lane)lane, "tcp_keepalives_idle", "2");
        assert_setting(f, (enum pg_lane)lane, "tcp_keepalives_count", "2");
    }
    close_pool(f);
    open_and_wait(f, f->url, (struct pg_settings){0});
    assert_setting(f, PG_CONTROL, "application_name", "roomd");
}

/* --- the end --- */

static void closing_ends_every_query_once(void **state)
{
    enum { N = 300 };
    struct fixture *f = *state;
    struct probe probes[N] = {{.calls = 0}};
    int calls = 0, lost = 0, unavailable = 0;

    NEEDS_DATABASE(f);
    open_and_wait(f, f->url, (struct pg_settings){0});
    for (int i = 0; i < N; i++) {
        probes[i].all_calls = &calls;
        submit(f, &probes[i], &plus_one, (enum pg_lane)(i % 3), i);
    }
    pg_close(f->pg);
    assert_int_equal(calls, 0);
    f->pg = NULL;
    uv_run(&f->loop, UV_RUN_DEFAULT);
    for (int i = 0; i < N; i++) {
        assert_int_equal(probes[i].calls, 1);
        lost += probes[i].err == ERR_LOST;
        unavailable += probes[i].err == ERR_UNAVAILABLE;
    }
    assert_true(lost > 0 && unavailable > 0);
}

static void closing_while_connecting_leaves_nothing_behind(void **state)
{
    struct fixture *f = *state;
    struct pg_settings settings = {
        .url = "host=no-such-host.invalid,localhost port=1", .read_connections = 2, .queue_max = 1};
    struct probe probe = {0};

    assert_int_equal(pg_open(&f->pg, &f->loop, &settings), ERR_OK);
    uv_run(&f->loop, UV_RUN_NOWAIT);
    submit(f, &probe, &plus_one, PG_READ, 1);
    pg_close(f->pg);
    f->pg = NULL;
    uv_run(&f->loop, UV_RUN_DEFAULT);
    assert_int_equal(probe.err, ERR_UNAVAILABLE);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)
    const struct CMUnitTest tests[] = {
        TEST(a_listener_that_comes_late_is_told_of_the_session_that_is_up),
        TEST(ten_thousand_pipelined_reads_are_each_answered_once),
        TEST(writes_are_answered_in_the_order_of_submission),
        TEST(a_refused_statement_leaves_its_neighbours_alone),
        TEST(a_statement_that_cannot_be_prepared_does_not_poison_later_ones),
        TEST(a_commit_that_is_refused_at_its_end_is_refused),
        TEST(a_table_that_changed_under_a_prepared_statement_is_read_again),
        TEST(a_terminated_backend_is_replaced_and_its_queries_are_lost_once),
        TEST(every_query_ends_once_when_the_server_vanishes_in_the_middle),
        TEST(every_query_ends_once_when_the_server_is_restarted),
        TEST(a_read_without_an_answer_times_out_and_its_connection_is_replaced),
        TEST(a_query_is_given_up_when_no_connection_comes_in_time),
        TEST(more_than_the_queue_holds_is_refused),
        TEST(a_forgotten_query_is_not_called_back),
        TEST(a_batch_of_four_megabytes_does_not_stop_the_loop),
        TEST(a_batch_into_a_frozen_server_does_not_stop_the_loop),
        TEST(a_large_answer_arrives_whole),
        TEST(a_host_name_is_looked_up_beside_the_loop),
        TEST(of_several_hosts_the_one_that_answers_is_taken),
        TEST(a_host_that_hangs_does_not_hide_the_next),
        TEST(of_several_hosts_and_of_a_name_of_several_the_one_to_write_to_is_wanted),
        TEST(what_is_no_connection_string_is_refused),
        TEST(a_session_has_our_settings_unless_the_url_says_otherwise),
        TEST(closing_ends_every_query_once),
        TEST(closing_while_connecting_leaves_nothing_behind),
    };

    log_set_level(getenv("ROOMD_TEST_LOG") ? LOG_DEBUG : LOG_ERROR);
    if (getenv("ONLY"))
        cmocka_set_test_filter(getenv("ONLY"));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
