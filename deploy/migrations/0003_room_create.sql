-- Create, and the one form in which rooms are shown. Both live here, beside the rows, so that a call is one round trip.

-- The `room` object of the protocol. extra comes back as the text it was given as.
CREATE FUNCTION room_object(r room, h room_head) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT concat('{"room_id":"', r.room_id, '","key":', coalesce(to_json(r.key)::text, 'null'), ',"kind":"', r.kind,
        '","name":', to_json(r.name), ',"notice":', to_json(r.notice),
        ',"owner":', coalesce(to_json(nullif(r.owner, ''))::text, 'null'),
        ',"members":', r.members, ',"member_limit":', r.member_limit,
        ',"history":"', CASE WHEN r.since_join THEN 'since_join' ELSE 'all' END, '","extra":', r.extra,
        ',"state":"', CASE WHEN r.removed THEN 'removed' ELSE 'open' END,
        '","head":"', h.last_epoch, ':', h.last_seq, '","last_at":', h.last_at, ',"created_at":', r.created_at, '}')
$$;

-- Makes the room, or finds the one that the request id, the key or the pair stands for. Any number of callers at once get the same room:
-- the unique indexes decide, the slower ones wait for the faster one's commit and go round once more.
-- p_members are all founders, each once, the owner among them. p_pair: both accounts of a direct room, as column pair has them.
-- p_shard is null when the caller does not know the shards yet.
CREATE FUNCTION room_create(
    p_shard text, p_ulid text, p_kind text, p_key text, p_pair text, p_name text, p_owner text, p_members text[],
    p_limit int, p_since_join boolean, p_extra text, p_request text, p_hash bigint, p_now bigint,
    OUT created boolean, OUT conflict boolean, OUT room_id text, OUT object text, OUT founders text
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    r room;
BEGIN
    conflict := false;
    p_shard := coalesce(p_shard, (SELECT l.shard FROM shard_lease l ORDER BY random() LIMIT 1));
    FOR attempt IN 1..20 LOOP
        created := true; -- a repeat gets the first result
        SELECT * INTO r FROM room WHERE create_request = p_request;
        IF FOUND THEN
            IF r.create_hash <> p_hash THEN
                conflict := true;
                RETURN;
            END IF;
            EXIT;
        END IF;

        created := false;
        IF p_key IS NOT NULL THEN
            SELECT * INTO r FROM room WHERE key = p_key AND NOT removed;
            EXIT WHEN FOUND;
        ELSIF p_pair IS NOT NULL THEN
            SELECT * INTO r FROM room WHERE pair = p_pair AND NOT removed;
            EXIT WHEN FOUND;
        END IF;

        INSERT INTO room (room_id, shard, kind, key, pair, name, owner, members, member_limit, since_join, extra, created_at,
                create_request, create_hash)
            VALUES (p_shard || '.' || p_ulid, p_shard, p_kind, p_key, p_pair, p_name, p_owner, cardinality(p_members), p_limit, p_since_join, p_extra,
                p_now, p_request, p_hash)
            ON CONFLICT DO NOTHING RETURNING * INTO r;
        IF FOUND THEN
            created := true;
            -- last_at: a room without entries counts as active since it was made.
            INSERT INTO room_head (room_no, last_at) VALUES (r.room_no, p_now);
            INSERT INTO room_member (room_no, account, role, joined_at, join_seq)
                SELECT r.room_no, a, CASE WHEN a = p_owner THEN 3 ELSE 1 END, p_now, 0 FROM unnest(p_members) a;
            EXIT;
        END IF;
    END LOOP;
    IF r.room_no IS NULL THEN
        RAISE EXCEPTION 'room_create: the room vanished twenty times' USING ERRCODE = 'serialization_failure';
    END IF;

    room_id := r.room_id;
    object := (SELECT room_object(r, h) FROM room_head h WHERE h.room_no = r.room_no);
    -- Whoever made the room may have died before it was announced, so a repeat announces again; an old room was announced long ago.
    founders := CASE WHEN NOT r.removed AND r.created_at > p_now - 600000 THEN
        (SELECT coalesce(json_agg(m.account), '[]') FROM room_member m WHERE m.room_no = r.room_no AND m.join_seq = 0) ELSE '[]' END;
END $$;
