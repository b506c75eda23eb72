/*
 * Read cursors: what accounts say they have read, and the senders' own cursors, which follow what they send. Whatever
 * wants to move is merged per account and room and written by one statement at a time:
 *
 *   ask, sent ─▶ merged ─window over, nothing on its way─▶ one UPDATE for at most ROWS_MAX cursors ─▶ answers, `read`
 *                  ▲                                          │ above the durable head: looked at again, for a while
 *                  └──────────────────────────────────────────┘ the row is locked (a member change commits): again
 *
 * The first after a pause goes at once, the others wait for the end of their window. The statement waits for no lock
 * (SKIP LOCKED): an append whose end never arrived keeps the rows of its members locked, and must not hold up everybody
 * else's cursors. A statement that waits for no lock is in no deadlock either; the rows it does lock it locks in one
 * order.
 */
#include "reader.h"

#include <inttypes.h>
#include <stdlib.h>

#include "room/base/log.h"

enum {
    ROWS_MAX = 2000,   /* 0.1 ms each on a busy machine; the rest goes right behind */
    OWN_EARLY = 20000, /* senders' cursors that end their window: ten full statements, 2 MiB */
    OWN_MOST = 200000, /* 20 MiB, when nothing can be written; the newest are let go, their next message tries again */
    STATEMENT_MS = 4000,    /* with a database that is away, callers hear it after so long */
    BACKOFF_LEAST_MS = 100, /* after a failure; doubles */
    BACKOFF_MOST_MS = 5000
};

/* One account's cursor in one room, to be moved. */
struct moving {
    struct map_link by_key; /* marks->moving, until it is on its way; not when late */
    struct list link;       /* a window's rows, or the flight's */
    struct list asks;       /* struct ask */
    uint64_t sent_seq;      /* the account's last own message; 0 = none */
    uint64_t seq;           /* as sent: the highest of all */
    size_t room_id_n, account_n;
    char text[]; /* room id, account */
};

/* A caller who waits. */
struct ask {
    struct history_mark *mark;
    struct list link;
    uint64_t deadline_ms; /* loop clock: what is not durable then is above the head */
};

struct window {
    struct list rows; /* struct moving */
    size_t count;
    uint64_t every_ms, next_ms; /* loop clock */
};
/* Late: above the durable head when last looked at. Not merged with others, which would have to wait with it. */
enum which { ASKED, LATE, OWN, WINDOWS };

struct marks {
    struct history *history;
    struct map moving; /* those in a window */
    struct window windows[WINDOWS];

    struct pg_query query; /* on its way with: */
    struct list flight;    /* struct moving, in the order of the answer's rows */
    bool flying;
    uint64_t backoff_ms, not_before_ms;
    uv_timer_t timer;
    bool draining;

    uint64_t asked_total, sent_total, statements_total, moved_total, dropped_total;
};

static struct moving *find_or_make(struct marks *marks, struct str room_id, struct str account, enum which which);
static void join(struct marks *marks, struct ask *ask);
static void schedule(struct marks *marks);
static void on_timer(uv_timer_t *timer);
static void submit(struct marks *marks);
static void on_moved(struct pg_query *query, enum err err, const PGresult *result);
static void settle(struct marks *marks, struct moving *row, const PGresult *result, int at);
static void again(struct marks *marks, struct moving *row);
static void fail(struct marks *marks, struct list *rows, enum err err);
static void answer(struct ask *ask, enum err err, uint64_t read_seq, uint64_t unread);
static void tell(struct marks *marks, const struct moving *row, uint64_t read_seq, bool direct, int64_t members);

struct marks *marks_open(struct history *history)
{
    struct marks *marks = xcalloc(1, sizeof *marks);

    marks->history = history;
    map_init(&marks->moving);
    for (size_t i = 0; i < WINDOWS; i++)
        list_init(&marks->windows[i].rows);
    marks->windows[ASKED].every_ms = marks->windows[LATE].every_ms = (uint64_t)history->config->mark_flush_ms;
    marks->windows[OWN].every_ms = (uint64_t)history->config->sent_flush_ms;
    list_init(&marks->flight);
    uv_timer_init(history->loop, &marks->timer);
    marks->timer.data = marks;
    return marks;
}

