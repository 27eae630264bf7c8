-- health, processes, and what every public object owes its users
CREATE SCHEMA worker_views;
\getenv tests PG_ABS_SRCDIR
\set until :tests '/sql/include/until.sql'
\set schema worker_views
\i :until
-- the processes start while we do
CALL worker_views.until('count(*) = 5 FROM swarm.health() WHERE ok AND name IN (''preload'', ''primary'', ''launcher'', ''database served'', ''jobs released'')');
SELECT name, ok FROM swarm.health() WHERE name IN ('preload', 'primary', 'launcher', 'database served', 'jobs released') ORDER BY name;
SELECT count(*) > 5 AS checks, bool_and(detail <> '') AS details FROM swarm.health();
SELECT role, count(*) >= 1 AS some FROM swarm.workers
WHERE role = 'launcher' OR role = 'scheduler' AND database = current_database() GROUP BY role ORDER BY role;
SELECT bool_and(a.pid IS NOT NULL) AS all_are_backends
FROM swarm.workers w LEFT JOIN pg_stat_activity a ON a.pid = w.pid AND a.backend_type = 'pg_swarm ' || w.role
WHERE w.role = 'launcher' OR w.role = 'scheduler' AND w.database = current_database();

-- a running job is seen by id, with progress
CREATE FUNCTION worker_views.wait(job swarm.job) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    PERFORM swarm.job_progress(0.25, 'waiting');
    PERFORM pg_advisory_xact_lock(4714);
    RETURN '{"done": true}';
END $$;
SELECT swarm.handler_register('worker_views', 'worker_views.wait');
SELECT pg_advisory_lock(4714);
SELECT swarm.job_enqueue('worker_views', '{"a": 1}') AS id \gset
CALL worker_views.until(format('EXISTS (SELECT FROM swarm.workers WHERE job = %s AND message = %L)', :id, 'waiting'));
SELECT role, state, kind, attempt, progress, message FROM swarm.workers WHERE job = :id;
SELECT state, progress, message, attempts FROM swarm.jobs WHERE id = :id;
SELECT a.query = 'job ' || :id || ' (attempt 1)' AS shown FROM pg_stat_activity a JOIN swarm.workers w USING (pid) WHERE w.job = :id;
SELECT pg_advisory_unlock(4714);
SELECT state, result FROM swarm.job_wait(:id, '60 s');
SELECT swarm.handler_drop('worker_views');
DROP SCHEMA worker_views CASCADE;

-- every public object has a comment
SELECT p.oid::regprocedure FROM pg_proc p
WHERE p.pronamespace = 'swarm'::regnamespace AND p.proname !~ '^_' AND obj_description(p.oid, 'pg_proc') IS NULL;
SELECT c.oid::regclass FROM pg_class c
WHERE c.relnamespace = 'swarm'::regnamespace AND c.relname !~ '^_' AND c.relkind IN ('r', 'v', 'p')
  AND obj_description(c.oid, 'pg_class') IS NULL;
SELECT t.oid::regtype FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
WHERE t.typnamespace = 'swarm'::regnamespace AND t.typname !~ '^_' AND coalesce(c.relkind, 'c') = 'c'
  AND obj_description(t.oid, 'pg_type') IS NULL;

-- what PUBLIC may call, and read; nothing that it may write but its own schedules
SELECT p.proname FROM pg_proc p
WHERE p.pronamespace = 'swarm'::regnamespace AND has_function_privilege('pg_read_all_stats', p.oid, 'EXECUTE')
ORDER BY 1;
SELECT c.relname, string_agg(p, ' ' ORDER BY p) AS writes
FROM pg_class c, unnest('{INSERT,UPDATE,DELETE,TRUNCATE}'::text[]) p
WHERE c.relnamespace = 'swarm'::regnamespace AND c.relkind IN ('r', 'p', 'v')
  AND has_table_privilege('pg_read_all_stats', c.oid, p)
GROUP BY 1 ORDER BY 1;
SELECT c.relname FROM pg_class c
WHERE c.relnamespace = 'swarm'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname !~ '[0-9]{8}$'
  AND has_table_privilege('pg_read_all_stats', c.oid, 'SELECT') AND NOT c.relrowsecurity
ORDER BY 1;
-- no sequence either
SELECT oid::regclass FROM pg_class WHERE relnamespace = 'swarm'::regnamespace AND relkind = 'S'
    AND CASE WHEN relkind = 'S' THEN has_sequence_privilege('public', oid, 'USAGE, UPDATE') END ORDER BY 1;
-- functions in SQL and PL/pgSQL have a fixed search_path, unless their body is parsed already
SELECT oid::regprocedure AS loose FROM pg_proc WHERE pronamespace = 'swarm'::regnamespace
    AND prolang IN (SELECT oid FROM pg_language WHERE lanname IN ('sql', 'plpgsql'))
    AND prosqlbody IS NULL AND NOT coalesce(proconfig::text LIKE '%search_path=pg_catalog, pg_temp%', false) ORDER BY 1;

-- handlers of the extension's own kinds are for runners, whatever they are given
CALL swarm._s3_run(NULL);
CALL swarm._llm_run(NULL);
CALL swarm._memory_fill(NULL);
CALL swarm._agent_work(NULL);
CALL swarm._agent_work(ROW(NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL)::swarm.job);
SELECT swarm._query_run(ROW(NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL)::swarm.job);
