/*
 * job_claim.c
 *	  Who runs which job: claims, limits, rates, and giving back.
 *
 * A claim moves an entry from its queue's list to a runner's slot and counts
 * it against the limits of its queue and its kind; nothing is written.  It
 * ends in exactly one of: finished (entry removed), returned (due again), or
 * dropped (the row was gone).  When a process dies, its exit callback ends
 * its claims; when the server crashes, there are none.
 *
 * Queues that may run something form a ring; a claim looks at its head and
 * moves it to the tail.  A queue that is paused, at its limit or out of
 * tokens is not in the ring, so it costs nothing.  Inside a queue, critical
 * jobs go first (but every eighth claim goes to the others), then the one
 * with the earliest (ready since - priority * pg_swarm.job_ageing): a lower
 * priority waits at most that much longer than a higher one.
 *
 * A runner works for one role, that of its first job, to its end.  Where the
 * next job is another role's, a runner of that role is woken, or one is
 * started; if there are as many as may be, a runner makes room by ending, but
 * not before it has worked TURN_MS for its own role, if that has jobs.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xlog.h"
#include "miscadmin.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "job/job_int.h"

#define CRITICAL_IN_A_ROW	7
#define FLUSH_MAX			1000
#define TURN_MS				200
#define OWN_LOOKS			512 /* at jobs and at queues, for one of the own
								 * role */
#define ALONE				(SWARM_READY_SUSPECT | SWARM_READY_NO_BATCH)

static bool claims_open(const SwarmShard *shard);
static SwarmQueue *next_queue(SwarmShard *shard, bool critical_only);
static SwarmEntry *best_ready(SwarmShard *shard, SwarmQueue *q, bool critical_only);
static SwarmEntry *own_ready(SwarmShard *shard, const SwarmSlot *slot, TimestampTz now);
static bool room_is_made(const SwarmShard *shard);
static bool others_turn(SwarmShard *shard, SwarmQueue *q);
static dlist_head *best_list(dlist_head *lists, bool critical_only, bool critical_first);
static bool kind_may_start(SwarmShard *shard, SwarmEntry *e, TimestampTz now);
static bool queue_may_start(SwarmShard *shard, SwarmQueue *q, TimestampTz now);
static void take_entry(SwarmShard *shard, SwarmEntry *e, SwarmEntryState state);
static void finish_entry(SwarmShard *shard, SwarmEntry *e, SwarmJobState state);

/* ------------------------------------------------------------------------
 * Claiming
 * ------------------------------------------------------------------------ */

int
swarm_queue_claim(SwarmShard *shard, SwarmSlot *slot, SwarmClaim *claims, int max)
{
	TimestampTz now = swarm_now();
	SwarmQueue *q;
	int			n = 0;
	Oid			foreign = InvalidOid;	/* whose job was left to others */

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	if (slot->idle_listed)
	{
		dlist_delete(&slot->idle_node);
		slot->idle_listed = false;
	}
	while (n == 0 && !OidIsValid(foreign) && !slot->stop && claims_open(shard) &&
		   (q = next_queue(shard, slot->critical_only)) != NULL)
	{
		int			most = Min(max, q->batch);
		SwarmEntry *e;

		while (n < most && queue_may_start(shard, q, now) &&
			   (e = best_ready(shard, q, slot->critical_only)) != NULL)
		{
			if (n > 0 && ((e->job.flags & ALONE) || e->job.owner != claims[0].job.owner))
				break;
			if (n == 0 && OidIsValid(slot->role) && slot->role != e->job.owner)
			{
				foreign = e->job.owner;
				e = own_ready(shard, slot, now);
				if (e == NULL)
					break;
				q = e->queue;
				most = 1;
			}
			if (!kind_may_start(shard, e, now))
				continue;		/* it was parked */
			take_entry(shard, e, ENTRY_CLAIMED);
			e->slot = swarm_slot_number(slot);
			claims[n].job = e->job;
			claims[n].entry = e;
			claims[n].notify = q->notify;
			claims[n].group_commit = q->group_commit;
			n++;
			if (e->job.flags & ALONE)
				break;
		}
		swarm_queue_consider(shard, q);
		if (q->in_ring && dlist_is_empty(&q->ready[SWARM_PRIORITY_CRITICAL]))
		{
			dlist_delete(&q->ring_node);
			dlist_push_tail(&shard->ring, &q->ring_node);
		}
	}
	if (n == 0)
	{
		slot->state = SWARM_SLOT_IDLE;
		slot->since = now;
		slot->job = 0;
		if (slot->critical_only)	/* which ends now */
		{
			if (!dlist_is_empty(&shard->ring))
				swarm_shard_wake_runner(shard); /* what it has left to others */
		}
		else if (!OidIsValid(foreign) || !swarm_slot_make_room(shard, slot))
		{
			if (OidIsValid(foreign))
				swarm_shard_wake_for(shard, foreign);
			dlist_push_head(&shard->idle, &slot->idle_node);
			slot->idle_listed = true;
		}
	}
	else
	{
		slot->state = SWARM_SLOT_RUNNING;
		swarm_slot_bind(slot, claims[0].job.owner);
		if (!dlist_is_empty(&shard->ring) || swarm_chore_ready(shard))
			swarm_shard_wake_runner(shard);
	}
	LWLockRelease(swarm_job_lock);
	return n;
}

