#include "pg.h"

#include "log.h"
#include "pg_address.h"

#include <assert.h>
#include <openssl/ssl.h>
#include <stdlib.h>

/* In flight on one connection of a lane that has several: enough to hide the round trip, few enough that a slow query
 * holds up few. */
enum { READ_DEPTH = 8 };
/* A reset connection is read until its error shows: 8 KiB and more each, so this is beyond what sockets hold. */
enum { RESET_READS_MAX = 4096 };
enum { RECONNECT_MIN_MS = 100, RECONNECT_MAX_MS = 2000 };
/* A database that refuses everything must not fill the log at the rate of the batches. */
enum { REFUSAL_LOG_GAP_MS = 100 };

static const char *const lane_name[PG_LANES] = {"write", "read", "control"};

/*
 * Server-side keepalives and the check for a client that is gone: a backend whose client vanished gives up its locks in
 * seconds, even in the middle of a statement. Nobody may cut a commit short, so the write lane has no
 * statement_timeout, whatever the role's default is.
 *
 * Not plan_cache_mode=force_generic_plan: a plan made while a table was young scans all of it until the next ANALYZE
 * (measured: 19 ms for 3 rows of 200,000, 0.1 ms otherwise), and that costs more than the planning it saves.
 */
#define SESSION_SETTINGS                                                                  \
    "-c tcp_keepalives_idle=2 -c tcp_keepalives_interval=1 -c tcp_keepalives_count=2 -c " \
    "client_connection_check_interval=1000"
static const char *const lane_settings[PG_LANES] = {
    [PG_WRITE] = SESSION_SETTINGS " -c statement_timeout=0",
    [PG_READ] = SESSION_SETTINGS,
    [PG_CONTROL] = SESSION_SETTINGS,
};

/* A statement on one connection.
 * NEW -Parse sent-> PARSING -ok-> NAMED; PARSING -refused-> NEW; NAMED -the server lost or outgrew it-> UNNAMED */
enum prepared_state {
    PREPARED_NEW,
    PREPARED_PARSING, /* further executions carry their own Parse: they must not fail because this one does */
    PREPARED_NAMED,
    PREPARED_UNNAMED, /* the name is burnt; each execution carries its own Parse */
};
struct prepared {
    const struct pg_statement *statement;
    enum prepared_state state;
};

/* What was sent and is not answered; stays in line when the query is forgotten. */
struct pg_slot {
    struct list link;
    struct pg_query *query; /* NULL: forgotten */
    const struct pg_statement *statement;
    uint64_t deadline_ms;
    bool parse, named; /* parse: the answer to the Parse of the named statement comes first */
    PGresult *result;  /* kept until the Sync is answered: only then it is committed */
};

/* RESTING -timer-> RESOLVING -> CONNECTING -> UP; each -any surprise-> RESTING; at the end CLOSED */
enum connection_state {
    CONNECTION_RESTING,
    CONNECTION_RESOLVING,
    CONNECTION_CONNECTING,
    CONNECTION_UP,
    CONNECTION_CLOSED
};

/* Apart from its connection: closing a handle takes until the next turn, and the socket may change while we connect. */
struct poll {
    uv_poll_t handle;
    struct connection *connection;
    int events;
};

struct connection {
    struct pg *pg;
    struct lane *lane;
    enum connection_state state;
    PGconn *pq;
    struct poll *poll;
    uv_timer_t timer; /* RESTING: the next try; CONNECTING: enough */
    struct pg_lookup lookup;
    int first_host;
    uint32_t place; /* which server it is with: what the pool's is compared with */
    unsigned failures;
    bool ended;  /* the last thing libpq said was the end of a command's results */
    bool broken; /* found where nobody may be called back; discarded in the next turn */
    struct list in_flight;
    uint32_t in_flight_count;
    struct prepared *prepared;
    size_t prepared_count;
};

struct lane {
    enum pg_lane id;
    struct connection *connections;
    int count;
    int64_t depth; /* in flight on one connection */
    int64_t timeout_ms;
    struct list waiting;
    struct pg_counters counters;
    bool up;
    int backend_pid; /* of what was announced last; 0: down */
    void (*changed)(void *arg, bool up, int backend_pid);
    void *changed_arg;
};

struct pg {
    uv_loop_t *loop;
    struct pg_address *address;
    int64_t queue_max;
    struct lane lanes[PG_LANES];
    uint32_t place; /* of the connection that came up last */
    int64_t timeout_ms;
    struct list refused;
    struct list free_slots;
    uv_timer_t soon;     /* calls back what pg_submit may not */
    uv_timer_t deadline; /* never later than the earliest one */
    uint64_t deadline_ms;
    uint64_t refusal_logged_ms;
    bool closing;
    int open_handles;
};

