-- How jobs run: handlers, results, errors, timeouts, cancellation, batches.
\set VERBOSITY terse
CREATE SCHEMA job_run;
\getenv tests PG_ABS_SRCDIR
\set until :tests '/sql/include/until.sql'
\set schema job_run
\i :until
-- enqueue, commit, wait, tell
CREATE PROCEDURE job_run.run(kind text, args jsonb = '{}', max_attempts int = 1,
    timeout interval = '5 min', queue text = 'default') LANGUAGE plpgsql AS $$
DECLARE
    job bigint := swarm.job_enqueue(kind, args, queue, max_attempts => max_attempts, timeout => timeout);
    s swarm.job_status;
BEGIN
    COMMIT;
    s := swarm.job_wait(job, '60 s');
    RAISE NOTICE '% after %: % %', s.state, s.attempts, s.result, s.error;
END $$;
CREATE PROCEDURE job_run.sql(sql text, params jsonb = NULL) LANGUAGE plpgsql AS $$
BEGIN
    CALL job_run.run('sql', jsonb_build_object('sql', sql, 'params', params));
END $$;
CREATE TABLE job_run.log (n serial, what text);

---- Functions and procedures
CREATE FUNCTION job_run.f(job swarm.job) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO job_run.log (what) VALUES ('f');
    RETURN to_jsonb(job) - 'id' - 'enqueued_at' - 'run_at';
END $$;
CREATE FUNCTION job_run.f_void(job swarm.job) RETURNS void LANGUAGE sql
    AS $$ INSERT INTO job_run.log (what) VALUES ('f_void') $$;
CREATE FUNCTION job_run.f_null(job swarm.job) RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb';
CREATE FUNCTION job_run.f_big(job swarm.job) RETURNS jsonb LANGUAGE sql
    AS $$ SELECT to_jsonb(repeat(md5(job.id::text), 100000)) $$;
CREATE PROCEDURE job_run.p(job swarm.job) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO job_run.log (what) VALUES ('p: committed');
    COMMIT;
    INSERT INTO job_run.log (what) VALUES ('p: rolled back');
    ROLLBACK;
    FOR i IN 1 .. 3 LOOP
        INSERT INTO job_run.log (what) VALUES ('p: ' || i);
        COMMIT;
    END LOOP;
    INSERT INTO job_run.log (what) VALUES ('p: committed with the end');
END $$;
CREATE PROCEDURE job_run.p_fails(job swarm.job) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO job_run.log (what) VALUES ('p_fails: attempt ' || job.attempt);
    COMMIT;
    INSERT INTO job_run.log (what) VALUES ('p_fails: lost');
    RAISE 'no';
END $$;
CREATE FUNCTION job_run.f_gone(job swarm.job) RETURNS void LANGUAGE sql AS '';
SELECT swarm.handler_register('job_run_f', 'job_run.f'),
       swarm.handler_register('job_run_void', 'job_run.f_void'),
       swarm.handler_register('job_run_null', 'job_run.f_null'),
       swarm.handler_register('job_run_big', 'job_run.f_big'),
       swarm.handler_register('job_run_p', 'job_run.p'),
       swarm.handler_register('job_run_p_fails', 'job_run.p_fails'),
       swarm.handler_register('job_run_gone', 'job_run.f_gone');
