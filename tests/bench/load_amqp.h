/*
 * AMQP for the load programs, as cheap as it gets: librabbitmq logs in and opens the channel, after that frames are
 * written and read here in large pieces, many messages to a system call. Blocking while it opens, never afterwards.
 */
#ifndef ROOMD_BENCH_LOAD_AMQP_H
#define ROOMD_BENCH_LOAD_AMQP_H

#include "load.h"

#include "room/base/amqp_codec.h"

#include <amqp_tcp_socket.h>
#include <arpa/inet.h>
#include <sys/socket.h>

struct broker {
    amqp_connection_state_t state;
    int fd;
    struct buf in, out;
};

static inline void broker_check(amqp_rpc_reply_t reply, const char *what)
{
    if (reply.reply_type == AMQP_RESPONSE_NORMAL)
        return;
    if (reply.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION && reply.reply.id == AMQP_CHANNEL_CLOSE_METHOD) {
        amqp_channel_close_t *close = reply.reply.decoded;

        fprintf(stderr, "%.*s\n", (int)close->reply_text.len, (char *)close->reply_text.bytes);
    }
    give_up(what,
        reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION ? amqp_error_string2(reply.library_error) : "refused");
}

static inline void broker_open(struct broker *broker, const char *url)
{
    char *copy = xstrdup(url);
    struct amqp_connection_info info;
    amqp_socket_t *socket;

    *broker = (struct broker){.state = amqp_new_connection()};
    if (amqp_parse_url(copy, &info) != AMQP_STATUS_OK)
        give_up("AMQP address", url);
    socket = amqp_tcp_socket_new(broker->state);
    if (amqp_socket_open(socket, info.host, info.port) != AMQP_STATUS_OK)
        give_up("no broker at", info.host);
    broker_check(amqp_login(broker->state, info.vhost, 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, info.user, info.password),
        "AMQP login");
    amqp_channel_open(broker->state, 1);
    broker_check(amqp_get_rpc_reply(broker->state), "AMQP channel");
    broker->fd = amqp_get_sockfd(broker->state);
    free(copy);
}

static inline void broker_close(struct broker *broker)
{
    amqp_destroy_connection(broker->state);
    buf_clear(&broker->in);
    buf_clear(&broker->out);
}

/* Sends what it can; false: the socket is full, wait until it is writable. */
static inline bool broker_flush(struct broker *broker)
{
    size_t sent = 0;

    while (sent < broker->out.n) {
        ssize_t n = send(broker->fd, broker->out.p + sent, broker->out.n - sent, MSG_NOSIGNAL | MSG_DONTWAIT);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN)
            give_up("AMQP send", strerror(errno));
        if (n < 0)
            break;
        sent += (size_t)n;
    }
    buf_consume(&broker->out, sent);
    return broker->out.n == 0;
}

