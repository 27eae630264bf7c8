/*
 * job_store.c
 *	  The tables of live and finished jobs.
 *
 * Rows are formed and written here without the executor: an enqueue is one
 * heap insert and one index insert, an end is one heap delete and one insert
 * into the history partition of the day.  Live rows are found through the
 * primary key only.  The statement triggers on _job do not see these writes;
 * they exist for everybody else's.
 *
 * Relations are looked up by name each time (two syscache probes): their
 * OIDs change when the extension is dropped and created again.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/fault.h"
#include "base/spi.h"
#include "job/job_int.h"

#define REMEMBERED_IDS	8

/* Columns of swarm._job, in order. */
enum
{
	JOB_ID, JOB_QUEUE, JOB_KIND, JOB_OWNER, JOB_PRIORITY, JOB_MAX_ATTEMPTS,
	JOB_TIMEOUT, JOB_RUN_AT, JOB_ENQUEUED_AT, JOB_BLOCKED, JOB_UNIQUE_KEY,
	JOB_ARGS, JOB_TAGS, JOB_COLUMNS
};

/* Columns of swarm._job_history, in order. */
enum
{
	HIST_ID, HIST_QUEUE, HIST_KIND, HIST_OWNER, HIST_PRIORITY, HIST_STATE,
	HIST_ATTEMPTS, HIST_MAX_ATTEMPTS, HIST_TIMEOUT, HIST_RUN_AT,
	HIST_ENQUEUED_AT, HIST_STARTED_AT, HIST_FINISHED_AT, HIST_UNIQUE_KEY,
	HIST_ARGS, HIST_TAGS, HIST_RESULT, HIST_ERROR, HIST_COLUMNS
};

/* The last name looked up, while names_context is set. */
typedef struct KnownName
{
	int32		id;				/* 0 = none */
	char	   *name;
} KnownName;

static MemoryContext names_context = NULL;
static KnownName known_queue;
static KnownName known_kind;
static KnownName known_handler;

static HeapTuple fetch_by_key(Relation rel, const char *index, AttrNumber column,
							  RegProcedure eq, Datum key);
static bool delete_live(Relation rel, ItemPointer tid);
static void delete_attempt(int64 id);
static void append_history(const SwarmJobRow *row, const SwarmJobEnd *end);
static char *name_by_id(KnownName *known, const char *table, const char *pkey, int32 id, int column);

/* ------------------------------------------------------------------------
 * Finding relations
 * ------------------------------------------------------------------------ */

/*
 * swarm_job_relation: OID of a table, index or sequence in schema swarm.
 */
Oid
swarm_job_relation(const char *name)
{
	Oid			nsp = get_namespace_oid("swarm", true);
	Oid			relid = OidIsValid(nsp) ? get_relname_relid(name, nsp) : InvalidOid;

	if (!OidIsValid(relid))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"swarm.%s\" does not exist", name),
				 errhint("Is the extension pg_swarm installed in this database, and at the version of its library?")));
	return relid;
}

int64
swarm_job_next_id(void)
{
	return nextval_internal(swarm_job_relation("_job_id_seq"), false);
}

/* ------------------------------------------------------------------------
 * Live jobs
 * ------------------------------------------------------------------------ */

/*
 * swarm_job_insert: a new live job.  Takes RowExclusiveLock on the table
 * until the end of the transaction.
 */
void
swarm_job_insert(SwarmJobRow *row)
{
	Relation	rel = table_open(swarm_job_relation("_job"), RowExclusiveLock);
	Datum		values[JOB_COLUMNS];
	bool		nulls[JOB_COLUMNS] = {0};
	HeapTuple	tuple;

	values[JOB_ID] = Int64GetDatum(row->id);
	values[JOB_QUEUE] = Int32GetDatum(row->queue);
	values[JOB_KIND] = Int32GetDatum(row->kind);
	values[JOB_OWNER] = ObjectIdGetDatum(row->owner);
	values[JOB_PRIORITY] = Int16GetDatum(row->priority);
	values[JOB_MAX_ATTEMPTS] = Int32GetDatum(row->max_attempts);
	values[JOB_TIMEOUT] = Int64GetDatum(row->timeout_us);
	values[JOB_RUN_AT] = TimestampTzGetDatum(row->run_at);
	values[JOB_ENQUEUED_AT] = TimestampTzGetDatum(row->enqueued_at);
	values[JOB_BLOCKED] = BoolGetDatum(row->blocked);
	nulls[JOB_UNIQUE_KEY] = row->unique_key == NULL;
	values[JOB_UNIQUE_KEY] = row->unique_key ? CStringGetTextDatum(row->unique_key) : (Datum) 0;
	values[JOB_ARGS] = row->args;
	values[JOB_TAGS] = row->tags;

	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	CatalogTupleInsert(rel, tuple);
	row->tid = tuple->t_self;
	heap_freetuple(tuple);
	table_close(rel, NoLock);
}

