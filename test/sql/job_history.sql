-- Finished jobs: one partition a day (UTC), dropped by age.
\set VERBOSITY terse
CREATE SCHEMA job_history;
-- wait with the clock going on: the scheduler, which does not wait long for a lock, tries again later
CREATE PROCEDURE job_history.until_later(condition text) LANGUAGE plpgsql AS $$
DECLARE
    ok boolean;
BEGIN
    FOR i IN 1 .. 600 LOOP
        EXECUTE 'SELECT ' || condition INTO ok;
        IF ok THEN
            RETURN;
        END IF;
        COMMIT;
        PERFORM pg_sleep(0.1);
        IF i % 10 = 0 THEN
            PERFORM swarm._clock_advance('11 min');
        END IF;
        COMMIT;
    END LOOP;
    RAISE 'never: %', condition;
END $$;
CREATE FUNCTION job_history.name_of(at timestamptz) RETURNS text LANGUAGE sql AS
    $$ SELECT '_job_history_' || to_char(at AT TIME ZONE 'UTC', 'YYYYMMDD') $$;
CREATE FUNCTION job_history.partitions() RETURNS SETOF text LANGUAGE sql AS
    $$ SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
       WHERE i.inhparent = 'swarm._job_history'::regclass $$;
SET search_path = job_history;

-- A job that ends leaves the table of live ones for the partition of its day, in its last transaction.
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1 AS x"}', tags => '{"t": 1}', unique_key => 'job_history') AS job \gset
SELECT state, attempts, result, error FROM swarm.job_wait(:job, '60 s');
SELECT queue, kind, state, priority, owner = current_user::regrole AS mine, args, tags, unique_key, attempts, max_attempts,
       timeout, result, error FROM swarm.job_history WHERE id = :job;
SELECT count(*) FROM swarm._job WHERE id = :job;
SELECT enqueued_at <= started_at AND started_at <= finished_at AND duration = finished_at - started_at AS ordered,
       run_at <= started_at AS due FROM swarm.job_history WHERE id = :job;
SELECT h.tableoid::regclass::text = 'swarm.' || name_of(finished_at) AS routed FROM swarm._job_history h WHERE id = :job;
SELECT count(*) FROM swarm.jobs WHERE id = :job;
-- that of the next day is there before the day is, each has its index
SELECT name_of(swarm._now()) IN (SELECT partitions()) AS today,
       name_of(swarm._now() + '1 day') IN (SELECT partitions()) AS tomorrow;
SELECT count(*) > 0 AS any, bool_and((SELECT count(*) = 1 FROM pg_index i WHERE i.indrelid = ('swarm.' || p)::regclass)) AS indexed
FROM partitions() p;
-- not for the eyes of everybody
SELECT bool_or(has_table_privilege('public', ('swarm.' || p)::regclass, 'SELECT')) AS public FROM partitions() p;

-- A new day, for a runner ...
SELECT swarm._clock_advance('3 days') > now();
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1/0"}', max_attempts => 1) AS job \gset
SELECT state, error FROM swarm.job_wait(:job, '60 s');
SELECT h.tableoid::regclass::text = 'swarm.' || name_of(finished_at) AS routed, finished_at > now() + '2 days' AS later
FROM swarm._job_history h WHERE id = :job;
-- ... and for any session, wherever it thinks it is
SET TimeZone = 'Pacific/Kiritimati';
SET DateStyle = 'German';
SELECT swarm.job_enqueue('sql', run_at => '2200-01-01') AS job \gset
SELECT swarm._clock_advance('2 days') > now();
SELECT swarm.job_cancel(:job);
SELECT h.tableoid::regclass::text = 'swarm.' || name_of(finished_at) AS routed FROM swarm._job_history h WHERE id = :job;
RESET TimeZone;
RESET DateStyle;
SELECT bool_and(pg_get_expr(c.relpartbound, c.oid) = format('FOR VALUES FROM (%L) TO (%L)',
    to_date(right(c.relname, 8), 'YYYYMMDD')::timestamp AT TIME ZONE 'UTC',
    (to_date(right(c.relname, 8), 'YYYYMMDD') + 1)::timestamp AT TIME ZONE 'UTC')) AS whole_days
