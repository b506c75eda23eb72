/*
 * A batch of rows as the parameters of append() (deploy/migrations), and which rows fit into one call of it. The writer
 * decides what is sent and what comes of it. Nobody outside history/ includes this.
 *
 *   append_begin ─▶ append_admit of each row ─▶ append_shard, append_row … ─▶ append_params ─▶ pg_submit
 *
 * Thread: the loop's. Memory: one struct append serves one batch after the other; the rows are the sequencers' and must
 * stay until append_params was submitted, which copies.
 */
#ifndef ROOMD_HISTORY_APPEND_H
#define ROOMD_HISTORY_APPEND_H

#include "room/base/pg.h"
#include "sequencer.h"

struct append;

struct append *append_new(size_t rows_max); /* of one batch */
void append_free(struct append *append);
void append_begin(struct append *append); /* forgets the batch before */

/* For rows that are entries, in the order of their rooms. false: an earlier row of the batch changes the same message,
 * or its room's members: append() does that for a whole batch at once, so this row begins the next one. */
MUST_USE bool append_admit(struct append *append, const struct seq_row *row);
/* Of those asked about since append_begin. Not to be mixed with append_admit. */
bool append_is_first_of_room(struct append *append, const struct seq_row *row);

/* The shard whose rows follow, and the epoch under which they are sequenced: the fence. */
void append_shard(struct append *append, struct str name, uint64_t epoch);
void append_row(struct append *append, struct str shard, const struct seq_row *row, uint64_t now_ms /* since 1970 */);
/* All of it, for append_statement; valid until the next append_begin. self: this instance's id, compared with the
 * lease's holder. */
const struct pg_params *append_params(struct append *append, struct str self);
extern const struct pg_statement append_statement;

#endif
