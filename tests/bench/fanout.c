/*
 * The way out: many streams of one instance, and what reaches them. Opens N WebSocket or SSE streams with the tickets
 * of the plan (stream i takes ticket i modulo their number), then
 *   --mode max     publishes as fast as the streams are served: deliveries/s (a closed loop: at most --window messages
 *                  not yet everywhere)
 *   --mode paced   --rate N messages/s (open loop): from the time meant to the first, to each and to the last stream
 *   --mode hold    prints a line when all are open and keeps them until stdin ends
 *   --mode churn   drops all streams without a word and opens them again at once: until the last one is live
 *
 *   --amqp-url URL --plan FILE --host 127.0.0.1 --port P --streams N --transport ws|sse --opening 500
 *   --pid PID      whose CPU time is told beside our own
 *   --bare 1       the other end is bench_broadcast, which sends by itself: no tickets, no broker
 *   --seconds 5 --warmup 1 --window 200
 */
#include "load_amqp.h"
#include "load_stream.h"

#include <poll.h>

enum { TRACKED_MAX = 65536 };

/* A message on its way to all streams of its room. */
struct tracked {
    int64_t meant_at;
    uint32_t number, missing;
};

struct fanout {
    struct publisher publisher;
    struct plan plan;
    struct body *bodies;
    struct readers readers;
    struct reader *streams;
    uint32_t stream_count, opening_max, *streams_of_room;
    bool bare, paced;
    int pid;
    uint64_t deliveries, expected; /* expected: of what was published */
    struct tracked *tracked;
    int64_t begin, measure_from, measure_to;
    uint64_t first_deliveries, first_bytes, first_sent, last_deliveries, last_bytes, last_sent;
    double first_own_s, first_server_s, last_own_s, last_server_s;
    int64_t first_at, last_at;
    struct spread first_served, each, last_served;
};

static void plan_streams(struct fanout *fanout, const char *transport, const char *host, int port);
static double open_streams(struct fanout *fanout);
static void hold(struct fanout *fanout);
static void churn(struct fanout *fanout);
static void run(struct fanout *fanout, double rate);
static void report(struct fanout *fanout, double open_s);

int main(int argc, char **argv)
{
    static struct fanout fanout;
    const char *mode = option(argc, argv, "mode", "max");
    double rate = option_number(argc, argv, "rate", 10), open_s;

    fanout.bare = option_number(argc, argv, "bare", 0) > 0;
    fanout.paced = !strcmp(mode, "paced");
    fanout.pid = (int)option_number(argc, argv, "pid", 0);
    fanout.stream_count = (uint32_t)option_number(argc, argv, "streams", 1000);
    fanout.opening_max = (uint32_t)option_number(argc, argv, "opening", 500);
    if (!fanout.bare)
        fanout.plan = plan_read(option(argc, argv, "plan", ""));
    plan_streams(&fanout, option(argc, argv, "transport", "ws"), option(argc, argv, "host", "127.0.0.1"),
        (int)option_number(argc, argv, "port", 7400));
    open_s = open_streams(&fanout);
    if (!strcmp(mode, "hold")) {
        printf("{\"open_s\":%.3f}\n", open_s);
        fflush(stdout);
        hold(&fanout);
        return 0;
    }
    if (!strcmp(mode, "churn")) {
        churn(&fanout);
        return 0;
    }
    if (!fanout.bare)
        publisher_open(&fanout.publisher, option(argc, argv, "amqp-url", ""), "roomd.room",
            (uint64_t)option_number(argc, argv, "window", 200));
    fanout.tracked = xcalloc(TRACKED_MAX, sizeof *fanout.tracked);
    fanout.begin = now_ns();
    fanout.measure_from = fanout.begin + (int64_t)(option_number(argc, argv, "warmup", 1) * 1e9);
    fanout.measure_to = fanout.measure_from + (int64_t)(option_number(argc, argv, "seconds", 5) * 1e9);
    fanout.publisher.measure_from = fanout.measure_from;
    run(&fanout, fanout.paced ? rate : 0);
    report(&fanout, open_s);
    return 0;
}

/* --------------------------------------------------------------------------------------------------------- streams */

/* As roomd writes it: the type stands first, and no other type begins with these letters except changes of messages. */
static bool is_message(const char *json, size_t n)
{
    static const char begin[] = "{\"type\":\"message\"";

    return n > sizeof begin && !memcmp(json, begin, sizeof begin - 1);
}

