/* The link: connecting, logging in, heartbeats, coming back; it hands the frames of a channel to the file
 * that owns it. */
#include "amqp_impl.h"

#include "log.h"
#include "ulid.h"

#include <assert.h>
#include <openssl/err.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    TICK_MS = 100,
    LOGIN_MS = 3000,
    GOODBYE_MS = 500,
    RETRY_MIN_MS = 100,
    RETRY_MAX_MS = 2000,
    STEADY_MS = 5000, /* a connection that lived shorter counts as a failed attempt */
    SAY_EVERY = 16,   /* attempts in vain: two or three lines a minute while the broker is away */
};

static void link_connect(uv_timer_t *timer);
static void link_connected(void *owner);
static void link_received(void *owner);
static void link_broken(void *owner, const char *why);
static void link_frame(struct amqp_link *link, const struct codec_frame *frame);
static void link_control(struct amqp_link *link, struct str payload);
static void link_log_in(struct amqp_link *link, struct str payload);
static void link_tune(struct amqp_link *link, struct str payload);
static void link_go_up(struct amqp_link *link);
static void link_tick(uv_timer_t *timer);
static void link_turn(struct amqp_link *link);
static void link_shut(struct amqp_link *link);

static const struct conn_events conn_events = {
    .connected = link_connected, .received = link_received, .broken = link_broken};

/* --- opening --- */

static enum err link_read_settings(struct amqp_link *link, const struct amqp_settings *settings)
{
    const char *ca_file = settings->ca_file ? settings->ca_file : "";
    bool tls = false;
    char bad[256];

    if (amqp_addresses_parse(link->addresses, &link->address_count, settings->urls, bad, sizeof(bad))) {
        log_error("amqp.bad_address", "link=%s address=%s", settings->name, log_quote(str_of(bad)));
        return ERR_BAD_REQUEST;
    }
    for (size_t i = 0; i < link->address_count; i++)
        tls = tls || link->addresses[i].tls;
    if (tls && !(link->tls = conn_tls_new(ca_file))) {
        log_error("amqp.bad_ca_file", "link=%s file=%s why=%s", settings->name, log_quote(str_of(ca_file)),
            log_quote(str_of(ERR_reason_error_string(ERR_peek_last_error()))));
        return ERR_BAD_REQUEST;
    }
    link->settings = *settings;
    link->settings.name = xstrdup(settings->name);
    link->settings.urls = link->settings.ca_file = NULL;
    if (link->settings.heartbeat_ms < 1000)
        link->settings.heartbeat_ms = 1000;
    return ERR_OK;
}

static void link_free(struct amqp_link *link)
{
    amqp_publisher_clear(link);
    amqp_topology_clear(link);
    amqp_consumers_clear(link);
    for (size_t i = 0; i < link->address_count; i++)
        amqp_address_clear(&link->addresses[i]);
    SSL_CTX_free(link->tls);
    empty_amqp_pool(&link->pool);
    free((void *)(uintptr_t)link->settings.name);
    free(link);
}

static void link_on_turn(uv_idle_t *idle)
{
    link_turn(container_of(idle, struct amqp_link, turn));
}

static void link_on_check(uv_check_t *check)
{
    struct amqp_link *link = container_of(check, struct amqp_link, check);

    if (uv_is_active((uv_handle_t *)&link->turn))
        link_turn(link);
}

enum err amqp_link_open(struct amqp_link **out, uv_loop_t *loop, const struct amqp_settings *settings)
{
    struct amqp_link *link = xcalloc(1, sizeof(*link));
    enum err err;

    link->loop = loop;
    init_amqp_pool(&link->pool, 4096);
    amqp_publisher_init(link);
    amqp_topology_init(link);
    amqp_consumers_init(link);
    if ((err = link_read_settings(link, settings))) {
        link_free(link);
        return err;
    }
    link->down_ms = uv_now(loop);
    uv_timer_init(loop, &link->tick);
    uv_timer_init(loop, &link->retry);
    uv_idle_init(loop, &link->turn);
    uv_check_init(loop, &link->check);
    link->handles = 4;
    uv_timer_start(&link->tick, link_tick, TICK_MS, TICK_MS);
    uv_timer_start(&link->retry, link_connect, 0, 0);
    uv_check_start(&link->check, link_on_check);
    uv_unref((uv_handle_t *)&link->check);
    *out = link;
    return ERR_OK;
}

