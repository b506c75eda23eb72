/*
 * The feed, by which instances tell each other what streams show (docs/design.md#the-feed). Nobody outside history/
 * includes this.
 *
 *   exchange roomd.feed ─account, beat, instance.<id>, room.<shard>─▶ queue roomd.feed.<instance>.<number> of each
 *
 *   feed.c         the queue's life, what this instance follows
 *   feed_format.c  messages as bytes
 *   feed_out.c     what leaves: all of one turn as one message per routing key
 *   feed_in.c      what comes: to the streams, to waiting callers; and what was missed
 *   beat.c         who is there, who holds and who follows which shard
 *   entered.c      accounts that enter rooms
 *   survey.c       questions to all instances
 *
 * Messages are never confirmed (but for announcements) and may be lost anywhere. Counters find that out: each LOG of a
 * shard and each ENTERED of a sender has the next number, also when it had to be dropped before it was sent; beats
 * carry the last numbers. Whoever sees another number than the next one looks at the log (events missed,
 * entered_missed). All but announcements go through one channel to one queue of each reader, so that nothing overtakes.
 *
 * The feed lives on the publishing link, which is never paused: no_ack, so that a blocked publisher does not hold it
 * up. Thread: the loop's.
 */
#ifndef ROOMD_HISTORY_FEED_H
#define ROOMD_HISTORY_FEED_H

#include "feed_format.h"
#include "history.h"

#define FEED_EXCHANGE "roomd.feed"

struct shard;
struct feed;
struct feed_shard;

struct feed *feed_open(struct history *history);
void feed_close(struct feed *feed);     /* the links are closed, or will be in this turn */
void feed_connected(struct feed *feed); /* history->cluster is there */
void feed_link_up(struct feed *feed);   /* a new connection: the queue of the old one is gone with it */
void feed_declared(struct feed *feed);  /* the exchange is there */
void feed_turn(struct feed *feed);      /* what was told in this turn leaves */
void feed_metrics(const struct feed *feed, struct buf *out);

/* --- the owner's side --- */
/* The shard is ours under its epoch from now on: its counter begins anew. What it is known by
 * here, until feed_close. */
struct feed_shard *feed_shard_taken(struct feed *feed, const struct shard *shard);
void feed_shard_left(struct feed_shard *to); /* what was shown leaves; no more comes */
/* As the sequencer shows them. Nothing is kept while nobody else follows the shard. */
void feed_shown(struct feed_shard *to, struct str room_id, const struct entry *entry, bool durable);
void feed_durable(struct feed_shard *to, struct str room_id, int64_t room_no, uint64_t seq, uint64_t epoch);
/* A member.joined is committed: whoever has streams of its accounts is told, wherever. */
void feed_joined(struct feed *feed, struct str room_id, const struct entry *entry);
/* To one instance, which waits for it. */
void feed_settled(struct feed *feed, const char *instance, const struct feed_settled *settled);

/* --- the reader's side --- */
/* Somebody here waits for marks of the shard's rooms, beside the proxy's history_follow: counted. */
void feed_wait(struct feed *feed, struct str shard, bool begins);
/* The highest epoch of the shard that was heard of; 0: none. */
uint64_t feed_epoch(const struct feed *feed, struct str shard);
bool feed_is_open(const struct feed *feed);
/* Our database is away while that of others is well, as they say: what we own is better given to them. */
bool feed_says_cut_off(const struct feed *feed);

#endif