static void on_closed(uv_handle_t *handle)
{
    free(handle->data);
}

static void moving_free(struct moving *row)
{
    struct list *link;

    while ((link = list_pop_front(&row->asks)))
        free(list_entry(link, struct ask, link));
    free(row);
}

void marks_close(struct marks *marks)
{
    struct list *link;

    if (marks->flying)
        pg_forget(&marks->query);
    for (size_t i = 0; i < WINDOWS; i++)
        list_splice_back(&marks->flight, &marks->windows[i].rows);
    while ((link = list_pop_front(&marks->flight)))
        moving_free(list_entry(link, struct moving, link));
    map_clear(&marks->moving);
    uv_close((uv_handle_t *)&marks->timer, on_closed);
}

void marks_metrics(const struct marks *marks, struct buf *out)
{
    buf_printf(out,
        "# HELP roomd_marks_total Read cursors that were to be moved, by who moves them.\n"
        "# TYPE roomd_marks_total counter\nroomd_marks_total{by=\"mark\"} %" PRIu64
        "\nroomd_marks_total{by=\"sending\"} %" PRIu64 "\n"
        "# HELP roomd_mark_statements_total Statements that moved read cursors, many each.\n"
        "# TYPE roomd_mark_statements_total counter\nroomd_mark_statements_total %" PRIu64 "\n"
        "# HELP roomd_cursors_moved_total Read cursors moved.\n"
        "# TYPE roomd_cursors_moved_total counter\nroomd_cursors_moved_total %" PRIu64 "\n"
        "# HELP roomd_cursors_dropped_total Senders' cursors let go because too many could not be written.\n"
        "# TYPE roomd_cursors_dropped_total counter\nroomd_cursors_dropped_total %" PRIu64 "\n"
        "# HELP roomd_cursors_waiting Read cursors that wait for the next statement.\n"
        "# TYPE roomd_cursors_waiting gauge\nroomd_cursors_waiting %zu\n",
        marks->asked_total, marks->sent_total, marks->statements_total, marks->moved_total, marks->dropped_total,
        marks->moving.count + marks->windows[LATE].count);
}

/* -------------------------------------------------------------------------------------------------------- merging */

void history_mark_read(struct history *history, struct history_mark *mark)
{
    struct marks *marks = history->marks;
    struct ask *ask = xcalloc(1, sizeof *ask);

    ask->mark = mark;
    ask->deadline_ms = uv_now(history->loop) + (uint64_t)history->config->mark_wait_ms;
    mark->impl = ask;
    marks->asked_total++;
    join(marks, ask);
    schedule(marks);
}

void marks_sent(struct marks *marks, struct str room_id, struct str account, uint64_t seq)
{
    struct moving *row;

    marks->sent_total++;
    if (marks->windows[OWN].count >= OWN_MOST) {
        marks->dropped_total++;
        return;
    }
    row = find_or_make(marks, room_id, account, OWN);
    if (seq > row->sent_seq)
        row->sent_seq = seq;
    schedule(marks);
}

struct moving_key {
    struct str room_id, account;
};

static struct str row_room_id(const struct moving *row)
{
    return (struct str){row->text, row->room_id_n};
}

static struct str row_account(const struct moving *row)
{
    return (struct str){row->text + row->room_id_n, row->account_n};
}

static bool same_key(const struct map_link *link, const void *key)
{
    const struct moving *row = container_of(link, struct moving, by_key);
    const struct moving_key *wanted = key;

    return str_eq(row_room_id(row), wanted->room_id) && str_eq(row_account(row), wanted->account);
}

static void put_into(struct marks *marks, struct moving *row, enum which which)
{
    list_push_back(&marks->windows[which].rows, &row->link);
    marks->windows[which].count++;
}

