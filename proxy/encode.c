/*
 * Events as bytes on the wire. One event is the same JSON on every transport; what is around it differs:
 *   ENC_WS         one text frame, events separated by \n
 *   ENC_LINES      a line each (NDJSON; polls collect these too)
 *   ENC_SSE_ONE    data: line each, id: its position
 *   ENC_SSE_MANY   the same, id: ~<ms>, the server time up to which all rooms of the stream were complete
 *   ENC_SSE_PLAIN  without id: some room of the stream is behind, so no such time may be told
 */
#include "core.h"

#include <inttypes.h>
#include <stdio.h>

#define SSE_ID_MAX (4 + ROOM_ID_MAX_BYTES + 1 + CURSOR_TEXT_MAX + 1)

struct chunk chunk_cut(struct entry *const *entries, size_t count)
{
    struct chunk chunk = {.before = entries[0]->seq - 1, .entries = entries};

    while (chunk.count < count && (chunk.count == 0 || chunk.bytes + entries[chunk.count]->n <= CHUNK_BYTES))
        chunk.bytes += entries[chunk.count++]->n + 1;
    chunk.upto = (struct cursor){entries[chunk.count - 1]->epoch, entries[chunk.count - 1]->seq};
    return chunk;
}

void chunk_clear(struct chunk *chunk)
{
    for (int i = 0; i < ENCODINGS; i++)
        bytes_drop(chunk->encoded[i]);
    memset(chunk->encoded, 0, sizeof chunk->encoded);
}

static char *add(char *at, const void *p, size_t n)
{
    memcpy(at, p, n);
    return at + n;
}

static struct bytes *frame_entries(const struct chunk *chunk)
{
    unsigned char header[WS_HEADER_MAX];
    size_t payload = chunk->bytes - 1; /* each was counted with its separator */
    size_t header_bytes = ws_header_write(header, WS_TEXT, payload);
    struct bytes *bytes = bytes_room(header_bytes + payload);
    char *at = add(bytes->p, header, header_bytes);

    for (size_t i = 0; i < chunk->count; i++) {
        if (i)
            *at++ = '\n';
        at = add(at, chunk->entries[i]->json, chunk->entries[i]->n);
    }
    return bytes;
}

static struct bytes *line_entries(const struct chunk *chunk)
{
    struct bytes *bytes = bytes_room(chunk->bytes);
    char *at = bytes->p;

    for (size_t i = 0; i < chunk->count; i++) {
        at = add(at, chunk->entries[i]->json, chunk->entries[i]->n);
        *at++ = '\n';
    }
    return bytes;
}

static struct bytes *sse_entries(
    const struct chunk *chunk, enum encoding encoding, struct str room_id, uint64_t complete_ms)
{
    struct buf text = {0};
    struct bytes *bytes;
    char cursor[CURSOR_TEXT_MAX];

    buf_reserve(&text, chunk->bytes + chunk->count * (SSE_ID_MAX + 8));
    for (size_t i = 0; i < chunk->count; i++) {
        const struct entry *entry = chunk->entries[i];

        if (encoding == ENC_SSE_ONE) {
            size_t n = cursor_write(cursor, (struct cursor){entry->epoch, entry->seq});

            buf_add(&text, "id: ", 4);
            buf_add_str(&text, room_id);
            buf_char(&text, '@');
            buf_add(&text, cursor, n);
            buf_char(&text, '\n');
        } else if (encoding == ENC_SSE_MANY && i + 1 == chunk->count) {
            buf_add(&text, "id: ~", 5);
            buf_u64(&text, complete_ms);
            buf_char(&text, '\n');
        }
        buf_add(&text, "data: ", 6);
        buf_add_str(&text, entry_json(entry));
        buf_add(&text, "\n\n", 2);
    }
    bytes = bytes_new(text.p, text.n);
    buf_clear(&text);
    return bytes;
}

struct bytes *chunk_encode(struct chunk *chunk, enum encoding encoding, struct str room_id, uint64_t complete_ms)
{
    if (!chunk->encoded[encoding])
        chunk->encoded[encoding] = encoding == ENC_WS      ? frame_entries(chunk)
                                   : encoding == ENC_LINES ? line_entries(chunk)
                                                           : sse_entries(chunk, encoding, room_id, complete_ms);
    return chunk->encoded[encoding];
}

struct bytes *ws_frame_bytes(uint8_t opcode, struct str payload)
{
    unsigned char header[WS_HEADER_MAX];
    size_t n = ws_header_write(header, opcode, payload.n);
    struct bytes *bytes = bytes_room(n + payload.n);

    add(bytes->p, header, n);
    if (payload.n)
        memcpy(bytes->p + n, payload.p, payload.n);
    return bytes;
}

struct bytes *event_encode(enum encoding encoding, struct str json, struct str id)
{
    struct buf text = {0};
    struct bytes *bytes;

    if (encoding == ENC_WS)
        return ws_frame_bytes(WS_TEXT, json);
    if (encoding == ENC_LINES) {
        buf_add_str(&text, json);
        buf_char(&text, '\n');
    } else {
        if (id.n) {
            buf_add(&text, "id: ", 4);
            buf_add_str(&text, id);
            buf_char(&text, '\n');
        }
        for (size_t at = 0; at < json.n;) { /* several lines are several events */
            const char *end = memchr(json.p + at, '\n', json.n - at);
            size_t n = end ? (size_t)(end - json.p) - at : json.n - at;

            buf_add(&text, "data: ", 6);
            buf_add(&text, json.p + at, n);
            buf_add(&text, "\n\n", 2);
            at += n + 1;
        }
    }
    bytes = bytes_new(text.p, text.n);
    buf_clear(&text);
    return bytes;
}

void event_head(struct buf *out, struct str room_id, struct cursor head, uint64_t durable_seq)
{
    char text[CURSOR_TEXT_MAX];

    cursor_write(text, head);
    buf_printf(
        out, "\"room_id\":\"%.*s\",\"head\":\"%s\",\"durable_seq\":%" PRIu64, STR_ARG(room_id), text, durable_seq);
}

void event_durable(struct buf *out, struct str room_id, uint64_t seq)
{
    buf_printf(out, "{\"type\":\"durable\",\"room_id\":\"%.*s\",\"seq\":%" PRIu64 "}", STR_ARG(room_id), seq);
}

void event_error(struct buf *out, enum err err, const char *message, uint32_t retry_after_ms, struct str req_id)
{
    buf_printf(out, "{\"type\":\"error\",\"code\":\"%s\",\"message\":", err_code(err));
    buf_json_string(out, str_of(message && *message ? message : err_sentence(err)));
    if (retry_after_ms)
        buf_printf(out, ",\"retry_after_ms\":%" PRIu32, retry_after_ms);
    if (req_id.n) {
        buf_text(out, ",\"req_id\":");
        buf_add_str(out, req_id);
    }
    buf_char(out, '}');
}
