/* One connection to one broker; see adapter_link.h. */
#include "adapter_link.h"

#include <amqp.h>
#include <amqp_framing.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    LOGIN_MS = 3000,
    HEARTBEAT_S =
        4, /* silent for two of them = dead: below the deadline of a message, so that another broker gets it */
    CHANNEL = 1,
    FRAME_EXTRA = 8, /* 7 in front of the payload, the end byte behind it */
    FRAME_MIN_MAX = 4096,
    FRAME_MAX_MAX = 131072,
    METHOD = 1,
    HEADER = 2,
    BODY = 3,
    HEARTBEAT = 8,
    FRAME_END = 0xce,
    CORRELATION_BYTES = 16
};
enum { EXPECT_METHOD, EXPECT_HEADER, EXPECT_BODY };

static void link_connected(void *owner);
static void link_received(void *owner);
static void link_lost(void *owner, const char *why);
static const struct adapter_conn_events conn_events = {link_connected, link_received, link_lost};

/* ------------------------------------------------------------------ numbers */

static uint32_t load(const unsigned char *p, int n)
{
    uint32_t value = 0;

    while (n--)
        value = value << 8 | *p++;
    return value;
}

static uint64_t load_u64(const unsigned char *p)
{
    return (uint64_t)load(p, 4) << 32 | load(p + 4, 4);
}

static unsigned char *put(unsigned char *p, uint64_t value, int n)
{
    for (int i = n - 1; i >= 0; i--)
        *p++ = (unsigned char)(value >> (8 * i));
    return p;
}

static unsigned char *put_short(unsigned char *p, const char *text)
{
    size_t n = strlen(text);

    p = put(p, n, 1);
    memcpy(p, text, n);
    return p + n;
}

/* ------------------------------------------------------------------ frames out */

static unsigned char *frame_begin(struct adapter_buf *out, size_t payload_max)
{
    char *p = adapter_buf_reserve(out, payload_max + FRAME_EXTRA);

    return p ? (unsigned char *)p + 7 : NULL;
}

static void frame_end(struct adapter_buf *out, unsigned type, unsigned channel, unsigned char *end)
{
    unsigned char *start = (unsigned char *)out->p + out->n;
    size_t size = (size_t)(end - start) - 7;

    put(put(put(start, type, 1), channel, 2), size, 4);
    *end = FRAME_END;
    out->n += size + FRAME_EXTRA;
}

static void add_method(struct adapter_link *link, unsigned channel, amqp_method_number_t method, void *fields)
{
    struct adapter_buf *out = &link->conn->out;
    size_t room = FRAME_MIN_MAX - FRAME_EXTRA;
    unsigned char *p = frame_begin(out, room);
    int n;

    if (!p)
        return;
    p = put(p, method, 4);
    n = amqp_encode_method(method, fields, (amqp_bytes_t){.len = room - 4, .bytes = p});
    if (n < 0)
        out->failed = true; /* no name of ours is as long as that */
    else
        frame_end(out, METHOD, channel, p + n);
}

uint64_t adapter_link_publish(struct adapter_link *link, const char *routing_key, const char *message_id,
    bool transient, const char *body, size_t n)
{
    /* Property flags of class basic: content-type, delivery-mode, correlation-id, message-id. */
    unsigned flags = 1u << 15 | 1u << 12 | 1u << 10 | (*message_id ? 1u << 7 : 0);
    struct adapter_buf *out = &link->conn->out;
    unsigned char *p = frame_begin(out, 4 + 2 + 2 * 256 + 1);
    char correlation[CORRELATION_BYTES + 1];
    size_t most = link->frame_max - FRAME_EXTRA;

    if (!p)
        return 0;
    p = put(put(p, AMQP_BASIC_PUBLISH_METHOD, 4), 0, 2);
    p = put_short(put_short(p, "roomd.room"), routing_key);
    frame_end(out, METHOD, CHANNEL, put(p, 1, 1)); /* mandatory */
    p = frame_begin(out, FRAME_MIN_MAX - FRAME_EXTRA);
    if (!p)
        return 0;
    /* A basic.return has no tag; this property comes back with it. */
    snprintf(correlation, sizeof(correlation), "%016llx", (unsigned long long)(link->last_tag + 1));
    p = put(put(put(put(p, AMQP_BASIC_CLASS, 2), 0, 2), n, 8), flags, 2);
    p = put(put_short(p, "application/json"), transient ? 1 : 2, 1);
    p = put_short(p, correlation);
    if (*message_id)
        p = put_short(p, message_id);
    frame_end(out, HEADER, CHANNEL, p);
    while (n) {
        size_t part = n < most ? n : most;

        p = frame_begin(out, part);
        if (!p)
            return 0;
        memcpy(p, body, part);
        frame_end(out, BODY, CHANNEL, p + part);
        body += part;
        n -= part;
    }
    return ++link->last_tag;
}

