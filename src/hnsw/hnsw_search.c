/*
 * hnsw_search.c
 *	  The walk over the graph: read-only, one page lock at a time.
 *
 * A walk is made of turns: take the nearest node that is not expanded, read
 * its links, score those not seen before.  The codes of a turn are scored page
 * by page, under one share lock a page, straight from the buffer.  Nothing is
 * locked between turns: a node that is freed and used again meanwhile is only
 * another node to score, and its version tells whoever wants its row.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "hnsw/hnsw_int.h"
#include "hnsw/hnsw_prefetch.h"

/* Slots of a fresh set of ids. */
#define IDSET_ROOM		2048

/* Bytes of a node that are asked for; what follows comes in order. */
#define MAX_PREFETCH	512

/* Links of one node at most, and codes scored at a time. */
#define MAX_LINKS		200

static void expand(SwarmHnswSearch *search, int level, int ef);
static void offer(SwarmHnswSearch *search, SwarmCandidate c, int ef);

/*
 * prefetch_code, prefetch_links: bring a part of a node nearer.
 */
static pg_attribute_always_inline void
prefetch_code(const SwarmHnswSearch *search, SwarmNodeId id)
{
	Size		end = offsetof(SwarmNode, code) + search->index->codec.code_size;

	swarm_hnsw_prefetch(search->index, SWARM_STREAM_NODE, id, 0,
						Min(end, MAX_PREFETCH), true);
}

static pg_attribute_always_inline void
prefetch_links(const SwarmHnswSearch *search, SwarmNodeId id)
{
	Size		from = offsetof(SwarmNode, code) + search->index->codec.code_size;
	Size		end = search->index->layout.slot_size[SWARM_STREAM_NODE];

	swarm_hnsw_prefetch(search->index, SWARM_STREAM_NODE, id, from,
						Min(end, from + MAX_PREFETCH), false);
}

/* ------------------------------------------------------------ id sets */

/*
 * swarm_idset_reset: empty a set; its memory stays.
 */
void
swarm_idset_reset(SwarmIdSet *set)
{
	if (set->slots == NULL)
	{
		set->room = IDSET_ROOM;
		set->slots = palloc(set->room * sizeof(SwarmNodeId));
	}
	memset(set->slots, 0xff, set->room * sizeof(SwarmNodeId));
	set->count = 0;
}

/*
 * idset_slot: where an id is in a set, or would be.
 */
static inline uint32
idset_slot(const SwarmIdSet *set, SwarmNodeId id)
{
	uint32		slot = (id * 0x9e3779b1) & (set->room - 1);

	while (set->slots[slot] != id && set->slots[slot] != SWARM_NODE_NONE)
		slot = (slot + 1) & (set->room - 1);
	return slot;
}

/*
 * swarm_idset_has: is the id in the set?
 */
bool
swarm_idset_has(const SwarmIdSet *set, SwarmNodeId id)
{
	return set->slots[idset_slot(set, id)] == id;
}

/*
 * swarm_idset_add: put an id into a set; false when it was there.
 */
bool
swarm_idset_add(SwarmIdSet *set, SwarmNodeId id)
{
	uint32		slot = idset_slot(set, id);

	if (set->slots[slot] == id)
		return false;
	set->slots[slot] = id;
	if (++set->count > set->room / 2)
	{
		SwarmNodeId *old = set->slots;
		uint32		room = set->room;

		set->room *= 2;
		set->slots = MemoryContextAllocHuge(GetMemoryChunkContext(old),
											set->room * sizeof(SwarmNodeId));
		memset(set->slots, 0xff, set->room * sizeof(SwarmNodeId));
		for (uint32 i = 0; i < room; i++)
			if (old[i] != SWARM_NODE_NONE)
				set->slots[idset_slot(set, old[i])] = old[i];
		pfree(old);
	}
	return true;
}

/* -------------------------------------------------------------- heaps */

/*
 * swarm_hnsw_append: add a candidate at the end of an array.
 */
void
swarm_hnsw_append(SwarmCandidates *array, SwarmCandidate c)
{
	if (array->count == array->room)
	{
		array->room = Max(128, 2 * array->room);
		array->items = array->items == NULL ?
			palloc(array->room * sizeof(SwarmCandidate)) :
			repalloc_huge(array->items, array->room * sizeof(SwarmCandidate));
	}
	array->items[array->count++] = c;
}

