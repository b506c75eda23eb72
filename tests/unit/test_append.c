/*
 * What a batch does to the rows: append() itself, called as the writer calls it, without writer, sequencer and broker.
 * Skips without ROOMD_TEST_DATABASE_URL.
 */
#include "database.h"

#include "history/entry.h"

enum { MEMBER = 1, ADMIN = 2, LEAVES = 0, JOINS = 1, ROLE = 2, MUTED = 3, EDITED = 1, RECALLED = 2, DELETED = 3 };

/* append()'s parameters behind p_me, in no order: they are passed by name. */
static const char *const parameters[] = {"p_shard", "p_shard_epoch", "h_room", "h_old", "h_new", "h_epoch", "h_at",
    "h_counted", "e_room", "e_seq", "e_epoch", "e_at", "e_counted", "e_hash", "e_id", "e_type", "e_sender", "e_cmid",
    "e_kind", "e_content", "e_meta", "m_room", "m_account", "m_action", "m_role", "m_at", "m_seq", "m_counted",
    "r_room", "r_members", "r_name", "r_notice", "r_owner", "r_limit", "r_extra", "r_removed", "o_shard", "o_room_id",
    "o_id", "o_reason", "o_type", "o_body", "o_at",
    /* not in the first version of it: */
    "e_target", "m_muted", "r_muted", "t_room", "t_seq", "t_state", "t_content", "t_meta", "n_room", "n_seq",
    "n_account", "n_by"};
enum { PARAMETERS = countof(parameters), PARAMETERS_ONCE = PARAMETERS - 12 };

struct store {
    char *url;
    PGconn *sql;
    size_t parameters;             /* PARAMETERS, or as an older program calls it */
    struct buf arrays[PARAMETERS]; /* the batch that is being made: array literals without the closing brace */
    long first, last;              /* seqs of it */
    long targets;                  /* of its entries, as far as said */
};

static const char schema[] = "roomd_append";

static void reset(struct store *store)
{
    for (size_t i = 0; i < PARAMETERS; i++) {
        buf_reset(&store->arrays[i]);
        buf_char(&store->arrays[i], '{');
    }
    store->first = store->targets = 0;
}

/* Room 1 with the owner ada and the members bob and eve. */
static int begin(void **state)
{
    char *url = database_begin(schema);
    struct store *store;

    *state = NULL;
    if (!url)
        return 0;
    store = xcalloc(1, sizeof *store);
    store->url = url;
    store->sql = database_connect(url);
    store->parameters = PARAMETERS;
    database_migrate(store->sql);
    database_run(store->sql, "INSERT INTO shard_lease (shard, epoch, holder) VALUES ('s00', 1, 'me')");
    database_run(store->sql, "INSERT INTO room (room_id, shard, kind, members, owner, created_at) VALUES ('s00.1', "
                             "'s00', 'group', 3, 'ada', 1)");
    database_run(store->sql, "INSERT INTO room_head (room_no) VALUES (1)");
    database_run(store->sql, "INSERT INTO room_member (room_no, account, role, joined_at, join_seq)"
                             " VALUES (1, 'ada', 3, 1, 0), (1, 'bob', 1, 1, 0), (1, 'eve', 1, 1, 0)");
    reset(store);
    *state = store;
    return 0;
}

static int end(void **state)
{
    struct store *store = *state;

    if (!store)
        return 0;
    for (size_t i = 0; i < PARAMETERS; i++)
        buf_clear(&store->arrays[i]);
    PQfinish(store->sql);
    database_end(store->url, schema);
    free(store);
    return 0;
}

#define STORE_OR_SKIP(store)        \
    struct store *(store) = *state; \
    if (!(store))                   \
        skip();

/* --- a batch --- */

