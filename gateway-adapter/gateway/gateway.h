/*
 * roomd-gateway: what stands between frontends and roomd. It knows who somebody is (session), what that one may do
 * (policy, roles), what the accounts are called (BaseService); it says to roomd what they do, and passes long
 * connections through. A business with a gateway of its own takes the adapter library and leaves this.
 *
 *   frontend ─▶ routes.c ─▶ ask.c (one request) ─▶ account.c room.c message.c stream.c file.c
 *                                                   ─▶ roomd, broker, BaseService
 *
 * Thread: one loop, everything on it. Source of the surface: docs/gateway.md.
 */
#ifndef ROOMD_GATEWAY_GATEWAY_H
#define ROOMD_GATEWAY_GATEWAY_H

#include "gateway-adapter/roomd_adapter.h"
#include "gateway-adapter/roomd_adapter_uv.h"
#include "server_url.h"
#include "relay.h"
#include "room/base/conn.h"
#include "room/base/json.h"
#include "room/base/map.h"
#include "room/base/settings.h"
#include "seal.h"

#define ACCOUNT_MAX 64
#define ROOM_ID_MAX 48

struct gateway_settings {
#define GATEWAY_KEY(name, type, fallback, min, max, help) GATEWAY_FIELD_##type(name)
#define GATEWAY_FIELD_TEXT(name) const char *name;
#define GATEWAY_FIELD_SECRET(name) const char *name;
#define GATEWAY_FIELD_INT(name) int64_t name;
#define GATEWAY_FIELD_MS(name) int64_t name;
#define GATEWAY_FIELD_BYTES(name) int64_t name;
#define GATEWAY_FIELD_BOOL(name) bool name;
#include "gateway_keys.h"
#undef GATEWAY_KEY
};

struct gateway {
    uv_loop_t *loop;
    const struct gateway_settings *settings;
    struct seal_key key;
    struct roomd_client *client;
    struct roomd_uv glue;
    struct http_server *http;
    struct relays relays;
    SSL_CTX *tls;           /* towards instances and BaseService */
    struct server_url base; /* of the BaseService */
    struct fetches *fetches;
    struct policy *policy;
    struct web *web;
    struct limits *limits;
    struct standings *standings;
    struct list asks;
    struct list answered; /* asks that were refused while their handler still ran */
    struct list transfers;
    bool draining;
    uint64_t requests_total, refused_total, logins_total, logins_refused_total, sent_total, uploads_total,
        downloads_total;
};

/* --------------------------------------------------------------------------------------------------------- policy */

/*
 * The business's own rules, in one place: asked before a message or an edit goes to roomd, whichever way it came, and
 * before a direct chat is opened. policy.c is an example that reads its rules from a file; a business puts its own here
 * (friends, blacklists, superiors, censorship).
 */
struct policy_question {
    struct str account;
    struct str peer;    /* of a direct chat, when known; else empty */
    struct str room_id; /* empty: the chat is to be opened */
    struct str kind;
    struct str content; /* JSON; empty: the chat is to be opened */
};
struct policy *policy_open(const char *file, const char **why); /* NULL: *why is a sentence */
void policy_close(struct policy *policy);
/* NULL: it may. Else the sentence for the sender, static. */
const char *policy_refuses(const struct policy *policy, const struct policy_question *question);

/* --------------------------------------------------------------------------------------------------------- standing */

/* standing.c: what an account is in a room, as far as sending goes; remembered for some seconds. */
struct standing {
    const char *account, *room_id; /* good until done */
    void (*done)(struct standing *standing);
    void *arg;
    enum roomd_code code;       /* ROOMD_OK, NO_SUCH_ROOM, NOT_MEMBER, FORBIDDEN (muted), or why it is not known */
    const char *message;        /* a sentence; "" on ROOMD_OK */
    char peer[ACCOUNT_MAX + 1]; /* of a direct chat; else "" */
    int64_t muted_until;
    void *impl;
};
struct standings *standings_open(struct gateway *gateway);
void standings_close(struct standings *standings); /* after the client is closed */
/* done() is called from inside when it is remembered. */
void standing_ask(struct standings *standings, struct standing *standing);

