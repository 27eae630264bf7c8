/*
 * job_shmem.c
 *	  Shared memory of the job store: where it is, its shards and slots.
 *
 * A shard is a served database, a slot the place of a runner process.  Both
 * are arrays of fixed size; jobs, queues and kinds are hash tables of fixed
 * size.  All is guarded by one LWLock, swarm_job_lock.
 */
#include "postgres.h"

#include <signal.h>

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/shmem.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "base/chore.h"
#include "base/compat.h"
#include "base/shmem.h"
#include "job/job_int.h"

SwarmJobShared *swarm_job_shared = NULL;
LWLock	   *swarm_job_lock = NULL;
HTAB	   *swarm_job_entries = NULL;
HTAB	   *swarm_queue_table = NULL;
HTAB	   *swarm_kind_table = NULL;
static SwarmShard *shards = NULL;
static SwarmSlot *slots = NULL;

int			swarm_job_slots = 65536;
int			swarm_job_ageing_ms = 60000;
int			swarm_max_databases = 64;
int			swarm_max_slots = 0;	/* max_worker_processes at start */
int			swarm_max_queues = 2048;

static Size job_size(void);
static Size job_hash_size(void);
static void job_attach(void *memory, bool found);
static void wake_slot(SwarmSlot *slot);

static SwarmShmemPiece job_piece = {
	.name = "pg_swarm jobs",
	.size = job_size,
	.hashes = job_hash_size,
	.init = job_attach,
	.pointer = (void **) &swarm_job_shared,
	.lock = &swarm_job_lock
};

