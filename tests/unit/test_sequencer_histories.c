/*
 * The sequencer under random histories: crashes, redelivery, lost channels, duplicate and conflicting publishes, ops
 * with and without effect, lost COMMIT answers, refused rows, late duplicates, takeovers, stale facts. Broker, database
 * and writer are models that keep the rules of the real ones (FIFO with redelivery in place, fence and
 * compare-and-swap, unique ids, what append() does to messages, members and rooms). Each history is checked against
 * docs/protocol.md#promises, and each row at its COMMIT against the room's log told once more (replay.h).
 *
 *   ROOMD_HISTORIES=1000000 ROOMD_SEED=1 …/test_sequencer_histories     more of them, from a seed on
 *   ROOMD_SEED=417 ROOMD_HISTORIES=1 …                                  one again
 */
#define _GNU_SOURCE /* memmem */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "history/sequencer.h"
#include "replay.h"

enum { ROOMS = 3, PUBLISHERS = 3, BODIES_MAX = 100, QUEUE_MAX = 400, ASIDES_MAX = 128, BATCH_MAX = 8, IN_FLIGHT = 2 };

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
    char text[480];
    struct act act;
    int room; /* -1: a room that does not exist */
    int publisher;
    struct id128 id;
    int64_t hash;
    bool op, transient, bad, poison; /* poison: what the database refuses */
    bool baseless;                   /* an op that was decided when a message it names was not known to be none */
    int times;                       /* published */
    bool conflicting;                /* the same id was published with other content */
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
    enum err result; /* of an op */
    int sender;      /* account, -1 system, -2 none */
    bool counts;
    char *json; /* as it was told when it was written */
};
struct stored_room {
    struct stored log[LOG_MAX];
    struct told_room rows; /* room, members, messages, mentions */
    struct told_room told; /* the same by the replay of the log */
    uint64_t last_seq, last_epoch, last_at, counted;
    /* Decided on top of an op that the database then refused, seqs from .. to: nobody can tell right
     * from wrong there. */
    uint64_t doubt_from, doubt_to;
    bool lost; /* … and changes of room or members among it: nor from there on */
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
    char *json[LOG_MAX]; /* as it came */
    int state[LOG_MAX];  /* of a message, by what edits, recalls and deletes said since */
    char content[LOG_MAX][96];
};

/* A message that was let through without a seq (transient), or refused: judged once the log stands where that was
 * decided. */
struct aside {
    int room, body;
    uint64_t after, now_ms;
    enum err err;
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
        enum role role[256];
        uint64_t muted[256];
        bool dead[64];
        uint64_t seq[64];
        int64_t hash[64];
        struct seq_target_fact targets[64];
    } answer; /* as of the moment the database read it */
    enum { QUIET, ASKED, READ } asking;
    struct screen screens[ROOMS];
    struct aside asides[ASIDES_MAX];
    int aside_n;
    bool taking_back;  /* what is refused now was let through before */
    uint64_t sent_seq; /* told by the last sent() */
    bool calm;         /* nothing fails any more */
} w;

static const char *const room_ids[ROOMS + 1] = {"s01.01KC46E0D7X8BQXSRB29FJP960", "s01.01KC46E0D7X8BQXSRB29FJP961",
    "s01.01KC46E0D7X8BQXSRB29FJP962", "s01.01KC46E0D7X8BQXSRB29FJP969"};

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

static struct body *body_of(const struct envelope *envelope)
{
    for (int i = 0; i < w.body_n; i++)
        if (id128_eq(w.bodies[i].id, envelope->message_id) && w.bodies[i].hash == envelope->hash)
            return &w.bodies[i];
    return NULL;
}

/* --- a reader's screen --- */

/* The JSON value behind a name, of a flat enough text. */
static void cut_value(char *value, size_t size, const char *json, const char *name)
{
    const char *at = strstr(json, name);
    int depth = 0;
    size_t n = 0;

    value[0] = '\0';
    if (!at)
        return;
    for (at += strlen(name); *at && n + 1 < size; at++) {
        if (!depth && (*at == ',' || *at == '}'))
            break;
        depth += *at == '{' || *at == '[' ? 1 : *at == '}' || *at == ']' ? -1 : 0;
        value[n++] = *at;
    }
    value[n] = '\0';
}

static void screen_say(struct screen *screen, uint64_t seq, uint64_t epoch, const char *json, size_t n)
{
    if (!screen->json[seq] || strlen(screen->json[seq]) != n || memcmp(screen->json[seq], json, n) != 0) {
        free(screen->json[seq]);
        screen->json[seq] = xstrndup(json, n);
    }
    json = screen->json[seq];
    screen->epoch[seq] = epoch;
    screen->state[seq] = 0;
    screen->content[seq][0] = '\0';
    if (strstr(json, "{\"type\":\"message\","))
        cut_value(screen->content[seq], sizeof screen->content[seq], json, "\"content\":");
}

