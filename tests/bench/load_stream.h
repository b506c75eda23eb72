/*
 * Many readers of streams in one thread: opens WebSocket or SSE streams and hands out each event once. Cheap, because
 * it shares the machine with what is measured: one recv for as much as there is, frames are read where they lie, only
 * the begin of a frame that has not arrived whole is copied.
 */
#ifndef ROOMD_BENCH_LOAD_STREAM_H
#define ROOMD_BENCH_LOAD_STREAM_H

#include "load.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ_PIECE = 256 * 1024, LEFT_MAX = 1024 * 1024 };

/* CONNECTING -connected-> ASKED -head of the answer-> OPEN -hello-> LIVE */
enum reader_state { READER_CONNECTING, READER_ASKED, READER_OPEN, READER_LIVE };
struct reader {
    int fd;
    enum reader_state state;
    uint32_t left_n, room;   /* room: the caller's */
    uint32_t retry_after_ms; /* as the server said before it closed */
    bool ended;
    const char *ticket; /* or, through a gateway: the address it gave (a path) and a session's token */
    char *left;         /* what has arrived of a frame (SSE: of a line) that is not whole */
};

struct readers {
    int epoll;
    struct sockaddr_in address;
    bool sse;
    uint32_t opened, live; /* live: hello was read */
    uint64_t bytes;
    char *piece; /* LEFT_MAX + READ_PIECE */
    void (*event)(void *owner, struct reader *reader, const char *json, size_t n);
    /* The stream was refused, closed or cut; the reader is closed then. NULL: that ends the program. */
    void (*lost)(void *owner, struct reader *reader, uint32_t retry_after_ms);
    void *owner;
};

static inline void readers_init(struct readers *readers, const char *host, int port, bool sse)
{
    *readers =
        (struct readers){.epoll = epoll_create1(EPOLL_CLOEXEC), .sse = sse, .piece = xmalloc(LEFT_MAX + READ_PIECE)};
    readers->address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (readers->epoll < 0 || inet_pton(AF_INET, host, &readers->address.sin_addr) != 1)
        give_up("address of the streams", host);
}

static inline void reader_open(struct readers *readers, struct reader *reader, const char *ticket)
{
    struct epoll_event wanted = {.events = EPOLLOUT, .data.ptr = reader};

    reader->ticket = ticket;
    reader->state = READER_CONNECTING;
    reader->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (reader->fd < 0)
        give_up("socket", strerror(errno));
    if (connect(reader->fd, (struct sockaddr *)&readers->address, sizeof readers->address) && errno != EINPROGRESS)
        give_up("connect", strerror(errno));
    if (epoll_ctl(readers->epoll, EPOLL_CTL_ADD, reader->fd, &wanted))
        give_up("epoll", strerror(errno));
    readers->opened++;
}

static inline void reader_close(struct readers *readers, struct reader *reader)
{
    bool live = reader->state == READER_LIVE;

    close(reader->fd);
    free(reader->left);
    *reader = (struct reader){.fd = -1, .room = reader->room};
    readers->opened--;
    readers->live -= live;
}

static inline void reader_ask(struct readers *readers, struct reader *reader)
{
    struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = reader};
    struct buf request = {0};
    const char *ticket = reader->ticket ? reader->ticket : "-";
    size_t path_n = *ticket == '/' ? strcspn(ticket, " ") : 0;
    int error = 0, off = 0;
    socklen_t size = sizeof error;

    getsockopt(reader->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error && readers->lost) {
        reader->ended = true;
        return;
    }
    if (error)
        give_up("connect", strerror(error));
    /* A reader that also writes does not acknowledge each segment at once; one that only reads would. */
    setsockopt(reader->fd, IPPROTO_TCP, TCP_QUICKACK, &off, sizeof off);
    if (path_n)
        buf_printf(&request, "GET %.*s HTTP/1.1\r\nHost: bench\r\n", (int)path_n, ticket);
    else
        buf_printf(&request, "GET /v1/stream/%s HTTP/1.1\r\nHost: bench\r\n", readers->sse ? "sse" : "ws");
    if (!readers->sse)
        buf_text(&request, "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                           "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n");
    buf_printf(&request, "Authorization: Bearer %s\r\n\r\n", path_n ? ticket + path_n + 1 : ticket);
    if (send(reader->fd, request.p, request.n, MSG_NOSIGNAL) != (ssize_t)request.n)
        give_up("request", strerror(errno));
    buf_clear(&request);
    reader->state = READER_ASKED;
    epoll_ctl(readers->epoll, EPOLL_CTL_MOD, reader->fd, &wanted);
}

static inline void reader_event(struct readers *readers, struct reader *reader, const char *json, size_t n)
{
    static const char hello[] = "{\"type\":\"hello\"", error[] = "{\"type\":\"error\"";

    if (reader->state == READER_LIVE) {
        readers->event(readers->owner, reader, json, n);
        return;
    }
    if (n >= sizeof error - 1 && !memcmp(json, error, sizeof error - 1) && readers->lost) {
        const char *at = memmem(json, n, "\"retry_after_ms\":", 17);

        reader->retry_after_ms = at ? (uint32_t)strtoul(at + 17, NULL, 10) : 0;
        return;
    }
    if (n >= sizeof error - 1 && !memcmp(json, error, sizeof error - 1)) {
        fprintf(stderr, "%.*s\n", (int)n, json);
        give_up("stream", "refused");
    }
    if (n >= sizeof hello - 1 && !memcmp(json, hello, sizeof hello - 1)) {
        reader->state = READER_LIVE;
        readers->live++;
    }
}