bool amqp_link_up(const struct amqp_link *link)
{
    return link_is_up(link);
}

bool amqp_link_blocked(const struct amqp_link *link)
{
    return link->blocked;
}

struct amqp_counters amqp_link_counters(const struct amqp_link *link)
{
    return link->counters;
}

/* --- connecting and logging in: the steps, in the order they run --- */

static const char *link_peer(const struct amqp_link *link)
{
    return log_quote(str_of(link->addresses[link->address_at].name));
}

static void link_connect(uv_timer_t *timer)
{
    struct amqp_link *link = container_of(timer, struct amqp_link, retry);
    const struct amqp_address *address = &link->addresses[link->address_at];

    link->state = LINK_CONNECTING;
    link->frame_max = CODEC_FRAME_MAX_MAX;
    link->conn = conn_open(
        link->loop, address->host, address->port, address->tls ? link->tls : NULL, CONN_BULK, &conn_events, link);
}

static void link_connected(void *owner)
{
    struct amqp_link *link = owner;

    link->state = LINK_STARTING;
    link->state_deadline_ms = uv_now(link->loop) + LOGIN_MS;
    buf_add(link_out(link), "AMQP\0\0\x09\x01", 8);
    amqp_link_kick(link);
}

static amqp_table_entry_t text_entry(const char *key, const char *value)
{
    amqp_table_entry_t entry = {.key = amqp_cstring_bytes(key), .value.kind = AMQP_FIELD_KIND_UTF8};

    entry.value.value.bytes = amqp_cstring_bytes(value);
    return entry;
}

static amqp_table_entry_t yes_entry(const char *key)
{
    amqp_table_entry_t entry = {.key = amqp_cstring_bytes(key), .value.kind = AMQP_FIELD_KIND_BOOLEAN};

    entry.value.value.boolean = 1;
    return entry;
}

static void link_log_in(struct amqp_link *link, struct str payload)
{
    const struct amqp_address *address = &link->addresses[link->address_at];
    /* Without the first two a deleted queue and a memory alarm are silent (measured). */
    amqp_table_entry_t can[] = {yes_entry("consumer_cancel_notify"), yes_entry("connection.blocked"),
        yes_entry("publisher_confirms"), yes_entry("basic.nack"), yes_entry("authentication_failure_close")};
    amqp_table_entry_t properties[] = {text_entry("product", "roomd"), text_entry("version", ROOMD_VERSION),
        text_entry("connection_name", link->settings.name), text_entry("capabilities", "")};
    amqp_connection_start_ok_t ok = {.client_properties = {countof(properties), properties},
        .mechanism = amqp_cstring_bytes("PLAIN"),
        .locale = amqp_cstring_bytes("en_US")};
    char secret[2 * (AMQP_PART_MAX_BYTES + 1)];
    size_t user_n = strlen(address->user), password_n = strlen(address->password);
    bool plain;

    if (!codec_read_start(payload, &plain) || !plain) {
        amqp_link_break(link, "the broker does not offer AMQP 0-9-1 with PLAIN");
        return;
    }
    properties[3].value.kind = AMQP_FIELD_KIND_TABLE;
    properties[3].value.value.table = (amqp_table_t){countof(can), can};
    secret[0] = '\0';
    memcpy(secret + 1, address->user, user_n + 1);
    memcpy(secret + user_n + 2, address->password, password_n);
    ok.response = (amqp_bytes_t){.len = user_n + password_n + 2, .bytes = secret};
    codec_add_method(link_out(link), 0, AMQP_CONNECTION_START_OK_METHOD, &ok);
    link->state = LINK_TUNING;
}

