/*
 * The service calls: which path is which call, who may call, and how a call lives from its request to its answer.
 * Source: docs/protocol.md#service-calls. Thread: the loop's.
 */
#ifndef ROOMD_SERVER_API_H
#define ROOMD_SERVER_API_H

#include "api_request.h"
#include "service.h"

struct api *api_open(struct service *service);
void api_close(struct api *api); /* after all modules stopped: answers calls that nobody will answer any more */
void api_serve(void *service, struct http_request *request, struct http_reply *reply); /* the http_handler */
void api_metrics(const struct api *api, struct buf *out);
size_t api_open_calls(const struct api *api);
void api_end_waits(struct api *api); /* drain: long polls are answered unavailable now, so that they go elsewhere */

struct route;

/*
 * One call. `fields` hold the body; everything the modules are asked with is embedded here, so that one free ends it.
 * Each handler ends its call exactly once, through call_answer or call_fail, now or later.
 */
struct call {
    struct service *service;
    const struct route *route;
    struct http_reply *reply;
    struct list link;
    uint64_t began_us;
    struct fields fields;
    union {
        struct room_create create;
        struct room_get get;
        struct room_list_accounts list_accounts;
        struct room_list_rooms list_rooms;
        struct history_push push;
        struct history_pull pull;
        struct history_op op;
    };
    bool one; /* room/Get was asked for one room, not for an array */
    bool watched;
    bool pulling;             /* `pull` can be cancelled */
    struct buf text;          /* what the request is made of */
    const struct str *slices; /* ours: arrays of texts that a request points to */
};

/* When the caller leaves, the Pull is cancelled. */
void call_watch_caller(struct call *call);

/* true when all fields were well formed; else the call has been answered and is gone. */
MUST_USE bool call_checked(struct call *call);
void call_answer(struct call *call, struct str json);
void call_fail(struct call *call, enum err err, const char *field, const char *format, ...) PRINTF_LIKE(4, 5);

/* api_room.c */
void api_room_create(struct call *call);
void api_room_get(struct call *call);
void api_room_update(struct call *call);
void api_room_remove(struct call *call);
void api_room_add_accounts(struct call *call);
void api_room_remove_accounts(struct call *call);
void api_room_list_accounts(struct call *call);
void api_room_list_rooms(struct call *call);
/* api_history.c */
void api_history_push(struct call *call);
void api_history_pull(struct call *call);
/* api_frame.c: what WebSocket clients send. The frame() of struct proxy_client_calls; arg is the service. */
bool api_frame(void *service, struct str account, struct str type, struct json payload, struct proxy_reply *reply);

void api_frames_close(struct service *service); /* after all modules stopped: nobody is left to be answered */

/* Checks content, mentions, quote_seq and sent_at of a message, and adds the latter three to `meta` as members without
 * braces. */
void api_message_fields(
    struct fields *fields, struct str kind, int64_t content_max_bytes, struct str *content, struct buf *meta);

/* health.c */
void health_serve(struct service *service, struct http_request *request, struct http_reply *reply);

#endif
