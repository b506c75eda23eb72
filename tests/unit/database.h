/*
 * For tests that need PostgreSQL: a schema of their own in the database that ROOMD_TEST_DATABASE_URL names (they skip
 * without it), waiting for conditions on a loop, and a relay on the same loop that stands between the code under test
 * and the server and can be cut, stopped and opened again.
 */
#ifndef TESTS_UNIT_DATABASE_H
#define TESTS_UNIT_DATABASE_H

#pragma GCC diagnostic ignored "-Wunused-function" /* no test uses all of it */

#include "room/base/buf.h"
#include "room/base/clock.h"

#include <dirent.h>
#include <errno.h>
#include <libpq-fe.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

#include <cmocka.h>

enum { WAIT_MS = 20000 };

/* A blocking connection of the test itself. */
static PGconn *database_connect(const char *url)
{
    PGconn *connection = PQconnectdb(url);

    if (PQstatus(connection) != CONNECTION_OK)
        fail_msg("%s", PQerrorMessage(connection));
    return connection;
}

static void database_run(PGconn *connection, const char *sql)
{
    PGresult *result = PQexec(connection, sql);

    if (PQresultStatus(result) != PGRES_COMMAND_OK && PQresultStatus(result) != PGRES_TUPLES_OK)
        fail_msg("%s", PQerrorMessage(connection));
    PQclear(result);
}

/* First column of the first row, as a number. */
static long database_number(PGconn *connection, const char *sql)
{
    PGresult *result = PQexec(connection, sql);
    long number;

    if (PQresultStatus(result) != PGRES_TUPLES_OK || PQntuples(result) < 1)
        fail_msg("%s: %s", sql, PQerrorMessage(connection));
    number = atol(PQgetvalue(result, 0, 0));
    PQclear(result);
    return number;
}

static void add_setting(struct buf *url, const char *key, const char *value)
{
    const char *question = url->n && strstr(url->p, "://") ? strchr(strstr(url->p, "://"), '?') : NULL;

    if (strstr(url->p, "://"))
        buf_printf(url, "%c%s=%s", question ? '&' : '?', key, value);
    else
        buf_printf(url, " %s=%s", key, value);
}

/* The URL for work in `schema`, made anew and empty. NULL: there is no database to test with. Freed by database_end. */
static char *database_begin(const char *schema)
{
    const char *base = getenv("ROOMD_TEST_DATABASE_URL");
    struct buf url = {0}, sql = {0};
    PGconn *connection;

    if (!base)
        return NULL;
    connection = database_connect(base);
    buf_printf(
        &sql, "SET client_min_messages = warning; DROP SCHEMA IF EXISTS %s CASCADE; CREATE SCHEMA %s", schema, schema);
    database_run(connection, sql.p);
    PQfinish(connection);
    buf_clear(&sql);
    buf_printf(&url, "%s", base);
    buf_printf(&sql, "-csearch_path%s%s", strstr(base, "://") ? "%3D" : "=", schema);
    add_setting(&url, "options", sql.p);
    buf_clear(&sql);
    return url.p;
}

static void database_end(char *url, const char *schema)
{
    PGconn *connection;
    char sql[200];

    if (!url)
        return;
    connection = database_connect(url);
    snprintf(sql, sizeof sql, "SET client_min_messages = warning; DROP SCHEMA IF EXISTS %s CASCADE", schema);
    database_run(connection, sql);
    PQfinish(connection);
    free(url);
}

static int is_migration(const struct dirent *file)
{
    const char *dot = strrchr(file->d_name, '.');

    return dot && strcmp(dot, ".sql") == 0;
}

/* All of deploy/migrations, in order, as `roomd migrate` applies them. */
static void database_migrate(PGconn *connection)
{
    char folder[1000], path[2000], *text = xcalloc(1, 1 << 18);
    struct dirent **files;
    int count;

    snprintf(folder, sizeof folder, "%.*s/../../deploy/migrations", (int)(strrchr(__FILE__, '/') - __FILE__), __FILE__);
    count = scandir(folder, &files, is_migration, alphasort);
    if (count <= 0)
        fail_msg("%s: %s", folder, count < 0 ? strerror(errno) : "no migrations");
    database_run(connection, "SET client_min_messages = warning");
    for (int i = 0; i < count; i++) {
        FILE *file;
        size_t n;

        snprintf(path, sizeof path, "%s/%s", folder, files[i]->d_name);
        if (!(file = fopen(path, "r")))
            fail_msg("%s: %s", path, strerror(errno));
        n = fread(text, 1, (1 << 18) - 1, file);
        assert_true(n > 0 && feof(file));
        text[n] = '\0';
        fclose(file);
        database_run(connection, text);
        free(files[i]);
    }
    free(files);
    free(text);
}

/* Runs the loop until the condition holds. False: it did not within `ms`. */
static void late_on_timer(uv_timer_t *timer)
{
    *(bool *)timer->data = true;
}

static bool loop_until(uv_loop_t *loop, bool (*holds)(void *arg), void *arg, uint64_t ms)
{
    uv_timer_t timer;
    bool late = false, good;

    uv_update_time(loop);
    uv_timer_init(loop, &timer);
    timer.data = &late;
    uv_timer_start(&timer, late_on_timer, ms, 0);
    while (!(good = holds(arg)) && !late)
        uv_run(loop, UV_RUN_ONCE);
    uv_close((uv_handle_t *)&timer, NULL);
    uv_run(loop, UV_RUN_NOWAIT);
    return good;
}

/* --- the relay --- */

struct relay {
    uv_loop_t *loop;
    uv_tcp_t listener;
    bool listening, frozen;
    int port; /* here */
    struct sockaddr_storage server;
    struct relay_end *ends; /* all open ones */
};

