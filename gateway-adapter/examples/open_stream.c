/* All of an account's rooms, live, on a libuv loop. Usage: open_stream URLS KEY ACCOUNT */
#include <roomd_adapter_uv.h>
#include <stdio.h>

static struct roomd_client *client;
static struct roomd_call call;
static struct roomd_history_opened where;

static void on_event(void *arg, const char *json, size_t n)
{
    (void)arg, printf("%.*s\n", (int)n, json), fflush(stdout);
}

static void on_ended(void *arg, enum roomd_code code, const char *message)
{
    (void)arg, fprintf(stderr, "%s: %s\n", roomd_code_name(code), message), uv_stop(uv_default_loop());
}

static void on_where(struct roomd_call *done)
{
    if (done->code)
        on_ended(NULL, done->code, done->message);
    else
        roomd_stream_open(client, &where, &(struct roomd_stream_events){on_event, on_ended}, NULL);
}

int main(int argc, char **argv)
{
    struct roomd_uv glue;

    struct roomd_settings settings = {.instance_urls = argv[1], .service_key = argv[argc > 3 ? 2 : 0]};

    if (argc < 4 || roomd_client_open(&client, &settings, NULL))
        return 2;
    call.done = on_where;
    roomd_uv_start(&glue, uv_default_loop(), client);
    roomd_history_open(client, &call, &(struct roomd_history_open){.account_id = argv[3], .all = true}, &where);
    return uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}
