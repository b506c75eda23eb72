/*
 * HTTP/1.1 on the loop: a small shim over libh2o, so that the library can be replaced. It knows requests, answers, and
 * sockets taken over for long connections; it knows nothing of chat. HTTP/2 is off. Requests that two programs in a row
 * could read differently (two lengths, folded lines, ...) are answered 400 and the connection closed; slow and silent
 * ones are cut without an answer.
 * Thread: the loop's. Every text in a request is borrowed until the handler returns; copy what you keep.
 */
#ifndef ROOMD_BASE_HTTP_H
#define ROOMD_BASE_HTTP_H

#include "buf.h"
#include "bytes.h"
#include "err.h"

#include <uv.h>

struct http_server;
struct http_reply; /* the right to answer one request once; good even when the client has left */
struct wire;       /* a socket taken over from HTTP: WebSocket, SSE, NDJSON */

enum http_method { HTTP_GET, HTTP_HEAD, HTTP_POST, HTTP_OTHER };

struct http_request {
    enum http_method method;
    struct str method_text;
    struct str path;  /* without query, as sent (not decoded) */
    struct str query; /* without '?' ; empty when there is none */
    struct str body;  /* JSON text: a MessagePack body has been turned into JSON already */
    bool has_body;
    bool wants_msgpack; /* of the answer; http_reply_json does it */
    int version;        /* 10 or 11 */
    int64_t raw_bytes;  /* how long a body is that http_reply_read gives; -1: it stands in `body` */
    const void *impl;
};

struct http_settings {
    const char *address;
    int port;                   /* 0: one the kernel picks, see http_server_port */
    int64_t request_max_bytes;  /* larger bodies: 413 too_large */
    int64_t request_timeout_ms; /* to send a request; idle keep-alive */
    int64_t write_timeout_ms;   /* an answer nobody reads */
    int64_t connections_max;
    int64_t send_buffer_bytes;                       /* SO_SNDBUF of accepted sockets */
    const char *tls_certificate_file, *tls_key_file; /* "" = no TLS */
    /* A POST to this path, with a Content-Length, comes to the handler before its body, whatever its type and size; see
     * http_reply_read. NULL: none. */
    const char *raw_path;
};

/*
 * One handler gets every request that is well formed HTTP; it finds its way by path. It must answer `reply` exactly
 * once, now or later. A POST whose body is neither JSON nor MessagePack never gets here (415), nor does broken
 * MessagePack (400) or a GET with a body (400). JSON is not checked yet.
 */
typedef void (*http_handler)(void *context, struct http_request *request, struct http_reply *reply);

/*
 *   ERR_BAD_REQUEST  the address is not a numeric one, or certificate and key cannot be used; the log says why
 *   ERR_UNAVAILABLE  the port is taken
 */
MUST_USE enum err http_server_open(struct http_server **out, uv_loop_t *loop, const struct http_settings *settings,
    http_handler handler, void *context);
int http_server_port(const struct http_server *server); /* -1: no longer listening */

/* Drain: no new connections; keep-alive ends with the next answer. */
void http_server_stop_listening(struct http_server *server);

/* Cuts what is left: unanswered requests get 503, wires are closed. The memory goes on later turns of the loop, when
 * the last connection is closed and every reply has been answered by its owner. */
void http_server_close(struct http_server *server);

struct http_counters {
    uint64_t connections_open, requests_total;
    uint64_t refused_total; /* by the shim itself: 400, 413, 415, 417, 431, connections above the most */
};
struct http_counters http_server_counters(const struct http_server *server);

/* Header by lower-case name, without the space around it; an empty slice (p NULL) when absent. `upgrade` is there only
 * when Connection names it. Not to be had: content-length, transfer-encoding, expect. */
struct str http_header(const struct http_request *request, const char *name);

/* A query parameter, %-decoded behind what is in scratch; false when absent or badly encoded (%00 too). `index` 0, 1, …
 * for repeated ones. */
bool http_query_param(
    const struct http_request *request, const char *name, size_t index, struct buf *scratch, struct str *value);
/* The same in a query that stands alone ("a=1&b=2"). */
bool query_find(struct str query, const char *name, size_t index, struct buf *scratch, struct str *value);

/* --- bodies that are not collected: raw_path --- */