CALL job_run.run('job_run_f', '{"a": [1, null]}');
CALL job_run.run('job_run_void');
CALL job_run.run('job_run_null');
CALL job_run.run('job_run_p');
CALL job_run.run('job_run_p_fails');
DROP FUNCTION job_run.f_gone;
CALL job_run.run('job_run_gone');
SELECT what FROM job_run.log ORDER BY n;
TRUNCATE job_run.log;
SELECT swarm.job_enqueue('job_run_big') AS job \gset
SELECT state, length(result #>> '{}') FROM swarm.job_wait(:job, '60 s');
-- not everything is a handler
CREATE FUNCTION job_run.h_int(job swarm.job) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION job_run.h_set(job swarm.job) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT NULL::jsonb';
CREATE FUNCTION job_run.h_none() RETURNS jsonb LANGUAGE sql AS 'SELECT NULL::jsonb';
\set VERBOSITY sqlstate
SELECT swarm.handler_register('job_run_h', 'job_run.h_int');
SELECT swarm.handler_register('job_run_h', 'job_run.h_set');
SELECT swarm.handler_register('job_run_h', 'job_run.h_none');
SELECT swarm.handler_register('job_run_h', 'pg_catalog.now');
SELECT swarm.handler_register('job_run_h', 0);
SELECT swarm.handler_register('job_run_h', 'job_run.absent');
SELECT swarm.handler_register('sql', 'job_run.f');
SELECT swarm.handler_register('', 'job_run.f');
SELECT swarm.handler_register(repeat('x', 129), 'job_run.f');
SELECT swarm.handler_register(NULL, 'job_run.f');
SELECT swarm.handler_register('job_run_h', 'job_run.f', 0);
SELECT swarm.handler_register('job_run_h', 'job_run.f', NULL, '0 s');
SELECT swarm.handler_register('job_run_h', 'job_run.f', NULL, '178000000 years');
SELECT swarm.handler_drop('job_run_h');
SELECT swarm.handler_drop('sql');
SELECT swarm.handler_drop('s3_upload');
SELECT swarm.handler_register('s3_upload', NULL);
\set VERBOSITY terse

---- Kind sql
CALL job_run.sql('SELECT 1 AS one, NULL AS nothing');
CALL job_run.sql('SELECT i FROM generate_series(1, 3) i');
CALL job_run.sql('INSERT INTO job_run.log (what) VALUES (''x''), (''y'')');
CALL job_run.sql('DELETE FROM job_run.log RETURNING what');
CALL job_run.sql('CREATE TABLE job_run.made (a int)');
CALL job_run.sql('DO $do$ BEGIN INSERT INTO job_run.made VALUES (1); END $do$');
CALL job_run.sql('INSERT INTO job_run.made VALUES (2); UPDATE job_run.made SET a = a + 1; SELECT a FROM job_run.made');
CALL job_run.sql('SELECT $1 + 1 AS n, $2 || ''!'' AS t, $3::boolean AS b, $4::jsonb AS j, $5::timestamptz AS at, $6::int[] AS a, $7 AS u, $8::jsonb AS n2',
    '[41, "text", true, {"a": [1]}, "2026-01-01 00:00:00+00", "{1,2}", "unknown", null]');
CALL job_run.run('sql', '{"sql": "SELECT 1 AS x", "params": []}');
CALL job_run.run('sql', '{"sql": "SELECT 1 AS x", "params": null}');
CALL job_run.run('sql', '{"sql": "SELECT json ''\"a\\u0000b\"'' AS x"}');
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT i FROM generate_series(1, 250) i"}') AS job \gset
SELECT state, result -> 'rows' AS rows, jsonb_array_length(result -> 'data') AS shown FROM swarm.job_wait(:job, '60 s');
-- and its errors
CALL job_run.sql('SELECT 1/0');
CALL job_run.sql('nonsense');
CALL job_run.sql('');
CALL job_run.run('sql', '{}');
CALL job_run.run('sql', '[]');
CALL job_run.run('sql', '7');
CALL job_run.run('sql', '{"sql": 7}');
CALL job_run.run('sql', '{"sql": "SELECT 1", "params": {}}');
CALL job_run.run('sql', '{"sql": "SELECT 1; SELECT $1", "params": [1]}');
CALL job_run.run('sql', '{"sql": "SELECT $2::int", "params": [1]}');
CALL job_run.run('sql', '{"sql": "SELECT $1::int", "params": ["x"]}');
CALL job_run.run('sql', '{"sql": "SELECT 1 WHERE 1 = $1", "params": [1, 2, 3]}');
CALL job_run.sql('COMMIT');
CALL job_run.sql('SAVEPOINT s');
CALL job_run.sql('PREPARE TRANSACTION ''x''');
CALL job_run.sql('VACUUM');
CALL job_run.sql('COPY job_run.made FROM STDIN');
CALL job_run.sql('COPY job_run.made TO STDOUT');
CALL job_run.sql('DISCARD ALL');
CALL job_run.sql('LISTEN x');
CALL job_run.sql('DO $do$ BEGIN COMMIT; END $do$');
CALL job_run.sql('DO $do$ BEGIN PERFORM swarm.job_wait(swarm.job_enqueue(''sql'', ''{"sql": "SELECT 1"}'')); EXCEPTION WHEN object_not_in_prerequisite_state THEN RAISE ''cannot wait for itself''; END $do$');

---- Failure: the effects of a failed attempt are gone, those of the good one are there once
CREATE SEQUENCE job_run.tries;
CREATE FUNCTION job_run.third_time(job swarm.job) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO job_run.log (what) VALUES ('attempt ' || job.attempt || ' of ' || job.max_attempts);
    IF nextval('job_run.tries') < 3 THEN
        RAISE '%', job.args ->> 'error' USING ERRCODE = job.args ->> 'code';
    END IF;
    RETURN to_jsonb(job.attempt);
END $$;
SELECT swarm.handler_register('job_run_third', 'job_run.third_time');
-- do not wait for the backoff
CREATE PROCEDURE job_run.retry_until_ended(job bigint) LANGUAGE plpgsql AS $$
DECLARE
    s swarm.job_status;
BEGIN
    FOR i IN 1 .. 600 LOOP
        BEGIN
            PERFORM swarm.job_retry(job) FROM swarm.jobs WHERE id = job AND state = 'failed';
        EXCEPTION WHEN object_not_in_prerequisite_state THEN
            NULL;
        END;
        COMMIT;
        s := swarm.job_wait(job, '100 ms');
        EXIT WHEN s.finished_at IS NOT NULL;
    END LOOP;
    RAISE NOTICE '% after %: % %', s.state, s.attempts, s.result, s.error;
END $$;
SELECT swarm.job_enqueue('job_run_third', '{"error": "not yet", "code": "P0001"}') AS job \gset
CALL job_run.retry_until_ended(:job);
SELECT what FROM job_run.log ORDER BY n;
TRUNCATE job_run.log;
-- deadlocks and serialization failures are not the job's fault
ALTER SEQUENCE job_run.tries RESTART;
CALL job_run.run('job_run_third', '{"error": "conflict", "code": "40001"}');
ALTER SEQUENCE job_run.tries RESTART;
CALL job_run.run('job_run_third', '{"error": "deadlock", "code": "40P01"}');
SELECT what FROM job_run.log ORDER BY n;
TRUNCATE job_run.log;
-- but not for ever
ALTER SEQUENCE job_run.tries RESTART MINVALUE -100 START -100;
ALTER SEQUENCE job_run.tries RESTART;
CALL job_run.run('job_run_third', '{"error": "always", "code": "40001"}');
SELECT last_value + 100 AS tries FROM job_run.tries;
-- the last error is kept, attempts are counted, the end is dead
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1/0"}', max_attempts => 3) AS job \gset
CALL job_run.retry_until_ended(:job);
SELECT state, attempts, max_attempts, started_at <= finished_at AS ordered FROM swarm.job_history WHERE id = :job;
-- of an error, message and code are kept
CALL job_run.sql('DO $do$ BEGIN RAISE ''%'', repeat(''x'', 10) USING DETAIL = ''detail'', HINT = ''hint'', ERRCODE = ''XX000''; END $do$');

-- a constraint that is checked at commit
CREATE TABLE job_run.parent (id int PRIMARY KEY);
CREATE TABLE job_run.child (id int REFERENCES job_run.parent DEFERRABLE INITIALLY DEFERRED);
CALL job_run.sql('INSERT INTO job_run.child VALUES (1)');
CALL job_run.sql('INSERT INTO job_run.child VALUES (1); INSERT INTO job_run.parent VALUES (1)');
SELECT * FROM job_run.child;

---- Timeouts
CALL job_run.run('sql', '{"sql": "SELECT pg_sleep(3600)"}', timeout => '0.05 s');
CALL job_run.run('sql', '{"sql": "DO $$ BEGIN LOOP NULL; END LOOP; END $$"}', timeout => '0.05 s');
-- one that catches it has not done its work
CALL job_run.run('sql', '{"sql": "DO $$ BEGIN PERFORM pg_sleep(3600); EXCEPTION WHEN query_canceled THEN NULL; END $$"}', timeout => '0.05 s');
CREATE PROCEDURE job_run.p_slow(job swarm.job) LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO job_run.log (what) VALUES ('p_slow');
    COMMIT;
    PERFORM pg_sleep(3600);
END $$;
SELECT swarm.handler_register('job_run_p_slow', 'job_run.p_slow');
CALL job_run.run('job_run_p_slow', timeout => '1 s');
SELECT what FROM job_run.log ORDER BY n;
TRUNCATE job_run.log;
-- what the commit has to do is part of it
CREATE FUNCTION job_run.sleep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(3600); RETURN NULL; END $$;
CREATE TABLE job_run.late (n int);
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON job_run.late DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION job_run.sleep();
CALL job_run.run('sql', '{"sql": "INSERT INTO job_run.late VALUES (1)"}', timeout => '0.05 s');
CREATE PROCEDURE job_run.p_late(job swarm.job) LANGUAGE sql AS 'INSERT INTO job_run.late VALUES (2)';
SELECT swarm.handler_register('job_run_p_late', 'job_run.p_late');
CALL job_run.run('job_run_p_late', timeout => '0.05 s');
TABLE job_run.late;
-- the limit does not meet the next job, and none is none
CALL job_run.run('sql', '{"sql": "SELECT pg_sleep(0.1) IS NULL AS slept"}');
CALL job_run.run('sql', '{"sql": "SELECT pg_sleep(0.1) IS NULL AS slept"}', timeout => NULL);

---- Cancelling what runs
CREATE PROCEDURE job_run.cancel(job bigint, reason text = NULL) LANGUAGE plpgsql AS $$
DECLARE
    done boolean;
    s swarm.job_status;
BEGIN
    CALL job_run.until(format('EXISTS (SELECT FROM swarm.jobs WHERE id = %s AND state = ''running'')', job));
    done := swarm.job_cancel(job, reason);
    COMMIT;
    s := swarm.job_wait(job, '60 s');
    RAISE NOTICE 'cancel %: % after %: % %', done, s.state, s.attempts, s.result, s.error;
END $$;
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT pg_sleep(3600)"}') AS job \gset
CALL job_run.cancel(:job);
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT pg_sleep(3600)"}') AS job \gset
CALL job_run.cancel(:job, 'not needed any more');
SELECT swarm.job_enqueue('job_run_p_slow') AS job \gset
CALL job_run.until('EXISTS (SELECT FROM job_run.log WHERE what = ''p_slow'')');
CALL job_run.cancel(:job);
-- whatever the handler makes of it
SELECT swarm.job_enqueue('sql', '{"sql": "DO $$ BEGIN PERFORM pg_sleep(3600); EXCEPTION WHEN query_canceled THEN NULL; END $$"}') AS job \gset
CALL job_run.cancel(:job);
SELECT swarm.job_enqueue('sql', '{"sql": "DO $$ BEGIN PERFORM pg_sleep(3600); EXCEPTION WHEN query_canceled THEN RAISE ''other''; END $$"}') AS job \gset
CALL job_run.cancel(:job);
SELECT swarm.job_enqueue('sql', '{"sql": "DO $$ BEGIN PERFORM pg_sleep(3600); EXCEPTION WHEN query_canceled THEN RAISE ''other'' USING ERRCODE = ''40001''; END $$"}') AS job \gset
CALL job_run.cancel(:job);
-- when the handler is about to be called
SELECT swarm._fault_arm('job.begin', 'wait');
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT pg_sleep(3600)"}') AS job \gset
CALL job_run.until(format('EXISTS (SELECT FROM swarm.workers w JOIN pg_stat_activity a USING (pid) WHERE w.job = %s AND a.wait_event = ''Extension'')', :job));
SELECT swarm.job_cancel(:job);
SELECT swarm._fault_arm('job.begin', 'none');
SELECT state, error FROM swarm.job_wait(:job, '60 s');
SELECT swarm._fault_arm('job.begin', 'wait');
SELECT swarm.job_enqueue('job_run_p_slow') AS job \gset
CALL job_run.until(format('EXISTS (SELECT FROM swarm.workers w JOIN pg_stat_activity a USING (pid) WHERE w.job = %s AND a.wait_event = ''Extension'')', :job));
SELECT swarm.job_cancel(:job);
SELECT swarm._fault_arm('job.begin', 'none');
SELECT state, error FROM swarm.job_wait(:job, '60 s');
-- and in the midst of its end
SELECT swarm._fault_arm('job.end', 'wait');
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}') AS job \gset
CALL job_run.cancel(:job);
SELECT swarm._fault_arm('job.end', 'none');
SELECT swarm._fault_arm('job.commit', 'wait');
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1/0"}') AS job \gset
CALL job_run.cancel(:job);
SELECT swarm._fault_arm('job.commit', 'none');
-- the runner is as good as new
CALL job_run.sql('SELECT 1 AS x');

