-- Jobs that wait for other jobs.
\set VERBOSITY terse
CREATE SCHEMA job_deps;
SELECT swarm.handler_register('job_deps', NULL);
SELECT swarm.queue_create('job_deps'), swarm.queue_create('job_deps_run', dependency_failure => 'run'),
       swarm.queue_create('job_deps_wait', dependency_failure => 'wait');
-- Jobs by name. Those of kind job_deps end when the test says so.
CREATE TABLE job_deps.job (name text PRIMARY KEY, id bigint, token bigint);
CREATE TABLE job_deps.ran (n serial, what text);
CREATE FUNCTION job_deps.id(VARIADIC names text[]) RETURNS bigint[] LANGUAGE sql AS
    'SELECT array_agg(id) FROM job_deps.job WHERE name = ANY (names)';
CREATE PROCEDURE job_deps.new(name text, VARIADIC parents text[] = '{}') LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO job_deps.job VALUES (name, swarm.job_enqueue('sql', jsonb_build_object('sql',
        format('INSERT INTO job_deps.ran (what) VALUES (%L)', name)), 'job_deps', depends_on => job_deps.id(VARIADIC parents)));
END $$;
CREATE PROCEDURE job_deps.held(name text, queue text = 'job_deps', VARIADIC parents text[] = '{}') LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO job_deps.job VALUES (name, swarm.job_enqueue('job_deps', '{}', queue, max_attempts => 2, depends_on => job_deps.id(VARIADIC parents)));
END $$;
\getenv tests PG_ABS_SRCDIR
\set until :tests '/sql/include/until.sql'
\set schema job_deps
\i :until
CREATE FUNCTION job_deps.state(name text) RETURNS swarm.job_state LANGUAGE sql AS
    'SELECT state FROM swarm.jobs WHERE id = (job_deps.id(name))[1]';
CREATE PROCEDURE job_deps.at(name text, state text) LANGUAGE plpgsql AS $$
BEGIN
    CALL job_deps.until(format('job_deps.state(%L) = %L', name, state));
END $$;
-- the held job of that name, which is ready, ends
CREATE PROCEDURE job_deps.ends(name text, how text) LANGUAGE plpgsql AS $$
DECLARE
    job bigint := (job_deps.id(name))[1];
    tok bigint;
    q text := (SELECT queue FROM swarm.jobs WHERE id = job);
BEGIN
    IF how = 'cancelled' THEN
        PERFORM swarm.job_cancel(job);
    ELSE
        FOR i IN 1 .. 6000 LOOP
            UPDATE job_deps.job j SET token = c.token FROM swarm.job_claim(q, 1000, '1 day') c WHERE c.id = j.id;
            SELECT token INTO tok FROM job_deps.job j WHERE j.name = ends.name;
            EXIT WHEN tok IS NOT NULL;
            PERFORM pg_sleep(0.01);
            COMMIT;
        END LOOP;
        UPDATE job_deps.job j SET token = NULL WHERE j.name = ends.name;
        IF how = 'completed' THEN
            PERFORM swarm.job_complete(job, tok);
        ELSE
            PERFORM swarm.job_fail(job, tok, 'failed', retry => how = 'failed');
        END IF;
    END IF;
    COMMIT;
    CALL job_deps.at(name, how);
END $$;
CREATE FUNCTION job_deps.states() RETURNS TABLE (name text, state swarm.job_state, parents int, error text) LANGUAGE sql AS $$
    SELECT j.name, s.state, cardinality(s.depends_on), regexp_replace(s.error, '[0-9]+', 'N')
    FROM job_deps.job j JOIN swarm.jobs s USING (id) ORDER BY j.name $$;

