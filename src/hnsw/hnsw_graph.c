/*
 * hnsw_graph.c
 *	  The graph in memory during CREATE INDEX.
 *
 * The algorithm is that of the pages (hnsw_search.c, hnsw_link.c) over arrays:
 * distances are integer products of signed bytes, links are ids.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "hnsw/hnsw_build_int.h"

#define MAX_LINKS		200
#define TWIN_CANDIDATES	4
#define FIRST_ROOM		1024

static void grow(SwarmGraph *graph, uint32 room);
static SwarmNodeId *links_of(const SwarmGraph *graph, SwarmNodeId node,
							 int level);
static SwarmNodeId find_twin(const SwarmGraph *graph, SwarmNodeId node);
static void walk_layer(SwarmGraph *graph, const SwarmPoint *query, int level,
					   int ef);
static int	choose(SwarmGraph *graph, SwarmNodeId self,
				   const SwarmCandidates *sorted, int max,
				   SwarmNodeId *chosen);
static void link_back(SwarmGraph *graph, SwarmNodeId from, int level,
					  SwarmNodeId to, float distance);

/*
 * point_of: a node as a point.
 */
static inline SwarmPoint
point_of(const SwarmGraph *graph, SwarmNodeId node)
{
	SwarmPoint	point = {
		.levels = graph->levels + (Size) node * graph->index->dims,
		.step = graph->nodes[node].step,
		.norm2 = graph->nodes[node].norm2
	};

	return point;
}

/*
 * distance_to: of a node from a point.
 */
static inline float
distance_to(const SwarmGraph *graph, const SwarmPoint *query, SwarmNodeId node)
{
	SwarmPoint	point = point_of(graph, node);

	return swarm_hnsw_point_distance(query, &point, graph->index->dims);
}

/*
 * swarm_graph_new: an empty graph, with room for about `rows`, in a context
 * below the current one.
 */
SwarmGraph *
swarm_graph_new(SwarmHnswIndex *index, double rows)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "qhnsw build graph",
												  ALLOCSET_DEFAULT_SIZES);
	SwarmGraph *graph = MemoryContextAllocZero(context, sizeof(SwarmGraph));

	graph->context = context;
	graph->index = index;
	graph->limit = (Size) maintenance_work_mem * 1024;
	graph->entry = SWARM_NODE_NONE;
	graph->m = index->meta.m;
	graph->code_size = index->codec.code_size + index->codec.refine_size;
	return graph;
}

/*
 * swarm_graph_free: give the memory back.
 */
void
swarm_graph_free(SwarmGraph *graph)
{
	MemoryContextDelete(graph->context);
}

/*
 * node_bytes: memory for one node.
 */
static Size
node_bytes(const SwarmGraph *graph)
{
	return sizeof(SwarmGraphNode) + graph->index->dims + graph->code_size +
		sizeof(SwarmNodeId) * (1 + 2 * graph->m) + sizeof(uint32) +
		sizeof(SwarmNodeId) * (1 + graph->m) / (SWARM_HNSW_FANOUT - 1);
}

/*
 * swarm_graph_reserve: make room for one more node; false when that takes
 * more than maintenance_work_mem.
 */
bool
swarm_graph_reserve(SwarmGraph *graph)
{
	Size		most = graph->limit / node_bytes(graph);

	if (graph->count < graph->room)
		return true;
	if (graph->room >= most && graph->room >= FIRST_ROOM)
		return false;
	grow(graph, Max(Min(most, Max(FIRST_ROOM, 2 * (Size) graph->room)),
					FIRST_ROOM));
	return true;
}

/*
 * resize: an array with room for `bytes`, zero where it is new.
 */
static void *
resize(SwarmGraph *graph, void *array, Size old, Size bytes)
{
	char	   *new = array == NULL ?
		MemoryContextAllocHuge(graph->context, bytes) :
		repalloc_huge(array, bytes);

	memset(new + old, 0, bytes - old);
	return new;
}

/*
 * grow: resize all arrays.
 */
