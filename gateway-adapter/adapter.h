/*
 * What the files of the adapter library share. Nothing here is for callers; nothing here leaves the shared library.
 *
 *   client ── connections (adapter_conn) ── calls (adapter_call, adapter_calls)
 *      │                                └── streams (adapter_stream)
 *      └── publisher (adapter_publish) ── bodies (adapter_message)
 *                                     ├── link to a broker (adapter_link) ── connection
 *                                     └── spool (adapter_spool)
 *
 * Thread: the client's. Time: `now` is the client's monotonic clock in ms, read once a turn.
 */
#ifndef ROOMD_ADAPTER_INTERNAL_H
#define ROOMD_ADAPTER_INTERNAL_H

#include "adapter_text.h"
#include "roomd_adapter.h"

#include <openssl/ssl.h>
#include <stddef.h>

#ifndef countof
#define countof(array) (sizeof(array) / sizeof((array)[0]))
#endif
#ifndef container_of
#define container_of(p, type, member) ((type *)(void *)((char *)(p)-offsetof(type, member)))
#endif

/* --- lists: struct roomd_link, which stands in the public structs, too --- */

static inline void adapter_list_init(struct roomd_link *list)
{
    list->next = list->prev = list;
}

static inline bool adapter_list_empty(const struct roomd_link *list)
{
    return list->next == list;
}

static inline void adapter_list_before(struct roomd_link *at, struct roomd_link *node)
{
    node->next = at;
    node->prev = at->prev;
    at->prev->next = node;
    at->prev = node;
}

static inline void adapter_list_push(struct roomd_link *list, struct roomd_link *node)
{
    adapter_list_before(list, node);
}

static inline void adapter_list_push_front(struct roomd_link *list, struct roomd_link *node)
{
    adapter_list_before(list->next, node);
}

static inline void adapter_list_remove(struct roomd_link *node)
{
    node->prev->next = node->next;
    node->next->prev = node->prev;
    adapter_list_init(node);
}

/* All of `from` to the end of `to`. */
static inline void adapter_list_splice(struct roomd_link *to, struct roomd_link *from)
{
    if (adapter_list_empty(from))
        return;
    from->next->prev = to->prev;
    to->prev->next = from->next;
    from->prev->next = to;
    to->prev = from->prev;
    adapter_list_init(from);
}

/* --- addresses --- */

enum { ADAPTER_ADDRESSES_MAX = 16, ADAPTER_PART_MAX_BYTES = 255 };

struct adapter_address {
    char host[ADAPTER_PART_MAX_BYTES + 1];
    uint16_t port;
    bool tls;
    char user[ADAPTER_PART_MAX_BYTES + 1], password[ADAPTER_PART_MAX_BYTES + 1], vhost[ADAPTER_PART_MAX_BYTES + 1];
    char path[ADAPTER_PART_MAX_BYTES + 1]; /* of http: "" or "/prefix" */
    int64_t away_until;                    /* http: not tried before, unless all are away */
    uint32_t failures;                     /* http: in a row */
};
/* One of "http://…", "https://…", or with `amqp` "amqp://…", "amqps://…". */
bool adapter_address_read(struct adapter_address *address, const char *text, size_t n, bool amqp);

/* --- the client --- */

struct adapter_conn;
struct adapter_publisher;

/* Something the client's epoll watches. ready NULL: told nothing any more. */
struct adapter_watch {
    void (*ready)(struct adapter_watch *watch, uint32_t events);
    int fd;
    uint32_t interest;
};
bool adapter_watch_set(struct roomd_client *client, struct adapter_watch *watch, uint32_t interest);

struct roomd_client {
    int epoll_fd, timer_fd, kick_fd;
    struct adapter_watch timer_watch, kick_watch;
    struct roomd_settings settings; /* its texts are gone but ca_file's use is over and service_key is ours */
    char *service_key;
    SSL_CTX *tls;
    int64_t now, next_tick, timer_at;
    bool kicked, in_turn, closing;
    struct roomd_link dead_conns; /* freed at the end of the turn: an event for one may still be in hand */

    struct adapter_address instances[ADAPTER_ADDRESSES_MAX];
    size_t instance_count;
    struct roomd_link calls_waiting, calls_trying, calls_done; /* of struct adapter_call; calls_done: of roomd_call */
    struct roomd_link http_conns;
    uint32_t call_count, http_conn_count;
    struct roomd_link streams;
    struct adapter_publisher *publisher;
};
/* There is something to do on the next turn. */
void adapter_client_kick(struct roomd_client *client);
int64_t adapter_now(void);
uint64_t adapter_random(void);
/* 0 … most-1 */
int64_t adapter_random_below(int64_t most);
SSL_CTX *adapter_tls_new(const char *ca_file);

/* --- each part's place in the client's life --- */

void adapter_calls_turn(struct roomd_client *client);
void adapter_calls_tick(struct roomd_client *client);
void adapter_calls_close(struct roomd_client *client);

void adapter_streams_tick(struct roomd_client *client);
void adapter_streams_close(struct roomd_client *client);

enum roomd_code adapter_publisher_open(
    struct roomd_client *client, const struct roomd_settings *settings, const char **why);
void adapter_publisher_turn(struct adapter_publisher *publisher);
void adapter_publisher_tick(struct adapter_publisher *publisher);
bool adapter_publisher_busy(const struct adapter_publisher *publisher);
void adapter_publisher_close(struct adapter_publisher *publisher);
void adapter_publisher_counters(const struct adapter_publisher *publisher, struct roomd_counters *counters);
const char *adapter_publisher_problem(const struct adapter_publisher *publisher);

/* --- calls, as the typed ones (adapter_calls.c) start them --- */

struct adapter_call_plan {
    const char *path;   /* "/v1/room/Create" */
    const void *reader; /* what `answer` is filled with: for adapter_call_answer */
    void *answer;
    int64_t extra_ms; /* beside the deadline: a long poll's wait */
};
/* Takes over body's memory. */
void adapter_call_start(struct roomd_client *client, struct roomd_call *call, const struct adapter_call_plan *plan,
    struct adapter_buf *body);
/* It ends before anything was sent; field and message are static. */
void adapter_call_refuse(
    struct roomd_client *client, struct roomd_call *call, enum roomd_code code, const char *field, const char *message);
/* Of adapter_calls.c: fills the answer; false: not what was expected. */
bool adapter_call_answer(
    const void *reader, void *answer, struct adapter_arena *arena, struct roomd_text body, bool *no_memory);

#endif
