#include "migrate.h"

#include <inttypes.h>
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>

#include "room/base/pg_address.h"

#define CONNECT_SECONDS "5"
/* Any number that nobody else uses: two migrates at once take turns. */
#define LOCK_NUMBER "7236104882711054"
/* More than any number of takeovers. The same backup may be restored twice: what was said in between had epochs of its
 * own, above which those of the next life must begin. No memory of them is left but that time has passed: a second for
 * each epoch, which is more than takeovers need. */
#define GENERATION_STEP "1000000"
#define GENERATION "greatest(epoch + " GENERATION_STEP ", extract(epoch FROM clock_timestamp())::bigint)"

static PGconn *connect_to(const struct config *config, struct buf *why);
static bool run(PGconn *connection, const char *sql, const char *what, struct buf *why);
static bool is_applied(PGconn *connection, const char *name, bool *applied, struct buf *why);
static bool apply(PGconn *connection, const struct migration *migration, struct buf *why);
static bool make_shards(PGconn *connection, int64_t count, struct buf *why);
static bool lift_epochs(PGconn *connection, struct buf *why);

bool migrate(const struct config *config, bool new_generation, struct buf *why)
{
    PGconn *connection = connect_to(config, why);
    bool ok = false;

    if (!connection)
        return false;
    /* The session lock is gone with the connection, however this ends. */
    if (!run(connection, "SELECT pg_advisory_lock(" LOCK_NUMBER ")", "waiting for another migrate", why) ||
        !run(connection,
            "CREATE TABLE IF NOT EXISTS schema_migration (name text PRIMARY KEY, applied_at timestamptz NOT NULL "
            "DEFAULT now())",
            "making the table schema_migration", why))
        goto close;
    for (const struct migration *migration = migrations; migration->name; migration++) {
        bool applied;

        if (!is_applied(connection, migration->name, &applied, why) || (!applied && !apply(connection, migration, why)))
            goto close;
    }
    ok = make_shards(connection, config->shard_count, why) && (!new_generation || lift_epochs(connection, why));
    if (ok)
        printf("the database is up to date\n");

close:
    PQfinish(connection);
    return ok;
}

/* The last line of libpq's words: without the line feed, and without "connection to server at … failed" before it. */
static void add_words(struct buf *why, const char *words)
{
    size_t n = strlen(words);

    while (n && (words[n - 1] == '\n' || words[n - 1] == ' '))
        n--;
    for (size_t i = 0; i < n; i++)
        buf_char(why, words[i] == '\n' || words[i] == '\t' ? ' ' : words[i]);
}

static void ignore_notice(void *arg, const char *message)
{
    (void)arg;
    (void)message;
}

static PGconn *connect_to(const struct config *config, struct buf *why)
{
    PGconn *connection =
        pg_connect_and_wait(config->database_url, "-c application_name=roomd\\ migrate", CONNECT_SECONDS);

    if (PQstatus(connection) != CONNECTION_OK) {
        buf_text(why, "the database cannot be reached: ");
        add_words(why, connection ? PQerrorMessage(connection) : "database_url names no host that is known");
        PQfinish(connection);
        return NULL;
    }
    PQsetNoticeProcessor(connection, ignore_notice, NULL);
    return connection;
}

static bool run(PGconn *connection, const char *sql, const char *what, struct buf *why)
{
    PGresult *result = PQexec(connection, sql);
    ExecStatusType status = PQresultStatus(result);
    bool ok = status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK;

    if (!ok) {
        buf_printf(why, "%s: ", what);
        add_words(why, PQerrorMessage(connection));
    }
    PQclear(result);
    return ok;
}

static bool is_applied(PGconn *connection, const char *name, bool *applied, struct buf *why)
{
    PGresult *result =
        PQexecParams(connection, "SELECT 1 FROM schema_migration WHERE name = $1", 1, NULL, &name, NULL, NULL, 0);
    bool ok = PQresultStatus(result) == PGRES_TUPLES_OK;

    if (ok) {
        *applied = PQntuples(result) > 0;
    } else {
        buf_text(why, "reading the table schema_migration: ");
        add_words(why, PQerrorMessage(connection));
    }
    PQclear(result);
    return ok;
}

/* All of a file or nothing of it. */
static bool apply(PGconn *connection, const struct migration *migration, struct buf *why)
{
    PGresult *result;
    bool ok;

    if (!run(connection, "BEGIN", migration->name, why) || !run(connection, migration->sql, migration->name, why))
        return false;
    result = PQexecParams(
        connection, "INSERT INTO schema_migration (name) VALUES ($1)", 1, NULL, &migration->name, NULL, NULL, 0);
    ok = PQresultStatus(result) == PGRES_COMMAND_OK;
    PQclear(result);
    if (!ok || !run(connection, "COMMIT", migration->name, why)) {
        if (!ok) {
            buf_printf(why, "%s: ", migration->name);
            add_words(why, PQerrorMessage(connection));
        }
        return false;
    }
    printf("applied %s\n", migration->name);
    return true;
}

/* More shards can be added later; none is ever taken away, because rooms carry their name. */
static bool make_shards(PGconn *connection, int64_t count, struct buf *why)
{
    char sql[64];

    snprintf(sql, sizeof sql, "SELECT cluster_make_shards(%" PRId64 ")", count);
    return run(connection, sql, "making the shards", why);
}

static bool lift_epochs(PGconn *connection, struct buf *why)
{
    if (!run(connection,
            "UPDATE shard_lease SET epoch = " GENERATION ", holder = NULL, backend_pid = NULL, backend_start = NULL",
            "lifting the epochs", why))
        return false;
    printf("a new generation begins: the epoch of every shard is above all there were\n");
    return true;
}
