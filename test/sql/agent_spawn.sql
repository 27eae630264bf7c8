-- Spawning: one row for each, layers, cycles, groups, modes, rollback.
\set VERBOSITY terse
CREATE SCHEMA agent_spawn;
CREATE ROLE regress_agent_spawn;
CREATE FUNCTION agent_spawn.work(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE sql AS 'SELECT task';
SELECT swarm.agent_type_create('{"name": "agent_spawn", "capabilities": ["b", "a"], "handler": "agent_spawn.work"}');
SELECT swarm.agent_type_create('{"name": "agent_spawn_few", "capabilities": ["few"], "handler": "agent_spawn.work", "max_concurrency": 2}');

-- arguments
SELECT * FROM swarm.agent_spawn(NULL);
SELECT * FROM swarm.agent_spawn('{}');
SELECT * FROM swarm.agent_spawn('[]', batch_size => 0);
SELECT * FROM swarm.agent_spawn('[]', max_concurrency => 1000);
SELECT * FROM swarm.agent_spawn('[]', mode => 'fast');
SELECT * FROM swarm.agent_spawn('[]', timeout => '0');
SELECT * FROM swarm.agent_spawn('[]', topology => 'torus');
SELECT error FROM swarm._agent_start('{10,10}', '{0,0}', -1, 1, 1000, false);
SELECT error FROM swarm._agent_start('{10,10}', '{0,0}', 1, 0, 1000, false);
SELECT error FROM swarm._agent_start('{10,10}', '{0}', 1, 1, 1000, false);
SELECT * FROM swarm.agent_spawn('[]');

-- one row for each, whatever is wrong with the others
SELECT name, type, status, error, agent_id IS NOT NULL AS id, spawn_ms > 0 AS ms, batch
FROM swarm.agent_spawn('[{"type": "agent_spawn", "name": "spawn_1", "capabilities": ["c"], "priority": "high", "metadata": {"k": 1}},
    {"type": "no such type", "name": "spawn_2"}, {"type": "agent_spawn"}, {"name": "spawn_4"}, 5, {"type": "agent_spawn", "name": "spawn_6", "colour": "red"},
    {"type": "agent_spawn", "name": "spawn_1"}, {"type": "agent_spawn", "name": "spawn_8", "role": "no such role"},
    {"type": "agent_spawn", "name": "spawn_9", "priority": "huge"}, {"type": "agent_spawn", "name": "spawn_10"}]', mode => 'parallel', timeout => '60 s');
SELECT name, state, capabilities, priority, metadata, queued, task IS NULL AS rests FROM swarm.agent_list('agent_spawn') ORDER BY name;
SELECT name, status, error FROM swarm.agent_spawn('[{"type": "agent_spawn", "name": "spawn_1"}]');

-- layers: the parents first; what depends on a failed one fails with it
SELECT name, status, error, batch FROM swarm.agent_spawn('[{"type": "agent_spawn", "name": "leaf", "depends_on": ["middle", "root"]},
    {"type": "agent_spawn", "name": "middle", "depends_on": ["root"]}, {"type": "agent_spawn", "name": "root"},
    {"type": "none", "name": "bad"}, {"type": "agent_spawn", "name": "child", "depends_on": ["bad"]},
    {"type": "agent_spawn", "name": "grandchild", "depends_on": ["child"]}, {"type": "agent_spawn", "name": "stray", "depends_on": ["nobody"]}]',
    mode => 'parallel', timeout => '60 s');
SELECT a.name, (SELECT array_agg(p.name ORDER BY p.name) FROM swarm.agents p WHERE p.id = ANY (a.depends_on)) AS depends_on
FROM swarm.agents a WHERE a.name IN ('leaf', 'middle', 'root') AND a.type = 'agent_spawn' ORDER BY 1;
\set VERBOSITY default
\set SHOW_CONTEXT never
SELECT * FROM swarm.agent_spawn('[{"type": "agent_spawn", "name": "x"}, {"type": "agent_spawn", "name": "y", "depends_on": ["z"]},
    {"type": "agent_spawn", "name": "z", "depends_on": ["y"]}]');
\set VERBOSITY terse

-- groups of two; sequentially one; as many as the type allows
SELECT array_agg(batch ORDER BY name) AS batches, count(*) FILTER (WHERE status = 'spawned') AS spawned FROM swarm.agent_spawn(
    (SELECT jsonb_agg(jsonb_build_object('type', 'agent_spawn', 'name', 'group_' || i)) FROM generate_series(1, 7) i), 2, 3, 'parallel', timeout => '60 s');
