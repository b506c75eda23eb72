/*
 * Calls over HTTP/1.1: instances in order, connections that are kept, answers with a length or in chunks. An attempt
 * that fails is made again with the same body on the next instance: every body that changes something has an id in it.
 */
#define _GNU_SOURCE /* memmem */
#include "adapter_conn.h"

#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

enum {
    ANSWER_MAX_BYTES = 64 << 20, /* 500 entries of 64 KiB, and what is around them */
    HEAD_MAX_BYTES = 64 << 10,
    IDLE_MS = 20000, /* below the service's own limit for idle connections */
    AWAY_MIN_MS = 250,
    AWAY_MAX_MS = 5000,
    ROUND_MIN_MS = 100, /* pause after all instances were tried in vain; doubles */
    ROUND_MAX_MS = 2000
};

struct http_conn {
    struct roomd_link link; /* the client's http_conns */
    struct roomd_client *client;
    struct adapter_conn *conn;
    struct adapter_call *call; /* NULL: idle */
    size_t instance;
    bool open, reused;
    int64_t idle_since;
};

/* WAITING (for its turn, or out of a pause) -> TRYING -> WAITING … -> settled */
struct adapter_call {
    struct roomd_link link; /* the client's calls_waiting, calls_trying */
    struct roomd_client *client;
    struct roomd_call *call;
    struct adapter_call_plan plan;
    struct adapter_buf body;
    struct http_conn *http;
    int64_t deadline, try_deadline, retry_at;
    uint32_t tried; /* bit per instance, of this round */
    uint32_t rounds;
    bool may_have_happened;
    int last_status; /* of the last answer that said "elsewhere, or later" */
    int64_t last_retry_after_ms;
    char last_message[256];
};

static void http_connected(void *owner);
static void http_received(void *owner);
static void http_broken(void *owner, const char *why);
static const struct adapter_conn_events http_events = {http_connected, http_received, http_broken};

/* ------------------------------------------------------------------ the ends of a call */

static struct adapter_arena *call_memory(struct roomd_call *call)
{
    if (!call->private_memory)
        call->private_memory = calloc(1, sizeof(struct adapter_arena));
    return call->private_memory;
}

static void call_finish(struct roomd_client *client, struct roomd_call *call, enum roomd_code code)
{
    call->code = code;
    call->private_call = NULL;
    adapter_list_push(&client->calls_done, &call->private_link);
    adapter_client_kick(client);
}

static void http_release(struct http_conn *http)
{
    adapter_conn_drop(http->conn);
    adapter_list_remove(&http->link);
    http->client->http_conn_count--;
    free(http);
}

static void call_free(struct adapter_call *op)
{
    adapter_list_remove(&op->link);
    op->client->call_count--;
    adapter_buf_clear(&op->body);
    free(op);
}

static void call_settle(struct adapter_call *op, enum roomd_code code)
{
    struct roomd_call *call = op->call;
    struct roomd_client *client = op->client;

    if (op->http)
        http_release(op->http);
    call_free(op);
    call_finish(client, call, code);
}

/* Its own sentence, or that of the last answer, into memory that lives as long as the call. */
static void call_set_message(struct roomd_call *call, const char *text)
{
    struct adapter_arena *arena = call_memory(call);
    char *copy = arena ? adapter_arena_get(arena, strlen(text) + 1) : NULL;

    call->message = copy ? strcpy(copy, text) : "out of memory";
}

static void call_give_up(struct adapter_call *op)
{
    struct roomd_call *call = op->call;

    call->http_status = op->last_status;
    call->retry_after_ms = op->last_retry_after_ms;
    call_set_message(call, op->last_message[0] ? op->last_message : "no instance could be reached by the deadline");
    call_settle(op, op->may_have_happened ? ROOMD_TIMEOUT : ROOMD_UNAVAILABLE);
}

void adapter_call_refuse(
    struct roomd_client *client, struct roomd_call *call, enum roomd_code code, const char *field, const char *message)
{
    call->field = field;
    call->message = message;
    call_finish(client, call, code);
}

/* ------------------------------------------------------------------ beginning */

