/*
 * One connection: name look-up (in a thread of its own, because it blocks), TCP, TLS, bytes in both directions. Nothing
 * blocks, nothing raises SIGPIPE. All outcomes come on later turns.
 */
#ifndef ROOMD_ADAPTER_CONN_H
#define ROOMD_ADAPTER_CONN_H

#include "adapter.h"

struct adapter_conn_events {
    void (*connected)(void *owner);
    void (*received)(void *owner);                /* there is more in conn->in: consume what you use */
    void (*broken)(void *owner, const char *why); /* `why` is borrowed; drop the connection */
};

struct adapter_conn {
    struct roomd_client *client;
    const struct adapter_conn_events *events;
    void *owner;
    struct adapter_buf in, out; /* append to out, then adapter_conn_flush */
    size_t in_max;              /* reading stops while there are as many bytes in `in` */
    int64_t heard, sent;        /* when bytes last came, left */
    struct adapter_conn_private *self;
    struct roomd_link dead; /* the client's */
};

/* NULL: no memory. The address is copied. */
struct adapter_conn *adapter_conn_open(struct roomd_client *client, const struct adapter_address *address,
    const struct adapter_conn_events *events, void *owner);
/* Now and then: an address that does not answer makes room for the name's next one. The owner has a deadline of its
 * own.
 */
void adapter_conn_tick(struct adapter_conn *conn);
/* Sends what can be sent now. What it finds broken it tells on a later turn. */
void adapter_conn_flush(struct adapter_conn *conn);
/* No events any more; closed at once, freed at the end of the turn. */
void adapter_conn_drop(struct adapter_conn *conn);
/* Frees those that were dropped; not while events are being handed out. */
void adapter_conns_reap(struct roomd_client *client);

#endif
