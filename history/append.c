#include "append.h"

#include <stdlib.h>

/* What a batch does to the head of a room. */
struct head {
    const struct seq_row *first, *last;
    bool changes; /* a row of it changes members or the room: append() does that set-wise, so there may be one only */
    uint32_t targets; /* the messages that its rows change: the last one's place in append->targets, from 1; 0 = none */
};

/* A message that a batch changes: each one once, since append() writes kind by kind, all changes and
 * then all mentions. */
struct target {
    uint64_t seq;
    uint32_t next; /* as in struct head */
};

/* Room number to index in heads; cleared by a new stamp. */
struct slot {
    uint32_t stamp, index;
};

/* The parameters of append() behind the instance id, in its order. */
enum column {
    P_SHARD,
    P_EPOCH,
    H_ROOM,
    H_OLD,
    H_NEW,
    H_EPOCH,
    H_AT,
    H_COUNTED,
    E_ROOM,
    E_SEQ,
    E_EPOCH,
    E_AT,
    E_COUNTED,
    E_HASH,
    E_ID,
    E_TYPE,
    E_SENDER,
    E_CMID,
    E_KIND,
    E_CONTENT,
    E_META,
    E_TARGET,
    M_ROOM,
    M_ACCOUNT,
    M_ACTION,
    M_ROLE,
    M_AT,
    M_SEQ,
    M_COUNTED,
    M_MUTED,
    R_ROOM,
    R_MEMBERS,
    R_NAME,
    R_NOTICE,
    R_OWNER,
    R_LIMIT,
    R_EXTRA,
    R_REMOVED,
    R_MUTED,
    T_ROOM,
    T_SEQ,
    T_STATE,
    T_CONTENT,
    T_META,
    N_ROOM,
    N_SEQ,
    N_ACCOUNT,
    N_BY,
    O_SHARD,
    O_ROOM,
    O_ID,
    O_REASON,
    O_TYPE,
    O_BODY,
    O_AT,
    COLUMNS
};
static const enum pg_type column_type[COLUMNS] = {
    [P_SHARD] = PG_TEXT,
    [P_EPOCH] = PG_INT8,
    [H_ROOM] = PG_INT8,
    [H_OLD] = PG_INT8,
    [H_NEW] = PG_INT8,
    [H_EPOCH] = PG_INT8,
    [H_AT] = PG_INT8,
    [H_COUNTED] = PG_INT8,
    [E_ROOM] = PG_INT8,
    [E_SEQ] = PG_INT8,
    [E_EPOCH] = PG_INT8,
    [E_AT] = PG_INT8,
    [E_COUNTED] = PG_INT8,
    [E_HASH] = PG_INT8,
    [E_ID] = PG_UUID,
    [E_TYPE] = PG_INT2,
    [E_SENDER] = PG_TEXT,
    [E_CMID] = PG_TEXT,
    [E_KIND] = PG_TEXT,
    [E_CONTENT] = PG_TEXT,
    [E_META] = PG_TEXT,
    [E_TARGET] = PG_INT8,
    [M_ROOM] = PG_INT8,
    [M_ACCOUNT] = PG_TEXT,
    [M_ACTION] = PG_INT2,
    [M_ROLE] = PG_INT2,
    [M_AT] = PG_INT8,
    [M_SEQ] = PG_INT8,
    [M_COUNTED] = PG_INT8,
    [M_MUTED] = PG_INT8,
    [R_ROOM] = PG_INT8,
    [R_MEMBERS] = PG_INT4,
    [R_NAME] = PG_TEXT,
    [R_NOTICE] = PG_TEXT,
    [R_OWNER] = PG_TEXT,
    [R_LIMIT] = PG_INT4,
    [R_EXTRA] = PG_TEXT,
    [R_REMOVED] = PG_BOOL,
    [R_MUTED] = PG_INT8,
    [T_ROOM] = PG_INT8,
    [T_SEQ] = PG_INT8,
    [T_STATE] = PG_INT2,
    [T_CONTENT] = PG_TEXT,
    [T_META] = PG_TEXT,
    [N_ROOM] = PG_INT8,
    [N_SEQ] = PG_INT8,
    [N_ACCOUNT] = PG_TEXT,
    [N_BY] = PG_INT8,
    [O_SHARD] = PG_TEXT,
    [O_ROOM] = PG_TEXT,
    [O_ID] = PG_UUID,
    [O_REASON] = PG_TEXT,
    [O_TYPE] = PG_TEXT,
    [O_BODY] = PG_BYTEA,
    [O_AT] = PG_INT8,
};

