-- Enqueue: arguments and their errors, and what transactions do to it.
\set VERBOSITY sqlstate
CREATE SCHEMA job_enqueue;
SELECT swarm.queue_create('job_enqueue'), swarm.handler_register('job_enqueue', NULL);

---- Defaults, and every argument
SELECT swarm.job_enqueue('job_enqueue') AS job \gset
SELECT queue, kind, state, priority, owner = current_user::regrole AS mine, args, tags, unique_key, depends_on,
       attempts, max_attempts, timeout, run_at <= enqueued_at AS at_once, started_at, finished_at, result, error
FROM swarm.jobs WHERE id = :job;
SELECT swarm.job_cancel(:job);
SELECT swarm.job_enqueue('job_enqueue', queue => 'job_enqueue', run_at => now() + '1 day') AS parent \gset
SELECT swarm.job_enqueue('job_enqueue', '{"a": 1}', 'job_enqueue', 'critical', '2200-01-01 00:00:00+00',
    10000, '3 days 00:00:01.5', 'key', ARRAY[:parent, :parent], '["tag"]') AS job \gset
SELECT queue, kind, state, priority, args, tags, unique_key, depends_on = ARRAY[:parent]::bigint[] AS depends,
       max_attempts, timeout, run_at AT TIME ZONE 'UTC' AS run_at
FROM swarm.jobs WHERE id = :job;
SELECT swarm.job_cancel(:job);
-- nulls that mean something, and documents that are not objects
SELECT swarm.job_enqueue('job_enqueue', '[1]', timeout => NULL, unique_key => NULL, depends_on => NULL, tags => NULL) AS job \gset
SELECT args, tags, timeout, depends_on FROM swarm.jobs WHERE id = :job;
SELECT swarm.job_cancel(:job);
SELECT swarm.job_enqueue('job_enqueue', 'null', tags => '"x"', timeout => '24 days') AS job \gset
SELECT args, tags, timeout FROM swarm.jobs WHERE id = :job;
SELECT swarm.job_cancel(:job);

---- Errors
SELECT swarm.job_enqueue(NULL);
SELECT swarm.job_enqueue('job_enqueue', NULL);
SELECT swarm.job_enqueue('job_enqueue', queue => NULL);
SELECT swarm.job_enqueue('job_enqueue', priority => NULL);
SELECT swarm.job_enqueue('job_enqueue', run_at => NULL);
SELECT swarm.job_enqueue('job_enqueue', max_attempts => NULL);
SELECT swarm.job_enqueue('absent');
SELECT swarm.job_enqueue('');
SELECT swarm.job_enqueue('job_enqueue', queue => 'absent');
SELECT swarm.job_enqueue('job_enqueue', '{');
SELECT swarm.job_enqueue('job_enqueue', priority => 'urgent');
SELECT swarm.job_enqueue('job_enqueue', run_at => 'infinity');
SELECT swarm.job_enqueue('job_enqueue', run_at => '-infinity');
SELECT swarm.job_enqueue('job_enqueue', max_attempts => 0);
SELECT swarm.job_enqueue('job_enqueue', max_attempts => -1);
SELECT swarm.job_enqueue('job_enqueue', max_attempts => 10001);
SELECT swarm.job_enqueue('job_enqueue', timeout => '0');
SELECT swarm.job_enqueue('job_enqueue', timeout => '-1 s');
SELECT swarm.job_enqueue('job_enqueue', timeout => '24 days 1 us');
SELECT swarm.job_enqueue('job_enqueue', timeout => '178000000 years');
SELECT swarm.job_enqueue('job_enqueue', depends_on => ARRAY[NULL::bigint]);
SELECT swarm.job_enqueue('job_enqueue', depends_on => ARRAY[-1]);
SELECT swarm.job_enqueue('job_enqueue', depends_on => ARRAY[:job]);	-- cancelled
START TRANSACTION READ ONLY;
SELECT swarm.job_enqueue('job_enqueue');
ROLLBACK;
START TRANSACTION READ ONLY;
SELECT swarm.job_cancel(:parent);
ROLLBACK;
-- the text of some
\set VERBOSITY default
SELECT swarm.job_enqueue('absent');
SELECT swarm.job_enqueue('job_enqueue', queue => 'absent');
SELECT swarm.job_enqueue('job_enqueue', timeout => '0');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "depends_on": 1}]');
SELECT swarm.job_enqueue(NULL);
\set VERBOSITY sqlstate
-- queues
SELECT swarm.queue_create('');
SELECT swarm.queue_create(repeat('x', 129));
SELECT swarm.queue_create(NULL);
SELECT swarm.queue_create('x', max_running => 0);
SELECT swarm.queue_create('x', rate_limit => 0);
SELECT swarm.queue_create('x', rate_limit => 1, rate_period => '0');
SELECT swarm.queue_create('x', rate_limit => 1, rate_period => '178000000 years');
SELECT swarm.queue_create('x', batch => 0);
SELECT swarm.queue_create('x', batch => 1001);
SELECT swarm.queue_create('x', batch => NULL);
SELECT swarm.queue_create('x', dependency_failure => 'explode');
SELECT swarm.queue_pause('absent');
SELECT swarm.queue_resume('absent');
SELECT swarm.queue_drop('absent');
SELECT swarm.queue_drop('default');
SELECT swarm.queue_drop('job_enqueue');
SELECT swarm.job_cancel(:parent);
SELECT swarm.job_cancel(NULL) IS NULL, swarm.job_retry(NULL) IS NULL, swarm.job_wait(NULL) IS NULL;

