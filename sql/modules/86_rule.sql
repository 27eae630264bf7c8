-- 86_rule.sql: the optimizer of queries, its rules, feature flags.
--
-- src/query/README.md tells how rules run; docs/reference/queries.md the functions.

-- owner: with whose rights condition and action run. on_demand: of
-- query_optimize(), not of the optimizer. touched: not as the extension brings it.
CREATE TABLE swarm._rule (
    name text PRIMARY KEY,
    owner regrole NOT NULL DEFAULT current_user::regrole,
    priority int NOT NULL,
    condition text NOT NULL,
    action text NOT NULL CHECK (action IN ('pause', 'resume', 'terminate', 'change_model', 'change_permissions', 'execute_command')),
    params jsonb NOT NULL DEFAULT '{}' CHECK (pg_catalog.jsonb_typeof(params) = 'object'),
    enabled boolean NOT NULL DEFAULT true,
    on_demand boolean NOT NULL DEFAULT false,
    shipped boolean NOT NULL DEFAULT false,
    touched boolean NOT NULL DEFAULT false
);
-- What has come of it. Apart, so that a tick locks no rule that somebody wants
-- to switch off. In no dump.
CREATE TABLE swarm._rule_use (
    name text PRIMARY KEY REFERENCES swarm._rule ON DELETE CASCADE,
    acted bigint NOT NULL DEFAULT 0,
    acted_at timestamptz,
    failed bigint NOT NULL DEFAULT 0,
    error text
);
-- No row: it was never started.
CREATE TABLE swarm._optimizer (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    enabled boolean NOT NULL DEFAULT false,
    period interval NOT NULL DEFAULT '5 s' CHECK (period BETWEEN interval '0.1 s' AND interval '1 year')
);
CREATE TABLE swarm._flag (
    name text PRIMARY KEY,
    enabled boolean NOT NULL,
    percentage numeric NOT NULL CHECK (percentage BETWEEN 0 AND 100)
);
SELECT pg_catalog.pg_extension_config_dump('swarm._rule', 'WHERE touched');
SELECT pg_catalog.pg_extension_config_dump('swarm._optimizer', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._flag', '');

-- The scheduler looks at the optimizer when this commits, also after a restore.
CREATE FUNCTION swarm._optimizer_changed() RETURNS trigger LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_optimizer_changed';
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON swarm._optimizer
    FOR EACH STATEMENT EXECUTE FUNCTION swarm._optimizer_changed();
ALTER TABLE swarm._optimizer ENABLE ALWAYS TRIGGER changed;
CREATE FUNCTION swarm._rule_model(name text) RETURNS text LANGUAGE c STABLE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_rule_model';

-- Temporary files of a process now, in bytes.
CREATE FUNCTION swarm._temp_bytes(pid int) RETURNS bigint
LANGUAGE sql VOLATILE STRICT PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
AS $$ SELECT coalesce(sum(size), 0)::bigint FROM pg_ls_tmpdir() WHERE starts_with(name, 'pgsql_tmp' || pid || '.') $$;

INSERT INTO swarm._rule (name, owner, priority, condition, action, params, enabled, on_demand, shipped) VALUES
('runaway-query-termination', 10::oid::regrole, 10,
 $$kind <> 'session' AND state = 'running' AND duration - total_pause > interval '300 s'$$, 'terminate', '{}', true, false, true),
('token-budget-pause', 10::oid::regrole, 5,
 $$state = 'running' AND NOT pausing AND tokens >
     CASE WHEN coalesce(metadata->>'tokenBudget', budget->>'tokens') ~ '^[0-9]{1,18}([.][0-9]{1,18})?$'
          THEN coalesce(metadata->>'tokenBudget', budget->>'tokens')::numeric END$$, 'pause', '{}', true, false, true),
('upgrade-to-deep', 10::oid::regrole, 3,
 $$kind = 'llm' AND metadata->>'complexity' = 'high' AND metadata->>'requiresDeepReasoning' = 'true' AND model IS DISTINCT FROM swarm._rule_model('deep')$$,
 'change_model', '{"model": "deep"}', true, false, true),
('long-running-simple-query', 10::oid::regrole, 1,
 $$kind = 'llm' AND metadata->>'complexity' = 'simple' AND duration - total_pause > interval '30 s' AND model IS DISTINCT FROM swarm._rule_model('fast')$$,
 'change_model', '{"model": "fast"}', true, false, true),
('optimize-latency', 10::oid::regrole, 3,
 $$kind = 'llm' AND latency_ms > 5000 AND model IS DISTINCT FROM swarm._rule_model('fast')$$, 'change_model', '{"model": "fast"}', true, true, true),
('optimize-tokens', 10::oid::regrole, 2,
 $$tokens > 100000 AND permission_mode <> 'acceptEdits'$$, 'change_permissions', '{"mode": "acceptEdits"}', false, true, true),
('optimize-errors', 10::oid::regrole, 1,
 $$error_rate > 0.1 AND permission_mode <> 'default'$$, 'change_permissions', '{"mode": "default"}', true, true, true),
('throttle-under-load', 10::oid::regrole, 4,
 $$kind = 'sql' AND state = 'running' AND NOT pausing AND (SELECT count(*) FROM swarm.queries WHERE state = 'running') > 8$$,
 'pause', '{"length": "10 s"}', false, false, true),
('temp-files-termination', 10::oid::regrole, 8,
 $$kind = 'sql' AND state = 'running' AND swarm._temp_bytes(pid) > 10 * 1024::bigint ^ 3$$, 'terminate', '{}', false, false, true),
('spill-work-mem', 10::oid::regrole, 2,
 $$kind = 'sql' AND state = 'running' AND workers = 0 AND swarm._temp_bytes(pid) > 64 * 1024 ^ 2
   AND NOT EXISTS (SELECT FROM swarm.query_events e WHERE e.query = q.id AND e.detail = 'spill-work-mem')$$,
 'execute_command', '{"command": "SET work_mem = ''256MB''"}', false, false, true);
INSERT INTO swarm._rule_use (name) SELECT name FROM swarm._rule;

CREATE TRIGGER touched BEFORE INSERT OR UPDATE ON swarm._rule
    FOR EACH ROW EXECUTE FUNCTION swarm._touched();
ALTER TABLE swarm._rule ENABLE ALWAYS TRIGGER touched;

CREATE FUNCTION swarm._rule_added() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO swarm._rule_use (name) VALUES (NEW.name);
    RETURN NULL;
END $$;
CREATE TRIGGER added AFTER INSERT ON swarm._rule
    FOR EACH ROW EXECUTE FUNCTION swarm._rule_added();
ALTER TABLE swarm._rule ENABLE ALWAYS TRIGGER added;

CREATE FUNCTION swarm._rule_create(name text, priority int, condition text, action text, params jsonb,
    enabled boolean, on_demand boolean)
RETURNS void LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF num_nulls(name, priority, condition, action, params, enabled, on_demand) > 0 THEN
        RAISE 'no argument of rule_create() may be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF action NOT IN ('pause', 'resume', 'terminate', 'change_model', 'change_permissions', 'execute_command') THEN
        RAISE 'unknown action "%"', action USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Actions are pause, resume, terminate, change_model, change_permissions and execute_command.';
    END IF;
    IF jsonb_typeof(params) <> 'object' THEN
        RAISE 'the parameters of a rule must be an object' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- its names and types; what it does is looked at when it is used
    EXECUTE format(E'SELECT FROM swarm.queries q WHERE false AND (%s\n)', condition);
    INSERT INTO swarm._rule (name, priority, condition, action, params, enabled, on_demand)
    VALUES (name, priority, condition, action, params, enabled, on_demand)
    ON CONFLICT ON CONSTRAINT _rule_pkey DO NOTHING;
    IF NOT FOUND THEN
        RAISE 'rule "%" already exists', name USING ERRCODE = 'duplicate_object';
    END IF;
END $$;

CREATE FUNCTION swarm.rule_create(name text, priority int, condition text, action text, params jsonb = '{}',
    enabled boolean = true, on_demand boolean = false) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_rule_create';
COMMENT ON FUNCTION swarm.rule_create IS 'add a rule: on queries that the condition matches, the action is done; runs with the rights of who creates it';

CREATE FUNCTION swarm._rule_enable(name text, enabled boolean) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF num_nulls(name, enabled) > 0 THEN
        RAISE 'no argument of rule_enable() may be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    UPDATE swarm._rule r SET enabled = $2 WHERE r.name = $1;
    IF NOT FOUND THEN
        RAISE 'rule "%" does not exist', name USING ERRCODE = 'undefined_object';
    END IF;
END $$;

CREATE FUNCTION swarm.rule_enable(name text, enabled boolean = true) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_rule_enable';
COMMENT ON FUNCTION swarm.rule_enable IS 'switch a rule on or off';

CREATE FUNCTION swarm._rule_drop(name text) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    DELETE FROM swarm._rule r WHERE r.name = $1 AND NOT r.shipped;
    IF FOUND THEN
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM swarm._rule r WHERE r.name = $1) THEN
        RAISE 'rule "%" is part of the extension', name USING ERRCODE = 'reserved_name',
            HINT = 'Switch it off with swarm.rule_enable().';
    END IF;
    RAISE 'rule "%" does not exist', name USING ERRCODE = 'undefined_object';
