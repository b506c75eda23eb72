#include "sequencer_state.h"

#include <assert.h>
#include <inttypes.h>

#include "content.h"

/*
 * Edits, recalls and deletes: what becomes of a message, decided from the few facts of it that never change, and from
 * its state (docs/protocol.md#edit-recall-delete). The entry names the message; an edit's content stands in its meta,
 * so that a recall can take it away.
 */

enum { STATE_EDITED = 1, STATE_RECALLED = 2, STATE_DELETED = 3 };

static void show_target(struct seq_row *row, const struct known_target *target)
{
    char id[ULID_TEXT];

    ulid_write(id, target->id);
    text_begin(&row->text, "target_seq");
    buf_u64(&row->text, target->seq);
    text_string(&row->text, "message_id", (struct str){id, sizeof id});
    text_string(&row->text, "by", row->envelope->by);
}

/* --- edits --- */

/* As a message's meta is: sent_at, quote_seq, mentions. */
static void write_meta(struct buf *meta, const struct known_target *target, const struct content_facts *facts)
{
    if (target->sent_at != UINT64_MAX) {
        text_begin(meta, "sent_at");
        buf_u64(meta, target->sent_at);
    }
    if (facts->quote_seq) {
        text_begin(meta, "quote_seq");
        buf_u64(meta, facts->quote_seq);
    }
    if (facts->mentions.n) {
        text_begin(meta, "mentions");
        buf_add(meta, facts->mentions.p, facts->mentions.n);
    }
}

/* row->text: what the entry shows of the message │ the entry's meta │ the message's new meta. */
static enum entry_type edit(struct seq_row *row, const struct known_target *target, const struct content_facts *facts)
{
    const struct envelope *envelope = row->envelope;
    bool derives = str_is(target->kind, "rich_text");
    struct buf entry_meta = {0}, meta = {0};
    struct str content = {envelope->new_content.p, envelope->new_content.n};
    size_t cut, end;

    show_target(row, target);
    cut = row->text.n;
    text_begin(&entry_meta, "content");
    buf_add_str(&entry_meta, content);
    if (facts->mentions.n) {
        text_begin(&entry_meta, "mentions");
        buf_add(&entry_meta, facts->mentions.p, facts->mentions.n);
    }
    if (facts->quote_seq) {
        text_begin(&entry_meta, "quote_seq");
        buf_u64(&entry_meta, facts->quote_seq);
    }
    buf_add(&row->text, entry_meta.p, entry_meta.n);
    end = row->text.n;
    if (derives) {
        write_meta(&meta, target, facts);
        buf_add(&row->text, meta.p, meta.n);
    }
    row->content = (struct str){row->text.p, cut};
    row->meta = (struct str){row->text.p + cut, end - cut};
    row->target = (struct seq_target_change){.seq = target->seq, .state = STATE_EDITED, .content = content};
    if (derives) {
        row->target.meta = (struct str){row->text.p + end, meta.n};
        /* The last of the message's meta. */
        row->target.mentions = (struct str){row->text.p + row->text.n - facts->mentions.n, facts->mentions.n};
    }
    buf_clear(&entry_meta);
    buf_clear(&meta);
    return ENTRY_EDITED;
}

static enum entry_type check_new_content(struct sequencer *s, struct seq_row *row, const struct known_target *target)
{
    struct content_facts facts = {0};
    char role_why[RULES_WHY_MAX];
    enum entry_type type;
    const char *why;

    if (content_check(target->kind, row->envelope->new_content, &facts, &why))
        type = op_refuse(row, ERR_BAD_REQUEST, facts.field, "%s", why);
    else if (facts.quote_seq > row->room->last_seq)
        type =
            op_refuse(row, ERR_BAD_REQUEST, "content.quote_message_seq", "the quoted seq does not exist in the room");
    else if (facts.mentions_all && op_may(s, row, RULE_MENTION_ALL, role_why))
        type = op_refuse(row, ERR_FORBIDDEN, NULL, "%s", role_why);
    else
        type = edit(row, target, &facts);
    buf_clear(&facts.mentions);
    return type;
}

static enum entry_type refuse_muted(struct seq_row *row, uint64_t until)
{
    char why[RULES_WHY_MAX];

    rules_say_muted(until, why);
    op_refuse(row, ERR_FORBIDDEN, NULL, "%s", why);
    text_begin(&row->text, "until");
    buf_u64(&row->text, until);
    text_give(row, 0);
    return ENTRY_VOID;
}

