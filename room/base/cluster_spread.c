/*
 * Which instances may have shards, which shard each should have, and what moves next.
 *
 * A shard that nobody holds goes to the instance it is placed with (cluster_place.h) among those that live, can consume
 * and do not drain. A shard that another one holds moves there in order, one at a time in the whole installation, and
 * only while nothing else goes on: each instance finds the first shard in the order of names that is not where it
 * should be; its holder is told to end it. Who should have any looks often for a while: its holder may see sooner that
 * it is the time. The next one is due when the row names its new holder. Nobody asks anybody: all read the same rows,
 * and a row changes only as its reader saw it.
 */
#include "cluster_impl.h"

#include <stdlib.h>

#include "clock.h"
#include "cluster_place.h"
#include "log.h"

enum {
    SETTLED_BEATS = 2,    /* ready for so long before anything moves */
    UNREADY_BEATS = 2,    /* not able to consume for so long: others should have its shards */
    EAGER_BEATS = 5,      /* when nothing changes for so long, the usual beats do */
    TELL_AGAIN_BEATS = 30 /* nor is a holder told again before */
};

static void tell_move(struct cluster *cluster, size_t i, const char *why, uint64_t now);

/* ------------------------------------------------------------------------------------------------------- instances */

/* Its beat is overdue. Or it is our predecessor at the same address, where two cannot listen; a live one would have
 * moved. */
static bool beat_overdue(const struct cluster *cluster, size_t i)
{
    const struct cluster_instance *instance = &cluster->instances[i];
    const struct peer *peer = &cluster->peers[i];

    if (instance->self)
        return false;
    if (peer->age_ms * 4 > peer->beat_ms * 5)
        return true;
    return !peer->moved && strcmp(instance->url, cluster->url) == 0 && strcmp(peer->id, cluster->id) < 0;
}

bool cluster_peer_in_doubt(const struct cluster *cluster, const struct peer *peer)
{
    return beat_overdue(cluster, (size_t)(peer - cluster->peers)) ||
           (peer->unready_since_ms &&
               cluster->answered_ms - peer->unready_since_ms > (uint64_t)cluster->beat_ms * UNREADY_BEATS);
}

/* For what we know of ourselves the row is late. */
static bool may_have_shards(const struct cluster *cluster, size_t i)
{
    const struct cluster_instance *instance = &cluster->instances[i];

    if (instance->self)
        return cluster->able && !cluster->draining;
    return cluster->peers[i].spreads && instance->alive && instance->ready && !instance->draining;
}

/* How long this has been so. Whether another one can consume is judged only by who can: a broker that is away is away
 * for all, and they come back one after another. */
static void instances_note(struct cluster *cluster, uint64_t now)
{
    for (size_t i = 0; i < cluster->instance_count; i++) {
        const struct cluster_instance *instance = &cluster->instances[i];
        struct peer *peer = &cluster->peers[i];
        bool unready = instance->self ? !cluster->able && !cluster->draining
                                      : cluster->able && peer->spreads && !instance->ready && !instance->draining;

        if (!may_have_shards(cluster, i))
            peer->fit_since_ms = 0;
        else if (!peer->fit_since_ms)
            peer->fit_since_ms = now;
        if (!unready)
            peer->unready_since_ms = 0;
        else if (!peer->unready_since_ms)
            peer->unready_since_ms = now;
    }
}

static bool is_settled(const struct cluster *cluster, size_t i, uint64_t now)
{
    const struct peer *peer = &cluster->peers[i];

    return peer->fit_since_ms && now - peer->fit_since_ms >= (uint64_t)cluster->beat_ms * SETTLED_BEATS;
}

/* ----------------------------------------------------------------------------------------------------------- place */

static void shards_place(struct cluster *cluster)
{
    struct place_candidate *candidates = xcalloc(cluster->instance_count + 1, sizeof *candidates);
    size_t *owners = xcalloc(cluster->shard_count + 1, sizeof *owners), count = 0;

    for (size_t i = 0; i < cluster->instance_count; i++)
        if (may_have_shards(cluster, i) && !beat_overdue(cluster, i))
            candidates[count++] =
                (struct place_candidate){.id = cluster->instances[i].id, .weight = cluster->instances[i].weight};
    if (count > 0)
        cluster_place(candidates, count, cluster->shards, cluster->shard_count, owners);
    for (size_t i = 0; i < cluster->shard_count; i++)
        cluster_copy_text(cluster->leases[i].desired, sizeof cluster->leases[i].desired,
            count > 0 ? str_of(candidates[owners[i]].id) : (struct str){0});
    free(owners);
    free(candidates);
}

/* ----------------------------------------------------------------------------------------------------------- moves */

