-- From schema version 1 to 2: what postgres.sql has more. In one transaction, under the lock of whoever opens it first.

DROP VIEW run_records;

ALTER TABLE threads ADD COLUMN head text NOT NULL DEFAULT '';
ALTER TABLE runs
    ADD COLUMN base text NOT NULL DEFAULT '',
    ADD COLUMN rollback boolean NOT NULL DEFAULT false,
    ADD COLUMN parent text NOT NULL DEFAULT '',
    ADD COLUMN parent_interrupt text NOT NULL DEFAULT '',
    ADD COLUMN blobs text NOT NULL DEFAULT '[]',
    ADD COLUMN listens_after bigint,
    ADD COLUMN messages_sent bigint NOT NULL DEFAULT 0;
ALTER TABLE receipts ADD COLUMN place text NOT NULL DEFAULT '';
ALTER TABLE blobs ADD COLUMN put_at double precision NOT NULL DEFAULT extract(epoch FROM now());
ALTER TABLE blobs ALTER COLUMN put_at DROP DEFAULT;

CREATE INDEX runs_unfinished ON runs (thread_id, n) WHERE status IN ('queued', 'running', 'waiting');

-- Which blobs a run names: those are kept as long as it is.
CREATE TABLE needs (run bigint NOT NULL, digest text COLLATE "C" NOT NULL, PRIMARY KEY (run, digest));

CREATE INDEX needs_by_digest ON needs (digest);

-- The mailbox: what was sent and not taken.
CREATE TABLE messages (
    run        bigint NOT NULL,
    n          bigint NOT NULL,
    message_id text COLLATE "C" NOT NULL,
    body       text NOT NULL,
    at         double precision NOT NULL,
    PRIMARY KEY (run, n)
);

-- Every message ever sent, so that one sent again is known, also after it was taken.
CREATE TABLE sent (
    run        bigint NOT NULL,
    message_id text COLLATE "C" NOT NULL,
    n          bigint NOT NULL,
    PRIMARY KEY (run, message_id)
);

CREATE TABLE chunks (
    run       bigint NOT NULL,
    n         bigint NOT NULL,
    task_id   text NOT NULL,
    node      text NOT NULL,
    attempt   text NOT NULL,
    data      text NOT NULL,
    at        double precision NOT NULL,
    withdrawn boolean NOT NULL,
    PRIMARY KEY (run, n)
);

-- The base of a run was not kept: it is the head of the run before it on the thread, or the seed it started with, which
-- was stored in the very moment in which the run was made.
UPDATE runs SET base = coalesce(
    (SELECT before.head FROM runs AS before WHERE before.thread_id = runs.thread_id AND before.n < runs.n
        AND before.head <> '' ORDER BY before.n DESC LIMIT 1),
    (SELECT checkpoint_id FROM checkpoints AS seed WHERE seed.thread_id = runs.thread_id AND seed.run_id = runs.run_id
        AND seed.at = runs.created_at LIMIT 1),
    ''
) WHERE head <> '';

-- Of the last final run that has one; else that of before the first run, its base.
UPDATE threads SET head = coalesce(
    (SELECT runs.head FROM runs WHERE runs.thread_id = threads.thread_id AND runs.head <> ''
        AND status NOT IN ('queued', 'running', 'waiting') ORDER BY n DESC LIMIT 1),
    (SELECT base FROM runs WHERE runs.thread_id = threads.thread_id ORDER BY n LIMIT 1),
    ''
);

-- Which blobs a run needs was not kept either: its code, if shipped by value, and its policy.
INSERT INTO needs (run, digest)
SELECT DISTINCT n, blobs.digest FROM runs JOIN blobs
    ON blobs.digest = policy OR blobs.digest = substring(code FROM '"blob": ?"([0-9a-f]+)"');
UPDATE runs SET blobs = (SELECT json_agg(digest)::text FROM needs WHERE run = n)
WHERE EXISTS (SELECT 1 FROM needs WHERE run = n);

-- A run as RunRecord has it.
CREATE VIEW run_records AS
SELECT n, run_id, thread_id, graph, version, code, input, digest, key, policy, labels, status, epoch, owner, lease_until,
    seq, step, head, restarts, crashes, detected_at, not_before, cancel_asked, interrupts, answers, created_at,
    updated_at, error, result, base, rollback, parent, parent_interrupt, blobs
FROM runs;

-- Runs of a thread are serial: one that is at it has the newest checkpoint, and hands the head over at its end. To keep
-- it in `threads` at each commit would be one more row to lock and to write.
CREATE VIEW heads AS
SELECT thread_id, coalesce((
    SELECT runs.head FROM runs
    WHERE runs.thread_id = threads.thread_id AND status IN ('queued', 'running', 'waiting') AND runs.head <> '' LIMIT 1
), head) AS head
FROM threads;
