/*
 * The sequencer under random histories: crashes, redelivery, lost channels, duplicate and conflicting publishes, ops
 * with and without effect, lost COMMIT answers, refused rows, late duplicates, takeovers. Broker, database and writer
 * are models that keep the rules of the real ones (FIFO with redelivery in place, fence and compare-and-swap, unique
 * ids). Each history is checked against docs/protocol.md#promises.
 *
 *   ROOMD_HISTORIES=1000000 ROOMD_SEED=1 …/test_sequencer_histories     more of them, from a seed on
 *   ROOMD_SEED=417 ROOMD_HISTORIES=1 …                                  one again
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "history/sequencer.h"

enum {
    ROOMS = 3,
    ACCOUNTS = 5,
    PUBLISHERS = 3,
    BODIES_MAX = 80,
    LOG_MAX = 250,
    QUEUE_MAX = 400,
    BATCH_MAX = 8,
    IN_FLIGHT = 2
};

static uint64_t seed_now;
static uint64_t random_state;

static uint32_t rnd(uint32_t below)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)((random_state >> 20) % below);
}

static bool chance(uint32_t percent)
{
    return rnd(100) < percent;
}

#define CHECK(condition)                                                                                      \
    do {                                                                                                      \
        if (!(condition)) {                                                                                   \
            fprintf(stderr, "seed %llu: %s (line %d)\n", (unsigned long long)seed_now, #condition, __LINE__); \
            fail();                                                                                           \
        }                                                                                                     \
    } while (0)

/* --- what was published --- */

struct body {
    char text[320];
    int room; /* -1: a room that does not exist */
    int publisher;
    struct id128 id;
    int64_t hash;
    bool op, transient, bad;
    int times;        /* published */
    bool conflicting; /* the same id was published with other content */
};

/* --- the broker: a queue with one consumer --- */

enum where { READY, UNACKED, ACKED };
struct queued {
    int body;
    enum where where;
    bool redelivered;
    uint64_t tag;
};

/* --- the database --- */

struct stored {
    uint64_t epoch, counted;
    enum entry_type type;
    struct id128 id;
    int64_t hash;
    int sender; /* account, -1 system, -2 none */
    bool counts;
    char *json;
    char content[96];
};
struct stored_room {
    struct stored log[LOG_MAX];
    uint64_t last_seq, last_epoch, last_at, counted;
    bool exists, removed;
    int members_n, limit;
    bool member[ACCOUNTS], was_member[ACCOUNTS];
};
struct dead {
    struct id128 id;
    enum err reason;
};

/* --- a batch on its way --- */

struct batch {
    struct seq_row *rows[BATCH_MAX];
    size_t n;
    uint64_t epoch;
    bool executed;
    enum { DONE, FENCED, MOVED, DUPLICATE, REFUSED, AWAY } outcome;
};

/* What a reader of early streams has on its screen. */
struct screen {
    uint64_t head, epoch[LOG_MAX], durable;
    char *json[LOG_MAX];
};

static struct {
    struct sequencer *sequencer;
    struct sequencer_settings settings;
    uint64_t epoch, db_epoch, now_ms, next_tag;
    struct body bodies[BODIES_MAX];
    int body_n;
    struct queued queue[QUEUE_MAX];
    int queue_n;
    struct stored_room rooms[ROOMS];
    struct dead dead[QUEUE_MAX * 2];
    int dead_n;
    struct batch flight[IN_FLIGHT];
    size_t flight_n;
    struct batch zombie; /* a dead owner's batch still on the wire */
    bool recover;        /* a batch failed: nothing new until nothing is in flight */
    size_t batch_limit;
    struct seq_needs needs;
    struct answer {
        struct seq_room_fact rooms[64];
        bool member[256], dead[64];
        uint64_t seq[64];
        int64_t hash[64];
    } answer; /* as of the moment the database read it */
    enum { QUIET, ASKED, READ } asking;
    struct screen screens[ROOMS];
    bool calm; /* nothing fails any more */
} w;

