/*
 * Long connections: the frontend gets an address on this gateway, in which everything the hop needs is sealed: where to
 * go, in which order, with which ticket. It sees neither. Whoever has the address can use it with the account's own
 * session only.
 */
#include "gateway.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "room/base/clock.h"
#include "room/base/mem.h"
#include "room/base/ws_frame.h"

#define ENDPOINTS_MOST 8
#define AFTER_MAX_BYTES 16384

/* ---------------------------------------------------------------------------------------------------- the address */

/* account LF expires LF ticket LF path of WebSocket, SSE, poll, each LF, then urls, each LF */
struct address {
    struct buf plain;
    struct str account, ticket, paths[3], urls[ENDPOINTS_MOST];
    size_t url_count;
    uint64_t expires_at;
};

static void add_line(struct buf *plain, const char *text)
{
    buf_text(plain, text ? text : "");
    buf_char(plain, '\n');
}

static struct str next_line(struct str *rest)
{
    const char *end = rest->n ? memchr(rest->p, '\n', rest->n) : NULL;
    struct str line = {rest->p, end ? (size_t)(end - rest->p) : 0};

    if (end)
        *rest = (struct str){end + 1, rest->n - line.n - 1};
    return line;
}

static bool address_open(struct address *address, const struct gateway *gateway, struct str sealed)
{
    struct str rest, number;

    *address = (struct address){0};
    if (!seal_open(&address->plain, &gateway->key, "address", sealed))
        return false;
    rest = buf_str(&address->plain);
    address->account = next_line(&rest);
    number = next_line(&rest);
    for (size_t i = 0; i < number.n; i++)
        address->expires_at = address->expires_at * 10 + (uint64_t)(number.p[i] - '0');
    address->ticket = next_line(&rest);
    for (size_t i = 0; i < countof(address->paths); i++)
        address->paths[i] = next_line(&rest);
    while (rest.n && address->url_count < ENDPOINTS_MOST)
        address->urls[address->url_count++] = next_line(&rest);
    return address->url_count > 0;
}

struct offer {
    const char *paths[3], *ticket;
    const char *urls[ENDPOINTS_MOST];
    size_t url_count;
    uint64_t expires_at;
};

/* "websocket":…,"sse":…,"poll":…: where the frontend goes. */
static void write_address(
    const struct gateway *gateway, struct buf *out, const char *account, const struct offer *offer)
{
    static const char *const names[] = {"websocket", "sse", "poll"}, *const paths[] = {"ws", "sse", "poll"};
    struct buf plain = {0}, sealed = {0};
    char number[24];

    add_line(&plain, account);
    snprintf(number, sizeof number, "%" PRIu64, offer->expires_at);
    add_line(&plain, number);
    add_line(&plain, offer->ticket);
    for (size_t i = 0; i < countof(offer->paths); i++)
        add_line(&plain, offer->paths[i]);
    for (size_t i = 0; i < offer->url_count; i++)
        add_line(&plain, offer->urls[i]);
    seal(&sealed, &gateway->key, "address", buf_str(&plain));
    for (size_t i = 0; i < countof(names); i++)
        buf_printf(
            out, "%s\"%s\":\"/api/stream/%s?at=%.*s\"", i ? "," : "", names[i], paths[i], STR_ARG(buf_str(&sealed)));
    buf_printf(out, ",\"expires_at\":%" PRIu64, offer->expires_at);
    buf_clear(&plain);
    buf_clear(&sealed);
}

