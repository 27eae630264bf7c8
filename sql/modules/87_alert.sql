-- 87_alert.sql: alerts: what queries take, fail and cost, and what is left for them.
--
-- src/query/query_alert.c tells when it is looked at; docs/reference/queries.md what is measured.

-- Raised when the measure is above threshold, cleared when it is at or below clear_at.
-- touched: not as the extension brings it.
CREATE TABLE swarm.alert_rules (
    name text PRIMARY KEY CHECK (name <> ''),
    measure text NOT NULL CHECK (measure IN ('latency', 'error_rate', 'cost', 'resources')),
    threshold numeric NOT NULL,
    clear_at numeric NOT NULL,
    severity text NOT NULL CHECK (severity IN ('page', 'message')),
    enabled boolean NOT NULL DEFAULT true,
    shipped boolean NOT NULL DEFAULT false,
    touched boolean NOT NULL DEFAULT false,
    CHECK (clear_at < threshold)
);
COMMENT ON TABLE swarm.alert_rules IS 'when there is an alert, and when it is over; edited with INSERT, UPDATE, DELETE';
INSERT INTO swarm.alert_rules (name, measure, threshold, clear_at, severity, shipped) VALUES
    ('slower', 'latency', 20, 15, 'page', true),
    ('more-errors', 'error_rate', 5, 4, 'page', true),
    ('over-budget', 'cost', 10, 8, 'message', true),
    ('resources', 'resources', 85, 75, 'message', true);
CREATE TRIGGER touched BEFORE INSERT OR UPDATE ON swarm.alert_rules
    FOR EACH ROW EXECUTE FUNCTION swarm._touched();
ALTER TABLE swarm.alert_rules ENABLE ALWAYS TRIGGER touched;

-- value: when it was raised. cleared_at: NULL while it lasts.
CREATE SEQUENCE swarm.alerts_id_seq;
CREATE TABLE swarm.alerts (
    id bigint PRIMARY KEY DEFAULT nextval('swarm.alerts_id_seq'),
    rule text NOT NULL,
    severity text NOT NULL,
    value numeric NOT NULL,
    threshold numeric NOT NULL,
    raised_at timestamptz NOT NULL DEFAULT swarm._now(),
    cleared_at timestamptz
);
COMMENT ON TABLE swarm.alerts IS 'alerts that were raised; cleared_at is null while one lasts';
-- there is one at a time
CREATE UNIQUE INDEX alerts_open ON swarm.alerts (rule) WHERE cleared_at IS NULL;
SELECT pg_catalog.pg_extension_config_dump('swarm.alert_rules', 'WHERE touched');
SELECT pg_catalog.pg_extension_config_dump('swarm.alerts_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm.alerts', '');

-- What is measured now; NULL: too little to say. latency: by how many percent statements, or
-- conversations, of the last hour took longer than those before. error_rate: by how many percentage
-- points more of them failed. Each needs 20 queries on both sides. cost: by how many percent the
-- fullest budget is overdrawn. resources: percent of connections, or of runners, that are taken.
CREATE FUNCTION swarm._alert_values(OUT measure text, OUT value numeric)
RETURNS SETOF record LANGUAGE sql VOLATILE PARALLEL RESTRICTED ROWS 4 SET search_path = pg_catalog, pg_temp AS $$
WITH q AS MATERIALIZED (
    SELECT kind, state, finished_at > swarm._now() - interval '1 hour' AS recent,
           extract(epoch FROM finished_at - started_at - total_pause) AS seconds
    FROM swarm._query WHERE kind <> 'session' AND state IN ('complete', 'error')),
ended AS (
    SELECT count(*) FILTER (WHERE recent) AS recent, count(*) FILTER (WHERE NOT recent) AS before,
           100 * (avg((state = 'error')::int) FILTER (WHERE recent) - avg((state = 'error')::int) FILTER (WHERE NOT recent)) AS more
    FROM q),
took AS (
    SELECT 100 * (avg(seconds) FILTER (WHERE recent) / nullif(avg(seconds) FILTER (WHERE NOT recent), 0) - 1) AS longer
    FROM q WHERE state = 'complete' AND seconds IS NOT NULL
    GROUP BY kind HAVING count(*) FILTER (WHERE recent) >= 20 AND count(*) FILTER (WHERE NOT recent) >= 20)
SELECT 'latency', (SELECT max(longer) FROM took)
UNION ALL SELECT 'error_rate', (SELECT more FROM ended WHERE recent >= 20 AND before >= 20)
UNION ALL SELECT 'cost', (SELECT max(used_percent) - 100 FROM swarm.budget_status)
UNION ALL SELECT 'resources', 100 * greatest(
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::numeric / current_setting('max_connections')::int,
    (SELECT count(*) FROM swarm._worker_processes() WHERE role = 'runner' AND job IS NOT NULL)::numeric
        / nullif(current_setting('pg_swarm.max_runners')::int, 0)) $$;

-- Raise and clear. Returns how many alerts last.
CREATE FUNCTION swarm._alert_check() RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    a record;
BEGIN
    FOR a IN
        INSERT INTO swarm.alerts (rule, severity, value, threshold)
        SELECT r.name, r.severity, round(v.value, 1), r.threshold
        FROM swarm.alert_rules r JOIN swarm._alert_values() v USING (measure)
        WHERE r.enabled AND v.value > r.threshold
        ON CONFLICT (rule) WHERE cleared_at IS NULL DO NOTHING
        RETURNING *
    LOOP
        PERFORM pg_notify('swarm_events', jsonb_build_object('alert', a.rule, 'severity', a.severity, 'value', a.value,
            'threshold', a.threshold)::text);
    END LOOP;
    FOR a IN
        UPDATE swarm.alerts x SET cleared_at = swarm._now()
        WHERE x.cleared_at IS NULL AND NOT EXISTS (
            SELECT FROM swarm.alert_rules r JOIN swarm._alert_values() v USING (measure)
            WHERE r.name = x.rule AND r.enabled AND v.value > r.clear_at)
        RETURNING *
    LOOP
        PERFORM pg_notify('swarm_events', jsonb_build_object('alert', a.rule, 'cleared', true)::text);
    END LOOP;
    RETURN (SELECT count(*) FROM swarm.alerts WHERE cleared_at IS NULL);
END $$;
