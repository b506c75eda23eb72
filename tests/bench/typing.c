/*
 * What typing costs in a large room: opens N WebSocket streams with the tickets of the plan (stream i takes ticket i,
 * each of another account), has them say message.typing in turn, --rate times a second together (open loop), and
 * counts the typing events that come back. Typing is what roomd drops first under load, so the figure is what was
 * delivered, and told is what the streams got of each typing on average.
 *
 *   --plan FILE --host 127.0.0.1 --port P --rate 2000 --seconds 5 --warmup 1 --opening 500
 */
#include "load_stream.h"

#include <poll.h>

struct typing {
    struct plan plan;
    struct readers readers;
    struct reader *streams;
    uint64_t deliveries, sent;
};

static void on_event(void *owner, struct reader *reader, const char *json, size_t n)
{
    static const char begin[] = "{\"type\":\"typing\"", error[] = "{\"type\":\"error\"";
    struct typing *typing = owner;

    (void)reader;
    if (n > sizeof begin && !memcmp(json, begin, sizeof begin - 1))
        typing->deliveries++;
    else if (n > sizeof error && !memcmp(json, error, sizeof error - 1))
        give_up("typing", "refused");
}

static void open_streams(struct typing *typing, uint32_t opening_max)
{
    struct readers *readers = &typing->readers;
    int64_t begin = now_ns();

    while (readers->live < typing->plan.count) {
        struct pollfd fd = {.fd = readers->epoll, .events = POLLIN};

        while (readers->opened < typing->plan.count && readers->opened - readers->live < opening_max) {
            uint32_t next = readers->opened;

            reader_open(readers, &typing->streams[next], typing->plan.lines[next].ticket);
        }
        if (now_ns() > begin + 60 * NS_PER_S)
            give_up("streams", "not open within 60 s");
        poll(&fd, 1, 100);
        readers_read(readers);
    }
}

/* A frame that does not fit into the socket at once would have to be kept: with so short ones the server
 * is stuck then. */
static void type(struct typing *typing)
{
    size_t who = typing->sent++ % typing->plan.count;
    uint8_t frame[2 + 4 + 125] = {0x81};
    int n = snprintf((char *)frame + 6, sizeof frame - 6,
        "{\"type\":\"message.typing\",\"payload\":{\"room_id\":\"%s\"}}", typing->plan.lines[who].rooms);

    frame[1] = (uint8_t)(0x80 | n); /* a mask of zeros changes nothing */
    if (n > 125 || send(typing->streams[who].fd, frame, 6 + (size_t)n, MSG_NOSIGNAL) != 6 + n)
        give_up("typing", "a frame was not taken");
}

int main(int argc, char **argv)
{
    static struct typing typing;
    double rate = option_number(argc, argv, "rate", 2000), seconds;
    int64_t begin, from, to, now, first_at = 0;
    uint64_t first = 0, first_sent = 0, due;
    struct result result = {0};

    typing.plan = plan_read(option(argc, argv, "plan", ""));
    typing.streams = xcalloc(typing.plan.count, sizeof *typing.streams);
    readers_init(
        &typing.readers, option(argc, argv, "host", "127.0.0.1"), (int)option_number(argc, argv, "port", 7400), false);
    typing.readers.event = on_event;
    typing.readers.owner = &typing;
    open_streams(&typing, (uint32_t)option_number(argc, argv, "opening", 500));
    begin = now_ns();
    from = begin + (int64_t)(option_number(argc, argv, "warmup", 1) * 1e9);
    to = from + (int64_t)(option_number(argc, argv, "seconds", 5) * 1e9);
    while ((now = now_ns()) < to) {
        struct pollfd fd = {.fd = typing.readers.epoll, .events = POLLIN};

        if (!first_at && now >= from) {
            first_at = now;
            first = typing.deliveries;
            first_sent = typing.sent;
        }
        for (due = (uint64_t)((double)(now - begin) / 1e9 * rate); typing.sent < due;)
            type(&typing);
        readers_read(&typing.readers);
        poll(&fd, 1, 1);
    }
    seconds = (double)(now - first_at) / NS_PER_S;
    result_add(&result, "deliveries_per_s", (double)(typing.deliveries - first) / seconds);
    result_add(&result, "typings_per_s", (double)(typing.sent - first_sent) / seconds);
    result_add(&result, "told", (double)(typing.deliveries - first) / (double)(typing.sent - first_sent));
    result_print(&result);
    return 0;
}
