-- The tables of a SQLite store. Everything belongs to a thread and goes with it (law 8), except blobs, beats, counters and documents.
-- What is large and never changes stands apart from what changes at each commit: SQLite rewrites a whole row (law 8).

CREATE TABLE threads (
    thread_id  TEXT PRIMARY KEY,
    expires_at REAL,                           -- null: kept
    head       TEXT NOT NULL DEFAULT ''        -- while a run is at it, the run's head is the thread's, see `heads`
) WITHOUT ROWID;

CREATE INDEX threads_by_end ON threads (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE runs (
    n            INTEGER PRIMARY KEY,          -- in the order of `create`: the order of the runs of a thread
    run_id       TEXT NOT NULL UNIQUE,
    thread_id    TEXT NOT NULL,
    graph        TEXT NOT NULL,
    version      TEXT NOT NULL,
    digest       TEXT NOT NULL,
    key          TEXT NOT NULL,
    policy       TEXT NOT NULL,
    status       TEXT NOT NULL,
    epoch        INTEGER NOT NULL DEFAULT 0,
    owner        TEXT NOT NULL DEFAULT '',
    lease_until  REAL NOT NULL DEFAULT 0,
    seq          INTEGER NOT NULL DEFAULT 0,
    seq_epoch    INTEGER NOT NULL DEFAULT 0,   -- epoch of the owner that made the last commit
    step         INTEGER NOT NULL DEFAULT 0,
    head         TEXT NOT NULL,
    restarts     INTEGER NOT NULL DEFAULT 0,
    crashes      TEXT NOT NULL DEFAULT '[]',
    detected_at  REAL NOT NULL DEFAULT 0,
    not_before   REAL NOT NULL DEFAULT 0,
    due_at       REAL,                         -- when it may be claimed; null: not before something else happens
    cancel_asked INTEGER NOT NULL DEFAULT 0,
    interrupts   TEXT NOT NULL DEFAULT '[]',
    answers      TEXT NOT NULL DEFAULT '{}',
    created_at   REAL NOT NULL,
    updated_at   REAL NOT NULL,
    error        TEXT NOT NULL DEFAULT '',
    result       TEXT NOT NULL DEFAULT '',
    base             TEXT NOT NULL DEFAULT '',
    rollback         INTEGER NOT NULL DEFAULT 0,
    parent           TEXT NOT NULL DEFAULT '',
    parent_interrupt TEXT NOT NULL DEFAULT '',
    listens_after    INTEGER,
    messages_sent    INTEGER NOT NULL DEFAULT 0 -- n of the last message; they may be taken long ago
);

-- A commit that leaves a run running touches no column of these, so it writes to none of them.
CREATE INDEX runs_due ON runs (due_at, run_id) WHERE due_at IS NOT NULL;
CREATE INDEX runs_leased ON runs (lease_until, run_id) WHERE status = 'running';
CREATE INDEX runs_by_thread ON runs (thread_id, n);
CREATE INDEX runs_unfinished ON runs (thread_id, n) WHERE status IN ('queued', 'running', 'waiting');
CREATE UNIQUE INDEX runs_by_key ON runs (thread_id, key) WHERE key <> '';
CREATE INDEX runs_by_age ON runs (created_at, run_id);
CREATE INDEX runs_by_status ON runs (status, created_at, run_id);

CREATE TABLE inputs (
    run    INTEGER PRIMARY KEY,
    code   TEXT NOT NULL,
    input  TEXT NOT NULL,
    labels TEXT NOT NULL,
    blobs  TEXT NOT NULL DEFAULT '[]'
);

-- Which blobs a run names: those are kept as long as it is.
CREATE TABLE needs (run INTEGER NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (run, digest)) WITHOUT ROWID;
CREATE INDEX needs_by_digest ON needs (digest);

CREATE TABLE checkpoints (
    n             INTEGER PRIMARY KEY,         -- in the order of storing
    thread_id     TEXT NOT NULL,
    checkpoint_id TEXT NOT NULL,
    parent        TEXT NOT NULL,
    step          INTEGER NOT NULL,
    snapshot      INTEGER NOT NULL,
    since         TEXT NOT NULL DEFAULT '',    -- what it is a difference to, if that is not its parent
    run_id        TEXT NOT NULL,
    at            REAL NOT NULL,
    body          TEXT NOT NULL,               -- last: history reads the others and leaves its pages alone
    UNIQUE (thread_id, checkpoint_id)
);

CREATE TABLE writes (
    run     INTEGER NOT NULL,
    task_id TEXT NOT NULL,
    body    TEXT NOT NULL,
    PRIMARY KEY (run, task_id)
) WITHOUT ROWID;

CREATE TABLE receipts (
    run           INTEGER NOT NULL,
    checkpoint_id TEXT NOT NULL,
    key           TEXT NOT NULL,
    run_id        TEXT NOT NULL,
    task_id       TEXT NOT NULL,
    tool          TEXT NOT NULL,
    digest        TEXT NOT NULL,
    state         TEXT NOT NULL,
    sandbox       TEXT NOT NULL,
    token         TEXT NOT NULL,
    outcome       TEXT NOT NULL,
    at            REAL NOT NULL,
    place         TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (run, checkpoint_id, key)
) WITHOUT ROWID;

CREATE TABLE events (
    run  INTEGER NOT NULL,
    n    INTEGER NOT NULL,
    kind TEXT NOT NULL,
    at   REAL NOT NULL,
    data TEXT NOT NULL,
    PRIMARY KEY (run, n)
) WITHOUT ROWID;

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

CREATE TABLE counters (name TEXT PRIMARY KEY, value REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE blobs (digest TEXT PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE blob_times (digest TEXT PRIMARY KEY, put_at REAL NOT NULL) WITHOUT ROWID; -- apart: a blob is large
CREATE TABLE beats (member TEXT PRIMARY KEY, at REAL NOT NULL, data TEXT NOT NULL) WITHOUT ROWID;

-- Whoever writes them erases them; every write names the version that it replaces.
CREATE TABLE documents (
    shelf   TEXT NOT NULL,
    name    TEXT NOT NULL,
    version INTEGER NOT NULL,
    data    BLOB NOT NULL,
    PRIMARY KEY (shelf, name)
);

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
