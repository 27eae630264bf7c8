-- Servers of models: options are checked, and the key is in user mappings only.
\set SHOW_CONTEXT never
CREATE SERVER llm_1 FOREIGN DATA WRAPPER swarm_llm;
CREATE SERVER llm_1 FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint 'ftp://x');
CREATE SERVER llm_1 FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint 'https://user@host');
CREATE SERVER llm_1 FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint 'https://host', dialect 'latin');
CREATE SERVER llm_1 FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint 'https://host', path '../v1');
CREATE SERVER llm_1 FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint 'https://host', timeout 'soon');
CREATE SERVER llm_1 FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint 'https://host', max_parallel '0');
CREATE SERVER llm_1 FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint 'https://host', api_key 'x');
CREATE SERVER llm_1 FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint 'https://host', colour 'red');
CREATE SERVER llm_1 FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint 'https://host:8443/', dialect 'openai', path '/openai/v1',
    timeout '5min', stall_timeout '30s', max_parallel '4', version '2023-06-01');
CREATE USER MAPPING FOR PUBLIC SERVER llm_1 OPTIONS (api_key '');
CREATE USER MAPPING FOR PUBLIC SERVER llm_1 OPTIONS (endpoint 'x');
CREATE USER MAPPING FOR PUBLIC SERVER llm_1 OPTIONS (api_key 'sk-1');

-- Who creates a server decides where conversations go
CREATE ROLE swarm_llm_user;
GRANT USAGE ON FOREIGN DATA WRAPPER swarm_llm TO swarm_llm_user;
SET ROLE swarm_llm_user;
CREATE SERVER llm_2 FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint 'https://elsewhere');
SELECT swarm.llm_ask('fast', 'hello');
SELECT swarm.llm_embed('fast', '{a}');
SELECT swarm.tool_create('t', 'pg_catalog.lower(text)'::regprocedure::regproc);
SELECT count(*) > 0 AS models FROM swarm.models;
UPDATE swarm.models SET server = 'x';
SELECT * FROM swarm.budgets;
CALL swarm._llm_run(NULL);
CALL swarm._s3_run(NULL);
RESET ROLE;
SET pg_swarm.llm_allowed_endpoints = 'https://elsewhere';
SET ROLE swarm_llm_user;
CREATE SERVER llm_2 FOREIGN DATA WRAPPER swarm_llm OPTIONS (endpoint 'https://elsewhere');
RESET ROLE;
RESET pg_swarm.llm_allowed_endpoints;
DROP SERVER llm_2;
REVOKE ALL ON FOREIGN DATA WRAPPER swarm_llm FROM swarm_llm_user;
DROP ROLE swarm_llm_user;
DROP SERVER llm_1 CASCADE;

-- Models
SELECT name, alias_of, provider, tier, context, price_input, price_output, status FROM swarm.models WHERE NOT touched ORDER BY name COLLATE "C";
SELECT swarm._model_resolve('deep');
SELECT swarm._model_resolve('unknown');
BEGIN;
INSERT INTO swarm.models (name, alias_of) VALUES ('a1', 'a2'), ('a2', 'a1');
SELECT swarm._model_resolve('a1');
ROLLBACK;
BEGIN;
UPDATE swarm.models SET status = 'disabled' WHERE name = 'claude-3-opus-20240229';
SELECT swarm._model_resolve('deep');
ROLLBACK;
BEGIN;
-- a restored row takes the place of the one that CREATE EXTENSION has made
INSERT INTO swarm.models (name, alias_of) VALUES ('fast', 'claude-3-opus-20240229');
SELECT name, alias_of, touched FROM swarm.models WHERE name = 'fast';
ROLLBACK;
\set VERBOSITY terse
INSERT INTO swarm.budgets (scope, limit_usd) VALUES ('galaxy', 1);
INSERT INTO swarm.budgets (scope, limit_usd) VALUES ('role:nobody here', 1);
INSERT INTO swarm.budgets (scope) VALUES ('all');
INSERT INTO swarm.budgets (scope, limit_usd) VALUES ('all', 'NaN');
INSERT INTO swarm.budgets (scope, limit_usd) VALUES ('all', 'Infinity');
INSERT INTO swarm.models (name, price_output) VALUES ('n', 'NaN');
\set VERBOSITY default