void
swarm_slot_bind(SwarmSlot *slot, Oid role)
{
	if (slot->role == role)
		return;
	slot->role = role;
	slot->role_since = GetCurrentTimestamp();
}

bool
swarm_slot_make_room(SwarmShard *shard, SwarmSlot *slot)
{
	if (slot->critical_only || slot->lent || room_is_made(shard))
		return false;
	slot->leaving = true;
	if (slot->idle_listed)
		dlist_delete(&slot->idle_node);
	slot->idle_listed = false;
	return true;
}

/* room_is_made: can a runner for another role come, or does one already? */
static bool
room_is_made(const SwarmShard *shard)
{
	return (shard->runners < swarm_max_runners && !shard->slots_exhausted) ||
		swarm_shard_makes_room(shard);
}

/*
 * own_ready: a job of the slot's own role, where the next is another's; NULL
 * if there is none among the first ones, or the slot has had its turn.
 */
static SwarmEntry *
own_ready(SwarmShard *shard, const SwarmSlot *slot, TimestampTz now)
{
	int			looks = 0;
	dlist_iter	queues;
	dlist_iter	jobs;

	if (TimestampDifferenceExceeds(slot->role_since, GetCurrentTimestamp(), TURN_MS) &&
		!room_is_made(shard))
		return NULL;
	dlist_foreach(queues, &shard->ring)
	{
		SwarmQueue *q = dlist_container(SwarmQueue, ring_node, queues.cur);

		if (++looks > OWN_LOOKS)
			break;
		if (q->max_running > 0 && q->running >= q->max_running)
			continue;
		if (!swarm_bucket_has(&q->bucket, now))
			continue;
		for (int p = SWARM_PRIORITY_CRITICAL; p >= 0; p--)
		{
			if (slot->critical_only && p < SWARM_PRIORITY_CRITICAL)
				break;
			dlist_foreach(jobs, &q->ready[p])
			{
				SwarmEntry *e = dlist_container(SwarmEntry, link, jobs.cur);

				if (e->job.owner == slot->role)
					return e;
				if (++looks > OWN_LOOKS)
					return NULL;
			}
		}
	}
	return NULL;
}

/*
 * swarm_queue_next_role: whose is the queue's next job; InvalidOid if it has
 * none.
 */
Oid
swarm_queue_next_role(SwarmQueue *q)
{
	dlist_head *list = best_list(q->ready, false, q->critical_run < CRITICAL_IN_A_ROW);

	return list == NULL ? InvalidOid :
		dlist_container(SwarmEntry, link, dlist_head_node(list))->job.owner;
}

