/*
 * A roomd_client on a libuv loop. Header only, so that the library itself needs no libuv.
 *
 *   struct roomd_uv glue;                             — must live until closed() (or the loop's end)
 *   roomd_uv_start(&glue, loop, client);              — callbacks now come on the loop
 *   …
 *   roomd_uv_stop(&glue, closed);                     — then, in closed() or later: roomd_client_close(client)
 *
 * Thread: the loop's.
 */
#ifndef ROOMD_ADAPTER_UV_H
#define ROOMD_ADAPTER_UV_H

#include "roomd_adapter.h"

#include <uv.h>

struct roomd_uv {
    uv_poll_t poll;
    struct roomd_client *client;
    void (*closed)(struct roomd_uv *glue);
};

static inline void roomd_uv_polled(uv_poll_t *poll, int status, int events)
{
    struct roomd_uv *glue = (struct roomd_uv *)poll->data;

    (void)status;
    (void)events;
    roomd_client_turn(glue->client);
}

/* 0, or an error of libuv's. */
static inline int roomd_uv_start(struct roomd_uv *glue, uv_loop_t *loop, struct roomd_client *client)
{
    int failed = uv_poll_init(loop, &glue->poll, roomd_client_fd(client));

    if (failed)
        return failed;
    glue->client = client;
    glue->poll.data = glue;
    return uv_poll_start(&glue->poll, UV_READABLE, roomd_uv_polled);
}

static inline void roomd_uv_closed(uv_handle_t *handle)
{
    struct roomd_uv *glue = (struct roomd_uv *)handle->data;

    if (glue->closed)
        glue->closed(glue);
}

/* closed (may be NULL) comes when the glue's memory is free again. The client must not be closed before that. */
static inline void roomd_uv_stop(struct roomd_uv *glue, void (*closed)(struct roomd_uv *glue))
{
    glue->closed = closed;
    uv_poll_stop(&glue->poll);
    uv_close((uv_handle_t *)&glue->poll, roomd_uv_closed);
}

#endif
