/* Facts about rooms for readers and callers: from the sequencer's memory when the shard is ours, else one query per
 * turn for all. */
#include "reader.h"

#include <stdlib.h>

#include "room/base/log.h"
#include "room/room.h"

enum { BATCH_MAX = 1000 };

/* One question to the database on behalf of many. */
struct batch {
    struct list link; /* reader->access_batches, ->validity_batches or ->taken_back_batches */
    struct reader *reader;
    struct pg_query query;
    struct list asked; /* by their nth, which is the row of the answer; those who forgot it are gone from here */
};

static void ask_database(struct reader *reader, struct list *accesses);
static void access_on_rows(struct pg_query *query, enum err err, const PGresult *result);
static void check_cursors(struct reader *reader, struct list *validities);
static void validity_on_rows(struct pg_query *query, enum err err, const PGresult *result);
static void taken_backs_turn(struct reader *reader);
static void taken_back_on_rows(struct pg_query *query, enum err err, const PGresult *result);
static void free_batches(struct list *batches);

void access_open(struct reader *reader)
{
    list_init(&reader->accesses);
    list_init(&reader->access_batches);
    list_init(&reader->validities);
    list_init(&reader->validity_batches);
    list_init(&reader->taken_backs);
    list_init(&reader->taken_back_batches);
    list_init(&reader->rooms_by_use);
    map_init(&reader->rooms);
}

void access_close(struct reader *reader)
{
    struct list *link;

    free_batches(&reader->access_batches);
    free_batches(&reader->validity_batches);
    free_batches(&reader->taken_back_batches);
    while (list_pop_front(&reader->accesses))
        ;
    while (list_pop_front(&reader->validities))
        ;
    while (list_pop_front(&reader->taken_backs))
        ;
    map_clear(&reader->rooms);
    while ((link = list_pop_front(&reader->rooms_by_use)))
        free(list_entry(link, struct room_fact, link));
}

static void free_batches(struct list *batches)
{
    struct list *link;

    while ((link = list_pop_front(batches))) {
        struct batch *batch = list_entry(link, struct batch, link);

        pg_forget(&batch->query);
        while (list_pop_front(&batch->asked))
            ;
        free(batch);
    }
}

void access_turn(struct reader *reader)
{
    struct list asked;
    struct list *link;

    list_init(&asked);
    while ((link = list_pop_front(&reader->accesses))) {
        struct history_access *access = list_entry(link, struct history_access, link);
        enum err err;

        if (access_from_memory(reader, access, &err))
            access->done(access, err);
        else
            list_push_back(&asked, &access->link);
    }
    while (!list_empty(&asked))
        ask_database(reader, &asked);
    while (!list_empty(&reader->validities))
        check_cursors(reader, &reader->validities);
    taken_backs_turn(reader);
}

static struct batch *batch_new(struct reader *reader, struct list *batches, const struct pg_statement *statement,
    void (*done)(struct pg_query *query, enum err err, const PGresult *result))
{
    struct batch *batch = xcalloc(1, sizeof *batch);

    batch->reader = reader;
    batch->query = (struct pg_query){.statement = statement, .lane = PG_READ, .done = done};
    list_init(&batch->asked);
    list_push_back(batches, &batch->link);
    return batch;
}

/* Its parameters, which are gone then. */
static void batch_submit(struct batch *batch, struct pg_array *columns, size_t count)
{
    struct pg_params params = {0};

    for (size_t i = 0; i < count; i++)
        pg_param_array(&params, &columns[i]);
    pg_submit(batch->reader->history->pg, &batch->query, &params);
    for (size_t i = 0; i < count; i++)
        pg_array_clear(&columns[i]);
    pg_params_clear(&params);
}

/* -------------------------------------------------------------------------------------------------------- access */

static const struct pg_statement access_statement = {
    .name = "history_access",
    .sql = "SELECT r.room_no, r.removed, r.since_join, h.last_epoch, h.last_seq, m.role, m.join_seq, m.muted_until, "
           "r.muted_until, r.members, r.kind = 'direct', "
           "(SELECT max(seq) FROM log_entry WHERE room_no = r.room_no AND " TAKEN_BACK ") "
           "FROM unnest($1::text[], $2::text[]) WITH ORDINALITY x(room_id, account, n) "
           "LEFT JOIN room r ON r.room_id = x.room_id COLLATE \"C\" LEFT JOIN room_head h ON h.room_no = r.room_no "
           "LEFT JOIN room_member m ON m.room_no = r.room_no AND m.account = x.account COLLATE \"C\" ORDER BY x.n",
    .params = 2,
};