/*
 * nearer: does a distance come before another in a heap whose first is the
 * nearest, or with `farthest` the farthest?
 *
 * This and the next two are inline so that each order has code of its own.
 */
static pg_attribute_always_inline bool
nearer(float a, float b, bool farthest)
{
	return farthest ? a > b : a < b;
}

/*
 * push: add to a heap.
 */
static pg_attribute_always_inline void
push(SwarmCandidates *heap, SwarmCandidate c, bool farthest)
{
	int			i = heap->count;

	swarm_hnsw_append(heap, c);
	while (i > 0 &&
		   nearer(c.distance, heap->items[(i - 1) / 2].distance, farthest))
	{
		heap->items[i] = heap->items[(i - 1) / 2];
		i = (i - 1) / 2;
	}
	heap->items[i] = c;
}

/*
 * pop: take the first of a heap.
 */
static pg_attribute_always_inline SwarmCandidate
pop(SwarmCandidates *heap, bool farthest)
{
	SwarmCandidate top = heap->items[0];
	SwarmCandidate last = heap->items[--heap->count];
	int			i = 0;

	for (;;)
	{
		int			child = 2 * i + 1;

		if (child >= heap->count)
			break;
		if (child + 1 < heap->count &&
			nearer(heap->items[child + 1].distance, heap->items[child].distance,
				   farthest))
			child++;
		if (!nearer(heap->items[child].distance, last.distance, farthest))
			break;
		heap->items[i] = heap->items[child];
		i = child;
	}
	if (heap->count > 0)
		heap->items[i] = last;
	return top;
}

/*
 * swarm_hnsw_push_min, swarm_hnsw_pop_min: of a heap whose first is the
 * nearest.
 */
void
swarm_hnsw_push_min(SwarmCandidates *heap, SwarmCandidate c)
{
	push(heap, c, false);
}

SwarmCandidate
swarm_hnsw_pop_min(SwarmCandidates *heap)
{
	return pop(heap, false);
}

/*
 * swarm_hnsw_push_max, swarm_hnsw_pop_max: of one whose first is the farthest.
 */
void
swarm_hnsw_push_max(SwarmCandidates *heap, SwarmCandidate c)
{
	push(heap, c, true);
}

SwarmCandidate
swarm_hnsw_pop_max(SwarmCandidates *heap)
{
	return pop(heap, true);
}

/*
 * compare: by distance, then by id, so that ties have one order.
 */
static int
compare(const void *a, const void *b)
{
	const SwarmCandidate *x = a;
	const SwarmCandidate *y = b;

	if (x->distance != y->distance)
		return x->distance < y->distance ? -1 : 1;
	return x->id < y->id ? -1 : x->id > y->id;
}

/*
 * swarm_hnsw_sort: nearest first.
 */
void
swarm_hnsw_sort(SwarmCandidates *array)
{
	if (array->count > 1)
		qsort(array->items, array->count, sizeof(SwarmCandidate), compare);
}

/* -------------------------------------------------------------- reading */

/*
 * swarm_hnsw_read_links: the links of a node at a level, into an array of
 * swarm_hnsw_max_degree elements; returns how many.  None for a node that is
 * free.  No locks on entry or exit.
 */
int
swarm_hnsw_read_links(SwarmHnswIndex *index, Relation rel, SwarmNodeId id,
					  int level, SwarmNodeId *links)
{
	const SwarmNodeId *from;
	uint32		degree;
	Buffer		buffer;

	if (level == 0)
	{
		SwarmNode  *node;

		buffer = swarm_hnsw_read_node(index, rel, id, BUFFER_LOCK_SHARE);
		node = swarm_hnsw_node(index, BufferGetPage(buffer), id);
		degree = node->state == SWARM_NODE_LINKED ||
			node->state == SWARM_NODE_DEAD ||
			node->state == SWARM_NODE_PENDING ||
			node->state == SWARM_NODE_JOINING ? node->degree : 0;
		from = swarm_hnsw_links(index, node);
	}
	else
	{
		SwarmUpper *upper;

		buffer = swarm_hnsw_read(index, rel, SWARM_STREAM_UPPER,
								 id / index->layout.per_page[SWARM_STREAM_UPPER],
								 BUFFER_LOCK_SHARE);
		upper = swarm_hnsw_upper(index, BufferGetPage(buffer), id, level);
		degree = upper->degree;
		from = upper->links;
	}
	if (degree > swarm_hnsw_max_degree(index, level))
		swarm_hnsw_damaged(rel, "degree of node", id);
	memcpy(links, from, degree * sizeof(SwarmNodeId));
	UnlockReleaseBuffer(buffer);
	return degree;
}

