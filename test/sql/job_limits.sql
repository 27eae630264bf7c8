-- How many run, how often, in which order, and when.
\set VERBOSITY terse
CREATE SCHEMA job_limits;
\getenv tests PG_ABS_SRCDIR
\set until :tests '/sql/include/until.sql'
\set schema job_limits
\i :until
-- a job of another queue has run since: who could start, did
CREATE PROCEDURE job_limits.probe() LANGUAGE plpgsql AS $$
DECLARE
    job bigint;
BEGIN
    FOR i IN 1 .. 3 LOOP
        job := swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', priority => 'high');
        COMMIT;
        IF (swarm.job_wait(job, '60 s')).state <> 'completed' THEN
            RAISE 'the probe did not run';
        END IF;
    END LOOP;
END $$;
CREATE FUNCTION job_limits.running(queue_name text) RETURNS bigint LANGUAGE sql AS
    $$ SELECT count(*) FROM swarm.jobs WHERE queue LIKE queue_name AND state = 'running' $$;
CREATE PROCEDURE job_limits.finish(queue_name text) LANGUAGE plpgsql AS $$
BEGIN
    CALL job_limits.until(format('NOT EXISTS (SELECT FROM swarm.jobs WHERE queue LIKE %L AND finished_at IS NULL)', queue_name));
