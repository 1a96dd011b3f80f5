-- The tables of a Postgres store, in a schema of their own. Run once, under an advisory lock, by whoever comes first.
-- Everything belongs to a thread and goes with it (law 8), except blobs, beats, counters and meta.

CREATE SCHEMA IF NOT EXISTS understudy;
SET LOCAL search_path TO understudy;

CREATE TABLE meta (version integer NOT NULL);

CREATE TABLE threads (
    thread_id  text COLLATE "C" PRIMARY KEY,
    expires_at double precision,                        -- null: kept
    head       text NOT NULL DEFAULT ''                 -- while a run is at it, the run's head is the thread's, see `heads`
);

CREATE INDEX threads_by_end ON threads (expires_at) WHERE expires_at IS NOT NULL;

-- fillfactor: a commit that leaves a run running touches no indexed column, and finds room for the new version in place.
CREATE TABLE runs (
    n            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- order of `create`: the order of a thread's runs
    run_id       text COLLATE "C" NOT NULL UNIQUE,
    thread_id    text COLLATE "C" NOT NULL,
    graph        text NOT NULL,
    version      text NOT NULL,
    code         text NOT NULL,
    input        text NOT NULL,
    digest       text NOT NULL,
    key          text COLLATE "C" NOT NULL,
    policy       text NOT NULL,
    labels       text NOT NULL,
    status       text NOT NULL,
    epoch        bigint NOT NULL DEFAULT 0,
    owner        text NOT NULL DEFAULT '',
    lease_until  double precision NOT NULL DEFAULT 0,
    seq          bigint NOT NULL DEFAULT 0,
    seq_epoch    bigint NOT NULL DEFAULT 0,             -- epoch of the owner that made the last commit
    step         bigint NOT NULL DEFAULT 0,
    head         text NOT NULL,
    restarts     bigint NOT NULL DEFAULT 0,
    crashes      double precision[] NOT NULL DEFAULT '{}',
    detected_at  double precision NOT NULL DEFAULT 0,
    not_before   double precision NOT NULL DEFAULT 0,
    due_at       double precision,                      -- when it may be claimed; null: not before something else happens
    cancel_asked boolean NOT NULL DEFAULT false,
    interrupts   text NOT NULL DEFAULT '[]',
    open_ids     text[] NOT NULL DEFAULT '{}',          -- of the interrupts: those that may be answered
    answers      jsonb NOT NULL DEFAULT '{}',
    created_at   double precision NOT NULL,
    updated_at   double precision NOT NULL,
    error        text NOT NULL DEFAULT '',
    result       text NOT NULL DEFAULT '',
    base             text NOT NULL DEFAULT '',
    rollback         boolean NOT NULL DEFAULT false,
    parent           text NOT NULL DEFAULT '',
    parent_interrupt text NOT NULL DEFAULT '',
    blobs            text NOT NULL DEFAULT '[]',
    listens_after    bigint,
    messages_sent    bigint NOT NULL DEFAULT 0,         -- n of the last message; they may be taken long ago
    has_writes       boolean NOT NULL DEFAULT false     -- there may be pending writes
) WITH (fillfactor = 70);

CREATE INDEX runs_due ON runs (due_at, run_id) WHERE due_at IS NOT NULL;
CREATE INDEX runs_leased ON runs (lease_until, run_id) WHERE status = 'running';
CREATE INDEX runs_by_thread ON runs (thread_id, n);
CREATE INDEX runs_unfinished ON runs (thread_id, n) WHERE status IN ('queued', 'running', 'waiting');
CREATE UNIQUE INDEX runs_by_key ON runs (thread_id, key) WHERE key <> '';
CREATE INDEX runs_by_age ON runs (created_at, run_id);
CREATE INDEX runs_by_status ON runs (status, created_at, run_id);

-- Which blobs a run names: those are kept as long as it is.
CREATE TABLE needs (run bigint NOT NULL, digest text COLLATE "C" NOT NULL, PRIMARY KEY (run, digest));
CREATE INDEX needs_by_digest ON needs (digest);

CREATE TABLE checkpoints (
    n             bigint GENERATED ALWAYS AS IDENTITY,  -- in the order of storing
    thread_id     text COLLATE "C" NOT NULL,
    checkpoint_id text COLLATE "C" NOT NULL,
    parent        text COLLATE "C" NOT NULL,
    step          bigint NOT NULL,
    snapshot      boolean NOT NULL,
    since         text COLLATE "C" NOT NULL DEFAULT '',  -- what it is a difference to, if that is not its parent
    body          text NOT NULL,
    run_id        text NOT NULL,
    at            double precision NOT NULL,
    PRIMARY KEY (thread_id, checkpoint_id)
);

CREATE TABLE writes (
    run     bigint NOT NULL,
    task_id text COLLATE "C" NOT NULL,
    body    text NOT NULL,
    PRIMARY KEY (run, task_id)
);

CREATE TABLE receipts (
    run           bigint NOT NULL,
    checkpoint_id text COLLATE "C" NOT NULL,
    key           text COLLATE "C" NOT NULL,
    run_id        text NOT NULL,
    task_id       text NOT NULL,
    tool          text NOT NULL,
    digest        text NOT NULL,
    state         text NOT NULL,
    sandbox       text NOT NULL,
    token         text NOT NULL,
    outcome       text NOT NULL,
    at            double precision NOT NULL,
    place         text NOT NULL DEFAULT '',
    PRIMARY KEY (run, checkpoint_id, key)
);

-- A row holds one event, or two: the second is numbered n + 1.
CREATE TABLE event_rows (
    run    bigint NOT NULL,
    n      bigint NOT NULL,
    kind   text NOT NULL,
    at     double precision NOT NULL,
    data   text NOT NULL,
    kind_2 text,
    at_2   double precision,
    data_2 text,
    PRIMARY KEY (run, n)
);

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

-- In 64 shards, one for each connection: a single row for each name would make all commits wait for each other's disk.
CREATE TABLE counter_rows (
    shard integer NOT NULL,
    name  text COLLATE "C" NOT NULL,
    value double precision NOT NULL,
    PRIMARY KEY (shard, name)
) WITH (fillfactor = 50);

-- What steps have counted and no sweep has added to counter_rows yet: a row is one commit, and one of `name`. To add to
-- two rows by their key took a step as long as all else that it leaves.
CREATE TABLE counter_marks (name text COLLATE "C" NOT NULL);

CREATE TABLE blobs (digest text PRIMARY KEY, data bytea NOT NULL, put_at double precision NOT NULL);
CREATE TABLE beats (member text PRIMARY KEY, at double precision NOT NULL, data text NOT NULL);

-- Whoever writes them erases them; every write names the version that it replaces.
CREATE TABLE documents (
    shelf   text COLLATE "C" NOT NULL,
    name    text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    data    bytea NOT NULL,
    PRIMARY KEY (shelf, name)
);

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
