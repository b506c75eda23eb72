/*
 * How much an account has not read, for many rooms in one statement. The counting itself is SQL (counts_of),
 * beside the rows; a room that is read to its end costs three look-ups by key.
 */
#include "reader.h"

#define COUNTED "r.room_id, h.last_seq, m.read_seq, c.unread, c.mentioned"
#define COUNTS "CROSS JOIN LATERAL counts_of(m.room_no, m.account, m.read_seq, m.read_n, h.last_seq, h.counted) c "

/* Newest activity first, as ListRooms has them. */
static const struct pg_statement all_statement = {
    .name = "history_unread",
    .sql = "SELECT " COUNTED " FROM room_member m JOIN room r ON r.room_no = m.room_no "
           "JOIN room_head h ON h.room_no = m.room_no " COUNTS
           "WHERE m.account = $1 AND NOT r.removed ORDER BY h.last_at DESC, m.room_no DESC",
    .params = 1,
};
static const struct pg_statement named_statement = {
    .name = "history_unread_of",
    .sql = "SELECT " COUNTED " FROM unnest($2::text[]) WITH ORDINALITY x(room_id, n) "
           "JOIN room r ON r.room_id = x.room_id COLLATE \"C\" JOIN room_head h ON h.room_no = r.room_no "
           "JOIN room_member m ON m.room_no = r.room_no AND m.account = $1 " COUNTS "WHERE NOT r.removed ORDER BY x.n",
    .params = 2,
};
enum { C_ROOM_ID, C_HEAD_SEQ, C_READ_SEQ, C_UNREAD, C_MENTIONED };

static void unread_on_rows(struct pg_query *query, enum err err, const PGresult *result);

void history_ask_unread(struct history *history, struct history_unread *unread)
{
    struct pg_params params = {0};
    struct pg_array rooms = {0};

    pg_param_text(&params, unread->account);
    if (unread->room_ids) {
        pg_array_reset(&rooms, PG_TEXT);
        for (size_t i = 0; i < unread->room_id_count; i++)
            pg_array_bytes(&rooms, unread->room_ids[i]);
        pg_param_array(&params, &rooms);
    }
    unread->query = (struct pg_query){
        .statement = unread->room_ids ? &named_statement : &all_statement, .lane = PG_READ, .done = unread_on_rows};
    pg_submit(history->pg, &unread->query, &params);
    pg_array_clear(&rooms);
    pg_params_clear(&params);
}

static void write_number(struct buf *json, const char *name, int64_t value)
{
    buf_text(json, name);
    buf_i64(json, value);
}

static void write_rooms(struct buf *json, const PGresult *result)
{
    int64_t total = 0;

    buf_text(json, "{\"rooms\":[");
    for (int row = 0; row < PQntuples(result); row++) {
        int64_t count = pg_get_i64(result, row, C_UNREAD);

        buf_text(json, row ? ",{\"room_id\":" : "{\"room_id\":");
        buf_json_string(json, pg_get_str(result, row, C_ROOM_ID));
        write_number(json, ",\"head_seq\":", pg_get_i64(result, row, C_HEAD_SEQ));
        write_number(json, ",\"read_seq\":", pg_get_i64(result, row, C_READ_SEQ));
        write_number(json, ",\"unread\":", count);
        write_number(json, ",\"mentioned\":", pg_get_i64(result, row, C_MENTIONED));
        buf_char(json, '}');
        total += count;
    }
    write_number(json, "],\"total\":", total);
    buf_char(json, '}');
}

static void unread_on_rows(struct pg_query *query, enum err err, const PGresult *result)
{
    struct history_unread *unread = container_of(query, struct history_unread, query);
    struct buf json = {0};

    err = reader_error(query, err, result);
    if (!err)
        write_rooms(&json, result);
    unread->answer_json = buf_str(&json);
    unread->done(unread, err);
    buf_clear(&json);
}
