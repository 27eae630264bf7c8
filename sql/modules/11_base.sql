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
