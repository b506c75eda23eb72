/*
 * "Delete for me": an account hides a message from itself. No seq, no log; Pull and streams of the account leave it
 * out. Who hides nothing, which is nearly everybody, costs one look-up in an index, together with those of all others
 * who ask in the same turn.
 */
#include "reader.h"

#include <stdlib.h>

#include "room/base/log.h"

enum { BATCH_MAX = 1000 };

/* ---------------------------------------------------------------------------------------------------------- hiding */

/* No row: no such room. Members hide messages they may see; the bound is looked at before a new one only. */
static const struct pg_statement hide_statement = {
    .name = "history_hide",
    .sql = "WITH at AS (SELECT r.room_no, m.account, e.seq, EXISTS (SELECT 1 FROM hidden_entry d WHERE "
           "d.room_no = r.room_no AND d.account = m.account AND d.seq = e.seq) AS before, "
           "(SELECT count(*) FROM hidden_entry d WHERE d.room_no = r.room_no AND d.account = m.account) >= $5 AS full "
           "FROM room r LEFT JOIN room_member m ON m.room_no = r.room_no AND m.account = $2 "
           "LEFT JOIN log_entry e ON e.room_no = r.room_no AND e.type = 1 AND (e.seq = $3 OR e.message_id = $4) "
           "AND (NOT r.since_join OR e.seq >= m.join_seq) WHERE r.room_id = $1), "
           "put AS (INSERT INTO hidden_entry (room_no, account, seq) SELECT a.room_no, a.account, a.seq FROM at a "
           "WHERE a.account IS NOT NULL AND a.seq IS NOT NULL AND NOT a.before AND NOT a.full ON CONFLICT DO NOTHING) "
           "SELECT a.account IS NOT NULL, a.seq, a.before, a.full FROM at a",
    .params = 5,
};
enum { C_IS_MEMBER, C_SEQ, C_BEFORE, C_FULL };

static void hide_on_row(struct pg_query *query, enum err err, const PGresult *result);

void history_hide_entry(struct history *history, struct history_hide *hide)
{
    struct pg_params params = {0};
    bool by_id = !hide->seq;

    hide->impl = history;
    pg_param_text(&params, hide->room_id);
    pg_param_text(&params, hide->account);
    if (by_id)
        pg_param_null(&params);
    else
        pg_param_i64(&params, hide->seq > INT64_MAX ? INT64_MAX : (int64_t)hide->seq);
    if (by_id)
        pg_param_uuid(&params, hide->message_id);
    else
        pg_param_null(&params);
    pg_param_i64(&params, history->config->hidden_max);
    hide->query = (struct pg_query){.statement = &hide_statement, .lane = PG_READ, .done = hide_on_row};
    pg_submit(history->pg, &hide->query, &params);
    pg_params_clear(&params);
}

static void tell_account(struct history *history, const struct history_hide *hide)
{
    struct buf json = {0};

    buf_text(&json, "{\"type\":\"message.hidden\",\"room_id\":");
    buf_json_string(&json, hide->room_id);
    buf_text(&json, ",\"seq\":");
    buf_u64(&json, hide->seq);
    buf_char(&json, '}');
    history_tell_account(history, hide->account, buf_str(&json));
    buf_clear(&json);
}

static enum err hide_verdict(struct history_hide *hide, const PGresult *result)
{
    if (!PQntuples(result))
        return ERR_NO_SUCH_ROOM;
    if (!pg_get_bool(result, 0, C_IS_MEMBER))
        return ERR_NOT_MEMBER;
    if (pg_is_null(result, 0, C_SEQ))
        return ERR_NO_SUCH_MESSAGE;
    hide->seq = (uint64_t)pg_get_i64(result, 0, C_SEQ);
    return pg_get_bool(result, 0, C_FULL) && !pg_get_bool(result, 0, C_BEFORE) ? ERR_TOO_LARGE : ERR_OK;
}

static void hide_on_row(struct pg_query *query, enum err err, const PGresult *result)
{
    struct history_hide *hide = container_of(query, struct history_hide, query);
    struct history *history = hide->impl;

    hide->impl = NULL;
    err = reader_error(query, err, result);
    if (!err)
        err = hide_verdict(hide, result);
    if (!err)
        tell_account(history, hide); /* also when it was hidden before: an earlier word may have been lost */
    hide->done(hide, err);
}

/* ---------------------------------------------------------------------------------------------------------- asking */

