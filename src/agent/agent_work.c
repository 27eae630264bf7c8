/*
 * agent_work.c
 *	  An agent at work: the procedure behind jobs of kind swarm_agent.
 *
 * A job of this kind says only "agent N has something to do".  It runs as the
 * agent's role, takes the agent's lock and does tasks of the agent until there
 * are none, each in two transactions: one marks the task as running, the other
 * holds the handler's effects and the task's end together.  Who finds the lock
 * taken ends at once: the holder looks again after he has released it, so no
 * task is forgotten, and nobody waits.
 *
 * An attempt of the job that finds the agent busy, with the lock free, takes
 * over from a process that died: swarm._agent_take() puts its task back.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "pgstat.h"
#include "storage/lock.h"
#include "storage/lmgr.h"
#include "tcop/pquery.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"

#include "agent/agent_int.h"
#include "base/export.h"
#include "base/fault.h"
#include "base/spi.h"
#include "job/job.h"

#define JOB_ARGS		4		/* field of swarm.job */
#define TASKS_A_JOB		20		/* then others may have the runner */
#define AGENT_LOCKS		20		/* locktag_field4, beside those of users: 1, 2 */

/* A task as swarm._agent_take() hands it out. */
typedef struct Task
{
	int64		id;
	Oid			proc;
	Datum		payload;		/* jsonb */
	Datum		agent;			/* swarm.agent */
	int64		timeout_us;
	bool		read_only;		/* its agent may only plan */
} Task;

static void work(int64 agent, MemoryContext context);
static bool is_ours(int64 agent);
static bool take(int64 agent, MemoryContext context, Task *task);
static bool has_work(int64 agent);
static void run_task(int64 agent, Task *task, MemoryContext context);
static void begin_task(int64 agent, Task *task, SwarmCall *call);
static void end_task(int64 agent, const Task *task, const SwarmCall *call);
static void help(int64 agent);
static void again(int64 agent);
static void commit(MemoryContext context, bool lazily);
static bool lock_agent(int64 agent);
static void unlock_agent(int64 agent);
static LOCKTAG agent_tag(int64 agent);

/*
 * swarm._agent_work(job swarm.job): procedure, handler of kind swarm_agent.
 */
SWARM_FUNCTION(swarm_agent_work);
Datum
swarm_agent_work(PG_FUNCTION_ARGS)
{
	bool		isnull = true;	/* anybody may call it with anything */
	Datum		datum = PG_ARGISNULL(0) ? (Datum) 0 :
	GetAttributeByNum(PG_GETARG_HEAPTUPLEHEADER(0), JOB_ARGS, &isnull);
	Jsonb	   *args = isnull ? NULL : DatumGetJsonbP(datum);
	JsonbValue	buffer;
	JsonbValue *agent = args != NULL && JB_ROOT_IS_OBJECT(args) ?
	getKeyJsonValueFromContainer(&args->root, "agent", 5, &buffer) : NULL;
	MemoryContext before = CurrentMemoryContext;
	MemoryContext context;

	if (MyBackendType != B_BG_WORKER || fcinfo->context == NULL ||
		!IsA(fcinfo->context, CallContext) || ((CallContext *) fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("only a runner can let an agent work"),
				 errhint("Use swarm.task_submit().")));
	if (agent == NULL || agent->type != jbvNumeric)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a job of kind \"swarm_agent\" needs a number \"agent\" in its args")));
	context = AllocSetContextCreate(before, "pg_swarm agent", ALLOCSET_DEFAULT_SIZES);
	work(DatumGetInt64(DirectFunctionCall1(numeric_int8, NumericGetDatum(agent->val.numeric))),
		 context);
	MemoryContextSwitchTo(before);
	MemoryContextDelete(context);
	PG_RETURN_VOID();
}

