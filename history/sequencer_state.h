/*
 * What a sequencer keeps in memory, and the small steps on it. Private to the sequencer's files:
 * sequencer.c (the way of a delivery, commits), sequencer_op.c (room and member changes), sequencer_change.c (changes
 * of messages), sequencer_state.c (this).
 *
 * What an op changes is kept twice: as decided, for the deliveries that are decided next, and as committed. When an op
 * is taken back, what is decided is made again from what is committed and the changes that are still on their way.
 *
 * Thread: the loop's.
 */
#ifndef ROOMD_HISTORY_SEQUENCER_STATE_H
#define ROOMD_HISTORY_SEQUENCER_STATE_H

#include "sequencer.h"

/* A message id that is in the log: pinned while its row is not committed, then one of the last dedup_window. */
struct seen {
    struct map_link by_id;
    struct list age; /* on no list while the row is uncommitted */
    struct id128 id;
    int64_t hash;
    uint64_t seq;
    struct seq_row *row; /* NULL: committed */
};

struct standing {
    enum role role; /* ROLE_NONE only while its leaving is not committed: absence is not remembered */
    uint64_t join_seq, muted_until;
};

/* What we know of one account in one room. */
struct known_member {
    struct map_link by_account;
    struct list lru;
    int64_t room_no;
    struct standing now, durable;
    uint32_t pins; /* uncommitted changes */
    struct str account;
    char text[];
};

/* What we know of a message that an edit, recall or delete is about. Only its state ever changes. */
struct known_target {
    struct map_link by_seq, by_id;
    struct list lru;
    int64_t room_no;
    uint64_t seq, at, sent_at;
    struct id128 id;
    int16_t state;
    uint32_t pins;           /* uncommitted changes */
    uint64_t changed_asking; /* answers up to this asking may be older than its last committed change */
    struct str sender, kind;
    char text[];
};

/* A delivery on its way; on the stack when nothing is missing, on the heap when its room is parked. */
struct delivery {
    struct list link;     /* the room's parked ones, in order */
    struct list ask_link; /* the sequencer's unasked or asked ones */
    struct seq_room *room;
    struct envelope *envelope;
    uint64_t tag;
    uint64_t asking; /* number of the asking that will answer; 0 = not asked */
    bool redelivered;
    bool answered;   /* what memory does not hold does not exist */
    bool dead_known; /* its id is among the dead letters */
};

/* What ops change of a room. */
struct room_state {
    uint64_t muted_until; /* plain members may not speak before */
    int32_t members, member_limit;
    bool removed;
    uint8_t owner_n;
    char owner[ACCOUNT_MAX_BYTES];
};

struct seq_room {
    struct map_link by_id;
    struct list lru;
    struct list rows;     /* uncommitted, in order */
    struct list parked;   /* struct delivery, in order */
    struct list run_link; /* while facts are being told */
    int64_t room_no;
    uint64_t last_seq, last_at, counted;
    uint64_t durable_seq, durable_epoch;
    uint64_t taken_back_seq; /* the newest void that was a message */
    struct room_state now, durable;
    uint64_t room_asking;  /* the asking that will tell the room itself; 0 = none */
    uint64_t stale_asking; /* answers up to this asking may be older than a committed change of members, or than what is
                            * remembered of the room at all */
    uint32_t barriers;     /* uncommitted ops: nothing behind the first is shown early */
    bool loaded, since_join, direct;
    bool reload; /* what an op did was taken back: forget the room when nothing hangs on it */
    struct str room_id;
    char text[];
};

struct tag_slot {
    uint64_t next_same; /* the next tag that the same row settles; 0 = last */
    bool settled;
};

/* One state per delivery tag of the current channel. */
struct tag_ring {
    struct tag_slot *slots;
    size_t capacity;     /* a power of two */
    uint64_t base, next; /* tags base .. next-1 are not acked */
    uint64_t told;       /* acked up to here */
};

struct sequencer {
    struct sequencer_settings settings;
    char shard_text[SHARD_MAX_BYTES + 1];
    struct sequencer_events events;
    struct map rooms, members, seen, dead_rows, targets_by_seq, targets_by_id;
    struct list room_lru, member_lru, seen_age, target_lru;
    size_t seen_committed;
    struct list rows;
    struct list unasked, asked;
    uint64_t askings;
    /* answers up to this asking may be older than what was known of a message and is forgotten */
    uint64_t stale_targets;
    struct tag_ring ring;
    struct sequencer_counters counters;
};

