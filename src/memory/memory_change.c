/*
 * memory_change.c
 *	  What follows from a change of an entry, whoever made it.
 *
 * A row trigger on the tables of entries notes the key, counts for limits and
 * keeps what the namespace is searched by.  At the end of the transaction:
 *
 *   before it is visible	guards are marked: no reader trusts or fills the
 *							cache for these keys
 *   once it is visible		guards are counted and unmarked; waiters of the
 *							keys wake; the scheduler hears of an earlier expiry
 *   at rollback			guards are unmarked, if they had been marked
 *
 * A savepoint that is rolled back leaves its notes: they cost a read of the
 * table.  A prepared transaction hands them to memory_prepared.c.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/export.h"
#include "base/fault.h"
#include "base/shmem.h"
#include "memory/memory_int.h"

#define MOST_NOTES		4096	/* keys; beyond, everything has changed */

void		(*swarm_memory_due_hook) (void) = NULL;

/* The keys that this transaction has written, as hashes. */
static struct
{
	bool		written;
	bool		all;			/* too many, or TRUNCATE */
	bool		marked;			/* guards are, those of ... */
	bool		marked_all;
	int			marked_n;
	int			n;
	int			room;
	uint32	   *hashes;
	TimestampTz due;			/* earliest sweep of what was written */
}			notes = {.due = DT_NOEND};

static void note_row(Relation table, HeapTuple tuple, TupleDesc desc);
static void note(uint32 hash);
static void count_row(TriggerData *trigger);
static void at_transaction_end(XactEvent event, void *arg);
static void mark(void);
static void unmark(bool committed);
static void guard_begin(SwarmCacheGuard *guard);
static void guard_end(SwarmCacheGuard *guard);
static void forget_notes(void);
static int	sweep_slot(void);

void
swarm_memory_change_init(void)
{
	RegisterXactCallback(at_transaction_end, NULL);
	swarm_memory_prepared_init();
}

bool
swarm_memory_written(void)
{
	return notes.written;
}

/*
 * swarm._memory_changed() returns trigger
 */
SWARM_FUNCTION(swarm__memory_changed);
Datum
swarm__memory_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	TupleDesc	desc;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("this function can be called as a trigger only")));
	desc = RelationGetDescr(trigger->tg_relation);
	if (TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event))
	{
		notes.written = notes.all = true;
		swarm_quota_truncated();
		PG_RETURN_POINTER(NULL);
	}
	note_row(trigger->tg_relation, trigger->tg_trigtuple, desc);
	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		note_row(trigger->tg_relation, trigger->tg_newtuple, desc);
	count_row(trigger);
	PG_RETURN_POINTER(NULL);
}

/* ------------------------------------------------------------------------
 * Tables that cached results depend on
 * ------------------------------------------------------------------------ */

/* Has this transaction written what hashes so? */
static bool
noted(uint32 hash)
{
	bool		found = notes.all;

	for (int i = 0; i < notes.n && !found; i++)
		found = notes.hashes[i] == hash;
	return found;
}

/* A table is guarded as an entry is, in a namespace that no entry has. */
static uint32
table_hash(Oid table)
{
	return swarm_memory_hash(table, -1, "", 0);
}

/*
 * swarm._cache_table_changed() returns trigger: of a statement
 */
SWARM_FUNCTION(swarm__cache_table_changed);
Datum
swarm__cache_table_changed(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("this function can be called as a trigger only")));
	if (swarm_memory_shared != NULL)
		note(table_hash(RelationGetRelid(((TriggerData *) fcinfo->context)->tg_relation)));
	PG_RETURN_POINTER(NULL);
}

/*
 * swarm._cache_stamp(tables) returns text: the counts of changes of tables; NULL
 * while they say nothing.  A result that is computed with a later snapshot is
 * what a snapshot taken at another time sees, if the stamp was the same before.
 */
