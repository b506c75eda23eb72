/* What the files of room/ know of the store; nobody outside includes this. Thread: the loop's. */
#ifndef ROOMD_ROOM_ROOMS_H
#define ROOMD_ROOM_ROOMS_H

#include "room.h"

struct rooms {
    struct pg *pg;
    struct cluster *cluster;
    room_entry_writer write_entry; /* NULL: lists show no last entry */
};

/* What a failed read is to the caller; logs what the database refused. ERR_OK stays. */
enum err rooms_read_error(const struct pg_query *query, enum err err, const PGresult *result);

#endif
