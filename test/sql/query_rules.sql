-- Rules, the optimizer, feature flags.
\set VERBOSITY terse
SET client_min_messages = warning;
SELECT setval('swarm._query_id_seq', 400000, false) > 0;
CREATE SCHEMA query_rules;
\getenv tests PG_ABS_SRCDIR
\set until :tests '/sql/include/until.sql'
\set schema query_rules
\i :until
SELECT name, priority, action, params, enabled, on_demand FROM swarm._rule ORDER BY on_demand, priority DESC;
SELECT swarm.rule_create('bad', 1, 'nonsense > 1', 'pause');
SELECT swarm.rule_create('bad', 1, '1', 'pause');
SELECT swarm.rule_create('bad', 1, 'true', 'explode');
SELECT swarm.rule_drop('runaway-query-termination');
SELECT swarm.rule_enable('none');
SELECT swarm.rule_enable(NULL);
SELECT swarm.rule_enable('runaway-query-termination', NULL);
SELECT swarm.optimizer_stop();

-- A query that waits for approval is left alone by the scheduler, so that rules have what they need.
CREATE FUNCTION query_rules.new(metadata jsonb, tokens bigint = 0, latency float8 = NULL, failures int = 0, mode text = 'plan') RETURNS bigint
LANGUAGE sql AS $$ INSERT INTO swarm._query (kind, owner, permission_mode, state, model, metadata, tokens_in, latency_ms, failures, turns, started_at)
VALUES ('llm', current_user::regrole, mode, 'running', 'm', metadata, tokens, latency, failures, 10, swarm._now()) RETURNING id $$;
SELECT query_rules.new('{"app": "rules", "tokenBudget": 100}', 101) AS budget \gset
SELECT query_rules.new('{"app": "rules", "tokenBudget": 100}', 99) AS within \gset
SELECT query_rules.new('{"app": "rules", "complexity": "high", "requiresDeepReasoning": true}') AS deep \gset
SELECT query_rules.new('{"app": "rules", "complexity": "high", "requiresDeepReasoning": true, "tokenBudget": 1}', 2) AS both \gset
SELECT query_rules.new('{"app": "rules"}', latency => 6000) AS slow \gset
SELECT query_rules.new('{"app": "rules"}', failures => 2) AS failing \gset
SELECT query_rules.new('{"app": "rules"}') AS fine \gset
SELECT swarm.query_optimize(:failing), swarm.query_optimize(:fine);
SELECT permission_mode FROM swarm.queries WHERE id = :failing;
SELECT swarm.query_control('optimize', :failing);
-- a rule that fails is noted, and the next one acts
SELECT swarm.rule_create('query_rules-fails', 100, $$metadata->>'app' = 'rules' AND 1 / (length(kind) - 3) > 0$$, 'terminate');
SELECT swarm.rule_create('query_rules-cannot', 99, $$id = $$ || :within, 'resume');
SELECT swarm.rule_create('query_rules-writes', 98, $$metadata->>'app' = 'rules' AND (SELECT swarm._query_set_state(q.id, 'fail')) <> ''$$, 'terminate');
SELECT swarm.rule_create('query_rules-mode', 97, $$id = $$ || :within, 'change_permissions', '{"mode": "acceptEdits"}');
SELECT swarm.rule_create('query_rules-lower', 96, $$id = $$ || :within, 'terminate');
SELECT swarm.rule_enable('upgrade-to-deep', false);
SELECT swarm.optimizer_start('100 ms');
SELECT swarm.optimizer_start('1 s');
CALL query_rules.until(format('(SELECT state = ''paused'' FROM swarm.queries WHERE id = %s)', :budget));
SELECT id = :within AS within, state, permission_mode FROM swarm.queries WHERE id IN (:within, :both) ORDER BY id;
SELECT swarm.optimizer_stop();
SELECT swarm.rule_enable('upgrade-to-deep');
SELECT name, acted > 0 AS acted, failed > 0 AS failed, error FROM swarm._rule JOIN swarm._rule_use USING (name) WHERE name LIKE 'query_rules%' ORDER BY priority DESC;
SELECT DISTINCT action, detail FROM swarm.query_events WHERE query = :within ORDER BY 1, 2;
SELECT DISTINCT action, detail FROM swarm.query_events WHERE query = :budget ORDER BY 1, 2;
SELECT s->'isMonitoring' AS on, s->'interval' AS period, (s->>'rulesCount')::int > 5 AS some FROM swarm.optimizer_status() s;