static void
grow(SwarmGraph *graph, uint32 room)
{
	Size		old = graph->room;
	Size		width = sizeof(SwarmNodeId) * (1 + 2 * graph->m);
	Size		upper_width = sizeof(SwarmNodeId) * (1 + graph->m);

	graph->nodes = resize(graph, graph->nodes, old * sizeof(SwarmGraphNode),
						  room * sizeof(SwarmGraphNode));
	graph->levels = resize(graph, graph->levels, old * graph->index->dims,
						   (Size) room * graph->index->dims);
	graph->codes = resize(graph, graph->codes, old * graph->code_size,
						  room * graph->code_size);
	graph->links = resize(graph, graph->links, old * width, room * width);
	graph->seen = resize(graph, graph->seen, old * sizeof(uint32),
						 room * sizeof(uint32));
	for (int level = 1; level <= SWARM_HNSW_MAX_LEVEL; level++)
	{
		int			shift = level * SWARM_HNSW_FANOUT_BITS;
		Size		before = old == 0 ? 0 : (old >> shift) + 1;

		graph->upper[level] = resize(graph, graph->upper[level],
									 before * upper_width,
									 (((Size) room >> shift) + 1) * upper_width);
	}
	graph->room = room;
}

/*
 * links_of: the links of a node at a level; the first element is the degree.
 */
static SwarmNodeId *
links_of(const SwarmGraph *graph, SwarmNodeId node, int level)
{
	if (level == 0)
		return graph->links + (Size) node * (1 + 2 * graph->m);
	return graph->upper[level] +
		(Size) (node >> (level * SWARM_HNSW_FANOUT_BITS)) * (1 + graph->m);
}

/*
 * swarm_graph_links: for the placement: what to put beside a node: its links,
 * or for a node with twins, nothing more (they are reached by themselves).
 */
int
swarm_graph_links(const SwarmGraph *graph, SwarmNodeId node,
				  const SwarmNodeId **links)
{
	const SwarmNodeId *first = links_of(graph, node, 0);

	*links = first + 1;
	return graph->nodes[node].state == SWARM_NODE_LINKED ? first[0] : 0;
}

/*
 * swarm_graph_add_odd: a row without a code.
 */
void
swarm_graph_add_odd(SwarmGraph *graph, ItemPointer tid, uint8 flags)
{
	SwarmGraphNode *node = &graph->nodes[graph->count++];

	node->tid = *tid;
	node->state = SWARM_NODE_ODD;
	node->flags = flags;
	node->next = SWARM_NODE_NONE;
	graph->odd++;
}

/*
 * swarm_graph_add: store a row and link it.  There is room: see
 * swarm_graph_reserve.
 */
void
swarm_graph_add(SwarmGraph *graph, ItemPointer tid, const SwarmHnswCode *code,
				const float *residual)
{
	SwarmHnswIndex *index = graph->index;
	SwarmNodeId self = graph->count++;
	SwarmGraphNode *node = &graph->nodes[self];
	uint8	   *codes = graph->codes + self * graph->code_size;
	int			level = swarm_hnsw_level(&index->meta, self);
	SwarmPoint	query = {.levels = graph->levels + (Size) self * index->dims};
	SwarmCandidate nearest;
	SwarmNodeId chosen[MAX_LINKS];
	MemoryContext old;

	node->tid = *tid;
	node->state = SWARM_NODE_LINKED;
	node->next = SWARM_NODE_NONE;
	node->factors = code->factors;
	node->flags = code->generation & SWARM_NODE_GENERATION;
	memcpy(codes, code->code, index->codec.code_size);
	if (code->refine != NULL)
		memcpy(codes + index->codec.code_size, code->refine,
			   index->codec.refine_size);
	swarm_hnsw_point_set(residual, index->dims, &query);
	node->step = query.step;
	node->norm2 = query.norm2;

	if (graph->entry == SWARM_NODE_NONE)
	{
		graph->entry = self;
		graph->entry_level = level;
		return;
	}

	nearest.id = graph->entry;
	nearest.distance = distance_to(graph, &query, nearest.id);
	for (int lc = graph->entry_level; lc > level; lc--)
	{
		bool		moved = true;

		while (moved)
		{
			const SwarmNodeId *links = links_of(graph, nearest.id, lc);

			moved = false;
			for (uint32 i = 1; i <= links[0]; i++)
			{
				float		distance = distance_to(graph, &query, links[i]);

				if (distance < nearest.distance)
				{
					nearest.distance = distance;
					nearest.id = links[i];
					moved = true;
				}
			}
		}
	}

	old = MemoryContextSwitchTo(graph->context);
	graph->starts.count = 0;
	swarm_hnsw_append(&graph->starts, nearest);
	for (int lc = Min(level, graph->entry_level); lc >= 0; lc--)
	{
		SwarmNodeId *links = links_of(graph, self, lc);
		int			count;

		walk_layer(graph, &query, lc, index->meta.ef_construction);
		swarm_hnsw_sort(&graph->best);
		if (lc == 0)
		{
			SwarmNodeId twin = find_twin(graph, self);

			if (twin != SWARM_NODE_NONE)
			{
				node->state = SWARM_NODE_TWIN;
				node->next = graph->nodes[twin].next;
				graph->nodes[twin].next = self;
				links[0] = 0;
				links[1] = twin;
				MemoryContextSwitchTo(old);
				return;
			}
		}
		count = choose(graph, self, &graph->best, graph->m, chosen);
		links[0] = count;
		memcpy(links + 1, chosen, count * sizeof(SwarmNodeId));
		graph->starts.count = 0;
		for (int i = 0; i < graph->best.count; i++)
			swarm_hnsw_append(&graph->starts, graph->best.items[i]);
	}

	/* Only now others lead here. */
	for (int lc = Min(level, graph->entry_level); lc >= 0; lc--)
	{
		const SwarmNodeId *links = links_of(graph, self, lc);

		for (uint32 i = 1; i <= links[0]; i++)
			link_back(graph, links[i], lc, self,
					  distance_to(graph, &query, links[i]));
	}
	if (level > graph->entry_level)
	{
		graph->entry = self;
		graph->entry_level = level;
	}
	MemoryContextSwitchTo(old);
}

