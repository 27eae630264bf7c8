-- 90_grants.sql: every GRANT and REVOKE of the extension, on one page.
--
-- The rule: the schema is open, private objects (leading underscore) and all
-- that spends money, reaches the network, reads files or changes what other
-- roles run is closed to PUBLIC.

GRANT USAGE ON SCHEMA swarm TO PUBLIC;

-- vector: <#> calls _negative_inner_product, so that one stays open.
GRANT EXECUTE ON FUNCTION swarm._negative_inner_product(real[], real[]) TO PUBLIC;
REVOKE ALL ON FUNCTION swarm._simd_level() FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm._simd_levels() FROM PUBLIC;

-- hnsw: swarm.qhnsw_* look for themselves what the caller may do with the table.
REVOKE ALL ON FUNCTION swarm._qhnsw_handler(internal) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm._qhnsw_real_l2(internal) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm._qhnsw_real_cosine(internal) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm._qhnsw_real_ip(internal) FROM PUBLIC;

-- base: the clock and the fault points are for tests.
REVOKE ALL ON FUNCTION swarm._clock_advance(interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm._fault_arm(text, text, int, int) FROM PUBLIC;

-- job: everybody may enqueue, and sees, waits for and cancels what is his own
-- (row-level security, and the functions' own checks). Defining kinds and
-- queues, and taking jobs of others out of the server, is for administrators
-- and whom they grant it to.
GRANT SELECT ON swarm._job, swarm._job_attempt, swarm._job_dep, swarm._job_history,
    swarm._queue, swarm._handler TO PUBLIC;
GRANT SELECT ON swarm.jobs, swarm.job_history, swarm.queues TO PUBLIC;
REVOKE ALL ON FUNCTION swarm.handler_register(text, regproc, int, interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.handler_drop(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.queue_create(text, int, int, interval, boolean, int, text, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.queue_pause(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.queue_resume(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.queue_drop(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.jobs_resume() FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.job_claim(text, int, interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.job_heartbeat(bigint, bigint, interval, float8) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.job_complete(bigint, bigint, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.job_fail(bigint, bigint, text, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm._job_table_changed() FROM PUBLIC;

-- worker
GRANT SELECT ON swarm.workers TO PUBLIC;
REVOKE ALL ON FUNCTION swarm._installed() FROM PUBLIC;

-- upload: what reaches the network or reads files of the server is closed; a
-- batch that somebody was allowed to make is his, to watch, cancel and retry.
GRANT SELECT ON swarm._s3_batch, swarm._s3_file TO PUBLIC;
GRANT SELECT ON swarm.s3_batches, swarm.s3_files, swarm.s3_endpoints TO PUBLIC;
REVOKE ALL ON FUNCTION swarm.s3_upload(name, text, swarm.s3_file[], jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.s3_upload_sync(name, text, swarm.s3_file[], jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.s3_head(name, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.s3_list(name, text, text, bigint, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.s3_delete(name, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.s3_get(name, text, text, bigint, bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.s3_presign(name, text, text, text, interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.s3_export(name, text, text, text, text, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.s3_import(name, text, text, regclass, text, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.from_file(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION swarm.from_file(text) TO pg_read_server_files;
REVOKE ALL ON FUNCTION swarm._s3_sign(text, text, jsonb, jsonb, text, text, text, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm._s3_decisions() FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm._s3_states() FROM PUBLIC;

-- schedule: rows are their owners' (row-level security); pg_cron has grants
-- of its own.
GRANT SELECT, INSERT, UPDATE, DELETE ON swarm._schedule, swarm._schedule_run TO PUBLIC;
GRANT SELECT ON swarm.schedules TO PUBLIC;

-- memory: views call _namespace_builtin, _namespace_may, _memory_rows (which reads
-- as its caller), _cache_stats and _track_counts. The functions check who may read and write a namespace (its owner,
-- and whom it was granted to); tables are read through row-level security.
-- Creating namespaces and sweeping is for administrators and whom they grant
-- it to.
GRANT SELECT ON swarm._namespace, swarm._namespace_grant, swarm._memory, swarm._memory_unlogged TO PUBLIC;
GRANT SELECT ON swarm.namespaces, swarm.namespace_grants, swarm.memory, swarm.stat_memory, swarm.stat_cache,
    swarm.stat_tracker TO PUBLIC;
REVOKE ALL ON FUNCTION swarm.namespace_create(text, interval, bigint, bigint, text, text, boolean, boolean, int, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.memory_sweep(int) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.maintenance_schedule() FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.maintenance_unschedule() FROM PUBLIC;
REVOKE ALL ON FUNCTION
    swarm._memory_changed(), swarm._namespace_changed(), swarm._namespace_check(oid, text, text),
    swarm._namespace_validate(swarm._namespace), swarm._origin_check(oid, swarm._namespace), swarm._recall_create(int), swarm._recall_index(int, int), swarm._namespace_lock(int),
    swarm._namespace_create(oid, text, interval, bigint, bigint, text, text, boolean, boolean, int, text),
    swarm._namespace_alter(oid, text, jsonb), swarm._namespace_drop(oid, text, boolean),
    swarm._namespace_grant(oid, text, text, text), swarm._namespace_revoke(oid, text, text), swarm._grantee(text),
    swarm._memory_table(int), swarm._memory_list(oid, text, text, int, text), swarm._memory_clear(oid, text, text),
    swarm._memory_sweep_table(text, timestamptz, int), swarm._memory_sweep(oid, int), swarm._memory_next_sweep(),
    swarm._memory_reembed(oid, text), swarm._memory_search(oid, text, text, int, text, jsonb, real[]),
    swarm._memory_search_run(text, boolean, text, int, jsonb, tsquery, real[]),
    swarm._memory_usage(oid, text, text, text, jsonb, int, text), swarm._memory_store_as(oid, text, text, jsonb, interval),
    swarm._process_usage(), swarm._track_count(text), swarm._track(oid, text, text, jsonb, text),
    swarm._track_spawn(oid, text, text, text), swarm._track_execution(oid, text), swarm._track_number(),
    swarm._track_spawned(text), swarm._track_completion(oid, text, text, text, text),
    swarm._agent_history(oid, text, timestamptz), swarm._namespace_may_as(oid, int), swarm._iso_time(timestamptz),
    swarm._millis(timestamptz), swarm._memory_text(text, jsonb), swarm._memory_query(text)
    FROM PUBLIC;
