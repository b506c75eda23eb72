/*
 * Calls about what was said before: Edit, Recall and Delete, which go through the room's queue like what they change;
 * MarkRead and Unread; and Typing, which is about what is about to be said.
 */
#include "api.h"

#include "proxy/proxy.h"
#include "room/base/clock.h"
#include "room/base/config.h"

#include <inttypes.h>
#include <stdio.h>

static void act_on_done(struct history_op *op, enum err err);
static void hide_on_done(struct history_hide *hide, enum err err);
static void mark_on_done(struct history_mark *mark, enum err err);
static void unread_on_done(struct history_unread *unread, enum err err);
static void typing_on_access(struct history_access *access, enum err err);

/* --------------------------------------------------------------------------------------------- what both doors take */

/* Which message: by its place, or by its id, which its sender knew before it had a place. */
static void check_target(struct fields *fields)
{
    bool seq = field_given(fields, "seq"), id = field_given(fields, "message_id");

    if (seq == id)
        fields_refuse(fields, ERR_BAD_REQUEST, seq ? "message_id" : "seq", "give either seq or message_id");
}

static void add_arg(struct buf *args, const char *name, struct str raw)
{
    buf_printf(args, "%s\"%s\":", args->n ? "," : "", name);
    buf_add_str(args, raw);
}

void api_target_fields(struct fields *fields, struct buf *args)
{
    check_target(fields);
    (void)field_integer(fields, "seq", 1, INT64_MAX, 1);
    (void)field_message_id(fields, "message_id");
    if (fields->err)
        return;
    if (field_given(fields, "seq"))
        add_arg(args, "target_seq", field_raw(fields, "seq"));
    else
        add_arg(args, "target_id", field_raw(fields, "message_id"));
}

void api_edit_fields(struct fields *fields, int64_t content_max_bytes, struct buf *args)
{
    struct str content = field_raw(fields, "content");

    if (!content.n)
        fields_refuse(fields, ERR_BAD_REQUEST, "content", "content is missing");
    else if (content.n > (size_t)content_max_bytes)
        fields_refuse(fields, ERR_TOO_LARGE, "content", "content is larger than the limit of %" PRId64 " bytes",
            content_max_bytes);
    else
        add_arg(args, "content", content);
}

bool api_scope_is_me(struct fields *fields)
{
    static const char *const scopes[] = {"all", "me", NULL};

    if (!field_given(fields, "scope"))
        fields_refuse(fields, ERR_BAD_REQUEST, "scope", "scope is missing: all, or me");
    return field_word(fields, "scope", scopes, 0) == 1;
}

void api_hide_fields(struct fields *fields, struct history_hide *hide)
{
    struct str id;

    check_target(fields);
    hide->seq = (uint64_t)field_integer(fields, "seq", 1, INT64_MAX, 0);
    id = field_message_id(fields, "message_id");
    if (!fields->err && id.n && !ulid_read(&hide->message_id, id))
        fields_refuse(fields, ERR_BAD_REQUEST, "message_id", "message_id must be the id of a message");
}

const char *api_hide_why(enum err err)
{
    return err == ERR_TOO_LARGE ? "this account has hidden as many entries of the room as it may (hidden_max)" : NULL;
}

uint64_t api_read_seq(struct fields *fields)
{
    if (!field_given(fields, "read_seq"))
        fields_refuse(fields, ERR_BAD_REQUEST, "read_seq", "read_seq is missing");
    return (uint64_t)field_integer(fields, "read_seq", 0, INT64_MAX, 0);
}

const char *api_mark_why(enum err err)
{
    return err == ERR_BAD_REQUEST ? "read_seq is above the last seq of the room" : NULL;
}

static void read_part(struct json object, const char *name, char *out, size_t size)
{
    struct json value = json_get(object, name);
    struct buf scratch = {0};
    struct str text = {0};

    out[0] = '\0';
    if (value.type == JSON_STRING && json_string(value, &scratch, &text))
        snprintf(out, size, "%.*s", STR_ARG(text));
    buf_clear(&scratch);
}

void api_refusal_read(struct refusal *refusal, enum err err, const struct history_op *op)
{
    struct buf text = {0};
    struct json object;
    const char *why;

    *refusal = (struct refusal){0};
    if (op->result.n) {
        buf_char(&text, '{');
        buf_add_str(&text, op->result);
        buf_char(&text, '}');
        if (json_check(buf_str(&text), &object, &why)) {
            read_part(object, "why", refusal->why, sizeof refusal->why);
            read_part(object, "field", refusal->field, sizeof refusal->field);
        }
    } else if (err == ERR_CONFLICT) { /* the op that came first has another body, and its result is not ours */
        snprintf(refusal->why, sizeof refusal->why, "this request_id was used before with another body");
        snprintf(refusal->field, sizeof refusal->field, "request_id");
    }
    buf_clear(&text);
}

void api_op_fail(struct call *call, enum err err)
{
    struct refusal refusal;

    api_refusal_read(&refusal, err, &call->op);
    call_fail(call, err, *refusal.field ? refusal.field : NULL, *refusal.why ? "%s" : NULL, refusal.why);
}

/* -------------------------------------------------------------------------------------------- Edit, Recall, Delete */

