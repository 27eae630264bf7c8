-- 85_query.sql: queries that run, and what is done to them.
--
-- src/query/README.md explains the tables; docs/reference/queries.md the functions.

CREATE TYPE swarm.query_state AS ENUM ('init', 'running', 'paused', 'complete', 'terminated', 'error');
COMMENT ON TYPE swarm.query_state IS 'state of a query; swarm._query_transitions() lists the ways between them';

-- ---------------------------------------------------------------------
-- Tables
-- ---------------------------------------------------------------------

-- A query: a statement that runs in the background ('sql'), a conversation
-- ('llm'), a session that has registered ('session'). While a process works on
-- it, what that process says goes before state and times here. result_table: what
-- the rows become, qualified.
CREATE SEQUENCE swarm._query_id_seq;
CREATE TABLE swarm._query (
    id bigint PRIMARY KEY DEFAULT nextval('swarm._query_id_seq'),
    kind text NOT NULL CHECK (kind IN ('sql', 'llm', 'session')),
    owner regrole NOT NULL,
    body text,
    model text,
    permission_mode text NOT NULL,
    state swarm.query_state NOT NULL DEFAULT 'init',
    wanted text NOT NULL DEFAULT 'run',
    pause_mode text,
    budget jsonb,
    metadata jsonb NOT NULL DEFAULT '{}',
    job bigint,
    created_at timestamptz NOT NULL DEFAULT swarm._now(),
    started_at timestamptz,
    paused_at timestamptz,
    resumed_at timestamptz,
    finished_at timestamptz,
    total_pause interval NOT NULL DEFAULT '0',
    pauses int NOT NULL DEFAULT 0,
    turns int NOT NULL DEFAULT 0,
    failures int NOT NULL DEFAULT 0,
    tokens_in bigint NOT NULL DEFAULT 0,
    tokens_out bigint NOT NULL DEFAULT 0,
    tokens_cached bigint NOT NULL DEFAULT 0,
    cost numeric NOT NULL DEFAULT 0,
    latency_ms float8,
    result jsonb,
    result_table text,
    error text,
    sqlstate text
);
-- those that have not ended
CREATE INDEX _query_open ON swarm._query (id) WHERE state IN ('init', 'running', 'paused');

-- What happened to them. actor: NULL is the scheduler.
CREATE SEQUENCE swarm._query_event_id_seq;
CREATE TABLE swarm._query_event (
    id bigint PRIMARY KEY DEFAULT nextval('swarm._query_event_id_seq'),
    query bigint NOT NULL,
    at timestamptz NOT NULL,
    actor regrole,
    action text NOT NULL,
    before swarm.query_state NOT NULL,
    after swarm.query_state NOT NULL,
    detail text
);
CREATE INDEX _query_event_query ON swarm._query_event (query, id);

-- Texts for a conversation's next turn.
CREATE SEQUENCE swarm._query_command_id_seq;
CREATE TABLE swarm._query_command (
    id bigint PRIMARY KEY DEFAULT nextval('swarm._query_command_id_seq'),
    query bigint NOT NULL REFERENCES swarm._query ON DELETE CASCADE,
    command text NOT NULL
);
CREATE INDEX _query_command_query ON swarm._query_command (query);

-- What a query wants to be allowed.
CREATE SEQUENCE swarm._query_request_id_seq;
CREATE TABLE swarm._query_request (
    id bigint PRIMARY KEY DEFAULT nextval('swarm._query_request_id_seq'),
    query bigint NOT NULL REFERENCES swarm._query ON DELETE CASCADE,
    what jsonb NOT NULL,
    asked_at timestamptz NOT NULL DEFAULT swarm._now(),
    decision text CHECK (decision IN ('allow', 'deny')),
    decided_by regrole,
    decided_at timestamptz
);
CREATE INDEX _query_request_query ON swarm._query_request (query);

