/*
 * job_errand.c
 *	  Errands: what a runner does for a session that waits for the answer.
 *
 * A job is seen by runners when it is committed.  An errand is a place in
 * shared memory, so a session can have something done by another process,
 * under any role, in the middle of its own transaction: that is how an agent
 * is started before its row is committed.  It has no row, no owner and no
 * history, is as short as a chore's piece, and goes before chores.
 *
 *	  FREE ──post──> WAITING ──take──> TAKEN ──settle──> DONE ──drop──> FREE
 *					   └──drop──> FREE	 └──drop──> LEFT ──settle──> FREE
 *
 * All under swarm_job_lock.  Who posted is woken by his latch.  A runner that
 * dies has failed its errand; one that was asked to stop puts it back.
 */
#include "postgres.h"

#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/shmem.h"
#include "job/job_int.h"

#define MAX_ERRANDS		256		/* of all databases */

typedef enum ErrandState
{
	ERRAND_FREE,
	ERRAND_WAITING,
	ERRAND_TAKEN,
	ERRAND_LEFT,				/* taken, and nobody waits any more */
	ERRAND_DONE
} ErrandState;

typedef struct Errand
{
	ErrandState state;
	Oid			database;
	Oid			role;
	Oid			object;
	uint64		number;			/* order of posting */
	Latch	   *latch;			/* of who waits */
	int			slot;			/* ERRAND_TAKEN, ERRAND_LEFT */
	TimestampTz posted;
	TimestampTz finished;
	int			pid;			/* who did it */
	int			sqlstate;		/* 0 = well */
	char		error[SWARM_ERRAND_ERROR];
} Errand;

typedef struct ErrandShared
{
	uint64		next;
	int			waiting;		/* ERRAND_WAITING, of all databases */
	Errand		errands[MAX_ERRANDS];
} ErrandShared;

void		(*swarm_errand_hook) (Oid role, Oid object) = NULL;

static ErrandShared *shared = NULL;

static Size errand_size(void);
static Errand *oldest(const SwarmShard *shard, Oid role);
static Errand *take(SwarmShard *shard, SwarmSlot *slot);
static void run(Oid role, Oid object, bool lent, int *sqlstate, char *error);
static void settle(Errand *e, int sqlstate, const char *error);

static SwarmShmemPiece errand_piece = {
	.name = "pg_swarm errands",
	.size = errand_size,
	.pointer = (void **) &shared
};

void
swarm_errand_init(void)
{
	swarm_shmem_register(&errand_piece);
}

static Size
errand_size(void)
{
	return sizeof(ErrandShared);
}

int
swarm_errand_post(Oid role, Oid object)
{
	SwarmShard *shard;
	int			found = -1;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard = swarm_shard_find(MyDatabaseId);
	for (int i = 0; i < MAX_ERRANDS && found < 0; i++)
	{
		if (shared->errands[i].state == ERRAND_FREE)
			found = i;
	}
	if (found >= 0)
	{
		Errand	   *e = &shared->errands[found];

		memset(e, 0, sizeof(*e));
		e->state = ERRAND_WAITING;
		e->database = MyDatabaseId;
		e->role = role;
		e->object = object;
		e->number = shared->next++;
		e->latch = MyLatch;
		e->posted = GetCurrentTimestamp();
		shared->waiting++;
		if (shard != NULL)
			swarm_shard_wake_for(shard, role);
	}
	LWLockRelease(swarm_job_lock);
	return found;
}

bool
swarm_errand_done(int n, SwarmErrandResult *result)
{
	Errand	   *e = &shared->errands[n];
	bool		done;

	LWLockAcquire(swarm_job_lock, LW_SHARED);
	done = e->state == ERRAND_DONE;
	if (done)
	{
		result->sqlstate = e->sqlstate;
		result->pid = e->pid;
		result->ms = (e->finished - e->posted) / 1000.0;
		strlcpy(result->error, e->error, sizeof(result->error));
	}
	LWLockRelease(swarm_job_lock);
	return done;
}

void
swarm_errand_drop(int n)
{
	Errand	   *e = &shared->errands[n];

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shared->waiting -= e->state == ERRAND_WAITING;
	e->state = e->state == ERRAND_TAKEN ? ERRAND_LEFT : ERRAND_FREE;
	LWLockRelease(swarm_job_lock);
}

int
swarm_errands_waiting(const SwarmShard *shard)
{
	int			n = 0;

	for (int i = 0; shared->waiting > 0 && i < MAX_ERRANDS; i++)
		n += shared->errands[i].state == ERRAND_WAITING &&
			shared->errands[i].database == shard->database;
	return n;
}

/*
 * swarm_errand_turn: run one, if there is one; for a slot that is on the idle
 * list, or has just ended a job.
 */
