/*
 * hnsw_connect.c
 *	  Every linked node can be reached from the entry point.
 *
 * When a node chooses its links anew it may drop the last one that led to some
 * other node, and no walk finds that one any more.  One in a thousand nodes is
 * lost like that.  After a build, a large fold and a vacuum that changed
 * something, all nodes are visited, and one that was not reached gets a link
 * from the nearest node that was.
 *
 * Takes a bit and four bytes a node.  The caller holds the link lock while it
 * adds links, no locks otherwise.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "hnsw/hnsw_int.h"

#define MAX_LINKS		200

/* Candidates for a link to a node that was not reached. */
#define EF_CONNECT		64

typedef struct Walker
{
	SwarmHnswIndex *index;
	Relation	rel;
	uint32		nodes;
	uint8	   *reached;		/* a bit a node */
	uint8	   *inlinks;		/* links to a node, at most 255 */
	SwarmNodeId *queue;
	uint32		head;
	uint32		tail;
} Walker;

static void walk_from(Walker *w, SwarmNodeId id);
static bool is_linked(Walker *w, SwarmNodeId id);
static bool attach(Walker *w, SwarmNodeId id);

/*
 * reach: put a node into the queue unless it was there.
 */
static inline void
reach(Walker *w, SwarmNodeId id)
{
	if (id >= w->nodes)
		return;
	if (w->inlinks[id] < 255)
		w->inlinks[id]++;
	if (w->reached[id / 8] & (1 << (id % 8)))
		return;
	w->reached[id / 8] |= 1 << (id % 8);
	w->queue[w->tail++] = id;
}

/*
 * swarm_hnsw_connect: see above.  Returns how many nodes got a link.
 */
int64
swarm_hnsw_connect(Relation rel)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "qhnsw connect",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	SwarmHnswIndex *index = swarm_hnsw_open(rel);
	Walker		w = {.index = index, .rel = rel, .nodes = index->meta.nodes};
	int64		count = 0;

	if (index->meta.dims != 0 && index->meta.entry != SWARM_NODE_NONE)
	{
		w.reached = MemoryContextAllocExtended(context, w.nodes / 8 + 1,
											   MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
		w.inlinks = MemoryContextAllocExtended(context, w.nodes,
											   MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
		w.queue = MemoryContextAllocHuge(context, sizeof(SwarmNodeId) * (Size) w.nodes);
		walk_from(&w, index->meta.entry);
		for (SwarmNodeId id = 0; id < w.nodes; id++)
		{
			if (w.reached[id / 8] & (1 << (id % 8)) || !is_linked(&w, id))
				continue;
			swarm_hnsw_interrupts();
			swarm_hnsw_lock_links(rel);
			/* A vacuum that marks it dead from now on waits for us. */
			if (is_linked(&w, id) && attach(&w, id))
				count++;
			swarm_hnsw_unlock_links(rel);
			walk_from(&w, id);
		}
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return count;
}

/*
 * walk_from: reach everything that can be reached from a node.
 */
static void
walk_from(Walker *w, SwarmNodeId id)
{
	SwarmNodeId links[MAX_LINKS];

	reach(w, id);
	while (w->head < w->tail)
	{
		int			n = swarm_hnsw_read_links(w->index, w->rel,
											  w->queue[w->head++], 0, links);

		for (int i = 0; i < n; i++)
			reach(w, links[i]);
		if ((w->head & 0x3ff) == 0)
		{
			swarm_vacuum_delay();
			swarm_hnsw_interrupts();
		}
	}
}

/*
 * is_linked: is the node one that searches must find?
 */
static bool
is_linked(Walker *w, SwarmNodeId id)
{
	Buffer		buffer = swarm_hnsw_read_node(w->index, w->rel, id,
											  BUFFER_LOCK_SHARE);
	bool		linked = swarm_hnsw_node(w->index, BufferGetPage(buffer), id)->state ==
	SWARM_NODE_LINKED;

	UnlockReleaseBuffer(buffer);
	return linked;
}

/*
 * attach: link to a node from the nearest one that has room, else from the
 * nearest one that has a link to a node which others link to, in its place.
 */
static bool
attach(Walker *w, SwarmNodeId id)
{
	SwarmHnswIndex *index = w->index;
	uint32		max = swarm_hnsw_max_degree(index, 0);
	SwarmHnswQuery *query = swarm_hnsw_query_new(index);
	SwarmHnswSearch *search;
	SwarmNodeId entry = index->meta.entry;
	SwarmCandidate nearest;
	SwarmNodeId links[MAX_LINKS];
	SwarmNodeId wanted[MAX_LINKS];
	bool		done = false;

	swarm_hnsw_read_vector(index, w->rel, id, query->rotated);
	swarm_hnsw_query_set(index, query, query->rotated, false);
	search = swarm_hnsw_search_new(index, w->rel, query);

	/*
	 * From the entry point, on level 0: on the way down the upper levels it
	 * would get to nodes that cannot be reached on this one.
	 */
	if (swarm_hnsw_score_ids(search, &entry, 1, &nearest) > 0)
	{
		swarm_hnsw_search_reset(search);
		swarm_hnsw_search_layer(search, 0, EF_CONNECT, &nearest, 1);
		swarm_hnsw_sort(&search->best);
	}
	for (int pass = 0; pass < 2 && !done; pass++)
		for (int i = 0; i < search->best.count && !done; i++)
		{
			SwarmNodeId from = search->best.items[i].id;
			uint32		n;

			if (from == id)
				continue;
			n = swarm_hnsw_read_links(index, w->rel, from, 0, links);
			/* Somebody may have linked to it since the walk. */
			for (uint32 j = 0; j < n && !done; j++)
				done = links[j] == id;
			if (done)
				break;
			memcpy(wanted, links, n * sizeof(SwarmNodeId));
			if (n < max)
				wanted[n] = id;
			else if (pass == 0)
				continue;
			else
			{
				int			last = n - 1;

				/* The farthest come last. */
				while (last >= 0 && (links[last] >= w->nodes ||
									 w->inlinks[links[last]] < 2))
					last--;
				if (last < 0)
					continue;
				w->inlinks[links[last]]--;
				wanted[last] = id;
			}
			done = swarm_hnsw_swap_links(index, w->rel, from, 0, links, n, wanted,
										 n < max ? n + 1 : n);
		}
	MemoryContextDelete(search->context);
	return done;
}