/*
 * find_twin: a node among the nearest with the same codes as `node`.
 */
static SwarmNodeId
find_twin(const SwarmGraph *graph, SwarmNodeId node)
{
	const SwarmGraphNode *mine = &graph->nodes[node];
	const uint8 *codes = graph->codes + node * graph->code_size;

	for (int i = 0; i < Min(graph->best.count, TWIN_CANDIDATES); i++)
	{
		SwarmNodeId other = graph->best.items[i].id;

		if (graph->nodes[other].factors.norm2 == mine->factors.norm2 &&
			graph->nodes[other].factors.scale == mine->factors.scale &&
			memcmp(graph->codes + other * graph->code_size, codes,
				   graph->code_size) == 0)
			return other;
	}
	return SWARM_NODE_NONE;
}

/*
 * walk_layer: the ef nearest nodes of a level, in graph->best, from
 * graph->starts.
 */
static void
walk_layer(SwarmGraph *graph, const SwarmPoint *query, int level, int ef)
{
	graph->turn++;
	graph->near.count = 0;
	graph->best.count = 0;
	for (int i = 0; i < graph->starts.count; i++)
	{
		graph->seen[graph->starts.items[i].id] = graph->turn;
		swarm_hnsw_push_min(&graph->near, graph->starts.items[i]);
		swarm_hnsw_push_max(&graph->best, graph->starts.items[i]);
	}

	while (graph->near.count > 0)
	{
		SwarmCandidate c = swarm_hnsw_pop_min(&graph->near);
		SwarmNodeId fresh[MAX_LINKS];
		const SwarmNodeId *links;
		int			n = 0;

		if (graph->best.count >= ef &&
			c.distance > graph->best.items[0].distance)
			break;
		links = links_of(graph, c.id, level);
		for (uint32 i = 1; i <= links[0]; i++)
		{
			SwarmNodeId id = links[i];

			if (graph->seen[id] == graph->turn)
				continue;
			graph->seen[id] = graph->turn;
			fresh[n++] = id;
			for (int j = 0; j < Min(graph->index->dims, 512); j += 64)
				__builtin_prefetch(graph->levels + (Size) id * graph->index->dims + j);
			__builtin_prefetch(&graph->nodes[id].step);
		}
		for (int i = 0; i < n; i++)
		{
			SwarmCandidate found = {.id = fresh[i]};

			found.distance = distance_to(graph, query, fresh[i]);
			if (graph->best.count >= ef &&
				found.distance >= graph->best.items[0].distance)
				continue;
			swarm_hnsw_push_min(&graph->near, found);
			swarm_hnsw_push_max(&graph->best, found);
			if (graph->best.count > ef)
				swarm_hnsw_pop_max(&graph->best);
		}
	}
}

