-- Who may use, see and name a namespace.
\set VERBOSITY terse
CREATE ROLE regress_memory_ann;
CREATE ROLE regress_memory_bob;
CREATE ROLE regress_memory_team;
GRANT regress_memory_team TO regress_memory_bob;
GRANT EXECUTE ON FUNCTION swarm.namespace_create TO regress_memory_ann, regress_memory_bob;
SELECT swarm.namespace_create('r/admin');

SET ROLE regress_memory_ann;
SELECT swarm.namespace_create('ann');
SELECT swarm.namespace_create('ann/secret');
SELECT swarm.memory_store('ann', 'k', '"hers"'), swarm.memory_store('ann/secret', 'k', '"secret"');
SELECT name, may_write, own FROM swarm.namespaces ORDER BY name;
SELECT namespace, key, value, owner FROM swarm.memory ORDER BY 1;
SELECT swarm.memory_sweep();
SELECT swarm.memory_get('default', 'k');
SELECT swarm.memory_get('r/admin', 'k');
SELECT swarm.memory_get('r/nowhere', 'k');
SELECT swarm._memory_list(10, 'ann', '', 1, NULL);
SELECT swarm._namespace_check(10, 'r/admin', 'read');
INSERT INTO swarm._memory SELECT * FROM swarm._memory;
UPDATE swarm._memory SET value = '1';
DELETE FROM swarm._namespace_grant;

-- bob: it does not even exist, on no path
SET ROLE regress_memory_bob;
SELECT name FROM swarm.namespaces;
SELECT count(*) FROM swarm.memory;
SELECT count(*) FROM swarm._memory;
SELECT count(*) FROM swarm._namespace;
SELECT count(*) FROM swarm.stat_memory;
SELECT swarm.memory_get('ann', 'k');
SELECT swarm.memory_get_many('ann', '{k}');
SELECT swarm.memory_list('ann');
SELECT swarm.memory_search('ann', 'hers');
SELECT swarm.memory_store('ann', 'k', '1');
SELECT swarm.memory_store_many('ann', '{"k": 1}');
SELECT swarm.memory_delete('ann', 'k');
SELECT swarm.memory_clear('ann');
SELECT swarm.memory_expire('ann', 'k', '1 s');
SELECT swarm.memory_ttl('ann', 'k');
SELECT swarm.memory_persist('ann', 'k');
SELECT swarm.memory_increment('ann', 'k');
SELECT swarm.memory_wait('ann', 'k', '1 ms');
SELECT swarm.memory_usage('retrieve', 'ann', 'k');
SELECT swarm.cached('ann', 'k', 'SELECT 1');
SELECT swarm.namespace_alter('ann', '{"evict": "oldest"}');
SELECT swarm.namespace_drop('ann');
SELECT swarm.namespace_grant('ann', 'regress_memory_bob');
-- nor may he put something above or below it
SELECT swarm.namespace_create('ann/below');
SELECT swarm.namespace_create('bob');
SET ROLE regress_memory_ann;
SELECT swarm.namespace_create('bob/ann');
RESET ROLE;

-- granted: to read, below too; then to write
SET ROLE regress_memory_ann;
SELECT swarm.namespace_grant('ann', 'regress_memory_team', 'read');
SELECT * FROM swarm.namespace_grants;
SET ROLE regress_memory_bob;
SELECT swarm.memory_get('ann', 'k'), swarm.memory_get('ann/secret', 'k');
SELECT name, may_write, own FROM swarm.namespaces ORDER BY name;
SELECT namespace, value FROM swarm.memory ORDER BY 1;
SELECT swarm.memory_store('ann', 'k', '1');
SELECT swarm.cached('ann', 'k', 'SELECT 1') AS what_is_there;
SELECT swarm.namespace_drop('ann');
SET ROLE regress_memory_ann;
SELECT swarm.namespace_grant('ann', 'regress_memory_team');
SET ROLE regress_memory_bob;
SELECT swarm.memory_store('ann', 'k', '"his"'), swarm.memory_get('ann', 'k');
SELECT key, owner FROM swarm.memory WHERE namespace = 'ann';
SET ROLE regress_memory_ann;
SELECT swarm.namespace_revoke('ann', 'regress_memory_team'), swarm.namespace_revoke('ann', 'regress_memory_team');
SET ROLE regress_memory_bob;
SELECT swarm.memory_get('ann', 'k');
-- a rolled back grant is none
SET ROLE regress_memory_ann;
BEGIN;
SELECT swarm.namespace_grant('ann', 'public', 'read');
SET LOCAL ROLE regress_memory_bob;
SELECT swarm.memory_get('ann', 'k');
ROLLBACK;
SET ROLE regress_memory_bob;
SELECT swarm.memory_get('ann', 'k');
SET ROLE regress_memory_ann;
SELECT swarm.namespace_grant('ann', 'public', 'read');
SET ROLE regress_memory_bob;
SELECT swarm.memory_get('ann', 'k');
SET ROLE regress_memory_ann;
SELECT swarm.namespace_revoke('ann', 'public');
SELECT swarm.namespace_grant('ann', 'nobody_there');
SELECT swarm.namespace_grant('ann', 'public', 'all');