void history_ask_access(struct history *history, struct history_access *access)
{
    list_push_back(&history->reader->accesses, &access->link);
    reader_wake(history->reader);
}

void history_access_forget(struct history_access *access)
{
    list_remove(&access->link);
}

/* Who is asked nothing about is not muted; the mute of a room is not for those who keep order in it. */
static uint64_t muted_until(const struct history_access *access, uint64_t member, uint64_t room)
{
    if (access->role == ROLE_NONE)
        return 0;
    return access->role < ROLE_ADMIN && room > member ? room : member;
}

static enum err access_verdict(const struct history_access *access)
{
    return access->account.n && access->role == ROLE_NONE ? ERR_NOT_MEMBER : ERR_OK;
}

bool access_from_memory(struct reader *reader, struct history_access *access, enum err *err)
{
    struct shard *shard = history_find_shard_of(reader->history, access->room_id);
    struct seq_room_view view;
    uint64_t muted = 0;

    if (!shard || !shard_is_sequencing(shard) || !sequencer_find_room(shard->sequencer, access->room_id, &view))
        return false;
    access->role = ROLE_NONE;
    access->join_seq = 0;
    if (access->account.n) {
        access->role =
            sequencer_find_member(shard->sequencer, access->room_id, access->account, &access->join_seq, &muted);
        if (access->role == ROLE_NONE) /* absence is never remembered */
            return false;
    }
    access->room_no = view.room_no;
    access->removed = view.removed;
    access->since_join = view.since_join;
    access->head = (struct cursor){view.durable_epoch, view.durable_seq};
    access->last_seq = view.last_seq;
    access->taken_back_seq = view.taken_back_seq;
    access->muted_until = muted_until(access, muted, view.muted_until);
    access->members = view.members;
    access->direct = view.direct;
    reader->access_counters.from_memory_total++;
    *err = ERR_OK;
    return true;
}

static void ask_database(struct reader *reader, struct list *accesses)
{
    struct batch *batch = batch_new(reader, &reader->access_batches, &access_statement, access_on_rows);
    struct pg_array columns[2] = {0}; /* room ids, accounts */
    struct list *link;
    size_t n = 0;

    for (size_t i = 0; i < countof(columns); i++)
        pg_array_reset(&columns[i], PG_TEXT);
    while (n < BATCH_MAX && (link = list_pop_front(accesses))) {
        struct history_access *access = list_entry(link, struct history_access, link);

        access->nth = n++;
        pg_array_bytes(&columns[0], access->room_id);
        pg_array_bytes(&columns[1], access->account);
        list_push_back(&batch->asked, &access->link);
    }
    reader->access_counters.asked_total += n;
    batch_submit(batch, columns, countof(columns));
}

static bool same_room(const struct map_link *link, const void *key)
{
    const struct room_fact *fact = container_of(link, struct room_fact, by_id);
    const struct str *room_id = key;

    return str_eq(*room_id, (struct str){fact->room_id, fact->n});
}

const struct room_fact *reader_find_room(struct reader *reader, struct str room_id)
{
    struct map_link *link = map_find(&reader->rooms, map_hash(room_id.p, room_id.n), same_room, &room_id);
    struct room_fact *fact;

    if (!link)
        return NULL;
    fact = container_of(link, struct room_fact, by_id);
    list_remove(&fact->link);
    list_push_back(&reader->rooms_by_use, &fact->link);
    return fact;
}

static void remember_room(struct reader *reader, struct str room_id, int64_t room_no, bool since_join)
{
    struct room_fact *fact;

    if (room_id.n > ROOM_ID_MAX_BYTES || reader_find_room(reader, room_id))
        return;
    fact = xcalloc(1, sizeof *fact);
    memcpy(fact->room_id, room_id.p, room_id.n);
    fact->n = (uint8_t)room_id.n;
    fact->room_no = room_no;
    fact->since_join = since_join;
    map_insert(&reader->rooms, map_hash(room_id.p, room_id.n), &fact->by_id);
    list_push_back(&reader->rooms_by_use, &fact->link);
    if (reader->rooms.count > (size_t)reader->history->config->room_cache) {
        struct room_fact *oldest = list_entry(list_pop_front(&reader->rooms_by_use), struct room_fact, link);

        map_remove(&reader->rooms, &oldest->by_id);
        free(oldest);
    }
}

