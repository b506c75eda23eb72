#include "cluster_impl.h"

#include "clock.h"
#include "log.h"

#include <assert.h>
#include <stdlib.h>

enum {
    LEAVE_MS = 1000,
    FORGET_MS = 60000, /* a dead instance is shown for so long */
    TICK_MAX_MS = 50,
    TICK_FINE_MS = 10,
};

static const struct pg_statement forget_statement = {"cluster_forget", "SELECT cluster_forget($1, $2)", 2};
static const struct pg_statement leave_statement = {"cluster_leave", "SELECT cluster_leave($1)", 1};

static void on_tick(uv_timer_t *tick);
static void leave_done(struct pg_query *query, enum err err, const PGresult *result);
static void forget_done(struct pg_query *query, enum err err, const PGresult *result);
static void on_closed(uv_handle_t *handle);

/* --- joining and leaving --- */

static uint64_t tick_ms(const struct cluster *cluster)
{
    uint64_t ms = (uint64_t)cluster->beat_ms / 10;

    return ms > TICK_MAX_MS ? TICK_MAX_MS : ms ? ms : 1;
}

enum err cluster_join(struct cluster **out, uv_loop_t *loop, struct pg *pg, const struct cluster_settings *settings,
    const struct cluster_events *events)
{
    struct cluster *cluster;

    if (strlen(settings->instance_name) >= sizeof cluster->name || strlen(settings->url) >= sizeof cluster->url) {
        log_error("cluster.bad_setting", "says=\"instance_name may have 63 bytes, advertise_url 255\"");
        return ERR_BAD_REQUEST;
    }
    cluster = xcalloc(1, sizeof *cluster);
    cluster->pg = pg;
    cluster->events = *events;
    ulid_write(cluster->id, ulid_new(clock_unix_ms()));
    strcpy(cluster->name, settings->instance_name);
    strcpy(cluster->url, settings->url);
    cluster->beat_ms = settings->beat_ms;
    cluster->lease_ttl_ms = settings->lease_ttl_ms;
    cluster->tick_boot_ms = clock_boot_ms();
    cluster->weight = settings->weight;
    uv_timer_init(loop, &cluster->tick);
    uv_timer_start(&cluster->tick, on_tick, 0, tick_ms(cluster));
    log_info("cluster.join", "instance=%s name=%s", cluster->id, log_quote(str_of(cluster->name)));
    *out = cluster;
    return ERR_OK;
}

void cluster_submit(struct cluster *cluster, struct pg_query *query, const struct pg_statement *statement,
    void (*done)(struct pg_query *query, enum err err, const PGresult *result), int64_t timeout_ms)
{
    query->statement = statement;
    query->done = done;
    query->lane = PG_CONTROL; /* one connection: what is asked later is done later */
    query->timeout_ms = timeout_ms;
    pg_submit(cluster->pg, query, &cluster->params);
}

void cluster_params_begin(struct cluster *cluster)
{
    pg_params_reset(&cluster->params);
    pg_param_text(&cluster->params, str_of(cluster->id));
}

void cluster_leave(struct cluster *cluster, void (*done)(void *arg), void *arg)
{
    assert(!cluster->leaving);
    cluster->leaving = true;
    cluster->left = done;
    cluster->left_arg = arg;
    pg_forget(&cluster->beat);
    pg_forget(&cluster->take);
    pg_forget(&cluster->bind);
    pg_forget(&cluster->release);
    pg_forget(&cluster->forget);
    uv_timer_stop(&cluster->tick);
    cluster_params_begin(cluster);
    cluster_submit(cluster, &cluster->leave, &leave_statement, leave_done, LEAVE_MS);
}

static void leave_done(struct pg_query *query, enum err err, const PGresult *result)
{
    struct cluster *cluster = container_of(query, struct cluster, leave);

    (void)result;
    if (err)
        log_warn("cluster.leave_failed", "instance=%s err=%s", cluster->id, err_code(err));
    else
        log_info("cluster.left", "instance=%s", cluster->id);
    uv_close((uv_handle_t *)&cluster->tick, on_closed);
}

static void on_closed(uv_handle_t *handle)
{
    struct cluster *cluster = container_of((uv_timer_t *)handle, struct cluster, tick);
    void (*left)(void *arg) = cluster->left;
    void *arg = cluster->left_arg;

    pg_params_clear(&cluster->params);
    for (size_t i = 0; i < countof(cluster->array); i++)
        pg_array_clear(&cluster->array[i]);
    free(cluster->instances);
    free(cluster->peers);
    free(cluster->shards);
    free(cluster->leases);
    free(cluster);
    left(arg);
}

/* --- what others ask and say --- */

const char *cluster_self(const struct cluster *cluster)
{
    return cluster->id;
}

void cluster_poll_at(struct cluster *cluster, uint64_t at_ms)
{
    if (at_ms < cluster->next_poll_ms)
        cluster->next_poll_ms = at_ms;
}

void cluster_poll_now(struct cluster *cluster)
{
    cluster_poll_at(cluster, 0);
}

void cluster_tick_finely(struct cluster *cluster, bool finely)
{
    uint64_t ms = tick_ms(cluster);

    if (finely && ms > TICK_FINE_MS)
        ms = TICK_FINE_MS;
    if (uv_timer_get_repeat(&cluster->tick) != ms)
        uv_timer_start(&cluster->tick, on_tick, ms, ms);
}

void cluster_ready(struct cluster *cluster, bool able)
{
    if (cluster->able != able)
        cluster_poll_now(cluster);
    cluster->able = able;
}

