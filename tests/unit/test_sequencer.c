/* Stories of the sequencer: what random histories meet too rarely, and each rule of roles, mutes, edits, recalls and
 * deletes once, in words. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "history/sequencer.h"

#define ROOM "s01.01KC46E0D7X8BQXSRB29FJP960"
#define WINDOW_MS 120000

/* --- the database: one room, as it is committed --- */

static struct {
    struct member {
        char account[16];
        enum role role;
        uint64_t muted_until;
    } members[16];
    struct message {
        uint64_t seq, at, sent_at;
        int16_t state;
        struct id128 id;
        char sender[16], kind[16], content[200], meta[200];
    } messages[64];
    char owner[16];
    size_t member_n, message_n;
    uint64_t last_seq, muted_until;
    int32_t limit;
    bool direct, removed;
} db;

static struct sequencer *sequencer;
static struct seq_needs needs;
static uint64_t now_ms, next_tag, next_id;
static struct {
    uint64_t shown_seq, sent_seq, settled_seq;
    size_t shown, transient;
    enum err settled, rejected;
    bool duplicate;
    char meta[400], why[200], entry[600];
} told;

static void keep(char *to, size_t size, struct str text)
{
    assert_true(text.n < size);
    snprintf(to, size, "%.*s", (int)text.n, text.p ? text.p : "");
}
#define KEEP(to, text) keep((to), sizeof(to), (text))

static void on_shown(void *arg, struct str room_id, struct entry *entry, bool durable)
{
    (void)arg, (void)room_id, (void)durable;
    told.shown++;
    told.shown_seq = entry->seq;
    KEEP(told.entry, entry_json(entry));
}

static void on_durable(void *arg, struct str room_id, int64_t room_no, uint64_t seq, uint64_t epoch)
{
    (void)arg, (void)room_id, (void)room_no, (void)seq, (void)epoch;
}

static void on_transient(void *arg, struct str room_id, struct str json)
{
    (void)arg, (void)room_id, (void)json;
    told.transient++;
}

static void on_rejected(void *arg, const struct envelope *envelope, enum err err, const char *why)
{
    (void)arg, (void)envelope;
    told.rejected = err;
    KEEP(told.why, str_of(why));
}

static void on_settled(
    void *arg, struct id128 message_id, enum err result, uint64_t seq, bool duplicate, struct str meta)
{
    (void)arg, (void)message_id;
    told.settled = result;
    told.settled_seq = seq;
    told.duplicate = duplicate;
    KEEP(told.meta, meta);
}

static void on_sent(void *arg, struct str room_id, int64_t room_no, struct str sender, uint64_t seq)
{
    (void)arg, (void)room_id, (void)room_no, (void)sender;
    told.sent_seq = seq;
}

static const struct sequencer_events events = {.shown = on_shown,
    .durable = on_durable,
    .transient = on_transient,
    .rejected = on_rejected,
    .settled = on_settled,
    .sent = on_sent};

static struct member *db_member(struct str account)
{
    for (size_t i = 0; i < db.member_n; i++)
        if (str_is(account, db.members[i].account))
            return &db.members[i];
    return NULL;
}

static struct message *db_message(uint64_t seq, struct id128 id)
{
    for (size_t i = 0; i < db.message_n; i++)
        if (seq ? db.messages[i].seq == seq : id128_eq(db.messages[i].id, id))
            return &db.messages[i];
    return NULL;
}

static void db_change_member(const struct seq_member_change *change)
{
    struct member *member = db_member(change->account);

    if (change->action == MEMBER_JOINS) {
        assert_null(member);
        member = &db.members[db.member_n++];
        *member = (struct member){.role = change->role};
        KEEP(member->account, change->account);
        return;
    }
    assert_non_null(member);
    if (change->action == MEMBER_LEAVES)
        *member = db.members[--db.member_n];
    else if (change->action == MEMBER_ROLE)
        member->role = change->role;
    else
        member->muted_until = change->muted_until;
}

static void db_append(const struct seq_row *row)
{
    db.last_seq = row->entry->seq;
    for (size_t i = 0; i < row->member_count; i++)
        db_change_member(&row->members[i]);
    if (row->change.present) {
        assert_int_equal(row->change.members, db.member_n);
        if (row->change.owner.p)
            KEEP(db.owner, row->change.owner);
        if (row->change.muted_until >= 0)
            db.muted_until = (uint64_t)row->change.muted_until;
        if (row->change.member_limit >= 0)
            db.limit = row->change.member_limit;
        db.removed |= row->change.removed;
    }
    if (row->entry->type == ENTRY_MESSAGE) {
        struct message *message = &db.messages[db.message_n++];

        *message = (struct message){
            row->entry->seq, row->entry->at, row->envelope->sent_at, 0, row->message_id, "", "", "", ""};
        KEEP(message->sender, row->envelope->sender);
        KEEP(message->kind, row->envelope->kind);
        KEEP(message->content, row->content);
        KEEP(message->meta, row->meta);
    }
    if (row->target.seq) {
        struct message *message = db_message(row->target.seq, (struct id128){{0}});

        assert_non_null(message);
        message->state = row->target.state;
        KEEP(message->content, row->target.content);
        if (row->target.state >= 2 || row->target.meta.p)
            KEEP(message->meta, row->target.meta);
    }
}

/* --- steps --- */

static void tell_member(const struct seq_needs *asked, const struct seq_need_member *need)
{
    const struct member *member = db_member(need->account);

    if (member)
        sequencer_fact_member(sequencer, asked, need->room_id, need->account, member->role, 1, member->muted_until);
}

static void tell_target(const struct seq_needs *asked, const struct seq_need_target *need)
{
    const struct message *message = db_message(need->seq, need->message_id);

    if (message)
        sequencer_fact_target(sequencer, asked,
            &(struct seq_target_fact){.room_id = need->room_id,
                .seq = message->seq,
                .at = message->at,
                .sent_at = message->sent_at,
                .message_id = message->id,
                .sender = str_of(message->sender),
                .kind = str_of(message->kind),
                .state = message->state});
}

/* All that the database says about one asking, as it stands now. */
static void answer(struct seq_needs *asked)
{
    for (size_t i = 0; i < asked->room_count; i++)
        sequencer_fact_room(sequencer, asked,
            &(struct seq_room_fact){.room_id = asked->rooms[i].room_id,
                .room_no = 1,
                .direct = db.direct,
                .removed = db.removed,
                .members = (int32_t)db.member_n,
                .member_limit = db.limit,
                .owner = str_of(db.owner),
                .last_seq = db.last_seq,
                .last_epoch = 1,
                .muted_until = db.muted_until});
    for (size_t i = 0; i < asked->member_count; i++)
        tell_member(asked, &asked->members[i]);
    for (size_t i = 0; i < asked->target_count; i++)
        tell_target(asked, &asked->targets[i]);
    sequencer_facts_done(sequencer, asked, true, now_ms);
    seq_needs_clear(asked);
}