size_t adapter_link_unsent(const struct adapter_link *link)
{
    return link->conn->out.n;
}

void adapter_link_flush(struct adapter_link *link)
{
    adapter_conn_flush(link->conn);
}

/* ------------------------------------------------------------------ life */

struct adapter_link *adapter_link_open(struct roomd_client *client, struct adapter_publisher *publisher,
    const struct adapter_link_events *events, const struct adapter_address *address, size_t index)
{
    struct adapter_link *link = calloc(1, sizeof(*link));

    if (!link)
        return NULL;
    link->client = client;
    link->publisher = publisher;
    link->events = events;
    link->address = address;
    link->index = index;
    link->frame_max = FRAME_MIN_MAX;
    link->deadline = client->now + LOGIN_MS;
    link->conn = adapter_conn_open(client, address, &conn_events, link);
    if (!link->conn) {
        free(link);
        return NULL;
    }
    return link;
}

void adapter_link_free(struct adapter_link *link)
{
    amqp_connection_close_t bye = {.reply_code = 200, .reply_text = amqp_cstring_bytes("bye")};

    if (link->up && !link->conn->out.failed) {
        add_method(link, 0, AMQP_CONNECTION_CLOSE_METHOD, &bye);
        adapter_conn_flush(link->conn);
    }
    adapter_conn_drop(link->conn);
    free(link);
}

static void link_break(struct adapter_link *link, const char *why)
{
    snprintf(link->why, sizeof(link->why), "%s", why);
    link->events->broken(link);
}

static void link_lost(void *owner, const char *why)
{
    link_break(owner, why);
}

static void link_connected(void *owner)
{
    struct adapter_link *link = owner;

    adapter_buf_add(&link->conn->out, "AMQP\0\0\x09\x01", 8);
    adapter_conn_flush(link->conn);
}

void adapter_link_tick(struct adapter_link *link)
{
    int64_t now = link->client->now;
    unsigned char *p;

    if (!link->up) {
        if (now >= link->deadline)
            link_break(link, "the broker does not answer");
        else
            adapter_conn_tick(link->conn);
        return;
    }
    if (!link->heartbeat_ms)
        return;
    if (now - link->conn->heard >= 2 * link->heartbeat_ms) {
        link_break(link, "the broker fell silent");
        return;
    }
    if (now - link->conn->sent >= link->heartbeat_ms / 2 && link->conn->out.n == 0) {
        p = frame_begin(&link->conn->out, 0);
        if (p)
            frame_end(&link->conn->out, HEARTBEAT, 0, p);
        adapter_conn_flush(link->conn);
    }
}

/* ------------------------------------------------------------------ log-in */

static amqp_table_entry_t text_entry(const char *key, const char *value)
{
    return (amqp_table_entry_t){.key = amqp_cstring_bytes(key),
        .value = {.kind = AMQP_FIELD_KIND_UTF8, .value.bytes = amqp_cstring_bytes(value)}};
}

static amqp_table_entry_t true_entry(const char *key)
{
    return (amqp_table_entry_t){
        .key = amqp_cstring_bytes(key), .value = {.kind = AMQP_FIELD_KIND_BOOLEAN, .value.boolean = 1}};
}