/* value NULL: null */
static void add(struct store *store, const char *parameter, const char *value)
{
    size_t i = 0;

    while (i < PARAMETERS && strcmp(parameters[i], parameter) != 0)
        i++;
    assert_true(i < PARAMETERS);
    if (store->arrays[i].n > 1)
        buf_char(&store->arrays[i], ',');
    if (!value) {
        buf_text(&store->arrays[i], "NULL");
        return;
    }
    buf_char(&store->arrays[i], '"');
    for (; *value; value++) {
        if (*value == '"' || *value == '\\')
            buf_char(&store->arrays[i], '\\');
        buf_char(&store->arrays[i], *value);
    }
    buf_char(&store->arrays[i], '"');
}

static void add_number(struct store *store, const char *parameter, long value)
{
    char text[24];

    snprintf(text, sizeof text, "%ld", value);
    add(store, parameter, text);
}

static void add_entry(struct store *store, enum entry_type type, const char *content, const char *meta)
{
    char id[64];

    if (!store->first)
        store->first = store->last + 1;
    store->last++;
    snprintf(id, sizeof id, "00000000-0000-0000-0000-%012ld", store->last);
    add(store, "e_room", "1");
    add_number(store, "e_seq", store->last);
    add(store, "e_epoch", "1");
    add_number(store, "e_at", store->last);
    add_number(store, "e_counted", store->last);
    add(store, "e_hash", "1");
    add(store, "e_id", id);
    add_number(store, "e_type", type);
    add(store, "e_sender", "ada");
    add(store, "e_cmid", id);
    add(store, "e_kind", type == ENTRY_MESSAGE ? "text" : "");
    add(store, "e_content", content);
    add(store, "e_meta", meta);
}

/* Rows behind the last one with a target have none: that is how the writer says it. */
static void add_change(
    struct store *store, enum entry_type type, long target, int state, const char *content, const char *meta)
{
    char text[40];

    snprintf(text, sizeof text, "\"target_seq\":%ld", target);
    add_entry(store, type, text, type == ENTRY_EDITED ? "\"content\":\"as edited\"" : NULL);
    for (; store->targets < store->last - store->first; store->targets++)
        add(store, "e_target", NULL);
    store->targets++;
    add_number(store, "e_target", target);
    add(store, "t_room", "1");
    add_number(store, "t_seq", target);
    add_number(store, "t_state", state);
    add(store, "t_content", content);
    add(store, "t_meta", meta);
}

static void add_mention(struct store *store, long seq, const char *account, long by)
{
    add(store, "n_room", "1");
    add_number(store, "n_seq", seq);
    add(store, "n_account", account);
    add_number(store, "n_by", by);
}

static void add_member(struct store *store, const char *account, int action, int role, long muted_until)
{
    add(store, "m_room", "1");
    add(store, "m_account", account);
    add_number(store, "m_action", action);
    add_number(store, "m_role", role);
    add_number(store, "m_at", store->last);
    add_number(store, "m_seq", store->last);
    add_number(store, "m_counted", store->last);
    add_number(store, "m_muted", muted_until);
}

static void add_room(struct store *store, const char *name, const char *muted_until)
{
    add(store, "r_room", "1");
    add(store, "r_members", NULL);
    add(store, "r_name", name);
    add(store, "r_notice", NULL);
    add(store, "r_owner", NULL);
    add(store, "r_limit", NULL);
    add(store, "r_extra", NULL);
    add(store, "r_removed", NULL);
    add(store, "r_muted", muted_until);
}

/* The SQLSTATE it ends with. */
static const char *commit(struct store *store)
{
    static char sqlstate[6];
    const char *values[PARAMETERS];
    struct buf sql = {0};
    PGresult *result;

    add(store, "p_shard", "s00");
    add(store, "p_shard_epoch", "1");
    if (store->first) {
        add(store, "h_room", "1");
        add_number(store, "h_old", store->first - 1);
        add_number(store, "h_new", store->last);
        add(store, "h_epoch", "1");
        add_number(store, "h_at", store->last);
        add_number(store, "h_counted", store->last);
    }
    buf_text(&sql, "SELECT append(p_me => 'me'");
    for (size_t i = 0; i < store->parameters; i++) {
        buf_printf(&sql, ", %s => $%zu", parameters[i], i + 1);
        buf_text(&store->arrays[i], "}");
        buf_char(&store->arrays[i], '\0');
        values[i] = store->arrays[i].p;
    }
    buf_text(&sql, ")");
    buf_char(&sql, '\0');
    result = PQexecParams(store->sql, sql.p, (int)store->parameters, NULL, values, NULL, NULL, 0);
    snprintf(sqlstate, sizeof sqlstate, "%s",
        PQresultStatus(result) == PGRES_TUPLES_OK ? "00000" : PQresultErrorField(result, PG_DIAG_SQLSTATE));
    PQclear(result);
    buf_clear(&sql);
    reset(store);
    return sqlstate;
}

