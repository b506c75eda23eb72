#include "wiring.h"

#include <errno.h>
#include <inttypes.h>

#include "api.h"
#include "room/base/complain.h"
#include "room/base/log.h"

void wire_stop_loop(struct service *service)
{
    uv_stop(service->loop);
}

/* ------------------------------------------------------------------------------------------------------ database */

struct pg *wire_pg(struct service *service)
{
    const struct config *config = service->config;
    struct pg_settings settings = {
        .url = config->database_url,
        .read_connections = (int)config->database_read_connections,
        .timeout_ms = config->database_timeout_ms,
        .queue_max = config->database_queue_max,
    };
    struct pg *pg;

    if (!pg_open(&pg, service->loop, &settings))
        return pg;
    complain("database_url is not a connection string that libpq understands; see the line above");
    return NULL;
}

/* ------------------------------------------------------------------------------------------------------- history */

static void on_shown(void *arg, struct str room_id, struct entry *entry, bool durable)
{
    const struct service *service = arg;

    if (service->proxy)
        proxy_shown(service->proxy, room_id, entry, durable);
}

static bool on_listens(void *arg, struct str room_id)
{
    const struct service *service = arg;

    return service->proxy && proxy_listens(service->proxy, room_id);
}

static void on_durable(void *arg, struct str room_id, uint64_t seq)
{
    const struct service *service = arg;

    if (service->proxy)
        proxy_durable(service->proxy, room_id, seq);
}

static void on_ephemeral(void *arg, struct str room_id, struct str account, struct str json)
{
    const struct service *service = arg;

    if (service->proxy && room_id.n)
        proxy_ephemeral(service->proxy, room_id, json);
    else if (service->proxy)
        proxy_tell_account(service->proxy, account, json);
}

static void on_epoch(void *arg, struct str shard, uint64_t epoch, bool ours)
{
    const struct service *service = arg;

    if (service->proxy)
        proxy_epoch(service->proxy, shard, epoch, ours);
}

static void on_entered(void *arg, struct str room_id, const struct str *accounts, size_t count, struct cursor after)
{
    const struct service *service = arg;

    if (service->proxy)
        proxy_entered(service->proxy, room_id, accounts, count, after);
}

static void on_missed(void *arg, struct str shard)
{
    const struct service *service = arg;

    if (service->proxy)
        proxy_missed(service->proxy, shard);
}

static void on_entered_missed(void *arg, uint64_t since_unix_ms)
{
    const struct service *service = arg;

    if (service->proxy)
        proxy_entered_missed(service->proxy, since_unix_ms);
}

static void on_asked(void *arg, struct str question, struct buf *answer)
{
    const struct service *service = arg;

    if (service->proxy)
        proxy_asked(service->proxy, question, answer);
}

struct history *wire_history(struct service *service)
{
    const struct history_events events = {
        .arg = service,
        .shown = on_shown,
        .listens = on_listens,
        .durable = on_durable,
        .ephemeral = on_ephemeral,
        .epoch = on_epoch,
        .entered = on_entered,
        .missed = on_missed,
        .entered_missed = on_entered_missed,
        .asked = on_asked,
    };
    struct history *history;

    if (!history_start(&history, service->loop, service->config, service->pg, &events))
        return history;
    complain("the history module did not start; see the line above");
    return NULL;
}

/* ---------------------------------------------------------------------------------------------------------- http */

struct http_server *wire_http(struct service *service)
{
    const struct config *config = service->config;
    struct http_settings settings = {
        .address = config->listen_address,
        .port = (int)config->listen_port,
        .request_max_bytes = config->request_max_bytes,
        .request_timeout_ms = config->request_timeout_ms,
        .write_timeout_ms = config->write_timeout_ms,
        .connections_max = config->connections_max,
        .send_buffer_bytes = config->stream_send_buffer_bytes,
        .tls_certificate_file = config->tls_certificate_file,
        .tls_key_file = config->tls_key_file,
    };
    struct http_server *http;
    enum err err = http_server_open(&http, service->loop, &settings, api_serve, service);

