/*
 * What the files of history/ know of each other; nobody outside includes this.
 *
 *   history.c  wiring, one turn of the loop, news to the outside, metrics
 *   shard.c    ownership of one shard: from the lease to the running consumer, and the way back
 *   inbox.c    deliveries into the sequencer, acks out of it, back-pressure
 *   facts.c    what sequencers need to know from the database, all shards in one round
 *   writer.c   rows of all shards into few commits
 *   append.c   rows as the parameters of one commit
 *   outbox.c   dead letters to the broker
 *   topology.c exchanges, queues, bindings
 *   feed.h     feed*.c, beat.c, entered.c, survey.c: what instances tell each other
 *   op.c       callers: publish, confirm, wait for the owner's answer
 *   origin.c   callers on other instances: whom to tell the owner's answer
 *   mark.c     read cursors
 *   make_up.c  the senders' cursors that a killed owner had not written
 *   reader.h   reader.c, long_poll.c, access.c, page.c, unread.c, hide.c: pages of committed entries, facts for callers
 *
 * A turn: uv_check (and uv_prepare, for what timers did) call history_turn, which works through the shards that
 * something happened to since the last one ("dirty"): needs to facts, rows to the writer, acks to the broker.
 *
 * Thread: the loop's, here and in all of history/.
 */
#ifndef ROOMD_HISTORY_INTERNAL_H
#define ROOMD_HISTORY_INTERNAL_H

#include "feed.h"
#include "history.h"
#include "room/base/map.h"
#include "sequencer.h"

/* SQL: is a row of log_entry a void in the place of a message that readers may have been shown? The voids of ops have
 * an id. Index log_entry_taken_back holds just these. */
#define TAKEN_BACK "type = 0 AND message_id IS NULL"

struct reader;
struct facts;
struct writer;
struct outbox;
struct calls;
struct origins;
struct topology;
struct marks;
struct make_up;

struct history_stats {
    uint64_t dead_by_reason[ERR_COUNT]; /* committed dead letters */
    struct sequencer_counters gone;     /* sums of shards that are no longer here; of the gauges nothing */
};

struct history {
    uv_loop_t *loop;
    const struct config *config;
    struct pg *pg;
    struct history_events events;
    /* From history_connect; NULL before. */
    struct cluster *cluster;
    struct amqp_link *publish, *consume;

    struct map shards_by_name;
    struct list shards;  /* all that are ours or on their way */
    struct list dirty;   /* shards to be looked at in this turn */
    struct list closing; /* shards that are given up and wait for close-ok */
    struct list looking; /* passive declares on their way */
    struct list probing; /* the same, asked by the cluster */

    struct reader *reader; /* reader.c's own; history only opens, closes and tells */
    struct facts *facts;
    struct writer *writer;
    struct outbox *outbox;
    struct calls *calls;
    struct origins *origins;
    struct topology *topology;
    struct marks *marks;
    struct make_up *make_up;
    struct feed *feed;

    uv_check_t check;
    uv_prepare_t prepare;
    uv_timer_t look_timer; /* runs while a shard waits for its queue to be free */
    uv_timer_t drain_timer;
    int handles;    /* not yet closed */
    uint64_t looks; /* numbers of passive declares */

    bool draining;        /* no shard is taken any more */
    bool last_calls_over; /* the drain ends with the read cursors */
    void (*drained)(void *arg);
    void *drained_arg;

    bool paused; /* the consuming link is not read: too much is not committed yet */
    size_t unpersisted_bytes;
    struct history_stats stats;
};

/* Owner time: the database's clock as far as known, else ours. */
uint64_t history_now_ms(const struct history *history);
/* Adds the counters of a shard that goes. */
void history_bury(struct history *history, const struct sequencer *sequencer);
void history_drained_check(struct history *history);
void history_topology_changed(struct history *history);
void history_keep_looking(struct history *history);            /* a shard waits: shard_look again at its next_look_ms */
extern const struct sequencer_events history_sequencer_events; /* arg is set by the shard: itself */

/* ----------------------------------------------------------------------------------------------------------- shard */