END $$;
-- the most that ran at the same time, as the history tells
CREATE FUNCTION job_limits.most(condition text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    n bigint;
BEGIN
    EXECUTE format('WITH h AS (SELECT * FROM swarm.job_history WHERE %s)
        SELECT max((SELECT count(*) FROM h o WHERE o.started_at <= h.started_at AND h.started_at < o.finished_at)) FROM h',
        condition) INTO n;
    RETURN n;
END $$;
-- waits while the test holds the lock, then notes when it ran
CREATE TABLE job_limits.ran (n serial, what text);
CREATE FUNCTION job_limits.work(job swarm.job) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(4713);
    PERFORM pg_sleep(0.002);
    INSERT INTO job_limits.ran (what) VALUES (job.args #>> '{}');
END $$;
SELECT swarm.handler_register('job_limits', 'job_limits.work'),
       swarm.handler_register('job_limits_other', 'job_limits.work'),
       swarm.handler_register('job_limits_leased', NULL);

---- max_running of a queue
SELECT swarm.queue_create('job_limits', max_running => 2);
SELECT pg_advisory_lock(4713);
SELECT count(swarm.job_enqueue('job_limits', queue => 'job_limits')) FROM generate_series(1, 12);
CALL job_limits.until($$job_limits.running('job_limits') = 2$$);
CALL job_limits.probe();
SELECT job_limits.running('job_limits');
SELECT ready, running, max_running, depth FROM swarm.queues WHERE queue = 'job_limits';
-- raised and lowered while they run
SELECT swarm.queue_create('job_limits', max_running => 3);
CALL job_limits.until($$job_limits.running('job_limits') = 3$$);
CALL job_limits.probe();
SELECT job_limits.running('job_limits');
SELECT swarm.queue_create('job_limits', max_running => 1);
CALL job_limits.probe();
SELECT job_limits.running('job_limits');
SELECT now() AS lowered \gset
SELECT pg_advisory_unlock(4713);
CALL job_limits.finish('job_limits');
SELECT job_limits.most($$queue = 'job_limits'$$);
SELECT job_limits.most($$queue = 'job_limits' AND started_at > $$ || quote_literal(:'lowered'));

---- max_running of a kind, over all queues, and who waits for it is in nobody's way
SELECT swarm.queue_create('job_limits_a'), swarm.queue_create('job_limits_b');
SELECT swarm.handler_register('job_limits', 'job_limits.work', max_running => 2);
SELECT pg_advisory_lock(4713);
SELECT count(swarm.job_enqueue('job_limits', queue => q)) FROM generate_series(1, 6), unnest(ARRAY['job_limits_a', 'job_limits_b']) q;
CALL job_limits.until($$job_limits.running('job_limits__') = 2$$);
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', 'job_limits_a') AS a, swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', 'job_limits_b') AS b \gset
SELECT state FROM swarm.job_wait(:a, '60 s') UNION ALL SELECT state FROM swarm.job_wait(:b, '60 s');
SELECT job_limits.running('job_limits__');
SELECT pg_advisory_unlock(4713);
CALL job_limits.finish('job_limits__');
SELECT job_limits.most($$kind = 'job_limits' AND queue LIKE 'job_limits__'$$);
-- both limits at once, and leased jobs count, too
SELECT swarm.queue_create('job_limits', max_running => 3);
SELECT swarm.handler_register('job_limits_leased', NULL, max_running => 2);
SELECT count(swarm.job_enqueue('job_limits_leased', queue => 'job_limits')) FROM generate_series(1, 5);
SELECT count(*) FROM swarm.job_claim('job_limits', 10);
SELECT count(*) FROM swarm.job_claim('job_limits', 10);
SELECT swarm.handler_register('job_limits_leased', NULL);
CALL job_limits.probe();
SELECT count(*) FROM swarm.job_claim('job_limits', 10);
SELECT count(*) FROM swarm.job_claim('job_limits', 10);
SELECT ready, running FROM swarm.queues WHERE queue = 'job_limits';
SELECT count(swarm.job_cancel(id)) FROM swarm.jobs WHERE queue = 'job_limits' AND finished_at IS NULL;
SELECT ready, running, depth FROM swarm.queues WHERE queue = 'job_limits';

---- Rates never let more start in any window, whatever its beginning
CREATE TABLE job_limits.claimed (at timestamptz, n bigint);
-- claim as much as there is, every `step`
CREATE PROCEDURE job_limits.claim_all(queue text, step interval, steps int, period interval, lim int) LANGUAGE plpgsql AS $$
DECLARE
    most bigint;
    total bigint;
BEGIN
    TRUNCATE job_limits.claimed;
    FOR i IN 1 .. steps LOOP
        INSERT INTO job_limits.claimed SELECT swarm._now(), count(*) FROM swarm.job_claim(queue, 1000, '10 days');
        PERFORM swarm._clock_advance(step);
        COMMIT;
    END LOOP;
    SELECT max((SELECT sum(w.n) FROM job_limits.claimed w WHERE w.at >= c.at AND w.at < c.at + period - interval '1 s')), sum(n)
    INTO most, total FROM job_limits.claimed c;
    RAISE NOTICE 'at most % in %: %; and no less than 9/10 of it: %', lim, period, most <= lim,
        total >= 0.9 * lim * (extract(epoch FROM step) * steps / extract(epoch FROM period));
    PERFORM swarm.job_cancel(id) FROM swarm.jobs j WHERE j.queue = claim_all.queue AND finished_at IS NULL;
    PERFORM swarm._clock_advance(NULL);
END $$;
SELECT swarm.queue_create('job_limits', rate_limit => 5, rate_period => '1 h');
SELECT count(swarm.job_enqueue('job_limits_leased', queue => 'job_limits')) FROM generate_series(1, 100);
CALL job_limits.until($$(SELECT ready = 100 FROM swarm.queues WHERE queue = 'job_limits')$$);
CALL job_limits.probe();
CALL job_limits.claim_all('job_limits', '4 min', 125, '1 h', 5);
SELECT swarm.queue_create('job_limits', rate_limit => 100, rate_period => '1 h');
SELECT count(swarm.job_enqueue('job_limits_leased', queue => 'job_limits')) FROM generate_series(1, 1000);
CALL job_limits.until($$(SELECT ready = 1000 FROM swarm.queues WHERE queue = 'job_limits')$$);
CALL job_limits.probe();
CALL job_limits.claim_all('job_limits', '30 s', 600, '1 h', 100);
SELECT swarm.queue_create('job_limits');
SELECT swarm.handler_register('job_limits_leased', NULL, rate => '10 min');
SELECT count(swarm.job_enqueue('job_limits_leased', queue => 'job_limits')) FROM generate_series(1, 100);
CALL job_limits.until($$(SELECT ready = 100 FROM swarm.queues WHERE queue = 'job_limits')$$);
CALL job_limits.probe();
CALL job_limits.claim_all('job_limits', '1 min', 100, '10 min', 1);
SELECT swarm.handler_register('job_limits_leased', NULL);
-- runners keep to it, too: of a queue, and of a kind
CREATE PROCEDURE job_limits.one_by_one(queue text, kind text) LANGUAGE plpgsql AS $$
DECLARE
    jobs bigint[];
BEGIN
    SELECT array_agg(swarm.job_enqueue(kind, queue => queue)) INTO jobs FROM generate_series(1, 3);
    COMMIT;
    FOR i IN 1 .. 3 LOOP
        CALL job_limits.until(format('(SELECT count(*) = %s FROM swarm.job_history WHERE id = ANY (%L))', i, jobs));
        CALL job_limits.probe();
        RAISE NOTICE '% ran', (SELECT count(*) FROM swarm.job_history WHERE id = ANY (jobs));
        PERFORM swarm._clock_advance('1 hour 1 s');
        COMMIT;
    END LOOP;
    PERFORM swarm._clock_advance(NULL);
END $$;
SELECT swarm.queue_create('job_limits', rate_limit => 1, rate_period => '1 h');
CALL job_limits.one_by_one('job_limits', 'job_limits_other');
SELECT swarm.queue_create('job_limits');
SELECT swarm.handler_register('job_limits_other', 'job_limits.work', rate => '1 h');
CALL job_limits.one_by_one('job_limits', 'job_limits_other');
SELECT swarm.handler_register('job_limits_other', 'job_limits.work');
-- who waits for a rate that is lifted, or raised, waits no longer
SELECT swarm.queue_create('job_limits', rate_limit => 1, rate_period => '1 day');
SELECT count(swarm.job_enqueue('job_limits_other', queue => 'job_limits')) FROM generate_series(1, 3);
CALL job_limits.until($$(SELECT ready = 2 FROM swarm.queues WHERE queue = 'job_limits')$$);
CALL job_limits.probe();
SELECT swarm.queue_create('job_limits');
CALL job_limits.finish('job_limits');
SELECT swarm.handler_register('job_limits_other', 'job_limits.work', rate => '1 day');
SELECT count(swarm.job_enqueue('job_limits_other', queue => 'job_limits')) FROM generate_series(1, 3);
CALL job_limits.until($$(SELECT count(*) = 2 FROM swarm.jobs WHERE queue = 'job_limits' AND state = 'ready')$$);
CALL job_limits.probe();
SELECT swarm.handler_register('job_limits_other', 'job_limits.work', rate => '1 ms');
CALL job_limits.finish('job_limits');
SELECT swarm.handler_register('job_limits_other', 'job_limits.work');
-- and a clock that is set back does not make the wait longer
SELECT swarm.queue_create('job_limits', rate_limit => 1, rate_period => '10 min');
SELECT swarm._clock_advance('1 day') > now();
SELECT count(swarm.job_enqueue('job_limits_other', queue => 'job_limits')) FROM generate_series(1, 2);
CALL job_limits.until($$(SELECT ready = 1 FROM swarm.queues WHERE queue = 'job_limits')$$);
CALL job_limits.probe();
SELECT swarm._clock_advance(NULL) > now();
CALL job_limits.probe();
SELECT swarm._clock_advance('11 min') > now();
CALL job_limits.finish('job_limits');
SELECT swarm._clock_advance(NULL) > now();
SELECT swarm.queue_create('job_limits');

---- Pause and resume
SELECT swarm.queue_pause('job_limits');
SELECT paused FROM swarm.queues WHERE queue = 'job_limits';
SELECT swarm.job_enqueue('job_limits', queue => 'job_limits') AS job \gset
CALL job_limits.probe();
SELECT state FROM swarm.jobs WHERE id = :job;
SELECT count(*) FROM swarm.job_claim('job_limits');
-- settings may change meanwhile
SELECT swarm.queue_create('job_limits', max_running => 1);
CALL job_limits.probe();
SELECT state FROM swarm.jobs WHERE id = :job;
SELECT swarm.queue_resume('job_limits');
SELECT state FROM swarm.job_wait(:job, '60 s');
-- a pause that is rolled back was none; what runs goes on
SELECT pg_advisory_lock(4713);
SELECT swarm.job_enqueue('job_limits', queue => 'job_limits') AS job \gset
CALL job_limits.until($$job_limits.running('job_limits') = 1$$);
SELECT swarm.queue_pause('job_limits');
SELECT pg_advisory_unlock(4713);
SELECT state FROM swarm.job_wait(:job, '60 s');
SELECT swarm.queue_resume('job_limits');
BEGIN;
SELECT swarm.queue_pause('job_limits');
ROLLBACK;
SELECT swarm.job_enqueue('job_limits', queue => 'job_limits') AS job \gset
SELECT state FROM swarm.job_wait(:job, '60 s');
-- the default queue can be paused as well
SELECT swarm.queue_pause('default');
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}') AS job, swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', 'job_limits') AS other \gset
SELECT state FROM swarm.job_wait(:other, '60 s');
SELECT state FROM swarm.jobs WHERE id = :job;
SELECT swarm.queue_resume('default');
SELECT state FROM swarm.job_wait(:job, '60 s');
SELECT queue, paused, owner = current_user::regrole AS mine FROM swarm.queues WHERE queue = 'default';

