/*
 * The two lists: who is in a room, and which rooms an account is in. Both are paged by key, not by number, so that a
 * page costs the same wherever it is. `next` is opaque to callers: a page's last account as hex; a page's last room as
 * <last_at>.<room_no>.
 */
#include "room.h"
#include "rooms.h"

#include <stdio.h>

#include "room/base/clock.h"
#include "room/base/text.h"

/* -------------------------------------------------------------------------------------------------- ListAccounts */

/* One row without an account: the room exists and nobody (of those asked for) is on this page. No row: there is no such
 * room. */
#define ACCOUNTS_SQL(which)                                                                                        \
    "SELECT m.account, m.role, m.joined_at, m.join_seq, m.read_seq, m.muted_until FROM room r LEFT JOIN LATERAL (" \
    "SELECT * FROM room_member m WHERE m.room_no = r.room_no AND " which " AND m.read_seq >= $4 "                  \
    "ORDER BY m.account LIMIT $3) m ON true "                                                                      \
    "WHERE r.room_id = $1 ORDER BY m.account"

static const struct pg_statement accounts_page_statement = {
    .name = "room_accounts_page",
    .sql = ACCOUNTS_SQL("m.account > $2"),
    .params = 4,
};
static const struct pg_statement accounts_of_statement = {
    .name = "room_accounts_of",
    .sql = ACCOUNTS_SQL("m.account = ANY ($2::text[])"),
    .params = 4,
};

static void accounts_on_rows(struct pg_query *query, enum err err, const PGresult *result);
static void accounts_on_bad_after(struct pg_query *query, enum err err, const PGresult *result);

static void write_hex(struct buf *out, struct str s)
{
    for (size_t i = 0; i < s.n; i++)
        buf_printf(out, "%02x", (unsigned char)s.p[i]);
}

static bool read_hex(struct str hex, struct buf *out)
{
    if (hex.n % 2)
        return false;
    for (size_t i = 0; i < hex.n; i += 2) {
        int high = hex_digit(hex.p[i]), low = hex_digit(hex.p[i + 1]);

        if (high < 0 || low < 0)
            return false;
        buf_char(out, (char)(high << 4 | low));
    }
    return true;
}

void room_list_accounts(struct rooms *rooms, struct room_list_accounts *list)
{
    struct pg_params params = {0};
    struct pg_array ids = {0};
    struct buf after = {0};
    bool good = read_hex(list->after, &after) && (!list->after.n || account_valid(buf_str(&after)));

    pg_param_text(&params, list->room_id);
    if (list->account_count) {
        pg_array_reset(&ids, PG_TEXT);
        for (size_t i = 0; i < list->account_count; i++)
            pg_array_bytes(&ids, list->account_ids[i]);
        pg_param_array(&params, &ids);
    } else {
        pg_param_text(&params, good ? buf_str(&after) : STR(""));
    }
    /* One more than asked for tells whether there is a next page. A bad `after` is told when the answer comes: never
     * from inside this call. */
    pg_param_i64(&params, good ? list->account_count ? (int64_t)list->account_count : list->limit + 1 : 0);
    pg_param_i64(&params, list->has_read > INT64_MAX ? INT64_MAX : (int64_t)list->has_read);
    list->query = (struct pg_query){
        .statement = list->account_count ? &accounts_of_statement : &accounts_page_statement,
        .lane = PG_READ,
        .done = good ? accounts_on_rows : accounts_on_bad_after,
    };
    pg_submit(rooms->pg, &list->query, &params);
    buf_clear(&after);
    pg_array_clear(&ids);
    pg_params_clear(&params);
}

static void accounts_on_bad_after(struct pg_query *query, enum err err, const PGresult *result)
{
    struct room_list_accounts *list = container_of(query, struct room_list_accounts, query);

    err = rooms_read_error(query, err, result);
    list->done(list, err ? err : ERR_BAD_REQUEST);
}

