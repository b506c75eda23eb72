/*
 * The sequencer of one shard under one epoch: deliveries, facts and commits go in; entries, rows to commit, acks and
 * needs come out. A pure state machine: no loop, no database, no broker; time is an argument. It can be run a million
 * times with crashes, redelivery and takeovers and be checked against the promises
 * (tests/unit/test_sequencer_histories.c).
 *
 * The way of a delivery:
 *
 *   arrive ─▶ dedup (memory; the log when redelivered) ─▶ room, membership, state ─▶ seq ─▶ shown early ─▶ row
 *              │                                            │                    ─▶ COMMIT ─▶ shown durable, settled
 *              │                                            └ refused: a dead-letter row, settled by the same COMMIT as
 *              │                                              the rows around it
 *              └ facts missing: the room is parked; all of that room waits in order, other rooms go on
 *
 * Rules (docs/design.md tells why):
 *  - dedup comes before membership: a message that is in the log stays accepted whoever left since;
 *  - every valid op takes a seq, a void when it changes nothing or is refused, so that its repeat is recognised;
 *  - an op is a barrier: it and what follows it in its room are shown after its COMMIT; only plain messages are ever
 *    early;
 *  - no renumbering within an epoch: what turns out to be a late duplicate or refused becomes a void at its seq;
 *  - uncommitted ids are never forgotten; absence (no room, no member) is never remembered.
 *
 * Thread: the loop's.
 */
#ifndef ROOMD_HISTORY_SEQUENCER_H
#define ROOMD_HISTORY_SEQUENCER_H

#include "entry.h"
#include "envelope.h"
#include "room/rules.h"
#include "room/base/list.h"
#include "room/base/map.h"

struct sequencer;
struct seq_room;
struct seen;

/* What a commit must write for one member of a room. */
struct seq_member_change {
    struct str account; /* points into the row's envelope or own text */
    enum { MEMBER_LEAVES = 0, MEMBER_JOINS = 1, MEMBER_ROLE = 2, MEMBER_MUTED = 3 } action; /* as append() has it */
    enum role role;
    uint64_t muted_until; /* MEMBER_MUTED: unix ms; 0 = not */
    bool pinned;          /* the sequencer's: it holds what memory knows of the member */
};

/* What a commit must write for the room itself; p NULL = as it is. */
struct seq_room_change {
    bool present;
    int32_t members; /* the number after this row */
    struct str name, notice, owner, extra;
    int32_t member_limit; /* -1 = as it is */
    int64_t muted_until;  /* unix ms, 0 = not; -1 = as it is */
    bool removed;
};

/* What a commit must write for the message that an edit, recall or delete is about. Recalled and deleted: content and
 * further members go for good, from the message and from all earlier edits of it. */
struct seq_target_change {
    uint64_t seq;  /* 0 = none */
    int16_t state; /* 1 edited, 2 recalled, 3 deleted */
    struct str content;
    struct str meta;     /* p NULL = as it is */
    struct str mentions; /* JSON array, empty = none; with meta */
};

/* One row: what one delivery wants written. Rows of a shard are committed in order; a batch is any run of them. */
struct seq_row {
    struct list link; /* the sequencer's, in order */
    struct list room_link;
    struct seq_room *room; /* NULL: a dead letter of an unknown room */
    int64_t room_no;
    struct envelope *envelope;
    struct entry *entry;     /* NULL: a dead letter only */
    struct id128 message_id; /* of the entry; zero: null there (a late duplicate's void) */
    uint64_t of_seq;         /* void of a late duplicate */
    uint64_t counted;
    struct str content, meta; /* as log_entry stores them */
    struct seq_member_change *members;
    size_t member_count;
    struct seq_room_change change;
    struct seq_target_change target;
    uint64_t judged_by;   /* the sequencer's: the message that an edit, recall or delete was judged by, also when it was
                           * refused or changes nothing; 0 = none */
    enum err dead;        /* not ERR_OK: goes to the outbox with this reason */
    const char *why;      /* the sentence to it; good as long as the row */
    struct id128 dead_id; /* message_id of the outbox row; zero: null there (a body that was no message) */
    enum err result;      /* ops: what the caller is told */
    bool shown;           /* given to shown() already */
    bool barrier;         /* it and what follows it in its room are shown after its commit */
    bool sent;            /* the writer's: on its way to the database */
    size_t bytes;         /* counts against the unpersisted bound */
    struct buf text;      /* owns content/meta of ops and voids */
    uint64_t first_tag;   /* the sequencer's: deliveries this row settles */
    struct seen *seen;    /* the sequencer's: its id among those that are known */
    struct map_link by_id; /* the sequencer's */
};

