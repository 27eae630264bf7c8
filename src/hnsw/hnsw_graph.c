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

/* Candidates that links are chosen from: ef_construction at most. */
#define MAX_CANDIDATES	2000

/* Nodes that become points when they are looked at. */
typedef struct NodeLoader
{
	SwarmGraph *graph;
	SwarmPoint *points;
	const SwarmNodeId *ids;
} NodeLoader;

/* Room beyond what the estimate of the rows and the memory say. */
#define SPARE_ROOM		1024

/* How often a change of links is tried anew after another one came first. */
#define MAX_TRIES		8

static SwarmNodeId new_node(SwarmGraph *graph, ItemPointer tid,
							SwarmNodeState state, uint8 flags);
static SwarmNodeId *links_of(const SwarmGraph *graph, SwarmNodeId node,
							 int level);
static bool join_twin(SwarmGraph *graph, SwarmNodeId self);
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
 * upper_room: how many nodes of a level there can be among so many.
 */
static inline Size
upper_room(uint32 room, int level)
{
	return (room >> (level * SWARM_HNSW_FANOUT_BITS)) + 1;
}

/*
 * swarm_graph_room: for how many nodes to make room: for a few more than there
 * seem to be rows, as far as maintenance_work_mem goes.
 */
uint32
swarm_graph_room(const SwarmHnswIndex *index, double rows)
{
	Size		limit = (Size) maintenance_work_mem * 1024;
	Size		few = swarm_graph_size(index, SPARE_ROOM);
	Size		more = swarm_graph_size(index, 65 * 1024) -
	swarm_graph_size(index, 1024);
	double		most = limit > few ?
	(limit - few) / (more / (64.0 * 1024)) : 0;
	double		wanted = rows * 1.05;

	return (uint32) Min(Min(wanted, most) + SPARE_ROOM, SWARM_NODE_NONE - 1);
}

/*
 * swarm_graph_size: bytes of the shared part of a graph of so many nodes.
 */
Size
swarm_graph_size(const SwarmHnswIndex *index, uint32 room)
{
	Size		size = MAXALIGN(sizeof(SwarmGraphShared));

	size += MAXALIGN(sizeof(SwarmGraphNode) * (Size) room);
	size += MAXALIGN((Size) index->dims * room);
	size += MAXALIGN((Size) (index->codec.code_size + index->codec.refine_size) * room);
	size += MAXALIGN(sizeof(SwarmNodeId) * (Size) (1 + 2 * index->meta.m) * room);
	for (int level = 1; level <= SWARM_HNSW_MAX_LEVEL; level++)
		size += MAXALIGN(sizeof(SwarmNodeId) * (1 + index->meta.m) *
						 upper_room(room, level));
	return size;
}

/*
 * swarm_graph_init: an empty graph in memory of swarm_graph_size bytes.
 */
void
swarm_graph_init(SwarmGraphShared *shared, uint32 room)
{
	pg_atomic_init_u32(&shared->count, 0);
	pg_atomic_init_u32(&shared->odd, 0);
	SpinLockInit(&shared->lock);
	shared->room = room;
	shared->entry = SWARM_NODE_NONE;
	shared->entry_level = 0;
}

/*
 * swarm_graph_attach: the view of one process, in the current context.
 */
