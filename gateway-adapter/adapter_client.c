/* The client: its descriptors, its turns, its settings; see roomd_adapter.h. */
#include "adapter_conn.h"

#include <errno.h>
#include <openssl/evp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum {
    TICK_MS = 20,        /* how exact deadlines are while something is under way */
    IDLE_TICK_MS = 1000, /* heartbeats, the way back to the first broker, idle connections */
    EVENTS_A_TURN = 64
};

static void client_tick(struct roomd_client *client);

/* ------------------------------------------------------------------ codes */

const char *roomd_code_name(enum roomd_code code)
{
    static const char *const names[] = {
        [ROOMD_OK] = "ok",
        [ROOMD_BAD_REQUEST] = "bad_request",
        [ROOMD_UNAUTHENTICATED] = "unauthenticated",
        [ROOMD_TICKET_IS_EXPIRED] = "ticket_expired",
        [ROOMD_NOT_MEMBER] = "not_member",
        [ROOMD_FORBIDDEN] = "forbidden",
        [ROOMD_NO_SUCH_ROOM] = "no_such_room",
        [ROOMD_NO_SUCH_MESSAGE] = "no_such_message",
        [ROOMD_NO_SUCH_METHOD] = "no_such_method",
        [ROOMD_METHOD_NOT_ALLOWED] = "method_not_allowed",
        [ROOMD_ROOM_FULL] = "room_full",
        [ROOMD_TOO_LATE] = "too_late",
        [ROOMD_CONFLICT] = "conflict",
        [ROOMD_ROOM_GONE] = "room_gone",
        [ROOMD_TOO_LARGE] = "too_large",
        [ROOMD_UNSUPPORTED_MEDIA_TYPE] = "unsupported_media_type",
        [ROOMD_RATE_LIMITED] = "rate_limited",
        [ROOMD_UNAVAILABLE] = "unavailable",
        [ROOMD_TIMEOUT] = "timeout",
        [ROOMD_SPOOLED] = "spooled",
        [ROOMD_NO_MEMORY] = "no_memory",
        [ROOMD_CLOSED] = "closed",
        [ROOMD_BAD_ANSWER] = "bad_answer",
        [ROOMD_OTHER] = "other",
    };

    return (size_t)code < countof(names) ? names[code] : "other";
}

/* ------------------------------------------------------------------ time and chance */

int64_t adapter_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* For jitter only: where the system gives no randomness the clock will do. */
uint64_t adapter_random(void)
{
    uint64_t value;

    if (getrandom(&value, sizeof(value), GRND_NONBLOCK) == (ssize_t)sizeof(value))
        return value;
    return (uint64_t)adapter_now() * 0x9e3779b97f4a7c15u;
}

int64_t adapter_random_below(int64_t most)
{
    return most <= 1 ? 0 : (int64_t)(adapter_random() % (uint64_t)most);
}

static void base32(char *out, const unsigned char *bytes, int from_bit, int characters)
{
    for (int i = 0; i < characters; i++) {
        unsigned value = 0;

        for (int bit = from_bit + 5 * i; bit < from_bit + 5 * i + 5; bit++)
            value = value << 1 | (bit < 0 ? 0u : (unsigned)bytes[bit / 8] >> (7 - bit % 8) & 1u);
        out[i] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"[value];
    }
    out[characters] = '\0';
}

bool roomd_mint(char out[27])
{
    unsigned char bytes[16];
    struct timespec now;
    uint64_t ms;

    out[0] = '\0';
    if (getrandom(bytes, sizeof(bytes), 0) != (ssize_t)sizeof(bytes))
        return false;
    clock_gettime(CLOCK_REALTIME, &now);
    ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
    for (int i = 0; i < 6; i++)
        bytes[i] = (unsigned char)(ms >> (40 - 8 * i));
    base32(out, bytes, -2, 26);
    return true;
}