void adapter_call_start(struct roomd_client *client, struct roomd_call *call, const struct adapter_call_plan *plan,
    struct adapter_buf *body)
{
    struct adapter_call *op = NULL;

    client->now = adapter_now();
    if (client->closing)
        adapter_call_refuse(client, call, ROOMD_CLOSED, NULL, "the client is being closed");
    else if (client->instance_count == 0)
        adapter_call_refuse(client, call, ROOMD_BAD_REQUEST, NULL, "the settings name no instance_urls");
    else if (client->call_count >= client->settings.calls_max)
        adapter_call_refuse(client, call, ROOMD_UNAVAILABLE, NULL, "too many calls are under way (calls_max)");
    else if (body->failed || !(op = calloc(1, sizeof(*op))))
        adapter_call_refuse(client, call, ROOMD_NO_MEMORY, NULL, "out of memory");
    if (!op) {
        adapter_buf_clear(body);
        return;
    }
    op->client = client;
    op->call = call;
    op->plan = *plan;
    op->body = *body;
    *body = (struct adapter_buf){0};
    op->deadline =
        client->now + plan->extra_ms + (call->deadline_ms > 0 ? call->deadline_ms : client->settings.call_ms);
    op->retry_at = client->now;
    call->private_call = op;
    client->call_count++;
    adapter_list_push(&client->calls_waiting, &op->link);
    adapter_client_kick(client);
}

void roomd_call_cancel(struct roomd_client *client, struct roomd_call *call)
{
    struct adapter_call *op = call->private_call;

    client->now = adapter_now();
    if (!op)
        return;
    call->message = "cancelled";
    call_settle(op, ROOMD_CLOSED);
}

void roomd_call_clear(struct roomd_call *call)
{
    if (call->private_memory) {
        adapter_arena_clear(call->private_memory);
        free(call->private_memory);
    }
    *call = (struct roomd_call){
        .done = call->done, .arg = call->arg, .deadline_ms = call->deadline_ms, .request_id = call->request_id};
}

/* ------------------------------------------------------------------ attempts */

/* The first that is well and not tried in this round; else, of those not tried, the one that may be back first. */
static bool pick_instance(const struct adapter_call *op, size_t *picked)
{
    const struct roomd_client *client = op->client;
    bool found = false;

    for (size_t i = 0; i < client->instance_count; i++) {
        if (op->tried >> i & 1)
            continue;
        if (client->instances[i].away_until <= client->now) {
            *picked = i;
            return true;
        }
        if (!found || client->instances[i].away_until < client->instances[*picked].away_until)
            *picked = i;
        found = true;
    }
    return found;
}

static void instance_failed(struct roomd_client *client, size_t instance)
{
    struct adapter_address *address = &client->instances[instance];
    int64_t pause = AWAY_MIN_MS << (address->failures < 5 ? address->failures : 5);

    address->failures++;
    if (pause > AWAY_MAX_MS)
        pause = AWAY_MAX_MS;
    address->away_until = client->now + pause / 2 + adapter_random_below(pause / 2);
}

static void call_wait(struct adapter_call *op)
{
    adapter_list_remove(&op->link);
    adapter_list_push_front(&op->client->calls_waiting, &op->link);
    op->http = NULL;
    adapter_client_kick(op->client);
}

/* The attempt is over without a final answer; on with the next instance, or a pause. */
static void attempt_failed(struct adapter_call *op, bool maybe, const char *why)
{
    struct roomd_client *client = op->client;
    size_t next;

    op->may_have_happened = op->may_have_happened || maybe;
    if (why)
        snprintf(op->last_message, sizeof(op->last_message), "%s", why);
    if (!pick_instance(op, &next)) {
        int64_t pause = ROUND_MIN_MS << (op->rounds < 5 ? op->rounds : 5);

        pause = pause > ROUND_MAX_MS ? ROUND_MAX_MS : pause;
        op->tried = 0;
        op->rounds++;
        op->retry_at = client->now + pause / 2 + adapter_random_below(pause / 2);
    }
    call_wait(op);
}

