/*
 * job_enqueue_sql.c
 *	  SQL functions to enqueue jobs.
 *
 * Check, write the row, and tell the queue at commit.
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
#define TIMEOUT_MAX_DAYS	24

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
static bool add_dependencies(int64 child, ArrayType *parents);
static void ring_push(void *item);
static void undo_push(void *item);
static void ring_scan(void *item);
static int64 timeout_us(Interval *timeout);
static bool job_id_from_json(const JsonbValue *value, int64 *id);
static int	priority_number(const char *label);

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
	spec.timeout_us = PG_ARGISNULL(6) ? 0 : timeout_us(PG_GETARG_INTERVAL_P(6));
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
			int64		id;

			if (!job_id_from_json(getIthJsonbValueFromContainer(value->val.binary.data, i), &id))
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("\"depends_on\" of element %d of the jobs must hold job ids", index)));
			ids[i] = Int64GetDatum(id);
		}
		spec->depends_on = construct_array(ids, n, INT8OID, 8, FLOAT8PASSBYVAL, 'd');
	}
	else if (text == NULL || strcmp(key, "depends_on") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("key \"%s\" of element %d of the jobs is unknown or of the wrong type",
						key, index),
				 errhint("The keys and types are those of the arguments of swarm.job_enqueue().")));
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
		spec->timeout_us = timeout_us(DatumGetIntervalP(
														DirectFunctionCall3(interval_in, CStringGetDatum(text),
																			ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1))));
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

	row.args = spec->args;
	row.tags = spec->tags;
	row.priority = spec->priority;
	row.unique_key = spec->unique_key;
	swarm_job_enqueue_hooks(SWARM_HOOK_BEFORE, &row);
	row.id = swarm_job_next_id();
	row.owner = GetUserId();
	row.max_attempts = spec->max_attempts;
	row.timeout_us = spec->timeout_us;
	row.run_at = spec->run_at;
	row.enqueued_at = swarm_now();
	if (row.unique_key != NULL)
	{
		int64		holder = swarm_job_take_key(&row);

		if (holder != row.id)
			return holder;
	}
	if (spec->depends_on != NULL && ARR_NDIM(spec->depends_on) > 0)
		row.blocked = add_dependencies(row.id, spec->depends_on);
	swarm_job_insert(&row);
	swarm_job_push_at_commit(&row, external);
	swarm_job_enqueue_hooks(SWARM_HOOK_AFTER, &row);
	return row.id;
}

/*
 * swarm_job_take_key: the id of the job that has the key: row->id if it was free.
 * Waits for a transaction that is taking it; under REPEATABLE READ a key that
 * was taken since the snapshot is a serialization failure.
 */
int64
swarm_job_take_key(const SwarmJobRow *row)
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

		if (isnull || !has_privs_of_role(caller, owner))
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
 * swarm_job_push_at_commit: one item a job; after PUSH_LIMIT of them one that says
 * "and all from this id on".
 */
void
swarm_job_push_at_commit(const SwarmJobRow *row, bool external)
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
 * Small conversions
 * ------------------------------------------------------------------------ */

/*
 * timeout_us: a job's time limit.  What runs into it is a timer of the server,
 * which counts milliseconds in an int.
 */
static int64
timeout_us(Interval *timeout)
{
	int64		us = swarm_interval_us(timeout);

	if (us <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must be greater than zero"),
				 errhint("A job without a time limit has timeout NULL.")));
	if (us > TIMEOUT_MAX_DAYS * USECS_PER_DAY)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must not be longer than %d days", TIMEOUT_MAX_DAYS),
				 errhint("A job without a time limit has timeout NULL.")));
	return us;
}

/* job_id_from_json: false if it is not a whole number. */
static bool
job_id_from_json(const JsonbValue *value, int64 *id)
{
	Datum		number;

	if (value->type != jbvNumeric)
		return false;
	number = NumericGetDatum(value->val.numeric);
	*id = DatumGetInt64(DirectFunctionCall1(numeric_int8, number));
	return DatumGetBool(DirectFunctionCall2(numeric_eq, number,
											DirectFunctionCall1(int8_numeric, Int64GetDatum(*id))));
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
