/*
 * Rows of all shards into few commits. Whatever gathers while commits are on their way is the next batch: at low load
 * that is one row at once, at high load hundreds. One call of append() is one transaction: all of a batch or nothing of
 * it.
 *
 *   FLOWING ─a batch failed─▶ STOPPING ─nothing in flight─▶ MENDING ─looked up, rewound─▶ FLOWING
 *                                        (at once, or after a while when the database is away)
 *
 * What failed, and what is done about it when nothing is in flight any more:
 *   fenced      RF001: the shards named are lost; the rest is sent again
 *   moved       RF002: usually the batch behind a failed one. The heads are read: rows at or below them under our epoch
 *               are committed (a commit that was taken for lost came through late); a head that fits neither way ends
 *               our ownership
 *   duplicate   23505 on the id: these rows become voids, the rest is sent again
 *   refused     class 22, 23: batches become smaller until the one row stands alone; that one becomes a void and a dead
 *               letter
 *   unknown     the connection broke: heads are read, as above
 *   away        everything else is the database's trouble, not the rows': kept, sent again
 */
#include "append.h"
#include "internal.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "room/base/clock.h"
#include "room/base/log.h"

#define BATCH_MAX_BYTES (4u << 20)
#define BACKOFF_LEAST_MS 50
#define BACKOFF_MOST_MS 2000

enum failure { FAILED_NOT, FAILED_FENCED, FAILED_MOVED, FAILED_DUPLICATE, FAILED_REFUSED, FAILED_UNKNOWN, FAILED_AWAY };
static const char *const failure_name[] = {"none", "fenced", "moved", "duplicate", "refused", "unknown", "away"};

/* A run of rows of one shard inside a batch. */
struct part {
    struct shard *shard; /* NULL: the shard is gone, and its rows with it */
    uint32_t first, count;
};

struct batch {
    struct list link; /* ->idle, ->in_flight or ->failed */
    struct writer *writer;
    struct pg_query query;
    struct seq_row **rows;
    struct part *parts;
    size_t row_count, part_count, part_capacity, bytes;
    size_t dead_count; /* rows that are a dead letter and nothing else */
    uint64_t sent_us;
    enum failure failure;
    char fenced[600]; /* names of shards, comma-separated */
};

/* One row that is looked up while mending. */
struct look {
    struct batch *batch;
    size_t part;
    uint32_t row;
    bool found;
    uint64_t seq, epoch; /* heads: where the head is; ids: where the id is */
    int64_t hash;
};

static const double latency_bounds_ms[] = {0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 5000};
static const double row_bounds[] = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000};
struct histogram {
    uint64_t counts[countof(latency_bounds_ms) + 1], total;
    double sum;
};

struct writer {
    struct history *history;
    struct list ready;     /* shards that may have unsent rows */
    struct list in_flight; /* batches, in order */
    struct list failed;    /* batches, in order */
    struct list idle;
    size_t in_flight_count, limit; /* rows in a batch; below batch_max_rows while a refused row is looked for */
    size_t batch_max_rows;

    struct append *append; /* the batch that is being filled */
    struct pg_params params;

    bool mending, useless;
    struct pg_query mend; /* heads, then ids */
    struct look *looks;
    size_t look_count;
    uint64_t backoff_ms, not_before_ms;
    uv_timer_t *timer;
    int backend_pid;

    uint64_t batches_total, failures_total[countof(failure_name)];
    struct histogram latency, rows;
};

static void fill_batch(struct writer *writer, struct batch *batch);
static void send_batch(struct writer *writer, struct batch *batch);
static void on_commit(struct pg_query *query, enum err err, const PGresult *result);
static void settle(struct writer *writer, struct batch *batch);
static void mend(struct writer *writer);
static void look_up(struct writer *writer, const struct pg_statement *statement,
    void (*done)(struct pg_query *query, enum err err, const PGresult *result));
