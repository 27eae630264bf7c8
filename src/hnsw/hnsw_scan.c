/*
 * hnsw_scan.c
 *	  Rows in the order of their distance from a query, as many as are asked
 *	  for.
 *
 * A scan goes through phases.  It takes the pending rows and the first
 * ef_search rows of the graph; when those are used up it goes on in the graph,
 * each time for more rows at once, until reading all codes in the order of the
 * file is cheaper; that finds every row that is left.  Small indexes are read
 * that way from the start.  Rows without a distance come last.
 *
 * Candidates come with an estimate from their traversal code.  Before one is
 * returned its distance is made better, by the refine code or by the row
 * itself, and no other candidate may have an estimate that, less the error it
 * may have, is nearer.
 *
 * Only snapshots that see one state of the table are accepted: between reading
 * a node and fetching its row nothing is locked, and what took the place of a
 * row meanwhile is invisible to such a snapshot.
 */
#include "postgres.h"

#include <math.h>

#include "access/relscan.h"
#include "pgstat.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "base/fault.h"
#include "hnsw/hnsw_scan_int.h"

/* Up to so many nodes all codes are scored: it takes as long as a walk. */
#define FLAT_NODES		768

/* From an ef of this share of the nodes on, too. */
#define FLAT_SHARE		48

/* Each time a scan goes on in the graph, it asks for this many times more. */
#define GROWTH			4

/* Standard deviations that an estimate may be off before we miss a row. */
#define BOUND			1.9f

/* Candidates refined together. */
#define REFINE_BATCH	8

/* The scan of this session that began last, and what the last to end did. */
static SwarmScan *current_scan = NULL;
static SwarmHnswCounters last_counters;
static bool counted = false;

static void start(IndexScanDesc desc);
static void set_query(IndexScanDesc desc, SwarmScan *scan);
static bool more(IndexScanDesc desc);
static void take_best(SwarmScan *scan);
static bool take_rest(SwarmScan *scan);
static bool next_candidate(IndexScanDesc desc, SwarmCandidate *c);
static bool next_null(IndexScanDesc desc);
static void unpin(void *arg);
static void count_scan(SwarmScan *scan);

/*
 * swarm_hnsw_begin_scan: ambeginscan.
 */
IndexScanDesc
swarm_hnsw_begin_scan(Relation rel, int nkeys, int norderbys)
{
	IndexScanDesc desc = RelationGetIndexScan(rel, nkeys, norderbys);
	SwarmScan  *scan = palloc0(sizeof(SwarmScan));

	scan->context = AllocSetContextCreate(CurrentMemoryContext, "qhnsw scan",
										  ALLOCSET_DEFAULT_SIZES);
	scan->unpin.func = unpin;
	scan->unpin.arg = scan;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &scan->unpin);
	desc->opaque = scan;
	return desc;
}

/*
 * unpin: the scan's memory goes, by its end or by an error.
 */
static void
unpin(void *arg)
{
	SwarmScan  *scan = arg;

	if (scan->index != NULL)
		swarm_hnsw_unpin(scan->index);
	scan->index = NULL;
	if (current_scan == scan)
		current_scan = NULL;
}

/*
 * counters_of: what a search has done.
 */
static SwarmHnswCounters
counters_of(const SwarmHnswSearch *search)
{
	SwarmHnswCounters counters = {0};

	if (search != NULL)
	{
		counters.hops = search->hops;
		counters.pages = search->pages;
		counters.scored = search->scored;
		counters.refined = search->refined;
		counters.fetched = search->fetched;
	}
	return counters;
}

/*
 * count_scan: keep what a scan did before its memory goes.
 */
static void
count_scan(SwarmScan *scan)
{
	swarm_hnsw_scan_counters(scan, &scan->total);
	if (current_scan == scan)
	{
		last_counters = counters_of(scan->search);
		counted = true;
		current_scan = NULL;
	}
	scan->search = NULL;
}

/*
 * swarm_hnsw_scan_counters: what a scan (the opaque part of its descriptor) has
 * done in all its rescans.
 */
void
swarm_hnsw_scan_counters(const void *opaque, SwarmHnswCounters *counters)
{
	const SwarmScan *scan = opaque;
	SwarmHnswCounters now = counters_of(scan->search);

	counters->hops = scan->total.hops + now.hops;
	counters->pages = scan->total.pages + now.pages;
	counters->scored = scan->total.scored + now.scored;
	counters->refined = scan->total.refined + now.refined;
	counters->fetched = scan->total.fetched + now.fetched;
}

