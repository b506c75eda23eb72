/*
 * Pages of the log: history/Pull over kept-alive HTTP connections, or the same page as a bare prepared SELECT. As many
 * connections as told, each with one request on its way.
 *
 *   --plan FILE --connections 8 --limit 50 --seconds 4 --warmup 1 --page latest|after
 *   --mode http    --host 127.0.0.1 --port P --key SERVICE_KEY
 *   --mode select  --database URL
 * The rooms of the plan must hold at least three pages each; `after` asks somewhere in their middle.
 */
#include "load.h"

#include <arpa/inet.h>
#include <libpq-fe.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CONNECTIONS_MAX = 256 };

struct room {
    char *id;
    int64_t number, last_seq;
};

struct asker {
    int fd; /* http */
    PGconn *pg;
    struct buf in;
    int64_t asked_at;
};

struct pull {
    struct room *rooms;
    size_t room_count;
    struct asker askers[CONNECTIONS_MAX];
    int asker_count, limit;
    bool http, after;
    const char *key;
    uint64_t asked, answered;
    int64_t measure_from, measure_to;
    struct spread latency;
};

static void find_rooms(struct pull *pull, const char *plan, const char *database);
static void open_http(struct pull *pull, struct asker *asker, const char *host, int port);
static void open_select(struct pull *pull, struct asker *asker, const char *database);
static void run(struct pull *pull);

int main(int argc, char **argv)
{
    static struct pull pull;
    const char *database = option(argc, argv, "database", "");
    double seconds = option_number(argc, argv, "seconds", 4), warmup_s = option_number(argc, argv, "warmup", 1),
           cpu_s = own_cpu_s();
    struct result result = {0};

    pull.http = !strcmp(option(argc, argv, "mode", "http"), "http");
    pull.after = !strcmp(option(argc, argv, "page", "latest"), "after");
    pull.key = option(argc, argv, "key", "");
    pull.limit = (int)option_number(argc, argv, "limit", 50);
    pull.asker_count = (int)option_number(argc, argv, "connections", 8);
    if (pull.asker_count < 1 || pull.asker_count > CONNECTIONS_MAX)
        give_up("connections", "out of range");
    find_rooms(&pull, option(argc, argv, "plan", ""), database);
    for (int i = 0; i < pull.asker_count; i++)
        if (pull.http)
            open_http(&pull, &pull.askers[i], option(argc, argv, "host", "127.0.0.1"),
                (int)option_number(argc, argv, "port", 7400));
        else
            open_select(&pull, &pull.askers[i], database);
    pull.measure_from = now_ns() + (int64_t)(warmup_s * 1e9);
    pull.measure_to = pull.measure_from + (int64_t)(seconds * 1e9);
    run(&pull);
    result_add(&result, "pages_per_s", (double)pull.answered / seconds);
    result_add_spread(&result, "latency", &pull.latency);
    result_add(&result, "client_cpu", (own_cpu_s() - cpu_s) / (seconds + warmup_s));
    result_print(&result);
    return 0;
}

/* Rooms long enough, with their numbers: the SELECT is spared what roomd has in memory. */
static void find_rooms(struct pull *pull, const char *path, const char *database)
{
    struct plan plan = plan_read(path);
    PGconn *pg = PQconnectdb(database);

    if (PQstatus(pg) != CONNECTION_OK)
        give_up("database", PQerrorMessage(pg));
    pull->rooms = xcalloc(plan.count, sizeof *pull->rooms);
    for (size_t i = 0; i < plan.count; i++) {
        const char *id = plan.lines[i].rooms;
        PGresult *row =
            PQexecParams(pg, "SELECT room_no, last_seq FROM room JOIN room_head USING (room_no) WHERE room_id = $1", 1,
                NULL, &id, NULL, NULL, 0);

        if (PQntuples(row) == 1 && strtoll(PQgetvalue(row, 0, 1), NULL, 10) >= 3 * pull->limit)
            pull->rooms[pull->room_count++] = (struct room){.id = plan.lines[i].rooms,
                .number = strtoll(PQgetvalue(row, 0, 0), NULL, 10),
                .last_seq = strtoll(PQgetvalue(row, 0, 1), NULL, 10)};
        PQclear(row);
    }
    PQfinish(pg);
    if (!pull->room_count)
        give_up("rooms", "none of them holds three pages");
}

/* The room whose turn it is, and where its page begins. */
static const struct room *next_room(struct pull *pull, int64_t *after)
{
    const struct room *room = &pull->rooms[pull->asked++ * 7919 % pull->room_count];

    *after = (room->last_seq - 2 * pull->limit) / 2 + (int64_t)(pull->asked % (uint64_t)pull->limit);
    return room;
}

static void answered(struct pull *pull, struct asker *asker)
{
    int64_t now = now_ns();

    if (now < pull->measure_from || now >= pull->measure_to)
        return;
    pull->answered++;
    spread_add(&pull->latency, now - asker->asked_at);
}

/* ------------------------------------------------------------------------------------------------------------ http */

