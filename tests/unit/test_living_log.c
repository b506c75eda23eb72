/*
 * The store under an owner: what the writer makes of rows that change earlier messages, what facts, access and pages
 * tell about them. Real servers; rows are changed by hand where a test must have them in one batch, or find them
 * refused.
 */
#define RIG_SCHEMA "roomd_living_log"
#include "history_rig.h"

#include <signal.h>

#include "history/reader.h"

/* In room 0; `more`: further members of the body, each with a comma before it. */
static void say(struct rig *rig, const char *id, const char *content, const char *more)
{
    char body[1000], room_id[ROOM_ID_MAX_BYTES + 1];

    rig_room_id(rig, 0, room_id);
    snprintf(body, sizeof body,
        "{\"room_id\":\"%s\",\"sender\":\"ada\",\"client_msg_id\":\"%s\",\"kind\":\"text\",\"content\":\"%s\"%s}",
        room_id, id, content, more);
    rig_publish_body(rig, rig->cluster.shards[0].name, body);
}

static void say_number(struct rig *rig, int number)
{
    char id[16];

    snprintf(id, sizeof id, "m%d", number);
    say(rig, id, id, "");
}

static void assert_text(struct rig *rig, const char *sql, const char *expected)
{
    PGresult *result = PQexec(rig->sql, sql);

    if (PQresultStatus(result) != PGRES_TUPLES_OK || PQntuples(result) != 1)
        fail_msg("%s: %s", sql, PQerrorMessage(rig->sql));
    assert_string_equal(PQgetvalue(result, 0, 0), expected);
    PQclear(result);
}

static void assert_mentions(struct rig *rig, const char *expected)
{
    assert_text(rig, "SELECT coalesce(string_agg(seq || ':' || account, ' ' ORDER BY seq, account), '') FROM mention",
        expected);
}

static void assert_targets(struct rig *rig, const char *expected)
{
    assert_text(rig, "SELECT string_agg(coalesce(target_seq::text, '-'), ' ' ORDER BY seq) FROM log_entry", expected);
}

static void assert_states(struct rig *rig, const char *expected)
{
    assert_text(rig, "SELECT string_agg(state::text, ' ' ORDER BY seq) FROM log_entry", expected);
}

static void assert_content(struct rig *rig, int seq, const char *expected)
{
    char sql[100];

    snprintf(sql, sizeof sql, "SELECT content FROM log_entry WHERE seq = %d", seq);
    assert_text(rig, sql, expected);
}

/* -------------------------------------------------------------------------------------------------- rows by hand */

static struct shard *shard_of_room_0(struct rig *rig)
{
    char room_id[ROOM_ID_MAX_BYTES + 1];

    rig_room_id(rig, 0, room_id);
    return history_find_shard_of(rig->history, str_of(room_id));
}

static bool write_lane_down(void *arg)
{
    return !pg_up(((struct rig *)arg)->pg, PG_WRITE);
}

/* From now on rows gather. Room and members are in memory already. */
static void hold(struct rig *rig)
{
    relay_cut(&rig->relay);
    rig_wait(rig, write_lane_down);
}

static void wait_shown(struct rig *rig, uint64_t count)
{
    wanted = count;
    assert_true(loop_until(rig->loop, enough_shown, rig, WAIT_MS));
}

static struct seq_row *find_row(struct rig *rig, uint64_t seq)
{
    struct sequencer *sequencer = shard_of_room_0(rig)->sequencer;
    struct seq_row *row = sequencer_first_unsent(sequencer);

    while (row && row->entry->seq != seq)
        row = sequencer_next_row(sequencer, row);
    assert_non_null(row);
    return row;
}

/* The gathered row with this seq says `change` instead of what it said. Its texts must live until it is committed. */
static void turn_into(struct rig *rig, uint64_t seq, enum entry_type type, const struct seq_target_change *change)
{
    struct seq_row *row = find_row(rig, seq);

    row->entry->type = type;
    row->target = *change;
    row->content = STR("\"by\":\"ada\"");
    row->meta = type == ENTRY_EDITED ? STR("\"content\":\"as edited\"") : (struct str){NULL, 0};
}

static void edit(struct rig *rig, uint64_t seq, uint64_t target, const char *content)
{
    turn_into(
        rig, seq, ENTRY_EDITED, &(struct seq_target_change){.seq = target, .state = 1, .content = str_of(content)});
}

