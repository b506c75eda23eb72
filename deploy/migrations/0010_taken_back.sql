-- Voids in the place of messages that readers may have been shown: late duplicates, and what the database refused. There are hardly any. Who comes back
-- with a cursor just above one is told of it once more. How the index is built on a large log: see 0006.
CREATE INDEX IF NOT EXISTS log_entry_taken_back ON log_entry (room_no, seq) WHERE type = 0 AND message_id IS NULL;