struct sequencer_events {
    void *arg;
    /* An entry may be seen now: durable = committed already (ops, and what waited behind them), else early. In seq
     * order per room, but for one case: a void (durable) may come for a seq that was shown early as a message; that
     * message is to be forgotten. */
    void (*shown)(void *arg, struct str room_id, struct entry *entry, bool durable);
    /* All entries of the room up to seq are committed. After shown() of all of them. */
    void (*durable)(void *arg, struct str room_id, int64_t room_no, uint64_t seq, uint64_t epoch);
    /* A transient message: {"type":"message",…} without seq. */
    void (*transient)(void *arg, struct str room_id, struct str json);
    /* A message was refused (best effort, before its dead letter is committed). */
    void (*rejected)(void *arg, const struct envelope *envelope, enum err err, const char *why);
    /* Committed: an op, or the message with this id. For waiting callers. seq 0: refused (dead letter). duplicate: it
     * had been there before, at seq. meta: an op's result members; empty when duplicate (look it up in the log). */
    void (*settled)(void *arg, struct id128 message_id, enum err result, uint64_t seq, bool duplicate, struct str meta);
    /* A message of an account (not of @system) is committed: its own read cursor stands here now. */
    void (*sent)(void *arg, struct str room_id, int64_t room_no, struct str sender, uint64_t seq);
};

struct sequencer_settings {
    struct str shard;
    uint64_t epoch;
    size_t dedup_window; /* committed ids kept */
    size_t room_cache, member_cache, target_cache;
    uint64_t recall_window_ms;
    struct rules rules;
};

struct sequencer *sequencer_new(const struct sequencer_settings *settings, const struct sequencer_events *events);
void sequencer_free(struct sequencer *sequencer); /* rows in flight must have been given up by the writer */

/* --- in --- */

/* One delivery of the current channel; tags ascend. Takes the envelope. now = owner time, unix ms. */
void sequencer_deliver(
    struct sequencer *sequencer, uint64_t tag, bool redelivered, struct envelope *envelope, uint64_t now_ms);
/* The same for a body that envelope_read refused. Takes the envelope. */
void sequencer_refuse(struct sequencer *sequencer, uint64_t tag, struct envelope *envelope, enum err err,
    const char *why, uint64_t now_ms);
/* The channel is gone: its tags are void, what was parked comes again; rows stay and are bound to their redelivery. */
void sequencer_channel_lost(struct sequencer *sequencer);

/* --- needs: facts that parked rooms wait for. Asked once per loop turn, answered in one go. --- */
struct seq_need_room {
    struct str room_id;
};
struct seq_need_member {
    struct str room_id, account;
};
struct seq_need_id {
    struct str room_id;
    struct id128 message_id;
};
/* A message that an edit, recall or delete names, by one of the two. */
struct seq_need_target {
    struct str room_id;
    uint64_t seq;
    struct id128 message_id;
};
struct seq_needs { /* slices are copied: good until seq_needs_clear */
    struct buf text;
    uint64_t asking;
    struct seq_need_room *rooms;
    struct seq_need_member *members;
    struct seq_need_id *ids;
    struct seq_need_target *targets;
    size_t room_count, member_count, id_count, target_count;
};
/* Moves all new needs out (each handed out once per asking; asked again when an answer was lost, see facts_done).
 * false: none. */
bool sequencer_take_needs(struct sequencer *sequencer, struct seq_needs *needs); /* needs: zeroed, or cleared before */
void seq_needs_clear(struct seq_needs *needs);

