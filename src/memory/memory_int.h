/*
 * memory_int.h
 *	  Private parts of module memory.
 */
#ifndef SWARM_MEMORY_MEMORY_INT_H
#define SWARM_MEMORY_MEMORY_INT_H

#include "access/xact.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "utils/relcache.h"
#include "utils/snapshot.h"
#include "utils/timestamp.h"

#include "base/hook.h"
#include "base/spi.h"
#include "memory/memory.h"

#define SWARM_KEY_MAX_BYTES		1024

/* Columns of swarm._memory and swarm._memory_unlogged. */
typedef enum SwarmMemoryColumn
{
	MEMORY_NAMESPACE = 1,
	MEMORY_KEY,
	MEMORY_VERSION,
	MEMORY_EXPIRES_AT,
	MEMORY_SWEEP_AT,
	MEMORY_CREATED_AT,
	MEMORY_UPDATED_AT,
	MEMORY_SIZE,
	MEMORY_OWNER,
	MEMORY_TAGS,
	MEMORY_VALUE
} SwarmMemoryColumn;

/* ------------------------------------------------------------------------
 * Namespaces (memory_space.c)
 * ------------------------------------------------------------------------ */

typedef enum SwarmNeed
{
	NEED_READ,
	NEED_WRITE,
	NEED_OWN
} SwarmNeed;

/* A namespace; a copy, which no invalidation changes. */
typedef struct SwarmSpace
{
	int32		id;
	bool		logged;
	bool		cached;
	bool		embed;			/* keeps embeddings */
	bool		recall;			/* those, or words: has a partition of _recall */
	bool		origin;			/* it has one */
	int32		dims;
	bool		has_ttl;
	Interval	default_ttl;
	int64		max_entries;	/* 0 = no limit */
	int64		max_bytes;		/* 0 = no limit */
	char		evict;			/* r(eject), o(ldest), s(oonest) */
} SwarmSpace;

#define swarm_space_limited(space)	((space)->max_entries > 0 || (space)->max_bytes > 0)

extern void swarm_space_init(void);

/*
 * The namespace of that name, for `role` to use.  Errors: 42704 if it does not
 * exist or the role may do nothing with it, 42501 if it may not do that.
 */
extern void swarm_space_use(const char *name, Oid role, SwarmNeed need,
							SwarmSpace *space);

/* By id; false if there is none (dropped, or not yet restored). */
extern bool swarm_space_by_id(int32 id, SwarmSpace *space);

/* Error 42704 if it was dropped, looked up in the table as it is now. */
extern void swarm_space_still_there(const SwarmSpace *space, const char *name);
extern bool swarm_space_may(int32 id, Oid role, SwarmNeed need);

/* The table of entries and its index on (namespace, key). */
extern Oid	swarm_memory_table(bool logged);
extern Oid	swarm_memory_index(bool logged);

/*
 * Before writing to a namespace: take the locks for it, and look again what it
 * is, for who alters it may have been waited for.
 */
extern void swarm_space_begin_write(SwarmSpace *space);

/* Locks on a namespace, to the end of the transaction. */
extern void swarm_space_lock(int32 id, LOCKMODE mode);
extern void swarm_space_unlock(int32 id, LOCKMODE mode);

/* ------------------------------------------------------------------------
 * The tables (memory_store.c)
 * ------------------------------------------------------------------------ */

/* The statements on entries, each with a saved plan for either table. */
typedef enum SwarmMemoryStatement
{
	STATEMENT_STORE,
	STATEMENT_REPLACE,
	STATEMENT_DELETE,
	STATEMENT_EXPIRE,
	STATEMENT_EXPIRE_NOW,
	STATEMENT_PERSIST,
	STATEMENT_INCREMENT,
	STATEMENT_COUNT,
	STATEMENT_COUNT_EXPIRED,
	STATEMENT_PURGE,
	STATEMENT_EVICT_OLDEST,
	STATEMENT_EVICT_SOONEST,
	STATEMENTS
} SwarmMemoryStatement;

/* Run one between swarm_spi_begin() and _end(); returns the number of rows. */
extern uint64 swarm_memory_run(SwarmMemoryStatement statement, bool logged,
							   Datum *values, const char *nulls);

/* The same for a query that is to see what is committed now, at any isolation level. */
extern uint64 swarm_memory_run_now(SwarmMemoryStatement statement, bool logged,
								   Datum *values);

/* An entry as read from its table; Datums point into the reader's slot. */
typedef struct SwarmMemoryRow
{
	int64		version;
	bool		expires;
	TimestampTz expires_at;
	TimestampTz created_at;
	TimestampTz updated_at;
	Datum		tags;
	Datum		value;
} SwarmMemoryRow;

typedef struct SwarmMemoryReader
{
	Relation	table;			/* NULL: cannot be read here */
	Relation	index;
	TupleTableSlot *slot;
	int32		space;
} SwarmMemoryReader;

/*
 * Read entries by key with the snapshot a query of this transaction would
 * have now.  swarm_memory_read() returns false for what is not there or has
 * expired.
 */
