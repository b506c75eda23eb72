/*
 * What the files of amqp.h share: the link itself (amqp.c), publishing (amqp_publish.c), topology (amqp_topology.c) and
 * consumers (amqp_consumer.c). Nobody else includes this. Thread: the loop's.
 */
#ifndef ROOMD_BASE_AMQP_IMPL_H
#define ROOMD_BASE_AMQP_IMPL_H

#include "amqp.h"
#include "amqp_codec.h"
#include "conn.h"
#include "amqp_url.h"
#include "map.h"

/* Each is opened when it is first needed. Confirms are numbered per channel, so what wants none has its own. */
enum { CHANNEL_TOPOLOGY = 1, CHANNEL_PUBLISH = 2, CHANNEL_UNCONFIRMED = 3, CHANNEL_CONSUMERS = 4, CHANNELS_MAX = 2047 };

/*
 * WAITING -time to try-> CONNECTING -TCP, TLS-> STARTING -start-> TUNING -tune-> OPENING -open-ok-> UP;
 * each -broken-> WAITING. UP -amqp_link_close-> CLOSING; any -amqp_link_close, or CLOSING answered-> GONE
 */
enum link_state {
    LINK_WAITING,
    LINK_CONNECTING,
    LINK_STARTING,
    LINK_TUNING,
    LINK_OPENING,
    LINK_UP,
    LINK_CLOSING,
    LINK_GONE
};

/* A message with content is coming in on a channel: its method was read, then a header, then bodies. */
enum content_step { CONTENT_NONE, CONTENT_HEADER, CONTENT_BODY };

struct amqp_slot {                  /* a channel number of the consumers */
    struct amqp_consumer *consumer; /* NULL: free, or only close-ok is waited for */
    bool closing;                   /* not to be used again before close-ok */
};

struct amqp_link {
    uv_loop_t *loop;
    struct amqp_settings settings;
    struct amqp_address addresses[AMQP_ADDRESSES_MAX];
    size_t address_count, address_at;
    unsigned round;    /* how often the list was tried in vain */
    unsigned failures; /* attempts in vain since it was up */
    SSL_CTX *tls;

    enum link_state state;
    struct conn *conn; /* NULL in WAITING and GONE */
    uint64_t state_deadline_ms, up_ms, down_ms, unpaused_ms;
    uint32_t frame_max;
    uint16_t channel_max;
    bool blocked, paused;
    bool resuming; /* bytes read before a pause still wait */
    amqp_pool_t pool;

    uv_timer_t tick, retry;
    uv_idle_t turn;   /* runs when there is something to do at the end of this turn; keeps poll from waiting */
    uv_check_t check; /* the same for what was caused by poll: at once, not a turn later */
    int handles;

    /* amqp_publish.c */
    struct list pending; /* publishes without a confirm, in the order of their calls, so of tags and deadlines too */
    struct list refused; /* their done() is due */
    struct map by_tag;
    struct buf scratch;
    uint64_t last_tag;
    bool publish_open, unconfirmed_open;
    enum content_step returning;
    uint64_t returning_left;

    /* amqp_topology.c */
    struct list requests;      /* in the order of their calls; all were sent on this connection */
    struct list void_requests; /* their done() is due */
    uint64_t request_since_ms; /* the first one waits since */
    bool topology_open;

    /* amqp_consumer.c */
    struct amqp_slot *slots; /* by channel number, CHANNELS_MAX + 1 */
    uint16_t last_channel;
    uint32_t consumer_counter;
    struct list consumers; /* on a channel */
    struct list doomed;    /* lost() or closed() is due */
    struct list lost;      /* the owner frees them */

    struct amqp_counters counters;
};

/* amqp.c */
static inline bool link_is_up(const struct amqp_link *link)
{
    return link->state == LINK_UP;
}
static inline bool link_is_closed(const struct amqp_link *link)
{
    return link->state >= LINK_CLOSING;
}
static inline struct buf *link_out(struct amqp_link *link)
{
    return conn_out(link->conn);
}
void amqp_link_kick(struct amqp_link *link); /* there is something to do at the end of this turn */
void amqp_link_break(struct amqp_link *link, const char *why);
void amqp_add_channel_open(struct amqp_link *link, uint16_t channel);
void amqp_add_channel_close(struct amqp_link *link, uint16_t channel);
void amqp_add_channel_close_ok(struct amqp_link *link, uint16_t channel);

/* amqp_publish.c */
void amqp_publisher_init(struct amqp_link *link);
void amqp_publisher_clear(struct amqp_link *link);
void amqp_publisher_up(struct amqp_link *link);
void amqp_publisher_down(struct amqp_link *link);
void amqp_publisher_close(struct amqp_link *link); /* all that is pending becomes ERR_CLOSED on the next turn */
void amqp_publisher_tick(struct amqp_link *link, uint64_t now_ms);
void amqp_publisher_settle_refused(struct amqp_link *link);
void amqp_publisher_frame(struct amqp_link *link, const struct codec_frame *frame);

/* amqp_topology.c */
void amqp_topology_init(struct amqp_link *link);
void amqp_topology_clear(struct amqp_link *link);
void amqp_topology_down(struct amqp_link *link);
void amqp_topology_tick(struct amqp_link *link, uint64_t now_ms);
void amqp_topology_resume(struct amqp_link *link);
void amqp_topology_tell_void(struct amqp_link *link);
void amqp_topology_frame(struct amqp_link *link, const struct codec_frame *frame);

/* amqp_consumer.c */
void amqp_consumers_init(struct amqp_link *link);
void amqp_consumers_clear(struct amqp_link *link);
void amqp_consumers_down(struct amqp_link *link);
void amqp_consumers_tell_doomed(struct amqp_link *link);
void amqp_consumer_frame(struct amqp_link *link, const struct codec_frame *frame);

#endif
