/*
 * The spool: messages on disk, in order, for the time the broker does not take them. Append-only; what was replayed is
 * behind a mark in the head, and the file is cut when all of it was.
 *
 *   head    32 bytes: "roomd spool 1\n" padded with NUL to 16, where the replayed part ends (u64, little-endian), 8 NUL
 *   record  magic, length of the payload, CRC-32C of the payload (3 x u32, little-endian), the payload:
 *           room_id NUL message_id NUL body
 *
 * The mark is not synced: after a crash some are replayed again, and their ids make that do nothing. Thread: one.
 */
#ifndef ROOMD_ADAPTER_SPOOL_H
#define ROOMD_ADAPTER_SPOOL_H

#include "adapter.h"

struct adapter_spool {
    int fd;
    uint64_t end, done, mark, max; /* offsets: of the file, of what is settled, of the mark on disk; the bound */
    uint64_t next;                 /* the next record to replay */
    uint64_t committed;            /* end as of the last sync */
    uint64_t damaged;
    struct adapter_buf scratch;
};

struct adapter_spool_record {
    const char *room_id, *message_id; /* point into scratch, as body: good until the next call */
    const char *body;
    size_t body_n;
    uint64_t end;
};

/*
 * Opens, locks, and finds the end: a torn last record is cut off, damage elsewhere is stepped over and counted.
 *   ROOMD_CONFLICT, ROOMD_UNAVAILABLE, ROOMD_NO_MEMORY  as roomd_client_open
 */
enum roomd_code adapter_spool_open(struct adapter_spool *spool, const char *file, uint64_t max_bytes, const char **why);
void adapter_spool_close(struct adapter_spool *spool);
/* One more record; false: full, no memory, or the disk does not take it (then nothing of it is left). */
bool adapter_spool_add(
    struct adapter_spool *spool, const char *room_id, const char *message_id, const char *body, size_t n);
/* All that was added is on the disk. false: it is not, and was taken back. */
bool adapter_spool_commit(struct adapter_spool *spool);
/* The record at spool->next, which moves behind it; false: none. */
bool adapter_spool_read(struct adapter_spool *spool, struct adapter_spool_record *record);
/* Everything below `end` is settled. */
void adapter_spool_settled(struct adapter_spool *spool, uint64_t end);
static inline bool adapter_spool_empty(const struct adapter_spool *spool)
{
    return spool->done == spool->end;
}

#endif
