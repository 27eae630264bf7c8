-- Who sees and commands agents, their tasks and conversations: who has the privileges of the owner role. A member that
-- must SET ROLE first to use them has nothing, on all versions.
\set VERBOSITY sqlstate
SET client_min_messages = warning;
CREATE ROLE regress_agent_team;
CREATE ROLE regress_agent_bob;
CREATE ROLE regress_agent_cat NOINHERIT;
GRANT regress_agent_team TO regress_agent_bob, regress_agent_cat;
SET ROLE regress_agent_team;
SELECT min(agent_id) AS agent, max(agent_id) AS other FROM swarm.agent_spawn('[{"type": "analytics", "name": "rights"}, {"type": "analytics", "name": "rights_2"}]',
    topology => 'ring', timeout => '3 min') \gset
SELECT swarm.task_submit('{"agent": "rights", "run_at": "2999-01-01 00:00+00", "task": {}}') AS task \gset
SELECT swarm.agent_message(:agent, :other, 'notify', '1') > 0 AS sent;
RESET ROLE;
INSERT INTO swarm._llm_conversation (owner, model, state) VALUES ('regress_agent_team', 'm', 'completed') RETURNING id AS conversation \gset
INSERT INTO swarm._llm_cost (owner, conversation, model, tokens_in, tokens_out, tokens_cached, estimated) VALUES ('regress_agent_team', :conversation, 'm', 1, 1, 0, false);
CREATE FUNCTION public.agent_rights_seen(OUT agents bigint, OUT tasks bigint, OUT activity boolean, OUT stat bigint, OUT batches bigint, OUT messages bigint,
    OUT found bigint, OUT neighbours bigint, OUT conversations bigint, OUT costs bigint) LANGUAGE sql AS $$
SELECT (SELECT count(*) FROM swarm.agents), (SELECT count(*) FROM swarm.agent_tasks), (SELECT count(*) > 0 FROM swarm.agent_activity),
       (SELECT count(*) FROM swarm.agent_stat), (SELECT count(*) FROM swarm.spawn_batches), (SELECT count(*) FROM swarm.agent_messages),
       (SELECT count(*) FROM swarm.agent_find('{analytics}')), (SELECT count(*) FROM swarm._topology_member),
       (SELECT count(*) FROM swarm._llm_conversation), (SELECT count(*) FROM swarm._llm_cost)
$$;

SET ROLE regress_agent_bob;
SELECT * FROM public.agent_rights_seen();
SELECT swarm.agent_pause(:agent), swarm.agent_resume(:agent);
SELECT state FROM swarm.task_wait(:task, '1 ms');
SELECT kind FROM swarm.agent_inbox(:other);
SELECT name, status FROM swarm.agent_spawn('[{"type": "analytics", "name": "rights_bob", "role": "regress_agent_team"}]', timeout => '3 min');

SET ROLE regress_agent_cat;
SELECT * FROM public.agent_rights_seen();
SELECT swarm.agent_pause(:agent);
SELECT swarm.agent_kill(:agent);
SELECT swarm.agent_status(:agent);
SELECT swarm.agent_inbox(:agent);
SELECT swarm.agent_message(:agent, :other, 'notify', '1');
SELECT swarm.agent_progress(:agent, 0.5);
SELECT swarm.topology_create('hers', 'ring', ARRAY[:agent]);
SELECT swarm.task_submit('{"agent": "rights", "task": {}}');
SELECT swarm.task_submit(jsonb_build_object('agent', :agent, 'task', 1));
SELECT swarm.task_wait(:task, '1 ms');
SELECT swarm.task_cancel(:task);
SELECT swarm.llm_say(:conversation, '"go on"');
SELECT swarm.llm_cancel(:conversation);
SELECT name, status FROM swarm.agent_spawn('[{"type": "analytics", "name": "rights_cat", "role": "regress_agent_team"}]', timeout => '3 min');
-- what she submits for anybody does not go to the team's agents
SELECT swarm.task_submit('{"type": "analytics", "capabilities": ["analytics"], "task": {}}') AS hers \gset
SELECT agent_id IS NULL AS nobody, waits_because FROM swarm.agent_tasks WHERE id = :hers;
SELECT swarm.task_cancel(:hers);
-- as the team she may
SET ROLE regress_agent_team;
SELECT swarm.agent_pause(:agent), swarm.agent_resume(:agent), swarm.task_cancel(:task);
SELECT count(swarm.agent_stop(id)) AS stopped FROM swarm.agents;
-- the job of the task that would have begun in 2999
SELECT count(swarm.job_cancel(id)) > 0 AS cancelled FROM swarm.jobs WHERE finished_at IS NULL AND run_at > '2998-01-01 00:00+00';

RESET ROLE;
DELETE FROM swarm._llm_conversation WHERE id = :conversation;
DELETE FROM swarm._llm_cost WHERE conversation = :conversation;
DROP FUNCTION public.agent_rights_seen;
DELETE FROM swarm._topology WHERE owner = 'regress_agent_team'::regrole;
DELETE FROM swarm._agent_message WHERE owner = 'regress_agent_team'::regrole;
DELETE FROM swarm._agent_task WHERE submitter IN ('regress_agent_team'::regrole, 'regress_agent_cat'::regrole);
DELETE FROM swarm._agent WHERE owner = 'regress_agent_team'::regrole;
DELETE FROM swarm._agent_set WHERE owner = 'regress_agent_team'::regrole;
DELETE FROM swarm._spawn_batch WHERE owner IN ('regress_agent_team'::regrole, 'regress_agent_bob'::regrole, 'regress_agent_cat'::regrole);
DELETE FROM swarm._memory WHERE owner IN ('regress_agent_team'::regrole, 'regress_agent_bob'::regrole, 'regress_agent_cat'::regrole);
DROP OWNED BY regress_agent_team, regress_agent_bob, regress_agent_cat;
DROP ROLE regress_agent_team, regress_agent_bob, regress_agent_cat;