---- Many at once: all keys
SELECT swarm.job_enqueue('job_enqueue', run_at => now() + '1 day') AS parent \gset
CREATE FUNCTION job_enqueue.many(jobs jsonb) RETURNS TABLE (n bigint, kind text, queue text, state swarm.job_state,
    priority swarm.priority, args jsonb, tags jsonb, unique_key text, depends int, max_attempts int, "timeout" interval)
LANGUAGE plpgsql AS $$
DECLARE
    ids bigint[] := ARRAY(SELECT swarm.job_enqueue_many(jobs));
BEGIN
    RETURN QUERY SELECT row_number() OVER (ORDER BY j.id), j.kind, j.queue, j.state, j.priority, j.args, j.tags,
        j.unique_key, cardinality(j.depends_on), j.max_attempts, j.timeout
    FROM swarm.jobs j WHERE j.id = ANY (ids);
    PERFORM swarm.job_cancel(i) FROM unnest(ids) i;
END $$;
SELECT * FROM job_enqueue.many(format('[{"kind": "job_enqueue"},
    {"kind": "job_enqueue", "queue": "job_enqueue", "args": {"a": 1}, "priority": "low", "run_at": "2200-01-01",
     "max_attempts": 7, "timeout": "1 hour", "unique_key": "many", "depends_on": [%s], "tags": {"t": true}},
    {"kind": "job_enqueue", "timeout": null, "args": [], "tags": "t", "depends_on": [], "unique_key": null, "queue": null},
    {"kind": "job_enqueue", "unique_key": 5, "timeout": 2, "run_at": "2200-01-01"}]', :parent)::jsonb);
SELECT count(*) FROM swarm.job_enqueue_many('[]');
SELECT count(*) FROM swarm.job_enqueue_many(NULL);
-- in the order of the array
SELECT array_agg(id) AS jobs FROM swarm.job_enqueue_many((SELECT jsonb_agg(jsonb_build_object(
    'kind', 'job_enqueue', 'args', jsonb_build_object('i', i))) FROM generate_series(1, 5) i)) id \gset
SELECT array_agg(args -> 'i' ORDER BY n) FROM unnest(:'jobs'::bigint[]) WITH ORDINALITY u(id, n) JOIN swarm.jobs j USING (id);
SELECT count(swarm.job_cancel(id)) FROM swarm.jobs WHERE kind = 'job_enqueue' AND args ? 'i';
-- and its errors
SELECT swarm.job_enqueue_many('{}');
SELECT swarm.job_enqueue_many('1');
SELECT swarm.job_enqueue_many('[1]');
SELECT swarm.job_enqueue_many('[[]]');
SELECT swarm.job_enqueue_many('[{}]');
SELECT swarm.job_enqueue_many('[{"kind": null}]');
SELECT swarm.job_enqueue_many('[{"kind": {}}]');
SELECT swarm.job_enqueue_many('[{"kind": "absent"}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "queue": "absent"}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "priority": "urgent"}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "priority": 1}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "run_at": "yesterdayish"}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "run_at": "infinity"}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "max_attempts": "many"}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "max_attempts": 1.5}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "max_attempts": 0}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "timeout": "x"}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "timeout": -1}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "depends_on": 1}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "depends_on": ["x"]}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "depends_on": [null]}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "depends_on": [-1]}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "depends_on": [-1.5]}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "depends_on": [1e30]}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "timeout": "25 days"}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "colour": "red"}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "colour": [1]}]');
-- all or nothing
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "args": {"bad": 1}}, {"kind": "absent"}]');
SELECT count(*) FROM swarm.jobs WHERE args ? 'bad';
\set VERBOSITY default
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue"}, {"kind": "job_enqueue", "colour": "red"}]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue"}, 7]');
SELECT swarm.job_enqueue_many('[{"kind": "job_enqueue", "depends_on": [[]]}]');
\set VERBOSITY sqlstate
SELECT swarm.job_cancel(:parent);

