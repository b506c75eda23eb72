/*
 * What WebSocket clients send besides subscribing: it takes the same road as the gateway's calls, with the stream's
 * account as the one whose act it is. Names of older clients are understood: conversation_id for room_id, message_type
 * for kind, msg_type 1 for kind text.
 *
 * Frames of one stream are started in the order they came and take their places in the line of their room at once, so
 * that they take effect in that order although their answers may be waited for together.
 */
#include "api.h"

#include <inttypes.h>
#include <stdlib.h>

#include "room/base/clock.h"

/* One frame under way; freed by its one answer. */
struct frame {
    struct list link; /* service->frames */
    struct service *service;
    struct proxy_reply *reply;
    struct fields fields;
    char *account;
    struct buf text; /* what the request is made of */
    union {
        struct history_push push;
        struct history_access access;
        struct history_op op;
        struct history_mark mark;
        struct history_hide hide;
    };
};

static void send_start(struct frame *frame);
static void send_on_done(struct history_push *push, enum err err);
static void typing_start(struct frame *frame);
static void typing_on_access(struct history_access *access, enum err err);
static void read_start(struct frame *frame);
static void read_on_done(struct history_mark *mark, enum err err);
static void edit_start(struct frame *frame);
static void recall_start(struct frame *frame);
static void delete_start(struct frame *frame);
static void act_on_done(struct history_op *op, enum err err);
static void hide_on_done(struct history_hide *hide, enum err err);
static void frame_free(struct frame *frame);

static const struct {
    const char *type;
    void (*start)(struct frame *frame);
} frame_types[] = {
    {"message.send", send_start},
    {"message.typing", typing_start},
    {"message.read", read_start},
    {"message.edit", edit_start},
    {"message.recall", recall_start},
    {"message.delete", delete_start},
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
    buf_clear(&frame->text);
    free(frame->account);
    free(frame);
}

static void frame_fail(struct frame *frame, enum err err, const char *field, const char *message)
{
    proxy_reply_error(frame->reply, err, field, message);
    frame_free(frame);
}

/* `members` of the ack behind room_id, without braces; may be empty. */
static void frame_ack(struct frame *frame, struct str room_id, struct str members)
{
    struct buf ack = {0};

    buf_text(&ack, "\"room_id\":");
    buf_json_string(&ack, room_id);
    if (members.n)
        buf_char(&ack, ',');
    buf_add_str(&ack, members);
    proxy_reply_ack(frame->reply, buf_str(&ack));
    buf_clear(&ack);
    frame_free(frame);
}

/* true: all fields were well formed; else it has been answered. */
static bool frame_checked(struct frame *frame)
{
    if (!frame->fields.err)
        return true;
    frame_fail(frame, frame->fields.err, frame->fields.field, frame->fields.why);
    return false;
}

static struct str frame_room_id(struct frame *frame)
{
    bool old = !field_given(&frame->fields, "room_id") && field_given(&frame->fields, "conversation_id");

    return field_room_id(&frame->fields, old ? "conversation_id" : "room_id", REQUIRED);
}

/* ---------------------------------------------------------------------------------------------------------- sending */

static struct str frame_kind(struct fields *fields)
{
    if (field_given(fields, "kind"))
        return field_kind(fields, "kind");
    if (field_given(fields, "message_type"))
        return field_kind(fields, "message_type");
    if (!field_given(fields, "msg_type"))
        return field_kind(fields, "kind"); /* refuses */
    (void)field_integer(fields, "msg_type", 1, 1, 1);
    return STR("text");
}

static void send_start(struct frame *frame)
{
    struct fields *fields = &frame->fields;
    struct history_push *push = &frame->push;

    push->room_id = frame_room_id(frame);
    push->sender = str_of(frame->account);
    push->client_msg_id = field_client_id(fields, "client_msg_id");
    push->kind = frame_kind(fields);
    push->transient = field_boolean(fields, "transient", false);
    api_message_fields(fields, frame->service->config->content_max_bytes, push, &frame->text);
    if (!frame_checked(frame))
        return;
    push->meta = buf_str(&frame->text);
    push->done = send_on_done;
    history_push(frame->service->history, push);
}

