/*
 * memory_origin.c
 *	  Keys that are to be filled from the origin of their namespace.
 *
 * Whoever misses a key asks here, in shared memory, and goes on: a miss is
 * no write, so it can be asked in a transaction that reads only or is rolled
 * back.  The scheduler makes jobs of the owners of what was asked; a runner
 * fetches (memory_fill.c) and stores, and the store wakes those who wait.
 *
 *	 FREE ── asked ──> ASKED ── scheduler ──> QUEUED ── job ──> FILLING ── stored ──> FREE
 *	  ^                                                            │
 *	  └──────── ORIGIN_RETRY over ────────── ABSENT <── not there, or failed
 *
 * Every state but FREE ends by itself at its time: whoever should have gone on
 * may have died.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#include "base/clock.h"
#include "base/shmem.h"
#include "memory/memory_int.h"

#define ASKS			512		/* keys that are asked for, of all databases */
#define FILL_TIME		(10 * USECS_PER_MINUTE) /* longer than a job may take */
#define QUEUED_TIME		(2 * USECS_PER_MINUTE)
#define ORIGIN_RETRY	(10 * USECS_PER_SEC)

typedef enum AskState
{
	ASK_FREE,
	ASK_ASKED,
	ASK_QUEUED,
	ASK_FILLING,
	ASK_ABSENT
} AskState;

typedef struct Ask
{
	AskState	state;
	Oid			database;
	int32		space;
	uint32		hash;
	int32		length;
	TimestampTz until;
	char		key[SWARM_KEY_MAX_BYTES];
} Ask;

/* Guarded by its lock but for the counters. */
typedef struct Origins
{
	pg_atomic_uint32 asked;		/* in state ASKED, about: never too few */
	pg_atomic_uint64 asks;
	pg_atomic_uint64 fills;
	pg_atomic_uint64 absent;
	Ask			table[ASKS];
} Origins;

static Origins *origins = NULL;
static LWLock *origins_lock = NULL;

static Size origins_size(void);
static void origins_attach(void *memory, bool found);
static Ask *find(int32 space, const text *key, uint32 hash);
static Ask *take_place(void);
static Datum next_batch(int32 *space);
static void enqueue(int32 space, Datum keys);

static SwarmShmemPiece origins_piece = {
	.name = "pg_swarm memory origins",
	.size = origins_size,
	.init = origins_attach,
	.pointer = (void **) &origins,
	.lock = &origins_lock
};

void
swarm_origin_init(void)
{
	swarm_shmem_register(&origins_piece);
}

static Size
origins_size(void)
{
	return sizeof(Origins);
}

static void
origins_attach(void *memory, bool found)
{
	Origins    *o = memory;

	if (found)
		return;
	pg_atomic_init_u32(&o->asked, 0);
	pg_atomic_init_u64(&o->asks, 0);
	pg_atomic_init_u64(&o->fills, 0);
	pg_atomic_init_u64(&o->absent, 0);
}

void
swarm_origin_stats(uint64 *asks, uint64 *fills, uint64 *absent)
{
	*asks = origins ? pg_atomic_read_u64(&origins->asks) : 0;
	*fills = origins ? pg_atomic_read_u64(&origins->fills) : 0;
	*absent = origins ? pg_atomic_read_u64(&origins->absent) : 0;
}

void
swarm_origin_forget_database(Oid database)
{
	LWLockAcquire(origins_lock, LW_EXCLUSIVE);
	for (int i = 0; i < ASKS; i++)
	{
		if (origins->table[i].database == database)
			origins->table[i].state = ASK_FREE;
	}
	LWLockRelease(origins_lock);
}

/* ------------------------------------------------------------------------
 * Asking
 * ------------------------------------------------------------------------ */

void
swarm_origin_ask(const SwarmSpace *space, const text *key)
{
	uint32		hash;
	Ask		   *ask;
	bool		asked = false;

	if (!space->origin || origins == NULL || RecoveryInProgress() ||
		VARSIZE_ANY_EXHDR(key) == 0 || VARSIZE_ANY_EXHDR(key) > SWARM_KEY_MAX_BYTES)
		return;
	hash = swarm_memory_hash(InvalidOid, space->id, VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key));
	LWLockAcquire(origins_lock, LW_SHARED);
	ask = find(space->id, key, hash);
	LWLockRelease(origins_lock);
	if (ask != NULL)
		return;
	LWLockAcquire(origins_lock, LW_EXCLUSIVE);
	ask = find(space->id, key, hash);
	if (ask == NULL && (ask = take_place()) != NULL)
	{
		ask->state = ASK_ASKED;
		ask->database = MyDatabaseId;
		ask->space = space->id;
		ask->hash = hash;
		ask->length = VARSIZE_ANY_EXHDR(key);
		ask->until = swarm_now() + QUEUED_TIME;
		memcpy(ask->key, VARDATA_ANY(key), ask->length);
		pg_atomic_fetch_add_u32(&origins->asked, 1);
		asked = true;
	}
	LWLockRelease(origins_lock);
	if (!asked)
		return;
	pg_atomic_fetch_add_u64(&origins->asks, 1);
	if (swarm_memory_due_hook)
		swarm_memory_due_hook();
}

/*
 * find: what was asked for and has not run out; the lock is held.
 */
