/* Wiring: who tells whom, one turn of the loop, and what operators see. */
#include "internal.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "room/base/clock.h"
#include "room/base/log.h"

/* Only while a shard is taken over. */
#define LOOK_EVERY_MS 100

static void on_check(uv_check_t *check);
static void on_prepare(uv_prepare_t *prepare);
static void on_look_timer(uv_timer_t *timer);
static void on_drain_timer(uv_timer_t *timer);
static void history_turn(struct history *history);
static void say_able(struct history *history);

enum err history_start(struct history **out, uv_loop_t *loop, const struct config *config, struct pg *pg,
    const struct history_events *events)
{
    struct history *history = xcalloc(1, sizeof *history);

    history->loop = loop;
    history->config = config;
    history->pg = pg;
    history->events = *events;
    map_init(&history->shards_by_name);
    list_init(&history->shards);
    list_init(&history->dirty);
    list_init(&history->closing);
    list_init(&history->looking);
    list_init(&history->probing);
    history->facts = facts_open(history);
    history->writer = writer_open(history);
    history->outbox = outbox_open(history);
    history->calls = calls_open(history);
    history->origins = origins_open(history);
    history->topology = topology_open(history);
    history->feed = feed_open(history);
    history->reader = reader_open(history);
    history->marks = marks_open(history);
    history->make_up = make_up_open(history);
    uv_check_init(loop, &history->check);
    uv_prepare_init(loop, &history->prepare);
    uv_timer_init(loop, &history->look_timer);
    uv_timer_init(loop, &history->drain_timer);
    history->check.data = history->prepare.data = history->look_timer.data = history->drain_timer.data = history;
    history->handles = 4;
    uv_check_start(&history->check, on_check);
    uv_prepare_start(&history->prepare, on_prepare);
    *out = history;
    return ERR_OK;
}

void history_connect(
    struct history *history, struct cluster *cluster, struct amqp_link *publish, struct amqp_link *consume)
{
    history->cluster = cluster;
    history->publish = publish;
    history->consume = consume;
    writer_connected(history->writer);
    feed_connected(history->feed);
    /* What starts last is called first: our turn comes before the links write out what it gave them. */
    uv_check_stop(&history->check);
    uv_prepare_stop(&history->prepare);
    uv_check_start(&history->check, on_check);
    uv_prepare_start(&history->prepare, on_prepare);
    if (amqp_link_up(publish))
        history_publish_link(history, true);
    if (amqp_link_up(consume))
        history_consume_link(history, true);
}

uint64_t history_now_ms(const struct history *history)
{
    uint64_t now = history->cluster ? cluster_now_ms(history->cluster) : 0;

    return now ? now : clock_unix_ms();
}

/* ----------------------------------------------------------------------------------------------- cluster and links */

void history_lease_taken(struct history *history, struct str name, uint64_t epoch)
{
    shard_taken(history, name, epoch);
    outbox_kick(history->outbox);
}

void history_lease_lost(struct history *history, struct str name)
{
    struct shard *shard = history_find_shard(history, name);

    if (shard)
        shard_lost(shard, "the lease is another's");
}

void history_lease_move(struct history *history, struct str name)
{
    struct shard *shard = history_find_shard(history, name);

    if (shard)
        shard_drain(shard);
    else if (!shard_is_closing(history, name))
        cluster_release(history->cluster, name); /* given up before: there is nothing to end */
}

struct probe {
    struct list link; /* history->probing */
    struct history *history;
    char name[SHARD_MAX_BYTES + 1];
};

static void on_probed(void *arg, enum err err, uint32_t messages, uint32_t consumers)
{
    struct probe *probe = arg;

    (void)messages;
    list_remove(&probe->link);
    cluster_probed(probe->history->cluster, str_of(probe->name), err, consumers);
    free(probe);
}

void history_lease_probe(struct history *history, struct str name)
{
    struct probe *probe;
    char queue[32];

    if (!history->publish || !amqp_link_up(history->publish) || name.n > SHARD_MAX_BYTES) {
        cluster_probed(history->cluster, name, ERR_UNAVAILABLE, 0);
        return;
    }
    probe = xcalloc(1, sizeof *probe);
    probe->history = history;
    memcpy(probe->name, name.p, name.n);
    snprintf(queue, sizeof queue, "roomd.shard.%s", probe->name);
    list_push_back(&history->probing, &probe->link);
    amqp_inspect_queue(history->publish, queue, on_probed, probe);
}

void history_publish_link(struct history *history, bool up)
{
    log_info("link.publish", "up=%s", up ? "true" : "false");
    if (up) {
        feed_link_up(history->feed);
        topology_link_up(history->topology);
        outbox_kick(history->outbox);
    }
    say_able(history);
}