static void
work(int64 agent, MemoryContext context)
{
	bool		locked = false;

	if (!is_ours(agent))
		return;
	for (int n = 0; n < TASKS_A_JOB;)
	{
		Task		task;
		bool		found;

		MemoryContextReset(context);
		MemoryContextSwitchTo(context);
		if (!locked && !lock_agent(agent))
		{
			help(agent);		/* who has it looks again, but when? */
			return;
		}
		locked = true;
		found = take(agent, context, &task);
		commit(context, true);
		if (!found)
		{
			unlock_agent(agent);
			locked = false;
			if (!has_work(agent))
				return;
			n++;
			continue;
		}
		SWARM_FAULT("agent.taken");
		run_task(agent, &task, context);
		SWARM_FAULT("agent.commit");
		commit(context, false);
		n++;
	}

	/*
	 * before another job is let loose: it must not find the lock taken and
	 * end
	 */
	if (locked)
		unlock_agent(agent);
	if (has_work(agent))
		again(agent);
}

/*
 * is_ours: is it an agent of the job's role?  A job of another must not even
 * hold its lock.
 */
static bool
is_ours(int64 agent)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID, OIDOID};
	Datum		values[] = {Int64GetDatum(agent), ObjectIdGetDatum(GetUserId())};
	bool		ours;

	swarm_spi_begin(&spi);
	ours = swarm_spi_query("SELECT FROM swarm._agent WHERE id = $1 AND owner = $2", 2, types, values, NULL) > 0;
	swarm_spi_end(&spi);
	return ours;
}

/*
 * take: the agent's next task, in `context`; false if it has none, or may not
 * work.
 */
static bool
take(int64 agent, MemoryContext context, Task *task)
{
	SwarmSpi	spi;
	Oid			types[] = {OIDOID, INT8OID};
	Datum		values[] = {ObjectIdGetDatum(GetUserId()), Int64GetDatum(agent)};
	bool		isnull;
	bool		found;
	MemoryContext old;

	swarm_spi_begin(&spi);
	found = swarm_spi_execute("SELECT task, proc, payload, agent, timeout_us, read_only "
							  "FROM swarm._agent_take($1, $2)", 2, types, values, NULL) > 0;
	if (found)
	{
		(void) swarm_spi_column(0, 1, &isnull);
		found = !isnull;
	}
	if (found)
	{
		old = MemoryContextSwitchTo(context);
		task->id = swarm_spi_int64(0, 1);
		task->proc = DatumGetObjectId(swarm_spi_column(0, 2, &isnull));
		task->payload = PointerGetDatum(PG_DETOAST_DATUM_COPY(swarm_spi_column(0, 3, &isnull)));
		task->agent = PointerGetDatum(PG_DETOAST_DATUM_COPY(swarm_spi_column(0, 4, &isnull)));
		task->timeout_us = swarm_spi_int64(0, 5);
		task->read_only = swarm_spi_bool(0, 6);
		MemoryContextSwitchTo(old);
	}
	swarm_spi_end(&spi);
	return found;
}

/* has_work: is there a task that it may begin now? */
static bool
has_work(int64 agent)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(agent)};
	bool		yes;

	swarm_spi_begin(&spi);
	(void) swarm_spi_query("SELECT swarm._agent_has_work($1)", 1, types, values, NULL);
	yes = swarm_spi_bool(0, 1);
	swarm_spi_end(&spi);
	return yes;
}

/*
 * run_task: what comes before, the handler, what comes after; all but the
 * handler as the extension.
 */
static void
run_task(int64 agent, Task *task, MemoryContext context)
{
	SwarmCall	call = {0};
	char		activity[64];

	snprintf(activity, sizeof(activity), "agent " INT64_FORMAT ", task " INT64_FORMAT, agent, task->id);
	pgstat_report_activity(STATE_RUNNING, activity);
	begin_task(agent, task, &call);
	if (call.error == NULL)
	{
		PG_TRY();
		{
			swarm_agent_call(GetUserId(), task->proc, task->payload, task->agent,
							 task->timeout_us, task->read_only, &call);
		}
		PG_CATCH();
		{
			/* cancelled: the job ends so; the task goes back */
			ErrorData  *edata;

			MemoryContextSwitchTo(context);
			edata = CopyErrorData();
			FlushErrorState();
			if (edata->sqlerrcode != ERRCODE_QUERY_CANCELED || !swarm_job_cancelled())
				ReThrowError(edata);
			call.error = "cancelled";
			call.sqlstate = "57014";
			end_task(agent, task, &call);
			unlock_agent(agent);	/* before the job of its next attempt
									 * exists */
			commit(context, false);
			ReThrowError(edata);
		}
		PG_END_TRY();
	}
	end_task(agent, task, &call);
}

