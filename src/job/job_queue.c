/*
 * job_queue.c
 *	  The queue in shared memory: which jobs exist, where each one stands.
 *
 * The table swarm._job is the truth; an entry here is the fast way to it.
 * A committed enqueue pushes an entry (swarm_queue_push, from the commit
 * callback), job_claim.c hands entries to runners, and a finished job's entry
 * is removed after its commit.  What does not fit stays on disk: scan_from
 * tells the scheduler's sweep from which id to look.
 *
 * An entry is in exactly one place, told by its state: a queue's ready or
 * external list, a kind's parked list, the shard's timer heap (due later, or
 * leased), the shard's list of unflushed commits, or none (claimed).  A job
 * that waits for its parents has no entry; the scheduler pushes it when the
 * last one has completed.
 *
 * Everything is guarded by one LWLock, swarm_job_lock; no section under it
 * does more than a few list operations, and none raises an error.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "job/job_int.h"

/* Is there room in memory for a job? */
typedef enum Room
{
	ROOM,
	ROOM_LATER,					/* no; noted when to look for it on disk */
	ROOM_NONE					/* no */
} Room;

static Room memory_for(SwarmShard *shard, const SwarmQueue *q, const SwarmReady *job);
static bool push_locked(SwarmShard *shard, const SwarmReady *job);

/* ------------------------------------------------------------------------
 * Timers
 * ------------------------------------------------------------------------ */

/* The heap of lib/pairingheap gives the greatest: turn the order round. */
int
swarm_timer_compare(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	TimestampTz da = pairingheap_const_container(SwarmTimer, node, a)->due;
	TimestampTz db = pairingheap_const_container(SwarmTimer, node, b)->due;

	return da < db ? 1 : (da > db ? -1 : 0);
}

void
swarm_timer_arm(SwarmShard *shard, SwarmTimer *t, TimestampTz due)
{
	bool		earlier;

	swarm_timer_disarm(shard, t);
	earlier = pairingheap_is_empty(&shard->timers) ||
		due < pairingheap_container(SwarmTimer, node,
									pairingheap_first(&shard->timers))->due;
	t->due = due;
	t->armed = true;
	pairingheap_add(&shard->timers, &t->node);
	shard->ntimers++;
	if (earlier)
		swarm_shard_wake_scheduler(shard);
}

void
swarm_timer_disarm(SwarmShard *shard, SwarmTimer *t)
{
	if (!t->armed)
		return;
	pairingheap_remove(&shard->timers, &t->node);
	t->armed = false;
	shard->ntimers--;
}

/*
 * swarm_queue_tick: what is due becomes ready; rate limits that have room
 * again let their queue or kind go on; leases that ran out are lost.
 */
TimestampTz
swarm_queue_tick(SwarmShard *shard)
{
	TimestampTz now = swarm_now();
	TimestampTz next = DT_NOEND;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	if (now < shard->ticked)
		swarm_limits_again(shard, now);
	shard->ticked = now;
	while (!pairingheap_is_empty(&shard->timers))
	{
		SwarmTimer *t = pairingheap_container(SwarmTimer, node,
											  pairingheap_first(&shard->timers));

		if (t->due > now)
		{
			next = t->due;
			break;
		}
		swarm_timer_disarm(shard, t);
		if (t->kind == TIMER_QUEUE)
		{
			swarm_queue_consider(shard, (SwarmQueue *) ((char *) t - offsetof(SwarmQueue, timer)));
			swarm_kind_unpark_each(shard);
		}
		else if (t->kind == TIMER_KIND)
			swarm_kind_unpark(shard, (SwarmKind *) ((char *) t - offsetof(SwarmKind, timer)));
		else if (t->kind == TIMER_CHORE)
			swarm_chore_due(shard, (SwarmChore *) ((char *) t - offsetof(SwarmChore, timer)));
		else
		{
			SwarmEntry *e = (SwarmEntry *) ((char *) t - offsetof(SwarmEntry, timer));

			if (e->state == ENTRY_LEASED)
			{
				swarm_entry_release(shard, e);
				e->job.flags |= SWARM_READY_LOST;
				e->job.flags &= ~SWARM_READY_EXTERNAL;
			}
			else
				swarm_entry_unlist(shard, e);	/* its timer is disarmed
												 * already */
			swarm_entry_place(shard, e, false);
		}
	}
	if (now >= shard->disk_due)
	{
		shard->disk_due = DT_NOEND;
		shard->scan_from = 0;
		if (shard->scheduler_pid != MyProcPid)
			swarm_shard_wake_scheduler(shard);
	}
	next = Min(next, shard->disk_due);
	LWLockRelease(swarm_job_lock);
	return next;
}

