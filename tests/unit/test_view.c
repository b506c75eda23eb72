/*
 * Random lives of a room: messages, commits, lost news, owners that die uncommitted, readers that are slow, leave and
 * come back with their cursors. Whatever happens: a reader sees seq after seq without hole or repeat, goes back only
 * when it is told to, and ends with exactly the log. A seed that fails is told: ROOMD_TEST_SEED=<seed> runs it alone.
 */
#include "proxy_fakes.h"

#define READERS 6
#define STEPS 400

struct reader {
    struct client *client;
    enum deliver deliver;
    struct cursor cursor;
    uint64_t epochs[FAKE_LOG_MAX + 1]; /* of what it has, by seq */
};

static uint64_t seed_now;
static uint64_t random_state;
static int reader_count; /* with few of them the room's view is made anew when one comes back */

static uint32_t dice(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

static uint64_t number_of(struct json event, const char *name)
{
    int64_t value = 0;

    assert_true(json_integer(json_get(event, name), &value));
    return (uint64_t)value;
}

static void fail_seed(const char *what, uint64_t a, uint64_t b)
{
    fail_msg(
        "seed %llu: %s (%llu, %llu)", (unsigned long long)seed_now, what, (unsigned long long)a, (unsigned long long)b);
}

static void reader_takes(struct reader *reader, struct str line)
{
    struct json event, type;
    const char *why;

    assert_true(json_check(line, &event, &why));
    type = json_get(event, "type");
    if (type.n == 7 && memcmp(type.p, "\"reset\"", 7) == 0) {
        uint64_t seq = number_of(event, "seq");

        if (reader->deliver == DELIVER_DURABLE)
            fail_seed("a durable reader is told to go back", seq, 0);
        if (reader->cursor.seq > seq)
            reader->cursor = (struct cursor){seq ? reader->epochs[seq] : 0, seq};
    } else if (type.n == 9 && memcmp(type.p, "\"message\"", 9) == 0) {
        uint64_t seq = number_of(event, "seq");

        if (seq != reader->cursor.seq + 1)
            fail_seed("a hole or a repeat: has, gets", reader->cursor.seq, seq);
        reader->cursor = (struct cursor){number_of(event, "epoch"), seq};
        reader->epochs[seq] = reader->cursor.epoch;
    }
}

static void reader_reads(struct reader *reader)
{
    struct client *client = reader->client;

    while (client && client->read < client->wire.out.n) {
        const char *p = client->wire.out.p + client->read;
        const char *end = memchr(p, '\n', client->wire.out.n - client->read);

        if (!end) /* the rest is on its way */
            return;
        reader_takes(reader, (struct str){p, (size_t)(end - p)});
        client->read += (size_t)(end - p) + 1;
    }
}

static void reader_opens(struct reader *reader, const struct fake_room *room)
{
    char position[128], cursor[CURSOR_TEXT_MAX];
    const char *rooms[] = {position, NULL};

    cursor_write(cursor, reader->cursor);
    snprintf(position, sizeof position, "%s@%s", room->id, cursor);
    reader->client = client_ask("ndjson", ticket_of("alice", reader->deliver, false, rooms), "", NULL);
}

static void reader_leaves(struct reader *reader)
{
    if (!reader->client || list_empty(&reader->client->wire.link))
        return;
    reader_reads(reader);
    client_free(reader->client);
    reader->client = NULL;
}

static void step(struct fake_room *room, struct reader *readers)
{
    struct reader *reader = &readers[dice((uint32_t)reader_count)];

    switch (dice(14)) {
    case 0:
    case 1:
    case 2:
        say_early(room, 1 + (int)dice(5));
        break;
    case 3:
        say_early(room, 1 + (int)dice(40));
        break;
    case 4: /* news that never came */
        put_entry(room, ENTRY_MESSAGE, STR("\"missed\""));
        break;
    case 5:
    case 6:
        commit(room);
        break;
    case 7: /* committed, and nobody was told */
        room->committed = room->shown;
        break;
    case 8:
        if (dice(4) == 0) {
            take_over(room);
            if (dice(2))
                proxy_epoch(world.proxy, STR("s00"), room->epoch, true);
        }
        break;
    case 9:
        if (reader->client)
            reader->client->wire.stuck = !reader->client->wire.stuck;
        break;
    case 10:
        if (reader->client)
            reader_leaves(reader);
        else
            reader_opens(reader, room);
        break;
    case 11:
        world.database_away = dice(4) == 0;
        break;
    default:
        turns(1 + (int)dice(4));
    }
}

static void readers_go_on(struct reader *readers)
{
    for (int i = 0; i < reader_count; i++) {
        struct client *client = readers[i].client;

        if (!client)
            continue;
        client_go_on(client);
        reader_reads(&readers[i]);
        if (client->reply.status >= 400) { /* refused: the database was away */
            client_free(client);
            readers[i].client = NULL;
        }
    }
}

static bool all_have_the_log(const struct fake_room *room, const struct reader *readers)
{
    for (int i = 0; i < reader_count; i++)
        if (!readers[i].client || readers[i].cursor.seq != room->committed)
            return false;
    return true;
}

static void settle(struct fake_room *room, struct reader *readers)
{
    uint64_t end = clock_mono_ms() + 8000;

    world.database_away = false;
    say_early(room, 1); /* of the last epoch: every view hears of it */
    commit(room);
    while (!all_have_the_log(room, readers) && clock_mono_ms() < end) {
        for (int i = 0; i < reader_count; i++) {
            if (!readers[i].client)
                reader_opens(&readers[i], room);
            readers[i].client->wire.stuck = false;
        }
        uv_update_time(&world.loop);
        turn();
        readers_go_on(readers);
    }
    for (int i = 0; i < reader_count; i++) {
        if (readers[i].cursor.seq != room->committed)
            fail_seed("a reader stands at, the log has", readers[i].cursor.seq, room->committed);
        for (uint64_t seq = 1; seq <= room->committed; seq++)
            if (readers[i].epochs[seq] != room->log[seq]->epoch)
                fail_seed("a reader has another entry at", seq, readers[i].epochs[seq]);
    }
}

static void one_life(uint64_t seed)
{
    struct reader *readers = xcalloc(READERS, sizeof *readers);
    struct fake_room *room;
    void *state = NULL;

    seed_now = random_state = seed;
    dice(1);
    world_open(&state);
    world.config.stream_pending_max_bytes = 4096 + dice(20000);
    world.config.tail_max_entries = 16 + dice(100);
    room = room_new();
    join(room, "alice", 0);
    reader_count = 1 + (int)dice(READERS);
    for (int i = 0; i < reader_count; i++)
        readers[i].deliver = i % 3 == 2 ? DELIVER_DURABLE : DELIVER_EARLY;
    for (int i = 0; i < STEPS && room->shown < FAKE_LOG_MAX - 100; i++) {
        step(room, readers);
        readers_go_on(readers);
    }
    settle(room, readers);
    for (int i = 0; i < reader_count; i++)
        reader_leaves(&readers[i]);
    world_close(&state);
    free(readers);
}

static void readers_end_with_exactly_the_log_whatever_happens(void **state)
{
    const char *seed = getenv("ROOMD_TEST_SEED"), *lives = getenv("ROOMD_TEST_LIVES");

    (void)state;
    log_set_level(LOG_ERROR);
    if (seed) {
        one_life(strtoull(seed, NULL, 10));
        return;
    }
    for (uint64_t i = 1; i <= (lives ? strtoull(lives, NULL, 10) : 60); i++)
        one_life(i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(readers_end_with_exactly_the_log_whatever_happens)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
