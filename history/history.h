/*
 * What was said: the log of every room, as the rest of the program sees it.
 *
 *   in   (owner)  shard queue -> inbox -> sequencer -> writer -> ack: a struct shard for each shard whose lease is ours
 *   in   (calls)  history_push, history_op: publish, confirm, wait for the owner's answer
 *   out  (news)   struct history_events: what streams show; connected by main to the proxy
 *   out  (reads)  history_pull: pages of committed entries, long poll without polling
 *
 * Every asynchronous function answers exactly once, later, on the loop, through the done of its request, which is
 * embedded in the caller's operation and must live until then. Slices in requests must live until done as well.
 *
 * Thread: the loop's.
 */
#ifndef ROOMD_HISTORY_HISTORY_H
#define ROOMD_HISTORY_HISTORY_H

#include "entry.h"
#include "envelope.h"
#include "room/base/amqp.h"
#include "room/base/cluster.h"
#include "room/base/config.h"
#include "room/base/pg.h"

struct history;

/* News, in the order in which a reader may see them. Connected by main; all are called on the loop,
 * several per turn. */
struct history_events {
    void *arg;
    /* An entry of a room: on a shard we own, or heard on the feed, which may leave some out. durable: committed when
     * shown, else it is early. Ascending seq per room, but for one case: a void (durable) may come for a seq shown
     * early as a message, which is then to be forgotten. Hold it to keep it. */
    void (*shown)(void *arg, struct str room_id, struct entry *entry, bool durable);
    /* Does anybody here want the entries of this room? Asked before one is made of what the feed brings. NULL: yes. */
    bool (*listens)(void *arg, struct str room_id);
    /* All up to seq is committed. */
    void (*durable)(void *arg, struct str room_id, uint64_t seq);
    /* What has no place in the log (typing, read, transient messages, message.rejected, …), told by this instance or
     * another one: for the streams of a room, or (room_id empty) for the streams of an account. Dropped first under
     * load. */
    void (*ephemeral)(void *arg, struct str room_id, struct str account, struct str json);
    /* The shard is ours under this epoch from now on, or was lost, or (not ours) a higher epoch was heard of: views of
     * its rooms that showed entries above their durable mark have to look (reset). */
    void (*epoch)(void *arg, struct str shard, uint64_t epoch, bool ours);
    /* News of this shard may have been missed (a hole in the feed, it was opened anew, another owner): the durable
     * heads of its rooms have to be looked at. What is in between comes from the log. */
    void (*missed)(void *arg, struct str shard);
    /* These accounts have entered the room (founders of a Create, here or elsewhere, and members added elsewhere):
     * their `all` streams carry it from after_seq on. May come twice. */
    void (*entered)(void *arg, struct str room_id, const struct str *accounts, size_t count, struct cursor after);
    /* Of that something may have been missed since then (server time): which rooms have the accounts with `all` streams
     * joined? */
    void (*entered_missed)(void *arg, uint64_t since_unix_ms);
    /* Somebody asks all instances (history_survey); write what this one knows. Nothing written = nothing known. */
    void (*asked)(void *arg, struct str question, struct buf *answer);
};

MUST_USE enum err history_start(struct history **out, uv_loop_t *loop, const struct config *config, struct pg *pg,
    const struct history_events *events);
/* main makes these after history_start (their callbacks need it) and hands them over. */
void history_connect(
    struct history *history, struct cluster *cluster, struct amqp_link *publish, struct amqp_link *consume);
/* Called by main's callbacks of cluster and links. */
void history_lease_taken(struct history *history, struct str shard, uint64_t epoch);
void history_lease_lost(struct history *history, struct str shard);
void history_lease_probe(struct history *history, struct str shard);
/* another one should have it: drain, then release */
void history_lease_move(struct history *history, struct str shard);
void history_publish_link(struct history *history, bool up);
void history_consume_link(struct history *history, bool up);
/* Gives the shards to others, in order: stop sequencing, commit and ack what has a seq, close channels, release leases;
 * none is taken any more. Calls are served on, by way of the new owners. done once, later, at the latest after
 * `within_ms`. */
