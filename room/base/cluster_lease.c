#include "cluster_impl.h"

#include "clock.h"
#include "log.h"

enum {
    LOOK_GAP_MS = 300, /* between two looks at a queue: an owner that changes its channel is back by then */
    LOOK_LOST_MS = 2000,
    LOOKS_NEEDED = 2,
    UNTAKEN_BEATS = 2, /* who should take a free shard has had time to */
    EAGER_POLL_MS = 25,
};

static const struct pg_statement take_statement = {
    "cluster_take", "SELECT shard, epoch FROM cluster_take($1, $2, $3, $4, $5, $6, $7)", 7};
static const struct pg_statement bind_statement = {
    "cluster_bind_backend", "SELECT cluster_bind_backend($1, $2, $3)", 3};
static const struct pg_statement release_statement = {"cluster_release", "SELECT cluster_release($1, $2)", 2};

static void take_start(struct cluster *cluster, bool waits);
static void take_done(struct pg_query *query, enum err err, const PGresult *result);
static void bind_done(struct pg_query *query, enum err err, const PGresult *result);
static void release_done(struct pg_query *query, enum err err, const PGresult *result);

/* --- who should have what --- */

enum prospect cluster_lease_prospect(const struct cluster *cluster, const struct cluster_shard *shard)
{
    const struct peer *owner;

