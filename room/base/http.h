/*
 * HTTP/1.1 on the loop: a small shim over libh2o, so that the library can be replaced. It knows requests, answers, and sockets taken
 * over for long connections; it knows nothing of chat. HTTP/2 is off. Slow, half-open and ambiguous requests (two lengths, bad
 * framing as far as the library shows it) are cut or answered 400.
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
    const void *impl;
};

struct http_settings {
    const char *address;
    int port;                    /* 0: one the kernel picks, see http_server_port */
    int64_t request_max_bytes;   /* larger bodies: 413 too_large */
    int64_t request_timeout_ms;  /* to send a request; idle keep-alive */
    int64_t write_timeout_ms;    /* an answer nobody reads */
    int64_t connections_max;
    int64_t send_buffer_bytes;   /* SO_SNDBUF of accepted sockets */
    const char *tls_certificate_file, *tls_key_file; /* "" = no TLS */
};

/* One handler gets every request that is well formed HTTP; it finds its way by path. It must answer `reply` exactly once, now or
 * later. Bodies that are not JSON or MessagePack never get here for POST (415), nor broken MessagePack (400). */
typedef void (*http_handler)(void *context, struct http_request *request, struct http_reply *reply);

MUST_USE enum err http_server_open(struct http_server **out, uv_loop_t *loop, const struct http_settings *settings,
    http_handler handler, void *context);
int http_server_port(const struct http_server *server);
void http_server_stop_listening(struct http_server *server); /* drain: no new connections; keep-alive ends with the next answer */
void http_server_close(struct http_server *server);          /* cuts what is left, frees */
struct http_counters {
    uint64_t connections_open, requests_total, refused_total; /* refused: answered by the shim itself (400, 413, 415, full) */
};
struct http_counters http_server_counters(const struct http_server *server);

/* Header by lower-case name; an empty slice (p NULL) when absent. */
struct str http_header(const struct http_request *request, const char *name);
/* First value of a query parameter, %-decoded into scratch; false when absent or badly encoded. `index` 0, 1, … for repeated ones. */
bool http_query_param(const struct http_request *request, const char *name, size_t index, struct buf *scratch, struct str *value);

/* --- answers: each ends the reply. The body is copied. --- */
void http_reply_json(struct http_reply *reply, int status, struct str json); /* MessagePack when the request wants it; Cache-Control: no-store */
void http_reply_error(struct http_reply *reply, enum err err, const char *field, const char *format, ...)
    PRINTF_LIKE(4, 5); /* field may be NULL; format NULL = the table's sentence. Adds Retry-After for 429/503, Allow for 405 (see http_reply_header) */
void http_reply_text(struct http_reply *reply, int status, const char *content_type, struct str body);
/* Adds a header to the coming answer (static name, value copied). */
void http_reply_header(struct http_reply *reply, const char *name, const char *value);
/* Called when the client leaves before the answer (once at most, never from inside another http call); answering is still required and goes
 * nowhere. NULL takes it back. For answers that are waited for (long polls) the shim watches the socket. */
void http_reply_on_gone(struct http_reply *reply, void (*gone)(void *arg), void *arg);

/* --- taking a socket over: ends the reply, no HTTP afterwards --- */

struct wire_events {
    /* Bytes arrived; returns how many were used, the rest comes again with more. May close the wire. */
    size_t (*read)(void *owner, const char *p, size_t n);
    /* What was given to wire_write has been taken by the kernel: the buffers are yours again. May write again or close.
     * On a later turn, never from inside wire_write. */
    void (*written)(void *owner);
    /* The peer is gone, or wire_close has finished. The last call; the wire is freed afterwards. Buffers of an unfinished write are yours again. */
    void (*closed)(void *owner);
};

/* Answers with `status` (101, or 200 for a close-delimited stream: HTTP/1.1 with Connection: close, the shim adds that), headers and `head` as first
 * bytes, then hands the socket over: ready(owner, wire) once; wire NULL = the client left meanwhile (nothing else will be called).
 * `headers`: name, value, name, value, …, NULL. Not before HTTP/1.1 for 101. Memory: the HTTP request's is freed; an idle wire keeps no read buffer. */
void http_reply_take_over(struct http_reply *reply, int status, const char *const *headers, struct str head,
    const struct wire_events *events, void *owner, void (*ready)(void *owner, struct wire *wire));

/* One write at a time: only when !wire_writing(). All buffers must live until written() or closed(). Gathered into as few system calls as possible. */
void wire_write(struct wire *wire, const uv_buf_t *bufs, size_t count);
bool wire_writing(const struct wire *wire);
void wire_close(struct wire *wire); /* now; unsent bytes are lost; closed() follows on a later turn, never from inside this call */
void wire_stop_reading(struct wire *wire);
int wire_fd(const struct wire *wire);

#endif
