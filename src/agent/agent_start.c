/*
 * agent_start.c
 *	  Starting agents: a runner takes each one on, as its role, while the
 *	  caller of swarm.agent_spawn() waits.
 *
 * A start is an errand (job/job_errand.c): so it happens inside the caller's
 * transaction, whose rollback leaves no agent.  Groups of `batch_size` are
 * posted as long as no more than `max_concurrency` are under way.
 */
#include "postgres.h"

#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "agent/agent_int.h"
#include "base/compat.h"
#include "base/export.h"
#include "base/fault.h"
#include "base/shmem.h"
#include "job/job.h"

#define BACKOFF_FIRST_MS	1
#define BACKOFF_MAX_MS		64
#define SLOW_FACTOR			2.0 /* a group this much slower than the best */
#define FAST_FACTOR			1.2

typedef struct Start
{
	int			errand;			/* -1: not posted, or settled */
	bool		settled;
	int			batch;			/* number of its group, from 1 */
	TimestampTz posted;
	SwarmErrandResult result;
} Start;

typedef struct Starting
{
	Start	   *starts;
	int			n;
	int			next;			/* not posted yet */
	int			under_way;
	int			batch;			/* groups posted */
	int			batch_size;
	int			max_concurrency;
	bool		adaptive;
	double		best_ms;		/* mean of the fastest group */
	TimestampTz deadline;
	TimestampTz until;			/* no place: try again then */
	int			backoff_ms;
	Oid		   *roles;
	Oid		   *procs;
} Starting;

static void start(Oid role, Oid proc);
static void start_all(Starting *s);
static bool post_group(Starting *s);
static bool collect(Starting *s);
static void adapt(Starting *s, int batch);
static void drop_all(int code, Datum arg);
static Oid *oids(ArrayType *array, int *n);

void
swarm_agent_start_init(void)
{
	swarm_errand_hook = start;
}

/*
 * start: in a runner: can it work as this role, and call this function?
 */
static void
start(Oid role, Oid proc)
{
	FmgrInfo	flinfo;

	SWARM_FAULT("agent.start");
	PushActiveSnapshot(GetTransactionSnapshot());
	swarm_agent_check_call(role, proc);
	SetUserIdAndSecContext(role, SECURITY_LOCAL_USERID_CHANGE);
	if (OidIsValid(proc))
		fmgr_info(proc, &flinfo);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, 0);
	PopActiveSnapshot();
}

/*
 * swarm._agent_start(roles oid[], procs oid[], batch_size, max_concurrency,
 * timeout_ms, adaptive) returns setof (n, error, ms, batch, pid)
 */
SWARM_FUNCTION(swarm__agent_start);
Datum
swarm__agent_start(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Starting	s = {0};
	int			nprocs;

	swarm_require_preload("spawning an agent");
	InitMaterializedSRF(fcinfo, 0);
	s.roles = oids(PG_GETARG_ARRAYTYPE_P(0), &s.n);
	s.procs = oids(PG_GETARG_ARRAYTYPE_P(1), &nprocs);
	s.batch_size = PG_GETARG_INT32(2);
	s.max_concurrency = PG_GETARG_INT32(3);
	if (nprocs != s.n || s.batch_size < 1 || s.max_concurrency < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("starting agents needs a function for each role, and groups of at least 1")));
	s.deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), PG_GETARG_INT32(4));
	s.adaptive = PG_GETARG_BOOL(5);
	s.starts = palloc0(s.n * sizeof(Start));
	for (int i = 0; i < s.n; i++)
		s.starts[i].errand = -1;

	PG_ENSURE_ERROR_CLEANUP(drop_all, PointerGetDatum(&s));
	start_all(&s);
	PG_END_ENSURE_ERROR_CLEANUP(drop_all, PointerGetDatum(&s));
	drop_all(0, PointerGetDatum(&s));

	for (int i = 0; i < s.n; i++)
	{
		Start	   *one = &s.starts[i];
		Datum		values[6];
		bool		nulls[6] = {false};

		values[0] = Int32GetDatum(i + 1);
		if (!one->settled)
			strlcpy(one->result.error, "no worker slot became free in time", sizeof(one->result.error));
		nulls[1] = one->settled && one->result.sqlstate == 0;
		values[1] = CStringGetTextDatum(one->result.error);
		values[2] = Float8GetDatum(one->result.ms);
		values[3] = Int32GetDatum(Max(one->batch, 1));
		nulls[4] = !one->settled;
		values[4] = Int32GetDatum(one->result.pid);
		values[5] = Int32GetDatum(s.batch_size);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

static void
start_all(Starting *s)
{
	s->backoff_ms = BACKOFF_FIRST_MS;
	for (;;)
	{
		TimestampTz now;
		long		wait;

		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		while (post_group(s))
			;
		if (collect(s))
			continue;
		if (s->next == s->n && s->under_way == 0)
			return;
		now = GetCurrentTimestamp();
		if (now >= s->deadline)
			return;
		wait = TimestampDifferenceMilliseconds(now, s->deadline);
		if (s->until > now)
			wait = Min(wait, TimestampDifferenceMilliseconds(now, s->until));
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 Max(wait, 1), PG_WAIT_EXTENSION);
	}
}

