/* Messages: said, looked up, forwarded, changed, read. What is said goes to the broker, and is answered after it
 * confirmed. */
#define _GNU_SOURCE /* memmem */
#include "gateway.h"

#include <inttypes.h>
#include <string.h>

#include "room/base/clock.h"

#define CONTENT_MOST 65536
#define FORWARD_MOST 100
#define ROOMS_MOST 500
#define FORWARD_SPAN 500 /* seqs between the first and the last that is forwarded */

/* ------------------------------------------------------------------------------------------------------------ send */

static void on_standing(struct standing *standing);
static void on_sent(struct roomd_send *send);

/* From ask->message on: may it be sent, and then it is. */
static void send_checked(struct ask *ask)
{
    ask->message.room_id = ask->room_id;
    ask->message.sender = ask->account;
    ask->standing =
        (struct standing){.account = ask->account, .room_id = ask->room_id, .done = on_standing, .arg = ask};
    standing_ask(ask->gateway->standings, &ask->standing);
}

static void on_standing(struct standing *standing)
{
    struct ask *ask = standing->arg;
    const char *refused;

    if (standing->code != ROOMD_OK) {
        ask_refuse_code(ask, standing->code, NULL, standing->message);
        return;
    }
    refused = policy_refuses(ask->gateway->policy, &(struct policy_question){.account = str_of(ask->account),
                                                       .peer = str_of(standing->peer),
                                                       .room_id = str_of(ask->room_id),
                                                       .kind = str_of(ask->message.kind),
                                                       .content = str_of(ask->message.content)});
    if (refused) {
        ask_refuse(ask, ERR_FORBIDDEN, NULL, "%s", refused);
        return;
    }
    ask->send =
        (struct roomd_send){.done = on_sent, .arg = ask, .deadline_ms = ask->gateway->settings->send_timeout_ms};
    roomd_send(ask->gateway->client, &ask->send, &ask->message);
}

static void on_sent(struct roomd_send *send)
{
    struct ask *ask = send->arg;

    if (send->code != ROOMD_OK && send->code != ROOMD_SPOOLED) {
        ask_refuse_code(ask, send->code, send->field, send->text);
        return;
    }
    ask->gateway->sent_total++;
    buf_reset(&ask->out);
    buf_printf(&ask->out, "{\"message_id\":\"%s\",\"client_msg_id\":", send->message_id);
    buf_json_string(&ask->out, str_of(send->client_msg_id));
    if (send->code == ROOMD_SPOOLED) /* safe here, and on its way as soon as a broker takes it */
        buf_text(&ask->out, ",\"spooled\":true");
    buf_char(&ask->out, '}');
    ask_json(ask, buf_str(&ask->out));
}

/* {kind?, content, client_msg_id?, mentions?, quote_seq?, sent_at?}; older frontends say message_type or msg_type 1. */
void message_send(struct ask *ask)
{
    bool ok = true;
    struct roomd_message *message = &ask->message;
    struct roomd_texts mentions;

    message->kind = ask_text(ask, "kind", 64, &ok);
    if (ok && !message->kind)
        message->kind = ask_text(ask, "message_type", 64, &ok);
    if (!message->kind)
        message->kind = "text";
    message->content = ask_raw(ask, "content", &ok);
    message->client_msg_id = ok ? ask_text(ask, "client_msg_id", 64, &ok) : NULL;
    mentions = ok ? ask_texts(ask, "mentions", 100, &ok) : (struct roomd_texts){0};
    message->quote_seq = ok ? ask_number(ask, "quote_seq", INT64_MAX, &ok) : 0;
    message->sent_at = ok ? (int64_t)ask_number(ask, "sent_at", 253402300799999, &ok) : 0;
    message->transient = ok && ask_flag(ask, "transient", &ok);
    if (!ok)
        return;
    message->mentions = mentions.p;
    message->mention_count = mentions.n;
    if (!message->content)
        ask_refuse(ask, ERR_BAD_REQUEST, "content", "content is missing");
    else
        send_checked(ask);
}

