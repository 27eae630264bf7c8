-- Workers outside the server: claim, heartbeat, complete, fail, and losing a lease.
\set VERBOSITY sqlstate
CREATE SCHEMA job_lease;
\getenv tests PG_ABS_SRCDIR
\set until :tests '/sql/include/until.sql'
\set schema job_lease
\i :until
SELECT swarm.queue_create('job_lease'), swarm.handler_register('job_lease', NULL);

-- Arguments
SELECT * FROM swarm.job_claim('absent');
SELECT * FROM swarm.job_claim('job_lease', 0);
SELECT * FROM swarm.job_claim('job_lease', 1001);
SELECT * FROM swarm.job_claim('job_lease', 1, '0 s');
SELECT * FROM swarm.job_claim('job_lease', 1, '-1 s');
SELECT * FROM swarm.job_claim(NULL);
SELECT * FROM swarm.job_claim('job_lease');
SELECT swarm.job_complete(NULL, 1) IS NULL, swarm.job_fail(NULL, 1, 'x') IS NULL, swarm.job_heartbeat(NULL, 1) IS NULL;

-- What a worker sees
SELECT swarm.job_enqueue('job_lease', '{"a": 1}', 'job_lease') AS job \gset
SELECT token FROM swarm.job_claim('default', 10) AS none;
SELECT id = :job AS same, kind, args, attempt, token > 0 AS token FROM swarm.job_claim('job_lease', 10, '1 hour') \gset c_
\echo :c_same :c_kind :c_args :c_attempt :c_token
SELECT * FROM swarm.job_claim('job_lease', 10);
SELECT state, attempts, worker IS NULL AS outside, started_at IS NOT NULL AS started, progress FROM swarm.jobs WHERE id = :job;
SELECT ready, running, depth FROM swarm.queues WHERE queue = 'job_lease';
SELECT swarm.job_cancel(:job);

-- Complete, in the worker's own transaction
CREATE TABLE job_lease.effect (what text);
CREATE FUNCTION job_lease.claim(job bigint, lease interval = '1 hour') RETURNS bigint LANGUAGE sql AS
    $$ SELECT token FROM swarm.job_claim('job_lease', 1000, lease) WHERE id = job $$;
SELECT swarm.job_enqueue('job_lease', queue => 'job_lease') AS job \gset
SELECT job_lease.claim(:job) AS token \gset
BEGIN;
INSERT INTO job_lease.effect VALUES ('rolled back');
SELECT swarm.job_complete(:job, :token, '{"r": 1}');
ROLLBACK;
SELECT state FROM swarm.jobs WHERE id = :job;
SELECT swarm.job_heartbeat(:job, :token, '1 hour', 0.5);
SELECT state, progress FROM swarm.jobs WHERE id = :job;
BEGIN;
INSERT INTO job_lease.effect VALUES ('committed');
SELECT swarm.job_complete(:job, :token, '{"r": 1}');
-- twice is refused
SAVEPOINT a;
SELECT swarm.job_complete(:job, :token);
ROLLBACK TO a;
COMMIT;
SELECT state, result, attempts, started_at <= finished_at AS ordered FROM swarm.job_wait(:job, '60 s');
SELECT * FROM job_lease.effect;
SELECT swarm.job_complete(:job, :token);
SELECT swarm.job_heartbeat(:job, :token);
SELECT swarm.job_fail(:job, :token, 'x');

-- A wrong token, somebody else's token
SELECT swarm.job_enqueue('job_lease', queue => 'job_lease') AS job, swarm.job_enqueue('job_lease', queue => 'job_lease') AS other \gset
SELECT max(token) FILTER (WHERE id = :job) AS token, max(token) FILTER (WHERE id = :other) AS other_token
FROM swarm.job_claim('job_lease', 2, '1 hour') \gset
SELECT :token <> :other_token AS different;
SELECT swarm.job_complete(:job, :other_token);
SELECT swarm.job_fail(:job, :token + 1, 'x');
SELECT swarm.job_heartbeat(:job, 0);
SELECT swarm.job_heartbeat(:job, :token, '0 s');
SELECT swarm.job_heartbeat(:job, :token, '1 hour', 7);
SELECT progress FROM swarm.jobs WHERE id = :job;
SELECT swarm.job_complete(:other, :other_token);

