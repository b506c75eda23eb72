#include "sequencer_state.h"

#include <stdlib.h>

/*
 * Room and member changes. Every valid op takes a seq: an entry when it changes something, else a void with its result,
 * so that a repeat is recognised and answered alike. row->content is what the entry shows, row->meta what the caller is
 * told.
 */

static void begin_member(struct buf *text, const char *name)
{
    if (text->n)
        buf_char(text, ',');
    buf_char(text, '"');
    buf_text(text, name);
    buf_text(text, "\":");
}

static void add_string(struct buf *text, const char *name, struct str value)
{
    if (!value.p)
        return;
    begin_member(text, name);
    buf_json_string(text, value);
}

static void add_accounts(struct buf *text, const char *name, const struct str *accounts, size_t count)
{
    begin_member(text, name);
    buf_char(text, '[');
    for (size_t i = 0; i < count; i++) {
        if (i)
            buf_char(text, ',');
        buf_json_string(text, accounts[i]);
    }
    buf_char(text, ']');
}

/* content and meta share one buffer: content first, meta from `cut` on. */
static void give_texts(struct seq_row *row, size_t cut)
{
    row->content = (struct str){row->text.p, cut};
    row->meta = (struct str){row->text.p ? row->text.p + cut : NULL, row->text.n - cut};
}

static enum entry_type refuse(struct seq_row *row, enum err err)
{
    row->result = err;
    buf_printf(&row->text, "\"result\":\"%s\"", err_code(err));
    give_texts(row, 0);
    return ENTRY_VOID;
}

static enum role role_of(struct sequencer *s, struct seq_row *row, struct str account)
{
    struct known_member *member = member_find(s, row->room, account);

    return member ? member->role : ROLE_NONE;
}

/* Splits the op's accounts into those with a role here and those without; both in the order given. */
struct split {
    struct str *members, *strangers;
    size_t member_count, stranger_count;
};

static void split_accounts(struct sequencer *s, struct seq_row *row, struct split *split)
{
    const struct envelope *envelope = row->envelope;

    split->members = xcalloc(envelope->account_count, sizeof *split->members);
    split->strangers = xcalloc(envelope->account_count, sizeof *split->strangers);
    split->member_count = split->stranger_count = 0;
    for (size_t i = 0; i < envelope->account_count; i++) {
        if (role_of(s, row, envelope->accounts[i]))
            split->members[split->member_count++] = envelope->accounts[i];
        else
            split->strangers[split->stranger_count++] = envelope->accounts[i];
    }
}

static void change_members(struct seq_row *row, const struct str *accounts, size_t count, int action, enum role role)
{
    row->members = xrealloc(row->members, (row->member_count + count) * sizeof *row->members);
    for (size_t i = 0; i < count; i++) {
        struct seq_member_change *change = &row->members[row->member_count++];

        change->account = accounts[i];
        change->pinned = false;
        change->action = action == 0 ? MEMBER_LEAVES : action == 1 ? MEMBER_JOINS : MEMBER_ROLE;
        change->role = role;
    }
}

static void change_count(struct seq_row *row)
{
    row->change.present = true;
    row->change.members = row->room->members;
    row->change.member_limit = -1;
    row->change.muted_until = -1;
}

static enum entry_type add_members(struct sequencer *s, struct seq_row *row)
{
    struct seq_room *room = row->room;
    const struct envelope *envelope = row->envelope;
    enum entry_type type = ENTRY_VOID;
    struct buf result = {0};
    struct split split;
    size_t cut = 0;

    split_accounts(s, row, &split);
    if (room->member_limit && (int64_t)room->members + (int64_t)split.stranger_count > room->member_limit &&
        split.stranger_count) {
        type = refuse(row, ERR_ROOM_FULL);
        goto done;
    }
    if (split.stranger_count) {
        type = ENTRY_JOINED;
        add_accounts(&row->text, "account_ids", split.strangers, split.stranger_count);
        add_string(&row->text, "role", str_of(role_name(envelope->role)));
        add_string(&row->text, "by", envelope->by);
        cut = row->text.n;
        change_members(row, split.strangers, split.stranger_count, 1, envelope->role);
        room->members += (int32_t)split.stranger_count;
        change_count(row);
    }
    add_accounts(&result, "added", split.strangers, split.stranger_count);
    add_accounts(&result, "already", split.members, split.member_count);
    buf_add(&row->text, result.p, result.n);
    buf_clear(&result);
    give_texts(row, cut);
done:
    free(split.members);
    free(split.strangers);
    return type;
}

static enum entry_type remove_members(struct sequencer *s, struct seq_row *row)
{
    struct seq_room *room = row->room;
    const struct envelope *envelope = row->envelope;
    enum entry_type type = ENTRY_VOID;
    struct buf result = {0};
    struct split split;
    size_t cut = 0;

    split_accounts(s, row, &split);
    if (split.member_count) {
        type = ENTRY_LEFT;
        add_accounts(&row->text, "account_ids", split.members, split.member_count);
        add_string(&row->text, "by", envelope->by);
        add_string(&row->text, "reason", envelope->reason);
        cut = row->text.n;
        change_members(row, split.members, split.member_count, 0, ROLE_NONE);
        room->members -= (int32_t)split.member_count;
        change_count(row);
        for (size_t i = 0; i < split.member_count; i++) {
            if (str_eq(split.members[i], (struct str){room->owner, room->owner_n})) {
                room->owner_n = 0;
                row->change.owner = STR("");
            }
        }
    }
    add_accounts(&result, "removed", split.members, split.member_count);
    add_accounts(&result, "absent", split.strangers, split.stranger_count);
    buf_add(&row->text, result.p, result.n);
    buf_clear(&result);
    give_texts(row, cut);
    free(split.members);
    free(split.strangers);
    return type;
}

