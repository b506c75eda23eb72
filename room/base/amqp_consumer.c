/*
 * Consumers: each has a channel of its own, so that its tags, its prefetch and its end are its own. A delivery arrives
 * as a method, a header, and bodies; most bodies are one frame and are handed on where they were read.
 */
#include "amqp_impl.h"

#include "log.h"
#include "ulid.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

/* ON -amqp_consumer_close-> CLOSING -close-ok-> freed; ON -channel or link gone-> LOST; DOOMED -a turn later-> LOST */
enum consumer_state { CONSUMER_ON, CONSUMER_CLOSING, CONSUMER_DOOMED, CONSUMER_LOST };

enum { TEXTS = 6, BODY_KEEP_BYTES = 1 << 16 };

struct amqp_consumer {
    struct list link;
    struct amqp_link *on;
    const struct amqp_consumer_events *events;
    void *owner;
    void (*closed)(void *owner);
    enum consumer_state state;
    uint16_t channel;
    enum err doom;

    /* The delivery that is coming in: its texts are copied (they are short), as a read may end behind any frame. */
    enum content_step step;
    struct amqp_delivery delivery;
    uint64_t body_left;
    struct buf body;
    size_t text_n;
    char text[TEXTS * CODEC_NAME_MAX];
};

static void consumer_method(struct amqp_link *link, struct amqp_consumer *consumer, struct str payload);
static void consumer_start_delivery(struct amqp_consumer *consumer, struct str payload);
static void consumer_take_header(struct amqp_consumer *consumer, struct str payload);
static void consumer_take_body(struct amqp_consumer *consumer, struct str payload);
static void consumer_deliver(struct amqp_consumer *consumer, struct str body);
static void consumer_lose(struct amqp_consumer *consumer, enum err err, struct str text);
static void consumer_finish_close(struct amqp_consumer *consumer);

/* --- consuming --- */

static uint16_t take_channel(struct amqp_link *link)
{
    for (unsigned i = CHANNEL_CONSUMERS; i <= link->channel_max; i++) {
        if (++link->last_channel > link->channel_max || link->last_channel < CHANNEL_CONSUMERS)
            link->last_channel = CHANNEL_CONSUMERS;
        if (!link->slots[link->last_channel].consumer && !link->slots[link->last_channel].closing)
            return link->last_channel;
    }
    return 0;
}

static void consumer_subscribe(struct amqp_consumer *consumer, const char *queue, uint16_t prefetch, bool no_ack)
{
    struct amqp_link *link = consumer->on;
    amqp_basic_qos_t qos = {.prefetch_count = prefetch};
    amqp_basic_consume_t consume = {.queue = amqp_cstring_bytes(queue), .no_ack = no_ack};
    uint64_t random;
    char tag[CODEC_NAME_MAX];

    /* Fresh each time: RabbitMQ below 3.11 loses track of messages when a quorum queue sees a tag twice (#9158). */
    random_bytes(&random, sizeof(random));
    snprintf(tag, sizeof(tag), "%.64s.%u.%016llx", link->settings.name, ++link->consumer_counter,
        (unsigned long long)random);
    consume.consumer_tag = amqp_cstring_bytes(tag);
    amqp_add_channel_open(link, consumer->channel);
    if (!no_ack)
        codec_add_method(link_out(link), consumer->channel, AMQP_BASIC_QOS_METHOD, &qos);
    codec_add_method(link_out(link), consumer->channel, AMQP_BASIC_CONSUME_METHOD, &consume);
}

struct amqp_consumer *amqp_consume(struct amqp_link *link, const char *queue, uint16_t prefetch, bool no_ack,
    const struct amqp_consumer_events *events, void *owner)
{
    struct amqp_consumer *consumer = xcalloc(1, sizeof(*consumer));

    list_init(&consumer->link);
    consumer->on = link;
    consumer->events = events;
    consumer->owner = owner;
    if (!link_is_up(link))
        consumer->doom = ERR_LOST;
    else if (strlen(queue) > CODEC_NAME_MAX)
        consumer->doom = ERR_CONFLICT;
    else if (!(consumer->channel = take_channel(link)))
        consumer->doom = ERR_UNAVAILABLE;
    if (consumer->doom) {
        consumer->state = CONSUMER_DOOMED;
        list_push_back(&link->doomed, &consumer->link);
        amqp_link_kick(link);
        return consumer;
    }
    consumer->state = CONSUMER_ON;
    link->slots[consumer->channel] = (struct amqp_slot){.consumer = consumer};
    list_push_back(&link->consumers, &consumer->link);
    consumer_subscribe(consumer, queue, prefetch, no_ack);
    return consumer;
}

void amqp_ack(struct amqp_consumer *consumer, uint64_t tag, bool multiple)
{
    if (consumer->state != CONSUMER_ON || !link_is_up(consumer->on))
        return; /* its tags are void */
    codec_add_ack(link_out(consumer->on), consumer->channel, tag, multiple);
    amqp_link_kick(consumer->on);
}

