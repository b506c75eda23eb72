/*
 * Reads of consecutive entries by primary key. Those who ask for the same in the same turn share one read. A read that
 * is on its way already is never shared: it may be older than what the new asker was told meanwhile (a recall, say).
 */
#include "reader.h"

#include <assert.h>
#include <stdlib.h>

#include "room/base/log.h"
#include "room/room.h"

#define PAGE_SQL             \
    "SELECT " ENTRY_COLUMNS( \
        "e") " FROM log_entry e WHERE e.room_no = $1 AND e.seq >= $2 AND e.seq <= $3 ORDER BY e.seq "

static const struct pg_statement forward_statement = {.name = "history_page", .sql = PAGE_SQL "LIMIT $4", .params = 4};
static const struct pg_statement backward_statement = {
    .name = "history_page_back", .sql = PAGE_SQL "DESC LIMIT $4", .params = 4};

static struct page *find_or_make(struct reader *reader, const struct page_key *key, struct str room_id);
static void page_send(struct page *page);
static void page_on_rows(struct pg_query *query, enum err err, const PGresult *result);
static void page_close_to_others(struct page *page);

void pages_open(struct reader *reader)
{
    map_init(&reader->pages);
    list_init(&reader->pages_new);
    list_init(&reader->pages_sent);
}

void pages_close(struct reader *reader)
{
    struct list *link;

    list_splice_back(&reader->pages_new, &reader->pages_sent);
    while ((link = list_pop_front(&reader->pages_new))) {
        struct page *page = list_entry(link, struct page, link);

        if (page->sent)
            pg_forget(&page->query);
        page_close_to_others(page);
        while (list_pop_front(&page->askers))
            ;
        while (list_pop_front(&page->ranges))
            ;
        page_drop(page);
    }
    map_clear(&reader->pages);
}

void pages_turn(struct reader *reader)
{
    struct list *link;

    while ((link = list_pop_front(&reader->pages_new)))
        page_send(list_entry(link, struct page, link));
}

void page_ask(struct reader *reader, struct page_asker *asker, const struct page_key *key, struct str room_id)
{
    list_push_back(&find_or_make(reader, key, room_id)->askers, &asker->link);
    reader_wake(reader);
}

void history_read_range(struct history *history, struct history_range *range)
{
    struct page_key key = {
        .room_no = range->room_no, .from = range->after_seq + 1, .to = range->up_to_seq, .limit = range->limit};

    list_push_back(&find_or_make(history->reader, &key, range->room_id)->ranges, &range->link);
    reader_wake(history->reader);
}

void history_range_forget(struct history_range *range)
{
    list_remove(&range->link);
}

struct page *page_hold(struct page *page)
{
    page->holders++;
    return page;
}

void page_drop(struct page *page)
{
    if (!page || --page->holders)
        return;
    assert(list_empty(&page->askers) && list_empty(&page->ranges));
    for (size_t i = 0; i < page->count; i++)
        entry_drop(page->entries[i]);
    free(page->entries);
    free(page);
}

/* ------------------------------------------------------------------------------------------------------- helpers */

static bool page_fits(const struct map_link *link, const void *key)
{
    const struct page *page = container_of(link, struct page, by_key);
    const struct page_key *wanted = key;

    return page->key.room_no == wanted->room_no && page->key.from == wanted->from && page->key.to == wanted->to &&
           page->key.limit == wanted->limit && page->key.descending == wanted->descending;
}

static struct page *find_or_make(struct reader *reader, const struct page_key *key, struct str room_id)
{
    uint64_t numbers[] = {(uint64_t)key->room_no, key->from, key->to, (uint64_t)key->limit, key->descending};
    uint64_t hash = map_hash(numbers, sizeof numbers);
    struct map_link *link = map_find(&reader->pages, hash, page_fits, key);
    struct page *page;

    if (link) {
        reader->pages_shared_total++;
        return container_of(link, struct page, by_key);
    }
    assert(room_id.n <= ROOM_ID_MAX_BYTES);
    page = xcalloc(1, sizeof *page);
    page->holders = 1; /* the query's */
    page->key = *key;
    page->reader = reader;
    page->joinable = true;
    memcpy(page->room_id, room_id.p, room_id.n);
    page->room_id_n = (uint8_t)room_id.n;
    list_init(&page->askers);
    list_init(&page->ranges);
    map_insert(&reader->pages, hash, &page->by_key);
    list_push_back(&reader->pages_new, &page->link);
    return page;
}