static void mend_ids(struct writer *writer);
static void on_heads(struct pg_query *query, enum err err, const PGresult *result);
static void on_ids(struct pg_query *query, enum err err, const PGresult *result);
static void mend_finish(struct writer *writer);
static void retry_later(struct writer *writer);

static const struct pg_statement read_heads = {
    .name = "read_heads",
    .sql = "SELECT x.row, h.last_seq, h.last_epoch, 0::bigint FROM unnest($1::int4[], $2::int8[]) x(row, room_no) JOIN "
           "room_head h ON h.room_no = x.room_no",
    .params = 2,
};
static const struct pg_statement read_ids = {
    .name = "read_ids",
    .sql = "SELECT x.row, e.seq, e.epoch, e.hash FROM unnest($1::int4[], $2::int8[], $3::uuid[]) x(row, room_no, id)"
           " JOIN log_entry e ON e.room_no = x.room_no AND e.message_id = x.id",
    .params = 3,
};

static void wake(uv_timer_t *timer)
{
    (void)timer; /* the turn does the rest */
}

/* A new backend: a successor must know whom to end when a half-sent batch holds the fence. */
static void on_lane(void *arg, bool up, int backend_pid)
{
    struct writer *writer = arg;

    if (!up)
        return;
    writer->backend_pid = backend_pid;
    writer_connected(writer);
    writer->not_before_ms = 0;
    uv_timer_start(writer->timer, wake, 0, 0);
}

void writer_connected(struct writer *writer)
{
    if (writer->history->cluster && writer->backend_pid)
        cluster_bind_backend(writer->history->cluster, writer->backend_pid);
}

struct writer *writer_open(struct history *history)
{
    struct writer *writer = xcalloc(1, sizeof *writer);

    writer->history = history;
    writer->limit = writer->batch_max_rows = (size_t)history->config->batch_max_rows;
    list_init(&writer->ready);
    list_init(&writer->in_flight);
    list_init(&writer->failed);
    list_init(&writer->idle);
    writer->append = append_new(writer->batch_max_rows);
    for (int64_t i = 0; i < history->config->batches_in_flight; i++) {
        struct batch *batch = xcalloc(1, sizeof *batch);

        batch->writer = writer;
        batch->rows = xcalloc(writer->batch_max_rows, sizeof(struct seq_row *));
        list_push_back(&writer->idle, &batch->link);
    }
    writer->timer = xcalloc(1, sizeof *writer->timer);
    uv_timer_init(history->loop, writer->timer);
    pg_on_state(history->pg, PG_WRITE, on_lane, writer);
    return writer;
}

void writer_offer(struct writer *writer, struct shard *shard)
{
    if (list_empty(&shard->write_link))
        list_push_back(&writer->ready, &shard->write_link);
}

/* A dead letter has no head that would hold back what follows it: were its batch to fail and the next one to commit,
 * it could, after a crash, be judged anew behind what its publisher sent later. */
static bool dead_letters_in_flight(struct writer *writer)
{
    struct batch *batch;

    list_for_each (batch, &writer->in_flight, link)
        if (batch->dead_count)
            return true;
    return false;
}

void writer_turn(struct writer *writer)
{
    /* One batch at a time while a refused row is looked for: else those behind it fail as well. */
    size_t slots = writer->limit < writer->batch_max_rows ? 1 : (size_t)writer->history->config->batches_in_flight;

    if (!list_empty(&writer->failed)) {
        if (!writer->mending && list_empty(&writer->in_flight) &&
            uv_now(writer->history->loop) >= writer->not_before_ms)
            mend(writer);
        return;
    }
    if (list_empty(&writer->ready) || uv_now(writer->history->loop) < writer->not_before_ms ||
        !pg_up(writer->history->pg, PG_WRITE))
        return;
    while (writer->in_flight_count < slots && !dead_letters_in_flight(writer)) {
        struct batch *batch = list_entry(writer->idle.next, struct batch, link);

        fill_batch(writer, batch);
        if (!batch->row_count)
            return;
        send_batch(writer, batch);
    }
}

