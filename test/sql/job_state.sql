-- Drive real jobs along every edge of the transition table, and try the
-- steps that it does not have.
\set VERBOSITY sqlstate
CREATE SCHEMA job_state;
SELECT from_state, event, to_state FROM swarm._job_transitions();

-- What has been seen: jobs by a name, and the edges that they went.
CREATE TABLE job_state.job (name text PRIMARY KEY, id bigint, state text, token bigint);
CREATE TABLE job_state.edge (from_state text, event text, to_state text);

CREATE FUNCTION job_state.id(text) RETURNS bigint LANGUAGE sql AS
    'SELECT id FROM job_state.job WHERE name = $1';
CREATE FUNCTION job_state.token(text) RETURNS bigint LANGUAGE sql AS
    'SELECT token FROM job_state.job WHERE name = $1';
\getenv tests PG_ABS_SRCDIR
\set until :tests '/sql/include/until.sql'
\set schema job_state
\i :until
-- a new job; without a kind one that only job_claim() takes
CREATE PROCEDURE job_state.new(name text, kind text = 'job_state', queue text = 'job_state',
    args jsonb = '{}', run_at timestamptz = now(), max_attempts int = 5,
    depends_on bigint[] = '{}') LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO job_state.job VALUES (name, swarm.job_enqueue(kind, args, queue,
        run_at => run_at, max_attempts => max_attempts, depends_on => depends_on));
END $$;
CREATE PROCEDURE job_state.at(name text, state text) LANGUAGE plpgsql AS $$
BEGIN
    CALL job_state.until(format('EXISTS (SELECT FROM swarm.jobs WHERE id = %s AND state = %L)',
        job_state.id(name), state));
    UPDATE job_state.job j SET state = at.state WHERE j.name = at.name;
END $$;
-- the job has gone, by this event, to that state
CREATE PROCEDURE job_state.went(name text, event text, state text) LANGUAGE plpgsql AS $$
DECLARE
    was text := (SELECT j.state FROM job_state.job j WHERE j.name = went.name);
BEGIN
    CALL job_state.at(name, state);
    INSERT INTO job_state.edge VALUES (was, event, state);
END $$;
-- lease the job of that name, with all others that are ready
CREATE PROCEDURE job_state.claim(name text) LANGUAGE plpgsql AS $$
BEGIN
    UPDATE job_state.job j SET token = c.token
    FROM swarm.job_claim('job_state', 100, '1 hour') c WHERE j.id = c.id;
    IF job_state.token(name) IS NULL THEN
        RAISE 'job % was not claimed', name;
    END IF;
    CALL job_state.went(name, 'claim', 'running');
END $$;

-- A long backoff, so that a failed job stays what it is; until the runners know.
ALTER SYSTEM SET pg_swarm.job_backoff = '1 h';
SELECT pg_reload_conf();
CREATE PROCEDURE job_state.backoff_known(want text) LANGUAGE plpgsql AS $$
DECLARE
    seen int := 0;
    job bigint;
BEGIN
    WHILE seen < 5 LOOP
        job := swarm.job_enqueue('sql', '{"sql": "SELECT current_setting(''pg_swarm.job_backoff'') AS s"}');
        COMMIT;
        IF (swarm.job_wait(job, '60 s')).result -> 'data' -> 0 ->> 's' = want THEN
            seen := seen + 1;
        ELSE
            seen := 0;
        END IF;
    END LOOP;
END $$;
CALL job_state.backoff_known('1h');
\c -
\set VERBOSITY sqlstate
SHOW pg_swarm.job_backoff;

SELECT swarm.handler_register('job_state', NULL);
SELECT swarm.queue_create('job_state');
SELECT swarm.queue_create('job_state_sql');

