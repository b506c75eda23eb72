-- Shards are spread over instances by their weight. A program from before this calls cluster_beat without it and leaves its weight null: it takes
-- what is free by its own rule, and is never given a shard by the others.
ALTER TABLE instance ADD COLUMN IF NOT EXISTS weight int;
ALTER TABLE instance ADD COLUMN IF NOT EXISTS overloaded boolean NOT NULL DEFAULT false; -- takes no new streams at the moment
ALTER TABLE shard_lease ADD COLUMN IF NOT EXISTS taken_at timestamptz;                   -- when its holder got it

-- As in 0001, with weight and overload; rows of kind 2 also tell in age_ms for how long their holder has had them (-1: not known).
CREATE OR REPLACE FUNCTION cluster_beat(p_id text, p_name text, p_url text, p_beat_ms int, p_ttl_ms int, p_ready boolean, p_draining boolean,
    p_streams int, p_pid int, p_weight int, p_overloaded boolean)
RETURNS TABLE (kind int, key text, label text, url text, num bigint, age_ms bigint, streams int, beat_ms int, ttl_ms int, flag boolean,
    draining boolean, weight int, overloaded boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    known boolean;
    started timestamptz := (SELECT a.backend_start FROM pg_stat_get_activity(p_pid) a);
BEGIN
    -- A beat that a crash of the database swallows is worth nothing; waiting for the disk would only delay the next one.
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE instance i SET beat = i.beat + 1, beat_at = clock_timestamp(), name = p_name, url = p_url, beat_ms = p_beat_ms,
            lease_ttl_ms = p_ttl_ms, ready = p_ready, draining = p_draining, streams = p_streams,
            backend_pid = p_pid, backend_start = started, weight = p_weight, overloaded = p_overloaded
        WHERE i.id = p_id;
    known := FOUND;
    IF NOT known THEN
        INSERT INTO instance AS i (id, name, url, beat_ms, lease_ttl_ms, ready, draining, streams, backend_pid, backend_start, weight, overloaded)
            VALUES (p_id, p_name, p_url, p_beat_ms, p_ttl_ms, p_ready, p_draining, p_streams, p_pid, started, p_weight, p_overloaded);
    END IF;
    -- One statement, one snapshot: a holder without a row in it is gone.
    RETURN QUERY
        SELECT 0, p_id, NULL::text, NULL::text, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, 0::bigint, 0, 0, 0, known, false, 0, false
        UNION ALL
        SELECT * FROM (
            SELECT 1, i.id, i.name, i.url, i.beat, (extract(epoch FROM clock_timestamp() - i.beat_at) * 1000)::bigint, i.streams, i.beat_ms,
                i.lease_ttl_ms, i.ready, i.draining, coalesce(i.weight, 0), i.overloaded
            FROM instance i ORDER BY i.id) x
        UNION ALL
        SELECT * FROM (
            SELECT 2, l.shard, l.holder, NULL::text, l.epoch,
                CASE WHEN l.taken_at IS NULL THEN -1 ELSE greatest(extract(epoch FROM clock_timestamp() - l.taken_at) * 1000, 0)::bigint END,
                0, 0, 0, false, false, 0, false
            FROM shard_lease l ORDER BY l.shard) x;
END $$;

-- As in 0001, and notes the time.
CREATE OR REPLACE FUNCTION cluster_take(p_me text, p_pid int, p_shard text[], p_epoch bigint[], p_holder text[], p_beat bigint[], p_wait boolean)
RETURNS TABLE (shard text, epoch bigint) LANGUAGE plpgsql SET lock_timeout = '300ms' AS $$
#variable_conflict use_column
DECLARE
    started timestamptz := (SELECT a.backend_start FROM pg_stat_get_activity(p_pid) a);
BEGIN
    IF p_wait THEN
        BEGIN
            PERFORM 1 FROM shard_lease l WHERE l.shard = ANY (p_shard) ORDER BY l.shard FOR NO KEY UPDATE;
        EXCEPTION WHEN lock_not_available THEN
            PERFORM cluster_end_backends(p_me, p_shard, p_epoch, p_holder, p_beat);
        END;
    END IF;
    RETURN QUERY
        WITH free AS (
            SELECT l.shard FROM shard_lease l JOIN unnest(p_shard, p_epoch, p_holder, p_beat) w(shard, epoch, holder, beat)
                ON l.shard = w.shard AND l.epoch = w.epoch AND l.holder IS NOT DISTINCT FROM w.holder
            WHERE NOT EXISTS (SELECT 1 FROM instance i WHERE i.id = w.holder AND i.beat <> w.beat AND i.id <> p_me)
            ORDER BY l.shard FOR NO KEY UPDATE OF l SKIP LOCKED)
        UPDATE shard_lease l SET epoch = l.epoch + 1, holder = p_me, backend_pid = nullif(p_pid, 0), backend_start = started,
                taken_at = clock_timestamp()
            FROM free WHERE l.shard = free.shard
            RETURNING l.shard, l.epoch;
    RETURN QUERY
        SELECT l.shard, -1::bigint FROM shard_lease l JOIN unnest(p_shard, p_epoch, p_holder, p_beat) w(shard, epoch, holder, beat)
            ON l.shard = w.shard AND l.epoch = w.epoch AND l.holder IS NOT DISTINCT FROM w.holder
        WHERE NOT EXISTS (SELECT 1 FROM instance i WHERE i.id = w.holder AND i.beat <> w.beat AND i.id <> p_me);
END $$;
