/*
 * The bare limit of the road on this machine: publish (persistent, mandatory, confirmed) -> direct exchange -> quorum
 * queues -> consume -> one append per batch (fence, compare-and-swap of the heads, entries with their two unique
 * indexes: as much SQL as roomd's own append does for plain messages) -> COMMIT -> one ack for all of it. No rooms, no
 * membership, no JSON, no readers. What roomd reaches is told as a share of this.
 *
 *   --amqp-url URL --database URL   drops and makes schema `bare` and queues `bare.…`
 *   --mode pipe|consume             consume: without the database, acknowledged as it comes
 *   --rate N                        messages/s, open loop; 0 (default): as fast as the window of confirms lets
 *   --seconds 5 --warmup 1 --window 500 --queues 8 --rooms 1000 --batch 500 --in-flight 2 --prefetch 500
 */
#include "load_amqp.h"

#include "room/base/pg.h"

#include <poll.h>

static const char schema_sql[] =
    "SET client_min_messages = error; DROP SCHEMA IF EXISTS bare CASCADE; CREATE SCHEMA bare; SET search_path = bare;"
    "CREATE TABLE shard_lease (shard text COLLATE \"C\" PRIMARY KEY, epoch bigint NOT NULL, holder text COLLATE \"C\")"
    " WITH (fillfactor = 50);"
    "CREATE TABLE room_head (room_no bigint PRIMARY KEY, last_seq bigint NOT NULL DEFAULT 0, last_epoch bigint NOT "
    "NULL DEFAULT 0,"
    " last_at bigint NOT NULL DEFAULT 0, counted bigint NOT NULL DEFAULT 0) WITH (fillfactor = 50);"
    "CREATE TABLE log_entry (room_no bigint NOT NULL, seq bigint NOT NULL, epoch bigint NOT NULL, at bigint NOT NULL,"
    " counted bigint NOT NULL, hash bigint NOT NULL, message_id uuid, type smallint NOT NULL, state smallint NOT NULL "
    "DEFAULT 0,"
    " sender text COLLATE \"C\" NOT NULL, client_msg_id text COLLATE \"C\" NOT NULL, kind text COLLATE \"C\" NOT NULL,"
    " content text NOT NULL, meta text, PRIMARY KEY (room_no, seq), UNIQUE (room_no, message_id));"
    "CREATE FUNCTION append(p_me text, p_shard text[], p_epoch bigint[], h_room bigint[], h_old bigint[], h_new "
    "bigint[],"
    " h_epoch bigint[], h_at bigint[], h_counted bigint[], e_room bigint[], e_seq bigint[], e_epoch bigint[], e_at "
    "bigint[],"
    " e_counted bigint[], e_hash bigint[], e_id uuid[], e_type smallint[], e_sender text[], e_cmid text[], e_kind "
    "text[],"
    " e_content text[], e_meta text[]) RETURNS void LANGUAGE plpgsql AS $$\n"
    "DECLARE n int;\n"
    "BEGIN\n"
    " PERFORM 1 FROM bare.shard_lease l, unnest(p_shard, p_epoch) x(shard, epoch)\n"
    "  WHERE l.shard = x.shard AND l.epoch = x.epoch AND l.holder = p_me FOR SHARE OF l;\n"
    " GET DIAGNOSTICS n = ROW_COUNT;\n"
    " IF n <> cardinality(p_shard) THEN RAISE EXCEPTION 'fenced'; END IF;\n"
    " UPDATE bare.room_head r SET last_seq = x.new_seq, last_epoch = x.epoch, last_at = x.at, counted = x.counted\n"
    "  FROM unnest(h_room, h_old, h_new, h_epoch, h_at, h_counted) x(room_no, old_seq, new_seq, epoch, at, counted)\n"
    "  WHERE r.room_no = x.room_no AND r.last_seq = x.old_seq;\n"
    " GET DIAGNOSTICS n = ROW_COUNT;\n"
    " IF n <> cardinality(h_room) THEN RAISE EXCEPTION 'a head moved'; END IF;\n"
    " INSERT INTO bare.log_entry (room_no, seq, epoch, at, counted, hash, message_id, type, sender, client_msg_id, "
    "kind, content, meta)\n"
    "  SELECT * FROM unnest(e_room, e_seq, e_epoch, e_at, e_counted, e_hash, e_id, e_type, e_sender, e_cmid, e_kind, "
    "e_content, e_meta);\n"
    "END $$;";
