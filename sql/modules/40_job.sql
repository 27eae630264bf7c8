-- 40_job.sql: the job store.
--
-- src/job/README.md explains the tables; docs/reference/job.md the functions.
-- C code forms rows of _job and _job_history by position: job_store.c.

CREATE TYPE swarm.priority AS ENUM ('low', 'medium', 'high', 'critical');
COMMENT ON TYPE swarm.priority IS 'priority of a job';

CREATE TYPE swarm.job_state AS ENUM ('scheduled', 'blocked', 'ready', 'running',
    'completed', 'failed', 'dead', 'cancelled');
COMMENT ON TYPE swarm.job_state IS 'state of a job; swarm._job_transitions() lists the ways between them';

-- ---------------------------------------------------------------------
-- Tables
-- ---------------------------------------------------------------------

-- Queues with settings. Queue 1, "default", exists without a row.
CREATE SEQUENCE swarm._queue_id_seq AS int START 16;
CREATE TABLE swarm._queue (
    id int PRIMARY KEY DEFAULT nextval('swarm._queue_id_seq'),
    name text NOT NULL UNIQUE,
    owner regrole NOT NULL,
    max_running int,
    rate_limit int,
    rate_period interval NOT NULL DEFAULT '1 s',
    notify boolean NOT NULL DEFAULT false,
    batch int NOT NULL DEFAULT 1,
    dependency_failure text NOT NULL DEFAULT 'cancel',
    group_commit boolean NOT NULL DEFAULT false,
    paused boolean NOT NULL DEFAULT false
);

-- Kinds of jobs. Kind 1, "sql", exists without a row. A kind without a
-- handler belongs to workers outside the server (swarm.job_claim).
CREATE SEQUENCE swarm._handler_id_seq AS int START 16;
CREATE TABLE swarm._handler (
    id int PRIMARY KEY DEFAULT nextval('swarm._handler_id_seq'),
    kind text NOT NULL UNIQUE,
    owner regrole NOT NULL,
    handler text,
    max_running int,
    rate interval
);

-- Live jobs: inserted at enqueue, deleted at the end, never updated. The
-- primary key is the only index: nothing walks over dead entries.
CREATE SEQUENCE swarm._job_id_seq;
CREATE TABLE swarm._job (
    id bigint PRIMARY KEY,
    queue int NOT NULL,
    kind int NOT NULL,
    owner regrole NOT NULL,
    priority int2 NOT NULL,
    max_attempts int NOT NULL,
    timeout_us bigint NOT NULL,
    run_at timestamptz NOT NULL,
    enqueued_at timestamptz NOT NULL,
    blocked boolean NOT NULL,
    unique_key text,
    args jsonb NOT NULL,
    tags jsonb NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_insert_scale_factor = 0.2, vacuum_index_cleanup = on);

-- What a failed attempt leaves behind; no row until the first failure.
CREATE TABLE swarm._job_attempt (
    id bigint PRIMARY KEY,
    attempts int NOT NULL,
    run_at timestamptz NOT NULL,
    error text,
    crashed boolean NOT NULL DEFAULT false
) WITH (fillfactor = 80);

-- Which job waits for which. Written by enqueue, settled by the scheduler.
CREATE TABLE swarm._job_dep (
    child bigint,
    parent bigint,
    PRIMARY KEY (child, parent)
);
CREATE INDEX _job_dep_parent ON swarm._job_dep (parent);

-- Unique keys of live jobs.
CREATE TABLE swarm._job_key (
    owner regrole,
    queue int,
    key text,
    job bigint NOT NULL,
    PRIMARY KEY (owner, queue, key)
);

-- Finished jobs, by day of finishing (UTC). Partitions are made when needed
-- and dropped by age (job_history.c). They are no members of the extension,
-- so that pg_dump takes them along; each has an index on id, which the parent
-- must not have: a dump could not bring its own.
CREATE TABLE swarm._job_history (
    id bigint NOT NULL,
    queue text NOT NULL,
    kind text NOT NULL,
    owner regrole NOT NULL,
    priority int2 NOT NULL,
    state int2 NOT NULL,
    attempts int NOT NULL,
    max_attempts int NOT NULL,
    timeout_us bigint NOT NULL,
    run_at timestamptz NOT NULL,
    enqueued_at timestamptz NOT NULL,
    started_at timestamptz,
    finished_at timestamptz NOT NULL,
    unique_key text,
    args jsonb NOT NULL,
    tags jsonb NOT NULL,
    result jsonb,
    error text
) PARTITION BY RANGE (finished_at);

-- Which database this is: differs after CREATE DATABASE ... TEMPLATE. Jobs
-- are held in a copy and after a restore until swarm.jobs_resume().
CREATE TABLE swarm._instance (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    database oid NOT NULL,
    held boolean NOT NULL DEFAULT false
);
INSERT INTO swarm._instance (database)
SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database();