static void lane_open(struct pg *pg, enum pg_lane id, const struct pg_settings *settings);
static struct connection *lane_choose(const struct lane *lane);
static void lane_fill(struct lane *lane);
static void lane_announce(struct lane *lane);
static void connection_start(struct connection *connection);
static void connection_on_timer(uv_timer_t *timer);
static void connection_on_lookup(struct pg_lookup *lookup, bool found);
static void connection_on_socket(uv_poll_t *handle, int status, int events);
static void connection_step(struct connection *connection);
static void connection_up(struct connection *connection);
static void connection_failed(struct connection *connection, const char *why);
static void connection_note_place(struct connection *connection);
static bool connection_is_left_behind(const struct connection *connection);
static void connection_exchange(struct connection *connection, bool readable, bool reset);
static void connection_discard(struct connection *connection, const char *why, bool timed_out);
static void connection_send(struct connection *connection, struct pg_query *query, const struct pg_params *params);
static bool connection_take_result(struct connection *connection, PGresult *result);
static void connection_watch(struct connection *connection, int events);
static void connection_unwatch(struct connection *connection);
static void deadline_watch(struct pg *pg, uint64_t deadline_ms);
static void deadline_on_timer(uv_timer_t *timer);
static void soon_start(struct pg *pg);
static void soon_on_timer(uv_timer_t *timer);
static void pool_end(struct pg *pg);
static void pool_on_closed(uv_handle_t *handle);

/* --- the pool --- */

static void timer_init(struct pg *pg, uv_timer_t *timer)
{
    uv_timer_init(pg->loop, timer);
    timer->data = pg;
    pg->open_handles++;
}

enum err pg_open(struct pg **out, uv_loop_t *loop, const struct pg_settings *settings)
{
    struct pg_address *address;
    enum err err = pg_address_parse(&address, settings->url);
    struct pg *pg;

    if (err)
        return err;
    pg = xcalloc(1, sizeof *pg);
    pg->loop = loop;
    pg->address = address;
    pg->queue_max = settings->queue_max;
    pg->timeout_ms = settings->timeout_ms;
    pg->deadline_ms = UINT64_MAX;
    list_init(&pg->refused);
    list_init(&pg->free_slots);
    timer_init(pg, &pg->soon);
    timer_init(pg, &pg->deadline);
    for (int id = 0; id < PG_LANES; id++)
        lane_open(pg, (enum pg_lane)id, settings);
    *out = pg;
    return ERR_OK;
}

static void lane_open(struct pg *pg, enum pg_lane id, const struct pg_settings *settings)
{
    struct lane *lane = &pg->lanes[id];

    lane->id = id;
    lane->count = id == PG_READ ? settings->read_connections : 1;
    lane->depth = id == PG_WRITE ? settings->queue_max : READ_DEPTH;
    lane->timeout_ms = id == PG_WRITE ? 0 : settings->timeout_ms;
    list_init(&lane->waiting);
    assert(lane->count > 0);
    lane->connections = xcalloc((size_t)lane->count, sizeof *lane->connections);
    for (int i = 0; i < lane->count; i++) {
        struct connection *connection = &lane->connections[i];

        connection->pg = pg;
        connection->lane = lane;
        list_init(&connection->in_flight);
        timer_init(pg, &connection->timer);
        uv_timer_start(&connection->timer, connection_on_timer, 0, 0);
    }
}

void pg_close(struct pg *pg)
{
    assert(!pg->closing);
    pg->closing = true;
    for (int id = 0; id < PG_LANES; id++)
        pg->lanes[id].changed = NULL;
    soon_start(pg);
}

bool pg_up(const struct pg *pg, enum pg_lane lane)
{
    return pg->lanes[lane].up;
}

void pg_on_state(struct pg *pg, enum pg_lane lane, void (*changed)(void *arg, bool up, int backend_pid), void *arg)
{
    pg->lanes[lane].changed = changed;
    pg->lanes[lane].changed_arg = arg;
    if (changed && pg->lanes[lane].up)
        changed(arg, true, pg->lanes[lane].backend_pid);
}

struct pg_counters pg_counters(const struct pg *pg, enum pg_lane lane)
{
    return pg->lanes[lane].counters;
}

/* --- a query --- */

