/*
 * Callers: what an API call wants said or changed is published into the room's queue; the owner of the shard answers.
 * When we are the owner, the answer comes from the sequencer; when another instance is, it comes over the feed. When
 * none comes in time, the log is asked, once for all callers that wait.
 *
 *   push:  ASKING (member? room open? may it speak?) ─▶ PUBLISHED ─confirm / answer─▶ done
 *   op:    ASKING (a member? only when it is somebody's act) ─▶ KNOWN? (only when it is none and there is a request_id:
 *          perhaps it was one when it did this for the first time) ─▶ PUBLISHED ─answer─▶ done
 *
 * Pushes and ops of one room are published in the order of the calls, although some have to wait for the database: a
 * client that sends a message and then edits it need not wait for the answer in between.
 */
#include "internal.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "room/base/clock.h"
#include "room/base/log.h"
#include "room/rules.h"

#define LOOK_EVERY_MS 500
#define TICK_MS 50
#define LOOKS_MAX 1000
/* A dead letter is dated by the owner, a call by us; both know the database's time from their last beat. */
#define CLOCKS_DIFFER_MS 1000

enum call_state { CALL_ASKING, CALL_KNOWN, CALL_READY, CALL_PUBLISHED, CALL_DONE };

struct call {
    struct list link; /* calls->all: waiting for the owner, oldest first; none before CALL_KNOWN and for those that wait
                         for the confirm only */
    struct calls *calls;
    enum call_state state;
    struct history_push *push; /* one of the two; NULL once done */
    struct history_op *op;
    struct str room_id; /* the request's: good until done */
    struct id128 id;
    int64_t hash;
    uint64_t begun_at;             /* owner time: what was in the log before is a duplicate */
    uint64_t deadline_ms, look_ms; /* loop clock */
    bool looking, looked;
    bool waits;            /* for the owner's answer, not only for the broker's */
    bool stranger;         /* its act is refused unless the log has it */
    struct map_link by_id; /* in calls->waiting, when the oldest of its id */
    struct list same_id;   /* all of one id, oldest first from the one in the map */
    bool in_map;
    struct history_access access;
    bool asking;
    struct line *line;
    struct list line_link;
    struct amqp_publish publish;
    bool publishing;
    struct buf body;
};

/* Pushes and ops of one room that are not published yet, in order. */
struct line {
    struct map_link by_room;
    struct str room_id; /* of its first call */
    struct list calls;
};

struct calls {
    struct history *history;
    struct list all, early; /* early: before CALL_PUBLISHED, or only waiting for the confirm */
    struct map waiting, lines;
    struct rules rules;
    size_t sequenced; /* waiting for a seq only */
    struct pg_query look;
    struct pg_params params;
    bool looking;
    uv_timer_t *timer; /* runs while somebody waits */
    uint64_t pushes_total, ops_total, told_total, looks_total, timeouts_total;
};

static void on_access(struct history_access *access, enum err err);
static enum err read_op(struct call *call);
static void line_advance(struct calls *calls, struct line *line);
static void call_publish(struct call *call);
static void on_published(struct amqp_publish *publish, enum err err);
static void calls_look(struct calls *calls);
static void on_look(struct pg_query *query, enum err err, const PGresult *result);
static void call_finish(struct call *call, enum err err);
static void call_release(struct call *call);
static void on_tick(uv_timer_t *timer);

/* An entry of the log with the id; else, a dead letter with it that is not older than the call. */
static const struct pg_statement look_up = {
    .name = "calls_look",
    .sql = "SELECT 0 AS place, x.room_id, x.id, e.seq, e.at, e.hash, e.type::bigint, coalesce(e.meta, '')"
           " FROM unnest($1::text[], $2::uuid[], $3::int8[]) x(room_id, id, begun_at)"
           " JOIN room r ON r.room_id = x.room_id JOIN log_entry e ON e.room_no = r.room_no AND e.message_id = x.id"
           " UNION ALL SELECT 1, x.room_id, x.id, 0, o.created_at, 0, 0, o.reason"
           " FROM unnest($1::text[], $2::uuid[], $3::int8[]) x(room_id, id, begun_at)"
           " JOIN outbox o ON o.message_id = x.id AND o.room_id = x.room_id AND o.created_at >= x.begun_at"
           " ORDER BY place",
    .params = 3,
};

