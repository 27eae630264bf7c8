/*
 * memory_overwrite.c
 *	  Store over an entry that is there, without a statement.
 *
 * Most stores are of keys that exist.  An INSERT ... ON CONFLICT starts and ends
 * an executor, locks the row before it updates it, queues a trigger and fetches both
 * versions of the row again for it: more work than the update.  Here the row is found by its
 * key, as a read does, and updated at once; what the trigger would do is done
 * directly.
 *
 * Whatever is not simple is left to the statement: a key that is not there, a
 * row that others are changing, a snapshot older than the statement, limits,
 * a table to which somebody has added triggers or constraints.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_trigger.h"
#include "executor/executor.h"
#include "utils/datum.h"
#include "utils/rel.h"
#include "utils/reltrigger.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "memory/memory_int.h"

#define OUR_TRIGGERS	2		/* of a table of entries */

static bool is_as_created(Relation table);
static int64 next_row(const SwarmMemoryWrite *write, TupleTableSlot *old, TupleTableSlot *new);
static bool update(Relation table, ItemPointer tid, TupleTableSlot *new);
static void insert_into_indexes(Relation table, TupleTableSlot *new);

bool
swarm_memory_overwrite(const SwarmSpace *space, const SwarmMemoryWrite *write, int64 *version)
{
	SwarmMemoryReader reader;
	TupleTableSlot *new = NULL;
	bool		found;
	bool		done = false;

	if (IsolationUsesXactSnapshot() || swarm_space_limited(space) || write->if_absent)
		return false;
	/* what this statement has stored before is to be seen */
	CommandCounterIncrement();
	swarm_memory_reader_open(&reader, space);
	found = is_as_created(reader.table) && swarm_memory_find(&reader, write->key);
	if (found)
	{
		new = MakeSingleTupleTableSlot(RelationGetDescr(reader.table), &TTSOpsVirtual);
		*version = next_row(write, reader.slot, new);
		done = *version == 0 || update(reader.table, &reader.slot->tts_tid, new);
	}
	if (done && *version != 0)
	{
		bool		isnull;
		Datum		sweep_at = slot_getattr(new, MEMORY_SWEEP_AT, &isnull);

		swarm_memory_note(RelationGetRelid(reader.table), space->id, write->key,
						  isnull ? DT_NOEND : DatumGetTimestampTz(sweep_at));
	}
	if (new != NULL)
		ExecDropSingleTupleTableSlot(new);
	swarm_memory_reader_close(&reader);
	CommandCounterIncrement();
	return done;
}

/*
 * is_as_created: nothing happens at an update but what happens here.
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
 * update: false if somebody else has changed the row meanwhile.
 */
static bool
update(Relation table, ItemPointer tid, TupleTableSlot *new)
{
	TM_FailureData failure;
	LockTupleMode mode;
	SwarmUpdateIndexes indexes;
	TM_Result	result;

	result = table_tuple_update(table, tid, new, GetCurrentCommandId(true), GetActiveSnapshot(),
								InvalidSnapshot, true, &failure, &mode, &indexes);
	switch (result)
	{
		case TM_Ok:
			if (swarm_update_needs_indexes(indexes))
				insert_into_indexes(table, new);
			return true;
		case TM_Updated:
		case TM_Deleted:
			return false;
		default:
			elog(ERROR, "unexpected result %d of an update of \"%s\"", result,
				 RelationGetRelationName(table));
	}
}

static void
insert_into_indexes(Relation table, TupleTableSlot *new)
{
	EState	   *estate = CreateExecutorState();
	ResultRelInfo *result = makeNode(ResultRelInfo);

	InitResultRelInfo(result, table, 0, NULL, 0);
	ExecOpenIndices(result, false);
	list_free(swarm_insert_index_tuples(result, new, estate));
	ExecCloseIndices(result);
	FreeExecutorState(estate);
}