/*
 * The next piece of the body, at most 64 KiB: piece() comes once for each call, perhaps from inside it, and only as
 * long as less than raw_bytes have come. Nothing is read from the socket meanwhile: who is not asked is not heard.
 * Empty: the client is gone; answering is still required and goes nowhere. Answering ends it; a body of which something
 * is missing then ends the connection, too.
 */
void http_reply_read(struct http_reply *reply, void (*piece)(void *arg, struct str bytes), void *arg);

/* --- answers: each ends the reply. The body is copied. All say Cache-Control: no-store. --- */

/* As MessagePack when the request wants it. */
void http_reply_json(struct http_reply *reply, int status, struct str json);

/* field may be NULL; format NULL = the table's sentence. Adds Retry-After for 429 and 503. */
void http_reply_error(struct http_reply *reply, enum err err, const char *field, const char *format, ...)
    PRINTF_LIKE(4, 5);

void http_reply_text(struct http_reply *reply, int status, const char *content_type, struct str body);

/*
 * An answer in pieces: status and the headers added before; then, each time more() is called (never from inside these
 * two), one http_reply_piece. `bytes` must live until the next more() or gone(); the last ones are copied. After them,
 * and after gone() (the reader has left, or took nothing for write_timeout_ms), the reply is no longer yours. Its
 * length, when it has one, is told by a content-length of `length`; < 0: it ends with its last piece. false: the client
 * has left already, and nothing will be called
 */
MUST_USE bool http_reply_begin(
    struct http_reply *reply, int status, int64_t length, void (*more)(void *arg), void (*gone)(void *arg), void *arg);
void http_reply_piece(struct http_reply *reply, struct str bytes, bool last);
/* what was promised cannot be given: cuts the connection, then gone() */
void http_reply_break(struct http_reply *reply);

/* Adds a header to the coming answer (static name, value copied, no line ends in it). */
void http_reply_header(struct http_reply *reply, const char *name, const char *value);

/*
 * For answers that are waited for (long polls): watch the socket, and call `gone` when the client leaves before the
 * answer; once at most, never from inside another http call. Answering is still required and goes nowhere. NULL takes
 * it back. Costs a second descriptor while it waits. A client that closes only its sending side counts as gone.
 */
void http_reply_on_gone(struct http_reply *reply, void (*gone)(void *arg), void *arg);

/* --- taking a socket over: ends the reply, no HTTP afterwards --- */

struct wire_events {
    /* Bytes arrived; returns how many were used, the rest comes again with more. May close the wire. */
    size_t (*read)(void *owner, const char *p, size_t n);
    /* What was given to wire_write has been taken by the kernel: the buffers are yours again. May write again or close.
     * On a later turn, never from inside wire_write. */
    void (*written)(void *owner);
    /* The peer is gone, or wire_close has finished. The last call, on a later turn than any of yours; the wire is freed
     * afterwards. Buffers of an unfinished write are yours again. */
    void (*closed)(void *owner);
};

/*
 * Answers with `status`, headers (name, value, name, value, …, NULL) and `head` as first bytes, then hands the socket
 * over: ready(owner, wire) once, on a later turn. wire NULL = the client left meanwhile; nothing else will be called.
 * 101 needs HTTP/1.1 and gets `Connection: upgrade`; 200 is a stream that ends with its connection, and says so.
 * Memory: the request's is freed; an idle wire takes 0.7 KiB (15 KiB with TLS) and keeps no read buffer.
 */
void http_reply_take_over(struct http_reply *reply, int status, const char *const *headers, struct str head,
    const struct wire_events *events, void *owner, void (*ready)(void *owner, struct wire *wire));

/* One write at a time: only when !wire_writing(). All buffers must live until written() or closed(); the array need
 * not. Gathered into as few system calls as possible. */
void wire_write(struct wire *wire, const uv_buf_t *bufs, size_t count);
bool wire_writing(const struct wire *wire); /* true also when it is closing */

/* Now; unsent bytes are lost. closed() follows on a later turn, never from inside this call. */
void wire_close(struct wire *wire);
void wire_stop_reading(struct wire *wire); /* for good; that the peer left shows then only in a failing write */
int wire_fd(const struct wire *wire);

#endif