/* ------------------------------------------------------------------------
 * Entries
 * ------------------------------------------------------------------------ */

SwarmEntry *
swarm_entry_find(Oid database, int64 id)
{
	SwarmEntryKey key = {.id = id, .database = database, .zero = 0};

	return hash_search(swarm_job_entries, &key, HASH_FIND, NULL);
}

/*
 * memory_for: room for one more job of this queue?  The last sixteenth of all
 * is for critical jobs.  And no queue may take more than what it leaves free,
 * neither with jobs that are ready nor with those due later, so that one
 * with a long backlog never locks out the others.
 */
static Room
memory_for(SwarmShard *shard, const SwarmQueue *q, const SwarmReady *job)
{
	int			room = swarm_job_slots - swarm_job_shared->used;

	if (job->priority == SWARM_PRIORITY_CRITICAL)
		return room > 0 ? ROOM : ROOM_NONE;
	room -= swarm_job_slots / 16;
	if (room <= 0)
		return ROOM_NONE;
	if (job->due > swarm_now())
	{
		if (q->ntimers < room)
			return ROOM;
		shard->disk_due = Min(shard->disk_due, job->due);
		return ROOM_LATER;
	}
	if (q->unclaimed - q->ntimers < room)
		return ROOM;
	shard->left_behind = true;
	return ROOM_LATER;
}

/*
 * push_locked: make an entry and put it in its place.  False if there is no
 * room; a job that is in memory already is fine.
 */
static bool
push_locked(SwarmShard *shard, const SwarmReady *job)
{
	SwarmEntryKey key = {.id = job->id, .database = shard->database, .zero = 0};
	SwarmQueue *q;
	SwarmKind  *k;
	SwarmEntry *e;
	Room		room;
	bool		found;

	e = swarm_entry_find(shard->database, job->id);
	if (e != NULL)
	{
		e->job.flags |= job->flags & SWARM_READY_PARENT;

		/*
		 * A sweep may have read the row just before job_retry() changed when
		 * it is due, and the next one knows better.  Of a row that was read
		 * before the last failure nothing is believed.
		 */
		if (e->state == ENTRY_TIMER && job->due < e->job.due &&
			job->attempts >= e->job.attempts)
		{
			swarm_entry_unlist(shard, e);
			e->job.due = job->due;
			swarm_entry_place(shard, e, false);
		}
		return true;
	}
	q = swarm_queue_get(shard->database, job->queue, true);
	k = swarm_kind_get(shard->database, job->kind, true);
	room = q && k ? memory_for(shard, q, job) : ROOM_NONE;
	if (room == ROOM_LATER)
		return true;
	if (room == ROOM)
		e = hash_search(swarm_job_entries, &key, HASH_ENTER_NULL, &found);
	if (e == NULL)
	{
		swarm_job_shared->starved = true;
		return false;
	}

	memset((char *) e + sizeof(SwarmEntryKey), 0, sizeof(*e) - sizeof(SwarmEntryKey));
	e->job = *job;
	e->queue = q;
	e->kind = k;
	k->entries++;
	e->slot = -1;
	e->timer.kind = TIMER_JOB;
	swarm_job_shared->used++;
	swarm_entry_place(shard, e, false);
	return true;
}