/* --------------------------------------------------------------------------------------------------------- filling */

static void add_part(struct batch *batch, struct shard *shard)
{
    if (batch->part_count == batch->part_capacity) {
        batch->part_capacity = batch->part_capacity ? 2 * batch->part_capacity : 16;
        batch->parts = xrealloc(batch->parts, batch->part_capacity * sizeof *batch->parts);
    }
    batch->parts[batch->part_count++] = (struct part){.shard = shard, .first = (uint32_t)batch->row_count};
    shard->in_flight++;
}

/* Takes rows of one shard, in order, as long as they fit. true: it has more. */
static bool take_rows(struct writer *writer, struct batch *batch, struct shard *shard)
{
    struct seq_row *row = sequencer_first_unsent(shard->sequencer);
    bool begun = false;

    for (; row; row = sequencer_next_row(shard->sequencer, row)) {
        if (batch->row_count == writer->limit || (batch->row_count && batch->bytes + row->bytes > BATCH_MAX_BYTES))
            return true;
        if (row->entry && !append_admit(writer->append, row))
            return true;
        if (!begun)
            add_part(batch, shard);
        begun = true;
        row->sent = true;
        batch->rows[batch->row_count++] = row;
        batch->dead_count += !row->entry;
        batch->parts[batch->part_count - 1].count++;
        batch->bytes += row->bytes;
    }
    return false;
}

static void fill_batch(struct writer *writer, struct batch *batch)
{
    struct list more, *at;

    batch->row_count = batch->part_count = batch->bytes = batch->dead_count = 0;
    batch->failure = FAILED_NOT;
    append_begin(writer->append);
    list_init(&more);
    while (
        batch->row_count < writer->limit && batch->bytes < BATCH_MAX_BYTES && (at = list_pop_front(&writer->ready))) {
        struct shard *shard = list_entry(at, struct shard, write_link);

        if (shard->sequencer && take_rows(writer, batch, shard))
            list_push_back(&more, &shard->write_link);
    }
    list_splice_back(&writer->ready, &more); /* last in the next batch: shards take turns */
}

static void send_batch(struct writer *writer, struct batch *batch)
{
    uint64_t now_ms = history_now_ms(writer->history);

    for (size_t p = 0; p < batch->part_count; p++) {
        const struct part *part = &batch->parts[p];

        append_shard(writer->append, str_of(part->shard->name), part->shard->epoch);
        for (uint32_t i = part->first; i < part->first + part->count; i++)
            append_row(writer->append, str_of(part->shard->name), batch->rows[i], now_ms);
    }
    list_remove(&batch->link);
    list_push_back(&writer->in_flight, &batch->link);
    writer->in_flight_count++;
    batch->sent_us = clock_mono_us();
    batch->query = (struct pg_query){.statement = &append_statement, .lane = PG_WRITE, .done = on_commit};
    pg_submit(writer->history->pg, &batch->query,
        append_params(writer->append, str_of(cluster_self(writer->history->cluster))));
}

/* ------------------------------------------------------------------------------------------------------- answering */

static enum failure failure_of(enum err err, const PGresult *result)
{
    const char *state, *constraint;

    if (err == ERR_LOST || err == ERR_TIMEOUT)
        return FAILED_UNKNOWN;
    if (err != ERR_DATABASE || !result)
        return FAILED_AWAY;
    state = pg_sqlstate(result);
    if (!strcmp(state, "RF001"))
        return FAILED_FENCED;
    if (!strcmp(state, "RF002"))
        return FAILED_MOVED;
    if (strncmp(state, "22", 2) && strncmp(state, "23", 2))
        return FAILED_AWAY;
    constraint = PQresultErrorField(result, PG_DIAG_CONSTRAINT_NAME);
    if (!strcmp(state, "23505") && constraint) {
        if (!strcmp(constraint, "log_entry_message_id"))
            return FAILED_DUPLICATE;
        if (!strcmp(constraint, "log_entry_pkey"))
            return FAILED_MOVED;
    }
    return FAILED_REFUSED;
}

