/* Open streams: one NDJSON connection each, endpoints in order; and the order itself. See roomd_adapter.h. */
#define _GNU_SOURCE /* memmem */
#include "adapter_conn.h"

#include <stdio.h>
#include <stdlib.h>
#include <strings.h>
#include <time.h>

enum {
    ENDPOINTS_MAX = 8,
    HEAD_MAX_BYTES = 64 << 10,
    LINE_MAX_BYTES = 4 << 20, /* an event: 64 KiB of content, and what is around it; or a long hello */
    OPEN_MS = 3000,           /* one endpoint's time to begin its answer */
    REFUSAL_MAX_BYTES = 64 << 10
};

/* WAITING (for its time) -> OPENING -> OPEN -> over; OPENING -failed-> WAITING */
enum stream_state { WAITING, OPENING, OPEN };

struct roomd_stream {
    struct roomd_link link; /* the client's streams */
    struct roomd_client *client;
    struct roomd_stream_events events;
    void *arg;
    struct adapter_arena memory;
    struct roomd_history_opened answer; /* its texts are in memory */
    struct roomd_endpoint endpoints[ENDPOINTS_MAX];
    struct roomd_walk walk;
    struct adapter_conn *conn;
    struct adapter_address address;
    enum stream_state state;
    int64_t deadline; /* WAITING: when to try; OPENING: when to give this endpoint up */
    int status;
    bool chunked, in_event, closed;
    size_t chunk_left; /* of the chunk whose bytes come next */
    bool chunk_ends;   /* its CR LF comes next */
    struct adapter_buf line;
};

static void stream_connected(void *owner);
static void stream_received(void *owner);
static void stream_broken(void *owner, const char *why);
static const struct adapter_conn_events conn_events = {stream_connected, stream_received, stream_broken};

/* ------------------------------------------------------------------ the order of endpoints */

size_t roomd_walk_next(
    struct roomd_walk *walk, const struct roomd_history_opened *answer, uint64_t random_number, int64_t *wait_ms)
{
    size_t count = answer->endpoint_count ? answer->endpoint_count : 1;
    uint64_t round = walk->tries / count, most = answer->backoff_base_ms ? answer->backoff_base_ms : 500;
    uint64_t factor = answer->backoff_factor > 1 ? answer->backoff_factor : 2;
    uint64_t limit = answer->backoff_max_ms ? answer->backoff_max_ms : 20000;
    size_t next = walk->tries % count;

    *wait_ms = 0;
    if (round > 0 && next == 0) { /* once a round: full jitter, so that many do not come back in the same moment */
        for (uint64_t i = 1; i < round && most < limit; i++)
            most *= factor;
        *wait_ms = (int64_t)(random_number % ((most < limit ? most : limit) + 1));
    }
    walk->tries++;
    return next;
}

/* ------------------------------------------------------------------ life */

static const char *keep(struct adapter_arena *memory, const char *text, bool *failed)
{
    char *copy = text ? adapter_arena_get(memory, strlen(text) + 1) : NULL;

    *failed = *failed || (text && !copy);
    return copy ? strcpy(copy, text) : NULL;
}

static void stream_free(struct roomd_stream *stream)
{
    if (stream->conn)
        adapter_conn_drop(stream->conn);
    adapter_list_remove(&stream->link);
    adapter_buf_clear(&stream->line);
    adapter_arena_clear(&stream->memory);
    free(stream);
}

struct roomd_stream *roomd_stream_open(struct roomd_client *client, const struct roomd_history_opened *answer,
    const struct roomd_stream_events *events, void *arg)
{
    struct roomd_stream *stream = calloc(1, sizeof(*stream));
    bool failed = false;

    if (!stream)
        return NULL;
    client->now = adapter_now();
    stream->client = client;
    stream->events = *events;
    stream->arg = arg;
    stream->answer = *answer;
    stream->answer.endpoint_count = answer->endpoint_count < ENDPOINTS_MAX ? answer->endpoint_count : ENDPOINTS_MAX;
    for (size_t i = 0; i < stream->answer.endpoint_count; i++)
        stream->endpoints[i].url = keep(&stream->memory, answer->endpoints[i].url, &failed);
    stream->answer.endpoints = stream->endpoints;
    stream->answer.ticket = keep(&stream->memory, answer->ticket, &failed);
    stream->answer.ndjson_path = keep(&stream->memory, answer->ndjson_path, &failed);
    stream->deadline = client->now;
    adapter_list_push(&client->streams, &stream->link);
    if (failed || !stream->answer.ticket || !stream->answer.ndjson_path) {
        stream_free(stream);
        return NULL;
    }
    adapter_client_kick(client);
    return stream;
}

void roomd_stream_close(struct roomd_stream *stream)
{
    stream->closed = true;
    if (!stream->in_event)
        stream_free(stream);
}

static void stream_end(struct roomd_stream *stream, enum roomd_code code, const char *message)
{
    struct roomd_stream_events events = stream->events;
    void *arg = stream->arg;
    char copy[256];

    snprintf(copy, sizeof(copy), "%s", message);
    if (stream->closed)
        events.ended = NULL;
    stream_free(stream);
    if (events.ended)
        events.ended(arg, code, copy);
}

