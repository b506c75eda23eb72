/*
 * Pull: a page of committed entries for a caller, and the long poll.
 *
 *   begin ─▶ access (memory, or a query) ─▶ page, and what the account hides ─▶ answer
 *              └ at once with the page where the page does not depend on it   └ too much of it was hidden ─▶ next page
 *   nothing after the cursor, and time left ─▶ wait ─durable news, takeover─▶ begin    (the membership is asked again)
 *                                                └─deadline─▶ answer
 *   the cursor is not the log's ─▶ where is it valid ─▶ page behind that ─▶ answer with reset
 *
 * Waiting costs nothing: rooms tell when something is durable, those of other owners over the feed, which is followed
 * as long as somebody waits for one of theirs. When the feed says that something may have been missed, the heads of the
 * rooms concerned are looked at once, in one query; while an owner is not heard, once a second.
 */
#include "reader.h"

#include <inttypes.h>
#include <stdlib.h>

#include "room/base/log.h"

enum {
    TICK_MS = 50,       /* of the wheel: a long poll ends at most so late */
    WHEEL_SLOTS = 2048, /* 102 s a round: above the default poll_wait_max_ms, longer waits stay for another round */
    LOOK_MS = 1000,
    LOOK_ROOMS_MAX = 10000,
    WAITING_MAX = 200000
};

/* The long polls of one room. */
struct room_wait {
    struct map_link by_id;
    struct list ops;
    struct str room_id; /* of the first op's pull; moves on when that one leaves */
    int64_t room_no;    /* 0: not known yet */
    bool look;          /* news may have been missed */
};

struct pull_op {
    struct history_pull *pull;
    struct reader *reader;
    struct list link;     /* reader->pulls */
    struct list new_link; /* reader->pulls_new */

    struct history_access access;
    bool access_open, access_known;
    struct page_asker asker;
    bool page_open;
    struct page *page;
    struct history_validity validity;
    bool validity_open;

    struct history_hidden hidden;
    bool hidden_open, hidden_known;
    uint64_t *hidden_seqs; /* ascending */
    size_t hidden_count;
    struct entry *
        *kept; /* the visible ones, in the direction asked, when something is hidden; held; limit + 1 at most */
    size_t kept_count;
    struct cursor newest; /* entry in any page of this round */

    uint64_t from_seq; /* PULL_AFTER: entries above it are wanted */
    bool checks_epoch; /* the page begins with the entry at from_seq, whose epoch tells whether the cursor is valid */
    bool reset;
    struct cursor reset_to;

    struct room_wait *wait;
    struct list wait_link;
    struct list wheel_link;
    uint64_t deadline_ms;
    bool waiting;
    uint64_t news_seq; /* durable, as told since this round began */
};

/* The steps, in the order they run. */
static void op_begin(struct pull_op *op);
static void op_on_access(struct history_access *access, enum err err);
static void op_ask_page(struct pull_op *op, int64_t room_no);
static void op_on_page(struct page_asker *asker, enum err err, struct page *page);
static void op_on_hidden(struct history_hidden *hidden, enum err err);
static void op_step(struct pull_op *op);
static void op_sift(struct pull_op *op, struct entry **entries, size_t count);
static void op_ask_validity(struct pull_op *op);
static void op_on_validity(struct history_validity *validity, enum err err);
static void op_wait(struct pull_op *op);
static void op_wake(struct pull_op *op);
static void op_answer(struct pull_op *op, struct entry **entries, size_t count, bool more);
static void op_fail(struct pull_op *op, enum err err);
static void op_free(struct pull_op *op);

static void wait_join(struct pull_op *op);
static void wait_leave(struct pull_op *op);
static struct room_wait *find_wait(const struct reader *reader, struct str room_id);
static void on_tick(uv_timer_t *timer);
static void on_wake(uv_timer_t *timer);
static void look_at_heads(struct reader *reader, bool unheard_too);
static void look_on_rows(struct pg_query *query, enum err err, const PGresult *result);

/* ---------------------------------------------------------------------------------------------------- the reader */