/* A frame of the server: unmasked (RFC 6455, 5.2). 0: not whole yet. */
static inline size_t frame_read(const uint8_t *p, size_t n, const char **payload, size_t *payload_n)
{
    size_t head = 2;

    if (n < 2)
        return 0;
    *payload_n = p[1];
    if (p[1] == 126) {
        head = 4;
        if (n < head)
            return 0;
        *payload_n = (size_t)p[2] << 8 | p[3];
    } else if (p[1] == 127) {
        head = 10;
        if (n < head)
            return 0;
        *payload_n = 0;
        for (int i = 2; i < 10; i++)
            *payload_n = *payload_n << 8 | p[i];
    }
    *payload = (const char *)p + head;
    return n - head < *payload_n ? 0 : head + *payload_n;
}

static inline void reader_control(
    struct readers *readers, struct reader *reader, int opcode, const char *payload, size_t n)
{
    uint8_t pong[2 + 4 + 125] = {0x80 | 10, (uint8_t)(0x80 | n)}; /* a mask of zeros changes nothing */

    if (opcode == 8 && readers->lost) {
        reader->ended = true;
        return;
    }
    if (opcode == 8) {
        fprintf(stderr, "code %d %.*s\n", n >= 2 ? (uint8_t)payload[0] << 8 | (uint8_t)payload[1] : 0,
            (int)(n > 2 ? n - 2 : 0), payload + 2);
        give_up("stream", "closed by the server");
    }
    if (opcode != 9 || n > 125)
        return;
    memcpy(pong + 6, payload, n);
    if (send(reader->fd, pong, 6 + n, MSG_NOSIGNAL) < 0)
        give_up("pong", strerror(errno));
}

static inline size_t reader_frames(struct readers *readers, struct reader *reader, const char *p, size_t n)
{
    size_t used = 0, length, payload_n;
    const char *payload;

    while ((length = frame_read((const uint8_t *)p + used, n - used, &payload, &payload_n))) {
        int opcode = p[used] & 15;

        used += length;
        if (opcode != 1) {
            reader_control(readers, reader, opcode, payload, payload_n);
            continue;
        }
        for (const char *end = payload + payload_n, *next; payload < end; payload = next + 1) {
            next = memchr(payload, '\n', (size_t)(end - payload));
            next = next ? next : end;
            reader_event(readers, reader, payload, (size_t)(next - payload));
        }
    }
    return used;
}

/* Lines that are no data, such as ids and the sizes of chunks, are stepped over: roomd never cuts an event in two
 * chunks. */
static inline size_t reader_lines(struct readers *readers, struct reader *reader, const char *p, size_t n)
{
    static const char data[] = "data: ";
    size_t used = 0;
    const char *end;

    while ((end = memchr(p + used, '\n', n - used))) {
        const char *line = p + used;
        size_t bytes = (size_t)(end - line);

        used += bytes + 1;
        if (bytes > sizeof data && !memcmp(line, data, sizeof data - 1))
            reader_event(readers, reader, line + sizeof data - 1, bytes - (sizeof data - 1));
    }
    return used;
}

static inline size_t reader_head(struct readers *readers, struct reader *reader, const char *p, size_t n)
{
    const char *end = memmem(p, n, "\r\n\r\n", 4);
    const char *wanted = readers->sse ? "HTTP/1.1 200" : "HTTP/1.1 101";

    if (!end)
        return 0;
    if (memcmp(p, wanted, strlen(wanted))) {
        fprintf(stderr, "%.*s\n", (int)n, p);
        give_up("stream", "refused");
    }
    reader->state = READER_OPEN;
    return (size_t)(end - p) + 4;
}

static inline void reader_read(struct readers *readers, struct reader *reader)
{
    size_t have = reader->left_n, used = 0;
    char *p = readers->piece + LEFT_MAX - have; /* what is left stands right before what comes */
    ssize_t n = recv(reader->fd, readers->piece + LEFT_MAX, READ_PIECE, MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0 && readers->lost) {
        reader->ended = true;
        return;
    }
    if (n <= 0)
        give_up("stream", n ? strerror(errno) : "ended by the server");
    readers->bytes += (size_t)n;
    if (have)
        memcpy(p, reader->left, have);
    have += (size_t)n;
    if (reader->state == READER_ASKED)
        used = reader_head(readers, reader, p, have);
    if (reader->state != READER_ASKED)
        used += (readers->sse ? reader_lines : reader_frames)(readers, reader, p + used, have - used);
    if (have - used > LEFT_MAX)
        give_up("stream", "a frame of more than 1 MiB");
    if (have - used > reader->left_n || have == used) {
        free(reader->left);
        reader->left = have == used ? NULL : xmalloc(have - used);
    }
    reader->left_n = (uint32_t)(have - used);
    if (have > used)
        memcpy(reader->left, p + used, have - used);
}

/* One look at all readers; never waits. */
static inline bool readers_read(struct readers *readers)
{
    static struct epoll_event ready[1024];
    int n = epoll_wait(readers->epoll, ready, countof(ready), 0);

    for (int i = 0; i < n; i++) {
        struct reader *reader = ready[i].data.ptr;

        if (reader->state == READER_CONNECTING)
            reader_ask(readers, reader);
        else
            reader_read(readers, reader);
        if (reader->ended) {
            uint32_t retry_after_ms = reader->retry_after_ms;

            reader_close(readers, reader);
            readers->lost(readers->owner, reader, retry_after_ms);
        }
    }
    return n > 0;
}

#endif