static void decide_all(void)
{
    while (sequencer_take_needs(sequencer, &needs))
        answer(&needs);
}

static void commit_row(struct seq_row *row)
{
    if (row->entry)
        db_append(row);
    sequencer_committed(sequencer, row);
}

static void commit_all(void)
{
    struct seq_row *row;

    while ((row = sequencer_first_unsent(sequencer)))
        commit_row(row);
}

static void deliver(const char *body, bool op, bool redelivered)
{
    struct envelope *envelope;
    const char *why = "";

    if (envelope_read(&envelope, str_of(body),
            &(struct envelope_source){.from_op_exchange = op, .shard = STR("s01"), .content_max_bytes = 1024}, &why))
        fail_msg("%s: %s", body, why);
    sequencer_deliver(sequencer, ++next_tag, redelivered, envelope, now_ms);
}

/* A message: `more` are further members. Its client_msg_id is its number, from 1. */
static uint64_t said;
static void say_as(const char *sender, uint64_t number, const char *more, bool redelivered)
{
    char body[600];

    snprintf(body, sizeof body, "{\"room_id\":\"" ROOM "\",\"sender\":\"%s\",\"client_msg_id\":\"c%" PRIu64 "\",%s}",
        sender, number, more);
    told.rejected = ERR_OK;
    deliver(body, false, redelivered);
}

#define TEXT "\"kind\":\"text\",\"content\":\"hello\""
#define RICH(text) "\"kind\":\"rich_text\",\"content\":{\"parts\":[{\"type\":\"text\",\"body\":\"" text "\"}]}"

/* Said and decided, not committed. */
static void say_early(const char *sender, const char *more)
{
    say_as(sender, ++said, more, false);
    decide_all();
}

/* Said and committed; the seq. */
static uint64_t say(const char *sender, const char *more)
{
    say_early(sender, more);
    commit_all();
    return db.last_seq;
}

static struct id128 id_of(const char *sender, uint64_t number)
{
    char client[16];

    snprintf(client, sizeof client, "c%" PRIu64, number);
    return message_id_of(STR(ROOM), str_of(sender), str_of(client));
}

/* An op on its way, of `by` (NULL: the business itself); format: its name, then its members. */
static void start(const char *by, const char *name, const char *format, ...) PRINTF_LIKE(3, 4);
static char op_members[400], op_body[800];
static bool ops_come_again; /* as redelivered: the log is asked for their ids, and for all that they are decided by */
static void start_again(const char *by, const char *name, bool redelivered)
{
    snprintf(op_body, sizeof op_body,
        "{\"op\":\"%s\",\"op_id\":\"01KC46E0D7X8BQXSRB29%06" PRIu64 "\",\"room_id\":\"" ROOM "\",\"at\":%" PRIu64
        "%s%s%s%s%s}",
        name, next_id, now_ms, by ? ",\"by\":\"" : "", by ? by : "", by ? "\"" : "", *op_members ? "," : "",
        op_members);
    deliver(op_body, true, redelivered);
}
static void start(const char *by, const char *name, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(op_members, sizeof op_members, format, args);
    va_end(args);
    next_id++;
    told.settled = ERR_COUNT;
    told.meta[0] = '\0';
    start_again(by, name, ops_come_again);
}

static enum err finish(void)
{
    decide_all();
    commit_all();
    return told.settled;
}

#define OP(...) (start(__VA_ARGS__), finish())
#define EDIT(by, seq, text) OP(by, "message.edit", "\"target_seq\":%d,\"content\":\"" text "\"", (int)(seq))
#define RECALL(by, seq) OP(by, "message.recall", "\"target_seq\":%d", (int)(seq))
#define DELETE(by, seq) OP(by, "message.delete", "\"target_seq\":%d", (int)(seq))

static struct sequencer_settings settings;

/* Another owner of the shard: nothing is remembered. */
static void take_over(void)
{
    sequencer_free(sequencer);
    sequencer = sequencer_new(&settings, &events);
    next_tag = 0;
}

static void take_over_with_rules(const char *rules)
{
    const char *why;

    assert_true(rules_read(&settings.rules, rules, &why));
    take_over();
}

static int set_up(void **state)
{
    static const struct member members[] = {{"olga", ROLE_OWNER, 0}, {"adam", ROLE_ADMIN, 0}, {"anna", ROLE_ADMIN, 0},
        {"mia", ROLE_MEMBER, 0}, {"max", ROLE_MEMBER, 0}};

    (void)state;
    memset(&db, 0, sizeof db);
    memset(&told, 0, sizeof told);
    memcpy(db.members, members, sizeof members);
    db.member_n = countof(members);
    snprintf(db.owner, sizeof db.owner, "olga");
    now_ms = 1000000;
    said = next_id = 0;
    settings = (struct sequencer_settings){.shard = STR("s01"),
        .epoch = 1,
        .dedup_window = 100,
        .room_cache = 10,
        .member_cache = 100,
        .target_cache = 100,
        .recall_window_ms = WINDOW_MS};
    rules_default(&settings.rules);
    sequencer = NULL;
    take_over();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    sequencer_free(sequencer);
    return 0;
}

#define assert_meta(text) assert_string_equal(told.meta, text)
#define assert_result(code) assert_ptr_equal(strstr(told.meta, "\"result\":\"" code "\""), told.meta)

static struct message *message(uint64_t seq)
{
    return db_message(seq, (struct id128){{0}});
}

/* --- lives of a room --- */

static void deliver_plain(bool redelivered)
{
    deliver("{\"room_id\":\"" ROOM
            "\",\"sender\":\"@system\",\"kind\":\"text\",\"content\":\"x\",\"client_msg_id\":\"c1\"}",
        false, redelivered);
}

static void tell_room(const struct seq_needs *asked, uint64_t last_seq)
{
    sequencer_fact_room(
        sequencer, asked, &(struct seq_room_fact){.room_id = STR(ROOM), .room_no = 1, .last_seq = last_seq});
}

static void an_answer_from_an_earlier_life_of_a_room_is_not_believed(void **state)
{
    struct seq_needs before = {0}, after = {0};

    (void)state;
    deliver_plain(false);
    assert_true(sequencer_take_needs(sequencer, &before));
    /* forgets the parked delivery and its room; the first answer is still on its way */
    sequencer_channel_lost(sequencer);
    next_tag = 0;
    deliver_plain(true);
    assert_true(sequencer_take_needs(sequencer, &after));

    tell_room(&before, 5);
    sequencer_facts_done(sequencer, &before, true, 1000);
    tell_room(&after, 8);
    sequencer_facts_done(sequencer, &after, true, 1000);

    assert_int_equal(told.shown_seq, 9);
    seq_needs_clear(&before);
    seq_needs_clear(&after);
}

