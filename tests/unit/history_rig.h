/*
 * An owner on a loop: history with a real PostgreSQL and a real RabbitMQ, and a stand-in for the cluster, so that
 * leases move when the test says so. Each run has shards of its own (random names), hence queues of its own. Tests skip
 * without ROOMD_TEST_DATABASE_URL and ROOMD_TEST_AMQP_URL.
 */
#ifndef TESTS_UNIT_HISTORY_RIG_H
#define TESTS_UNIT_HISTORY_RIG_H

#include "database.h"

#include <errno.h>
#include <inttypes.h>

#include "history/history.h"
#include "room/base/log.h"

enum { RIG_SHARDS = 4, RIG_ROOMS_MAX = 64 };

/* --- the stand-in --- */

struct cluster {
    struct rig *rig;
    char self[27];
    struct cluster_shard shards[RIG_SHARDS];
    bool able, database_lost;
    size_t released;
    int backend_pid;                          /* of the session that commits */
    const struct cluster_instance *instances; /* none, unless the test says so */
    size_t instance_count;
};

struct rig {
    uv_loop_t *loop;
    struct config config;
    char *direct, *url; /* url: through the relay */
    PGconn *sql;        /* the test's own, straight */
    struct relay relay;
    char *consume_url; /* through its own relay */
    struct relay consume_relay;
    struct pg *pg;
    struct amqp_link *publish, *consume;
    struct history *history;
    struct cluster cluster;

    /* news */
    uint64_t early[RIG_ROOMS_MAX], shown[RIG_ROOMS_MAX], durable[RIG_ROOMS_MAX]; /* highest seq */
    uint64_t early_total, voids_over_early, transient_total, rejected_total;
    bool out_of_order;
    char rejected[400];
    size_t lost; /* shards */
    /* Of tests that want other news than these, and of those that cut the publishing link; NULL: as usual. */
    void (*listen)(struct history_events *events);
    const char *publish_url;
};

const char *cluster_self(const struct cluster *cluster)
{
    return cluster->self;
}

void cluster_ready(struct cluster *cluster, bool able)
{
    cluster->able = able;
}

void cluster_probed(struct cluster *cluster, struct str shard, enum err err, uint32_t consumers)
{
    (void)cluster;
    (void)shard;
    (void)err;
    (void)consumers;
}

void cluster_release(struct cluster *cluster, struct str shard)
{
    (void)shard;
    cluster->released++;
}

void cluster_bind_backend(struct cluster *cluster, int backend_pid)
{
    cluster->backend_pid = backend_pid;
}

size_t cluster_instances(const struct cluster *cluster, const struct cluster_instance **instances)
{
    *instances = cluster->instances;
    return cluster->instance_count;
}

bool cluster_database_ok(const struct cluster *cluster)
{
    return !cluster->database_lost;
}

size_t cluster_shard_count(const struct cluster *cluster)
{
    (void)cluster;
    return RIG_SHARDS;
}

const struct cluster_shard *cluster_shards(const struct cluster *cluster)
{
    return cluster->shards;
}

const struct cluster_shard *cluster_find_shard(const struct cluster *cluster, struct str name)
{
    for (size_t i = 0; i < RIG_SHARDS; i++)
        if (str_is(name, cluster->shards[i].name))
            return &cluster->shards[i];
    return NULL;
}

bool cluster_sure(struct cluster *cluster)
{
    (void)cluster;
    return true;
}

uint64_t cluster_now_ms(const struct cluster *cluster)
{
    (void)cluster;
    return clock_unix_ms();
}

/* --- news --- */

/* The last digits of a room's id are its number. */
static size_t rig_room_number(struct str room_id)
{
    const char *digits = room_id.p + room_id.n - 3;

    return (size_t)(digits[0] - '0') * 100 + (size_t)(digits[1] - '0') * 10 + (size_t)(digits[2] - '0');
}

static void rig_on_shown(void *arg, struct str room_id, struct entry *entry, bool durable)
{
    struct rig *rig = arg;
    size_t room = rig_room_number(room_id);

    rig->early_total += !durable;
    if (durable && entry->type == ENTRY_VOID && entry->seq <= rig->shown[room]) {
        rig->voids_over_early++;
        return;
    }
    rig->out_of_order |= entry->seq != rig->shown[room] + 1;
    rig->shown[room] = entry->seq;
}

static void rig_on_durable(void *arg, struct str room_id, uint64_t seq)
{
    struct rig *rig = arg;
    size_t room = rig_room_number(room_id);

    rig->out_of_order |= seq <= rig->durable[room] || seq > rig->shown[room];
    rig->durable[room] = seq;
}

