/*
 * job_sql.c
 *	  SQL functions to enqueue, wait for and control jobs.
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

#define PUSH_LIMIT		10000	/* jobs a transaction tells one by one */
#define MAX_ATTEMPTS	10000
#define KEY_TRIES		100

/* What a caller wants enqueued. */
typedef struct EnqueueSpec
{
	char	   *kind;
	char	   *queue;
	int			priority;
	Datum		args;
	Datum		tags;
	TimestampTz run_at;
	int			max_attempts;
	int64		timeout_us;
	char	   *unique_key;
	ArrayType  *depends_on;		/* bigint[], or NULL */
} EnqueueSpec;

static int	pushes = 0;			/* of this transaction */

static int64 enqueue(EnqueueSpec *spec);
static void spec_defaults(EnqueueSpec *spec);
static void spec_from_json(EnqueueSpec *spec, JsonbContainer *object, int index);
static void spec_json_field(EnqueueSpec *spec, const char *key, JsonbValue *value, int index);
static int64 take_unique_key(const SwarmJobRow *row);
static bool add_dependencies(int64 child, ArrayType *parents);
static void push_at_commit(const SwarmJobRow *row, bool external);
static void ring_push(void *item);
static void undo_push(void *item);
static void ring_scan(void *item);
static int64 interval_us(Interval *interval, const char *what);
static int	priority_number(const char *label);
static Datum status_datum(FunctionCallInfo fcinfo, int64 id);
static void check_visible(int64 id);
static bool cancel_claimed(int64 id, const char *reason);
static void ring_due_now(void *item);
static void retry_finished(int64 id);
static void ring_recheck(void *item);
static void require_member(Oid owner, int64 id);

/* ------------------------------------------------------------------------
 * Enqueue
 * ------------------------------------------------------------------------ */

/*
 * swarm.job_enqueue(kind, args, queue, priority, run_at, max_attempts,
 * timeout, unique_key, depends_on, tags) returns bigint
 */
SWARM_FUNCTION(swarm_job_enqueue);
Datum
swarm_job_enqueue(PG_FUNCTION_ARGS)
{
	static const char *const names[] = {"kind", "args", "queue", "priority",
	"run_at", "max_attempts"};
	EnqueueSpec spec;

	for (int i = 0; i < lengthof(names); i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("argument \"%s\" of job_enqueue must not be null", names[i])));
	}
	spec_defaults(&spec);
	spec.kind = text_to_cstring(PG_GETARG_TEXT_PP(0));
	spec.args = PG_GETARG_DATUM(1);
	spec.queue = text_to_cstring(PG_GETARG_TEXT_PP(2));
	spec.priority = priority_number(DatumGetCString(
													DirectFunctionCall1(enum_out, PG_GETARG_DATUM(3))));
	spec.run_at = PG_GETARG_TIMESTAMPTZ(4);
	spec.max_attempts = PG_GETARG_INT32(5);
	spec.timeout_us = PG_ARGISNULL(6) ? 0 : interval_us(PG_GETARG_INTERVAL_P(6), "timeout");
	if (!PG_ARGISNULL(7))
		spec.unique_key = text_to_cstring(PG_GETARG_TEXT_PP(7));
	if (!PG_ARGISNULL(8))
		spec.depends_on = PG_GETARG_ARRAYTYPE_P(8);
	if (!PG_ARGISNULL(9))
		spec.tags = PG_GETARG_DATUM(9);
	PG_RETURN_INT64(enqueue(&spec));
}

/*
 * swarm.job_enqueue_many(jobs jsonb) returns setof bigint
 */
