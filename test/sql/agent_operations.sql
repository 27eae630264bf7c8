-- Every operation of the extension has hooks on both sides.
CREATE SCHEMA agent_operations;
-- what only reads, computes or waits, and what is done by other operations
CREATE TABLE agent_operations.none (name text, why text);
INSERT INTO agent_operations.none SELECT unnest(names), why FROM (VALUES
    ('reads', '{agent_card,agent_find,agent_history,agent_list,agent_schema,agent_status,agent_tools,cost_forecast,experiment_result,flag_enabled,
        health,llm_embeddings,memory_get,memory_get_many,memory_list,memory_search,memory_ttl,optimizer_status,permission_bypass,qhnsw_check,
        qhnsw_recall,qhnsw_scan_stats,qhnsw_stats,query_list,query_result,query_stats,query_status,s3_get,s3_head,s3_list,search_many,
        topology_neighbours}'::text[]),
    ('computes', '{cosine_distance,embed,flag_variant,from_bytea,from_column,from_file,from_large_object,from_query,inner_product,l2_distance,
        llm_count_tokens,message_compress,message_expand,s3_file,s3_presign,simhash,token_estimate,topology_choose}'),
    ('waits', '{job_wait,llm_wait,memory_wait,query_wait,s3_wait,task_wait}'),
    ('does others', '{query_control,query_try}'),
    ('handler of tasks', '{sample_analytics,sample_decide,sample_memory,sample_patterns,sample_search,sample_synchronize}')) x(why, names);
CREATE VIEW agent_operations.functions AS
SELECT DISTINCT p.proname AS name, e.event IS NOT NULL AS hooked
FROM pg_proc p LEFT JOIN swarm._hook_events() e ON e.event = p.proname OR e.what ~ ('\m' || p.proname || '\(\)')
WHERE p.pronamespace = 'swarm'::regnamespace AND p.proname !~ '^_' AND p.prokind IN ('f', 'p');
-- public functions with neither
SELECT name FROM agent_operations.functions WHERE NOT hooked EXCEPT SELECT name FROM agent_operations.none ORDER BY 1;
-- those of the list that have hooks, or do not exist
SELECT name FROM agent_operations.none n WHERE NOT EXISTS (SELECT FROM agent_operations.functions f WHERE f.name = n.name AND NOT f.hooked) ORDER BY 1;
SELECT count(*) > 90 AS many, count(*) = count(DISTINCT event) AS each_once FROM swarm._hook_events();

-- what hooks are told, of functions in C, in SQL and in PL/pgSQL, of sets and of nothing
BEGIN;
CREATE TABLE agent_operations.told (n serial, event text, phase text, role text, data jsonb);
CREATE FUNCTION agent_operations.look(hook jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO agent_operations.told (event, phase, role, data) VALUES (hook->>'event', hook->>'phase', hook->>'role', hook->'data');
    -- calls no hooks
    PERFORM swarm.flag_set('agent_operations in a hook', false);
    RETURN CASE WHEN hook->'data'->>'name' ~ 'forbidden' THEN '{"veto": "forbidden"}'::jsonb END;
END $$;
CREATE FUNCTION agent_operations.broken(hook jsonb) RETURNS void LANGUAGE plpgsql AS $$BEGIN RAISE 'broken'; END$$;
SELECT count(swarm.hook_create(e, p, 'agent_operations.look', 1, '1 min')) FROM unnest('{before,after}'::text[]) p,
    unnest('{queue_create,queue_pause,flag_set,experiment_assign,jobs_resume,retry_policy_set,job_cancel,agent_inbox,memory_expire,llm_cancel}'::text[]) e;
SELECT swarm.hook_create('flag_set', 'before', 'agent_operations.broken', 2, '1 min') > 0 AS broken;
SELECT swarm.queue_create('agent_operations', max_running => 3);
SELECT swarm.queue_pause('agent_operations');
SELECT swarm.flag_set('agent_operations', percentage => 50);
SELECT swarm.experiment_assign('agent_operations', 'x', '{only}');
SELECT swarm.jobs_resume();
SELECT swarm.retry_policy_set('agent:agent_operations', '{"threshold": 3}');
SELECT swarm.job_enqueue('sql', '{"sql": "SELECT 1"}', run_at => swarm._now() + interval '1 day') AS job \gset
SELECT swarm.job_cancel(:job), swarm.job_cancel(NULL);
SELECT swarm.memory_expire('default', 'agent_operations', '1 h');
SELECT agent_id AS agent FROM swarm.agent_spawn('[{"type": "analytics", "name": "agent_operations"}]', timeout => '3 min') \gset
SELECT swarm.agent_message(:agent, :agent, 'note', '{}') > 0 AS sent;
SELECT kind FROM swarm.agent_inbox(:agent);
SELECT swarm.llm_cancel(NULL);
SAVEPOINT refused;
SELECT swarm.queue_create('agent_operations forbidden');
ROLLBACK TO refused;
SELECT swarm.flag_set('agent_operations forbidden');
ROLLBACK TO refused;
SELECT event, phase, role = current_user AS me, (data->>'ms')::float8 >= 0 AS ms, data - '{agent_id,id,ms}'::text[] AS data
FROM agent_operations.told ORDER BY n;
SELECT event, calls, failures FROM swarm.hook_stat WHERE handler = 'agent_operations.broken';
ROLLBACK;
-- whoever may not call the function cannot call what does it
SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_proc o ON o.pronamespace = p.pronamespace AND p.proname = '_' || o.proname
WHERE p.pronamespace = 'swarm'::regnamespace AND o.prosrc = 'swarm_hooked_' || o.proname AND has_function_privilege('pg_read_all_stats', p.oid, 'EXECUTE') ORDER BY 1;
-- hooks may write, so no operation is for parallel queries
SELECT p.oid::regprocedure FROM pg_proc p
WHERE p.pronamespace = 'swarm'::regnamespace AND p.prosrc = 'swarm_hooked_' || p.proname AND (p.proparallel <> 'u' OR p.provolatile <> 'v') ORDER BY 1;
DROP SCHEMA agent_operations CASCADE;
