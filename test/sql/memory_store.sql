-- Store, read, conditions, expiry on every path, with a clock that is moved.
\set VERBOSITY terse
SET timezone = 'UTC';
SELECT swarm.namespace_create('t/store', default_ttl => '1 hour', description => 'of this test');
SELECT swarm.namespace_create('t/plain');
SELECT name, default_ttl, evict, durability, cached, embed, dims, description FROM swarm.namespaces
WHERE name !~ '^t/' OR name ~ '^t/(store|plain)$' ORDER BY name;

-- versions, round trip of any JSON
SELECT swarm.memory_store('t/plain', 'a', '{"n": [1, "two", null]}');
SELECT swarm.memory_store('t/plain', 'a', '"text"');
SELECT swarm.memory_get('t/plain', 'a'), swarm.memory_get('t/plain', 'b') IS NULL AS absent;
SELECT swarm.memory_store('t/plain', 'null', 'null'), swarm.memory_get('t/plain', 'null');
SELECT swarm.memory_store('t/plain', '', '0'), swarm.memory_get('t/plain', '');
SELECT swarm.memory_delete('t/plain', ''), swarm.memory_delete('t/plain', '');

-- conditions
SELECT swarm.memory_store('t/plain', 'a', '3', if_absent => true) AS present;
SELECT swarm.memory_store('t/plain', 'new', '3', if_absent => true) AS absent;
SELECT swarm.memory_store('t/plain', 'a', '4', expect_version => 1) AS outdated;
SELECT swarm.memory_store('t/plain', 'a', '4', expect_version => 2) AS current;
SELECT swarm.memory_store('t/plain', 'nowhere', '4', expect_version => 2) AS absent;
SELECT swarm.memory_store('t/plain', 'zero', '4', expect_version => 0) AS absent, swarm.memory_store('t/plain', 'zero', '5', expect_version => 0) AS present;
SELECT swarm.memory_get('t/plain', 'a'), swarm.memory_get('t/plain', 'nowhere');

-- tags, rows
SELECT swarm.memory_store('t/plain', 'tagged', '1', tags => '{x,y}');
SELECT namespace, key, value, version, tags, expires_at FROM swarm.memory_get_many('t/plain', '{tagged,none,a,NULL}');
SELECT key FROM swarm.memory_list('t/plain');
SELECT key FROM swarm.memory_list('t/plain', lim => 2);
SELECT key FROM swarm.memory_list('t/plain', lim => 2, after => 'new');
SELECT key FROM swarm.memory_list('t/plain', 'n');
SELECT swarm.memory_store('t/plain', 'p%', '1'), swarm.memory_store('t/plain', 'p_', '1'), swarm.memory_store('t/plain', 'px', '1');
SELECT key FROM swarm.memory_list('t/plain', 'p_');
SELECT swarm.memory_clear('t/plain', 'p'), swarm.memory_clear('t/plain', 'p');
SELECT key FROM swarm.memory WHERE namespace = 't/plain' ORDER BY key COLLATE "C";

-- many
SELECT swarm.memory_store_many('t/store', '[{"key": "m1", "value": 1}, {"key": "m2", "value": {"x": null}, "ttl": "1 day", "tags": ["q"]}, {"key": "m1", "value": 3, "if_absent": true}]');
SELECT swarm.memory_store_many('t/store', '{"o1": [1], "o2": "x"}');
SELECT key, value, tags, version, expires_at - updated_at AS ttl FROM swarm.memory_list('t/store');
SELECT swarm.memory_store_many('t/store', '[{"key": "m1"}]');
SELECT swarm.memory_store_many('t/store', '[{"key": "m1", "value": 1, "tll": "1 s"}]');
SELECT swarm.memory_store_many('t/store', '[{"key": 1, "value": 1}]');
SELECT swarm.memory_store_many('t/store', '[5]');
SELECT swarm.memory_store_many('t/store', '5');