/*
 * swarm_job_fetch: read a live job, as committed now or written by this
 * transaction.  False if there is none.
 */
bool
swarm_job_fetch(int64 id, SwarmJobRow *row)
{
	Relation	rel = table_open(swarm_job_relation("_job"), AccessShareLock);
	HeapTuple	tuple = fetch_by_key(rel, "_job_pkey", 1, F_INT8EQ, Int64GetDatum(id));
	Datum		values[JOB_COLUMNS];
	bool		nulls[JOB_COLUMNS];

	if (tuple == NULL)
	{
		table_close(rel, NoLock);
		return false;
	}
	heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
	memset(row, 0, sizeof(*row));
	row->id = id;
	row->queue = DatumGetInt32(values[JOB_QUEUE]);
	row->kind = DatumGetInt32(values[JOB_KIND]);
	row->owner = DatumGetObjectId(values[JOB_OWNER]);
	row->priority = DatumGetInt16(values[JOB_PRIORITY]);
	row->max_attempts = DatumGetInt32(values[JOB_MAX_ATTEMPTS]);
	row->timeout_us = DatumGetInt64(values[JOB_TIMEOUT]);
	row->run_at = DatumGetTimestampTz(values[JOB_RUN_AT]);
	row->enqueued_at = DatumGetTimestampTz(values[JOB_ENQUEUED_AT]);
	row->blocked = DatumGetBool(values[JOB_BLOCKED]);
	if (!nulls[JOB_UNIQUE_KEY])
		row->unique_key = TextDatumGetCString(values[JOB_UNIQUE_KEY]);
	row->args = PointerGetDatum(PG_DETOAST_DATUM_COPY(values[JOB_ARGS]));
	row->tags = PointerGetDatum(PG_DETOAST_DATUM_COPY(values[JOB_TAGS]));
	row->tid = tuple->t_self;
	row->own = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
	heap_freetuple(tuple);
	table_close(rel, NoLock);
	return true;
}

/*
 * fetch_by_key: the one row whose `column`, the key of a unique index, equals
 * `key`, copied, or NULL.
 */