static void observe(struct histogram *histogram, const double *bounds, size_t count, double value)
{
    size_t i = 0;

    while (i < count && value > bounds[i])
        i++;
    histogram->counts[i]++;
    histogram->total++;
    histogram->sum += value;
}

static void on_commit(struct pg_query *query, enum err err, const PGresult *result)
{
    struct batch *batch = container_of(query, struct batch, query);
    struct writer *writer = batch->writer;

    list_remove(&batch->link);
    writer->in_flight_count--;
    if (!err) {
        writer->batches_total++;
        writer->backoff_ms = 0;
        observe(&writer->latency, latency_bounds_ms, countof(latency_bounds_ms),
            (double)(clock_mono_us() - batch->sent_us) / 1000);
        observe(&writer->rows, row_bounds, countof(row_bounds), (double)batch->row_count);
        if (writer->limit < writer->batch_max_rows && batch->row_count == writer->limit) {
            writer->limit *= 2;
            if (writer->limit > writer->batch_max_rows)
                writer->limit = writer->batch_max_rows;
        }
        settle(writer, batch);
        return;
    }
    batch->failure = failure_of(err, result);
    writer->failures_total[batch->failure]++;
    batch->fenced[0] = '\0';
    if (batch->failure == FAILED_FENCED && PQresultErrorField(result, PG_DIAG_MESSAGE_DETAIL))
        strncat(batch->fenced, PQresultErrorField(result, PG_DIAG_MESSAGE_DETAIL), sizeof batch->fenced - 1);
    log_warn("writer.failed", "as=%s error=%s sqlstate=%s rows=%zu shards=%zu text=%s", failure_name[batch->failure],
        err_code(err), result ? pg_sqlstate(result) : "", batch->row_count, batch->part_count,
        log_quote(str_of(result ? PQresultErrorMessage(result) : "")));
    list_push_back(&writer->failed, &batch->link);
}

static void commit_row(struct writer *writer, struct shard *shard, struct seq_row *row)
{
    if (row->dead)
        writer->history->stats.dead_by_reason[row->dead]++;
    sequencer_committed(shard->sequencer, row);
}

static void give_back(struct writer *writer, struct batch *batch)
{
    for (size_t p = 0; p < batch->part_count; p++) {
        struct shard *shard = batch->parts[p].shard;

        if (!shard)
            continue;
        shard->in_flight--;
        writer_offer(writer, shard);
        shard_mark_dirty(shard);
    }
    list_push_back(&writer->idle, &batch->link);
}

static void settle(struct writer *writer, struct batch *batch)
{
    bool dead = false;

    for (size_t p = 0; p < batch->part_count; p++) {
        const struct part *part = &batch->parts[p];

        if (!part->shard)
            continue;
        for (uint32_t i = part->first; i < part->first + part->count; i++) {
            dead |= batch->rows[i]->dead != ERR_OK;
            commit_row(writer, part->shard, batch->rows[i]);
        }
    }
    give_back(writer, batch);
    if (dead)
        outbox_kick(writer->history->outbox);
}

/* --------------------------------------------------------------------------------------------------------- mending */

/* One of `names`, comma-separated? */
static bool names_shard(const char *names, const char *name)
{
    size_t n = strlen(name);

    for (const char *at = names; (at = strstr(at, name)); at += n)
        if ((at == names || at[-1] == ',') && (at[n] == ',' || at[n] == '\0'))
            return true;
    return false;
}

static void lose_fenced(struct batch *batch)
{
    for (size_t p = 0; p < batch->part_count; p++) {
        struct shard *shard = batch->parts[p].shard;

        if (shard && names_shard(batch->fenced, shard->name))
            shard_lost(shard, "fenced: the lease is another's"); /* clears the part */
    }
}

static bool any_failed(const struct writer *writer, enum failure failure)
{
    struct batch *batch;

    list_for_each (batch, &writer->failed, link)
        if (batch->failure == failure)
            return true;
    return false;
}

