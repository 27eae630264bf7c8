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

-- base: the clock and the fault points are for tests. Tools, which run as their
-- caller, call _json_storable, so that one stays open.
REVOKE ALL ON FUNCTION swarm._touched() FROM PUBLIC;
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
REVOKE ALL ON FUNCTION swarm._job_history_maintain() FROM PUBLIC;

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

-- query: everybody may start queries and register his session, and sees and
-- controls what is his own. permission_bypass() is nothing but the right to a
-- permission mode. What the engine of conversations calls is closed.
GRANT SELECT ON swarm._query, swarm._query_event, swarm._query_command, swarm._query_request TO PUBLIC;
GRANT SELECT ON swarm.queries, swarm.query_events, swarm.query_requests, swarm.query_blocking TO PUBLIC;
REVOKE ALL ON FUNCTION swarm.permission_bypass() FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm._query_turn_begin(bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm._query_turn_end(bigint, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm._query_set_state(bigint, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm._query_ask(bigint, jsonb) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm._query_decision(bigint) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm._query_mode(bigint) FROM PUBLIC;

-- rules, which run in the scheduler, and flags are for administrators;
-- everybody may ask for a flag.
GRANT SELECT ON swarm._flag TO PUBLIC;
REVOKE ALL ON FUNCTION swarm.rule_create(text, int, text, text, jsonb, boolean, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.rule_enable(text, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.rule_drop(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.optimizer_start(interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.optimizer_stop() FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.optimizer_status() FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.flag_set(text, boolean, numeric) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.experiment_assign(text, text, text[]), swarm.experiment_outcome(text, text, float8),
    swarm.experiment_result(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm.rollback_all() FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm._optimizer_changed() FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm._rule_added() FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm._rule_model(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm._temp_bytes(int) FROM PUBLIC;
-- alerts are about the queries of all
GRANT SELECT ON swarm.alert_rules, swarm.alerts TO pg_monitor;
REVOKE ALL ON FUNCTION swarm._alert_values(), swarm._alert_check() FROM PUBLIC;

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
    swarm._track_spawned(oid, text), swarm._track_completion(oid, text, text, text, text),
    swarm._agent_history(oid, text, timestamptz), swarm._namespace_may_as(oid, int), swarm._iso_time(timestamptz),
    swarm._millis(timestamptz), swarm._memory_no_number(jsonb), swarm._memory_text(text, jsonb), swarm._memory_query(text)
    FROM PUBLIC;

-- agent: everybody may spawn agents of the types that there are, as himself or a role he is a member of, give tasks to
-- them and command them. Types, hooks, protocols and retry policies decide what runs with the rights of others, so they are
-- for administrators and whom they grant it to. _agent_work, _agent_run_job, _agent_run_model and _protocol_memory are run
-- with the rights of an agent's role; views call _hook_counts and _topology_measured; functions that run as their caller call _agent_type_get,
-- _topology_links, _topology_linked and _topology_rules, and are held by row-level security.
GRANT SELECT ON swarm._agent_type, swarm._agent_set, swarm._agent, swarm._agent_task, swarm._agent_event, swarm._spawn_batch,
    swarm._topology, swarm._topology_member, swarm._agent_message, swarm._protocol, swarm._protocol_run, swarm._agent_pattern TO PUBLIC;
GRANT SELECT ON swarm.agent_types, swarm.agents, swarm.agent_tasks, swarm.agent_activity, swarm.agent_stat, swarm.spawn_batches,
    swarm.hook_stat, swarm.circuit_breakers, swarm.agent_strategies, swarm.agent_messages, swarm.protocols, swarm.protocol_runs,
    swarm.agent_patterns, swarm.topologies TO PUBLIC;
REVOKE ALL ON FUNCTION swarm.agent_type_create(jsonb), swarm.agent_type_drop(text), swarm.protocol_create(text, jsonb),
    swarm.hook_create(text, text, regproc, int, interval), swarm.hook_drop(int), swarm.hook_enable(int, boolean),
    swarm.retry_policy_set(text, jsonb), swarm.retry_policy_drop(text) FROM PUBLIC;
REVOKE ALL ON FUNCTION
    swarm._agent_adopt(bigint[]), swarm._agent_assign(bigint, bigint), swarm._agent_begin(bigint, bigint, swarm.agent),
    swarm._agent_budget(swarm._agent, jsonb), swarm._agent_type_hook(swarm._agent, swarm._agent_task, text, text, jsonb),
    swarm._agent_call(oid, oid, jsonb, integer), swarm._agent_check(jsonb, text),
    swarm._agent_command(oid, swarm._agent, text, text), swarm._agent_disperse(swarm._agent),
    swarm._agent_escalate(bigint), swarm._agent_done(bigint, bigint, jsonb, text, text, bigint),
    swarm._agent_find(oid, text[], text, integer, text, text), swarm._agent_get(oid, bigint), swarm._agent_shares(oid, oid),
    swarm._agent_go(swarm._agent, text, text), swarm._agent_handler(text),
    swarm._agent_handoff(oid, bigint, bigint, jsonb), swarm._agent_has_work(bigint),
    swarm._agent_help(bigint), swarm._agent_inbox(oid, bigint, integer), swarm._agent_job(oid, bigint, text, timestamp with time zone),
    swarm._agent_join(bigint), swarm._agent_kill(oid, bigint),
    swarm._agent_message(oid, bigint, bigint, text, jsonb), swarm._agent_pause(oid, bigint),
    swarm._agent_progress(oid, bigint, double precision, text), swarm._agent_purge(), swarm._agent_prune(timestamptz),
    swarm._agent_recover(swarm._agent), swarm._agent_resume(oid, bigint), swarm._agent_set_of(oid, text, text[]),
    swarm._agent_spawn(oid, jsonb, integer, integer, text, text, interval),
    swarm._agent_start(oid[], oid[], integer, integer, integer, boolean), swarm._agent_stop(oid, bigint),
    swarm._agent_take(oid, bigint), swarm._agent_task_rank(swarm.priority, timestamp with time zone),
    swarm._agent_tell(bigint, bigint, text, jsonb, integer), swarm._agent_type_create(oid, jsonb),
    swarm._agent_type_drop(oid, text), swarm._agent_wake(bigint), swarm._breaker_closed_at(text),
    swarm._breaker_note(text, boolean, text),
    swarm._hook_create(oid, text, text, regproc, integer, interval), swarm._hook_drop(oid, integer),
    swarm._hook_enable(oid, integer, boolean), swarm._hook_run(oid, text, text, jsonb),
    swarm._hook_run_all(oid, text, text, jsonb[]), swarm._hook_changed(), swarm._json_list(jsonb),
    swarm._json_misfit(jsonb, jsonb, text), swarm._policy(text), swarm._protocol_create(oid, text, jsonb),
    swarm._protocol_phase(swarm._agent, swarm._agent_task, text, jsonb), swarm._protocol_schema(),
    swarm._retry_decide(text, text, integer, integer), swarm._sorted(text[]), swarm._strategy_choose(),
    swarm._strategy_note(text, double precision), swarm._task_cancel(oid, bigint), swarm._task_ended(bigint),
    swarm._task_get(oid, bigint), swarm._task_submit(oid, jsonb, bigint), swarm._task_wait(oid, bigint, interval),
    swarm._topology_create(oid, text, text, bigint[]), swarm._topology_drop(oid, text), swarm._topology_judge(int), swarm._topology_tell(int, text),
    swarm._topology_note(bigint, int, double precision, int, bigint[], double precision[])
    FROM PUBLIC;

-- llm: what spends money is closed; a conversation that somebody was allowed
-- to begin is his, to go on with, watch and cancel (the right to the server is
-- looked at in each turn). _llm_tool_execute and _llm_run do what their caller
-- may do anyway.
GRANT SELECT ON swarm._llm_conversation, swarm._llm_message, swarm._llm_call, swarm._llm_cost, swarm._llm_tool,
    swarm.models TO PUBLIC;
GRANT SELECT ON swarm.llm_conversations, swarm.llm_messages, swarm.llm_calls, swarm.tools, swarm.costs TO PUBLIC;
REVOKE ALL ON FUNCTION swarm.llm_ask(text, jsonb, text, text[], text, jsonb),
    swarm.llm_ask(text, text, text, text[], text, jsonb), swarm.llm_embed(text, text[]),
    swarm.llm_count_tokens(text, jsonb), swarm.tool_create(text, regproc, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION
    swarm._budget_changed(), swarm._llm_server_check(text), swarm._llm_model(text),
    swarm._model_resolve(text), swarm._llm_server_of(swarm.models),
    swarm._llm_price(swarm.models, bigint, bigint, bigint, bigint), swarm._llm_edges(), swarm._llm_move(bigint, text),
    swarm._budgets_of(swarm._llm_conversation, text), swarm._budget_alert(int, timestamptz, boolean),
    swarm._budget_share(swarm.budgets, swarm._budget_use), swarm._llm_unbounded(swarm._llm_conversation),
    swarm._llm_reserve(swarm._llm_conversation, swarm.models, bigint, bigint), swarm._llm_params_refused(),
    swarm._llm_most_usd(swarm.models, bigint, bigint), swarm._llm_prune(timestamptz), swarm._llm_turn_again(bigint, int, bigint, bigint, jsonb),
    swarm._budget_reserve(swarm._llm_conversation, swarm.models, bigint, bigint), swarm._budget_release(bigint, numeric, bigint),
    swarm._budget_sweep(), swarm._llm_permission(text, text), swarm._llm_stricter(text, text), swarm._llm_tool_schema(oid),
    swarm._tool_create(oid, text, regproc, text, text), swarm._tool_drop(oid, text), swarm._llm_blocks(jsonb),
    swarm._llm_blocks_text(jsonb), swarm._llm_add(bigint, jsonb), swarm._llm_check_mode(oid, text),
    swarm._llm_create(oid, text, jsonb, text, text[], text, jsonb, bigint), swarm._llm_tool_function(oid, text),
    swarm._llm_ask(oid, text, jsonb, text, text[], text, jsonb), swarm._llm_request(oid, text, text, jsonb),
    swarm._llm_embed(oid, text, text[]), swarm._llm_count_tokens(oid, text, jsonb), swarm._llm_own(oid, bigint),
    swarm._llm_not_in_runner(), swarm._llm_say(oid, bigint, jsonb), swarm._llm_call_give_up(bigint),
    swarm._llm_resume(oid, bigint), swarm._llm_cancel(oid, bigint), swarm._llm_approve(oid, bigint, text, boolean),
    swarm._llm_permission_mode(oid, bigint, text), swarm._llm_body(swarm._llm_conversation, swarm.models, text, int),
    swarm._llm_of_query(bigint), swarm._llm_begin(oid, jsonb, bigint), swarm._llm_end(bigint, text, text, text),
    swarm._llm_tell_query(bigint, jsonb), swarm._llm_query_stopped(bigint, bigint), swarm._llm_next(bigint, bigint),
    swarm._llm_stream(bigint, int, text), swarm._llm_turn_store(bigint, int, jsonb), swarm._llm_turn_end(bigint, int, jsonb),
    swarm._llm_call_next(bigint, bigint), swarm._llm_call_done(bigint, int, int, text, boolean),
    swarm._llm_call_results(bigint), swarm._llm_decisions(), swarm._llm_parse(text, bytea, int)
    FROM PUBLIC;

-- What operations with hooks around them do (src/base/operation.h): nobody goes past the hooks.
REVOKE ALL ON FUNCTION
    swarm._job_cancel(bigint, text), swarm._job_progress(double precision, text), swarm._cache_watch(regclass),
    swarm._cache_unwatch(regclass), swarm._experiment_assign(text, text, text[]),
    swarm._experiment_outcome(text, text, float8), swarm._flag_set(text, boolean, numeric), swarm._jobs_resume(),
    swarm._maintenance_schedule(), swarm._maintenance_unschedule(), swarm._optimizer_start(interval),
    swarm._optimizer_stop(), swarm._retry_policy_set(text, jsonb), swarm._retry_policy_drop(text),
    swarm._rollback_all(), swarm._rule_create(text, int, text, text, jsonb, boolean, boolean), swarm._rule_drop(text),
    swarm._rule_enable(text, boolean),
    swarm._schedule_create(text, text, text, jsonb, text, swarm.priority, int, interval, jsonb),
    swarm._schedule_drop(text), swarm._schedule_run(text)
    FROM PUBLIC;
