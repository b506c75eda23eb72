/*
 * Topology: declarations on a channel of the link's own. They are sent at once and answered in order. A refusal closes
 * the channel; the broker has then ignored what was behind it, which is sent again on the next one.
 */
#include "amqp_impl.h"

#include "log.h"

#include <stdlib.h>

enum { SILENCE_MS = 20000 }; /* a quorum queue's declaration may wait for an election, but not so long */

struct request {
    struct list link;
    amqp_method_number_t answer;
    struct buf frame;
    amqp_done done;
    void (*inspected)(void *arg, enum err err, uint32_t messages, uint32_t consumers);
    void *arg;
    enum err err; /* of void requests */
};

static void request_add(struct amqp_link *link, struct request *request);
static void request_finish(
    struct request *request, enum err err, struct str text, const amqp_queue_declare_ok_t *queue);

/* --- what can be asked --- */

/* NULL when a name is too long; the answer to that is under way. */
static struct request *request_new(struct amqp_link *link, struct request asked, const char *const names[3])
{
    struct request *request = xmemdup(&asked, sizeof(asked));

    list_init(&request->link);
    for (int i = 0; i < 3; i++) {
        if (names[i] && strlen(names[i]) > CODEC_NAME_MAX)
            request->err = ERR_BAD_REQUEST;
    }
    if (!request->err)
        return request;
    list_push_back(&link->void_requests, &request->link);
    amqp_link_kick(link);
    return NULL;
}

void amqp_declare_exchange(
    struct amqp_link *link, const char *name, const char *type, bool durable, amqp_done done, void *arg)
{
    amqp_exchange_declare_t declare = {
        .exchange = amqp_cstring_bytes(name), .type = amqp_cstring_bytes(type), .durable = durable};
    struct request *request =
        request_new(link, (struct request){.answer = AMQP_EXCHANGE_DECLARE_OK_METHOD, .done = done, .arg = arg},
            (const char *const[3]){name, type});

    if (!request)
        return;
    codec_add_method(&request->frame, CHANNEL_TOPOLOGY, AMQP_EXCHANGE_DECLARE_METHOD, &declare);
    request_add(link, request);
}

static void add_text(amqp_table_t *table, const char *key, const char *value)
{
    amqp_table_entry_t *entry = &table->entries[table->num_entries++];

    *entry = (amqp_table_entry_t){.key = amqp_cstring_bytes(key), .value.kind = AMQP_FIELD_KIND_UTF8};
    entry->value.value.bytes = amqp_cstring_bytes(value);
}

void amqp_declare_queue(
    struct amqp_link *link, const char *name, const struct amqp_queue_options *options, amqp_done done, void *arg)
{
    amqp_table_entry_t entries[4];
    amqp_queue_declare_t declare = {.queue = amqp_cstring_bytes(name),
        .durable = options->durable,
        .exclusive = options->exclusive,
        .auto_delete = options->auto_delete,
        .arguments.entries = entries};
    struct request *request =
        request_new(link, (struct request){.answer = AMQP_QUEUE_DECLARE_OK_METHOD, .done = done, .arg = arg},
            (const char *const[3]){name});

    if (!request)
        return;
    if (options->quorum)
        add_text(&declare.arguments, "x-queue-type", "quorum");
    if (options->reject_publish || options->drop_head)
        add_text(&declare.arguments, "x-overflow", options->reject_publish ? "reject-publish" : "drop-head");
    if (options->single_active_consumer) {
        amqp_table_entry_t *entry = &entries[declare.arguments.num_entries++];

        *entry = (amqp_table_entry_t){
            .key = amqp_cstring_bytes("x-single-active-consumer"), .value.kind = AMQP_FIELD_KIND_BOOLEAN};
        entry->value.value.boolean = 1;
    }
    if (options->max_length_bytes) {
        amqp_table_entry_t *entry = &entries[declare.arguments.num_entries++];

        *entry =
            (amqp_table_entry_t){.key = amqp_cstring_bytes("x-max-length-bytes"), .value.kind = AMQP_FIELD_KIND_I64};
        entry->value.value.i64 = options->max_length_bytes;
    }
    codec_add_method(&request->frame, CHANNEL_TOPOLOGY, AMQP_QUEUE_DECLARE_METHOD, &declare);
    request_add(link, request);
}

void amqp_bind_queue(
    struct amqp_link *link, const char *queue, const char *exchange, const char *key, amqp_done done, void *arg)
{
    amqp_queue_bind_t bind = {.queue = amqp_cstring_bytes(queue),
        .exchange = amqp_cstring_bytes(exchange),
        .routing_key = amqp_cstring_bytes(key)};
    struct request *request =
        request_new(link, (struct request){.answer = AMQP_QUEUE_BIND_OK_METHOD, .done = done, .arg = arg},
            (const char *const[3]){queue, exchange, key});

    if (!request)
        return;
    codec_add_method(&request->frame, CHANNEL_TOPOLOGY, AMQP_QUEUE_BIND_METHOD, &bind);
    request_add(link, request);
}

void amqp_unbind_queue(
    struct amqp_link *link, const char *queue, const char *exchange, const char *key, amqp_done done, void *arg)
{
    amqp_queue_unbind_t unbind = {.queue = amqp_cstring_bytes(queue),
        .exchange = amqp_cstring_bytes(exchange),
        .routing_key = amqp_cstring_bytes(key)};
    struct request *request =
        request_new(link, (struct request){.answer = AMQP_QUEUE_UNBIND_OK_METHOD, .done = done, .arg = arg},
            (const char *const[3]){queue, exchange, key});

