-- By words, by meaning, both; what has expired or is filtered takes no place.
\set VERBOSITY terse
SELECT swarm.namespace_create('s/embed', embed => true, dims => 64), swarm.namespace_create('s/plain');
CREATE TEMP TABLE facts (key text, value jsonb);
INSERT INTO facts VALUES ('cat', '{"text": "The cat sat on the mat", "kind": "animal"}'), ('dog', '{"text": "Dogs chase cats in the garden", "kind": "animal"}'),
    ('pg', '{"text": "PostgreSQL stores its tables in files", "kind": "software"}'), ('redis', '{"text": "Redis stores its keys in memory", "kind": "software"}'),
    ('deep', '{"list": [{"note": "a database index"}, 4711]}');
SELECT swarm.memory_store(n, key, value) FROM facts, unnest('{s/embed,s/plain}'::text[]) n;
SELECT key, score > 0 AS scored, distance FROM swarm.memory_search('s/plain', 'cats', mode => 'text');
SELECT key FROM swarm.memory_search('s/plain', 'datab', mode => 'text');
SELECT key FROM swarm.memory_search('s/plain', '4711');
SELECT key FROM swarm.memory_search('s/plain', 'stores', filter => '{"kind": "software"}') ORDER BY key;
SELECT key FROM swarm.memory_search('s/plain', 'stores', filter => '{"kind": "animal"}');
SELECT count(*) FROM swarm.memory_search('s/plain', 'the of and'), swarm.memory_search('s/plain', '') x;
SELECT count(*) FROM swarm.memory_search('s/plain', $$it's a "test" & | ! :* \ '$$);
SELECT key FROM swarm.memory_search('s/embed', 'cats', mode => 'text');
SELECT key, round(distance::numeric, 2) < 1 AS near FROM swarm.memory_search('s/embed', 'PostgreSQL stores tables', 1, 'semantic');
SELECT key FROM swarm.memory_search('s/embed', 'PostgreSQL stores tables', 2);
SELECT count(*) FROM swarm.memory_search('s/embed', 'anything at all', 100, 'semantic');
-- the answer is that of a search through everything
SELECT (SELECT array_agg(key) FROM swarm.memory_search('s/embed', 'keys in memory', 3, 'semantic'))
     = (SELECT array_agg(key) FROM (SELECT key FROM facts, swarm._memory_text(key, value) t
                                    ORDER BY swarm.embed(t, 64) <=> swarm.embed('keys in memory', 64) LIMIT 3) e) AS same;
-- overwritten, deleted, expired
SELECT swarm.memory_store('s/embed', 'pg', '{"text": "nothing of the kind"}'), swarm.memory_delete('s/embed', 'redis'), swarm.memory_expire('s/embed', 'dog', '1 hour');
SELECT key FROM swarm.memory_search('s/embed', 'stores');
SELECT key FROM swarm.memory_search('s/embed', 'cats chase', mode => 'text');
SELECT swarm._clock_advance('1 hour') IS NOT NULL AS moved;
SELECT key FROM swarm.memory_search('s/embed', 'cats chase', mode => 'text');
SELECT key FROM swarm.memory_search('s/embed', 'cats chase', 10, 'semantic') ORDER BY key;
SELECT key FROM swarm.memory_search('s/embed', 'cats chase', 1, 'semantic', '{"kind": "animal"}');
SELECT swarm._clock_advance(NULL) IS NOT NULL AS moved;
-- the caller's vectors
SELECT swarm.memory_store('s/embed', 'mine', '{"text": "elsewhere"}', embedding => array_fill(1::real, ARRAY[64]));
SELECT key, distance < 1e-6 AS there FROM swarm.memory_search('s/embed', NULL, 1, 'semantic', embedding => array_fill(2::real, ARRAY[64]));
SELECT swarm.memory_store('s/embed', 'mine', '1', embedding => '{1,2}');
SELECT count(*) FROM swarm.memory_search('s/embed', NULL, 1, 'semantic', embedding => '{1,2}');
-- rows past the functions; embed for what is there
INSERT INTO swarm._memory SELECT id, 'direct', 1, NULL, NULL, now(), now(), 10, current_user::regrole, '{}', '"zebra"' FROM swarm._namespace WHERE name = 's/embed';
SELECT swarm.memory_reembed('s/embed') > 0 AS done;
SELECT key FROM swarm.memory_search('s/embed', 'zebra', mode => 'text');
SELECT swarm.namespace_alter('s/plain', '{"embed": true, "dims": 32}');
SELECT key FROM swarm.memory_search('s/plain', 'PostgreSQL stores tables', 1, 'semantic');
-- the session's plan of the statement goes with what it reads
SELECT swarm.namespace_alter('s/plain', '{"dims": 16}');
SELECT key FROM swarm.memory_search('s/plain', 'PostgreSQL stores its tables in files', 1, 'semantic');
SELECT count(*) AS statements, sum(n) AS answers FROM generate_series(1, 70) lim,
    LATERAL (SELECT count(*) AS n FROM swarm.memory_search('s/plain', 'PostgreSQL', lim, 'semantic')) m;
