#include "room/base/cluster.h"

#include "database.h"
#include "room/base/log.h"

#include <signal.h>
#include <sys/wait.h>

#define SCHEMA "test_cluster"

enum { SHARDS = 8, NODES = 3 };

struct fixture;

/* One instance: its own pool, as if it were a process of its own. */
struct node {
    struct fixture *fixture;
    struct relay relay;
    bool relayed;
    struct pg *pg;
    struct cluster *cluster;
    int taken, lost, probes, left, moves;
    int64_t weight;         /* 0: the usual one */
    uint64_t epoch[SHARDS]; /* as told by taken; 0 after lost */
    int consumers;          /* what a look finds; -1: the broker does not answer */
    bool late_answers;      /* a look is answered by answer_looks only */
    bool release_on_taken;
    uint64_t joined_ms;
    bool gives_all; /* ends all shards at once that are to move */
    bool follows;   /* ends a shard as soon as it is to move */
};

struct fixture {
    uv_loop_t loop;
    char *url;
    PGconn *own;
    struct node nodes[NODES];
    int pauses; /* of shards that moved: from the release to the new owner's taken */
    uint64_t released_ms, longest_pause_ms;
    long looks;
};

/* --- events --- */

static int shard_number(struct str shard)
{
    return (shard.p[1] - '0') * 10 + shard.p[2] - '0';
}

static void on_taken(void *arg, struct str shard, uint64_t epoch)
{
    struct node *node = arg;

    assert_true(epoch > node->epoch[shard_number(shard)]);
    node->epoch[shard_number(shard)] = epoch;
    node->taken++;
    if (node->fixture->released_ms) {
        node->fixture->pauses++;
        if (getenv("ROOMD_TEST_LOG"))
            print_message("%d ms\n", (int)(clock_mono_ms() - node->fixture->released_ms));
        if (clock_mono_ms() - node->fixture->released_ms > node->fixture->longest_pause_ms)
            node->fixture->longest_pause_ms = clock_mono_ms() - node->fixture->released_ms;
    }
    node->fixture->released_ms = 0;
    if (node->release_on_taken)
        cluster_release(node->cluster, shard);
}

/* One at a time: when a shard is to move, all are in somebody's hands. */
static void on_move(void *arg, struct str shard)
{
    struct node *node = arg;

    node->moves++;
    if (node->gives_all) {
        node->epoch[shard_number(shard)] = 0;
        cluster_release(node->cluster, shard);
    }
    if (!node->follows)
        return;
    assert_int_equal(database_number(node->fixture->own, "SELECT count(*) FROM shard_lease WHERE holder IS NULL"), 0);
    assert_int_equal(node->fixture->released_ms, 0);
    node->fixture->released_ms = clock_mono_ms();
    node->epoch[shard_number(shard)] = 0;
    cluster_release(node->cluster, shard);
}

static void on_lost(void *arg, struct str shard)
{
    struct node *node = arg;

    assert_true(node->epoch[shard_number(shard)] > 0);
    node->epoch[shard_number(shard)] = 0;
    node->lost++;
}

static void on_probe(void *arg, struct str shard)
{
    struct node *node = arg;

    node->probes++;
    if (!node->late_answers)
        cluster_probed(node->cluster, shard, node->consumers < 0 ? ERR_UNAVAILABLE : ERR_OK,
            node->consumers < 0 ? 0 : (uint32_t)node->consumers);
}

static void on_left(void *arg)
{
    ((struct node *)arg)->left++;
}

/* --- nodes --- */

struct times {
    int64_t beat_ms, lease_ttl_ms;
};
static const struct times quick = {100, 1000};

static void node_start_as(struct fixture *f, int i, struct times times, const char *name)
{
    struct node *node = &f->nodes[i];
    char *url = node->relayed ? relay_begin(&node->relay, &f->loop, f->url) : NULL;
    char address[64];
    struct pg_settings settings = {
        .url = url ? url : f->url, .read_connections = 1, .timeout_ms = 5000, .queue_max = 100};
    struct cluster_events events = {
        .taken = on_taken, .lost = on_lost, .probe = on_probe, .move = on_move, .arg = node};

    node->fixture = f;
    node->joined_ms = clock_mono_ms();
    snprintf(address, sizeof address, "http://%s", name);
    assert_int_equal(pg_open(&node->pg, &f->loop, &settings), ERR_OK);
    assert_int_equal(cluster_join(&node->cluster, &f->loop, node->pg,
                         &(struct cluster_settings){
                             name, address, times.beat_ms, times.lease_ttl_ms, node->weight ? node->weight : 100},
                         &events),
        ERR_OK);
    free(url);
}

static void node_start(struct fixture *f, int i, struct times times)
{
    char name[8];

    snprintf(name, sizeof name, "n%d", i);
    node_start_as(f, i, times, name);
    cluster_ready(f->nodes[i].cluster, true);
}

static int owned(const struct node *node)
{
    int count = 0;

    for (size_t i = 0; node->cluster && i < cluster_shard_count(node->cluster); i++)
        count += cluster_shards(node->cluster)[i].ours;
    return count;
}

static bool owns_all(void *arg)
{
    return owned(arg) == SHARDS;
}

static bool owns_nothing(void *arg)
{
    return owned(arg) == 0;
}

static bool has_left(void *arg)
{
    return ((struct node *)arg)->left > 0;
}

static bool knows_two(void *arg)
{
    const struct cluster_instance *instances;

    return cluster_instances(((struct node *)arg)->cluster, &instances) == 2;
}

static bool database_answers(void *arg)
{
    return cluster_database_ok(((struct node *)arg)->cluster);
}

static bool database_is_away(void *arg)
{
    return !database_answers(arg);
}

static void await(struct fixture *f, bool (*holds)(void *arg), struct node *node)
{
    assert_true(loop_until(&f->loop, holds, node, WAIT_MS));
}