static void link_tune(struct amqp_link *link, struct str payload)
{
    amqp_connection_tune_t *tune = codec_decode(payload, &link->pool);
    amqp_connection_tune_ok_t ok;
    amqp_connection_open_t open = {0};

    if (!tune || (tune->frame_max && tune->frame_max < CODEC_FRAME_MIN_MAX)) {
        amqp_link_break(link, "the broker asks for impossible frames");
        return;
    }
    if (tune->frame_max && tune->frame_max < link->frame_max)
        link->frame_max = tune->frame_max;
    link->channel_max = tune->channel_max && tune->channel_max < CHANNELS_MAX ? tune->channel_max : CHANNELS_MAX;
    ok.channel_max = link->channel_max;
    ok.frame_max = link->frame_max;
    ok.heartbeat = (uint16_t)(link->settings.heartbeat_ms / 1000);
    codec_add_method(link_out(link), 0, AMQP_CONNECTION_TUNE_OK_METHOD, &ok);
    open.virtual_host = amqp_cstring_bytes(link->addresses[link->address_at].vhost);
    codec_add_method(link_out(link), 0, AMQP_CONNECTION_OPEN_METHOD, &open);
    link->state = LINK_OPENING;
}

static void link_go_up(struct amqp_link *link)
{
    link->state = LINK_UP;
    if (link->up_ms)
        link->counters.reconnects_total++;
    link->up_ms = uv_now(link->loop);
    conn_pause(link->conn, link->paused);
    log_info("amqp.up", "link=%s broker=%s", link->settings.name, link_peer(link));
    if (link->settings.changed)
        link->settings.changed(link->settings.arg, true);
    if (link_is_up(link)) /* after the caller's declarations: what is sent again may need them */
        amqp_publisher_up(link);
}

/* --- breaking and coming back --- */

/* 100-200, 200-400, … 1000-2000 ms: the first is soon, and many instances do not come in step. */
static uint64_t retry_delay_ms(const struct amqp_link *link)
{
    uint64_t most = link->round < 4 ? (uint64_t)RETRY_MIN_MS << (link->round + 1) : RETRY_MAX_MS;
    uint32_t random;

    random_bytes(&random, sizeof(random));
    return most / 2 + random % (most / 2 + 1);
}

static void link_choose_next_address(struct amqp_link *link, bool was_steady)
{
    if (was_steady) {
        link->address_at = 0;
        link->round = 0;
    } else if (++link->address_at == link->address_count) {
        link->address_at = 0;
        link->round++;
    }
}

/* That it broke, why each address is of no use, and then now and again. */
static bool is_worth_a_line(struct amqp_link *link, bool was_up)
{
    unsigned failures = was_up ? 0 : link->failures++;

    if (was_up)
        link->failures = 0;
    return was_up || failures < link->address_count || failures % SAY_EVERY == 0;
}

void amqp_link_break(struct amqp_link *link, const char *why)
{
    bool was_up = link_is_up(link), worth;
    uint64_t now = uv_now(link->loop);

    if (link->state == LINK_WAITING || link->state == LINK_GONE)
        return;
    conn_drop(link->conn);
    link->conn = NULL;
    if (link->state == LINK_CLOSING) {
        link_shut(link);
        return;
    }
    worth = is_worth_a_line(link, was_up);
    log_at(worth ? LOG_WARN : LOG_DEBUG, "amqp.down", "link=%s broker=%s was_up=%d why=%s", link->settings.name,
        link_peer(link), was_up, log_quote(str_of(why)));
    link->state = LINK_WAITING;
    link->blocked = link->resuming = false;
    link_choose_next_address(link, was_up && now - link->up_ms >= STEADY_MS);
    uv_timer_start(&link->retry, link_connect, retry_delay_ms(link), 0);
    if (!was_up)
        return;
    link->down_ms = now;
    amqp_publisher_down(link);
    amqp_topology_down(link);
    amqp_consumers_down(link);
    if (!link_is_closed(link) && link->settings.changed)
        link->settings.changed(link->settings.arg, false);
}

static void link_broken(void *owner, const char *why)
{
    amqp_link_break(owner, why);
}

