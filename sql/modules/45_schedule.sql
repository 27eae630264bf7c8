-- 45_schedule.sql: jobs by the calendar, through pg_cron.
--
-- pg_cron calls swarm.schedule_run(name) as the schedule's owner; that
-- enqueues one job for each due time, however often it is called for it.

CREATE TABLE swarm._schedule (
    name text PRIMARY KEY,
    owner regrole NOT NULL,
    cron text NOT NULL,
    kind text NOT NULL,
    args jsonb NOT NULL,
    queue text NOT NULL,
    priority swarm.priority NOT NULL,
    max_attempts int NOT NULL,
    timeout interval,
    tags jsonb NOT NULL,
    cron_job bigint
);

-- Which due times have their job: the primary key is the once-only rule.
CREATE TABLE swarm._schedule_run (
    schedule text REFERENCES swarm._schedule ON DELETE CASCADE,
    due timestamptz,
    job bigint NOT NULL,
    PRIMARY KEY (schedule, due)
);
SELECT pg_catalog.pg_extension_config_dump('swarm._schedule', '');

ALTER TABLE swarm._schedule ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._schedule
    USING (pg_catalog.pg_has_role(owner::oid, 'USAGE'));
ALTER TABLE swarm._schedule_run ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._schedule_run
    USING (EXISTS (SELECT FROM swarm._schedule s WHERE s.name = schedule));

-- Raise 55000 unless pg_cron can be called here.
CREATE FUNCTION swarm._require_cron(command text) RETURNS void
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF to_regprocedure('cron.schedule(text, text, text)') IS NOT NULL THEN
        RETURN;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
        MESSAGE = 'schedules require pg_cron in this database',
        HINT = CASE WHEN current_setting('cron.database_name', true) IS NULL
            THEN 'Add pg_cron to shared_preload_libraries, set cron.database_name to this database, restart, and run CREATE EXTENSION pg_cron.'
            WHEN current_setting('cron.database_name') = current_database()
            THEN 'Run CREATE EXTENSION pg_cron.'
            ELSE format('pg_cron runs in database %I. Set cron.database_name to this one, or call there: SELECT cron.schedule_in_database(''NAME'', ''CRON'', %L, %L);',
                current_setting('cron.database_name', true), command, current_database()) END;
END $$;

-- swarm.schedule_create(name, cron, kind, args, ...): enqueue such a job
-- whenever the cron expression is due; replaces a schedule of that name.
-- Errors: 55000 without pg_cron, 42501 if another role owns the name, 22023 for
-- a timeout or max_attempts that no job may have, 42704
-- for an unknown kind or queue. Writes _schedule and pg_cron's table.
CREATE FUNCTION swarm._schedule_create(name text, cron text, kind text, args jsonb,
    queue text, priority swarm.priority, max_attempts int,
    timeout interval, tags jsonb)
RETURNS void LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    command text := format('SELECT swarm.schedule_run(%L)', name);
    cron_job bigint;
BEGIN
    IF name IS NULL OR cron IS NULL OR kind IS NULL OR args IS NULL OR queue IS NULL
       OR priority IS NULL OR max_attempts IS NULL OR tags IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed',
            MESSAGE = 'only the timeout of a schedule may be null';
    END IF;
    IF timeout <= '0' OR timeout > '24 days' OR max_attempts NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'timeout must be between 0 and 24 days, and max_attempts between 1 and 10000';
    END IF;
    PERFORM swarm._require_cron(command);
    IF kind <> 'sql' AND NOT EXISTS (SELECT FROM swarm._handler h WHERE h.kind = _schedule_create.kind) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = format('job kind "%s" does not exist', kind),
            HINT = 'Define it with swarm.handler_register().';
    END IF;
    IF queue <> 'default' AND NOT EXISTS (SELECT FROM swarm._queue q WHERE q.name = _schedule_create.queue) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = format('queue "%s" does not exist', queue),
            HINT = 'Create it with swarm.queue_create().';
    END IF;
    IF EXISTS (SELECT FROM swarm._schedule s WHERE s.name = _schedule_create.name
               AND s.owner <> current_user::regrole) THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('must be owner of schedule "%s"', name);
    END IF;
    EXECUTE 'SELECT cron.schedule($1, $2, $3)' INTO cron_job
        USING 'pg_swarm ' || name, cron, command;
    INSERT INTO swarm._schedule AS s (name, owner, cron, kind, args, queue, priority, max_attempts,
                                      timeout, tags, cron_job)
    VALUES (name, current_user::regrole, cron, kind, args, queue, priority, max_attempts,
            timeout, tags, cron_job)
    ON CONFLICT ON CONSTRAINT _schedule_pkey DO UPDATE
    SET cron = EXCLUDED.cron, kind = EXCLUDED.kind, args = EXCLUDED.args, queue = EXCLUDED.queue,
        priority = EXCLUDED.priority, max_attempts = EXCLUDED.max_attempts,
        timeout = EXCLUDED.timeout, tags = EXCLUDED.tags, cron_job = EXCLUDED.cron_job;
