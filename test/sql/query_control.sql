-- Statements in the background: started, paused, looked into, resumed, terminated.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE SCHEMA query_control;
SELECT setval('swarm._query_id_seq', 100000, false) > 0;
\getenv tests PG_ABS_SRCDIR
\set until :tests '/sql/include/until.sql'
\set schema query_control
\i :until

-- results, within limits
SELECT swarm.query_start('sql', 'SELECT 6 * 7 AS answer, NULL::text AS nothing') AS id \gset
SELECT swarm.query_wait(:id), swarm.query_result(:id);
SELECT swarm.query_start('sql', 'CREATE TABLE query_control.made AS SELECT i FROM generate_series(1, 10) i; INSERT INTO query_control.made VALUES (11), (12)') AS id \gset
SELECT swarm.query_wait(:id), swarm.query_result(:id);
SELECT count(*) FROM query_control.made;
SELECT swarm.query_start('sql', 'SELECT i FROM generate_series(1, 2500) i') AS id \gset
SELECT swarm.query_wait(:id);
SELECT r->'rows', jsonb_array_length(r->'data'), r->'truncated' FROM swarm.query_result(:id) r;
SELECT swarm.query_start('sql', 'SELECT repeat(''x'', 700000) FROM generate_series(1, 3)') AS id \gset
SELECT swarm.query_wait(:id);
SELECT r->'rows', jsonb_array_length(r->'data'), r->'truncated' FROM swarm.query_result(:id) r;
-- errors: rolled back alone
SELECT swarm.query_start('sql', 'INSERT INTO query_control.made VALUES (13); SELECT 1/0') AS id \gset
SELECT swarm.query_wait(:id), swarm.query_result(:id), (SELECT count(*) FROM query_control.made);
SELECT state, error, sqlstate, finished_at >= started_at AS times FROM swarm.queries WHERE id = :id;
SELECT j.state FROM swarm.queries q JOIN swarm.jobs j ON j.id = q.job WHERE q.id = :id;
SELECT swarm.query_start('sql', 'VACUUM') AS id \gset
SELECT swarm.query_wait(:id);
SELECT sqlstate FROM swarm.queries WHERE id = :id;
SELECT swarm.query_start('sql', 'COMMIT') AS id \gset
SELECT swarm.query_wait(:id);
SELECT sqlstate FROM swarm.queries WHERE id = :id;
-- settings of one statement do not reach the next
SELECT swarm.query_start('sql', 'SET work_mem = ''77MB''; SELECT 1') AS id \gset
SELECT swarm.query_wait(:id);
-- plan: read-only, also for what tries to get out of it
SELECT swarm.query_start('sql', 'SELECT count(*) FROM query_control.made', permission_mode => 'plan') AS id \gset
SELECT swarm.query_wait(:id);
SELECT swarm.query_start('sql', 'INSERT INTO query_control.made VALUES (13)', permission_mode => 'plan') AS id \gset
SELECT swarm.query_wait(:id);
SELECT sqlstate FROM swarm.queries WHERE id = :id;
SELECT swarm.query_start('sql', 'SET TRANSACTION READ WRITE; INSERT INTO query_control.made VALUES (13)', permission_mode => 'plan') AS id \gset
SELECT swarm.query_wait(:id), (SELECT count(*) FROM query_control.made);
SELECT swarm.query_start('sql', 'CREATE TABLE query_control.more ()', permission_mode => 'plan') AS id \gset
SELECT swarm.query_wait(:id), to_regclass('query_control.more');

-- bad calls
SELECT swarm.query_start('shell', 'ls');
SELECT swarm.query_start('sql', NULL);
SELECT swarm.query_start('sql', 'SELECT 1', model => 'fast');
SELECT swarm.query_start('sql', 'SELECT 1', permission_mode => 'sudo');
SELECT swarm.query_start('sql', 'SELECT 1', metadata => '[]');
SELECT swarm.query_control('explode', :id);
SELECT swarm.query_control('explode');
SELECT swarm.query_control('pause');
SELECT swarm.query_pause(-1);
SELECT swarm.query_status(-1);
SELECT swarm.query_try('pause', -1), swarm.query_try('status', :id), swarm.query_try('explode', :id);