FROM pg_class c WHERE c.relname IN (SELECT partitions());
-- a rolled back end leaves nothing
SELECT swarm.job_enqueue('sql', run_at => '2200-01-01') AS job \gset
SELECT swarm._clock_advance('2 days') > now();
BEGIN;
SELECT swarm.job_cancel(:job);
SELECT state FROM swarm.jobs WHERE id = :job;
ROLLBACK;
SELECT state FROM swarm.jobs WHERE id = :job;
SELECT swarm.job_cancel(:job);

-- By age: a day goes when all of it is older than pg_swarm.job_history_keep.
SHOW pg_swarm.job_history_keep;
SELECT swarm._clock_advance(NULL) > now();
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}') AS job \gset
SELECT state FROM swarm.job_wait(:job, '60 s');
SELECT swarm._clock_advance('6 days') > now();
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 2"}') AS second \gset
SELECT state FROM swarm.job_wait(:second, '60 s');
SELECT count(*) FROM swarm.job_history WHERE id IN (:job, :second);
SELECT swarm._clock_advance('50 hours') > now();
-- nobody runs anything: the clock alone does it
CALL job_history.until_later(format('NOT EXISTS (SELECT FROM swarm.job_history WHERE id = %s)', :job));
SELECT count(*) FROM swarm.job_history WHERE id = :second;
SELECT min(p) >= name_of(swarm._now() - interval '8 days') AS oldest FROM partitions() p WHERE p <= name_of(swarm._now());
-- what is gone does not exist
\set VERBOSITY sqlstate
SELECT swarm.job_wait(:job);
SELECT swarm.job_retry(:job);
SELECT swarm.job_enqueue('sql', depends_on => ARRAY[:job]);
\set VERBOSITY terse
-- after a long pause they all go at once, but for the day of a parent for which a child waits
SELECT swarm.queue_create('job_history', dependency_failure => 'wait');
BEGIN;
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1/0"}', max_attempts => 1) AS parent \gset
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', 'job_history', depends_on => ARRAY[:parent]) AS child \gset
COMMIT;
SELECT state FROM swarm.job_wait(:parent, '60 s');
SELECT swarm._clock_advance('30 days') > now();
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 3"}') AS job \gset
SELECT state FROM swarm.job_wait(:job, '60 s');
CALL job_history.until_later('(SELECT count(*) <= 4 FROM job_history.partitions())');
SELECT state FROM swarm.job_history WHERE id = :parent;
SELECT count(*) FROM swarm.job_history WHERE id = :second;
SELECT count(*) FROM swarm.job_history WHERE id = :job;
-- if it is removed by hand, nothing says that it has completed; the new scheduler looks at all
DELETE FROM swarm._job_history WHERE id = :parent;
SELECT pid AS scheduler FROM swarm.workers WHERE role = 'scheduler' AND database = current_database() \gset
SELECT pg_terminate_backend(:scheduler);
CALL job_history.until_later(format('EXISTS (SELECT FROM swarm.workers WHERE role = ''scheduler'' AND database = current_database() AND pid <> %s)', :scheduler));
BEGIN;
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}') AS parent \gset
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', depends_on => ARRAY[:parent]) AS last \gset
COMMIT;
SELECT state FROM swarm.job_wait(:last, '60 s');
SELECT state FROM swarm.jobs WHERE id = :child;
SELECT swarm.job_cancel(:child);
SELECT swarm.queue_drop('job_history');

SELECT swarm._clock_advance(NULL) > now();
-- back in the present all goes on
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 4"}') AS job \gset
SELECT state FROM swarm.job_wait(:job, '60 s');
SELECT h.tableoid::regclass::text = 'swarm.' || name_of(finished_at) AS routed FROM swarm._job_history h WHERE id = :job;
SELECT count(*) FROM swarm._job;
RESET search_path;
SET client_min_messages = warning;
DROP SCHEMA job_history CASCADE;
