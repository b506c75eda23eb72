/*
 * Unread and mentioned against a count by hand, after random histories: several accounts send messages and tips, the
 * system speaks, messages are edited, recalled and deleted, accounts join, leave and come back, mark and send. What is
 * said is written by the real append(), cursors are moved and counts are asked by the real history.
 *
 * The count by hand knows one rule and no number that is kept anywhere: look at every row above the account's cursor;
 * it counts when it is a message, no tip, neither recalled nor deleted, and of somebody else.
 *
 *   ROOMD_HISTORIES=100000 ROOMD_SEED=1 …/test_unread
 */
#include "reads_world.h"

static const char schema[] = "roomd_unread";

enum {
    ROOMS = 250, /* histories at a time: one room each, one append() for a step of all of them */
    STEPS = 4,
    ACCOUNTS = 4,
    ALL = ACCOUNTS, /* as something that is mentioned */
    SYSTEM = ACCOUNTS,
    LOG_MAX = 400,
    MARKS_MAX = ROOMS * 2
};

static uint64_t seed_now, random_state;

static unsigned rnd(unsigned below)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)((random_state >> 20) % below);
}

static bool chance(unsigned percent)
{
    return rnd(100) < percent;
}

/* --- what is known of a room without asking --- */

struct said {
    bool message, tip, taken_back;
    unsigned sender, mentions; /* bits: ACCOUNTS and ALL */
    unsigned changed_in;       /* step; a message is changed once in a batch */
};

struct member {
    bool in;
    uint64_t read_seq;
    uint64_t sent_seq; /* own message of this step */
};

struct room {
    bool removed;
    unsigned quiet; /* accounts that say nothing and seldom mark: bits */
    uint64_t last_seq, counted;
    struct said log[LOG_MAX];
    struct member members[ACCOUNTS];
    uint64_t asked; /* accounts that were found in the answer; bits */
};

static struct room rooms[ROOMS];
static unsigned group, step;
static long first_room_no;

static const char *account_name(unsigned account)
{
    static char names[4][32];
    static unsigned turn;
    char *name = names[turn++ % 4];

    snprintf(name, sizeof names[0], "%c%u", "abcd"[account], group);
    return name;
}

/* --- one append() --- */

/* The parameters of append() behind the instance id: types, and what this test writes into them. */
enum { COLUMNS = 55 };
static const char *const column_types[COLUMNS] = {"text", "int8", /* shards */
    "int8", "int8", "int8", "int8", "int8", "int8",               /* h_room old new epoch at counted */
    "int8", "int8", "int8", "int8", "int8", "int8", "uuid",       /* e_room seq epoch at counted hash id */
    "int2", "text", "text", "text", "text", "text", "int8",       /* type sender cmid kind content meta target */
    "int8", "text", "int2", "int2", "int8", "int8", "int8",
    "int8", /* m_room account action role at seq counted muted */
    "int8", "int4", "text", "text", "text", "int4", "text", "bool", "int8", /* r_room members … extra removed muted */
    "int8", "int8", "int2", "text", "text",                                 /* t_room seq state content meta */
    "int8", "int8", "text", "int8",                                         /* n_room seq account by */
    "text", "text", "uuid", "text", "text", "bytea", "int8"};               /* o_… */
enum { H = 2, E = 8, M = 22, R = 30, T = 39, N = 44, O = 48 };
_Static_assert(O + 7 == COLUMNS, "the columns are as append() has them");
static struct buf columns[COLUMNS];
static char *append_sql;

static void make_append_sql(void)
{
    struct buf sql = {0};

    buf_text(&sql, "SELECT append('me'");
    for (int i = 0; i < COLUMNS; i++)
        buf_printf(&sql, ", $%d::%s[]", i + 1, column_types[i]);
    buf_text(&sql, ")");
    buf_char(&sql, '\0');
    append_sql = sql.p;
}

/* One row for columns from `first` on: values without anything to escape, separated by blanks. */
__attribute__((format(printf, 2, 3))) static void put(int first, const char *format, ...)
{
    char text[300], *at = text, *word;
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    while ((word = strsep(&at, " "))) {
        buf_char(&columns[first], columns[first].n ? ',' : '{');
        buf_text(&columns[first++], word);
    }
}

