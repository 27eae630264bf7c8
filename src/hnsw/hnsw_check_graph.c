/*
 * hnsw_check_graph.c
 *	  The check of what hangs together: lists of nodes, links, chains of equal
 *	  rows, and whether every node can be reached.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"

#include "hnsw/hnsw_check_int.h"

static uint32 check_list(SwarmCheck *c, const char *name, SwarmNodeId head,
						 SwarmNodeState state);
static void check_unlisted(SwarmCheck *c, SwarmNodeState state);
static void check_degree(SwarmCheck *c, SwarmNodeId id, int level,
						 uint32 degree, const SwarmNodeId *links);
static void check_chain(SwarmCheck *c, SwarmNodeId first, SwarmNodeId id);

/*
 * swarm_check_lists: invariants 9, 10 and 12.
 */
void
swarm_check_lists(SwarmCheck *c)
{
	const SwarmHnswMeta *meta = &c->index.meta;
	uint32		odd = 0;
	uint32		count;

	count = check_list(c, "list of free nodes", meta->free_head,
					   SWARM_NODE_FREE);
	if (count != meta->free_nodes)
		swarm_check_problem(c, SWARM_NODE_NONE, "wrong number of free nodes",
							"The metapage says %u, the list has %u.", meta->free_nodes,
							count);
	check_unlisted(c, SWARM_NODE_FREE);

	count = check_list(c, "list of pending nodes", meta->pending_head,
					   SWARM_NODE_PENDING) +
		check_list(c, "list of the fold", meta->folding_head,
				   SWARM_NODE_PENDING);
	if (count != meta->pending)
		swarm_check_problem(c, SWARM_NODE_NONE, "wrong number of pending nodes",
							"The metapage says %u, the lists have %u.", meta->pending,
							count);
	check_unlisted(c, SWARM_NODE_PENDING);

	for (SwarmNodeId id = 0; id < c->nodes; id++)
		odd += state_of(c, id) == SWARM_NODE_ODD;
	if (odd != meta->odd)
		swarm_check_problem(c, SWARM_NODE_NONE, "wrong number of odd nodes",
							"The metapage says %u, there are %u.", meta->odd, odd);
}

/*
 * check_list: follow a list; returns how long it is.
 */
static uint32
check_list(SwarmCheck *c, const char *name, SwarmNodeId head, SwarmNodeState state)
{
	SwarmNodeId id = head;
	SwarmNodeId before = SWARM_NODE_NONE;
	uint32		count = 0;

	while (id != SWARM_NODE_NONE)
	{
		Buffer		buffer;

		if (id >= c->nodes)
		{
			swarm_check_problem(c, before, "broken list", "The %s leads to node %u of %u.",
								name, id, c->nodes);
			break;
		}
		if (state_of(c, id) != state)
		{
			if (state_of(c, id) != MARK_UNKNOWN)
				swarm_check_problem(c, id, "wrong node in a list", "State %s in the %s.",
									swarm_hnsw_state_name(state_of(c, id)), name);
			break;
		}
		if (c->marks[id] & MARK_LISTED)
		{
			swarm_check_problem(c, id, "broken list", "The %s leads there twice.", name);
			break;
		}
		c->marks[id] |= MARK_LISTED;
		count++;
		buffer = swarm_check_node_page(c, id);
		if (buffer == InvalidBuffer)
			break;
		before = id;
		id = swarm_hnsw_node(&c->index, BufferGetPage(buffer), id)->next;
		UnlockReleaseBuffer(buffer);
	}
	return count;
}

/*
 * check_unlisted: report the nodes of a state that were in no list.
 */
static void
check_unlisted(SwarmCheck *c, SwarmNodeState state)
{
	for (SwarmNodeId id = 0; id < c->nodes; id++)
		if (state_of(c, id) == state && !(c->marks[id] & MARK_LISTED))
			swarm_check_problem(c, id, "node is in no list", "State %s.",
								swarm_hnsw_state_name(state));
}

/*
 * swarm_check_links: invariants 6 and 7 on level 0, and 11.
 */
