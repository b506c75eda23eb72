#include "sequencer_state.h"

#include <assert.h>
#include <stdlib.h>

#include "room/base/pool.h"

/* What an uncommitted message costs besides its bytes: row, entry, envelope, seen. */
#define ROW_OVERHEAD_BYTES 700

static struct pool rows = POOL_OF(struct seq_row), ids = POOL_OF(struct seen);

/* --- rooms --- */

static bool room_is(const struct map_link *link, const void *key)
{
    return str_eq(container_of(link, struct seq_room, by_id)->room_id, *(const struct str *)key);
}

struct seq_room *room_find(struct sequencer *s, struct str room_id)
{
    struct map_link *link = map_find(&s->rooms, map_hash(room_id.p, room_id.n), room_is, &room_id);

    return link ? container_of(link, struct seq_room, by_id) : NULL;
}

struct seq_room *room_find_or_make(struct sequencer *s, struct str room_id)
{
    uint64_t hash = map_hash(room_id.p, room_id.n);
    struct map_link *link = map_find(&s->rooms, hash, room_is, &room_id);
    struct seq_room *room;

    if (link)
        return container_of(link, struct seq_room, by_id);
    room = xcalloc(1, sizeof *room + room_id.n);
    memcpy(room->text, room_id.p, room_id.n);
    room->room_id = (struct str){room->text, room_id.n};
    list_init(&room->rows);
    list_init(&room->parked);
    list_init(&room->run_link);
    list_push_back(&s->room_lru, &room->lru);
    map_insert(&s->rooms, hash, &room->by_id);
    return room;
}

bool room_idle(const struct seq_room *room)
{
    return list_empty(&room->rows) && list_empty(&room->parked) && list_empty(&room->run_link);
}

void room_free(struct sequencer *s, struct seq_room *room)
{
    map_remove(&s->rooms, &room->by_id);
    list_remove(&room->lru);
    free(room);
}

/* --- members --- */

struct member_key {
    int64_t room_no;
    struct str account;
};

static bool member_is(const struct map_link *link, const void *key)
{
    const struct known_member *member = container_of(link, struct known_member, by_account);
    const struct member_key *wanted = key;

    return member->room_no == wanted->room_no && str_eq(member->account, wanted->account);
}

static uint64_t member_hash(int64_t room_no, struct str account)
{
    return map_hash(account.p, account.n) ^ map_hash_u64((uint64_t)room_no);
}

struct known_member *member_find(struct sequencer *s, const struct seq_room *room, struct str account)
{
    struct member_key key = {room->room_no, account};
    struct map_link *link = map_find(&s->members, member_hash(room->room_no, account), member_is, &key);
    struct known_member *member;

    if (!link)
        return NULL;
    member = container_of(link, struct known_member, by_account);
    list_remove(&member->lru);
    list_push_back(&s->member_lru, &member->lru);
    return member;
}

struct known_member *member_find_or_make(struct sequencer *s, const struct seq_room *room, struct str account)
{
    struct known_member *member = member_find(s, room, account);

    if (!member) {
        member = xcalloc(1, sizeof *member + account.n);
        memcpy(member->text, account.p, account.n);
        member->account = (struct str){member->text, account.n};
        member->room_no = room->room_no;
        list_push_back(&s->member_lru, &member->lru);
        map_insert(&s->members, member_hash(room->room_no, account), &member->by_account);
    }
    return member;
}

void member_free(struct sequencer *s, struct known_member *member)
{
    map_remove(&s->members, &member->by_account);
    list_remove(&member->lru);
    free(member);
}

uint64_t member_muted(const struct seq_room *room, const struct known_member *member, uint64_t at_ms)
{
    uint64_t until = member->now.muted_until;

    if (member->now.role < ROLE_ADMIN && room->now.muted_until > until)
        until = room->now.muted_until;
    return until > at_ms ? until : 0;
}

/* --- ids --- */

static uint64_t id_hash(struct id128 id)
{
    uint64_t half;

    memcpy(&half, id.b + 8, sizeof half); /* already a hash, or random */
    return map_hash_u64(half);
}

static bool seen_is(const struct map_link *link, const void *key)
{
    return id128_eq(container_of(link, struct seen, by_id)->id, *(const struct id128 *)key);
}