static void send_on_done(struct history_push *push, enum err err)
{
    struct frame *frame = container_of(push, struct frame, push);
    char message_id[ULID_TEXT];

    if (err) {
        frame_fail(frame, err, api_push_field(&frame->fields, err), push->why);
        return;
    }
    ulid_write(message_id, push->message_id);
    buf_reset(&frame->text);
    buf_text(&frame->text, "\"client_msg_id\":");
    buf_json_string(&frame->text, str_of(push->client_msg_id_text));
    buf_printf(&frame->text, ",\"message_id\":\"%.*s\"", ULID_TEXT, message_id);
    frame_ack(frame, push->room_id, buf_str(&frame->text));
}

/* ----------------------------------------------------------------------------------------- edit, recall, delete */

static void act_fields(struct frame *frame)
{
    frame->op.room_id = frame_room_id(frame);
    frame->op.by = str_of(frame->account);
    frame->op.request_id = field_client_id(&frame->fields, "request_id");
    frame->op.own_request_ids = true;
    api_target_fields(&frame->fields, &frame->text);
}

static void act(struct frame *frame, enum op_kind kind)
{
    if (!frame_checked(frame))
        return;
    frame->op.kind = kind;
    frame->op.args = buf_str(&frame->text);
    frame->op.done = act_on_done;
    history_submit_op(frame->service->history, &frame->op);
}

static void edit_start(struct frame *frame)
{
    act_fields(frame);
    api_edit_fields(&frame->fields, frame->service->config->content_max_bytes, &frame->text);
    act(frame, OP_MESSAGE_EDIT);
}

static void recall_start(struct frame *frame)
{
    act_fields(frame);
    act(frame, OP_MESSAGE_RECALL);
}

static void hide_start(struct frame *frame)
{
    frame->hide.room_id = frame_room_id(frame);
    frame->hide.account = str_of(frame->account);
    api_hide_fields(&frame->fields, &frame->hide);
    if (!frame_checked(frame))
        return;
    frame->hide.done = hide_on_done;
    history_hide_entry(frame->service->history, &frame->hide);
}

static void delete_start(struct frame *frame)
{
    if (api_scope_is_me(&frame->fields)) {
        hide_start(frame);
        return;
    }
    act_fields(frame);
    act(frame, OP_MESSAGE_DELETE);
}

static void act_on_done(struct history_op *op, enum err err)
{
    struct frame *frame = container_of(op, struct frame, op);
    struct refusal refusal;

    if (err) {
        api_refusal_read(&refusal, err, op);
        frame_fail(frame, err, refusal.field, refusal.why);
        return;
    }
    buf_reset(&frame->text);
    buf_printf(&frame->text, "\"seq\":%" PRIu64, op->seq);
    frame_ack(frame, op->room_id, buf_str(&frame->text));
}

static void hide_on_done(struct history_hide *hide, enum err err)
{
    struct frame *frame = container_of(hide, struct frame, hide);

    if (err)
        frame_fail(frame, err, NULL, api_hide_why(err));
    else
        frame_ack(frame, hide->room_id, STR(""));
}

/* ------------------------------------------------------------------------------------------------- read, typing */

static void read_start(struct frame *frame)
{
    frame->mark.room_id = frame_room_id(frame);
    frame->mark.account = str_of(frame->account);
    frame->mark.read_seq = api_read_seq(&frame->fields);
    if (!frame_checked(frame))
        return;
    frame->mark.done = read_on_done;
    history_mark_read(frame->service->history, &frame->mark);
}

static void read_on_done(struct history_mark *mark, enum err err)
{
    struct frame *frame = container_of(mark, struct frame, mark);

    if (err) {
        frame_fail(frame, err, err == ERR_BAD_REQUEST ? "read_seq" : NULL, api_mark_why(err));
        return;
    }
    buf_printf(&frame->text, "\"read_seq\":%" PRIu64 ",\"unread\":%" PRIu64, mark->read_seq, mark->unread);
    frame_ack(frame, mark->room_id, buf_str(&frame->text));
}

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

    err = api_typing_tell(frame->service, access, err);
    if (err)
        frame_fail(frame, err, NULL, NULL);
    else
        frame_ack(frame, access->room_id, STR(""));
}