/*
 *   taken ─▶ WAITING ─0 consumers─▶ SUBSCRIBING ─consume-ok─▶ RUNNING ─drain─▶ DRAINING ─all committed─▶ CLOSING
 *               ▲                        │                       │                                          │
 *               └───── channel lost ─────┴──── or given back ────┘                        close-ok ─▶ released, freed
 *
 *   drain      from WAITING and SUBSCRIBING too. A channel that is lost while DRAINING is not opened again
 *   given up   (memory and log disagree): from anywhere before it to CLOSING
 *   lost       (the lease is another's): from anywhere to GONE; freed at close-ok, and nothing is acked any more
 */
enum shard_state { SHARD_WAITING, SHARD_SUBSCRIBING, SHARD_RUNNING, SHARD_DRAINING, SHARD_CLOSING, SHARD_GONE };

struct shard {
    struct history *history;
    struct map_link by_name;
    struct list link;       /* history->shards or ->closing */
    struct list dirty_link; /* history->dirty */
    char name[SHARD_MAX_BYTES + 1];
    char queue[SHARD_MAX_BYTES + 16];
    uint64_t epoch;
    enum shard_state state;
    struct feed_shard *feed;        /* what other instances are told of it */
    struct sequencer *sequencer;    /* NULL once GONE */
    struct amqp_consumer *consumer; /* NULL: no channel */

    uint64_t looking;        /* number of the passive declare on its way; 0: none */
    uint64_t next_look_ms;   /* loop clock */
    uint64_t taken_at_ms;    /* loop clock */
    uint64_t waits_since_ms; /* for its queue: since it was taken, or its channel lost */
    uint64_t busy_since_ms;  /* somebody else has been seen to consume it; 0: not while it waits */
    bool complained;         /* about that */

    /* inbox */
    size_t unpersisted_bytes; /* as of the last turn */
    /* facts */
    struct list facts_link; /* shards with needs */
    /* writer */
    struct list write_link; /* shards with unsent rows */
    int in_flight;          /* batches on the way, or of unknown outcome, that hold rows of ours */
};

/* NULL: not ours. Also shards that are not running yet or any more (see state). */
struct shard *history_find_shard(const struct history *history, struct str shard);
/* The shard of a room; NULL: not ours, or no such name. */
struct shard *history_find_shard_of(const struct history *history, struct str room_id);
/* One that was given up still waits for close-ok: until then its queue must not become another's. */
bool shard_is_closing(const struct history *history, struct str shard);
/* Something happened: needs, rows or acks may have to be fetched. */
void shard_mark_dirty(struct shard *shard);
/* WAITING, SUBSCRIBING, RUNNING: its memory is right, facts are welcome */
bool shard_is_sequencing(const struct shard *shard);

void shard_taken(struct history *history, struct str name, uint64_t epoch);
void shard_look(struct shard *shard); /* WAITING: is anybody still consuming? */
/* The lease is gone, or the fence refused us: stop at once. The shard must not be used afterwards. */
void shard_lost(struct shard *shard, const char *why);
/* What we have in memory cannot go on under this epoch: close, then release the lease. Nothing of it may
 * be in flight. */
void shard_give_up(struct shard *shard, const char *why);
void shard_drain(struct shard *shard);
void shard_drain_check(struct shard *shard); /* in a turn: DRAINING goes on when nothing is on its way any more */
void shard_drain_force(struct shard *shard); /* the time is over: close and release with what is not committed */
void shard_channel_started(struct shard *shard);
void shard_channel_lost(struct shard *shard, enum err err, struct str text);
/* It may be another's by now: the channel is closed, its deliveries come again when the lease is sure. */
void shard_give_back(struct shard *shard, const char *why);
void shard_free_all(struct history *history); /* the links are closed, or about to be */

/* ----------------------------------------------------------------------------------------------------------- inbox */

extern const struct amqp_consumer_events inbox_events; /* owner: struct shard */
void inbox_take_acks(struct shard *shard);
void inbox_back_pressure(struct history *history);

/* ----------------------------------------------------------------------------------------------------------- facts */

struct facts *facts_open(struct history *history);
void facts_close(struct facts *facts);
void facts_turn(struct facts *facts);                         /* asks what all shards need */
void facts_collect(struct facts *facts, struct shard *shard); /* remembers that this shard has needs */
void facts_forget_shard(struct facts *facts, struct shard *shard);

/* ---------------------------------------------------------------------------------------------------------- writer */

struct writer *writer_open(struct history *history);
void writer_close(struct writer *writer);
void writer_connected(struct writer *writer);                  /* history->cluster is there */
void writer_offer(struct writer *writer, struct shard *shard); /* the shard has unsent rows */
void writer_turn(struct writer *writer);
/* The shard goes: its rows are forgotten wherever they are. */
void writer_forget_shard(struct writer *writer, struct shard *shard);
void writer_metrics(const struct writer *writer, struct buf *out);

