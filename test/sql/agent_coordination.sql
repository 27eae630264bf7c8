-- Hooks, messages, topologies, hand-offs, protocols; and whose rights they have.
\set VERBOSITY sqlstate
CREATE SCHEMA agent_coord;
CREATE ROLE regress_agent_a;
CREATE ROLE regress_agent_b;
GRANT USAGE, CREATE ON SCHEMA agent_coord TO regress_agent_a, regress_agent_b;
\getenv tests PG_ABS_SRCDIR
\set until :tests '/sql/include/until.sql'
\set schema agent_coord
\i :until
CREATE TABLE agent_coord.seen (n serial, who text, what jsonb);
GRANT INSERT ON agent_coord.seen TO PUBLIC;
GRANT USAGE ON SEQUENCE agent_coord.seen_n_seq TO PUBLIC;
CREATE FUNCTION agent_coord.work(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    IF task ? 'handoff' AND (task->'handoff'->'left')::int > 0 THEN
        PERFORM swarm.agent_handoff(agent.id, (task->'handoff'->'next'->>0)::bigint,
            jsonb_build_object('left', (task->'handoff'->'left')::int - 1, 'next', (task->'handoff'->'next') - 0, 'trace', task->'handoff'->'trace' || to_jsonb(agent.name)));
    ELSIF task ? 'role' THEN
        EXECUTE 'SET ROLE ' || (task->>'role');
    ELSIF task ? 'progress' THEN
        PERFORM swarm.agent_progress(agent.id, 0.5, 'half');
        PERFORM pg_sleep((task->'sleep')::int);
    END IF;
    RETURN task || jsonb_build_object('user', current_user);
END $$;
CREATE FUNCTION agent_coord.hear(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO agent_coord.seen (who, what) VALUES (current_user, jsonb_build_object(agent.name, task->'message'->'body'));
    RETURN task->'message'->'kind';
END $$;
CREATE FUNCTION agent_coord.deaf(task jsonb, agent swarm.agent) RETURNS int LANGUAGE sql AS 'SELECT 1';
SELECT swarm.agent_type_create('{"name": "agent_coord", "capabilities": ["agent_coord"], "handler": "agent_coord.work", "max_attempts": 1}');
SELECT swarm.agent_type_create('{"name": "agent_coord_msg", "capabilities": ["agent_coord_msg"], "handler": "agent_coord.work", "hooks": {"message": "agent_coord.hear"}}');
SELECT swarm.agent_type_create('{"name": "agent_coord_x", "capabilities": [], "handler": "agent_coord.work", "hooks": {"message": "agent_coord.nobody"}}');
SELECT swarm.agent_type_create('{"name": "agent_coord_x", "capabilities": [], "handler": "agent_coord.work", "hooks": {"message": "agent_coord.deaf"}}');
CREATE FUNCTION agent_coord.id(text) RETURNS bigint LANGUAGE sql STABLE AS $$SELECT id FROM swarm._agent WHERE type ~ '^agent_coord' AND name = $1$$;

-- Roles: an agent works as its role, and cannot become another.
SELECT name, status FROM swarm.agent_spawn('[{"type": "agent_coord", "name": "a", "role": "regress_agent_a"}, {"type": "agent_coord", "name": "b", "role": "regress_agent_b"}]', timeout => '60 s');
-- a superuser's task goes to another role's agent only if he says so, by number
SELECT swarm.task_submit('{"agent": "a", "task": {}}');
SELECT count(*) FROM swarm.agent_find('{agent_coord}');
SELECT agent_coord.id('a') AS a, agent_coord.id('b') AS b \gset
SELECT swarm.task_submit(jsonb_build_object('agent', :a, 'task', '{}'::jsonb)) AS task \gset
SELECT state, result FROM swarm.task_wait(:task, '60 s');
SELECT swarm.task_submit(jsonb_build_object('agent', :a, 'task', '{"role": "regress_agent_b"}'::jsonb)) AS task \gset
SELECT state, error FROM swarm.task_wait(:task, '60 s');
SELECT swarm.task_submit(jsonb_build_object('agent', :a, 'task', '{"role": "NONE"}'::jsonb)) AS task \gset
SELECT state, error FROM swarm.task_wait(:task, '60 s');
SET ROLE regress_agent_a;
SELECT name FROM swarm.agents;
SELECT DISTINCT owner FROM swarm.agent_tasks;
SELECT count(*) FROM swarm.agent_activity WHERE name = 'b';
SELECT name FROM swarm.agent_find('{agent_coord}');
SELECT swarm.agent_kill(:b);
SELECT swarm.agent_status(:b);
SELECT swarm.agent_inbox(:a, 0);
SELECT swarm.task_submit(jsonb_build_object('agent', :b));
SELECT swarm.task_submit('{"agent": "b"}');
SELECT swarm.agent_message(:a, :b, 'notify', '1');
SELECT swarm.agent_message(:b, :a, 'notify', '1');
SELECT * FROM swarm.agent_inbox(:b);
SELECT swarm.topology_create('x', 'mesh', ARRAY[:a, :b]);
SELECT swarm.agent_type_create('{}');
SELECT swarm.hook_create('task', 'before', 'agent_coord.work');
SELECT swarm.protocol_create('x', '{}');
SELECT swarm._agent_take('regress_agent_b'::regrole, :b);
RESET ROLE;

-- Messages: one after the other, each read once. A request for help leaves no job for later.
SET pg_swarm.agent_escalate_after = 0;
SELECT name, status FROM swarm.agent_spawn((SELECT jsonb_agg(jsonb_build_object('type', 'agent_coord', 'name', 'm' || i)) FROM generate_series(1, 7) i), timeout => '60 s');
SELECT swarm.agent_message(agent_coord.id('m1'), agent_coord.id('m2'), k, '{"n": 1}') > 0 AS sent FROM unnest('{request-help,share-findings,escalate}'::text[]) k;
SELECT kind, body, hops, from_agent = agent_coord.id('m1') AS from_m1 FROM swarm.agent_inbox(agent_coord.id('m2'), 2);
SELECT kind FROM swarm.agent_inbox(agent_coord.id('m2'));
SELECT count(*) FROM swarm.agent_inbox(agent_coord.id('m2'));
SELECT swarm.agent_message(agent_coord.id('m1'), -1, 'notify', '{}');
SELECT swarm.agent_message(agent_coord.id('m1'), agent_coord.id('m2'), '', '{}');
-- to the function of its type for messages, and not to the handler; tasks to the handler, whatever they look like
SELECT status FROM swarm.agent_spawn('[{"type": "agent_coord_msg", "name": "listener"}]', timeout => '60 s');
SELECT swarm.agent_message(agent_coord.id('m1'), agent_coord.id('listener'), 'notify', '"hello"') AS message \gset
CALL agent_coord.until(format('EXISTS (SELECT FROM swarm._agent_task WHERE message = %s AND state = ''done'')', :message));
SELECT t.result, s.what FROM swarm._agent_task t, agent_coord.seen s WHERE t.message = :message;
SELECT swarm.task_submit('{"agent": "listener", "task": {"message": {"body": "a task"}}}') AS task \gset
SELECT state, result FROM swarm.task_wait(:task, '60 s');
-- the type hears no more: what is under way is refused
SELECT swarm.agent_pause(agent_coord.id('listener'));
SELECT swarm.agent_message(agent_coord.id('m1'), agent_coord.id('listener'), 'notify', '"too late"') AS message \gset
SELECT swarm.agent_type_create('{"name": "agent_coord_msg", "capabilities": ["agent_coord_msg"], "handler": "agent_coord.work"}');
SELECT swarm.agent_resume(agent_coord.id('listener'));
SELECT id AS task FROM swarm._agent_task WHERE message = :message \gset
SELECT state, attempts, error FROM swarm.task_wait(:task, '60 s');
SELECT count(*) FROM agent_coord.seen;

-- Topologies: links, and what happens when one dies.
CREATE FUNCTION agent_coord.links(name text) RETURNS TABLE (kind text, links bigint, pairs text) LANGUAGE sql AS $$
SELECT t.kind, count(*), string_agg(x.name || y.name, ' ' ORDER BY x.name, y.name) FILTER (WHERE x.name < y.name)
FROM swarm._topology t, LATERAL swarm._topology_links(t.id) l, swarm._agent x, swarm._agent y
WHERE t.name = links.name AND x.id = l.from_agent AND y.id = l.to_agent GROUP BY 1 $$;
SELECT swarm.topology_create('agent_coord ' || k, k, ARRAY(SELECT agent_coord.id('m' || i) FROM generate_series(1, 7) i)) > 0 AS id FROM unnest('{mesh,star,ring,hierarchical}'::text[]) k;
SELECT l.* FROM unnest('{mesh,star,ring,hierarchical}'::text[]) k, agent_coord.links('agent_coord ' || k) l;
SELECT swarm.topology_create('x', 'torus', ARRAY[agent_coord.id('m1')]);
SELECT swarm.topology_create('x', 'mesh', '{}');
SELECT swarm.topology_drop('agent_coord ' || k) FROM unnest('{mesh,star,hierarchical}'::text[]) k;
SELECT (SELECT name FROM swarm._agent WHERE id = neighbour) FROM swarm.topology_neighbours(agent_coord.id('m1'));
SELECT swarm.agent_message(agent_coord.id('m1'), agent_coord.id('m4'), 'notify', '{}');
SELECT swarm.agent_stop(agent_coord.id('m2'));
SELECT pairs FROM agent_coord.links('agent_coord ring');
SELECT swarm.agent_message(agent_coord.id('m1'), agent_coord.id('m3'), 'notify', '"around"') > 0 AS sent;
SELECT swarm.agent_message(agent_coord.id('m1'), agent_coord.id('m2'), 'notify', '{}');
SELECT swarm.agent_message(agent_coord.id('m1'), NULL, 'notify', '"all"') > 0 AS sent;
SELECT a.name, m.hops FROM swarm.agent_messages m JOIN swarm._agent a ON a.id = m.to_agent WHERE m.body = '"all"' ORDER BY 2, 1;
SELECT n, c, swarm.topology_choose(n, c) FROM unnest('{3,8,30}'::int[]) n, unnest('{simple,complex}'::text[]) c ORDER BY 1, 2 DESC;
SELECT swarm.topology_choose(0), swarm.topology_choose(1, 'odd');
SELECT name, status FROM swarm.agent_spawn('[{"type": "agent_coord", "name": "t1"}, {"type": "agent_coord", "name": "t2"}, {"type": "agent_coord", "name": "t3"}]', topology => 'auto', timeout => '60 s');
SELECT t.kind, count(*) FROM swarm._topology t JOIN swarm._topology_member m ON m.topology = t.id WHERE t.name ~ '^spawn' AND m.agent IN (agent_coord.id('t1'), agent_coord.id('t2'), agent_coord.id('t3')) GROUP BY 1;

-- A hand-off through three agents.
SELECT swarm.topology_drop('agent_coord ring');
SELECT swarm.agent_handoff(agent_coord.id('m1'), agent_coord.id('m3'), jsonb_build_object('left', 2, 'next', ARRAY[agent_coord.id('m4'), agent_coord.id('m5')], 'trace', ARRAY['m1'])) AS task \gset
SELECT state, error FROM swarm.task_wait(:task, '60 s');
CALL agent_coord.until('EXISTS (SELECT FROM swarm.agent_tasks WHERE state = ''done'' AND task->''handoff''->''left'' = ''0'' AND agent_id = agent_coord.id(''m5''))');
SELECT task->'handoff'->'trace' AS trace FROM swarm.agent_tasks WHERE agent_id = agent_coord.id('m5');

-- Hooks: what they see, refuse and survive.
\set VERBOSITY terse
CREATE FUNCTION agent_coord.look(data jsonb) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO agent_coord.seen (who, what) VALUES (current_user, jsonb_build_object('event', data->'event', 'phase', data->'phase'));
    RETURN NULL;
END $$;
CREATE FUNCTION agent_coord.refuse(data jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT CASE WHEN data->'data'->'task' @> '{"bad": true}' THEN '{"veto": "it is bad"}'::jsonb END$$;
CREATE FUNCTION agent_coord.broken(data jsonb) RETURNS void LANGUAGE plpgsql AS $$BEGIN RAISE 'broken'; END$$;
CREATE FUNCTION agent_coord.slow(data jsonb) RETURNS void LANGUAGE sql AS 'SELECT pg_sleep(3600)';
SELECT swarm.hook_create('no such event', 'before', 'agent_coord.look');
SELECT swarm.hook_create('task', 'during', 'agent_coord.look');
SELECT swarm.hook_create('task', 'before', 'agent_coord.links');
SELECT swarm.hook_create('task', 'before', 'agent_coord.look', timeout => '0');
SELECT swarm.hook_drop(-1);
TRUNCATE agent_coord.seen;
SELECT swarm.hook_create('task', p, 'agent_coord.look', 10, '1 min') > 0 AS id FROM unnest('{before,after}'::text[]) p;
SELECT swarm.hook_create('task', 'before', 'agent_coord.broken', 5, '1 min') AS broken \gset
SELECT swarm.hook_create('task', 'before', 'agent_coord.slow', 4, '20 ms') AS slow \gset
SELECT swarm.hook_create('task', 'before', 'agent_coord.refuse', timeout => '1 min') AS refuse \gset
SELECT swarm.task_submit('{"agent": "m6", "task": {"good": true}}') AS task \gset
SELECT state, result FROM swarm.task_wait(:task, '60 s');
SELECT swarm.task_submit('{"agent": "m6", "task": {"bad": true}}') AS task \gset
SELECT state, error FROM swarm.task_wait(:task, '60 s');
SELECT who = current_user AS owner, what FROM agent_coord.seen ORDER BY n;
SELECT handler, calls, failures, vetoes, timeouts FROM swarm.hook_stat WHERE handler ~ '^agent_coord' AND phase = 'before' ORDER BY priority DESC;
SELECT swarm.hook_enable(:refuse, false);
SELECT swarm.task_submit('{"agent": "m6", "task": {"bad": true}}') AS task \gset
SELECT state FROM swarm.task_wait(:task, '60 s');
SELECT swarm.hook_drop(id) FROM swarm.hook_stat WHERE handler ~ '^agent_coord';
-- a call within a handler's call leaves the handler its timeout
SELECT swarm.hook_create('progress', 'before', 'agent_coord.look', timeout => '1 min') AS look \gset
SELECT swarm.task_submit('{"agent": "m6", "timeout": "300 ms", "task": {"progress": 1, "sleep": 3600}}') AS task \gset
SELECT state, error FROM swarm.task_wait(:task, '60 s');
-- whose hook it is; it leaves nothing to the end of a transaction with other rights
GRANT EXECUTE ON FUNCTION swarm.hook_create(text, text, regproc, int, interval) TO regress_agent_a;
CREATE FUNCTION agent_coord.hold(data jsonb) RETURNS void LANGUAGE plpgsql AS $$BEGIN EXECUTE 'DECLARE agent_coord_held CURSOR WITH HOLD FOR SELECT 1'; END$$;
SET ROLE regress_agent_a;
SELECT swarm.hook_create('progress', 'before', 'agent_coord.look');
SELECT swarm.hook_create('task_submit', 'before', 'agent_coord.hold', timeout => '1 min') > 0 AS id;
RESET ROLE;
REVOKE EXECUTE ON FUNCTION swarm.hook_create(text, text, regproc, int, interval) FROM regress_agent_a;
SELECT swarm.task_submit('{"agent": "m6", "task": {}}') AS task \gset
SELECT state FROM swarm.task_wait(:task, '60 s');
SELECT count(*) FROM pg_cursors WHERE name = 'agent_coord_held';
SELECT owner, calls, failures FROM swarm.hook_stat WHERE handler = 'agent_coord.hold';
SELECT count(swarm.hook_drop(id)) AS dropped FROM swarm.hook_stat WHERE handler ~ '^agent_coord';
-- at the other operations
CREATE FUNCTION agent_coord.never(data jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT jsonb_build_object('veto', data->>'event')$$;
SELECT count(swarm.hook_create(event, 'before', 'agent_coord.never', timeout => '1 min')) FROM swarm._hook_events() WHERE event ~ '^(agent_|task_submit|message|handoff)';
SELECT status, error FROM swarm.agent_spawn('[{"type": "agent_coord", "name": "vetoed"}]', timeout => '60 s');
SELECT swarm.task_submit('{"agent": "m6"}');
\set VERBOSITY sqlstate
SELECT swarm.agent_pause(agent_coord.id('m6')) = agent_coord.id('m6')::text;
SELECT swarm.agent_resume(agent_coord.id('m6'));
SELECT swarm.agent_stop(agent_coord.id('m6'));
SELECT swarm.agent_kill(agent_coord.id('m6'));
SELECT swarm.agent_message(agent_coord.id('m6'), agent_coord.id('m1'), 'notify', '{}');
SELECT swarm.agent_handoff(agent_coord.id('m6'), agent_coord.id('m1'), '{}');
SELECT count(swarm.hook_drop(id)) AS dropped FROM swarm.hook_stat WHERE handler ~ '^agent_coord';

-- Protocols: three phases, each step recorded; what fails before, stops it.
\set VERBOSITY terse
SELECT swarm.protocol_create('agent_coord', '{"before": [{"do": "dance"}]}');
SELECT swarm.protocol_create('agent_coord', '{"before": [{"do": "store"}]}');
SELECT swarm.protocol_create('agent_coord', '{"earlier": []}');
CREATE FUNCTION agent_coord.valid(data jsonb) RETURNS jsonb LANGUAGE sql AS $$SELECT CASE WHEN data->'task' ? 'invalid' THEN '{"veto": "not valid"}'::jsonb END$$;
SELECT swarm.protocol_create('agent_coord', '{"before": [{"do": "restore", "namespace": "default", "key": "agent_coord/{agent}"}, {"do": "validate", "function": "agent_coord.valid"},
    {"do": "notify", "to": "m4", "kind": "task-begins"}], "during": [{"do": "metrics"}, {"do": "notify", "to": "m4", "kind": "progress"}],
    "after": [{"do": "store", "namespace": "default", "key": "agent_coord/{agent}"}, {"do": "call", "function": "agent_coord.missing"},
    {"do": "notify", "to": "m4", "kind": "share-findings"}, {"do": "learn"}, {"do": "handoff", "to": "m5"}, {"do": "clean", "namespace": "default", "prefix": "agent_coord/tmp/"}]}');
SELECT count(*) FROM swarm.agent_inbox(agent_coord.id('m4')) WHERE kind <> 'handoff' AND kind <> 'notify';
SELECT swarm.task_submit('{"agent": "m3", "protocol": "agent_coord", "task": {"progress": 1}}') AS task \gset
SELECT state FROM swarm.task_wait(:task, '60 s');
SELECT phase, step, what, ok, detail FROM swarm.protocol_runs WHERE task = :task ORDER BY id;
SELECT kind FROM swarm.agent_inbox(agent_coord.id('m4')) WHERE kind <> 'handoff' AND kind <> 'notify';
SELECT swarm.memory_get('default', 'agent_coord/m3')->'error' AS error;
CALL agent_coord.until('EXISTS (SELECT FROM swarm.agent_tasks WHERE state = ''done'' AND agent_id = agent_coord.id(''m5'') AND task->''handoff'' ? ''outcome'')');
SELECT event, detail FROM swarm.agent_activity WHERE task = :task AND event = 'progress';
SELECT swarm.task_submit('{"agent": "m3", "protocol": "agent_coord", "task": {"invalid": 1}}') AS task \gset
SELECT state, attempts, error FROM swarm.task_wait(:task, '60 s');
SELECT phase, step, what, ok FROM swarm.protocol_runs WHERE task = :task ORDER BY id LIMIT 2;
SELECT pattern, successes, failures FROM swarm.agent_patterns WHERE type = 'agent_coord' ORDER BY 1;
\set VERBOSITY sqlstate
SELECT swarm.agent_progress(agent_coord.id('m3'), 0.5);
SELECT swarm.memory_delete('default', 'agent_coord/m3');
-- what has been restored is what was stored
CREATE FUNCTION agent_coord.session(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE sql AS $$
SELECT jsonb_build_object('n', coalesce((agent.restored->'session/{agent}'->'result'->'n')::int, 0) + 1, 'restored', to_jsonb(agent)->'restored')
$$;
SELECT swarm.agent_type_create('{"name": "agent_coord_session", "capabilities": ["agent_coord_session"], "handler": "agent_coord.session"}');
SELECT status FROM swarm.agent_spawn('[{"type": "agent_coord_session", "name": "ses1"}]', timeout => '3 min');
SELECT swarm.task_submit('{"agent": "ses1", "protocol": "session"}') AS task \gset
SELECT result FROM swarm.task_wait(:task, '60 s');
SELECT swarm.task_submit('{"agent": "ses1", "protocol": "session"}') AS task \gset
SELECT result->'n' AS n, result->'restored'->'session/{agent}'->'result' AS restored FROM swarm.task_wait(:task, '60 s');
SELECT swarm.task_submit('{"agent": "ses1"}') AS task \gset
SELECT result FROM swarm.task_wait(:task, '60 s');
SELECT swarm.memory_delete('default', 'session/ses1');

SELECT count(swarm.agent_kill(id)) AS killed FROM swarm._agent WHERE type ~ '^agent_coord' AND state <> 'stopped';
SELECT swarm.agent_type_drop(name) FROM swarm.agent_types WHERE name ~ '^agent_coord';
SET client_min_messages = warning;
DELETE FROM swarm._protocol WHERE name = 'agent_coord';
DELETE FROM swarm._topology t WHERE name ~ '^spawn' OR name ~ '^agent_coord';
DELETE FROM swarm._agent_event WHERE agent IN (SELECT id FROM swarm._agent WHERE owner::text ~ 'regress_agent_');
DELETE FROM swarm._agent WHERE owner::text ~ 'regress_agent_';
DELETE FROM swarm._agent_set WHERE owner::text ~ 'regress_agent_';
DELETE FROM swarm._agent_task WHERE owner::text ~ 'regress_agent_';
DELETE FROM swarm._memory WHERE owner::text ~ 'regress_agent_';
DROP SCHEMA agent_coord CASCADE;
DROP OWNED BY regress_agent_a, regress_agent_b;
DROP ROLE regress_agent_a, regress_agent_b;