static void committed(struct store *store)
{
    assert_string_equal(commit(store), "00000");
}

/* --- what must be there afterwards --- */

static void assert_text(struct store *store, const char *sql, const char *expected)
{
    PGresult *result = PQexec(store->sql, sql);

    if (PQresultStatus(result) != PGRES_TUPLES_OK || PQntuples(result) != 1)
        fail_msg("%s: %s", sql, PQerrorMessage(store->sql));
    assert_string_equal(PQgetvalue(result, 0, 0), expected);
    PQclear(result);
}

/* "<state> <content> <meta or ->" */
static void assert_entry(struct store *store, long seq, const char *expected)
{
    char sql[200];

    snprintf(sql, sizeof sql,
        "SELECT state || ' ' || content || ' ' || coalesce(meta, '-') FROM log_entry WHERE room_no = 1 AND seq = %ld",
        seq);
    assert_text(store, sql, expected);
}

/* "<seq>:<account> …" */
static void assert_mentions(struct store *store, const char *expected)
{
    assert_text(store, "SELECT coalesce(string_agg(seq || ':' || account, ' ' ORDER BY seq, account), '') FROM mention",
        expected);
}

/* ------------------------------------------------------------------------------------------------------- messages */

static void an_edit_changes_its_message_and_keeps_its_own_content_apart(void **state)
{
    STORE_OR_SKIP(store);

    add_entry(store, ENTRY_MESSAGE, "\"one\"", "\"sent_at\":7");
    add_entry(store, ENTRY_MESSAGE, "\"two\"", NULL);
    committed(store);
    add_change(store, ENTRY_EDITED, 1, EDITED, "\"one, edited\"", NULL);
    add_entry(store, ENTRY_MESSAGE, "\"four\"", NULL); /* behind it, without a target */
    committed(store);

    assert_entry(store, 1, "1 \"one, edited\" \"sent_at\":7");
    assert_entry(store, 2, "0 \"two\" -");
    assert_entry(store, 3, "0 \"target_seq\":1 \"content\":\"as edited\"");
    assert_text(store, "SELECT string_agg(coalesce(target_seq, 0)::text, ' ' ORDER BY seq) FROM log_entry", "0 0 1 0");
}

static void an_edit_with_meta_replaces_it_and_an_empty_one_takes_it_away(void **state)
{
    STORE_OR_SKIP(store);

    add_entry(store, ENTRY_MESSAGE, "\"one\"", "\"sent_at\":7,\"mentions\":[\"bob\"]");
    committed(store);
    add_change(store, ENTRY_EDITED, 1, EDITED, "\"a\"", "\"sent_at\":7,\"mentions\":[\"eve\"]");
    committed(store);
    assert_entry(store, 1, "1 \"a\" \"sent_at\":7,\"mentions\":[\"eve\"]");
    add_change(store, ENTRY_EDITED, 1, EDITED, "\"b\"", "");
    committed(store);
    assert_entry(store, 1, "1 \"b\" -");
}

