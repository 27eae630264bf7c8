-- The state table of queries: every edge, and no other.
\set VERBOSITY terse
SET client_min_messages = warning;
SELECT setval('swarm._query_id_seq', 300000, false) > 0;
SELECT * FROM swarm._query_transitions() WHERE why IS NOT NULL;
SELECT event, string_agg(from_state, ' ' ORDER BY from_state COLLATE "C") AS states FROM swarm._query_transitions()
WHERE why IS NULL GROUP BY event ORDER BY event COLLATE "C";

-- Every event in every state, on a row that nothing works on (the scheduler leaves conversations alone).
CREATE SCHEMA query_state;
CREATE TABLE query_state.seen (from_state text, event text, to_state text);
CREATE PROCEDURE query_state.try(s text, e text) LANGUAGE plpgsql AS $$
DECLARE
    q bigint;
    answer text;
BEGIN
    INSERT INTO swarm._query (kind, owner, permission_mode, state, wanted, finished_at)
    VALUES ('llm', current_user::regrole, 'default', s::swarm.query_state, 'run', NULL) RETURNING id INTO q;
    BEGIN
        answer := swarm._query_set_state(q, e, 'why');
        INSERT INTO query_state.seen VALUES (s, e, answer);
        ASSERT (SELECT (v.action, v.before, v.after, v.detail, v.actor) = (e, s::swarm.query_state,
            answer::swarm.query_state, 'why', current_user::regrole) FROM swarm.query_events v WHERE v.query = q);
        ASSERT (SELECT x.state::text = answer AND (x.finished_at IS NOT NULL) = (answer IN ('complete', 'terminated', 'error'))
            FROM swarm._query x WHERE x.id = q);
    EXCEPTION WHEN object_not_in_prerequisite_state THEN
        ASSERT SQLERRM = format('cannot %s query %s in state "%s"', e, q, s), SQLERRM;
        ASSERT (SELECT x.state::text = s FROM swarm._query x WHERE x.id = q);
    END;
    DELETE FROM swarm._query_event WHERE query = q;
    DELETE FROM swarm._query WHERE id = q;
END $$;
DO $$
DECLARE
    s text;
    e text;
BEGIN
    FOR s IN SELECT unnest(enum_range(NULL::swarm.query_state)) LOOP
        FOREACH e IN ARRAY '{start,pause,resume,complete,fail,terminate}'::text[] LOOP
            CALL query_state.try(s, e);
        END LOOP;
    END LOOP;
END $$;
SELECT count(*) FROM query_state.seen;
SELECT * FROM query_state.seen EXCEPT SELECT from_state, event, to_state FROM swarm._query_transitions();
SELECT from_state, event, to_state FROM swarm._query_transitions() WHERE why IS NOT NULL EXCEPT SELECT * FROM query_state.seen;

-- The same through the door: what may be done to a conversation in which state.
CREATE PROCEDURE query_state.act(s text, a text, p jsonb) LANGUAGE plpgsql AS $$
DECLARE
    q bigint;
BEGIN
    INSERT INTO swarm._query (kind, owner, permission_mode, state)
    VALUES ('llm', current_user::regrole, 'default', s::swarm.query_state) RETURNING id INTO q;
    INSERT INTO swarm._query_request (query, what) VALUES (q, '{}') RETURNING jsonb_build_object('request', id) || p INTO p;
    BEGIN
        PERFORM swarm.query_control(a, q, p);
        INSERT INTO query_state.seen VALUES (s, a, (SELECT x.state FROM swarm._query x WHERE x.id = q));
    EXCEPTION WHEN object_not_in_prerequisite_state THEN
        INSERT INTO query_state.seen VALUES (s, a, 'refused');
    END;
    DELETE FROM swarm._query_event WHERE query = q;
    DELETE FROM swarm._query WHERE id = q;
END $$;
TRUNCATE query_state.seen;
DO $$
DECLARE
    s text;