-- pg_dump takes these along; day partitions of the history it finds itself.
SELECT pg_catalog.pg_extension_config_dump('swarm._queue_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._queue', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._handler_id_seq', '');
-- (kinds below 16 belong to the extension)
SELECT pg_catalog.pg_extension_config_dump('swarm._handler', 'WHERE id >= 16');
SELECT pg_catalog.pg_extension_config_dump('swarm._job_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._job', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._job_attempt', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._job_dep', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._job_key', '');

-- Rows that did not come through swarm.job_enqueue (a restored dump, COPY)
-- are found by the sweep; enqueue writes past this trigger.
CREATE FUNCTION swarm._job_table_changed() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'swarm_job_table_changed';
CREATE TRIGGER job_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON swarm._job
    FOR EACH STATEMENT EXECUTE FUNCTION swarm._job_table_changed();
ALTER TABLE swarm._job ENABLE ALWAYS TRIGGER job_changed;
CREATE TRIGGER config_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON swarm._queue
    FOR EACH STATEMENT EXECUTE FUNCTION swarm._job_table_changed();
ALTER TABLE swarm._queue ENABLE ALWAYS TRIGGER config_changed;
CREATE TRIGGER config_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON swarm._handler
    FOR EACH STATEMENT EXECUTE FUNCTION swarm._job_table_changed();
ALTER TABLE swarm._handler ENABLE ALWAYS TRIGGER config_changed;
CREATE TRIGGER config_changed AFTER UPDATE ON swarm._instance
    FOR EACH STATEMENT EXECUTE FUNCTION swarm._job_table_changed();
ALTER TABLE swarm._instance ENABLE ALWAYS TRIGGER config_changed;

-- ---------------------------------------------------------------------
-- Who sees which job: its owner, and members of the owner role
-- ---------------------------------------------------------------------

ALTER TABLE swarm._job ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._job FOR SELECT
    USING (pg_catalog.pg_has_role(owner::oid, 'USAGE'));
ALTER TABLE swarm._job_history ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._job_history FOR SELECT
    USING (pg_catalog.pg_has_role(owner::oid, 'USAGE'));
ALTER TABLE swarm._job_attempt ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._job_attempt FOR SELECT
    USING (EXISTS (SELECT FROM swarm._job j WHERE j.id = _job_attempt.id));
ALTER TABLE swarm._job_dep ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._job_dep FOR SELECT
    USING (EXISTS (SELECT FROM swarm._job j WHERE j.id = _job_dep.child));

-- ---------------------------------------------------------------------
-- Types
-- ---------------------------------------------------------------------

CREATE TYPE swarm.job AS (
    id bigint,
    queue text,
    kind text,
    args jsonb,
    attempt int,
    max_attempts int,
    priority swarm.priority,
    unique_key text,
    tags jsonb,
    enqueued_at timestamptz,
    run_at timestamptz
);
COMMENT ON TYPE swarm.job IS 'a running job, as its handler sees it; attempt counts from 1';

CREATE TYPE swarm.job_status AS (
    id bigint,
    state swarm.job_state,
    result jsonb,
    error text,
    attempts int,
    max_attempts int,
    enqueued_at timestamptz,
    run_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz
);
COMMENT ON TYPE swarm.job_status IS 'what swarm.job_wait() returns';

CREATE TYPE swarm.job_claim AS (
    id bigint,
    token bigint,
    kind text,
    args jsonb,
    attempt int
);
COMMENT ON TYPE swarm.job_claim IS 'a job leased to a worker outside the server';

-- ---------------------------------------------------------------------
-- Enqueue, wait, control
-- ---------------------------------------------------------------------

CREATE FUNCTION swarm.job_enqueue(kind text, args jsonb = '{}', queue text = 'default',
    priority swarm.priority = 'medium', run_at timestamptz = now(), max_attempts int = 5,
    timeout interval = '5 min', unique_key text = NULL, depends_on bigint[] = '{}',
    tags jsonb = '{}')
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_job_enqueue';
COMMENT ON FUNCTION swarm.job_enqueue IS 'add a job; it runs, as the current role, after this transaction commits';

CREATE FUNCTION swarm.job_enqueue_many(jobs jsonb) RETURNS SETOF bigint
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_job_enqueue_many';
COMMENT ON FUNCTION swarm.job_enqueue_many IS 'add the jobs of a JSON array; the keys are the arguments of job_enqueue';

CREATE FUNCTION swarm.job_wait(id bigint, timeout interval = '1 min') RETURNS swarm.job_status
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_job_wait';
COMMENT ON FUNCTION swarm.job_wait IS 'wait until a job is completed, dead or cancelled, or the timeout is over, and return its status';

CREATE FUNCTION swarm.job_cancel(id bigint, reason text = NULL) RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_job_cancel';
COMMENT ON FUNCTION swarm.job_cancel IS 'cancel a job: a waiting one at commit, a running one at once; false if it had ended';

CREATE FUNCTION swarm.job_retry(id bigint) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_job_retry';
COMMENT ON FUNCTION swarm.job_retry IS 'run a dead or cancelled job again, or a scheduled or failed one now';

CREATE FUNCTION swarm.job_progress(fraction float8, message text = NULL) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_job_progress';
COMMENT ON FUNCTION swarm.job_progress IS 'for a handler: show how far the running job is, 0 to 1';

-- The same two as part of another operation, whose hooks are called instead.
CREATE FUNCTION swarm._job_cancel(id bigint, reason text) RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_job_cancel';
CREATE FUNCTION swarm._job_progress(fraction float8, message text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_job_progress';

-- ---------------------------------------------------------------------
-- Kinds and queues
-- ---------------------------------------------------------------------

CREATE FUNCTION swarm.handler_register(kind text, handler regproc, max_running int = NULL,
    rate interval = NULL)
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_handler_register';
COMMENT ON FUNCTION swarm.handler_register IS 'define a kind of jobs, or change it; handler NULL: its jobs are for workers outside the server';

CREATE FUNCTION swarm.handler_drop(kind text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_handler_drop';
COMMENT ON FUNCTION swarm.handler_drop IS 'remove a kind that has no live jobs';

CREATE FUNCTION swarm.queue_create(name text, max_running int = NULL, rate_limit int = NULL,
    rate_period interval = '1 s', notify boolean = false, batch int = 1,
    dependency_failure text = 'cancel', group_commit boolean = false)
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_queue_create';
COMMENT ON FUNCTION swarm.queue_create IS 'create a queue, or change the settings of one';

CREATE FUNCTION swarm.queue_pause(name text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_queue_pause';
COMMENT ON FUNCTION swarm.queue_pause IS 'start no more jobs of a queue; running ones go on';

CREATE FUNCTION swarm.queue_resume(name text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_queue_resume';
COMMENT ON FUNCTION swarm.queue_resume IS 'let a paused queue go on';

CREATE FUNCTION swarm.queue_drop(name text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_queue_drop';
COMMENT ON FUNCTION swarm.queue_drop IS 'remove a queue that has no live jobs';

-- swarm.jobs_resume(): let the jobs of a copied or restored database run.
-- Writes _instance.
CREATE FUNCTION swarm._jobs_resume() RETURNS void
LANGUAGE sql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'UPDATE swarm._instance SET held = false WHERE held';

CREATE FUNCTION swarm.jobs_resume() RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_jobs_resume';
COMMENT ON FUNCTION swarm.jobs_resume IS 'let jobs run that are held because the database was copied or restored from a dump';

-- ---------------------------------------------------------------------
-- Workers outside the server
-- ---------------------------------------------------------------------

CREATE FUNCTION swarm.job_claim(queue text, n int = 1, lease interval = '30 s')
RETURNS SETOF swarm.job_claim LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_job_claim';
COMMENT ON FUNCTION swarm.job_claim IS 'lease up to n ready jobs whose kind has no handler';

CREATE FUNCTION swarm.job_heartbeat(id bigint, token bigint, lease interval = '30 s',
    fraction float8 = NULL)
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_job_heartbeat';
COMMENT ON FUNCTION swarm.job_heartbeat IS 'keep a leased job for another lease';

CREATE FUNCTION swarm.job_complete(id bigint, token bigint, result jsonb = NULL) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_job_complete';
COMMENT ON FUNCTION swarm.job_complete IS 'a leased job is done; takes effect at commit';

CREATE FUNCTION swarm.job_fail(id bigint, token bigint, error text, retry boolean = true) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_job_fail';
COMMENT ON FUNCTION swarm.job_fail IS 'a leased job failed; it is tried again, or dead if retry is false or it was the last attempt';

-- ---------------------------------------------------------------------
-- Views
-- ---------------------------------------------------------------------

CREATE FUNCTION swarm._job_transitions(OUT from_state text, OUT event text, OUT to_state text, OUT why text)
RETURNS SETOF record LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'swarm_job_transition_list';

CREATE FUNCTION swarm._job_running(OUT id bigint, OUT attempt int, OUT started_at timestamptz,
    OUT worker int, OUT fraction float8, OUT message text)
RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 10
AS 'MODULE_PATHNAME', 'swarm_job_running';

CREATE FUNCTION swarm._job_queues(OUT queue int, OUT ready int, OUT running int, OUT oldest timestamptz,
    OUT started bigint, OUT finished bigint, OUT in_memory int, OUT complete boolean, OUT rate float8)
RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 10
AS 'MODULE_PATHNAME', 'swarm_job_queues';

CREATE VIEW swarm.jobs WITH (security_invoker = true) AS
SELECT j.id,
       coalesce(q.name, 'default') AS queue,
       coalesce(h.kind, 'sql') AS kind,
       (CASE WHEN r.id IS NOT NULL THEN 'running'
             WHEN d.depends_on IS NOT NULL THEN 'blocked'
             WHEN coalesce(a.run_at, j.run_at) > swarm._now() THEN
                 CASE WHEN a.attempts > 0 THEN 'failed' ELSE 'scheduled' END
             ELSE 'ready' END)::swarm.job_state AS state,
       (enum_range(NULL::swarm.priority))[j.priority + 1] AS priority,
       j.owner,
       j.args,
       j.tags,
       j.unique_key,
       d.depends_on,
       coalesce(r.attempt, a.attempts, 0) AS attempts,
       j.max_attempts,
       CASE WHEN j.timeout_us > 0 THEN make_interval(secs => j.timeout_us / 1e6) END AS timeout,
       j.enqueued_at,
       coalesce(a.run_at, j.run_at) AS run_at,
       r.started_at,
       NULL::timestamptz AS finished_at,
       r.worker,
       r.fraction AS progress,
       r.message,
       NULL::jsonb AS result,
       a.error
FROM swarm._job j
LEFT JOIN swarm._queue q ON q.id = j.queue
LEFT JOIN swarm._handler h ON h.id = j.kind
LEFT JOIN swarm._job_attempt a ON a.id = j.id
LEFT JOIN LATERAL (SELECT array_agg(parent ORDER BY parent) AS depends_on
                   FROM swarm._job_dep WHERE j.blocked AND child = j.id) d ON true
LEFT JOIN swarm._job_running() r ON r.id = j.id
UNION ALL
SELECT id, queue, kind, (enum_range(NULL::swarm.job_state))[state + 1],
       (enum_range(NULL::swarm.priority))[priority + 1], owner, args, tags, unique_key, NULL,
       attempts, max_attempts,
       CASE WHEN timeout_us > 0 THEN make_interval(secs => timeout_us / 1e6) END,
       enqueued_at, run_at, started_at, finished_at, NULL, NULL, NULL, result, error
FROM swarm._job_history;
COMMENT ON VIEW swarm.jobs IS 'all jobs that the current role may see, live and finished';

CREATE VIEW swarm.job_history WITH (security_invoker = true) AS
SELECT id, queue, kind, (enum_range(NULL::swarm.job_state))[state + 1] AS state,
       (enum_range(NULL::swarm.priority))[priority + 1] AS priority, owner, args, tags, unique_key,
       attempts, max_attempts,
       CASE WHEN timeout_us > 0 THEN make_interval(secs => timeout_us / 1e6) END AS timeout,
       enqueued_at, run_at, started_at, finished_at, finished_at - started_at AS duration,
       result, error
FROM swarm._job_history;
COMMENT ON VIEW swarm.job_history IS 'finished jobs, kept for pg_swarm.job_history_keep';

-- What the scheduler does once a day: partitions of the history of today and tomorrow, and the end of
-- those that are too old. For pg_cron (swarm.maintenance_schedule).
CREATE FUNCTION swarm._job_history_maintain() RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm__job_history_maintain';

CREATE VIEW swarm.queues AS
SELECT coalesce(q.name, 'default') AS queue,
       q.owner,
       coalesce(q.paused, false) AS paused,
       q.max_running,
       q.rate_limit,
       coalesce(q.rate_period, '1 s') AS rate_period,
       coalesce(q.batch, 1) AS batch,
       coalesce(q.notify, false) AS notify,
       coalesce(q.dependency_failure, 'cancel') AS dependency_failure,
       coalesce(q.group_commit, false) AS group_commit,
       coalesce(m.ready, 0) AS ready,
       coalesce(m.running, 0) AS running,
       coalesce(m.in_memory, 0) AS depth,
       coalesce(m.complete, false) AS depth_complete,
       m.oldest,
       swarm._now() - m.oldest AS oldest_age,
       coalesce(m.started, 0) AS started,
       coalesce(m.finished, 0) AS finished,
       round(coalesce(m.rate, 0)::numeric, 2) AS finished_per_second
FROM (SELECT * FROM swarm._queue
      UNION ALL
      SELECT 1, 'default', NULL, NULL, NULL, '1 s', false, 1, 'cancel', false, false
      WHERE NOT EXISTS (SELECT FROM swarm._queue WHERE id = 1)) q
LEFT JOIN swarm._job_queues() m ON m.queue = q.id;
COMMENT ON VIEW swarm.queues IS 'queues with their settings, jobs in memory and counters since server start';