-- a statement that runs away
SELECT swarm.query_start('sql', 'SELECT pg_sleep(3600)') AS runaway \gset
CALL query_rules.until(format('(SELECT state = ''running'' AND pid IS NOT NULL FROM swarm.queries WHERE id = %s)', :runaway));
SELECT swarm.rule_drop(name) FROM swarm._rule WHERE name LIKE 'query_rules%';
SELECT swarm.optimizer_start('100 ms');
SELECT state FROM swarm.queries WHERE id = :runaway;
SELECT swarm._clock_advance('301 s') > now();
SELECT swarm.query_wait(:runaway);
SELECT swarm._clock_advance(NULL) < now() + '1 s';
CALL query_rules.until(format('EXISTS (SELECT FROM swarm.query_events WHERE query = %s AND detail = ''runaway-query-termination'')', :runaway));
-- a setting raised in a statement that runs
CREATE TABLE query_rules.go ();
CREATE FUNCTION query_rules.spin() RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    LOOP
        EXIT WHEN EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'query_rules.go'::regclass AND attname = 'go');
        PERFORM pg_sleep(0.001);
    END LOOP;
    RETURN current_setting('work_mem');
END $$;
SELECT swarm.query_start('sql', 'SELECT query_rules.spin()') AS id \gset
SELECT swarm.rule_create('query_rules-set', 50, format('id = %s AND state = ''running'' AND NOT EXISTS (SELECT FROM swarm.query_events WHERE query = q.id AND action = ''optimize'')', :id),
    'execute_command', '{"command": "SET work_mem = ''77MB''"}');
CALL query_rules.until(format('EXISTS (SELECT FROM swarm.query_events WHERE query = %s AND detail = ''query_rules-set'')', :id));
ALTER TABLE query_rules.go ADD go int;
SELECT swarm.query_wait(:id), swarm.query_result(:id)->'data';

-- flags: shares, growing, stable
SELECT swarm.flag_enabled('none', 'x');
SELECT swarm.flag_set('asyncExecution', percentage => 10);
CREATE TABLE query_rules.on10 AS SELECT i FROM generate_series(1, 10000) i WHERE swarm.flag_enabled('asyncExecution', 'user' || i);
SELECT count(*) BETWEEN 900 AND 1100 AS ten FROM query_rules.on10;
SELECT swarm.flag_set('asyncExecution', percentage => 25);
SELECT count(*) BETWEEN 2400 AND 2600 AS twentyfive, count(*) FILTER (WHERE i IN (SELECT i FROM query_rules.on10)) = (SELECT count(*) FROM query_rules.on10) AS stays
FROM generate_series(1, 10000) i WHERE swarm.flag_enabled('asyncExecution', 'user' || i);
SELECT swarm.flag_set('asyncExecution');
SELECT bool_and(swarm.flag_enabled('asyncExecution', i::text)) FROM generate_series(1, 100) i;
SELECT swarm.flag_set('asyncExecution', percentage => 101);
SELECT swarm.flag_set(NULL);
SELECT swarm.optimizer_start('0 s');
SELECT swarm.rule_create(NULL, 1, 'true', 'pause');
SELECT swarm.rule_create('list', 1, 'true', 'pause', '[]');
SELECT count(*) BETWEEN 4800 AND 5200 AS half, bool_and(swarm.flag_variant('exp', i::text) = swarm.flag_variant('exp', i::text)) AS stable
FROM generate_series(1, 10000) i WHERE swarm.flag_variant('exp', i::text) = 'a';
SELECT DISTINCT swarm.flag_variant('exp', i::text, '{red,green,blue}') AS variant FROM generate_series(1, 100) i ORDER BY 1;
SELECT swarm.flag_variant('exp', 'k', '{}') IS NULL AS none, swarm.flag_variant('exp', 'k', '[5:6]={a,b}') = swarm.flag_variant('exp', 'k') AS same,
    swarm.flag_variant('exp', 'k', '{{a,b},{c,d}}') IS NOT NULL AS any;

