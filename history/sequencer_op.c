#include "sequencer_state.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/*
 * Room and member changes. Every valid op takes a seq: an entry when it changes something, else a void with its result,
 * so that a repeat is recognised and answered alike. row->content is what the entry shows, row->meta what the caller is
 * told.
 */

void text_begin(struct buf *text, const char *name)
{
    if (text->n)
        buf_char(text, ',');
    buf_char(text, '"');
    buf_text(text, name);
    buf_text(text, "\":");
}

void text_string(struct buf *text, const char *name, struct str value)
{
    if (!value.p)
        return;
    text_begin(text, name);
    buf_json_string(text, value);
}

static void text_u64(struct buf *text, const char *name, uint64_t value)
{
    text_begin(text, name);
    buf_u64(text, value);
}

static void text_accounts(struct buf *text, const char *name, const struct str *accounts, size_t count)
{
    text_begin(text, name);
    buf_char(text, '[');
    for (size_t i = 0; i < count; i++) {
        if (i)
            buf_char(text, ',');
        buf_json_string(text, accounts[i]);
    }
    buf_char(text, ']');
}

void text_give(struct seq_row *row, size_t cut)
{
    row->content = (struct str){row->text.p, cut};
    row->meta = (struct str){row->text.p ? row->text.p + cut : NULL, row->text.n - cut};
}

enum entry_type op_refuse(struct seq_row *row, enum err err, const char *field, const char *why, ...)
{
    char sentence[320] = "";
    va_list args;

    if (why) {
        va_start(args, why);
        vsnprintf(sentence, sizeof sentence, why, args);
        va_end(args);
    }
    row->result = err;
    buf_printf(&row->text, "\"result\":\"%s\"", err_code(err));
    if (*sentence)
        text_string(&row->text, "why", str_of(sentence));
    if (field && *field)
        text_string(&row->text, "field", str_of(field));
    text_give(row, 0);
    return ENTRY_VOID;
}

/* --- who may --- */

static enum role role_of(struct sequencer *s, const struct seq_row *row, struct str account)
{
    struct known_member *member = member_find(s, row->room, account);

    return member ? member->now.role : ROLE_NONE;
}

/* Whose act it is has this role; the business itself is above all. */
static enum role actor_role(struct sequencer *s, const struct seq_row *row)
{
    return row->envelope->by.n ? role_of(s, row, row->envelope->by) : ROLE_OWNER + 1;
}

static bool is_business(const struct seq_row *row)
{
    return !row->envelope->by.n;
}

enum err op_may(struct sequencer *s, const struct seq_row *row, enum rule rule, char why[RULES_WHY_MAX])
{
    why[0] = '\0';
    if (is_business(row) || rules_allow(&s->settings.rules, rule, actor_role(s, row)))
        return ERR_OK;
    rules_say(&s->settings.rules, rule, why);
    return ERR_FORBIDDEN;
}

static bool may(struct sequencer *s, struct seq_row *row, enum rule rule)
{
    char why[RULES_WHY_MAX];

    if (!op_may(s, row, rule, why))
        return true;
    op_refuse(row, ERR_FORBIDDEN, NULL, "%s", why);
    return false;
}

/* Nobody acts on who has the same power, or more. */
static bool outranks(struct sequencer *s, struct seq_row *row, struct str account)
{
    return role_of(s, row, account) < actor_role(s, row);
}

/* --- members --- */

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

static void free_split(struct split *split)
{
    free(split->members);
    free(split->strangers);
}

static void change_member(struct seq_row *row, const struct seq_member_change *change)
{
    row->members = xrealloc(row->members, (row->member_count + 1) * sizeof *row->members);
    row->members[row->member_count++] = *change;
}

static void change_members(
    struct seq_row *row, const struct str *accounts, size_t count, struct seq_member_change change)
{
    for (size_t i = 0; i < count; i++) {
        change.account = accounts[i];
        change_member(row, &change);
    }
}

static void change_count(struct seq_row *row)
{
    row->change.present = true;
    row->change.members = row->room->now.members;
    row->change.member_limit = -1;
    row->change.muted_until = -1;
}

