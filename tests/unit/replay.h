/*
 * A room told once more from its log: each rule of docs/protocol.md said as plainly as it can be, on small numbers and
 * fixed arrays. For tests that hold the sequencer to it; nothing is shared with the sequencer but names.
 */
#ifndef ROOMD_TESTS_REPLAY_H
#define ROOMD_TESTS_REPLAY_H

#include <stdio.h>
#include <string.h>

#include "history/entry.h"
#include "history/envelope.h"
#include "room/rules.h"

enum { ACCOUNTS = 5, LOG_MAX = 220 };
enum told_kind { KIND_TEXT, KIND_TIP, KIND_RICH };

static const char *const accounts[ACCOUNTS] = {"a0", "a1", "a2", "a3", "a4"};
static const char *const kind_names[] = {"text", "tip", "rich_text"};

/* What one body asks for. Accounts are numbers; -1 = none: @system as sender, the business itself as actor. */
struct act {
    enum op_kind op;
    int by;

    int sender;
    enum told_kind kind;
    char content[96], mentions[24]; /* JSON; mentions empty = none */
    bool well_formed_for[3];        /* content, by kind of the message */
    bool rich;                      /* content holds mentions of its own */
    uint64_t sent_at, quote_seq;    /* 0 = not given */

    int account[2], account_count;
    enum role role;
    char name[8];
    int owner, limit; /* -1 = as it is */
    uint64_t until, called_at;
    uint64_t target_seq; /* 0: the message with target_id */
    struct id128 target_id;
};

/* What rows a room has besides its log. */
struct standing {
    enum role role[ACCOUNTS];
    uint64_t muted[ACCOUNTS];
    uint64_t room_muted;
    int owner, limit, members;
    bool removed, direct;
    char name[8];
};
struct told_message {
    bool is; /* is: an entry of type message */
    int sender, state;
    enum told_kind kind;
    struct id128 id;
    uint64_t at, sent_at;
    char content[96], meta[64], mentions[24];
};
struct told_room {
    struct standing now;
    struct told_message message[LOG_MAX + 1];
    uint64_t last_seq;
};

/* What becomes of an act. */
struct verdict {
    enum entry_type type; /* of an op, or of an accepted message */
    enum err err;         /* messages: not ERR_OK = a dead letter */
    char answer[160];     /* an op's result members; only where they are words of the protocol */
    uint64_t until;       /* refused for a mute: when it ends */
    uint64_t target;      /* the seq that was changed */
};

/* --- words --- */

static inline void told_meta(char *meta, size_t size, uint64_t sent_at, uint64_t quote_seq, const char *mentions)
{
    size_t n = 0;

    meta[0] = '\0';
    if (sent_at)
        n += (size_t)snprintf(meta + n, size - n, "\"sent_at\":%llu", (unsigned long long)sent_at);
    if (quote_seq)
        n += (size_t)snprintf(meta + n, size - n, "%s\"quote_seq\":%llu", n ? "," : "", (unsigned long long)quote_seq);
    if (*mentions)
        snprintf(meta + n, size - n, "%s\"mentions\":%s", n ? "," : "", mentions);
}

static inline void told_list(char *text, size_t size, const char *name, const int *list, int count)
{
    size_t n = strlen(text);

    n += (size_t)snprintf(text + n, size - n, "%s\"%s\":[", n ? "," : "", name);
    for (int i = 0; i < count; i++)
        n += (size_t)snprintf(text + n, size - n, "%s\"%s\"", i ? "," : "", accounts[list[i]]);
    snprintf(text + n, size - n, "]");
}

/* The accounts of an act that fit, and the others. */
struct told_split {
    int in[2], out[2], in_count, out_count;
};
static inline struct told_split told_split(const struct standing *now, const struct act *act)
{
    struct told_split split = {0};

    for (int i = 0; i < act->account_count; i++) {
        if (now->role[act->account[i]])
            split.in[split.in_count++] = act->account[i];
        else
            split.out[split.out_count++] = act->account[i];
    }
    return split;
}

/* --- rules --- */

/* Does the rule let the actor do it? Who names no actor is the business itself. */
static inline bool told_may(
    const struct standing *now, const struct rules *rules, const struct act *act, enum rule rule)
{
    return act->by < 0 || now->role[act->by] >= rules->least[rule];
}