static struct moving *moving_new(struct str room_id, struct str account)
{
    struct moving *row = xcalloc(1, sizeof *row + room_id.n + account.n);

    list_init(&row->asks);
    row->room_id_n = room_id.n;
    row->account_n = account.n;
    memcpy(row->text, room_id.p, room_id.n);
    memcpy(row->text + room_id.n, account.p, account.n);
    return row;
}

/* A cursor that somebody waits for is in the window of those, whoever moved it first. */
static struct moving *find_or_make(struct marks *marks, struct str room_id, struct str account, enum which which)
{
    struct moving_key key = {room_id, account};
    uint64_t hash = map_hash(room_id.p, room_id.n) ^ map_hash_u64(map_hash(account.p, account.n));
    struct map_link *link = map_find(&marks->moving, hash, same_key, &key);
    struct moving *row;

    if (link) {
        row = container_of(link, struct moving, by_key);
        if (which == ASKED && list_empty(&row->asks)) {
            list_remove(&row->link);
            marks->windows[OWN].count--;
            put_into(marks, row, ASKED);
        }
        return row;
    }
    row = moving_new(room_id, account);
    map_insert(&marks->moving, hash, &row->by_key);
    put_into(marks, row, which);
    return row;
}

static void join(struct marks *marks, struct ask *ask)
{
    list_push_back(&find_or_make(marks, ask->mark->room_id, ask->mark->account, ASKED)->asks, &ask->link);
}

/* -------------------------------------------------------------------------------------------------------- windows */

static uint64_t due_at(const struct marks *marks, enum which which)
{
    const struct window *window = &marks->windows[which];
    uint64_t due = marks->draining || (which == OWN && window->count >= OWN_EARLY) ? 0 : window->next_ms;

    return due > marks->not_before_ms ? due : marks->not_before_ms;
}

static void schedule(struct marks *marks)
{
    uint64_t now = uv_now(marks->history->loop), due = UINT64_MAX;

    if (marks->flying)
        return;
    for (enum which which = 0; which < WINDOWS; which++)
        if (marks->windows[which].count && due_at(marks, which) < due)
            due = due_at(marks, which);
    if (due == UINT64_MAX)
        return;
    due = due > now ? due - now : 0;
    if (!uv_is_active((uv_handle_t *)&marks->timer) || uv_timer_get_due_in(&marks->timer) > due)
        uv_timer_start(&marks->timer, on_timer, due, 0);
}

static void on_timer(uv_timer_t *timer)
{
    struct marks *marks = timer->data;

    if (!marks->flying)
        submit(marks);
    schedule(marks);
}

void marks_drain(struct marks *marks)
{
    marks->draining = true;
    schedule(marks);
}

bool marks_idle(const struct marks *marks)
{
    return !marks->flying && !marks->moving.count && !marks->windows[LATE].count;
}

/* ------------------------------------------------------------------------------------------------------ statements */

/*
 * asked   what is to be moved where, beside the room's head; target: the highest that is durable of all for this cursor
 * held    the rows that can move and are free, locked
 * moved   moved; forward only, and with it never below the join, where a cursor begins
 * The answer has a row for each asked one, as it was before, and behind it one more when it moved. A cursor that should
 * move and did not is one whose row was locked, or has been moved meanwhile: to be tried again. Nothing is joined but
 * by index or ctid: the planner cannot know how many rows a CTE has, and would go through one for each row of another.
 */