static void link_tick(uv_timer_t *timer)
{
    struct amqp_link *link = container_of(timer, struct amqp_link, tick);
    uint64_t now = uv_now(link->loop), heartbeat = (uint64_t)link->settings.heartbeat_ms / 1000 * 1000, heard;

    amqp_publisher_tick(link, now);
    if (link->state == LINK_CONNECTING) {
        conn_tick(link->conn, now);
    } else if (link->state >= LINK_STARTING && link->state < LINK_UP) {
        if (now >= link->state_deadline_ms)
            amqp_link_break(link, "no answer to the log-in");
    } else if (link_is_up(link)) {
        heard = conn_heard_ms(link->conn);
        if (heard < link->unpaused_ms)
            heard = link->unpaused_ms;
        if (now - conn_sent_ms(link->conn) >= heartbeat / 2 && !conn_unsent(link->conn)) {
            codec_add_heartbeat(link_out(link));
            amqp_link_kick(link);
        }
        /* Not when it is we who were stopped and have not read yet what came meanwhile. */
        if (!link->paused && now - heard >= 2 * heartbeat && !conn_has_unread(link->conn))
            amqp_link_break(link, "silent for two heartbeats");
        else if (!link->paused)
            amqp_topology_tick(link, now);
    }
}

/* --- frames --- */

static void link_received(void *owner)
{
    struct amqp_link *link = owner;
    struct conn *conn = link->conn;
    struct codec_frame frame;

    while (link->conn == conn && !(link->paused && link_is_up(link))) {
        ptrdiff_t n = codec_read_frame(conn_in(conn), link->frame_max, &frame);

        if (n < 0)
            amqp_link_break(link, "what it sends is not AMQP 0-9-1");
        if (n <= 0)
            return;
        conn_consume(conn, (size_t)n); /* the bytes stay until the next read */
        link_frame(link, &frame);
    }
}

static void link_frame(struct amqp_link *link, const struct codec_frame *frame)
{
    if (frame->type == CODEC_HEARTBEAT)
        return;
    if (frame->channel == 0) {
        if (frame->type == CODEC_METHOD)
            link_control(link, frame->payload);
        else
            amqp_link_break(link, "content on channel 0");
    } else if (!link_is_up(link)) {
        if (!link_is_closed(link)) /* else only close-ok matters */
            amqp_link_break(link, "a channel's frame before the log-in was over");
    } else if (frame->channel >= CHANNEL_CONSUMERS) {
        amqp_consumer_frame(link, frame);
    } else if (frame->channel == CHANNEL_TOPOLOGY) {
        amqp_topology_frame(link, frame);
    } else {
        amqp_publisher_frame(link, frame);
    }
}

static void link_closed_by_broker(struct amqp_link *link, struct str payload)
{
    amqp_connection_close_t *said = codec_decode(payload, &link->pool);
    amqp_connection_close_ok_t ok = {0};
    char why[300] = "closed by the broker";

    if (said)
        snprintf(why, sizeof(why), "%u %.*s", said->reply_code, STR_ARG(codec_str(said->reply_text)));
    codec_add_method(link_out(link), 0, AMQP_CONNECTION_CLOSE_OK_METHOD, &ok);
    conn_flush(link->conn);
    amqp_link_break(link, why);
}

static void link_set_blocked(struct amqp_link *link, bool blocked, struct str payload)
{
    amqp_connection_blocked_t *said = blocked ? codec_decode(payload, &link->pool) : NULL;
    struct str why = said ? codec_str(said->reason) : (struct str){"", 0};

    if (link->blocked == blocked)
        return;
    link->blocked = blocked;
    if (blocked)
        log_warn("amqp.blocked", "link=%s broker=%s why=%s", link->settings.name, link_peer(link), log_quote(why));
    else
        log_info("amqp.unblocked", "link=%s broker=%s", link->settings.name, link_peer(link));
}

static void link_control(struct amqp_link *link, struct str payload)
{
    uint32_t method = codec_method(payload);

    recycle_amqp_pool(&link->pool);
    if (method == AMQP_CONNECTION_CLOSE_METHOD)
        link_closed_by_broker(link, payload);
    else if (method == AMQP_CONNECTION_START_METHOD && link->state == LINK_STARTING)
        link_log_in(link, payload);
    else if (method == AMQP_CONNECTION_TUNE_METHOD && link->state == LINK_TUNING)
        link_tune(link, payload);
    else if (method == AMQP_CONNECTION_OPEN_OK_METHOD && link->state == LINK_OPENING)
        link_go_up(link);
    else if (method == AMQP_CONNECTION_BLOCKED_METHOD || method == AMQP_CONNECTION_UNBLOCKED_METHOD)
        link_set_blocked(link, method == AMQP_CONNECTION_BLOCKED_METHOD, payload);
    else if (method == AMQP_CONNECTION_CLOSE_OK_METHOD && link->state == LINK_CLOSING)
        amqp_link_break(link, "closed");
    else
        amqp_link_break(link, "a method out of turn on channel 0");
    if (link->conn)
        amqp_link_kick(link);
}