struct calls *calls_open(struct history *history)
{
    struct calls *calls = xcalloc(1, sizeof *calls);
    const char *why;

    calls->history = history;
    if (!rules_read(&calls->rules, history->config->role_rules, &why)) /* told when the configuration was read */
        rules_default(&calls->rules);
    list_init(&calls->all);
    list_init(&calls->early);
    map_init(&calls->waiting);
    map_init(&calls->lines);
    calls->timer = xcalloc(1, sizeof *calls->timer);
    uv_timer_init(history->loop, calls->timer);
    calls->timer->data = calls;
    return calls;
}

static struct call *call_new(struct calls *calls, struct str room_id)
{
    struct call *call = xcalloc(1, sizeof *call);

    call->calls = calls;
    call->room_id = room_id;
    call->begun_at = history_now_ms(calls->history);
    call->deadline_ms = uv_now(calls->history->loop) + (uint64_t)calls->history->config->op_timeout_ms;
    list_init(&call->same_id);
    list_init(&call->line_link);
    list_push_back(&calls->early, &call->link);
    return call;
}

/* Does a queue exist for it? An id whose shard nobody has heard of is no room's; an instance that has just started has
 * not heard of any. */
static enum err room_possible(const struct calls *calls, struct str room_id)
{
    const struct cluster *cluster = calls->history->cluster;
    struct str shard;

    if (!room_id_read(room_id, &shard))
        return ERR_NO_SUCH_ROOM;
    if (!cluster || !cluster_shard_count(cluster))
        return ERR_UNAVAILABLE;
    return cluster_find_shard(cluster, shard) ? ERR_OK : ERR_NO_SUCH_ROOM;
}

/* ----------------------------------------------------------------------------------------- the line of one room */

static bool line_equal(const struct map_link *link, const void *key)
{
    return str_eq(container_of(link, const struct line, by_room)->room_id, *(const struct str *)key);
}

static void line_join(struct calls *calls, struct call *call)
{
    uint64_t hash = map_hash(call->room_id.p, call->room_id.n);
    struct map_link *link = map_find(&calls->lines, hash, line_equal, &call->room_id);
    struct line *line = link ? container_of(link, struct line, by_room) : xcalloc(1, sizeof *line);

    if (!link) {
        list_init(&line->calls);
        line->room_id = call->room_id;
        map_insert(&calls->lines, hash, &line->by_room);
    }
    call->line = line;
    list_push_back(&line->calls, &call->line_link);
}

/* The map's key is the first call's room_id: it moves on with the front. */
static void line_leave(struct calls *calls, struct call *call)
{
    struct line *line = call->line;

    if (!line)
        return;
    call->line = NULL;
    list_remove(&call->line_link);
    if (list_empty(&line->calls)) {
        map_remove(&calls->lines, &line->by_room);
        free(line);
    } else {
        line->room_id = list_entry(line->calls.next, struct call, line_link)->room_id;
    }
}

/* -------------------------------------------------------------------------------------------------------- push */

static void write_message(struct call *call)
{
    const struct history_push *push = call->push;
    struct buf *body = &call->body;

    buf_text(body, "{\"v\":1,\"room_id\":");
    buf_json_string(body, push->room_id);
    buf_text(body, ",\"sender\":");
    buf_json_string(body, push->sender);
    buf_text(body, ",\"client_msg_id\":");
    buf_json_string(body, str_of(push->client_msg_id_text));
    buf_text(body, ",\"kind\":");
    buf_json_string(body, push->kind);
    buf_text(body, ",\"content\":");
    buf_add_str(body, push->content);
    if (push->meta.n) {
        buf_char(body, ',');
        buf_add_str(body, push->meta);
    }
    if (push->transient)
        buf_text(body, ",\"transient\":true");
    buf_char(body, '}');
}