-- numbers
SELECT swarm.memory_increment('t/plain', 'count'), swarm.memory_increment('t/plain', 'count', 2.5), swarm.memory_increment('t/plain', 'count', -1);
SELECT swarm.memory_get('t/plain', 'count');
SELECT swarm.memory_increment('t/plain', 'tagged', 9), swarm.memory_increment('t/plain', 'null');
SELECT swarm.memory_increment('t/plain', 'count', 'NaN');
SELECT swarm.memory_store('t/plain', 's', '"5"');
SELECT swarm.memory_increment('t/plain', 's');

-- ttl: one hour by default; keep, overwrite, persist
SELECT swarm.memory_ttl('t/plain', 'a') IS NULL AS none, round(extract(epoch FROM swarm.memory_ttl('t/store', 'm1')) / 60) AS minutes;
SELECT swarm.memory_store('t/plain', 'k', '1', '10 min');
SELECT swarm.memory_store('t/plain', 'k', '2', keep_ttl => true), round(extract(epoch FROM swarm.memory_ttl('t/plain', 'k')) / 60) AS kept;
SELECT swarm.memory_store('t/plain', 'k', '3', expect_version => 2, keep_ttl => true), round(extract(epoch FROM swarm.memory_ttl('t/plain', 'k')) / 60) AS kept;
SELECT swarm.memory_store('t/plain', 'k', '4'), swarm.memory_ttl('t/plain', 'k') IS NULL AS cleared;
SELECT swarm.memory_expire('t/plain', 'k', '5 min', 'xx') AS xx, swarm.memory_expire('t/plain', 'k', '5 min', 'gt') AS gt_of_never;
SELECT swarm.memory_expire('t/plain', 'k', '5 min', 'nx') AS nx, swarm.memory_expire('t/plain', 'k', '9 min', 'nx') AS nx_again;
SELECT swarm.memory_expire('t/plain', 'k', '4 min', 'gt') AS gt, swarm.memory_expire('t/plain', 'k', '6 min', 'lt') AS lt;
SELECT swarm.memory_expire('t/plain', 'k', '6 min', 'gt') AS gt, swarm.memory_expire('t/plain', 'k', '3 min', 'lt') AS lt, swarm.memory_expire('t/plain', 'k', '4 min', 'xx') AS xx;
SELECT round(extract(epoch FROM swarm.memory_ttl('t/plain', 'k')) / 60) AS minutes;
SELECT swarm.memory_persist('t/plain', 'k'), swarm.memory_persist('t/plain', 'k'), swarm.memory_persist('t/plain', 'nowhere');
SELECT swarm.memory_expire('t/plain', 'k', '1 min', 'lt') AS lt_of_never, swarm.memory_expire('t/plain', 'nowhere', '1 min');
SELECT swarm.memory_expire_at('t/plain', 'k', swarm._now() - interval '1 s', 'gt') AS not_gt, swarm.memory_get('t/plain', 'k');
SELECT swarm.memory_expire_at('t/plain', 'k', swarm._now() - interval '1 s') AS past, swarm.memory_get('t/plain', 'k') IS NULL AS gone;
SELECT count(*) AS rows FROM swarm._memory WHERE key = 'k';