extern void swarm_memory_reader_open(SwarmMemoryReader *reader, const SwarmSpace *space);
extern bool swarm_memory_read(SwarmMemoryReader *reader, text *key, SwarmMemoryRow *row);

/* The same, whether it has expired or not; the row is in the reader's slot. */
extern bool swarm_memory_find(SwarmMemoryReader *reader, const text *key);
extern void swarm_memory_reader_close(SwarmMemoryReader *reader);

/* What is to be stored. */
typedef struct SwarmMemoryStore
{
	text	   *key;
	Datum		value;			/* jsonb, detoasted */
	bool		has_ttl;
	Interval	ttl;
	bool		if_absent;
	bool		has_expected;
	int64		expected;
	bool		keep_ttl;
	Datum		tags;			/* text[]; 0 = none */
	Datum		embedding;		/* real[]; 0 = compute it */
} SwarmMemoryStore;

/* Store; returns the new version, or 0 if a condition did not hold. */
extern int64 swarm_memory_store_entry(SwarmSpace *space, Oid owner,
									  const SwarmMemoryStore *what);

/*
 * Storing without a statement (memory_direct.c): what is stored, as it
 * stands in the row.
 */
typedef struct SwarmMemoryWrite
{
	text	   *key;
	Datum		value;
	Datum		tags;
	int32		size;
	Oid			owner;
	TimestampTz now;
	bool		expires;
	TimestampTz expires_at;
	bool		keep_ttl;
	bool		if_absent;
	int64		expected;		/* version; 0 = any */
} SwarmMemoryWrite;

/*
 * False if that is not possible: use a statement.  Else the new version, 0 if the
 * expected one is not there.
 */
extern bool swarm_memory_store_direct(const SwarmSpace *space, const SwarmMemoryWrite *write,
									  int64 *version);

/* Write what an entry of a namespace with recall is found by. */
extern void swarm_memory_recall(const SwarmSpace *space, text *key, Datum value,
								Datum embedding);
extern void swarm_memory_forget(const SwarmSpace *space, Datum key);

/* Error 22023 or 22004 unless it can be a key. */
extern void swarm_memory_check_key(const text *key);

/* When a ttl that begins now ends: false = never.  Error 22023 if it is over. */
extern bool swarm_memory_expiry(const Interval *ttl, TimestampTz now,
								TimestampTz *expires_at);

/* ------------------------------------------------------------------------
 * Shared memory (memory_shmem.c)
 * ------------------------------------------------------------------------ */

#define WAITERS			128
#define SWEPT_DATABASES 256

/* One of very many words that guard the cached entries hashed to it. */
typedef struct SwarmCacheGuard
{
	pg_atomic_uint32 committing;	/* transactions that wrote it and are
									 * between marking it and being visible */
	pg_atomic_uint32 changes;	/* counts both ends of such a time */
} SwarmCacheGuard;

typedef struct SwarmMemoryShared
{
	int			tranche;		/* of the cache's partitions */
	TimestampTz started;		/* of this shared memory */
	SwarmCacheGuard all;		/* the same for everything */
	SwarmCacheGuard removals;	/* from what counts for limits; ends when they
								 * are counted */
	ConditionVariable removals_end;
	ConditionVariable waiters[WAITERS];

	/* databases with something to sweep, allocated under the lock */
	pg_atomic_uint32 databases[SWEPT_DATABASES];
	pg_atomic_uint64 next_sweep[SWEPT_DATABASES];

	pg_atomic_uint64 bypasses;
	pg_atomic_uint64 table_hits;
	pg_atomic_uint64 table_misses;
	pg_atomic_uint64 invalidations;
	pg_atomic_uint64 recorded;
	pg_atomic_uint64 dropped;
	uint32		nguards;
	SwarmCacheGuard guards[FLEXIBLE_ARRAY_MEMBER];
} SwarmMemoryShared;

extern SwarmMemoryShared *swarm_memory_shared;
extern LWLock *swarm_memory_lock;	/* quotas; databases */
extern HTAB *swarm_memory_quotas;
extern int	swarm_cache_size_kb;
extern int	swarm_cache_ttl_s;
extern int	swarm_sweep_interval_ms;

extern void swarm_memory_shmem_init(void);

/* The hash of an entry, for guards, waiters and the cache. */
extern uint32 swarm_memory_hash(Oid table, int32 space, const char *key, int length);
extern ConditionVariable *swarm_memory_waiters(uint32 hash);
extern void swarm_memory_wake_all(void);

/* ------------------------------------------------------------------------
 * Changes (memory_change.c)
 * ------------------------------------------------------------------------ */

extern void swarm_memory_change_init(void);

/* Has this transaction written entries? */
extern bool swarm_memory_written(void);

/* What a row trigger notes of one it does not see. */
extern void swarm_memory_note(Oid table, int32 space, const text *key, TimestampTz sweep_at);