struct append {
    struct head *heads;
    size_t head_count;
    struct target *targets; /* as many as rows at most */
    uint32_t target_count;
    struct slot *slots; /* a power of two, at least twice as many as heads */
    size_t slot_count;
    uint32_t stamp;
    struct pg_array columns[COLUMNS];
    struct pg_params params;
    struct buf scratch;
};

const struct pg_statement append_statement = {
    .name = "append",
    .sql = "SELECT append($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18,$19,$20,$21,$22,"
           "$23,$24,$25,$26,$27,$28,$29,$30,$31,$32,$33,$34,$35,$36,$37,$38,$39,$40,$41,$42,$43,$44,"
           "$45,$46,$47,$48,$49,$50,$51,$52,$53,$54,$55,$56)",
    .params = 56,
};

struct append *append_new(size_t rows_max)
{
    struct append *append = xcalloc(1, sizeof *append);

    append->heads = xcalloc(rows_max, sizeof *append->heads);
    append->targets = xcalloc(rows_max, sizeof *append->targets);
    for (append->slot_count = 16; append->slot_count < 2 * rows_max;)
        append->slot_count *= 2;
    append->slots = xcalloc(append->slot_count, sizeof *append->slots);
    return append;
}

void append_free(struct append *append)
{
    for (size_t i = 0; i < COLUMNS; i++)
        pg_array_clear(&append->columns[i]);
    pg_params_clear(&append->params);
    buf_clear(&append->scratch);
    free(append->heads);
    free(append->targets);
    free(append->slots);
    free(append);
}

void append_begin(struct append *append)
{
    append->head_count = append->target_count = 0;
    if (++append->stamp == 0) {
        memset(append->slots, 0, append->slot_count * sizeof *append->slots);
        append->stamp = 1;
    }
    for (size_t i = 0; i < COLUMNS; i++)
        pg_array_reset(&append->columns[i], column_type[i]);
}

/* ----------------------------------------------------------------------------------------- what goes into one batch */

static struct head *head_of(struct append *append, const struct seq_row *row)
{
    size_t at = (size_t)((uint64_t)row->room_no * 0x9e3779b97f4a7c15u >> 20) & (append->slot_count - 1);
    struct slot *slot;

    for (;; at = (at + 1) & (append->slot_count - 1)) {
        slot = &append->slots[at];
        if (slot->stamp != append->stamp) {
            *slot = (struct slot){append->stamp, (uint32_t)append->head_count};
            append->heads[append->head_count] = (struct head){.first = row};
            return &append->heads[append->head_count++];
        }
        if (append->heads[slot->index].first->room_no == row->room_no)
            return &append->heads[slot->index];
    }
}

bool append_is_first_of_room(struct append *append, const struct seq_row *row)
{
    return head_of(append, row)->first == row;
}

/* The message that this row changes; 0: none. The entry decides: an edit that was found to be a repeat, or that the
 * database refused, is a void and changes nothing. */
static uint64_t target_seq_of(const struct seq_row *row)
{
    enum entry_type type = row->entry->type;

    return type == ENTRY_EDITED || type == ENTRY_RECALLED || type == ENTRY_DELETED ? row->target.seq : 0;
}

static bool is_changed(const struct append *append, const struct head *head, uint64_t seq)
{
    for (uint32_t at = head->targets; at; at = append->targets[at - 1].next)
        if (append->targets[at - 1].seq == seq)
            return true;
    return false;
}

bool append_admit(struct append *append, const struct seq_row *row)
{
    struct head *head = head_of(append, row);
    bool changes = row->member_count || row->change.present;
    uint64_t target = target_seq_of(row);

    if ((changes && head->changes) || (target && is_changed(append, head, target)))
        return false;
    head->changes |= changes;
    head->last = row;
    if (target) {
        append->targets[append->target_count] = (struct target){target, head->targets};
        head->targets = ++append->target_count;
    }
    return true;
}