static const char append_sql[] =
    "SELECT bare.append($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18,$19,$20,$21,$22)";
enum { APPEND_PARAMS = 22, BATCH_MAX = 10000, IN_FLIGHT_MAX = 8, QUEUES_MAX = 99 };

struct row {
    uint64_t tag;
    int64_t meant_at;
    uint32_t room;
    char text[TEXT_BYTES];
};

struct room {
    int64_t seq, old_seq; /* old_seq: at the begin of the batch it is part of */
    uint64_t batch;
};

struct batch {
    int count;
    uint64_t last_tag;
    int64_t *meant_at;
};

struct limit {
    struct publisher publisher;
    struct consumer consumer;
    PGconn *pg;
    const char *url, *database;
    bool with_database;
    int queues, rooms, batch_max, in_flight_max, prefetch;
    struct room *room;
    struct row *rows; /* delivered, not yet in a batch: a ring */
    uint32_t row_first, row_count, row_max;
    struct batch flights[IN_FLIGHT_MAX];
    int flight_first, flight_count;
    uint64_t batches, delivered, settled, measured;
    uint64_t random;
    int64_t measure_from, measure_to;
    struct spread latency;
};

static void declare_queues(struct limit *limit);
static void open_database(struct limit *limit);
static void open_consumer(struct limit *limit);
static void run(struct limit *limit, double rate, double warmup_s, double seconds);
static void report(const struct limit *limit, double seconds, double cpu_s, double total_s);
static void delete_queues(struct limit *limit);

int main(int argc, char **argv)
{
    static struct limit limit;
    double seconds = option_number(argc, argv, "seconds", 5), warmup_s = option_number(argc, argv, "warmup", 1), cpu_s;
    int64_t begin;

    limit.url = option(argc, argv, "amqp-url", "amqp://guest:guest@127.0.0.1:5672/%2f");
    limit.database = option(argc, argv, "database", "");
    limit.with_database = strcmp(option(argc, argv, "mode", "pipe"), "consume") != 0;
    limit.queues = (int)option_number(argc, argv, "queues", 8);
    limit.rooms = (int)option_number(argc, argv, "rooms", 1000);
    limit.batch_max = (int)option_number(argc, argv, "batch", 500);
    limit.in_flight_max = (int)option_number(argc, argv, "in-flight", 2);
    limit.prefetch = (int)option_number(argc, argv, "prefetch", 500);
    limit.random = (uint64_t)now_ns();
    if (limit.queues < 1 || limit.queues > QUEUES_MAX || limit.rooms < 1 || limit.batch_max < 1 ||
        limit.batch_max > BATCH_MAX || limit.in_flight_max < 1 || limit.in_flight_max > IN_FLIGHT_MAX ||
        limit.prefetch < 1)
        give_up("options", "out of range");
    declare_queues(&limit);
    open_database(&limit);
    open_consumer(&limit);
    publisher_open(&limit.publisher, limit.url, "bare", (uint64_t)option_number(argc, argv, "window", 500));
    begin = now_ns();
    cpu_s = own_cpu_s();
    run(&limit, option_number(argc, argv, "rate", 0), warmup_s, seconds);
    report(&limit, seconds, own_cpu_s() - cpu_s, (double)(now_ns() - begin) / NS_PER_S);
    delete_queues(&limit);
    return 0;
}

static void queue_name(char name[32], int queue)
{
    snprintf(name, 32, "bare.s%02d", queue);
}