static HeapTuple
fetch_by_key(Relation rel, const char *index, AttrNumber column,
			 RegProcedure eq, Datum key)
{
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyData scan_key;
	SysScanDesc scan;
	HeapTuple	tuple;

	ScanKeyInit(&scan_key, column, BTEqualStrategyNumber, eq, key);
	scan_key.sk_collation = DEFAULT_COLLATION_OID;
	scan = systable_beginscan(rel, swarm_job_relation(index), true, snapshot, 1, &scan_key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		tuple = heap_copytuple(tuple);
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	return tuple;
}

/* ------------------------------------------------------------------------
 * The end of a job
 * ------------------------------------------------------------------------ */

/*
 * swarm_job_end: in the caller's transaction, move the job from _job to the
 * history and free what it holds.  False, and nothing changed, if another
 * transaction has ended it: the caller must not commit the job's effects.
 * Waits for such a transaction if it is still open, and for one that records
 * an attempt.
 */
bool
swarm_job_end(const SwarmJobRow *row, const SwarmJobEnd *end)
{
	Relation	rel = table_open(swarm_job_relation("_job"), RowExclusiveLock);
	ItemPointerData tid = row->tid;

	SWARM_FAULT("job.end");
	if (!delete_live(rel, &tid))
	{
		table_close(rel, NoLock);
		return false;
	}
	table_close(rel, NoLock);
	delete_attempt(row->id);
	append_history(row, end);

	if (row->unique_key != NULL || row->blocked)
	{
		SwarmSpi	spi;
		Oid			types[] = {INT8OID};
		Datum		values[] = {Int64GetDatum(row->id)};

		swarm_spi_begin(&spi);
		if (row->unique_key != NULL)
		{
			Oid			key_types[] = {INT8OID, OIDOID, INT4OID, TEXTOID};
			Datum		key_values[] = {Int64GetDatum(row->id),
				ObjectIdGetDatum(row->owner), Int32GetDatum(row->queue),
			CStringGetTextDatum(row->unique_key)};

			swarm_spi_execute_latest("DELETE FROM swarm._job_key "
									 "WHERE owner = $2 AND queue = $3 AND key = $4 AND job = $1",
									 4, key_types, key_values, NULL);
		}
		if (row->blocked)
			swarm_spi_execute_latest("DELETE FROM swarm._job_dep WHERE child = $1",
									 1, types, values, NULL);
		swarm_spi_end(&spi);
	}
	return true;
}

/*
 * delete_live: delete the row, waiting for whoever else has; false if it is
 * gone.
 */
static bool
delete_live(Relation rel, ItemPointer tid)
{
	TM_FailureData failure;
	TM_Result	result;

	result = heap_delete(rel, tid, GetCurrentCommandId(true),
						 InvalidSnapshot, true, &failure, false);
	if (result == TM_Ok)
	{
		CommandCounterIncrement();
		return true;
	}
	return false;
}

/*
 * delete_attempt: what is known of the job's attempts, if anything.  The live
 * row is deleted already, so nobody writes another, and the latest snapshot
 * sees the one there is, where that of a transaction with REPEATABLE READ
 * might not.
 */
static void
delete_attempt(int64 id)
{
	Relation	rel = table_open(swarm_job_relation("_job_attempt"), RowExclusiveLock);
	HeapTuple	tuple = fetch_by_key(rel, "_job_attempt_pkey", 1, F_INT8EQ, Int64GetDatum(id));

	if (tuple != NULL)
	{
		CatalogTupleDelete(rel, &tuple->t_self);
		heap_freetuple(tuple);
	}
	table_close(rel, NoLock);
}

static void
append_history(const SwarmJobRow *row, const SwarmJobEnd *end)
{
	TimestampTz now = swarm_now();
	Relation	rel = swarm_job_history_open(now);
	Datum		values[HIST_COLUMNS];
	bool		nulls[HIST_COLUMNS] = {0};
	char	   *queue = swarm_job_queue_name(row->queue);
	char	   *kind = swarm_job_kind_name(row->kind);
	HeapTuple	tuple;

	values[HIST_ID] = Int64GetDatum(row->id);
	values[HIST_QUEUE] = CStringGetTextDatum(queue ? queue : "(dropped)");
	values[HIST_KIND] = CStringGetTextDatum(kind ? kind : "(dropped)");
	values[HIST_OWNER] = ObjectIdGetDatum(row->owner);
	values[HIST_PRIORITY] = Int16GetDatum(row->priority);
	values[HIST_STATE] = Int16GetDatum(end->state);
	values[HIST_ATTEMPTS] = Int32GetDatum(end->attempts);
	values[HIST_MAX_ATTEMPTS] = Int32GetDatum(row->max_attempts);
	values[HIST_TIMEOUT] = Int64GetDatum(row->timeout_us);
	values[HIST_RUN_AT] = TimestampTzGetDatum(row->run_at);
	values[HIST_ENQUEUED_AT] = TimestampTzGetDatum(row->enqueued_at);
	nulls[HIST_STARTED_AT] = end->started == 0;
	values[HIST_STARTED_AT] = TimestampTzGetDatum(end->started);
	values[HIST_FINISHED_AT] = TimestampTzGetDatum(now);
	nulls[HIST_UNIQUE_KEY] = row->unique_key == NULL;
	values[HIST_UNIQUE_KEY] = row->unique_key ? CStringGetTextDatum(row->unique_key) : (Datum) 0;
	values[HIST_ARGS] = row->args;
	values[HIST_TAGS] = row->tags;
	nulls[HIST_RESULT] = end->result == (Datum) 0;
	values[HIST_RESULT] = end->result;
	nulls[HIST_ERROR] = end->error == NULL;
	values[HIST_ERROR] = end->error ? CStringGetTextDatum(end->error) : (Datum) 0;

	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	CatalogTupleInsert(rel, tuple);
	heap_freetuple(tuple);
	table_close(rel, NoLock);
}

/*
 * swarm_job_keep_live: nobody else ends the job until the caller's transaction
 * does, as with the row that a foreign key points to.  False if somebody has;
 * waits for a transaction that is about to.
 */
bool
swarm_job_keep_live(const SwarmJobRow *row)
{
	Relation	rel = table_open(swarm_job_relation("_job"), RowShareLock);
	HeapTupleData tuple = {.t_self = row->tid};
	TM_FailureData failure;
	TM_Result	result;
	Buffer		buffer;

	result = heap_lock_tuple(rel, &tuple, GetCurrentCommandId(true), LockTupleKeyShare,
							 LockWaitBlock, false, &buffer, &failure);
	ReleaseBuffer(buffer);
	table_close(rel, NoLock);
	return result == TM_Ok;
}

/*
 * swarm_job_record_attempt: the job stays live; its next attempt is due at
 * `run_at`.  False, and nothing changed, if another transaction has ended it.
 */
bool
swarm_job_record_attempt(const SwarmJobRow *row, int attempts, TimestampTz run_at,
						 const char *error, bool crashed)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID, INT4OID, TIMESTAMPTZOID, TEXTOID, BOOLOID};
	Datum		values[5];
	char		nulls[5] = {' ', ' ', ' ', ' ', ' '};

	if (!swarm_job_keep_live(row))
		return false;
	values[0] = Int64GetDatum(row->id);
	values[1] = Int32GetDatum(attempts);
	values[2] = TimestampTzGetDatum(run_at);
	values[3] = error ? CStringGetTextDatum(error) : (Datum) 0;
	values[4] = BoolGetDatum(crashed);
	if (error == NULL)
		nulls[3] = 'n';
	swarm_spi_begin(&spi);
	swarm_spi_execute_latest("INSERT INTO swarm._job_attempt (id, attempts, run_at, error, crashed) "
							 "VALUES ($1, $2, $3, $4, $5) ON CONFLICT (id) DO UPDATE "
							 "SET attempts = EXCLUDED.attempts, run_at = EXCLUDED.run_at, "
							 "error = EXCLUDED.error, crashed = EXCLUDED.crashed",
							 5, types, values, nulls);
	swarm_spi_end(&spi);
	return true;
}

