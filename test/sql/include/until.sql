\set ECHO none
-- until.sql: in the schema that variable `schema` names, a procedure that waits until a condition holds.
--
--   \getenv tests PG_ABS_SRCDIR
--   \set until :tests '/sql/include/until.sql'
--   \set schema NAME
--   \i :until
--   CALL NAME.until('EXISTS (SELECT FROM ...)');
CREATE PROCEDURE :schema.until(condition text) LANGUAGE plpgsql AS $$
DECLARE
    ok boolean;
BEGIN
    FOR i IN 1 .. 6000 LOOP
        EXECUTE 'SELECT ' || condition INTO ok;
        IF ok THEN
            RETURN;
        END IF;
        PERFORM pg_sleep(0.01);
        COMMIT;
    END LOOP;
    RAISE 'never: %', condition;
END $$;
\set ECHO all
