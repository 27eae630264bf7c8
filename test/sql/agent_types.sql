-- Types of agents: the schema, its messages, cards and tools, what comes with the extension.
\set VERBOSITY terse
CREATE SCHEMA agent_types;
CREATE FUNCTION agent_types.work(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE sql AS 'SELECT task';
CREATE FUNCTION agent_types.number(task jsonb, agent swarm.agent) RETURNS int LANGUAGE sql AS 'SELECT 1';

-- what is wrong, and where
SELECT swarm.agent_type_create(NULL);
SELECT swarm.agent_type_create('[]');
SELECT swarm.agent_type_create('{"name": "agent_types_a"}');
SELECT swarm.agent_type_create('{"name": "", "capabilities": []}');
SELECT swarm.agent_type_create('{"name": "agent_types_a", "capabilities": ["x", 1]}');
SELECT swarm.agent_type_create('{"name": "agent_types_a", "capabilities": [], "colour": "red"}');
SELECT swarm.agent_type_create('{"name": "agent_types_a", "capabilities": [], "handler": "agent_types.work", "permission_mode": "all"}');
SELECT swarm.agent_type_create('{"name": "agent_types_a", "capabilities": [], "handler": "agent_types.work", "tools": [{"name": "t"}, {"description": "no name"}]}');
SELECT swarm.agent_type_create('{"name": "agent_types_a", "capabilities": [], "handler": "agent_types.work", "budget": {"max_tokens": -1}}');
SELECT swarm.agent_type_create('{"name": "agent_types_a", "capabilities": [], "handler": "agent_types.work", "version": 1.5}');
SELECT swarm.agent_type_create('{"name": "agent_types_a", "capabilities": []}');
SELECT swarm.agent_type_create('{"name": "agent_types_a", "capabilities": [], "handler": "agent_types.work", "model": "m"}');
SELECT swarm.agent_type_create('{"name": "agent_types_a", "capabilities": [], "handler": "agent_types.nothing"}');
SELECT swarm.agent_type_create('{"name": "agent_types_a", "capabilities": [], "handler": "work"}');
SELECT swarm.agent_type_create('{"name": "agent_types_a", "capabilities": [], "handler": "agent_types.number"}');
SELECT swarm.agent_type_create('{"name": "agent_types_a", "capabilities": [], "job_kind": "no such kind"}');

SELECT swarm.agent_type_create('{"name": "agent_types_a", "description": "counts words", "capabilities": ["count", "words", "count"],
    "handler": "agent_types.work", "max_concurrency": 2, "tools": [{"name": "count", "description": "count", "readOnly": true,
    "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}}}, {"name": "more"}]}');
SELECT name, version, capabilities, handler, permission_mode, max_concurrency FROM swarm.agent_types WHERE name = 'agent_types_a';
SELECT jsonb_pretty(swarm.agent_card('agent_types_a'));
SELECT jsonb_pretty(swarm.agent_tools('agent_types_a'));
SELECT swarm.agent_card('no such type');
SELECT swarm.agent_tools('no such type');
-- a change is a new version
SELECT swarm.agent_type_create('{"name": "agent_types_a", "capabilities": ["count"], "handler": "agent_types.work"}');
SELECT version, capabilities FROM swarm.agent_types WHERE name = 'agent_types_a';
SELECT swarm.agent_type_drop('agent_types_a');
SELECT swarm.agent_type_drop('agent_types_a');

-- what comes with it stays as it is
SELECT swarm.agent_type_create('{"name": "analytics", "capabilities": [], "handler": "agent_types.work"}');
SELECT swarm.agent_type_drop('analytics');
SELECT swarm.protocol_create('team', '{}');
-- all that comes with the extension fits the schema, and its handlers exist
SELECT t.name, cardinality(t.capabilities) AS capabilities, swarm._json_misfit(t.spec, swarm.agent_schema(), '$') AS misfit,
       swarm._agent_handler(t.handler) <> 0 AS has_handler
FROM swarm.agent_types t WHERE t.owner::oid = 10 AND t.name !~ '^agent_' ORDER BY 1;
SELECT p.name, swarm._json_misfit(p.spec, swarm._protocol_schema(), '$') AS misfit FROM swarm.protocols p WHERE p.owner::oid = 10 AND p.name IN ('session', 'team', 'pipeline') ORDER BY 1;
SELECT swarm.agent_schema('agent')->>'title' AS agent, swarm.agent_schema('task')->>'title' AS task, swarm.agent_schema('x') IS NULL AS none;
DROP SCHEMA agent_types CASCADE;
