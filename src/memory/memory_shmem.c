/*
 * memory_shmem.c
 *	  Shared memory of module memory: guards, waiters, sweeps, counters.
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/shmem.h"
#include "utils/guc.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/shmem.h"
#include "memory/memory_int.h"

#define MIN_GUARDS		1024
#define BYTES_A_GUARD	512		/* of the cache */

SwarmMemoryShared *swarm_memory_shared = NULL;
LWLock	   *swarm_memory_lock = NULL;
int			swarm_cache_size_kb = 102400;
int			swarm_cache_ttl_s = 300;
int			swarm_sweep_interval_ms = 60000;
static void (*previous_clock_moved) (void) = NULL;

static Size memory_size(void);
static Size memory_extra_size(void);
static void memory_attach(void *memory, bool found);
static uint32 count_guards(void);
static void clock_moved(void);

static SwarmShmemPiece memory_piece = {
	.name = "pg_swarm memory",
	.size = memory_size,
	.hashes = memory_extra_size,
	.init = memory_attach,
	.pointer = (void **) &swarm_memory_shared,
	.lock = &swarm_memory_lock
};

void
swarm_memory_shmem_init(void)
{
	DefineCustomIntVariable("pg_swarm.memory_sweep_interval",
							"Least time between two sweeps of expired memory entries.",
							"What has expired is not seen, swept or not.",
							&swarm_sweep_interval_ms, 60000, 100, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.cache_ttl",
							"How long the shared cache goes by what it has read; 0 for no limit.",
							"It never shows what is out of date, with any value.",
							&swarm_cache_ttl_s, 300, 0, INT_MAX / 1000,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	/* a size of shared memory: there is none without preloading */
	if (process_shared_preload_libraries_in_progress)
		DefineCustomIntVariable("pg_swarm.cache_size",
								"Shared memory for the cache of memory entries; 0 for none.",
								NULL, &swarm_cache_size_kb, 102400, 0, MAX_KILOBYTES,
								PGC_POSTMASTER, GUC_UNIT_KB, NULL, NULL, NULL);
	swarm_shmem_register(&memory_piece);
	previous_clock_moved = swarm_clock_moved_hook;
	swarm_clock_moved_hook = clock_moved;
}

static uint32
count_guards(void)
{
	return Max(MIN_GUARDS, (uint32) Min((uint64) swarm_cache_size_kb * 1024 / BYTES_A_GUARD, 16 * 1024 * 1024));
}

static Size
memory_size(void)
{
	return add_size(offsetof(SwarmMemoryShared, guards),
					mul_size(count_guards(), sizeof(SwarmCacheGuard)));
}

static Size
memory_extra_size(void)
{
	return add_size(swarm_cache_bytes(), swarm_quota_hash_size());
}

static void
memory_attach(void *memory, bool found)
{
	SwarmMemoryShared *shared = memory;

	if (!found)
	{
		shared->tranche = LWLockNewTrancheId();
		shared->started = GetCurrentTimestamp();
		shared->nguards = count_guards();
		for (int i = 0; i < WAITERS; i++)
			ConditionVariableInit(&shared->waiters[i]);
		for (int i = 0; i < SWEPT_DATABASES; i++)
		{
			pg_atomic_init_u32(&shared->databases[i], InvalidOid);
			pg_atomic_init_u64(&shared->next_sweep[i], 0);
		}
		ConditionVariableInit(&shared->removals_end);
		pg_atomic_init_u32(&shared->removals.committing, 0);
		pg_atomic_init_u32(&shared->removals.changes, 0);
		pg_atomic_init_u32(&shared->all.committing, 0);
		pg_atomic_init_u32(&shared->all.changes, 0);
		for (uint32 i = 0; i < shared->nguards; i++)
		{
			pg_atomic_init_u32(&shared->guards[i].committing, 0);
			pg_atomic_init_u32(&shared->guards[i].changes, 0);
		}
		pg_atomic_init_u64(&shared->bypasses, 0);
		pg_atomic_init_u64(&shared->table_hits, 0);
		pg_atomic_init_u64(&shared->table_misses, 0);
		pg_atomic_init_u64(&shared->invalidations, 0);
		pg_atomic_init_u64(&shared->recorded, 0);
		pg_atomic_init_u64(&shared->dropped, 0);
	}
	LWLockRegisterTranche(shared->tranche, "pg_swarm cache");
	swarm_cache_attach(found);
	swarm_quota_attach();
}

uint32
swarm_memory_hash(Oid table, int32 space, const char *key, int length)
{
	uint32		h = hash_bytes((const unsigned char *) key, length);

	h = hash_combine(h, hash_bytes_uint32((uint32) space));
	h = hash_combine(h, hash_bytes_uint32(table));
	return hash_combine(h, hash_bytes_uint32(MyDatabaseId));
}

ConditionVariable *
swarm_memory_waiters(uint32 hash)
{
	return &swarm_memory_shared->waiters[hash % WAITERS];
}

void
swarm_memory_wake_all(void)
{
	if (swarm_memory_shared == NULL)
		return;
	for (int i = 0; i < WAITERS; i++)
		ConditionVariableBroadcast(&swarm_memory_shared->waiters[i]);
}

/*
 * clock_moved: waiters may find that what they wait for has expired.
 */
static void
clock_moved(void)
{
	if (previous_clock_moved)
		previous_clock_moved();
	swarm_memory_wake_all();
}
