-- Whose rights a job has while it runs, at every moment of its transactions,
-- and that nothing of it stays behind for the next job.
\set VERBOSITY terse
CREATE SCHEMA job_owner;
CREATE ROLE regress_job_mallory;
CREATE ROLE regress_job_victim;
GRANT USAGE, CREATE ON SCHEMA job_owner TO regress_job_mallory;
GRANT USAGE ON SCHEMA job_owner TO regress_job_victim;
-- enqueue, commit, wait, tell
CREATE PROCEDURE job_owner.run(kind text, args jsonb = '{}') LANGUAGE plpgsql AS $$
DECLARE
    job bigint := swarm.job_enqueue(kind, args, max_attempts => 1);
    s swarm.job_status;
BEGIN
    COMMIT;
    s := swarm.job_wait(job, '60 s');
    RAISE NOTICE '%: % %', s.state, s.result, s.error;
END $$;

SET ROLE regress_job_mallory;
CREATE TABLE job_owner.log (n serial, who text, step text);
CREATE FUNCTION job_owner.note(step text) RETURNS int LANGUAGE sql AS
    $$ INSERT INTO job_owner.log (who, step) VALUES (current_user, step) RETURNING n $$;
CREATE TABLE job_owner.t (a int);
CREATE FUNCTION job_owner.late() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM job_owner.note('deferred trigger');
    BEGIN
        EXECUTE 'SET ROLE ' || session_user;
        PERFORM job_owner.note('SET ROLE worked');
    EXCEPTION WHEN OTHERS THEN
        PERFORM job_owner.note('SET ROLE refused');
    END;
    SET search_path = evil;
    SET work_mem = '77MB';
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON job_owner.t
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION job_owner.late();

-- What runs at commit runs as the owner.
CALL job_owner.run('sql', '{"sql": "INSERT INTO job_owner.t VALUES (1)"}');
CALL job_owner.run('sql', '{"sql": "DECLARE c CURSOR WITH HOLD FOR SELECT job_owner.note(''cursor'')"}');
SELECT who, step FROM job_owner.log ORDER BY n;
TRUNCATE job_owner.log;

-- A procedure has its owner's rights before and after COMMIT and ROLLBACK.
CREATE PROCEDURE job_owner.proc(job swarm.job) LANGUAGE plpgsql AS $$
DECLARE
    attempt text;
BEGIN
    ROLLBACK;
    PERFORM job_owner.note('after rollback');
    COMMIT;
    PERFORM job_owner.note('after commit');
    ROLLBACK;
    PERFORM job_owner.note('after the second rollback');
    COMMIT;
    FOREACH attempt IN ARRAY ARRAY['SET ROLE postgres', 'SET LOCAL ROLE postgres', 'RESET ROLE',
        'SET ROLE NONE', 'SET SESSION AUTHORIZATION postgres', 'RESET SESSION AUTHORIZATION',
        'SELECT set_config(''role'', ''postgres'', false)',
        'SELECT set_config(''session_authorization'', session_user, true)']
    LOOP
        BEGIN
            EXECUTE attempt;
            PERFORM job_owner.note(attempt || ' worked');
        EXCEPTION WHEN OTHERS THEN
            PERFORM job_owner.note(attempt || ': ' || sqlstate);
        END;
        COMMIT;
    END LOOP;
    RESET ALL;
    INSERT INTO job_owner.t VALUES (1);
    COMMIT;
    INSERT INTO job_owner.t VALUES (1);
END $$;
-- leaves settings behind, then fails
CREATE PROCEDURE job_owner.leave(job swarm.job) LANGUAGE plpgsql AS $$
BEGIN
    SET search_path = evil;
    SET work_mem = '77MB';
    COMMIT;
    RAISE 'gone';
END $$;
RESET ROLE;
SELECT swarm.handler_register('job_owner_proc', 'job_owner.proc');
SELECT swarm.handler_register('job_owner_leave', 'job_owner.leave');
SET ROLE regress_job_mallory;
CALL job_owner.run('job_owner_proc');
SELECT who, step FROM job_owner.log ORDER BY n;

-- Nothing of it meets the job of another.
CALL job_owner.run('job_owner_leave');
SET ROLE regress_job_victim;
CALL job_owner.run('sql', '{"sql": "SELECT current_user, current_setting(''search_path'') AS path, setting = reset_val AS clean FROM pg_settings WHERE name = ''work_mem''"}');
-- The rights to call the handler are those of the owner, for procedures too.
RESET ROLE;
REVOKE EXECUTE ON PROCEDURE job_owner.leave FROM PUBLIC;
SET ROLE regress_job_victim;
CALL job_owner.run('job_owner_leave');
RESET ROLE;
GRANT EXECUTE ON PROCEDURE job_owner.leave TO PUBLIC;
REVOKE USAGE ON SCHEMA job_owner FROM regress_job_victim;
SET ROLE regress_job_victim;
SELECT swarm.job_enqueue('job_owner_leave', max_attempts => 1) AS job \gset
SELECT state, error FROM swarm.job_wait(:job, '60 s');
RESET ROLE;

SELECT swarm.handler_drop('job_owner_proc'), swarm.handler_drop('job_owner_leave');
DROP SCHEMA job_owner CASCADE;
DROP OWNED BY regress_job_mallory, regress_job_victim;
DROP ROLE regress_job_mallory, regress_job_victim;
