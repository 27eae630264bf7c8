-- 80_llm.sql: language models: servers, models, conversations, tools, budgets.
--
-- src/llm/README.md explains the tables; docs/reference/llm.md the functions.

CREATE FUNCTION swarm._llm_validator(options text[], catalog oid) RETURNS void
LANGUAGE c STABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'swarm_llm_validator';

CREATE FOREIGN DATA WRAPPER swarm_llm VALIDATOR swarm._llm_validator;
COMMENT ON FOREIGN DATA WRAPPER swarm_llm IS 'servers of language models for swarm.llm_ask and the like; no tables';

-- The dialect of a server that the current user may use; 42704, 42501, 42809.
CREATE FUNCTION swarm._llm_server_check(server text) RETURNS text
LANGUAGE c STABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'swarm_llm_server_check';

-- ---------------------------------------------------------------------
-- Models
-- ---------------------------------------------------------------------

-- Prices in USD for a million tokens; NULL: not known. An alias has alias_of
-- alone. params are merged into each request; null removes a member. touched: not
-- as the extension brings it.
CREATE TABLE swarm.models (
    name text PRIMARY KEY CHECK (name <> ''),
    alias_of text,
    provider text,
    server text,
    remote_name text,
    tier text CHECK (tier IN ('fast', 'balanced', 'deep')),
    context int CHECK (context > 0),
    max_output int CHECK (max_output > 0),
    price_input numeric CHECK (price_input >= 0),
    price_output numeric CHECK (price_output >= 0),
    price_cache_read numeric CHECK (price_cache_read >= 0),
    price_cache_write numeric CHECK (price_cache_write >= 0),
    status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'deprecated', 'retired', 'disabled')),
    params jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(params) = 'object'),
    touched boolean NOT NULL DEFAULT false,
    CONSTRAINT models_prices_finite CHECK (greatest(price_input, price_output, price_cache_read, price_cache_write) < 'Infinity')
);
COMMENT ON TABLE swarm.models IS 'language models and their aliases; edited with INSERT, UPDATE, DELETE';

INSERT INTO swarm.models (name, provider, tier, context, max_output, price_input, price_output,
    price_cache_read, price_cache_write, status) VALUES
    ('claude-3-5-haiku-20241022', 'anthropic', 'fast', 200000, 8192, 0.80, 4, 0.08, 1, 'retired'),
    ('claude-3-5-sonnet-20241022', 'anthropic', 'balanced', 200000, 8192, 3, 15, 0.30, 3.75, 'retired'),
    ('claude-3-opus-20240229', 'anthropic', 'deep', 200000, 4096, 15, 75, 1.50, 18.75, 'retired');
INSERT INTO swarm.models (name, alias_of) VALUES
    ('fast', 'claude-3-5-haiku-20241022'),
    ('balanced', 'claude-3-5-sonnet-20241022'),
    ('deep', 'claude-3-opus-20240229');

CREATE TRIGGER touched BEFORE INSERT OR UPDATE ON swarm.models
    FOR EACH ROW EXECUTE FUNCTION swarm._touched('replace');
ALTER TABLE swarm.models ENABLE ALWAYS TRIGGER touched;
SELECT pg_catalog.pg_extension_config_dump('swarm.models', 'WHERE touched');

-- The model that a name or an alias stands for. Errors: 42704, 55000 disabled.
CREATE FUNCTION swarm._llm_model(name text) RETURNS swarm.models
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    m swarm.models;
    wanted text := name;
BEGIN
    FOR i IN 1 .. 8 LOOP
        SELECT * INTO m FROM swarm.models x WHERE x.name = wanted;
        IF NOT FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('model "%s" does not exist', wanted),
                HINT = 'Known are: ' || (SELECT string_agg(x.name, ', ' ORDER BY x.name) FROM swarm.models x) ||
                       '. Others are added with INSERT INTO swarm.models.';
        END IF;
        IF m.status = 'disabled' THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = format('model "%s" is disabled', m.name), HINT = 'See swarm.models.status.';
        END IF;
        IF m.alias_of IS NULL THEN
            RETURN m;
        END IF;
        wanted := m.alias_of;
    END LOOP;
    RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
        MESSAGE = format('alias "%s" leads nowhere', name), HINT = 'See swarm.models.alias_of.';
END $$;

-- For module query: the model's own name.
CREATE FUNCTION swarm._model_resolve(name text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT (swarm._llm_model(name)).name $$;

-- The server of a model. Errors: 55000 none.
CREATE FUNCTION swarm._llm_server_of(m swarm.models) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    server text := coalesce(m.server, nullif(current_setting('pg_swarm.llm_server', true), ''));
BEGIN
    IF server IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('model "%s" has no server', m.name),
            HINT = 'Create one with CREATE SERVER ... FOREIGN DATA WRAPPER swarm_llm, and name it in swarm.models or in pg_swarm.llm_server.';
    END IF;
    RETURN server;
END $$;

-- USD for so many tokens, the cached ones being part of tokens_in; NULL where
-- the model's prices are not known.
CREATE FUNCTION swarm._llm_price(m swarm.models, tokens_in bigint, cache_read bigint, cache_write bigint, tokens_out bigint)
RETURNS numeric LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT trim_scale(((tokens_in - cache_read - cache_write) * m.price_input
                   + cache_read * coalesce(m.price_cache_read, m.price_input)
                   + cache_write * coalesce(m.price_cache_write, m.price_input)
                   + tokens_out * m.price_output) * 0.000001) $$;

-- The most that so many tokens can cost.
CREATE FUNCTION swarm._llm_most_usd(m swarm.models, tokens_in bigint, tokens_out bigint)
RETURNS numeric LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT swarm._llm_price(m, tokens_in, 0, CASE WHEN m.price_cache_write > m.price_input THEN tokens_in ELSE 0 END, tokens_out) $$;

-- Parameters that a conversation cannot give: what its turns may use is reserved by
-- max_tokens and the model's prices.
CREATE FUNCTION swarm._llm_params_refused() RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT '{max_tokens,max_completion_tokens,max_output_tokens,n_predict,n,best_of,stream_options,service_tier,speed}'::text[] $$;

-- ---------------------------------------------------------------------
-- Conversations
-- ---------------------------------------------------------------------

CREATE SEQUENCE swarm._llm_conversation_id_seq;

-- kind: chat, or one request: embed, count. job: the one that may act for it.
-- turn_mode: the permission mode at the beginning of the turn.
CREATE TABLE swarm._llm_conversation (
    id bigint PRIMARY KEY DEFAULT nextval('swarm._llm_conversation_id_seq'),
    owner regrole NOT NULL,
    kind text NOT NULL DEFAULT 'chat' CHECK (kind IN ('chat', 'embed', 'count')),
    query bigint UNIQUE,
    model text NOT NULL,
    system text,
    tools text[] NOT NULL DEFAULT '{}',
    permission_mode text NOT NULL DEFAULT 'default'
        CHECK (permission_mode IN ('plan', 'default', 'acceptEdits', 'bypassPermissions')),
    turn_mode text,
    options jsonb NOT NULL DEFAULT '{}',
    agent bigint,
    task bigint,
    state text NOT NULL DEFAULT 'waiting',
    job bigint,
    turns int NOT NULL DEFAULT 0,
    tokens_in bigint NOT NULL DEFAULT 0,
    tokens_out bigint NOT NULL DEFAULT 0,
    tokens_cached bigint NOT NULL DEFAULT 0,
    cost numeric NOT NULL DEFAULT 0,
    input jsonb,
    result jsonb,
    error text,
    sqlstate text,
    created_at timestamptz NOT NULL DEFAULT swarm._now(),
    started_at timestamptz,
    finished_at timestamptz
);

-- content: blocks as the Messages API has them. text: what there is to read so
-- far. state: streaming, done, partial (given up; no part of what is sent).
CREATE TABLE swarm._llm_message (
    conversation bigint REFERENCES swarm._llm_conversation ON DELETE CASCADE,
    no int,
    role text NOT NULL CHECK (role IN ('user', 'assistant')),
    state text NOT NULL DEFAULT 'done' CHECK (state IN ('streaming', 'done', 'partial')),
    content jsonb NOT NULL DEFAULT '[]',
    text text NOT NULL DEFAULT '',
    model text,
    stop_reason text,
    tokens_in bigint,
    tokens_out bigint,
    cache_read bigint,
    cache_write bigint,
    cost numeric,
    estimated boolean NOT NULL DEFAULT false,
    attempts int,
    first_text_ms float8,
    latency_ms float8,
    error text,
    started_at timestamptz NOT NULL DEFAULT swarm._now(),
    first_text_at timestamptz,
    finished_at timestamptz,
    PRIMARY KEY (conversation, no)
) WITH (fillfactor = 70);

-- A tool call of an assistant's message. state: requested, waiting (for an
-- approval), approved, denied, done, failed.
CREATE TABLE swarm._llm_call (
    conversation bigint,
    message int,
    no int,
    id text NOT NULL,
    tool text NOT NULL,
    input jsonb NOT NULL,
    state text NOT NULL DEFAULT 'requested'
        CHECK (state IN ('requested', 'waiting', 'approved', 'denied', 'done', 'failed')),
    request bigint,
    decided_by regrole,
    result text,
    finished_at timestamptz,
    PRIMARY KEY (conversation, message, no),
    FOREIGN KEY (conversation, message) REFERENCES swarm._llm_message ON DELETE CASCADE
);

-- What a turn, or a request, has cost.
CREATE TABLE swarm._llm_cost (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT swarm._now(),
    owner regrole NOT NULL,
    conversation bigint NOT NULL,
    query bigint,
    agent bigint,
    task bigint,
    model text NOT NULL,
    tokens_in bigint NOT NULL,
    tokens_out bigint NOT NULL,
    tokens_cached bigint NOT NULL,
    cost numeric,
    estimated boolean NOT NULL
);
CREATE INDEX ON swarm._llm_cost (at);

SELECT pg_catalog.pg_extension_config_dump('swarm._llm_conversation_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._llm_conversation', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._llm_message', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._llm_call', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._llm_cost', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._llm_cost_id_seq', '');

ALTER TABLE swarm._llm_conversation ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._llm_conversation FOR SELECT
    USING (pg_catalog.pg_has_role(owner::oid, 'USAGE'));
ALTER TABLE swarm._llm_message ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._llm_message FOR SELECT
    USING (EXISTS (SELECT FROM swarm._llm_conversation c WHERE c.id = conversation));
ALTER TABLE swarm._llm_call ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._llm_call FOR SELECT
    USING (EXISTS (SELECT FROM swarm._llm_conversation c WHERE c.id = conversation));
ALTER TABLE swarm._llm_cost ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._llm_cost FOR SELECT
    USING (pg_catalog.pg_has_role(owner::oid, 'USAGE'));

-- The states of a conversation. Each change of _llm_conversation.state is an
-- edge of this table.
CREATE FUNCTION swarm._llm_edges(OUT from_state text, OUT event text, OUT to_state text, OUT why text)
RETURNS SETOF record LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
VALUES
    ('waiting', 'start', 'running', 'a runner has begun'),
    ('waiting', 'pause', 'paused', 'before its first turn'),
    ('waiting', 'complete', 'complete', 'there was nothing to do'),
    ('waiting', 'fail', 'failed', 'no server, no budget'),
    ('waiting', 'cancel', 'cancelled', 'before its first turn'),
    ('running', 'start', 'running', 'the next turn, or another runner after a crash'),
    ('running', 'ask', 'awaiting_approval', 'a tool call waits for somebody to allow it; no runner is held'),
    ('running', 'pause', 'paused', 'a budget is used up, or somebody wishes it; no runner is held'),
    ('running', 'complete', 'complete', 'the model has ended its turn'),
    ('running', 'fail', 'failed', 'refused, all attempts failed, or a limit'),
    ('running', 'cancel', 'cancelled', 'the connection is closed; the model stops'),
    ('awaiting_approval', 'wake', 'waiting', 'all its calls are decided'),
    ('awaiting_approval', 'cancel', 'cancelled', 'nobody needs to decide any more'),
    ('awaiting_approval', 'fail', 'failed', 'no budget'),
    ('paused', 'wake', 'waiting', 'resumed'),
    ('paused', 'cancel', 'cancelled', 'not resumed any more'),
    ('complete', 'wake', 'waiting', 'another message of the user'),
    ('failed', 'wake', 'waiting', 'another message, or tried again'),
    ('cancelled', 'wake', 'waiting', 'another message of the user') $$;