    if (shard->owner[0] == '\0' || cluster_is_self(cluster, shard->owner))
        return VACANT; /* named, but not held by us: a take whose answer was lost, or given up in between */
    owner = cluster_find_peer(cluster, shard->owner);
    if (!owner || cluster_peer_dead(cluster, owner))
        return VACANT;
    return cluster_peer_in_doubt(cluster, owner) ? IN_DOUBT : HELD;
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

/* What is placed with us. Also what nobody took for a while: who should have does not. And what names us already. */
static bool is_ours_to_take(const struct cluster *cluster, size_t i, enum prospect prospect, uint64_t now)
{
    const struct lease *lease = &cluster->leases[i];

    if (!cluster->able || cluster->draining)
        return false;
    if (cluster_is_self(cluster, lease->desired) || cluster_is_self(cluster, cluster->shards[i].owner))
        return true;
    return prospect == VACANT && now - lease->vacant_since_ms > (uint64_t)cluster->beat_ms * UNTAKEN_BEATS;
}

/* Looks at what is in doubt, marks for taking what is ours to take. */
void cluster_judge_leases(struct cluster *cluster, uint64_t now)
{
    bool any = false;

    cluster->urgent = false;
    for (size_t i = 0; i < cluster->shard_count && !cluster->leaving; i++) {
        struct cluster_shard *shard = &cluster->shards[i];
        struct lease *lease = &cluster->leases[i];
        enum prospect prospect = cluster_lease_prospect(cluster, shard);

        if (lease->state == LEASE_LEAVING)
            cluster->urgent = true;
        if (lease->state != LEASE_FOREIGN || prospect != VACANT)
            lease->vacant_since_ms = 0;
        else if (!lease->vacant_since_ms)
            lease->vacant_since_ms = now;
        if (lease->state != LEASE_FOREIGN || !lease->present)
            continue;
        if (prospect == HELD) {
            lease->looks = 0;
            lease->looking = false;
            continue;
        }
        cluster->urgent = true;
        if (!is_ours_to_take(cluster, i, prospect, now))
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
    struct lease *lease = cluster_find_lease(cluster, name, &shard);

    if (!lease || !lease->looking)
        return;
    lease->looking = false;
    lease->looks = !err && consumers == 0 ? lease->looks + 1 : 0;
    /* The owner's counter is read again before the next look, and before anything is taken. */
    cluster_poll_at(cluster, lease->looks >= LOOKS_NEEDED ? 0 : lease->looked_ms + LOOK_GAP_MS);
}

/* The moments at which something is to be judged anew. */
static uint64_t next_moment(const struct cluster *cluster, size_t i, uint64_t now)
{
    const struct peer *peer = &cluster->peers[i];
    int64_t overdue = peer->beat_ms * 5 / 4 - peer->age_ms + 5;
    uint64_t moment = now + (uint64_t)cluster->beat_ms, judged = cluster_judged_at_ms(cluster, i);

    if (!cluster->instances[i].self && cluster->instances[i].shards > 0 && overdue > 0 &&
        now + (uint64_t)overdue < moment)
        moment = now + (uint64_t)overdue;
    if (judged > now && judged < moment)
        moment = judged;
    return moment;
}

void cluster_plan_poll(struct cluster *cluster, uint64_t now)
{
    uint64_t next = now + (uint64_t)cluster->beat_ms;
    bool eager = cluster_is_eager(cluster, now);

    for (size_t i = 0; i < cluster->instance_count; i++) {
        uint64_t moment = next_moment(cluster, i, now);

        if (moment < next)
            next = moment;
        if (cluster->instances[i].draining && cluster->instances[i].shards > 0)
            cluster->urgent = true; /* it is about to give back what it holds */
    }
    if (cluster->urgent && now + CLUSTER_FAST_POLL_MS < next)
        next = now + CLUSTER_FAST_POLL_MS;
    if (eager && now + EAGER_POLL_MS < next)
        next = now + EAGER_POLL_MS;
    cluster_tick_finely(cluster, eager);
    cluster_poll_at(cluster, next);
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
        const struct peer *owner = cluster_find_peer(cluster, shard->owner);

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
    cluster_params_begin(cluster);
    pg_param_i32(&cluster->params, cluster->backend_pid);
    pg_param_array(&cluster->params, shards);
    pg_param_array(&cluster->params, epochs);
    pg_param_array(&cluster->params, holders);
    pg_param_array(&cluster->params, beats);
    pg_param_bool(&cluster->params, waits);
    cluster_submit(cluster, &cluster->take, &take_statement, take_done,
        cluster->lease_ttl_ms > 5000 ? cluster->lease_ttl_ms : 5000);
}

static void take_done(struct pg_query *query, enum err err, const PGresult *result)
{
    struct cluster *cluster = container_of(query, struct cluster, take);
    bool again = false;

    cluster_pause_check(cluster);
    if (cluster->take_pauses != cluster->pauses)
        err = ERR_LOST; /* old news: what we got then may be another's by now, the next beat tells */
    for (size_t i = 0; i < cluster->shard_count; i++)
        if (cluster->leases[i].state == LEASE_TAKING)
            cluster->leases[i].state = LEASE_FOREIGN;
    for (int row = 0; !err && row < PQntuples(result); row++) {
        int64_t epoch = pg_get_i64(result, row, 1);
        struct cluster_shard *shard;
        struct lease *lease = cluster_find_lease(cluster, pg_get_str(result, row, 0), &shard);

        if (!lease)
            continue;
        if (epoch >= 0) {
            lease->taken = true;
            cluster->changed_ms = clock_mono_ms();
            lease->locked = false;
            lease->looks = 0;
            shard->epoch = (uint64_t)epoch;
            shard->since_ms = cluster_now_ms(cluster);
            cluster_copy_text(shard->owner, sizeof shard->owner, str_of(cluster->id));
        } else if (!cluster->take_waits) {
            lease->state = LEASE_TAKING;
            again = true;
        } else {
            if (!lease->locked)
                log_warn("lease.locked", "shard=%s holder=%s", shard->name, shard->owner);
            lease->locked = true;
        }
    }
    cluster_count_leases(cluster);
    if (cluster->take_pid != cluster->backend_pid)
        cluster->bind_wanted = true;
    if (again)
        take_start(cluster, true);
    cluster_tell_leases(cluster);
}

/* --- naming our writing session --- */

void cluster_bind_backend(struct cluster *cluster, int backend_pid)
{
    cluster->backend_pid = backend_pid;
    cluster->bind_wanted = true;
    cluster->bind_waits = false;
    cluster_poll_now(cluster); /* our own row names it at once, the leases as soon as appends let go of them */
    cluster_bind_start(cluster);
}

void cluster_bind_start(struct cluster *cluster)
{
    bool any = false;

    for (size_t i = 0; i < cluster->shard_count; i++)
        any |= cluster->leases[i].state == LEASE_OURS;
    if (!any && cluster->take.state == PG_IDLE)
        cluster->bind_wanted = false; /* a take brings it along */
    if (!any || cluster->bind.state != PG_IDLE || cluster->leaving || !pg_up(cluster->pg, PG_CONTROL))
        return;
    cluster->bind_pid = cluster->backend_pid;
    cluster_params_begin(cluster);
    pg_param_i32(&cluster->params, cluster->backend_pid);
    pg_param_bool(&cluster->params, cluster->bind_waits);
    cluster_submit(cluster, &cluster->bind, &bind_statement, bind_done, 0);
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
    struct lease *lease = cluster_find_lease(cluster, name, &shard);

    if (!lease || lease->state != LEASE_OURS || cluster->leaving)
        return;
    lease->state = LEASE_LEAVING;
    lease->stolen = false;
    shard->ours = false;
    cluster->counters.released_total++;
    cluster_release_start(cluster);
}

void cluster_release_start(struct cluster *cluster)
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
    cluster_params_begin(cluster);
    pg_param_array(&cluster->params, shards);
    cluster_submit(cluster, &cluster->release, &release_statement, release_done, 0);
}

static void release_done(struct pg_query *query, enum err err, const PGresult *result)
{
    struct cluster *cluster = container_of(query, struct cluster, release);

    (void)result;
    cluster_poll_now(cluster); /* shows what came of it */
    if (!err && cluster->release_wanted)
        cluster_release_start(cluster);
}