void
swarm_check_links(SwarmCheck *c)
{
	SwarmHnswIndex *index = &c->index;
	uint32		per_page = index->layout.per_page[SWARM_STREAM_NODE];
	SwarmNodeId *chains = palloc(per_page * sizeof(SwarmNodeId));

	for (SwarmNodeId first = 0; first < c->nodes; first += per_page)
	{
		Buffer		buffer = swarm_check_node_page(c, first);
		uint32		n = Min(per_page, c->nodes - first);
		Page		page;

		if (buffer == InvalidBuffer)
			continue;
		page = BufferGetPage(buffer);
		for (uint32 i = 0; i < n; i++)
		{
			SwarmNode  *node = swarm_hnsw_node(index, page, first + i);

			chains[i] = SWARM_NODE_NONE;
			if (in_states(c, first + i, IN_GRAPH & ~(1u << MARK_UNKNOWN)))
				check_degree(c, first + i, 0, node->degree,
							 swarm_hnsw_links(index, node));
			if (state_of(c, first + i) == SWARM_NODE_LINKED)
				chains[i] = node->next;
		}
		UnlockReleaseBuffer(buffer);
		for (uint32 i = 0; i < n; i++)
			if (chains[i] != SWARM_NODE_NONE)
				check_chain(c, first + i, chains[i]);
	}
	check_unlisted(c, SWARM_NODE_TWIN);
	pfree(chains);
}

/*
 * check_degree: the links of one node at one level.
 *
 * Those of a dead node may lead to what was freed before it.
 */
static void
check_degree(SwarmCheck *c, SwarmNodeId id, int level, uint32 degree,
			 const SwarmNodeId *links)
{
	bool		dead = state_of(c, id) == SWARM_NODE_DEAD;

	if (degree > swarm_hnsw_max_degree(&c->index, level))
	{
		swarm_check_problem(c, id, "too many links", "%u on level %d.", degree, level);
		return;
	}
	for (uint32 i = 0; i < degree; i++)
	{
		SwarmNodeId to = links[i];

		if (to >= c->nodes)
			/* What was added since we read the metapage is no problem. */
			swarm_check_problem(c, id, "link to no node", "To %u of %u on level %d.", to,
								c->nodes, level);
		else if (to == id)
			swarm_check_problem(c, id, "link to itself", "On level %d.", level);
		else if (!dead && !in_states(c, to, IN_GRAPH))
			swarm_check_problem(c, id, "link to a node outside the graph",
								"To %u on level %d, state %s.", to, level,
								swarm_hnsw_state_name(state_of(c, to)));
		else if (swarm_hnsw_level(&c->index.meta, to) < level)
			swarm_check_problem(c, id, "link to a node of a lower level",
								"To %u on level %d.", to, level);
		for (uint32 j = 0; j < i; j++)
			if (links[j] == to)
				swarm_check_problem(c, id, "link is there twice", "To %u on level %d.", to,
									level);
	}
}

/*
 * copy_code: what makes two nodes twins, except their refine codes.
 */
static Size
copy_code(const SwarmCheck *c, const SwarmNode *node, char *to)
{
	float4		generation = node->flags & SWARM_NODE_GENERATION;

	memcpy(to, &node->norm2, sizeof(float4));
	memcpy(to + sizeof(float4), &node->scale, sizeof(float4));
	memcpy(to + 2 * sizeof(float4), &generation, sizeof(float4));
	memcpy(to + 3 * sizeof(float4), node->code, c->index.codec.code_size);
	return 3 * sizeof(float4) + c->index.codec.code_size;
}

/*
 * check_chain: follow the twins of a node, of which `id` is the first.
 */
static void
check_chain(SwarmCheck *c, SwarmNodeId first, SwarmNodeId id)
{
	SwarmHnswIndex *index = &c->index;
	Buffer		buffer = swarm_check_node_page(c, first);
	char	   *code;

	if (buffer == InvalidBuffer)
		return;
	copy_code(c, swarm_hnsw_node(index, BufferGetPage(buffer), first), c->code);
	UnlockReleaseBuffer(buffer);
	code = MemoryContextAlloc(c->work, index->codec.code_size +
							  3 * sizeof(float4));
	while (id != SWARM_NODE_NONE)
	{
		SwarmNode  *node;
		SwarmNodeId back;
		SwarmNodeId next;
		Size		size;

		if (id >= c->nodes || state_of(c, id) != SWARM_NODE_TWIN)
		{
			if (id >= c->nodes || state_of(c, id) != MARK_UNKNOWN)
				swarm_check_problem(c, first, "broken chain of twins",
									"It leads to node %u, which is no twin.", id);
			break;
		}
		if (c->marks[id] & MARK_LISTED)
		{
			swarm_check_problem(c, first, "broken chain of twins",
								"Node %u is in it twice, or in two.", id);
			break;
		}
		c->marks[id] |= MARK_LISTED;
		buffer = swarm_check_node_page(c, id);
		if (buffer == InvalidBuffer)
			break;
		node = swarm_hnsw_node(index, BufferGetPage(buffer), id);
		back = swarm_hnsw_links(index, node)[0];
		size = copy_code(c, node, code);
		next = node->next;
		UnlockReleaseBuffer(buffer);
		if (back != first)
			swarm_check_problem(c, id, "twin of another node",
								"It is in the chain of %u and says %u.", first, back);
		if (memcmp(code, c->code, size) != 0)
			swarm_check_problem(c, id, "twin with another code",
								"It is in the chain of %u.", first);
		id = next;
	}
	MemoryContextReset(c->work);
}

