/*
 * job_lease_sql.c
 *	  SQL functions for workers outside the server.
 *
 * Such a worker leases jobs of kinds without a handler, and proves with a
 * random token that it is still the one.  A lease lives in shared memory
 * only: after a restart the job is ready again and the old token is void.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/doorbell.h"
#include "base/export.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "job/job_int.h"

#define CLAIM_MAX			1000
#define SETTINGS_TRIES		1000
#define SETTINGS_WAIT_US	2000

/* What a lease is worth at the moment. */
typedef struct Lease
{
	int			attempts;
	TimestampTz since;
} Lease;

typedef struct LeaseFailed
{
	Oid			database;
	int64		id;
	int64		token;
	int			attempts;
	TimestampTz due;
} LeaseFailed;

static SwarmShard *await_settings(void);
static int64 lease_us(Interval *interval);
static void check_queue_owner(const char *queue);
static SwarmEntry *leased_entry(int64 id, int64 token);
static Lease require_lease(int64 id, int64 token);
static void fetch_leased(int64 id, SwarmJobRow *row);
swarm_noreturn static void refuse_ended(int64 id);
static void ring_lease_failed(void *item);

/*
 * swarm.job_claim(queue, n, lease) returns setof swarm.job_claim
 */
SWARM_FUNCTION(swarm_job_claim);
Datum
swarm_job_claim(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	char	   *queue = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int			n = PG_GETARG_INT32(1);
	int64		us = lease_us(PG_GETARG_INTERVAL_P(2));
	int32		queue_id = swarm_job_find_queue(queue);
	SwarmReady *jobs;
	int64	   *tokens;
	SwarmShard *shard;

	swarm_require_preload("claiming a job");
	PreventCommandDuringRecovery("job_claim()");
	if (n < 1 || n > CLAIM_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the number of jobs to claim must be between 1 and %d", CLAIM_MAX)));
	if (queue_id == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("queue \"%s\" does not exist", queue)));
	check_queue_owner(queue);
	InitMaterializedSRF(fcinfo, 0);
	jobs = palloc0(n * sizeof(SwarmReady));
	tokens = palloc0(n * sizeof(int64));
	if (!pg_strong_random(tokens, n * sizeof(int64)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR), errmsg("could not make a random token")));
	for (int i = 0; i < n; i++)
		tokens[i] = (tokens[i] & PG_INT64_MAX) | 1;

	shard = await_settings();
	n = shard ? swarm_queue_lease(shard, queue_id, n, us, jobs, tokens) : 0;
	for (int i = 0; i < n; i++)
	{
		SwarmJobRow row;
		Datum		values[5];
		bool		nulls[5] = {0};

		if (!swarm_job_fetch(jobs[i].id, &row))
		{
			SwarmEntry *e;

			LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
			e = leased_entry(jobs[i].id, tokens[i]);
			if (e != NULL)
				swarm_entry_remove(shard, e);
			LWLockRelease(swarm_job_lock);
			continue;
		}
		values[0] = Int64GetDatum(row.id);
		values[1] = Int64GetDatum(tokens[i]);
		values[2] = CStringGetTextDatum(swarm_job_kind_name(row.kind));
		values[3] = row.args;
		values[4] = Int32GetDatum(jobs[i].attempts + 1);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * await_settings: the shard of this database, or NULL; a moment later if
 * changed settings, or the jobs they concern, are just being read.
 */
static SwarmShard *
await_settings(void)
{
	SwarmShard *shard = NULL;

	for (int i = 0; i < SETTINGS_TRIES; i++)
	{
		bool		stale;

		LWLockAcquire(swarm_job_lock, LW_SHARED);
		shard = swarm_shard_find(MyDatabaseId);
		stale = shard != NULL && !shard->held &&
			(shard->config_stale || shard->rebuild || shard->refilling ||
			 shard->state != SWARM_SHARD_SERVING);
		LWLockRelease(swarm_job_lock);
		if (!stale)
			break;
		CHECK_FOR_INTERRUPTS();
		pg_usleep(SETTINGS_WAIT_US);
	}
	return shard;
}

/*
 * swarm.job_heartbeat(id, token, lease, fraction) returns void
 */
SWARM_FUNCTION(swarm_job_heartbeat);
Datum
swarm_job_heartbeat(PG_FUNCTION_ARGS)
{
	SwarmEntry *e;
	int64		us;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1) || PG_ARGISNULL(2))
		PG_RETURN_NULL();
	us = lease_us(PG_GETARG_INTERVAL_P(2));
	(void) require_lease(PG_GETARG_INT64(0), PG_GETARG_INT64(1));
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	e = leased_entry(PG_GETARG_INT64(0), PG_GETARG_INT64(1));
	if (e != NULL)
	{
		swarm_timer_arm(swarm_shard_find(MyDatabaseId), &e->timer, swarm_now() + us);
		if (!PG_ARGISNULL(3))
			e->fraction = Min(Max(PG_GETARG_FLOAT8(3), 0.0), 1.0);
	}
	LWLockRelease(swarm_job_lock);
	PG_RETURN_VOID();
}

/*
 * swarm.job_complete(id, token, result) returns void
 */