-- scheduled, ready, running, completed
CALL job_state.new('a', run_at => now() + '1 hour');
CALL job_state.at('a', 'scheduled');
SELECT swarm._clock_advance('2 hours') > now();
CALL job_state.until('(SELECT ready > 0 FROM swarm.queues WHERE queue = ''job_state'')');
CALL job_state.went('a', 'due', 'ready');
SELECT swarm._clock_advance(NULL) < now() + '1 hour';
CALL job_state.new('b', run_at => now() + '1 day');
CALL job_state.at('b', 'scheduled');
SELECT swarm.job_retry(job_state.id('b'));
CALL job_state.went('b', 'retry', 'ready');
CALL job_state.claim('b');
SELECT swarm.job_complete(job_state.id('b'), job_state.token('b'), '1');
CALL job_state.went('b', 'complete', 'completed');
CALL job_state.new('c', run_at => now() + '1 day');
CALL job_state.at('c', 'scheduled');
SELECT swarm.job_cancel(job_state.id('c'));
CALL job_state.went('c', 'cancel', 'cancelled');

-- blocked
CALL job_state.new('parent', run_at => now() + '1 day');
CALL job_state.new('child', depends_on => ARRAY[job_state.id('parent')]);
CALL job_state.new('orphan', depends_on => ARRAY[job_state.id('parent')]);
CALL job_state.at('child', 'blocked');
CALL job_state.at('orphan', 'blocked');
SELECT swarm.job_cancel(job_state.id('orphan'));
CALL job_state.went('orphan', 'cancel', 'cancelled');
SELECT swarm.job_retry(job_state.id('parent'));
CALL job_state.at('parent', 'ready');
CALL job_state.claim('parent');
SELECT swarm.job_complete(job_state.id('parent'), job_state.token('parent'));
CALL job_state.went('parent', 'complete', 'completed');
CALL job_state.went('child', 'release', 'ready');
SELECT swarm.job_cancel(job_state.id('child'));
CALL job_state.went('child', 'cancel', 'cancelled');
SELECT swarm.job_retry(job_state.id('child'));
CALL job_state.went('child', 'retry', 'ready');

-- failed, dead
CALL job_state.new('d');
CALL job_state.at('d', 'ready');
CALL job_state.claim('d');
SELECT swarm.job_fail(job_state.id('d'), job_state.token('d'), 'once');
CALL job_state.went('d', 'fail', 'failed');
SELECT swarm._clock_advance('1 day') > now();
CALL job_state.until('(SELECT ready > 0 FROM swarm.queues WHERE queue = ''job_state'')');
CALL job_state.went('d', 'due', 'ready');
SELECT swarm._clock_advance(NULL) < now() + '1 hour';
CALL job_state.claim('d');
SELECT swarm.job_fail(job_state.id('d'), job_state.token('d'), 'twice');
CALL job_state.went('d', 'fail', 'failed');
SELECT swarm.job_retry(job_state.id('d'));
CALL job_state.went('d', 'retry', 'ready');
CALL job_state.claim('d');
SELECT swarm.job_fail(job_state.id('d'), job_state.token('d'), 'three times', retry => false);
CALL job_state.went('d', 'exhaust', 'dead');
SELECT state, attempts, error FROM swarm.jobs WHERE id = job_state.id('d');
SELECT swarm.job_retry(job_state.id('d'));
CALL job_state.went('d', 'retry', 'ready');
SELECT state, attempts, error FROM swarm.jobs WHERE id = job_state.id('d');

-- the same with a runner
CALL job_state.new('e', 'sql', 'job_state_sql', '{"sql": "SELECT 1/0"}', max_attempts => 2);
CALL job_state.at('e', 'failed');
SELECT swarm.job_cancel(job_state.id('e'));
CALL job_state.went('e', 'cancel', 'cancelled');
SELECT state, attempts, error FROM swarm.jobs WHERE id = job_state.id('e');
SELECT swarm.job_retry(job_state.id('e'));
CALL job_state.went('e', 'retry', 'failed');
DELETE FROM job_state.edge WHERE (from_state, event, to_state) = ('cancelled', 'retry', 'failed');
SELECT swarm.job_retry(job_state.id('e'));
CALL job_state.at('e', 'dead');
SELECT state, attempts, error FROM swarm.jobs WHERE id = job_state.id('e');
CALL job_state.new('f', 'sql', 'job_state_sql', '{"sql": "SELECT pg_sleep(3600)"}');
CALL job_state.at('f', 'running');
SELECT swarm.job_cancel(job_state.id('f'));
CALL job_state.went('f', 'cancel', 'cancelled');

