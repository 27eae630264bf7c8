/*
 * agent_hook.c
 *	  Calling a hook, and counting it in shared memory.
 *
 * Which hooks there are is base/hook.c's.  In a table the counters would make everybody who has the same hook wait for each
 * other.  They count from the start of the server; without preloading nothing
 * is counted.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/lwlock.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
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

/* A hook, while it is called for one operation after the other. */
typedef struct Called
{
	SwarmHook  *hook;
	SwarmCallee callee;
	HookCount	count;			/* of the calls that went well so far */
} Called;

/* The call that failed among those that went well, and how. */
typedef struct Culprit
{
	int			payload;		/* -1: none did */
	int			hook;
	HookOutcome what;
	double		ms;
} Culprit;

static void call_hooks(SwarmHook **hooks, int nhooks, const Datum *payloads, int n, char **vetoes);
static bool call_together(SwarmHook **hooks, int nhooks, const Datum *payloads, int n, char **vetoes,
						  Culprit *culprit);
static char *call_hook(SwarmHook *hook, Datum payload);
static Oid	hook_function(const SwarmHook *hook);
static HookOutcome outcome(const SwarmHook *hook, const SwarmCall *call, char **reason);
static char *veto(Jsonb *result);
static void count(const HookCount *more);
static void count_one(int32 hook, HookOutcome what, double ms);

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
	swarm_hook_call = call_hooks;
}

/*
 * call_hooks: all hooks for each operation, until one refuses it.  For many
 * operations in one subtransaction, unless one of the hooks is known to fail.  When
 * one does, all is rolled back and done again in a subtransaction each; only the
 * call that failed is not repeated.
 */
static void
call_hooks(SwarmHook **hooks, int nhooks, const Datum *payloads, int n, char **vetoes)
{
	Culprit		culprit = {.payload = -1};
	bool		together = n > 1;

	for (int h = 0; h < nhooks; h++)
		together &= !hooks[h]->failed;
	if (together && call_together(hooks, nhooks, payloads, n, vetoes, &culprit))
		return;
	for (int p = 0; p < n; p++)
	{
		vetoes[p] = NULL;
		/* a hook sees what its operation has done */
		CommandCounterIncrement();
		PushActiveSnapshot(GetTransactionSnapshot());
		for (int h = 0; h < nhooks && vetoes[p] == NULL; h++)
		{
			if (p == culprit.payload && h == culprit.hook)
				count_one(hooks[h]->id, culprit.what, culprit.ms);
			else
				vetoes[p] = call_hook(hooks[h], payloads[p]);
		}
		PopActiveSnapshot();
	}
}

/*
 * call_together: the same in one subtransaction; false: `culprit` has failed, and
 * nothing is left of the others.
 */
static bool
call_together(SwarmHook **hooks, int nhooks, const Datum *payloads, int n, char **vetoes, Culprit *culprit)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext scratch;
	ErrorData  *volatile edata = NULL;
	Called	   *called = palloc0(nhooks * sizeof(Called));
	SwarmCalls	calls;
	SwarmCall	call;
	volatile int p = 0;
	volatile int h = nhooks;	/* none is being called */

	for (int i = 0; i < nhooks; i++)
	{
		called[i].count.hook = hooks[i]->id;
		called[i].callee.role = hooks[i]->owner;
		called[i].callee.proc = hook_function(hooks[i]);
		called[i].callee.timeout_us = hooks[i]->timeout_us;
		called[i].callee.context = context;
		if (!OidIsValid(called[i].callee.proc))
			return false;
	}
	scratch = AllocSetContextCreate(context, "pg_swarm calls of hooks", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(scratch);
	swarm_agent_calls_begin(&calls);
	PG_TRY();
	{
		for (; p < n; p++)
		{
			vetoes[p] = NULL;
			CommandCounterIncrement();
			PushActiveSnapshot(GetTransactionSnapshot());
			for (h = 0; h < nhooks && vetoes[p] == NULL; h++)
			{
				HookOutcome what;

				swarm_agent_calls_next(&calls, &called[h].callee, payloads[p], (Datum) 0, false, &call);
				what = outcome(hooks[h], &call, &vetoes[p]);
				called[h].count.outcomes[what]++;
				called[h].count.ms += call.us / 1000.0;
			}
			h = nhooks;
			PopActiveSnapshot();
			if (vetoes[p] != NULL)
				vetoes[p] = MemoryContextStrdup(context, vetoes[p]);
			MemoryContextReset(scratch);
		}
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		edata = swarm_agent_calls_failed(&calls);
	}
	PG_END_TRY();
	swarm_agent_calls_end(&calls, edata, &call);
	MemoryContextSwitchTo(context);
	if (edata != NULL && h < nhooks)
	{
		hooks[h]->failed = true;
		culprit->payload = p;
		culprit->hook = h;
		culprit->what = outcome(hooks[h], &call, NULL);
		culprit->ms = call.us / 1000.0;
	}
	MemoryContextDelete(scratch);
	for (int i = 0; i < nhooks && edata == NULL; i++)
		count(&called[i].count);
	return edata == NULL;
}

/*
 * call_hook: one hook, as its owner; why the operation must not be, or NULL.
 * What is wrong with the hook itself harms nobody.
 */
static char *
call_hook(SwarmHook *hook, Datum payload)
{
	Oid			proc = hook_function(hook);
	SwarmCall	call = {0};
	char	   *reason = NULL;
	HookOutcome what;

	if (!OidIsValid(proc))
	{
		count_one(hook->id, HOOK_FAILED, 0);
		return NULL;
	}
	swarm_agent_call(hook->owner, proc, payload, (Datum) 0, hook->timeout_us, false, &call);
	what = outcome(hook, &call, &reason);
	hook->failed = what == HOOK_FAILED || what == HOOK_TIMED_OUT;
	count_one(hook->id, what, call.us / 1000.0);
	return reason;
}

/* outcome: what a call came to; the reason of a veto. */
static HookOutcome
outcome(const SwarmHook *hook, const SwarmCall *call, char **reason)
{
	if (call->error != NULL)
		return call->timed_out ? HOOK_TIMED_OUT : HOOK_FAILED;
	if (hook->phase == SWARM_HOOK_BEFORE && call->result != (Datum) 0)
		*reason = veto(DatumGetJsonbP(call->result));
	return *reason != NULL ? HOOK_VETOED : HOOK_WELL;
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
count_one(int32 hook, HookOutcome what, double ms)
{
	HookCount	one = {.hook = hook, .ms = ms};

	one.outcomes[what] = 1;
	count(&one);
}

/* count: calls of one hook in this database. */
static void
count(const HookCount *more)
{
	if (counts == NULL)
		return;
	LWLockAcquire(lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_HOOKS; i++)
	{
		HookCount  *c = &counts[i];

		if (OidIsValid(c->database) && (c->database != MyDatabaseId || c->hook != more->hook))
			continue;
		c->database = MyDatabaseId;
		c->hook = more->hook;
		for (int k = 0; k < HOOK_OUTCOMES; k++)
			c->outcomes[k] += more->outcomes[k];
		c->ms += more->ms;
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
