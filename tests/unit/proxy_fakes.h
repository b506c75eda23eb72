/*
 * A small world around the proxy: fakes that stand in for history, the cluster, PostgreSQL and the HTTP shim at link
 * time. Included by the tests of the proxy.
 *
 * A room has a log; entries are shown (early) and committed as the test says. Questions of the proxy are answered when
 * the test lets a turn pass. A client is a fake connection; transcript() tells what it has got in few words: "hello 1 2
 * durable:2 reset:1 left".
 */
/* Each test uses what it needs. */
#pragma GCC diagnostic ignored "-Wunused-function"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>

#include "proxy/core.h"
#include "room/base/http.h"

#define FAKE_LOG_MAX 4096

struct fake_room {
    char id[ROOM_ID_MAX_BYTES + 1];
    int64_t room_no;
    struct entry *log[FAKE_LOG_MAX + 1]; /* [seq], committed ones and early ones of this life */
    uint64_t shown, committed;
    uint64_t epoch;
    bool since_join, removed;
    char members[64][16];
    uint64_t join_seq[64];
    int member_count;
    const char *hidden_by; /* the account that has hidden these */
    uint64_t hidden[64];
    size_t hidden_count;
};

struct wire {
    const struct wire_events *events;
    void *owner;
    struct buf out; /* all that was written */
    bool writing, stuck, closing, gone;
    struct list link;
};

struct http_reply {
    int status;
    struct buf body;
    struct wire *wire;
    bool wants_wire;
    void *owner;
    void (*ready)(void *owner, struct wire *wire);
    void (*gone)(void *arg);
    void *gone_arg;
};

static struct {
    uv_loop_t loop;
    struct config config;
    struct proxy *proxy;
    struct fake_room *rooms[64];
    int room_count;
    struct list accesses, validities, ranges, hiddens, taken_backs, wires;
    struct list queries;                /* struct fake_query */
    bool access_waits;                  /* questions about members are not answered */
    bool database_away, followed, deaf; /* deaf: what owners say does not arrive */
    bool overloaded;                    /* as the registry was told */
    struct history_survey *survey;
    char question[1024];
    const char *others_say[4];
    unsigned others_missing;
    struct {
        struct history_range *range;
        struct entry *entries[512]; /* as they were when it was asked */
        size_t count;
    } asked[8];
    int ranges_read, accesses_asked, validities_asked, hiddens_asked, taken_backs_asked, queries_asked;
    struct roomd_ticket_keys keys;
    uint64_t now_ms;
    bool drained, stopped;
} world;

/* ----------------------------------------------------------------- history */

static struct fake_room *fake_room_of(struct str room_id)
{
    for (int i = 0; i < world.room_count; i++)
        if (str_is(room_id, world.rooms[i]->id))
            return world.rooms[i];
    return NULL;
}

static struct fake_room *fake_room_no(int64_t room_no)
{
    return world.rooms[room_no - 1];
}

static int fake_member(const struct fake_room *room, struct str account)
{
    for (int i = 0; i < room->member_count; i++)
        if (str_is(account, room->members[i]))
            return i;
    return -1;
}

static struct cursor fake_head(const struct fake_room *room)
{
    return room->committed ? (struct cursor){room->log[room->committed]->epoch, room->committed}
                           : (struct cursor){0, 0};
}

/* A read shows the log as it was when it was asked. */
static void fake_read(struct history_range *range)
{
    const struct fake_room *room = fake_room_no(range->room_no);
    size_t i = 0;

    while (world.asked[i].range)
        assert_true(++i < countof(world.asked));
    world.asked[i].range = range;
    for (uint64_t seq = range->after_seq + 1;
         seq <= range->up_to_seq && seq <= room->committed && world.asked[i].count < (size_t)range->limit; seq++)
        world.asked[i].entries[world.asked[i].count++] = entry_hold(room->log[seq]);
}

static void fake_read_over(const struct history_range *range)
{
    for (size_t i = 0; i < countof(world.asked); i++)
        if (world.asked[i].range == range) {
            while (world.asked[i].count)
                entry_drop(world.asked[i].entries[--world.asked[i].count]);
            world.asked[i].range = NULL;
        }
}

