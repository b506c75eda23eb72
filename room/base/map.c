#include "map.h"

#include "ulid.h"

#include <assert.h>
#include <stdlib.h>

enum { BUCKETS_AT_FIRST = 16 };

static void map_grow(struct map *map);
static struct map_link **bucket_of(const struct map *map, uint64_t hash);

/* --- the table --- */

void map_init(struct map *map)
{
    *map = (struct map){0};
}

void map_clear(struct map *map)
{
    free(map->buckets);
    map_init(map);
}

struct map_link *map_find(const struct map *map, uint64_t hash, map_equal equal, const void *key)
{
    if (map->count == 0)
        return NULL;
    for (struct map_link *link = *bucket_of(map, hash); link; link = link->next)
        if (link->hash == hash && equal(link, key))
            return link;
    return NULL;
}

void map_insert(struct map *map, uint64_t hash, struct map_link *link)
{
    struct map_link **bucket;

    if (map->count >= map->bucket_count)
        map_grow(map);
    bucket = bucket_of(map, hash);
    link->hash = hash;
    link->next = *bucket;
    *bucket = link;
    map->count++;
}

void map_remove(struct map *map, struct map_link *link)
{
    struct map_link **at;

    assert(map->count > 0);
    for (at = bucket_of(map, link->hash); *at != link; at = &(*at)->next)
        assert(*at);
    *at = link->next;
    link->next = NULL;
    map->count--;
}

struct map_link *map_next(const struct map *map, const struct map_link *link)
{
    size_t bucket = 0;

    if (link) {
        if (link->next)
            return link->next;
        bucket = (size_t)(bucket_of(map, link->hash) - map->buckets) + 1;
    }
    for (; bucket < map->bucket_count; bucket++)
        if (map->buckets[bucket])
            return map->buckets[bucket];
    return NULL;
}

static void map_grow(struct map *map)
{
    struct map_link **old = map->buckets;
    size_t old_count = map->bucket_count;

    map->bucket_count = old_count ? old_count * 2 : BUCKETS_AT_FIRST;
    map->buckets = xcalloc(map->bucket_count, sizeof(struct map_link *));
    for (size_t i = 0; i < old_count; i++) {
        for (struct map_link *link = old[i], *next; link; link = next) {
            struct map_link **bucket = bucket_of(map, link->hash);

            next = link->next;
            link->next = *bucket;
            *bucket = link;
        }
    }
    free(old);
}

static struct map_link **bucket_of(const struct map *map, uint64_t hash)
{
    return &map->buckets[hash & (map->bucket_count - 1)];
}

/* --- the hash: SipHash-1-3 (Aumasson, Bernstein: SipHash, 2012; the variant with fewer rounds that Rust and Ruby use)
 * --- */

static uint64_t key0, key1;

/* Before main, so that threads need not agree on who draws the key. */
__attribute__((constructor)) static void map_seed_at_start(void)
{
    random_bytes(&key0, sizeof key0);
    random_bytes(&key1, sizeof key1);
}

void map_seed(uint64_t seed)
{
    key0 = seed;
    key1 = ~seed;
}

static inline uint64_t rotate(uint64_t x, int bits)
{
    return x << bits | x >> (64 - bits);
}

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0];
    v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2];
    v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

static inline void sip_word(uint64_t v[4], uint64_t word)
{
    v[3] ^= word;
    sip_round(v);
    v[0] ^= word;
}

uint64_t map_hash(const void *bytes, size_t n)
{
    uint64_t v[4] = {key0 ^ UINT64_C(0x736f6d6570736575), key1 ^ UINT64_C(0x646f72616e646f6d),
        key0 ^ UINT64_C(0x6c7967656e657261), key1 ^ UINT64_C(0x7465646279746573)};
    const unsigned char *p = bytes;
    uint64_t word, tail = (uint64_t)n << 56;
    size_t left = n;

    for (; left >= 8; left -= 8, p += 8) {
        memcpy(&word, p, 8);
        sip_word(v, word);
    }
    for (size_t i = 0; i < left; i++)
        tail |= (uint64_t)p[i] << (8 * i);
    sip_word(v, tail);
    v[2] ^= 0xff;
    sip_round(v);
    sip_round(v);
    sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* For numbers of our own making (room numbers): spreads, but does not withstand an attacker who picks them.
 * The mixing is MurmurHash3's finaliser. */
uint64_t map_hash_u64(uint64_t value)
{
    value ^= key0;
    value = (value ^ value >> 33) * UINT64_C(0xff51afd7ed558ccd);
    value = (value ^ value >> 33) * UINT64_C(0xc4ceb9fe1a85ec53);
    return value ^ value >> 33;
}