static void rig_on_ephemeral(void *arg, struct str room_id, struct str account, struct str json)
{
    struct rig *rig = arg;

    if (room_id.n) {
        rig->transient_total++;
        return;
    }
    assert_true(account.n > 0);
    rig->rejected_total++;
    snprintf(rig->rejected, sizeof rig->rejected, "%.*s", STR_ARG(json));
}

static void rig_on_epoch(void *arg, struct str shard, uint64_t epoch, bool ours)
{
    struct rig *rig = arg;

    (void)shard;
    (void)epoch;
    if (!ours)
        rig->lost++;
}

static void rig_on_publish_link(void *arg, bool up)
{
    struct rig *rig = arg;

    if (rig->history)
        history_publish_link(rig->history, up);
}

static void rig_on_consume_link(void *arg, bool up)
{
    struct rig *rig = arg;

    if (rig->history)
        history_consume_link(rig->history, up);
}

/* --- its life --- */

static void rig_start(struct rig *rig)
{
    struct pg_settings pg = {.url = rig->url, .read_connections = 2, .timeout_ms = 5000, .queue_max = 10000};
    struct amqp_settings link = {
        .name = "publish",
        .urls = getenv("ROOMD_TEST_AMQP_URL"),
        .ca_file = "",
        .heartbeat_ms = 10000,
        .publish_timeout_ms = 10000,
        .max_pending = 100000,
        .max_pending_bytes = 256 << 20,
        .changed = rig_on_publish_link,
        .arg = rig,
    };
    struct history_events events = {.arg = rig,
        .shown = rig_on_shown,
        .durable = rig_on_durable,
        .ephemeral = rig_on_ephemeral,
        .epoch = rig_on_epoch};

    if (rig->listen)
        rig->listen(&events);
    if (rig->publish_url)
        link.urls = rig->publish_url;
    assert_int_equal(pg_open(&rig->pg, rig->loop, &pg), ERR_OK);
    assert_int_equal(history_start(&rig->history, rig->loop, &rig->config, rig->pg, &events), ERR_OK);
    assert_int_equal(amqp_link_open(&rig->publish, rig->loop, &link), ERR_OK);
    link.name = "consume";
    link.urls = rig->consume_url;
    link.heartbeat_ms = 3000;
    link.changed = rig_on_consume_link;
    assert_int_equal(amqp_link_open(&rig->consume, rig->loop, &link), ERR_OK);
    history_connect(rig->history, &rig->cluster, rig->publish, rig->consume);
}

static bool rig_is_ready(void *arg)
{
    struct rig *rig = arg;

    return rig->cluster.able && history_ready(rig->history) && pg_up(rig->pg, PG_WRITE);
}

static bool rig_owns_all(void *arg)
{
    return history_shards_ours(((struct rig *)arg)->history) == RIG_SHARDS;
}

static void rig_wait(struct rig *rig, bool (*holds)(void *arg))
{
    assert_true(loop_until(rig->loop, holds, rig, WAIT_MS));
}

/* A new owner goes on from what is committed: what was shown early under the old one is taken back. Not before the
 * leases are ours: a commit of the old one may still be on its way. */
static void rig_begin_from_heads(struct rig *rig)
{
    for (size_t i = 0; i < RIG_ROOMS_MAX; i++) {
        char sql[200];

        snprintf(sql, sizeof sql,
            "SELECT coalesce(max(last_seq), 0) FROM room_head JOIN room USING (room_no) WHERE room_id LIKE '%%%03zu'",
            i);
        rig->shown[i] = rig->durable[i] = (uint64_t)database_number(rig->sql, sql);
    }
}

/* A lease becomes ours under a higher epoch; history is not told. */
static void rig_take_row(struct rig *rig, size_t i)
{
    struct cluster_shard *shard = &rig->cluster.shards[i];
    char sql[300];

    snprintf(sql, sizeof sql,
        "UPDATE shard_lease SET epoch = epoch + 1, holder = '%s' WHERE shard = '%s' RETURNING epoch", rig->cluster.self,
        shard->name);
    shard->epoch = (uint64_t)database_number(rig->sql, sql);
    snprintf(shard->owner, sizeof shard->owner, "%s", rig->cluster.self);
    shard->ours = true;
}