static void query_refuse(struct pg *pg, struct pg_query *query)
{
    query->state = PG_REFUSED;
    list_push_back(&pg->refused, &query->link);
    soon_start(pg);
}

static struct pg_params *params_copy(const struct pg_params *params)
{
    struct pg_params *copy = xmemdup(params, sizeof *params);

    copy->data = (struct buf){0};
    buf_add_str(&copy->data, buf_str(&params->data));
    return copy;
}

static void query_drop_copy(struct pg_query *query)
{
    if (!query->copy)
        return;
    pg_params_clear(query->copy);
    free(query->copy);
    query->copy = NULL;
}

void pg_submit(struct pg *pg, struct pg_query *query, const struct pg_params *params)
{
    struct lane *lane = &pg->lanes[query->lane];
    int64_t timeout_ms = query->timeout_ms ? query->timeout_ms : lane->timeout_ms;
    struct connection *connection;

    if (timeout_ms == 0 && connection_is_left_behind(&lane->connections[0]))
        timeout_ms = pg->timeout_ms;
    assert(query->state == PG_IDLE && (params ? params->count : 0) == query->statement->params);
    query->pg = pg;
    query->copy = NULL;
    query->slot = NULL;
    query->deadline_ms = timeout_ms > 0 ? uv_now(pg->loop) + (uint64_t)timeout_ms : UINT64_MAX;
    list_init(&query->link);
    if (pg->closing) {
        query_refuse(pg, query);
    } else if (list_empty(&lane->waiting) && (connection = lane_choose(lane)) != NULL) {
        connection_send(connection, query, params);
    } else if (lane->id == PG_WRITE || lane->counters.waiting >= pg->queue_max) {
        query_refuse(pg, query);
    } else {
        query->copy = params ? params_copy(params) : NULL;
        query->state = PG_WAITING;
        list_push_back(&lane->waiting, &query->link);
        lane->counters.waiting++;
    }
    if (query->state != PG_REFUSED)
        deadline_watch(pg, query->deadline_ms);
}

static void query_leave_line(struct pg_query *query)
{
    list_remove(&query->link);
    query->pg->lanes[query->lane].counters.waiting--;
}

void pg_forget(struct pg_query *query)
{
    switch (query->state) {
    case PG_IDLE:
        return;
    case PG_WAITING:
        query_leave_line(query);
        break;
    case PG_REFUSED:
        list_remove(&query->link);
        break;
    case PG_SENT:
        query->slot->query = NULL;
        query->slot = NULL;
        break;
    }
    query_drop_copy(query);
    query->state = PG_IDLE;
}

static void query_end(struct pg_query *query, enum err err, const PGresult *result)
{
    query_drop_copy(query);
    query->slot = NULL;
    query->state = PG_IDLE;
    query->done(query, err, result);
}

/* Ends all on the list; a callback may forget others on it, or submit anew. */
static void queries_refuse_all(struct list *list)
{
    struct list *link;

    while ((link = list_pop_front(list)) != NULL)
        query_end(list_entry(link, struct pg_query, link), ERR_UNAVAILABLE, NULL);
}

/* --- lanes --- */

static struct connection *lane_choose(const struct lane *lane)
{
    struct connection *least = NULL;

    for (int i = 0; i < lane->count; i++) {
        struct connection *connection = &lane->connections[i];

        if (connection->state == CONNECTION_UP && !connection->broken && connection->in_flight_count < lane->depth &&
            (!least || connection->in_flight_count < least->in_flight_count))
            least = connection;
    }
    return least;
}

static void lane_fill(struct lane *lane)
{
    struct connection *connection;

    while (!list_empty(&lane->waiting) && (connection = lane_choose(lane)) != NULL) {
        struct pg_query *query = list_entry(lane->waiting.next, struct pg_query, link);

        query_leave_line(query);
        connection_send(connection, query, query->copy);
        query_drop_copy(query);
    }
}

static void lane_announce(struct lane *lane)
{
    const struct connection *first = NULL;

    for (int i = lane->count; i-- > 0;)
        if (lane->connections[i].state == CONNECTION_UP)
            first = &lane->connections[i];
    if ((first != NULL) == lane->up)
        return;
    lane->up = first != NULL;
    lane->backend_pid = first ? PQbackendPID(first->pq) : 0;
    if (lane->changed)
        lane->changed(lane->changed_arg, lane->up, lane->backend_pid);
}

/* --- a connection comes up --- */

