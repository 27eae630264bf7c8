/*
 * hnsw_link.c
 *	  Linking a stored node into the graph.
 *
 * The order of writing makes any crash harmless: a node's own links are
 * written before anything links to it, links back come one page at a time,
 * the entry point last.  What a crash leaves out is missing links, and the
 * node is still pending, so that the next fold does it again.
 *
 * Whoever links holds the link lock in share mode, by which vacuum waits for
 * those that may have chosen a node before it died.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "base/fault.h"
#include "hnsw/hnsw_int.h"

/* The page number that stands for the link lock. */
#define LINK_LOCK		1

/* How often a change of links is tried anew after another one came first. */
#define MAX_TRIES		8

/* Candidates whose codes are compared for equality. */
#define TWIN_CANDIDATES	4

/* Nodes whose points are loaded on demand. */
typedef struct PointLoader
{
	SwarmHnswIndex *index;
	Relation	rel;
	const SwarmNodeId *ids;
	SwarmPoint *points;
	int8	   *levels;
	float	   *work;
} PointLoader;

static SwarmNodeId find_twin(SwarmHnswIndex *index, Relation rel,
							 SwarmNodeId id, const SwarmCandidates *found);
static int	choose_from(SwarmHnswIndex *index, Relation rel, SwarmNodeId id,
						const SwarmCandidates *found, int max,
						SwarmNodeId *chosen);
static void link_back(SwarmHnswIndex *index, Relation rel, SwarmNodeId from,
					  int level, SwarmNodeId to);
static bool append_link(SwarmHnswIndex *index, Relation rel, SwarmNodeId from,
						int level, SwarmNodeId to);
static void raise_entry(SwarmHnswIndex *index, Relation rel, SwarmNodeId id);
static bool finish(SwarmHnswIndex *index, Relation rel, SwarmNodeId id,
				   SwarmNodeId primary, bool popping, bool enter);
static bool has_links(SwarmHnswIndex *index, Relation rel, SwarmNodeId id);
static void load_point(void *arg, int i);

/*
 * swarm_hnsw_lock_links: announce that links are being made.
 */
void
swarm_hnsw_lock_links(Relation rel)
{
	LockPage(rel, LINK_LOCK, ShareLock);
}

/*
 * swarm_hnsw_unlock_links: the end of that.
 */
void
swarm_hnsw_unlock_links(Relation rel)
{
	UnlockPage(rel, LINK_LOCK, ShareLock);
}

/*
 * swarm_hnsw_drain_links: wait until everyone who is making links now is done.
 */
void
swarm_hnsw_drain_links(Relation rel)
{
	LockPage(rel, LINK_LOCK, ExclusiveLock);
	UnlockPage(rel, LINK_LOCK, ExclusiveLock);
}

/*
 * swarm_hnsw_link: link a node that is pending or joining, and make it linked
 * or a twin.
 *
 * rotated: its coordinates, or NULL to take what its codes say.  popping: it
 * is the first of the list that a fold works on, and is taken off it.  The
 * caller holds the link lock; no page locks on entry or exit.
 */