/*
 * swarm_hnsw_score_page: score those nodes of a locked page that are in one of
 * `states` (a mask of 1 << state); returns how many came out.
 */
int
swarm_hnsw_score_page(SwarmHnswSearch *search, Page page,
					  const SwarmNodeId *ids, int n, uint32 states,
					  SwarmCandidate *out)
{
	SwarmHnswIndex *index = search->index;
	SwarmHnswQuery *query = search->query;
	const uint8 *codes[MAX_LINKS];
	const SwarmNode *nodes[MAX_LINKS];
	float		dots[MAX_LINKS];
	bool		mixed = index->meta.oldest != index->meta.generation;
	int			newest = index->meta.generation & 1;
	int			count = 0;

	swarm_hnsw_query_refresh(index, query);
	for (int i = 0; i < n; i++)
	{
		const SwarmNode *node = swarm_hnsw_node(index, page, ids[i]);

		if (((1u << (node->state & 31)) & states) == 0)
			continue;
		nodes[count] = node;
		codes[count] = node->code;
		out[count].id = ids[i];
		out[count].version = node->version;
		out[count].state = node->state;
		out[count].flags = node->next != SWARM_NODE_NONE;
		count++;
	}

	if (count == 0)
		return 0;
	if (likely(!mixed))
	{
		swarm_codec_dots(&index->codec, query->codec[newest], codes, count, dots);
		for (int i = 0; i < count; i++)
			out[i].distance = swarm_hnsw_score(query, newest, nodes[i]->norm2,
											   nodes[i]->scale, dots[i]);
	}
	else
		for (int i = 0; i < count; i++)
		{
			int			parity = nodes[i]->flags & SWARM_NODE_GENERATION;

			/* A generation newer than this search began with. */
			if (!query->ready[parity])
				parity = newest;
			swarm_codec_dots(&index->codec, query->codec[parity], &codes[i], 1,
							 &dots[i]);
			out[i].distance = swarm_hnsw_score(query, parity, nodes[i]->norm2,
											   nodes[i]->scale, dots[i]);
		}
	search->scored += count;
	return count;
}

/*
 * sort_ids: nodes of one page side by side: ids ascend as pages do.
 */
static void
sort_ids(SwarmNodeId *ids, int n)
{
	for (int i = 1; i < n; i++)
	{
		SwarmNodeId id = ids[i];
		int			j = i;

		for (; j > 0 && ids[j - 1] > id; j--)
			ids[j] = ids[j - 1];
		ids[j] = id;
	}
}

/*
 * score_sorted: score the nodes of the graph among n ascending ids; returns
 * how many came out.
 */
static int
score_sorted(SwarmHnswSearch *search, const SwarmNodeId *ids, int n,
			 SwarmCandidate *out)
{
	SwarmHnswIndex *index = search->index;
	uint32		per_page = index->layout.per_page[SWARM_STREAM_NODE];
	const uint32 states = 1u << SWARM_NODE_LINKED | 1u << SWARM_NODE_DEAD |
	1u << SWARM_NODE_PENDING | 1u << SWARM_NODE_JOINING;
	int			count = 0;

	for (int i = 0; i < n;)
	{
		uint32		page = ids[i] / per_page;
		int			end = i + 1;
		Buffer		buffer;

		while (end < n && ids[end] / per_page == page)
			end++;
		buffer = swarm_hnsw_read(index, search->rel, SWARM_STREAM_NODE, page,
								 BUFFER_LOCK_SHARE);
		count += swarm_hnsw_score_page(search, BufferGetPage(buffer),
									   ids + i, end - i, states, out + count);
		UnlockReleaseBuffer(buffer);
		search->pages++;
		i = end;
	}
	return count;
}

/*
 * swarm_hnsw_score_ids: score the nodes of the graph among n <= MAX_LINKS
 * ids; returns how many came out.
 */
int
swarm_hnsw_score_ids(SwarmHnswSearch *search, const SwarmNodeId *ids, int n,
					 SwarmCandidate *out)
{
	SwarmNodeId sorted[MAX_LINKS];

	memcpy(sorted, ids, n * sizeof(SwarmNodeId));
	sort_ids(sorted, n);
	return score_sorted(search, sorted, n, out);
}

/* --------------------------------------------------------------- walking */

/*
 * swarm_hnsw_search_new: a search, in a context of its own below the current
 * one.
 */
