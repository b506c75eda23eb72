/*
 * What a message of the feed looks like, and the feed itself. Nobody outside history/ includes this.
 *
 *   exchange roomd.feed ─account, room.<shard>─▶ queue roomd.feed.<instance>.<number> of each instance
 *
 * A message, all numbers big-endian:
 *   u8 version · u8 kind · 26 bytes the sender's instance id · what the kind says
 *   FEED_TOLD: items of u8 to (1 room, 2 account) · u8 length of the name · u32 length of the event · name · event
 * The event is the JSON line that streams show; receivers hand it on and never parse it. An unknown version or kind is
 * of a later program: skipped.
 */
#ifndef ROOMD_HISTORY_FEED_H
#define ROOMD_HISTORY_FEED_H

#include "history.h"

#define FEED_EXCHANGE "roomd.feed"
#define FEED_INSTANCE_BYTES 26

enum feed_kind { FEED_TOLD = 1 };
enum feed_to { FEED_TO_ROOM = 1, FEED_TO_ACCOUNT = 2 };

struct feed_item {
    enum feed_to to;
    struct str name; /* a room id or an account */
    struct str json;
};

/* Pure functions. `instance` has FEED_INSTANCE_BYTES. */
void feed_write_head(struct buf *out, enum feed_kind kind, const char *instance);
void feed_write_item(struct buf *out, const struct feed_item *item);

enum feed_reading { FEED_GOOD, FEED_BAD, FEED_UNKNOWN };
/* The slices point into body. FEED_GOOD: all items are well formed; walk them with feed_next. */
enum feed_reading feed_read(struct str body, struct str *sender, struct str *items);
bool feed_next(struct str *items, struct feed_item *item); /* false: that was all, or what follows is none */

/* The feed of an instance. Thread: the loop's. It lives on the publishing link, which is never paused: no_ack, so that
 * a blocked publisher does not hold it up. */
struct feed;
struct feed *feed_open(struct history *history);
void feed_close(struct feed *feed);    /* the links are closed, or will be in this turn */
void feed_link_up(struct feed *feed);  /* a new connection: the queue of the old one is gone with it */
void feed_declared(struct feed *feed); /* the exchange is there */
void feed_turn(struct feed *feed);     /* what was told in this turn leaves */
void feed_metrics(const struct feed *feed, struct buf *out);

#endif