static void a_recall_leaves_no_content_also_not_of_earlier_edits(void **state)
{
    STORE_OR_SKIP(store);

    for (int i = 0; i < 2; i++)
        add_entry(store, ENTRY_MESSAGE, "\"secret\"", "\"mentions\":[\"bob\"]");
    add_mention(store, 1, "bob", 1);
    add_mention(store, 2, "bob", 2);
    committed(store);
    add_change(store, ENTRY_EDITED, 1, EDITED, "\"secret too\"", NULL);
    committed(store);
    add_change(store, ENTRY_EDITED, 1, EDITED, "\"secret three\"", NULL);
    add_change(store, ENTRY_EDITED, 2, EDITED, "\"stays\"", NULL);
    committed(store);
    add_change(store, ENTRY_RECALLED, 1, RECALLED, "must not be kept", "nor this");
    committed(store);

    assert_entry(store, 1, "2  -");
    assert_entry(store, 3, "0 \"target_seq\":1 -");
    assert_entry(store, 4, "0 \"target_seq\":1 -");
    assert_entry(store, 2, "1 \"stays\" \"mentions\":[\"bob\"]");
    assert_entry(store, 5, "0 \"target_seq\":2 \"content\":\"as edited\"");
    assert_entry(store, 6, "0 \"target_seq\":1 -");
    assert_mentions(store, "2:bob");
}

static void what_was_recalled_can_be_deleted(void **state)
{
    STORE_OR_SKIP(store);

    add_entry(store, ENTRY_MESSAGE, "\"one\"", NULL);
    add_change(store, ENTRY_RECALLED, 1, RECALLED, "", NULL);
    committed(store);
    assert_entry(store, 1, "2  -");
    add_change(store, ENTRY_DELETED, 1, DELETED, "", NULL);
    committed(store);
    assert_entry(store, 1, "3  -");
}

static void what_is_no_message_is_never_changed(void **state)
{
    STORE_OR_SKIP(store);

    add_entry(store, ENTRY_UPDATED, "\"name\":\"Tea\"", "\"result\":1");
    add_change(store, ENTRY_RECALLED, 1, RECALLED, "", NULL);
    committed(store);

    assert_entry(store, 1, "0 \"name\":\"Tea\" \"result\":1");
}

/* Plans are kept for the life of a session, and a large table is hardly ever analysed anew. */
static void change_after_the_log_grew(struct store *store)
{
    for (int i = 0; i < 10; i++) { /* the plans are made */
        add_change(store, ENTRY_RECALLED, 1, RECALLED, "", NULL);
        committed(store);
    }
    database_run(store->sql,
        "INSERT INTO log_entry SELECT 1, i, 1, 1, i, 1, gen_random_uuid(), 2, 0, '', '', '', '', NULL, i - 7"
        " FROM generate_series(100, 20000) i");
    database_run(store->sql, "INSERT INTO mention SELECT 1, 'bob', i FROM generate_series(100, 20000) i");
    database_run(store->sql, "BEGIN");
    add_change(store, ENTRY_RECALLED, 1, RECALLED, "", NULL);
    committed(store);

    assert_true(database_number(store->sql, "SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_xact_user_tables"
                                            " WHERE relname IN ('log_entry', 'mention')") < 1000);
    database_run(store->sql, "COMMIT");
}

static void what_a_change_costs_does_not_grow_with_a_new_log(void **state)
{
    STORE_OR_SKIP(store);

    add_entry(store, ENTRY_MESSAGE, "\"one\"", NULL);
    committed(store);
    change_after_the_log_grew(store);
}

static void what_a_change_costs_does_not_grow_with_a_log_that_knew_no_changes(void **state)
{
    STORE_OR_SKIP(store);

    add_entry(store, ENTRY_MESSAGE, "\"one\"", NULL);
    committed(store);
    database_run(store->sql,
        "INSERT INTO log_entry SELECT i % 100 + 2, i, 1, 1, i, 1, gen_random_uuid(), 1, 0, '', '', '', '', NULL, NULL"
        " FROM generate_series(1, 2000) i");
    database_run(store->sql, "ANALYZE log_entry; ANALYZE mention");
    change_after_the_log_grew(store);
}

/* ------------------------------------------------------------------------------------------------------- mentions */

