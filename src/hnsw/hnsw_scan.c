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
#include "access/tableam.h"
#include "catalog/index.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "base/fault.h"
#include "hnsw/hnsw_int.h"

/* Up to so many nodes all codes are scored: it takes as long as a walk. */
#define FLAT_NODES		768

/* From an ef of this share of the nodes on, too. */
#define FLAT_SHARE		48

/* Each time a scan goes on in the graph, it asks for this many times more. */
#define GROWTH			4

/* Standard deviations that an estimate may be off before we miss a row. */
#define BOUND			1.9f

/* How often a chain of equal rows may change under a scan. */
#define MAX_RESTARTS	1000

/* Candidates refined together. */
#define REFINE_BATCH	8

typedef enum ScanPhase
{
	PHASE_START,
	PHASE_GRAPH,
	PHASE_FLAT,
	PHASE_ODD,
	PHASE_NULLS,
	PHASE_END
} ScanPhase;

typedef struct HnswScan
{
	SwarmHnswIndex *index;		/* pinned; NULL before the first row */
	MemoryContext context;		/* of one rescan */
	MemoryContextCallback unpin;
	ScanPhase	phase;
	bool		any_order;		/* the query has no distance to anything */
	int			ef;
	SwarmHnswRerank rerank;
	SwarmHnswIterative iterative;
	int64		left;			/* rows that may still be returned */
	SwarmHnswQuery *query;
	SwarmHnswSearch *search;
	SwarmCandidates waiting;	/* min-heap by estimate */
	SwarmCandidates ready;		/* min-heap by better distance */
	float		slack;			/* what an estimate may be off */
	SwarmIdSet	returned;
	float		last;			/* distance of the last row returned */

	/* rows that may move to another node while we read; see new_row */
	HTAB	   *rows;			/* TIDs of rows returned; NULL: none yet */
	bool		by_row;			/* all of them, from the first one on */
	bool		unlinked;		/* a candidate was not in the graph yet */
	bool		astray;			/* the node of one does not have its row now */

	BlockNumber heap_blocks;	/* of the table, known to exist */

	/* the family whose rows are being returned */
	SwarmNodeId twin;			/* the next one to return; NONE: the end */
	bool		in_family;
	SwarmNodeId primary;
	uint16		primary_version;
	ItemPointerData primary_tid;
	uint32		steps;			/* twins looked at since the chain's begin */
	int			restarts;

	/* the flat phase */
	SwarmCandidate mark;		/* everything up to here was read */
	bool		marked;
	SwarmCandidates odd;		/* zero vectors, then nulls */
	int			odd_next;

	/* nulls that the index may not have: these are read from the table */
	bool		nulls_left_out;
	ItemPointerData *nulls;		/* NULL: not read yet */
	int64		null_count;
	int64		null_next;

	/* rerank by rows */
	const float *exact_query;
	int			exact_dims;
	IndexFetchTableData *fetch;
	TupleTableSlot *slot;
	IndexInfo  *info;
	EState	   *estate;

	SwarmHnswCounters total;	/* of the rescans before this one */
} HnswScan;

/* The scan of this session that began last, and what the last to end did. */
static HnswScan *current_scan = NULL;
static SwarmHnswCounters last_counters;
static bool counted = false;

static void start(IndexScanDesc desc);
static void set_query(IndexScanDesc desc, HnswScan *scan);
static bool more(IndexScanDesc desc);
static void take_best(HnswScan *scan);
static void read_pending(HnswScan *scan, Relation rel);
static SwarmNodeId read_list(HnswScan *scan, Relation rel, SwarmNodeId id,
							 SwarmIdSet *seen);
static void read_flat(IndexScanDesc desc);
static bool next_candidate(IndexScanDesc desc, SwarmCandidate *c);
static bool next_null(IndexScanDesc desc);
static void refine(IndexScanDesc desc, SwarmCandidate *batch, int n);
static void refine_by_code(HnswScan *scan, Relation rel, SwarmCandidate *c);
static bool refine_by_row(IndexScanDesc desc, SwarmCandidate *c);
static bool read_tid(HnswScan *scan, Relation rel, const SwarmCandidate *c,
					 ItemPointer tid, SwarmNodeId *twin);
static void begin_family(HnswScan *scan, const SwarmCandidate *c,
						 const ItemPointerData *tid);
static bool new_row(HnswScan *scan, const ItemPointerData *tid);
static bool next_twin(HnswScan *scan, Relation rel, ItemPointer tid);
static void unpin(void *arg);
static void count_scan(HnswScan *scan);
static void end_fetch(HnswScan *scan);

