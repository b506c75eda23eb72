/*
 * AMQP 0-9-1 on the loop. librabbitmq is used as a codec only; sockets, TLS, log-in, heartbeats and buffers are ours,
 * so that nothing can block. A link is one connection that comes back by itself: addresses in order, 0.1 to 2 s apart
 * with jitter, fresh consumer tags each time. Publishing and consuming use separate links (a blocked publisher must not
 * stop acks). Bytes leave once per loop turn. Thread: the loop's.
 */
#ifndef ROOMD_BASE_AMQP_H
#define ROOMD_BASE_AMQP_H

#include "buf.h"
#include "bytes.h"
#include "err.h"
#include "list.h"

#include <uv.h>

struct amqp_link;

struct amqp_settings {
    const char *name;     /* "publish", "consume": for logs and the broker's list of connections */
    const char *urls;     /* amqp://user:password@host:port/vhost, comma-separated; amqps:// */
    const char *ca_file;  /* "" = the system's */
    int64_t heartbeat_ms; /* whole seconds; silent for two of them = dead */
    int64_t publish_timeout_ms;
    int64_t max_pending; /* publishes without a confirm */
    int64_t max_pending_bytes;
    /* up: logged in, no channel yet. down: everything on it is void. May be NULL. */
    void (*changed)(void *arg, bool up);
    void *arg;
};

/*
 * Connects by itself, soon. The settings are copied. SIGPIPE must be ignored in a process that uses amqps://.
 *   ERR_BAD_REQUEST  an address cannot be parsed, or the CA file cannot be read; the log line says which
 */
MUST_USE enum err amqp_link_open(struct amqp_link **out, uv_loop_t *loop, const struct amqp_settings *settings);
/*
 * Says goodbye to the broker, waits for its answer 500 ms at most, frees. No callbacks afterwards except done() of
 * publishes (ERR_CLOSED), on the next turn. The link is void at once, and so are its consumers, closed or not: nobody
 * frees them but the link. The memory goes in libuv's close callbacks, so run the loop until it has no more handles.
 */
void amqp_link_close(struct amqp_link *link);
bool amqp_link_up(const struct amqp_link *link);
bool amqp_link_blocked(const struct amqp_link *link); /* the broker said connection.blocked */

/*
 * --- topology: on a channel of the link's own, opened by itself. Each calls done(arg, err, text) once, never from
 * inside the call.
 *   ERR_CONFLICT     refused by the broker (404, 406 …), its words in `text`
 *   ERR_LOST         the link is away or broke
 *   ERR_BAD_REQUEST  a name longer than 255 bytes
 * A broker that is silent about one for 20 s is taken for dead: the link breaks. ---
 */
typedef void (*amqp_done)(void *arg, enum err err, struct str text);
void amqp_declare_exchange(
    struct amqp_link *link, const char *name, const char *type, bool durable, amqp_done done, void *arg);
struct amqp_queue_options {
    bool quorum, durable, exclusive, auto_delete, single_active_consumer, reject_publish, drop_head;
    int64_t max_length_bytes; /* 0 = none */
};
void amqp_declare_queue(
    struct amqp_link *link, const char *name, const struct amqp_queue_options *options, amqp_done done, void *arg);
void amqp_bind_queue(
    struct amqp_link *link, const char *queue, const char *exchange, const char *key, amqp_done done, void *arg);
void amqp_unbind_queue(
    struct amqp_link *link, const char *queue, const char *exchange, const char *key, amqp_done done, void *arg);
/* Passive declare: messages ready and consumers. ERR_CONFLICT when there is no such queue. */
void amqp_inspect_queue(struct amqp_link *link, const char *name,
    void (*done)(void *arg, enum err err, uint32_t messages, uint32_t consumers), void *arg);