static const char *const room_ids[ROOMS + 1] = {"s01.01KC46E0D7X8BQXSRB29FJP960", "s01.01KC46E0D7X8BQXSRB29FJP961",
    "s01.01KC46E0D7X8BQXSRB29FJP962", "s01.01KC46E0D7X8BQXSRB29FJP969"};
static const char *const accounts[ACCOUNTS] = {"a0", "a1", "a2", "a3", "a4"};

static int room_index(struct str room_id)
{
    for (int i = 0; i < ROOMS; i++)
        if (str_is(room_id, room_ids[i]))
            return i;
    return -1;
}

static int account_index(struct str account)
{
    for (int i = 0; i < ACCOUNTS; i++)
        if (str_is(account, accounts[i]))
            return i;
    return -1;
}

static uint64_t find_in_log(const struct stored_room *room, struct id128 id)
{
    for (uint64_t seq = 1; seq <= room->last_seq; seq++)
        if (!id128_is_zero(room->log[seq].id) && id128_eq(room->log[seq].id, id))
            return seq;
    return 0;
}

static int count_dead(struct id128 id)
{
    int n = 0;

    for (int i = 0; i < w.dead_n; i++)
        n += id128_eq(w.dead[i].id, id);
    return n;
}

/* --- what the sequencer tells --- */

static void on_shown(void *arg, struct str room_id, struct entry *entry, bool durable)
{
    int index = room_index(room_id);
    struct screen *screen = &w.screens[index];

    (void)arg;
    CHECK(entry->seq < LOG_MAX);
    CHECK(durable || entry->type == ENTRY_MESSAGE); /* only plain messages are ever early */
    CHECK(!durable || entry->seq <= w.rooms[index].last_seq);
    if (entry->seq <= screen->head) { /* the one correction besides reset */
        CHECK(durable && entry->type == ENTRY_VOID && entry->seq > screen->durable);
    } else {
        CHECK(entry->seq == screen->head + 1);
        screen->head = entry->seq;
    }
    free(screen->json[entry->seq]);
    screen->json[entry->seq] = xstrndup(entry->json, entry->n);
    screen->epoch[entry->seq] = entry->epoch;
}

static void on_durable(void *arg, struct str room_id, int64_t room_no, uint64_t seq, uint64_t epoch)
{
    int index = room_index(room_id);
    struct stored_room *room = &w.rooms[index];
    struct screen *screen = &w.screens[index];

    (void)arg;
    CHECK(room_no == index + 1 && seq <= room->last_seq && epoch == room->log[seq].epoch);
    CHECK(seq <= screen->head);
    for (uint64_t i = screen->durable + 1; i <= seq; i++)
        CHECK(strcmp(screen->json[i], room->log[i].json) == 0);
    if (seq > screen->durable)
        screen->durable = seq;
}

static void on_transient(void *arg, struct str room_id, struct str json)
{
    (void)arg, (void)room_id, (void)json;
}

static void on_rejected(void *arg, const struct envelope *envelope, enum err err, const char *why)
{
    (void)arg, (void)envelope;
    CHECK(err && why && *why);
}

static void on_settled(void *arg, struct id128 id, enum err result, uint64_t seq, bool duplicate, struct str meta)
{
    (void)arg, (void)id, (void)meta;
    CHECK(result || seq);
    (void)duplicate;
}

static const struct sequencer_events events = {.shown = on_shown,
    .durable = on_durable,
    .transient = on_transient,
    .rejected = on_rejected,
    .settled = on_settled};

/* --- publishing --- */

static void read_body(struct envelope **envelope, enum err *err, const char **why, const struct body *body)
{
    *err = envelope_read(envelope, str_of(body->text),
        &(struct envelope_source){.from_op_exchange = body->op, .shard = STR("s01"), .content_max_bytes = 65536}, why);
}

