/*
 * The road through roomd: real messages to roomd.room, until they are in the log, or until a reader of a stream has
 * them.
 *
 *   --amqp-url URL --plan FILE
 *   --mode log      as many as the window lets; needs --database URL. Counts what is committed while it publishes, and
 *                   ends when the log has every single message and the queues are empty
 *   --mode stream   at --rate N (open loop); opens a WebSocket for each ticket of the plan at --host and --port, and
 *                   measures from the time a message was meant to be sent to its frame at the client
 *   --seconds 5 --warmup 1 --window 500
 *   --changes 0     of a hundred messages so many are edits, and every fifth of these a recall, of what was sent in the
 *                   same room a moment ago (mode log)
 */
#include "load_amqp.h"
#include "load_stream.h"

#include "room/base/clock.h"
#include "room/name.h"

#include <libpq-fe.h>
#include <poll.h>

enum { LAG_SAMPLES = 1000, LAG_EVERY_MS = 100 };
enum { CHANGED_LATELY = 2000 }; /* a change is about one of so many last messages */

struct road {
    struct publisher publisher;
    struct plan plan;
    struct body *bodies; /* one per room */
    size_t room_count, stream_count;
    char run[32];
    uint64_t changes; /* per hundred */
    struct buf change;
    struct readers readers;
    struct reader *streams;
    uint64_t frames, frames_measured;
    int64_t begin, measure_from, measure_to;
    struct spread latency;
    PGconn *pg;
    bool asked;
    int64_t asked_at, committed, committed_at,
        committed_before; /* entries of the log beyond those from before the run */
    int64_t first_committed, first_at, last_committed, last_at; /* while it was measured */
    double lag[LAG_SAMPLES];
    int lag_count;
};

static void open_rooms(struct road *road);
static void open_log(struct road *road, const char *database);
static void open_streams(struct road *road, const char *host, int port);
static void run(struct road *road, double rate, bool streams);
static void check_log(struct road *road, const char *url);
static void report(struct road *road, bool streams, double cpu_s, double drain_s);

int main(int argc, char **argv)
{
    static struct road road;
    const char *url = option(argc, argv, "amqp-url", "amqp://guest:guest@127.0.0.1:5672/%2f");
    bool streams = !strcmp(option(argc, argv, "mode", "log"), "stream");
    int64_t end;
    double cpu_s;

    road.plan = plan_read(option(argc, argv, "plan", ""));
    road.changes = (uint64_t)option_number(argc, argv, "changes", 0);
    open_rooms(&road);
    if (streams)
        open_streams(&road, option(argc, argv, "host", "127.0.0.1"), (int)option_number(argc, argv, "port", 7400));
    else
        open_log(&road, option(argc, argv, "database", ""));
    publisher_open(&road.publisher, url, "roomd.room", (uint64_t)option_number(argc, argv, "window", 500));
    road.begin = now_ns();
    road.measure_from = road.begin + (int64_t)(option_number(argc, argv, "warmup", 1) * 1e9);
    road.measure_to = road.measure_from + (int64_t)(option_number(argc, argv, "seconds", 5) * 1e9);
    road.publisher.measure_from = road.measure_from;
    cpu_s = own_cpu_s();
    run(&road, option_number(argc, argv, "rate", 0), streams);
    end = now_ns();
    cpu_s = (own_cpu_s() - cpu_s) / ((double)(end - road.begin) / NS_PER_S);
    if (!streams)
        check_log(&road, url);
    report(&road, streams, cpu_s, (double)(end - road.measure_to) / NS_PER_S);
    return 0;
}

static void open_rooms(struct road *road)
{
    snprintf(road->run, sizeof road->run, "%" PRIx64, (uint64_t)now_ns());
    for (size_t i = 0; i < road->plan.count; i++)
        for (char *rest = road->plan.lines[i].rooms, *room; (room = strtok_r(NULL, ",", &rest));) {
            road->bodies = xrealloc(road->bodies, (road->room_count + 1) * sizeof *road->bodies);
            body_init(&road->bodies[road->room_count++], room, road->run);
        }
}

/* ------------------------------------------------------------------------------------------------------------- log */

static void open_log(struct road *road, const char *database)
{
    PGresult *result;

    road->pg = PQconnectdb(database);
    if (PQstatus(road->pg) != CONNECTION_OK)
        give_up("database", PQerrorMessage(road->pg));
    result = PQexec(road->pg, "SELECT coalesce(sum(last_seq), 0) FROM room_head");
    if (PQresultStatus(result) != PGRES_TUPLES_OK)
        give_up("database", PQerrorMessage(road->pg));
    road->committed_before = strtoll(PQgetvalue(result, 0, 0), NULL, 10);
    PQclear(result);
}

static void note_committed(struct road *road, int64_t committed)
{
    road->committed = committed - road->committed_before;
    road->committed_at = now_ns();
    if (road->committed_at >= road->measure_from && road->committed_at <= road->measure_to) {
        if (!road->first_at) {
            road->first_at = road->committed_at;
            road->first_committed = road->committed;
        }
        road->last_at = road->committed_at;
        road->last_committed = road->committed;
        if (road->lag_count < LAG_SAMPLES)
            road->lag[road->lag_count++] = (double)road->publisher.confirmed - (double)road->committed;
    }
}