-- A chain, a fan-out, a fan-in; within one transaction.
BEGIN;
CALL job_deps.new('a');
CALL job_deps.new('b1', 'a');
CALL job_deps.new('b2', 'a');
CALL job_deps.new('c', 'b1', 'b2');
CALL job_deps.new('d', 'c', 'a');
COMMIT;
SELECT state FROM swarm.job_wait((job_deps.id('d'))[1], '60 s');
SELECT array_agg(CASE WHEN what LIKE 'b_' THEN 'b' ELSE what END ORDER BY n) FROM job_deps.ran;
SELECT count(*) FROM swarm._job_dep;
TRUNCATE job_deps.job, job_deps.ran;

-- Released by the last parent, not before; one that failed is not dead yet.
CALL job_deps.held('p1');
CALL job_deps.held('p2');
CALL job_deps.held('p3');
CALL job_deps.new('child', 'p1', 'p2', 'p3');
SELECT * FROM job_deps.states();
CALL job_deps.ends('p2', 'completed');
CALL job_deps.until($$(SELECT parents = 2 FROM job_deps.states() WHERE name = 'child')$$);
CALL job_deps.ends('p1', 'failed');
SELECT * FROM job_deps.states();
SELECT swarm.job_retry((job_deps.id('p1'))[1]);
CALL job_deps.ends('p1', 'completed');
CALL job_deps.until($$(SELECT parents = 1 FROM job_deps.states() WHERE name = 'child')$$);
-- the last one was leased before; its lease ends, and so does its wait
SELECT swarm.job_cancel((job_deps.id('child'))[1]);
CALL job_deps.new('child2', 'p3');
SELECT swarm._clock_advance('2 days') > now();
UPDATE job_deps.job SET token = NULL WHERE name = 'p3';
CALL job_deps.until($$job_deps.state('p3') IN ('failed', 'ready')$$);
SELECT swarm._clock_advance('1 day') > now();
CALL job_deps.ends('p3', 'completed');
SELECT swarm._clock_advance(NULL) > now();
SELECT state FROM swarm.job_wait((job_deps.id('child2'))[1], '60 s');
SELECT * FROM job_deps.states();
TRUNCATE job_deps.job, job_deps.ran;

-- A parent that has completed is no reason to wait; one that is dead or cancelled is an error.
CALL job_deps.new('done');
SELECT state FROM swarm.job_wait((job_deps.id('done'))[1], '60 s');
CALL job_deps.held('held');
CALL job_deps.new('after', 'done');
SELECT state FROM swarm.job_wait((job_deps.id('after'))[1], '60 s');
CALL job_deps.new('after both', 'done', 'held');
SELECT * FROM job_deps.states();
CALL job_deps.ends('held', 'dead');
CALL job_deps.at('after both', 'cancelled');
\set VERBOSITY sqlstate
CALL job_deps.new('of the dead', 'held');
CALL job_deps.new('of the cancelled', 'after both');
SELECT swarm.job_enqueue('sql', depends_on => ARRAY[9223372036854775807]);
\set VERBOSITY terse
SELECT * FROM job_deps.states();
TRUNCATE job_deps.job, job_deps.ran;

-- Death and cancellation cascade, down to the last; what has other parents left is cancelled, too.
CALL job_deps.held('root');
CALL job_deps.held('other');
CALL job_deps.new('1', 'root', 'other');
CALL job_deps.new('2', '1');
CALL job_deps.new('3', '2');
CALL job_deps.ends('root', 'dead');
CALL job_deps.at('3', 'cancelled');
SELECT * FROM job_deps.states();
CALL job_deps.ends('other', 'completed');
SELECT count(*) FROM swarm._job_dep;
TRUNCATE job_deps.job, job_deps.ran;
CALL job_deps.held('root');
CALL job_deps.new('1', 'root');
CALL job_deps.new('2', '1');
CALL job_deps.ends('root', 'cancelled');
CALL job_deps.at('2', 'cancelled');
-- a retry of the root does not bring them back, a retry of their own does
SELECT swarm.job_retry((job_deps.id('root'))[1]);
CALL job_deps.ends('root', 'completed');
SELECT * FROM job_deps.states();
SELECT swarm.job_retry((job_deps.id('2'))[1]);
SELECT state FROM swarm.job_wait((job_deps.id('2'))[1], '60 s');
TRUNCATE job_deps.job, job_deps.ran;