static void send_append(struct world *world)
{
    const char *values[COLUMNS];
    PGresult *result;

    put(0, "s00 1");
    for (int i = 0; i < COLUMNS; i++) {
        if (!columns[i].n)
            buf_char(&columns[i], '{');
        buf_text(&columns[i], "}");
        buf_char(&columns[i], '\0');
        values[i] = columns[i].p;
    }
    result = PQexecParams(world->sql, append_sql, COLUMNS, NULL, values, NULL, NULL, 0);
    if (PQresultStatus(result) != PGRES_TUPLES_OK)
        fail_msg("%s", PQerrorMessage(world->sql));
    PQclear(result);
    for (int i = 0; i < COLUMNS; i++)
        buf_reset(&columns[i]);
}

static long room_no(const struct room *room)
{
    return first_room_no + (room - rooms);
}

/* An entry at the next seq. */
static struct said *put_entry(struct room *room, int type, const char *sender, const char *kind, uint64_t target)
{
    struct said *said = &room->log[++room->last_seq];
    char target_text[24] = "NULL";

    *said = (struct said){.message = type == 1, .tip = strcmp(kind, "tip") == 0};
    if (said->message && !said->tip)
        room->counted++;
    if (target)
        snprintf(target_text, sizeof target_text, "%" PRIu64, target);
    put(E, "%ld %" PRIu64 " 1 1 %" PRIu64 " 0 NULL %d %s \"\" %s 1 NULL %s", room_no(room), room->last_seq,
        room->counted, type, sender, *kind ? kind : "\"\"", target_text);
    return said;
}

static void put_mentions(struct room *room, struct said *said, uint64_t seq, uint64_t by)
{
    said->mentions = chance(30) ? 1u << rnd(ACCOUNTS + 1) | (chance(50) ? 1u << rnd(ACCOUNTS + 1) : 0) : 0;
    for (unsigned i = 0; i <= ACCOUNTS; i++)
        if (said->mentions & 1u << i)
            put(N, "%ld %" PRIu64 " %s %" PRIu64, room_no(room), seq, i == ALL ? "@all" : account_name(i), by);
}

static void say(struct room *room)
{
    unsigned sender = rnd(ACCOUNTS + 1);
    struct said *said;

    if (sender < ACCOUNTS && (!room->members[sender].in || room->quiet & 1u << sender))
        sender = SYSTEM;
    said = put_entry(room, 1, sender == SYSTEM ? "@system" : account_name(sender), chance(15) ? "tip" : "text", 0);
    said->sender = sender;
    put_mentions(room, said, room->last_seq, room->last_seq);
    if (sender < ACCOUNTS)
        room->members[sender].sent_seq = room->last_seq;
}

/* Edited (with other mentions or as it was), recalled or deleted. */
static void change_message(struct room *room)
{
    uint64_t seq = room->last_seq ? 1 + rnd((unsigned)room->last_seq) : 0;
    struct said *said = &room->log[seq];
    int state = 1 + (int)rnd(3);
    bool with_meta = chance(50);

    if (!seq || !said->message || said->changed_in == step || (said->taken_back && state < 3))
        return;
    said->changed_in = step;
    put_entry(room, 1 + state, "@system", "", seq);
    put(T, "%ld %" PRIu64 " %d %s %s", room_no(room), seq, state, state == 1 ? "2" : "NULL",
        state == 1 && with_meta ? "m" : "NULL");
    if (state > 1) {
        said->taken_back = true;
        said->mentions = 0;
    } else if (with_meta) {
        put_mentions(room, said, seq, room->last_seq);
    }
}

static void join_or_leave(struct room *room)
{
    unsigned account = rnd(ACCOUNTS);
    struct member *member = &room->members[account];

    put_entry(room, member->in ? 6 : 5, "@system", "", 0);
    put(M, "%ld %s %d 1 1 %" PRIu64 " %" PRIu64 " 0", room_no(room), account_name(account), !member->in, room->last_seq,
        room->counted);
    *member = (struct member){.in = !member->in, .read_seq = room->last_seq};
}