SwarmHnswSearch *
swarm_hnsw_search_new(SwarmHnswIndex *index, Relation rel,
					  SwarmHnswQuery *query)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "qhnsw search",
												  ALLOCSET_DEFAULT_SIZES);
	SwarmHnswSearch *search = MemoryContextAllocZero(context,
													 sizeof(SwarmHnswSearch));

	search->context = context;
	search->index = index;
	search->rel = rel;
	search->query = query;
	return search;
}

/*
 * swarm_hnsw_search_reset: forget what was found; memory and counters stay.
 */
void
swarm_hnsw_search_reset(SwarmHnswSearch *search)
{
	MemoryContext old = MemoryContextSwitchTo(search->context);

	swarm_idset_reset(&search->visited);
	search->near.count = 0;
	search->best.count = 0;
	search->evicted.count = 0;
	search->rejected.count = 0;
	MemoryContextSwitchTo(old);
}

/*
 * keep_nearest: put one more among the nearest, which ascend; returns how many
 * there are then.
 */
static inline int
keep_nearest(SwarmCandidate *nearest, int count, SwarmCandidate c)
{
	int			i;

	if (count < SWARM_HNSW_STARTS)
		count++;
	else if (c.distance >= nearest[count - 1].distance)
		return count;
	for (i = count - 1; i > 0 && c.distance < nearest[i - 1].distance; i--)
		nearest[i] = nearest[i - 1];
	nearest[i] = c;
	return count;
}

/*
 * swarm_hnsw_search_descend: go from the entry point greedily down to above
 * `to_level`.  Writes the nearest nodes of the level above it, at most
 * SWARM_HNSW_STARTS, to `starts`, and returns how many; 0 when the graph is
 * empty.
 *
 * All of them have been scored on the way, so beginning at several costs
 * nothing, and a walk that comes near two clusters sees both.
 */
int
swarm_hnsw_search_descend(SwarmHnswSearch *search, int to_level,
						  SwarmCandidate *starts)
{
	SwarmHnswIndex *index = search->index;
	SwarmNodeId links[MAX_LINKS];
	SwarmNodeId fresh[MAX_LINKS];
	SwarmCandidate scored[MAX_LINKS];
	SwarmNodeId entry = index->meta.entry;
	int			level;
	int			nstarts = 1;
	int			try = 0;

	if (entry == SWARM_NODE_NONE)
		return 0;
	if (!swarm_hnsw_nearest_entry(search, to_level, &level, starts))
		level = 0;

	/*
	 * Vacuum may have freed the entry point since we read the metapage, and
	 * an insert taken its slot: then it has no links yet.
	 */
	while (level == 0 &&
		   (swarm_hnsw_score_ids(search, &entry, 1, starts) == 0 ||
			(starts->state != SWARM_NODE_LINKED &&
			 starts->state != SWARM_NODE_DEAD)))
	{
		swarm_hnsw_open(search->rel);
		if (index->meta.entry == SWARM_NODE_NONE)
			return 0;
		if (index->meta.entry == entry && ++try > 1)
			swarm_hnsw_damaged(search->rel, "entry point, node", entry);
		entry = index->meta.entry;
	}

	/* The nearest entry needs no walk on its own level. */
	level = level > 0 ? level - 1 : swarm_hnsw_level(&index->meta, entry);
	for (; level > to_level; level--)
	{
		SwarmNodeId from = SWARM_NODE_NONE;

		swarm_hnsw_search_reset(search);
		swarm_idset_add(&search->visited, starts[0].id);
		nstarts = 1;
		while (starts[0].id != from)
		{
			int			n;
			int			count = 0;

			from = starts[0].id;
			n = swarm_hnsw_read_links(index, search->rel, from, level, links);
			for (int i = 0; i < n; i++)
				if (swarm_idset_add(&search->visited, links[i]))
				{
					prefetch_code(search, links[i]);
					fresh[count++] = links[i];
				}
			count = swarm_hnsw_score_ids(search, fresh, count, scored);
			for (int i = 0; i < count; i++)
				nstarts = keep_nearest(starts, nstarts, scored[i]);
		}
	}
	return nstarts;
}

/*
 * swarm_hnsw_search_layer: the ef nearest nodes of a level that a walk from
 * the starts finds, in search->best.
 */