/* --------------------------------------------------------------------------------------------------------- history */

static void on_pulled(struct ask *ask)
{
    struct buf *out = &ask->out;

    buf_text(out, "{\"entries\":[");
    for (size_t i = 0; i < ask->pulled.entry_count; i++) {
        if (i)
            buf_char(out, ',');
        buf_add(out, ask->pulled.entries[i].json.p, ask->pulled.entries[i].json.n);
    }
    buf_printf(out, "],\"head\":\"%s\",\"durable_seq\":%" PRIu64 ",\"more\":%s", ask->pulled.head,
        ask->pulled.durable_seq, ask->pulled.more ? "true" : "false");
    if (ask->pulled.reset)
        buf_printf(out, ",\"reset\":\"%s\"", ask->pulled.reset);
    buf_char(out, '}');
    ask_json(ask, buf_str(out));
}

void message_history(struct ask *ask)
{
    bool ok = true;
    struct roomd_history_pull pull = {.room_id = ask->room_id, .account_id = ask->account};

    pull.limit = ask_param_number(ask, "limit", 500, 50, &ok);
    if (ok)
        pull.before = ask_param_number(ask, "before", INT64_MAX, 0, &ok);
    if (!ok)
        return;
    pull.after = ask_param(ask, "after");
    ask_call(ask, on_pulled);
    roomd_history_pull(ask->gateway->client, &ask->call, &pull, &ask->pulled);
}

/* --------------------------------------------------------------------------------------------------------- forward */

/*
 * What is forwarded is built here, from what the caller may read in the other room: a frontend cannot put words into
 * somebody's mouth. Names are the BaseService's at this time, by value: who sees the forward may not know the accounts.
 */
struct forward {
    const char *from;
    uint64_t seqs[FORWARD_MOST];
    size_t count;
    bool merged;
    struct json names; /* the BaseService's answer */
    struct buf names_text;
    struct roomd_history_pulled pulled;
    struct roomd_call room_call; /* the answers of both calls are needed until the end */
    struct roomd_room_got room;
};

static void on_originals(struct ask *ask);
static void on_room(struct roomd_call *call);
static void on_senders(struct fetch *fetch);

static bool read_seqs(struct ask *ask, struct forward *forward)
{
    struct json seqs = json_get(ask->body, "seqs"), item;
    struct json_walk walk = json_walk(seqs);
    int64_t seq = 0, last = 0;

    while (seqs.type == JSON_ARRAY && json_next_item(&walk, &item)) {
        if (forward->count == FORWARD_MOST || !json_integer(item, &seq) || seq <= last)
            return false;
        forward->seqs[forward->count++] = (uint64_t)seq;
        last = seq;
    }
    return forward->count && forward->seqs[forward->count - 1] - forward->seqs[0] < FORWARD_SPAN;
}

/* {from_room_id, seqs: [ascending], merged?: bool, client_msg_id?} */
void message_forward(struct ask *ask)
{
    struct forward *forward = ask_keep(ask, sizeof *forward);
    bool ok = true;
    struct roomd_history_pull pull = {.account_id = ask->account};

    forward->from = ask_text(ask, "from_room_id", ROOM_ID_MAX, &ok);
    forward->merged = ok && ask_flag(ask, "merged", &ok);
    ask->message.client_msg_id = ok ? ask_text(ask, "client_msg_id", 64, &ok) : NULL;
    if (!ok)
        return;
    if (!forward->from || !ask->body.n || !read_seqs(ask, forward)) {
        ask_refuse(ask, ERR_BAD_REQUEST, forward->from ? "seqs" : "from_room_id",
            "from_room_id is a room, seqs 1 to %d of its seqs, ascending, not more than %d apart", FORWARD_MOST,
            FORWARD_SPAN);
        return;
    }
    ask->text = (const char *)forward;
    pull.room_id = forward->from;
    pull.before = forward->seqs[forward->count - 1] + 1;
    pull.limit = forward->seqs[forward->count - 1] - forward->seqs[0] + 1;
    ask_call(ask, on_originals);
    roomd_history_pull(ask->gateway->client, &ask->call, &pull, &forward->pulled);
}