/* All leases become ours under a higher epoch. */
static void rig_take_all(struct rig *rig)
{
    rig_wait(rig, rig_is_ready);
    for (size_t i = 0; i < RIG_SHARDS; i++)
        rig_take_row(rig, i);
    rig_begin_from_heads(rig);
    for (size_t i = 0; i < RIG_SHARDS; i++) {
        const struct cluster_shard *shard = &rig->cluster.shards[i];

        history_lease_taken(rig->history, str_of(shard->name), shard->epoch);
    }
    rig_wait(rig, rig_owns_all);
}

/* As kill -9 would: nothing is committed, acked or released in an orderly way. */
static void rig_crash(struct rig *rig)
{
    struct history *history = rig->history;

    rig->history = NULL;
    amqp_link_close(rig->publish);
    amqp_link_close(rig->consume);
    history_stop(history);
    pg_close(rig->pg);
    uv_run(rig->loop, UV_RUN_NOWAIT);
}

/* Programs that run beside each other need different ones. */
#ifndef RIG_SCHEMA
#define RIG_SCHEMA "roomd_history"
#endif
static const char rig_schema[] = RIG_SCHEMA;

/* amqp://user:password@host:port/vhost, with 127.0.0.1 and the relay's port instead. */
static char *rig_relay_broker(struct relay *relay, uv_loop_t *loop, const char *url)
{
    const char *at = strrchr(url, '@'), *slash = at ? strchr(at, '/') : NULL;
    char host[64] = "", *colon;
    struct buf here = {0};

    if (!at || !slash || (size_t)(slash - at) >= sizeof host)
        fail_msg("ROOMD_TEST_AMQP_URL must look like amqp://user:password@host:port/vhost");
    memcpy(host, at + 1, (size_t)(slash - at) - 1);
    colon = strchr(host, ':');
    if (colon)
        *colon = '\0';
    *relay = (struct relay){.loop = loop};
    uv_ip4_addr(str_is(str_of(host), "localhost") ? "127.0.0.1" : host, colon ? atoi(colon + 1) : 5672,
        (struct sockaddr_in *)&relay->server);
    relay_listen(relay);
    buf_printf(&here, "%.*s@127.0.0.1:%d%s", (int)(at - url), url, relay->port, slash);
    return here.p;
}

/* NULL: nothing to test with. */
static struct rig *rig_begin(void)
{
    static char *environment[] = {NULL};
    struct rig *rig;
    struct buf why = {0};
    char sql[300];
    unsigned random;

    if (!getenv("ROOMD_TEST_DATABASE_URL") || !getenv("ROOMD_TEST_AMQP_URL"))
        return NULL;
    rig = xcalloc(1, sizeof *rig);
    rig->direct = database_begin(rig_schema);
    rig->sql = database_connect(rig->direct);
    database_migrate(rig->sql);
    assert_true(config_load(&rig->config, NULL, environment, &why));
    rig->config.op_timeout_ms = 8000;
    rig->loop = xcalloc(1, sizeof *rig->loop);
    uv_loop_init(rig->loop);
    rig->url = relay_begin(&rig->relay, rig->loop, rig->direct);
    rig->consume_url = rig_relay_broker(&rig->consume_relay, rig->loop, getenv("ROOMD_TEST_AMQP_URL"));
    rig->cluster.rig = rig;
    ulid_write(rig->cluster.self, ulid_new(clock_unix_ms()));
    random_bytes(&random, sizeof random);
    for (unsigned i = 0; i < RIG_SHARDS; i++) {
        snprintf(rig->cluster.shards[i].name, sizeof rig->cluster.shards[i].name, "s%05u%u", random % 100000, i);
        snprintf(sql, sizeof sql, "INSERT INTO shard_lease (shard, epoch, holder) VALUES ('%s', 0, '')",
            rig->cluster.shards[i].name);
        database_run(rig->sql, sql);
    }
    return rig;
}

static void rig_close_left(uv_handle_t *handle, void *arg)
{
    (void)arg;
    if (!uv_is_closing(handle))
        fail_msg("a handle of type %s is left open", uv_handle_type_name(handle->type));
}

static void rig_end(struct rig *rig)
{
    if (!rig)
        return;
    if (rig->history) /* the test failed */
        rig_crash(rig);
    relay_cut(&rig->relay);
    relay_cut(&rig->consume_relay);
    while (uv_run(rig->loop, UV_RUN_DEFAULT))
        ;
    uv_walk(rig->loop, rig_close_left, NULL);
    assert_int_equal(uv_loop_close(rig->loop), 0);
    free(rig->loop);
    PQfinish(rig->sql);
    database_end(rig->direct, rig_schema);
    free(rig->url);
    free(rig->consume_url);
    config_clear(&rig->config);
    free(rig);
}