static void connection_on_timer(uv_timer_t *timer)
{
    struct connection *connection = container_of(timer, struct connection, timer);

    if (connection->state == CONNECTION_RESTING) {
        connection_start(connection);
        return;
    }
    assert(connection->state == CONNECTION_CONNECTING);
    connection->first_host++; /* the one in front may be the one that hangs */
    connection_failed(connection, "no answer within connect_timeout");
}

static void connection_start(struct connection *connection)
{
    if (connection->pg->closing)
        return;
    connection->state = CONNECTION_RESOLVING;
    pg_lookup_start(&connection->lookup, connection->pg->loop, connection->pg->address, connection->first_host,
        connection_on_lookup);
}

static void connection_on_lookup(struct pg_lookup *lookup, bool found)
{
    struct connection *connection = container_of(lookup, struct connection, lookup);
    struct pg *pg = connection->pg;

    if (connection->state == CONNECTION_CLOSED) { /* the pool has waited for this */
        pg_lookup_clear(lookup);
        pool_on_closed((uv_handle_t *)&connection->timer);
        return;
    }
    connection->state = CONNECTION_CONNECTING;
    if (!found) {
        connection_failed(connection, "no address");
        return;
    }
    connection->pq = pg_address_connect(pg->address, lookup, lane_settings[connection->lane->id]);
    if (!connection->pq || PQstatus(connection->pq) == CONNECTION_BAD) {
        connection_failed(connection, connection->pq ? PQerrorMessage(connection->pq) : "out of memory");
        return;
    }
    uv_timer_start(&connection->timer, connection_on_timer, pg_address_connect_timeout_ms(pg->address), 0);
    connection_watch(connection, UV_WRITABLE);
}

static void connection_step(struct connection *connection)
{
    /* libpq may close the socket and open another with the same number: to the kernel that is a new one. */
    connection_unwatch(connection);
    switch (PQconnectPoll(connection->pq)) {
    case PGRES_POLLING_READING:
        connection_watch(connection, UV_READABLE);
        break;
    case PGRES_POLLING_WRITING:
        connection_watch(connection, UV_WRITABLE);
        break;
    case PGRES_POLLING_OK:
        connection_up(connection);
        break;
    default:
        connection_failed(connection, PQerrorMessage(connection->pq));
        break;
    }
}

static void notice_ignore(void *arg, const char *message)
{
    (void)arg;
    log_debug("pg.notice", "says=%s", log_quote(str_of(message)));
}

static void connection_up(struct connection *connection)
{
    struct lane *lane = connection->lane;

    uv_timer_stop(&connection->timer);
    PQsetNoticeProcessor(connection->pq, notice_ignore, NULL);
    if (PQsetnonblocking(connection->pq, 1) != 0 || PQenterPipelineMode(connection->pq) != 1) {
        connection_failed(connection, PQerrorMessage(connection->pq));
        return;
    }
    connection->state = CONNECTION_UP;
    connection->failures = 0;
    connection_note_place(connection);
    connection_watch(connection, UV_READABLE);
    log_info("pg.up", "lane=%s backend=%d server=%d", lane_name[lane->id], PQbackendPID(connection->pq),
        PQserverVersion(connection->pq));
    lane_announce(lane);
    lane_fill(lane);
}

/* --- the primary is another one than before --- */

/*
 * A commit is never given up, however long it takes: the server is busy, or on its way back. But a primary that hangs
 * with its connections open may have been replaced by another host of the list. Who comes up there tells; what still
 * has no answer from the old one after the time of a read is then lost, and the writer looks at what became of it.
 * Where several hosts lead to one server nothing more comes of it than that.
 */
static void connection_note_place(struct connection *connection)
{
    const char *const parts[] = {PQhost(connection->pq), PQhostaddr(connection->pq), PQport(connection->pq)};
    struct pg *pg = connection->pg;
    const struct connection *writer = &pg->lanes[PG_WRITE].connections[0];
    uint64_t deadline_ms = uv_now(pg->loop) + (uint64_t)pg->timeout_ms;
    struct pg_slot *slot;

    connection->place = 2166136261; /* FNV-1a */
    for (size_t i = 0; i < countof(parts); i++)
        for (const char *p = parts[i]; p && *p; p++)
            connection->place = (connection->place ^ (uint8_t)*p) * 16777619;
    pg->place = connection->place;
    if (!connection_is_left_behind(writer))
        return;
    list_for_each (slot, &writer->in_flight, link) {
        if (slot->deadline_ms == UINT64_MAX)
            slot->deadline_ms = deadline_ms;
    }
    deadline_watch(pg, deadline_ms);
}

static bool connection_is_left_behind(const struct connection *connection)
{
    return connection->state == CONNECTION_UP && connection->place != connection->pg->place;
}

