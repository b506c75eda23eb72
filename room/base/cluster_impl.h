/*
 * Shared by the files of the cluster; nobody else includes this.
 *
 *   cluster.c        joining and leaving, what others ask and say, the tick
 *   cluster_beat.c   one poll: our beat out, instances and leases in
 *   cluster_place.c  which instance should have which shard, as a pure function
 *   cluster_spread.c who may have shards, who should have which, what moves
 *   cluster_lease.c  what is free or in doubt; taking, giving back, naming our writing session
 */
#ifndef ROOMD_BASE_CLUSTER_IMPL_H
#define ROOMD_BASE_CLUSTER_IMPL_H

#include "cluster.h"
#include "ulid.h"

#include <uv.h>

enum {
    CLUSTER_FAST_POLL_MS = 200, /* while a lease is free or its owner in doubt */
};

/* What we know of an instance besides what others see of it. */
struct peer {
    char id[ULID_TEXT + 1];
    int64_t beat, beat_ms, ttl_ms;
    int64_t age_ms;     /* since its last beat, by the database's clock: a reason to look closer, never to take */
    uint64_t silent_ms; /* time in which our polls were answered and its counter stood */
    bool moved;         /* seen alive, not only found in the table */
    uint64_t fit_since_ms, unready_since_ms; /* monotonic: may have shards, cannot consume; 0: it is not so */
    bool spreads; /* it says its weight; programs that do not take what is free by a rule of their own */
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
    char desired[ULID_TEXT + 1]; /* who should have it; "": nobody can */
    uint64_t vacant_since_ms;    /* 0: somebody has it */
    /* Last told to be moved, and where to. */
    char told_to[ULID_TEXT + 1];
    uint64_t told_ms;
};

enum prospect { HELD, IN_DOUBT, VACANT };

struct cluster {
    uv_timer_t tick;
    struct pg *pg;
    struct cluster_events events;
    char id[ULID_TEXT + 1];
    char name[64], url[256];
    int64_t beat_ms, lease_ttl_ms, weight;
    bool able, draining, leaving, overloaded;
    uint32_t streams;
    struct cluster_counters counters;

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
    bool moving;                                      /* a move is due that is ours to make, or comes to us */
    uint64_t passing_since_ms, changed_ms;            /* something comes or goes; a lease last changed */
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

/* --- cluster.c --- */

/* Begins a statement's parameters: our id is the first. */
void cluster_params_begin(struct cluster *cluster);
/* timeout_ms 0: the pool's. */
void cluster_submit(struct cluster *cluster, struct pg_query *query, const struct pg_statement *statement,
    void (*done)(struct pg_query *query, enum err err, const PGresult *result), int64_t timeout_ms);
/* Never makes it later; while a poll is under way this is about the one after it. */
void cluster_poll_at(struct cluster *cluster, uint64_t at_ms);
void cluster_poll_now(struct cluster *cluster);
void cluster_tick_finely(struct cluster *cluster, bool finely); /* how exactly polls come at their time */
/* Finds out whether this process, or the machine, stood still. */
void cluster_pause_check(struct cluster *cluster);
void cluster_forget_dead(struct cluster *cluster); /* removes the row of one that is long dead */
/* Where `name` stands, or would stand. */
size_t cluster_shard_position(const struct cluster *cluster, struct str name, bool *found);
struct lease *cluster_find_lease(const struct cluster *cluster, struct str name, struct cluster_shard **shard);
bool cluster_is_self(const struct cluster *cluster, const char *id);
struct peer *cluster_find_peer(const struct cluster *cluster, const char *id);
bool cluster_peer_dead(const struct cluster *cluster, const struct peer *peer);
void cluster_copy_text(char *to, size_t size, struct str from);

/* --- cluster_beat.c --- */

void cluster_beat_start(struct cluster *cluster);
void cluster_count_leases(struct cluster *cluster); /* of each instance */
/* News of leases to the owner of the cluster, who may leave it while he is told. */
void cluster_tell_leases(struct cluster *cluster);

/* --- cluster_spread.c --- */

void cluster_spread(struct cluster *cluster, uint64_t now);      /* after a poll: who may and should have what */
void cluster_move_shards(struct cluster *cluster, uint64_t now); /* and what of it moves now */
bool cluster_peer_in_doubt(const struct cluster *cluster, const struct peer *peer);
bool cluster_is_eager(struct cluster *cluster, uint64_t now); /* polls should follow each other closely */
/* When it will have been able, or not able, to consume for long enough that shards move; 0: that is no question. */
uint64_t cluster_judged_at_ms(const struct cluster *cluster, size_t i);

/* --- cluster_lease.c --- */

enum prospect cluster_lease_prospect(const struct cluster *cluster, const struct cluster_shard *shard);
void cluster_judge_leases(
    struct cluster *cluster, uint64_t now); /* looks at what is in doubt, takes what is ours to take */
void cluster_plan_poll(struct cluster *cluster, uint64_t now);
void cluster_bind_start(struct cluster *cluster);
void cluster_release_start(struct cluster *cluster);

#endif
