/*
 * AMQP 0-9-1 bytes. What happens for each message (publish, deliver, ack, confirm) is read and written here by hand;
 * librabbitmq does the rest. Everything that arrives is bounded and checked: strangers choose part of these bytes.
 * Tables are never decoded, only stepped over: the methods and properties we need have none, and librabbitmq 0.11
 * recurses into nested ones. Source: AMQP 0-9-1 specification, 2.3 and 4.2.
 * Thread: pure functions. Memory: slices point into the input.
 */
#ifndef ROOMD_BASE_AMQP_CODEC_H
#define ROOMD_BASE_AMQP_CODEC_H

#include "amqp.h"

#include <amqp.h>
#include <amqp_framing.h>

enum { CODEC_METHOD = 1, CODEC_HEADER = 2, CODEC_BODY = 3, CODEC_HEARTBEAT = 8 };
enum {
    CODEC_FRAME_EXTRA = 8,        /* 7 in front of the payload, the end byte behind it */
    CODEC_FRAME_MIN_MAX = 4096,   /* no peer may ask for less than this as its largest frame */
    CODEC_FRAME_MAX_MAX = 131072, /* nor do we take more */
    CODEC_NAME_MAX = 255,
    CODEC_CORRELATION_BYTES = 16, /* the tag of a publish in hexadecimal */
};

/* --- reading --- */

struct codec_frame {
    uint8_t type;
    uint16_t channel;
    struct str payload;
};
/* The first frame of `in`: its length, 0 when more bytes are needed, -1 when these are no AMQP frames. */
ptrdiff_t codec_read_frame(struct str in, uint32_t frame_max, struct codec_frame *frame);

/* Class and method id of a method frame (AMQP_…_METHOD), 0 when it is too short for them. */
uint32_t codec_method(struct str payload);

struct codec_deliver {
    uint64_t tag;
    bool redelivered;
    struct str exchange, routing_key;
};
MUST_USE bool codec_read_deliver(struct str payload, struct codec_deliver *deliver);

struct codec_confirm { /* basic.ack, basic.nack */
    uint64_t tag;
    bool multiple;
};
MUST_USE bool codec_read_confirm(struct str payload, struct codec_confirm *confirm);

struct codec_content {
    uint64_t body_bytes;
    struct str content_type, content_encoding, correlation_id, reply_to, message_id;
    uint8_t delivery_mode;
};
/*
 * A content header. Properties are a stranger's: when they do not fit their own lengths all of them count as not set,
 * and the message goes on without. False only for what the broker itself must have got right.
 */
MUST_USE bool codec_read_content(struct str payload, struct codec_content *content);

/* connection.start: does the broker speak 0-9, and offer PLAIN? */
MUST_USE bool codec_read_start(struct str payload, bool *plain);

/* Any other method, decoded by librabbitmq into `pool`; NULL when malformed or when it would hold a table. */
void *codec_decode(struct str payload, amqp_pool_t *pool);

bool codec_read_hex(struct str text, uint64_t *value); /* exactly 16 lower-case digits */

/* --- writing --- */

/* A method encoded by librabbitmq. Names in it are at most CODEC_NAME_MAX long, all of it below CODEC_FRAME_MIN_MAX. */
void codec_add_method(struct buf *out, uint16_t channel, amqp_method_number_t method, void *fields);
void codec_add_heartbeat(struct buf *out);
void codec_add_ack(struct buf *out, uint16_t channel, uint64_t tag, bool multiple);

/*
 * basic.publish and the content header. *correlation_at: where in what was added the 16 bytes stand that
 * codec_set_correlation fills; NULL = the message gets no correlation-id.
 */
MUST_USE enum err codec_add_publish(
    struct buf *out, uint16_t channel, const struct amqp_message *message, size_t *correlation_at);
void codec_set_correlation(char *at, uint64_t tag);
void codec_add_body(struct buf *out, uint16_t channel, uint32_t frame_max, struct str body);

static inline amqp_bytes_t codec_bytes(struct str s)
{
    return (amqp_bytes_t){.len = s.n, .bytes = (void *)(uintptr_t)s.p};
}

static inline struct str codec_str(amqp_bytes_t bytes)
{
    return (struct str){bytes.bytes, bytes.len};
}

#endif
