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