static void declare_queues(struct limit *limit)
{
    struct broker broker;
    amqp_table_entry_t type = {.key = amqp_cstring_bytes("x-queue-type"),
        .value = {.kind = AMQP_FIELD_KIND_UTF8, .value.bytes = amqp_cstring_bytes("quorum")}};
    amqp_bytes_t exchange = amqp_cstring_bytes("bare");

    broker_open(&broker, limit->url);
    amqp_exchange_declare(broker.state, 1, exchange, amqp_cstring_bytes("direct"), 0, 1, 0, 0, amqp_empty_table);
    broker_check(amqp_get_rpc_reply(broker.state), "exchange.declare");
    for (int i = 0; i < limit->queues; i++) {
        char name[32];
        amqp_bytes_t queue;

        queue_name(name, i);
        queue = amqp_cstring_bytes(name);
        amqp_queue_delete(broker.state, 1, queue, 0, 0);
        broker_check(amqp_get_rpc_reply(broker.state), "queue.delete");
        amqp_queue_declare(broker.state, 1, queue, 0, 1, 0, 0, (amqp_table_t){1, &type});
        broker_check(amqp_get_rpc_reply(broker.state), "queue.declare");
        amqp_queue_bind(broker.state, 1, queue, exchange, amqp_cstring_bytes(name + strlen("bare.")), amqp_empty_table);
        broker_check(amqp_get_rpc_reply(broker.state), "queue.bind");
    }
    broker_close(&broker);
}

static void delete_queues(struct limit *limit)
{
    struct broker broker;

    broker_close(&limit->consumer.broker);
    broker_close(&limit->publisher.broker);
    if (limit->pg)
        PQfinish(limit->pg);
    broker_open(&broker, limit->url);
    for (int i = 0; i < limit->queues; i++) {
        char name[32];

        queue_name(name, i);
        amqp_queue_delete(broker.state, 1, amqp_cstring_bytes(name), 0, 0);
        broker_check(amqp_get_rpc_reply(broker.state), "queue.delete");
    }
    amqp_exchange_delete(broker.state, 1, amqp_cstring_bytes("bare"), 0);
    broker_check(amqp_get_rpc_reply(broker.state), "exchange.delete");
    broker_close(&broker);
}

static void database_do(struct limit *limit, const char *sql)
{
    PGresult *result = PQexec(limit->pg, sql);

    if (PQresultStatus(result) != PGRES_COMMAND_OK && PQresultStatus(result) != PGRES_TUPLES_OK)
        give_up("database", PQerrorMessage(limit->pg));
    PQclear(result);
}

static void open_database(struct limit *limit)
{
    char sql[256];
    PGresult *prepared;

    limit->row_max = (uint32_t)(limit->queues * limit->prefetch);
    limit->rows = xcalloc(limit->row_max, sizeof *limit->rows);
    limit->room = xcalloc((size_t)limit->rooms, sizeof *limit->room);
    for (int i = 0; i < limit->in_flight_max; i++)
        limit->flights[i].meant_at = xcalloc((size_t)limit->batch_max, sizeof(int64_t));
    if (!limit->with_database)
        return;
    limit->pg = PQconnectdb(limit->database);
    if (PQstatus(limit->pg) != CONNECTION_OK)
        give_up("database", PQerrorMessage(limit->pg));
    database_do(limit, schema_sql);
    snprintf(sql, sizeof sql,
        "INSERT INTO shard_lease SELECT 's' || lpad(n::text, 2, '0'), 1, 'me' FROM generate_series(0, %d) n",
        limit->queues - 1);
    database_do(limit, sql);
    snprintf(sql, sizeof sql, "INSERT INTO room_head (room_no) SELECT generate_series(0, %d)", limit->rooms - 1);
    database_do(limit, sql);
    database_do(limit, "VACUUM ANALYZE room_head");
    prepared = PQprepare(limit->pg, "append", append_sql, APPEND_PARAMS, NULL);
    if (PQresultStatus(prepared) != PGRES_COMMAND_OK || !PQenterPipelineMode(limit->pg) ||
        PQsetnonblocking(limit->pg, 1))
        give_up("database", PQerrorMessage(limit->pg));
    PQclear(prepared);
}

/* ------------------------------------------------------------------------------------------------------- consuming */