/* ------------------------------------------------------------------------
 * Queues and kinds
 * ------------------------------------------------------------------------ */

char *
swarm_job_queue_name(int32 id)
{
	if (id == SWARM_QUEUE_DEFAULT)
		return "default";
	return name_by_id(&known_queue, "_queue", "_queue_pkey", id, 2);
}

char *
swarm_job_kind_name(int32 id)
{
	if (id == SWARM_KIND_SQL)
		return "sql";
	return name_by_id(&known_kind, "_handler", "_handler_pkey", id, 2);
}

char *
swarm_job_handler(int32 kind)
{
	if (kind == SWARM_KIND_SQL)
		return NULL;
	return name_by_id(&known_handler, "_handler", "_handler_pkey", kind, 4);
}

/*
 * swarm_job_names_keep: from now on remember the last name of each sort, in
 * the current memory context; NULL forgets.  For a runner, which asks for the
 * same names several times a job, within one transaction.
 */
void
swarm_job_names_keep(MemoryContext context)
{
	names_context = context;
	known_queue.id = known_kind.id = known_handler.id = 0;
}

/*
 * name_by_id: a text column of the row with that id, or NULL.
 */
static char *
name_by_id(KnownName *known, const char *table, const char *pkey, int32 id, int column)
{
	Relation	rel;
	HeapTuple	tuple;
	Datum		value;
	bool		isnull = true;
	char	   *name = NULL;

	if (known->id == id)
		return known->name;
	rel = table_open(swarm_job_relation(table), AccessShareLock);
	tuple = fetch_by_key(rel, pkey, 1, F_INT4EQ, Int32GetDatum(id));
	if (tuple != NULL)
	{
		value = heap_getattr(tuple, column, RelationGetDescr(rel), &isnull);
		if (!isnull)
			name = TextDatumGetCString(value);
		heap_freetuple(tuple);
	}
	table_close(rel, NoLock);
	if (names_context != NULL)
	{
		known->name = name ? MemoryContextStrdup(names_context, name) : NULL;
		known->id = id;
	}
	return name;
}