uint64_t history_epoch(const struct history *history, struct str room_id, bool *ours)
{
    const struct fake_room *room = fake_room_of(room_id);

    (void)history;
    *ours = true;
    return room ? room->epoch : 0;
}

void history_ask_access(struct history *history, struct history_access *access)
{
    (void)history;
    world.accesses_asked++;
    list_push_back(&world.accesses, &access->link);
}

void history_access_forget(struct history_access *access)
{
    list_remove(&access->link);
}

void history_check_cursor(struct history *history, struct history_validity *validity)
{
    (void)history;
    world.validities_asked++;
    list_push_back(&world.validities, &validity->link);
}

void history_validity_forget(struct history_validity *validity)
{
    list_remove(&validity->link);
}

void history_read_range(struct history *history, struct history_range *range)
{
    (void)history;
    world.ranges_read++;
    list_push_back(&world.ranges, &range->link);
    fake_read(range);
}

void history_range_forget(struct history_range *range)
{
    list_remove(&range->link);
    fake_read_over(range);
}

void history_ask_hidden(struct history *history, struct history_hidden *hidden)
{
    (void)history;
    world.hiddens_asked++;
    list_push_back(&world.hiddens, &hidden->link);
}

void history_hidden_forget(struct history_hidden *hidden)
{
    list_remove(&hidden->link);
}

static void fake_answer_hidden(struct history_hidden *hidden)
{
    const struct fake_room *room = fake_room_no(hidden->room_no);
    bool any = room->hidden_by && str_is(hidden->account, room->hidden_by);

    hidden->seqs = room->hidden;
    hidden->count = any ? room->hidden_count : 0;
    while (hidden->count && *hidden->seqs <= hidden->after_seq) {
        hidden->seqs++;
        hidden->count--;
    }
    hidden->done(hidden, world.database_away ? ERR_UNAVAILABLE : ERR_OK);
}

void history_ask_taken_back(struct history *history, struct history_taken_back *taken_back)
{
    (void)history;
    world.taken_backs_asked++;
    list_push_back(&world.taken_backs, &taken_back->link);
}

void history_taken_back_forget(struct history_taken_back *taken_back)
{
    list_remove(&taken_back->link);
}

static void fake_answer_taken_back(struct history_taken_back *taken_back)
{
    const struct fake_room *room = fake_room_no(taken_back->room_no);
    struct entry *voids[64];

    taken_back->count = 0;
    taken_back->voids = voids;
    for (uint64_t seq = taken_back->above_seq + 1; seq <= taken_back->upto_seq && seq <= room->committed; seq++)
        if (room->log[seq]->type == ENTRY_VOID && taken_back->count < countof(voids))
            voids[taken_back->count++] = room->log[seq];
    taken_back->done(taken_back, world.database_away ? ERR_UNAVAILABLE : ERR_OK);
}

bool history_hears(const struct history *history, struct str shard)
{
    (void)history;
    (void)shard;
    return !world.deaf;
}

void history_follow(struct history *history, struct str shard, bool follow)
{
    (void)history;
    assert_true(str_is(shard, "s00"));
    assert_int_not_equal(world.followed, follow);
    world.followed = follow;
}

void history_tell_room(struct history *history, struct str room_id, struct str json)
{
    (void)history;
    proxy_ephemeral(world.proxy, room_id, json);
}

void history_survey_start(struct history *history, struct history_survey *survey)
{
    (void)history;
    assert_null(world.survey);
    world.survey = survey;
    snprintf(world.question, sizeof world.question, "%.*s", STR_ARG(survey->question));
}

void history_survey_forget(struct history_survey *survey)
{
    assert_ptr_equal(world.survey, survey);
    world.survey = NULL;
}