bool
swarm_errand_turn(SwarmShard *shard, SwarmSlot *slot)
{
	Errand	   *e = take(shard, slot);
	int			sqlstate = 0;
	char		error[SWARM_ERRAND_ERROR] = "";

	if (e == NULL)
		return false;
	run(e->role, e->object, slot->lent, &sqlstate, error);
	settle(e, sqlstate, error);
	return true;
}

/*
 * swarm_errand_next_role: whose is the one that waits longest?
 */
Oid
swarm_errand_next_role(const SwarmShard *shard)
{
	Errand	   *first = oldest(shard, InvalidOid);

	return first == NULL ? InvalidOid : first->role;
}

/* oldest: that waits in this database, of that role if it is valid. */
static Errand *
oldest(const SwarmShard *shard, Oid role)
{
	Errand	   *first = NULL;

	for (int i = 0; shared->waiting > 0 && i < MAX_ERRANDS; i++)
	{
		Errand	   *e = &shared->errands[i];

		if (e->state == ERRAND_WAITING && e->database == shard->database &&
			(!OidIsValid(role) || e->role == role) &&
			(first == NULL || e->number < first->number))
			first = e;
	}
	return first;
}

/*
 * take: the oldest of this database that the slot's role allows, and leave the
 * idle list in the same critical section.  The next one is somebody else's:
 * wake him.  Who finds only those of other roles, which nobody comes to do,
 * makes room.
 */
static Errand *
take(SwarmShard *shard, SwarmSlot *slot)
{
	Errand	   *first = NULL;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	if (shared->waiting > 0 && !slot->stop && !slot->critical_only && shard->holds == 0 &&
		shard->state == SWARM_SHARD_SERVING && !slot->leaving)
	{
		first = oldest(shard, slot->role);
		if (first == NULL && swarm_errands_waiting(shard) > 0)
		{
			if (!swarm_slot_make_room(shard, slot))
				swarm_shard_wake_for(shard, swarm_errand_next_role(shard));
		}
	}
	if (first != NULL)
	{
		swarm_slot_bind(slot, first->role);
		first->state = ERRAND_TAKEN;
		first->slot = swarm_slot_number(slot);
		first->pid = MyProcPid;
		shared->waiting--;
		if (slot->idle_listed)
			dlist_delete(&slot->idle_node);
		slot->idle_listed = false;
		slot->state = SWARM_SLOT_RUNNING;
		slot->since = GetCurrentTimestamp();
		slot->job = 0;
		if (swarm_errands_waiting(shard) > 0)
			swarm_shard_wake_runner(shard);
	}
	LWLockRelease(swarm_job_lock);
	return first;
}

/*
 * run: in a transaction of its own, with the rights of the role.
 */
static void
run(Oid role, Oid object, bool lent, int *sqlstate, char *error)
{
	MemoryContext context = CurrentMemoryContext;

	if (swarm_job_inflight_hook)
		swarm_job_inflight_hook(0, 0);	/* the last job is not to blame */
	QueryCancelPending = false; /* was meant for it */
	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		pgstat_report_activity(STATE_RUNNING, "errand");
		StartTransactionCommand();
		swarm_role_take(role, !lent);
		swarm_errand_hook(role, object);
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		ErrorData  *edata;
		const char *message;

		MemoryContextSwitchTo(context);
		edata = CopyErrorData();
		FlushErrorState();
		*sqlstate = edata->sqlerrcode;
		message = edata->message ? edata->message : "missing error text";
		strlcpy(error, message, pg_mbcliplen(message, strlen(message), SWARM_ERRAND_ERROR - 1) + 1);
		FreeErrorData(edata);
		AbortCurrentTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
}

static void
settle(Errand *e, int sqlstate, const char *error)
{
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	e->finished = GetCurrentTimestamp();
	e->sqlstate = sqlstate;
	strlcpy(e->error, error, sizeof(e->error));
	if (e->state == ERRAND_LEFT)
		e->state = ERRAND_FREE;
	else
	{
		e->state = ERRAND_DONE;
		SetLatch(e->latch);
	}
	LWLockRelease(swarm_job_lock);
}

/*
 * swarm_errand_slot_died: the process that ran one has ended.  Lock held.
 */
void
swarm_errand_slot_died(const SwarmSlot *slot)
{
	for (int i = 0; i < MAX_ERRANDS; i++)
	{
		Errand	   *e = &shared->errands[i];

		if ((e->state != ERRAND_TAKEN && e->state != ERRAND_LEFT) ||
			e->slot != swarm_slot_number(slot))
			continue;
		if (e->state == ERRAND_LEFT)
			e->state = ERRAND_FREE;
		else if (slot->stop)
		{
			e->state = ERRAND_WAITING;
			shared->waiting++;
		}
		else
		{
			e->state = ERRAND_DONE;
			e->finished = GetCurrentTimestamp();
			e->sqlstate = ERRCODE_ADMIN_SHUTDOWN;
			strlcpy(e->error, "the process ended while it started", sizeof(e->error));
			SetLatch(e->latch);
		}
	}
}
