/*
 * job_sql.c
 *	  SQL functions to wait for and control jobs.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/doorbell.h"
#include "base/export.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "job/job_int.h"

static Datum status_datum(FunctionCallInfo fcinfo, int64 id);
static void check_visible(int64 id);
static bool cancel_claimed(int64 id, const char *reason);
static void attempts_so_far(int64 id, SwarmJobEnd *end);
static void ring_due_now(void *item);
static void retry_finished(int64 id);
static void ring_recheck(void *item);
static void require_member(Oid owner, int64 id);

/* ------------------------------------------------------------------------
 * Waiting
 * ------------------------------------------------------------------------ */

/*
 * swarm.job_wait(id, timeout) returns swarm.job_status
 */
SWARM_FUNCTION(swarm_job_wait);
Datum
swarm_job_wait(PG_FUNCTION_ARGS)
{
	static uint32 wait_event = 0;
	int64		id = PG_GETARG_INT64(0);
	TimestampTz until = swarm_wait_deadline(fcinfo, 1);
	ConditionVariable *cv;
	SwarmJobRow row;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	swarm_require_preload("waiting for a job");
	CommandCounterIncrement();	/* it may have been enqueued by this statement */
	check_visible(id);
	if (swarm_job_fetch(id, &row) && row.own)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot wait for job " INT64_FORMAT ", which this transaction has enqueued", id),
				 errhint("A job runs after its transaction has committed.")));
	if (wait_event == 0)
		wait_event = swarm_wait_event_new("SwarmJobWait");

	cv = swarm_job_waiters(id);
	ConditionVariablePrepareToSleep(cv);
	for (;;)
	{
		long		ms = swarm_wait_left_ms(until);
		SwarmEntry *e;
		bool		unsettled;

		LWLockAcquire(swarm_job_lock, LW_SHARED);
		e = swarm_entry_find(MyDatabaseId, id);
		/* of a job that nobody has claimed, an entry says nothing for sure */
		unsettled = e != NULL && e->state >= ENTRY_CLAIMED && !e->gone;
		LWLockRelease(swarm_job_lock);
		if (!unsettled && !swarm_job_fetch(id, &row))
			break;
		if (ms == 0)
			break;
		(void) ConditionVariableTimedSleep(cv, ms, wait_event);
	}
	ConditionVariableCancelSleep();
	return status_datum(fcinfo, id);
}

/*
 * check_visible: error 42704 unless the job exists and the caller may see it.
 */
static void
check_visible(int64 id)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(id)};
	bool		isnull = true;
	Oid			owner = InvalidOid;

	swarm_spi_begin(&spi);
	if (swarm_spi_query("SELECT owner::oid FROM swarm._job WHERE id = $1 UNION ALL "
						"SELECT owner::oid FROM swarm._job_history WHERE id = $1",
						1, types, values, NULL) > 0)
		owner = DatumGetObjectId(swarm_spi_column(0, 1, &isnull));
	swarm_spi_end(&spi);
	require_member(isnull ? InvalidOid : owner, id);
}

static void
require_member(Oid owner, int64 id)
{
	if (!OidIsValid(owner) || !has_privs_of_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("job " INT64_FORMAT " does not exist", id)));
}

/*
 * status_datum: the job as swarm.job_status; NULL if it is in no table.
 */
static Datum
status_datum(FunctionCallInfo fcinfo, int64 id)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(id)};
	Datum		columns[10];
	bool		nulls[10];
	TupleDesc	desc;
	MemoryContext caller = CurrentMemoryContext;
	Datum		result = (Datum) 0;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	desc = BlessTupleDesc(desc);
	swarm_spi_begin(&spi);
	if (swarm_spi_query("SELECT id, state, result, error, attempts, max_attempts, "
						"enqueued_at, run_at, started_at, finished_at FROM swarm.jobs "
						"WHERE id = $1 ORDER BY finished_at DESC NULLS LAST LIMIT 1",
						1, types, values, NULL) > 0)
	{
		MemoryContext old;

		for (int i = 0; i < 10; i++)
			columns[i] = swarm_spi_column(0, i + 1, &nulls[i]);
		old = MemoryContextSwitchTo(caller);
		result = HeapTupleGetDatum(heap_form_tuple(desc, columns, nulls));
		MemoryContextSwitchTo(old);
	}
	swarm_spi_end(&spi);
	if (result == (Datum) 0)
		PG_RETURN_NULL();
	return result;
}

/* ------------------------------------------------------------------------
 * Cancel, retry, progress
 * ------------------------------------------------------------------------ */

/*
 * swarm.job_cancel(id, reason) returns boolean
 */
