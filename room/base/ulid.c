#include "ulid.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

static const char alphabet[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"; /* Crockford: no I, L, O, U */

/* A clock set back by less than this keeps minting ascending ids under the old time; by more, the new time counts. */
enum { STEP_BACK_MAX_MS = 10000 };

static uint64_t time_of(const struct id128 *id)
{
    uint64_t ms = 0;

    for (int i = 0; i < 6; i++)
        ms = ms << 8 | id->b[i];
    return ms;
}

struct id128 ulid_new(uint64_t unix_ms)
{
    static struct id128 last;
    uint64_t last_ms = time_of(&last);

    assert(unix_ms < UINT64_C(1) << 48);
    if (unix_ms <= last_ms && last_ms - unix_ms < STEP_BACK_MAX_MS) {
        /* One more than the last; should 80 bits ever run over, the carry goes into the time. */
        for (int i = 15; i >= 0 && ++last.b[i] == 0; i--)
            ;
        return last;
    }
    random_bytes(last.b + 6, 10);
    for (int i = 0; i < 6; i++)
        last.b[i] = (uint8_t)(unix_ms >> (40 - 8 * i));
    return last;
}

/* 26 characters hold 130 bits: two zero bits stand in front. */
void ulid_write(char text[ULID_TEXT], struct id128 id)
{
    unsigned bits = 0, waiting = 2;
    size_t out = 0;

    for (int i = 0; i < 16; i++) {
        bits = (bits << 8 | id.b[i]) & 0x1fff; /* at most 4 old bits and 8 new ones count */
        waiting += 8;
        while (waiting >= 5) {
            waiting -= 5;
            text[out++] = alphabet[bits >> waiting & 31];
        }
    }
    assert(out == ULID_TEXT && waiting == 0);
}

static int digit_of(char c)
{
    const char *at;

    if (c >= 'a' && c <= 'z')
        c = (char)(c - 'a' + 'A');
    /* I, L, O and U are read as no digit, although Crockford allows some: one id has one text. */
    at = c ? strchr(alphabet, c) : NULL;
    return at ? (int)(at - alphabet) : -1;
}

bool ulid_read(struct id128 *id, struct str text)
{
    struct id128 result;
    unsigned bits = 0, waiting = 0;
    size_t out = 0;

    if (text.n != ULID_TEXT || text.p[0] > '7')
        return false;
    for (size_t i = 0; i < ULID_TEXT; i++) {
        int digit = digit_of(text.p[i]);

        if (digit < 0)
            return false;
        bits = (bits << 5 | (unsigned)digit) & 0x1fff;
        waiting += i == 0 ? 3 : 5; /* the two bits in front are not part of the id */
        if (waiting >= 8) {
            waiting -= 8;
            result.b[out++] = (uint8_t)(bits >> waiting);
        }
    }
    *id = result;
    return true;
}

void random_bytes(void *p, size_t n)
{
    char *at = p;

    while (n > 0) {
        ssize_t got = getrandom(at, n, 0);

        if (got < 0 && errno != EINTR)
            abort(); /* a service without randomness must not mint keys */
        if (got > 0) {
            at += got;
            n -= (size_t)got;
        }
    }
}