/* What the owner gave out, also when the member had to be asked of the database. */
static uint64_t last_seq_here(struct reader *reader, struct str room_id)
{
    struct shard *shard = history_find_shard_of(reader->history, room_id);
    struct seq_room_view view;

    if (!shard || !shard_is_sequencing(shard) || !sequencer_find_room(shard->sequencer, room_id, &view))
        return 0;
    return view.last_seq;
}

static enum err access_fill(struct reader *reader, struct history_access *access, const PGresult *result)
{
    int row = (int)access->nth;

    if (pg_is_null(result, row, 0))
        return ERR_NO_SUCH_ROOM;
    access->room_no = pg_get_i64(result, row, 0);
    access->removed = pg_get_bool(result, row, 1);
    access->since_join = pg_get_bool(result, row, 2);
    access->head = (struct cursor){(uint64_t)pg_get_i64(result, row, 3), (uint64_t)pg_get_i64(result, row, 4)};
    access->role = (enum role)pg_get_i64(result, row, 5);
    access->join_seq = (uint64_t)pg_get_i64(result, row, 6);
    access->last_seq = last_seq_here(reader, access->room_id);
    access->muted_until =
        muted_until(access, (uint64_t)pg_get_i64(result, row, 7), (uint64_t)pg_get_i64(result, row, 8));
    access->members = (int32_t)pg_get_i64(result, row, 9);
    access->direct = pg_get_bool(result, row, 10);
    access->taken_back_seq = (uint64_t)pg_get_i64(result, row, 11);
    remember_room(reader, access->room_id, access->room_no, access->since_join);
    return access_verdict(access);
}

static void access_on_rows(struct pg_query *query, enum err err, const PGresult *result)
{
    struct batch *batch = container_of(query, struct batch, query);
    struct list *link;

    err = reader_error(query, err, result);
    /* What the answers set off may forget others of this batch, or close the reader's owner no sooner than the next
     * turn. */
    while ((link = list_pop_front(&batch->asked))) {
        struct history_access *access = list_entry(link, struct history_access, link);

        access->done(access, err ? err : access_fill(batch->reader, access, result));
    }
    list_remove(&batch->link);
    free(batch);
}

/* ------------------------------------------------------------------------------------------------------ validity */

static const struct pg_statement validity_statement = {
    .name = "history_valid_cursor",
    .sql = "SELECT v.valid_epoch, v.valid_seq, v.head_epoch, v.head_seq "
           "FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) WITH ORDINALITY x(room_no, epoch, seq, n) "
           "CROSS JOIN LATERAL valid_cursor(x.room_no, x.epoch, x.seq) v ORDER BY x.n",
    .params = 3,
};

void history_check_cursor(struct history *history, struct history_validity *validity)
{
    list_push_back(&history->reader->validities, &validity->link);
    reader_wake(history->reader);
}

void history_validity_forget(struct history_validity *validity)
{
    list_remove(&validity->link);
}

static int64_t as_bigint(uint64_t value)
{
    return value > INT64_MAX ? INT64_MAX : (int64_t)value;
}

static void check_cursors(struct reader *reader, struct list *validities)
{
    struct batch *batch = batch_new(reader, &reader->validity_batches, &validity_statement, validity_on_rows);
    struct pg_array columns[3] = {0}; /* rooms, epochs, seqs */
    struct list *link;
    size_t n = 0;

    for (size_t i = 0; i < countof(columns); i++)
        pg_array_reset(&columns[i], PG_INT8);
    while (n < BATCH_MAX && (link = list_pop_front(validities))) {
        struct history_validity *validity = list_entry(link, struct history_validity, link);

        validity->nth = n++;
        pg_array_i64(&columns[0], validity->room_no);
        pg_array_i64(&columns[1], as_bigint(validity->cursor.epoch));
        pg_array_i64(&columns[2], as_bigint(validity->cursor.seq));
        list_push_back(&batch->asked, &validity->link);
    }
    batch_submit(batch, columns, countof(columns));
}

static void validity_on_rows(struct pg_query *query, enum err err, const PGresult *result)
{
    struct batch *batch = container_of(query, struct batch, query);
    struct list *link;

    err = reader_error(query, err, result);
    while ((link = list_pop_front(&batch->asked))) {
        struct history_validity *validity = list_entry(link, struct history_validity, link);
        int row = (int)validity->nth;

        if (!err) {
            validity->valid =
                (struct cursor){(uint64_t)pg_get_i64(result, row, 0), (uint64_t)pg_get_i64(result, row, 1)};
            validity->head =
                (struct cursor){(uint64_t)pg_get_i64(result, row, 2), (uint64_t)pg_get_i64(result, row, 3)};
        }
        validity->done(validity, err);
    }
    list_remove(&batch->link);
    free(batch);
}

