/*
 * What sequencers have to know before they can go on with a parked room: rooms with their heads, roles of members,
 * earlier ids. All shards ask together: one round is one statement, so that everything in its answer was true at the
 * same moment.
 *
 * While the database is away the needs stay where they are, in the sequencers, and are asked again with growing
 * distance.
 */
#include "internal.h"

#include <inttypes.h>
#include <stdlib.h>

#include "room/base/log.h"

/* One round at a time: what comes meanwhile makes the next one larger, and answers come in the order of the questions.
 * An answer that overtook an earlier one would be of no use to a room that waits for that first, and be asked for anew.
 */
#define ROUNDS_MAX 1
/* Nor more often: a round costs the database as much as ten look-ups in it. The first after a pause goes at once. */
#define ROUND_EVERY_MS 2
#define BACKOFF_LEAST_MS 50
#define BACKOFF_MOST_MS 1000

struct part {
    struct shard *shard; /* NULL: gone meanwhile */
    struct seq_needs needs;
};

struct round {
    struct list link;
    struct facts *facts;
    struct pg_query query;
    struct part *parts;
    size_t count;
};

struct facts {
    struct history *history;
    struct list wanting; /* shards with needs */
    struct list rounds;  /* on their way */
    size_t round_count;
    uint64_t backoff_ms, not_before_ms;
    uint64_t sent_ms;  /* loop clock: the last round */
    uv_timer_t *timer; /* wakes the loop when the backoff is over; the turn does the rest */
    struct pg_params params;
    struct pg_array part_of_room, room, part_of_member, member_room, account, part_of_id, id_room, id;
    struct pg_array part_of_target, target_room, target_seq, target_id;
};

static void on_answer(struct pg_query *query, enum err err, const PGresult *result);

enum kind { KIND_ROOM = 1, KIND_MEMBER = 2, KIND_ID = 3, KIND_TARGET = 4 };

/* All but rooms (deploy/migrations/0008): what redelivered messages, edits and recalls in rooms that are known need. By
 * keys only, and planned once: planning costs several times the look-ups. */
#define OTHER_FACTS                                                                                          \
    "SELECT * FROM facts_of_changes($1::int4[], $2::text[], $3::text[], $4::int4[], $5::text[], $6::int8[]," \
    " $7::uuid[], $8::int4[], $9::text[], $10::uuid[])"

static const struct pg_statement ask_others = {.name = "facts_but_rooms", .sql = OTHER_FACTS, .params = 10};
static const struct pg_statement ask_all = {
    .name = "facts",
    .sql = "SELECT 1 AS kind, x.part, x.room_id, coalesce(r.owner, ''), NULL::uuid, r.room_no,"
           " r.removed::int + 2 * r.since_join::int + 4 * (r.kind = 'direct')::int"
           " + 8 * coalesce((SELECT max(seq) FROM log_entry WHERE room_no = r.room_no AND " TAKEN_BACK "), 0),"
           " r.members::bigint, r.member_limit::bigint, h.last_seq, h.last_epoch, h.last_at, h.counted, r.muted_until,"
           " '', ''"
           " FROM unnest($11::int4[], $12::text[]) x(part, room_id)"
           " CROSS JOIN LATERAL (SELECT * FROM room WHERE room_id = x.room_id LIMIT 1) r" /* by key, whatever the */
           " CROSS JOIN LATERAL (SELECT * FROM room_head WHERE room_no = r.room_no LIMIT 1) h" /* statistics say */
           " UNION ALL " OTHER_FACTS " ORDER BY kind",
    .params = 12,
};

static void on_timer(uv_timer_t *timer)
{
    (void)timer;
}

struct facts *facts_open(struct history *history)
{
    struct facts *facts = xcalloc(1, sizeof *facts);

    facts->history = history;
    list_init(&facts->wanting);
    list_init(&facts->rounds);
    facts->timer = xcalloc(1, sizeof *facts->timer);
    uv_timer_init(history->loop, facts->timer);
    return facts;
}