-- What is asked is checked before anything is sent
SELECT swarm.llm_ask('unknown', 'hello');
SELECT swarm.llm_ask('fast', '[]'::jsonb);
SELECT swarm.llm_ask('fast', '[{"role": "system", "content": "x"}]'::jsonb);
SELECT swarm.llm_ask('fast', '[{"role": "user"}]'::jsonb);
SELECT swarm.llm_ask('fast', '[{"role": "assistant", "content": "x"}]'::jsonb);
SELECT swarm.llm_ask('fast', 'x', permission_mode => 'all');
SELECT swarm.llm_ask('fast', 'x', options => '{"colour": "red"}');
SELECT swarm.llm_ask('fast', 'x', options => '{"max_tokens": 0}');
SELECT swarm.llm_ask('fast', 'x', options => '{"budget_usd": "NaN"}');
SELECT swarm.llm_ask('fast', 'x', tools => '{none}');
SELECT swarm.llm_wait(0);
SELECT * FROM swarm.llm_embeddings(0);
SELECT swarm.llm_say(0, 'x');
SELECT swarm.tool_create('a tool', 'pg_catalog.now');
SELECT swarm.tool_create('t', 'pg_catalog.now', 'magic');
SELECT swarm.tool_create('t', 'pg_catalog.now', 'read', 'the time');
SELECT name, function, class, description, schema FROM swarm.tools WHERE name = 't';
-- the call of a tool names its function, so that there must be only one
SELECT swarm.tool_create('u', 'pg_catalog.lower(text)'::regprocedure::regproc);
CREATE FUNCTION pg_temp.llm_double(a int, b int = 2) RETURNS int LANGUAGE sql AS 'SELECT a * b';
SELECT * FROM swarm._llm_tool_execute('pg_temp.llm_double'::regproc, '{"a": 3}', false);
CREATE FUNCTION pg_temp.llm_double(a int) RETURNS text LANGUAGE sql AS 'SELECT current_user::text';
SELECT * FROM swarm._llm_tool_execute('pg_temp.llm_double(int,int)'::regprocedure, '{"a": 3}', false);
-- JSON that text cannot hold is no error, in a result or in the body of a query
CREATE FUNCTION pg_temp.llm_zero(n int) RETURNS json LANGUAGE sql AS $$SELECT json '{"a": ["\u0000x\udead", "\\u0000"]}'$$;
SELECT result = '{"a": ["' || chr(65533) || 'x' || chr(65533) || '", "\\u0000"]}' AS same, failed FROM swarm._llm_tool_execute('pg_temp.llm_zero'::regproc, '{"n": 1}', false);
BEGIN;
SELECT swarm.query_start('llm', '[{"role": "user", "content": "\u0000"}]', 'fast') AS query \gset
SELECT swarm._llm_of_query(:query) AS conversation \gset
SELECT text = chr(65533) AS same FROM swarm._llm_message WHERE conversation = :conversation;
ROLLBACK;
-- options do not change what a budget reserves for
SELECT swarm._llm_body(jsonb_populate_record(NULL::swarm._llm_conversation,
    '{"id": 0, "tools": [], "options": {"params": {"max_tokens": 9, "max_completion_tokens": 9, "n": 9, "stream_options": null, "top_k": 9}}}'), m, d, 5)
    - 'model' AS body
FROM swarm.models m, unnest('{anthropic,openai}'::text[]) d WHERE m.name = 'claude-3-opus-20240229';
-- an agent asks a model with the tools and the budget of its type
BEGIN;
SELECT swarm._agent_run_model('"hello"', jsonb_populate_record(NULL::swarm.agent, '{"id": 1, "task": 2, "settings": {"model": "fast", "tools": [{"name": "t"}],
    "budget": {"max_tokens": 10, "max_cost": 0.5, "max_turns": 3}}}'))->>'query' AS query \gset
SELECT swarm._llm_of_query(:query) AS conversation \gset
SELECT tools, options FROM swarm._llm_conversation WHERE id = :conversation;
ROLLBACK;
SELECT swarm.tool_drop('t');
SELECT swarm.tool_drop('t');

-- The tables of what is decided
SELECT * FROM swarm._llm_decisions();
SELECT * FROM swarm._llm_edges();
SELECT m AS mode, swarm._llm_permission(m, 'read') AS read, swarm._llm_permission(m, 'write') AS write,
       swarm._llm_permission(m, 'destructive') AS destructive
FROM unnest('{plan,default,acceptEdits,bypassPermissions}'::text[]) m;
SELECT a, string_agg(swarm._llm_stricter(a, b), ' ' ORDER BY n)
FROM unnest('{plan,default,acceptEdits,bypassPermissions}'::text[]) a, unnest('{plan,default,acceptEdits,bypassPermissions}'::text[]) WITH ORDINALITY x(b, n)
GROUP BY a ORDER BY a COLLATE "C";