void history_consume_link(struct history *history, bool up)
{
    struct shard *shard;

    log_info("link.consume", "up=%s", up ? "true" : "false");
    if (up) {
        amqp_link_pause(history->consume, history->paused);
        list_for_each (shard, &history->shards, link)
            shard_look(shard);
    }
    say_able(history);
}

void history_topology_changed(struct history *history)
{
    struct shard *shard;

    say_able(history);
    feed_declared(history->feed);
    list_for_each (shard, &history->shards, link)
        shard_look(shard);
}

/* Who cannot consume must not take shards. */
static void say_able(struct history *history)
{
    if (history->cluster)
        cluster_ready(history->cluster, !history->draining && !topology_missing(history->topology) &&
                                            history->consume && amqp_link_up(history->consume));
}

/* ---------------------------------------------------------------------------------------------------------- a turn */

static void on_check(uv_check_t *check)
{
    history_turn(check->data);
}

static void on_prepare(uv_prepare_t *prepare)
{
    history_turn(prepare->data);
}

static void shard_turn(struct history *history, struct shard *shard)
{
    /* What a draining shard holds does not grow, and must not keep close-ok from being read. */
    size_t bytes = shard_is_sequencing(shard) ? sequencer_counters(shard->sequencer).unpersisted_bytes : 0;

    history->unpersisted_bytes += bytes - shard->unpersisted_bytes;
    shard->unpersisted_bytes = bytes;
    inbox_take_acks(shard);
    if (shard_is_sequencing(shard))
        facts_collect(history->facts, shard);
    if (shard->state <= SHARD_DRAINING)
        writer_offer(history->writer, shard);
    sequencer_trim(shard->sequencer);
    shard_drain_check(shard); /* may end the shard */
}

static void history_turn(struct history *history)
{
    struct list *at;

    if (!history->cluster)
        return;
    while ((at = list_pop_front(&history->dirty)))
        shard_turn(history, list_entry(at, struct shard, dirty_link));
    facts_turn(history->facts);
    make_up_turn(history->make_up);
    writer_turn(history->writer);
    reader_turn(history->reader);
    feed_turn(history->feed);
    inbox_back_pressure(history);
}

void history_keep_looking(struct history *history)
{
    if (!uv_is_active((uv_handle_t *)&history->look_timer))
        uv_timer_start(&history->look_timer, on_look_timer, LOOK_EVERY_MS, LOOK_EVERY_MS);
}

static void on_look_timer(uv_timer_t *timer)
{
    struct history *history = timer->data;
    struct shard *shard;
    bool waiting = false;

    list_for_each (shard, &history->shards, link) {
        if (shard->state != SHARD_WAITING)
            continue;
        waiting = true;
        if (uv_now(history->loop) >= shard->next_look_ms)
            shard_look(shard);
    }
    if (!waiting)
        uv_timer_stop(timer);
}

/* ------------------------------------------------------------------------------------------------------------ news */

static void on_shown(void *arg, struct str room_id, struct entry *entry, bool durable)
{
    struct shard *shard = arg;
    struct history *history = shard->history;

    if (history->events.shown)
        history->events.shown(history->events.arg, room_id, entry, durable);
    feed_shown(shard->feed, room_id, entry, durable);
    if (entry->type == ENTRY_JOINED)
        feed_joined(history->feed, room_id, entry);
    calls_shown(history->calls, entry);
    origins_shown(history->origins, entry);
}

static void on_durable(void *arg, struct str room_id, int64_t room_no, uint64_t seq, uint64_t epoch)
{
    struct shard *shard = arg;
    struct history *history = shard->history;

    if (history->events.durable)
        history->events.durable(history->events.arg, room_id, seq);
    feed_durable(shard->feed, room_id, room_no, seq, epoch);
    reader_durable(history->reader, room_id, room_no, seq, epoch);
}

static void on_transient(void *arg, struct str room_id, struct str json)
{
    history_tell_room(((struct shard *)arg)->history, room_id, json);
}

static void on_rejected(void *arg, const struct envelope *envelope, enum err err, const char *why)
{
    struct shard *shard = arg;
    struct history *history = shard->history;
    struct buf json = {0};
    char id[ULID_TEXT];

    log_info("message.rejected", "shard=%s room=%s code=%s why=\"%s\"", shard->name, log_quote(envelope->room_id),
        err_code(err), why ? why : "");
    if (envelope->op || !envelope->sender.n)
        return;
    ulid_write(id, envelope->message_id);
    buf_text(&json, "{\"type\":\"message.rejected\",\"room_id\":");
    buf_json_string(&json, envelope->room_id);
    buf_text(&json, ",\"client_msg_id\":");
    buf_json_string(&json, envelope->client_msg_id);
    buf_text(&json, ",\"message_id\":\"");
    buf_add(&json, id, sizeof id);
    buf_printf(&json, "\",\"code\":\"%s\",\"message\":", err_code(err));
    buf_json_string(&json, str_of(why && *why ? why : err_sentence(err)));
    buf_char(&json, '}');
    history_tell_account(history, envelope->sender, buf_str(&json));
    buf_clear(&json);
}