SWARM_FUNCTION(swarm__cache_stamp);
Datum
swarm__cache_stamp(PG_FUNCTION_ARGS)
{
	ArrayType  *tables = PG_GETARG_ARRAYTYPE_P(0);
	SwarmMemoryShared *s = swarm_memory_shared;
	Datum	   *oids;
	int			n;
	bool		committing;
	StringInfoData stamp;

	if (s == NULL || RecoveryInProgress() || IsolationUsesXactSnapshot())
		PG_RETURN_NULL();
	deconstruct_array(tables, OIDOID, sizeof(Oid), true, TYPALIGN_INT, &oids, NULL, &n);
	initStringInfo(&stamp);
	appendStringInfo(&stamp, "%lx.%x", (unsigned long) s->started, pg_atomic_read_u32(&s->all.changes));
	for (int i = 0; i < n; i++)
	{
		Oid			table = DatumGetObjectId(oids[i]);
		uint32		hash = table_hash(table);

		if (noted(hash))
			PG_RETURN_NULL();
		appendStringInfo(&stamp, " %u.%x", table,
						 pg_atomic_read_u32(&s->guards[hash % s->nguards].changes));
	}
	/* as in swarm_cache_get(): changes first */
	pg_memory_barrier();
	committing = pg_atomic_read_u32(&s->all.committing) != 0;
	for (int i = 0; i < n; i++)
		committing |= pg_atomic_read_u32(&s->guards[table_hash(DatumGetObjectId(oids[i])) % s->nguards].committing) != 0;
	pg_memory_barrier();
	if (committing)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(stamp.data));
}

/* ------------------------------------------------------------------------
 * While the transaction runs
 * ------------------------------------------------------------------------ */

static void
note_row(Relation table, HeapTuple tuple, TupleDesc desc)
{
	bool		isnull;
	int32		space = DatumGetInt32(heap_getattr(tuple, MEMORY_NAMESPACE, desc, &isnull));
	text	   *key = DatumGetTextPP(heap_getattr(tuple, MEMORY_KEY, desc, &isnull));
	TimestampTz sweep_at = DatumGetTimestampTz(heap_getattr(tuple, MEMORY_SWEEP_AT, desc, &isnull));

	swarm_memory_note(RelationGetRelid(table), space, key, isnull ? DT_NOEND : sweep_at);
}

void
swarm_memory_note(Oid table, int32 space, const text *key, TimestampTz sweep_at)
{
	if (swarm_memory_shared == NULL)
		return;
	note(swarm_memory_hash(table, space, VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key)));
	notes.due = Min(notes.due, sweep_at);
}

static void
note(uint32 hash)
{
	notes.written = true;
	if (notes.all || (notes.n > 0 && notes.hashes[notes.n - 1] == hash))
		return;
	if (notes.n == notes.room)
	{
		if (notes.n >= MOST_NOTES)
		{
			notes.all = true;
			return;
		}
		if (notes.hashes == NULL)
			notes.hashes = MemoryContextAlloc(TopMemoryContext, 16 * sizeof(uint32));
		else
			notes.hashes = repalloc(notes.hashes, notes.n * 4 * sizeof(uint32));
		notes.room = notes.n == 0 ? 16 : notes.n * 4;
	}
	notes.hashes[notes.n++] = hash;
}

/*
 * count_row: for the limits of the namespace; and a deleted entry is no longer
 * to be found.
 */
static void
count_row(TriggerData *trigger)
{
	TupleDesc	desc = RelationGetDescr(trigger->tg_relation);
	bool		inserted = TRIGGER_FIRED_BY_INSERT(trigger->tg_event);
	bool		deleted = TRIGGER_FIRED_BY_DELETE(trigger->tg_event);
	HeapTuple	tuple = trigger->tg_trigtuple;
	SwarmSpace	space;
	bool		isnull;
	int64		bytes;
	Datum		key;

	if (!swarm_space_by_id(DatumGetInt32(heap_getattr(tuple, MEMORY_NAMESPACE, desc, &isnull)), &space))
		return;
	key = heap_getattr(tuple, MEMORY_KEY, desc, &isnull);
	if (deleted && space.recall)
	{
		SwarmSpi	spi;

		swarm_spi_begin(&spi);
		swarm_memory_forget(&space, key);
		swarm_spi_end(&spi);
	}
	if (!swarm_space_limited(&space))
		return;
	bytes = DatumGetInt32(heap_getattr(tuple, MEMORY_SIZE, desc, &isnull));
	if (inserted)
		swarm_quota_change(&space, 1, bytes, key);
	else if (deleted)
		swarm_quota_change(&space, -1, -bytes, key);
	else
	{
		TimestampTz expires_at = DatumGetTimestampTz(heap_getattr(tuple, MEMORY_EXPIRES_AT, desc, &isnull));
		bool		expired = !isnull && expires_at <= swarm_now();
		int64		new_bytes = DatumGetInt32(heap_getattr(trigger->tg_newtuple, MEMORY_SIZE, desc, &isnull));

		if (expired)
		{
			swarm_quota_change(&space, -1, -bytes, key);
			swarm_quota_change(&space, 1, new_bytes, key);
		}
		else
			swarm_quota_change(&space, 0, new_bytes - bytes, key);
	}
}