-- A statement that runs until it is let go, and leaves what it has seen.
CREATE TABLE query_control.go ();
CREATE TABLE query_control.note (n int, word text);
CREATE FUNCTION query_control.spin(name text) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
    i int := 0;
BEGIN
    CREATE TEMP TABLE mine AS SELECT 7 AS seven;
    INSERT INTO query_control.note VALUES (0, name);
    PERFORM pg_advisory_xact_lock(85, ascii(name));	-- it is here
    LOOP
        i := i + 1;
        EXIT WHEN EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'query_control.go'::regclass AND attname = name);
        PERFORM pg_sleep(0.001);
    END LOOP;
    RETURN (SELECT count(*) FROM query_control.note WHERE word = name);
END $$;
SELECT swarm.query_start('sql', $$SELECT query_control.spin('a')$$, metadata => '{"complexity": "high"}') AS id \gset
CALL query_control.until('EXISTS (SELECT FROM pg_locks WHERE locktype = ''advisory'' AND classid = 85 AND objid = ascii(''a''))');
SELECT swarm.query_resume(:id);
SELECT swarm.query_execute_command(:id, 'SELECT 1');
SELECT swarm.query_change_model(:id, 'fast');
SELECT swarm.query_pause(:id, 'turn');
SELECT swarm.query_wait(:id, '1 ms');
SELECT swarm.query_pause(:id, timeout => '60 s');
SELECT state, pausing, node IS NOT NULL AS at_node, pauses, metadata FROM swarm.queries WHERE id = :id;
SELECT state, blocked, xmin_age >= 0 AS xmin FROM swarm.query_blocking WHERE query = :id;
SELECT swarm.query_pause(:id);
-- commands: in its session, its transaction, contained
SELECT swarm.query_execute_command(:id, 'SELECT seven FROM mine');
SELECT swarm.query_execute_command(:id, 'SELECT n, word FROM query_control.note');
SELECT swarm.query_execute_command(:id, 'INSERT INTO query_control.note VALUES (1, ''a''), (2, ''a'')');
SELECT swarm.query_execute_command(:id, 'SELECT 1/0');
SELECT swarm.query_execute_command(:id, 'SELECT count(*) FROM query_control.note');
SELECT swarm.query_execute_command(:id, 'COMMIT');
SELECT swarm.query_execute_command(:id, 'SET LOCAL work_mem = ''5MB''');
SELECT swarm.query_execute_command(:id, 'SHOW work_mem');
SELECT swarm.query_execute_command(:id, 'SET ROLE pg_monitor');
SELECT swarm.query_execute_command(:id, 'DROP TABLE mine');
SELECT swarm.query_execute_command(:id, repeat(' ', 20000));
SELECT count(*) FROM query_control.note;
-- permissions tighten at once
SELECT swarm.query_change_permissions(:id, 'plan');
SELECT swarm.query_execute_command(:id, 'INSERT INTO query_control.note VALUES (3, ''a'')');
SELECT swarm.query_resume(:id);
ALTER TABLE query_control.go ADD a int;
SELECT swarm.query_wait(:id), swarm.query_result(:id);
SELECT state, pauses, total_pause > '0' AS paused, resumed_at > paused_at AS resumed FROM swarm.queries WHERE id = :id;
CALL query_control.until(format('(SELECT count(*) >= 15 AND bool_or(action = ''resume'') FROM swarm.query_events WHERE query = %s)', :id));
SELECT action, before, after, detail = 'x' AS detail FROM swarm.query_events WHERE query = :id AND action <> 'execute_command' ORDER BY at, id;
SELECT detail FROM swarm.query_events WHERE query = :id AND action = 'execute_command' ORDER BY at, id LIMIT 3;