/* claims_open: may anybody claim from this database now? */
static bool
claims_open(const SwarmShard *shard)
{
	return shard->state == SWARM_SHARD_SERVING && shard->holds == 0 &&
		!shard->held && !shard->config_stale;
}

/*
 * next_queue: the head of the ring, or, for critical jobs only, the first that
 * has one; NULL if there is none.
 */
static SwarmQueue *
next_queue(SwarmShard *shard, bool critical_only)
{
	dlist_iter	iter;

	dlist_foreach(iter, &shard->ring)
	{
		SwarmQueue *q = dlist_container(SwarmQueue, ring_node, iter.cur);

		if (!critical_only)
			return q;
		if (!dlist_is_empty(&q->ready[SWARM_PRIORITY_CRITICAL]) && !others_turn(shard, q))
			return q;
	}
	return NULL;
}

/*
 * best_ready: which of a queue's jobs is next; NULL if none may be taken.
 */
static SwarmEntry *
best_ready(SwarmShard *shard, SwarmQueue *q, bool critical_only)
{
	dlist_head *list = best_list(q->ready, critical_only,
								 q->critical_run < CRITICAL_IN_A_ROW);

	if (list == NULL || (critical_only && others_turn(shard, q)))
		return NULL;
	return dlist_container(SwarmEntry, link, dlist_head_node(list));
}

/*
 * others_turn: for the extra runner, which takes critical jobs only: is it a
 * turn of the others, which a free runner is there to take?  In a queue with
 * a limit the extra runner would keep them out for as long as there are
 * critical jobs.  Where all runners are busy it goes on: nobody else could.
 */
static bool
others_turn(SwarmShard *shard, SwarmQueue *q)
{
	if (q->critical_run < CRITICAL_IN_A_ROW)
		return false;
	if (dlist_is_empty(&q->ready[0]) && dlist_is_empty(&q->ready[1]) &&
		dlist_is_empty(&q->ready[2]))
		return false;
	for (int i = 0; i < swarm_max_slots; i++)
	{
		const SwarmSlot *slot = swarm_slot_at(i);

		if (slot->state == SWARM_SLOT_IDLE && slot->database == shard->database &&
			!slot->critical_only)
			return true;
	}
	return false;
}

/*
 * best_list: the priority whose head is next, of a queue's ready or external
 * lists.
 */
static dlist_head *
best_list(dlist_head *lists, bool critical_only, bool critical_first)
{
	dlist_head *best = NULL;
	TimestampTz best_score = 0;

	if (!dlist_is_empty(&lists[SWARM_PRIORITY_CRITICAL]) &&
		(critical_first || critical_only))
		return &lists[SWARM_PRIORITY_CRITICAL];
	if (critical_only)
		return NULL;
	for (int p = SWARM_PRIORITY_CRITICAL - 1; p >= 0; p--)
	{
		SwarmEntry *e;
		TimestampTz score;

		if (dlist_is_empty(&lists[p]))
			continue;
		e = dlist_container(SwarmEntry, link, dlist_head_node(&lists[p]));
		score = e->since - (int64) p * swarm_job_ageing_ms * 1000;
		if (best == NULL || score < best_score)
		{
			best = &lists[p];
			best_score = score;
		}
	}
	if (best == NULL && !dlist_is_empty(&lists[SWARM_PRIORITY_CRITICAL]))
		best = &lists[SWARM_PRIORITY_CRITICAL];
	return best;
}

/*
 * queue_may_start: room under the queue's limit and rate?  If the rate says
 * no, a timer is armed that puts the queue back.
 */
static bool
queue_may_start(SwarmShard *shard, SwarmQueue *q, TimestampTz now)
{
	if (q->paused || q->nready == 0)
		return false;
	if (q->max_running > 0 && q->running >= q->max_running)
		return false;
	if (!swarm_bucket_has(&q->bucket, now))
	{
		swarm_timer_arm(shard, &q->timer, swarm_bucket_next(&q->bucket, now));
		return false;
	}
	return true;
}