/* Asks how far the log is, without waiting for the answer: a publisher that stands still would flatter roomd. */
static void watch_log(struct road *road)
{
    PGresult *result;

    if (!road->asked && now_ns() - road->asked_at >= LAG_EVERY_MS * NS_PER_MS) {
        road->asked_at = now_ns();
        road->asked = PQsendQuery(road->pg, "SELECT coalesce(sum(last_seq), 0) FROM room_head");
    }
    if (!road->asked || !PQconsumeInput(road->pg) || PQisBusy(road->pg))
        return;
    while ((result = PQgetResult(road->pg))) {
        if (PQresultStatus(result) != PGRES_TUPLES_OK)
            give_up("database", PQerrorMessage(road->pg));
        note_committed(road, strtoll(PQgetvalue(result, 0, 0), NULL, 10));
        PQclear(result);
    }
    road->asked = false;
}

/* Every entry is there, none was thrown out, and no queue holds anything. */
static void check_log(struct road *road, const char *url)
{
    PGresult *result =
        PQexec(road->pg, "SELECT (SELECT sum(last_seq) FROM room_head) = (SELECT count(*) FROM log_entry), "
                         "(SELECT count(*) FROM outbox), (SELECT string_agg(shard, ',') FROM shard_lease)");
    struct broker broker;

    if (PQresultStatus(result) != PGRES_TUPLES_OK)
        give_up("database", PQerrorMessage(road->pg));
    if (strcmp(PQgetvalue(result, 0, 0), "t") || strcmp(PQgetvalue(result, 0, 1), "0") ||
        (uint64_t)road->committed != road->publisher.sent)
        give_up("log", "it does not hold exactly what was published");
    broker_open(&broker, url);
    for (char *rest = PQgetvalue(result, 0, 2), *shard; (shard = strtok_r(NULL, ",", &rest));) {
        char name[64];
        amqp_queue_declare_ok_t *queue;

        snprintf(name, sizeof name, "roomd.shard.%s", shard);
        queue = amqp_queue_declare(broker.state, 1, amqp_cstring_bytes(name), 1, 0, 0, 0, amqp_empty_table);
        broker_check(amqp_get_rpc_reply(broker.state), name);
        if (queue->message_count)
            give_up(name, "is not empty");
    }
    broker_close(&broker);
    PQclear(result);
}

/* --------------------------------------------------------------------------------------------------------- streams */

static void on_event(void *owner, struct reader *reader, const char *json, size_t n)
{
    struct road *road = owner;
    int64_t meant_at, now = now_ns();
    uint32_t number;

    (void)reader;
    if (!event_marker(json, n, &meant_at, &number))
        return;
    road->frames++;
    if (meant_at >= road->measure_from && meant_at < road->measure_to) {
        spread_add(&road->latency, now - meant_at);
        road->frames_measured++;
    }
}

static void open_streams(struct road *road, const char *host, int port)
{
    int64_t deadline = now_ns() + 20 * NS_PER_S;

    readers_init(&road->readers, host, port, false);
    road->readers.event = on_event;
    road->readers.owner = road;
    road->streams = xcalloc(road->plan.count, sizeof *road->streams);
    for (size_t i = 0; i < road->plan.count; i++)
        if (road->plan.lines[i].ticket)
            reader_open(&road->readers, &road->streams[road->stream_count++], road->plan.lines[i].ticket);
    if (road->stream_count != 1)
        give_up("plan", "one ticket is wanted, for all rooms: each message shall come once");
    while (road->readers.live < road->stream_count) {
        struct pollfd fd = {.fd = road->readers.epoll, .events = POLLIN};

        if (now_ns() > deadline)
            give_up("streams", "not open within 20 s");
        poll(&fd, 1, 100);
        readers_read(&road->readers);
    }
}

/* -------------------------------------------------------------------------------------------------------- the loop */

/* A stride that is prime to the number of rooms: neighbours go to different shards. */
static struct body *body_of(struct road *road, uint64_t number)
{
    return &road->bodies[number * 7919 % road->room_count];
}

static bool is_change(const struct road *road, uint64_t number)
{
    return number % 100 < road->changes && number > 200;
}

/* An edit of a message that was published lately, by its id; roomd's own instances write the same when
 * they are called. */
