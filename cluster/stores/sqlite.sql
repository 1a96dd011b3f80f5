-- The statements of a SQLite store. Each verb is one BEGIN IMMEDIATE ... COMMIT (law 2), so that what a verb reads first
-- is still true when it writes; epochs are compared in there (law 1). Verbs are in sqlite_verbs.py.

-- name: record
SELECT * FROM run_records WHERE run_id = ?;

-- name: hold
-- What the verbs that change a run look at first.
SELECT n, thread_id, graph, status, epoch, seq, seq_epoch, head, crashes, cancel_asked, interrupts, answers
FROM runs WHERE run_id = ?;

-- --- create -------------------------------------------------------------------------------------------------------

-- name: run_with_key
SELECT * FROM run_records WHERE thread_id = ? AND key = ?;

-- name: thread_runs
-- Whether a thread has runs, and one that is not final: the new one stays behind it.
SELECT count(*) AS runs, count(*) FILTER (WHERE status IN ('queued', 'running', 'waiting')) AS unfinished
FROM runs WHERE thread_id = ?;

-- name: keep_thread
-- A thread with a new run is kept, whatever was said when the last one ended.
INSERT INTO threads (thread_id) VALUES (?) ON CONFLICT (thread_id) DO UPDATE SET expires_at = NULL;

-- name: insert_run
INSERT INTO runs (run_id, thread_id, graph, version, digest, key, policy, status, head, created_at, updated_at, due_at)
VALUES (:run_id, :thread_id, :graph, :version, :digest, :key, :policy, 'queued', :head, :now, :now, :due_at);

-- name: insert_input
INSERT INTO inputs (run, code, input, labels) VALUES (?, ?, ?, ?);

-- --- due, claim, renew, requeue -----------------------------------------------------------------------------------

-- name: ready
SELECT run_id FROM runs WHERE due_at <= ? ORDER BY due_at, run_id LIMIT ?;

-- name: overdue
SELECT run_id, epoch FROM runs WHERE status = 'running' AND lease_until <= ? ORDER BY lease_until, run_id LIMIT ?;

-- name: claim
-- One owner (law 1): of several who try, the first sets due_at to null, and no row is left for the others.
-- Runs of a thread are serial, so the thread's head is that of its newest run that has one; to keep it in `threads` as
-- well would be one more page in every commit.
UPDATE runs SET
    status = 'running', epoch = epoch + 1, owner = :owner, lease_until = :lease_until, not_before = 0, due_at = NULL,
    updated_at = :now,
    head = CASE seq WHEN 0 THEN coalesce((
        SELECT before.head FROM runs AS before WHERE before.thread_id = runs.thread_id AND before.head <> ''
        ORDER BY before.n DESC LIMIT 1
    ), '') ELSE head END
WHERE run_id = :run_id AND due_at <= :now;

-- name: renew
UPDATE runs SET lease_until = ? WHERE n = ?;

-- name: requeue
-- The epoch grows, so the owner is fenced from here on (law 1).
UPDATE runs SET
    status = 'queued', epoch = epoch + 1, owner = '', lease_until = 0, not_before = :not_before, due_at = :due_at,
    updated_at = :now
WHERE n = :n;

-- name: crashed
UPDATE runs SET restarts = restarts + 1, crashes = :crashes, detected_at = :now WHERE n = :n;

-- name: set_error
UPDATE runs SET error = ? WHERE n = ?;

-- --- commit -------------------------------------------------------------------------------------------------------

-- name: hold_for_commit
-- As `hold`, with the number of the last event: one look, and then only writes.
SELECT n, thread_id, status, epoch, seq, seq_epoch, head, cancel_asked, answers, interrupts <> '[]' AS asks,
    (SELECT max(events.n) FROM events WHERE run = runs.n) AS last_event
FROM runs WHERE run_id = ?;

