-- 60_worker.sql: processes and health.

CREATE FUNCTION swarm._worker_processes(OUT role text, OUT pid int, OUT datid oid, OUT slot int,
    OUT generation bigint, OUT state text, OUT since timestamptz, OUT job bigint, OUT attempt int,
    OUT kind int, OUT job_owner oid, OUT job_started timestamptz, OUT fraction float8,
    OUT message text, OUT jobs_done bigint, OUT chore text, OUT chore_object oid, OUT runs_as oid)
RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 10
AS 'MODULE_PATHNAME', 'swarm_worker_processes';

CREATE VIEW swarm.workers AS
SELECT w.role, w.pid, d.datname AS database, w.slot, w.generation, w.state, w.since,
       w.runs_as::regrole AS runs_as,
       w.job,
       CASE WHEN w.datid = (SELECT oid FROM pg_database WHERE datname = current_database())
            THEN coalesce(h.kind, CASE WHEN w.kind = 1 THEN 'sql' END) END AS kind,
       w.attempt,
       CASE WHEN w.job IS NOT NULL THEN w.job_owner::regrole END AS job_owner,
       w.job_started,
       w.fraction AS progress,
       w.message,
       w.jobs_done,
       w.chore,
       CASE WHEN w.datid = (SELECT oid FROM pg_database WHERE datname = current_database())
            THEN w.chore_object::regclass END AS chore_object,
       a.wait_event_type, a.wait_event, a.query_start, a.xact_start, a.backend_start
FROM swarm._worker_processes() w
LEFT JOIN pg_database d ON d.oid = w.datid
LEFT JOIN pg_stat_activity a ON a.pid = w.pid
LEFT JOIN swarm._handler h ON h.id = w.kind
     AND w.datid = (SELECT oid FROM pg_database WHERE datname = current_database());
COMMENT ON VIEW swarm.workers IS 'the launcher, and the scheduler and runners of every database, with what each one does';

CREATE FUNCTION swarm.health(OUT name text, OUT ok boolean, OUT detail text, OUT hint text)
RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'swarm_worker_health';
COMMENT ON FUNCTION swarm.health IS 'one row per check of what the background part needs, with a hint where something is wrong';

-- Tell the launcher at commit that this database is to be served.
CREATE FUNCTION swarm._installed() RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_worker_installed';
SELECT swarm._installed();