static void link_log_in(struct adapter_link *link)
{
    amqp_table_entry_t can[] = {
        true_entry("publisher_confirms"), true_entry("basic.nack"), true_entry("connection.blocked")};
    amqp_table_entry_t properties[] = {
        text_entry("product", "roomd_adapter"), text_entry("version", ROOMD_VERSION), text_entry("capabilities", "")};
    amqp_connection_start_ok_t ok = {.client_properties = {countof(properties), properties},
        .mechanism = amqp_cstring_bytes("PLAIN"),
        .locale = amqp_cstring_bytes("en_US")};
    size_t user_n = strlen(link->address->user), password_n = strlen(link->address->password);
    char secret[2 * (ADAPTER_PART_MAX_BYTES + 1)];

    properties[2].value.kind = AMQP_FIELD_KIND_TABLE;
    properties[2].value.value.table = (amqp_table_t){countof(can), can};
    secret[0] = '\0';
    memcpy(secret + 1, link->address->user, user_n + 1);
    memcpy(secret + user_n + 2, link->address->password, password_n);
    ok.response = (amqp_bytes_t){.len = user_n + password_n + 2, .bytes = secret};
    add_method(link, 0, AMQP_CONNECTION_START_OK_METHOD, &ok);
    OPENSSL_cleanse(secret, sizeof(secret));
}

static bool link_tune(struct adapter_link *link, const unsigned char *p, size_t n)
{
    amqp_connection_open_t open = {.virtual_host = amqp_cstring_bytes(link->address->vhost)};
    amqp_connection_tune_ok_t ok = {.channel_max = CHANNEL};
    uint32_t frame_max, heartbeat;

    if (n < 8)
        return false;
    frame_max = load(p + 2, 4);
    heartbeat = load(p + 6, 2);
    link->frame_max = frame_max == 0 || frame_max > FRAME_MAX_MAX ? FRAME_MAX_MAX : frame_max;
    if (link->frame_max < FRAME_MIN_MAX)
        return false;
    heartbeat = heartbeat && heartbeat < HEARTBEAT_S ? heartbeat : HEARTBEAT_S;
    link->heartbeat_ms = (int64_t)heartbeat * 1000;
    ok.frame_max = link->frame_max;
    ok.heartbeat = (uint16_t)heartbeat;
    add_method(link, 0, AMQP_CONNECTION_TUNE_OK_METHOD, &ok);
    add_method(link, 0, AMQP_CONNECTION_OPEN_METHOD, &open);
    return true;
}

/* "403 ACCESS_REFUSED - …" out of a close method: code, then a short text. */
static void closed_by_broker(struct adapter_link *link, const unsigned char *p, size_t n, unsigned *code)
{
    size_t text_n = n > 3 ? p[2] : 0;

    *code = n >= 2 ? load(p, 2) : 0;
    if (text_n + 3 > n)
        text_n = 0;
    snprintf(link->why, sizeof(link->why), "the broker closed: %u %.*s", *code, (int)text_n, (const char *)p + 3);
}

/* ------------------------------------------------------------------ frames in: false = the link broke and is gone */

static bool bad_frame(struct adapter_link *link, const char *why)
{
    link_break(link, why);
    return false;
}

static bool control_method(struct adapter_link *link, uint32_t method, const unsigned char *p, size_t n)
{
    amqp_channel_open_t open = {0};
    unsigned code;

    switch (method) {
    case AMQP_CONNECTION_START_METHOD:
        link_log_in(link);
        break;
    case AMQP_CONNECTION_TUNE_METHOD:
        if (!link_tune(link, p, n))
            return bad_frame(link, "the broker asks for frames that are too small");
        break;
    case AMQP_CONNECTION_OPEN_OK_METHOD:
        add_method(link, CHANNEL, AMQP_CHANNEL_OPEN_METHOD, &open);
        break;
    case AMQP_CONNECTION_BLOCKED_METHOD:
        link->blocked = true;
        return true;
    case AMQP_CONNECTION_UNBLOCKED_METHOD:
        link->blocked = false;
        adapter_client_kick(link->client);
        return true;
    case AMQP_CONNECTION_CLOSE_METHOD:
        closed_by_broker(link, p, n, &code);
        link->events->broken(link);
        return false;
    default:
        return bad_frame(link, "the broker sends a method out of turn");
    }
    adapter_conn_flush(link->conn);
    return true;
}

