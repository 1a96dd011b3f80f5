-- From schema version 8 to 9: a step leaves fewer rows. In one transaction, under the lock of whoever opens it first.

-- Steps say here whether there is something to delete.
ALTER TABLE runs ADD COLUMN has_writes boolean NOT NULL DEFAULT false;
UPDATE runs SET has_writes = true WHERE EXISTS (SELECT 1 FROM writes WHERE run = runs.n);

-- A row holds one event, or two: the second is numbered n + 1.
ALTER TABLE events RENAME TO event_rows;
ALTER INDEX events_pkey RENAME TO event_rows_pkey;
ALTER TABLE event_rows
    ADD COLUMN kind_2 text,
    ADD COLUMN at_2 double precision,
    ADD COLUMN data_2 text;

ALTER TABLE counters RENAME TO counter_rows;
ALTER INDEX counters_pkey RENAME TO counter_rows_pkey;

-- What steps have counted and no sweep has added to counter_rows yet: a row is one commit, and one of `name`. To add to
-- two rows by their key took a step as long as all else that it leaves.
CREATE TABLE counter_marks (name text COLLATE "C" NOT NULL);
