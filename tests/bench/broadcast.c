/*
 * The bare limit of fan-out: accepts N WebSocket connections without looking at them and writes the same ready-made
 * frames to all of them. No rooms, no queues, no broker; what roomd reaches is told as a share of this.
 * Prints a line when it listens; ends when the first reader leaves.
 *
 *   --port P --streams N
 *   --burst 64   frames to a write, as fast as the sockets take them (the big lever: a write per frame is 20 times
 *                slower)
 *   --rate N     instead: one frame to everybody N times a second, with the time it was due
 */
#include "load.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

struct receiver {
    int fd;
    size_t sent; /* of the ready-made bytes, which go round and round */
};

struct broadcast {
    int listener, epoll;
    struct receiver *receivers;
    uint32_t count, joined;
    struct buf frames;
    size_t text_at; /* of the only frame, with --rate */
};

static void listen_at(struct broadcast *broadcast, int port);
static void accept_all(struct broadcast *broadcast);
static void make_frames(struct broadcast *broadcast, int count);
static void send_paced(struct broadcast *broadcast, double rate);
static void send_all(struct broadcast *broadcast);

int main(int argc, char **argv)
{
    static struct broadcast broadcast;
    double rate = option_number(argc, argv, "rate", 0);

    broadcast.count = (uint32_t)option_number(argc, argv, "streams", 1000);
    broadcast.receivers = xcalloc(broadcast.count, sizeof *broadcast.receivers);
    make_frames(&broadcast, rate > 0 ? 1 : (int)option_number(argc, argv, "burst", 64));
    listen_at(&broadcast, (int)option_number(argc, argv, "port", 0));
    accept_all(&broadcast);
    if (rate > 0)
        send_paced(&broadcast, rate);
    send_all(&broadcast);
    return 0;
}

/* As long as roomd's for the same message. */
static void make_frames(struct broadcast *broadcast, int count)
{
    struct buf event = {0};
    char text[TEXT_BYTES];

    text_write(text, 0, 0);
    buf_printf(&event, "{\"type\":\"message\",\"room_id\":\"s00.01ARZ3NDEKTSV4RRFFQ69G5FAV\",\"epoch\":1,\"seq\":"
                       "100000,\"at\":1700000000000,"
                       "\"message_id\":\"01ARZ3NDEKTSV4RRFFQ69G5FAV\",\"client_msg_id\":\"10000000000-00000000\","
                       "\"sender\":\"bench\",\"kind\":\"text\","
                       "\"content\":\"");
    broadcast->text_at = 4 + event.n;
    buf_printf(&event, "%.*s\"}", TEXT_BYTES, text);
    for (int i = 0; i < count; i++) {
        char head[4] = {(char)0x81, 126, (char)(event.n >> 8), (char)event.n};

        buf_add(&broadcast->frames, head, sizeof head);
        buf_add_str(&broadcast->frames, buf_str(&event));
    }
    buf_clear(&event);
}

static void listen_at(struct broadcast *broadcast, int port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int yes = 1;

    broadcast->epoll = epoll_create1(EPOLL_CLOEXEC);
    broadcast->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(broadcast->listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(broadcast->listener, (struct sockaddr *)&address, sizeof address) || listen(broadcast->listener, 4096))
        give_up("listen", strerror(errno));
    puts("listening");
    fflush(stdout);
}

static void welcome(struct broadcast *broadcast, struct receiver *receiver)
{
    static const char answer[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: "
                                 "Upgrade\r\n\r\n\x81\x10{\"type\":\"hello\"}";
    struct epoll_event wanted = {.events = EPOLLOUT | EPOLLET, .data.ptr = receiver};
    char request[4096];

    if (recv(receiver->fd, request, sizeof request, 0) <= 0 ||
        send(receiver->fd, answer, sizeof answer - 1, MSG_NOSIGNAL) != sizeof answer - 1 ||
        epoll_ctl(broadcast->epoll, EPOLL_CTL_ADD, receiver->fd, &wanted))
        give_up("welcome", strerror(errno));
}

static void accept_all(struct broadcast *broadcast)
{
    int yes = 1, bytes = 64 * 1024; /* as roomd's stream_send_buffer_bytes */

    while (broadcast->joined < broadcast->count) {
        struct receiver *receiver = &broadcast->receivers[broadcast->joined++];

        receiver->fd = accept4(broadcast->listener, NULL, NULL, SOCK_CLOEXEC);
        if (receiver->fd < 0)
            give_up("accept", strerror(errno));
        setsockopt(receiver->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        setsockopt(receiver->fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
        welcome(broadcast, receiver);
    }
}

/* What the socket takes; false: nothing. */
static bool send_more(struct broadcast *broadcast, struct receiver *receiver)
{
    const struct buf *frames = &broadcast->frames;
    ssize_t n = send(receiver->fd, frames->p + receiver->sent, frames->n - receiver->sent, MSG_NOSIGNAL | MSG_DONTWAIT);

    if (n < 0 && errno != EAGAIN)
        exit(0);
    if (n <= 0)
        return false;
    receiver->sent = (receiver->sent + (size_t)n) % frames->n;
    return true;
}

static void send_all(struct broadcast *broadcast)
{
    static struct epoll_event ready[1024];

    for (;;) {
        bool any = false;

        for (uint32_t i = 0; i < broadcast->count; i++)
            any |= send_more(broadcast, &broadcast->receivers[i]);
        if (!any)
            epoll_wait(broadcast->epoll, ready, countof(ready), 10);
    }
}

static void send_paced(struct broadcast *broadcast, double rate)
{
    struct pace pace = pace_of(rate);

    for (uint64_t number = 1;; number++) {
        int64_t due = pace_due(&pace, number, 0), now = now_ns();

        if (due > now)
            clock_nanosleep(CLOCK_MONOTONIC, 0,
                &(struct timespec){.tv_sec = (due - now) / NS_PER_S, .tv_nsec = (due - now) % NS_PER_S}, NULL);
        text_write(broadcast->frames.p + broadcast->text_at, due, (uint32_t)number);
        for (uint32_t i = 0; i < broadcast->count; i++)
            if (!send_more(broadcast, &broadcast->receivers[i]) || broadcast->receivers[i].sent)
                give_up("receiver", "does not take a frame");
    }
}