static void request_write(struct http_conn *http)
{
    struct adapter_call *op = http->call;
    const struct adapter_address *address = &op->client->instances[http->instance];
    struct adapter_buf *out = &http->conn->out;
    bool v6 = strchr(address->host, ':') != NULL;

    adapter_buf_text(out, "POST ");
    adapter_buf_text(out, address->path);
    adapter_buf_text(out, op->plan.path);
    adapter_buf_printf(
        out, " HTTP/1.1\r\nHost: %s%s%s:%u\r\n", v6 ? "[" : "", address->host, v6 ? "]" : "", address->port);
    adapter_buf_text(out, "Content-Type: application/json\r\nAuthorization: Bearer ");
    adapter_buf_text(out, op->client->service_key);
    adapter_buf_printf(out, "\r\nContent-Length: %zu\r\n\r\n", op->body.n);
    adapter_buf_add(out, op->body.p, op->body.n);
    if (out->failed) {
        op->call->message = "out of memory";
        call_settle(op, ROOMD_NO_MEMORY);
    } else {
        adapter_conn_flush(http->conn);
    }
}

static struct http_conn *http_idle(struct roomd_client *client, size_t instance)
{
    for (struct roomd_link *at = client->http_conns.next; at != &client->http_conns; at = at->next) {
        struct http_conn *http = container_of(at, struct http_conn, link);

        if (!http->call && http->instance == instance)
            return http;
    }
    return NULL;
}

static bool http_make_room(struct roomd_client *client)
{
    if (client->http_conn_count < client->settings.connections_max)
        return true;
    for (struct roomd_link *at = client->http_conns.next; at != &client->http_conns; at = at->next) {
        struct http_conn *http = container_of(at, struct http_conn, link);

        if (!http->call) {
            http_release(http);
            return true;
        }
    }
    return false;
}

static struct http_conn *http_open(struct roomd_client *client, size_t instance)
{
    struct http_conn *http = calloc(1, sizeof(*http));

    if (!http)
        return NULL;
    http->client = client;
    http->instance = instance;
    http->conn = adapter_conn_open(client, &client->instances[instance], &http_events, http);
    if (!http->conn) {
        free(http);
        return NULL;
    }
    http->conn->in_max = ANSWER_MAX_BYTES;
    client->http_conn_count++;
    adapter_list_push(&client->http_conns, &http->link);
    return http;
}

/* false: no connection is free, nor can there be another. */
static bool attempt_start(struct adapter_call *op)
{
    struct roomd_client *client = op->client;
    struct http_conn *http;
    size_t instance = 0;

    if (!pick_instance(op, &instance)) {
        op->tried = 0;
        instance = 0;
    }
    http = http_idle(client, instance);
    if (!http && !http_make_room(client))
        return false;
    op->tried |= 1u << instance;
    adapter_list_remove(&op->link);
    adapter_list_push(&client->calls_trying, &op->link);
    op->try_deadline = client->now + client->settings.try_ms + op->plan.extra_ms;
    if (http) {
        http->reused = true;
    } else if (!(http = http_open(client, instance))) {
        instance_failed(client, instance);
        attempt_failed(op, false, "the connection could not be made");
        return true;
    }
    http->call = op;
    op->http = http;
    if (http->open)
        request_write(http);
    return true;
}

static void http_connected(void *owner)
{
    struct http_conn *http = owner;

    http->open = true;
    if (http->call)
        request_write(http);
}

static void http_broken(void *owner, const char *why)
{
    struct http_conn *http = owner;
    struct adapter_call *op = http->call;
    bool was_open = http->open, stale = http->reused && http->conn->in.n == 0;
    struct roomd_client *client = http->client;
    size_t instance = http->instance;
    char text[200];

    snprintf(text, sizeof(text), "%s", why); /* it belongs to what goes now */
    http_release(http);
    if (!op)
        return;
    if (stale) { /* kept for too long: a fresh connection to the same instance */
        op->tried &= ~(1u << instance);
        while ((http = http_idle(client, instance)))
            http_release(http);
    } else {
        instance_failed(client, instance);
    }
    attempt_failed(op, was_open, text);
}