static void on_opened(struct ask *ask)
{
    const struct roomd_history_opened *opened = &ask->opened;
    struct buf *out = &ask->out;
    struct offer offer = {
        .paths = {opened->websocket_path, opened->sse_path, opened->poll_path},
        .ticket = opened->ticket,
        .expires_at = (uint64_t)opened->expires_at,
    };

    for (size_t i = 0; i < opened->endpoint_count && i < ENDPOINTS_MOST; i++)
        offer.urls[offer.url_count++] = opened->endpoints[i].url;
    for (size_t i = 0; ask->text && i < countof(offer.paths); i++) { /* positions that rooms of an `all` begin at */
        struct buf path = {0};

        buf_printf(&path, "%s?after=%s", offer.paths[i], ask->text);
        offer.paths[i] = ask_copy(ask, buf_str(&path));
        buf_clear(&path);
    }
    buf_text(out, "{\"account_id\":");
    buf_json_string(out, str_of(ask->account));
    buf_printf(out, ",\"deliver\":\"%s\",", ask->kind.n ? ask->kind.p : "early");
    write_address(ask->gateway, out, ask->account, &offer);
    buf_printf(out,
        ",\"heartbeat_ms\":%" PRIu64 ",\"backoff\":{\"base_ms\":%" PRIu64 ",\"factor\":%" PRIu64 ",\"max_ms\":%" PRIu64
        "},\"rooms\":[",
        opened->heartbeat_ms, opened->backoff_base_ms, opened->backoff_factor, opened->backoff_max_ms);
    for (size_t i = 0; i < opened->room_count; i++)
        buf_printf(out, "%s{\"room_id\":\"%s\",\"head\":\"%s\"}", i ? "," : "", opened->rooms[i].room_id,
            opened->rooms[i].head);
    buf_text(out, "]}");
    ask_json(ask, buf_str(out));
}

/* The cursor of a room among positions "room@cursor"; NULL: none. */
static const char *after_of(const struct roomd_texts *positions, const char *room_id)
{
    size_t n = strlen(room_id);

    for (size_t i = 0; i < positions->n; i++)
        if (!strncmp(positions->p[i], room_id, n) && positions->p[i][n] == '@')
            return positions->p[i] + n + 1;
    return NULL;
}

/* A position holds nothing that means something in a request line. */
static bool is_plain(struct str text)
{
    for (size_t i = 0; i < text.n; i++)
        if ((unsigned char)text.p[i] <= ' ' || (unsigned char)text.p[i] >= 0x7f || strchr("#\"<>\\", text.p[i]))
            return false;
    return text.n <= AFTER_MAX_BYTES;
}

/* All positions in one parameter, in ask->text. false: refused. */
static bool join_positions(struct ask *ask, const struct roomd_texts *after)
{
    struct buf all = {0};
    bool good = true;

    for (size_t i = 0; i < after->n; i++) {
        buf_text(&all, i ? "," : "");
        buf_text(&all, after->p[i]);
        good = good && after->p[i][0] && !strpbrk(after->p[i], ",&") && is_plain(str_of(after->p[i]));
    }
    if (good)
        ask->text = ask_copy(ask, buf_str(&all));
    else
        ask_refuse(ask, ERR_BAD_REQUEST, "after", "after holds what is no position");
    buf_clear(&all);
    return good;
}

/* {rooms?: [room ids], all?: true, deliver?, after?: [positions]}; without rooms all of the account's. */
void stream_connect(struct ask *ask)
{
    bool ok = true;
    struct roomd_texts rooms = ask_texts(ask, "rooms", 100, &ok),
                       after = ok ? ask_texts(ask, "after", 100, &ok) : (struct roomd_texts){0};
    struct roomd_history_open open = {.account_id = ask->account, .platform = "web"};
    struct roomd_position *positions;

    open.deliver = ok ? ask_text(ask, "deliver", 16, &ok) : NULL;
    if (!ok)
        return;
    positions = ask_keep(ask, (rooms.n + 1) * sizeof *positions);
    for (size_t i = 0; i < rooms.n; i++) {
        positions[i].room_id = rooms.p[i];
        positions[i].after = after_of(&after, rooms.p[i]);
    }
    if (!rooms.n && after.n && !join_positions(ask, &after))
        return;
    ask->kind = str_of(open.deliver ? open.deliver : "");
    open.rooms = positions;
    open.room_count = rooms.n;
    open.all = rooms.n == 0;
    ask_call(ask, on_opened);
    roomd_history_open(ask->gateway->client, &ask->call, &open, &ask->opened);
}

/* --------------------------------------------------------------------------------------------------------- the hop */

struct held {
    struct gateway *gateway;
    size_t n;
    char account[];
};

static void on_ended(void *gateway, void *owner)
{
    struct held *held = owner;

    (void)gateway;
    limits_stream_end(held->gateway->limits, (struct str){held->account, held->n});
    free(held);
}

