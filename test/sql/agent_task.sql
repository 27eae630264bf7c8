-- Tasks: who gets them, order, attempts, time limits, parts, stealing, fallback, circuit breaker, plan mode.
\set VERBOSITY terse
CREATE SCHEMA agent_task;
\getenv tests PG_ABS_SRCDIR
\set until :tests '/sql/include/until.sql'
\set schema agent_task
\i :until
CREATE TABLE agent_task.log (n serial, agent text, what text);
CREATE FUNCTION agent_task.work(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF task ? 'lock' THEN
        PERFORM pg_advisory_xact_lock((task->>'lock')::int);
    END IF;
    IF task ? 'sleep' THEN
        PERFORM pg_sleep((task->>'sleep')::float8);
    END IF;
    INSERT INTO agent_task.log (agent, what) VALUES (agent.name, task->>'what');
    IF agent.attempt <= coalesce((task->>'fail')::int, 0) THEN
        RAISE 'attempt % fails', agent.attempt;
    END IF;
    RETURN task || jsonb_build_object('by', agent.name, 'attempt', agent.attempt);
END $$;
SELECT swarm.agent_type_create('{"name": "agent_task", "description": "translates French poetry", "capabilities": ["agent_task", "x"], "handler": "agent_task.work"}');
SELECT swarm.agent_type_create('{"name": "agent_task_wide", "description": "repairs bicycles", "capabilities": ["agent_task", "x", "y", "z"], "handler": "agent_task.work"}');
SELECT swarm.agent_type_create('{"name": "agent_task_plan", "capabilities": ["agent_plan"], "handler": "agent_task.work", "permission_mode": "plan", "max_attempts": 1}');
SELECT swarm.agent_type_create('{"name": "agent_task_model", "capabilities": ["agent_model"], "model": "some-model", "max_attempts": 1}');
SELECT swarm.agent_type_create('{"name": "agent_task_job", "capabilities": ["agent_job"], "job_kind": "sql"}');
CREATE FUNCTION agent_task.id(text) RETURNS bigint LANGUAGE sql AS $$SELECT id FROM swarm._agent WHERE type ~ '^agent_task' AND name = $1$$;

-- What is wrong with a task, and where.
SELECT swarm.task_submit(NULL);
SELECT swarm.task_submit('{"colour": 1}');
SELECT swarm.task_submit('{"priority": "huge"}');
SELECT swarm.task_submit('{"timeout": "0"}');
SELECT swarm.task_submit('{"agent": "no such agent"}');
SELECT * FROM swarm.task_wait(-1);
SELECT swarm.task_cancel(-1);

-- Without an agent it waits until there is one.
SELECT swarm.task_submit('{"capabilities": ["agent_task"], "task": {"what": "early"}}') AS task \gset
SELECT state, agent_id, waits_because FROM swarm.agent_tasks WHERE id = :task;
SELECT status FROM swarm.agent_spawn('[{"type": "agent_task", "name": "one"}]', timeout => '60 s');
SELECT state, result FROM swarm.task_wait(:task, '60 s');
-- A task that was there when its agent was spawned.
SELECT status FROM swarm.agent_spawn('[{"type": "agent_task_wide", "name": "wide", "task": {"what": "first"}}]', timeout => '60 s');
SELECT id AS task FROM swarm.agent_tasks WHERE task = '{"what": "first"}' \gset
SELECT state, result FROM swarm.task_wait(:task, '60 s');

-- Ranking: the specialised before the wide, unless what it is meant for counts.
SELECT name, match, load, success, affinity, meaning FROM swarm.agent_find('{agent_task}');
SELECT name FROM swarm.agent_find('{agent_task}', 'repairs bicycles', 1);
SET pg_swarm.agent_weight_meaning = 0;
SELECT name, round(score::numeric, 3) = round((0.3 * match + 0.3 + 0.2 * success + 0.1 / (1 + latency_ms / 1000))::numeric, 3) AS as_documented
FROM swarm.agent_find('{agent_task}', 'repairs bicycles');
RESET pg_swarm.agent_weight_meaning;
SELECT name FROM swarm.agent_find('{agent_task,z}');
SELECT count(*) FROM swarm.agent_find('{agent_task,no such}');
SELECT * FROM swarm.agent_find('{x}', NULL, 0);

-- Attempts, and their end.
SELECT swarm.task_submit('{"agent": "one", "task": {"what": "twice", "fail": 1}}') AS task \gset
SELECT state, attempts, result, error FROM swarm.task_wait(:task, '60 s');
SELECT swarm.task_submit('{"agent": "one", "max_attempts": 2, "task": {"what": "never", "fail": 9}}') AS task \gset
SELECT state, attempts, result, error FROM swarm.task_wait(:task, '60 s');
SELECT count(*) AS kept FROM agent_task.log WHERE what IN ('twice', 'never');
SELECT swarm.task_submit('{"agent": "one", "max_attempts": 1, "timeout": "50 ms", "task": {"sleep": 3600}}') AS task \gset
SELECT state, attempts, error FROM swarm.task_wait(:task, '60 s');

-- Order: critical, then by priority; one at a time. The agent is busy meanwhile.
SELECT pg_advisory_lock(20260402);
TRUNCATE agent_task.log;
SELECT swarm.task_submit('{"agent": "one", "task": {"what": "holds", "lock": 20260402}}') AS holds \gset
CALL agent_task.until('(SELECT state = ''busy'' FROM swarm._agent WHERE id = agent_task.id(''one''))');
SELECT swarm.task_submit(jsonb_build_object('agent', 'one', 'priority', p, 'task', jsonb_build_object('what', p))) > 0 AS id
FROM unnest('{low,medium,high,critical}'::text[]) p;
SELECT swarm.task_submit('{"agent": "one", "task": {"what": "cancelled"}}') AS cancelled \gset
SELECT swarm.task_submit('{"agent": "one", "deadline": "2000-01-01 00:00+00", "task": {"what": "late"}}') AS late \gset
SELECT queued FROM swarm.agents WHERE id = agent_task.id('one');
SELECT swarm.task_cancel(:cancelled), swarm.task_cancel(:cancelled);
SELECT pg_advisory_unlock(20260402);
CALL agent_task.until('NOT EXISTS (SELECT FROM swarm._agent_task WHERE agent = agent_task.id(''one'') AND finished_at IS NULL)');
SELECT what FROM agent_task.log ORDER BY n;
SELECT state, error FROM swarm.agent_tasks WHERE id IN (:cancelled, :late) ORDER BY id;

-- Stealing: one that is done with its own helps a busy one of its type.
SELECT status FROM swarm.agent_spawn('[{"type": "agent_task", "name": "two"}]', timeout => '60 s');
SELECT swarm.agent_pause(agent_task.id('two'));
SELECT pg_advisory_lock(20260402);
SELECT swarm.task_submit('{"agent": "one", "task": {"what": "holds", "lock": 20260402}}') AS holds \gset
CALL agent_task.until('(SELECT state = ''busy'' FROM swarm._agent WHERE id = agent_task.id(''one''))');
SELECT swarm.task_submit('{"type": "agent_task", "capabilities": ["agent_task"], "task": {"what": "shared"}}') AS shared \gset
SELECT swarm.task_submit('{"agent": "one", "task": {"what": "pinned"}}') AS pinned \gset
SELECT a.name FROM swarm.agent_tasks t JOIN swarm.agents a ON a.id = t.agent_id WHERE t.id = :shared;
SELECT swarm.agent_resume(agent_task.id('two'));
SELECT state, result FROM swarm.task_wait(:shared, '60 s');
SELECT state FROM swarm.agent_tasks WHERE id = :pinned;
SELECT name, stolen FROM swarm.agent_stat WHERE name IN ('one', 'two') AND type = 'agent_task' ORDER BY 1;
SELECT pg_advisory_unlock(20260402);
SELECT state, result FROM swarm.task_wait(:pinned, '60 s');

-- Parts, joined: alone, and with work of its own behind them; a part that fails.
SELECT swarm.task_submit('{"capabilities": ["agent_task"], "parts": [{"task": {"what": "p1"}}, {"task": {"what": "p2", "fail": 1}}, {"task": {"what": "p3"}}]}') AS task \gset
SELECT state, jsonb_path_query_array(result, '$[*].what') AS parts FROM swarm.task_wait(:task, '60 s');
SELECT swarm.task_submit('{"type": "agent_task", "capabilities": ["agent_task"], "task": {"what": "whole"}, "parts": [{"task": {"what": "p4"}}, {"task": {"what": "p5"}}]}') AS task \gset
SELECT state, result->'what' AS what, jsonb_path_query_array(result, '$.parts[*].what') AS parts FROM swarm.task_wait(:task, '60 s');
SELECT swarm.task_submit('{"capabilities": ["agent_task"], "parts": [{"task": {"what": "p6"}}, {"max_attempts": 1, "task": {"what": "p7", "fail": 1}}]}') AS task \gset
SELECT state, result, error ~ '^part \d+: attempt 1 fails$' AS why FROM swarm.task_wait(:task, '60 s');

-- Plan mode writes nothing; a model needs the module that asks it; a job kind gets a job.
SELECT count(*) FROM swarm.agent_spawn('[{"type": "agent_task_plan", "name": "plan"}, {"type": "agent_task_model", "name": "model"}, {"type": "agent_task_job", "name": "job"}]', timeout => '60 s') WHERE status = 'spawned';
SELECT swarm.task_submit('{"agent": "plan", "task": {"what": "write"}}') AS task \gset
SELECT state, error FROM swarm.task_wait(:task, '60 s');
SELECT swarm.task_submit('{"agent": "model", "task": {"what": "ask"}}') AS task \gset
SELECT state, error IS NOT NULL AS says_why FROM swarm.task_wait(:task, '60 s');
SELECT swarm.task_submit('{"agent": "job", "task": {"sql": "SELECT 6 * 7 AS n"}}') AS task \gset
SELECT state, result->>'job' AS job FROM swarm.task_wait(:task, '60 s') \gset
SELECT :'state' AS task, j.state, j.result FROM swarm.job_wait(:job, '60 s') j;

-- Another type takes over when one cannot.
SELECT swarm.retry_policy_set('agent:agent_task_plan', '{"first_wait": "1 ms", "fallback": "agent_task"}');
SELECT swarm.task_submit('{"agent": "plan", "task": {"what": "fallback"}}') AS task \gset
SELECT state, result->>'what' AS what FROM swarm.task_wait(:task, '60 s');
-- A breaker opens, fails fast, finds out, and closes.
SELECT swarm.retry_policy_set('agent:agent_task_wide', '{"first_wait": "1 ms", "threshold": 2, "cooldown": "1 hour"}');
SELECT swarm.task_submit('{"agent": "wide", "max_attempts": 2, "task": {"what": "bad", "fail": 9}}') AS task \gset
SELECT state, attempts FROM swarm.task_wait(:task, '60 s');
SELECT state, failures, opened, last_error FROM swarm.circuit_breakers WHERE target = 'agent:agent_task_wide';
SELECT swarm.task_submit('{"agent": "wide", "task": {"what": "good"}}') AS task \gset
CALL agent_task.until('(SELECT error IS NOT NULL FROM swarm._agent_task WHERE id = ' || :task || ')');
SELECT state, attempts, error, waits_because FROM swarm.agent_tasks WHERE id = :task;
UPDATE swarm._circuit_breaker SET opened_at = opened_at - interval '2 hours' WHERE target = 'agent:agent_task_wide';
UPDATE swarm._agent_task SET run_at = swarm._now() WHERE id = :task;
SELECT swarm._agent_wake(agent_task.id('wide')) IS NULL AS woken;
SELECT state, attempts, error FROM swarm.task_wait(:task, '60 s');
SELECT state, failures, opened FROM swarm.circuit_breakers WHERE target = 'agent:agent_task_wide';
SELECT swarm.retry_policy_drop('agent:agent_task_wide'), swarm.retry_policy_drop('agent:agent_task_plan');
SELECT swarm.retry_policy_set('x', '{"colour": 1}');

-- The bandit tries all, and notes what came of it.
SELECT count(swarm.task_submit('{"capabilities": ["agent_task"], "strategy": "adaptive", "task": {"what": "adaptive"}}')) FROM generate_series(1, 6);
CALL agent_task.until('NOT EXISTS (SELECT FROM swarm._agent_task WHERE strategy IS NOT NULL AND finished_at IS NULL)');
SELECT sum(tries) >= 6 AS noted, bool_and(mean BETWEEN 0 AND 1) AS means FROM swarm.agent_strategies;
SELECT state, count(*) FROM swarm.agent_tasks WHERE strategy IS NOT NULL GROUP BY 1;

SELECT count(swarm.agent_kill(id)) AS killed FROM swarm.agents WHERE type ~ '^agent_task';
SELECT swarm.agent_type_drop(name) FROM swarm.agent_types WHERE name ~ '^agent_task';
SET client_min_messages = warning;
DROP SCHEMA agent_task CASCADE;
