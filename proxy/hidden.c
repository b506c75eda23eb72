/*
 * "Delete for me": what an account has hidden from itself is left out of its streams. Nearly nobody hides anything, and
 * who does hides little: only a sub that is about to show such an entry gets bytes of its own, everybody else shares.
 * The same for edits of what was said before the account's join, in rooms where it may not see that.
 */
#include "core.h"

#include <stdlib.h>

struct hidden {
    size_t count, capacity;
    uint64_t seqs[]; /* ascending */
};

/* The first one above seq; count: none. */
static size_t place_above(const struct hidden *hidden, uint64_t seq)
{
    size_t low = 0, high = hidden->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;

        if (hidden->seqs[middle] > seq)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

bool sub_hides(const struct sub *sub, uint64_t above_seq, uint64_t upto_seq)
{
    const struct hidden *hidden = sub->hidden;
    size_t at = hidden ? place_above(hidden, above_seq) : 0;

    return hidden && at < hidden->count && hidden->seqs[at] <= upto_seq;
}

void sub_hide(struct sub *sub, uint64_t seq)
{
    struct hidden *hidden = sub->hidden;
    size_t at;

    if (seq == 0 || sub_hides(sub, seq - 1, seq))
        return;
    if (!hidden || hidden->count == hidden->capacity) {
        size_t capacity = hidden ? hidden->capacity * 2 : 4, count = hidden ? hidden->count : 0;

        sub->hidden = hidden = xrealloc(hidden, sizeof *hidden + capacity * sizeof hidden->seqs[0]);
        hidden->capacity = capacity;
        hidden->count = count;
    }
    at = place_above(hidden, seq);
    memmove(hidden->seqs + at + 1, hidden->seqs + at, (hidden->count - at) * sizeof hidden->seqs[0]);
    hidden->seqs[at] = seq;
    hidden->count++;
}

bool sub_differs(const struct sub *sub, const struct chunk *chunk)
{
    if (sub->hidden && sub_hides(sub, chunk->before, chunk->upto.seq))
        return true;
    for (size_t i = 0; sub->first_seq && i < chunk->count; i++)
        if (entry_hides_since(chunk->entries[i], sub->first_seq))
            return true;
    return false;
}

struct bytes *hidden_encode(
    const struct sub *sub, const struct chunk *chunk, enum encoding encoding, uint64_t complete_ms, size_t *count)
{
    struct entry **entries = xcalloc(chunk->count, sizeof *entries);
    struct chunk rest = {.before = chunk->before, .upto = chunk->upto, .entries = entries};
    struct bytes *bytes = NULL;

    for (size_t i = 0; i < chunk->count; i++) {
        uint64_t seq = chunk->entries[i]->seq;

        if (sub_hides(sub, seq - 1, seq))
            continue;
        entries[rest.count] = entry_since(chunk->entries[i], sub->first_seq);
        rest.bytes += entries[rest.count++]->n + 1;
    }
    if (rest.count)
        bytes = bytes_hold(chunk_encode(&rest, encoding, view_room_id(sub->view), complete_ms));
    *count = rest.count;
    chunk_clear(&rest);
    for (size_t i = 0; i < *count; i++)
        entry_drop(entries[i]);
    free(entries);
    return bytes;
}

/* An account has just hidden an entry. What is on the wire cannot be taken back; what waits in a queue may be dropped
 * and read again. */
static void hide_at(struct sub *sub, uint64_t seq)
{
    if (sub_stands_at(sub) < seq || sub->stream->item_count)
        sub_hide(sub, seq);
}

void hidden_told(struct proxy *proxy, const struct audience *audience, struct str json)
{
    static const char begin[] = "{\"type\":\"message.hidden\",";
    struct buf scratch = {0};
    struct json event, room, number;
    struct str room_id;
    struct view *view;
    struct stream *stream;
    const char *why;
    int64_t seq;

    if (json.n < sizeof begin || memcmp(json.p, begin, sizeof begin - 1) != 0 || !json_check(json, &event, &why))
        return;
    room = json_get(event, "room_id");
    number = json_get(event, "seq");
    if (room.type == JSON_STRING && json_string(room, &scratch, &room_id) && (view = view_find(proxy, room_id)) &&
        number.type == JSON_NUMBER && json_integer(number, &seq) && seq > 0)
        list_for_each (stream, &audience->streams, audience_link) {
            struct sub *sub = sub_find(stream, view);

            if (sub)
                hide_at(sub, (uint64_t)seq);
        }
    buf_clear(&scratch);
}
