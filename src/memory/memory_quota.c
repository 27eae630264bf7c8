/*
 * memory_quota.c
 *	  Limits of namespaces, counted exactly and without a row for it.
 *
 * Shared memory has a count for each namespace with limits that is in use: the
 * committed rows, plus what open transactions have added, less nothing of what
 * they removed.  So no commit can bring the namespace over its limit.  Added
 * rows are taken out of the count at rollback, removed ones at commit, by the
 * doorbell, which knows savepoints.
 *
 * The count is taken from the table when it is first needed, while nobody
 * else adds to the namespace: those who do hold a lock on it that does not
 * exclude each other but the one that counts.  Who removes holds none; if he
 * commits after a counting that may have seen his rows, the count is stale
 * (never too low), and taken again.  Without preload a writer takes the
 * excluding lock and counts each time.
 *
 * An expired row is in the count until its removal is committed.  Where that
 * makes the difference, and others have the row locked (the sweep, mostly),
 * nobody waits: rows that a snapshot shows as expired are taken off a count
 * read before that snapshot.  What replaces an expired row counts twice until
 * then.
 *
 * A removal is seen by snapshots a moment before it is counted.  Who commits
 * one says so before and after, and nobody is refused by figures that were
 * read in between.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "storage/shmem.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "base/compat.h"
#include "base/doorbell.h"
#include "base/shmem.h"
#include "memory/memory_int.h"

#define QUOTAS			1024	/* namespaces with limits in use, of all
								 * databases */
#define EVICT_SHARE		100		/* of a limit is made free at a time */
#define REMOVAL_WAITS	100		/* before a store is refused, at most */
#define REMOVAL_WAIT_MS	10

typedef struct QuotaKey
{
	Oid			database;
	Oid			table;
	int32		space;
} QuotaKey;

/* Guarded by swarm_memory_lock. */
typedef struct Quota
{
	QuotaKey	key;
	bool		counted;
	bool		stale;			/* may be too high: to be counted again */
	uint32		life;			/* counts countings: who was counted before
								 * does not count again */
	int64		entries;
	int64		bytes;
} Quota;

/* A doorbell item: what one row has changed. */
typedef struct QuotaChange
{
	QuotaKey	key;
	uint32		life;
	int32		entries;
	int64		bytes;
} QuotaChange;

/* What this transaction has removed and not committed. */
typedef struct OwnRemoved
{
	struct OwnRemoved *next;
	int32		space;
	bool		locked;			/* the namespace, by this transaction */
	int64		entries;
	int64		bytes;
} OwnRemoved;

HTAB	   *swarm_memory_quotas = NULL;
static OwnRemoved *own = NULL;

static QuotaKey key_of(const SwarmSpace *space);
static OwnRemoved *own_of(int32 space);
static void count(const SwarmSpace *space, SwarmMemoryStatement statement,
				  int64 *entries, int64 *bytes);
static void now_used(const SwarmSpace *space, int64 *entries, int64 *bytes);
static void make_room(const SwarmSpace *space, Datum key);
static int64 excess(const SwarmSpace *space, int64 entries, int64 bytes);
static bool removal_ended(uint32 changes);
static void added_stays(void *item);
static void take_out_added(void *item);
static void take_out_removed(void *item);
static void still_there(void *item);
static void not_locked(void *item);
static void removal_counted(void *item);
static void rows_are_back(void *item);
static void ring_nothing(void *item);

Size
swarm_quota_hash_size(void)
{
	return hash_estimate_size(QUOTAS, sizeof(Quota));
}

void
swarm_quota_attach(void)
{
	HASHCTL		ctl = {.keysize = sizeof(QuotaKey), .entrysize = sizeof(Quota)};

	swarm_memory_quotas = ShmemInitHash("pg_swarm memory limits", QUOTAS, QUOTAS, &ctl,
										HASH_ELEM | HASH_BLOBS | HASH_FIXED_SIZE);
}

static QuotaKey
key_of(const SwarmSpace *space)
{
	QuotaKey	key;

	key.database = MyDatabaseId;
	key.table = swarm_memory_table(space->logged);
	key.space = space->id;
	return key;
}

static OwnRemoved *
own_of(int32 space)
{
	OwnRemoved *o = own;

	while (o && o->space != space)
		o = o->next;
	if (o == NULL)
	{
		o = MemoryContextAllocZero(TopTransactionContext, sizeof(OwnRemoved));
		o->space = space;
		o->next = own;
		own = o;
	}
	return o;
}