void history_push(struct history *history, struct history_push *push)
{
    struct calls *calls = history->calls;
    struct call *call = call_new(calls, push->room_id);
    bool system = push->sender.n && push->sender.p[0] == '@';

    calls->pushes_total++;
    call->push = push;
    push->impl = call;
    push->seq = 0;
    push->duplicate = false;
    push->why[0] = '\0';
    if (push->client_msg_id.n) {
        assert(push->client_msg_id.n <= CLIENT_MSG_ID_MAX_BYTES);
        memcpy(push->client_msg_id_text, push->client_msg_id.p, push->client_msg_id.n);
        push->client_msg_id_text[push->client_msg_id.n] = '\0';
    } else {
        ulid_write(push->client_msg_id_text, ulid_new(call->begun_at));
        push->client_msg_id_text[ULID_TEXT] = '\0';
    }
    push->message_id = call->id = message_id_of(push->room_id, push->sender, str_of(push->client_msg_id_text));
    call->hash = content_hash(push->kind, push->content);
    call->waits = push->wait != WAIT_CONFIRMED && !push->transient;
    write_message(call);
    line_join(calls, call);
    call->access = (struct history_access){
        .room_id = push->room_id,
        .account = system ? STR("") : push->sender,
        .done = on_access,
    };
    call->asking = true;
    history_ask_access(history, &call->access);
}

/* What the owner would refuse is refused here when it is known already: the caller learns why. @system is not asked. */
static enum err may_push(struct call *call)
{
    const struct history_access *access = &call->access;
    struct history_push *push = call->push;

    if (access->removed)
        return ERR_ROOM_GONE;
    if (access->account.n && access->muted_until > history_now_ms(call->calls->history)) {
        rules_say_muted(access->muted_until, push->why);
        return ERR_FORBIDDEN;
    }
    if (access->account.n && push->mentions_all && !rules_allow(&call->calls->rules, RULE_MENTION_ALL, access->role)) {
        rules_say(&call->calls->rules, RULE_MENTION_ALL, push->why);
        return ERR_FORBIDDEN;
    }
    if (access->last_seq && push->quote_seq > access->last_seq) {
        snprintf(push->why, sizeof push->why, "the quoted seq does not exist in the room: its last is %" PRIu64,
            access->last_seq);
        return ERR_BAD_REQUEST;
    }
    return ERR_OK;
}

static void on_access(struct history_access *access, enum err err)
{
    struct call *call = container_of(access, struct call, access);
    struct calls *calls = call->calls;

    call->asking = false;
    call->stranger = call->op && err == ERR_NOT_MEMBER && call->op->request_id.n;
    if (call->stranger)
        err = read_op(call);
    else if (!err && call->push)
        err = may_push(call);
    if (err) {
        call_finish(call, err);
        return;
    }
    call->state = CALL_READY;
    if (call->stranger) {
        call->state = CALL_KNOWN;
        calls_look(calls);
    }
    line_advance(calls, call->line);
}

/* Publishes from the front as long as they are ready. */
static void line_advance(struct calls *calls, struct line *line)
{
    bool last = false;

    while (!last) {
        struct call *call = list_entry(line->calls.next, struct call, line_link);

        if (call->state != CALL_READY)
            return;
        last = line->calls.next == line->calls.prev;
        line_leave(calls, call);
        call_publish(call);
    }
}

/* ---------------------------------------------------------------------------------------------------------- op */

static const char *const op_names[OP_KINDS] = {
    [OP_MEMBER_ADD] = "member.add",
    [OP_MEMBER_REMOVE] = "member.remove",
    [OP_ROOM_UPDATE] = "room.update",
    [OP_ROOM_REMOVE] = "room.remove",
    [OP_ROOM_MUTE] = "room.mute",
    [OP_MEMBER_ROLE] = "member.role",
    [OP_MESSAGE_EDIT] = "message.edit",
    [OP_MESSAGE_RECALL] = "message.recall",
    [OP_MESSAGE_DELETE] = "message.delete",
};

static void write_op(struct call *call)
{
    const struct history_op *op = call->op;
    struct buf *body = &call->body;
    char id[ULID_TEXT];

    assert(op->kind > OP_NONE && op->kind < OP_KINDS);
    ulid_write(id, call->id);
    buf_text(body, "{\"v\":1,\"op\":\"");
    buf_text(body, op_names[op->kind]);
    buf_text(body, "\",\"op_id\":\"");
    buf_add(body, id, sizeof id);
    buf_text(body, "\",\"room_id\":");
    buf_json_string(body, op->room_id);
    if (op->by.n) {
        buf_text(body, ",\"by\":");
        buf_json_string(body, op->by);
    }
    buf_text(body, ",\"at\":");
    buf_u64(body, call->begun_at);
    if (op->args.n) {
        buf_char(body, ',');
        buf_add_str(body, op->args);
    }
    buf_char(body, '}');
}

