/*
 * query.c
 *	  Set-up of module query: settings and hooks.
 */
#include "postgres.h"

#include "utils/guc.h"

#include "job/job.h"
#include "query/query_int.h"

bool		swarm_query_control = false;
int			swarm_query_max_pause_ms = 10 * 60 * 1000;
int			swarm_query_max_pause_action = 0;
int			swarm_query_grace_ms = 5000;
int			swarm_query_result_rows = 1000;
int			swarm_query_result_kb = 1024;
int			swarm_query_result_table_mb = 1024;

static const struct config_enum_entry max_pause_actions[] = {
	{"resume", 0, false},
	{"terminate", 1, false},
	{NULL, 0, false}
};

void
swarm_query_init(void)
{
	DefineCustomBoolVariable("pg_swarm.query_control",
							 "Register sessions as queries that can be paused.",
							 "Takes effect at a session's next statement; for a role or a database.",
							 &swarm_query_control, false, PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.query_max_pause",
							"Longest pause of a query.",
							"Then pg_swarm.query_max_pause_action. 0: no limit.",
							&swarm_query_max_pause_ms, 10 * 60 * 1000, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomEnumVariable("pg_swarm.query_max_pause_action",
							 "What becomes of a query that has been paused for too long.",
							 NULL, &swarm_query_max_pause_action, 0, max_pause_actions,
							 PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.query_terminate_grace",
							"How long a terminated query may go on before its process is ended.",
							NULL, &swarm_query_grace_ms, 5000, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.query_result_rows",
							"Most rows that a statement's result keeps.", NULL,
							&swarm_query_result_rows, 1000, 0, INT_MAX,
							PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.query_result_size",
							"Most bytes that a statement's result keeps.", NULL,
							&swarm_query_result_kb, 1024, 0, 100 * 1024,
							PGC_USERSET, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.query_result_table_size",
							"Largest table that a statement's result becomes.",
							"A larger one is not kept, and the statement fails. 0: no limit.",
							&swarm_query_result_table_mb, 1024, 0, INT_MAX,
							PGC_USERSET, GUC_UNIT_MB, NULL, NULL, NULL);
	swarm_job_history_register(swarm_query_prune);
	swarm_query_shmem_init();
	swarm_query_pause_init();
	swarm_query_watch_init();
}