/* Every row of the failed batches that is still ours and has a seq, in order. */
static void list_looks(struct writer *writer)
{
    struct batch *batch;
    size_t count = 0;

    list_for_each (batch, &writer->failed, link)
        count += batch->row_count;
    writer->looks = xrealloc(writer->looks, (count ? count : 1) * sizeof *writer->looks);
    writer->look_count = 0;
    list_for_each (batch, &writer->failed, link) {
        for (size_t p = 0; p < batch->part_count; p++) {
            const struct part *part = &batch->parts[p];

            for (uint32_t i = part->first; part->shard && i < part->first + part->count; i++)
                if (batch->rows[i] && batch->rows[i]->entry)
                    writer->looks[writer->look_count++] = (struct look){.batch = batch, .part = p, .row = i};
        }
    }
}

static struct shard *look_shard(const struct look *look)
{
    return look->batch->parts[look->part].shard;
}

static struct seq_row *look_row(const struct look *look)
{
    return look_shard(look) ? look->batch->rows[look->row] : NULL;
}

/* Nothing is in flight. First the heads, then the ids, each when somebody needs them; then the rows start anew. */
static void mend(struct writer *writer)
{
    struct batch *batch;

    writer->mending = true;
    writer->useless = false;
    list_for_each (batch, &writer->failed, link)
        if (batch->failure == FAILED_FENCED)
            lose_fenced(batch);
    if (any_failed(writer, FAILED_UNKNOWN) || any_failed(writer, FAILED_MOVED))
        look_up(writer, &read_heads, on_heads);
    else
        mend_ids(writer);
}

static void mend_ids(struct writer *writer)
{
    if (any_failed(writer, FAILED_DUPLICATE))
        look_up(writer, &read_ids, on_ids);
    else
        mend_finish(writer);
}

static void look_up(struct writer *writer, const struct pg_statement *statement,
    void (*done)(struct pg_query *query, enum err err, const PGresult *result))
{
    struct pg_array numbers = {0}, rooms = {0}, ids = {0};

    pg_array_reset(&numbers, PG_INT4);
    pg_array_reset(&rooms, PG_INT8);
    pg_array_reset(&ids, PG_UUID);
    list_looks(writer);
    for (size_t i = 0; i < writer->look_count; i++) {
        const struct seq_row *row = look_row(&writer->looks[i]);

        pg_array_i32(&numbers, (int32_t)i);
        pg_array_i64(&rooms, row->room_no);
        pg_array_uuid_or_null(&ids, row->message_id);
    }
    pg_params_reset(&writer->params);
    pg_param_array(&writer->params, &numbers);
    pg_param_array(&writer->params, &rooms);
    if (statement == &read_ids)
        pg_param_array(&writer->params, &ids);
    writer->mend = (struct pg_query){.statement = statement, .lane = PG_READ, .done = done};
    pg_submit(writer->history->pg, &writer->mend, &writer->params);
    pg_array_clear(&numbers);
    pg_array_clear(&rooms);
    pg_array_clear(&ids);
}

/* false: not answered; the failed batches stay as they are and are mended from the beginning. */
static bool take_looks(struct writer *writer, enum err err, const PGresult *result)
{
    if (err) {
        log_warn("writer.mending", "error=%s sqlstate=%s", err_code(err), result ? pg_sqlstate(result) : "");
        writer->mending = false;
        retry_later(writer);
        return false;
    }
    for (int i = 0; i < PQntuples(result); i++) {
        int64_t number = pg_get_i64(result, i, 0);
        struct look *look;

        assert(number >= 0 && number < (int64_t)writer->look_count);
        look = &writer->looks[number];
        look->found = true;
        look->seq = (uint64_t)pg_get_i64(result, i, 1);
        look->epoch = (uint64_t)pg_get_i64(result, i, 2);
        look->hash = pg_get_i64(result, i, 3);
    }
    return true;
}

