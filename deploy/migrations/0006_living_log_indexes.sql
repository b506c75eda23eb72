-- Apart from 0005, which keeps everybody out: while an index is built, reads go on and only commits wait. A log so large that this takes too long
-- gets column and indexes beforehand, with CREATE INDEX CONCURRENTLY (docs/operating.md, Upgrade).

-- A recall finds the edits whose content it takes away.
CREATE INDEX IF NOT EXISTS log_entry_by_target ON log_entry (room_no, target_seq) WHERE target_seq IS NOT NULL;
-- What the running number counts although nobody can read it any more.
CREATE INDEX IF NOT EXISTS log_entry_uncounted ON log_entry (room_no, seq) WHERE type = 1 AND state >= 2 AND kind <> 'tip';
