/*
 * memory_direct.c
 *	  Store an entry without a statement.
 *
 * An INSERT ... ON CONFLICT starts and ends an executor, locks the row before it
 * updates it, queues a trigger and fetches both versions of the row again for it:
 * more work than the write.  Here the row is found by its key, as a read does, and
 * updated at once, or inserted as the executor would (speculatively: another may be
 * inserting the key); what the trigger would do is done directly.
 *
 * Whatever is not simple is left to the statement: a row that others are
 * changing, a key that they are inserting, a snapshot older than the statement, limits,
 * a table to which somebody has added triggers or constraints.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_trigger.h"
#include "executor/executor.h"
#include "storage/lmgr.h"
#include "utils/datum.h"
#include "utils/rel.h"
#include "utils/reltrigger.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "memory/memory_int.h"

#define OUR_TRIGGERS	2		/* of a table of entries */

static bool is_as_created(Relation table);
static int64 next_row(const SwarmMemoryWrite *write, TupleTableSlot *old, TupleTableSlot *new);
static int64 first_row(int32 space, const SwarmMemoryWrite *write, TupleTableSlot *new);
static bool update(Relation table, ItemPointer tid, TupleTableSlot *new);
static bool insert(Relation table, Oid key_index, TupleTableSlot *new);

bool
swarm_memory_store_direct(const SwarmSpace *space, const SwarmMemoryWrite *write, int64 *version)
{
	SwarmMemoryReader reader;
	TupleTableSlot *new;
	bool		done = false;

	if (IsolationUsesXactSnapshot() || swarm_space_limited(space))
		return false;
	/* what this statement has stored before is to be seen */
	CommandCounterIncrement();
	swarm_memory_reader_open(&reader, space);
	new = MakeSingleTupleTableSlot(RelationGetDescr(reader.table), &TTSOpsVirtual);
	if (!is_as_created(reader.table))
		 /* by a statement */ ;
	else if (swarm_memory_find(&reader, write->key))
	{
		if (!write->if_absent)
		{
			*version = next_row(write, reader.slot, new);
			done = *version == 0 || update(reader.table, &reader.slot->tts_tid, new);
		}
	}
	else if (write->expected == 0)
	{
		*version = first_row(space->id, write, new);
		done = insert(reader.table, RelationGetRelid(reader.index), new);
	}
	if (done && *version != 0)
	{
		bool		isnull;
		Datum		sweep_at = slot_getattr(new, MEMORY_SWEEP_AT, &isnull);

		swarm_memory_note(RelationGetRelid(reader.table), space->id, write->key,
						  isnull ? DT_NOEND : DatumGetTimestampTz(sweep_at));
	}
	ExecDropSingleTupleTableSlot(new);
	swarm_memory_reader_close(&reader);
	CommandCounterIncrement();
	return done;
}

/*
 * is_as_created: nothing happens at a write but what happens here.
 */
static bool
is_as_created(Relation table)
{
	TriggerDesc *triggers = table->trigdesc;
	TupleConstr *constraints = RelationGetDescr(table)->constr;

	if (triggers == NULL || triggers->numtriggers != OUR_TRIGGERS || table->rd_rules != NULL ||
		(constraints != NULL && (constraints->num_check > 0 || constraints->has_generated_stored)))
		return false;
	for (int i = 0; i < OUR_TRIGGERS; i++)
	{
		if (triggers->triggers[i].tgenabled != TRIGGER_FIRES_ALWAYS)
			return false;
	}
	return RelationGetNumberOfAttributes(table) == MEMORY_VALUE;
}

/*
 * next_row: what STATEMENT_STORE and STATEMENT_REPLACE make of the row there
 * is.  Returns its version, 0 if the one expected is not there.
 */
static int64
next_row(const SwarmMemoryWrite *write, TupleTableSlot *old, TupleTableSlot *new)
{
	Datum	   *v = new->tts_values;
	bool	   *null = new->tts_isnull;
	int64		version;
	TimestampTz expires_at;
	TimestampTz sweep_at;
	bool		live;
	bool		swept;

	slot_getallattrs(old);
	memcpy(v, old->tts_values, MEMORY_VALUE * sizeof(Datum));
	memcpy(null, old->tts_isnull, MEMORY_VALUE * sizeof(bool));
	expires_at = DatumGetTimestampTz(v[MEMORY_EXPIRES_AT - 1]);
	sweep_at = DatumGetTimestampTz(v[MEMORY_SWEEP_AT - 1]);
	live = null[MEMORY_EXPIRES_AT - 1] || expires_at > write->now;
	version = DatumGetInt64(v[MEMORY_VERSION - 1]);
	if (write->expected != 0 && (!live || version != write->expected))
		return 0;
	version = live ? version + 1 : 1;
	v[MEMORY_VERSION - 1] = Int64GetDatum(version);
	if (!(write->keep_ttl && live))
	{
		v[MEMORY_EXPIRES_AT - 1] = TimestampTzGetDatum(write->expires_at);
		null[MEMORY_EXPIRES_AT - 1] = !write->expires;
		/* as SWEEP_AT() */
		swept = !null[MEMORY_SWEEP_AT - 1];
		if (write->expires && !(swept && sweep_at <= write->expires_at + USECS_PER_MINUTE))
		{
			v[MEMORY_SWEEP_AT - 1] = TimestampTzGetDatum(write->expires_at);
			null[MEMORY_SWEEP_AT - 1] = false;
		}
	}
	if (!live)
		v[MEMORY_CREATED_AT - 1] = TimestampTzGetDatum(write->now);
	v[MEMORY_UPDATED_AT - 1] = TimestampTzGetDatum(write->now);
	v[MEMORY_SIZE - 1] = Int32GetDatum(write->size);
	v[MEMORY_OWNER - 1] = ObjectIdGetDatum(write->owner);
	v[MEMORY_TAGS - 1] = write->tags;
	v[MEMORY_VALUE - 1] = write->value;
	ExecStoreVirtualTuple(new);
	new->tts_tableOid = old->tts_tableOid;
	return version;
}