/* rooms */
struct seq_room *room_find(struct sequencer *s, struct str room_id);
struct seq_room *room_find_or_make(struct sequencer *s, struct str room_id);
bool room_idle(const struct seq_room *room); /* nothing hangs on it */
void room_free(struct sequencer *s, struct seq_room *room);

/* members */
struct known_member *member_find(struct sequencer *s, const struct seq_room *room, struct str account);
struct known_member *member_find_or_make(struct sequencer *s, const struct seq_room *room, struct str account);
void member_free(struct sequencer *s, struct known_member *member);
/* Until when this member may not speak in the room; 0: it may. */
uint64_t member_muted(const struct seq_room *room, const struct known_member *member, uint64_t at_ms);

/* messages that edits, recalls and deletes are about */
struct known_target *target_find(struct sequencer *s, const struct seq_room *room, uint64_t seq);
/* The message that the envelope names: remembered, or an uncommitted row of the room, which is remembered then. NULL:
 * not known here. */
struct known_target *target_of(struct sequencer *s, const struct seq_room *room, const struct envelope *envelope);
struct known_target *target_put(struct sequencer *s, const struct seq_room *room, const struct seq_target_fact *fact);
void target_free(struct sequencer *s, struct known_target *target);

/* ids */
struct seen *seen_find(struct sequencer *s, struct id128 id);
struct seen *seen_put(struct sequencer *s, struct id128 id, int64_t hash, uint64_t seq, struct seq_row *row);
void seen_free(struct seen *seen); /* the caller took it out of map and list */
void seen_committed(struct sequencer *s, struct seen *seen);
struct seq_row *dead_row_find(struct sequencer *s, struct id128 id);

/* tags */
void ring_push(struct tag_ring *ring, uint64_t tag);
void ring_bind(struct tag_ring *ring, struct seq_row *row, uint64_t tag);
void ring_settle(struct tag_ring *ring, uint64_t tag);            /* one tag */
void ring_settle_row(struct tag_ring *ring, struct seq_row *row); /* all that hang on the row */
void ring_reset(struct tag_ring *ring);

/* rows */
struct seq_row *row_new(struct sequencer *s, struct seq_room *room, struct delivery *delivery); /* takes the envelope */
/* next seq of its room */
void row_entry(struct sequencer *s, struct seq_row *row, enum entry_type type, uint64_t now_ms);
void row_replace_entry(struct sequencer *s, struct seq_row *row, enum entry_type type); /* same seq, other content */
void row_free(struct sequencer *s, struct seq_row *row);
void row_dead(struct sequencer *s, struct seq_row *row, struct id128 id, enum err err, const char *why);

/* ops: fills row (entry, changes, result) */
void op_apply(struct sequencer *s, struct seq_row *row, uint64_t now_ms);
void op_committed(struct sequencer *s, struct seq_row *row);
void op_undo(struct sequencer *s, struct seq_row *row);
/* A member that is known only now: uncommitted changes of it are on top of what the log knows. */
void op_catch_up(struct seq_room *room, struct known_member *member);

/* what ops are told and show: JSON members without braces */
void text_begin(struct buf *text, const char *name);
void text_string(struct buf *text, const char *name, struct str value); /* p NULL: left out */
/* content and meta share row->text: content first, meta from `cut` on */
void text_give(struct seq_row *row, size_t cut);
/* Why is a format; NULL: the code says it. Field NULL: none. The row becomes a void. */
enum entry_type op_refuse(struct seq_row *row, enum err err, const char *field, const char *why, ...) PRINTF_LIKE(4, 5);
/* ERR_OK, or not_member, or forbidden by the rule with its sentence (also when the role is not that of the rule). */
enum err op_may(struct sequencer *s, const struct seq_row *row, enum rule rule, char why[RULES_WHY_MAX]);

/* edits, recalls, deletes; at_ms: the time of the entry */
enum entry_type change_message(struct sequencer *s, struct seq_row *row, uint64_t at_ms);
void change_applied(struct sequencer *s, struct seq_row *row);
void change_committed(struct sequencer *s, struct seq_row *row);
void change_undo(struct sequencer *s, struct seq_row *row);

#endif
