-- Limits of namespaces: rejected, the oldest, the soonest to expire; and the sweep.
\set VERBOSITY terse
SELECT swarm.namespace_create('l/reject', max_entries => 3), swarm.namespace_create('l/oldest', max_entries => 3, evict => 'oldest'),
       swarm.namespace_create('l/soonest', max_entries => 3, evict => 'soonest'), swarm.namespace_create('l/bytes', max_bytes => 1000);
SELECT swarm.memory_store('l/reject', k, '1') FROM unnest('{a,b,c}'::text[]) k;
SELECT swarm.memory_store('l/reject', 'd', '1');
\set VERBOSITY sqlstate
SELECT swarm.memory_increment('l/reject', 'd');
\set VERBOSITY terse
-- replacing adds none; a rolled back row is none; a deleted one makes room at once in its transaction
SELECT swarm.memory_store('l/reject', 'a', '2'), swarm.memory_increment('l/reject', 'a');
BEGIN;
SELECT swarm.memory_delete('l/reject', 'a'), swarm.memory_store('l/reject', 'd', '1');
ROLLBACK;
SELECT swarm.memory_store('l/reject', 'd', '1');
BEGIN;
SAVEPOINT s;
SELECT swarm.memory_delete('l/reject', 'a');
ROLLBACK TO s;
SAVEPOINT t;
SELECT swarm.memory_store('l/reject', 'd', '1');
ROLLBACK TO t;
SELECT swarm.memory_delete('l/reject', 'b'), swarm.memory_store('l/reject', 'd', '1');
COMMIT;
SELECT key FROM swarm.memory_list('l/reject');
-- what has expired takes no place
SELECT swarm.memory_expire('l/reject', 'd', '1 min');
SELECT swarm._clock_advance('1 min') IS NOT NULL AS moved;
SELECT swarm.memory_store('l/reject', 'e', '1');
SELECT key FROM swarm.memory_list('l/reject');
SELECT swarm._clock_advance(NULL) IS NOT NULL AS moved;
-- after rows came and went past the functions
TRUNCATE swarm._memory_unlogged;
DELETE FROM swarm._memory m USING swarm._namespace n WHERE n.name = 'l/reject' AND m.namespace = n.id;
SELECT swarm.memory_store('l/reject', k, '1') FROM unnest('{a,b,c}'::text[]) k;
SELECT swarm.memory_store('l/reject', 'd', '1');
SELECT entries, max_entries FROM swarm.stat_memory WHERE namespace = 'l/reject';
SELECT swarm.namespace_alter('l/reject', '{"max_entries": 4}'), swarm.memory_store('l/reject', 'd', '1');
SELECT swarm.memory_store('l/reject', 'e', '1');

SELECT swarm.memory_store('l/oldest', k, '1') FROM unnest('{a,b,c}'::text[]) k;
SELECT swarm.memory_store('l/oldest', 'a', '2');
SELECT swarm.memory_store('l/oldest', 'd', '1');
SELECT key FROM swarm.memory_list('l/oldest');
SELECT swarm.memory_store_many('l/oldest', '{"e": 1, "f": 1}');
SELECT key FROM swarm.memory_list('l/oldest');

SELECT swarm.memory_store('l/soonest', 'never', '1'), swarm.memory_store('l/soonest', 'late', '1', '2 hours'), swarm.memory_store('l/soonest', 'soon', '1', '1 hour');
SELECT swarm.memory_store('l/soonest', 'new', '1');
SELECT key FROM swarm.memory_list('l/soonest');

SELECT swarm.memory_store('l/bytes', 'a', to_jsonb(repeat('x', 400))), swarm.memory_store('l/bytes', 'b', to_jsonb(repeat('x', 400)));
SELECT swarm.memory_store('l/bytes', 'c', to_jsonb(repeat('x', 400)));
SELECT swarm.memory_store('l/bytes', 'b', to_jsonb(repeat('x', 700)));
SELECT swarm.namespace_alter('l/bytes', '{"evict": "oldest"}'), swarm.memory_store('l/bytes', 'c', to_jsonb(repeat('x', 400)));
SELECT key FROM swarm.memory_list('l/bytes');
SELECT swarm.memory_store('l/bytes', 'd', to_jsonb(repeat('x', 2000)));

-- the sweep: what has expired goes; what lives longer than it was to is looked at later
SELECT swarm.namespace_create('l/sweep');
SELECT swarm.memory_store('l/sweep', 'k' || i, '1', '1 day') IS NULL AS no FROM generate_series(1, 100) i GROUP BY 1;
SELECT swarm.memory_expire('l/sweep', 'k1', '3 days'), swarm.memory_persist('l/sweep', 'k2');
CREATE SCHEMA memory_limits;
\getenv tests PG_ABS_SRCDIR
\set until :tests '/sql/include/until.sql'
\set schema memory_limits
\i :until
SELECT swarm._clock_advance('2 days') IS NOT NULL AS moved;
CALL memory_limits.until($$swarm.memory_sweep() = 0 AND (SELECT count(*) FROM swarm._memory m JOIN swarm._namespace n ON m.namespace = n.id WHERE n.name = 'l/sweep') = 2$$);
SELECT key, sweep_at = expires_at AS later, sweep_at IS NULL AS never FROM swarm._memory m JOIN swarm._namespace n ON m.namespace = n.id WHERE n.name = 'l/sweep' ORDER BY key;
SELECT swarm.memory_sweep(0);
-- without us: the scheduler wakes when something is due
SELECT swarm.memory_store('l/sweep', 'soon', '1', '1 hour');
SELECT swarm._clock_advance('2 hours') IS NOT NULL AS moved;
CALL memory_limits.until($$NOT EXISTS (SELECT FROM swarm._memory WHERE key = 'soon')$$);
SELECT swarm._clock_advance(NULL) IS NOT NULL AS moved;
-- its plan: the index on sweep_at; and renewing an expiry is HOT
SELECT swarm.memory_store('l/sweep', 'p' || i, '1', '1 day') IS NULL AS no FROM generate_series(1, 2000) i GROUP BY 1;
ANALYZE swarm._memory;
EXPLAIN (COSTS OFF) SELECT ctid, sweep_at FROM swarm._memory WHERE sweep_at >= '-infinity' AND sweep_at <= now() ORDER BY sweep_at LIMIT 1000 FOR UPDATE SKIP LOCKED;
BEGIN;
SELECT swarm.memory_store('l/sweep', 'renewed', '0', '1 day');
SELECT pg_stat_get_xact_tuples_hot_updated('swarm._memory'::regclass) AS before \gset
SELECT count(swarm.memory_store('l/sweep', 'renewed', to_jsonb(i), make_interval(secs => 86400 + i))), count(swarm.memory_expire('l/sweep', 'renewed', make_interval(secs => 90000 + i))) FROM generate_series(1, 5) i;
SELECT pg_stat_get_xact_tuples_hot_updated('swarm._memory'::regclass) - :before AS hot;
COMMIT;
SELECT swarm.namespace_drop('l/' || n) FROM unnest('{reject,oldest,soonest,bytes,sweep}'::text[]) n;
CALL memory_limits.until('swarm.memory_sweep() = 0 AND NOT EXISTS (SELECT FROM swarm._namespace_gone)');
DROP PROCEDURE memory_limits.until;
DROP SCHEMA memory_limits;