/*
 * kind_may_start: room under the kind's limit and rate?  If not, the entry is
 * parked with its kind, where it is found when there is room again.
 */
static bool
kind_may_start(SwarmShard *shard, SwarmEntry *e, TimestampTz now)
{
	SwarmKind  *k = e->kind;
	bool		suspect = (e->job.flags & SWARM_READY_SUSPECT) != 0;

	if ((k->max_running == 0 || k->running < k->max_running) &&
		(!suspect || shard->suspects_running == 0) &&
		swarm_bucket_take(&k->bucket, now))
	{
		if (!dlist_is_empty(&k->parked) && k->bucket.capacity > 0 && !k->timer.armed)
			swarm_timer_arm(shard, &k->timer, swarm_bucket_next(&k->bucket, now));
		return true;
	}

	swarm_entry_unlist(shard, e);
	shard->queued++;
	e->queue->unclaimed++;
	e->queue->nparked++;
	e->state = ENTRY_PARKED;
	dlist_push_tail(&k->parked, &e->link);
	if (k->bucket.capacity > 0 && !k->timer.armed &&
		(k->max_running == 0 || k->running < k->max_running))
		swarm_timer_arm(shard, &k->timer, swarm_bucket_next(&k->bucket, now));
	return false;
}

/*
 * take_entry: out of its list, counted against the limits.
 */
static void
take_entry(SwarmShard *shard, SwarmEntry *e, SwarmEntryState state)
{
	SwarmQueue *q = e->queue;

	swarm_entry_unlist(shard, e);
	e->state = state;
	shard->leased += state == ENTRY_LEASED;
	q->running++;
	q->started++;
	e->kind->running++;
	(void) swarm_bucket_take(&q->bucket, swarm_now());
	if (e->job.priority == SWARM_PRIORITY_CRITICAL)
		q->critical_run++;
	else
		q->critical_run = 0;
	if (e->job.flags & SWARM_READY_SUSPECT)
		shard->suspects_running++;
}

/*
 * swarm_queue_lease: the same for a worker outside the server.  Takes ready
 * jobs of kinds without a handler; `queue` is the queue's id.  Fills `jobs`
 * and the fencing `tokens` (set by the caller beforehand to random numbers).
 */
int
swarm_queue_lease(SwarmShard *shard, int32 queue, int max, int64 lease_us,
				  SwarmReady *jobs, int64 *tokens)
{
	TimestampTz now = swarm_now();
	SwarmQueue *q;
	int			n = 0;

	/* what is due now, a kind's rate for one, need not wait for the scheduler */
	(void) swarm_queue_tick(shard);
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	q = swarm_queue_get(shard->database, queue, false);
	while (n < max && q != NULL && !q->paused && claims_open(shard) &&
		   (q->max_running == 0 || q->running < q->max_running) &&
		   swarm_bucket_has(&q->bucket, now))
	{
		dlist_head *list = best_list(q->external, false,
									 q->critical_run < CRITICAL_IN_A_ROW);
		SwarmEntry *e;

		if (list == NULL)
			break;
		e = dlist_container(SwarmEntry, link, dlist_head_node(list));
		if (!kind_may_start(shard, e, now))
			continue;			/* it was parked: others are behind it */
		take_entry(shard, e, ENTRY_LEASED);
		e->since = now;
		e->token = tokens[n];
		swarm_timer_arm(shard, &e->timer, now + lease_us);
		jobs[n++] = e->job;
	}
	LWLockRelease(swarm_job_lock);
	return n;
}

/* ------------------------------------------------------------------------
 * What becomes of a claim
 * ------------------------------------------------------------------------ */

/*
 * swarm_entry_release: give back the limits a claimed or leased entry holds.
 * The entry is then in no list; the caller places or removes it.  Lock held.
 */
