-- Edits, recalls and deletes; read cursors; mentions; what an account hides from itself; who may not speak.

-- A running program goes on beside this. It holds the leases' rows and then the tables in another order than we need them, so its commits are kept
-- out first. Whatever else keeps a table busy (a dump) shall not make everybody wait behind us: then this fails and can be run again.
SELECT set_config('lock_timeout', '10s', true);
LOCK TABLE shard_lease IN EXCLUSIVE MODE;

ALTER TABLE room ADD COLUMN muted_until bigint NOT NULL DEFAULT 0;        -- unix ms; members (not admins, not the owner) may not speak before
ALTER TABLE room_member ADD COLUMN muted_until bigint NOT NULL DEFAULT 0; -- the same for one account
ALTER TABLE room_member SET (fillfactor = 70);                            -- read cursors move in place (HOT): no index holds them
-- Of an edit, recall or delete: the message it changes. An edit's content is in meta, so that a recall can take it away.
ALTER TABLE log_entry ADD COLUMN IF NOT EXISTS target_seq bigint;

CREATE TABLE mention (
    room_no bigint NOT NULL,
    account text COLLATE "C" NOT NULL,                    -- '@all': everybody
    seq     bigint NOT NULL,
    PRIMARY KEY (room_no, account, seq)
);
CREATE INDEX mention_by_message ON mention (room_no, seq);

CREATE TABLE hidden_entry (                               -- "delete for me"
    room_no bigint NOT NULL,
    account text COLLATE "C" NOT NULL,
    seq     bigint NOT NULL,
    PRIMARY KEY (room_no, account, seq)
);

-- What an account has not read, and how often that mentions it. A table function, because the planner takes such a one apart and plans it with the
-- query it stands in (a third of the time of two plain functions for 500 rooms); what is not selected is not computed.
-- Unread: running numbers, put right by what was taken back. Near the head, where own messages would show, the rows themselves are counted. read_n is
-- the running number at read_seq, last_n the one at the head. Mentioned: by name or with all; rows of what was recalled or deleted are gone.
CREATE FUNCTION counts_of(p_room bigint, p_account text, p_read_seq bigint, p_read_n bigint, p_last_seq bigint, p_last_n bigint)
RETURNS TABLE (unread bigint, mentioned bigint) LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN p_read_seq >= p_last_seq OR p_read_n >= p_last_n THEN 0
        WHEN p_last_seq - p_read_seq <= 50 THEN (
            SELECT count(*) FROM log_entry e WHERE e.room_no = p_room AND e.seq > p_read_seq AND e.seq <= p_last_seq
                AND e.type = 1 AND e.state < 2 AND e.kind <> 'tip' AND e.sender <> p_account)
        ELSE greatest(0, p_last_n - p_read_n - (
            SELECT count(*) FROM log_entry e WHERE e.room_no = p_room AND e.seq > p_read_seq AND e.seq <= p_last_seq
                AND e.type = 1 AND e.state >= 2 AND e.kind <> 'tip'))
        END,
        CASE WHEN p_read_seq >= p_last_seq THEN 0 ELSE (
            SELECT count(DISTINCT m.seq) FROM mention m JOIN log_entry e ON e.room_no = m.room_no AND e.seq = m.seq
                WHERE m.room_no = p_room AND m.account IN (p_account, '@all') AND m.seq > p_read_seq AND e.sender <> p_account)
        END
$$;

-- Part of append(): what edits (state 1), recalls (2) and deletes (3) make of their messages. One at a time and never by a scan: the plans are kept for
-- the life of a session, and a join planned while few messages were changed reads all changes of all rooms once there are many.
CREATE FUNCTION change_messages(t_room bigint[], t_seq bigint[], t_state smallint[], t_content text[], t_meta text[]) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    x record;
BEGIN
    FOR x IN SELECT * FROM unnest(t_room, t_seq, t_state, t_content, t_meta) t(room_no, seq, state, content, meta) LOOP
        IF x.state >= 2 THEN -- nothing stays, also not of earlier edits
            UPDATE log_entry e SET state = x.state, content = '', meta = NULL
                WHERE e.room_no = x.room_no AND e.seq = x.seq AND e.type = 1;
            UPDATE log_entry e SET meta = NULL WHERE e.room_no = x.room_no AND e.target_seq = x.seq AND e.type = 2;
        ELSE -- meta null = as it is
            UPDATE log_entry e SET state = x.state, content = x.content,
                    meta = CASE WHEN x.meta IS NULL THEN e.meta ELSE nullif(x.meta, '') END
                WHERE e.room_no = x.room_no AND e.seq = x.seq AND e.type = 1;
        END IF;
        IF x.state >= 2 OR x.meta IS NOT NULL THEN
            DELETE FROM mention m WHERE m.room_no = x.room_no AND m.seq = x.seq;
        END IF;
    END LOOP;
END $$;