static enum entry_type decide_edit(
    struct sequencer *s, struct seq_row *row, const struct known_target *target, uint64_t at_ms)
{
    const struct envelope *envelope = row->envelope;
    uint64_t muted = envelope->by.n ? member_muted(row->room, member_find(s, row->room, envelope->by), at_ms) : 0;

    if (muted)
        return refuse_muted(row, muted);
    if (!target)
        return op_refuse(row, ERR_NO_SUCH_MESSAGE, NULL, NULL);
    row->judged_by = target->seq;
    if (!envelope->by.n || !str_eq(envelope->by, target->sender))
        return op_refuse(row, ERR_FORBIDDEN, NULL, "only its sender edits a message");
    if (target->state >= STATE_RECALLED)
        return op_refuse(row, ERR_CONFLICT, NULL, "the message was %s: it cannot be edited",
            target->state == STATE_RECALLED ? "recalled" : "deleted");
    return check_new_content(s, row, target);
}

/* --- recalls, deletes --- */

/* The window is judged by when the call was made, not by how long its op was on the way. */
static bool in_time(
    const struct sequencer *s, const struct envelope *envelope, const struct known_target *target, uint64_t at_ms)
{
    uint64_t called_at = envelope->called_at ? envelope->called_at : at_ms;

    return called_at <= target->at || called_at - target->at <= s->settings.recall_window_ms;
}

/* state: what the message is to become. */
static enum entry_type decide_taking_back(
    struct sequencer *s, struct seq_row *row, const struct known_target *target, int16_t state, uint64_t at_ms)
{
    const struct envelope *envelope = row->envelope;
    const char *what = state == STATE_RECALLED ? "recall" : "delete";
    char why[RULES_WHY_MAX];

    if (!target)
        return op_refuse(row, ERR_NO_SUCH_MESSAGE, NULL, NULL);
    row->judged_by = target->seq;
    if (op_may(s, row, RULE_RECALL, why)) {
        if (!str_eq(envelope->by, target->sender))
            return op_refuse(row, ERR_FORBIDDEN, NULL, "%s", why);
        if (target->state < state && !in_time(s, envelope, target, at_ms))
            return op_refuse(row, ERR_TOO_LATE, NULL, "its sender may %s a message within %" PRIu64 " ms", what,
                s->settings.recall_window_ms);
    }
    if (target->state == state) { /* repeated: fine */
        text_give(row, 0);
        return ENTRY_VOID;
    }
    if (target->state == STATE_DELETED)
        return op_refuse(row, ERR_CONFLICT, NULL, "the message was deleted: it cannot be recalled");
    show_target(row, target);
    text_give(row, row->text.n);
    row->target = (struct seq_target_change){.seq = target->seq, .state = state};
    return state == STATE_RECALLED ? ENTRY_RECALLED : ENTRY_DELETED;
}

/* --- all --- */

enum entry_type change_message(struct sequencer *s, struct seq_row *row, uint64_t at_ms)
{
    const struct known_target *target = target_of(s, row->room, row->envelope);

    if (row->envelope->op == OP_MESSAGE_EDIT)
        return decide_edit(s, row, target, at_ms);
    return decide_taking_back(
        s, row, target, row->envelope->op == OP_MESSAGE_RECALL ? STATE_RECALLED : STATE_DELETED, at_ms);
}

void change_applied(struct sequencer *s, struct seq_row *row)
{
    struct known_target *target = row->target.seq ? target_find(s, row->room, row->target.seq) : NULL;

    if (!target)
        return;
    target->state = row->target.state;
    target->pins++;
}

void change_committed(struct sequencer *s, struct seq_row *row)
{
    struct known_target *target;

    if (!row->target.seq)
        return;
    target = target_find(s, row->room, row->target.seq);
    assert(target && target->pins);
    target->pins--;
    target->changed_asking = s->askings;
}

/* The last of the changes on their way holds; with none on its way the log is asked again. */
void change_undo(struct sequencer *s, struct seq_row *row)
{
    struct known_target *target = row->target.seq ? target_find(s, row->room, row->target.seq) : NULL;

    row->target = (struct seq_target_change){0};
    row->judged_by = 0;
    if (!target)
        return;
    for (struct list *at = row->room->rows.next; at != &row->room->rows; at = at->next) {
        const struct seq_row *other = list_entry(at, struct seq_row, room_link);

        if (other->target.seq == target->seq)
            target->state = other->target.state;
    }
    if (!--target->pins)
        target_free(s, target);
}