/* What the caller is told about each account, behind what the entry shows. */
static void tell_split(struct seq_row *row, const struct split *split, const char *in, const char *out)
{
    size_t cut = row->text.n;
    struct buf result = {0};

    text_accounts(&result, in, split->members, split->member_count);
    text_accounts(&result, out, split->strangers, split->stranger_count);
    buf_add(&row->text, result.p, result.n);
    buf_clear(&result);
    text_give(row, cut);
}

static enum entry_type add_split(struct seq_row *row, struct split *split)
{
    struct seq_room *room = row->room;
    const struct envelope *envelope = row->envelope;
    struct split told = {split->strangers, split->members, split->stranger_count, split->member_count};

    if (split->stranger_count && room->now.member_limit &&
        (int64_t)room->now.members + (int64_t)split->stranger_count > room->now.member_limit)
        return op_refuse(row, ERR_ROOM_FULL, NULL, NULL);
    if (split->stranger_count) {
        text_accounts(&row->text, "account_ids", split->strangers, split->stranger_count);
        text_string(&row->text, "role", str_of(role_name(envelope->role)));
        text_string(&row->text, "by", envelope->by);
        change_members(row, split->strangers, split->stranger_count,
            (struct seq_member_change){.action = MEMBER_JOINS, .role = envelope->role});
        room->now.members += (int32_t)split->stranger_count;
        change_count(row);
    }
    tell_split(row, &told, "added", "already");
    return split->stranger_count ? ENTRY_JOINED : ENTRY_VOID;
}

static enum entry_type add_members(struct sequencer *s, struct seq_row *row)
{
    struct split split;
    enum entry_type type;

    if (!may(s, row, RULE_ADD) || (row->envelope->role == ROLE_ADMIN && !may(s, row, RULE_ROLE)))
        return ENTRY_VOID;
    split_accounts(s, row, &split);
    type = add_split(row, &split);
    free_split(&split);
    return type;
}

/* Oneself always, but for an owner who would leave the others without one. */
static bool may_remove(struct sequencer *s, struct seq_row *row, struct str account)
{
    if (is_business(row))
        return true;
    if (!str_eq(account, row->envelope->by)) {
        if (!may(s, row, RULE_REMOVE))
            return false;
        if (outranks(s, row, account))
            return true;
        op_refuse(row, ERR_FORBIDDEN, NULL, "only accounts of a lower role than one's own can be removed");
        return false;
    }
    if (role_of(s, row, account) != ROLE_OWNER || row->room->now.members == 1)
        return true;
    op_refuse(row, ERR_FORBIDDEN, NULL, "the owner cannot leave while others are in the room: hand it over first");
    return false;
}

static enum entry_type remove_members(struct sequencer *s, struct seq_row *row)
{
    struct seq_room *room = row->room;
    const struct envelope *envelope = row->envelope;
    struct split split;
    enum entry_type type;

    for (size_t i = 0; i < envelope->account_count; i++)
        if (!may_remove(s, row, envelope->accounts[i]))
            return ENTRY_VOID;
    split_accounts(s, row, &split);
    if (split.member_count) {
        text_accounts(&row->text, "account_ids", split.members, split.member_count);
        text_string(&row->text, "by", envelope->by);
        text_string(&row->text, "reason", envelope->reason);
        change_members(row, split.members, split.member_count, (struct seq_member_change){.action = MEMBER_LEAVES});
        room->now.members -= (int32_t)split.member_count;
        change_count(row);
        for (size_t i = 0; i < split.member_count; i++) {
            if (str_eq(split.members[i], (struct str){room->now.owner, room->now.owner_n})) {
                room->now.owner_n = 0;
                row->change.owner = STR("");
            }
        }
    }
    tell_split(row, &split, "removed", "absent");
    type = split.member_count ? ENTRY_LEFT : ENTRY_VOID;
    free_split(&split);
    return type;
}

