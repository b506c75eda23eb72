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
        struct history_mark mark;
        struct history_unread unread;
        struct history_hide hide;
        struct history_access access;
        struct proxy_survey survey;
    };
    bool one; /* room/Get was asked for one room, not for an array */
    bool watched;
    bool pulling;                     /* `pull` can be cancelled */
    struct buf text;                  /* what the request is made of */
    struct history_announce announce; /* Create: of a room that was just made */
    struct buf announced;             /* its texts */
    const struct str *slices;         /* ours: arrays of texts that a request points to */
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
void api_room_mute(struct call *call);
void api_room_set_role(struct call *call);
void api_room_list_accounts(struct call *call);
void api_room_list_rooms(struct call *call);
/* api_history.c */
void api_history_push(struct call *call);
void api_history_pull(struct call *call);
/* api_message.c */
void api_history_edit(struct call *call);
void api_history_recall(struct call *call);
void api_history_delete(struct call *call);
void api_history_mark_read(struct call *call);
void api_history_unread(struct call *call);
void api_history_typing(struct call *call);
/* api_proxy.c */
void api_proxy_online(struct call *call);
void api_proxy_connections(struct call *call);
void api_proxy_kick(struct call *call);
/* api_frame.c: what WebSocket clients send. The frame() of struct proxy_client_calls; arg is the service. */
bool api_frame(void *service, struct str account, struct str type, struct json payload, struct proxy_reply *reply);

void api_frames_close(struct service *service); /* after all modules stopped: nobody is left to be answered */

/* Both doors, calls and frames, take a message and an act on it in the same words. */

/* Checks content, mentions, quote_seq and sent_at of a message of push->kind, fills the push with them, and adds the
 * latter three to `meta` as members without braces. */
void api_message_fields(struct fields *fields, int64_t content_max_bytes, struct history_push *push, struct buf *meta);
/* The field that a push was refused for; NULL: none. */
const char *api_push_field(const struct fields *fields, enum err err);
/* seq or message_id, one of them, as members of an op. */
void api_target_fields(struct fields *fields, struct buf *args);
void api_edit_fields(struct fields *fields, int64_t content_max_bytes, struct buf *args); /* the new content */
bool api_scope_is_me(struct fields *fields);                                              /* of a Delete; else all */
/* The same for what an account does with a message for itself, and with its cursor; and why it was refused (NULL: the
 * table's sentence). */
void api_hide_fields(struct fields *fields, struct history_hide *hide);
const char *api_hide_why(enum err err);
uint64_t api_read_seq(struct fields *fields);
const char *api_mark_why(enum err err);
/* Tells the room that the account types, when it may speak and the room is not too big for that: neither
 * is an error. */
enum err api_typing_tell(const struct service *service, const struct history_access *access, enum err err);

/* Why the owner refused an op, in words. */
struct refusal {
    char why[256], field[96]; /* empty: not said */
};
void api_refusal_read(struct refusal *refusal, enum err err, const struct history_op *op);
void api_op_fail(struct call *call, enum err err); /* ends the call with the refusal of call->op */

/* health.c */
void health_serve(struct service *service, struct http_request *request, struct http_reply *reply);

#endif
