/*
 * Stopping in order. The first SIGTERM or SIGINT begins, the second one ends the process at once.
 *
 *   RUNNING ─signal─▶ SHARDS ─handed over, or 10 s─▶ STREAMS ─none left, or drain_ms─▶ CALLS
 *                                           CALLS ─none open, or 5.5 s─▶ REST ─cursors written─▶ DONE
 *
 * Shards go first: their rooms flow on at their new owners while streams are still open here, and what is called
 * meanwhile is answered by way of those. When nobody else lives there is nobody to hand them to: then they go last, as
 * part of the rest, so that open calls still find an owner.
 *
 * What comes then is main's list upwards.
 *
 * Thread: the loop's.
 */
#ifndef ROOMD_SERVER_DRAIN_H
#define ROOMD_SERVER_DRAIN_H

#include "service.h"

/* Listens for the signals. done(service) when everything is handed over: the loop is to be stopped then. */
struct drain *drain_listen(struct service *service, void (*done)(struct service *service));
void drain_close(struct drain *drain);

#endif
