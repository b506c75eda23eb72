/*
 * One TCP or TLS connection, from a host name to bytes in and bytes out; nothing in it blocks. It is used once: when
 * it breaks, its owner drops it and opens another. Thread: the loop's.
 */
#ifndef ROOMD_BASE_AMQP_CONN_H
#define ROOMD_BASE_AMQP_CONN_H

#include "buf.h"

#include <openssl/ssl.h>
#include <uv.h>

struct amqp_conn;

/* None of these is called from inside a call, or after amqp_conn_drop. */
struct amqp_conn_events {
    void (*connected)(void *owner);               /* TLS too: what is in amqp_conn_out goes now */
    void (*received)(void *owner);                /* there is more in amqp_conn_in */
    void (*broken)(void *owner, const char *why); /* also from amqp_conn_flush; drop it */
};

enum { AMQP_CONN_STEP_MS = 3000 }; /* for the name, for each of its addresses, for TLS */

/* tls: NULL for plain TCP; the peer must be `host`. */
struct amqp_conn *amqp_conn_open(
    uv_loop_t *loop, const char *host, uint16_t port, SSL_CTX *tls, const struct amqp_conn_events *events, void *owner);
void amqp_conn_drop(struct amqp_conn *conn);                  /* closes; frees itself when the loop lets it */
void amqp_conn_tick(struct amqp_conn *conn, uint64_t now_ms); /* gives up a step that takes too long */

struct buf *amqp_conn_out(struct amqp_conn *conn); /* add here, then amqp_conn_flush */
size_t amqp_conn_unsent(const struct amqp_conn *conn);
void amqp_conn_flush(struct amqp_conn *conn); /* what the socket does not take goes when it can */
struct str amqp_conn_in(const struct amqp_conn *conn);
void amqp_conn_consume(struct amqp_conn *conn, size_t n);

void amqp_conn_pause(struct amqp_conn *conn, bool pause);  /* reading stops; nothing is lost */
bool amqp_conn_has_unread(const struct amqp_conn *conn);   /* the kernel has bytes for us */
uint64_t amqp_conn_heard_ms(const struct amqp_conn *conn); /* loop time of the last byte in … */
uint64_t amqp_conn_sent_ms(const struct amqp_conn *conn);  /* … and out */

#endif
