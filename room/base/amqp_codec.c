#include "amqp_codec.h"

#include <assert.h>

#define FRAME_END 0xCE

/* Property flags of class basic, in the order of their values. Source: AMQP 0-9-1 specification, 1.8 (XML). */
enum {
    HAS_CONTENT_TYPE = 1 << 15,
    HAS_CONTENT_ENCODING = 1 << 14,
    HAS_HEADERS = 1 << 13,
    HAS_DELIVERY_MODE = 1 << 12,
    HAS_PRIORITY = 1 << 11,
    HAS_CORRELATION_ID = 1 << 10,
    HAS_REPLY_TO = 1 << 9,
    HAS_EXPIRATION = 1 << 8,
    HAS_MESSAGE_ID = 1 << 7,
    HAS_APP_ID = 1 << 3,
    HAS_MORE_FLAGS = 1,
};

/* A reader that remembers whether it was asked for more than there is: one check at the end is enough. */
struct cursor {
    const unsigned char *p;
    size_t n;
    bool short_of;
};

static struct cursor cursor_of(struct str in, size_t skip)
{
    if (in.n < skip)
        return (struct cursor){.short_of = true};
    return (struct cursor){.p = (const unsigned char *)in.p + skip, .n = in.n - skip};
}

static const unsigned char *cursor_take(struct cursor *in, size_t n)
{
    static const unsigned char zeros[8];
    const unsigned char *at = in->p;

    if (in->short_of || in->n < n) {
        in->short_of = true;
        in->n = 0;
        return zeros;
    }
    in->p += n;
    in->n -= n;
    return at;
}

static uint16_t load_u16(const unsigned char *p)
{
    return (uint16_t)(p[0] << 8 | p[1]);
}

static uint32_t load_u32(const unsigned char *p)
{
    return (uint32_t)load_u16(p) << 16 | load_u16(p + 2);
}

static uint64_t load_u64(const unsigned char *p)
{
    return (uint64_t)load_u32(p) << 32 | load_u32(p + 4);
}

static uint8_t cursor_u8(struct cursor *in)
{
    return *cursor_take(in, 1);
}

static struct str cursor_bytes(struct cursor *in, size_t n)
{
    const unsigned char *p = cursor_take(in, n);

    return in->short_of ? (struct str){NULL, 0} : (struct str){(const char *)p, n};
}

static struct str cursor_short(struct cursor *in)
{
    return cursor_bytes(in, cursor_u8(in));
}

static struct str cursor_long(struct cursor *in)
{
    return cursor_bytes(in, load_u32(cursor_take(in, 4)));
}

/* --- reading --- */

ptrdiff_t codec_read_frame(struct str in, uint32_t frame_max, struct codec_frame *frame)
{
    const unsigned char *p = (const unsigned char *)in.p;
    uint32_t size;

    if (in.n == 0)
        return 0;
    if ((p[0] < CODEC_METHOD || p[0] > CODEC_BODY) && p[0] != CODEC_HEARTBEAT)
        return -1;
    if (in.n < 7)
        return 0;
    size = load_u32(p + 3);
    if (size > frame_max - CODEC_FRAME_EXTRA)
        return -1;
    if (in.n < (size_t)size + CODEC_FRAME_EXTRA)
        return 0;
    if (p[7 + size] != FRAME_END)
        return -1;
    frame->type = p[0];
    frame->channel = load_u16(p + 1);
    frame->payload = (struct str){in.p + 7, size};
    return (ptrdiff_t)size + CODEC_FRAME_EXTRA;
}

uint32_t codec_method(struct str payload)
{
    return payload.n < 4 ? 0 : load_u32((const unsigned char *)payload.p);
}

bool codec_read_deliver(struct str payload, struct codec_deliver *deliver)
{
    struct cursor in = cursor_of(payload, 4);

    cursor_short(&in); /* consumer tag: the channel says it already */
    deliver->tag = load_u64(cursor_take(&in, 8));
    deliver->redelivered = cursor_u8(&in) & 1;
    deliver->exchange = cursor_short(&in);
    deliver->routing_key = cursor_short(&in);
    return !in.short_of;
}

