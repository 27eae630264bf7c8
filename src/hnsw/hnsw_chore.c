/*
 * hnsw_chore.c
 *	  The fold in the background: rows that inserts have left pending are
 *	  linked by a runner, piece by piece.
 *
 * An insert that leaves more than qhnsw.flush_after rows pending asks for it
 * (swarm_hnsw_ask_fold); at its commit a runner is told (base/chore.h), which
 * calls fold().
 *
 * The runner must not be in anybody's way, nor in his own.  It locks the index
 * only, with ShareUpdateExclusiveLock and only if it gets it at once: that
 * lets inserts, searches and VACUUM go on, keeps away whatever moves or removes
 * the index, and tells who waits for it, which a weaker lock does not.  As it
 * holds no lock of the table, whoever locks the table first, as DROP TABLE,
 * meets it at the index; there it ends by an error between two rows.  Where the
 * rows of the table are read, for a new centre, the table is locked in the same
 * way.  What was linked stays linked; the rest is done later.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lmgr.h"
#include "utils/guc.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/chore.h"
#include "base/compat.h"
#include "hnsw/hnsw_int.h"

/* Rows linked in one transaction. */
#define PIECE_ROWS		1000

static int	fold_chore;

/* What the runner has locked and gives up when others want it; or NULL. */
static Relation locked_index = NULL;
static Relation locked_heap = NULL;

static SwarmChoreResult fold(Oid relid);
static SwarmChoreResult fold_piece(Relation rel);
static void give_way(Relation rel);

/*
 * swarm_hnsw_chore_init: from swarm_hnsw_init.
 */
void
swarm_hnsw_chore_init(void)
{
	fold_chore = swarm_chore_register("fold", fold);
}

/*
 * swarm_hnsw_ask_fold: an insert has left a row pending: is it time?  Once a
 * transaction or savepoint, however many rows it inserts.
 */
void
swarm_hnsw_ask_fold(SwarmHnswIndex *index, Relation rel)
{
	TransactionId xid = GetCurrentTransactionIdIfAny();

	if (swarm_hnsw_flush_after < 0 ||
		index->meta.pending <= (uint32) swarm_hnsw_flush_after ||
		!TransactionIdIsValid(xid) || xid == index->asked ||
		RelationUsesLocalBuffers(rel))
		return;
	swarm_chore_ask(fold_chore, RelationGetRelid(rel));
	index->asked = xid;
}

/*
 * fold: the chore.  The index may be gone, or be another relation by now.
 */
static SwarmChoreResult
fold(Oid relid)
{
	Relation	rel;
	SwarmChoreResult result = SWARM_CHORE_DONE;

	if (!ConditionalLockRelationOid(relid, ShareUpdateExclusiveLock))
		return SWARM_CHORE_LATER;
	rel = try_relation_open(relid, NoLock);
	if (rel == NULL)
		return SWARM_CHORE_DONE;
	if (rel->rd_rel->relkind == RELKIND_INDEX &&
		rel->rd_indam->amgettuple == swarm_hnsw_get_tuple &&
		rel->rd_index->indisvalid && !RelationUsesLocalBuffers(rel))
	{
		PG_TRY();
		{
			locked_index = rel;
			result = fold_piece(rel);
		}
		PG_FINALLY();
		{
			locked_index = locked_heap = NULL;
		}
		PG_END_TRY();
	}
	relation_close(rel, NoLock);
	return result;
}

/*
 * fold_piece: some rows, with the rights of the table's owner, as VACUUM would.
 */
static SwarmChoreResult
fold_piece(Relation rel)
{
	char	   *activity = psprintf("fold of index %s", RelationGetRelationName(rel));
	int			guc_level = NewGUCNestLevel();
	Oid			user;
	int			sec_context;
	int64		count;

	pgstat_report_activity(STATE_RUNNING, activity);
	GetUserIdAndSecContext(&user, &sec_context);
	SetUserIdAndSecContext(rel->rd_rel->relowner,
						   sec_context | SECURITY_RESTRICTED_OPERATION);
	swarm_restrict_search_path();

	count = swarm_hnsw_fold_some(rel, false, PIECE_ROWS);

	AtEOXact_GUC(false, guc_level);
	SetUserIdAndSecContext(user, sec_context);
	if (count < 0)
		return SWARM_CHORE_LATER;
	return count == PIECE_ROWS ? SWARM_CHORE_MORE : SWARM_CHORE_DONE;
}

/*
 * swarm_hnsw_interrupts: CHECK_FOR_INTERRUPTS() of a long piece of work on an
 * index, which in a runner gives way to others, and holds back no VACUUM by a
 * snapshot of the catalogs.
 */
void
swarm_hnsw_interrupts(void)
{
	CHECK_FOR_INTERRUPTS();
	if (locked_index == NULL)
		return;
	InvalidateCatalogSnapshot();
	give_way(locked_index);
	if (locked_heap != NULL)
		give_way(locked_heap);
}

static void
give_way(Relation rel)
{
	if (LockHasWaitersRelation(rel, ShareUpdateExclusiveLock))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("fold gives way to a command that locks relation \"%s\"",
						RelationGetRelationName(rel))));
}

/*
 * swarm_hnsw_open_table: the table of an index, for reading rows in a fold.
 *
 * Errors: 55P03 in a runner when somebody has it.
 */
Relation
swarm_hnsw_open_table(Relation rel)
{
	Oid			heap = rel->rd_index->indrelid;

	if (locked_index == NULL)
		return table_open(heap, AccessShareLock);
	if (!ConditionalLockRelationOid(heap, ShareUpdateExclusiveLock))
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("could not lock the table of index \"%s\"",
						RelationGetRelationName(rel))));
	locked_heap = table_open(heap, NoLock);
	return locked_heap;
}

/*
 * swarm_hnsw_close_table: the end of that.
 */
void
swarm_hnsw_close_table(Relation heap)
{
	table_close(heap, locked_heap != NULL ? ShareUpdateExclusiveLock : AccessShareLock);
	locked_heap = NULL;
}