struct reader *reader_open(struct history *history)
{
    struct reader *reader = xcalloc(1, sizeof *reader);

    reader->history = history;
    access_open(reader);
    hidden_open(reader);
    pages_open(reader);
    list_init(&reader->pulls);
    list_init(&reader->pulls_new);
    map_init(&reader->waits);
    reader->wheel = xcalloc(WHEEL_SLOTS, sizeof *reader->wheel);
    for (size_t i = 0; i < WHEEL_SLOTS; i++)
        list_init(&reader->wheel[i]);
    uv_timer_init(history->loop, &reader->tick);
    uv_timer_init(history->loop, &reader->wake);
    reader->handles_open = 2;
    return reader;
}

static void on_closed(uv_handle_t *handle)
{
    struct reader *reader = handle->data;

    if (--reader->handles_open == 0)
        free(reader);
}

void reader_close(struct reader *reader)
{
    struct list *link;

    while ((link = list_pop_front(&reader->pulls))) {
        struct pull_op *op = list_entry(link, struct pull_op, link);

        op->pull->impl = NULL;
        op_free(op);
    }
    access_close(reader);
    hidden_close(reader);
    pages_close(reader);
    if (reader->looking)
        pg_forget(&reader->look);
    map_clear(&reader->waits);
    free(reader->wheel);
    reader->tick.data = reader->wake.data = reader;
    uv_close((uv_handle_t *)&reader->tick, on_closed);
    uv_close((uv_handle_t *)&reader->wake, on_closed);
}

void reader_wake(struct reader *reader)
{
    if (!uv_is_active((uv_handle_t *)&reader->wake))
        uv_timer_start(&reader->wake, on_wake, 0, 0);
}

static void on_wake(uv_timer_t *timer)
{
    reader_turn(container_of(timer, struct reader, wake));
}

void reader_turn(struct reader *reader)
{
    struct list *link;

    while (!list_empty(&reader->pulls_new) || !list_empty(&reader->accesses) || !list_empty(&reader->validities) ||
           !list_empty(&reader->pages_new) || !list_empty(&reader->hiddens)) {
        while ((link = list_pop_front(&reader->pulls_new)))
            op_begin(list_entry(link, struct pull_op, new_link));
        access_turn(reader);
        pages_turn(reader);
        hidden_turn(reader);
    }
    if (uv_is_active((uv_handle_t *)&reader->wake))
        uv_timer_stop(&reader->wake);
}

enum err reader_error(const struct pg_query *query, enum err err, const PGresult *result)
{
    if (err == ERR_DATABASE)
        log_error("reader.refused", "statement=%s sqlstate=%s", query->statement->name, pg_sqlstate(result));
    return err == ERR_LOST || err == ERR_DATABASE ? ERR_UNAVAILABLE : err;
}

void reader_metrics(const struct reader *reader, struct buf *out)
{
    buf_printf(out,
        "# TYPE roomd_pulls_total counter\nroomd_pulls_total %" PRIu64 "\n"
        "# TYPE roomd_pulls_waiting gauge\nroomd_pulls_waiting %zu\n"
        "# TYPE roomd_page_reads_total counter\nroomd_page_reads_total %" PRIu64 "\n"
        "# TYPE roomd_page_reads_shared_total counter\nroomd_page_reads_shared_total %" PRIu64 "\n"
        "# TYPE roomd_entries_read_total counter\nroomd_entries_read_total %" PRIu64 "\n"
        "# TYPE roomd_access_from_memory_total counter\nroomd_access_from_memory_total %" PRIu64 "\n"
        "# TYPE roomd_access_asked_total counter\nroomd_access_asked_total %" PRIu64 "\n",
        reader->pulls_total, reader->waiting, reader->pages_total, reader->pages_shared_total, reader->entries_total,
        reader->access_counters.from_memory_total, reader->access_counters.asked_total);
}

/* ---------------------------------------------------------------------------------------------------------- Pull */

