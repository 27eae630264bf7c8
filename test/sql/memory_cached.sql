-- swarm.cached(): results that depend on tables are those of now, whatever changes them.
\set VERBOSITY terse
SELECT swarm.namespace_create('c');
CREATE SCHEMA memory_cached;
CREATE TABLE memory_cached.t (v int);
CREATE VIEW memory_cached.w AS SELECT * FROM memory_cached.t;
CREATE SEQUENCE memory_cached.calls;
CREATE FUNCTION memory_cached.total() RETURNS jsonb LANGUAGE sql
    AS $$ SELECT swarm.cached('c', 'total', 'SELECT sum(v) AS s FROM memory_cached.t', tables => '{memory_cached.t}') $$;
SELECT memory_cached.total();
SELECT swarm.cached('c', 'total', NULL);
SELECT swarm.cache_watch('memory_cached.w');
SELECT swarm.cache_watch('memory_cached.t'), swarm.cache_watch('memory_cached.t');
SELECT memory_cached.total();
INSERT INTO memory_cached.t VALUES (1), (2);
SELECT memory_cached.total();
UPDATE memory_cached.t SET v = 3 WHERE v = 2;
SELECT memory_cached.total();
DELETE FROM memory_cached.t WHERE v = 1;
SELECT memory_cached.total();
COPY memory_cached.t FROM stdin;
10
\.
SELECT memory_cached.total();
TRUNCATE memory_cached.t;
SELECT memory_cached.total();
-- one's own change, and taken back
BEGIN;
INSERT INTO memory_cached.t VALUES (5);
SELECT memory_cached.total();
SAVEPOINT s;
INSERT INTO memory_cached.t VALUES (6);
SELECT memory_cached.total();
ROLLBACK TO s;
SELECT memory_cached.total();
ROLLBACK;
SELECT memory_cached.total();
-- of a prepared transaction
BEGIN;
INSERT INTO memory_cached.t VALUES (7);
PREPARE TRANSACTION 'memory_cached';
SELECT memory_cached.total();
COMMIT PREPARED 'memory_cached';
SELECT memory_cached.total();
-- repeatable read
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT memory_cached.total();
COMMIT;
-- partitions, also later ones
CREATE TABLE memory_cached.p (v int) PARTITION BY LIST (v);
CREATE TABLE memory_cached.p1 PARTITION OF memory_cached.p FOR VALUES IN (1);
SELECT swarm.cache_watch('memory_cached.p');
SELECT swarm.cached('c', 'p', 'SELECT count(*) AS n FROM memory_cached.p', tables => '{memory_cached.p}');
INSERT INTO memory_cached.p1 VALUES (1);
SELECT swarm.cached('c', 'p', 'SELECT count(*) AS n FROM memory_cached.p', tables => '{memory_cached.p}');
CREATE TABLE memory_cached.p2 PARTITION OF memory_cached.p FOR VALUES IN (2);
SELECT swarm.cached('c', 'p', 'SELECT count(*) AS n FROM memory_cached.p', tables => '{memory_cached.p}');
SELECT swarm.cache_watch('memory_cached.p');
SELECT swarm.cached('c', 'p', 'SELECT count(*) AS n FROM memory_cached.p', tables => '{memory_cached.p,memory_cached.t}');
INSERT INTO memory_cached.p2 VALUES (2);
SELECT swarm.cached('c', 'p', 'SELECT count(*) AS n FROM memory_cached.p', tables => '{memory_cached.p,memory_cached.t}');
-- a partition that is changed through its parent
SELECT swarm.cached('c', 'p1', 'SELECT count(*) AS n FROM memory_cached.p1', tables => '{memory_cached.p1}');
INSERT INTO memory_cached.p VALUES (1);
SELECT swarm.cached('c', 'p1', 'SELECT count(*) AS n FROM memory_cached.p1', tables => '{memory_cached.p1}');
-- children
CREATE TABLE memory_cached.mother (v int);
CREATE TABLE memory_cached.child () INHERITS (memory_cached.mother);
SELECT swarm.cache_watch('memory_cached.mother');
SELECT swarm.cached('c', 'mother', 'SELECT count(*) AS n FROM memory_cached.mother', tables => '{memory_cached.mother}');
INSERT INTO memory_cached.child VALUES (1);
SELECT swarm.cached('c', 'mother', 'SELECT count(*) AS n FROM memory_cached.mother', tables => '{memory_cached.mother}');
-- it is computed once (others who write at that moment may cost a second time)
CREATE FUNCTION memory_cached.hit(tables regclass[]) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    n bigint;
BEGIN
    PERFORM swarm.cached('c', 'calls', 'SELECT nextval(''memory_cached.calls'')', tables => tables);
    n := (SELECT last_value FROM memory_cached.calls);
    PERFORM swarm.cached('c', 'calls', 'SELECT nextval(''memory_cached.calls'')', tables => tables);
    RETURN n = (SELECT last_value FROM memory_cached.calls);
END $$;
\getenv tests PG_ABS_SRCDIR
\set until :tests '/sql/include/until.sql'
\set schema memory_cached
\i :until
CALL memory_cached.until($$memory_cached.hit(NULL)$$);
SELECT swarm.memory_delete('c', 'calls');
CALL memory_cached.until($$memory_cached.hit('{memory_cached.t}')$$);
CALL memory_cached.until($$(SELECT swarm.cached('c', 'hit', 'SELECT nextval(''memory_cached.calls'') AS n', tables => '{memory_cached.t}') = swarm.cached('c', 'hit', 'SELECT nextval(''memory_cached.calls'') AS n', tables => '{memory_cached.t}'))$$);
-- for how long: as told, as the namespace, or an hour
SELECT swarm.cached('c', 'ttl', 'SELECT 1 AS one'), swarm.cached('c', 'ttl 5', 'SELECT 1 AS one', '5 min');
SELECT swarm.namespace_alter('c', '{"default_ttl": "1 day"}'), swarm.cached('c', 'ttl day', 'SELECT 1 AS one');
SELECT key, expires_at - created_at AS ttl FROM swarm.memory WHERE namespace = 'c' AND key ~ '^ttl' ORDER BY key;
-- by key and by prefix
SELECT swarm.memory_delete('c', 'ttl'), swarm.memory_clear('c', 'ttl ');
SELECT swarm.cached('c', 'ttl', 'SELECT 2 AS two');
-- no query, no right, no trigger
SELECT swarm.cached('c', 'bad', 'SELECT 1; DROP TABLE memory_cached.t', tables => '{memory_cached.t}');
SELECT swarm.cached('c', NULL, 'SELECT 1', tables => '{memory_cached.t}');
SELECT swarm.cached('c', 'none', 'SELECT 1 AS one', tables => '{}');
SELECT swarm.cached('c', 'none', 'SELECT 1 AS one', tables => '{NULL}');
SELECT swarm.cache_watch('pg_catalog.pg_class');
SELECT swarm.cache_unwatch('memory_cached.t');
SELECT memory_cached.total();
\set VERBOSITY sqlstate
CREATE ROLE regress_memory_cached;
SET ROLE regress_memory_cached;
SELECT swarm.cache_watch('memory_cached.t');
RESET ROLE;
DROP ROLE regress_memory_cached;
SELECT swarm.namespace_drop('c');
\set VERBOSITY terse
SET client_min_messages = warning;
DROP SCHEMA memory_cached CASCADE;
