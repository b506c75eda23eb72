/*
 * Long polls: readers that have all there is and wait for more. Waiting costs nothing: rooms tell when something is
 * durable, those of other owners over the feed, which is followed as long as somebody waits for one of theirs. When the
 * feed says that something may have been missed, the heads of the rooms concerned are looked at once, in one query;
 * while an owner is not heard, once a second. Deadlines are in the slots of one wheel.
 */
#include "reader.h"

#include <stdlib.h>

enum {
    TICK_MS = 50,       /* of the wheel: a long poll ends at most so late */
    WHEEL_SLOTS = 2048, /* 102 s a round: above the default poll_wait_max_ms, longer waits stay for another round */
    LOOK_MS = 1000,
    LOOK_ROOMS_MAX = 10000,
    ROOMS_MAX = 200000 /* that are waited for; a pull of one more is answered at once */
};

/* The long polls of one room. */
struct room_wait {
    struct map_link by_id;
    struct list polls;  /* struct long_poll */
    struct str room_id; /* the first poll's; moves on when that one leaves */
    int64_t room_no;    /* 0: not known yet */
    bool look;          /* news may have been missed */
};

static void on_tick(uv_timer_t *timer);
static void look_at_heads(struct reader *reader, bool unheard_too);
static void look_on_rows(struct pg_query *query, enum err err, const PGresult *result);

void long_polls_open(struct reader *reader)
{
    map_init(&reader->waits);
    reader->wheel = xcalloc(WHEEL_SLOTS, sizeof *reader->wheel);
    for (size_t i = 0; i < WHEEL_SLOTS; i++)
        list_init(&reader->wheel[i]);
    uv_timer_init(reader->history->loop, &reader->tick);
}

void long_polls_close(struct reader *reader)
{
    if (reader->looking)
        pg_forget(&reader->look);
    map_clear(&reader->waits);
    free(reader->wheel);
}

static bool wait_is_of(const struct map_link *link, const void *key)
{
    const struct room_wait *wait = container_of(link, struct room_wait, by_id);

    return str_eq(wait->room_id, *(const struct str *)key);
}

static struct room_wait *find_wait(const struct reader *reader, struct str room_id)
{
    struct map_link *link = map_find(&reader->waits, map_hash(room_id.p, room_id.n), wait_is_of, &room_id);

    return link ? container_of(link, struct room_wait, by_id) : NULL;
}

void long_poll_join(struct long_poll *poll)
{
    struct reader *reader = poll->reader;
    struct room_wait *wait = find_wait(reader, poll->room_id);
    struct str shard;

    list_init(&poll->wheel_link);
    if (reader->waits.count >= ROOMS_MAX)
        return;
    if (!wait) {
        wait = xcalloc(1, sizeof *wait);
        wait->room_id = poll->room_id;
        list_init(&wait->polls);
        if (room_id_read(poll->room_id, &shard))
            feed_wait(reader->history->feed, shard, true);
        map_insert(&reader->waits, map_hash(poll->room_id.p, poll->room_id.n), &wait->by_id);
    }
    poll->room = wait;
    list_push_back(&wait->polls, &poll->room_link);
}

void long_poll_of_room(struct long_poll *poll, int64_t room_no)
{
    if (poll->room)
        poll->room->room_no = room_no;
}

static void off_the_wheel(struct long_poll *poll)
{
    if (!poll->waiting)
        return;
    poll->waiting = false;
    list_remove(&poll->wheel_link);
    if (--poll->reader->waiting == 0)
        uv_timer_stop(&poll->reader->tick);
}

void long_poll_leave(struct long_poll *poll)
{
    struct room_wait *wait = poll->room;
    struct str shard;

    off_the_wheel(poll);
    if (!wait)
        return;
    poll->room = NULL;
    list_remove(&poll->room_link);
    if (list_empty(&wait->polls)) {
        if (room_id_read(poll->room_id, &shard))
            feed_wait(poll->reader->history->feed, shard, false);
        map_remove(&poll->reader->waits, &wait->by_id);
        free(wait);
    } else {
        wait->room_id = list_entry(wait->polls.next, struct long_poll, room_link)->room_id;
    }
}

void long_poll_wait(struct long_poll *poll)
{
    struct reader *reader = poll->reader;
    uint64_t now = uv_now(reader->history->loop);

    poll->waiting = true;
    if (reader->waiting++ == 0) {
        reader->wheel_at = now / TICK_MS;
        uv_timer_start(&reader->tick, on_tick, TICK_MS, TICK_MS);
    }
    list_push_back(&reader->wheel[(poll->deadline_ms + TICK_MS - 1) / TICK_MS % WHEEL_SLOTS], &poll->wheel_link);
}

static void wake(struct long_poll *poll)
{
    off_the_wheel(poll);
    poll->woken(poll);
}