---- Transactions
CREATE TABLE job_enqueue.ran (n serial, what text);
CREATE FUNCTION job_enqueue.note(what text) RETURNS bigint LANGUAGE sql AS $$
    SELECT swarm.job_enqueue('sql', jsonb_build_object('sql', 'INSERT INTO job_enqueue.ran (what) VALUES ($1)',
        'params', jsonb_build_array(what)), 'job_enqueue', tags => '"note"') $$;
-- wait until nothing lives in the queue, then show what ran
CREATE PROCEDURE job_enqueue.settle() LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. 6000 LOOP
        EXIT WHEN NOT EXISTS (SELECT FROM swarm._job WHERE queue <> 1);
        PERFORM pg_sleep(0.01);
        COMMIT;
    END LOOP;
    RAISE NOTICE '% ran', (SELECT array_agg(what ORDER BY what) FROM job_enqueue.ran);
    TRUNCATE job_enqueue.ran;
END $$;
\set VERBOSITY terse
BEGIN;
SELECT count(job_enqueue.note('rolled back'));
ROLLBACK;
BEGIN;
SELECT count(job_enqueue.note('committed'));
SELECT state FROM swarm.jobs WHERE tags = '"note"';
COMMIT;
CALL job_enqueue.settle();
-- savepoints
BEGIN;
SELECT count(job_enqueue.note('1 kept'));
SAVEPOINT a;
SELECT count(job_enqueue.note('2 lost'));
SAVEPOINT b;
SELECT count(job_enqueue.note('3 lost'));
RELEASE b;
ROLLBACK TO a;
SELECT count(job_enqueue.note('4 kept'));
SAVEPOINT c;
SELECT count(job_enqueue.note('5 kept'));
SAVEPOINT d;
SELECT count(job_enqueue.note('6 lost'));
ROLLBACK TO d;
RELEASE c;
SAVEPOINT e;
SELECT count(job_enqueue.note('7 kept'));
RELEASE e;
COMMIT;
CALL job_enqueue.settle();
BEGIN;
SAVEPOINT a;
SELECT count(job_enqueue.note('released, then rolled back'));
RELEASE a;
ROLLBACK;
DO $$
BEGIN
    PERFORM job_enqueue.note('outside');
    BEGIN
        PERFORM job_enqueue.note('inside');
        RAISE 'no';
    EXCEPTION WHEN raise_exception THEN
        PERFORM job_enqueue.note('after');
    END;