/* We answer, and others as the test says. */
static void fake_answer_survey(void)
{
    struct history_survey *survey = world.survey;
    struct buf answer = {0};

    if (!survey)
        return;
    proxy_asked(world.proxy, survey->question, &answer);
    survey->answered(survey, str_of("01KC46E0D7X8BQXSRB29FJP960"), buf_str(&answer));
    buf_clear(&answer);
    for (size_t i = 0; i < countof(world.others_say) && world.others_say[i]; i++)
        survey->answered(survey, str_of("01KC46E0D7X8BQXSRB29FJP961"), str_of(world.others_say[i]));
    survey->missing = world.others_missing;
    world.survey = NULL;
    survey->done(survey, ERR_OK);
}

static void fake_answer_access(struct history_access *access)
{
    const struct fake_room *room = fake_room_of(access->room_id);
    int member;

    if (world.database_away) {
        access->done(access, ERR_UNAVAILABLE);
        return;
    }
    if (!room) {
        access->done(access, ERR_NO_SUCH_ROOM);
        return;
    }
    member = fake_member(room, access->account);
    access->room_no = room->room_no;
    access->removed = room->removed;
    access->since_join = room->since_join;
    access->head = fake_head(room);
    for (uint64_t seq = 1; seq <= room->committed; seq++)
        if (room->log[seq]->type == ENTRY_VOID)
            access->taken_back_seq = seq;
    access->join_seq = member >= 0 ? room->join_seq[member] : 0;
    access->role = member >= 0 ? ROLE_MEMBER : ROLE_NONE;
    access->done(access, access->account.n && member < 0 ? ERR_NOT_MEMBER : ERR_OK);
}

static void fake_answer_validity(struct history_validity *validity)
{
    const struct fake_room *room = fake_room_no(validity->room_no);
    uint64_t seq = validity->cursor.seq < room->committed ? validity->cursor.seq : room->committed;

    while (seq > 0 && room->log[seq]->epoch > validity->cursor.epoch)
        seq--;
    validity->valid = (struct cursor){seq ? room->log[seq]->epoch : 0, seq};
    validity->head = fake_head(room);
    validity->done(validity, world.database_away ? ERR_UNAVAILABLE : ERR_OK);
}

static void fake_answer_range(struct history_range *range)
{
    struct entry *entries[512];
    size_t i = 0;

    while (world.asked[i].range != range)
        assert_true(++i < countof(world.asked));
    range->count = 0;
    range->entries = entries;
    while (range->count < world.asked[i].count) {
        entries[range->count] = entry_hold(world.asked[i].entries[range->count]);
        range->count++;
    }
    fake_read_over(range);
    i = range->count;
    range->done(range, world.database_away ? ERR_UNAVAILABLE : ERR_OK); /* may free it */
    while (i)
        entry_drop(entries[--i]);
}

/* ------------------------------------------------------ cluster, PostgreSQL */

static struct cluster_instance fake_instances[8];
static size_t fake_instance_count;
static struct cluster_shard fake_shards[4];

void cluster_set_load(struct cluster *cluster, uint32_t streams, bool overloaded)
{
    (void)cluster;
    (void)streams;
    world.overloaded = overloaded;
}

const char *cluster_self(const struct cluster *cluster)
{
    (void)cluster;
    return "01KC46E0D7X8BQXSRB29FJP960";
}

uint64_t cluster_now_ms(const struct cluster *cluster)
{
    (void)cluster;
    return world.now_ms;
}

size_t cluster_instances(const struct cluster *cluster, const struct cluster_instance **instances)
{
    (void)cluster;
    *instances = fake_instances;
    return fake_instance_count;
}

const struct cluster_shard *cluster_find_shard(const struct cluster *cluster, struct str name)
{
    (void)cluster;
    for (size_t i = 0; i < countof(fake_shards); i++)
        if (str_is(name, fake_shards[i].name))
            return &fake_shards[i];
    return NULL;
}

void pg_submit(struct pg *pg, struct pg_query *query, const struct pg_params *params)
{
    (void)pg;
    (void)params;
    world.queries_asked++;
    list_push_back(&world.queries, &query->link);
}

void pg_forget(struct pg_query *query)
{
    list_remove(&query->link);
}

/* -------------------------------------------------------------------- HTTP */

struct http_pair {
    const char *name, *value;
};

struct str http_header(const struct http_request *request, const char *name)
{
    const struct http_pair *pair = request->impl;