static void on_delivered(void *owner, uint64_t tag, struct str body)
{
    struct limit *limit = owner;
    struct row *row;

    if (body.n != TEXT_BYTES || limit->row_count == limit->row_max)
        give_up("consumer", body.n != TEXT_BYTES ? "not our message" : "more deliveries than the prefetch allows");
    row = &limit->rows[(limit->row_first + limit->row_count++) % limit->row_max];
    row->tag = tag;
    row->meant_at = (int64_t)read_hex(body.p + 1, 16);
    row->room = (uint32_t)read_hex(body.p + 27, 8) % (uint32_t)limit->rooms;
    memcpy(row->text, body.p, TEXT_BYTES);
    limit->delivered++;
}

static void open_consumer(struct limit *limit)
{
    struct consumer *consumer = &limit->consumer;

    broker_open(&consumer->broker, limit->url);
    consumer->delivered = on_delivered;
    consumer->owner = limit;
    amqp_basic_qos(consumer->broker.state, 1, 0, (uint16_t)limit->prefetch, 0);
    broker_check(amqp_get_rpc_reply(consumer->broker.state), "basic.qos");
    for (int i = 0; i < limit->queues; i++) {
        char name[32];

        queue_name(name, i);
        consumer_start(consumer, name);
    }
    broker_flush(&consumer->broker);
}

static void settle(struct limit *limit, const int64_t *meant_at, int count, uint64_t last_tag)
{
    int64_t now = now_ns();

    for (int i = 0; i < count; i++) {
        if (now < limit->measure_from || now >= limit->measure_to)
            continue;
        spread_add(&limit->latency, now - meant_at[i]);
        limit->measured++;
    }
    limit->settled += (uint64_t)count;
    consumer_ack(&limit->consumer, last_tag);
}

/* ------------------------------------------------------------------------------------------------------ committing */

