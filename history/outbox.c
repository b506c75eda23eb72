/*
 * Dead letters to the broker: what commits wrote into the outbox table is published to roomd.dead and then marked as
 * sent. At least once, never in the way of acks. Started by a commit that wrote some, by a shard that became ours, and
 * by a link that came back; nothing is asked while nothing happens.
 *
 *   kick ─▶ read some unsent rows of our shards ─▶ publish each ─all answered─▶ mark what was confirmed
 *              ▲───────────────────────── until there is nothing ─────────────────────────┘
 */
#include "internal.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "room/base/log.h"

#define ROWS_MAX 100
#define BACKOFF_LEAST_MS 200
#define BACKOFF_MOST_MS 5000
#define CLEAN_EVERY_MS 600000

struct letter {
    struct amqp_publish publish;
    struct outbox *outbox;
    int64_t number;
    bool confirmed;
};

struct outbox {
    struct history *history; /* NULL: closed; freed with the last publish */
    struct pg_query query;
    struct pg_params params;
    struct letter letters[ROWS_MAX];
    int letter_count, waiting; /* without an answer of the broker */
    bool busy, again;
    uint64_t backoff_ms;
    uv_timer_t *timer; /* the next try */
    uv_timer_t *cleaner;
    struct pg_query clean;
    struct pg_params clean_params;
    bool cleaning;
    uint64_t published_total;
};

static void outbox_read(struct outbox *outbox);
static void on_read(struct pg_query *query, enum err err, const PGresult *result);
static void on_published(struct amqp_publish *publish, enum err err);
static void outbox_mark(struct outbox *outbox);
static void on_marked(struct pg_query *query, enum err err, const PGresult *result);
static void outbox_rest(struct outbox *outbox, bool failed);
static void on_timer(uv_timer_t *timer);
static void on_clean_timer(uv_timer_t *timer);
static void outbox_free(struct outbox *outbox);

/* Bodies may be 1 MiB: at most 4 MiB at once. */
static const struct pg_statement read_unsent = {
    .name = "outbox_read",
    .sql = "SELECT outbox_no, shard, room_id, reason, content_type, body FROM"
           " (SELECT o.*, sum(octet_length(body)) OVER (ORDER BY outbox_no) - octet_length(body) AS before FROM"
           " (SELECT * FROM outbox WHERE sent_at IS NULL AND shard = ANY($1::text[]) ORDER BY outbox_no LIMIT 100) o) x"
           " WHERE before < 4194304 ORDER BY outbox_no",
    .params = 1,
};
static const struct pg_statement mark_sent = {
    .name = "outbox_mark",
    .sql = "UPDATE outbox SET sent_at = $2 WHERE outbox_no = ANY($1::int8[])",
    .params = 2,
};
static const struct pg_statement delete_old = {
    .name = "outbox_clean",
    .sql = "DELETE FROM outbox WHERE outbox_no IN (SELECT outbox_no FROM outbox WHERE sent_at < $1 ORDER BY sent_at "
           "LIMIT 1000)",
    .params = 1,
};

struct outbox *outbox_open(struct history *history)
{
    struct outbox *outbox = xcalloc(1, sizeof *outbox);

    outbox->history = history;
    outbox->timer = xcalloc(1, sizeof *outbox->timer);
    outbox->cleaner = xcalloc(1, sizeof *outbox->cleaner);
    uv_timer_init(history->loop, outbox->timer);
    uv_timer_init(history->loop, outbox->cleaner);
    outbox->timer->data = outbox->cleaner->data = outbox;
    uv_timer_start(outbox->cleaner, on_clean_timer, CLEAN_EVERY_MS, CLEAN_EVERY_MS);
    return outbox;
}

void outbox_kick(struct outbox *outbox)
{
    outbox->again = true;
    if (!outbox->busy && !uv_is_active((uv_handle_t *)outbox->timer))
        outbox_read(outbox);
}

static void outbox_read(struct outbox *outbox)
{
    struct history *history = outbox->history;
    struct pg_array shards = {0};
    struct shard *shard;

    if (!history->publish || !amqp_link_up(history->publish)) /* the link will kick */
        return;
    outbox->busy = true;
    outbox->again = false;
    pg_array_reset(&shards, PG_TEXT);
    list_for_each (shard, &history->shards, link)
        pg_array_bytes(&shards, str_of(shard->name));
    pg_params_reset(&outbox->params);
    pg_param_array(&outbox->params, &shards);
    pg_array_clear(&shards);
    outbox->query = (struct pg_query){.statement = &read_unsent, .lane = PG_READ, .done = on_read};
    pg_submit(history->pg, &outbox->query, &outbox->params);
}

static void publish_letter(struct outbox *outbox, struct letter *letter, const PGresult *result, int row)
{
    struct str room_id = pg_get_str(result, row, 2), reason = pg_get_str(result, row, 3);
    struct buf texts = {0};
    struct amqp_message message = {
        .exchange = STR("roomd.dead"),
        .routing_key = STR("dead"),
        .content_type = pg_get_str(result, row, 4),
        .body = pg_get_str(result, row, 5),
    };

    *letter =
        (struct letter){.outbox = outbox, .number = pg_get_i64(result, row, 0), .publish = {.done = on_published}};
    buf_add_str(&texts, reason);
    buf_char(&texts, '\0');
    buf_add_str(&texts, room_id);
    buf_char(&texts, '\0');
    message.headers[0][0] = "x-roomd-reason";
    message.headers[0][1] = texts.p;
    message.headers[1][0] = "x-roomd-room";
    message.headers[1][1] = texts.p + reason.n + 1;
    amqp_publish(outbox->history->publish, &letter->publish, &message);
    buf_clear(&texts);
}