/* ------------------------------------------------------------------------------------------------------- as columns */

static void encode_heads(struct append *append)
{
    for (size_t i = 0; i < append->head_count; i++) {
        const struct head *head = &append->heads[i];

        pg_array_i64(&append->columns[H_ROOM], head->first->room_no);
        pg_array_i64(&append->columns[H_OLD], (int64_t)seq_row_old_seq(head->first));
        pg_array_i64(&append->columns[H_NEW], (int64_t)head->last->entry->seq);
        pg_array_i64(&append->columns[H_EPOCH], (int64_t)head->last->entry->epoch);
        pg_array_i64(&append->columns[H_AT], (int64_t)head->last->entry->at);
        pg_array_i64(&append->columns[H_COUNTED], (int64_t)head->last->counted);
    }
}

static void add_text_or_null(struct pg_array *array, struct str text)
{
    if (text.p)
        pg_array_bytes(array, text);
    else
        pg_array_null(array);
}

static void encode_entry(struct append *append, const struct seq_row *row)
{
    const struct entry *entry = row->entry;
    const struct envelope *envelope = row->envelope;
    bool message = entry->type == ENTRY_MESSAGE;

    pg_array_i64(&append->columns[E_ROOM], row->room_no);
    pg_array_i64(&append->columns[E_SEQ], (int64_t)entry->seq);
    pg_array_i64(&append->columns[E_EPOCH], (int64_t)entry->epoch);
    pg_array_i64(&append->columns[E_AT], (int64_t)entry->at);
    pg_array_i64(&append->columns[E_COUNTED], (int64_t)row->counted);
    pg_array_i64(&append->columns[E_HASH], envelope->hash);
    pg_array_uuid_or_null(&append->columns[E_ID], row->message_id);
    pg_array_i16(&append->columns[E_TYPE], (int16_t)entry->type);
    pg_array_bytes(&append->columns[E_SENDER], message ? envelope->sender : envelope->op ? envelope->by : STR(""));
    pg_array_bytes(&append->columns[E_CMID], message ? envelope->client_msg_id : STR(""));
    pg_array_bytes(&append->columns[E_KIND], message ? envelope->kind : STR(""));
    pg_array_bytes(&append->columns[E_CONTENT], row->content);
    if (row->meta.n)
        pg_array_bytes(&append->columns[E_META], row->meta);
    else
        pg_array_null(&append->columns[E_META]);
}

/* Nearly no batch has any: rows behind the last one are null by themselves, and the array of most batches is empty. */
static void encode_entry_target(struct append *append, uint64_t target)
{
    while (append->columns[E_TARGET].count + 1 < append->columns[E_ROOM].count)
        pg_array_null(&append->columns[E_TARGET]);
    pg_array_i64(&append->columns[E_TARGET], (int64_t)target);
}

/* What the message at seq mentions: as it was said, or (by another seq) as that edit has it. */
static void encode_mentions(struct append *append, const struct seq_row *row, uint64_t seq, struct str mentions)
{
    struct json_walk walk = json_walk((struct json){.p = mentions.p, .n = mentions.n, .type = JSON_ARRAY});
    struct json item;
    struct str account;

    while (json_next_item(&walk, &item)) {
        buf_reset(&append->scratch);
        if (item.type != JSON_STRING || !json_string(item, &append->scratch, &account))
            continue;
        pg_array_i64(&append->columns[N_ROOM], row->room_no);
        pg_array_i64(&append->columns[N_SEQ], (int64_t)seq);
        pg_array_bytes(&append->columns[N_ACCOUNT], account);
        pg_array_i64(&append->columns[N_BY], (int64_t)row->entry->seq);
    }
}

static void encode_target(struct append *append, const struct seq_row *row)
{
    const struct seq_target_change *target = &row->target;
    bool gone = target->state >= 2;

    encode_entry_target(append, target->seq);
    pg_array_i64(&append->columns[T_ROOM], row->room_no);
    pg_array_i64(&append->columns[T_SEQ], (int64_t)target->seq);
    pg_array_i16(&append->columns[T_STATE], target->state);
    pg_array_bytes(&append->columns[T_CONTENT], gone ? STR("") : target->content);
    add_text_or_null(&append->columns[T_META], gone ? (struct str){NULL, 0} : target->meta);
    if (!gone && target->meta.p && target->mentions.n)
        encode_mentions(append, row, target->seq, target->mentions);
}