void
swarm_hnsw_link(SwarmHnswIndex *index, Relation rel, SwarmNodeId id,
				const float *rotated, bool popping)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "qhnsw link",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	int			level = swarm_hnsw_level(&index->meta, id);
	SwarmNodeId twin = SWARM_NODE_NONE;
	SwarmHnswQuery *query = swarm_hnsw_query_new(index);
	SwarmHnswSearch *search;
	SwarmCandidate first[SWARM_HNSW_STARTS];
	SwarmCandidates starts = {0};
	int			nfirst;
	SwarmNodeId *chosen[SWARM_HNSW_MAX_LEVEL + 1];
	int			count[SWARM_HNSW_MAX_LEVEL + 1] = {0};
	int			top = -1;
	bool		alone;
	bool		enter;

	if (rotated == NULL)
		rotated = swarm_hnsw_read_vector(index, rel, id, query->rotated);
	swarm_hnsw_query_set(index, query, rotated, false);
	search = swarm_hnsw_search_new(index, rel, query);
	swarm_hnsw_search_reset(search);

	/* What a fold that failed has left must not become a twin: it is linked. */
	alone = has_links(index, rel, id);
	nfirst = swarm_hnsw_search_descend(search, level, first);
	for (int i = 0; i < nfirst; i++)
		swarm_hnsw_append(&starts, first[i]);
	if (nfirst > 0)
		top = Min(level, swarm_hnsw_level(&index->meta, index->meta.entry));
	for (int lc = top; lc >= 0; lc--)
	{
		swarm_hnsw_search_reset(search);
		swarm_hnsw_search_layer(search, lc, index->meta.ef_construction,
								starts.items, starts.count);
		swarm_hnsw_sort(&search->best);
		if (lc == 0 && !alone)
			twin = find_twin(index, rel, id, &search->best);
		if (twin != SWARM_NODE_NONE)
			break;
		chosen[lc] = palloc(sizeof(SwarmNodeId) *
							swarm_hnsw_new_degree(index, lc));
		count[lc] = choose_from(index, rel, id, &search->best,
								swarm_hnsw_new_degree(index, lc), chosen[lc]);
		if (search->best.count > 0)
		{
			starts.count = 0;
			for (int i = 0; i < search->best.count; i++)
				swarm_hnsw_append(&starts, search->best.items[i]);
		}
	}

	/*
	 * No live node can be reached: the index is empty, or all of them are
	 * dead.  Searches begin at this one from now on.
	 */
	enter = twin == SWARM_NODE_NONE && count[0] == 0;
	SWARM_FAULT("hnsw.link.links");
	if (twin == SWARM_NODE_NONE)
	{
		for (int lc = 0; lc <= top; lc++)
			swarm_hnsw_swap_links(index, rel, id, lc, NULL, -1, chosen[lc],
								  count[lc]);
		for (int lc = 0; lc <= top; lc++)
			for (int i = 0; i < count[lc]; i++)
			{
				SWARM_FAULT("hnsw.link.back");
				link_back(index, rel, chosen[lc][i], lc, id);
			}
	}
	SWARM_FAULT("hnsw.link.finish");
	MemoryContextSwitchTo(old);
	if (!finish(index, rel, id, twin, popping, enter))
	{
		/* The twin died, or there is a graph now: link to what is there. */
		swarm_hnsw_open(rel);
		swarm_hnsw_link(index, rel, id, rotated, popping);
	}
	else if (twin == SWARM_NODE_NONE && !enter)
		raise_entry(index, rel, id);
	MemoryContextDelete(context);
}

/*
 * has_links: was a node linked before, by somebody who did not come to the end
 * of it?  Own links are the first that are written.
 */
static bool
has_links(SwarmHnswIndex *index, Relation rel, SwarmNodeId id)
{
	Buffer		buffer = swarm_hnsw_read_node(index, rel, id, BUFFER_LOCK_SHARE);
	bool		result = swarm_hnsw_node(index, BufferGetPage(buffer),
										 id)->degree > 0;

	UnlockReleaseBuffer(buffer);
	return result;
}

/*
 * find_twin: a node among the nearest whose codes are those of `id`, to the
 * last bit; SWARM_NODE_NONE when there is none.
 *
 * Rows with one code are one node, so that a thousand equal vectors do not
 * link to each other only.
 */