/* Nobody comes, goes or is in doubt, and every shard is in somebody's hands. */
static bool all_is_calm(const struct cluster *cluster, uint64_t now)
{
    for (size_t i = 0; i < cluster->instance_count; i++)
        if (may_have_shards(cluster, i) && (beat_overdue(cluster, i) || !is_settled(cluster, i, now)))
            return false;
    for (size_t i = 0; i < cluster->shard_count; i++) {
        const struct lease *lease = &cluster->leases[i];

        if (!lease->present || (lease->state != LEASE_OURS && lease->state != LEASE_FOREIGN) ||
            (lease->state == LEASE_FOREIGN && cluster_lease_prospect(cluster, &cluster->shards[i]) != HELD))
            return false;
    }
    return true;
}

/* The first shard that is not where it should be. SIZE_MAX: there is none, or it is not the time. */
static size_t move_due(const struct cluster *cluster, uint64_t now)
{
    if (!all_is_calm(cluster, now))
        return SIZE_MAX;
    for (size_t i = 0; i < cluster->shard_count; i++) {
        const struct peer *owner = cluster_find_peer(cluster, cluster->shards[i].owner);
        const char *desired = cluster->leases[i].desired;

        /* One from before does not know of moves; one that drains or cannot consume gives back by itself. */
        if (desired[0] && owner && owner->spreads && owner->fit_since_ms && strcmp(owner->id, desired) != 0)
            return i;
    }
    return SIZE_MAX;
}

/* Others can consume, we cannot: what we hold stands still. */
static void give_back_unready(struct cluster *cluster, uint64_t now)
{
    const struct peer *self = cluster_find_peer(cluster, cluster->id);

    if (!self || !self->unready_since_ms || now - self->unready_since_ms <= (uint64_t)cluster->beat_ms * UNREADY_BEATS)
        return;
    for (size_t i = 0; i < cluster->shard_count && !cluster->leaving; i++) {
        const struct peer *desired = cluster_find_peer(cluster, cluster->leases[i].desired);

        if (desired && is_settled(cluster, (size_t)(desired - cluster->peers), now))
            tell_move(cluster, i, "cannot_consume", now);
    }
}

static void tell_move(struct cluster *cluster, size_t i, const char *why, uint64_t now)
{
    struct lease *lease = &cluster->leases[i];

    if (lease->state != LEASE_OURS)
        return;
    if (lease->told_ms && now - lease->told_ms < (uint64_t)cluster->beat_ms * TELL_AGAIN_BEATS &&
        strcmp(lease->told_to, lease->desired) == 0)
        return;
    lease->told_ms = now;
    memcpy(lease->told_to, lease->desired, sizeof lease->told_to);
    cluster->counters.moves_total++;
    log_info("lease.move", "shard=%s epoch=%llu to=%s why=%s", cluster->shards[i].name,
        (unsigned long long)cluster->shards[i].epoch, lease->desired, why);
    cluster->events.move(cluster->events.arg, str_of(cluster->shards[i].name));
}

void cluster_spread(struct cluster *cluster, uint64_t now)
{
    instances_note(cluster, now);
    shards_place(cluster);
}

void cluster_move_shards(struct cluster *cluster, uint64_t now)
{
    size_t due = move_due(cluster, now);
    bool ours = due != SIZE_MAX && cluster->leases[due].state == LEASE_OURS;
    bool to_us = due != SIZE_MAX && cluster_is_self(cluster, cluster->leases[due].desired);

    cluster->moving = ours || to_us;
    if (ours)
        tell_move(cluster, due, "share", now);
    if (!cluster->leaving)
        give_back_unready(cluster, now);
}

/* ----------------------------------------------------------------------------------------------------------- polls */

/* Something is about to come to us, or from us to another one: the pause of its streams is the time we look away. */
static bool is_passing(const struct cluster *cluster)
{
    for (size_t i = 0; i < cluster->shard_count; i++) {
        const struct lease *lease = &cluster->leases[i];

        if (lease->state == LEASE_LEAVING)
            return true;
        /* Its holder may see sooner than we do that it is the time to move it. */
        if (lease->state == LEASE_FOREIGN && cluster_is_self(cluster, lease->desired))
            return true;
    }
    return cluster->moving;
}

bool cluster_is_eager(struct cluster *cluster, uint64_t now)
{
    uint64_t since;

    if (!is_passing(cluster)) {
        cluster->passing_since_ms = 0;
        return false;
    }
    if (!cluster->passing_since_ms)
        cluster->passing_since_ms = now;
    since = cluster->passing_since_ms > cluster->changed_ms ? cluster->passing_since_ms : cluster->changed_ms;
    return now - since < (uint64_t)cluster->beat_ms * EAGER_BEATS;
}

uint64_t cluster_judged_at_ms(const struct cluster *cluster, size_t i)
{
    const struct peer *peer = &cluster->peers[i];

    if (peer->fit_since_ms)
        return peer->fit_since_ms + (uint64_t)cluster->beat_ms * SETTLED_BEATS;
    return peer->unready_since_ms ? peer->unready_since_ms + (uint64_t)cluster->beat_ms * UNREADY_BEATS + 1 : 0;
}
