/*
 * The hop between a frontend and an instance: a long connection comes in here and goes on to the first endpoint that
 * takes it. Bytes pass as they are, at once, in both directions; only `migrate`, which names internal addresses, is
 * handed to the caller to be rewritten. A relay that flows holds no buffer: what one side cannot take yet is held once,
 * and the other side is not read meanwhile.
 *
 *   CONNECTING ─▶ ASKING ─2xx, 101─▶ TAKING_OVER ─▶ FLOWING ─either side ends─▶ closed
 *       └───────────┴─▶ the next endpoint; after the last one the answer is its refusal, or unavailable
 *
 * Thread: the loop's.
 */
#ifndef ROOMD_GATEWAY_RELAY_H
#define ROOMD_GATEWAY_RELAY_H

#include "room/base/http.h"
#include "room/base/list.h"

#include <openssl/ssl.h>

enum relay_kind { RELAY_WEBSOCKET, RELAY_SSE, RELAY_POLL };

struct relay;

struct relays {
    uv_loop_t *loop;
    SSL_CTX *tls;               /* for https endpoints */
    int64_t connect_timeout_ms; /* for one endpoint, until its answer's head is here */
    int64_t hold_max_ms;        /* for the body of a poll's answer */
    size_t pending_max_bytes;   /* what a frontend may have sent that the instance does not take; then it is cut */
    /* `event` is the migrate event as it came; append what the frontend gets instead, one line of JSON. */
    void (*migrate)(void *arg, struct str account, struct str event, struct buf *out);
    /* A whole message of a WebSocket client (`text` is what it says, unmasked): may it go on? Answer with relay_judged,
     * now or later; what the client sends after it waits. NULL: all may. */
    void (*judge)(void *arg, struct relay *relay, struct str account, struct str text);
    void *arg;

    struct list all;
    size_t count;
    uint64_t opened_total, failed_total, next_endpoint_total, bytes_down_total, bytes_up_total;
};
void relays_open(struct relays *relays); /* the settings above are set by the caller */
/* Cuts those whose time is over: who may come again has a newer session. Call it now and then. */
void relays_cut_old(struct relays *relays, uint64_t now_unix_ms);
void relays_close(struct relays *relays); /* cuts all; the loop must run until count is 0 */

struct relay_order {
    enum relay_kind kind;
    const struct str *urls; /* http://host:port or https://host:port, best first */
    size_t url_count;
    struct str target;  /* path and query at the instance */
    struct str ticket;  /* never shown to the frontend */
    struct str account; /* for migrate, and for the caller to find its relays */
    /* Headers of the frontend's request that go on; empty: not there. */
    struct str websocket_key, websocket_protocols, last_event_id;
    struct str body;                       /* JSON of a POST (SSE, poll); empty: GET */
    uint64_t ends_unix_ms;                 /* the session's end; 0: none */
    void (*ended)(void *arg, void *owner); /* may be NULL */
    void *owner;
};
/* Answers `reply`. All texts are copied. */
void relay_start(struct relays *relays, struct http_reply *reply, const struct relay_order *order);

/* The answer to judge(). allowed: the message goes on as it came. Else the client gets `refusal`, an event, instead. */
void relay_judged(struct relay *relay, bool allowed, struct str refusal);

/* --- for tests: finding migrate in what an instance sends --- */

struct relay_scan {
    struct buf held;  /* the beginning of something that is not complete yet */
    uint64_t passing; /* bytes of the current WebSocket frame that just pass */
    bool websocket;
};
/* Appends to `out` what may go on to the frontend. false: the instance sends what cannot be. */
MUST_USE bool relay_scan(
    struct relay_scan *scan, const struct relays *relays, struct str account, struct str bytes, struct buf *out);
void relay_scan_clear(struct relay_scan *scan);
/* A text frame of a server. */
void relay_put_frame(struct buf *out, struct str text);

/* What a WebSocket client sends, cut into what goes on at once (control frames) and whole messages. */
struct relay_upstream {
    struct buf held;      /* bytes that came and are not judged yet */
    struct buf text;      /* of the message so far, unmasked */
    size_t message_bytes; /* its frames stand at the front of `held`, with control frames between them */
    bool in_message;
};
enum relay_step { RELAY_MORE, RELAY_PASS, RELAY_MESSAGE, RELAY_NONSENSE };
/* Looks at the next frame in held. RELAY_PASS: the first *n bytes go on. RELAY_MESSAGE: text is a whole message, whose
 * frames are the first *n bytes. */
enum relay_step relay_upstream_step(struct relay_upstream *up, size_t *n);
void relay_upstream_clear(struct relay_upstream *up);

#endif
