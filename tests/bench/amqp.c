/*
 * What a message costs us on the way to the broker (with confirm) and from it (with ack): CPU of this process alone.
 * Needs a broker in ROOMD_TEST_AMQP_URL. Arguments: messages (60000), bytes of a body (128), window (500).
 */
#include "room/base/amqp.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

struct bench {
    uv_loop_t loop;
    struct amqp_link *link;
    struct amqp_consumer *consumer;
    char queue[64];
    char *body;
    size_t body_bytes;
    int total, window, published, confirmed, failed, delivered;
    uint64_t last_tag;
    uv_check_t acks;
    bool ready, told;
};

struct bench_publish {
    struct amqp_publish publish;
    struct bench *bench;
};

static double cpu_us(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e6 +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

static void publish_next(struct bench *bench, struct bench_publish *publish)
{
    struct amqp_message message = {.routing_key = str_of(bench->queue),
        .content_type = STR("application/json"),
        .message_id = STR("01J00000000000000000000000"),
        .body = {bench->body, bench->body_bytes}};

    bench->published++;
    publish->bench = bench;
    amqp_publish(bench->link, &publish->publish, &message);
}

static void on_confirmed(struct amqp_publish *done, enum err err)
{
    struct bench_publish *publish = container_of(done, struct bench_publish, publish);
    struct bench *bench = publish->bench;

    bench->failed += err != ERR_OK;
    bench->confirmed++;
    if (bench->published < bench->total)
        publish_next(bench, publish);
}

static void on_delivered(void *owner, const struct amqp_delivery *delivery)
{
    struct bench *bench = owner;

    bench->delivered++;
    bench->last_tag = delivery->tag;
}

static void on_lost(void *owner, enum err err, struct str text)
{
    (void)owner;
    fprintf(stderr, "consumer lost: %s %.*s\n", err_code(err), STR_ARG(text));
    exit(1);
}

static void on_acks(uv_check_t *check)
{
    struct bench *bench = container_of(check, struct bench, acks);

    if (bench->last_tag && bench->consumer)
        amqp_ack(bench->consumer, bench->last_tag, true);
    bench->last_tag = 0;
}

static void on_declared(void *arg, enum err err, struct str text)
{
    struct bench *bench = arg;

    if (err)
        fprintf(stderr, "declare: %s %.*s\n", err_code(err), STR_ARG(text));
    bench->ready = true;
}

static void report(const char *what, int n, double cpu, uint64_t began_ns)
{
    double seconds = (double)(uv_hrtime() - began_ns) / 1e9;

    printf("%-8s %d messages: %.0f/s, %.2f us of our CPU each\n", what, n, n / seconds, cpu / n);
}

int main(int argc, char **argv)
{
    static const struct amqp_consumer_events events = {.delivered = on_delivered, .lost = on_lost};
    struct amqp_settings settings = {.name = "bench",
        .urls = getenv("ROOMD_TEST_AMQP_URL"),
        .heartbeat_ms = 10000,
        .publish_timeout_ms = 30000,
        .max_pending = 100000,
        .max_pending_bytes = 1 << 28};
    struct bench bench = {.total = argc > 1 ? atoi(argv[1]) : 60000, .window = argc > 3 ? atoi(argv[3]) : 500};
    struct amqp_queue_options options = {
        .durable = true, .quorum = getenv("BENCH_QUORUM") != NULL, .auto_delete = getenv("BENCH_QUORUM") == NULL};
    struct bench_publish *window;
    uint64_t began;
    double cpu;

    if (!settings.urls) {
        fprintf(stderr, "ROOMD_TEST_AMQP_URL is not set\n");
        return 0;
    }
    uv_loop_init(&bench.loop);
    bench.body_bytes = argc > 2 ? (size_t)atoi(argv[2]) : 128;
    bench.body = xcalloc(1, bench.body_bytes + 1);
    snprintf(bench.queue, sizeof(bench.queue), "roomd.bench.%d", (int)getpid());
    if (amqp_link_open(&bench.link, &bench.loop, &settings))
        return 1;
    while (!amqp_link_up(bench.link))
        uv_run(&bench.loop, UV_RUN_ONCE);
    amqp_declare_queue(bench.link, bench.queue, &options, on_declared, &bench);
    while (!bench.ready)
        uv_run(&bench.loop, UV_RUN_ONCE);

    window = xcalloc((size_t)bench.window, sizeof(*window));
    cpu = cpu_us();
    began = uv_hrtime();
    for (int i = 0; i < bench.window && bench.published < bench.total; i++) {
        window[i].publish.done = on_confirmed;
        publish_next(&bench, &window[i]);
    }
    while (bench.confirmed < bench.total)
        uv_run(&bench.loop, UV_RUN_ONCE);
    report("publish", bench.total, cpu_us() - cpu, began);
    printf("failed %d\n", bench.failed);

    uv_check_init(&bench.loop, &bench.acks);
    uv_check_start(&bench.acks, on_acks);
    cpu = cpu_us();
    began = uv_hrtime();
    bench.consumer = amqp_consume(bench.link, bench.queue, 2000, false, &events, &bench);
    while (bench.delivered < bench.total - bench.failed)
        uv_run(&bench.loop, UV_RUN_ONCE);
    report("drain", bench.delivered, cpu_us() - cpu, began);

    uv_close((uv_handle_t *)&bench.acks, NULL);
    amqp_link_close(bench.link);
    uv_run(&bench.loop, UV_RUN_DEFAULT);
    free(window);
    free(bench.body);
    return uv_loop_close(&bench.loop);
}