static void write_account(struct buf *json, const PGresult *result, int row, int64_t now_ms)
{
    int64_t muted_until = pg_get_i64(result, row, 5);

    buf_text(json, row ? ",{\"account_id\":" : "{\"account_id\":");
    buf_json_string(json, pg_get_str(result, row, 0));
    buf_printf(json, ",\"role\":\"%s\",\"joined_at\":", role_name((enum role)pg_get_i64(result, row, 1)));
    buf_i64(json, pg_get_i64(result, row, 2));
    buf_text(json, ",\"join_seq\":");
    buf_i64(json, pg_get_i64(result, row, 3));
    buf_text(json, ",\"read_seq\":");
    buf_i64(json, pg_get_i64(result, row, 4));
    if (muted_until > now_ms) {
        buf_text(json, ",\"muted_until\":");
        buf_i64(json, muted_until);
    }
    buf_char(json, '}');
}

static void accounts_on_rows(struct pg_query *query, enum err err, const PGresult *result)
{
    struct room_list_accounts *list = container_of(query, struct room_list_accounts, query);
    struct buf json = {0};
    int rows = err ? 0 : PQntuples(result), shown;

    err = rooms_read_error(query, err, result);
    if (!err && rows == 0)
        err = ERR_NO_SUCH_ROOM;
    if (!err) {
        if (pg_is_null(result, 0, 0))
            rows = 0;
        shown = !list->account_count && rows > list->limit ? list->limit : rows;
        buf_text(&json, "{\"accounts\":[");
        for (int row = 0; row < shown; row++)
            write_account(&json, result, row, (int64_t)clock_unix_ms());
        buf_char(&json, ']');
        if (shown < rows) {
            buf_text(&json, ",\"next\":\"");
            write_hex(&json, pg_get_str(result, shown - 1, 0));
            buf_char(&json, '"');
        }
        buf_char(&json, '}');
        list->answer_json = buf_str(&json);
    }
    list->done(list, err);
    buf_clear(&json);
}

/* ----------------------------------------------------------------------------------------------------- ListRooms */

/*
 * last: the newest entry the account may see and has not hidden. Edits, recalls and deletes show in the message they
 * change, voids hold nothing. Unread and mentions are counted where the rows are (counts_of).
 */
static const struct pg_statement rooms_page_statement = {
    .name = "room_rooms_page",
    .sql = "WITH page AS (SELECT m.room_no, m.join_seq, m.read_seq, m.read_n, h.last_at "
           "FROM room_member m JOIN room r ON r.room_no = m.room_no JOIN room_head h ON h.room_no = m.room_no "
           "WHERE m.account = $1 AND NOT r.removed AND (h.last_at, m.room_no) < ($2, $3) "
           "ORDER BY h.last_at DESC, m.room_no DESC LIMIT $4) "
           "SELECT room_object(r, h), r.room_id, p.last_at, p.room_no, p.read_seq, "
           "c.unread, c.mentioned, " ENTRY_COLUMNS(
               "e") " FROM page p JOIN room r ON r.room_no = p.room_no "
                    "JOIN room_head h ON h.room_no = p.room_no LEFT JOIN LATERAL ("
                    "SELECT * FROM log_entry w WHERE w.room_no = p.room_no AND w.seq >= p.join_seq "
                    "AND w.type NOT IN (0, 2, 3, 4) AND NOT EXISTS (SELECT 1 FROM hidden_entry d "
                    "WHERE d.room_no = p.room_no AND d.account = $1 AND d.seq = w.seq) "
                    "ORDER BY w.seq DESC LIMIT 1) e ON true "
                    "CROSS JOIN LATERAL counts_of(p.room_no, $1, p.read_seq, p.read_n, h.last_seq, h.counted) c "
                    "ORDER BY p.last_at DESC, p.room_no DESC",
    .params = 4,
};

static void rooms_on_rows(struct pg_query *query, enum err err, const PGresult *result);
static void rooms_on_bad_after(struct pg_query *query, enum err err, const PGresult *result);