END $$;

CREATE FUNCTION swarm.schedule_create(name text, cron text, kind text, args jsonb = '{}',
    queue text = 'default', priority swarm.priority = 'medium', max_attempts int = 5,
    timeout interval = '5 min', tags jsonb = '{}') RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_schedule_create';
COMMENT ON FUNCTION swarm.schedule_create IS 'enqueue a job whenever a cron expression is due (needs pg_cron)';

-- swarm.schedule_drop(name): remove a schedule; its jobs stay.
-- Errors: 42704 if there is none that the caller may see.
CREATE FUNCTION swarm._schedule_drop(name text)
RETURNS void LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    cron_job bigint;
BEGIN
    DELETE FROM swarm._schedule s WHERE s.name = _schedule_drop.name RETURNING s.cron_job INTO cron_job;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = format('schedule "%s" does not exist', name);
    END IF;
    IF to_regclass('cron.job') IS NOT NULL THEN
        EXECUTE 'SELECT cron.unschedule(jobid) FROM cron.job WHERE jobid = $1' USING cron_job;
    END IF;
END $$;

CREATE FUNCTION swarm.schedule_drop(name text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_schedule_drop';
COMMENT ON FUNCTION swarm.schedule_drop IS 'remove a schedule; jobs it has enqueued stay';

-- swarm.schedule_run(name) returns bigint: what pg_cron calls: enqueue the job
-- of the current minute (of the current second for a schedule in seconds).
-- Returns the job's id, the same one if it was called for that time before.
CREATE FUNCTION swarm._schedule_run(name text)
RETURNS bigint LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    s swarm._schedule;
    due_time timestamptz;
    job_id bigint;
BEGIN
    SELECT * INTO s FROM swarm._schedule t WHERE t.name = _schedule_run.name FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object',
            MESSAGE = format('schedule "%s" does not exist', name);
    END IF;
    -- what the owner may change must not run with the rights of another
    IF s.owner <> current_user::regrole THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('must be owner of schedule "%s"', name);
    END IF;
    due_time := date_trunc(CASE WHEN s.cron ~* 'second' THEN 'second' ELSE 'minute' END, swarm._now());
    SELECT r.job INTO job_id FROM swarm._schedule_run r WHERE r.schedule = name AND r.due = due_time;
    IF FOUND THEN
        RETURN job_id;
    END IF;
    job_id := swarm.job_enqueue(s.kind, s.args, s.queue, s.priority, max_attempts => s.max_attempts,
                                timeout => s.timeout, tags => s.tags);
    INSERT INTO swarm._schedule_run (schedule, due, job) VALUES (name, due_time, job_id);
    DELETE FROM swarm._schedule_run r WHERE r.schedule = name AND r.due < due_time - interval '1 day';
    RETURN job_id;
END $$;

CREATE FUNCTION swarm.schedule_run(name text) RETURNS bigint
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_schedule_run';
COMMENT ON FUNCTION swarm.schedule_run IS 'enqueue the job of a schedule for the current minute, once; pg_cron calls it';

CREATE VIEW swarm.schedules WITH (security_invoker = true) AS
SELECT s.name, s.owner, s.cron, s.kind, s.args, s.queue, s.priority, s.max_attempts, s.timeout, s.tags,
       r.due AS last_due, r.job AS last_job, j.state AS last_state
FROM swarm._schedule s
LEFT JOIN LATERAL (SELECT due, job FROM swarm._schedule_run WHERE schedule = s.name
                   ORDER BY due DESC LIMIT 1) r ON true
LEFT JOIN LATERAL (SELECT state FROM swarm.jobs WHERE id = r.job LIMIT 1) j ON true;
COMMENT ON VIEW swarm.schedules IS 'schedules with their last job';