---- Priorities: critical first, then by priority and age
SELECT swarm.queue_create('job_limits', max_running => 1);
TRUNCATE job_limits.ran;
SELECT swarm.queue_pause('job_limits');
SELECT count(swarm.job_enqueue('job_limits', to_jsonb(p), 'job_limits', p)) FROM unnest(enum_range(NULL::swarm.priority)) p, generate_series(1, 2);
SELECT swarm.queue_resume('job_limits');
CALL job_limits.finish('job_limits');
SELECT array_agg(what ORDER BY n) FROM job_limits.ran;
-- but critical ones do not starve the others
TRUNCATE job_limits.ran;
SELECT swarm.queue_pause('job_limits');
SELECT count(swarm.job_enqueue('job_limits', to_jsonb(p), 'job_limits', p::swarm.priority))
FROM unnest(array_fill('critical'::text, ARRAY[20]) || ARRAY['low', 'high']) p;
SELECT swarm.queue_resume('job_limits');
CALL job_limits.finish('job_limits');
SELECT what, position <= 20 AS early_enough FROM
    (SELECT n, what, row_number() OVER (ORDER BY n) AS position FROM job_limits.ran) r WHERE what <> 'critical' ORDER BY position;
-- ageing: who has waited long enough goes before the next priority
CREATE PROCEDURE job_limits.ageing(wait interval) LANGUAGE plpgsql AS $$
BEGIN
    TRUNCATE job_limits.ran;
    PERFORM swarm.queue_pause('job_limits');
    PERFORM swarm.job_enqueue('job_limits', '"low"', 'job_limits', 'low');
    COMMIT;
    PERFORM swarm._clock_advance(wait);
    PERFORM swarm.job_enqueue('job_limits', '"high"', 'job_limits', 'high');
    COMMIT;
    PERFORM swarm.queue_resume('job_limits');
    COMMIT;
    CALL job_limits.finish('job_limits');
    RAISE NOTICE '%', (SELECT array_agg(what ORDER BY n) FROM job_limits.ran);
    PERFORM swarm._clock_advance(NULL);