/* The owner's own eyes: what it would refuse is refused here, and the hash tells our op from another one with the same
 * request_id. */
static enum err read_op(struct call *call)
{
    struct envelope_source source = {
        .from_op_exchange = true,
        .content_type = STR("application/json"),
        .content_max_bytes = call->calls->history->config->content_max_bytes,
    };
    struct envelope *envelope;
    const char *why = NULL;
    enum err err;

    room_id_read(call->room_id, &source.shard);
    err = envelope_read(&envelope, buf_str(&call->body), &source, &why);
    if (err)
        log_warn("op.refused", "room=%s error=%s why=\"%s\"", log_quote(call->room_id), err_code(err), why ? why : "");
    call->hash = envelope->hash;
    envelope_free(envelope);
    return err;
}

void history_submit_op(struct history *history, struct history_op *op)
{
    struct calls *calls = history->calls;
    struct call *call = call_new(calls, op->room_id);

    calls->ops_total++;
    call->op = op;
    op->impl = call;
    op->seq = 0;
    op->duplicate = false;
    op->result = (struct str){NULL, 0};
    call->waits = true;
    if (op->request_id.n)
        call->id = request_op_id(op->room_id, op->own_request_ids ? op->by : STR(""), op->request_id);
    else
        call->id = ulid_new(call->begun_at);
    write_op(call);
    line_join(calls, call);
    if (op->by.n) {
        /* Who is not in the room leaves nothing in its log, not even a void: whoever has a stream can name any room. */
        call->access = (struct history_access){.room_id = op->room_id, .account = op->by, .done = on_access};
        call->asking = true;
        history_ask_access(history, &call->access);
    } else {
        call->state = CALL_READY;
        line_advance(calls, call->line);
    }
}

/* --------------------------------------------------------------------------------------------------------- waiting */

static bool id_equal(const struct map_link *link, const void *key)
{
    return id128_eq(container_of(link, const struct call, by_id)->id, *(const struct id128 *)key);
}

static uint64_t id_hash(struct id128 id)
{
    return map_hash(id.b, sizeof id.b);
}

static struct call *oldest_waiting(const struct calls *calls, struct id128 id)
{
    struct map_link *link = map_find(&calls->waiting, id_hash(id), id_equal, &id);

    return link ? container_of(link, struct call, by_id) : NULL;
}

static void wait_begin(struct call *call)
{
    struct calls *calls = call->calls;
    struct call *oldest = oldest_waiting(calls, call->id);

    list_remove(&call->link);
    list_push_back(&calls->all, &call->link);
    if (oldest) {
        list_push_back(&oldest->same_id, &call->same_id);
    } else {
        map_insert(&calls->waiting, id_hash(call->id), &call->by_id);
        call->in_map = true;
    }
    calls->sequenced += call->push && call->push->wait == WAIT_SEQUENCED;
    call->look_ms = uv_now(calls->history->loop) + LOOK_EVERY_MS;
    if (!uv_is_active((uv_handle_t *)calls->timer))
        uv_timer_start(calls->timer, on_tick, TICK_MS, TICK_MS);
}

static void wait_end(struct call *call)
{
    struct calls *calls = call->calls;

    if (call->state != CALL_PUBLISHED || !call->waits)
        return;
    calls->sequenced -= call->push && call->push->wait == WAIT_SEQUENCED;
    if (call->in_map) {
        map_remove(&calls->waiting, &call->by_id);
        call->in_map = false;
        if (!list_empty(&call->same_id)) {
            struct call *next = list_entry(call->same_id.next, struct call, same_id);

            map_insert(&calls->waiting, id_hash(next->id), &next->by_id);
            next->in_map = true;
        }
    }
    list_remove(&call->same_id);
}

