#include "sequencer_state.h"

#include <assert.h>
#include <stdlib.h>

/* The way of a delivery - the steps, in the order they run. */
static bool lacks_facts(struct sequencer *s, const struct delivery *delivery);
static void decide(struct sequencer *s, struct delivery *delivery, uint64_t now_ms);
static bool settle_repeat(struct sequencer *s, struct delivery *delivery);
static enum err check_sender(struct sequencer *s, const struct delivery *delivery, const char **why);
static void accept(struct sequencer *s, struct delivery *delivery, uint64_t now_ms);

struct sequencer *sequencer_new(const struct sequencer_settings *settings, const struct sequencer_events *events)
{
    struct sequencer *s = xcalloc(1, sizeof *s);

    s->settings = *settings;
    s->events = *events;
    assert(settings->shard.n <= SHARD_MAX_BYTES);
    memcpy(s->shard_text, settings->shard.p, settings->shard.n);
    s->settings.shard.p = s->shard_text;
    map_init(&s->rooms);
    map_init(&s->members);
    map_init(&s->seen);
    map_init(&s->dead_rows);
    list_init(&s->room_lru);
    list_init(&s->member_lru);
    list_init(&s->seen_age);
    list_init(&s->rows);
    list_init(&s->unasked);
    list_init(&s->asked);
    ring_reset(&s->ring);
    return s;
}

void sequencer_free(struct sequencer *s)
{
    struct list *at;
    struct map_link *link;

    if (!s)
        return;
    sequencer_channel_lost(s);
    while (!list_empty(&s->rows))
        row_free(s, list_entry(s->rows.next, struct seq_row, link));
    for (link = map_next(&s->seen, NULL); link;) {
        struct seen *seen = container_of(link, struct seen, by_id);

        link = map_next(&s->seen, link);
        seen_free(seen);
    }
    while ((at = list_pop_front(&s->member_lru)))
        free(list_entry(at, struct known_member, lru));
    while ((at = list_pop_front(&s->room_lru)))
        free(list_entry(at, struct seq_room, lru));
    map_clear(&s->rooms);
    map_clear(&s->members);
    map_clear(&s->seen);
    map_clear(&s->dead_rows);
    free(s->ring.slots);
    free(s);
}

/* --- in --- */

static void park(struct sequencer *s, struct delivery *delivery)
{
    struct delivery *parked = xmemdup(delivery, sizeof *delivery);

    list_push_back(&parked->room->parked, &parked->link);
    list_push_back(&s->unasked, &parked->ask_link);
    s->counters.parked++;
    s->counters.unpersisted_bytes += parked->envelope->body->n;
}

static void unpark(struct sequencer *s, struct delivery *parked)
{
    list_remove(&parked->link);
    list_remove(&parked->ask_link);
    s->counters.parked--;
    s->counters.unpersisted_bytes -= parked->envelope->body->n;
}

void sequencer_deliver(struct sequencer *s, uint64_t tag, bool redelivered, struct envelope *envelope, uint64_t now_ms)
{
    struct delivery delivery = {.envelope = envelope, .tag = tag, .redelivered = redelivered};
    struct seq_room *room = room_find_or_make(s, envelope->room_id);

    ring_push(&s->ring, tag);
    s->counters.delivered_total++;
    list_remove(&room->lru);
    list_push_back(&s->room_lru, &room->lru);
    delivery.room = room;
    if (list_empty(&room->parked) && !lacks_facts(s, &delivery))
        decide(s, &delivery, now_ms);
    else
        park(s, &delivery);
}

void sequencer_refuse(
    struct sequencer *s, uint64_t tag, struct envelope *envelope, enum err err, const char *why, uint64_t now_ms)
{
    struct delivery delivery = {.envelope = envelope, .tag = tag};
    struct seq_row *row;

    (void)now_ms;
    ring_push(&s->ring, tag);
    s->counters.delivered_total++;
    row = row_new(s, NULL, &delivery);
    row_dead(s, row, (struct id128){{0}}, err, why); /* it never was a message: nothing to recognise it by */
}

