/*
 * Who is listening: room views, streams over WebSocket, SSE, NDJSON and long poll, tickets, endpoint choice.
 *
 * A room view exists on an instance as long as a stream of the room does: head, durable mark, a bounded tail of encoded
 * entries, the streams. A stream is one open connection of one account with any number of rooms; a `sub` is one room on
 * one stream.
 *
 *   stream:  OPENING -ticket ok, members checked-> LIVE -close-> CLOSED
 *   sub:     BEHIND -caught up-> LIVE -queue full-> BEHIND                 (the whole drawing is in core.h)
 *
 * Thread: the loop's.
 */
#ifndef ROOMD_PROXY_PROXY_H
#define ROOMD_PROXY_PROXY_H

#include "history/history.h"
#include "room/base/http.h"

struct proxy;

struct proxy_reply; /* the right to answer one client frame; good when the stream has gone */

struct proxy_client_calls {
    void *arg;
    /* A frame of a WebSocket client other than subscribe, unsubscribe, ticket.refresh and ping: the server's routes
     * answer it. `payload` is a checked object. Answer with proxy_answer, now or later, once; `req_id` (raw JSON, may
     * be empty) must be copied. */
    bool (*frame)(void *arg, struct str account, struct str type, struct json payload, struct proxy_reply *reply);
};
/* ok: members without braces for the ack, e.g. "seq":5 */
void proxy_reply_ack(struct proxy_reply *reply, struct str members);
/* field: the part of the payload that is to blame; NULL or empty: none. message likewise: the table's sentence. */
void proxy_reply_error(struct proxy_reply *reply, enum err err, const char *field, const char *message);

MUST_USE enum err proxy_start(struct proxy **out, uv_loop_t *loop, const struct config *config,
    const char *advertise_url, struct history *history, struct cluster *cluster, struct pg *pg,
    const struct proxy_client_calls *calls);
void proxy_set_advertise_url(struct proxy *proxy, const char *url);

/* News from history, connected by main: same meaning as struct history_events. */
void proxy_shown(void *proxy, struct str room_id, struct entry *entry, bool durable);
bool proxy_listens(void *proxy, struct str room_id);
void proxy_durable(void *proxy, struct str room_id, uint64_t seq);
void proxy_epoch(void *proxy, struct str shard, uint64_t epoch, bool ours);
void proxy_missed(void *proxy, struct str shard);
void proxy_entered(void *proxy, struct str room_id, const struct str *accounts, size_t count, struct cursor after);
void proxy_entered_missed(void *proxy, uint64_t since_unix_ms);
void proxy_asked(void *proxy, struct str question, struct buf *answer);
/* An event that has no place in the log (typing, read, a transient message) for the open streams of a room, or of an
 * account (message.rejected, read, message.hidden): dropped first under load. */
void proxy_ephemeral(struct proxy *proxy, struct str room_id, struct str json);
void proxy_tell_account(struct proxy *proxy, struct str account, struct str json);
/* `account` types in the room, which its caller has found it may: told to the room's streams on every instance, at most
 * once in typing_every_ms for each account and room. What is too much is dropped without a word. */
void proxy_typing(struct proxy *proxy, struct str room_id, struct str account);

/*
 * Who is connected: asked of all living instances, each of which knows its own streams. Everything given must live
 * until done, which comes once, later. json: members without braces, good for the call.
 *
 *   online       "accounts":[{"account_id","streams","platforms":[{"platform","streams"}]}],"missing"
 *                accounts as asked, in that order
 *   connections  "room_id","streams","platforms","missing"
 *   kick         "closed"; the account's streams (of the platform, when one is named) are closed 4502
 *
 * missing: instances that did not answer within a second; what they know is not in the answer. For a kick that is
 * ERR_TIMEOUT: streams may still be open there. ERR_CLOSED: this instance stops.
 */
struct proxy_survey {
    void (*done)(struct proxy_survey *survey, enum err err, struct str json);
    unsigned missing;
    struct proxy *proxy; /* from here on the proxy's */
    struct history_survey survey;
    struct list link;
    void *impl;
};
void proxy_ask_online(struct proxy *proxy, struct proxy_survey *survey, const struct str *accounts, size_t count);
void proxy_ask_connections(struct proxy *proxy, struct proxy_survey *survey, struct str room_id);
void proxy_kick(struct proxy *proxy, struct proxy_survey *survey, struct str account, struct str platform,
    struct str reason); /* reason: the error event's message; may be empty */

/* HTTP: true when the path was one of the streams' (/v1/stream/…); the reply is taken then. */
bool proxy_serve(struct proxy *proxy, struct http_request *request, struct http_reply *reply);
/* history/PullByActiveConnection: `request` is the checked body. Answers by itself. */
void proxy_pull_by_active_connection(struct proxy *proxy, struct http_request *request, struct http_reply *reply);

/* Drain, first step: no new streams from now on; open ones go on. */
void proxy_take_no_more(struct proxy *proxy);
/* Second step: streams get `migrate`, spread over the first part of within_ms, each with the time that is left for it;
 * polls are answered with what they have. Who is still there after within_ms is closed 4000, and all at once when no
 * other instance lives. done once, later, when none is left. */
void proxy_drain(struct proxy *proxy, int64_t within_ms, void (*done)(void *arg), void *arg);
void proxy_stop(struct proxy *proxy);

uint32_t proxy_streams(const struct proxy *proxy);
void proxy_metrics(const struct proxy *proxy, struct buf *out);

#endif