/*
 * swarm_hnsw_last_counters: what the scan that began last in this session has
 * done, or had done at its end; false when there was none.
 */
bool
swarm_hnsw_last_counters(SwarmHnswCounters *counters)
{
	*counters = current_scan != NULL ? counters_of(current_scan->search) :
		last_counters;
	return current_scan != NULL || counted;
}

/*
 * swarm_hnsw_rescan: amrescan.
 */
void
swarm_hnsw_rescan(IndexScanDesc desc, ScanKey keys, int nkeys,
				  ScanKey orderbys, int norderbys)
{
	SwarmScan  *scan = desc->opaque;

	if (keys != NULL && desc->numberOfKeys > 0)
		memmove(desc->keyData, keys, desc->numberOfKeys * sizeof(ScanKeyData));
	if (orderbys != NULL && desc->numberOfOrderBys > 0)
		memmove(desc->orderByData, orderbys,
				desc->numberOfOrderBys * sizeof(ScanKeyData));
	count_scan(scan);
	swarm_scan_end_fetch(scan);
	MemoryContextReset(scan->context);
	scan->phase = PHASE_START;
}

/*
 * swarm_hnsw_end_scan: amendscan.
 */
void
swarm_hnsw_end_scan(IndexScanDesc desc)
{
	SwarmScan  *scan = desc->opaque;

	count_scan(scan);
	swarm_scan_end_fetch(scan);
	unpin(scan);
	MemoryContextDelete(scan->context);
	scan->context = NULL;
}

/*
 * swarm_hnsw_get_tuple: amgettuple: the next row.
 */
bool
swarm_hnsw_get_tuple(IndexScanDesc desc, ScanDirection direction)
{
	SwarmScan  *scan = desc->opaque;
	Relation	rel = desc->indexRelation;
	MemoryContext old = MemoryContextSwitchTo(scan->context);
	SwarmCandidate c;
	bool		found = false;

	Assert(ScanDirectionIsForward(direction));
	if (scan->phase == PHASE_START)
		start(desc);

	desc->xs_recheck = false;
	desc->xs_recheckorderby = false;
	while (!found && scan->left > 0)
	{
		if (scan->in_family)
		{
			found = swarm_scan_next_twin(scan, rel, &desc->xs_heaptid);
			continue;
		}
		if (!next_candidate(desc, &c))
		{
			found = next_null(desc);
			break;
		}
		SWARM_FAULT("hnsw.scan.next");
		if (!swarm_idset_add(&scan->returned, c.id))
			continue;
		/* Found too late for its place in the order. */
		if (scan->iterative == SWARM_ITERATIVE_STRICT && c.distance < scan->last)
			continue;
		scan->last = c.distance;
		found = swarm_scan_tid(scan, rel, &c, &desc->xs_heaptid, &scan->twin);
		if (scan->twin != SWARM_NODE_NONE)
			swarm_scan_begin_family(scan, &c, &desc->xs_heaptid);
		found = found && swarm_scan_new_row(scan, &desc->xs_heaptid);
	}
	if (found)
	{
		swarm_hnsw_check_row(rel, desc->heapRelation, &desc->xs_heaptid,
							 &scan->heap_blocks);
		scan->left--;
	}
	MemoryContextSwitchTo(old);
	return found;
}

/*
 * start: the first phase.
 */