struct seen *seen_find(struct sequencer *s, struct id128 id)
{
    struct map_link *link = map_find(&s->seen, id_hash(id), seen_is, &id);

    return link ? container_of(link, struct seen, by_id) : NULL;
}

struct seen *seen_put(struct sequencer *s, struct id128 id, int64_t hash, uint64_t seq, struct seq_row *row)
{
    struct seen *seen = pool_take(&ids);

    seen->id = id;
    seen->hash = hash;
    seen->seq = seq;
    seen->row = row;
    list_init(&seen->age);
    map_insert(&s->seen, id_hash(id), &seen->by_id);
    return seen;
}

void seen_free(struct seen *seen)
{
    pool_give(&ids, seen);
}

void seen_committed(struct sequencer *s, struct seen *seen)
{
    seen->row = NULL;
    list_push_back(&s->seen_age, &seen->age);
    s->seen_committed++;
}

static bool dead_row_is(const struct map_link *link, const void *key)
{
    return id128_eq(container_of(link, struct seq_row, by_id)->dead_id, *(const struct id128 *)key);
}

struct seq_row *dead_row_find(struct sequencer *s, struct id128 id)
{
    struct map_link *link = map_find(&s->dead_rows, id_hash(id), dead_row_is, &id);

    return link ? container_of(link, struct seq_row, by_id) : NULL;
}

/* --- messages that edits, recalls and deletes are about --- */

struct target_key {
    int64_t room_no;
    uint64_t seq;
    struct id128 id;
};

static bool target_has_seq(const struct map_link *link, const void *key)
{
    const struct known_target *target = container_of(link, struct known_target, by_seq);
    const struct target_key *wanted = key;

    return target->room_no == wanted->room_no && target->seq == wanted->seq;
}

static bool target_has_id(const struct map_link *link, const void *key)
{
    const struct known_target *target = container_of(link, struct known_target, by_id);
    const struct target_key *wanted = key;

    return target->room_no == wanted->room_no && id128_eq(target->id, wanted->id);
}

static uint64_t target_seq_hash(int64_t room_no, uint64_t seq)
{
    return map_hash_u64((uint64_t)room_no ^ map_hash_u64(seq));
}

static struct known_target *target_touch(struct sequencer *s, struct known_target *target)
{
    list_remove(&target->lru);
    list_push_back(&s->target_lru, &target->lru);
    return target;
}

struct known_target *target_find(struct sequencer *s, const struct seq_room *room, uint64_t seq)
{
    struct target_key key = {.room_no = room->room_no, .seq = seq};
    struct map_link *link = map_find(&s->targets_by_seq, target_seq_hash(room->room_no, seq), target_has_seq, &key);

    return link ? target_touch(s, container_of(link, struct known_target, by_seq)) : NULL;
}

static struct known_target *target_find_id(struct sequencer *s, const struct seq_room *room, struct id128 id)
{
    struct target_key key = {.room_no = room->room_no, .id = id};
    struct map_link *link = map_find(&s->targets_by_id, id_hash(id), target_has_id, &key);

    return link ? target_touch(s, container_of(link, struct known_target, by_id)) : NULL;
}

/* Uncommitted rows are few, and what is changed so soon is among the last. */
static struct seq_row *row_named(struct sequencer *s, const struct seq_room *room, const struct envelope *envelope)
{
    struct seen *seen;

    if (!envelope->target_seq) {
        seen = seen_find(s, envelope->target_id);
        return seen && seen->row && seen->row->room == room ? seen->row : NULL;
    }
    for (struct list *at = room->rows.prev; at != &room->rows; at = at->prev) {
        struct seq_row *row = list_entry(at, struct seq_row, room_link);

        if (row->entry && row->entry->seq <= envelope->target_seq)
            return row->entry->seq == envelope->target_seq ? row : NULL;
    }
    return NULL;
}

struct known_target *target_of(struct sequencer *s, const struct seq_room *room, const struct envelope *envelope)
{
    struct known_target *target = envelope->target_seq ? target_find(s, room, envelope->target_seq)
                                                       : target_find_id(s, room, envelope->target_id);
    struct seq_row *row = target ? NULL : row_named(s, room, envelope);