static uint64_t next_random(struct limit *limit)
{
    uint64_t x = limit->random += 0x9e3779b97f4a7c15; /* splitmix64 */

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

enum {
    SHARD,
    SHARD_EPOCH,
    H_ROOM,
    H_OLD,
    H_NEW,
    H_EPOCH,
    H_AT,
    H_COUNTED,
    E_ROOM,
    E_SEQ,
    E_EPOCH,
    E_AT,
    E_COUNTED,
    E_HASH,
    E_ID,
    E_TYPE,
    E_SENDER,
    E_CMID,
    E_KIND,
    E_CONTENT,
    E_META,
    ARRAYS
};

static void arrays_reset(struct pg_array arrays[ARRAYS])
{
    for (int i = 0; i < ARRAYS; i++)
        pg_array_reset(&arrays[i], i == SHARD || i >= E_SENDER ? PG_TEXT
                                   : i == E_ID                 ? PG_UUID
                                   : i == E_TYPE               ? PG_INT2
                                                               : PG_INT8);
}

static void add_entry(
    struct limit *limit, struct pg_array arrays[ARRAYS], const struct row *row, int64_t seq, int64_t at)
{
    struct id128 id;
    char client_msg_id[8];

    for (size_t i = 0; i < sizeof id.b; i += 8)
        memcpy(id.b + i, &(uint64_t){next_random(limit)}, 8);
    memcpy(client_msg_id, row->text + 18, 8);
    pg_array_i64(&arrays[E_ROOM], row->room);
    pg_array_i64(&arrays[E_SEQ], seq);
    pg_array_i64(&arrays[E_EPOCH], 1);
    pg_array_i64(&arrays[E_AT], at);
    pg_array_i64(&arrays[E_COUNTED], seq);
    pg_array_i64(&arrays[E_HASH], (int64_t)next_random(limit));
    pg_array_uuid(&arrays[E_ID], id);
    pg_array_i16(&arrays[E_TYPE], 1);
    pg_array_bytes(&arrays[E_SENDER], STR("bench"));
    pg_array_bytes(&arrays[E_CMID], (struct str){client_msg_id, sizeof client_msg_id});
    pg_array_bytes(&arrays[E_KIND], STR("text"));
    pg_array_bytes(&arrays[E_CONTENT], (struct str){row->text, TEXT_BYTES});
    pg_array_null(&arrays[E_META]);
}

static void add_head(struct pg_array arrays[ARRAYS], uint32_t room_no, const struct room *room, int64_t at)
{
    pg_array_i64(&arrays[H_ROOM], room_no);
    pg_array_i64(&arrays[H_OLD], room->old_seq);
    pg_array_i64(&arrays[H_NEW], room->seq);
    pg_array_i64(&arrays[H_EPOCH], 1);
    pg_array_i64(&arrays[H_AT], at);
    pg_array_i64(&arrays[H_COUNTED], room->seq);
}

static void send_append(struct limit *limit, struct pg_array arrays[ARRAYS])
{
    static struct pg_params params;
    const char *values[APPEND_PARAMS];
    int lengths[APPEND_PARAMS], formats[APPEND_PARAMS];

    pg_params_reset(&params);
    pg_param_text(&params, STR("me"));
    for (int i = 0; i < ARRAYS; i++)
        pg_param_array(&params, &arrays[i]);
    for (int i = 0; i < APPEND_PARAMS; i++) {
        values[i] = params.data.p + params.value[i].at;
        lengths[i] = params.value[i].n;
        formats[i] = params.value[i].format;
    }
    if (!PQsendQueryPrepared(limit->pg, "append", APPEND_PARAMS, values, lengths, formats, 1) ||
        !PQpipelineSync(limit->pg) || PQflush(limit->pg) < 0)
        give_up("database", PQerrorMessage(limit->pg));
}

/* All that has been delivered, as far as it fits, becomes the next batch. */
static void send_batch(struct limit *limit)
{
    static struct pg_array arrays[ARRAYS];
    static uint32_t touched[BATCH_MAX];
    struct batch *batch = &limit->flights[(limit->flight_first + limit->flight_count++) % limit->in_flight_max];
    int64_t at = (int64_t)time(NULL) * 1000;
    int rooms = 0;

    batch->count = 0;
    limit->batches++;
    arrays_reset(arrays);
    while (limit->row_count && batch->count < limit->batch_max) {
        struct row *row = &limit->rows[limit->row_first];
        struct room *room = &limit->room[row->room];

        if (room->batch != limit->batches) {
            room->batch = limit->batches;
            room->old_seq = room->seq;
            touched[rooms++] = row->room;
        }
        add_entry(limit, arrays, row, ++room->seq, at);
        batch->meant_at[batch->count++] = row->meant_at;
        batch->last_tag = row->tag;
        limit->row_first = (limit->row_first + 1) % limit->row_max;
        limit->row_count--;
    }
    for (int i = 0; i < rooms; i++)
        add_head(arrays, touched[i], &limit->room[touched[i]], at);
    for (int i = 0; i < limit->queues; i++) {
        char name[32];

        queue_name(name, i);
        pg_array_bytes(&arrays[SHARD], str_of(name + strlen("bare.")));
        pg_array_i64(&arrays[SHARD_EPOCH], 1);
    }
    send_append(limit, arrays);
}

static void read_commits(struct limit *limit)
{
    PGresult *result;

    if (!PQconsumeInput(limit->pg))
        give_up("database", PQerrorMessage(limit->pg));
    while (limit->flight_count && !PQisBusy(limit->pg)) {
        struct batch *batch = &limit->flights[limit->flight_first];
        ExecStatusType status;

        result = PQgetResult(limit->pg);
        if (!result)
            continue; /* the end of one statement; its sync follows */
        status = PQresultStatus(result);
        if (status == PGRES_PIPELINE_SYNC) {
            settle(limit, batch->meant_at, batch->count, batch->last_tag);
            limit->flight_first = (limit->flight_first + 1) % limit->in_flight_max;
            limit->flight_count--;
        } else if (status != PGRES_TUPLES_OK) {
            give_up("append", PQresultErrorMessage(result));
        }
        PQclear(result);
    }
}

static void settle_or_commit(struct limit *limit)
{
    if (limit->with_database) {
        read_commits(limit);
        while (limit->row_count && limit->flight_count < limit->in_flight_max)
            send_batch(limit);
        return;
    }
    for (; limit->row_count; limit->row_count--) {
        struct row *row = &limit->rows[limit->row_first];

        limit->row_first = (limit->row_first + 1) % limit->row_max;
        if (limit->row_count == 1) {
            settle(limit, &row->meant_at, 1, row->tag);
        } else {
            int64_t now = now_ns();

            limit->settled++;
            if (now >= limit->measure_from && now < limit->measure_to) {
                spread_add(&limit->latency, now - row->meant_at);
                limit->measured++;
            }
        }
    }
}

/* -------------------------------------------------------------------------------------------------------- the loop */

static void publish(struct limit *limit, const struct pace *pace)
{
    struct publisher *publisher = &limit->publisher;
    int64_t now = now_ns(), due;

    while (publisher_may(publisher) && (due = pace_due(pace, publisher->sent, now)) <= now) {
        uint32_t room = (uint32_t)(next_random(limit) % (uint64_t)limit->rooms);
        char text[TEXT_BYTES], name[32];

        queue_name(name, (int)(room % (uint32_t)limit->queues));
        text_write(text, due, (uint32_t)publisher->sent);
        put_hex(text + 27, room, 8);
        publisher_put(
            publisher, name + strlen("bare."), strlen(name) - strlen("bare."), (struct str){text, TEXT_BYTES}, due);
    }
}

/* Until something arrives, or until the next message is due. */
static void wait_for_work(struct limit *limit, const struct pace *pace, bool publishing)
{
    struct publisher *publisher = &limit->publisher;
    int64_t now = now_ns(), wait = 50 * NS_PER_MS;
    struct pollfd fds[] = {
        {.fd = publisher->broker.fd, .events = (short)(POLLIN | (publisher->broker.out.n ? POLLOUT : 0))},
        {.fd = limit->consumer.broker.fd, .events = (short)(POLLIN | (limit->consumer.broker.out.n ? POLLOUT : 0))},
        {.fd = limit->with_database ? PQsocket(limit->pg) : -1,
            .events = (short)(POLLIN | (limit->with_database && PQflush(limit->pg) ? POLLOUT : 0))}};

    if (publishing && publisher_may(publisher))
        wait = pace_due(pace, publisher->sent, now) - now;
    wait = wait < 0 ? 0 : wait > 50 * NS_PER_MS ? 50 * NS_PER_MS : wait;
    ppoll(fds, countof(fds), &(struct timespec){.tv_nsec = wait}, NULL);
}

static void run(struct limit *limit, double rate, double warmup_s, double seconds)
{
    struct pace pace = pace_of(rate);
    bool publishing = true;

    limit->measure_from = pace.start + (int64_t)(warmup_s * 1e9);
    limit->measure_to = limit->measure_from + (int64_t)(seconds * 1e9);
    limit->publisher.measure_from = limit->measure_from;
    while (publishing || limit->settled < limit->publisher.sent || limit->publisher.confirmed < limit->publisher.sent) {
        int64_t now = now_ns();

        publishing = now < limit->measure_to;
        if (now > limit->measure_to + 30 * NS_PER_S)
            give_up("drain", "not all messages were settled within 30 s");
        if (publishing)
            publish(limit, &pace);
        broker_flush(&limit->publisher.broker);
        publisher_read(&limit->publisher);
        consumer_read(&limit->consumer);
        settle_or_commit(limit);
        broker_flush(&limit->consumer.broker);
        wait_for_work(limit, &pace, publishing);
    }
}

static void report(const struct limit *limit, double seconds, double cpu_s, double total_s)
{
    struct result result = {0};

    result_add(&result, "messages_per_s", (double)limit->measured / seconds);
    result_add_spread(&result, "latency", &limit->latency);
    result_add_spread(&result, "confirm", &limit->publisher.confirms);
    result_add(&result, "batch", limit->batches ? (double)limit->settled / (double)limit->batches : 0);
    result_add(&result, "client_cpu", cpu_s / total_s);
    result_print(&result);
}