static void on_settled(
    void *arg, struct id128 message_id, enum err result, uint64_t seq, bool duplicate, struct str meta)
{
    struct history *history = ((struct shard *)arg)->history;
    const struct feed_settled settled = {
        .what = FEED_SETTLED_DONE,
        .message_id = message_id,
        .duplicate = duplicate,
        .seq = seq,
        .code = str_of(err_code(result)),
        .result = meta,
    };

    calls_settled(history->calls, message_id, result, seq, duplicate, meta);
    origins_settled(history->origins, &settled);
}

static void on_sent(void *arg, struct str room_id, int64_t room_no, struct str sender, uint64_t seq)
{
    (void)room_no;
    marks_sent(((struct shard *)arg)->history->marks, room_id, sender, seq);
}

const struct sequencer_events history_sequencer_events = {
    .shown = on_shown,
    .durable = on_durable,
    .transient = on_transient,
    .rejected = on_rejected,
    .settled = on_settled,
    .sent = on_sent,
};

/* ----------------------------------------------------------------------------------------------------------- drain */

/* One after another: what has not come to its turn is served meanwhile, and those who take over are not given all at
 * once. */
static void drain_next(struct history *history)
{
    struct shard *shard, *next = NULL;

    list_for_each (shard, &history->shards, link) {
        if (!shard_is_sequencing(shard))
            return;
        if (!next)
            next = shard;
    }
    if (next)
        shard_drain(next);
}

static bool drained(const struct history *history)
{
    return list_empty(&history->shards) && (!history->last_calls_over || marks_idle(history->marks));
}

static void drain_begin(struct history *history, int64_t within_ms, void (*done)(void *arg), void *arg)
{
    assert(!history->drained);
    history->drained = done;
    history->drained_arg = arg;
    if (!history->draining) {
        history->draining = true;
        say_able(history);
        drain_next(history);
    }
    /* done never comes from inside the call */
    uv_timer_start(
        &history->drain_timer, on_drain_timer, within_ms > 0 && !drained(history) ? (uint64_t)within_ms : 0, 0);
}

void history_hand_over(struct history *history, int64_t within_ms, void (*done)(void *arg), void *arg)
{
    drain_begin(history, within_ms, done, arg);
}

void history_drain(struct history *history, int64_t within_ms, void (*done)(void *arg), void *arg)
{
    history->last_calls_over = true;
    marks_drain(history->marks);
    drain_begin(history, within_ms, done, arg);
}

void history_drained_check(struct history *history)
{
    void (*done)(void *arg) = history->drained;

    if (history->draining)
        drain_next(history);
    if (!history->draining || !done || !drained(history))
        return;
    history->drained = NULL;
    uv_timer_stop(&history->drain_timer);
    done(history->drained_arg);
}

/* The time is over. What waits for close-ok is released without it: the process ends, and its connection with it. */
static void on_drain_timer(uv_timer_t *timer)
{
    struct history *history = timer->data;
    void (*done)(void *arg);
    struct shard *shard;

    list_for_each (shard, &history->shards, link) {
        shard_drain(shard);
        shard_drain_force(shard);
    }
    done = history->drained;
    history->drained = NULL;
    if (done)
        done(history->drained_arg);
}

static void on_closed(uv_handle_t *handle)
{
    struct history *history = handle->data;

    if (--history->handles == 0)
        free(history);
}

void history_stop(struct history *history)
{
    struct probe *probe;

    shard_free_all(history);
    list_for_each (probe, &history->probing, link)
        free(probe);
    calls_close(history->calls);
    origins_close(history->origins);
    reader_close(history->reader);
    make_up_close(history->make_up);
    marks_close(history->marks);
    outbox_close(history->outbox);
    writer_close(history->writer);
    facts_close(history->facts);
    topology_close(history->topology);
    feed_close(history->feed);
    uv_close((uv_handle_t *)&history->check, on_closed);
    uv_close((uv_handle_t *)&history->prepare, on_closed);
    uv_close((uv_handle_t *)&history->look_timer, on_closed);
    uv_close((uv_handle_t *)&history->drain_timer, on_closed);
}

/* ---------------------------------------------------------------------------------------------------------- asking */

const char *history_why_not_ready(const struct history *history)
{
    if (!history->publish || !amqp_link_up(history->publish))
        return "the broker is away";
    if (amqp_link_blocked(history->publish))
        return "the broker takes nothing at the moment (memory or disk alarm)";
    return topology_missing(history->topology);
}