static long batches(struct rig *rig)
{
    struct buf out = {0};
    const char *at;
    long count;

    writer_metrics(rig->history->writer, &out);
    buf_char(&out, '\0');
    at = strstr(out.p, "\nroomd_batches_total ");
    assert_non_null(at);
    count = atol(at + sizeof "\nroomd_batches_total " - 1);
    buf_clear(&out);
    return count;
}

/* What a message mentions is written in its commit, names as they are meant and not as they were escaped. */
static void a_message_mentions_whom_it_names(void **state)
{
    RIG_OR_SKIP(rig);
    start_with_rooms(rig, 1);
    say(rig, "m1", "one", "");
    wait_durable(rig, 1);

    hold(rig);
    for (int i = 2; i <= 4; i++)
        say_number(rig, i);
    wait_shown(rig, 4);
    find_row(rig, 2)->envelope->mentions = STR("[\"bob\",\"\\u0064ora\", \"@all\"]");
    find_row(rig, 4)->envelope->mentions = STR("[\"bob\"]");
    relay_listen(&rig->relay);
    wait_durable(rig, 4);

    assert_mentions(rig, "2:@all 2:bob 2:dora 4:bob");
    assert_targets(rig, "- - - -");
    rig_crash(rig);
}

static void two_changes_of_one_message_never_share_a_batch(void **state)
{
    RIG_OR_SKIP(rig);
    long before;

    start_with_rooms(rig, 1);
    say(rig, "m1", "one", "");
    wait_durable(rig, 1);
    hold(rig);
    for (int i = 2; i <= 8; i++)
        say_number(rig, i);
    wait_shown(rig, 8);
    edit(rig, 3, 2, "\"first\"");
    edit(rig, 4, 1, "\"other\"");
    edit(rig, 5, 2, "\"second\"");
    edit(rig, 7, 6, "\"own\"");
    edit(rig, 8, 2, "\"third\"");
    before = batches(rig);
    relay_listen(&rig->relay);
    wait_durable(rig, 8);

    assert_int_equal(batches(rig) - before, 3);
    assert_content(rig, 1, "\"other\"");
    assert_content(rig, 2, "\"third\"");
    assert_content(rig, 6, "\"own\"");
    assert_states(rig, "1 1 0 0 0 1 0 0");
    assert_targets(rig, "- - 2 1 2 - 6 2");
    rig_crash(rig);
}

static void a_message_its_edit_and_its_recall_end_alike_however_they_are_batched(void **state)
{
    const struct seq_target_change edited = {.seq = 2,
        .state = 1,
        .content = STR("\"now for eve\""),
        .meta = STR("\"mentions\":[\"eve\"]"),
        .mentions = STR("[\"eve\"]")};
    const struct seq_target_change recalled = {
        .seq = 4, .state = 2, .content = STR("must not stay"), .meta = STR("nor this")};
    RIG_OR_SKIP(rig);

    start_with_rooms(rig, 1);
    say(rig, "m1", "one", "");
    wait_durable(rig, 1);
    hold(rig);
    say(rig, "m2", "for bob", ",\"mentions\":[\"bob\"]");
    say(rig, "m3", "", "");
    say(rig, "m4", "secret", ",\"mentions\":[\"bob\"]");
    say(rig, "m5", "", "");
    wait_shown(rig, 5);
    turn_into(rig, 3, ENTRY_EDITED, &edited);
    turn_into(rig, 5, ENTRY_RECALLED, &recalled);
    relay_listen(&rig->relay);
    wait_durable(rig, 5);

    assert_states(rig, "0 1 0 2 0");
    assert_content(rig, 2, "\"now for eve\"");
    assert_text(rig, "SELECT meta FROM log_entry WHERE seq = 2", "\"mentions\":[\"eve\"]");
    assert_content(rig, 4, "");
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry WHERE seq = 4 AND meta IS NULL"), 1);
    assert_mentions(rig, "2:eve");
    rig_crash(rig);
}