/* Runs the loop until the node has seen `count` more beats of its own in the table. */
struct beats {
    struct fixture *f;
    char sql[100];
    long until;
};

static bool beats_reached(void *arg)
{
    struct beats *beats = arg;

    return database_number(beats->f->own, beats->sql) >= beats->until;
}

static void beats_from_now(struct fixture *f, const struct node *node, int count, struct beats *beats)
{
    beats->f = f;
    snprintf(beats->sql, sizeof beats->sql, "SELECT coalesce(max(beat), 0) FROM instance WHERE id = '%s'",
        cluster_self(node->cluster));
    beats->until = database_number(f->own, beats->sql) + count;
}

static void await_beats(struct fixture *f, const struct node *node, int count)
{
    struct beats beats;

    beats_from_now(f, node, count, &beats);
    assert_true(loop_until(&f->loop, beats_reached, &beats, WAIT_MS));
}

/* Asks the database again and again; other sessions do the waiting. */
static void await_number(struct fixture *f, const char *sql, long number)
{
    uint64_t until = clock_mono_ms() + WAIT_MS;

    while (database_number(f->own, sql) != number)
        if (clock_mono_ms() > until)
            fail_msg("never %ld: %s", number, sql);
}

/* --- set-up --- */

static int begin(void **state)
{
    struct fixture *f = xcalloc(1, sizeof *f);

    uv_loop_init(&f->loop);
    *state = f;
    f->url = database_begin(SCHEMA);
    if (!f->url)
        return 0;
    f->own = database_connect(f->url);
    database_migrate(f->own);
    database_run(f->own, "SELECT cluster_make_shards(8)");
    for (int i = 0; i < NODES; i++)
        f->nodes[i].relay.loop = &f->loop;
    return 0;
}

static void node_end(struct fixture *f, struct node *node)
{
    if (!node->cluster)
        return;
    if (node->pg) {
        cluster_leave(node->cluster, on_left, node);
        assert_true(loop_until(&f->loop, has_left, node, WAIT_MS));
        pg_close(node->pg);
    }
    node->cluster = NULL;
    node->pg = NULL;
    relay_cut(&node->relay);
}

static int end(void **state)
{
    struct fixture *f = *state;

    for (int i = 0; i < NODES; i++)
        node_end(f, &f->nodes[i]);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    if (f->own)
        PQfinish(f->own);
    database_end(f->url, SCHEMA);
    assert_int_equal(uv_loop_close(&f->loop), 0);
    free(f);
    return 0;
}

#define NEEDS_DATABASE(f) \
    if (!(f)->url)        \
    skip()

/* --- who gets what --- */

static void the_first_who_can_takes_all(void **state)
{
    struct fixture *f = *state;
    struct node *first = &f->nodes[0], *second = &f->nodes[1];
    const struct cluster_instance *instances;

    NEEDS_DATABASE(f);
    node_start(f, 0, (struct times){500, 10000}); /* a beat of 100 is in doubt when the database has no time for 180 */
    await(f, owns_all, first);
    node_start(f, 1, (struct times){500, 60000});
    await(f, knows_two, second);
    await_beats(f, first, 10);
    assert_int_equal(owned(first), SHARDS); /* told to give one away, it does not */
    assert_int_equal(second->taken, 0);
    assert_int_equal(second->probes, 0);
    assert_int_equal(first->lost, 0);
    for (int i = 0; i < SHARDS; i++)
        assert_int_equal(first->epoch[i], 1);
    assert_int_equal(cluster_instances(second->cluster, &instances), 2);
    assert_true(instances[0].alive && instances[1].alive);
    assert_int_equal(instances[0].shards + instances[1].shards, SHARDS);
    assert_string_equal(cluster_shards(second->cluster)[3].owner, cluster_self(first->cluster));
    assert_in_range(cluster_shards(second->cluster)[3].since_ms, clock_unix_ms() - 60000, clock_unix_ms());
    assert_string_equal(cluster_find_shard(second->cluster, STR("s03"))->name, "s03");
    assert_null(cluster_find_shard(second->cluster, STR("s3")));
}

static bool owns_half(void *arg)
{
    return owned(arg) == SHARDS / 2;
}

static void a_second_one_gets_its_share_one_shard_after_another(void **state)
{
    struct fixture *f = *state;
    struct node *first = &f->nodes[0], *second = &f->nodes[1];
    uint64_t began;

    NEEDS_DATABASE(f);
    first->follows = true;
    node_start(f, 0, (struct times){1000, 60000});
    await(f, owns_all, first);
    began = clock_mono_ms();
    node_start(f, 1, (struct times){1000, 60000});
    await(f, owns_half, second);
    print_message("its share %d ms after the start, the longest pause of a shard %d ms\n",
        (int)(clock_mono_ms() - began), (int)f->longest_pause_ms);
    assert_true(clock_mono_ms() - began >= 2000); /* one that comes and goes moves nothing */
    assert_int_equal(f->pauses, SHARDS / 2);
    assert_true(f->longest_pause_ms < 900); /* less than a beat; by far where nothing else runs */
    await_beats(f, first, 3);
    assert_int_equal(first->moves, SHARDS / 2);
    assert_int_equal(second->moves, 0);
    assert_int_equal(first->lost + second->lost, 0);
    assert_int_equal(database_number(f->own, "SELECT max(epoch) FROM shard_lease"), 2);
}

static bool all_have_a_share(void *arg)
{
    struct fixture *f = arg;
    int sum = 0;

    for (int i = 0; i < NODES; i++) {
        int count = owned(&f->nodes[i]);

        if (count < SHARDS / NODES || count > SHARDS / NODES + 1)
            return false;
        sum += count;
    }
    return sum == SHARDS;
}