static void what_was_asked_before_a_room_was_read_anew_is_not_believed_of_its_members(void **state)
{
    struct seq_needs before = {0};

    (void)state;
    say("mia", TEXT);
    say_as("max", ++said, TEXT, false); /* max is asked for … */
    assert_true(sequencer_take_needs(sequencer, &before));
    sequencer_channel_lost(sequencer); /* … by a delivery that is forgotten, and so is the room in the end */
    next_tag = 0;
    OP(NULL, "member.remove", "\"account_ids\":[\"max\"]");
    start(NULL, "room.update", "\"name\":\"m\"");
    decide_all();
    sequencer_row_refused(sequencer, sequencer_first_unsent(sequencer)); /* taken back: the room is read anew */
    commit_all();
    say("mia", TEXT);

    sequencer_fact_member(sequencer, &before, STR(ROOM), STR("max"), ROLE_MEMBER, 1, 0);
    say("max", TEXT);
    assert_int_equal(told.rejected, ERR_NOT_MEMBER);
    seq_needs_clear(&before);
}

/* --- edits --- */

static void a_message_is_edited_by_its_sender_only(void **state)
{
    uint64_t seq = say("mia", TEXT);

    (void)state;
    assert_int_equal(EDIT("max", seq, "other"), ERR_FORBIDDEN);
    assert_meta("\"result\":\"forbidden\",\"why\":\"only its sender edits a message\"");
    assert_int_equal(EDIT("olga", seq, "other"), ERR_FORBIDDEN);
    assert_int_equal(EDIT(NULL, seq, "other"), ERR_FORBIDDEN);
    assert_string_equal(message(seq)->content, "\"hello\"");
    assert_int_equal(EDIT("mia", seq, "mine"), ERR_OK);
    assert_string_equal(message(seq)->content, "\"mine\"");
    assert_int_equal(message(seq)->state, 1);
}

static void an_edit_is_an_entry_that_names_its_message(void **state)
{
    uint64_t seq = say("mia", TEXT);
    char id[ULID_TEXT + 1] = "", expected[300];

    (void)state;
    ulid_write(id, id_of("mia", said));
    assert_int_equal(OP("mia", "message.edit", "\"target_id\":\"%s\",\"content\":{\"body\":\"b\"}", id), ERR_OK);
    snprintf(expected, sizeof expected,
        "{\"type\":\"message.edited\",\"room_id\":\"" ROOM "\",\"epoch\":1,\"seq\":%d,\"at\":1000000,\"target_seq\":%d,"
        "\"message_id\":\"%s\",\"by\":\"mia\",\"content\":{\"body\":\"b\"}}",
        (int)seq + 1, (int)seq, id);
    assert_string_equal(told.entry, expected);
    assert_meta(""); /* what an edit says is no result */
    assert_int_equal(told.settled_seq, seq + 1);
}

static void the_later_of_two_edits_stays(void **state)
{
    uint64_t seq = say("mia", TEXT);

    (void)state;
    start("mia", "message.edit", "\"target_seq\":%d,\"content\":\"one\"", (int)seq);
    start("mia", "message.edit", "\"target_seq\":%d,\"content\":\"two\"", (int)seq);
    assert_int_equal(finish(), ERR_OK);
    assert_string_equal(message(seq)->content, "\"two\"");
    assert_int_equal(db.last_seq, seq + 2);
}

static void what_is_no_message_of_the_room_cannot_be_changed(void **state)
{
    uint64_t seq = say("mia", TEXT);

    (void)state;
    assert_int_equal(EDIT("mia", seq + 7, "x"), ERR_NO_SUCH_MESSAGE);
    assert_result("no_such_message");
    assert_int_equal(EDIT("mia", seq + 1, "x"), ERR_NO_SUCH_MESSAGE); /* the entry of the edit before */
    assert_int_equal(OP("mia", "message.recall", "\"target_id\":\"01KC46E0D7X8BQXSRB29FJP960\""), ERR_NO_SUCH_MESSAGE);
    assert_int_equal(RECALL(NULL, seq + 7), ERR_NO_SUCH_MESSAGE);
}

static void a_recalled_or_deleted_message_is_not_edited(void **state)
{
    uint64_t recalled = say("mia", TEXT), deleted = say("mia", TEXT);

    (void)state;
    assert_int_equal(RECALL("mia", recalled), ERR_OK);
    assert_int_equal(DELETE("mia", deleted), ERR_OK);
    for (int owner = 0; owner < 2; owner++) {
        assert_int_equal(EDIT("mia", recalled, "x"), ERR_CONFLICT);
        assert_int_equal(EDIT("mia", deleted, "x"), ERR_CONFLICT);
        assert_meta("\"result\":\"conflict\",\"why\":\"the message was deleted: it cannot be edited\"");
        take_over(); /* and by the log's word the same */
    }
}

static void new_content_must_fit_the_kind_of_the_message(void **state)
{
    uint64_t seq = say("mia", RICH("hi"));

    (void)state;
    assert_int_equal(EDIT("mia", seq, "a plain text"), ERR_BAD_REQUEST);
    assert_non_null(strstr(told.meta, "\"field\":\"content\""));
    assert_int_equal(OP("mia", "message.edit",
                         "\"target_seq\":%d,\"content\":{\"parts\":[{\"type\":\"text\",\"body\":\"a\"},{}]}", (int)seq),
        ERR_BAD_REQUEST);
    assert_non_null(strstr(told.meta, "\"field\":\"content.parts[1].type\""));
    assert_int_equal(
        OP("mia", "message.edit", "\"target_seq\":%d,\"content\":{\"parts\":[],\"quote_message_seq\":99}", (int)seq),
        ERR_BAD_REQUEST);
    assert_non_null(strstr(told.meta, "\"field\":\"content.quote_message_seq\""));
}

static void mentions_and_quote_of_a_rich_text_are_derived_anew(void **state)
{
    uint64_t seq = say("mia", RICH("hi") ",\"sent_at\":77,\"mentions\":[\"max\"]");

    (void)state;
    assert_string_equal(message(seq)->meta, "\"sent_at\":77,\"mentions\":[\"max\"]");
    take_over(); /* sent_at comes from the log as well */
    assert_int_equal(OP("mia", "message.edit",
                         "\"target_seq\":%d,\"content\":{\"parts\":[{\"type\":\"mention\",\"user_id\":\"anna\"}],"
                         "\"quote_message_seq\":1}",
                         (int)seq),
        ERR_OK);
    assert_string_equal(message(seq)->meta, "\"sent_at\":77,\"quote_seq\":1,\"mentions\":[\"anna\"]");
    assert_non_null(strstr(told.entry, "},\"mentions\":[\"anna\"],\"quote_seq\":1}"));
    assert_int_equal(OP("mia", "message.edit", "\"target_seq\":%d,\"content\":{\"parts\":[]}", (int)seq), ERR_OK);
    assert_string_equal(message(seq)->meta, "\"sent_at\":77");
}