static void write_op(struct body *body, const char *room_id)
{
    int kind = (int)rnd(12);
    char id[27] = {0};
    struct id128 op_id;

    random_bytes(&op_id, 0);
    for (size_t i = 0; i < sizeof op_id.b; i++)
        op_id.b[i] = (uint8_t)rnd(256);
    ulid_write(id, op_id);
    body->op = true;
    if (kind < 5)
        snprintf(body->text, sizeof body->text,
            "{\"v\":1,\"op\":\"member.add\",\"op_id\":\"%s\",\"room_id\":\"%s\",\"account_ids\":[\"%s\",\"%s\"]}", id,
            room_id, accounts[rnd(ACCOUNTS)], accounts[rnd(ACCOUNTS)]);
    else if (kind < 10)
        snprintf(body->text, sizeof body->text,
            "{\"v\":1,\"op\":\"member.remove\",\"op_id\":\"%s\",\"room_id\":\"%s\",\"account_ids\":[\"%s\"]}", id,
            room_id, accounts[rnd(ACCOUNTS)]);
    else if (kind < 11 || rnd(3))
        snprintf(body->text, sizeof body->text,
            "{\"v\":1,\"op\":\"room.update\",\"op_id\":\"%s\",\"room_id\":\"%s\",\"name\":\"n%u\",\"owner\":\"%s\"}",
            id, room_id, rnd(10), accounts[rnd(ACCOUNTS)]);
    else
        snprintf(body->text, sizeof body->text, "{\"v\":1,\"op\":\"room.remove\",\"op_id\":\"%s\",\"room_id\":\"%s\"}",
            id, room_id);
}

static void write_message(struct body *body, const char *room_id, int number)
{
    const char *content = chance(2) ? "\"poison\"" : "\"hello\"";
    const char *sender = chance(3) ? "@system" : accounts[rnd(ACCOUNTS)];

    body->transient = chance(3);
    body->bad = chance(2);
    snprintf(body->text, sizeof body->text,
        "{\"room_id\":\"%s\",\"sender\":\"%s\",\"kind\":\"%s\",\"content\":%s,\"client_msg_id\":\"c%d\"%s%s}", room_id,
        sender, chance(10) ? "tip" : "text", content, number, body->transient ? ",\"transient\":true" : "",
        body->bad ? ",\"quote_seq\":-1" : "");
}

static void enqueue(int body)
{
    if (w.queue_n == QUEUE_MAX)
        return;
    w.bodies[body].times++;
    w.queue[w.queue_n++] = (struct queued){.body = body, .where = READY};
}

static void publish(void)
{
    struct envelope *envelope;
    struct body *body;
    const char *why;
    enum err err;

    if (w.body_n && chance(12)) { /* again */
        enqueue((int)rnd((uint32_t)w.body_n));
        return;
    }
    if (w.body_n == BODIES_MAX)
        return;
    body = &w.bodies[w.body_n];
    *body = (struct body){.room = chance(2) ? -1 : (int)rnd(ROOMS), .publisher = (int)rnd(PUBLISHERS)};
    if (w.body_n && chance(3)) { /* the same id, other content */
        int like = (int)rnd((uint32_t)w.body_n);

        if (w.bodies[like].op || w.bodies[like].bad || w.bodies[like].transient)
            return;
        *body = w.bodies[like];
        body->times = 0;
        char *hello = strstr(body->text, "\"hello\"");
        if (!hello)
            return;
        hello[1] = (char)('A' + rnd(20));
        body->conflicting = w.bodies[like].conflicting = true;
    } else if (chance(15)) {
        write_op(body, room_ids[body->room < 0 ? ROOMS : body->room]);
    } else {
        write_message(body, room_ids[body->room < 0 ? ROOMS : body->room], w.body_n);
    }
    read_body(&envelope, &err, &why, body);
    CHECK((err != ERR_OK) == body->bad);
    body->id = envelope->message_id;
    body->hash = envelope->hash;
    envelope_free(envelope);
    enqueue(w.body_n++);
}

