/*
 * The feed between instances, over a real broker: history on one side, and on the other a peer that the test plays by
 * hand, so that it can drop, count wrong, be of yesterday or fall silent.
 */
#define RIG_SCHEMA "roomd_feed"
#include "history_rig.h"

#include <signal.h>

#include "history/feed_format.h"

enum { KEPT = 400 };

/* A message that came to the peer from the instance under test. */
struct heard {
    enum feed_kind kind;
    struct buf body;
};

struct peer {
    struct rig *rig;
    struct amqp_link *link;
    struct amqp_consumer *consumer;
    char id[FEED_INSTANCE_BYTES + 1];
    char queue[64];
    bool up, started;
    int answers;
    uint64_t entered[FEED_WAYS];
    bool database_ok;
    struct heard heard[KEPT];
    size_t count;
};

static struct peer peer;

/* What the instance under test was told by its history. */
static struct {
    size_t missed, epochs, entered, entered_missed, asked;
    uint64_t since, last_epoch;
    char entered_room[ROOM_ID_MAX_BYTES + 1], entered_accounts[200];
    struct cursor after;
    bool deaf;
} news;

/* ---------------------------------------------------------------------------------------------------------- news */

static void on_missed(void *arg, struct str shard)
{
    (void)arg;
    news.missed += str_is(shard, peer.rig->cluster.shards[0].name);
}

static void on_epoch(void *arg, struct str shard, uint64_t epoch, bool ours)
{
    (void)arg;
    if (ours || !str_is(shard, peer.rig->cluster.shards[0].name))
        return;
    news.epochs++;
    news.last_epoch = epoch;
}

static void on_entered(void *arg, struct str room_id, const struct str *accounts, size_t count, struct cursor after)
{
    size_t n = 0;

    (void)arg;
    news.entered++;
    news.after = after;
    snprintf(news.entered_room, sizeof news.entered_room, "%.*s", STR_ARG(room_id));
    for (size_t i = 0; i < count; i++)
        n += (size_t)snprintf(
            news.entered_accounts + n, sizeof news.entered_accounts - n, "%.*s ", STR_ARG(accounts[i]));
}

static void on_entered_missed(void *arg, uint64_t since)
{
    (void)arg;
    news.entered_missed++;
    news.since = since;
}

static void on_asked(void *arg, struct str question, struct buf *answer)
{
    (void)arg;
    news.asked++;
    buf_printf(answer, "to %.*s: one", STR_ARG(question));
}

static bool on_listens(void *arg, struct str room_id)
{
    (void)arg;
    (void)room_id;
    return !news.deaf;
}

static void listen_to_all(struct history_events *events)
{
    events->missed = on_missed;
    events->epoch = on_epoch;
    events->entered = on_entered;
    events->entered_missed = on_entered_missed;
    events->asked = on_asked;
    events->listens = on_listens;
}

/* ------------------------------------------------------------------------------------------------------ the peer */

static void peer_changed(void *arg, bool up)
{
    (void)arg;
    peer.up = up;
}

static bool peer_is_up(void *arg)
{
    (void)arg;
    return peer.up;
}

static void on_declared(void *arg, enum err err, struct str text)
{
    (void)arg;
    (void)text;
    assert_int_equal(err, ERR_OK);
    peer.answers--;
}

static bool is_answered(void *arg)
{
    (void)arg;
    return peer.answers == 0;
}

static void peer_started(void *owner)
{
    (void)owner;
    peer.started = true;
}

static bool is_started(void *arg)
{
    (void)arg;
    return peer.started;
}

/* Programs of other tests use the same exchange. */
static void peer_delivered(void *owner, const struct amqp_delivery *delivery)
{
    struct feed_message message;

    (void)owner;
    assert_int_equal(feed_read(delivery->body, &message), FEED_GOOD);
    if (!str_is(message.sender, peer.rig->cluster.self))
        return;
    assert_true(peer.count < KEPT);
    peer.heard[peer.count].kind = message.kind;
    buf_add_str(&peer.heard[peer.count++].body, delivery->body);
}

static void peer_lost(void *owner, enum err err, struct str text)
{
    (void)owner;
    fail_msg("the peer's queue is lost: %s %.*s", err_code(err), STR_ARG(text));
}

