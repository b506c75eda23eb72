/*
 * Which instance should have which shard: rendezvous hashing with weights and bounded load. Every instance finds the
 * same answer from the same names, without asking anybody.
 *
 * Each pair of shard and instance has a score that grows with the instance's weight; a shard goes to the highest score
 * that has room left. An instance has room for the whole part of its weighted share, and for one more as long as not
 * all of the remainder is given out: so nobody is more than one away from his share, and when one comes or goes few
 * shards move but those he gets or had. (Rendezvous: Thaler and Ravishankar, 1998; with weights: score = weight /
 * -log(hash).)
 *
 * Thread: pure function, any thread. Memory: the caller's.
 */
#ifndef ROOMD_BASE_CLUSTER_PLACE_H
#define ROOMD_BASE_CLUSTER_PLACE_H

#include "cluster.h"

struct place_candidate {
    const char *id;  /* text with NUL */
    uint32_t weight; /* 1 to 10,000 */
    /* cluster_place's own */
    size_t room, count;
    bool may_exceed;
};

/* owner[shard] = index of the candidate that should have it. Candidates and shards in an order that is the same
 * everywhere; at least one candidate. */
void cluster_place(struct place_candidate *candidates, size_t candidate_count, const struct cluster_shard *shards,
    size_t shard_count, size_t *owner);

#endif