/* ------------------------------------------------------------------------
 * At its end
 * ------------------------------------------------------------------------ */

static void
at_transaction_end(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			swarm_memory_prepared_pre_commit();
			swarm_quota_pre_commit();
			if (notes.written)
				mark();
			break;
		case XACT_EVENT_PRE_PREPARE:
			swarm_memory_prepare(notes.hashes, notes.n, notes.all);
			break;
		case XACT_EVENT_COMMIT:
			if (notes.written)
			{
				unmark(true);
				swarm_memory_announce_due(notes.due);
			}
			forget_notes();
			swarm_quota_end_of_transaction();
			swarm_memory_prepared_end_of_transaction(event);
			break;
		case XACT_EVENT_ABORT:
			unmark(false);
			forget_notes();
			swarm_quota_end_of_transaction();
			swarm_memory_prepared_end_of_transaction(event);
			break;
		case XACT_EVENT_PREPARE:
			forget_notes();
			swarm_quota_end_of_transaction();
			swarm_memory_prepared_end_of_transaction(event);
			break;
		default:
			break;
	}
}

static void
mark(void)
{
	SwarmMemoryShared *s = swarm_memory_shared;

	if (s == NULL || notes.marked)
		return;
	HOLD_INTERRUPTS();
	notes.marked_all = notes.all;
	notes.marked_n = notes.all ? 0 : notes.n;
	swarm_guards_begin(notes.hashes, notes.marked_n, notes.marked_all);
	notes.marked = true;
	RESUME_INTERRUPTS();
	SWARM_FAULT("memory.commit");
}

/*
 * unmark: runs with interrupts held off and must not fail.  What was written
 * after mark(), by another module's callback, is counted here.
 */
static void
unmark(bool committed)
{
	SwarmMemoryShared *s = swarm_memory_shared;

	if (s == NULL || (!notes.marked && !committed))
		return;
	if (committed)
	{
		swarm_guards_begin(notes.hashes + notes.marked_n, notes.n - notes.marked_n,
						   notes.all && !notes.marked_all);
		notes.marked_n = notes.n;
		notes.marked_all = notes.all;
	}
	swarm_guards_end(notes.hashes, notes.marked_n, notes.marked_all);
	if (committed && notes.all)
		swarm_memory_wake_all();
	for (int i = 0; i < notes.n && committed && !notes.all; i++)
		ConditionVariableBroadcast(swarm_memory_waiters(notes.hashes[i]));
	pg_atomic_fetch_add_u64(&s->invalidations, notes.n);
}

/* The order matters: swarm_cache_get() reads changes first. */
static void
guard_begin(SwarmCacheGuard *guard)
{
	pg_atomic_fetch_add_u32(&guard->committing, 1);
	pg_atomic_fetch_add_u32(&guard->changes, 1);
}

static void
guard_end(SwarmCacheGuard *guard)
{
	pg_atomic_fetch_add_u32(&guard->changes, 1);
	pg_atomic_fetch_sub_u32(&guard->committing, 1);
}

void
swarm_guards_begin(const uint32 *hashes, int n, bool all)
{
	SwarmMemoryShared *s = swarm_memory_shared;

	if (all)
		guard_begin(&s->all);
	for (int i = 0; i < n; i++)
		guard_begin(&s->guards[hashes[i] % s->nguards]);
}

void
swarm_guards_end(const uint32 *hashes, int n, bool all)
{
	SwarmMemoryShared *s = swarm_memory_shared;

	if (all)
		guard_end(&s->all);
	for (int i = 0; i < n; i++)
		guard_end(&s->guards[hashes[i] % s->nguards]);
}