static void three_that_start_together_have_a_share_each(void **state)
{
    struct fixture *f = *state;

    NEEDS_DATABASE(f);
    for (int i = 0; i < NODES; i++) {
        f->nodes[i].follows = true;
        node_start(f, i, quick);
    }
    assert_true(loop_until(&f->loop, all_have_a_share, f, WAIT_MS));
    for (int i = 0; i < NODES; i++)
        await_beats(f, &f->nodes[i], 20);
    assert_true(all_have_a_share(f)); /* and it stays so */
    assert_int_equal(f->nodes[0].lost + f->nodes[1].lost + f->nodes[2].lost, 0);
    assert_in_range(database_number(f->own, "SELECT sum(epoch) FROM shard_lease"), SHARDS, 2 * SHARDS);
}

static bool owns_six(void *arg)
{
    return owned(arg) == 6;
}

static void shares_follow_the_weights(void **state)
{
    struct fixture *f = *state;

    NEEDS_DATABASE(f);
    f->nodes[0].follows = f->nodes[1].follows = true;
    f->nodes[1].weight = 300;
    node_start(f, 0, quick);
    await(f, owns_all, &f->nodes[0]);
    node_start(f, 1, quick);
    await(f, owns_six, &f->nodes[1]);
    await_beats(f, &f->nodes[1], 10);
    assert_int_equal(owned(&f->nodes[0]), 2);
}

static bool was_told(void *arg)
{
    return ((struct node *)arg)->moves > 0;
}

static bool was_told_again(void *arg)
{
    return ((struct node *)arg)->moves > 1;
}

static bool looked_often(void *arg)
{
    struct fixture *f = arg;

    return database_number(f->own, "SELECT sum(beat) FROM instance") >= f->looks;
}

/* Its holder may see sooner than it that it is the time, and a shard that was let go waits for its next look. */
static void who_should_have_a_shard_looks_often_before_it_is_moved(void **state)
{
    struct fixture *f = *state;
    struct node *first = &f->nodes[0], *second = &f->nodes[1];

    NEEDS_DATABASE(f);
    node_start(f, 0, (struct times){3000, 60000});
    await(f, owns_all, first);
    node_start(f, 1, (struct times){3000, 60000});
    await(f, knows_two, second);
    f->looks = database_number(f->own, "SELECT sum(beat) FROM instance") + 10;
    assert_true(loop_until(&f->loop, looked_often, f, 5000)); /* by beats it would be four */
    assert_int_equal(first->moves, 0);
    assert_int_equal(second->taken, 0);
}

/* Who does not end a shard is not told again and again, and nobody asks the database all the time because of it. */
static void a_move_that_does_not_happen_costs_little(void **state)
{
    struct fixture *f = *state;
    struct node *first = &f->nodes[0], *second = &f->nodes[1];
    long before;

    NEEDS_DATABASE(f);
    node_start(f, 0, (struct times){200, 60000});
    await(f, owns_all, first);
    node_start(f, 1, (struct times){200, 60000});
    await(f, was_told, first);
    assert_false(loop_until(&f->loop, was_told_again, first, 1500)); /* looks closely for a second at most */
    before = database_number(f->own, "SELECT sum(beat) FROM instance");
    await_beats(f, second, 5);
    assert_true(database_number(f->own, "SELECT sum(beat) FROM instance") - before < 20);
    assert_int_equal(first->moves, 1);
    assert_int_equal(owned(first), SHARDS);
}

static void who_cannot_consume_gives_back_and_gets_its_share_again(void **state)
{
    struct fixture *f = *state;
    struct node *first = &f->nodes[0], *second = &f->nodes[1];
    uint64_t began;

    NEEDS_DATABASE(f);
    first->follows = true;
    node_start(f, 0, quick);
    await(f, owns_all, first);
    second->consumers = 1; /* nothing is taken from it */
    node_start(f, 1, quick);
    await(f, owns_half, second);
    first->follows = false;
    first->gives_all = second->follows = true;
    began = clock_mono_ms();
    cluster_ready(first->cluster, false);
    await(f, owns_all, second);
    assert_true(clock_mono_ms() - began >= 200); /* a connection that comes back soon moves nothing */
    cluster_ready(first->cluster, true);
    await(f, owns_half, first);
    assert_int_equal(owned(second), SHARDS / 2);
    assert_int_equal(first->lost + second->lost, 0);
}

/* … and one that does not even give back is robbed, when nobody consumes. */
static void of_one_that_cannot_consume_the_shards_are_in_doubt(void **state)
{
    struct fixture *f = *state;
    struct node *first = &f->nodes[0], *second = &f->nodes[1];

    NEEDS_DATABASE(f);
    node_start(f, 0, (struct times){100, 60000});
    await(f, owns_all, first);
    second->consumers = 1;
    node_start(f, 1, (struct times){100, 60000});
    await(f, knows_two, second);
    cluster_ready(first->cluster, false);
    await_beats(f, second, 15);
    assert_int_equal(second->taken, 0);
    assert_true(second->probes > 0);
    second->consumers = 0;
    await(f, owns_all, second);
    await(f, owns_nothing, first);
    assert_int_equal(first->lost, SHARDS);
}

/* An instance of the test's own, which beats whenever somebody looks, and does nothing else. */
struct puppet {
    struct node *watched;
    const char *beat;
    struct beats beats; /* of the one that is watched */
};

static bool owns_all_beside(void *arg)
{
    struct puppet *puppet = arg;

    database_run(puppet->watched->fixture->own, puppet->beat);
    return owned(puppet->watched) == SHARDS;
}

static bool beats_reached_beside(void *arg)
{
    struct puppet *puppet = arg;

    database_run(puppet->watched->fixture->own, puppet->beat);
    return beats_reached(&puppet->beats);
}

static void await_beats_beside(struct fixture *f, struct puppet *puppet, int count)
{
    beats_from_now(f, puppet->watched, count, &puppet->beats);
    assert_true(loop_until(&f->loop, beats_reached_beside, puppet, WAIT_MS));
}

