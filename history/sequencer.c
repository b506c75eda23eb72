#include "sequencer_state.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* The way of a delivery - the steps, in the order they run. */
static bool lacks_facts(struct sequencer *s, const struct delivery *delivery);
static void decide(struct sequencer *s, struct delivery *delivery, uint64_t now_ms);
static bool settle_repeat(struct sequencer *s, struct delivery *delivery);
static enum err check_sender(
    struct sequencer *s, const struct delivery *delivery, uint64_t now_ms, char why[RULES_WHY_MAX]);
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
    map_init(&s->targets_by_seq);
    map_init(&s->targets_by_id);
    list_init(&s->room_lru);
    list_init(&s->member_lru);
    list_init(&s->seen_age);
    list_init(&s->target_lru);
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
    while ((at = list_pop_front(&s->target_lru)))
        free(list_entry(at, struct known_target, lru));
    while ((at = list_pop_front(&s->room_lru)))
        free(list_entry(at, struct seq_room, lru));
    map_clear(&s->rooms);
    map_clear(&s->members);
    map_clear(&s->seen);
    map_clear(&s->dead_rows);
    map_clear(&s->targets_by_seq);
    map_clear(&s->targets_by_id);
    free(s->ring.slots);
    free(s);
}

/* --- in --- */

static void park(struct sequencer *s, struct delivery *delivery, bool ask)
{
    struct delivery *parked = xmemdup(delivery, sizeof *delivery);

    list_push_back(&parked->room->parked, &parked->link);
    list_init(&parked->ask_link);
    if (ask)
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
    if (lacks_facts(s, &delivery))
        park(s, &delivery, true);
    else if (!list_empty(&room->parked)) /* waits for its turn only; by then memory may have forgotten, and is asked */
        park(s, &delivery, false);
    else
        decide(s, &delivery, now_ms);
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

static struct str said(const struct seq_needs *needs, struct str text)
{
    return (struct str){needs->text.p + ((uintptr_t)text.p - 1), text.n};
}

static void need_member(struct seq_needs *needs, struct str room_id, struct str account)
{
    const struct seq_need_member *last = needs->member_count ? &needs->members[needs->member_count - 1] : NULL;

    if (last && str_eq(said(needs, last->account), account) && str_eq(said(needs, last->room_id), room_id))
        return; /* who says much in a room that is not known yet is asked for once */
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

static void need_target(struct seq_needs *needs, struct str room_id, const struct envelope *envelope)
{
    needs->targets = xrealloc(needs->targets, (needs->target_count + 1) * sizeof *needs->targets);
    needs->targets[needs->target_count++] = (struct seq_need_target){
        .room_id = copy_text(needs, room_id), .seq = envelope->target_seq, .message_id = envelope->target_id};
}

static void resolve(struct seq_needs *needs, struct str *text)
{
    text->p = needs->text.p + ((uintptr_t)text->p - 1);
}

static bool names_message(const struct envelope *envelope)
{
    return envelope->target_seq || !id128_is_zero(envelope->target_id);
}

/* Is the log asked for the id? Always for ops that others are judged by: a recall that only the COMMIT finds to be a
 * repeat, of one that was refused once, would have refused an edit meanwhile. By an edit nothing is judged; its repeat
 * is found like a message's, and becomes a void. */
static bool looks_up_id(const struct delivery *delivery)
{
    const struct envelope *envelope = delivery->envelope;

    return !envelope->transient && (delivery->redelivered || (envelope->op && envelope->op != OP_MESSAGE_EDIT));
}

/* Who says it, or whose act it is; empty: the business itself, which is no member. */
static struct str actor_of(const struct envelope *envelope)
{
    if (envelope->op)
        return envelope->by;
    return envelope->sender.p[0] == '@' ? (struct str){NULL, 0} : envelope->sender;
}

/* Does memory lack something this delivery is decided by? */
static bool lacks_facts(struct sequencer *s, const struct delivery *delivery)
{
    const struct envelope *envelope = delivery->envelope;
    struct seq_room *room = delivery->room;
    struct str actor = actor_of(envelope);

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
    if (actor.n && !member_find(s, room, actor))
        return true;
    return names_message(envelope) && !target_of(s, room, envelope);
}

/* Everything a parked delivery is decided by, also what memory holds now: it may be evicted before the answer is there,
 * and an answered delivery takes what memory does not hold for absent. */
static void need_all(struct seq_needs *needs, const struct delivery *delivery)
{
    const struct envelope *envelope = delivery->envelope;
    struct str room_id = delivery->room->room_id, actor = actor_of(envelope);

    if (!delivery->room->loaded && !delivery->room->room_asking) {
        delivery->room->room_asking = needs->asking;
        need_room(needs, room_id);
    }
    if (looks_up_id(delivery))
        need_id(needs, room_id, envelope->message_id);
    for (size_t i = 0; i < envelope->account_count; i++)
        need_member(needs, room_id, envelope->accounts[i]);
    if (actor.n)
        need_member(needs, room_id, actor);
    if (names_message(envelope))
        need_target(needs, room_id, envelope);
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
    for (size_t i = 0; i < needs->target_count; i++)
        resolve(needs, &needs->targets[i].room_id);
    return true;
}

void seq_needs_clear(struct seq_needs *needs)
{
    free(needs->rooms);
    free(needs->members);
    free(needs->ids);
    free(needs->targets);
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
    room->since_join = fact->since_join;
    room->direct = fact->direct;
    room->now = (struct room_state){
        .muted_until = fact->muted_until,
        .members = fact->members,
        .member_limit = fact->member_limit,
        .removed = fact->removed,
        .owner_n = fact->owner.n <= sizeof room->now.owner ? (uint8_t)fact->owner.n : 0,
    };
    memcpy(room->now.owner, fact->owner.p ? fact->owner.p : "", room->now.owner_n);
    room->durable = room->now;
    room->last_seq = room->durable_seq = fact->last_seq;
    room->durable_epoch = fact->last_epoch;
    room->taken_back_seq = fact->taken_back_seq;
    room->last_at = fact->last_at;
    room->counted = fact->counted;
    room->stale_asking = needs->asking - 1; /* from an earlier life: what changed since is forgotten */
}

void sequencer_fact_member(struct sequencer *s, const struct seq_needs *needs, struct str room_id, struct str account,
    enum role role, uint64_t join_seq, uint64_t muted_until)
{
    struct seq_room *room = room_find(s, room_id);
    struct known_member *member;

    /* What memory holds is newer: it may be a change on its way to the database. And an answer to a question from
     * before a change was committed may be older than that. */
    if (!room || !room->loaded || needs->asking <= room->stale_asking || !role || member_find(s, room, account))
        return;
    member = member_find_or_make(s, room, account);
    member->now = member->durable = (struct standing){role, join_seq, muted_until};
    op_catch_up(room, member);
}

void sequencer_fact_target(struct sequencer *s, const struct seq_needs *needs, const struct seq_target_fact *fact)
{
    struct seq_room *room = room_find(s, fact->room_id);

    /* As with members: memory is newer, and so was what it has forgotten. */
    if (room && room->loaded && needs->asking > room->stale_asking && needs->asking > s->stale_targets &&
        !target_find(s, room, fact->seq))
        target_put(s, room, fact);
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

/* Is the row what the parked delivery asked the log about, by its own id or as the message it names? */
static bool asks_about(const struct delivery *parked, const struct seq_row *row)
{
    const struct envelope *envelope = parked->envelope;

    if (id128_eq(envelope->message_id, row->envelope->message_id))
        return true;
    if (!row->entry || !names_message(envelope))
        return false;
    return envelope->target_seq ? envelope->target_seq == row->entry->seq
                                : id128_eq(envelope->target_id, row->message_id);
}

/* The row is committed: what the log was asked about it before may be answered from before. */
static void ask_anew(struct sequencer *s, const struct seq_row *row)
{
    struct seq_room *room = s->counters.parked ? room_find(s, row->envelope->room_id) : NULL;
    struct known_target *target;
    struct list *at;

    for (at = room ? room->parked.next : NULL; room && at != &room->parked; at = at->next) {
        struct delivery *parked = list_entry(at, struct delivery, link);

        if (!parked->asking || !asks_about(parked, row))
            continue;
        target = id128_eq(parked->envelope->message_id, row->envelope->message_id)
                     ? NULL
                     : target_of(s, room, parked->envelope);
        if (target) /* memory knows it from here on; should it forget, answers from before are not believed */
            target->changed_asking = s->askings;
        else
            ask_again(s, parked);
    }
}

/* Decides parked deliveries in order as far as facts go. */
static void run_room(struct sequencer *s, struct seq_room *room, uint64_t now_ms)
{
    struct list *at, *next;

    while (!list_empty(&room->parked)) {
        struct delivery *parked = list_entry(room->parked.next, struct delivery, link);

        if (!parked->answered && lacks_facts(s, parked)) {
            if (!parked->asking && list_empty(&parked->ask_link))
                list_push_back(&s->unasked, &parked->ask_link);
            break;
        }
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

/* What the answer told may be older than what memory knew and has forgotten. */
static bool answer_is_stale(const struct sequencer *s, const struct delivery *parked)
{
    if (!parked->room->loaded)
        return false;
    return parked->asking <= parked->room->stale_asking ||
           (names_message(parked->envelope) && parked->asking <= s->stale_targets);
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
        if (!ok || answer_is_stale(s, parked)) {
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

/* It is never stored, refused neither. */
static void drop_transient(struct sequencer *s, struct delivery *delivery, enum err err, const char *why)
{
    s->events.rejected(s->events.arg, delivery->envelope, err, why);
    ring_settle(&s->ring, delivery->tag);
    envelope_free(delivery->envelope);
}

static void decide(struct sequencer *s, struct delivery *delivery, uint64_t now_ms)
{
    struct envelope *envelope = delivery->envelope;
    struct seq_room *room = delivery->room;
    char why[RULES_WHY_MAX] = "";
    enum err err;

    if (envelope->transient && delivery->redelivered) { /* outside promise 1: shown once or not at all */
        ring_settle(&s->ring, delivery->tag);
        envelope_free(envelope);
        return;
    }
    if (!envelope->transient && settle_repeat(s, delivery))
        return;
    err = room->loaded ? ERR_OK : ERR_NO_SUCH_ROOM;
    if (!err && !envelope->op)
        err = check_sender(s, delivery, now_ms, why);
    if (!err)
        accept(s, delivery, now_ms);
    else if (envelope->transient)
        drop_transient(s, delivery, err, *why ? why : err_sentence(err));
    else
        row_dead(s, row_new(s, room->loaded ? room : NULL, delivery), envelope->message_id, err,
            *why ? why : err_sentence(err));
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

/* An empty sentence: the code says it. */
static enum err check_sender(
    struct sequencer *s, const struct delivery *delivery, uint64_t now_ms, char why[RULES_WHY_MAX])
{
    const struct envelope *envelope = delivery->envelope;
    struct seq_room *room = delivery->room;
    uint64_t muted;

    if (room->now.removed)
        return ERR_ROOM_GONE;
    if (envelope->sender.p[0] != '@') {
        struct known_member *member = member_find(s, room, envelope->sender);

        if (!member || !member->now.role)
            return ERR_NOT_MEMBER;
        muted = member_muted(room, member, now_ms > room->last_at ? now_ms : room->last_at);
        if (muted) {
            rules_say_muted(muted, why);
            return ERR_FORBIDDEN;
        }
        if (envelope->mentions_all && !rules_allow(&s->settings.rules, RULE_MENTION_ALL, member->now.role)) {
            rules_say(&s->settings.rules, RULE_MENTION_ALL, why);
            return ERR_FORBIDDEN;
        }
    }
    if (envelope->quote_seq > room->last_seq) {
        snprintf(why, RULES_WHY_MAX, "the quoted seq does not exist in the room");
        return ERR_BAD_REQUEST;
    }
    return ERR_OK;
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
    if (s->events.sent && row->entry->type == ENTRY_MESSAGE && row->envelope->sender.p[0] != '@')
        s->events.sent(s->events.arg, room->room_id, room->room_no, row->envelope->sender, row->entry->seq);
    if (row->envelope->op)
        op_committed(s, row);
    if (row->barrier) {
        room->barriers--;
        show_following(s, room, row);
    }
}

/* What the caller of an op is told. An edit keeps its content there. */
static struct str result_of(const struct seq_row *row)
{
    bool edit = row->entry && row->entry->type == ENTRY_EDITED;

    return row->envelope->op && !edit ? row->meta : (struct str){NULL, 0};
}

void sequencer_committed(struct sequencer *s, struct seq_row *row)
{
    struct seq_room *room = row->room;

    if (row->entry)
        entry_committed(s, row);
    ask_anew(s, row);
    s->events.settled(s->events.arg, row->envelope->message_id, row->dead ? row->dead : row->result,
        row->of_seq                ? row->of_seq
        : row->entry && !row->dead ? row->entry->seq
                                   : 0,
        row->of_seq != 0, result_of(row));
    ring_settle_row(&s->ring, row);
    row_free(s, row);
    if (room && room->reload && room_idle(room))
        room_free(s, room);
}

/* It counts no more: all behind it in the room are uncommitted too, their running numbers fall by one. */
static void uncount(struct seq_row *row)
{
    row->room->counted--;
    for (struct list *at = &row->room_link; at != &row->room->rows; at = at->next) {
        struct seq_row *later = list_entry(at, struct seq_row, room_link);

        later->counted--;
        if (later->entry)
            later->entry->counted--;
    }
}

/* The seq stays, what it held does not. row->content and row->meta are those of the void. */
static void turn_void(struct sequencer *s, struct seq_row *row)
{
    if (!row->shown && !row->barrier) { /* it waits behind an op: what follows it must wait for it too */
        row->barrier = true;
        row->room->barriers++;
    }
    row_replace_entry(s, row, ENTRY_VOID);
}

/* There is no such message after all: what was judged by it is told so. It has not been shown, as it is an op. */
static void void_changes_of(struct sequencer *s, struct seq_row *message, uint64_t of_seq)
{
    struct known_target *target;

    for (struct list *at = message->room_link.next; at != &message->room->rows; at = at->next) {
        struct seq_row *row = list_entry(at, struct seq_row, room_link);

        if (!row->entry || row->judged_by != message->entry->seq)
            continue;
        op_undo(s, row);
        buf_reset(&row->text);
        if (of_seq)
            op_refuse(row, ERR_NO_SUCH_MESSAGE, NULL,
                "this was a repeat of the message at seq %" PRIu64 ", which is in the log: name that one", of_seq);
        else
            op_refuse(row, ERR_NO_SUCH_MESSAGE, NULL, "the message was refused");
        turn_void(s, row);
    }
    target = target_find(s, message->room, message->entry->seq);
    if (target)
        target_free(s, target);
}

static void become_void(struct sequencer *s, struct seq_row *row, uint64_t of_seq)
{
    assert(row->entry);
    if (row->envelope->op) {
        op_undo(s, row);
    } else if (row->entry->type == ENTRY_MESSAGE) {
        if (row->envelope->counted)
            uncount(row);
        void_changes_of(s, row, of_seq);
        if (row->entry->seq > row->room->taken_back_seq)
            row->room->taken_back_seq = row->entry->seq;
    }
    buf_reset(&row->text);
    row->of_seq = of_seq;
    if (of_seq)
        buf_printf(&row->text, "\"of_seq\":%llu", (unsigned long long)of_seq);
    row->content = buf_str(&row->text);
    row->meta = (struct str){NULL, 0};
    turn_void(s, row);
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
        .taken_back_seq = room->taken_back_seq,
        .muted_until = room->now.muted_until,
        .members = room->now.members,
        .removed = room->now.removed,
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
    *join_seq = member->now.join_seq;
    *muted_until = member->now.muted_until;
    return member->now.role;
}

struct sequencer_counters sequencer_counters(const struct sequencer *s)
{
    struct sequencer_counters counters = s->counters;

    counters.rooms = s->rooms.count;
    counters.members = s->members.count;
    return counters;
}