static struct forward *forward_of(struct ask *ask)
{
    return (struct forward *)(void *)(uintptr_t)ask->text;
}

static const struct roomd_entry *original(const struct forward *forward, uint64_t seq)
{
    for (size_t i = 0; i < forward->pulled.entry_count; i++) {
        const struct roomd_entry *entry = &forward->pulled.entries[i];

        if (entry->seq == seq && entry->content.n && !strcmp(entry->type, "message"))
            return entry;
    }
    return NULL;
}

static void on_originals(struct ask *ask)
{
    struct forward *forward = forward_of(ask);

    for (size_t i = 0; i < forward->count; i++) {
        if (original(forward, forward->seqs[i]))
            continue;
        ask_refuse(
            ask, ERR_NO_SUCH_MESSAGE, "seqs", "seq %" PRIu64 " is no message that you can forward", forward->seqs[i]);
        return;
    }
    forward->room_call = (struct roomd_call){.done = on_room, .arg = ask};
    roomd_room_get(
        ask->gateway->client, &forward->room_call, &(struct roomd_room_get){.room_id = forward->from}, &forward->room);
}

static void on_room(struct roomd_call *call)
{
    struct ask *ask = call->arg;
    struct forward *forward = forward_of(ask);

    if (call->code != ROOMD_OK) {
        enum roomd_code code = call->code;

        roomd_call_clear(call);
        ask_refuse_code(ask, code, NULL, NULL);
        return;
    }
    buf_text(&ask->out, "/accounts?ids=");
    for (size_t i = 0; i < forward->count; i++) {
        if (i)
            buf_char(&ask->out, ',');
        add_percent(&ask->out, str_of(original(forward, forward->seqs[i])->sender));
    }
    buf_char(&ask->out, '\0');
    ask->fetch = (struct fetch){.method = "GET", .path = ask->out.p, .done = on_senders, .arg = ask};
    fetch_start(ask->gateway->fetches, &ask->fetch);
}

/* A part of a forward is an object with its type: text becomes {"type":"text","body":…}. */
static void add_part(struct buf *out, const struct roomd_entry *entry)
{
    struct str content = {entry->content.p, entry->content.n};

    buf_text(out, "{\"type\":");
    buf_json_string(out, str_of(entry->kind));
    if (content.p[0] == '{') {
        size_t at = 1;

        while (at < content.n && strchr(" \t\r\n", content.p[at]))
            at++;
        if (content.p[at] != '}' && !memmem(content.p, content.n, "\"type\"", 6))
            buf_char(out, ',');
        if (memmem(content.p, content.n, "\"type\"", 6)) { /* its own type stays its own */
            buf_text(out, ",\"content\":");
            buf_add_str(out, content);
            buf_char(out, '}');
        } else {
            buf_add(out, content.p + 1, content.n - 1);
        }
    } else {
        buf_printf(out, ",\"%s\":", content.p[0] == '"' ? "body" : "content");
        buf_add_str(out, content);
        buf_char(out, '}');
    }
}

static void write_forward(struct ask *ask, const struct forward *forward)
{
    struct buf *out = &ask->out;

    buf_reset(out);
    buf_printf(out, "{\"forward_type\":\"%s\"", forward->merged || forward->count > 1 ? "merged" : "single");
    buf_text(out, ",\"source_conversation_type\":");
    buf_json_string(out, str_of(forward->room.room.kind));
    if (forward->room.room.name && *forward->room.room.name) {
        buf_text(out, ",\"source_conversation_name\":");
        buf_json_string(out, str_of(forward->room.room.name));
    }
    buf_text(out, ",\"messages\":[");
    for (size_t i = 0; i < forward->count; i++) {
        const struct roomd_entry *entry = original(forward, forward->seqs[i]);

        buf_text(out, i ? ",{\"original_sender\":" : "{\"original_sender\":");
        buf_json_string(out, str_of(entry->sender));
        buf_text(out, ",\"original_sender_name\":");
        add_name(out, forward->names, entry->sender);
        buf_printf(out, ",\"timestamp\":%" PRId64 ",\"content\":", entry->at);
        add_part(out, entry);
        buf_char(out, '}');
    }
    buf_printf(out, "],\"summary\":\"聊天记录 (%zu条)\"}", forward->count);
}