/* A change whose id is in the log already did what it does when that one was committed. */
static void a_change_that_turns_out_to_be_a_repeat_changes_nothing(void **state)
{
    const struct seq_target_change recalled = {.seq = 2, .state = 2};
    RIG_OR_SKIP(rig);

    rig->config.dedup_window = 0;
    start_with_rooms(rig, 1);
    say(rig, "m1", "one", "");
    say(rig, "m2", "two", ",\"mentions\":[\"bob\"]");
    wait_durable(rig, 2);
    hold(rig);
    say(rig, "m1", "one", "");
    say(rig, "m2", "two", ",\"mentions\":[\"bob\"]");
    wait_shown(rig, 4);
    find_row(rig, 4)->envelope->mentions = STR("[\"eve\"]"); /* its void mentions nobody */
    turn_into(rig, 3, ENTRY_RECALLED, &recalled);
    relay_listen(&rig->relay);
    wait_durable(rig, 4);

    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry WHERE type = 0 AND seq IN (3, 4)"), 2);
    assert_states(rig, "0 0 0 0");
    assert_content(rig, 2, "\"two\"");
    assert_targets(rig, "- - - -");
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM mention WHERE account = 'eve'"), 0);
    rig_crash(rig);
}

static void a_change_that_the_database_refuses_changes_nothing(void **state)
{
    const struct seq_target_change poison = {.seq = 1,
        .state = 1,
        .content = STR("\"poison\""),
        .meta = STR("\"mentions\":[\"eve\"]"),
        .mentions = STR("[\"eve\"]")};
    RIG_OR_SKIP(rig);

    start_with_rooms(rig, 1);
    database_run(rig->sql, "ALTER TABLE log_entry ADD CHECK (content <> '\"poison\"')");
    say(rig, "m1", "one", "");
    wait_durable(rig, 1);
    hold(rig);
    say(rig, "m2", "two", "");
    say(rig, "m3", "three", "");
    say(rig, "m4", "four", "");
    wait_shown(rig, 4);
    turn_into(rig, 3, ENTRY_EDITED, &poison);
    edit(rig, 4, 2, "\"after it\"");
    relay_listen(&rig->relay);
    wait_durable(rig, 4);

    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry WHERE type = 0 AND seq = 3"), 1);
    assert_states(rig, "0 1 0 0");
    assert_targets(rig, "- - - 2");
    assert_content(rig, 2, "\"after it\"");
    assert_mentions(rig, "");
    rig_crash(rig);
}

/* ---------------------------------------------------------------------------------------------------------- access */

struct access_call {
    struct history_access access;
    bool answered;
    enum err err;
};

static void on_access(struct history_access *access, enum err err)
{
    struct access_call *call = container_of(access, struct access_call, access);

    call->answered = true;
    call->err = err;
}

static bool access_answered(void *arg)
{
    return ((struct access_call *)arg)->answered;
}

static struct access_call ask(struct rig *rig, const char *account)
{
    char room_id[ROOM_ID_MAX_BYTES + 1];
    struct access_call call = {.access = {.account = str_of(account), .done = on_access, .muted_until = 999}};

    rig_room_id(rig, 0, room_id);
    call.access.room_id = str_of(room_id);
    history_ask_access(rig->history, &call.access);
    assert_true(loop_until(rig->loop, access_answered, &call, WAIT_MS));
    return call;
}

static void assert_muted(struct rig *rig, const char *account, uint64_t until)
{
    struct access_call call = ask(rig, account);

    assert_int_equal(call.err, ERR_OK);
    assert_int_equal(call.access.muted_until, until);
    assert_int_equal(call.access.members, 2);
    assert_false(call.access.direct);
}

/* ada is a plain member, bob keeps order. */
static void check_mutes(struct rig *rig)
{
    assert_muted(rig, "ada", 5000000000000);
    assert_muted(rig, "bob", 3000000000000); /* his own; the room's is not for him */
    assert_muted(rig, "", 0);
}

static bool system_was_heard(void *arg)
{
    return rig_number(arg, "SELECT count(*) FROM log_entry WHERE sender = '@system'") == 1;
}

static void who_may_not_speak_is_told_alike_by_database_and_memory(void **state)
{
    RIG_OR_SKIP(rig);
    start_with_rooms(rig, 1);
    database_run(rig->sql, "UPDATE room SET muted_until = 5000000000000");
    database_run(rig->sql, "UPDATE room_member SET muted_until = 4000000000000 WHERE account = 'ada'");
    database_run(rig->sql, "UPDATE room_member SET muted_until = 3000000000000 WHERE account = 'bob'");

    check_mutes(rig);
    assert_int_equal(ask(rig, "ada").access.last_seq, 0);
    assert_int_equal(ask(rig, "eve").err, ERR_NOT_MEMBER);
    assert_int_equal(ask(rig, "eve").access.muted_until, 0);
    assert_int_equal(rig->history->reader->access_counters.from_memory_total, 0);

    /* Whatever becomes of the first two: to judge them the owner asks for the room and its members. */
    say(rig, "m1", "one", "");
    rig_say(rig, 0, "bob", "m2", "two");
    rig_say(rig, 0, "@system", "m3", "three");
    rig_wait(rig, system_was_heard);
    check_mutes(rig);
    assert_int_equal(rig->history->reader->access_counters.from_memory_total, 3);
    rig_crash(rig);
}

