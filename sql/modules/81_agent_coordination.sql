-- 81_agent_coordination.sql: agents: hooks, protocols, messages, topologies,
-- retries and circuit breakers.

-- ---------------------------------------------------------------------
-- Hooks
-- ---------------------------------------------------------------------

CREATE SEQUENCE swarm._hook_id_seq AS int;
CREATE TABLE swarm._hook (
    id int PRIMARY KEY DEFAULT nextval('swarm._hook_id_seq'),
    event text COLLATE "C" NOT NULL,
    phase text COLLATE "C" NOT NULL,
    handler text NOT NULL,
    owner regrole NOT NULL,
    priority int NOT NULL,
    timeout interval NOT NULL,
    enabled boolean NOT NULL DEFAULT true,
    UNIQUE (event, phase, handler)
);
SELECT pg_catalog.pg_extension_config_dump('swarm._hook_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._hook', '');

-- base/hook.c: processes keep in mind which events have hooks.
CREATE FUNCTION swarm._hook_changed() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'swarm__hook_changed';
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON swarm._hook
    FOR EACH STATEMENT EXECUTE FUNCTION swarm._hook_changed();

-- Call a function (jsonb) with a role's rights, in a subtransaction, for a time.
CREATE FUNCTION swarm._agent_call(role oid, proc oid, argument jsonb, timeout_ms int,
    OUT result jsonb, OUT error text, OUT state text, OUT timed_out boolean, OUT ms float8)
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm__agent_call';

-- What calls of hooks came to, counted in shared memory; agent_hook.c.
CREATE FUNCTION swarm._hook_counts(OUT hook int, OUT calls bigint, OUT failures bigint, OUT vetoes bigint, OUT timeouts bigint, OUT total_ms float8)
RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 10 AS 'MODULE_PATHNAME', 'swarm__hook_counts';

-- Most operations are one function, whose name the event has (src/base/operation.h).
CREATE FUNCTION swarm._hook_events(OUT event text, OUT what text) RETURNS SETOF record
LANGUAGE sql STABLE PARALLEL SAFE ROWS 100 SET search_path = pg_catalog, pg_temp AS $$
SELECT * FROM (VALUES
    ('agent_spawn', 'an agent is spawned; a veto fails this one'),
    ('agent_pause', 'swarm.agent_pause()'), ('agent_resume', 'swarm.agent_resume()'),
    ('agent_stop', 'swarm.agent_stop()'), ('agent_kill', 'swarm.agent_kill()'),
    ('task_submit', 'swarm.task_submit()'), ('task', 'an agent does a task; a veto fails the task'),
    ('progress', 'swarm.agent_progress()'),
    ('message', 'swarm.agent_message()'), ('handoff', 'swarm.agent_handoff()'),
    ('job_enqueue', 'swarm.job_enqueue(), swarm.job_enqueue_many()'),
    ('job', 'before: a process runs a job, a veto ends it; after: it has ended'),
    ('memory_store', 'swarm.memory_store(), memory_store_many(), memory_increment(), memory_usage(), cached()'),
    ('memory_delete', 'swarm.memory_delete(), memory_clear(), memory_usage()'),
    ('upload', 'before: swarm.s3_upload(), s3_upload_sync(), s3_export(); after: every file has its outcome'),
    ('query_start', 'swarm.query_start()'), ('query_pause', 'swarm.query_pause()'), ('query_resume', 'swarm.query_resume()'),
    ('query_terminate', 'swarm.query_terminate()'), ('query_execute_command', 'swarm.query_execute_command()'),
    ('query_change_permissions', 'swarm.query_change_permissions()'), ('query_change_model', 'swarm.query_change_model()'),
    ('query_approve', 'swarm.query_approve()')) t(event, what)
UNION ALL
SELECT DISTINCT p.proname::text, format('swarm.%s()', p.proname) FROM pg_proc p
WHERE p.pronamespace = 'swarm'::regnamespace AND p.prosrc = 'swarm_hooked_' || p.proname
ORDER BY 1
$$;

CREATE FUNCTION swarm._hook_create(caller oid, event text, phase text, handler regproc, priority int, timeout interval) RETURNS int
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    hook int;
    p pg_proc;
    qualified text;
