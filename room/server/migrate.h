/*
 * The schema: deploy/migrations/NNNN_name.sql, built into the program, applied in order, each once and as a whole.
 * Thread: main; this blocks, and runs without a loop.
 */
#ifndef ROOMD_SERVER_MIGRATE_H
#define ROOMD_SERVER_MIGRATE_H

#include "room/base/config.h"

struct migration {
    const char *name; /* file name without .sql */
    const char *sql;
};
/* Generated at build time; the last one has no name. */
extern const struct migration migrations[];

/* Bring the database up to date, make shards up to shard_count. false: a sentence is in `why`. Says on stdout what it
 * did. */
bool migrate(const struct config *config, bool new_generation, struct buf *why);

#endif