static void act_fields(struct call *call)
{
    call->op.room_id = field_room_id(&call->fields, "room_id", REQUIRED);
    call->op.by = field_account(&call->fields, "account_id", OPTIONAL);
    call->op.request_id = field_client_id(&call->fields, "request_id");
    api_target_fields(&call->fields, &call->text);
}

static void act(struct call *call, enum op_kind kind)
{
    if (!call_checked(call))
        return;
    call->op.kind = kind;
    call->op.args = buf_str(&call->text);
    call->op.done = act_on_done;
    history_submit_op(call->service->history, &call->op);
}

void api_history_edit(struct call *call)
{
    act_fields(call);
    api_edit_fields(&call->fields, call->service->config->content_max_bytes, &call->text);
    act(call, OP_MESSAGE_EDIT);
}

void api_history_recall(struct call *call)
{
    act_fields(call);
    act(call, OP_MESSAGE_RECALL);
}

static void hide(struct call *call)
{
    struct fields *fields = &call->fields;

    call->hide.room_id = field_room_id(fields, "room_id", REQUIRED);
    call->hide.account = field_account(fields, "account_id", REQUIRED);
    (void)field_client_id(fields, "request_id"); /* a repeat does no harm */
    api_hide_fields(fields, &call->hide);
    if (!call_checked(call))
        return;
    call->hide.done = hide_on_done;
    history_hide_entry(call->service->history, &call->hide);
}

void api_history_delete(struct call *call)
{
    if (api_scope_is_me(&call->fields)) {
        hide(call);
        return;
    }
    act_fields(call);
    act(call, OP_MESSAGE_DELETE);
}

static void act_on_done(struct history_op *op, enum err err)
{
    struct call *call = container_of(op, struct call, op);

    if (err) {
        api_op_fail(call, err);
        return;
    }
    buf_reset(&call->text);
    buf_printf(&call->text, "{\"seq\":%" PRIu64 "}", op->seq);
    call_answer(call, buf_str(&call->text));
}

static void hide_on_done(struct history_hide *done, enum err err)
{
    struct call *call = container_of(done, struct call, hide);

    if (err)
        call_fail(call, err, NULL, api_hide_why(err) ? "%s" : NULL, api_hide_why(err));
    else
        call_answer(call, STR("{}"));
}

/* ------------------------------------------------------------------------------------------------ MarkRead, Unread */

void api_history_mark_read(struct call *call)
{
    struct fields *fields = &call->fields;
    struct history_mark *mark = &call->mark;

    mark->room_id = field_room_id(fields, "room_id", REQUIRED);
    mark->account = field_account(fields, "account_id", REQUIRED);
    (void)field_client_id(fields, "request_id"); /* a repeat does no harm: a cursor only moves forward */
    mark->read_seq = api_read_seq(fields);
    if (!call_checked(call))
        return;
    mark->done = mark_on_done;
    history_mark_read(call->service->history, mark);
}

static void mark_on_done(struct history_mark *mark, enum err err)
{
    struct call *call = container_of(mark, struct call, mark);

    if (err) {
        call_fail(
            call, err, err == ERR_BAD_REQUEST ? "read_seq" : NULL, api_mark_why(err) ? "%s" : NULL, api_mark_why(err));
    } else {
        buf_printf(&call->text, "{\"read_seq\":%" PRIu64 ",\"unread\":%" PRIu64 "}", mark->read_seq, mark->unread);
        call_answer(call, buf_str(&call->text));
    }
}

void api_history_unread(struct call *call)
{
    struct fields *fields = &call->fields;
    struct history_unread *unread = &call->unread;

    unread->account = field_account(fields, "account_id", REQUIRED);
    if (field_given(fields, "room_ids"))
        unread->room_ids = field_room_ids(fields, "room_ids", ROOM_GET_MAX, &unread->room_id_count);
    if (!call_checked(call))
        return;
    unread->done = unread_on_done;
    history_ask_unread(call->service->history, unread);
}

static void unread_on_done(struct history_unread *unread, enum err err)
{
    struct call *call = container_of(unread, struct call, unread);

    if (err)
        call_fail(call, err, NULL, NULL);
    else
        call_answer(call, unread->answer_json);
}

/* --------------------------------------------------------------------------------------------------------- Typing */

void api_history_typing(struct call *call)
{
    struct fields *fields = &call->fields;
    struct history_access *access = &call->access;

    access->room_id = field_room_id(fields, "room_id", REQUIRED);
    access->account = field_account(fields, "account_id", REQUIRED);
    if (!call_checked(call))
        return;
    access->done = typing_on_access;
    history_ask_access(call->service->history, access);
}

static void typing_on_access(struct history_access *access, enum err err)
{
    struct call *call = container_of(access, struct call, access);

    err = api_typing_tell(call->service, access, err);
    if (err)
        call_fail(call, err, NULL, NULL);
    else
        call_answer(call, STR("{}"));
}

enum err api_typing_tell(const struct service *service, const struct history_access *access, enum err err)
{
    if (!err && access->removed)
        err = ERR_ROOM_GONE;
    if (!err && access->members <= service->config->typing_max_members && access->muted_until <= clock_unix_ms())
        proxy_typing(service->proxy, access->room_id, access->account);
    return err;
}