static SwarmNodeId
find_twin(SwarmHnswIndex *index, Relation rel, SwarmNodeId id,
		  const SwarmCandidates *found)
{
	Size		size = sizeof(float4) * 2 + index->codec.code_size;
	Size		refine_size = offsetof(SwarmRefine, code) +
	index->codec.refine_size;
	char	   *mine = palloc(size + refine_size);
	char	   *other = palloc(size + refine_size);
	int			generation = 0;

	for (int i = -1; i < Min(found->count, TWIN_CANDIDATES); i++)
	{
		SwarmNodeId node_id = i < 0 ? id : found->items[i].id;
		char	   *to = i < 0 ? mine : other;
		Buffer		buffer;
		SwarmNode  *node;
		int			state;

		if (node_id == id && i >= 0)
			continue;
		buffer = swarm_hnsw_read_node(index, rel, node_id, BUFFER_LOCK_SHARE);
		node = swarm_hnsw_node(index, BufferGetPage(buffer), node_id);
		memcpy(to, &node->norm2, sizeof(float4));
		memcpy(to + sizeof(float4), &node->scale, sizeof(float4));
		memcpy(to + 2 * sizeof(float4), node->code, index->codec.code_size);
		state = node->state;
		if (i < 0)
			generation = node->flags & SWARM_NODE_GENERATION;
		else if ((node->flags & SWARM_NODE_GENERATION) != generation)
			state = SWARM_NODE_FREE;
		UnlockReleaseBuffer(buffer);
		if (i >= 0 && (state != SWARM_NODE_LINKED || memcmp(mine, to, size) != 0))
			continue;
		if (index->codec.refine_size > 0)
		{
			buffer = swarm_hnsw_read(index, rel, SWARM_STREAM_REFINE,
									 node_id / index->layout.per_page[SWARM_STREAM_REFINE],
									 BUFFER_LOCK_SHARE);
			memcpy(to + size,
				   swarm_hnsw_refine(index, BufferGetPage(buffer), node_id),
				   refine_size);
			UnlockReleaseBuffer(buffer);
			if (i >= 0 && memcmp(mine + size, other + size, refine_size) != 0)
				continue;
		}
		if (i >= 0)
			return node_id;
	}
	return SWARM_NODE_NONE;
}

/*
 * choose_from: links for a node from the sorted candidates of a search.
 */
static int
choose_from(SwarmHnswIndex *index, Relation rel, SwarmNodeId id,
			const SwarmCandidates *found, int max, SwarmNodeId *chosen)
{
	SwarmNodeId *ids = palloc(sizeof(SwarmNodeId) * (found->count + 1));
	float	   *distances = palloc(sizeof(float) * (found->count + 1));
	int		   *picked = palloc(sizeof(int) * max);
	PointLoader loader = {.index = index, .rel = rel, .ids = ids};
	int			n = 0;
	int			count;

	for (int i = 0; i < found->count; i++)
		if (found->items[i].id != id)
		{
			ids[n] = found->items[i].id;
			distances[n++] = found->items[i].distance;
		}
	loader.points = palloc(sizeof(SwarmPoint) * (n + 1));
	loader.levels = palloc((Size) index->dims * (n + 1));
	loader.work = palloc(sizeof(float) * index->dims);
	count = swarm_hnsw_select(loader.points, distances, n, index->dims, max,
							  picked, load_point, &loader);
	for (int i = 0; i < count; i++)
		chosen[i] = ids[picked[i]];
	pfree(loader.work);
	pfree(loader.levels);
	pfree(loader.points);
	return count;
}

/*
 * swarm_hnsw_choose: links for a node from n ids in any order, which are
 * sorted by their distance from it.  Returns how many, at most `max`.
 */