static inline uint64_t told_muted_until(const struct standing *now, int account, uint64_t at)
{
    uint64_t until = now->muted[account] > at ? now->muted[account] : 0;

    if (now->role[account] < ROLE_ADMIN && now->room_muted > at && now->room_muted > until)
        until = now->room_muted;
    return until;
}

static inline struct verdict told_refuse(enum err err)
{
    return (struct verdict){.type = ENTRY_VOID, .err = err};
}

/* --- room and members --- */

static inline struct verdict told_add(struct standing *now, const struct rules *rules, const struct act *act)
{
    struct told_split split = told_split(now, act);
    struct verdict verdict = {.type = split.out_count ? ENTRY_JOINED : ENTRY_VOID};

    if (!told_may(now, rules, act, RULE_ADD) || (act->role == ROLE_ADMIN && !told_may(now, rules, act, RULE_ROLE)))
        return told_refuse(ERR_FORBIDDEN);
    if (split.out_count && now->limit && now->members + split.out_count > now->limit)
        return told_refuse(ERR_ROOM_FULL);
    for (int i = 0; i < split.out_count; i++) {
        now->role[split.out[i]] = act->role;
        now->muted[split.out[i]] = 0;
        now->members++;
    }
    told_list(verdict.answer, sizeof verdict.answer, "added", split.out, split.out_count);
    told_list(verdict.answer, sizeof verdict.answer, "already", split.in, split.in_count);
    return verdict;
}

static inline bool told_may_remove(
    const struct standing *now, const struct rules *rules, const struct act *act, int account)
{
    if (act->by < 0)
        return true;
    if (act->by == account)
        return now->role[account] != ROLE_OWNER || now->members == 1;
    return told_may(now, rules, act, RULE_REMOVE) && now->role[account] < now->role[act->by];
}

static inline struct verdict told_remove(struct standing *now, const struct rules *rules, const struct act *act)
{
    struct told_split split = told_split(now, act);
    struct verdict verdict = {.type = split.in_count ? ENTRY_LEFT : ENTRY_VOID};

    for (int i = 0; i < act->account_count; i++)
        if (!told_may_remove(now, rules, act, act->account[i]))
            return told_refuse(ERR_FORBIDDEN);
    for (int i = 0; i < split.in_count; i++) {
        now->role[split.in[i]] = ROLE_NONE;
        now->muted[split.in[i]] = 0;
        now->members--;
        if (now->owner == split.in[i])
            now->owner = -1;
    }
    told_list(verdict.answer, sizeof verdict.answer, "removed", split.in, split.in_count);
    told_list(verdict.answer, sizeof verdict.answer, "absent", split.out, split.out_count);
    return verdict;
}

static inline struct verdict told_update(struct standing *now, const struct rules *rules, const struct act *act)
{
    if ((*act->name && !told_may(now, rules, act, RULE_RENAME)) ||
        (act->limit >= 0 && !told_may(now, rules, act, RULE_RENAME)) ||
        (act->owner >= 0 && (now->direct || !told_may(now, rules, act, RULE_CLOSE))))
        return told_refuse(ERR_FORBIDDEN);
    if (act->owner >= 0 && !now->role[act->owner])
        return told_refuse(ERR_NOT_MEMBER);
    if (*act->name)
        memcpy(now->name, act->name, sizeof now->name);
    if (act->limit >= 0)
        now->limit = act->limit;
    if (act->owner >= 0 && act->owner != now->owner) {
        if (now->owner >= 0)
            now->role[now->owner] = ROLE_MEMBER;
        now->role[act->owner] = ROLE_OWNER;
        now->owner = act->owner;
    }
    return (struct verdict){.type = ENTRY_UPDATED};
}

static inline struct verdict told_close(struct standing *now, const struct rules *rules, const struct act *act)
{
    bool repeated = now->removed;

    if (!told_may(now, rules, act, RULE_CLOSE))
        return told_refuse(ERR_FORBIDDEN);
    now->removed = true;
    return (struct verdict){.type = repeated ? ENTRY_VOID : ENTRY_REMOVED};
}