void
swarm_job_shmem_init(void)
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
								NULL, &swarm_max_queues, 2048, 64, 1024 * 1024,
								PGC_POSTMASTER, 0, NULL, NULL, NULL);
		DefineCustomIntVariable("pg_swarm.max_databases",
								"Databases that are served at the same time.",
								NULL, &swarm_max_databases, 64, 1, 10000,
								PGC_POSTMASTER, 0, NULL, NULL, NULL);
	}
	swarm_shmem_register(&job_piece);
	swarm_errand_init();
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

	size = add_size(size, hash_estimate_size(swarm_max_queues, sizeof(SwarmQueue)));
	size = add_size(size, hash_estimate_size(swarm_max_queues, sizeof(SwarmKind)));
	return add_size(size, hash_estimate_size(SWARM_MAX_CHORES, sizeof(SwarmChore)));
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
		pg_atomic_init_u64(&((SwarmJobShared *) memory)->names_generation, 1);
	}

	ctl.keysize = sizeof(SwarmEntryKey);
	ctl.entrysize = sizeof(SwarmEntry);
	swarm_job_entries = ShmemInitHash("pg_swarm job entries",
									  swarm_job_slots, swarm_job_slots, &ctl,
									  HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	ctl.keysize = sizeof(SwarmIdKey);
	ctl.entrysize = sizeof(SwarmQueue);
	swarm_queue_table = ShmemInitHash("pg_swarm job queues", swarm_max_queues, swarm_max_queues, &ctl,
									  HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	ctl.entrysize = sizeof(SwarmKind);
	swarm_kind_table = ShmemInitHash("pg_swarm job kinds", swarm_max_queues, swarm_max_queues, &ctl,
									 HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	ctl.keysize = sizeof(SwarmChoreKey);
	ctl.entrysize = sizeof(SwarmChore);
	swarm_chore_table = ShmemInitHash("pg_swarm chores", SWARM_MAX_CHORES, SWARM_MAX_CHORES, &ctl,
									  HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
	swarm_chore_hook = swarm_chore_push;
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
		dlist_init(&s->chores);
		s->timers.ph_compare = swarm_timer_compare;
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
	hash_seq_init(&seq, swarm_queue_table);
	while ((q = hash_seq_search(&seq)) != NULL)
	{
		if (q->key.database == shard->database)
			hash_search(swarm_queue_table, &q->key, HASH_REMOVE, NULL);
	}
	hash_seq_init(&seq, swarm_kind_table);
	while ((k = hash_seq_search(&seq)) != NULL)
	{
		if (k->key.database == shard->database)
			hash_search(swarm_kind_table, &k->key, HASH_REMOVE, NULL);
	}
	swarm_chore_forget(shard);
	shard->state = SWARM_SHARD_FREE;
	shard->database = InvalidOid;
}

void
swarm_shard_wake_scheduler(SwarmShard *shard)
{
	shard->scheduler_wakes++;
	if (shard->scheduler_latch)
		SetLatch(shard->scheduler_latch);
}

/*
 * swarm_shard_has_ready: are all jobs that may run now in memory?
 */
bool
swarm_shard_has_ready(const SwarmShard *shard)
{
	return shard->scan_from == SWARM_NO_SCAN && !shard->sweeping && !shard->left_behind;
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
 * swarm_shard_wake_runner: whoever can do what is next.
 */
void
swarm_shard_wake_runner(SwarmShard *shard)
{
	Oid			role = InvalidOid;

	if (!dlist_is_empty(&shard->ring))
		role = swarm_queue_next_role(dlist_head_element(SwarmQueue, ring_node, &shard->ring));
	else if (!swarm_chore_ready(shard))
		role = swarm_errand_next_role(shard);
	swarm_shard_wake_for(shard, role);
}

/*
 * swarm_shard_wake_for: an idle runner of that role (InvalidOid: of any), or
 * one that has none yet; or else the scheduler, which may start one.  Where
 * there are as many as may be, the longest idle one shall make room.
 */
void
swarm_shard_wake_for(SwarmShard *shard, Oid role)
{
	dlist_iter	iter;
	SwarmSlot  *found = NULL;

	dlist_foreach(iter, &shard->idle)
	{
		SwarmSlot  *slot = dlist_container(SwarmSlot, idle_node, iter.cur);

		if (slot->role == role || !OidIsValid(role))
		{
			found = slot;
			break;
		}
		if (!OidIsValid(slot->role) && found == NULL)
			found = slot;
	}
	if (found != NULL)
		wake_slot(found);
	else if (shard->runners < swarm_max_runners ||
			 (dlist_is_empty(&shard->idle) && shard->critical > 0 && shard->extra == 0))
	{
		shard->want_runner = true;
		swarm_shard_wake_scheduler(shard);
	}
	else if (!swarm_shard_makes_room(shard))
		swarm_shard_wake_longest_idle(shard);
}

/*
 * swarm_shard_makes_room: will there be a runner without a role soon?  Then
 * nobody else need give up his.
 */
bool
swarm_shard_makes_room(const SwarmShard *shard)
{
	for (int i = 0; i < swarm_max_slots; i++)
	{
		const SwarmSlot *slot = &slots[i];

		if (slot->state == SWARM_SLOT_FREE || slot->database != shard->database ||
			slot->critical_only)
			continue;
		if (slot->leaving || slot->state == SWARM_SLOT_STARTING ||
			(slot->state == SWARM_SLOT_IDLE && !OidIsValid(slot->role)))
			return true;
	}
	return false;
}

/*
 * swarm_shard_wake_longest_idle: it will see that there is work that is not
 * its role's, and that nobody makes room.
 */
void
swarm_shard_wake_longest_idle(SwarmShard *shard)
{
	if (!dlist_is_empty(&shard->idle))
		wake_slot(dlist_tail_element(SwarmSlot, idle_node, &shard->idle));
}

static void
wake_slot(SwarmSlot *slot)
{
	dlist_delete(&slot->idle_node);
	slot->idle_listed = false;
	SetLatch(slot->latch);
}

/*
 * swarm_shard_wake_all: claims were refused for a while and are possible
 * again: whoever went idle meanwhile shall look.
 */
void
swarm_shard_wake_all(SwarmShard *shard)
{
	if (dlist_is_empty(&shard->ring) && !swarm_chore_ready(shard) && swarm_errands_waiting(shard) == 0)
		return;
	while (!dlist_is_empty(&shard->idle))
		swarm_shard_wake_longest_idle(shard);
	swarm_shard_wake_runner(shard);
}

/*
 * swarm_shard_config_changed: claims wait until the scheduler has read the
 * settings, and read them again if this comes while it does.
 */
void
swarm_shard_config_changed(SwarmShard *shard)
{
	shard->config_stale = true;
	shard->config_changes++;
	swarm_shard_wake_scheduler(shard);
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
