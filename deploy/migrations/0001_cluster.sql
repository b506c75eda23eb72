-- Who is here, and who owns what. Applied once, inside a transaction.

-- An instance renews its own row and nothing else; `beat` is the counter that others watch. `beat_at` is only a hint to look closer: nobody loses
-- a lease by the database's clock.
CREATE TABLE IF NOT EXISTS instance (
    id           text COLLATE "C" PRIMARY KEY,       -- a ULID minted at process start
    name         text NOT NULL,                      -- a label for people
    url          text NOT NULL,
    started_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    beat         bigint NOT NULL DEFAULT 1,
    beat_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    beat_ms      int NOT NULL,                       -- how often it means to beat, and after how long without one it may be called
    lease_ttl_ms int NOT NULL,                       --   dead: settings may differ while they are being changed
    ready        boolean NOT NULL,                   -- can consume: may be given shards
    draining     boolean NOT NULL,
    streams      int NOT NULL,
    backend_pid   int,                               -- its writing session, which a successor may have to end
    backend_start timestamptz
) WITH (fillfactor = 50);

-- Changes only when the owner does: appends hold its row FOR SHARE from their first statement to their commit.
CREATE TABLE IF NOT EXISTS shard_lease (
    shard         text COLLATE "C" PRIMARY KEY,
    epoch         bigint NOT NULL DEFAULT 0,         -- grows with every owner
    holder        text COLLATE "C",                  -- instance.id; null: free
    backend_pid   int,                               -- the holder's writing session when it took the lease, or a later one: appends may
                                                     --   keep the row locked, so the instance's row is the first to know a new one
    backend_start timestamptz
) WITH (fillfactor = 50);

-- s00, s01, ..., s99, s100, ...; those that are there stay as they are.
CREATE OR REPLACE FUNCTION cluster_make_shards(p_count int) RETURNS void LANGUAGE sql AS $$
    INSERT INTO shard_lease (shard)
        SELECT 's' || lpad(n::text, greatest(2, length(n::text)), '0') FROM generate_series(0, p_count - 1) n
        ON CONFLICT DO NOTHING
$$;

-- Renews one's own row and reads everything, in one round trip; locks no lease. `kind` tells what a row is:
--   0  ourselves: num = the time in microseconds, flag = our row was still there
--   1  an instance: key, label, url, num = beat, age_ms, streams, beat_ms, lease_ttl_ms, flag = ready, draining
--   2  a lease: key = shard, label = holder, num = epoch
CREATE OR REPLACE FUNCTION cluster_beat(p_id text, p_name text, p_url text, p_beat_ms int, p_ttl_ms int, p_ready boolean, p_draining boolean,
    p_streams int, p_pid int)