/* Between 0.1 s and a bound that grows to 2 s: many instances must not come back in step. */
static void connection_rest(struct connection *connection)
{
    uint64_t bound = RECONNECT_MIN_MS << (connection->failures < 5 ? connection->failures + 1 : 5);
    uint16_t dice;

    connection->state = CONNECTION_RESTING;
    if (connection->pg->closing)
        return;
    if (bound > RECONNECT_MAX_MS)
        bound = RECONNECT_MAX_MS;
    random_bytes(&dice, sizeof dice);
    connection->lane->counters.reconnects_total++;
    uv_timer_start(
        &connection->timer, connection_on_timer, RECONNECT_MIN_MS + dice % (bound - RECONNECT_MIN_MS + 1), 0);
}

static void connection_drop(struct connection *connection)
{
    uv_timer_stop(&connection->timer);
    connection_unwatch(connection);
    PQfinish(connection->pq);
    connection->pq = NULL;
    connection->broken = connection->ended = false;
    free(connection->prepared);
    connection->prepared = NULL;
    connection->prepared_count = 0;
}

static void connection_failed(struct connection *connection, const char *why)
{
    /* The first failure, then about two a minute. */
    if (connection->failures++ % 16 == 0)
        log_warn("pg.connect_failed", "lane=%s says=%s", lane_name[connection->lane->id], log_quote(str_of(why)));
    connection_drop(connection);
    connection_rest(connection);
}

/* --- a connection at work --- */

static void connection_on_socket(uv_poll_t *handle, int status, int events)
{
    struct connection *connection = container_of(handle, struct poll, handle)->connection;

    if (connection->state == CONNECTION_CONNECTING)
        connection_step(connection);
    else
        connection_exchange(connection, status < 0 || (events & UV_READABLE), status < 0);
}

/* OpenSSL may hold bytes that libpq has not asked for; the socket does not tell. */
static bool tls_holds_bytes(const struct connection *connection)
{
    SSL *tls = PQsslInUse(connection->pq) ? PQsslStruct(connection->pq, "OpenSSL") : NULL;

    return tls && SSL_pending(tls) > 0;
}

/* `reset`: the peer is gone (libuv has stopped watching); what it said before can still be read, up to the error.
 * False: the session is over. */
static bool connection_read(struct connection *connection, bool reset)
{
    int left = reset ? RESET_READS_MAX : 1;
    bool alive;

    do
        alive = PQconsumeInput(connection->pq) == 1;
    while (alive && (tls_holds_bytes(connection) || --left > 0));
    return alive && !reset;
}

static void connection_exchange(struct connection *connection, bool readable, bool reset)
{
    const char *why = NULL;
    bool alive = !readable || connection_read(connection, reset);

    if (!alive)
        connection_unwatch(connection); /* libpq has closed the socket: another may get its number any moment */
    /* Also when the end has come: what was answered before it is answered. */
    while (!list_empty(&connection->in_flight) && !PQisBusy(connection->pq)) {
        if (!connection_take_result(connection, PQgetResult(connection->pq))) {
            why = "an answer that nobody asked for";
            break;
        }
    }
    if (alive && !why && !connection->broken) {
        int more = PQflush(connection->pq);

        alive = more >= 0 && PQstatus(connection->pq) == CONNECTION_OK;
        if (alive)
            connection_watch(connection, more ? UV_READABLE | UV_WRITABLE : UV_READABLE);
    }
    if (!alive || why || connection->broken)
        connection_discard(connection, why ? why : PQerrorMessage(connection->pq), false);
    else
        lane_fill(connection->lane);
}

/* Ends the session, whatever it was doing. What was sent is lost: nobody knows whether it happened. */
static void connection_discard(struct connection *connection, const char *why, bool timed_out)
{
    struct lane *lane = connection->lane;
    uint64_t now = uv_now(connection->pg->loop);
    struct list lost, *link;

    log_at(connection->pg->closing ? LOG_INFO : LOG_WARN, "pg.down", "lane=%s backend=%d in_flight=%u says=%s",
        lane_name[lane->id], PQbackendPID(connection->pq), connection->in_flight_count, log_quote(str_of(why)));
    list_init(&lost);
    list_splice_back(&lost, &connection->in_flight);
    lane->counters.in_flight -= connection->in_flight_count;
    connection->in_flight_count = 0;
    connection_drop(connection);
    connection_rest(connection);
    while ((link = list_pop_front(&lost)) != NULL) {
        struct pg_slot *slot = list_entry(link, struct pg_slot, link);
        struct pg_query *query = slot->query;
        bool late = timed_out && slot->deadline_ms <= now;

        PQclear(slot->result);
        list_push_back(&connection->pg->free_slots, &slot->link);
        lane->counters.errors_total++;
        if (query)
            query_end(query, late ? ERR_TIMEOUT : ERR_LOST, NULL);
    }
    lane_announce(lane);
}