void
swarm_quota_end_of_transaction(void)
{
	own = NULL;
}

/*
 * swarm_quota_begin: afterwards there is a count of the namespace, and nobody
 * makes another before this transaction's end; or, where there is no place
 * for one, nobody else writes.
 */
void
swarm_quota_begin(const SwarmSpace *space)
{
	OwnRemoved *o = own_of(space->id);
	QuotaKey	key = key_of(space);
	bool		shared = swarm_memory_quotas != NULL;

	if (o->locked)
		return;
	for (;;)
	{
		Quota	   *q = NULL;
		bool		counted = false;

		swarm_space_lock(space->id, shared ? RowExclusiveLock : ExclusiveLock);
		if (!shared)
			break;
		LWLockAcquire(swarm_memory_lock, LW_SHARED);
		q = hash_search(swarm_memory_quotas, &key, HASH_FIND, NULL);
		counted = q != NULL && q->counted && !q->stale;
		LWLockRelease(swarm_memory_lock);
		if (counted)
			break;
		/* alone; two who hold the weaker lock would wait for each other */
		swarm_space_unlock(space->id, RowExclusiveLock);
		swarm_space_lock(space->id, ExclusiveLock);
		LWLockAcquire(swarm_memory_lock, LW_EXCLUSIVE);
		q = hash_search(swarm_memory_quotas, &key, HASH_FIND, NULL);
		counted = q != NULL && q->counted && !q->stale;
		LWLockRelease(swarm_memory_lock);
		if (!counted)
		{
			int64		entries;
			int64		bytes;
			bool		found;

			count(space, STATEMENT_COUNT, &entries, &bytes);
			LWLockAcquire(swarm_memory_lock, LW_EXCLUSIVE);
			q = hash_search(swarm_memory_quotas, &key, HASH_ENTER_NULL, &found);
			if (q != NULL)
			{
				q->counted = true;
				q->stale = false;
				q->life = found ? q->life + 1 : 1;
				q->entries = entries;
				q->bytes = bytes;
			}
			LWLockRelease(swarm_memory_lock);
		}
		if (q == NULL)
			break;				/* full: stays alone, counts each time */
		swarm_space_unlock(space->id, ExclusiveLock);
	}
	o->locked = true;
	swarm_doorbell_add(ring_nothing, not_locked, &space->id, sizeof(space->id));
}

/*
 * count: what is there and committed, or has expired of it, and what this
 * transaction has written.
 */
static void
count(const SwarmSpace *space, SwarmMemoryStatement statement,
	  int64 *entries, int64 *bytes)
{
	SwarmSpi	spi;
	Datum		values[1] = {Int32GetDatum(space->id)};

	swarm_spi_begin(&spi);
	swarm_memory_run_now(statement, space->logged, values);
	*entries = swarm_spi_int64(0, 1);
	*bytes = swarm_spi_int64(0, 2);
	swarm_spi_end(&spi);
}

/*
 * now_used: as the limits see it: committed or added by anybody, less what
 * this transaction itself has removed.
 */
static void
now_used(const SwarmSpace *space, int64 *entries, int64 *bytes)
{
	OwnRemoved *o = own_of(space->id);
	QuotaKey	key = key_of(space);
	Quota	   *q = NULL;

	if (swarm_memory_quotas != NULL)
	{
		LWLockAcquire(swarm_memory_lock, LW_SHARED);
		q = hash_search(swarm_memory_quotas, &key, HASH_FIND, NULL);
		if (q != NULL && q->counted)
		{
			*entries = q->entries - o->entries;
			*bytes = q->bytes - o->bytes;
		}
		else
			q = NULL;
		LWLockRelease(swarm_memory_lock);
	}
	if (q == NULL)
		count(space, STATEMENT_COUNT, entries, bytes);
}

