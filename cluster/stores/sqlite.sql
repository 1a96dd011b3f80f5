-- The statements of a SQLite store. Each verb is one BEGIN IMMEDIATE ... COMMIT (law 2), so that what a verb reads first
-- is still true when it writes; epochs are compared in there (law 1). Verbs are in sqlite_verbs.py.

-- name: record
SELECT * FROM run_records WHERE run_id = ?;

-- name: hold
-- What the verbs that change a run look at first.
SELECT n, run_id, thread_id, graph, status, epoch, head, crashes, cancel_asked, interrupts, answers, listens_after,
    messages_sent
FROM runs WHERE run_id = ?;

-- name: owned_parent
SELECT 1 FROM runs JOIN runs AS asker ON asker.run_id = runs.parent
WHERE runs.n = ? AND asker.epoch = ? AND asker.status = 'running';

-- --- create -------------------------------------------------------------------------------------------------------

-- name: run_with_key
SELECT * FROM run_records WHERE thread_id = ? AND key = ?;

-- name: has_runs
SELECT 1 FROM runs WHERE thread_id = ? LIMIT 1;

-- name: unfinished_runs
-- As `hold`, of all runs of a thread that are not final: a new one stays behind them, or ends them.
SELECT n, run_id, thread_id, graph, status, epoch, head, crashes, cancel_asked, interrupts, answers, listens_after,
    messages_sent
FROM runs WHERE thread_id = ? AND status IN ('queued', 'running', 'waiting') ORDER BY n;

-- name: set_rollback
UPDATE runs SET rollback = ? WHERE n = ?;

-- name: keep_thread
-- A thread with a new run is kept, whatever was said when the last one ended.
INSERT INTO threads (thread_id, head) VALUES (?, ?) ON CONFLICT (thread_id) DO UPDATE SET expires_at = NULL;

-- name: insert_run
INSERT INTO runs (
    run_id, thread_id, graph, version, digest, key, policy, status, head, base, parent, parent_interrupt, created_at,
    updated_at, due_at
) VALUES (
    :run_id, :thread_id, :graph, :version, :digest, :key, :policy, 'queued', :head, :head, :parent, :parent_interrupt,
    :now, :now, :due_at
);

-- name: insert_input
INSERT INTO inputs (run, code, input, labels, blobs) VALUES (?, ?, ?, ?, ?);

-- name: insert_need
INSERT INTO needs (run, digest) VALUES (?, ?) ON CONFLICT DO NOTHING;

-- --- due, claim, renew, requeue -----------------------------------------------------------------------------------

-- name: ready
SELECT run_id FROM runs WHERE due_at <= ? ORDER BY due_at, run_id LIMIT ?;

-- name: overdue
SELECT run_id, epoch FROM runs WHERE status = 'running' AND lease_until <= ? ORDER BY lease_until, run_id LIMIT ?;

