/*
 * Exchanges, queues and bindings, declared by every instance whenever the publishing link comes up: who is first makes
 * them, the others find them. What exists with other arguments is refused by the broker; then this instance is not
 * ready and says why.
 */
#include "internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "room/base/log.h"

/* Also how soon shards that `roomd migrate` added are found. */
#define LOOK_EVERY_MS 1000

struct topology {
    struct history *history;
    uv_timer_t *timer;
    struct step *made; /* of this round */
    size_t made_count;
    size_t steps;  /* without an answer */
    size_t shards; /* declared, or being declared */
    bool complete, failed;
    char missing[320];
};

struct step {
    struct topology *topology;
    const char *what; /* "exchange", "queue", "binding" */
    char name[40];
};

static void declare(struct topology *topology);
static void on_step(void *arg, enum err err, struct str text);

static void on_timer(uv_timer_t *timer)
{
    struct topology *topology = timer->data;
    struct history *history = topology->history;

    if (!history->cluster || !history->publish || topology->steps || !amqp_link_up(history->publish))
        return;
    if (!topology->complete || topology->shards != cluster_shard_count(history->cluster))
        declare(topology);
}

struct topology *topology_open(struct history *history)
{
    struct topology *topology = xcalloc(1, sizeof *topology);

    topology->history = history;
    topology->timer = xcalloc(1, sizeof *topology->timer);
    uv_timer_init(history->loop, topology->timer);
    topology->timer->data = topology;
    uv_timer_start(topology->timer, on_timer, LOOK_EVERY_MS, LOOK_EVERY_MS);
    snprintf(topology->missing, sizeof topology->missing, "the broker's queues are not declared yet");
    return topology;
}

void topology_link_up(struct topology *topology)
{
    topology->complete = false;
    if (!topology->steps)
        declare(topology);
}

void topology_repair(struct topology *topology)
{
    if (!topology->complete || !amqp_link_up(topology->history->publish))
        return; /* on its way, or comes with the link */
    log_warn("topology.incomplete", "hint=\"a queue of ours is gone; all are declared again\"");
    topology_link_up(topology);
}

static struct step *step(struct topology *topology, const char *what, const char *name)
{
    struct step *made = &topology->made[topology->made_count++];

    made->topology = topology;
    made->what = what;
    snprintf(made->name, sizeof made->name, "%s", name);
    topology->steps++;
    return made;
}

static void declare_shard(struct topology *topology, const char *shard)
{
    struct amqp_link *link = topology->history->publish;
    struct amqp_queue_options options = {
        .quorum = true,
        .durable = true,
        .single_active_consumer = true,
        .reject_publish = true,
        .max_length_bytes = topology->history->config->queue_max_length_bytes,
    };
    char queue[32];

    snprintf(queue, sizeof queue, "roomd.shard.%s", shard);
    amqp_declare_queue(link, queue, &options, on_step, step(topology, "queue", queue));
    amqp_bind_queue(link, queue, "roomd.room", shard, on_step, step(topology, "binding", queue));
    amqp_bind_queue(link, queue, "roomd.op", shard, on_step, step(topology, "binding", queue));
}

static void declare(struct topology *topology)
{
    static const struct {
        const char *name;
        bool durable;
    } exchanges[] = {{"roomd.room", true}, {"roomd.op", true}, {"roomd.dead", true}, {FEED_EXCHANGE, false}};
    struct amqp_queue_options dead = {.quorum = true, .durable = true};
    struct history *history = topology->history;
    const struct cluster_shard *shards;
    size_t count;

    if (!history->cluster)
        return;
    count = cluster_shard_count(history->cluster);
    if (!count) {
        snprintf(topology->missing, sizeof topology->missing,
            "the shards are not known: the database was not read yet, or `roomd migrate` did not run");
        return;
    }
    shards = cluster_shards(history->cluster);
    topology->failed = false;
    topology->shards = count;
    topology->made = xrealloc(topology->made, (countof(exchanges) + 2 + 3 * count) * sizeof *topology->made);
    topology->made_count = 0;
    for (size_t i = 0; i < countof(exchanges); i++)
        amqp_declare_exchange(history->publish, exchanges[i].name, "direct", exchanges[i].durable, on_step,
            step(topology, "exchange", exchanges[i].name));
    amqp_declare_queue(history->publish, "roomd.dead", &dead, on_step, step(topology, "queue", "roomd.dead"));
    amqp_bind_queue(
        history->publish, "roomd.dead", "roomd.dead", "dead", on_step, step(topology, "binding", "roomd.dead"));
    for (size_t i = 0; i < count; i++)
        declare_shard(topology, shards[i].name);
}

static void finish(struct topology *topology)
{
    if (topology->failed)
        return; /* the timer tries again */
    topology->complete = true;
    log_info("topology.declared", "shards=%zu", topology->shards);
    history_topology_changed(topology->history);
}

static void on_step(void *arg, enum err err, struct str text)
{
    struct step *done = arg;
    struct topology *topology = done->topology;

    topology->steps--;
    if (err) {
        if (!topology->failed)
            log_error(
                "topology.refused", "%s=%s error=%s text=%s", done->what, done->name, err_code(err), log_quote(text));
        if (!topology->failed || err == ERR_CONFLICT)
            snprintf(topology->missing, sizeof topology->missing, "%s %s: %.*s", done->what, done->name,
                text.n > 200 ? 200 : (int)text.n, text.n ? text.p : "the broker is away");
        topology->failed = true;
    }
    if (!topology->steps)
        finish(topology);
}

const char *topology_missing(const struct topology *topology)
{
    return topology->complete ? NULL : topology->missing;
}

static void free_timer(uv_handle_t *handle)
{
    free(handle);
}

void topology_close(struct topology *topology)
{
    uv_close((uv_handle_t *)topology->timer, free_timer);
    free(topology->made); /* a closed link answers nothing any more */
    free(topology);
}