static void peer_begin(struct rig *rig)
{
    static const struct amqp_consumer_events events = {peer_started, peer_delivered, peer_lost};
    const struct amqp_settings settings = {
        .name = "peer",
        .urls = getenv("ROOMD_TEST_AMQP_URL"),
        .ca_file = "",
        .heartbeat_ms = 10000,
        .publish_timeout_ms = 10000,
        .max_pending = 1000,
        .max_pending_bytes = 1 << 20,
        .changed = peer_changed,
    };
    const struct amqp_queue_options queue = {.exclusive = true, .auto_delete = true};
    char keys[4][64] = {"account", "beat"};

    peer = (struct peer){.rig = rig, .database_ok = true, .answers = 1 + (int)countof(keys)};
    memset(&news, 0, sizeof news);
    ulid_write(peer.id, ulid_new(clock_unix_ms()));
    snprintf(peer.queue, sizeof peer.queue, "roomd.feed.test.%s", peer.id);
    snprintf(keys[2], sizeof keys[2], "instance.%s", peer.id);
    snprintf(keys[3], sizeof keys[3], "room.%s", rig->cluster.shards[0].name);
    assert_int_equal(amqp_link_open(&peer.link, rig->loop, &settings), ERR_OK);
    rig_wait(rig, peer_is_up);
    amqp_declare_exchange(peer.link, "roomd.feed", "direct", false, on_declared, NULL);
    peer.answers++;
    amqp_declare_queue(peer.link, peer.queue, &queue, on_declared, NULL);
    for (size_t i = 0; i < countof(keys); i++)
        amqp_bind_queue(peer.link, peer.queue, "roomd.feed", keys[i], on_declared, NULL);
    rig_wait(rig, is_answered);
    peer.consumer = amqp_consume(peer.link, peer.queue, 0, true, &events, NULL);
    rig_wait(rig, is_started);
}

static void forget_heard(void)
{
    for (size_t i = 0; i < peer.count; i++)
        buf_clear(&peer.heard[i].body);
    peer.count = 0;
}

static void peer_end(void)
{
    forget_heard();
    amqp_link_close(peer.link);
    peer.link = NULL;
}

static void peer_send(const char *key, struct buf *body)
{
    const struct amqp_message message = {
        .exchange = STR("roomd.feed"), .routing_key = str_of(key), .body = buf_str(body), .transient = true};

    assert_true(amqp_publish_unconfirmed(peer.link, &message, 1 << 20));
    buf_clear(body);
}

static struct str shard_0(void)
{
    return str_of(peer.rig->cluster.shards[0].name);
}

/* held_epoch 0: holds nothing. */
static void peer_beats(uint64_t held_epoch, uint64_t counter, bool follows)
{
    struct buf body = {0};

    feed_write_head(&body, FEED_BEAT, peer.id);
    feed_write_beat_head(&body, peer.database_ok, peer.entered, held_epoch > 0);
    if (held_epoch)
        feed_write_held(
            &body, &(struct feed_held){shard_0(), held_epoch, counter, FEED_HELD_CONSUMES | FEED_HELD_TELLS});
    feed_write_count(&body, follows);
    if (follows)
        feed_write_name(&body, shard_0());
    peer_send("beat", &body);
}

/* As the owner would: message `seq` of room 0, early, and a mark at it. */
static void peer_shows(uint64_t epoch, uint64_t counter, uint64_t seq)
{
    char room_id[ROOM_ID_MAX_BYTES + 1], key[40];
    struct entry *entry;
    struct buf body = {0};

    rig_room_id(peer.rig, 0, room_id);
    entry = entry_new(&(struct entry_parts){
        .room_id = str_of(room_id),
        .room_no = 1,
        .epoch = epoch,
        .seq = seq,
        .at = 1770000000000,
        .counted = seq,
        .type = ENTRY_MESSAGE,
        .client_msg_id = STR("c"),
        .sender = STR("ada"),
        .kind = STR("text"),
        .content = STR("\"hello\""),
    });
    feed_write_head(&body, FEED_LOG, peer.id);
    feed_write_log_head(&body, shard_0(), epoch, counter);
    feed_write_entry(&body, str_of(room_id), entry, false);
    feed_write_mark(&body, str_of(room_id), 1, seq, epoch);
    entry_drop(entry);
    snprintf(key, sizeof key, "room.%.*s", STR_ARG(shard_0()));
    peer_send(key, &body);
}

static void peer_enters(enum feed_way way, uint64_t counter)
{
    char room_id[ROOM_ID_MAX_BYTES + 1];
    struct buf body = {0};

    rig_room_id(peer.rig, 0, room_id);
    feed_write_head(&body, FEED_ENTERED, peer.id);
    feed_write_entered_head(&body, way, counter);
    feed_write_entered(&body, str_of(room_id), (struct cursor){3, 9}, 2);
    feed_write_name(&body, STR("eve"));
    feed_write_name(&body, STR("fay"));
    peer_send("account", &body);
}

