/* Which path is what, and who may come in. */
#include "gateway.h"

#include <inttypes.h>
#include <string.h>

#include "room/base/mem.h"

struct route {
    bool post;
    const char *path; /* the first "*" stands for a room id, one at the end for anything else */
    void (*serve)(struct ask *ask);
    bool open; /* without a session */
};

static const struct route routes[] = {
    {true, "/api/login", account_login, true},
    {true, "/api/logout", account_logout, true},
    {true, "/api/refresh", account_refresh, false},
    {false, "/api/me", account_me, false},
    {false, "/api/accounts", account_names, false},
    {true, "/api/connect", stream_connect, false},
    {false, "/api/unread", message_unread, false},
    {false, "/api/rooms", room_list, false},
    {true, "/api/rooms", room_open, false},
    {false, "/api/rooms/*", room_show, false},
    {true, "/api/rooms/*/update", room_update, false},
    {false, "/api/rooms/*/members", room_members, false},
    {true, "/api/rooms/*/members/add", room_add_members, false},
    {true, "/api/rooms/*/members/remove", room_remove_members, false},
    {true, "/api/rooms/*/mute", room_mute, false},
    {true, "/api/rooms/*/role", room_role, false},
    {false, "/api/rooms/*/messages", message_history, false},
    {true, "/api/rooms/*/messages", message_send, false},
    {true, "/api/rooms/*/forward", message_forward, false},
    {true, "/api/rooms/*/edit", message_edit, false},
    {true, "/api/rooms/*/recall", message_recall, false},
    {true, "/api/rooms/*/delete", message_delete, false},
    {true, "/api/rooms/*/read", message_read, false},
    {true, "/api/rooms/*/typing", message_typing, false},
    {false, "/api/rooms/*/files/*", file_download, false},
};

static const struct {
    const char *path;
    enum relay_kind kind;
} streams[] = {{"/api/stream/ws", RELAY_WEBSOCKET}, {"/api/stream/sse", RELAY_SSE}, {"/api/stream/poll", RELAY_POLL}};

static void serve_health(struct gateway *gateway, struct http_request *request, struct http_reply *reply);
static void serve_metrics(struct gateway *gateway, struct http_reply *reply);

/* Does `path` fit? *room and *item are what stands for the stars. */
static bool path_fits(const char *pattern, struct str path, struct str *room, struct str *item)
{
    const char *star = strchr(pattern, '*'), *rest, *end;
    size_t before, rest_n;
    bool open_end;

    if (!star)
        return str_is(path, pattern);
    before = (size_t)(star - pattern);
    rest = star + 1;
    open_end = strchr(rest, '*') != NULL;
    rest_n = open_end ? strlen(rest) - 1 : strlen(rest);
    if (path.n <= before || memcmp(path.p, pattern, before) != 0)
        return false;
    end = memchr(path.p + before, '/', path.n - before);
    *room = (struct str){path.p + before, end ? (size_t)(end - path.p) - before : path.n - before};
    *item = (struct str){path.p + before + room->n, path.n - before - room->n};
    if (!room->n || room->n > ROOM_ID_MAX || item->n < rest_n || memcmp(item->p, rest, rest_n) != 0)
        return false;
    *item = (struct str){item->p + rest_n, item->n - rest_n};
    return open_end ? item->n && !memchr(item->p, '/', item->n) : !item->n;
}