bool codec_read_confirm(struct str payload, struct codec_confirm *confirm)
{
    struct cursor in = cursor_of(payload, 4);

    confirm->tag = load_u64(cursor_take(&in, 8));
    confirm->multiple = cursor_u8(&in) & 1;
    return !in.short_of;
}

static void read_properties(struct cursor *in, struct codec_content *content)
{
    unsigned flags = load_u16(cursor_take(in, 2)), more = flags;

    while (more & HAS_MORE_FLAGS)
        more = load_u16(cursor_take(in, 2));
    if (flags & HAS_CONTENT_TYPE)
        content->content_type = cursor_short(in);
    if (flags & HAS_CONTENT_ENCODING)
        content->content_encoding = cursor_short(in);
    if (flags & HAS_HEADERS)
        cursor_long(in);
    if (flags & HAS_DELIVERY_MODE)
        content->delivery_mode = cursor_u8(in);
    if (flags & HAS_PRIORITY)
        cursor_u8(in);
    if (flags & HAS_CORRELATION_ID)
        content->correlation_id = cursor_short(in);
    if (flags & HAS_REPLY_TO)
        content->reply_to = cursor_short(in);
    if (flags & HAS_EXPIRATION)
        cursor_short(in);
    if (flags & HAS_MESSAGE_ID)
        content->message_id = cursor_short(in);
}

bool codec_read_content(struct str payload, struct codec_content *content)
{
    struct cursor in = cursor_of(payload, 0);
    uint16_t class_id = load_u16(cursor_take(&in, 2));
    uint64_t body_bytes;

    cursor_take(&in, 2); /* weight: unused since 0-8 */
    body_bytes = load_u64(cursor_take(&in, 8));
    if (in.short_of || class_id != AMQP_BASIC_CLASS)
        return false;
    *content = (struct codec_content){.body_bytes = body_bytes};
    read_properties(&in, content);
    if (in.short_of)
        *content = (struct codec_content){.body_bytes = body_bytes};
    return true;
}

static bool has_word(struct str text, struct str word)
{
    for (size_t at = 0; at + word.n <= text.n; at++) {
        bool starts = at == 0 || text.p[at - 1] == ' ';
        bool ends = at + word.n == text.n || text.p[at + word.n] == ' ';

        if (starts && ends && memcmp(text.p + at, word.p, word.n) == 0)
            return true;
    }
    return false;
}

bool codec_read_start(struct str payload, bool *plain)
{
    struct cursor in = cursor_of(payload, 4);
    uint16_t version = load_u16(cursor_take(&in, 2));

    cursor_long(&in); /* server properties */
    *plain = has_word(cursor_long(&in), STR("PLAIN"));
    cursor_long(&in); /* locales */
    return !in.short_of && version == (AMQP_PROTOCOL_VERSION_MAJOR << 8 | AMQP_PROTOCOL_VERSION_MINOR);
}

void *codec_decode(struct str payload, amqp_pool_t *pool)
{
    uint32_t method = codec_method(payload);
    void *decoded;

    switch (method) {
    case AMQP_CONNECTION_TUNE_METHOD:
    case AMQP_CONNECTION_CLOSE_METHOD:
    case AMQP_CONNECTION_BLOCKED_METHOD:
    case AMQP_CHANNEL_CLOSE_METHOD:
    case AMQP_QUEUE_DECLARE_OK_METHOD:
        break;
    default:
        return NULL;
    }
    if (amqp_decode_method(method, pool, codec_bytes((struct str){payload.p + 4, payload.n - 4}), &decoded) < 0)
        return NULL;
    return decoded;
}