-- append() as in 0002, and with it: who may not speak, the messages that edits, recalls and deletes change, mentions.
-- A message is changed at most once in a batch (t_room, t_seq are distinct): what edits mention is written behind all changes.
CREATE FUNCTION append(
    p_me text, p_shard text[], p_shard_epoch bigint[],
    h_room bigint[], h_old bigint[], h_new bigint[], h_epoch bigint[], h_at bigint[], h_counted bigint[],
    e_room bigint[], e_seq bigint[], e_epoch bigint[], e_at bigint[], e_counted bigint[], e_hash bigint[], e_id uuid[],
    e_type smallint[], e_sender text[], e_cmid text[], e_kind text[], e_content text[], e_meta text[], e_target bigint[],
    m_room bigint[], m_account text[], m_action smallint[], m_role smallint[], m_at bigint[], m_seq bigint[], m_counted bigint[], m_muted bigint[],
    r_room bigint[], r_members int[], r_name text[], r_notice text[], r_owner text[], r_limit int[], r_extra text[], r_removed boolean[], r_muted bigint[],
    t_room bigint[], t_seq bigint[], t_state smallint[], t_content text[], t_meta text[],
    n_room bigint[], n_seq bigint[], n_account text[], n_by bigint[],
    o_shard text[], o_room_id text[], o_id uuid[], o_reason text[], o_type text[], o_body bytea[], o_at bigint[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    n int;
BEGIN
    PERFORM 1 FROM shard_lease l, unnest(p_shard, p_shard_epoch) x(shard, epoch)
        WHERE l.shard = x.shard AND l.epoch = x.epoch AND l.holder = p_me FOR SHARE OF l;
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n <> cardinality(p_shard) THEN
        RAISE EXCEPTION 'fenced' USING ERRCODE = 'RF001', DETAIL = (
            SELECT string_agg(x.shard, ',') FROM unnest(p_shard, p_shard_epoch) x(shard, epoch)
            WHERE NOT EXISTS (SELECT 1 FROM shard_lease l WHERE l.shard = x.shard AND l.epoch = x.epoch AND l.holder = p_me));
    END IF;

    IF cardinality(h_room) > 0 THEN
        UPDATE room_head r SET last_seq = x.new_seq, last_epoch = x.epoch, last_at = x.at, counted = x.counted
            FROM unnest(h_room, h_old, h_new, h_epoch, h_at, h_counted) x(room_no, old_seq, new_seq, epoch, at, counted)
            WHERE r.room_no = x.room_no AND r.last_seq = x.old_seq;
        GET DIAGNOSTICS n = ROW_COUNT;
        IF n <> cardinality(h_room) THEN
            RAISE EXCEPTION 'a head moved' USING ERRCODE = 'RF002';
        END IF;
        INSERT INTO log_entry (room_no, seq, epoch, at, counted, hash, message_id, type, sender, client_msg_id, kind, content, meta, target_seq)
            SELECT * FROM unnest(e_room, e_seq, e_epoch, e_at, e_counted, e_hash, e_id, e_type, e_sender, e_cmid, e_kind, e_content, e_meta, e_target);
    END IF;

    IF cardinality(m_room) > 0 THEN -- action 0 leaves, 1 joins, 2 another role, 3 may not speak
        DELETE FROM room_member m USING unnest(m_room, m_account, m_action) x(room_no, account, action)
            WHERE m.room_no = x.room_no AND m.account = x.account AND x.action = 0;
        UPDATE room_member m SET role = x.role FROM unnest(m_room, m_account, m_action, m_role) x(room_no, account, action, role)
            WHERE m.room_no = x.room_no AND m.account = x.account AND x.action = 2;
        UPDATE room_member m SET muted_until = x.muted FROM unnest(m_room, m_account, m_action, m_muted) x(room_no, account, action, muted)
            WHERE m.room_no = x.room_no AND m.account = x.account AND x.action = 3;
        INSERT INTO room_member (room_no, account, role, joined_at, join_seq, read_seq, read_n)
            SELECT x.room_no, x.account, x.role, x.at, x.seq, x.seq, x.counted
            FROM unnest(m_room, m_account, m_action, m_role, m_at, m_seq, m_counted) x(room_no, account, action, role, at, seq, counted)
            WHERE x.action = 1;
    END IF;

    IF cardinality(r_room) > 0 THEN -- null = as it is
        UPDATE room r SET members = coalesce(x.members, r.members), name = coalesce(x.name, r.name), notice = coalesce(x.notice, r.notice),
                owner = coalesce(x.owner, r.owner), member_limit = coalesce(x.member_limit, r.member_limit),
                extra = coalesce(x.extra, r.extra), removed = coalesce(x.removed, r.removed), muted_until = coalesce(x.muted, r.muted_until)
            FROM unnest(r_room, r_members, r_name, r_notice, r_owner, r_limit, r_extra, r_removed, r_muted)
                x(room_no, members, name, notice, owner, member_limit, extra, removed, muted)
            WHERE r.room_no = x.room_no;
    END IF;

    IF cardinality(n_room) > 0 THEN -- n_by = n_seq: what the message itself mentions
        INSERT INTO mention (room_no, account, seq)
            SELECT x.room_no, x.account, x.seq FROM unnest(n_room, n_seq, n_account, n_by) x(room_no, seq, account, by) WHERE x.by = x.seq
            ON CONFLICT DO NOTHING;
    END IF;
    IF cardinality(t_room) > 0 THEN
        PERFORM change_messages(t_room, t_seq, t_state, t_content, t_meta);
    END IF;
    IF cardinality(n_room) > 0 THEN -- what an edit mentions instead
        INSERT INTO mention (room_no, account, seq)
            SELECT x.room_no, x.account, x.seq FROM unnest(n_room, n_seq, n_account, n_by) x(room_no, seq, account, by) WHERE x.by <> x.seq
            ON CONFLICT DO NOTHING;
    END IF;

    IF cardinality(o_shard) > 0 THEN
        INSERT INTO outbox (shard, room_id, message_id, reason, content_type, body, created_at)
            SELECT * FROM unnest(o_shard, o_room_id, o_id, o_reason, o_type, o_body, o_at);
    END IF;
END $$;
