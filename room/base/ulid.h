/*
 * ULIDs: 128-bit ids written as 26 characters of Crockford base 32, sortable by time (48 bits of ms, 80 random).
 * Source: github.com/ulid/spec. Ids minted by one process within one ms ascend. Thread: the loop's.
 */
#ifndef ROOMD_BASE_ULID_H
#define ROOMD_BASE_ULID_H

#include "mem.h"

#define ULID_TEXT 26 /* characters, no NUL */

struct id128 {
    uint8_t b[16]; /* big-endian */
};

struct id128 ulid_new(uint64_t unix_ms);
void ulid_write(char text[ULID_TEXT], struct id128 id); /* no NUL */
bool ulid_read(struct id128 *id, struct str text);      /* 26 characters, upper or lower case, <= 128 bits */
void random_bytes(void *p, size_t n);                   /* from the kernel */
static inline bool id128_eq(struct id128 a, struct id128 b)
{
    return memcmp(a.b, b.b, sizeof a.b) == 0;
}
static inline bool id128_is_zero(struct id128 a)
{
    return id128_eq(a, (struct id128){{0}});
}

#endif
