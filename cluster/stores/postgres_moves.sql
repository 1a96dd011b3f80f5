-- Verbs of a Postgres store about whole threads; on the same terms as postgres_verbs.sql.

-- Law 8: nothing stays. The answer is the run that forbids it, if there is one.
CREATE OR REPLACE FUNCTION thread_delete(p_thread text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    unfinished text;
    numbers bigint[];
BEGIN
    PERFORM 1 FROM threads WHERE thread_id = p_thread FOR UPDATE;
    PERFORM 1 FROM runs WHERE thread_id = p_thread ORDER BY n FOR UPDATE;
    SELECT run_id INTO unfinished FROM runs
    WHERE thread_id = p_thread AND status IN ('queued', 'running', 'waiting') ORDER BY n LIMIT 1;
    IF FOUND THEN
        RETURN unfinished;
    END IF;
    numbers := ARRAY(SELECT n FROM runs WHERE thread_id = p_thread);
    DELETE FROM receipts WHERE run = ANY (numbers);
    DELETE FROM writes WHERE run = ANY (numbers);
    DELETE FROM event_rows WHERE run = ANY (numbers);
    DELETE FROM messages WHERE run = ANY (numbers);
    DELETE FROM sent WHERE run = ANY (numbers);
    DELETE FROM chunks WHERE run = ANY (numbers);
    DELETE FROM needs WHERE run = ANY (numbers);
    DELETE FROM checkpoints WHERE thread_id = p_thread;
    DELETE FROM runs WHERE thread_id = p_thread;
    DELETE FROM threads WHERE thread_id = p_thread;
    RETURN '';
END $$;

-- Also the blobs that were put long ago and that no run names. One that is put again meanwhile is looked at again by
-- DELETE once it has the row, and stays.
CREATE OR REPLACE FUNCTION threads_sweep(
    p_now float8, p_silent_before float8, p_blobs_before float8, p_limit integer
) RETURNS integer
LANGUAGE plpgsql SET plan_cache_mode = force_custom_plan AS $$ -- most have no end yet, which only the values tell
DECLARE
    past text;
    swept integer := 0;
BEGIN
    DELETE FROM beats WHERE at < p_silent_before;
    FOR past IN
        SELECT thread_id FROM threads
        WHERE expires_at <= p_now AND NOT EXISTS (
            SELECT 1 FROM runs WHERE runs.thread_id = threads.thread_id AND status IN ('queued', 'running', 'waiting')
        )
        ORDER BY thread_id LIMIT p_limit FOR UPDATE SKIP LOCKED -- who holds it uses it, or sweeps as well
    LOOP
        IF thread_delete(past) = '' THEN
            swept := swept + 1;
        END IF;
    END LOOP;
    DELETE FROM blobs
    WHERE put_at <= p_blobs_before AND NOT EXISTS (SELECT 1 FROM needs WHERE needs.digest = blobs.digest);
    RETURN swept;
END $$;

-- The thread's head, and the head and base of whatever is unfinished, stay. The thread is locked, so that its head does.
CREATE OR REPLACE FUNCTION thread_prune(p_thread text, p_checkpoint_ids text[]) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE gone text[];
BEGIN
    PERFORM 1 FROM threads WHERE thread_id = p_thread FOR UPDATE;
    WITH deleted AS (
        DELETE FROM checkpoints
        WHERE thread_id = p_thread AND checkpoint_id = ANY (p_checkpoint_ids) AND checkpoint_id NOT IN (
            SELECT head FROM heads WHERE thread_id = p_thread
            UNION ALL
            SELECT unnest(ARRAY[head, base]) FROM runs
            WHERE thread_id = p_thread AND status IN ('queued', 'running', 'waiting')
        )
        RETURNING checkpoint_id
    )
    SELECT coalesce(array_agg(checkpoint_id), '{}') INTO gone FROM deleted;
    DELETE FROM receipts
    WHERE run IN (SELECT n FROM runs WHERE thread_id = p_thread) AND checkpoint_id = ANY (gone);
    RETURN cardinality(gone);
END $$;

-- Every start puts its policy and its code again. That only says "not yet" to a sweep, so nobody waits for the disk, and
-- many starts do not wait for each other's: the run that names it is flushed after it, as there is one log for both.
CREATE OR REPLACE FUNCTION blob_put(p_digest text, p_data bytea, p_now float8) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE blobs SET put_at = p_now WHERE digest = p_digest;
    IF FOUND THEN
        PERFORM set_config('synchronous_commit', 'off', true);
        RETURN;
    END IF;
    INSERT INTO blobs (digest, data, put_at) VALUES (p_digest, p_data, p_now)
    ON CONFLICT (digest) DO UPDATE SET put_at = excluded.put_at;
END $$;