void amqp_consumer_close(struct amqp_consumer *consumer, void (*closed)(void *owner))
{
    struct amqp_link *link = consumer->on;

    assert(consumer->state != CONSUMER_CLOSING);
    consumer->closed = closed;
    if (consumer->state == CONSUMER_ON) {
        link->slots[consumer->channel].closing = true;
        if (link_is_up(link)) /* else closed() comes with the rest of the break */
            amqp_add_channel_close(link, consumer->channel);
    } else {
        list_remove(&consumer->link);
        list_push_back(&link->doomed, &consumer->link);
        amqp_link_kick(link);
    }
    consumer->state = CONSUMER_CLOSING;
}

static void consumer_delete(struct amqp_consumer *consumer)
{
    list_remove(&consumer->link);
    buf_clear(&consumer->body);
    free(consumer);
}

void amqp_consumer_free(struct amqp_consumer *consumer)
{
    if (!consumer)
        return;
    assert(consumer->state == CONSUMER_LOST);
    consumer_delete(consumer);
}

/* --- what the broker says --- */

void amqp_consumer_frame(struct amqp_link *link, const struct codec_frame *frame)
{
    struct amqp_slot *slot = frame->channel <= link->channel_max ? &link->slots[frame->channel] : NULL;
    struct amqp_consumer *consumer = slot ? slot->consumer : NULL;

    if (!slot || (!consumer && !slot->closing)) {
        amqp_link_break(link, "a frame on a channel that is not open");
    } else if (slot->closing) {
        uint32_t method = frame->type == CODEC_METHOD ? codec_method(frame->payload) : 0;

        /* The broker's own close may have crossed ours: it gets its answer, and ours comes too. */
        if (method == AMQP_CHANNEL_CLOSE_METHOD)
            amqp_add_channel_close_ok(link, frame->channel);
        if (method != AMQP_CHANNEL_CLOSE_OK_METHOD)
            return;
        *slot = (struct amqp_slot){0};
        if (consumer)
            consumer_finish_close(consumer);
    } else if (frame->type == CODEC_BODY && consumer->step == CONTENT_BODY) {
        consumer_take_body(consumer, frame->payload);
    } else if (frame->type == CODEC_HEADER && consumer->step == CONTENT_HEADER) {
        consumer_take_header(consumer, frame->payload);
    } else if (frame->type == CODEC_METHOD && consumer->step == CONTENT_NONE) {
        consumer_method(link, consumer, frame->payload);
    } else {
        amqp_link_break(link, "content out of turn on a consumer's channel");
    }
}

static void consumer_method(struct amqp_link *link, struct amqp_consumer *consumer, struct str payload)
{
    amqp_channel_close_t *said;

    switch (codec_method(payload)) {
    case AMQP_BASIC_DELIVER_METHOD:
        consumer_start_delivery(consumer, payload);
        break;
    case AMQP_BASIC_CONSUME_OK_METHOD:
        if (consumer->events->started)
            consumer->events->started(consumer->owner);
        break;
    case AMQP_BASIC_CANCEL_METHOD:
        /* The channel still has its unacked deliveries: it must go, and its number waits for close-ok. */
        amqp_add_channel_close(link, consumer->channel);
        link->slots[consumer->channel] = (struct amqp_slot){.closing = true};
        consumer_lose(consumer, ERR_UNAVAILABLE, STR("cancelled by the broker: the queue is gone or has no leader"));
        break;
    case AMQP_CHANNEL_CLOSE_METHOD:
        recycle_amqp_pool(&link->pool);
        said = codec_decode(payload, &link->pool);
        amqp_add_channel_close_ok(link, consumer->channel);
        link->slots[consumer->channel] = (struct amqp_slot){0};
        consumer_lose(consumer, ERR_CONFLICT, said ? codec_str(said->reply_text) : (struct str){"", 0});
        break;
    case AMQP_CHANNEL_OPEN_OK_METHOD:
    case AMQP_BASIC_QOS_OK_METHOD:
        break;
    default:
        amqp_link_break(link, "a method out of turn on a consumer's channel");
    }
}

static struct str keep_text(struct amqp_consumer *consumer, struct str s)
{
    char *at = consumer->text + consumer->text_n;

    if (s.n)
        memcpy(at, s.p, s.n);
    consumer->text_n += s.n;
    return (struct str){at, s.n};
}

static void consumer_start_delivery(struct amqp_consumer *consumer, struct str payload)
{
    struct codec_deliver deliver;

    if (!codec_read_deliver(payload, &deliver)) {
        amqp_link_break(consumer->on, "a delivery that is too short");
        return;
    }
    consumer->text_n = 0;
    consumer->delivery = (struct amqp_delivery){.tag = deliver.tag,
        .redelivered = deliver.redelivered,
        .exchange = keep_text(consumer, deliver.exchange),
        .routing_key = keep_text(consumer, deliver.routing_key)};
    consumer->step = CONTENT_HEADER;
}

