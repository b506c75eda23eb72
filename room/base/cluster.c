#include "cluster.h"

#include "clock.h"
#include "log.h"
#include "ulid.h"

#include <assert.h>
#include <stdlib.h>

enum {
    FAST_POLL_MS = 200, /* while a lease is free or its owner in doubt */
    LOOK_GAP_MS = 300,  /* between two looks at a queue: an owner that changes its channel is back by then */
    LOOK_LOST_MS = 2000,
    LOOKS_NEEDED = 2,
    LEAVE_MS = 1000,
    FORGET_MS = 60000, /* a dead instance is shown for so long */
    TICK_MAX_MS = 50,
};

static const struct pg_statement beat_statement = {"cluster_beat",
    "SELECT kind, key, label, url, num, age_ms, streams, beat_ms, ttl_ms, flag, draining "
    "FROM cluster_beat($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    9};
static const struct pg_statement take_statement = {
    "cluster_take", "SELECT shard, epoch FROM cluster_take($1, $2, $3, $4, $5, $6, $7)", 7};
static const struct pg_statement bind_statement = {
    "cluster_bind_backend", "SELECT cluster_bind_backend($1, $2, $3)", 3};
static const struct pg_statement release_statement = {"cluster_release", "SELECT cluster_release($1, $2)", 2};
static const struct pg_statement forget_statement = {"cluster_forget", "SELECT cluster_forget($1, $2)", 2};
static const struct pg_statement leave_statement = {"cluster_leave", "SELECT cluster_leave($1)", 1};

enum beat_column { KIND, KEY, LABEL, URL, NUM, AGE_MS, STREAMS, BEAT_MS, TTL_MS, FLAG, DRAINING };
enum beat_kind { KIND_SELF, KIND_INSTANCE, KIND_LEASE };

/* What we know of an instance besides what others see of it. */
struct peer {
    char id[ULID_TEXT + 1];
    int64_t beat, beat_ms, ttl_ms;
    int64_t age_ms;     /* since its last beat, by the database's clock: a reason to look closer, never to take */
    uint64_t silent_ms; /* time in which our polls were answered and its counter stood */
    bool ready, moved;  /* moved: seen alive, not only found in the table */
};

/* FOREIGN -free or owner dead-> TAKING -> OURS; TAKING -row changed-> FOREIGN; OURS -row names another-> FOREIGN;
 * OURS -cluster_release-> LEAVING -row names nobody-> FOREIGN */
enum lease_state { LEASE_FOREIGN, LEASE_TAKING, LEASE_OURS, LEASE_LEAVING };

struct lease {
    enum lease_state state;
    bool present;       /* in the last answer */
    bool locked;        /* somebody holds its row although the owner is gone */
    bool taken, stolen; /* to be told */
    /* Looking whether anybody consumes the queue of an owner in doubt. */
    bool looking;
    int looks; /* in a row that found nobody */
    uint64_t looked_ms;
};

struct cluster {
    uv_timer_t tick;
    struct pg *pg;
    struct cluster_events events;
    char id[ULID_TEXT + 1];
    char name[64], url[256];
    int64_t beat_ms, lease_ttl_ms;
    bool able, draining, leaving, overloaded;
    uint32_t streams;

    /* Index by index: what others see, and what only we know. */
    struct cluster_instance *instances;
    struct peer *peers;
    size_t instance_count;
    struct cluster_shard *shards;
    struct lease *leases;
    size_t shard_count, shard_capacity;

    struct pg_query beat, take, bind, release, forget, leave;
    struct pg_params params;
    struct pg_array array[4];

    uint64_t next_poll_ms, beat_sent_ms, answered_ms; /* monotonic */
    bool answered;                                    /* the last poll was */
    bool joined;                                      /* at least one beat was answered */
    bool urgent;                                      /* something is free or in doubt */
    uint64_t tick_boot_ms;
    unsigned pauses, beat_pauses,
        take_pauses; /* how often we stood still: an answer to a question from before is not believed */
    bool unsure;

    bool take_waits;
    int backend_pid, take_pid, bind_pid;
    bool bind_wanted, bind_waits;
    bool release_wanted;

    uint64_t base_unix_ms, base_mono_ms, floor_unix_ms;

    void (*left)(void *arg);
    void *left_arg;
};

static void on_tick(uv_timer_t *tick);
static void beat_start(struct cluster *cluster);
static void beat_done(struct pg_query *query, enum err err, const PGresult *result);
static void clock_read(struct cluster *cluster, const PGresult *result, uint64_t now);
static void instances_read(struct cluster *cluster, const PGresult *result, uint64_t counted_ms);
static void leases_read(struct cluster *cluster, const PGresult *result, bool row_gone);
static void leases_count(struct cluster *cluster);
static void leases_tell(struct cluster *cluster);
static void leases_judge(struct cluster *cluster);
static void next_poll_plan(struct cluster *cluster, uint64_t now);
static void take_start(struct cluster *cluster, bool waits);
static void take_done(struct pg_query *query, enum err err, const PGresult *result);
static void bind_start(struct cluster *cluster);
static void bind_done(struct pg_query *query, enum err err, const PGresult *result);
static void release_start(struct cluster *cluster);
static void release_done(struct pg_query *query, enum err err, const PGresult *result);
static void forget_start(struct cluster *cluster);
static void forget_done(struct pg_query *query, enum err err, const PGresult *result);
static void leave_done(struct pg_query *query, enum err err, const PGresult *result);
static void on_closed(uv_handle_t *handle);

/* --- joining and leaving --- */

enum err cluster_join(struct cluster **out, uv_loop_t *loop, struct pg *pg, const struct cluster_settings *settings,
    const struct cluster_events *events)
{
    struct cluster *cluster;
    uint64_t tick_ms;

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
    cluster->beat = (struct pg_query){.statement = &beat_statement, .done = beat_done};
    cluster->take = (struct pg_query){.statement = &take_statement, .done = take_done};
    cluster->bind = (struct pg_query){.statement = &bind_statement, .done = bind_done};
    cluster->release = (struct pg_query){.statement = &release_statement, .done = release_done};
    cluster->forget = (struct pg_query){.statement = &forget_statement, .done = forget_done};
    cluster->leave = (struct pg_query){.statement = &leave_statement, .done = leave_done};
    uv_timer_init(loop, &cluster->tick);
    tick_ms = (uint64_t)settings->beat_ms / 10;
    if (tick_ms > TICK_MAX_MS)
        tick_ms = TICK_MAX_MS;
    uv_timer_start(&cluster->tick, on_tick, 0, tick_ms ? tick_ms : 1);
    log_info("cluster.join", "instance=%s name=%s", cluster->id, log_quote(str_of(cluster->name)));
    *out = cluster;
    return ERR_OK;
}

static void submit(struct cluster *cluster, struct pg_query *query, int64_t timeout_ms)
{
    query->lane = PG_CONTROL; /* one connection: what is asked later is done later */
    query->timeout_ms = timeout_ms;
    pg_submit(cluster->pg, query, &cluster->params);
}

static void params_begin(struct cluster *cluster)
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
    params_begin(cluster);
    submit(cluster, &cluster->leave, LEAVE_MS);
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

/* Never makes it later; while a poll is under way this is about the one after it. */
static void poll_at(struct cluster *cluster, uint64_t at_ms)
{
    if (at_ms < cluster->next_poll_ms)
        cluster->next_poll_ms = at_ms;
}

static void poll_now(struct cluster *cluster)
{
    poll_at(cluster, 0);
}

void cluster_ready(struct cluster *cluster, bool able)
{
    if (cluster->able != able)
        poll_now(cluster);
    cluster->able = able;
}

void cluster_set_draining(struct cluster *cluster, bool draining)
{
    if (cluster->draining != draining)
        poll_now(cluster);
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

size_t cluster_shard_count(const struct cluster *cluster)
{
    return cluster->shard_count;
}

const struct cluster_shard *cluster_shards(const struct cluster *cluster)
{
    return cluster->shards;
}

/* Where `name` stands, or would stand. */
static size_t shard_position(const struct cluster *cluster, struct str name, bool *found)
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

static struct lease *lease_find(const struct cluster *cluster, struct str name, struct cluster_shard **shard)
{
    bool found;
    size_t at = shard_position(cluster, name, &found);

    if (!found)
        return NULL;
    *shard = &cluster->shards[at];
    return &cluster->leases[at];
}

const struct cluster_shard *cluster_find_shard(const struct cluster *cluster, struct str name)
{
    struct cluster_shard *shard;

    return lease_find(cluster, name, &shard) ? shard : NULL;
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

/* Finds out whether this process, or the machine, stood still. */
static void pause_check(struct cluster *cluster)
{
    uint64_t now = clock_boot_ms(), gap = now - cluster->tick_boot_ms;

    cluster->tick_boot_ms = now;
    if (gap <= (uint64_t)cluster->lease_ttl_ms)
        return;
    log_warn("cluster.stood_still", "ms=%llu", (unsigned long long)gap);
    cluster->pauses++;
    cluster->unsure = cluster->joined;
    cluster->answered_ms = 0; /* the time in between is nobody's silence */
    poll_now(cluster);
}

bool cluster_sure(struct cluster *cluster)
{
    if (clock_boot_ms() - cluster->tick_boot_ms > (uint64_t)cluster->lease_ttl_ms)
        pause_check(cluster);
    return !cluster->unsure;
}

static void on_tick(uv_timer_t *tick)
{
    struct cluster *cluster = container_of(tick, struct cluster, tick);

    pause_check(cluster);
    if (cluster->beat.state != PG_IDLE && cluster->beat_pauses != cluster->pauses)
        pg_forget(&cluster->beat); /* asked before we stood still */
    if (cluster->beat.state == PG_IDLE && clock_mono_ms() >= cluster->next_poll_ms)
        beat_start(cluster);
}

static void beat_start(struct cluster *cluster)
{
    if (!pg_up(cluster->pg, PG_CONTROL)) {
        cluster->answered = false;
        return;
    }
    cluster->beat_sent_ms = clock_mono_ms();
    cluster->next_poll_ms = UINT64_MAX;
    cluster->beat_pauses = cluster->pauses;
    params_begin(cluster);
    pg_param_text(&cluster->params, str_of(cluster->name));
    pg_param_text(&cluster->params, str_of(cluster->url));
    pg_param_i32(&cluster->params, (int32_t)cluster->beat_ms);
    pg_param_i32(&cluster->params, (int32_t)cluster->lease_ttl_ms);
    pg_param_bool(&cluster->params, cluster->able);
    pg_param_bool(&cluster->params, cluster->draining);
    pg_param_i32(&cluster->params, (int32_t)cluster->streams);
    pg_param_i32(&cluster->params, cluster->backend_pid);
    submit(cluster, &cluster->beat, cluster->lease_ttl_ms > 2000 ? cluster->lease_ttl_ms : 2000);
}

/* One poll, in the order of its steps. An event may make the owner leave: then nothing more is done. */
static void beat_done(struct pg_query *query, enum err err, const PGresult *result)
{
    struct cluster *cluster = container_of(query, struct cluster, beat);
    uint64_t now = clock_mono_ms(), since, counted_ms;
    bool row_gone;

    pause_check(cluster);
    if (err || cluster->beat_pauses != cluster->pauses) {
        cluster->answered = false;
        poll_at(cluster, !err ? 0 : now + (err == ERR_DATABASE ? (uint64_t)cluster->beat_ms : FAST_POLL_MS));
        return;
    }
    /* Silence counts only between two answers that followed each other: while the database was away nobody could beat.
     */
    since = now - cluster->answered_ms;
    counted_ms = cluster->answered && cluster->answered_ms && since <= (uint64_t)cluster->beat_ms * 2 ? since : 0;
    row_gone = cluster->joined && PQntuples(result) > 0 && !pg_get_bool(result, 0, FLAG);
    cluster->answered = cluster->joined = true;
    cluster->answered_ms = now;
    cluster->unsure = false;
    if (row_gone)
        log_warn("cluster.row_gone", "instance=%s", cluster->id);
    clock_read(cluster, result, now);
    instances_read(cluster, result, counted_ms);
    leases_read(cluster, result, row_gone);
    leases_count(cluster);
    leases_tell(cluster);
    if (!cluster->leaving)
        leases_judge(cluster);
    if (cluster->leaving)
        return;
    if (cluster->release_wanted)
        release_start(cluster);
    if (cluster->bind_wanted)
        bind_start(cluster);
    forget_start(cluster);
    next_poll_plan(cluster, now);
}

/* --- reading an answer --- */

static void clock_read(struct cluster *cluster, const PGresult *result, uint64_t now)
{
    uint64_t round_trip = now - cluster->beat_sent_ms, unix_ms = (uint64_t)pg_get_i64(result, 0, NUM) / 1000;

    cluster->floor_unix_ms = cluster_now_ms(cluster);
    /* The server read its clock somewhere in between; when that was long, the only thing certain is "not earlier". */
    if (round_trip <= 1000)
        unix_ms += round_trip / 2;
    cluster->base_unix_ms = unix_ms;
    cluster->base_mono_ms = now;
}

static void copy_text(char *to, size_t size, struct str from)
{
    size_t n = from.n < size ? from.n : size - 1;

    if (n > 0)
        memcpy(to, from.p, n);
    to[n] = '\0';
}

static struct peer *peer_find(const struct cluster *cluster, const char *id)
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

static bool is_self(const struct cluster *cluster, const char *id)
{
    return strcmp(id, cluster->id) == 0;
}

static bool peer_dead(const struct cluster *cluster, const struct peer *peer)
{
    int64_t ttl = peer->ttl_ms > cluster->lease_ttl_ms ? peer->ttl_ms : cluster->lease_ttl_ms;

    return peer->silent_ms >= (uint64_t)ttl;
}

/* `old` is what we knew of it, NULL: nothing. */
static void peer_read(struct cluster *cluster, const PGresult *result, int row, const struct peer *old,
    uint64_t counted_ms, struct peer *peer, struct cluster_instance *instance)
{
    copy_text(peer->id, sizeof peer->id, pg_get_str(result, row, KEY));
    peer->beat = pg_get_i64(result, row, NUM);
    peer->age_ms = pg_get_i64(result, row, AGE_MS);
    peer->beat_ms = pg_get_i64(result, row, BEAT_MS);
    peer->ttl_ms = pg_get_i64(result, row, TTL_MS);
    peer->ready = pg_get_bool(result, row, FLAG);
    peer->moved = old && (old->moved || old->beat != peer->beat);
    peer->silent_ms = old && old->beat == peer->beat ? old->silent_ms + counted_ms : 0;
    memcpy(instance->id, peer->id, sizeof instance->id);
    copy_text(instance->name, sizeof instance->name, pg_get_str(result, row, LABEL));
    copy_text(instance->url, sizeof instance->url, pg_get_str(result, row, URL));
    instance->self = is_self(cluster, peer->id);
    instance->draining = pg_get_bool(result, row, DRAINING);
    instance->streams = (uint32_t)pg_get_i64(result, row, STREAMS);
    instance->alive = instance->self || (!peer_dead(cluster, peer) && (peer->moved || peer->age_ms <= peer->ttl_ms));
    if (old && !peer_dead(cluster, old) && peer_dead(cluster, peer))
        log_warn("cluster.instance_dead", "instance=%s name=%s", peer->id, log_quote(str_of(instance->name)));
}

static void instances_read(struct cluster *cluster, const PGresult *result, uint64_t counted_ms)
{
    int rows = PQntuples(result);
    struct cluster_instance *instances = xcalloc((size_t)rows, sizeof *instances);
    struct peer *peers = xcalloc((size_t)rows, sizeof *peers);
    size_t count = 0;

    for (int row = 0; row < rows; row++) {
        char id[ULID_TEXT + 1];

        if (pg_get_i64(result, row, KIND) != KIND_INSTANCE)
            continue;
        copy_text(id, sizeof id, pg_get_str(result, row, KEY));
        peer_read(cluster, result, row, peer_find(cluster, id), counted_ms, &peers[count], &instances[count]);
        count++;
    }
    free(cluster->instances);
    free(cluster->peers);
    cluster->instances = instances;
    cluster->peers = peers;
    cluster->instance_count = count;
}

static size_t lease_insert(struct cluster *cluster, size_t at, struct str name)
{
    size_t behind = cluster->shard_count - at;

    if (cluster->shard_count == cluster->shard_capacity) {
        cluster->shard_capacity = cluster->shard_capacity ? cluster->shard_capacity * 2 : 64;
        cluster->shards = xrealloc(cluster->shards, cluster->shard_capacity * sizeof *cluster->shards);
        cluster->leases = xrealloc(cluster->leases, cluster->shard_capacity * sizeof *cluster->leases);
    }
    memmove(cluster->shards + at + 1, cluster->shards + at, behind * sizeof *cluster->shards);
    memmove(cluster->leases + at + 1, cluster->leases + at, behind * sizeof *cluster->leases);
    cluster->shards[at] = (struct cluster_shard){.epoch = 0};
    cluster->leases[at] = (struct lease){.state = LEASE_FOREIGN};
    copy_text(cluster->shards[at].name, sizeof cluster->shards[at].name, name);
    cluster->shard_count++;
    return at;
}

static void lease_read(
    struct cluster *cluster, struct cluster_shard *shard, struct lease *lease, const char *owner, uint64_t epoch)
{
    bool held = is_self(cluster, owner);

    lease->present = true;
    if (lease->state == LEASE_TAKING)
        return; /* asked before; the answer to the take is behind this one */
    if (lease->state == LEASE_OURS && (!held || epoch != shard->epoch))
        lease->stolen = true;
    if (lease->state == LEASE_LEAVING && !held)
        lease->state = LEASE_FOREIGN;
    if (lease->state == LEASE_LEAVING && cluster->release.state == PG_IDLE)
        cluster->release_wanted = true; /* the first one did not reach it */
    if (strcmp(shard->owner, owner) != 0) {
        lease->looks = 0;
        lease->looking = false;
    }
    copy_text(shard->owner, sizeof shard->owner, str_of(owner));
    shard->epoch = epoch;
}

static void leases_read(struct cluster *cluster, const PGresult *result, bool row_gone)
{
    for (size_t i = 0; i < cluster->shard_count; i++)
        cluster->leases[i].present = false;
    for (int row = 0; row < PQntuples(result); row++) {
        struct str name = pg_get_str(result, row, KEY);
        char owner[ULID_TEXT + 1];
        bool found;
        size_t at;

        if (pg_get_i64(result, row, KIND) != KIND_LEASE || name.n >= sizeof cluster->shards->name)
            continue;
        at = shard_position(cluster, name, &found);
        if (!found)
            at = lease_insert(cluster, at, name);
        copy_text(owner, sizeof owner, pg_get_str(result, row, LABEL));
        lease_read(cluster, &cluster->shards[at], &cluster->leases[at], owner, (uint64_t)pg_get_i64(result, row, NUM));
    }
    for (size_t i = 0; i < cluster->shard_count; i++) {
        struct lease *lease = &cluster->leases[i];

        if (lease->state == LEASE_OURS && (row_gone || !lease->present))
            lease->stolen = true;
    }
}

static void leases_count(struct cluster *cluster)
{
    for (size_t i = 0; i < cluster->instance_count; i++)
        cluster->instances[i].shards = 0;
    for (size_t i = 0; i < cluster->shard_count; i++) {
        const struct peer *owner = peer_find(cluster, cluster->shards[i].owner);

        if (owner)
            cluster->instances[owner - cluster->peers].shards++;
    }
}

/* All states first, then the news: whoever is told may ask about other shards. */
static void leases_tell(struct cluster *cluster)
{
    for (size_t i = 0; i < cluster->shard_count; i++) {
        struct lease *lease = &cluster->leases[i];

        if (lease->stolen)
            lease->state = LEASE_FOREIGN;
        if (lease->taken)
            lease->state = LEASE_OURS;
        cluster->shards[i].ours = lease->state == LEASE_OURS;
    }
    for (size_t i = 0; i < cluster->shard_count && !cluster->leaving; i++) {
        struct lease *lease = &cluster->leases[i];
        struct str name = str_of(cluster->shards[i].name);
        bool taken = lease->taken, stolen = lease->stolen;

        lease->taken = lease->stolen = false;
        if (stolen) {
            log_warn("lease.lost", "shard=%s to=%s epoch=%llu", name.p, cluster->shards[i].owner,
                (unsigned long long)cluster->shards[i].epoch);
            cluster->events.lost(cluster->events.arg, name);
        }
        if (taken)
            cluster->events.taken(cluster->events.arg, name, cluster->shards[i].epoch);
    }
}

/* --- who should have what --- */

/* Its beat is overdue. Or it is our predecessor at the same address, where two cannot listen; a live one would have
 * moved. */
static bool peer_in_doubt(const struct cluster *cluster, const struct peer *peer)
{
    const struct cluster_instance *instance = &cluster->instances[peer - cluster->peers];

    if (instance->self)
        return false;
    if (peer->age_ms * 2 > peer->beat_ms * 3)
        return true;
    return !peer->moved && strcmp(instance->url, cluster->url) == 0 && strcmp(peer->id, cluster->id) < 0;
}

/*
 * Entries do not travel between instances yet: a stream is live only where its room's shard is. So all shards belong
 * together, with who has most of them already (a tie: who was there first); the others stand by and take over when it
 * goes. Each instance finds the same one without asking.
 */
static bool is_ours_to_take(const struct cluster *cluster)
{
    uint32_t own = 0;

    for (size_t i = 0; i < cluster->instance_count; i++)
        if (cluster->instances[i].self)
            own = cluster->instances[i].shards;
    for (size_t i = 0; i < cluster->instance_count; i++) {
        const struct cluster_instance *instance = &cluster->instances[i];
        const struct peer *peer = &cluster->peers[i];

        if (instance->self || !peer->ready || instance->draining || peer_dead(cluster, peer) ||
            peer_in_doubt(cluster, peer))
            continue;
        if (instance->shards > own || (instance->shards == own && strcmp(instance->id, cluster->id) < 0))
            return false;
    }
    return true;
}

enum prospect { HELD, IN_DOUBT, VACANT };

static enum prospect lease_prospect(const struct cluster *cluster, const struct cluster_shard *shard)
{
    const struct peer *owner;

    if (shard->owner[0] == '\0' || is_self(cluster, shard->owner))
        return VACANT; /* named, but not held by us: a take whose answer was lost, or given up in between */
    owner = peer_find(cluster, shard->owner);
    if (!owner || peer_dead(cluster, owner))
        return VACANT;
    return peer_in_doubt(cluster, owner) ? IN_DOUBT : HELD;
}

static void look(struct cluster *cluster, size_t i)
{
    struct lease *lease = &cluster->leases[i];
    uint64_t now = clock_mono_ms(), since = now - lease->looked_ms;

    if (lease->looked_ms && since < (lease->looking ? LOOK_LOST_MS : LOOK_GAP_MS))
        return;
    lease->looking = true;
    lease->looked_ms = now;
    cluster->events.probe(cluster->events.arg, str_of(cluster->shards[i].name));
}

/* Looks at what is in doubt, marks for taking what is ours to take. */
static void leases_judge(struct cluster *cluster)
{
    bool can = cluster->able && !cluster->draining, any = false;

    cluster->urgent = false;
    for (size_t i = 0; i < cluster->shard_count && !cluster->leaving; i++) {
        struct cluster_shard *shard = &cluster->shards[i];
        struct lease *lease = &cluster->leases[i];
        enum prospect prospect = lease_prospect(cluster, shard);

        if (lease->state == LEASE_LEAVING)
            cluster->urgent = true;
        if (lease->state != LEASE_FOREIGN || !lease->present)
            continue;
        if (prospect == HELD) {
            lease->looks = 0;
            lease->looking = false;
            continue;
        }
        cluster->urgent = true;
        if (!can || (!is_self(cluster, shard->owner) && !is_ours_to_take(cluster)))
            continue;
        if (prospect == IN_DOUBT && lease->looks < LOOKS_NEEDED) {
            look(cluster, i);
        } else if (cluster->take.state == PG_IDLE) {
            log_at(lease->locked ? LOG_DEBUG : LOG_INFO, "lease.take", "shard=%s epoch=%llu from=%s why=%s",
                shard->name, (unsigned long long)shard->epoch, shard->owner,
                shard->owner[0] == '\0' ? "free"
                : prospect == IN_DOUBT  ? "no_consumer"
                                        : "dead");
            lease->state = LEASE_TAKING;
            any = true;
        }
    }
    if (any && !cluster->leaving)
        take_start(cluster, false);
}

void cluster_probed(struct cluster *cluster, struct str name, enum err err, uint32_t consumers)
{
    struct cluster_shard *shard;
    struct lease *lease = lease_find(cluster, name, &shard);

    if (!lease || !lease->looking)
        return;
    lease->looking = false;
    lease->looks = !err && consumers == 0 ? lease->looks + 1 : 0;
    /* The owner's counter is read again before the next look, and before anything is taken. */
    poll_at(cluster, lease->looks >= LOOKS_NEEDED ? 0 : lease->looked_ms + LOOK_GAP_MS);
}

static void next_poll_plan(struct cluster *cluster, uint64_t now)
{
    uint64_t next = now + (uint64_t)cluster->beat_ms;

    for (size_t i = 0; i < cluster->instance_count; i++) {
        const struct peer *peer = &cluster->peers[i];
        int64_t left = peer->beat_ms * 3 / 2 - peer->age_ms + 5;

        if (cluster->instances[i].self || cluster->instances[i].shards == 0)
            continue;
        if (cluster->instances[i].draining)
            cluster->urgent = true; /* it is about to give back what it holds */
        if (left > 0 && now + (uint64_t)left < next)
            next = now + (uint64_t)left; /* the moment from which its beat is overdue */
    }
    if (cluster->urgent && now + FAST_POLL_MS < next)
        next = now + FAST_POLL_MS;
    poll_at(cluster, next);
}

/* --- taking --- */

/* All leases in TAKING, in one call. First without waiting; what is locked then gets a second call that waits and ends
 * the old owner's session. */
static void take_start(struct cluster *cluster, bool waits)
{
    struct pg_array *shards = &cluster->array[0], *epochs = &cluster->array[1], *holders = &cluster->array[2],
                    *beats = &cluster->array[3];

    pg_array_reset(shards, PG_TEXT);
    pg_array_reset(epochs, PG_INT8);
    pg_array_reset(holders, PG_TEXT);
    pg_array_reset(beats, PG_INT8);
    for (size_t i = 0; i < cluster->shard_count; i++) {
        const struct cluster_shard *shard = &cluster->shards[i];
        const struct peer *owner = peer_find(cluster, shard->owner);

        if (cluster->leases[i].state != LEASE_TAKING)
            continue;
        pg_array_bytes(shards, str_of(shard->name));
        pg_array_i64(epochs, (int64_t)shard->epoch);
        if (shard->owner[0])
            pg_array_bytes(holders, str_of(shard->owner));
        else
            pg_array_null(holders);
        pg_array_i64(beats, owner ? owner->beat : -1);
    }
    cluster->take_waits = waits;
    cluster->take_pid = cluster->backend_pid;
    cluster->take_pauses = cluster->pauses;
    params_begin(cluster);
    pg_param_i32(&cluster->params, cluster->backend_pid);
    pg_param_array(&cluster->params, shards);
    pg_param_array(&cluster->params, epochs);
    pg_param_array(&cluster->params, holders);
    pg_param_array(&cluster->params, beats);
    pg_param_bool(&cluster->params, waits);
    submit(cluster, &cluster->take, cluster->lease_ttl_ms > 5000 ? cluster->lease_ttl_ms : 5000);
}

static void take_done(struct pg_query *query, enum err err, const PGresult *result)
{
    struct cluster *cluster = container_of(query, struct cluster, take);
    bool again = false;

    pause_check(cluster);
    if (cluster->take_pauses != cluster->pauses)
        err = ERR_LOST; /* old news: what we got then may be another's by now, the next beat tells */
    for (size_t i = 0; i < cluster->shard_count; i++)
        if (cluster->leases[i].state == LEASE_TAKING)
            cluster->leases[i].state = LEASE_FOREIGN;
    for (int row = 0; !err && row < PQntuples(result); row++) {
        int64_t epoch = pg_get_i64(result, row, 1);
        struct cluster_shard *shard;
        struct lease *lease = lease_find(cluster, pg_get_str(result, row, 0), &shard);

        if (!lease)
            continue;
        if (epoch >= 0) {
            lease->taken = true;
            lease->locked = false;
            lease->looks = 0;
            shard->epoch = (uint64_t)epoch;
            copy_text(shard->owner, sizeof shard->owner, str_of(cluster->id));
        } else if (!cluster->take_waits) {
            lease->state = LEASE_TAKING;
            again = true;
        } else {
            if (!lease->locked)
                log_warn("lease.locked", "shard=%s holder=%s", shard->name, shard->owner);
            lease->locked = true;
        }
    }
    leases_count(cluster);
    if (cluster->take_pid != cluster->backend_pid)
        cluster->bind_wanted = true;
    if (again)
        take_start(cluster, true);
    leases_tell(cluster);
}

/* --- naming our writing session --- */

void cluster_bind_backend(struct cluster *cluster, int backend_pid)
{
    cluster->backend_pid = backend_pid;
    cluster->bind_wanted = true;
    cluster->bind_waits = false;
    poll_now(cluster); /* our own row names it at once, the leases as soon as appends let go of them */
    bind_start(cluster);
}

static void bind_start(struct cluster *cluster)
{
    bool any = false;

    for (size_t i = 0; i < cluster->shard_count; i++)
        any |= cluster->leases[i].state == LEASE_OURS;
    if (!any && cluster->take.state == PG_IDLE)
        cluster->bind_wanted = false; /* a take brings it along */
    if (!any || cluster->bind.state != PG_IDLE || cluster->leaving || !pg_up(cluster->pg, PG_CONTROL))
        return;
    cluster->bind_pid = cluster->backend_pid;
    params_begin(cluster);
    pg_param_i32(&cluster->params, cluster->backend_pid);
    pg_param_bool(&cluster->params, cluster->bind_waits);
    submit(cluster, &cluster->bind, 0);
}

static void bind_done(struct pg_query *query, enum err err, const PGresult *result)
{
    struct cluster *cluster = container_of(query, struct cluster, bind);
    int64_t left = err ? 1 : pg_get_i64(result, 0, 0);

    /* Otherwise again with the next beat; then with some patience, because appends may follow each other without a gap.
     */
    cluster->bind_wanted = left > 0 || cluster->bind_pid != cluster->backend_pid;
    cluster->bind_waits = left > 0;
}

/* --- giving back --- */

void cluster_release(struct cluster *cluster, struct str name)
{
    struct cluster_shard *shard;
    struct lease *lease = lease_find(cluster, name, &shard);

    if (!lease || lease->state != LEASE_OURS || cluster->leaving)
        return;
    lease->state = LEASE_LEAVING;
    lease->stolen = false;
    shard->ours = false;
    release_start(cluster);
}

static void release_start(struct cluster *cluster)
{
    struct pg_array *shards = &cluster->array[0];

    cluster->release_wanted = true;
    if (cluster->release.state != PG_IDLE || !pg_up(cluster->pg, PG_CONTROL))
        return;
    cluster->release_wanted = false;
    pg_array_reset(shards, PG_TEXT);
    for (size_t i = 0; i < cluster->shard_count; i++)
        if (cluster->leases[i].state == LEASE_LEAVING)
            pg_array_bytes(shards, str_of(cluster->shards[i].name));
    if (shards->count == 0)
        return;
    params_begin(cluster);
    pg_param_array(&cluster->params, shards);
    submit(cluster, &cluster->release, 0);
}

static void release_done(struct pg_query *query, enum err err, const PGresult *result)
{
    struct cluster *cluster = container_of(query, struct cluster, release);

    (void)result;
    poll_now(cluster); /* shows what came of it */
    if (!err && cluster->release_wanted)
        release_start(cluster);
}

/* --- the dead --- */

static void forget_start(struct cluster *cluster)
{
    for (size_t i = 0; i < cluster->instance_count && cluster->forget.state == PG_IDLE; i++) {
        const struct peer *peer = &cluster->peers[i];

        if (cluster->instances[i].self || cluster->instances[i].shards > 0 || peer->silent_ms < FORGET_MS ||
            !peer_dead(cluster, peer))
            continue;
        pg_params_reset(&cluster->params);
        pg_param_text(&cluster->params, str_of(peer->id));
        pg_param_i64(&cluster->params, peer->beat);
        submit(cluster, &cluster->forget, 0);
    }
}

static void forget_done(struct pg_query *query, enum err err, const PGresult *result)
{
    (void)query;
    (void)err;
    (void)result;
}