SWARM_FUNCTION(swarm_job_enqueue_many);
Datum
swarm_job_enqueue_many(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Jsonb	   *jobs = PG_GETARG_JSONB_P(0);
	JsonbIterator *it;
	JsonbValue	v;
	JsonbIteratorToken token;
	MemoryContext scratch;
	int			index = 0;

	if (!JB_ROOT_IS_ARRAY(jobs) || JB_ROOT_IS_SCALAR(jobs))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the jobs must be a JSON array of objects")));
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	scratch = AllocSetContextCreate(CurrentMemoryContext, "job_enqueue_many",
									ALLOCSET_DEFAULT_SIZES);
	it = JsonbIteratorInit(&jobs->root);
	token = JsonbIteratorNext(&it, &v, true);	/* begin of the array */
	while ((token = JsonbIteratorNext(&it, &v, true)) == WJB_ELEM)
	{
		MemoryContext old = MemoryContextSwitchTo(scratch);
		EnqueueSpec spec;
		Datum		id;
		bool		isnull = false;

		CHECK_FOR_INTERRUPTS();
		index++;
		if (v.type != jbvBinary || !JsonContainerIsObject(v.val.binary.data))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("element %d of the jobs is not a JSON object", index)));
		spec_defaults(&spec);
		spec_from_json(&spec, v.val.binary.data, index);
		id = Int64GetDatum(enqueue(&spec));
		MemoryContextSwitchTo(old);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &id, &isnull);
		MemoryContextReset(scratch);
	}
	MemoryContextDelete(scratch);
	return (Datum) 0;
}

static void
spec_defaults(EnqueueSpec *spec)
{
	memset(spec, 0, sizeof(*spec));
	spec->queue = "default";
	spec->priority = 1;
	spec->args = DirectFunctionCall1(jsonb_in, CStringGetDatum("{}"));
	spec->tags = spec->args;
	spec->run_at = GetCurrentTransactionStartTimestamp();
	spec->max_attempts = 5;
	spec->timeout_us = 5 * USECS_PER_MINUTE;
}

static void
spec_from_json(EnqueueSpec *spec, JsonbContainer *object, int index)
{
	JsonbIterator *it = JsonbIteratorInit(object);
	JsonbIteratorToken token;
	JsonbValue	v;

	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		char	   *key;

		if (token != WJB_KEY)
			continue;
		key = pnstrdup(v.val.string.val, v.val.string.len);
		(void) JsonbIteratorNext(&it, &v, true);
		if (v.type != jbvNull || strcmp(key, "timeout") == 0)
			spec_json_field(spec, key, &v, index);
	}
	if (spec->kind == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("element %d of the jobs has no \"kind\"", index)));
}

/*
 * spec_json_field: one key of a job object.
 */
static void
spec_json_field(EnqueueSpec *spec, const char *key, JsonbValue *value, int index)
{
	char	   *text = NULL;

	if (value->type == jbvString)
		text = pnstrdup(value->val.string.val, value->val.string.len);

	else if (value->type == jbvNumeric)
		text = DatumGetCString(DirectFunctionCall1(numeric_out,
												   NumericGetDatum(value->val.numeric)));

	if (strcmp(key, "args") == 0)
		spec->args = JsonbPGetDatum(JsonbValueToJsonb(value));
	else if (strcmp(key, "tags") == 0)
		spec->tags = JsonbPGetDatum(JsonbValueToJsonb(value));
	else if (strcmp(key, "timeout") == 0 && value->type == jbvNull)
		spec->timeout_us = 0;
	else if (strcmp(key, "depends_on") == 0 && value->type == jbvBinary &&
			 JsonContainerIsArray(value->val.binary.data))
	{
		int			n = JsonContainerSize(value->val.binary.data);
		Datum	   *ids = palloc(sizeof(Datum) * (n + 1));

		for (int i = 0; i < n; i++)
		{
			JsonbValue *e = getIthJsonbValueFromContainer(value->val.binary.data, i);

			if (e->type != jbvNumeric)
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("\"depends_on\" of element %d of the jobs must hold job ids", index)));
			ids[i] = DirectFunctionCall1(numeric_int8, NumericGetDatum(e->val.numeric));
		}
		spec->depends_on = construct_array(ids, n, INT8OID, 8, FLOAT8PASSBYVAL, 'd');
	}
	else if (text == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("key \"%s\" of element %d of the jobs is unknown or of the wrong type",
						key, index)));
	else if (strcmp(key, "kind") == 0)
		spec->kind = text;

	else if (strcmp(key, "queue") == 0)
		spec->queue = text;

	else if (strcmp(key, "priority") == 0)
		spec->priority = priority_number(text);
	else if (strcmp(key, "unique_key") == 0)
		spec->unique_key = text;

	else if (strcmp(key, "max_attempts") == 0)
		spec->max_attempts = pg_strtoint32(text);
	else if (strcmp(key, "run_at") == 0)
		spec->run_at = DatumGetTimestampTz(
										   DirectFunctionCall3(timestamptz_in, CStringGetDatum(text),
															   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
	else if (strcmp(key, "timeout") == 0)
		spec->timeout_us = interval_us(DatumGetIntervalP(
														 DirectFunctionCall3(interval_in, CStringGetDatum(text),
																			 ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1))), "timeout");
	else
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown key \"%s\" in element %d of the jobs", key, index),
				 errhint("The keys are the arguments of swarm.job_enqueue().")));
}