static void wake_room(struct room_wait *wait, uint64_t seq)
{
    struct long_poll *poll;

    list_for_each (poll, &wait->polls, room_link) {
        if (seq > poll->news_seq)
            poll->news_seq = seq;
        if (poll->waiting && seq > poll->after_seq)
            wake(poll);
    }
}

void reader_durable(struct reader *reader, struct str room_id, int64_t room_no, uint64_t seq, uint64_t epoch)
{
    struct room_wait *wait = reader->waits.count ? find_wait(reader, room_id) : NULL;

    (void)room_no;
    (void)epoch;
    if (wait)
        wake_room(wait, seq);
}

/* What was said under another owner reached no one here, so everybody who waits looks once. */
void reader_epoch(struct reader *reader, struct str shard, uint64_t epoch, bool ours)
{
    struct map_link *link = map_next(&reader->waits, NULL);

    (void)epoch;
    (void)ours;
    for (; link; link = map_next(&reader->waits, link)) {
        struct room_wait *wait = container_of(link, struct room_wait, by_id);
        struct str its_shard;

        if (room_id_read(wait->room_id, &its_shard) && str_eq(its_shard, shard))
            wake_room(wait, UINT64_MAX);
    }
}

static void on_tick(uv_timer_t *timer)
{
    struct reader *reader = container_of(timer, struct reader, tick);
    uint64_t now = uv_now(reader->history->loop);
    struct long_poll *poll;

    for (; reader->waiting && reader->wheel_at <= now / TICK_MS; reader->wheel_at++) {
        struct list *slot = &reader->wheel[reader->wheel_at % WHEEL_SLOTS];

        list_for_each (poll, slot, wheel_link)
            if (poll->deadline_ms <= now)
                wake(poll);
    }
    if (reader->waiting && !reader->looking && now >= reader->look_at_ms) {
        reader->look_at_ms = now + LOOK_MS;
        look_at_heads(reader, true);
    }
}

/* Also those that do not wait yet: their first look may be older than this. */
void reader_missed(struct reader *reader, struct str shard)
{
    struct map_link *link = map_next(&reader->waits, NULL);

    for (; link; link = map_next(&reader->waits, link)) {
        struct room_wait *wait = container_of(link, struct room_wait, by_id);
        struct str its_shard;

        wait->look |= room_id_read(wait->room_id, &its_shard) && str_eq(its_shard, shard);
        reader->look_again |= wait->look;
    }
    if (reader->look_again && !reader->looking)
        look_at_heads(reader, false);
}

static const struct pg_statement look_statement = {
    .name = "history_heads",
    .sql = "SELECT r.room_id, h.last_seq FROM room_head h JOIN room r ON r.room_no = h.room_no WHERE h.room_no = ANY "
           "($1::bigint[])",
    .params = 1,
};

/* Is anything said of it that does not come here? */
static bool goes_unheard(const struct reader *reader, const struct room_wait *wait)
{
    struct str shard;

    return !room_id_read(wait->room_id, &shard) || !history_hears(reader->history, shard);
}

static void look_at_heads(struct reader *reader, bool unheard_too)
{
    struct pg_params params = {0};
    struct pg_array rooms = {0};
    struct map_link *link = map_next(&reader->waits, NULL);

    pg_array_reset(&rooms, PG_INT8);
    for (; link && rooms.count < LOOK_ROOMS_MAX; link = map_next(&reader->waits, link)) {
        struct room_wait *wait = container_of(link, struct room_wait, by_id);

        if (wait->room_no && (wait->look || (unheard_too && goes_unheard(reader, wait))))
            pg_array_i64(&rooms, wait->room_no);
        wait->look &= !wait->room_no;
    }
    reader->look_again = link != NULL;
    if (rooms.count) {
        reader->looking = true;
        reader->look = (struct pg_query){.statement = &look_statement, .lane = PG_READ, .done = look_on_rows};
        pg_param_array(&params, &rooms);
        pg_submit(reader->history->pg, &reader->look, &params);
        pg_params_clear(&params);
    }
    pg_array_clear(&rooms);
}

/* With the next tick: the database is away. */
static void look_at_all_later(struct reader *reader)
{
    struct map_link *link = map_next(&reader->waits, NULL);

    for (; link; link = map_next(&reader->waits, link))
        container_of(link, struct room_wait, by_id)->look = true;
}

static void look_on_rows(struct pg_query *query, enum err err, const PGresult *result)
{
    struct reader *reader = container_of(query, struct reader, look);

    reader->looking = false;
    if (reader_error(query, err, result)) {
        look_at_all_later(reader);
        return;
    }
    for (int row = 0; row < PQntuples(result); row++) {
        struct room_wait *wait = find_wait(reader, pg_get_str(result, row, 0));

        if (wait)
            wake_room(wait, (uint64_t)pg_get_i64(result, row, 1));
    }
    if (reader->look_again)
        look_at_heads(reader, false);
}