static const struct pg_statement move_statement = {
    .name = "marks_move",
    .sql = "WITH asked AS MATERIALIZED (SELECT x.n, x.account, x.seq, x.waiting, r.room_no, r.kind = 'direct' AS "
           "direct, r.members, h.last_seq, h.counted, "
           "max(x.seq) FILTER (WHERE x.seq <= h.last_seq) OVER (PARTITION BY r.room_no, x.account) AS target "
           "FROM unnest($1::text[], $2::text[], $3::bigint[], $4::boolean[]) WITH ORDINALITY "
           "x(room_id, account, seq, waiting, n) LEFT JOIN room r ON r.room_id = x.room_id COLLATE \"C\" "
           "LEFT JOIN room_head h ON h.room_no = r.room_no), "
           "held AS MATERIALIZED (SELECT a.*, m.ctid AS at, (SELECT e.counted FROM log_entry e "
           "WHERE e.room_no = a.room_no AND e.seq = a.seq) AS read_n FROM asked a JOIN room_member m ON "
           "m.room_no = a.room_no AND m.account = a.account COLLATE \"C\" "
           "WHERE a.seq = a.target AND m.read_seq < a.seq "
           "ORDER BY m.room_no, m.account FOR NO KEY UPDATE OF m SKIP LOCKED), "
           "moved AS (UPDATE room_member m SET read_seq = k.seq, read_n = k.read_n FROM held k "
           "WHERE m.ctid = k.at AND m.read_seq < k.seq AND k.read_n IS NOT NULL RETURNING k.*) "
           "SELECT a.n, false, a.room_no, a.last_seq, a.direct, a.members, m.read_seq, "
           "CASE WHEN a.waiting AND m.read_seq >= a.seq THEN c.unread END "
           "FROM asked a LEFT JOIN room_member m ON m.room_no = a.room_no AND m.account = a.account COLLATE \"C\" "
           "CROSS JOIN LATERAL counts_of(a.room_no, a.account, m.read_seq, m.read_n, a.last_seq, a.counted) c "
           "UNION ALL SELECT v.n, true, v.room_no, v.last_seq, v.direct, v.members, v.seq, "
           "CASE WHEN v.waiting THEN c.unread END FROM moved v "
           "CROSS JOIN LATERAL counts_of(v.room_no, v.account, v.seq, v.read_n, v.last_seq, v.counted) c "
           "ORDER BY 1, 2",
    .params = 4,
};
enum { C_N, C_MOVED, C_ROOM_NO, C_LAST_SEQ, C_DIRECT, C_MEMBERS, C_READ_SEQ, C_UNREAD };

static uint64_t highest(const struct moving *row)
{
    uint64_t seq = row->sent_seq;
    struct ask *ask;

    list_for_each (ask, &row->asks, link)
        if (ask->mark->read_seq > seq)
            seq = ask->mark->read_seq;
    return seq > INT64_MAX ? INT64_MAX : seq;
}

/* What is due, those first that somebody waits for. */
static size_t take_due(struct marks *marks)
{
    uint64_t now = uv_now(marks->history->loop);
    struct list *link;
    size_t count = 0;

    for (enum which which = 0; which < WINDOWS; which++) {
        struct window *window = &marks->windows[which];

        if (!window->count || due_at(marks, which) > now)
            continue;
        while (count < ROWS_MAX && (link = list_pop_front(&window->rows))) {
            struct moving *row = list_entry(link, struct moving, link);

            window->count--;
            if (which != LATE)
                map_remove(&marks->moving, &row->by_key);
            row->seq = highest(row);
            list_push_back(&marks->flight, &row->link);
            count++;
        }
        if (!window->count)
            window->next_ms = now + window->every_ms;
    }
    return count;
}

static void submit(struct marks *marks)
{
    struct pg_array room_ids = {0}, accounts = {0}, seqs = {0}, waiting = {0};
    struct pg_params params = {0};
    struct moving *row;

    if (!take_due(marks))
        return;
    pg_array_reset(&room_ids, PG_TEXT);
    pg_array_reset(&accounts, PG_TEXT);
    pg_array_reset(&seqs, PG_INT8);
    pg_array_reset(&waiting, PG_BOOL);
    list_for_each (row, &marks->flight, link) {
        pg_array_bytes(&room_ids, row_room_id(row));
        pg_array_bytes(&accounts, row_account(row));
        pg_array_i64(&seqs, (int64_t)row->seq);
        pg_array_bool(&waiting, !list_empty(&row->asks));
    }
    pg_param_array(&params, &room_ids);
    pg_param_array(&params, &accounts);
    pg_param_array(&params, &seqs);
    pg_param_array(&params, &waiting);
    marks->flying = true;
    marks->statements_total++;
    marks->query =
        (struct pg_query){.statement = &move_statement, .lane = PG_READ, .timeout_ms = STATEMENT_MS, .done = on_moved};
    pg_submit(marks->history->pg, &marks->query, &params);
    pg_array_clear(&room_ids);
    pg_array_clear(&accounts);
    pg_array_clear(&seqs);
    pg_array_clear(&waiting);
    pg_params_clear(&params);
}