/* A room id as it stands in a path; %2E for its dot is the same. */
static bool room_id_copy(char out[ROOM_ID_MAX + 1], struct str text)
{
    size_t n = 0;

    for (size_t i = 0; i < text.n; i++) {
        char c = text.p[i];

        if (c == '%' && i + 2 < text.n && !memcmp(text.p + i, "%2", 2) && (text.p[i + 2] | 32) == 'e') {
            c = '.';
            i += 2;
        }
        if (!((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '.' || c == '-'))
            return false;
        out[n++] = c;
    }
    out[n] = '\0';
    return true;
}

/* Forms and foreign pages cannot send this header: what changes something, or costs something, wants it. */
static bool from_a_script(const struct http_request *request)
{
    return http_header(request, "x-requested-with").n > 0;
}

static void ask_start(struct gateway *gateway, const struct route *route, struct str room, struct str item,
    const struct session *session, struct http_request *request, struct http_reply *reply)
{
    struct ask *ask = xcalloc(1, sizeof *ask);
    const char *why = "the body is an object";

    ask->gateway = gateway;
    ask->reply = reply;
    list_init(&ask->memory);
    list_push_back(&gateway->asks, &ask->link);
    if (session) {
        memcpy(ask->account, session->account, sizeof ask->account);
        ask->session_begun_at = session->begun_at;
        ask->session_expires_at = session->expires_at;
    }
    ask->request = request;
    ask->query = (char *)(uintptr_t)ask_copy(ask, request->query);
    ask->item = ask_copy(ask, item);
    if (request->has_body) {
        struct str body = str_of(ask_copy(ask, request->body));

        body.n = request->body.n;
        if (!json_check(body, &ask->body, &why) || ask->body.type != JSON_OBJECT) {
            ask_refuse(ask, ERR_BAD_REQUEST, NULL, "%s", why);
            return;
        }
    }
    if (room.n && !room_id_copy(ask->room_id, room)) {
        ask_refuse(ask, ERR_NO_SUCH_ROOM, NULL, NULL);
        return;
    }
    route->serve(ask);
}

/* Who asks, and may this page ask? false: answered. *known: there is a session. */
static bool let_in(struct gateway *gateway, bool open, const struct http_request *request, struct http_reply *reply,
    struct session *session, bool *known)
{
    bool by_token;

    *known = session_read(gateway, request, session);
    by_token = *known && session->by_token; /* a program's: no page can be made to send it */
    if (request->method == HTTP_POST && !by_token && !from_a_script(request))
        http_reply_error(reply, ERR_FORBIDDEN, NULL, "send the header X-Requested-With: pages of others cannot");
    else if (!by_token && !origin_allowed(gateway, request))
        http_reply_error(reply, ERR_FORBIDDEN, NULL, "this page's origin is not allowed here");
    else if (!open && !*known)
        http_reply_error(reply, ERR_UNAUTHENTICATED, NULL, "log in first: POST /api/login");
    else if (*known && !limits_request(gateway->limits, str_of(session->account)))
        http_reply_error(reply, ERR_RATE_LIMITED, NULL, "too many requests; wait a moment");
    else
        return true;
    gateway->refused_total++;
    return false;
}

static void serve_route(struct gateway *gateway, const struct route *route, struct str room, struct str item,
    struct http_request *request, struct http_reply *reply)
{
    struct session session;
    bool known;

    if (let_in(gateway, route->open, request, reply, &session, &known))
        ask_start(gateway, route, room, item, known ? &session : NULL, request, reply);
}

static void serve_upload(struct gateway *gateway, struct http_request *request, struct http_reply *reply)
{
    struct session session;
    bool known;

    if (let_in(gateway, false, request, reply, &session, &known))
        file_upload(gateway, request, reply);
}

static void serve_stream(
    struct gateway *gateway, struct http_request *request, struct http_reply *reply, enum relay_kind kind)
{
    struct session session;
    bool known = session_read(gateway, request, &session), by_token = known && session.by_token;

    if (!by_token &&
        (!origin_allowed(gateway, request) || (kind == RELAY_WEBSOCKET && known && !http_header(request, "origin").n) ||
            (request->method == HTTP_POST && !from_a_script(request))))
        stream_refuse(request, reply, kind, ERR_FORBIDDEN, "this page's origin is not allowed here");
    else if (!known)
        stream_refuse(request, reply, kind, ERR_UNAUTHENTICATED, "log in first: POST /api/login");
    else
        stream_serve(gateway, &session, request, reply, kind);
}

void routes_serve(void *arg, struct http_request *request, struct http_reply *reply)
{
    struct gateway *gateway = arg;
    bool post = request->method == HTTP_POST, other = false;
    struct str room = {NULL, 0}, item = {NULL, 0};

    asks_forget(gateway);
    gateway->requests_total++;
    for (size_t i = 0; i < countof(streams); i++) {
        if (str_is(request->path, streams[i].path)) {
            serve_stream(gateway, request, reply, streams[i].kind);
            return;
        }
    }
    if (post && str_is(request->path, "/api/files")) {
        serve_upload(gateway, request, reply);
        return;
    }
    for (size_t i = 0; i < countof(routes); i++) {
        if (!path_fits(routes[i].path, request->path, &room, &item)) {
            room = item = (struct str){NULL, 0};
            continue;
        }
        if (routes[i].post == post && (post || request->method == HTTP_GET ||
                                          (request->method == HTTP_HEAD && routes[i].serve == file_download))) {
            serve_route(gateway, &routes[i], room, item, request, reply);
            return;
        }
        other = true;
    }
    if (other) {
        http_reply_header(reply, "allow", "GET, POST");
        http_reply_error(reply, ERR_METHOD_NOT_ALLOWED, NULL, NULL);
    } else if (str_is(request->path, "/healthz") || str_is(request->path, "/readyz")) {
        serve_health(gateway, request, reply);
    } else if (str_is(request->path, "/metrics")) {
        serve_metrics(gateway, reply);
    } else if (!web_serve(gateway->web, request, reply)) {
        http_reply_error(reply, ERR_NO_SUCH_METHOD, NULL, "there is nothing here; see docs/gateway.md");
    }
}

/* Ready: a broker takes messages. Without one, pages still load and history is shown. */
static void serve_health(struct gateway *gateway, struct http_request *request, struct http_reply *reply)
{
    struct roomd_counters counters = roomd_client_counters(gateway->client);
    bool ready = counters.broker_up && !counters.broker_blocked && !gateway->draining;
    struct buf json = {0};

    buf_printf(&json, "{\"ready\":%s,\"broker\":%s,\"draining\":%s,\"streams\":%zu}", ready ? "true" : "false",
        counters.broker_up ? "true" : "false", gateway->draining ? "true" : "false", gateway->relays.count);
    http_reply_json(reply, ready || str_is(request->path, "/healthz") ? 200 : 503, buf_str(&json));
    buf_clear(&json);
}

static void metric(struct buf *out, const char *name, const char *type, const char *help, uint64_t value)
{
    buf_printf(out, "# HELP roomd_gateway_%s %s\n# TYPE roomd_gateway_%s %s\nroomd_gateway_%s %" PRIu64 "\n", name,
        help, name, type, name, value);
}

static void serve_metrics(struct gateway *gateway, struct http_reply *reply)
{
    struct roomd_counters counters = roomd_client_counters(gateway->client);
    const struct relays *relays = &gateway->relays;
    struct buf out = {0};

    metric(&out, "requests_total", "counter", "Requests of frontends.", gateway->requests_total);
    metric(&out, "refused_total", "counter", "Requests answered with an error.", gateway->refused_total);
    metric(&out, "logins_total", "counter", "Log-ins tried.", gateway->logins_total);
    metric(&out, "logins_refused_total", "counter", "Log-ins with a wrong account or password.",
        gateway->logins_refused_total);
    metric(&out, "sent_total", "counter", "Messages that a broker confirmed, or the spool holds.", gateway->sent_total);
    metric(&out, "uploads_total", "counter", "Files that frontends sent.", gateway->uploads_total);
    metric(&out, "downloads_total", "counter", "Files, or parts of them, that frontends asked for.",
        gateway->downloads_total);
    metric(&out, "streams", "gauge", "Long connections passing through.", relays->count);
    metric(&out, "streams_opened_total", "counter", "Long connections and polls opened.", relays->opened_total);
    metric(&out, "streams_failed_total", "counter", "Long connections that no instance took.", relays->failed_total);
    metric(&out, "endpoints_failed_total", "counter", "Endpoints that did not answer, or refused.",
        relays->next_endpoint_total);
    metric(&out, "stream_bytes_down_total", "counter", "Bytes from instances.", relays->bytes_down_total);
    metric(&out, "stream_bytes_up_total", "counter", "Bytes to instances.", relays->bytes_up_total);
    metric(&out, "broker_up", "gauge", "1: messages can be sent.", counters.broker_up);
    metric(&out, "broker_connects_total", "counter", "Connections made to brokers.", counters.connects_total);
    metric(&out, "messages_pending", "gauge", "Messages without a confirm.", counters.pending);
    metric(&out, "messages_resent_total", "counter", "Messages sent again after a lost connection.",
        counters.resent_total);
    metric(&out, "spool_bytes", "gauge", "Bytes of messages that wait on disk.", counters.spool_bytes);
    http_reply_text(reply, 200, "text/plain; version=0.0.4; charset=utf-8", buf_str(&out));
    buf_clear(&out);
}