    if (row && row->entry->type == ENTRY_MESSAGE)
        target = target_put(s, room,
            &(struct seq_target_fact){
                .seq = row->entry->seq,
                .at = row->entry->at,
                .sent_at = row->envelope->sent_at,
                .message_id = row->message_id,
                .sender = row->envelope->sender,
                .kind = row->envelope->kind,
            });
    return target;
}

struct known_target *target_put(struct sequencer *s, const struct seq_room *room, const struct seq_target_fact *fact)
{
    struct known_target *target = xcalloc(1, sizeof *target + fact->sender.n + fact->kind.n);

    target->room_no = room->room_no;
    target->seq = fact->seq;
    target->at = fact->at;
    target->sent_at = fact->sent_at;
    target->id = fact->message_id;
    target->state = fact->state;
    memcpy(target->text, fact->sender.p, fact->sender.n);
    memcpy(target->text + fact->sender.n, fact->kind.p, fact->kind.n);
    target->sender = (struct str){target->text, fact->sender.n};
    target->kind = (struct str){target->text + fact->sender.n, fact->kind.n};
    list_push_back(&s->target_lru, &target->lru);
    map_insert(&s->targets_by_seq, target_seq_hash(room->room_no, target->seq), &target->by_seq);
    map_insert(&s->targets_by_id, id_hash(target->id), &target->by_id);
    return target;
}

void target_free(struct sequencer *s, struct known_target *target)
{
    if (target->changed_asking > s->stale_targets)
        s->stale_targets = target->changed_asking;
    map_remove(&s->targets_by_seq, &target->by_seq);
    map_remove(&s->targets_by_id, &target->by_id);
    list_remove(&target->lru);
    free(target);
}

/* --- tags --- */

static struct tag_slot *ring_slot(struct tag_ring *ring, uint64_t tag)
{
    assert(tag >= ring->base && tag < ring->next);
    return &ring->slots[tag & (ring->capacity - 1)];
}

static void ring_grow(struct tag_ring *ring)
{
    struct tag_ring larger = *ring;

    larger.capacity = ring->capacity ? ring->capacity * 2 : 1024;
    larger.slots = xcalloc(larger.capacity, sizeof *larger.slots);
    for (uint64_t tag = ring->base; tag < ring->next; tag++)
        larger.slots[tag & (larger.capacity - 1)] = ring->slots[tag & (ring->capacity - 1)];
    free(ring->slots);
    *ring = larger;
}

void ring_push(struct tag_ring *ring, uint64_t tag)
{
    assert(tag >= ring->next); /* a channel with one consumer counts up */
    while (ring->next <= tag) {
        if (ring->next - ring->base == ring->capacity)
            ring_grow(ring);
        ring->slots[ring->next & (ring->capacity - 1)] = (struct tag_slot){0, ring->next < tag};
        ring->next++;
    }
}

void ring_bind(struct tag_ring *ring, struct seq_row *row, uint64_t tag)
{
    ring_slot(ring, tag)->next_same = row->first_tag;
    row->first_tag = tag;
}

void ring_settle(struct tag_ring *ring, uint64_t tag)
{
    ring_slot(ring, tag)->settled = true;
}

void ring_settle_row(struct tag_ring *ring, struct seq_row *row)
{
    for (uint64_t tag = row->first_tag; tag;) {
        struct tag_slot *slot = ring_slot(ring, tag);

        tag = slot->next_same;
        slot->settled = true;
    }
    row->first_tag = 0;
}

void ring_reset(struct tag_ring *ring)
{
    ring->base = ring->next = 1;
    ring->told = 0;
}

uint64_t sequencer_take_ack(struct sequencer *s)
{
    struct tag_ring *ring = &s->ring;

    while (ring->base < ring->next && ring_slot(ring, ring->base)->settled)
        ring->base++;
    if (ring->base - 1 == ring->told)
        return 0;
    ring->told = ring->base - 1;
    return ring->told;
}

/* --- rows --- */

struct seq_row *row_new(struct sequencer *s, struct seq_room *room, struct delivery *delivery)
{
    struct seq_row *row = pool_take(&rows);