static void a_rich_text_that_mentions_nobody_any_more_has_an_empty_meta(void **state)
{
    uint64_t seq = say("mia", RICH("hi") ",\"mentions\":[\"max\"]");

    (void)state;
    assert_int_equal(OP("mia", "message.edit", "\"target_seq\":%d,\"content\":{\"parts\":[]}", (int)seq), ERR_OK);
    assert_string_equal(message(seq)->meta, "");
}

static void other_kinds_keep_mentions_and_quote(void **state)
{
    uint64_t seq = say("mia", TEXT ",\"mentions\":[\"max\"]");

    (void)state;
    assert_int_equal(EDIT("mia", seq, "new"), ERR_OK);
    assert_string_equal(message(seq)->meta, "\"mentions\":[\"max\"]");
}

static void a_message_that_is_not_committed_yet_is_edited(void **state)
{
    char id[ULID_TEXT + 1] = "";
    size_t shown;

    (void)state;
    say_early("mia", TEXT);
    ulid_write(id, id_of("mia", said));
    start("mia", "message.edit", "\"target_id\":\"%s\",\"content\":\"new\"", id);
    start("mia", "message.edit", "\"target_seq\":1,\"content\":\"newer\"");
    shown = told.shown;
    assert_int_equal(shown, 1); /* the message, early; ops are not */
    assert_int_equal(finish(), ERR_OK);
    assert_string_equal(message(1)->content, "\"newer\"");
}

static void a_message_of_the_same_parked_room_is_edited(void **state)
{
    char id[ULID_TEXT + 1] = "";

    (void)state;
    say_as("mia", ++said, TEXT, false); /* nothing is known yet: both wait for the same answer */
    ulid_write(id, id_of("mia", said));
    start("mia", "message.edit", "\"target_id\":\"%s\",\"content\":\"new\"", id);
    assert_int_equal(finish(), ERR_OK);
    assert_string_equal(message(1)->content, "\"new\"");
}

static void what_was_forgotten_of_a_message_meanwhile_is_asked_again(void **state)
{
    uint64_t first = say("mia", TEXT);

    (void)state;
    assert_int_equal(EDIT("mia", first, "one"), ERR_OK);
    for (int i = 0; i < 30; i++)
        assert_int_equal(EDIT("mia", say("mia", TEXT), "x"), ERR_OK);
    settings.target_cache = 0;
    take_over();
    for (uint64_t i = 0; i < 10; i++) {
        start("mia", "message.recall", "\"target_seq\":%d", (int)(first + 2 * i));
        sequencer_trim(sequencer);
        decide_all();
        sequencer_trim(sequencer); /* above its bound: but not what is on its way */
        commit_all();
        assert_int_equal(told.settled, ERR_OK);
        sequencer_trim(sequencer);
    }
    assert_int_equal(EDIT("mia", first, "late"), ERR_CONFLICT);
}

static void what_was_forgotten_is_newer_than_an_answer_on_its_way(void **state)
{
    struct seq_needs before = {0};
    uint64_t seq = say("mia", TEXT);

    (void)state;
    settings.target_cache = 0;
    take_over();
    start("mia", "message.recall", "\"target_seq\":%d", (int)seq);
    decide_all();
    ops_come_again = true;
    start("mia", "message.edit", "\"target_seq\":%d,\"content\":\"x\"", (int)seq);
    ops_come_again = false;
    assert_true(sequencer_take_needs(sequencer, &before));
    /* The database reads: the message is as it was said. */
    tell_target(&before, &before.targets[0]); /* memory is newer: it knows of the recall */
    commit_all();
    sequencer_trim(sequencer); /* and forgets */
    sequencer_fact_target(sequencer, &before,
        &(struct seq_target_fact){.room_id = STR(ROOM),
            .seq = seq,
            .at = now_ms,
            .message_id = message(seq)->id,
            .sender = STR("mia"),
            .kind = STR("text")});
    sequencer_facts_done(sequencer, &before, true, now_ms);
    seq_needs_clear(&before);
    assert_int_equal(finish(), ERR_CONFLICT);
}

/* --- recalls, deletes --- */

static void a_recall_takes_everything_away(void **state)
{
    uint64_t seq = say("mia", TEXT ",\"mentions\":[\"max\"]");

    (void)state;
    assert_int_equal(RECALL("mia", seq), ERR_OK);
    assert_non_null(strstr(told.entry, "{\"type\":\"message.recalled\""));
    assert_null(strstr(told.entry, "content"));
    assert_int_equal(message(seq)->state, 2);
    assert_string_equal(message(seq)->content, "");
    assert_string_equal(message(seq)->meta, "");
}

static void a_sender_recalls_within_the_window_and_whoever_may_at_any_time(void **state)
{
    uint64_t first = say("mia", TEXT), second = say("mia", TEXT), third = say("mia", TEXT);

    (void)state;
    now_ms += WINDOW_MS;
    assert_int_equal(RECALL("mia", first), ERR_OK);
    now_ms++;
    assert_int_equal(RECALL("mia", second), ERR_TOO_LATE);
    assert_meta("\"result\":\"too_late\",\"why\":\"its sender may recall a message within 120000 ms\"");
    assert_int_equal(DELETE("mia", second), ERR_TOO_LATE);
    assert_int_equal(RECALL("max", second), ERR_FORBIDDEN);
    assert_meta("\"result\":\"forbidden\",\"why\":\"to recall or delete what others said takes the role admin here\"");
    assert_int_equal(RECALL("adam", second), ERR_OK);
    assert_int_equal(RECALL(NULL, third), ERR_OK);
}

static void the_window_is_judged_by_when_the_call_was_made(void **state)
{
    uint64_t seq = say("mia", TEXT);

    (void)state;
    now_ms += WINDOW_MS;
    start("mia", "message.recall", "\"target_seq\":%d", (int)seq); /* says when it was called, and waits for facts */
    now_ms += WINDOW_MS;
    assert_int_equal(finish(), ERR_OK);
}

static void a_recall_is_repeated_without_harm_and_a_delete_goes_further(void **state)
{
    uint64_t seq = say("mia", TEXT);

    (void)state;
    assert_int_equal(RECALL("mia", seq), ERR_OK);
    now_ms += 10 * WINDOW_MS;
    assert_int_equal(RECALL("mia", seq), ERR_OK); /* also when it is late: it is recalled */
    assert_non_null(strstr(told.entry, "\"type\":\"void\""));
    assert_meta("");
    assert_int_equal(DELETE("mia", seq), ERR_TOO_LATE);
    assert_int_equal(DELETE("adam", seq), ERR_OK);
    assert_non_null(strstr(told.entry, "message.deleted"));
    assert_int_equal(message(seq)->state, 3);
    assert_int_equal(DELETE("adam", seq), ERR_OK);
    assert_non_null(strstr(told.entry, "\"type\":\"void\""));
    assert_int_equal(RECALL("adam", seq), ERR_CONFLICT);
}

