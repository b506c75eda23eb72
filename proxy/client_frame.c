/*
 * Frames of WebSocket clients: {"type", "req_id"?, "payload": {…}} -> {"type":"ack", "req_id"?, …} or error, in the
 * order the frames came. What concerns the stream itself is answered here; the rest by the server's routes, which take
 * the same road as the service calls.
 */
#include "core.h"

#include <inttypes.h>
#include <stdlib.h>

/* An answer that is owed. It outlives the stream when the stream goes first. */
struct proxy_reply {
    struct stream *stream; /* NULL: gone */
    struct list link;      /* the stream's, in the order of the frames */
    struct buf json;       /* the answer, when it is there */
    bool settled;
    size_t req_id_n;
    char req_id[];
};

static void on_subscribe(struct stream *stream, struct json payload, struct proxy_reply *reply);
static void on_unsubscribe(struct stream *stream, struct json payload, struct proxy_reply *reply);
static void on_refresh(struct stream *stream, struct json payload, struct proxy_reply *reply);
static void answers_leave(struct stream *stream);

static struct proxy_reply *reply_new(struct stream *stream, struct str req_id)
{
    struct proxy_reply *reply = xcalloc(1, sizeof *reply + req_id.n);

    reply->stream = stream;
    reply->req_id_n = req_id.n;
    if (req_id.n)
        memcpy(reply->req_id, req_id.p, req_id.n);
    list_push_back(&stream->replies, &reply->link);
    stream->reply_count++;
    return reply;
}

static struct str raw(struct json value)
{
    return (struct str){value.p, value.type == JSON_NONE ? 0 : value.n};
}

/* How long until the next one may come, when these are too many for one second; else 0. */
static uint32_t must_wait_ms(struct stream *stream)
{
    int64_t most = stream->proxy->config->stream_frames_max_per_s;
    uint32_t passed = proxy_now(stream->proxy) - stream->frames_at;

    if (!most || ++stream->requests <= most)
        return 0;
    return passed < 1000 ? 1000 - passed : 1;
}

static void reply_rate_limited(struct proxy_reply *reply, uint32_t wait_ms)
{
    struct buf json = {0};

    buf_printf(&json,
        "\"error\",\"code\":\"%s\",\"message\":\"too many frames in a second; try again in %" PRIu32
        " ms\",\"retry_after_ms\":%" PRIu32,
        err_code(ERR_RATE_LIMITED), wait_ms, wait_ms);
    reply_settle(reply, buf_str(&json));
    buf_clear(&json);
}

void client_frame(struct stream *stream, struct str text)
{
    const struct proxy_client_calls *calls = &stream->proxy->calls;
    struct json frame = {.type = JSON_NONE}, type, payload, req_id;
    struct buf scratch = {0};
    struct str name = {NULL, 0};
    struct proxy_reply *reply;
    const char *why = "a frame is an object with type and payload";
    uint32_t wait_ms = must_wait_ms(stream);
    bool good = json_check(text, &frame, &why) && frame.type == JSON_OBJECT;

    if (stream->reply_count >= REPLIES_MAX) {
        stream_end(stream, CLOSE_POLICY, ERR_RATE_LIMITED, "too many frames without an answer yet");
        return;
    }
    req_id = good ? json_get(frame, "req_id") : (struct json){.type = JSON_NONE};
    if (req_id.n > 256 || (req_id.type != JSON_NONE && req_id.type != JSON_STRING && req_id.type != JSON_NUMBER)) {
        req_id.type = JSON_NONE;
        good = false;
        why = "req_id is a string or a number of at most 256 bytes";
    }
    reply = reply_new(stream, raw(req_id));
    type = good ? json_get(frame, "type") : (struct json){.type = JSON_NONE};
    payload = good ? json_get(frame, "payload") : (struct json){.type = JSON_NONE};
    if (payload.type == JSON_NONE)
        payload = (struct json){"{}", 2, JSON_OBJECT, false};
    if (wait_ms)
        reply_rate_limited(reply, wait_ms);
    else if (!good || type.type != JSON_STRING || !json_string(type, &scratch, &name) || payload.type != JSON_OBJECT)
        proxy_reply_error(reply, ERR_BAD_REQUEST, NULL, why);
    else if (str_is(name, "ping"))
        reply_settle(reply, STR("\"pong\""));
    else if (str_is(name, "subscribe"))
        on_subscribe(stream, payload, reply);
    else if (str_is(name, "unsubscribe"))
        on_unsubscribe(stream, payload, reply);
    else if (str_is(name, "ticket.refresh"))
        on_refresh(stream, payload, reply);
    else if (!calls->frame || !calls->frame(calls->arg, (struct str){stream->audience->account, stream->audience->n},
                                  name, payload, reply))
        proxy_reply_error(reply, ERR_BAD_REQUEST, "type", "there is no such type; see docs/protocol.md#streams");
    buf_clear(&scratch);
}

