/*
 * Numbered messages through the adapter library, as a gateway sends them; says how each ended.
 *
 *   chaos_adapter_sender BROKERS SENDER COUNT WINDOW ROOMS_FILE RESULTS_FILE [SEND_MS [SPOOL_FILE [RATE]]]
 *
 * ROOMS_FILE holds a room id a line; message n goes to room n modulo rooms, with client_msg_id "<sender>-<n>". WINDOW:
 * so many without an answer at once. RATE: at most so many a second, also after nothing could be sent for a while.
 * RESULTS_FILE gets a line "<n> <code>" for each, in the order of the answers. COUNT 0: nothing is sent, the spool is
 * replayed until it is empty. Prints the number of answers now and then, and at the end one line of JSON. Ends with 0
 * when every message was answered.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "gateway-adapter/roomd_adapter.h"

#define ROOMS_MAX 4096
#define WINDOW_MAX 8192

struct slot {
    struct roomd_send send;
    uint64_t n;
    struct slot *next_idle;
};

static struct {
    struct roomd_client *client;
    const char *sender;
    char *rooms[ROOMS_MAX];
    size_t room_count;
    uint64_t count, next, paced_next, answers, by_code[ROOMD_OTHER + 1], settled, rate;
    int64_t started_ms, paced_ms;
    FILE *results;
    struct slot slots[WINDOW_MAX], *idle;
} p;

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void on_done(struct roomd_send *send)
{
    struct slot *slot = send->arg;

    fprintf(p.results, "%" PRIu64 " %s\n", slot->n, roomd_code_name(send->code));
    p.by_code[send->code]++;
    p.answers++;
    slot->next_idle = p.idle;
    p.idle = slot;
}

static void on_spool_settled(void *arg, const char *message_id, enum roomd_code code)
{
    (void)arg;
    (void)message_id;
    p.settled += code == ROOMD_OK;
}

/* What could not be sent in time is not made good all at once: only a tenth of a second's worth is. */
static bool is_due(void)
{
    int64_t now = now_ms();
    uint64_t due = p.paced_next + (uint64_t)(now - p.paced_ms) * p.rate / 1000 + 1;

    if (!p.rate)
        return true;
    if (p.next + p.rate / 10 + 1 < due) {
        p.paced_ms = now;
        p.paced_next = p.next;
        due = p.next + 1;
    }
    return p.next < due;
}

static void send_more(void)
{
    while (p.idle && p.next < p.count && is_due()) {
        struct slot *slot = p.idle;
        char id[65], text[128];

        p.idle = slot->next_idle;
        slot->n = p.next++;
        slot->send = (struct roomd_send){.done = on_done, .arg = slot};
        snprintf(id, sizeof(id), "%s-%" PRIu64, p.sender, slot->n);
        snprintf(text, sizeof(text), "message %" PRIu64 " through whatever happens", slot->n);
        roomd_send(p.client, &slot->send,
            &(struct roomd_message){
                .room_id = p.rooms[slot->n % p.room_count], .sender = p.sender, .text = text, .client_msg_id = id});
    }
}

static bool rooms_read(const char *file)
{
    FILE *in = fopen(file, "r");
    char line[128];

    if (!in)
        return false;
    while (p.room_count < ROOMS_MAX && fgets(line, sizeof(line), in)) {
        line[strcspn(line, "\n")] = '\0';
        p.rooms[p.room_count++] = strdup(line);
    }
    fclose(in);
    return p.room_count > 0;
}

static void run(void)
{
    int64_t said = p.started_ms = p.paced_ms = now_ms();

    while (p.answers < p.count || roomd_client_counters(p.client).spool_bytes > 0) {
        send_more();
        roomd_client_wait(p.client, 10);
        if (now_ms() - said >= 50) {
            printf("%" PRIu64 "\n", p.answers);
            fflush(stdout);
            fflush(p.results);
            said = now_ms();
        }
    }
}

static void report(void)
{
    struct roomd_counters counters = roomd_client_counters(p.client);

    printf("{\"answers\": %" PRIu64 ", \"confirmed\": %" PRIu64 ", \"spooled\": %" PRIu64 ", \"unavailable\": %" PRIu64
           ", \"timeout\": %" PRIu64 ", \"nacked\": %" PRIu64 ", \"resent\": %" PRIu64 ", \"connects\": %" PRIu64
           ", \"replayed\": %" PRIu64 ", \"settled\": %" PRIu64 ", \"spool_bytes\": %" PRIu64 ", \"damaged\": %" PRIu64
           ", \"ms\": %" PRId64 "}\n",
        p.answers, p.by_code[ROOMD_OK], p.by_code[ROOMD_SPOOLED], p.by_code[ROOMD_UNAVAILABLE],
        p.by_code[ROOMD_TIMEOUT], counters.nacked_total, counters.resent_total, counters.connects_total,
        counters.replayed_total, p.settled, counters.spool_bytes, counters.spool_damaged_total,
        now_ms() - p.started_ms);
}

int main(int argc, char **argv)
{
    struct roomd_settings settings = {.spool_settled = on_spool_settled};
    uint64_t window;
    const char *why;

    if (argc < 7 || !rooms_read(argv[5]) || !(p.results = fopen(argv[6], "w"))) {
        fprintf(stderr, "usage: see the top of tests/chaos/adapter_sender.c\n");
        return 2;
    }
    p.sender = argv[2];
    p.count = strtoull(argv[3], NULL, 10);
    window = strtoull(argv[4], NULL, 10);
    settings.broker_urls = argv[1];
    settings.send_ms = argc > 7 ? strtoll(argv[7], NULL, 10) : 0;
    settings.spool_file = argc > 8 && *argv[8] ? argv[8] : NULL;
    p.rate = argc > 9 ? strtoull(argv[9], NULL, 10) : 0;
    if (roomd_client_open(&p.client, &settings, &why)) {
        fprintf(stderr, "%s\n", why);
        return 2;
    }
    for (size_t i = window < WINDOW_MAX ? window : WINDOW_MAX; i > 0; i--) {
        p.slots[i - 1].next_idle = p.idle;
        p.idle = &p.slots[i - 1];
    }
    run();
    report();
    roomd_client_close(p.client);
    fclose(p.results);
    for (size_t i = 0; i < p.room_count; i++)
        free(p.rooms[i]);
    return p.answers == p.count ? 0 : 1;
}