    row->envelope = delivery->envelope;
    row->room = room;
    row->room_no = room ? room->room_no : 0;
    row->message_id = delivery->envelope->message_id;
    list_init(&row->room_link);
    if (room)
        list_push_back(&room->rows, &row->room_link);
    list_push_back(&s->rows, &row->link);
    ring_bind(&s->ring, row, delivery->tag);
    row->bytes = ROW_OVERHEAD_BYTES + delivery->envelope->body->n;
    s->counters.unpersisted_bytes += row->bytes;
    s->counters.rows++;
    delivery->envelope = NULL;
    return row;
}

static void row_encode(struct sequencer *s, struct seq_row *row, enum entry_type type, uint64_t seq, uint64_t at)
{
    const struct envelope *envelope = row->envelope;

    row->entry = entry_new(&(struct entry_parts){
        .room_id = row->room->room_id,
        .room_no = row->room_no,
        .epoch = s->settings.epoch,
        .seq = seq,
        .at = at,
        .counted = row->counted,
        .type = type,
        .message_id = row->message_id,
        .client_msg_id = envelope->client_msg_id,
        .sender = envelope->sender,
        .kind = envelope->kind,
        .content = row->content,
        .meta = row->meta,
    });
    row->bytes += row->entry->n;
    s->counters.unpersisted_bytes += row->entry->n;
    s->counters.voids_total += type == ENTRY_VOID;
}

void row_entry(struct sequencer *s, struct seq_row *row, enum entry_type type, uint64_t now_ms)
{
    struct seq_room *room = row->room;

    if (now_ms > room->last_at)
        room->last_at = now_ms;
    if (type == ENTRY_MESSAGE && row->envelope->counted)
        room->counted++;
    row->counted = room->counted;
    row_encode(s, row, type, ++room->last_seq, room->last_at);
    s->counters.sequenced_total++;
}

void row_replace_entry(struct sequencer *s, struct seq_row *row, enum entry_type type)
{
    struct entry *old = row->entry;

    s->counters.unpersisted_bytes -= old->n;
    row->bytes -= old->n;
    row_encode(s, row, type, old->seq, old->at);
    row->shown = false;
    entry_drop(old);
}

void row_free(struct sequencer *s, struct seq_row *row)
{
    s->counters.unpersisted_bytes -= row->bytes;
    s->counters.rows--;
    if (row->dead && !row->entry && !id128_is_zero(row->dead_id))
        map_remove(&s->dead_rows, &row->by_id);
    list_remove(&row->link);
    list_remove(&row->room_link);
    envelope_free(row->envelope);
    entry_drop(row->entry);
    free(row->members);
    buf_clear(&row->text);
    pool_give(&rows, row);
}

void row_dead(struct sequencer *s, struct seq_row *row, struct id128 id, enum err err, const char *why)
{
    row->dead_id = id;
    row->dead = err;
    row->why = why;
    if (!row->entry) { /* the sentence may be made for this one alone */
        buf_add(&row->text, why, strlen(why) + 1);
        row->why = row->text.p;
    }
    if (!row->entry && !id128_is_zero(id))
        map_insert(&s->dead_rows, id_hash(id), &row->by_id);
    s->counters.dead_total++;
    s->events.rejected(s->events.arg, row->envelope, err, why);
}

/* --- bounds --- */

void sequencer_trim(struct sequencer *s)
{
    struct list *at, *next;

    while (s->seen_committed > s->settings.dedup_window) {
        struct seen *seen = list_entry(list_pop_front(&s->seen_age), struct seen, age);

        map_remove(&s->seen, &seen->by_id);
        seen_free(seen);
        s->seen_committed--;
    }
    for (at = s->member_lru.next; s->members.count > s->settings.member_cache && at != &s->member_lru; at = next) {
        struct known_member *member = list_entry(at, struct known_member, lru);

        next = at->next;
        if (!member->pins)
            member_free(s, member);
    }
    for (at = s->target_lru.next; s->targets_by_seq.count > s->settings.target_cache && at != &s->target_lru;
         at = next) {
        struct known_target *target = list_entry(at, struct known_target, lru);

        next = at->next;
        if (!target->pins)
            target_free(s, target);
    }
    for (at = s->room_lru.next; s->rooms.count > s->settings.room_cache && at != &s->room_lru; at = next) {
        struct seq_room *room = list_entry(at, struct seq_room, lru);

        next = at->next;
        if (room_idle(room))
            room_free(s, room);
    }
}