-- what has expired is nowhere, though its row is there (nothing is swept while the rows are locked)
SELECT swarm.namespace_create('t/ttl');
SELECT swarm.memory_store_many('t/ttl', '[{"key": "e", "value": 1, "ttl": "1 day"}, {"key": "f", "value": {"w": "word"}, "ttl": "1 day"}, {"key": "stays", "value": {"w": "word"}}]');
SELECT swarm.memory_get('t/ttl', 'e'), swarm.memory_get('t/ttl', 'e') AS from_the_cache;
CREATE PROCEDURE look() LANGUAGE plpgsql AS $$
BEGIN
    -- nothing is swept while this holds the rows
    PERFORM FROM swarm._memory WHERE key IN ('e', 'f') FOR UPDATE;
    PERFORM swarm._clock_advance('1 day');
    RAISE NOTICE 'rows %, get % %, many %, list %, search %, ttl %, view %, usage %',
        (SELECT count(*) FROM swarm._memory m JOIN swarm.namespaces n ON n.name = 't/ttl' WHERE m.key IN ('e', 'f')),
        swarm.memory_get('t/ttl', 'e'), swarm.memory_get('t/ttl', 'f'),
        (SELECT array_agg(key) FROM swarm.memory_get_many('t/ttl', '{e,f,stays}')),
        (SELECT array_agg(key) FROM swarm.memory_list('t/ttl')),
        (SELECT array_agg(key) FROM swarm.memory_search('t/ttl', 'word')),
        swarm.memory_ttl('t/ttl', 'e'),
        (SELECT array_agg(key) FROM swarm.memory WHERE namespace = 't/ttl'),
        (SELECT array_agg(e->>'key') FROM jsonb_array_elements(swarm.memory_usage('search', 't/ttl', pattern => 'word')->'results') e);
    RAISE NOTICE 'expire %, persist %, compare and set %, delete %, entries %',
        swarm.memory_expire('t/ttl', 'e', '1 day'), swarm.memory_persist('t/ttl', 'e'),
        swarm.memory_store('t/ttl', 'e', '2', expect_version => 1), swarm.memory_delete('t/ttl', 'e'),
        (SELECT entries FROM swarm.stat_memory WHERE namespace = 't/ttl');
    RAISE NOTICE 'increment %, version of f %, clear %',
        swarm.memory_increment('t/ttl', 'e', 7), swarm.memory_store('t/ttl', 'f', '1', if_absent => true), swarm.memory_clear('t/ttl');
    PERFORM swarm._clock_advance(NULL);
END $$;
CALL look();
DROP PROCEDURE look;

-- one microsecond makes the difference; the cache knows it, too
SELECT swarm.memory_store('t/ttl', 'exact', '1', '1 ms') IS NOT NULL AS stored;
SELECT swarm.memory_store('t/ttl', 'cached', '1', '1 hour') IS NOT NULL AS stored;
SELECT swarm.memory_get('t/ttl', 'cached'), swarm.memory_get('t/ttl', 'cached');
SELECT swarm._clock_advance('1 hour') IS NOT NULL AS moved;
SELECT swarm.memory_get('t/ttl', 'exact') IS NULL AS gone, swarm.memory_get('t/ttl', 'cached') IS NULL AS gone;
SELECT swarm._clock_advance(NULL) IS NOT NULL AS moved;

-- unlogged, the same
SELECT swarm.namespace_create('t/unlogged', durability => 'unlogged');
SELECT swarm.memory_store('t/unlogged', 'a', '1'), swarm.memory_store('t/unlogged', 'a', '2', '1 day'), swarm.memory_get('t/unlogged', 'a');
SELECT swarm.memory_increment('t/unlogged', 'a'), swarm.memory_delete('t/unlogged', 'a'), (SELECT count(*) FROM swarm.memory_list('t/unlogged'));