static void encode_changes(struct append *append, const struct seq_row *row)
{
    const struct seq_room_change *change = &row->change;

    for (size_t i = 0; i < row->member_count; i++) {
        pg_array_i64(&append->columns[M_ROOM], row->room_no);
        pg_array_bytes(&append->columns[M_ACCOUNT], row->members[i].account);
        pg_array_i16(&append->columns[M_ACTION], (int16_t)row->members[i].action);
        pg_array_i16(&append->columns[M_ROLE], (int16_t)row->members[i].role);
        pg_array_i64(&append->columns[M_AT], (int64_t)row->entry->at);
        pg_array_i64(&append->columns[M_SEQ], (int64_t)row->entry->seq);
        pg_array_i64(&append->columns[M_COUNTED], (int64_t)row->counted);
        pg_array_i64(&append->columns[M_MUTED], (int64_t)row->members[i].muted_until);
    }
    if (!change->present)
        return;
    pg_array_i64(&append->columns[R_ROOM], row->room_no);
    pg_array_i32(&append->columns[R_MEMBERS], change->members);
    add_text_or_null(&append->columns[R_NAME], change->name);
    add_text_or_null(&append->columns[R_NOTICE], change->notice);
    add_text_or_null(&append->columns[R_OWNER], change->owner);
    if (change->member_limit >= 0)
        pg_array_i32(&append->columns[R_LIMIT], change->member_limit);
    else
        pg_array_null(&append->columns[R_LIMIT]);
    add_text_or_null(&append->columns[R_EXTRA], change->extra);
    if (change->removed)
        pg_array_bool(&append->columns[R_REMOVED], true);
    else
        pg_array_null(&append->columns[R_REMOVED]);
    if (change->muted_until >= 0)
        pg_array_i64(&append->columns[R_MUTED], change->muted_until);
    else
        pg_array_null(&append->columns[R_MUTED]);
}

/* What a stranger wrote may be no text the database can hold. A dead letter must never be refused: it would stop all
 * behind it. */
static struct str harmless(struct str text, size_t most)
{
    if (text.n > most || (text.n && memchr(text.p, 0, text.n)) || !utf8_valid(text))
        return STR("");
    return text;
}

static void encode_dead_letter(struct append *append, struct str shard, const struct seq_row *row, uint64_t now_ms)
{
    const struct envelope *envelope = row->envelope;

    pg_array_bytes(&append->columns[O_SHARD], shard);
    pg_array_bytes(&append->columns[O_ROOM], harmless(envelope->room_id, 255));
    pg_array_uuid_or_null(&append->columns[O_ID], row->dead_id);
    pg_array_bytes(&append->columns[O_REASON], str_of(err_code(row->dead)));
    pg_array_bytes(&append->columns[O_TYPE], harmless(envelope->content_type, 255));
    pg_array_bytes(&append->columns[O_BODY], bytes_str(envelope->body));
    pg_array_i64(&append->columns[O_AT], (int64_t)now_ms);
}

void append_shard(struct append *append, struct str name, uint64_t epoch)
{
    pg_array_bytes(&append->columns[P_SHARD], name);
    pg_array_i64(&append->columns[P_EPOCH], (int64_t)epoch);
}

void append_row(struct append *append, struct str shard, const struct seq_row *row, uint64_t now_ms)
{
    if (row->entry) {
        encode_entry(append, row);
        encode_changes(append, row);
        if (target_seq_of(row))
            encode_target(append, row);
        else if (row->entry->type == ENTRY_MESSAGE && row->envelope->mentions.n)
            encode_mentions(append, row, row->entry->seq, row->envelope->mentions);
    }
    if (row->dead)
        encode_dead_letter(append, shard, row, now_ms);
}

const struct pg_params *append_params(struct append *append, struct str self)
{
    encode_heads(append);
    pg_params_reset(&append->params);
    pg_param_text(&append->params, self);
    for (size_t i = 0; i < COLUMNS; i++)
        pg_param_array(&append->params, &append->columns[i]);
    return &append->params;
}
