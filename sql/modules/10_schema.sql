-- 10_schema.sql: the schema of everything public.
--
-- The operators and operator classes on real[] are the one exception: they
-- go to the schema that CREATE EXTENSION names.

\echo Use "CREATE EXTENSION pg_swarm" to load this file. \quit

CREATE SCHEMA swarm;
COMMENT ON SCHEMA swarm IS 'pg_swarm: jobs, memory, uploads, agents, queries and vectors';
