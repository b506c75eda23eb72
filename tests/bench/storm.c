/*
 * A storm: all streams of an instance that dies come back at another one with their cursors, as its clients would: at
 * once after a random part of --backoff-ms, and when they are refused, when they were told to. Stream i takes the line
 * i of the plan ("<room id> <ticket>"), modulo their number.
 *
 *   open at --port   "{"open_s":…}" on stdout; then whoever runs this kills that instance
 *   --port-2         where they come back; over when all are live and have read everything up to seq --expect
 *   --plan FILE --streams N --opening 500 --backoff-ms 500 --deadline-s 60
 */
#include "load_stream.h"

#include <poll.h>
#include <stdlib.h>

struct coming {
    struct reader reader;
    uint64_t epoch, seq;
    int64_t due; /* comes back then; 0: it has */
    char *way;   /* path and ticket, as load_stream.h wants them */
};

struct storm {
    struct readers readers;
    struct plan plan;
    struct coming *streams;
    uint32_t count, waiting, done;
    uint64_t expect, refused, repeated, holes;
    int64_t backoff_ns, died_at;
};

static uint64_t number_after(const char *json, size_t n, const char *name)
{
    const char *at = memmem(json, n, name, strlen(name));

    return at ? strtoull(at + strlen(name), NULL, 10) : 0;
}

static void on_event(void *owner, struct reader *reader, const char *json, size_t n)
{
    static const char message[] = "{\"type\":\"message\"";
    struct storm *storm = owner;
    struct coming *stream = (struct coming *)((char *)reader - offsetof(struct coming, reader));
    uint64_t seq;

    if (n < sizeof message || memcmp(json, message, sizeof message - 1) != 0)
        return;
    seq = number_after(json, n, "\"seq\":");
    storm->repeated += seq <= stream->seq;
    storm->holes += seq > stream->seq + 1;
    stream->seq = seq;
    stream->epoch = number_after(json, n, "\"epoch\":");
    storm->done += seq == storm->expect;
}

static void on_lost(void *owner, struct reader *reader, uint32_t retry_after_ms)
{
    struct storm *storm = owner;
    struct coming *stream = (struct coming *)((char *)reader - offsetof(struct coming, reader));
    int64_t now = now_ns();

    if (!storm->died_at)
        storm->died_at = now;
    storm->refused += retry_after_ms > 0;
    stream->due =
        now + (retry_after_ms ? retry_after_ms * (NS_PER_S / 1000) : (int64_t)(drand48() * (double)storm->backoff_ns));
    storm->waiting++;
}

static void come(struct storm *storm, struct coming *stream, bool first)
{
    const struct plan_line *line = &storm->plan.lines[stream->reader.room];
    struct buf way = {0};

    if (first)
        buf_printf(&way, "/v1/stream/ws?after=%s@0:0 %s", line->rooms, line->ticket);
    else
        buf_printf(&way, "/v1/stream/ws?after=%s@%lu:%lu %s", line->rooms, stream->epoch, stream->seq, line->ticket);
    buf_char(&way, '\0');
    free(stream->way);
    stream->way = way.p;
    stream->due = 0;
    reader_open(&storm->readers, &stream->reader, stream->way);
}

static void look(struct storm *storm, int timeout_ms)
{
    struct pollfd fd = {.fd = storm->readers.epoll, .events = POLLIN};

    poll(&fd, 1, timeout_ms);
    readers_read(&storm->readers);
}

static double open_all(struct storm *storm, uint32_t opening)
{
    int64_t begin = now_ns();
    uint32_t next = 0;

    while (storm->readers.live < storm->count) {
        while (next < storm->count && storm->readers.opened - storm->readers.live < opening)
            come(storm, &storm->streams[next++], true);
        if (now_ns() > begin + 60 * NS_PER_S)
            give_up("streams", "not open within 60 s");
        look(storm, 100);
    }
    return (double)(now_ns() - begin) / NS_PER_S;
}

static void come_back(struct storm *storm, int64_t deadline_ns)
{
    int64_t swept_at = 0;

    while (!storm->died_at || storm->readers.live < storm->count || storm->done < storm->count) {
        int64_t now = now_ns();

        if (storm->died_at && now > storm->died_at + deadline_ns) {
            fprintf(
                stderr, "live %u, up to the last message %u, of %u\n", storm->readers.live, storm->done, storm->count);
            give_up("streams", "not all back in time");
        }
        if (now > swept_at + NS_PER_S / 500 && storm->waiting) {
            swept_at = now;
            for (uint32_t i = 0; i < storm->count; i++)
                if (storm->streams[i].due && storm->streams[i].due <= now) {
                    storm->waiting--;
                    come(storm, &storm->streams[i], false);
                }
        }
        look(storm, 1);
    }
}

int main(int argc, char **argv)
{
    static struct storm storm;
    struct result result = {0};
    double open_s;

    storm.plan = plan_read(option(argc, argv, "plan", ""));
    storm.count = (uint32_t)option_number(argc, argv, "streams", 1000);
    storm.expect = (uint64_t)option_number(argc, argv, "expect", 2);
    storm.backoff_ns = (int64_t)(option_number(argc, argv, "backoff-ms", 500) * 1e6);
    storm.streams = xcalloc(storm.count, sizeof *storm.streams);
    for (uint32_t i = 0; i < storm.count; i++)
        storm.streams[i].reader.room = i % (uint32_t)storm.plan.count;
    readers_init(&storm.readers, "127.0.0.1", (int)option_number(argc, argv, "port", 7400), false);
    storm.readers.event = on_event;
    storm.readers.lost = on_lost;
    storm.readers.owner = &storm;
    open_s = open_all(&storm, (uint32_t)option_number(argc, argv, "opening", 500));
    printf("{\"open_s\":%.3f}\n", open_s);
    fflush(stdout);
    storm.readers.address.sin_port = htons((uint16_t)option_number(argc, argv, "port-2", 7401));
    come_back(&storm, (int64_t)(option_number(argc, argv, "deadline-s", 60) * 1e9));
    result_add(&result, "live_s", (double)(now_ns() - storm.died_at) / NS_PER_S);
    result_add(&result, "refused", (double)storm.refused);
    result_add(&result, "repeated", (double)storm.repeated);
    result_add(&result, "holes", (double)storm.holes);
    result_print(&result);
    return 0;
}