/* <last_at>.<room_no>; empty is the first page. */
static bool read_rooms_after(struct str after, int64_t *last_at, int64_t *room_no)
{
    int64_t *number = last_at;
    size_t digits = 0;

    if (!after.n) {
        *last_at = *room_no = INT64_MAX;
        return true;
    }
    *last_at = *room_no = 0;
    for (size_t i = 0; i < after.n; i++) {
        if (after.p[i] == '.' && number == last_at && digits) {
            number = room_no;
            digits = 0;
        } else if (after.p[i] >= '0' && after.p[i] <= '9' && ++digits <= 18) {
            *number = *number * 10 + (after.p[i] - '0');
        } else {
            return false;
        }
    }
    return number == room_no && digits;
}

void room_list_rooms(struct rooms *rooms, struct room_list_rooms *list)
{
    struct pg_params params = {0};
    int64_t last_at, room_no;
    bool good = read_rooms_after(list->after, &last_at, &room_no);

    list->rooms = rooms;
    pg_param_text(&params, list->account);
    pg_param_i64(&params, good ? last_at : 0);
    pg_param_i64(&params, good ? room_no : 0);
    pg_param_i64(&params, good ? list->limit + 1 : 0);
    list->query = (struct pg_query){
        .statement = &rooms_page_statement, .lane = PG_READ, .done = good ? rooms_on_rows : rooms_on_bad_after};
    pg_submit(rooms->pg, &list->query, &params);
    pg_params_clear(&params);
}

static void rooms_on_bad_after(struct pg_query *query, enum err err, const PGresult *result)
{
    struct room_list_rooms *list = container_of(query, struct room_list_rooms, query);

    err = rooms_read_error(query, err, result);
    list->done(list, err ? err : ERR_BAD_REQUEST);
}

enum {
    ROOMS_OBJECT,
    ROOMS_ROOM_ID,
    ROOMS_LAST_AT,
    ROOMS_ROOM_NO,
    ROOMS_READ_SEQ,
    ROOMS_UNREAD,
    ROOMS_MENTIONED,
    ROOMS_ENTRY
};

static void write_room(const struct rooms *rooms, struct buf *json, const PGresult *result, int row)
{
    struct str object = pg_get_str(result, row, ROOMS_OBJECT);

    if (row)
        buf_char(json, ',');
    buf_add(json, object.p, object.n - 1); /* the closing brace comes later */
    buf_text(json, ",\"read_seq\":");
    buf_i64(json, pg_get_i64(result, row, ROOMS_READ_SEQ));
    buf_text(json, ",\"unread\":");
    buf_i64(json, pg_get_i64(result, row, ROOMS_UNREAD));
    buf_text(json, ",\"mentioned\":");
    buf_i64(json, pg_get_i64(result, row, ROOMS_MENTIONED));
    buf_text(json, ",\"last\":");
    if (!rooms->write_entry || pg_is_null(result, row, ROOMS_ENTRY))
        buf_text(json, "null");
    else
        rooms->write_entry(json, pg_get_str(result, row, ROOMS_ROOM_ID), pg_get_i64(result, row, ROOMS_ROOM_NO), result,
            row, ROOMS_ENTRY);
    buf_char(json, '}');
}

static void rooms_on_rows(struct pg_query *query, enum err err, const PGresult *result)
{
    struct room_list_rooms *list = container_of(query, struct room_list_rooms, query);
    struct buf json = {0};
    int rows = err ? 0 : PQntuples(result), shown = rows > list->limit ? list->limit : rows;

    err = rooms_read_error(query, err, result);
    if (!err) {
        buf_text(&json, "{\"rooms\":[");
        for (int row = 0; row < shown; row++)
            write_room(list->rooms, &json, result, row);
        buf_char(&json, ']');
        if (shown < rows) {
            buf_text(&json, ",\"next\":\"");
            buf_i64(&json, pg_get_i64(result, shown - 1, ROOMS_LAST_AT));
            buf_char(&json, '.');
            buf_i64(&json, pg_get_i64(result, shown - 1, ROOMS_ROOM_NO));
            buf_char(&json, '"');
        }
        buf_char(&json, '}');
        list->answer_json = buf_str(&json);
    }
    list->done(list, err);
    buf_clear(&json);
}