/* Does the head allow the oldest failed batch to be sent again? If not, somebody wrote to the log behind the fence, or
 * the log lost what was committed (a standby that lagged, an old backup): what we have in memory cannot go on. */
static void give_up_on_strange_heads(struct writer *writer)
{
    const struct batch *oldest = list_entry(writer->failed.next, struct batch, link);

    if (oldest->failure != FAILED_MOVED)
        return;
    append_begin(writer->append);
    for (size_t i = 0; i < writer->look_count && writer->looks[i].batch == oldest; i++) {
        const struct look *look = &writer->looks[i];
        const struct seq_row *row = look_row(look);

        if (row && append_is_first_of_room(writer->append, row) && (!look->found || look->seq != seq_row_old_seq(row)))
            shard_give_up(look_shard(look), "the head in the database is not where it was");
    }
}

static void on_heads(struct pg_query *query, enum err err, const PGresult *result)
{
    struct writer *writer = container_of(query, struct writer, mend);

    if (!take_looks(writer, err, result))
        return;
    /* No renumbering within an epoch, and nobody else writes under ours: a row at or below the head is committed. Dead
     * letters without a seq leave no trace to look for; they are written again (roomd.dead gets them at least once). */
    for (size_t i = 0; i < writer->look_count; i++) {
        const struct look *look = &writer->looks[i];
        struct seq_row *row = look_row(look);

        if (!row || !look->found || look->seq < row->entry->seq || look->epoch != row->entry->epoch)
            continue;
        commit_row(writer, look_shard(look), row);
        look->batch->rows[look->row] = NULL;
    }
    give_up_on_strange_heads(writer);
    mend_ids(writer);
}

static void on_ids(struct pg_query *query, enum err err, const PGresult *result)
{
    struct writer *writer = container_of(query, struct writer, mend);
    size_t found = 0;

    if (!take_looks(writer, err, result))
        return;
    for (size_t i = 0; i < writer->look_count; i++) {
        const struct look *look = &writer->looks[i];
        struct seq_row *row = look_row(look);

        if (!row || !look->found || id128_is_zero(row->message_id))
            continue;
        sequencer_late_duplicate(look_shard(look)->sequencer, row, look->seq, look->hash);
        found++;
    }
    writer->useless = found == 0; /* then at least not in a tight circle */
    mend_finish(writer);
}

/* A batch of one row that is refused: it is the row. A larger one: a smaller one next time. */
static void narrow_down(struct writer *writer, struct batch *batch)
{
    struct shard *shard = NULL;
    struct seq_row *row = NULL;
    size_t count = 0;

    for (size_t p = 0; p < batch->part_count; p++) {
        const struct part *part = &batch->parts[p];

        if (!part->shard)
            continue;
        shard = part->shard;
        row = batch->rows[part->first];
        count += part->count;
    }
    if (count == 1 && batch->row_count == 1 && row) {
        log_error("writer.row_refused", "shard=%s room=%s seq=%" PRIu64, shard->name, log_quote(row->envelope->room_id),
            row->entry ? row->entry->seq : 0);
        sequencer_row_refused(shard->sequencer, row);
    } else if (batch->row_count / 2 < writer->limit) {
        writer->limit = batch->row_count / 2 ? batch->row_count / 2 : 1;
    }
}

static void mend_finish(struct writer *writer)
{
    bool away = writer->useless || any_failed(writer, FAILED_AWAY);
    struct list *at;

    while ((at = list_pop_front(&writer->failed))) {
        struct batch *batch = list_entry(at, struct batch, link);

        if (batch->failure == FAILED_REFUSED)
            narrow_down(writer, batch);
        if (batch->failure == FAILED_FENCED && !batch->fenced[0])
            away = true; /* the fence held, but was open again when it was asked who: ask anew */
        for (size_t p = 0; p < batch->part_count; p++)
            if (batch->parts[p].shard)
                sequencer_rewind(batch->parts[p].shard->sequencer);
        give_back(writer, batch);
    }
    writer->mending = false;
    if (away)
        retry_later(writer);
}