static void open_http(struct pull *pull, struct asker *asker, const char *host, int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int yes = 1;

    (void)pull;
    inet_pton(AF_INET, host, &address.sin_addr);
    asker->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (asker->fd < 0 || connect(asker->fd, (struct sockaddr *)&address, sizeof address))
        give_up("connect", strerror(errno));
    setsockopt(asker->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

static void ask_http(struct pull *pull, struct asker *asker)
{
    int64_t after;
    const struct room *room = next_room(pull, &after);
    char body[256], request[768];
    int n = pull->after ? snprintf(body, sizeof body, "{\"room_id\":\"%s\",\"limit\":%d,\"after\":\"%" PRId64 "\"}",
                              room->id, pull->limit, after)
                        : snprintf(body, sizeof body, "{\"room_id\":\"%s\",\"limit\":%d}", room->id, pull->limit);

    n = snprintf(request, sizeof request,
        "POST /v1/history/Pull HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %s\r\nContent-Type: "
        "application/json\r\n"
        "Content-Length: %d\r\n\r\n%s",
        pull->key, n, body);
    asker->asked_at = now_ns();
    if (n >= (int)sizeof request || send(asker->fd, request, (size_t)n, MSG_NOSIGNAL) != n)
        give_up("request", strerror(errno));
}

/* A whole answer, with as many entries as were asked for? */
static bool answer_complete(struct pull *pull, struct asker *asker)
{
    const struct buf *in = &asker->in;
    const char *end = memmem(in->p, in->n, "\r\n\r\n", 4), *length;
    size_t bytes, head;
    int entries = 0;

    if (!end)
        return false;
    head = (size_t)(end - in->p) + 4;
    length = memmem(in->p, head, "ontent-length: ", 15);
    length = length ? length : memmem(in->p, head, "ontent-Length: ", 15);
    bytes = length ? strtoul(length + 15, NULL, 10) : 0;
    if (in->n < 12 || memcmp(in->p + 9, "200", 3) || !bytes) {
        fprintf(stderr, "%.*s\n", (int)in->n, in->p);
        give_up("Pull", "not the answer of a page");
    }
    if (in->n < head + bytes)
        return false;
    for (const char *at = end; (at = memmem(at, (size_t)(in->p + in->n - at), MARKER, sizeof MARKER - 1)); at++)
        entries++;
    if (entries != pull->limit)
        give_up("Pull", "not a whole page");
    return true;
}

static void read_http(struct pull *pull, struct asker *asker)
{
    const size_t piece = 64 * 1024;
    ssize_t n = recv(asker->fd, buf_reserve(&asker->in, piece), piece, 0);

    if (n <= 0)
        give_up("Pull", n ? strerror(errno) : "connection closed");
    asker->in.n += (size_t)n;
    if (!answer_complete(pull, asker))
        return;
    answered(pull, asker);
    buf_reset(&asker->in);
    ask_http(pull, asker);
}

/* ---------------------------------------------------------------------------------------------------------- select */

static void open_select(struct pull *pull, struct asker *asker, const char *database)
{
    static const char columns[] =
        "SELECT seq, epoch, at, counted, type, state, message_id, sender, client_msg_id, kind, content, meta"
        " FROM log_entry WHERE room_no = $1 AND seq > $2 ORDER BY seq ";
    char sql[512];
    PGresult *prepared;

    snprintf(sql, sizeof sql, "%s%s LIMIT $3", columns, pull->after ? "" : "DESC");
    asker->pg = PQconnectdb(database);
    if (PQstatus(asker->pg) != CONNECTION_OK)
        give_up("database", PQerrorMessage(asker->pg));
    prepared = PQprepare(asker->pg, "page", sql, 3, (Oid[]){20, 20, 20});
    if (PQresultStatus(prepared) != PGRES_COMMAND_OK)
        give_up("prepare", PQerrorMessage(asker->pg));
    PQclear(prepared);
    asker->fd = PQsocket(asker->pg);
}

static void ask_select(struct pull *pull, struct asker *asker)
{
    int64_t after;
    const struct room *room = next_room(pull, &after);
    int64_t values[] = {(int64_t)__builtin_bswap64((uint64_t)room->number),
        (int64_t)__builtin_bswap64(pull->after ? (uint64_t)after : 0),
        (int64_t)__builtin_bswap64((uint64_t)pull->limit)};

    asker->asked_at = now_ns();
    if (!PQsendQueryPrepared(asker->pg, "page", 3,
            (const char *[]){(char *)&values[0], (char *)&values[1], (char *)&values[2]}, (int[]){8, 8, 8},
            (int[]){1, 1, 1}, 1))
        give_up("SELECT", PQerrorMessage(asker->pg));
}

static void read_select(struct pull *pull, struct asker *asker)
{
    PGresult *result;

    if (!PQconsumeInput(asker->pg))
        give_up("SELECT", PQerrorMessage(asker->pg));
    if (PQisBusy(asker->pg))
        return;
    result = PQgetResult(asker->pg);
    if (PQresultStatus(result) != PGRES_TUPLES_OK || PQntuples(result) != pull->limit)
        give_up("SELECT", PQresultErrorMessage(result));
    PQclear(result);
    while ((result = PQgetResult(asker->pg)))
        PQclear(result);
    answered(pull, asker);
    ask_select(pull, asker);
}

static void run(struct pull *pull)
{
    struct pollfd fds[CONNECTIONS_MAX];

    for (int i = 0; i < pull->asker_count; i++) {
        fds[i] = (struct pollfd){.fd = pull->askers[i].fd, .events = POLLIN};
        (pull->http ? ask_http : ask_select)(pull, &pull->askers[i]);
    }
    while (now_ns() < pull->measure_to) {
        if (!poll(fds, (nfds_t)pull->asker_count, 5000))
            give_up("Pull", "no answer for 5 s");
        for (int i = 0; i < pull->asker_count; i++)
            if (fds[i].revents)
                (pull->http ? read_http : read_select)(pull, &pull->askers[i]);
    }
}