static bool is_worth_repeating(enum err err, const PGresult *result)
{
    return err == ERR_DATABASE && strncmp(pg_sqlstate(result), "40", 2) == 0; /* deadlock, serialization */
}

static void on_moved(struct pg_query *query, enum err err, const PGresult *result)
{
    struct marks *marks = container_of(query, struct marks, query);
    struct history *history = marks->history;
    struct list rows, *link;
    int at = 0;

    marks->flying = false;
    list_init(&rows);
    list_splice_back(&rows, &marks->flight);
    if (err) {
        marks->backoff_ms = marks->backoff_ms ? 2 * marks->backoff_ms : BACKOFF_LEAST_MS;
        if (marks->backoff_ms > BACKOFF_MOST_MS)
            marks->backoff_ms = BACKOFF_MOST_MS;
        marks->not_before_ms = uv_now(history->loop) + marks->backoff_ms;
        if (is_worth_repeating(err, result))
            while ((link = list_pop_front(&rows)))
                again(marks, list_entry(link, struct moving, link));
        else
            fail(marks, &rows, reader_error(query, err, result));
    } else {
        marks->backoff_ms = 0;
        for (; (link = list_pop_front(&rows)); at++) {
            at += at + 1 < PQntuples(result) && pg_get_bool(result, at + 1, C_MOVED);
            settle(marks, list_entry(link, struct moving, link), result, at);
        }
    }
    schedule(marks);
    history_drained_check(history);
}

/* ------------------------------------------------------------------------------------------------------- outcomes */

static void answer(struct ask *ask, enum err err, uint64_t read_seq, uint64_t unread)
{
    struct history_mark *mark = ask->mark;

    list_remove(&ask->link);
    free(ask);
    mark->impl = NULL;
    if (!err) {
        mark->read_seq = read_seq;
        mark->unread = unread;
    }
    mark->done(mark, err);
}

static void answer_all(struct moving *row, enum err err, uint64_t read_seq, uint64_t unread)
{
    struct list *link;

    while ((link = list_pop_front(&row->asks)))
        answer(list_entry(link, struct ask, link), err, read_seq, unread);
}

/* The owner knows what was sequenced, durable or not: what is above that will not come. */
static bool never_was(const struct marks *marks, struct str room_id, uint64_t seq)
{
    struct shard *shard = history_find_shard_of(marks->history, room_id);
    struct seq_room_view view;

    return shard && shard_is_sequencing(shard) && sequencer_find_room(shard->sequencer, room_id, &view) &&
           seq > view.last_seq;
}

/* Those that ask for more than is durable wait for it; the others go on without them. */
static void part_with_late(struct marks *marks, struct moving *row, uint64_t last_seq)
{
    uint64_t now = uv_now(marks->history->loop);
    struct ask *ask;

    list_for_each (ask, &row->asks, link) {
        if (ask->mark->read_seq <= last_seq)
            continue;
        if (now >= ask->deadline_ms || never_was(marks, ask->mark->room_id, ask->mark->read_seq)) {
            answer(ask, ERR_BAD_REQUEST, 0, 0);
        } else if (marks->draining) {
            answer(ask, ERR_UNAVAILABLE, 0, 0);
        } else {
            struct moving *late = moving_new(row_room_id(row), row_account(row));

            list_remove(&ask->link);
            list_push_back(&late->asks, &ask->link);
            put_into(marks, late, LATE);
        }
    }
    if (marks->windows[LATE].next_ms <= now)
        marks->windows[LATE].next_ms = now + marks->windows[LATE].every_ms;
    again(marks, row);
}

