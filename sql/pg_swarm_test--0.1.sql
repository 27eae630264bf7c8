-- pg_swarm_test--0.1.sql: a kit for tests of agents, in schema swarm_test.
--
-- docs/reference/pg_swarm_test.md explains it. For test servers only: its
-- functions move the clock of the whole server and make it fail.

\echo Use "CREATE EXTENSION pg_swarm_test" to load this file. \quit

CREATE TABLE swarm_test.script (
    agent text NOT NULL,
    step int NOT NULL,
    what jsonb NOT NULL,
    PRIMARY KEY (agent, step)
);

-- swarm_test.clock_advance(by): move the clock of the server; NULL: back.
CREATE FUNCTION swarm_test.clock_advance(by interval) RETURNS timestamptz
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS 'SELECT swarm._clock_advance(by)';
COMMENT ON FUNCTION swarm_test.clock_advance IS 'move the clock by which agents and jobs go; NULL: back to the true one';

-- swarm_test.fault(point, action, skip, times): arm a fault point; action none
-- disarms it, point NULL all.
CREATE FUNCTION swarm_test.fault(point text, action text = 'error', skip int = 0, times int = 1) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS 'SELECT swarm._fault_arm(point, action, skip, times)';
COMMENT ON FUNCTION swarm_test.fault IS 'make the next process that reaches a point fail (error, fatal, kill, wait)';

-- swarm_test.script(agent, steps): what an agent of type swarm_test does with
-- its next tasks and attempts, one step each, the last one for ever.
CREATE FUNCTION swarm_test.script(agent text, steps jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET client_min_messages = warning AS $$
DECLARE
    calls text := 'calls of ' || agent;
BEGIN
    IF jsonb_typeof(steps) IS DISTINCT FROM 'array' OR jsonb_array_length(steps) = 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'the steps must be a JSON array that is not empty';
    END IF;
    DELETE FROM swarm_test.script s WHERE s.agent = script.agent;
    INSERT INTO swarm_test.script SELECT script.agent, n, x FROM jsonb_array_elements(steps) WITH ORDINALITY e(x, n);
    EXECUTE format('DROP SEQUENCE IF EXISTS swarm_test.%I', calls);
    EXECUTE format('CREATE SEQUENCE swarm_test.%I', calls);
    EXECUTE format('GRANT USAGE ON SEQUENCE swarm_test.%I TO PUBLIC', calls);
END $$;
COMMENT ON FUNCTION swarm_test.script IS 'what an agent of type swarm_test does with its next calls';

-- The handler. A step is {"result": any}, {"error": message, "sqlstate": code}
-- or {"lock": number}: waits for that advisory lock, then returns it.
CREATE FUNCTION swarm_test.scripted(task jsonb, agent swarm.agent) RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    step jsonb;
    call bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM swarm_test.script s WHERE s.agent = (scripted.agent).name) THEN
        RETURN task;
    END IF;
    -- a sequence counts attempts that are rolled back, too
    call := nextval(format('swarm_test.%I', 'calls of ' || (agent).name)::regclass);
    SELECT s.what INTO step FROM swarm_test.script s WHERE s.agent = (scripted.agent).name AND s.step <= call ORDER BY s.step DESC LIMIT 1;
    IF step ? 'lock' THEN
        PERFORM pg_advisory_xact_lock((step->>'lock')::bigint);
    ELSIF step ? 'error' THEN
        RAISE EXCEPTION USING ERRCODE = coalesce(step->>'sqlstate', 'P0001'), MESSAGE = step->>'error';
    END IF;
    RETURN coalesce(step->'result', step);
END $$;
COMMENT ON FUNCTION swarm_test.scripted IS 'handler that does what swarm_test.script() has told';
GRANT USAGE ON SCHEMA swarm_test TO PUBLIC;
GRANT SELECT ON swarm_test.script TO PUBLIC;
REVOKE ALL ON FUNCTION swarm_test.clock_advance(interval), swarm_test.fault(text, text, int, int), swarm_test.script(text, jsonb) FROM PUBLIC;