    for (; pair && pair->name; pair++)
        if (strcmp(pair->name, name) == 0)
            return str_of(pair->value);
    return (struct str){NULL, 0};
}

bool http_query_param(
    const struct http_request *request, const char *name, size_t index, struct buf *scratch, struct str *value)
{
    struct str rest = request->query;

    (void)scratch;
    while (rest.n) {
        const char *end = memchr(rest.p, '&', rest.n);
        size_t n = end ? (size_t)(end - rest.p) : rest.n, length = strlen(name);

        if (n > length && memcmp(rest.p, name, length) == 0 && rest.p[length] == '=' && index-- == 0) {
            *value = (struct str){rest.p + length + 1, n - length - 1};
            return true;
        }
        rest.p += n + (end != NULL);
        rest.n -= n + (end != NULL);
    }
    return false;
}

void http_reply_json(struct http_reply *reply, int status, struct str json)
{
    assert_int_equal(reply->status, 0);
    reply->status = status;
    buf_add_str(&reply->body, json);
    buf_char(&reply->body, '\0'); /* for strstr */
}

void http_reply_error(struct http_reply *reply, enum err err, const char *field, const char *format, ...)
{
    (void)field;
    (void)format;
    http_reply_json(reply, err_http(err), str_of(err_code(err)));
}

void http_reply_header(struct http_reply *reply, const char *name, const char *value)
{
    (void)reply;
    (void)name;
    (void)value;
}

void http_reply_on_gone(struct http_reply *reply, void (*gone)(void *arg), void *arg)
{
    reply->gone = gone;
    reply->gone_arg = arg;
}

void http_reply_take_over(struct http_reply *reply, int status, const char *const *headers, struct str head,
    const struct wire_events *events, void *owner, void (*ready)(void *owner, struct wire *wire))
{
    (void)headers;
    assert_int_equal(reply->status, 0);
    reply->status = status;
    reply->owner = owner;
    reply->ready = ready;
    reply->wants_wire = true;
    reply->wire->events = events;
    reply->wire->owner = owner;
    buf_add_str(&reply->wire->out, head);
}

void wire_write(struct wire *wire, const uv_buf_t *bufs, size_t count)
{
    assert_false(wire->writing);
    assert_false(wire->closing);
    for (size_t i = 0; i < count; i++)
        buf_add(&wire->out, bufs[i].base, bufs[i].len);
    wire->writing = true;
}

bool wire_writing(const struct wire *wire)
{
    return wire->writing || wire->closing;
}

void wire_close(struct wire *wire)
{
    wire->closing = true;
}

int wire_fd(const struct wire *wire)
{
    (void)wire;
    return -1;
}

/* -------------------------------------------------------------- the world */

static void fake_settle_wires(void)
{
    struct wire *wire;

    list_for_each (wire, &world.wires, link) {
        if (wire->closing && !wire->gone) {
            wire->gone = true;
            wire->events->closed(wire->owner);
        } else if (wire->writing && !wire->stuck && !wire->gone) {
            wire->writing = false;
            wire->events->written(wire->owner);
        }
    }
}

/* One turn of the loop: questions asked so far are answered, what is due leaves. */
static void turn(void)
{
    struct list asked, *link;

    list_init(&asked);
    if (!world.access_waits)
        list_splice_back(&asked, &world.accesses);
    while ((link = list_pop_front(&asked)))
        fake_answer_access(list_entry(link, struct history_access, link));
    list_splice_back(&asked, &world.validities);
    while ((link = list_pop_front(&asked)))
        fake_answer_validity(list_entry(link, struct history_validity, link));
    list_splice_back(&asked, &world.ranges);
    while ((link = list_pop_front(&asked)))
        fake_answer_range(list_entry(link, struct history_range, link));
    list_splice_back(&asked, &world.hiddens);
    while ((link = list_pop_front(&asked)))
        fake_answer_hidden(list_entry(link, struct history_hidden, link));
    list_splice_back(&asked, &world.taken_backs);
    while ((link = list_pop_front(&asked)))
        fake_answer_taken_back(list_entry(link, struct history_taken_back, link));
    fake_answer_survey();
    fake_settle_wires();
    uv_run(&world.loop, UV_RUN_NOWAIT);
}

