/*
 * Opening a stream: what the request asks for, whether its ticket allows that, and the answer that turns the connection
 * into a stream. SSE, NDJSON and poll are refused by HTTP status; WebSocket by 101, one `error` event and a close code,
 * because a browser cannot read a refused upgrade.
 */
#include "core.h"
#include "room/base/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#define POSITIONS_MAX 1000 /* given by one request */
#define POSITION_TEXT_MAX 65536
#define SUBPROTOCOL "roomd.v1.json"

/* A request to open, as far as it was read. */
struct asked {
    struct proxy *proxy;
    struct http_request *request;
    struct http_reply *reply;
    enum transport transport;
    char accept_key[29];
    bool subprotocol;
    struct str ticket_text;
    struct buf scratch; /* the ticket, when it came %-encoded */
    struct roomd_ticket ticket;
    struct position {
        struct str room_id;
        struct cursor cursor;
    } * positions;
    size_t position_count;
    struct buf position_text; /* what the positions point into */
    uint64_t resume_ms;
    bool deferred; /* ?after=* */
};

static bool handshake_read(struct asked *asked);
static void ticket_find(struct asked *asked);
static const char *positions_read(struct asked *asked);
static void refuse(struct asked *asked, enum err err, const char *message);
static void stream_open(struct asked *asked);

void open_serve(struct proxy *proxy, struct http_request *request, struct http_reply *reply, enum transport transport)
{
    struct asked *asked = xcalloc(1, sizeof *asked); /* with its ticket too large for the stack of a deep call */
    const char *why = NULL;
    enum err err;

    asked->proxy = proxy;
    asked->request = request;
    asked->reply = reply;
    asked->transport = transport;
    if (handshake_read(asked)) {
        ticket_find(asked);
        if (!asked->ticket_text.n)
            refuse(asked, ERR_UNAUTHENTICATED,
                "send a ticket as Authorization: Bearer, as WebSocket subprotocol ticket.<ticket>, or as ?ticket=");
        else if ((err = ticket_check(proxy, &asked->ticket, asked->ticket_text, &why)))
            refuse(asked, err, why);
        else if ((why = positions_read(asked)))
            refuse(asked, ERR_BAD_REQUEST, why);
        else if (proxy->draining)
            refuse(asked, ERR_UNAVAILABLE, "this instance is about to stop; open at another one");
        else if (proxy->stream_count >= (uint32_t)proxy->config->streams_max)
            refuse(asked, ERR_UNAVAILABLE,
                "this instance carries all the streams it may; try another one, or again in a moment");
        else if (!admission_take(proxy))
            refuse(asked, ERR_UNAVAILABLE,
                "more streams come than this instance takes at once; try another one, or again when it is your turn");
        else
            stream_open(asked);
    }
    free(asked->positions);
    buf_clear(&asked->position_text);
    buf_clear(&asked->scratch);
    free(asked);
}

/* -------------------------------------------------------------- the request */

static bool list_has(struct str list, struct str word)
{
    struct str item;

    while (str_next_item(&list, &item))
        if (str_eq(item, word))
            return true;
    return false;
}

static bool word_in(struct str list, const char *word)
{
    size_t length = strlen(word);

    for (size_t i = 0; i + length <= list.n; i++)
        if (strncasecmp(list.p + i, word, length) == 0)
            return true;
    return false;
}

/* Cross-site pages must not open streams with a user's ticket in their hands; what is no browser sends no Origin. */
static bool origin_allowed(const struct asked *asked)
{
    struct str origin = http_header(asked->request, "origin");

    return !origin.p || list_has(str_of(asked->proxy->config->allowed_origins), origin);
}

