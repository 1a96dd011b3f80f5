-- The reading statements of a Postgres store. One statement has one snapshot, so each is consistent in itself.

-- name: record
SELECT to_json(r) FROM run_records AS r WHERE run_id = %(run_id)s;

-- name: due
SELECT
    ARRAY(SELECT run_id FROM runs WHERE due_at <= %(now)s ORDER BY due_at, run_id LIMIT %(limit)s),
    ARRAY(
        SELECT run_id FROM runs WHERE status = 'running' AND lease_until <= %(now)s
        ORDER BY lease_until, run_id LIMIT %(limit)s
    ),
    ARRAY(
        SELECT epoch FROM runs WHERE status = 'running' AND lease_until <= %(now)s
        ORDER BY lease_until, run_id LIMIT %(limit)s
    );

-- name: load
WITH RECURSIVE line AS (
    SELECT checkpoints.*, 0 AS depth FROM runs JOIN checkpoints USING (thread_id)
    WHERE runs.run_id = %(run_id)s AND checkpoint_id = head
    UNION ALL
    SELECT before.*, depth + 1 FROM line JOIN checkpoints AS before
    ON before.thread_id = line.thread_id AND before.checkpoint_id = line.parent
    WHERE NOT line.snapshot
)
SELECT
    to_json(r),
    (SELECT coalesce(json_agg(line ORDER BY depth DESC), '[]') FROM line),
    (SELECT coalesce(json_object_agg(task_id, body), '{}') FROM writes WHERE run = r.n),
    (SELECT coalesce(json_agg(receipts), '[]') FROM receipts WHERE run = r.n AND checkpoint_id = r.head)
FROM run_records AS r WHERE run_id = %(run_id)s;

-- name: chain
WITH RECURSIVE line AS (
    SELECT checkpoints.*, 0 AS depth FROM checkpoints
    WHERE thread_id = %(thread_id)s AND checkpoint_id = %(checkpoint_id)s
    UNION ALL
    SELECT before.*, depth + 1 FROM line JOIN checkpoints AS before
    ON before.thread_id = line.thread_id AND before.checkpoint_id = line.parent
    WHERE NOT line.snapshot
)
SELECT to_json(line) FROM line ORDER BY depth DESC;

-- name: receipt
SELECT to_json(receipts) FROM receipts JOIN runs ON run = n
WHERE runs.run_id = %(run_id)s AND checkpoint_id = %(checkpoint_id)s AND receipts.key = %(key)s;

-- name: all_runs
SELECT to_json(r) FROM run_records AS r ORDER BY created_at DESC, run_id DESC LIMIT %(limit)s;

-- name: runs_with_status
SELECT to_json(r) FROM run_records AS r WHERE status = %(status)s
ORDER BY created_at DESC, run_id DESC LIMIT %(limit)s;

-- name: runs_of_thread
SELECT to_json(r) FROM run_records AS r
WHERE thread_id = %(thread_id)s AND (%(status)s::text IS NULL OR status = %(status)s)
ORDER BY created_at DESC, run_id DESC LIMIT %(limit)s;

-- name: events
-- One row with nulls if the run has none, so that a run that is not there can be told from it.
SELECT e.n, kind, at, data
FROM runs LEFT JOIN LATERAL (
    SELECT * FROM events WHERE run = runs.n AND n > %(after)s ORDER BY n LIMIT %(limit)s
) AS e ON true
WHERE run_id = %(run_id)s ORDER BY e.n;

-- name: history
SELECT json_build_object(
    'checkpoint_id', checkpoint_id, 'parent', parent, 'step', step, 'snapshot', snapshot, 'body', '', 'run_id', run_id,
    'at', at
)
FROM checkpoints WHERE thread_id = %(thread_id)s ORDER BY n DESC LIMIT %(limit)s;

-- name: counts
SELECT status, count(*) FROM runs GROUP BY status;

-- name: counters
SELECT name, sum(value) FROM counters GROUP BY name;

-- name: put_blob
INSERT INTO blobs (digest, data) VALUES (%(digest)s, %(data)s) ON CONFLICT DO NOTHING;

-- name: get_blob
SELECT data FROM blobs WHERE digest = %(digest)s;

-- name: beat
INSERT INTO beats (member, at, data) VALUES (%(member)s, %(now)s, %(data)s)
ON CONFLICT (member) DO UPDATE SET at = excluded.at, data = excluded.data;

-- name: beats
SELECT member, at, data FROM beats;

-- name: about
SELECT
    current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit'),
    pg_database_size(current_database());

-- name: has_schema
SELECT 1 FROM pg_tables WHERE schemaname = 'understudy' AND tablename = 'meta';

-- name: version
SELECT version FROM understudy.meta;