/* ---------------------------------------------------------------------------------------------------- conditions */

static uint64_t goal;

static bool is_missed(void *arg)
{
    (void)arg;
    return news.missed >= goal;
}

static bool is_shown(void *arg)
{
    return ((struct rig *)arg)->durable[0] >= goal;
}

static bool is_epoch(void *arg)
{
    (void)arg;
    return news.last_epoch >= goal;
}

static bool has_entered(void *arg)
{
    (void)arg;
    return news.entered >= goal;
}

static bool has_missed_entered(void *arg)
{
    (void)arg;
    return news.entered_missed >= goal;
}

static bool hears_0(void *arg)
{
    return history_hears(((struct rig *)arg)->history, shard_0());
}

static void wait_goal(bool (*holds)(void *arg), uint64_t number)
{
    goal = number;
    rig_wait(peer.rig, holds);
}

static size_t heard_of(enum feed_kind kind)
{
    size_t count = 0;

    for (size_t i = 0; i < peer.count; i++)
        count += peer.heard[i].kind == kind;
    return count;
}

static struct feed_message last_of(enum feed_kind kind)
{
    struct feed_message message = {0};

    for (size_t i = 0; i < peer.count; i++)
        if (peer.heard[i].kind == kind)
            assert_int_equal(feed_read(buf_str(&peer.heard[i].body), &message), FEED_GOOD);
    return message;
}

static enum feed_kind goal_kind;

static bool is_heard(void *arg)
{
    (void)arg;
    return heard_of(goal_kind) >= goal;
}

static void wait_heard(enum feed_kind kind, size_t count)
{
    goal_kind = kind;
    wait_goal(is_heard, count);
}

/* What the instance did before it is asked has arrived when the answer does: all goes one way. */
static void wait_all(void)
{
    struct buf body = {0};

    feed_write_head(&body, FEED_ASK, peer.id);
    feed_write_question(&body, 1, STR("well?"));
    peer_send("beat", &body);
    wait_heard(FEED_ANSWER, heard_of(FEED_ANSWER) + 1);
}

static void wait_beat(void)
{
    wait_all();
    wait_heard(FEED_BEAT, heard_of(FEED_BEAT) + 1);
}

/* What the instance's last beat says of shard 0. */
static struct feed_held held_0(void)
{
    struct feed_message message = last_of(FEED_BEAT);
    struct feed_held held;

    while (feed_next_held(&message.beat.held, &held))
        if (str_eq(held.shard, shard_0()))
            return held;
    return (struct feed_held){0};
}

static bool tells_0(void *arg)
{
    (void)arg;
    return held_0().flags & FEED_HELD_TELLS;
}

static bool tells_0_no_more(void *arg)
{
    (void)arg;
    return !(held_0().flags & FEED_HELD_TELLS);
}

static bool follows_0(void *arg)
{
    struct feed_message message = last_of(FEED_BEAT);
    struct str name;

    (void)arg;
    while (feed_next_name(&message.beat.followed, &name))
        if (str_eq(name, shard_0()))
            return true;
    return false;
}

static uint64_t metric(const char *line)
{
    struct buf out = {0};
    char begins[200];
    const char *at;
    uint64_t value;

    history_metrics(peer.rig->history, &out);
    buf_char(&out, '\0');
    snprintf(begins, sizeof begins, "\n%s", line);
    at = strstr(out.p, begins);
    assert_non_null(at);
    value = strtoull(at + strlen(begins), NULL, 10);
    buf_clear(&out);
    return value;
}

/* ------------------------------------------------------------------------------------------------------- stories */

static bool is_open(void *arg)
{
    (void)arg;
    return metric("roomd_feed_open ") == 1;
}

static void begin(struct rig *rig, size_t rooms)
{
    rig->listen = listen_to_all;
    rig_make_rooms(rig, rooms);
    rig_start(rig);
    rig_wait(rig, rig_is_ready);
    peer_begin(rig);
    rig_wait(rig, is_open);
}

static void begin_as_owner(struct rig *rig)
{
    begin(rig, RIG_SHARDS);
    rig_take_all(rig);
}

/* The peer owns shard 0, and the instance under test follows it. */
static void begin_as_reader(struct rig *rig, uint64_t epoch)
{
    begin(rig, 1);
    history_follow(rig->history, shard_0(), true);
    rig_wait(rig, follows_0);
    assert_false(hears_0(rig));
    peer_beats(epoch, 7, false);
    wait_goal(is_missed, 1);
    rig_wait(rig, hears_0);
}

