/*
 * roomd: the contents page. Each line of start() needs those above it; stop() is the same list upwards.
 *
 *   options.c      the command line            migrate.c   brings the schema up to date
 *   wiring.c       module by module            schema.c    is the schema up to date?
 *   api*.c         calls and who may call      drain.c     SIGTERM
 *   health.c       healthz, readyz, metrics    complain.c  sentences on stderr
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "api.h"
#include "drain.h"
#include "migrate.h"
#include "options.h"
#include "room/base/clock.h"
#include "room/base/complain.h"
#include "room/base/log.h"
#include "room/rules.h"
#include "schema.h"
#include "wiring.h"

extern char **environ;

static enum exit_code serve(const struct config *config, const char *config_path);
static enum exit_code check_config(const struct config *config);
static bool may_serve(const struct config *config, struct buf *why);
static enum exit_code bring_up_to_date(const struct config *config, bool new_generation);
static void print_text(struct buf *text);

int main(int count, char **words)
{
    struct options options;
    struct config config;
    struct buf text = {0};
    enum exit_code code;

    if (!options_read(&options, count, words, &text)) {
        complain_lines(&text);
        return EXIT_WRONG_USE;
    }
    switch (options.command) {
    case COMMAND_HELP:
        fputs(help_text, stdout);
        return EXIT_DONE;
    case COMMAND_VERSION:
        puts("roomd " ROOMD_VERSION);
        return EXIT_DONE;
    case COMMAND_SETTINGS:
        config_manual(&text);
        print_text(&text);
        return EXIT_DONE;
    default:
        break;
    }
    if (!config_load(&config, options.config_path, environ, &text)) {
        complain_lines(&text);
        return EXIT_WRONG_USE;
    }
    code = options.command == COMMAND_MIGRATE        ? bring_up_to_date(&config, options.new_generation)
           : options.command == COMMAND_CHECK_CONFIG ? check_config(&config)
                                                     : serve(&config, options.config_path);
    config_clear(&config);
    return code;
}

/* --------------------------------------------------------------------------------------------------------- serve */

struct running {
    struct service service;
    struct schema_watch *schema;
    const char *config_path;
    bool schema_asked; /* answered, or known to be without answer for now */
    bool schema_old;
    enum exit_code code;
    uv_loop_t loop;
};

static void on_schema(void *arg, enum schema_state state);
static bool start(struct running *running);
static void stop(struct running *running);
static void on_left(void *arg);

static enum exit_code serve(const struct config *config, const char *config_path)
{
    struct running running = {.config_path = config_path, .service = {.config = config}};
    struct buf why = {0};
    enum log_level level;

    if (!may_serve(config, &why)) {
        complain_lines(&why);
        return EXIT_WRONG_USE;
    }
    if (log_level_parse(config->log_level, &level))
        log_set_level(level);
    signal(SIGPIPE, SIG_IGN); /* a peer that left is an error code, not the end of the process */
    uv_loop_init(&running.loop);
    running.service.loop = &running.loop;
    running.service.started_at_ms = clock_unix_ms();
    list_init(&running.service.frames);
    if (start(&running))
        uv_run(&running.loop, UV_RUN_DEFAULT); /* until SIGTERM */
    stop(&running);
    return running.code;
}

/* false: it did not work, and why has been said; stop() takes what is there. */
static bool start(struct running *running)
{
    struct service *service = &running->service;

    running->code = EXIT_FAILED;
    service->keys = service_keys_read(service->config->service_keys);
    if (!(service->pg = wire_pg(service)))
        return false;
    running->schema = schema_watch_start(service->loop, service->pg, on_schema, running);
    while (!running->schema_asked)
        uv_run(service->loop, UV_RUN_ONCE);
    if (running->schema_old)
        return false;
    if (!(service->history = wire_history(service)))
        return false;
    service->api = api_open(service);
    if (!(service->http = wire_http(service)))
        return false;
    if (!(service->cluster = wire_cluster(service)))
        return false;
    if (!(service->publish = wire_link(service, "publish")) || !(service->consume = wire_link(service, "consume")))
        return false;
    history_connect(service->history, service->cluster, service->publish, service->consume);
    service->rooms = rooms_open(service->pg, service->cluster);
    rooms_show_entries_with(service->rooms, history_write_row);
    if (!(service->proxy = wire_proxy(service)))
        return false;
    service->drain = drain_listen(service, wire_stop_loop);
    log_info("started", "instance=%s url=%s", cluster_self(service->cluster), wire_url(service));
    running->code = EXIT_DONE;
    return true;
}

/* Back to front. What is still asked of the database is answered while the loop runs out of handles, so
 * calls go last. */
static void stop(struct running *running)
{
    struct service *service = &running->service;

    if (service->drain)
        drain_close(service->drain);
    if (service->http)
        http_server_close(service->http);
    if (service->proxy)
        proxy_stop(service->proxy);
    service->proxy = NULL;
    if (service->history)
        history_stop(service->history);
    if (service->consume)
        amqp_link_close(service->consume);
    if (service->publish)
        amqp_link_close(service->publish);
    if (service->cluster)
        cluster_leave(service->cluster, on_left, service);
    while (service->cluster)
        uv_run(service->loop, UV_RUN_ONCE);
    if (running->schema)
        schema_watch_stop(running->schema);
    if (service->pg)
        pg_close(service->pg);
    uv_run(service->loop, UV_RUN_DEFAULT);

    if (service->api)
        api_close(service->api);
    api_frames_close(service);
    if (service->rooms)
        rooms_close(service->rooms);
    service_keys_free(service->keys);
    uv_run(service->loop, UV_RUN_DEFAULT);
    if (uv_loop_close(service->loop))
        log_warn("stop.handles", "some are still open");
    log_info("stopped", "code=%d", running->code);
}

static void on_left(void *arg)
{
    struct service *service = arg;

    service->cluster = NULL;
}

static void on_schema(void *arg, enum schema_state state)
{
    struct running *running = arg;

    running->schema_asked = true;
    if (state == SCHEMA_GOOD)
        running->service.schema_ok = true;
    if (state != SCHEMA_OLD)
        return;
    complain("the database is not up to date for this program; run: roomd migrate%s%s",
        running->config_path ? " --config " : "", running->config_path ? running->config_path : "");
    running->schema_old = true;
    running->code = EXIT_FAILED;
    uv_stop(running->service.loop);
}

/* ------------------------------------------------------------------------------------------------ other commands */

/* What the table of settings cannot know of their values, too. */
static bool may_serve(const struct config *config, struct buf *why)
{
    bool good = config_check_serve(config, why);
    const char *wrong;
    struct rules rules;

    if (rules_read(&rules, config->role_rules, &wrong))
        return good;
    buf_printf(why, "role_rules: %s\n", wrong);
    return false;
}

static enum exit_code check_config(const struct config *config)
{
    struct buf text = {0};

    if (!may_serve(config, &text)) {
        complain_lines(&text);
        return EXIT_WRONG_USE;
    }
    config_print(config, &text);
    print_text(&text);
    return EXIT_DONE;
}

static enum exit_code bring_up_to_date(const struct config *config, bool new_generation)
{
    struct buf why = {0};

    if (migrate(config, new_generation, &why))
        return EXIT_DONE;
    complain_lines(&why);
    return EXIT_FAILED;
}

static void print_text(struct buf *text)
{
    fwrite(text->p, 1, text->n, stdout);
    buf_clear(text);
}