/* ----------------------------------------------------------------- answers */

/* `members`: the value of "type", then further members. */
void reply_settle(struct proxy_reply *reply, struct str members)
{
    if (!reply->stream) {
        buf_clear(&reply->json);
        free(reply);
        return;
    }
    buf_text(&reply->json, "{\"type\":");
    buf_add_str(&reply->json, members);
    if (reply->req_id_n) {
        buf_text(&reply->json, ",\"req_id\":");
        buf_add(&reply->json, reply->req_id, reply->req_id_n);
    }
    buf_char(&reply->json, '}');
    reply->settled = true;
    answers_leave(reply->stream);
}

static void answers_leave(struct stream *stream)
{
    while (!list_empty(&stream->replies)) {
        struct proxy_reply *reply = list_entry(stream->replies.next, struct proxy_reply, link);

        if (!reply->settled)
            return;
        list_remove(&reply->link);
        stream->reply_count--;
        stream_say(stream, buf_str(&reply->json));
        buf_clear(&reply->json);
        free(reply);
    }
}

void proxy_reply_ack(struct proxy_reply *reply, struct str members)
{
    struct buf json = {0};

    buf_text(&json, "\"ack\"");
    if (members.n)
        buf_char(&json, ',');
    buf_add_str(&json, members);
    reply_settle(reply, buf_str(&json));
    buf_clear(&json);
}

void proxy_reply_error(struct proxy_reply *reply, enum err err, const char *field, const char *message)
{
    struct buf json = {0};

    buf_printf(&json, "\"error\",\"code\":\"%s\",\"message\":", err_code(err));
    buf_json_string(&json, str_of(message && *message ? message : err_sentence(err)));
    if (field && *field) {
        buf_text(&json, ",\"field\":");
        buf_json_string(&json, str_of(field));
    }
    reply_settle(reply, buf_str(&json));
    buf_clear(&json);
}

void replies_orphan(struct stream *stream)
{
    struct list *link;

    while ((link = list_pop_front(&stream->replies))) {
        struct proxy_reply *reply = list_entry(link, struct proxy_reply, link);

        reply->stream = NULL;
        buf_clear(&reply->json);
        if (reply->settled)
            free(reply);
    }
    stream->reply_count = 0;
}

/* ---------------------------------------------------------- about the stream */

static bool text_of(struct json value, struct buf *scratch, struct str *out)
{
    buf_reset(scratch);
    return value.type == JSON_STRING && json_string(value, scratch, out);
}

static bool room_and_after(
    struct json item, struct buf *scratch, struct str *room_id, struct cursor *after, bool *has_after)
{
    struct json id = json_get(item, "room_id"), cursor = json_get(item, "after");
    struct str shard, text;

    *has_after = cursor.type != JSON_NONE && cursor.type != JSON_NULL;
    if (id.type == JSON_NONE)
        id = json_get(item, "conversation_id");
    if (cursor.type == JSON_NUMBER)
        text = raw(cursor); /* a bare seq */
    else if (*has_after && (cursor.escaped || !text_of(cursor, scratch, &text)))
        return false;
    if (*has_after && !cursor_read(after, text))
        return false;
    return !id.escaped && text_of(id, scratch, room_id) && room_id_read(*room_id, &shard);
}