---- Progress
\set VERBOSITY sqlstate
SELECT swarm.job_progress(0.5, 'not a job');
\set VERBOSITY terse
CREATE FUNCTION job_run.progress(job swarm.job) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM swarm.job_progress(0.25, 'first quarter');
    PERFORM swarm.job_progress(NULL, repeat('ü', 200));
    PERFORM swarm.job_progress(0.5);
    BEGIN
        PERFORM swarm.job_progress(2);
    EXCEPTION WHEN invalid_parameter_value THEN
        PERFORM swarm.job_progress(0.75);
    END;
    PERFORM pg_sleep(3600);
END $$;
SELECT swarm.handler_register('job_run_progress', 'job_run.progress');
SELECT swarm.job_enqueue('job_run_progress') AS job \gset
CALL job_run.until('(SELECT progress = 0.75 FROM swarm.jobs WHERE id = ' || :job || ')');
SELECT kind, state, progress, left(message, 3) AS message, length(message), worker IS NOT NULL AS worker,
       started_at IS NOT NULL AS started, attempts FROM swarm.jobs WHERE id = :job;
CALL job_run.cancel(:job);

---- What a job leaves in the session does not meet the next one
SELECT swarm.queue_create('job_run_1', max_running => 1);
CREATE FUNCTION job_run.leave(job swarm.job) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    SET work_mem = '77MB';
    SET search_path = job_run;
    SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE;
    PERFORM set_config('job_run.left', 'yes', false);
    CREATE TEMP TABLE leftover AS SELECT 1 AS a;
    PERFORM pg_advisory_lock(4711);
    EXECUTE 'PREPARE leftover AS SELECT 1';
    EXECUTE 'DECLARE leftover CURSOR WITH HOLD FOR SELECT 1';
    PERFORM nextval('job_run.tries');
