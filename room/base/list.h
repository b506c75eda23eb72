/* Doubly linked lists whose links live in the members. A link that is on no list points to itself. Thread: any, one at
 * a time. Memory: nothing is allocated; members belong to the caller. */
#ifndef ROOMD_BASE_LIST_H
#define ROOMD_BASE_LIST_H

#include "mem.h"

struct list {
    struct list *next, *prev;
};

static inline void list_init(struct list *list)
{
    list->next = list->prev = list;
}

static inline bool list_empty(const struct list *list)
{
    return list->next == list;
}

static inline void list_insert_before(struct list *at, struct list *link)
{
    link->prev = at->prev;
    link->next = at;
    at->prev->next = link;
    at->prev = link;
}

static inline void list_push_back(struct list *list, struct list *link)
{
    list_insert_before(list, link);
}

static inline void list_push_front(struct list *list, struct list *link)
{
    list_insert_before(list->next, link);
}

/* Safe to call again: afterwards the link is on no list. */
static inline void list_remove(struct list *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
    list_init(link);
}

/* Takes the first link off, NULL when there is none. */
static inline struct list *list_pop_front(struct list *list)
{
    struct list *first = list->next;

    if (first == list)
        return NULL;
    list_remove(first);
    return first;
}

/* Moves everything to the end of `to`; `from` is empty afterwards. */
static inline void list_splice_back(struct list *to, struct list *from)
{
    if (list_empty(from))
        return;
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    list_init(from);
}

#define list_entry(link, type, member) container_of(link, type, member)

/* The body may remove (and free) the current item, nothing else; break and continue do what they do in any loop. */
#define list_for_each(item, head, member)                                                            \
    for (struct list *at_##item = (head)->next, *next_##item = at_##item->next;                      \
         at_##item != (head) && ((item) = list_entry(at_##item, __typeof__(*(item)), member), true); \
         at_##item = next_##item, next_##item = at_##item->next)

#endif