static bool websocket_handshake(struct asked *asked)
{
    const struct http_request *request = asked->request;
    struct str protocols = http_header(request, "sec-websocket-protocol");

    if (!word_in(http_header(request, "upgrade"), "websocket") || request->version < 11) {
        http_reply_error(
            asked->reply, ERR_BAD_REQUEST, "upgrade", "this path speaks WebSocket; send Upgrade: websocket");
        return false;
    }
    if (!str_is(http_header(request, "sec-websocket-version"), "13")) {
        http_reply_header(asked->reply, "sec-websocket-version", "13");
        http_reply_json(asked->reply, 426,
            STR("{\"error\":{\"code\":\"bad_request\",\"message\":\"only version 13 of WebSocket is spoken "
                "here\",\"field\":\"sec-websocket-version\"}}"));
        return false;
    }
    if (!ws_accept_key(http_header(request, "sec-websocket-key"), asked->accept_key)) {
        http_reply_error(asked->reply, ERR_BAD_REQUEST, "sec-websocket-key", "the key is 16 bytes in base64");
        return false;
    }
    asked->subprotocol = list_has(protocols, STR(SUBPROTOCOL));
    if (protocols.n && !asked->subprotocol) {
        http_reply_error(
            asked->reply, ERR_BAD_REQUEST, "sec-websocket-protocol", "offer " SUBPROTOCOL " when offering any");
        return false;
    }
    return true;
}

static bool handshake_read(struct asked *asked)
{
    enum http_method method = asked->request->method;
    bool ws = asked->transport == TRANSPORT_WS;

    if (ws ? method != HTTP_GET : method != HTTP_GET && method != HTTP_POST) {
        http_reply_header(asked->reply, "allow", ws ? "GET" : "GET, POST");
        http_reply_error(asked->reply, ERR_METHOD_NOT_ALLOWED, NULL, NULL);
        return false;
    }
    if (!origin_allowed(asked)) {
        http_reply_error(asked->reply, ERR_FORBIDDEN, "origin",
            "pages of this origin may not open streams here; see allowed_origins");
        return false;
    }
    return !ws || websocket_handshake(asked);
}

static void ticket_find(struct asked *asked)
{
    struct str bearer = http_header(asked->request, "authorization");
    struct str list = http_header(asked->request, "sec-websocket-protocol"), item;

    if (bearer.n > 7 && strncasecmp(bearer.p, "bearer ", 7) == 0) {
        asked->ticket_text = (struct str){bearer.p + 7, bearer.n - 7};
        return;
    }
    while (asked->transport == TRANSPORT_WS && str_next_item(&list, &item))
        if (item.n > 7 && memcmp(item.p, "ticket.", 7) == 0) {
            asked->ticket_text = (struct str){item.p + 7, item.n - 7};
            return;
        }
    if (!http_query_param(asked->request, "ticket", 0, &asked->scratch, &asked->ticket_text))
        asked->ticket_text = (struct str){NULL, 0};
}

enum err ticket_check(struct proxy *proxy, struct roomd_ticket *ticket, struct str text, const char **why)
{
    enum roomd_ticket_result result = roomd_ticket_verify(
        ticket, text.p, text.n, &proxy->keys, proxy_unix_ms(proxy), (uint64_t)proxy->config->ticket_ttl_ms);

    *why = roomd_ticket_sentence(result);
    if (result == ROOMD_TICKET_EXPIRED)
        return ERR_TICKET_EXPIRED;
    if (result || !account_valid((struct str){ticket->account.p, ticket->account.n}))
        return ERR_UNAUTHENTICATED;
    return ERR_OK;
}

/* ---------------------------------------------------------------- positions */

bool position_or_room_read(struct str text, struct str *room_id, struct cursor *cursor, bool *has_cursor)
{
    struct str shard;

    *has_cursor = text.n && memchr(text.p, '@', text.n);
    if (*has_cursor ? !position_read(text, room_id, cursor) : (*room_id = text, text.n == 0))
        return false;
    return room_id_read(*room_id, &shard);
}

/* "~<ms>" as in SSE ids, or "~@<ms>" as among the positions of a poll. */
static bool time_read(struct str text, uint64_t *ms)
{
    size_t mark = text.n > 1 && text.p[1] == '@' ? 2 : 1;
    struct cursor bare;

    if (text.n <= mark || memchr(text.p, ':', text.n) ||
        !cursor_read(&bare, (struct str){text.p + mark, text.n - mark}))
        return false;
    *ms = bare.seq;
    return true;
}