static void on_event(void *owner, struct reader *reader, const char *json, size_t n)
{
    struct fanout *fanout = owner;
    struct tracked *tracked;
    int64_t meant_at, now;
    uint32_t number;

    (void)reader;
    if (!is_message(json, n))
        return;
    fanout->deliveries++;
    if (!fanout->paced || !event_marker(json, n, &meant_at, &number))
        return;
    tracked = &fanout->tracked[number % TRACKED_MAX];
    if (fanout->bare && (tracked->number != number || tracked->meant_at != meant_at)) /* it came from outside */
        *tracked = (struct tracked){.meant_at = meant_at, .number = number, .missing = fanout->stream_count};
    if (tracked->meant_at != meant_at || !tracked->missing)
        give_up("streams", "a message that was not sent, or came twice");
    now = now_ns();
    tracked->missing--;
    if (meant_at < fanout->measure_from || meant_at >= fanout->measure_to)
        return;
    spread_add(&fanout->each, now - meant_at);
    if (tracked->missing + 1 == fanout->streams_of_room[reader->room])
        spread_add(&fanout->first_served, now - meant_at);
    if (!tracked->missing)
        spread_add(&fanout->last_served, now - meant_at);
}

static void plan_streams(struct fanout *fanout, const char *transport, const char *host, int port)
{
    size_t rooms = fanout->bare ? 1 : fanout->plan.count;
    char run[32];

    snprintf(run, sizeof run, "%" PRIx64, (uint64_t)now_ns());
    readers_init(&fanout->readers, host, port, !strcmp(transport, "sse"));
    fanout->readers.event = on_event;
    fanout->readers.owner = fanout;
    fanout->streams = xcalloc(fanout->stream_count, sizeof *fanout->streams);
    fanout->streams_of_room = xcalloc(rooms, sizeof *fanout->streams_of_room);
    fanout->bodies = xcalloc(rooms, sizeof *fanout->bodies);
    for (size_t i = 0; i < fanout->plan.count; i++)
        body_init(&fanout->bodies[i], fanout->plan.lines[i].rooms, run);
    for (uint32_t i = 0; i < fanout->stream_count; i++) {
        fanout->streams[i].room = i % (uint32_t)rooms;
        fanout->streams_of_room[i % rooms]++;
    }
}

/* So many at once as --opening says, until all have read their hello; seconds it took. */
static double open_streams(struct fanout *fanout)
{
    struct readers *readers = &fanout->readers;
    int64_t begin = now_ns();

    while (readers->live < fanout->stream_count) {
        struct pollfd fd = {.fd = readers->epoll, .events = POLLIN};

        while (readers->opened < fanout->stream_count && readers->opened - readers->live < fanout->opening_max) {
            struct reader *reader = &fanout->streams[readers->opened];

            reader_open(readers, reader, fanout->bare ? NULL : fanout->plan.lines[reader->room].ticket);
        }
        if (now_ns() > begin + 60 * NS_PER_S)
            give_up("streams", "not open within 60 s");
        poll(&fd, 1, 100);
        readers_read(readers);
    }
    return (double)(now_ns() - begin) / NS_PER_S;
}

