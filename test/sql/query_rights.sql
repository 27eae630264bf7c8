-- Whose query it is: others do not see it, cannot touch it, and it does not even exist.
\set VERBOSITY terse
CREATE ROLE regress_query_ann;
CREATE ROLE regress_query_bob;
CREATE ROLE regress_query_team;
GRANT regress_query_team TO regress_query_bob;
CREATE SCHEMA query_rights;
SELECT setval('swarm._query_id_seq', 200000, false) > 0;
GRANT USAGE, CREATE ON SCHEMA query_rights TO PUBLIC;
\getenv tests PG_ABS_SRCDIR
\set until :tests '/sql/include/until.sql'
\set schema query_rights
\i :until
CREATE FUNCTION query_rights.wait(n int) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(86, n);	-- it is here
    LOOP
        EXIT WHEN EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'query_rights.go'::regclass AND attname = 'go' || n);
        PERFORM pg_sleep(0.001);
    END LOOP;
    RETURN current_user;
END $$;
CREATE FUNCTION query_rights.wait_definer(n int) RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT query_rights.wait(n)';
CREATE TABLE query_rights.go ();
SET ROLE regress_query_ann;
SELECT swarm.query_start('sql', 'SELECT query_rights.wait(1)') AS id \gset
CALL query_rights.until('EXISTS (SELECT FROM pg_locks WHERE locktype = ''advisory'' AND classid = 86 AND objid = 1)');
SET ROLE regress_query_bob;
SELECT count(*) FROM swarm.queries;
SELECT count(*) FROM swarm.query_events;
SELECT swarm.query_status(:id);
SELECT swarm.query_result(:id);
SELECT swarm.query_pause(:id);
SELECT swarm.query_resume(:id);
SELECT swarm.query_terminate(:id);
SELECT swarm.query_execute_command(:id, 'SELECT 1');
SELECT swarm.query_change_permissions(:id, 'plan');
SELECT swarm.query_wait(:id, '1 ms');
SELECT swarm.query_control('pause', :id);
SELECT swarm._query_act('pause', :id, '{}');
SELECT swarm._query_set_state(:id, 'pause');
SELECT swarm._query_turn_begin(:id);
SELECT swarm.query_try('terminate', :id);
UPDATE swarm._query SET owner = 'regress_query_bob';
DELETE FROM swarm._query_event;
-- the right to bypassPermissions is given
SELECT swarm.query_start('sql', 'SELECT 1', permission_mode => 'bypassPermissions');
RESET ROLE;
GRANT EXECUTE ON FUNCTION swarm.permission_bypass() TO regress_query_bob;
SET ROLE regress_query_bob;
SELECT swarm.query_start('sql', 'SELECT current_user', permission_mode => 'bypassPermissions') AS hers \gset
SELECT swarm.query_wait(:hers), swarm.query_result(:hers)->'data';
-- she and her commands are herself
SET ROLE regress_query_ann;
SELECT swarm.query_pause(:id, timeout => '60 s');
SELECT swarm.query_execute_command(:id, 'SELECT current_user');
SELECT swarm.query_execute_command(:id, 'SET ROLE regress_query_bob');
SELECT swarm.query_execute_command(:id, 'RESET ROLE');
SELECT swarm.query_execute_command(:id, 'DELETE FROM swarm._query');
SELECT swarm.query_resume(:id);
-- ... and no command runs inside a function with other rights
SELECT swarm.query_start('sql', 'SELECT query_rights.wait_definer(2)') AS definer \gset
CALL query_rights.until('EXISTS (SELECT FROM pg_locks WHERE locktype = ''advisory'' AND classid = 86 AND objid = 2)');
SELECT swarm.query_pause(:definer, timeout => '60 s');
SELECT swarm.query_execute_command(:definer, 'SELECT current_user');
SELECT swarm.query_resume(:definer);
-- members of the owner may
SET ROLE regress_query_team;
SELECT swarm.query_start('sql', 'SELECT query_rights.wait(3)') AS team \gset
SET ROLE regress_query_bob;
CALL query_rights.until(format('(SELECT state = ''running'' AND pid IS NOT NULL FROM swarm.queries WHERE id = %s)', :team));
SELECT swarm.query_terminate(:team), swarm.query_wait(:team);
RESET ROLE;
ALTER TABLE query_rights.go ADD go1 int, ADD go2 int;
SELECT swarm.query_wait(:id), swarm.query_result(:id)->'data';
SELECT swarm.query_wait(:definer);
SET client_min_messages = warning;
DELETE FROM swarm._query_event WHERE query IN (SELECT id FROM swarm._query WHERE owner::text LIKE 'regress_query%');
DELETE FROM swarm._query WHERE owner::text LIKE 'regress_query%';
DROP SCHEMA query_rights CASCADE;
REVOKE EXECUTE ON FUNCTION swarm.permission_bypass() FROM regress_query_bob;
DROP ROLE regress_query_ann, regress_query_bob, regress_query_team;