SWARM_FUNCTION(swarm_job_complete);
Datum
swarm_job_complete(PG_FUNCTION_ARGS)
{
	SwarmJobEnd end = {.state = SWARM_JOB_COMPLETED};
	SwarmJobRow row;
	Lease		lease;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	PreventCommandIfReadOnly("job_complete()");
	lease = require_lease(PG_GETARG_INT64(0), PG_GETARG_INT64(1));
	fetch_leased(PG_GETARG_INT64(0), &row);
	end.result = PG_ARGISNULL(2) ? (Datum) 0 : PG_GETARG_DATUM(2);
	end.started = lease.since;
	end.attempts = lease.attempts + 1;
	if (!swarm_job_end(&row, &end))
		refuse_ended(row.id);
	swarm_job_ring_ended(row.id, SWARM_JOB_COMPLETED);
	PG_RETURN_VOID();
}

/*
 * swarm.job_fail(id, token, error, retry) returns void
 */
SWARM_FUNCTION(swarm_job_fail);
Datum
swarm_job_fail(PG_FUNCTION_ARGS)
{
	SwarmJobEnd end = {.state = SWARM_JOB_DEAD};
	bool		retry = PG_ARGISNULL(3) || PG_GETARG_BOOL(3);
	SwarmJobRow row;
	Lease		lease;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	PreventCommandIfReadOnly("job_fail()");
	lease = require_lease(PG_GETARG_INT64(0), PG_GETARG_INT64(1));
	fetch_leased(PG_GETARG_INT64(0), &row);
	end.error = PG_ARGISNULL(2) ? "failed" : text_to_cstring(PG_GETARG_TEXT_PP(2));
	end.started = lease.since;
	end.attempts = lease.attempts + 1;
	if (retry && end.attempts < row.max_attempts)
	{
		LeaseFailed failed = {MyDatabaseId, row.id, PG_GETARG_INT64(1), end.attempts, 0};

		failed.due = swarm_now() + swarm_job_backoff_us(end.attempts);
		if (!swarm_job_record_attempt(&row, end.attempts, failed.due, end.error, false))
			refuse_ended(row.id);
		swarm_doorbell_add(ring_lease_failed, swarm_job_undo_told, &failed, sizeof(failed));
		PG_RETURN_VOID();
	}
	if (!swarm_job_end(&row, &end))
		refuse_ended(row.id);
	swarm_job_ring_ended(row.id, SWARM_JOB_DEAD);
	PG_RETURN_VOID();
}

static void
ring_lease_failed(void *item)
{
	LeaseFailed *failed = item;
	SwarmShard *shard;
	SwarmEntry *e;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard = swarm_shard_find(failed->database);
	e = shard ? swarm_entry_find(failed->database, failed->id) : NULL;
	if (e != NULL && e->state == ENTRY_LEASED && e->token == failed->token)
	{
		shard->failed++;
		if (e->queue->notify)
			swarm_shard_event(shard, e->job.id, e->job.queue, SWARM_JOB_FAILED);
		swarm_entry_release(shard, e);
		e->job.attempts = failed->attempts;
		e->job.due = failed->due;
		swarm_entry_place(shard, e, false);
	}
	LWLockRelease(swarm_job_lock);
}

static int64
lease_us(Interval *interval)
{
	int64		us = swarm_interval_us(interval);

	if (us <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the lease must be greater than zero")));
	return us;
}

/*
 * check_queue_owner: who may EXECUTE job_claim() may take from the default
 * queue; from another, if also a member of its owner.
 */
static void
check_queue_owner(const char *queue)
{
	SwarmSpi	spi;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(queue)};
	Oid			owner = InvalidOid;
	bool		isnull;

	swarm_spi_begin(&spi);
	if (swarm_spi_query("SELECT owner::oid FROM swarm._queue WHERE name = $1 AND id <> 1",
						1, types, values, NULL) > 0)
		owner = DatumGetObjectId(swarm_spi_column(0, 1, &isnull));
	swarm_spi_end(&spi);
	if (OidIsValid(owner) && !has_privs_of_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for queue \"%s\"", queue)));
}

/* leased_entry: with the lock held; NULL if the token holds no lease. */
static SwarmEntry *
leased_entry(int64 id, int64 token)
{
	SwarmEntry *e = swarm_entry_find(MyDatabaseId, id);

	return e != NULL && e->state == ENTRY_LEASED && e->token == token ? e : NULL;
}

static Lease
require_lease(int64 id, int64 token)
{
	Lease		lease = {0};
	SwarmEntry *e;

	swarm_require_preload("a leased job");
	LWLockAcquire(swarm_job_lock, LW_SHARED);
	e = leased_entry(id, token);
	if (e != NULL)
	{
		lease.attempts = e->job.attempts;
		lease.since = e->since;
	}
	LWLockRelease(swarm_job_lock);
	if (e == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the token does not hold the lease of job " INT64_FORMAT, id),
				 errhint("The lease has run out, or the job was cancelled, or the server was restarted; drop the work.")));
	return lease;
}

static void
fetch_leased(int64 id, SwarmJobRow *row)
{
	if (!swarm_job_fetch(id, row))
		refuse_ended(id);
}

static void
refuse_ended(int64 id)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("job " INT64_FORMAT " has ended already", id)));
}