SWARM_FUNCTION(swarm_job_cancel);
Datum
swarm_job_cancel(PG_FUNCTION_ARGS)
{
	int64		id = PG_GETARG_INT64(0);
	char	   *reason = PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1));
	SwarmJobEnd end = {.state = SWARM_JOB_CANCELLED};
	SwarmJobRow row;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	PreventCommandIfReadOnly("job_cancel()");
	PreventCommandDuringRecovery("job_cancel()");
	CommandCounterIncrement();
	if (!swarm_job_fetch(id, &row))
	{
		check_visible(id);
		PG_RETURN_BOOL(false);
	}
	require_member(row.owner, id);
	if (cancel_claimed(id, reason))
		PG_RETURN_BOOL(true);

	end.error = reason ? reason : "cancelled";
	attempts_so_far(id, &end);
	if (!swarm_job_end(&row, &end))
		PG_RETURN_BOOL(false);
	swarm_job_ring_ended(id, SWARM_JOB_CANCELLED);
	PG_RETURN_BOOL(true);
}

/*
 * cancel_claimed: if a runner has the job, interrupt it.
 */
static bool
cancel_claimed(int64 id, const char *reason)
{
	SwarmEntry *e;
	bool		running = false;

	if (swarm_job_shared == NULL)
		return false;
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	e = swarm_entry_find(MyDatabaseId, id);
	if (e != NULL && e->state == ENTRY_CLAIMED)
	{
		SwarmSlot  *slot = swarm_slot_at(e->slot);

		if (slot->job == id)
		{
			swarm_slot_cancel(slot, reason ? reason : "cancelled");
			running = true;
		}
	}
	LWLockRelease(swarm_job_lock);
	return running;
}

/*
 * attempts_so_far: what the history is to say of a job that ends without a
 * runner: its failed attempts, and the one that an outside worker is at.
 */
static void
attempts_so_far(int64 id, SwarmJobEnd *end)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(id)};

	swarm_spi_begin(&spi);
	if (swarm_spi_query("SELECT attempts FROM swarm._job_attempt WHERE id = $1",
						1, types, values, NULL) > 0)
		end->attempts = swarm_spi_int32(0, 1);
	swarm_spi_end(&spi);
	if (swarm_job_shared != NULL)
	{
		SwarmEntry *e;

		LWLockAcquire(swarm_job_lock, LW_SHARED);
		e = swarm_entry_find(MyDatabaseId, id);
		if (e != NULL && e->state == ENTRY_LEASED)
		{
			end->attempts = e->job.attempts + 1;
			end->started = e->since;
		}
		LWLockRelease(swarm_job_lock);
	}
}

/*
 * swarm.job_retry(id) returns void
 */
SWARM_FUNCTION(swarm_job_retry);
Datum
swarm_job_retry(PG_FUNCTION_ARGS)
{
	int64		id = PG_GETARG_INT64(0);
	SwarmSpi	spi;
	Oid			types[] = {INT8OID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(id), TimestampTzGetDatum(swarm_now())};
	SwarmJobRow row;
	SwarmReady	told = {.database = MyDatabaseId, .id = id};
	SwarmJobState state;

	PreventCommandIfReadOnly("job_retry()");
	PreventCommandDuringRecovery("job_retry()");
	CommandCounterIncrement();
	check_visible(id);
	if (!swarm_job_fetch(id, &row) || !swarm_job_keep_live(&row))
	{
		retry_finished(id);
		PG_RETURN_VOID();
	}

	swarm_spi_begin(&spi);
	if (swarm_spi_query("SELECT array_position(enum_range(NULL::swarm.job_state), state) - 1 "
						"FROM swarm.jobs WHERE id = $1 ORDER BY finished_at DESC NULLS LAST LIMIT 1",
						1, types, values, NULL) == 0)
		elog(ERROR, "job " INT64_FORMAT " vanished", id);
	state = swarm_spi_int32(0, 1);
	(void) swarm_job_state_next(state, SWARM_EVENT_RETRY, id);
	swarm_spi_execute_latest("INSERT INTO swarm._job_attempt (id, attempts, run_at) VALUES ($1, 0, $2) "
							 "ON CONFLICT (id) DO UPDATE SET run_at = EXCLUDED.run_at",
							 2, types, values, NULL);
	swarm_spi_end(&spi);
	told.due = swarm_now();
	swarm_doorbell_add(ring_due_now, swarm_job_undo_told, &told, sizeof(told));
	PG_RETURN_VOID();
}

/*
 * ring_due_now: a waiting job need not wait.
 */