void facts_collect(struct facts *facts, struct shard *shard)
{
    if (list_empty(&shard->facts_link))
        list_push_back(&facts->wanting, &shard->facts_link);
}

/* ---------------------------------------------------------------------------------------------------------- asking */

static void reset_arrays(struct facts *facts)
{
    pg_array_reset(&facts->part_of_room, PG_INT4);
    pg_array_reset(&facts->room, PG_TEXT);
    pg_array_reset(&facts->part_of_member, PG_INT4);
    pg_array_reset(&facts->member_room, PG_TEXT);
    pg_array_reset(&facts->account, PG_TEXT);
    pg_array_reset(&facts->part_of_id, PG_INT4);
    pg_array_reset(&facts->id_room, PG_TEXT);
    pg_array_reset(&facts->id, PG_UUID);
    pg_array_reset(&facts->part_of_target, PG_INT4);
    pg_array_reset(&facts->target_room, PG_TEXT);
    pg_array_reset(&facts->target_seq, PG_INT8);
    pg_array_reset(&facts->target_id, PG_UUID);
}

static void add_needs(struct facts *facts, int32_t part, const struct seq_needs *needs)
{
    for (size_t i = 0; i < needs->room_count; i++) {
        pg_array_i32(&facts->part_of_room, part);
        pg_array_bytes(&facts->room, needs->rooms[i].room_id);
    }
    for (size_t i = 0; i < needs->member_count; i++) {
        pg_array_i32(&facts->part_of_member, part);
        pg_array_bytes(&facts->member_room, needs->members[i].room_id);
        pg_array_bytes(&facts->account, needs->members[i].account);
    }
    for (size_t i = 0; i < needs->id_count; i++) {
        pg_array_i32(&facts->part_of_id, part);
        pg_array_bytes(&facts->id_room, needs->ids[i].room_id);
        pg_array_uuid(&facts->id, needs->ids[i].message_id);
    }
    for (size_t i = 0; i < needs->target_count; i++) {
        const struct seq_need_target *target = &needs->targets[i];

        pg_array_i32(&facts->part_of_target, part);
        pg_array_bytes(&facts->target_room, target->room_id);
        pg_array_i64(&facts->target_seq, target->seq > INT64_MAX ? 0 : (int64_t)target->seq);
        if (target->seq)
            pg_array_null(&facts->target_id);
        else
            pg_array_uuid(&facts->target_id, target->message_id);
    }
}

static void submit(struct facts *facts, struct round *round)
{
    bool rooms_known = !facts->room.count;

    pg_params_reset(&facts->params);
    pg_param_array(&facts->params, &facts->part_of_member);
    pg_param_array(&facts->params, &facts->member_room);
    pg_param_array(&facts->params, &facts->account);
    pg_param_array(&facts->params, &facts->part_of_target);
    pg_param_array(&facts->params, &facts->target_room);
    pg_param_array(&facts->params, &facts->target_seq);
    pg_param_array(&facts->params, &facts->target_id);
    pg_param_array(&facts->params, &facts->part_of_id);
    pg_param_array(&facts->params, &facts->id_room);
    pg_param_array(&facts->params, &facts->id);
    if (!rooms_known) {
        pg_param_array(&facts->params, &facts->part_of_room);
        pg_param_array(&facts->params, &facts->room);
    }
    list_push_back(&facts->rounds, &round->link);
    facts->round_count++;
    facts->sent_ms = uv_now(facts->history->loop);
    round->query =
        (struct pg_query){.statement = rooms_known ? &ask_others : &ask_all, .lane = PG_READ, .done = on_answer};
    pg_submit(facts->history->pg, &round->query, &facts->params);
}

static void round_free(struct round *round)
{
    for (size_t i = 0; i < round->count; i++)
        seq_needs_clear(&round->parts[i].needs);
    free(round->parts);
    free(round);
}