static inline struct verdict told_mute(struct standing *now, const struct rules *rules, const struct act *act)
{
    struct told_split split = told_split(now, act);
    struct verdict verdict = {.type = ENTRY_VOID};

    if (!told_may(now, rules, act, RULE_MUTE))
        return told_refuse(ERR_FORBIDDEN);
    if (!act->account_count) {
        verdict.type = now->room_muted == act->until ? ENTRY_VOID : ENTRY_UPDATED;
        now->room_muted = act->until;
        return verdict;
    }
    for (int i = 0; i < split.in_count; i++)
        if (act->by >= 0 && now->role[split.in[i]] >= now->role[act->by])
            return told_refuse(ERR_FORBIDDEN);
    for (int i = 0; i < split.in_count; i++) {
        if (now->muted[split.in[i]] != act->until)
            verdict.type = ENTRY_MEMBER_UPDATED;
        now->muted[split.in[i]] = act->until;
    }
    told_list(verdict.answer, sizeof verdict.answer, "muted", split.in, split.in_count);
    told_list(verdict.answer, sizeof verdict.answer, "absent", split.out, split.out_count);
    return verdict;
}

static inline struct verdict told_role(struct standing *now, const struct rules *rules, const struct act *act)
{
    struct told_split split = told_split(now, act);
    struct verdict verdict = {.type = ENTRY_VOID};

    if (!told_may(now, rules, act, RULE_ROLE))
        return told_refuse(ERR_FORBIDDEN);
    for (int i = 0; i < split.in_count; i++)
        if (now->role[split.in[i]] == ROLE_OWNER)
            return told_refuse(ERR_FORBIDDEN);
    for (int i = 0; i < split.in_count; i++) {
        if (now->role[split.in[i]] != act->role)
            verdict.type = ENTRY_MEMBER_UPDATED;
        now->role[split.in[i]] = act->role;
    }
    told_list(verdict.answer, sizeof verdict.answer, "changed", split.in, split.in_count);
    told_list(verdict.answer, sizeof verdict.answer, "absent", split.out, split.out_count);
    return verdict;
}

/* --- messages --- */

static inline uint64_t told_find(const struct told_room *room, const struct act *act)
{
    if (act->target_seq)
        return act->target_seq <= room->last_seq && room->message[act->target_seq].is ? act->target_seq : 0;
    for (uint64_t seq = 1; seq <= room->last_seq; seq++)
        if (room->message[seq].is && id128_eq(room->message[seq].id, act->target_id))
            return seq;
    return 0;
}

static inline struct verdict told_edit(
    struct told_room *room, const struct rules *rules, const struct act *act, uint64_t at)
{
    uint64_t seq = told_find(room, act);
    struct told_message *message = &room->message[seq];
    uint64_t muted = act->by >= 0 ? told_muted_until(&room->now, act->by, at) : 0;

    if (muted)
        return (struct verdict){.type = ENTRY_VOID, .err = ERR_FORBIDDEN, .until = muted};
    if (!seq)
        return told_refuse(ERR_NO_SUCH_MESSAGE);
    if (act->by < 0 || message->sender != act->by)
        return told_refuse(ERR_FORBIDDEN);
    if (message->state >= 2)
        return told_refuse(ERR_CONFLICT);
    if (!act->well_formed_for[message->kind])
        return told_refuse(ERR_BAD_REQUEST);
    if (message->kind == KIND_RICH && act->quote_seq > room->last_seq)
        return told_refuse(ERR_BAD_REQUEST);
    if (message->kind == KIND_RICH && strstr(act->mentions, "@all") &&
        !told_may(&room->now, rules, act, RULE_MENTION_ALL))
        return told_refuse(ERR_FORBIDDEN);
    message->state = 1;
    memcpy(message->content, act->content, sizeof message->content);
    if (message->kind == KIND_RICH) {
        memcpy(message->mentions, act->mentions, sizeof message->mentions);
        told_meta(message->meta, sizeof message->meta, message->sent_at, act->quote_seq, act->mentions);
    }
    return (struct verdict){.type = ENTRY_EDITED, .target = seq};
}