static int64_t unix_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Choose the next endpoint and when to try it. */
static void stream_walk(struct roomd_stream *stream)
{
    int64_t wait_ms;
    size_t next;

    if (stream->conn)
        adapter_conn_drop(stream->conn);
    stream->conn = NULL;
    stream->line.n = 0;
    next = roomd_walk_next(&stream->walk, &stream->answer, adapter_random(), &wait_ms);
    stream->state = WAITING;
    stream->deadline = stream->client->now + wait_ms;
    if (next >= stream->answer.endpoint_count || !stream->endpoints[next].url ||
        !adapter_address_read(
            &stream->address, stream->endpoints[next].url, strlen(stream->endpoints[next].url), false))
        stream->address.host[0] = '\0';
}

static void stream_try(struct roomd_stream *stream)
{
    if (stream->answer.expires_at && unix_ms() + stream->deadline - stream->client->now >= stream->answer.expires_at) {
        stream_end(stream, ROOMD_UNAVAILABLE, "no endpoint opened before the ticket ran out; ask for a new one");
        return;
    }
    stream->state = OPENING;
    stream->deadline = stream->client->now + OPEN_MS;
    stream->status = 0;
    stream->chunked = stream->chunk_ends = false;
    stream->chunk_left = 0;
    if (stream->address.host[0])
        stream->conn = adapter_conn_open(stream->client, &stream->address, &conn_events, stream);
    if (!stream->conn)
        stream_walk(stream);
}

static void stream_tick(struct roomd_stream *stream)
{
    int64_t now = stream->client->now;
    int64_t silent_ms = (int64_t)(stream->answer.heartbeat_ms ? stream->answer.heartbeat_ms : 20000) * 2;

    switch (stream->state) {
    case WAITING:
        if (stream->walk.tries == 0)
            stream_walk(stream);
        if (now >= stream->deadline)
            stream_try(stream);
        break;
    case OPENING:
        adapter_conn_tick(stream->conn);
        if (stream->state == OPENING && now >= stream->deadline)
            stream_walk(stream);
        break;
    case OPEN:
        if (now - stream->conn->heard > silent_ms + 1000)
            stream_end(stream, ROOMD_OK, "the stream fell silent");
        break;
    }
}

void adapter_streams_tick(struct roomd_client *client)
{
    struct roomd_link todo;

    adapter_list_init(&todo); /* ended() may close any other stream: it leaves the list it is in */
    adapter_list_splice(&todo, &client->streams);
    while (!adapter_list_empty(&todo)) {
        struct roomd_stream *stream = container_of(todo.next, struct roomd_stream, link);

        adapter_list_remove(&stream->link);
        adapter_list_push(&client->streams, &stream->link);
        stream_tick(stream);
    }
}

void adapter_streams_close(struct roomd_client *client)
{
    while (!adapter_list_empty(&client->streams))
        stream_end(
            container_of(client->streams.next, struct roomd_stream, link), ROOMD_CLOSED, "the client was closed");
}

/* ------------------------------------------------------------------ HTTP */

static void stream_connected(void *owner)
{
    struct roomd_stream *stream = owner;
    struct adapter_buf *out = &stream->conn->out;
    bool v6 = strchr(stream->address.host, ':') != NULL;

    adapter_buf_text(out, "GET ");
    adapter_buf_text(out, stream->address.path);
    adapter_buf_text(out, stream->answer.ndjson_path);
    adapter_buf_printf(out, " HTTP/1.1\r\nHost: %s%s%s:%u\r\nAuthorization: Bearer ", v6 ? "[" : "",
        stream->address.host, v6 ? "]" : "", stream->address.port);
    adapter_buf_text(out, stream->answer.ticket);
    adapter_buf_text(out, "\r\n\r\n");
    adapter_conn_flush(stream->conn);
}

/* 1 read and consumed, 0 more is needed, -1 no HTTP. */
static int head_take(struct roomd_stream *stream)
{
    struct adapter_buf *in = &stream->conn->in;
    const char *end = in->n > 15 ? memmem(in->p, in->n, "\r\n\r\n", 4) : NULL;

    if (!end)
        return in->n > HEAD_MAX_BYTES ? -1 : 0;
    if (memcmp(in->p, "HTTP/1.", 7) != 0 || in->p[8] != ' ')
        return -1;
    stream->status = (int)strtol(in->p + 9, NULL, 10);
    for (const char *line = in->p; line < end;
         line = (const char *)memmem(line, (size_t)(end + 2 - line), "\r\n", 2) + 2)
        stream->chunked =
            stream->chunked || (end - line >= 26 && strncasecmp(line, "transfer-encoding: chunked", 26) == 0);
    adapter_buf_consume(in, (size_t)(end - in->p) + 4);
    return 1;
}