void
swarm_queue_push(const SwarmReady *job)
{
	SwarmShard *shard;

	if (swarm_job_shared == NULL)
		return;
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard = swarm_shard_find(job->database);
	if (shard != NULL)
	{
		SwarmEntry *e = swarm_entry_find(job->database, job->id);

		/* a retry may meet the end of the attempt before, not yet settled */
		if (e != NULL && e->state >= ENTRY_CLAIMED)
			e->again = true;
		else if (job->flags & SWARM_READY_BLOCKED)
			swarm_shard_recheck(shard, job->id);
		else if (!push_locked(shard, job))
		{
			shard->scan_from = Min(shard->scan_from, job->id);
			swarm_shard_wake_scheduler(shard);
		}
	}
	LWLockRelease(swarm_job_lock);
}

void
swarm_queue_scan_from(Oid database, int64 id)
{
	SwarmShard *shard;

	if (swarm_job_shared == NULL)
		return;
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard = swarm_shard_find(database);
	if (shard != NULL)
	{
		shard->scan_from = Min(shard->scan_from, id);
		swarm_shard_wake_scheduler(shard);
	}
	LWLockRelease(swarm_job_lock);
}

/*
 * swarm_queue_mark_parent: others depend on this job: its end shall be told
 * to the scheduler.
 */
void
swarm_queue_mark_parent(SwarmShard *shard, int64 id)
{
	SwarmEntry *e;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	e = swarm_entry_find(shard->database, id);
	if (e != NULL)
		e->job.flags |= SWARM_READY_PARENT;
	else
	{
		/* committed, but not told yet, or on disk: the sweep will mark it */
		shard->scan_from = Min(shard->scan_from, id);
		swarm_shard_wake_scheduler(shard);
	}
	LWLockRelease(swarm_job_lock);
}

bool
swarm_queue_push_swept(SwarmShard *shard, const SwarmReady *job)
{
	bool		done = true;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	if (job->flags & SWARM_READY_BLOCKED)
		swarm_shard_recheck(shard, job->id);
	else
		done = push_locked(shard, job);
	if (!done)
		shard->scan_from = Min(shard->scan_from, job->id);
	LWLockRelease(swarm_job_lock);
	return done;
}

/*
 * swarm_entry_place: an entry that is in no list goes where its job belongs.
 * `front`: ahead of its equals, for one that had waited before.
 */
void
swarm_entry_place(SwarmShard *shard, SwarmEntry *e, bool front)
{
	SwarmReady *job = &e->job;
	SwarmQueue *q = e->queue;
	TimestampTz now = swarm_now();
	dlist_head *list;

	shard->queued++;
	q->unclaimed++;
	if (job->due > now)
	{
		e->state = ENTRY_TIMER;
		q->ntimers++;
		swarm_timer_arm(shard, &e->timer, job->due);
		return;
	}
	if (!front)
		e->since = now;
	if (job->flags & SWARM_READY_EXTERNAL)
	{
		e->state = ENTRY_EXTERNAL;
		list = &q->external[job->priority];
		q->nexternal++;
	}
	else
	{
		e->state = ENTRY_READY;
		list = &q->ready[job->priority];
		q->nready++;
		shard->critical += job->priority == SWARM_PRIORITY_CRITICAL;
	}
	if (front)
		dlist_push_head(list, &e->link);
	else
		dlist_push_tail(list, &e->link);

	if (e->state == ENTRY_READY)
	{
		if (q->in_ring)
		{
			if (job->priority == SWARM_PRIORITY_CRITICAL)
				dlist_move_head(&shard->ring, &q->ring_node);
			swarm_shard_wake_for(shard, job->owner);
		}
		else
			swarm_queue_consider(shard, q);
	}
}

/*
 * swarm_entry_unlist: take an unclaimed entry out of wherever it is.
 */