static void turns(int n)
{
    while (n-- > 0)
        turn();
}

/* For what waits for a timer. What was due by then has had its turns, also when this process got no time to run. */
static void turns_for(uint64_t ms)
{
    uint64_t end = clock_mono_ms() + ms;

    while (clock_mono_ms() < end) {
        uv_update_time(&world.loop);
        turn();
    }
    uv_update_time(&world.loop);
    turns(4);
}

static int world_open(void **state)
{
    static char *const environment[] = {"ROOMD_TICKET_KEYS=k1:0123456789abcdef0123456789abcdef", NULL};
    struct buf why = {0};
    const char *wrong;

    (void)state;
    memset(&world, 0, sizeof world);
    uv_loop_init(&world.loop);
    list_init(&world.accesses);
    list_init(&world.validities);
    list_init(&world.ranges);
    list_init(&world.hiddens);
    list_init(&world.taken_backs);
    list_init(&world.wires);
    list_init(&world.queries);
    world.now_ms = 1770000000000;
    fake_instance_count = 0;
    assert_true(config_load(&world.config, NULL, environment, &why));
    assert_true(roomd_ticket_keys_read(&world.keys, world.config.ticket_keys, &wrong));
    world.config.durable_mark_ms = 20;
    world.config.attach_gather_ms = 0; /* tests count turns */
    assert_int_equal(
        proxy_start(&world.proxy, &world.loop, &world.config, "http://me", NULL, NULL, NULL, NULL), ERR_OK);
    return 0;
}

static int world_close(void **state)
{
    (void)state;
    if (!world.stopped)
        proxy_stop(world.proxy);
    turns(4);
    uv_run(&world.loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&world.loop), 0);
    for (int i = 0; i < world.room_count; i++) {
        for (size_t k = 0; k <= FAKE_LOG_MAX; k++)
            entry_drop(world.rooms[i]->log[k]);
        free(world.rooms[i]);
    }
    config_clear(&world.config);
    return 0;
}

/* ----------------------------------------------------------------- rooms */

static struct fake_room *room_new(void)
{
    struct fake_room *room = xcalloc(1, sizeof *room);

    world.rooms[world.room_count++] = room;
    room->room_no = world.room_count;
    room->epoch = 1;
    snprintf(room->id, sizeof room->id, "s00.01KC46E0D7X8BQXSRB29FJP9%02d", world.room_count);
    return room;
}

static void join(struct fake_room *room, const char *account, uint64_t join_seq)
{
    snprintf(room->members[room->member_count], sizeof room->members[0], "%s", account);
    room->join_seq[room->member_count++] = join_seq;
}

static struct entry *put_entry(struct fake_room *room, enum entry_type type, struct str content)
{
    struct entry_parts parts = {.room_id = str_of(room->id),
        .room_no = room->room_no,
        .epoch = room->epoch,
        .seq = room->shown + 1,
        .at = world.now_ms,
        .type = type,
        .client_msg_id = STR("c"),
        .sender = STR("bob"),
        .kind = STR("text"),
        .content = content};

    room->shown++;
    entry_drop(room->log[room->shown]);
    room->log[room->shown] = entry_new(&parts);
    return room->log[room->shown];
}

/* Sequenced: seen early. */
static void say_early(struct fake_room *room, int n)
{
    while (n-- > 0) {
        struct entry *entry = put_entry(room, ENTRY_MESSAGE, STR("\"hi\""));

        proxy_shown(world.proxy, str_of(room->id), entry, false);
    }
}

static void commit(struct fake_room *room)
{
    room->committed = room->shown;
    proxy_durable(world.proxy, str_of(room->id), room->committed);
}

/* An op: shown after its COMMIT, with all before it. */
static void say_op(struct fake_room *room, enum entry_type type, struct str content)
{
    struct entry *entry = put_entry(room, type, content);

    room->committed = room->shown;
    proxy_shown(world.proxy, str_of(room->id), entry, true);
    proxy_durable(world.proxy, str_of(room->id), room->committed);
}

