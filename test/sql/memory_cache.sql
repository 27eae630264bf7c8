-- What the cache counts, evicts and leaves alone.
\set VERBOSITY terse
SELECT swarm.namespace_create('c/on'), swarm.namespace_create('c/off', cached => false);
SELECT swarm.memory_store('c/on', 'k', '"v"'), swarm.memory_store('c/off', 'k', '"v"');
CREATE VIEW cache_counts AS SELECT hits, misses, bypasses, fills FROM swarm.stat_cache;
SELECT * FROM cache_counts \gset b_
SELECT swarm.memory_get('c/on', 'k'), swarm.memory_get('c/on', 'k'), swarm.memory_get('c/on', 'k'), swarm.memory_get('c/on', 'none') IS NULL AS none;
SELECT hits - :b_hits AS hits, misses - :b_misses AS misses, fills - :b_fills AS fills FROM cache_counts;
SELECT * FROM cache_counts \gset b_
SELECT swarm.memory_get('c/off', 'k'), swarm.memory_get('c/off', 'k');
SELECT hits - :b_hits AS hits, misses - :b_misses AS misses FROM cache_counts;
-- a transaction that wrote reads its table
BEGIN;
SELECT swarm.memory_store('c/on', 'other', '1');
SELECT * FROM cache_counts \gset b_
SELECT swarm.memory_get('c/on', 'k');
SELECT hits - :b_hits AS hits, bypasses - :b_bypasses AS bypasses FROM cache_counts;
COMMIT;
-- a write takes the entry out, and no other
SELECT swarm.memory_store('c/on', 'k2', '2'), swarm.memory_get('c/on', 'k2');
SELECT swarm.memory_get('c/on', 'k2'), swarm.memory_get('c/on', 'k');
SELECT swarm.memory_store('c/on', 'k', '"w"');
SELECT * FROM cache_counts \gset b_
SELECT swarm.memory_get('c/on', 'k2'), swarm.memory_get('c/on', 'k');
SELECT hits - :b_hits AS hits, misses - :b_misses AS misses FROM cache_counts;
-- large values, many of them: all are right, old ones make room
SELECT count(swarm.memory_store('c/on', 'big' || i, to_jsonb(repeat(i::text, 3000)))) FROM generate_series(1, 300) i;
SELECT bool_and(swarm.memory_get('c/on', 'big' || i) = to_jsonb(repeat(i::text, 3000))) AS right FROM generate_series(1, 300) i, generate_series(1, 3);
SELECT count(swarm.memory_store('c/on', 'huge' || i, (SELECT jsonb_agg(md5(i::text || j)) FROM generate_series(1, 15000) j))) FROM generate_series(1, 4) i;
SELECT bool_and(jsonb_array_length(swarm.memory_get('c/on', 'huge' || i)) = 15000) AS right FROM generate_series(1, 4) i, generate_series(1, 2);
SELECT used <= size AS within, entries > 0 AS some FROM swarm.stat_cache;
DROP VIEW cache_counts;
SELECT swarm.namespace_drop('c/on'), swarm.namespace_drop('c/off');
CREATE SCHEMA memory_cache;
\getenv tests PG_ABS_SRCDIR
\set until :tests '/sql/include/until.sql'
\set schema memory_cache
\i :until
CALL memory_cache.until('swarm.memory_sweep() = 0 AND NOT EXISTS (SELECT FROM swarm._namespace_gone)');
DROP PROCEDURE memory_cache.until;
DROP SCHEMA memory_cache;
