/*
 * agent.c
 *	  Set-up of module agent.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "agent/agent_int.h"
#include "base/spi.h"
#include "job/job.h"

static bool parallel_spawn = true;
static int	escalate_after_ms = 5 * 60 * 1000;

/* Weights of the ranking; swarm._agent_rank() reads them by name. */
static struct
{
	const char *name;
	const char *what;
	double		value;
}			weights[] =

{
	{"pg_swarm.agent_weight_match", "Weight, in the ranking of agents, of how specialised an agent is.", 0.30},
	{"pg_swarm.agent_weight_load", "Weight, in the ranking of agents, of how little an agent has to do.", 0.30},
	{"pg_swarm.agent_weight_success", "Weight, in the ranking of agents, of the tasks that went well.", 0.20},
	{"pg_swarm.agent_weight_latency", "Weight, in the ranking of agents, of short tasks.", 0.10},
	{"pg_swarm.agent_weight_affinity", "Weight, in the ranking of agents, of having worked for the same key.", 0.10},
	{"pg_swarm.agent_weight_meaning", "Weight, in the ranking of agents, of a description that is near the query.", 0.30},
};

/* old_history: agents that have ended go with the history of jobs. */
static void
old_history(TimestampTz before)
{
	SwarmSpi	spi;
	Oid			types[] = {TIMESTAMPTZOID};
	Datum		values[] = {TimestampTzGetDatum(before)};

	swarm_spi_begin(&spi);
	swarm_spi_execute("SELECT swarm._agent_prune($1)", 1, types, values, NULL);
	swarm_spi_end(&spi);
}

void
swarm_agent_init(void)
{
	swarm_job_history_register(old_history);
	DefineCustomBoolVariable("pg_swarm.parallel_spawn",
							 "Start agents in parallel; off starts one after the other.",
							 NULL, &parallel_spawn, true,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.agent_escalate_after",
							"Escalate an agent's request for help that is not answered for so long; 0 never does.",
							NULL, &escalate_after_ms, 5 * 60 * 1000, 0, 7 * 24 * 3600 * 1000,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	for (int i = 0; i < lengthof(weights); i++)
		DefineCustomRealVariable(weights[i].name, weights[i].what, NULL,
								 &weights[i].value, weights[i].value, 0, 100,
								 PGC_USERSET, 0, NULL, NULL, NULL);
	swarm_agent_hook_init();
	swarm_agent_start_init();
	swarm_agent_wait_init();
}
