-- The test kit for agents does what it says, and fails when it should.
\set VERBOSITY terse
SET client_min_messages = warning;
CREATE EXTENSION pg_swarm_test;
SELECT (ids)[1] AS one, (ids)[2] AS two FROM (SELECT swarm_test.spawn('kit_one', 'kit_two') AS ids OFFSET 0) s \gset
SELECT swarm_test.spawn('kit_one');
SELECT swarm_test.script('kit_one', '[]');
SELECT swarm_test.script('kit_one', '[{"error": "first"}, {"error": "second", "sqlstate": "40001"}, {"result": 3}]');
SELECT swarm.task_submit('{"agent": "kit_one", "task": {}}') AS task \gset
SELECT swarm_test.assert_task(:task, 'done', '3');
SELECT swarm_test.assert_events(:one, 'start', 'ready', 'take', 'done', 'take', 'done', 'take', 'done');
SELECT swarm_test.assert_equal(1, 2, 'one');
SELECT swarm_test.assert_equal(NULL::int, NULL);
SELECT count(*) FROM (SELECT swarm_test.assert_state(:one, 'idle')) s;
-- faults: of the call, of its commit; a wait that is disarmed
SELECT swarm_test.fault('agent.call');
SELECT swarm.task_submit('{"agent": "kit_two", "task": 1}') AS task \gset
SELECT swarm_test.assert_task(:task, 'done', '1');
SELECT attempts FROM swarm.agent_tasks WHERE id = :task;
SELECT swarm_test.fault('agent.taken', 'wait');
SELECT swarm.task_submit('{"agent": "kit_two", "task": 2}') AS task \gset
CALL swarm_test.until(format('(SELECT state = ''busy'' FROM swarm.agents WHERE id = %s)', :two));
SELECT swarm_test.fault(NULL, 'none');
SELECT swarm_test.assert_task(:task, 'done', '2');
-- the clock: what is due in an hour
SELECT swarm.task_submit(jsonb_build_object('agent', 'kit_two', 'task', 3, 'run_at', now() + '1 hour')) AS task \gset
SELECT swarm_test.clock_advance('2 hours') > now() AS moved;
SELECT swarm_test.assert_task(:task, 'done', '3');
SELECT swarm_test.clock_advance(NULL) < now() + '1 hour' AS back;
SELECT count(swarm.agent_kill(id)) AS killed FROM swarm.agents WHERE type = 'swarm_test';
SELECT swarm.agent_type_drop('swarm_test');
DROP EXTENSION pg_swarm_test CASCADE;
