-- What the owner asks before edits and recalls of a room it knows: who acts (kind 2: role, join_seq, muted_until), whether the call's id is in the
-- log already (kind 3: seq, hash; seq 0: among the dead letters), and the message it is about (kind 4, named by seq or by id). Some times a millisecond and for few rows each: planning would cost several times the look-ups. As a function the
-- plan is made once a session, by keys whatever the tables looked like then.
CREATE FUNCTION facts_of_changes(m_part int[], m_room text[], m_account text[], t_part int[], t_room text[], t_seq bigint[], t_id uuid[],
    i_part int[], i_room text[], i_id uuid[])
RETURNS TABLE (kind int, part int, room_id text, name text, id uuid, n1 bigint, n2 bigint, n3 bigint, n4 bigint, n5 bigint, n6 bigint, n7 bigint, n8 bigint,
    n9 bigint, message_kind text, meta text)
LANGUAGE plpgsql STABLE ROWS 10 SET enable_seqscan = off SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
DECLARE
    r bigint;
BEGIN
    FOR i IN 1..cardinality(m_part) LOOP
        RETURN QUERY SELECT 2, m_part[i], m_room[i], m_account[i], NULL::uuid, m.role::bigint, m.join_seq, m.muted_until, 0::bigint, 0::bigint, 0::bigint,
                0::bigint, 0::bigint, 0::bigint, ''::text, ''::text
            FROM room r, room_member m WHERE r.room_id = m_room[i] AND m.room_no = r.room_no AND m.account = m_account[i];
    END LOOP;
    FOR i IN 1..cardinality(i_part) LOOP
        r := (SELECT r.room_no FROM room r WHERE r.room_id = i_room[i]);
        RETURN QUERY SELECT 3, i_part[i], i_room[i], ''::text, e.message_id, e.seq, e.hash, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint,
                0::bigint, 0::bigint, ''::text, ''::text
            FROM log_entry e WHERE e.room_no = r AND e.message_id = i_id[i];
        IF NOT FOUND AND EXISTS (SELECT 1 FROM outbox o WHERE o.message_id = i_id[i] AND o.room_id = i_room[i]) THEN
            RETURN QUERY SELECT 3, i_part[i], i_room[i], ''::text, i_id[i], 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint,
                    0::bigint, 0::bigint, ''::text, ''::text;
        END IF;
    END LOOP;
    FOR i IN 1..cardinality(t_part) LOOP
        r := (SELECT r.room_no FROM room r WHERE r.room_id = t_room[i]);
        IF t_id[i] IS NULL THEN
            RETURN QUERY SELECT 4, t_part[i], t_room[i], e.sender, e.message_id, e.seq, e.at, e.state::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint,
                    0::bigint, 0::bigint, e.kind, left(coalesce(e.meta, ''), 40)
                FROM log_entry e WHERE e.room_no = r AND e.seq = t_seq[i] AND e.type = 1;
        ELSE
            RETURN QUERY SELECT 4, t_part[i], t_room[i], e.sender, e.message_id, e.seq, e.at, e.state::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint,
                    0::bigint, 0::bigint, e.kind, left(coalesce(e.meta, ''), 40)
                FROM log_entry e WHERE e.room_no = r AND e.message_id = t_id[i] AND e.type = 1;
        END IF;
    END LOOP;
END $$;
