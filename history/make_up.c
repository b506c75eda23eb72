/*
 * What a killed owner had not written yet of its senders' read cursors (mark.c merges them for sent_flush_ms): the new
 * owner reads the end of the log of rooms that were spoken in just before, when it loads them, and moves the cursors of
 * who spoke there. Otherwise their own messages would count as unread until they speak or mark again.
 */
#include "internal.h"

#include <stdlib.h>

#include "room/base/log.h"

enum {
    ROOMS_MAX = 1000,       /* in one statement; more than that wait for the next */
    DYING_MS = 15000,       /* from the last entry of the old owner to the lease of the new one, at most */
    MAKE_UP_FOR_MS = 60000, /* after the takeover; a room that is loaded later is not in a hurry */
    FLUSH_SLACK_MS = 2000   /* a flush itself takes its time */
};

struct make_up {
    struct history *history;
    struct pg_array room_nos, sinces; /* gathered */
    struct pg_params params;
    struct pg_query query;
    bool asked;
};

/* By the primary key from its end; a room that was busier than 2,000 messages in that time has its
 * senders there too. */
static const struct pg_statement statement = {
    .name = "senders_of_late",
    .sql = "SELECT r.room_id, e.sender, max(e.seq) FROM unnest($1::bigint[], $2::bigint[]) x(room_no, since)"
           " CROSS JOIN LATERAL (SELECT room_id FROM room WHERE room_no = x.room_no) r"
           " CROSS JOIN LATERAL (SELECT l.sender, l.seq FROM (SELECT sender, seq, at, type FROM log_entry"
           " WHERE room_no = x.room_no ORDER BY seq DESC LIMIT 2000) l"
           " WHERE l.at >= x.since AND l.type = 1 AND l.sender NOT LIKE '@%') e GROUP BY 1, 2",
    .params = 2,
};

struct make_up *make_up_open(struct history *history)
{
    struct make_up *make_up = xcalloc(1, sizeof *make_up);

    make_up->history = history;
    pg_array_reset(&make_up->room_nos, PG_INT8);
    pg_array_reset(&make_up->sinces, PG_INT8);
    return make_up;
}

void make_up_close(struct make_up *make_up)
{
    if (make_up->asked)
        pg_forget(&make_up->query);
    pg_params_clear(&make_up->params);
    pg_array_clear(&make_up->room_nos);
    pg_array_clear(&make_up->sinces);
    free(make_up);
}

void make_up_loaded(struct make_up *make_up, const struct shard *shard, int64_t room_no, uint64_t last_at)
{
    struct history *history = make_up->history;
    uint64_t owned_ms = uv_now(history->loop) - shard->taken_at_ms, now = history_now_ms(history);
    uint64_t flush_ms = (uint64_t)history->config->sent_flush_ms + FLUSH_SLACK_MS;

    if (shard->epoch < 2 || owned_ms > MAKE_UP_FOR_MS || make_up->room_nos.count >= ROOMS_MAX ||
        last_at + flush_ms + DYING_MS + owned_ms < now)
        return;
    pg_array_i64(&make_up->room_nos, room_no);
    pg_array_i64(&make_up->sinces, (int64_t)(last_at > flush_ms ? last_at - flush_ms : 0));
}

static void on_answer(struct pg_query *query, enum err err, const PGresult *result)
{
    struct make_up *make_up = container_of(query, struct make_up, query);

    make_up->asked = false;
    if (err) /* the database is away: what is lost is a number beside a room */
        log_info("senders_of_late.failed", "error=%s", err_code(err));
    for (int row = 0; !err && row < PQntuples(result); row++)
        marks_sent(make_up->history->marks, pg_get_str(result, row, 0), pg_get_str(result, row, 1),
            (uint64_t)pg_get_i64(result, row, 2));
}

void make_up_turn(struct make_up *make_up)
{
    if (make_up->asked || !make_up->room_nos.count)
        return;
    make_up->asked = true;
    pg_params_reset(&make_up->params);
    pg_param_array(&make_up->params, &make_up->room_nos);
    pg_param_array(&make_up->params, &make_up->sinces);
    make_up->query = (struct pg_query){.statement = &statement, .lane = PG_READ, .done = on_answer};
    pg_submit(make_up->history->pg, &make_up->query, &make_up->params);
    pg_array_reset(&make_up->room_nos, PG_INT8);
    pg_array_reset(&make_up->sinces, PG_INT8);
}