static void who_left_changes_nothing(void **state)
{
    uint64_t seq = say("mia", TEXT);

    (void)state;
    assert_int_equal(OP("mia", "member.remove", "\"account_ids\":[\"mia\"]"), ERR_OK);
    assert_int_equal(EDIT("mia", seq, "x"), ERR_NOT_MEMBER);
    assert_int_equal(RECALL("mia", seq), ERR_NOT_MEMBER);
    assert_meta("\"result\":\"not_member\"");
}

/* --- mutes --- */

static void a_muted_account_neither_speaks_nor_edits_but_takes_back(void **state)
{
    uint64_t seq = say("mia", TEXT);

    (void)state;
    assert_int_equal(OP("adam", "room.mute", "\"account_ids\":[\"mia\",\"zoe\"],\"until\":2000000"), ERR_OK);
    assert_meta("\"muted\":[\"mia\"],\"absent\":[\"zoe\"]");
    assert_non_null(strstr(told.entry, "\"type\":\"member.updated\",\"room_id\":\"" ROOM
                                       "\",\"epoch\":1,\"seq\":2,\"at\":1000000,\"account_ids\":[\"mia\"],"
                                       "\"muted_until\":2000000,\"by\":\"adam\"}"));
    say("mia", TEXT);
    assert_int_equal(told.rejected, ERR_FORBIDDEN);
    assert_string_equal(told.why, "muted in this room until 1970-01-01T00:33:20Z (2000000)");
    assert_int_equal(EDIT("mia", seq, "x"), ERR_FORBIDDEN);
    assert_meta("\"result\":\"forbidden\",\"why\":\"muted in this room until 1970-01-01T00:33:20Z (2000000)\","
                "\"until\":2000000");
    assert_int_equal(RECALL("mia", seq), ERR_OK);
    say("max", TEXT);
    assert_int_equal(told.rejected, ERR_OK);
    now_ms = 2000000;
    say("mia", TEXT);
    assert_int_equal(told.rejected, ERR_OK);
}

static void a_mute_holds_from_its_place_in_the_room_on_and_for_the_next_owner(void **state)
{
    (void)state;
    say("mia", TEXT);
    start("adam", "room.mute", "\"account_ids\":[\"mia\"],\"until\":2000000");
    decide_all();
    say_early("mia", TEXT); /* it is not committed yet, and holds */
    assert_int_equal(told.rejected, ERR_FORBIDDEN);
    commit_all();
    take_over();
    say("mia", TEXT);
    assert_int_equal(told.rejected, ERR_FORBIDDEN);
    assert_int_equal(OP("adam", "room.mute", "\"account_ids\":[\"mia\"],\"until\":0"), ERR_OK);
    say("mia", TEXT);
    assert_int_equal(told.rejected, ERR_OK);
}

static void a_muted_room_is_open_to_admins_and_the_business(void **state)
{
    (void)state;
    for (int owner = 0; owner < 2; owner++) {
        assert_int_equal(OP("adam", "room.mute", "\"for_ms\":5000"), ERR_OK);
        assert_meta("");
        say("mia", TEXT);
        assert_int_equal(told.rejected, ERR_FORBIDDEN);
        say("adam", TEXT);
        assert_int_equal(told.rejected, ERR_OK);
        say("@system", TEXT);
        assert_int_equal(told.rejected, ERR_OK);
        take_over();
    }
    assert_int_equal(db.muted_until, 1005000);
    assert_int_equal(OP("adam", "room.mute", "\"until\":0"), ERR_OK);
    assert_non_null(strstr(told.entry, "room.updated"));
    assert_int_equal(OP("adam", "room.mute", "\"until\":0"), ERR_OK); /* nothing new */
    assert_non_null(strstr(told.entry, "\"type\":\"void\""));
    say("mia", TEXT);
    assert_int_equal(told.rejected, ERR_OK);
}

static void a_change_of_members_leaves_the_mute_of_the_room(void **state)
{
    (void)state;
    assert_int_equal(OP("adam", "room.mute", "\"until\":2000000"), ERR_OK);
    assert_int_equal(OP("adam", "member.add", "\"account_ids\":[\"zoe\"]"), ERR_OK);
    say("zoe", TEXT);
    assert_int_equal(told.rejected, ERR_FORBIDDEN);
    assert_int_equal(db.muted_until, 2000000);
}

static void who_comes_back_may_speak(void **state)
{
    (void)state;
    assert_int_equal(OP("adam", "room.mute", "\"account_ids\":[\"mia\"],\"until\":2000000"), ERR_OK);
    start("adam", "member.remove", "\"account_ids\":[\"mia\"]");
    start("adam", "member.add", "\"account_ids\":[\"mia\"]");
    assert_int_equal(finish(), ERR_OK);
    say("mia", TEXT);
    assert_int_equal(told.rejected, ERR_OK);
}

static void a_transient_message_of_a_muted_account_is_dropped(void **state)
{
    (void)state;
    say("mia", TEXT ",\"transient\":true");
    assert_int_equal(told.transient, 1);
    assert_int_equal(OP("adam", "room.mute", "\"account_ids\":[\"mia\"],\"until\":2000000"), ERR_OK);
    say("mia", TEXT ",\"transient\":true");
    assert_int_equal(told.rejected, ERR_FORBIDDEN);
    assert_int_equal(told.transient, 1);
    assert_int_equal(sequencer_counters(sequencer).dead_total, 0);
    assert_int_equal(sequencer_take_ack(sequencer), next_tag); /* and settled */
}

static void nobody_mutes_or_removes_who_has_no_lower_role(void **state)
{
    (void)state;
    assert_int_equal(OP("mia", "room.mute", "\"until\":2000000"), ERR_FORBIDDEN);
    assert_meta("\"result\":\"forbidden\",\"why\":\"to mute takes the role admin here\"");
    assert_int_equal(OP("adam", "room.mute", "\"account_ids\":[\"mia\",\"anna\"],\"until\":2000000"), ERR_FORBIDDEN);
    assert_int_equal(OP("adam", "room.mute", "\"account_ids\":[\"olga\"],\"until\":2000000"), ERR_FORBIDDEN);
    assert_int_equal(OP("adam", "member.remove", "\"account_ids\":[\"mia\",\"anna\"]"), ERR_FORBIDDEN);
    assert_int_equal(OP("mia", "member.remove", "\"account_ids\":[\"max\"]"), ERR_FORBIDDEN);
    assert_int_equal(db.member_n, 5);
    assert_int_equal(db_member(STR("mia"))->muted_until, 0);
    assert_int_equal(OP("olga", "room.mute", "\"account_ids\":[\"anna\"],\"until\":2000000"), ERR_OK);
    assert_int_equal(OP(NULL, "room.mute", "\"account_ids\":[\"olga\"],\"until\":2000000"), ERR_OK);
    assert_int_equal(OP("adam", "member.remove", "\"account_ids\":[\"mia\"]"), ERR_OK);
}