bool history_ready(const struct history *history)
{
    return !history_why_not_ready(history);
}

size_t history_shards_ours(const struct history *history)
{
    struct shard *shard;
    size_t count = 0;

    list_for_each (shard, &history->shards, link)
        count += shard->state == SHARD_RUNNING;
    return count;
}

uint64_t history_epoch(const struct history *history, struct str room_id, bool *ours)
{
    const struct shard *shard = history_find_shard_of(history, room_id);
    const struct cluster_shard *lease;
    struct str word;
    uint64_t heard;

    *ours = shard && shard_is_sequencing(shard);
    if (shard)
        return shard->epoch;
    if (!history->cluster || !room_id_read(room_id, &word))
        return 0;
    lease = cluster_find_shard(history->cluster, word);
    heard = feed_epoch(history->feed, word); /* sooner than the registry is read again */
    return lease && lease->epoch > heard ? lease->epoch : heard;
}

/* --------------------------------------------------------------------------------------------------------- metrics */

static void add_counters(struct sequencer_counters *sum, const struct sequencer_counters *counters)
{
    sum->delivered_total += counters->delivered_total;
    sum->sequenced_total += counters->sequenced_total;
    sum->duplicates_total += counters->duplicates_total;
    sum->dead_total += counters->dead_total;
    sum->voids_total += counters->voids_total;
    sum->transient_total += counters->transient_total;
}

void history_bury(struct history *history, const struct sequencer *sequencer)
{
    struct sequencer_counters counters = sequencer_counters(sequencer);

    add_counters(&history->stats.gone, &counters);
}

static void write_gauge(struct buf *out, const char *name, const char *help, size_t value)
{
    buf_printf(out, "# HELP %s %s\n# TYPE %s gauge\n%s %zu\n", name, help, name, name, value);
}

static void write_messages(const struct history *history, struct buf *out)
{
    struct sequencer_counters sum = history->stats.gone;
    struct shard *shard;

    list_for_each (shard, &history->shards, link) {
        struct sequencer_counters counters = sequencer_counters(shard->sequencer);

        add_counters(&sum, &counters);
        sum.rows += counters.rows;
        sum.parked += counters.parked;
        sum.unpersisted_bytes += counters.unpersisted_bytes;
        sum.rooms += counters.rooms;
        sum.members += counters.members;
    }
    buf_printf(out,
        "# HELP roomd_messages_total Deliveries from the shards' queues, by what became of them; void: seqs that hold "
        "nothing.\n"
        "# TYPE roomd_messages_total counter\n"
        "roomd_messages_total{result=\"delivered\"} %" PRIu64 "\nroomd_messages_total{result=\"sequenced\"} %" PRIu64
        "\n"
        "roomd_messages_total{result=\"duplicate\"} %" PRIu64 "\nroomd_messages_total{result=\"dead\"} %" PRIu64 "\n"
        "roomd_messages_total{result=\"void\"} %" PRIu64 "\nroomd_messages_total{result=\"transient\"} %" PRIu64 "\n",
        sum.delivered_total, sum.sequenced_total, sum.duplicates_total, sum.dead_total, sum.voids_total,
        sum.transient_total);
    write_gauge(out, "roomd_rows_uncommitted", "Rows accepted and not committed.", sum.rows);
    write_gauge(out, "roomd_unpersisted_bytes", "Bytes accepted and not committed.", sum.unpersisted_bytes);
    write_gauge(out, "roomd_parked", "Deliveries that wait for facts from the database.", sum.parked);
    write_gauge(out, "roomd_rooms_cached", "Rooms in memory of the owner.", sum.rooms);
    write_gauge(out, "roomd_members_cached", "Memberships in memory of the owner.", sum.members);
    write_gauge(
        out, "roomd_inbox_paused", "1: the broker is not read because too much is not committed.", history->paused);
}

static void write_dead_letters(const struct history *history, struct buf *out)
{
    buf_text(out, "# HELP roomd_dead_letters_total Dead letters committed, by reason.\n# TYPE roomd_dead_letters_total "
                  "counter\n");
    for (size_t i = 1; i < ERR_COUNT; i++)
        if (history->stats.dead_by_reason[i])
            buf_printf(out, "roomd_dead_letters_total{reason=\"%s\"} %" PRIu64 "\n", err_code((enum err)i),
                history->stats.dead_by_reason[i]);
}

void history_metrics(const struct history *history, struct buf *out)
{
    write_messages(history, out);
    write_dead_letters(history, out);
    writer_metrics(history->writer, out);
    outbox_metrics(history->outbox, out);
    calls_metrics(history->calls, out);
    origins_metrics(history->origins, out);
    feed_metrics(history->feed, out);
    reader_metrics(history->reader, out);
    marks_metrics(history->marks, out);
}