END $$;
CALL job_enqueue.settle();
-- two-phase commit
BEGIN;
SELECT count(job_enqueue.note('prepared, committed'));
SAVEPOINT a;
SELECT count(job_enqueue.note('prepared, lost'));
ROLLBACK TO a;
SELECT swarm.job_enqueue('job_enqueue', queue => 'job_enqueue', run_at => '2200-01-01') AS later \gset
PREPARE TRANSACTION 'job_enqueue_1';
BEGIN;
SELECT count(job_enqueue.note('prepared, rolled back'));
PREPARE TRANSACTION 'job_enqueue_2';
SELECT count(*) FROM swarm._job;
COMMIT PREPARED 'job_enqueue_1';
ROLLBACK PREPARED 'job_enqueue_2';
-- and what else a prepared transaction can do: cancel, retry, pause, depend
BEGIN;
SELECT swarm.job_cancel(:later);
PREPARE TRANSACTION 'job_enqueue_1';
COMMIT PREPARED 'job_enqueue_1';
SELECT state FROM swarm.job_wait(:later, '60 s');
CALL job_enqueue.settle();
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', 'job_enqueue', run_at => '2200-01-01') AS later \gset
BEGIN;
SELECT swarm.job_retry(:later);
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 2"}', 'job_enqueue', depends_on => ARRAY[:later]) AS child \gset
PREPARE TRANSACTION 'job_enqueue_1';
COMMIT PREPARED 'job_enqueue_1';
SELECT state FROM swarm.job_wait(:later, '60 s');
SELECT state FROM swarm.job_wait(:child, '60 s');
-- the parent ends while the child is prepared
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', 'job_enqueue', run_at => '2200-01-01') AS later \gset
BEGIN;
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 2"}', 'job_enqueue', depends_on => ARRAY[:later]) AS child \gset
PREPARE TRANSACTION 'job_enqueue_1';
SELECT swarm.job_retry(:later);
SELECT state FROM swarm.job_wait(:later, '60 s');
COMMIT PREPARED 'job_enqueue_1';
SELECT state FROM swarm.job_wait(:child, '60 s');
BEGIN;
SELECT swarm.queue_pause('job_enqueue');
PREPARE TRANSACTION 'job_enqueue_1';
COMMIT PREPARED 'job_enqueue_1';
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', 'job_enqueue') AS job \gset
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}') AS other \gset
SELECT state FROM swarm.job_wait(:other, '60 s');
SELECT state FROM swarm.jobs WHERE id = :job;
BEGIN;
SELECT swarm.queue_resume('job_enqueue');
PREPARE TRANSACTION 'job_enqueue_1';
COMMIT PREPARED 'job_enqueue_1';
SELECT state FROM swarm.job_wait(:job, '60 s');

-- One cannot wait for what will only run after one's own commit.
\set VERBOSITY sqlstate
SELECT swarm.job_wait(swarm.job_enqueue('sql', '{"sql": "SELECT 1"}'));
BEGIN;
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}') AS job \gset
SELECT swarm.job_wait(:job);
ROLLBACK;
BEGIN;
SAVEPOINT a;
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}') AS job \gset
RELEASE a;
SELECT swarm.job_wait(:job);
ROLLBACK;
SELECT swarm.job_wait(1, '-1 s');
-- a job of the same statement can be a parent, and be cancelled
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 2"}',
    depends_on => ARRAY[swarm.job_enqueue('sql', '{"sql": "SELECT 1"}')]) AS job \gset
SELECT state FROM swarm.job_wait(:job, '60 s');
SELECT swarm.job_cancel(swarm.job_enqueue('sql', '{"sql": "SELECT 1"}'));
-- one that is enqueued and cancelled in a transaction, or dropped with a savepoint
BEGIN;
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}') AS job \gset
SELECT swarm.job_cancel(:job, 'never mind');
COMMIT;
SELECT state, error FROM swarm.job_wait(:job, '60 s');

---- More jobs than a transaction tells one by one
SET client_min_messages = notice;
\set VERBOSITY terse
BEGIN;
SELECT count(swarm.job_enqueue('sql', '{"sql": "INSERT INTO job_enqueue.ran (what) VALUES (''many'')"}', 'job_enqueue'))
FROM generate_series(1, 12000) i;
SELECT count(swarm.job_enqueue('job_enqueue', queue => 'job_enqueue'));
-- a child beyond the limit, of a parent within it
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', 'job_enqueue', depends_on => ARRAY[min(id)]) AS child FROM swarm._job \gset
COMMIT;
SELECT state FROM swarm.job_wait(:child, '120 s');
SELECT swarm.job_cancel(max(id)) FROM swarm.jobs WHERE kind = 'job_enqueue' AND finished_at IS NULL;
DO $$
BEGIN
    FOR i IN 1 .. 6000 LOOP
        EXIT WHEN NOT EXISTS (SELECT FROM swarm._job);
        PERFORM pg_sleep(0.02);
        COMMIT;
    END LOOP;
END $$;
SELECT count(*) FROM job_enqueue.ran;
-- and rolled back
BEGIN;
SELECT count(swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', 'job_enqueue')) FROM generate_series(1, 12000) i;
ROLLBACK;
SELECT count(*) FROM swarm._job;
SELECT swarm.queue_drop('job_enqueue'), swarm.handler_drop('job_enqueue');
SET client_min_messages = warning;
DROP SCHEMA job_enqueue CASCADE;
