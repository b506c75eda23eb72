/*
 * Memory and small words used everywhere. The service aborts when memory runs out: a chat server that limps on with
 * half an answer is worse than one that is restarted. (The gateway-adapter library never includes this.) Thread: any.
 */
#ifndef ROOMD_BASE_MEM_H
#define ROOMD_BASE_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define MUST_USE __attribute__((warn_unused_result))
#define PRINTF_LIKE(nth, first) __attribute__((format(printf, nth, first)))
#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))
#define countof(array) (sizeof(array) / sizeof((array)[0]))

void *xmalloc(size_t size);
void *xcalloc(size_t count, size_t size);
void *xrealloc(void *old, size_t size);
void *xmemdup(const void *p, size_t n);
char *xstrdup(const char *text);
char *xstrndup(const char *text, size_t n); /* always NUL-terminated */

/* A borrowed piece of text: no NUL at the end, not ours to free. p may be NULL when n is 0. */
struct str {
    const char *p;
    size_t n;
};
#define STR(literal) ((struct str){(literal), sizeof(literal) - 1})
#define STR_ARG(s) (int)(s).n, (s).p /* for "%.*s" */

static inline struct str str_of(const char *text)
{
    return (struct str){text, text ? strlen(text) : 0};
}

static inline bool str_eq(struct str a, struct str b)
{
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

static inline bool str_is(struct str a, const char *text)
{
    return str_eq(a, str_of(text));
}

#endif
