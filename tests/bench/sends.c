/*
 * Messages by HTTP POST, each answered after the broker's confirm: as many kept-alive connections as told, each with
 * one message on its way. Through a gateway as a frontend sends them, or straight at an instance (history/Push).
 *
 *   --plan FILE        room ids; connection i sends to room i modulo their number
 *   --way gateway      POST /api/rooms/<room>/messages with --key SESSION_TOKEN
 *   --way push         POST /v1/history/Push with --key SERVICE_KEY
 *   --host 127.0.0.1 --port P --connections 16 --seconds 4 --warmup 1
 */
#include "load.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CONNECTIONS_MAX = 1024 };

struct sender {
    int fd;
    const char *room;
    struct buf in, request;
    int64_t sent_at;
};

struct sends {
    struct sender senders[CONNECTIONS_MAX];
    int count;
    bool push;
    const char *key;
    char run[32];
    uint64_t number, answered;
    int64_t measure_from, measure_to;
    struct spread latency;
};

static void sender_open(struct sender *sender, const char *host, int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int yes = 1;

    inet_pton(AF_INET, host, &address.sin_addr);
    sender->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (sender->fd < 0 || connect(sender->fd, (struct sockaddr *)&address, sizeof address))
        give_up("connect", strerror(errno));
    setsockopt(sender->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

static void send_one(struct sends *sends, struct sender *sender)
{
    char text[TEXT_BYTES], body[512], path[128] = "/v1/history/Push";
    int n = 0;

    sender->sent_at = now_ns();
    text_write(text, sender->sent_at, (uint32_t)sends->number);
    if (sends->push)
        n = snprintf(body, sizeof body, "{\"room_id\":\"%s\",\"sender\":\"bench\",", sender->room);
    else
        snprintf(path, sizeof path, "/api/rooms/%s/messages", sender->room);
    n += snprintf(body + n, sizeof body - (size_t)n,
        "%s\"client_msg_id\":\"%s-%08" PRIx64 "\",\"kind\":\"text\",\"content\":\"%.*s\"}", n ? "" : "{", sends->run,
        sends->number++, TEXT_BYTES, text);
    buf_reset(&sender->request);
    buf_printf(&sender->request,
        "POST %s HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"
        "Content-Length: %d\r\n\r\n%s",
        path, sends->key, n, body);
    if (n >= (int)sizeof body ||
        send(sender->fd, sender->request.p, sender->request.n, MSG_NOSIGNAL) != (ssize_t)sender->request.n)
        give_up("request", strerror(errno));
}

/* A whole answer, and it says that the message is with the broker? */
static bool is_sent(const struct buf *in)
{
    const char *end = memmem(in->p, in->n, "\r\n\r\n", 4), *length;
    size_t head, bytes;

    if (!end)
        return false;
    head = (size_t)(end - in->p) + 4;
    length = memmem(in->p, head, "ontent-length: ", 15);
    length = length ? length : memmem(in->p, head, "ontent-Length: ", 15);
    bytes = length ? strtoul(length + 15, NULL, 10) : 0;
    if (in->n < head + bytes)
        return false;
    if (in->n < 12 || memcmp(in->p + 9, "200", 3) || !memmem(end, bytes + 4, "\"message_id\"", 12)) {
        fprintf(stderr, "%.*s\n", (int)in->n, in->p);
        give_up("send", "refused");
    }
    return true;
}

static void read_answer(struct sends *sends, struct sender *sender)
{
    const size_t piece = 16 * 1024;
    ssize_t n = recv(sender->fd, buf_reserve(&sender->in, piece), piece, 0);
    int64_t now = now_ns();

    if (n <= 0)
        give_up("send", n ? strerror(errno) : "connection closed");
    sender->in.n += (size_t)n;
    if (!is_sent(&sender->in))
        return;
    if (now >= sends->measure_from && now < sends->measure_to) {
        sends->answered++;
        spread_add(&sends->latency, now - sender->sent_at);
    }
    buf_reset(&sender->in);
    send_one(sends, sender);
}

static void run(struct sends *sends)
{
    struct pollfd fds[CONNECTIONS_MAX];

    for (int i = 0; i < sends->count; i++) {
        fds[i] = (struct pollfd){.fd = sends->senders[i].fd, .events = POLLIN};
        send_one(sends, &sends->senders[i]);
    }
    while (now_ns() < sends->measure_to) {
        if (!poll(fds, (nfds_t)sends->count, 10000))
            give_up("send", "no answer for 10 s");
        for (int i = 0; i < sends->count; i++)
            if (fds[i].revents)
                read_answer(sends, &sends->senders[i]);
    }
}

int main(int argc, char **argv)
{
    static struct sends sends;
    double seconds = option_number(argc, argv, "seconds", 4), warmup_s = option_number(argc, argv, "warmup", 1),
           cpu_s = own_cpu_s();
    struct plan plan = plan_read(option(argc, argv, "plan", ""));
    struct result result = {0};

    sends.push = !strcmp(option(argc, argv, "way", "gateway"), "push");
    sends.key = option(argc, argv, "key", "");
    sends.count = (int)option_number(argc, argv, "connections", 16);
    if (sends.count < 1 || sends.count > CONNECTIONS_MAX)
        give_up("connections", "out of range");
    snprintf(sends.run, sizeof sends.run, "%" PRIx64, (uint64_t)now_ns());
    for (int i = 0; i < sends.count; i++) {
        sends.senders[i].room = plan.lines[(size_t)i % plan.count].rooms;
        sender_open(
            &sends.senders[i], option(argc, argv, "host", "127.0.0.1"), (int)option_number(argc, argv, "port", 7480));
    }
    sends.measure_from = now_ns() + (int64_t)(warmup_s * 1e9);
    sends.measure_to = sends.measure_from + (int64_t)(seconds * 1e9);
    run(&sends);
    result_add(&result, "sends_per_s", (double)sends.answered / seconds);
    result_add_spread(&result, "latency", &sends.latency);
    result_add(&result, "client_cpu", (own_cpu_s() - cpu_s) / (seconds + warmup_s));
    result_print(&result);
    return 0;
}