/* Something is to be swept then.  No error. */
extern void swarm_memory_announce_due(TimestampTz due);

/* A database is gone.  No error; nor in the others of this name. */
extern void swarm_memory_sweep_forget(Oid database);

/*
 * Before a change of what hashes so, or with `all` of everything, can be seen,
 * and after.  No errors.
 */
extern void swarm_guards_begin(const uint32 *hashes, int n, bool all);
extern void swarm_guards_end(const uint32 *hashes, int n, bool all);

/* ------------------------------------------------------------------------
 * Prepared transactions (memory_prepared.c)
 * ------------------------------------------------------------------------ */

extern void swarm_memory_prepared_init(void);

/* This transaction, which has written what hashes so, is about to be prepared. */
extern void swarm_memory_prepare(const uint32 *hashes, int n, bool all);
extern void swarm_memory_prepared_pre_commit(void);

/* It has ended; it may have ended a prepared one.  No errors. */
extern void swarm_memory_prepared_end_of_transaction(XactEvent event);

/* ------------------------------------------------------------------------
 * The cache (memory_cache.c)
 * ------------------------------------------------------------------------ */

typedef struct SwarmCacheKey
{
	Oid			database;
	Oid			table;
	int32		space;
	uint32		hash;
	int32		length;
	const char *key;
} SwarmCacheKey;

/* What a reader remembers between its miss and its fill. */
typedef struct SwarmCacheTicket
{
	bool		fill;
	uint32		changes;
	uint32		all_changes;
} SwarmCacheTicket;

extern Size swarm_cache_bytes(void);
extern void swarm_cache_attach(bool found);
extern void swarm_cache_key(SwarmCacheKey *key, Oid table, int32 space, const text *name);

/*
 * The value, palloc'd, or NULL.  With NULL, `ticket` is what
 * swarm_cache_put() needs; take it before the snapshot that reads the table.
 */
extern struct varlena *swarm_cache_get(const SwarmCacheKey *key, SwarmCacheTicket *ticket);
extern void swarm_cache_put(const SwarmCacheKey *key, const SwarmCacheTicket *ticket,
							bool expires, TimestampTz expires_at,
							const struct varlena *value);

/* Sums for the view. */
typedef struct SwarmCacheStats
{
	uint64		size;
	uint64		used;
	uint64		entries;
	uint64		hits;
	uint64		misses;
	uint64		fills;
	uint64		evictions;
} SwarmCacheStats;

extern void swarm_cache_stats(SwarmCacheStats *stats);

/* ------------------------------------------------------------------------
 * Limits (memory_quota.c)
 * ------------------------------------------------------------------------ */

/* Before a write to a limited namespace: nobody may count meanwhile. */
extern void swarm_quota_begin(const SwarmSpace *space);

/*
 * A row was written: account for it, and make room or raise 53400 if it is
 * one too many.  `key` is not evicted.  What replaces an expired row is one
 * removed and one added.
 */
extern void swarm_quota_change(const SwarmSpace *space, int entries, int64 bytes,
							   Datum key);

/* A table was truncated: count again, and once more if that is rolled back. */
extern void swarm_quota_truncated(void);

/* A prepared transaction of this database ended: count again. */
extern void swarm_quota_forget_all(void);

extern void swarm_quota_forget_database(Oid database);
extern void swarm_quota_pre_commit(void);
extern void swarm_quota_end_of_transaction(void);
extern Size swarm_quota_hash_size(void);
extern void swarm_quota_attach(void);

/* ------------------------------------------------------------------------
 * Origins (memory_origin.c)
 * ------------------------------------------------------------------------ */

#define SWARM_FILL_BATCH	16	/* keys a job fetches */

extern void swarm_origin_init(void);

/*
 * A key was not there: have it filled from the origin, if the namespace has
 * one and nobody has asked.  Raises no error, writes nothing, does not wait.
 */
extern void swarm_origin_ask(const SwarmSpace *space, const text *key);

/*
 * The job that fills takes the key, unless another one has it; and gives it
 * back.  What was not stored is not asked for again for a while.
 */
extern bool swarm_origin_fill_begin(int32 space, const text *key);
extern void swarm_origin_fill_end(int32 space, const text *key, bool stored);

extern void swarm_origin_forget_database(Oid database);
extern void swarm_origin_stats(uint64 *asks, uint64 *fills, uint64 *absent);

/* ------------------------------------------------------------------------
 * Dropped databases (memory_database.c)
 * ------------------------------------------------------------------------ */

extern void swarm_memory_database_init(void);

/* ------------------------------------------------------------------------
 * Hooks of users (memory_hook.c)
 * ------------------------------------------------------------------------ */

/*
 * Call those of the event; before it, 38000 if one refuses.  The function's
 * first argument is the namespace; value 0: it is not known, or gone.
 */
extern void swarm_memory_hook(SwarmHookPhase phase, const char *event,
							  FunctionCallInfo fcinfo, text *key, Datum value);

#endif							/* SWARM_MEMORY_MEMORY_INT_H */
