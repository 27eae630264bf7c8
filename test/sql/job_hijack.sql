-- What a role could try to get at the rights or the jobs of others.
\set VERBOSITY sqlstate
CREATE SCHEMA job_hijack;
CREATE ROLE regress_job_eve;
CREATE ROLE regress_job_adam;
GRANT USAGE, CREATE ON SCHEMA job_hijack TO regress_job_eve;
GRANT TEMPORARY ON DATABASE :"DBNAME" TO regress_job_eve;
CREATE TABLE job_hijack.caught (who text, what text);
GRANT INSERT ON job_hijack.caught TO PUBLIC;

---- Her functions and operators in front of pg_catalog, her tables in pg_temp: ours do not use them
SET ROLE regress_job_eve;
CREATE FUNCTION job_hijack.eq(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO job_hijack.caught VALUES (current_user, 'bigint = bigint'); RETURN true; END $$;
CREATE FUNCTION job_hijack.eq(text, text) RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO job_hijack.caught VALUES (current_user, 'text = text'); RETURN true; END $$;
CREATE FUNCTION job_hijack.eq(oid, oid) RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO job_hijack.caught VALUES (current_user, 'oid = oid'); RETURN true; END $$;
CREATE OPERATOR job_hijack.= (FUNCTION = job_hijack.eq, LEFTARG = bigint, RIGHTARG = bigint);
CREATE OPERATOR job_hijack.= (FUNCTION = job_hijack.eq, LEFTARG = text, RIGHTARG = text);
CREATE OPERATOR job_hijack.= (FUNCTION = job_hijack.eq, LEFTARG = oid, RIGHTARG = oid);
CREATE FUNCTION job_hijack.unnest(bigint[]) RETURNS SETOF bigint LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO job_hijack.caught VALUES (current_user, 'unnest'); RETURN; END $$;
CREATE FUNCTION job_hijack.now() RETURNS timestamptz LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO job_hijack.caught VALUES (current_user, 'now'); RETURN clock_timestamp(); END $$;
CREATE FUNCTION job_hijack.pg_has_role(oid, text) RETURNS boolean LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO job_hijack.caught VALUES (current_user, 'pg_has_role'); RETURN true; END $$;
CREATE FUNCTION job_hijack.row_to_json(record) RETURNS json LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO job_hijack.caught VALUES (current_user, 'row_to_json'); RETURN '{}'; END $$;
SET search_path = job_hijack, pg_catalog;
CREATE TEMP TABLE _job (id bigint, owner regrole);
CREATE TEMP TABLE jobs (id bigint, state text);
CREATE TEMP TABLE pg_inherits (inhrelid oid, inhparent oid);
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', run_at => '2200-01-01', unique_key => 'k') AS parent \gset
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', unique_key => 'k2', depends_on => ARRAY[:parent]) AS child \gset
SELECT swarm.job_retry(:parent);
SELECT state FROM swarm.job_wait(:child, '60 s');
SELECT swarm.job_cancel(swarm.job_enqueue('sql', run_at => '2200-01-01'));
SELECT count(*) FROM swarm.job_enqueue_many('[{"kind": "sql", "args": {"sql": "SELECT 1"}, "unique_key": "k"}]');
SELECT count(*) > 0 AS any FROM swarm.jobs;
SELECT count(*) > 0 AS any FROM swarm.queues;
SELECT count(*) > 0 AS any FROM swarm.health();
-- the trap works: for her own statement
SELECT 1::bigint = 2::bigint AS trapped;
RESET search_path;
RESET ROLE;
SELECT * FROM job_hijack.caught;
TRUNCATE job_hijack.caught;
-- nor do the statements of the runners and of the scheduler, if the database has such a path
ALTER DATABASE :"DBNAME" SET search_path = job_hijack, pg_catalog;
SET client_min_messages = error;	-- one may be leaving
SELECT pg_terminate_backend(pid, 60000) FROM swarm.workers WHERE role IN ('runner', 'scheduler') AND database = current_database() AND pid IS NOT NULL \g /dev/null
\c -
\set VERBOSITY sqlstate
RESET search_path;
SET search_path = public;
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1/0"}', max_attempts => 2, unique_key => 'k', run_at => '2200-01-01') AS parent \gset
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', unique_key => 'k2', depends_on => ARRAY[:parent]) AS child \gset
SELECT swarm.job_retry(:parent);
DO $$
BEGIN
    FOR i IN 1 .. 6000 LOOP
        BEGIN
            PERFORM swarm.job_retry(id) FROM swarm.jobs WHERE state = 'failed';
        EXCEPTION WHEN object_not_in_prerequisite_state THEN
            NULL;
        END;
        COMMIT;
        EXIT WHEN NOT EXISTS (SELECT FROM swarm.jobs WHERE finished_at IS NULL);
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$;
SELECT state FROM swarm.jobs WHERE id IN (:parent, :child) ORDER BY id;
ALTER DATABASE :"DBNAME" RESET search_path;
SET client_min_messages = error;	-- one may be leaving
SELECT pg_terminate_backend(pid, 60000) FROM swarm.workers WHERE role IN ('runner', 'scheduler') AND database = current_database() AND pid IS NOT NULL \g /dev/null
\c -
\set VERBOSITY sqlstate
SELECT * FROM job_hijack.caught;

---- A leaky function sees no rows of others
SET ROLE regress_job_adam;
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT ''secret''"}', run_at => '2200-01-01') AS secret \gset
SET ROLE regress_job_eve;
CREATE FUNCTION job_hijack.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0001 AS
    $$ BEGIN INSERT INTO job_hijack.caught VALUES (current_user, $1); RETURN true; END $$;
SELECT count(*) FROM swarm.jobs WHERE job_hijack.leak(args::text) AND args::text LIKE '%secret%';
SELECT count(*) FROM swarm._job WHERE job_hijack.leak(args::text) AND args::text LIKE '%secret%';
RESET ROLE;
SELECT * FROM job_hijack.caught WHERE what LIKE '%secret%';
-- nor what one of them does, while it runs
SELECT swarm.job_cancel(:secret);

---- Queues and kinds belong to who made them, even among administrators
GRANT EXECUTE ON FUNCTION swarm.queue_create, swarm.queue_pause, swarm.queue_resume, swarm.queue_drop, swarm.handler_register,
    swarm.handler_drop, swarm.job_claim, swarm.job_complete, swarm.job_fail, swarm.job_heartbeat TO regress_job_eve, regress_job_adam;
SET ROLE regress_job_adam;
SELECT swarm.queue_create('job_hijack'), swarm.handler_register('job_hijack', NULL);
SELECT swarm.job_enqueue('job_hijack', queue => 'job_hijack') AS job \gset
SELECT swarm.queue_pause('default');
SELECT swarm.queue_create('default', max_running => 1);
SET ROLE regress_job_eve;
SELECT swarm.queue_create('job_hijack', max_running => 1);
SELECT swarm.queue_pause('job_hijack');
SELECT swarm.queue_resume('job_hijack');
SELECT swarm.queue_drop('job_hijack');
SELECT swarm.handler_register('job_hijack', NULL, 1);
SELECT swarm.handler_drop('job_hijack');
SELECT swarm.job_claim('job_hijack');
-- she may use them
SELECT swarm.job_enqueue('job_hijack', queue => 'job_hijack', unique_key => 'k') AS hers \gset
SET ROLE regress_job_adam;
SELECT count(*) FROM swarm.job_claim('job_hijack', 10, '1 hour');
-- but he sees of hers only what the claim gave him
SELECT count(*) FROM swarm.jobs WHERE id = :hers;
SELECT swarm.job_cancel(:hers);
SELECT swarm.job_cancel(:job);
SET ROLE regress_job_eve;
SELECT swarm.job_cancel(:hers);
-- a handler must be one's to call when one registers it
RESET ROLE;
CREATE FUNCTION job_hijack.private(job swarm.job) RETURNS void LANGUAGE sql AS '';
REVOKE EXECUTE ON FUNCTION job_hijack.private FROM PUBLIC;
SET ROLE regress_job_eve;
SELECT swarm.handler_register('job_hijack_eve', 'job_hijack.private');

---- A SECURITY DEFINER function enqueues for its owner, and its caller gets nothing by that
RESET ROLE;
CREATE FUNCTION job_hijack.for_adam() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS
    $$ SELECT swarm.job_enqueue('sql', '{"sql": "SELECT current_user AS who"}') $$;
ALTER FUNCTION job_hijack.for_adam OWNER TO regress_job_adam;
SET ROLE regress_job_eve;
SELECT job_hijack.for_adam() AS job \gset
SELECT swarm.job_wait(:job, '60 s');
SET ROLE regress_job_adam;
SELECT state, result FROM swarm.job_wait(:job, '60 s');
-- and inside of a job the rights are those of its owner, not of its handler's
RESET ROLE;
CREATE FUNCTION job_hijack.whoami(job swarm.job) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(current_user::text)';
SELECT swarm.handler_register('job_hijack_who', 'job_hijack.whoami');
SET ROLE regress_job_eve;
SELECT swarm.job_enqueue('job_hijack_who') AS job \gset
SELECT state, result FROM swarm.job_wait(:job, '60 s');
RESET ROLE;
SELECT swarm.handler_drop('job_hijack_who'), swarm.handler_drop('job_hijack'), swarm.queue_drop('job_hijack');

SELECT count(*) FROM swarm._job;
SET client_min_messages = warning;
DROP SCHEMA job_hijack CASCADE;
DROP OWNED BY regress_job_eve, regress_job_adam;
DROP ROLE regress_job_eve, regress_job_adam;