static void connection_watch(struct connection *connection, int events)
{
    struct poll *poll = connection->poll;

    if (!poll) {
        poll = connection->poll = xcalloc(1, sizeof *poll);
        poll->connection = connection;
        if (uv_poll_init(connection->pg->loop, &poll->handle, PQsocket(connection->pq)) != 0) {
            free(poll);
            connection->poll = NULL;
            connection->broken = true;
            soon_start(connection->pg);
            return;
        }
        connection->pg->open_handles++;
    }
    if (poll->events == events)
        return;
    poll->events = events;
    uv_poll_start(&poll->handle, events, connection_on_socket);
}

static void poll_on_closed(uv_handle_t *handle)
{
    struct poll *poll = container_of((uv_poll_t *)handle, struct poll, handle);

    pool_on_closed((uv_handle_t *)&poll->connection->timer);
    free(poll);
}

static void connection_unwatch(struct connection *connection)
{
    if (!connection->poll)
        return;
    uv_poll_stop(&connection->poll->handle);
    uv_close((uv_handle_t *)&connection->poll->handle, poll_on_closed);
    connection->poll = NULL;
}

/* --- sending --- */

static struct prepared *prepared_find(const struct connection *connection, const struct pg_statement *statement)
{
    for (size_t i = 0; i < connection->prepared_count; i++)
        if (connection->prepared[i].statement == statement)
            return &connection->prepared[i];
    return NULL;
}

static struct prepared *prepared_get(struct connection *connection, const struct pg_statement *statement)
{
    struct prepared *prepared = prepared_find(connection, statement);
    size_t n = connection->prepared_count;

    if (prepared)
        return prepared;
    if (n % 16 == 0)
        connection->prepared = xrealloc(connection->prepared, (n + 16) * sizeof *prepared);
    prepared = &connection->prepared[n];
    *prepared = (struct prepared){statement, PREPARED_NEW};
    connection->prepared_count++;
    return prepared;
}

static struct pg_slot *slot_new(struct connection *connection, struct pg_query *query)
{
    struct list *link = list_pop_front(&connection->pg->free_slots);
    struct pg_slot *slot = link ? list_entry(link, struct pg_slot, link) : xmalloc(sizeof *slot);

    *slot = (struct pg_slot){.query = query, .statement = query->statement, .deadline_ms = query->deadline_ms};
    list_push_back(&connection->in_flight, &slot->link);
    connection->in_flight_count++;
    connection->lane->counters.in_flight++;
    query->slot = slot;
    query->state = PG_SENT;
    return slot;
}

static bool slot_send(struct connection *connection, struct pg_slot *slot, const struct pg_params *params)
{
    struct prepared *prepared = prepared_get(connection, slot->statement);
    const char *value[PG_PARAMS_MAX];
    int length[PG_PARAMS_MAX], format[PG_PARAMS_MAX], count = slot->statement->params, sent;

    for (int i = 0; i < count; i++) {
        value[i] = params->value[i].n < 0 ? NULL : params->data.p + params->value[i].at;
        length[i] = params->value[i].n;
        format[i] = params->value[i].format;
    }
    if (prepared->state == PREPARED_NEW) {
        if (!PQsendPrepare(connection->pq, slot->statement->name, slot->statement->sql, count, NULL))
            return false;
        prepared->state = PREPARED_PARSING;
        slot->parse = slot->named = true;
    } else {
        slot->named = prepared->state == PREPARED_NAMED;
    }
    if (slot->named)
        sent = PQsendQueryPrepared(connection->pq, slot->statement->name, count, value, length, format, 1);
    else
        sent = PQsendQueryParams(connection->pq, slot->statement->sql, count, NULL, value, length, format, 1);
    return sent && PQpipelineSync(connection->pq);
}