static void end(struct rig *rig)
{
    peer_end();
    rig_crash(rig);
}

static void nobody_follows_and_nothing_is_written(void **state)
{
    RIG_OR_SKIP(rig);

    begin_as_owner(rig);
    rig_say_many(rig, 1, 0, 200);
    wait_durable(rig, 200);
    wait_beat();
    assert_int_equal(heard_of(FEED_LOG), 0);
    assert_int_equal(held_0().counter, 0);
    assert_int_equal(metric("roomd_feed_messages_total{kind=\"log\",result=\"sent\"} "), 0);
    assert_int_equal(metric("roomd_feed_messages_total{kind=\"log\",result=\"dropped\"} "), 0);
    end(rig);
}

/* Entries in order, each once, none missing; marks never before what they say of; counters without a hole. */
static void check_log(uint64_t first_counter, uint64_t first_seq, uint64_t last_seq)
{
    uint64_t counter = first_counter, seq = first_seq, mark = 0;

    for (size_t i = 0; i < peer.count; i++) {
        struct feed_message message;
        struct feed_log_item item;

        assert_int_equal(feed_read(buf_str(&peer.heard[i].body), &message), FEED_GOOD);
        if (message.kind != FEED_LOG)
            continue;
        assert_int_equal(message.counter, counter++);
        while (feed_next_log(&message.items, &item)) {
            if (item.what != FEED_LOG_MARK) {
                assert_int_equal(item.seq, seq++);
                continue;
            }
            assert_true(item.seq > mark && item.seq < seq);
            mark = item.seq;
        }
    }
    assert_int_equal(seq, last_seq + 1);
    assert_int_equal(mark, last_seq);
}

static bool has_mark(void *arg)
{
    struct feed_message message = last_of(FEED_LOG);
    struct feed_log_item item = {0};

    (void)arg;
    while (message.items.n && feed_next_log(&message.items, &item))
        if (item.what == FEED_LOG_MARK && item.seq >= goal)
            return true;
    return false;
}

static void who_follows_is_told_from_then_on_and_no_longer_than_it_follows(void **state)
{
    RIG_OR_SKIP(rig);
    uint64_t counter, began;

    begin_as_owner(rig);
    rig_say_many(rig, 1, 0, 10);
    wait_durable(rig, 10);
    wait_beat();

    began = uv_now(rig->loop);
    peer_beats(0, 0, true);
    rig_wait(rig, tells_0);
    assert_true(uv_now(rig->loop) - began < 500); /* with a beat of its own: the next one would be a second away */
    counter = held_0().counter;
    assert_true(counter > 0); /* who heard the one before must look */
    rig_say_many(rig, 1, 10, 200);
    wait_durable(rig, 200);
    wait_goal(has_mark, 200);
    check_log(counter + 1, 11, 200);

    forget_heard();
    peer_beats(0, 0, false);
    wait_beat();
    assert_true(tells_0_no_more(rig));
    rig_say_many(rig, 1, 200, 220);
    wait_durable(rig, 220);
    wait_all();
    assert_int_equal(heard_of(FEED_LOG), 0);
    end(rig);
}

/* Shards that were added a moment ago: who follows may know of them before who owns. */
static void a_follower_of_a_shard_that_is_not_known_yet_is_told_as_soon_as_it_is(void **state)
{
    RIG_OR_SKIP(rig);
    char name[sizeof rig->cluster.shards[0].name];

    begin(rig, RIG_SHARDS);
    memcpy(name, rig->cluster.shards[0].name, sizeof name);
    peer_beats(0, 0, true); /* names the shard */
    memset(rig->cluster.shards[0].name, 'x', 3);
    wait_all(); /* the beat was read */
    memcpy(rig->cluster.shards[0].name, name, sizeof name);
    rig_take_all(rig);
    peer_beats(0, 0, true);
    rig_wait(rig, tells_0);
    end(rig);
}