/* ---------------------------------------------------------------------------------------------------- BaseService */

/* fetch.c: one request to the BaseService, answered in memory. */
struct fetch {
    const char *method, *path; /* path and query; copied */
    struct str body;           /* JSON; copied */
    void (*done)(struct fetch *fetch);
    void *arg;
    int status;        /* 0: no answer */
    struct str answer; /* good for the call */
    void *impl;
};
struct fetches *fetches_open(struct gateway *gateway);
void fetches_close(struct fetches *fetches); /* those under way are done with status 0 */
void fetch_start(struct fetches *fetches, struct fetch *fetch);
/* A connection to it. */
struct conn *base_connect(struct gateway *gateway, const struct conn_events *events, void *owner);

/* --------------------------------------------------------------------------------------------------- one request */

/*
 * A request of a frontend from its arrival to its answer; ended by exactly one of the ask_… answers. Everything it asks
 * others for is embedded here. Texts it needs NUL-terminated live in `memory` until then.
 */
struct ask {
    struct list link;
    struct gateway *gateway;
    struct http_reply *reply;
    char account[ACCOUNT_MAX + 1]; /* whose session it is */
    uint64_t session_begun_at, session_expires_at;
    char room_id[ROOM_ID_MAX + 1];      /* from the path; "" when it has none */
    const char *item;                   /* what stands behind it in the path; NULL: nothing */
    const struct http_request *request; /* good until the handler has returned */
    char *query;
    struct json body; /* an object; empty when there was none */
    struct list memory;
    struct buf out;
    struct roomd_call call;
    struct roomd_send send;
    void (*then)(struct ask *ask); /* after a call that went well */
    union {
        struct roomd_room_created created;
        struct roomd_room_got got;
        struct roomd_room_updated updated;
        struct roomd_room_accounts_added added;
        struct roomd_room_accounts_removed removed;
        struct roomd_room_muted muted;
        struct roomd_room_role_set role_set;
        struct roomd_room_accounts accounts;
        struct roomd_room_rooms rooms;
        struct roomd_history_pulled pulled;
        struct roomd_history_opened opened;
        struct roomd_history_changed changed;
        struct roomd_history_marked marked;
        struct roomd_history_unread_of unread;
    };
    struct standing standing;
    struct fetch fetch;
    /* What a handler keeps between its steps. */
    struct roomd_message message;
    struct str kind;
    uint64_t number;
    const char *text;
};

void asks_forget(struct gateway *gateway); /* those answered; never from inside a handler */

/* Memory that lives as long as the ask. */
void *ask_keep(struct ask *ask, size_t n);
const char *ask_copy(struct ask *ask, struct str text);
void add_percent(struct buf *out, struct str text); /* for a path or a query */
/* The account's name among the BaseService's answer (type JSON_NONE: there is none) as JSON; else its id. */
void add_name(struct buf *out, struct json names, const char *account);

/* Fields of the body. NULL, 0: absent, or the ask has been refused: then `*ok` is false and nothing may follow. */
const char *ask_text(struct ask *ask, const char *name, size_t max, bool *ok);
const char *ask_raw(struct ask *ask, const char *name, bool *ok); /* any JSON */
uint64_t ask_number(struct ask *ask, const char *name, uint64_t most, bool *ok);
bool ask_flag(struct ask *ask, const char *name, bool *ok);
struct roomd_texts ask_texts(struct ask *ask, const char *name, size_t most, bool *ok);
/* A parameter of the query, decoded; NULL: absent, or badly encoded. */
const char *ask_param(struct ask *ask, const char *name);
uint64_t ask_param_number(struct ask *ask, const char *name, uint64_t most, uint64_t fallback, bool *ok);

