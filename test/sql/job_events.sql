-- NOTIFY swarm_events: for queues that ask for it, by the worker and never by the enqueuing transaction.
\set VERBOSITY terse
SELECT swarm.queue_create('job_events', notify => true, batch => 10), swarm.queue_create('job_silent'),
       swarm.queue_create('job "events"', notify => true), swarm.handler_register('job_events', NULL);
-- The scheduler sends events as the last step of a turn; each of these takes a turn of its own.
CREATE PROCEDURE job_events_sent() LANGUAGE plpgsql AS $$
DECLARE
    job bigint;
BEGIN
    FOR i IN 1 .. 3 LOOP
        job := swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', depends_on => ARRAY[swarm.job_enqueue('sql', '{"sql": "SELECT 1"}')]);
        COMMIT;
        IF (swarm.job_wait(job, '60 s')).state <> 'completed' THEN
            RAISE 'did not run';
        END IF;
    END LOOP;
END $$;
LISTEN swarm_events;
-- enqueueing says nothing, not even to oneself
SELECT swarm.job_enqueue('job_events', queue => 'job_events', run_at => '2200-01-01') AS waits \gset
CALL job_events_sent();
SELECT 1 AS nothing;
-- completed, dead, cancelled, failed; a silent queue is silent
-- the output of psql tells a process id and we know the jobs by name
\o | grep swarm_events | sed -E 's/ received from server process with PID [0-9]+//; s/"job": [0-9]+/"job": N/' | sort
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', 'job_silent') AS silent,
       swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', 'job_events') AS completed,
       swarm.job_enqueue('sql', '{"sql": "SELECT 1/0"}', 'job_events', max_attempts => 1) AS dead,
       swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', 'job "events"') AS quoted \gset
SELECT WHERE (swarm.job_wait(:silent, '60 s')).state IS NULL;
SELECT WHERE (swarm.job_wait(:completed, '60 s')).state IS NULL;
SELECT WHERE (swarm.job_wait(:dead, '60 s')).state IS NULL;
SELECT WHERE (swarm.job_wait(:quoted, '60 s')).state IS NULL;
CALL job_events_sent();
SELECT WHERE false;
\o
\o | grep swarm_events | sed -E 's/ received from server process with PID [0-9]+//; s/"job": [0-9]+/"job": N/' | sort
SELECT WHERE NOT swarm.job_cancel(:waits);
CALL job_events_sent();
SELECT WHERE false;
\o
-- of leased jobs, too
SELECT swarm.job_enqueue('job_events', queue => 'job_events') AS job \gset
SELECT token FROM swarm.job_claim('job_events', 1, '1 hour') \gset
-- (its next attempt will be due in half an hour)
SELECT swarm._clock_advance('30 min') IS NOT NULL AS later;
\o | grep swarm_events | sed -E 's/ received from server process with PID [0-9]+//; s/"job": [0-9]+/"job": N/' | sort
SELECT WHERE swarm.job_fail(:job, :token, 'once') IS NULL;
CALL job_events_sent();
SELECT WHERE false;
\o
SELECT swarm._clock_advance(NULL) IS NOT NULL AS now;
SELECT swarm.job_retry(:job);
SELECT token FROM swarm.job_claim('job_events', 1, '1 hour') \gset
\o | grep swarm_events | sed -E 's/ received from server process with PID [0-9]+//; s/"job": [0-9]+/"job": N/' | sort
SELECT WHERE swarm.job_complete(:job, :token) IS NULL;
CALL job_events_sent();
SELECT WHERE false;
\o
-- switched off
SELECT swarm.queue_create('job_events', notify => false);
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', 'job_events') AS job \gset
SELECT state FROM swarm.job_wait(:job, '60 s');
CALL job_events_sent();
SELECT 1 AS nothing;
UNLISTEN *;
SELECT count(*) FROM swarm._job;
SELECT swarm.queue_drop('job_events'), swarm.queue_drop('job_silent'), swarm.queue_drop('job "events"'), swarm.handler_drop('job_events');
DROP PROCEDURE job_events_sent;
