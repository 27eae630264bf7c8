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

#include <math.h>
#include <signal.h>

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/shmem.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/shmem.h"
#include "job/job_int.h"

#define RATE_WINDOW_S	60

/* Is there room in memory for a job? */
typedef enum Room
{
	ROOM,
	ROOM_LATER,					/* no; noted when to look for it on disk */
	ROOM_NONE					/* no */
} Room;

SwarmJobShared *swarm_job_shared = NULL;
LWLock	   *swarm_job_lock = NULL;
HTAB	   *swarm_job_entries = NULL;
static HTAB *queues = NULL;
static HTAB *kinds = NULL;
static SwarmShard *shards = NULL;
static SwarmSlot *slots = NULL;

int			swarm_job_slots = 65536;
int			swarm_job_ageing_ms = 60000;
int			swarm_max_databases = 64;
int			swarm_max_slots = 0;	/* max_worker_processes at start */
static int	max_queues = 2048;

static Size job_size(void);
static Size job_hash_size(void);
static void job_attach(void *memory, bool found);
static int	timer_compare(const pairingheap_node *a, const pairingheap_node *b, void *arg);
static bool evict_queue(void);
static bool evict_kind(void);
static Room memory_for(SwarmShard *shard, const SwarmQueue *q, const SwarmReady *job);
static bool push_locked(SwarmShard *shard, const SwarmReady *job);

static SwarmShmemPiece job_piece = {
	.name = "pg_swarm jobs",
	.size = job_size,
	.hashes = job_hash_size,
	.init = job_attach,
	.pointer = (void **) &swarm_job_shared,
	.lock = &swarm_job_lock
};

