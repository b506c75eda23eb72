/* What the files of the feed know of each other (feed.h). Thread: the loop's. */
#ifndef ROOMD_HISTORY_FEED_IMPL_H
#define ROOMD_HISTORY_FEED_IMPL_H

#include "feed.h"
#include "internal.h"

enum {
    FEED_BEAT_MS = 1000,
    FEED_BEATS_APART_MS = 20, /* those that changes bring */
    FEED_GONE_MS = 5000,      /* silent for so long: nobody writes for it any more */
    FEED_HEARD_MS = 3000,     /* an owner silent for so long may have told what did not come here */
    FEED_MISSED_APART_MS = 200,
    FEED_FOLLOW_ON_MS = 60000,      /* long polls come again: a binding is kept so long after the last */
    FEED_MESSAGE_BYTES = 256 << 10, /* more for one routing key makes another message */
};

enum feed_state { FEED_CLOSED, FEED_DECLARING, FEED_SUBSCRIBING, FEED_OPEN };

#define FEED_KEY_MAX (9 + FEED_INSTANCE_BYTES) /* instance.<id> */

/* What gathers for one routing key during a turn. Those of instances go when these do. */
struct feed_out {
    struct map_link by_key;
    struct list full_link; /* feed->full */
    struct buf body;
    enum feed_kind kind;
    uint32_t events;
    char key[FEED_KEY_MAX + 1];
};

/* The last mark of a room in this turn. */
struct feed_mark {
    struct map_link by_room;
    struct list link; /* feed_shard.marks */
    int64_t room_no;
    uint64_t seq, epoch;
    uint8_t n;
    char room_id[ROOM_ID_MAX_BYTES];
};

/* A shard, as heard and as told. Kept: there are as many as shards. */
struct feed_shard {
    struct map_link by_name;
    struct feed *feed;
    char name[SHARD_MAX_BYTES + 1];
    char key[5 + SHARD_MAX_BYTES + 1]; /* room.<shard> */

    /* followed */
    bool wanted;        /* by the proxy */
    size_t waits;       /* of long polls */
    uint64_t waited_ms; /* loop clock: the last one ended */
    bool follows;       /* bound, or being bound */
    bool bound;         /* what is told from now on arrives */
    int answers;        /* of the broker to binds and unbinds */

    /* heard; the counter is void unless known */
    uint64_t epoch; /* the highest heard of; 0: none */
    bool known, tells;
    uint64_t counter;
    uint64_t heard_ms;       /* loop clock: the owner's last beat that named it */
    struct list missed_link; /* feed->missed: somebody has to look */
    uint64_t missed_ms;      /* loop clock: when it was said last */

    /* told, while it is ours */
    const struct shard *ours;
    bool telling;
    uint32_t followers; /* other instances that live */
    uint64_t told;      /* counter of what was sent or dropped */
    struct buf log;
    uint32_t log_items;
    struct list log_link; /* feed->logs: something has gathered */
    struct map marks_by_room;
    struct list marks;
};

/* Another instance. */
struct feed_peer {
    struct map_link by_id;
    char id[FEED_INSTANCE_BYTES + 1];
    bool beats; /* a beat of it was heard */
    bool database_ok;
    uint64_t heard_ms; /* loop clock: its last beat */
    struct {
        bool known;
        uint64_t counter;
    } entered[FEED_WAYS];
    uint64_t complete_ms; /* server time up to which nothing of its ENTERED is missing; 0: never */
    struct buf followed;  /* as its last beat had it */
    struct feed_shard **follows;
    size_t follow_count;
};

struct feed {
    struct history *history;
    uv_timer_t *open_timer, *beat_timer, *wake_timer, *survey_timer;
    enum feed_state state;
    struct amqp_consumer *consumer; /* SUBSCRIBING, OPEN */
    int answers;                    /* of the broker, still to come */
    bool refused;                   /* one of them said no */
    unsigned failures;              /* in a row */
    char queue[64];

    struct map shards, outs, peers;
    struct list full, logs, missed;
    size_t turn_bytes;

    uint64_t beat_sent_ms;
    uint64_t database_lost_ms; /* loop clock; 0: it is well */

    uint64_t entered[FEED_WAYS]; /* counters of our own messages */
    struct list announcing;      /* not confirmed yet */
    struct list awaited;         /* those of them whose callers wait */
    uint64_t connected_ms;       /* server time: streams here began later */
    uint64_t complete_ms;        /* server time of the last beat that came: the queue was there */
    uint64_t entered_missed_since, entered_missed_ms;

    struct list surveys;
    uint64_t questions;

    struct {
        uint64_t told, sent, dropped, received; /* events that are not kept */
        uint64_t out[FEED_KINDS], lost[FEED_KINDS], in[FEED_KINDS];
        uint64_t own, bad, unknown, opened;
        uint64_t entries_sent, entries_received, entries_skipped;
        uint64_t holes, stale, entered_holes;
        uint64_t given_up;
    } count;
};

/* feed.c */
struct feed_shard *feed_shard_get(struct feed *feed, struct str name); /* it exists in this installation */
struct feed_shard *feed_shard_find(const struct feed *feed, struct str name);
void feed_follow_sweep(struct feed *feed);      /* bindings that nobody needs any more */
void feed_wake(struct feed *feed, uint64_t ms); /* a turn comes, at the latest then */

/* feed_out.c */
/* false: dropped. Counts. */
bool feed_publish(struct feed *feed, const char *key, enum feed_kind kind, const struct buf *body);
void feed_out_turn(struct feed *feed);
void feed_out_close(struct feed *feed);
/* Publishes what the shard shows, or stops it, by who follows it. */
void feed_tell(struct feed_shard *to);

/* feed_in.c */
void feed_delivered(void *feed, const struct amqp_delivery *delivery);
/* News of the shard under this epoch. false: of an owner that is none any more. */
bool feed_heard_epoch(struct feed_shard *from, uint64_t epoch);
void feed_heard_counter(struct feed_shard *from, uint64_t counter, bool next);
void feed_miss(struct feed_shard *from);
void feed_in_turn(struct feed *feed);
void feed_show(struct history *history, const struct feed_item *item);

/* beat.c */
void beat_begin(struct feed *feed);
void beat_soon(struct feed *feed);
void beat_heard(struct feed *feed, struct feed_peer *peer, const struct feed_beat *beat);
struct feed_peer *feed_peer_get(struct feed *feed, struct str id);
void feed_peers_void(struct feed *feed); /* counters heard so far say nothing: the queue is another one */
void feed_peers_free(struct feed *feed);
size_t feed_peers_alive(const struct feed *feed);

/* entered.c */
void entered_heard(struct feed *feed, struct feed_peer *peer, const struct feed_message *message);
void entered_counters(const struct feed *feed, uint64_t counters[FEED_WAYS]); /* for the beat */
void entered_beat(struct feed *feed, struct feed_peer *peer, const uint64_t counters[FEED_WAYS]);
void entered_opened(struct feed *feed);
void entered_turn(struct feed *feed);
void entered_close(struct feed *feed);

/* survey.c */
void survey_asked(struct feed *feed, const struct feed_message *message);
void survey_answered(struct feed *feed, const struct feed_message *message);
void survey_close(struct feed *feed);

#endif