static void on_senders(struct fetch *fetch)
{
    struct ask *ask = fetch->arg;
    struct forward *forward = forward_of(ask);
    struct json names;
    const char *why;

    /* Without names the accounts themselves are shown. */
    if (fetch->status == 200 && json_check(fetch->answer, &names, &why) && names.type == JSON_OBJECT)
        forward->names = names;
    write_forward(ask, forward);
    forward->names = (struct json){.type = JSON_NONE};
    roomd_call_clear(&forward->room_call);
    if (ask->out.n > CONTENT_MOST) {
        ask_refuse(ask, ERR_TOO_LARGE, "seqs", "together these messages are larger than %d bytes: forward fewer",
            CONTENT_MOST);
        return;
    }
    ask->message.kind = "forward";
    ask->message.content = ask_copy(ask, buf_str(&ask->out));
    send_checked(ask);
}

/* --------------------------------------------------------------------------------------------------------- changes */

static void on_changed(struct ask *ask)
{
    if (ask->changed.seq)
        buf_printf(&ask->out, "{\"seq\":%" PRIu64 "}", ask->changed.seq);
    else
        buf_text(&ask->out, "{}");
    ask_json(ask, buf_str(&ask->out));
}

/* seq, or message_id. */
static bool read_target(struct ask *ask, uint64_t *seq, const char **message_id, const char **request_id)
{
    bool ok = true;

    *seq = ask_number(ask, "seq", INT64_MAX, &ok);
    *message_id = ok ? ask_text(ask, "message_id", 26, &ok) : NULL;
    *request_id = ok ? ask_text(ask, "request_id", 64, &ok) : NULL;
    if (ok && !*seq && !*message_id) {
        ask_refuse(ask, ERR_BAD_REQUEST, "seq", "give seq or message_id");
        return false;
    }
    return ok;
}

/* Who is muted may still mend what was said; the rules of the business hold for it all the same. */
static void on_edit_standing(struct standing *standing)
{
    struct ask *ask = standing->arg;
    const struct roomd_history_edit *edit = (const void *)ask->text;
    const char *refused;

    if (standing->code != ROOMD_OK && standing->code != ROOMD_FORBIDDEN) {
        ask_refuse_code(ask, standing->code, NULL, standing->message);
        return;
    }
    refused = policy_refuses(ask->gateway->policy, &(struct policy_question){.account = str_of(ask->account),
                                                       .peer = str_of(standing->peer),
                                                       .room_id = str_of(ask->room_id),
                                                       .content = str_of(edit->content)});
    if (refused) {
        ask_refuse(ask, ERR_FORBIDDEN, "content", "%s", refused);
        return;
    }
    roomd_history_edit(ask->gateway->client, &ask->call, edit, &ask->changed);
}

void message_edit(struct ask *ask)
{
    bool ok = true;
    struct roomd_history_edit *edit = ask_keep(ask, sizeof *edit);
    const char *request_id;

    *edit = (struct roomd_history_edit){.room_id = ask->room_id, .account_id = ask->account};
    if (!read_target(ask, &edit->seq, &edit->message_id, &request_id))
        return;
    edit->content = ask_raw(ask, "content", &ok);
    if (!edit->content) {
        ask_refuse(ask, ERR_BAD_REQUEST, "content", "content is missing");
        return;
    }
    ask->text = (const char *)edit;
    ask_call(ask, on_changed);
    ask->call.request_id = request_id;
    ask->standing =
        (struct standing){.account = ask->account, .room_id = ask->room_id, .done = on_edit_standing, .arg = ask};
    standing_ask(ask->gateway->standings, &ask->standing);
}

