/*
 * How the modules are put together: settings into each, news of each into the next. Every wire_… gives NULL when it did
 * not work, after a sentence on stderr that tells what to do. Thread: main, before the loop.
 */
#ifndef ROOMD_SERVER_WIRING_H
#define ROOMD_SERVER_WIRING_H

#include "service.h"

struct pg *wire_pg(struct service *service);
struct history *wire_history(struct service *service);
struct http_server *wire_http(struct service *service);
struct cluster *wire_cluster(struct service *service);
struct amqp_link *wire_link(struct service *service, const char *name); /* publish, consume */
struct proxy *wire_proxy(struct service *service);

/* The address gateways reach this instance at; static memory. */
const char *wire_url(const struct service *service);
void wire_stop_loop(struct service *service);

#endif
