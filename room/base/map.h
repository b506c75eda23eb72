/*
 * A hash table whose links live in the members: no allocation per entry, the caller owns the members.
 * Grows by itself. Thread: the loop's. Hashes are keyed with a random number per process (map_hash), so that
 * names chosen by a stranger cannot pile up in one bucket.
 */
#ifndef ROOMD_BASE_MAP_H
#define ROOMD_BASE_MAP_H

#include "mem.h"

struct map_link {
    struct map_link *next;
    uint64_t hash;
};

struct map {
    struct map_link **buckets;
    size_t bucket_count; /* a power of two */
    size_t count;
};

typedef bool (*map_equal)(const struct map_link *link, const void *key);

void map_init(struct map *map);
void map_clear(struct map *map); /* frees the table, not the members */

uint64_t map_hash(const void *bytes, size_t n);
uint64_t map_hash_u64(uint64_t value);
void map_seed(uint64_t seed); /* tests and replays only: makes hashes repeatable; before the first use */

struct map_link *map_find(const struct map *map, uint64_t hash, map_equal equal, const void *key);
void map_insert(struct map *map, uint64_t hash, struct map_link *link); /* does not look for an equal one */
void map_remove(struct map *map, struct map_link *link);                /* must be in the map */

/* Walks all members: link = map_next(map, NULL), then map_next(map, link). The current one may be removed only after
 * the next was fetched. */
struct map_link *map_next(const struct map *map, const struct map_link *link);

#endif