struct seq_room_fact {
    struct str room_id;
    int64_t room_no;
    bool removed, since_join, direct;
    int32_t members, member_limit;
    struct str owner;
    uint64_t last_seq, last_epoch, last_at, counted, muted_until;
    uint64_t taken_back_seq; /* the newest void in the place of a message, for seq_room_view; 0 = none */
};
/* A message of the log (type message only; other entries are not told: there is no such message). */
struct seq_target_fact {
    struct str room_id;
    uint64_t seq, at, sent_at; /* sent_at: UINT64_MAX = not given */
    struct id128 message_id;
    struct str sender, kind;
    int16_t state;
};
/* Rooms first: members and ids of a room that is not known are dropped. */
void sequencer_fact_room(struct sequencer *sequencer, const struct seq_needs *needs, const struct seq_room_fact *fact);
void sequencer_fact_member(struct sequencer *sequencer, const struct seq_needs *needs, struct str room_id,
    struct str account, enum role role, uint64_t join_seq, uint64_t muted_until);
void sequencer_fact_target(
    struct sequencer *sequencer, const struct seq_needs *needs, const struct seq_target_fact *fact);
/* The id is in the log at seq, or (seq 0) among the dead letters. */
void sequencer_fact_id(
    struct sequencer *sequencer, struct str room_id, struct id128 message_id, uint64_t seq, int64_t hash);
/* The answers to one take_needs are complete (what was not told does not exist), or failed: then the needs come out
 * again. Goes on with parked rooms. */
void sequencer_facts_done(struct sequencer *sequencer, const struct seq_needs *needs, bool ok, uint64_t now_ms);

/* --- rows --- */
/* The first row that is not sent, NULL when there is none; the next one behind a row. The writer marks them sent. */
struct seq_row *sequencer_first_unsent(struct sequencer *sequencer);
struct seq_row *sequencer_next_row(struct sequencer *sequencer, struct seq_row *row);
uint64_t seq_row_old_seq(const struct seq_row *row); /* entry seq - 1: the head before it */
/* In order of rows, per batch. The row is freed. */
void sequencer_committed(struct sequencer *sequencer, struct seq_row *row);
/* The database found the id already: the row becomes a void (other hash: also a dead letter conflict). It is unsent
 * again. */
void sequencer_late_duplicate(struct sequencer *sequencer, struct seq_row *row, uint64_t of_seq, int64_t hash);
/* The database refuses this row for good (class 22/23, alone in its batch): void + dead letter; unsent again. */
void sequencer_row_refused(struct sequencer *sequencer, struct seq_row *row);
/* A batch did not commit: its rows, and all behind them, are unsent again. */
void sequencer_rewind(struct sequencer *sequencer);

/* --- acks --- */
/* The last tag below which all are settled, when it grew since the last call; else 0. Ack it "multiple". */
uint64_t sequencer_take_ack(struct sequencer *sequencer);

/* --- what others may ask --- */
struct seq_room_view {
    int64_t room_no;
    uint64_t last_seq, durable_seq, durable_epoch, epoch, muted_until;
    uint64_t taken_back_seq; /* the newest void in the place of a message, committed or not; 0 = none */
    int32_t members;
    bool removed, since_join, direct;
};
/* A room in memory; false: not known here (ask the database). */
bool sequencer_find_room(struct sequencer *sequencer, struct str room_id, struct seq_room_view *view);
/* A member in memory whose join is committed. ROLE_NONE: not known here, ask the database. */
enum role sequencer_find_member(
    struct sequencer *sequencer, struct str room_id, struct str account, uint64_t *join_seq, uint64_t *muted_until);

struct sequencer_counters {
    uint64_t delivered_total, sequenced_total, duplicates_total, dead_total, voids_total, transient_total;
    size_t rows, parked, unpersisted_bytes, rooms, members;
};
struct sequencer_counters sequencer_counters(const struct sequencer *sequencer);
/* End of a turn: caches go back to their bounds (never what is uncommitted or parked). */
void sequencer_trim(struct sequencer *sequencer);

#endif
