/*
 * agent_hook.c
 *	  Counters of hooks, in shared memory.
 *
 * In a table they would make everybody who has the same hook wait for each
 * other.  They count from the start of the server; without preloading nothing
 * is counted.
 */
#include "postgres.h"

#include "funcapi.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/lwlock.h"

#include "agent/agent_int.h"
#include "base/export.h"
#include "base/shmem.h"

#define MAX_HOOKS	512			/* counted, of all databases */

/* What a call came to, as swarm._hook_run() says it. */
enum
{
	HOOK_WELL,
	HOOK_FAILED,
	HOOK_VETOED,
	HOOK_TIMED_OUT,
	HOOK_OUTCOMES
};

typedef struct HookCount
{
	Oid			database;		/* InvalidOid: free */
	int32		hook;
	int64		outcomes[HOOK_OUTCOMES];
	double		ms;
} HookCount;

static HookCount *counts = NULL;
static LWLock *lock = NULL;

static Size
hook_size(void)
{
	return MAX_HOOKS * sizeof(HookCount);
}

static SwarmShmemPiece hook_piece = {
	.name = "pg_swarm hooks",
	.size = hook_size,
	.pointer = (void **) &counts,
	.lock = &lock
};

void
swarm_agent_hook_init(void)
{
	swarm_shmem_register(&hook_piece);
}

/*
 * swarm._hook_count(hook int, what int, ms float8) returns void
 */
SWARM_FUNCTION(swarm__hook_count);
Datum
swarm__hook_count(PG_FUNCTION_ARGS)
{
	int32		hook = PG_GETARG_INT32(0);
	int32		what = PG_GETARG_INT32(1);

	if (counts == NULL || what < 0 || what >= HOOK_OUTCOMES)
		PG_RETURN_VOID();
	LWLockAcquire(lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_HOOKS; i++)
	{
		HookCount  *c = &counts[i];

		if (OidIsValid(c->database) && (c->database != MyDatabaseId || c->hook != hook))
			continue;
		c->database = MyDatabaseId;
		c->hook = hook;
		c->outcomes[what]++;
		c->ms += PG_GETARG_FLOAT8(2);
		break;
	}
	LWLockRelease(lock);
	PG_RETURN_VOID();
}

/*
 * swarm._hook_counts() returns setof (hook, calls, failures, vetoes, timeouts,
 * total_ms)
 */
SWARM_FUNCTION(swarm__hook_counts);
Datum
swarm__hook_counts(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	HookCount  *copy;

	InitMaterializedSRF(fcinfo, 0);
	if (counts == NULL)
		return (Datum) 0;
	copy = palloc(hook_size());
	LWLockAcquire(lock, LW_SHARED);
	memcpy(copy, counts, hook_size());
	LWLockRelease(lock);
	for (int i = 0; i < MAX_HOOKS; i++)
	{
		Datum		values[6];
		bool		nulls[6] = {false};
		int64		calls = 0;

		if (copy[i].database != MyDatabaseId)
			continue;
		for (int k = 0; k < HOOK_OUTCOMES; k++)
			calls += copy[i].outcomes[k];
		values[0] = Int32GetDatum(copy[i].hook);
		values[1] = Int64GetDatum(calls);
		values[2] = Int64GetDatum(copy[i].outcomes[HOOK_FAILED]);
		values[3] = Int64GetDatum(copy[i].outcomes[HOOK_VETOED]);
		values[4] = Int64GetDatum(copy[i].outcomes[HOOK_TIMED_OUT]);
		values[5] = Float8GetDatum(copy[i].ms);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
