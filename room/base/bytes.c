#include "bytes.h"

#include <assert.h>
#include <stdlib.h>

struct bytes *bytes_room(size_t n)
{
    struct bytes *bytes;

    assert(n <= UINT32_MAX);
    bytes = xmalloc(sizeof *bytes + n);
    bytes->holders = 1;
    bytes->n = (uint32_t)n;
    return bytes;
}

struct bytes *bytes_new(const void *p, size_t n)
{
    struct bytes *bytes = bytes_room(n);

    if (n)
        memcpy(bytes->p, p, n);
    return bytes;
}

struct bytes *bytes_hold(struct bytes *bytes)
{
    assert(bytes->holders > 0 && bytes->holders < UINT32_MAX);
    bytes->holders++;
    return bytes;
}

void bytes_drop(struct bytes *bytes)
{
    if (!bytes)
        return;
    assert(bytes->holders > 0);
    if (--bytes->holders == 0)
        free(bytes);
}