int
swarm_hnsw_choose(SwarmHnswIndex *index, Relation rel, SwarmNodeId id,
				  SwarmNodeId *candidates, int n, int max, SwarmNodeId *chosen)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "qhnsw choose",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	SwarmNodeId *ids = palloc(sizeof(SwarmNodeId) * (n + 1));
	PointLoader loader = {.index = index, .rel = rel, .ids = ids};
	SwarmCandidates sorted = {0};
	SwarmPoint *points = palloc(sizeof(SwarmPoint) * (n + 1));
	float	   *distances = palloc(sizeof(float) * n);
	int		   *picked = palloc(sizeof(int) * max);
	int			count;

	memcpy(ids, candidates, sizeof(SwarmNodeId) * n);
	ids[n] = id;
	loader.points = points;
	loader.levels = palloc((Size) index->dims * (n + 1));
	loader.work = palloc(sizeof(float) * index->dims);
	for (int i = 0; i <= n; i++)
		load_point(&loader, i);
	for (int i = 0; i < n; i++)
	{
		SwarmCandidate c = {
			.id = i,
			.distance = swarm_hnsw_point_distance(&points[i], &points[n],
												  index->dims)
		};

		swarm_hnsw_append(&sorted, c);
	}
	swarm_hnsw_sort(&sorted);

	/* The points in the order of their distance. */
	{
		SwarmPoint *ordered = palloc(sizeof(SwarmPoint) * n);

		for (int i = 0; i < n; i++)
		{
			ordered[i] = points[sorted.items[i].id];
			distances[i] = sorted.items[i].distance;
		}
		count = swarm_hnsw_select(ordered, distances, n, index->dims, max,
								  picked, NULL, NULL);
	}
	for (int i = 0; i < count; i++)
		chosen[i] = candidates[sorted.items[picked[i]].id];
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return count;
}

/*
 * load_point: make the i-th point of a loader ready.
 */
static void
load_point(void *arg, int i)
{
	PointLoader *loader = arg;
	SwarmHnswIndex *index = loader->index;
	const float *centre = index->centre[index->meta.generation & 1];

	loader->points[i].levels = loader->levels + (Size) i * index->dims;
	swarm_hnsw_read_vector(index, loader->rel, loader->ids[i], loader->work);
	for (int j = 0; j < index->dims; j++)
		loader->work[j] -= centre[j];
	swarm_hnsw_point_set(loader->work, index->dims, &loader->points[i]);
}

/*
 * swarm_hnsw_read_vector: the rotated coordinates of a node, from its
 * traversal code.  Returns `rotated`.
 */
float *
swarm_hnsw_read_vector(SwarmHnswIndex *index, Relation rel, SwarmNodeId id,
					   float *rotated)
{
	Buffer		buffer = swarm_hnsw_read_node(index, rel, id, BUFFER_LOCK_SHARE);
	SwarmNode  *node = swarm_hnsw_node(index, BufferGetPage(buffer), id);

	swarm_hnsw_decode(index, node->code, NULL, node->scale,
					  node->flags & SWARM_NODE_GENERATION, rotated);
	UnlockReleaseBuffer(buffer);
	return rotated;
}

/*
 * link_back: add a link to a node that has just got one from there; when it
 * has all it may have, choose anew.
 */
static void
link_back(SwarmHnswIndex *index, Relation rel, SwarmNodeId from, int level,
		  SwarmNodeId to)
{
	int			max = swarm_hnsw_max_degree(index, level);
	SwarmNodeId *old = palloc(sizeof(SwarmNodeId) * (max + 1));
	SwarmNodeId *wanted = palloc(sizeof(SwarmNodeId) * max);

	for (int try = 0; try < MAX_TRIES; try++)
	{
		int			n;
		int			count;
		bool		kept = false;

		CHECK_FOR_INTERRUPTS();
		if (append_link(index, rel, from, level, to))
			break;
		n = swarm_hnsw_read_links(index, rel, from, level, old);
		if (n < max)
			continue;
		old[n] = to;
		/* Leave room for the next links: choosing is what costs. */
		count = swarm_hnsw_choose(index, rel, from, old, n + 1, max - max / 8,
								  wanted);
		for (int i = 0; i < count; i++)
			kept |= wanted[i] == to;
		if (!kept ||
			swarm_hnsw_swap_links(index, rel, from, level, old, n, wanted, count))
			break;
	}
	pfree(old);
	pfree(wanted);
}

/*
 * append_link: add a link if there is room; true when it is there now, or the
 * node left the graph.
 */
