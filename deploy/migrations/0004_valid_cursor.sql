-- What of a cursor is valid: the largest seq' <= seq in the log whose entry has an epoch <= the cursor's. Epochs never fall as seq rises and
-- there is no hole, so a cursor from before a long-past takeover is found by halving: at most 63 look-ups by primary key, never a scan.
-- No row in room_head: everything is null.
CREATE FUNCTION valid_cursor(p_room bigint, p_epoch bigint, p_seq bigint,
    OUT valid_epoch bigint, OUT valid_seq bigint, OUT head_epoch bigint, OUT head_seq bigint
) LANGUAGE plpgsql STABLE AS $$
DECLARE
    good bigint := 0; -- valid for sure
    bad bigint;       -- not valid for sure
    middle bigint;
    its_epoch bigint;
BEGIN
    SELECT last_epoch, last_seq INTO head_epoch, head_seq FROM room_head WHERE room_no = p_room;
    bad := least(p_seq, head_seq) + 1;
    valid_epoch := 0;
    middle := bad - 1; -- nearly always the answer
    WHILE bad - good > 1 LOOP
        SELECT e.epoch INTO its_epoch FROM log_entry e WHERE e.room_no = p_room AND e.seq = middle;
        IF its_epoch <= p_epoch THEN
            good := middle;
            valid_epoch := its_epoch;
        ELSE
            bad := middle;
        END IF;
        middle := (good + bad) / 2;
    END LOOP;
    valid_seq := good;
END $$;
