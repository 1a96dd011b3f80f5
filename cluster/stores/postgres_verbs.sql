-- The verbs of a Postgres store: one function, one statement, one transaction, one round trip each (law 2).
--
-- Locks are taken in one order, so that verbs cannot wait for each other in a ring: the thread's row (only by verbs that
-- create or end a run), then the run's row, then that of its parent, which is the older one (several runs at once: the
-- newest first), then counters, in the order of their names. What has to be true while a verb writes is read from the
-- locked row (law 1). Refusals are answers, not errors: an error would roll back the counter. Verbs about whole threads
-- are in postgres_moves.sql.

-- What is kept in fewer rows (see postgres.sql), told one by one.
CREATE OR REPLACE VIEW events AS
SELECT run, told.n, told.kind, told.at, told.data
FROM event_rows
CROSS JOIN LATERAL (VALUES (n, kind, at, data), (n + 1, kind_2, at_2, data_2)) AS told (n, kind, at, data)
WHERE told.kind IS NOT NULL;

CREATE OR REPLACE VIEW counters AS
SELECT shard, name, value FROM counter_rows
UNION ALL
SELECT -1, name, count(*) FROM counter_marks GROUP BY name
UNION ALL
SELECT -1, 'checkpoint_commits_total{result="ok"}', count(*) FROM counter_marks HAVING count(*) > 0;

-- Events are numbered behind those of the run; the run's row is locked by then.
CREATE OR REPLACE FUNCTION note(run_n bigint, given json) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO event_rows (run, n, kind, at, data)
    SELECT
        run_n, place + coalesce(( -- not max(): it takes longer
            SELECT n + (kind_2 IS NOT NULL)::integer FROM event_rows WHERE run = run_n ORDER BY n DESC LIMIT 1
        ), 0), e ->> 0, (e ->> 1)::float8, e ->> 2
    FROM json_array_elements(given) WITH ORDINALITY AS list (e, place);
END $$;

-- Always the last act of a verb: nothing else is locked after counters.
CREATE OR REPLACE FUNCTION count_up(given json) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO counter_rows AS counted (shard, name, value)
    SELECT pg_backend_pid() % 64, key, value::float8 FROM json_each_text(given) ORDER BY key COLLATE "C"
    ON CONFLICT (shard, name) DO UPDATE SET value = counted.value + excluded.value;
END $$;