/* --- the owner's turn: deliver, ask, write, ack --- */

static void deliver(void)
{
    int unacked = 0;

    for (int i = 0; i < w.queue_n; i++)
        unacked += w.queue[i].where == UNACKED;
    if (unacked >= 20) /* prefetch */
        return;
    for (int i = 0; i < w.queue_n; i++) {
        struct queued *queued = &w.queue[i];
        struct envelope *envelope;
        const char *why;
        enum err err;

        if (queued->where != READY)
            continue;
        queued->where = UNACKED;
        queued->tag = w.next_tag++;
        read_body(&envelope, &err, &why, &w.bodies[queued->body]);
        w.now_ms += rnd(3);
        if (err)
            sequencer_refuse(w.sequencer, queued->tag, envelope, err, why, w.now_ms);
        else
            sequencer_deliver(w.sequencer, queued->tag, queued->redelivered, envelope, w.now_ms);
        return;
    }
}

/* The database reads now; its answer arrives later, when more may have been committed. */
static void read_facts(void)
{
    CHECK(w.needs.room_count <= 64 && w.needs.member_count <= 256 && w.needs.id_count <= 64);
    memset(&w.answer, 0, sizeof w.answer);
    for (size_t i = 0; i < w.needs.room_count; i++) {
        int index = room_index(w.needs.rooms[i].room_id);
        struct stored_room *room = &w.rooms[index < 0 ? 0 : index];

        w.answer.rooms[i] = (struct seq_room_fact){.room_id = w.needs.rooms[i].room_id,
            .room_no = index + 1,
            .removed = room->removed,
            .members = room->members_n,
            .member_limit = room->limit,
            .last_seq = room->last_seq,
            .last_epoch = room->last_epoch,
            .last_at = room->last_at,
            .counted = room->counted};
    }
    for (size_t i = 0; i < w.needs.member_count; i++) {
        int index = room_index(w.needs.members[i].room_id);

        w.answer.member[i] = index >= 0 && w.rooms[index].member[account_index(w.needs.members[i].account)];
    }
    for (size_t i = 0; i < w.needs.id_count; i++) {
        int index = room_index(w.needs.ids[i].room_id);

        w.answer.dead[i] = count_dead(w.needs.ids[i].message_id) > 0;
        w.answer.seq[i] = index < 0 ? 0 : find_in_log(&w.rooms[index], w.needs.ids[i].message_id);
        w.answer.hash[i] = index < 0 ? 0 : w.rooms[index].log[w.answer.seq[i]].hash;
    }
}

static void tell_facts(void)
{
    bool ok = w.calm || !chance(15);

    for (size_t i = 0; ok && i < w.needs.room_count; i++)
        if (w.answer.rooms[i].room_no)
            sequencer_fact_room(w.sequencer, &w.needs, &w.answer.rooms[i]);
    for (size_t i = 0; ok && i < w.needs.member_count; i++)
        if (w.answer.member[i])
            sequencer_fact_member(
                w.sequencer, &w.needs, w.needs.members[i].room_id, w.needs.members[i].account, ROLE_MEMBER, 0, 0);
    for (size_t i = 0; ok && i < w.needs.id_count; i++) {
        const struct seq_need_id *need = &w.needs.ids[i];

        if (w.answer.seq[i])
            sequencer_fact_id(w.sequencer, need->room_id, need->message_id, w.answer.seq[i], w.answer.hash[i]);
        else if (w.answer.dead[i])
            sequencer_fact_id(w.sequencer, need->room_id, need->message_id, 0, 0);
    }
    sequencer_facts_done(w.sequencer, &w.needs, ok, w.now_ms);
    seq_needs_clear(&w.needs);
}