void cluster_set_draining(struct cluster *cluster, bool draining)
{
    if (cluster->draining != draining)
        cluster_poll_now(cluster);
    cluster->draining = draining;
}

void cluster_set_load(struct cluster *cluster, uint32_t streams, bool overloaded)
{
    cluster->streams = streams;
    cluster->overloaded = overloaded;
}

size_t cluster_instances(const struct cluster *cluster, const struct cluster_instance **instances)
{
    *instances = cluster->instances;
    return cluster->instance_count;
}

struct cluster_counters cluster_counters(const struct cluster *cluster)
{
    return cluster->counters;
}

size_t cluster_shard_count(const struct cluster *cluster)
{
    return cluster->shard_count;
}

const struct cluster_shard *cluster_shards(const struct cluster *cluster)
{
    return cluster->shards;
}

size_t cluster_shard_position(const struct cluster *cluster, struct str name, bool *found)
{
    size_t low = 0, high = cluster->shard_count;

    while (low < high) {
        size_t middle = (low + high) / 2;
        struct str other = str_of(cluster->shards[middle].name);
        int order = memcmp(name.p, other.p, name.n < other.n ? name.n : other.n);

        if (order == 0 && name.n == other.n) {
            *found = true;
            return middle;
        }
        if (order < 0 || (order == 0 && name.n < other.n))
            high = middle;
        else
            low = middle + 1;
    }
    *found = false;
    return low;
}

struct lease *cluster_find_lease(const struct cluster *cluster, struct str name, struct cluster_shard **shard)
{
    bool found;
    size_t at = cluster_shard_position(cluster, name, &found);

    if (!found)
        return NULL;
    *shard = &cluster->shards[at];
    return &cluster->leases[at];
}

const struct cluster_shard *cluster_find_shard(const struct cluster *cluster, struct str name)
{
    struct cluster_shard *shard;

    return cluster_find_lease(cluster, name, &shard) ? shard : NULL;
}

void cluster_copy_text(char *to, size_t size, struct str from)
{
    size_t n = from.n < size ? from.n : size - 1;

    if (n > 0)
        memcpy(to, from.p, n);
    to[n] = '\0';
}

struct peer *cluster_find_peer(const struct cluster *cluster, const char *id)
{
    size_t low = 0, high = cluster->instance_count;

    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = strcmp(id, cluster->peers[middle].id);

        if (order == 0)
            return &cluster->peers[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

bool cluster_is_self(const struct cluster *cluster, const char *id)
{
    return strcmp(id, cluster->id) == 0;
}

bool cluster_peer_dead(const struct cluster *cluster, const struct peer *peer)
{
    int64_t ttl = peer->ttl_ms > cluster->lease_ttl_ms ? peer->ttl_ms : cluster->lease_ttl_ms;

    return peer->silent_ms >= (uint64_t)ttl;
}

uint64_t cluster_now_ms(const struct cluster *cluster)
{
    uint64_t now = cluster->base_unix_ms + (clock_mono_ms() - cluster->base_mono_ms);

    if (!cluster->base_unix_ms)
        return 0;
    return now > cluster->floor_unix_ms ? now : cluster->floor_unix_ms;
}

bool cluster_database_ok(const struct cluster *cluster)
{
    uint64_t now = clock_mono_ms();

    if (cluster->beat.state != PG_IDLE && now - cluster->beat_sent_ms > (uint64_t)cluster->beat_ms * 2)
        return false;
    return cluster->answered;
}

/* --- the tick --- */

void cluster_pause_check(struct cluster *cluster)
{
    uint64_t now = clock_boot_ms(), gap = now - cluster->tick_boot_ms;

    cluster->tick_boot_ms = now;
    if (gap <= (uint64_t)cluster->lease_ttl_ms)
        return;
    log_warn("cluster.stood_still", "ms=%llu", (unsigned long long)gap);
    cluster->pauses++;
    cluster->unsure = cluster->joined;
    cluster->answered_ms = 0; /* the time in between is nobody's silence */
    cluster_poll_now(cluster);
}

bool cluster_sure(struct cluster *cluster)
{
    if (clock_boot_ms() - cluster->tick_boot_ms > (uint64_t)cluster->lease_ttl_ms)
        cluster_pause_check(cluster);
    return !cluster->unsure;
}

static void on_tick(uv_timer_t *tick)
{
    struct cluster *cluster = container_of(tick, struct cluster, tick);

    cluster_pause_check(cluster);
    if (cluster->beat.state != PG_IDLE && cluster->beat_pauses != cluster->pauses)
        pg_forget(&cluster->beat); /* asked before we stood still */
    if (cluster->beat.state == PG_IDLE && clock_mono_ms() >= cluster->next_poll_ms)
        cluster_beat_start(cluster);
}

/* --- the dead --- */

void cluster_forget_dead(struct cluster *cluster)
{
    for (size_t i = 0; i < cluster->instance_count && cluster->forget.state == PG_IDLE; i++) {
        const struct peer *peer = &cluster->peers[i];

        if (cluster->instances[i].self || cluster->instances[i].shards > 0 || peer->silent_ms < FORGET_MS ||
            !cluster_peer_dead(cluster, peer))
            continue;
        pg_params_reset(&cluster->params);
        pg_param_text(&cluster->params, str_of(peer->id));
        pg_param_i64(&cluster->params, peer->beat);
        cluster_submit(cluster, &cluster->forget, &forget_statement, forget_done, 0);
    }
}

static void forget_done(struct pg_query *query, enum err err, const PGresult *result)
{
    (void)query;
    (void)err;
    (void)result;
}
