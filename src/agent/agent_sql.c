/*
 * agent_sql.c
 *	  SQL functions of agents: what only C can do of them.  The rest is
 *	  forwarded to sql/modules/80_agent.sql.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/condition_variable.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

#include "agent/agent_int.h"
#include "base/clock.h"
#include "base/doorbell.h"
#include "base/forward.h"
#include "base/shmem.h"
#include "base/spi.h"

#define WAIT_BUCKETS	64

static ConditionVariable *waiters = NULL;

static Size waiters_size(void);
static void waiters_init(void *memory, bool found);
static void ring(void *item);
static bool ended(int64 task);

static SwarmShmemPiece waiters_piece = {
	.name = "pg_swarm agents",
	.size = waiters_size,
	.init = waiters_init,
	.pointer = (void **) &waiters
};

SWARM_FORWARD(swarm_forward, agent_type_create);
SWARM_FORWARD(swarm_forward, agent_type_drop);
SWARM_FORWARD(swarm_forward_rows, agent_spawn);
SWARM_FORWARD(swarm_forward, agent_pause);
SWARM_FORWARD(swarm_forward, agent_resume);
SWARM_FORWARD(swarm_forward, agent_stop);
SWARM_FORWARD(swarm_forward, agent_kill);
SWARM_FORWARD(swarm_forward, task_submit);
SWARM_FORWARD(swarm_forward, task_cancel);
SWARM_FORWARD(swarm_forward_rows, agent_find);
SWARM_FORWARD(swarm_forward, agent_message);
SWARM_FORWARD(swarm_forward_rows, agent_inbox);
SWARM_FORWARD(swarm_forward, agent_handoff);
SWARM_FORWARD(swarm_forward, agent_progress);
SWARM_FORWARD(swarm_forward, hook_create);
SWARM_FORWARD(swarm_forward, hook_drop);
SWARM_FORWARD(swarm_forward, hook_enable);
SWARM_FORWARD(swarm_forward, protocol_create);
SWARM_FORWARD(swarm_forward, topology_create);
SWARM_FORWARD(swarm_forward, topology_drop);

void
swarm_agent_wait_init(void)
{
	swarm_shmem_register(&waiters_piece);
}

static Size
waiters_size(void)
{
	return WAIT_BUCKETS * sizeof(ConditionVariable);
}

static void
waiters_init(void *memory, bool found)
{
	for (int i = 0; !found && i < WAIT_BUCKETS; i++)
		ConditionVariableInit(&((ConditionVariable *) memory)[i]);
}

/*
 * swarm._agent_job(owner oid, agent bigint, priority text, run_at timestamptz)
 * returns bigint: a job of the owner that lets the agent work
 */
SWARM_FUNCTION(swarm__agent_job);
Datum
swarm__agent_job(PG_FUNCTION_ARGS)
{
	static SPIPlanPtr plan = NULL;
	Oid			types[] = {INT8OID, TEXTOID, TIMESTAMPTZOID};
	Datum		values[] = {PG_GETARG_DATUM(1), PG_GETARG_DATUM(2), PG_GETARG_DATUM(3)};
	Oid			user;
	int			sec_context;
	Datum		job;
	bool		isnull;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the job of an agent needs an owner, an agent and a priority")));
	GetUserIdAndSecContext(&user, &sec_context);
	SPI_connect();
	if (plan == NULL)
	{
		plan = SPI_prepare("SELECT swarm.job_enqueue('swarm_agent', pg_catalog.jsonb_build_object('agent', $1), "
						   "priority => $2::swarm.priority, run_at => $3, timeout => NULL, max_attempts => 10000)", 3, types);
		if (plan == NULL || SPI_keepplan(plan) != 0)
			elog(ERROR, "could not prepare the job of an agent");
	}
	SetUserIdAndSecContext(PG_GETARG_OID(0), sec_context | SECURITY_LOCAL_USERID_CHANGE);
	if (SPI_execute_plan(plan, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not enqueue the job of an agent");
	SetUserIdAndSecContext(user, sec_context);
	job = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	SPI_finish();
	return job;
}

/*
 * swarm._task_ended(task bigint): at commit, wake who waits for it.
 */
SWARM_FUNCTION(swarm__task_ended);
Datum
swarm__task_ended(PG_FUNCTION_ARGS)
{
	int64		task = PG_GETARG_INT64(0);

	if (waiters != NULL)
		swarm_doorbell_add(ring, NULL, &task, sizeof(task));
	PG_RETURN_VOID();
}

static void
ring(void *item)
{
	ConditionVariableBroadcast(&waiters[*(int64 *) item % WAIT_BUCKETS]);
}

/*
 * swarm.task_wait(task bigint, timeout interval) returns table
 */
SWARM_FUNCTION(swarm_task_wait);
Datum
swarm_task_wait(PG_FUNCTION_ARGS)
{
	static SPIPlanPtr plan = NULL;
	int64		task = PG_GETARG_INT64(0);
	TimestampTz deadline = swarm_wait_deadline(fcinfo, 1);
	ConditionVariable *cv;

	if (PG_ARGISNULL(0))
	{
		InitMaterializedSRF(fcinfo, 0); /* no row */
		return (Datum) 0;
	}
	swarm_require_preload("waiting for a task");
	cv = &waiters[task % WAIT_BUCKETS];
	ConditionVariablePrepareToSleep(cv);
	while (!ended(task))
	{
		long		ms = swarm_wait_left_ms(deadline);

		if (ms == 0)
			break;
		(void) ConditionVariableTimedSleep(cv, ms, PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	return swarm_forward_rows(fcinfo, "task_wait", &plan);
}

/* ended: is it committed that the task has ended, or is there no such? */
static bool
ended(int64 task)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(task)};
	bool		yes;

	swarm_spi_begin(&spi);
	(void) swarm_spi_query("SELECT NOT EXISTS (SELECT FROM swarm._agent_task WHERE id = $1 "
						   "AND state IN ('queued', 'running', 'waiting'))", 1, types, values, NULL);
	yes = swarm_spi_bool(0, 1);
	swarm_spi_end(&spi);
	return yes;
}