/* Roles and mutes of accounts: `change` is what shall be, only who is not so already is changed. */
static enum entry_type update_members(struct sequencer *s, struct seq_row *row, struct split *split,
    const struct seq_member_change *change, const char *told)
{
    const struct envelope *envelope = row->envelope;
    bool role = change->action == MEMBER_ROLE;
    struct str *changed = xcalloc(split->member_count, sizeof *changed);
    size_t count = 0;

    for (size_t i = 0; i < split->member_count; i++) {
        const struct standing *now = &member_find(s, row->room, split->members[i])->now;

        if (role ? now->role != change->role : now->muted_until != change->muted_until)
            changed[count++] = split->members[i];
    }
    if (count) {
        text_accounts(&row->text, "account_ids", changed, count);
        if (role)
            text_string(&row->text, "role", str_of(role_name(change->role)));
        else
            text_u64(&row->text, "muted_until", change->muted_until);
        text_string(&row->text, "by", envelope->by);
        change_members(row, changed, count, *change);
    }
    free(changed);
    tell_split(row, split, told, "absent");
    return count ? ENTRY_MEMBER_UPDATED : ENTRY_VOID;
}

static enum entry_type set_role(struct sequencer *s, struct seq_row *row)
{
    const struct envelope *envelope = row->envelope;
    struct split split;
    enum entry_type type;

    if (!may(s, row, RULE_ROLE))
        return ENTRY_VOID;
    for (size_t i = 0; i < envelope->account_count; i++)
        if (role_of(s, row, envelope->accounts[i]) == ROLE_OWNER)
            return op_refuse(row, ERR_FORBIDDEN, NULL, "the owner's role changes only when the room is handed over");
    split_accounts(s, row, &split);
    type = update_members(
        s, row, &split, &(struct seq_member_change){.action = MEMBER_ROLE, .role = envelope->role}, "changed");
    free_split(&split);
    return type;
}

static enum entry_type mute_room(struct seq_row *row)
{
    struct seq_room *room = row->room;
    const struct envelope *envelope = row->envelope;

    if (room->now.muted_until == envelope->until) {
        text_give(row, 0);
        return ENTRY_VOID;
    }
    text_u64(&row->text, "muted_until", envelope->until);
    text_string(&row->text, "by", envelope->by);
    text_give(row, row->text.n);
    room->now.muted_until = envelope->until;
    change_count(row);
    row->change.muted_until = (int64_t)envelope->until;
    return ENTRY_UPDATED;
}

static enum entry_type mute(struct sequencer *s, struct seq_row *row)
{
    const struct envelope *envelope = row->envelope;
    struct split split;
    enum entry_type type;

    if (!may(s, row, RULE_MUTE))
        return ENTRY_VOID;
    if (!envelope->account_count)
        return mute_room(row);
    for (size_t i = 0; i < envelope->account_count; i++)
        if (!outranks(s, row, envelope->accounts[i]))
            return op_refuse(row, ERR_FORBIDDEN, NULL, "only accounts of a lower role than one's own can be muted");
    split_accounts(s, row, &split);
    type = update_members(
        s, row, &split, &(struct seq_member_change){.action = MEMBER_MUTED, .muted_until = envelope->until}, "muted");
    free_split(&split);
    return type;
}

/* --- the room --- */

/* The old owner becomes a plain member. Its name goes behind the row's texts: it must outlive the room's field. */
static void hand_over(struct seq_row *row)
{
    struct room_state *now = &row->room->now;
    struct str owner = row->envelope->owner, old;
    size_t cut = row->text.n;

    if (str_eq(owner, (struct str){now->owner, now->owner_n}))
        return;
    buf_add(&row->text, now->owner, now->owner_n);
    old = (struct str){row->text.p + cut, now->owner_n};
    if (old.n)
        change_members(row, &old, 1, (struct seq_member_change){.action = MEMBER_ROLE, .role = ROLE_MEMBER});
    change_members(row, &owner, 1, (struct seq_member_change){.action = MEMBER_ROLE, .role = ROLE_OWNER});
}

