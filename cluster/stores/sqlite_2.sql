-- From schema version 1 to 2: what sqlite_schema.sql has more. In one transaction, by whoever opens the file first.

ALTER TABLE threads ADD COLUMN head TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN base TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN rollback INTEGER NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN parent TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN parent_interrupt TEXT NOT NULL DEFAULT '';
ALTER TABLE runs ADD COLUMN listens_after INTEGER;
ALTER TABLE runs ADD COLUMN messages_sent INTEGER NOT NULL DEFAULT 0;
ALTER TABLE inputs ADD COLUMN blobs TEXT NOT NULL DEFAULT '[]';
ALTER TABLE receipts ADD COLUMN place TEXT NOT NULL DEFAULT '';

CREATE INDEX runs_unfinished ON runs (thread_id, n) WHERE status IN ('queued', 'running', 'waiting');

-- Which blobs a run names: those are kept as long as it is.
CREATE TABLE needs (run INTEGER NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (run, digest)) WITHOUT ROWID;

CREATE INDEX needs_by_digest ON needs (digest);

-- The mailbox: what was sent and not taken.
CREATE TABLE messages (
    run        INTEGER NOT NULL,
    n          INTEGER NOT NULL,
    message_id TEXT NOT NULL,
    body       TEXT NOT NULL,
    at         REAL NOT NULL,
    PRIMARY KEY (run, n)
) WITHOUT ROWID;

-- Every message ever sent, so that one sent again is known, also after it was taken.
CREATE TABLE sent (run INTEGER NOT NULL, message_id TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (run, message_id))
WITHOUT ROWID;

CREATE TABLE chunks (
    run       INTEGER NOT NULL,
    n         INTEGER NOT NULL,
    task_id   TEXT NOT NULL,
    node      TEXT NOT NULL,
    attempt   TEXT NOT NULL,
    data      TEXT NOT NULL,
    at        REAL NOT NULL,
    withdrawn INTEGER NOT NULL,
    PRIMARY KEY (run, n)
) WITHOUT ROWID;

CREATE TABLE blob_times (digest TEXT PRIMARY KEY, put_at REAL NOT NULL) WITHOUT ROWID; -- apart: a blob is large

-- The base of a run was not kept: it is the head of the run before it on the thread, or the seed it started with, which
-- was stored in the very moment in which the run was made.
UPDATE runs SET base = coalesce(
    (SELECT before.head FROM runs AS before WHERE before.thread_id = runs.thread_id AND before.n < runs.n
        AND before.head <> '' ORDER BY before.n DESC LIMIT 1),
    (SELECT checkpoint_id FROM checkpoints AS seed WHERE seed.thread_id = runs.thread_id AND seed.run_id = runs.run_id
        AND seed.at = runs.created_at),
    ''
) WHERE head <> '';

-- Of the last final run that has one; else that of before the first run, its base.
UPDATE threads SET head = coalesce(
    (SELECT head FROM runs WHERE runs.thread_id = threads.thread_id AND runs.head <> ''
        AND status NOT IN ('queued', 'running', 'waiting') ORDER BY n DESC LIMIT 1),
    (SELECT base FROM runs WHERE runs.thread_id = threads.thread_id ORDER BY n LIMIT 1),
    ''
);

-- Which blobs a run needs was not kept either: its code, if shipped by value, and its policy.
INSERT INTO blob_times (digest, put_at) SELECT digest, CAST(strftime('%s', 'now') AS REAL) FROM blobs;
INSERT INTO needs (run, digest)
SELECT DISTINCT runs.n, blobs.digest FROM runs JOIN inputs ON run = n JOIN blobs
    ON blobs.digest = policy OR (json_valid(code) AND blobs.digest = json_extract(code, '$.blob'));
UPDATE inputs SET blobs = (SELECT json_group_array(digest) FROM needs WHERE needs.run = inputs.run)
WHERE EXISTS (SELECT 1 FROM needs WHERE needs.run = inputs.run);

DROP VIEW run_records;

-- A run as RunRecord has it.
CREATE VIEW run_records AS
SELECT runs.*, inputs.code, inputs.input, inputs.labels, inputs.blobs FROM runs JOIN inputs ON run = n;

-- Runs of a thread are serial: one that is at it has the newest checkpoint, and hands the head over at its end. To keep
-- it in `threads` at each commit would be one more page for the disk.
CREATE VIEW heads AS
SELECT thread_id, coalesce((
    SELECT runs.head FROM runs
    WHERE runs.thread_id = threads.thread_id AND status IN ('queued', 'running', 'waiting') AND runs.head <> ''
), head) AS head
FROM threads;
