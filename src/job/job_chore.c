/*
 * job_chore.c
 *	  Chores: background work on an object, which is no job.
 *
 * A chore (base/chore.h) has no row, no owner and no history: it is an entry
 * in shared memory that a runner takes when there is no job for it.  One per
 * (database, kind of work, object), in exactly one place, told by its state:
 * the shard's list of chores (waiting), a slot (running), or the timer heap
 * (somebody was in the way, or it failed).
 *
 * At most one chore runs in a database at a time, in pieces, and a runner
 * looks for jobs between two of them.  Who takes one leaves the idle list in
 * the same critical section: whoever was taken off it for a job, looks for
 * the job.
 *
 * What is lost in a crash, or has no room, is asked for again when somebody
 * finds the object wanting.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/chore.h"
#include "base/clock.h"
#include "base/fault.h"
#include "job/job_int.h"

#define LATER_US		INT64CONST(1000000)
#define LATER_MAX_US	INT64CONST(60000000)
#define MAX_TRIES		10		/* in vain, before it is forgotten */

HTAB	   *swarm_chore_table = NULL;

static SwarmChore *take(SwarmShard *shard, SwarmSlot *slot);
static SwarmChoreResult run(const SwarmChore *chore, bool *failed);
static void settle(SwarmShard *shard, SwarmSlot *slot, SwarmChore *chore,
				   SwarmChoreResult result, bool failed);
static void place(SwarmShard *shard, SwarmChore *chore);
static void postpone(SwarmShard *shard, SwarmChore *chore, int64 delay_us);
static void remove_chore(SwarmShard *shard, SwarmChore *chore);
static void set_failing(SwarmShard *shard, SwarmChore *chore, bool failing);

/*
 * swarm_chore_push: somebody asks for a chore; swarm_chore_hook.
 */
void
swarm_chore_push(Oid database, int kind, Oid object)
{
	SwarmChoreKey key = {.database = database, .object = object, .kind = kind};
	SwarmShard *shard;
	SwarmChore *chore;
	bool		found;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard = swarm_shard_find(database);
	chore = shard == NULL ? NULL :
		hash_search(swarm_chore_table, &key, HASH_ENTER_NULL, &found);
	if (chore != NULL && found)
		chore->again |= chore->state == CHORE_RUNNING;
	else if (chore != NULL)
	{
		memset((char *) chore + sizeof(key), 0, sizeof(*chore) - sizeof(key));
		chore->timer.kind = TIMER_CHORE;
		shard->nchores++;
		place(shard, chore);
		swarm_shard_wake_runner(shard);
	}
	LWLockRelease(swarm_job_lock);
}

/*
 * swarm_chore_ready: could a runner take one now?  Lock held.
 */
bool
swarm_chore_ready(const SwarmShard *shard)
{
	return !shard->chore_running && !dlist_is_empty(unconstify(dlist_head *, &shard->chores));
}

/*
 * swarm_chore_turn: a piece of a chore, if there is one; for a slot that has
 * found no job.
 */
bool
swarm_chore_turn(SwarmShard *shard, SwarmSlot *slot)
{
	SwarmChore *chore = take(shard, slot);
	SwarmChoreResult result;
	bool		failed;

	if (chore == NULL)
		return false;
	result = run(chore, &failed);
	settle(shard, slot, chore, result, failed);
	return true;
}

static SwarmChore *
take(SwarmShard *shard, SwarmSlot *slot)
{
	SwarmChore *chore = NULL;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	if (slot->idle_listed && !slot->stop && shard->holds == 0 &&
		shard->state == SWARM_SHARD_SERVING && swarm_chore_ready(shard))
	{
		chore = dlist_container(SwarmChore, link, dlist_pop_head_node(&shard->chores));
		chore->state = CHORE_RUNNING;
		chore->again = false;
		shard->chore_running = true;
		dlist_delete(&slot->idle_node);
		slot->idle_listed = false;
		slot->state = SWARM_SLOT_RUNNING;
		slot->since = swarm_now();
		slot->chore = chore;
		slot->chore_kind = chore->key.kind;
		slot->chore_object = chore->key.object;
	}
	LWLockRelease(swarm_job_lock);
	return chore;
}

/*
 * run: one piece, in a transaction of its own.
 */