/*
 * enqueue: check, write the row, and tell the queue at commit.  Returns the
 * id, or that of the live job that has the same unique key.
 */
static int64
enqueue(EnqueueSpec *spec)
{
	SwarmJobRow row = {0};
	bool		external;

	PreventCommandIfReadOnly("job_enqueue()");
	PreventCommandIfParallelMode("job_enqueue()");
	PreventCommandDuringRecovery("job_enqueue()");
	if (spec->max_attempts < 1 || spec->max_attempts > MAX_ATTEMPTS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_attempts must be between 1 and %d", MAX_ATTEMPTS)));
	if (TIMESTAMP_NOT_FINITE(spec->run_at))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("run_at must be finite")));

	/* before looking names up: handler_drop() and queue_drop() lock it out */
	LockRelationOid(swarm_job_relation("_job"), RowExclusiveLock);
	row.kind = swarm_job_find_kind(spec->kind, &external);
	if (row.kind == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("job kind \"%s\" does not exist", spec->kind),
				 errhint("Define it with swarm.handler_register().")));
	row.queue = swarm_job_find_queue(spec->queue);
	if (row.queue == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("queue \"%s\" does not exist", spec->queue),
				 errhint("Create it with swarm.queue_create().")));

	row.id = swarm_job_next_id();
	row.owner = GetUserId();
	row.priority = spec->priority;
	row.max_attempts = spec->max_attempts;
	row.timeout_us = spec->timeout_us;
	row.run_at = spec->run_at;
	row.enqueued_at = swarm_now();
	row.unique_key = spec->unique_key;
	row.args = spec->args;
	row.tags = spec->tags;
	if (row.unique_key != NULL)
	{
		int64		holder = take_unique_key(&row);

		if (holder != row.id)
			return holder;
	}
	if (spec->depends_on != NULL && ARR_NDIM(spec->depends_on) > 0)
		row.blocked = add_dependencies(row.id, spec->depends_on);
	swarm_job_insert(&row);
	push_at_commit(&row, external);
	return row.id;
}

/*
 * take_unique_key: the id of the job that has the key: row->id if it was free.
 * Waits for a transaction that is taking it; under REPEATABLE READ a key that
 * was taken since the snapshot is a serialization failure.
 */
static int64
take_unique_key(const SwarmJobRow *row)
{
	SwarmSpi	spi;
	Oid			types[] = {OIDOID, INT4OID, TEXTOID, INT8OID};
	Datum		values[] = {ObjectIdGetDatum(row->owner), Int32GetDatum(row->queue),
	CStringGetTextDatum(row->unique_key), Int64GetDatum(row->id)};
	int64		holder = 0;

	swarm_spi_begin(&spi);
	for (int i = 0; i < KEY_TRIES && holder == 0; i++)
	{
		if (swarm_spi_execute("INSERT INTO swarm._job_key (owner, queue, key, job) "
							  "VALUES ($1::regrole, $2, $3, $4) ON CONFLICT DO NOTHING",
							  4, types, values, NULL) > 0)
			holder = row->id;
		else if (swarm_spi_query("SELECT job FROM swarm._job_key "
								 "WHERE owner = $1 AND queue = $2 AND key = $3",
								 3, types, values, NULL) > 0)
			holder = swarm_spi_int64(0, 1);
	}
	swarm_spi_end(&spi);
	if (holder == 0)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not take unique key \"%s\"", row->unique_key)));
	return holder;
}

