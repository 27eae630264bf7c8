-- Jobs run as who enqueued them; who sees, waits for and controls them.
\set VERBOSITY sqlstate
CREATE ROLE regress_swarm_ann;
CREATE ROLE regress_swarm_bob;
CREATE ROLE regress_swarm_team;
GRANT regress_swarm_team TO regress_swarm_bob;
CREATE TABLE ann_only (who text);
ALTER TABLE ann_only OWNER TO regress_swarm_ann;
CREATE TABLE attempts (sql text, id bigint);
GRANT ALL ON attempts TO regress_swarm_ann;

SET ROLE regress_swarm_ann;
SELECT swarm.job_enqueue('sql', '{"sql": "INSERT INTO public.ann_only SELECT current_user RETURNING who"}') AS id \gset
SELECT state, result FROM swarm.job_wait(:id, '60 s');
-- she stays herself, whatever the job tries
INSERT INTO attempts SELECT s, swarm.job_enqueue('sql', jsonb_build_object('sql', s), max_attempts => 1) FROM unnest(ARRAY[
    'SET ROLE regress_swarm_bob', 'RESET ROLE', 'SET SESSION AUTHORIZATION regress_swarm_bob',
    'CREATE ROLE regress_swarm_evil', 'ALTER ROLE regress_swarm_ann SUPERUSER',
    'DELETE FROM swarm._job', 'UPDATE swarm._queue SET paused = true',
    'SELECT swarm._clock_advance(''1 day'')', 'SELECT swarm._fault_arm(''job.end'')',
    'SELECT swarm.queue_create(''hers'')', 'SELECT swarm.job_claim(''default'')',
    'SELECT swarm.handler_register(''hers'', NULL)', 'SELECT swarm.jobs_resume()']) s;
SELECT a.sql, j.state, substring(j.error FROM 'SQLSTATE (.....)') AS sqlstate
FROM attempts a, swarm.job_wait(a.id, '60 s') j ORDER BY a.sql;

-- others: nothing to see, nothing to control, and it does not even exist
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', run_at => now() + '1 day', unique_key => 'once') AS later \gset
SET ROLE regress_swarm_bob;
SELECT count(*) FROM swarm.jobs;
SELECT count(*) FROM swarm._job;
SELECT count(*) FROM swarm.job_history;
SELECT swarm.job_wait(:later, '1 ms');
SELECT swarm.job_cancel(:later);
SELECT swarm.job_retry(:later);
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', depends_on => ARRAY[:later]);
SELECT swarm.job_cancel(:id);
SELECT swarm.job_wait(999999999, '1 ms');
-- a key of hers is not one of his
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', run_at => now() + '1 day', unique_key => 'once') <> :later AS own_key;
SELECT swarm.job_cancel(id) FROM swarm.jobs WHERE finished_at IS NULL;
-- members of the owner see and control
SET ROLE regress_swarm_team;
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT current_user"}', run_at => now() + '1 day') AS team \gset
SET ROLE regress_swarm_bob;
SELECT state, owner FROM swarm.jobs WHERE id = :team;
SELECT swarm.job_retry(:team);
SELECT state, result FROM swarm.job_wait(:team, '60 s');
-- but not those who must SET ROLE first to use its rights
RESET ROLE;
CREATE ROLE regress_swarm_cat NOINHERIT;
GRANT regress_swarm_team TO regress_swarm_cat;
SET ROLE regress_swarm_cat;
SELECT count(*) FROM swarm.jobs WHERE id = :team;
SELECT swarm.job_wait(:team, '1 ms');
SELECT swarm.job_cancel(:team);
SELECT swarm.job_retry(:team);
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', depends_on => ARRAY[:team]);
SET ROLE regress_swarm_team;
SELECT state, owner FROM swarm.jobs WHERE id = :team;
SET ROLE regress_swarm_ann;
SELECT swarm.job_cancel(:later, 'enough');
SELECT state, error FROM swarm.jobs WHERE id = :later;

-- a handler needs the right to be executed by the job's owner, when it runs
RESET ROLE;
CREATE FUNCTION secret_handler(job swarm.job) RETURNS jsonb LANGUAGE sql AS 'SELECT to_jsonb(current_user)';
REVOKE ALL ON FUNCTION secret_handler FROM PUBLIC;
SELECT swarm.handler_register('secret', 'secret_handler');
SET ROLE regress_swarm_ann;
SELECT swarm.job_enqueue('secret', max_attempts => 1) AS id \gset
SELECT state, substring(error FROM 'SQLSTATE (.....)') AS sqlstate FROM swarm.job_wait(:id, '60 s');
RESET ROLE;
GRANT EXECUTE ON FUNCTION secret_handler TO regress_swarm_ann;
SET ROLE regress_swarm_ann;
SELECT swarm.job_retry(:id);
SELECT state, result FROM swarm.job_wait(:id, '60 s');
RESET ROLE;

-- the search_path of a job's owner does not reach the extension's own statements
SELECT swarm.handler_drop('secret');
DROP FUNCTION secret_handler;

-- a job whose owner is gone
SET ROLE regress_swarm_team;
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', run_at => now() + '1 day', max_attempts => 1) AS orphan \gset
RESET ROLE;
DROP ROLE regress_swarm_team;
SELECT swarm.job_retry(:orphan);
SELECT state, substring(error FROM 'SQLSTATE (.....)') AS sqlstate FROM swarm.job_wait(:orphan, '60 s');
DROP TABLE ann_only, attempts;
DROP ROLE regress_swarm_ann, regress_swarm_bob, regress_swarm_cat;
