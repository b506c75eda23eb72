/*
 * History with a real PostgreSQL and no broker: what reads and moves cursors needs no owner. Tests write the log
 * themselves. They skip without ROOMD_TEST_DATABASE_URL.
 */
#ifndef TESTS_UNIT_READS_WORLD_H
#define TESTS_UNIT_READS_WORLD_H

#include "database.h"

#include <errno.h>
#include <inttypes.h>

#include "history/internal.h"
#include "room/base/log.h"

struct world {
    uv_loop_t loop;
    char *direct, *url; /* url: through the relay */
    struct relay relay;
    PGconn *sql; /* the test's own, straight */
    struct config config;
    struct pg *pg;
    struct history *history;
    struct buf told; /* a line for each ephemeral event: "room <id> <json>" or "account <id> <json>" */
};

static void world_on_ephemeral(void *arg, struct str room_id, struct str account, struct str json)
{
    struct world *world = arg;
    struct str to = room_id.n ? room_id : account;

    buf_printf(&world->told, "%s %.*s %.*s\n", room_id.n ? "room" : "account", STR_ARG(to), STR_ARG(json));
}

/* NULL: nothing to test with. */
static struct world *world_begin(const char *schema)
{
    static char *environment[] = {NULL};
    struct world *world;
    struct buf why = {0};

    if (!getenv("ROOMD_TEST_DATABASE_URL"))
        return NULL;
    world = xcalloc(1, sizeof *world);
    world->direct = database_begin(schema);
    world->sql = database_connect(world->direct);
    database_migrate(world->sql);
    database_run(world->sql, "INSERT INTO shard_lease (shard, epoch, holder) VALUES ('s00', 1, 'me')");
    assert_true(config_load(&world->config, NULL, environment, &why));
    uv_loop_init(&world->loop);
    world->url = relay_begin(&world->relay, &world->loop, world->direct);
    return world;
}

/* After the settings are as the test wants them. */
static void world_start(struct world *world)
{
    struct pg_settings pg = {.url = world->url, .read_connections = 2, .timeout_ms = 5000, .queue_max = 10000};
    struct history_events events = {.arg = world, .ephemeral = world_on_ephemeral};

    assert_int_equal(pg_open(&world->pg, &world->loop, &pg), ERR_OK);
    assert_int_equal(history_start(&world->history, &world->loop, &world->config, world->pg, &events), ERR_OK);
}

static void world_stop(struct world *world)
{
    if (!world->history)
        return;
    history_stop(world->history);
    pg_close(world->pg);
    world->history = NULL;
}

static void world_end(struct world *world, const char *schema)
{
    if (!world)
        return;
    world_stop(world);
    relay_cut(&world->relay);
    while (uv_run(&world->loop, UV_RUN_DEFAULT))
        ;
    assert_int_equal(uv_loop_close(&world->loop), 0);
    PQfinish(world->sql);
    database_end(world->direct, schema);
    free(world->url);
    buf_clear(&world->told);
    config_clear(&world->config);
    free(world);
}

static void world_wait(struct world *world, bool (*holds)(void *arg), void *arg)
{
    assert_true(loop_until(&world->loop, holds, arg, WAIT_MS));
}

#endif
