/* Calls about what was said: Push and Pull. */
#include "api.h"

#include <inttypes.h>

#include "history/content.h"

static void push_on_done(struct history_push *push, enum err err);
static void pull_on_done(struct history_pull *pull, enum err err);

/* ---------------------------------------------------------------------------------------------------------- Push */

static void add_meta(struct buf *meta, const char *name, struct str raw)
{
    if (!raw.n)
        return;
    buf_printf(meta, "%s\"%s\":", meta->n ? "," : "", name);
    buf_add_str(meta, raw);
}

static void check_mentions(struct fields *fields, struct content_facts *facts)
{
    struct json mentions = json_get(fields->object, "mentions"), item;
    struct json_walk walk;

    if (mentions.type == JSON_NONE)
        return;
    if (mentions.type != JSON_ARRAY) {
        fields_refuse(fields, ERR_BAD_REQUEST, "mentions", "mentions must be an array of accounts or \"@all\"");
        return;
    }
    for (walk = json_walk(mentions); json_next_item(&walk, &item);)
        if (!content_add_mention(facts, item))
            fields_refuse(fields, ERR_BAD_REQUEST, "mentions", "mentions must hold at most %d accounts or \"@all\"",
                MENTIONS_MAX);
}

static void check_content(
    struct fields *fields, int64_t max_bytes, struct history_push *push, struct content_facts *facts)
{
    struct json value = json_get(fields->object, "content");
    const char *why;

    if (value.type == JSON_NONE)
        fields_refuse(fields, ERR_BAD_REQUEST, "content", "content is missing");
    else if (value.n > (size_t)max_bytes)
        fields_refuse(
            fields, ERR_TOO_LARGE, "content", "content is larger than the limit of %" PRId64 " bytes", max_bytes);
    else if (content_check(push->kind, value, facts, &why))
        fields_refuse_part(fields, ERR_BAD_REQUEST, facts->field, why);
    push->content = (struct str){value.p, value.n};
}

void api_message_fields(struct fields *fields, int64_t content_max_bytes, struct history_push *push, struct buf *meta)
{
    struct content_facts facts = {0};

    if (fields->err)
        return;
    check_content(fields, content_max_bytes, push, &facts);
    if (!fields->err)
        check_mentions(fields, &facts);
    buf_clear(&facts.mentions);
    push->mentions_all = facts.mentions_all;
    push->quote_seq = (uint64_t)field_integer(fields, "quote_seq", 1, INT64_MAX, (int64_t)facts.quote_seq);
    (void)field_integer(fields, "sent_at", 0, TIME_MAX_MS, 0);
    add_meta(meta, "sent_at", field_raw(fields, "sent_at"));
    add_meta(meta, "quote_seq", field_raw(fields, "quote_seq"));
    add_meta(meta, "mentions", field_raw(fields, "mentions"));
}

/* A form that is well was checked before: what is still bad is the quote. */
const char *api_push_field(const struct fields *fields, enum err err)
{
    if (err != ERR_BAD_REQUEST)
        return NULL;
    return field_given(fields, "quote_seq") ? "quote_seq" : "content.quote_message_seq";
}

void api_history_push(struct call *call)
{
    static const char *const waits[] = {"confirmed", "sequenced", "durable", NULL};
    struct fields *fields = &call->fields;
    struct history_push *push = &call->push;

    push->room_id = field_room_id(fields, "room_id", REQUIRED);
    push->sender = field_sender(fields, "sender");
    push->kind = field_kind(fields, "kind");
    push->client_msg_id = field_client_id(fields, "client_msg_id");
    if (!push->client_msg_id.p) /* the same promise under the name that all other calls have for it */
        push->client_msg_id = field_client_id(fields, "request_id");
    push->transient = field_boolean(fields, "transient", false);
    push->wait = (enum history_wait)field_word(fields, "wait", waits, WAIT_CONFIRMED);
    if (push->transient && push->wait != WAIT_CONFIRMED)
        fields_refuse(
            fields, ERR_BAD_REQUEST, "wait", "a transient message is never sequenced: wait can only be confirmed");
    api_message_fields(fields, call->service->config->content_max_bytes, push, &call->text);
    if (!call_checked(call))
        return;
    push->meta = buf_str(&call->text);
    push->done = push_on_done;
    history_push(call->service->history, push);
}