SELECT swarm.namespace_alter('s/plain', '{"embed": false}');
SELECT key FROM swarm.memory_search('s/plain', 'PostgreSQL stores tables', 1, 'semantic');
SELECT swarm.memory_reembed('s/plain');
SELECT key FROM swarm.memory_search('s/plain', 'x', mode => 'fuzzy');
SELECT key FROM swarm.memory_search('s/plain', 'x', -1);
SELECT key FROM swarm.memory_search('s/plain', NULL);
-- without an index a text search reads a bounded number of entries
SELECT swarm.namespace_create('s/many');
INSERT INTO swarm._memory SELECT n.id, 'm' || i, 1, NULL, NULL, now(), now(), 10, n.owner, '{}', jsonb_build_object('text', 'whale ' || i, 'ten', i % 1000)
FROM swarm._namespace n, generate_series(1, 10000) i WHERE n.name = 's/many';
SELECT key FROM swarm.memory_search('s/many', '4711');
SELECT swarm.memory_store('s/many', 'm10001', '1', '1 hour');
\set VERBOSITY default
\set SHOW_CONTEXT never
SELECT key FROM swarm.memory_search('s/many', '4711');
\set VERBOSITY terse
SELECT key FROM swarm.memory_search('s/many', 'whale', 3, 'text', '{"ten": 711}') ORDER BY key;
SELECT swarm._clock_advance('1 hour') IS NOT NULL AS moved;
SELECT key FROM swarm.memory_search('s/many', '4711', mode => 'text');
SELECT swarm._clock_advance(NULL) IS NOT NULL AS moved;
SELECT swarm.memory_store('s/many', 'm10001', '1') > 0 AS stored, swarm.namespace_alter('s/many', '{"words": true}');
SELECT key FROM swarm.memory_search('s/many', '4711');
SELECT swarm.namespace_drop('s/many');
-- words without embeddings: an index serves the text search
SELECT swarm.namespace_alter('s/plain', '{"words": true}');
SELECT count(swarm.memory_store('s/plain', 'n' || i, to_jsonb('number ' || i || CASE WHEN i % 1000 = 0 THEN ' rare' ELSE '' END), '1 day')) FROM generate_series(1, 3000) i;
SELECT swarm.memory_delete('s/plain', 'n1000');
SELECT key FROM swarm.memory_search('s/plain', 'rare', mode => 'text');
SELECT key FROM swarm.memory_search('s/plain', 'PostgreSQL stores');
SELECT key FROM swarm.memory_search('s/plain', 'x', mode => 'semantic');
SELECT id AS plain FROM swarm._namespace WHERE name = 's/plain' \gset
SELECT format('swarm._recall_%s', :plain) AS recall \gset
ANALYZE swarm._memory;
ANALYZE :recall;
CREATE FUNCTION pg_temp.plan(query text) RETURNS SETOF text LANGUAGE plpgsql SET enable_seqscan = off AS $$
DECLARE
    line text;
BEGIN
    FOR line IN EXECUTE 'EXPLAIN (COSTS OFF) ' || query LOOP
        RETURN NEXT regexp_replace(line, '_recall_\d+', '_recall_N', 'g');
    END LOOP;