SwarmGraph *
swarm_graph_attach(SwarmHnswIndex *index, SwarmGraphShared *shared)
{
	SwarmGraph *graph = palloc0(sizeof(SwarmGraph));
	uint32		room = shared->room;
	char	   *next = (char *) shared + MAXALIGN(sizeof(SwarmGraphShared));

	graph->context = CurrentMemoryContext;
	graph->index = index;
	graph->shared = shared;
	graph->m = index->meta.m;
	graph->code_size = index->codec.code_size + index->codec.refine_size;
	graph->nodes = (SwarmGraphNode *) next;
	next += MAXALIGN(sizeof(SwarmGraphNode) * (Size) room);
	graph->levels = (int8 *) next;
	next += MAXALIGN((Size) index->dims * room);
	graph->codes = (uint8 *) next;
	next += MAXALIGN(graph->code_size * room);
	graph->links = (SwarmNodeId *) next;
	next += MAXALIGN(sizeof(SwarmNodeId) * (Size) (1 + 2 * graph->m) * room);
	for (int level = 1; level <= SWARM_HNSW_MAX_LEVEL; level++)
	{
		graph->upper[level] = (SwarmNodeId *) next;
		next += MAXALIGN(sizeof(SwarmNodeId) * (1 + graph->m) *
						 upper_room(room, level));
	}
	graph->seen = MemoryContextAllocExtended(CurrentMemoryContext,
											 sizeof(uint32) * (Size) room,
											 MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	return graph;
}

/*
 * swarm_graph_count: how many nodes there are.
 */
uint32
swarm_graph_count(const SwarmGraph *graph)
{
	return Min(pg_atomic_read_u32(&graph->shared->count), graph->shared->room);
}

/*
 * new_node: a place for a node; SWARM_NODE_NONE when all are taken.
 */
static SwarmNodeId
new_node(SwarmGraph *graph, ItemPointer tid, SwarmNodeState state, uint8 flags)
{
	SwarmNodeId self = pg_atomic_fetch_add_u32(&graph->shared->count, 1);
	SwarmGraphNode *node;
	int			level;

	if (self >= graph->shared->room)
	{
		/* Keep it from going round. */
		pg_atomic_write_u32(&graph->shared->count, graph->shared->room);
		return SWARM_NODE_NONE;
	}
	node = &graph->nodes[self];
	SpinLockInit(&node->lock);
	node->tid = *tid;
	node->state = state;
	node->flags = flags;
	node->next = SWARM_NODE_NONE;
	level = swarm_hnsw_level(&graph->index->meta, self);
	for (int lc = 0; lc <= level; lc++)
		links_of(graph, self, lc)[0] = 0;
	return self;
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
 * copy_links: the links of a node as they are now; returns how many.
 */
static uint32
copy_links(const SwarmGraph *graph, SwarmNodeId node, int level,
		   SwarmNodeId *copy)
{
	const SwarmNodeId *links = links_of(graph, node, level);
	uint32		degree;

	SpinLockAcquire(&graph->nodes[node].lock);
	degree = links[0];
	memcpy(copy, links + 1, degree * sizeof(SwarmNodeId));
	SpinLockRelease(&graph->nodes[node].lock);
	return degree;
}

/*
 * swarm_graph_add_odd: a row without a code; false when the graph is full.
 */
bool
swarm_graph_add_odd(SwarmGraph *graph, ItemPointer tid, uint8 flags)
{
	if (new_node(graph, tid, SWARM_NODE_ODD, flags) == SWARM_NODE_NONE)
		return false;
	pg_atomic_fetch_add_u32(&graph->shared->odd, 1);
	return true;
}

/*
 * swarm_graph_add: store a row and link it; false when the graph is full.
 */
bool
swarm_graph_add(SwarmGraph *graph, ItemPointer tid, const SwarmHnswCode *code,
				const float *residual)
{
	SwarmHnswIndex *index = graph->index;
	SwarmGraphShared *shared = graph->shared;
	SwarmNodeId self = new_node(graph, tid, SWARM_NODE_LINKED,
								code->generation & SWARM_NODE_GENERATION);
	SwarmGraphNode *node = &graph->nodes[self];
	uint8	   *codes;
	SwarmPoint	query;
	SwarmCandidate nearest;
	SwarmNodeId links[MAX_LINKS];
	MemoryContext old;
	int			level;
	int			top;

	if (self == SWARM_NODE_NONE)
		return false;
	level = swarm_hnsw_level(&index->meta, self);
	codes = graph->codes + self * graph->code_size;
	node->factors = code->factors;
	memcpy(codes, code->code, index->codec.code_size);
	if (code->refine != NULL)
		memcpy(codes + index->codec.code_size, code->refine,
			   index->codec.refine_size);
	query.levels = graph->levels + (Size) self * index->dims;
	swarm_hnsw_point_set(residual, index->dims, &query);
	node->step = query.step;
	node->norm2 = query.norm2;

	SpinLockAcquire(&shared->lock);
	nearest.id = shared->entry;
	top = shared->entry_level;
	if (nearest.id == SWARM_NODE_NONE)
	{
		shared->entry = self;
		shared->entry_level = level;
	}
	SpinLockRelease(&shared->lock);
	if (nearest.id == SWARM_NODE_NONE)
		return true;

	nearest.distance = distance_to(graph, &query, nearest.id);
	for (int lc = top; lc > level; lc--)
	{
		bool		moved = true;

		while (moved)
		{
			uint32		n = copy_links(graph, nearest.id, lc, links);

			moved = false;
			for (uint32 i = 0; i < n; i++)
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
	for (int lc = Min(level, top); lc >= 0; lc--)
	{
		SwarmNodeId *mine = links_of(graph, self, lc);

		walk_layer(graph, &query, lc, index->meta.ef_construction);
		swarm_hnsw_sort(&graph->best);
		if (lc == 0 && join_twin(graph, self))
		{
			MemoryContextSwitchTo(old);
			return true;
		}
		mine[0] = choose(graph, self, &graph->best,
						 swarm_hnsw_new_degree(index, lc), mine + 1);
		graph->starts.count = 0;
		for (int i = 0; i < graph->best.count; i++)
			swarm_hnsw_append(&graph->starts, graph->best.items[i]);
	}

	/* Only now others lead here. */
	for (int lc = Min(level, top); lc >= 0; lc--)
	{
		uint32		n = copy_links(graph, self, lc, links);

		for (uint32 i = 0; i < n; i++)
			link_back(graph, links[i], lc, self,
					  distance_to(graph, &query, links[i]));
	}
	if (level > top)
	{
		SpinLockAcquire(&shared->lock);
		if (level > shared->entry_level)
		{
			shared->entry = self;
			shared->entry_level = level;
		}
		SpinLockRelease(&shared->lock);
	}
	MemoryContextSwitchTo(old);
	return true;
}

/*
 * join_twin: when a node among the nearest has the same codes, become its
 * twin.
 */
static bool
join_twin(SwarmGraph *graph, SwarmNodeId self)
{
	SwarmGraphNode *mine = &graph->nodes[self];
	const uint8 *codes = graph->codes + self * graph->code_size;

	for (int i = 0; i < Min(graph->best.count, TWIN_CANDIDATES); i++)
	{
		SwarmNodeId other = graph->best.items[i].id;
		SwarmGraphNode *first = &graph->nodes[other];
		SwarmNodeId *links = links_of(graph, self, 0);

		if (other == self || first->factors.norm2 != mine->factors.norm2 ||
			first->factors.scale != mine->factors.scale ||
			memcmp(graph->codes + other * graph->code_size, codes,
				   graph->code_size) != 0)
			continue;
		mine->state = SWARM_NODE_TWIN;
		links[0] = 0;
		links[1] = other;
		SpinLockAcquire(&first->lock);
		mine->next = first->next;
		first->next = self;
		SpinLockRelease(&first->lock);
		return true;
	}
	return false;
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
		SwarmNodeId links[MAX_LINKS];
		uint32		degree;
		int			n = 0;

		if (graph->best.count >= ef &&
			c.distance > graph->best.items[0].distance)
			break;
		degree = copy_links(graph, c.id, level, links);
		for (uint32 i = 0; i < degree; i++)
		{
			SwarmNodeId id = links[i];

			if (graph->seen[id] == graph->turn)
				continue;
			graph->seen[id] = graph->turn;
			fresh[n++] = id;
			for (int j = 0; j < Min(graph->index->dims, 1024); j += 64)
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
			__builtin_prefetch(links_of(graph, found.id, level));
			__builtin_prefetch(links_of(graph, found.id, level) + 16);
			swarm_hnsw_push_max(&graph->best, found);
			if (graph->best.count > ef)
				swarm_hnsw_pop_max(&graph->best);
		}
	}
}

/*
 * load_node: make the i-th of some nodes ready to be chosen.
 */
static void
load_node(void *arg, int i)
{
	NodeLoader *loader = arg;

	loader->points[i] = point_of(loader->graph, loader->ids[i]);
}

/*
 * choose: links for a node from sorted candidates.
 */
static int
choose(SwarmGraph *graph, SwarmNodeId self, const SwarmCandidates *sorted,
	   int max, SwarmNodeId *chosen)
{
	int			n = Min(sorted->count, MAX_CANDIDATES);
	SwarmPoint	points[MAX_CANDIDATES];
	SwarmNodeId ids[MAX_CANDIDATES];
	float		distances[MAX_CANDIDATES];
	int			picked[MAX_LINKS];
	NodeLoader	loader = {.graph = graph, .points = points, .ids = ids};
	int			count = 0;

	for (int i = 0; i < n; i++)
		if (sorted->items[i].id != self)
		{
			ids[count] = sorted->items[i].id;
			distances[count++] = sorted->items[i].distance;
		}
	count = swarm_hnsw_select(points, distances, count, graph->index->dims, max,
							  picked, load_node, &loader);
	for (int i = 0; i < count; i++)
		chosen[i] = ids[picked[i]];
	return count;
}

/*
 * link_back: add a link; when a node has all it may have, choose anew, without
 * its lock, and try again when its links changed meanwhile.
 *
 * The link may be there: a process that came to `to` by a higher level, while
 * that one was still linking back on it, has chosen it for `from`, and `from`
 * is among its links by now.
 */
static void
link_back(SwarmGraph *graph, SwarmNodeId from, int level, SwarmNodeId to,
		  float distance)
{
	SwarmNodeId *links = links_of(graph, from, level);
	slock_t    *lock = &graph->nodes[from].lock;
	uint32		max = level == 0 ? 2 * graph->m : graph->m;
	SwarmPoint	point = point_of(graph, from);

	for (int try = 0; try < MAX_TRIES; try++)
	{
		SwarmCandidate items[MAX_LINKS + 1];
		SwarmCandidates sorted = {.items = items, .room = MAX_LINKS + 1};
		SwarmNodeId before[MAX_LINKS];
		SwarmNodeId chosen[MAX_LINKS];
		uint32		count;
		bool		done = false;

		SpinLockAcquire(lock);
		for (uint32 i = 1; i <= links[0] && !done; i++)
			done = links[i] == to;
		if (!done && links[0] < max)
		{
			links[++links[0]] = to;
			done = true;
		}
		else if (!done)
			memcpy(before, links + 1, max * sizeof(SwarmNodeId));
		SpinLockRelease(lock);
		if (done)
			return;

		for (uint32 i = 0; i < max; i++)
		{
			items[sorted.count].id = before[i];
			items[sorted.count++].distance = distance_to(graph, &point, before[i]);
		}
		items[sorted.count].id = to;
		items[sorted.count++].distance = distance;
		swarm_hnsw_sort(&sorted);
		count = choose(graph, from, &sorted, max, chosen);

		SpinLockAcquire(lock);
		if (links[0] == max &&
			memcmp(links + 1, before, max * sizeof(SwarmNodeId)) == 0)
		{
			links[0] = count;
			memcpy(links + 1, chosen, count * sizeof(SwarmNodeId));
			done = true;
		}
		SpinLockRelease(lock);
		if (done)
			return;
	}
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

	swarm_hnsw_use_page(node_page, (char *) node +
						index->layout.slot_size[SWARM_STREAM_NODE]);
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

		swarm_hnsw_use_page(refine_page, (char *) refine +
							index->layout.slot_size[SWARM_STREAM_REFINE]);
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
