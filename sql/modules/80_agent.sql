-- 80_agent.sql: agents: types, spawning, life, tasks.
--
-- src/agent/README.md explains the tables; docs/reference/agents.md the
-- functions. A public function in C runs the private one of the same name
-- with the caller before its arguments (base/forward.h): that one begins with
-- asking what the caller may do.

-- ---------------------------------------------------------------------
-- Tables
-- ---------------------------------------------------------------------

-- What an agent of a type is; spec as swarm.agent_type_create() was given it.
CREATE TABLE swarm._agent_type (
    name text COLLATE "C" PRIMARY KEY,
    owner regrole NOT NULL,
    version int NOT NULL,
    capabilities text[] NOT NULL,
    handler text NOT NULL,
    max_concurrency int,
    spec jsonb NOT NULL,
    embedding real[] NOT NULL,
    created_at timestamptz NOT NULL,
    builtin boolean NOT NULL DEFAULT false
);

-- The index of capabilities: one row for all agents of a role that have the
-- same type and capabilities, so choosing one looks at few rows.
CREATE SEQUENCE swarm._agent_set_id_seq AS int;
CREATE TABLE swarm._agent_set (
    id int PRIMARY KEY DEFAULT nextval('swarm._agent_set_id_seq'),
    owner regrole NOT NULL,
    type text COLLATE "C" NOT NULL,
    capabilities text[] NOT NULL,
    UNIQUE (type, owner, capabilities)
);
CREATE INDEX _agent_set_capabilities ON swarm._agent_set USING gin (capabilities);

CREATE SEQUENCE swarm._agent_id_seq;
CREATE TABLE swarm._agent (
    id bigint PRIMARY KEY,
    name text COLLATE "C" NOT NULL,
    type text COLLATE "C" NOT NULL,
    owner regrole NOT NULL,
    set int NOT NULL,
    state text NOT NULL,
    priority swarm.priority NOT NULL,
    depends_on bigint[] NOT NULL DEFAULT '{}',
    metadata jsonb NOT NULL,
    task bigint,
    pause_wanted boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL,
    since timestamptz NOT NULL,
    last_used timestamptz NOT NULL,
    affinity text,
    done bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    lost int NOT NULL DEFAULT 0,
    lost_in_a_row int NOT NULL DEFAULT 0,
    stolen bigint NOT NULL DEFAULT 0,
    busy_ms float8 NOT NULL DEFAULT 0,
    latency_ms float8,
    day date,
    day_tasks int NOT NULL DEFAULT 0,
    day_ms float8 NOT NULL DEFAULT 0,
    error text
) WITH (fillfactor = 80);
CREATE INDEX _agent_choose ON swarm._agent (set, state, last_used);
CREATE UNIQUE INDEX _agent_name ON swarm._agent (owner, name) WHERE state NOT IN ('stopped', 'failed');

CREATE SEQUENCE swarm._agent_task_id_seq;
CREATE TABLE swarm._agent_task (
    id bigint PRIMARY KEY,
    owner regrole NOT NULL,
    submitter regrole NOT NULL,
    agent bigint,
    state text NOT NULL,
    priority swarm.priority NOT NULL,
    rank timestamptz NOT NULL,
    run_at timestamptz NOT NULL,
    deadline timestamptz,
    timeout interval,
    attempts int NOT NULL DEFAULT 0,
    max_attempts int NOT NULL,
    type text COLLATE "C",
    capabilities text[] NOT NULL,
    pinned boolean NOT NULL,
    payload jsonb NOT NULL,
    affinity text,
    strategy text,
    protocol text,
    parent bigint,
    assigned_to bigint,
    created_at timestamptz NOT NULL,
    started_at timestamptz,
    finished_at timestamptz,
    result jsonb,
    error text,
    message bigint
) WITH (fillfactor = 80);
CREATE INDEX _agent_task_next ON swarm._agent_task (agent, rank) WHERE state = 'queued';
CREATE INDEX _agent_task_deadline ON swarm._agent_task (agent, deadline) WHERE state = 'queued' AND deadline IS NOT NULL;
CREATE INDEX _agent_task_parent ON swarm._agent_task (parent) WHERE parent IS NOT NULL;
CREATE INDEX _agent_task_finished ON swarm._agent_task (finished_at) WHERE finished_at IS NOT NULL;

-- What happened to agents and tasks; kept 7 days.
CREATE SEQUENCE swarm._agent_event_id_seq;
CREATE TABLE swarm._agent_event (
    id bigint PRIMARY KEY DEFAULT nextval('swarm._agent_event_id_seq'),
    agent bigint NOT NULL,
    task bigint,
    event text NOT NULL,
    from_state text,
    to_state text,
    detail text,
    at timestamptz NOT NULL
);
CREATE INDEX _agent_event_agent ON swarm._agent_event (agent, id);
CREATE INDEX _agent_event_at ON swarm._agent_event (at);

CREATE SEQUENCE swarm._spawn_batch_id_seq;
CREATE TABLE swarm._spawn_batch (
    id bigint PRIMARY KEY,
    owner regrole NOT NULL,
    started_at timestamptz NOT NULL,
    agents int NOT NULL,
    spawned int NOT NULL,
    mode text NOT NULL,
    fallback boolean NOT NULL,
    batch_size int NOT NULL,
    batch_size_after int NOT NULL,
    max_concurrency int NOT NULL,
    total_ms float8 NOT NULL,
    slowest_ms float8
);