void sequencer_channel_lost(struct sequencer *s)
{
    struct list *at;

    for (struct list *next = s->room_lru.next; next != &s->room_lru;) {
        struct seq_room *room = list_entry(next, struct seq_room, lru);

        next = next->next;
        while (!list_empty(&room->parked)) {
            struct delivery *parked = list_entry(room->parked.next, struct delivery, link);

            unpark(s, parked);
            envelope_free(parked->envelope);
            free(parked);
        }
        if (!room->loaded && room_idle(room))
            room_free(s, room);
    }
    for (at = s->rows.next; at != &s->rows; at = at->next)
        list_entry(at, struct seq_row, link)->first_tag = 0;
    ring_reset(&s->ring);
}

/* --- facts --- */

static struct str copy_text(struct seq_needs *needs, struct str text)
{
    struct str at = {(char *)(uintptr_t)(needs->text.n + 1), text.n}; /* an offset until the buffer stops growing */

    buf_add(&needs->text, text.p, text.n);
    return at;
}

static void need_room(struct seq_needs *needs, struct str room_id)
{
    needs->rooms = xrealloc(needs->rooms, (needs->room_count + 1) * sizeof *needs->rooms);
    needs->rooms[needs->room_count++].room_id = copy_text(needs, room_id);
}

static void need_member(struct seq_needs *needs, struct str room_id, struct str account)
{
    needs->members = xrealloc(needs->members, (needs->member_count + 1) * sizeof *needs->members);
    needs->members[needs->member_count].room_id = copy_text(needs, room_id);
    needs->members[needs->member_count++].account = copy_text(needs, account);
}

static void need_id(struct seq_needs *needs, struct str room_id, struct id128 id)
{
    needs->ids = xrealloc(needs->ids, (needs->id_count + 1) * sizeof *needs->ids);
    needs->ids[needs->id_count].room_id = copy_text(needs, room_id);
    needs->ids[needs->id_count++].message_id = id;
}

static void resolve(struct seq_needs *needs, struct str *text)
{
    text->p = needs->text.p + ((uintptr_t)text->p - 1);
}

/* Is the log asked for the id? Always for ops: one that only the COMMIT finds to be a repeat would have changed members
 * in memory meanwhile. */
static bool looks_up_id(const struct delivery *delivery)
{
    return !delivery->envelope->transient && (delivery->redelivered || delivery->envelope->op);
}

/* Does memory lack something this delivery is decided by? */
static bool lacks_facts(struct sequencer *s, const struct delivery *delivery)
{
    const struct envelope *envelope = delivery->envelope;
    struct seq_room *room = delivery->room;

    if (!envelope->transient) {
        if (seen_find(s, envelope->message_id))
            return false;
        if (looks_up_id(delivery) && !(delivery->redelivered && dead_row_find(s, envelope->message_id)))
            return true;
    }
    if (!room->loaded)
        return true;
    for (size_t i = 0; i < envelope->account_count; i++)
        if (!member_find(s, room, envelope->accounts[i]))
            return true;
    return !envelope->op && envelope->sender.p[0] != '@' && !member_find(s, room, envelope->sender);
}

/* Everything a parked delivery is decided by, also what memory holds now: it may be evicted before the answer is there,
 * and an answered delivery takes what memory does not hold for absent. */
static void need_all(struct seq_needs *needs, const struct delivery *delivery)
{
    const struct envelope *envelope = delivery->envelope;
    struct str room_id = delivery->room->room_id;

    if (!delivery->room->loaded && !delivery->room->room_asking) {
        delivery->room->room_asking = needs->asking;
        need_room(needs, room_id);
    }
    if (looks_up_id(delivery))
        need_id(needs, room_id, envelope->message_id);
    for (size_t i = 0; i < envelope->account_count; i++)
        need_member(needs, room_id, envelope->accounts[i]);
    if (!envelope->op && envelope->sender.p[0] != '@')
        need_member(needs, room_id, envelope->sender);
}

bool sequencer_take_needs(struct sequencer *s, struct seq_needs *needs)
{
    struct list *at;

    if (list_empty(&s->unasked))
        return false;
    needs->asking = ++s->askings;
    while ((at = list_pop_front(&s->unasked))) {
        struct delivery *delivery = list_entry(at, struct delivery, ask_link);

        delivery->asking = needs->asking;
        list_push_back(&s->asked, &delivery->ask_link);
        need_all(needs, delivery);
    }
    for (size_t i = 0; i < needs->room_count; i++)
        resolve(needs, &needs->rooms[i].room_id);
    for (size_t i = 0; i < needs->id_count; i++)
        resolve(needs, &needs->ids[i].room_id);
    for (size_t i = 0; i < needs->member_count; i++) {
        resolve(needs, &needs->members[i].room_id);
        resolve(needs, &needs->members[i].account);
    }
    return true;
}