    if (!err)
        return http;
    if (err == ERR_UNAVAILABLE && errno == EADDRINUSE)
        complain("port %" PRId64 " of %s is in use; stop what listens there, or set listen_port (0 takes any free one)",
            config->listen_port, config->listen_address);
    else
        complain("cannot listen on %s port %" PRId64
                 "; see the line above (listen_address, listen_port, tls_certificate_file, tls_key_file)",
            config->listen_address, config->listen_port);
    return NULL;
}

/* 0.0.0.0 and :: are addresses to listen on, not to be reached at. */
static bool is_any_address(const char *address)
{
    return str_is(str_of(address), "0.0.0.0") || str_is(str_of(address), "::");
}

const char *wire_url(const struct service *service)
{
    static char url[300];
    const struct config *config = service->config;
    const char *address = is_any_address(config->listen_address) ? "127.0.0.1" : config->listen_address;
    bool six = strchr(address, ':') != NULL;

    if (*config->advertise_url)
        return config->advertise_url;
    snprintf(url, sizeof url, "%s://%s%s%s:%d", *config->tls_certificate_file ? "https" : "http", six ? "[" : "",
        address, six ? "]" : "", http_server_port(service->http));
    return url;
}

/* ------------------------------------------------------------------------------------------------------- cluster */

static void on_taken(void *arg, struct str shard, uint64_t epoch)
{
    history_lease_taken(((struct service *)arg)->history, shard, epoch);
}

static void on_lost(void *arg, struct str shard)
{
    history_lease_lost(((struct service *)arg)->history, shard);
}

static void on_probe(void *arg, struct str shard)
{
    history_lease_probe(((struct service *)arg)->history, shard);
}

static void on_move(void *arg, struct str shard)
{
    history_lease_move(((struct service *)arg)->history, shard);
}

struct cluster *wire_cluster(struct service *service)
{
    const struct config *config = service->config;
    struct cluster_settings settings = {
        .instance_name = config->instance_name,
        .url = wire_url(service),
        .beat_ms = config->beat_ms,
        .lease_ttl_ms = config->lease_ttl_ms,
        .weight = config->weight,
    };
    struct cluster_events events = {
        .taken = on_taken, .lost = on_lost, .probe = on_probe, .move = on_move, .arg = service};
    struct cluster *cluster;

    if (is_any_address(config->listen_address) && !*config->advertise_url)
        log_warn("advertise_url.empty",
            "listen_address=%s url=%s hint=\"gateways on other machines need advertise_url\"", config->listen_address,
            settings.url);
    if (!cluster_join(&cluster, service->loop, service->pg, &settings, &events))
        return cluster;
    complain("the registry of instances cannot be joined; see the line above");
    return NULL;
}

/* --------------------------------------------------------------------------------------------------------- links */

static void on_publish_link(void *arg, bool up)
{
    history_publish_link(((struct service *)arg)->history, up);
}

static void on_consume_link(void *arg, bool up)
{
    history_consume_link(((struct service *)arg)->history, up);
}

struct amqp_link *wire_link(struct service *service, const char *name)
{
    const struct config *config = service->config;
    bool publishes = str_is(str_of(name), "publish");
    struct amqp_settings settings = {
        .name = name,
        .urls = config->broker_urls,
        .ca_file = config->broker_ca_file,
        .heartbeat_ms = publishes ? config->broker_publish_heartbeat_ms : config->broker_consume_heartbeat_ms,
        .publish_timeout_ms = config->broker_publish_timeout_ms,
        .max_pending = config->broker_publish_max_pending,
        .max_pending_bytes = config->broker_publish_max_pending_bytes,
        .changed = publishes ? on_publish_link : on_consume_link,
        .arg = service,
    };
    struct amqp_link *link;

    if (!amqp_link_open(&link, service->loop, &settings))
        return link;
    complain("broker_urls or broker_ca_file cannot be used; see the line above");
    return NULL;
}

/* --------------------------------------------------------------------------------------------------------- proxy */

struct proxy *wire_proxy(struct service *service)
{
    const struct proxy_client_calls calls = {.arg = service, .frame = api_frame};
    struct proxy *proxy;

    if (!proxy_start(&proxy, service->loop, service->config, wire_url(service), service->history, service->cluster,
            service->pg, &calls))
        return proxy;
    complain("ticket_keys cannot be used; see the line above");
    return NULL;
}
