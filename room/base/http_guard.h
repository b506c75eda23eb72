/*
 * The head of an HTTP/1 request, judged as raw bytes. libh2o 2.2.5 takes heads that two programs in a row may read
 * differently (two lengths, bare LF, folded lines: request smuggling) and hides the lengths from its handlers; this
 * looks at what really came in. Thread: pure functions, any thread. Memory: nothing is kept.
 * Source: RFC 9112 sections 2.2, 3, 5, 6; RFC 9110 section 5.5.
 */
#ifndef ROOMD_BASE_HTTP_GUARD_H
#define ROOMD_BASE_HTTP_GUARD_H

#include "mem.h"

/* 32 KiB: a ticket of 100 rooms with positions in the query takes about half. */
#define HTTP_HEAD_MAX_BYTES 32768

struct http_head {
    size_t bytes; /* up to and with the empty line */
    int version;  /* 10 or 11 */
    struct str method, target;
};

/*
 * Check the head at the start of the `n` bytes at `p` (behind one CRLF, which RFC 9112 2.2 lets a server skip). The
 * names may be in any case: libh2o has lowered them in place when we see them.
 *   false: refuse and close; *status is 400 or 431, *why a static sentence. head is not filled.
 */
MUST_USE bool http_head_check(struct http_head *head, const char *p, size_t n, int *status, const char **why);

#endif