-- Walk an edge; 55000 if there is none. Writes _llm_conversation.
CREATE FUNCTION swarm._llm_move(conversation bigint, event text) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    was text;
    becomes text;
BEGIN
    SELECT c.state INTO was FROM swarm._llm_conversation c WHERE c.id = conversation FOR UPDATE;
    SELECT e.to_state INTO becomes FROM swarm._llm_edges() e WHERE e.from_state = was AND e.event = event;
    IF becomes IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('cannot %s conversation %s in state %s', event, conversation, was);
    END IF;
    UPDATE swarm._llm_conversation c SET state = becomes,
        started_at = CASE WHEN event = 'start' THEN coalesce(c.started_at, swarm._now()) ELSE c.started_at END,
        finished_at = CASE WHEN becomes IN ('complete', 'failed', 'cancelled') THEN swarm._now() END,
        error = CASE WHEN event = 'wake' THEN NULL ELSE c.error END,
        sqlstate = CASE WHEN event = 'wake' THEN NULL ELSE c.sqlstate END
    WHERE c.id = conversation;
    RETURN becomes;
END $$;

-- ---------------------------------------------------------------------
-- Budgets
-- ---------------------------------------------------------------------

-- scope: all, role:NAME, model:NAME, conversation:ID, query:ID, agent:ID, task:ID
CREATE TABLE swarm.budgets (
    id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    scope text NOT NULL DEFAULT 'all'
        CHECK (scope ~ '^(all|role:.+|model:.+|(conversation|query|agent|task):[0-9]+)$'),
    limit_usd numeric CHECK (limit_usd >= 0 AND limit_usd < 'Infinity'),
    limit_tokens bigint CHECK (limit_tokens >= 0),
    period text NOT NULL DEFAULT 'month' CHECK (period IN ('hour', 'day', 'week', 'month', 'total')),
    action text NOT NULL DEFAULT 'stop' CHECK (action IN ('stop', 'pause', 'warn')),
    role oid,
    CHECK (limit_usd IS NOT NULL OR limit_tokens IS NOT NULL)
);
COMMENT ON TABLE swarm.budgets IS 'limits of what models may cost; edited with INSERT, UPDATE, DELETE';

CREATE FUNCTION swarm._budget_changed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.role := CASE WHEN NEW.scope LIKE 'role:%' THEN quote_ident(substr(NEW.scope, 6))::regrole::oid END;
    -- another limit is reached anew
    IF TG_OP = 'UPDATE' AND (NEW.limit_usd, NEW.limit_tokens) IS DISTINCT FROM (OLD.limit_usd, OLD.limit_tokens) THEN
        UPDATE swarm._budget_use u SET alerted = least(u.alerted, CASE WHEN x.share >= 1 THEN 100 WHEN x.share >= 0.8 THEN 80 ELSE 0 END)
        FROM (SELECT y.period_start, swarm._budget_share(NEW, y) AS share FROM swarm._budget_use y WHERE y.budget = NEW.id) x
        WHERE u.budget = NEW.id AND u.period_start = x.period_start;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER changed BEFORE INSERT OR UPDATE ON swarm.budgets
    FOR EACH ROW EXECUTE FUNCTION swarm._budget_changed();
ALTER TABLE swarm.budgets ENABLE ALWAYS TRIGGER changed;

-- What a budget's period has used, and what turns under way may use.
CREATE TABLE swarm._budget_use (
    budget int REFERENCES swarm.budgets ON DELETE CASCADE,
    period_start timestamptz,
    usd numeric NOT NULL DEFAULT 0,
    tokens bigint NOT NULL DEFAULT 0,
    reserved_usd numeric NOT NULL DEFAULT 0,
    reserved_tokens bigint NOT NULL DEFAULT 0,
    alerted int NOT NULL DEFAULT 0,
    PRIMARY KEY (budget, period_start)
);

-- How much of a budget is used, 1 being all.
CREATE FUNCTION swarm._budget_share(b swarm.budgets, u swarm._budget_use) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT greatest(u.usd / nullif(b.limit_usd, 0), u.tokens::numeric / nullif(b.limit_tokens, 0)) $$;

-- What a turn under way has reserved.
CREATE TABLE swarm._llm_reservation (
    conversation bigint REFERENCES swarm._llm_conversation ON DELETE CASCADE,
    budget int,
    period_start timestamptz,
    usd numeric NOT NULL,
    tokens bigint NOT NULL,
    PRIMARY KEY (conversation, budget, period_start),
    FOREIGN KEY (budget, period_start) REFERENCES swarm._budget_use ON DELETE CASCADE
);
SELECT pg_catalog.pg_extension_config_dump('swarm.budgets', '');
SELECT pg_catalog.pg_extension_config_dump('swarm.budgets_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._budget_use', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._llm_reservation', '');

CREATE FUNCTION swarm._budget_start(period text) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT CASE period WHEN 'total' THEN '-infinity' ELSE date_trunc(period, swarm._now(), 'UTC') END $$;

-- The budgets that a conversation, asking that model, has to keep.
CREATE FUNCTION swarm._budgets_of(c swarm._llm_conversation, model text) RETURNS SETOF swarm.budgets
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT b.* FROM swarm.budgets b
WHERE b.scope IN ('all', 'model:' || model, 'conversation:' || c.id, 'query:' || c.query, 'agent:' || c.agent, 'task:' || c.task)
   OR b.role = c.owner::oid
ORDER BY b.id $$;

-- Alerts: at 80 and at 100 % of a budget, or when it has no room for a turn, each
-- once a period.
CREATE FUNCTION swarm._budget_alert(budget int, period_start timestamptz, no_room boolean = false) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    b swarm.budgets;
    share numeric;
    level int;
BEGIN
    SELECT * INTO b FROM swarm.budgets x WHERE x.id = budget;
    SELECT swarm._budget_share(b, u) INTO share FROM swarm._budget_use u WHERE u.budget = budget AND u.period_start = period_start;
    FOREACH level IN ARRAY '{80,100}'::int[] LOOP
        CONTINUE WHEN NOT no_room AND coalesce(share * 100 < level, true);
        UPDATE swarm._budget_use u SET alerted = level
        WHERE u.budget = budget AND u.period_start = period_start AND u.alerted < level;
        IF FOUND THEN
            PERFORM pg_notify('swarm_events', jsonb_build_object('budget', budget, 'scope', b.scope, 'level', level,
                'used_percent', round(100 * share, 1))::text);
        END IF;
    END LOOP;
END $$;

-- Reserve what the next turn may use at most, in all budgets that hold for it,
-- or in none. Returns NULL, or the budget that has no room; action wait: it
-- will have, perhaps, when the turns of others are settled. Rows are locked in the
-- order of budgets.
CREATE FUNCTION swarm._budget_reserve(c swarm._llm_conversation, model swarm.models, most_in bigint, most_out bigint,
    OUT refused int, OUT action text, OUT reason text)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    b swarm.budgets;
    start timestamptz;
    usd numeric := swarm._llm_most_usd(model, most_in, most_out);
    tokens bigint := most_in + most_out;
BEGIN
    FOR b IN SELECT * FROM swarm._budgets_of(c, model.name) LOOP
        start := swarm._budget_start(b.period);
        IF b.limit_usd IS NOT NULL AND usd IS NULL THEN
            refused := b.id;
            action := 'stop';
            reason := format('model "%s" has no prices, and budget %s is in USD', model.name, b.id);
            EXIT;
        END IF;
        INSERT INTO swarm._budget_use (budget, period_start) VALUES (b.id, start) ON CONFLICT DO NOTHING;
        UPDATE swarm._budget_use u
        SET reserved_usd = u.reserved_usd + coalesce(usd, 0), reserved_tokens = u.reserved_tokens + tokens
        WHERE u.budget = b.id AND u.period_start = start
          AND (b.action = 'warn'
               OR (coalesce(u.usd + u.reserved_usd + usd <= b.limit_usd, true)
                   AND coalesce(u.tokens + u.reserved_tokens + tokens <= b.limit_tokens, true)));
        IF NOT FOUND THEN
            refused := b.id;
            action := CASE WHEN EXISTS (SELECT FROM swarm._budget_use u
                                        WHERE u.budget = b.id AND u.period_start = start
                                          AND coalesce(u.usd + usd <= b.limit_usd, true)
                                          AND coalesce(u.tokens + tokens <= b.limit_tokens, true))
                           THEN 'wait' ELSE b.action END;
            reason := format('budget %s (%s of %s per %s) has no room for the next turn, which may use up to %s tokens%s',
                b.id, b.scope, concat_ws(', ', b.limit_usd || ' USD', b.limit_tokens || ' tokens'), b.period, tokens,
                ', ' || round(usd, 6) || ' USD');
            EXIT;
        END IF;
        INSERT INTO swarm._llm_reservation VALUES (c.id, b.id, start, coalesce(usd, 0), tokens);
    END LOOP;
    IF refused IS NOT NULL THEN
        PERFORM swarm._budget_release(c.id);
        IF action IN ('stop', 'pause') AND EXISTS (SELECT FROM swarm._budget_use u WHERE u.budget = refused AND u.period_start = start) THEN
            PERFORM swarm._budget_alert(refused, start, true);
        END IF;
    END IF;
END $$;

-- Give back what a conversation has reserved; if it has used something, that
-- is booked instead.
CREATE FUNCTION swarm._budget_release(conversation bigint, used_usd numeric = 0, used_tokens bigint = 0) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    r swarm._llm_reservation;
BEGIN
    FOR r IN DELETE FROM swarm._llm_reservation x WHERE x.conversation = conversation RETURNING * LOOP
        UPDATE swarm._budget_use x
        SET usd = x.usd + coalesce(used_usd, 0), tokens = x.tokens + used_tokens,
            reserved_usd = greatest(x.reserved_usd - r.usd, 0), reserved_tokens = greatest(x.reserved_tokens - r.tokens, 0)
        WHERE x.budget = r.budget AND x.period_start = r.period_start;
        PERFORM swarm._budget_alert(r.budget, r.period_start);
    END LOOP;
END $$;

-- Reservations of conversations whose job is gone: nobody will settle them.
CREATE FUNCTION swarm._budget_sweep() RETURNS void
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT swarm._budget_release(c.id) FROM swarm._llm_conversation c
WHERE c.id IN (SELECT conversation FROM swarm._llm_reservation)
  AND NOT EXISTS (SELECT FROM swarm._job j WHERE j.id = c.job) ORDER BY c.id $$;

-- What of a conversation its bytes do not bound, and a budget can therefore not:
-- contents that the server fetches or decodes, and parameters that are not known to
-- be harmless. NULL: nothing.
CREATE FUNCTION swarm._llm_unbounded(c swarm._llm_conversation) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
(SELECT format('a block of type "%s"', b->>'type')
 FROM swarm._llm_message m, jsonb_array_elements(m.content) x(block),
      LATERAL (SELECT block UNION ALL
               SELECT jsonb_array_elements(block->'content') WHERE jsonb_typeof(block->'content') = 'array') y(b)
 WHERE m.conversation = c.id AND m.state = 'done'
   AND coalesce(b->>'type', '') NOT IN ('text', 'tool_use', 'tool_result', 'thinking', 'redacted_thinking')
   AND NOT (b->>'type' = 'document' AND coalesce(b->'source'->>'type', '') = 'text') LIMIT 1)
UNION ALL
(SELECT format('parameter "%s"', k) FROM jsonb_object_keys(coalesce(c.options->'params', '{}')) k
 WHERE k NOT IN ('temperature', 'top_p', 'top_k', 'min_p', 'seed', 'stop', 'stop_sequences', 'frequency_penalty', 'presence_penalty',
     'logit_bias', 'response_format', 'thinking', 'reasoning_effort', 'tool_choice', 'parallel_tool_calls', 'metadata', 'user')
   AND k <> ALL (swarm._llm_params_refused()) LIMIT 1)
LIMIT 1 $$;

-- Reserve what the next turn may use at most: by the budgets, and by the
-- conversation's own. As _budget_reserve().
CREATE FUNCTION swarm._llm_reserve(c swarm._llm_conversation, model swarm.models, most_in bigint, most_out bigint,
    OUT refused int, OUT action text, OUT reason text)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    usd numeric := (c.options->>'budget_usd')::numeric;
    tokens bigint := (c.options->>'budget_tokens')::bigint;
    problem text;
BEGIN
    IF usd IS NOT NULL OR tokens IS NOT NULL
       OR EXISTS (SELECT FROM swarm._budgets_of(c, model.name) b WHERE b.action <> 'warn') THEN
        problem := swarm._llm_unbounded(c);
        reason := CASE
            WHEN problem IS NOT NULL THEN format('a budget cannot bound %s', problem)
            WHEN usd IS NOT NULL AND swarm._llm_most_usd(model, most_in, most_out) IS NULL
                THEN format('model "%s" has no prices, and the conversation''s budget is in USD', model.name)
            WHEN c.cost + swarm._llm_most_usd(model, most_in, most_out) > usd OR c.tokens_in + c.tokens_out + most_in + most_out > tokens
                THEN 'the conversation''s budget has no room for the next turn' END;
        IF reason IS NOT NULL THEN
            refused := 0;
            action := 'stop';
            RETURN;
        END IF;
    END IF;
    SELECT * INTO refused, action, reason FROM swarm._budget_reserve(c, model, most_in, most_out);
    IF refused IS NOT NULL THEN
        PERFORM swarm._budget_sweep();
        SELECT * INTO refused, action, reason FROM swarm._budget_reserve(c, model, most_in, most_out);
    END IF;
END $$;

-- ---------------------------------------------------------------------
-- Tools
-- ---------------------------------------------------------------------

-- function: its signature, with schema. A role has the tools whose functions
-- it may execute.
CREATE TABLE swarm._llm_tool (
    name text PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9_-]{1,64}$'),
    function text NOT NULL,
    class text NOT NULL CHECK (class IN ('read', 'write', 'destructive')),
    description text NOT NULL,
    schema jsonb NOT NULL,
    owner regrole NOT NULL
);
SELECT pg_catalog.pg_extension_config_dump('swarm._llm_tool', '');