END $$;
CREATE FUNCTION job_run.look(job swarm.job) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    seen_lastval text := 'none';
BEGIN
    BEGIN
        seen_lastval := lastval();
    EXCEPTION WHEN object_not_in_prerequisite_state THEN
        NULL;
    END;
    RETURN jsonb_build_object(
        'settings', (SELECT array_agg(name) FROM pg_settings WHERE source = 'session'
                     AND name IN ('work_mem', 'search_path', 'default_transaction_isolation', 'transaction_isolation')),
        'custom', nullif(current_setting('job_run.left', true), ''),
        'temporary', to_regclass('pg_temp.leftover'),
        'locks', (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711),
        'prepared', (SELECT count(*) FROM pg_prepared_statements),
        'cursors', (SELECT count(*) FROM pg_cursors WHERE name = 'leftover'),
        'lastval', seen_lastval,
        'user', current_user = job.args ->> 'user');
END $$;
SELECT swarm.handler_register('job_run_leave', 'job_run.leave'),
       swarm.handler_register('job_run_look', 'job_run.look');
SELECT format('{"user": "%s"}', current_user) AS me \gset
CALL job_run.run('job_run_leave', queue => 'job_run_1');
CALL job_run.run('job_run_look', :'me', queue => 'job_run_1');
CALL job_run.run('job_run_leave', queue => 'job_run_1');
CALL job_run.run('job_run_look', :'me', queue => 'job_run_1');
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711;