static const char *position_take(struct asked *asked, struct str text)
{
    struct position position;
    bool has_cursor;

    if (str_is(text, "*") && asked->transport == TRANSPORT_WS) {
        asked->deferred = true;
        return NULL;
    }
    if (text.n && text.p[0] == '~' && asked->transport != TRANSPORT_WS)
        return time_read(text, &asked->resume_ms) ? NULL : "a time to resume from is ~ and milliseconds";
    if (!position_or_room_read(text, &position.room_id, &position.cursor, &has_cursor) || !has_cursor)
        return "a position is <room_id>@<epoch>:<seq>";
    if (asked->position_count == POSITIONS_MAX)
        return "at most 1000 positions";
    asked->positions = xrealloc(asked->positions, (asked->position_count + 1) * sizeof position);
    asked->positions[asked->position_count++] = position;
    return NULL;
}

static const char *positions_take(struct asked *asked, struct str list)
{
    const char *why = NULL;

    while (list.n && !why) {
        const char *comma = memchr(list.p, ',', list.n);
        size_t n = comma ? (size_t)(comma - list.p) : list.n;

        why = position_take(asked, (struct str){list.p, n});
        list.p += n + (comma != NULL);
        list.n -= n + (comma != NULL);
    }
    return why;
}

static const char *body_positions(struct asked *asked)
{
    struct json body, item, after;
    struct json_walk walk;
    const char *why = NULL;
    struct str text;

    if (!asked->request->has_body || !asked->request->body.n)
        return NULL;
    if (!json_check(asked->request->body, &body, &why))
        return why;
    if (body.type != JSON_OBJECT)
        return "the body is an object: {\"after\": [<position>, ...]}";
    after = json_get(body, "after");
    if (after.type == JSON_NONE)
        return NULL;
    if (after.type != JSON_ARRAY)
        return "after is an array of positions";
    for (walk = json_walk(after); !why && json_next_item(&walk, &item);) {
        if (item.type != JSON_STRING || item.escaped) /* no position holds what needs an escape */
            return "after is an array of positions";
        if (!json_string(item, &asked->scratch, &text))
            return "after is an array of positions";
        why = position_take(asked, text);
    }
    return why;
}

/* Later ones win: the ticket's, then ?after= or the body, then Last-Event-ID, which is what a reconnecting EventSource
 * really saw. */
static const char *positions_read(struct asked *asked)
{
    struct str last = http_header(asked->request, "last-event-id"), value;
    struct buf scratch = {0};
    const char *why = body_positions(asked);

    for (size_t i = 0; !why && i < POSITIONS_MAX; i++) {
        buf_reset(&scratch);
        if (!http_query_param(asked->request, "after", i, &scratch, &value))
            break;
        /* Positions point into it until the stream is open: kept as a copy of its own, never moved. */
        if (!asked->position_text.capacity)
            buf_reserve(&asked->position_text, POSITION_TEXT_MAX);
        if (asked->position_text.capacity - asked->position_text.n < value.n) {
            why = "the positions are too long for a URL; POST them";
            break;
        }
        memcpy(asked->position_text.p + asked->position_text.n, value.p, value.n);
        why = positions_take(asked, (struct str){asked->position_text.p + asked->position_text.n, value.n});
        asked->position_text.n += value.n;
    }
    buf_clear(&scratch);
    if (!why && last.n && asked->transport != TRANSPORT_WS)
        why = positions_take(asked, last);
    return why;
}

/* ---------------------------------------------------------------- refusals */

static uint16_t close_code_for(enum err err)
{
    switch (err) {
    case ERR_TICKET_EXPIRED:
        return CLOSE_TICKET_EXPIRED;
    case ERR_UNAUTHENTICATED:
        return CLOSE_BAD_TICKET;
    case ERR_NOT_MEMBER:
    case ERR_NO_SUCH_ROOM:
    case ERR_ROOM_GONE:
    case ERR_FORBIDDEN:
        return CLOSE_NO_ROOM;
    case ERR_BAD_REQUEST:
        return 4504;
    default:
        return CLOSE_OVERLOADED;
    }
}

static void ws_take_over(
    struct stream *stream, struct http_reply *reply, const char *accept_key, bool subprotocol, struct str head)
{
    const char *headers[] = {
        "upgrade", "websocket", "sec-websocket-accept", accept_key, "sec-websocket-protocol", SUBPROTOCOL, NULL};