RETURNS TABLE (kind int, key text, label text, url text, num bigint, age_ms bigint, streams int, beat_ms int, ttl_ms int, flag boolean,
    draining boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    known boolean;
    started timestamptz := (SELECT a.backend_start FROM pg_stat_get_activity(p_pid) a);
BEGIN
    -- A beat that a crash of the database swallows is worth nothing; waiting for the disk would only delay the next one.
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE instance i SET beat = i.beat + 1, beat_at = clock_timestamp(), name = p_name, url = p_url, beat_ms = p_beat_ms,
            lease_ttl_ms = p_ttl_ms, ready = p_ready, draining = p_draining, streams = p_streams,
            backend_pid = p_pid, backend_start = started
        WHERE i.id = p_id;
    known := FOUND;
    IF NOT known THEN
        INSERT INTO instance AS i (id, name, url, beat_ms, lease_ttl_ms, ready, draining, streams, backend_pid, backend_start)
            VALUES (p_id, p_name, p_url, p_beat_ms, p_ttl_ms, p_ready, p_draining, p_streams, p_pid, started);
    END IF;
    -- One statement, one snapshot: a holder without a row in it is gone.
    RETURN QUERY
        SELECT 0, p_id, NULL::text, NULL::text, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, 0::bigint, 0, 0, 0, known, false
        UNION ALL
        SELECT * FROM (
            SELECT 1, i.id, i.name, i.url, i.beat, (extract(epoch FROM clock_timestamp() - i.beat_at) * 1000)::bigint, i.streams, i.beat_ms,
                i.lease_ttl_ms, i.ready, i.draining
            FROM instance i ORDER BY i.id) x
        UNION ALL
        SELECT * FROM (
            SELECT 2, l.shard, l.holder, NULL::text, l.epoch, 0::bigint, 0, 0, 0, false, false FROM shard_lease l ORDER BY l.shard) x;
END $$;

-- Takes those of the shards that are still as the caller saw them: same epoch, same holder, and the holder's counter where it stood. Gives shard and
-- new epoch; epoch -1 = nothing changed, but somebody holds the row's lock. With p_wait it waits 300 ms for such locks and then ends the session the
-- holder wrote with: a batch of which the end never arrived keeps its lock for ever.
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
        UPDATE shard_lease l SET epoch = l.epoch + 1, holder = p_me, backend_pid = nullif(p_pid, 0), backend_start = started
            FROM free WHERE l.shard = free.shard
            RETURNING l.shard, l.epoch;
    RETURN QUERY
        SELECT l.shard, -1::bigint FROM shard_lease l JOIN unnest(p_shard, p_epoch, p_holder, p_beat) w(shard, epoch, holder, beat)
            ON l.shard = w.shard AND l.epoch = w.epoch AND l.holder IS NOT DISTINCT FROM w.holder
        WHERE NOT EXISTS (SELECT 1 FROM instance i WHERE i.id = w.holder AND i.beat <> w.beat AND i.id <> p_me);
END $$;

-- Ends the writing sessions of holders that were found dead: those their leases name and the one they named last, as long as they are the very
-- sessions and not others that got their number.
CREATE OR REPLACE FUNCTION cluster_end_backends(p_me text, p_shard text[], p_epoch bigint[], p_holder text[], p_beat bigint[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_terminate_backend(b.backend_pid, 200)
        FROM (
            SELECT DISTINCT s.backend_pid, s.backend_start
            FROM shard_lease l JOIN unnest(p_shard, p_epoch, p_holder, p_beat) w(shard, epoch, holder, beat)
                ON l.shard = w.shard AND l.epoch = w.epoch AND l.holder = w.holder
            LEFT JOIN instance i ON i.id = w.holder
            CROSS JOIN LATERAL (VALUES (l.backend_pid, l.backend_start), (i.backend_pid, i.backend_start)) s(backend_pid, backend_start)
            WHERE w.holder <> p_me AND (i.id IS NULL OR i.beat = w.beat)) b
        JOIN LATERAL pg_stat_get_activity(b.backend_pid) a ON a.backend_start = b.backend_start;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'may not end the session of a dead owner';
END $$;

-- Names our writing session in the leases we hold; gives how many still name another one, because an append held their lock.
CREATE OR REPLACE FUNCTION cluster_bind_backend(p_me text, p_pid int, p_wait boolean) RETURNS bigint
LANGUAGE plpgsql SET lock_timeout = '300ms' AS $$
DECLARE
    started timestamptz := (SELECT a.backend_start FROM pg_stat_get_activity(p_pid) a);
BEGIN
    IF p_wait THEN
        BEGIN
            PERFORM 1 FROM shard_lease l
                WHERE l.holder = p_me AND (l.backend_pid, l.backend_start) IS DISTINCT FROM (p_pid, started)
                ORDER BY l.shard FOR NO KEY UPDATE;
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END IF;
    WITH free AS (
        SELECT l.shard FROM shard_lease l
        WHERE l.holder = p_me AND (l.backend_pid, l.backend_start) IS DISTINCT FROM (p_pid, started)
        ORDER BY l.shard FOR NO KEY UPDATE SKIP LOCKED)
    UPDATE shard_lease l SET backend_pid = p_pid, backend_start = started FROM free WHERE l.shard = free.shard;
    RETURN (SELECT count(*) FROM shard_lease l
        WHERE l.holder = p_me AND (l.backend_pid, l.backend_start) IS DISTINCT FROM (p_pid, started));
END $$;

-- Gives leases back. Rows whose lock somebody holds stay as they are: the next beat shows them, and the release is repeated.
CREATE OR REPLACE FUNCTION cluster_release(p_me text, p_shard text[]) RETURNS void LANGUAGE sql AS $$
    WITH free AS (
        SELECT l.shard FROM shard_lease l WHERE l.holder = p_me AND l.shard = ANY (p_shard) ORDER BY l.shard FOR NO KEY UPDATE SKIP LOCKED)
    UPDATE shard_lease l SET holder = NULL, backend_pid = NULL, backend_start = NULL FROM free WHERE l.shard = free.shard
$$;

-- The end of an instance. A lease that cannot be given back names somebody who is not here any more, which is as good as free.
CREATE OR REPLACE FUNCTION cluster_leave(p_me text) RETURNS void LANGUAGE sql AS $$
    SELECT cluster_release(p_me, (SELECT array_agg(l.shard) FROM shard_lease l WHERE l.holder = p_me));
    DELETE FROM instance i WHERE i.id = p_me
$$;

-- Removes the row of an instance that was silent for long and owns nothing.
CREATE OR REPLACE FUNCTION cluster_forget(p_id text, p_beat bigint) RETURNS void LANGUAGE sql AS $$
    DELETE FROM instance i WHERE i.id = p_id AND i.beat = p_beat AND NOT EXISTS (SELECT 1 FROM shard_lease l WHERE l.holder = p_id)
$$;