END $$;

CREATE FUNCTION swarm.rule_drop(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_rule_drop';
COMMENT ON FUNCTION swarm.rule_drop IS 'drop a rule';

CREATE FUNCTION swarm._optimizer_start(period interval) RETURNS boolean
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF (period BETWEEN interval '0.1 s' AND interval '1 year') IS NOT TRUE THEN
        RAISE 'the period of the optimizer must be between 0.1 s and 1 year' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO swarm._optimizer AS o (enabled, period) VALUES (true, $1)
    ON CONFLICT ON CONSTRAINT _optimizer_pkey DO UPDATE SET enabled = true, period = EXCLUDED.period WHERE NOT o.enabled;
    IF NOT FOUND THEN
        RAISE WARNING 'the optimizer runs already';
        RETURN false;
    END IF;
    RETURN true;
END $$;

CREATE FUNCTION swarm.optimizer_start(period interval = '5 s') RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_optimizer_start';
COMMENT ON FUNCTION swarm.optimizer_start IS 'let the scheduler apply the rules, once a period; false, with a warning, if it does already';

CREATE FUNCTION swarm._optimizer_stop() RETURNS boolean
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE swarm._optimizer SET enabled = false WHERE enabled;
    RETURN FOUND;
END $$;

CREATE FUNCTION swarm.optimizer_stop() RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_optimizer_stop';
COMMENT ON FUNCTION swarm.optimizer_stop IS 'stop applying the rules; false if it did not';

CREATE FUNCTION swarm.optimizer_status() RETURNS jsonb
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT jsonb_build_object('isMonitoring', o.enabled, 'interval', o.period,
    'rulesCount', (SELECT count(*) FROM swarm._rule WHERE enabled AND NOT on_demand),
    'rules', (SELECT jsonb_agg(to_jsonb(r) - '{shipped,touched}'::text[] || to_jsonb(u) ORDER BY r.priority DESC, r.name)
              FROM swarm._rule r JOIN swarm._rule_use u USING (name)))
    FROM (SELECT coalesce(bool_or(enabled), false) AS enabled, coalesce(max(period), '5 s') AS period FROM swarm._optimizer) o $$;
COMMENT ON FUNCTION swarm.optimizer_status IS 'whether rules are applied, how often, and the rules with what they have done';

CREATE FUNCTION swarm.query_optimize(id bigint) RETURNS text
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_query_optimize';
COMMENT ON FUNCTION swarm.query_optimize IS 'apply the rules for this to a query; returns the name of the rule that has acted, or null';

-- ---------------------------------------------------------------------
-- Feature flags
-- ---------------------------------------------------------------------

CREATE FUNCTION swarm._flag_set(name text, enabled boolean, percentage numeric) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF num_nulls(name, enabled, percentage) > 0 THEN
        RAISE 'no argument of flag_set() may be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF percentage NOT BETWEEN 0 AND 100 THEN
        RAISE 'the percentage must be between 0 and 100' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO swarm._flag VALUES (name, enabled, percentage)
    ON CONFLICT ON CONSTRAINT _flag_pkey DO UPDATE SET enabled = EXCLUDED.enabled, percentage = EXCLUDED.percentage;
END $$;

CREATE FUNCTION swarm.flag_set(name text, enabled boolean = true, percentage numeric = 100) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_flag_set';
COMMENT ON FUNCTION swarm.flag_set IS 'switch a feature on for a percentage of keys, or off';

-- The same key stays on when the percentage grows.
CREATE FUNCTION swarm.flag_enabled(name text, key text = '') RETURNS boolean
LANGUAGE sql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT coalesce((SELECT f.enabled AND (f.percentage = 100 OR
    (hashtextextended(key, hashtext(f.name)) & 9007199254740991) % 10000 < f.percentage * 100)
    FROM swarm._flag f WHERE f.name = $1), false) $$;
COMMENT ON FUNCTION swarm.flag_enabled IS 'is a feature on for this key; false for a feature that nobody has set';

CREATE FUNCTION swarm.flag_variant(name text, key text, variants text[] = '{a,b}') RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT v FROM unnest(variants) WITH ORDINALITY u(v, n)
      WHERE n = 1 + (hashtextextended(key, hashtext(name)::bigint << 1) & 9007199254740991) % cardinality(variants) $$;
COMMENT ON FUNCTION swarm.flag_variant IS 'the variant of an experiment for a key: always the same, evenly spread';

-- Which variant of an experiment somebody was given, and what came of it.
CREATE TABLE swarm._exposure (
    experiment text,
    key text,
    variant text NOT NULL,
    assigned_at timestamptz NOT NULL DEFAULT swarm._now(),
    outcome float8,
    PRIMARY KEY (experiment, key)
);
SELECT pg_catalog.pg_extension_config_dump('swarm._exposure', '');

-- swarm.experiment_assign(experiment, key, variants): what was assigned to a key
-- stays, also when the variants change. Errors: 22004, 22023 no variants.
CREATE FUNCTION swarm._experiment_assign(experiment text, key text, variants text[]) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
DECLARE
    assigned text;
BEGIN
    IF num_nulls(experiment, key, variants) > 0 OR array_position(variants, NULL) IS NOT NULL THEN
        RAISE 'no argument of experiment_assign() may be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF cardinality(variants) = 0 THEN
        RAISE 'an experiment needs variants' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    LOOP
        SELECT e.variant INTO assigned FROM swarm._exposure e WHERE e.experiment = experiment AND e.key = key;
        EXIT WHEN FOUND;
        INSERT INTO swarm._exposure (experiment, key, variant)
        VALUES (experiment, key, swarm.flag_variant(experiment, key, variants))
        ON CONFLICT ON CONSTRAINT _exposure_pkey DO NOTHING RETURNING variant INTO assigned;
        EXIT WHEN FOUND;
    END LOOP;
    RETURN assigned;
END $$;

CREATE FUNCTION swarm.experiment_assign(experiment text, key text, variants text[] = '{a,b}') RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_experiment_assign';
COMMENT ON FUNCTION swarm.experiment_assign IS 'the variant of an experiment for a key, as flag_variant, and remember it';

-- swarm.experiment_outcome(experiment, key, outcome): the last one counts.
-- Errors: 22004, 22023 not finite, 42704 never assigned.
CREATE FUNCTION swarm._experiment_outcome(experiment text, key text, outcome float8) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_variable
BEGIN
    IF num_nulls(experiment, key, outcome) > 0 THEN
        RAISE 'no argument of experiment_outcome() may be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF outcome IN ('NaN', 'Infinity', '-Infinity') THEN
        RAISE 'an outcome must be a finite number' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    UPDATE swarm._exposure e SET outcome = outcome WHERE e.experiment = experiment AND e.key = key;
    IF NOT FOUND THEN
        RAISE 'experiment "%" has no key "%"', experiment, key USING ERRCODE = 'undefined_object',
            HINT = 'Keys are assigned by swarm.experiment_assign().';
    END IF;
END $$;

CREATE FUNCTION swarm.experiment_outcome(experiment text, key text, outcome float8) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_experiment_outcome';
COMMENT ON FUNCTION swarm.experiment_outcome IS 'what came of the variant that a key was given: a number that is compared, such as seconds or 0 and 1';

-- swarm.experiment_result(experiment): its variants, each beside the first one by name. confidence: how
-- sure it is, from 0 to 1, that the means differ: Welch's test with the normal distribution, whose
-- integral is Abramowitz and Stegun's 7.1.26 (to 1.5e-7). NULL below 30 outcomes on a side.
CREATE FUNCTION swarm.experiment_result(experiment text, OUT variant text, OUT keys bigint, OUT outcomes bigint,
    OUT mean float8, OUT stddev float8, OUT difference float8, OUT confidence float8)
RETURNS SETOF record LANGUAGE sql STABLE PARALLEL SAFE ROWS 2 SET search_path = pg_catalog, pg_temp
AS $$
WITH v AS (
    SELECT e.variant, count(*) AS keys, count(e.outcome) AS n, avg(e.outcome) AS mean, stddev_samp(e.outcome) AS stddev
    FROM swarm._exposure e WHERE e.experiment = $1 GROUP BY e.variant),
c AS (
    SELECT v.*, v.mean - f.mean AS difference, v.variant <> f.variant AND v.n >= 30 AND f.n >= 30 AS enough,
           sqrt(v.stddev ^ 2 / v.n + f.stddev ^ 2 / f.n) AS error
    FROM v, (SELECT * FROM v ORDER BY variant COLLATE "C" LIMIT 1) f),
z AS (
    SELECT c.*, CASE WHEN error > 0 THEN least(abs(difference) / error, 30) WHEN difference <> 0 THEN 30 ELSE 0 END / sqrt(2::float8) AS z FROM c)
SELECT variant, keys, n, mean, stddev, difference,
       CASE WHEN enough THEN greatest(0, 1 - ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t * exp(-(z * z))) END
FROM z, LATERAL (SELECT 1 / (1 + 0.3275911 * z) AS t) x ORDER BY variant COLLATE "C" $$;
COMMENT ON FUNCTION swarm.experiment_result IS 'outcomes of an experiment by variant, the difference to the first variant by name, and how sure it is';

-- Who has one of these rows locked is not waited for: an error says so at once.
CREATE FUNCTION swarm._rollback_all() RETURNS jsonb
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp SET lock_timeout = '250ms'
AS $$
DECLARE
    answer jsonb;
    flags int;
    rules int;
BEGIN
    UPDATE swarm._optimizer SET enabled = false;
    UPDATE swarm._flag SET enabled = false WHERE enabled;
    GET DIAGNOSTICS flags = ROW_COUNT;
    UPDATE swarm._rule SET enabled = false WHERE enabled;
    GET DIAGNOSTICS rules = ROW_COUNT;
    answer := jsonb_build_object('rollback_all', true, 'flags', flags, 'rules', rules);
    PERFORM pg_notify('swarm_events', answer::text);
    RETURN answer;
END $$;

CREATE FUNCTION swarm.rollback_all() RETURNS jsonb
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_rollback_all';
COMMENT ON FUNCTION swarm.rollback_all IS 'switch the optimizer, every rule and every flag off, and say so on channel swarm_events';