SELECT pg_catalog.pg_extension_config_dump('swarm._agent_set_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._agent_set', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._agent_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._agent', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._agent_task_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._agent_task', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._agent_event_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._agent_event', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._spawn_batch_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._spawn_batch', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._agent_type', 'WHERE NOT builtin');

-- ---------------------------------------------------------------------
-- Who sees what: owner, and who has the privileges of the owner role
-- ---------------------------------------------------------------------

ALTER TABLE swarm._agent ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._agent FOR SELECT USING (pg_catalog.pg_has_role(owner::oid, 'USAGE'));
ALTER TABLE swarm._agent_set ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._agent_set FOR SELECT USING (pg_catalog.pg_has_role(owner::oid, 'USAGE'));
ALTER TABLE swarm._agent_task ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._agent_task FOR SELECT USING (pg_catalog.pg_has_role(owner::oid, 'USAGE'));
ALTER TABLE swarm._agent_event ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._agent_event FOR SELECT
    USING (EXISTS (SELECT FROM swarm._agent a WHERE a.id = _agent_event.agent));
ALTER TABLE swarm._spawn_batch ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._spawn_batch FOR SELECT USING (pg_catalog.pg_has_role(owner::oid, 'USAGE'));

-- ---------------------------------------------------------------------
-- Types
-- ---------------------------------------------------------------------

CREATE TYPE swarm.agent AS (
    id bigint,
    name text,
    type text,
    capabilities text[],
    priority swarm.priority,
    metadata jsonb,
    settings jsonb,
    task bigint,
    attempt int,
    restored jsonb
);
COMMENT ON TYPE swarm.agent IS 'an agent, as its handler sees it; settings is the spec of its type, attempt counts from 1, restored is what steps restore have read';

-- ---------------------------------------------------------------------
-- States
-- ---------------------------------------------------------------------

CREATE FUNCTION swarm._agent_transitions(OUT from_state text, OUT event text, OUT to_state text, OUT why text)
RETURNS SETOF record LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 30
BEGIN ATOMIC
SELECT * FROM (VALUES
    ('created', 'start', 'starting', 'agent_spawn() asks a runner to take it on'),
    ('starting', 'ready', 'idle', 'a process works as its role and may call its handler'),
    ('starting', 'error', 'failed', 'none could, or not in time'),
    ('idle', 'take', 'busy', 'a process has taken a task for it'),
    ('idle', 'pause', 'paused', 'agent_pause()'),
    ('idle', 'stop', 'stopped', 'agent_stop()'),
    ('idle', 'kill', 'stopped', 'agent_kill()'),
    ('busy', 'done', 'idle', 'the task has ended'),
    ('busy', 'park', 'paused', 'the task has ended, and a pause was wanted'),
    ('busy', 'pause', 'busy', 'agent_pause(): when the task has ended'),
    ('busy', 'resume', 'busy', 'agent_resume(): no pause is wanted any more'),
    ('busy', 'stop', 'stopping', 'agent_stop(): when the task has ended'),
    ('busy', 'kill', 'stopped', 'agent_kill(): the task goes to another, or waits'),
    ('busy', 'lose', 'lost', 'its process has died'),
    ('lost', 'recover', 'idle', 'its task is in the queue again'),
    ('lost', 'error', 'failed', 'its process has died too often'),
    ('paused', 'resume', 'idle', 'agent_resume()'),
    ('paused', 'stop', 'stopped', 'agent_stop()'),
    ('paused', 'kill', 'stopped', 'agent_kill()'),
    ('stopping', 'done', 'stopped', 'the task has ended'),
    ('stopping', 'kill', 'stopped', 'agent_kill()'),
    ('stopping', 'lose', 'stopped', 'its process has died'),
    ('failed', 'start', 'starting', 'agent_resume() starts it again'),
    ('failed', 'stop', 'stopped', 'agent_stop()'),
    ('failed', 'kill', 'stopped', 'agent_kill()'),
    ('stopped', 'start', 'starting', 'agent_resume() starts it again')) t;
END;

-- An agent the caller may command. Errors: 42704 if there is none.
CREATE FUNCTION swarm._agent_get(caller oid, id bigint) RETURNS swarm._agent
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a swarm._agent;
BEGIN
    SELECT * INTO a FROM swarm._agent t WHERE t.id = _agent_get.id FOR UPDATE;
    IF a.id IS NULL OR NOT pg_has_role(caller, a.owner::oid, 'USAGE') THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('agent %s does not exist', coalesce(id::text, 'NULL'));
    END IF;
    RETURN a;
END $$;

-- The step of an agent, locked by the caller of this function, that the table
-- of transitions has. Errors: 55000 if it has none.
CREATE FUNCTION swarm._agent_go(a swarm._agent, happened text, detail text = NULL) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    state_now text;
BEGIN
    SELECT t.to_state INTO state_now FROM swarm._agent_transitions() t WHERE t.from_state = a.state AND t.event = happened;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('agent %s is %s', a.id, a.state),
            DETAIL = format('An agent that is %s knows no "%s".', a.state, happened);
    END IF;
    UPDATE swarm._agent t SET state = state_now, since = swarm._now(), error = CASE WHEN state_now = 'failed' THEN detail END
    WHERE t.id = a.id;
    INSERT INTO swarm._agent_event (agent, task, event, from_state, to_state, detail, at)
    VALUES (a.id, a.task, happened, a.state, state_now, detail, swarm._now());
    RETURN state_now;
END $$;

-- ---------------------------------------------------------------------
-- JSON Schema: as much of it as the specs need
-- ---------------------------------------------------------------------

-- Why a value does not fit a schema, with the path to what does not; NULL: it
-- fits. Knows type, enum, minimum, maximum, minLength, maxLength, pattern,
-- items, properties, required and additionalProperties (false).
CREATE FUNCTION swarm._json_misfit(value jsonb, schema jsonb, path text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kind text := jsonb_typeof(value);
    misfit text;
    k text;
    v jsonb;
    i int := 0;
BEGIN
    IF schema ? 'type' AND NOT (CASE jsonb_typeof(schema->'type') WHEN 'array' THEN schema->'type' ELSE jsonb_build_array(schema->'type') END)
       ?| (ARRAY[kind] || CASE WHEN kind = 'number' AND (value #>> '{}')::numeric % 1 = 0 THEN ARRAY['integer'] END) THEN
        RETURN format('%s must be %s, not %s', path, translate(schema->>'type', '[]"', ''), kind);
    END IF;
    IF schema ? 'enum' AND NOT schema->'enum' @> jsonb_build_array(value) THEN
        RETURN format('%s must be one of %s', path, schema->>'enum');
    END IF;
    IF kind = 'number' AND schema ? 'minimum' AND (value #>> '{}')::numeric < (schema->>'minimum')::numeric THEN
        RETURN format('%s must be at least %s', path, schema->>'minimum');
    ELSIF kind = 'number' AND schema ? 'maximum' AND (value #>> '{}')::numeric > (schema->>'maximum')::numeric THEN
        RETURN format('%s must be at most %s', path, schema->>'maximum');
    ELSIF kind = 'string' AND schema ? 'minLength' AND length(value #>> '{}') < (schema->>'minLength')::int THEN
        RETURN format('%s must have at least %s characters', path, schema->>'minLength');
    ELSIF kind = 'string' AND schema ? 'maxLength' AND length(value #>> '{}') > (schema->>'maxLength')::int THEN
        RETURN format('%s must have at most %s characters', path, schema->>'maxLength');
    ELSIF kind = 'string' AND schema ? 'pattern' AND value #>> '{}' !~ (schema->>'pattern') THEN
        RETURN format('%s must match %s', path, schema->>'pattern');
    ELSIF kind = 'array' AND schema ? 'items' THEN
        FOR v IN SELECT * FROM jsonb_array_elements(value) LOOP
            misfit := swarm._json_misfit(v, schema->'items', format('%s[%s]', path, i));
            IF misfit IS NOT NULL THEN RETURN misfit; END IF;
            i := i + 1;
        END LOOP;
    ELSIF kind = 'object' THEN
        FOR k IN SELECT jsonb_array_elements_text(coalesce(schema->'required', '[]')) LOOP
            IF NOT value ? k THEN RETURN format('%s.%s is missing', path, k); END IF;
        END LOOP;
        FOR k, v IN SELECT * FROM jsonb_each(value) LOOP
            IF schema->'properties' ? k THEN
                misfit := swarm._json_misfit(v, schema->'properties'->k, path || '.' || k);
                IF misfit IS NOT NULL THEN RETURN misfit; END IF;
            ELSIF schema->'additionalProperties' = 'false' THEN
                RETURN format('%s.%s is unknown', path, k);
            END IF;
        END LOOP;
    END IF;
    RETURN NULL;
END $$;

-- swarm.agent_schema(what): the JSON Schema of the spec of a type ('type'), of
-- an agent to be spawned ('agent') or of a task ('task'); NULL for others.
CREATE FUNCTION swarm.agent_schema(what text = 'type') RETURNS jsonb
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT CASE what
WHEN 'type' THEN '{"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "type of agents", "type": "object",
  "required": ["name", "capabilities"], "additionalProperties": false,
  "properties": {
    "name": {"type": "string", "minLength": 1, "maxLength": 128},
    "description": {"type": "string", "maxLength": 10000},
    "version": {"type": "integer", "minimum": 1, "maximum": 2147483647},
    "capabilities": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 128}},
    "handler": {"type": "string", "minLength": 1},
    "job_kind": {"type": "string", "minLength": 1},
    "model": {"type": "string", "minLength": 1},
    "prompt": {"type": "string"},
    "tools": {"type": "array", "items": {"type": "object", "required": ["name"], "additionalProperties": false,
      "properties": {"name": {"type": "string", "minLength": 1}, "description": {"type": "string"},
        "function": {"type": "string"}, "inputSchema": {"type": "object"}, "readOnly": {"type": "boolean"}}}},
    "hooks": {"type": "object", "additionalProperties": false, "properties": {
      "before_task": {"type": "string"}, "after_task": {"type": "string"}, "message": {"type": "string"}}},
    "namespaces": {"type": "array", "items": {"type": "string", "minLength": 1}},
    "protocol": {"type": "string", "minLength": 1},
    "permission_mode": {"type": "string", "enum": ["default", "acceptEdits", "plan", "bypassPermissions"]},
    "budget": {"type": "object", "additionalProperties": false, "properties": {
      "max_tokens": {"type": "integer", "minimum": 0}, "max_cost": {"type": "number", "minimum": 0},
      "max_task_time": {"type": "string"}, "max_turns": {"type": "integer", "minimum": 1},
      "max_tasks": {"type": "integer", "minimum": 0, "maximum": 2147483647}, "max_time": {"type": "string"}}},
    "max_attempts": {"type": "integer", "minimum": 1, "maximum": 10000},
    "max_concurrency": {"type": "integer", "minimum": 1, "maximum": 2147483647}}}'::jsonb
WHEN 'agent' THEN '{"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "agent to be spawned", "type": "object",
  "required": ["type", "name"], "additionalProperties": false,
  "properties": {
    "type": {"type": "string", "minLength": 1}, "name": {"type": "string", "minLength": 1, "maxLength": 128},
    "role": {"type": "string", "minLength": 1},
    "capabilities": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 128}},
    "priority": {"type": "string", "enum": ["low", "medium", "high", "critical"]},
    "depends_on": {"type": "array", "items": {"type": "string"}},
    "task": {"type": ["object", "array", "string", "number", "boolean", "null"]},
    "metadata": {"type": "object"}}}'::jsonb
WHEN 'task' THEN '{"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "task", "type": "object",
  "additionalProperties": false,
  "properties": {
    "task": {"type": ["object", "array", "string", "number", "boolean", "null"]},
    "agent": {"type": ["integer", "string"], "minimum": -9223372036854775808, "maximum": 9223372036854775807}, "type": {"type": "string"},
    "capabilities": {"type": "array", "items": {"type": "string"}},
    "query": {"type": "string"}, "affinity": {"type": "string"},
    "priority": {"type": "string", "enum": ["low", "medium", "high", "critical"]},
    "run_at": {"type": "string"}, "deadline": {"type": "string"}, "timeout": {"type": ["string", "null"]},
    "max_attempts": {"type": "integer", "minimum": 1, "maximum": 10000},
    "strategy": {"type": "string", "enum": ["rank", "least-loaded", "round-robin", "adaptive"]},
    "protocol": {"type": "string"},
    "parts": {"type": "array", "items": {"type": "object"}}}}'::jsonb
END
$$;
COMMENT ON FUNCTION swarm.agent_schema IS 'JSON Schema of the spec of a type of agents, of an agent to be spawned or of a task';

-- A spec of the caller, or 22023 with the path to what is wrong.
CREATE FUNCTION swarm._agent_check(value jsonb, what text) RETURNS void
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    misfit text := swarm._json_misfit(value, swarm.agent_schema(what), '$');
BEGIN
    IF value IS NULL OR misfit IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('invalid %s: %s', CASE what WHEN 'type' THEN 'type of agents' ELSE what END,
                             CASE WHEN value IS NULL THEN '$ is null' ELSE misfit END),
            HINT = format('swarm.agent_schema(%L) has the rules.', what);
    END IF;
END $$;

-- ---------------------------------------------------------------------
-- Types of agents
-- ---------------------------------------------------------------------

-- The function of a handler: name(jsonb, swarm.agent); 0 if there is none.
CREATE FUNCTION swarm._agent_handler(handler text) RETURNS oid
LANGUAGE sql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT coalesce(to_regprocedure(handler || '(pg_catalog.jsonb, swarm.agent)')::oid, 0::oid)
$$;

CREATE FUNCTION swarm._sorted(list text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT coalesce(array_agg(DISTINCT x ORDER BY x), '{}') FROM unnest(list) x;
END;

CREATE FUNCTION swarm._json_list(list jsonb) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
SELECT coalesce(array_agg(x), '{}') FROM jsonb_array_elements_text(coalesce(list, '[]')) x;
END;

CREATE FUNCTION swarm._agent_type_create(caller oid, spec jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    t swarm._agent_type;
    old record;
    handler text;
    path text;
    hook text;
    proc regprocedure;
BEGIN
    PERFORM swarm._agent_check(spec, 'type');
    IF (spec ? 'handler')::int + (spec ? 'job_kind')::int + (spec ? 'model')::int <> 1 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'invalid type of agents: $ must have exactly one of handler, job_kind and model';
    END IF;
    FOR path, handler IN SELECT * FROM (VALUES ('handler', spec->>'handler'), ('hooks.message', spec->'hooks'->>'message')) v(p, h) WHERE h IS NOT NULL LOOP
        proc := swarm._agent_handler(handler);
        IF proc = 0::regprocedure OR strpos(handler, '.') = 0 THEN
            RAISE EXCEPTION USING ERRCODE = 'undefined_function',
                MESSAGE = format('invalid type of agents: $.%s: function %s(jsonb, swarm.agent) does not exist', path, handler),
                HINT = 'Name it with its schema.';
        END IF;
        IF (SELECT prorettype NOT IN ('jsonb'::regtype, 'void'::regtype) OR prokind <> 'f' OR proretset FROM pg_proc WHERE oid = proc) THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_function_definition',
                MESSAGE = format('invalid type of agents: $.%s: %s must be a function that returns jsonb', path, proc::text);
        END IF;
        IF NOT has_function_privilege(caller, proc, 'EXECUTE') THEN
            RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = format('permission denied for function %s', handler);
        END IF;
    END LOOP;
    IF spec ? 'handler' THEN
        handler := spec->>'handler';
    ELSIF spec ? 'job_kind' THEN
        IF spec->>'job_kind' <> 'sql' AND NOT EXISTS (SELECT FROM swarm._handler h WHERE h.kind = spec->>'job_kind') THEN
            RAISE EXCEPTION USING ERRCODE = 'undefined_object',
                MESSAGE = format('invalid type of agents: $.job_kind: job kind "%s" does not exist', spec->>'job_kind');
        END IF;
        handler := 'swarm._agent_run_job';
    ELSE
        handler := 'swarm._agent_run_model';
    END IF;
    FOR hook IN SELECT spec->'hooks'->>k FROM unnest('{before_task,after_task}'::text[]) k WHERE spec->'hooks' ? k LOOP
        proc := to_regprocedure(hook || '(pg_catalog.jsonb)');
        IF proc IS NULL OR strpos(hook, '.') = 0 THEN
            RAISE EXCEPTION USING ERRCODE = 'undefined_function',
                MESSAGE = format('invalid type of agents: $.hooks: function %s(jsonb) does not exist', hook), HINT = 'Name it with its schema.';
        ELSIF NOT has_function_privilege(caller, proc, 'EXECUTE') THEN
            RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = format('permission denied for function %s', hook);
        END IF;
    END LOOP;
    IF (spec->'budget'->>'max_task_time')::interval <= '0' OR (spec->'budget'->>'max_time')::interval < '0' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'invalid type of agents: $.budget: a time must be positive';
    ELSIF (spec->'budget'->>'max_task_time')::interval > '24 days' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'invalid type of agents: $.budget.max_task_time must be at most 24 days';
    END IF;
    IF spec->>'permission_mode' = 'bypassPermissions' AND NOT has_function_privilege(caller, 'swarm.permission_bypass()', 'EXECUTE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = 'permission denied for permission mode "bypassPermissions"',
            HINT = 'It needs EXECUTE on swarm.permission_bypass().';
    END IF;
    SELECT o.owner, o.builtin INTO old FROM swarm._agent_type o WHERE o.name = spec->>'name' FOR UPDATE;
    IF FOUND AND old.builtin THEN
        RAISE EXCEPTION USING ERRCODE = 'reserved_name', MESSAGE = format('type of agents "%s" is part of the extension', spec->>'name'),
            HINT = 'Create one with another name.';
    ELSIF FOUND AND NOT pg_has_role(caller, old.owner::oid, 'USAGE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('must be owner of the type of agents "%s"', spec->>'name');
    END IF;
    INSERT INTO swarm._agent_type AS o (name, owner, version, capabilities, handler, max_concurrency, spec, embedding, created_at)
    VALUES (spec->>'name', caller, coalesce((spec->>'version')::int, 1), swarm._sorted(swarm._json_list(spec->'capabilities')),
            handler, (spec->>'max_concurrency')::int, spec,
            swarm.embed(concat_ws(' ', spec->>'name', spec->>'description', array_to_string(swarm._json_list(spec->'capabilities'), ' '))),
            swarm._now())
    ON CONFLICT (name) DO UPDATE
    SET version = CASE WHEN spec ? 'version' THEN EXCLUDED.version ELSE o.version + 1 END,
        capabilities = EXCLUDED.capabilities, handler = EXCLUDED.handler, max_concurrency = EXCLUDED.max_concurrency,
        spec = EXCLUDED.spec, embedding = EXCLUDED.embedding;
END $$;

-- swarm.agent_type_create(spec): define a type of agents, or change it; its
-- agents are what they were until they are spawned again, but for the handler.
-- Errors: 22023 with the path of what does not fit the schema; 42883, 42P13 the
-- handler; 42501 no right to call it, or the type belongs to another.
CREATE FUNCTION swarm.agent_type_create(spec jsonb) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_agent_type_create';
COMMENT ON FUNCTION swarm.agent_type_create IS 'define a type of agents, or change it';

CREATE FUNCTION swarm._agent_type_drop(caller oid, name text) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t swarm._agent_type;
BEGIN
    SELECT * INTO t FROM swarm._agent_type o WHERE o.name = _agent_type_drop.name FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('type of agents "%s" does not exist', name);
    ELSIF t.builtin THEN
        RAISE EXCEPTION USING ERRCODE = 'reserved_name', MESSAGE = format('type of agents "%s" is part of the extension', name);
    ELSIF NOT pg_has_role(caller, t.owner::oid, 'USAGE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = format('must be owner of the type of agents "%s"', name);
    ELSIF EXISTS (SELECT FROM swarm._agent a WHERE a.type = t.name AND a.state <> 'stopped') THEN
        RAISE EXCEPTION USING ERRCODE = 'dependent_objects_still_exist',
            MESSAGE = format('cannot drop the type of agents "%s" because agents have it', name),
            HINT = 'Stop them with swarm.agent_stop().';
    END IF;
    DELETE FROM swarm._agent_type o WHERE o.name = t.name;
END $$;

CREATE FUNCTION swarm.agent_type_drop(name text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_agent_type_drop';
COMMENT ON FUNCTION swarm.agent_type_drop IS 'remove a type of agents that no agent has';

CREATE VIEW swarm.agent_types AS
SELECT t.name, t.owner, t.version, t.spec->>'description' AS description, t.capabilities,
       CASE WHEN t.spec ? 'handler' THEN t.handler END AS handler, t.spec->>'job_kind' AS job_kind, t.spec->>'model' AS model,
       coalesce(t.spec->>'permission_mode', 'default') AS permission_mode, t.max_concurrency, t.spec
FROM swarm._agent_type t;
COMMENT ON VIEW swarm.agent_types IS 'types of agents';

-- A type by name. Errors: 42704 if there is none.
CREATE FUNCTION swarm._agent_type_get(name text) RETURNS swarm._agent_type
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t swarm._agent_type;
BEGIN
    SELECT * INTO t FROM swarm._agent_type o WHERE o.name = _agent_type_get.name;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('type of agents "%s" does not exist', name);
    END IF;
    RETURN t;
END $$;

-- swarm.agent_card(name): the A2A card of a type. Errors: 42704.
CREATE FUNCTION swarm.agent_card(name text) RETURNS jsonb
LANGUAGE sql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT jsonb_build_object('protocolVersion', '0.3.0', 'name', t.name,
    'description', coalesce(t.spec->>'description', t.name), 'version', t.version::text,
    'capabilities', jsonb_build_object('streaming', false, 'pushNotifications', false, 'stateTransitionHistory', true),
    'defaultInputModes', '["application/json"]'::jsonb, 'defaultOutputModes', '["application/json"]'::jsonb,
    'skills', coalesce((SELECT jsonb_agg(jsonb_build_object('id', c, 'name', c, 'description', c,
                                                            'tags', jsonb_build_array(t.name)) ORDER BY c)
                        FROM unnest(t.capabilities) c), '[]'))
FROM swarm._agent_type_get(name) t
$$;
COMMENT ON FUNCTION swarm.agent_card IS 'the Agent2Agent (A2A) card of a type of agents';

-- swarm.agent_tools(name): the tools of a type as an MCP tool list. Errors: 42704.
CREATE FUNCTION swarm.agent_tools(name text) RETURNS jsonb
LANGUAGE sql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT jsonb_build_object('tools', coalesce(jsonb_agg(jsonb_strip_nulls(jsonb_build_object('name', x->'name',
    'description', x->'description', 'inputSchema', coalesce(x->'inputSchema', '{"type": "object"}'),
    'annotations', CASE WHEN x ? 'readOnly' THEN jsonb_build_object('readOnlyHint', x->'readOnly') END)) ORDER BY n), '[]'))
FROM swarm._agent_type_get(name) t, jsonb_array_elements(coalesce(t.spec->'tools', '[]')) WITH ORDINALITY e(x, n)
$$;
COMMENT ON FUNCTION swarm.agent_tools IS 'the tools of a type of agents as a Model Context Protocol (MCP) list';

-- Handlers of types with a job kind or a model; called as the agent's role.
CREATE FUNCTION swarm._agent_run_job(task jsonb, agent swarm.agent) RETURNS jsonb
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT jsonb_build_object('job', swarm.job_enqueue((agent).settings->>'job_kind', task, priority => (agent).priority,
    tags => jsonb_build_object('agent', (agent).id, 'task', (agent).task)))
$$;

-- The task is asked as a query of kind llm; its text, if it has one, else all of it.
CREATE FUNCTION swarm._agent_run_model(task jsonb, agent swarm.agent) RETURNS jsonb
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    settings jsonb := (agent).settings;
BEGIN
    RETURN jsonb_build_object('query', swarm.query_start('llm', coalesce(task->>'text', task#>>'{}'), settings->>'model',
        coalesce(settings->>'permission_mode', 'default'), metadata => jsonb_strip_nulls(jsonb_build_object(
            'system', settings->'prompt', 'tools', (SELECT jsonb_agg(t->'name') FROM jsonb_array_elements(settings->'tools') t),
            'budget_tokens', settings->'budget'->'max_tokens', 'budget_usd', settings->'budget'->'max_cost',
            'max_turns', settings->'budget'->'max_turns', 'agent', (agent).id::text, 'task', (agent).task::text))));
END $$;

-- ---------------------------------------------------------------------
-- Tasks: who does them
-- ---------------------------------------------------------------------

-- Wake an agent: a job that lets it work.
CREATE FUNCTION swarm._agent_job(owner oid, agent bigint, priority text, run_at timestamptz) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm__agent_job';

CREATE FUNCTION swarm._agent_wake(agent bigint) RETURNS void
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT swarm._agent_job(a.owner, a.id,
    coalesce((SELECT max(t.priority) FROM swarm._agent_task t WHERE t.agent = a.id AND t.state = 'queued'), 'medium')::text, swarm._now())
FROM swarm._agent a WHERE a.id = $1
$$;

-- An agent has more than it can do now: wake an idle one of the same type and
-- role, which takes a task that is not pinned, and wakes the next one if there
-- are more. One that was woken a moment ago is on its way. What a busy agent has
-- to escalate is done here, as its lock is taken.
CREATE FUNCTION swarm._agent_help(busy bigint) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    w record;
    peer bigint;
BEGIN
    IF EXISTS (SELECT FROM swarm._agent_message m WHERE m.from_agent = busy AND m.escalate_at <= swarm._now()) THEN
        PERFORM swarm._agent_escalate(busy);
    END IF;
    SELECT q.priority, q.capabilities, s.owner, s.type INTO w
    FROM swarm._agent_task q JOIN swarm._agent o ON o.id = q.agent JOIN swarm._agent_set s ON s.id = o.set
    WHERE q.agent = busy AND q.state = 'queued' AND NOT q.pinned AND q.run_at <= swarm._now() ORDER BY q.rank LIMIT 1;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT o.id INTO peer FROM swarm._agent_set s JOIN swarm._agent o ON o.set = s.id AND o.state = 'idle'
    WHERE s.owner = w.owner AND s.type = w.type AND s.capabilities @> w.capabilities AND o.id <> busy
      AND o.last_used < clock_timestamp() - interval '10 ms' LIMIT 1 FOR UPDATE OF o SKIP LOCKED;
    IF FOUND THEN
        UPDATE swarm._agent o SET last_used = clock_timestamp() WHERE o.id = peer;
        PERFORM swarm._agent_job(w.owner, peer, w.priority::text, swarm._now());
    END IF;
END $$;

-- Where a task stands: earlier is first. A priority is worth job_ageing.
CREATE FUNCTION swarm._agent_task_rank(priority swarm.priority, at timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT CASE WHEN priority = 'critical' THEN '2000-01-01 00:00:00+00'::timestamptz + (at - '2020-01-01 00:00:00+00'::timestamptz) / 1000000
       ELSE at - CASE priority WHEN 'high' THEN 2 WHEN 'medium' THEN 1 ELSE 0 END * current_setting('pg_swarm.job_ageing')::interval END
$$;

-- Do the agents of one role get tasks of another without being asked for by
-- number? A superuser's tasks are no business of everybody's handlers.
CREATE FUNCTION swarm._agent_shares(caller oid, owner oid) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT caller = owner OR (pg_has_role(caller, owner, 'USAGE') AND NOT (SELECT r.rolsuper FROM pg_roles r WHERE r.oid = caller))
$$;

-- Agents that the caller may give a task to, the best first, with what makes
-- them so. Looks at `lim` idle and `lim` busy ones of each set of agents that
-- has the capabilities, so the time does not depend on the number of agents.
-- Planning it anew costs four times what it takes; a plan that is kept must not
-- be one for tables that were empty.
CREATE FUNCTION swarm._agent_find(caller oid, capabilities text[], query text, lim int, only_type text = NULL, for_key text = NULL)
RETURNS TABLE (agent_id bigint, name text, type text, state text, score float8, match float8, load int, success float8,
               latency_ms float8, affinity float8, meaning float8)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE ROWS 10 SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    wanted text[] := coalesce(capabilities, '{}');
    w_match float8 := current_setting('pg_swarm.agent_weight_match');
    w_load float8 := current_setting('pg_swarm.agent_weight_load');
    w_success float8 := current_setting('pg_swarm.agent_weight_success');
    w_latency float8 := current_setting('pg_swarm.agent_weight_latency');
    w_affinity float8 := current_setting('pg_swarm.agent_weight_affinity');
    w_meaning float8 := CASE WHEN query IS NULL THEN 0 ELSE current_setting('pg_swarm.agent_weight_meaning')::float8 END;
    asked real[] := CASE WHEN query IS NOT NULL THEN swarm.embed(query) END;
BEGIN
    IF lim IS NULL OR lim < 1 OR lim > 1000 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'lim must be between 1 and 1000';
    END IF;
    RETURN QUERY
    WITH sets AS MATERIALIZED (
        SELECT s.id, CASE WHEN cardinality(s.capabilities) = 0 THEN 1 ELSE cardinality(wanted)::float8 / cardinality(s.capabilities) END AS match,
               CASE WHEN asked IS NULL THEN 0
                    ELSE greatest(0, 1 - swarm.cosine_distance(asked, y.embedding)) END::float8 AS meaning
        FROM swarm._agent_set s JOIN swarm._agent_type y ON y.name = s.type
        WHERE s.capabilities @> wanted AND (only_type IS NULL OR s.type = only_type)
          AND swarm._agent_shares(caller, s.owner::oid)),
    candidates AS (
        SELECT a.*, sets.match, sets.meaning
        FROM sets, LATERAL ((SELECT * FROM swarm._agent i WHERE i.set = sets.id AND i.state = 'idle' ORDER BY i.last_used LIMIT lim)
                  UNION ALL (SELECT * FROM swarm._agent b WHERE b.set = sets.id AND b.state = 'busy' AND NOT b.pause_wanted
                             ORDER BY b.last_used LIMIT lim)) a),
    scored AS (
        SELECT c.*, (SELECT count(*) FROM (SELECT FROM swarm._agent_task q WHERE q.agent = c.id AND q.state = 'queued' LIMIT 100) l)::int
                    + (c.state = 'busy')::int AS load,
               (c.done + 1)::float8 / (c.done + c.failed + 1) AS success,
               (for_key IS NOT NULL AND c.affinity IS NOT DISTINCT FROM for_key)::int::float8 AS near
        FROM candidates c)
    SELECT s.id, s.name, s.type, s.state,
           w_match * s.match + w_load / (1 + s.load) + w_success * s.success + w_latency / (1 + coalesce(s.latency_ms, 0) / 1000)
           + w_affinity * s.near + w_meaning * s.meaning,
           s.match, s.load, s.success, s.latency_ms, s.near, s.meaning
    FROM scored s ORDER BY 5 DESC, s.last_used, s.id LIMIT lim;
END $$;

-- A task for an agent: it is his from now on.
CREATE FUNCTION swarm._agent_assign(task bigint, to_agent bigint) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t swarm._agent_task;
BEGIN
    UPDATE swarm._agent_task o SET agent = to_agent, assigned_to = to_agent, owner = (SELECT a.owner FROM swarm._agent a WHERE a.id = to_agent)
    WHERE o.id = _agent_assign.task RETURNING * INTO t;
    PERFORM swarm._agent_job(t.owner, to_agent, t.priority::text, t.run_at);
END $$;

-- Tasks that wait for an agent: those that this one can do become its.
CREATE FUNCTION swarm._agent_adopt(agents bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    w record;
    best bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM swarm._agent_task t WHERE t.agent IS NULL AND t.state = 'queued') THEN
        RETURN;
    END IF;
    FOR w IN SELECT t.* FROM swarm._agent_task t WHERE t.agent IS NULL AND t.state = 'queued' ORDER BY t.rank FOR UPDATE SKIP LOCKED LOOP
        SELECT a.id INTO best FROM swarm._agent a JOIN swarm._agent_set s ON s.id = a.set
        WHERE a.id = ANY (agents) AND s.capabilities @> w.capabilities AND (w.type IS NULL OR w.type = s.type)
          AND swarm._agent_shares(w.submitter::oid, s.owner::oid)
        ORDER BY (SELECT count(*) FROM swarm._agent_task q WHERE q.agent = a.id AND q.state = 'queued'), a.id LIMIT 1;
        IF FOUND THEN
            PERFORM swarm._agent_assign(w.id, best);
        END IF;
    END LOOP;
END $$;

-- What an agent that works no more leaves: pinned tasks wait for it, others go
-- to the best of the rest, or wait for one.
CREATE FUNCTION swarm._agent_disperse(a swarm._agent) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    w record;
    other bigint;
BEGIN
    FOR w IN SELECT t.* FROM swarm._agent_task t WHERE t.agent = a.id AND t.state = 'queued' AND NOT t.pinned
             ORDER BY t.rank FOR UPDATE SKIP LOCKED LOOP
        SELECT f.agent_id INTO other FROM swarm._agent_find(w.submitter, w.capabilities, NULL, 4, w.type, w.affinity) f
        WHERE f.agent_id <> a.id LIMIT 1;
        IF FOUND THEN
            PERFORM swarm._agent_assign(w.id, other);
        ELSE
            UPDATE swarm._agent_task t SET agent = NULL WHERE t.id = w.id;
        END IF;
    END LOOP;
END $$;

CREATE FUNCTION swarm._task_submit(caller oid, task jsonb, parent bigint = NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    t swarm._agent_task;
    a swarm._agent;
    y swarm._agent_type;
    parts jsonb := task->'parts';
    part jsonb;
    way text := coalesce(task->>'strategy', 'rank');
    veto text;
BEGIN
    PERFORM swarm._agent_check(task, 'task');
    veto := swarm._hook_run(caller, 'task_submit', 'before', task);
    IF veto IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'external_routine_exception', MESSAGE = format('the task was refused: %s', veto);
    END IF;
    t.id := nextval('swarm._agent_task_id_seq');
    t.submitter := caller;
    t.owner := caller;
    t.priority := coalesce(task->>'priority', 'medium');
    t.run_at := greatest(coalesce((task->>'run_at')::timestamptz, swarm._now()), swarm._now());
    t.rank := swarm._agent_task_rank(t.priority, t.run_at);
    t.deadline := (task->>'deadline')::timestamptz;
    t.timeout := CASE WHEN task ? 'timeout' THEN (task->>'timeout')::interval ELSE '5 min' END;
    IF t.timeout <= '0' OR t.timeout > '24 days' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'invalid task: $.timeout must be between 0 and 24 days';
    ELSIF NOT isfinite(t.run_at) OR NOT isfinite(t.deadline) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('invalid task: $.%s must be finite', CASE WHEN isfinite(t.run_at) THEN 'deadline' ELSE 'run_at' END);
    END IF;
    t.capabilities := swarm._sorted(swarm._json_list(task->'capabilities'));
    t.type := task->>'type';
    t.payload := coalesce(task->'task', 'null');
    t.affinity := task->>'affinity';
    t.protocol := task->>'protocol';
    t.parent := parent;
    t.created_at := swarm._now();
    t.attempts := 0;
    t.pinned := task ? 'agent';
    IF task ? 'agent' THEN
        SELECT * INTO a FROM swarm._agent o
        WHERE CASE jsonb_typeof(task->'agent') WHEN 'number' THEN o.id = (task->>'agent')::bigint AND pg_has_role(caller, o.owner::oid, 'USAGE')
              ELSE o.name = task->>'agent' AND o.state NOT IN ('stopped', 'failed') AND swarm._agent_shares(caller, o.owner::oid) END
        ORDER BY (o.owner = caller) DESC, o.id LIMIT 1;
        IF NOT FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('agent %s does not exist', task->'agent');
        ELSIF a.state IN ('stopped', 'stopping') THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state', MESSAGE = format('agent %s is %s', a.id, a.state);
        END IF;
    ELSIF parts IS NULL OR task ? 'task' THEN
        IF way = 'adaptive' THEN
            way := swarm._strategy_choose();
            t.strategy := way;
        END IF;
        SELECT o.* INTO a FROM swarm._agent_find(caller, t.capabilities, task->>'query', CASE way WHEN 'rank' THEN 4 ELSE 16 END, t.type, t.affinity) f
        JOIN swarm._agent o ON o.id = f.agent_id
        ORDER BY CASE way WHEN 'least-loaded' THEN f.load::float8 WHEN 'round-robin' THEN extract(epoch FROM o.last_used) ELSE -f.score END, o.id
        LIMIT 1;
    END IF;
    SELECT * INTO y FROM swarm._agent_type o WHERE o.name = a.type;
    t.max_attempts := coalesce((task->>'max_attempts')::int, (y.spec->>'max_attempts')::int,
        (SELECT p.max_attempts FROM swarm._retry_policy p WHERE p.target = 'agent:' || y.name), 3);
    t.protocol := coalesce(t.protocol, y.spec->>'protocol');
    t.agent := a.id;
    t.assigned_to := a.id;
    t.owner := coalesce(a.owner, caller::regrole);
    t.state := CASE WHEN jsonb_array_length(coalesce(parts, '[]')) > 0 THEN 'waiting' ELSE 'queued' END;
    INSERT INTO swarm._agent_task SELECT t.*;
    FOR part IN SELECT * FROM jsonb_array_elements(coalesce(parts, '[]')) LOOP
        PERFORM swarm._task_submit(caller, jsonb_strip_nulls(jsonb_build_object('capabilities', task->'capabilities', 'priority', task->'priority',
            'type', task->'type')) || part, t.id);
    END LOOP;
    IF a.id IS NOT NULL AND t.state = 'queued' THEN
        IF way = 'round-robin' THEN
            UPDATE swarm._agent o SET last_used = clock_timestamp() WHERE o.id = a.id;
        END IF;
        PERFORM swarm._agent_job(a.owner, a.id, t.priority::text, t.run_at);
    END IF;
    PERFORM swarm._hook_run(caller, 'task_submit', 'after', task || jsonb_build_object('id', t.id, 'agent', a.id));
    RETURN t.id;
END $$;

-- swarm.task_submit(task): a task for the best agent, or for the one it names.
-- Without one that could do it, it waits until one is spawned.
-- Errors: 22023 with the path of what is wrong; 42704 the named agent; 55000
-- it is stopped; 38000 a hook has refused it.
CREATE FUNCTION swarm.task_submit(task jsonb) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_task_submit';
COMMENT ON FUNCTION swarm.task_submit IS 'give a task to the best agent, or to one by name; done after this transaction commits';

CREATE FUNCTION swarm._task_get(caller oid, id bigint) RETURNS swarm._agent_task
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t swarm._agent_task;
BEGIN
    SELECT * INTO t FROM swarm._agent_task o WHERE o.id = _task_get.id;
    IF t.id IS NULL OR NOT (pg_has_role(caller, t.owner::oid, 'USAGE') OR pg_has_role(caller, t.submitter::oid, 'USAGE')) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('task %s does not exist', coalesce(id::text, 'NULL'));
    END IF;
    RETURN t;
END $$;

CREATE FUNCTION swarm._task_wait(caller oid, task bigint, timeout interval)
RETURNS TABLE (id bigint, state text, agent_id bigint, attempts int, result jsonb, error text, started_at timestamptz, finished_at timestamptz)
LANGUAGE sql VOLATILE PARALLEL UNSAFE ROWS 1 SET search_path = pg_catalog, pg_temp AS $$
SELECT t.id, t.state, t.agent, t.attempts, t.result, t.error, t.started_at, t.finished_at FROM swarm._task_get(caller, task) t
$$;

-- swarm.task_wait(task, timeout): wait until a task has ended or the time is
-- over, and return what it is then.
CREATE FUNCTION swarm.task_wait(task bigint, timeout interval = '1 min')
RETURNS TABLE (id bigint, state text, agent_id bigint, attempts int, result jsonb, error text, started_at timestamptz, finished_at timestamptz)
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 1 AS 'MODULE_PATHNAME', 'swarm_task_wait';
COMMENT ON FUNCTION swarm.task_wait IS 'wait until a task is done, failed or cancelled, or the timeout is over, and return its status';

CREATE FUNCTION swarm._task_cancel(caller oid, task bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t swarm._agent_task := swarm._task_get(caller, task);
    part bigint;
BEGIN
    UPDATE swarm._agent_task o SET state = 'cancelled', finished_at = swarm._now(), error = 'cancelled'
    WHERE o.id = t.id AND o.state IN ('queued', 'waiting');
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    FOR part IN
        WITH RECURSIVE below AS (
            SELECT o.id FROM swarm._agent_task o WHERE o.parent = t.id
            UNION ALL SELECT o.id FROM below b JOIN swarm._agent_task o ON o.parent = b.id)
        UPDATE swarm._agent_task o SET state = 'cancelled', finished_at = swarm._now(), error = 'cancelled'
        FROM below b WHERE o.id = b.id AND o.state IN ('queued', 'waiting') RETURNING o.id LOOP
        PERFORM swarm._task_ended(part);
    END LOOP;
    PERFORM swarm._task_ended(t.id);
    PERFORM swarm._agent_join(t.parent);
    RETURN true;
END $$;

CREATE FUNCTION swarm.task_cancel(task bigint) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_task_cancel';
COMMENT ON FUNCTION swarm.task_cancel IS 'cancel a task that has not begun; false if it has';

CREATE FUNCTION swarm._task_ended(task bigint) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm__task_ended';

-- A part has ended: when it was the last one, so has the whole, or its own
-- work begins, with the results of the parts.
CREATE FUNCTION swarm._agent_join(whole bigint) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t swarm._agent_task;
    open int;
    bad text;
    results jsonb;
BEGIN
    IF whole IS NULL THEN
        RETURN;
    END IF;
    SELECT * INTO t FROM swarm._agent_task o WHERE o.id = whole FOR UPDATE;
    IF t.state IS DISTINCT FROM 'waiting' THEN
        RETURN;
    END IF;
    SELECT count(*) FILTER (WHERE p.state IN ('queued', 'running', 'waiting')),
           min(format('part %s: %s', p.id, p.error)) FILTER (WHERE p.state IN ('failed', 'cancelled')),
           jsonb_agg(p.result ORDER BY p.id)
    INTO open, bad, results FROM swarm._agent_task p WHERE p.parent = whole;
    IF open > 0 THEN
        RETURN;
    ELSIF bad IS NOT NULL THEN
        UPDATE swarm._agent_task o SET state = 'failed', error = bad, finished_at = swarm._now() WHERE o.id = whole;
    ELSIF t.payload <> 'null' THEN
        UPDATE swarm._agent_task o SET state = 'queued',
            payload = CASE jsonb_typeof(t.payload) WHEN 'object' THEN t.payload ELSE jsonb_build_object('task', t.payload) END
                      || jsonb_build_object('parts', results)
        WHERE o.id = whole;
        IF t.agent IS NOT NULL THEN
            PERFORM swarm._agent_job(t.owner, t.agent, t.priority::text, swarm._now());
        ELSE
            -- there was nobody for it when it was submitted
            SELECT f.agent_id INTO t.agent FROM swarm._agent_find(t.submitter, t.capabilities, NULL, 4, t.type, t.affinity) f LIMIT 1;
            IF FOUND THEN
                PERFORM swarm._agent_assign(whole, t.agent);
            END IF;
        END IF;
        RETURN;
    ELSE
        UPDATE swarm._agent_task o SET state = 'done', result = results, finished_at = swarm._now() WHERE o.id = whole;
    END IF;
    PERFORM swarm._task_ended(whole);
    PERFORM swarm._agent_join(t.parent);
END $$;

-- ---------------------------------------------------------------------
-- An agent at work: called by agent_work.c
-- ---------------------------------------------------------------------

CREATE FUNCTION swarm._agent_has_work(agent bigint) RETURNS boolean
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT EXISTS (SELECT FROM swarm._agent a, swarm._agent_task t
    WHERE a.id = $1 AND a.state = 'idle' AND t.agent = $1 AND t.state = 'queued' AND t.run_at <= swarm._now())
$$;

-- Its process has died with a task: the task goes back, who depends on the
-- agent is told, and the agent works again, unless this happens too often.
CREATE FUNCTION swarm._agent_recover(a swarm._agent) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t swarm._agent_task;
    state_now text := swarm._agent_go(a, 'lose', 'the process that worked for it has died');
    d bigint;
BEGIN
    SELECT * INTO t FROM swarm._agent_task o WHERE o.id = a.task AND o.state = 'running' FOR UPDATE;
    a.state := state_now;
    a.lost := a.lost + 1;
    a.lost_in_a_row := a.lost_in_a_row + 1;
    UPDATE swarm._agent o SET lost = a.lost, lost_in_a_row = a.lost_in_a_row, task = NULL WHERE o.id = a.id;
    IF t.id IS NOT NULL AND t.attempts >= t.max_attempts THEN
        UPDATE swarm._agent_task o SET state = 'failed', finished_at = swarm._now(), error = 'the process that ran it has died'
        WHERE o.id = t.id;
        PERFORM swarm._task_ended(t.id);
        PERFORM swarm._agent_join(t.parent);
    ELSIF t.id IS NOT NULL THEN
        UPDATE swarm._agent_task o SET state = 'queued', error = 'the process that ran it has died' WHERE o.id = t.id;
    END IF;
    FOR d IN SELECT o.id FROM swarm._agent o WHERE o.depends_on @> ARRAY[a.id] AND o.state <> 'stopped' LOOP
        PERFORM swarm._agent_tell(a.id, d, 'agent-lost', jsonb_build_object('agent', a.id, 'name', a.name, 'task', t.id));
    END LOOP;
    PERFORM swarm._track_completion(a.owner, a.id::text, 'lost', NULL, 'the process that worked for it has died');
    IF state_now = 'lost' THEN
        state_now := swarm._agent_go(a, CASE WHEN a.lost_in_a_row < 10 THEN 'recover' ELSE 'error' END,
                                     CASE WHEN a.lost_in_a_row >= 10 THEN 'ten processes in a row have died with it' END);
    END IF;
    IF state_now <> 'idle' THEN
        PERFORM swarm._agent_disperse(a);
    END IF;
    RETURN state_now;
END $$;

-- The next task of an agent, marked as running; task NULL: none. `caller` is
-- the role of the process, which must be the agent's.
CREATE FUNCTION swarm._agent_take(caller oid, agent_id bigint, OUT task bigint, OUT proc oid, OUT payload jsonb,
    OUT agent swarm.agent, OUT timeout_us bigint, OUT read_only boolean)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a swarm._agent;
    s swarm._agent_set;
    t swarm._agent_task;
    y swarm._agent_type;
    late bigint;
    peer bigint;
    clock timestamptz := swarm._now();
    today date := (clock AT TIME ZONE 'UTC')::date;
BEGIN
    SELECT * INTO a FROM swarm._agent o WHERE o.id = agent_id AND o.owner = caller FOR UPDATE;
    IF a.id IS NULL THEN
        RETURN;
    END IF;
    IF a.state IN ('busy', 'stopping') THEN
        a.state := swarm._agent_recover(a);
        a.lost := a.lost + 1;
        a.task := NULL;
    END IF;
    IF EXISTS (SELECT FROM swarm._agent_message m WHERE m.from_agent = a.id AND m.escalate_at <= clock) THEN
        PERFORM swarm._agent_escalate(a.id);
    END IF;
    IF a.state <> 'idle' THEN
        RETURN;
    END IF;
    SELECT * INTO y FROM swarm._agent_type o WHERE o.name = a.type;
    SELECT * INTO s FROM swarm._agent_set o WHERE o.id = a.set;
    -- too late: nobody wants it any more
    FOR late IN UPDATE swarm._agent_task o SET state = 'failed', error = 'its deadline was over before it began', finished_at = swarm._now()
                WHERE o.agent = a.id AND o.state = 'queued' AND o.deadline IS NOT NULL AND o.deadline < clock RETURNING o.id LOOP
        PERFORM swarm._task_ended(late);
        PERFORM swarm._agent_join((SELECT o.parent FROM swarm._agent_task o WHERE o.id = late));
    END LOOP;
    SELECT * INTO t FROM swarm._agent_task o WHERE o.agent = a.id AND o.state = 'queued' AND o.run_at <= clock
    ORDER BY o.rank, o.id LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        -- help a busy one of the same type and role
        FOR peer IN SELECT o.id FROM swarm._agent_set os JOIN swarm._agent o ON o.set = os.id AND o.state = 'busy',
                LATERAL (SELECT q.rank FROM swarm._agent_task q WHERE q.agent = o.id AND q.state = 'queued' AND NOT q.pinned AND q.run_at <= clock
                         AND s.capabilities @> q.capabilities ORDER BY q.rank LIMIT 1) f
            WHERE os.owner = a.owner AND os.type = a.type AND o.id <> a.id ORDER BY f.rank LOOP
            SELECT * INTO t FROM swarm._agent_task q WHERE q.agent = peer AND q.state = 'queued' AND NOT q.pinned AND q.run_at <= clock
                AND s.capabilities @> q.capabilities ORDER BY q.rank, q.id LIMIT 1 FOR UPDATE SKIP LOCKED;
            EXIT WHEN FOUND;
        END LOOP;
        IF t.id IS NULL THEN
            RETURN;
        END IF;
        UPDATE swarm._agent o SET stolen = o.stolen + 1 WHERE o.id = a.id;
        INSERT INTO swarm._agent_event (agent, task, event, detail, at)
        VALUES (a.id, t.id, 'steal', format('from agent %s', t.agent), swarm._now());
    END IF;
    UPDATE swarm._agent_task o SET state = 'running', agent = a.id, attempts = o.attempts + 1, started_at = swarm._now() WHERE o.id = t.id;
    UPDATE swarm._agent o SET task = t.id, last_used = clock_timestamp(), affinity = t.affinity, day = today,
        day_tasks = CASE WHEN o.day = today THEN o.day_tasks ELSE 0 END + 1, day_ms = CASE WHEN o.day = today THEN o.day_ms ELSE 0 END
    WHERE o.id = a.id;
    a.task := t.id;
    PERFORM swarm._agent_go(a, 'take');
    PERFORM swarm._agent_help(t.agent);
    task := t.id;
    proc := swarm._agent_handler(CASE WHEN t.message IS NULL THEN y.handler ELSE y.spec->'hooks'->>'message' END);
    payload := t.payload;
    agent := ROW(a.id, a.name, a.type, s.capabilities, a.priority, a.metadata, y.spec, t.id, t.attempts + 1, NULL)::swarm.agent;
    timeout_us := coalesce(extract(epoch FROM least(t.timeout, (y.spec->'budget'->>'max_task_time')::interval,
                                                    CASE WHEN t.deadline IS NOT NULL THEN least(greatest(t.deadline - swarm._now(), '1 ms'), '10000 days') END))
                           * 1000000, 0);
    -- a model's tools are held to the mode by module llm, and query_start() writes
    read_only := coalesce(y.spec->>'permission_mode' = 'plan', false) AND NOT y.spec ? 'model';
END $$;

-- What comes before a task; why it must not begin, or NULL. code BREAK: its
-- type is not asked at the moment.
CREATE FUNCTION swarm._agent_begin(agent_id bigint, task_id bigint, INOUT agent swarm.agent, OUT veto text, OUT code text)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a swarm._agent;
    t swarm._agent_task;
    spec jsonb;
    closed_at timestamptz;
BEGIN
    SELECT * INTO a FROM swarm._agent o WHERE o.id = agent_id;
    SELECT * INTO t FROM swarm._agent_task o WHERE o.id = task_id;
    closed_at := swarm._breaker_closed_at('agent:' || a.type);
    IF closed_at IS NOT NULL THEN
        veto := format('the circuit breaker of agent:%s is open', a.type);
        code := 'BREAK';
        RETURN;
    END IF;
    code := '38000';
    SELECT y.spec INTO spec FROM swarm._agent_type y WHERE y.name = a.type;
    veto := coalesce(CASE WHEN t.message IS NOT NULL AND NOT coalesce(spec->'hooks' ? 'message', false) THEN 'its type has no hook for messages any more' END,
                     CASE WHEN spec ? 'budget' THEN swarm._agent_budget(a, spec->'budget') END,
                     swarm._hook_run(a.owner, 'task', 'before', jsonb_build_object('agent', a.id, 'type', a.type, 'id', t.id, 'task', t.payload)),
                     CASE WHEN spec->'hooks' ? 'before_task' THEN swarm._agent_type_hook(a, t, 'before_task', spec->'hooks'->>'before_task', '{}') END);
    IF veto IS NULL THEN
        SELECT p.veto, p.restored INTO veto, agent.restored FROM swarm._protocol_phase(a, t, 'before', NULL) p;
    END IF;
END $$;

-- What the budget of its type allows an agent a day (UTC), this task included:
-- why it must not begin, or NULL. What models cost is held by module llm.
CREATE FUNCTION swarm._agent_budget(a swarm._agent, budget jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT CASE WHEN a.day_tasks > (budget->>'max_tasks')::int
            THEN format('the budget of %s tasks a day is used up', budget->>'max_tasks')
            WHEN a.day_ms >= extract(epoch FROM (budget->>'max_time')::interval) * 1000
            THEN format('the budget of %s a day is used up', budget->>'max_time') END
$$;

-- A function that the spec of its type names, called as the agent's role. What
-- is wrong with it is an event, and harms nobody; before a task it can refuse.
CREATE FUNCTION swarm._agent_type_hook(a swarm._agent, t swarm._agent_task, hook text, name text, more jsonb) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    proc oid := to_regprocedure(name || '(pg_catalog.jsonb)');
    r record;
BEGIN
    IF proc IS NULL THEN
        INSERT INTO swarm._agent_event (agent, task, event, detail, at)
        VALUES (a.id, t.id, 'hook', format('%s: function %s(jsonb) does not exist', hook, name), swarm._now());
        RETURN NULL;
    END IF;
    SELECT * INTO r FROM swarm._agent_call(a.owner, proc,
        jsonb_build_object('agent', a.id, 'name', a.name, 'type', a.type, 'id', t.id, 'task', t.payload) || more, 10000);
    IF r.error IS NOT NULL THEN
        INSERT INTO swarm._agent_event (agent, task, event, detail, at)
        VALUES (a.id, t.id, 'hook', format('%s: %s', hook, r.error), swarm._now());
        RETURN NULL;
    END IF;
    RETURN CASE WHEN hook = 'before_task' THEN r.result->>'veto' END;
END $$;

-- The end of a task, or of an attempt of it. Errors: 40001 done, but taken away.
CREATE FUNCTION swarm._agent_done(agent_id bigint, task_id bigint, result jsonb, error text, state text, us bigint) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    a swarm._agent;
    t swarm._agent_task;
    ended boolean := true;
    verdict record;
    after_task text;
    ms float8 := us / 1000.0;
BEGIN
    SELECT * INTO a FROM swarm._agent o WHERE o.id = agent_id FOR UPDATE;
    SELECT * INTO t FROM swarm._agent_task o WHERE o.id = task_id FOR UPDATE;
    IF a.task IS DISTINCT FROM task_id OR t.state IS DISTINCT FROM 'running' OR t.agent IS DISTINCT FROM agent_id
       OR a.state NOT IN ('busy', 'stopping') THEN
        IF error IS NULL THEN
            -- somebody else does it: what the handler has written must not count
            RAISE EXCEPTION USING ERRCODE = 'serialization_failure', MESSAGE = 'the task was taken away';
        END IF;
        RETURN;
    END IF;
    IF error IS NULL THEN
        UPDATE swarm._agent_task o SET state = 'done', result = _agent_done.result, error = NULL, finished_at = swarm._now() WHERE o.id = task_id;
    ELSE
        IF state = 'BREAK' THEN
            -- not its fault, and it costs no attempt: to the fallback, or later
            SELECT true AS again, least(p.cooldown, greatest(b.opened_at + p.cooldown - swarm._now(), '10 ms')) AS wait, p.fallback INTO verdict
            FROM swarm._policy('agent:' || a.type) p LEFT JOIN swarm._circuit_breaker b ON b.target = p.target;
            IF verdict.fallback IS NOT NULL THEN
                verdict.wait := '0';
            END IF;
            UPDATE swarm._agent_task o SET attempts = o.attempts - 1 WHERE o.id = task_id;
        ELSE
            SELECT * INTO verdict FROM swarm._retry_decide(a.type, state, t.attempts, t.max_attempts);
        END IF;
        ended := NOT verdict.again;
        UPDATE swarm._agent_task o SET error = _agent_done.error,
            state = CASE WHEN ended THEN 'failed' ELSE 'queued' END,
            run_at = CASE WHEN ended THEN o.run_at ELSE swarm._now() + verdict.wait END,
            finished_at = CASE WHEN ended THEN swarm._now() END,
            type = coalesce(verdict.fallback, o.type), pinned = o.pinned AND verdict.fallback IS NULL
        WHERE o.id = task_id;
    END IF;
    UPDATE swarm._agent o SET task = NULL, pause_wanted = false, lost_in_a_row = 0, done = o.done + (error IS NULL)::int, failed = o.failed + (error IS NOT NULL AND state <> 'BREAK')::int,
        busy_ms = o.busy_ms + ms, day_ms = o.day_ms + ms, latency_ms = coalesce(o.latency_ms * 0.8 + ms * 0.2, ms)
    WHERE o.id = agent_id;
    IF state IS DISTINCT FROM 'BREAK' AND state IS DISTINCT FROM '38000' THEN
        PERFORM swarm._breaker_note('agent:' || a.type, error IS NULL, error);
    END IF;
    IF t.strategy IS NOT NULL THEN
        PERFORM swarm._strategy_note(t.strategy, CASE WHEN error IS NULL THEN 1 / (1 + ms / 1000) ELSE 0 END);
    END IF;
    IF state IS DISTINCT FROM 'BREAK' AND EXISTS (SELECT FROM swarm._topology_member m WHERE m.agent = agent_id) THEN
        PERFORM swarm._topology_note(a.id, 1, extract(epoch FROM swarm._now() - t.run_at)::float8 * 1000, (error IS NOT NULL)::int);
    END IF;
    PERFORM swarm._agent_go(a, CASE WHEN a.pause_wanted AND a.state = 'busy' THEN 'park' ELSE 'done' END, error);
    -- this process has done it
    PERFORM swarm._track_execution(a.owner, a.id::text);
    IF ended THEN
        PERFORM swarm._protocol_phase(a, t, 'after', jsonb_build_object('result', result, 'error', error, 'ms', ms));
        PERFORM swarm._task_ended(task_id);
        PERFORM swarm._agent_join(t.parent);
        IF error IS NOT NULL AND t.payload ? 'handoff' AND jsonb_typeof(t.payload->'from') = 'number'
           AND EXISTS (SELECT FROM swarm._agent_event v WHERE v.agent = (t.payload->>'from')::bigint AND v.task = t.id AND v.event = 'handoff') THEN
            -- who handed it over has to know
            PERFORM swarm._agent_tell(a.id, (t.payload->>'from')::bigint, 'escalate',
                jsonb_build_object('task', t.id, 'error', error, 'handoff', t.payload->'handoff'));
        END IF;
        PERFORM swarm._track_completion(a.owner, a.id::text, CASE WHEN error IS NULL THEN 'success' ELSE 'error' END,
                                        left(result::text, 1000), error);
    ELSIF verdict.fallback IS NOT NULL OR a.state = 'stopping' THEN
        -- another type, or another agent, shall try
        PERFORM swarm._agent_disperse(a);
    ELSE
        PERFORM swarm._agent_job(a.owner, a.id, t.priority::text, swarm._now() + verdict.wait);
    END IF;
    IF a.state = 'stopping' THEN
        PERFORM swarm._agent_disperse(a);
    END IF;
    SELECT y.spec->'hooks'->>'after_task' INTO after_task FROM swarm._agent_type y WHERE y.name = a.type;
    IF after_task IS NOT NULL THEN
        PERFORM swarm._agent_type_hook(a, t, 'after_task', after_task, jsonb_build_object('result', result, 'error', error, 'ms', ms));
    END IF;
    PERFORM swarm._hook_run(a.owner, 'task', 'after', jsonb_build_object('agent', a.id, 'type', a.type, 'id', t.id, 'task', t.payload,
        'result', result, 'error', error, 'ms', ms));
    IF task_id % 100 = 0 THEN
        PERFORM swarm._agent_purge();
    END IF;
END $$;

-- What is older than 7 days goes, a thousand rows at a time.
CREATE FUNCTION swarm._agent_purge() RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM swarm._agent_event WHERE id IN (SELECT id FROM swarm._agent_event WHERE at < swarm._now() - '7 days'::interval
    ORDER BY at LIMIT 1000 FOR UPDATE SKIP LOCKED);
    DELETE FROM swarm._protocol_run WHERE id IN (SELECT id FROM swarm._protocol_run WHERE at < swarm._now() - '7 days'::interval
    ORDER BY at LIMIT 1000 FOR UPDATE SKIP LOCKED);
    DELETE FROM swarm._agent_task WHERE id IN (SELECT id FROM swarm._agent_task WHERE finished_at < swarm._now() - '7 days'::interval
    ORDER BY finished_at LIMIT 1000 FOR UPDATE SKIP LOCKED);
    DELETE FROM swarm._agent_message WHERE id IN (SELECT id FROM swarm._agent_message WHERE sent_at < swarm._now() - '7 days'::interval
    ORDER BY sent_at LIMIT 1000 FOR UPDATE SKIP LOCKED);
END $$;

-- Agents that have ended go with the history of jobs, with what hangs on them;
-- not those for which a task waits. So do the calls that spawned them, and sets
-- that no agent is in any more.
CREATE FUNCTION swarm._agent_prune(before timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    gone bigint[];
    linked int[];
    empty int[];
BEGIN
    PERFORM swarm._agent_purge();
    DELETE FROM swarm._spawn_batch b WHERE b.started_at < before;
    WITH ended AS (
        DELETE FROM swarm._agent a WHERE a.id IN (
            SELECT o.id FROM swarm._agent o
            WHERE o.state IN ('stopped', 'failed') AND o.since < before
              AND NOT EXISTS (SELECT FROM swarm._agent_task t WHERE t.agent = o.id AND t.finished_at IS NULL)
            FOR UPDATE SKIP LOCKED)
        RETURNING a.id)
    SELECT array_agg(id) INTO gone FROM ended;
    -- one that somebody is just spawning agents of has a lock on its row; who
    -- did so before we had ours is seen by the second statement
    SELECT array_agg(id) INTO empty FROM (SELECT s.id FROM swarm._agent_set s
        WHERE NOT EXISTS (SELECT FROM swarm._agent a WHERE a.set = s.id) FOR UPDATE SKIP LOCKED) l;
    DELETE FROM swarm._agent_set s WHERE s.id = ANY (empty) AND NOT EXISTS (SELECT FROM swarm._agent a WHERE a.set = s.id);
    IF gone IS NULL THEN
        RETURN;
    END IF;
    DELETE FROM swarm._agent_event e WHERE e.agent = ANY (gone);
    DELETE FROM swarm._protocol_run r WHERE r.agent = ANY (gone);
    WITH unlinked AS (DELETE FROM swarm._topology_member m WHERE m.agent = ANY (gone) RETURNING m.topology)
    SELECT array_agg(DISTINCT topology) INTO linked FROM unlinked;
    -- one that is just linked anew has a lock on its row
    SELECT array_agg(id) INTO linked FROM (SELECT t.id FROM swarm._topology t WHERE t.id = ANY (linked) FOR UPDATE SKIP LOCKED) l;
    DELETE FROM swarm._topology t WHERE t.id = ANY (linked) AND NOT EXISTS (SELECT FROM swarm._topology_member m WHERE m.topology = t.id);
END $$;

-- Everybody may execute it, only a runner can.
CREATE PROCEDURE swarm._agent_work(job swarm.job)
LANGUAGE c AS 'MODULE_PATHNAME', 'swarm_agent_work';
INSERT INTO swarm._handler (id, kind, owner, handler) VALUES (6, 'swarm_agent', 10::oid::regrole, 'swarm._agent_work');

-- ---------------------------------------------------------------------
-- Spawning
-- ---------------------------------------------------------------------

-- Have runners take agents on, each as its role; agent_start.c.
CREATE FUNCTION swarm._agent_start(roles oid[], procs oid[], batch_size int, max_concurrency int, timeout_ms int, adaptive boolean,
    OUT n int, OUT error text, OUT ms float8, OUT batch int, OUT pid int, OUT batch_size_after int)
RETURNS SETOF record LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm__agent_start';

-- The id of a set of agents; makes it. It stays until this transaction ends.
CREATE FUNCTION swarm._agent_set_of(of_owner oid, of_type text, of_capabilities text[]) RETURNS int
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_id int;
BEGIN
    LOOP
        SELECT s.id INTO found_id FROM swarm._agent_set s WHERE s.type = of_type AND s.owner = of_owner AND s.capabilities = of_capabilities
        FOR KEY SHARE;
        IF FOUND THEN
            RETURN found_id;
        END IF;
        INSERT INTO swarm._agent_set (owner, type, capabilities) VALUES (of_owner, of_type, of_capabilities)
        ON CONFLICT DO NOTHING RETURNING id INTO found_id;
        IF found_id IS NOT NULL THEN
            RETURN found_id;
        END IF;
    END LOOP;
END $$;

CREATE FUNCTION swarm._agent_spawn(caller oid, agents jsonb, batch_size int, max_concurrency int, mode text, topology text, timeout interval)
RETURNS TABLE (agent_id bigint, name text, type text, status text, error text, spawn_ms float8, batch int)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE ROWS 10 SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    n int;
    e jsonb;
    i int;
    j int;
    names text[]; types text[]; owners oid[]; procs oid[]; layers int[]; errors text[]; ms float8[]; batches int[]; ids bigint[];
    asked int[] := '{}'; vetoes text[]; doubles boolean[]; dependants int[]; parents int[];
    y swarm._agent_type;
    schema jsonb := swarm.agent_schema('agent');
    proc oid;
    sets int[];
    own text[];
    dep text;
    layer int := 0;
    waiting int;
    now_ready int[];
    group_rows int[];
    s record;
    began timestamptz := clock_timestamp();
    parallel boolean := mode <> 'sequential' AND current_setting('pg_swarm.parallel_spawn')::boolean;
    fallback boolean := false;
    size_now int := batch_size;
    batch_base int := 0;
    started int;
    batch_id bigint;
    budget_ms int;
    last_own text[];
    spawned bigint[] := '{}';
    all_made boolean;
BEGIN
    IF jsonb_typeof(agents) IS DISTINCT FROM 'array' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'the agents must be a JSON array of objects';
    ELSIF batch_size IS NULL OR batch_size NOT BETWEEN 1 AND 256 OR max_concurrency IS NULL OR max_concurrency NOT BETWEEN 1 AND 256 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'batch_size and max_concurrency must be between 1 and 256';
    ELSIF mode IS NULL OR mode NOT IN ('auto', 'parallel', 'sequential') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('mode "%s" is not known', mode),
            HINT = 'Known are auto, parallel and sequential.';
    ELSIF timeout IS NULL OR timeout <= '0' OR timeout > '1 day' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'timeout must be between 0 and 1 day';
    ELSIF topology IS NOT NULL AND topology NOT IN ('mesh', 'hierarchical', 'ring', 'star', 'auto') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('topology "%s" is not known', topology),
            HINT = 'Known are mesh, hierarchical, ring, star and auto.';
    END IF;
    n := jsonb_array_length(agents);
    names := array_fill(NULL::text, ARRAY[n]); types := names; errors := names;
    owners := array_fill(0::oid, ARRAY[n]); procs := owners;
    layers := array_fill(NULL::int, ARRAY[n]); batches := layers;
    ms := array_fill(0::float8, ARRAY[n]); ids := array_fill(NULL::bigint, ARRAY[n]);

    -- each one for itself: what is wrong with it is its own
    SELECT array_agg(x.nth > 1 ORDER BY x.k) INTO doubles
    FROM (SELECT k, row_number() OVER (PARTITION BY u->>'name' ORDER BY k) AS nth FROM jsonb_array_elements(agents) WITH ORDINALITY o(u, k)) x;
    FOR i IN 1 .. n LOOP
        e := agents->(i - 1);
        names[i] := CASE WHEN jsonb_typeof(e) = 'object' THEN e->>'name' END;
        types[i] := CASE WHEN jsonb_typeof(e) = 'object' THEN e->>'type' END;
        errors[i] := swarm._json_misfit(e, schema, '$');
        CONTINUE WHEN errors[i] IS NOT NULL;
        IF y.name IS DISTINCT FROM types[i] THEN
            SELECT * INTO y FROM swarm._agent_type t WHERE t.name = types[i];
            proc := swarm._agent_handler(y.handler);
        END IF;
        owners[i] := CASE WHEN e ? 'role' THEN coalesce((SELECT r.oid FROM pg_roles r WHERE r.rolname = e->>'role'), 0) ELSE caller END;
        IF doubles[i] THEN
            errors[i] := format('$.name: there are two agents "%s" in this call', names[i]);
        ELSIF y.name IS NULL THEN
            errors[i] := format('$.type: type of agents "%s" does not exist', types[i]);
        ELSIF owners[i] = 0 OR (owners[i] <> caller AND NOT (pg_has_role(caller, owners[i], 'USAGE') AND pg_has_role(caller, owners[i],
            -- from 16 on, membership need not allow SET ROLE
            CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END))) THEN
            errors[i] := format('$.role: must be member of role "%s"', coalesce(e->>'role', caller::regrole::text));
        ELSIF EXISTS (SELECT FROM swarm._agent a WHERE a.owner = owners[i] AND a.name = names[i] AND a.state NOT IN ('stopped', 'failed')) THEN
            errors[i] := format('$.name: agent "%s" exists already', names[i]);
        ELSE
            procs[i] := proc;
            IF proc = 0 THEN
                errors[i] := format('handler %s(jsonb, swarm.agent) does not exist', y.handler);
            ELSIF y.max_concurrency IS NOT NULL THEN
                PERFORM FROM swarm._agent_type t WHERE t.name = y.name FOR UPDATE;
                IF (SELECT count(*) FROM swarm._agent a WHERE a.type = y.name AND a.state NOT IN ('stopped', 'failed'))
                   + (SELECT count(*) FROM generate_series(1, i - 1) k WHERE types[k] = types[i] AND errors[k] IS NULL) >= y.max_concurrency THEN
                    errors[i] := format('there are %s agents of type "%s" already, its max_concurrency', y.max_concurrency, y.name);
                END IF;
            END IF;
            IF errors[i] IS NULL AND y.max_concurrency IS NULL THEN
                asked := asked || i;
            ELSIF errors[i] IS NULL THEN
                -- at once: a refused one leaves its place to the next
                errors[i] := 'hook: ' || swarm._hook_run(caller, 'agent_spawn', 'before', e);
            END IF;
        END IF;
    END LOOP;
    vetoes := swarm._hook_run_all(caller, 'agent_spawn', 'before', (SELECT array_agg(agents->(k - 1) ORDER BY k) FROM unnest(asked) k));
    FOR i IN 1 .. coalesce(cardinality(vetoes), 0) LOOP
        errors[asked[i]] := 'hook: ' || vetoes[i];
    END LOOP;

    -- layers: who depends on nobody, who depends on those, ...
    SELECT array_agg(x.k), array_agg(p.k) INTO dependants, parents
    FROM (SELECT k, d FROM jsonb_array_elements(agents) WITH ORDINALITY o(u, k), jsonb_array_elements_text(u->'depends_on') d
          WHERE errors[k] IS NULL AND u ? 'depends_on') x
    JOIN unnest(names) WITH ORDINALITY p(name, k) ON p.name = x.d;
    waiting := n;
    WHILE waiting > 0 LOOP
        layer := layer + 1;
        SELECT coalesce(array_agg(k), '{}') INTO now_ready FROM generate_series(1, n) k
        WHERE layers[k] IS NULL AND k NOT IN (SELECT x.d FROM unnest(dependants, parents) x(d, p) WHERE layers[x.p] IS NULL);
        IF now_ready = '{}' THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = 'the agents depend on each other in a cycle',
                DETAIL = (SELECT format('In the cycle, or behind it: %s.', string_agg(format('"%s" on %s', names[k],
                    (SELECT string_agg(format('"%s"', d), ', ') FROM jsonb_array_elements_text(agents->(k - 1)->'depends_on') d)), ', ' ORDER BY k))
                    FROM generate_series(1, n) k WHERE layers[k] IS NULL);
        END IF;
        FOREACH i IN ARRAY now_ready LOOP
            layers[i] := layer;
        END LOOP;
        waiting := waiting - cardinality(now_ready);
    END LOOP;

    -- layer after layer
    FOR layer IN 1 .. layer LOOP
        group_rows := '{}';
        FOR i IN 1 .. n LOOP
            CONTINUE WHEN layers[i] <> layer OR errors[i] IS NOT NULL;
            FOR dep IN SELECT * FROM jsonb_array_elements_text(coalesce(agents->(i - 1)->'depends_on', '[]')) LOOP
                j := array_position(names, dep);
                IF j IS NULL THEN
                    errors[i] := format('$.depends_on: there is no agent "%s" in this call', dep);
                ELSIF errors[j] IS NOT NULL THEN
                    errors[i] := format('agent "%s", which it depends on, failed: %s', dep, errors[j]);
                END IF;
            END LOOP;
            IF errors[i] IS NULL THEN
                group_rows := group_rows || i;
            END IF;
        END LOOP;
        CONTINUE WHEN group_rows = '{}';
        budget_ms := greatest(1, ceil(extract(epoch FROM timeout - (clock_timestamp() - began)) * 1000));
        FOR attempt IN 1 .. 2 LOOP
            started := 0;
            FOR s IN SELECT * FROM swarm._agent_start((SELECT array_agg(owners[k] ORDER BY o) FROM unnest(group_rows) WITH ORDINALITY u(k, o)),
                         (SELECT array_agg(procs[k] ORDER BY o) FROM unnest(group_rows) WITH ORDINALITY u(k, o)),
                         CASE WHEN parallel AND attempt = 1 THEN size_now ELSE 1 END,
                         CASE WHEN parallel AND attempt = 1 THEN max_concurrency ELSE 1 END,
                         CASE WHEN parallel AND attempt = 1 AND mode = 'auto' THEN (budget_ms + 1) / 2 ELSE budget_ms END,
                         parallel AND mode = 'auto') LOOP
                i := group_rows[s.n];
                errors[i] := s.error;
                ms[i] := s.ms;
                batches[i] := batch_base + s.batch;
                started := started + (s.error IS NULL)::int;
                size_now := CASE WHEN parallel AND attempt = 1 THEN s.batch_size_after ELSE size_now END;
            END LOOP;
            EXIT WHEN started > 0 OR NOT parallel OR mode <> 'auto' OR attempt = 2;
            fallback := true;
            RAISE WARNING USING MESSAGE = 'no agent could be started in parallel; trying one after the other',
                DETAIL = errors[group_rows[1]];
        END LOOP;
        batch_base := (SELECT max(b) FROM unnest(batches) b);
    END LOOP;

    -- those that run become rows; rolled back, there is nothing
    batch_id := nextval('swarm._spawn_batch_id_seq');
    y := NULL;
    sets := array_fill(NULL::int, ARRAY[n]);
    FOR i IN 1 .. n LOOP
        CONTINUE WHEN errors[i] IS NOT NULL;
        ids[i] := nextval('swarm._agent_id_seq');
        IF y.name IS DISTINCT FROM types[i] THEN
            SELECT * INTO y FROM swarm._agent_type t WHERE t.name = types[i];
        END IF;
        own := CASE WHEN agents->(i - 1) ? 'capabilities' THEN swarm._sorted(y.capabilities || swarm._json_list(agents->(i - 1)->'capabilities'))
                    ELSE y.capabilities END;
        j := i - 1;
        sets[i] := CASE WHEN j > 0 AND own = last_own AND types[j] = types[i] AND owners[j] = owners[i] AND sets[j] IS NOT NULL THEN sets[j]
                        ELSE swarm._agent_set_of(owners[i], types[i], own) END;
        last_own := own;
    END LOOP;
    WITH made AS (
        INSERT INTO swarm._agent (id, name, type, owner, set, state, priority, depends_on, metadata, created_at, since, last_used)
        SELECT u.id, u.name, u.type, u.owner, u.set, 'idle', coalesce(u.e->>'priority', 'medium')::swarm.priority,
               CASE WHEN u.e ? 'depends_on'
                    THEN (SELECT coalesce(array_agg(DISTINCT ids[array_position(names, d)]), '{}') FROM jsonb_array_elements_text(u.e->'depends_on') d)
                    ELSE '{}' END,
               coalesce(u.e->'metadata', '{}'), swarm._now(), swarm._now(), swarm._now()
        FROM (SELECT x.*, agents->(x.k::int - 1) AS e FROM unnest(ids, names, types, owners, sets) WITH ORDINALITY AS x(id, name, type, owner, set, k)
              WHERE errors[x.k] IS NULL ORDER BY layers[x.k], x.k) u
        ON CONFLICT DO NOTHING RETURNING id),
    told AS (
        INSERT INTO swarm._agent_event (agent, event, from_state, to_state, detail, at)
        SELECT m.id, v.event, v.from_state, v.to_state, v.detail, swarm._now()
        FROM made m, (VALUES ('start', 'created', 'starting', format('spawn %s', batch_id)), ('ready', 'starting', 'idle', NULL)) v(event, from_state, to_state, detail))
    SELECT coalesce(array_agg(m.id ORDER BY x.layer, m.id), '{}') INTO spawned FROM made m JOIN unnest(ids, layers) x(id, layer) ON x.id = m.id;
    all_made := cardinality(spawned) = (SELECT count(*) FROM unnest(errors) x WHERE x IS NULL);
    FOR i IN 1 .. n LOOP
        IF NOT all_made AND errors[i] IS NULL AND ids[i] <> ALL (spawned) THEN
            errors[i] := format('$.name: agent "%s" exists already', names[i]);
        END IF;
        IF errors[i] IS NULL THEN
            PERFORM swarm._track_spawn(owners[i], ids[i]::text, types[i], left(agents->(i - 1)->>'task', 10000));
        ELSE
            ids[i] := NULL;
        END IF;
    END LOOP;
    INSERT INTO swarm._spawn_batch VALUES (batch_id, caller, began, n, cardinality(spawned), CASE WHEN parallel THEN mode ELSE 'sequential' END, fallback, batch_size,
        size_now, max_concurrency, extract(epoch FROM clock_timestamp() - began) * 1000, (SELECT max(m) FROM unnest(ms) m));
    IF topology IS NOT NULL AND spawned <> '{}' THEN
        PERFORM swarm._topology_create(caller, format('spawn %s', batch_id), topology, spawned);
    END IF;
    FOR i IN 1 .. n LOOP
        e := agents->(i - 1);
        IF errors[i] IS NULL AND e ? 'task' THEN
            PERFORM swarm._task_submit(caller, jsonb_build_object('agent', ids[i], 'task', e->'task', 'priority', coalesce(e->>'priority', 'medium')));
        END IF;
    END LOOP;
    PERFORM swarm._hook_run_all(caller, 'agent_spawn', 'after', (SELECT array_agg(
        jsonb_build_object('id', ids[k], 'name', names[k], 'type', types[k], 'error', errors[k]) ORDER BY k) FROM generate_series(1, n) k));
    PERFORM swarm._agent_adopt(spawned);
    -- help busy ones of the same type and role that have more than they do
    PERFORM swarm._agent_wake(x.id) FROM unnest(spawned) x(id) JOIN swarm._agent o ON o.id = x.id
    WHERE EXISTS (SELECT FROM swarm._agent_set os JOIN swarm._agent p ON p.set = os.id AND p.state = 'busy'
                  JOIN swarm._agent_task q ON q.agent = p.id AND q.state = 'queued' AND NOT q.pinned
                  WHERE os.owner = o.owner AND os.type = o.type);
    FOR i IN 1 .. n LOOP
        agent_id := ids[i];
        name := names[i];
        type := types[i];
        status := CASE WHEN errors[i] IS NULL THEN 'spawned' ELSE 'failed' END;
        error := errors[i];
        spawn_ms := ms[i];
        batch := batches[i];
        RETURN NEXT;
    END LOOP;
END $$;

-- swarm.agent_spawn(agents, batch_size, max_concurrency, mode, topology,
-- timeout): start agents; one row for each, in order.
-- Errors: 22023 an argument, or a cycle of dependencies; 55000 not preloaded.
-- What is wrong with one agent is in its row.
CREATE FUNCTION swarm.agent_spawn(agents jsonb, batch_size int = 3, max_concurrency int = 5, mode text = 'auto', topology text = NULL,
    timeout interval = '30 s')
RETURNS TABLE (agent_id bigint, name text, type text, status text, error text, spawn_ms float8, batch int)
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 10 AS 'MODULE_PATHNAME', 'swarm_agent_spawn';
COMMENT ON FUNCTION swarm.agent_spawn IS 'start agents, in layers by their dependencies; one row for each';

-- ---------------------------------------------------------------------
-- Life
-- ---------------------------------------------------------------------

-- Hooks around a command on an agent; 38000 if one refuses.
CREATE FUNCTION swarm._agent_command(caller oid, a swarm._agent, command text, phase text) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    veto text := swarm._hook_run(caller, 'agent_' || command, phase, jsonb_build_object('agent', a.id, 'name', a.name, 'type', a.type));
BEGIN
    IF veto IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'external_routine_exception', MESSAGE = format('%s of agent %s was refused: %s', command, a.id, veto);
    END IF;
END $$;

CREATE FUNCTION swarm._agent_pause(caller oid, agent_id bigint) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a swarm._agent := swarm._agent_get(caller, agent_id);
    state_now text;
BEGIN
    PERFORM swarm._agent_command(caller, a, 'pause', 'before');
    state_now := swarm._agent_go(a, 'pause');
    UPDATE swarm._agent o SET pause_wanted = state_now = 'busy' WHERE o.id = a.id;
    PERFORM swarm._agent_command(caller, a, 'pause', 'after');
    RETURN state_now;
END $$;

-- swarm.agent_pause(agent_id): take no more tasks. Returns the state now; busy
-- is paused when its task has ended.
CREATE FUNCTION swarm.agent_pause(agent_id bigint) RETURNS text
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_agent_pause';
COMMENT ON FUNCTION swarm.agent_pause IS 'let an agent take no more tasks until agent_resume(); returns its state';

CREATE FUNCTION swarm._agent_resume(caller oid, agent_id bigint) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a swarm._agent := swarm._agent_get(caller, agent_id);
    state_now text;
    s record;
    most int;
BEGIN
    PERFORM swarm._agent_command(caller, a, 'resume', 'before');
    IF a.state IN ('stopped', 'failed') THEN
        SELECT t.max_concurrency INTO most FROM swarm._agent_type t WHERE t.name = a.type FOR UPDATE;
        IF NOT FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('type of agents "%s" does not exist', a.type);
        ELSIF (SELECT count(*) FROM swarm._agent o WHERE o.type = a.type AND o.state NOT IN ('stopped', 'failed')) >= most THEN
            RAISE EXCEPTION USING ERRCODE = 'configuration_limit_exceeded',
                MESSAGE = format('there are %s agents of type "%s" already, its max_concurrency', most, a.type);
        ELSIF EXISTS (SELECT FROM swarm._agent o WHERE o.owner = a.owner AND o.name = a.name AND o.id <> a.id AND o.state NOT IN ('stopped', 'failed')) THEN
            RAISE EXCEPTION USING ERRCODE = 'duplicate_object', MESSAGE = format('agent "%s" exists already', a.name);
        END IF;
        a.state := swarm._agent_go(a, 'start');
        SELECT * INTO s FROM swarm._agent_start(ARRAY[a.owner::oid],
            (SELECT ARRAY[swarm._agent_handler(t.handler)] FROM swarm._agent_type t WHERE t.name = a.type), 1, 1, 30000, false);
        state_now := swarm._agent_go(a, CASE WHEN s.error IS NULL THEN 'ready' ELSE 'error' END, s.error);
    ELSE
        state_now := swarm._agent_go(a, 'resume');
        UPDATE swarm._agent o SET pause_wanted = false WHERE o.id = a.id;
    END IF;
    IF state_now = 'idle' THEN
        PERFORM swarm._agent_adopt(ARRAY[a.id]);
        PERFORM swarm._agent_wake(a.id);
    END IF;
    PERFORM swarm._agent_command(caller, a, 'resume', 'after');
    RETURN state_now;
END $$;

-- swarm.agent_resume(agent_id): let a paused agent work, or start a stopped or
-- failed one again. Returns the state now.
CREATE FUNCTION swarm.agent_resume(agent_id bigint) RETURNS text
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_agent_resume';
COMMENT ON FUNCTION swarm.agent_resume IS 'let a paused agent work again, start a stopped or failed one; returns its state';

CREATE FUNCTION swarm._agent_stop(caller oid, agent_id bigint) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a swarm._agent := swarm._agent_get(caller, agent_id);
    state_now text;
BEGIN
    PERFORM swarm._agent_command(caller, a, 'stop', 'before');
    state_now := swarm._agent_go(a, 'stop');
    IF state_now = 'stopped' THEN
        PERFORM swarm._agent_disperse(a);
        PERFORM swarm._track_completion(a.owner, a.id::text, 'success', 'stopped', NULL);
    END IF;
    PERFORM swarm._agent_command(caller, a, 'stop', 'after');
    RETURN state_now;
END $$;

CREATE FUNCTION swarm.agent_stop(agent_id bigint) RETURNS text
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_agent_stop';
COMMENT ON FUNCTION swarm.agent_stop IS 'end an agent when its task has ended; others get its tasks; returns its state';

CREATE FUNCTION swarm._agent_kill(caller oid, agent_id bigint) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a swarm._agent := swarm._agent_get(caller, agent_id);
    state_now text;
    job bigint;
BEGIN
    PERFORM swarm._agent_command(caller, a, 'kill', 'before');
    state_now := swarm._agent_go(a, 'kill');
    UPDATE swarm._agent_task t SET state = 'queued', error = 'its agent was killed' WHERE t.id = a.task AND t.state = 'running';
    UPDATE swarm._agent o SET task = NULL, pause_wanted = false WHERE o.id = a.id;
    FOR job IN SELECT r.id FROM swarm._job_running() r JOIN swarm._job j ON j.id = r.id
               WHERE j.kind = 6 AND (j.args->>'agent')::bigint = a.id LOOP
        PERFORM swarm._job_cancel(job, 'its agent was killed');
    END LOOP;
    PERFORM swarm._agent_disperse(a);
    PERFORM swarm._track_completion(a.owner, a.id::text, 'failure', NULL, 'killed');
    PERFORM swarm._agent_command(caller, a, 'kill', 'after');
    RETURN state_now;
END $$;

CREATE FUNCTION swarm.agent_kill(agent_id bigint) RETURNS text
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_agent_kill';
COMMENT ON FUNCTION swarm.agent_kill IS 'end an agent at once; its task begins anew with another; returns its state';

-- ---------------------------------------------------------------------
-- Views
-- ---------------------------------------------------------------------

-- busy in the table and in no process: its process has just died
CREATE VIEW swarm.agents WITH (security_invoker = true) AS
SELECT a.id, a.name, a.type, a.owner,
       CASE WHEN a.state IN ('busy', 'stopping') AND w.pid IS NULL THEN 'lost' ELSE a.state END AS state,
       s.capabilities, a.priority, a.depends_on, a.metadata, a.task, w.pid, w.progress, w.message, a.pause_wanted,
       (SELECT count(*) FROM swarm._agent_task t WHERE t.agent = a.id AND t.state = 'queued')::int AS queued,
       a.created_at, a.since, a.last_used, a.error
FROM swarm._agent a
JOIN swarm._agent_set s ON s.id = a.set
LEFT JOIN LATERAL (SELECT r.pid, r.fraction AS progress, r.message
                   FROM swarm._worker_processes() r JOIN swarm._job j ON j.id = r.job
                   WHERE a.state IN ('busy', 'stopping') AND r.kind = 6 AND j.kind = 6
                     AND r.datid = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
                     AND (j.args->>'agent')::bigint = a.id LIMIT 1) w ON true;
COMMENT ON VIEW swarm.agents IS 'agents with what they do now';

CREATE VIEW swarm.agent_tasks WITH (security_invoker = true) AS
SELECT t.id, t.agent AS agent_id, t.owner, t.submitter, t.state, t.priority, t.type, t.capabilities, t.pinned, t.payload AS task, t.affinity,
       t.strategy, t.protocol, t.parent, t.attempts, t.max_attempts, t.timeout, t.run_at, t.deadline, t.created_at, t.started_at, t.finished_at,
       t.result, t.error,
       CASE WHEN t.state = 'queued' AND t.agent IS NULL THEN 'no agent can do it'
            WHEN t.state = 'queued' AND t.run_at > swarm._now() THEN 'its time is to come'
            WHEN t.state = 'waiting' THEN 'parts have not ended' END AS waits_because
FROM swarm._agent_task t;
COMMENT ON VIEW swarm.agent_tasks IS 'tasks of agents, ended ones for 7 days';

CREATE VIEW swarm.agent_activity WITH (security_invoker = true) AS
SELECT e.id, e.at, e.agent AS agent_id, a.name, a.type, e.event, e.from_state, e.to_state, e.task, e.detail
FROM swarm._agent_event e JOIN swarm._agent a ON a.id = e.agent;
COMMENT ON VIEW swarm.agent_activity IS 'what happened to agents in the last 7 days';

CREATE VIEW swarm.agent_stat WITH (security_invoker = true) AS
SELECT a.id, a.name, a.type, a.done, a.failed, a.lost, a.stolen, a.busy_ms, a.latency_ms,
       (a.done + 1)::float8 / (a.done + a.failed + 1) AS success
FROM swarm._agent a;
COMMENT ON VIEW swarm.agent_stat IS 'what agents have done: tasks, failures, time';

CREATE VIEW swarm.spawn_batches WITH (security_invoker = true) AS
SELECT b.id, b.owner, b.started_at, b.agents, b.spawned, b.mode, b.fallback, b.batch_size, b.batch_size_after, b.max_concurrency, b.total_ms, b.slowest_ms
FROM swarm._spawn_batch b;
COMMENT ON VIEW swarm.spawn_batches IS 'calls of agent_spawn() with how long they took, and how the size of groups was adapted';

-- swarm.agent_list(type, state): agents that the caller may see.
CREATE FUNCTION swarm.agent_list(type text = NULL, state text = NULL) RETURNS SETOF swarm.agents
LANGUAGE sql STABLE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp AS $$
SELECT * FROM swarm.agents a WHERE ($1 IS NULL OR a.type = $1) AND ($2 IS NULL OR a.state = $2) ORDER BY a.id
$$;
COMMENT ON FUNCTION swarm.agent_list IS 'agents that the current role may see, all or of a type or state';

-- swarm.agent_status(agent_id): all about one agent. Errors: 42704 if there is
-- none that the caller may see.
CREATE FUNCTION swarm.agent_status(agent_id bigint) RETURNS jsonb
LANGUAGE plpgsql STABLE STRICT PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    status jsonb;
BEGIN
    SELECT to_jsonb(a) || jsonb_build_object('stat', (SELECT to_jsonb(s) - '{id,name,type}'::text[] FROM swarm.agent_stat s WHERE s.id = a.id))
    INTO status FROM swarm.agents a WHERE a.id = agent_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('agent %s does not exist', agent_id);
    END IF;
    RETURN status;
END $$;
COMMENT ON FUNCTION swarm.agent_status IS 'an agent with its figures, as one document';
