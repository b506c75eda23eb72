/*
 * Reads of the store for subs that are behind the run of their view. Equal reads are one read, at most
 * catch_up_reads_max are on their way, the others wait in line; a sub that needs more stands at the end of the line
 * again.
 */
#include "core.h"

#include <stdlib.h>

static void read_send(struct proxy *proxy);
static void read_done(struct history_range *range, enum err err);
static void serve(struct catch_up_read *read, struct entry **entries, size_t count);
static void read_free(struct catch_up_read *read);

struct read_key {
    const struct view *view;
    uint64_t after;
    uint32_t reads_before;
};

static bool read_is(const struct map_link *link, const void *key)
{
    const struct catch_up_read *read = container_of(link, struct catch_up_read, link);
    const struct read_key *wanted = key;

    /* Numbers wrap; only differences count. */
    return read->view == wanted->view && read->range.after_seq == wanted->after &&
           (!read->sent || (int32_t)(read->number - wanted->reads_before) > 0);
}

static uint64_t read_hash(const struct read_key *key)
{
    return map_hash_u64((uint64_t)(uintptr_t)key->view ^ key->after * 0x9e3779b97f4a7c15u);
}

void catch_up_want(struct sub *sub, uint64_t up_to)
{
    struct proxy *proxy = sub->stream->proxy;
    struct read_key key = {sub->view, sub->seq, sub->reads_before};
    struct map_link *link = map_find(&proxy->reads, read_hash(&key), read_is, &key);
    struct catch_up_read *read = link ? container_of(link, struct catch_up_read, link) : NULL;

    if (!read) {
        read = xcalloc(1, sizeof *read);
        read->view = sub->view;
        read->range.room_no = sub->view->room_no;
        read->range.room_id = view_room_id(sub->view);
        read->range.after_seq = sub->seq;
        read->range.up_to_seq = up_to;
        read->range.limit = CATCH_UP_ENTRIES;
        read->range.done = read_done;
        list_init(&read->subs);
        map_insert(&proxy->reads, read_hash(&key), &read->link);
        list_push_back(&proxy->reads_waiting, &read->order_link);
    }
    sub->state = SUB_READING;
    sub->read = read;
    list_push_back(&read->subs, &sub->work_link);
    read_send(proxy);
}

static void read_send(struct proxy *proxy)
{
    while (proxy->reads_in_flight < (uint32_t)proxy->config->catch_up_reads_max && !list_empty(&proxy->reads_waiting)) {
        struct catch_up_read *read =
            list_entry(list_pop_front(&proxy->reads_waiting), struct catch_up_read, order_link);

        list_push_back(&proxy->reads_sent, &read->order_link);
        read->sent = true;
        read->number = ++proxy->reads_sent_total;
        proxy->reads_in_flight++;
        proxy->count.reads++;
        history_read_range(proxy->history, &read->range);
    }
}

static void read_free(struct catch_up_read *read)
{
    struct proxy *proxy = read->view->proxy;

    map_remove(&proxy->reads, &read->link);
    list_remove(&read->order_link);
    if (read->sent)
        proxy->reads_in_flight--;
    free(read);
    read_send(proxy);
}

/* The sub does something else now. A read nobody waits for is given up. */
void catch_up_forget(struct sub *sub)
{
    struct catch_up_read *read = sub->read;

    list_remove(&sub->work_link);
    sub->read = NULL;
    if (!read || !list_empty(&read->subs))
        return;
    if (read->sent)
        history_range_forget(&read->range);
    read_free(read);
}

static void read_done(struct history_range *range, enum err err)
{
    struct catch_up_read *read = container_of(range, struct catch_up_read, range);
    struct proxy *proxy = read->view->proxy;
    struct list *link;

    if (err || range->count == 0) {
        while ((link = list_pop_front(&read->subs))) { /* in a second again */
            list_entry(link, struct sub, work_link)->read = NULL;
            list_push_back(&proxy->retry, link);
        }
    } else {
        serve(read, range->entries, range->count);
    }
    read_free(read);
}

static void serve_one(struct sub *sub, struct chunk *chunks, size_t count, uint64_t complete_ms)
{
    struct stream *stream = sub->stream;
    enum encoding encoding = stream_encoding(stream);
    uint64_t seq = sub->seq;

    for (size_t i = 0; i < count; i++) {
        if (!sub_push_chunk(sub, &chunks[i], encoding, complete_ms))
            break;
        seq = chunks[i].upto.seq;
    }
    sub_behind(sub, seq);
}

static void serve(struct catch_up_read *read, struct entry **entries, size_t count)
{
    struct chunk chunks[CATCH_UP_ENTRIES];
    uint64_t complete_ms = proxy_unix_ms(read->view->proxy);
    struct list *link;
    size_t used = 0, n = 0;

    for (size_t i = 0; i < count; i++)
        if (view_read_entry(read->view, entries[i]))
            count = i + 1; /* the others go on with another read */
    while (used < count && n < countof(chunks)) {
        chunks[n] = chunk_cut(entries + used, count - used);
        used += chunks[n++].count;
    }
    while ((link = list_pop_front(&read->subs))) {
        struct sub *sub = list_entry(link, struct sub, work_link);

        sub->read = NULL;
        if (sub->seq == read->range.after_seq)
            serve_one(sub, chunks, n, complete_ms);
        else
            sub_behind(sub, sub->seq); /* rolled back meanwhile */
    }
    for (size_t i = 0; i < n; i++)
        chunk_clear(&chunks[i]);
}

void catch_up_retry(struct proxy *proxy)
{
    struct list again;

    list_init(&again);
    list_splice_back(&again, &proxy->retry);
    while (!list_empty(&again)) {
        struct sub *sub = list_entry(again.next, struct sub, work_link);

        sub_behind(sub, sub->seq);
    }
}