/* --- rooms and messages --- */

static void rig_room_id(const struct rig *rig, size_t number, char room_id[ROOM_ID_MAX_BYTES + 1])
{
    snprintf(room_id, ROOM_ID_MAX_BYTES + 1, "%s.%023d%03zu", rig->cluster.shards[number % RIG_SHARDS].name, 0,
        number % 1000);
}

/* Rooms 0 … count-1 with the members ada and bob; bob is an admin. */
static void rig_make_rooms(struct rig *rig, size_t count)
{
    char sql[600], room_id[ROOM_ID_MAX_BYTES + 1];

    for (size_t i = 0; i < count; i++) {
        rig_room_id(rig, i, room_id);
        snprintf(sql, sizeof sql,
            "WITH r AS (INSERT INTO room (room_id, shard, kind, members, created_at) VALUES ('%s', '%s', 'group', 2, "
            "1) RETURNING room_no),"
            " h AS (INSERT INTO room_head (room_no) SELECT room_no FROM r)"
            " INSERT INTO room_member (room_no, account, role, joined_at, join_seq)"
            " SELECT room_no, a, l, 1, 0 FROM r, (VALUES ('ada', 1), ('bob', 2)) v(a, l)",
            room_id, rig->cluster.shards[i % RIG_SHARDS].name);
        database_run(rig->sql, sql);
    }
}

struct rig_publishing {
    struct amqp_publish publish;
    size_t *waiting, *failed;
};
static size_t rig_unconfirmed, rig_publish_failures;

static void rig_on_published(struct amqp_publish *publish, enum err err)
{
    struct rig_publishing *publishing = container_of(publish, struct rig_publishing, publish);

    rig_unconfirmed--;
    rig_publish_failures += err != ERR_OK;
    free(publishing);
}

static void rig_publish_body(struct rig *rig, const char *shard, const char *body)
{
    struct rig_publishing *publishing = xcalloc(1, sizeof *publishing);

    publishing->publish.done = rig_on_published;
    rig_unconfirmed++;
    amqp_publish(rig->publish, &publishing->publish,
        &(struct amqp_message){
            .exchange = STR("roomd.room"),
            .routing_key = str_of(shard),
            .content_type = STR("application/json"),
            .body = str_of(body),
        });
}

static void rig_say(struct rig *rig, size_t room, const char *sender, const char *client_msg_id, const char *content)
{
    char body[1000], room_id[ROOM_ID_MAX_BYTES + 1];

    rig_room_id(rig, room, room_id);
    snprintf(body, sizeof body,
        "{\"room_id\":\"%s\",\"sender\":\"%s\",\"client_msg_id\":\"%s\",\"kind\":\"text\",\"content\":\"%s\"}", room_id,
        sender, client_msg_id, content);
    rig_publish_body(rig, rig->cluster.shards[room % RIG_SHARDS].name, body);
}

/* Messages from … to-1: message i goes to room i modulo `rooms`, its content is i. */
static void rig_say_many(struct rig *rig, size_t rooms, size_t from, size_t to)
{
    for (size_t i = from; i < to; i++) {
        char id[32], content[32];

        snprintf(id, sizeof id, "m%zu", i);
        snprintf(content, sizeof content, "%zu", i);
        rig_say(rig, i % rooms, "ada", id, content);
    }
}

static bool rig_all_confirmed(void *arg)
{
    (void)arg;
    return rig_unconfirmed == 0;
}

static uint64_t rig_sum(const uint64_t *seqs)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < RIG_ROOMS_MAX; i++)
        sum += seqs[i];
    return sum;
}

/* --- what must hold in the end --- */

static long rig_number(struct rig *rig, const char *sql)
{
    return database_number(rig->sql, sql);
}

static void rig_check_log(struct rig *rig)
{
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM (SELECT 1 FROM log_entry GROUP BY room_no HAVING min(seq) "
                                     "<> 1 OR max(seq) <> count(*)) x"),
        0);
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM room_head h WHERE last_seq <> (SELECT count(*) FROM "
                                     "log_entry e WHERE e.room_no = h.room_no)"),
        0);
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM room_head h WHERE counted <> (SELECT count(*) FROM "
                                     "log_entry e WHERE e.room_no = h.room_no AND type = 1)"),
        0);
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM (SELECT 1 FROM log_entry WHERE type = 1 GROUP BY room_no, "
                                     "client_msg_id HAVING count(*) > 1) x"),
        0);
    assert_int_equal(
        rig_number(rig,
            "SELECT count(*) FROM (SELECT epoch, at, lag(epoch) OVER w AS e, lag(at) OVER w AS a FROM log_entry"
            " WINDOW w AS (PARTITION BY room_no ORDER BY seq)) x WHERE epoch < e OR at < a"),
        0);
    assert_false(rig->out_of_order);
}

