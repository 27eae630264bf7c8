/*
 * hnsw_flat.c
 *	  What a scan reads without a walk: the rows that are not in the graph yet,
 *	  and all codes in the order of the file.
 */
#include "postgres.h"

#include <math.h>

#include "miscadmin.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "hnsw/hnsw_scan_int.h"

static SwarmNodeId read_list(SwarmScan *scan, Relation rel, SwarmNodeId id,
							 SwarmIdSet *seen);

/*
 * swarm_scan_pending: score the rows that are not in the graph yet.
 *
 * This comes before the walk: what a fold takes from the lists meanwhile is in
 * the graph when the walk begins.
 */
void
swarm_scan_pending(SwarmScan *scan, Relation rel)
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
read_list(SwarmScan *scan, Relation rel, SwarmNodeId id, SwarmIdSet *seen)
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
 * swarm_scan_flat: score every node of the index and let the nearest of those that
 * were not returned wait, as many as fit into work_mem.  Called again it takes
 * the next ones.
 */
void
swarm_scan_flat(IndexScanDesc desc)
{
	SwarmScan  *scan = desc->opaque;
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