void
swarm_quota_change(const SwarmSpace *space, int entries, int64 bytes, Datum key)
{
	QuotaChange change = {.key = key_of(space), .entries = entries, .bytes = bytes};

	if (swarm_memory_quotas != NULL)
	{
		Quota	   *q;

		LWLockAcquire(swarm_memory_lock, LW_EXCLUSIVE);
		q = hash_search(swarm_memory_quotas, &change.key, HASH_FIND, NULL);
		if (q != NULL && q->counted)
		{
			change.life = q->life;
			if (entries > 0 || bytes > 0)
			{
				q->entries += entries;
				q->bytes += bytes;
			}
		}
		LWLockRelease(swarm_memory_lock);
		if (entries > 0 || bytes > 0)
			swarm_doorbell_add(added_stays, take_out_added, &change, sizeof(change));
		else
		{
			OwnRemoved *o = own_of(space->id);

			o->entries -= entries;
			o->bytes -= bytes;
			swarm_doorbell_add(take_out_removed, still_there, &change, sizeof(change));
		}
	}
	if (entries > 0 || bytes > 0)
		make_room(space, key);
}

/*
 * make_room: if the namespace is over its limits, remove what has expired, then
 * what its policy says.  Error 53400 if that does not help.
 */
static void
make_room(const SwarmSpace *space, Datum key)
{
	bool		purged = false;
	int			waits = 0;

	for (;;)
	{
		int64		entries;
		int64		bytes;
		int64		expired_entries = 0;
		int64		expired_bytes = 0;
		int64		over;
		SwarmSpi	spi;
		Datum		values[3];
		uint64		removed = 0;
		uint32		changes = 0;

		if (swarm_memory_shared != NULL)
		{
			changes = pg_atomic_read_u32(&swarm_memory_shared->removals.changes);
			pg_memory_barrier();
		}
		/* in this order: what goes meanwhile is counted, not taken off */
		now_used(space, &entries, &bytes);
		over = excess(space, entries, bytes);
		if (over > 0 && purged)
		{
			count(space, STATEMENT_COUNT_EXPIRED, &expired_entries, &expired_bytes);
			over = excess(space, entries - expired_entries, bytes - expired_bytes);
		}
		if (over == 0)
			return;
		values[0] = Int32GetDatum(space->id);
		values[1] = key;
		values[2] = Int64GetDatum(over);
		swarm_spi_begin(&spi);
		if (!purged)
			removed = swarm_memory_run(STATEMENT_PURGE, space->logged, values, NULL);
		else if (space->evict != 'r')
			removed = swarm_memory_run(space->evict == 'o' ? STATEMENT_EVICT_OLDEST :
									   STATEMENT_EVICT_SOONEST, space->logged, values, NULL);
		swarm_spi_end(&spi);
		if (removed == 0 && purged)
		{
			if (waits++ < REMOVAL_WAITS && removal_ended(changes))
				continue;
			ereport(ERROR,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("namespace is full"),
					 space->max_entries > 0 && entries - expired_entries > space->max_entries ?
					 errdetail("It may have " INT64_FORMAT " entries.", space->max_entries) :
					 errdetail("It may have " INT64_FORMAT " bytes.", space->max_bytes),
					 errhint("Delete entries, or let swarm.namespace_alter() set another limit or evict.")));
		}
		purged = true;
	}
}

/*
 * removal_ended: has another transaction been committing a removal since there
 * were so many changes?  If it still is, it is waited for, for a moment: its
 * commit may wait for a standby.
 */
static bool
removal_ended(uint32 changes)
{
	static uint32 wait_event = 0;
	SwarmCacheGuard *removals;

	if (swarm_memory_shared == NULL)
		return false;
	removals = &swarm_memory_shared->removals;
	pg_memory_barrier();
	if (pg_atomic_read_u32(&removals->committing) != 0)
	{
		if (wait_event == 0)
			wait_event = swarm_wait_event_new("SwarmMemoryRemoval");
		ConditionVariablePrepareToSleep(&swarm_memory_shared->removals_end);
		if (pg_atomic_read_u32(&removals->committing) != 0)
			(void) ConditionVariableTimedSleep(&swarm_memory_shared->removals_end,
											   REMOVAL_WAIT_MS, wait_event);
		ConditionVariableCancelSleep();
		return true;
	}
	return pg_atomic_read_u32(&removals->changes) != changes;
}

/*
 * swarm_quota_pre_commit: what this transaction has removed will be seen before
 * it is counted.
 */
void
swarm_quota_pre_commit(void)
{
	bool		removed = false;

	for (OwnRemoved *o = own; o; o = o->next)
		removed = removed || o->entries > 0 || o->bytes > 0;
	if (!removed || swarm_memory_shared == NULL)
		return;
	/* rings last; nothing fails between the two */
	swarm_doorbell_add(removal_counted, removal_counted, "", 0);
	pg_atomic_fetch_add_u32(&swarm_memory_shared->removals.committing, 1);
	pg_atomic_fetch_add_u32(&swarm_memory_shared->removals.changes, 1);
}

