/*
 * PostgreSQL on the loop: connections in libpq pipeline mode, each statement its own implicit transaction (one Sync
 * each). A pool has lanes, so that a slow read never stands before a commit or a lease: PG_WRITE and PG_CONTROL have
 * one connection each, PG_READ several. Connections come back by themselves (0.1 to 2 s apart, with jitter). Statements
 * are prepared once per connection. Thread: the loop's. Library: libpq 15.
 */
#ifndef ROOMD_BASE_PG_H
#define ROOMD_BASE_PG_H

#include "buf.h"
#include "err.h"
#include "list.h"
#include "ulid.h"

#include <libpq-fe.h>
#include <uv.h>

struct pg;
enum pg_lane { PG_WRITE, PG_READ, PG_CONTROL, PG_LANES };

struct pg_settings {
    const char *url;
    int read_connections;
    int64_t timeout_ms; /* for queries whose own timeout_ms is 0; PG_WRITE has none unless asked: a commit is never
                           given up, unless another connection came up with another server meanwhile */
    int64_t queue_max;  /* per lane; more: ERR_UNAVAILABLE */
};

/* SQL text with $1…; static. Addresses are identities: one `static const struct pg_statement` per statement. */
struct pg_statement {
    const char *name; /* unique in the program */
    const char *sql;
    int params;
};

#define PG_PARAMS_MAX 64

/* Values for one execution, all in binary format unless text is said. They are copied by pg_submit (into libpq's buffer
 * or ours). */
struct pg_params {
    struct buf data;
    int count;
    struct {
        size_t at;
        int n; /* -1 = NULL */
        int format;
    } value[PG_PARAMS_MAX];
};
void pg_params_reset(struct pg_params *params); /* keeps the memory */
void pg_params_clear(struct pg_params *params);
void pg_param_null(struct pg_params *params);
void pg_param_i64(struct pg_params *params, int64_t value); /* int8 */
void pg_param_i32(struct pg_params *params, int32_t value); /* int4 */
void pg_param_bool(struct pg_params *params, bool value);
void pg_param_text(struct pg_params *params, struct str value); /* also for json/text columns */
void pg_param_bytea(struct pg_params *params, struct str value);
void pg_param_uuid(struct pg_params *params, struct id128 value);
/* One-dimensional arrays: begin, then the items, then end. */
enum pg_type { PG_INT2 = 21, PG_INT4 = 23, PG_INT8 = 20, PG_TEXT = 25, PG_BYTEA = 17, PG_UUID = 2950, PG_BOOL = 16 };

/* An array that grows apart from the parameters (a batch fills ten at once), then becomes one parameter. */
struct pg_array {
    struct buf data; /* header of 20 bytes, then the items */
    int count;
    enum pg_type type;
};
void pg_array_reset(struct pg_array *array, enum pg_type type);
void pg_array_clear(struct pg_array *array);
void pg_array_null(struct pg_array *array);
void pg_array_i64(struct pg_array *array, int64_t value);
void pg_array_i32(struct pg_array *array, int32_t value);
void pg_array_i16(struct pg_array *array, int16_t value);
void pg_array_bool(struct pg_array *array, bool value);
void pg_array_bytes(struct pg_array *array, struct str value); /* text and bytea */
void pg_array_uuid(struct pg_array *array, struct id128 value);
void pg_array_uuid_or_null(struct pg_array *array, struct id128 value); /* all zero: NULL */
void pg_param_array(struct pg_params *params, struct pg_array *array);

/* One execution. Embedded in the operation that waits for it; must live until done. */
struct pg_query {
    const struct pg_statement *statement;
    enum pg_lane lane;
    int64_t timeout_ms; /* 0: the pool's for this lane */
    /*
     * Called once, later, on the loop, never from inside pg_submit. `result` (binary format) is borrowed for the call:
     *   ERR_OK           rows or command done and committed
     *   ERR_DATABASE     the server refused; pg_sqlstate(result) says why
     *   ERR_UNAVAILABLE  was never sent: queue full, no connection until the deadline, pool closed. result NULL
     *   ERR_LOST         was sent, the connection broke: the outcome is unknown. result NULL
     *   ERR_TIMEOUT      was sent, no answer within timeout_ms: the outcome is unknown, its connection is discarded.
     *                    result NULL
     */
    void (*done)(struct pg_query *query, enum err err, const PGresult *result);
    /* the pool's; all zero before the first use */
    struct pg *pg;
    struct list link;
    struct pg_params *copy;
    struct pg_slot *slot;
    uint64_t deadline_ms;
    enum { PG_IDLE, PG_WAITING, PG_REFUSED, PG_SENT } state;
};
/* Queries of one lane with one connection (PG_WRITE, PG_CONTROL) run in the order of submission. `params` is copied or
 * sent before return. NULL: none. When a connection is away: PG_WRITE refuses at once with ERR_UNAVAILABLE (the writer
 * decides); the others wait for it until their deadline. */
void pg_submit(struct pg *pg, struct pg_query *query, const struct pg_params *params);
/* The owner no longer cares: done will not be called. A query already sent still runs. Harmless when it is not under
 * way. */
void pg_forget(struct pg_query *query);

/* returns at once; connects by itself */
MUST_USE enum err pg_open(struct pg **out, uv_loop_t *loop, const struct pg_settings *settings);
void pg_close(struct pg *pg);
bool pg_up(const struct pg *pg, enum pg_lane lane);
/* News of a lane's connection: up (each time anew; backend pid and start identify the session) or down (a "down"
 * follows the ERR_LOST of what was in flight). One listener per lane. What is up already is told at once, from inside.
 */
void pg_on_state(struct pg *pg, enum pg_lane lane, void (*changed)(void *arg, bool up, int backend_pid), void *arg);
struct pg_counters {
    uint64_t statements_total, errors_total, reconnects_total;
    uint32_t waiting, in_flight;
};
struct pg_counters pg_counters(const struct pg *pg, enum pg_lane lane);

/* Results in binary format. Column and row must exist; NULL gives 0 / empty. */
const char *pg_sqlstate(const PGresult *result); /* "00000" when there is none */
bool pg_is_null(const PGresult *result, int row, int column);
int64_t pg_get_i64(const PGresult *result, int row, int column); /* int2, int4, int8 by length */
bool pg_get_bool(const PGresult *result, int row, int column);
struct str pg_get_str(const PGresult *result, int row, int column); /* text, bytea; borrowed from result */
struct id128 pg_get_uuid(const PGresult *result, int row, int column);
/* Reads a one-dimensional array column item by item: n items; item i. */
int pg_get_array(const PGresult *result, int row, int column, struct str *items, int max);

#endif
