-- Rooms, members and the log. Inside, a room is a bigint; text ids stand only at the border.
-- Times are milliseconds since the Unix epoch. Ids are compared byte by byte (COLLATE "C"), which is also the fast way.

CREATE TABLE room (
    room_no        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    room_id        text COLLATE "C" NOT NULL UNIQUE,      -- <shard>.<ULID>
    shard          text COLLATE "C" NOT NULL,
    kind           text NOT NULL,                         -- group, direct, live, system
    key            text COLLATE "C",                      -- the caller's own unique name
    pair           text COLLATE "C",                      -- direct rooms: both accounts, sorted, a line feed between (ids hold none)
    name           text NOT NULL DEFAULT '',
    notice         text NOT NULL DEFAULT '',
    owner          text COLLATE "C",
    members        int NOT NULL DEFAULT 0,
    member_limit   int NOT NULL DEFAULT 0,                -- 0 = none
    since_join     boolean NOT NULL DEFAULT false,        -- history: members see the log from their join on
    extra          text NOT NULL DEFAULT '{}',            -- JSON as it came
    removed        boolean NOT NULL DEFAULT false,
    created_at     bigint NOT NULL,
    create_request text COLLATE "C",                      -- request_id of Create: a repeat finds this room
    create_hash    bigint                                 -- of that request's body: another body is a conflict
);
CREATE UNIQUE INDEX room_by_key ON room (key) WHERE key IS NOT NULL AND NOT removed;
CREATE UNIQUE INDEX room_by_pair ON room (pair) WHERE pair IS NOT NULL AND NOT removed;
CREATE UNIQUE INDEX room_by_request ON room (create_request) WHERE create_request IS NOT NULL;

-- The hot row of a room, updated by every commit: narrow, without a further index, half empty pages (HOT updates).
CREATE TABLE room_head (
    room_no    bigint PRIMARY KEY REFERENCES room,
    last_seq   bigint NOT NULL DEFAULT 0,
    last_epoch bigint NOT NULL DEFAULT 0,
    last_at    bigint NOT NULL DEFAULT 0,
    counted    bigint NOT NULL DEFAULT 0                  -- messages that count as unread, so far
) WITH (fillfactor = 50);

CREATE TABLE room_member (
    room_no   bigint NOT NULL REFERENCES room,
    account   text COLLATE "C" NOT NULL,
    role      smallint NOT NULL,                          -- 1 member, 2 admin, 3 owner
    joined_at bigint NOT NULL,
    join_seq  bigint NOT NULL,                            -- the entry of the join; 0 = founder
    read_seq  bigint NOT NULL DEFAULT 0,
    read_n    bigint NOT NULL DEFAULT 0,                  -- running number of counted messages at read_seq
    PRIMARY KEY (room_no, account)
);
CREATE INDEX room_member_by_account ON room_member (account, room_no);

CREATE TABLE log_entry (
    room_no       bigint NOT NULL,
    seq           bigint NOT NULL,
    epoch         bigint NOT NULL,
    at            bigint NOT NULL,
    counted       bigint NOT NULL,                        -- running number in the room, this entry included
    hash          bigint NOT NULL,                        -- 64 bits over kind and content (ops: over the op)
    message_id    uuid,                                   -- null: a late duplicate's void
    type          smallint NOT NULL,                      -- see history/entry.h
    state         smallint NOT NULL DEFAULT 0,            -- 0 as sent, 1 edited, 2 recalled, 3 deleted
    sender        text COLLATE "C" NOT NULL,
    client_msg_id text COLLATE "C" NOT NULL,
    kind          text COLLATE "C" NOT NULL,
    content       text NOT NULL,                          -- messages: JSON as it was accepted; other entries: their own fields as JSON members without braces
    meta          text,                                   -- messages: further members (sent_at, quote_seq, mentions) as JSON without braces; ops: the result told to the caller
    PRIMARY KEY (room_no, seq),
    CONSTRAINT log_entry_message_id UNIQUE (room_no, message_id)
);