/* The old owner becomes a plain member. Its name goes behind the row's texts: it must outlive the room's field. */
static void hand_over(struct seq_row *row)
{
    struct seq_room *room = row->room;
    struct str owner = row->envelope->owner, old;
    size_t cut = row->text.n;

    if (str_eq(owner, (struct str){room->owner, room->owner_n}))
        return;
    buf_add(&row->text, room->owner, room->owner_n);
    old = (struct str){row->text.p + cut, room->owner_n};
    if (old.n)
        change_members(row, &old, 1, 2, ROLE_MEMBER);
    change_members(row, &owner, 1, 2, ROLE_OWNER);
    memcpy(room->owner, owner.p, owner.n);
    room->owner_n = owner.n;
}

static enum entry_type update_room(struct sequencer *s, struct seq_row *row)
{
    struct seq_room *room = row->room;
    const struct envelope *envelope = row->envelope;
    size_t cut;

    if (envelope->owner.p && room->direct)
        return refuse(row, ERR_FORBIDDEN);
    if (envelope->owner.p && !role_of(s, row, envelope->owner))
        return refuse(row, ERR_NOT_MEMBER);
    add_string(&row->text, "name", envelope->name);
    add_string(&row->text, "notice", envelope->notice);
    add_string(&row->text, "owner", envelope->owner);
    if (envelope->member_limit >= 0) {
        begin_member(&row->text, "member_limit");
        buf_i64(&row->text, envelope->member_limit);
    }
    if (envelope->extra.p) {
        begin_member(&row->text, "extra");
        buf_add_str(&row->text, envelope->extra);
    }
    if (!row->text.n) { /* nothing was asked for */
        give_texts(row, 0);
        return ENTRY_VOID;
    }
    add_string(&row->text, "by", envelope->by);
    cut = row->text.n;
    if (envelope->owner.p)
        hand_over(row);
    row->content = (struct str){row->text.p, cut};
    change_count(row);
    row->change.name = envelope->name;
    row->change.notice = envelope->notice;
    row->change.owner = envelope->owner;
    row->change.extra = envelope->extra;
    row->change.member_limit = envelope->member_limit;
    if (envelope->member_limit >= 0)
        room->member_limit = envelope->member_limit;
    return ENTRY_UPDATED;
}

static enum entry_type remove_room(struct seq_row *row)
{
    if (row->room->removed) { /* repeated: fine */
        give_texts(row, 0);
        return ENTRY_VOID;
    }
    add_string(&row->text, "reason", row->envelope->reason);
    add_string(&row->text, "by", row->envelope->by);
    give_texts(row, row->text.n);
    row->room->removed = true;
    change_count(row);
    row->change.removed = true;
    return ENTRY_REMOVED;
}

static enum entry_type decide(struct sequencer *s, struct seq_row *row)
{
    enum op_kind kind = row->envelope->op;

    if (kind == OP_ROOM_REMOVE)
        return remove_room(row);
    if (row->room->removed)
        return refuse(row, ERR_ROOM_GONE);
    if (kind == OP_ROOM_UPDATE)
        return update_room(s, row);
    if (row->room->direct)
        return refuse(row, ERR_FORBIDDEN);
    return kind == OP_MEMBER_ADD ? add_members(s, row) : remove_members(s, row);
}

void op_apply(struct sequencer *s, struct seq_row *row, uint64_t now_ms)
{
    row_entry(s, row, decide(s, row), now_ms);
    for (size_t i = 0; i < row->member_count; i++) {
        struct seq_member_change *change = &row->members[i];
        struct known_member *member = member_find(s, row->room, change->account);
        uint64_t join_seq = change->action == MEMBER_JOINS ? row->entry->seq : member ? member->join_seq : 0;

        if (change->action == MEMBER_ROLE && !member)
            continue; /* not cached: the row in the database is enough */
        member_put(s, row->room, change->account, change->role, join_seq)->pins++;
        change->pinned = true;
    }
}

static void unpin(struct sequencer *s, struct seq_row *row, bool taken_back)
{
    for (size_t i = 0; i < row->member_count; i++) {
        struct known_member *member;

        if (!row->members[i].pinned)
            continue;
        member = member_find(s, row->room, row->members[i].account);
        member->pins--;
        if (!member->pins && (taken_back || member->role == ROLE_NONE))
            member_free(s, member);
    }
}

void op_committed(struct sequencer *s, struct seq_row *row)
{
    unpin(s, row, false);
    if (row->member_count)
        row->room->stale_asking = s->askings;
}

/* The op turned out to be in the log already, or was refused by the database: it did nothing. What was counted on top
 * of it is put right. */
void op_undo(struct sequencer *s, struct seq_row *row)
{
    int32_t joined = 0;
    struct list *at;

    for (size_t i = 0; i < row->member_count; i++)
        joined += row->members[i].action == MEMBER_JOINS ? 1 : row->members[i].action == MEMBER_LEAVES ? -1 : 0;
    unpin(s, row, true);
    row->room->members -= joined;
    for (at = row->room_link.next; at != &row->room->rows; at = at->next) {
        struct seq_row *later = list_entry(at, struct seq_row, room_link);

        if (later->change.present)
            later->change.members -= joined;
    }
    if (row->change.removed)
        row->room->removed = false;
    row->room->reload = true;
    row->member_count = 0;
    row->change = (struct seq_room_change){0};
}
