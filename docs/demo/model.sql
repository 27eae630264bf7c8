-- A server of language models.  docs/demo/run loads this as a superuser when DEMO_LLM names one.  The key comes from the
-- environment, so that no list of processes has it, and a failing statement is not logged with it.
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
\set dialect anthropic
\set input ''
\set output ''
\getenv endpoint DEMO_LLM
\getenv dialect DEMO_LLM_DIALECT
\getenv model DEMO_LLM_MODEL
\getenv key DEMO_LLM_KEY
\getenv input DEMO_LLM_PRICE_INPUT
\getenv output DEMO_LLM_PRICE_OUTPUT
CREATE SERVER llm FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint :'endpoint', dialect :'dialect');
\if :{?key}
CREATE USER MAPPING FOR PUBLIC SERVER llm OPTIONS (api_key :'key');
\endif
GRANT USAGE ON FOREIGN SERVER llm TO demo;
GRANT EXECUTE ON FUNCTION swarm.llm_ask(text, text, text, text[], text, jsonb), swarm.llm_ask(text, jsonb, text, text[], text, jsonb) TO demo;
INSERT INTO swarm.models (name, server, remote_name, price_input, price_output)
VALUES ('demo', 'llm', :'model', nullif(:'input', '')::numeric, nullif(:'output', '')::numeric);
SELECT swarm.agent_type_create('{"name": "answer", "capabilities": ["answer"], "handler": "demo.answer"}') \g /dev/null