SELECT pg_catalog.pg_extension_config_dump('swarm._query_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._query', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._query_event_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._query_event', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._query_command_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._query_command', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._query_request_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._query_request', '');

ALTER TABLE swarm._query ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._query FOR SELECT
    USING (pg_catalog.pg_has_role(owner::oid, 'USAGE'));
ALTER TABLE swarm._query_event ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._query_event FOR SELECT
    USING (EXISTS (SELECT FROM swarm._query q WHERE q.id = query));
ALTER TABLE swarm._query_command ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._query_command FOR SELECT
    USING (EXISTS (SELECT FROM swarm._query q WHERE q.id = query));
ALTER TABLE swarm._query_request ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._query_request FOR SELECT
    USING (EXISTS (SELECT FROM swarm._query q WHERE q.id = query));

-- ---------------------------------------------------------------------
-- Begin, wait
-- ---------------------------------------------------------------------

CREATE FUNCTION swarm.query_start(kind text, body text, model text = NULL, permission_mode text = 'default',
    budget jsonb = NULL, metadata jsonb = '{}', result_table text = NULL)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_query_start';
COMMENT ON FUNCTION swarm.query_start IS 'run a statement (sql) or a conversation (llm) in the background, as the caller, when this transaction commits; returns the id of the query';

CREATE FUNCTION swarm.query_register(metadata jsonb = '{}') RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_query_register';
COMMENT ON FUNCTION swarm.query_register IS 'make this session a query that others can pause and steer, until it ends; returns the id';

CREATE FUNCTION swarm.query_wait(id bigint, timeout interval = '5 min') RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_query_wait';
COMMENT ON FUNCTION swarm.query_wait IS 'wait until a query has ended or the timeout is over, and return its state';

-- Handler of kind query. Everybody may execute it, only a runner can.
CREATE FUNCTION swarm._query_run(job swarm.job) RETURNS jsonb
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_query_job';
INSERT INTO swarm._handler (id, kind, owner, handler)
VALUES (7, 'query', 10::oid::regrole, 'swarm._query_run');

-- ---------------------------------------------------------------------
-- Views
-- ---------------------------------------------------------------------

CREATE FUNCTION swarm._query_live(OUT query bigint, OUT pid int, OUT state text, OUT pausing boolean,
    OUT node text, OUT started_at timestamptz, OUT paused_at timestamptz, OUT resumed_at timestamptz,
    OUT paused_us bigint, OUT pauses int, OUT workers int)
RETURNS SETOF record LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 10
AS 'MODULE_PATHNAME', 'swarm_query_live';

CREATE FUNCTION swarm._query_transitions(OUT from_state text, OUT event text, OUT to_state text, OUT why text)
RETURNS SETOF record LANGUAGE c IMMUTABLE PARALLEL SAFE ROWS 20
AS 'MODULE_PATHNAME', 'swarm_query_transition_list';

CREATE VIEW swarm.queries WITH (security_invoker = true) AS
SELECT q.id, q.kind, q.owner,
       CASE WHEN q.finished_at IS NULL THEN coalesce(l.state::swarm.query_state, q.state) ELSE q.state END AS state,
       q.finished_at IS NULL AND (coalesce(l.pausing, false)
           OR q.kind = 'llm' AND q.wanted = 'pause' AND q.state = 'running') AS pausing,
       l.node,
       q.body, q.model, q.permission_mode, l.pid, coalesce(l.workers, 0) AS workers, q.job,
       q.created_at, coalesce(l.started_at, q.started_at) AS started_at,
       coalesce(l.paused_at, q.paused_at) AS paused_at, coalesce(l.resumed_at, q.resumed_at) AS resumed_at,
       q.finished_at,
       coalesce(q.finished_at, swarm._now()) - coalesce(l.started_at, q.started_at) AS duration,
       CASE WHEN q.finished_at IS NULL AND l.query IS NOT NULL THEN l.paused_us * interval '1 microsecond'
            WHEN q.finished_at IS NULL AND q.state = 'paused' THEN q.total_pause + (swarm._now() - q.paused_at)
            ELSE q.total_pause END AS total_pause,
       coalesce(l.pauses, q.pauses) AS pauses,
       q.turns, q.tokens_in + q.tokens_out AS tokens, q.tokens_in, q.tokens_out, q.tokens_cached, q.cost,
       q.latency_ms, q.failures, CASE WHEN q.turns > 0 THEN q.failures::float8 / q.turns ELSE 0 END AS error_rate,
       (SELECT count(*) FROM swarm._query_request r WHERE r.query = q.id AND r.decision IS NULL) AS open_requests,
       q.budget, q.metadata, q.error, q.sqlstate
FROM swarm._query q
LEFT JOIN swarm._query_live() l ON l.query = q.id AND q.finished_at IS NULL;
COMMENT ON VIEW swarm.queries IS 'queries that the current role may see, with where each one is';

CREATE VIEW swarm.query_events WITH (security_invoker = true) AS
SELECT id, query, at, actor, action, before, after, detail FROM swarm._query_event;
COMMENT ON VIEW swarm.query_events IS 'who did what to the queries that the current role may see; actor is null for the scheduler';

CREATE VIEW swarm.query_requests WITH (security_invoker = true) AS
SELECT id, query, what, asked_at, decision, decided_by, decided_at FROM swarm._query_request;
COMMENT ON VIEW swarm.query_requests IS 'what queries have asked to be allowed; swarm.query_approve() answers';

CREATE VIEW swarm.query_blocking WITH (security_invoker = true) AS
SELECT q.id AS query, q.state, q.pid, q.node, q.paused_at,
       a.backend_xmin, pg_catalog.age(a.backend_xmin) AS xmin_age,
       CASE WHEN q.pid IS NOT NULL THEN
           ARRAY(SELECT b.pid FROM pg_catalog.pg_stat_activity b
                 WHERE b.wait_event_type = 'Lock' AND q.pid = ANY (pg_catalog.pg_blocking_pids(b.pid))
                 ORDER BY b.pid) END AS blocked
FROM swarm.queries q
LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = q.pid
WHERE q.state = 'paused' AND q.pid IS NOT NULL;
COMMENT ON VIEW swarm.query_blocking IS 'paused statements, the rows they keep VACUUM from removing (xmin), and whom their locks block';

-- ---------------------------------------------------------------------
-- Control
-- ---------------------------------------------------------------------

-- All that changes a query. Checks by itself whose it is.
CREATE FUNCTION swarm._query_act(action text, query_id bigint, params jsonb) RETURNS text
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_query_action';

CREATE FUNCTION swarm.permission_bypass() RETURNS void
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS '';
COMMENT ON FUNCTION swarm.permission_bypass IS 'does nothing: EXECUTE on it is the right to permission mode bypassPermissions';

CREATE FUNCTION swarm.query_pause(id bigint, mode text = NULL, timeout interval = '1 s', length interval = NULL)
RETURNS text LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT swarm._query_act('pause', id, jsonb_build_object('mode', mode, 'timeout', timeout, 'length', length)) $$;
COMMENT ON FUNCTION swarm.query_pause IS 'hold a query where it is; returns paused, or pausing if it has not come to a point where it can be held';

CREATE FUNCTION swarm.query_resume(id bigint) RETURNS text
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT swarm._query_act('resume', id, '{}') $$;
COMMENT ON FUNCTION swarm.query_resume IS 'let a paused query go on where it was, or withdraw a pause that has not come about';

CREATE FUNCTION swarm.query_terminate(id bigint) RETURNS text
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT swarm._query_act('terminate', id, '{}') $$;
COMMENT ON FUNCTION swarm.query_terminate IS 'stop a query: cancel it, and end its process if it goes on for pg_swarm.query_terminate_grace';

CREATE FUNCTION swarm.query_execute_command(id bigint, command text) RETURNS text
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT swarm._query_act('execute_command', id, jsonb_build_object('command', command)) $$;
COMMENT ON FUNCTION swarm.query_execute_command IS 'run a statement inside a paused query, in its transaction; or give a conversation a message';

CREATE FUNCTION swarm.query_change_permissions(id bigint, mode text) RETURNS text
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT swarm._query_act('change_permissions', id, jsonb_build_object('mode', mode)) $$;
COMMENT ON FUNCTION swarm.query_change_permissions IS 'set the permission mode: plan, default, acceptEdits, bypassPermissions; tightens at once';

CREATE FUNCTION swarm.query_change_model(id bigint, model text) RETURNS text
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT swarm._query_act('change_model', id, jsonb_build_object('model', model)) $$;
COMMENT ON FUNCTION swarm.query_change_model IS 'the model of a conversation from its next turn on';

CREATE FUNCTION swarm.query_approve(id bigint, request bigint, decision text) RETURNS text
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT swarm._query_act('approve', id, jsonb_build_object('request', request, 'decision', decision)) $$;
COMMENT ON FUNCTION swarm.query_approve IS 'answer what a query has asked: allow or deny';

CREATE FUNCTION swarm.query_status(id bigint) RETURNS jsonb
LANGUAGE plpgsql VOLATILE STRICT PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    status jsonb := (SELECT to_jsonb(q) FROM swarm.queries q WHERE q.id = query_status.id);
BEGIN
    IF status IS NULL THEN
        RAISE 'query % does not exist', id USING ERRCODE = 'undefined_object';
    END IF;
    RETURN status;
END $$;
COMMENT ON FUNCTION swarm.query_status IS 'the row of swarm.queries';

CREATE FUNCTION swarm.query_list(include_history boolean = false) RETURNS SETOF swarm.queries
LANGUAGE sql VOLATILE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
AS $$ SELECT * FROM swarm.queries WHERE include_history OR state IN ('init', 'running', 'paused') ORDER BY id $$;
COMMENT ON FUNCTION swarm.query_list IS 'queries that have not ended, or all';

CREATE FUNCTION swarm._query_events_dropped() RETURNS bigint
LANGUAGE c VOLATILE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'swarm_query_events_dropped';

CREATE FUNCTION swarm.query_stats(OUT total bigint, OUT running bigint, OUT paused bigint, OUT completed bigint,
    OUT terminated bigint, OUT failed bigint, OUT events_dropped bigint)
LANGUAGE sql VOLATILE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
AS $$ SELECT count(*), count(*) FILTER (WHERE state = 'running'), count(*) FILTER (WHERE state = 'paused'),
    count(*) FILTER (WHERE state = 'complete'), count(*) FILTER (WHERE state = 'terminated'),
    count(*) FILTER (WHERE state = 'error'), swarm._query_events_dropped() FROM swarm.queries $$;
COMMENT ON FUNCTION swarm.query_stats IS 'how many queries are in which state, and events of all that were not written down since the start of the server';

CREATE FUNCTION swarm.query_result(id bigint) RETURNS jsonb
LANGUAGE plpgsql VOLATILE STRICT PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    result jsonb;
BEGIN
    SELECT q.result INTO result FROM swarm._query q WHERE q.id = query_result.id;
    IF NOT FOUND THEN
        RAISE 'query % does not exist', id USING ERRCODE = 'undefined_object';
    END IF;
    RETURN result;
END $$;
COMMENT ON FUNCTION swarm.query_result IS 'what a query has come to: of a statement {"rows", "data", "truncated"}, or {"rows", "table"}; null before its end';

CREATE FUNCTION swarm.query_control(action text, query_id bigint = NULL, params jsonb = '{}') RETURNS jsonb
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    answer text;
BEGIN
    IF action IS NULL THEN
        RAISE 'the action must not be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF jsonb_typeof(params) <> 'object' THEN
        RAISE 'the parameters of an action must be a JSON object' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    CASE action
        WHEN 'list' THEN
            RETURN jsonb_build_object('success', true, 'queries',
                coalesce((SELECT jsonb_agg(to_jsonb(q) ORDER BY q.id)
                          FROM swarm.query_list(coalesce((params->>'include_history')::boolean, false)) q), '[]'));
        WHEN 'stats' THEN
            RETURN jsonb_build_object('success', true) || (SELECT to_jsonb(s) FROM swarm.query_stats() s);
        ELSE
    END CASE;
    IF action NOT IN ('pause', 'resume', 'terminate', 'change_model', 'change_permissions', 'execute_command', 'approve',
                      'optimize', 'status') THEN
        RAISE 'unknown action "%"', action USING ERRCODE = 'invalid_parameter_value',
            HINT = 'Actions are pause, resume, terminate, change_model, change_permissions, execute_command, approve, optimize, list, status and stats.';
    END IF;
    IF query_id IS NULL THEN
        RAISE 'action "%" needs the id of a query', action USING ERRCODE = 'null_value_not_allowed';
    END IF;
    IF action = 'status' THEN
        RETURN jsonb_build_object('success', true, 'query', swarm.query_status(query_id));
    END IF;
    IF action = 'optimize' THEN
        RETURN jsonb_build_object('success', true, 'rule', swarm.query_optimize(query_id));
    END IF;
    answer := swarm._query_act(action, query_id, coalesce(params, '{}'));
    IF action = 'execute_command' THEN
        RETURN jsonb_build_object('success', true, 'result', answer);
    END IF;
    RETURN jsonb_build_object('success', true, 'state', answer);
END $$;
COMMENT ON FUNCTION swarm.query_control IS 'one door to all that can be done to a query: pause, resume, terminate, change_model, change_permissions, execute_command, approve, optimize, list, status, stats';

CREATE FUNCTION swarm.query_try(action text, query_id bigint = NULL, params jsonb = '{}') RETURNS boolean
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM swarm.query_control(action, query_id, params);
    RETURN true;
EXCEPTION WHEN OTHERS THEN
    RETURN false;
END $$;
COMMENT ON FUNCTION swarm.query_try IS 'swarm.query_control without raising: false where that has an error';

-- ---------------------------------------------------------------------
-- For the engine of conversations
-- ---------------------------------------------------------------------

CREATE FUNCTION swarm._query_turn_begin(query bigint, OUT go boolean, OUT state text, OUT model text,
    OUT permission_mode text, OUT commands jsonb)
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_query_turn_begin';

CREATE FUNCTION swarm._query_turn_end(query bigint, outcome jsonb, OUT go boolean, OUT state text,
    OUT model text, OUT permission_mode text)
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_query_turn_end';

CREATE FUNCTION swarm._query_set_state(query bigint, event text, detail text = NULL) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_query_set_state';

CREATE FUNCTION swarm._query_ask(query bigint, what jsonb) RETURNS bigint
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$ INSERT INTO swarm._query_request (query, what) VALUES (query, what) RETURNING id $$;

CREATE FUNCTION swarm._query_decision(request bigint) RETURNS text
LANGUAGE sql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT decision FROM swarm._query_request WHERE id = request $$;

CREATE FUNCTION swarm._query_mode(query bigint) RETURNS text
LANGUAGE sql VOLATILE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT permission_mode FROM swarm._query WHERE id = query $$;
