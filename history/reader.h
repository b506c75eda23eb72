/*
 * What the reading files know of each other.
 *
 *   reader.c     Pull
 *   long_poll.c  readers that wait for more
 *   access.c     facts about a room for a reader, the cache room_id -> room_no, where a cursor is valid
 *   page.c       reads of consecutive entries, shared by all who want the same at the same time
 *   hide.c       what accounts hide from themselves
 *   unread.c     how much accounts have not read
 *
 * Questions of one loop turn leave together at its end (reader_turn). Thread: the loop's.
 */
#ifndef ROOMD_HISTORY_READER_H
#define ROOMD_HISTORY_READER_H

#include "internal.h"

/* -------------------------------------------------------------------------------------------------------- access */

struct access_counters {
    uint64_t from_memory_total, asked_total;
};

/* What never changes about a room, so that it may be remembered. */
struct room_fact {
    struct map_link by_id;
    struct list link; /* least recently used first */
    int64_t room_no;
    bool since_join;
    uint8_t n;
    char room_id[ROOM_ID_MAX_BYTES];
};
/* NULL: not known (any more). */
const struct room_fact *reader_find_room(struct reader *reader, struct str room_id);
/* Everything the access asks is in memory: filled, *err as its done would have it. */
bool access_from_memory(struct reader *reader, struct history_access *access, enum err *err);

/* ---------------------------------------------------------------------------------------------------------- page */

struct page_key {
    int64_t room_no;
    bool descending; /* the last ones below or at `to` */
    uint64_t from, to;
    int64_t limit;
};

struct page {
    uint32_t holders;
    struct page_key key;
    struct map_link by_key; /* reader->pages, while others may join */
    bool joinable, sent;
    struct list link;   /* reader->pages_new until sent */
    struct list askers; /* struct page_asker */
    struct list ranges; /* struct history_range */
    struct reader *reader;
    struct pg_query query;
    char room_id[ROOM_ID_MAX_BYTES];
    uint8_t room_id_n;
    struct entry **entries; /* ascending */
    size_t count;
};

struct page_asker {
    struct list link;
    void (*done)(struct page_asker *asker, enum err err, struct page *page); /* hold the page to keep it */
};
void page_ask(struct reader *reader, struct page_asker *asker, const struct page_key *key, struct str room_id);
struct page *page_hold(struct page *page);
void page_drop(struct page *page);

/* -------------------------------------------------------------------------------------------------------- reader */

struct reader {
    struct history *history;

    struct list accesses; /* struct history_access, of this turn */
    struct list access_batches;
    struct map rooms; /* struct room_fact */
    struct list rooms_by_use;
    struct list validities; /* struct history_validity, of this turn */
    struct list validity_batches;
    struct list taken_backs; /* struct history_taken_back, of this turn */
    struct list taken_back_batches;
    struct access_counters access_counters;
    struct list hiddens; /* struct history_hidden, of this turn */
    struct list hidden_batches;

    struct map pages;      /* joinable ones */
    struct list pages_new; /* to be sent at the end of the turn */
    struct list pages_sent;
    uint64_t pages_total, pages_shared_total, entries_total;

    struct list pulls;     /* all open ones */
    struct list pulls_new; /* begin at the end of the turn */
    struct map waits;      /* struct room_wait */
    struct list *wheel;    /* deadlines of long polls */
    size_t wheel_at;
    size_t waiting; /* pulls on the wheel */
    uv_timer_t tick;
    struct pg_query look; /* heads of rooms whose news may have been missed */
    bool looking, look_again;
    uint64_t look_at_ms;
    uint64_t pulls_total;

    uv_timer_t wake; /* zero: makes sure that the turn comes */
    int handles_open;
};

/* ---------------------------------------------------------------------------------------------------- long polls */

/* A reader that waits for news of a room. Embedded in it; the first five are its to fill, all else is zero. */
struct long_poll {
    struct reader *reader;
    struct str room_id;   /* good until it has left */
    uint64_t after_seq;   /* what is durable above it is news */
    uint64_t deadline_ms; /* loop clock */
    /* While it waits: there is news, or the deadline has come. It waits no longer then, and may again. */
    void (*woken)(struct long_poll *poll);
    uint64_t news_seq;      /* durable, as told since its owner set it to 0 */
    struct room_wait *room; /* NULL: it has not joined */
    bool waiting;
    struct list room_link, wheel_link;
};
/* It is told news from now on: before the reader's first look, so that nothing falls between that and the wait. Does
 * nothing when too many rooms are waited for already. */
void long_poll_join(struct long_poll *poll);
void long_poll_leave(struct long_poll *poll);                    /* from any state, also without having joined */
void long_poll_of_room(struct long_poll *poll, int64_t room_no); /* its room's number, by which heads are asked for */
void long_poll_wait(struct long_poll *poll);                     /* until news or the deadline; joined ones only */
void long_polls_open(struct reader *reader);
void long_polls_close(struct reader *reader);

/* Something is to be done at the end of this turn. */
void reader_wake(struct reader *reader);
void access_open(struct reader *reader);
void access_close(struct reader *reader);
void access_turn(struct reader *reader);
void hidden_open(struct reader *reader);
void hidden_close(struct reader *reader);
void hidden_turn(struct reader *reader);
void pages_open(struct reader *reader);
void pages_close(struct reader *reader);
void pages_turn(struct reader *reader);
/* What a failed read is to callers: what got lost did not happen. */
enum err reader_error(const struct pg_query *query, enum err err, const PGresult *result);
/* The entry in a row whose ENTRY_COLUMNS begin at `column`; ours. */
struct entry *entry_from_row(struct str room_id, int64_t room_no, const PGresult *result, int row, int column);

#endif