static bool may_update(struct sequencer *s, struct seq_row *row)
{
    const struct envelope *envelope = row->envelope;

    if ((envelope->name.p || envelope->extra.p || envelope->member_limit >= 0) && !may(s, row, RULE_RENAME))
        return false;
    if (envelope->notice.p && !may(s, row, RULE_NOTICE))
        return false;
    if (!envelope->owner.p)
        return true;
    if (row->room->direct)
        op_refuse(row, ERR_FORBIDDEN, NULL, "a direct room has no owner");
    else if (may(s, row, RULE_CLOSE) && !role_of(s, row, envelope->owner))
        op_refuse(row, ERR_NOT_MEMBER, "owner", "the new owner is not a member of the room");
    return !row->result;
}

static enum entry_type update_room(struct sequencer *s, struct seq_row *row)
{
    const struct envelope *envelope = row->envelope;
    size_t cut;

    if (!may_update(s, row))
        return ENTRY_VOID;
    text_string(&row->text, "name", envelope->name);
    text_string(&row->text, "notice", envelope->notice);
    text_string(&row->text, "owner", envelope->owner);
    if (envelope->member_limit >= 0)
        text_u64(&row->text, "member_limit", (uint64_t)envelope->member_limit);
    if (envelope->extra.p) {
        text_begin(&row->text, "extra");
        buf_add_str(&row->text, envelope->extra);
    }
    if (!row->text.n) { /* nothing was asked for */
        text_give(row, 0);
        return ENTRY_VOID;
    }
    text_string(&row->text, "by", envelope->by);
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
    return ENTRY_UPDATED;
}

static enum entry_type remove_room(struct sequencer *s, struct seq_row *row)
{
    if (!may(s, row, RULE_CLOSE))
        return ENTRY_VOID;
    if (row->room->now.removed) { /* repeated: fine */
        text_give(row, 0);
        return ENTRY_VOID;
    }
    text_string(&row->text, "reason", row->envelope->reason);
    text_string(&row->text, "by", row->envelope->by);
    text_give(row, row->text.n);
    change_count(row);
    row->change.removed = true;
    return ENTRY_REMOVED;
}

/* --- all --- */

/* The two of a direct room are equal, and stay. */
static bool takes_a_group(const struct seq_row *row)
{
    enum op_kind kind = row->envelope->op;

    return kind == OP_MEMBER_ADD || kind == OP_MEMBER_REMOVE || kind == OP_MEMBER_ROLE ||
           (kind == OP_ROOM_MUTE && !is_business(row));
}

static enum entry_type decide(struct sequencer *s, struct seq_row *row, uint64_t at_ms)
{
    enum op_kind kind = row->envelope->op;

    if (row->room->now.removed && kind != OP_ROOM_REMOVE)
        return op_refuse(row, ERR_ROOM_GONE, NULL, NULL);
    if (!actor_role(s, row))
        return op_refuse(row, ERR_NOT_MEMBER, NULL, NULL);
    if (row->room->direct && takes_a_group(row))
        return op_refuse(row, ERR_FORBIDDEN, NULL, "not in a direct room: its two members are equal, and stay");
    switch (kind) {
    case OP_MEMBER_ADD:
        return add_members(s, row);
    case OP_MEMBER_REMOVE:
        return remove_members(s, row);
    case OP_MEMBER_ROLE:
        return set_role(s, row);
    case OP_ROOM_MUTE:
        return mute(s, row);
    case OP_ROOM_UPDATE:
        return update_room(s, row);
    case OP_ROOM_REMOVE:
        return remove_room(s, row);
    default:
        return change_message(s, row, at_ms);
    }
}

/* --- what a change does to what memory holds --- */

static void member_apply(struct standing *standing, const struct seq_member_change *change, uint64_t seq)
{
    switch (change->action) {
    case MEMBER_LEAVES:
        standing->role = ROLE_NONE;
        break;
    case MEMBER_JOINS:
        *standing = (struct standing){.role = change->role, .join_seq = seq};
        break;
    case MEMBER_ROLE:
        standing->role = change->role;
        break;
    case MEMBER_MUTED:
        standing->muted_until = change->muted_until;
        break;
    }
}

static void room_apply(struct room_state *state, const struct seq_room_change *change)
{
    if (!change->present)
        return;
    state->members = change->members;
    if (change->member_limit >= 0)
        state->member_limit = change->member_limit;
    if (change->muted_until >= 0)
        state->muted_until = (uint64_t)change->muted_until;
    if (change->removed)
        state->removed = true;
    if (change->owner.p) {
        memcpy(state->owner, change->owner.p, change->owner.n);
        state->owner_n = (uint8_t)change->owner.n;
    }
}