    if (!request)
        return;
    codec_add_method(&request->frame, CHANNEL_TOPOLOGY, AMQP_QUEUE_UNBIND_METHOD, &unbind);
    request_add(link, request);
}

void amqp_inspect_queue(struct amqp_link *link, const char *name,
    void (*done)(void *arg, enum err err, uint32_t messages, uint32_t consumers), void *arg)
{
    amqp_queue_declare_t declare = {.queue = amqp_cstring_bytes(name), .passive = 1};
    struct request *request =
        request_new(link, (struct request){.answer = AMQP_QUEUE_DECLARE_OK_METHOD, .inspected = done, .arg = arg},
            (const char *const[3]){name});

    if (!request)
        return;
    codec_add_method(&request->frame, CHANNEL_TOPOLOGY, AMQP_QUEUE_DECLARE_METHOD, &declare);
    request_add(link, request);
}

/* --- sent, answered, refused --- */

static void request_send(struct amqp_link *link, const struct request *request)
{
    if (!link->topology_open)
        amqp_add_channel_open(link, CHANNEL_TOPOLOGY);
    link->topology_open = true;
    buf_add_str(link_out(link), buf_str(&request->frame));
    amqp_link_kick(link);
}

static void request_add(struct amqp_link *link, struct request *request)
{
    if (!link_is_up(link)) {
        request->err = ERR_LOST;
        list_push_back(&link->void_requests, &request->link);
        amqp_link_kick(link);
        return;
    }
    if (list_empty(&link->requests))
        link->request_since_ms = uv_now(link->loop);
    list_push_back(&link->requests, &request->link);
    request_send(link, request);
}

static void request_free(struct request *request)
{
    buf_clear(&request->frame);
    free(request);
}

static void request_finish(struct request *request, enum err err, struct str text, const amqp_queue_declare_ok_t *queue)
{
    struct request ended = *request;

    request_free(request);
    if (ended.inspected)
        ended.inspected(ended.arg, err, queue ? queue->message_count : 0, queue ? queue->consumer_count : 0);
    else if (ended.done)
        ended.done(ended.arg, err, text);
}

static struct request *take_first(struct list *requests)
{
    struct list *first = list_pop_front(requests);

    return first ? list_entry(first, struct request, link) : NULL;
}

static void topology_refused(struct amqp_link *link, struct str payload)
{
    amqp_channel_close_t *said = codec_decode(payload, &link->pool);
    struct request *refused = take_first(&link->requests), *later;
    struct str text = said ? codec_str(said->reply_text) : (struct str){"", 0};
    char copy[256]; /* what is sent from the callback may use the pool */
    size_t n = text.n < sizeof(copy) ? text.n : sizeof(copy);

    memcpy(copy, text.p, n);
    amqp_add_channel_close_ok(link, CHANNEL_TOPOLOGY);
    link->topology_open = false;
    link->request_since_ms = uv_now(link->loop);
    list_for_each (later, &link->requests, link)
        request_send(link, later);
    if (refused)
        request_finish(refused, ERR_CONFLICT, (struct str){copy, n}, NULL);
}

void amqp_topology_frame(struct amqp_link *link, const struct codec_frame *frame)
{
    uint32_t method = frame->type == CODEC_METHOD ? codec_method(frame->payload) : 0;
    amqp_queue_declare_ok_t *queue = NULL;
    struct request *first;

    recycle_amqp_pool(&link->pool);
    if (!link->topology_open) {
        amqp_link_break(link, "a frame on a channel that is not open");
        return;
    }
    if (method == AMQP_CHANNEL_OPEN_OK_METHOD)
        return;
    if (method == AMQP_CHANNEL_CLOSE_METHOD) {
        topology_refused(link, frame->payload);
        return;
    }
    first = list_empty(&link->requests) ? NULL : list_entry(link->requests.next, struct request, link);
    if (method == AMQP_QUEUE_DECLARE_OK_METHOD)
        queue = codec_decode(frame->payload, &link->pool);
    if (!first || method != first->answer || (method == AMQP_QUEUE_DECLARE_OK_METHOD && !queue)) {
        amqp_link_break(link, "an answer to another question on the topology channel");
        return;
    }
    link->request_since_ms = uv_now(link->loop);
    request_finish(take_first(&link->requests), ERR_OK, (struct str){"", 0}, queue);
}

/* --- its place in the link's life --- */

void amqp_topology_init(struct amqp_link *link)
{
    list_init(&link->requests);
    list_init(&link->void_requests);
}

void amqp_topology_clear(struct amqp_link *link)
{
    struct request *request;

    list_splice_back(&link->void_requests, &link->requests);
    while ((request = take_first(&link->void_requests)))
        request_free(request);
}

void amqp_topology_down(struct amqp_link *link)
{
    struct request *request;

    link->topology_open = false;
    list_for_each (request, &link->requests, link)
        request->err = ERR_LOST;
    list_splice_back(&link->void_requests, &link->requests);
    amqp_link_kick(link);
}

void amqp_topology_resume(struct amqp_link *link)
{
    link->request_since_ms = uv_now(link->loop);
}

void amqp_topology_tick(struct amqp_link *link, uint64_t now_ms)
{
    if (!list_empty(&link->requests) && now_ms - link->request_since_ms >= SILENCE_MS)
        amqp_link_break(link, "no answer to a declaration");
}

void amqp_topology_tell_void(struct amqp_link *link)
{
    struct request *request;
    struct list due;

    list_init(&due); /* not those that are added meanwhile: a caller that asks again at once would never end */
    list_splice_back(&due, &link->void_requests);
    while (!link_is_closed(link) && (request = take_first(&due)))
        request_finish(request, request->err, str_of(err_sentence(request->err)), NULL);
    list_splice_back(&link->void_requests, &due);
}