-- swarm_test.spawn(names...): agents of type swarm_test, capability swarm_test;
-- an error if one fails. Returns their ids.
CREATE FUNCTION swarm_test.spawn(VARIADIC names text[]) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s record;
    ids bigint[] := '{}';
BEGIN
    IF NOT EXISTS (SELECT FROM swarm.agent_types t WHERE t.name = 'swarm_test') THEN
        PERFORM swarm.agent_type_create('{"name": "swarm_test", "capabilities": ["swarm_test"], "handler": "swarm_test.scripted"}');
    END IF;
    FOR s IN SELECT * FROM swarm.agent_spawn((SELECT jsonb_agg(jsonb_build_object('type', 'swarm_test', 'name', n)) FROM unnest(names) n), timeout => '3 min') LOOP
        IF s.status <> 'spawned' THEN
            RAISE EXCEPTION USING ERRCODE = 'assert_failure', MESSAGE = format('agent "%s" was not spawned: %s', s.name, s.error);
        END IF;
        ids := ids || s.agent_id;
    END LOOP;
    RETURN ids;
END $$;
COMMENT ON FUNCTION swarm_test.spawn IS 'spawn agents of type swarm_test, whose handler follows a script';

-- CALL swarm_test.until(condition, timeout): wait until an SQL condition holds.
CREATE PROCEDURE swarm_test.until(condition text, timeout interval = '3 min')
LANGUAGE plpgsql AS $$
DECLARE
    ok boolean;
    deadline timestamptz := pg_catalog.clock_timestamp() + timeout;
BEGIN
    LOOP
        EXECUTE 'SELECT ' || condition INTO ok;
        EXIT WHEN ok;
        IF pg_catalog.clock_timestamp() > deadline THEN
            RAISE EXCEPTION USING ERRCODE = 'assert_failure', MESSAGE = pg_catalog.format('not within %s: %s', timeout, condition);
        END IF;
        COMMIT;
        PERFORM pg_catalog.pg_sleep(0.01);
    END LOOP;
END $$;
COMMENT ON PROCEDURE swarm_test.until IS 'wait until a condition holds; fails after the timeout';

CREATE FUNCTION swarm_test.assert_equal(got anyelement, expected anyelement, what text = 'value') RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF got IS DISTINCT FROM expected THEN
        RAISE EXCEPTION USING ERRCODE = 'assert_failure', MESSAGE = format('%s is %s, not %s', what, coalesce(got::text, 'NULL'), coalesce(expected::text, 'NULL'));
    END IF;
END $$;
COMMENT ON FUNCTION swarm_test.assert_equal IS 'fail with P0004 if two values differ';

CREATE FUNCTION swarm_test.assert_state(agent_id bigint, expected text) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS
$$SELECT swarm_test.assert_equal((SELECT a.state FROM swarm.agents a WHERE a.id = agent_id), expected, format('state of agent %s', agent_id))$$;
COMMENT ON FUNCTION swarm_test.assert_state IS 'fail if an agent is in another state';

-- swarm_test.assert_task(task, state, result): waits for the end of the task.
CREATE FUNCTION swarm_test.assert_task(task bigint, expected text, result jsonb = NULL) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t record;
BEGIN
    SELECT * INTO t FROM swarm.task_wait(task, '3 min');
    PERFORM swarm_test.assert_equal(t.state, expected, format('state of task %s (error: %s)', task, coalesce(t.error, 'none')));
    IF result IS NOT NULL THEN
        PERFORM swarm_test.assert_equal(t.result, result, format('result of task %s', task));
    END IF;
END $$;
COMMENT ON FUNCTION swarm_test.assert_task IS 'wait for a task, and fail if it ended otherwise';

-- swarm_test.assert_events(agent_id, events): the steps of an agent, in order.
CREATE FUNCTION swarm_test.assert_events(agent_id bigint, VARIADIC expected text[]) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS
$$SELECT swarm_test.assert_equal((SELECT array_agg(e.event ORDER BY e.id) FROM swarm.agent_activity e WHERE e.agent_id = assert_events.agent_id),
    expected, format('events of agent %s', agent_id))$$;
COMMENT ON FUNCTION swarm_test.assert_events IS 'fail if other things happened to an agent';