static bool
append_link(SwarmHnswIndex *index, Relation rel, SwarmNodeId from, int level,
			SwarmNodeId to)
{
	SwarmHnswStream stream = level == 0 ? SWARM_STREAM_NODE : SWARM_STREAM_UPPER;
	uint32		max = swarm_hnsw_max_degree(index, level);
	Buffer		buffer = swarm_hnsw_read(index, rel, stream,
										 from / index->layout.per_page[stream],
										 BUFFER_LOCK_EXCLUSIVE);
	Page		page = BufferGetPage(buffer);
	GenericXLogState *state;
	SwarmNodeId *links;
	uint32		degree;
	bool		done = false;

	if (level == 0)
	{
		SwarmNode  *node = swarm_hnsw_node(index, page, from);

		degree = node->degree;
		links = swarm_hnsw_links(index, node);
		done = node->state == SWARM_NODE_FREE || node->state == SWARM_NODE_TWIN ||
			node->state == SWARM_NODE_ODD;
	}
	else
	{
		SwarmUpper *upper = swarm_hnsw_upper(index, page, from, level);

		degree = upper->degree;
		links = upper->links;
	}
	for (uint32 i = 0; i < Min(degree, max) && !done; i++)
		done = links[i] == to;
	if (done || degree >= max)
	{
		UnlockReleaseBuffer(buffer);
		return done;
	}

	state = GenericXLogStart(rel);
	page = GenericXLogRegisterBuffer(state, buffer, 0);
	if (level == 0)
	{
		SwarmNode  *node = swarm_hnsw_node(index, page, from);

		swarm_hnsw_links(index, node)[node->degree++] = to;
	}
	else
	{
		SwarmUpper *upper = swarm_hnsw_upper(index, page, from, level);

		upper->links[upper->degree++] = to;
	}
	GenericXLogFinish(state);
	UnlockReleaseBuffer(buffer);
	return true;
}

/*
 * swarm_hnsw_swap_links: replace the links of a node if they still are the
 * `nold` old ones (-1: whatever they are); false when they are not.
 */
bool
swarm_hnsw_swap_links(SwarmHnswIndex *index, Relation rel, SwarmNodeId id,
					  int level, const SwarmNodeId *old, int nold,
					  const SwarmNodeId *wanted, int nwanted)
{
	SwarmHnswStream stream = level == 0 ? SWARM_STREAM_NODE : SWARM_STREAM_UPPER;
	Buffer		buffer = swarm_hnsw_read(index, rel, stream,
										 id / index->layout.per_page[stream],
										 BUFFER_LOCK_EXCLUSIVE);
	GenericXLogState *state = GenericXLogStart(rel);
	Page		page = GenericXLogRegisterBuffer(state, buffer, 0);
	SwarmNodeId *links;
	int			degree;

	if (level == 0)
	{
		SwarmNode  *node = swarm_hnsw_node(index, page, id);

		links = swarm_hnsw_links(index, node);
		degree = node->degree;
		node->degree = nwanted;
	}
	else
	{
		SwarmUpper *upper = swarm_hnsw_upper(index, page, id, level);

		links = upper->links;
		degree = upper->degree;
		upper->degree = nwanted;
	}
	if (nold >= 0 &&
		(degree != nold || memcmp(links, old, nold * sizeof(SwarmNodeId)) != 0))
	{
		GenericXLogAbort(state);
		UnlockReleaseBuffer(buffer);
		return false;
	}
	if (nwanted > 0)
		memcpy(links, wanted, nwanted * sizeof(SwarmNodeId));
	GenericXLogFinish(state);
	UnlockReleaseBuffer(buffer);
	return true;
}

/*
 * raise_entry: let searches begin at a node if it reaches higher.
 */
static void
raise_entry(SwarmHnswIndex *index, Relation rel, SwarmNodeId id)
{
	int			level = swarm_hnsw_level(&index->meta, id);
	Buffer		buffer;
	GenericXLogState *state;
	SwarmHnswMeta *meta;

	if (level <= swarm_hnsw_level(&index->meta, index->meta.entry))
		return;
	buffer = ReadBuffer(rel, SWARM_HNSW_META_BLOCK);
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	state = GenericXLogStart(rel);
	meta = swarm_hnsw_meta(GenericXLogRegisterBuffer(state, buffer, 0));
	if (meta->entry == SWARM_NODE_NONE ||
		level > swarm_hnsw_level(meta, meta->entry))
	{
		meta->entry = id;
		GenericXLogFinish(state);
	}
	else
		GenericXLogAbort(state);
	index->meta.entry = swarm_hnsw_meta(BufferGetPage(buffer))->entry;
	UnlockReleaseBuffer(buffer);
}