-- what is refused
SELECT swarm.memory_store('t/plain', 'a', '1', '0 s');
SELECT swarm.memory_store('t/plain', 'a', '1', '-1 s');
SELECT swarm.memory_store('t/plain', 'a', '1', '1 s', keep_ttl => true);
SELECT swarm.memory_store('t/plain', 'a', NULL);
SELECT swarm.memory_store('t/plain', NULL, '1');
SELECT swarm.memory_store(NULL, 'a', '1');
SELECT swarm.memory_store('t/plain', repeat('k', 1025), '1');
SELECT swarm.memory_store('nowhere', 'a', '1');
SELECT swarm.memory_store('t/plain', 'a', '1', tags => '{a,NULL}');
SELECT swarm.memory_store('t/plain', 'a', '1', embedding => '{1,2}');
SELECT swarm.memory_expire('t/plain', 'a', '0 s');
SELECT swarm.memory_expire('t/plain', 'a', NULL);
SELECT swarm.memory_expire('t/plain', 'a', '1 s', 'ne');
SELECT swarm.memory_list('t/plain', lim => -1);
SELECT swarm.memory_get('t/plain', repeat('k', 2000)) IS NULL AS absent;
-- at the ends of what there is
SELECT swarm.memory_store('t/plain', 'far', '1', '1000000 years');
SELECT swarm.memory_expire('t/plain', 'a', '1000000 years');
SELECT swarm.memory_store('t/plain', 'far', '1', '250000 years'), swarm.memory_ttl('t/plain', 'far') > '249999 years' AS far;
SELECT swarm.memory_store('t/plain', 'far', '2', '1 hour'), swarm.memory_expire_at('t/plain', 'far', 'infinity'), swarm.memory_ttl('t/plain', 'far') IS NULL AS for_ever;
SELECT swarm.memory_expire_at('t/plain', 'far', '-infinity'), swarm.memory_get('t/plain', 'far') IS NULL AS gone;
SELECT swarm.memory_store('t/plain', repeat('k', 1024), '1'), swarm.memory_get('t/plain', repeat('k', 1024)), swarm.memory_delete('t/plain', repeat('k', 1024)), swarm.memory_delete('t/plain', repeat('k', 1025));
SELECT swarm.memory_increment('t/plain', 'a', NULL);
SELECT swarm.memory_list('t/plain', NULL);
SELECT swarm.memory_clear('t/plain', NULL);
SELECT swarm.memory_search('t/plain', NULL);
SELECT swarm.memory_ttl('t/plain', NULL);
SELECT count(*) FROM swarm.memory_get_many('t/plain', NULL);
SELECT swarm.memory_store_many('t/plain', '{"zero\u200bwidth": 1, "zerowidth": 2, "e\u0301": 3, "\u00e9": 4}'), swarm.memory_get('t/plain', U&'zero\200Bwidth'), swarm.memory_get('t/plain', 'zerowidth'), swarm.memory_get('t/plain', U&'e\0301'), swarm.memory_get('t/plain', U&'\00E9');
SELECT key FROM swarm.memory_list('t/plain', '%') UNION ALL SELECT key FROM swarm.memory_list('t/plain', '\');
SELECT swarm.memory_get('t/plain', 'a');

-- the five actions
SELECT swarm.memory_usage('store', key => 'u1', value => '{"a": 1}', ttl => 60) - 'timestamp';
SELECT swarm.memory_usage('store', 'default', 'u2', '"plain text"') - 'timestamp';
SELECT swarm.memory_usage('retrieve', key => 'u1') - 'timestamp';
SELECT swarm.memory_usage('retrieve', key => 'u3') - 'timestamp';
SELECT jsonb_path_query_array(swarm.memory_usage('list'), '$.entries[*].key'), swarm.memory_usage('list')->'count' AS n;
SELECT swarm.memory_usage('search', pattern => 'PLAIN') #- '{timestamp}' #- '{results,0,updatedAt}';
SELECT swarm.memory_usage('delete', key => 'u1') - 'timestamp', (swarm.memory_usage('delete', key => 'u1'))->'deleted' AS again;
SELECT swarm.memory_usage('forget', key => 'u1') - 'timestamp', swarm.memory_usage('store') - 'timestamp';
SELECT swarm.memory_usage(NULL) - 'timestamp';
SELECT swarm.memory_usage('store', key => 'u1', ttl => 0) - 'timestamp', swarm.memory_usage('retrieve', key => 'u1') - 'timestamp', swarm.memory_delete('default', 'u1');
SELECT swarm.memory_usage('store', key => 'u1', value => '1', ttl => -1);
SELECT swarm.memory_usage('store', NULL, 'u1', '1');
SELECT swarm.memory_usage('list', 'nowhere');
SELECT swarm.memory_usage('search', pattern => '%') - 'timestamp';
SELECT (swarm.memory_usage('list')->>'timestamp') ~ '^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$' AS iso;

-- overwriting: twice in a statement, what is large, what has expired, and where the table is not as it was made
SELECT swarm.memory_store('t/plain', 'o', '1'), swarm.memory_store('t/plain', 'o', '2'), swarm.memory_store('t/plain', 'o', '3', '1 hour');
SELECT swarm.memory_store('t/plain', 'o', (SELECT jsonb_agg(md5(i::text)) FROM generate_series(1, 1000) i), tags => '{large}'),
       jsonb_array_length(swarm.memory_get('t/plain', 'o')) AS n;
SELECT swarm.memory_store('t/plain', 'o', (SELECT jsonb_agg(md5(i::text)) FROM generate_series(1, 2000) i), '1 hour'),
       jsonb_array_length(swarm.memory_get('t/plain', 'o')) AS n;
SELECT swarm.memory_store('t/plain', 'o', '4', '1 min', expect_version => 4), swarm.memory_store('t/plain', 'o', '5', '1 min', expect_version => 5);
SELECT value, version, tags, created_at < updated_at AS older, sweep_at IS NOT DISTINCT FROM expires_at AS in_time FROM swarm._memory WHERE key = 'o';
UPDATE swarm._memory SET expires_at = now() - interval '1 s', sweep_at = now() + interval '10 s' WHERE key = 'o';
SELECT swarm.memory_store('t/plain', 'o', '6', expect_version => 6) AS expired;
SELECT swarm.memory_store('t/plain', 'o', '7', keep_ttl => true), swarm.memory_ttl('t/plain', 'o') IS NULL AS for_ever;
SELECT version, created_at = updated_at AS new FROM swarm._memory WHERE key = 'o';
ALTER TABLE swarm._memory ADD CONSTRAINT small CHECK (key <> 'o' OR value <> '8');
SELECT swarm.memory_store('t/plain', 'o', '8');
ALTER TABLE swarm._memory DROP CONSTRAINT small;
CREATE FUNCTION pg_temp.loud() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE '% %', TG_OP, NEW.value; RETURN NEW; END $$;
BEGIN;
CREATE TRIGGER loud BEFORE UPDATE ON swarm._memory FOR EACH ROW WHEN (NEW.key = 'o') EXECUTE FUNCTION pg_temp.loud();
SELECT swarm.memory_store('t/plain', 'o', '9');
ROLLBACK;
SELECT swarm.memory_store('t/plain', 'o', '9');

-- transactions
BEGIN;
SELECT swarm.memory_store('t/plain', 'tx', '1');
SAVEPOINT s;
SELECT swarm.memory_store('t/plain', 'tx', '2'), swarm.memory_get('t/plain', 'tx');
ROLLBACK TO s;
SELECT swarm.memory_get('t/plain', 'tx');
ROLLBACK;
SELECT swarm.memory_get('t/plain', 'tx') IS NULL AS nothing;

SELECT swarm.memory_clear('default', 'u') AS cleared, swarm.namespace_drop('t/plain'), swarm.namespace_drop('t/store'), swarm.namespace_drop('t/ttl'), swarm.namespace_drop('t/unlogged');
CREATE SCHEMA memory_store;
\getenv tests PG_ABS_SRCDIR
\set until :tests '/sql/include/until.sql'
\set schema memory_store
\i :until
-- rows of dropped namespaces go with a sweep, the scheduler's or ours
CALL memory_store.until('swarm.memory_sweep() = 0 AND NOT EXISTS (SELECT FROM swarm._namespace_gone)');
SELECT count(*) FROM swarm._memory m WHERE namespace >= 16;
DROP PROCEDURE memory_store.until;
DROP SCHEMA memory_store;