/* The path at the instance, with what of the query is for it: positions. */
static bool write_target(struct buf *target, struct str path, const struct http_request *request)
{
    struct str rest = request->query;
    bool first = !path.n || !memchr(path.p, '?', path.n);

    buf_add_str(target, path);
    while (rest.n) {
        const char *end = memchr(rest.p, '&', rest.n);
        struct str one = {rest.p, end ? (size_t)(end - rest.p) : rest.n};

        if (one.n > 6 && !memcmp(one.p, "after=", 6)) {
            if (!is_plain(one))
                return false;
            buf_char(target, first ? '?' : '&');
            buf_add_str(target, one);
            first = false;
        }
        rest = (struct str){one.p + one.n + (end != NULL), rest.n - one.n - (end != NULL)};
    }
    return true;
}

static void start(struct gateway *gateway, const struct session *session, const struct address *address,
    struct http_request *request, struct http_reply *reply, enum relay_kind kind)
{
    struct held *held = xcalloc(1, sizeof *held + address->account.n);
    struct buf target = {0};
    struct relay_order order = {
        .kind = kind,
        .urls = address->urls,
        .url_count = address->url_count,
        .ticket = address->ticket,
        .account = address->account,
        .websocket_key = http_header(request, "sec-websocket-key"),
        .websocket_protocols = http_header(request, "sec-websocket-protocol"),
        .last_event_id = http_header(request, "last-event-id"),
        .body = request->has_body ? request->body : STR(""),
        .ends_unix_ms = session->expires_at,
        .ended = on_ended,
        .owner = held,
    };

    held->gateway = gateway;
    held->n = address->account.n;
    memcpy(held->account, address->account.p, address->account.n);
    if (!write_target(&target, address->paths[kind], request) || !is_plain(order.last_event_id) ||
        !is_plain(order.websocket_key)) {
        on_ended(gateway, held);
        http_reply_error(reply, ERR_BAD_REQUEST, "after", "after holds what no position holds");
    } else {
        order.target = buf_str(&target);
        relay_start(&gateway->relays, reply, &order);
    }
    buf_clear(&target);
}

/* ------------------------------------------------------------------------------------------------------- refusals */

struct farewell {
    struct wire *wire;
};

static size_t farewell_read(void *owner, const char *p, size_t n)
{
    (void)owner;
    (void)p;
    return n;
}

static void farewell_written(void *owner)
{
    (void)owner;
}

static void farewell_closed(void *owner)
{
    free(owner);
}

static void on_farewell(void *owner, struct wire *wire)
{
    if (wire)
        wire_close(wire); /* error and close frame are with the kernel already */
    else
        free(owner);
}

void stream_refuse(const struct http_request *request, struct http_reply *reply, enum relay_kind kind, enum err err,
    const char *message)
{
    static const struct wire_events events = {farewell_read, farewell_written, farewell_closed};
    struct str key = http_header(request, "sec-websocket-key");
    uint16_t code = err == ERR_UNAUTHENTICATED || err == ERR_TICKET_EXPIRED ? 4501 : err == ERR_FORBIDDEN ? 4500 : 4003;
    unsigned char close[] = {0x88, 2, (unsigned char)(code >> 8), (unsigned char)code};
    char accept[29];
    const char *headers[] = {
        "upgrade", "websocket", "sec-websocket-accept", accept, "sec-websocket-protocol", "roomd.v1.json", NULL};
    struct buf event = {0}, head = {0};

    if (kind != RELAY_WEBSOCKET || !ws_accept_key(key, accept)) {
        http_reply_error(reply, err, NULL, "%s", message);
        return;
    }
    if (!http_header(request, "sec-websocket-protocol").n)
        headers[4] = NULL;
    buf_printf(&event, "{\"type\":\"error\",\"code\":\"%s\",\"message\":", err_code(err));
    buf_json_string(&event, str_of(message));
    buf_char(&event, '}');
    relay_put_frame(&head, buf_str(&event));
    buf_add(&head, close, sizeof close);
    http_reply_take_over(
        reply, 101, headers, buf_str(&head), &events, xcalloc(1, sizeof(struct farewell)), on_farewell);
    buf_clear(&event);
    buf_clear(&head);
}

void stream_serve(struct gateway *gateway, const struct session *session, struct http_request *request,
    struct http_reply *reply, enum relay_kind kind)
{
    struct buf scratch = {0};
    struct address address = {0};
    struct str sealed;