static SwarmChoreResult
run(const SwarmChore *chore, bool *failed)
{
	MemoryContext context = CurrentMemoryContext;
	volatile SwarmChoreResult result = SWARM_CHORE_LATER;
	volatile bool bad = false;

	if (swarm_job_inflight_hook)
		swarm_job_inflight_hook(0, 0);	/* the last job is not to blame */
	QueryCancelPending = false; /* was meant for it */
	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		pgstat_report_activity(STATE_RUNNING, swarm_chore_name(chore->key.kind));
		StartTransactionCommand();
		SWARM_FAULT("chore.begin");
		result = swarm_chore_call(chore->key.kind, chore->key.object);
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		HOLD_INTERRUPTS();
		error = CopyErrorData();
		result = SWARM_CHORE_LATER;
		bad = error->sqlerrcode != ERRCODE_QUERY_CANCELED &&
			error->sqlerrcode != ERRCODE_LOCK_NOT_AVAILABLE;
		errcontext("background work \"%s\" on object %u",
				   swarm_chore_name(chore->key.kind), chore->key.object);
		if (bad)
			EmitErrorReport();
		FlushErrorState();
		if (!bad)
			elog(DEBUG1, "background work put off: %s", error->message);
		FreeErrorData(error);
		AbortCurrentTransaction();
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	*failed = bad;
	return result;
}

/*
 * settle: where it goes now.  Nobody is woken for what is left: the slot looks
 * again itself.
 */
static void
settle(SwarmShard *shard, SwarmSlot *slot, SwarmChore *chore,
	   SwarmChoreResult result, bool failed)
{
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	slot->chore = NULL;
	shard->chore_running = false;
	set_failing(shard, chore, failed);
	if (result == SWARM_CHORE_LATER && ++chore->tries < MAX_TRIES)
		postpone(shard, chore, failed ? LATER_MAX_US : LATER_US << (chore->tries - 1));
	else if (result == SWARM_CHORE_MORE || (result == SWARM_CHORE_DONE && chore->again))
	{
		chore->tries = 0;
		place(shard, chore);
	}
	else
		remove_chore(shard, chore);
	LWLockRelease(swarm_job_lock);
}

/*
 * swarm_chore_slot_died: the process that ran one has ended.  Lock held.
 */
void
swarm_chore_slot_died(SwarmShard *shard, SwarmSlot *slot)
{
	SwarmChore *chore = slot->chore;

	slot->chore = NULL;
	if (chore == NULL)
		return;
	shard->chore_running = false;
	if (slot->stop)
		place(shard, chore);
	else if (++chore->tries < MAX_TRIES)
		postpone(shard, chore, LATER_US << (chore->tries - 1));
	else
		remove_chore(shard, chore);
}

/*
 * swarm_chore_due: the timer of one that had to wait has rung.  Lock held.
 */
void
swarm_chore_due(SwarmShard *shard, SwarmChore *chore)
{
	place(shard, chore);
	swarm_shard_wake_runner(shard);
}

/*
 * swarm_chore_forget: the database is not served any more, or the extension
 * was dropped.  Lock held.
 */
void
swarm_chore_forget(SwarmShard *shard)
{
	HASH_SEQ_STATUS seq;
	SwarmChore *chore;

	hash_seq_init(&seq, swarm_chore_table);
	while ((chore = hash_seq_search(&seq)) != NULL)
	{
		if (chore->key.database != shard->database || chore->state == CHORE_RUNNING)
			continue;
		if (chore->state == CHORE_WAITING)
			dlist_delete(&chore->link);
		remove_chore(shard, chore);
	}
}

/* place: into the list of those that wait for a runner. */
static void
place(SwarmShard *shard, SwarmChore *chore)
{
	chore->state = CHORE_WAITING;
	dlist_push_tail(&shard->chores, &chore->link);
}

/* postpone: the scheduler, which keeps the timers, puts it back. */
static void
postpone(SwarmShard *shard, SwarmChore *chore, int64 delay_us)
{
	chore->state = CHORE_LATER;
	swarm_timer_arm(shard, &chore->timer, swarm_now() + Min(delay_us, LATER_MAX_US));
}

static void
remove_chore(SwarmShard *shard, SwarmChore *chore)
{
	set_failing(shard, chore, false);
	swarm_timer_disarm(shard, &chore->timer);
	shard->nchores--;
	hash_search(swarm_chore_table, &chore->key, HASH_REMOVE, NULL);
}

static void
set_failing(SwarmShard *shard, SwarmChore *chore, bool failing)
{
	shard->chores_failing += failing - chore->failing;
	chore->failing = failing;
}
