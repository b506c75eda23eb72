/* roomd-gateway: the contents page. Each line of start() needs those above it; stop() goes back up. */
#include "gateway.h"

#include <openssl/err.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "room/base/clock.h"
#include "room/base/complain.h"
#include "room/base/log.h"

extern char **environ;

static const struct setting keys[] = {
#define GATEWAY_KEY(name, type, fallback, least, most, help) \
    {#name, SETTING_##type, fallback, least, most, help, offsetof(struct gateway_settings, name)},
#include "gateway_keys.h"
#undef GATEWAY_KEY
};

/* deploy/quickstart tells callers where the gateway is. */
static bool is_for_callers(const char *name)
{
    return strcmp(name, "url") == 0;
}

static const struct settings table = {keys, countof(keys), "ROOMD_GATEWAY_", is_for_callers};

static const char help_text[] =
    "roomd-gateway stands between frontends and roomd: sessions, rules, messages to the broker, long connections.\n"
    "It is the reference: a business with a gateway of its own takes the adapter library instead.\n"
    "\n"
    "  roomd-gateway --config FILE     run until SIGTERM\n"
    "  roomd-gateway --settings        every setting: its default, its bounds, what it does\n"
    "  roomd-gateway --help            this text\n"
    "  roomd-gateway --version\n"
    "\n"
    "Every setting can also come from the environment: listen_port is ROOMD_GATEWAY_LISTEN_PORT.\n"
    "`deploy/quickstart` brings one up with everything around it. What it offers: docs/gateway.md.\n";

struct running {
    struct gateway gateway;
    uv_loop_t loop;
    uv_signal_t term, interrupt;
    uv_timer_t drain, ages;
    bool signals, glued, stopping;
};

static int serve(const struct gateway_settings *settings);
static bool start(struct running *running);
static void stop(struct running *running);

int main(int argc, char **argv)
{
    struct gateway_settings settings = {0};
    struct buf text = {0};
    const char *file = NULL;
    int code = 2;

    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            fputs(help_text, stdout);
            return 0;
        }
        if (!strcmp(argv[i], "--version")) {
            puts("roomd-gateway " ROOMD_VERSION);
            return 0;
        }
        if (!strcmp(argv[i], "--settings")) {
            settings_manual(&table, &text);
            fwrite(text.p, 1, text.n, stdout);
            buf_clear(&text);
            return 0;
        }
        if (strcmp(argv[i], "--config") != 0 || i + 1 == argc) {
            complain("\"%s\" is not understood; roomd-gateway --help shows what is", argv[i]);
            return 2;
        }
        file = argv[++i];
    }
    if (settings_load(&table, &settings, file, environ, &text))
        code = serve(&settings);
    else
        fwrite(text.p, 1, text.n, stderr);
    settings_clear(&table, &settings);
    buf_clear(&text);
    return code;
}

static int serve(const struct gateway_settings *settings)
{
    struct running running = {.gateway = {.settings = settings}};
    enum log_level level;
    bool started;

    if (log_level_parse(settings->log_level, &level))
        log_set_level(level);
    signal(SIGPIPE, SIG_IGN);
    uv_loop_init(&running.loop);
    running.gateway.loop = &running.loop;
    list_init(&running.gateway.asks);
    list_init(&running.gateway.answered);
    list_init(&running.gateway.transfers);
    started = start(&running);
    if (started)
        uv_run(&running.loop, UV_RUN_DEFAULT); /* until SIGTERM */
    stop(&running);
    if (uv_loop_close(&running.loop))
        log_warn("stop.handles", "some are still open");
    return started ? 0 : 1;
}

/* --------------------------------------------------------------------------------------------- its parts, in order */

/* What it goes out with to instances and BaseService. */
static bool open_ways_out(struct gateway *gateway)
{
    const struct gateway_settings *from = gateway->settings;

    if (!server_url_read(&gateway->base, str_of(from->base_url))) {
        complain("base_url is http://host:port or https://host:port, not %s", from->base_url);
        return false;
    }
    gateway->tls = conn_tls_new(from->ca_file);
    if (!gateway->tls) {
        complain("ca_file: %s cannot be used: %s", from->ca_file, ERR_reason_error_string(ERR_peek_last_error()));
        return false;
    }
    SSL_CTX_set_mode(gateway->tls, SSL_MODE_RELEASE_BUFFERS); /* an idle stream does without its 34 KB */
    return true;
}

static bool open_client(struct gateway *gateway)
{
    const struct gateway_settings *from = gateway->settings;
    struct roomd_settings settings = {
        .instance_urls = from->instance_urls,
        .service_key = from->service_key,
        .broker_urls = from->broker_urls,
        .call_ms = from->call_timeout_ms,
        .send_ms = from->send_timeout_ms,
        .spool_file = *from->spool_file ? from->spool_file : NULL,
        .ca_file = *from->ca_file ? from->ca_file : NULL,
    };
    const char *why = "";

    if (roomd_client_open(&gateway->client, &settings, &why) == ROOMD_OK)
        return true;
    complain("instance_urls, broker_urls or spool_file cannot be used: %s", why);
    return false;
}