void
swarm_entry_release(SwarmShard *shard, SwarmEntry *e)
{
	SwarmKind  *k = e->kind;

	swarm_timer_disarm(shard, &e->timer);
	shard->leased -= e->state == ENTRY_LEASED;
	e->queue->running--;
	k->running--;
	e->slot = -1;
	e->token = 0;
	e->fraction = 0;
	swarm_queue_consider(shard, e->queue);
	if (e->job.flags & SWARM_READY_SUSPECT)
	{
		/* suspects run one at a time, whatever their kind */
		shard->suspects_running--;
		swarm_kind_unpark_each(shard);
	}
	else if (e->queue->nparked > 0 && e->queue->max_running > 0)
		swarm_kind_unpark_each(shard);	/* room in the queue, for any kind */
	else if (!k->timer.armed)
		swarm_kind_unpark(shard, k);
}

void
swarm_queue_running(SwarmSlot *slot, const SwarmClaim *claim)
{
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	if (slot->cancel)
		(void) kill(MyProcPid, 0);	/* whose signal may still be on its way: a
									 * system call lets it in */
	QueryCancelPending = false; /* was meant for another job */
	slot->cancel = false;
	slot->fraction = 0;
	slot->message[0] = '\0';
	slot->cancel_reason[0] = '\0';
	if (claim != NULL)
	{
		slot->job = claim->job.id;
		slot->attempt = claim->job.attempts + 1;
		slot->owner = claim->job.owner;
		slot->kind = claim->job.kind;
		slot->queue = claim->job.queue;
		slot->started = swarm_now();
	}
	else
		slot->job = 0;
	LWLockRelease(swarm_job_lock);
}

void
swarm_queue_finished(SwarmShard *shard, const SwarmClaim *claim, SwarmJobState state)
{
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	finish_entry(shard, claim->entry, state);
	LWLockRelease(swarm_job_lock);
	ConditionVariableBroadcast(swarm_job_waiters(claim->job.id));
}

/* finish_entry: the end of a job, as memory sees it.  Lock held. */
static void
finish_entry(SwarmShard *shard, SwarmEntry *e, SwarmJobState state)
{
	swarm_queue_count_finished(e->queue);
	if (e->slot >= 0)
		swarm_slot_at(e->slot)->finished++;
	shard->completed += state == SWARM_JOB_COMPLETED;
	shard->dead += state == SWARM_JOB_DEAD;
	shard->cancelled += state == SWARM_JOB_CANCELLED;
	if (e->queue->notify)
		swarm_shard_event(shard, e->job.id, e->job.queue, state);
	if (e->job.flags & SWARM_READY_PARENT)
		swarm_shard_recheck(shard, e->job.id);
	swarm_entry_remove(shard, e);
}

void
swarm_queue_committed(SwarmShard *shard, const SwarmClaim *claim,
					  SwarmJobState state, uint64 lsn)
{
	SwarmEntry *e = claim->entry;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	swarm_slot_at(e->slot)->finished++;
	swarm_entry_release(shard, e);
	e->state = ENTRY_COMMITTED;
	e->queue->unflushed++;
	e->lsn = lsn;
	e->ended = state;
	if (dlist_is_empty(&shard->committed))
		swarm_shard_wake_scheduler(shard);
	dlist_push_tail(&shard->committed, &e->link);
	LWLockRelease(swarm_job_lock);
}

/*
 * swarm_queue_flush: one flush for all that have committed up to now, of all
 * runners; those that commit meanwhile are for the next one.
 */
bool
swarm_queue_flush(SwarmShard *shard)
{
	static int64 ids[FLUSH_MAX];
	dlist_iter	iter;
	dlist_mutable_iter modify;
	uint64		lsn = 0;
	int			n = 0;

	LWLockAcquire(swarm_job_lock, LW_SHARED);
	dlist_foreach(iter, &shard->committed)
	{
		lsn = Max(lsn, dlist_container(SwarmEntry, link, iter.cur)->lsn);
		if (++n == FLUSH_MAX)
			break;
	}
	LWLockRelease(swarm_job_lock);
	if (n == 0)
		return false;

	XLogFlush(lsn);

	n = 0;
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	dlist_foreach_modify(modify, &shard->committed)
	{
		SwarmEntry *e = dlist_container(SwarmEntry, link, modify.cur);

		if (e->lsn > lsn)
			continue;
		ids[n++] = e->job.id;
		finish_entry(shard, e, e->ended);
		if (n == FLUSH_MAX)
			break;
	}
	LWLockRelease(swarm_job_lock);
	for (int i = 0; i < n; i++)
		ConditionVariableBroadcast(swarm_job_waiters(ids[i]));
	return true;
}