BEGIN
    FOR s IN SELECT unnest(enum_range(NULL::swarm.query_state)) LOOP
        CALL query_state.act(s, 'pause', '{"mode": "drain"}');
        CALL query_state.act(s, 'terminate', '{}');
        CALL query_state.act(s, 'change_permissions', '{"mode": "plan"}');
        CALL query_state.act(s, 'execute_command', '{"command": "and in French"}');
    END LOOP;
END $$;
SELECT event AS action, string_agg(from_state || '->' || to_state, ' ' ORDER BY from_state COLLATE "C") FROM query_state.seen GROUP BY 1 ORDER BY 1;

-- The seam of the engine of conversations.
INSERT INTO swarm._query (kind, owner, permission_mode, body, model) VALUES ('llm', current_user::regrole, 'default', 'hello', 'm') RETURNING id AS q \gset
SELECT * FROM swarm._query_turn_begin(:q);
SELECT swarm.query_execute_command(:q, 'one'), swarm.query_execute_command(:q, 'two');
SELECT * FROM swarm._query_turn_begin(:q);
SELECT * FROM swarm._query_turn_begin(:q);
SELECT * FROM swarm._query_turn_end(:q, '{"tokens_in": 10, "tokens_out": 5, "cost": 0.25, "latency_ms": 100}');
SELECT * FROM swarm._query_turn_end(:q, '{"tokens_in": 30, "tokens_cached": 2, "cost": 0.5, "latency_ms": 300, "failed": true}');
SELECT turns, tokens, tokens_in, tokens_out, tokens_cached, cost, latency_ms, failures, error_rate FROM swarm.queries WHERE id = :q;
SELECT swarm._query_ask(:q, '{"tool": "drop"}') AS request \gset
SELECT * FROM swarm._query_turn_end(:q, '{"approval": true}');
SELECT go FROM swarm._query_turn_begin(:q);
SELECT swarm.query_approve(:q, :request, 'maybe');
SELECT swarm.query_approve(:q, -1, 'allow');
UPDATE swarm._query_request SET decision = 'deny' WHERE id = :request;
SELECT swarm._query_decision(:request), swarm._query_mode(:q);
SELECT swarm.query_change_permissions(:q, 'plan');
SELECT swarm.query_change_permissions(:q, 'sudo');
SELECT go, permission_mode FROM swarm._query_turn_begin(:q);
-- this session is at a turn: the wish waits for its end
SELECT swarm.query_pause(:q, 'later');
SELECT swarm.query_pause(:q, 'turn');
SELECT state, pausing, pid = pg_backend_pid() AS here FROM swarm.queries WHERE id = :q;
SELECT * FROM swarm._query_turn_end(:q, '{"tokens_out": 1}');
SELECT state, pausing, pid, pauses FROM swarm.queries WHERE id = :q;
SELECT go, state FROM swarm._query_turn_begin(:q);
SELECT swarm._query_set_state(:q, 'resume');
UPDATE swarm._query SET wanted = 'run' WHERE id = :q;
SELECT go, state FROM swarm._query_turn_begin(:q);
SELECT * FROM swarm._query_turn_end(:q, '{"done": true, "result": {"text": "bye"}}');
SELECT state, resumed_at > paused_at AS resumed, total_pause > '0' AS paused, finished_at IS NOT NULL AS finished FROM swarm.queries WHERE id = :q;
SELECT swarm.query_result(:q);
SELECT go, state FROM swarm._query_turn_begin(:q);
SELECT action, before, after, detail FROM swarm.query_events WHERE query = :q ORDER BY id;
INSERT INTO swarm._query (kind, owner, permission_mode, state) VALUES ('llm', current_user::regrole, 'default', 'running') RETURNING id AS q2 \gset
SELECT * FROM swarm._query_turn_end(:q2, '{"error": "the server said no", "sqlstate": "38000"}');
SELECT state, error, sqlstate, error_rate FROM swarm.queries WHERE id = :q2;
DELETE FROM swarm._query_event WHERE query IN (:q, :q2);
DELETE FROM swarm._query WHERE id IN (:q, :q2);
DROP SCHEMA query_state CASCADE;