static bool channel_method(struct adapter_link *link, uint32_t method, const unsigned char *p, size_t n)
{
    amqp_confirm_select_t select = {0};
    unsigned code;

    switch (method) {
    case AMQP_BASIC_ACK_METHOD:
    case AMQP_BASIC_NACK_METHOD:
        if (n < 9)
            return bad_frame(link, "a confirm that is too short");
        link->events->confirmed(link, load_u64(p), p[8] & 1, method == AMQP_BASIC_ACK_METHOD);
        return true;
    case AMQP_BASIC_RETURN_METHOD:
        link->expects = EXPECT_HEADER;
        return true;
    case AMQP_CHANNEL_OPEN_OK_METHOD:
        add_method(link, CHANNEL, AMQP_CONFIRM_SELECT_METHOD, &select);
        adapter_conn_flush(link->conn);
        return true;
    case AMQP_CONFIRM_SELECT_OK_METHOD:
        link->up = true;
        link->events->up(link);
        return true;
    case AMQP_CHANNEL_CLOSE_METHOD:
        closed_by_broker(link, p, n, &code);
        link->events->refused(link, code);
        link->events->broken(link);
        return false;
    default:
        return bad_frame(link, "the broker sends a method out of turn on the channel");
    }
}

/* The correlation-id out of a returned message's header: our tag, 0 when it is not there. */
static uint64_t returned_tag(const unsigned char *p, size_t n)
{
    unsigned flags = n >= 14 ? load(p + 12, 2) : 0;
    char hex[CORRELATION_BYTES + 1], *end;
    size_t at = 14;

    /* content-type, content-encoding, (headers), delivery-mode, priority, correlation-id: those we wrote,
     * and no other */
    if (!(flags & 1u << 10) || flags & (1u << 14 | 1u << 13 | 1u << 11))
        return 0;
    if (flags & 1u << 15)
        at += at < n ? 1 + (size_t)p[at] : 1;
    at += flags >> 12 & 1;
    if (at + 1 + CORRELATION_BYTES > n || p[at] != CORRELATION_BYTES)
        return 0;
    memcpy(hex, p + at + 1, CORRELATION_BYTES);
    hex[CORRELATION_BYTES] = '\0';
    return strtoull(hex, &end, 16);
}

static bool content_frame(struct adapter_link *link, unsigned type, const unsigned char *p, size_t n)
{
    uint64_t tag;

    if (type == HEADER && link->expects == EXPECT_HEADER && n >= 14) {
        link->returned_left = load_u64(p + 4);
        link->expects = link->returned_left ? EXPECT_BODY : EXPECT_METHOD;
        tag = returned_tag(p, n);
        if (tag)
            link->events->returned(link, tag);
        return true;
    }
    if (type == BODY && link->expects == EXPECT_BODY && n <= link->returned_left) {
        link->returned_left -= n;
        if (!link->returned_left)
            link->expects = EXPECT_METHOD;
        return true;
    }
    return bad_frame(link, "the broker sends content out of turn");
}

static bool frame_in(struct adapter_link *link, unsigned type, unsigned channel, const unsigned char *p, size_t n)
{
    if (type == HEARTBEAT)
        return true;
    if (type != METHOD)
        return content_frame(link, type, p, n);
    if (n < 4 || channel > CHANNEL || (channel == CHANNEL && link->expects != EXPECT_METHOD))
        return bad_frame(link, "the broker sends a frame out of turn");
    if (channel == 0)
        return control_method(link, load(p, 4), p + 4, n - 4);
    return channel_method(link, load(p, 4), p + 4, n - 4);
}

static void link_received(void *owner)
{
    struct adapter_link *link = owner;
    struct adapter_conn *conn = link->conn;
    size_t used = 0;

    for (;;) {
        const unsigned char *p = (const unsigned char *)conn->in.p + used;
        size_t left = conn->in.n - used, size;

        if (left < 7)
            break;
        size = load(p + 3, 4);
        if ((p[0] != METHOD && p[0] != HEADER && p[0] != BODY && p[0] != HEARTBEAT) ||
            size > FRAME_MAX_MAX - FRAME_EXTRA) {
            link_break(link, "this is no AMQP 0-9-1 broker");
            return;
        }
        if (left < size + FRAME_EXTRA)
            break;
        if (p[7 + size] != FRAME_END) {
            link_break(link, "a frame without its end");
            return;
        }
        if (!frame_in(link, p[0], load(p + 1, 2), p + 7, size))
            return;
        used += size + FRAME_EXTRA;
    }
    adapter_buf_consume(&conn->in, used);
}
