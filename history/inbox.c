/*
 * Deliveries into the sequencer, acks out of it. A delivery is acknowledged when the row that settles it is committed,
 * and only together with all before it (ack-multiple up to the last tag below which everything is settled).
 */
#include "internal.h"

#include "room/base/log.h"

static void on_started(void *owner)
{
    shard_channel_started(owner);
}

static void on_delivered(void *owner, const struct amqp_delivery *delivery)
{
    struct shard *shard = owner;
    struct history *history = shard->history;
    struct envelope_source source = {
        .from_op_exchange = str_is(delivery->exchange, "roomd.op"),
        .content_type = delivery->content_type,
        .content_encoding = delivery->content_encoding,
        .shard = str_of(shard->name),
        .message_id = delivery->message_id,
        .content_max_bytes = history->config->content_max_bytes,
    };
    struct envelope *envelope;
    const char *why = NULL;
    enum err err;

    /* While the shard is moved nothing new is sequenced: what comes now stays unacknowledged and goes to the next
     * owner. */
    if (shard->state != SHARD_RUNNING)
        return;
    if (!cluster_sure(history->cluster)) { /* read before any timer could run: the shard may be another's by now */
        shard_give_back(shard, "this process stood still");
        return;
    }
    err = envelope_read(&envelope, delivery->body, &source, &why);
    if (delivery->body_bytes > delivery->body.n) {
        err = ERR_TOO_LARGE;
        why = "the message is larger than 1 MiB; only its beginning is kept";
    }
    if (envelope && delivery->reply_to.n)
        origins_note(history->origins, envelope->message_id, delivery->reply_to);
    if (err)
        sequencer_refuse(shard->sequencer, delivery->tag, envelope, err, why, history_now_ms(history));
    else
        sequencer_deliver(shard->sequencer, delivery->tag, delivery->redelivered, envelope, history_now_ms(history));
    shard_mark_dirty(shard);
}

static void on_lost(void *owner, enum err err, struct str text)
{
    shard_channel_lost(owner, err, text);
}

const struct amqp_consumer_events inbox_events = {
    .started = on_started,
    .delivered = on_delivered,
    .lost = on_lost,
};

void inbox_take_acks(struct shard *shard)
{
    uint64_t tag;

    if (!shard->consumer)
        return;
    tag = sequencer_take_ack(shard->sequencer);
    if (tag)
        amqp_ack(shard->consumer, tag, true);
}

/* The socket is read again well below the bound, so that it does not flap with every commit. */
void inbox_back_pressure(struct history *history)
{
    size_t most = (size_t)history->config->unpersisted_max_bytes;
    bool pause = history->unpersisted_bytes > (history->paused ? most / 4 * 3 : most);

    if (pause == history->paused || !history->consume)
        return;
    history->paused = pause;
    log_info(
        "inbox.back_pressure", "paused=%s unpersisted_bytes=%zu", pause ? "true" : "false", history->unpersisted_bytes);
    amqp_link_pause(history->consume, pause);
}