void seq_needs_clear(struct seq_needs *needs)
{
    free(needs->rooms);
    free(needs->members);
    free(needs->ids);
    buf_clear(&needs->text);
    *needs = (struct seq_needs){0};
}

void sequencer_fact_room(struct sequencer *s, const struct seq_needs *needs, const struct seq_room_fact *fact)
{
    struct seq_room *room = room_find(s, fact->room_id);

    if (!room || room->loaded || room->room_asking != needs->asking)
        return; /* the answer to a question of an earlier life of this room may be old */
    room->loaded = true;
    room->room_no = fact->room_no;
    room->removed = fact->removed;
    room->since_join = fact->since_join;
    room->direct = fact->direct;
    room->members = fact->members;
    room->member_limit = fact->member_limit;
    room->owner_n = fact->owner.n <= sizeof room->owner ? fact->owner.n : 0;
    memcpy(room->owner, fact->owner.p ? fact->owner.p : "", room->owner_n);
    room->last_seq = room->durable_seq = fact->last_seq;
    room->durable_epoch = fact->last_epoch;
    room->last_at = fact->last_at;
    room->counted = fact->counted;
    room->muted_until = fact->muted_until;
}

void sequencer_fact_member(struct sequencer *s, const struct seq_needs *needs, struct str room_id, struct str account,
    enum role role, uint64_t join_seq, uint64_t muted_until)
{
    struct seq_room *room = room_find(s, room_id);

    /* What memory holds is newer: it may be a change on its way to the database. And an answer to a question from
     * before a change was committed may be older than that. */
    if (room && room->loaded && needs->asking > room->stale_asking && role && !member_find(s, room, account))
        member_put(s, room, account, role, join_seq)->muted_until = muted_until;
}

void sequencer_fact_target(struct sequencer *s, const struct seq_needs *needs, const struct seq_target_fact *fact)
{
    (void)s;
    (void)needs;
    (void)fact;
}

/* The same delivery, come again and parked: its dead letter is written. */
static void mark_dead(struct sequencer *s, struct str room_id, struct id128 message_id)
{
    struct seq_room *room = room_find(s, room_id);
    struct list *at;

    for (at = room ? room->parked.next : NULL; room && at != &room->parked; at = at->next) {
        struct delivery *parked = list_entry(at, struct delivery, link);

        if (parked->redelivered && id128_eq(parked->envelope->message_id, message_id))
            parked->dead_known = true;
    }
}

void sequencer_fact_id(struct sequencer *s, struct str room_id, struct id128 message_id, uint64_t seq, int64_t hash)
{
    if (!seq)
        mark_dead(s, room_id, message_id);
    else if (!seen_find(s, message_id))
        seen_committed(s, seen_put(s, message_id, hash, seq, NULL));
}

static void ask_again(struct sequencer *s, struct delivery *parked)
{
    parked->asking = 0;
    parked->answered = false;
    parked->dead_known = false;
    list_remove(&parked->ask_link);
    list_push_back(&s->unasked, &parked->ask_link);
}

/* A row of this id is committed: what the log was asked about the id before may be answered from before. */
static void ask_anew(struct sequencer *s, struct str room_id, struct id128 message_id)
{
    struct seq_room *room = s->counters.parked ? room_find(s, room_id) : NULL;
    struct list *at;

    for (at = room ? room->parked.next : NULL; room && at != &room->parked; at = at->next) {
        struct delivery *parked = list_entry(at, struct delivery, link);

        if (parked->asking && id128_eq(parked->envelope->message_id, message_id))
            ask_again(s, parked);
    }
}

/* Decides parked deliveries in order as far as facts go. */
static void run_room(struct sequencer *s, struct seq_room *room, uint64_t now_ms)
{
    struct list *at, *next;

    while (!list_empty(&room->parked)) {
        struct delivery *parked = list_entry(room->parked.next, struct delivery, link);

        if (!parked->answered && lacks_facts(s, parked))
            break;
        unpark(s, parked);
        decide(s, parked, now_ms);
        free(parked);
    }
    for (at = room->parked.next; at != &room->parked; at = next) {
        struct delivery *parked = list_entry(at, struct delivery, link);

        next = at->next;
        if (parked->answered) /* stands behind one that is not: by its turn the answer may be old */
            ask_again(s, parked);
    }
    if (!room->loaded && room_idle(room))
        room_free(s, room);
}