    if (!http_query_param(request, "at", 0, &scratch, &sealed) || !address_open(&address, gateway, sealed)) {
        stream_refuse(
            request, reply, kind, ERR_UNAUTHENTICATED, "this is no address of ours; ask /api/connect for one");
    } else if (!str_is(address.account, session->account)) {
        stream_refuse(request, reply, kind, ERR_UNAUTHENTICATED, "this address is another account's");
    } else if (address.expires_at && clock_unix_ms() > address.expires_at) {
        stream_refuse(
            request, reply, kind, ERR_TICKET_EXPIRED, "this address is too old; ask /api/connect for a new one");
    } else if (kind == RELAY_WEBSOCKET && !http_header(request, "sec-websocket-key").n) {
        http_reply_error(reply, ERR_BAD_REQUEST, NULL, "open it as a WebSocket");
    } else if (gateway->draining) {
        stream_refuse(request, reply, kind, ERR_UNAVAILABLE, "the gateway is stopping; try again");
    } else if (!limits_stream_begin(gateway->limits, address.account)) {
        stream_refuse(request, reply, kind, ERR_RATE_LIMITED, "too many long connections of this account; close some");
    } else {
        start(gateway, session, &address, request, reply, kind);
    }
    buf_clear(&address.plain);
    buf_clear(&scratch);
}

/* --------------------------------------------------------------------------------------------------------- migrate */

static const char *copy_of(struct json value, struct buf *memory)
{
    size_t at = memory->n;
    struct str text;

    if (value.type != JSON_STRING || value.escaped)
        return NULL;
    text = (struct str){value.p + 1, value.n - 2};
    buf_add_str(memory, text);
    buf_char(memory, '\0');
    return memory->p + at;
}

/* {"type":"migrate","endpoints":[{"url":…}],"ticket":…,"within_ms":…} becomes an address of this gateway. */
void stream_migrate(void *arg, struct str account, struct str event, struct buf *out)
{
    const struct gateway *gateway = arg;
    struct offer offer = {.paths = {"/v1/stream/ws", "/v1/stream/sse", "/v1/stream/poll"}};
    struct json object, list, item;
    struct buf memory = {0};
    struct json_walk walk;
    const char *why;
    char name[ACCOUNT_MAX + 1];
    int64_t within = 0;
    bool good = json_check(event, &object, &why) && object.type == JSON_OBJECT && account.n <= ACCOUNT_MAX;

    buf_reserve(&memory, event.n + 16); /* once: pointers into it stay good */
    if (good) {
        list = json_get(object, "endpoints");
        offer.ticket = copy_of(json_get(object, "ticket"), &memory);
        if (!json_integer(json_get(object, "within_ms"), &within))
            within = 0;
        walk = json_walk(list);
        while (list.type == JSON_ARRAY && offer.url_count < ENDPOINTS_MOST && json_next_item(&walk, &item)) {
            const char *url = item.type == JSON_OBJECT ? copy_of(json_get(item, "url"), &memory) : NULL;

            if (url)
                offer.urls[offer.url_count++] = url;
        }
    }
    buf_printf(out, "{\"type\":\"migrate\",\"within_ms\":%" PRId64, within);
    if (good && offer.ticket && offer.url_count) {
        memcpy(name, account.p, account.n);
        name[account.n] = '\0';
        buf_text(out, ",\"address\":{");
        write_address(gateway, out, name, &offer);
        buf_char(out, '}');
    }
    buf_char(out, '}');
    buf_clear(&memory);
}

/* ----------------------------------------------------------------------------------------------------------- judge */

struct trial {
    struct standing standing;
    struct gateway *gateway;
    struct relay *relay;
    struct buf text; /* room_id NUL account NUL */
    struct buf content, kind, req_id;
};

static void trial_end(struct trial *trial, const char *code, const char *refused)
{
    struct buf event = {0};
    struct relay *relay = trial->relay;

    if (refused) {
        buf_printf(&event, "{\"type\":\"error\",\"code\":\"%s\",\"message\":", code);
        buf_json_string(&event, str_of(refused));
        if (trial->req_id.n) {
            buf_text(&event, ",\"req_id\":");
            buf_add_str(&event, buf_str(&trial->req_id));
        }
        buf_char(&event, '}');
    }
    buf_clear(&trial->text);
    buf_clear(&trial->content);
    buf_clear(&trial->kind);
    buf_clear(&trial->req_id);
    free(trial);
    relay_judged(relay, !refused, buf_str(&event));
    buf_clear(&event);
}