/*
 * begin_task: hooks and the protocol's phase before the task, which may give the
 * agent what it restores; call->error says why it must not begin.
 */
static void
begin_task(int64 agent, Task *task, SwarmCall *call)
{
	MemoryContext context = CurrentMemoryContext;
	SwarmSpi	spi;
	Oid			types[] = {INT8OID, INT8OID, HeapTupleHeaderGetTypeId(DatumGetHeapTupleHeader(task->agent))};
	Datum		values[] = {Int64GetDatum(agent), Int64GetDatum(task->id), task->agent};
	char	   *veto;
	Datum		now;
	bool		isnull;

	swarm_spi_begin(&spi);
	(void) swarm_spi_execute("SELECT veto, code, agent FROM swarm._agent_begin($1, $2, $3)", 3, types, values, NULL);
	veto = swarm_spi_text(0, 1);
	now = swarm_spi_column(0, 3, &isnull);
	if (!isnull)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		task->agent = PointerGetDatum(PG_DETOAST_DATUM_COPY(now));
		MemoryContextSwitchTo(old);
	}
	if (veto != NULL)
	{
		call->error = MemoryContextStrdup(context, veto);
		call->sqlstate = MemoryContextStrdup(context, swarm_spi_text(0, 2));
	}
	swarm_spi_end(&spi);
}

static void
end_task(int64 agent, const Task *task, const SwarmCall *call)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID, INT8OID, JSONBOID, TEXTOID, TEXTOID, INT8OID};
	Datum		values[6];
	char		nulls[] = "      ";

	values[0] = Int64GetDatum(agent);
	values[1] = Int64GetDatum(task->id);
	values[2] = call->result;
	nulls[2] = call->result == (Datum) 0 ? 'n' : ' ';
	nulls[3] = nulls[4] = call->error == NULL ? 'n' : ' ';
	if (call->error != NULL)
	{
		values[3] = CStringGetTextDatum(call->error);
		values[4] = CStringGetTextDatum(call->sqlstate);
	}
	values[5] = Int64GetDatum(call->us);
	swarm_spi_begin(&spi);
	(void) swarm_spi_execute("SELECT swarm._agent_done($1, $2, $3, $4, $5, $6)", 6, types, values, nulls);
	swarm_spi_end(&spi);
}

/* help: let an idle agent of its type do what waits for a busy one. */
static void
help(int64 agent)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(agent)};

	swarm_spi_begin(&spi);
	(void) swarm_spi_execute("SELECT swarm._agent_help($1)", 1, types, values, NULL);
	swarm_spi_end(&spi);
}

/* again: another job goes on, when others had their turn. */
static void
again(int64 agent)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(agent)};

	swarm_spi_begin(&spi);
	(void) swarm_spi_execute("SELECT swarm._agent_wake($1)", 1, types, values, NULL);
	swarm_spi_end(&spi);
}

/*
 * commit: as COMMIT in a procedure does, and begin anew.  `lazily`: what is
 * lost in a crash is found again.
 */
static void
commit(MemoryContext context, bool lazily)
{
	if (lazily && synchronous_commit > SYNCHRONOUS_COMMIT_OFF)
		(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
	HoldPinnedPortals();
	ForgetPortalSnapshots();
	CommitTransactionCommand();
	pgstat_report_stat(false);
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	EnsurePortalSnapshotExists();
	MemoryContextSwitchTo(context);
}

/* ------------------------------------------------------------------------
 * The lock of an agent: held by the process that works for it
 * ------------------------------------------------------------------------ */

static LOCKTAG
agent_tag(int64 agent)
{
	LOCKTAG		tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) (agent >> 32), (uint32) agent, AGENT_LOCKS);
	return tag;
}

static bool
lock_agent(int64 agent)
{
	LOCKTAG		tag = agent_tag(agent);

	return LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
}

static void
unlock_agent(int64 agent)
{
	LOCKTAG		tag = agent_tag(agent);

	(void) LockRelease(&tag, ExclusiveLock, true);
}