static void on_read(struct pg_query *query, enum err err, const PGresult *result)
{
    struct outbox *outbox = container_of(query, struct outbox, query);

    if (err) {
        outbox_rest(outbox, true);
        return;
    }
    outbox->letter_count = outbox->waiting = PQntuples(result) < ROWS_MAX ? PQntuples(result) : ROWS_MAX;
    for (int i = 0; i < outbox->letter_count; i++)
        publish_letter(outbox, &outbox->letters[i], result, i);
    if (!outbox->letter_count)
        outbox_rest(outbox, false);
}

static void on_published(struct amqp_publish *publish, enum err err)
{
    struct letter *letter = container_of(publish, struct letter, publish);
    struct outbox *outbox = letter->outbox;

    letter->confirmed = !err;
    outbox->waiting--;
    if (!outbox->history) {
        outbox_free(outbox);
        return;
    }
    if (err)
        log_warn("outbox.not_sent", "outbox_no=%" PRId64 " error=%s", letter->number, err_code(err));
    else
        outbox->published_total++;
    if (!outbox->waiting)
        outbox_mark(outbox);
}

static void outbox_mark(struct outbox *outbox)
{
    struct pg_array numbers = {0};

    pg_array_reset(&numbers, PG_INT8);
    for (int i = 0; i < outbox->letter_count; i++)
        if (outbox->letters[i].confirmed)
            pg_array_i64(&numbers, outbox->letters[i].number);
    if (numbers.count) {
        pg_params_reset(&outbox->params);
        pg_param_array(&outbox->params, &numbers);
        pg_param_i64(&outbox->params, (int64_t)history_now_ms(outbox->history));
        outbox->query = (struct pg_query){.statement = &mark_sent, .lane = PG_READ, .done = on_marked};
        pg_submit(outbox->history->pg, &outbox->query, &outbox->params);
    } else {
        outbox_rest(outbox, true);
    }
    pg_array_clear(&numbers);
}

static void on_marked(struct pg_query *query, enum err err, const PGresult *result)
{
    struct outbox *outbox = container_of(query, struct outbox, query);
    bool failed = err != ERR_OK;

    (void)result;
    for (int i = 0; i < outbox->letter_count; i++)
        failed |= !outbox->letters[i].confirmed;
    outbox->again = true; /* there may be more */
    outbox_rest(outbox, failed);
}

/* One round is over. */
static void outbox_rest(struct outbox *outbox, bool failed)
{
    outbox->busy = false;
    if (failed) {
        outbox->backoff_ms = outbox->backoff_ms ? outbox->backoff_ms * 2 : BACKOFF_LEAST_MS;
        if (outbox->backoff_ms > BACKOFF_MOST_MS)
            outbox->backoff_ms = BACKOFF_MOST_MS;
        outbox->again = true;
        uv_timer_start(outbox->timer, on_timer, outbox->backoff_ms, 0);
        return;
    }
    outbox->backoff_ms = 0;
    if (outbox->again)
        outbox_read(outbox);
}

static void on_timer(uv_timer_t *timer)
{
    outbox_read(timer->data);
}

/* Sent rows are kept for a while, so that a dead letter's redelivery is recognised. */
static void on_cleaned(struct pg_query *query, enum err err, const PGresult *result)
{
    struct outbox *outbox = container_of(query, struct outbox, clean);

    outbox->cleaning = false;
    if (!err && atoi(PQcmdTuples((PGresult *)(uintptr_t)result)) == 1000)
        on_clean_timer(outbox->cleaner);
}

static void on_clean_timer(uv_timer_t *timer)
{
    struct outbox *outbox = timer->data;
    struct history *history = outbox->history;
    int64_t now = (int64_t)history_now_ms(history);

    if (outbox->cleaning || list_empty(&history->shards))
        return;
    outbox->cleaning = true;
    pg_params_reset(&outbox->clean_params);
    pg_param_i64(&outbox->clean_params, now - history->config->dead_letter_keep_ms);
    outbox->clean = (struct pg_query){.statement = &delete_old, .lane = PG_READ, .done = on_cleaned};
    pg_submit(history->pg, &outbox->clean, &outbox->clean_params);
}

static void free_timer(uv_handle_t *handle)
{
    free(handle);
}

/* Publishes on their way hold their memory until the link answers them. */
static void outbox_free(struct outbox *outbox)
{
    if (!outbox->history && !outbox->waiting)
        free(outbox);
}

void outbox_close(struct outbox *outbox)
{
    pg_forget(&outbox->query);
    pg_forget(&outbox->clean);
    pg_params_clear(&outbox->params);
    pg_params_clear(&outbox->clean_params);
    uv_close((uv_handle_t *)outbox->timer, free_timer);
    uv_close((uv_handle_t *)outbox->cleaner, free_timer);
    outbox->history = NULL;
    outbox_free(outbox);
}

void outbox_metrics(const struct outbox *outbox, struct buf *out)
{
    buf_printf(out,
        "# HELP roomd_dead_letters_sent_total Dead letters confirmed by the broker.\n"
        "# TYPE roomd_dead_letters_sent_total counter\nroomd_dead_letters_sent_total %" PRIu64 "\n",
        outbox->published_total);
}