/* Edits, recalls and deletes: the store shows what they leave. */
static void change(struct fake_room *room, enum entry_type type, uint64_t target, const char *members)
{
    char content[256];

    snprintf(content, sizeof content, "\"target_seq\":%d,\"message_id\":\"m\",\"by\":\"bob\"%s", (int)target, members);
    for (uint64_t seq = target; type != ENTRY_EDITED && seq <= room->shown; seq++)
        if (seq == target || entry_target(room->log[seq]) == target) {
            struct entry *tombstone = entry_tombstone(room->log[seq], type == ENTRY_RECALLED ? 2 : 3);

            entry_drop(room->log[seq]);
            room->log[seq] = tombstone;
        }
    say_op(room, type, str_of(content));
}

/* The log as it was before anybody listened. */
static void log_before(struct fake_room *room, int n)
{
    while (n-- > 0)
        put_entry(room, ENTRY_MESSAGE, STR("\"old\""));
    room->committed = room->shown;
}

/* The owner died: what was not committed is gone, the next one has a higher epoch. */
static void take_over(struct fake_room *room)
{
    room->shown = room->committed;
    room->epoch++;
}

/* ---------------------------------------------------------------- clients */

struct client {
    struct http_reply reply;
    struct wire wire;
    size_t read; /* of wire.out */
    char words[8192];
};

static const char *ticket_platform = "";

static char *ticket_of(const char *account, enum deliver deliver, bool all, const char *const *rooms)
{
    static char text[ROOMD_TICKET_MAX_BYTES + 1];
    struct roomd_ticket *ticket = xcalloc(1, sizeof *ticket);
    size_t len;

    ticket->account = (struct roomd_text){account, strlen(account)};
    ticket->platform = (struct roomd_text){ticket_platform, strlen(ticket_platform)};
    ticket->all = all;
    ticket->deliver = (enum roomd_ticket_deliver)deliver;
    ticket->issued_unix_ms = world.now_ms;
    ticket->expires_unix_ms = world.now_ms + 60000;
    for (; rooms && *rooms; rooms++)
        ticket->rooms[ticket->room_count++] = (struct roomd_text){*rooms, strlen(*rooms)};
    assert_int_equal(roomd_ticket_sign(text, &len, ticket, &world.keys), ROOMD_TICKET_OK);
    free(ticket);
    return text;
}

/* Asks; the answer needs turns. `rooms`: positions or ids; path without /v1/stream/. */
static struct client *client_ask(const char *path, char *ticket, const char *query, const struct http_pair *more)
{
    struct client *client = xcalloc(1, sizeof *client);
    char full[64], bearer[ROOMD_TICKET_MAX_BYTES + 16];
    struct http_pair pairs[16] = {{"authorization", bearer}};
    struct http_request request = {.method = HTTP_GET, .version = 11};

    snprintf(full, sizeof full, "/v1/stream/%s", path);
    snprintf(bearer, sizeof bearer, "Bearer %s", ticket);
    for (int i = 1; more && more->name; more++)
        pairs[i++] = *more;
    request.path = str_of(full);
    request.query = str_of(query);
    request.impl = pairs;
    client->reply.wire = &client->wire;
    list_init(&client->wire.link);
    assert_true(proxy_serve(world.proxy, &request, &client->reply));
    return client;
}

static void client_go_on(struct client *client)
{
    if (client->reply.wants_wire) {
        client->reply.wants_wire = false;
        list_push_back(&world.wires, &client->wire.link);
        client->reply.ready(client->reply.owner, &client->wire);
    }
}

static struct client *client_open(const char *path, char *ticket)
{
    static const struct http_pair ws[] = {{"upgrade", "websocket"}, {"connection", "Upgrade"},
        {"sec-websocket-version", "13"}, {"sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="}, {NULL, NULL}};
    struct client *client = client_ask(path, ticket, "", strcmp(path, "ws") == 0 ? ws : NULL);

    turns(4);
    client_go_on(client);
    turns(3);
    return client;
}