/* Nobody may be called back from here: a failure is handled in the next turn. */
static void connection_send(struct connection *connection, struct pg_query *query, const struct pg_params *params)
{
    struct pg_slot *slot = slot_new(connection, query);
    int more = slot_send(connection, slot, params) ? PQflush(connection->pq) : -1;

    /* libpq reads when it cannot write, and closes the socket when it finds its end; it does not tell. */
    if (more < 0 || PQstatus(connection->pq) != CONNECTION_OK) {
        connection_unwatch(connection);
        connection->broken = true;
        soon_start(connection->pg);
    } else if (more > 0) {
        connection_watch(connection, UV_READABLE | UV_WRITABLE);
    }
}

/* --- reading --- */

static void refusal_log(struct connection *connection, const struct pg_slot *slot)
{
    uint64_t now = uv_now(connection->pg->loop);
    const char *message = PQresultErrorField(slot->result, PG_DIAG_MESSAGE_PRIMARY);

    if (now - connection->pg->refusal_logged_ms < REFUSAL_LOG_GAP_MS && connection->pg->refusal_logged_ms)
        return;
    connection->pg->refusal_logged_ms = now;
    log_warn("pg.refused", "statement=%s sqlstate=%s says=%s", slot->statement->name, pg_sqlstate(slot->result),
        log_quote(str_of(message)));
}

/* What a refusal says about the connection and the statement on it. */
static void refusal_learn(struct connection *connection, const struct pg_slot *slot)
{
    const char *state = pg_sqlstate(slot->result);
    struct prepared *prepared = prepared_find(connection, slot->statement);

    /* 26000: the server no longer knows it; 0A000: its result changed with a table; 42P05: the name
     * was there before. */
    if (slot->named && !slot->parse && (strcmp(state, "26000") == 0 || strcmp(state, "0A000") == 0))
        prepared->state = PREPARED_UNNAMED;
    if (slot->parse)
        prepared->state = strcmp(state, "42P05") == 0 ? PREPARED_UNNAMED : PREPARED_NEW;
    /* 25006, read only: this server was the primary once. A new connection finds the present one. */
    if (strcmp(state, "25006") == 0) {
        connection->broken = true;
        soon_start(connection->pg);
    }
}

/* The Sync is answered: the outcome is certain. */
static bool slot_finish(struct connection *connection, struct pg_slot *slot)
{
    struct lane *lane = connection->lane;
    struct pg_query *query = slot->query;
    PGresult *result = slot->result;
    bool refused;

    if (!result)
        return false;
    refused = PQresultStatus(result) == PGRES_FATAL_ERROR;
    list_remove(&slot->link);
    connection->in_flight_count--;
    lane->counters.in_flight--;
    lane->counters.statements_total++;
    if (refused) {
        lane->counters.errors_total++;
        refusal_log(connection, slot);
        refusal_learn(connection, slot);
    }
    list_push_back(&connection->pg->free_slots, &slot->link);
    if (query)
        query_end(query, refused ? ERR_DATABASE : ERR_OK, result);
    PQclear(result);
    return true;
}

/* Takes one result over. False: not what the protocol promises, the connection cannot be trusted any more. */
static bool connection_take_result(struct connection *connection, PGresult *result)
{
    struct pg_slot *slot = list_entry(connection->in_flight.next, struct pg_slot, link);
    bool have_error = slot->result && PQresultStatus(slot->result) == PGRES_FATAL_ERROR, good = false;

    if (!result) { /* twice: libpq knows of no command, we do */
        good = !connection->ended;
        connection->ended = true;
        return good;
    }
    connection->ended = false;
    switch (PQresultStatus(result)) {
    case PGRES_PIPELINE_SYNC:
        PQclear(result);
        return slot_finish(connection, slot);
    case PGRES_PIPELINE_ABORTED: /* what followed the refused Parse */
        good = have_error;
        break;
    case PGRES_FATAL_ERROR: /* of Parse or Execute, or at the end of the transaction (a deferred constraint) */
        good = !have_error;
        if (good) {
            PQclear(slot->result);
            slot->result = result;
            return true;
        }
        break;
    case PGRES_COMMAND_OK:
    case PGRES_TUPLES_OK:
    case PGRES_EMPTY_QUERY:
        good = !slot->result;
        if (good && !slot->parse) {
            slot->result = result;
            return true;
        }
        if (good) {
            slot->parse = false;
            prepared_find(connection, slot->statement)->state = PREPARED_NAMED;
        }
        break;
    default: /* COPY and the like: not our statements */
        break;
    }
    PQclear(result);
    return good;
}

/* --- deadlines --- */

static void deadline_watch(struct pg *pg, uint64_t deadline_ms)
{
    uint64_t now = uv_now(pg->loop);

    if (deadline_ms >= pg->deadline_ms)
        return;
    pg->deadline_ms = deadline_ms;
    uv_timer_start(&pg->deadline, deadline_on_timer, deadline_ms > now ? deadline_ms - now : 0, 0);
}