void roomd_message_id(char out[27], const char *room_id, const char *sender, const char *client_msg_id)
{
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    unsigned char digest[EVP_MAX_MD_SIZE];

    out[0] = '\0';
    if (hash && EVP_DigestInit_ex(hash, EVP_sha256(), NULL) && EVP_DigestUpdate(hash, room_id, strlen(room_id) + 1) &&
        EVP_DigestUpdate(hash, sender, strlen(sender) + 1) &&
        EVP_DigestUpdate(hash, client_msg_id, strlen(client_msg_id)) && EVP_DigestFinal_ex(hash, digest, NULL))
        base32(out, digest, -2, 26);
    EVP_MD_CTX_free(hash);
}

/* ------------------------------------------------------------------ addresses */

/* %-decodes into `out`; false: malformed, too long, control characters. */
static bool part_read(char out[ADAPTER_PART_MAX_BYTES + 1], const char *p, size_t n)
{
    size_t to = 0;

    for (size_t i = 0; i < n; i++) {
        unsigned c = (unsigned char)p[i];

        if (c == '%') {
            char hex[3] = {i + 1 < n ? p[i + 1] : '?', i + 2 < n ? p[i + 2] : '?', '\0'}, *end;

            c = (unsigned)strtoul(hex, &end, 16);
            if (*end || hex[0] == '+' || hex[0] == '-' || hex[0] == ' ')
                return false;
            i += 2;
        }
        if (c < ' ' || c == 127 || to == ADAPTER_PART_MAX_BYTES)
            return false;
        out[to++] = (char)c;
    }
    out[to] = '\0';
    return true;
}

static bool host_read(struct adapter_address *address, const char *p, size_t n)
{
    const char *host = p, *close = n && *p == '[' ? memchr(p, ']', n) : NULL; /* [::1]:5672 */
    const char *rest = close ? close + 1 : memchr(p, ':', n);
    size_t host_n = close ? (size_t)(close - p - 1) : rest ? (size_t)(rest - p) : n;
    unsigned long port = 0;

    if (close)
        host++;
    if (!rest)
        rest = p + n;
    if (host_n == 0 || !part_read(address->host, host, host_n))
        return false;
    if (rest == p + n)
        return true;
    if (*rest++ != ':' || rest == p + n || p + n - rest > 5)
        return false;
    for (; rest < p + n; rest++) {
        if (*rest < '0' || *rest > '9')
            return false;
        port = port * 10 + (unsigned long)(*rest - '0');
    }
    address->port = (uint16_t)port;
    return port > 0 && port <= UINT16_MAX;
}

static bool login_read(struct adapter_address *address, const char *p, size_t n)
{
    const char *colon = memchr(p, ':', n);
    size_t user_n = colon ? (size_t)(colon - p) : n;

    return user_n > 0 && part_read(address->user, p, user_n) &&
           part_read(address->password, colon ? colon + 1 : p, colon ? n - user_n - 1 : 0);
}

bool adapter_address_read(struct adapter_address *address, const char *text, size_t n, bool amqp)
{
    const char *scheme = amqp ? "amqp" : "http", *end = text + n, *slash, *at = NULL;

    *address = (struct adapter_address){.user = "guest", .password = "guest", .vhost = "/"};
    if (n < 7 || memcmp(text, scheme, 4) != 0)
        return false;
    text += 4;
    address->tls = *text == 's';
    text += address->tls;
    if (end - text < 4 || memcmp(text, "://", 3) != 0)
        return false;
    text += 3;
    address->port = amqp ? (address->tls ? 5671 : 5672) : (address->tls ? 443 : 80);
    slash = memchr(text, '/', (size_t)(end - text));
    if (!slash)
        slash = end;
    for (const char *p = text; p < slash; p++)
        if (*p == '@')
            at = p;
    if (at && (!amqp || !login_read(address, text, (size_t)(at - text))))
        return false;
    text = at ? at + 1 : text;
    if (!host_read(address, text, (size_t)(slash - text)))
        return false;
    if (memchr(slash, '?', (size_t)(end - slash)) || memchr(slash, '#', (size_t)(end - slash)))
        return false;
    if (amqp)
        return end - slash < 2 ? slash == end || part_read(address->vhost, slash + 1, 0)
                               : !memchr(slash + 1, '/', (size_t)(end - slash - 1)) &&
                                     part_read(address->vhost, slash + 1, (size_t)(end - slash - 1));
    while (end > slash && end[-1] == '/')
        end--;
    for (const char *p = slash; p < end; p++)
        if (*p <= ' ' || *p == 127)
            return false;
    if ((size_t)(end - slash) > ADAPTER_PART_MAX_BYTES)
        return false;
    memcpy(address->path, slash, (size_t)(end - slash)); /* as it is: it goes on the wire */
    return true;
}

