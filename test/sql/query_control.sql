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
-- what JSON escapes and text cannot hold is replaced
SELECT swarm.query_start('sql', $$SELECT json '["a\u0000b", "\ud800", "\ud83d\ude00", "\\u0000"]' AS j, json '{"\u0000": 1}' AS k$$) AS id \gset
SELECT swarm.query_wait(:id);
SELECT r->'data'->0->'j' = jsonb_build_array('a' || chr(65533) || 'b', chr(65533), chr(128512), '\u0000') AS j, r->'data'->0->'k'->>chr(65533) AS k
FROM swarm.query_result(:id) r;
-- rows as a table: all of them, with their types
SELECT swarm.query_start('sql', 'SELECT i, i % 2 = 0 AS even, json ''"\u0000"'' AS "J" FROM generate_series(1, 2500) i; -- all', result_table => 'query_control.kept') AS id \gset
SELECT swarm.query_wait(:id), swarm.query_result(:id);
SELECT string_agg(attname || ' ' || format_type(atttypid, NULL), ', ' ORDER BY attnum), (SELECT count(*) FROM query_control.kept WHERE even) AS even
FROM pg_attribute WHERE attrelid = 'query_control.kept'::regclass AND attnum > 0;
SET search_path = query_control, public;
SELECT swarm.query_start('sql', 'WITH r AS (DELETE FROM query_control.kept WHERE even RETURNING i) SELECT max(i) FROM r', result_table => '"Gone"') AS id \gset
RESET search_path;
SELECT swarm.query_wait(:id), swarm.query_result(:id);
SELECT max, (SELECT count(*) FROM query_control.kept) FROM query_control."Gone";
SELECT swarm.query_start('sql', 'SELECT 1 AS one', result_table => 'query_control.kept');
SELECT swarm.query_start('sql', 'SELECT 1 AS one', result_table => 'nowhere.t');
SELECT swarm.query_start('sql', 'SELECT 1 AS one', result_table => 'a.b.c.d');
SELECT swarm.query_start('sql', 'SELECT 1 AS one', result_table => '');
SELECT swarm.query_start('sql', 'SELECT 1 AS one', result_table => 'query_control.t) AS SELECT 2; DROP TABLE query_control.kept; --');
SELECT swarm.query_start('sql', 'SELECT 1 AS one', result_table => 'pg_temp.t');
SELECT swarm.query_start('sql', 'SELECT 1 AS one; SELECT 2', result_table => 'query_control.t');
SELECT swarm.query_start('sql', 'SELECT 1 AS one INTO query_control.u', result_table => 'query_control.t');
SELECT swarm.query_start('sql', 'INSERT INTO query_control.made VALUES (20) RETURNING i', result_table => 'query_control.t');
SELECT swarm.query_start('sql', 'SELECT FROM WHERE', result_table => 'query_control.t');
SELECT swarm.query_start('sql', '', result_table => 'query_control.t');
SELECT swarm.query_start('llm', 'hello', result_table => 'query_control.t');
-- made by somebody meanwhile; two columns of one name; read-only; an error in the middle
BEGIN;
SELECT swarm.query_start('sql', 'SELECT 1 AS one', result_table => 'query_control.t') AS id \gset
CREATE TABLE query_control.t (other int);
COMMIT;
SELECT swarm.query_wait(:id), swarm.query_result(:id);
SELECT swarm.query_start('sql', 'SELECT 1 AS a, 2 AS a', result_table => 'query_control.u') AS twice,
    swarm.query_start('sql', 'SELECT 1 AS a', permission_mode => 'plan', result_table => 'query_control.v') AS plan,
    swarm.query_start('sql', 'SELECT 1 / (i - 1000) AS a FROM generate_series(1, 2000) i', result_table => 'query_control.w') AS error \gset
SELECT swarm.query_wait(:twice), swarm.query_wait(:plan), swarm.query_wait(:error);
SELECT sqlstate, error FROM swarm.queries WHERE id IN (:id, :twice, :plan, :error) ORDER BY id;
SELECT to_regclass('query_control.u'), to_regclass('query_control.v'), to_regclass('query_control.w'), (SELECT count(*) FROM query_control.t);
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
SELECT swarm.query_start('sql', 'SELECT 1', budget => '100');
SELECT swarm.query_control('explode', :id);
SELECT swarm.query_control('explode');
SELECT swarm.query_control('pause');
SELECT swarm.query_control('list', params => '["include_history"]');
SELECT swarm.query_control('pause', :id, '"now"');
SELECT swarm.query_pause(-1);
SELECT swarm.query_status(-1);
SELECT swarm.query_result(-1);
SELECT swarm.query_control('status', -1);
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
-- ... in the middle of the rows of a table, of which nothing stays
SELECT swarm.query_start('sql', $$SELECT query_control.spin('f') UNION ALL SELECT 1$$, result_table => 'query_control.never') AS id \gset
CALL query_control.until(format('(SELECT state = ''running'' AND pid IS NOT NULL FROM swarm.queries WHERE id = %s)', :id));
SELECT swarm.query_pause(:id, timeout => '60 s');
SELECT swarm.query_execute_command(:id, $$SELECT count(*) FROM query_control.never$$);
SELECT swarm.query_terminate(:id), swarm.query_wait(:id);
SELECT to_regclass('query_control.never');
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