static void ask(void)
{
    if (w.asking == QUIET) {
        if (sequencer_take_needs(w.sequencer, &w.needs))
            w.asking = ASKED;
    } else if (w.asking == ASKED) {
        read_facts();
        w.asking = READ;
    } else {
        tell_facts();
        w.asking = QUIET;
    }
}

static void send_batch(void)
{
    struct batch *batch;
    struct seq_row *row;

    if (w.recover || w.flight_n == IN_FLIGHT)
        return;
    /* A dead letter has no head that would hold back what follows it: were its batch to fail and the next one to
     * commit, it could be judged anew behind what its publisher sent later. */
    for (size_t i = 0; i < w.flight_n; i++)
        for (size_t r = 0; r < w.flight[i].n; r++)
            if (!w.flight[i].rows[r]->entry)
                return;
    batch = &w.flight[w.flight_n];
    *batch = (struct batch){.epoch = w.epoch};
    for (row = sequencer_first_unsent(w.sequencer); row && batch->n < w.batch_limit;
         row = sequencer_next_row(w.sequencer, row)) {
        bool twice = false;

        if (row->sent)
            continue;
        for (size_t i = 0; i < batch->n; i++)
            twice |= batch->rows[i]->room == row->room &&
                     (batch->rows[i]->member_count || batch->rows[i]->change.present) &&
                     (row->member_count || row->change.present);
        if (twice)
            break;
        row->sent = true;
        batch->rows[batch->n++] = row;
    }
    w.flight_n += batch->n > 0;
}

/* What the database would say, before anything is written. */
static int judge(const struct batch *batch)
{
    uint64_t head[ROOMS];

    if (!w.calm && chance(6))
        return AWAY;
    if (batch->epoch != w.db_epoch)
        return FENCED;
    for (int i = 0; i < ROOMS; i++)
        head[i] = w.rooms[i].last_seq;
    for (size_t i = 0; i < batch->n; i++) {
        const struct seq_row *row = batch->rows[i];

        if (row->entry && row->entry->seq != ++head[row->room_no - 1])
            return MOVED;
    }
    for (size_t i = 0; i < batch->n; i++)
        if (batch->rows[i]->entry && !id128_is_zero(batch->rows[i]->message_id) &&
            find_in_log(&w.rooms[batch->rows[i]->room_no - 1], batch->rows[i]->message_id))
            return DUPLICATE;
    for (size_t i = 0; i < batch->n; i++)
        if (batch->rows[i]->entry && batch->rows[i]->entry->type == ENTRY_MESSAGE &&
            str_is(batch->rows[i]->content, "\"poison\""))
            return REFUSED;
    return DONE;
}

static void store_row(const struct seq_row *row)
{
    struct stored_room *room;
    struct stored *stored;

    if (row->dead)
        w.dead[w.dead_n++] = (struct dead){row->dead_id, row->dead};
    if (!row->entry)
        return;
    CHECK(row->entry->seq < LOG_MAX);
    room = &w.rooms[row->room_no - 1];
    stored = &room->log[row->entry->seq];
    room->last_seq = row->entry->seq;
    room->last_epoch = row->entry->epoch;
    CHECK(row->entry->at >= room->last_at);
    room->last_at = row->entry->at;
    room->counted = row->counted;
    *stored = (struct stored){.epoch = row->entry->epoch,
        .counted = row->counted,
        .type = row->entry->type,
        .id = row->message_id,
        .hash = row->envelope->hash,
        .sender = -2,
        .json = xstrndup(row->entry->json, row->entry->n)};
    if (stored->type == ENTRY_MESSAGE) {
        stored->sender = row->envelope->sender.p[0] == '@' ? -1 : account_index(row->envelope->sender);
        stored->counts = row->envelope->counted;
    }
    snprintf(stored->content, sizeof stored->content, "%.*s", STR_ARG(row->content));
    for (size_t i = 0; i < row->member_count; i++) {
        int account = account_index(row->members[i].account);

        if (row->members[i].action == MEMBER_JOINS)
            room->member[account] = true;
        else if (row->members[i].action == MEMBER_LEAVES)
            room->member[account] = false;
    }
    if (row->change.present) {
        room->members_n = row->change.members;
        room->removed |= row->change.removed;
    }
}