/* ----------------------------------------------------------------------------------------------------------- pages */

struct pull_call {
    struct history_pull pull;
    bool answered;
    enum err err;
    char text[4000]; /* the entries, one a line */
};

static void on_pulled(struct history_pull *pull, enum err err)
{
    struct pull_call *call = container_of(pull, struct pull_call, pull);
    size_t n = 0;

    call->answered = true;
    call->err = err;
    for (size_t i = 0; !err && i < pull->count; i++)
        n += (size_t)snprintf(call->text + n, sizeof call->text - n, "%.*s\n", STR_ARG(entry_json(pull->entries[i])));
}

static bool pull_answered(void *arg)
{
    return ((struct pull_call *)arg)->answered;
}

static void pull_all(struct rig *rig, struct pull_call *call)
{
    char room_id[ROOM_ID_MAX_BYTES + 1];

    rig_room_id(rig, 0, room_id);
    *call = (struct pull_call){
        .pull = {
            .room_id = str_of(room_id), .from = PULL_AFTER, .after = {UINT64_MAX, 0}, .limit = 100, .done = on_pulled}};
    history_pull(rig->history, &call->pull);
    assert_true(loop_until(rig->loop, pull_answered, call, WAIT_MS));
    assert_int_equal(call->err, ERR_OK);
}

static void the_log_shows_messages_as_they_are_now_and_edits_without_what_was_taken_back(void **state)
{
    const struct seq_target_change recalled = {.seq = 3, .state = 2};
    RIG_OR_SKIP(rig);
    struct pull_call call;

    start_with_rooms(rig, 1);
    say(rig, "m1", "one", ",\"sent_at\":7");
    wait_durable(rig, 1);
    hold(rig);
    say(rig, "m2", "", "");
    say(rig, "m3", "secret", ",\"mentions\":[\"bob\"]");
    say(rig, "m4", "", "");
    wait_shown(rig, 4);
    edit(rig, 2, 1, "\"ONE\"");
    edit(rig, 4, 3, "\"SECRET\"");
    relay_listen(&rig->relay);
    wait_durable(rig, 4);
    pull_all(rig, &call);
    assert_non_null(strstr(call.text, "\"content\":\"ONE\",\"sent_at\":7,\"state\":\"edited\"}\n"));
    assert_non_null(strstr(call.text, "{\"type\":\"message.edited\","));
    assert_non_null(strstr(call.text, ",\"seq\":4,"));
    assert_non_null(strstr(call.text, ",\"by\":\"ada\",\"content\":\"as edited\"}\n"));
    assert_non_null(strstr(call.text, "\"content\":\"SECRET\""));

    hold(rig);
    say(rig, "m5", "", "");
    wait_shown(rig, 5);
    turn_into(rig, 5, ENTRY_RECALLED, &recalled);
    relay_listen(&rig->relay);
    wait_durable(rig, 5);
    pull_all(rig, &call);
    assert_null(strstr(call.text, "SECRET"));
    assert_null(strstr(call.text, "secret"));
    assert_non_null(strstr(call.text, "\"kind\":\"text\",\"state\":\"recalled\"}\n"));
    assert_non_null(strstr(call.text, "\"content\":\"ONE\""));
    assert_int_equal(
        rig_number(rig, "SELECT count(*) FROM log_entry WHERE content LIKE '%ecret%' OR meta LIKE '%ecret%'"), 0);
    rig_crash(rig);
}