static void settle(struct marks *marks, struct moving *row, const PGresult *result, int at)
{
    uint64_t last_seq = (uint64_t)pg_get_i64(result, at, C_LAST_SEQ);
    uint64_t read_seq = (uint64_t)pg_get_i64(result, at, C_READ_SEQ);
    bool moved = pg_get_bool(result, at, C_MOVED);

    marks->moved_total += moved;
    if (pg_is_null(result, at, C_ROOM_NO)) {
        answer_all(row, ERR_NO_SUCH_ROOM, 0, 0);
    } else if (pg_is_null(result, at, C_READ_SEQ)) {
        answer_all(row, ERR_NOT_MEMBER, 0, 0);
    } else if (read_seq >= row->seq) {
        if (moved && !list_empty(&row->asks) && row->seq > row->sent_seq)
            tell(marks, row, read_seq, pg_get_bool(result, at, C_DIRECT), pg_get_i64(result, at, C_MEMBERS));
        answer_all(row, ERR_OK, read_seq, (uint64_t)pg_get_i64(result, at, C_UNREAD));
    } else if (row->seq > last_seq) {
        part_with_late(marks, row, last_seq);
        return;
    } else {
        if (marks->draining) /* there are no windows any more */
            marks->not_before_ms = uv_now(marks->history->loop) + BACKOFF_LEAST_MS;
        again(marks, row);
        return;
    }
    moving_free(row);
}

/* Back among those that wait. */
static void again(struct marks *marks, struct moving *row)
{
    uint64_t now = uv_now(marks->history->loop);
    struct list *link;

    if (row->sent_seq) {
        struct moving *own = find_or_make(marks, row_room_id(row), row_account(row), OWN);

        if (row->sent_seq > own->sent_seq)
            own->sent_seq = row->sent_seq;
    }
    while ((link = list_pop_front(&row->asks))) {
        struct ask *ask = list_entry(link, struct ask, link);

        if (now >= ask->deadline_ms + STATEMENT_MS)
            answer(ask, ERR_UNAVAILABLE, 0, 0);
        else
            join(marks, ask);
    }
    moving_free(row);
}

/* The database is away: callers hear it, also those whose turn has not come; senders' cursors are kept. */
static void fail(struct marks *marks, struct list *rows, enum err err)
{
    struct list asked, *link;
    struct moving *row;

    list_for_each (row, &marks->windows[ASKED].rows, link)
        map_remove(&marks->moving, &row->by_key);
    marks->windows[ASKED].count = marks->windows[LATE].count = 0;
    list_splice_back(rows, &marks->windows[ASKED].rows);
    list_splice_back(rows, &marks->windows[LATE].rows);
    list_init(&asked);
    while ((link = list_pop_front(rows))) {
        row = list_entry(link, struct moving, link);
        list_splice_back(&asked, &row->asks);
        again(marks, row);
    }
    while ((link = list_pop_front(&asked)))
        answer(list_entry(link, struct ask, link), err, 0, 0);
}

static void tell(struct marks *marks, const struct moving *row, uint64_t read_seq, bool direct, int64_t members)
{
    struct history *history = marks->history;
    struct buf json = {0};

    buf_text(&json, "{\"type\":\"read\",\"room_id\":");
    buf_json_string(&json, row_room_id(row));
    buf_text(&json, ",\"account_id\":");
    buf_json_string(&json, row_account(row));
    buf_text(&json, ",\"read_seq\":");
    buf_u64(&json, read_seq);
    buf_char(&json, '}');
    if (direct || members <= history->config->read_events_max_members)
        history_tell_room(history, row_room_id(row), buf_str(&json));
    else
        history_tell_account(history, row_account(row), buf_str(&json));
    buf_clear(&json);
}
