#include "api.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "room/base/clock.h"
#include "room/base/log.h"

/* More open calls than this are refused: each may hold a body of a megabyte. Long polls are among them. */
#define CALLS_MAX 20000

struct route {
    const char *path;
    void (*call)(struct call *call);
    /* answers by itself */
    void (*serve)(struct service *service, struct http_request *request, struct http_reply *reply);
    bool get; /* GET and HEAD without a key; else POST with one */
};

static void serve_streams_offer(struct service *service, struct http_request *request, struct http_reply *reply);

static const struct route routes[] = {
    {.path = "/v1/room/Create", .call = api_room_create},
    {.path = "/v1/room/Get", .call = api_room_get},
    {.path = "/v1/room/Update", .call = api_room_update},
    {.path = "/v1/room/Remove", .call = api_room_remove},
    {.path = "/v1/room/AddAccount2Room", .call = api_room_add_accounts},
    {.path = "/v1/room/RmAccountFromRoom", .call = api_room_remove_accounts},
    {.path = "/v1/room/Mute", .call = api_room_mute},
    {.path = "/v1/room/SetRole", .call = api_room_set_role},
    {.path = "/v1/room/ListAccounts", .call = api_room_list_accounts},
    {.path = "/v1/room/ListRooms", .call = api_room_list_rooms},
    {.path = "/v1/history/Push", .call = api_history_push},
    {.path = "/v1/history/Pull", .call = api_history_pull},
    {.path = "/v1/history/Edit", .call = api_history_edit},
    {.path = "/v1/history/Recall", .call = api_history_recall},
    {.path = "/v1/history/Delete", .call = api_history_delete},
    {.path = "/v1/history/MarkRead", .call = api_history_mark_read},
    {.path = "/v1/history/Unread", .call = api_history_unread},
    {.path = "/v1/history/Typing", .call = api_history_typing},
    {.path = "/v1/history/PullByActiveConnection", .serve = serve_streams_offer},
    {.path = "/v1/proxy/Online", .call = api_proxy_online},
    {.path = "/v1/proxy/Connections", .call = api_proxy_connections},
    {.path = "/v1/proxy/Kick", .call = api_proxy_kick},
    {.path = "/healthz", .serve = health_serve, .get = true},
    {.path = "/readyz", .serve = health_serve, .get = true},
    {.path = "/metrics", .serve = health_serve, .get = true},
};

struct route_counters {
    uint64_t by_err[ERR_COUNT];
    uint64_t answered_total, answered_us_total;
};

struct api {
    struct service *service;
    struct list calls;
    size_t count;
    struct route_counters counters[countof(routes)];
    uint64_t unknown_total; /* paths that are none of ours */
};

static const struct route *route_find(struct str path);
static bool request_allowed(
    struct service *service, const struct route *route, struct http_request *request, struct http_reply *reply);
static void call_start(
    struct service *service, const struct route *route, struct http_request *request, struct http_reply *reply);
static void call_on_gone(void *arg);
static void call_free(struct call *call);

struct api *api_open(struct service *service)
{
    struct api *api = xcalloc(1, sizeof *api);

    api->service = service;
    list_init(&api->calls);
    return api;
}

void api_close(struct api *api)
{
    struct call *call;

    list_for_each (call, &api->calls, link)
        call_fail(call, ERR_CLOSED, NULL, NULL);
    free(api);
}

size_t api_open_calls(const struct api *api)
{
    return api->count;
}

void api_end_waits(struct api *api)
{
    struct call *call;

    list_for_each (call, &api->calls, link) {
        if (!call->pulling)
            continue;
        history_pull_cancel(call->service->history, &call->pull);
        call_fail(call, ERR_CLOSED, NULL, "this instance is stopping; use another one");
    }
}

void api_serve(void *context, struct http_request *request, struct http_reply *reply)
{
    struct service *service = context;
    const struct route *route = route_find(request->path);

    if (!service->proxy) { /* the modules are being stopped, and this came over a connection that is still open */
        http_reply_error(reply, ERR_UNAVAILABLE, NULL, "this instance is stopping; use another one");
        return;
    }
    if (!route) {
        if (proxy_serve(service->proxy, request, reply))
            return;
        service->api->unknown_total++;
        http_reply_error(reply, ERR_NO_SUCH_METHOD, NULL, NULL);
        return;
    }
    if (!request_allowed(service, route, request, reply))
        return;
    if (route->serve)
        route->serve(service, request, reply);
    else
        call_start(service, route, request, reply);
}

static const struct route *route_find(struct str path)
{
    for (size_t i = 0; i < countof(routes); i++)
        if (str_is(path, routes[i].path))
            return &routes[i];
    return NULL;
}

/* Several inner reasons are one code outside. */
static void count_outcome(struct api *api, const struct route *route, enum err err)
{
    if (err == ERR_LOST)
        err = ERR_TIMEOUT;
    else if (err > ERR_LOST)
        err = ERR_UNAVAILABLE;
    api->counters[route - routes].by_err[err]++;
}

static void refuse(
    struct service *service, const struct route *route, struct http_reply *reply, enum err err, const char *why)
{
    count_outcome(service->api, route, err);
    http_reply_error(reply, err, NULL, why ? "%s" : NULL, why);
}