static void mentions_follow_an_edit_only_when_it_says_what_they_are(void **state)
{
    STORE_OR_SKIP(store);

    add_entry(store, ENTRY_MESSAGE, "\"one\"", NULL);
    add_mention(store, 1, "bob", 1);
    add_mention(store, 1, "@all", 1);
    add_mention(store, 1, "bob", 1); /* said twice */
    committed(store);
    assert_mentions(store, "1:@all 1:bob");
    add_change(store, ENTRY_EDITED, 1, EDITED, "\"a\"", NULL);
    committed(store);
    assert_mentions(store, "1:@all 1:bob");
    add_change(store, ENTRY_EDITED, 1, EDITED, "\"b\"", "\"mentions\":[\"bob\",\"eve\"]");
    add_mention(store, 1, "bob", 3);
    add_mention(store, 1, "eve", 3);
    committed(store);
    assert_mentions(store, "1:bob 1:eve");
    add_change(store, ENTRY_EDITED, 1, EDITED, "\"c\"", "");
    committed(store);
    assert_mentions(store, "");
}

static void a_message_and_its_edit_in_one_batch_end_as_in_two(void **state)
{
    STORE_OR_SKIP(store);

    add_entry(store, ENTRY_MESSAGE, "\"one\"", "\"mentions\":[\"bob\"]");
    add_mention(store, 1, "bob", 1);
    add_change(store, ENTRY_EDITED, 1, EDITED, "\"a\"", "\"mentions\":[\"eve\"]");
    add_mention(store, 1, "eve", 2);
    committed(store);

    assert_entry(store, 1, "1 \"a\" \"mentions\":[\"eve\"]");
    assert_mentions(store, "1:eve");
}

static void a_message_and_its_recall_in_one_batch_leave_no_mention(void **state)
{
    STORE_OR_SKIP(store);

    add_entry(store, ENTRY_MESSAGE, "\"one\"", "\"mentions\":[\"bob\"]");
    add_mention(store, 1, "bob", 1);
    add_change(store, ENTRY_RECALLED, 1, RECALLED, "", NULL);
    committed(store);

    assert_entry(store, 1, "2  -");
    assert_mentions(store, "");
}

/* ------------------------------------------------------------------------------------------------ members and rooms */

static void roles_and_mutes_change_alone(void **state)
{
    static const char *const bob = "SELECT role || ' ' || muted_until FROM room_member WHERE account = 'bob'";
    STORE_OR_SKIP(store);

    add_member(store, "bob", ROLE, ADMIN, 0);
    committed(store);
    assert_text(store, bob, "2 0");
    add_member(store, "bob", MUTED, MEMBER, 5000000000000);
    committed(store);
    assert_text(store, bob, "2 5000000000000");
    add_member(store, "bob", ROLE, MEMBER, 0);
    committed(store);
    assert_text(store, bob, "1 5000000000000");
    add_member(store, "bob", MUTED, ADMIN, 0);
    committed(store);
    assert_text(store, bob, "1 0");
    assert_text(store, "SELECT role || ' ' || muted_until FROM room_member WHERE account = 'eve'", "1 0");
}

static void who_joins_is_not_muted_and_has_nothing_unread(void **state)
{
    STORE_OR_SKIP(store);

    add_entry(store, ENTRY_MESSAGE, "\"one\"", NULL);
    add_entry(store, ENTRY_JOINED, "", NULL);
    add_member(store, "kim", JOINS, MEMBER, 0);
    committed(store);

    assert_text(store,
        "SELECT concat_ws(' ', join_seq, read_seq, read_n, muted_until) FROM room_member WHERE account = 'kim'",
        "2 2 2 0");
    add_member(store, "kim", LEAVES, MEMBER, 0);
    committed(store);
    assert_text(store, "SELECT count(*) FROM room_member WHERE account = 'kim'", "0");
}

static void the_mute_of_a_room_stays_until_it_is_changed(void **state)
{
    static const char *const room = "SELECT name || ' ' || muted_until FROM room";
    STORE_OR_SKIP(store);

    add_room(store, "Tea", "77");
    committed(store);
    assert_text(store, room, "Tea 77");
    add_room(store, "Coffee", NULL);
    committed(store);
    assert_text(store, room, "Coffee 77");
    add_room(store, NULL, "0");
    committed(store);
    assert_text(store, room, "Coffee 0");
}