END $$;
SELECT p FROM pg_temp.plan(format($q$SELECT r.key FROM %s r JOIN swarm._memory m ON m.key = r.key
    WHERE r.words @@ '''rare'':*'::tsquery AND m.namespace = %s AND (m.expires_at IS NULL OR m.expires_at > swarm._now())$q$, :'recall', :plain)) p WHERE p ~ 'Scan';
-- as the function runs it (it turns sequential scans off, too): nothing is read one after the other
BEGIN;
SELECT sum(pg_stat_get_xact_tuples_returned(c)) AS before FROM unnest(ARRAY['swarm._memory', :'recall']::regclass[]) c \gset
SELECT key FROM swarm.memory_search('s/plain', 'rare', mode => 'text');
SELECT sum(pg_stat_get_xact_tuples_returned(c)) - :before AS tuples FROM unnest(ARRAY['swarm._memory', :'recall']::regclass[]) c;
COMMIT;
-- few pass the filter, and what expired is in the index: the limit is filled
SELECT count(swarm.memory_store('s/embed', 'n' || i, jsonb_build_object('t', 'note about apples', 'i', i % 300), CASE WHEN i % 2 = 0 THEN interval '1 hour' END)) FROM generate_series(1, 3000) i;
SELECT swarm._clock_advance('1 hour') IS NOT NULL AS moved;
SELECT count(*), bool_and(value->>'i' = '7') AS passed FROM swarm.memory_search('s/embed', 'apples', 8, 'semantic', '{"i": 7}');
SELECT count(*) FROM swarm.memory_search('s/embed', 'apples', 1500, 'semantic');
SET qhnsw.iterative_scan = off;
SELECT count(*) FROM swarm.memory_search('s/embed', 'apples', 8, 'semantic', '{"i": 7}');
RESET qhnsw.iterative_scan;
SELECT swarm._clock_advance(NULL) IS NOT NULL AS moved;
SELECT swarm.namespace_alter('s/plain', '{"words": false}');
SELECT count(*) FROM pg_class WHERE relname ~ '^_recall_' AND relkind = 'r';
SELECT swarm.namespace_drop('s/embed'), swarm.namespace_drop('s/plain');
SELECT count(*) FROM pg_class WHERE relname ~ '^_recall_' AND relkind = 'r';

-- the tracker
SELECT (swarm.track_spawn('a1', 'coder', 'write it') ->> 'startTime')::bigint > 0 AS spawned;
SELECT swarm._clock_advance('2 s') IS NOT NULL AS moved;
SELECT (s->>'cpu')::float8 >= 0 AS cpu, (s->>'memory')::bigint > 1000000 AS memory, (s->>'uptime')::float8 > 0 AS uptime, s->>'agentId' AS agent FROM swarm.track_execution('a1') s;
SELECT s->>'status' AS status, (s->>'duration')::int BETWEEN 2000 AND 100000 AS duration FROM swarm.track_completion('a1', 'success', 'done') s;
SELECT s FROM swarm.track_completion('unheard-of', 'error', error => 'lost') s;
SELECT agent_id, agent_type, task, status, outcome, error, duration >= 2000 AS duration FROM swarm.agent_history() WHERE agent_id IN ('a1', 'unheard-of') ORDER BY agent_id, status DESC;
SELECT record ?& '{agentId,agentType,task,status,timestamp}'::text[] AS complete FROM swarm.agent_history('a1');
SELECT count(*) FROM swarm.agent_history('a1', swarm._now() + interval '1 min');
SELECT value->>'type' AS type, value->>'agentId' AS agent, value->>'status' AS status FROM swarm.memory_list('wiki-notifications', 'wiki-event-') WHERE value->>'agentId' IN ('a1', 'unheard-of') ORDER BY 2;
SELECT key ~ '^agent-a1-metrics-\d+-\d+$' AS key FROM swarm.memory_list('agent-metrics', 'agent-a1-');
SELECT swarm._clock_advance(NULL) IS NOT NULL AS moved;
-- of another: not seen; his own without any grant
CREATE ROLE regress_memory_agent;
SET ROLE regress_memory_agent;
SELECT swarm.track_spawn('a2', 'tester', 'test it') IS NOT NULL AS spawned;
SELECT agent_id, status FROM swarm.agent_history();
SELECT swarm.memory_list('agent-activities');
RESET ROLE;
-- the store broken: a warning, once, a count, and on it goes
SELECT dropped AS before FROM swarm.stat_tracker \gset
BEGIN;
ALTER TABLE swarm._memory ADD CONSTRAINT broken CHECK (false) NOT VALID;
SELECT swarm.track_spawn('a3', 'coder', 'x') IS NOT NULL AS goes_on, swarm.track_completion('a3', 'failure') IS NOT NULL AS goes_on;
ROLLBACK;
SELECT dropped - :before AS dropped FROM swarm.stat_tracker;
SELECT count(*) FROM swarm.agent_history('a3');
SET pg_swarm.track_agents = off;
SELECT swarm.track_spawn('a4', 'coder', 'x') IS NOT NULL AS goes_on;
SELECT count(*) FROM swarm.agent_history('a4');
RESET pg_swarm.track_agents;
SELECT swarm.memory_clear('agent-activities', 'agent-a') + swarm.memory_clear('agent-activities', 'agent-unheard-of') AS cleared, swarm.memory_clear('agent-metrics', 'agent-a1') AS samples, swarm.memory_clear('wiki-notifications') > 0 AS events;
DROP ROLE regress_memory_agent;
