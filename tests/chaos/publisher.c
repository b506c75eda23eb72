/*
 * A publisher that keeps its promises: numbered messages over many rooms, confirmed and mandatory, a window of them in
 * flight. One that was not confirmed is published again with the same client_msg_id until it is, and nothing new leaves
 * before: so the order of each room is the order of the numbers.
 *
 *   chaos_publisher AMQP_URL SENDER COUNT WINDOW ROOMS_FILE [RATE]
 *
 * ROOMS_FILE holds a room id a line. RATE: at most so many new messages a second; 0 or none = as fast as confirms come.
 * Prints the number of confirmed messages once a second, and at the end one line of JSON. Ends with 0 when all are
 * confirmed. SIGTERM: no new ones. Message n goes to room n modulo rooms, with client_msg_id "<sender>-<n>"; sent_at is
 * when it was first sent, and its text names the room (checker.py knows the form).
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "room/base/amqp.h"
#include "room/base/clock.h"
#include "room/name.h"

#define ROOMS_MAX 4096

struct sending {
    struct amqp_publish publish;
    struct list link; /* ->idle, ->failed (by number), or on its way */
    uint64_t n, sent_at;
};

static struct {
    uv_loop_t *loop;
    struct amqp_link *link;
    const char *sender;
    char *rooms[ROOMS_MAX];
    size_t room_count;
    uint64_t count, next, confirmed, repeated, in_flight, rate;
    struct list idle, failed;
    struct buf body;
    uv_prepare_t turn;
    uv_timer_t tick;
    uv_signal_t stop;
    uint64_t started_ms;
} p;

static void on_done(struct amqp_publish *publish, enum err err);

static void keep_failed(struct sending *sending)
{
    struct list *at = p.failed.prev;

    while (at != &p.failed && list_entry(at, struct sending, link)->n > sending->n)
        at = at->prev;
    list_insert_before(at->next, &sending->link);
}

static void send_one(struct sending *sending)
{
    const char *room = p.rooms[sending->n % p.room_count];
    struct str shard;

    if (!room_id_read(str_of(room), &shard))
        abort();
    buf_reset(&p.body);
    buf_printf(&p.body,
        "{\"room_id\":\"%s\",\"sender\":\"%s\",\"kind\":\"text\",\"content\":{\"body\":\"message %" PRIu64
        " of %s in %s\"},\"client_msg_id\":\"%s-%" PRIu64 "\",\"sent_at\":%" PRIu64 "}",
        room, p.sender, sending->n, p.sender, room, p.sender, sending->n, sending->sent_at);
    sending->publish.done = on_done;
    p.in_flight++;
    amqp_publish(p.link, &sending->publish,
        &(struct amqp_message){.exchange = STR("roomd.room"),
            .routing_key = shard,
            .content_type = STR("application/json"),
            .body = buf_str(&p.body)});
}

static void on_done(struct amqp_publish *publish, enum err err)
{
    struct sending *sending = container_of(publish, struct sending, publish);

    p.in_flight--;
    if (err) {
        p.repeated++;
        keep_failed(sending);
        return;
    }
    p.confirmed++;
    list_push_back(&p.idle, &sending->link);
}

static bool due(void)
{
    return !p.rate || p.next < (clock_mono_ms() - p.started_ms) * p.rate / 1000;
}

static void on_turn(uv_prepare_t *turn)
{
    struct list *at;

    (void)turn;
    if (p.confirmed == p.count) {
        uv_stop(p.loop);
        return;
    }
    if (!amqp_link_up(p.link) || amqp_link_blocked(p.link))
        return;
    if (!list_empty(&p.failed)) { /* all that is on its way comes back first: then again, in order */
        while (!p.in_flight && (at = list_pop_front(&p.failed))) {
            struct sending *sending = list_entry(at, struct sending, link);

            send_one(sending);
            if (p.in_flight == 1 && !list_empty(&p.failed))
                break; /* one first: it shows whether the broker takes messages again */
        }
        return;
    }
    while (p.next < p.count && due() && (at = list_pop_front(&p.idle))) {
        struct sending *sending = list_entry(at, struct sending, link);

        sending->n = p.next++;
        sending->sent_at = clock_unix_ms();
        send_one(sending);
    }
}

static void on_tick(uv_timer_t *timer)
{
    static uint64_t told_ms;

    (void)timer;
    if (clock_mono_ms() - told_ms < 1000)
        return;
    told_ms = clock_mono_ms();
    printf("%" PRIu64 "\n", p.confirmed);
    fflush(stdout);
}

static void on_stop(uv_signal_t *handle, int number)
{
    (void)handle;
    (void)number;
    p.count = p.next;
}

static bool read_rooms(const char *path)
{
    FILE *file = fopen(path, "r");
    char line[64];

    if (!file)
        return false;
    while (p.room_count < ROOMS_MAX && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\r\n")] = '\0';
        if (*line)
            p.rooms[p.room_count++] = xstrdup(line);
    }
    fclose(file);
    return p.room_count > 0;
}

int main(int argc, char **argv)
{
    size_t window = argc == 6 || argc == 7 ? strtoull(argv[4], NULL, 10) : 0;

    if (!window || !read_rooms(argv[5])) {
        fputs("chaos_publisher AMQP_URL SENDER COUNT WINDOW ROOMS_FILE [RATE]\n", stderr);
        return 2;
    }
    p.sender = argv[2];
    p.count = strtoull(argv[3], NULL, 10);
    p.rate = argc == 7 ? strtoull(argv[6], NULL, 10) : 0;
    p.loop = uv_default_loop();
    list_init(&p.idle);
    list_init(&p.failed);
    for (size_t i = 0; i < window; i++) {
        struct sending *sending = xcalloc(1, sizeof *sending);

        list_push_back(&p.idle, &sending->link);
    }
    if (amqp_link_open(&p.link, p.loop,
            &(struct amqp_settings){.name = "publish",
                .urls = argv[1],
                .ca_file = "",
                .heartbeat_ms = 5000,
                .publish_timeout_ms = 10000,
                .max_pending = (int64_t)window + 1,
                .max_pending_bytes = 64 << 20}))
        return 2;
    uv_prepare_init(p.loop, &p.turn);
    uv_prepare_start(&p.turn, on_turn);
    uv_signal_init(p.loop, &p.stop);
    uv_signal_start(&p.stop, on_stop, SIGTERM);
    uv_timer_init(p.loop, &p.tick);
    uv_timer_start(&p.tick, on_tick, 10, 10); /* also wakes the loop when messages are due */
    p.started_ms = clock_mono_ms();
    uv_run(p.loop, UV_RUN_DEFAULT);
    printf("{\"confirmed\":%" PRIu64 ",\"repeated\":%" PRIu64 ",\"ms\":%" PRIu64 "}\n", p.confirmed, p.repeated,
        clock_mono_ms() - p.started_ms);
    return 0;
}
