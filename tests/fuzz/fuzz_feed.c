/* Any bytes as a message of the feed: what is taken is walked to its end, and written anew it is the same message. */
#include "history/feed_format.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool holds)
{
    if (!holds)
        abort();
}

static void write_log(struct buf *out, const struct feed_message *message)
{
    struct str rest = message->items;
    struct feed_log_item item;

    feed_write_log_head(out, message->shard, message->epoch, message->counter);
    while (rest.n) {
        struct entry *entry;

        check(feed_next_log(&rest, &item));
        if (item.what == FEED_LOG_MARK) {
            feed_write_mark(out, item.room_id, item.room_no, item.seq, item.epoch);
            continue;
        }
        entry = xcalloc(1, sizeof *entry + item.json.n);
        entry->room_no = item.room_no;
        entry->epoch = item.epoch;
        entry->seq = item.seq;
        entry->at = item.at;
        entry->counted = item.counted;
        entry->type = item.type;
        entry->n = (uint32_t)item.json.n;
        memcpy(entry->json, item.json.p, item.json.n);
        feed_write_entry(out, item.room_id, entry, item.what == FEED_LOG_DURABLE);
        free(entry);
    }
}

static void write_names(struct buf *out, struct str names, size_t count)
{
    struct str name;

    for (size_t i = 0; i < count; i++) {
        check(feed_next_name(&names, &name));
        feed_write_name(out, name);
    }
    check(names.n == 0);
}

static void write_beat(struct buf *out, const struct feed_beat *beat)
{
    struct str rest = beat->held;
    struct feed_held held;

    feed_write_beat_head(out, beat->database_ok, beat->entered, beat->held_count);
    for (size_t i = 0; i < beat->held_count; i++) {
        check(feed_next_held(&rest, &held));
        feed_write_held(out, &held);
    }
    check(rest.n == 0);
    feed_write_count(out, beat->followed_count);
    write_names(out, beat->followed, beat->followed_count);
}

static void write_items(struct buf *out, const struct feed_message *message)
{
    struct str rest = message->items;
    struct feed_item told;
    struct feed_entered entered;
    struct feed_settled settled;

    while (rest.n && message->kind == FEED_TOLD) {
        check(feed_next(&rest, &told));
        feed_write_item(out, &told);
    }
    while (rest.n && message->kind == FEED_ENTERED) {
        check(feed_next_entered(&rest, &entered));
        feed_write_entered(out, entered.room_id, entered.after, entered.count);
        write_names(out, entered.accounts, entered.count);
    }
    while (rest.n && message->kind == FEED_SETTLED) {
        check(feed_next_settled(&rest, &settled));
        feed_write_settled(out, &settled);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct str body = {(const char *)data, size};
    struct feed_message message, again;
    struct buf out = {0}, twice = {0};

    if (feed_read(body, &message) != FEED_GOOD)
        return 0;
    for (int round = 0; round < 2; round++) {
        struct buf *to = round ? &twice : &out;

        feed_write_head(to, message.kind, message.sender.p);
        if (message.kind == FEED_LOG)
            write_log(to, &message);
        else if (message.kind == FEED_BEAT)
            write_beat(to, &message.beat);
        else if (message.kind == FEED_ASK || message.kind == FEED_ANSWER)
            feed_write_question(to, message.counter, message.items);
        if (message.kind == FEED_ENTERED)
            feed_write_entered_head(to, message.way, message.counter);
        write_items(to, &message);
        check(feed_read(buf_str(to), &again) == FEED_GOOD);
        message = again;
    }
    check(str_eq(buf_str(&out), buf_str(&twice)));
    /* Bits that are not looked at, and what a later program adds to a beat, are not written again. */
    if (message.kind != FEED_BEAT && message.kind != FEED_SETTLED)
        check(str_eq(buf_str(&out), body));
    buf_clear(&out);
    buf_clear(&twice);
    return 0;
}
