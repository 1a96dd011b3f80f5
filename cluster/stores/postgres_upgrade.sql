-- Before any upgrade of the schema, in the same transaction.

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