static void what_is_not_taken_by_who_should_is_taken_by_others(void **state)
{
    struct fixture *f = *state;
    struct puppet puppet = {.watched = &f->nodes[0],
        .beat = "SELECT cluster_beat('Z', 'z', '', 1000, 60000, true, false, 0, 0, 10000, false)"};

    NEEDS_DATABASE(f);
    database_run(f->own, puppet.beat);
    node_start(f, 0, (struct times){1000, 60000});
    assert_true(loop_until(&f->loop, owns_all_beside, &puppet, WAIT_MS));
    assert_in_range(clock_mono_ms() - f->nodes[0].joined_ms, 2000, WAIT_MS);
}

static void a_program_from_before_is_given_nothing_and_asked_for_nothing(void **state)
{
    struct fixture *f = *state;
    struct puppet puppet = {
        .watched = &f->nodes[0], .beat = "SELECT cluster_beat('Z', 'z', '', 1000, 60000, true, false, 0, 0)"};
    struct node *node = &f->nodes[0];

    NEEDS_DATABASE(f);
    database_run(f->own, puppet.beat);
    node_start(f, 0, (struct times){500, 60000});
    assert_true(loop_until(&f->loop, owns_all_beside, &puppet, WAIT_MS));
    assert_true(clock_mono_ms() - node->joined_ms < 950); /* not because nobody else wanted them */
    await_beats_beside(f, &puppet, 3);
    assert_int_equal(node->moves, 0);
    database_run(f->own, "UPDATE shard_lease SET holder = 'Z', epoch = epoch + 1 WHERE shard IN ('s00', 's01')");
    await_beats_beside(f, &puppet, 2);
    assert_int_equal(node->lost, 2);
    assert_int_equal(owned(node), SHARDS - 2);
}

static void who_cannot_consume_takes_nothing(void **state)
{
    struct fixture *f = *state;
    struct node *node = &f->nodes[0];

    NEEDS_DATABASE(f);
    node_start_as(f, 0, quick, "n0");
    await(f, database_answers, node);
    await_beats(f, node, 10);
    assert_int_equal(node->taken, 0);
    assert_int_equal(cluster_shard_count(node->cluster), SHARDS);
    cluster_ready(node->cluster, true);
    await(f, owns_all, node);
}

/* Of a race for free leases each goes to exactly one. */
static void a_race_for_every_shard_has_one_winner_each(void **state)
{
    struct fixture *f = *state;

    NEEDS_DATABASE(f);
    for (int i = 0; i < NODES; i++)
        node_start(f, i, quick);
    for (int i = 0; i < NODES; i++)
        await_beats(f, &f->nodes[i], 10);
    assert_int_equal(owned(&f->nodes[0]) + owned(&f->nodes[1]) + owned(&f->nodes[2]), SHARDS);
    assert_int_equal(f->nodes[0].lost + f->nodes[1].lost + f->nodes[2].lost, 0);
    assert_int_equal(database_number(f->own, "SELECT sum(epoch) FROM shard_lease"), SHARDS);
}

static void two_takes_of_the_same_row_have_one_winner(void **state)
{
    struct fixture *f = *state;
    PGconn *other;
    char sql[120];

    NEEDS_DATABASE(f);
    other = database_connect(f->url);
    database_run(f->own, "BEGIN; SELECT * FROM cluster_take('A', 0, '{s00}', '{0}', '{NULL}', '{-1}', false)");
    assert_int_equal(
        PQsendQuery(other, "SELECT epoch FROM cluster_take('B', 0, '{s00}', '{0}', '{NULL}', '{-1}', true)"), 1);
    snprintf(sql, sizeof sql,
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid' AND pid = %d",
        PQbackendPID(other));
    await_number(f, sql, 1);
    database_run(f->own, "COMMIT");
    PQclear(PQgetResult(other));
    PQfinish(other);
    assert_int_equal(database_number(f->own, "SELECT epoch FROM shard_lease WHERE shard = 's00' AND holder = 'A'"), 1);
}

static void a_holder_that_beats_again_is_not_robbed(void **state)
{
    struct fixture *f = *state;

    NEEDS_DATABASE(f);
    database_run(f->own, "SELECT cluster_beat('A', 'a', '', 1000, 4000, true, false, 0, 0);"
                         "SELECT cluster_take('A', 0, '{s00}', '{0}', '{NULL}', '{-1}', false);"
                         "SELECT cluster_beat('A', 'a', '', 1000, 4000, true, false, 0, 0)");
    assert_int_equal(
        database_number(f->own, "SELECT count(*) FROM cluster_take('B', 0, '{s00}', '{1}', '{A}', '{1}', true)"), 0);
    assert_int_equal(
        database_number(f->own, "SELECT epoch FROM cluster_take('B', 0, '{s00}', '{1}', '{A}', '{2}', true)"), 2);
}

/* --- death --- */

static void a_silent_owner_is_dead_after_the_ttl(void **state)
{
    struct fixture *f = *state;
    struct node *first = &f->nodes[0], *second = &f->nodes[1];
    uint64_t began;

    NEEDS_DATABASE(f);
    first->relayed = true;
    node_start(f, 0, quick);
    await(f, owns_all, first);
    second->consumers = 1; /* somebody still consumes: no short cut */
    node_start(f, 1, quick);
    await(f, knows_two, second);
    await_beats(f, second, 3);
    began = clock_mono_ms();
    relay_freeze(&first->relay);
    await(f, owns_all, second);
    assert_true(clock_mono_ms() - began >= 900);
    assert_true(clock_mono_ms() - began < 5000);
    assert_true(second->probes > 0);
    for (int i = 0; i < SHARDS; i++)
        assert_int_equal(second->epoch[i], 2);
}

