-- The commit of a superstep after which the run goes on, as nearly all are, in one statement: INSERT INTO step. (On the
-- way from Python, each statement costs as much as what it does.) Made by each connection for itself, so no schema has it.
-- Laws 1 and 2: fence and order were compared on the row that `hold_for_commit` read in the same transaction.

CREATE TEMP VIEW step AS SELECT
    NULL AS n, NULL AS thread_id, NULL AS run_id, NULL AS epoch, NULL AS seq, NULL AS at, NULL AS step,
    NULL AS checkpoint_id, NULL AS parent, NULL AS checkpoint_step, NULL AS snapshot, NULL AS since, NULL AS body,
    NULL AS last_event, NULL AS kind_1, NULL AS at_1, NULL AS data_1, NULL AS kind_2, NULL AS at_2, NULL AS data_2,
    NULL AS name_1, NULL AS amount_1, NULL AS name_2, NULL AS amount_2;

CREATE TEMP TRIGGER take_step INSTEAD OF INSERT ON step BEGIN
    INSERT INTO checkpoints (thread_id, checkpoint_id, parent, step, snapshot, since, run_id, at, body)
    VALUES (
        NEW.thread_id, NEW.checkpoint_id, NEW.parent, NEW.checkpoint_step, NEW.snapshot, NEW.since, NEW.run_id, NEW.at,
        NEW.body
    );
    DELETE FROM writes WHERE run = NEW.n;
    INSERT INTO events (run, n, kind, at, data) VALUES
        (NEW.n, NEW.last_event + 1, NEW.kind_1, NEW.at_1, NEW.data_1),
        (NEW.n, NEW.last_event + 2, NEW.kind_2, NEW.at_2, NEW.data_2);
    INSERT INTO counters (name, value) VALUES (NEW.name_1, NEW.amount_1), (NEW.name_2, NEW.amount_2)
    ON CONFLICT (name) DO UPDATE SET value = value + excluded.value;
    -- No column of an index is named here: indexes are written only when a run leaves.
    UPDATE runs SET
        seq = NEW.seq, seq_epoch = NEW.epoch, step = NEW.step, head = NEW.checkpoint_id, detected_at = 0,
        updated_at = NEW.at, result = '', error = ''
    WHERE n = NEW.n;
END;