static bool connection_is_late(const struct connection *connection, uint64_t now, uint64_t *next)
{
    const struct pg_slot *slot;
    bool late = false;

    list_for_each (slot, &connection->in_flight, link) {
        late |= slot->deadline_ms <= now;
        if (slot->deadline_ms < *next)
            *next = slot->deadline_ms;
    }
    return late;
}

/* Armed for the earliest deadline there ever was; mostly that query is long answered and only the next one is found. */
static void deadline_on_timer(uv_timer_t *timer)
{
    struct pg *pg = container_of(timer, struct pg, deadline);
    uint64_t now = uv_now(pg->loop), next = UINT64_MAX;
    struct list late;

    list_init(&late);
    pg->deadline_ms = UINT64_MAX;
    for (int id = 0; id < PG_LANES; id++) {
        struct lane *lane = &pg->lanes[id];
        struct pg_query *query;

        list_for_each (query, &lane->waiting, link) {
            if (query->deadline_ms > now) {
                next = query->deadline_ms < next ? query->deadline_ms : next;
                continue;
            }
            query_leave_line(query);
            query->state = PG_REFUSED;
            list_push_back(&late, &query->link);
        }
        for (int i = 0; i < lane->count; i++)
            if (connection_is_late(&lane->connections[i], now, &next))
                connection_discard(&lane->connections[i], "no answer in time", true);
    }
    queries_refuse_all(&late);
    if (next != UINT64_MAX && !pg->closing)
        deadline_watch(pg, next > now ? next : now + 1);
}

/* --- what may not happen inside pg_submit, and the end --- */

static void soon_start(struct pg *pg)
{
    if (!uv_is_closing((uv_handle_t *)&pg->soon) && !uv_is_active((uv_handle_t *)&pg->soon))
        uv_timer_start(&pg->soon, soon_on_timer, 0, 0);
}

static void soon_on_timer(uv_timer_t *timer)
{
    struct pg *pg = container_of(timer, struct pg, soon);
    struct list refused;

    for (int id = 0; id < PG_LANES; id++) {
        for (int i = 0; i < pg->lanes[id].count; i++) {
            struct connection *connection = &pg->lanes[id].connections[i];

            if (!connection->broken)
                continue;
            if (connection->state == CONNECTION_UP)
                connection_exchange(connection, true, false); /* reads what was answered, then discards */
            else
                connection_failed(connection, "the socket cannot be watched");
        }
    }
    list_init(&refused);
    list_splice_back(&refused, &pg->refused);
    queries_refuse_all(&refused);
    if (pg->closing)
        pool_end(pg);
}

static void connection_close(struct connection *connection)
{
    if (connection->state == CONNECTION_UP)
        connection_discard(connection, "closing", false);
    connection_drop(connection);
    connection->state = CONNECTION_CLOSED;
    if (connection->lookup.waiting) {
        connection->pg->open_handles++;
        pg_lookup_cancel(&connection->lookup);
    } else {
        pg_lookup_clear(&connection->lookup);
    }
    uv_close((uv_handle_t *)&connection->timer, pool_on_closed);
}

static void pool_end(struct pg *pg)
{
    for (int id = 0; id < PG_LANES; id++)
        for (int i = 0; i < pg->lanes[id].count; i++)
            connection_close(&pg->lanes[id].connections[i]);
    for (int id = 0; id < PG_LANES; id++)
        while (!list_empty(&pg->lanes[id].waiting)) {
            struct pg_query *query = list_entry(pg->lanes[id].waiting.next, struct pg_query, link);

            query_leave_line(query);
            query_refuse(pg, query);
        }
    queries_refuse_all(&pg->refused); /* also what the callbacks submit meanwhile */
    uv_close((uv_handle_t *)&pg->soon, pool_on_closed);
    uv_close((uv_handle_t *)&pg->deadline, pool_on_closed);
}

/* `handle`: a timer of the pool or of one of its connections (also in the name of a poll handle or a look-up). */
static void pool_on_closed(uv_handle_t *handle)
{
    struct pg *pg = handle->data;
    struct list *link;

    if (--pg->open_handles > 0)
        return;
    while ((link = list_pop_front(&pg->free_slots)) != NULL)
        free(list_entry(link, struct pg_slot, link));
    for (int id = 0; id < PG_LANES; id++)
        free(pg->lanes[id].connections);
    pg_address_free(pg->address);
    free(pg);
}
