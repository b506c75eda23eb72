/* What WebSocket clients send: frames become messages, control frames are answered. Nothing is kept for a connection
 * between whole messages. */
#include "core.h"

#include <stdlib.h>

static void control_frame(struct stream *stream, const struct ws_frame *frame);
static void data_frame(struct stream *stream, const struct ws_frame *frame);

/* Whoever floods is cut: nobody needs a thousand frames a second on one connection. */
static bool too_many(struct stream *stream)
{
    uint32_t now = proxy_now(stream->proxy);

    if (now - stream->frames_at >= 1000) {
        stream->frames_at = now;
        stream->frames = stream->requests = 0;
    }
    return ++stream->frames > CLIENT_FRAMES_PER_S;
}

size_t ws_read(void *owner, const char *p, size_t n)
{
    struct stream *stream = owner;
    size_t used = 0;

    stream->heard_at = proxy_now(stream->proxy);
    list_remove(&stream->partial_link);
    while (used < n) {
        struct ws_frame frame;
        int64_t length;

        if (stream->no_more_input) /* RFC 6455 5.5.1: nothing counts behind the close frame */
            return n;
        length = ws_frame_read(&frame, p + used, n - used, (size_t)stream->proxy->config->stream_frame_max_bytes);
        if (length == 0)
            break;
        if (length > 0 && too_many(stream))
            length = -CLOSE_POLICY;
        if (length < 0) {
            stream->no_more_input = true;
            stream_end(stream, (uint16_t)-length, ERR_OK, NULL);
            return n;
        }
        used += (size_t)length;
        if (frame.opcode >= WS_CLOSE)
            control_frame(stream, &frame);
        else if (stream->state == STREAM_LIVE) /* while closing, only the close frame matters */
            data_frame(stream, &frame);
    }
    if (used < n && stream->state == STREAM_LIVE) {
        stream->partial_at = proxy_now(stream->proxy);
        list_push_back(&stream->proxy->partial, &stream->partial_link);
    }
    return used;
}

static void answer_ping(struct stream *stream, const struct ws_frame *frame)
{
    char payload[125];
    struct bytes *pong;

    if (stream->pong_waits || stream->state != STREAM_LIVE)
        return; /* 5.5.3: one pong for several pings is enough */
    stream->pong_waits = true;
    ws_unmask(payload, frame);
    pong = ws_frame_bytes(WS_PONG, (struct str){payload, frame->n});
    stream_push(stream, pong, NULL, ITEM_KEEP);
    bytes_drop(pong);
}

static void control_frame(struct stream *stream, const struct ws_frame *frame)
{
    uint16_t code, wrong;

    if (frame->opcode == WS_PING)
        answer_ping(stream, frame);
    if (frame->opcode != WS_CLOSE)
        return;
    stream->no_more_input = true;
    wrong = ws_close_read(frame, &code);
    if (stream->state == STREAM_CLOSING) { /* the answer to ours */
        if (list_empty(&stream->dirty_link))
            list_push_back(&stream->proxy->dirty_streams, &stream->dirty_link);
        return;
    }
    stream_end(stream, wrong ? wrong : code == 1005 ? CLOSE_NORMAL : code, ERR_OK, NULL);
}

static void data_frame(struct stream *stream, const struct ws_frame *frame)
{
    bool complete;
    uint16_t wrong;
    struct ws_message *message;

    if (frame->opcode == WS_BINARY) {
        stream->no_more_input = true;
        stream_end(stream, stream->message ? CLOSE_PROTOCOL : CLOSE_NOT_TEXT, ERR_OK, NULL);
        return;
    }
    wrong = ws_message_add(&stream->message, frame, (size_t)stream->proxy->config->stream_frame_max_bytes, &complete);
    if (wrong) {
        stream->no_more_input = true;
        stream_end(stream, wrong, ERR_OK, NULL);
        return;
    }
    if (!complete)
        return;
    message = stream->message;
    stream->message = NULL;
    client_frame(stream, buf_str(&message->text));
    ws_message_free(message);
}
