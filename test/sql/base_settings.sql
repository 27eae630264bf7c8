-- Functions do the same whatever the session has set that calls them, and read no argument that is not there.
\set VERBOSITY terse
SELECT swarm.namespace_create('settings/words');
SELECT swarm.memory_store('settings/words', 'a', '{"text": "back\\slash and quote''s"}'), swarm.memory_store('settings/words', 'b', '{"text": "other"}');
-- a new session, in which none of them is compiled yet
\c -
\set VERBOSITY terse
SET standard_conforming_strings = off;
SET quote_all_identifiers = on;
SET extra_float_digits = -15;
SET IntervalStyle = 'sql_standard';
SET DateStyle = 'SQL, DMY';
SET bytea_output = 'escape';
SELECT key FROM swarm.memory_search('settings/words', 'slashes and', mode => 'text');
SELECT swarm._temp_bytes(0) >= 0 AS bytes;
SELECT swarm.namespace_drop('settings/words');
RESET ALL;
-- What a body has in quotes means the same with any standard_conforming_strings.
SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
    JOIN pg_extension e ON e.oid = d.refobjid JOIN pg_language l ON l.oid = p.prolang
WHERE e.extname = 'pg_swarm' AND l.lanname IN ('sql', 'plpgsql')
  AND strpos(regexp_replace(p.prosrc, $$E'([^'\\]|''|\\.)*'$$, '', 'g'), E'\\') > 0;
SELECT swarm._hook_run(NULL, NULL, NULL, NULL);