static void publish_change(struct road *road, int64_t due)
{
    struct publisher *publisher = &road->publisher;
    uint64_t number = publisher->sent, lately = number < CHANGED_LATELY ? number - 1 : CHANGED_LATELY;
    uint64_t target = number - 1 - (number * 2654435761u >> 7) % lately;
    char client_id[48], id[ULID_TEXT + 1] = "", op_id[ULID_TEXT + 1] = "";
    struct body *body;

    if (is_change(road, target)) /* the first of a hundred are changes: the one before them is none */
        target -= target % 100 + 1;
    body = body_of(road, target);
    snprintf(client_id, sizeof client_id, "%s-%08" PRIx64, road->run, target);
    ulid_write(id, message_id_of(str_of(body->key), STR("bench"), str_of(client_id)));
    ulid_write(op_id, ulid_new(clock_unix_ms()));
    buf_reset(&road->change);
    buf_printf(&road->change,
        "{\"v\":1,\"op\":\"message.%s\",\"op_id\":\"%s\",\"room_id\":\"%s\",\"by\":\"bench\",\"at\":%" PRIu64
        ",\"target_id\":\"%s\"",
        number % 5 ? "edit" : "recall", op_id, body->key, clock_unix_ms(), id);
    if (number % 5)
        buf_printf(&road->change, ",\"content\":\"edited: %.*s\"", TEXT_BYTES, body->json.p + body->text_at);
    buf_char(&road->change, '}');
    publisher->exchange = "roomd.op";
    publisher_put(publisher, body->key, body->key_bytes, buf_str(&road->change), due);
    publisher->exchange = "roomd.room";
}

static void publish(struct road *road, const struct pace *pace)
{
    struct publisher *publisher = &road->publisher;
    int64_t now = now_ns(), due;

    while (publisher_may(publisher) && (due = pace_due(pace, publisher->sent, now)) <= now) {
        struct body *body = body_of(road, publisher->sent);

        if (is_change(road, publisher->sent)) {
            publish_change(road, due);
            continue;
        }
        publisher_put(publisher, body->key, body->key_bytes, body_with(body, due, (uint32_t)publisher->sent), due);
    }
}

static void wait_for_work(struct road *road, const struct pace *pace, bool publishing, bool streams)
{
    struct publisher *publisher = &road->publisher;
    int64_t now = now_ns(), wait = 20 * NS_PER_MS;
    struct pollfd fds[] = {
        {.fd = publisher->broker.fd, .events = (short)(POLLIN | (publisher->broker.out.n ? POLLOUT : 0))},
        {.fd = streams ? road->readers.epoll : PQsocket(road->pg), .events = POLLIN}};

    if (publishing && publisher_may(publisher))
        wait = pace_due(pace, publisher->sent, now) - now;
    wait = wait < 0 ? 0 : wait > 20 * NS_PER_MS ? 20 * NS_PER_MS : wait;
    ppoll(fds, countof(fds), &(struct timespec){.tv_nsec = wait}, NULL);
}

/* All confirmed, and all where they were to go. */
static bool arrived(const struct road *road, bool streams)
{
    uint64_t sent = road->publisher.sent;

    return road->publisher.confirmed == sent && (streams ? road->frames >= sent : (uint64_t)road->committed >= sent);
}

static void run(struct road *road, double rate, bool streams)
{
    struct pace pace = pace_of(rate);
    bool publishing = true;

    while (publishing || !arrived(road, streams)) {
        int64_t now = now_ns();

        publishing = now < road->measure_to;
        if (now > road->measure_to + 60 * NS_PER_S) {
            fprintf(stderr, "sent %" PRIu64 " confirmed %" PRIu64 " committed %" PRId64 " frames %" PRIu64 "\n",
                road->publisher.sent, road->publisher.confirmed, road->committed, road->frames);
            give_up("drain", "not every message arrived within 60 s");
        }
        if (publishing)
            publish(road, &pace);
        broker_flush(&road->publisher.broker);
        publisher_read(&road->publisher);
        if (streams)
            readers_read(&road->readers);
        else
            watch_log(road);
        wait_for_work(road, &pace, publishing, streams);
    }
}

static double mean(const double *values, int from, int to)
{
    double sum = 0;

    for (int i = from; i < to; i++)
        sum += values[i];
    return to > from ? sum / (to - from) : 0;
}

static void report(struct road *road, bool streams, double cpu_s, double drain_s)
{
    double seconds = (double)(road->measure_to - road->measure_from) / NS_PER_S;
    struct result result = {0};

    if (streams) {
        result_add(&result, "messages_per_s", (double)road->frames_measured / seconds);
        result_add_spread(&result, "latency", &road->latency);
    } else {
        int half = road->lag_count / 2;

        if (road->last_at <= road->first_at)
            give_up("log", "it was not seen to grow");
        result_add(&result, "messages_per_s",
            (double)(road->last_committed - road->first_committed) /
                ((double)(road->last_at - road->first_at) / NS_PER_S));
        /* Confirmed and not yet in the log: on average over the first and the second half. */
        result_add(&result, "lag_first", mean(road->lag, 0, half));
        result_add(&result, "lag_second", mean(road->lag, half, road->lag_count));
        result_add(&result, "overall_per_s",
            (double)road->publisher.sent /
                ((double)(road->committed_at - road->begin) / NS_PER_S)); /* with the drain */
    }
    result_add(&result, "drain_s", drain_s);
    result_add_spread(&result, "confirm", &road->publisher.confirms);
    result_add(&result, "client_cpu", cpu_s);
    result_print(&result);
}