/* While programs are replaced one by one. */
static void what_a_newer_program_wrote_is_a_void_for_this_one(void **state)
{
    RIG_OR_SKIP(rig);
    struct pull_call call;

    start_with_rooms(rig, 1);
    for (int i = 1; i <= 3; i++)
        say_number(rig, i);
    wait_durable(rig, 3);
    database_run(rig->sql, "UPDATE log_entry SET type = 99, content = '\"new\":1' WHERE seq = 1");
    database_run(rig->sql, "UPDATE log_entry SET state = 9 WHERE seq = 2");
    pull_all(rig, &call);
    assert_null(strstr(call.text, "new"));
    assert_null(strstr(call.text, "m2"));
    assert_non_null(strstr(call.text, "{\"type\":\"void\","));
    assert_non_null(strstr(call.text, ",\"seq\":2,"));
    assert_non_null(strstr(call.text, "\"content\":\"m3\""));
    rig_crash(rig);
}

struct range_call {
    struct history_range range;
    bool answered;
    char room_id[ROOM_ID_MAX_BYTES + 1];
};

static void on_range(struct history_range *range, enum err err)
{
    assert_int_equal(err, ERR_OK);
    container_of(range, struct range_call, range)->answered = true;
}

static bool range_answered(void *arg)
{
    return ((struct range_call *)arg)->answered;
}

static void read_all(struct rig *rig, struct range_call *call)
{
    *call = (struct range_call){.range = {.up_to_seq = 100, .limit = 100, .done = on_range}};
    call->range.room_no = rig_number(rig, "SELECT min(room_no) FROM room");
    rig_room_id(rig, 0, call->room_id);
    call->range.room_id = str_of(call->room_id);
    history_read_range(rig->history, &call->range);
}

/* It may be older than what the new asker was told: that a message was recalled, by another instance. */
static void a_read_on_its_way_takes_nobody_in(void **state)
{
    static struct range_call first, second, third; /* still asked for when a claim fails */
    RIG_OR_SKIP(rig);
    struct reader *reader;

    start_with_rooms(rig, 1);
    reader = rig->history->reader;
    say(rig, "m1", "one", "");
    wait_durable(rig, 1);
    read_all(rig, &first);
    read_all(rig, &second);
    assert_int_equal(reader->pages_shared_total, 1);
    reader_turn(reader); /* on its way */
    read_all(rig, &third);
    assert_int_equal(reader->pages_shared_total, 1);

    assert_true(loop_until(rig->loop, range_answered, &first, WAIT_MS));
    assert_true(loop_until(rig->loop, range_answered, &second, WAIT_MS));
    assert_true(loop_until(rig->loop, range_answered, &third, WAIT_MS));
    assert_int_equal(third.range.count, 1);
    assert_int_equal(reader->pages_total, 2);
    rig_crash(rig);
}

/* ---------------------------------------------------------------------------------------------- through the owner */

static void assert_op(struct rig *rig, enum op_kind kind, const char *by, const char *args, enum err err)
{
    static struct rig_op call; /* still asked for when a claim fails */

    rig_submit_op(rig, &call, kind, by, args, NULL);
    rig_await_op(rig, &call);
    if (call.err != err)
        fail_msg("%s %s: %s %s", by, args, err_code(call.err), call.result);
}

static void edits_in_quick_succession_end_with_the_last_one(void **state)
{
    static struct rig_op calls[40];
    RIG_OR_SKIP(rig);

    start_with_rooms(rig, 1);
    for (int i = 1; i <= 4; i++)
        say_number(rig, i);
    wait_durable(rig, 4);
    for (size_t i = 0; i < countof(calls); i++) {
        char args[100];

        snprintf(args, sizeof args, "\"target_seq\":%zu,\"content\":\"edit %zu\"", i % 8 ? 2 : i / 8 % 4 + 1, i);
        rig_submit_op(rig, &calls[i], OP_MESSAGE_EDIT, "ada", args, NULL);
    }
    for (size_t i = 0; i < countof(calls); i++) {
        rig_await_op(rig, &calls[i]);
        assert_int_equal(calls[i].err, ERR_OK);
    }

    assert_content(rig, 2, "\"edit 39\"");
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry WHERE type = 2"), countof(calls));
    assert_int_equal(
        rig_number(rig, "SELECT count(*) FROM log_entry m WHERE type = 1 AND content <> (SELECT substr(e.meta, 11)"
                        " FROM log_entry e WHERE e.target_seq = m.seq ORDER BY e.seq DESC LIMIT 1)"),
        0);
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry WHERE type = 1 AND state = 1"), 4);
    rig_check_log(rig);
    rig_crash(rig);
}