-- an experiment: what was assigned stays; c is better than a by a tenth of its spread, b is the same
SELECT swarm.experiment_assign('query_rules', 'k1') = swarm.flag_variant('query_rules', 'k1') AS assigned,
    swarm.experiment_assign('query_rules', 'k1', '{x}') = swarm.flag_variant('query_rules', 'k1') AS stays;
SELECT swarm.experiment_outcome('query_rules', 'k1', 1), swarm.experiment_outcome('query_rules', 'k1', 2);
SELECT keys, outcomes, mean, stddev, difference, confidence FROM swarm.experiment_result('query_rules');
INSERT INTO swarm._exposure (experiment, key, variant, outcome)
SELECT 'query_rules-abc', v || i, v, CASE WHEN i <= n THEN i % 2 + shift END
FROM (VALUES ('a', 1000, 0), ('b', 1000, 0.0), ('c', 1000, 0.05), ('d', 29, 5), ('e', 1000, 5)) x (v, n, shift), generate_series(1, 1010) i;
SELECT variant, keys, outcomes, round(mean::numeric, 4) AS mean, round(stddev::numeric, 4) AS stddev, round(difference::numeric, 4) AS difference,
    round(confidence::numeric, 4) AS confidence FROM swarm.experiment_result('query_rules-abc');
UPDATE swarm._exposure SET outcome = 7 WHERE experiment = 'query_rules-abc';
SELECT variant, stddev, difference, round(confidence::numeric, 4) AS confidence FROM swarm.experiment_result('query_rules-abc') WHERE variant < 'c';
SELECT * FROM swarm.experiment_result('none');
SELECT swarm.experiment_outcome('query_rules', 'k2', 1);
SELECT swarm.experiment_outcome('query_rules', 'k1', 'NaN');
SELECT swarm.experiment_outcome('query_rules', 'k1', NULL);
SELECT swarm.experiment_assign('query_rules', NULL);
SELECT swarm.experiment_assign('query_rules', 'k2', '{}');
SELECT swarm.experiment_assign('query_rules', 'k2', '{a,NULL}');
SET ROLE pg_monitor;
SELECT swarm.experiment_result('query_rules');
RESET ROLE;
DELETE FROM swarm._exposure WHERE experiment LIKE 'query_rules%';

-- what cannot be
SELECT swarm.query_control(NULL, 1);
SELECT swarm.optimizer_start('2 years');
SELECT swarm.rule_create('query_rules-twice', 1, 'false', 'pause');
SELECT swarm.rule_create('query_rules-twice', 1, 'false', 'pause');
SELECT swarm.rule_drop('query_rules-twice');

-- all off
SELECT r->'rollback_all' AS done, (r->>'rules')::int > 5 AS rules, (r->>'flags')::int >= 1 AS flags FROM swarm.rollback_all() r;
SELECT swarm.flag_enabled('asyncExecution', 'x'), swarm.optimizer_status()->'isMonitoring', swarm.optimizer_status()->'rulesCount';
-- as shipped again
DELETE FROM swarm._rule WHERE NOT shipped;
UPDATE swarm._rule SET enabled = name NOT IN ('optimize-tokens', 'throttle-under-load', 'temp-files-termination', 'spill-work-mem');
UPDATE swarm._rule_use SET acted = 0, failed = 0, error = NULL, acted_at = NULL;
DELETE FROM swarm._flag;
DELETE FROM swarm._query_event WHERE query IN (SELECT id FROM swarm._query WHERE metadata->>'app' = 'rules');
DELETE FROM swarm._query WHERE metadata->>'app' = 'rules';
DROP SCHEMA query_rules CASCADE;