static void
ring_due_now(void *item)
{
	SwarmReady *told = item;
	SwarmShard *shard;
	SwarmEntry *e;

	if (swarm_job_shared == NULL)
		return;
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard = swarm_shard_find(told->database);
	e = shard ? swarm_entry_find(told->database, told->id) : NULL;
	if (e != NULL && e->state == ENTRY_TIMER)
	{
		swarm_entry_unlist(shard, e);
		e->job.due = told->due;
		swarm_entry_place(shard, e, false);
	}
	else if (e != NULL && e->state == ENTRY_CLAIMED)
		e->due_now = true;
	else if (e == NULL && shard != NULL)
	{
		shard->scan_from = Min(shard->scan_from, told->id);
		swarm_shard_wake_scheduler(shard);
	}
	LWLockRelease(swarm_job_lock);
}

/*
 * retry_finished: a dead or cancelled job becomes live again, under the same
 * id, with all its attempts.
 */
static void
retry_finished(int64 id)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(id)};
	SwarmJobRow row = {.id = id};
	SwarmReady	told = {.database = MyDatabaseId, .id = id};
	bool		external;
	bool		isnull;
	char	   *queue;
	char	   *kind;

	swarm_spi_begin(&spi);
	if (swarm_spi_query("SELECT state::int4 FROM swarm._job_history WHERE id = $1 "
						"ORDER BY finished_at DESC LIMIT 1", 1, types, values, NULL) == 0)
		elog(ERROR, "job " INT64_FORMAT " vanished", id);
	(void) swarm_job_state_next(swarm_spi_int32(0, 1), SWARM_EVENT_RETRY, id);
	if (swarm_spi_execute("DELETE FROM swarm._job_history WHERE id = $1 RETURNING "
						  "queue, kind, owner::oid, priority::int4, max_attempts, timeout_us, "
						  "enqueued_at, unique_key, args, tags",
						  1, types, values, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("job " INT64_FORMAT " was retried concurrently", id)));
	queue = swarm_spi_text(0, 1);
	kind = swarm_spi_text(0, 2);
	row.owner = DatumGetObjectId(swarm_spi_column(0, 3, &isnull));
	row.priority = swarm_spi_int32(0, 4);
	row.max_attempts = swarm_spi_int32(0, 5);
	row.timeout_us = swarm_spi_int64(0, 6);
	row.enqueued_at = DatumGetTimestampTz(swarm_spi_column(0, 7, &isnull));
	row.unique_key = swarm_spi_text(0, 8);
	row.args = swarm_spi_column(0, 9, &isnull);
	row.tags = swarm_spi_column(0, 10, &isnull);
	row.run_at = swarm_now();
	row.queue = swarm_job_find_queue(queue);
	row.kind = swarm_job_find_kind(kind, &external);
	if (row.queue == 0 || row.kind == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("%s \"%s\" of job " INT64_FORMAT " does not exist any more",
						row.queue == 0 ? "queue" : "kind",
						row.queue == 0 ? queue : kind, id)));
	if (row.unique_key != NULL && swarm_job_take_key(&row) != id)
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("unique key \"%s\" of job " INT64_FORMAT " is taken by another job",
						row.unique_key, id)));
	swarm_job_insert(&row);
	swarm_job_push_at_commit(&row, external);
	/* children that waited for its retry are to hear of its end */
	if (swarm_spi_query("SELECT FROM swarm._job_dep WHERE parent = $1 LIMIT 1",
						1, types, values, NULL) > 0)
		swarm_doorbell_add(ring_recheck, swarm_job_undo_told, &told, sizeof(told));
	swarm_spi_end(&spi);
}

static void
ring_recheck(void *item)
{
	SwarmReady *told = item;
	SwarmShard *shard;

	if (swarm_job_shared == NULL)
		return;
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard = swarm_shard_find(told->database);
	if (shard != NULL)
		swarm_shard_recheck(shard, told->id);
	LWLockRelease(swarm_job_lock);
}

/*
 * swarm.job_progress(fraction, message) returns void
 */
SWARM_FUNCTION(swarm_job_progress);
Datum
swarm_job_progress(PG_FUNCTION_ARGS)
{
	SwarmSlot  *slot = swarm_job_current_slot;
	double		fraction = PG_ARGISNULL(0) ? -1 : PG_GETARG_FLOAT8(0);

	if (slot == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job_progress() can only be called by a job's handler"),
				 errhint("A worker outside the server reports with swarm.job_heartbeat().")));
	if (!PG_ARGISNULL(0) && !(fraction >= 0 && fraction <= 1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the fraction must be between 0 and 1")));
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	if (!PG_ARGISNULL(0))
		slot->fraction = fraction;
	if (!PG_ARGISNULL(1))
	{
		text	   *message = PG_GETARG_TEXT_PP(1);
		int			length = pg_mbcliplen(VARDATA_ANY(message), VARSIZE_ANY_EXHDR(message),
										  SWARM_MESSAGE_SIZE - 1);

		memcpy(slot->message, VARDATA_ANY(message), length);
		slot->message[length] = '\0';
	}
	LWLockRelease(swarm_job_lock);
	PG_RETURN_VOID();
}
