/*
 * memory_forward_sql.c
 *	  SQL functions whose work is a private function of the same name, in
 *	  sql/modules/50_memory.sql, which begins with asking
 *	  swarm._namespace_check() for the caller's right.
 */
#include "postgres.h"

#include "base/forward.h"

SWARM_FORWARD(swarm_forward, namespace_create);
SWARM_FORWARD(swarm_forward, namespace_alter);
SWARM_FORWARD(swarm_forward, namespace_drop);
SWARM_FORWARD(swarm_forward, namespace_grant);
SWARM_FORWARD(swarm_forward, namespace_revoke);
SWARM_FORWARD(swarm_forward_rows, memory_list);
SWARM_FORWARD(swarm_forward, memory_clear);
SWARM_FORWARD(swarm_forward, memory_sweep);
SWARM_FORWARD(swarm_forward, memory_reembed);
SWARM_FORWARD(swarm_forward_rows, memory_search);
SWARM_FORWARD(swarm_forward, memory_usage);
SWARM_FORWARD(swarm_forward, track_spawn);
SWARM_FORWARD(swarm_forward, track_execution);
SWARM_FORWARD(swarm_forward, track_completion);
SWARM_FORWARD(swarm_forward_rows, agent_history);