/*
 * excess: how many entries are to go; 0 = the limits are kept.
 */
static int64
excess(const SwarmSpace *space, int64 entries, int64 bytes)
{
	int64		over = 0;

	if (space->max_entries > 0 && entries > space->max_entries)
		over = Max(entries - space->max_entries, space->max_entries / EVICT_SHARE);
	if (space->max_bytes > 0 && bytes > space->max_bytes)
		over = Max(over, Max(1, entries / EVICT_SHARE));
	return over;
}

void
swarm_quota_truncated(void)
{
	swarm_quota_forget_all();
	/* what this transaction counts from now on is true if it commits */
	swarm_doorbell_add(ring_nothing, rows_are_back, "", 0);
}

void
swarm_quota_forget_all(void)
{
	HASH_SEQ_STATUS scan;
	Quota	   *q;

	if (swarm_memory_quotas == NULL)
		return;
	LWLockAcquire(swarm_memory_lock, LW_EXCLUSIVE);
	hash_seq_init(&scan, swarm_memory_quotas);
	while ((q = hash_seq_search(&scan)) != NULL)
	{
		if (q->key.database == MyDatabaseId)
			q->counted = false;
	}
	LWLockRelease(swarm_memory_lock);
}

void
swarm_quota_forget_database(Oid database)
{
	HASH_SEQ_STATUS scan;
	Quota	   *q;

	LWLockAcquire(swarm_memory_lock, LW_EXCLUSIVE);
	hash_seq_init(&scan, swarm_memory_quotas);
	while ((q = hash_seq_search(&scan)) != NULL)
	{
		if (q->key.database == database)
			hash_search(swarm_memory_quotas, &q->key, HASH_REMOVE, NULL);
	}
	LWLockRelease(swarm_memory_lock);
}

/* ------------------------------------------------------------------------
 * Doorbell: no errors, no allocation
 * ------------------------------------------------------------------------ */

static void
take_out(const QuotaChange *change, int sign)
{
	Quota	   *q;

	LWLockAcquire(swarm_memory_lock, LW_EXCLUSIVE);
	q = hash_search(swarm_memory_quotas, &change->key, HASH_FIND, NULL);
	if (q != NULL && q->counted && q->life == change->life)
	{
		q->entries += sign * change->entries;
		q->bytes += sign * change->bytes;
	}
	else if (q != NULL)
		q->stale = true;		/* counted when this was uncommitted, perhaps */
	LWLockRelease(swarm_memory_lock);
}

/*
 * Committed.  Rows that were written past the functions may have been added
 * before there was a count, which others have made since.
 */
static void
added_stays(void *item)
{
	take_out(item, 0);
}

/* Rolled back.  A prepared transaction may still commit: it stays counted. */
static void
take_out_added(void *item)
{
	if (!swarm_doorbell_preparing)
		take_out(item, -1);
}

/* Committed. */
static void
take_out_removed(void *item)
{
	take_out(item, 1);
}

/* The removal was rolled back, with a savepoint perhaps. */
static void
still_there(void *item)
{
	QuotaChange *change = item;

	for (OwnRemoved *o = own; o; o = o->next)
	{
		if (o->space == change->key.space)
		{
			o->entries += change->entries;
			o->bytes += change->bytes;
		}
	}
}

/* The lock was taken inside a savepoint and went with it. */
static void
not_locked(void *item)
{
	for (OwnRemoved *o = own; o; o = o->next)
	{
		if (o->space == *(int32 *) item)
			o->locked = false;
	}
}

/* Committed and counted, or rolled back. */
static void
removal_counted(void *item)
{
	pg_atomic_fetch_add_u32(&swarm_memory_shared->removals.changes, 1);
	pg_atomic_fetch_sub_u32(&swarm_memory_shared->removals.committing, 1);
	ConditionVariableBroadcast(&swarm_memory_shared->removals_end);
}

/* The TRUNCATE was rolled back, with a savepoint perhaps. */
static void
rows_are_back(void *item)
{
	swarm_quota_forget_all();
}

static void
ring_nothing(void *item)
{
}
