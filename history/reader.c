/*
 * Pull: a page of committed entries for a caller, at once or when there is news (long_poll.c).
 *
 *   begin ─▶ access (memory, or a query) ─▶ page, and what the account hides ─▶ answer
 *              └ at once with the page where the page does not depend on it   └ too much of it was hidden ─▶ next page
 *   nothing after the cursor, and time left ─▶ wait ─durable news, takeover─▶ begin    (the membership is asked again)
 *                                                └─deadline─▶ answer
 *   the cursor is not the log's ─▶ where is it valid ─▶ page behind that ─▶ answer with reset
 */
#include "reader.h"

#include <inttypes.h>
#include <stdlib.h>

#include "room/base/log.h"

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
    /* The visible ones, in the direction asked, when something is hidden; held; limit + 1 at most. */
    struct entry **kept;
    size_t kept_count;
    struct cursor newest; /* entry in any page of this round */

    uint64_t from_seq; /* PULL_AFTER: entries above it are wanted */
    bool checks_epoch; /* the page begins with the entry at from_seq, whose epoch tells whether the cursor is valid */
    bool reset;
    struct cursor reset_to;

    struct long_poll poll;
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
static void op_woken(struct long_poll *poll);
static void op_answer(struct pull_op *op, struct entry **entries, size_t count, bool more);
static void op_fail(struct pull_op *op, enum err err);
static void op_free(struct pull_op *op);

static void on_wake(uv_timer_t *timer);

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
    long_polls_open(reader);
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
    long_polls_close(reader);
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
           !list_empty(&reader->taken_backs) || !list_empty(&reader->pages_new) || !list_empty(&reader->hiddens)) {
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
    op->poll = (struct long_poll){.reader = reader, .room_id = pull->room_id, .woken = op_woken};
    if (pull->from == PULL_AFTER && pull->wait_ms > 0) {
        op->poll.after_seq = pull->after.seq;
        op->poll.deadline_ms = uv_now(history->loop) + (uint64_t)pull->wait_ms;
        long_poll_join(&op->poll); /* before the first look, so that no news falls between it and the wait */
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

    op->poll.news_seq = 0;
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

    long_poll_of_room(&op->poll, room_no);
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
    if (!count && !op->reset && op->poll.room) {
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
    if (!op->kept_count && !op->reset && op->poll.room) {
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

static void op_wait(struct pull_op *op)
{
    if (op->poll.news_seq > op->pull->after.seq) { /* came while we looked */
        op_woken(&op->poll);
        return;
    }
    if (uv_now(op->reader->history->loop) >= op->poll.deadline_ms) {
        op_answer(op, NULL, 0, false);
        return;
    }
    page_drop(op->page);
    op->page = NULL;
    long_poll_wait(&op->poll);
}

/* News, or the deadline: one more look, whose answer goes out whatever it finds. */
static void op_woken(struct long_poll *poll)
{
    struct pull_op *op = container_of(poll, struct pull_op, poll);

    page_drop(op->page);
    op->page = NULL;
    list_push_back(&op->reader->pulls_new, &op->new_link);
    reader_wake(op->reader);
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
    long_poll_leave(&op->poll);
    free(op);
}