/* What was taken back is never shown again. */
static void screen_change(struct screen *screen, const struct entry *entry)
{
    uint64_t target = entry_target(entry);

    if (!target)
        return;
    CHECK(target < entry->seq && strstr(screen->json[target], "{\"type\":\"message\","));
    if (entry->type == ENTRY_EDITED) {
        CHECK(screen->state[target] < 2);
        screen->state[target] = 1;
        cut_value(screen->content[target], sizeof screen->content[target], screen->json[entry->seq], "\"content\":");
        CHECK(screen->content[target][0]);
    } else {
        CHECK(screen->state[target] < (entry->type == ENTRY_RECALLED ? 2 : 3));
        screen->state[target] = entry->type == ENTRY_RECALLED ? 2 : 3;
        screen->content[target][0] = '\0';
        CHECK(!strstr(screen->json[entry->seq], "\"content\":"));
    }
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
    screen_say(screen, entry->seq, entry->epoch, entry->json, entry->n);
    screen_change(screen, entry);
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

static void put_aside(struct str room_id, struct body *body, enum err err)
{
    struct seq_room_view view;

    if (!sequencer_find_room(w.sequencer, room_id, &view)) {
        CHECK(err == ERR_NO_SUCH_ROOM && body->room < 0);
        return;
    }
    if (w.aside_n < ASIDES_MAX)
        w.asides[w.aside_n++] =
            (struct aside){room_index(room_id), (int)(body - w.bodies), view.last_seq, w.now_ms, err};
}

static void on_transient(void *arg, struct str room_id, struct str json)
{
    char id[27] = {0};
    int i;

    (void)arg;
    for (i = 0; i < w.body_n; i++) {
        ulid_write(id, w.bodies[i].id);
        if (w.bodies[i].transient && memmem(json.p, json.n, id, 26))
            break;
    }
    CHECK(i < w.body_n);
    put_aside(room_id, &w.bodies[i], ERR_OK);
}

static void on_rejected(void *arg, const struct envelope *envelope, enum err err, const char *why)
{
    struct body *body = body_of(envelope);

    (void)arg;
    CHECK(err && why && *why);
    if (!w.taking_back && body && !body->bad && err != ERR_CONFLICT) {
        CHECK(!body->op || body->room < 0); /* an op always has a place in the log */
        put_aside(envelope->room_id, body, err);
    }
}

static void on_settled(void *arg, struct id128 id, enum err result, uint64_t seq, bool duplicate, struct str meta)
{
    (void)arg, (void)meta;
    CHECK(result || seq);
    if (duplicate || !seq)
        return;
    for (int i = 0; i < ROOMS; i++) /* a caller is told what the log says */
        if (find_in_log(&w.rooms[i], id) == seq)
            CHECK(w.rooms[i].log[seq].result == result);
}

static void on_sent(void *arg, struct str room_id, int64_t room_no, struct str sender, uint64_t seq)
{
    int index = room_index(room_id);

    (void)arg;
    CHECK(room_no == index + 1 && seq <= w.rooms[index].last_seq);
    CHECK(w.rooms[index].log[seq].type == ENTRY_MESSAGE && w.rooms[index].log[seq].sender == account_index(sender));
    w.sent_seq = seq;
}

static const struct sequencer_events events = {.shown = on_shown,
    .durable = on_durable,
    .transient = on_transient,
    .rejected = on_rejected,
    .settled = on_settled,
    .sent = on_sent};

/* --- publishing --- */

static void read_body(struct envelope **envelope, enum err *err, const char **why, const struct body *body)
{
    *err = envelope_read(envelope, str_of(body->text),
        &(struct envelope_source){.from_op_exchange = body->op, .shard = STR("s01"), .content_max_bytes = 65536}, why);
}

/* Text that grows. */
static void add(struct body *body, const char *format, ...)
{
    size_t n = strlen(body->text);
    va_list args;

    va_start(args, format);
    n += (size_t)vsnprintf(body->text + n, sizeof body->text - n, format, args);
    va_end(args);
    CHECK(n < sizeof body->text);
}

/* Content that fits some kinds and not others; now and then one that the database refuses. */
static void make_content(struct body *body)
{
    struct act *act = &body->act;
    uint32_t form = rnd(10);
    char quote[40] = "";
    bool to_all = chance(30);
    uint32_t who = rnd(ACCOUNTS);

    body->poison = chance(2);
    act->mentions[0] = '\0';
    if (body->poison || form < 5) {
        snprintf(act->content, sizeof act->content, body->poison ? "\"poison\"" : "\"hello%u\"", rnd(100));
        act->well_formed_for[KIND_TEXT] = act->well_formed_for[KIND_TIP] = true;
    } else if (form < 9) {
        act->rich = true;
        act->well_formed_for[KIND_RICH] = act->well_formed_for[KIND_TIP] = true;
        act->quote_seq = chance(20) ? 1 + rnd(30) : 0;
        if (act->quote_seq)
            snprintf(quote, sizeof quote, ",\"quote_message_seq\":%u", (unsigned)act->quote_seq);
        snprintf(act->content, sizeof act->content, "{\"parts\":[{\"type\":\"mention\",%s%s\"}]%s}",
            to_all ? "\"mention_type\":\"all" : "\"user_id\":\"", to_all ? "" : accounts[who], quote);
        snprintf(act->mentions, sizeof act->mentions, "[\"%s\"]", to_all ? "@all" : accounts[who]);
    } else {
        snprintf(act->content, sizeof act->content, "%u", rnd(100));
        act->well_formed_for[KIND_TIP] = true;
    }
}

static void write_message(struct body *body, const char *room_id, int number)
{
    struct act *act = &body->act;

    act->sender = chance(3) ? -1 : (int)rnd(ACCOUNTS);
    make_content(body);
    act->kind = act->rich ? KIND_RICH : chance(15) || !act->well_formed_for[KIND_TEXT] ? KIND_TIP : KIND_TEXT;
    act->sent_at = chance(30) ? 1 + rnd(1000) : 0;
    body->transient = chance(3);
    body->bad = chance(2);
    add(body, "{\"room_id\":\"%s\",\"sender\":\"%s\",\"kind\":\"%s\",\"content\":%s,\"client_msg_id\":\"c%d\"", room_id,
        act->sender < 0 ? "@system" : accounts[act->sender], kind_names[act->kind], act->content, number);
    if (body->transient)
        add(body, ",\"transient\":true");
    if (act->sent_at)
        add(body, ",\"sent_at\":%llu", (unsigned long long)act->sent_at);
    if (!act->rich && chance(15)) {
        snprintf(act->mentions, sizeof act->mentions, "[\"%s\"]", chance(40) ? "@all" : accounts[rnd(ACCOUNTS)]);
        add(body, ",\"mentions\":%s", act->mentions);
    }
    if (body->bad) {
        add(body, ",\"quote_seq\":-1");
    } else if (!act->rich && chance(10)) {
        act->quote_seq = 1 + rnd(30);
        add(body, ",\"quote_seq\":%llu", (unsigned long long)act->quote_seq);
    }
    add(body, "}");
}

static void add_accounts(struct body *body, int count)
{
    struct act *act = &body->act;

    for (int i = 0; i < count; i++) {
        int account = (int)rnd(ACCOUNTS);

        if (!act->account_count || act->account[0] != account)
            act->account[act->account_count++] = account;
    }
    add(body, ",\"account_ids\":[\"%s\"", accounts[act->account[0]]);
    add(body, act->account_count > 1 ? ",\"%s\"]" : "]", accounts[act->account[1]]);
}

/* A message that is in the log, or is to come, or is none; by seq or by id. What is known of it makes good acts likely:
 * its sender acts, and the time of the call is around the end of its window. */
static void add_target(struct body *body)
{
    struct act *act = &body->act;
    const struct stored_room *room = body->room < 0 ? &w.rooms[0] : &w.rooms[body->room];
    const struct told_message *message = NULL;
    char id[27] = {0};
    int like;

    if (w.body_n && chance(55)) {
        like = chance(60) && w.body_n > 8 ? w.body_n - 1 - (int)rnd(8) : (int)rnd((uint32_t)w.body_n);
        if (chance(90))
            for (int i = 0; i < w.body_n && (w.bodies[like].op || w.bodies[like].room != body->room); i++)
                like = (like + 1) % w.body_n;
        act->target_id = w.bodies[like].id;
        if (!w.bodies[like].op && chance(70))
            act->by = w.bodies[like].act.sender;
    } else {
        act->target_seq = chance(60) ? 1 + rnd((uint32_t)room->last_seq + 1) : room->last_seq + 1 + rnd(6);
    }
    for (uint64_t seq = 1; seq <= room->last_seq; seq++)
        if (act->target_seq ? seq == act->target_seq : id128_eq(room->log[seq].id, act->target_id))
            message = &room->rows.message[seq];
    if (message && message->is) {
        if (chance(60))
            act->by = message->sender;
        if (chance(50))
            act->called_at = message->at + w.settings.recall_window_ms + rnd(3) - 1;
    }
    ulid_write(id, act->target_id);
    if (act->target_seq)
        add(body, ",\"target_seq\":%llu", (unsigned long long)act->target_seq);
    else
        add(body, ",\"target_id\":\"%s\"", id);
}

static void write_room_op(struct body *body)
{
    struct act *act = &body->act;
    uint32_t what = rnd(8);

    if (what == 7 && !chance(30))
        what = 0;
    if (what == 7) {
        act->op = OP_ROOM_REMOVE;
        add(body, ",\"op\":\"room.remove\"");
    } else if (what > 4) {
        act->op = OP_ROOM_UPDATE;
        add(body, ",\"op\":\"room.update\"");
        if (chance(60)) {
            snprintf(act->name, sizeof act->name, "n%u", rnd(10));
            add(body, ",\"name\":\"%s\"", act->name);
        }
        if (chance(50)) {
            act->owner = (int)rnd(ACCOUNTS);
            add(body, ",\"owner\":\"%s\"", accounts[act->owner]);
        }
        if (chance(10) || (!*act->name && act->owner < 0)) {
            act->limit = 2 + (int)rnd(4);
            add(body, ",\"member_limit\":%d", act->limit);
        }
    } else if (what > 2) {
        act->op = OP_MEMBER_ROLE;
        act->role = chance(60) ? ROLE_ADMIN : ROLE_MEMBER;
        add(body, ",\"op\":\"member.role\",\"role\":\"%s\"", role_name(act->role));
        add_accounts(body, 1 + (int)rnd(2));
    } else {
        act->op = OP_ROOM_MUTE;
        act->until = chance(30) ? 0 : w.now_ms + (chance(50) ? 1 + rnd(60) : 100000);
        add(body, ",\"op\":\"room.mute\"");
        if (act->until && chance(30))
            add(body, ",\"for_ms\":%llu", (unsigned long long)(act->until - act->called_at));
        else
            add(body, ",\"until\":%llu", (unsigned long long)act->until);
        if (chance(70))
            add_accounts(body, 1 + (int)rnd(2));
    }
}

static void write_message_op(struct body *body)
{
    struct act *act = &body->act;
    uint32_t what = rnd(10);

    act->op = what < 5 ? OP_MESSAGE_EDIT : what < 8 ? OP_MESSAGE_RECALL : OP_MESSAGE_DELETE;
    add(body, ",\"op\":\"message.%s\"", what < 5 ? "edit" : what < 8 ? "recall" : "delete");
    add_target(body);
    if (act->op == OP_MESSAGE_EDIT) {
        make_content(body);
        add(body, ",\"content\":%s", act->content);
    }
}

static void write_op(struct body *body, const char *room_id)
{
    struct act *act = &body->act;
    char id[27] = {0};
    struct id128 op_id;
    uint32_t what = rnd(10);

    random_bytes(&op_id, 0);
    for (size_t i = 0; i < sizeof op_id.b; i++)
        op_id.b[i] = (uint8_t)rnd(256);
    ulid_write(id, op_id);
    body->op = true;
    act->by = chance(40) ? -1 : (int)rnd(ACCOUNTS);
    act->owner = act->limit = -1;
    act->called_at = w.now_ms;
    add(body, "{\"v\":1,\"op_id\":\"%s\",\"room_id\":\"%s\"", id, room_id);
    if (what < 4) {
        act->op = what < 2 ? OP_MEMBER_ADD : OP_MEMBER_REMOVE;
        act->role = what < 2 && chance(25) ? ROLE_ADMIN : ROLE_MEMBER;
        add(body, ",\"op\":\"member.%s\"", what < 2 ? "add" : "remove");
        add_accounts(body, 1 + (int)rnd(2));
        if (act->role == ROLE_ADMIN)
            add(body, ",\"role\":\"admin\"");
        if (what >= 2 && chance(30))
            act->by = act->account[0];
    } else if (what < 7) {
        write_message_op(body);
    } else {
        write_room_op(body);
    }
    body->poison |= chance(3);
    if (body->poison)
        add(body, ",\"reason\":\"poison\"");
    if (act->by >= 0)
        add(body, ",\"by\":\"%s\"", accounts[act->by]);
    add(body, ",\"at\":%llu}", (unsigned long long)act->called_at);
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
    memset(body, 0, sizeof *body);
    body->room = chance(2) ? -1 : chance(40) ? 0 : (int)rnd(ROOMS);
    body->publisher = (int)rnd(PUBLISHERS);
    if (w.body_n && chance(3)) { /* the same id, other content */
        int like = (int)rnd((uint32_t)w.body_n);

        if (w.bodies[like].op || w.bodies[like].bad || w.bodies[like].transient)
            return;
        *body = w.bodies[like];
        body->times = 0;
        char *hello = strstr(body->text, "\"hello"), *said = strstr(body->act.content, "\"hello");
        if (!hello || !said)
            return;
        hello[1] = said[1] = (char)('A' + rnd(20));
        body->conflicting = w.bodies[like].conflicting = true;
    } else if (chance(40)) {
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

static void read_target(struct seq_target_fact *fact, const struct seq_need_target *need)
{
    int index = room_index(need->room_id);
    const struct stored_room *room = &w.rooms[index < 0 ? 0 : index];
    uint64_t seq = need->seq ? need->seq : find_in_log(room, need->message_id);
    const struct told_message *message = &room->rows.message[seq <= room->last_seq ? seq : 0];

    if (index < 0 || !message->is)
        return;
    *fact = (struct seq_target_fact){.room_id = need->room_id,
        .seq = seq,
        .at = message->at,
        .sent_at = message->sent_at ? message->sent_at : UINT64_MAX,
        .message_id = message->id,
        .sender = message->sender < 0 ? STR("@system") : str_of(accounts[message->sender]),
        .kind = str_of(kind_names[message->kind]),
        .state = (int16_t)message->state};
}

/* The database reads now; its answer arrives later, when more may have been committed. */
static void read_facts(void)
{
    CHECK(w.needs.room_count <= 64 && w.needs.member_count <= 256 && w.needs.id_count <= 64);
    CHECK(w.needs.target_count <= 64);
    memset(&w.answer, 0, sizeof w.answer);
    for (size_t i = 0; i < w.needs.room_count; i++) {
        int index = room_index(w.needs.rooms[i].room_id);
        struct stored_room *room = &w.rooms[index < 0 ? 0 : index];

        w.answer.rooms[i] = (struct seq_room_fact){.room_id = w.needs.rooms[i].room_id,
            .room_no = index + 1,
            .removed = room->rows.now.removed,
            .direct = room->rows.now.direct,
            .members = room->rows.now.members,
            .member_limit = room->rows.now.limit,
            .owner = room->rows.now.owner < 0 ? STR("") : str_of(accounts[room->rows.now.owner]),
            .muted_until = room->rows.now.room_muted,
            .last_seq = room->last_seq,
            .last_epoch = room->last_epoch,
            .last_at = room->last_at,
            .counted = room->counted};
    }
    for (size_t i = 0; i < w.needs.member_count; i++) {
        int index = room_index(w.needs.members[i].room_id), account = account_index(w.needs.members[i].account);

        if (index >= 0) {
            w.answer.role[i] = w.rooms[index].rows.now.role[account];
            w.answer.muted[i] = w.rooms[index].rows.now.muted[account];
        }
    }
    for (size_t i = 0; i < w.needs.id_count; i++) {
        int index = room_index(w.needs.ids[i].room_id);

        w.answer.dead[i] = count_dead(w.needs.ids[i].message_id) > 0;
        w.answer.seq[i] = index < 0 ? 0 : find_in_log(&w.rooms[index], w.needs.ids[i].message_id);
        w.answer.hash[i] = index < 0 ? 0 : w.rooms[index].log[w.answer.seq[i]].hash;
    }
    for (size_t i = 0; i < w.needs.target_count; i++)
        read_target(&w.answer.targets[i], &w.needs.targets[i]);
}

static void tell_facts(void)
{
    bool ok = w.calm || !chance(15);

    for (size_t i = 0; ok && i < w.needs.room_count; i++)
        if (w.answer.rooms[i].room_no)
            sequencer_fact_room(w.sequencer, &w.needs, &w.answer.rooms[i]);
    for (size_t i = 0; ok && i < w.needs.member_count; i++)
        if (w.answer.role[i])
            sequencer_fact_member(w.sequencer, &w.needs, w.needs.members[i].room_id, w.needs.members[i].account,
                w.answer.role[i], 0, w.answer.muted[i]);
    for (size_t i = 0; ok && i < w.needs.target_count; i++)
        if (w.answer.targets[i].seq)
            sequencer_fact_target(w.sequencer, &w.needs, &w.answer.targets[i]);
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
                     (((batch->rows[i]->member_count || batch->rows[i]->change.present) &&
                          (row->member_count || row->change.present)) ||
                         (row->target.seq && row->target.seq == batch->rows[i]->target.seq));
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
        if (batch->rows[i]->entry && batch->rows[i]->entry->type != ENTRY_VOID &&
            memmem(batch->rows[i]->envelope->body->p, batch->rows[i]->envelope->body->n, "poison", 6))
            return REFUSED;
    return DONE;
}

static void put_text(char *text, size_t size, struct str value)
{
    CHECK(value.n < size);
    memcpy(text, value.p ? value.p : "", value.n);
    memset(text + value.n, 0, size - value.n);
}

/* As append() does it. */
static void store_members(struct standing *now, const struct seq_row *row)
{
    for (size_t i = 0; i < row->member_count; i++) {
        const struct seq_member_change *change = &row->members[i];
        int account = account_index(change->account);

        switch (change->action) {
        case MEMBER_LEAVES:
            now->role[account] = ROLE_NONE, now->muted[account] = 0;
            break;
        case MEMBER_JOINS:
            CHECK(change->role);
            now->role[account] = change->role;
            break;
        case MEMBER_ROLE:
            if (now->role[account])
                now->role[account] = change->role;
            break;
        case MEMBER_MUTED:
            if (now->role[account])
                now->muted[account] = change->muted_until;
            break;
        }
    }
}

static void store_change(struct standing *now, const struct seq_room_change *change)
{
    if (!change->present)
        return;
    now->members = change->members;
    now->removed |= change->removed;
    if (change->name.p)
        put_text(now->name, sizeof now->name, change->name);
    if (change->owner.p)
        now->owner = account_index(change->owner);
    if (change->member_limit >= 0)
        now->limit = change->member_limit;
    if (change->muted_until >= 0)
        now->room_muted = (uint64_t)change->muted_until;
}

static void store_target(struct stored_room *room, const struct seq_row *row)
{
    const struct seq_target_change *target = &row->target;
    struct told_message *message = &room->rows.message[target->seq];

    if (!target->seq)
        return;
    CHECK(target->seq < row->entry->seq && message->is);
    message->state = target->state;
    put_text(message->content, sizeof message->content, target->content);
    if (target->state >= 2) {
        CHECK(!target->content.n);
        message->meta[0] = message->mentions[0] = '\0';
    } else if (target->meta.p) {
        put_text(message->meta, sizeof message->meta, target->meta);
        put_text(message->mentions, sizeof message->mentions, target->mentions);
    }
}

static void store_message(struct stored_room *room, const struct seq_row *row)
{
    struct told_message *message = &room->rows.message[row->entry->seq];
    const struct envelope *envelope = row->envelope;

    memset(message, 0, sizeof *message);
    message->is = true;
    message->sender = envelope->sender.p[0] == '@' ? -1 : account_index(envelope->sender);
    message->kind = str_is(envelope->kind, "text") ? KIND_TEXT : str_is(envelope->kind, "tip") ? KIND_TIP : KIND_RICH;
    message->id = row->message_id;
    message->at = row->entry->at;
    message->sent_at = body_of(envelope)->act.sent_at;
    put_text(message->content, sizeof message->content, row->content);
    put_text(message->meta, sizeof message->meta, row->meta);
    put_text(message->mentions, sizeof message->mentions, envelope->mentions);
}

static enum err result_of(const struct seq_row *row)
{
    char result[60];

    for (int err = 1; row->entry->type == ENTRY_VOID && row->meta.n && err < ERR_COUNT; err++) {
        snprintf(result, sizeof result, "\"result\":\"%s\"", err_code((enum err)err));
        if (memmem(row->meta.p, row->meta.n, result, strlen(result)))
            return (enum err)err;
    }
    return ERR_OK;
}

/* --- each row against the replay of the log --- */

static bool in_doubt(const struct stored_room *room, uint64_t seq)
{
    return room->lost || (room->doubt_from && seq >= room->doubt_from && seq <= room->doubt_to);
}

static bool same_message(const struct told_message *a, const struct told_message *b)
{
    return a->is == b->is && a->state == b->state && strcmp(a->content, b->content) == 0 &&
           strcmp(a->meta, b->meta) == 0 && strcmp(a->mentions, b->mentions) == 0;
}

static void judge_op(struct stored_room *room, const struct seq_row *row, const struct act *act)
{
    struct verdict verdict = told_op(&room->told, &w.settings.rules, act, w.settings.recall_window_ms, row->entry->at);
    char until[40];

    CHECK(room->log[row->entry->seq].result == verdict.err);
    CHECK(row->entry->type == verdict.type);
    CHECK(row->target.seq == verdict.target && entry_target(row->entry) == verdict.target);
    CHECK(!verdict.answer[0] || str_is(row->meta, verdict.answer));
    snprintf(until, sizeof until, "\"until\":%llu", (unsigned long long)verdict.until);
    CHECK(!verdict.until || memmem(row->meta.p, row->meta.n, until, strlen(until)));
    if (verdict.target)
        CHECK(same_message(&room->told.message[verdict.target], &room->rows.message[verdict.target]));
}

/* The log of the room stands where these were decided. */
static void judge_asides(int index)
{
    struct stored_room *room = &w.rooms[index];
    int kept = 0;

    for (int i = 0; i < w.aside_n; i++) {
        const struct aside *one = &w.asides[i];

        if (one->room != index || one->after != room->told.last_seq)
            w.asides[kept++] = *one;
        else if (!room->lost)
            CHECK(told_message(&room->told, &w.settings.rules, &w.bodies[one->body].act, one->now_ms).err == one->err);
    }
    w.aside_n = kept;
}

/* What was decided above seq stands on something that is not, or on an op that did nothing after all. */
static void forget_asides(int index, uint64_t seq)
{
    int kept = 0;

    for (int i = 0; i < w.aside_n; i++)
        if (w.asides[i].room != index || w.asides[i].after <= seq)
            w.asides[kept++] = w.asides[i];
    w.aside_n = kept;
}

/* A row of the log: rows of messages, members and room are what the rules make of it. */
static void judge_entry(struct stored_room *room, const struct seq_row *row)
{
    uint64_t seq = row->entry->seq;
    const struct body *body = body_of(row->envelope);
    bool nothing = row->entry->type == ENTRY_VOID && (row->of_seq || row->dead);

    judge_asides((int)(room - w.rooms));
    if (nothing) {
        CHECK(!row->member_count && !row->change.present && !row->target.seq);
        CHECK(row->of_seq ? id128_eq(room->log[row->of_seq].id, body->id) : body->poison);
    } else if (body->baseless && row->entry->type == ENTRY_VOID) {
        CHECK(!row->target.seq);
    } else if (in_doubt(room, seq)) {
        room->told = room->rows;
    } else if (row->entry->type == ENTRY_MESSAGE) {
        CHECK(!told_message(&room->told, &w.settings.rules, &body->act, row->entry->at).err);
        told_said(&room->told, &body->act, row->message_id, row->entry->at);
    } else {
        judge_op(room, row, &body->act);
    }
    room->told.last_seq = seq;
    CHECK(same_message(&room->told.message[seq], &room->rows.message[seq]));
    CHECK(memcmp(&room->told.now, &room->rows.now, sizeof room->told.now) == 0);
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
    room->last_seq = room->rows.last_seq = row->entry->seq;
    room->last_epoch = row->entry->epoch;
    CHECK(row->entry->at >= room->last_at);
    room->last_at = row->entry->at;
    room->counted = row->counted;
    *stored = (struct stored){.epoch = row->entry->epoch,
        .counted = row->counted,
        .type = row->entry->type,
        .id = row->message_id,
        .hash = row->envelope->hash,
        .result = result_of(row),
        .sender = -2,
        .json = xstrndup(row->entry->json, row->entry->n)};
    if (stored->type == ENTRY_MESSAGE) {
        stored->sender = row->envelope->sender.p[0] == '@' ? -1 : account_index(row->envelope->sender);
        stored->counts = row->envelope->counted;
        store_message(room, row);
    }
    store_members(&room->rows.now, row);
    store_change(&room->rows.now, &row->change);
    store_target(room, row);
    judge_entry(room, row);
}

static void execute(struct batch *batch)
{
    batch->executed = true;
    batch->outcome = judge(batch);
    if (batch->outcome == DONE)
        for (size_t i = 0; i < batch->n; i++)
            store_row(batch->rows[i]);
}

/* What follows and names this message was decided before it was known to be none: for whatever reason it changes
 * nothing, that is right. */
static void leave_baseless(struct seq_row *message)
{
    for (struct seq_row *at = message; (at = sequencer_next_row(w.sequencer, at));) {
        struct body *body = at->room == message->room ? body_of(at->envelope) : NULL;

        if (body && body->op &&
            (body->act.target_seq ? body->act.target_seq == message->entry->seq
                                  : id128_eq(body->act.target_id, message->message_id)))
            body->baseless = true;
    }
}

static void find_late_duplicates(const struct batch *batch)
{
    for (size_t i = 0; i < batch->n; i++) {
        struct seq_row *row = batch->rows[i];
        uint64_t seq = row->entry && !id128_is_zero(row->message_id)
                           ? find_in_log(&w.rooms[row->room_no - 1], row->message_id)
                           : 0;

        if (!seq || seq == row->entry->seq)
            continue;
        leave_baseless(row);
        sequencer_late_duplicate(w.sequencer, row, seq, w.rooms[row->room_no - 1].log[seq].hash);
    }
}

static bool changes_room(const struct seq_row *row)
{
    return row->member_count || row->change.present;
}

/* What was decided on top of an op that did nothing after all cannot be told right from wrong. */
static void refuse_row(struct seq_row *row)
{
    struct stored_room *room = &w.rooms[row->room_no - 1];
    struct seq_room_view view;

    if (row->envelope->op) {
        CHECK(sequencer_find_room(w.sequencer, row->envelope->room_id, &view));
        if (room->doubt_to <= room->last_seq)
            room->doubt_from = row->entry->seq + 1;
        room->doubt_to = view.last_seq;
        for (struct seq_row *at = row; (at = sequencer_next_row(w.sequencer, at));)
            room->lost |= at->room == row->room && changes_room(at) && changes_room(row);
        forget_asides((int)row->room_no - 1, row->entry->seq - 1);
    } else {
        leave_baseless(row);
    }
    w.taking_back = true;
    sequencer_row_refused(w.sequencer, row);
    w.taking_back = false;
}

static void commit_row(struct seq_row *row)
{
    bool says = row->entry && row->entry->type == ENTRY_MESSAGE && row->envelope->sender.p[0] != '@';
    uint64_t seq = says ? row->entry->seq : 0;

    w.sent_seq = 0;
    sequencer_committed(w.sequencer, row);
    CHECK(w.sent_seq == seq);
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
            commit_row(batch.rows[i]);
        return;
    }
    w.recover = true;
    if (lost || batch.outcome == AWAY || batch.outcome == MOVED)
        return;
    if (batch.outcome == DUPLICATE)
        find_late_duplicates(&batch);
    else if (batch.outcome == REFUSED && batch.n == 1)
        refuse_row(batch.rows[0]);
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
        screen_say(screen, seq, room->log[seq].epoch, room->log[seq].json, strlen(room->log[seq].json));
        screen->state[seq] = room->rows.message[seq].state;
        if (room->rows.message[seq].is)
            memcpy(screen->content[seq], room->rows.message[seq].content, sizeof room->rows.message[seq].content);
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
    for (int i = 0; i < ROOMS; i++) {
        w.rooms[i].doubt_from = w.rooms[i].doubt_to = 0;
        forget_asides(i, w.rooms[i].last_seq);
    }
    for (int i = 0; i < w.body_n; i++)
        w.bodies[i].baseless = false;
    w.epoch = ++w.db_epoch;
    w.settings.epoch = w.epoch;
    w.sequencer = sequencer_new(&w.settings, &events);
    for (int i = 0; i < ROOMS; i++)
        reset_screen(i);
}

/* --- a history --- */

static void set_up_room(int index)
{
    struct stored_room *room = &w.rooms[index];
    struct standing *now = &room->rows.now;

    now->limit = index == 1 ? 3 : 0;
    now->owner = -1;
    now->direct = index == 2 && chance(20);
    for (int a = 0; a < ACCOUNTS; a++) {
        if (now->direct ? a >= 2 : !chance(60) || (now->limit && now->members == now->limit))
            continue;
        now->role[a] = now->direct || chance(60) ? ROLE_MEMBER : now->owner < 0 ? ROLE_OWNER : ROLE_ADMIN;
        if (now->role[a] == ROLE_OWNER)
            now->owner = a;
        now->members++;
    }
    room->told.now = *now;
}

static void set_up(void)
{
    static const size_t windows[] = {0, 1, 3, 1000};
    static const uint64_t recall_windows[] = {0, 15, 40, 100000};

    memset(&w, 0, sizeof w);
    w.now_ms = 1000000;
    w.next_tag = 1;
    w.batch_limit = 1 + rnd(BATCH_MAX);
    w.settings = (struct sequencer_settings){.shard = STR("s01"),
        .dedup_window = windows[rnd(4)],
        .room_cache = windows[rnd(4)],
        .member_cache = windows[rnd(4)],
        .target_cache = windows[rnd(4)],
        .recall_window_ms = recall_windows[rnd(4)]};
    rules_default(&w.settings.rules);
    for (int i = 0; i < RULES; i++)
        if (i != RULE_CLOSE && chance(30))
            w.settings.rules.least[i] = (enum role)(ROLE_MEMBER + rnd(3));
    for (int i = 0; i < ROOMS; i++)
        set_up_room(i);
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
    struct screen *screen = &w.screens[index];
    uint64_t epoch = 0, counted = 0;
    int members = 0;

    judge_asides(index);
    CHECK(screen->head == room->last_seq && screen->durable == room->last_seq);
    for (uint64_t seq = 1; seq <= room->last_seq; seq++) {
        const struct stored *stored = &room->log[seq];
        const struct told_message *message = &room->rows.message[seq];

        CHECK(stored->json && stored->epoch >= epoch); /* no hole; the epoch never falls */
        epoch = stored->epoch;
        counted += stored->counts;
        CHECK(stored->counted == counted);
        CHECK(same_message(message, &room->told.message[seq])); /* log and rows agree */
        CHECK(strcmp(screen->json[seq], stored->json) == 0);    /* and who was there all the time saw the same */
        CHECK(!message->is ||
              (screen->state[seq] == message->state && strcmp(screen->content[seq], message->content) == 0));
    }
    CHECK(memcmp(&room->told.now, &room->rows.now, sizeof room->told.now) == 0);
    for (int a = 0; a < ACCOUNTS; a++)
        members += room->rows.now.role[a] != ROLE_NONE;
    CHECK(room->lost || members == room->rows.now.members);
}

static void check_bodies(void)
{
    uint64_t last[PUBLISHERS][ROOMS] = {{0}};

    for (int i = 0; i < w.body_n; i++) {
        const struct body *body = &w.bodies[i];
        uint64_t seq = body->room < 0 ? 0 : find_in_log(&w.rooms[body->room], body->id);

        if (body->transient || body->bad)
            continue;
        CHECK(seq || count_dead(body->id) || (body->poison && body->times)); /* in the log, or a dead letter */
        CHECK(!body->op || body->room < 0 || body->poison || seq);           /* an op always has a place in the log */
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
    CHECK(!w.aside_n);
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
    uint64_t first = number_from("ROOMD_SEED", 1), count = number_from("ROOMD_HISTORIES", 25000);

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