static Ask *
find(int32 space, const text *key, uint32 hash)
{
	TimestampTz now = swarm_now();

	for (int i = 0; i < ASKS; i++)
	{
		Ask		   *ask = &origins->table[i];

		if (ask->state != ASK_FREE && ask->hash == hash && ask->database == MyDatabaseId &&
			ask->space == space && ask->length == VARSIZE_ANY_EXHDR(key) &&
			memcmp(ask->key, VARDATA_ANY(key), ask->length) == 0 && ask->until > now)
			return ask;
	}
	return NULL;
}

/*
 * take_place: a free one, or the one that has run out; or what was last found
 * absent: it is asked for once too often.  NULL if all are at work.
 */
static Ask *
take_place(void)
{
	TimestampTz now = swarm_now();
	Ask		   *absent = NULL;

	for (int i = 0; i < ASKS; i++)
	{
		Ask		   *ask = &origins->table[i];

		if (ask->state == ASK_FREE || ask->until <= now)
			return ask;
		if (ask->state == ASK_ABSENT)
			absent = ask;
	}
	return absent;
}

/* ------------------------------------------------------------------------
 * The scheduler
 * ------------------------------------------------------------------------ */

bool
swarm_memory_origins_asked(void)
{
	return origins != NULL && pg_atomic_read_u32(&origins->asked) > 0;
}

void
swarm_memory_origins_step(void)
{
	int32		space;
	Datum		keys;

	while ((keys = next_batch(&space)) != (Datum) 0)
		enqueue(space, keys);
}

/*
 * next_batch: keys of one namespace of this database, which become QUEUED; 0 if
 * there are none.
 */
static Datum
next_batch(int32 *space)
{
	Datum		keys[SWARM_FILL_BATCH];
	int			n = 0;
	uint32		others = 0;

	LWLockAcquire(origins_lock, LW_EXCLUSIVE);
	for (int i = 0; i < ASKS; i++)
	{
		Ask		   *ask = &origins->table[i];

		if (ask->state != ASK_ASKED)
			continue;
		if (ask->database != MyDatabaseId || n == SWARM_FILL_BATCH || (n > 0 && ask->space != *space))
		{
			others += ask->until > swarm_now();
			continue;
		}
		*space = ask->space;
		keys[n++] = PointerGetDatum(cstring_to_text_with_len(ask->key, ask->length));
		ask->state = ASK_QUEUED;
		ask->until = swarm_now() + QUEUED_TIME;
	}
	pg_atomic_write_u32(&origins->asked, others);
	LWLockRelease(origins_lock);
	return n == 0 ? (Datum) 0 : PointerGetDatum(construct_array(keys, n, TEXTOID, -1, false, TYPALIGN_INT));
}

/*
 * enqueue: a job of the namespace's owner, if it still has an origin.
 */
static void
enqueue(int32 space, Datum keys)
{
	SwarmSpi	spi;
	Oid			types[] = {INT4OID, TEXTARRAYOID};
	Datum		values[] = {Int32GetDatum(space), keys};
	Oid			owner = InvalidOid;
	bool		isnull;

	swarm_spi_begin(&spi);
	if (swarm_spi_query("SELECT n.owner::oid FROM swarm._namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.owner "
						"WHERE n.id = $1 AND n.origin IS NOT NULL", 1, types, values, NULL) > 0)
		owner = DatumGetObjectId(swarm_spi_column(0, 1, &isnull));
	if (OidIsValid(owner))
	{
		SetUserIdAndSecContext(owner, SECURITY_LOCAL_USERID_CHANGE);
		swarm_spi_execute("SELECT swarm.job_enqueue('memory_fill', pg_catalog.jsonb_build_object('namespace', $1, 'keys', $2), "
						  "max_attempts => 2)", 2, types, values, NULL);
	}
	swarm_spi_end(&spi);
}

/* ------------------------------------------------------------------------
 * The job
 * ------------------------------------------------------------------------ */

bool
swarm_origin_fill_begin(int32 space, const text *key)
{
	uint32		hash = swarm_memory_hash(InvalidOid, space, VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key));
	Ask		   *ask;
	bool		ours = false;

	LWLockAcquire(origins_lock, LW_EXCLUSIVE);
	ask = find(space, key, hash);
	if (ask == NULL)
		ask = take_place();
	if (ask != NULL && (ask->state != ASK_FILLING || ask->until <= swarm_now()))
	{
		ask->state = ASK_FILLING;
		ask->database = MyDatabaseId;
		ask->space = space;
		ask->hash = hash;
		ask->length = VARSIZE_ANY_EXHDR(key);
		ask->until = swarm_now() + FILL_TIME;
		memcpy(ask->key, VARDATA_ANY(key), ask->length);
		ours = true;
	}
	LWLockRelease(origins_lock);
	return ours;
}

void
swarm_origin_fill_end(int32 space, const text *key, bool stored)
{
	uint32		hash = swarm_memory_hash(InvalidOid, space, VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key));
	Ask		   *ask;

	LWLockAcquire(origins_lock, LW_EXCLUSIVE);
	ask = find(space, key, hash);
	if (ask != NULL)
	{
		ask->state = stored ? ASK_FREE : ASK_ABSENT;
		ask->until = swarm_now() + ORIGIN_RETRY;
	}
	LWLockRelease(origins_lock);
	pg_atomic_fetch_add_u64(stored ? &origins->fills : &origins->absent, 1);
}
