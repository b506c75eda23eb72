/* baseservice: the contents page. Each line of serve() needs those above it; stopping is the same list upwards. */
#include "baseservice.h"
#include "files.h"
#include "room/base/log.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static const struct setting keys[] = {
#define KEY(name, type, fallback, least, most, help) \
    {#name, SETTING_##type, fallback, least, most, help, offsetof(struct options, name)},
#include "settings_keys.h"
#undef KEY
};
static const struct settings settings = {keys, countof(keys), "BASESERVICE_", NULL};

static const char help[] =
    "usage: baseservice [serve] [--config FILE]\n"
    "       baseservice --settings | --help | --version\n\n"
    "Accounts and files for a chat's gateway; docs/baseservice.md is its contract. Every setting\n"
    "also comes from the environment, as BASESERVICE_<NAME>.\n";

extern char **environ;

struct running {
    uv_loop_t loop;
    uv_signal_t terminate, interrupt;
    struct server *server;
    bool draining;
};

static void on_idle(void *arg)
{
    uv_stop(arg);
}

/* A second one does not wait any more. */
static void on_signal(uv_signal_t *handle, int number)
{
    struct running *running = handle->data;

    log_info("drain.begin", "signal=%d", number);
    if (running->draining)
        uv_stop(&running->loop);
    else
        server_drain(running->server, on_idle, &running->loop);
    running->draining = true;
}

static void watch_signal(struct running *running, uv_signal_t *handle, int number)
{
    uv_signal_init(&running->loop, handle);
    handle->data = running;
    uv_signal_start(handle, on_signal, number);
}

static int serve(const struct options *options)
{
    struct running running = {.draining = false};
    struct file_store *store = file_store_open(options->data_dir);

    if (!store)
        return 1;
    signal(SIGPIPE, SIG_IGN);
    uv_loop_init(&running.loop);
    running.server = server_open(&running.loop, options, store);
    if (running.server) {
        watch_signal(&running, &running.terminate, SIGTERM);
        watch_signal(&running, &running.interrupt, SIGINT);
        log_info("started", "url=http://%s:%d data=%s", options->listen_address, server_port(running.server),
            log_quote(str_of(options->data_dir)));
        uv_run(&running.loop, UV_RUN_DEFAULT); /* until SIGTERM */
        uv_close((uv_handle_t *)&running.terminate, NULL);
        uv_close((uv_handle_t *)&running.interrupt, NULL);
        server_free(running.server);
    }
    uv_run(&running.loop, UV_RUN_DEFAULT);
    uv_loop_close(&running.loop);
    file_store_free(store);
    log_info("stopped", "code=%d", running.server ? 0 : 1);
    return running.server ? 0 : 1;
}

static bool load(struct options *options, const char *path)
{
    struct buf why = {0};
    enum log_level level;
    bool good = settings_load(&settings, options, path, environ, &why);

    if (good && !options->service_keys[0])
        buf_text(&why, "service_keys is empty: no gateway could call\n");
    good = good && accounts_check(options->accounts, &why) && why.n == 0;
    if (good && log_level_parse(options->log_level, &level))
        log_set_level(level);
    if (why.n)
        fwrite(why.p, 1, why.n, stderr);
    buf_clear(&why);
    return good;
}

int main(int count, char **words)
{
    struct options options = {0};
    struct buf text = {0};
    const char *path = NULL;
    int at = 1, code = 2;

    if (count == 2 && strcmp(words[1], "--help") == 0)
        return fputs(help, stdout) < 0;
    if (count == 2 && strcmp(words[1], "--version") == 0)
        return puts("baseservice " ROOMD_VERSION) < 0;
    if (count == 2 && strcmp(words[1], "--settings") == 0) {
        settings_manual(&settings, &text);
        fwrite(text.p, 1, text.n, stdout);
        buf_clear(&text);
        return 0;
    }
    if (at < count && strcmp(words[at], "serve") == 0)
        at++;
    if (at + 1 < count && strcmp(words[at], "--config") == 0) {
        path = words[at + 1];
        at += 2;
    }
    if (at < count) {
        fputs(help, stderr);
        return 2;
    }
    if (load(&options, path))
        code = serve(&options);
    settings_clear(&settings, &options);
    return code;
}
