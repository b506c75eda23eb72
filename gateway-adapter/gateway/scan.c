/*
 * `migrate` among what passes: instances send it as a WebSocket frame, or a line of SSE, of its own. Inside of other
 * events the same bytes may stand as somebody's content, so only beginnings are looked at.
 */
#include "relay.h"

#include <string.h>

#include "room/base/ws_frame.h"

#define HELD_MAX_BYTES (1u << 20) /* an event is smaller by far */

static const char mark[] = "{\"type\":\"migrate\"";

static bool is_migrate(struct str event)
{
    return event.n >= sizeof mark - 1 && memcmp(event.p, mark, sizeof mark - 1) == 0;
}

void relay_put_frame(struct buf *out, struct str text)
{
    unsigned char header[WS_HEADER_MAX];

    buf_add(out, header, ws_header_write(header, WS_TEXT, text.n));
    buf_add_str(out, text);
}

/* RFC 6455 5.2. A frame of an instance is never masked. 0: more bytes are needed; -1: not a frame of ours. */
static int frame_header(struct str bytes, uint64_t *payload)
{
    const unsigned char *p = (const unsigned char *)bytes.p;
    int n, length_bytes;

    if (bytes.n < 2)
        return 0;
    if (p[1] & 0x80)
        return -1;
    length_bytes = p[1] == 126 ? 2 : p[1] == 127 ? 8 : 0;
    n = 2 + length_bytes;
    if (bytes.n < (size_t)n)
        return 0;
    *payload = p[1];
    if (length_bytes) {
        *payload = 0;
        for (int i = 0; i < length_bytes; i++)
            *payload = *payload << 8 | p[2 + i];
    }
    return *payload > INT64_MAX ? -1 : n;
}

/* How many bytes at the front are done with; the rest waits for more. -1: nonsense. */
static int64_t scan_frames(
    struct relay_scan *scan, const struct relays *relays, struct str account, struct str bytes, struct buf *out)
{
    size_t at = 0;

    for (;;) {
        struct str rest;
        uint64_t payload, step = bytes.n - at < scan->passing ? bytes.n - at : scan->passing;
        int n;

        buf_add(out, bytes.p + at, (size_t)step);
        scan->passing -= step;
        at += (size_t)step;
        rest = (struct str){bytes.p + at, bytes.n - at};
        n = scan->passing || !rest.n ? 0 : frame_header(rest, &payload);
        if (n <= 0)
            return n < 0 ? -1 : (int64_t)at;
        if (payload >= sizeof mark - 1 && (unsigned char)rest.p[0] == 0x81) {
            if (rest.n < (size_t)n + sizeof mark - 1)
                return (int64_t)at;
            if (is_migrate((struct str){rest.p + n, rest.n - (size_t)n})) {
                struct buf event = {0};

                if (payload > HELD_MAX_BYTES)
                    return -1;
                if (rest.n < (size_t)n + payload)
                    return (int64_t)at;
                relays->migrate(relays->arg, account, (struct str){rest.p + n, (size_t)payload}, &event);
                relay_put_frame(out, buf_str(&event));
                buf_clear(&event);
                at += (size_t)n + (size_t)payload;
                continue;
            }
        }
        scan->passing = (uint64_t)n + payload;
    }
}

static int64_t scan_lines(const struct relays *relays, struct str account, struct str bytes, struct buf *out)
{
    static const char field[] = "data: ";
    size_t at = 0;
    const char *end;

    while (at < bytes.n && (end = memchr(bytes.p + at, '\n', bytes.n - at))) {
        struct str line = {bytes.p + at, (size_t)(end - bytes.p) - at};
        size_t skip = line.n > sizeof field - 1 && !memcmp(line.p, field, sizeof field - 1) ? sizeof field - 1 : 0;
        struct str event = {line.p + skip, line.n - skip};

        if (is_migrate(event)) {
            buf_add(out, line.p, skip);
            relays->migrate(relays->arg, account, event, out);
            buf_char(out, '\n');
        } else {
            buf_add(out, line.p, line.n + 1);
        }
        at += line.n + 1;
    }
    return (int64_t)at;
}

bool relay_scan(
    struct relay_scan *scan, const struct relays *relays, struct str account, struct str bytes, struct buf *out)
{
    struct str all = bytes;
    int64_t done;

    if (scan->held.n) {
        buf_add_str(&scan->held, bytes);
        all = buf_str(&scan->held);
    }
    done = scan->websocket ? scan_frames(scan, relays, account, all, out) : scan_lines(relays, account, all, out);
    if (done < 0)
        return false;
    if (scan->held.n)
        buf_consume(&scan->held, (size_t)done);
    else if ((size_t)done < all.n)
        buf_add(&scan->held, all.p + done, all.n - (size_t)done);
    if (!scan->held.n)
        buf_clear(&scan->held); /* an idle relay holds nothing */
    return scan->held.n <= HELD_MAX_BYTES;
}

void relay_scan_clear(struct relay_scan *scan)
{
    buf_clear(&scan->held);
}

/* ------------------------------------------------------------------------------------- what a client sends */

#define MESSAGE_MAX_BYTES (256u << 10) /* the instance takes 128 KiB and says so itself */

static void unmask(struct buf *text, const char *payload, size_t n, const unsigned char mask[4])
{
    char *at = buf_reserve(text, n);

    for (size_t i = 0; i < n; i++)
        at[i] = (char)((unsigned char)payload[i] ^ mask[i & 3]);
    text->n += n;
}

/* RFC 6455 5.2, 5.4: a client's frames are masked; control frames may stand between the frames of a message. */
static enum relay_step next_frame(struct relay_upstream *up, size_t *n)
{
    const unsigned char *p = (const unsigned char *)up->held.p + up->message_bytes;
    size_t have = up->held.n - up->message_bytes, header = 6;
    uint64_t payload;
    unsigned opcode;

    if (have < 2)
        return RELAY_MORE;
    opcode = p[0] & 15u;
    if (!(p[1] & 0x80))
        return RELAY_NONSENSE;
    payload = p[1] & 127u;
    header += payload == 126 ? 2 : payload == 127 ? 8 : 0;
    if (have < header)
        return RELAY_MORE;
    if (header > 6) {
        payload = 0;
        for (size_t i = 2; i < header - 4; i++)
            payload = payload << 8 | p[i];
    }
    if (payload > MESSAGE_MAX_BYTES || up->text.n + payload > MESSAGE_MAX_BYTES)
        return RELAY_NONSENSE;
    if (have < header + payload)
        return RELAY_MORE;
    if (opcode >= 8 && !up->in_message) {
        *n = header + (size_t)payload;
        return RELAY_PASS;
    }
    if (opcode < 8) {
        unmask(&up->text, (const char *)p + header, (size_t)payload, p + header - 4);
        up->in_message = !(p[0] & 0x80);
    }
    up->message_bytes += header + (size_t)payload;
    *n = up->message_bytes;
    return RELAY_MESSAGE;
}

/* A message may come in very many frames: a loop, so that they cost no stack. */
enum relay_step relay_upstream_step(struct relay_upstream *up, size_t *n)
{
    enum relay_step step;

    do
        step = next_frame(up, n);
    while (step == RELAY_MESSAGE && up->in_message);
    return step;
}

void relay_upstream_clear(struct relay_upstream *up)
{
    buf_clear(&up->held);
    buf_clear(&up->text);
    up->message_bytes = 0;
    up->in_message = false;
}
