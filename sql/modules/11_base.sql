-- 11_base.sql: the clock that tests can move, and fault points.

CREATE FUNCTION swarm._now() RETURNS timestamptz
LANGUAGE c STABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'swarm_clock_now';

CREATE FUNCTION swarm._clock_advance(by interval) RETURNS timestamptz
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_clock_advance';

CREATE FUNCTION swarm._fault_arm(name text, action text = 'error', skip int = 0, times int = 1)
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_fault_arm';

-- Call the hooks that users have made for an operation (src/base/hook.h): why
-- it must not be, or NULL. Costs next to nothing where there are none.
CREATE FUNCTION swarm._hook_run(caller oid, event text, phase text, payload jsonb) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm__hook_run';

-- The same for many operations at once: a veto or NULL for each; NULL if there
-- are no hooks.
CREATE FUNCTION swarm._hook_run_all(caller oid, event text, phase text, payloads jsonb[]) RETURNS text[]
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm__hook_run_all';

-- JSON text as jsonb; what JSON may escape and text cannot hold becomes U+FFFD.
CREATE FUNCTION swarm._json_storable(document text) RETURNS jsonb
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'swarm_json_to_jsonb';

-- Trigger of tables with rows that come with the extension, by name: what an
-- administrator has touched is his, and goes into a dump; a restored row takes the
-- place of the one that CREATE EXTENSION has made. With argument replace any new
-- row does, else only one that says that it was shipped.
CREATE FUNCTION swarm._touched() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.touched := true;
    IF TG_OP = 'INSERT' AND (TG_NARGS > 0 OR to_jsonb(NEW)->'shipped' = 'true') THEN
        EXECUTE format('DELETE FROM %s WHERE name = $1 AND NOT touched', TG_RELID::regclass) USING NEW.name;
    END IF;
    RETURN NEW;
END $$;