-- terminated while it runs, while it is paused, before it begins
SELECT swarm.query_start('sql', $$SELECT query_control.spin('b')$$) AS id \gset
CALL query_control.until(format('(SELECT state = ''running'' AND pid IS NOT NULL FROM swarm.queries WHERE id = %s)', :id));
SELECT swarm.query_terminate(:id), swarm.query_wait(:id);
SELECT state, error, (SELECT count(*) FROM query_control.note WHERE word = 'b') FROM swarm.queries WHERE id = :id;
SELECT swarm.query_start('sql', $$SELECT query_control.spin('c')$$) AS id \gset
CALL query_control.until(format('(SELECT state = ''running'' AND pid IS NOT NULL FROM swarm.queries WHERE id = %s)', :id));
SELECT swarm.query_pause(:id, timeout => '60 s');
SELECT swarm.query_terminate(:id), swarm.query_wait(:id);
CALL query_control.until(format('(SELECT count(*) = 3 FROM swarm.query_events WHERE query = %s)', :id));
SELECT action, before, after FROM swarm.query_events WHERE query = :id ORDER BY at, id;
BEGIN;
SELECT swarm.query_start('sql', 'SELECT 1') AS id \gset
SELECT swarm.query_terminate(:id);
COMMIT;
SELECT state FROM swarm.queries WHERE id = :id;
-- ... by its job
SELECT swarm.query_start('sql', $$SELECT query_control.spin('d')$$) AS id \gset
CALL query_control.until(format('(SELECT state = ''running'' AND pid IS NOT NULL FROM swarm.queries WHERE id = %s)', :id));
SELECT swarm.job_cancel(job) FROM swarm.queries WHERE id = :id;
SELECT swarm.query_wait(:id);
-- what has ended has ended
SELECT swarm.query_pause(:id);
SELECT swarm.query_resume(:id);
SELECT swarm.query_terminate(:id);
SELECT swarm.query_change_permissions(:id, 'plan');
SELECT swarm.query_execute_command(:id, 'SELECT 1');

-- a pause of a given length
SELECT swarm.query_start('sql', $$SELECT query_control.spin('e')$$) AS id \gset
CALL query_control.until(format('(SELECT state = ''running'' AND pid IS NOT NULL FROM swarm.queries WHERE id = %s)', :id));
SELECT swarm.query_pause(:id, timeout => '60 s', length => '1 min');
SELECT swarm._clock_advance('2 min') > now();
CALL query_control.until(format('(SELECT state = ''running'' AND pauses = 1 FROM swarm.queries WHERE id = %s)', :id));
SELECT swarm._clock_advance(NULL) < now() + '1 hour';
ALTER TABLE query_control.go ADD e int;
SELECT swarm.query_wait(:id);

-- one door
SELECT swarm.query_control('status', :id) #>> '{query,state}', swarm.query_control('list')->'success';
SELECT total > 5 AS total, failed > 2 AS failed FROM swarm.query_stats();
SELECT count(*) FROM swarm.query_list() WHERE id = :id;
SELECT count(*) FROM swarm.query_list(true) WHERE id = :id;
-- a session cannot hold itself
SELECT swarm.query_register('{"app": "test"}') AS id \gset
SELECT swarm.query_register() = :id;
SELECT kind, state, metadata, pid = pg_backend_pid() FROM swarm.queries WHERE id = :id;
SELECT swarm.query_pause(:id);
SELECT swarm.query_terminate(:id);
\c -
CALL query_control.until(format('(SELECT state = ''complete'' FROM swarm.queries WHERE id = %s)', :id));
BEGIN;
SELECT swarm.query_register() AS id \gset
ROLLBACK;
SELECT count(*) FROM swarm.queries WHERE id = :id;
SELECT count(*) FROM swarm.queries WHERE pid = pg_backend_pid();
SET client_min_messages = warning;
DROP SCHEMA query_control CASCADE;
