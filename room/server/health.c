/* What operators and balancers ask without a key: healthz (the loop runs), readyz (send me work), metrics. */
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "api.h"
#include "room/base/clock.h"
#include "room/base/log.h"

static void serve_ready(struct service *service, struct http_reply *reply);
static void serve_metrics(struct service *service, struct http_reply *reply);

void health_serve(struct service *service, struct http_request *request, struct http_reply *reply)
{
    if (str_is(request->path, "/healthz"))
        http_reply_json(reply, 200, STR("{\"alive\":true}"));
    else if (str_is(request->path, "/readyz"))
        serve_ready(service, reply);
    else
        serve_metrics(service, reply);
}

/* -------------------------------------------------------------------------------------------------------- readyz */

static size_t leases_ours(const struct cluster *cluster)
{
    const struct cluster_shard *shards = cluster_shards(cluster);
    size_t ours = 0;

    for (size_t i = 0; i < cluster_shard_count(cluster); i++)
        ours += shards[i].ours;
    return ours;
}

/* Every shard has an owner, and it is never us. */
static bool others_hold_all(const struct cluster *cluster)
{
    const struct cluster_shard *shards = cluster_shards(cluster);

    for (size_t i = 0; i < cluster_shard_count(cluster); i++)
        if (!shards[i].owner[0] || shards[i].ours)
            return false;
    return cluster_shard_count(cluster) > 0;
}

/* A sentence for people; NULL: ready. */
static const char *not_ready_because(const struct service *service)
{
    if (service->draining)
        return "this instance is draining: it was told to stop";
    if (!cluster_database_ok(service->cluster))
        return "the database is away, or has not answered yet";
    if (!service->schema_ok)
        return "the database has not been checked yet";
    if (!history_ready(service->history))
        return history_why_not_ready(service->history);
    if (history_shards_ours(service->history))
        return NULL;
    if (others_hold_all(service->cluster))
        return NULL; /* calls and streams are served by way of the owners */
    return leases_ours(service->cluster) ? "shards are ours, but none is consumed yet"
                                         : "no shard has been taken over yet";
}

/* The shards we hold: their names, or all that is known of them. */
static void write_leases(const struct cluster *cluster, struct buf *json, bool whole)
{
    const struct cluster_shard *shards = cluster_shards(cluster);
    bool first = true;

    for (size_t i = 0; i < cluster_shard_count(cluster); i++) {
        if (!shards[i].ours)
            continue;
        if (!first)
            buf_char(json, ',');
        if (whole)
            buf_printf(json, "{\"shard\":\"%s\",\"epoch\":%" PRIu64 ",\"since\":%" PRIu64 "}", shards[i].name,
                shards[i].epoch, shards[i].since_ms);
        else
            buf_printf(json, "\"%s\"", shards[i].name);
        first = false;
    }
}

static void serve_ready(struct service *service, struct http_reply *reply)
{
    const char *reason = not_ready_because(service);
    struct buf json = {0};

    buf_printf(&json, "{\"ready\":%s,\"instance\":\"%s\",\"name\":", reason ? "false" : "true",
        cluster_self(service->cluster));
    buf_json_string(&json, str_of(service->config->instance_name));
    buf_printf(&json, ",\"standby\":%s", others_hold_all(service->cluster) ? "true" : "false");
    buf_printf(&json, ",\"version\":\"%s\",\"broker\":%s,\"database\":%s,\"draining\":%s,\"shards\":[", ROOMD_VERSION,
        history_ready(service->history) ? "true" : "false", cluster_database_ok(service->cluster) ? "true" : "false",
        service->draining ? "true" : "false");
    write_leases(service->cluster, &json, false);
    buf_text(&json, "],\"leases\":[");
    write_leases(service->cluster, &json, true);
    buf_printf(&json, "],\"reason\":");
    if (reason)
        buf_json_string(&json, str_of(reason));
    else
        buf_text(&json, "null");
    buf_char(&json, '}');
    http_reply_json(reply, reason ? 503 : 200, buf_str(&json));
    buf_clear(&json);
}

/* ------------------------------------------------------------------------------------------------------- metrics */

static uint64_t resident_bytes(void)
{
    unsigned long long size = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "re");

    if (!file)
        return 0;
    if (fscanf(file, "%llu %llu", &size, &resident) != 2)
        resident = 0;
    fclose(file);
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static size_t open_files(void)
{
    DIR *folder = opendir("/proc/self/fd");
    size_t count = 0;

    if (!folder)
        return 0;
    while (readdir(folder))
        count++;
    closedir(folder);
    return count - 3; /* ., .., and the folder itself */
}