static bool open_http(struct gateway *gateway)
{
    const struct gateway_settings *from = gateway->settings;
    struct http_settings settings = {
        .address = from->listen_address,
        .port = (int)from->listen_port,
        .request_max_bytes = from->request_max_bytes,
        .request_timeout_ms = from->request_timeout_ms,
        .write_timeout_ms = 30000,
        .connections_max = from->connections_max,
        .send_buffer_bytes = 65536,
        .tls_certificate_file = from->tls_certificate_file,
        .tls_key_file = from->tls_key_file,
        .raw_path = "/api/files",
    };

    if (!http_server_open(&gateway->http, gateway->loop, &settings, routes_serve, gateway))
        return true;
    complain("cannot listen on %s port %d; see listen_address, listen_port and the TLS files", from->listen_address,
        (int)from->listen_port);
    return false;
}

static void on_drained(uv_timer_t *timer)
{
    uv_stop(timer->loop);
}

static void on_signal(uv_signal_t *signal, int number)
{
    struct running *running = signal->data;
    struct gateway *gateway = &running->gateway;

    if (running->stopping) {
        uv_stop(&running->loop);
        return;
    }
    running->stopping = gateway->draining = true;
    log_info(
        "drain", "signal=%d streams=%zu within_ms=%d", number, gateway->relays.count, (int)gateway->settings->drain_ms);
    http_server_stop_listening(gateway->http);
    uv_timer_start(&running->drain, on_drained, (uint64_t)gateway->settings->drain_ms, 0);
}

#define AGES_MS 1000 /* how late a stream may end after its session */

/* A session's streams end with it. */
static void on_ages(uv_timer_t *timer)
{
    relays_cut_old(timer->data, clock_unix_ms());
}

static void listen_for_signals(struct running *running)
{
    uv_signal_init(&running->loop, &running->term);
    uv_signal_init(&running->loop, &running->interrupt);
    uv_timer_init(&running->loop, &running->drain);
    uv_timer_init(&running->loop, &running->ages);
    running->ages.data = &running->gateway.relays;
    uv_timer_start(&running->ages, on_ages, AGES_MS, AGES_MS);
    running->term.data = running->interrupt.data = running;
    uv_signal_start(&running->term, on_signal, SIGTERM);
    uv_signal_start(&running->interrupt, on_signal, SIGINT);
    running->signals = true;
}

static bool start(struct running *running)
{
    struct gateway *gateway = &running->gateway;
    const struct gateway_settings *settings = gateway->settings;
    const char *why = "";

    if (!seal_key_from(&gateway->key, str_of(settings->session_secret))) {
        complain("session_secret must have at least 32 characters; `openssl rand -hex 32` makes a good one");
        return false;
    }
    if (!(gateway->policy = policy_open(settings->policy_file, &why))) {
        complain("policy_file: %s", why);
        return false;
    }
    if (!open_ways_out(gateway))
        return false;
    gateway->relays = (struct relays){
        .loop = gateway->loop,
        .tls = gateway->tls,
        .connect_timeout_ms = settings->stream_connect_ms,
        .hold_max_ms = 90000,
        .pending_max_bytes = (size_t)settings->stream_pending_max_bytes,
        .migrate = stream_migrate,
        .judge = stream_judge,
        .arg = gateway,
    };
    relays_open(&gateway->relays);
    gateway->limits = limits_open(gateway);
    gateway->web = web_open(settings->web_folder);
    if (!open_client(gateway))
        return false;
    running->glued = roomd_uv_start(&gateway->glue, gateway->loop, gateway->client) == 0;
    if (!running->glued)
        return false;
    gateway->fetches = fetches_open(gateway);
    gateway->standings = standings_open(gateway);
    if (!open_http(gateway))
        return false;
    listen_for_signals(running);
    log_info("started", "url=http%s://%s:%d page=%s", *settings->tls_certificate_file ? "s" : "",
        settings->listen_address, http_server_port(gateway->http), *settings->web_folder ? "yes" : "no");
    return true;
}

/* Back to front. */
static void stop(struct running *running)
{
    struct gateway *gateway = &running->gateway;

    if (running->signals) {
        uv_close((uv_handle_t *)&running->term, NULL);
        uv_close((uv_handle_t *)&running->interrupt, NULL);
        uv_close((uv_handle_t *)&running->drain, NULL);
        uv_close((uv_handle_t *)&running->ages, NULL);
    }
    if (gateway->relays.loop)
        relays_close(&gateway->relays);
    transfers_close(gateway);
    if (gateway->fetches)
        fetches_close(gateway->fetches);
    if (running->glued) {
        roomd_uv_stop(&gateway->glue, NULL);
        uv_run(gateway->loop, UV_RUN_NOWAIT);
    }
    roomd_client_close(gateway->client); /* answers what is still asked */
    if (gateway->http)
        http_server_close(gateway->http);
    uv_run(gateway->loop, UV_RUN_DEFAULT);
    if (gateway->standings)
        standings_close(gateway->standings);
    if (gateway->web)
        web_close(gateway->web);
    if (gateway->limits)
        limits_close(gateway->limits);
    asks_forget(gateway);
    free(gateway->fetches);
    policy_close(gateway->policy);
    SSL_CTX_free(gateway->tls);
    log_info("stopped", "streams=%zu", gateway->relays.count);
}