-- As the child's queue says: run all the same, or wait for the retry.
CALL job_deps.held('root');
CALL job_deps.held('runs', 'job_deps_run', 'root');
CALL job_deps.held('waits', 'job_deps_wait', 'root');
CALL job_deps.new('cancelled', 'root');
CALL job_deps.held('runs on', 'job_deps_run', 'runs', 'cancelled');
CALL job_deps.ends('root', 'dead');
CALL job_deps.at('runs', 'ready');
CALL job_deps.at('cancelled', 'cancelled');
CALL job_deps.until($$(SELECT parents = 1 FROM job_deps.states() WHERE name = 'runs on')$$);
SELECT * FROM job_deps.states();
SELECT swarm.job_retry((job_deps.id('root'))[1]);
CALL job_deps.ends('root', 'dead');
SELECT state FROM job_deps.states() WHERE name = 'waits';
SELECT swarm.job_retry((job_deps.id('root'))[1]);
CALL job_deps.ends('root', 'completed');
CALL job_deps.at('waits', 'ready');
CALL job_deps.ends('runs', 'dead');
CALL job_deps.at('runs on', 'ready');
SELECT * FROM job_deps.states();
CALL job_deps.ends('runs on', 'completed');
CALL job_deps.ends('waits', 'completed');
SELECT count(*) FROM swarm._job_dep;
TRUNCATE job_deps.job, job_deps.ran;

-- Many children of one parent, and many parents of one child: more than the scheduler notes one by one.
CALL job_deps.held('root');
INSERT INTO job_deps.job SELECT 'many ' || i, swarm.job_enqueue('sql', '{"sql": "INSERT INTO job_deps.ran (what) VALUES (''many'')"}',
    'job_deps', depends_on => job_deps.id('root')) FROM generate_series(1, 300) i;
INSERT INTO job_deps.job SELECT 'last', swarm.job_enqueue('sql', '{"sql": "INSERT INTO job_deps.ran (what) VALUES (''last'')"}',
    'job_deps', depends_on => array_agg(id)) FROM job_deps.job;
CALL job_deps.ends('root', 'completed');
SELECT state FROM swarm.job_wait((job_deps.id('last'))[1], '60 s');
SELECT what, count(*), max(n) = (SELECT max(n) FROM job_deps.ran) AS last FROM job_deps.ran GROUP BY what ORDER BY what DESC;
SELECT count(*) FROM swarm._job_dep;
TRUNCATE job_deps.job, job_deps.ran;
-- a chain of as many
INSERT INTO job_deps.job VALUES ('0', swarm.job_enqueue('job_deps', queue => 'job_deps'));
DO $$
DECLARE
    last bigint := (job_deps.id('0'))[1];
BEGIN
    FOR i IN 1 .. 100 LOOP
        last := swarm.job_enqueue('sql', jsonb_build_object('sql', format('INSERT INTO job_deps.ran (what) VALUES (%L)', i)),
            'job_deps', depends_on => ARRAY[last]);
    END LOOP;
    INSERT INTO job_deps.job VALUES ('100', last);
END $$;
CALL job_deps.ends('0', 'completed');
SELECT state FROM swarm.job_wait((job_deps.id('100'))[1], '60 s');
SELECT count(*), bool_and(n - first = what::int - 1) AS in_order FROM (SELECT n, what, min(n) OVER () AS first FROM job_deps.ran) r;

SELECT count(*) FROM swarm._job_dep;
SELECT count(*) FROM swarm._job;
SELECT swarm.queue_drop('job_deps'), swarm.queue_drop('job_deps_run'), swarm.queue_drop('job_deps_wait'), swarm.handler_drop('job_deps');
SET client_min_messages = warning;
DROP SCHEMA job_deps CASCADE;
