-- Drive agents along every edge of the transition table, and try what it does not have.
\set VERBOSITY sqlstate
CREATE SCHEMA agent_state;
\getenv tests PG_ABS_SRCDIR
\set until :tests '/sql/include/until.sql'
\set schema agent_state
\i :until
-- a task waits for the advisory lock that it names
CREATE FUNCTION agent_state.work(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF task ? 'lock' THEN
        PERFORM pg_advisory_xact_lock((task->>'lock')::int);
    END IF;
    RETURN task;
END $$;
SELECT swarm.agent_type_create('{"name": "agent_state", "capabilities": ["agent_state"], "handler": "agent_state.work"}');
CREATE FUNCTION agent_state.id(text) RETURNS bigint LANGUAGE sql AS $$SELECT id FROM swarm._agent WHERE type = 'agent_state' AND name = $1 ORDER BY id DESC LIMIT 1$$;
CREATE PROCEDURE agent_state.new(name text) LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT s.status FROM swarm.agent_spawn(jsonb_build_array(jsonb_build_object('type', 'agent_state', 'name', name)), timeout => '60 s') s) <> 'spawned' THEN
        RAISE 'not spawned';
    END IF;
END $$;
CREATE PROCEDURE agent_state.busy(name text) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM swarm.task_submit(jsonb_build_object('agent', agent_state.id(name), 'task', '{"lock": 20260401}'::jsonb));
    COMMIT;
    CALL agent_state.until(format('(SELECT state = ''busy'' FROM swarm._agent WHERE id = %s)', agent_state.id(name)));
END $$;
CREATE PROCEDURE agent_state.at(name text, state text) LANGUAGE plpgsql AS $$
BEGIN
    CALL agent_state.until(format('(SELECT state = %L FROM swarm._agent WHERE id = %s)', state, agent_state.id(name)));
END $$;
SELECT from_state, event, to_state FROM swarm._agent_transitions();
SELECT pg_advisory_lock(20260401);

-- at rest
CALL agent_state.new('a');
SELECT swarm.agent_pause(agent_state.id('a'));
SELECT swarm.agent_resume(agent_state.id('a'));
SELECT swarm.agent_pause(agent_state.id('a'));
SELECT swarm.agent_stop(agent_state.id('a'));
SELECT swarm.agent_resume(agent_state.id('a'));
SELECT swarm.agent_stop(agent_state.id('a'));
CALL agent_state.new('b');
SELECT swarm.agent_pause(agent_state.id('b'));
SELECT swarm.agent_kill(agent_state.id('b'));
CALL agent_state.new('c');
SELECT swarm.agent_kill(agent_state.id('c'));

-- at work
CALL agent_state.new('d');
CALL agent_state.busy('d');
SELECT state, task IS NOT NULL AS task, pid IS NOT NULL AS process FROM swarm.agents WHERE id = agent_state.id('d');
SELECT swarm.agent_pause(agent_state.id('d'));
SELECT swarm.agent_resume(agent_state.id('d'));
SELECT swarm.agent_pause(agent_state.id('d'));
CALL agent_state.new('e');
CALL agent_state.busy('e');
SELECT swarm.agent_stop(agent_state.id('e'));
CALL agent_state.new('f');
CALL agent_state.busy('f');
SELECT swarm.agent_stop(agent_state.id('f'));
SELECT swarm.agent_kill(agent_state.id('f'));
CALL agent_state.new('g');
CALL agent_state.busy('g');
SELECT swarm.agent_kill(agent_state.id('g'));
-- a killed one gives its process back at once, and its task is not lost
SELECT state, error FROM swarm.agent_tasks WHERE agent_id = agent_state.id('g');
CALL agent_state.new('h');
SELECT swarm.task_submit(jsonb_build_object('agent', agent_state.id('h'), 'task', 1)) AS task \gset
SELECT state, result FROM swarm.task_wait(:task, '60 s');
SELECT pg_advisory_unlock(20260401);
CALL agent_state.at('d', 'paused');
CALL agent_state.at('e', 'stopped');
-- what a paused one is given waits
SELECT swarm.task_submit(jsonb_build_object('agent', agent_state.id('d'), 'task', 2)) AS task \gset
SELECT state FROM swarm.agent_tasks WHERE id = :task;
SELECT swarm.agent_resume(agent_state.id('d'));
SELECT state, result FROM swarm.task_wait(:task, '60 s');

-- lost: its process is gone, the lock free, and the next one finds it busy
CALL agent_state.new('i');
UPDATE swarm._agent SET state = 'busy' WHERE id = agent_state.id('i');
SELECT state FROM swarm.agents WHERE id = agent_state.id('i');
SELECT swarm.task_submit(jsonb_build_object('agent', agent_state.id('i'), 'task', 3)) AS task \gset
SELECT state, result FROM swarm.task_wait(:task, '60 s');
CALL agent_state.new('j');
UPDATE swarm._agent SET state = 'stopping' WHERE id = agent_state.id('j');
SELECT count(swarm._agent_wake(agent_state.id('j')));
CALL agent_state.at('j', 'stopped');
CALL agent_state.new('k');
UPDATE swarm._agent SET state = 'busy', lost_in_a_row = 9 WHERE id = agent_state.id('k');
SELECT count(swarm._agent_wake(agent_state.id('k')));
CALL agent_state.at('k', 'failed');
SELECT error FROM swarm.agents WHERE id = agent_state.id('k');
SELECT swarm.agent_resume(agent_state.id('k'));
UPDATE swarm._agent SET state = 'failed' WHERE id = agent_state.id('k');
SELECT swarm.agent_stop(agent_state.id('k'));
CALL agent_state.new('l');
UPDATE swarm._agent SET state = 'failed' WHERE id = agent_state.id('l');
SELECT swarm.agent_kill(agent_state.id('l'));
-- one that cannot be started again
CALL agent_state.new('m');
SELECT swarm.agent_stop(agent_state.id('m'));
SELECT swarm._fault_arm('agent.start', 'error');
SELECT swarm.agent_resume(agent_state.id('m'));
SELECT error FROM swarm.agents WHERE id = agent_state.id('m');

-- What the table does not have is refused.
SELECT swarm.agent_pause(agent_state.id('a'));
SELECT swarm.agent_stop(agent_state.id('a'));
SELECT swarm.agent_kill(agent_state.id('a'));
SELECT swarm.agent_resume(agent_state.id('d'));
SELECT swarm.agent_pause(-1);
SELECT swarm.agent_kill(-1);

-- No edge is left, and none was seen that is not in the table.
SELECT from_state, event, to_state FROM swarm._agent_transitions()
EXCEPT SELECT from_state, event, to_state FROM swarm.agent_activity WHERE type = 'agent_state';
SELECT from_state, event, to_state FROM swarm.agent_activity WHERE type = 'agent_state' AND to_state IS NOT NULL
EXCEPT SELECT from_state, event, to_state FROM swarm._agent_transitions();
SELECT count(swarm.agent_kill(id)) > 0 AS killed FROM swarm._agent WHERE type = 'agent_state' AND state <> 'stopped';
SELECT swarm.agent_type_drop('agent_state');
SET client_min_messages = warning;
DROP SCHEMA agent_state CASCADE;