SSL_CTX *adapter_tls_new(const char *ca_file)
{
    SSL_CTX *tls = SSL_CTX_new(TLS_client_method());

    if (!tls)
        return NULL;
    SSL_CTX_set_min_proto_version(tls, TLS1_2_VERSION);
    SSL_CTX_set_verify(tls, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_mode(tls, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    if (ca_file ? SSL_CTX_load_verify_file(tls, ca_file) : SSL_CTX_set_default_verify_paths(tls))
        return tls;
    SSL_CTX_free(tls);
    return NULL;
}

/* ------------------------------------------------------------------ opening */

static bool instances_read(struct roomd_client *client, const char *urls)
{
    while (urls && *urls) {
        size_t n = strcspn(urls, ","), skip = strspn(urls, " \t\n"), end = n;

        while (end > skip && strchr(" \t\n", urls[end - 1]))
            end--;
        if (client->instance_count == ADAPTER_ADDRESSES_MAX || skip >= end ||
            !adapter_address_read(&client->instances[client->instance_count++], urls + skip, end - skip, false))
            return false;
        urls += n;
        if (*urls == ',' && !*++urls)
            return false;
    }
    return true;
}

static void settings_defaults(struct roomd_settings *settings)
{
    settings->call_ms = settings->call_ms ? settings->call_ms : 10000;
    settings->try_ms = settings->try_ms ? settings->try_ms : 3000;
    settings->send_ms = settings->send_ms ? settings->send_ms : 10000;
    settings->connections_max = settings->connections_max ? settings->connections_max : 16;
    settings->calls_max = settings->calls_max ? settings->calls_max : 1024;
    settings->pending_max = settings->pending_max ? settings->pending_max : 10000;
    settings->pending_max_bytes = settings->pending_max_bytes ? settings->pending_max_bytes : 64 << 20;
    settings->content_max_bytes = settings->content_max_bytes ? settings->content_max_bytes : 65536;
    settings->spool_max_bytes = settings->spool_max_bytes ? settings->spool_max_bytes : 256 << 20;
    settings->spool_after_ms = settings->spool_after_ms ? settings->spool_after_ms : 1000;
}

static bool key_is_header_safe(const char *key)
{
    for (; key && *key; key++)
        if (*key <= ' ' || *key == 127)
            return false;
    return true;
}

static const char *settings_take(struct roomd_client *client, const struct roomd_settings *settings)
{
    client->settings = *settings;
    settings_defaults(&client->settings);
    client->settings.instance_urls = client->settings.service_key = client->settings.broker_urls = NULL;
    client->settings.ca_file = client->settings.spool_file = NULL;
    if (client->settings.call_ms < 0 || client->settings.try_ms < 0 || client->settings.send_ms < 0 ||
        client->settings.spool_after_ms < 0)
        return "a duration in the settings is negative";
    if (!instances_read(client, settings->instance_urls))
        return "instance_urls cannot be read: http://host:port, separated by commas, at most 16";
    if (client->instance_count && !settings->service_key)
        return "service calls need a service_key";
    if (!key_is_header_safe(settings->service_key))
        return "the service_key has characters that no header may have";
    if (settings->spool_file && !settings->broker_urls)
        return "a spool is for a publisher: broker_urls is missing";
    client->tls = adapter_tls_new(settings->ca_file);
    if (!client->tls)
        return "the CA file cannot be read";
    return NULL;
}

static void kick_ready(struct adapter_watch *watch, uint32_t events)
{
    struct roomd_client *client = container_of(watch, struct roomd_client, kick_watch);
    uint64_t count;
    ssize_t n = read(client->kick_fd, &count, sizeof(count));

    (void)n;
    (void)events;
    client->kicked = false;
}

static void timer_ready(struct adapter_watch *watch, uint32_t events)
{
    uint64_t count;
    ssize_t n = read(watch->fd, &count, sizeof(count));

    (void)n;
    (void)events;
}

static bool descriptors_open(struct roomd_client *client)
{
    client->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    client->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    client->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    client->timer_watch = (struct adapter_watch){.ready = timer_ready, .fd = client->timer_fd};
    client->kick_watch = (struct adapter_watch){.ready = kick_ready, .fd = client->kick_fd};
    return client->epoll_fd >= 0 && client->timer_fd >= 0 && client->kick_fd >= 0 &&
           adapter_watch_set(client, &client->timer_watch, EPOLLIN) &&
           adapter_watch_set(client, &client->kick_watch, EPOLLIN);
}

static void client_free(struct roomd_client *client)
{
    adapter_conns_reap(client);
    SSL_CTX_free(client->tls);
    if (client->epoll_fd >= 0)
        close(client->epoll_fd);
    if (client->timer_fd >= 0)
        close(client->timer_fd);
    if (client->kick_fd >= 0)
        close(client->kick_fd);
    if (client->service_key)
        OPENSSL_cleanse(client->service_key, strlen(client->service_key));
    free(client->service_key);
    free(client);
}

static struct roomd_client *client_new(void)
{
    struct roomd_client *client = calloc(1, sizeof(*client));

    if (!client)
        return NULL;
    client->epoll_fd = client->timer_fd = client->kick_fd = -1;
    client->now = adapter_now();
    adapter_list_init(&client->dead_conns);
    adapter_list_init(&client->calls_waiting);
    adapter_list_init(&client->calls_trying);
    adapter_list_init(&client->calls_done);
    adapter_list_init(&client->http_conns);
    adapter_list_init(&client->streams);
    return client;
}

enum roomd_code roomd_client_open(struct roomd_client **out, const struct roomd_settings *settings, const char **why)
{
    struct roomd_client *client = client_new();
    enum roomd_code code = ROOMD_NO_MEMORY;
    const char *problem = "out of memory";

    if (!client)
        goto fail;
    if ((problem = settings_take(client, settings))) {
        code = ROOMD_BAD_REQUEST;
        goto fail_free;
    }
    problem = "out of memory";
    if (settings->service_key && !(client->service_key = strdup(settings->service_key)))
        goto fail_free;
    if (!descriptors_open(client)) {
        code = ROOMD_UNAVAILABLE;
        problem = "there are no descriptors left";
        goto fail_free;
    }
    if (settings->broker_urls && (code = adapter_publisher_open(client, settings, &problem)))
        goto fail_free;
    adapter_client_kick(client);
    *out = client;
    if (why)
        *why = NULL;
    return ROOMD_OK;

fail_free:
    client_free(client);
fail:
    if (why)
        *why = problem;
    return code;
}

void roomd_client_close(struct roomd_client *client)
{
    if (!client)
        return;
    client->now = adapter_now();
    client->closing = true;
    adapter_streams_close(client);
    adapter_calls_close(client);
    if (client->publisher)
        adapter_publisher_close(client->publisher);
    client_free(client);
}

/* ------------------------------------------------------------------ turns */

int roomd_client_fd(const struct roomd_client *client)
{
    return client->epoll_fd;
}

bool adapter_watch_set(struct roomd_client *client, struct adapter_watch *watch, uint32_t interest)
{
    struct epoll_event event = {.events = interest, .data.ptr = watch};
    int op = !watch->interest ? EPOLL_CTL_ADD : interest ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;

    if (watch->interest == interest)
        return true;
    if (epoll_ctl(client->epoll_fd, op, watch->fd, &event))
        return false;
    watch->interest = interest;
    return true;
}

void adapter_client_kick(struct roomd_client *client)
{
    ssize_t n;

    if (client->kicked)
        return;
    client->kicked = true;
    n = write(client->kick_fd, &(uint64_t){1}, 8);
    (void)n; /* a counter of an eventfd that was 0 takes a 1 */
}

static bool client_busy(const struct roomd_client *client)
{
    return client->call_count > 0 || !adapter_list_empty(&client->streams) ||
           (client->publisher && adapter_publisher_busy(client->publisher));
}

/* Nothing open and nothing under way: no timer at all. */
static bool client_idle(const struct roomd_client *client)
{
    return !client->publisher && adapter_list_empty(&client->http_conns) && !client_busy(client);
}

static void timer_set(struct roomd_client *client)
{
    int64_t every = client_idle(client) ? 0 : client_busy(client) ? TICK_MS : IDLE_TICK_MS;
    int64_t at = every ? client->now + every : 0;
    struct itimerspec spec = {0};

    if (client->timer_at && at && client->timer_at > client->now && client->timer_at <= at)
        return;
    spec.it_value.tv_sec = at / 1000;
    spec.it_value.tv_nsec = at % 1000 * 1000000;
    if (timerfd_settime(client->timer_fd, TFD_TIMER_ABSTIME, &spec, NULL) == 0)
        client->timer_at = at;
    client->next_tick = at;
}

static void client_tick(struct roomd_client *client)
{
    adapter_calls_tick(client);
    adapter_streams_tick(client);
    if (client->publisher)
        adapter_publisher_tick(client->publisher);
}

void roomd_client_turn(struct roomd_client *client)
{
    struct epoll_event events[EVENTS_A_TURN];
    int n = epoll_wait(client->epoll_fd, events, EVENTS_A_TURN, 0);

    client->in_turn = true;
    client->now = adapter_now();
    for (int i = 0; i < n; i++) {
        struct adapter_watch *watch = events[i].data.ptr;

        if (watch->ready)
            watch->ready(watch, events[i].events);
    }
    if (client->next_tick && client->now >= client->next_tick) {
        client->next_tick = 0;
        client_tick(client);
    }
    adapter_calls_turn(client);
    if (client->publisher)
        adapter_publisher_turn(client->publisher);
    adapter_conns_reap(client);
    timer_set(client);
    client->in_turn = false;
}

void roomd_client_wait(struct roomd_client *client, int64_t ms)
{
    struct pollfd one = {.fd = client->epoll_fd, .events = POLLIN};

    poll(&one, 1, ms < 0 ? -1 : ms > INT32_MAX ? INT32_MAX : (int)ms);
    roomd_client_turn(client);
}

enum roomd_code roomd_call_wait(struct roomd_client *client, struct roomd_call *call)
{
    while (!call->finished)
        roomd_client_wait(client, -1);
    return call->code;
}

enum roomd_code roomd_send_wait(struct roomd_client *client, struct roomd_send *send)
{
    while (!send->finished)
        roomd_client_wait(client, -1);
    return send->code;
}

struct roomd_counters roomd_client_counters(const struct roomd_client *client)
{
    struct roomd_counters counters = {.calls = client->call_count};

    if (client->publisher)
        adapter_publisher_counters(client->publisher, &counters);
    return counters;
}

const char *roomd_client_broker_problem(const struct roomd_client *client)
{
    return client->publisher ? adapter_publisher_problem(client->publisher) : "";
}