-- name: claim
-- One owner (law 1): of several who try, the first sets due_at to null, and no row is left for the others.
UPDATE runs SET
    status = 'running', epoch = epoch + 1, owner = :owner, lease_until = :lease_until, not_before = 0, due_at = NULL,
    updated_at = :now,
    head = CASE seq WHEN 0 THEN (SELECT head FROM threads WHERE threads.thread_id = runs.thread_id) ELSE head END,
    base = CASE seq WHEN 0 THEN (SELECT head FROM threads WHERE threads.thread_id = runs.thread_id) ELSE base END
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
INSERT INTO checkpoints (thread_id, checkpoint_id, parent, step, snapshot, since, run_id, at, body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

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
    status = :status, owner = '', lease_until = 0, interrupts = :interrupts, not_before = :not_before, due_at = :due_at,
    listens_after = :listens_after
WHERE n = :n;

-- --- the end of a run ---------------------------------------------------------------------------------------------

-- name: end
UPDATE runs SET status = ?, owner = '', lease_until = 0, not_before = 0, due_at = NULL WHERE n = ?;

-- name: give_result
UPDATE runs SET result = ? WHERE n = ?;

-- name: ended
SELECT thread_id, head, base, rollback, parent, parent_interrupt, error, result FROM runs WHERE n = ?;

-- name: leave_thread
-- The thread goes on from where this run left it; one that was never claimed left it as it was.
UPDATE threads SET expires_at = :expires_at, head = CASE :was_at WHEN '' THEN head ELSE :leaves END
WHERE thread_id = :thread_id;

-- name: release
-- The oldest unfinished run of the thread is ready now, if it was waiting behind the one that ended.
UPDATE runs SET due_at = :at
WHERE status = 'queued' AND due_at IS NULL AND n = (
    SELECT n FROM runs WHERE thread_id = :thread_id AND status IN ('queued', 'running', 'waiting') ORDER BY n LIMIT 1
);

-- --- resume, cancel, retry -----------------------------------------------------------------------------------------------

-- name: answer
UPDATE runs SET answers = ?, updated_at = ? WHERE n = ?;

-- name: child_answer
UPDATE runs SET answers = ? WHERE n = ?;

-- name: retry
UPDATE runs SET
    status = 'queued', epoch = epoch + 1, error = '', crashes = '[]', detected_at = 0, not_before = 0, due_at = :now,
    updated_at = :now
WHERE n = :n;

-- name: head_of
SELECT head FROM heads WHERE thread_id = ?;

-- name: keep_again
UPDATE threads SET expires_at = NULL WHERE thread_id = ?;

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

-- --- messages and streams ----------------------------------------------------------------------------------------

-- name: sent
SELECT n FROM sent WHERE run = ? AND message_id = ?;

-- name: mailbox_size
SELECT count(*) FROM messages WHERE run = ?;

-- name: insert_message
INSERT INTO messages (run, n, message_id, body, at) VALUES (?, ?, ?, ?, ?);

-- name: insert_sent
INSERT INTO sent (run, message_id, n) VALUES (?, ?, ?);

-- name: set_sent
UPDATE runs SET messages_sent = ? WHERE n = ?;

-- name: take_message
DELETE FROM messages WHERE run = ? AND n = ?;

-- name: hears
SELECT 1 FROM messages WHERE run = ? AND n > ? LIMIT 1;

-- name: empty_mailbox
DELETE FROM messages WHERE run = ?;

-- name: messages
SELECT messages.* FROM messages JOIN runs ON run = runs.n WHERE run_id = ? ORDER BY messages.n;

-- name: last_chunk
SELECT max(n) FROM chunks WHERE run = ?;

-- name: insert_chunk
INSERT INTO chunks (run, n, task_id, node, attempt, data, at, withdrawn) VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: trim_chunks
DELETE FROM chunks WHERE run = ? AND n <= ?;

-- name: chunks
SELECT * FROM chunks WHERE run = ? AND n > ? ORDER BY n LIMIT ?;

-- --- effects ------------------------------------------------------------------------------------------------------

-- name: receipt
SELECT receipts.* FROM receipts JOIN runs ON run = n WHERE runs.run_id = ? AND checkpoint_id = ? AND receipts.key = ?;

-- name: put_receipt
INSERT OR REPLACE INTO receipts (
    run, checkpoint_id, key, run_id, task_id, tool, digest, state, sandbox, token, outcome, at, place
)
VALUES (
    :run, :checkpoint_id, :key, :run_id, :task_id, :tool, :digest, :state, :sandbox, :token, :outcome, :at, :place
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
-- From a checkpoint back to the newest snapshot, along what each is a difference to.
WITH RECURSIVE line (n, stands_on, depth) AS (
    SELECT n, CASE WHEN snapshot THEN '' WHEN since <> '' THEN since ELSE parent END, 0
    FROM checkpoints WHERE thread_id = :thread_id AND checkpoint_id = :checkpoint_id
    UNION ALL
    SELECT before.n, CASE WHEN before.snapshot THEN '' WHEN before.since <> '' THEN before.since ELSE before.parent END,
        depth + 1
    FROM line JOIN checkpoints AS before ON before.thread_id = :thread_id AND before.checkpoint_id = line.stands_on
)
SELECT checkpoints.* FROM line JOIN checkpoints USING (n) ORDER BY depth DESC;

-- name: pending
SELECT task_id, body FROM writes JOIN runs ON run = n WHERE run_id = ?;

-- name: receipts_at
SELECT receipts.* FROM receipts JOIN runs ON run = n WHERE runs.run_id = ? AND checkpoint_id = ?;

-- name: receipts_of
SELECT receipts.* FROM receipts JOIN runs ON run = n WHERE runs.run_id = ?
ORDER BY at, receipts.key, checkpoint_id;

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
SELECT checkpoint_id, parent, step, snapshot, since, '' AS body, run_id, at FROM checkpoints
WHERE thread_id = ? ORDER BY n DESC LIMIT ?;

-- name: counts
SELECT status, count(*) AS runs FROM runs GROUP BY status;

-- name: counters
SELECT name, value FROM counters;