-- name: insert_checkpoint
INSERT INTO checkpoints (thread_id, checkpoint_id, parent, step, snapshot, run_id, at, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: insert_write
INSERT INTO writes (run, task_id, body) VALUES (?, ?, ?)
ON CONFLICT (run, task_id) DO UPDATE SET body = excluded.body;

-- name: delete_writes
DELETE FROM writes WHERE run = ?;

-- name: advance
-- The fence and the order (laws 1 and 2) were checked on the row that `hold_for_commit` read in this transaction.
-- No column of an index is named here: indexes are written only when a run leaves.
UPDATE runs SET
    seq = :seq, seq_epoch = :epoch, step = :step, head = :head, detected_at = 0, updated_at = :at, result = :result,
    error = :error
WHERE n = :n;

-- name: clear_questions
UPDATE runs SET interrupts = '[]', answers = '{}' WHERE n = ?;

-- name: sleep
UPDATE runs SET
    status = :status, owner = '', lease_until = 0, interrupts = :interrupts, not_before = :not_before, due_at = :due_at
WHERE n = :n;

-- --- the end of a run ---------------------------------------------------------------------------------------------

-- name: end
UPDATE runs SET
    status = :status, owner = '', lease_until = 0, not_before = 0, due_at = NULL, interrupts = '[]', answers = '{}'
WHERE n = :n;

-- name: set_expiry
UPDATE threads SET expires_at = ? WHERE thread_id = ?;

-- name: release
-- The oldest unfinished run of the thread is ready now, if it was waiting behind the one that ended.
UPDATE runs SET due_at = :at
WHERE status = 'queued' AND due_at IS NULL AND n = (
    SELECT n FROM runs WHERE thread_id = :thread_id AND status IN ('queued', 'running', 'waiting') ORDER BY n LIMIT 1
);

-- --- resume, cancel -----------------------------------------------------------------------------------------------

-- name: answer
UPDATE runs SET answers = ?, updated_at = ? WHERE n = ?;

-- name: queue
UPDATE runs SET status = 'queued', not_before = 0, due_at = ? WHERE n = ?;

-- name: ask_to_cancel
UPDATE runs SET cancel_asked = 1, updated_at = ? WHERE n = ?;

-- name: cancel
UPDATE runs SET cancel_asked = 1, epoch = epoch + 1, updated_at = ? WHERE n = ?;

-- --- events and counters ------------------------------------------------------------------------------------------

-- name: last_event
SELECT max(n) FROM events WHERE run = ?;

-- name: insert_event
INSERT INTO events (run, n, kind, at, data) VALUES (?, ?, ?, ?, ?);

-- name: count
INSERT INTO counters (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value;

-- --- effects ------------------------------------------------------------------------------------------------------

-- name: receipt
SELECT receipts.* FROM receipts JOIN runs ON run = n WHERE runs.run_id = ? AND checkpoint_id = ? AND receipts.key = ?;

-- name: put_receipt
INSERT OR REPLACE INTO receipts (
    run, checkpoint_id, key, run_id, task_id, tool, digest, state, sandbox, token, outcome, at
)
VALUES (
    :run, :checkpoint_id, :key, :run_id, :task_id, :tool, :digest, :state, :sandbox, :token, :outcome, :at
);

-- name: finish
UPDATE receipts SET state = 'done', outcome = :outcome
WHERE run = (SELECT n FROM runs WHERE run_id = :run_id) AND checkpoint_id = :checkpoint_id AND key = :key
    AND token = :token AND state <> 'done'
RETURNING run;

-- name: forget
UPDATE receipts SET state = 'unknown'
WHERE run = (SELECT n FROM runs WHERE run_id = :run_id) AND checkpoint_id = :checkpoint_id AND key = :key
    AND token = :token AND state = 'started'
RETURNING run;

-- --- reading ------------------------------------------------------------------------------------------------------

-- name: chain
-- From a checkpoint back to the newest snapshot, along the parents.
WITH RECURSIVE line (n, parent, snapshot, depth) AS (
    SELECT n, parent, snapshot, 0 FROM checkpoints WHERE thread_id = :thread_id AND checkpoint_id = :checkpoint_id
    UNION ALL
    SELECT before.n, before.parent, before.snapshot, depth + 1
    FROM line JOIN checkpoints AS before ON before.thread_id = :thread_id AND before.checkpoint_id = line.parent
    WHERE NOT line.snapshot
)
SELECT checkpoints.* FROM line JOIN checkpoints USING (n) ORDER BY depth DESC;

-- name: pending
SELECT task_id, body FROM writes JOIN runs ON run = n WHERE run_id = ?;

-- name: receipts_at
SELECT receipts.* FROM receipts JOIN runs ON run = n WHERE runs.run_id = ? AND checkpoint_id = ?;

-- name: all_runs
SELECT * FROM run_records ORDER BY created_at DESC, run_id DESC LIMIT :limit;

-- name: runs_with_status
SELECT * FROM run_records WHERE status = :status ORDER BY created_at DESC, run_id DESC LIMIT :limit;

-- name: runs_of_thread
SELECT * FROM run_records WHERE thread_id = :thread_id AND (:status IS NULL OR status = :status)
ORDER BY created_at DESC, run_id DESC LIMIT :limit;

-- name: run_number
SELECT n FROM runs WHERE run_id = ?;

-- name: events
SELECT n, kind, at, data FROM events WHERE run = ? AND n > ? ORDER BY n LIMIT ?;

-- name: history
SELECT checkpoint_id, parent, step, snapshot, '' AS body, run_id, at FROM checkpoints
WHERE thread_id = ? ORDER BY n DESC LIMIT ?;

-- name: counts
SELECT status, count(*) AS runs FROM runs GROUP BY status;

-- name: counters
SELECT name, value FROM counters;

-- --- around it ----------------------------------------------------------------------------------------------------

-- name: put_blob
INSERT INTO blobs (digest, data) VALUES (?, ?) ON CONFLICT (digest) DO NOTHING;

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

-- name: delete_inputs
DELETE FROM inputs WHERE run IN (SELECT n FROM runs WHERE thread_id = ?);

-- name: delete_checkpoints
DELETE FROM checkpoints WHERE thread_id = ?;

-- name: delete_runs
DELETE FROM runs WHERE thread_id = ?;

-- name: delete_thread
DELETE FROM threads WHERE thread_id = ?;