SELECT array_agg(batch ORDER BY name) AS batches, count(*) FILTER (WHERE status = 'spawned') AS spawned FROM swarm.agent_spawn(
    (SELECT jsonb_agg(jsonb_build_object('type', 'agent_spawn', 'name', 'single_' || i)) FROM generate_series(1, 3) i), 2, 3, 'sequential', timeout => '60 s');
SET pg_swarm.parallel_spawn = off;
SELECT array_agg(batch ORDER BY name) AS batches FROM swarm.agent_spawn(
    (SELECT jsonb_agg(jsonb_build_object('type', 'agent_spawn', 'name', 'off_' || i)) FROM generate_series(1, 3) i), 2, 3, 'parallel', timeout => '60 s');
RESET pg_swarm.parallel_spawn;
SELECT name, status, error FROM swarm.agent_spawn((SELECT jsonb_agg(jsonb_build_object('type', 'agent_spawn_few', 'name', 'few_' || i)) FROM generate_series(1, 3) i), timeout => '60 s');
SELECT mode, agents, spawned, fallback, batch_size, max_concurrency, total_ms > 0 AS ms FROM swarm.spawn_batches ORDER BY id DESC LIMIT 4;

-- a rolled back one leaves nothing, and its name is free
BEGIN;
SELECT status FROM swarm.agent_spawn('[{"type": "agent_spawn", "name": "gone", "task": {"a": 1}}]', timeout => '60 s');
SELECT count(*) AS inside FROM swarm.agents WHERE name = 'gone';
ROLLBACK;
SELECT count(*) AS agents FROM swarm.agents WHERE name = 'gone';
SELECT count(*) AS tasks FROM swarm.agent_tasks WHERE task = '{"a": 1}';
BEGIN;
SAVEPOINT s;
SELECT status FROM swarm.agent_spawn('[{"type": "agent_spawn", "name": "gone"}]', timeout => '60 s');
ROLLBACK TO s;
SELECT status FROM swarm.agent_spawn('[{"type": "agent_spawn", "name": "stays"}]', timeout => '60 s');
COMMIT;
SELECT name FROM swarm.agents WHERE name IN ('gone', 'stays') AND type = 'agent_spawn';

-- a role that may not call the handler is found out by the start
REVOKE EXECUTE ON FUNCTION agent_spawn.work FROM PUBLIC;
GRANT USAGE ON SCHEMA agent_spawn TO regress_agent_spawn;
SELECT name, status, error FROM swarm.agent_spawn('[{"type": "agent_spawn", "name": "may not", "role": "regress_agent_spawn"}]', mode => 'parallel', timeout => '60 s');
-- all fail in parallel: one after the other is tried
SELECT name, status, error FROM swarm.agent_spawn('[{"type": "agent_spawn", "name": "may not", "role": "regress_agent_spawn"}]', mode => 'auto', timeout => '60 s');
SELECT fallback FROM swarm.spawn_batches ORDER BY id DESC LIMIT 1;
SET ROLE regress_agent_spawn;
SELECT name, status, error FROM swarm.agent_spawn('[{"type": "analytics", "name": "mine"}, {"type": "analytics", "name": "other", "role": "postgres"}]', timeout => '60 s');
SELECT name, type FROM swarm.agents;
RESET ROLE;

-- the tracker has all of them
SELECT count(*) = (SELECT count(*) FROM swarm.agents a WHERE a.type ~ '^agent_spawn') AS tracked
FROM swarm.agent_history() h JOIN swarm.agents a ON a.id::text = h.agent_id WHERE a.type ~ '^agent_spawn' AND h.status = 'spawned';
SELECT DISTINCT event, from_state, to_state FROM swarm.agent_activity WHERE type ~ '^agent_spawn' ORDER BY 1;
SELECT count(swarm.agent_stop(id)) > 0 AS stopped FROM swarm.agents WHERE type ~ '^agent_spawn' OR name = 'mine';
SELECT swarm.agent_type_drop('agent_spawn'), swarm.agent_type_drop('agent_spawn_few');
SET client_min_messages = warning;
DROP SCHEMA agent_spawn CASCADE;
DELETE FROM swarm._agent WHERE owner = 'regress_agent_spawn'::regrole;
DELETE FROM swarm._agent_set WHERE owner = 'regress_agent_spawn'::regrole;
DELETE FROM swarm._spawn_batch WHERE owner = 'regress_agent_spawn'::regrole;
DELETE FROM swarm._memory WHERE owner = 'regress_agent_spawn'::regrole;
DROP OWNED BY regress_agent_spawn;
DROP ROLE regress_agent_spawn;