BEGIN
    IF NOT EXISTS (SELECT FROM swarm._hook_events() e WHERE e.event = _hook_create.event) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('event "%s" is not known', event),
            HINT = 'swarm._hook_events() lists those that are.';
    ELSIF phase IS NULL OR phase NOT IN ('before', 'after') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'phase must be before or after';
    ELSIF priority IS NULL OR timeout IS NULL OR timeout < '1 ms' OR timeout > '1 hour' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'timeout must be between 1 ms and 1 hour, and priority not null';
    END IF;
    SELECT * INTO p FROM pg_proc WHERE oid = handler;
    IF p.oid IS NULL OR p.prokind <> 'f' OR p.proretset OR p.pronargs <> 1 OR p.proargtypes[0] <> 'jsonb'::regtype
       OR p.prorettype NOT IN ('jsonb'::regtype, 'void'::regtype) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_function_definition',
            MESSAGE = 'a hook must be a function (jsonb) that returns jsonb or void';
    ELSIF NOT has_function_privilege(caller, p.oid, 'EXECUTE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = format('permission denied for function %s', p.proname);
    END IF;
    qualified := format('%I.%I', (SELECT nspname FROM pg_namespace WHERE oid = p.pronamespace), p.proname);
    INSERT INTO swarm._hook AS h (event, phase, handler, owner, priority, timeout)
    VALUES (_hook_create.event, _hook_create.phase, qualified, caller, _hook_create.priority, _hook_create.timeout)
    ON CONFLICT (event, phase, handler) DO UPDATE SET priority = EXCLUDED.priority, timeout = EXCLUDED.timeout, owner = EXCLUDED.owner
    WHERE pg_has_role(caller, h.owner::oid, 'USAGE')
    RETURNING h.id INTO hook;
    IF hook IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = 'must be owner of the hook';
    END IF;
    RETURN hook;
END $$;

-- swarm.hook_create(event, phase, handler, priority, timeout): call a function
-- around an operation, with the rights of who calls this. Returns its id.
CREATE FUNCTION swarm.hook_create(event text, phase text, handler regproc, priority int = 0, timeout interval = '1 s') RETURNS int
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_hook_create';
COMMENT ON FUNCTION swarm.hook_create IS 'call a function before or after an operation; one before it can refuse it';

CREATE FUNCTION swarm._hook_drop(caller oid, hook int) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM swarm._hook h WHERE h.id = hook AND pg_has_role(caller, h.owner::oid, 'USAGE');
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('hook %s does not exist', coalesce(hook::text, 'NULL'));
    END IF;
END $$;

CREATE FUNCTION swarm.hook_drop(hook int) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_hook_drop';
COMMENT ON FUNCTION swarm.hook_drop IS 'remove a hook';

CREATE FUNCTION swarm._hook_enable(caller oid, hook int, enabled boolean) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE swarm._hook h SET enabled = coalesce(_hook_enable.enabled, h.enabled) WHERE h.id = hook AND pg_has_role(caller, h.owner::oid, 'USAGE');
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('hook %s does not exist', coalesce(hook::text, 'NULL'));
    END IF;
END $$;

CREATE FUNCTION swarm.hook_enable(hook int, enabled boolean = true) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_hook_enable';
COMMENT ON FUNCTION swarm.hook_enable IS 'switch a hook on or off';

CREATE VIEW swarm.hook_stat AS
SELECT h.id, h.event, h.phase, h.handler, h.owner, h.priority, h.timeout, h.enabled,
       coalesce(c.calls, 0) AS calls, coalesce(c.failures, 0) AS failures, coalesce(c.vetoes, 0) AS vetoes,
       coalesce(c.timeouts, 0) AS timeouts, coalesce(c.total_ms, 0) AS total_ms
FROM swarm._hook h LEFT JOIN swarm._hook_counts() c ON c.hook = h.id;
COMMENT ON VIEW swarm.hook_stat IS 'hooks, with their calls, errors, vetoes and time-outs since server start';

-- ---------------------------------------------------------------------
-- Retries, fallbacks, circuit breakers
-- ---------------------------------------------------------------------

CREATE TABLE swarm._retry_policy (
    target text COLLATE "C" PRIMARY KEY,
    first_wait interval NOT NULL,
    factor float8 NOT NULL,
    max_wait interval NOT NULL,
    fallback text,
    threshold int,
    cooldown interval NOT NULL,
    builtin boolean NOT NULL DEFAULT false,
    max_attempts int
);
INSERT INTO swarm._retry_policy VALUES ('default', '100 ms', 2, '1 min', NULL, NULL, '30 s', true);
SELECT pg_catalog.pg_extension_config_dump('swarm._retry_policy', 'WHERE NOT builtin');

CREATE TABLE swarm._circuit_breaker (
    target text COLLATE "C" PRIMARY KEY,
    state text NOT NULL,
    failures int NOT NULL,
    opened_at timestamptz,
    opened int NOT NULL DEFAULT 0,
    last_error text
);
SELECT pg_catalog.pg_extension_config_dump('swarm._circuit_breaker', '');

CREATE FUNCTION swarm._policy(of_target text) RETURNS swarm._retry_policy
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT p FROM swarm._retry_policy p WHERE p.target IN (of_target, 'default') ORDER BY p.target = of_target DESC LIMIT 1
$$;

-- swarm.retry_policy_set(target, policy): how often and when what fails is tried
-- again, what is used instead, and when to stop asking. target: agent:TYPE, the
-- agents of a type; or server:NAME, what uploads and models ask (src/net).
CREATE FUNCTION swarm._retry_policy_set(target text, policy jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    misfit text := swarm._json_misfit(policy, '{"type": "object", "additionalProperties": false, "properties": {
        "first_wait": {"type": "string"}, "factor": {"type": "number", "minimum": 1}, "max_wait": {"type": "string"},
        "max_attempts": {"type": ["integer", "null"], "minimum": 1, "maximum": 100}, "fallback": {"type": ["string", "null"]}, "threshold": {"type": ["integer", "null"], "minimum": 1}, "cooldown": {"type": "string"}}}', '$');
BEGIN
    IF target IS NULL OR target !~ '^(agent|server):.' OR policy IS NULL OR misfit IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('invalid retry policy: %s', CASE WHEN policy IS NULL THEN 'no policy' ELSE coalesce(misfit, 'no target') END),
            HINT = 'Targets are agent:TYPE and server:NAME.';
    ELSIF least((policy->>'first_wait')::interval, (policy->>'max_wait')::interval, (policy->>'cooldown')::interval) < '0'
       OR greatest((policy->>'first_wait')::interval, (policy->>'max_wait')::interval, (policy->>'cooldown')::interval) > '1 day' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'invalid retry policy: a wait must be between 0 and 1 day';
    END IF;
    INSERT INTO swarm._retry_policy AS p (target, first_wait, factor, max_wait, fallback, threshold, cooldown, max_attempts)
    SELECT _retry_policy_set.target, coalesce((policy->>'first_wait')::interval, '100 ms'), coalesce((policy->>'factor')::float8, 2),
           coalesce((policy->>'max_wait')::interval, '1 min'), policy->>'fallback', (policy->>'threshold')::int,
           coalesce((policy->>'cooldown')::interval, '30 s'), (policy->>'max_attempts')::int
    ON CONFLICT (target) DO UPDATE SET first_wait = EXCLUDED.first_wait, factor = EXCLUDED.factor, max_wait = EXCLUDED.max_wait,
        fallback = EXCLUDED.fallback, threshold = EXCLUDED.threshold, cooldown = EXCLUDED.cooldown, max_attempts = EXCLUDED.max_attempts;
END $$;

CREATE FUNCTION swarm.retry_policy_set(target text, policy jsonb) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_retry_policy_set';
COMMENT ON FUNCTION swarm.retry_policy_set IS 'waits, fallback and circuit breaker of a target: agent:TYPE or server:NAME';

CREATE FUNCTION swarm._retry_policy_drop(target text) RETURNS void
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DELETE FROM swarm._retry_policy p WHERE p.target = $1 AND NOT p.builtin;
DELETE FROM swarm._circuit_breaker b WHERE b.target = $1;
$$;

CREATE FUNCTION swarm.retry_policy_drop(target text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_retry_policy_drop';
COMMENT ON FUNCTION swarm.retry_policy_drop IS 'forget the retry policy of a target, and its circuit breaker';

-- What becomes of a task that failed: again after `wait`, perhaps by another
-- type, or not. A refusal (38000) is not tried again.
CREATE FUNCTION swarm._retry_decide(of_type text, state text, attempts int, max_attempts int,
    OUT again boolean, OUT wait interval, OUT fallback text)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    p swarm._retry_policy := swarm._policy('agent:' || of_type);
BEGIN
    again := state <> '38000' AND attempts < max_attempts;
    wait := least(p.max_wait, p.first_wait * power(p.factor, attempts - 1));
    IF state IN ('40001', '40P01') THEN
        wait := '10 ms';
    END IF;
    IF state <> '38000' AND attempts >= max_attempts AND p.fallback IS NOT NULL AND attempts < 2 * max_attempts THEN
        again := true;
        fallback := p.fallback;
        wait := '0';
    END IF;
END $$;

-- May the target be asked? NULL, or when it may be again. The first one after
-- the cool-down finds out whether it works.
CREATE FUNCTION swarm._breaker_closed_at(of_target text) RETURNS timestamptz
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    b swarm._circuit_breaker;
    p swarm._retry_policy;
BEGIN
    SELECT * INTO b FROM swarm._circuit_breaker o WHERE o.target = of_target AND o.state <> 'closed';
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    p := swarm._policy(of_target);
    IF b.opened_at + p.cooldown > swarm._now() THEN
        RETURN b.opened_at + p.cooldown;
    END IF;
    UPDATE swarm._circuit_breaker o SET state = 'half-open', opened_at = swarm._now()
    WHERE o.target = of_target AND o.opened_at = b.opened_at;
    RETURN CASE WHEN FOUND THEN NULL ELSE swarm._now() + p.cooldown END;
END $$;

-- A call of the target went well, or not. Writes nothing as long as all is well.
CREATE FUNCTION swarm._breaker_note(of_target text, well boolean, error text) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    p swarm._retry_policy;
BEGIN
    IF well THEN
        UPDATE swarm._circuit_breaker b SET state = 'closed', failures = 0, opened_at = NULL
        WHERE b.target = of_target AND (b.failures > 0 OR b.state <> 'closed');
        RETURN;
    END IF;
    p := swarm._policy(of_target);
    IF p.threshold IS NULL THEN
        RETURN;
    END IF;
    INSERT INTO swarm._circuit_breaker AS b (target, state, failures, opened_at, opened, last_error)
    VALUES (of_target, CASE WHEN p.threshold = 1 THEN 'open' ELSE 'closed' END, 1, CASE WHEN p.threshold = 1 THEN swarm._now() END,
            (p.threshold = 1)::int, error)
    ON CONFLICT (target) DO UPDATE SET failures = b.failures + 1, last_error = EXCLUDED.last_error,
        state = CASE WHEN b.state <> 'closed' OR b.failures + 1 >= p.threshold THEN 'open' ELSE b.state END,
        opened_at = CASE WHEN b.state = 'half-open' OR (b.state = 'closed' AND b.failures + 1 >= p.threshold) THEN swarm._now() ELSE b.opened_at END,
        opened = b.opened + (b.state = 'half-open' OR (b.state = 'closed' AND b.failures + 1 >= p.threshold))::int;
END $$;

-- Those of servers are in shared memory, one for each endpoint.
CREATE VIEW swarm.circuit_breakers AS
SELECT p.target, coalesce(b.state, 'closed') AS state, coalesce(b.failures, 0) AS failures, p.threshold, p.cooldown, b.opened_at,
       coalesce(b.opened, 0) AS opened,
       CASE WHEN pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') THEN b.last_error END AS last_error, p.first_wait, p.factor, p.max_wait, p.fallback,
       p.max_attempts, CASE WHEN b.state <> 'closed' THEN b.opened_at + p.cooldown END AS open_until
FROM swarm._retry_policy p LEFT JOIN swarm._circuit_breaker b ON b.target = p.target
WHERE p.target NOT LIKE 'server:%'
UNION ALL
SELECT 'server:' || s.srvname, coalesce(e.breaker, 'closed'), coalesce(e.failures_in_row, 0),
       coalesce(p.threshold, pg_catalog.current_setting('pg_swarm.net_breaker_failures')::int),
       coalesce(p.cooldown, pg_catalog.current_setting('pg_swarm.net_breaker_pause')::interval), NULL, NULL, NULL,
       coalesce(p.first_wait, pg_catalog.current_setting('pg_swarm.net_backoff')::interval), coalesce(p.factor, 2),
       coalesce(p.max_wait, pg_catalog.current_setting('pg_swarm.net_backoff_max')::interval), p.fallback,
       coalesce(p.max_attempts, pg_catalog.current_setting('pg_swarm.net_max_attempts')::int), e.open_until
FROM pg_catalog.pg_foreign_server s
JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw AND w.fdwname IN ('swarm_s3', 'swarm_llm')
LEFT JOIN swarm._retry_policy p ON p.target = 'server:' || s.srvname
LEFT JOIN LATERAL (SELECT x.* FROM swarm._s3_endpoints() x, pg_catalog.pg_options_to_table(s.srvoptions) o
                   WHERE o.option_name = 'endpoint' AND pg_catalog.rtrim(o.option_value, '/') = x.endpoint LIMIT 1) e ON true;
COMMENT ON VIEW swarm.circuit_breakers IS 'retry policies of agents and servers, with the state of their circuit breakers';

-- ---------------------------------------------------------------------
-- Strategies: which way of choosing an agent pays (a bandit, UCB1)
-- ---------------------------------------------------------------------

CREATE TABLE swarm._strategy (
    name text PRIMARY KEY,
    tries bigint NOT NULL DEFAULT 0,
    reward float8 NOT NULL DEFAULT 0
);
INSERT INTO swarm._strategy (name) VALUES ('rank'), ('least-loaded'), ('round-robin');

CREATE FUNCTION swarm._strategy_choose() RETURNS text
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT name FROM swarm._strategy
ORDER BY CASE WHEN tries = 0 THEN 'infinity' ELSE reward / tries + sqrt(2 * ln((SELECT sum(tries) FROM swarm._strategy)::float8) / tries) END DESC, name LIMIT 1
$$;

CREATE FUNCTION swarm._strategy_note(of_strategy text, value float8) RETURNS void
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
UPDATE swarm._strategy SET tries = tries + 1, reward = reward + value WHERE name = of_strategy
$$;

CREATE VIEW swarm.agent_strategies AS
SELECT name, tries, reward, CASE WHEN tries > 0 THEN reward / tries END AS mean FROM swarm._strategy;
COMMENT ON VIEW swarm.agent_strategies IS 'ways to choose an agent, with what strategy "adaptive" has learned of them';

-- ---------------------------------------------------------------------
-- Topologies
-- ---------------------------------------------------------------------

CREATE SEQUENCE swarm._topology_id_seq AS int;
CREATE TABLE swarm._topology (
    id int PRIMARY KEY DEFAULT nextval('swarm._topology_id_seq'),
    name text COLLATE "C" NOT NULL,
    owner regrole NOT NULL,
    kind text NOT NULL,
    adaptive boolean NOT NULL DEFAULT false, -- kind is chosen
    previous text,
    changed_at timestamptz,
    trial boolean NOT NULL DEFAULT false, -- may go back to the previous one
    before jsonb, -- what was measured with the previous one
    refused text, -- was tried, and was worse
    why text,
    UNIQUE (owner, name)
);
-- Of an adaptive one: what its members have measured since it has its kind.
CREATE TABLE swarm._topology_member (
    topology int NOT NULL REFERENCES swarm._topology ON DELETE CASCADE,
    place int NOT NULL,
    agent bigint NOT NULL,
    tasks int NOT NULL DEFAULT 0,
    task_ms float8 NOT NULL DEFAULT 0,
    messages int NOT NULL DEFAULT 0,
    message_ms float8 NOT NULL DEFAULT 0,
    failures int NOT NULL DEFAULT 0,
    PRIMARY KEY (topology, place),
    UNIQUE (topology, agent)
) WITH (fillfactor = 80);
CREATE INDEX _topology_member_agent ON swarm._topology_member (agent);
SELECT pg_catalog.pg_extension_config_dump('swarm._topology_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._topology', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._topology_member', '');
ALTER TABLE swarm._topology ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._topology FOR SELECT USING (pg_catalog.pg_has_role(owner::oid, 'USAGE'));
ALTER TABLE swarm._topology_member ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._topology_member FOR SELECT
    USING (EXISTS (SELECT FROM swarm._topology t WHERE t.id = _topology_member.topology));

-- Are the a-th and the b-th of n linked?
CREATE FUNCTION swarm._topology_linked(kind text, n bigint, a bigint, b bigint) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT a <> b AND CASE kind
    WHEN 'mesh' THEN true
    WHEN 'ring' THEN abs(a - b) IN (1, n - 1)
    WHEN 'star' THEN least(a, b) = 1
    WHEN 'hierarchical' THEN (greatest(a, b) + 1) / 3 = least(a, b)
END
$$;

-- Links between members that are alive. The dead have no place, so a ring
-- closes over one, and another one becomes the centre of a star.
CREATE FUNCTION swarm._topology_links(of_topology int) RETURNS TABLE (from_agent bigint, to_agent bigint)
LANGUAGE sql STABLE PARALLEL SAFE ROWS 100 SET search_path = pg_catalog, pg_temp AS $$
WITH live AS MATERIALIZED (
    SELECT m.agent, row_number() OVER (ORDER BY m.place) AS place, count(*) OVER () AS n
    FROM swarm._topology_member m JOIN swarm._agent a ON a.id = m.agent
    WHERE m.topology = of_topology AND a.state NOT IN ('stopped', 'failed', 'stopping'))
SELECT x.agent, y.agent FROM live x, live y, swarm._topology t
WHERE t.id = of_topology AND swarm._topology_linked(t.kind, x.n, x.place, y.place)
$$;

-- The reasons are what test 405 measures for the most agents of a row (or 30).
CREATE FUNCTION swarm._topology_rules(OUT min_agents int, OUT max_agents int, OUT complexity text, OUT kind text, OUT why text) RETURNS SETOF record
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 10
BEGIN ATOMIC
SELECT * FROM (VALUES
    (1, 6, 'simple', 'star', '6 agents: 10 links, longest path 2, most neighbours 5'),
    (1, 6, 'complex', 'mesh', '6 agents: 30 links, longest path 1, most neighbours 5'),
    (7, 16, 'simple', 'star', '16 agents: 30 links, longest path 2, most neighbours 15'),
    (7, 16, 'complex', 'hierarchical', '16 agents: 30 links, longest path 5, most neighbours 4'),
    (17, NULL, 'simple', 'ring', '30 agents: 60 links, longest path 15, most neighbours 2'),
    (17, NULL, 'complex', 'hierarchical', '30 agents: 58 links, longest path 6, most neighbours 4')) t;
END;

-- swarm.topology_choose(n, complexity): the kind for so many agents and tasks
-- that are simple or complex.
CREATE FUNCTION swarm.topology_choose(n int, complexity text = 'simple') RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k text;
BEGIN
    SELECT r.kind INTO k FROM swarm._topology_rules() r
    WHERE n BETWEEN r.min_agents AND coalesce(r.max_agents, n) AND r.complexity = topology_choose.complexity;
    IF k IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'n must be positive, and complexity simple or complex';
    END IF;
    RETURN k;
END $$;
COMMENT ON FUNCTION swarm.topology_choose IS 'which kind of topology suits a number of agents and the complexity of their tasks';

-- ---------------------------------------------------------------------
-- Adaptive topologies: a kind that was chosen, and is worse than the one
-- before, is given up
-- ---------------------------------------------------------------------

-- When a measure has risen: both kinds have been measured `samples` times, and
-- the mean of the new one is above factor * mean of the old one + slack.  After
-- ten times as many the new one stays.
CREATE FUNCTION swarm._topology_limits(OUT measure text, OUT samples int, OUT factor float8, OUT slack float8, OUT why text) RETURNS SETOF record
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 3
BEGIN ATOMIC
SELECT * FROM (VALUES
    ('task_ms', 20, 1.5, 1, 'milliseconds from when a task was due to the end of its attempt'),
    ('message_ms', 20, 1.5, 1, 'milliseconds until agent_inbox() has read a message of another member'),
    ('failures', 20, 1.5, 0.05, 'share of tasks and messages: attempts that failed, requests for help that nobody has answered')) t;
END;

-- What the members have measured: {measure: {"n": how often, "mean": value}}.
CREATE FUNCTION swarm._topology_measured(of_topology int) RETURNS jsonb
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT jsonb_build_object('task_ms', jsonb_build_object('n', coalesce(sum(m.tasks), 0), 'mean', sum(m.task_ms) / nullif(sum(m.tasks), 0)),
    'message_ms', jsonb_build_object('n', coalesce(sum(m.messages), 0), 'mean', sum(m.message_ms) / nullif(sum(m.messages), 0)),
    'failures', jsonb_build_object('n', coalesce(sum(m.tasks + m.messages), 0),
        'mean', sum(m.failures)::float8 / nullif(greatest(sum(m.tasks + m.messages), sum(m.failures)), 0)))
FROM swarm._topology_member m WHERE m.topology = of_topology
$$;

-- The kind of a topology is another one, or is kept: for all to see.
CREATE FUNCTION swarm._topology_tell(of_topology int, reason text) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE swarm._topology t SET why = reason WHERE t.id = of_topology;
    INSERT INTO swarm._agent_event (agent, event, detail, at)
    SELECT m.agent, 'topology', format('%s: %s', t.name, reason), swarm._now()
    FROM swarm._topology t JOIN swarm._topology_member m ON m.topology = t.id JOIN swarm._agent a ON a.id = m.agent
    WHERE t.id = of_topology AND a.state NOT IN ('stopped', 'failed') ORDER BY m.place;
END $$;

-- Is the new kind worse than the previous one? Then back to that, and never
-- again this one.
CREATE FUNCTION swarm._topology_judge(of_topology int) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t swarm._topology;
    measured jsonb := swarm._topology_measured(of_topology);
    r record;
    settled boolean := true;
    figures text;
BEGIN
    SELECT * INTO t FROM swarm._topology o WHERE o.id = of_topology AND o.trial;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    FOR r IN SELECT x.*, x.mean > x.mean_before * x.factor + x.slack AS rose, x.n >= 10 * x.samples AS enough
             FROM (SELECT l.measure, l.samples, l.factor, l.slack, (t.before->l.measure->>'mean')::float8 AS mean_before, (t.before->l.measure->>'n')::bigint AS n_before,
                          (measured->l.measure->>'mean')::float8 AS mean, (measured->l.measure->>'n')::bigint AS n FROM swarm._topology_limits() l) x
             WHERE x.n_before >= x.samples LOOP
        IF r.n >= r.samples AND r.rose THEN
            -- somebody else is just changing it: what he finds holds
            SELECT * INTO t FROM swarm._topology o WHERE o.id = of_topology AND o.trial AND o.changed_at = t.changed_at FOR UPDATE SKIP LOCKED;
            IF FOUND THEN
                UPDATE swarm._topology o SET kind = t.previous, previous = t.kind, refused = t.kind, changed_at = swarm._now(), trial = false
                WHERE o.id = of_topology;
                PERFORM swarm._topology_tell(of_topology, format('%s again: %s was %s with %s, %s before; the limit was %s', t.previous, r.measure,
                    round(r.mean::numeric, 3), t.kind, round(r.mean_before::numeric, 3), round((r.mean_before * r.factor + r.slack)::numeric, 3)));
            END IF;
            RETURN;
        END IF;
        settled := settled AND r.enough;
        figures := concat_ws(', ', figures, format('%s is %s, was %s', r.measure, round(r.mean::numeric, 3), round(r.mean_before::numeric, 3)));
    END LOOP;
    IF settled THEN
        SELECT * INTO t FROM swarm._topology o WHERE o.id = of_topology AND o.trial AND o.changed_at = t.changed_at FOR UPDATE SKIP LOCKED;
        IF FOUND THEN
            UPDATE swarm._topology o SET trial = false WHERE o.id = of_topology;
            PERFORM swarm._topology_tell(of_topology, format('%s stays: %s', t.kind, coalesce(figures, 'too little was measured before')));
        END IF;
    END IF;
END $$;

-- What an agent has measured, if it is in an adaptive topology: tasks, and
-- messages of `senders` that have waited so long. Samples: one that would have
-- to wait for a lock, or could not be serialized, is left out.
CREATE FUNCTION swarm._topology_note(of_agent bigint, more_tasks int, more_task_ms float8, more_failures int,
    senders bigint[] = '{}', waits float8[] = '{}') RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r record;
BEGIN
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        RETURN;
    END IF;
    FOR r IN SELECT m.topology, t.trial FROM swarm._topology_member m JOIN swarm._topology t ON t.id = m.topology
             WHERE m.agent = of_agent AND t.adaptive ORDER BY m.topology FOR UPDATE OF m SKIP LOCKED LOOP
        UPDATE swarm._topology_member m SET tasks = m.tasks + more_tasks, task_ms = m.task_ms + more_task_ms, failures = m.failures + more_failures,
            messages = m.messages + x.n, message_ms = m.message_ms + x.ms
        FROM (SELECT count(*)::int AS n, coalesce(sum(u.ms), 0) AS ms FROM unnest(senders, waits) u(sender, ms)
              JOIN swarm._topology_member s ON s.topology = r.topology AND s.agent = u.sender) x
        WHERE m.topology = r.topology AND m.agent = of_agent;
        IF r.trial THEN
            PERFORM swarm._topology_judge(r.topology);
        END IF;
    END LOOP;
END $$;

CREATE FUNCTION swarm._topology_create(caller oid, name text, kind text, agents bigint[]) RETURNS int
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    t swarm._topology;
    chosen text := kind;
    measured jsonb;
    members swarm._topology_member[];
    a bigint;
    n int;
BEGIN
    IF name IS NULL OR name = '' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'a topology needs a name';
    ELSIF kind IS NULL OR kind NOT IN ('mesh', 'hierarchical', 'ring', 'star', 'auto') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('topology "%s" is not known', coalesce(kind, 'NULL')),
            HINT = 'Known are mesh, hierarchical, ring, star, and auto, which chooses one.';
    ELSIF coalesce(cardinality(agents), 0) < 1 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'a topology needs agents';
    END IF;
    FOREACH a IN ARRAY agents LOOP
        PERFORM swarm._agent_get(caller, a);
    END LOOP;
    IF kind = 'auto' THEN
        n := (SELECT count(DISTINCT u) FROM unnest(agents) u);
        chosen := swarm.topology_choose(n);
    END IF;
    INSERT INTO swarm._topology (name, owner, kind, adaptive, why)
    VALUES (_topology_create.name, caller, chosen, _topology_create.kind = 'auto', format('chosen for %s agents', n))
    ON CONFLICT (owner, name) DO NOTHING RETURNING * INTO t;
    IF NOT FOUND THEN
        SELECT * INTO t FROM swarm._topology o WHERE o.owner = caller AND o.name = _topology_create.name FOR UPDATE;
        IF NOT FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'serialization_failure', MESSAGE = format('topology "%s" has just been dropped', name);
        END IF;
        IF n IS NULL THEN
            UPDATE swarm._topology o SET kind = chosen, adaptive = false, previous = NULL, changed_at = NULL, trial = false, before = NULL, refused = NULL, why = NULL
            WHERE o.id = t.id;
        ELSIF NOT t.adaptive THEN
            UPDATE swarm._topology o SET kind = chosen, adaptive = true, why = format('chosen for %s agents', n) WHERE o.id = t.id;
        ELSIF chosen <> t.kind AND chosen IS DISTINCT FROM t.refused THEN
            measured := swarm._topology_measured(t.id);
            UPDATE swarm._topology o SET kind = chosen, previous = o.kind, changed_at = swarm._now(), trial = true, before = measured WHERE o.id = t.id;
        ELSE
            members := ARRAY(SELECT m FROM swarm._topology_member m WHERE m.topology = t.id);
        END IF;
        DELETE FROM swarm._topology_member m WHERE m.topology = t.id;
    END IF;
    INSERT INTO swarm._topology_member (topology, place, agent, tasks, task_ms, messages, message_ms, failures)
    SELECT t.id, x.place, x.agent, coalesce(m.tasks, 0), coalesce(m.task_ms, 0), coalesce(m.messages, 0), coalesce(m.message_ms, 0), coalesce(m.failures, 0)
    FROM (SELECT min(o) AS place, u AS agent FROM unnest(agents) WITH ORDINALITY y(u, o) GROUP BY u) x LEFT JOIN unnest(members) m ON m.agent = x.agent;
    IF measured IS NOT NULL THEN
        PERFORM swarm._topology_tell(t.id, format('%s after %s: chosen for %s agents', chosen, t.kind, n));
    END IF;
    RETURN t.id;
END $$;

-- swarm.topology_create(name, kind, agents): who may message whom; the first
-- agent is the centre of a star and the root of a hierarchy. Kind auto chooses,
-- each time it is called, and goes back when that was worse. Returns its id.
CREATE FUNCTION swarm.topology_create(name text, kind text, agents bigint[]) RETURNS int
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_topology_create';
COMMENT ON FUNCTION swarm.topology_create IS 'link agents as mesh, hierarchical, ring, star or auto: who may message whom';

CREATE VIEW swarm.topologies WITH (security_invoker = true) AS
SELECT t.id, t.name, t.owner, t.kind, t.adaptive, (SELECT count(*) FROM swarm._topology_member m WHERE m.topology = t.id)::int AS agents,
       t.previous, t.changed_at, t.trial, t.why, t.before, CASE WHEN t.adaptive THEN swarm._topology_measured(t.id) END AS measured
FROM swarm._topology t;
COMMENT ON VIEW swarm.topologies IS 'topologies, and why adaptive ones have the kind that they have';

CREATE FUNCTION swarm._topology_drop(caller oid, name text) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM swarm._topology t WHERE t.name = _topology_drop.name AND t.owner = caller;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('topology "%s" does not exist', name);
    END IF;
END $$;

CREATE FUNCTION swarm.topology_drop(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_topology_drop';
COMMENT ON FUNCTION swarm.topology_drop IS 'remove a topology; its agents stay';

-- swarm.topology_neighbours(agent_id): whom an agent is linked with now.
CREATE FUNCTION swarm.topology_neighbours(agent_id bigint, OUT topology text, OUT kind text, OUT neighbour bigint) RETURNS SETOF record
LANGUAGE sql STABLE STRICT PARALLEL SAFE ROWS 10 SET search_path = pg_catalog, pg_temp AS $$
SELECT t.name, t.kind, l.to_agent
FROM swarm._topology_member m JOIN swarm._topology t ON t.id = m.topology, LATERAL swarm._topology_links(t.id) l
WHERE m.agent = agent_id AND l.from_agent = agent_id ORDER BY 1, 3
$$;
COMMENT ON FUNCTION swarm.topology_neighbours IS 'agents that an agent is linked with; links of agents that have ended are routed around';

-- ---------------------------------------------------------------------
-- Messages
-- ---------------------------------------------------------------------

CREATE SEQUENCE swarm._agent_message_id_seq;
CREATE TABLE swarm._agent_message (
    id bigint PRIMARY KEY,
    owner regrole NOT NULL,
    from_agent bigint,
    to_agent bigint NOT NULL,
    kind text NOT NULL,
    body jsonb NOT NULL,
    hops int NOT NULL,
    sent_at timestamptz NOT NULL,
    read_at timestamptz,
    escalate_at timestamptz,
    asked bigint[] -- of a request for help to all: whom it has reached
) WITH (fillfactor = 90);
CREATE INDEX _agent_message_escalate ON swarm._agent_message (from_agent, to_agent) WHERE escalate_at IS NOT NULL;
CREATE INDEX _agent_message_inbox ON swarm._agent_message (to_agent, id) WHERE read_at IS NULL;
CREATE INDEX _agent_message_sent ON swarm._agent_message (sent_at);
SELECT pg_catalog.pg_extension_config_dump('swarm._agent_message_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._agent_message', '');
ALTER TABLE swarm._agent_message ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._agent_message FOR SELECT USING (pg_catalog.pg_has_role(owner::oid, 'USAGE'));

-- A message into an agent's inbox; as a task for its type's hook "message", if
-- there is one. NULL if the agent is gone.
CREATE FUNCTION swarm._agent_tell(from_agent bigint, to_agent bigint, kind text, body jsonb, hops int = 1) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a swarm._agent;
    message bigint := nextval('swarm._agent_message_id_seq');
    t bigint;
BEGIN
    SELECT * INTO a FROM swarm._agent o WHERE o.id = to_agent;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    INSERT INTO swarm._agent_message VALUES (message, a.owner, from_agent, to_agent, kind, body, hops, swarm._now());
    IF kind NOT IN ('agent-lost', 'escalate') THEN
        -- an answer, if there was a request
        UPDATE swarm._agent_message m SET escalate_at = NULL
        WHERE m.from_agent = _agent_tell.to_agent AND m.escalate_at IS NOT NULL
          AND (m.to_agent = _agent_tell.from_agent OR _agent_tell.from_agent = ANY (m.asked));
    END IF;
    IF EXISTS (SELECT FROM swarm._agent_type y WHERE y.name = a.type AND y.spec->'hooks' ? 'message') THEN
        t := nextval('swarm._agent_task_id_seq');
        INSERT INTO swarm._agent_task (id, owner, submitter, agent, state, priority, rank, run_at, timeout, max_attempts, capabilities, pinned, payload,
            assigned_to, created_at, message)
        VALUES (t, a.owner, a.owner, a.id, 'queued', 'high', swarm._agent_task_rank('high', swarm._now()), swarm._now(), '1 min', 3, '{}', true,
            jsonb_build_object('message', jsonb_build_object('id', message, 'from', from_agent, 'kind', kind, 'body', body)), a.id, swarm._now(), message);
        PERFORM swarm._agent_job(a.owner, a.id, 'high', swarm._now());
    END IF;
    RETURN message;
END $$;

-- Requests for help that nobody has answered in time: the others that the agent
-- is linked with are told, or, if there are none, the agent itself. All have been
-- asked by a request to all, but those that came later.
CREATE FUNCTION swarm._agent_escalate(agent bigint) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a swarm._agent;
    m swarm._agent_message;
    receivers bigint[];
    r bigint;
BEGIN
    SELECT * INTO a FROM swarm._agent o WHERE o.id = agent;
    FOR m IN SELECT * FROM swarm._agent_message o WHERE o.from_agent = agent AND o.escalate_at <= swarm._now() ORDER BY o.id FOR UPDATE SKIP LOCKED LOOP
        UPDATE swarm._agent_message o SET escalate_at = NULL WHERE o.id = m.id;
        CONTINUE WHEN a.state IN ('stopped', 'failed');
        PERFORM swarm._topology_note(agent, 0, 0, 1);
        SELECT coalesce(array_agg(DISTINCT l.neighbour), ARRAY[agent]) INTO receivers
        FROM swarm.topology_neighbours(agent) l WHERE l.neighbour <> ALL (coalesce(m.asked, ARRAY[m.to_agent]));
        FOREACH r IN ARRAY receivers LOOP
            PERFORM swarm._agent_tell(agent, r, 'escalate', jsonb_build_object('message', m.id,
                'agent', CASE WHEN m.asked IS NULL THEN m.to_agent END, 'kind', m.kind, 'body', m.body));
        END LOOP;
        INSERT INTO swarm._agent_event (agent, task, event, detail, at)
        VALUES (a.id, a.task, 'escalate', CASE WHEN m.asked IS NULL THEN format('agent %s has not answered message %s', m.to_agent, m.id)
            ELSE format('none of %s agents has answered message %s', cardinality(m.asked), m.id) END, swarm._now());
    END LOOP;
    IF EXISTS (SELECT FROM swarm._agent_message o WHERE o.from_agent = agent AND o.escalate_at <= swarm._now()) THEN
        -- somebody is just answering it, or not
        PERFORM swarm._agent_job(a.owner, agent, 'high', swarm._now() + interval '10 s');
    END IF;
END $$;

CREATE FUNCTION swarm._agent_message(caller oid, from_agent bigint, to_agent bigint, kind text, body jsonb) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f swarm._agent;
    r record;
    message bigint;
    told bigint;
    veto text;
    frontier bigint[];
    reached bigint[];
    everybody bigint[];
    hop int := 0;
    patience interval := current_setting('pg_swarm.agent_escalate_after');
BEGIN
    SELECT * INTO f FROM swarm._agent a WHERE a.id = from_agent AND pg_has_role(caller, a.owner::oid, 'USAGE');
    IF NOT FOUND OR (to_agent IS NOT NULL AND NOT EXISTS (SELECT FROM swarm._agent a WHERE a.id = to_agent AND pg_has_role(caller, a.owner::oid, 'USAGE'))) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = format('agent %s does not exist', CASE WHEN f.id IS NULL THEN coalesce(from_agent::text, 'NULL') ELSE to_agent::text END);
    ELSIF kind IS NULL OR length(kind) NOT BETWEEN 1 AND 64 OR body IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'a message needs a body, and a kind of 1 to 64 characters';
    END IF;
    veto := swarm._hook_run(caller, 'message', 'before', jsonb_build_object('from', from_agent, 'to', to_agent, 'kind', kind, 'body', body));
    IF veto IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'external_routine_exception', MESSAGE = format('the message was refused: %s', veto);
    END IF;
    IF to_agent IS NOT NULL THEN
        IF EXISTS (SELECT FROM swarm._agent a WHERE a.id = to_agent AND a.state IN ('stopped', 'failed')) THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state', MESSAGE = format('agent %s has ended', to_agent);
        END IF;
        IF EXISTS (SELECT FROM swarm._topology_member m WHERE m.agent = from_agent)
           AND EXISTS (SELECT FROM swarm._topology_member x JOIN swarm._topology_member z USING (topology) WHERE x.agent = from_agent AND z.agent = to_agent)
           AND NOT EXISTS (SELECT FROM swarm.topology_neighbours(from_agent) l WHERE l.neighbour = to_agent) THEN
            RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
                MESSAGE = format('agent %s has no link to agent %s', from_agent, to_agent),
                HINT = 'Its topology decides whom it may message: swarm.topology_neighbours().';
        END IF;
        message := swarm._agent_tell(from_agent, to_agent, kind, body);
    ELSE
        -- to all, along the links, each one once
        reached := ARRAY[from_agent];
        frontier := reached;
        WHILE frontier <> '{}' LOOP
            hop := hop + 1;
            SELECT coalesce(array_agg(DISTINCT l.to_agent), '{}') INTO frontier
            FROM (SELECT DISTINCT m.topology FROM swarm._topology_member m WHERE m.agent = from_agent) t, LATERAL swarm._topology_links(t.topology) l
            WHERE l.from_agent = ANY (frontier) AND l.to_agent <> ALL (reached);
            FOR r IN SELECT u AS id FROM unnest(frontier) u ORDER BY 1 LOOP
                told := swarm._agent_tell(from_agent, r.id, kind, body, hop);
                message := coalesce(told, message);
            END LOOP;
            reached := reached || frontier;
        END LOOP;
        everybody := array_remove(reached, from_agent);
    END IF;
    IF kind = 'request-help' AND patience > '0' AND message IS NOT NULL AND from_agent IS DISTINCT FROM to_agent THEN
        UPDATE swarm._agent_message m SET escalate_at = swarm._now() + patience, asked = everybody WHERE m.id = message;
        PERFORM swarm._agent_job(f.owner, f.id, 'high', swarm._now() + patience);
    END IF;
    PERFORM swarm._hook_run(caller, 'message', 'after', jsonb_build_object('from', from_agent, 'to', to_agent, 'kind', kind, 'id', message));
    DELETE FROM swarm._agent_message m WHERE m.id IN (SELECT o.id FROM swarm._agent_message o WHERE o.sent_at < swarm._now() - '7 days'::interval
        ORDER BY o.sent_at LIMIT 10 FOR UPDATE SKIP LOCKED);
    RETURN message;
END $$;

-- swarm.agent_message(from_agent, to_agent, kind, body): to one agent, or, with
-- to_agent NULL, to all of the topologies of the sender. Returns the id of the
-- (last) message, NULL if there is nobody. A request-help that no receiver has
-- answered, by any message, within pg_swarm.agent_escalate_after becomes
-- messages escalate to the others that the sender is linked with.
-- Errors: 42704 no such agent; 42501 the topology has no such link; 55000 the
-- receiver has ended; 38000 a hook has refused it.
CREATE FUNCTION swarm.agent_message(from_agent bigint, to_agent bigint, kind text, body jsonb) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_agent_message';
COMMENT ON FUNCTION swarm.agent_message IS 'send a message from one agent to another, or to all its topologies reach';

CREATE FUNCTION swarm._agent_inbox(caller oid, agent_id bigint, lim int)
RETURNS TABLE (id bigint, from_agent bigint, kind text, body jsonb, hops int, sent_at timestamptz)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE ROWS 10 SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    r record;
    senders bigint[] := '{}';
    waits float8[] := '{}';
BEGIN
    IF NOT EXISTS (SELECT FROM swarm._agent a WHERE a.id = agent_id AND pg_has_role(caller, a.owner::oid, 'USAGE')) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('agent %s does not exist', coalesce(agent_id::text, 'NULL'));
    ELSIF lim < 1 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'lim must be positive, or null for all';
    END IF;
    FOR r IN WITH next AS (SELECT m.id FROM swarm._agent_message m WHERE m.to_agent = agent_id AND m.read_at IS NULL
                           ORDER BY m.id LIMIT lim FOR UPDATE SKIP LOCKED),
             taken AS (UPDATE swarm._agent_message m SET read_at = swarm._now() FROM next WHERE m.id = next.id RETURNING m.*)
             SELECT t.* FROM taken t ORDER BY t.id LOOP
        id := r.id;
        from_agent := r.from_agent;
        kind := r.kind;
        body := r.body;
        hops := r.hops;
        sent_at := r.sent_at;
        RETURN NEXT;
        senders := senders || r.from_agent;
        waits := waits || extract(epoch FROM r.read_at - r.sent_at)::float8 * 1000;
    END LOOP;
    IF senders <> '{}' THEN
        PERFORM swarm._topology_note(agent_id, 0, 0, 0, senders, waits);
    END IF;
END $$;

-- swarm.agent_inbox(agent_id, lim): the messages that have not been read, the
-- oldest first; they are read then.
CREATE FUNCTION swarm.agent_inbox(agent_id bigint, lim int = 100)
RETURNS TABLE (id bigint, from_agent bigint, kind text, body jsonb, hops int, sent_at timestamptz)
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME', 'swarm_hooked_agent_inbox';
COMMENT ON FUNCTION swarm.agent_inbox IS 'read the messages of an agent, each once';

CREATE VIEW swarm.agent_messages WITH (security_invoker = true) AS
SELECT m.id, m.from_agent, m.to_agent, m.kind, m.body, m.hops, m.sent_at, m.read_at, m.escalate_at FROM swarm._agent_message m;
COMMENT ON VIEW swarm.agent_messages IS 'messages between agents, of the last 7 days';

CREATE FUNCTION swarm._agent_handoff(caller oid, from_agent bigint, to_agent bigint, state jsonb) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t bigint;
    veto text := swarm._hook_run(caller, 'handoff', 'before', jsonb_build_object('from', from_agent, 'to', to_agent, 'state', state));
BEGIN
    IF veto IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'external_routine_exception', MESSAGE = format('the hand-off was refused: %s', veto);
    END IF;
    PERFORM swarm._agent_message(caller, from_agent, to_agent, 'handoff', state);
    t := swarm._task_submit(caller, jsonb_build_object('agent', to_agent, 'priority', 'high',
        'task', jsonb_build_object('handoff', state, 'from', from_agent)));
    INSERT INTO swarm._agent_event (agent, task, event, detail, at) VALUES (from_agent, t, 'handoff', format('to agent %s', to_agent), swarm._now());
    PERFORM swarm._hook_run(caller, 'handoff', 'after', jsonb_build_object('from', from_agent, 'to', to_agent, 'task', t));
    RETURN t;
END $$;

-- swarm.agent_handoff(from_agent, to_agent, state): the other one goes on, with
-- this state: a message, and a task {"handoff": state, "from": id}. Returns the
-- task.
CREATE FUNCTION swarm.agent_handoff(from_agent bigint, to_agent bigint, state jsonb) RETURNS bigint
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_agent_handoff';
COMMENT ON FUNCTION swarm.agent_handoff IS 'hand work over to another agent, with its state; returns the task it gets';

-- swarm.agent_find(capabilities, query, lim): agents that can do something, the
-- best first.
CREATE FUNCTION swarm.agent_find(capabilities text[], query text = NULL, lim int = 10)
RETURNS TABLE (agent_id bigint, name text, type text, state text, score float8, match float8, load int, success float8,
               latency_ms float8, affinity float8, meaning float8)
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME', 'swarm_agent_find';
COMMENT ON FUNCTION swarm.agent_find IS 'agents that have the capabilities, the best first, with what makes them so';

-- ---------------------------------------------------------------------
-- Protocols
-- ---------------------------------------------------------------------

CREATE TABLE swarm._protocol (
    name text COLLATE "C" PRIMARY KEY,
    owner regrole NOT NULL,
    spec jsonb NOT NULL,
    builtin boolean NOT NULL DEFAULT false
);
SELECT pg_catalog.pg_extension_config_dump('swarm._protocol', 'WHERE NOT builtin');

CREATE SEQUENCE swarm._protocol_run_id_seq;
CREATE TABLE swarm._protocol_run (
    id bigint PRIMARY KEY DEFAULT nextval('swarm._protocol_run_id_seq'),
    task bigint NOT NULL,
    agent bigint NOT NULL,
    protocol text NOT NULL,
    phase text NOT NULL,
    step int NOT NULL,
    what text NOT NULL,
    ok boolean NOT NULL,
    detail text,
    ms float8 NOT NULL,
    at timestamptz NOT NULL
);
CREATE INDEX _protocol_run_task ON swarm._protocol_run (task);
CREATE INDEX _protocol_run_at ON swarm._protocol_run (at);
SELECT pg_catalog.pg_extension_config_dump('swarm._protocol_run_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._protocol_run', '');
ALTER TABLE swarm._protocol_run ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._protocol_run FOR SELECT USING (EXISTS (SELECT FROM swarm._agent a WHERE a.id = _protocol_run.agent));

-- What agents of a type have learned: how tasks that look alike have ended.
CREATE TABLE swarm._agent_pattern (
    type text COLLATE "C",
    pattern text,
    owner regrole,
    successes bigint NOT NULL DEFAULT 0,
    failures bigint NOT NULL DEFAULT 0,
    total_ms float8 NOT NULL DEFAULT 0,
    PRIMARY KEY (type, pattern, owner)
);
SELECT pg_catalog.pg_extension_config_dump('swarm._agent_pattern', '');
ALTER TABLE swarm._agent_pattern ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._agent_pattern FOR SELECT USING (pg_catalog.pg_has_role(owner::oid, 'USAGE'));

CREATE FUNCTION swarm._protocol_schema() RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT jsonb_build_object('type', 'object', 'additionalProperties', false, 'properties',
    jsonb_build_object('description', '{"type": "string"}'::jsonb, 'before', s, 'during', s, 'after', s))
FROM (SELECT '{"type": "array", "items": {"type": "object", "required": ["do"], "additionalProperties": false, "properties": {
    "do": {"type": "string", "enum": ["restore", "check", "validate", "call", "notify", "store", "clean", "handoff", "metrics", "learn"]},
    "namespace": {"type": "string"}, "key": {"type": "string"}, "prefix": {"type": "string"}, "ttl": {"type": "string"},
    "required": {"type": "boolean"}, "function": {"type": "string"}, "to": {"type": "string"}, "kind": {"type": "string"}}}}'::jsonb AS s) x
$$;

CREATE FUNCTION swarm._protocol_create(caller oid, name text, spec jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    misfit text := CASE WHEN spec IS NULL THEN '$ is null' ELSE swarm._json_misfit(spec, swarm._protocol_schema(), '$') END;
    step jsonb;
    old record;
BEGIN
    IF name IS NULL OR name = '' OR misfit IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('invalid protocol: %s', coalesce(misfit, 'it has no name'));
    END IF;
    FOR step IN SELECT jsonb_array_elements(v) FROM jsonb_each(spec) e(k, v) WHERE jsonb_typeof(v) = 'array' LOOP
        misfit := CASE WHEN step->>'do' IN ('restore', 'check', 'store') AND NOT (step ? 'namespace' AND step ? 'key') THEN 'namespace and key'
                       WHEN step->>'do' = 'clean' AND NOT (step ? 'namespace' AND step ? 'prefix') THEN 'namespace and prefix'
                       WHEN step->>'do' IN ('validate', 'call') AND NOT step ? 'function' THEN 'function'
                       WHEN step->>'do' IN ('notify', 'handoff') AND NOT step ? 'to' THEN 'to' END;
        IF misfit IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('invalid protocol: a step "%s" needs %s', step->>'do', misfit);
        END IF;
        -- errors if it is no name, or no time
        PERFORM parse_ident(step->>'function'), (step->>'ttl')::interval;
    END LOOP;
    SELECT p.owner, p.builtin INTO old FROM swarm._protocol p WHERE p.name = _protocol_create.name;
    IF FOUND AND old.builtin THEN
        RAISE EXCEPTION USING ERRCODE = 'reserved_name', MESSAGE = format('protocol "%s" is part of the extension', name),
            HINT = 'Create one with another name.';
    ELSIF FOUND AND NOT pg_has_role(caller, old.owner::oid, 'USAGE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = format('must be owner of protocol "%s"', name);
    END IF;
    INSERT INTO swarm._protocol (name, owner, spec) VALUES (_protocol_create.name, caller, _protocol_create.spec)
    ON CONFLICT (name) DO UPDATE SET spec = EXCLUDED.spec;
END $$;

-- swarm.protocol_create(name, spec): steps before, during and after a task.
-- Errors: 22023 with the path of what is wrong; 42501 it is another's.
CREATE FUNCTION swarm.protocol_create(name text, spec jsonb) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_protocol_create';
COMMENT ON FUNCTION swarm.protocol_create IS 'define the steps before, during and after the tasks of agents';

CREATE VIEW swarm.protocols AS SELECT p.name, p.owner, p.spec FROM swarm._protocol p;
COMMENT ON VIEW swarm.protocols IS 'protocols of coordination';
CREATE VIEW swarm.protocol_runs WITH (security_invoker = true) AS
SELECT r.id, r.at, r.task, r.agent AS agent_id, r.protocol, r.phase, r.step, r.what, r.ok, r.detail, r.ms FROM swarm._protocol_run r;
COMMENT ON VIEW swarm.protocol_runs IS 'steps of protocols that were done, of the last 7 days';
CREATE VIEW swarm.agent_patterns WITH (security_invoker = true) AS
SELECT p.type, p.pattern, p.owner, p.successes, p.failures, p.total_ms / greatest(p.successes + p.failures, 1) AS mean_ms FROM swarm._agent_pattern p;
COMMENT ON VIEW swarm.agent_patterns IS 'how tasks that look alike have ended, by the step "learn" of protocols';

-- A step that needs the rights of the agent's role, and is called with them.
CREATE FUNCTION swarm._protocol_memory(step jsonb) RETURNS jsonb
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found jsonb;
BEGIN
    CASE step->>'do'
    WHEN 'restore', 'check' THEN
        found := swarm.memory_get(step->>'namespace', step->>'key');
        IF found IS NULL AND coalesce((step->>'required')::boolean, false) THEN
            RETURN jsonb_build_object('veto', format('%s has no "%s"', step->>'namespace', step->>'key'));
        END IF;
        RETURN jsonb_build_object('found', found IS NOT NULL) || CASE WHEN step->>'do' = 'restore' AND found IS NOT NULL THEN jsonb_build_object('value', found) ELSE '{}' END;
    WHEN 'store' THEN
        PERFORM swarm.memory_store(step->>'namespace', step->>'key', step->'value', ttl => (step->>'ttl')::interval);
    WHEN 'clean' THEN
        RETURN jsonb_build_object('removed', swarm.memory_clear(step->>'namespace', step->>'prefix'));
    END CASE;
    RETURN NULL;
END $$;

-- The steps of a phase. Before a task, the first that refuses ends it: veto is
-- why. Otherwise a step that fails is recorded, and the next one is done.
-- restored: what steps restore have read, by their keys as they are written.
CREATE FUNCTION swarm._protocol_phase(a swarm._agent, t swarm._agent_task, phase text, outcome jsonb,
    OUT veto text, OUT restored jsonb)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    p swarm._protocol;
    step jsonb;
    n int := 0;
    r record;
    written text;
    proc oid;
    begun timestamptz;
    problem text;
    receiver bigint;
BEGIN
    IF t.protocol IS NULL THEN
        RETURN;
    END IF;
    SELECT * INTO p FROM swarm._protocol o WHERE o.name = t.protocol;
    IF NOT FOUND THEN
        veto := CASE phase WHEN 'before' THEN format('protocol "%s" does not exist', t.protocol) END;
        RETURN;
    END IF;
    FOR step IN SELECT * FROM jsonb_array_elements(coalesce(p.spec->phase, '[]')) LOOP
        n := n + 1;
        begun := clock_timestamp();
        problem := NULL;
        written := step->>'key';
        -- names of the agent and the task in keys
        IF step ? 'key' THEN
            step := step || jsonb_build_object('key', replace(replace(step->>'key', '{agent}', a.name), '{task}', t.id::text));
        END IF;
        IF step ? 'prefix' THEN
            step := step || jsonb_build_object('prefix', replace(replace(step->>'prefix', '{agent}', a.name), '{task}', t.id::text));
        END IF;
        IF step->>'do' IN ('restore', 'check', 'store', 'clean', 'validate', 'call') THEN
            proc := CASE WHEN step->>'do' IN ('validate', 'call') THEN to_regprocedure((step->>'function') || '(pg_catalog.jsonb)')::oid
                    ELSE 'swarm._protocol_memory(pg_catalog.jsonb)'::regprocedure::oid END;
            IF proc IS NULL THEN
                problem := format('function %s(jsonb) does not exist', step->>'function');
            ELSE
                SELECT * INTO r FROM swarm._agent_call(a.owner, proc,
                    CASE WHEN step->>'do' IN ('validate', 'call')
                         THEN jsonb_build_object('agent', a.id, 'name', a.name, 'id', t.id, 'task', t.payload, 'outcome', outcome)
                         ELSE step || jsonb_build_object('value', coalesce(outcome, t.payload)) END, 10000);
                problem := coalesce(r.error, r.result->>'veto');
                IF step->>'do' = 'restore' AND r.result ? 'value' THEN
                    restored := coalesce(restored, '{}') || jsonb_build_object(written, r.result->'value');
                END IF;
            END IF;
        ELSIF step->>'do' IN ('notify', 'handoff') THEN
            FOR receiver IN
                SELECT o.id FROM swarm._agent o
                WHERE o.state NOT IN ('stopped', 'failed') AND o.id <> a.id AND CASE step->>'to'
                    WHEN 'dependents' THEN o.depends_on @> ARRAY[a.id]
                    WHEN 'neighbours' THEN o.id IN (SELECT l.neighbour FROM swarm.topology_neighbours(a.id) l)
                    ELSE o.name = step->>'to' AND o.owner = a.owner END ORDER BY o.id LOOP
                IF step->>'do' = 'notify' THEN
                    PERFORM swarm._agent_tell(a.id, receiver, coalesce(step->>'kind', 'notify'),
                        jsonb_build_object('agent', a.id, 'task', t.id, 'phase', phase, 'outcome', outcome));
                ELSE
                    PERFORM swarm._agent_handoff(a.owner, a.id, receiver, jsonb_build_object('task', t.payload, 'outcome', outcome));
                END IF;
            END LOOP;
        ELSIF step->>'do' = 'metrics' THEN
            PERFORM swarm._track_execution(a.owner, a.id::text);
        ELSIF step->>'do' = 'learn' AND outcome IS NOT NULL THEN
            INSERT INTO swarm._agent_pattern AS g VALUES (a.type, coalesce((SELECT string_agg(k, ',' ORDER BY k) FROM jsonb_object_keys(
                    CASE jsonb_typeof(t.payload) WHEN 'object' THEN t.payload ELSE '{}' END) k), ''), a.owner,
                (outcome->>'error' IS NULL)::int, (outcome->>'error' IS NOT NULL)::int, (outcome->>'ms')::float8)
            ON CONFLICT ON CONSTRAINT _agent_pattern_pkey DO UPDATE SET successes = g.successes + EXCLUDED.successes,
                failures = g.failures + EXCLUDED.failures, total_ms = g.total_ms + EXCLUDED.total_ms;
        END IF;
        INSERT INTO swarm._protocol_run (task, agent, protocol, phase, step, what, ok, detail, ms, at)
        VALUES (t.id, a.id, p.name, phase, n, step->>'do', problem IS NULL, problem,
                extract(epoch FROM clock_timestamp() - begun) * 1000, swarm._now());
        IF problem IS NOT NULL AND phase = 'before' THEN
            veto := format('step "%s": %s', step->>'do', problem);
            RETURN;
        END IF;
    END LOOP;
END $$;

CREATE FUNCTION swarm._agent_progress(caller oid, agent_id bigint, fraction float8, message text) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a swarm._agent;
    t swarm._agent_task;
BEGIN
    -- not locked until the task ends: agent_kill() must not wait for it
    SELECT * INTO a FROM swarm._agent o WHERE o.id = agent_id;
    IF a.id IS NULL OR NOT pg_has_role(caller, a.owner::oid, 'USAGE') THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('agent %s does not exist', coalesce(agent_id::text, 'NULL'));
    END IF;
    SELECT * INTO t FROM swarm._agent_task o WHERE o.id = a.task AND o.state = 'running';
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state', MESSAGE = format('agent %s has no task', agent_id);
    END IF;
    PERFORM swarm._job_progress(fraction, message);
    PERFORM swarm._hook_run(caller, 'progress', 'before', jsonb_build_object('agent', a.id, 'id', t.id, 'fraction', fraction, 'message', message));
    PERFORM swarm._protocol_phase(a, t, 'during', NULL);
    INSERT INTO swarm._agent_event (agent, task, event, detail, at)
    VALUES (a.id, t.id, 'progress', concat_ws(' ', round((fraction * 100)::numeric) || ' %', message), swarm._now());
    PERFORM swarm._hook_run(caller, 'progress', 'after', jsonb_build_object('agent', a.id, 'id', t.id, 'fraction', fraction, 'message', message));
END $$;

-- swarm.agent_progress(agent_id, fraction, message): for a handler: how far its
-- task is; shown at once, recorded with the task. The steps "during" the task
-- of its protocol are done.
CREATE FUNCTION swarm.agent_progress(agent_id bigint, fraction float8, message text = NULL) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_agent_progress';
COMMENT ON FUNCTION swarm.agent_progress IS 'for a handler: show how far the task is, and do what its protocol wants during it';

-- ---------------------------------------------------------------------
-- What comes with the extension: six types of agents, three protocols
-- ---------------------------------------------------------------------

-- The work of the sample types, over memory and the tables of this extension,
-- with the rights of the agent's role. task: {"do": ..., ...}.

-- query_specialist: {"namespace", "query", "lim"}: search in memory.
CREATE FUNCTION swarm.sample_search(task jsonb, agent swarm.agent) RETURNS jsonb
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT jsonb_build_object('matches', coalesce(jsonb_agg(to_jsonb(m)), '[]'))
FROM swarm.memory_search(task->>'namespace', task->>'query', coalesce((task->>'lim')::int, 10)) m
$$;
COMMENT ON FUNCTION swarm.sample_search IS 'handler of the sample type query_specialist: search in a memory namespace';

-- memory_coordinator: {"namespace", "entries": {key: value}}: store; or
-- {"namespace", "keys": []}: read.
CREATE FUNCTION swarm.sample_memory(task jsonb, agent swarm.agent) RETURNS jsonb
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k text;
    v jsonb;
    n int := 0;
BEGIN
    IF task ? 'keys' THEN
        RETURN (SELECT coalesce(jsonb_object_agg(x, swarm.memory_get(task->>'namespace', x)), '{}') FROM jsonb_array_elements_text(task->'keys') x);
    END IF;
    FOR k, v IN SELECT * FROM jsonb_each(task->'entries') LOOP
        PERFORM swarm.memory_store(task->>'namespace', k, v);
        n := n + 1;
    END LOOP;
    RETURN jsonb_build_object('stored', n);
END $$;
COMMENT ON FUNCTION swarm.sample_memory IS 'handler of the sample type memory_coordinator: store or read entries';

-- pattern_discovery: {"documents": [text]}: the words that most documents have.
CREATE FUNCTION swarm.sample_patterns(task jsonb, agent swarm.agent) RETURNS jsonb
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT jsonb_build_object('documents', jsonb_array_length(task->'documents'), 'patterns',
    coalesce((SELECT jsonb_agg(jsonb_build_object('word', w, 'documents', n) ORDER BY n DESC, w)
              FROM (SELECT w, count(DISTINCT i) AS n
                    FROM jsonb_array_elements_text(task->'documents') WITH ORDINALITY d(body, i), unnest(tsvector_to_array(to_tsvector('english', body))) w
                    GROUP BY w HAVING count(DISTINCT i) > 1 ORDER BY 2 DESC, 1 LIMIT 20) x), '[]'))
$$;
COMMENT ON FUNCTION swarm.sample_patterns IS 'handler of the sample type pattern_discovery: words that documents share';

-- decision_tracker: {"decision", "options": {name: {criterion: score}},
-- "weights": {criterion: weight}}: the option with the highest weighted sum.
CREATE FUNCTION swarm.sample_decide(task jsonb, agent swarm.agent) RETURNS jsonb
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT jsonb_build_object('decision', task->'decision', 'chosen', (array_agg(name ORDER BY total DESC, name))[1],
    'scores', jsonb_object_agg(name, total))
FROM (SELECT o.key AS name, sum((c.value)::numeric * coalesce((task->'weights'->>c.key)::numeric, 1)) AS total
      FROM jsonb_each(task->'options') o, jsonb_each(o.value) c GROUP BY o.key) x
$$;
COMMENT ON FUNCTION swarm.sample_decide IS 'handler of the sample type decision_tracker: weigh options';

-- synchronization: {"from", "to", "prefix"}: copy entries between namespaces.
CREATE FUNCTION swarm.sample_synchronize(task jsonb, agent swarm.agent) RETURNS jsonb
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    e record;
    n int := 0;
BEGIN
    FOR e IN SELECT l.key, swarm.memory_get(task->>'from', l.key) AS value
             FROM swarm.memory_list(task->>'from', coalesce(task->>'prefix', ''), 10000) l LOOP
        IF swarm.memory_get(task->>'to', e.key) IS DISTINCT FROM e.value THEN
            PERFORM swarm.memory_store(task->>'to', e.key, e.value);
            n := n + 1;
        END IF;
    END LOOP;
    RETURN jsonb_build_object('copied', n);
END $$;
COMMENT ON FUNCTION swarm.sample_synchronize IS 'handler of the sample type synchronization: copy what differs between namespaces';

-- analytics: {}: figures of the agents that the role may see.
CREATE FUNCTION swarm.sample_analytics(task jsonb, agent swarm.agent) RETURNS jsonb
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT coalesce(jsonb_object_agg(type, jsonb_build_object('agents', n, 'done', done, 'failed', failed)), '{}')
FROM (SELECT s.type, count(*) AS n, sum(s.done) AS done, sum(s.failed) AS failed FROM swarm.agent_stat s GROUP BY s.type) x
$$;
COMMENT ON FUNCTION swarm.sample_analytics IS 'handler of the sample type analytics: what the agents have done';

INSERT INTO swarm._agent_type (builtin, name, owner, version, capabilities, handler, spec, embedding, created_at)
SELECT true, n, 10::oid::regrole, 1, swarm._sorted(c), h, jsonb_build_object('name', n, 'description', d, 'capabilities', to_jsonb(c), 'handler', h),
       swarm.embed(concat_ws(' ', n, d, array_to_string(swarm._sorted(c), ' '))), swarm._now()
FROM (VALUES
    ('query_specialist', 'answers questions from memory by text and meaning', '{search,retrieval,ranking,question-answering}'::text[], 'swarm.sample_search'),
    ('memory_coordinator', 'stores and reads shared entries of memory', '{memory,storage,sharing,retrieval}', 'swarm.sample_memory'),
    ('pattern_discovery', 'finds what documents have in common', '{patterns,clustering,text-analysis,statistics}', 'swarm.sample_patterns'),
    ('decision_tracker', 'weighs options by criteria and keeps the decision', '{decisions,weighing,history,audit}', 'swarm.sample_decide'),
    ('synchronization', 'keeps namespaces of memory the same', '{synchronization,replication,memory,consistency}', 'swarm.sample_synchronize'),
    ('analytics', 'reports what agents have done', '{analytics,metrics,reporting,statistics}', 'swarm.sample_analytics')) v(n, d, c, h);

INSERT INTO swarm._protocol (builtin, name, owner, spec) VALUES
(true, 'session', 10::oid::regrole, '{"description": "remember the last result of each agent",
  "before": [{"do": "restore", "namespace": "default", "key": "session/{agent}"}],
  "during": [{"do": "metrics"}],
  "after": [{"do": "store", "namespace": "default", "key": "session/{agent}"}, {"do": "learn"}]}'),
(true, 'team', 10::oid::regrole, '{"description": "tell the neighbours of a topology when a task begins and ends",
  "before": [{"do": "notify", "to": "neighbours", "kind": "task-begins"}],
  "during": [{"do": "notify", "to": "neighbours", "kind": "progress"}, {"do": "metrics"}],
  "after": [{"do": "notify", "to": "neighbours", "kind": "share-findings"}, {"do": "learn"}]}'),
(true, 'pipeline', 10::oid::regrole, '{"description": "tell who depends on the agent, and clean up",
  "before": [{"do": "notify", "to": "dependents", "kind": "task-begins"}],
  "during": [{"do": "notify", "to": "dependents", "kind": "progress"}],
  "after": [{"do": "notify", "to": "dependents", "kind": "share-findings"},
            {"do": "clean", "namespace": "default", "prefix": "tmp/{task}/"}, {"do": "learn"}]}');