/*
 * swarm_hnsw_begin_scan: ambeginscan.
 */
IndexScanDesc
swarm_hnsw_begin_scan(Relation rel, int nkeys, int norderbys)
{
	IndexScanDesc desc = RelationGetIndexScan(rel, nkeys, norderbys);
	HnswScan   *scan = palloc0(sizeof(HnswScan));

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
	HnswScan   *scan = arg;

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
count_scan(HnswScan *scan)
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
	const HnswScan *scan = opaque;
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
	HnswScan   *scan = desc->opaque;

	if (keys != NULL && desc->numberOfKeys > 0)
		memmove(desc->keyData, keys, desc->numberOfKeys * sizeof(ScanKeyData));
	if (orderbys != NULL && desc->numberOfOrderBys > 0)
		memmove(desc->orderByData, orderbys,
				desc->numberOfOrderBys * sizeof(ScanKeyData));
	count_scan(scan);
	end_fetch(scan);
	MemoryContextReset(scan->context);
	scan->phase = PHASE_START;
}

/*
 * swarm_hnsw_end_scan: amendscan.
 */
void
swarm_hnsw_end_scan(IndexScanDesc desc)
{
	HnswScan   *scan = desc->opaque;

	count_scan(scan);
	end_fetch(scan);
	unpin(scan);
	MemoryContextDelete(scan->context);
	scan->context = NULL;
}

/*
 * end_fetch: let go of the table.
 */
static void
end_fetch(HnswScan *scan)
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

/*
 * swarm_hnsw_get_tuple: amgettuple: the next row.
 */
bool
swarm_hnsw_get_tuple(IndexScanDesc desc, ScanDirection direction)
{
	HnswScan   *scan = desc->opaque;
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
			found = next_twin(scan, rel, &desc->xs_heaptid);
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
		found = read_tid(scan, rel, &c, &desc->xs_heaptid, &scan->twin);
		if (scan->twin != SWARM_NODE_NONE)
			begin_family(scan, &c, &desc->xs_heaptid);
		found = found && new_row(scan, &desc->xs_heaptid);
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
	HnswScan   *scan = desc->opaque;
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
		read_flat(desc);
	}
	else
	{
		SwarmCandidate nearest;

		scan->phase = PHASE_GRAPH;
		read_pending(scan, rel);
		if (swarm_hnsw_search_descend(scan->search, 0, &nearest))
		{
			swarm_hnsw_search_reset(scan->search);
			swarm_hnsw_search_layer(scan->search, 0, scan->ef, &nearest, 1);
		}
		take_best(scan);
	}
	scan->by_row = scan->unlinked;
}

/*
 * set_query: prepare the vector that the rows are ordered by.
 */