END $$;
SHOW pg_swarm.job_ageing;
CALL job_limits.ageing('1 min');
CALL job_limits.ageing('5 min');

---- Delayed jobs
TRUNCATE job_limits.ran;
SELECT swarm.queue_create('job_limits', max_running => 1);
SELECT swarm.job_enqueue('job_limits', '"2 h"', 'job_limits', run_at => now() + '2 h') AS two,
       swarm.job_enqueue('job_limits', '"1 h"', 'job_limits', run_at => now() + '1 h') AS one,
       swarm.job_enqueue('job_limits', '"past"', 'job_limits', run_at => '2000-01-01') AS past \gset
SELECT state FROM swarm.job_wait(:past, '60 s');
CALL job_limits.probe();
SELECT args, state FROM swarm.jobs WHERE id IN (:one, :two) ORDER BY args;
SELECT state FROM swarm.job_wait(:one, '10 ms');
SELECT swarm._clock_advance('90 min') > now();
SELECT state FROM swarm.job_wait(:one, '60 s');
CALL job_limits.probe();
SELECT state FROM swarm.jobs WHERE id = :two;
SELECT swarm._clock_advance('90 min') > now();
SELECT state FROM swarm.job_wait(:two, '60 s');
SELECT swarm._clock_advance(NULL) > now();
SELECT array_agg(what ORDER BY n) FROM job_limits.ran;

---- A thousand queues, three times over; then they are gone
CREATE PROCEDURE job_limits.thousand() LANGUAGE plpgsql AS $$
BEGIN
    PERFORM swarm.queue_create('job_limits_' || i) FROM generate_series(1, 1000) i;
    PERFORM swarm.queue_pause('job_limits_' || i) FROM generate_series(1, 1000, 10) i;
    PERFORM swarm.job_enqueue('job_limits', to_jsonb(i), 'job_limits_' || i) FROM generate_series(1, 1000) i;
    COMMIT;
    CALL job_limits.until('(SELECT count(*) = 100 FROM swarm.jobs WHERE queue LIKE ''job_limits_%'' AND finished_at IS NULL)');
    CALL job_limits.probe();
    RAISE NOTICE '% wait', (SELECT count(*) FROM swarm.jobs WHERE queue LIKE 'job_limits_%' AND finished_at IS NULL);
    PERFORM swarm.queue_resume('job_limits_' || i) FROM generate_series(1, 1000, 10) i;
    COMMIT;
    CALL job_limits.finish('job_limits_%');
    PERFORM swarm.queue_drop('job_limits_' || i) FROM generate_series(1, 1000) i;
    COMMIT;
END $$;
SELECT swarm.handler_register('job_limits', 'job_limits.work');
TRUNCATE job_limits.ran;
CALL job_limits.thousand();
CALL job_limits.thousand();
CALL job_limits.thousand();
SELECT count(*), count(DISTINCT what) FROM job_limits.ran;

SELECT swarm.queue_drop('job_limits'), swarm.queue_drop('job_limits_a'), swarm.queue_drop('job_limits_b');
SELECT swarm.handler_drop('job_limits'), swarm.handler_drop('job_limits_other'), swarm.handler_drop('job_limits_leased');
DELETE FROM swarm._queue WHERE id = 1;
SELECT count(*) FROM swarm._job;
SET client_min_messages = warning;
DROP SCHEMA job_limits CASCADE;