void
swarm_hnsw_search_layer(SwarmHnswSearch *search, int level, int ef,
						const SwarmCandidate *starts, int nstarts)
{
	MemoryContext old = MemoryContextSwitchTo(search->context);

	for (int i = 0; i < nstarts; i++)
	{
		swarm_idset_add(&search->visited, starts[i].id);
		offer(search, starts[i], ef);
	}
	expand(search, level, ef);
	MemoryContextSwitchTo(old);
}

/*
 * swarm_hnsw_search_resume: the next ef nearest nodes of level 0, after the
 * caller took all of search->best; false when the walk has seen all that it
 * can reach.
 */
bool
swarm_hnsw_search_resume(SwarmHnswSearch *search, int ef)
{
	MemoryContext old = MemoryContextSwitchTo(search->context);
	SwarmCandidates left = search->evicted;
	SwarmCandidates rejected = search->rejected;

	Assert(search->best.count == 0);
	memset(&search->evicted, 0, sizeof(SwarmCandidates));
	memset(&search->rejected, 0, sizeof(SwarmCandidates));
	for (int i = 0; i < rejected.count; i++)
	{
		swarm_hnsw_push_min(&search->near, rejected.items[i]);
		if (rejected.items[i].state == SWARM_NODE_LINKED)
			swarm_hnsw_append(&left, rejected.items[i]);
	}
	for (int i = 0; i < left.count; i++)
	{
		swarm_hnsw_push_max(&search->best, left.items[i]);
		if (search->best.count > ef)
			swarm_hnsw_append(&search->evicted,
							  swarm_hnsw_pop_max(&search->best));
	}
	if (left.items != NULL)
		pfree(left.items);
	if (rejected.items != NULL)
		pfree(rejected.items);
	expand(search, 0, ef);
	MemoryContextSwitchTo(old);
	return search->best.count > 0;
}

/*
 * next_turn: the neighbours, not seen before, of the nearest node that is not
 * expanded, ascending; none when no node that is left could lead to a nearer
 * row.
 */
static int
next_turn(SwarmHnswSearch *search, int level, int ef, SwarmNodeId *fresh)
{
	SwarmNodeId links[MAX_LINKS];
	int			count = 0;

	while (count == 0 && search->near.count > 0 &&
		   (search->best.count < ef ||
			search->near.items[0].distance <= search->best.items[0].distance))
	{
		int			n = swarm_hnsw_read_links(search->index, search->rel,
											  swarm_hnsw_pop_min(&search->near).id,
											  level, links);

		search->hops++;
		for (int i = 0; i < n; i++)
			if (swarm_idset_add(&search->visited, links[i]))
			{
				prefetch_code(search, links[i]);
				fresh[count++] = links[i];
			}
	}
	sort_ids(fresh, count);
	return count;
}

/*
 * expand: walk until no node that could lead to a nearer one is left.
 *
 * While the codes of one turn are scored, those of the next one are on their
 * way from memory: its node is chosen before the results of this turn are
 * known.  That costs a few codes more and hides most of the waiting.
 */
static void
expand(SwarmHnswSearch *search, int level, int ef)
{
	SwarmNodeId turns[2][MAX_LINKS];
	SwarmCandidate scored[MAX_LINKS];
	int			now = 0;
	int			count = next_turn(search, level, ef, turns[now]);

	while (count > 0)
	{
		int			next = next_turn(search, level, ef, turns[1 - now]);

		count = score_sorted(search, turns[now], count, scored);
		for (int i = 0; i < count; i++)
			offer(search, scored[i], ef);
		if (next == 0)
			next = next_turn(search, level, ef, turns[1 - now]);
		now = 1 - now;
		count = next;
		if ((search->hops & 0xff) == 0)
			CHECK_FOR_INTERRUPTS();
	}
}

/*
 * offer: put a node where it belongs: to be expanded, among the best, or
 * aside.  Only a row that is linked is a result; others lead on.
 */
static void
offer(SwarmHnswSearch *search, SwarmCandidate c, int ef)
{
	if (search->best.count >= ef && c.distance >= search->best.items[0].distance)
	{
		if (search->keep)
			swarm_hnsw_append(&search->rejected, c);
		return;
	}
	swarm_hnsw_push_min(&search->near, c);
	prefetch_links(search, c.id);
	if (c.state != SWARM_NODE_LINKED)
		return;
	swarm_hnsw_push_max(&search->best, c);
	if (search->best.count > ef)
	{
		SwarmCandidate out = swarm_hnsw_pop_max(&search->best);

		if (search->keep)
			swarm_hnsw_append(&search->evicted, out);
	}
}