/* ---------------------------------------------------------------------------------------------------- taken back */

static const struct pg_statement taken_back_statement = {
    .name = "history_taken_back",
    .sql = "SELECT " ENTRY_COLUMNS(
        "e") ", x.n - 1 FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) "
             "WITH ORDINALITY x(room_no, above, upto, n) JOIN log_entry e ON e.room_no = x.room_no AND e.seq > x.above "
             "AND e.seq <= x.upto AND " TAKEN_BACK " ORDER BY x.n, e.seq",
    .params = 3,
};

enum { NTH = 12 }; /* behind ENTRY_COLUMNS */

void history_ask_taken_back(struct history *history, struct history_taken_back *taken_back)
{
    list_push_back(&history->reader->taken_backs, &taken_back->link);
    reader_wake(history->reader);
}

void history_taken_back_forget(struct history_taken_back *taken_back)
{
    list_remove(&taken_back->link);
}

static void ask_taken_back(struct reader *reader, struct list *taken_backs)
{
    struct batch *batch = batch_new(reader, &reader->taken_back_batches, &taken_back_statement, taken_back_on_rows);
    struct pg_array columns[3] = {0}; /* rooms, above, up to */
    struct list *link;
    size_t n = 0;

    for (size_t i = 0; i < countof(columns); i++)
        pg_array_reset(&columns[i], PG_INT8);
    while (n < BATCH_MAX && (link = list_pop_front(taken_backs))) {
        struct history_taken_back *taken_back = list_entry(link, struct history_taken_back, link);

        taken_back->nth = n++;
        pg_array_i64(&columns[0], taken_back->room_no);
        pg_array_i64(&columns[1], as_bigint(taken_back->above_seq));
        pg_array_i64(&columns[2], as_bigint(taken_back->upto_seq));
        list_push_back(&batch->asked, &taken_back->link);
    }
    batch_submit(batch, columns, countof(columns));
}

/* The owner knows of nearly all rooms that there is nothing: who comes back need not wait for the database. */
static bool nothing_taken_back(struct reader *reader, const struct history_taken_back *taken_back)
{
    struct shard *shard = history_find_shard_of(reader->history, taken_back->room_id);
    struct seq_room_view view;

    return shard && shard_is_sequencing(shard) && sequencer_find_room(shard->sequencer, taken_back->room_id, &view) &&
           view.taken_back_seq <= taken_back->above_seq;
}

static void taken_backs_turn(struct reader *reader)
{
    struct list asked;
    struct list *link;

    list_init(&asked);
    while ((link = list_pop_front(&reader->taken_backs))) {
        struct history_taken_back *taken_back = list_entry(link, struct history_taken_back, link);

        if (!nothing_taken_back(reader, taken_back)) {
            list_push_back(&asked, &taken_back->link);
            continue;
        }
        taken_back->count = 0;
        taken_back->done(taken_back, ERR_OK);
    }
    while (!list_empty(&asked))
        ask_taken_back(reader, &asked);
}

static void taken_back_on_rows(struct pg_query *query, enum err err, const PGresult *result)
{
    struct batch *batch = container_of(query, struct batch, query);
    struct entry **voids;
    struct list *link;
    int rows, row = 0;

    err = reader_error(query, err, result);
    rows = err ? 0 : PQntuples(result);
    voids = xcalloc((size_t)rows + 1, sizeof(struct entry *));
    while ((link = list_pop_front(&batch->asked))) {
        struct history_taken_back *taken_back = list_entry(link, struct history_taken_back, link);
        size_t count = 0;

        while (row < rows && (size_t)pg_get_i64(result, row, NTH) < taken_back->nth) /* of one who forgot it */
            row++;
        for (; row < rows && (size_t)pg_get_i64(result, row, NTH) == taken_back->nth; row++)
            voids[count++] = entry_from_row(taken_back->room_id, taken_back->room_no, result, row, 0);
        taken_back->voids = voids;
        taken_back->count = count;
        taken_back->done(taken_back, err);
        while (count)
            entry_drop(voids[--count]);
    }
    free(voids);
    list_remove(&batch->link);
    free(batch);
}