-- a cached query runs as who asks
RESET ROLE;
CREATE TABLE only_admin AS SELECT 1 AS secret;
SET ROLE regress_memory_ann;
SELECT swarm.cached('ann', 'q', 'SELECT secret FROM public.only_admin');
SELECT swarm.cached('ann', 'q', 'SELECT current_user AS who'), swarm.cached('ann', 'q', 'SELECT 2 AS not_run');
SELECT swarm.cached('ann', 'none', 'SELECT 1 WHERE false');
RESET ROLE;
DROP TABLE only_admin;

-- settings, names, dropping
SELECT swarm.namespace_create('r/admin');
SELECT swarm.namespace_create(n) FROM unnest(ARRAY['', '/a', 'a/', 'a//b', E'a\nb', repeat('x', 201), NULL]) n LIMIT 1;
SELECT swarm.namespace_create('a//b');
SELECT swarm.namespace_create(NULL);
SELECT swarm.namespace_create(E'a\nb');
SELECT swarm.namespace_create(repeat('x', 201));
SELECT swarm.namespace_create('r/x', default_ttl => '0 s');
SELECT swarm.namespace_create('r/x', max_entries => 0);
SELECT swarm.namespace_create('r/x', evict => 'newest');
SELECT swarm.namespace_create('r/x', durability => 'none');
SELECT swarm.namespace_create('r/x', embed => true, dims => 4);
SELECT swarm.namespace_alter('r/admin', '{"default_ttl": "2 days", "description": "of the administrator", "cached": false}');
SELECT default_ttl, description, cached FROM swarm.namespaces WHERE name = 'r/admin';
SELECT swarm.namespace_alter('r/admin', '{"name": "other"}');
SELECT swarm.namespace_alter('r/admin', '{"default_ttl": "-1 s"}');
SELECT swarm.namespace_alter('agent-metrics', '{"default_ttl": "2 hours"}');
SELECT name, default_ttl FROM swarm.namespaces WHERE name ~ '^agent' ORDER BY name;
SELECT swarm.namespace_alter('agent-metrics', '{"default_ttl": "1 hour"}');
SELECT swarm.namespace_drop('default');
SELECT swarm.namespace_drop('ann');
SELECT swarm.namespace_drop('ann', with_below => true), swarm.namespace_drop('r/admin'), swarm.namespace_drop('bob');
-- the name again: nothing of the old one
SELECT swarm.namespace_create('ann'), swarm.memory_get('ann', 'k') IS NULL AS empty, (SELECT count(*) FROM swarm.memory_list('ann')), swarm.namespace_drop('ann');
-- the tracker: what it knows of another role's agent is not shown, nor taken over
SET ROLE regress_memory_ann;
SELECT swarm.track_spawn('rights-1', 'spy', 'a secret') ->> 'agentId' AS agent;
SET ROLE regress_memory_bob;
SELECT swarm.track_completion('rights-1', 'done') ->> 'task' AS task, (SELECT count(*) FROM swarm.agent_history('rights-1') WHERE task = 'a secret') AS seen;
SELECT swarm.track_spawn('rights-1', 'spy', 'not mine') IS NOT NULL AS answered;
SET ROLE regress_memory_ann;
SELECT agent_type, task FROM swarm.agent_history('rights-1') WHERE status = 'spawned';
RESET ROLE;
REVOKE EXECUTE ON FUNCTION swarm.namespace_create FROM regress_memory_ann, regress_memory_bob;
DROP ROLE regress_memory_ann, regress_memory_bob, regress_memory_team;