static void execute(struct batch *batch)
{
    batch->executed = true;
    batch->outcome = judge(batch);
    if (batch->outcome == DONE)
        for (size_t i = 0; i < batch->n; i++)
            store_row(batch->rows[i]);
}

static void find_late_duplicates(const struct batch *batch)
{
    for (size_t i = 0; i < batch->n; i++) {
        struct seq_row *row = batch->rows[i];
        uint64_t seq = row->entry && !id128_is_zero(row->message_id)
                           ? find_in_log(&w.rooms[row->room_no - 1], row->message_id)
                           : 0;

        if (seq && seq != row->entry->seq)
            sequencer_late_duplicate(w.sequencer, row, seq, w.rooms[row->room_no - 1].log[seq].hash);
    }
}

/* The answer to the oldest batch arrives, or the connection breaks with it on the way: then the heads tell. */
static void learn(void)
{
    struct batch batch = w.flight[0];
    bool lost = !w.calm && chance(8), committed;

    if (!w.flight_n || !batch.executed)
        return;
    memmove(w.flight, w.flight + 1, --w.flight_n * sizeof w.flight[0]);
    committed = batch.outcome == DONE;
    if (lost) { /* settled by reading back: rows are at or below the heads, or not; dead letters are sent again */
        bool entries = false;

        for (size_t i = 0; i < batch.n; i++)
            entries |= batch.rows[i]->entry != NULL;
        committed &= entries;
    }
    if (committed) {
        for (size_t i = 0; i < batch.n; i++)
            sequencer_committed(w.sequencer, batch.rows[i]);
        return;
    }
    w.recover = true;
    if (lost || batch.outcome == AWAY || batch.outcome == MOVED)
        return;
    if (batch.outcome == DUPLICATE)
        find_late_duplicates(&batch);
    else if (batch.outcome == REFUSED && batch.n == 1)
        sequencer_row_refused(w.sequencer, batch.rows[0]);
    else if (batch.outcome == REFUSED)
        w.batch_limit = 1; /* bisect, the short way */
}

static void write_on(void)
{
    for (size_t i = 0; i < w.flight_n; i++) /* one connection: in order */
        if (!w.flight[i].executed && (w.calm || chance(60)))
            execute(&w.flight[i]);
        else if (!w.flight[i].executed)
            break;
    learn();
    if (w.recover && !w.flight_n) {
        sequencer_rewind(w.sequencer);
        w.recover = false;
    } else if (!w.recover && w.batch_limit == 1 && chance(20)) {
        w.batch_limit = 1 + rnd(BATCH_MAX);
    }
}

static bool settled_in_database(const struct body *body)
{
    int room = body->room;

    return body->transient || body->bad || (room >= 0 && find_in_log(&w.rooms[room], body->id)) || count_dead(body->id);
}

static void ack(void)
{
    uint64_t tag = sequencer_take_ack(w.sequencer);

    for (int i = 0; tag && i < w.queue_n; i++) {
        if (w.queue[i].where != UNACKED || w.queue[i].tag > tag)
            continue;
        CHECK(settled_in_database(&w.bodies[w.queue[i].body]));
        w.queue[i].where = ACKED;
    }
}

/* --- what goes wrong --- */

static void requeue(void)
{
    for (int i = 0; i < w.queue_n; i++) {
        if (w.queue[i].where == UNACKED) {
            w.queue[i].where = READY;
            w.queue[i].redelivered = true;
        }
    }
    w.next_tag = 1;
}

static void lose_channel(void)
{
    requeue();
    sequencer_channel_lost(w.sequencer);
}