static void a_killed_owner_without_consumers_is_followed_at_once(void **state)
{
    struct fixture *f = *state;
    struct node *first = &f->nodes[0], *second = &f->nodes[1];
    uint64_t began;

    NEEDS_DATABASE(f);
    first->relayed = true;
    node_start(f, 0, (struct times){1000, 60000});
    await(f, owns_all, first);
    node_start(f, 1, (struct times){1000, 60000});
    await(f, knows_two, second);
    await_beats(f, second, 2);
    began = clock_mono_ms();
    relay_freeze(&first->relay);
    await(f, owns_all, second);
    print_message("taken over %d ms after the last sign of life\n", (int)(clock_mono_ms() - began));
    assert_true(clock_mono_ms() - began < 15000); /* by silence it would be a minute */
    assert_int_equal(second->probes, 2 * SHARDS);
    assert_int_equal(second->taken, SHARDS);
}

/* The new process stands at the address of the old one, so there is no need to wait for a beat to be missed. */
static void a_restarted_instance_follows_itself_at_once(void **state)
{
    struct fixture *f = *state;
    struct node *first = &f->nodes[0], *second = &f->nodes[1];
    uint64_t began;

    NEEDS_DATABASE(f);
    first->relayed = true;
    node_start_as(f, 0, (struct times){1000, 60000}, "same");
    cluster_ready(first->cluster, true);
    await(f, owns_all, first);
    relay_freeze(&first->relay);
    began = clock_mono_ms();
    node_start_as(f, 1, (struct times){1000, 60000}, "same");
    cluster_ready(second->cluster, true);
    await(f, owns_all, second);
    print_message("ready %d ms after the start\n", (int)(clock_mono_ms() - began));
    assert_true(clock_mono_ms() - began < 1500); /* with a beat to miss it would be 1800 */
}

static void an_owner_in_doubt_that_is_consuming_keeps_its_shards(void **state)
{
    struct fixture *f = *state;
    struct node *first = &f->nodes[0], *second = &f->nodes[1];

    NEEDS_DATABASE(f);
    first->relayed = true;
    node_start(f, 0, (struct times){100, 60000});
    await(f, owns_all, first);
    second->consumers = 1;
    node_start(f, 1, (struct times){100, 60000});
    await(f, knows_two, second);
    relay_freeze(&first->relay);
    await_beats(f, second, 15);
    assert_true(second->probes > SHARDS);
    assert_int_equal(second->taken, 0);
    second->consumers = -1; /* no answer is no proof either */
    await_beats(f, second, 15);
    assert_int_equal(second->taken, 0);
    second->consumers = 0;
    await(f, owns_all, second);
}

static void answers_to_looks_may_come_later(void **state)
{
    struct fixture *f = *state;
    struct node *first = &f->nodes[0], *second = &f->nodes[1];

    NEEDS_DATABASE(f);
    first->relayed = true;
    node_start(f, 0, (struct times){100, 60000});
    await(f, owns_all, first);
    second->late_answers = true;
    node_start(f, 1, (struct times){100, 60000});
    await(f, knows_two, second);
    relay_freeze(&first->relay);
    await_beats(f, second, 10);
    assert_int_equal(second->probes, SHARDS); /* not asked again while an answer is awaited */
    for (int i = 0; i < SHARDS; i++)
        cluster_probed(second->cluster, str_of(cluster_shards(second->cluster)[i].name), ERR_OK, 0);
    second->late_answers = false;
    await(f, owns_all, second);
}

/* The database was away for everybody: nobody loses anything because of it. */
static void nobody_dies_of_an_absent_database(void **state)
{
    struct fixture *f = *state;
    struct node *first = &f->nodes[0], *second = &f->nodes[1];
    struct beats beats = {.f = f};

    NEEDS_DATABASE(f);
    first->relayed = second->relayed = true;
    node_start(f, 0, (struct times){100, 3000});
    await(f, owns_all, first);
    second->consumers = 1;
    node_start(f, 1, (struct times){100, 3000});
    await(f, knows_two, second);
    relay_cut(&first->relay);
    relay_cut(&second->relay);
    await(f, database_is_away, first);
    await(f, database_is_away, second);
    snprintf(beats.sql, sizeof beats.sql,
        "SELECT (extract(epoch FROM clock_timestamp() - max(beat_at)) * 1000)::int FROM instance");
    beats.until = 3300; /* longer than a lease */
    assert_true(loop_until(&f->loop, beats_reached, &beats, WAIT_MS));
    relay_listen(&second->relay);
    relay_listen(&first->relay);
    await(f, database_answers, second);
    await(f, database_answers, first);
    await_beats(f, first, 15);
    assert_int_equal(owned(first), SHARDS);
    assert_int_equal(first->lost + second->taken, 0);
}

static void an_owner_that_was_overtaken_hears_of_it(void **state)
{
    struct fixture *f = *state;
    struct node *first = &f->nodes[0], *second = &f->nodes[1];

    NEEDS_DATABASE(f);
    first->relayed = true;
    node_start(f, 0, quick);
    await(f, owns_all, first);
    node_start(f, 1, quick);
    await(f, knows_two, second);
    relay_cut(&first->relay);
    await(f, owns_all, second);
    assert_int_equal(owned(first), SHARDS); /* nobody told it: it goes on, and its appends are refused */
    relay_listen(&first->relay);
    await(f, owns_nothing, first);
    assert_int_equal(first->lost, SHARDS);
    await_beats(f, first, 5);
    assert_int_equal(owned(second), SHARDS);
}

static void who_finds_its_row_gone_gives_up_everything_first(void **state)
{
    struct fixture *f = *state;
    struct node *node = &f->nodes[0];

    NEEDS_DATABASE(f);
    node_start(f, 0, quick);
    await(f, owns_all, node);
    database_run(f->own, "DELETE FROM instance");
    await(f, owns_nothing, node);
    assert_int_equal(node->lost, SHARDS);
    await(f, owns_all, node); /* nobody else was there: under new epochs */
    for (int i = 0; i < SHARDS; i++)
        assert_int_equal(node->epoch[i], 2);
}