void history_pull(struct history *history, struct history_pull *pull)
{
    struct reader *reader = history->reader;
    struct pull_op *op = xcalloc(1, sizeof *op);

    op->pull = pull;
    op->reader = reader;
    op->access = (struct history_access){.room_id = pull->room_id, .account = pull->account, .done = op_on_access};
    op->asker.done = op_on_page;
    op->validity.done = op_on_validity;
    op->hidden.done = op_on_hidden;
    list_init(&op->asker.link);
    list_init(&op->wait_link);
    list_init(&op->wheel_link);
    if (pull->from == PULL_AFTER && pull->wait_ms > 0 && reader->waits.count < WAITING_MAX) {
        op->deadline_ms = uv_now(history->loop) + (uint64_t)pull->wait_ms;
        wait_join(op); /* before the first look, so that no news falls between it and the wait */
    }
    pull->impl = op;
    reader->pulls_total++;
    list_push_back(&reader->pulls, &op->link);
    list_push_back(&reader->pulls_new, &op->new_link);
    reader_wake(reader);
}

void history_pull_cancel(struct history *history, struct history_pull *pull)
{
    struct pull_op *op = pull->impl;

    (void)history;
    if (!op)
        return;
    pull->impl = NULL;
    op_free(op);
}

static void forget_kept(struct pull_op *op)
{
    for (size_t i = 0; i < op->kept_count; i++)
        entry_drop(op->kept[i]);
    op->kept_count = 0;
}

static void op_begin(struct pull_op *op)
{
    struct history_pull *pull = op->pull;
    const struct room_fact *fact;
    enum err err;

    op->news_seq = 0;
    op->access_known = op->hidden_known = false;
    forget_kept(op);
    if (access_from_memory(op->reader, &op->access, &err)) {
        op->access_known = true;
        op_ask_page(op, op->access.room_no);
        return;
    }
    op->access_open = true;
    history_ask_access(op->reader->history, &op->access);
    /* Only a member's first page after a cursor depends on what the access says: where the log begins
     * for that account. */
    fact = reader_find_room(op->reader, pull->room_id);
    if (fact && !(fact->since_join && pull->account.n && pull->from == PULL_AFTER))
        op_ask_page(op, fact->room_no);
}

static void op_on_access(struct history_access *access, enum err err)
{
    struct pull_op *op = container_of(access, struct pull_op, access);

    op->access_open = false;
    if (err) {
        op_fail(op, err);
        return;
    }
    op->access_known = true;
    if (op->page || op->page_open)
        op_step(op);
    else
        op_ask_page(op, access->room_no);
}

/* The first seq the account may see. */
static uint64_t first_visible(const struct pull_op *op)
{
    return op->access_known && op->access.since_join && op->pull->account.n ? op->access.join_seq : 0;
}

/* Beside the page, so that it costs no round trip of its own. */
static void op_ask_hidden(struct pull_op *op, int64_t room_no, uint64_t after_seq)
{
    if (!op->pull->account.n || op->hidden_known || op->hidden_open)
        return;
    op->hidden.room_no = room_no;
    op->hidden.account = op->pull->account;
    op->hidden.after_seq = after_seq;
    op->hidden_open = true;
    history_ask_hidden(op->reader->history, &op->hidden);
}

static void op_ask_page(struct pull_op *op, int64_t room_no)
{
    const struct history_pull *pull = op->pull;
    uint64_t first = first_visible(op);
    struct page_key key = {.room_no = room_no, .to = UINT64_MAX, .limit = pull->limit + 1};

    if (op->wait)
        op->wait->room_no = room_no;
    if (pull->from == PULL_AFTER) {
        if (!op->reset) {
            op->from_seq = pull->after.seq;
            op->checks_epoch = pull->after.seq > 0 && pull->after.epoch != UINT64_MAX && pull->after.seq >= first;
        }
        if (first && op->from_seq < first - 1)
            op->from_seq = first - 1;
        key.from = op->from_seq + (op->checks_epoch ? 0 : 1);
        key.limit += op->checks_epoch ? 1 : 0;
    } else {
        key.descending = true;
        key.to = pull->from == PULL_BEFORE ? pull->before - 1 : UINT64_MAX;
    }
    op->page_open = true;
    page_ask(op->reader, &op->asker, &key, pull->room_id);
    op_ask_hidden(op, room_no, op->from_seq);
}