/* --- publishing: mandatory, persistent, confirmed --- */
struct amqp_message {
    struct str exchange, routing_key, content_type, reply_to, message_id, app_id; /* empty = not set */
    const char *headers[8][2]; /* string headers, NULL-terminated list; values copied */
    struct str body;
    bool transient; /* delivery_mode 1, not mandatory: for the feed */
};
/* The broker knows a publish by the property correlation-id, which is ours: a basic.return has no tag. */
struct amqp_outgoing;
/*
 * One publish. Embedded in the operation; must live until done. The message is copied (encoded) before return.
 *   ERR_OK           confirmed and not returned
 *   ERR_UNROUTABLE   confirmed but returned: no queue bound
 *   ERR_UNROUTABLE   also: the broker refused the exchange itself (404, 403)
 *   ERR_UNAVAILABLE  not sent: link away for more than a second or blocked, or too much pending; nacked by the broker
 *   ERR_TIMEOUT      sent and not confirmed within publish_timeout_ms: may have happened
 *   ERR_LOST         the same, and the link broke meanwhile
 *   ERR_TOO_LARGE    the headers together are above 2,700 bytes
 *   ERR_BAD_REQUEST  a name or a property is longer than 255 bytes
 *   ERR_CLOSED       amqp_link_close came first: may have happened
 * done is never called from inside amqp_publish. Order of confirms is the broker's. When the link breaks, publishes
 * without a confirm are sent again, in order, as soon as it is back and until their deadline: receivers know them
 * by their id.
 */
struct amqp_publish {
    void (*done)(struct amqp_publish *publish, enum err err);
    struct list link; /* the link's */
    uint64_t tag;
    uint64_t deadline_ms;
    struct amqp_outgoing *outgoing;
    uint32_t bytes;
    bool returned;
    enum err err;
};
void amqp_publish(struct amqp_link *link, struct amqp_publish *publish, const struct amqp_message *message);
/* The same without waiting for anything: no confirm asked. false: dropped, because the link is away or blocked, because
 * more than unsent_max_bytes wait for the socket already, or for a name or property that is too long. */
bool amqp_publish_unconfirmed(struct amqp_link *link, const struct amqp_message *message, size_t unsent_max_bytes);

/* --- consuming --- */
struct amqp_delivery {
    uint64_t tag;
    bool redelivered;
    struct str exchange, routing_key;
    struct str content_type, content_encoding, reply_to, message_id; /* empty = not set */
    struct str body;       /* all of it; of one above AMQP_BODY_MAX_BYTES its first so many bytes */
    uint64_t body_bytes;   /* what the sender sent */
    uint8_t delivery_mode; /* 0 = not set */
};
/* More than any valid message has. What is above is not kept: strangers can send up to the broker's 128 MiB. */
#define AMQP_BODY_MAX_BYTES (1u << 20)

struct amqp_consumer_events {
    void (*started)(void *owner); /* consume-ok */
    /* Slices are borrowed for the call. */
    void (*delivered)(void *owner, const struct amqp_delivery *delivery);
    /* The channel is gone: its tags are void. Not called after amqp_consumer_close.
     *   ERR_LOST         the link is away or broke
     *   ERR_CONFLICT     channel error; the broker's words in `text` (404: no such queue)
     *   ERR_UNAVAILABLE  basic.cancel: the queue was deleted or lost its leader; or no channel number is left */
    void (*lost)(void *owner, enum err err, struct str text);
};
struct amqp_consumer; /* one channel with one consumer */
/* Opens a channel and subscribes with a fresh tag. The link must be up, else lost() follows on a later turn. no_ack:
 * true for the feed. */
struct amqp_consumer *amqp_consume(struct amqp_link *link, const char *queue, uint16_t prefetch, bool no_ack,
    const struct amqp_consumer_events *events, void *owner);
/* Buffered; leaves at the end of the turn. */
void amqp_ack(struct amqp_consumer *consumer, uint64_t tag, bool multiple);
/* channel.close, then closed(owner) at close-ok (or when the link breaks); no deliveries afterwards. Never
 * basic.cancel. Frees the consumer. */
void amqp_consumer_close(struct amqp_consumer *consumer, void (*closed)(void *owner));
/* After lost(): frees the consumer. */
void amqp_consumer_free(struct amqp_consumer *consumer);

/* Reading of the whole link stops and goes on: back-pressure by memory. Heartbeats we send go on; the receive deadline
 * is suspended while paused. A pause outlives a broken connection. */
void amqp_link_pause(struct amqp_link *link, bool pause);

struct amqp_counters {
    uint64_t published_total, confirmed_total, returned_total, nacked_total, delivered_total, reconnects_total;
    uint32_t pending;
    uint64_t pending_bytes;
};
struct amqp_counters amqp_link_counters(const struct amqp_link *link);

#endif