static void call_publish(struct call *call)
{
    struct calls *calls = call->calls;
    struct history *history = calls->history;
    struct str shard;
    char id[ULID_TEXT], reply_to[REPLY_TO_MAX + 1];
    size_t reply_to_n = 0;
    enum err err = room_possible(calls, call->room_id);

    call->state = CALL_PUBLISHED;
    if (call->waits)
        wait_begin(call);
    if (!err && call->op)
        err = read_op(call);
    ulid_write(id, call->id);
    call->publishing = true;
    call->publish = (struct amqp_publish){.done = on_published};
    if (err || !history->publish) {
        call->publishing = false;
        call->publish.err = err ? err : ERR_UNAVAILABLE;
        call->deadline_ms = 0; /* answered by the next tick: never from inside the call */
        if (!uv_is_active((uv_handle_t *)calls->timer))
            uv_timer_start(calls->timer, on_tick, 0, TICK_MS);
        return;
    }
    room_id_read(call->room_id, &shard);
    if (call->waits)
        reply_to_n =
            origins_write(reply_to, cluster_self(history->cluster), call->push && call->push->wait == WAIT_SEQUENCED);
    amqp_publish(history->publish, &call->publish,
        &(struct amqp_message){
            .exchange = call->op ? STR("roomd.op") : STR("roomd.room"),
            .routing_key = shard,
            .content_type = STR("application/json"),
            .reply_to = {reply_to, reply_to_n},
            .message_id = {id, sizeof id},
            .body = buf_str(&call->body),
            .transient = false,
        });
    buf_clear(&call->body);
}

static void on_published(struct amqp_publish *publish, enum err err)
{
    struct call *call = container_of(publish, struct call, publish);

    call->publishing = false;
    if (call->state == CALL_DONE) {
        call_release(call);
        return;
    }
    if (call->waits && (!err || err == ERR_TIMEOUT || err == ERR_LOST))
        return; /* the owner's answer, or the log, tells */
    call_finish(call, err == ERR_LOST || err == ERR_TIMEOUT ? ERR_TIMEOUT : err ? ERR_UNAVAILABLE : ERR_OK);
}

static void call_answer(struct call *call, enum err err, uint64_t seq, bool duplicate, struct str result)
{
    if (call->push) {
        call->push->seq = seq;
        call->push->duplicate = duplicate;
    } else {
        call->op->seq = seq;
        call->op->duplicate = duplicate;
        call->op->result = result;
    }
    call_finish(call, err);
}

static void look_soon(struct calls *calls, struct call *call)
{
    call->look_ms = uv_now(calls->history->loop);
    calls_look(calls);
}

void calls_settled(
    struct calls *calls, struct id128 message_id, enum err result, uint64_t seq, bool duplicate, struct str meta)
{
    struct call *call;

    if (!calls->waiting.count || !(call = oldest_waiting(calls, message_id)))
        return;
    if (call->op && duplicate && result != ERR_CONFLICT) { /* the first answer is in the log */
        look_soon(calls, call);
        return;
    }
    call_answer(call, result, seq, duplicate, meta);
    call = oldest_waiting(calls, message_id);
    if (call) /* the same once more: told apart by its hash */
        look_soon(calls, call);
}

static enum err err_of_code(struct str code)
{
    for (int i = 0; i < ERR_COUNT; i++)
        if (str_is(code, err_code((enum err)i)))
            return (enum err)i;
    return ERR_UNAVAILABLE;
}

static void has_seq(struct calls *calls, struct id128 message_id, uint64_t seq)
{
    struct call *call = oldest_waiting(calls, message_id);

    if (call && call->push && call->push->wait == WAIT_SEQUENCED)
        call_answer(call, ERR_OK, seq, false, (struct str){NULL, 0});
}

void calls_shown(struct calls *calls, const struct entry *entry)
{
    struct id128 id;

    if (calls->sequenced && entry_message_id(entry, &id))
        has_seq(calls, id, entry->seq);
}

void calls_told(struct calls *calls, const struct feed_settled *settled)
{
    struct call *call = oldest_waiting(calls, settled->message_id);

    if (!call)
        return; /* not any more; or the log was faster */
    calls->told_total++;
    if (settled->what == FEED_SETTLED_LOOK)
        look_soon(calls, call);
    else if (settled->what == FEED_SETTLED_SEQUENCED)
        has_seq(calls, settled->message_id, settled->seq);
    else
        calls_settled(calls, settled->message_id, settled->code.n ? err_of_code(settled->code) : ERR_OK, settled->seq,
            settled->duplicate, settled->result);
}

/* -------------------------------------------------------------------------------------------------- asking the log */