static void op_on_hidden(struct history_hidden *hidden, enum err err)
{
    struct pull_op *op = container_of(hidden, struct pull_op, hidden);

    op->hidden_open = false;
    if (err) {
        op_fail(op, err);
        return;
    }
    op->hidden_known = true;
    free(op->hidden_seqs);
    op->hidden_seqs = hidden->count ? xmemdup(hidden->seqs, hidden->count * sizeof *hidden->seqs) : NULL;
    op->hidden_count = hidden->count;
    op_step(op);
}

static void op_on_page(struct page_asker *asker, enum err err, struct page *page)
{
    struct pull_op *op = container_of(asker, struct pull_op, asker);

    op->page_open = false;
    if (err) {
        op_fail(op, err);
        return;
    }
    page_drop(op->page);
    op->page = page_hold(page);
    if (page->count && page->entries[page->count - 1]->seq > op->newest.seq)
        op->newest = (struct cursor){page->entries[page->count - 1]->epoch, page->entries[page->count - 1]->seq};
    op_step(op);
}

/* The cursor is above the log's head. Is what it names still on its way to the log, or lost with an owner that died? */
static bool lost_above_head(const struct pull_op *op)
{
    bool ours;
    uint64_t epoch = history_epoch(op->reader->history, op->pull->room_id, &ours);

    return op->pull->after.epoch < epoch;
}

static void op_after(struct pull_op *op, struct entry **entries, size_t count)
{
    const struct history_pull *pull = op->pull;
    bool more;

    if (op->checks_epoch) {
        bool there = count && entries[0]->seq == op->from_seq;

        if (there ? entries[0]->epoch > pull->after.epoch : lost_above_head(op)) {
            op_ask_validity(op);
            return;
        }
        if (there) {
            entries++;
            count--;
        }
        op->checks_epoch = false;
    }
    if (op->hidden_count) {
        op_sift(op, entries, count);
        return;
    }
    more = count > (size_t)pull->limit;
    if (!count && !op->reset && op->wait) {
        op_wait(op);
        return;
    }
    op_answer(op, entries, more ? (size_t)pull->limit : count, more);
}

static void op_step(struct pull_op *op)
{
    struct entry **entries;
    size_t count;
    bool more;

    if (!op->access_known || op->page_open || !op->page || (op->pull->account.n && !op->hidden_known))
        return;
    entries = op->page->entries;
    count = op->page->count;
    if (op->pull->from == PULL_AFTER) {
        op_after(op, entries, count);
        return;
    }
    while (count && entries[0]->seq < first_visible(op)) {
        entries++;
        count--;
    }
    if (op->hidden_count) {
        op_sift(op, entries, count);
        return;
    }
    more = count > (size_t)op->pull->limit;
    op_answer(op, entries + more, count - more, more);
}

static int compare_seqs(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

    return (left > right) - (left < right);
}

/* The page was the last one in its direction, as far as this account may see. */
static bool page_ends(const struct pull_op *op, size_t count)
{
    const struct page *page = op->page;

    if (page->count < (size_t)page->key.limit || !count)
        return true;
    return page->key.descending && (page->entries[0]->seq < first_visible(op) || page->entries[0]->seq == 1);
}

static void op_ask_next_page(struct pull_op *op)
{
    const struct page *page = op->page;
    struct page_key key = page->key;

    key.limit = op->pull->limit + 1;
    if (key.descending)
        key.to = page->entries[0]->seq - 1;
    else
        key.from = page->entries[page->count - 1]->seq + 1;
    op->page_open = true;
    page_ask(op->reader, &op->asker, &key, op->pull->room_id);
}

