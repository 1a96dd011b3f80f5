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
-- The rows of a chain one after the other, each by its key: LATERAL, and a LIMIT that is there for no more than that, or
-- Postgres may go through all checkpoints for each of them, if there were few when it made its plan.
WITH RECURSIVE line AS (
    SELECT last.*, 0 AS depth FROM runs CROSS JOIN LATERAL (
        SELECT * FROM checkpoints WHERE thread_id = runs.thread_id AND checkpoint_id = head LIMIT 1
    ) AS last
    WHERE runs.run_id = %(run_id)s
    UNION ALL
    SELECT before.*, depth + 1 FROM line CROSS JOIN LATERAL (
        SELECT * FROM checkpoints
        WHERE thread_id = line.thread_id AND checkpoint_id = coalesce(nullif(line.since, ''), line.parent) LIMIT 1
    ) AS before
    WHERE NOT line.snapshot
)
SELECT
    to_json(r),
    (SELECT coalesce(json_agg(line ORDER BY depth DESC), '[]') FROM line),
    (SELECT coalesce(json_object_agg(task_id, body), '{}') FROM writes WHERE run = r.n),
    (SELECT coalesce(json_agg(receipts), '[]') FROM receipts WHERE run = r.n AND checkpoint_id = r.head),
    (SELECT coalesce(json_agg(messages ORDER BY messages.n), '[]') FROM messages WHERE run = r.n)
FROM run_records AS r WHERE run_id = %(run_id)s;

-- name: chain
WITH RECURSIVE line AS (
    SELECT checkpoints.*, 0 AS depth FROM checkpoints
    WHERE thread_id = %(thread_id)s AND checkpoint_id = %(checkpoint_id)s
    UNION ALL
    SELECT before.*, depth + 1 FROM line CROSS JOIN LATERAL (
        SELECT * FROM checkpoints
        WHERE thread_id = line.thread_id AND checkpoint_id = coalesce(nullif(line.since, ''), line.parent) LIMIT 1
    ) AS before
    WHERE NOT line.snapshot
)
SELECT to_json(line) FROM line ORDER BY depth DESC;

-- name: receipt
SELECT to_json(receipts) FROM receipts JOIN runs ON run = n
WHERE runs.run_id = %(run_id)s AND checkpoint_id = %(checkpoint_id)s AND receipts.key = %(key)s;

-- name: receipts
SELECT to_json(receipts) FROM receipts JOIN runs ON run = n WHERE runs.run_id = %(run_id)s
ORDER BY at, receipts.key, checkpoint_id;

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
SELECT e.n, e.kind, e.at, e.data
FROM runs LEFT JOIN LATERAL (
    SELECT told.* FROM ( -- not of the view: it would be read to its end
        SELECT * FROM event_rows WHERE run = runs.n AND n >= %(after)s ORDER BY n LIMIT %(limit)s + 1
    ) AS stored
    CROSS JOIN LATERAL (VALUES (n, kind, at, data), (n + 1, kind_2, at_2, data_2)) AS told (n, kind, at, data)
    WHERE told.n > %(after)s AND told.kind IS NOT NULL ORDER BY told.n LIMIT %(limit)s
) AS e ON true
WHERE run_id = %(run_id)s ORDER BY e.n;

-- name: chunks
-- As `events`.
SELECT to_json(c)
FROM runs LEFT JOIN LATERAL (
    SELECT * FROM chunks WHERE run = runs.n AND n > %(after)s ORDER BY n LIMIT %(limit)s
) AS c ON true
WHERE run_id = %(run_id)s ORDER BY c.n;

-- name: history
SELECT json_build_object(
    'checkpoint_id', checkpoint_id, 'parent', parent, 'step', step, 'snapshot', snapshot, 'since', since, 'body', '',
    'run_id', run_id, 'at', at
)
FROM checkpoints WHERE thread_id = %(thread_id)s ORDER BY n DESC LIMIT %(limit)s;

-- name: counts
SELECT status, count(*) FROM runs GROUP BY status;

-- name: counters
-- In one order: in another, a sum is another in its last digit, and one that seems to fall is a restart to Prometheus.
SELECT name, sum(value ORDER BY shard) FROM counters GROUP BY name;

-- name: put_blob
SELECT blob_put(%(digest)s, %(data)s, %(now)s);

-- name: get_blob
SELECT data FROM blobs WHERE digest = %(digest)s;

-- name: beat
INSERT INTO beats (member, at, data) VALUES (%(member)s, %(now)s, %(data)s)
ON CONFLICT (member) DO UPDATE SET at = excluded.at, data = excluded.data;

-- name: beats
SELECT member, at, data FROM beats;

-- name: count
SELECT count_up(%(counters)s);

-- name: blobs
SELECT digest FROM blobs ORDER BY digest COLLATE "C";

-- name: threads
SELECT thread_id FROM threads WHERE thread_id > %(after)s ORDER BY thread_id LIMIT %(limit)s;