---- Batches: one transaction for many jobs, but one bad job costs one job
SELECT swarm.queue_create('job_run_batch', max_running => 100, batch => 100);
SELECT swarm.queue_pause('job_run_batch');
CREATE TABLE job_run.batch (n int UNIQUE DEFERRABLE INITIALLY DEFERRED, xid xid8 DEFAULT pg_current_xact_id());
CREATE PROCEDURE job_run.batch(bad text) LANGUAGE plpgsql AS $$
DECLARE
    ids bigint[];
BEGIN
    TRUNCATE job_run.batch;
    SELECT array_agg(swarm.job_enqueue('sql', jsonb_build_object('sql',
        CASE WHEN i = 5 THEN bad ELSE format('INSERT INTO job_run.batch VALUES (%s)', i) END),
        'job_run_batch', max_attempts => 1)) INTO ids FROM generate_series(1, 10) i;
    COMMIT;
    PERFORM swarm.queue_resume('job_run_batch');
    COMMIT;
    PERFORM swarm.job_wait(i, '60 s') FROM unnest(ids) i;
    PERFORM swarm.queue_pause('job_run_batch');
    COMMIT;
    RAISE NOTICE '%', (SELECT string_agg(state::text || coalesce(' ' || error, ''), ', ' ORDER BY id)
                       FROM swarm.jobs WHERE id = ANY (ids));
    RAISE NOTICE 'effects of %', (SELECT array_agg(n ORDER BY n) FROM job_run.batch);