bool
swarm_queue_return(SwarmShard *shard, const SwarmClaim *claim)
{
	SwarmEntry *e = claim->entry;
	SwarmSlot  *slot = swarm_slot_at(e->slot);
	bool		cancelled;
	bool		gone;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	cancelled = slot->cancel && slot->job == e->job.id;
	gone = e->gone;
	if (claim->job.attempts > e->job.attempts)
	{
		shard->failed++;
		if (e->queue->notify)
			swarm_shard_event(shard, e->job.id, e->job.queue, SWARM_JOB_FAILED);
	}
	swarm_entry_release(shard, e);
	/* a child may have registered meanwhile: keep what is set only in memory */
	e->job.flags = claim->job.flags | (e->job.flags & SWARM_READY_PARENT);
	e->job.due = claim->job.due;
	e->job.attempts = claim->job.attempts;
	e->job.free_retries = claim->job.free_retries;
	if (e->due_now)
		e->job.due = Min(e->job.due, swarm_now());
	e->due_now = false;
	swarm_entry_place(shard, e, e->job.due <= swarm_now());
	if (gone)
		swarm_entry_remove(shard, e);
	LWLockRelease(swarm_job_lock);
	if (gone)
		ConditionVariableBroadcast(swarm_job_waiters(claim->job.id));
	return cancelled && !gone;
}

void
swarm_queue_discard(SwarmShard *shard, const SwarmClaim *claim)
{
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	if (claim->entry->job.flags & SWARM_READY_PARENT)
		swarm_shard_recheck(shard, claim->job.id);
	swarm_entry_remove(shard, claim->entry);
	LWLockRelease(swarm_job_lock);
	ConditionVariableBroadcast(swarm_job_waiters(claim->job.id));
}

/*
 * swarm_queue_slot_died: called by the dying runner's exit callback.  What it
 * ran is an attempt if this death `counts`, unless it was asked to stop; the
 * rest of a batch is simply ready again.
 */
void
swarm_queue_slot_died(SwarmSlot *slot, bool counts)
{
	SwarmShard *shard;
	HASH_SEQ_STATUS seq;
	SwarmEntry *e;
	int			number = swarm_slot_number(slot);

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard = swarm_shard_find(slot->database);
	if (slot->idle_listed)
		dlist_delete(&slot->idle_node);
	slot->idle_listed = false;
	if (shard != NULL && slot->state == SWARM_SLOT_RUNNING)
	{
		hash_seq_init(&seq, swarm_job_entries);
		while ((e = hash_seq_search(&seq)) != NULL)
		{
			if (e->state != ENTRY_CLAIMED || e->slot != number)
				continue;
			swarm_entry_release(shard, e);
			if (e->job.id == slot->job && counts && !slot->stop)
				e->job.flags |= SWARM_READY_LOST;
			swarm_entry_place(shard, e, true);
		}
	}
	swarm_errand_slot_died(slot);
	if (shard != NULL)
	{
		swarm_chore_slot_died(shard, slot);
		if (slot->critical_only)
			shard->extra--;
		else
			shard->runners--;
		if (!dlist_is_empty(&shard->ring) || swarm_chore_ready(shard) || swarm_errands_waiting(shard) > 0)
			swarm_shard_wake_runner(shard);
		swarm_shard_wake_scheduler(shard);
	}
	slot->state = SWARM_SLOT_FREE;
	slot->role = InvalidOid;
	slot->leaving = false;
	slot->generation++;
	slot->job = 0;
	slot->pid = 0;
	slot->latch = NULL;
	LWLockRelease(swarm_job_lock);
}
