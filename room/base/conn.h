/*
 * One TCP or TLS connection, from a host name to bytes in and bytes out; nothing in it blocks. It is used once: when
 * it breaks, its owner drops it and opens another. Thread: the loop's.
 */
#ifndef ROOMD_BASE_CONN_H
#define ROOMD_BASE_CONN_H

#include "buf.h"

#include <openssl/ssl.h>
#include <uv.h>

struct conn;

/* None of these is called from inside a call, or after conn_drop. */
struct conn_events {
    void (*connected)(void *owner);               /* TLS too: what is in conn_out goes now */
    void (*received)(void *owner);                /* there is more in conn_in */
    void (*drained)(void *owner);                 /* after a conn_flush: the socket has taken all; may be NULL */
    void (*broken)(void *owner, const char *why); /* also from conn_flush; drop it */
};

enum { CONN_STEP_MS = 3000 }; /* for the name, for each of its addresses, for TLS */

enum conn_kind {
    CONN_BULK, /* a few that are always busy: they keep their buffers (256 KiB, 1 MiB) */
    CONN_LEAN  /* thousands that are mostly idle, which hold no buffer then. `received` takes all there is */
};

/* tls: NULL for plain TCP; the peer must be `host`. */
struct conn *conn_open(uv_loop_t *loop, const char *host, uint16_t port, SSL_CTX *tls, enum conn_kind kind,
    const struct conn_events *events, void *owner);
void conn_drop(struct conn *conn); /* closes; frees itself when the loop lets it */
/* Gives up a step that takes too long. Without it the owner has a limit of its own for all of them. */
void conn_tick(struct conn *conn, uint64_t now_ms);

struct buf *conn_out(struct conn *conn); /* add here, then conn_flush */
size_t conn_unsent(const struct conn *conn);
void conn_flush(struct conn *conn); /* what the socket does not take goes when it can */
struct str conn_in(const struct conn *conn);
void conn_consume(struct conn *conn, size_t n);

void conn_pause(struct conn *conn, bool pause);  /* reading stops, seeing the end too; nothing is lost */
bool conn_has_unread(const struct conn *conn);   /* the kernel has bytes for us */
uint64_t conn_heard_ms(const struct conn *conn); /* loop time of the last byte in … */
uint64_t conn_sent_ms(const struct conn *conn);  /* … and out */

/* For the clients of servers that a CA in ca_file has signed ("": one the system trusts), TLS 1.2 or later. NULL: the
 * file cannot be used, and OpenSSL's error queue says why. The caller frees. */
SSL_CTX *conn_tls_new(const char *ca_file);

#endif