/*
 * add_dependencies: note the parents that are still live.  False if there are
 * none: the child need not wait.
 */
static bool
add_dependencies(int64 child, ArrayType *parents)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8ARRAYOID, INT8OID};
	Datum		values[] = {PointerGetDatum(parents), Int64GetDatum(child)};
	Oid			caller = GetUserId();
	uint64		n;
	Datum	   *live_ids;
	int			nlive = 0;

	if (array_contains_nulls(parents))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("depends_on must not contain nulls")));
	CommandCounterIncrement();	/* jobs of the same statement are parents, too */
	swarm_spi_begin(&spi);
	n = swarm_spi_query("SELECT u.id, j.id IS NOT NULL, coalesce(j.owner, h.owner)::oid, "
						"coalesce(h.state, -1)::int4 "
						"FROM (SELECT DISTINCT unnest($1) AS id) u "
						"LEFT JOIN swarm._job j ON j.id = u.id "
						"LEFT JOIN LATERAL (SELECT owner, state FROM swarm._job_history "
						"WHERE id = u.id ORDER BY finished_at DESC LIMIT 1) h ON j.id IS NULL",
						1, types, values, NULL);
	live_ids = palloc((n + 1) * sizeof(Datum));
	for (uint64 i = 0; i < n; i++)
	{
		int64		id = swarm_spi_int64(i, 1);
		bool		live = swarm_spi_bool(i, 2);
		int			state = swarm_spi_int32(i, 4);
		bool		isnull;
		Oid			owner = DatumGetObjectId(swarm_spi_column(i, 3, &isnull));

		if (isnull || !is_member_of_role(caller, owner))
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("job " INT64_FORMAT " does not exist", id)));
		if (!live && state != SWARM_JOB_COMPLETED)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot depend on job " INT64_FORMAT ", which is %s",
							id, swarm_job_state_name(state))));
		if (live)
			live_ids[nlive++] = Int64GetDatum(id);
	}
	if (nlive > 0)
	{
		values[0] = PointerGetDatum(construct_array(live_ids, nlive, INT8OID, 8,
													FLOAT8PASSBYVAL, 'd'));
		swarm_spi_execute("INSERT INTO swarm._job_dep (child, parent) SELECT $2, unnest($1)",
						  2, types, values, NULL);
	}
	swarm_spi_end(&spi);
	return nlive > 0;
}

/* ------------------------------------------------------------------------
 * Telling the queue, at commit
 * ------------------------------------------------------------------------ */

/*
 * push_at_commit: one item a job; after PUSH_LIMIT of them one that says
 * "and all from this id on".
 */
static void
push_at_commit(const SwarmJobRow *row, bool external)
{
	SwarmReady	job = {.database = MyDatabaseId};

	job.id = row->id;
	job.owner = row->owner;
	job.due = row->run_at;
	job.queue = row->queue;
	job.kind = row->kind;
	job.priority = row->priority;
	job.flags = (external ? SWARM_READY_EXTERNAL : 0) |
		(row->blocked ? SWARM_READY_BLOCKED : 0) |
		(row->unique_key ? SWARM_READY_KEYED : 0);
	if (pushes < PUSH_LIMIT)
		swarm_doorbell_add(ring_push, undo_push, &job, sizeof(job));
	else if (pushes == PUSH_LIMIT)
	{
		job.id = 0;				/* retried ones come in any order */
		swarm_doorbell_add(ring_scan, undo_push, &job, sizeof(job));
	}
	pushes++;
}

