/*
 * A reader that is still sending when it is refused. libh2o answers 413 as soon as it sees the length and closes; the
 * kernel then answers what is still on its way with a reset, which destroys our answer before the client looks at it.
 * So a second descriptor keeps such a socket open for a moment: our side is shut once the answer is out, and what comes
 * is thrown away until the client has read it and left.
 */
#define _GNU_SOURCE
#include "http_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    ANSWER_MS = 50, /* until then the answer is in the kernel: it is a few hundred bytes */
    LINGER_MS = 3000,
    LINGER_BYTES = 64 << 20,
    LINGERS_MAX = 100 /* more are reset */
};

struct linger_socket {
    struct list link; /* server->lingers */
    struct http_server *server;
    uv_poll_t poll;
    uv_timer_t timer;
    int fd, handles_open;
    bool shut;
    size_t bytes_left;
};

static void on_data(uv_poll_t *poll, int status, int events);
static void on_time(uv_timer_t *timer);
static void linger_end(struct linger_socket *socket);

void linger_start(struct http_server *server, int fd)
{
    struct linger_socket *linger;
    int copy;

    if (server->linger_count >= LINGERS_MAX || (copy = fcntl(fd, F_DUPFD_CLOEXEC, 0)) < 0)
        return;
    linger = xcalloc(1, sizeof *linger);
    linger->server = server;
    linger->fd = copy;
    linger->bytes_left = LINGER_BYTES;
    linger->handles_open = 2;
    uv_poll_init(server->loop, &linger->poll, copy);
    uv_timer_init(server->loop, &linger->timer);
    linger->poll.data = linger->timer.data = linger;
    uv_poll_start(&linger->poll, UV_READABLE, on_data);
    uv_timer_start(&linger->timer, on_time, ANSWER_MS, LINGER_MS);
    list_push_back(&server->lingers, &linger->link);
    server->linger_count++;
}

void lingers_end(struct http_server *server)
{
    struct linger_socket *linger;

    list_for_each (linger, &server->lingers, link)
        linger_end(linger);
}

static void on_data(uv_poll_t *poll, int status, int events)
{
    struct linger_socket *linger = poll->data;
    static char bin[65536];
    ssize_t n;

    (void)events;
    n = status < 0 ? 0 : recv(linger->fd, bin, sizeof bin, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n < 0)
        n = 0; /* the client has reset it */
    linger->bytes_left -= (size_t)n < linger->bytes_left ? (size_t)n : linger->bytes_left;
    if (n == 0 || !linger->bytes_left)
        linger_end(linger);
}

static void on_time(uv_timer_t *timer)
{
    struct linger_socket *linger = timer->data;

    if (linger->shut) {
        linger_end(linger);
        return;
    }
    linger->shut = true;
    shutdown(linger->fd, SHUT_WR);
}

static void on_closed(uv_handle_t *handle)
{
    struct linger_socket *linger = handle->data;

    if (--linger->handles_open == 0)
        free(linger);
}

static void linger_end(struct linger_socket *linger)
{
    list_remove(&linger->link);
    linger->server->linger_count--;
    uv_poll_stop(&linger->poll);
    close(linger->fd);
    uv_close((uv_handle_t *)&linger->poll, on_closed);
    uv_close((uv_handle_t *)&linger->timer, on_closed);
}
