/* The running program: what main.c wires together, and what routes reach. Thread: the loop's. */
#ifndef ROOMD_SERVER_SERVICE_H
#define ROOMD_SERVER_SERVICE_H

#include <uv.h>

#include "history/history.h"
#include "proxy/proxy.h"
#include "room/base/amqp.h"
#include "room/base/cluster.h"
#include "room/base/config.h"
#include "room/base/http.h"
#include "room/base/pg.h"
#include "room/room.h"
#include "service_key.h"

struct api;
struct drain;

struct service {
    uv_loop_t *loop;
    const struct config *config;
    struct service_keys *keys;

    struct pg *pg;
    struct cluster *cluster;
    struct amqp_link *publish, *consume;
    struct rooms *rooms;
    struct history *history;
    struct proxy *proxy;
    struct api *api;
    struct http_server *http;
    struct list frames; /* of WebSocket clients, not answered yet; see api_frame.c */

    struct drain *drain;    /* from the first signal on */
    uint64_t started_at_ms; /* unix */
    bool schema_ok;         /* the database has what this program needs */
    bool draining;          /* SIGTERM came: no stream and no shard is taken any more */
    bool refusing;          /* the last part of the drain: calls are answered unavailable */
};

#endif