/*
 * swarm_check_upper: invariants 3, 6 and 7 on level 1 and above.
 */
void
swarm_check_upper(SwarmCheck *c)
{
	SwarmHnswIndex *index = &c->index;
	uint32		per_page = index->layout.per_page[SWARM_STREAM_UPPER];

	for (SwarmNodeId first = 0; first < c->nodes; first += per_page)
	{
		Buffer		buffer = swarm_check_page(c, SWARM_STREAM_UPPER, first / per_page,
											  false);
		uint32		n = Min(per_page, c->nodes - first);

		if (buffer == InvalidBuffer)
			continue;
		for (SwarmNodeId id = first; id < first + n; id++)
		{
			int			top = swarm_hnsw_level(&index->meta, id);

			for (int level = 1; level <= top; level++)
			{
				SwarmUpper *upper = swarm_hnsw_upper(index,
													 BufferGetPage(buffer), id,
													 level);

				if (in_states(c, id, IN_GRAPH))
					check_degree(c, id, level, upper->degree, upper->links);
				else if (upper->degree != 0)
					swarm_check_problem(c, id, "links of a node outside the graph",
										"%u links on level %d in state %s.", upper->degree,
										level, swarm_hnsw_state_name(state_of(c, id)));
			}
		}
		UnlockReleaseBuffer(buffer);
	}
}

/*
 * expand_page: follow the links of the nodes of a page that are reached; how
 * many nodes were that anew.
 */
static uint32
expand_page(SwarmCheck *c, SwarmNodeId first, uint32 n)
{
	SwarmHnswIndex *index = &c->index;
	Buffer		buffer;
	uint32		fresh = 0;
	bool		any = false;

	for (uint32 i = 0; i < n && !any; i++)
		any = (c->marks[first + i] & (MARK_REACHED | MARK_EXPANDED)) ==
			MARK_REACHED;
	if (!any)
		return 0;
	buffer = swarm_check_node_page(c, first);
	if (buffer == InvalidBuffer)
		return 0;
	for (uint32 i = 0; i < n; i++)
	{
		uint8	   *mark = &c->marks[first + i];
		SwarmNode  *node;
		SwarmNodeId *links;

		if ((*mark & (MARK_REACHED | MARK_EXPANDED)) != MARK_REACHED)
			continue;
		*mark |= MARK_EXPANDED;
		node = swarm_hnsw_node(index, BufferGetPage(buffer), first + i);
		links = swarm_hnsw_links(index, node);
		for (uint32 j = 0; j < node->degree &&
			 j < swarm_hnsw_max_degree(index, 0); j++)
			if (links[j] < c->nodes && in_states(c, links[j], IN_GRAPH) &&
				!(c->marks[links[j]] & MARK_REACHED))
			{
				c->marks[links[j]] |= MARK_REACHED;
				fresh++;
			}
	}
	UnlockReleaseBuffer(buffer);
	return fresh;
}

/*
 * swarm_check_reach: invariant 8: from the entry point, page by page, until nothing
 * new is reached.
 */
void
swarm_check_reach(SwarmCheck *c)
{
	const SwarmHnswMeta *meta = &c->index.meta;
	uint32		per_page = c->index.layout.per_page[SWARM_STREAM_NODE];
	uint32		fresh = 1;

	if (meta->entry != SWARM_NODE_NONE &&
		(meta->entry >= c->nodes || !in_states(c, meta->entry, IN_GRAPH)))
		swarm_check_problem(c, SWARM_NODE_NONE, "wrong entry point",
							"Node %u, state %s.", meta->entry, meta->entry >= c->nodes ?
							"none" : swarm_hnsw_state_name(state_of(c, meta->entry)));
	else if (meta->entry != SWARM_NODE_NONE)
		c->marks[meta->entry] |= MARK_REACHED;

	while (fresh > 0)
	{
		fresh = 0;
		for (SwarmNodeId first = 0; first < c->nodes; first += per_page)
			fresh += expand_page(c, first, Min(per_page, c->nodes - first));
	}
	for (SwarmNodeId id = 0; id < c->nodes; id++)
		if (state_of(c, id) == SWARM_NODE_LINKED &&
			!(c->marks[id] & MARK_REACHED))
			swarm_check_problem(c, id, "node cannot be reached", "From the entry point, node %u.",
								meta->entry);
}
