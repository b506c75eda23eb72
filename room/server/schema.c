#include "schema.h"

#include <stdlib.h>

#include "migrate.h"
#include "room/base/log.h"

enum { ASK_MS = 1500, AGAIN_MS = 1000 };

struct schema_watch {
    struct pg *pg;
    uv_timer_t again;
    struct pg_query query;
    void (*told)(void *arg, enum schema_state state);
    void *arg;
};

static const struct pg_statement applied_statement = {
    .name = "schema_applied",
    .sql = "SELECT count(*) FROM schema_migration WHERE name = ANY ($1::text[])",
    .params = 1,
};

static void ask(struct schema_watch *watch);
static void on_count(struct pg_query *query, enum err err, const PGresult *result);
static void on_again(uv_timer_t *timer);

struct schema_watch *schema_watch_start(
    uv_loop_t *loop, struct pg *pg, void (*told)(void *arg, enum schema_state state), void *arg)
{
    struct schema_watch *watch = xcalloc(1, sizeof *watch);

    watch->pg = pg;
    watch->told = told;
    watch->arg = arg;
    uv_timer_init(loop, &watch->again);
    ask(watch);
    return watch;
}

static void on_closed(uv_handle_t *handle)
{
    free(container_of(handle, struct schema_watch, again));
}

void schema_watch_stop(struct schema_watch *watch)
{
    pg_forget(&watch->query);
    uv_close((uv_handle_t *)&watch->again, on_closed);
}

static void ask(struct schema_watch *watch)
{
    struct pg_params params = {0};
    struct pg_array names = {0};

    pg_array_reset(&names, PG_TEXT);
    for (const struct migration *migration = migrations; migration->name; migration++)
        pg_array_bytes(&names, str_of(migration->name));
    pg_param_array(&params, &names);
    watch->query =
        (struct pg_query){.statement = &applied_statement, .lane = PG_READ, .timeout_ms = ASK_MS, .done = on_count};
    pg_submit(watch->pg, &watch->query, &params);
    pg_array_clear(&names);
    pg_params_clear(&params);
}

static void on_count(struct pg_query *query, enum err err, const PGresult *result)
{
    struct schema_watch *watch = container_of(query, struct schema_watch, query);
    int64_t wanted = 0;

    for (const struct migration *migration = migrations; migration->name; migration++)
        wanted++;
    if (err == ERR_DATABASE && strcmp(pg_sqlstate(result), "42P01") == 0) { /* there is no such table */
        watch->told(watch->arg, SCHEMA_OLD);
    } else if (err) {
        uv_timer_start(&watch->again, on_again, AGAIN_MS, 0);
        watch->told(watch->arg, SCHEMA_UNKNOWN);
    } else {
        watch->told(watch->arg, pg_get_i64(result, 0, 0) < wanted ? SCHEMA_OLD : SCHEMA_GOOD);
    }
}

static void on_again(uv_timer_t *timer)
{
    ask(container_of(timer, struct schema_watch, again));
}
