/*
 * What a message of the feed looks like. Pure functions; nobody outside history/ includes this.
 *
 * All numbers are big-endian, a `name` is u8 length · bytes.
 *   u8 version · u8 kind · 26 bytes the sender's instance id · what the kind says:
 *
 *   TOLD     what is not kept: items of u8 to (1 room, 2 account) · u8 length of the name · u32 length of the event ·
 *            name · event
 *   LOG      what the owner of a shard shows: name shard · u64 epoch · u64 counter · items, in the order of showing:
 *            entry: u8 1 early or 2 durable · u8 type · name room id · u64 room_no · u64 epoch · u64 seq · u64 at ·
 *                   u64 counted · u32 length · event
 *            mark:  u8 3 · name room id · u64 room_no · u64 seq · u64 epoch of the entry there
 *   BEAT     u8 flags (1: the sender's database is well) · u64 u64 counters of ENTERED by way · u16 number of shards
 *            held · each: name · u64 epoch · u64 counter of LOG · u8 flags (1 consumes, 2 tells) · u16 number of shards
 *            followed · each: name. More may follow, of a later program
 *   ENTERED  u8 way · u64 counter · items: name room id · u64 epoch · u64 seq (of the cursor) · u16 number of accounts
 *            · each: name
 *   SETTLED  items: u8 what (1 settled, 2 has a seq, 3 look in the log) · 16 bytes message id · u8 1: a duplicate ·
 *            u64 seq · name code of the result · u32 length · an op's result
 *   ASK, ANSWER  u64 number · text
 *
 * An event is the JSON line that streams show; receivers hand it on and never parse it. An unknown version or kind is
 * of a later program: skipped. Counters are explained where they are counted (feed.h).
 */
#ifndef ROOMD_HISTORY_FEED_FORMAT_H
#define ROOMD_HISTORY_FEED_FORMAT_H

#include "entry.h"
#include "room/name.h"

#define FEED_INSTANCE_BYTES 26

enum feed_kind {
    FEED_TOLD = 1,
    FEED_LOG = 2,
    FEED_BEAT = 3,
    FEED_ENTERED = 4,
    FEED_SETTLED = 5,
    FEED_ASK = 6,
    FEED_ANSWER = 7,
    FEED_KINDS
};
enum feed_to { FEED_TO_ROOM = 1, FEED_TO_ACCOUNT = 2 };
enum feed_log_what { FEED_LOG_EARLY = 1, FEED_LOG_DURABLE = 2, FEED_LOG_MARK = 3 };
/* ENTERED goes two ways, each with a counter of its own, because nothing keeps the order between them. */
enum feed_way { FEED_WAY_ANNOUNCED = 0, FEED_WAY_JOINED = 1, FEED_WAYS };
enum feed_settled_what { FEED_SETTLED_DONE = 1, FEED_SETTLED_SEQUENCED = 2, FEED_SETTLED_LOOK = 3 };
#define FEED_HELD_CONSUMES 1u
#define FEED_HELD_TELLS 2u

struct feed_item {
    enum feed_to to;
    struct str name; /* a room id or an account */
    struct str json;
};

struct feed_log_item {
    enum feed_log_what what;
    struct str room_id;
    int64_t room_no;
    uint64_t epoch, seq; /* of the entry; of the entry at the mark */
    uint64_t at, counted;
    enum entry_type type;
    struct str json;
};

struct feed_held {
    struct str shard;
    uint64_t epoch, counter;
    unsigned flags;
};

struct feed_entered {
    struct str room_id;
    struct cursor after;
    size_t count;
    struct str accounts; /* walk with feed_next_name */
};

struct feed_settled {
    enum feed_settled_what what;
    struct id128 message_id;
    bool duplicate;
    uint64_t seq;
    struct str code;
    struct str result;
};

struct feed_beat {
    bool database_ok;
    uint64_t entered[FEED_WAYS];
    size_t held_count, followed_count;
    struct str held, followed; /* walk with feed_next_held, feed_next_name */
};

/* --- writing. `instance` has FEED_INSTANCE_BYTES; names are short enough for their length --- */
void feed_write_head(struct buf *out, enum feed_kind kind, const char *instance);
void feed_write_item(struct buf *out, const struct feed_item *item);
void feed_write_log_head(struct buf *out, struct str shard, uint64_t epoch, uint64_t counter);
void feed_write_entry(struct buf *out, struct str room_id, const struct entry *entry, bool durable);
void feed_write_mark(struct buf *out, struct str room_id, int64_t room_no, uint64_t seq, uint64_t epoch);
/* A beat: its head, then as many feed_write_held as it says, then feed_write_count and as many feed_write_name. */
void feed_write_beat_head(struct buf *out, bool database_ok, const uint64_t entered[FEED_WAYS], size_t held);
void feed_write_held(struct buf *out, const struct feed_held *held);
void feed_write_count(struct buf *out, size_t count);
void feed_write_name(struct buf *out, struct str name);
void feed_write_entered_head(struct buf *out, enum feed_way way, uint64_t counter);
/* Followed by `count` accounts with feed_write_name. */
void feed_write_entered(struct buf *out, struct str room_id, struct cursor after, size_t count);
void feed_write_settled(struct buf *out, const struct feed_settled *settled);
void feed_write_question(struct buf *out, uint64_t number, struct str text); /* ASK and ANSWER */

/* --- reading --- */
struct feed_message {
    enum feed_kind kind;
    struct str sender;
    struct str shard;      /* LOG */
    uint64_t epoch;        /* LOG */
    uint64_t counter;      /* LOG, ENTERED; ASK and ANSWER: the number */
    enum feed_way way;     /* ENTERED */
    struct feed_beat beat; /* BEAT */
    struct str items;      /* what has items: walk with feed_next_…; ASK, ANSWER: the text */
};

enum feed_reading { FEED_GOOD, FEED_BAD, FEED_UNKNOWN };
/* The slices point into body. FEED_GOOD: all of it is well formed. */
enum feed_reading feed_read(struct str body, struct feed_message *message);
/* Is it a message, good or bad, of this instance? */
bool feed_is_from(struct str body, const char *instance);
/* false: that was all, or what follows is none. */
bool feed_next(struct str *items, struct feed_item *item);
bool feed_next_log(struct str *items, struct feed_log_item *item);
bool feed_next_held(struct str *held, struct feed_held *item);
bool feed_next_name(struct str *names, struct str *name);
bool feed_next_entered(struct str *items, struct feed_entered *item);
bool feed_next_settled(struct str *items, struct feed_settled *item);

#endif