void sequencer_facts_done(struct sequencer *s, const struct seq_needs *needs, bool ok, uint64_t now_ms)
{
    struct list run, *at, *next;

    list_init(&run);
    for (at = s->asked.next; at != &s->asked; at = next) {
        struct delivery *parked = list_entry(at, struct delivery, ask_link);

        next = at->next;
        if (parked->asking != needs->asking)
            continue;
        if (parked->room->room_asking == needs->asking)
            parked->room->room_asking = 0;
        if (!ok || (parked->room->loaded && needs->asking <= parked->room->stale_asking)) {
            ask_again(s, parked);
            continue;
        }
        list_remove(&parked->ask_link);
        parked->answered = true;
        if (list_empty(&parked->room->run_link))
            list_push_back(&run, &parked->room->run_link);
    }
    while ((at = list_pop_front(&run)))
        run_room(s, list_entry(at, struct seq_room, run_link), now_ms);
}

/* --- deciding --- */

static void decide(struct sequencer *s, struct delivery *delivery, uint64_t now_ms)
{
    struct envelope *envelope = delivery->envelope;
    struct seq_room *room = delivery->room;
    const char *why = NULL;
    enum err err;

    if (envelope->transient && delivery->redelivered) { /* outside promise 1: shown once or not at all */
        ring_settle(&s->ring, delivery->tag);
        envelope_free(envelope);
        return;
    }
    if (!envelope->transient && settle_repeat(s, delivery))
        return;
    err = room->loaded ? ERR_OK : ERR_NO_SUCH_ROOM;
    if (err)
        why = err_sentence(err);
    else if (!envelope->op)
        err = check_sender(s, delivery, &why);
    if (err)
        row_dead(s, row_new(s, room->loaded ? room : NULL, delivery), envelope->message_id, err, why);
    else
        accept(s, delivery, now_ms);
}

/* Its id is known already: nothing new, or (other content) a conflict. */
static bool settle_repeat(struct sequencer *s, struct delivery *delivery)
{
    struct envelope *envelope = delivery->envelope;
    struct seen *seen = seen_find(s, envelope->message_id);
    struct seq_row *dead = delivery->redelivered ? dead_row_find(s, envelope->message_id) : NULL;

    if (dead || delivery->dead_known) { /* the same delivery once more: its dead letter is written, or on its way */
        if (dead)
            ring_bind(&s->ring, dead, delivery->tag);
        else
            ring_settle(&s->ring, delivery->tag);
        s->counters.duplicates_total++;
        envelope_free(envelope);
        return true;
    }
    if (!seen)
        return false;
    if (seen->hash != envelope->hash) {
        row_dead(s, row_new(s, delivery->room->loaded ? delivery->room : NULL, delivery), envelope->message_id,
            ERR_CONFLICT, err_sentence(ERR_CONFLICT));
        return true;
    }
    s->counters.duplicates_total++;
    if (seen->row) {
        ring_bind(&s->ring, seen->row, delivery->tag);
    } else {
        ring_settle(&s->ring, delivery->tag);
        s->events.settled(s->events.arg, seen->id, ERR_OK, seen->seq, true, (struct str){NULL, 0});
    }
    envelope_free(envelope);
    return true;
}

static enum err check_sender(struct sequencer *s, const struct delivery *delivery, const char **why)
{
    const struct envelope *envelope = delivery->envelope;
    struct seq_room *room = delivery->room;
    struct known_member *member;
    enum err err = ERR_OK;

    if (room->removed) {
        err = ERR_ROOM_GONE;
    } else if (envelope->sender.p[0] != '@') {
        member = member_find(s, room, envelope->sender);
        if (!member || !member->role)
            err = ERR_NOT_MEMBER;
    }
    *why = err_sentence(err);
    if (!err && envelope->quote_seq > room->last_seq) {
        err = ERR_BAD_REQUEST;
        *why = "the quoted seq does not exist in the room";
    }
    return err;
}

