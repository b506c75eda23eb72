/*
 * What the load programs of this folder share: clocks, distributions, options, the message they send, and a line of
 * JSON at the end for tests/bench/run. A load program gives up with a sentence on stderr as soon as anything is not as
 * it should be: a figure measured beside an error is worth nothing.
 */
#ifndef ROOMD_BENCH_LOAD_H
#define ROOMD_BENCH_LOAD_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memmem, ppoll */
#endif

#include "room/base/buf.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define NS_PER_MS 1000000
#define NS_PER_S 1000000000LL

static inline _Noreturn void give_up(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, why ? why : "");
    exit(1);
}

static inline int64_t now_ns(void)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * NS_PER_S + at.tv_nsec;
}

/* CPU time of this process so far. */
static inline double own_cpu_s(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* --------------------------------------------------------------------------------------------------------- options */

/* The word behind --name, else `otherwise`. */
static inline const char *option(int argc, char **argv, const char *name, const char *otherwise)
{
    for (int i = 1; i + 1 < argc; i++)
        if (!strncmp(argv[i], "--", 2) && !strcmp(argv[i] + 2, name))
            return argv[i + 1];
    return otherwise;
}

static inline double option_number(int argc, char **argv, const char *name, double otherwise)
{
    const char *text = option(argc, argv, name, NULL);
    char *end;
    double value = text ? strtod(text, &end) : otherwise;

    if (text && (end == text || *end))
        give_up(name, "not a number");
    return value;
}

/* --------------------------------------------------------------------------------------------------- distributions */

/*
 * How values in nanoseconds are spread, in constant memory: 128 steps for each power of two, so a percentile is exact
 * to 0.8 %. Adding costs a few nanoseconds, whatever their number.
 */
enum { SPREAD_STEPS = 128, SPREAD_POWERS = 40 };
struct spread {
    uint64_t count, steps[SPREAD_POWERS * SPREAD_STEPS];
    int64_t most;
};

static inline size_t spread_step(uint64_t value)
{
    int power;

    if (value < SPREAD_STEPS)
        return value;
    power = 63 - __builtin_clzll(value) - 7; /* value >> power lies in 128..255 */
    if (power >= SPREAD_POWERS - 1)
        return SPREAD_POWERS * SPREAD_STEPS - 1;
    return (size_t)(power + 1) * SPREAD_STEPS + (size_t)((value >> power) - SPREAD_STEPS);
}

static inline void spread_add(struct spread *spread, int64_t value)
{
    value = value < 0 ? 0 : value;
    spread->count++;
    spread->steps[spread_step((uint64_t)value)]++;
    spread->most = value > spread->most ? value : spread->most;
}

/* Milliseconds below which the share `share` lies; -1 when there is nothing. */
static inline double spread_ms(const struct spread *spread, double share)
{
    uint64_t wanted = (uint64_t)ceil(share * (double)spread->count), seen = 0;

    if (!spread->count)
        return -1;
    for (size_t i = 0; i < countof(spread->steps); i++) {
        seen += spread->steps[i];
        if (seen >= wanted && seen) {
            size_t power = i / SPREAD_STEPS, step = i % SPREAD_STEPS;
            double low = power ? ldexp((double)(SPREAD_STEPS + step), (int)power - 1) : (double)step;

            return fmin(low, (double)spread->most) / NS_PER_MS;
        }
    }
    return (double)spread->most / NS_PER_MS;
}

/* ---------------------------------------------------------------------------------------------------------- result */

/* {"name":1.5,…} on one line of stdout. */
struct result {
    struct buf json;
};

static inline void result_add(struct result *result, const char *name, double value)
{
    buf_printf(&result->json, "%s\"%s\":%.6g", result->json.n ? "," : "{", name, value);
}

static inline void result_add_spread(struct result *result, const char *name, const struct spread *spread)
{
    static const struct {
        const char *word;
        double share;
    } points[] = {{"p50", 0.5}, {"p99", 0.99}, {"max", 1}};
    char full[64];

    for (size_t i = 0; i < countof(points); i++) {
        snprintf(full, sizeof full, "%s_%s_ms", name, points[i].word);
        result_add(result, full, spread_ms(spread, points[i].share));
    }
}

static inline void result_print(struct result *result)
{
    printf("%.*s}\n", (int)result->json.n, result->json.p);
    fflush(stdout);
    buf_clear(&result->json);
}

/* ---------------------------------------------------------------------------------------------------------- pacing */

/*
 * When messages are due. With a rate the times are fixed in advance (an open loop), and latency counts from them: a
 * stall of ours or of the broker is charged to every message it delayed, instead of hiding those that were not sent.
 */
struct pace {
    int64_t start;
    double gap_ns; /* 0: as fast as the window lets */
};

static inline struct pace pace_of(double rate)
{
    return (struct pace){.start = now_ns(), .gap_ns = rate > 0 ? 1e9 / rate : 0};
}

static inline int64_t pace_due(const struct pace *pace, uint64_t number, int64_t now)
{
    return pace->gap_ns > 0 ? pace->start + (int64_t)((double)number * pace->gap_ns) : now;
}

/* ----------------------------------------------------------------------------------------------------- the message */

/*
 * A text of 128 bytes that begins with its own number and the time it was meant to be sent: ~<16 hex>~<8 hex>~xxx…
 * A reader finds it behind "content":"~ whatever else the event holds.
 */
enum { TEXT_BYTES = 128 };
#define MARKER "\"content\":\"~"

static inline void put_hex(char *at, uint64_t value, int digits)
{
    for (int i = digits - 1; i >= 0; i--, value >>= 4)
        at[i] = "0123456789abcdef"[value & 15];
}

static inline uint64_t read_hex(const char *at, int digits)
{
    uint64_t value = 0;

    for (int i = 0; i < digits; i++)
        value = value << 4 | (uint64_t)(at[i] <= '9' ? at[i] - '0' : at[i] - 'a' + 10);
    return value;
}

static inline void text_write(char text[TEXT_BYTES], int64_t meant_at, uint32_t number)
{
    memset(text, 'x', TEXT_BYTES);
    text[0] = text[17] = text[26] = '~';
    put_hex(text + 1, (uint64_t)meant_at, 16);
    put_hex(text + 18, number, 8);
}

/* The body a gateway publishes to one room, written once; each message changes its number and time in place. */
struct body {
    struct buf json;
    size_t key_bytes; /* of the shard's word, with which the room id and so `key` begins */
    size_t client_number_at, text_at;
    const char *key;
};

/* `run` makes the client's ids new in each run. */
static inline void body_init(struct body *body, const char *room_id, const char *run)
{
    char text[TEXT_BYTES];

    text_write(text, 0, 0);
    *body = (struct body){.key = room_id, .key_bytes = strcspn(room_id, ".")};
    buf_printf(&body->json, "{\"room_id\":\"%s\",\"sender\":\"bench\",\"kind\":\"text\",\"client_msg_id\":\"%s-",
        room_id, run);
    body->client_number_at = body->json.n;
    buf_printf(&body->json, "00000000\",\"content\":\"");
    body->text_at = body->json.n;
    buf_printf(&body->json, "%.*s\"}", TEXT_BYTES, text);
}

static inline struct str body_with(struct body *body, int64_t meant_at, uint32_t number)
{
    put_hex(body->json.p + body->client_number_at, number, 8);
    put_hex(body->json.p + body->text_at + 1, (uint64_t)meant_at, 16);
    put_hex(body->json.p + body->text_at + 18, number, 8);
    return buf_str(&body->json);
}

static inline bool event_marker(const char *event, size_t n, int64_t *meant_at, uint32_t *number)
{
    const char *at = memmem(event, n, MARKER, sizeof MARKER - 1);

    if (!at || (size_t)(event + n - at) < sizeof MARKER - 1 + 26)
        return false;
    at += sizeof MARKER - 1;
    *meant_at = (int64_t)read_hex(at, 16);
    *number = (uint32_t)read_hex(at + 17, 8);
    return true;
}

/* The plan tests/bench/run writes: a line `room_id[,room_id…] ticket` for each ticket; without tickets
 * just room ids. */
struct plan_line {
    char *rooms, *ticket;
};
struct plan {
    struct plan_line *lines;
    size_t count;
};

static inline struct plan plan_read(const char *path)
{
    struct plan plan = {0};
    FILE *file = fopen(path, "re");
    char *line = NULL, *ticket;
    size_t size = 0;

    if (!file)
        give_up(path, strerror(errno));
    while (getline(&line, &size, file) > 0) {
        line[strcspn(line, "\n")] = '\0';
        ticket = strchr(line, ' ');
        if (ticket)
            *ticket++ = '\0';
        plan.lines = xrealloc(plan.lines, (plan.count + 1) * sizeof *plan.lines);
        plan.lines[plan.count++] = (struct plan_line){xstrdup(line), ticket ? xstrdup(ticket) : NULL};
    }
    free(line);
    fclose(file);
    if (!plan.count)
        give_up(path, "an empty plan");
    return plan;
}

#endif
