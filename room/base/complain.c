#define _GNU_SOURCE /* program_invocation_short_name */
#include "complain.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

void complain(const char *format, ...)
{
    va_list args;

    fprintf(stderr, "%s: ", program_invocation_short_name);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

void complain_lines(struct buf *lines)
{
    struct str rest = buf_str(lines);

    while (rest.n) {
        const char *end = memchr(rest.p, '\n', rest.n);
        size_t n = end ? (size_t)(end - rest.p) : rest.n;

        if (n)
            complain("%.*s", (int)n, rest.p);
        rest = (struct str){rest.p + n, rest.n - n};
        if (rest.n)
            rest = (struct str){rest.p + 1, rest.n - 1};
    }
    buf_clear(lines);
}