    if (!subprotocol)
        headers[4] = NULL;
    http_reply_take_over(reply, 101, headers, head, &ws_wire_events, stream, stream_taken);
}

static void ws_refuse(struct stream *stream, struct http_reply *reply, const char *accept_key, bool subprotocol,
    enum err err, const char *message)
{
    /* After 101 the error and the close frame go out with the stream's first write. */
    stream_refuse(stream, stream->kicked ? CLOSE_KICKED : close_code_for(err), err, message,
        err_http(err) == 503 ? admission_later_ms(stream->proxy) : 0);
    ws_take_over(stream, reply, accept_key, subprotocol, STR(""));
}

static void http_refuse(struct proxy *proxy, struct http_reply *reply, enum err err, const char *message)
{
    struct buf json = {0};
    char seconds[16];

    if (err_http(err) != 503) {
        http_reply_error(reply, err, NULL, "%s", message && *message ? message : err_sentence(err));
        return;
    }
    snprintf(seconds, sizeof seconds, "%" PRIu32, (admission_later_ms(proxy) + 999) / 1000);
    http_reply_header(reply, "retry-after", seconds);
    buf_printf(&json, "{\"error\":{\"code\":\"%s\",\"message\":", err_code(err));
    buf_json_string(&json, str_of(message && *message ? message : err_sentence(err)));
    buf_text(&json, "}}");
    http_reply_json(reply, 503, buf_str(&json));
    buf_clear(&json);
}

/* A proxy with a further endpoint to try reads statuses, not close codes. */
static bool hop_goes_on(const struct asked *asked, enum err err)
{
    return err == ERR_UNAVAILABLE && str_is(http_header(asked->request, "roomd-refuse"), "status");
}

static void refuse(struct asked *asked, enum err err, const char *message)
{
    asked->proxy->count.refused++;
    if (asked->transport == TRANSPORT_WS && !hop_goes_on(asked, err))
        ws_refuse(stream_new(asked->proxy, TRANSPORT_WS, STR("")), asked->reply, asked->accept_key, asked->subprotocol,
            err, message);
    else
        http_refuse(asked->proxy, asked->reply, err, message);
}

/* The attach found nothing to carry. */
void open_refuse(struct attach *attach, enum err err, const char *message)
{
    struct stream *stream = attach->stream;
    struct http_reply *reply = attach->reply;
    char accept_key[29];
    bool subprotocol = attach->subprotocol;

    memcpy(accept_key, attach->accept_key, sizeof accept_key);
    attach->reply = NULL;
    attach_free(attach);
    stream->proxy->count.refused++;
    if (stream->transport == TRANSPORT_WS) {
        ws_refuse(stream, reply, accept_key, subprotocol, err, message);
    } else {
        http_refuse(stream->proxy, reply, err, message);
        stream_free(stream);
    }
}

/* ------------------------------------------------------------------ opening */

bool named_has(const struct stream *stream, struct str room_id)
{
    for (const char *at = stream->named; at && *at; at += strlen(at) + 1)
        if (str_is(room_id, at))
            return true;
    return false;
}

void named_set(struct stream *stream, const struct roomd_ticket *ticket)
{
    struct buf names = {0};
    struct cursor cursor;
    struct str room_id;
    bool has_cursor;

    free(stream->named);
    for (size_t i = 0; i < ticket->room_count; i++)
        if (position_or_room_read(
                (struct str){ticket->rooms[i].p, ticket->rooms[i].n}, &room_id, &cursor, &has_cursor)) {
            buf_add_str(&names, room_id);
            buf_char(&names, '\0');
        }
    buf_char(&names, '\0');
    stream->named = xmemdup(names.p, names.n);
    buf_clear(&names);
}

static bool ticket_rooms(struct attach *attach, const struct roomd_ticket *ticket)
{
    struct cursor cursor;
    struct str room_id;
    bool has_cursor;

    for (size_t i = 0; i < ticket->room_count; i++) {
        if (!position_or_room_read(
                (struct str){ticket->rooms[i].p, ticket->rooms[i].n}, &room_id, &cursor, &has_cursor))
            return false;
        attach_add(attach, room_id, has_cursor ? &cursor : NULL);
    }
    return true;
}