static void process_metrics(const struct service *service, struct buf *out)
{
    struct rusage usage;
    struct rlimit files = {0};

    getrusage(RUSAGE_SELF, &usage);
    getrlimit(RLIMIT_NOFILE, &files);
    buf_printf(out,
        "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes %" PRIu64 "\n"
        "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total %.3f\n"
        "# TYPE process_open_fds gauge\nprocess_open_fds %zu\n"
        "# TYPE process_max_fds gauge\nprocess_max_fds %" PRIu64 "\n"
        "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds %.3f\n"
        "# TYPE roomd_log_lines_dropped_total counter\nroomd_log_lines_dropped_total %" PRIu64 "\n",
        resident_bytes(),
        (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
            (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6,
        open_files(), (uint64_t)files.rlim_cur, (double)service->started_at_ms / 1000, log_dropped());
}

static void pg_metrics(const struct pg *pg, struct buf *out)
{
    static const char *const lanes[PG_LANES] = {[PG_WRITE] = "write", [PG_READ] = "read", [PG_CONTROL] = "control"};
    static const char *const names[] = {
        "up", "statements_total", "errors_total", "reconnects_total", "waiting", "in_flight"};

    for (size_t name = 0; name < countof(names); name++) {
        buf_printf(out, "# TYPE roomd_database_%s %s\n", names[name], name >= 1 && name <= 3 ? "counter" : "gauge");
        for (int lane = 0; lane < PG_LANES; lane++) {
            struct pg_counters counters = pg_counters(pg, (enum pg_lane)lane);
            uint64_t values[] = {pg_up(pg, (enum pg_lane)lane), counters.statements_total, counters.errors_total,
                counters.reconnects_total, counters.waiting, counters.in_flight};

            buf_printf(out, "roomd_database_%s{lane=\"%s\"} %" PRIu64 "\n", names[name], lanes[lane], values[name]);
        }
    }
}

static void broker_metrics(const struct service *service, struct buf *out)
{
    static const char *const names[] = {"up", "published_total", "confirmed_total", "returned_total", "nacked_total",
        "delivered_total", "reconnects_total", "unconfirmed", "unconfirmed_bytes"};
    const struct {
        const char *name;
        const struct amqp_link *link;
    } links[] = {{"publish", service->publish}, {"consume", service->consume}};

    for (size_t name = 0; name < countof(names); name++) {
        buf_printf(out, "# TYPE roomd_broker_%s %s\n", names[name], name >= 1 && name <= 6 ? "counter" : "gauge");
        for (size_t i = 0; i < countof(links); i++) {
            struct amqp_counters c = amqp_link_counters(links[i].link);
            uint64_t values[] = {amqp_link_up(links[i].link), c.published_total, c.confirmed_total, c.returned_total,
                c.nacked_total, c.delivered_total, c.reconnects_total, c.pending, c.pending_bytes};

            buf_printf(out, "roomd_broker_%s{link=\"%s\"} %" PRIu64 "\n", names[name], links[i].name, values[name]);
        }
    }
}

static void cluster_metrics(const struct service *service, struct buf *out)
{
    const struct cluster_instance *instances;
    size_t count = cluster_instances(service->cluster, &instances), alive = 0;
    struct cluster_counters leases = cluster_counters(service->cluster);

    for (size_t i = 0; i < count; i++)
        alive += instances[i].alive;
    buf_printf(out,
        "# TYPE roomd_ready gauge\nroomd_ready %d\n# TYPE roomd_draining gauge\nroomd_draining %d\n"
        "# TYPE roomd_instances_alive gauge\nroomd_instances_alive %zu\n# TYPE roomd_shards gauge\nroomd_shards %zu\n"
        "# TYPE roomd_leases gauge\nroomd_leases %zu\n# TYPE roomd_shards_consumed gauge\nroomd_shards_consumed %zu\n",
        not_ready_because(service) == NULL, service->draining, alive, cluster_shard_count(service->cluster),
        leases_ours(service->cluster), history_shards_ours(service->history));
    buf_printf(out,
        "# TYPE roomd_lease_changes_total counter\nroomd_lease_changes_total{change=\"taken\"} %" PRIu64
        "\nroomd_lease_changes_total{change=\"lost\"} %" PRIu64
        "\nroomd_lease_changes_total{change=\"given_back\"} %" PRIu64
        "\n# TYPE roomd_lease_moves_total counter\nroomd_lease_moves_total %" PRIu64 "\n",
        leases.taken_total, leases.lost_total, leases.released_total, leases.moves_total);
}

static void serve_metrics(struct service *service, struct http_reply *reply)
{
    struct http_counters http = http_server_counters(service->http);
    struct buf out = {0};

    buf_printf(&out, "# TYPE roomd_info gauge\nroomd_info{version=\"%s\",instance=\"%s\"} 1\n", ROOMD_VERSION,
        cluster_self(service->cluster));
    process_metrics(service, &out);
    cluster_metrics(service, &out);
    pg_metrics(service->pg, &out);
    broker_metrics(service, &out);
    buf_printf(&out,
        "# TYPE roomd_http_connections_open gauge\nroomd_http_connections_open %" PRIu64 "\n"
        "# TYPE roomd_http_requests_total counter\nroomd_http_requests_total %" PRIu64 "\n"
        "# TYPE roomd_http_refused_total counter\nroomd_http_refused_total %" PRIu64 "\n",
        http.connections_open, http.requests_total, http.refused_total);
    api_metrics(service->api, &out);
    history_metrics(service->history, &out);
    proxy_metrics(service->proxy, &out);
    http_reply_text(reply, 200, "text/plain; version=0.0.4", buf_str(&out));
    buf_clear(&out);
}