static void take_over(struct rig *rig)
{
    rig_crash(rig);
    rig_start(rig);
    rig_take_all(rig);
}

/* Who owns the room now never saw the message: what it must know of it comes from the log. */
static void an_old_message_is_edited_and_recalled_after_a_takeover(void **state)
{
    RIG_OR_SKIP(rig);

    start_with_rooms(rig, 1);
    say(rig, "m1", "one", ",\"sent_at\":7,\"mentions\":[\"bob\",\"\\u0064ora\"]");
    say(rig, "m2", "two", "");
    wait_durable(rig, 2);
    assert_mentions(rig, "1:bob 1:dora");
    take_over(rig);

    assert_op(rig, OP_MESSAGE_EDIT, "bob", "\"target_seq\":1,\"content\":\"forged\"", ERR_FORBIDDEN);
    assert_op(rig, OP_MESSAGE_EDIT, "ada", "\"target_seq\":1,\"content\":\"ONE\"", ERR_OK);
    assert_op(rig, OP_MESSAGE_EDIT, "ada", "\"target_seq\":4,\"content\":\"x\"", ERR_NO_SUCH_MESSAGE);
    assert_op(rig, OP_MESSAGE_EDIT, "ada", "\"target_seq\":77,\"content\":\"x\"", ERR_NO_SUCH_MESSAGE);
    assert_content(rig, 1, "\"ONE\"");
    assert_text(rig, "SELECT meta FROM log_entry WHERE seq = 1", "\"sent_at\":7,\"mentions\":[\"bob\",\"dora\"]");
    assert_mentions(rig, "1:bob 1:dora");
    take_over(rig);

    assert_op(rig, OP_MESSAGE_RECALL, "bob", "\"target_seq\":1", ERR_OK); /* bob is an admin */
    assert_int_equal(
        rig_number(rig, "SELECT count(*) FROM log_entry WHERE content LIKE '%ONE%' OR meta LIKE '%ONE%'"), 0);
    assert_mentions(rig, "");
    take_over(rig);

    assert_op(rig, OP_MESSAGE_EDIT, "ada", "\"target_seq\":1,\"content\":\"x\"", ERR_CONFLICT);
    assert_op(rig, OP_MESSAGE_DELETE, "", "\"target_seq\":1", ERR_OK);
    assert_int_equal(rig_number(rig, "SELECT state FROM log_entry WHERE seq = 1"), 3);
    rig_check_log(rig);
    rig_crash(rig);
}

/* The time of a message comes from the log as well. */
static void the_window_for_a_recall_does_not_begin_anew_with_a_takeover(void **state)
{
    RIG_OR_SKIP(rig);

    rig->config.recall_window_ms = 600000;
    start_with_rooms(rig, 1);
    say(rig, "m1", "one", "");
    say(rig, "m2", "two", "");
    wait_durable(rig, 2);
    database_run(rig->sql, "UPDATE log_entry SET at = at - 600000 WHERE seq = 1"); /* ten minutes ago */
    take_over(rig);

    assert_op(rig, OP_MESSAGE_RECALL, "ada", "\"target_seq\":1", ERR_TOO_LATE);
    assert_op(rig, OP_MESSAGE_RECALL, "ada", "\"target_seq\":2", ERR_OK);
    assert_states(rig, "0 2 0 0");
    rig_crash(rig);
}

