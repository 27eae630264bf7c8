/*
 * hnsw_nulls.c
 *	  Rows whose value is null and that came before the first vector.
 *
 * An index that does not know its dimensions has no slots to store rows in, so
 * such rows are left out, and the metapage remembers that there were some.  A
 * scan of such an index that has returned everything else reads the table for
 * nulls, by its snapshot.  That costs about what reading all codes costs, and
 * only those pay who read on to the end.
 */
#include "postgres.h"

#include "access/relscan.h"
#include "access/tableam.h"
#include "catalog/index.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "hnsw/hnsw_int.h"

typedef struct Nulls
{
	ItemPointerData *tids;
	int64		count;
	int64		room;
} Nulls;

static void add_null(Relation rel, ItemPointer tid, Datum *values,
					 bool *isnull, bool alive, void *state);

/*
 * swarm_hnsw_leave_out_null: note that a null has no place in the index yet,
 * and open the index again: somebody may have fixed its dimensions just now.
 */
void
swarm_hnsw_leave_out_null(Relation rel)
{
	Buffer		buffer = ReadBuffer(rel, SWARM_HNSW_META_BLOCK);
	SwarmHnswMeta *meta;

	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	meta = swarm_hnsw_meta(BufferGetPage(buffer));
	if (meta->dims == 0 && !meta->nulls_left_out)
	{
		GenericXLogState *state = GenericXLogStart(rel);

		/* As a whole: a build has not logged it before. */
		meta = swarm_hnsw_meta(swarm_hnsw_register(state, buffer, true));
		meta->nulls_left_out = true;
		GenericXLogFinish(state);
	}
	UnlockReleaseBuffer(buffer);
	swarm_hnsw_open(rel);
}

/*
 * swarm_hnsw_find_nulls: the rows of the table, as the scan's snapshot has
 * them and the predicate takes them, whose value is null.  Returns how many;
 * *tids is in the current context.
 */
int64
swarm_hnsw_find_nulls(IndexScanDesc scan, ItemPointerData **tids)
{
	Nulls		nulls = {.room = 64};
	IndexInfo  *info = BuildIndexInfo(scan->indexRelation);

	nulls.tids = palloc(nulls.room * sizeof(ItemPointerData));
	/* By the snapshot of the table scan that it is given, which it ends. */
	info->ii_Concurrent = true;
	table_index_build_scan(scan->heapRelation, scan->indexRelation, info, true,
						   false, add_null, &nulls,
						   table_beginscan_strat(scan->heapRelation,
												 scan->xs_snapshot, 0, NULL,
												 true, true));
	*tids = nulls.tids;
	return nulls.count;
}

/*
 * add_null: for each row of that.
 */
static void
add_null(Relation rel, ItemPointer tid, Datum *values, bool *isnull,
		 bool alive, void *state)
{
	Nulls	   *nulls = state;

	if (!isnull[0])
		return;
	if (nulls->count == nulls->room)
	{
		nulls->room *= 2;
		nulls->tids = repalloc_huge(nulls->tids,
									nulls->room * sizeof(ItemPointerData));
	}
	nulls->tids[nulls->count++] = *tid;
}