void message_recall(struct ask *ask)
{
    struct roomd_history_recall recall = {.room_id = ask->room_id, .account_id = ask->account};
    const char *request_id;

    if (!read_target(ask, &recall.seq, &recall.message_id, &request_id))
        return;
    ask_call(ask, on_changed);
    ask->call.request_id = request_id;
    roomd_history_recall(ask->gateway->client, &ask->call, &recall, &ask->changed);
}

void message_delete(struct ask *ask)
{
    bool ok = true;
    struct roomd_history_delete delete = {.room_id = ask->room_id, .account_id = ask->account};
    const char *request_id;

    if (!read_target(ask, &delete.seq, &delete.message_id, &request_id))
        return;
    delete.scope = ask_text(ask, "scope", 8, &ok);
    if (!ok)
        return;
    if (!delete.scope)
        delete.scope = "me";
    ask_call(ask, on_changed);
    ask->call.request_id = request_id;
    roomd_history_delete(ask->gateway->client, &ask->call, &delete, &ask->changed);
}

static void on_marked(struct ask *ask)
{
    buf_printf(
        &ask->out, "{\"read_seq\":%" PRIu64 ",\"unread\":%" PRIu64 "}", ask->marked.read_seq, ask->marked.unread);
    ask_json(ask, buf_str(&ask->out));
}

void message_read(struct ask *ask)
{
    bool ok = true;
    struct roomd_history_mark_read mark = {.room_id = ask->room_id, .account_id = ask->account};

    mark.read_seq = ask_number(ask, "read_seq", INT64_MAX, &ok);
    if (!ok)
        return;
    ask_call(ask, on_marked);
    roomd_history_mark_read(ask->gateway->client, &ask->call, &mark, &ask->marked);
}

void message_typing(struct ask *ask)
{
    ask_call(ask, ask_done);
    roomd_history_typing(ask->gateway->client, &ask->call,
        &(struct roomd_history_typing){.room_id = ask->room_id, .account_id = ask->account});
}

static void on_unread(struct ask *ask)
{
    buf_printf(&ask->out, "{\"total\":%" PRIu64 ",\"rooms\":[", ask->unread.total);
    for (size_t i = 0; i < ask->unread.room_count; i++) {
        const struct roomd_unread_room *room = &ask->unread.rooms[i];

        buf_printf(&ask->out,
            "%s{\"room_id\":\"%s\",\"head_seq\":%" PRIu64 ",\"read_seq\":%" PRIu64 ",\"unread\":%" PRIu64
            ",\"mentioned\":%" PRIu64 "}",
            i ? "," : "", room->room_id, room->head_seq, room->read_seq, room->unread, room->mentioned);
    }
    buf_text(&ask->out, "]}");
    ask_json(ask, buf_str(&ask->out));
}

/* ?room_ids=a,b; none: all */
void message_unread(struct ask *ask)
{
    struct roomd_history_unread asked = {.account_id = ask->account};
    const char *ids = ask_param(ask, "room_ids");
    struct str rest = str_of(ids ? ids : ""), id;
    const char **rooms = ask_keep(ask, ROOMS_MOST * sizeof *rooms);
    size_t n = 0;

    while (n < ROOMS_MOST && settings_list_next(&rest, &id))
        rooms[n++] = ask_copy(ask, id);
    if (rest.n) {
        ask_refuse(ask, ERR_BAD_REQUEST, "room_ids", "room_ids holds more than %d rooms", ROOMS_MOST);
        return;
    }
    asked.room_ids = (struct roomd_texts){rooms, n};
    ask_call(ask, on_unread);
    roomd_history_unread(ask->gateway->client, &ask->call, &asked, &ask->unread);
}