void amqp_add_channel_open(struct amqp_link *link, uint16_t channel)
{
    amqp_channel_open_t open = {0};

    codec_add_method(link_out(link), channel, AMQP_CHANNEL_OPEN_METHOD, &open);
    amqp_link_kick(link);
}

void amqp_add_channel_close(struct amqp_link *link, uint16_t channel)
{
    amqp_channel_close_t close = {.reply_code = AMQP_REPLY_SUCCESS};

    codec_add_method(link_out(link), channel, AMQP_CHANNEL_CLOSE_METHOD, &close);
    amqp_link_kick(link);
}

void amqp_add_channel_close_ok(struct amqp_link *link, uint16_t channel)
{
    amqp_channel_close_ok_t ok = {0};

    codec_add_method(link_out(link), channel, AMQP_CHANNEL_CLOSE_OK_METHOD, &ok);
    amqp_link_kick(link);
}

/* --- the end of a turn --- */

void amqp_link_kick(struct amqp_link *link)
{
    if (link->state != LINK_GONE && !uv_is_active((uv_handle_t *)&link->turn))
        uv_idle_start(&link->turn, link_on_turn);
}

static void link_turn(struct amqp_link *link)
{
    uv_idle_stop(&link->turn);
    amqp_publisher_settle_refused(link);
    amqp_topology_tell_void(link);
    amqp_consumers_tell_doomed(link);
    if (link->resuming && link->conn) {
        link->resuming = false;
        link_received(link);
    }
    if (link->conn)
        conn_flush(link->conn);
}

void amqp_link_pause(struct amqp_link *link, bool pause)
{
    if (link->paused == pause || link_is_closed(link))
        return;
    link->paused = pause;
    if (!link_is_up(link))
        return; /* logging in needs to read; it takes effect afterwards */
    conn_pause(link->conn, pause);
    if (!pause) {
        link->unpaused_ms = uv_now(link->loop);
        link->resuming = true;
        amqp_topology_resume(link);
        amqp_link_kick(link);
    }
}

/* --- closing --- */

static void link_goodbye_over(uv_timer_t *timer)
{
    struct amqp_link *link = container_of(timer, struct amqp_link, retry);

    if (link->conn)
        amqp_link_break(link, "no answer to the goodbye");
    else
        link_shut(link);
}

void amqp_link_close(struct amqp_link *link)
{
    amqp_connection_close_t goodbye = {.reply_code = AMQP_REPLY_SUCCESS, .reply_text = amqp_cstring_bytes("bye")};
    bool was_up = link_is_up(link);

    assert(!link_is_closed(link));
    amqp_publisher_close(link);
    if (!was_up && link->conn) {
        conn_drop(link->conn);
        link->conn = NULL;
    }
    link->state = LINK_CLOSING;
    uv_timer_start(&link->retry, link_goodbye_over, was_up ? GOODBYE_MS : 0, 0);
    amqp_link_kick(link);
    if (was_up) {
        conn_pause(link->conn, false);
        codec_add_method(link_out(link), 0, AMQP_CONNECTION_CLOSE_METHOD, &goodbye);
    }
}

static void link_handle_closed(uv_handle_t *handle)
{
    struct amqp_link *link = handle->data;

    if (--link->handles == 0)
        link_free(link);
}

static void link_shut(struct amqp_link *link)
{
    uv_handle_t *handles[] = {(uv_handle_t *)&link->tick, (uv_handle_t *)&link->retry, (uv_handle_t *)&link->turn,
        (uv_handle_t *)&link->check};

    link->state = LINK_GONE;
    amqp_publisher_settle_refused(link);
    for (size_t i = 0; i < countof(handles); i++) {
        handles[i]->data = link;
        uv_close(handles[i], link_handle_closed);
    }
}