/* The reader's screen after a takeover: what of it is valid, then on from the log. */
static void reset_screen(int index)
{
    struct stored_room *room = &w.rooms[index];
    struct screen *screen = &w.screens[index];
    uint64_t valid = screen->head < room->last_seq ? screen->head : room->last_seq;

    while (valid && room->log[valid].epoch > screen->epoch[screen->head])
        valid--;
    CHECK(valid >= screen->durable); /* what was durable is never taken back */
    for (uint64_t seq = 1; seq <= valid; seq++)
        if (strcmp(screen->json[seq], room->log[seq].json) != 0)
            CHECK(room->log[seq].type == ENTRY_VOID &&
                  seq > screen->durable); /* a void that the dead owner did not live to show */
    for (uint64_t seq = 1; seq <= room->last_seq; seq++) {
        free(screen->json[seq]);
        screen->json[seq] = xstrdup(room->log[seq].json);
        screen->epoch[seq] = room->log[seq].epoch;
    }
    screen->head = screen->durable = room->last_seq;
}

static void take_over(bool first)
{
    if (!first) {
        if (w.flight_n && !w.flight[0].executed && chance(50))
            execute(&w.flight[0]); /* reached the database before the fence went up */
        sequencer_free(w.sequencer);
        seq_needs_clear(&w.needs);
        requeue();
    }
    w.flight_n = 0;
    w.recover = false;
    w.asking = QUIET;
    w.epoch = ++w.db_epoch;
    w.settings.epoch = w.epoch;
    w.sequencer = sequencer_new(&w.settings, &events);
    for (int i = 0; i < ROOMS; i++)
        reset_screen(i);
}

/* --- a history --- */

static void set_up(void)
{
    static const size_t windows[] = {0, 1, 3, 1000};

    memset(&w, 0, sizeof w);
    w.now_ms = 1000000;
    w.next_tag = 1;
    w.batch_limit = 1 + rnd(BATCH_MAX);
    w.settings = (struct sequencer_settings){.shard = STR("s01"),
        .dedup_window = windows[rnd(4)],
        .room_cache = windows[rnd(4)],
        .member_cache = windows[rnd(4)]};
    for (int i = 0; i < ROOMS; i++) {
        struct stored_room *room = &w.rooms[i];

        room->limit = i == 1 ? 3 : 0;
        for (int a = 0; a < ACCOUNTS; a++)
            if (chance(60) && (!room->limit || room->members_n < room->limit))
                room->member[a] = room->was_member[a] = true, room->members_n++;
    }
    take_over(true);
}

static void step(void)
{
    uint32_t what = rnd(100);

    if (what < 30 && !w.calm)
        publish();
    else if (what < 60)
        deliver();
    else if (what < 70)
        ask();
    else if (what < 78)
        send_batch();
    else if (what < 90)
        write_on();
    else if (what < 95)
        ack();
    else if (what < 97)
        sequencer_trim(w.sequencer);
    else if (w.calm)
        deliver();
    else if (what < 99)
        lose_channel();
    else if (chance(50))
        take_over(false);
}

static bool all_acked(void)
{
    for (int i = 0; i < w.queue_n; i++)
        if (w.queue[i].where != ACKED)
            return false;
    return true;
}

/* --- the promises --- */

