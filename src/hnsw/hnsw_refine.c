/*
 * hnsw_refine.c
 *	  Better distances for the candidates of a scan: by both codes, or by the
 *	  rows themselves.
 */
#include "postgres.h"

#include "access/relscan.h"
#include "access/tableam.h"
#include "catalog/index.h"
#include "executor/executor.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "hnsw/hnsw_prefetch.h"
#include "hnsw/hnsw_scan_int.h"

static void refine_by_code(SwarmScan *scan, Relation rel, SwarmCandidate *c);
static bool refine_by_row(IndexScanDesc desc, SwarmCandidate *c);

/*
 * swarm_scan_refine: make the distances of some candidates better, and let them be ready.
 */
void
swarm_scan_refine(IndexScanDesc desc, SwarmCandidate *batch, int n)
{
	SwarmScan  *scan = desc->opaque;

	if (scan->rerank == SWARM_RERANK_INDEX)
		for (int i = 0; i < n; i++)
			swarm_hnsw_prefetch(scan->index, SWARM_STREAM_REFINE, batch[i].id, 0,
								scan->index->layout.slot_size[SWARM_STREAM_REFINE],
								true);
	for (int i = 0; i < n; i++)
	{
		/* One that a scan returned before needs no better distance. */
		if (swarm_idset_has(&scan->returned, batch[i].id))
			continue;
		if (scan->rerank == SWARM_RERANK_INDEX)
			refine_by_code(scan, desc->indexRelation, &batch[i]);
		else if (!refine_by_row(desc, &batch[i]))
			continue;
		swarm_hnsw_push_min(&scan->ready, batch[i]);
	}
}

/*
 * refine_by_code: the distance by both codes.
 */
static void
refine_by_code(SwarmScan *scan, Relation rel, SwarmCandidate *c)
{
	SwarmHnswIndex *index = scan->index;
	Buffer		node_buffer = swarm_hnsw_read_node(index, rel, c->id,
												   BUFFER_LOCK_SHARE);
	SwarmNode  *node = swarm_hnsw_node(index, BufferGetPage(node_buffer), c->id);
	Buffer		buffer;
	SwarmRefine *refine;
	int			parity = node->flags & SWARM_NODE_GENERATION;

	scan->search->refined++;
	swarm_hnsw_query_refresh(index, scan->query);
	/* Both pages in the order of all: node, refine. */
	buffer = swarm_hnsw_read(index, rel, SWARM_STREAM_REFINE,
							 c->id / index->layout.per_page[SWARM_STREAM_REFINE],
							 BUFFER_LOCK_SHARE);
	refine = swarm_hnsw_refine(index, BufferGetPage(buffer), c->id);
	if (scan->query->ready[parity])
		c->distance = swarm_hnsw_score(scan->query, parity, node->norm2,
									   refine->scale,
									   swarm_codec_refine_dot(&index->codec,
															  scan->query->codec[parity],
															  node->code,
															  refine->code));
	UnlockReleaseBuffer(buffer);
	UnlockReleaseBuffer(node_buffer);
}

/*
 * refine_by_row: the exact distance; false when the row is not visible.
 */
static bool
refine_by_row(IndexScanDesc desc, SwarmCandidate *c)
{
	SwarmScan  *scan = desc->opaque;
	ItemPointerData tid;
	SwarmNodeId twin;
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];
	bool		again = false;
	bool		visible = true;
	const float *v;
	void	   *tofree;
	int			dims;

	if (!swarm_scan_tid(scan, desc->indexRelation, c, &tid, &twin))
		return false;
	if (scan->fetch == NULL)
	{
		scan->fetch = table_index_fetch_begin(desc->heapRelation);
		scan->slot = table_slot_create(desc->heapRelation, NULL);
		/* A column needs no executor. */
		scan->attribute = desc->indexRelation->rd_index->indkey.values[0];
		if (scan->attribute == InvalidAttrNumber)
		{
			scan->info = BuildIndexInfo(desc->indexRelation);
			scan->estate = CreateExecutorState();
		}
	}
	scan->search->fetched++;
	swarm_hnsw_check_row(desc->indexRelation, desc->heapRelation, &tid,
						 &scan->heap_blocks);
	if (!table_index_fetch_tuple(scan->fetch, &tid, desc->xs_snapshot,
								 scan->slot, &again, NULL))
		visible = false;
	else if (scan->attribute != InvalidAttrNumber)
	{
		values[0] = slot_getattr(scan->slot, scan->attribute, &isnull[0]);
		visible = !isnull[0];
	}
	else
	{
		GetPerTupleExprContext(scan->estate)->ecxt_scantuple = scan->slot;
		FormIndexDatum(scan->info, scan->slot, scan->estate, values, isnull);
		visible = !isnull[0];
	}
	if (visible)
	{
		v = swarm_hnsw_floats(&scan->index->opclass, values[0], &dims, &tofree);
		if (dims == scan->exact_dims)
			c->distance = swarm_hnsw_exact(scan->index->opclass.metric,
										   scan->exact_query, v, dims);
		if (tofree != NULL)
			pfree(tofree);
	}
	ExecClearTuple(scan->slot);
	if (scan->estate != NULL)
		ResetPerTupleExprContext(scan->estate);
	/* Of an invisible row with twins these are still to be returned. */
	return visible || twin != SWARM_NODE_NONE;
}

/*
 * swarm_scan_end_fetch: let go of the table.
 */
void
swarm_scan_end_fetch(SwarmScan *scan)
{
	if (scan->fetch != NULL)
		table_index_fetch_end(scan->fetch);
	if (scan->slot != NULL)
		ExecDropSingleTupleTableSlot(scan->slot);
	if (scan->estate != NULL)
		FreeExecutorState(scan->estate);
	scan->fetch = NULL;
	scan->slot = NULL;
	scan->estate = NULL;
	scan->info = NULL;
}