/*
 * finish: a node is linked, or the twin of another one; when popping it also
 * leaves the list of the fold, and with `enter` it becomes the entry point.
 * One record: were the entry point set before, others could find a graph of
 * one node that is not linked, and stay without links.  False, and nothing is
 * changed, when the other one is not linked any more, or when the entry point
 * is not the one that was searched from.
 *
 * Locks the metapage, then node pages in the order of their blocks.
 */
static bool
finish(SwarmHnswIndex *index, Relation rel, SwarmNodeId id,
	   SwarmNodeId primary, bool popping, bool enter)
{
	bool		done = true;
	uint32		per_page = index->layout.per_page[SWARM_STREAM_NODE];
	bool		two = primary != SWARM_NODE_NONE &&
	primary / per_page != id / per_page;
	Buffer		meta_buffer = InvalidBuffer;
	Buffer		buffer;
	Buffer		primary_buffer;
	GenericXLogState *state;
	Page		page;
	Page		primary_page;
	SwarmNode  *node;
	SwarmNode  *first;

	if (popping || enter)
	{
		meta_buffer = ReadBuffer(rel, SWARM_HNSW_META_BLOCK);
		LockBuffer(meta_buffer, BUFFER_LOCK_EXCLUSIVE);
	}
	buffer = swarm_hnsw_read_node(index, rel, id, 0);
	primary_buffer = two ? swarm_hnsw_read_node(index, rel, primary, 0) : buffer;
	if (two && primary < id)
		LockBuffer(primary_buffer, BUFFER_LOCK_EXCLUSIVE);
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	if (two && primary > id)
		LockBuffer(primary_buffer, BUFFER_LOCK_EXCLUSIVE);

	state = GenericXLogStart(rel);
	page = GenericXLogRegisterBuffer(state, buffer, 0);
	primary_page = two ? GenericXLogRegisterBuffer(state, primary_buffer, 0) : page;
	node = swarm_hnsw_node(index, page, id);
	if (!swarm_hnsw_may_follow(node->state, primary == SWARM_NODE_NONE ?
							   SWARM_NODE_LINKED : SWARM_NODE_TWIN))
		swarm_hnsw_damaged(rel, "list of pending rows at node", id);
	if (popping || enter)
	{
		SwarmHnswMeta *meta = swarm_hnsw_meta(GenericXLogRegisterBuffer(state, meta_buffer, 0));

		if (popping && meta->folding_head != id)
			swarm_hnsw_damaged(rel, "list of pending rows at node", id);
		if (popping)
		{
			meta->folding_head = node->next;
			meta->pending--;
		}
		if (enter && meta->entry == index->meta.entry)
			meta->entry = id;
		else if (enter)
			done = false;
	}
	node->next = SWARM_NODE_NONE;	/* or the next twin, below */
	first = primary == SWARM_NODE_NONE ? NULL :
		swarm_hnsw_node(index, primary_page, primary);
	if (first != NULL && first->state != SWARM_NODE_LINKED)
		done = false;
	else if (first != NULL)
	{
		node->state = SWARM_NODE_TWIN;
		node->degree = 0;
		swarm_hnsw_links(index, node)[0] = primary;
		node->next = first->next;
		first->next = id;
	}
	else
		node->state = SWARM_NODE_LINKED;
	if (done)
		GenericXLogFinish(state);
	else
		GenericXLogAbort(state);
	UnlockReleaseBuffer(buffer);
	if (two)
		UnlockReleaseBuffer(primary_buffer);
	if (meta_buffer != InvalidBuffer)
		UnlockReleaseBuffer(meta_buffer);
	return done;
}