static void hold(struct fanout *fanout)
{
    struct pollfd fds[] = {{.fd = fanout->readers.epoll, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    char byte;

    do {
        poll(fds, countof(fds), -1);
        readers_read(&fanout->readers);
    } while (!fds[1].revents || read(0, &byte, 1) > 0);
}

static void churn(struct fanout *fanout)
{
    struct result result = {0};

    for (uint32_t i = 0; i < fanout->stream_count; i++)
        reader_close(&fanout->readers, &fanout->streams[i]);
    result_add(&result, "live_s", open_streams(fanout));
    result_print(&result);
}

/* -------------------------------------------------------------------------------------------------------- the loop */

static void publish(struct fanout *fanout, const struct pace *pace, uint64_t window)
{
    struct publisher *publisher = &fanout->publisher;
    int64_t now = now_ns(), due;

    while (publisher_may(publisher) && (due = pace_due(pace, publisher->sent, now)) <= now) {
        size_t room = publisher->sent % fanout->plan.count;
        struct body *body = &fanout->bodies[room];

        if (!fanout->paced &&
            fanout->expected - fanout->deliveries > window * (fanout->stream_count / fanout->plan.count))
            return;
        fanout->tracked[publisher->sent % TRACKED_MAX] = (struct tracked){
            .meant_at = due, .number = (uint32_t)publisher->sent, .missing = fanout->streams_of_room[room]};
        fanout->expected += fanout->streams_of_room[room];
        publisher_put(publisher, body->key, body->key_bytes, body_with(body, due, (uint32_t)publisher->sent), due);
    }
}

/* CPU time of another process, from its two counters of ticks. (Its name may hold spaces, so begin
 * behind its bracket.) */
static double cpu_of(int pid)
{
    char path[64], line[1024] = "";
    unsigned long user = 0, system = 0;
    const char *at;
    FILE *file;

    if (!pid)
        return 0;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    file = fopen(path, "re");
    if (!file || !fgets(line, sizeof line, file) || !(at = strrchr(line, ')')) ||
        sscanf(at + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) != 2)
        give_up("pid", "no such process");
    fclose(file);
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

static void note(struct fanout *fanout, int64_t now)
{
    if (!fanout->first_at && now >= fanout->measure_from) {
        fanout->first_at = now;
        fanout->first_deliveries = fanout->deliveries;
        fanout->first_bytes = fanout->readers.bytes;
        fanout->first_sent = fanout->publisher.sent;
        fanout->first_own_s = own_cpu_s();
        fanout->first_server_s = cpu_of(fanout->pid);
    }
    if (!fanout->last_at && now >= fanout->measure_to) {
        fanout->last_at = now;
        fanout->last_deliveries = fanout->deliveries;
        fanout->last_bytes = fanout->readers.bytes;
        fanout->last_sent = fanout->publisher.sent;
        fanout->last_own_s = own_cpu_s();
        fanout->last_server_s = cpu_of(fanout->pid);
    }
}

static void wait_for_work(struct fanout *fanout, const struct pace *pace)
{
    struct publisher *publisher = &fanout->publisher;
    int64_t wait = 10 * NS_PER_MS, now = now_ns();
    struct pollfd fds[] = {{.fd = fanout->readers.epoll, .events = POLLIN},
        {.fd = fanout->bare ? -1 : publisher->broker.fd,
            .events = (short)(POLLIN | (publisher->broker.out.n ? POLLOUT : 0))}};

    if (fanout->paced && !fanout->bare)
        wait = pace_due(pace, publisher->sent, now) - now;
    wait = wait < 0 ? 0 : wait > 10 * NS_PER_MS ? 10 * NS_PER_MS : wait;
    ppoll(fds, countof(fds), &(struct timespec){.tv_nsec = wait}, NULL);
}

static void run(struct fanout *fanout, double rate)
{
    struct pace pace = pace_of(rate);
    uint64_t window = fanout->publisher.window;

    for (bool publishing = true; publishing || (!fanout->bare && fanout->deliveries < fanout->expected);) {
        int64_t now = now_ns();

        publishing = now < fanout->measure_to;
        note(fanout, now);
        if (now > fanout->measure_to + 30 * NS_PER_S) {
            fprintf(stderr, "%" PRIu64 " of %" PRIu64 " deliveries\n", fanout->deliveries, fanout->expected);
            give_up("drain", "not every stream got every message within 30 s");
        }
        if (!fanout->bare) {
            if (publishing)
                publish(fanout, &pace, window);
            broker_flush(&fanout->publisher.broker);
            publisher_read(&fanout->publisher);
        }
        readers_read(&fanout->readers);
        wait_for_work(fanout, &pace);
    }
    if (!fanout->bare && fanout->deliveries != fanout->expected)
        give_up("streams", "more deliveries than there should be");
}

static void report(struct fanout *fanout, double open_s)
{
    double seconds = (double)(fanout->last_at - fanout->first_at) / NS_PER_S;
    double deliveries = (double)(fanout->last_deliveries - fanout->first_deliveries);
    struct result result = {0};

    result_add(&result, "deliveries_per_s", deliveries / seconds);
    result_add(&result, "messages_per_s", (double)(fanout->last_sent - fanout->first_sent) / seconds);
    result_add(&result, "bytes_per_delivery",
        deliveries > 0 ? (double)(fanout->last_bytes - fanout->first_bytes) / deliveries : 0);
    result_add(&result, "server_cpu", (fanout->last_server_s - fanout->first_server_s) / seconds);
    result_add(&result, "client_cpu", (fanout->last_own_s - fanout->first_own_s) / seconds);
    result_add(&result, "open_s", open_s);
    if (fanout->paced) {
        result_add_spread(&result, "first", &fanout->first_served);
        result_add_spread(&result, "each", &fanout->each);
        result_add_spread(&result, "last", &fanout->last_served);
    }
    result_print(&result);
}