static void make_history(struct room *room)
{
    unsigned entries = chance(25) ? rnd(99) : rnd(14), joins_at = chance(40) ? rnd(entries + 1) : entries;
    uint64_t before = room->last_seq;

    if (room->removed)
        return;
    for (unsigned i = 0; i < entries; i++) {
        if (i == joins_at)
            join_or_leave(room);
        else if (chance(20))
            change_message(room);
        else if (chance(3))
            put_entry(room, 0, "@system", "", 0);
        else
            say(room);
    }
    if (room->last_seq > before && chance(2)) {
        room->removed = true;
        put(R, "%ld NULL NULL NULL NULL NULL NULL t NULL", room_no(room));
    }
    if (room->last_seq > before)
        put(H, "%ld %" PRIu64 " %" PRIu64 " 1 1 %" PRIu64, room_no(room), before, room->last_seq, room->counted);
}

/* --- cursors --- */

static struct {
    struct history_mark mark;
    char room_id[32], account[32];
    unsigned room, of;
} markings[MARKS_MAX];
static unsigned marking_count, markings_open;

static void on_mark(struct history_mark *mark, enum err err);

static void room_id_of(char *text, size_t n, const struct room *room)
{
    snprintf(text, n, "s00.%026ld", (long)group * ROOMS + (room - rooms));
}

static void move_cursors(struct world *world, struct room *room)
{
    char room_id[32];

    room_id_of(room_id, sizeof room_id, room);
    for (unsigned i = 0; i < ACCOUNTS; i++) {
        struct member *member = &room->members[i];
        bool quiet = room->quiet & 1u << i;

        /* Not written yet: the cursor is behind, and yet own messages do not count near the head. */
        if (member->in && room->last_seq - member->read_seq <= 50 && chance(20))
            continue;
        if (member->in && member->sent_seq) {
            marks_sent(world->history->marks, str_of(room_id), str_of(account_name(i)), member->sent_seq);
            if (member->sent_seq > member->read_seq)
                member->read_seq = member->sent_seq;
        }
        member->sent_seq = 0;
        if (member->in && room->last_seq && chance(quiet ? 10 : 30) && marking_count < MARKS_MAX) {
            uint64_t seq = 1 + rnd((unsigned)room->last_seq / (quiet ? 4 : 1) + 1) % room->last_seq;

            markings[marking_count].mark = (struct history_mark){.read_seq = seq, .done = on_mark};
            markings[marking_count].room = (unsigned)(room - rooms);
            markings[marking_count].of = i;
            memcpy(markings[marking_count].room_id, room_id, sizeof room_id);
            snprintf(markings[marking_count].account, sizeof markings[0].account, "%s", account_name(i));
            if (seq > member->read_seq)
                member->read_seq = seq;
            marking_count++;
        }
    }
}

/* --- the count by hand --- */

static struct row {
    bool counts; /* but for who said it */
    unsigned sender;
} rows[ROOMS][LOG_MAX];

static void read_rows(struct world *world)
{
    PGresult *result;
    char sql[300];

    snprintf(sql, sizeof sql,
        "SELECT room_no, seq, type, state, kind, sender FROM log_entry WHERE room_no >= %ld AND room_no < %ld",
        first_room_no, first_room_no + ROOMS);
    result = PQexec(world->sql, sql);
    assert_int_equal(PQresultStatus(result), PGRES_TUPLES_OK);
    for (int i = 0; i < PQntuples(result); i++) {
        const char *sender = PQgetvalue(result, i, 5);
        struct row *row = &rows[atol(PQgetvalue(result, i, 0)) - first_room_no][atol(PQgetvalue(result, i, 1))];

        row->counts = atoi(PQgetvalue(result, i, 2)) == 1 && atoi(PQgetvalue(result, i, 3)) < 2 &&
                      strcmp(PQgetvalue(result, i, 4), "tip") != 0;
        row->sender = *sender == '@' ? SYSTEM : (unsigned)(*sender - 'a');
    }
    PQclear(result);
}