/* --- roles --- */

static void each_act_takes_its_role(void **state)
{
    static const struct {
        const char *by, *name, *members;
        enum err result;
    } acts[] = {
        {"mia", "member.add", "\"account_ids\":[\"zoe\"]", ERR_FORBIDDEN},
        {"adam", "member.add", "\"account_ids\":[\"zoe\"]", ERR_OK},
        {"adam", "member.add", "\"account_ids\":[\"zac\"],\"role\":\"admin\"", ERR_FORBIDDEN},
        {"olga", "member.add", "\"account_ids\":[\"zac\"],\"role\":\"admin\"", ERR_OK},
        {"mia", "room.update", "\"name\":\"n\"", ERR_FORBIDDEN},
        {"mia", "room.update", "\"extra\":{}", ERR_FORBIDDEN},
        {"mia", "room.update", "\"member_limit\":9", ERR_FORBIDDEN},
        {"mia", "room.update", "\"notice\":\"n\"", ERR_FORBIDDEN},
        {"adam", "room.update", "\"name\":\"n\",\"notice\":\"n\",\"extra\":{},\"member_limit\":9", ERR_OK},
        {"adam", "room.update", "\"name\":\"n\",\"owner\":\"adam\"", ERR_FORBIDDEN},
        {"olga", "room.update", "\"owner\":\"nobody\"", ERR_NOT_MEMBER},
        {"adam", "member.role", "\"account_ids\":[\"mia\"],\"role\":\"admin\"", ERR_FORBIDDEN},
        {"olga", "member.role", "\"account_ids\":[\"mia\",\"x\"],\"role\":\"admin\"", ERR_OK},
        {"olga", "member.role", "\"account_ids\":[\"olga\"],\"role\":\"member\"", ERR_FORBIDDEN},
        {NULL, "member.role", "\"account_ids\":[\"max\",\"olga\"],\"role\":\"admin\"", ERR_FORBIDDEN},
        {"zed", "member.add", "\"account_ids\":[\"zed\"]", ERR_NOT_MEMBER},
        {"adam", "room.remove", "", ERR_FORBIDDEN},
        {"olga", "room.remove", "", ERR_OK},
        {"olga", "room.remove", "", ERR_OK},
        {"olga", "room.mute", "\"until\":0", ERR_ROOM_GONE},
    };

    (void)state;
    for (size_t i = 0; i < countof(acts); i++)
        if (OP(acts[i].by, acts[i].name, "%s", acts[i].members) != acts[i].result)
            fail_msg("%zu: %s %s %s", i, acts[i].name, err_code(told.settled), told.meta);
}

static void a_role_is_an_entry_and_an_answer(void **state)
{
    (void)state;
    assert_int_equal(OP("olga", "member.role", "\"account_ids\":[\"mia\",\"zoe\"],\"role\":\"admin\""), ERR_OK);
    assert_meta("\"changed\":[\"mia\"],\"absent\":[\"zoe\"]");
    assert_non_null(strstr(told.entry, "\"account_ids\":[\"mia\"],\"role\":\"admin\",\"by\":\"olga\"}"));
    assert_int_equal(OP("olga", "member.role", "\"account_ids\":[\"mia\"],\"role\":\"admin\""), ERR_OK);
    assert_non_null(strstr(told.entry, "\"type\":\"void\"")); /* nothing new */
    assert_meta("\"changed\":[\"mia\"],\"absent\":[]");
}

static void the_owner_leaves_last_or_hands_over(void **state)
{
    (void)state;
    assert_int_equal(OP("olga", "member.remove", "\"account_ids\":[\"olga\"]"), ERR_FORBIDDEN);
    assert_non_null(strstr(told.meta, "hand it over first"));
    start("olga", "room.update", "\"owner\":\"mia\"");
    start("olga", "member.remove", "\"account_ids\":[\"olga\"]");
    assert_int_equal(finish(), ERR_OK);
    assert_string_equal(db.owner, "mia");
    assert_int_equal(OP("mia", "member.remove", "\"account_ids\":[\"adam\",\"anna\",\"max\"]"), ERR_OK);
    assert_int_equal(OP("mia", "member.remove", "\"account_ids\":[\"mia\"]"), ERR_OK);
    assert_int_equal(db.member_n, 0);
    assert_string_equal(db.owner, "");
}

static void who_was_owner_is_not_taken_for_it_while_the_change_is_on_its_way(void **state)
{
    (void)state;
    start(NULL, "room.update", "\"owner\":\"mia\""); /* olga is not asked for: it needs no fact of her */
    decide_all();
    assert_int_equal(OP("olga", "room.remove", "%s", ""), ERR_FORBIDDEN);
    assert_int_equal(OP("olga", "member.role", "\"account_ids\":[\"max\"],\"role\":\"admin\""), ERR_FORBIDDEN);
    assert_int_equal(db_member(STR("olga"))->role, ROLE_MEMBER);
}

static void in_a_direct_room_only_the_business_mutes(void **state)
{
    (void)state;
    db.direct = true;
    db.member_n = 2;
    db.members[0].role = db.members[1].role = ROLE_MEMBER;
    db.owner[0] = '\0';
    assert_int_equal(OP("olga", "room.mute", "\"account_ids\":[\"adam\"],\"until\":2000000"), ERR_FORBIDDEN);
    assert_int_equal(OP("olga", "member.remove", "\"account_ids\":[\"olga\"]"), ERR_FORBIDDEN);
    assert_int_equal(OP(NULL, "member.role", "\"account_ids\":[\"olga\"],\"role\":\"admin\""), ERR_FORBIDDEN);
    assert_int_equal(OP(NULL, "member.add", "\"account_ids\":[\"x\"]"), ERR_FORBIDDEN);
    assert_int_equal(OP(NULL, "room.update", "\"owner\":\"olga\""), ERR_FORBIDDEN);
    assert_int_equal(OP(NULL, "room.mute", "\"account_ids\":[\"adam\"],\"until\":2000000"), ERR_OK);
    say("adam", TEXT);
    assert_int_equal(told.rejected, ERR_FORBIDDEN);
}