/* A stream opened with ?after=* carries all its rooms from its first subscribe on; the positions in there are where
 * they begin. */
static void add_deferred(struct stream *stream, struct attach *attach)
{
    for (const char *at = stream->named; at && *at; at += strlen(at) + 1)
        attach_add(attach, str_of(at), NULL);
}

static void on_subscribe(struct stream *stream, struct json payload, struct proxy_reply *reply)
{
    struct json rooms = json_get(payload, "rooms"), item;
    struct attach *attach = attach_new(stream, ATTACH_SUBSCRIBE);
    struct json_walk walk = json_walk(rooms);
    struct buf scratch = {0};
    struct cursor after;
    struct str room_id;
    bool good = rooms.type == JSON_ARRAY, allowed = true, has_after, all = stream->deferred && stream->all;

    attach->answer = reply;
    if (stream->deferred)
        add_deferred(stream, attach);
    while (good && allowed && json_next_item(&walk, &item)) {
        good = item.type == JSON_OBJECT && room_and_after(item, &scratch, &room_id, &after, &has_after) &&
               attach->room_count < 1000;
        allowed = good && (stream->all || named_has(stream, room_id));
        if (allowed)
            attach_add(attach, room_id, has_after ? &after : NULL);
    }
    buf_clear(&scratch);
    if (!good || !allowed) {
        attach_free(attach);
        proxy_reply_error(reply, good ? ERR_FORBIDDEN : ERR_BAD_REQUEST, "rooms",
            good ? "the ticket does not name this room" : "rooms is an array of {room_id, after?}, at most 1000");
        return;
    }
    for (size_t i = 0; i < attach->room_count; i++)
        attach->rooms[i]->wanted = !stream->deferred || attach->rooms[i]->has_after;
    stream->deferred = false;
    attach_begin(attach, all);
}

static void on_unsubscribe(struct stream *stream, struct json payload, struct proxy_reply *reply)
{
    struct json ids = json_get(payload, "room_ids"), item;
    struct json_walk walk = json_walk(ids);
    struct buf scratch = {0};
    struct str room_id;
    bool good = ids.type == JSON_ARRAY;

    while (good && json_next_item(&walk, &item)) {
        struct view *view;
        struct sub *sub;

        good = text_of(item, &scratch, &room_id);
        view = good ? view_find(stream->proxy, room_id) : NULL;
        sub = view ? sub_find(stream, view) : NULL;
        if (sub && sub->state != SUB_OPENING) {
            stream_purge_sub(stream, sub);
            sub_free(sub);
        }
    }
    buf_clear(&scratch);
    if (good)
        proxy_reply_ack(reply, STR(""));
    else
        proxy_reply_error(reply, ERR_BAD_REQUEST, "room_ids", "room_ids is an array of room ids");
}

/* A stream lives on when its ticket ends; a new one may name other rooms for later subscribes. */
static void on_refresh(struct stream *stream, struct json payload, struct proxy_reply *reply)
{
    struct roomd_ticket *ticket = xcalloc(1, sizeof *ticket);
    struct buf scratch = {0};
    struct str text;
    const char *why = "ticket is a string";
    enum err err = ERR_BAD_REQUEST;

    if (text_of(json_get(payload, "ticket"), &scratch, &text))
        err = ticket_check(stream->proxy, ticket, text, &why);
    if (!err && !str_eq((struct str){ticket->account.p, ticket->account.n},
                    (struct str){stream->audience->account, stream->audience->n})) {
        err = ERR_FORBIDDEN;
        why = "the ticket is for another account";
    }
    if (err) {
        proxy_reply_error(reply, err, "ticket", why);
    } else {
        if (!stream->all && !ticket->all)
            named_set(stream, ticket);
        proxy_reply_ack(reply, STR(""));
    }
    buf_clear(&scratch);
    free(ticket);
}
