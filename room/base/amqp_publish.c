/*
 * Publishing. A message is encoded once and kept until its confirm; a connection that comes back gets what was not
 * confirmed again, in the same order.
 */
#define _GNU_SOURCE /* memmem */
#include "amqp_impl.h"

#include "log.h"

#include <stdio.h>
#include <stdlib.h>

enum { GRACE_MS = 1000 }; /* a link that is away for less still takes publishes: most breaks are shorter */

/* A publish without a confirm: its message as frames up to the body, then the body itself. */
struct amqp_outgoing {
    struct map_link by_tag;
    struct amqp_publish *publish;
    uint64_t tag;
    bool was_sent; /* on this or an earlier connection */
    uint32_t head_n, body_n, correlation_at;
    char p[];
};

static void outgoing_send(struct amqp_link *link, struct amqp_publish *publish);
static void publish_settle(struct amqp_link *link, struct amqp_publish *publish, enum err err);
static void publisher_send_all(struct amqp_link *link);

/* --- publishing --- */

static enum err publish_refusal(const struct amqp_link *link)
{
    if (link_is_closed(link))
        return ERR_CLOSED;
    if (link->blocked)
        return ERR_UNAVAILABLE;
    if (!link_is_up(link) && uv_now(link->loop) - link->down_ms > GRACE_MS)
        return ERR_UNAVAILABLE;
    if (link->counters.pending >= link->settings.max_pending)
        return ERR_UNAVAILABLE;
    return ERR_OK;
}

static enum err outgoing_new(struct amqp_link *link, struct amqp_outgoing **out, const struct amqp_message *message)
{
    struct amqp_outgoing *outgoing;
    size_t correlation_at, n;
    enum err err;

    if (link->counters.pending_bytes + message->body.n > (uint64_t)link->settings.max_pending_bytes)
        return ERR_UNAVAILABLE;
    if (message->body.n > UINT32_MAX - CODEC_FRAME_MIN_MAX)
        return ERR_TOO_LARGE;
    buf_reset(&link->scratch);
    if ((err = codec_add_publish(&link->scratch, CHANNEL_PUBLISH, message, &correlation_at)))
        return err;
    n = link->scratch.n + message->body.n;
    if (link->counters.pending_bytes + n > (uint64_t)link->settings.max_pending_bytes)
        return ERR_UNAVAILABLE;
    outgoing = xmalloc(sizeof(*outgoing) + n);
    *outgoing = (struct amqp_outgoing){.head_n = (uint32_t)link->scratch.n,
        .body_n = (uint32_t)message->body.n,
        .correlation_at = (uint32_t)correlation_at};
    memcpy(outgoing->p, link->scratch.p, link->scratch.n);
    if (message->body.n)
        memcpy(outgoing->p + outgoing->head_n, message->body.p, message->body.n);
    *out = outgoing;
    return ERR_OK;
}

void amqp_publish(struct amqp_link *link, struct amqp_publish *publish, const struct amqp_message *message)
{
    enum err err = publish_refusal(link);

    list_init(&publish->link);
    publish->tag = 0;
    publish->returned = false;
    publish->outgoing = NULL;
    publish->bytes = 0;
    if (!err)
        err = outgoing_new(link, &publish->outgoing, message);
    publish->err = err;
    if (err) {
        list_push_back(&link->refused, &publish->link);
        amqp_link_kick(link);
        return;
    }
    publish->outgoing->publish = publish;
    publish->bytes = publish->outgoing->head_n + publish->outgoing->body_n;
    publish->deadline_ms = uv_now(link->loop) + (uint64_t)link->settings.publish_timeout_ms;
    list_push_back(&link->pending, &publish->link);
    link->counters.pending++;
    link->counters.pending_bytes += publish->bytes;
    link->counters.published_total++;
    if (link_is_up(link) && link->publish_open)
        outgoing_send(link, publish);
    else if (link_is_up(link))
        publisher_send_all(link);
}