void history_hand_over(struct history *history, int64_t within_ms, void (*done)(void *arg), void *arg);
/* The end, after the last call and at most once hand_over is done: the shards that are still ours, and the read cursors
 * that are not written yet. done as above. */
void history_drain(struct history *history, int64_t within_ms, void (*done)(void *arg), void *arg);
/* Frees, once libuv has closed its handles. The links are closed before, or right after in the same turn: no callback
 * of theirs may come in between. pg must still be there. */
void history_stop(struct history *history);

bool history_ready(const struct history *history); /* topology declared, publish link up and not blocked */
const char *history_why_not_ready(const struct history *history); /* a sentence for readyz; NULL when ready */
size_t history_shards_ours(const struct history *history);        /* consuming */

/* --- facts about a room for a reader or caller: from memory when we own its shard, else one query, batched per turn
 * --- */
struct history_access {
    struct str room_id, account; /* account empty: no membership asked */
    void (*done)(struct history_access *access, enum err err);
    /* ERR_OK | ERR_NO_SUCH_ROOM | ERR_NOT_MEMBER | ERR_UNAVAILABLE. A removed room is ERR_OK with removed. Filled on
     * ERR_OK and ERR_NOT_MEMBER: */
    int64_t room_no;
    bool removed, since_join;
    enum role role;
    uint64_t join_seq;
    struct cursor head; /* durable, with the epoch of the entry there */
    uint64_t last_seq;  /* sequenced, durable or not; 0: not known here (another instance owns the room) */
    /* the newest void in the place of a message that readers may have been shown (history_ask_taken_back); 0 = none */
    uint64_t taken_back_seq;
    uint64_t muted_until; /* unix ms: the account may not speak before; 0 = it may. Of the room's mute too, unless the
                           * role is above it */
    int32_t members;
    bool direct;
    struct list link; /* history's */
    size_t nth;
};
void history_ask_access(struct history *history, struct history_access *access);
void history_access_forget(struct history_access *access); /* done will not come */

/* --- Push --- */
enum history_wait { WAIT_CONFIRMED, WAIT_SEQUENCED, WAIT_DURABLE };
struct history_push {
    struct str room_id, sender, kind, content,
        client_msg_id; /* client_msg_id empty: minted; all valid by name.h, content checked JSON */
    struct str meta;   /* sent_at, mentions, quote_seq as JSON members without braces; may be empty */
    bool transient;
    bool mentions_all;
    uint64_t quote_seq; /* 0 = none; refused at once when it is known not to exist */
    enum history_wait wait;
    void (*done)(struct history_push *push, enum err err);
    /* ERR_OK; ERR_NO_SUCH_ROOM, ERR_ROOM_GONE, ERR_NOT_MEMBER, ERR_UNAVAILABLE, ERR_TIMEOUT, and with wait:
     * ERR_CONFLICT and what else the owner refuses with. On ERR_OK: */
    struct id128 message_id;
    char client_msg_id_text[CLIENT_MSG_ID_MAX_BYTES + 1]; /* the one given or minted */
    uint64_t seq;                                         /* waited for */
    bool duplicate;
    char why[160]; /* on a refusal: a sentence; may be empty */
    void *impl;    /* history's */
};
void history_push(struct history *history, struct history_push *push);

/* --- ops: changes that travel through the room's queue and are answered after they are durable --- */
struct history_op {
    struct str room_id;
    enum op_kind kind;
    struct str args;       /* JSON members without braces, e.g. "account_ids":["a"],"role":"member" */
    struct str by;         /* whose act; empty = the service */
    struct str request_id; /* empty: none */
    bool own_request_ids;  /* their scope is the room and `by`: clients choose them, each for itself */
    void (*done)(struct history_op *op, enum err err);
    /* ERR_OK and what the owner refused with; ERR_UNAVAILABLE, ERR_TIMEOUT. On ERR_OK: */
    uint64_t seq;
    struct str result; /* JSON members without braces ("added":[…],"already":[…]); good for the call. Refused:
                        * "result":"<code>", then perhaps "why":"<sentence>", "field":"content.parts[2].type",
                        * "until":<unix ms> */
    bool duplicate;    /* answered from an earlier call with this request_id */
    void *impl;
};
void history_submit_op(struct history *history, struct history_op *op);

