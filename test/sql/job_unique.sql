-- Unique keys: one live job per owner, queue and key.
\set VERBOSITY sqlstate
SELECT swarm.handler_register('job_unique', NULL);
SELECT swarm.queue_create('job_unique'), swarm.queue_create('job_unique_2');

-- The second gets the id of the first, whatever else it asks for.
SELECT swarm.job_enqueue('job_unique', queue => 'job_unique', unique_key => 'k') AS job \gset
SELECT swarm.job_enqueue('job_unique', '{"other": 1}', 'job_unique', unique_key => 'k', priority => 'critical') = :job AS same;
SELECT swarm.job_enqueue('sql', queue => 'job_unique', unique_key => 'k', run_at => '2200-01-01') = :job AS same;
SELECT args, priority FROM swarm.jobs WHERE id = :job;
SELECT count(*) FROM swarm.jobs WHERE unique_key = 'k' AND finished_at IS NULL;
-- another key, another queue, no key are others
SELECT swarm.job_enqueue('job_unique', queue => 'job_unique', unique_key => 'K') = :job AS same;
SELECT swarm.job_enqueue('job_unique', queue => 'job_unique', unique_key => '') = :job AS same;
SELECT swarm.job_enqueue('job_unique', queue => 'job_unique', unique_key => 'k ') = :job AS same;
SELECT swarm.job_enqueue('job_unique', queue => 'job_unique_2', unique_key => 'k') = :job AS same;
SELECT swarm.job_enqueue('job_unique', queue => 'job_unique') = swarm.job_enqueue('job_unique', queue => 'job_unique') AS same;
SELECT count(*), count(DISTINCT id) FROM swarm.job_enqueue_many('[{"kind": "job_unique", "queue": "job_unique", "unique_key": "m"},
    {"kind": "job_unique", "queue": "job_unique", "unique_key": "m"}, {"kind": "job_unique", "queue": "job_unique", "unique_key": "n"}]') id;
-- in one transaction, and in one statement
BEGIN;
SELECT swarm.job_enqueue('job_unique', queue => 'job_unique', unique_key => 't') = swarm.job_enqueue('job_unique', queue => 'job_unique', unique_key => 't') AS same;
SAVEPOINT a;
SELECT count(swarm.job_enqueue('job_unique', queue => 'job_unique', unique_key => 'u'));
ROLLBACK TO a;
SELECT count(*) FROM swarm.jobs WHERE unique_key = 'u';
SELECT count(swarm.job_enqueue('job_unique', queue => 'job_unique', unique_key => 'u'));
SELECT count(*) FROM swarm.jobs WHERE unique_key = 'u';
ROLLBACK;
SELECT count(*) FROM swarm.jobs WHERE unique_key IN ('t', 'u');
SELECT count(*) FROM swarm._job_key WHERE key IN ('t', 'u');
-- too long for its index
SELECT swarm.job_enqueue('job_unique', unique_key => (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 300) i));
SELECT count(*) FROM swarm._job WHERE queue = 1;
-- keys in other scripts
SELECT swarm.job_enqueue('job_unique', queue => 'job_unique', unique_key => 'ключ 鍵 🔑') = swarm.job_enqueue('job_unique', queue => 'job_unique', unique_key => 'ключ 鍵 🔑') AS same;

-- Held while the job is claimed, and while it waits for its next attempt; free at its end.
CREATE FUNCTION pg_temp.token(job bigint) RETURNS bigint LANGUAGE sql AS
    $$ SELECT token FROM swarm.job_claim('job_unique', 1000, '1 day') WHERE id = job $$;
SELECT count(*) FROM (SELECT swarm.job_cancel(id) FROM swarm.jobs WHERE queue = 'job_unique' AND finished_at IS NULL AND id <> :job) c;
SELECT pg_temp.token(:job) AS token \gset
SELECT swarm.job_enqueue('job_unique', queue => 'job_unique', unique_key => 'k') = :job AS same;
-- (its next attempt will be due in an hour)
SELECT swarm._clock_advance('1 hour') IS NOT NULL AS later;
SELECT swarm.job_fail(:job, :token, 'once');
SELECT swarm._clock_advance(NULL) IS NOT NULL AS now;
SELECT state FROM swarm.jobs WHERE id = :job;
SELECT swarm.job_enqueue('job_unique', queue => 'job_unique', unique_key => 'k') = :job AS same;
SELECT swarm.job_retry(:job);
SELECT pg_temp.token(:job) AS token \gset
SELECT swarm.job_complete(:job, :token);
SELECT swarm.job_enqueue('job_unique', queue => 'job_unique', unique_key => 'k') AS second \gset
SELECT :second = :job AS same;
SELECT pg_temp.token(:second) AS token \gset
SELECT swarm.job_fail(:second, :token, 'dead', false);
SELECT swarm.job_enqueue('job_unique', queue => 'job_unique', unique_key => 'k') AS third \gset
SELECT :third = :second AS same;
-- a retry takes the key again, if it is free
SELECT swarm.job_retry(:second);
SELECT state FROM swarm.jobs WHERE id = :second;
SELECT swarm.job_cancel(:third);
SELECT swarm.job_retry(:second);
SELECT swarm.job_enqueue('job_unique', queue => 'job_unique', unique_key => 'k') = :second AS same;
SELECT swarm.job_retry(:third);
-- a cancel that is rolled back frees nothing
BEGIN;
SELECT swarm.job_cancel(:second);
SELECT swarm.job_enqueue('job_unique', queue => 'job_unique', unique_key => 'k') = :second AS same;
ROLLBACK;
SELECT swarm.job_enqueue('job_unique', queue => 'job_unique', unique_key => 'k') = :second AS same;
SELECT swarm.job_cancel(:second);
-- a runner's jobs, too: completed, dead
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', 'job_unique', unique_key => 'r') AS job \gset
SELECT state FROM swarm.job_wait(:job, '60 s');
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1/0"}', 'job_unique', unique_key => 'r', max_attempts => 1) AS second \gset
SELECT :second = :job AS same, state FROM swarm.job_wait(:second, '60 s');
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', 'job_unique', unique_key => 'r') AS third \gset
SELECT :third = :second AS same, state FROM swarm.job_wait(:third, '60 s');
-- a job may enqueue its successor under its own key only after its end: inside, it is its own holder
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT swarm.job_enqueue(''sql'', ''{\"sql\": \"SELECT 2\"}'', ''job_unique'', unique_key => ''self'') AS id"}', 'job_unique', unique_key => 'self') AS job \gset
SELECT state, (result -> 'data' -> 0 ->> 'id')::bigint = :job AS same FROM swarm.job_wait(:job, '60 s');

SELECT count(*) > 0 FROM (SELECT swarm.job_cancel(id) FROM swarm.jobs WHERE queue LIKE 'job_unique%' AND finished_at IS NULL) c;
SELECT count(*) FROM swarm._job_key;
SELECT swarm.queue_drop('job_unique'), swarm.queue_drop('job_unique_2'), swarm.handler_drop('job_unique');