static void push_on_done(struct history_push *push, enum err err)
{
    struct call *call = container_of(push, struct call, push);
    char message_id[ULID_TEXT];

    if (err == ERR_CONFLICT) {
        call_fail(call, err, "client_msg_id", "this client_msg_id was used before with another kind or content");
        return;
    }
    if (err) {
        call_fail(call, err, api_push_field(&call->fields, err), *push->why ? "%s" : NULL, push->why);
        return;
    }
    ulid_write(message_id, push->message_id);
    buf_reset(&call->text);
    buf_printf(&call->text, "{\"message_id\":\"%.*s\",\"client_msg_id\":", ULID_TEXT, message_id);
    buf_json_string(&call->text, str_of(push->client_msg_id_text));
    if (push->wait != WAIT_CONFIRMED)
        buf_printf(&call->text, ",\"seq\":%" PRIu64 ",\"duplicate\":%s", push->seq, push->duplicate ? "true" : "false");
    buf_char(&call->text, '}');
    call_answer(call, buf_str(&call->text));
}

/* ---------------------------------------------------------------------------------------------------------- Pull */

enum { PULL_LIMIT = 50, PULL_LIMIT_MAX = 500 };

/* `after`: a cursor as text; a bare integer may also be a JSON number. */
static void take_after(struct call *call)
{
    struct fields *fields = &call->fields;
    struct str raw = field_raw(fields, "after"), text;
    bool is_number = raw.n && (raw.p[0] == '-' || (raw.p[0] >= '0' && raw.p[0] <= '9'));

    call->pull.from = PULL_AFTER;
    if (is_number)
        call->pull.after = (struct cursor){UINT64_MAX, (uint64_t)field_integer(fields, "after", 0, INT64_MAX - 1, 0)};
    else if ((text = field_text(fields, "after", CURSOR_TEXT_MAX)).p && !cursor_read(&call->pull.after, text))
        fields_refuse(
            fields, ERR_BAD_REQUEST, "after", "after must be a cursor, \"epoch:seq\"; \"0:0\" is the beginning");
}

void api_history_pull(struct call *call)
{
    struct fields *fields = &call->fields;
    struct history_pull *pull = &call->pull;
    bool after = field_given(fields, "after"), before = field_given(fields, "before");

    pull->room_id = field_room_id(fields, "room_id", REQUIRED);
    pull->account = field_account(fields, "account_id", OPTIONAL);
    pull->limit = (int)field_integer(fields, "limit", 1, PULL_LIMIT_MAX, PULL_LIMIT);
    pull->wait_ms = field_integer(fields, "wait_ms", 0, call->service->config->poll_wait_max_ms, 0);
    if (after && before)
        fields_refuse(fields, ERR_BAD_REQUEST, "before", "give after or before, not both");
    if (pull->wait_ms && !after)
        fields_refuse(fields, ERR_BAD_REQUEST, "wait_ms", "wait_ms goes with after only");
    if (after)
        take_after(call);
    if (before) {
        pull->from = PULL_BEFORE;
        pull->before = (uint64_t)field_integer(fields, "before", 1, INT64_MAX - 1, 1);
    }
    if (!call_checked(call))
        return;
    pull->done = pull_on_done;
    call->pulling = true;
    if (pull->wait_ms)
        call_watch_caller(call);
    history_pull(call->service->history, pull);
}

static void pull_on_done(struct history_pull *pull, enum err err)
{
    struct call *call = container_of(pull, struct call, pull);
    struct buf *json = &call->text;
    char cursor[CURSOR_TEXT_MAX];

    call->pulling = false;
    if (err) {
        call_fail(call, err, NULL, NULL);
        return;
    }
    buf_text(json, "{\"entries\":[");
    for (size_t i = 0; i < pull->count; i++) {
        if (i)
            buf_char(json, ',');
        buf_add_str(json, entry_json(pull->entries[i]));
    }
    cursor_write(cursor, pull->head);
    buf_printf(json, "],\"head\":\"%s\",\"durable_seq\":%" PRIu64 ",\"more\":%s", cursor, pull->durable_seq,
        pull->more ? "true" : "false");
    if (pull->reset) {
        cursor_write(cursor, pull->reset_to);
        buf_printf(json, ",\"reset\":\"%s\"", cursor);
    }
    buf_char(json, '}');
    call_answer(call, buf_str(json));
}