struct relay_end {
    uv_tcp_t tcp;
    struct relay *relay;
    struct relay_end *other, *next;
    bool closing;
};

struct relay_write {
    uv_write_t write;
    char bytes[];
};

static void relay_end_on_closed(uv_handle_t *handle)
{
    struct relay_end *end = container_of((uv_tcp_t *)handle, struct relay_end, tcp);
    struct relay_end **at = &end->relay->ends;

    while (*at != end)
        at = &(*at)->next;
    *at = end->next;
    free(end);
}

static void relay_end_close(struct relay_end *end)
{
    if (end->closing)
        return;
    end->closing = true;
    if (end->other) {
        end->other->other = NULL;
        relay_end_close(end->other);
    }
    uv_close((uv_handle_t *)&end->tcp, relay_end_on_closed);
}

static void relay_on_alloc(uv_handle_t *handle, size_t wish, uv_buf_t *room)
{
    static char bytes[65536];

    (void)handle;
    (void)wish;
    *room = uv_buf_init(bytes, sizeof bytes);
}

static void relay_on_written(uv_write_t *write, int status)
{
    (void)status;
    free(container_of(write, struct relay_write, write));
}

static void relay_on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *room)
{
    struct relay_end *end = container_of((uv_tcp_t *)stream, struct relay_end, tcp);
    struct relay_write *write;
    uv_buf_t bytes;

    if (n < 0 || !end->other) {
        relay_end_close(end);
        return;
    }
    if (n == 0)
        return;
    write = xmalloc(sizeof *write + (size_t)n);
    memcpy(write->bytes, room->base, (size_t)n);
    bytes = uv_buf_init(write->bytes, (unsigned)n);
    if (uv_write(&write->write, (uv_stream_t *)&end->other->tcp, &bytes, 1, relay_on_written) != 0) {
        free(write);
        relay_end_close(end);
    }
}

static void relay_on_connected(uv_connect_t *connect, int status)
{
    struct relay_end *end = container_of((uv_tcp_t *)connect->handle, struct relay_end, tcp);

    free(connect);
    if (status != 0 || end->closing || !end->other) {
        relay_end_close(end);
        return;
    }
    uv_read_start((uv_stream_t *)&end->tcp, relay_on_alloc, relay_on_read);
    uv_read_start((uv_stream_t *)&end->other->tcp, relay_on_alloc, relay_on_read);
}

static struct relay_end *relay_end_new(struct relay *relay)
{
    struct relay_end *end = xcalloc(1, sizeof *end);

    uv_tcp_init(relay->loop, &end->tcp);
    end->relay = relay;
    end->next = relay->ends;
    relay->ends = end;
    return end;
}

static void relay_on_connection(uv_stream_t *listener, int status)
{
    struct relay *relay = container_of((uv_tcp_t *)listener, struct relay, listener);
    struct relay_end *near = relay_end_new(relay), *far;

    assert_int_equal(status, 0);
    assert_int_equal(uv_accept(listener, (uv_stream_t *)&near->tcp), 0);
    if (relay->frozen)
        return; /* taken and never answered */
    far = relay_end_new(relay);
    near->other = far;
    far->other = near;
    assert_int_equal(uv_tcp_connect(xcalloc(1, sizeof(uv_connect_t)), &far->tcp, (struct sockaddr *)&relay->server,
                         relay_on_connected),
        0);
}

static void relay_listen(struct relay *relay)
{
    struct sockaddr_in here;
    int size = sizeof here;

    uv_ip4_addr("127.0.0.1", relay->port, &here);
    uv_tcp_init(relay->loop, &relay->listener);
    assert_int_equal(uv_tcp_bind(&relay->listener, (struct sockaddr *)&here, 0), 0);
    assert_int_equal(uv_listen((uv_stream_t *)&relay->listener, 64, relay_on_connection), 0);
    uv_tcp_getsockname(&relay->listener, (struct sockaddr *)&here, &size);
    relay->port = ntohs(here.sin_port);
    relay->listening = true;
}

/* All connections end at once, and there is nobody at the port until relay_listen. */
static void relay_cut(struct relay *relay)
{
    relay->frozen = false;
    for (struct relay_end *end = relay->ends; end; end = end->next)
        relay_end_close(end);
    if (relay->listening)
        uv_close((uv_handle_t *)&relay->listener, NULL);
    relay->listening = false;
}

/* Nothing gets through any more, nobody is told. */
__attribute__((unused)) static void relay_freeze(struct relay *relay)
{
    relay->frozen = true;
    for (struct relay_end *end = relay->ends; end; end = end->next)
        if (!end->closing)
            uv_read_stop((uv_stream_t *)&end->tcp);
}

/* Stands before the server of `url` and rewrites it to lead here. The caller frees what is returned. */
static char *relay_begin(struct relay *relay, uv_loop_t *loop, const char *url)
{
    PGconn *connection = database_connect(url);
    struct buf here = {0};
    char port[8];

    *relay = (struct relay){.loop = loop};
    if (*PQhostaddr(connection) == '\0')
        fail_msg("ROOMD_TEST_DATABASE_URL must name a TCP address");
    if (strchr(PQhostaddr(connection), ':'))
        uv_ip6_addr(PQhostaddr(connection), atoi(PQport(connection)), (struct sockaddr_in6 *)&relay->server);
    else
        uv_ip4_addr(PQhostaddr(connection), atoi(PQport(connection)), (struct sockaddr_in *)&relay->server);
    PQfinish(connection);
    relay_listen(relay);
    snprintf(port, sizeof port, "%d", relay->port);
    buf_printf(&here, "%s", url);
    add_setting(&here, "hostaddr", "127.0.0.1");
    add_setting(&here, "port", port);
    return here.p;
}

#endif