/* --- read cursors --- */
/* Moves the account's cursor forward, never back and never past the head. Above the durable head it waits for that, at
 * most mark_wait_ms. Marks are merged: one statement every mark_flush_ms, at once when nothing was marked lately. */
struct history_mark {
    struct str room_id, account;
    uint64_t read_seq;
    void (*done)(struct history_mark *mark, enum err err);
    /* ERR_OK, ERR_BAD_REQUEST (above the head), ERR_NO_SUCH_ROOM, ERR_NOT_MEMBER, ERR_UNAVAILABLE, ERR_TIMEOUT. On
     * ERR_OK: */
    uint64_t unread; /* read_seq is what the cursor is now */
    void *impl;
};
void history_mark_read(struct history *history, struct history_mark *mark);

/* How much an account has not read, in the rooms named or in all its open rooms. One statement. */
struct history_unread {
    struct str account;
    const struct str *room_ids; /* NULL: all */
    size_t room_id_count;
    void (*done)(struct history_unread *unread, enum err err); /* ERR_OK, ERR_UNAVAILABLE, ERR_TIMEOUT */
    struct str answer_json;                                    /* {"rooms":[…],"total":…}; good for the call */
    struct pg_query query;
};
void history_ask_unread(struct history *history, struct history_unread *unread);

/* --- hidden entries: "delete for me" --- */
struct history_hide {
    struct str room_id, account;
    uint64_t seq; /* one of the two */
    struct id128 message_id;
    void (*done)(struct history_hide *hide, enum err err);
    /* ERR_OK (also when it was hidden before), ERR_NO_SUCH_ROOM, ERR_NO_SUCH_MESSAGE, ERR_NOT_MEMBER, ERR_TOO_LARGE
     * (hidden_max), ERR_UNAVAILABLE, ERR_TIMEOUT */
    struct pg_query query;
    void *impl;
};
void history_hide_entry(struct history *history, struct history_hide *hide);
/* Which entries of a room an account has hidden, above after_seq, ascending; batched per turn. */
struct history_hidden {
    int64_t room_no;
    struct str account;
    uint64_t after_seq;
    void (*done)(struct history_hidden *hidden, enum err err);
    const uint64_t *seqs; /* good for the call */
    size_t count;
    struct list link;
    size_t nth;
};
void history_ask_hidden(struct history *history, struct history_hidden *hidden);
void history_hidden_forget(struct history_hidden *hidden);

/* --- what is not kept: to open streams here at once, to those of other instances by the feed, best effort. json is one
 * event on one line --- */
void history_tell_room(struct history *history, struct str room_id, struct str json);
void history_tell_account(struct history *history, struct str account, struct str json);
/* The proxy has (no more) rooms of this shard: entries, marks and what is told about them are wanted here. */
void history_follow(struct history *history, struct str shard, bool follow);
/* Does what the owner says of this shard arrive here (it is ours, or followed and the owner was heard in the last
 * 3 s)? If not, heads have to be looked at from time to time. */
bool history_hears(const struct history *history, struct str shard);

/* --- accounts have entered a room that no entry tells of (Create): told here and to all instances. Done when the
 * broker has confirmed it, or HISTORY_ANNOUNCE_MS later (ERR_TIMEOUT: it goes out when it can); it may be submitted
 * again --- */
#define HISTORY_ANNOUNCE_MS 1000
struct history_announce {
    struct str room_id;
    const struct str *accounts;
    size_t account_count;
    struct cursor after;
    void (*done)(struct history_announce *announce, enum err err); /* ERR_OK, ERR_UNAVAILABLE, ERR_TIMEOUT */
    void *impl;
};
void history_announce_entered(struct history *history, struct history_announce *announce);