void
swarm_job_queue_init(void)
{
	DefineCustomIntVariable("pg_swarm.job_ageing",
							"Time by which a waiting job overtakes one of the next higher priority.",
							"Critical jobs go first regardless.",
							&swarm_job_ageing_ms, 60000, 0, INT_MAX / 8,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	/* sizes of shared memory: there is none without preloading */
	if (process_shared_preload_libraries_in_progress)
	{
		DefineCustomIntVariable("pg_swarm.job_slots",
								"Jobs kept in shared memory, of all databases; more wait on disk.",
								NULL, &swarm_job_slots, 65536, 1024, 16 * 1024 * 1024,
								PGC_POSTMASTER, 0, NULL, NULL, NULL);
		DefineCustomIntVariable("pg_swarm.max_queues",
								"Queues and job kinds with jobs or limits, of all databases.",
								NULL, &max_queues, 2048, 64, 1024 * 1024,
								PGC_POSTMASTER, 0, NULL, NULL, NULL);
		DefineCustomIntVariable("pg_swarm.max_databases",
								"Databases that are served at the same time.",
								NULL, &swarm_max_databases, 64, 1, 10000,
								PGC_POSTMASTER, 0, NULL, NULL, NULL);
	}
	swarm_shmem_register(&job_piece);
}

/* ------------------------------------------------------------------------
 * Set-up
 * ------------------------------------------------------------------------ */

static Size
shards_offset(void)
{
	return MAXALIGN(sizeof(SwarmJobShared));
}

static Size
slots_offset(void)
{
	return add_size(shards_offset(),
					MAXALIGN(mul_size(swarm_max_databases, sizeof(SwarmShard))));
}

static Size
job_size(void)
{
	swarm_max_slots = max_worker_processes;
	return add_size(slots_offset(), mul_size(swarm_max_slots, sizeof(SwarmSlot)));
}

static Size
job_hash_size(void)
{
	Size		size = hash_estimate_size(swarm_job_slots, sizeof(SwarmEntry));

	size = add_size(size, hash_estimate_size(max_queues, sizeof(SwarmQueue)));
	return add_size(size, hash_estimate_size(max_queues, sizeof(SwarmKind)));
}

static void
job_attach(void *memory, bool found)
{
	HASHCTL		ctl = {0};

	swarm_max_slots = max_worker_processes;
	shards = (SwarmShard *) ((char *) memory + shards_offset());
	slots = (SwarmSlot *) ((char *) memory + slots_offset());
	if (!found)
	{
		for (int i = 0; i < WAIT_BUCKETS; i++)
			ConditionVariableInit(&((SwarmJobShared *) memory)->waiters[i]);
	}

	ctl.keysize = sizeof(SwarmEntryKey);
	ctl.entrysize = sizeof(SwarmEntry);
	swarm_job_entries = ShmemInitHash("pg_swarm job entries",
									  swarm_job_slots, swarm_job_slots, &ctl,
									  HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	ctl.keysize = sizeof(SwarmIdKey);
	ctl.entrysize = sizeof(SwarmQueue);
	queues = ShmemInitHash("pg_swarm job queues", max_queues, max_queues, &ctl,
						   HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	ctl.entrysize = sizeof(SwarmKind);
	kinds = ShmemInitHash("pg_swarm job kinds", max_queues, max_queues, &ctl,
						  HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
}

/* ------------------------------------------------------------------------
 * Shards and slots
 * ------------------------------------------------------------------------ */

SwarmShard *
swarm_shard_at(int i)
{
	return &shards[i];
}

SwarmSlot *
swarm_slot_at(int i)
{
	return &slots[i];
}

int
swarm_slot_number(const SwarmSlot *slot)
{
	return slot - slots;
}

SwarmShard *
swarm_shard_find(Oid database)
{
	for (int i = 0; i < swarm_max_databases; i++)
	{
		if (shards[i].state != SWARM_SHARD_FREE && shards[i].database == database)
			return &shards[i];
	}
	return NULL;
}

SwarmShard *
swarm_shard_create(Oid database)
{
	for (int i = 0; i < swarm_max_databases; i++)
	{
		SwarmShard *s = &shards[i];

		if (s->state != SWARM_SHARD_FREE)
			continue;
		memset(s, 0, sizeof(*s));
		s->database = database;
		s->state = SWARM_SHARD_PROBING;
		dlist_init(&s->idle);
		dlist_init(&s->ring);
		dlist_init(&s->committed);
		s->timers.ph_compare = timer_compare;
		s->scan_from = 0;
		s->prepared_from = 0;
		s->disk_due = DT_NOEND;
		s->config_stale = true;
		return s;
	}
	return NULL;
}

/*
 * swarm_shard_free: the database is no longer served.  No slot of it may be
 * in use.
 */
void
swarm_shard_free(SwarmShard *shard)
{
	HASH_SEQ_STATUS seq;
	SwarmEntry *e;
	SwarmQueue *q;
	SwarmKind  *k;

	Assert(shard->runners == 0);
	hash_seq_init(&seq, swarm_job_entries);
	while ((e = hash_seq_search(&seq)) != NULL)
	{
		if (e->key.database == shard->database)
			swarm_entry_remove(shard, e);
	}
	hash_seq_init(&seq, queues);
	while ((q = hash_seq_search(&seq)) != NULL)
	{
		if (q->key.database == shard->database)
			hash_search(queues, &q->key, HASH_REMOVE, NULL);
	}
	hash_seq_init(&seq, kinds);
	while ((k = hash_seq_search(&seq)) != NULL)
	{
		if (k->key.database == shard->database)
			hash_search(kinds, &k->key, HASH_REMOVE, NULL);
	}
	shard->state = SWARM_SHARD_FREE;
	shard->database = InvalidOid;
}

void
swarm_shard_wake_scheduler(SwarmShard *shard)
{
	if (shard->scheduler_latch)
		SetLatch(shard->scheduler_latch);
}

/*
 * swarm_shard_stop_runners: all runners of the database shall end; what one
 * of them runs now is interrupted and ready again, uncounted.
 */
void
swarm_shard_stop_runners(SwarmShard *shard)
{
	for (int i = 0; i < swarm_max_slots; i++)
	{
		SwarmSlot  *slot = &slots[i];

		if (slot->state == SWARM_SLOT_FREE || slot->database != shard->database)
			continue;
		slot->stop = true;
		if (slot->state == SWARM_SLOT_RUNNING && slot->pid != shard->scheduler_pid)
			kill(slot->pid, SIGTERM);
		else if (slot->latch)
			SetLatch(slot->latch);
	}
}

/*
 * swarm_slot_cancel: interrupt what the slot runs now.  The caller has made
 * sure, under the lock, that this is the job it means.
 */
void
swarm_slot_cancel(SwarmSlot *slot, const char *reason)
{
	if (slot->state != SWARM_SLOT_RUNNING || slot->job == 0 || slot->cancel)
		return;
	slot->cancel = true;
	if (reason == NULL)
		reason = "";
	strlcpy(slot->cancel_reason, reason,
			pg_mbcliplen(reason, strlen(reason), SWARM_MESSAGE_SIZE - 1) + 1);
	kill(slot->pid, SIGINT);
}

/*
 * swarm_shard_wake_runner: one idle runner, or else the scheduler, which may
 * start one.
 */
void
swarm_shard_wake_runner(SwarmShard *shard)
{
	if (!dlist_is_empty(&shard->idle))
	{
		SwarmSlot  *slot = dlist_container(SwarmSlot, idle_node,
										   dlist_pop_head_node(&shard->idle));

		slot->idle_listed = false;
		SetLatch(slot->latch);
		return;
	}
	if (shard->runners < swarm_max_runners || (shard->critical > 0 && shard->extra == 0))
	{
		shard->want_runner = true;
		swarm_shard_wake_scheduler(shard);
	}
}

/*
 * swarm_shard_wake_all: claims were refused for a while and are possible
 * again: whoever went idle meanwhile shall look.
 */
void
swarm_shard_wake_all(SwarmShard *shard)
{
	if (dlist_is_empty(&shard->ring))
		return;
	while (!dlist_is_empty(&shard->idle))
		swarm_shard_wake_runner(shard);
	swarm_shard_wake_runner(shard);
}

/*
 * swarm_shard_recheck: the scheduler shall look at the dependencies of, or
 * on, this job.
 */
void
swarm_shard_recheck(SwarmShard *shard, int64 id)
{
	if (shard->nrechecks < SWARM_FINISHED_PARENTS)
		shard->rechecks[shard->nrechecks] = id;
	if (shard->nrechecks <= SWARM_FINISHED_PARENTS)
		shard->nrechecks++;
	swarm_shard_wake_scheduler(shard);
}

/*
 * swarm_shard_event: something for NOTIFY swarm_events; the oldest is
 * overwritten when nobody keeps up, and the reader tells.
 */
void
swarm_shard_event(SwarmShard *shard, int64 id, int32 queue, SwarmJobState state)
{
	SwarmEvent *ev = &shard->events[shard->events_written++ % SWARM_EVENTS];

	ev->id = id;
	ev->queue = queue;
	ev->state = state;
	swarm_shard_wake_scheduler(shard);
}

ConditionVariable *
swarm_job_waiters(int64 id)
{
	return &swarm_job_shared->waiters[(uint64) id % WAIT_BUCKETS];
}

/* ------------------------------------------------------------------------
 * Queues and kinds
 * ------------------------------------------------------------------------ */

/* swarm_queue_get: NULL if absent and not to be created, or if memory is full */
SwarmQueue *
swarm_queue_get(Oid database, int32 id, bool create)
{
	SwarmIdKey	key = {database, id};
	HASHACTION	action = create ? HASH_ENTER_NULL : HASH_FIND;
	bool		found;
	SwarmQueue *q = hash_search(queues, &key, action, &found);

	if (q == NULL && create && evict_queue())
		q = hash_search(queues, &key, action, &found);
	if (q == NULL || found)
		return q;
	memset((char *) q + sizeof(SwarmIdKey), 0, sizeof(*q) - sizeof(SwarmIdKey));
	for (int i = 0; i < SWARM_PRIORITIES; i++)
	{
		dlist_init(&q->ready[i]);
		dlist_init(&q->external[i]);
	}
	q->batch = 1;
	q->dependency_failure = 'c';
	q->timer.kind = TIMER_QUEUE;
	return q;
}

SwarmKind *
swarm_kind_get(Oid database, int32 id, bool create)
{
	SwarmIdKey	key = {database, id};
	HASHACTION	action = create ? HASH_ENTER_NULL : HASH_FIND;
	bool		found;
	SwarmKind  *k = hash_search(kinds, &key, action, &found);

	if (k == NULL && create && evict_kind())
		k = hash_search(kinds, &key, action, &found);
	if (k == NULL || found)
		return k;
	memset((char *) k + sizeof(SwarmIdKey), 0, sizeof(*k) - sizeof(SwarmIdKey));
	dlist_init(&k->parked);
	k->timer.kind = TIMER_KIND;
	return k;
}

/*
 * evict_queue, evict_kind: make room in the full table by forgetting one that
 * has no jobs and no settings: perhaps it was dropped, and if not, only its
 * counters are lost.  False if there is none.
 */
static bool
evict_queue(void)
{
	HASH_SEQ_STATUS seq;
	SwarmQueue *q;

	hash_seq_init(&seq, queues);
	while ((q = hash_seq_search(&seq)) != NULL)
	{
		if (q->unclaimed > 0 || q->running > 0 || q->max_running > 0 || q->batch > 1 ||
			q->paused || q->notify || q->dependency_failure != 'c' ||
			q->bucket.capacity > 0 || q->timer.armed)
			continue;
		hash_search(queues, &q->key, HASH_REMOVE, NULL);
		hash_seq_term(&seq);
		return true;
	}
	return false;
}

static bool
evict_kind(void)
{
	HASH_SEQ_STATUS seq;
	SwarmKind  *k;

	hash_seq_init(&seq, kinds);
	while ((k = hash_seq_search(&seq)) != NULL)
	{
		if (k->entries > 0 || k->max_running > 0 || k->bucket.capacity > 0 || k->timer.armed)
			continue;
		hash_search(kinds, &k->key, HASH_REMOVE, NULL);
		hash_seq_term(&seq);
		return true;
	}
	return false;
}

/* queue_has_room: may the queue start one more job now? */
static bool
queue_has_room(const SwarmQueue *q)
{
	return !q->paused && !q->timer.armed &&
		(q->max_running == 0 || q->running < q->max_running);
}

/*
 * swarm_kind_unpark: the kind has room: the first of its parked jobs whose
 * queue has room too may compete again, ahead of its equals.  Those of a full
 * queue are looked at again when that queue has room.
 */
void
swarm_kind_unpark(SwarmShard *shard, SwarmKind *k)
{
	dlist_iter	iter;

	dlist_foreach(iter, &k->parked)
	{
		SwarmEntry *e = dlist_container(SwarmEntry, link, iter.cur);

		if (queue_has_room(e->queue))
		{
			swarm_entry_unlist(shard, e);
			swarm_entry_place(shard, e, true);
			return;
		}
	}
}

/* swarm_kind_unpark_each: one job of every kind of the database. */
void
swarm_kind_unpark_each(SwarmShard *shard)
{
	HASH_SEQ_STATUS seq;
	SwarmKind  *k;

	hash_seq_init(&seq, kinds);
	while ((k = hash_seq_search(&seq)) != NULL)
	{
		if (k->key.database == shard->database)
			swarm_kind_unpark(shard, k);
	}
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
	}
	LWLockRelease(swarm_job_lock);
}

/*
 * swarm_queue_configure: bring the settings in memory up to what the tables
 * say.  Queues and kinds that are not listed have none.
 */
void
swarm_queue_configure(SwarmShard *shard,
					  const SwarmQueueConfig *queue_config, int nqueues,
					  const SwarmKindConfig *kind_config, int nkinds)
{
	HASH_SEQ_STATUS seq;
	SwarmQueue *q;
	SwarmKind  *k;
	static const SwarmQueueConfig plain = {.batch = 1, .dependency_failure = 'c'};

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	/* set something, so that the next one does not evict it */
	for (int i = 0; i < nqueues; i++)
	{
		if ((q = swarm_queue_get(shard->database, queue_config[i].id, true)) != NULL)
			q->max_running = INT_MAX;
	}
	for (int i = 0; i < nkinds; i++)
	{
		if ((k = swarm_kind_get(shard->database, kind_config[i].id, true)) != NULL)
			k->max_running = INT_MAX;
	}

	hash_seq_init(&seq, queues);
	while ((q = hash_seq_search(&seq)) != NULL)
	{
		const SwarmQueueConfig *c = &plain;

		if (q->key.database != shard->database)
			continue;
		for (int i = 0; i < nqueues; i++)
		{
			if (queue_config[i].id == q->key.id)
				c = &queue_config[i];
		}
		q->max_running = c->max_running;
		q->batch = c->batch;
		q->paused = c->paused;
		q->notify = c->notify;
		q->group_commit = c->group_commit;
		q->dependency_failure = c->dependency_failure;
		swarm_bucket_set(&q->bucket, c->rate_limit, c->rate_period_us);
		swarm_queue_consider(shard, q);
	}
	hash_seq_init(&seq, kinds);
	while ((k = hash_seq_search(&seq)) != NULL)
	{
		int			max_running = 0;
		int64		rate_us = 0;

		if (k->key.database != shard->database)
			continue;
		for (int i = 0; i < nkinds; i++)
		{
			if (kind_config[i].id == k->key.id)
			{
				max_running = kind_config[i].max_running;
				rate_us = kind_config[i].rate_us;
			}
		}
		k->max_running = max_running;
		swarm_bucket_set(&k->bucket, rate_us > 0 ? 1 : 0, rate_us);
		while (!dlist_is_empty(&k->parked))
		{
			SwarmEntry *e = dlist_container(SwarmEntry, link,
											dlist_head_node(&k->parked));

			swarm_entry_unlist(shard, e);
			swarm_entry_place(shard, e, true);
		}
	}
	if (shard->left_behind)
		shard->scan_from = 0;
	shard->config_stale = false;
	swarm_shard_wake_all(shard);
	LWLockRelease(swarm_job_lock);
}

/*
 * swarm_queue_consider: put the queue into the ring if it has something that
 * may run, take it out if not.
 */
void
swarm_queue_consider(SwarmShard *shard, SwarmQueue *q)
{
	bool		able = q->nready > 0 && queue_has_room(q);

	if (able && !q->in_ring)
	{
		if (dlist_is_empty(&q->ready[SWARM_PRIORITY_CRITICAL]))
			dlist_push_tail(&shard->ring, &q->ring_node);
		else
			dlist_push_head(&shard->ring, &q->ring_node);
		q->in_ring = true;
		swarm_shard_wake_runner(shard);
	}
	else if (!able && q->in_ring)
	{
		dlist_delete(&q->ring_node);
		q->in_ring = false;
	}
}

/*
 * decayed_rate: an exponentially weighted rate, as of now: what finished a
 * minute ago counts 1/e of what finishes now.
 */
static double
decayed_rate(const SwarmQueue *q, TimestampTz now)
{
	return q->rate * exp(-Max(now - q->rate_at, 0) / (RATE_WINDOW_S * 1e6));
}

/* swarm_queue_count_finished: one more job of the queue has ended. */
void
swarm_queue_count_finished(SwarmQueue *q)
{
	TimestampTz now = swarm_now();

	q->finished++;
	q->rate = decayed_rate(q, now) + 1.0 / RATE_WINDOW_S;
	q->rate_at = now;
}

/*
 * swarm_queue_status: what the view of queues shows.
 */
int
swarm_queue_status(Oid database, SwarmQueueStatus **list, bool *complete)
{
	HASH_SEQ_STATUS seq;
	SwarmQueue *q;
	SwarmShard *shard;
	int			n = 0;

	*list = palloc0(max_queues * sizeof(SwarmQueueStatus));
	LWLockAcquire(swarm_job_lock, LW_SHARED);
	shard = swarm_shard_find(database);
	*complete = shard != NULL && shard->scan_from == SWARM_NO_SCAN &&
		TIMESTAMP_IS_NOEND(shard->disk_due);
	hash_seq_init(&seq, queues);
	while ((q = hash_seq_search(&seq)) != NULL)
	{
		SwarmQueueStatus *s = &(*list)[n];

		if (q->key.database != database || n >= max_queues)
			continue;
		s->id = q->key.id;
		s->ready = q->nready + q->nexternal;
		s->running = q->running;
		s->depth = q->unclaimed;
		s->started = q->started;
		s->finished = q->finished;
		s->rate = decayed_rate(q, swarm_now());
		for (int i = 0; i < 2 * SWARM_PRIORITIES; i++)
		{
			dlist_head *l = i < SWARM_PRIORITIES ? &q->ready[i] :
			&q->external[i - SWARM_PRIORITIES];

			if (!dlist_is_empty(l))
			{
				TimestampTz since = dlist_container(SwarmEntry, link,
													dlist_head_node(l))->since;

				if (s->oldest == 0 || since < s->oldest)
					s->oldest = since;
			}
		}
		n++;
	}
	LWLockRelease(swarm_job_lock);
	return n;
}

/* ------------------------------------------------------------------------
 * Timers
 * ------------------------------------------------------------------------ */

/* The heap of lib/pairingheap gives the greatest: turn the order round. */
static int
timer_compare(const pairingheap_node *a, const pairingheap_node *b, void *arg)
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
		return true;
	}
	q = swarm_queue_get(shard->database, job->queue, true);
	k = swarm_kind_get(shard->database, job->kind, true);
	if (q == NULL || k == NULL)
		return false;
	room = memory_for(shard, q, job);
	if (room != ROOM)
		return room == ROOM_LATER;
	e = hash_search(swarm_job_entries, &key, HASH_ENTER_NULL, &found);
	if (e == NULL)
		return false;

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
			swarm_shard_wake_runner(shard);
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
		dlist_delete(&e->link);
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
	if (shard->scan_from != SWARM_NO_SCAN && free_slots > swarm_job_slots / 8)
		swarm_shard_wake_scheduler(shard);
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
	shard->scan_from = 0;
	shard->disk_due = DT_NOEND;
	shard->left_behind = false;
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