void
swarm_entry_unlist(SwarmShard *shard, SwarmEntry *e)
{
	shard->queued--;
	e->queue->unclaimed--;
	switch (e->state)
	{
		case ENTRY_TIMER:
			swarm_timer_disarm(shard, &e->timer);
			e->queue->ntimers--;
			break;
		case ENTRY_PARKED:
			dlist_delete(&e->link);
			e->queue->nparked--;
			break;
		case ENTRY_READY:
			dlist_delete(&e->link);
			e->queue->nready--;
			shard->critical -= e->job.priority == SWARM_PRIORITY_CRITICAL;
			swarm_queue_consider(shard, e->queue);
			break;
		case ENTRY_EXTERNAL:
			dlist_delete(&e->link);
			e->queue->nexternal--;
			break;
		case ENTRY_CLAIMED:
		case ENTRY_LEASED:
		case ENTRY_COMMITTED:
			Assert(false);
			break;
	}
}

/*
 * swarm_entry_remove: the job is no more, or memory forgets it.
 */
void
swarm_entry_remove(SwarmShard *shard, SwarmEntry *e)
{
	SwarmQueue *q;
	int			free_slots;

	if (e->state == ENTRY_CLAIMED || e->state == ENTRY_LEASED)
		swarm_entry_release(shard, e);
	else if (e->state == ENTRY_COMMITTED)
	{
		dlist_delete(&e->link);
		e->queue->unflushed--;
	}
	else
	{
		swarm_entry_unlist(shard, e);
		swarm_kind_unpark(shard, e->kind);
	}
	if (e->again)
		shard->scan_from = Min(shard->scan_from, e->job.id);
	q = e->queue;
	e->kind->entries--;
	hash_search(swarm_job_entries, &e->key, HASH_REMOVE, NULL);
	swarm_job_shared->used--;

	/* a queue that has used up half of its share may have more on disk */
	free_slots = swarm_job_slots - swarm_job_shared->used;
	if (shard->left_behind && q->unclaimed - q->ntimers < free_slots / 2)
	{
		shard->left_behind = false;
		shard->scan_from = 0;
	}
	if (free_slots <= swarm_job_slots / 8)
		return;
	if (shard->scan_from != SWARM_NO_SCAN)
		swarm_shard_wake_scheduler(shard);
	if (swarm_job_shared->starved)
	{
		/* other databases may have found no room: theirs is the next look */
		swarm_job_shared->starved = false;
		for (int i = 0; i < swarm_max_databases; i++)
		{
			SwarmShard *other = swarm_shard_at(i);

			if (other->state != SWARM_SHARD_FREE && other->scan_from != SWARM_NO_SCAN)
				swarm_shard_wake_scheduler(other);
		}
	}
}

/*
 * swarm_queue_forget: before a sweep from the start, when kinds or
 * dependencies changed under what is in memory.
 */
void
swarm_queue_forget(SwarmShard *shard, bool all)
{
	HASH_SEQ_STATUS seq;
	SwarmEntry *e;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard->rebuild = false;
	shard->refilling = true;
	shard->scan_from = 0;
	shard->disk_due = DT_NOEND;
	shard->left_behind = false;
	if (all)
		swarm_chore_forget(shard);
	hash_seq_init(&seq, swarm_job_entries);
	while ((e = hash_seq_search(&seq)) != NULL)
	{
		if (e->key.database == shard->database && e->state != ENTRY_CLAIMED &&
			(all || (e->state != ENTRY_LEASED && e->state != ENTRY_COMMITTED &&
					 (e->job.flags & SWARM_READY_LOST) == 0)))
			swarm_entry_remove(shard, e);
	}
	shard->scan_from = 0;
	LWLockRelease(swarm_job_lock);
	/* who waits for a job that has ended meanwhile shall look */
	for (int i = 0; i < WAIT_BUCKETS; i++)
		ConditionVariableBroadcast(&swarm_job_shared->waiters[i]);
}