-- What a permission mode makes of a tool call: read (in a read-only
-- transaction), run, ask (wait for an approval), refuse.
CREATE FUNCTION swarm._llm_permission(mode text, class text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT CASE WHEN class = 'read' THEN 'read'
            WHEN mode = 'plan' THEN 'refuse'
            WHEN mode = 'bypassPermissions' THEN 'run'
            WHEN mode = 'acceptEdits' AND class = 'write' THEN 'run'
            ELSE 'ask' END $$;

-- The stricter of two modes: a mode is tightened at once, and loosened with the
-- next turn.
CREATE FUNCTION swarm._llm_stricter(a text, b text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT m[least(coalesce(array_position(m, a), 4), coalesce(array_position(m, b), 4))]
FROM (SELECT ARRAY['plan', 'default', 'acceptEdits', 'bypassPermissions']) x(m) $$;

-- The JSON schema of a function's arguments, from their names and types.
-- Errors: 22023 for an argument without a name.
CREATE FUNCTION swarm._llm_tool_schema(function oid) RETURNS jsonb
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    p pg_proc;
    properties jsonb := '{}';
    required jsonb := '[]';
    arg text;
    argtype oid;
BEGIN
    SELECT * INTO p FROM pg_proc x WHERE x.oid = function;
    FOR i IN 1 .. p.pronargs LOOP
        arg := (SELECT n FROM unnest(p.proargnames, coalesce(p.proargmodes, array_fill('i'::"char", ARRAY[p.pronargs::int])))
                WITH ORDINALITY x(n, mode, pos) WHERE mode IN ('i', 'b', 'v') ORDER BY pos OFFSET i - 1 LIMIT 1);
        argtype := p.proargtypes[i - 1];
        IF coalesce(arg, '') = '' THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = format('argument %s of function %s has no name', i, function::regprocedure),
                HINT = 'A model gives the arguments of a tool by name.';
        END IF;
        properties := properties || jsonb_build_object(arg, CASE
            WHEN argtype = 'bool'::regtype THEN '{"type": "boolean"}'::jsonb
            WHEN argtype = ANY ('{int2,int4,int8}'::regtype[]) THEN '{"type": "integer"}'
            WHEN argtype = ANY ('{float4,float8,numeric}'::regtype[]) THEN '{"type": "number"}'
            WHEN argtype = ANY ('{json,jsonb}'::regtype[]) THEN '{}'
            WHEN (SELECT typcategory FROM pg_type t WHERE t.oid = argtype) = 'A' THEN '{"type": "array"}'
            WHEN (SELECT typcategory FROM pg_type t WHERE t.oid = argtype) = 'C' THEN '{"type": "object"}'
            ELSE jsonb_build_object('type', 'string', 'description', format_type(argtype, NULL)) END);
        IF i <= p.pronargs - p.pronargdefaults THEN
            required := required || to_jsonb(arg);
        END IF;
    END LOOP;
    RETURN jsonb_build_object('type', 'object', 'properties', properties, 'required', required);
END $$;

-- swarm.tool_create(name, function, class, description): offer a function to
-- models. class: read (runs in a read-only transaction), write, destructive.
-- Errors: 22023 class, name or unnamed arguments, 42501 not allowed to execute
-- the function or the tool is another role's, 42725 the function is overloaded.
-- Writes _llm_tool.
CREATE FUNCTION swarm._tool_create(caller oid, name text, function regproc, class text, description text) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    IF name IS NULL OR function IS NULL OR name !~ '^[A-Za-z0-9_-]{1,64}$' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a tool needs a name of 1 to 64 letters, digits, _ and -, and a function';
    END IF;
    IF class IS NULL OR class NOT IN ('read', 'write', 'destructive') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('class "%s" of a tool does not exist', class), HINT = 'It is read, write or destructive.';
    END IF;
    IF (SELECT prokind FROM pg_proc p WHERE p.oid = function) <> 'f' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('%s is no function', function);
    END IF;
    IF NOT has_function_privilege(caller, function, 'EXECUTE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = format('permission denied for function %s', function);
    END IF;
    IF EXISTS (SELECT FROM pg_proc p JOIN pg_proc o ON o.proname = p.proname AND o.pronamespace = p.pronamespace AND o.oid <> p.oid
               WHERE p.oid = function) THEN
        RAISE EXCEPTION USING ERRCODE = 'ambiguous_function', MESSAGE = format('function %s is overloaded', function::oid::regprocedure),
            HINT = 'A tool is called by name: its function must be the only one of that name in its schema.';
    END IF;
    IF EXISTS (SELECT FROM swarm._llm_tool t WHERE t.name = name AND NOT pg_has_role(caller, t.owner::oid, 'USAGE')) THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = format('must be owner of tool "%s"', name);
    END IF;
    -- with an empty search_path but pg_catalog the signature is qualified
    INSERT INTO swarm._llm_tool AS t VALUES (name, function::oid::regprocedure::text, class,
        coalesce(description, obj_description(function::oid, 'pg_proc'), ''), swarm._llm_tool_schema(function), caller)
    ON CONFLICT ON CONSTRAINT _llm_tool_pkey DO UPDATE SET function = EXCLUDED.function, class = EXCLUDED.class,
        description = EXCLUDED.description, schema = EXCLUDED.schema;
END $$;

CREATE FUNCTION swarm.tool_create(name text, function regproc, class text = 'write', description text = NULL)
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_tool_create';
COMMENT ON FUNCTION swarm.tool_create IS 'offer a function to language models, to roles that may execute it; replaces a tool of that name';

-- swarm.tool_drop(name). Errors: 42704, 42501.
CREATE FUNCTION swarm._tool_drop(caller oid, name text) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    owner oid;
BEGIN
    SELECT t.owner INTO owner FROM swarm._llm_tool t WHERE t.name = name FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('tool "%s" does not exist', name);
    END IF;
    IF NOT pg_has_role(caller, owner, 'USAGE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = format('must be owner of tool "%s"', name);
    END IF;
    DELETE FROM swarm._llm_tool t WHERE t.name = name;
END $$;

CREATE FUNCTION swarm.tool_drop(name text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_tool_drop';
COMMENT ON FUNCTION swarm.tool_drop IS 'offer a function to language models no more; the function stays';

-- Call a tool's function, as the current user: arguments by name from a JSON
-- object. An error is the result of the call, and undone; a cancellation is
-- not. No search_path is set: the function shall find what it finds when its
-- user calls it.
CREATE FUNCTION swarm._llm_tool_execute(function oid, input jsonb, read_only boolean, OUT result text, OUT failed boolean)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE AS $$
#variable_conflict use_variable
DECLARE
    p pg_catalog.pg_proc;
    columns text;
    args text;
    value jsonb;
BEGIN
    failed := false;
    SELECT * INTO p FROM pg_catalog.pg_proc x WHERE x.oid OPERATOR(pg_catalog.=) function;
    SELECT pg_catalog.string_agg(pg_catalog.format('%I %s', n, pg_catalog.format_type(t, NULL)), ', ' ORDER BY pos),
           pg_catalog.string_agg(pg_catalog.format('%I => r.%I', n, n), ', ' ORDER BY pos)
               FILTER (WHERE input OPERATOR(pg_catalog.?) n)
    INTO columns, args
    FROM (SELECT n, pos, p.proargtypes[pg_catalog.row_number() OVER (ORDER BY pos) OPERATOR(pg_catalog.-) 1] AS t
          FROM ROWS FROM (pg_catalog.unnest(p.proargnames), pg_catalog.unnest(coalesce(p.proargmodes,
                   pg_catalog.array_fill('i'::"char", ARRAY[p.pronargs::int]))))
               WITH ORDINALITY x(n, mode, pos)
          WHERE mode OPERATOR(pg_catalog.=) ANY (ARRAY['i', 'b', 'v']::"char"[])) s;
    BEGIN
        IF read_only THEN
            PERFORM pg_catalog.set_config('transaction_read_only', 'on', true);
        END IF;
        -- the call names the function: an overload that fits better would run instead
        IF EXISTS (SELECT FROM pg_catalog.pg_proc o WHERE o.proname OPERATOR(pg_catalog.=) p.proname
                   AND o.pronamespace OPERATOR(pg_catalog.=) p.pronamespace AND o.oid OPERATOR(pg_catalog.<>) p.oid) THEN
            RAISE EXCEPTION USING ERRCODE = 'ambiguous_function', MESSAGE = 'function of the tool is overloaded';
        END IF;
        EXECUTE pg_catalog.format(
            'SELECT swarm._json_storable(pg_catalog.json_agg(v)::text) FROM (SELECT pg_catalog.to_json(f) AS v FROM %s %I.%I(%s) AS f LIMIT 200) s',
            CASE WHEN columns IS NULL THEN '' ELSE pg_catalog.format('pg_catalog.jsonb_to_record($1) AS r(%s), LATERAL', columns) END,
            (SELECT nspname FROM pg_catalog.pg_namespace n WHERE n.oid OPERATOR(pg_catalog.=) p.pronamespace), p.proname, args)
        INTO value USING input;
        result := CASE WHEN p.proretset THEN coalesce(value, '[]')::text ELSE coalesce(value OPERATOR(pg_catalog.->>) 0, 'null') END;
    EXCEPTION WHEN OTHERS THEN
        failed := true;
        result := pg_catalog.format('%s (SQLSTATE %s)', SQLERRM, SQLSTATE);
    END;
END $$;

-- ---------------------------------------------------------------------
-- Asking
-- ---------------------------------------------------------------------

-- Blocks of a message: a text becomes one.
CREATE FUNCTION swarm._llm_blocks(content jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT CASE jsonb_typeof(content) WHEN 'string' THEN jsonb_build_array(jsonb_build_object('type', 'text', 'text', content))
            WHEN 'array' THEN content END $$;

CREATE FUNCTION swarm._llm_blocks_text(blocks jsonb) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT coalesce(string_agg(b->>'text', E'\n\n' ORDER BY n), '')
FROM jsonb_array_elements(blocks) WITH ORDINALITY x(b, n) WHERE b->>'type' = 'text' $$;

-- Add messages to a conversation: a text, or an array of {"role", "content"}.
-- Errors: 22023.
CREATE FUNCTION swarm._llm_add(conversation bigint, messages jsonb) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    m jsonb;
    blocks jsonb;
BEGIN
    IF jsonb_typeof(messages) = 'string' THEN
        messages := jsonb_build_array(jsonb_build_object('role', 'user', 'content', messages));
    END IF;
    IF jsonb_typeof(messages) IS DISTINCT FROM 'array' OR jsonb_array_length(messages) = 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'messages must be a text, or a JSON array of messages';
    END IF;
    FOR m IN SELECT * FROM jsonb_array_elements(messages) LOOP
        blocks := swarm._llm_blocks(m->'content');
        IF coalesce(m->>'role', '') NOT IN ('user', 'assistant') OR blocks IS NULL
           OR EXISTS (SELECT FROM jsonb_array_elements(blocks) b WHERE jsonb_typeof(b) <> 'object' OR b->>'type' IS NULL) THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
                MESSAGE = 'a message needs "role", user or assistant, and "content", a string or an array of blocks';
        END IF;
        INSERT INTO swarm._llm_message (conversation, no, role, content, text, finished_at)
        VALUES (conversation, (SELECT coalesce(max(x.no), 0) + 1 FROM swarm._llm_message x WHERE x.conversation = conversation),
            m->>'role', blocks, swarm._llm_blocks_text(blocks), swarm._now());
    END LOOP;
    IF (SELECT x.role FROM swarm._llm_message x WHERE x.conversation = conversation ORDER BY x.no DESC LIMIT 1) <> 'user' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'the last message must be one of the user';
    END IF;
END $$;

-- 42501 unless the role may use that permission mode; 22023 for an unknown one.
CREATE FUNCTION swarm._llm_check_mode(caller oid, mode text) RETURNS void
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF mode IS NULL OR mode NOT IN ('plan', 'default', 'acceptEdits', 'bypassPermissions') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('permission mode "%s" does not exist', mode),
            HINT = 'It is plan, default, acceptEdits or bypassPermissions.';
    END IF;
    IF mode = 'bypassPermissions' AND NOT has_function_privilege(caller, 'swarm.permission_bypass()', 'EXECUTE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = 'permission denied for permission mode bypassPermissions',
            HINT = 'An administrator can GRANT EXECUTE ON FUNCTION swarm.permission_bypass().';
    END IF;
END $$;

-- A new conversation of the caller. Options known: max_tokens, max_turns,
-- params (merged into each request), agent, task, budget_usd, budget_tokens.
CREATE FUNCTION swarm._llm_create(caller oid, model text, messages jsonb, system text, tools text[],
    permission_mode text, options jsonb, query bigint)
RETURNS bigint LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    m swarm.models := swarm._llm_model(model);
    id bigint := nextval('swarm._llm_conversation_id_seq');
    wrong text;
BEGIN
    IF getdatabaseencoding() <> 'UTF8' THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported', MESSAGE = 'language models need a database with encoding UTF8';
    END IF;
    PERFORM swarm._llm_check_mode(caller, permission_mode);
    IF jsonb_typeof(options) IS DISTINCT FROM 'object' OR tools IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'options must be a JSON object, and tools not null';
    END IF;
    SELECT k INTO wrong FROM jsonb_object_keys(options) k
    WHERE k NOT IN ('max_tokens', 'max_turns', 'params', 'agent', 'task', 'budget_usd', 'budget_tokens') LIMIT 1;
    IF FOUND AND query IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('option "%s" does not exist', wrong),
            HINT = 'Options are max_tokens, max_turns, params, agent, task, budget_usd and budget_tokens.';
    END IF;
    IF (options->>'max_tokens')::int < 1 OR (options->>'max_turns')::int < 1
       OR jsonb_typeof(options->'params') <> 'object' OR (options->>'budget_usd')::numeric NOT BETWEEN 0 AND 1e15
       OR (options->>'budget_tokens')::bigint < 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'an option is out of range';
    END IF;
    FOR wrong IN SELECT t FROM unnest(tools) t LOOP
        PERFORM swarm._llm_tool_function(caller, wrong);
    END LOOP;
    INSERT INTO swarm._llm_conversation (id, owner, query, model, system, tools, permission_mode, options, agent, task)
    VALUES (id, caller, query, model, system, tools, permission_mode, options,
        (options->>'agent')::bigint, (options->>'task')::bigint);
    PERFORM swarm._llm_add(id, messages);
    RETURN id;
END $$;

-- The function of a tool, for a role. Errors: 42704, 42883 the function is
-- gone, 42501.
CREATE FUNCTION swarm._llm_tool_function(caller oid, tool text) RETURNS oid
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    t swarm._llm_tool;
    f regprocedure;
BEGIN
    SELECT * INTO t FROM swarm._llm_tool x WHERE x.name = tool;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('tool "%s" does not exist', tool),
            HINT = 'Define it with swarm.tool_create().';
    END IF;
    f := to_regprocedure(t.function);
    IF f IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_function', MESSAGE = format('function %s of tool "%s" does not exist', t.function, tool);
    END IF;
    IF NOT has_function_privilege(caller, f, 'EXECUTE')
       OR NOT has_schema_privilege(caller, (SELECT pronamespace FROM pg_proc p WHERE p.oid = f), 'USAGE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = format('permission denied for function %s', t.function);
    END IF;
    RETURN f;
END $$;

-- swarm.llm_ask(model, messages, ...): start a conversation; a runner asks the
-- model, as the caller, after this transaction commits.
-- Errors: 42704 model, tool or server, 42501 server, tool or mode, 22023 bad
-- messages or options, 55000 no server, 0A000 encoding. Writes _llm_conversation,
-- _llm_message, and a job.
CREATE FUNCTION swarm._llm_ask(caller oid, model text, messages jsonb, system text, tools text[], permission_mode text, options jsonb)
RETURNS bigint LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT swarm._llm_create(caller, model, messages, system, tools, permission_mode, options, NULL) $$;

CREATE FUNCTION swarm.llm_ask(model text, messages jsonb, system text = NULL, tools text[] = '{}',
    permission_mode text = 'default', options jsonb = '{}')
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_llm_ask';
COMMENT ON FUNCTION swarm.llm_ask(text, jsonb, text, text[], text, jsonb) IS
    'start a conversation with a model: messages are an array of {"role", "content"}; returns its id';

CREATE FUNCTION swarm.llm_ask(model text, message text, system text = NULL, tools text[] = '{}',
    permission_mode text = 'default', options jsonb = '{}')
RETURNS bigint LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT swarm.llm_ask(model, to_jsonb(message), system, tools, permission_mode, options) $$;
COMMENT ON FUNCTION swarm.llm_ask(text, text, text, text[], text, jsonb) IS 'start a conversation with a model; returns its id';

-- One request that is no conversation: kind embed or count.
CREATE FUNCTION swarm._llm_request(caller oid, kind text, model text, input jsonb) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    id bigint := nextval('swarm._llm_conversation_id_seq');
BEGIN
    PERFORM swarm._llm_model(model);
    INSERT INTO swarm._llm_conversation (id, owner, kind, model, input) VALUES (id, caller, kind, model, input);
    RETURN id;
END $$;

CREATE FUNCTION swarm._llm_embed(caller oid, model text, texts text[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF coalesce(cardinality(texts), 0) NOT BETWEEN 1 AND 2048 OR array_position(texts, NULL) IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'texts must be 1 to 2048 texts that are not null';
    END IF;
    RETURN swarm._llm_request(caller, 'embed', model, to_jsonb(texts));
END $$;

-- swarm.llm_embed(model, texts): errors as llm_ask.
CREATE FUNCTION swarm.llm_embed(model text, texts text[]) RETURNS bigint
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_llm_embed';
COMMENT ON FUNCTION swarm.llm_embed IS 'ask a model for the embeddings of texts; returns an id for swarm.llm_wait and swarm.llm_embeddings';

CREATE FUNCTION swarm._llm_count_tokens(caller oid, model text, messages jsonb) RETURNS bigint
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT swarm._llm_request(caller, 'count', model, messages) $$;

-- swarm.llm_count_tokens(model, messages): errors as llm_ask.
CREATE FUNCTION swarm.llm_count_tokens(model text, messages jsonb) RETURNS bigint
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_llm_count_tokens';
COMMENT ON FUNCTION swarm.llm_count_tokens IS 'ask a model''s server how many tokens messages are; returns an id for swarm.llm_wait';

-- swarm.llm_embeddings(id): errors: 42704.
CREATE FUNCTION swarm.llm_embeddings(id bigint, OUT no int, OUT embedding real[]) RETURNS SETOF record
LANGUAGE plpgsql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    embeddings jsonb;
BEGIN
    SELECT c.result->'embeddings' INTO embeddings FROM swarm._llm_conversation c WHERE c.id = llm_embeddings.id;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('conversation %s does not exist', id);
    END IF;
    RETURN QUERY
    SELECT n::int, (SELECT array_agg(v::real ORDER BY k) FROM jsonb_array_elements_text(e) WITH ORDINALITY y(v, k))
    FROM jsonb_array_elements(embeddings) WITH ORDINALITY x(e, n);
END $$;
COMMENT ON FUNCTION swarm.llm_embeddings IS 'the embeddings that swarm.llm_embed has asked for, in the order of its texts';

-- A conversation that the caller may act on, locked. Errors: 42704, 55000 it
-- belongs to a query.
CREATE FUNCTION swarm._llm_own(caller oid, conversation bigint) RETURNS swarm._llm_conversation
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    c swarm._llm_conversation;
BEGIN
    SELECT * INTO c FROM swarm._llm_conversation x WHERE x.id = conversation FOR UPDATE;
    IF NOT FOUND OR NOT pg_has_role(caller, c.owner::oid, 'USAGE') THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('conversation %s does not exist', conversation);
    END IF;
    IF c.query IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('conversation %s belongs to query %s', conversation, c.query),
            HINT = 'Use swarm.query_control().';
    END IF;
    RETURN c;
END $$;

-- 55000 in a runner: what a model does must not allow itself more.
CREATE FUNCTION swarm._llm_not_in_runner() RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (SELECT backend_type FROM pg_stat_get_activity(pg_backend_pid())) LIKE 'pg_swarm%' THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state', MESSAGE = 'permissions cannot be given by a job or a tool';
    END IF;
END $$;

-- swarm.llm_say(conversation, messages): the user's next message. Errors:
-- 42704, 55000 it is not ended yet, 22023.
CREATE FUNCTION swarm._llm_say(caller oid, conversation bigint, messages jsonb) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM swarm._llm_own(caller, conversation);
    PERFORM swarm._llm_move(conversation, 'wake');
    PERFORM swarm._llm_call_give_up(conversation);
    PERFORM swarm._llm_add(conversation, messages);
    RETURN conversation;
END $$;

-- Calls that nobody will answer any more get an answer, since each needs one.
CREATE FUNCTION swarm._llm_call_give_up(conversation bigint) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    UPDATE swarm._llm_call x SET state = 'failed', result = 'not called: the conversation was stopped', finished_at = swarm._now()
    WHERE x.conversation = conversation AND x.state IN ('requested', 'waiting', 'approved', 'denied');
    IF FOUND THEN
        PERFORM swarm._llm_call_results(conversation);
    END IF;
END $$;

CREATE FUNCTION swarm.llm_say(conversation bigint, messages jsonb) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_llm_say';
COMMENT ON FUNCTION swarm.llm_say(bigint, jsonb) IS 'go on with a conversation that has ended: the next messages';

CREATE FUNCTION swarm.llm_say(conversation bigint, message text) RETURNS void
LANGUAGE sql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT swarm.llm_say(conversation, to_jsonb(message)) $$;
COMMENT ON FUNCTION swarm.llm_say(bigint, text) IS 'go on with a conversation that has ended: the user''s next message';

-- swarm.llm_resume(conversation): go on where a paused or failed conversation
-- stands. Errors: 42704, 55000.
CREATE FUNCTION swarm._llm_resume(caller oid, conversation bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    c swarm._llm_conversation := swarm._llm_own(caller, conversation);
BEGIN
    -- its job has ended without a word
    IF c.state IN ('waiting', 'running') AND NOT EXISTS (SELECT FROM swarm._job j WHERE j.id = c.job) THEN
        c.state := swarm._llm_move(conversation, 'fail');
    END IF;
    IF c.state NOT IN ('paused', 'failed') THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('cannot resume conversation %s in state %s', conversation, c.state);
    END IF;
    PERFORM swarm._llm_move(conversation, 'wake');
    RETURN conversation;
END $$;

CREATE FUNCTION swarm.llm_resume(conversation bigint) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_llm_resume';
COMMENT ON FUNCTION swarm.llm_resume IS 'go on with a conversation that was paused or has failed, after its last finished turn';

-- swarm.llm_cancel(conversation): errors: 42704.
CREATE FUNCTION swarm._llm_cancel(caller oid, conversation bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    c swarm._llm_conversation := swarm._llm_own(caller, conversation);
BEGIN
    IF c.state IN ('complete', 'failed', 'cancelled') THEN
        RETURN false;
    END IF;
    PERFORM swarm._llm_move(conversation, 'cancel');
    IF EXISTS (SELECT FROM swarm._job j WHERE j.id = c.job) THEN
        PERFORM swarm._job_cancel(c.job, 'the conversation was cancelled');
    END IF;
    RETURN true;
END $$;

CREATE FUNCTION swarm.llm_cancel(conversation bigint) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_llm_cancel';
COMMENT ON FUNCTION swarm.llm_cancel IS 'stop a conversation: a turn under way at once; false if it had ended';

-- swarm.llm_approve(conversation, call, allow): errors: 42704 no such call,
-- 55000 it does not wait, or in a runner.
CREATE FUNCTION swarm._llm_approve(caller oid, conversation bigint, call text, allow boolean) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    c swarm._llm_conversation := swarm._llm_own(caller, conversation);
    k swarm._llm_call;
BEGIN
    PERFORM swarm._llm_not_in_runner();
    SELECT * INTO k FROM swarm._llm_call x WHERE x.conversation = conversation AND x.id = call
    ORDER BY x.message DESC LIMIT 1 FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('conversation %s has no tool call "%s"', conversation, call);
    END IF;
    IF k.state <> 'waiting' OR c.state <> 'awaiting_approval' THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('tool call "%s" does not wait for an approval', call);
    END IF;
    UPDATE swarm._llm_call x SET state = CASE WHEN allow THEN 'approved' ELSE 'denied' END, decided_by = caller
    WHERE x.conversation = k.conversation AND x.message = k.message AND x.no = k.no;
    IF EXISTS (SELECT FROM swarm._llm_call x WHERE x.conversation = conversation AND x.message = k.message AND x.state = 'waiting') THEN
        RETURN NULL;
    END IF;
    PERFORM swarm._llm_move(conversation, 'wake');
    RETURN conversation;
END $$;

CREATE FUNCTION swarm.llm_approve(conversation bigint, call text, allow boolean = true) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_llm_approve';
COMMENT ON FUNCTION swarm.llm_approve IS 'allow or deny a tool call that waits for it; with the last one the conversation goes on';

-- swarm.llm_permission_mode(conversation, mode): errors: 42704, 22023, 42501,
-- 55000 in a runner.
CREATE FUNCTION swarm._llm_permission_mode(caller oid, conversation bigint, mode text) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    c swarm._llm_conversation := swarm._llm_own(caller, conversation);
BEGIN
    PERFORM swarm._llm_not_in_runner();
    PERFORM swarm._llm_check_mode(caller, mode);
    UPDATE swarm._llm_conversation x SET permission_mode = mode WHERE x.id = c.id;
END $$;

CREATE FUNCTION swarm.llm_permission_mode(conversation bigint, mode text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_llm_permission_mode';
COMMENT ON FUNCTION swarm.llm_permission_mode IS 'change what a conversation''s tools may do: tightened with the next tool call, loosened with the next turn';

-- ---------------------------------------------------------------------
-- What a runner does: src/llm/llm_run.c calls these, as superuser, each in a
-- short transaction
-- ---------------------------------------------------------------------

-- The request's body in the server's dialect.
CREATE FUNCTION swarm._llm_body(c swarm._llm_conversation, m swarm.models, dialect text, max_tokens int) RETURNS jsonb
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    body jsonb := jsonb_build_object('model', coalesce(m.remote_name, m.name), 'stream', true, 'max_tokens', max_tokens);
    messages jsonb;
    tools jsonb;
    -- what the budget has reserved for is no matter of the conversation's options
    params jsonb := m.params || (coalesce(c.options->'params', '{}') - swarm._llm_params_refused());
BEGIN
    SELECT jsonb_agg(CASE dialect WHEN 'anthropic'
        THEN jsonb_build_object('name', t.name, 'description', t.description, 'input_schema', t.schema)
        ELSE jsonb_build_object('type', 'function', 'function',
            jsonb_build_object('name', t.name, 'description', t.description, 'parameters', t.schema)) END ORDER BY n)
    INTO tools FROM unnest(c.tools) WITH ORDINALITY x(tool, n) JOIN swarm._llm_tool t ON t.name = tool;
    IF dialect = 'anthropic' THEN
        SELECT jsonb_agg(jsonb_build_object('role', x.role, 'content', x.content) ORDER BY x.no) INTO messages
        FROM swarm._llm_message x WHERE x.conversation = c.id AND x.state = 'done';
        body := body || jsonb_build_object('messages', messages);
        IF c.system IS NOT NULL THEN
            body := body || jsonb_build_object('system', c.system);
        END IF;
    ELSE
        SELECT jsonb_agg(y.message ORDER BY x.no, y.part) INTO messages
        FROM swarm._llm_message x CROSS JOIN LATERAL (
            SELECT 0::bigint AS part, jsonb_strip_nulls(jsonb_build_object('role', 'assistant',
                       'content', nullif(swarm._llm_blocks_text(x.content), ''),
                       'tool_calls', (SELECT jsonb_agg(jsonb_build_object('id', b->>'id', 'type', 'function', 'function',
                                          jsonb_build_object('name', b->>'name', 'arguments', (b->'input')::text)) ORDER BY n)
                                      FROM jsonb_array_elements(x.content) WITH ORDINALITY z(b, n) WHERE b->>'type' = 'tool_use'))) AS message
            WHERE x.role = 'assistant'
            UNION ALL
            SELECT n, jsonb_build_object('role', 'tool', 'tool_call_id', b->>'tool_use_id', 'content', b->>'content')
            FROM jsonb_array_elements(x.content) WITH ORDINALITY z(b, n)
            WHERE x.role = 'user' AND b->>'type' = 'tool_result'
            UNION ALL
            SELECT 1000000, jsonb_build_object('role', 'user', 'content',
                CASE WHEN bool_and(b->>'type' = 'text') THEN to_jsonb(swarm._llm_blocks_text(x.content)) ELSE jsonb_agg(b ORDER BY n) END)
            FROM jsonb_array_elements(x.content) WITH ORDINALITY z(b, n)
            WHERE x.role = 'user' AND b->>'type' <> 'tool_result' HAVING count(*) > 0) y
        WHERE x.conversation = c.id AND x.state = 'done';
        IF c.system IS NOT NULL THEN
            messages := jsonb_build_array(jsonb_build_object('role', 'system', 'content', c.system)) || messages;
        END IF;
        body := body || jsonb_build_object('messages', messages, 'stream_options', '{"include_usage": true}'::jsonb);
    END IF;
    IF tools IS NOT NULL THEN
        body := body || jsonb_build_object('tools', tools);
    END IF;
    SELECT (body || coalesce(jsonb_object_agg(k, v) FILTER (WHERE jsonb_typeof(v) <> 'null'), '{}'))
           - coalesce(array_agg(k) FILTER (WHERE jsonb_typeof(v) = 'null'), '{}')
    INTO body FROM jsonb_each(params) x(k, v) WHERE k NOT IN ('model', 'messages', 'stream', 'tools');
    RETURN body;
END $$;

-- The conversation of a query, made at its first run.
CREATE FUNCTION swarm._llm_of_query(query bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    q record;
    id bigint;
    messages jsonb;
BEGIN
    SELECT c.id INTO id FROM swarm._llm_conversation c WHERE c.query = query;
    IF FOUND THEN
        RETURN id;
    END IF;
    EXECUTE 'SELECT owner::oid AS owner, body, model, permission_mode, metadata FROM swarm._query WHERE id = $1 AND kind = ''llm''' INTO q USING query;
    IF q.owner IS NULL THEN
        RETURN NULL;
    END IF;
    messages := to_jsonb(q.body);
    IF q.body ~ '^[[:space:]]*[[]' THEN
        BEGIN
            messages := swarm._json_storable(q.body);
        EXCEPTION WHEN invalid_text_representation THEN
            messages := to_jsonb(q.body);
        END;
    END IF;
    id := swarm._llm_create(q.owner, coalesce(q.model, 'balanced'), messages, q.metadata->>'system',
        ARRAY(SELECT jsonb_array_elements_text(CASE jsonb_typeof(q.metadata->'tools') WHEN 'array' THEN q.metadata->'tools' ELSE '[]' END)),
        -- the right to it was asked for by swarm.query_start()
        'plan', coalesce(q.metadata, '{}'), query);
    UPDATE swarm._llm_conversation c SET permission_mode = q.permission_mode WHERE c.id = id;
    RETURN id;
END $$;

-- A run begins: the conversation that a job is for, of that owner; from now on
-- only this job may act for it. NULL: nothing to do. A query that no conversation
-- can be made of fails: another attempt would end the same.
CREATE FUNCTION swarm._llm_begin(owner oid, args jsonb, job bigint) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    id bigint := (args->>'conversation')::bigint;
    query bigint := (args->>'query')::bigint;
    c swarm._llm_conversation;
    mine boolean;
    go boolean;
    reason text;
    state text;
BEGIN
    IF query IS NOT NULL THEN
        EXECUTE 'SELECT owner::oid = $2 FROM swarm._query WHERE id = $1' INTO mine USING query, owner;
        IF mine IS NOT TRUE THEN
            RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('query %s does not exist', query);
        END IF;
        BEGIN
            id := swarm._llm_of_query(query);
        EXCEPTION WHEN data_exception OR syntax_error_or_access_rule_violation OR feature_not_supported OR object_not_in_prerequisite_state THEN
            GET STACKED DIAGNOSTICS reason = MESSAGE_TEXT, state = RETURNED_SQLSTATE;
            EXECUTE 'SELECT go FROM swarm._query_turn_begin($1)' INTO go USING query;
            IF go THEN
                PERFORM swarm._llm_tell_query(query, jsonb_build_object('error', reason, 'sqlstate', state));
            END IF;
            RETURN NULL;
        END;
    END IF;
    SELECT * INTO c FROM swarm._llm_conversation x WHERE x.id = id FOR UPDATE;
    IF NOT FOUND OR c.owner::oid <> owner THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('conversation %s does not exist', id);
    END IF;
    IF c.query IS NULL THEN
        RETURN CASE WHEN c.job = job THEN id END;
    END IF;
    UPDATE swarm._llm_conversation x SET job = job WHERE x.id = id;
    IF c.state NOT IN ('waiting', 'running') THEN
        PERFORM swarm._llm_move(id, 'wake');
    END IF;
    RETURN id;
END $$;

-- End a conversation, and its query with it.
CREATE FUNCTION swarm._llm_end(conversation bigint, event text, error text = NULL, sqlstate text = NULL) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    PERFORM swarm._llm_move(conversation, event);
    UPDATE swarm._llm_conversation c SET error = error, sqlstate = sqlstate WHERE c.id = conversation;
    PERFORM swarm._budget_release(conversation);
END $$;

-- Tell module query what a turn, or a request that was not sent, has come to.
CREATE FUNCTION swarm._llm_tell_query(query bigint, outcome jsonb) RETURNS boolean
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    go boolean := true;
BEGIN
    IF query IS NOT NULL THEN
        EXECUTE 'SELECT (swarm._query_turn_end($1, $2)).go' INTO go USING query, jsonb_strip_nulls(outcome);
    END IF;
    RETURN go;
END $$;

-- The query does not go on: nor does its conversation.
CREATE FUNCTION swarm._llm_query_stopped(conversation bigint, query bigint) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    state text;
BEGIN
    EXECUTE 'SELECT state::text FROM swarm._query WHERE id = $1' INTO state USING query;
    PERFORM swarm._llm_end(conversation, CASE WHEN state IN ('init', 'running', 'paused') THEN 'pause' ELSE 'cancel' END);
END $$;

-- What to do next for a conversation: stop (nothing, the job ends), turn (send
-- body to the path of the server; the answer goes to message; chat: it is one),
-- tools.
CREATE FUNCTION swarm._llm_next(conversation bigint, job bigint, OUT action text, OUT server text, OUT path text,
    OUT body text, OUT message int, OUT chat boolean, OUT query bigint, OUT most_out bigint)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    c swarm._llm_conversation;
    m swarm.models;
    last swarm._llm_message;
    begun record;
    dialect text;
    json jsonb;
    max_tokens int;
    most_in bigint;
    refused int;
    refusal text;
    reason text;
    state text;
BEGIN
    action := 'stop';
    chat := true;
    SELECT * INTO c FROM swarm._llm_conversation x WHERE x.id = conversation FOR UPDATE;
    IF NOT FOUND OR c.job IS DISTINCT FROM job OR c.state NOT IN ('waiting', 'running') THEN
        RETURN;
    END IF;
    query := c.query;
    -- a turn that a lost run has begun: what came of it is counted as far as it is known
    FOR last IN SELECT * FROM swarm._llm_message x WHERE x.conversation = conversation AND x.state = 'streaming' LOOP
        PERFORM swarm._llm_turn_store(conversation, last.no, jsonb_build_object('state', 'partial', 'text', last.text,
            'error', 'the process that received the answer was lost'));
    END LOOP;
    IF EXISTS (SELECT FROM swarm._llm_call x WHERE x.conversation = conversation AND x.state IN ('requested', 'waiting', 'approved', 'denied')) THEN
        IF query IS NOT NULL THEN
            EXECUTE 'SELECT state::text FROM swarm._query WHERE id = $1' INTO state USING query;
            IF state NOT IN ('init', 'running') THEN
                PERFORM swarm._llm_query_stopped(conversation, query);
                RETURN;
            END IF;
        END IF;
        PERFORM swarm._llm_move(conversation, 'start');
        action := 'tools';
        RETURN;
    END IF;
    IF query IS NOT NULL THEN
        EXECUTE 'SELECT * FROM swarm._query_turn_begin($1)' INTO begun USING query;
        IF NOT begun.go THEN
            PERFORM swarm._llm_query_stopped(conversation, query);
            RETURN;
        END IF;
        UPDATE swarm._llm_conversation x SET model = coalesce(begun.model, x.model),
            permission_mode = coalesce(begun.permission_mode, x.permission_mode) WHERE x.id = conversation RETURNING * INTO c;
        FOR reason IN SELECT jsonb_array_elements_text(coalesce(begun.commands, '[]')) LOOP
            PERFORM swarm._llm_add(conversation, to_jsonb(reason));
        END LOOP;
    END IF;
    SELECT * INTO last FROM swarm._llm_message x WHERE x.conversation = conversation AND x.state = 'done' ORDER BY x.no DESC LIMIT 1;
    IF c.kind = 'chat' AND last.role IS DISTINCT FROM 'user' THEN
        PERFORM swarm._llm_end(conversation, 'complete');
        PERFORM swarm._llm_tell_query(query, jsonb_build_object('done', true, 'result', to_jsonb(last.text)));
        RETURN;
    END IF;
    BEGIN
        m := swarm._llm_model(c.model);
        server := swarm._llm_server_of(m);
        dialect := (SELECT coalesce((SELECT o.option_value FROM pg_options_to_table(s.srvoptions) o WHERE o.option_name = 'dialect'), 'anthropic')
                    FROM pg_foreign_server s WHERE s.srvname = server);
        IF c.kind = 'embed' THEN
            IF dialect = 'anthropic' THEN
                RAISE EXCEPTION USING ERRCODE = 'feature_not_supported', MESSAGE = format('server "%s" has no embeddings', server),
                    HINT = 'Embeddings need a server with dialect openai.';
            END IF;
            chat := false;
            path := '/embeddings';
            max_tokens := 0;
            json := jsonb_build_object('model', coalesce(m.remote_name, m.name), 'input', c.input) || m.params;
        ELSIF c.kind = 'count' THEN
            IF dialect <> 'anthropic' THEN
                RAISE EXCEPTION USING ERRCODE = 'feature_not_supported', MESSAGE = format('server "%s" does not count tokens', server),
                    HINT = 'Counting needs a server with dialect anthropic.';
            END IF;
            chat := false;
            path := '/messages/count_tokens';
            json := jsonb_build_object('model', coalesce(m.remote_name, m.name), 'messages',
                CASE jsonb_typeof(c.input) WHEN 'string' THEN jsonb_build_array(jsonb_build_object('role', 'user', 'content', c.input)) ELSE c.input END);
        ELSE
            IF c.turns >= coalesce((c.options->>'max_turns')::int, 50) THEN
                RAISE EXCEPTION USING ERRCODE = 'configuration_limit_exceeded', MESSAGE = format('the conversation has had %s turns', c.turns),
                    HINT = 'See max_turns in the options of swarm.llm_ask().';
            END IF;
            path := CASE dialect WHEN 'anthropic' THEN '/messages' ELSE '/chat/completions' END;
            max_tokens := least(coalesce((c.options->>'max_tokens')::int, m.max_output, 4096), coalesce(m.max_output, 2147483647));
            json := swarm._llm_body(c, m, dialect, max_tokens);
        END IF;
        body := json::text;
        -- a token is a byte at least; the second part is what a template, and what
        -- servers say of tools, may add
        most_in := octet_length(body) + CASE WHEN json ? 'tools' THEN 1088 ELSE 64 END;
        most_out := (SELECT max(v::text::numeric) FROM (SELECT to_jsonb(coalesce(max_tokens, 0)) UNION ALL
            SELECT json->k FROM unnest('{max_tokens,max_completion_tokens,max_output_tokens}'::text[]) k
            WHERE jsonb_typeof(json->k) = 'number') x(v));
        IF c.kind <> 'count' THEN
            SELECT * INTO refused, refusal, reason FROM swarm._llm_reserve(c, m, most_in, most_out);
        END IF;
    EXCEPTION WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS reason = MESSAGE_TEXT, state = RETURNED_SQLSTATE;
        PERFORM swarm._llm_end(conversation, 'fail', reason, state);
        PERFORM swarm._llm_tell_query(query, jsonb_build_object('error', reason, 'sqlstate', state));
        RETURN;
    END;
    IF refusal = 'wait' THEN
        -- the job is run again in a while; no runner waits
        RAISE EXCEPTION USING ERRCODE = 'serialization_failure',
            MESSAGE = format('budget %s is reserved by turns under way', refused);
    END IF;
    IF refused IS NOT NULL THEN
        PERFORM swarm._llm_end(conversation, CASE refusal WHEN 'pause' THEN 'pause' ELSE 'fail' END, reason, '53400');
        PERFORM swarm._llm_tell_query(query, CASE refusal WHEN 'pause' THEN jsonb_build_object('pause', reason)
            ELSE jsonb_build_object('error', reason, 'sqlstate', '53400') END);
        RETURN;
    END IF;
    PERFORM swarm._llm_move(conversation, 'start');
    UPDATE swarm._llm_conversation x SET turn_mode = x.permission_mode WHERE x.id = conversation;
    INSERT INTO swarm._llm_message (conversation, no, role, state, model, tokens_in)
    VALUES (conversation, (SELECT coalesce(max(x.no), 0) + 1 FROM swarm._llm_message x WHERE x.conversation = conversation),
        'assistant', 'streaming', m.name, most_in) RETURNING no INTO message;
    action := 'turn';
END $$;

-- What has come of a message so far.
CREATE FUNCTION swarm._llm_stream(conversation bigint, message int, text text) RETURNS void
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
UPDATE swarm._llm_message m SET text = _llm_stream.text, first_text_at = coalesce(m.first_text_at, clock_timestamp())
WHERE m.conversation = _llm_stream.conversation AND m.no = message $$;

-- Store an answer, or what there is of one, book what it has cost, and settle
-- what was reserved. Returns its cost.
CREATE FUNCTION swarm._llm_turn_store(conversation bigint, message int, outcome jsonb) RETURNS numeric
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    c swarm._llm_conversation;
    x swarm._llm_message;
    m swarm.models;
    done boolean := outcome->>'state' = 'done';
    sent boolean := coalesce((outcome->>'sent')::boolean, true);
    estimated boolean := sent AND (outcome->>'tokens_in' IS NULL OR outcome->>'tokens_out' IS NULL);
    tokens_in bigint;
    tokens_out bigint;
    cache_read bigint := coalesce((outcome->>'cache_read')::bigint, 0);
    cache_write bigint := coalesce((outcome->>'cache_write')::bigint, 0);
    cost numeric;
BEGIN
    SELECT * INTO c FROM swarm._llm_conversation y WHERE y.id = conversation FOR UPDATE;
    SELECT * INTO x FROM swarm._llm_message y WHERE y.conversation = conversation AND y.no = message;
    SELECT * INTO m FROM swarm.models y WHERE y.name = x.model;
    -- what the server does not tell is estimated: four bytes a token
    tokens_in := CASE WHEN sent THEN coalesce((outcome->>'tokens_in')::bigint, x.tokens_in / 4) ELSE 0 END;
    tokens_out := CASE WHEN sent THEN coalesce((outcome->>'tokens_out')::bigint,
        (coalesce((outcome->>'bytes_out')::bigint, octet_length(coalesce(outcome->>'text', ''))) + 3) / 4) ELSE 0 END;
    cost := swarm._llm_price(m, tokens_in, cache_read, cache_write, tokens_out);
    UPDATE swarm._llm_message y SET state = CASE WHEN done THEN 'done' ELSE 'partial' END,
        content = coalesce(outcome->'content', y.content), text = coalesce(outcome->>'text', y.text),
        stop_reason = outcome->>'stop_reason', tokens_in = tokens_in, tokens_out = tokens_out, cache_read = cache_read,
        cache_write = cache_write, cost = cost, estimated = estimated, attempts = (outcome->>'attempts')::int,
        first_text_ms = (outcome->>'first_text_ms')::float8, latency_ms = (outcome->>'latency_ms')::float8,
        error = outcome->>'error', finished_at = swarm._now()
    WHERE y.conversation = conversation AND y.no = message;
    UPDATE swarm._llm_conversation y SET turns = y.turns + done::int, tokens_in = y.tokens_in + tokens_in,
        tokens_out = y.tokens_out + tokens_out, tokens_cached = y.tokens_cached + cache_read, cost = y.cost + coalesce(cost, 0)
    WHERE y.id = conversation;
    IF tokens_in + tokens_out > 0 THEN
        INSERT INTO swarm._llm_cost (owner, conversation, query, agent, task, model, tokens_in, tokens_out, tokens_cached, cost, estimated)
        VALUES (c.owner, conversation, c.query, c.agent, c.task, x.model, tokens_in, tokens_out, cache_read, cost, estimated);
    END IF;
    PERFORM swarm._budget_release(conversation, cost, tokens_in + tokens_out);
    RETURN cost;
END $$;

-- An attempt has used something and given no answer; another one follows, to which
-- the result is the message. It is booked and reserved for by itself. NULL: none
-- follows; _llm_next() says what does.
CREATE FUNCTION swarm._llm_turn_again(conversation bigint, message int, job bigint, most_out bigint, outcome jsonb) RETURNS int
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    c swarm._llm_conversation;
    x swarm._llm_message;
    m swarm.models;
    cost numeric;
    most_in bigint;
    another int;
BEGIN
    SELECT * INTO c FROM swarm._llm_conversation y WHERE y.id = conversation FOR UPDATE;
    SELECT * INTO x FROM swarm._llm_message y WHERE y.conversation = conversation AND y.no = message;
    most_in := x.tokens_in;
    cost := swarm._llm_turn_store(conversation, message, outcome);
    IF c.state <> 'running' OR c.job IS DISTINCT FROM job THEN
        RETURN NULL;
    END IF;
    SELECT * INTO x FROM swarm._llm_message y WHERE y.conversation = conversation AND y.no = message;
    IF NOT swarm._llm_tell_query(c.query, jsonb_build_object('tokens_in', x.tokens_in, 'tokens_out', x.tokens_out,
            'tokens_cached', x.cache_read, 'cost', cost, 'failed', true)) THEN
        PERFORM swarm._llm_query_stopped(conversation, c.query);
        RETURN NULL;
    END IF;
    SELECT * INTO c FROM swarm._llm_conversation y WHERE y.id = conversation;
    SELECT * INTO m FROM swarm.models y WHERE y.name = x.model;
    IF m.name IS NULL OR (SELECT r.refused IS NOT NULL FROM swarm._llm_reserve(c, m, most_in, most_out) r) THEN
        RETURN NULL;
    END IF;
    INSERT INTO swarm._llm_message (conversation, no, role, state, model, tokens_in)
    VALUES (conversation, (SELECT max(y.no) + 1 FROM swarm._llm_message y WHERE y.conversation = conversation),
        'assistant', 'streaming', x.model, most_in) RETURNING no INTO another;
    RETURN another;
END $$;

-- A turn has ended. Returns whether to go on.
CREATE FUNCTION swarm._llm_turn_end(conversation bigint, message int, outcome jsonb) RETURNS boolean
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    c swarm._llm_conversation;
    cost numeric := swarm._llm_turn_store(conversation, message, outcome);
    x swarm._llm_message;
    told jsonb;
    calls int := 0;
    go boolean;
BEGIN
    SELECT * INTO c FROM swarm._llm_conversation y WHERE y.id = conversation;
    SELECT * INTO x FROM swarm._llm_message y WHERE y.conversation = conversation AND y.no = message;
    told := jsonb_build_object('tokens_in', x.tokens_in, 'tokens_out', x.tokens_out, 'tokens_cached', x.cache_read, 'cost', cost,
        'latency_ms', x.latency_ms, 'failed', CASE WHEN outcome->>'state' = 'failed' THEN true END);
    IF c.state <> 'running' THEN
        RETURN false;
    END IF;
    IF outcome->>'state' = 'failed' THEN
        PERFORM swarm._llm_end(conversation, 'fail', outcome->>'error', outcome->>'sqlstate');
        PERFORM swarm._llm_tell_query(c.query, told || jsonb_build_object('error', outcome->>'error', 'sqlstate', outcome->>'sqlstate'));
        RETURN false;
    END IF;
    IF outcome->>'state' = 'partial' THEN
        IF c.query IS NULL THEN
            PERFORM swarm._llm_end(conversation, 'cancel');
            RETURN false;
        END IF;
        go := swarm._llm_tell_query(c.query, told);
        IF NOT go THEN
            PERFORM swarm._llm_query_stopped(conversation, c.query);
        END IF;
        RETURN go;
    END IF;
    IF c.kind <> 'chat' THEN
        UPDATE swarm._llm_conversation y SET result = outcome->'result' WHERE y.id = conversation;
        PERFORM swarm._llm_end(conversation, 'complete');
        RETURN false;
    END IF;
    -- an id names one call: what is approved by it must not be another; and it
    -- goes into a notification
    INSERT INTO swarm._llm_call (conversation, message, no, id, tool, input, state, result)
    SELECT conversation, message, n, id, tool, input, CASE WHEN again THEN 'failed' ELSE 'requested' END,
           CASE WHEN again THEN 'not called: its id is that of another call, or too long' END
    FROM (SELECT n, id, tool, input, length(id) > 256 OR row_number() OVER (PARTITION BY id ORDER BY n) > 1 AS again
          FROM (SELECT n, coalesce(nullif(b->>'id', ''), 'call_' || message || '_' || n) AS id, coalesce(b->>'name', '') AS tool, b->'input' AS input
                FROM jsonb_array_elements(x.content) WITH ORDINALITY y(b, n) WHERE b->>'type' = 'tool_use') z) z;
    GET DIAGNOSTICS calls = ROW_COUNT;
    IF calls = 0 THEN
        PERFORM swarm._llm_end(conversation, 'complete');
        PERFORM swarm._llm_tell_query(c.query, told || jsonb_build_object('done', true, 'result', to_jsonb(x.text)));
        RETURN false;
    END IF;
    IF NOT EXISTS (SELECT FROM swarm._llm_call k WHERE k.conversation = conversation AND k.message = message AND k.state = 'requested') THEN
        PERFORM swarm._llm_call_results(conversation);
    END IF;
    IF NOT swarm._llm_tell_query(c.query, told) THEN
        PERFORM swarm._llm_query_stopped(conversation, c.query);
        RETURN false;
    END IF;
    RETURN true;
END $$;

-- The next tool call to make: decision read or run; done: all are made; wait:
-- some wait for an approval; stop.
CREATE FUNCTION swarm._llm_call_next(conversation bigint, job bigint, OUT decision text, OUT message int, OUT no int,
    OUT function oid, OUT input jsonb)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    c swarm._llm_conversation;
    k swarm._llm_call;
    mode text;
    problem text;
    wait boolean := false;
BEGIN
    decision := 'stop';
    SELECT * INTO c FROM swarm._llm_conversation x WHERE x.id = conversation FOR UPDATE;
    IF NOT FOUND OR c.job IS DISTINCT FROM job OR c.state <> 'running' THEN
        RETURN;
    END IF;
    mode := c.permission_mode;
    IF c.query IS NOT NULL THEN
        EXECUTE 'SELECT swarm._query_mode($1)' INTO mode USING c.query;
    END IF;
    mode := swarm._llm_stricter(mode, c.turn_mode);
    FOR k IN SELECT * FROM swarm._llm_call x WHERE x.conversation = conversation
             AND x.state IN ('requested', 'waiting', 'approved', 'denied') ORDER BY x.message, x.no LOOP
        problem := NULL;
        IF k.state = 'waiting' AND k.request IS NOT NULL THEN
            EXECUTE 'SELECT CASE swarm._query_decision($1) WHEN ''allow'' THEN ''approved'' WHEN ''deny'' THEN ''denied'' ELSE ''waiting'' END'
                INTO k.state USING k.request;
        END IF;
        IF k.state = 'denied' THEN
            problem := 'refused by the user';
        ELSIF NOT k.tool = ANY (c.tools) THEN
            problem := format('tool "%s" does not exist', k.tool);
        ELSE
            BEGIN
                function := swarm._llm_tool_function(c.owner::oid, k.tool);
                decision := swarm._llm_permission(mode, (SELECT t.class FROM swarm._llm_tool t WHERE t.name = k.tool));
            EXCEPTION WHEN OTHERS THEN
                problem := SQLERRM;
            END;
        END IF;
        IF problem IS NULL AND decision = 'refuse' THEN
            problem := format('tool "%s" is not allowed in permission mode %s', k.tool, mode);
        END IF;
        IF problem IS NOT NULL THEN
            PERFORM swarm._llm_call_done(k.conversation, k.message, k.no, problem, true);
            CONTINUE;
        END IF;
        IF decision = 'ask' AND k.state <> 'approved' THEN
            wait := true;
            IF k.state = 'requested' THEN
                IF c.query IS NOT NULL THEN
                    EXECUTE 'SELECT swarm._query_ask($1, $2)' INTO k.request
                        USING c.query, jsonb_build_object('tool', k.tool, 'args', k.input, 'conversation', conversation, 'call', k.id);
                ELSE
                    PERFORM pg_notify('swarm_events', jsonb_build_object('conversation', conversation, 'approve', k.id, 'tool', k.tool)::text);
                END IF;
                UPDATE swarm._llm_call x SET state = 'waiting', request = k.request
                WHERE x.conversation = k.conversation AND x.message = k.message AND x.no = k.no;
            END IF;
            CONTINUE;
        END IF;
        decision := CASE decision WHEN 'read' THEN 'read' ELSE 'run' END;
        message := k.message;
        no := k.no;
        input := k.input;
        RETURN;
    END LOOP;
    IF wait THEN
        decision := 'wait';
        PERFORM swarm._llm_move(conversation, 'ask');
        PERFORM swarm._llm_tell_query(c.query, jsonb_build_object('approval',
            (SELECT max(x.request) FROM swarm._llm_call x WHERE x.conversation = conversation AND x.state = 'waiting')));
        RETURN;
    END IF;
    PERFORM swarm._llm_call_results(conversation);
    decision := 'done';
END $$;

CREATE FUNCTION swarm._llm_call_done(conversation bigint, message int, no int, result text, failed boolean) RETURNS void
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
UPDATE swarm._llm_call k SET state = CASE WHEN failed THEN 'failed' ELSE 'done' END, result = _llm_call_done.result, finished_at = swarm._now()
WHERE k.conversation = _llm_call_done.conversation AND k.message = _llm_call_done.message AND k.no = _llm_call_done.no $$;

-- The results of the last message's calls, as the user's next message.
CREATE FUNCTION swarm._llm_call_results(conversation bigint) RETURNS void
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
INSERT INTO swarm._llm_message (conversation, no, role, content, finished_at)
SELECT _llm_call_results.conversation,
       (SELECT max(m.no) + 1 FROM swarm._llm_message m WHERE m.conversation = _llm_call_results.conversation), 'user',
       jsonb_agg(jsonb_strip_nulls(jsonb_build_object('type', 'tool_result', 'tool_use_id', k.id, 'content', coalesce(k.result, ''),
           'is_error', CASE WHEN k.state = 'failed' THEN true END)) ORDER BY k.no), swarm._now()
FROM swarm._llm_call k
WHERE k.conversation = _llm_call_results.conversation
  AND k.message = (SELECT max(x.message) FROM swarm._llm_call x WHERE x.conversation = _llm_call_results.conversation)
HAVING count(*) > 0 $$;

-- Handler of kind llm. Everybody may execute it, only a runner can; it does
-- what a conversation of the job's owner says.
CREATE PROCEDURE swarm._llm_run(job swarm.job) LANGUAGE c
AS 'MODULE_PATHNAME', 'swarm_llm_job';
INSERT INTO swarm._handler (id, kind, owner, handler)
VALUES (8, 'llm', 10::oid::regrole, 'swarm._llm_run');

-- ---------------------------------------------------------------------
-- Waiting, views
-- ---------------------------------------------------------------------

CREATE VIEW swarm.llm_conversations WITH (security_invoker = true) AS
SELECT c.id, c.owner, c.kind, c.query, c.model,
       CASE WHEN c.state IN ('waiting', 'running') AND NOT EXISTS (SELECT FROM swarm._job j WHERE j.id = c.job) THEN 'failed'
            ELSE c.state END AS state,
       c.permission_mode, c.tools, c.turns, c.tokens_in, c.tokens_out, c.tokens_cached, c.cost, c.agent, c.task, c.job,
       (SELECT m.text FROM swarm._llm_message m WHERE m.conversation = c.id AND m.role = 'assistant' ORDER BY m.no DESC LIMIT 1) AS text,
       CASE WHEN c.state IN ('waiting', 'running') AND NOT EXISTS (SELECT FROM swarm._job j WHERE j.id = c.job)
            THEN coalesce(c.error, 'its job has ended without it') ELSE c.error END AS error,
       c.sqlstate, c.result, c.options, c.created_at, c.started_at, c.finished_at
FROM swarm._llm_conversation c;
COMMENT ON VIEW swarm.llm_conversations IS 'conversations with models, and other requests, that the current role may see';

CREATE VIEW swarm.llm_messages WITH (security_invoker = true) AS
SELECT conversation, no, role, state, text, content, model, stop_reason, tokens_in, tokens_out, cache_read, cache_write,
       cost, estimated, attempts, first_text_ms, latency_ms, error, started_at, first_text_at, finished_at
FROM swarm._llm_message;
COMMENT ON VIEW swarm.llm_messages IS 'messages of conversations; the text of one in state streaming grows';

CREATE VIEW swarm.llm_calls WITH (security_invoker = true) AS
SELECT conversation, message, no, id AS call, tool, input, state, decided_by, result, finished_at FROM swarm._llm_call;
COMMENT ON VIEW swarm.llm_calls IS 'tool calls of conversations; state waiting: swarm.llm_approve() decides';

CREATE VIEW swarm.tools WITH (security_invoker = true) AS
SELECT name, function, class, description, schema, owner FROM swarm._llm_tool t
WHERE has_function_privilege(to_regprocedure(t.function), 'EXECUTE');
COMMENT ON VIEW swarm.tools IS 'functions offered to language models that the current role may execute';

CREATE VIEW swarm.costs WITH (security_invoker = true) AS
SELECT id, at, owner, conversation, query, agent, task, model, tokens_in, tokens_out, tokens_cached, cost, estimated
FROM swarm._llm_cost;
COMMENT ON VIEW swarm.costs IS 'what each turn with a model has cost, in USD; null where the model has no prices';

CREATE VIEW swarm.budget_status AS
SELECT b.id, b.scope, b.period, b.action, b.limit_usd, coalesce(u.usd, 0) AS used_usd, coalesce(u.reserved_usd, 0) AS reserved_usd,
       b.limit_tokens, coalesce(u.tokens, 0) AS used_tokens, coalesce(u.reserved_tokens, 0) AS reserved_tokens,
       round(100 * greatest(u.usd / nullif(b.limit_usd, 0), u.tokens::numeric / nullif(b.limit_tokens, 0)), 1) AS used_percent,
       coalesce(u.alerted, 0) AS alerted, swarm._budget_start(b.period) AS period_start
FROM swarm.budgets b
LEFT JOIN swarm._budget_use u ON u.budget = b.id AND u.period_start = swarm._budget_start(b.period);
COMMENT ON VIEW swarm.budget_status IS 'budgets and what their current period has used';

-- The result of a conversation, for those who wait; NULL while it goes on.
CREATE FUNCTION swarm._llm_result(id bigint) RETURNS jsonb
LANGUAGE sql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT jsonb_build_object('id', c.id, 'state', c.state, 'text', c.text, 'result', c.result, 'error', c.error, 'sqlstate', c.sqlstate,
    'turns', c.turns, 'tokens_in', c.tokens_in, 'tokens_out', c.tokens_out, 'cost', c.cost,
    'stop_reason', (SELECT m.stop_reason FROM swarm._llm_message m WHERE m.conversation = c.id AND m.role = 'assistant' ORDER BY m.no DESC LIMIT 1),
    'calls', (SELECT jsonb_agg(jsonb_build_object('call', k.id, 'tool', k.tool, 'input', k.input) ORDER BY k.no)
              FROM swarm._llm_call k WHERE k.conversation = c.id AND k.state = 'waiting'))
FROM swarm.llm_conversations c WHERE c.id = _llm_result.id $$;

-- swarm.llm_wait(conversation, timeout): until it is complete, failed,
-- cancelled, paused or awaiting an approval. Errors: 42704, 22023 timeout is
-- negative, 55000 asked by this transaction, or by one that does not see news.
CREATE FUNCTION swarm.llm_wait(conversation bigint, timeout interval = '5 min') RETURNS jsonb
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    until timestamptz := CASE WHEN timeout < '1000 years' THEN clock_timestamp() + timeout ELSE 'infinity' END;
    waits_for bigint;
    result jsonb;
BEGIN
    IF timeout < '0' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'timeout must not be negative', HINT = 'NULL waits without limit.';
    ELSIF conversation IS NULL THEN
        RETURN NULL;
    END IF;
    LOOP
        SELECT c.job INTO waits_for FROM swarm._llm_conversation c WHERE c.id = conversation;
        IF NOT FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('conversation %s does not exist', conversation);
        END IF;
        result := swarm._llm_result(conversation);
        EXIT WHEN result->>'state' NOT IN ('waiting', 'running') OR clock_timestamp() >= until;
        IF current_setting('transaction_isolation') NOT LIKE 'read%' THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = 'cannot wait for a conversation in a transaction that does not see what others do',
                HINT = 'Use isolation level read committed.';
        END IF;
        PERFORM swarm.job_wait(waits_for, CASE WHEN until < 'infinity' THEN greatest(until - clock_timestamp(), '0') END);
    END LOOP;
    RETURN result;
END $$;
COMMENT ON FUNCTION swarm.llm_wait IS 'wait until a conversation has ended, or waits for somebody, or the timeout is over, and return its result';

-- swarm.cost_forecast(horizon, history): what each model costs a day, and will
-- cost over the horizon if it goes on so, by what the caller may see.
CREATE FUNCTION swarm.cost_forecast(horizon interval = '30 days', history interval = '7 days', OUT model text,
    OUT turns bigint, OUT spent numeric, OUT per_day numeric, OUT forecast numeric)
RETURNS SETOF record LANGUAGE sql STABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT c.model, count(*), sum(c.cost), round(sum(c.cost) / days, 6), round(sum(c.cost) / days * extract(epoch FROM horizon)::numeric / 86400, 6)
FROM swarm._llm_cost c,
     -- by the time there are figures for, but a day at least
     (SELECT greatest(least(extract(epoch FROM history), extract(epoch FROM swarm._now() - min(at)))::numeric / 86400, 1) AS days
      FROM swarm._llm_cost) d
WHERE c.at > swarm._now() - history
GROUP BY c.model, days ORDER BY 3 DESC NULLS LAST $$;
COMMENT ON FUNCTION swarm.cost_forecast IS 'what models will cost over a horizon if it goes on as in the history';

-- Conversations go with the history of jobs when they have ended, or nobody acts
-- for them any more; not those that wait for somebody. What they have cost stays.
CREATE FUNCTION swarm._llm_prune(before timestamptz) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    PERFORM swarm._budget_sweep();
    DELETE FROM swarm._llm_conversation c WHERE c.id IN (
        SELECT x.id FROM swarm._llm_conversation x
        WHERE coalesce(x.finished_at, x.started_at, x.created_at) < before AND x.state NOT IN ('paused', 'awaiting_approval')
          AND NOT EXISTS (SELECT FROM swarm._job j WHERE j.id = x.job)
        FOR UPDATE SKIP LOCKED);
    -- no period is longer than a month, but the one that has no end
    DELETE FROM swarm._budget_use u WHERE u.period_start > '-infinity' AND u.period_start < before - interval '31 days'
      AND NOT EXISTS (SELECT FROM swarm._llm_reservation r WHERE r.budget = u.budget AND r.period_start = u.period_start);
END $$;

-- ---------------------------------------------------------------------
-- What was decided as data, for tests and the documentation
-- ---------------------------------------------------------------------

CREATE FUNCTION swarm._llm_decisions(OUT name text, OUT verdict text, OUT harms boolean, OUT why text)
RETURNS SETOF record LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'swarm_llm_decisions';

-- The parser of answers, for tests: a stream fed in pieces of `piece` bytes.
CREATE FUNCTION swarm._llm_parse(dialect text, stream bytea, piece int) RETURNS jsonb
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'swarm_llm_parse';

-- ---------------------------------------------------------------------
-- Fewer tokens
-- ---------------------------------------------------------------------

CREATE FUNCTION swarm.token_estimate(message text) RETURNS int
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'swarm_llm_token_estimate';
COMMENT ON FUNCTION swarm.token_estimate IS 'about how many tokens a text is, by a rule of thumb; swarm.llm_count_tokens asks a server';

-- swarm.message_compress(message, level): errors: 22023 level.
CREATE FUNCTION swarm.message_compress(message text, level int = 1) RETURNS text
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'swarm_llm_message_compress';
COMMENT ON FUNCTION swarm.message_compress(text, int) IS 'the text with fewer tokens: level 1 loses nothing, 2 takes whitespace, 3 also phrases that say nothing, and "the"';

CREATE FUNCTION swarm.message_compress(message jsonb, level int = 1) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$ SELECT swarm.message_compress(message::text, level) $$;
COMMENT ON FUNCTION swarm.message_compress(jsonb, int) IS 'a document as a text with fewer tokens; expanded, it is the document''s text';

-- swarm.message_expand(message): errors: 22023 a damaged text.
CREATE FUNCTION swarm.message_expand(message text) RETURNS text
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'swarm_llm_message_expand';
COMMENT ON FUNCTION swarm.message_expand IS 'what swarm.message_compress was given, exactly so after level 1; other texts as they are';
