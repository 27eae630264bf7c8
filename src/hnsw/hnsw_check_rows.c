/*
 * hnsw_check_rows.c
 *	  The check of an index against its table: both put their rows into one
 *	  sort, and neighbours in it must match.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/tableam.h"
#include "catalog/index.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/rel.h"
#include "utils/typcache.h"
#include "utils/uuid.h"

#include "base/compat.h"
#include "hnsw/hnsw_check_int.h"

/*
 * What is sorted to compare index and table: in the form of a uuid, as that is
 * the type of this size whose order is that of its bytes.
 */
typedef struct RowKey
{
	uint8		block[4];		/* big endian */
	uint8		offset[2];
	uint8		source;			/* 0 index, 1 table */
	uint8		state;
	uint8		node[4];
	uint8		unused[4];
} RowKey;

StaticAssertDecl(sizeof(RowKey) == UUID_LEN, "a row key is as long as a uuid");

static void check_table_row(Relation rel, ItemPointer tid, Datum *values,
							bool *isnull, bool alive, void *state);

/*
 * swarm_check_begin_rows: make the sort.
 */
void
swarm_check_begin_rows(SwarmCheck *c)
{
	TypeCacheEntry *type = lookup_type_cache(UUIDOID, TYPECACHE_LT_OPR);

	c->rows = tuplesort_begin_datum(UUIDOID, type->lt_opr, InvalidOid, false,
									work_mem, NULL, TUPLESORT_NONE);
}

/*
 * swarm_check_add_row: let a row take part in the comparison with the table.
 */
void
swarm_check_add_row(SwarmCheck *c, const ItemPointerData *tid, RowSource source,
					SwarmNodeId node, unsigned int state)
{
	BlockNumber block = ItemPointerGetBlockNumberNoCheck(tid);
	OffsetNumber offset = ItemPointerGetOffsetNumberNoCheck(tid);
	RowKey		key = {
		.block = {block >> 24, block >> 16, block >> 8, block},
		.offset = {offset >> 8, offset},
		.source = source,
		.state = state,
		.node = {node >> 24, node >> 16, node >> 8, node}
	};

	tuplesort_putdatum(c->rows, PointerGetDatum(&key), false);
}

/*
 * check_table_row: a visible row of the table.
 *
 * A null that came before the first vector is in no page: invariant 16.
 */
static void
check_table_row(Relation rel, ItemPointer tid, Datum *values, bool *isnull,
				bool alive, void *state)
{
	SwarmCheck *c = state;

	if (!isnull[0])
		swarm_check_add_row(c, tid, FROM_TABLE, SWARM_NODE_NONE, 0);
}

/*
 * line_pointer: has the table something where a node says that its row is?
 * *buffer is the page that was looked at last.
 */
static bool
line_pointer(SwarmCheck *c, BlockNumber block, OffsetNumber offset,
			 BlockNumber blocks, Buffer *buffer)
{
	Page		page;
	bool		used;

	if (block >= blocks)
		return false;
	if (*buffer == InvalidBuffer || BufferGetBlockNumber(*buffer) != block)
	{
		if (*buffer != InvalidBuffer)
			ReleaseBuffer(*buffer);
		*buffer = ReadBuffer(c->heap, block);
	}
	LockBuffer(*buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(*buffer);
	used = !PageIsNew(page) && offset >= FirstOffsetNumber &&
		offset <= PageGetMaxOffsetNumber(page) &&
		ItemIdIsUsed(PageGetItemId(page, offset));
	LockBuffer(*buffer, BUFFER_LOCK_UNLOCK);
	return used;
}

/*
 * swarm_check_rows: invariants 15 and 16: put the rows of the table beside those of
 * the index.
 */
void
swarm_check_rows(SwarmCheck *c, Snapshot snapshot)
{
	IndexInfo  *info = BuildIndexInfo(c->rel);
	TableScanDesc scan = table_beginscan_strat(c->heap, snapshot, 0, NULL, true,
											   true);
	bool		is_heap = c->heap->rd_tableam == GetHeapamTableAmRoutine();
	BlockNumber blocks;
	Buffer		buffer = InvalidBuffer;
	RowKey		last = {0};
	bool		any = false;
	Datum		datum;
	bool		isnull;

	/* Taken as if concurrent, it makes do with a snapshot. */
	info->ii_Concurrent = true;
	info->ii_Unique = false;
	info->ii_ExclusionOps = NULL;
	table_index_build_scan(c->heap, c->rel, info, true, false, check_table_row,
						   c, scan);
	tuplesort_performsort(c->rows);

	blocks = RelationGetNumberOfBlocks(c->heap);
	while (swarm_tuplesort_getdatum(c->rows, &datum, &isnull))
	{
		RowKey		key = *(RowKey *) DatumGetPointer(datum);
		BlockNumber block = (uint32) key.block[0] << 24 | key.block[1] << 16 |
		key.block[2] << 8 | key.block[3];
		OffsetNumber offset = key.offset[0] << 8 | key.offset[1];
		SwarmNodeId node = (uint32) key.node[0] << 24 | key.node[1] << 16 |
		key.node[2] << 8 | key.node[3];
		bool		same = any && memcmp(&last, &key, offsetof(RowKey, source)) == 0;

		CHECK_FOR_INTERRUPTS();
		swarm_tuplesort_freedatum(datum);
		if (key.source == FROM_TABLE && !same)
			swarm_check_problem(c, SWARM_NODE_NONE, "row is missing",
								"Row (%u,%u) of the table is not in the index.", block,
								offset);
		else if (key.source == FROM_INDEX && same)
			swarm_check_problem(c, node, "row is there twice", "Row (%u,%u), state %s.",
								block, offset, swarm_hnsw_state_name(key.state));
		else if (key.source == FROM_INDEX && is_heap &&
				 !line_pointer(c, block, offset, blocks, &buffer))
			swarm_check_problem(c, node, "row does not exist",
								"The table has no row (%u,%u); state %s.", block, offset,
								swarm_hnsw_state_name(key.state));
		last = key;
		any = true;
	}
	if (buffer != InvalidBuffer)
		ReleaseBuffer(buffer);
}