/* Its own rooms for a named ticket, and nothing else. */
static bool asked_rooms(struct attach *attach, const struct asked *asked)
{
    for (size_t i = 0; i < asked->position_count; i++) {
        if (!asked->ticket.all && !named_has(attach->stream, asked->positions[i].room_id))
            return false;
        attach_add(attach, asked->positions[i].room_id, &asked->positions[i].cursor);
    }
    return true;
}

static void stream_open(struct asked *asked)
{
    const struct roomd_ticket *ticket = &asked->ticket;
    const struct str account = {ticket->account.p, ticket->account.n},
                     platform = {ticket->platform.p, ticket->platform.n};
    struct stream *stream;
    struct attach *attach;

    if (asked->transport == TRANSPORT_POLL && !presence_poll_may_open(asked->proxy, account, platform)) {
        refuse(asked, ERR_FORBIDDEN, "the account's streams were closed by the service");
        return;
    }
    stream = stream_new(asked->proxy, asked->transport, account);
    attach = attach_new(stream, ATTACH_OPEN);
    if (platform.n && platform.n <= PLATFORM_MAX_BYTES)
        stream->platform = xstrndup(platform.p, platform.n);
    if (asked->transport == TRANSPORT_POLL)
        presence_poll_opens(stream);

    stream->deliver = (uint8_t)ticket->deliver;
    stream->all = ticket->all;
    stream->deferred = asked->deferred;
    stream->bare = str_is(http_header(asked->request, "roomd-migrate"), "bare");
    if (!ticket->all)
        named_set(stream, ticket);
    attach->reply = asked->reply;
    attach->resume_ms = asked->resume_ms;
    attach->subprotocol = asked->subprotocol;
    memcpy(attach->accept_key, asked->accept_key, sizeof attach->accept_key);
    if (asked->deferred) {
        attach_begin(attach, false);
        return;
    }
    if (!ticket_rooms(attach, ticket)) {
        open_refuse(attach, ERR_UNAUTHENTICATED, "the ticket names something that is no room");
        return;
    }
    if (!asked_rooms(attach, asked)) {
        open_refuse(attach, ERR_BAD_REQUEST, "after: a position of a room that the ticket does not name");
        return;
    }
    stream->one_room = !ticket->all && attach->room_count == 1 && asked->transport == TRANSPORT_SSE;
    attach_begin(attach, ticket->all);
}

void open_take_over(struct attach *attach, struct str hello, struct str hello_id)
{
    static const char *const sse[] = {"content-type", "text/event-stream", "cache-control", "no-store",
        "x-accel-buffering", "no", "x-content-type-options", "nosniff", NULL};
    static const char *const ndjson[] = {"content-type", "application/x-ndjson", "cache-control", "no-store",
        "x-accel-buffering", "no", "x-content-type-options", "nosniff", NULL};
    struct stream *stream = attach->stream;
    struct http_reply *reply = attach->reply;
    enum encoding encoding = stream->transport == TRANSPORT_SSE ? ENC_SSE_PLAIN : stream_encoding(stream);
    struct bytes *first = event_encode(encoding, hello, hello_id);

    attach->reply = NULL;
    if (stream->transport == TRANSPORT_WS)
        ws_take_over(stream, reply, attach->accept_key, attach->subprotocol, bytes_str(first));
    else
        http_reply_take_over(reply, 200, stream->transport == TRANSPORT_SSE ? sse : ndjson, bytes_str(first),
            &stream_wire_events, stream, stream_taken);
    bytes_drop(first);
}

void stream_taken(void *owner, struct wire *wire)
{
    struct stream *stream = owner;

    if (!wire) {
        stream_free(stream);
        return;
    }
    stream->wire = wire;
    if (stream->proxy->stopping) {
        stream_cut(stream);
        return;
    }
    stream->heard_at = proxy_now(stream->proxy);
    if (list_empty(&stream->dirty_link))
        list_push_back(&stream->proxy->dirty_streams, &stream->dirty_link);
}