/*
 * first_row: what STATEMENT_STORE inserts.
 */
static int64
first_row(int32 space, const SwarmMemoryWrite *write, TupleTableSlot *new)
{
	Datum	   *v = new->tts_values;
	bool	   *null = new->tts_isnull;

	memset(null, false, MEMORY_VALUE * sizeof(bool));
	v[MEMORY_NAMESPACE - 1] = Int32GetDatum(space);
	v[MEMORY_KEY - 1] = PointerGetDatum(write->key);
	v[MEMORY_VERSION - 1] = Int64GetDatum(1);
	v[MEMORY_EXPIRES_AT - 1] = v[MEMORY_SWEEP_AT - 1] = TimestampTzGetDatum(write->expires_at);
	null[MEMORY_EXPIRES_AT - 1] = null[MEMORY_SWEEP_AT - 1] = !write->expires;
	v[MEMORY_CREATED_AT - 1] = v[MEMORY_UPDATED_AT - 1] = TimestampTzGetDatum(write->now);
	v[MEMORY_SIZE - 1] = Int32GetDatum(write->size);
	v[MEMORY_OWNER - 1] = ObjectIdGetDatum(write->owner);
	v[MEMORY_TAGS - 1] = write->tags;
	v[MEMORY_VALUE - 1] = write->value;
	ExecStoreVirtualTuple(new);
	return 1;
}

/* ------------------------------------------------------------------------
 * Writing
 * ------------------------------------------------------------------------ */

/* What entering a row in the indexes needs. */
typedef struct Indexes
{
	EState	   *estate;
	ResultRelInfo *result;
} Indexes;

static void
indexes_open(Indexes *indexes, Relation table)
{
	indexes->estate = CreateExecutorState();
	indexes->result = makeNode(ResultRelInfo);
	InitResultRelInfo(indexes->result, table, 0, NULL, 0);
	ExecOpenIndices(indexes->result, false);
}

static void
indexes_close(Indexes *indexes)
{
	ExecCloseIndices(indexes->result);
	FreeExecutorState(indexes->estate);
}

/*
 * update: false if somebody else has changed the row meanwhile.
 */
static bool
update(Relation table, ItemPointer tid, TupleTableSlot *new)
{
	TM_FailureData failure;
	LockTupleMode mode;
	SwarmUpdateIndexes which;
	TM_Result	result;

	result = table_tuple_update(table, tid, new, GetCurrentCommandId(true), GetActiveSnapshot(),
								InvalidSnapshot, true, &failure, &mode, &which);
	if (result == TM_Updated || result == TM_Deleted)
		return false;
	if (result != TM_Ok)
		elog(ERROR, "unexpected result %d of an update of \"%s\"", result,
			 RelationGetRelationName(table));
	if (swarm_update_needs_indexes(which))
	{
		Indexes		indexes;

		indexes_open(&indexes, table);
		list_free(swarm_insert_index_tuples(indexes.result, new, indexes.estate, true, NULL, NIL));
		indexes_close(&indexes);
	}
	return true;
}

/*
 * insert: false if somebody else has inserted the key, or is about to.
 */
static bool
insert(Relation table, Oid key_index, TupleTableSlot *new)
{
	List	   *arbiter = list_make1_oid(key_index);
	bool		conflict = false;
	Indexes		indexes;
	uint32		token;

	indexes_open(&indexes, table);
	token = SpeculativeInsertionLockAcquire(GetCurrentTransactionId());
	table_tuple_insert_speculative(table, new, GetCurrentCommandId(true), 0, NULL, token);
	list_free(swarm_insert_index_tuples(indexes.result, new, indexes.estate, false, &conflict, arbiter));
	table_tuple_complete_speculative(table, new, token, !conflict);
	/* who waits for the outcome knows it */
	SpeculativeInsertionLockRelease(GetCurrentTransactionId());
	indexes_close(&indexes);
	return !conflict;
}
