#include "cluster_place.h"

#include <assert.h>

/* FNV-1a over both names, then mixed (splitmix64's end): the names differ in their last characters only, and all bits
 * of the result must. */
static uint64_t hash_of(const char *id, const char *shard)
{
    uint64_t hash = 1469598103934665603u;

    for (const char *c = id; *c; c++)
        hash = (hash ^ (unsigned char)*c) * 1099511628211u;
    for (const char *c = shard; *c; c++)
        hash = (hash ^ (unsigned char)*c) * 1099511628211u;
    hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9u;
    hash = (hash ^ hash >> 27) * 0x94d049bb133111ebu;
    return hash ^ hash >> 31;
}

/* -log2(hash / 2^64), in units of 2^-32. In whole numbers, because the last digit of a libm is not the same everywhere,
 * and two instances that disagree would hand a shard to and fro. */
static uint64_t minus_log2(uint64_t hash)
{
    unsigned zeros = (unsigned)__builtin_clzll(hash | 1);
    unsigned __int128 mantissa = (unsigned __int128)((hash | 1) << zeros); /* 1.63 binary digits, 1 to 2 */
    uint64_t fraction = 0;

    for (int bit = 0; bit < 32; bit++) {
        mantissa = mantissa * mantissa >> 63;
        fraction <<= 1;
        if (mantissa >> 64) {
            mantissa >>= 1;
            fraction |= 1;
        }
    }
    return ((uint64_t)(zeros + 1) << 32) - fraction;
}

static uint64_t score_of(const struct place_candidate *candidate, const struct cluster_shard *shard)
{
    return ((uint64_t)candidate->weight << 48) / minus_log2(hash_of(candidate->id, shard->name));
}

void cluster_place(struct place_candidate *candidates, size_t candidate_count, const struct cluster_shard *shards,
    size_t shard_count, size_t *owner)
{
    uint64_t weights = 0;
    size_t extra = shard_count; /* what is left when everybody has the whole part of his share */

    assert(candidate_count > 0);
    for (size_t i = 0; i < candidate_count; i++)
        weights += candidates[i].weight;
    for (size_t i = 0; i < candidate_count; i++) {
        uint64_t share = (uint64_t)shard_count * candidates[i].weight;

        candidates[i].room = (size_t)(share / weights);
        candidates[i].may_exceed = share % weights > 0;
        candidates[i].count = 0;
        extra -= candidates[i].room;
    }
    for (size_t shard = 0; shard < shard_count; shard++) {
        uint64_t highest = 0;
        size_t best = candidate_count;

        for (size_t i = 0; i < candidate_count; i++) {
            const struct place_candidate *candidate = &candidates[i];
            bool room = candidate->count < candidate->room ||
                        (candidate->may_exceed && extra > 0 && candidate->count == candidate->room);
            uint64_t score = room ? score_of(candidate, &shards[shard]) : 0;

            if (room && (best == candidate_count || score > highest)) {
                best = i;
                highest = score;
            }
        }
        assert(best < candidate_count);
        if (candidates[best].count++ >= candidates[best].room)
            extra--;
        owner[shard] = best;
    }
}
