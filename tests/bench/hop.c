/*
 * What one more hop costs: two WebSocket streams of the same rooms, the first straight at the instance, the second on
 * the way that is measured (a gateway), and for each message how much later it is on the second. Pairs, so that what
 * broker and owner take is in neither figure. The first stream was opened first and is served first: the instance's
 * own time between the two counts as the hop's; --control tells how much that is, by a second stream without a hop.
 *
 *   --amqp-url URL --plan FILE --rate 100 --seconds 5 --warmup 1 --window 500
 *   --host 127.0.0.1 --port P --hop-port P    line 1 of the plan is the first stream's, line 2 the second's
 */
#include "load_amqp.h"
#include "load_stream.h"

#include <poll.h>

enum { RING = 1 << 16, STREAMS = 2 };

struct hop {
    struct publisher publisher;
    struct plan plan;
    struct body *bodies; /* one per room */
    size_t room_count;
    struct readers readers;
    struct reader streams[STREAMS];
    int64_t arrived_at[RING]; /* on the first stream, by number */
    uint64_t frames[STREAMS];
    int64_t measure_from, measure_to;
    struct spread way[STREAMS], added;
    uint64_t earlier; /* messages that were on the second stream first */
};

static void open_rooms(struct hop *hop)
{
    char run[32], *rooms = xstrdup(hop->plan.lines[0].rooms);

    snprintf(run, sizeof run, "%" PRIx64, (uint64_t)now_ns());
    for (char *rest = rooms, *room; (room = strtok_r(NULL, ",", &rest));) {
        hop->bodies = xrealloc(hop->bodies, (hop->room_count + 1) * sizeof *hop->bodies);
        body_init(&hop->bodies[hop->room_count++], room, run);
    }
}

static void on_event(void *owner, struct reader *reader, const char *json, size_t n)
{
    struct hop *hop = owner;
    size_t which = (size_t)(reader - hop->streams);
    int64_t meant_at, now = now_ns(), *first;
    uint32_t number;

    if (!event_marker(json, n, &meant_at, &number))
        return;
    hop->frames[which]++;
    first = &hop->arrived_at[number % RING];
    if (meant_at >= hop->measure_from && meant_at < hop->measure_to) {
        spread_add(&hop->way[which], now - meant_at);
        if (*first)
            spread_add(&hop->added, which ? now - *first : 0);
        hop->earlier += *first && !which;
    }
    *first = *first ? 0 : now;
}

static void open_streams(struct hop *hop, const char *host, const int ports[STREAMS])
{
    int64_t deadline = now_ns() + 20 * NS_PER_S;

    readers_init(&hop->readers, host, ports[0], false);
    hop->readers.event = on_event;
    hop->readers.owner = hop;
    for (uint32_t i = 0; i < STREAMS; i++) {
        hop->readers.address.sin_port = htons((uint16_t)ports[i]);
        reader_open(&hop->readers, &hop->streams[i], hop->plan.lines[i].ticket);
        while (hop->readers.live <= i) {
            struct pollfd fd = {.fd = hop->readers.epoll, .events = POLLIN};

            if (now_ns() > deadline)
                give_up("streams", "not open within 20 s");
            poll(&fd, 1, 100);
            readers_read(&hop->readers);
        }
    }
}

static void publish(struct hop *hop, const struct pace *pace)
{
    struct publisher *publisher = &hop->publisher;
    int64_t now = now_ns(), due;

    while (publisher_may(publisher) && (due = pace_due(pace, publisher->sent, now)) <= now) {
        struct body *body = &hop->bodies[publisher->sent % hop->room_count];

        publisher_put(publisher, body->key, body->key_bytes, body_with(body, due, (uint32_t)publisher->sent), due);
    }
}

static void run(struct hop *hop, double rate)
{
    struct publisher *publisher = &hop->publisher;
    struct pace pace = pace_of(rate);
    bool publishing = true;

    while (publishing || hop->frames[0] < publisher->sent || hop->frames[1] < publisher->sent) {
        struct pollfd fds[] = {
            {.fd = publisher->broker.fd, .events = POLLIN}, {.fd = hop->readers.epoll, .events = POLLIN}};
        int64_t now = now_ns(), wait = publishing ? pace_due(&pace, publisher->sent, now) - now : 20 * NS_PER_MS;

        publishing = now < hop->measure_to;
        if (now > hop->measure_to + 20 * NS_PER_S)
            give_up("streams", "not every message arrived within 20 s");
        wait = wait < 0 ? 0 : wait > 20 * NS_PER_MS ? 20 * NS_PER_MS : wait;
        ppoll(fds, countof(fds), &(struct timespec){.tv_nsec = wait}, NULL);
        readers_read(&hop->readers);
        if (publishing)
            publish(hop, &pace);
        broker_flush(&publisher->broker);
        publisher_read(publisher);
    }
}

int main(int argc, char **argv)
{
    static struct hop hop;
    const char *url = option(argc, argv, "amqp-url", "amqp://guest:guest@127.0.0.1:5672/%2f");
    double rate = option_number(argc, argv, "rate", 100);
    int port = (int)option_number(argc, argv, "port", 7400);
    struct result result = {0};

    hop.plan = plan_read(option(argc, argv, "plan", ""));
    if (hop.plan.count != STREAMS || !hop.plan.lines[0].ticket || !hop.plan.lines[1].ticket)
        give_up("plan", "two lines with tickets are wanted");
    open_rooms(&hop);
    open_streams(
        &hop, option(argc, argv, "host", "127.0.0.1"), (int[]){port, (int)option_number(argc, argv, "hop-port", port)});
    publisher_open(&hop.publisher, url, "roomd.room", (uint64_t)option_number(argc, argv, "window", 500));
    hop.measure_from = now_ns() + (int64_t)(option_number(argc, argv, "warmup", 1) * 1e9);
    hop.measure_to = hop.measure_from + (int64_t)(option_number(argc, argv, "seconds", 5) * 1e9);
    run(&hop, rate);
    if (!hop.added.count)
        give_up("streams", "nothing was measured");
    result_add_spread(&result, "first", &hop.way[0]);
    result_add_spread(&result, "second", &hop.way[1]);
    result_add_spread(&result, "added", &hop.added);
    result_add(&result, "earlier_share", (double)hop.earlier / (double)hop.added.count);
    result_print(&result);
    return 0;
}
