/*
 * Rooms and members as rows: Create, Get, lists. What changes a room that exists goes through the log
 * (history_submit_op), never through here. Asynchronous functions answer once, later, on the loop; the request is
 * embedded in the caller's operation and must live until then, as must its slices. Thread: the loop's.
 */
#ifndef ROOMD_ROOM_ROOM_H
#define ROOMD_ROOM_ROOM_H

#include "name.h"
#include "room/base/cluster.h"
#include "room/base/json.h"
#include "room/base/pg.h"

#define ROOM_CREATE_MEMBERS_MAX 1000
#define ROOM_GET_MAX 500
#define ROOM_PAGE_MAX 1000

struct rooms; /* the store */
struct rooms *rooms_open(struct pg *pg, struct cluster *cluster);
void rooms_close(struct rooms *rooms);

/*
 * Lists of rooms show each room's last entry. How an entry looks is history's business, which stands to the right of
 * this folder: main connects its writer here. `column` is the first of ENTRY_COLUMNS in the result.
 */
#define ENTRY_COLUMNS(e)                                                                                        \
    e ".seq, " e ".epoch, " e ".at, " e ".counted, " e ".type, " e ".state, " e ".message_id, " e ".sender, " e \
      ".client_msg_id, " e ".kind, " e ".content, " e ".meta"
typedef void (*room_entry_writer)(
    struct buf *out, struct str room_id, int64_t room_no, const PGresult *result, int row, int column);
void rooms_show_entries_with(struct rooms *rooms, room_entry_writer write);

struct room_create {
    struct str kind, key, name, owner, extra; /* empty = not given; extra = JSON object text */
    const struct str *members;                /* each once; the owner, when given, is among them. direct: exactly two */
    size_t member_count;
    int32_t member_limit;
    bool since_join;
    struct str request_id;
    int64_t request_hash; /* over the body as it came */
    uint64_t now_ms;
    void (*done)(struct room_create *create, enum err err);
    /* ERR_OK, ERR_CONFLICT (request_id with another body), ERR_UNAVAILABLE, ERR_TIMEOUT. On ERR_OK, good
     * for the call: */
    struct str room_id;
    struct str room_json; /* the `room` object */
    bool created;
    struct str founders_json; /* for the announcement: who is in it since it was made; empty when that is long ago */
    struct pg_query query;
};
void room_create(struct rooms *rooms, struct room_create *create);

struct room_get {
    const struct str *room_ids; /* or */
    size_t room_id_count;
    struct str key;
    void (*done)(struct room_get *get, enum err err); /* ERR_OK, ERR_UNAVAILABLE, ERR_TIMEOUT */
    struct str rooms_json; /* array of `room` objects found, in the order asked for; good for the call */
    size_t found;
    struct pg_query query;
};
void room_get(struct rooms *rooms, struct room_get *get);

struct room_list_accounts {
    struct str room_id, after; /* after: opaque, from next */
    int limit;
    const struct str *account_ids;
    size_t account_count; /* > 0: only these */
    uint64_t has_read;    /* > 0: only those whose read cursor stands there or further on */
    /* ERR_OK, ERR_NO_SUCH_ROOM, ERR_BAD_REQUEST (after), … */
    void (*done)(struct room_list_accounts *list, enum err err);
    struct str answer_json; /* {"accounts":[…],"next"?:…}; good for the call */
    struct pg_query query;
};
void room_list_accounts(struct rooms *rooms, struct room_list_accounts *list);

struct room_list_rooms {
    struct str account, after;
    int limit;
    void (*done)(struct room_list_rooms *list, enum err err);
    struct str answer_json; /* {"rooms":[…],"next"?:…} */
    struct pg_query query;
    struct rooms *rooms;
};
void room_list_rooms(struct rooms *rooms, struct room_list_rooms *list);

#endif