static void on_tick(uv_timer_t *timer)
{
    struct calls *calls = timer->data;
    uint64_t now = uv_now(calls->history->loop);
    struct list over, *at;
    struct call *call;

    list_init(&over);
    list_for_each (call, &calls->all, link) {
        if (now < call->deadline_ms)
            continue;
        list_remove(&call->link);
        list_push_back(&over, &call->link);
    }
    list_for_each (call, &calls->early, link) {
        if (call->state != CALL_PUBLISHED || call->publishing)
            continue;
        list_remove(&call->link);
        list_push_back(&over, &call->link);
    }
    while ((at = list_pop_front(&over))) {
        call = list_entry(at, struct call, link);
        calls->timeouts_total += call->publish.err == ERR_OK;
        call_finish(call, call->publish.err && !call->deadline_ms ? call->publish.err : ERR_TIMEOUT);
    }
    if (list_empty(&calls->all) && list_empty(&calls->early))
        uv_timer_stop(timer);
    else
        calls_look(calls);
}

static bool wants_look(const struct calls *calls, const struct call *call)
{
    return call->state == CALL_KNOWN ? !call->looked
                                     : call->state == CALL_PUBLISHED && uv_now(calls->history->loop) >= call->look_ms;
}

static int add_looks(struct calls *calls, struct list *list, struct pg_array arrays[3])
{
    struct call *call;

    list_for_each (call, list, link) {
        if (arrays[0].count == LOOKS_MAX)
            break;
        if (!call->waits || !wants_look(calls, call))
            continue;
        call->looking = true;
        pg_array_bytes(&arrays[0], call->room_id);
        pg_array_uuid(&arrays[1], call->id);
        pg_array_i64(&arrays[2], (int64_t)call->begun_at - CLOCKS_DIFFER_MS);
    }
    return arrays[0].count;
}

static void calls_look(struct calls *calls)
{
    struct pg_array arrays[3] = {0};
    int count;

    if (calls->looking)
        return; /* its end looks again */
    pg_array_reset(&arrays[0], PG_TEXT);
    pg_array_reset(&arrays[1], PG_UUID);
    pg_array_reset(&arrays[2], PG_INT8);
    add_looks(calls, &calls->early, arrays);
    count = add_looks(calls, &calls->all, arrays);
    if (count) {
        pg_params_reset(&calls->params);
        for (size_t i = 0; i < countof(arrays); i++)
            pg_param_array(&calls->params, &arrays[i]);
        calls->looking = true;
        calls->looks_total++;
        calls->look = (struct pg_query){.statement = &look_up, .lane = PG_READ, .done = on_look};
        pg_submit(calls->history->pg, &calls->look, &calls->params);
    }
    for (size_t i = 0; i < countof(arrays); i++)
        pg_array_clear(&arrays[i]);
}

/* An op that was refused has its code first: "result":"room_full" */
static enum err result_of(struct str meta)
{
    static const char name[] = "\"result\":\"";
    const char *end;

    if (meta.n <= sizeof name - 1 || memcmp(meta.p, name, sizeof name - 1))
        return ERR_OK;
    meta.p += sizeof name - 1;
    meta.n -= sizeof name - 1;
    end = memchr(meta.p, '"', meta.n);
    return err_of_code((struct str){meta.p, end ? (size_t)(end - meta.p) : meta.n});
}

static void take_found(struct call *call, const PGresult *result, int row)
{
    uint64_t seq = (uint64_t)pg_get_i64(result, row, 3), at = (uint64_t)pg_get_i64(result, row, 4);
    struct str text = pg_get_str(result, row, 7), none = {NULL, 0};
    enum err err;

    if (pg_get_i64(result, row, 0)) { /* a dead letter */
        if (call->state == CALL_PUBLISHED)
            call_answer(call, err_of_code(text), 0, false, none);
        return;
    }
    if (pg_get_i64(result, row, 5) != call->hash) {
        call_answer(call, ERR_CONFLICT, 0, false, none);
        return;
    }
    err = call->op ? result_of(text) : ERR_OK;
    call_answer(call, err, seq, call->state == CALL_KNOWN || at < call->begun_at, text);
}

static struct call *find_looking(struct list *list, struct id128 id)
{
    struct call *call;

    list_for_each (call, list, link)
        if (call->looking && id128_eq(call->id, id))
            return call;
    return NULL;
}