/* ---------------------------------------------------------------------------------------------------------- outbox */

struct outbox *outbox_open(struct history *history);
void outbox_close(struct outbox *outbox);
void outbox_kick(struct outbox *outbox); /* there may be something to send */
void outbox_metrics(const struct outbox *outbox, struct buf *out);

/* ----------------------------------------------------------------------------------------------------------- calls */

struct calls *calls_open(struct history *history);
void calls_close(struct calls *calls);
/* The owner's answer for an id, from a shard of ours. */
void calls_settled(
    struct calls *calls, struct id128 message_id, enum err result, uint64_t seq, bool duplicate, struct str meta);
/* An entry was shown: callers that wait for their seq only. */
void calls_shown(struct calls *calls, const struct entry *entry);
/* The same two from the owner on another instance. */
void calls_told(struct calls *calls, const struct feed_settled *settled);
void calls_metrics(const struct calls *calls, struct buf *out);

/* --------------------------------------------------------------------------------------------------------- origins */

#define REPLY_TO_MAX 40
struct origins *origins_open(struct history *history);
void origins_close(struct origins *origins);
/* What a caller here publishes with, so that the owner tells us; its length. */
size_t origins_write(char out[REPLY_TO_MAX + 1], const char *instance, bool sequenced);
void origins_note(struct origins *origins, struct id128 message_id, struct str reply_to);
void origins_settled(struct origins *origins, const struct feed_settled *settled);
void origins_shown(struct origins *origins, const struct entry *entry);
void origins_metrics(const struct origins *origins, struct buf *out);

/* ----------------------------------------------------------------------------------------------------------- marks */

struct marks *marks_open(struct history *history);
void marks_close(struct marks *marks); /* whoever still waits is forgotten */
/* An own message of the account is committed at seq. */
void marks_sent(struct marks *marks, struct str room_id, struct str account, uint64_t seq);
/* Writes what waits without waiting for windows; calls history_drained_check when it is done. */
void marks_drain(struct marks *marks);
bool marks_idle(const struct marks *marks);
void marks_metrics(const struct marks *marks, struct buf *out);

struct make_up *make_up_open(struct history *history);
void make_up_close(struct make_up *make_up);
/* A shard of ours has loaded a room whose last entry is of last_at (unix ms). */
void make_up_loaded(struct make_up *make_up, const struct shard *shard, int64_t room_no, uint64_t last_at);
void make_up_turn(struct make_up *make_up);

/* -------------------------------------------------------------------------------------------------------- topology */

struct topology *topology_open(struct history *history);
void topology_close(struct topology *topology);
void topology_link_up(struct topology *topology);
void topology_repair(struct topology *topology);               /* a queue that should be there is not */
const char *topology_missing(const struct topology *topology); /* NULL: all is declared; else a sentence */

/* ---------------------------------------------------------------------------------------------------------- reader */

/*
 * reader.c and access.c write these and everything of history.h's parts "facts about a room", "Pull", "ranges" and
 * "where is a cursor valid". They find history->pg, history->cluster, history->config, history->loop here, and rooms in
 * memory through struct shard *shard = history_find_shard_of(history, room_id); if (shard &&
 * shard_is_sequencing(shard)) sequencer_find_room(shard->sequencer, …), sequencer_find_member(…)
 */
struct reader *reader_open(struct history *history); /* before history_connect: cluster and links are still NULL */
void reader_close(struct reader *reader);            /* requests still open are forgotten: their done is not called */
/* once or twice per loop turn: batched questions leave here. Cheap when there is nothing */
void reader_turn(struct reader *reader);
/* All entries of the room up to seq are committed, as we or the feed say. The entry at seq has this epoch. */
void reader_durable(struct reader *reader, struct str room_id, int64_t room_no, uint64_t seq, uint64_t epoch);
/* News of the shard may have been missed: the heads of rooms that somebody waits for have to be looked at. */
void reader_missed(struct reader *reader, struct str shard);
/* A shard became ours, was lost, or has another owner elsewhere. */
void reader_epoch(struct reader *reader, struct str shard, uint64_t epoch, bool ours);
void reader_metrics(const struct reader *reader, struct buf *out);

#endif