-- Fail: rolled back, again, and for good
BEGIN;
SELECT swarm.job_fail(:job, :token, 'never said');
ROLLBACK;
SELECT state, attempts, error FROM swarm.jobs WHERE id = :job;
SELECT swarm._clock_advance('30 min') IS NOT NULL AS so_that_the_next_attempt_is_later;
SELECT swarm.job_fail(:job, :token, 'first');
SELECT swarm._clock_advance(NULL) IS NOT NULL AS now;
SELECT state, attempts, error, run_at > now() AS later FROM swarm.jobs WHERE id = :job;
SELECT swarm.job_complete(:job, :token);
SELECT swarm._clock_advance('1 day') > now();
CALL job_lease.until($$(SELECT ready = 1 FROM swarm.queues WHERE queue = 'job_lease')$$);
SELECT attempt, token FROM swarm.job_claim('job_lease') \gset
SELECT :attempt;
SELECT swarm.job_fail(:job, :token, NULL, retry => false);
SELECT state, attempts, error FROM swarm.jobs WHERE id = :job;
SELECT swarm._clock_advance(NULL) > now();
-- on the last attempt
SELECT swarm.job_enqueue('job_lease', queue => 'job_lease', max_attempts => 1) AS job \gset
SELECT job_lease.claim(:job) AS token \gset
SELECT swarm.job_fail(:job, :token, 'last');
SELECT state, attempts, error FROM swarm.jobs WHERE id = :job;

-- A lease that is kept does not run out, one that is not does: the attempt counts, the old token is void.
SELECT swarm.job_enqueue('job_lease', queue => 'job_lease', max_attempts => 2) AS job \gset
SELECT job_lease.claim(:job, '10 min') AS token \gset
SELECT swarm._clock_advance('9 min') > now();
SELECT swarm.job_heartbeat(:job, :token, '10 min');
SELECT swarm._clock_advance('9 min') > now();
SELECT swarm.job_heartbeat(:job, :token, '10 min');
SELECT state FROM swarm.jobs WHERE id = :job;
SELECT swarm._clock_advance('11 min') > now();
CALL job_lease.until(format($$(SELECT error IS NOT NULL FROM swarm.jobs WHERE id = %s)$$, :job));
SELECT swarm.job_complete(:job, :token);
SELECT swarm.job_heartbeat(:job, :token);
SELECT attempts, error FROM swarm.jobs WHERE id = :job;
SELECT swarm._clock_advance('1 day') > now();
CALL job_lease.until($$(SELECT ready = 1 FROM swarm.queues WHERE queue = 'job_lease')$$);
SELECT attempt, token AS new_token FROM swarm.job_claim('job_lease', 1, '1 min') \gset
SELECT :attempt, :new_token <> :token AS other_token;
SELECT swarm.job_complete(:job, :token);
-- the last one: dead
SELECT swarm._clock_advance('2 min') > now();
SELECT state, attempts, error FROM swarm.job_wait(:job, '60 s');
SELECT swarm.job_complete(:job, :new_token);
SELECT swarm._clock_advance(NULL) > now();

-- Cancelled while leased: the worker hears of it when it asks
SELECT swarm.job_enqueue('job_lease', queue => 'job_lease') AS job \gset
SELECT job_lease.claim(:job) AS token \gset
SELECT swarm.job_cancel(:job, 'enough');
SELECT state, attempts, started_at <= finished_at AS ordered, error FROM swarm.job_wait(:job, '60 s');
SELECT swarm.job_heartbeat(:job, :token);
SELECT swarm.job_complete(:job, :token);
-- and retried: a new lease
SELECT swarm.job_retry(:job);
SELECT swarm.job_complete(:job, :token);
SELECT job_lease.claim(:job) <> :token AS other_token;
SELECT swarm.job_cancel(:job);