/* The answers. Each ends the ask. */
void ask_json(struct ask *ask, struct str json);
void ask_done(struct ask *ask); /* {} */
void ask_refuse(struct ask *ask, enum err err, const char *field, const char *format, ...) PRINTF_LIKE(4, 5);
void ask_fail(struct ask *ask);                /* with what its call said */
struct http_reply *ask_leave(struct ask *ask); /* no answer: it is the caller's now */
void ask_refuse_code(struct ask *ask, enum roomd_code code, const char *field, const char *message);

/* Before a call: `then` comes when it went well; else the ask is answered with its error. */
void ask_call(struct ask *ask, void (*then)(struct ask *ask));

/* ------------------------------------------------------------------------------------------------------ its parts */

/* routes.c: the http_handler; arg is the gateway */
void routes_serve(void *gateway, struct http_request *request, struct http_reply *reply);

/* session.c */
struct session {
    char account[ACCOUNT_MAX + 1];
    uint64_t begun_at, expires_at; /* unix ms */
    bool by_token;                 /* a program's: no page can be tricked into sending it */
};
/* Sets the cookie; appends the same session as a token for programs. When it ends, unix ms. */
uint64_t session_grant(
    const struct gateway *gateway, struct http_reply *reply, const char *account, uint64_t begun_at, struct buf *token);
void session_end(const struct gateway *gateway, struct http_reply *reply);
/* false: there is none, or it is over. */
bool session_read(const struct gateway *gateway, const struct http_request *request, struct session *session);
/* May this page use us? Requests without Origin come from programs, or from our own page. */
bool origin_allowed(const struct gateway *gateway, const struct http_request *request);

/* account.c */
void account_login(struct ask *ask);
void account_logout(struct ask *ask);
void account_me(struct ask *ask);
void account_refresh(struct ask *ask);
void account_names(struct ask *ask);
/* room.c */
void room_open(struct ask *ask); /* a direct chat, or a group */
void room_show(struct ask *ask);
void room_list(struct ask *ask);
void room_members(struct ask *ask);
void room_add_members(struct ask *ask);
void room_remove_members(struct ask *ask);
void room_update(struct ask *ask);
void room_mute(struct ask *ask);
void room_role(struct ask *ask);
/* message.c */
void message_send(struct ask *ask);
void message_history(struct ask *ask);
void message_forward(struct ask *ask);
void message_edit(struct ask *ask);
void message_recall(struct ask *ask);
void message_delete(struct ask *ask);
void message_read(struct ask *ask);
void message_typing(struct ask *ask);
void message_unread(struct ask *ask);
/* stream.c */
void stream_connect(struct ask *ask);
void stream_serve(struct gateway *gateway, const struct session *session, struct http_request *request,
    struct http_reply *reply, enum relay_kind kind);
/* A WebSocket is refused by a close code: a browser cannot read a refused upgrade. */
void stream_refuse(const struct http_request *request, struct http_reply *reply, enum relay_kind kind, enum err err,
    const char *message);
void stream_migrate(void *gateway, struct str account, struct str event, struct buf *out);
void stream_judge(void *gateway, struct relay *relay, struct str account, struct str text);

/* file.c */
void file_upload(struct gateway *gateway, struct http_request *request, struct http_reply *reply);
void file_download(struct ask *ask);
void transfers_close(struct gateway *gateway);

/* web.c: the page's files, read once */
struct web *web_open(const char *folder);
void web_close(struct web *web);
bool web_serve(const struct web *web, struct http_request *request, struct http_reply *reply);

/* limits.c: requests, log-ins and long connections per account */
struct limits *limits_open(const struct gateway *gateway);
void limits_close(struct limits *limits);
bool limits_request(struct limits *limits, struct str account);
bool limits_login(struct limits *limits, struct str account);
bool limits_stream_begin(struct limits *limits, struct str account);
void limits_stream_end(struct limits *limits, struct str account);

#endif