static void
ring_push(void *item)
{
	pushes = 0;
	swarm_queue_push(item);
}

/*
 * undo_push: a savepoint or the transaction was rolled back, or prepared; a
 * prepared one is found by the sweep that COMMIT PREPARED causes.
 */
static void
undo_push(void *item)
{
	SwarmReady *job = item;

	pushes = 0;
	if (swarm_doorbell_preparing && swarm_job_shared != NULL)
	{
		SwarmShard *shard;

		LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
		shard = swarm_shard_find(job->database);
		if (shard != NULL)
		{
			shard->prepared_from = Min(shard->prepared_from, job->id);
			shard->prepared_count++;
		}
		LWLockRelease(swarm_job_lock);
	}
}

static void
ring_scan(void *item)
{
	SwarmReady *job = item;

	pushes = 0;
	swarm_queue_scan_from(job->database, job->id);
}

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
	int64		us = interval_us(PG_GETARG_INTERVAL_P(1), "timeout");
	TimestampTz until = GetCurrentTimestamp() + us;
	ConditionVariable *cv;
	SwarmJobRow row;

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
		long		ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
		SwarmEntry *e;
		bool		in_memory;

		LWLockAcquire(swarm_job_lock, LW_SHARED);
		e = swarm_entry_find(MyDatabaseId, id);
		in_memory = e != NULL && !e->gone;
		LWLockRelease(swarm_job_lock);
		if (!in_memory && !swarm_job_fetch(id, &row))
			break;
		if (ms <= 0)
			break;
		(void) ConditionVariableTimedSleep(cv, Min(ms, 3600L * 1000), wait_event);
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
	if (!OidIsValid(owner) || !is_member_of_role(GetUserId(), owner))
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
	if (!swarm_job_end(&row, &end, SWARM_READY_TOUCHED))
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
	if (!swarm_job_fetch(id, &row))
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
	swarm_spi_execute("INSERT INTO swarm._job_attempt (id, attempts, run_at) VALUES ($1, 0, $2) "
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
		e->job.flags |= SWARM_READY_TOUCHED;
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
	if (row.unique_key != NULL && take_unique_key(&row) != id)
		ereport(ERROR,
				(errcode(ERRCODE_UNIQUE_VIOLATION),
				 errmsg("unique key \"%s\" of job " INT64_FORMAT " is taken by another job",
						row.unique_key, id)));
	swarm_job_insert(&row);
	push_at_commit(&row, external);
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

/* ------------------------------------------------------------------------
 * Small conversions
 * ------------------------------------------------------------------------ */

/* swarm_interval_us: months count 30 days; no more than SWARM_INTERVAL_MAX. */
int64
swarm_interval_us(const Interval *interval)
{
	double		us = (double) interval->time + (double) interval->day * USECS_PER_DAY +
	(double) interval->month * DAYS_PER_MONTH * USECS_PER_DAY;

	if (us >= (double) SWARM_INTERVAL_MAX)
		return SWARM_INTERVAL_MAX;
	if (us <= -(double) SWARM_INTERVAL_MAX)
		return -SWARM_INTERVAL_MAX;
	return interval->time + interval->day * USECS_PER_DAY +
		(int64) interval->month * DAYS_PER_MONTH * USECS_PER_DAY;
}

/* interval_us: the same, of a positive interval. */
static int64
interval_us(Interval *interval, const char *what)
{
	int64		us = swarm_interval_us(interval);

	if (us <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be greater than zero", what),
				 errhint("A job without a time limit has timeout NULL.")));
	return us;
}

static int
priority_number(const char *label)
{
	static const char *const labels[] = {"low", "medium", "high", "critical"};

	for (int i = 0; i < SWARM_PRIORITIES; i++)
	{
		if (strcmp(labels[i], label) == 0)
			return i;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid priority \"%s\"", label),
			 errhint("Priorities are low, medium, high and critical.")));
}
