/*
 * Who is here and who owns what: the registry of instances and the leases of shards, kept in PostgreSQL. An instance
 * renews one counter a second, whatever the number of its shards; a lease row changes only when its owner does. A lease
 * carries an epoch (fencing number) that grows with every owner and is compared, together with the owner's instance id,
 * in every append.
 *
 * Death is judged by the observer: an instance whose counter did not move during lease_ttl_ms of our own monotonic
 * clock in which our own polls succeeded is dead; nobody loses leases because the database was away. Sooner: when a
 * beat is missed and its shard's queue has no consumer in two looks 300 ms apart. Takeover runs with a lock_timeout of
 * 300 ms and ends the old owner's backend when that expires (a half-sent batch would hold the fence for ever).
 *
 * Which shard should be whose follows from the instances' ids and weights (cluster_place.h); what is free goes there,
 * what another one holds is moved there in order, one at a time in the whole installation (cluster_spread.c). An
 * instance that cannot consume for two beats gives its shards back when others can, or loses them.
 *
 * A stopped clock (process or machine stood still for more than lease_ttl_ms by CLOCK_BOOTTIME) is found before the
 * next beat is believed: shards are reported lost unless the re-read rows still name us.
 *
 *   shard:  FOREIGN -free or owner dead-> TAKING -row changed-> OURS -release / row names another-> FOREIGN
 *
 * Thread: the loop's.
 */
#ifndef ROOMD_BASE_CLUSTER_H
#define ROOMD_BASE_CLUSTER_H

#include "buf.h"
#include "err.h"
#include "pg.h"

struct cluster;

struct cluster_events {
    /* The lease is ours under `epoch`. Everything of the shard may start. */
    void (*taken)(void *arg, struct str shard, uint64_t epoch);
    /* It is not ours any more: stop at once, ack nothing more. */
    void (*lost)(void *arg, struct str shard);
    /* Nobody renewed that owner's beat: is anybody still consuming the shard's queue? Answer with cluster_probed (later
     * or at once). */
    void (*probe)(void *arg, struct str shard);
    /* It is ours, and another instance should have it: end it in order, then cluster_release. One at a time, or all
     * when we cannot consume. Told again after 30 beats. */
    void (*move)(void *arg, struct str shard);
    void *arg;
};

struct cluster_settings {
    const char *instance_name, *url;
    int64_t beat_ms, lease_ttl_ms;
    int64_t weight; /* 1 to 10,000: its part of the shards and streams, compared with others; 100 is usual */
};

struct cluster_instance {
    char id[27];
    char name[64];
    char url[256];
    bool draining, alive; /* alive: as this observer judges */
    bool self;
    bool ready;       /* it can consume */
    bool overloaded;  /* it takes no new streams at the moment */
    uint32_t weight;  /* above 0 */
    uint32_t shards;  /* leases it holds */
    uint32_t streams; /* as it last said */
};

MUST_USE enum err cluster_join(struct cluster **out, uv_loop_t *loop, struct pg *pg,
    const struct cluster_settings *settings, const struct cluster_events *events);
const char *cluster_self(const struct cluster *cluster); /* our instance id: a ULID minted at start, text with NUL */
/* Takeover waits until this was said: an instance that cannot consume must not take shards. */
void cluster_ready(struct cluster *cluster, bool able);
void cluster_probed(struct cluster *cluster, struct str shard, enum err err, uint32_t consumers);

/* Orderly end of one lease: after the last commit was acked and the channel closed. */
void cluster_release(struct cluster *cluster, struct str shard);
void cluster_set_draining(struct cluster *cluster, bool draining);
void cluster_set_load(struct cluster *cluster, uint32_t streams, bool overloaded);
/* The write lane's session changed: the lease rows name the backend that a successor may have to end. Done when the
 * rows are written; appends may go on meanwhile. */
void cluster_bind_backend(struct cluster *cluster, int backend_pid);

/* False when this process stood still for longer than a lease and the leases were not read again since: whoever is
 * about to sequence what a socket gave him asks first, because that may have been read before any timer could run.
 * Costs a clock reading. */
bool cluster_sure(struct cluster *cluster);

/* Known instances, self included, as of the last beat. The array is good until the next one. */
size_t cluster_instances(const struct cluster *cluster, const struct cluster_instance **instances);
/* All shards of the installation in order; the owner's id ("" = nobody) and epoch. Good until the loop runs on. */
size_t cluster_shard_count(const struct cluster *cluster);
struct cluster_shard {
    char name[8];
    uint64_t epoch;
    char owner[27];
    bool ours;
    uint64_t since_ms; /* unix time at which the owner got it; 0: not known, or nobody has it */
};
const struct cluster_shard *cluster_shards(const struct cluster *cluster); /* [cluster_shard_count] */
const struct cluster_shard *cluster_find_shard(const struct cluster *cluster, struct str name);

struct cluster_counters {
    uint64_t taken_total, lost_total; /* leases, as told by events */
    uint64_t released_total;          /* given back in order */
    uint64_t moves_total;             /* of which because another instance should have them */
};
struct cluster_counters cluster_counters(const struct cluster *cluster);

/* Database time in unix ms: as of the last beat, plus our monotonic clock since. 0 before the first beat. */
uint64_t cluster_now_ms(const struct cluster *cluster);
bool cluster_database_ok(const struct cluster *cluster); /* the last beat was answered */

/* Leaves the registry, releases what is left; no event comes any more. done(arg) once, later, also when the database is
 * away (then after 1 s); the cluster is freed before it. */
void cluster_leave(struct cluster *cluster, void (*done)(void *arg), void *arg);

#endif