bool codec_read_hex(struct str text, uint64_t *value)
{
    uint64_t sum = 0;

    if (text.n != CODEC_CORRELATION_BYTES)
        return false;
    for (size_t i = 0; i < text.n; i++) {
        char c = text.p[i];

        if (c >= '0' && c <= '9')
            sum = sum << 4 | (uint64_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            sum = sum << 4 | (uint64_t)(c - 'a' + 10);
        else
            return false;
    }
    *value = sum;
    return true;
}

/* --- writing: each put_ returns where the next byte goes --- */

static unsigned char *put_u8(unsigned char *p, unsigned value)
{
    *p = (unsigned char)value;
    return p + 1;
}

static unsigned char *put_u16(unsigned char *p, unsigned value)
{
    return put_u8(put_u8(p, value >> 8), value);
}

static unsigned char *put_u32(unsigned char *p, uint32_t value)
{
    return put_u16(put_u16(p, value >> 16), value);
}

static unsigned char *put_u64(unsigned char *p, uint64_t value)
{
    return put_u32(put_u32(p, (uint32_t)(value >> 32)), (uint32_t)value);
}

static unsigned char *put_bytes(unsigned char *p, struct str s)
{
    if (s.n)
        memcpy(p, s.p, s.n);
    return p + s.n;
}

static unsigned char *put_short(unsigned char *p, struct str s)
{
    return put_bytes(put_u8(p, (unsigned)s.n), s);
}

/* Room for the frame's first 7 bytes; the payload follows. */
static unsigned char *frame_begin(struct buf *out, size_t payload_max)
{
    return (unsigned char *)buf_reserve(out, payload_max + CODEC_FRAME_EXTRA) + 7;
}

static void frame_finish(struct buf *out, uint8_t type, uint16_t channel, unsigned char *end)
{
    unsigned char *start = (unsigned char *)out->p + out->n;
    size_t size = (size_t)(end - start) - 7;

    put_u32(put_u16(put_u8(start, type), channel), (uint32_t)size);
    put_u8(end, FRAME_END);
    out->n += size + CODEC_FRAME_EXTRA;
}

void codec_add_method(struct buf *out, uint16_t channel, amqp_method_number_t method, void *fields)
{
    size_t room = CODEC_FRAME_MIN_MAX - CODEC_FRAME_EXTRA;
    unsigned char *p = put_u32(frame_begin(out, room), method);
    int n = amqp_encode_method(method, fields, (amqp_bytes_t){.len = room - 4, .bytes = p});

    assert(n >= 0);
    frame_finish(out, CODEC_METHOD, channel, p + n);
}

void codec_add_heartbeat(struct buf *out)
{
    frame_finish(out, CODEC_HEARTBEAT, 0, frame_begin(out, 0));
}

void codec_add_ack(struct buf *out, uint16_t channel, uint64_t tag, bool multiple)
{
    unsigned char *p = frame_begin(out, 13);

    p = put_u32(p, AMQP_BASIC_ACK_METHOD);
    p = put_u64(p, tag);
    p = put_u8(p, multiple);
    frame_finish(out, CODEC_METHOD, channel, p);
}

static size_t headers_bytes(const struct amqp_message *message)
{
    size_t n = 0;

    for (size_t i = 0; i < countof(message->headers) && message->headers[i][0]; i++)
        n += 1 + strlen(message->headers[i][0]) + 5 + strlen(message->headers[i][1]);
    return n;
}

static unsigned char *put_headers(unsigned char *p, const struct amqp_message *message, size_t bytes)
{
    p = put_u32(p, (uint32_t)bytes);
    for (size_t i = 0; i < countof(message->headers) && message->headers[i][0]; i++) {
        struct str value = str_of(message->headers[i][1]);

        p = put_short(p, str_of(message->headers[i][0]));
        p = put_u8(p, AMQP_FIELD_KIND_UTF8);
        p = put_bytes(put_u32(p, (uint32_t)value.n), value);
    }
    return p;
}

static enum err check_lengths(const struct amqp_message *message, size_t headers)
{
    const struct str *names[] = {&message->exchange, &message->routing_key, &message->content_type, &message->reply_to,
        &message->message_id, &message->app_id};

    for (size_t i = 0; i < countof(names); i++) {
        if (names[i]->n > CODEC_NAME_MAX)
            return ERR_BAD_REQUEST;
    }
    for (size_t i = 0; i < countof(message->headers) && message->headers[i][0]; i++) {
        if (strlen(message->headers[i][0]) > CODEC_NAME_MAX)
            return ERR_BAD_REQUEST;
    }
    /* 1,300: the fixed part and five properties, each as long as it may be. */
    return headers > CODEC_FRAME_MIN_MAX - 1300 ? ERR_TOO_LARGE : ERR_OK;
}

enum err codec_add_publish(
    struct buf *out, uint16_t channel, const struct amqp_message *message, size_t *correlation_at)
{
    size_t headers = message->headers[0][0] ? headers_bytes(message) : 0, start = out->n;
    enum err err = check_lengths(message, headers);
    unsigned flags = HAS_DELIVERY_MODE;
    unsigned char *p;

    if (err)
        return err;
    p = put_u32(frame_begin(out, 4 + 2 + 2 * (1 + CODEC_NAME_MAX) + 1), AMQP_BASIC_PUBLISH_METHOD);
    p = put_u16(p, 0);
    p = put_short(put_short(p, message->exchange), message->routing_key);
    p = put_u8(p, correlation_at && !message->transient); /* bit 0: mandatory, when a return can be told */
    frame_finish(out, CODEC_METHOD, channel, p);

    flags |= message->content_type.n ? HAS_CONTENT_TYPE : 0;
    flags |= headers ? HAS_HEADERS : 0;
    flags |= correlation_at ? HAS_CORRELATION_ID : 0;
    flags |= message->reply_to.n ? HAS_REPLY_TO : 0;
    flags |= message->message_id.n ? HAS_MESSAGE_ID : 0;
    flags |= message->app_id.n ? HAS_APP_ID : 0;
    p = put_u16(frame_begin(out, CODEC_FRAME_MIN_MAX - CODEC_FRAME_EXTRA), AMQP_BASIC_CLASS);
    p = put_u64(put_u16(p, 0), message->body.n);
    p = put_u16(p, flags);
    if (flags & HAS_CONTENT_TYPE)
        p = put_short(p, message->content_type);
    if (flags & HAS_HEADERS)
        p = put_headers(p, message, headers);
    p = put_u8(p, message->transient ? 1 : 2);
    if (flags & HAS_CORRELATION_ID) {
        p = put_u8(p, CODEC_CORRELATION_BYTES);
        *correlation_at = (size_t)(p - (unsigned char *)out->p) - start;
        p += CODEC_CORRELATION_BYTES;
    }
    if (flags & HAS_REPLY_TO)
        p = put_short(p, message->reply_to);
    if (flags & HAS_MESSAGE_ID)
        p = put_short(p, message->message_id);
    if (flags & HAS_APP_ID)
        p = put_short(p, message->app_id);
    frame_finish(out, CODEC_HEADER, channel, p);
    return ERR_OK;
}

void codec_set_correlation(char *at, uint64_t tag)
{
    for (int i = CODEC_CORRELATION_BYTES - 1; i >= 0; i--, tag >>= 4)
        at[i] = "0123456789abcdef"[tag & 15];
}

void codec_add_body(struct buf *out, uint16_t channel, uint32_t frame_max, struct str body)
{
    size_t most = frame_max - CODEC_FRAME_EXTRA;

    while (body.n) {
        struct str part = {body.p, body.n < most ? body.n : most};

        frame_finish(out, CODEC_BODY, channel, put_bytes(frame_begin(out, part.n), part));
        body.p += part.n;
        body.n -= part.n;
    }
}
