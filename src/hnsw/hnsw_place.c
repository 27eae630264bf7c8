/*
 * hnsw_place.c
 *	  Which node of a built graph gets which id, and so which page.
 *
 * One process, private memory of about ten bytes a node.
 */
#include "postgres.h"

#include "miscadmin.h"

#include "hnsw/hnsw_build_int.h"

/* What the placement knows of a node. */
#define QUEUED			0x01
#define PLACED			0x02

/* Added to a node's links without a page, before its worth is divided by them. */
#define SPARE_LINKS		8

/* The placement of nodes in pages; arrays are by place in memory. */
typedef struct Placement
{
	const SwarmGraph *graph;
	uint8	   *levels;			/* of places, and of ids */
	uint8	   *seen;
	uint8	   *weight;			/* links to it from the page being filled */
	uint16	   *placed;			/* from all pages up to it */
	SwarmNodeId *near;			/* nodes with a weight */
	uint32		nnear;
	SwarmNodeId *queue;			/* a part for each level */
	uint32		head[SWARM_HNSW_MAX_LEVEL + 1];
	uint32		tail[SWARM_HNSW_MAX_LEVEL + 1];
	uint32		start[SWARM_HNSW_MAX_LEVEL + 1];	/* none below is left */
} Placement;

static void enqueue(Placement *p, SwarmNodeId node);
static void place(Placement *p, SwarmNodeId node);
static SwarmNodeId take_near(Placement *p, const uint32 *left);
static SwarmNodeId take_queued(Placement *p, const uint32 *left);

/*
 * swarm_graph_place: which node gets which id: order[id] is its place in memory.
 *
 * Nodes that are scored together should share pages.  A page is filled around
 * its first node: the next one is always that which most links of the page
 * lead to, for its number of links to nodes that have no page yet, so that few
 * are left over whose neighbours are all elsewhere.  The first node of a page
 * is one that the page before leads to; else nodes come in the order in which
 * links lead to them, from the entry point on.
 *
 * A place in memory and an id have their level by the same function, and a
 * node must keep its level; so a page takes as many nodes of each level as its
 * ids have.
 */
SwarmNodeId *
swarm_graph_place(const SwarmGraph *graph, const SwarmHnswMeta *meta,
				  uint32 per_page)
{
	uint32		n = swarm_graph_count(graph);
	Placement	p = {.graph = graph};
	SwarmNodeId *order = MemoryContextAllocHuge(CurrentMemoryContext,
												sizeof(SwarmNodeId) * Max(n, 1));
	uint32		level_count[SWARM_HNSW_MAX_LEVEL + 1] = {0};
	uint32		before = 0;

	p.queue = MemoryContextAllocHuge(CurrentMemoryContext,
									 sizeof(SwarmNodeId) * Max(n, 1));
	p.levels = MemoryContextAllocHuge(CurrentMemoryContext, Max(n, 1));
	p.seen = MemoryContextAllocExtended(CurrentMemoryContext, Max(n, 1),
										MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	p.weight = MemoryContextAllocExtended(CurrentMemoryContext, Max(n, 1),
										  MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	p.placed = MemoryContextAllocExtended(CurrentMemoryContext,
										  sizeof(uint16) * Max(n, 1),
										  MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	p.near = palloc(sizeof(SwarmNodeId) * per_page * 256);
	for (uint32 i = 0; i < n; i++)
	{
		p.levels[i] = swarm_hnsw_level(meta, i);
		level_count[p.levels[i]]++;
	}
	for (int level = 0; level <= SWARM_HNSW_MAX_LEVEL; level++)
	{
		p.head[level] = p.tail[level] = before;
		before += level_count[level];
	}
	if (graph->shared->entry != SWARM_NODE_NONE)
		enqueue(&p, graph->shared->entry);

	for (uint32 start = 0; start < n; start += per_page)
	{
		uint32		end = Min(start + per_page, n);
		uint32		left[SWARM_HNSW_MAX_LEVEL + 1] = {0};
		uint32		next[SWARM_HNSW_MAX_LEVEL + 1];
		SwarmNodeId first;

		CHECK_FOR_INTERRUPTS();
		for (uint32 id = end; id-- > start;)
		{
			left[p.levels[id]]++;
			next[p.levels[id]] = id;
		}

		/* Only the first node comes from what the page before leads to. */
		first = take_near(&p, left);
		for (uint32 i = 0; i < p.nnear; i++)
			p.weight[p.near[i]] = 0;
		p.nnear = 0;
		for (uint32 count = start; count < end; count++)
		{
			SwarmNodeId node = count == start ? first : take_near(&p, left);
			int			level;

			if (node == SWARM_NODE_NONE)
				node = take_queued(&p, left);
			level = p.levels[node];
			place(&p, node);
			order[next[level]] = node;
			if (--left[level] > 0)
				while (p.levels[++next[level]] != level)
					;
		}
	}
	pfree(p.queue);
	pfree(p.levels);
	pfree(p.seen);
	pfree(p.weight);
	pfree(p.placed);
	pfree(p.near);
	return order;
}

/*
 * enqueue: a node that a link leads to waits for its turn.
 */
static void
enqueue(Placement *p, SwarmNodeId node)
{
	if (p->seen[node] & QUEUED)
		return;
	p->seen[node] |= QUEUED;
	p->queue[p->tail[p->levels[node]]++] = node;
}

/*
 * place: a node has a page; its links count for the others of the page.
 */
static void
place(Placement *p, SwarmNodeId node)
{
	const SwarmNodeId *links;
	int			degree = swarm_graph_links(p->graph, node, &links);

	p->seen[node] |= PLACED | QUEUED;
	for (int i = 0; i < degree; i++)
	{
		SwarmNodeId link = links[i];

		enqueue(p, link);
		p->placed[link]++;
		if (!(p->seen[link] & PLACED) && p->weight[link]++ == 0)
			p->near[p->nnear++] = link;
	}
}

/*
 * take_near: the best of the nodes that the page leads to, of a level that the
 * page has room for; NONE when there is none.
 */
static SwarmNodeId
take_near(Placement *p, const uint32 *left)
{
	uint32		best = p->nnear;
	float		best_worth = 0;
	SwarmNodeId node;

	for (uint32 i = 0; i < p->nnear; i++)
	{
		const SwarmNodeId *links;
		float		worth;
		int			degree;

		node = p->near[i];
		if (left[p->levels[node]] == 0)
			continue;
		degree = swarm_graph_links(p->graph, node, &links);
		worth = p->weight[node] /
			(float) (Max(degree - p->placed[node], 0) + SPARE_LINKS);
		if (worth > best_worth)
		{
			best_worth = worth;
			best = i;
		}
	}
	if (best == p->nnear)
		return SWARM_NODE_NONE;
	node = p->near[best];
	p->near[best] = p->near[--p->nnear];
	p->weight[node] = 0;
	return node;
}

/*
 * take_queued: the next node of a level that the page has room for.
 */
static SwarmNodeId
take_queued(Placement *p, const uint32 *left)
{
	int			level = 0;

	while (left[level] == 0)
		level++;
	while (p->head[level] < p->tail[level])
	{
		SwarmNodeId node = p->queue[p->head[level]++];

		if (!(p->seen[node] & PLACED))
			return node;
	}
	/* Not reached: odd nodes, and what hangs together with nothing. */
	while ((p->seen[p->start[level]] & QUEUED) ||
		   p->levels[p->start[level]] != level)
		p->start[level]++;
	return p->start[level];
}
