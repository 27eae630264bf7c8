-- A task of the agent for each question, the answers and what they have cost.  Ends with an error if one has none.
SELECT FROM swarm.agent_spawn('[{"type": "answer", "name": "answer"}]', timeout => '1 min') \g /dev/null
UPDATE demo.question q SET task = swarm.task_submit(jsonb_build_object('agent', 'answer', 'task', jsonb_build_object('question', q.id)));
UPDATE demo.question q SET (conversation, answer) = (SELECT (w.result ->> 'conversation')::bigint, jsonb_build_object('error', w.error)
	FROM swarm.task_wait(q.task, '2 min') w);
UPDATE demo.question q SET answer = swarm.llm_wait(q.conversation, '5 min') WHERE q.conversation IS NOT NULL;
SELECT format(E'  %s\n        %s', body, coalesce(nullif(regexp_replace(answer ->> 'text', '\s+', ' ', 'g'), ''), answer ->> 'error', 'no answer'))
FROM demo.question ORDER BY id;
SELECT format('  %s answers, %s tokens read and %s written: %s', count(*), sum(tokens_in), sum(tokens_out),
	coalesce(trim_scale(sum(cost)) || ' USD', 'no price is given'))
FROM swarm.costs WHERE agent = (SELECT id FROM swarm.agents WHERE name = 'answer');
SELECT 1 / coalesce(bool_and(answer ->> 'state' = 'complete'), false)::int FROM demo.question \g /dev/null