/* Recall, and delete for all: state is what the message becomes. */
static inline struct verdict told_take_back(
    struct told_room *room, const struct rules *rules, const struct act *act, uint64_t window_ms, int state)
{
    uint64_t seq = told_find(room, act);
    struct told_message *message = &room->message[seq];
    bool in_time = act->called_at <= message->at + window_ms;

    if (!seq)
        return told_refuse(ERR_NO_SUCH_MESSAGE);
    if (!told_may(&room->now, rules, act, RULE_RECALL)) {
        if (message->sender != act->by)
            return told_refuse(ERR_FORBIDDEN);
        if (message->state < state && message->state != 3 && !in_time)
            return told_refuse(ERR_TOO_LATE);
    }
    if (message->state == state)
        return (struct verdict){.type = ENTRY_VOID};
    if (message->state == 3)
        return told_refuse(ERR_CONFLICT);
    message->state = state;
    message->content[0] = message->meta[0] = message->mentions[0] = '\0';
    return (struct verdict){.type = state == 2 ? ENTRY_RECALLED : ENTRY_DELETED, .target = seq};
}

static inline struct verdict told_op(
    struct told_room *room, const struct rules *rules, const struct act *act, uint64_t window_ms, uint64_t at)
{
    struct standing *now = &room->now;

    if (now->removed && act->op != OP_ROOM_REMOVE)
        return told_refuse(ERR_ROOM_GONE);
    if (act->by >= 0 && !now->role[act->by])
        return told_refuse(ERR_NOT_MEMBER);
    if (now->direct && (act->op == OP_MEMBER_ADD || act->op == OP_MEMBER_REMOVE || act->op == OP_MEMBER_ROLE ||
                           (act->op == OP_ROOM_MUTE && act->by >= 0)))
        return told_refuse(ERR_FORBIDDEN);
    switch (act->op) {
    case OP_MEMBER_ADD:
        return told_add(now, rules, act);
    case OP_MEMBER_REMOVE:
        return told_remove(now, rules, act);
    case OP_ROOM_UPDATE:
        return told_update(now, rules, act);
    case OP_ROOM_REMOVE:
        return told_close(now, rules, act);
    case OP_ROOM_MUTE:
        return told_mute(now, rules, act);
    case OP_MEMBER_ROLE:
        return told_role(now, rules, act);
    case OP_MESSAGE_EDIT:
        return told_edit(room, rules, act, at);
    case OP_MESSAGE_RECALL:
        return told_take_back(room, rules, act, window_ms, 2);
    default:
        return told_take_back(room, rules, act, window_ms, 3);
    }
}

/* May it be said? Changes nothing. */
static inline struct verdict told_message(
    const struct told_room *room, const struct rules *rules, const struct act *act, uint64_t at)
{
    const struct standing *now = &room->now;
    struct verdict verdict = {.type = ENTRY_MESSAGE};

    if (now->removed) {
        verdict.err = ERR_ROOM_GONE;
    } else if (act->sender >= 0 && !now->role[act->sender]) {
        verdict.err = ERR_NOT_MEMBER;
    } else if (act->sender >= 0 && (verdict.until = told_muted_until(now, act->sender, at))) {
        verdict.err = ERR_FORBIDDEN;
    } else if (act->sender >= 0 && strstr(act->mentions, "@all") &&
               now->role[act->sender] < rules->least[RULE_MENTION_ALL]) {
        verdict.err = ERR_FORBIDDEN;
    } else if (act->quote_seq > room->last_seq) {
        verdict.err = ERR_BAD_REQUEST;
    }
    return verdict;
}

/* It got the next seq. */
static inline void told_said(struct told_room *room, const struct act *act, struct id128 id, uint64_t at)
{
    struct told_message *message = &room->message[room->last_seq + 1];

    memset(message, 0, sizeof *message);
    message->is = true;
    message->sender = act->sender;
    message->kind = act->kind;
    message->id = id;
    message->at = at;
    message->sent_at = act->sent_at;
    memcpy(message->content, act->content, sizeof message->content);
    memcpy(message->mentions, act->mentions, sizeof message->mentions);
    told_meta(message->meta, sizeof message->meta, act->sent_at, act->quote_seq, act->mentions);
}

#endif
