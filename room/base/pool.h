/*
 * Memory of one size that is used again: what is made and freed per message would else go through malloc tens of
 * thousands of times a second in bursts that its thread cache does not hold. With AddressSanitizer every piece is
 * malloc'ed and freed, so that a use after free is still seen. Thread: the loop's.
 */
#ifndef ROOMD_BASE_POOL_H
#define ROOMD_BASE_POOL_H

#include <stdlib.h>

#include "mem.h"

#define POOL_IDLE_MAX 4096 /* pieces kept; more go back to malloc */

struct pool {
    size_t size;
    size_t idle;
    void *first; /* each idle piece begins with the address of the next */
};
#define POOL_OF(type)         \
    {                         \
        sizeof(type), 0, NULL \
    }

static inline void *pool_take(struct pool *pool) /* zeroed */
{
    void *piece = pool->first;

    if (!piece)
        return xcalloc(1, pool->size);
    memcpy(&pool->first, piece, sizeof pool->first);
    pool->idle--;
    return memset(piece, 0, pool->size);
}

static inline void pool_give(struct pool *pool, void *piece)
{
    (void)pool;
#ifndef __SANITIZE_ADDRESS__
    if (piece && pool->idle < POOL_IDLE_MAX) {
        memcpy(piece, &pool->first, sizeof pool->first);
        pool->first = piece;
        pool->idle++;
        return;
    }
#endif
    free(piece);
}

#endif
