/*
 * Does the database have what this program needs? Asked when it starts, and again until the database answers: an
 * instance may start while the database is away, but must not work on tables it does not know. Thread: the loop's.
 */
#ifndef ROOMD_SERVER_SCHEMA_H
#define ROOMD_SERVER_SCHEMA_H

#include "room/base/pg.h"

enum schema_state {
    SCHEMA_UNKNOWN, /* no answer yet */
    SCHEMA_GOOD,    /* all migrations this program knows are applied; newer ones do no harm */
    SCHEMA_OLD      /* some are not */
};

struct schema_watch;
/* told() comes with SCHEMA_UNKNOWN when a question was not answered, at last with one of the others, then no more. */
struct schema_watch *schema_watch_start(
    uv_loop_t *loop, struct pg *pg, void (*told)(void *arg, enum schema_state state), void *arg);
void schema_watch_stop(struct schema_watch *watch); /* before pg_close */

#endif