/* ------------------------------------------------------------------ answers */

struct http_answer {
    int status;
    size_t head_n;
    bool chunked, close, has_length;
    uint64_t length;
    int64_t retry_after_ms;
};

static bool header_is(const char *p, size_t n, const char *name, const char **value, size_t *value_n)
{
    size_t name_n = strlen(name);

    if (n <= name_n || p[name_n] != ':' || strncasecmp(p, name, name_n) != 0)
        return false;
    for (p += name_n + 1, n -= name_n + 1; n && (*p == ' ' || *p == '\t'); n--)
        p++;
    while (n && (p[n - 1] == ' ' || p[n - 1] == '\t'))
        n--;
    *value = p;
    *value_n = n;
    return true;
}

static bool header_read(struct http_answer *answer, const char *p, size_t n)
{
    const char *value;
    size_t value_n;
    uint64_t seconds;

    if (header_is(p, n, "content-length", &value, &value_n)) {
        if (!adapter_json_u64((struct roomd_text){value, value_n}, &answer->length) || answer->has_length)
            return false;
        answer->has_length = true;
    } else if (header_is(p, n, "transfer-encoding", &value, &value_n)) {
        if (value_n != 7 || strncasecmp(value, "chunked", 7) != 0)
            return false;
        answer->chunked = true;
    } else if (header_is(p, n, "connection", &value, &value_n)) {
        answer->close = value_n == 5 && strncasecmp(value, "close", 5) == 0;
    } else if (header_is(p, n, "retry-after", &value, &value_n)) {
        if (adapter_json_u64((struct roomd_text){value, value_n}, &seconds) && seconds < 86400)
            answer->retry_after_ms = (int64_t)seconds * 1000;
    }
    return true;
}

/* 1 head is whole, 0 more bytes are needed, -1 no HTTP answer. */
static int head_read(struct http_answer *answer, const char *p, size_t n)
{
    const char *end = n >= 4 ? memmem(p, n, "\r\n\r\n", 4) : NULL, *line, *next;

    *answer = (struct http_answer){0};
    if (!end)
        return n > HEAD_MAX_BYTES ? -1 : 0;
    if (n < 13 || memcmp(p, "HTTP/1.", 7) != 0 || p[8] != ' ')
        return -1;
    for (int i = 9; i < 12; i++) {
        if (p[i] < '0' || p[i] > '9')
            return -1;
        answer->status = answer->status * 10 + (p[i] - '0');
    }
    answer->close = p[7] == '0';
    answer->head_n = (size_t)(end - p) + 4;
    for (line = memmem(p, n, "\r\n", 2) + 2; line < end; line = next + 2) {
        next = memmem(line, (size_t)(end + 2 - line), "\r\n", 2);
        if (!header_read(answer, line, (size_t)(next - line)))
            return -1;
    }
    return answer->chunked && answer->has_length ? -1 : 1;
}

/* The chunks from `at` joined in place: 1 whole, 0 more is needed, -1 broken. *used: where the answer ends. */
static int chunks_join(struct adapter_buf *in, size_t at, size_t *body_n, size_t *used, bool commit)
{
    size_t to = at, from = at;

    for (;;) {
        char *line = in->p + from, *end = memmem(line, in->n - from, "\r\n", 2);
        size_t size = 0;
        int digits = 0;

        if (!end)
            return in->n - from > 1024 ? -1 : 0;
        for (char *p = line; p < end && *p != ';'; p++, digits++) {
            const char *digit = strchr("00112233445566778899aAbBcCdDeEfF", *p);

            if (!digit || digits == 8)
                return -1;
            size = size << 4 | (size_t)(digit - "00112233445566778899aAbBcCdDeEfF") / 2;
        }
        if (digits == 0 || size > ANSWER_MAX_BYTES)
            return -1;
        from = (size_t)(end - in->p) + 2;
        if (in->n < from + size + 2)
            return 0;
        if (size == 0) { /* no trailers are expected */
            *body_n = to - at;
            *used = from + 2;
            return memcmp(in->p + from, "\r\n", 2) == 0 ? 1 : -1;
        }
        if (memcmp(in->p + from + size, "\r\n", 2) != 0)
            return -1;
        if (commit)
            memmove(in->p + to, in->p + from, size);
        to += size;
        from += size + 2;
    }
}