/*
 * post_group: the next group, if it may start now; false: wait.
 */
static bool
post_group(Starting *s)
{
	int			n = Min(Min(s->batch_size, s->max_concurrency), s->n - s->next);

	if (n == 0 || s->under_way + n > s->max_concurrency || GetCurrentTimestamp() < s->until)
		return false;
	s->batch++;
	for (int i = 0; i < n; i++)
	{
		Start	   *one = &s->starts[s->next];

		one->errand = swarm_errand_post(s->roles[s->next], s->procs[s->next]);
		if (one->errand < 0)
		{
			s->until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), s->backoff_ms);
			s->backoff_ms = Min(s->backoff_ms * 2, BACKOFF_MAX_MS);
			s->batch -= i == 0;
			return false;
		}
		s->backoff_ms = BACKOFF_FIRST_MS;
		one->batch = s->batch;
		one->posted = GetCurrentTimestamp();
		s->next++;
		s->under_way++;
	}
	return true;
}

/*
 * collect: the answers that are there; true if there was one.
 */
static bool
collect(Starting *s)
{
	bool		any = false;

	for (int i = 0; i < s->next; i++)
	{
		Start	   *one = &s->starts[i];

		if (one->errand < 0 || !swarm_errand_done(one->errand, &one->result))
			continue;
		swarm_errand_drop(one->errand);
		one->errand = -1;
		one->settled = true;
		s->under_way--;
		any = true;
		if (s->adaptive)
			adapt(s, one->batch);
	}
	return any;
}

/*
 * adapt: a group has ended: smaller ones when it was slow, larger ones when
 * it was as fast as the best.
 */
static void
adapt(Starting *s, int batch)
{
	double		ms = 0;
	int			n = 0;

	for (int i = 0; i < s->next; i++)
	{
		if (s->starts[i].batch != batch)
			continue;
		if (!s->starts[i].settled)
			return;
		ms += s->starts[i].result.ms;
		n++;
	}
	ms /= Max(n, 1);
	if (s->best_ms == 0 || ms < s->best_ms)
		s->best_ms = ms;
	if (ms > s->best_ms * SLOW_FACTOR)
		s->batch_size = Max(s->batch_size / 2, 1);
	else if (ms <= s->best_ms * FAST_FACTOR)
		s->batch_size = Min(s->batch_size + 1, s->max_concurrency);
}

/* drop_all: also when the session ends. */
static void
drop_all(int code, Datum arg)
{
	Starting   *s = (Starting *) DatumGetPointer(arg);

	for (int i = 0; i < s->next; i++)
	{
		if (s->starts[i].errand >= 0)
			swarm_errand_drop(s->starts[i].errand);
		s->starts[i].errand = -1;
	}
}

static Oid *
oids(ArrayType *array, int *n)
{
	Datum	   *values;
	bool	   *nulls;
	Oid		   *result;

	deconstruct_array(array, OIDOID, sizeof(Oid), true, TYPALIGN_INT, &values, &nulls, n);
	result = palloc0(sizeof(Oid) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
		result[i] = nulls[i] ? InvalidOid : DatumGetObjectId(values[i]);
	return result;
}