static void on_look(struct pg_query *query, enum err err, const PGresult *result)
{
    struct calls *calls = container_of(query, struct calls, look);
    struct call *call;
    struct list ready, *at;

    calls->looking = false;
    for (int row = 0; !err && row < PQntuples(result); row++) {
        struct id128 id = pg_get_uuid(result, row, 2);

        while ((call = find_looking(&calls->all, id)) || (call = find_looking(&calls->early, id))) {
            call->looking = false;
            call->looked = true;
            take_found(call, result, row);
        }
    }
    list_for_each (call, &calls->all, link) {
        if (call->looking)
            call->look_ms = uv_now(calls->history->loop) + LOOK_EVERY_MS;
        call->looking = false;
    }
    list_init(&ready); /* not there: to be published, or refused */
    list_for_each (call, &calls->early, link) {
        if (!call->looking || call->state != CALL_KNOWN)
            continue;
        call->looking = false;
        call->looked = true;
        call->state = CALL_READY;
        list_remove(&call->link);
        list_push_back(&ready, &call->link);
    }
    while ((at = list_pop_front(&ready))) {
        call = list_entry(at, struct call, link);
        list_push_back(&calls->early, &call->link);
        if (call->stranger)
            call_finish(call, err ? ERR_UNAVAILABLE : ERR_NOT_MEMBER);
        else if (call->line)
            line_advance(calls, call->line);
    }
    calls_look(calls);
}

/* --------------------------------------------------------------------------------------------------------- the end */

/* The one way out. The memory stays until the broker has answered too. */
static void call_finish(struct call *call, enum err err)
{
    struct calls *calls = call->calls;
    struct history_push *push = call->push;
    struct history_op *op = call->op;
    struct line *line = call->line;
    bool held_others = line && line->calls.next != line->calls.prev;

    wait_end(call);
    line_leave(calls, call);
    list_remove(&call->link);
    call->state = CALL_DONE;
    call->push = NULL;
    call->op = NULL;
    if (push && err == ERR_BAD_REQUEST && push->quote_seq && !*push->why) /* a dead letter has the code only */
        snprintf(push->why, sizeof push->why, "the quoted seq does not exist in the room");
    if (held_others) /* before the answer, which may bring another call into the line */
        line_advance(calls, line);
    if (push) {
        push->impl = NULL;
        push->done(push, err);
    } else if (op) {
        op->impl = NULL;
        op->done(op, err);
    }
    if (!call->publishing)
        call_release(call);
}

static void call_release(struct call *call)
{
    buf_clear(&call->body);
    free(call);
}

static void free_timer(uv_handle_t *handle)
{
    free(handle);
}

static void abandon(struct list *list)
{
    struct call *call;

    list_for_each (call, list, link) {
        list_remove(&call->link);
        if (call->asking)
            history_access_forget(&call->access);
        if (call->line) {
            list_remove(&call->line_link);
            if (list_empty(&call->line->calls))
                free(call->line);
        }
        call->state = CALL_DONE;
        if (!call->publishing)
            call_release(call);
    }
}

void calls_close(struct calls *calls)
{
    pg_forget(&calls->look);
    abandon(&calls->all);
    abandon(&calls->early);
    map_clear(&calls->waiting);
    map_clear(&calls->lines);
    pg_params_clear(&calls->params);
    uv_close((uv_handle_t *)calls->timer, free_timer);
    free(calls);
}

void calls_metrics(const struct calls *calls, struct buf *out)
{
    buf_printf(out,
        "# HELP roomd_calls_total Pushes and room changes asked of this instance.\n# TYPE roomd_calls_total counter\n"
        "roomd_calls_total{call=\"push\"} %" PRIu64 "\nroomd_calls_total{call=\"op\"} %" PRIu64 "\n",
        calls->pushes_total, calls->ops_total);
    buf_printf(out,
        "# HELP roomd_call_answers_heard_total Answers that came from the owner on another instance.\n# TYPE "
        "roomd_call_answers_heard_total counter\nroomd_call_answers_heard_total %" PRIu64 "\n"
        "# HELP roomd_call_looks_total Queries for answers that did not come.\n# TYPE roomd_call_looks_total counter\n"
        "roomd_call_looks_total %" PRIu64 "\n"
        "# HELP roomd_call_timeouts_total Calls answered with timeout.\n# TYPE roomd_call_timeouts_total counter\n"
        "roomd_call_timeouts_total %" PRIu64 "\n",
        calls->told_total, calls->looks_total, calls->timeouts_total);
}