static void
set_query(IndexScanDesc desc, HnswScan *scan)
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
	HnswScan   *scan = desc->opaque;

	for (;;)
		switch (scan->phase)
		{
			case PHASE_GRAPH:
				if (scan->iterative == SWARM_ITERATIVE_OFF)
				{
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
				read_flat(desc);
				if (scan->waiting.count > 0)
					return true;
				break;

			case PHASE_FLAT:
				read_flat(desc);
				if (scan->waiting.count > 0)
					return true;
				if (scan->astray && scan->by_row)
				{
					/* Its row is in another node, which may have been returned. */
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
 * take_best: what the walk found now waits to be returned.
 */
static void
take_best(HnswScan *scan)
{
	for (int i = 0; i < scan->search->best.count; i++)
		swarm_hnsw_push_min(&scan->waiting, scan->search->best.items[i]);
	scan->search->best.count = 0;
}

/*
 * read_pending: score the rows that are not in the graph yet.
 *
 * This comes before the walk: what a fold takes from the lists meanwhile is in
 * the graph when the walk begins.
 */
static void
read_pending(HnswScan *scan, Relation rel)
{
	SwarmHnswIndex *index = scan->index;
	SwarmIdSet	seen = {0};

	if (index->meta.pending_head == SWARM_NODE_NONE &&
		index->meta.folding_head == SWARM_NODE_NONE)
		return;
	swarm_idset_reset(&seen);
	for (;;)
	{
		SwarmNodeId head = index->meta.folding_head;

		if (head == SWARM_NODE_NONE || swarm_idset_has(&seen, head))
			head = index->meta.pending_head;
		if (head == SWARM_NODE_NONE || swarm_idset_has(&seen, head))
			break;
		while (head != SWARM_NODE_NONE && !swarm_idset_has(&seen, head))
			head = read_list(scan, rel, head, &seen);
		/* A fold may have changed the lists under us: look again. */
		swarm_hnsw_open(rel);
	}
	pfree(seen.slots);
}

/*
 * read_list: score the pending nodes of one page in the order of their list;
 * returns the first one beyond it.
 */
static SwarmNodeId
read_list(HnswScan *scan, Relation rel, SwarmNodeId id, SwarmIdSet *seen)
{
	SwarmHnswIndex *index = scan->index;
	uint32		per_page = index->layout.per_page[SWARM_STREAM_NODE];
	uint32		number = id / per_page;
	Buffer		buffer = swarm_hnsw_read_node(index, rel, id, BUFFER_LOCK_SHARE);
	Page		page = BufferGetPage(buffer);

	CHECK_FOR_INTERRUPTS();
	while (id != SWARM_NODE_NONE && id / per_page == number &&
		   swarm_idset_add(seen, id))
	{
		SwarmCandidate c;

		if (swarm_hnsw_score_page(scan->search, page, &id, 1,
								  1u << SWARM_NODE_PENDING, &c) == 0)
		{
			/* Folded since its predecessor was read; the rest is elsewhere. */
			id = SWARM_NODE_NONE;
			break;
		}
		swarm_hnsw_push_min(&scan->waiting, c);
		scan->unlinked = true;
		id = swarm_hnsw_node(index, page, id)->next;
	}
	UnlockReleaseBuffer(buffer);
	return id;
}

/*
 * before: does a come before b in the order of the flat phase?
 */
static inline bool
before(const SwarmCandidate *a, const SwarmCandidate *b)
{
	return a->distance != b->distance ? a->distance < b->distance : a->id < b->id;
}

/*
 * read_flat: score every node of the index and let the nearest of those that
 * were not returned wait, as many as fit into work_mem.  Called again it takes
 * the next ones.
 */
static void
read_flat(IndexScanDesc desc)
{
	HnswScan   *scan = desc->opaque;
	Relation	rel = desc->indexRelation;
	SwarmHnswIndex *index = scan->index;
	uint32		per_page = index->layout.per_page[SWARM_STREAM_NODE];
	const uint32 states = 1u << SWARM_NODE_LINKED | 1u << SWARM_NODE_PENDING |
	1u << SWARM_NODE_JOINING;
	int64		room = Max((int64) work_mem * 1024 / sizeof(SwarmCandidate), 4096);
	SwarmCandidates nearest = {0};
	SwarmCandidates nulls = {0};
	bool		first = !scan->marked;
	uint32		nodes;

	swarm_hnsw_open(rel);
	nodes = index->meta.nodes;
	for (SwarmNodeId start = 0; start < nodes; start += per_page)
	{
		int			n = Min(per_page, nodes - start);
		Buffer		buffer;
		Page		page;
		SwarmNodeId ids[BLCKSZ / sizeof(SwarmNode)];
		SwarmCandidate scored[BLCKSZ / sizeof(SwarmNode)];
		int			count = 0;

		CHECK_FOR_INTERRUPTS();
		buffer = swarm_hnsw_read_node(index, rel, start, BUFFER_LOCK_SHARE);
		page = BufferGetPage(buffer);
		for (int i = 0; i < n; i++)
		{
			const SwarmNode *node = swarm_hnsw_node(index, page, start + i);

			if (node->state == SWARM_NODE_ODD && first)
			{
				SwarmCandidate c = {
					.id = start + i, .version = node->version,
					.state = SWARM_NODE_ODD, .distance = INFINITY
				};

				if (!(node->flags & SWARM_NODE_NULL))
					swarm_hnsw_append(&scan->odd, c);
				else if (!scan->nulls_left_out)
					swarm_hnsw_append(&nulls, c);
			}
			else if ((1u << (node->state & 31)) & states)
				ids[count++] = start + i;
		}
		if (scan->any_order)
			for (int i = 0; i < count; i++)
			{
				const SwarmNode *node = swarm_hnsw_node(index, page, ids[i]);

				scored[i].id = ids[i];
				scored[i].version = node->version;
				scored[i].state = node->state;
				scored[i].distance = 0;
			}
		else
			for (int i = 0; i < count; i += 64)
				swarm_hnsw_score_page(scan->search, page, ids + i,
									  Min(64, count - i), states, scored + i);
		UnlockReleaseBuffer(buffer);
		scan->search->pages++;

		for (int i = 0; i < count; i++)
		{
			SwarmCandidate *c = &scored[i];

			scan->unlinked |= c->state != SWARM_NODE_LINKED;
			if (scan->marked && !before(&scan->mark, c))
				continue;
			if (swarm_idset_has(&scan->returned, c->id))
				continue;
			if (nearest.count >= room)
			{
				if (!before(c, &nearest.items[0]))
					continue;
				swarm_hnsw_pop_max(&nearest);
			}
			swarm_hnsw_push_max(&nearest, *c);
		}
	}

	for (int i = 0; i < nulls.count; i++)
		swarm_hnsw_append(&scan->odd, nulls.items[i]);
	if (nulls.items != NULL)
		pfree(nulls.items);
	if (nearest.count > 0)
	{
		scan->mark = nearest.items[0];
		for (int i = nearest.count - 1; i >= 0; i--)
			swarm_hnsw_push_min(&scan->waiting, nearest.items[i]);
		pfree(nearest.items);
	}
	scan->marked = true;
}

/*
 * next_candidate: the nearest one that is left.
 */
static bool
next_candidate(IndexScanDesc desc, SwarmCandidate *c)
{
	HnswScan   *scan = desc->opaque;

	for (;;)
	{
		SwarmCandidate batch[REFINE_BATCH];
		int			n = 0;

		if (scan->rerank == SWARM_RERANK_OFF || scan->any_order ||
			scan->phase >= PHASE_ODD)
		{
			if (scan->ready.count == 0 && scan->waiting.count == 0 &&
				!more(desc))
				return false;
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
			refine(desc, batch, n);
		else if (scan->ready.count > 0)
		{
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
	HnswScan   *scan = desc->opaque;

	if (scan->phase != PHASE_NULLS || !scan->nulls_left_out)
		return false;
	if (scan->nulls == NULL)
		scan->null_count = swarm_hnsw_find_nulls(desc, &scan->nulls);
	if (scan->null_next == scan->null_count)
		return false;
	desc->xs_heaptid = scan->nulls[scan->null_next++];
	return true;
}

/*
 * refine: make the distances of some candidates better, and let them be ready.
 */
static void
refine(IndexScanDesc desc, SwarmCandidate *batch, int n)
{
	HnswScan   *scan = desc->opaque;

	if (scan->rerank == SWARM_RERANK_INDEX)
	{
		SwarmHnswIndex *index = scan->index;

		for (int i = 0; i < n; i++)
		{
			uint32		per_page = index->layout.per_page[SWARM_STREAM_REFINE];
			uint32		number = batch[i].id / per_page;
			SwarmPageHint *hint;
			const char *slot;

			if (number >= index->hinted[SWARM_STREAM_REFINE])
				continue;
			hint = &index->hints[SWARM_STREAM_REFINE][number];
			if (hint->buffer <= 0)
				continue;
			slot = (const char *) BufferGetBlock(hint->buffer) +
				MAXALIGN(SizeOfPageHeaderData) +
				(Size) (batch[i].id % per_page) *
				index->layout.slot_size[SWARM_STREAM_REFINE];
			for (uint32 j = 0; j < index->layout.slot_size[SWARM_STREAM_REFINE]; j += 64)
				__builtin_prefetch(slot + j);
		}
	}
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
refine_by_code(HnswScan *scan, Relation rel, SwarmCandidate *c)
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
	HnswScan   *scan = desc->opaque;
	ItemPointerData tid;
	SwarmNodeId twin;
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];
	bool		again = false;
	bool		visible = true;
	const float *v;
	void	   *tofree;
	int			dims;

	if (!read_tid(scan, desc->indexRelation, c, &tid, &twin))
		return false;
	if (scan->fetch == NULL)
	{
		scan->fetch = table_index_fetch_begin(desc->heapRelation);
		scan->slot = table_slot_create(desc->heapRelation, NULL);
		scan->info = BuildIndexInfo(desc->indexRelation);
		scan->estate = CreateExecutorState();
	}
	scan->search->fetched++;
	swarm_hnsw_check_row(desc->indexRelation, desc->heapRelation, &tid,
						 &scan->heap_blocks);
	if (!table_index_fetch_tuple(scan->fetch, &tid, desc->xs_snapshot,
								 scan->slot, &again, NULL))
		visible = false;
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
	ResetPerTupleExprContext(scan->estate);
	/* Of an invisible row with twins these are still to be returned. */
	return visible || twin != SWARM_NODE_NONE;
}

/*
 * read_tid: the row of a candidate, and its first twin; false when the node
 * has been freed since it was scored.
 */
static bool
read_tid(HnswScan *scan, Relation rel, const SwarmCandidate *c, ItemPointer tid,
		 SwarmNodeId *twin)
{
	Buffer		buffer = swarm_hnsw_read_node(scan->index, rel, c->id,
											  BUFFER_LOCK_SHARE);
	const SwarmNode *node = swarm_hnsw_node(scan->index, BufferGetPage(buffer),
											c->id);
	bool		valid = node->version == c->version &&
	node->state != SWARM_NODE_FREE && ItemPointerIsValid(&node->tid);

	*twin = SWARM_NODE_NONE;
	if (node->version == c->version)
	{
		*tid = node->tid;
		if (node->state == SWARM_NODE_LINKED)
			*twin = node->next;
	}
	UnlockReleaseBuffer(buffer);
	if (!valid && (c->state == SWARM_NODE_PENDING || c->state == SWARM_NODE_JOINING))
		scan->astray = true;
	return valid;
}

/*
 * begin_family: the row of a node was returned, those of its twins come next.
 */
static void
begin_family(HnswScan *scan, const SwarmCandidate *c, const ItemPointerData *tid)
{
	scan->in_family = true;
	scan->primary = c->id;
	scan->primary_version = c->version;
	scan->primary_tid = *tid;
	scan->steps = 0;
	scan->restarts = 0;
}

/*
 * new_row: was the row not returned before?
 *
 * Nodes tell that, by their ids, as long as a row stays in its node.  It leaves
 * it when it is a twin and vacuum lets it take the place of a dead row in the
 * node of the family; we may have returned either node before.  The rows of a
 * family are therefore remembered while it is read, and all rows when the scan
 * began with some that were not in the graph: those may become twins of nodes
 * that were returned.  What else becomes a twin meanwhile is too new for us.
 */
static bool
new_row(HnswScan *scan, const ItemPointerData *tid)
{
	bool		found;

	if (!scan->by_row && !scan->in_family)
		return true;
	if (scan->rows == NULL)
	{
		HASHCTL		ctl = {
			.keysize = sizeof(ItemPointerData),
			.entrysize = sizeof(ItemPointerData),
			.hcxt = scan->context
		};

		scan->rows = hash_create("qhnsw rows returned", 256, &ctl,
								 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	hash_search(scan->rows, tid, HASH_ENTER, &found);
	return !found;
}

/*
 * next_twin: one step along the chain of a family; true when *tid is a row to
 * return.  scan->in_family becomes false at its end.
 *
 * Vacuum may take twins out of the chain meanwhile, and move the row of one
 * into the primary.  So a step that finds no twin of this primary goes back to
 * the primary, and so does the end of the chain.
 */
static bool
next_twin(HnswScan *scan, Relation rel, ItemPointer tid)
{
	SwarmNodeId id = scan->twin;
	Buffer		buffer;
	const SwarmNode *node;
	bool		lost = false;

	CHECK_FOR_INTERRUPTS();
	if (scan->steps++ > scan->index->meta.nodes)
		swarm_hnsw_damaged(rel, "chain of equal rows at node", id);
	if (id != SWARM_NODE_NONE)
	{
		bool		valid;

		buffer = swarm_hnsw_read_node(scan->index, rel, id, BUFFER_LOCK_SHARE);
		node = swarm_hnsw_node(scan->index, BufferGetPage(buffer), id);
		valid = node->state == SWARM_NODE_TWIN &&
			swarm_hnsw_links(scan->index, (SwarmNode *) node)[0] == scan->primary;
		lost = !valid;
		*tid = node->tid;
		if (valid)
			scan->twin = node->next;
		UnlockReleaseBuffer(buffer);
		if (valid)
			return swarm_idset_add(&scan->returned, id) &&
				ItemPointerIsValid(tid) && new_row(scan, tid);
	}

	buffer = swarm_hnsw_read_node(scan->index, rel, scan->primary,
								  BUFFER_LOCK_SHARE);
	node = swarm_hnsw_node(scan->index, BufferGetPage(buffer), scan->primary);
	scan->twin = SWARM_NODE_NONE;
	*tid = node->tid;
	if (node->version != scan->primary_version ||
		node->state != SWARM_NODE_LINKED)
	{
		/* All rows of the family are dead. */
		scan->in_family = false;
		lost = false;
	}
	else if (lost)
	{
		if (scan->restarts++ > MAX_RESTARTS)
			swarm_hnsw_damaged(rel, "chain of equal rows at node", id);
		scan->twin = node->next;
		scan->steps = 0;
	}
	else if (ItemPointerEquals(tid, &scan->primary_tid))
		scan->in_family = false;
	UnlockReleaseBuffer(buffer);
	if (!scan->in_family || ItemPointerEquals(tid, &scan->primary_tid))
		return false;

	/* The row of a twin moved in: was it returned there? */
	scan->primary_tid = *tid;
	return ItemPointerIsValid(tid) && new_row(scan, tid);
}