static void to_mention_all_takes_its_role(void **state)
{
    uint64_t seq;

    (void)state;
    say("mia", TEXT ",\"mentions\":[\"@all\"]");
    assert_int_equal(told.rejected, ERR_OK);
    take_over_with_rules("mention_all=admin");
    say("mia", TEXT ",\"mentions\":[\"@all\"]");
    assert_int_equal(told.rejected, ERR_FORBIDDEN);
    assert_string_equal(told.why, "to mention all takes the role admin here");
    say("adam", TEXT ",\"mentions\":[\"@all\"]");
    assert_int_equal(told.rejected, ERR_OK);
    say("@system", TEXT ",\"mentions\":[\"@all\"]");
    assert_int_equal(told.rejected, ERR_OK);
    seq = say("mia", RICH("hi"));
    assert_int_equal(
        OP("mia", "message.edit",
            "\"target_seq\":%d,\"content\":{\"parts\":[{\"type\":\"mention\",\"mention_type\":\"all\"}]}", (int)seq),
        ERR_FORBIDDEN);
}

static void role_rules_say_who_may(void **state)
{
    (void)state;
    take_over_with_rules("add=member,remove=owner,mute=member");
    assert_int_equal(OP("mia", "member.add", "\"account_ids\":[\"zoe\"]"), ERR_OK);
    assert_int_equal(OP("adam", "member.remove", "\"account_ids\":[\"zoe\"]"), ERR_FORBIDDEN);
    assert_int_equal(OP("olga", "member.remove", "\"account_ids\":[\"zoe\"]"), ERR_OK);
    assert_int_equal(OP("mia", "room.mute", "\"until\":5"), ERR_OK);
    db.direct = true;
    take_over();
    assert_int_equal(OP("mia", "room.mute", "\"until\":6"), ERR_FORBIDDEN);
}

/* --- repeats, and what is taken back --- */

static void the_void_of_a_refused_op_is_known_when_it_comes_again(void **state)
{
    uint64_t seq = say("mia", TEXT), at;

    (void)state;
    assert_int_equal(EDIT("max", seq, "x"), ERR_FORBIDDEN);
    at = told.settled_seq;
    start_again("max", "message.edit", true);
    finish();
    assert_true(told.duplicate);
    assert_int_equal(told.settled_seq, at);
    assert_int_equal(db.last_seq, at); /* no second entry */
}

static void a_sent_message_is_told_when_it_is_committed(void **state)
{
    (void)state;
    say_early("mia", TEXT);
    assert_int_equal(told.sent_seq, 0);
    commit_all();
    assert_int_equal(told.sent_seq, 1);
    say("@system", TEXT);
    assert_int_equal(told.sent_seq, 1);
}

static struct seq_row *row_at(uint64_t seq)
{
    struct seq_row *row = sequencer_first_unsent(sequencer);

    while (row && !(row->entry && row->entry->seq == seq))
        row = sequencer_next_row(sequencer, row);
    assert_non_null(row);
    return row;
}

static void an_edit_of_a_late_duplicate_edits_nothing(void **state)
{
    uint64_t first = say("mia", TEXT), seq = first + 1;
    char id[ULID_TEXT + 1] = "";
    const struct seq_row *row;
    struct seq_room_view view;

    (void)state;
    ulid_write(id, id_of("mia", said));
    assert_int_equal(RECALL("mia", first), ERR_OK);
    take_over();
    seq = db.last_seq + 1;
    say_as("mia", said, TEXT, false); /* published twice: memory does not know it */
    start("mia", "message.edit", "\"target_seq\":%d,\"content\":\"back again\"", (int)seq);
    start("mia", "message.recall", "\"target_seq\":%d", (int)seq);
    start("mia", "message.recall", "\"target_seq\":%d", (int)seq);
    decide_all();
    assert_true(sequencer_find_room(sequencer, str_of(ROOM), &view));
    assert_int_equal(view.taken_back_seq, 0);
    sequencer_late_duplicate(sequencer, row_at(seq), first, row_at(seq)->envelope->hash);
    assert_true(sequencer_find_room(sequencer, str_of(ROOM), &view));
    assert_int_equal(view.taken_back_seq, seq); /* the ops behind it had not been shown */
    for (uint64_t i = seq; i <= seq + 3; i++) {
        row = row_at(i);
        assert_int_equal(row->entry->type, ENTRY_VOID);
        assert_int_equal(row->target.seq, 0);
        assert_int_equal(row->result, i == seq ? ERR_OK : ERR_NO_SUCH_MESSAGE);
        assert_true(i == seq ? row->of_seq == first : !id128_is_zero(row->message_id));
    }
    commit_all();
    assert_non_null(strstr(told.meta, "this was a repeat of the message at seq 1"));
    assert_int_equal(message(first)->state, 2);
    assert_string_equal(message(first)->content, "");
    assert_int_equal(EDIT("mia", seq, "x"), ERR_NO_SUCH_MESSAGE); /* nor is it remembered */
    assert_int_equal(OP("mia", "message.edit", "\"target_id\":\"%s\",\"content\":\"x\"", id), ERR_CONFLICT);
}

static void a_recall_that_is_taken_back_leaves_the_message_as_it_was(void **state)
{
    uint64_t seq = say("mia", TEXT);

    (void)state;
    start("mia", "message.edit", "\"target_seq\":%d,\"content\":\"one\"", (int)seq);
    start("mia", "message.recall", "\"target_seq\":%d", (int)seq);
    decide_all();
    sequencer_row_refused(sequencer, row_at(seq + 2)); /* the edit is still on its way */
    start("mia", "message.edit", "\"target_seq\":%d,\"content\":\"two\"", (int)seq);
    assert_int_equal(finish(), ERR_OK);
    assert_string_equal(message(seq)->content, "\"two\"");
    start("mia", "message.recall", "\"target_seq\":%d", (int)seq);
    decide_all();
    sequencer_row_refused(sequencer, row_at(seq + 4)); /* alone */
    commit_all();
    assert_int_equal(EDIT("mia", seq, "three"), ERR_OK);
    start("mia", "message.recall", "\"target_seq\":%d", (int)seq);
    start("mia", "message.delete", "\"target_seq\":%d", (int)seq);
    decide_all();
    sequencer_row_refused(sequencer, row_at(db.last_seq + 2));
    assert_int_equal(RECALL("mia", seq), ERR_OK); /* a second time: it is not deleted */
    assert_int_equal(message(seq)->state, 2);
}

static void a_message_that_is_none_after_all_is_forgotten(void **state)
{
    uint64_t first = say("mia", TEXT), seq = first + 1;

    (void)state;
    take_over();
    say_as("mia", said, TEXT, false);
    start("max", "message.edit", "\"target_seq\":%d,\"content\":\"x\"", (int)seq); /* remembered, not changed */
    decide_all();
    sequencer_late_duplicate(sequencer, row_at(seq), first, row_at(seq)->envelope->hash);
    commit_all();
    assert_int_equal(told.settled, ERR_NO_SUCH_MESSAGE);
    assert_int_equal(EDIT("mia", seq, "x"), ERR_NO_SUCH_MESSAGE);
}