static enum roomd_code code_of(const char *name, int status)
{
    for (int code = ROOMD_BAD_REQUEST; code <= ROOMD_TIMEOUT; code++)
        if (strcmp(name, roomd_code_name((enum roomd_code)code)) == 0)
            return (enum roomd_code)code;
    return status == 503 ? ROOMD_UNAVAILABLE : status == 504 ? ROOMD_TIMEOUT : ROOMD_OTHER;
}

static enum roomd_code error_read(struct roomd_call *call, struct roomd_text body, int status)
{
    struct adapter_arena *arena = call_memory(call);
    struct roomd_text error = adapter_json_member(body, "error"), text;
    const char *name = NULL;

    call->message = "out of memory";
    if (!arena)
        return ROOMD_NO_MEMORY;
    text = adapter_json_member(error, "code");
    if (adapter_json_type(text) == ADAPTER_JSON_STRING && !(name = adapter_json_text(arena, text)))
        return ROOMD_NO_MEMORY; /* what happened is not known: the service may have done it */
    call->message = NULL;
    text = adapter_json_member(error, "message");
    if (adapter_json_type(text) == ADAPTER_JSON_STRING)
        call->message = adapter_json_text(arena, text);
    text = adapter_json_member(error, "field");
    if (adapter_json_type(text) == ADAPTER_JSON_STRING)
        call->field = adapter_json_text(arena, text);
    if (!call->message)
        call_set_message(call, "an answer without a sentence");
    if (!name)
        return status == 503 ? ROOMD_UNAVAILABLE : status == 504 ? ROOMD_TIMEOUT : ROOMD_BAD_ANSWER;
    return code_of(name, status);
}

/* The whole answer is there. The connection is free, or gone, when this returns. */
static void answer_take(
    struct roomd_client *client, struct adapter_call *op, const struct http_answer *answer, struct roomd_text body)
{
    struct roomd_call *call = op->call;
    struct adapter_arena *arena = call_memory(call);
    bool no_memory = !arena;
    enum roomd_code code;

    call->http_status = answer->status;
    call->retry_after_ms = answer->retry_after_ms;
    if (!adapter_json_valid(body.p, body.n, ADAPTER_JSON_DEPTH_MAX))
        body.n = 0;
    if (answer->status == 200) {
        bool good = arena && adapter_json_type(body) == ADAPTER_JSON_OBJECT &&
                    adapter_call_answer(op->plan.reader, op->plan.answer, arena, body, &no_memory);

        call->message = good ? "" : no_memory ? "out of memory" : "the answer is not what this call answers";
        call_settle(op, good ? ROOMD_OK : no_memory ? ROOMD_NO_MEMORY : ROOMD_BAD_ANSWER);
        return;
    }
    code = error_read(call, body, answer->status);
    if (code != ROOMD_UNAVAILABLE && code != ROOMD_TIMEOUT) {
        call_settle(op, code);
        return;
    }
    op->last_status = answer->status;
    op->last_retry_after_ms = answer->retry_after_ms;
    attempt_failed(op, code == ROOMD_TIMEOUT, call->message);
    call->field = NULL;
    call->message = NULL;
    (void)client;
}

/* 503: this instance is drained or cut off; the next may be better. */
static void instance_answered(struct roomd_client *client, size_t instance, int status)
{
    if (status == 503) {
        instance_failed(client, instance);
    } else {
        client->instances[instance].failures = 0;
        client->instances[instance].away_until = 0;
    }
}

