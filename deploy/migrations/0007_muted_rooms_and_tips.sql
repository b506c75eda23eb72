-- The room object tells how long a room is muted, and mentions count what unread counts.

-- As in 0003, and muted_until while it lies ahead: who opens the room shows it before anything is said or refused.
CREATE OR REPLACE FUNCTION room_object(r room, h room_head) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT concat('{"room_id":"', r.room_id, '","key":', coalesce(to_json(r.key)::text, 'null'), ',"kind":"', r.kind,
        '","name":', to_json(r.name), ',"notice":', to_json(r.notice),
        ',"owner":', coalesce(to_json(nullif(r.owner, ''))::text, 'null'),
        ',"members":', r.members, ',"member_limit":', r.member_limit,
        ',"history":"', CASE WHEN r.since_join THEN 'since_join' ELSE 'all' END, '","extra":', r.extra,
        ',"state":"', CASE WHEN r.removed THEN 'removed' ELSE 'open' END,
        '","head":"', h.last_epoch, ':', h.last_seq, '","last_at":', h.last_at, ',"created_at":', r.created_at,
        CASE WHEN r.muted_until > extract(epoch FROM clock_timestamp()) * 1000 THEN ',"muted_until":' || r.muted_until END, '}')
$$;

-- As in 0005, but mentioned leaves out tips too: it is how many of the unread ones mention the account.
CREATE OR REPLACE FUNCTION counts_of(p_room bigint, p_account text, p_read_seq bigint, p_read_n bigint, p_last_seq bigint, p_last_n bigint)
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
        CASE WHEN p_read_seq >= p_last_seq OR p_read_n >= p_last_n THEN 0 ELSE (
            SELECT count(DISTINCT m.seq) FROM mention m JOIN log_entry e ON e.room_no = m.room_no AND e.seq = m.seq
                WHERE m.room_no = p_room AND m.account IN (p_account, '@all') AND m.seq > p_read_seq AND e.sender <> p_account
                    AND e.kind <> 'tip')
        END
$$;