static void
forget_notes(void)
{
	if (notes.room > 1024)
	{
		pfree(notes.hashes);
		notes.hashes = NULL;
		notes.room = 0;
	}
	notes.written = notes.all = notes.marked = notes.marked_all = false;
	notes.n = notes.marked_n = 0;
	notes.due = DT_NOEND;
}

/* ------------------------------------------------------------------------
 * When to sweep
 * ------------------------------------------------------------------------ */

/*
 * sweep_slot: this database's place, -1 if there is none left.
 */
static int
sweep_slot(void)
{
	static int	slot = -1;
	SwarmMemoryShared *s = swarm_memory_shared;
	int			place = -1;

	if (slot >= 0 || s == NULL)
		return slot;
	LWLockAcquire(swarm_memory_lock, LW_EXCLUSIVE);
	/* ours may come after a free one */
	for (int i = 0; i < SWEPT_DATABASES && slot < 0; i++)
	{
		Oid			database = pg_atomic_read_u32(&s->databases[i]);

		if (database == MyDatabaseId)
			slot = i;
		else if (!OidIsValid(database) && place < 0)
			place = i;
	}
	if (slot < 0 && place >= 0)
	{
		pg_atomic_write_u32(&s->databases[place], MyDatabaseId);
		slot = place;
	}
	LWLockRelease(swarm_memory_lock);
	return slot;
}

void
swarm_memory_sweep_forget(Oid database)
{
	SwarmMemoryShared *s = swarm_memory_shared;

	LWLockAcquire(swarm_memory_lock, LW_EXCLUSIVE);
	for (int i = 0; i < SWEPT_DATABASES; i++)
	{
		if (pg_atomic_read_u32(&s->databases[i]) == database)
		{
			pg_atomic_write_u64(&s->next_sweep[i], 0);
			pg_atomic_write_u32(&s->databases[i], InvalidOid);
		}
	}
	LWLockRelease(swarm_memory_lock);
}

TimestampTz
swarm_memory_sweep_due(void)
{
	int			slot = sweep_slot();

	/* stored from zero on, so that a new slot is due at once */
	return slot < 0 ? DT_NOEND :
		(TimestampTz) pg_atomic_read_u64(&swarm_memory_shared->next_sweep[slot]);
}

void
swarm_memory_announce_due(TimestampTz due)
{
	int			slot = sweep_slot();
	pg_atomic_uint64 *next;
	uint64		was;

	if (slot < 0 || due == DT_NOEND)
		return;
	next = &swarm_memory_shared->next_sweep[slot];
	was = pg_atomic_read_u64(next);
	due = Max(due, 1);
	while ((TimestampTz) was > due)
	{
		if (pg_atomic_compare_exchange_u64(next, &was, (uint64) due))
		{
			if (swarm_memory_due_hook)
				swarm_memory_due_hook();
			return;
		}
	}
}

void
swarm_memory_sweep_step(void)
{
	const int	batch = 10000;
	int			slot = sweep_slot();
	TimestampTz earliest = swarm_now() + (int64) swarm_sweep_interval_ms * 1000;
	volatile TimestampTz next = earliest;
	SwarmSpi	spi;
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(batch)};
	int64		removed;

	if (slot < 0)
		return;
	SWARM_FAULT("memory.sweep");
	/* who commits from now on is not yet seen below, and says so itself */
	pg_atomic_write_u64(&swarm_memory_shared->next_sweep[slot], (uint64) DT_NOEND);
	pg_memory_barrier();
	PG_TRY();
	{
		swarm_spi_begin(&spi);
		swarm_spi_execute("SELECT swarm._memory_sweep(0, $1)", 1, types, values, NULL);
		removed = swarm_spi_int64(0, 1);
		if (removed >= batch)
			next = swarm_now();
		else
		{
			bool		isnull;
			Datum		due;

			swarm_spi_query("SELECT swarm._memory_next_sweep()", 0, NULL, NULL, NULL);
			due = swarm_spi_column(0, 1, &isnull);
			next = isnull ? DT_NOEND : Max(earliest, DatumGetTimestampTz(due));
		}
		swarm_spi_end(&spi);
	}
	PG_CATCH();
	{
		swarm_memory_announce_due(next);
		PG_RE_THROW();
	}
	PG_END_TRY();
	swarm_memory_announce_due(next);
}