-- As count_up, of several at once.
CREATE OR REPLACE FUNCTION count_all(given json[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO counter_rows AS counted (shard, name, value)
    SELECT pg_backend_pid() % 64, key, sum(value::float8) FROM unnest(given) AS one, json_each_text(one)
    GROUP BY key ORDER BY key COLLATE "C"
    ON CONFLICT (shard, name) DO UPDATE SET value = counted.value + excluded.value;
END $$;

CREATE OR REPLACE FUNCTION refuse(op text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM count_up(json_build_object(format('fence_rejections_total{op="%s"}', op), 1));
    RETURN 'fenced';
END $$;

CREATE OR REPLACE FUNCTION answer(outcome text, run_n bigint) RETURNS json LANGUAGE plpgsql AS $$
BEGIN
    RETURN json_build_object('outcome', outcome, 'run', (SELECT to_json(r) FROM run_records AS r WHERE n = run_n));
END $$;

CREATE OR REPLACE FUNCTION ring() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('understudy_work', '');
END $$;

-- Lock a run's thread, before the run itself. Without effect if there is no such run.
CREATE OR REPLACE FUNCTION lock_thread_of(p_run_id text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM threads WHERE thread_id = (SELECT thread_id FROM runs WHERE run_id = p_run_id) FOR UPDATE;
END $$;

-- Law 1: whether a run is owned with this epoch, and is until the verb has ended. By who asks something of its child,
-- whose row is locked by then.
CREATE OR REPLACE FUNCTION is_owned(p_run_id text, p_epoch bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM runs WHERE run_id = p_run_id AND epoch = p_epoch AND status = 'running' FOR UPDATE;
    RETURN FOUND;
END $$;

-- The end of a child is an answer to its parent, whether it asks yet or not; the first one stands.
CREATE OR REPLACE FUNCTION tell_parent(p_parent text, p_interrupt_id text, p_answer text, p_at float8) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE asker runs%ROWTYPE;
BEGIN
    SELECT * INTO asker FROM runs WHERE run_id = p_parent FOR UPDATE;
    IF NOT FOUND OR asker.status NOT IN ('queued', 'running', 'waiting') OR asker.answers ? p_interrupt_id THEN
        RETURN;
    END IF;
    UPDATE runs SET answers = answers || jsonb_build_object(p_interrupt_id, p_answer) WHERE n = asker.n;
    IF asker.status = 'waiting' AND p_interrupt_id = ANY (asker.open_ids) THEN
        UPDATE runs SET status = 'queued', not_before = 0, due_at = p_at WHERE n = asker.n;
        PERFORM ring();
    END IF;
    PERFORM note(asker.n, json_build_array(json_build_array(
        'answered', p_at, json_build_object('interrupt_id', p_interrupt_id)::text
    )));
END $$;

-- A run becomes final: it loses what nobody goes on with, leaves its thread, and releases the next run of it.
-- The thread is locked, so a run that is created meanwhile is seen here, or sees this.
CREATE OR REPLACE FUNCTION end_run(run_n bigint, p_status text, p_at float8, p_expires_at float8) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE run runs%ROWTYPE;
BEGIN
    UPDATE runs SET status = p_status, owner = '', lease_until = 0, not_before = 0, due_at = NULL
    WHERE n = run_n RETURNING * INTO run;
    IF p_status IN ('succeeded', 'cancelled') THEN -- the others keep what `retry` goes on with
        DELETE FROM messages WHERE messages.run = run_n;
        DELETE FROM writes WHERE writes.run = run_n;
        UPDATE runs SET interrupts = '[]', open_ids = '{}', answers = '{}' WHERE n = run_n;
    END IF;
    UPDATE threads SET
        expires_at = p_expires_at,
        head = CASE
            WHEN run.head = '' THEN head -- never claimed
            WHEN p_status = 'cancelled' AND run.rollback THEN run.base
            ELSE run.head
        END
    WHERE thread_id = run.thread_id;
    UPDATE runs SET due_at = p_at
    WHERE status = 'queued' AND due_at IS NULL AND n = (
        SELECT n FROM runs WHERE thread_id = run.thread_id AND status IN ('queued', 'running', 'waiting')
        ORDER BY n LIMIT 1
    );
    IF FOUND THEN
        PERFORM ring();
    END IF;
    IF run.parent <> '' THEN
        PERFORM tell_parent(run.parent, run.parent_interrupt, format( -- as refusals.child_answer
            '{"status":"%s","error":%s,"result":%s}', p_status, to_json(run.error), coalesce(nullif(run.result, ''), 'null')
        ), p_at);
    END IF;
END $$;

-- The run is locked, and so is its thread.
CREATE OR REPLACE FUNCTION cancel_run(run runs, p_now float8, p_expires_at float8) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF run.status = 'running' AND NOT run.cancel_asked THEN
        UPDATE runs SET cancel_asked = true, updated_at = p_now WHERE n = run.n;
        PERFORM note(run.n, json_build_array(json_build_array('cancel_asked', p_now, '{}')));
    ELSIF run.status IN ('queued', 'waiting') THEN
        UPDATE runs SET cancel_asked = true, epoch = epoch + 1, updated_at = p_now WHERE n = run.n;
        PERFORM note(run.n, json_build_array(json_build_array('finished', p_now, '{"status":"cancelled"}')));
        PERFORM end_run(run.n, 'cancelled', p_now, p_expires_at);
        PERFORM count_up(json_build_object(format(
            'runs_finished_total{graph="%s",status="cancelled"}', -- escaped as events.sample does it
            replace(replace(replace(run.graph, '\', '\\'), '"', '\"'), E'\n', '\n')
        ), 1));
    END IF;
END $$;

CREATE OR REPLACE FUNCTION run_create(
    p_run_id text, p_thread text, p_graph text, p_version text, p_code text, p_input text, p_digest text, p_key text,
    p_policy text, p_labels text, p_seed json, p_busy text, p_parent text, p_parent_interrupt text,
    p_parent_epoch bigint, p_blobs text, p_events json, p_counters json, p_now float8, p_expires_at float8
) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
    known runs%ROWTYPE;
    seed_id constant text := coalesce(p_seed ->> 'checkpoint_id', '');
    run_n bigint;
    busy boolean;
BEGIN
    SELECT * INTO known FROM runs WHERE run_id = p_run_id;
    IF FOUND THEN
        RETURN answer('known', known.n);
    END IF;
    IF p_parent_epoch > 0 THEN -- law 1; before the thread is made, so that a refusal leaves none
        PERFORM 1 FROM threads WHERE thread_id = p_thread FOR UPDATE;
        PERFORM 1 FROM runs WHERE run_id = p_parent AND epoch = p_parent_epoch AND status = 'running' FOR UPDATE;
        IF NOT FOUND THEN
            RETURN json_build_object('outcome', refuse('create'));
        END IF;
    END IF;
    LOOP -- somebody may delete the thread between the two
        INSERT INTO threads (thread_id, head) VALUES (p_thread, seed_id) ON CONFLICT DO NOTHING;
        PERFORM 1 FROM threads WHERE thread_id = p_thread FOR UPDATE;
        EXIT WHEN FOUND;
    END LOOP;
    SELECT * INTO known FROM runs WHERE run_id = p_run_id;
    IF FOUND THEN
        RETURN answer('known', known.n);
    END IF;
    IF p_key <> '' THEN
        SELECT * INTO known FROM runs WHERE thread_id = p_thread AND key = p_key;
        IF FOUND THEN
            RETURN answer(CASE WHEN known.digest = p_digest THEN 'known' ELSE 'key' END, known.n);
        END IF;
    END IF;
    IF p_seed IS NOT NULL AND EXISTS (SELECT 1 FROM runs WHERE thread_id = p_thread) THEN
        RETURN answer('seed', NULL);
    END IF;
    IF p_busy <> 'enqueue' THEN
        -- Also those that hear of an end: in one order with all who lock several.
        PERFORM 1 FROM runs WHERE run_id = ANY (ARRAY(
            SELECT unnest(ARRAY[run_id, parent]) FROM runs
            WHERE thread_id = p_thread AND status IN ('queued', 'running', 'waiting')
        )) ORDER BY n DESC FOR UPDATE;
        FOR known IN
            SELECT * FROM runs WHERE thread_id = p_thread AND status IN ('queued', 'running', 'waiting')
            ORDER BY n FOR UPDATE
        LOOP
            IF p_busy = 'reject' THEN
                RETURN answer('busy', known.n);
            END IF;
            UPDATE runs SET rollback = (p_busy = 'rollback') WHERE n = known.n;
            PERFORM cancel_run(known, p_now, p_expires_at);
        END LOOP;
    END IF;
    busy := EXISTS (SELECT 1 FROM runs WHERE thread_id = p_thread AND status IN ('queued', 'running', 'waiting'));
    UPDATE threads SET expires_at = NULL WHERE thread_id = p_thread AND expires_at IS NOT NULL;
    INSERT INTO runs (
        run_id, thread_id, graph, version, code, input, digest, key, policy, labels, status, head, base, parent,
        parent_interrupt, blobs, created_at, updated_at, due_at
    ) VALUES (
        p_run_id, p_thread, p_graph, p_version, p_code, p_input, p_digest, p_key, p_policy, p_labels, 'queued', seed_id,
        seed_id, p_parent, p_parent_interrupt, p_blobs, p_now, p_now, CASE WHEN busy THEN NULL ELSE p_now END
    ) RETURNING n INTO run_n;
    INSERT INTO needs (run, digest) SELECT DISTINCT run_n, digest FROM json_array_elements_text(p_blobs::json) AS b (digest);
    IF p_seed IS NOT NULL THEN
        INSERT INTO checkpoints (thread_id, checkpoint_id, parent, step, snapshot, body, run_id, at)
        VALUES (
            p_thread, p_seed ->> 'checkpoint_id', p_seed ->> 'parent', (p_seed ->> 'step')::bigint,
            (p_seed ->> 'snapshot')::boolean, p_seed ->> 'body', p_run_id, p_now
        );
    END IF;
    PERFORM note(run_n, p_events);
    PERFORM ring();
    PERFORM count_up(p_counters);
    RETURN answer('ok', run_n);
END $$;

-- One owner (law 1): of several who try, the first sets due_at to null; the others then find no row.
CREATE OR REPLACE FUNCTION run_claim(p_run_id text, p_owner text, p_lease_s float8, p_now float8) RETURNS json
LANGUAGE plpgsql AS $$
DECLARE run runs%ROWTYPE;
BEGIN
    UPDATE runs SET
        status = 'running', epoch = epoch + 1, owner = p_owner, lease_until = p_now + p_lease_s, not_before = 0,
        due_at = NULL, updated_at = p_now,
        head = CASE seq WHEN 0 THEN (SELECT t.head FROM threads AS t WHERE t.thread_id = runs.thread_id) ELSE head END,
        base = CASE seq WHEN 0 THEN (SELECT t.head FROM threads AS t WHERE t.thread_id = runs.thread_id) ELSE base END
    WHERE run_id = p_run_id AND due_at <= p_now RETURNING * INTO run;
    IF NOT FOUND THEN
        RETURN answer('not ready', (SELECT n FROM runs WHERE run_id = p_run_id));
    END IF;
    PERFORM note(run.n, json_build_array(json_build_array(
        'claimed', p_now, json_build_object('owner', p_owner, 'epoch', run.epoch)::text
    )));
    RETURN answer('ok', run.n);
END $$;

-- Laws 1 and 2: compare epoch and seq on the locked row; then everything, or an answer why nothing.
CREATE OR REPLACE FUNCTION run_commit(
    p_run_id text, p_epoch bigint, p_seq bigint, p_at float8, p_status text, p_step bigint, p_checkpoint_id text,
    p_parent text, p_checkpoint_step bigint, p_snapshot boolean, p_since text, p_body text, p_tasks text[], p_bodies text[],
    p_interrupts text, p_open_ids text[], p_wake_at float8, p_events json, p_counters json, p_result text, p_error text,
    p_expires_at float8, p_taken bigint[], p_listens_after bigint, p_together bigint[], OUT outcome text, OUT cancel_asked boolean, OUT stored_seq bigint
) LANGUAGE plpgsql AS $$
DECLARE
    run runs%ROWTYPE;
    final constant boolean := p_status NOT IN ('running', 'waiting');
    wake_now boolean;
BEGIN
    IF final THEN
        PERFORM lock_thread_of(p_run_id);
    END IF;
    SELECT * INTO run FROM runs WHERE run_id = p_run_id FOR UPDATE;
    cancel_asked := run.cancel_asked;
    stored_seq := run.seq;
    IF run.epoch IS DISTINCT FROM p_epoch THEN
        outcome := refuse('commit');
        RETURN;
    END IF;
    IF run.seq_epoch = p_epoch AND p_seq <= run.seq AND run.seq = ANY (p_together) THEN
        PERFORM count_up('{"checkpoint_commits_total{result=\"duplicate\"}": 1}');
        outcome := 'duplicate';
        RETURN;
    END IF;
    IF run.status <> 'running' THEN
        outcome := refuse('commit');
        RETURN;
    END IF;
    IF p_seq <> run.seq + 1 THEN
        outcome := 'gap';
        RETURN;
    END IF;
    outcome := 'ok';
    IF p_checkpoint_id IS NOT NULL THEN
        INSERT INTO checkpoints (thread_id, checkpoint_id, parent, step, snapshot, since, body, run_id, at)
        VALUES (run.thread_id, p_checkpoint_id, p_parent, p_checkpoint_step, p_snapshot, p_since, p_body, p_run_id, p_at);
        IF run.has_writes THEN
            DELETE FROM writes WHERE writes.run = run.n;
        END IF;
        run.has_writes := false;
        run.head := p_checkpoint_id;
        run.interrupts := '[]';
        run.open_ids := '{}';
        run.answers := '{}';
    ELSE
        INSERT INTO writes (run, task_id, body) SELECT run.n, task_id, body FROM unnest(p_tasks, p_bodies) AS w (task_id, body)
        ON CONFLICT ON CONSTRAINT writes_pkey DO UPDATE SET body = excluded.body;
        run.has_writes := run.has_writes OR cardinality(p_tasks) > 0;
    END IF;
    IF cardinality(p_taken) > 0 THEN
        DELETE FROM messages WHERE messages.run = run.n AND messages.n = ANY (p_taken);
    END IF;
    PERFORM note(run.n, p_events);
    -- No column of an index is named here, so that this stays in its page.
    UPDATE runs SET
        seq = p_seq, seq_epoch = p_epoch, step = p_step, head = run.head, interrupts = run.interrupts,
        open_ids = run.open_ids, answers = run.answers, detected_at = 0, updated_at = p_at, result = p_result,
        error = p_error, has_writes = run.has_writes
    WHERE n = run.n;
    IF p_status = 'waiting' THEN
        wake_now := run.cancel_asked OR run.answers ?| p_open_ids
            OR EXISTS (SELECT 1 FROM messages WHERE messages.run = run.n AND messages.n > p_listens_after);
        UPDATE runs SET
            status = CASE WHEN wake_now THEN 'queued' ELSE 'waiting' END, owner = '', lease_until = 0,
            interrupts = p_interrupts, open_ids = p_open_ids, not_before = CASE WHEN wake_now THEN 0 ELSE p_wake_at END,
            due_at = CASE WHEN wake_now THEN p_at WHEN p_wake_at <> 0 THEN p_wake_at END,
            listens_after = p_listens_after
        WHERE n = run.n;
        IF wake_now OR p_wake_at <> 0 THEN
            PERFORM ring();
        END IF;
    ELSIF final THEN
        PERFORM end_run(run.n, p_status, p_at, p_expires_at);
    END IF;
    IF p_counters IS NOT NULL THEN -- else it is the caller who counts
        PERFORM count_up(p_counters);
    END IF;
END $$;

-- As run_commit, for what nearly all commits are: the end of a superstep after which the run goes on, with two events
-- and two counters, both of which it moves by one: p_counted, and that of commits.
-- Fence and order are in the condition of the first statement, which waits for the row and looks at what it is by then.
-- Null: it is none of these cases, nothing was changed, ask run_commit.
-- Each statement costs as much as what it does, so the first one also looks for the last event. Of that it may have seen
-- an older one than there is, if it had to wait for the row: then the new event has the key of one that is there, which
-- undoes all of it, and run_commit is to be asked as well.
CREATE OR REPLACE FUNCTION run_step(
    p_run_id text, p_epoch bigint, p_seq bigint, p_at float8, p_step bigint, p_checkpoint_id text, p_parent text,
    p_checkpoint_step bigint, p_snapshot boolean, p_since text, p_body text, p_kind_1 text, p_at_1 float8, p_data_1 text,
    p_kind_2 text, p_at_2 float8, p_data_2 text, p_counted text
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    run_n bigint;
    thread text;
    asked boolean;
    pending boolean;
    last bigint;
BEGIN
    UPDATE runs SET
        seq = p_seq, seq_epoch = p_epoch, step = p_step, head = p_checkpoint_id, interrupts = '[]', open_ids = '{}',
        answers = '{}', detected_at = 0, updated_at = p_at, result = '', error = ''
    WHERE run_id = p_run_id AND epoch = p_epoch AND status = 'running' AND seq = p_seq - 1
    RETURNING
        n, thread_id, cancel_asked, has_writes, coalesce((
            SELECT events.n + (kind_2 IS NOT NULL)::integer FROM event_rows AS events
            WHERE run = runs.n ORDER BY events.n DESC LIMIT 1
        ), 0)
    INTO run_n, thread, asked, pending, last;
    IF run_n IS NULL THEN
        RETURN NULL;
    END IF;
    INSERT INTO checkpoints (thread_id, checkpoint_id, parent, step, snapshot, since, body, run_id, at)
    VALUES (thread, p_checkpoint_id, p_parent, p_checkpoint_step, p_snapshot, p_since, p_body, p_run_id, p_at);
    IF pending THEN
        DELETE FROM writes WHERE run = run_n;
        UPDATE runs SET has_writes = false WHERE n = run_n;
    END IF;
    INSERT INTO event_rows (run, n, kind, at, data, kind_2, at_2, data_2)
    VALUES (run_n, last + 1, p_kind_1, p_at_1, p_data_1, p_kind_2, p_at_2, p_data_2);
    INSERT INTO counter_marks (name) VALUES (p_counted);
    RETURN asked;
END $$;

-- What steps have counted goes to where all else is counted, in one transaction, so that nobody sees a mark twice or not
-- at all. Whether there may be more. One at a time does it, and the others leave it to that one.
CREATE OR REPLACE FUNCTION marks_fold(p_limit bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE marks bigint := 0;
BEGIN
    IF pg_try_advisory_xact_lock(1970168947) THEN
        WITH gone AS (
            DELETE FROM counter_marks WHERE ctid = ANY (ARRAY(SELECT ctid FROM counter_marks LIMIT p_limit)) RETURNING name
        ), folded AS (
            INSERT INTO counter_rows AS counted (shard, name, value)
            SELECT pg_backend_pid() % 64, name, sum(amount) FROM (
                SELECT name, count(*) AS amount FROM gone GROUP BY name
                UNION ALL
                SELECT 'checkpoint_commits_total{result="ok"}', count(*) FROM gone HAVING count(*) > 0
            ) AS added
            GROUP BY name ORDER BY name COLLATE "C"
            ON CONFLICT (shard, name) DO UPDATE SET value = counted.value + excluded.value
        )
        SELECT count(*) INTO marks FROM gone;
    END IF;
    RETURN marks = p_limit;
END $$;

-- Several of one run, in order, up to the first that is refused: one round trip, and one wait for the disk.
CREATE OR REPLACE FUNCTION run_commits(
    p_run_id text, p_epoch bigint, p_commits json, OUT outcome text, OUT cancel_asked boolean, OUT stored_seq bigint
) LANGUAGE plpgsql AS $$
DECLARE
    c record;
    together constant bigint[] := ARRAY(SELECT (sent ->> 'seq')::bigint FROM json_array_elements(p_commits) AS sent);
    counters json[] := '{}';
BEGIN
    FOR c IN
        SELECT * FROM json_to_recordset(p_commits) AS given (
            seq bigint, at float8, status text, step bigint, checkpoint_id text, parent text, checkpoint_step bigint,
            snapshot boolean, since text, body text, tasks text[], bodies text[], interrupts text, open_ids text[], wake_at float8,
            events json, counters json, result text, error text, expires_at float8, taken bigint[], listens_after bigint
        )
    LOOP
        SELECT done.outcome, done.cancel_asked, done.stored_seq INTO outcome, cancel_asked, stored_seq FROM run_commit(
            p_run_id, p_epoch, c.seq, c.at, c.status, c.step, c.checkpoint_id, c.parent, c.checkpoint_step, c.snapshot,
            c.since, c.body, c.tasks, c.bodies, c.interrupts, c.open_ids, c.wake_at, c.events, NULL, c.result, c.error,
            c.expires_at, c.taken, c.listens_after, together
        ) AS done;
        EXIT WHEN outcome NOT IN ('ok', 'duplicate');
        IF outcome = 'ok' THEN
            counters := counters || c.counters;
        END IF;
    END LOOP;
    PERFORM count_all(counters);
END $$;

CREATE OR REPLACE FUNCTION run_renew(
    p_run_ids text[], p_epochs bigint[], p_until float8, OUT lost text[], OUT cancelled text[]
) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM runs JOIN unnest(p_run_ids, p_epochs) AS lease (run_id, epoch) USING (run_id, epoch)
    WHERE status = 'running' ORDER BY n DESC FOR UPDATE OF runs;
    UPDATE runs SET lease_until = p_until FROM unnest(p_run_ids, p_epochs) AS lease (run_id, epoch)
    WHERE runs.run_id = lease.run_id AND runs.epoch = lease.epoch AND status = 'running';
    SELECT
        coalesce(array_agg(lease.run_id ORDER BY place) FILTER (WHERE runs.epoch IS DISTINCT FROM lease.epoch), '{}'),
        coalesce(array_agg(lease.run_id ORDER BY place) FILTER (
            WHERE runs.epoch = lease.epoch AND status = 'running' AND cancel_asked
        ), '{}')
    INTO lost, cancelled
    FROM unnest(p_run_ids, p_epochs) WITH ORDINALITY AS lease (run_id, epoch, place) LEFT JOIN runs USING (run_id);
    IF cardinality(lost) > 0 THEN
        PERFORM count_up(json_build_object('fence_rejections_total{op="renew"}', cardinality(lost)));
    END IF;
END $$;

CREATE OR REPLACE FUNCTION run_requeue(
    p_run_id text, p_epoch bigint, p_now float8, p_not_before float8, p_events json, p_counters json, p_crashed boolean,
    p_quarantine text, p_expires_at float8, p_crashes_max integer
) RETURNS json LANGUAGE plpgsql AS $$
DECLARE run runs%ROWTYPE;
BEGIN
    IF p_quarantine <> '' THEN
        PERFORM lock_thread_of(p_run_id);
    END IF;
    SELECT * INTO run FROM runs WHERE run_id = p_run_id FOR UPDATE;
    IF run.epoch IS DISTINCT FROM p_epoch OR run.status <> 'running' THEN
        RETURN json_build_object('outcome', refuse('requeue'));
    END IF;
    IF p_crashed THEN
        run.crashes := run.crashes || p_now;
        run.crashes := run.crashes[greatest(1, cardinality(run.crashes) - p_crashes_max + 1):];
    END IF;
    UPDATE runs SET
        status = 'queued', epoch = epoch + 1, owner = '', lease_until = 0, not_before = p_not_before,
        due_at = greatest(p_now, p_not_before), updated_at = p_now, crashes = run.crashes,
        restarts = restarts + p_crashed::integer, detected_at = CASE WHEN p_crashed THEN p_now ELSE detected_at END
    WHERE n = run.n;
    PERFORM note(run.n, p_events);
    IF p_quarantine <> '' THEN
        UPDATE runs SET error = p_quarantine WHERE n = run.n;
        PERFORM end_run(run.n, 'quarantined', p_now, p_expires_at);
    ELSE
        PERFORM ring();
    END IF;
    PERFORM count_up(p_counters);
    RETURN answer('ok', run.n);
END $$;

CREATE OR REPLACE FUNCTION run_resume(p_run_id text, p_interrupt_id text, p_answer text, p_now float8) RETURNS json
LANGUAGE plpgsql AS $$
DECLARE run runs%ROWTYPE;
BEGIN
    SELECT * INTO run FROM runs WHERE run_id = p_run_id FOR UPDATE;
    IF NOT FOUND THEN
        RETURN answer('missing', NULL);
    ELSIF run.status NOT IN ('queued', 'running', 'waiting') THEN
        RETURN answer('not asked', run.n);
    ELSIF run.answers ? p_interrupt_id THEN
        RETURN answer(CASE WHEN run.answers ->> p_interrupt_id = p_answer THEN 'ok' ELSE 'another' END, run.n);
    ELSIF NOT p_interrupt_id = ANY (run.open_ids) THEN
        RETURN answer('not asked', run.n);
    END IF;
    UPDATE runs SET answers = run.answers || jsonb_build_object(p_interrupt_id, p_answer), updated_at = p_now
    WHERE n = run.n;
    IF run.status = 'waiting' THEN
        UPDATE runs SET status = 'queued', not_before = 0, due_at = p_now WHERE n = run.n;
        PERFORM ring();
    END IF;
    PERFORM note(run.n, json_build_array(json_build_array(
        'answered', p_now, json_build_object('interrupt_id', p_interrupt_id)::text
    )));
    RETURN answer('ok', run.n);
END $$;

CREATE OR REPLACE FUNCTION run_cancel(p_run_id text, p_now float8, p_expires_at float8, p_parent_epoch bigint)
RETURNS json LANGUAGE plpgsql AS $$
DECLARE run runs%ROWTYPE;
BEGIN
    PERFORM lock_thread_of(p_run_id);
    SELECT * INTO run FROM runs WHERE run_id = p_run_id FOR UPDATE;
    IF NOT FOUND THEN
        RETURN answer('missing', NULL);
    ELSIF p_parent_epoch <> 0 AND NOT is_owned(run.parent, p_parent_epoch) THEN
        RETURN json_build_object('outcome', refuse('cancel'));
    END IF;
    PERFORM cancel_run(run, p_now, p_expires_at);
    RETURN answer('ok', run.n);
END $$;

CREATE OR REPLACE FUNCTION run_retry(p_run_id text, p_now float8, OUT outcome text, OUT detail text, OUT run json)
LANGUAGE plpgsql AS $$
DECLARE
    tried runs%ROWTYPE;
    other runs%ROWTYPE;
    at_head text;
BEGIN
    PERFORM lock_thread_of(p_run_id);
    SELECT * INTO tried FROM runs WHERE run_id = p_run_id FOR UPDATE;
    IF NOT FOUND THEN
        outcome := 'missing';
        RETURN;
    END IF;
    SELECT * INTO other FROM runs
    WHERE thread_id = tried.thread_id AND status IN ('queued', 'running', 'waiting') ORDER BY n LIMIT 1;
    SELECT head INTO at_head FROM heads WHERE thread_id = tried.thread_id;
    outcome := 'ok';
    IF tried.status IN ('succeeded', 'cancelled') THEN
        outcome := 'over';
    ELSIF tried.status IN ('failed', 'quarantined') AND other.n IS NOT NULL THEN
        outcome := 'busy';
        detail := other.run_id;
    ELSIF tried.status IN ('failed', 'quarantined') AND at_head <> tried.head THEN
        outcome := 'went on';
        detail := at_head;
    ELSIF tried.status IN ('failed', 'quarantined') THEN
        UPDATE runs SET
            status = 'queued', epoch = epoch + 1, error = '', crashes = '{}', detected_at = 0, not_before = 0,
            due_at = p_now, updated_at = p_now
        WHERE n = tried.n;
        UPDATE threads SET expires_at = NULL WHERE thread_id = tried.thread_id;
        PERFORM note(tried.n, json_build_array(json_build_array('retried', p_now, '{}')));
        PERFORM ring();
    END IF;
    run := answer('', tried.n) -> 'run';
END $$;

-- --- messages and streams -----------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION message_send(
    p_run_id text, p_message_id text, p_body text, p_now float8, p_mailbox_max bigint, p_parent_epoch bigint,
    OUT outcome text, OUT number bigint
) LANGUAGE plpgsql AS $$
DECLARE receiver runs%ROWTYPE;
BEGIN
    SELECT * INTO receiver FROM runs WHERE run_id = p_run_id FOR UPDATE;
    IF NOT FOUND THEN
        outcome := 'missing';
        RETURN;
    ELSIF p_parent_epoch <> 0 AND NOT is_owned(receiver.parent, p_parent_epoch) THEN
        outcome := refuse('send');
        RETURN;
    ELSIF receiver.status NOT IN ('queued', 'running', 'waiting') THEN
        outcome := 'over';
        RETURN;
    END IF;
    SELECT n INTO number FROM sent WHERE sent.run = receiver.n AND message_id = p_message_id;
    IF FOUND THEN
        outcome := 'ok';
        RETURN;
    END IF;
    number := (SELECT count(*) FROM messages WHERE messages.run = receiver.n);
    IF number >= p_mailbox_max THEN
        outcome := 'full';
        RETURN;
    END IF;
    outcome := 'ok';
    number := receiver.messages_sent + 1;
    INSERT INTO messages (run, n, message_id, body, at) VALUES (receiver.n, number, p_message_id, p_body, p_now);
    INSERT INTO sent (run, message_id, n) VALUES (receiver.n, p_message_id, number);
    UPDATE runs SET messages_sent = number WHERE n = receiver.n;
    PERFORM note(receiver.n, json_build_array(json_build_array(
        'message', p_now, json_build_object('n', number, 'message_id', p_message_id)::text
    )));
    IF receiver.status = 'waiting' AND number > receiver.listens_after THEN
        UPDATE runs SET status = 'queued', not_before = 0, due_at = p_now WHERE n = receiver.n;
        PERFORM ring();
    END IF;
END $$;

-- Chunks may be lost with the server, so nobody waits for the disk. False if the run is not this owner's (law 1).
CREATE OR REPLACE FUNCTION run_stream(p_run_id text, p_epoch bigint, p_chunks json, p_chunks_max bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    sender runs%ROWTYPE;
    last bigint;
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    SELECT * INTO sender FROM runs WHERE run_id = p_run_id FOR UPDATE;
    IF sender.epoch IS DISTINCT FROM p_epoch OR sender.status <> 'running' THEN
        RETURN false;
    END IF;
    last := coalesce((SELECT max(n) FROM chunks WHERE chunks.run = sender.n), 0);
    INSERT INTO chunks (run, n, task_id, node, attempt, data, at, withdrawn)
    SELECT sender.n, last + place, c ->> 0, c ->> 1, c ->> 2, c ->> 3, (c ->> 4)::float8, (c ->> 5)::boolean
    FROM json_array_elements(p_chunks) WITH ORDINALITY AS given (c, place);
    DELETE FROM chunks WHERE chunks.run = sender.n AND n <= last + json_array_length(p_chunks) - p_chunks_max;
    RETURN true;
END $$;

-- --- effects ------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION effect_begin(
    p_run_id text, p_checkpoint_id text, p_key text, p_task_id text, p_tool text, p_digest text, p_state text,
    p_sandbox text, p_token text, p_outcome text, p_place text, p_at float8, p_epoch bigint, p_events json, p_counters json
) RETURNS json LANGUAGE plpgsql AS $$
DECLARE
    run runs%ROWTYPE;
    known receipts%ROWTYPE;
BEGIN
    SELECT * INTO run FROM runs WHERE run_id = p_run_id FOR UPDATE;
    IF run.epoch IS DISTINCT FROM p_epoch OR run.status <> 'running' THEN
        RETURN json_build_object('outcome', refuse('begin'));
    END IF;
    SELECT * INTO known FROM receipts WHERE receipts.run = run.n AND checkpoint_id = p_checkpoint_id AND key = p_key;
    IF known.token = p_token AND known.state = p_state THEN
        RETURN json_build_object('outcome', 'fresh', 'receipt', to_json(known));
    ELSIF known.token = p_token OR known.state IN ('started', 'done') THEN
        RETURN json_build_object('outcome', 'known', 'receipt', to_json(known));
    END IF;
    INSERT INTO receipts (
        run, checkpoint_id, key, run_id, task_id, tool, digest, state, sandbox, token, outcome, at, place
    ) VALUES (
        run.n, p_checkpoint_id, p_key, p_run_id, p_task_id, p_tool, p_digest, p_state, p_sandbox, p_token, p_outcome,
        p_at, p_place
    ) ON CONFLICT ON CONSTRAINT receipts_pkey DO UPDATE SET
        task_id = excluded.task_id, tool = excluded.tool, digest = excluded.digest, state = excluded.state,
        sandbox = excluded.sandbox, token = excluded.token, outcome = excluded.outcome, at = excluded.at, place = excluded.place;
    PERFORM note(run.n, p_events);
    PERFORM count_up(p_counters);
    RETURN json_build_object('outcome', 'fresh');
END $$;

-- `finish` (state done) and `forget` (state unknown) of the start that has this token; not fenced by epoch (law 5).
CREATE OR REPLACE FUNCTION effect_end(
    p_run_id text, p_checkpoint_id text, p_key text, p_token text, p_state text, p_outcome text, p_events json,
    p_counters json
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE run_n bigint;
BEGIN
    SELECT n INTO run_n FROM runs WHERE run_id = p_run_id FOR UPDATE;
    UPDATE receipts SET state = p_state, outcome = p_outcome
    WHERE run = run_n AND checkpoint_id = p_checkpoint_id AND key = p_key AND token = p_token
        AND (state = 'started' OR (state = 'unknown' AND p_state = 'done'));
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM note(run_n, p_events);
    PERFORM count_up(p_counters);
    RETURN true;
END $$;