static uint64_t unread_by_hand(const struct room *room, unsigned account)
{
    uint64_t count = 0;

    for (uint64_t seq = room->members[account].read_seq + 1; seq <= room->last_seq; seq++)
        count += rows[room - rooms][seq].counts && rows[room - rooms][seq].sender != account;
    return count;
}

static uint64_t mentioned_by_hand(const struct room *room, unsigned account)
{
    uint64_t count = 0;

    for (uint64_t seq = room->members[account].read_seq + 1; seq <= room->last_seq; seq++)
        count += !room->log[seq].tip && room->log[seq].sender != account &&
                 (room->log[seq].mentions & (1u << account | 1u << ALL)) != 0;
    return count;
}

#define SAME(what, got, want)                                                                                       \
    do {                                                                                                            \
        if ((uint64_t)(got) != (uint64_t)(want))                                                                    \
            fail_msg("seed %" PRIu64 " step %u room %ld account %u: %s is %" PRIu64 ", by hand %" PRIu64, seed_now, \
                step, room_no(room), account, what, (uint64_t)(got), (uint64_t)(want));                             \
    } while (0)

static void on_mark(struct history_mark *mark, enum err err)
{
    const struct room *room = &rooms[container_of(mark, typeof(markings[0]), mark)->room];
    unsigned account = container_of(mark, typeof(markings[0]), mark)->of;

    markings_open--;
    SAME("the answer to a mark", err, ERR_OK);
    SAME("read_seq of a mark", mark->read_seq, room->members[account].read_seq);
    SAME("unread of a mark", mark->unread, unread_by_hand(room, account));
}

static unsigned asked_account;
static bool asked_done;
static uint64_t compared_far, compared_near;

static int64_t number_of(struct json object, const char *key)
{
    int64_t number = -1;

    assert_true(json_integer(json_get(object, key), &number));
    return number;
}

/* The digits at `p`, which is no C text. */
static long number_at(const char *p)
{
    long number = 0;

    while (*p >= '0' && *p <= '9')
        number = 10 * number + (*p++ - '0');
    return number;
}

static void compare_room(struct json item)
{
    struct json id = json_get(item, "room_id");
    struct room *room = &rooms[number_at(id.p + 6) - (long)group * ROOMS]; /* behind the quote, s00 and the dot */
    unsigned account = asked_account;
    const struct member *member = &room->members[account];

    assert_true(room >= rooms && room < rooms + ROOMS && member->in && !room->removed);
    room->asked |= 1u << account;
    SAME("head_seq", number_of(item, "head_seq"), room->last_seq);
    SAME("read_seq", number_of(item, "read_seq"), member->read_seq);
    SAME("unread", number_of(item, "unread"), unread_by_hand(room, account));
    SAME("mentioned", number_of(item, "mentioned"), mentioned_by_hand(room, account));
    if (room->last_seq - member->read_seq > 50)
        compared_far++;
    else
        compared_near++;
}

static void on_unread(struct history_unread *unread, enum err err)
{
    struct json answer, item;
    struct json_walk walk;
    const char *why;
    int64_t total = 0;

    assert_int_equal(err, ERR_OK);
    assert_true(json_check(unread->answer_json, &answer, &why));
    walk = json_walk(json_get(answer, "rooms"));
    while (json_next_item(&walk, &item)) {
        compare_room(item);
        total += number_of(item, "unread");
    }
    assert_int_equal(number_of(answer, "total"), total);
    asked_done = true;
}

static bool is_true(void *arg)
{
    return *(bool *)arg;
}

static bool all_written(void *arg)
{
    return !markings_open && marks_idle(((struct world *)arg)->history->marks);
}

static void compare(struct world *world)
{
    for (asked_account = 0; asked_account < ACCOUNTS; asked_account++) {
        struct history_unread unread = {.account = str_of(account_name(asked_account)), .done = on_unread};

        asked_done = false;
        history_ask_unread(world->history, &unread);
        world_wait(world, is_true, &asked_done);
    }
    for (struct room *room = rooms; room < rooms + ROOMS; room++) {
        for (unsigned account = 0; account < ACCOUNTS; account++)
            SAME("whether it is told", room->asked >> account & 1, room->members[account].in && !room->removed);
        room->asked = 0;
    }
}