bool amqp_publish_unconfirmed(struct amqp_link *link, const struct amqp_message *message, size_t unsent_max_bytes)
{
    struct buf *out;

    if (!link_is_up(link) || link->blocked || conn_unsent(link->conn) > unsent_max_bytes)
        return false;
    out = link_out(link);
    if (!link->unconfirmed_open)
        amqp_add_channel_open(link, CHANNEL_UNCONFIRMED);
    link->unconfirmed_open = true;
    if (codec_add_publish(out, CHANNEL_UNCONFIRMED, message, NULL))
        return false;
    codec_add_body(out, CHANNEL_UNCONFIRMED, link->frame_max, message->body);
    link->counters.published_total++;
    amqp_link_kick(link);
    return true;
}

static void outgoing_send(struct amqp_link *link, struct amqp_publish *publish)
{
    struct amqp_outgoing *outgoing = publish->outgoing;
    struct buf *out = link_out(link);

    publish->tag = outgoing->tag = ++link->last_tag;
    publish->returned = false;
    outgoing->was_sent = true;
    codec_set_correlation(outgoing->p + outgoing->correlation_at, publish->tag);
    map_insert(&link->by_tag, publish->tag, &outgoing->by_tag); /* our own numbers need no hash */
    buf_add(out, outgoing->p, outgoing->head_n);
    codec_add_body(
        out, CHANNEL_PUBLISH, link->frame_max, (struct str){outgoing->p + outgoing->head_n, outgoing->body_n});
    amqp_link_kick(link);
}

/* Opens the channel and sends what is pending; what comes later follows by itself. */
static void publisher_send_all(struct amqp_link *link)
{
    amqp_confirm_select_t select = {0};
    struct amqp_publish *publish;

    amqp_add_channel_open(link, CHANNEL_PUBLISH);
    codec_add_method(link_out(link), CHANNEL_PUBLISH, AMQP_CONFIRM_SELECT_METHOD, &select);
    link->publish_open = true;
    link->last_tag = 0;
    list_for_each (publish, &link->pending, link)
        outgoing_send(link, publish);
}

/* Nothing that was sent has its tag any more. */
static void publisher_forget_tags(struct amqp_link *link)
{
    struct amqp_publish *publish;

    map_clear(&link->by_tag);
    map_init(&link->by_tag);
    list_for_each (publish, &link->pending, link)
        publish->tag = 0;
    link->publish_open = false;
    link->returning = CONTENT_NONE;
}

/* --- its end --- */

static void publish_settle(struct amqp_link *link, struct amqp_publish *publish, enum err err)
{
    struct amqp_outgoing *outgoing = publish->outgoing;

    if (publish->tag)
        map_remove(&link->by_tag, &outgoing->by_tag);
    list_remove(&publish->link);
    link->counters.pending--;
    link->counters.pending_bytes -= publish->bytes;
    free(outgoing);
    publish->outgoing = NULL;
    publish->done(publish, err);
}

static struct amqp_publish *first_pending(struct amqp_link *link)
{
    return list_empty(&link->pending) ? NULL : list_entry(link->pending.next, struct amqp_publish, link);
}

static bool tag_equals(const struct map_link *by_tag, const void *key)
{
    return container_of(by_tag, struct amqp_outgoing, by_tag)->tag == *(const uint64_t *)key;
}

static struct amqp_publish *find_publish(struct amqp_link *link, uint64_t tag)
{
    struct map_link *found = map_find(&link->by_tag, tag, tag_equals, &tag);

    return found ? container_of(found, struct amqp_outgoing, by_tag)->publish : NULL;
}

static void publish_confirmed(struct amqp_link *link, struct amqp_publish *publish, bool accepted)
{
    if (!accepted)
        link->counters.nacked_total++;
    else if (publish->returned)
        link->counters.returned_total++;
    else
        link->counters.confirmed_total++;
    publish_settle(link, publish, !accepted ? ERR_UNAVAILABLE : publish->returned ? ERR_UNROUTABLE : ERR_OK);
}