static void
start(IndexScanDesc desc)
{
	SwarmScan  *scan = desc->opaque;
	Relation	rel = desc->indexRelation;
	SwarmHnswIndex *index;

	if (desc->numberOfOrderBys != 1 || desc->numberOfKeys != 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("access method \"qhnsw\" scans only in the order of one distance")));
	if (!IsMVCCSnapshot(desc->xs_snapshot))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("access method \"qhnsw\" needs an MVCC snapshot")));
	pgstat_count_index_scan(rel);
	swarm_count_search(desc);

	unpin(scan);
	index = swarm_hnsw_open(rel);
	index->pins++;
	scan->index = index;
	current_scan = scan;
	memset(&scan->waiting, 0, sizeof(SwarmCandidates));
	memset(&scan->ready, 0, sizeof(SwarmCandidates));
	memset(&scan->odd, 0, sizeof(SwarmCandidates));
	memset(&scan->returned, 0, sizeof(SwarmIdSet));
	swarm_idset_reset(&scan->returned);
	scan->odd_next = 0;
	scan->marked = false;
	scan->last = -INFINITY;
	scan->twin = SWARM_NODE_NONE;
	scan->in_family = false;
	scan->heap_blocks = 0;
	scan->rows = NULL;
	scan->by_row = scan->unlinked = scan->astray = false;
	scan->nulls_left_out = index->meta.nulls_left_out;
	scan->nulls = NULL;
	scan->null_count = scan->null_next = 0;
	scan->left = swarm_hnsw_max_scan_tuples();
	scan->iterative = swarm_hnsw_iterative();
	scan->ef = swarm_hnsw_ef_search(rel);
	scan->rerank = swarm_hnsw_rerank(rel);
	scan->any_order = false;
	if (index->meta.dims == 0)
	{
		scan->phase = PHASE_NULLS;
		return;
	}
	set_query(desc, scan);
	if (scan->rerank == SWARM_RERANK_INDEX && index->codec.refine_bits == 0)
		scan->rerank = SWARM_RERANK_OFF;
	scan->search = swarm_hnsw_search_new(index, rel, scan->query);
	scan->search->keep = scan->iterative != SWARM_ITERATIVE_OFF;

	if (scan->any_order || index->meta.nodes <= FLAT_NODES ||
		scan->ef >= index->meta.nodes / FLAT_SHARE)
	{
		scan->phase = PHASE_FLAT;
		swarm_scan_flat(desc);
	}
	else
	{
		SwarmCandidate starts[SWARM_HNSW_STARTS];
		int			count;

		scan->phase = PHASE_GRAPH;
		swarm_scan_pending(scan, rel);
		count = swarm_hnsw_search_descend(scan->search, 0, starts);
		if (count > 0)
		{
			swarm_hnsw_search_reset(scan->search);
			swarm_hnsw_search_layer(scan->search, 0, scan->ef, starts, count);
		}
		take_best(scan);
	}
	scan->by_row = scan->unlinked;
}

/*
 * set_query: prepare the vector that the rows are ordered by.
 */
static void
set_query(IndexScanDesc desc, SwarmScan *scan)
{
	SwarmHnswIndex *index = scan->index;
	ScanKey		key = &desc->orderByData[0];
	bool		inner = index->opclass.metric == SWARM_METRIC_IP;
	const float *v;
	void	   *tofree;
	int			dims;
	int			parity = index->meta.generation & 1;

	scan->query = swarm_hnsw_query_new(index);
	if (key->sk_flags & SK_ISNULL)
	{
		scan->any_order = true;
		return;
	}
	v = swarm_hnsw_floats(&index->opclass, key->sk_argument, &dims, &tofree);
	scan->exact_query = v;
	scan->exact_dims = dims;
	if (swarm_hnsw_coordinates(index, v, dims, true, scan->query->rotated) ==
		SWARM_VALUE_ZERO)
	{
		scan->any_order = true;
		return;
	}
	swarm_hnsw_query_set(index, scan->query, scan->query->rotated, inner);
	scan->slack = BOUND * swarm_codec_error(index->codec.bits, index->dims) *
		scan->query->norm2[parity] * (inner ? 1.0f : 2.0f);
}

/*
 * more: candidates for a scan that has returned all it had; false at its end.
 */
static bool
more(IndexScanDesc desc)
{
	SwarmScan  *scan = desc->opaque;

	for (;;)
		switch (scan->phase)
		{
			case PHASE_GRAPH:
				if (scan->iterative == SWARM_ITERATIVE_OFF)
				{
					/* Rows outside of the graph may be left. */
					scan->waiting.count = scan->ready.count = 0;
					scan->phase = PHASE_END;
					break;
				}
				if ((int64) scan->ef * GROWTH <
					scan->index->meta.nodes / FLAT_SHARE)
				{
					scan->ef *= GROWTH;
					/* Codes may be of another generation by now. */
					swarm_hnsw_open(desc->indexRelation);
					if (swarm_hnsw_search_resume(scan->search, scan->ef))
					{
						take_best(scan);
						return true;
					}
				}
				scan->phase = PHASE_FLAT;
				swarm_scan_flat(desc);
				if (scan->waiting.count > 0)
					return true;
				break;

			case PHASE_FLAT:
				swarm_scan_flat(desc);
				if (scan->waiting.count > 0)
					return true;
				if (scan->astray && scan->by_row)
				{
					/*
					 * Its row is in another node, which may have been
					 * returned.
					 */
					scan->astray = false;
					swarm_idset_reset(&scan->returned);
					scan->marked = false;
					scan->odd.count = 0;
					break;
				}
				scan->phase = PHASE_ODD;
				break;

			case PHASE_ODD:
				if (scan->odd_next == scan->odd.count)
				{
					scan->phase = PHASE_NULLS;
					break;
				}
				swarm_hnsw_push_min(&scan->waiting,
									scan->odd.items[scan->odd_next++]);
				return true;

			case PHASE_START:
			case PHASE_NULLS:
			case PHASE_END:
				return false;
		}
}