-- Many at once, in order of priority; nobody gets one twice
SELECT count(swarm.job_enqueue('job_lease', to_jsonb(p), 'job_lease', p)) FROM generate_series(1, 20), unnest(enum_range(NULL::swarm.priority)) p;
CREATE TABLE job_lease.claims (n serial, id bigint, token bigint, args jsonb);
INSERT INTO job_lease.claims (id, token, args) SELECT id, token, args FROM swarm.job_claim('job_lease', 7);
INSERT INTO job_lease.claims (id, token, args) SELECT id, token, args FROM swarm.job_claim('job_lease', 1000);
SELECT count(*), count(DISTINCT id), count(DISTINCT token), (array_agg(args #>> '{}' ORDER BY n))[1] AS first FROM job_lease.claims;
BEGIN;
SELECT count(swarm.job_complete(id, token)::text) FROM job_lease.claims WHERE n % 2 = 0;
SELECT count(swarm.job_fail(id, token, 'x', false)::text) FROM job_lease.claims WHERE n % 2 = 1;
COMMIT;
SELECT state, count(*) FROM swarm.job_history WHERE id IN (SELECT id FROM job_lease.claims) GROUP BY state ORDER BY state;
-- a kind at its limit does not stand in the way of others, and goes on when there is room
SELECT swarm.handler_register('job_lease_one', NULL, max_running => 1), swarm.handler_register('job_lease_slow', NULL, rate => '1 day');
SELECT count(swarm.job_enqueue(k, queue => 'job_lease')) FROM unnest('{job_lease_one,job_lease_slow}'::text[]) k, generate_series(1, 3);
SELECT swarm.job_enqueue('job_lease', queue => 'job_lease') AS job \gset
CREATE PROCEDURE job_lease.claim_all() LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO job_lease.claims (id, token, args) SELECT id, token, to_jsonb(kind) FROM swarm.job_claim('job_lease', 10, '30 days') ORDER BY id;
    RAISE NOTICE '%', (SELECT string_agg(args #>> '{}', ' ' ORDER BY n) FROM job_lease.claims);
END $$;
\set VERBOSITY terse
TRUNCATE job_lease.claims;
-- registering kinds has the queue read anew: what came meanwhile stands before the others
CALL job_lease.until($$(SELECT ready = 7 FROM swarm.queues WHERE queue = 'job_lease')$$);
CALL job_lease.claim_all();
CALL job_lease.claim_all();
SELECT swarm.job_complete(id, token) FROM job_lease.claims WHERE args = '"job_lease_one"';
CALL job_lease.claim_all();
SELECT swarm._clock_advance('25 hours') > now();
CALL job_lease.until($$(SELECT ready = 1 FROM swarm.queues WHERE queue = 'job_lease')$$);
CALL job_lease.claim_all();
SELECT swarm._clock_advance(NULL) > now();
\set VERBOSITY sqlstate
SELECT count(swarm.job_cancel(id)) FROM swarm.jobs WHERE finished_at IS NULL;
SELECT swarm.handler_drop('job_lease_one'), swarm.handler_drop('job_lease_slow');
-- a claim is not undone by ROLLBACK, its lease runs out
SELECT swarm.job_enqueue('job_lease', queue => 'job_lease') AS job \gset
BEGIN;
SELECT count(*) FROM swarm.job_claim('job_lease');
ROLLBACK;
SELECT state FROM swarm.jobs WHERE id = :job;
SELECT swarm.job_cancel(:job);

-- A kind gets a handler, and loses it, while jobs wait
SELECT swarm.job_enqueue('job_lease', queue => 'job_lease') AS job, swarm.job_enqueue('job_lease', queue => 'job_lease', run_at => '2200-01-01') AS later \gset
CREATE FUNCTION job_lease.handler(job swarm.job) RETURNS void LANGUAGE sql AS '';
SELECT swarm.handler_register('job_lease', 'job_lease.handler');
SELECT state, result FROM swarm.job_wait(:job, '60 s');
SELECT swarm.handler_register('job_lease', NULL);
SELECT swarm.job_retry(:later);
CALL job_lease.until($$(SELECT ready = 1 FROM swarm.queues WHERE queue = 'job_lease')$$);
SELECT id = :later AS same FROM swarm.job_claim('job_lease');
SELECT swarm.job_cancel(:later);

SELECT ready, running, depth FROM swarm.queues WHERE queue = 'job_lease';
SELECT count(*) FROM swarm._job;
SELECT swarm.queue_drop('job_lease'), swarm.handler_drop('job_lease');
SET client_min_messages = warning;
DROP SCHEMA job_lease CASCADE;