/* Reads once; true: there was something, and frames may be taken. */
static inline bool broker_read(struct broker *broker)
{
    const size_t piece = 256 * 1024;
    ssize_t n = recv(broker->fd, buf_reserve(&broker->in, piece), piece, MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    if (n <= 0)
        give_up("AMQP connection", n ? strerror(errno) : "closed by the broker");
    broker->in.n += (size_t)n;
    return true;
}

/* The next whole frame of what was read. *at walks from 0; afterwards drop the walked part with buf_consume. */
static inline bool broker_frame(struct broker *broker, size_t *at, struct codec_frame *frame)
{
    ptrdiff_t length =
        codec_read_frame((struct str){broker->in.p + *at, broker->in.n - *at}, CODEC_FRAME_MAX_MAX, frame);

    if (length < 0)
        give_up("AMQP", "not a frame");
    *at += (size_t)length;
    return length > 0;
}

/* ------------------------------------------------------------------------------------------------------ publishing */

enum { PUBLISHER_RING = 1 << 16 };
struct publisher {
    struct broker broker;
    const char *exchange;
    uint64_t window, sent, confirmed; /* all tags up to `confirmed` are */
    int64_t meant_at[PUBLISHER_RING]; /* of the tag + 1; 0: confirmed out of turn */
    int64_t measure_from;
    struct spread confirms;
};

static inline void publisher_open(struct publisher *publisher, const char *url, const char *exchange, uint64_t window)
{
    if (window >= PUBLISHER_RING)
        give_up("window", "too large");
    broker_open(&publisher->broker, url);
    amqp_confirm_select(publisher->broker.state, 1);
    broker_check(amqp_get_rpc_reply(publisher->broker.state), "confirm.select");
    publisher->exchange = exchange;
    publisher->window = window;
    publisher->measure_from = INT64_MAX;
}

static inline bool publisher_may(const struct publisher *publisher)
{
    /* 256 KiB not taken by the socket: the broker pushes back. */
    return publisher->sent - publisher->confirmed < publisher->window && publisher->broker.out.n < 256 * 1024;
}

static inline char *put_number(char *at, uint64_t value, int bytes)
{
    for (int i = bytes - 1; i >= 0; i--)
        *at++ = (char)(value >> (8 * i));
    return at;
}

static inline char *put_short(char *at, const char *text, size_t n)
{
    *at++ = (char)n;
    memcpy(at, text, n);
    return at + n;
}

static inline char *put_frame(char *at, int type, size_t n)
{
    *at++ = (char)type;
    at = put_number(at, 1, 2); /* channel */
    return put_number(at, n, 4);
}

/* basic.publish (60, 40): mandatory, persistent, JSON. AMQP 0-9-1, 1.8.3.7 and 4.2.6.1. */
static inline void publisher_put(
    struct publisher *publisher, const char *key, size_t key_bytes, struct str body, int64_t meant_at)
{
    static const char type[] = "application/json";
    size_t exchange_bytes = strlen(publisher->exchange);
    size_t method_bytes = 4 + 2 + 1 + exchange_bytes + 1 + key_bytes + 1,
           header_bytes = 2 + 2 + 8 + 2 + 1 + sizeof type - 1 + 1;
    char *begin = buf_reserve(&publisher->broker.out, method_bytes + header_bytes + body.n + 24), *at = begin;

    at = put_frame(at, CODEC_METHOD, method_bytes);
    at = put_number(at, AMQP_BASIC_PUBLISH_METHOD, 4);
    at = put_number(at, 0, 2);
    at = put_short(at, publisher->exchange, exchange_bytes);
    at = put_short(at, key, key_bytes);
    at = put_number(at, 1, 1); /* mandatory */
    at = put_number(at, AMQP_FRAME_END, 1);

    at = put_frame(at, CODEC_HEADER, header_bytes);
    at = put_number(put_number(at, AMQP_BASIC_CLASS, 2), 0, 2);
    at = put_number(at, body.n, 8);
    at = put_number(at, AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG, 2);
    at = put_short(at, type, sizeof type - 1);
    at = put_number(at, 2, 1); /* persistent */
    at = put_number(at, AMQP_FRAME_END, 1);

    at = put_frame(at, CODEC_BODY, body.n);
    memcpy(at, body.p, body.n);
    at = put_number(at + body.n, AMQP_FRAME_END, 1);
    publisher->broker.out.n += (size_t)(at - begin);
    publisher->meant_at[publisher->sent++ % PUBLISHER_RING] = meant_at;
}

static inline void publisher_confirm_one(struct publisher *publisher, uint64_t index, int64_t now)
{
    int64_t *meant_at = &publisher->meant_at[index % PUBLISHER_RING];

    if (*meant_at && now >= publisher->measure_from)
        spread_add(&publisher->confirms, now - *meant_at);
    *meant_at = 0;
}

static inline void publisher_on_confirm(struct publisher *publisher, struct str payload)
{
    struct codec_confirm confirm;
    int64_t now = now_ns();

    if (!codec_read_confirm(payload, &confirm) || confirm.tag > publisher->sent)
        give_up("AMQP", "a confirm of something else");
    for (uint64_t i = confirm.multiple ? publisher->confirmed : confirm.tag - 1; i < confirm.tag; i++)
        publisher_confirm_one(publisher, i, now);
    while (publisher->confirmed < publisher->sent && !publisher->meant_at[publisher->confirmed % PUBLISHER_RING])
        publisher->confirmed++;
}

/* Takes the confirms that are there. */
static inline void publisher_read(struct publisher *publisher)
{
    struct codec_frame frame;
    size_t at = 0;

    if (!broker_read(&publisher->broker))
        return;
    while (broker_frame(&publisher->broker, &at, &frame)) {
        uint32_t method = frame.type == CODEC_METHOD ? codec_method(frame.payload) : 0;

        if (method == AMQP_BASIC_ACK_METHOD)
            publisher_on_confirm(publisher, frame.payload);
        else if (frame.type != CODEC_HEARTBEAT)
            give_up("publisher", method == AMQP_BASIC_NACK_METHOD     ? "the broker refused a message"
                                 : method == AMQP_BASIC_RETURN_METHOD ? "a message was returned: no queue is bound"
                                                                      : "an unexpected frame");
    }
    buf_consume(&publisher->broker.in, at);
}

/* ------------------------------------------------------------------------------------------------------- consuming */

struct consumer {
    struct broker broker;
    uint64_t tag; /* of the delivery whose frames are arriving */
    void (*delivered)(void *owner, uint64_t tag, struct str body);
    void *owner;
};

/* basic.consume (60, 20) without an answer. It is sent here and not by librabbitmq, which would
 * read deliveries ahead. */
static inline void consumer_start(struct consumer *consumer, const char *queue)
{
    size_t n = strlen(queue), bytes = 4 + 2 + 1 + n + 1 + 1 + 4;
    char *begin = buf_reserve(&consumer->broker.out, bytes + CODEC_FRAME_EXTRA), *at = begin;

    at = put_frame(at, CODEC_METHOD, bytes);
    at = put_number(put_number(at, AMQP_BASIC_CONSUME_METHOD, 4), 0, 2);
    at = put_short(at, queue, n);
    at = put_number(put_short(at, "", 0), 8, 1); /* no tag of ours; nowait */
    at = put_number(at, 0, 4);                   /* no arguments */
    at = put_number(at, AMQP_FRAME_END, 1);
    consumer->broker.out.n += (size_t)(at - begin);
}

static inline void consumer_ack(struct consumer *consumer, uint64_t tag)
{
    codec_add_ack(&consumer->broker.out, 1, tag, true);
}

/* Takes the deliveries that are there; bodies fit one frame. */
static inline void consumer_read(struct consumer *consumer)
{
    struct codec_frame frame;
    struct codec_deliver deliver;
    size_t at = 0;

    if (!broker_read(&consumer->broker))
        return;
    while (broker_frame(&consumer->broker, &at, &frame)) {
        if (frame.type == CODEC_BODY) {
            consumer->delivered(consumer->owner, consumer->tag, frame.payload);
        } else if (frame.type == CODEC_METHOD) {
            if (codec_method(frame.payload) != AMQP_BASIC_DELIVER_METHOD ||
                !codec_read_deliver(frame.payload, &deliver))
                give_up("consumer", "an unexpected frame");
            consumer->tag = deliver.tag;
        }
    }
    buf_consume(&consumer->broker.in, at);
}

#endif