static void page_close_to_others(struct page *page)
{
    if (page->joinable)
        map_remove(&page->reader->pages, &page->by_key);
    page->joinable = false;
}

static int64_t seq_bigint(uint64_t seq)
{
    return seq > INT64_MAX ? INT64_MAX : (int64_t)seq;
}

static void page_send(struct page *page)
{
    struct reader *reader = page->reader;
    struct pg_params params = {0};

    if (list_empty(&page->askers) && list_empty(&page->ranges)) { /* all of them left */
        page_close_to_others(page);
        page_drop(page);
        return;
    }
    page_close_to_others(page);
    reader->pages_total++;
    page->sent = true;
    list_push_back(&reader->pages_sent, &page->link);
    pg_param_i64(&params, page->key.room_no);
    pg_param_i64(&params, seq_bigint(page->key.from));
    pg_param_i64(&params, seq_bigint(page->key.to));
    pg_param_i64(&params, page->key.limit);
    page->query = (struct pg_query){.statement = page->key.descending ? &backward_statement : &forward_statement,
        .lane = PG_READ,
        .done = page_on_rows};
    pg_submit(reader->history->pg, &page->query, &params);
    pg_params_clear(&params);
}

/* A newer program may have written what this one does not know: a seq that holds nothing, as far as it can tell. */
static void forget_unknown(struct entry_parts *parts)
{
    if (parts->type < ENTRY_TYPES && parts->state >= 0 && parts->state <= 3)
        return;
    parts->type = ENTRY_VOID;
    parts->state = 0;
    parts->content = (struct str){NULL, 0};
}

struct entry *entry_from_row(struct str room_id, int64_t room_no, const PGresult *result, int row, int column)
{
    struct entry_parts parts = {
        .room_id = room_id,
        .room_no = room_no,
        .seq = (uint64_t)pg_get_i64(result, row, column),
        .epoch = (uint64_t)pg_get_i64(result, row, column + 1),
        .at = (uint64_t)pg_get_i64(result, row, column + 2),
        .counted = (uint64_t)pg_get_i64(result, row, column + 3),
        .type = (enum entry_type)pg_get_i64(result, row, column + 4),
        .state = (int)pg_get_i64(result, row, column + 5),
        .message_id = pg_get_uuid(result, row, column + 6),
        .sender = pg_get_str(result, row, column + 7),
        .client_msg_id = pg_get_str(result, row, column + 8),
        .kind = pg_get_str(result, row, column + 9),
        .content = pg_get_str(result, row, column + 10),
        .meta = pg_get_str(result, row, column + 11),
    };

    forget_unknown(&parts);
    return entry_new(&parts);
}

void history_write_row(
    struct buf *out, struct str room_id, int64_t room_no, const PGresult *result, int row, int column)
{
    struct entry *entry = entry_from_row(room_id, room_no, result, row, column);

    buf_add_str(out, entry_json(entry));
    entry_drop(entry);
}

static void read_entries(struct page *page, const PGresult *result)
{
    size_t count = (size_t)PQntuples(result);
    struct str room_id = {page->room_id, page->room_id_n};

    page->entries = xcalloc(count ? count : 1, sizeof *page->entries);
    page->count = count;
    for (size_t i = 0; i < count; i++)
        page->entries[page->key.descending ? count - 1 - i : i] =
            entry_from_row(room_id, page->key.room_no, result, (int)i, 0);
    page->reader->entries_total += count;
}

static void page_on_rows(struct pg_query *query, enum err err, const PGresult *result)
{
    struct page *page = container_of(query, struct page, query);
    struct list *link;

    page_close_to_others(page);
    list_remove(&page->link);
    err = reader_error(query, err, result);
    if (!err)
        read_entries(page, result);
    while ((link = list_pop_front(&page->ranges))) {
        struct history_range *range = list_entry(link, struct history_range, link);

        range->entries = page->entries;
        range->count = page->count;
        range->done(range, err);
    }
    while ((link = list_pop_front(&page->askers))) {
        struct page_asker *asker = list_entry(link, struct page_asker, link);

        asker->done(asker, err, page);
    }
    page_drop(page);
}