struct hidden_batch {
    struct list link; /* reader->hidden_batches */
    struct reader *reader;
    struct pg_query query;
    struct list asked; /* struct history_hidden by nth; those who forgot it are gone from here */
};

static const struct pg_statement hidden_statement = {
    .name = "history_hidden",
    .sql = "SELECT x.n - 1, d.seq FROM unnest($1::bigint[], $2::text[], $3::bigint[]) WITH ORDINALITY "
           "x(room_no, account, after_seq, n) JOIN hidden_entry d ON d.room_no = x.room_no "
           "AND d.account = x.account COLLATE \"C\" AND d.seq > x.after_seq ORDER BY x.n, d.seq",
    .params = 3,
};

static void ask_batch(struct reader *reader);
static void hidden_on_rows(struct pg_query *query, enum err err, const PGresult *result);

void hidden_open(struct reader *reader)
{
    list_init(&reader->hiddens);
    list_init(&reader->hidden_batches);
}

void hidden_close(struct reader *reader)
{
    struct list *link;

    while ((link = list_pop_front(&reader->hidden_batches))) {
        struct hidden_batch *batch = list_entry(link, struct hidden_batch, link);

        pg_forget(&batch->query);
        while (list_pop_front(&batch->asked))
            ;
        free(batch);
    }
    while (list_pop_front(&reader->hiddens))
        ;
}

void history_ask_hidden(struct history *history, struct history_hidden *hidden)
{
    list_push_back(&history->reader->hiddens, &hidden->link);
    reader_wake(history->reader);
}

void history_hidden_forget(struct history_hidden *hidden)
{
    list_remove(&hidden->link);
}

void hidden_turn(struct reader *reader)
{
    while (!list_empty(&reader->hiddens))
        ask_batch(reader);
}

static void ask_batch(struct reader *reader)
{
    struct hidden_batch *batch = xcalloc(1, sizeof *batch);
    struct pg_params params = {0};
    struct pg_array rooms = {0}, accounts = {0}, after = {0};
    struct list *link;
    size_t n = 0;

    batch->reader = reader;
    batch->query = (struct pg_query){.statement = &hidden_statement, .lane = PG_READ, .done = hidden_on_rows};
    list_init(&batch->asked);
    list_push_back(&reader->hidden_batches, &batch->link);
    pg_array_reset(&rooms, PG_INT8);
    pg_array_reset(&accounts, PG_TEXT);
    pg_array_reset(&after, PG_INT8);
    while (n < BATCH_MAX && (link = list_pop_front(&reader->hiddens))) {
        struct history_hidden *hidden = list_entry(link, struct history_hidden, link);

        hidden->nth = n++;
        pg_array_i64(&rooms, hidden->room_no);
        pg_array_bytes(&accounts, hidden->account);
        pg_array_i64(&after, hidden->after_seq > INT64_MAX ? INT64_MAX : (int64_t)hidden->after_seq);
        list_push_back(&batch->asked, &hidden->link);
    }
    pg_param_array(&params, &rooms);
    pg_param_array(&params, &accounts);
    pg_param_array(&params, &after);
    pg_submit(reader->history->pg, &batch->query, &params);
    pg_array_clear(&rooms);
    pg_array_clear(&accounts);
    pg_array_clear(&after);
    pg_params_clear(&params);
}

static void hidden_on_rows(struct pg_query *query, enum err err, const PGresult *result)
{
    struct hidden_batch *batch = container_of(query, struct hidden_batch, query);
    struct list *link;
    int rows, row = 0;
    uint64_t *seqs;

    err = reader_error(query, err, result);
    rows = err ? 0 : PQntuples(result);
    seqs = xcalloc((size_t)rows + 1, sizeof *seqs);
    for (int i = 0; i < rows; i++)
        seqs[i] = (uint64_t)pg_get_i64(result, i, 1);
    while ((link = list_pop_front(&batch->asked))) {
        struct history_hidden *hidden = list_entry(link, struct history_hidden, link);
        int first;

        while (row < rows && (size_t)pg_get_i64(result, row, 0) < hidden->nth) /* of one who forgot it */
            row++;
        for (first = row; row < rows && (size_t)pg_get_i64(result, row, 0) == hidden->nth;)
            row++;
        hidden->seqs = seqs + first;
        hidden->count = (size_t)(row - first);
        hidden->done(hidden, err);
    }
    free(seqs);
    list_remove(&batch->link);
    free(batch);
}