static void a_lease_that_names_nobody_known_is_free(void **state)
{
    struct fixture *f = *state;

    NEEDS_DATABASE(f);
    database_run(f->own, "UPDATE shard_lease SET holder = '00000000000000000000000000', epoch = 7");
    node_start(f, 0, (struct times){100, 60000});
    await(f, owns_all, &f->nodes[0]);
    assert_int_equal(f->nodes[0].epoch[5], 8);
    assert_int_equal(f->nodes[0].probes, 0);
}

static void the_dead_are_removed_only_when_they_own_nothing(void **state)
{
    struct fixture *f = *state;

    NEEDS_DATABASE(f);
    database_run(f->own, "SELECT cluster_beat('A', 'a', '', 1000, 4000, true, false, 0, 0);"
                         "SELECT cluster_take('A', 0, '{s00}', '{0}', '{NULL}', '{-1}', false);"
                         "SELECT cluster_forget('A', 1)");
    assert_int_equal(database_number(f->own, "SELECT count(*) FROM instance"), 1);
    database_run(f->own, "SELECT cluster_release('A', '{s00}'); SELECT cluster_forget('A', 7)");
    assert_int_equal(database_number(f->own, "SELECT count(*) FROM instance"), 1);
    database_run(f->own, "SELECT cluster_forget('A', 1)");
    assert_int_equal(database_number(f->own, "SELECT count(*) FROM instance"), 0);
}

/* --- locks --- */

/* A batch of which the end never arrives: Bind and Execute are there, Sync is not. */
static void send_half_a_batch(struct fixture *f, PGconn *writer)
{
    char sql[200];

    assert_int_equal(PQenterPipelineMode(writer), 1);
    assert_int_equal(PQsendQueryParams(writer, "SELECT 1 FROM shard_lease WHERE shard IN ('s02', 's05') FOR SHARE", 0,
                         NULL, NULL, NULL, NULL, 0),
        1);
    assert_int_equal(PQflush(writer), 0);
    snprintf(sql, sizeof sql,
        "SELECT count(*) FROM pg_stat_activity WHERE pid = %d AND state = 'active' AND wait_event = 'ClientRead'",
        PQbackendPID(writer));
    await_number(f, sql, 1);
}

static void assert_half_sent_batch_is_ended(struct fixture *f, bool before_it_was_named)
{
    struct node *first = &f->nodes[0], *second = &f->nodes[1];
    struct beats beats = {.f = f, .until = 1};
    PGconn *writer;
    char sql[100];

    writer = database_connect(f->url);
    first->relayed = true;
    node_start_as(f, 0, quick, "n0");
    if (!before_it_was_named)
        cluster_bind_backend(first->cluster, PQbackendPID(writer));
    cluster_ready(first->cluster, true);
    await(f, owns_all, first);
    send_half_a_batch(f, writer);
    if (before_it_was_named)
        cluster_bind_backend(first->cluster, PQbackendPID(writer));
    snprintf(beats.sql, sizeof beats.sql, "SELECT count(backend_start) FROM instance WHERE backend_pid = %d",
        PQbackendPID(writer));
    assert_true(loop_until(&f->loop, beats_reached, &beats, WAIT_MS));
    node_start(f, 1, quick);
    await(f, knows_two, second);
    relay_freeze(&first->relay);
    await(f, owns_all, second); /* also s02 and s05, whose rows it locked */
    snprintf(sql, sizeof sql, "SELECT count(*) FROM pg_stat_activity WHERE pid = %d", PQbackendPID(writer));
    await_number(f, sql, 0);
    PQfinish(writer);
}

static void a_half_sent_batch_of_a_dead_owner_is_ended(void **state)
{
    NEEDS_DATABASE((struct fixture *)*state);
    assert_half_sent_batch_is_ended(*state, false);
}

/* The rows it locks cannot name it; its owner's row does. */
static void a_half_sent_batch_of_a_new_session_is_ended(void **state)
{
    NEEDS_DATABASE((struct fixture *)*state);
    assert_half_sent_batch_is_ended(*state, true);
}

/* The session recorded in the lease is another one by now (the number was used again): it is left alone. */
static void a_session_that_only_has_the_number_is_left_alone(void **state)
{
    struct fixture *f = *state;
    PGconn *writer;
    char sql[300];

    NEEDS_DATABASE(f);
    writer = database_connect(f->url);
    snprintf(sql, sizeof sql,
        "UPDATE shard_lease SET holder = 'A', epoch = 1, backend_pid = %d, backend_start = '2000-01-01'",
        PQbackendPID(writer));
    database_run(writer, sql);
    database_run(writer, "BEGIN; SELECT 1 FROM shard_lease WHERE shard = 's02' FOR SHARE");
    assert_int_equal(
        database_number(f->own, "SELECT epoch FROM cluster_take('B', 0, '{s02}', '{1}', '{A}', '{-1}', true)"), -1);
    database_run(writer, "COMMIT");
    assert_int_equal(
        database_number(f->own, "SELECT epoch FROM cluster_take('B', 0, '{s02}', '{1}', '{A}', '{-1}', true)"), 2);
    PQfinish(writer);
}

static bool owns_all_but_one(void *arg)
{
    return owned(arg) == SHARDS - 1;
}

static void a_locked_row_holds_up_only_its_own_shard(void **state)
{
    struct fixture *f = *state;
    struct node *node = &f->nodes[0];
    PGconn *somebody;

    NEEDS_DATABASE(f);
    somebody = database_connect(f->url);
    database_run(somebody, "BEGIN; SELECT 1 FROM shard_lease WHERE shard = 's02' FOR UPDATE");
    node_start(f, 0, quick);
    await(f, owns_all_but_one, node);
    await_beats(f, node, 5);
    assert_true(cluster_database_ok(node->cluster));
    assert_int_equal(owned(node), SHARDS - 1);
    database_run(somebody, "COMMIT");
    await(f, owns_all, node);
    PQfinish(somebody);
}

