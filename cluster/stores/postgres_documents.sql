-- Documents of a Postgres store; on the same terms as postgres_verbs.sql.

-- The row decides: of several writers over one version, the first changes it and no row is left for the others. Those
-- are told what there is; this very write, sent again, is answered as it was.
CREATE OR REPLACE FUNCTION document_write(
    p_shelf text, p_name text, p_data bytea, p_over bigint, OUT outcome text, OUT there bigint, OUT contents bytea
) LANGUAGE plpgsql AS $$
BEGIN
    IF p_over = 0 THEN
        INSERT INTO documents (shelf, name, version, data) VALUES (p_shelf, p_name, 1, p_data) ON CONFLICT DO NOTHING;
    ELSE
        UPDATE documents SET version = p_over + 1, data = p_data
        WHERE shelf = p_shelf AND name = p_name AND version = p_over;
    END IF;
    outcome := 'ok';
    IF FOUND THEN
        RETURN;
    END IF;
    SELECT version, data INTO there, contents FROM documents WHERE shelf = p_shelf AND name = p_name;
    IF there IS DISTINCT FROM p_over + 1 OR contents IS DISTINCT FROM p_data THEN
        outcome := 'overtaken';
    END IF;
END $$;

CREATE OR REPLACE FUNCTION document_erase(
    p_shelf text, p_name text, p_over bigint, OUT outcome text, OUT there bigint, OUT contents bytea
) LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM documents WHERE shelf = p_shelf AND name = p_name AND version = p_over;
    outcome := 'ok';
    IF FOUND THEN
        RETURN;
    END IF;
    SELECT version, data INTO there, contents FROM documents WHERE shelf = p_shelf AND name = p_name;
    IF FOUND THEN
        outcome := 'overtaken';
    END IF;
END $$;