void op_apply(struct sequencer *s, struct seq_row *row, uint64_t now_ms)
{
    struct seq_room *room = row->room;
    enum entry_type type = decide(s, row, now_ms > room->last_at ? now_ms : room->last_at);

    row_entry(s, row, type, now_ms);
    room_apply(&room->now, &row->change);
    for (size_t i = 0; i < row->member_count; i++) {
        struct seq_member_change *change = &row->members[i];
        struct known_member *member = member_find(s, room, change->account);

        if (!member && change->action != MEMBER_JOINS)
            continue; /* the old owner, and not cached: the row in the database is enough, see op_catch_up */
        if (!member)
            member = member_find_or_make(s, room, change->account);
        member_apply(&member->now, change, row->entry->seq);
        member->pins++;
        change->pinned = true;
    }
    change_applied(s, row);
}

void op_catch_up(struct seq_room *room, struct known_member *member)
{
    if (!room->barriers)
        return;
    for (struct list *at = room->rows.next; at != &room->rows; at = at->next) {
        struct seq_row *row = list_entry(at, struct seq_row, room_link);

        for (size_t i = 0; i < row->member_count; i++) {
            struct seq_member_change *change = &row->members[i];

            if (change->pinned || !str_eq(change->account, member->account))
                continue;
            member_apply(&member->now, change, row->entry->seq);
            member->pins++;
            change->pinned = true;
        }
    }
}

void op_committed(struct sequencer *s, struct seq_row *row)
{
    struct seq_room *room = row->room;

    room_apply(&room->durable, &row->change);
    for (size_t i = 0; i < row->member_count; i++) {
        struct known_member *member;

        if (!row->members[i].pinned)
            continue;
        member = member_find(s, room, row->members[i].account);
        member_apply(&member->durable, &row->members[i], row->entry->seq);
        if (!--member->pins && member->now.role == ROLE_NONE)
            member_free(s, member);
    }
    if (row->member_count)
        room->stale_asking = s->askings;
    change_committed(s, row);
}

/* What is committed, and on top of it what is on its way. */
static void member_remake(struct seq_room *room, struct known_member *member)
{
    member->now = member->durable;
    for (struct list *at = room->rows.next; at != &room->rows; at = at->next) {
        struct seq_row *row = list_entry(at, struct seq_row, room_link);

        for (size_t i = 0; i < row->member_count; i++)
            if (str_eq(row->members[i].account, member->account))
                member_apply(&member->now, &row->members[i], row->entry->seq);
    }
}

static void room_remake(struct seq_room *room)
{
    room->now = room->durable;
    for (struct list *at = room->rows.next; at != &room->rows; at = at->next)
        room_apply(&room->now, &list_entry(at, struct seq_row, room_link)->change);
}

/* The op turned out to be in the log already, or was refused by the database: it did nothing. What was counted on top
 * of it is put right. */
void op_undo(struct sequencer *s, struct seq_row *row)
{
    struct seq_room *room = row->room;
    struct seq_member_change *members = row->members;
    size_t count = row->member_count;
    int32_t joined = 0;

    for (size_t i = 0; i < count; i++)
        joined += members[i].action == MEMBER_JOINS ? 1 : members[i].action == MEMBER_LEAVES ? -1 : 0;
    for (struct list *at = row->room_link.next; at != &room->rows; at = at->next) {
        struct seq_row *later = list_entry(at, struct seq_row, room_link);

        if (later->change.present)
            later->change.members -= joined;
    }
    row->member_count = 0;
    row->change = (struct seq_room_change){0};
    room_remake(room);
    for (size_t i = 0; i < count; i++) {
        struct known_member *member = members[i].pinned ? member_find(s, room, members[i].account) : NULL;

        if (member && --member->pins)
            member_remake(room, member);
        else if (member)
            member_free(s, member);
    }
    room->reload = true;
    change_undo(s, row);
}