static void a_beat_does_not_wait_for_appends(void **state)
{
    struct fixture *f = *state;
    struct node *node = &f->nodes[0];
    PGconn *append;

    NEEDS_DATABASE(f);
    node_start(f, 0, quick);
    await(f, owns_all, node);
    append = database_connect(f->url);
    database_run(append, "BEGIN; SELECT 1 FROM shard_lease FOR SHARE");
    cluster_bind_backend(node->cluster, PQbackendPID(append)); /* waits with patience, and in vain */
    await_beats(f, node, 10);
    assert_int_equal(owned(node), SHARDS);
    database_run(append, "COMMIT");
    PQfinish(append);
}

static bool all_bound(void *arg)
{
    struct beats *beats = arg;

    return database_number(beats->f->own, beats->sql) == SHARDS;
}

static void the_leases_name_the_session_that_writes(void **state)
{
    struct fixture *f = *state;
    struct beats beats = {.f = f};
    PGconn *before, *after;

    NEEDS_DATABASE(f);
    before = database_connect(f->url);
    after = database_connect(f->url);
    node_start_as(f, 0, quick, "n0");
    cluster_bind_backend(f->nodes[0].cluster, PQbackendPID(before));
    cluster_ready(f->nodes[0].cluster, true);
    await(f, owns_all, &f->nodes[0]);
    snprintf(beats.sql, sizeof beats.sql, "SELECT count(backend_start) FROM shard_lease WHERE backend_pid = %d",
        PQbackendPID(before));
    assert_int_equal(database_number(f->own, beats.sql), SHARDS);
    database_run(before, "BEGIN; SELECT 1 FROM shard_lease WHERE shard = 's03' FOR SHARE");
    cluster_bind_backend(f->nodes[0].cluster, PQbackendPID(after));
    snprintf(beats.sql, sizeof beats.sql, "SELECT count(backend_start) + 1 FROM shard_lease WHERE backend_pid = %d",
        PQbackendPID(after));
    assert_true(loop_until(&f->loop, all_bound, &beats, WAIT_MS)); /* all but the locked one */
    database_run(before, "COMMIT");
    snprintf(beats.sql, sizeof beats.sql, "SELECT count(backend_start) FROM shard_lease WHERE backend_pid = %d",
        PQbackendPID(after));
    assert_true(loop_until(&f->loop, all_bound, &beats, WAIT_MS));
    PQfinish(before);
    PQfinish(after);
}

/* --- giving back --- */

static void what_a_leaving_instance_held_is_taken_soon(void **state)
{
    struct fixture *f = *state;
    struct node *first = &f->nodes[0], *second = &f->nodes[1];
    uint64_t began;

    NEEDS_DATABASE(f);
    node_start(f, 0, (struct times){1000, 60000});
    await(f, owns_all, first);
    node_start(f, 1, (struct times){1000, 60000});
    await(f, knows_two, second);
    began = clock_mono_ms();
    node_end(f, first);
    assert_true(clock_mono_ms() - began < 900); /* not by the deadline */
    assert_int_equal(first->left, 1);
    assert_int_equal(first->lost, 0);
    assert_int_equal(database_number(f->own, "SELECT count(*) FROM shard_lease WHERE holder IS NOT NULL"), 0);
    await(f, owns_all, second);
    assert_true(clock_mono_ms() - began < 10000); /* by silence it would be a minute */
    assert_int_equal(database_number(f->own, "SELECT count(*) FROM instance"), 1);
}

static void a_draining_instance_is_followed_shard_by_shard(void **state)
{
    struct fixture *f = *state;
    struct node *first = &f->nodes[0], *second = &f->nodes[1];
    uint64_t began;

    NEEDS_DATABASE(f);
    node_start(f, 0, (struct times){1000, 60000});
    await(f, owns_all, first);
    node_start(f, 1, (struct times){1000, 60000});
    await(f, knows_two, second);
    cluster_set_draining(first->cluster, true);
    await_beats(f, second, 2); /* has seen it */
    began = clock_mono_ms();
    for (int i = 0; i < SHARDS; i++)
        cluster_release(first->cluster, str_of(cluster_shards(first->cluster)[i].name));
    assert_int_equal(owned(first), 0);
    await(f, owns_all, second);
    print_message("taken over %d ms after the release\n", (int)(clock_mono_ms() - began));
    assert_true(clock_mono_ms() - began < 1000);
    assert_int_equal(first->lost, 0);
    await_beats(f, first, 3);
    assert_int_equal(owned(first), 0);
}

static void a_lease_may_be_given_back_while_it_is_told(void **state)
{
    struct fixture *f = *state;
    struct node *node = &f->nodes[0];

    NEEDS_DATABASE(f);
    node->release_on_taken = true;
    node_start(f, 0, quick);
    await_beats(f, node, 5);
    node->release_on_taken = false;
    await(f, owns_all, node); /* free again, and still the only one */
    assert_int_equal(node->lost, 0);
}

static void leaving_ends_also_without_a_database(void **state)
{
    struct fixture *f = *state;
    struct node *node = &f->nodes[0];
    uint64_t began;

    NEEDS_DATABASE(f);
    node->relayed = true;
    node_start(f, 0, quick);
    await(f, owns_all, node);
    relay_freeze(&node->relay);
    began = clock_mono_ms();
    node_end(f, node);
    assert_int_equal(node->left, 1);
    assert_in_range(clock_mono_ms() - began, 900, 5000);
}

/* --- time --- */

