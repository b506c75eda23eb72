/*
 * Long poll: attach, collect, answer, detach. The stream lives as long as the request; what it knows goes back to the
 * client as positions.
 */
#include "core.h"

#include <inttypes.h>
#include <stdlib.h>

static void on_gone(void *arg);

void poll_begin(struct attach *attach)
{
    struct stream *stream = attach->stream;
    struct poll *poll = xcalloc(1, sizeof *poll);

    presence_poll_open(stream);
    stream->poll = poll;
    poll->stream = stream;
    poll->reply = attach->reply;
    attach->reply = NULL;
    poll->due = proxy_now(stream->proxy) + (uint32_t)stream->proxy->config->stream_poll_hold_ms;
    poll->began_ms = proxy_unix_ms(stream->proxy);
    poll->resume_ms = attach->resume_ms;
    list_push_back(&stream->proxy->holding, &poll->hold_link);
    /* Where a room without a position began must be told, or the next poll would begin somewhere else. The time serves
     * rooms that the account enters between two polls, and those beyond what can be listed. */
    poll->tell_time = stream->all;
    for (size_t i = 0; i < attach->room_count; i++) {
        const struct attach_room *room = attach->rooms[i];

        if (room->sub && (!room->has_after || room->reset) && poll->moved_count < HELLO_ROOMS_MAX)
            poll_moved(stream, str_of(room->room_id), room->valid);
    }
    http_reply_on_gone(poll->reply, on_gone, stream);
}

void poll_add(struct stream *stream, struct str json)
{
    buf_add_str(&stream->poll->more, json);
    buf_char(&stream->poll->more, '\n');
}

void poll_moved(struct stream *stream, struct str room_id, struct cursor cursor)
{
    struct poll *poll = stream->poll;

    for (size_t i = 0; i < poll->moved_count; i++)
        if (str_is(room_id, poll->moved[i].room_id)) {
            poll->moved[i].cursor = cursor;
            return;
        }
    if (poll->moved_count == poll->moved_capacity) {
        poll->moved_capacity = poll->moved_capacity ? poll->moved_capacity * 2 : 4;
        poll->moved = xrealloc(poll->moved, poll->moved_capacity * sizeof *poll->moved);
    }
    poll->moved[poll->moved_count].cursor = cursor;
    memset(poll->moved[poll->moved_count].room_id, 0, sizeof poll->moved[0].room_id);
    memcpy(poll->moved[poll->moved_count++].room_id, room_id.p, room_id.n);
}

static void write_lines(struct buf *out, struct str lines, bool *first)
{
    while (lines.n) {
        const char *end = memchr(lines.p, '\n', lines.n);
        size_t n = end ? (size_t)(end - lines.p) : lines.n;

        if (!*first)
            buf_char(out, ',');
        *first = false;
        buf_add(out, lines.p, n);
        lines.p += n + (end != NULL);
        lines.n -= n + (end != NULL);
    }
}

static void write_events(const struct stream *stream, struct buf *out)
{
    bool first = true;

    write_lines(out, buf_str(&stream->poll->more), &first);
    for (uint32_t i = 0; i < stream->item_count; i++)
        write_lines(out, bytes_str(stream->items[i].bytes), &first);
}

static void write_after(const struct stream *stream, struct buf *out)
{
    const struct poll *poll = stream->poll;
    char text[CURSOR_TEXT_MAX];

    for (size_t i = 0; i < poll->moved_count; i++) {
        cursor_write(text, poll->moved[i].cursor);
        buf_printf(out, "%s\"%s@%s\"", i ? "," : "", poll->moved[i].room_id, text);
    }
    if (poll->tell_time) {
        /* As long as some room is behind, the time from which it resumed stays the promise. */
        bool complete = stream_complete_ms(stream) != 0 || !poll->resume_ms;

        buf_printf(
            out, "%s\"~@%" PRIu64 "\"", poll->moved_count ? "," : "", complete ? poll->began_ms : poll->resume_ms);
    }
}

void poll_flush(struct stream *stream)
{
    struct poll *poll = stream->poll;
    struct http_reply *reply = poll->reply;
    struct buf json = {0};

    if (stream->item_count == 0 && !poll->over)
        return;
    if (stream->item_count == 0 && poll->err) {
        enum err err = poll->err;
        char *why = poll->why;

        poll->why = NULL;
        stream_free(stream);
        http_reply_error(reply, err, NULL, why ? "%s" : NULL, why);
        free(why);
        return;
    }
    buf_text(&json, "{\"events\":[");
    write_events(stream, &json);
    buf_text(&json, "],\"after\":[");
    write_after(stream, &json);
    buf_text(&json, "]}");
    presence_poll_over(stream, poll->err == ERR_FORBIDDEN);
    stream_free(stream);
    http_reply_json(reply, 200, buf_str(&json));
    buf_clear(&json);
}

/* Who calls may still be busy with the stream: it goes at the end of the turn. */
void poll_end(struct stream *stream, enum err err, const char *why)
{
    stream->poll->over = true;
    stream->poll->err = err;
    free(stream->poll->why);
    stream->poll->why = why ? xstrdup(why) : NULL;
    list_remove(&stream->poll->hold_link);
    if (list_empty(&stream->dirty_link))
        list_push_back(&stream->proxy->dirty_streams, &stream->dirty_link);
}

void poll_due(struct proxy *proxy)
{
    while (!list_empty(&proxy->holding)) {
        struct poll *poll = list_entry(proxy->holding.next, struct poll, hold_link);

        if ((int32_t)(proxy_now(proxy) - poll->due) < 0)
            return;
        poll_end(poll->stream, ERR_OK, NULL);
    }
}

static void on_gone(void *arg)
{
    struct stream *stream = arg;
    struct http_reply *reply = stream->poll->reply;

    stream_free(stream);
    http_reply_error(reply, ERR_UNAVAILABLE, NULL, NULL); /* goes nowhere, but is owed */
}

void poll_free(struct stream *stream)
{
    struct poll *poll = stream->poll;

    if (!poll)
        return;
    list_remove(&poll->hold_link);
    free(poll->moved);
    buf_clear(&poll->more);
    free(poll->why);
    free(poll);
    stream->poll = NULL;
}