static void http_received(void *owner)
{
    struct http_conn *http = owner;
    struct roomd_client *client = http->client;
    struct adapter_call *op = http->call;
    struct adapter_buf *in = &http->conn->in, body = {0};
    struct http_answer answer;
    size_t body_n = 0, used = 0;
    int whole = op ? head_read(&answer, in->p, in->n) : -1;

    if (whole == 1 && answer.chunked) {
        whole = chunks_join(in, answer.head_n, &body_n, &used, false);
        if (whole == 1)
            chunks_join(in, answer.head_n, &body_n, &used, true);
    } else if (whole == 1) {
        body_n = answer.has_length && answer.length <= ANSWER_MAX_BYTES ? (size_t)answer.length : 0;
        used = answer.head_n + body_n;
        whole = !answer.has_length || answer.length > ANSWER_MAX_BYTES ? -1 : in->n >= used;
    }
    if (whole == 0 && in->n < ANSWER_MAX_BYTES)
        return;
    if (whole != 1) { /* words nobody asked for, or no HTTP */
        http_broken(http, "the instance does not answer in HTTP/1.1");
        return;
    }
    instance_answered(client, http->instance, answer.status);
    body = *in; /* the connection may go while its bytes are read */
    *in = (struct adapter_buf){0};
    op->http = NULL;
    http->call = NULL;
    http->idle_since = client->now;
    if (answer.close || body.n > used)
        http_release(http);
    answer_take(client, op, &answer, (struct roomd_text){body.p + answer.head_n, body_n});
    adapter_buf_clear(&body);
    adapter_client_kick(client);
}

/* ------------------------------------------------------------------ turns */

static void calls_hand_out(struct roomd_client *client)
{
    struct roomd_link due;

    /* not those that are refused meanwhile: a caller that tries again at once would never end */
    adapter_list_init(&due);
    adapter_list_splice(&due, &client->calls_done);
    while (!adapter_list_empty(&due)) {
        struct roomd_call *call = container_of(due.next, struct roomd_call, private_link);

        adapter_list_remove(&call->private_link);
        if (!call->message)
            call->message = "";
        call->finished = true;
        if (call->done)
            call->done(call);
    }
}

void adapter_calls_turn(struct roomd_client *client)
{
    struct roomd_link *at = client->calls_waiting.next, *next;

    for (; at != &client->calls_waiting; at = next) {
        struct adapter_call *op = container_of(at, struct adapter_call, link);

        next = at->next;
        if (op->retry_at <= client->now && op->deadline > client->now && !attempt_start(op))
            break;
    }
    calls_hand_out(client);
}

void adapter_calls_tick(struct roomd_client *client)
{
    struct roomd_link *at, *next;

    for (at = client->calls_trying.next; at != &client->calls_trying; at = next) {
        struct adapter_call *op = container_of(at, struct adapter_call, link);

        next = at->next;
        adapter_conn_tick(op->http->conn);
        if (op->http && client->now >= (op->deadline < op->try_deadline ? op->deadline : op->try_deadline)) {
            bool sent = op->http->open;

            instance_failed(client, op->http->instance);
            http_release(op->http);
            attempt_failed(op, sent, "an instance did not answer in time");
        }
    }
    for (at = client->calls_waiting.next; at != &client->calls_waiting; at = next) {
        struct adapter_call *op = container_of(at, struct adapter_call, link);

        next = at->next;
        if (client->now >= op->deadline)
            call_give_up(op);
    }
    for (at = client->http_conns.next; at != &client->http_conns; at = next) {
        struct http_conn *http = container_of(at, struct http_conn, link);

        next = at->next;
        if (!http->call && client->now - http->idle_since > IDLE_MS)
            http_release(http);
    }
}

void adapter_calls_close(struct roomd_client *client)
{
    struct roomd_link *lists[] = {&client->calls_trying, &client->calls_waiting};

    for (size_t i = 0; i < countof(lists); i++)
        while (!adapter_list_empty(lists[i])) {
            struct adapter_call *op = container_of(lists[i]->next, struct adapter_call, link);

            op->call->message = "the client was closed";
            call_settle(op, ROOMD_CLOSED);
        }
    while (!adapter_list_empty(&client->http_conns))
        http_release(container_of(client->http_conns.next, struct http_conn, link));
    while (!adapter_list_empty(&client->calls_done)) /* done() may start others: they are refused, and end here too */
        calls_hand_out(client);
}