/* --- a question to all living instances, this one included: answers come one by one, then done once, at the latest
 * after within_ms (then `missing` have not answered). Best effort, nothing is stored --- */
struct history_survey {
    struct str question; /* at most 256 KiB; its first word tells whose it is, e.g. "online …" */
    int64_t within_ms;
    void (*answered)(struct history_survey *survey, struct str instance, struct str answer); /* good for the call */
    void (*done)(struct history_survey *survey, enum err err); /* ERR_OK; ERR_UNAVAILABLE: only we were asked */
    unsigned missing;
    void *impl;
};
void history_survey_start(struct history *history, struct history_survey *survey);
void history_survey_forget(struct history_survey *survey); /* neither answered nor done will come */

/* --- Pull --- */
enum pull_from { PULL_LATEST, PULL_AFTER, PULL_BEFORE };
struct history_pull {
    struct str room_id, account; /* account empty: not checked */
    enum pull_from from;
    struct cursor after; /* PULL_AFTER */
    uint64_t before;     /* PULL_BEFORE */
    int limit;           /* 1–500 */
    int64_t wait_ms;     /* PULL_AFTER: answer when there is something, at the latest then */
    void (*done)(struct history_pull *pull, enum err err);
    /* ERR_OK, ERR_NO_SUCH_ROOM, ERR_NOT_MEMBER, ERR_UNAVAILABLE. On ERR_OK, good for the call (hold entries to keep
     * them): */
    struct entry **entries;
    size_t count;
    struct cursor head;
    uint64_t durable_seq;
    bool more;
    bool reset;
    struct cursor reset_to;
    void *impl;
};
void history_pull(struct history *history, struct history_pull *pull);
void history_pull_cancel(struct history *history, struct history_pull *pull); /* done will not come */

/* --- ranges for streams that catch up: committed entries after `after_seq`, at most `limit`, shared by all who want
 * the same --- */
struct history_range {
    int64_t room_no;
    struct str room_id;
    uint64_t after_seq;
    uint64_t up_to_seq; /* last one wanted */
    int limit;
    void (*done)(struct history_range *range, enum err err); /* ERR_OK, ERR_UNAVAILABLE, ERR_TIMEOUT */
    struct entry **entries;                                  /* good for the call; hold to keep */
    size_t count;
    struct list link;
};
void history_read_range(struct history *history, struct history_range *range);
void history_range_forget(struct history_range *range);

/* --- where is a cursor valid: the largest seq' <= cursor.seq in the log whose entry has an epoch
 * <= cursor.epoch --- */
struct history_validity {
    int64_t room_no;
    struct cursor cursor;
    void (*done)(struct history_validity *validity, enum err err);
    struct cursor valid; /* what of it is valid, with the epoch of the entry there */
    struct cursor head;  /* durable head at that time */
    struct list link;
    size_t nth;
};
void history_check_cursor(struct history *history, struct history_validity *validity);
void history_validity_forget(struct history_validity *validity);

/* --- voids in the place of messages that readers may have been shown early: late duplicates, and what the database
 * refused. Those above above_seq up to upto_seq; batched per turn --- */
struct history_taken_back {
    struct str room_id; /* borrowed until done */
    int64_t room_no;
    uint64_t above_seq, upto_seq;
    void (*done)(struct history_taken_back *taken_back, enum err err);
    struct entry **voids; /* ascending; good for the call: hold what you keep */
    size_t count;
    struct list link;
    size_t nth;
};
void history_ask_taken_back(struct history *history, struct history_taken_back *taken_back);
void history_taken_back_forget(struct history_taken_back *taken_back);

/* How lists of rooms show an entry (room.h, rooms_show_entries_with): the row's ENTRY_COLUMNS begin at `column`. */
void history_write_row(
    struct buf *out, struct str room_id, int64_t room_no, const PGresult *result, int row, int column);

/* The epoch under which the shard of a room is sequenced now, and whether by us. 0: unknown. */
uint64_t history_epoch(const struct history *history, struct str room_id, bool *ours);

void history_metrics(const struct history *history, struct buf *out); /* Prometheus text */

#endif