/* Tags that are not found were given up at their deadline. */
static void publisher_confirm(struct amqp_link *link, struct str payload, bool accepted)
{
    struct codec_confirm confirm;
    struct amqp_publish *publish;

    if (!codec_read_confirm(payload, &confirm)) {
        amqp_link_break(link, "a confirm that is too short");
    } else if (!confirm.multiple) {
        if ((publish = find_publish(link, confirm.tag)))
            publish_confirmed(link, publish, accepted);
    } else {
        /* done() may publish again (to the end of the list), or close the link (which empties it). Tag 0 means all. */
        uint64_t last = confirm.tag ? confirm.tag : link->last_tag;

        while ((publish = first_pending(link)) && publish->tag && publish->tag <= last)
            publish_confirmed(link, publish, accepted);
    }
}

static enum err given_up(const struct amqp_publish *publish)
{
    if (publish->tag)
        return ERR_TIMEOUT;
    return publish->outgoing->was_sent ? ERR_LOST : ERR_UNAVAILABLE;
}

void amqp_publisher_tick(struct amqp_link *link, uint64_t now_ms)
{
    struct amqp_publish *publish;

    while ((publish = first_pending(link)) && publish->deadline_ms <= now_ms)
        publish_settle(link, publish, given_up(publish));
}

void amqp_publisher_settle_refused(struct amqp_link *link)
{
    struct list due, *first;

    list_init(&due); /* not those that are refused meanwhile: a caller that tries again at once would never end */
    list_splice_back(&due, &link->refused);
    while ((first = list_pop_front(&due))) {
        struct amqp_publish *publish = list_entry(first, struct amqp_publish, link);

        publish->done(publish, publish->err);
    }
}

/* --- what the broker says --- */

static void publisher_returned(struct amqp_link *link, struct str payload)
{
    struct codec_content content;
    struct amqp_publish *publish;
    uint64_t tag;

    if (!codec_read_content(payload, &content)) {
        amqp_link_break(link, "a return without a content header");
        return;
    }
    link->returning_left = content.body_bytes;
    link->returning = content.body_bytes ? CONTENT_BODY : CONTENT_NONE;
    if (codec_read_hex(content.correlation_id, &tag) && (publish = find_publish(link, tag)))
        publish->returned = true;
}

static bool quotes_exchange(struct str text, const struct amqp_publish *publish)
{
    /* In the method frame: behind its first 7 bytes, the method's id, and a number that is not used any more. */
    const unsigned char *exchange = (const unsigned char *)publish->outgoing->p + 7 + 4 + 2;
    char quoted[CODEC_NAME_MAX + 3];
    int n = snprintf(quoted, sizeof(quoted), "'%.*s'", exchange[0], exchange + 1);

    return memmem(text.p, text.n, quoted, (size_t)n) != NULL;
}

/*
 * The broker closed the channel because of one publish. 403 and 404 quote its exchange: those publishes are guilty and
 * the others are sent again. When nobody can be blamed all are, for else the bad one would close the next channel too.
 */
static enum err publisher_blame(struct amqp_link *link, struct str text, struct list *guilty)
{
    struct amqp_publish *publish;
    bool found = false;

    list_for_each (publish, &link->pending, link)
        found = found || quotes_exchange(text, publish);
    list_for_each (publish, &link->pending, link) {
        if (found && !quotes_exchange(text, publish))
            continue;
        list_remove(&publish->link);
        list_push_back(guilty, &publish->link);
        publish->tag = 0;
    }
    return found ? ERR_UNROUTABLE : ERR_LOST;
}

