-- An agent that answers questions with a language model, from the sections that the search finds.  docs/demo/run loads
-- this as the role demo when DEMO_LLM names a server; then model.sql, then ask.sql.

-- task: the agent's, which ends when the model is asked; conversation: with the model; answer: what swarm.llm_wait says.
CREATE TABLE demo.question (
	id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	body text NOT NULL,
	task bigint,
	conversation bigint,
	answer jsonb
);

-- The model is asked when this commits: a runner waits for the network, the agent does not.
CREATE FUNCTION demo.answer(args jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	question text := (SELECT body FROM demo.question q WHERE q.id = (args ->> 'question')::int);
	found text := (SELECT string_agg(format(E'[%s] %s > %s\n%s', n, title, heading, left(body, 2000)), E'\n\n' ORDER BY n)
		FROM demo.ask(question) WITH ORDINALITY a(similarity, title, heading, body, page, n));
BEGIN
	RETURN jsonb_build_object('conversation', swarm.llm_ask('demo',
		format(E'Sections of the documents:\n\n%s\n\nQuestion: %s', found, question),
		system => 'Answer in at most three sentences, from the given sections only, and name the numbers of those that you use. '
			'If they do not answer the question, say so.',
		options => jsonb_build_object('max_tokens', 300, 'agent', (agent).id)));
END $$;
