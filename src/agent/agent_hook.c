/*
 * agent_hook.c
 *	  Calling a hook, and counting it in shared memory.
 *
 * Which hooks there are is base/hook.c's.  In a table the counters would make everybody who has the same hook wait for each
 * other.  They count from the start of the server; without preloading nothing
 * is counted.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/syscache.h"

#include "agent/agent_int.h"
#include "base/export.h"
#include "base/hook.h"
#include "base/shmem.h"

#define MAX_HOOKS	512			/* counted, of all databases */

/* What a call came to. */
typedef enum HookOutcome
{
	HOOK_WELL,
	HOOK_FAILED,
	HOOK_VETOED,
	HOOK_TIMED_OUT,
	HOOK_OUTCOMES
} HookOutcome;

typedef struct HookCount
{
	Oid			database;		/* InvalidOid: free */
	int32		hook;
	int64		outcomes[HOOK_OUTCOMES];
	double		ms;
} HookCount;

static HookCount *counts = NULL;
static LWLock *lock = NULL;

static char *call_hook(const SwarmHook *hook, Datum payload);
static Oid	hook_function(const SwarmHook *hook);
static char *veto(Jsonb *result);
static void count(int32 hook, HookOutcome what, double ms);

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
	swarm_hook_call = call_hook;
}

/*
 * call_hook: one hook, as its owner; why the operation must not be, or NULL.
 * What is wrong with the hook itself harms nobody.
 */
static char *
call_hook(const SwarmHook *hook, Datum payload)
{
	Oid			proc = hook_function(hook);
	SwarmCall	call = {0};
	char	   *reason = NULL;

	if (!OidIsValid(proc))
	{
		count(hook->id, HOOK_FAILED, 0);
		return NULL;
	}
	swarm_agent_call(hook->owner, proc, payload, (Datum) 0, hook->timeout_us, false, &call);
	if (call.error == NULL && hook->phase == SWARM_HOOK_BEFORE && call.result != (Datum) 0)
		reason = veto(DatumGetJsonbP(call.result));
	count(hook->id, call.timed_out ? HOOK_TIMED_OUT : call.error != NULL ? HOOK_FAILED :
		  reason != NULL ? HOOK_VETOED : HOOK_WELL, call.us / 1000.0);
	return reason;
}

/* hook_function: the function (jsonb) that has its name now, or InvalidOid. */
static Oid
hook_function(const SwarmHook *hook)
{
	Oid			schema = get_namespace_oid(hook->schema, true);
	Oid			types[] = {JSONBOID};

	if (!OidIsValid(schema))
		return InvalidOid;
	return GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid, CStringGetDatum(hook->function),
						   PointerGetDatum(buildoidvector(types, 1)), ObjectIdGetDatum(schema));
}

/* veto: the reason in {"veto": reason}, or NULL. */
static char *
veto(Jsonb *result)
{
	JsonbValue *value = JB_ROOT_IS_OBJECT(result) ?
	getKeyJsonValueFromContainer(&result->root, "veto", 4, NULL) : NULL;
	Jsonb	   *jsonb;

	if (value == NULL)
		return NULL;
	if (value->type == jbvNull)
		return "refused";
	if (value->type == jbvString)
		return pnstrdup(value->val.string.val, value->val.string.len);
	jsonb = JsonbValueToJsonb(value);
	return JsonbToCString(NULL, &jsonb->root, VARSIZE(jsonb));
}

static void
count(int32 hook, HookOutcome what, double ms)
{
	if (counts == NULL)
		return;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_HOOKS; i++)
	{
		HookCount  *c = &counts[i];

		if (OidIsValid(c->database) && (c->database != MyDatabaseId || c->hook != hook))
			continue;
		c->database = MyDatabaseId;
		c->hook = hook;
		c->outcomes[what]++;
		c->ms += ms;
		break;
	}
	LWLockRelease(lock);
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