static void client_free(struct client *client)
{
    if (!list_empty(&client->wire.link) && !client->wire.gone) {
        wire_close(&client->wire);
        turn();
    }
    list_remove(&client->wire.link);
    buf_clear(&client->wire.out);
    buf_clear(&client->reply.body);
    free(client);
}

/* "hello 1 2 3": the words of one event. */
static void event_word(struct client *client, struct str line)
{
    struct json event, type, seq;
    const char *why;
    char word[128];
    size_t used = strlen(client->words);

    assert_true(json_check(line, &event, &why));
    type = json_get(event, "type");
    seq = json_get(event, "seq");
    if (type.n == 9 && memcmp(type.p, "\"message\"", 9) == 0 && seq.type == JSON_NUMBER)
        snprintf(word, sizeof word, "%.*s", (int)seq.n, seq.p);
    else if (seq.type == JSON_NUMBER)
        snprintf(word, sizeof word, "%.*s:%.*s", (int)type.n - 2, type.p + 1, (int)seq.n, seq.p);
    else
        snprintf(word, sizeof word, "%.*s", (int)type.n - 2, type.p + 1);
    snprintf(client->words + used, sizeof client->words - used, "%s%s", used ? " " : "", word);
}

static void event_lines(struct client *client, struct str text)
{
    while (text.n) {
        const char *end = memchr(text.p, '\n', text.n);
        size_t n = end ? (size_t)(end - text.p) : text.n;

        if (n)
            event_word(client, (struct str){text.p, n});
        text.p += n + (end != NULL);
        text.n -= n + (end != NULL);
    }
}

/* What an NDJSON client has got since the last call. */
static const char *transcript(struct client *client)
{
    client->words[0] = 0;
    event_lines(client, (struct str){client->wire.out.p + client->read, client->wire.out.n - client->read});
    client->read = client->wire.out.n;
    return client->words;
}

/* The same for a WebSocket client; control frames are told as "(ping)", "(close 4503)". */
static const char *ws_transcript(struct client *client)
{
    const unsigned char *p = (const unsigned char *)client->wire.out.p;

    client->words[0] = 0;
    while (client->read + 2 <= client->wire.out.n) {
        size_t at = client->read, n = p[at + 1] & 0x7f, header = 2, used;
        uint8_t opcode = p[at] & 15;

        if (n == 126) {
            n = (size_t)p[at + 2] << 8 | p[at + 3];
            header = 4;
        } else if (n == 127) {
            n = 0;
            for (int i = 2; i < 10; i++)
                n = n << 8 | p[at + (size_t)i];
            header = 10;
        }
        client->read += header + n;
        assert_true(client->read <= client->wire.out.n);
        used = strlen(client->words);
        if (opcode == WS_TEXT)
            event_lines(client, (struct str){client->wire.out.p + at + header, n});
        else if (opcode == WS_CLOSE)
            snprintf(client->words + used, sizeof client->words - used, "%s(close %d)", used ? " " : "",
                p[at + header] << 8 | p[at + header + 1]);
        else
            snprintf(client->words + used, sizeof client->words - used, "%s(%s)", used ? " " : "",
                opcode == WS_PONG ? "pong" : "ping");
    }
    return client->words;
}

static bool holds(const struct buf *buf, const char *text)
{
    size_t length = strlen(text);

    for (size_t i = 0; i + length <= buf->n; i++)
        if (memcmp(buf->p + i, text, length) == 0)
            return true;
    return false;
}

/* A client's text frame, masked. */
static void ws_say(struct client *client, const char *text)
{
    unsigned char frame[4096];
    size_t n = strlen(text), header = n < 126 ? 2 : 4;

    frame[0] = 0x81;
    frame[1] = (unsigned char)(0x80 | (n < 126 ? n : 126));
    if (n >= 126) {
        frame[2] = (unsigned char)(n >> 8);
        frame[3] = (unsigned char)(n & 255);
    }
    memcpy(frame + header, "abcd", 4);
    for (size_t i = 0; i < n; i++)
        frame[header + 4 + i] = (unsigned char)(text[i] ^ "abcd"[i & 3]);
    client->wire.events->read(client->wire.owner, (char *)frame, header + 4 + n);
    turns(2);
}