/* Takes the visible ones of a page, and goes on until there are enough: what is hidden neither counts nor ends it. */
static void op_sift(struct pull_op *op, struct entry **entries, size_t count)
{
    size_t limit = (size_t)op->pull->limit;
    bool down = op->page->key.descending, more;

    if (!op->kept)
        op->kept = xcalloc(limit + 1, sizeof(struct entry *));
    for (size_t i = 0; i < count && op->kept_count <= limit; i++) {
        struct entry *entry = entries[down ? count - 1 - i : i];

        if (!bsearch(&entry->seq, op->hidden_seqs, op->hidden_count, sizeof *op->hidden_seqs, compare_seqs))
            op->kept[op->kept_count++] = entry_hold(entry);
    }
    if (op->kept_count <= limit && !page_ends(op, count)) {
        op_ask_next_page(op);
        return;
    }
    if (!op->kept_count && !op->reset && op->wait) {
        op_wait(op);
        return;
    }
    more = op->kept_count > limit;
    count = more ? limit : op->kept_count;
    for (size_t i = 0; down && i < count / 2; i++) {
        struct entry *swap = op->kept[i];

        op->kept[i] = op->kept[count - 1 - i];
        op->kept[count - 1 - i] = swap;
    }
    op_answer(op, op->kept, count, more);
}

static void op_ask_validity(struct pull_op *op)
{
    op->validity.room_no = op->access.room_no;
    op->validity.cursor = op->pull->after;
    op->validity_open = true;
    history_check_cursor(op->reader->history, &op->validity);
}

static void op_on_validity(struct history_validity *validity, enum err err)
{
    struct pull_op *op = container_of(validity, struct pull_op, validity);

    op->validity_open = false;
    if (err) {
        op_fail(op, err);
        return;
    }
    op->reset = validity->valid.seq < op->pull->after.seq; /* else its commit was on the way, and has arrived */
    op->reset_to = validity->valid;
    op->from_seq = validity->valid.seq;
    op->checks_epoch = op->hidden_known = false; /* the page begins further back, and so must they */
    op_ask_page(op, op->access.room_no);
}

static void op_fail(struct pull_op *op, enum err err)
{
    struct history_pull *pull = op->pull;

    pull->impl = NULL;
    op_free(op);
    pull->done(pull, err);
}

static void op_answer(struct pull_op *op, struct entry **entries, size_t count, bool more)
{
    struct history_pull *pull = op->pull;
    struct page *page = op->page;
    struct entry **kept = op->kept, **shown = xcalloc(count ? count : 1, sizeof *shown);
    size_t kept_count = op->kept_count;

    for (size_t i = 0; i < count; i++)
        shown[i] = entry_since(entries[i], first_visible(op));
    /* Facts and page are two looks; the head is never below what the page shows. */
    pull->head = op->newest.seq > op->access.head.seq ? op->newest : op->access.head;
    pull->durable_seq = pull->head.seq;
    pull->entries = shown;
    pull->count = count;
    pull->more = more;
    pull->reset = op->reset;
    pull->reset_to = op->reset_to;
    pull->impl = NULL;
    op->page = NULL;
    op->kept = NULL;
    op->kept_count = 0;
    op_free(op);
    pull->done(pull, ERR_OK);
    page_drop(page);
    for (size_t i = 0; i < count; i++)
        entry_drop(shown[i]);
    for (size_t i = 0; i < kept_count; i++)
        entry_drop(kept[i]);
    free(shown);
    free(kept);
}

/* From any state. */
static void op_free(struct pull_op *op)
{
    list_remove(&op->link);
    if (op->new_link.next)
        list_remove(&op->new_link);
    if (op->access_open)
        history_access_forget(&op->access);
    if (op->validity_open)
        history_validity_forget(&op->validity);
    if (op->hidden_open)
        history_hidden_forget(&op->hidden);
    forget_kept(op);
    free(op->kept);
    free(op->hidden_seqs);
    list_remove(&op->asker.link);
    page_drop(op->page);
    wait_leave(op);
    free(op);
}

/* ---------------------------------------------------------------------------------------------------- long polls */