static void the_time_is_the_database_s(void **state)
{
    struct fixture *f = *state;
    struct node *node = &f->nodes[0];
    uint64_t last = 0, began;
    int64_t off, most;

    NEEDS_DATABASE(f);
    began = clock_mono_ms();
    node_start(f, 0, quick);
    assert_int_equal(cluster_now_ms(node->cluster), 0);
    await(f, database_answers, node);
    off = (int64_t)cluster_now_ms(node->cluster) - (int64_t)clock_unix_ms(); /* the same machine */
    most = (int64_t)(clock_mono_ms() - began) + 1;
    assert_true(off >= -most && off <= most); /* as long as the answer took */
    for (int i = 0; i < 20; i++) {
        assert_true(cluster_now_ms(node->cluster) >= last);
        last = cluster_now_ms(node->cluster);
        await_beats(f, node, 1);
    }
}

/* A child lets us stand still and wakes us after `ms` of it. */
static void stand_still(int ms)
{
    pid_t parent = getpid(), child = fork();

    if (child == 0) {
        uint64_t until = 0;

        for (;;) {
            char path[64], text[200] = "";
            FILE *file;
            const char *state;

            snprintf(path, sizeof path, "/proc/%d/stat", (int)parent);
            file = fopen(path, "r");
            if (!file)
                _exit(1);
            if (!fgets(text, sizeof text, file))
                text[0] = '\0';
            fclose(file);
            state = strrchr(text, ')');
            if (state && state[2] == 'T' && !until)
                until = clock_boot_ms() + (uint64_t)ms;
            if (until && clock_boot_ms() >= until) {
                kill(parent, SIGCONT);
                _exit(0);
            }
        }
    }
    raise(SIGSTOP);
    assert_int_equal(waitpid(child, NULL, 0), child);
}

static bool is_sure(void *arg)
{
    return cluster_sure(((struct node *)arg)->cluster);
}

static void who_stood_still_is_unsure_until_it_has_read_again(void **state)
{
    struct fixture *f = *state;
    struct node *node = &f->nodes[0];

    NEEDS_DATABASE(f);
    node_start(f, 0, (struct times){100, 500});
    await(f, owns_all, node);
    assert_true(cluster_sure(node->cluster));
    stand_still(600);
    assert_false(cluster_sure(node->cluster));
    assert_int_equal(owned(node), SHARDS);
    await(f, is_sure, node);
    assert_int_equal(owned(node), SHARDS); /* nobody took them meanwhile */
    assert_int_equal(node->lost, 0);
}

static void who_stood_still_and_was_overtaken_has_lost(void **state)
{
    struct fixture *f = *state;
    struct node *node = &f->nodes[0];

    NEEDS_DATABASE(f);
    node_start(f, 0, (struct times){100, 500});
    await(f, owns_all, node);
    stand_still(600);
    database_run(f->own, "SELECT cluster_beat('Z', 'z', '', 1000, 60000, true, false, 0, 0);"
                         "UPDATE shard_lease SET holder = 'Z', epoch = epoch + 1");
    assert_false(cluster_sure(node->cluster));
    await(f, is_sure, node);
    assert_int_equal(node->lost, SHARDS);
    assert_int_equal(owned(node), 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)
    const struct CMUnitTest tests[] = {
        TEST(the_first_who_can_takes_all),
        TEST(a_second_one_gets_its_share_one_shard_after_another),
        TEST(three_that_start_together_have_a_share_each),
        TEST(shares_follow_the_weights),
        TEST(who_should_have_a_shard_looks_often_before_it_is_moved),
        TEST(a_move_that_does_not_happen_costs_little),
        TEST(who_cannot_consume_gives_back_and_gets_its_share_again),
        TEST(of_one_that_cannot_consume_the_shards_are_in_doubt),
        TEST(what_is_not_taken_by_who_should_is_taken_by_others),
        TEST(a_program_from_before_is_given_nothing_and_asked_for_nothing),
        TEST(who_cannot_consume_takes_nothing),
        TEST(a_race_for_every_shard_has_one_winner_each),
        TEST(two_takes_of_the_same_row_have_one_winner),
        TEST(a_holder_that_beats_again_is_not_robbed),
        TEST(a_silent_owner_is_dead_after_the_ttl),
        TEST(a_killed_owner_without_consumers_is_followed_at_once),
        TEST(a_restarted_instance_follows_itself_at_once),
        TEST(an_owner_in_doubt_that_is_consuming_keeps_its_shards),
        TEST(answers_to_looks_may_come_later),
        TEST(nobody_dies_of_an_absent_database),
        TEST(an_owner_that_was_overtaken_hears_of_it),
        TEST(who_finds_its_row_gone_gives_up_everything_first),
        TEST(a_lease_that_names_nobody_known_is_free),
        TEST(the_dead_are_removed_only_when_they_own_nothing),
        TEST(a_half_sent_batch_of_a_dead_owner_is_ended),
        TEST(a_half_sent_batch_of_a_new_session_is_ended),
        TEST(a_session_that_only_has_the_number_is_left_alone),
        TEST(a_locked_row_holds_up_only_its_own_shard),
        TEST(a_beat_does_not_wait_for_appends),
        TEST(the_leases_name_the_session_that_writes),
        TEST(what_a_leaving_instance_held_is_taken_soon),
        TEST(a_draining_instance_is_followed_shard_by_shard),
        TEST(a_lease_may_be_given_back_while_it_is_told),
        TEST(leaving_ends_also_without_a_database),
        TEST(the_time_is_the_database_s),
        TEST(who_stood_still_is_unsure_until_it_has_read_again),
        TEST(who_stood_still_and_was_overtaken_has_lost),
    };

    if (getenv("ONLY"))
        cmocka_set_test_filter(getenv("ONLY"));
    log_set_level(getenv("ROOMD_TEST_LOG") ? LOG_INFO : LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
