#include "cluster_impl.h"

#include "clock.h"
#include "log.h"

#include <stdlib.h>

static const struct pg_statement beat_statement = {"cluster_beat",
    "SELECT kind, key, label, url, num, age_ms, streams, beat_ms, ttl_ms, flag, draining, weight, overloaded "
    "FROM cluster_beat($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    11};

enum beat_column { KIND, KEY, LABEL, URL, NUM, AGE_MS, STREAMS, BEAT_MS, TTL_MS, FLAG, DRAINING, WEIGHT, OVERLOADED };
enum beat_kind { KIND_SELF, KIND_INSTANCE, KIND_LEASE };

/* One poll, in the order of its steps. */
static void beat_done(struct pg_query *query, enum err err, const PGresult *result);
static void clock_read(struct cluster *cluster, const PGresult *result, uint64_t now);
static void instances_read(struct cluster *cluster, const PGresult *result, uint64_t counted_ms);
static void leases_read(struct cluster *cluster, const PGresult *result, bool row_gone);

void cluster_beat_start(struct cluster *cluster)
{
    if (!pg_up(cluster->pg, PG_CONTROL)) {
        cluster->answered = false;
        return;
    }
    cluster->beat_sent_ms = clock_mono_ms();
    cluster->next_poll_ms = UINT64_MAX;
    cluster->beat_pauses = cluster->pauses;
    cluster_params_begin(cluster);
    pg_param_text(&cluster->params, str_of(cluster->name));
    pg_param_text(&cluster->params, str_of(cluster->url));
    pg_param_i32(&cluster->params, (int32_t)cluster->beat_ms);
    pg_param_i32(&cluster->params, (int32_t)cluster->lease_ttl_ms);
    pg_param_bool(&cluster->params, cluster->able);
    pg_param_bool(&cluster->params, cluster->draining);
    pg_param_i32(&cluster->params, (int32_t)cluster->streams);
    pg_param_i32(&cluster->params, cluster->backend_pid);
    pg_param_i32(&cluster->params, (int32_t)cluster->weight);
    pg_param_bool(&cluster->params, cluster->overloaded);
    cluster_submit(cluster, &cluster->beat, &beat_statement, beat_done,
        cluster->lease_ttl_ms > 2000 ? cluster->lease_ttl_ms : 2000);
}

/* One poll, in the order of its steps. An event may make the owner leave: then nothing more is done. */
static void beat_done(struct pg_query *query, enum err err, const PGresult *result)
{
    struct cluster *cluster = container_of(query, struct cluster, beat);
    uint64_t now = clock_mono_ms(), since, counted_ms;
    bool row_gone;

    cluster_pause_check(cluster);
    if (err || cluster->beat_pauses != cluster->pauses) {
        cluster->answered = false;
        cluster_poll_at(
            cluster, !err ? 0 : now + (err == ERR_DATABASE ? (uint64_t)cluster->beat_ms : CLUSTER_FAST_POLL_MS));
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
    cluster_count_leases(cluster);
    cluster_tell_leases(cluster);
    cluster_spread(cluster, now);
    if (!cluster->leaving)
        cluster_judge_leases(cluster, now);
    if (!cluster->leaving)
        cluster_move_shards(cluster, now);
    if (cluster->leaving)
        return;
    if (cluster->release_wanted)
        cluster_release_start(cluster);
    if (cluster->bind_wanted)
        cluster_bind_start(cluster);
    cluster_forget_dead(cluster);
    cluster_plan_poll(cluster, now);
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

/* `old` is what we knew of it, NULL: nothing. */
static void peer_read(struct cluster *cluster, const PGresult *result, int row, const struct peer *old,
    uint64_t counted_ms, struct peer *peer, struct cluster_instance *instance)
{
    cluster_copy_text(peer->id, sizeof peer->id, pg_get_str(result, row, KEY));
    peer->beat = pg_get_i64(result, row, NUM);
    peer->age_ms = pg_get_i64(result, row, AGE_MS);
    peer->beat_ms = pg_get_i64(result, row, BEAT_MS);
    peer->ttl_ms = pg_get_i64(result, row, TTL_MS);
    peer->fit_since_ms = old ? old->fit_since_ms : 0;
    peer->unready_since_ms = old ? old->unready_since_ms : 0;
    peer->moved = old && (old->moved || old->beat != peer->beat);
    peer->silent_ms = old && old->beat == peer->beat ? old->silent_ms + counted_ms : 0;
    memcpy(instance->id, peer->id, sizeof instance->id);
    cluster_copy_text(instance->name, sizeof instance->name, pg_get_str(result, row, LABEL));
    cluster_copy_text(instance->url, sizeof instance->url, pg_get_str(result, row, URL));
    instance->self = cluster_is_self(cluster, peer->id);
    instance->draining = pg_get_bool(result, row, DRAINING);
    instance->ready = pg_get_bool(result, row, FLAG);
    instance->overloaded = pg_get_bool(result, row, OVERLOADED);
    instance->weight = (uint32_t)pg_get_i64(result, row, WEIGHT);
    peer->spreads = instance->weight > 0;
    if (!peer->spreads)
        instance->weight = 100;
    instance->streams = (uint32_t)pg_get_i64(result, row, STREAMS);
    instance->alive =
        instance->self || (!cluster_peer_dead(cluster, peer) && (peer->moved || peer->age_ms <= peer->ttl_ms));
    if (old && !cluster_peer_dead(cluster, old) && cluster_peer_dead(cluster, peer))
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
        cluster_copy_text(id, sizeof id, pg_get_str(result, row, KEY));
        peer_read(cluster, result, row, cluster_find_peer(cluster, id), counted_ms, &peers[count], &instances[count]);
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
    cluster_copy_text(cluster->shards[at].name, sizeof cluster->shards[at].name, name);
    cluster->shard_count++;
    return at;
}

/* held_ms: for how long; -1: the row does not tell. */
static void lease_read(struct cluster *cluster, struct cluster_shard *shard, struct lease *lease, const char *owner,
    uint64_t epoch, int64_t held_ms)
{
    bool held = cluster_is_self(cluster, owner);

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
    if (strcmp(shard->owner, owner) != 0 || shard->epoch != epoch)
        cluster->changed_ms = cluster->answered_ms;
    if (lease->told_ms && strcmp(owner, lease->told_to) == 0)
        lease->told_ms = 0; /* it arrived */
    if (owner[0] == '\0' || held_ms < 0)
        shard->since_ms = 0;
    else if (shard->since_ms == 0 || shard->epoch != epoch)
        shard->since_ms = cluster->base_unix_ms - (uint64_t)held_ms;
    cluster_copy_text(shard->owner, sizeof shard->owner, str_of(owner));
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
        at = cluster_shard_position(cluster, name, &found);
        if (!found)
            at = lease_insert(cluster, at, name);
        cluster_copy_text(owner, sizeof owner, pg_get_str(result, row, LABEL));
        lease_read(cluster, &cluster->shards[at], &cluster->leases[at], owner, (uint64_t)pg_get_i64(result, row, NUM),
            pg_get_i64(result, row, AGE_MS));
    }
    for (size_t i = 0; i < cluster->shard_count; i++) {
        struct lease *lease = &cluster->leases[i];

        if (lease->state == LEASE_OURS && (row_gone || !lease->present))
            lease->stolen = true;
    }
}

void cluster_count_leases(struct cluster *cluster)
{
    for (size_t i = 0; i < cluster->instance_count; i++)
        cluster->instances[i].shards = 0;
    for (size_t i = 0; i < cluster->shard_count; i++) {
        const struct peer *owner = cluster_find_peer(cluster, cluster->shards[i].owner);

        if (owner)
            cluster->instances[owner - cluster->peers].shards++;
    }
}

/* All states first, then the news: whoever is told may ask about other shards. */
void cluster_tell_leases(struct cluster *cluster)
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
            cluster->counters.lost_total++;
            cluster->events.lost(cluster->events.arg, name);
        }
        if (taken) {
            cluster->counters.taken_total++;
            cluster->events.taken(cluster->events.arg, name, cluster->shards[i].epoch);
        }
    }
}