static bool wait_is_of(const struct map_link *link, const void *key)
{
    const struct room_wait *wait = container_of(link, struct room_wait, by_id);

    return str_eq(wait->room_id, *(const struct str *)key);
}

static struct room_wait *find_wait(const struct reader *reader, struct str room_id)
{
    struct map_link *link = map_find(&reader->waits, map_hash(room_id.p, room_id.n), wait_is_of, &room_id);

    return link ? container_of(link, struct room_wait, by_id) : NULL;
}

static void wait_join(struct pull_op *op)
{
    struct str room_id = op->pull->room_id;
    struct room_wait *wait = find_wait(op->reader, room_id);
    struct str shard;

    if (!wait) {
        wait = xcalloc(1, sizeof *wait);
        wait->room_id = room_id;
        list_init(&wait->ops);
        if (room_id_read(room_id, &shard))
            feed_wait(op->reader->history->feed, shard, true);
        map_insert(&op->reader->waits, map_hash(room_id.p, room_id.n), &wait->by_id);
    }
    op->wait = wait;
    list_push_back(&wait->ops, &op->wait_link);
}

static void off_the_wheel(struct pull_op *op)
{
    if (!op->waiting)
        return;
    op->waiting = false;
    list_remove(&op->wheel_link);
    if (--op->reader->waiting == 0)
        uv_timer_stop(&op->reader->tick);
}

static void wait_leave(struct pull_op *op)
{
    struct room_wait *wait = op->wait;
    struct str shard;

    off_the_wheel(op);
    if (!wait)
        return;
    op->wait = NULL;
    list_remove(&op->wait_link);
    if (list_empty(&wait->ops)) {
        if (room_id_read(op->pull->room_id, &shard))
            feed_wait(op->reader->history->feed, shard, false);
        map_remove(&op->reader->waits, &wait->by_id);
        free(wait);
    } else {
        wait->room_id = list_entry(wait->ops.next, struct pull_op, wait_link)->pull->room_id;
    }
}

static void op_wait(struct pull_op *op)
{
    struct reader *reader = op->reader;
    uint64_t now = uv_now(reader->history->loop);

    if (op->news_seq > op->pull->after.seq) { /* came while we looked */
        op_wake(op);
        return;
    }
    if (now >= op->deadline_ms) {
        op_answer(op, NULL, 0, false);
        return;
    }
    page_drop(op->page);
    op->page = NULL;
    op->waiting = true;
    if (reader->waiting++ == 0) {
        reader->wheel_at = now / TICK_MS;
        uv_timer_start(&reader->tick, on_tick, TICK_MS, TICK_MS);
    }
    list_push_back(&reader->wheel[(op->deadline_ms + TICK_MS - 1) / TICK_MS % WHEEL_SLOTS], &op->wheel_link);
}

static void op_wake(struct pull_op *op)
{
    off_the_wheel(op);
    page_drop(op->page);
    op->page = NULL;
    list_push_back(&op->reader->pulls_new, &op->new_link);
    reader_wake(op->reader);
}

static void wake_room(struct room_wait *wait, uint64_t seq)
{
    struct pull_op *op;

    list_for_each (op, &wait->ops, wait_link) {
        if (seq > op->news_seq)
            op->news_seq = seq;
        if (op->waiting && seq > op->pull->after.seq)
            op_wake(op);
    }
}

void reader_durable(struct reader *reader, struct str room_id, int64_t room_no, uint64_t seq, uint64_t epoch)
{
    struct room_wait *wait = reader->waits.count ? find_wait(reader, room_id) : NULL;

    (void)room_no;
    (void)epoch;
    if (wait)
        wake_room(wait, seq);
}

/* What was said under another owner reached no one here, so everybody who waits looks once. */
void reader_epoch(struct reader *reader, struct str shard, uint64_t epoch, bool ours)
{
    struct map_link *link = map_next(&reader->waits, NULL);

    (void)epoch;
    (void)ours;
    for (; link; link = map_next(&reader->waits, link)) {
        struct room_wait *wait = container_of(link, struct room_wait, by_id);
        struct str its_shard;

        if (room_id_read(wait->room_id, &its_shard) && str_eq(its_shard, shard))
            wake_room(wait, UINT64_MAX);
    }
}