/* ------------------------------------------------------------------------------------------------------- all of it */

static void a_batch_behind_the_fence_or_on_another_head_changes_nothing(void **state)
{
    STORE_OR_SKIP(store);

    add_entry(store, ENTRY_MESSAGE, "\"one\"", NULL);
    committed(store);
    database_run(store->sql, "UPDATE shard_lease SET epoch = 2");
    add_change(store, ENTRY_RECALLED, 1, RECALLED, "", NULL);
    assert_string_equal(commit(store), "RF001");
    database_run(store->sql, "UPDATE shard_lease SET epoch = 1");
    database_run(store->sql, "UPDATE room_head SET last_seq = 9");
    store->last = 1;
    add_change(store, ENTRY_RECALLED, 1, RECALLED, "", NULL);
    assert_string_equal(commit(store), "RF002");

    assert_entry(store, 1, "0 \"one\" -");
    assert_text(store, "SELECT count(*) FROM log_entry", "1");
}

/* While programs are replaced one by one, both versions write to the same tables. */
static void the_call_of_an_older_program_works_beside(void **state)
{
    STORE_OR_SKIP(store);

    store->parameters = PARAMETERS_ONCE;
    add_entry(store, ENTRY_MESSAGE, "\"one\"", "\"mentions\":[\"bob\"]");
    add_room(store, "Tea", NULL);
    add_member(store, "bob", ROLE, ADMIN, 0);
    committed(store);
    store->parameters = PARAMETERS;
    add_room(store, NULL, "77");
    add_member(store, "bob", MUTED, 0, 88);
    add_change(store, ENTRY_EDITED, 1, EDITED, "\"a\"", NULL);
    committed(store);
    store->parameters = PARAMETERS_ONCE;
    add_entry(store, ENTRY_MESSAGE, "\"three\"", NULL);
    add_room(store, "Coffee", NULL);
    add_member(store, "bob", ROLE, MEMBER, 0);
    committed(store);

    assert_entry(store, 1, "1 \"a\" \"mentions\":[\"bob\"]");
    assert_entry(store, 3, "0 \"three\" -");
    assert_text(store, "SELECT name || ' ' || muted_until FROM room", "Coffee 77");
    assert_text(store, "SELECT role || ' ' || muted_until FROM room_member WHERE account = 'bob'", "1 88");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_edit_changes_its_message_and_keeps_its_own_content_apart, begin, end),
        cmocka_unit_test_setup_teardown(an_edit_with_meta_replaces_it_and_an_empty_one_takes_it_away, begin, end),
        cmocka_unit_test_setup_teardown(a_recall_leaves_no_content_also_not_of_earlier_edits, begin, end),
        cmocka_unit_test_setup_teardown(what_was_recalled_can_be_deleted, begin, end),
        cmocka_unit_test_setup_teardown(what_is_no_message_is_never_changed, begin, end),
        cmocka_unit_test_setup_teardown(what_a_change_costs_does_not_grow_with_a_new_log, begin, end),
        cmocka_unit_test_setup_teardown(what_a_change_costs_does_not_grow_with_a_log_that_knew_no_changes, begin, end),
        cmocka_unit_test_setup_teardown(mentions_follow_an_edit_only_when_it_says_what_they_are, begin, end),
        cmocka_unit_test_setup_teardown(a_message_and_its_edit_in_one_batch_end_as_in_two, begin, end),
        cmocka_unit_test_setup_teardown(a_message_and_its_recall_in_one_batch_leave_no_mention, begin, end),
        cmocka_unit_test_setup_teardown(roles_and_mutes_change_alone, begin, end),
        cmocka_unit_test_setup_teardown(who_joins_is_not_muted_and_has_nothing_unread, begin, end),
        cmocka_unit_test_setup_teardown(the_mute_of_a_room_stays_until_it_is_changed, begin, end),
        cmocka_unit_test_setup_teardown(a_batch_behind_the_fence_or_on_another_head_changes_nothing, begin, end),
        cmocka_unit_test_setup_teardown(the_call_of_an_older_program_works_beside, begin, end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