void facts_turn(struct facts *facts)
{
    struct round *round;
    struct list *first;
    size_t capacity = 8;

    if (list_empty(&facts->wanting) || facts->round_count >= ROUNDS_MAX ||
        uv_now(facts->history->loop) < facts->not_before_ms)
        return;
    if (uv_now(facts->history->loop) < facts->sent_ms + ROUND_EVERY_MS) {
        if (!uv_is_active((uv_handle_t *)facts->timer))
            uv_timer_start(facts->timer, on_timer, ROUND_EVERY_MS, 0);
        return;
    }
    round = xcalloc(1, sizeof *round);
    round->facts = facts;
    round->parts = xcalloc(capacity, sizeof *round->parts);
    reset_arrays(facts);
    while ((first = list_pop_front(&facts->wanting))) {
        struct shard *shard = list_entry(first, struct shard, facts_link);
        struct part *part;

        if (round->count == capacity) {
            round->parts = xrealloc(round->parts, 2 * capacity * sizeof *round->parts);
            memset(round->parts + capacity, 0, capacity * sizeof *round->parts);
            capacity *= 2;
        }
        part = &round->parts[round->count];
        if (!sequencer_take_needs(shard->sequencer, &part->needs))
            continue;
        part->shard = shard;
        add_needs(facts, (int32_t)round->count++, &part->needs);
    }
    if (round->count)
        submit(facts, round);
    else
        round_free(round);
}

/* ------------------------------------------------------------------------------------------------------- answering */

/* The number at the beginning of a message's meta; UINT64_MAX: not given. */
static uint64_t sent_at_of(struct str meta)
{
    static const char name[] = "\"sent_at\":";
    uint64_t value = 0;
    size_t at = sizeof name - 1;

    if (meta.n <= at || memcmp(meta.p, name, at) != 0 || meta.p[at] < '0' || meta.p[at] > '9')
        return UINT64_MAX;
    for (; at < meta.n && meta.p[at] >= '0' && meta.p[at] <= '9'; at++)
        value = value * 10 + (uint64_t)(meta.p[at] - '0');
    return value;
}

static void take_row(struct round *round, const PGresult *result, int row)
{
    int64_t part = pg_get_i64(result, row, 1);
    struct sequencer *sequencer;
    struct str room_id = pg_get_str(result, row, 2);

    if (part < 0 || part >= (int64_t)round->count || !round->parts[part].shard)
        return;
    sequencer = round->parts[part].shard->sequencer;
    switch ((enum kind)pg_get_i64(result, row, 0)) {
    case KIND_ROOM: {
        int64_t flags = pg_get_i64(result, row, 6);

        sequencer_fact_room(sequencer, &round->parts[part].needs,
            &(struct seq_room_fact){
                .room_id = room_id,
                .room_no = pg_get_i64(result, row, 5),
                .removed = flags & 1,
                .since_join = flags & 2,
                .direct = flags & 4,
                .taken_back_seq = (uint64_t)flags / 8,
                .members = (int32_t)pg_get_i64(result, row, 7),
                .member_limit = (int32_t)pg_get_i64(result, row, 8),
                .owner = pg_get_str(result, row, 3),
                .last_seq = (uint64_t)pg_get_i64(result, row, 9),
                .last_epoch = (uint64_t)pg_get_i64(result, row, 10),
                .last_at = (uint64_t)pg_get_i64(result, row, 11),
                .counted = (uint64_t)pg_get_i64(result, row, 12),
                .muted_until = (uint64_t)pg_get_i64(result, row, 13),
            });
        make_up_loaded(round->facts->history->make_up, round->parts[part].shard, pg_get_i64(result, row, 5),
            (uint64_t)pg_get_i64(result, row, 11));
        return;
    }
    case KIND_MEMBER:
        sequencer_fact_member(sequencer, &round->parts[part].needs, room_id, pg_get_str(result, row, 3),
            (enum role)pg_get_i64(result, row, 5), (uint64_t)pg_get_i64(result, row, 6),
            (uint64_t)pg_get_i64(result, row, 7));
        return;
    case KIND_ID:
        sequencer_fact_id(sequencer, room_id, pg_get_uuid(result, row, 4), (uint64_t)pg_get_i64(result, row, 5),
            pg_get_i64(result, row, 6));
        return;
    case KIND_TARGET:
        sequencer_fact_target(sequencer, &round->parts[part].needs,
            &(struct seq_target_fact){
                .room_id = room_id,
                .sender = pg_get_str(result, row, 3),
                .message_id = pg_get_uuid(result, row, 4),
                .seq = (uint64_t)pg_get_i64(result, row, 5),
                .at = (uint64_t)pg_get_i64(result, row, 6),
                .state = (int16_t)pg_get_i64(result, row, 7),
                .kind = pg_get_str(result, row, 14),
                .sent_at = sent_at_of(pg_get_str(result, row, 15)),
            });
        return;
    }
}

