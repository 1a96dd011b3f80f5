-- From schema version 3 to 4: differences to a checkpoint before the parent. What is stored has none. In one transaction,
-- under the lock of whoever opens it first.

-- Functions are made anew: those of another version must not be called, and an old client shall notice.
DO $$
DECLARE old text;
BEGIN
    FOR old IN
        SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'understudy'::regnamespace
    LOOP
        EXECUTE 'DROP FUNCTION ' || old;
    END LOOP;
END $$;

ALTER TABLE checkpoints ADD COLUMN since text COLLATE "C" NOT NULL DEFAULT '';