static void counters_begin_anew_with_each_ownership(void **state)
{
    RIG_OR_SKIP(rig);
    struct feed_message message;

    begin_as_owner(rig);
    peer_beats(0, 0, true);
    rig_wait(rig, tells_0);
    for (int i = 0; i < 5; i++) {
        rig_say_many(rig, 1, (size_t)i, (size_t)i + 1);
        wait_durable(rig, (uint64_t)i + 1);
    }
    wait_goal(has_mark, 5);
    message = last_of(FEED_LOG);
    assert_true(message.counter > 5);

    for (size_t i = 0; i < RIG_SHARDS; i++)
        history_lease_lost(rig->history, str_of(rig->cluster.shards[i].name));
    rig_take_all(rig);
    forget_heard();
    rig_say_many(rig, 1, 5, 6);
    wait_durable(rig, 6);
    wait_goal(has_mark, 6);
    message = last_of(FEED_LOG);
    assert_int_equal(message.epoch, rig->cluster.shards[0].epoch);
    assert_true(message.counter < 5);
    end(rig);
}

static void what_an_owner_elsewhere_shows_is_shown_here(void **state)
{
    RIG_OR_SKIP(rig);

    begin_as_reader(rig, 3);
    for (uint64_t i = 1; i <= 3; i++)
        peer_shows(3, 7 + i, i);
    wait_goal(is_shown, 3);
    assert_int_equal(rig->shown[0], 3);
    assert_int_equal(rig->early_total, 3);
    assert_false(rig->out_of_order);
    peer_beats(3, 10, false);
    peer_shows(3, 11, 4);
    wait_goal(is_shown, 4);
    assert_int_equal(news.missed, 1); /* the first time only */
    assert_int_equal(metric("roomd_feed_holes_total{of=\"log\"} "), 0);

    news.deaf = true;
    peer_shows(3, 12, 5);
    wait_goal(is_shown, 5);
    assert_int_equal(rig->shown[0], 4); /* of no room that anybody listens to: no entry is made */
    end(rig);
}

static void a_hole_in_the_counter_is_looked_at_once(void **state)
{
    RIG_OR_SKIP(rig);

    begin_as_reader(rig, 3);
    peer_shows(3, 8, 1);
    wait_goal(is_shown, 1);
    rig->shown[0] = 2; /* 2 was dropped on its way */
    peer_shows(3, 10, 3);
    wait_goal(is_missed, 2);
    wait_goal(is_shown, 3);
    peer_shows(3, 11, 4);
    wait_goal(is_shown, 4);
    assert_int_equal(news.missed, 2);
    assert_int_equal(metric("roomd_feed_holes_total{of=\"log\"} "), 1);
    end(rig);
}

static void a_lost_last_message_is_found_by_the_beat(void **state)
{
    RIG_OR_SKIP(rig);

    begin_as_reader(rig, 3);
    peer_shows(3, 8, 1);
    wait_goal(is_shown, 1);
    peer_beats(3, 9, false);
    wait_goal(is_missed, 2);
    rig_wait(rig, hears_0);
    peer_beats(3, 9, false);
    rig->shown[0] = 2;
    peer_shows(3, 10, 3);
    wait_goal(is_shown, 3);
    assert_int_equal(news.missed, 2);
    end(rig);
}

static void what_an_owner_of_yesterday_says_is_dropped(void **state)
{
    RIG_OR_SKIP(rig);

    begin_as_reader(rig, 3);
    peer_beats(5, 1, false);
    wait_goal(is_epoch, 5);
    wait_goal(is_missed, 2);
    peer_shows(3, 8, 1);
    peer_beats(3, 8, false);
    peer_shows(5, 2, 1);
    wait_goal(is_shown, 1);
    assert_int_equal(rig->early_total, 1);
    assert_int_equal(news.missed, 2);
    assert_int_equal(news.last_epoch, 5);
    assert_int_equal(metric("roomd_feed_entries_total{result=\"stale\"} "), 1);
    end(rig);
}

static void an_owner_that_is_not_heard_for_three_seconds_is_not_relied_on(void **state)
{
    RIG_OR_SKIP(rig);
    uint64_t until;

    begin_as_reader(rig, 3);
    until = uv_now(rig->loop) + 3500;
    while (hears_0(rig) && uv_now(rig->loop) < until)
        uv_run(rig->loop, UV_RUN_ONCE);
    assert_false(hears_0(rig));
    peer_beats(3, 7, false);
    rig_wait(rig, hears_0);
    end(rig);
}

static bool is_open_again(void *arg)
{
    (void)arg;
    return metric("roomd_feed_opened_total ") == goal;
}

static void a_queue_that_was_opened_anew_is_a_hole(void **state)
{
    RIG_OR_SKIP(rig);

    rig->publish_url = rig->consume_url; /* which goes through a relay */
    begin_as_reader(rig, 3);
    relay_cut(&rig->consume_relay);
    uv_run(rig->loop, UV_RUN_ONCE);
    relay_listen(&rig->consume_relay);
    wait_goal(is_open_again, 2);
    assert_false(hears_0(rig));
    forget_heard();
    rig_wait(rig, follows_0);
    peer_beats(3, 7, false);
    wait_goal(is_missed, 2);
    rig_wait(rig, hears_0);
    wait_goal(has_missed_entered, 1);
    end(rig);
}