static void show_transient(struct sequencer *s, struct delivery *delivery, uint64_t now_ms)
{
    const struct envelope *envelope = delivery->envelope;
    struct buf json = {0};
    char id[ULID_TEXT];

    ulid_write(id, envelope->message_id);
    buf_text(&json, "{\"type\":\"message\",\"room_id\":");
    buf_json_string(&json, envelope->room_id);
    buf_text(&json, ",\"transient\":true,\"at\":");
    buf_u64(&json, now_ms);
    buf_text(&json, ",\"message_id\":\"");
    buf_add(&json, id, sizeof id);
    buf_text(&json, "\",\"client_msg_id\":");
    buf_json_string(&json, envelope->client_msg_id);
    buf_text(&json, ",\"sender\":");
    buf_json_string(&json, envelope->sender);
    buf_text(&json, ",\"kind\":");
    buf_json_string(&json, envelope->kind);
    buf_text(&json, ",\"content\":");
    buf_add_str(&json, envelope->content);
    if (envelope->meta.n) {
        buf_char(&json, ',');
        buf_add_str(&json, envelope->meta);
    }
    buf_char(&json, '}');
    one_line(json.p, json.n);
    s->events.transient(s->events.arg, envelope->room_id, buf_str(&json));
    buf_clear(&json);
}

static void accept(struct sequencer *s, struct delivery *delivery, uint64_t now_ms)
{
    struct envelope *envelope = delivery->envelope;
    struct seq_room *room = delivery->room;
    struct seq_row *row;

    if (envelope->transient) {
        s->counters.transient_total++;
        show_transient(s, delivery, now_ms);
        ring_settle(&s->ring, delivery->tag);
        envelope_free(envelope);
        return;
    }
    row = row_new(s, room, delivery);
    if (envelope->op) {
        row->barrier = true;
        room->barriers++;
        op_apply(s, row, now_ms);
    } else {
        row->content = envelope->content;
        row->meta = envelope->meta;
        row_entry(s, row, ENTRY_MESSAGE, now_ms);
    }
    row->seen = seen_put(s, row->message_id, envelope->hash, row->entry->seq, row);
    if (!room->barriers) {
        row->shown = true;
        s->events.shown(s->events.arg, room->room_id, row->entry, false);
    }
}

/* --- rows --- */

static struct seq_row *skip_sent(struct sequencer *s, struct list *at)
{
    while (at != &s->rows && list_entry(at, struct seq_row, link)->sent)
        at = at->next;
    return at == &s->rows ? NULL : list_entry(at, struct seq_row, link);
}

struct seq_row *sequencer_first_unsent(struct sequencer *s)
{
    return skip_sent(s, s->rows.next);
}

struct seq_row *sequencer_next_row(struct sequencer *s, struct seq_row *row)
{
    return row->link.next == &s->rows ? NULL : list_entry(row->link.next, struct seq_row, link);
}

uint64_t seq_row_old_seq(const struct seq_row *row)
{
    return row->entry->seq - 1;
}

/* A barrier is behind us: what waited for it may be seen, up to the next one. */
static void show_following(struct sequencer *s, struct seq_room *room, struct seq_row *barrier)
{
    struct list *at;

    for (at = barrier->room_link.next; at != &room->rows; at = at->next) {
        struct seq_row *row = list_entry(at, struct seq_row, room_link);

        if (!row->entry)
            continue;
        if (row->barrier)
            break;
        if (row->shown || row->entry->type == ENTRY_VOID)
            continue; /* a void that takes back what was shown early waits for its own commit */
        row->shown = true;
        s->events.shown(s->events.arg, room->room_id, row->entry, false);
    }
}

static void entry_committed(struct sequencer *s, struct seq_row *row)
{
    struct seq_room *room = row->room;

    assert(row->seen->row == row);
    seen_committed(s, row->seen);
    if (!row->shown)
        s->events.shown(s->events.arg, room->room_id, row->entry, true);
    room->durable_seq = row->entry->seq;
    room->durable_epoch = row->entry->epoch;
    s->events.durable(s->events.arg, room->room_id, room->room_no, room->durable_seq, room->durable_epoch);
    if (row->envelope->op)
        op_committed(s, row);
    if (row->barrier) {
        room->barriers--;
        show_following(s, room, row);
    }
}