static void what_only_waits_for_its_turn_asks_nothing(void **state)
{
    struct seq_needs asked = {0};

    (void)state;
    say("mia", TEXT);
    start("mia", "room.update", "\"name\":\"new\""); /* its id is looked up */
    for (int i = 0; i < 5; i++)
        say_as("mia", ++said, TEXT, false);
    assert_true(sequencer_take_needs(sequencer, &asked));
    assert_int_equal(asked.id_count, 1);
    assert_int_equal(asked.member_count, 1); /* the op's own */
    assert_false(sequencer_take_needs(sequencer, &(struct seq_needs){0}));
    tell_member(&asked, &asked.members[0]);
    sequencer_facts_done(sequencer, &asked, true, now_ms);
    seq_needs_clear(&asked);
    assert_int_equal(sequencer_counters(sequencer).parked, 0);
    commit_all();
    assert_int_equal(db.last_seq, 7);
}

static void an_answer_from_before_a_message_was_committed_is_not_believed(void **state)
{
    struct seq_needs before = {0};
    char id[ULID_TEXT + 1] = "";

    (void)state;
    for (int by_id = 0; by_id < 2; by_id++) {
        say_early("mia", TEXT);
        ulid_write(id, id_of("mia", said));
        ops_come_again = true;
        if (by_id)
            start("mia", "message.edit", "\"target_id\":\"%s\",\"content\":\"x\"", id);
        else
            start("mia", "message.edit", "\"target_seq\":1,\"content\":\"x\"");
        ops_come_again = false;
        assert_true(sequencer_take_needs(sequencer, &before));
        commit_all();
        sequencer_facts_done(sequencer, &before, true, now_ms); /* the log knew of no such message then */
        seq_needs_clear(&before);
        assert_int_equal(finish(), ERR_OK);
    }
}

static void an_answer_from_before_a_mute_was_committed_is_not_believed(void **state)
{
    struct seq_needs before = {0};

    (void)state;
    settings.member_cache = 0;
    take_over();
    say("mia", TEXT);
    start("adam", "room.mute", "\"account_ids\":[\"mia\"],\"until\":2000000");
    decide_all();
    say_as("mia", ++said, TEXT, true); /* redelivered: the log is asked, and for all that it is decided by */
    assert_true(sequencer_take_needs(sequencer, &before));
    commit_all();
    sequencer_trim(sequencer); /* forgets mia */
    sequencer_fact_member(sequencer, &before, STR(ROOM), STR("mia"), ROLE_MEMBER, 1, 0);
    sequencer_facts_done(sequencer, &before, true, now_ms);
    seq_needs_clear(&before);
    decide_all();
    assert_int_equal(told.rejected, ERR_FORBIDDEN);
    commit_all();
}

static void a_mute_that_is_taken_back_holds_no_more(void **state)
{
    (void)state;
    say("mia", TEXT);
    start("adam", "room.mute", "\"account_ids\":[\"mia\"],\"until\":2000000");
    start("olga", "member.role", "\"account_ids\":[\"mia\"],\"role\":\"admin\"");
    start("adam", "room.mute", "\"until\":2000000");
    decide_all();
    sequencer_row_refused(sequencer, row_at(2));
    sequencer_row_refused(sequencer, row_at(4));
    say_early("mia", TEXT);
    assert_int_equal(told.rejected, ERR_OK);
    say_early("max", TEXT);
    assert_int_equal(told.rejected, ERR_OK);
    commit_all();
    assert_int_equal(db_member(STR("mia"))->role, ROLE_ADMIN);
    assert_int_equal(OP("mia", "room.mute", "\"until\":0"), ERR_OK); /* and the role is hers */
}

#define STORY(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORY(an_answer_from_an_earlier_life_of_a_room_is_not_believed),
        STORY(what_was_asked_before_a_room_was_read_anew_is_not_believed_of_its_members),
        STORY(a_message_is_edited_by_its_sender_only),
        STORY(an_edit_is_an_entry_that_names_its_message),
        STORY(the_later_of_two_edits_stays),
        STORY(what_is_no_message_of_the_room_cannot_be_changed),
        STORY(a_recalled_or_deleted_message_is_not_edited),
        STORY(new_content_must_fit_the_kind_of_the_message),
        STORY(mentions_and_quote_of_a_rich_text_are_derived_anew),
        STORY(a_rich_text_that_mentions_nobody_any_more_has_an_empty_meta),
        STORY(other_kinds_keep_mentions_and_quote),
        STORY(a_message_that_is_not_committed_yet_is_edited),
        STORY(a_message_of_the_same_parked_room_is_edited),
        STORY(what_was_forgotten_of_a_message_meanwhile_is_asked_again),
        STORY(what_was_forgotten_is_newer_than_an_answer_on_its_way),
        STORY(a_recall_takes_everything_away),
        STORY(a_sender_recalls_within_the_window_and_whoever_may_at_any_time),
        STORY(the_window_is_judged_by_when_the_call_was_made),
        STORY(a_recall_is_repeated_without_harm_and_a_delete_goes_further),
        STORY(who_left_changes_nothing),
        STORY(a_muted_account_neither_speaks_nor_edits_but_takes_back),
        STORY(a_mute_holds_from_its_place_in_the_room_on_and_for_the_next_owner),
        STORY(a_muted_room_is_open_to_admins_and_the_business),
        STORY(a_change_of_members_leaves_the_mute_of_the_room),
        STORY(who_comes_back_may_speak),
        STORY(a_transient_message_of_a_muted_account_is_dropped),
        STORY(nobody_mutes_or_removes_who_has_no_lower_role),
        STORY(each_act_takes_its_role),
        STORY(a_role_is_an_entry_and_an_answer),
        STORY(the_owner_leaves_last_or_hands_over),
        STORY(who_was_owner_is_not_taken_for_it_while_the_change_is_on_its_way),
        STORY(in_a_direct_room_only_the_business_mutes),
        STORY(to_mention_all_takes_its_role),
        STORY(the_void_of_a_refused_op_is_known_when_it_comes_again),
        STORY(a_sent_message_is_told_when_it_is_committed),
        STORY(an_edit_of_a_late_duplicate_edits_nothing),
        STORY(a_recall_that_is_taken_back_leaves_the_message_as_it_was),
        STORY(a_message_that_is_none_after_all_is_forgotten),
        STORY(what_only_waits_for_its_turn_asks_nothing),
        STORY(an_answer_from_before_a_message_was_committed_is_not_believed),
        STORY(an_answer_from_before_a_mute_was_committed_is_not_believed),
        STORY(role_rules_say_who_may),
        STORY(a_mute_that_is_taken_back_holds_no_more),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