/* ------------------------------------------------------------------------
 * Ids of names, for enqueue
 *
 * A backend that enqueues looks the same few names up again and again; that
 * was a twentieth of an enqueue.  It remembers what it has found, and forgets
 * all when a generation in shared memory says that somebody has changed a
 * queue or a kind.  What the current transaction has changed is not
 * remembered, and nothing is while there is such a change.
 * ------------------------------------------------------------------------ */

typedef struct RememberedId
{
	uint64		generation;		/* 0 = unused */
	int32		id;
	bool		external;
	char		name[SWARM_NAME_MAX + 1];
} RememberedId;

static RememberedId remembered_queues[REMEMBERED_IDS];
static RememberedId remembered_kinds[REMEMBERED_IDS];
static int	names_changed_here = 0;

/*
 * swarm_job_names_changed: the current transaction changes a queue or kind
 * (+1), or a transaction of this session that did is over (-1).
 */
void
swarm_job_names_changed(int by)
{
	names_changed_here += by;
	if (swarm_job_shared != NULL)
		pg_atomic_fetch_add_u64(&swarm_job_shared->names_generation, 1);
}

static RememberedId *
recall_id(RememberedId *list, const char *name)
{
	uint64		generation;

	if (swarm_job_shared == NULL || names_changed_here != 0)
		return NULL;
	generation = pg_atomic_read_u64(&swarm_job_shared->names_generation);
	for (int i = 0; i < REMEMBERED_IDS; i++)
	{
		if (list[i].generation == generation && strcmp(list[i].name, name) == 0)
			return &list[i];
	}
	return NULL;
}

/* `generation` was read before the lookup. */
static void
remember_id(RememberedId *list, uint64 generation, const char *name, int32 id,
			bool external)
{
	static int	next = 0;
	RememberedId *r = &list[next++ % REMEMBERED_IDS];

	if (names_changed_here != 0 || strlen(name) > SWARM_NAME_MAX)
		return;
	r->generation = generation;
	r->id = id;
	r->external = external;
	strcpy(r->name, name);
}

static uint64
names_generation(void)
{
	return swarm_job_shared == NULL ? 0 :
		pg_atomic_read_u64(&swarm_job_shared->names_generation);
}

/*
 * find_by_name: id of the queue or kind of that name, 0 if there is none;
 * *external: it is a kind without handler.
 */
static int32
find_by_name(const char *name, RememberedId *remembered, const char *table,
			 const char *index, bool *external)
{
	RememberedId *known = recall_id(remembered, name);
	uint64		generation = names_generation();
	Relation	rel;
	HeapTuple	tuple;
	bool		isnull;
	int32		id = 0;

	*external = false;
	if (known != NULL)
	{
		*external = known->external;
		return known->id;
	}
	rel = table_open(swarm_job_relation(table), AccessShareLock);
	tuple = fetch_by_key(rel, index, 2, F_TEXTEQ, CStringGetTextDatum(name));
	if (tuple != NULL)
	{
		id = DatumGetInt32(heap_getattr(tuple, 1, RelationGetDescr(rel), &isnull));
		if (remembered == remembered_kinds)
			(void) heap_getattr(tuple, 4, RelationGetDescr(rel), external);
		remember_id(remembered, generation, name, id, *external);
		heap_freetuple(tuple);
	}
	table_close(rel, NoLock);
	return id;
}

int32
swarm_job_find_queue(const char *name)
{
	bool		external;

	if (strcmp(name, "default") == 0)
		return SWARM_QUEUE_DEFAULT;
	return find_by_name(name, remembered_queues, "_queue", "_queue_name_key", &external);
}

int32
swarm_job_find_kind(const char *name, bool *external)
{
	*external = false;
	if (strcmp(name, "sql") == 0)
		return SWARM_KIND_SQL;
	return find_by_name(name, remembered_kinds, "_handler", "_handler_kind_key", external);
}