static void on_tried(struct standing *standing)
{
    struct trial *trial = container_of(standing, struct trial, standing);
    const char *refused = NULL;

    /* What the room itself has against it, the instance will say, in its own words; who is muted may still edit. */
    if (standing->code == ROOMD_OK || standing->code == ROOMD_FORBIDDEN)
        refused = policy_refuses(trial->gateway->policy, &(struct policy_question){.account = str_of(standing->account),
                                                             .peer = str_of(standing->peer),
                                                             .room_id = str_of(standing->room_id),
                                                             .kind = buf_str(&trial->kind),
                                                             .content = buf_str(&trial->content)});
    if (standing->code == ROOMD_UNAVAILABLE || standing->code == ROOMD_TIMEOUT || standing->code >= ROOMD_NO_MEMORY)
        trial_end(trial, "unavailable", "this cannot be checked at the moment; try again"); /* a rule is no rule else */
    else
        trial_end(trial, "forbidden", refused);
}

/* Does this frame say something in a room? Then *payload holds it and *room_id names the room, decoded. */
static bool frame_speaks(struct json frame, struct buf *scratch, struct json *payload, struct str *room_id)
{
    struct json type, room;
    struct str name;

    *payload = json_get(frame, "payload");
    type = json_get(frame, "type");
    if (payload->type != JSON_OBJECT || type.type != JSON_STRING || !json_string(type, scratch, &name) ||
        (!str_is(name, "message.send") && !str_is(name, "message.edit")))
        return false;
    room = json_get(*payload, "room_id");
    if (room.type == JSON_NONE)
        room = json_get(*payload, "conversation_id");
    buf_reset(scratch);
    return room.type == JSON_STRING && json_string(room, scratch, room_id) && room_id->n <= ROOM_ID_MAX;
}

static struct trial *trial_new(struct gateway *gateway, struct relay *relay, struct str account, struct str room_id)
{
    struct trial *trial = xcalloc(1, sizeof *trial);

    trial->gateway = gateway;
    trial->relay = relay;
    buf_reserve(&trial->text, room_id.n + account.n + 2);
    trial->standing.room_id = trial->text.p;
    buf_add_str(&trial->text, room_id);
    buf_char(&trial->text, '\0');
    trial->standing.account = trial->text.p + trial->text.n;
    buf_add_str(&trial->text, account);
    buf_char(&trial->text, '\0');
    trial->standing.done = on_tried;
    return trial;
}

/* What a client says on its stream is held to the same rules as what it posts, and its frames count as requests. */
void stream_judge(void *arg, struct relay *relay, struct str account, struct str text)
{
    struct gateway *gateway = arg;
    struct json frame, payload;
    struct buf scratch = {0};
    struct str room_id = {NULL, 0};
    struct trial *trial;
    const char *why;
    bool whole = json_check(text, &frame, &why) && frame.type == JSON_OBJECT,
         allowed = limits_request(gateway->limits, account), speaks;

    speaks = whole && frame_speaks(frame, &scratch, &payload, &room_id);
    if (!speaks && allowed) {
        buf_clear(&scratch);
        relay_judged(relay, true, STR("")); /* nothing is said; what is wrong with it the instance tells */
        return;
    }
    trial = trial_new(gateway, relay, account, speaks ? room_id : STR(""));
    buf_clear(&scratch);
    if (whole)
        buf_add(&trial->req_id, json_get(frame, "req_id").p, json_get(frame, "req_id").n);
    if (!allowed) {
        trial_end(trial, "rate_limited", "too many requests; wait a moment");
        return;
    }
    buf_add(&trial->content, json_get(payload, "content").p, json_get(payload, "content").n);
    if (json_get(payload, "kind").type == JSON_STRING)
        buf_add(&trial->kind, json_get(payload, "kind").p + 1, json_get(payload, "kind").n - 2);
    standing_ask(gateway->standings, &trial->standing);
}