static void back_off(struct facts *facts, enum err err, const PGresult *result)
{
    uint64_t now = uv_now(facts->history->loop);

    if (now >= facts->not_before_ms) { /* several rounds that fail together are one failure */
        facts->backoff_ms = facts->backoff_ms ? facts->backoff_ms * 2 : BACKOFF_LEAST_MS;
        if (facts->backoff_ms > BACKOFF_MOST_MS)
            facts->backoff_ms = BACKOFF_MOST_MS;
        facts->not_before_ms = now + facts->backoff_ms;
        uv_timer_start(facts->timer, on_timer, facts->backoff_ms, 0);
        log_warn("facts.failed", "error=%s sqlstate=%s again_in_ms=%" PRIu64, err_code(err),
            result ? pg_sqlstate(result) : "", facts->backoff_ms);
    }
}

static void on_answer(struct pg_query *query, enum err err, const PGresult *result)
{
    struct round *round = container_of(query, struct round, query);
    struct facts *facts = round->facts;
    uint64_t now = history_now_ms(facts->history);

    list_remove(&round->link);
    facts->round_count--;
    if (err) {
        back_off(facts, err, result);
    } else {
        facts->backoff_ms = 0;
        for (int row = 0; row < PQntuples(result); row++)
            take_row(round, result, row);
    }
    for (size_t i = 0; i < round->count; i++) {
        struct shard *shard = round->parts[i].shard;

        if (!shard)
            continue;
        sequencer_facts_done(shard->sequencer, &round->parts[i].needs, !err, now);
        facts_collect(facts, shard);
        shard_mark_dirty(shard);
    }
    round_free(round);
}

void facts_forget_shard(struct facts *facts, struct shard *shard)
{
    struct round *round;

    list_remove(&shard->facts_link);
    list_for_each (round, &facts->rounds, link) {
        for (size_t i = 0; i < round->count; i++)
            if (round->parts[i].shard == shard)
                round->parts[i].shard = NULL;
    }
}

static void free_timer(uv_handle_t *handle)
{
    free(handle);
}

void facts_close(struct facts *facts)
{
    struct round *round;

    list_for_each (round, &facts->rounds, link) {
        pg_forget(&round->query);
        list_remove(&round->link);
        round_free(round);
    }
    pg_params_clear(&facts->params);
    pg_array_clear(&facts->part_of_room);
    pg_array_clear(&facts->room);
    pg_array_clear(&facts->part_of_member);
    pg_array_clear(&facts->member_room);
    pg_array_clear(&facts->account);
    pg_array_clear(&facts->part_of_id);
    pg_array_clear(&facts->id_room);
    pg_array_clear(&facts->id);
    pg_array_clear(&facts->part_of_target);
    pg_array_clear(&facts->target_room);
    pg_array_clear(&facts->target_seq);
    pg_array_clear(&facts->target_id);
    uv_close((uv_handle_t *)facts->timer, free_timer);
    free(facts);
}
