/*
 * What WebSocket clients send besides subscribing: it takes the same road as the gateway's calls, with the stream's
 * account as the sender. Names of older clients are understood: conversation_id for room_id, msg_type 1 for kind text.
 */
#include "api.h"

#include <stdlib.h>

/* One frame under way; freed by its one answer. */
struct frame {
    struct list link; /* service->frames */
    struct service *service;
    struct proxy_reply *reply;
    struct fields fields;
    char *account;
    struct buf meta;
    struct history_push push;
    struct history_access access;
};

static void send_start(struct frame *frame);
static void send_on_done(struct history_push *push, enum err err);
static void typing_start(struct frame *frame);
static void typing_on_access(struct history_access *access, enum err err);
static void frame_free(struct frame *frame);

static const struct {
    const char *type;
    void (*start)(struct frame *frame);
} frame_types[] = {
    {"message.send", send_start},
    {"message.typing", typing_start},
};

bool api_frame(void *arg, struct str account, struct str type, struct json payload, struct proxy_reply *reply)
{
    struct frame *frame;

    for (size_t i = 0; i < countof(frame_types); i++) {
        if (!str_is(type, frame_types[i].type))
            continue;
        frame = xcalloc(1, sizeof *frame);
        frame->service = arg;
        frame->reply = reply;
        list_push_back(&frame->service->frames, &frame->link);
        frame->account = xstrndup(account.p, account.n);
        fields_read(&frame->fields, (struct str){payload.p, payload.n});
        frame_types[i].start(frame);
        return true;
    }
    return false;
}

void api_frames_close(struct service *service)
{
    struct frame *frame;

    list_for_each (frame, &service->frames, link)
        frame_free(frame);
}

static void frame_free(struct frame *frame)
{
    list_remove(&frame->link);
    fields_clear(&frame->fields);
    buf_clear(&frame->meta);
    free(frame->account);
    free(frame);
}

static void frame_fail(struct frame *frame, enum err err, const char *message)
{
    proxy_reply_error(frame->reply, err, message);
    frame_free(frame);
}

/* true: all fields were well formed; else it has been answered. */
static bool frame_checked(struct frame *frame)
{
    if (!frame->fields.err)
        return true;
    frame_fail(frame, frame->fields.err, frame->fields.why);
    return false;
}

static struct str frame_room_id(struct frame *frame)
{
    bool old = !field_given(&frame->fields, "room_id") && field_given(&frame->fields, "conversation_id");

    return field_room_id(&frame->fields, old ? "conversation_id" : "room_id", REQUIRED);
}

static void send_start(struct frame *frame)
{
    struct fields *fields = &frame->fields;
    struct history_push *push = &frame->push;

    push->room_id = frame_room_id(frame);
    push->sender = str_of(frame->account);
    push->client_msg_id = field_client_id(fields, "client_msg_id");
    if (!field_given(fields, "kind") && field_given(fields, "msg_type")) {
        (void)field_integer(fields, "msg_type", 1, 1, 1);
        push->kind = STR("text");
    } else {
        push->kind = field_kind(fields, "kind");
    }
    push->transient = field_boolean(fields, "transient", false);
    api_message_fields(fields, push->kind, frame->service->config->content_max_bytes, &push->content, &frame->meta);
    if (!frame_checked(frame))
        return;
    push->meta = buf_str(&frame->meta);
    push->done = send_on_done;
    history_push(frame->service->history, push);
}

static void send_on_done(struct history_push *push, enum err err)
{
    struct frame *frame = container_of(push, struct frame, push);
    char message_id[ULID_TEXT];
    struct buf ack = {0};

    if (err) {
        frame_fail(frame, err, NULL);
        return;
    }
    ulid_write(message_id, push->message_id);
    buf_text(&ack, "\"room_id\":");
    buf_json_string(&ack, push->room_id);
    buf_text(&ack, ",\"client_msg_id\":");
    buf_json_string(&ack, str_of(push->client_msg_id_text));
    buf_printf(&ack, ",\"message_id\":\"%.*s\"", ULID_TEXT, message_id);
    proxy_reply_ack(frame->reply, buf_str(&ack));
    buf_clear(&ack);
    frame_free(frame);
}

/* Seen by the open streams of the room on this instance; never stored. */
static void typing_start(struct frame *frame)
{
    frame->access.room_id = frame_room_id(frame);
    frame->access.account = str_of(frame->account);
    frame->access.done = typing_on_access;
    if (frame_checked(frame))
        history_ask_access(frame->service->history, &frame->access);
}

static void typing_on_access(struct history_access *access, enum err err)
{
    struct frame *frame = container_of(access, struct frame, access);
    struct buf event = {0};

    if (!err && access->removed)
        err = ERR_ROOM_GONE;
    if (err) {
        frame_fail(frame, err, NULL);
        return;
    }
    buf_text(&event, "{\"type\":\"typing\",\"room_id\":");
    buf_json_string(&event, access->room_id);
    buf_text(&event, ",\"account_id\":");
    buf_json_string(&event, access->account);
    buf_char(&event, '}');
    proxy_ephemeral(frame->service->proxy, access->room_id, buf_str(&event));
    buf_clear(&event);
    proxy_reply_ack(frame->reply, STR(""));
    frame_free(frame);
}