static bool owns_less(void *arg)
{
    return history_shards_ours(((struct rig *)arg)->history) < RIG_SHARDS;
}

static void who_hears_of_a_successor_lets_go(void **state)
{
    RIG_OR_SKIP(rig);

    begin_as_owner(rig);
    peer_beats(rig->cluster.shards[0].epoch, 1, false); /* nobody's business: it is ours under this epoch */
    wait_all();
    assert_int_equal(history_shards_ours(rig->history), RIG_SHARDS);
    peer_beats(rig->cluster.shards[0].epoch + 1, 1, false);
    rig_wait(rig, owns_less);
    assert_int_equal(history_shards_ours(rig->history), RIG_SHARDS - 1);
    assert_int_equal(news.last_epoch, rig->cluster.shards[0].epoch + 1);
    end(rig);
}

static bool owns_none(void *arg)
{
    static uint64_t beat_ms;

    if (uv_now(peer.rig->loop) - beat_ms >= 1000) {
        beat_ms = uv_now(peer.rig->loop);
        peer_beats(0, 0, false);
    }
    return history_shards_ours(((struct rig *)arg)->history) == 0;
}

static void whoever_alone_lacks_the_database_closes_its_channels_until_it_is_back(void **state)
{
    RIG_OR_SKIP(rig);
    uint64_t began;

    rig->config.lease_ttl_ms = 500;
    begin_as_owner(rig);
    rig->cluster.database_lost = true;
    peer.database_ok = false;
    peer_beats(0, 0, false);
    began = uv_now(rig->loop);
    while (uv_now(rig->loop) - began < 2500) { /* away for all of them: it goes on */
        uv_run(rig->loop, UV_RUN_ONCE);
        assert_false(owns_none(rig));
    }
    peer.database_ok = true;
    rig_wait(rig, owns_none);
    assert_int_equal(rig->cluster.released, 0); /* the leases tell whose they are when they can be read again */
    rig->cluster.database_lost = false;
    rig_wait(rig, rig_owns_all);
    end(rig);
}

/* ------------------------------------------------------------------------------------- callers, surveys, who enters */

static void a_caller_elsewhere_is_told_what_became_of_its_message(void **state)
{
    RIG_OR_SKIP(rig);
    char body[400], room_id[ROOM_ID_MAX_BYTES + 1], reply_to[60];
    struct feed_message message;
    struct feed_settled settled;
    struct id128 id;

    begin_as_owner(rig);
    rig_room_id(rig, 0, room_id);
    id = message_id_of(str_of(room_id), STR("ada"), STR("x1"));
    for (int i = 0; i < 3; i++) {
        struct rig_publishing *publishing = xcalloc(1, sizeof *publishing);

        snprintf(reply_to, sizeof reply_to, i == 2 ? "somebody's own %s" : "durable.%s", peer.id);
        snprintf(body, sizeof body,
            "{\"room_id\":\"%s\",\"sender\":\"ada\",\"client_msg_id\":\"x1\",\"kind\":\"text\",\"content\":\"%s\"}",
            room_id, i == 1 ? "other" : "one");
        publishing->publish.done = rig_on_published;
        rig_unconfirmed++;
        amqp_publish(rig->publish, &publishing->publish,
            &(struct amqp_message){
                .exchange = STR("roomd.room"),
                .routing_key = shard_0(),
                .reply_to = str_of(reply_to),
                .body = str_of(body),
            });
        if (i < 2)
            wait_heard(FEED_SETTLED, (size_t)i + 1);
        message = last_of(FEED_SETTLED);
        assert_true(feed_next_settled(&message.items, &settled));
        assert_true(id128_eq(settled.message_id, id));
        assert_int_equal(settled.what, FEED_SETTLED_DONE);
        assert_true(str_is(settled.code, i ? "conflict" : "ok"));
        assert_int_equal(settled.seq, i ? 0 : 1);
    }
    rig_wait(rig, rig_all_confirmed);
    wait_all();
    assert_int_equal(heard_of(FEED_SETTLED), 2);
    end(rig);
}

struct survey_story {
    struct history_survey survey;
    size_t answers, done;
    char text[200];
};