/* The deadline: one more look, and its answer goes out whatever it finds. */
static void on_tick(uv_timer_t *timer)
{
    struct reader *reader = container_of(timer, struct reader, tick);
    uint64_t now = uv_now(reader->history->loop);
    struct pull_op *op;

    for (; reader->waiting && reader->wheel_at <= now / TICK_MS; reader->wheel_at++) {
        struct list *slot = &reader->wheel[reader->wheel_at % WHEEL_SLOTS];

        list_for_each (op, slot, wheel_link)
            if (op->deadline_ms <= now)
                op_wake(op);
    }
    if (reader->waiting && !reader->looking && now >= reader->look_at_ms) {
        reader->look_at_ms = now + LOOK_MS;
        look_at_heads(reader, true);
    }
}

/* Also those that do not wait yet: their first look may be older than this. */
void reader_missed(struct reader *reader, struct str shard)
{
    struct map_link *link = map_next(&reader->waits, NULL);

    for (; link; link = map_next(&reader->waits, link)) {
        struct room_wait *wait = container_of(link, struct room_wait, by_id);
        struct str its_shard;

        wait->look |= room_id_read(wait->room_id, &its_shard) && str_eq(its_shard, shard);
        reader->look_again |= wait->look;
    }
    if (reader->look_again && !reader->looking)
        look_at_heads(reader, false);
}

static const struct pg_statement look_statement = {
    .name = "history_heads",
    .sql = "SELECT r.room_id, h.last_seq FROM room_head h JOIN room r ON r.room_no = h.room_no WHERE h.room_no = ANY "
           "($1::bigint[])",
    .params = 1,
};

/* Is anything said of it that does not come here? */
static bool goes_unheard(const struct reader *reader, const struct room_wait *wait)
{
    struct str shard;

    return !room_id_read(wait->room_id, &shard) || !history_hears(reader->history, shard);
}

static void look_at_heads(struct reader *reader, bool unheard_too)
{
    struct pg_params params = {0};
    struct pg_array rooms = {0};
    struct map_link *link = map_next(&reader->waits, NULL);

    pg_array_reset(&rooms, PG_INT8);
    for (; link && rooms.count < LOOK_ROOMS_MAX; link = map_next(&reader->waits, link)) {
        struct room_wait *wait = container_of(link, struct room_wait, by_id);

        if (wait->room_no && (wait->look || (unheard_too && goes_unheard(reader, wait))))
            pg_array_i64(&rooms, wait->room_no);
        wait->look &= !wait->room_no;
    }
    reader->look_again = link != NULL;
    if (rooms.count) {
        reader->looking = true;
        reader->look = (struct pg_query){.statement = &look_statement, .lane = PG_READ, .done = look_on_rows};
        pg_param_array(&params, &rooms);
        pg_submit(reader->history->pg, &reader->look, &params);
        pg_params_clear(&params);
    }
    pg_array_clear(&rooms);
}

/* With the next tick: the database is away. */
static void look_at_all_later(struct reader *reader)
{
    struct map_link *link = map_next(&reader->waits, NULL);

    for (; link; link = map_next(&reader->waits, link))
        container_of(link, struct room_wait, by_id)->look = true;
}

static void look_on_rows(struct pg_query *query, enum err err, const PGresult *result)
{
    struct reader *reader = container_of(query, struct reader, look);

    reader->looking = false;
    if (reader_error(query, err, result)) {
        look_at_all_later(reader);
        return;
    }
    for (int row = 0; row < PQntuples(result); row++) {
        struct room_wait *wait = find_wait(reader, pg_get_str(result, row, 0));

        if (wait)
            wake_room(wait, (uint64_t)pg_get_i64(result, row, 1));
    }
    if (reader->look_again)
        look_at_heads(reader, false);
}