/*
 * take_best: what the walk found now waits to be returned.  Rows that are not in
 * the graph may wait already; the best of the walk and these hold as many of
 * the nearest as the walk has best, so the walk goes on after that many.  One
 * that has found less has seen all of the graph.
 */
static void
take_best(SwarmScan *scan)
{
	scan->farthest = scan->search->best.count > 0 ?
		scan->search->best.items[0].distance : INFINITY;
	scan->rest_taken = false;
	for (int i = 0; i < scan->search->best.count; i++)
		swarm_hnsw_push_min(&scan->waiting, scan->search->best.items[i]);
	scan->round = scan->search->best.count < scan->ef ? scan->waiting.count :
		scan->search->best.count;
	scan->search->best.count = 0;
}

/*
 * take_rest: what the walk came across beside its best, and what may be nearer
 * than those, waits too; false when there is none.
 *
 * A walk for few rows would else lose some by the order of the estimates alone.
 */
static bool
take_rest(SwarmScan *scan)
{
	const SwarmCandidates *seen[] = {&scan->search->evicted, &scan->search->rejected};
	float		limit = scan->farthest + scan->slack;

	if (scan->rest_taken)
		return false;
	scan->rest_taken = true;
	for (int i = 0; i < lengthof(seen); i++)
		for (int j = 0; j < seen[i]->count; j++)
		{
			const SwarmCandidate *c = &seen[i]->items[j];

			if (c->distance < limit && c->state == SWARM_NODE_LINKED)
				swarm_hnsw_push_min(&scan->waiting, *c);
		}
	return scan->waiting.count > 0;
}

/*
 * next_candidate: the nearest one that is left.
 */
static bool
next_candidate(IndexScanDesc desc, SwarmCandidate *c)
{
	SwarmScan  *scan = desc->opaque;

	for (;;)
	{
		SwarmCandidate batch[REFINE_BATCH];
		int			n = 0;

		if (scan->rerank == SWARM_RERANK_OFF || scan->any_order ||
			scan->phase >= PHASE_ODD)
		{
			if (scan->phase == PHASE_GRAPH && scan->round <= 0)
				(void) more(desc);
			if (scan->ready.count == 0 && scan->waiting.count == 0 &&
				!more(desc))
				return false;
			scan->round--;
			*c = swarm_hnsw_pop_min(scan->ready.count > 0 ?
									&scan->ready : &scan->waiting);
			return true;
		}

		while (n < REFINE_BATCH && scan->waiting.count > 0 &&
			   (scan->ready.count == 0 ||
				scan->waiting.items[0].distance - scan->slack <
				scan->ready.items[0].distance))
			batch[n++] = swarm_hnsw_pop_min(&scan->waiting);
		if (n > 0)
			swarm_scan_refine(desc, batch, n);
		else if (scan->phase == PHASE_GRAPH && scan->ready.count > 0 &&
				 scan->farthest - scan->slack < scan->ready.items[0].distance &&
				 take_rest(scan))
			continue;
		else if (scan->phase == PHASE_GRAPH && scan->rest_taken &&
				 scan->round <= 0 && more(desc))
			continue;
		else if (scan->ready.count > 0)
		{
			scan->round--;
			*c = swarm_hnsw_pop_min(&scan->ready);
			return true;
		}
		else if (!more(desc))
			return false;
	}
}

/*
 * next_null: the next row whose value is null, of an index that does not have
 * all of them; see hnsw_nulls.c.
 */
static bool
next_null(IndexScanDesc desc)
{
	SwarmScan  *scan = desc->opaque;

	if (scan->phase != PHASE_NULLS || !scan->nulls_left_out)
		return false;
	if (scan->nulls == NULL)
		scan->null_count = swarm_hnsw_find_nulls(desc, &scan->nulls);
	if (scan->null_next == scan->null_count)
		return false;
	desc->xs_heaptid = scan->nulls[scan->null_next++];
	return true;
}