END $$;
CALL job_run.batch('INSERT INTO job_run.batch VALUES (5)');
CALL job_run.batch('INSERT INTO job_run.batch VALUES (5); SELECT 1/0');
CALL job_run.batch('nonsense');
-- at the common commit nobody knows who it was: each runs alone
CALL job_run.batch('INSERT INTO job_run.batch VALUES (5), (5)');
-- and a failure before such a commit counts once
CREATE FUNCTION job_run.fails_twice() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM nextval('job_run.tries');
    RAISE 'failed';
END $$;
SELECT array_agg(swarm.job_enqueue('sql', jsonb_build_object('sql', s), 'job_run_batch', max_attempts => 2)) AS jobs
FROM unnest(ARRAY['SELECT job_run.fails_twice()', 'INSERT INTO job_run.batch VALUES (1), (1)']) s \gset
SELECT swarm.queue_resume('job_run_batch');
CALL job_run.retry_until_ended((:'jobs'::bigint[])[1]);
CALL job_run.retry_until_ended((:'jobs'::bigint[])[2]);
SELECT swarm.queue_pause('job_run_batch');
-- what one leaves in the session does not meet the next one, but for advisory
-- locks: what they protect is not committed yet (two runners may share the
-- jobs, so that their number is not certain)
CREATE FUNCTION job_run.leave_again(job swarm.job) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM job_run.leave(job);
    CREATE TEMP TABLE dropped ON COMMIT DROP AS SELECT 1 AS a;
END $$;
SELECT swarm.handler_register('job_run_leave_again', 'job_run.leave_again');
SELECT array_agg(swarm.job_enqueue(k, :'me', 'job_run_batch', max_attempts => 1)) AS jobs
FROM unnest('{job_run_leave_again,job_run_look,job_run_leave_again,job_run_look}'::text[]) k \gset
SELECT swarm.queue_resume('job_run_batch');
SELECT (swarm.job_wait(id, '60 s')).state FROM unnest(:'jobs'::bigint[]) id;
SELECT jsonb_pretty(result - 'locks'), error FROM swarm.job_history WHERE id = ANY (:'jobs') ORDER BY id;
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711;
SELECT swarm.queue_pause('job_run_batch');
-- a cancel reaches the one that it means, and no other
SELECT pg_advisory_lock(4712);
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT pg_advisory_xact_lock(4712)::text AS held"}', 'job_run_batch') AS first,
       swarm.job_enqueue('sql', '{"sql": "SELECT 2 AS x"}', 'job_run_batch') AS second,
       swarm.job_enqueue('sql', '{"sql": "SELECT 3 AS x"}', 'job_run_batch') AS third \gset
SELECT swarm.queue_resume('job_run_batch');
CALL job_run.until('EXISTS (SELECT FROM swarm.jobs WHERE id = ' || :first || ' AND state = ''running'')');
SELECT swarm.job_cancel(:second, 'not this one');
SELECT state FROM swarm.job_wait(:second, '60 s');
SELECT pg_advisory_unlock(4712);
SELECT state, attempts, result, error FROM swarm.job_wait(:first, '60 s')
UNION ALL SELECT state, attempts, result, error FROM swarm.job_wait(:second, '60 s')
UNION ALL SELECT state, attempts, result, error FROM swarm.job_wait(:third, '60 s');
-- a procedure in a batch runs alone
SELECT swarm.queue_pause('job_run_batch');
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1 AS x"}', 'job_run_batch') AS first,
       swarm.job_enqueue('job_run_p', '{}', 'job_run_batch') AS second,
       swarm.job_enqueue('sql', '{"sql": "SELECT 3 AS x"}', 'job_run_batch') AS third \gset
SELECT swarm.queue_resume('job_run_batch');
SELECT state, attempts, result, error FROM swarm.job_wait(:first, '60 s')
UNION ALL SELECT state, attempts, result, error FROM swarm.job_wait(:second, '60 s')
UNION ALL SELECT state, attempts, result, error FROM swarm.job_wait(:third, '60 s');
SELECT what FROM job_run.log ORDER BY n;

-- nothing is left that lives (agents of other tests may have work for later)
SELECT count(*) FROM swarm.jobs WHERE finished_at IS NULL AND kind <> 'swarm_agent';
SELECT count(*) FROM swarm._job_attempt;
SELECT swarm.queue_drop('job_run_1'), swarm.queue_drop('job_run_batch');
SELECT count(swarm.handler_drop(kind)::text) FROM swarm._handler WHERE kind LIKE 'job\_run\_%';
SET client_min_messages = warning;
DROP SCHEMA job_run CASCADE;
