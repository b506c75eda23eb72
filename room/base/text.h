/* Small steps of reading text that came from outside. Thread: pure functions. Memory: what is given out points into
 * what was given. */
#ifndef ROOMD_BASE_TEXT_H
#define ROOMD_BASE_TEXT_H

#include "mem.h"

/* 0 to 15; -1: no hexadecimal digit. */
static inline int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Without the spaces and tabs at both ends. Nothing else counts as space: these are the OWS of RFC 9110 5.6.3, and a
 * control character that one server passes over and the next one does not is how requests are smuggled. */
static inline struct str str_trimmed(struct str s)
{
    while (s.n && (s.p[0] == ' ' || s.p[0] == '\t'))
        s.p++, s.n--;
    while (s.n && (s.p[s.n - 1] == ' ' || s.p[s.n - 1] == '\t'))
        s.n--;
    return s;
}

/* Cuts the first item off a comma-separated list, trimmed; it may be empty. false: the list is at its end. */
static inline bool str_next_item(struct str *list, struct str *item)
{
    const char *comma = list->n ? memchr(list->p, ',', list->n) : NULL;
    size_t n = comma ? (size_t)(comma - list->p) : list->n;

    if (!list->n)
        return false;
    *item = str_trimmed((struct str){list->p, n});
    n += comma != NULL;
    *list = (struct str){list->p + n, list->n - n};
    return true;
}

#endif