static void check_room(int index)
{
    struct stored_room *room = &w.rooms[index];
    bool member[ACCOUNTS];
    int members_n = 0;
    uint64_t epoch = 0, counted = 0;

    memcpy(member, room->was_member, sizeof member);
    for (uint64_t seq = 1; seq <= room->last_seq; seq++) {
        const struct stored *stored = &room->log[seq];

        CHECK(stored->json && stored->epoch >= epoch); /* no hole; the epoch never falls */
        epoch = stored->epoch;
        counted += stored->counts;
        CHECK(stored->counted == counted);
        CHECK(stored->sender < 0 || member[stored->sender]);
        for (int a = 0; a < ACCOUNTS; a++) {
            char quoted[8];

            snprintf(quoted, sizeof quoted, "\"%s\"", accounts[a]);
            if (stored->type == ENTRY_JOINED && strstr(stored->content, quoted)) {
                CHECK(!member[a]);
                member[a] = true;
            } else if (stored->type == ENTRY_LEFT && strstr(stored->content, quoted)) {
                CHECK(member[a]);
                member[a] = false;
            }
        }
    }
    for (int a = 0; a < ACCOUNTS; a++) { /* log, member rows and the number agree */
        CHECK(member[a] == room->member[a]);
        members_n += member[a];
    }
    CHECK(members_n == room->members_n);
    CHECK(!room->limit || members_n <= room->limit);
    CHECK(w.screens[index].head == room->last_seq && w.screens[index].durable == room->last_seq);
    for (uint64_t seq = 1; seq <= room->last_seq; seq++)
        CHECK(strcmp(w.screens[index].json[seq], room->log[seq].json) == 0);
}

static void check_bodies(void)
{
    uint64_t last[PUBLISHERS][ROOMS] = {{0}};

    for (int i = 0; i < w.body_n; i++) {
        const struct body *body = &w.bodies[i];
        uint64_t seq = body->room < 0 ? 0 : find_in_log(&w.rooms[body->room], body->id);
        bool poison = strstr(body->text, "poison") != NULL;

        if (body->transient || body->bad)
            continue;
        CHECK(seq || count_dead(body->id) || (poison && body->times)); /* in the log, or a dead letter */
        if (body->times > 1 || body->conflicting)
            continue;
        CHECK(!(seq && count_dead(body->id))); /* never both */
        if (seq && body->room >= 0) {          /* one publisher's order */
            CHECK(seq > last[body->publisher][body->room]);
            last[body->publisher][body->room] = seq;
        }
    }
    for (int r = 0; r < ROOMS; r++) /* exactly once */
        for (uint64_t a = 1; a <= w.rooms[r].last_seq; a++)
            for (uint64_t b = a + 1; b <= w.rooms[r].last_seq; b++)
                CHECK(id128_is_zero(w.rooms[r].log[a].id) || !id128_eq(w.rooms[r].log[a].id, w.rooms[r].log[b].id));
}

static void tear_down(void)
{
    sequencer_free(w.sequencer);
    seq_needs_clear(&w.needs);
    for (int r = 0; r < ROOMS; r++) {
        for (uint64_t i = 0; i <= w.rooms[r].last_seq; i++)
            free(w.rooms[r].log[i].json);
        for (uint64_t i = 0; i < LOG_MAX; i++)
            free(w.screens[r].json[i]);
    }
}

static void run_history(uint64_t seed)
{
    int steps;

    seed_now = seed;
    random_state = seed * 0x9e3779b97f4a7c15u + 1;
    for (int i = 0; i < 8; i++)
        rnd(2);
    set_up();
    steps = 50 + (int)rnd(600);
    while (steps--)
        step();
    w.calm = true;
    for (steps = 0; !all_acked() && steps < 100000; steps++)
        step();
    CHECK(all_acked());
    for (int i = 0; i < ROOMS; i++)
        check_room(i);
    check_bodies();
    CHECK(sequencer_counters(w.sequencer).rows == 0 && sequencer_counters(w.sequencer).parked == 0);
    CHECK(sequencer_counters(w.sequencer).unpersisted_bytes == 0);
    tear_down();
}

static uint64_t number_from(const char *name, uint64_t fallback)
{
    const char *text = getenv(name);

    return text ? strtoull(text, NULL, 10) : fallback;
}

static void random_histories_keep_the_promises(void **state)
{
    uint64_t first = number_from("ROOMD_SEED", 1), count = number_from("ROOMD_HISTORIES", 100000);

    (void)state;
    map_seed(1);
    for (uint64_t seed = first; seed < first + count; seed++)
        run_history(seed);
    printf("%llu histories from seed %llu\n", (unsigned long long)count, (unsigned long long)first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(random_histories_keep_the_promises)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
