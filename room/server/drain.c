#include "drain.h"

#include <assert.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "api.h"
#include "room/base/log.h"

enum {
    CALLS_MS = 5500, /* what was accepted has its own deadline (op_timeout_ms, database_timeout_ms), usually 5 s */
    LOOK_MS = 20,
    HEARD_MS = 100, /* beside a beat: our row is written, the others' poll is answered */
    SHARDS_MS = 10000
};

enum drain_state { DRAIN_RUNNING, DRAIN_SHARDS, DRAIN_STREAMS, DRAIN_CALLS, DRAIN_REST, DRAIN_DONE };
static const char *const state_names[] = {"running", "shards", "streams", "calls", "rest", "done"};

struct drain {
    struct service *service;
    void (*done)(struct service *service);
    enum drain_state state;
    uv_signal_t terminate, interrupt;
    uv_timer_t timer;
    uint64_t calls_until_ms, heard_at_ms;
    int handles_open;
};

/* The steps, in the order they run. */
static void on_signal(uv_signal_t *handle, int number);
static void on_heard(uv_timer_t *timer);
static void on_shards_gone(void *arg);
static void on_streams_gone(void *arg);
static void on_look(uv_timer_t *timer);
static void on_drained(void *arg);

struct drain *drain_listen(struct service *service, void (*done)(struct service *service))
{
    struct drain *drain = xcalloc(1, sizeof *drain);

    drain->service = service;
    drain->done = done;
    uv_signal_init(service->loop, &drain->terminate);
    uv_signal_init(service->loop, &drain->interrupt);
    uv_timer_init(service->loop, &drain->timer);
    drain->terminate.data = drain->interrupt.data = drain->timer.data = drain;
    drain->handles_open = 3;
    uv_signal_start(&drain->terminate, on_signal, SIGTERM);
    uv_signal_start(&drain->interrupt, on_signal, SIGINT);
    return drain;
}

static void on_closed(uv_handle_t *handle)
{
    struct drain *drain = handle->data;

    if (--drain->handles_open == 0)
        free(drain);
}

void drain_close(struct drain *drain)
{
    uv_close((uv_handle_t *)&drain->terminate, on_closed);
    uv_close((uv_handle_t *)&drain->interrupt, on_closed);
    uv_close((uv_handle_t *)&drain->timer, on_closed);
}

static void enter(struct drain *drain, enum drain_state next)
{
    assert(next == drain->state + 1);
    drain->state = next;
    log_info("drain", "step=%s", state_names[next]);
}

/* Somebody who can take our shards, as far as is known. */
static bool others_live(const struct cluster *cluster)
{
    const struct cluster_instance *instances;
    size_t count = cluster_instances(cluster, &instances);

    for (size_t i = 0; i < count; i++)
        if (instances[i].alive && !instances[i].self && !instances[i].draining)
            return true;
    return false;
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct drain *drain = handle->data;
    struct service *service = drain->service;

    if (drain->state != DRAIN_RUNNING) {
        log_warn("drain.cut", "signal=%d step=%s", number, state_names[drain->state]);
        _exit(1);
    }
    log_info("drain.begin", "signal=%d streams=%" PRIu32 " shards=%zu", number, proxy_streams(service->proxy),
        history_shards_ours(service->history));
    service->draining = true;
    cluster_set_draining(service->cluster, true);
    proxy_take_no_more(service->proxy);
    enter(drain, DRAIN_SHARDS);
    drain->heard_at_ms = uv_now(service->loop);
    if (history_shards_ours(service->history))
        drain->heard_at_ms += (uint64_t)service->config->beat_ms + HEARD_MS;
    uv_timer_start(&drain->timer, on_heard, 0, LOOK_MS);
}

/* The others hear with their next beat that we drain, and look at our shards all the time from then on. Until then we
 * serve them: what is given back before would lie there for the rest of that beat. */
static void on_heard(uv_timer_t *timer)
{
    struct drain *drain = timer->data;
    struct service *service = drain->service;
    bool others = others_live(service->cluster);

    if (others && uv_now(service->loop) < drain->heard_at_ms)
        return;
    uv_timer_stop(timer);
    if (others)
        history_hand_over(service->history, SHARDS_MS, on_shards_gone, drain);
    else
        on_shards_gone(drain);
}

static void on_shards_gone(void *arg)
{
    struct drain *drain = arg;

    enter(drain, DRAIN_STREAMS);
    proxy_drain(drain->service->proxy, drain->service->config->drain_ms, on_streams_gone, drain);
}

static void on_streams_gone(void *arg)
{
    struct drain *drain = arg;
    struct service *service = drain->service;

    enter(drain, DRAIN_CALLS);
    service->refusing = true;
    api_end_waits(service->api);
    drain->calls_until_ms = uv_now(service->loop) + CALLS_MS;
    uv_timer_start(&drain->timer, on_look, 0, LOOK_MS);
}

/* Where nobody else lives, open calls are answered while our shards still can: a room change waits for its owner. */
static void on_look(uv_timer_t *timer)
{
    struct drain *drain = timer->data;
    struct service *service = drain->service;

    if (api_open_calls(service->api) && uv_now(service->loop) < drain->calls_until_ms)
        return;
    uv_timer_stop(timer);
    enter(drain, DRAIN_REST);
    history_drain(service->history, SHARDS_MS, on_drained, drain);
}

static void on_drained(void *arg)
{
    struct drain *drain = arg;

    enter(drain, DRAIN_DONE);
    drain->done(drain->service);
}
