-- The statements of a SQLite store that are about whole threads and what is around them; verbs in sqlite_moves.py.

-- --- around it ----------------------------------------------------------------------------------------------------

-- name: put_blob
INSERT INTO blobs (digest, data) VALUES (?, ?) ON CONFLICT (digest) DO NOTHING;

-- name: large_blob
-- Always undone: see sqlite_log.py.
INSERT INTO blobs (digest, data) VALUES ('', zeroblob(?));

-- name: put_at
INSERT INTO blob_times (digest, put_at) VALUES (?, ?) ON CONFLICT (digest) DO UPDATE SET put_at = excluded.put_at;

-- name: past_blobs
-- Put long ago, and named by no run. Whoever puts one again has until then to name it.
SELECT digest FROM blob_times
WHERE put_at <= ? AND NOT EXISTS (SELECT 1 FROM needs WHERE needs.digest = blob_times.digest);

-- name: delete_blob
DELETE FROM blobs WHERE digest = ?;

-- name: delete_blob_time
DELETE FROM blob_times WHERE digest = ?;

-- name: get_blob
SELECT data FROM blobs WHERE digest = ?;

-- name: beat
INSERT INTO beats (member, at, data) VALUES (?, ?, ?)
ON CONFLICT (member) DO UPDATE SET at = excluded.at, data = excluded.data;

-- name: beats
SELECT member, at, data FROM beats;

-- name: drop_silent
DELETE FROM beats WHERE at < ?;

-- name: past_threads
-- Threads whose time has passed and that have no unfinished run: the last run of a thread decides how long it is kept.
SELECT thread_id FROM threads
WHERE expires_at <= :now AND NOT EXISTS (
    SELECT 1 FROM runs WHERE runs.thread_id = threads.thread_id AND status IN ('queued', 'running', 'waiting')
)
LIMIT :limit;

-- name: unfinished
SELECT run_id FROM runs WHERE thread_id = ? AND status IN ('queued', 'running', 'waiting') ORDER BY n LIMIT 1;

-- name: delete_events
DELETE FROM events WHERE run IN (SELECT n FROM runs WHERE thread_id = ?);

-- name: delete_receipts
DELETE FROM receipts WHERE run IN (SELECT n FROM runs WHERE thread_id = ?);

-- name: delete_thread_writes
DELETE FROM writes WHERE run IN (SELECT n FROM runs WHERE thread_id = ?);

-- name: delete_messages
DELETE FROM messages WHERE run IN (SELECT n FROM runs WHERE thread_id = ?);

-- name: delete_sent
DELETE FROM sent WHERE run IN (SELECT n FROM runs WHERE thread_id = ?);

-- name: delete_chunks
DELETE FROM chunks WHERE run IN (SELECT n FROM runs WHERE thread_id = ?);

-- name: delete_needs
DELETE FROM needs WHERE run IN (SELECT n FROM runs WHERE thread_id = ?);

-- name: delete_inputs
DELETE FROM inputs WHERE run IN (SELECT n FROM runs WHERE thread_id = ?);

-- name: delete_checkpoints
DELETE FROM checkpoints WHERE thread_id = ?;

-- name: delete_runs
DELETE FROM runs WHERE thread_id = ?;

-- name: delete_thread
DELETE FROM threads WHERE thread_id = ?;

-- --- prune --------------------------------------------------------------------------------------------------------

-- name: kept_checkpoints
-- What no prune takes: the thread's head, and the head and base of whatever is unfinished.
SELECT head AS checkpoint_id FROM heads WHERE thread_id = :thread_id
UNION
SELECT head FROM runs WHERE thread_id = :thread_id AND status IN ('queued', 'running', 'waiting')
UNION
SELECT base FROM runs WHERE thread_id = :thread_id AND status IN ('queued', 'running', 'waiting');

-- name: prune_checkpoint
DELETE FROM checkpoints WHERE thread_id = ? AND checkpoint_id = ?;

-- name: prune_receipts
DELETE FROM receipts WHERE run IN (SELECT n FROM runs WHERE thread_id = ?) AND checkpoint_id = ?;

-- --- from one store to another ------------------------------------------------------------------------------------

-- name: threads
SELECT thread_id FROM threads WHERE thread_id > ? ORDER BY thread_id LIMIT ?;

-- name: thread
SELECT thread_id, expires_at, heads.head FROM threads JOIN heads USING (thread_id) WHERE thread_id = ?;

-- name: thread_records
SELECT * FROM run_records WHERE thread_id = ? ORDER BY n;

-- name: run_events
SELECT n, kind, at, data FROM events WHERE run = ? ORDER BY n;

-- name: run_writes
SELECT task_id, body FROM writes WHERE run = ?;

-- name: run_receipts
SELECT * FROM receipts WHERE run = ? ORDER BY at, key, checkpoint_id;

-- name: run_messages
SELECT * FROM messages WHERE run = ? ORDER BY n;

-- name: run_sent
SELECT message_id, n FROM sent WHERE run = ? ORDER BY n;

-- name: thread_checkpoints
SELECT * FROM checkpoints WHERE thread_id = ? ORDER BY n;

-- name: adopt_thread
INSERT INTO threads (thread_id, head, expires_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING;

-- name: adopt_run
INSERT INTO runs (
    run_id, thread_id, graph, version, digest, key, policy, status, epoch, owner, lease_until, seq, seq_epoch, step, head,
    restarts, crashes, detected_at, not_before, due_at, cancel_asked, interrupts, answers, created_at, updated_at, error,
    result, base, rollback, parent, parent_interrupt, listens_after, messages_sent
) VALUES (
    :run_id, :thread_id, :graph, :version, :digest, :key, :policy, :status, :epoch, :owner, :lease_until, :seq,
    :seq_epoch, :step, :head, :restarts, :crashes, :detected_at, :not_before, :due_at, :cancel_asked, :interrupts,
    :answers, :created_at, :updated_at, :error, :result, :base, :rollback, :parent, :parent_interrupt, :listens_after,
    :messages_sent
);

-- name: blobs
SELECT digest FROM blobs ORDER BY digest;