static void a_rich_text_keeps_when_it_was_sent_and_mentions_whom_its_edit_does(void **state)
{
    static const char parts[] = "\"content\":{\"parts\":[{\"type\":\"mention\",\"user_id\":\"%s\"}]}";
    char body[1000], args[200], kim[100], room_id[ROOM_ID_MAX_BYTES + 1], id_text[ULID_TEXT + 1] = "";
    PGresult *result;
    struct id128 id;
    RIG_OR_SKIP(rig);

    start_with_rooms(rig, 1);
    rig_room_id(rig, 0, room_id);
    snprintf(body, sizeof body,
        "{\"room_id\":\"%s\",\"sender\":\"ada\",\"client_msg_id\":\"m1\",\"kind\":\"rich_text\",\"sent_at\":123456789,"
        "\"content\":{\"parts\":[{\"type\":\"mention\",\"user_id\":\"bob\"}]}}",
        room_id);
    rig_publish_body(rig, rig->cluster.shards[0].name, body);
    wait_durable(rig, 1);
    assert_mentions(rig, "1:bob");
    take_over(rig);

    result = PQexecParams(rig->sql, "SELECT message_id FROM log_entry", 0, NULL, NULL, NULL, NULL, 1);
    memcpy(id.b, PQgetvalue(result, 0, 0), sizeof id.b);
    PQclear(result);
    ulid_write(id_text, id);
    snprintf(kim, sizeof kim, parts, "kim");
    snprintf(args, sizeof args, "\"target_id\":\"%s\",%s", id_text, kim);
    assert_op(rig, OP_MESSAGE_EDIT, "ada", args, ERR_OK);
    assert_mentions(rig, "1:kim");
    assert_text(rig, "SELECT meta FROM log_entry WHERE seq = 1", "\"sent_at\":123456789,\"mentions\":[\"kim\"]");
    snprintf(args, sizeof args, "\"target_id\":\"%s\",\"content\":{\"parts\":[{\"type\":\"text\",\"text\":\"a\"}]}",
        id_text);
    assert_op(rig, OP_MESSAGE_EDIT, "ada", args, ERR_OK);
    assert_mentions(rig, "");
    assert_text(rig, "SELECT meta FROM log_entry WHERE seq = 1", "\"sent_at\":123456789");
    rig_crash(rig);
}

static void roles_and_mutes_are_rows_and_hold_after_a_takeover(void **state)
{
    static const char ada[] = "SELECT role || ' ' || muted_until FROM room_member WHERE account = 'ada'";
    RIG_OR_SKIP(rig);

    start_with_rooms(rig, 1);
    assert_op(rig, OP_ROOM_MUTE, "bob", "\"account_ids\":[\"ada\"],\"until\":4000000000000", ERR_OK);
    assert_text(rig, ada, "1 4000000000000");
    assert_op(rig, OP_ROOM_MUTE, "bob", "\"until\":4100000000000", ERR_OK);
    assert_op(rig, OP_MEMBER_ADD, "", "\"account_ids\":[\"kim\"],\"role\":\"member\"", ERR_OK);
    assert_int_equal(rig_number(rig, "SELECT muted_until FROM room"), 4100000000000);
    take_over(rig);

    rig_say(rig, 0, "ada", "m1", "may not speak");
    rig_say(rig, 0, "kim", "m2", "nor I");
    rig_say(rig, 0, "bob", "m3", "but I");
    wait_durable(rig, 4);
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry WHERE type = 1"), 1);
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM outbox WHERE reason = 'forbidden'"), 2);
    assert_int_equal(ask(rig, "ada").access.muted_until, 4100000000000);

    assert_op(rig, OP_MEMBER_ROLE, "", "\"account_ids\":[\"ada\"],\"role\":\"admin\"", ERR_OK);
    assert_text(rig, ada, "2 4000000000000");
    assert_int_equal(ask(rig, "ada").access.muted_until, 4000000000000);
    assert_op(rig, OP_ROOM_MUTE, "", "\"account_ids\":[\"ada\"],\"until\":0", ERR_OK);
    assert_text(rig, ada, "2 0");
    rig_say(rig, 0, "ada", "m4", "now I may");
    wait_durable(rig, 7);
    assert_int_equal(rig_number(rig, "SELECT count(*) FROM log_entry WHERE client_msg_id = 'm4'"), 1);
    rig_crash(rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_message_mentions_whom_it_names, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(two_changes_of_one_message_never_share_a_batch, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(
            a_message_its_edit_and_its_recall_end_alike_however_they_are_batched, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(
            a_change_that_turns_out_to_be_a_repeat_changes_nothing, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(a_change_that_the_database_refuses_changes_nothing, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(
            who_may_not_speak_is_told_alike_by_database_and_memory, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(
            the_log_shows_messages_as_they_are_now_and_edits_without_what_was_taken_back, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(what_a_newer_program_wrote_is_a_void_for_this_one, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(a_read_on_its_way_takes_nobody_in, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(edits_in_quick_succession_end_with_the_last_one, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(
            an_old_message_is_edited_and_recalled_after_a_takeover, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(
            the_window_for_a_recall_does_not_begin_anew_with_a_takeover, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(
            a_rich_text_keeps_when_it_was_sent_and_mentions_whom_its_edit_does, rig_setup, rig_teardown),
        cmocka_unit_test_setup_teardown(roles_and_mutes_are_rows_and_hold_after_a_takeover, rig_setup, rig_teardown),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