static void consumer_take_header(struct amqp_consumer *consumer, struct str payload)
{
    struct amqp_delivery *delivery = &consumer->delivery;
    struct codec_content content;

    if (!codec_read_content(payload, &content)) {
        amqp_link_break(consumer->on, "a delivery without a content header");
        return;
    }
    delivery->content_type = keep_text(consumer, content.content_type);
    delivery->content_encoding = keep_text(consumer, content.content_encoding);
    delivery->reply_to = keep_text(consumer, content.reply_to);
    delivery->message_id = keep_text(consumer, content.message_id);
    delivery->delivery_mode = content.delivery_mode;
    delivery->body_bytes = consumer->body_left = content.body_bytes;
    buf_reset(&consumer->body);
    consumer->step = CONTENT_BODY;
    if (content.body_bytes == 0)
        consumer_deliver(consumer, (struct str){"", 0});
}

static void consumer_take_body(struct amqp_consumer *consumer, struct str payload)
{
    size_t room;

    if (payload.n > consumer->body_left) {
        amqp_link_break(consumer->on, "more body than announced");
        return;
    }
    consumer->body_left -= payload.n;
    if (payload.n == consumer->delivery.body_bytes && payload.n <= AMQP_BODY_MAX_BYTES) {
        consumer_deliver(consumer, payload);
        return;
    }
    room = AMQP_BODY_MAX_BYTES - consumer->body.n;
    buf_add(&consumer->body, payload.p, payload.n < room ? payload.n : room);
    if (consumer->body_left == 0)
        consumer_deliver(consumer, buf_str(&consumer->body));
}

/* The callback may close the consumer or the link; both are freed later, on another turn. */
static void consumer_deliver(struct amqp_consumer *consumer, struct str body)
{
    consumer->step = CONTENT_NONE;
    consumer->delivery.body = body;
    consumer->on->counters.delivered_total++;
    consumer->events->delivered(consumer->owner, &consumer->delivery);
    if (consumer->body.capacity > BODY_KEEP_BYTES)
        buf_clear(&consumer->body);
}

/* --- its end --- */

/* The owner may free it in the callback. */
static void consumer_lose(struct amqp_consumer *consumer, enum err err, struct str text)
{
    list_remove(&consumer->link);
    list_push_back(&consumer->on->lost, &consumer->link);
    consumer->state = CONSUMER_LOST;
    /* With its connection goes every consumer there is, and amqp.down has said so. */
    log_at(err == ERR_LOST ? LOG_DEBUG : LOG_INFO, "amqp.consumer_lost", "link=%s err=%s why=%s",
        consumer->on->settings.name, err_code(err), log_quote(text));
    consumer->events->lost(consumer->owner, err, text);
}

static void consumer_finish_close(struct amqp_consumer *consumer)
{
    void (*closed)(void *owner) = consumer->closed;
    void *owner = consumer->owner;

    consumer_delete(consumer);
    if (closed)
        closed(owner);
}

static void consumers_end(struct amqp_link *link, struct list *consumers)
{
    struct list due, *first;

    list_init(&due); /* not those that are added meanwhile: a caller that subscribes again at once would never end */
    list_splice_back(&due, consumers);
    while (!link_is_closed(link) && (first = due.next) != &due) {
        struct amqp_consumer *consumer = list_entry(first, struct amqp_consumer, link);

        if (consumer->state == CONSUMER_CLOSING)
            consumer_finish_close(consumer);
        else
            consumer_lose(consumer, consumer->doom,
                consumer->doom == ERR_LOST ? STR("the connection is gone") : str_of(err_sentence(consumer->doom)));
    }
    list_splice_back(&link->doomed, &due);
}

/* --- its place in the link's life --- */

void amqp_consumers_init(struct amqp_link *link)
{
    list_init(&link->consumers);
    list_init(&link->doomed);
    list_init(&link->lost);
    link->slots = xcalloc(CHANNELS_MAX + 1, sizeof(*link->slots));
}

void amqp_consumers_clear(struct amqp_link *link)
{
    struct list *first;

    list_splice_back(&link->lost, &link->consumers);
    list_splice_back(&link->lost, &link->doomed);
    while ((first = link->lost.next) != &link->lost)
        consumer_delete(list_entry(first, struct amqp_consumer, link));
    free(link->slots);
}

void amqp_consumers_down(struct amqp_link *link)
{
    struct amqp_consumer *consumer;

    memset(link->slots, 0, (CHANNELS_MAX + 1) * sizeof(*link->slots));
    link->last_channel = 0;
    list_for_each (consumer, &link->consumers, link) {
        consumer->doom = ERR_LOST;
        if (consumer->state == CONSUMER_ON)
            consumer->state = CONSUMER_DOOMED;
    }
    consumers_end(link, &link->consumers);
}

void amqp_consumers_tell_doomed(struct amqp_link *link)
{
    consumers_end(link, &link->doomed);
}