/* Contents are numbers that rise in each room. */
static void rig_check_order(struct rig *rig)
{
    assert_int_equal(
        rig_number(rig,
            "SELECT count(*) FROM (SELECT trim('\"' from content)::int AS c, lag(trim('\"' from content)::int)"
            " OVER (PARTITION BY room_no ORDER BY seq) AS before FROM log_entry WHERE type = 1) x WHERE c <= before"),
        0);
}

struct rig_queue_look {
    size_t open;
    uint32_t messages;
    enum err err;
};

static void rig_on_queue(void *arg, enum err err, uint32_t messages, uint32_t consumers)
{
    struct rig_queue_look *look = arg;

    (void)consumers;
    look->open--;
    look->messages += messages;
    if (err)
        look->err = err;
}

static bool rig_queues_looked(void *arg)
{
    return ((struct rig_queue_look *)arg)->open == 0;
}

/* Messages that are ready in our shards' queues: after a crash all that were never acked. */
static uint32_t rig_queued(struct rig *rig)
{
    struct rig_queue_look look = {.open = RIG_SHARDS};

    for (size_t i = 0; i < RIG_SHARDS; i++) {
        char queue[32];

        snprintf(queue, sizeof queue, "roomd.shard.%s", rig->cluster.shards[i].name);
        amqp_inspect_queue(rig->publish, queue, rig_on_queue, &look);
    }
    assert_true(loop_until(rig->loop, rig_queues_looked, &look, WAIT_MS));
    assert_int_equal(look.err, ERR_OK);
    return look.messages;
}

/* --- what tests begin with, and wait for --- */

static int rig_setup(void **state)
{
    rig_unconfirmed = rig_publish_failures = 0;
    *state = rig_begin();
    return 0;
}

static int rig_teardown(void **state)
{
    rig_end(*state);
    return 0;
}

#define RIG_OR_SKIP(rig)        \
    struct rig *(rig) = *state; \
    if (!(rig))                 \
        skip();

static uint64_t wanted;

static bool enough_durable(void *arg)
{
    return rig_sum(((struct rig *)arg)->durable) >= wanted;
}

static bool enough_shown(void *arg)
{
    return rig_sum(((struct rig *)arg)->shown) >= wanted;
}

static void wait_durable(struct rig *rig, uint64_t count)
{
    wanted = count;
    assert_true(loop_until(rig->loop, enough_durable, rig, 3 * WAIT_MS));
}

static void start_with_rooms(struct rig *rig, size_t rooms)
{
    rig_make_rooms(rig, rooms);
    rig_start(rig);
    rig_take_all(rig);
}

/* --- room changes, as calls ask for them --- */

/* In room 0. Its texts are its own; it must stay where it is until it is answered. */
struct rig_op {
    struct history_op op;
    bool answered;
    enum err err;
    char room_id[ROOM_ID_MAX_BYTES + 1], args[200], result[300];
};

static void rig_on_op(struct history_op *history_op, enum err err)
{
    struct rig_op *op = container_of(history_op, struct rig_op, op);

    assert_false(op->answered);
    op->answered = true;
    op->err = err;
    snprintf(op->result, sizeof op->result, "%.*s", STR_ARG(history_op->result));
}

static bool rig_op_answered(void *arg)
{
    return ((struct rig_op *)arg)->answered;
}

/* by, request_id: NULL for none; both outlive the op. */
static void rig_submit_op(
    struct rig *rig, struct rig_op *op, enum op_kind kind, const char *by, const char *args, const char *request_id)
{
    *op = (struct rig_op){.op = {.kind = kind, .by = str_of(by), .request_id = str_of(request_id), .done = rig_on_op}};
    rig_room_id(rig, 0, op->room_id);
    assert_true(strlen(args) < sizeof op->args);
    snprintf(op->args, sizeof op->args, "%s", args);
    op->op.room_id = str_of(op->room_id);
    op->op.args = str_of(op->args);
    history_submit_op(rig->history, &op->op);
}

static void rig_await_op(struct rig *rig, struct rig_op *op)
{
    assert_true(loop_until(rig->loop, rig_op_answered, op, WAIT_MS));
}

#endif