static void publisher_channel_closed(struct amqp_link *link, uint16_t channel, struct str payload)
{
    amqp_channel_close_t *said = codec_decode(payload, &link->pool);
    struct str text = said ? codec_str(said->reply_text) : (struct str){"", 0};
    struct list guilty, *first;
    enum err err;

    log_warn("amqp.publish_refused", "link=%s code=%u why=%s", link->settings.name, said ? said->reply_code : 0,
        log_quote(text));
    amqp_add_channel_close_ok(link, channel);
    if (channel == CHANNEL_UNCONFIRMED) {
        link->unconfirmed_open = false;
        return;
    }
    list_init(&guilty);
    err = publisher_blame(link, text, &guilty);
    publisher_forget_tags(link);
    if (!list_empty(&link->pending))
        publisher_send_all(link);
    while ((first = guilty.next) != &guilty)
        publish_settle(link, list_entry(first, struct amqp_publish, link), err);
}

static void publisher_method(struct amqp_link *link, uint16_t channel, struct str payload)
{
    uint32_t method = codec_method(payload);

    if (channel == CHANNEL_UNCONFIRMED && method >> 16 == AMQP_BASIC_CLASS)
        method = 0; /* it has neither confirms nor returns */
    switch (method) {
    case AMQP_BASIC_ACK_METHOD:
        publisher_confirm(link, payload, true);
        break;
    case AMQP_BASIC_NACK_METHOD:
        publisher_confirm(link, payload, false);
        break;
    case AMQP_BASIC_RETURN_METHOD:
        link->returning = CONTENT_HEADER;
        break;
    case AMQP_CHANNEL_CLOSE_METHOD:
        recycle_amqp_pool(&link->pool);
        publisher_channel_closed(link, channel, payload);
        break;
    case AMQP_CHANNEL_OPEN_OK_METHOD:
    case AMQP_CONFIRM_SELECT_OK_METHOD:
        break;
    default:
        amqp_link_break(link, "a method out of turn on a publishing channel");
    }
}

void amqp_publisher_frame(struct amqp_link *link, const struct codec_frame *frame)
{
    bool open = frame->channel == CHANNEL_PUBLISH ? link->publish_open : link->unconfirmed_open;
    enum content_step expected = frame->type == CODEC_METHOD   ? CONTENT_NONE
                                 : frame->type == CODEC_HEADER ? CONTENT_HEADER
                                                               : CONTENT_BODY;

    if (!open) {
        amqp_link_break(link, "a frame on a channel that is not open");
    } else if (frame->channel == CHANNEL_UNCONFIRMED && frame->type == CODEC_METHOD) {
        publisher_method(link, frame->channel, frame->payload);
    } else if (link->returning != expected || frame->channel == CHANNEL_UNCONFIRMED) {
        amqp_link_break(link, "content out of turn on a publishing channel");
    } else if (frame->type == CODEC_METHOD) {
        publisher_method(link, frame->channel, frame->payload);
    } else if (frame->type == CODEC_HEADER) {
        publisher_returned(link, frame->payload);
    } else if (frame->payload.n > link->returning_left) {
        amqp_link_break(link, "more body than announced");
    } else if (!(link->returning_left -= frame->payload.n)) {
        link->returning = CONTENT_NONE;
    }
}

/* --- its place in the link's life --- */

void amqp_publisher_init(struct amqp_link *link)
{
    list_init(&link->pending);
    list_init(&link->refused);
    map_init(&link->by_tag);
}

void amqp_publisher_clear(struct amqp_link *link)
{
    map_clear(&link->by_tag);
    buf_clear(&link->scratch);
}

void amqp_publisher_up(struct amqp_link *link)
{
    if (!link->publish_open && !list_empty(&link->pending))
        publisher_send_all(link);
}

void amqp_publisher_down(struct amqp_link *link)
{
    publisher_forget_tags(link);
    link->unconfirmed_open = false;
}

void amqp_publisher_close(struct amqp_link *link)
{
    struct amqp_publish *publish;

    publisher_forget_tags(link);
    list_for_each (publish, &link->pending, link) {
        publish->err = ERR_CLOSED;
        free(publish->outgoing);
        publish->outgoing = NULL;
    }
    list_splice_back(&link->refused, &link->pending);
    link->counters.pending = 0;
    link->counters.pending_bytes = 0;
}