-- a serialization failure does not count
SELECT swarm.queue_create('job_state_once', max_running => 1);
CREATE FUNCTION job_state.conflict() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(20260101);
    RAISE 'conflict' USING ERRCODE = 'serialization_failure';
END $$;
SELECT pg_advisory_lock(20260101);
CALL job_state.new('g', 'sql', 'job_state_once', '{"sql": "SELECT job_state.conflict()"}');
CALL job_state.at('g', 'running');
SELECT swarm.queue_pause('job_state_once');
SELECT pg_advisory_unlock(20260101);
CALL job_state.went('g', 'requeue', 'ready');
SELECT state, attempts FROM swarm.jobs WHERE id = job_state.id('g');

-- What the table does not have is refused: retry ...
CALL job_state.new('ready', queue => 'job_state_once');
CALL job_state.new('running', 'sql', 'job_state_sql', '{"sql": "SELECT pg_sleep(3600)"}');
CALL job_state.new('blocked', depends_on => ARRAY[job_state.id('running')]);
CALL job_state.at('running', 'running');
SELECT swarm.job_retry(job_state.id('ready'));
SELECT swarm.job_retry(job_state.id('running'));
SELECT swarm.job_retry(job_state.id('blocked'));
SELECT swarm.job_retry(job_state.id('b'));	-- completed
-- ... complete and fail what one does not hold, or not any more
SELECT swarm.job_complete(job_state.id('ready'), 1);
SELECT swarm.job_complete(job_state.id('running'), 1);
SELECT swarm.job_complete(job_state.id('blocked'), 1);
SELECT swarm.job_complete(job_state.id('b'), job_state.token('b'));
SELECT swarm.job_fail(job_state.id('b'), job_state.token('b'), 'late');
SELECT swarm.job_fail(job_state.id('d'), job_state.token('d'), 'late');
SELECT swarm.job_heartbeat(job_state.id('d'), job_state.token('d'));
-- ... and cancel what has ended
SELECT swarm.job_cancel(job_state.id('b')), swarm.job_cancel(job_state.id('c')),
       swarm.job_cancel(job_state.id('e'));
-- ... and there must be such a job
SELECT swarm.job_retry(-1);
SELECT swarm.job_cancel(-1);
SELECT swarm.job_wait(-1);
SELECT swarm.job_complete(-1, 1);

-- No edge is left, and none was seen that is not in the table.
SELECT from_state, event, to_state FROM swarm._job_transitions()
EXCEPT SELECT * FROM job_state.edge;
SELECT * FROM job_state.edge
EXCEPT SELECT from_state, event, to_state FROM swarm._job_transitions();

SELECT count(*) > 0 FROM (SELECT swarm.job_cancel(j.id) FROM swarm.jobs j
    WHERE queue LIKE 'job_state%' AND finished_at IS NULL) c;
CALL job_state.until('NOT EXISTS (SELECT FROM swarm.jobs WHERE queue LIKE ''job_state%'' AND finished_at IS NULL)');
ALTER SYSTEM RESET pg_swarm.job_backoff;
SELECT pg_reload_conf();
CALL job_state.backoff_known('1s');
SELECT swarm.queue_drop('job_state'), swarm.queue_drop('job_state_sql'), swarm.queue_drop('job_state_once');
SELECT swarm.handler_drop('job_state');
SET client_min_messages = warning;
DROP SCHEMA job_state CASCADE;
