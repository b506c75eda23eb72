/* Create and Get: one statement each; the rows become JSON in the database (deploy/migrations/0003_room_create.sql). */
#include "room.h"
#include "rooms.h"

#include <stdlib.h>

#include "room/base/log.h"

struct rooms *rooms_open(struct pg *pg, struct cluster *cluster)
{
    struct rooms *rooms = xcalloc(1, sizeof *rooms);

    rooms->pg = pg;
    rooms->cluster = cluster;
    return rooms;
}

void rooms_show_entries_with(struct rooms *rooms, room_entry_writer write)
{
    rooms->write_entry = write;
}

void rooms_close(struct rooms *rooms)
{
    free(rooms);
}

enum err rooms_read_error(const struct pg_query *query, enum err err, const PGresult *result)
{
    if (err == ERR_DATABASE)
        log_error("rooms.refused", "statement=%s sqlstate=%s", query->statement->name, pg_sqlstate(result));
    return err == ERR_LOST || err == ERR_DATABASE ? ERR_UNAVAILABLE : err; /* a read that got lost did not happen */
}

/* -------------------------------------------------------------------------------------------------------- Create */

static const struct pg_statement create_statement = {
    .name = "room_create",
    .sql = "SELECT created, conflict, room_id, object, founders "
           "FROM room_create($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
    .params = 14,
};

static void create_on_row(struct pg_query *query, enum err err, const PGresult *result);

static void param_text_or_null(struct pg_params *params, struct str text)
{
    if (text.n)
        pg_param_text(params, text);
    else
        pg_param_null(params);
}

/* New rooms are spread evenly; NULL, before the shards are known, leaves the choice to the database. */
static void param_shard(struct pg_params *params, const struct cluster *cluster)
{
    size_t count = cluster_shard_count(cluster);
    uint64_t random;

    if (!count) {
        pg_param_null(params);
        return;
    }
    random_bytes(&random, sizeof random);
    pg_param_text(params, str_of(cluster_shards(cluster)[random % count].name));
}

/* Both accounts of a direct room in byte order, a line feed between: ids hold no control characters. */
static void write_pair(struct buf *out, struct str a, struct str b)
{
    size_t shorter = a.n < b.n ? a.n : b.n;
    int order = memcmp(a.p, b.p, shorter);
    bool swap = order > 0 || (order == 0 && a.n > b.n);

    buf_add_str(out, swap ? b : a);
    buf_char(out, '\n');
    buf_add_str(out, swap ? a : b);
}

void room_create(struct rooms *rooms, struct room_create *create)
{
    struct pg_params params = {0};
    struct pg_array members = {0};
    struct buf pair = {0};
    char ulid[ULID_TEXT];

    ulid_write(ulid, ulid_new(create->now_ms));
    if (str_is(create->kind, "direct"))
        write_pair(&pair, create->members[0], create->members[1]);
    pg_array_reset(&members, PG_TEXT);
    for (size_t i = 0; i < create->member_count; i++)
        pg_array_bytes(&members, create->members[i]);

    param_shard(&params, rooms->cluster);
    pg_param_text(&params, (struct str){ulid, sizeof ulid});
    pg_param_text(&params, create->kind.n ? create->kind : STR("group"));
    param_text_or_null(&params, create->key);
    param_text_or_null(&params, buf_str(&pair));
    pg_param_text(&params, create->name);
    param_text_or_null(&params, create->owner);
    pg_param_array(&params, &members);
    pg_param_i32(&params, create->member_limit);
    pg_param_bool(&params, create->since_join);
    pg_param_text(&params, create->extra.n ? create->extra : STR("{}"));
    param_text_or_null(&params, create->request_id);
    pg_param_i64(&params, create->request_hash);
    pg_param_i64(&params, (int64_t)create->now_ms);

    create->query = (struct pg_query){.statement = &create_statement, .lane = PG_READ, .done = create_on_row};
    pg_submit(rooms->pg, &create->query, &params);
    buf_clear(&pair);
    pg_array_clear(&members);
    pg_params_clear(&params);
}

static void create_on_row(struct pg_query *query, enum err err, const PGresult *result)
{
    struct room_create *create = container_of(query, struct room_create, query);

    if (err == ERR_DATABASE)
        log_error("rooms.refused", "statement=%s sqlstate=%s", query->statement->name, pg_sqlstate(result));
    if (!err && pg_get_bool(result, 0, 1))
        err = ERR_CONFLICT;
    if (!err) {
        create->created = pg_get_bool(result, 0, 0);
        create->room_id = pg_get_str(result, 0, 2);
        create->room_json = pg_get_str(result, 0, 3);
        create->founders_json = pg_get_str(result, 0, 4);
    }
    create->done(create, err);
}

/* ----------------------------------------------------------------------------------------------------------- Get */

static const struct pg_statement get_by_id_statement = {
    .name = "room_get_by_id",
    .sql = "SELECT room_object(r, h) FROM unnest($1::text[]) WITH ORDINALITY x(room_id, n) "
           "JOIN room r ON r.room_id = x.room_id COLLATE \"C\" JOIN room_head h ON h.room_no = r.room_no ORDER BY x.n",
    .params = 1,
};
static const struct pg_statement get_by_key_statement = {
    .name = "room_get_by_key",
    .sql = "SELECT room_object(r, h) FROM room r JOIN room_head h ON h.room_no = r.room_no WHERE r.key = $1 AND NOT "
           "r.removed",
    .params = 1,
};

static void get_on_rows(struct pg_query *query, enum err err, const PGresult *result);

void room_get(struct rooms *rooms, struct room_get *get)
{
    struct pg_params params = {0};
    struct pg_array ids = {0};

    if (get->key.n) {
        pg_param_text(&params, get->key);
    } else {
        pg_array_reset(&ids, PG_TEXT);
        for (size_t i = 0; i < get->room_id_count; i++)
            pg_array_bytes(&ids, get->room_ids[i]);
        pg_param_array(&params, &ids);
    }
    get->query = (struct pg_query){
        .statement = get->key.n ? &get_by_key_statement : &get_by_id_statement, .lane = PG_READ, .done = get_on_rows};
    pg_submit(rooms->pg, &get->query, &params);
    pg_array_clear(&ids);
    pg_params_clear(&params);
}

static void get_on_rows(struct pg_query *query, enum err err, const PGresult *result)
{
    struct room_get *get = container_of(query, struct room_get, query);
    struct buf json = {0};

    if (!err) {
        get->found = (size_t)PQntuples(result);
        buf_char(&json, '[');
        for (int row = 0; row < PQntuples(result); row++) {
            if (row)
                buf_char(&json, ',');
            buf_add_str(&json, pg_get_str(result, row, 0));
        }
        buf_char(&json, ']');
        get->rooms_json = buf_str(&json);
    }
    get->done(get, rooms_read_error(query, err, result));
    buf_clear(&json);
}