/* The lines that are whole; false: the stream is gone, or must go. */
static bool lines_take(struct roomd_stream *stream)
{
    size_t used = 0;
    char *end;

    stream->in_event = true;
    while (!stream->closed && stream->line.n && (end = memchr(stream->line.p + used, '\n', stream->line.n - used))) {
        size_t n = (size_t)(end - stream->line.p) - used;

        if (n && stream->events.event)
            stream->events.event(stream->arg, stream->line.p + used, n);
        used += n + 1;
    }
    stream->in_event = false;
    if (stream->closed) {
        stream_free(stream);
        return false;
    }
    adapter_buf_consume(&stream->line, used);
    if (stream->line.n > LINE_MAX_BYTES || stream->line.failed) {
        stream_end(stream, stream->line.failed ? ROOMD_NO_MEMORY : ROOMD_BAD_ANSWER,
            stream->line.failed ? "out of memory" : "an event without end");
        return false;
    }
    return true;
}

/* The next piece of body out of the connection's bytes: 1 some, 0 none yet, -1 the end, -2 nonsense. */
static int body_take(struct roomd_stream *stream)
{
    struct adapter_buf *in = &stream->conn->in;
    const char *end;
    size_t n;

    if (stream->chunk_ends) {
        if (in->n < 2)
            return 0;
        stream->chunk_ends = false;
        adapter_buf_consume(in, 2);
    }
    if (stream->chunked && stream->chunk_left == 0) {
        char *stop;

        end = in->n ? memmem(in->p, in->n, "\r\n", 2) : NULL;
        if (!end)
            return in->n > 1024 ? -2 : 0;
        stream->chunk_left = strtoul(in->p, &stop, 16);
        if (stop == in->p || stream->chunk_left > 1 << 30)
            return -2;
        adapter_buf_consume(in, (size_t)(end - in->p) + 2);
        if (stream->chunk_left == 0)
            return -1;
    }
    n = !stream->chunked || stream->chunk_left > in->n ? in->n : stream->chunk_left;
    if (n == 0)
        return 0;
    adapter_buf_add(&stream->line, in->p, n);
    adapter_buf_consume(in, n);
    if (stream->chunked) {
        stream->chunk_left -= n;
        stream->chunk_ends = stream->chunk_left == 0;
    }
    return 1;
}

static enum roomd_code refusal_code(struct roomd_stream *stream, const char **message)
{
    struct roomd_text body = {stream->line.p, stream->line.n}, error, text;
    const char *name = NULL;

    while (body.n && body.p[body.n - 1] == '\n')
        body.n--;
    *message = "refused";
    if (!adapter_json_valid(body.p, body.n, ADAPTER_JSON_DEPTH_MAX))
        return ROOMD_BAD_ANSWER;
    error = adapter_json_member(body, "error");
    text = adapter_json_member(error, "message");
    if (adapter_json_type(text) == ADAPTER_JSON_STRING)
        *message = adapter_json_text(&stream->memory, text);
    text = adapter_json_member(error, "code");
    if (adapter_json_type(text) == ADAPTER_JSON_STRING)
        name = adapter_json_text(&stream->memory, text);
    *message = *message ? *message : "refused";
    for (int code = ROOMD_BAD_REQUEST; name && code <= ROOMD_TIMEOUT; code++)
        if (strcmp(name, roomd_code_name((enum roomd_code)code)) == 0)
            return (enum roomd_code)code;
    return ROOMD_OTHER;
}

/* A refusal's body may come in pieces; what cannot be mended by another endpoint ends the stream. */
static bool refusal_take(struct roomd_stream *stream, bool whole)
{
    const char *message;
    enum roomd_code code;

    if (stream->status == 503 || stream->status == 429) {
        stream_walk(stream);
        return false;
    }
    if (!whole && stream->line.n < REFUSAL_MAX_BYTES &&
        !(stream->line.n && adapter_json_valid(stream->line.p, stream->line.n, ADAPTER_JSON_DEPTH_MAX)))
        return true;
    code = refusal_code(stream, &message);
    stream_end(stream, code, message);
    return false;
}

static void stream_received(void *owner)
{
    struct roomd_stream *stream = owner;
    int got = 1;

    if (stream->status == 0) {
        got = head_take(stream);
        if (got < 0)
            stream_walk(stream);
        if (got <= 0)
            return;
        stream->state = stream->status == 200 ? OPEN : OPENING;
    }
    while ((got = body_take(stream)) == 1) {
        bool goes_on = stream->status == 200 ? lines_take(stream) : refusal_take(stream, false);

        if (!goes_on)
            return;
    }
    if (got < 0 && stream->status == 200)
        stream_end(stream, got == -1 ? ROOMD_OK : ROOMD_BAD_ANSWER, "the stream ended");
    else if (got < 0)
        refusal_take(stream, true);
}

static void stream_broken(void *owner, const char *why)
{
    struct roomd_stream *stream = owner;

    if (stream->state == OPEN)
        stream_end(stream, ROOMD_OK, why);
    else if (stream->status)
        refusal_take(stream, true);
    else
        stream_walk(stream);
}
