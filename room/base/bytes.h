/*
 * Shared counted bytes that nobody changes any more: an event is encoded once and a thousand streams hold the same
 * bytes. Thread: the loop's (the count is not atomic).
 */
#ifndef ROOMD_BASE_BYTES_H
#define ROOMD_BASE_BYTES_H

#include "buf.h"

struct bytes {
    uint32_t holders;
    uint32_t n;
    char p[];
};

struct bytes *bytes_new(const void *p, size_t n); /* copies; ours */
struct bytes *bytes_room(size_t n);               /* n bytes to be filled before anyone else holds them */
struct bytes *bytes_hold(struct bytes *bytes);    /* one more holder; returns its argument */
void bytes_drop(struct bytes *bytes);             /* NULL is allowed */
static inline struct str bytes_str(const struct bytes *bytes)
{
    return (struct str){bytes->p, bytes->n};
}

#endif