/* --- many histories --- */

static void make_rooms(struct world *world)
{
    char sql[700];

    memset(rooms, 0, sizeof rooms);
    memset(rows, 0, sizeof rows);
    snprintf(sql, sizeof sql,
        "WITH r AS (INSERT INTO room (room_id, shard, kind, created_at) SELECT 's00.' || lpad(n::text, 26, '0'), "
        "'s00', "
        "'group', 1 FROM generate_series(%u, %u) n ORDER BY n RETURNING room_no), h AS (INSERT INTO room_head "
        "(room_no) "
        "SELECT room_no FROM r) SELECT min(room_no) FROM r",
        group * ROOMS, group * ROOMS + ROOMS - 1);
    first_room_no = database_number(world->sql, sql);
    for (unsigned i = 0; i < ROOMS * ACCOUNTS; i++)
        rooms[i / ACCOUNTS].members[i % ACCOUNTS].in = chance(70);
    for (struct room *room = rooms; room < rooms + ROOMS; room++)
        room->quiet = rnd(1u << ACCOUNTS);
    for (unsigned account = 0; account < ACCOUNTS; account++) {
        struct buf insert = {0};

        buf_text(&insert, "INSERT INTO room_member (room_no, account, role, joined_at, join_seq) SELECT n, '");
        buf_printf(&insert, "%s', 1, 1, 0 FROM unnest(ARRAY[0", account_name(account));
        for (const struct room *room = rooms; room < rooms + ROOMS; room++)
            if (room->members[account].in)
                buf_printf(&insert, ",%ld", room_no(room));
        buf_text(&insert, "]::bigint[]) n WHERE n > 0");
        buf_char(&insert, '\0');
        database_run(world->sql, insert.p);
        buf_clear(&insert);
    }
}

static void run_step(struct world *world)
{
    marking_count = 0;
    for (struct room *room = rooms; room < rooms + ROOMS; room++)
        make_history(room);
    send_append(world);
    for (struct room *room = rooms; room < rooms + ROOMS; room++)
        move_cursors(world, room);
    read_rows(world);
    markings_open = marking_count;
    for (unsigned i = 0; i < marking_count; i++) {
        markings[i].mark.room_id = str_of(markings[i].room_id);
        markings[i].mark.account = str_of(markings[i].account);
        history_mark_read(world->history, &markings[i].mark);
    }
    world_wait(world, all_written, world);
}

static void counts_are_those_by_hand(void **state)
{
    const char *histories = getenv("ROOMD_HISTORIES"), *seed = getenv("ROOMD_SEED");
    unsigned groups = ((unsigned)(histories ? atoi(histories) : 10000) + ROOMS - 1) / ROOMS;
    struct world *world = *state;

    if (!world)
        skip();
    world->config.mark_flush_ms = world->config.sent_flush_ms = 0;
    world_start(world);
    seed_now = seed ? strtoull(seed, NULL, 10) : 1;
    random_state = seed_now * 0x9e3779b97f4a7c15u | 1;
    make_append_sql();
    for (group = 0; group < groups; group++) {
        make_rooms(world);
        for (step = 1; step <= STEPS; step++) {
            run_step(world);
            if (step % 2 == 0)
                compare(world);
        }
    }
    print_message("%u histories; %" PRIu64 " counts compared near the head, %" PRIu64 " far from it\n", groups * ROOMS,
        compared_near, compared_far);
    assert_true(compared_far > groups * ROOMS / 10 && compared_near > groups * ROOMS);
    for (int i = 0; i < COLUMNS; i++)
        buf_clear(&columns[i]);
    free(append_sql);
}

static int begin(void **state)
{
    *state = world_begin(schema);
    return 0;
}

static int end(void **state)
{
    world_end(*state, schema);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(counts_are_those_by_hand, begin, end)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