static bool request_allowed(
    struct service *service, const struct route *route, struct http_request *request, struct http_reply *reply)
{
    bool method_fits =
        route->get ? request->method == HTTP_GET || request->method == HTTP_HEAD : request->method == HTTP_POST;

    if (!method_fits) {
        http_reply_header(reply, "allow", route->get ? "GET, HEAD" : "POST");
        refuse(service, route, reply, ERR_METHOD_NOT_ALLOWED, NULL);
        return false;
    }
    if (route->get)
        return true;
    if (!service_key_find(service->keys, http_header(request, "authorization"))) {
        http_reply_header(reply, "www-authenticate", "Bearer");
        refuse(service, route, reply, ERR_UNAUTHENTICATED, "send a service key as Authorization: Bearer <key>");
        return false;
    }
    if (service->refusing || service->api->count >= CALLS_MAX) {
        refuse(service, route, reply, ERR_UNAVAILABLE,
            service->refusing ? "this instance is stopping; use another one"
                              : "too many calls are open; try again later");
        return false;
    }
    return true;
}

static void serve_streams_offer(struct service *service, struct http_request *request, struct http_reply *reply)
{
    proxy_pull_by_active_connection(service->proxy, request, reply);
}

/* ------------------------------------------------------------------------------------------------------ one call */

static void call_start(
    struct service *service, const struct route *route, struct http_request *request, struct http_reply *reply)
{
    struct call *call = xcalloc(1, sizeof *call);

    call->service = service;
    call->route = route;
    call->reply = reply;
    call->began_us = clock_mono_us();
    list_push_back(&service->api->calls, &call->link);
    service->api->count++;
    fields_read(&call->fields, request->body);
    route->call(call);
}

/* Only a long poll is worth watching its caller (four system calls) and stopping: the others are over soon, and what
 * they change goes on. */
void call_watch_caller(struct call *call)
{
    call->watched = true;
    http_reply_on_gone(call->reply, call_on_gone, call);
}

static void call_on_gone(void *arg)
{
    struct call *call = arg;

    history_pull_cancel(call->service->history, &call->pull);
    call_fail(call, ERR_CLOSED, NULL, NULL);
}

static void call_end(struct call *call, enum err err)
{
    struct route_counters *counters = &call->service->api->counters[call->route - routes];

    count_outcome(call->service->api, call->route, err);
    counters->answered_total++;
    counters->answered_us_total += clock_mono_us() - call->began_us;
    call_free(call);
}

static void call_free(struct call *call)
{
    list_remove(&call->link);
    call->service->api->count--;
    fields_clear(&call->fields);
    buf_clear(&call->text);
    buf_clear(&call->announced);
    free((void *)(uintptr_t)call->slices);
    free(call);
}

bool call_checked(struct call *call)
{
    const struct fields *fields = &call->fields;

    if (!fields->err)
        return true;
    call_fail(call, fields->err, fields->field, "%s", fields->why);
    return false;
}

void call_answer(struct call *call, struct str json)
{
    if (call->watched)
        http_reply_on_gone(call->reply, NULL, NULL);
    http_reply_json(call->reply, 200, json);
    call_end(call, ERR_OK);
}

void call_fail(struct call *call, enum err err, const char *field, const char *format, ...)
{
    char message[256];
    va_list args;

    if (call->watched)
        http_reply_on_gone(call->reply, NULL, NULL);
    if (format) {
        va_start(args, format);
        vsnprintf(message, sizeof message, format, args);
        va_end(args);
    }
    http_reply_error(call->reply, err, field, format ? "%s" : NULL, message);
    call_end(call, err);
}

/* ------------------------------------------------------------------------------------------------------- metrics */

void api_metrics(const struct api *api, struct buf *out)
{
    buf_text(out, "# HELP roomd_api_calls_total Service calls answered, by the code they were answered with.\n# TYPE "
                  "roomd_api_calls_total counter\n");
    for (size_t i = 0; i < countof(routes); i++)
        for (int err = 0; err < ERR_COUNT; err++)
            if (api->counters[i].by_err[err])
                buf_printf(out, "roomd_api_calls_total{path=\"%s\",code=\"%s\"} %" PRIu64 "\n", routes[i].path,
                    err_code((enum err)err), api->counters[i].by_err[err]);
    buf_text(
        out, "# HELP roomd_api_call_seconds Time from request to answer.\n# TYPE roomd_api_call_seconds summary\n");
    for (size_t i = 0; i < countof(routes); i++)
        if (api->counters[i].answered_total)
            buf_printf(out,
                "roomd_api_call_seconds_sum{path=\"%s\"} %.6f\nroomd_api_call_seconds_count{path=\"%s\"} %" PRIu64 "\n",
                routes[i].path, (double)api->counters[i].answered_us_total / 1e6, routes[i].path,
                api->counters[i].answered_total);
    buf_printf(out,
        "# TYPE roomd_api_calls_open gauge\nroomd_api_calls_open %zu\n"
        "# TYPE roomd_api_unknown_paths_total counter\nroomd_api_unknown_paths_total %" PRIu64 "\n",
        api->count, api->unknown_total);
}
