/*
 * pg_swarm_hooked.c
 *	  The operations of all modules that have the hooks of base/operation.h: one
 *	  line each.
 *
 * Others call their hooks themselves, with what only they know: those that agents
 * and queries do, and those that are more than one thing to the one who guards them
 * (a job that is enqueued and one that is run).  swarm._hook_events() lists both;
 * the test agent_operations says which functions are no operations.
 */
#include "postgres.h"

#include "base/operation.h"

/* Jobs */
SWARM_HOOKED(job_cancel);
SWARM_HOOKED(job_retry);
SWARM_HOOKED(job_progress);
SWARM_HOOKED(job_claim);
SWARM_HOOKED(job_heartbeat);
SWARM_HOOKED(job_complete);
SWARM_HOOKED(job_fail);
SWARM_HOOKED(handler_register);
SWARM_HOOKED(handler_drop);
SWARM_HOOKED(queue_create);
SWARM_HOOKED(queue_drop);
SWARM_HOOKED(queue_pause);
SWARM_HOOKED(queue_resume);
SWARM_HOOKED_SQL(jobs_resume);
SWARM_HOOKED_SQL(schedule_create);
SWARM_HOOKED_SQL(schedule_drop);
SWARM_HOOKED_SQL(schedule_run);

/* Memory and the tracker */
SWARM_HOOKED(memory_expire);
SWARM_HOOKED(memory_expire_at);
SWARM_HOOKED(memory_persist);
SWARM_HOOKED(memory_reembed);
SWARM_HOOKED(memory_sweep);
SWARM_HOOKED(namespace_create);
SWARM_HOOKED(namespace_alter);
SWARM_HOOKED(namespace_drop);
SWARM_HOOKED(namespace_grant);
SWARM_HOOKED(namespace_revoke);
SWARM_HOOKED(track_spawn);
SWARM_HOOKED(track_execution);
SWARM_HOOKED(track_completion);
SWARM_HOOKED_SQL(cache_watch);
SWARM_HOOKED_SQL(cache_unwatch);
SWARM_HOOKED_SQL(maintenance_schedule);
SWARM_HOOKED_SQL(maintenance_unschedule);

/* Uploads */
SWARM_HOOKED(s3_cancel);
SWARM_HOOKED(s3_retry);
SWARM_HOOKED(s3_delete);
SWARM_HOOKED(s3_import);

/* Agents */
SWARM_HOOKED(agent_type_create);
SWARM_HOOKED(agent_type_drop);
SWARM_HOOKED(agent_inbox);
SWARM_HOOKED(task_cancel);
SWARM_HOOKED(hook_create);
SWARM_HOOKED(hook_drop);
SWARM_HOOKED(hook_enable);
SWARM_HOOKED(protocol_create);
SWARM_HOOKED(topology_create);
SWARM_HOOKED(topology_drop);
SWARM_HOOKED_SQL(retry_policy_set);
SWARM_HOOKED_SQL(retry_policy_drop);

/* Queries, rules, flags and experiments */
SWARM_HOOKED(query_register);
SWARM_HOOKED(query_optimize);
SWARM_HOOKED_SQL(experiment_assign);
SWARM_HOOKED_SQL(experiment_outcome);
SWARM_HOOKED_SQL(flag_set);
SWARM_HOOKED_SQL(optimizer_start);
SWARM_HOOKED_SQL(optimizer_stop);
SWARM_HOOKED_SQL(rollback_all);
SWARM_HOOKED_SQL(rule_create);
SWARM_HOOKED_SQL(rule_drop);
SWARM_HOOKED_SQL(rule_enable);

/* Language models */
SWARM_HOOKED(llm_ask);
SWARM_HOOKED(llm_say);
SWARM_HOOKED(llm_cancel);
SWARM_HOOKED(llm_resume);
SWARM_HOOKED(llm_approve);
SWARM_HOOKED(llm_permission_mode);
SWARM_HOOKED(llm_embed);
SWARM_HOOKED(tool_create);
SWARM_HOOKED(tool_drop);

/* Indexes */
SWARM_HOOKED(qhnsw_flush);
SWARM_HOOKED(qhnsw_prewarm);