static void retry_later(struct writer *writer)
{
    uint64_t jitter;

    random_bytes(&jitter, sizeof jitter);
    writer->backoff_ms = writer->backoff_ms ? writer->backoff_ms * 2 : BACKOFF_LEAST_MS;
    if (writer->backoff_ms > BACKOFF_MOST_MS)
        writer->backoff_ms = BACKOFF_MOST_MS;
    writer->not_before_ms =
        uv_now(writer->history->loop) + writer->backoff_ms * 3 / 4 + jitter % (writer->backoff_ms / 2);
    uv_timer_start(writer->timer, wake, writer->not_before_ms - uv_now(writer->history->loop), 0);
}

/* --------------------------------------------------------------------------------------------------------- the end */

static void forget_in(struct list *batches, const struct shard *shard)
{
    struct batch *batch;

    list_for_each (batch, batches, link)
        for (size_t p = 0; p < batch->part_count; p++)
            if (batch->parts[p].shard == shard)
                batch->parts[p].shard = NULL;
}

void writer_forget_shard(struct writer *writer, struct shard *shard)
{
    list_remove(&shard->write_link);
    forget_in(&writer->in_flight, shard);
    forget_in(&writer->failed, shard);
    shard->in_flight = 0;
}

static void free_timer(uv_handle_t *handle)
{
    free(handle);
}

static void free_batches(struct list *batches)
{
    struct batch *batch;

    list_for_each (batch, batches, link) {
        pg_forget(&batch->query);
        free(batch->rows);
        free(batch->parts);
        free(batch);
    }
}

void writer_close(struct writer *writer)
{
    pg_on_state(writer->history->pg, PG_WRITE, NULL, NULL);
    pg_forget(&writer->mend);
    free_batches(&writer->idle);
    free_batches(&writer->in_flight);
    free_batches(&writer->failed);
    append_free(writer->append);
    pg_params_clear(&writer->params);
    free(writer->looks);
    uv_close((uv_handle_t *)writer->timer, free_timer);
    free(writer);
}

static void write_histogram(struct buf *out, const char *name, const char *help, const struct histogram *histogram,
    const double *bounds, size_t count)
{
    uint64_t sum = 0;

    buf_printf(out, "# HELP %s %s\n# TYPE %s histogram\n", name, help, name);
    for (size_t i = 0; i < count; i++) {
        sum += histogram->counts[i];
        buf_printf(out, "%s_bucket{le=\"%g\"} %" PRIu64 "\n", name, bounds[i], sum);
    }
    buf_printf(out, "%s_bucket{le=\"+Inf\"} %" PRIu64 "\n%s_sum %.3f\n%s_count %" PRIu64 "\n", name, histogram->total,
        name, histogram->sum, name, histogram->total);
}

void writer_metrics(const struct writer *writer, struct buf *out)
{
    buf_printf(out,
        "# HELP roomd_batches_total Commits of the log.\n# TYPE roomd_batches_total counter\nroomd_batches_total "
        "%" PRIu64 "\n",
        writer->batches_total);
    buf_text(out, "# HELP roomd_batch_failures_total Commits that did not happen, by what came of it.\n"
                  "# TYPE roomd_batch_failures_total counter\n");
    for (size_t i = 1; i < countof(failure_name); i++)
        buf_printf(
            out, "roomd_batch_failures_total{as=\"%s\"} %" PRIu64 "\n", failure_name[i], writer->failures_total[i]);
    write_histogram(out, "roomd_batch_rows", "Rows in one commit.", &writer->rows, row_bounds, countof(row_bounds));
    write_histogram(out, "roomd_commit_ms", "From sending a commit to its answer.", &writer->latency, latency_bounds_ms,
        countof(latency_bounds_ms));
    buf_printf(out,
        "# HELP roomd_batches_in_flight Commits on their way.\n# TYPE roomd_batches_in_flight "
        "gauge\nroomd_batches_in_flight %zu\n",
        writer->in_flight_count);
}