static void on_answered(struct history_survey *survey, struct str instance, struct str answer)
{
    struct survey_story *story = container_of(survey, struct survey_story, survey);

    story->answers++;
    snprintf(story->text + strlen(story->text), sizeof story->text - strlen(story->text), "%s %.*s; ",
        str_is(instance, peer.id) ? "peer" : "self", STR_ARG(answer));
}

static void on_survey_done(struct history_survey *survey, enum err err)
{
    container_of(survey, struct survey_story, survey)->done++;
    assert_int_equal(err, ERR_OK);
}

static bool survey_done(void *arg)
{
    return ((struct survey_story *)arg)->done;
}

static void a_survey_asks_all_and_says_how_many_did_not_answer(void **state)
{
    RIG_OR_SKIP(rig);
    struct cluster_instance others[3] = {{.alive = true}, {.alive = true}, {.alive = false}};
    struct survey_story story = {
        .survey = {.question = STR("online ada"), .within_ms = 300, .answered = on_answered, .done = on_survey_done}};
    struct feed_message message;
    struct buf body = {0};
    char key[60];

    begin(rig, 1);
    memcpy(others[0].id, peer.id, sizeof others[0].id);
    memcpy(others[1].id, "01KC46E0D7X8BQXSRB29FJP960", 26);
    memcpy(others[2].id, "01KC46E0D7X8BQXSRB29FJP961", 26);
    rig->cluster.instances = others;
    rig->cluster.instance_count = 3;
    wait_all(); /* its queue is there */

    history_survey_start(rig->history, &story.survey);
    assert_int_equal(story.answers, 0); /* never from inside the call */
    wait_heard(FEED_ASK, 1);
    message = last_of(FEED_ASK);
    assert_true(str_is(message.items, "online ada"));
    feed_write_head(&body, FEED_ANSWER, peer.id);
    feed_write_question(&body, message.counter, STR("two"));
    snprintf(key, sizeof key, "instance.%s", rig->cluster.self);
    peer_send(key, &body);
    assert_true(loop_until(rig->loop, survey_done, &story, WAIT_MS));
    assert_int_equal(story.answers, 2);
    assert_string_equal(story.text, "self to online ada: one; peer two; ");
    assert_int_equal(story.survey.missing, 1);

    feed_write_head(&body, FEED_ASK, peer.id);
    feed_write_question(&body, 44, STR("who"));
    peer_send("beat", &body);
    wait_heard(FEED_ANSWER, 2);
    message = last_of(FEED_ANSWER);
    assert_int_equal(message.counter, 44);
    assert_true(str_is(message.items, "to who: one"));

    story.done = 0;
    history_survey_start(rig->history, &story.survey);
    history_survey_forget(&story.survey);
    wait_all();
    assert_int_equal(story.done, 0);
    end(rig);
}

struct announce_story {
    struct history_announce announce;
    bool done;
    enum err err;
};

static void on_announced(struct history_announce *announce, enum err err)
{
    struct announce_story *story = container_of(announce, struct announce_story, announce);

    story->done = true;
    story->err = err;
}

static bool is_announced(void *arg)
{
    return ((struct announce_story *)arg)->done;
}

static void founders_are_announced_with_confirm_and_counted(void **state)
{
    RIG_OR_SKIP(rig);
    const struct str accounts[] = {STR("ada"), STR("bob")};
    struct announce_story story = {.announce = {.room_id = STR("s00.01KC46E0D7X8BQXSRB29FJP961"),
                                       .accounts = accounts,
                                       .account_count = 2,
                                       .after = {0, 0},
                                       .done = on_announced}};
    struct feed_message message;
    struct feed_entered entered;

    begin(rig, 1);
    history_announce_entered(rig->history, &story.announce);
    assert_false(story.done);
    assert_int_equal(news.entered, 1); /* here at once */
    assert_true(loop_until(rig->loop, is_announced, &story, WAIT_MS));
    assert_int_equal(story.err, ERR_OK);
    wait_heard(FEED_ENTERED, 1);
    message = last_of(FEED_ENTERED);
    assert_int_equal(message.way, FEED_WAY_ANNOUNCED);
    assert_int_equal(message.counter, 1);
    assert_true(feed_next_entered(&message.items, &entered));
    assert_int_equal(entered.count, 2);
    wait_beat();
    message = last_of(FEED_BEAT);
    assert_int_equal(message.beat.entered[FEED_WAY_ANNOUNCED], 1);
    end(rig);
}