/*
 * choose: links for a node from sorted candidates.
 */
static int
choose(SwarmGraph *graph, SwarmNodeId self, const SwarmCandidates *sorted,
	   int max, SwarmNodeId *chosen)
{
	int			count = 0;
	SwarmPoint	taken[MAX_LINKS];

	for (int i = 0; i < sorted->count && count < max; i++)
	{
		const SwarmCandidate *c = &sorted->items[i];
		SwarmPoint	point;
		bool		take = c->id != self;

		point = point_of(graph, c->id);
		for (int j = 0; j < count && take; j++)
			take = swarm_hnsw_point_distance(&point, &taken[j],
											 graph->index->dims) >= c->distance;
		if (!take)
			continue;
		taken[count] = point;
		chosen[count++] = c->id;
	}
	return count;
}

/*
 * link_back: add a link; when a node has all it may have, choose anew.
 */
static void
link_back(SwarmGraph *graph, SwarmNodeId from, int level, SwarmNodeId to,
		  float distance)
{
	SwarmNodeId *links = links_of(graph, from, level);
	uint32		max = level == 0 ? 2 * graph->m : graph->m;
	SwarmCandidate items[MAX_LINKS + 1];
	SwarmCandidates sorted = {.items = items,.room = MAX_LINKS + 1};
	SwarmNodeId chosen[MAX_LINKS];
	SwarmPoint	point;

	if (links[0] < max)
	{
		links[++links[0]] = to;
		return;
	}
	point = point_of(graph, from);
	for (uint32 i = 1; i <= max; i++)
	{
		items[sorted.count].id = links[i];
		items[sorted.count++].distance = distance_to(graph, &point, links[i]);
	}
	items[sorted.count].id = to;
	items[sorted.count++].distance = distance;
	swarm_hnsw_sort(&sorted);
	links[0] = choose(graph, from, &sorted, max, chosen);
	memcpy(links + 1, chosen, links[0] * sizeof(SwarmNodeId));
}

/*
 * swarm_graph_write: a node into its pages.  ids[place] is the id of a place.
 */
void
swarm_graph_write(const SwarmGraph *graph, SwarmNodeId place,
				  const SwarmNodeId *ids, SwarmNodeId id, Page node_page,
				  Page upper_page, Page refine_page)
{
	const SwarmHnswIndex *index = graph->index;
	const SwarmGraphNode *from = &graph->nodes[place];
	const uint8 *codes = graph->codes + place * graph->code_size;
	const SwarmNodeId *links = links_of(graph, place, 0);
	SwarmNode  *node = swarm_hnsw_node(index, node_page, id);
	SwarmNodeId *to = swarm_hnsw_links(index, node);
	int			level = swarm_hnsw_level(&index->meta, id);

	node->version = 0;
	node->state = from->state;
	node->flags = from->flags;
	node->next = from->next == SWARM_NODE_NONE ? SWARM_NODE_NONE : ids[from->next];
	node->norm2 = from->factors.norm2;
	node->scale = from->factors.scale;
	node->tid = from->tid;
	if (from->state == SWARM_NODE_ODD)
		return;
	memcpy(node->code, codes, index->codec.code_size);
	if (refine_page != NULL)
	{
		SwarmRefine *refine = swarm_hnsw_refine(index, refine_page, id);

		refine->scale = from->factors.refine_scale;
		memcpy(refine->code, codes + index->codec.code_size,
			   index->codec.refine_size);
	}
	if (from->state == SWARM_NODE_TWIN)
	{
		to[0] = ids[links[1]];
		return;
	}
	node->degree = links[0];
	for (uint32 i = 0; i < links[0]; i++)
		to[i] = ids[links[i + 1]];
	for (int lc = 1; lc <= level; lc++)
	{
		SwarmUpper *upper = swarm_hnsw_upper(index, upper_page, id, lc);

		links = links_of(graph, place, lc);
		upper->degree = links[0];
		for (uint32 i = 0; i < links[0]; i++)
			upper->links[i] = ids[links[i + 1]];
	}
}