-- name: dump
SELECT
    t.expires_at,
    (SELECT head FROM heads WHERE heads.thread_id = t.thread_id),
    (SELECT coalesce(json_agg(c ORDER BY n), '[]') FROM checkpoints AS c WHERE c.thread_id = t.thread_id),
    (SELECT coalesce(json_agg(told ORDER BY told.n), '[]') FROM (
        SELECT
            r.n, r.seq_epoch, r.due_at, r.listens_after,
            (SELECT to_json(rec) FROM run_records AS rec WHERE rec.n = r.n) AS record,
            (SELECT coalesce(json_agg(e ORDER BY e.n), '[]') FROM events AS e WHERE run = r.n) AS events,
            (SELECT coalesce(json_object_agg(task_id, body), '{}') FROM writes WHERE run = r.n) AS writes,
            (SELECT coalesce(json_agg(x ORDER BY x.at, x.key, x.checkpoint_id), '[]') FROM receipts AS x WHERE run = r.n)
                AS receipts,
            (SELECT coalesce(json_agg(m ORDER BY m.n), '[]') FROM messages AS m WHERE run = r.n) AS messages,
            (SELECT coalesce(json_object_agg(message_id, n), '{}') FROM sent WHERE run = r.n) AS sent
        FROM runs AS r WHERE r.thread_id = t.thread_id
    ) AS told)
FROM threads AS t WHERE t.thread_id = %(thread_id)s;

-- name: adopt_thread
INSERT INTO threads (thread_id, head, expires_at) VALUES (%(thread_id)s, %(head)s, %(expires_at)s)
ON CONFLICT DO NOTHING RETURNING 1;

-- name: adopt_run
INSERT INTO runs (
    run_id, thread_id, graph, version, code, input, digest, key, policy, labels, status, epoch, owner, lease_until, seq,
    seq_epoch, step, head, restarts, crashes, detected_at, not_before, due_at, cancel_asked, interrupts, open_ids, answers,
    created_at, updated_at, error, result, base, rollback, parent, parent_interrupt, blobs, listens_after, messages_sent,
    has_writes
) VALUES (
    %(run_id)s, %(thread_id)s, %(graph)s, %(version)s, %(code)s, %(input)s, %(digest)s, %(key)s, %(policy)s, %(labels)s,
    %(status)s, %(epoch)s, %(owner)s, %(lease_until)s, %(seq)s, %(seq_epoch)s, %(step)s, %(head)s, %(restarts)s,
    %(crashes)s, %(detected_at)s, %(not_before)s, %(due_at)s, %(cancel_asked)s, %(interrupts)s, %(open_ids)s, %(answers)s,
    %(created_at)s, %(updated_at)s, %(error)s, %(result)s, %(base)s, %(rollback)s, %(parent)s, %(parent_interrupt)s,
    %(blobs)s, %(listens_after)s, %(messages_sent)s, %(has_writes)s
) RETURNING n;

-- name: adopt_need
INSERT INTO needs (run, digest) VALUES (%s, %s) ON CONFLICT DO NOTHING;

-- name: adopt_event
INSERT INTO event_rows (run, n, kind, at, data) VALUES (%s, %s, %s, %s, %s);

-- name: adopt_write
INSERT INTO writes (run, task_id, body) VALUES (%s, %s, %s);

-- name: adopt_receipt
INSERT INTO receipts (run, checkpoint_id, key, run_id, task_id, tool, digest, state, sandbox, token, outcome, at, place)
VALUES (
    %(run)s, %(checkpoint_id)s, %(key)s, %(run_id)s, %(task_id)s, %(tool)s, %(digest)s, %(state)s, %(sandbox)s, %(token)s,
    %(outcome)s, %(at)s, %(place)s
);

-- name: adopt_message
INSERT INTO messages (run, n, message_id, body, at) VALUES (%s, %s, %s, %s, %s);

-- name: adopt_sent
INSERT INTO sent (run, message_id, n) VALUES (%s, %s, %s);

-- name: adopt_checkpoint
INSERT INTO checkpoints (thread_id, checkpoint_id, parent, step, snapshot, since, body, run_id, at)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s);

-- name: about
SELECT
    current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit'),
    pg_database_size(current_database());

-- name: document
SELECT name, version, data FROM documents WHERE shelf = %(shelf)s AND name = %(document)s;

-- name: documents
SELECT name, version, data FROM documents WHERE shelf = %(shelf)s AND name > %(after)s ORDER BY name LIMIT %(limit)s;

-- name: last_documents
SELECT * FROM (
    SELECT name, version, data FROM documents
    WHERE shelf = %(shelf)s AND name > %(after)s ORDER BY name DESC LIMIT %(limit)s
) AS newest ORDER BY name;

-- name: shelves
SELECT shelf, count(*) FROM documents GROUP BY shelf ORDER BY shelf;

-- name: adopt_document
INSERT INTO documents (shelf, name, version, data) VALUES (%(shelf)s, %(document)s, %(version)s, %(data)s)
ON CONFLICT DO NOTHING RETURNING 1;

-- name: has_schema
SELECT 1 FROM pg_tables WHERE schemaname = 'understudy' AND tablename = 'meta';

-- name: version
SELECT version FROM understudy.meta;