static void the_owner_tells_who_was_added_to_instances_that_do_not_follow(void **state)
{
    RIG_OR_SKIP(rig);
    char body[400], room_id[ROOM_ID_MAX_BYTES + 1];
    struct rig_publishing *publishing = xcalloc(1, sizeof *publishing);
    struct feed_message message;
    struct feed_entered entered;
    struct str account;

    begin_as_owner(rig);
    rig_room_id(rig, 0, room_id);
    snprintf(body, sizeof body,
        "{\"v\":1,\"op\":\"member.add\",\"op_id\":\"01KC46E0D7X8BQXSRB29FJP967\",\"room_id\":\"%s\",\"at\":1,"
        "\"account_ids\":[\"eve\"]}",
        room_id);
    publishing->publish.done = rig_on_published;
    rig_unconfirmed++;
    amqp_publish(rig->publish, &publishing->publish,
        &(struct amqp_message){.exchange = STR("roomd.op"), .routing_key = shard_0(), .body = str_of(body)});
    wait_heard(FEED_ENTERED, 1);
    message = last_of(FEED_ENTERED);
    assert_int_equal(message.way, FEED_WAY_JOINED);
    assert_int_equal(message.counter, 1);
    assert_true(feed_next_entered(&message.items, &entered));
    assert_true(str_is(entered.room_id, room_id));
    assert_int_equal(entered.after.seq, 0);
    assert_true(feed_next_name(&entered.accounts, &account));
    assert_true(str_is(account, "eve"));
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM room_member WHERE account = 'eve'"), 1);
    rig_wait(rig, rig_all_confirmed);
    end(rig);
}

static void a_hole_among_those_who_entered_is_looked_at(void **state)
{
    RIG_OR_SKIP(rig);
    uint64_t now;

    begin(rig, 1);
    wait_all();
    peer_enters(FEED_WAY_JOINED, 1);
    peer_enters(FEED_WAY_JOINED, 2);
    peer.entered[FEED_WAY_JOINED] = 2;
    peer_beats(0, 0, false);
    peer_enters(FEED_WAY_ANNOUNCED, 1); /* not confirmed yet: the next beat does not name it */
    peer_beats(0, 0, false);
    wait_goal(has_entered, 3);
    assert_string_equal(news.entered_accounts, "eve fay ");
    assert_int_equal(news.after.epoch, 3);
    assert_int_equal(news.after.seq, 9);
    assert_int_equal(metric("roomd_feed_holes_total{of=\"entered\"} "), 0);

    now = clock_unix_ms();
    news.entered_missed = 0;
    peer_enters(FEED_WAY_JOINED, 4);
    wait_goal(has_missed_entered, 1);
    assert_int_equal(news.entered, 4);
    assert_true(news.since > now - 20000 && news.since < now);
    peer.entered[FEED_WAY_JOINED] = 4;
    peer.entered[FEED_WAY_ANNOUNCED] = 2;
    peer_beats(0, 0, false);
    wait_goal(has_missed_entered, 2);
    assert_int_equal(metric("roomd_feed_holes_total{of=\"entered\"} "), 2);
    end(rig);
}

static int tear_down(void **state)
{
    if (peer.link) /* the test failed */
        peer_end();
    return rig_teardown(state);
}

#define STORY(name) cmocka_unit_test_setup_teardown(name, rig_setup, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORY(nobody_follows_and_nothing_is_written),
        STORY(who_follows_is_told_from_then_on_and_no_longer_than_it_follows),
        STORY(a_follower_of_a_shard_that_is_not_known_yet_is_told_as_soon_as_it_is),
        STORY(counters_begin_anew_with_each_ownership),
        STORY(what_an_owner_elsewhere_shows_is_shown_here),
        STORY(a_hole_in_the_counter_is_looked_at_once),
        STORY(a_lost_last_message_is_found_by_the_beat),
        STORY(what_an_owner_of_yesterday_says_is_dropped),
        STORY(an_owner_that_is_not_heard_for_three_seconds_is_not_relied_on),
        STORY(a_queue_that_was_opened_anew_is_a_hole),
        STORY(who_hears_of_a_successor_lets_go),
        STORY(whoever_alone_lacks_the_database_closes_its_channels_until_it_is_back),
        STORY(a_caller_elsewhere_is_told_what_became_of_its_message),
        STORY(a_survey_asks_all_and_says_how_many_did_not_answer),
        STORY(founders_are_announced_with_confirm_and_counted),
        STORY(the_owner_tells_who_was_added_to_instances_that_do_not_follow),
        STORY(a_hole_among_those_who_entered_is_looked_at),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