void sequencer_committed(struct sequencer *s, struct seq_row *row)
{
    struct seq_room *room = row->room;

    if (row->entry)
        entry_committed(s, row);
    ask_anew(s, row->envelope->room_id, row->envelope->message_id);
    s->events.settled(s->events.arg, row->envelope->message_id, row->dead ? row->dead : row->result,
        row->of_seq                ? row->of_seq
        : row->entry && !row->dead ? row->entry->seq
                                   : 0,
        row->of_seq != 0, row->envelope->op ? row->meta : (struct str){NULL, 0});
    ring_settle_row(&s->ring, row);
    row_free(s, row);
    if (room && room->reload && room_idle(room))
        room_free(s, room);
}

/* The seq stays, what it held does not. */
static void become_void(struct sequencer *s, struct seq_row *row, uint64_t of_seq)
{
    struct list *at;

    assert(row->entry);
    if (row->envelope->op) {
        op_undo(s, row);
    } else if (row->entry->type == ENTRY_MESSAGE && row->envelope->counted) {
        /* It counts no more: all behind it in the room are uncommitted too, their running numbers fall by one. */
        row->room->counted--;
        for (at = &row->room_link; at != &row->room->rows; at = at->next) {
            struct seq_row *later = list_entry(at, struct seq_row, room_link);

            later->counted--;
            if (later->entry)
                later->entry->counted--;
        }
    }
    buf_reset(&row->text);
    row->of_seq = of_seq;
    if (of_seq)
        buf_printf(&row->text, "\"of_seq\":%llu", (unsigned long long)of_seq);
    row->content = buf_str(&row->text);
    row->meta = (struct str){NULL, 0};
    if (!row->shown && !row->barrier) { /* it waits behind an op: what follows it must wait for it too */
        row->barrier = true;
        row->room->barriers++;
    }
    row_replace_entry(s, row, ENTRY_VOID);
    row->message_id = (struct id128){{0}};
}

void sequencer_late_duplicate(struct sequencer *s, struct seq_row *row, uint64_t of_seq, int64_t hash)
{
    bool conflict = hash != row->envelope->hash;

    become_void(s, row, of_seq);
    row->seen->seq = of_seq;
    row->seen->hash = hash;
    s->counters.duplicates_total++;
    if (conflict)
        row_dead(s, row, row->envelope->message_id, ERR_CONFLICT, err_sentence(ERR_CONFLICT));
}

void sequencer_row_refused(struct sequencer *s, struct seq_row *row)
{
    static const char why[] = "the database refuses this message";

    if (!row->entry) { /* even its dead letter: without the body it must go */
        row->envelope->body->n = 0;
        return;
    }
    become_void(s, row, 0);
    row_dead(s, row, row->envelope->message_id, ERR_BAD_REQUEST, why);
    row->result = ERR_BAD_REQUEST;
}

void sequencer_rewind(struct sequencer *s)
{
    struct list *at;

    for (at = s->rows.next; at != &s->rows; at = at->next)
        list_entry(at, struct seq_row, link)->sent = false;
}

/* --- asking --- */

bool sequencer_find_room(struct sequencer *s, struct str room_id, struct seq_room_view *view)
{
    struct seq_room *room = room_find(s, room_id);

    if (!room || !room->loaded)
        return false;
    *view = (struct seq_room_view){
        .room_no = room->room_no,
        .last_seq = room->last_seq,
        .durable_seq = room->durable_seq,
        .durable_epoch = room->durable_epoch,
        .epoch = s->settings.epoch,
        .muted_until = room->muted_until,
        .members = room->members,
        .removed = room->removed,
        .since_join = room->since_join,
        .direct = room->direct,
    };
    return true;
}

enum role sequencer_find_member(
    struct sequencer *s, struct str room_id, struct str account, uint64_t *join_seq, uint64_t *muted_until)
{
    struct seq_room *room = room_find(s, room_id);
    struct known_member *member = room && room->loaded ? member_find(s, room, account) : NULL;

    if (!member || member->pins)
        return ROLE_NONE;
    *join_seq = member->join_seq;
    *muted_until = member->muted_until;
    return member->role;
}

struct sequencer_counters sequencer_counters(const struct sequencer *s)
{
    struct sequencer_counters counters = s->counters;

    counters.rooms = s->rooms.count;
    counters.members = s->members.count;
    return counters;
}
