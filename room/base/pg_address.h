/*
 * Where the database is: a connection string made ready for PQconnectStart, which would block the loop while it looks
 * up a name. So every name in it is looked up on the side and given as hostaddr beside host (which stays, for TLS and
 * the password file). Several hosts, target_session_attrs and sslmode keep their meaning; with several hosts, or a name
 * that stands for several, and no wish, only the one that can be written to will do. A host inside a service file is
 * the one thing not seen here.
 * Thread: the loop's. Library: libpq 15.
 */
#ifndef ROOMD_BASE_PG_ADDRESS_H
#define ROOMD_BASE_PG_ADDRESS_H

#include "buf.h"
#include "err.h"

#include <libpq-fe.h>
#include <uv.h>

struct pg_address;

/* `url` is a libpq connection string or URL.
 *   ERR_BAD_REQUEST  it is not, or names more than 16 hosts (logged without the string: it may hold a password) */
MUST_USE enum err pg_address_parse(struct pg_address **out, const char *url);
void pg_address_free(struct pg_address *address);
/* For one attempt; 3 s when the string does not say. */
uint64_t pg_address_connect_timeout_ms(const struct pg_address *address);

/* Looking up all names of an address, one after the other. Embedded in the one who waits; one use at a time. */
struct pg_lookup {
    uv_getaddrinfo_t request;
    uv_loop_t *loop;
    const struct pg_address *address;
    int first, next, found; /* found: lines in the lists below */
    struct buf hosts, addresses, ports;
    bool any_address;
    bool cancelled;
    bool waiting; /* the request is under way: the struct must live until done */
    void (*done)(struct pg_lookup *lookup, bool found);
};

/* done is called at once when there is nothing to look up. `first`: the host to begin with, counted around; an attempt
 * that hangs never gets to the next host by itself. */
void pg_lookup_start(struct pg_lookup *lookup, uv_loop_t *loop, const struct pg_address *address, int first,
    void (*done)(struct pg_lookup *lookup, bool found));
void pg_lookup_cancel(struct pg_lookup *lookup); /* done still comes, when it is waiting */
void pg_lookup_clear(struct pg_lookup *lookup);

/* Begins to connect to what was found. `options`: settings of the session ("-c name=value ..."); those of the string
 * win. */
PGconn *pg_address_connect(const struct pg_address *address, const struct pg_lookup *lookup, const char *options);

/* For a program without a loop: connects in the same way and waits for it, timeout_s (seconds, as text) for each
 * address. NULL: the string is not understood, or none of its hosts has an address (both are logged); else PQstatus
 * tells. The caller's. */
PGconn *pg_connect_and_wait(const char *url, const char *options, const char *timeout_s);

#endif