-- Dead letters and outgoing events: written in the COMMIT that settles the messages around them, sent from here at least once.
CREATE TABLE outbox (
    outbox_no    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    shard        text COLLATE "C" NOT NULL,
    room_id      text COLLATE "C" NOT NULL DEFAULT '',    -- as the message said
    message_id   uuid,
    reason       text NOT NULL,                           -- a code of the error table
    content_type text NOT NULL DEFAULT '',
    body         bytea NOT NULL,
    created_at   bigint NOT NULL,
    sent_at      bigint                                   -- null: still to be sent
);
CREATE INDEX outbox_unsent ON outbox (shard, outbox_no) WHERE sent_at IS NULL;
CREATE INDEX outbox_by_message ON outbox (message_id) WHERE message_id IS NOT NULL;
CREATE INDEX outbox_sent ON outbox (sent_at) WHERE sent_at IS NOT NULL;

-- One batch of the writer: fence, heads (compare and swap), entries, what ops changed, dead letters. All or nothing.
--   RF001  a shard of the batch is not ours under that epoch any more (DETAIL: which)
--   RF002  a head is not where we think it is
--   23505  on log_entry_message_id: a duplicate that the window did not know
CREATE FUNCTION append(
    p_me text, p_shard text[], p_shard_epoch bigint[],
    h_room bigint[], h_old bigint[], h_new bigint[], h_epoch bigint[], h_at bigint[], h_counted bigint[],
    e_room bigint[], e_seq bigint[], e_epoch bigint[], e_at bigint[], e_counted bigint[], e_hash bigint[], e_id uuid[],
    e_type smallint[], e_sender text[], e_cmid text[], e_kind text[], e_content text[], e_meta text[],
    m_room bigint[], m_account text[], m_action smallint[], m_role smallint[], m_at bigint[], m_seq bigint[], m_counted bigint[],
    r_room bigint[], r_members int[], r_name text[], r_notice text[], r_owner text[], r_limit int[], r_extra text[], r_removed boolean[],
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
        INSERT INTO log_entry (room_no, seq, epoch, at, counted, hash, message_id, type, sender, client_msg_id, kind, content, meta)
            SELECT * FROM unnest(e_room, e_seq, e_epoch, e_at, e_counted, e_hash, e_id, e_type, e_sender, e_cmid, e_kind, e_content, e_meta);
    END IF;

    IF cardinality(m_room) > 0 THEN -- action 0 leaves, 1 joins, 2 another role
        DELETE FROM room_member m USING unnest(m_room, m_account, m_action) x(room_no, account, action)
            WHERE m.room_no = x.room_no AND m.account = x.account AND x.action = 0;
        UPDATE room_member m SET role = x.role FROM unnest(m_room, m_account, m_action, m_role) x(room_no, account, action, role)
            WHERE m.room_no = x.room_no AND m.account = x.account AND x.action = 2;
        INSERT INTO room_member (room_no, account, role, joined_at, join_seq, read_seq, read_n)
            SELECT x.room_no, x.account, x.role, x.at, x.seq, x.seq, x.counted
            FROM unnest(m_room, m_account, m_action, m_role, m_at, m_seq, m_counted) x(room_no, account, action, role, at, seq, counted)
            WHERE x.action = 1;
    END IF;

    IF cardinality(r_room) > 0 THEN -- null = as it is
        UPDATE room r SET members = coalesce(x.members, r.members), name = coalesce(x.name, r.name), notice = coalesce(x.notice, r.notice),
                owner = coalesce(x.owner, r.owner), member_limit = coalesce(x.member_limit, r.member_limit),
                extra = coalesce(x.extra, r.extra), removed = coalesce(x.removed, r.removed)
            FROM unnest(r_room, r_members, r_name, r_notice, r_owner, r_limit, r_extra, r_removed)
                x(room_no, members, name, notice, owner, member_limit, extra, removed)
            WHERE r.room_no = x.room_no;
    END IF;

    IF cardinality(o_shard) > 0 THEN
        INSERT INTO outbox (shard, room_id, message_id, reason, content_type, body, created_at)
            SELECT * FROM unnest(o_shard, o_room_id, o_id, o_reason, o_type, o_body, o_at);
    END IF;
END $$;
