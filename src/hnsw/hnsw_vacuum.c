/*
 * hnsw_vacuum.c
 *	  Removing dead rows: mark, wait, repair, free.
 *
 * Pass 1 marks the nodes of dead rows; nobody links to a marked node any more,
 * and searches walk through it.  Whoever chose it before is waited for.  Pass
 * 2 goes over the nodes that link to a marked one and gives them the links of
 * the dead node to choose from (Singh and others, FreshDiskANN, 2021): no
 * search is made.  Pass 3 frees the slots: by then nothing links to them.
 *
 * When no row is dead, pass 1 is all, and it writes nothing.
 */
#include "postgres.h"

#include "access/relation.h"
#include "commands/vacuum.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "hnsw/hnsw_int.h"

#define MAX_LINKS		200

/* Links of dead nodes that a repair looks at. */
#define MAX_CANDIDATES	(2 * MAX_LINKS)

typedef struct Vacuum
{
	IndexVacuumInfo *info;
	Relation	rel;
	SwarmHnswIndex *index;
	IndexBulkDeleteCallback callback;
	void	   *state;
	uint32		nodes;
	uint8	   *dead;			/* a bit a node: dead, in the graph */
	uint8	   *gone;			/* a bit a node: to be freed, linked from nowhere */
	uint32		ndead;
	uint32		ngone;
	SwarmIdSet	families;		/* nodes with a dead twin, or dead with twins */
	double		live;
	double		removed;
	bool		pending;		/* a dead row is still pending */
} Vacuum;

static void mark_dead(Vacuum *v);
static void mark_page(Vacuum *v, uint32 page);
static void mend_families(Vacuum *v);
static void mend_family(Vacuum *v, SwarmNodeId primary);
static void repair_links(Vacuum *v);
static void repair_node(Vacuum *v, SwarmNodeId id, int level);
static void replace_entry(Vacuum *v);
static void free_nodes(Vacuum *v);

static inline bool
has_bit(const uint8 *bits, uint32 i)
{
	return bits[i / 8] & (1 << (i % 8));
}

static inline void
set_bit(uint8 *bits, uint32 i)
{
	bits[i / 8] |= 1 << (i % 8);
}

/*
 * swarm_hnsw_bulk_delete: ambulkdelete.
 */
IndexBulkDeleteResult *
swarm_hnsw_bulk_delete(IndexVacuumInfo *info, IndexBulkDeleteResult *stats,
					   IndexBulkDeleteCallback callback, void *state)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "qhnsw vacuum",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old;
	Vacuum		v = {.info = info,.rel = info->index,.callback = callback,.state = state};

	if (stats == NULL)
		stats = palloc0(sizeof(IndexBulkDeleteResult));
	old = MemoryContextSwitchTo(context);

	/* Only nodes in the graph can be removed from it. */
	do
	{
		v.pending = false;
		swarm_hnsw_fold(v.rel);
		v.index = swarm_hnsw_open(v.rel);
		if (v.index->meta.dims == 0)
			break;
		v.nodes = v.index->meta.nodes;
		v.dead = MemoryContextAllocExtended(context, v.nodes / 8 + 1,
											MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
		v.gone = MemoryContextAllocExtended(context, v.nodes / 8 + 1,
											MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
		v.ndead = v.ngone = 0;
		v.live = 0;
		memset(&v.families, 0, sizeof(v.families));
		swarm_idset_reset(&v.families);
		mark_dead(&v);
	} while (v.pending);

	if (v.index->meta.dims != 0)
	{
		if (v.families.count > 0)
			mend_families(&v);
		if (v.ndead > 0)
		{
			swarm_hnsw_drain_links(v.rel);
			repair_links(&v);
			replace_entry(&v);
		}
		if (v.ndead > 0 || v.ngone > 0)
			free_nodes(&v);
	}
	stats->num_pages = RelationGetNumberOfBlocks(v.rel);
	stats->num_index_tuples = v.live;
	stats->tuples_removed += v.removed;
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return stats;
}

/*
 * swarm_hnsw_vacuum_cleanup: amvacuumcleanup: link what is pending.
 */
IndexBulkDeleteResult *
swarm_hnsw_vacuum_cleanup(IndexVacuumInfo *info, IndexBulkDeleteResult *stats)
{
	SwarmHnswIndex *index;

	if (info->analyze_only)
		return stats;
	swarm_hnsw_fold(info->index);
	if (stats == NULL)
	{
		index = swarm_hnsw_open(info->index);
		stats = palloc0(sizeof(IndexBulkDeleteResult));
		stats->num_pages = RelationGetNumberOfBlocks(info->index);
		stats->num_index_tuples = index->meta.nodes - index->meta.free_nodes;
		stats->estimated_count = true;
		stats->pages_free = 0;
	}
	return stats;
}

/*
 * mark_dead: pass 1.
 */
static void
mark_dead(Vacuum *v)
{
	uint32		per_page = v->index->layout.per_page[SWARM_STREAM_NODE];

	for (SwarmNodeId id = 0; id < v->nodes; id += per_page)
	{
		swarm_vacuum_delay();
		mark_page(v, id / per_page);
	}
}

/*
 * mark_page: mark the dead nodes of a page.  It is changed only when there is
 * one.
 */
static void
mark_page(Vacuum *v, uint32 number)
{
	SwarmHnswIndex *index = v->index;
	uint32		per_page = index->layout.per_page[SWARM_STREAM_NODE];
	SwarmNodeId first = number * per_page;
	uint32		n = Min(per_page, v->nodes - first);
	Buffer		buffer = swarm_hnsw_read(index, v->rel, SWARM_STREAM_NODE, number,
										 BUFFER_LOCK_EXCLUSIVE);
	Page		page = BufferGetPage(buffer);
	GenericXLogState *state = NULL;

	for (uint32 i = 0; i < n; i++)
	{
		SwarmNodeId id = first + i;
		SwarmNode  *node = swarm_hnsw_node(index, page, id);
		bool		died;

		if (node->state == SWARM_NODE_FREE)
			continue;
		if (node->state == SWARM_NODE_DEAD)
		{
			/* Left by a vacuum that did not get to its end. */
			set_bit(v->dead, id);
			v->ndead++;
			continue;
		}
		if (!ItemPointerIsValid(&node->tid))
			died = true;
		else
			died = v->callback(&node->tid, v->state);
		if (!died)
		{
			v->live++;
			continue;
		}
		if (node->state == SWARM_NODE_PENDING)
		{
			v->pending = true;
			continue;
		}
		v->removed++;
		if (node->state == SWARM_NODE_TWIN)
		{
			swarm_idset_add(&v->families, swarm_hnsw_links(index, node)[0]);
			set_bit(v->gone, id);
			v->ngone++;
			continue;
		}
		if (node->state == SWARM_NODE_LINKED && node->next != SWARM_NODE_NONE)
		{
			/* Its node serves the twins. */
			swarm_idset_add(&v->families, id);
			set_bit(v->gone, id);
			continue;
		}

		if (state == NULL)
		{
			state = GenericXLogStart(v->rel);
			page = GenericXLogRegisterBuffer(state, buffer, 0);
			node = swarm_hnsw_node(index, page, id);
		}
		ItemPointerSetInvalid(&node->tid);
		if (node->state == SWARM_NODE_ODD)
		{
			set_bit(v->gone, id);
			v->ngone++;
			continue;
		}
		Assert(swarm_hnsw_may_follow(node->state, SWARM_NODE_DEAD));
		node->state = SWARM_NODE_DEAD;
		set_bit(v->dead, id);
		v->ndead++;
	}
	if (state != NULL)
		GenericXLogFinish(state);
	UnlockReleaseBuffer(buffer);
}

/*
 * mend_families: take dead twins out of their chains, and let a twin take the
 * node of a dead row.  Nobody links meanwhile, so that chains stand still.
 */
static void
mend_families(Vacuum *v)
{
	LockPage(v->rel, 1, ExclusiveLock);
	for (uint32 i = 0; i < v->families.room; i++)
		if (v->families.slots[i] != SWARM_NODE_NONE)
		{
			swarm_vacuum_delay();
			mend_family(v, v->families.slots[i]);
		}
	UnlockPage(v->rel, 1, ExclusiveLock);
}

/*
 * write_node: change one node: its row (NULL: leave it), its chain, its state.
 */
static void
write_node(Vacuum *v, SwarmNodeId id, const ItemPointerData *tid,
		   SwarmNodeId next, SwarmNodeState to)
{
	Buffer		buffer = swarm_hnsw_read_node(v->index, v->rel, id,
											  BUFFER_LOCK_EXCLUSIVE);
	GenericXLogState *state = GenericXLogStart(v->rel);
	SwarmNode  *node = swarm_hnsw_node(v->index,
									   GenericXLogRegisterBuffer(state, buffer, 0),
									   id);

	if (tid != NULL)
		node->tid = *tid;
	node->next = next;
	node->state = to;
	GenericXLogFinish(state);
	UnlockReleaseBuffer(buffer);
}

/*
 * mend_family: see mend_families.  Every step leaves a chain that is right.
 */
static void
mend_family(Vacuum *v, SwarmNodeId primary)
{
	SwarmNodeId *chain = palloc(sizeof(SwarmNodeId) * 64);
	ItemPointerData *tids = palloc(sizeof(ItemPointerData) * 64);
	int			room = 64;
	int			n = 0;
	int			kept = 0;
	bool		primary_died = has_bit(v->gone, primary);
	SwarmNodeId id = primary;

	/* The chain, the primary first. */
	while (id != SWARM_NODE_NONE)
	{
		Buffer		buffer = swarm_hnsw_read_node(v->index, v->rel, id,
												  BUFFER_LOCK_SHARE);
		SwarmNode  *node = swarm_hnsw_node(v->index, BufferGetPage(buffer), id);

		/*
		 * A vacuum that did not get to its end may have taken the family out
		 * of the graph, and left twins to be freed.
		 */
		if (n == 0 && node->state != SWARM_NODE_LINKED)
		{
			UnlockReleaseBuffer(buffer);
			return;
		}
		if (n == room)
		{
			room *= 2;
			chain = repalloc_huge(chain, sizeof(SwarmNodeId) * room);
			tids = repalloc_huge(tids, sizeof(ItemPointerData) * room);
		}
		if ((uint32) n > v->index->meta.nodes ||
			node->state != (n == 0 ? SWARM_NODE_LINKED : SWARM_NODE_TWIN))
			swarm_hnsw_damaged(v->rel, "chain of equal rows at node", id);
		chain[n] = id;
		tids[n++] = node->tid;
		id = node->next;
		UnlockReleaseBuffer(buffer);
	}

	/* Those that stay, in order; written from the last to the first. */
	for (int i = 1; i < n; i++)
		if (chain[i] >= v->nodes || !has_bit(v->gone, chain[i]))
		{
			chain[1 + kept] = chain[i];
			tids[1 + kept] = tids[i];
			kept++;
		}
	if (!primary_died)
	{
		for (int i = kept; i >= 0; i--)
			write_node(v, chain[i], NULL,
					   i < kept ? chain[i + 1] : SWARM_NODE_NONE,
					   i == 0 ? SWARM_NODE_LINKED : SWARM_NODE_TWIN);
	}
	else if (kept > 0)
	{
		/* The first twin's row moves into the node of the family. */
		for (int i = kept; i >= 2; i--)
			write_node(v, chain[i], NULL,
					   i < kept ? chain[i + 1] : SWARM_NODE_NONE,
					   SWARM_NODE_TWIN);
		write_node(v, primary, &tids[1], kept > 1 ? chain[2] : SWARM_NODE_NONE,
				   SWARM_NODE_LINKED);
		v->gone[primary / 8] &= ~(1 << (primary % 8));
		if (chain[1] < v->nodes)
		{
			set_bit(v->gone, chain[1]);
			v->ngone++;
		}
	}
	else
	{
		ItemPointerData none;

		ItemPointerSetInvalid(&none);
		write_node(v, primary, &none, SWARM_NODE_NONE, SWARM_NODE_DEAD);
		v->gone[primary / 8] &= ~(1 << (primary % 8));
		set_bit(v->dead, primary);
		v->ndead++;
	}
	pfree(chain);
	pfree(tids);
}

/*
 * repair_links: pass 2, over the nodes that there are now.
 */
static void
repair_links(Vacuum *v)
{
	SwarmHnswIndex *index = swarm_hnsw_open(v->rel);
	SwarmNodeId links[MAX_LINKS];

	for (SwarmNodeId id = 0; id < index->meta.nodes; id++)
	{
		int			top = swarm_hnsw_level(&index->meta, id);

		if (id < v->nodes && (has_bit(v->dead, id) || has_bit(v->gone, id)))
			continue;
		if (id % index->layout.per_page[SWARM_STREAM_NODE] == 0)
			swarm_vacuum_delay();
		for (int level = 0; level <= top; level++)
		{
			int			n = swarm_hnsw_read_links(index, v->rel, id, level, links);

			for (int i = 0; i < n; i++)
				if (links[i] < v->nodes && has_bit(v->dead, links[i]))
				{
					repair_node(v, id, level);
					break;
				}
		}
	}
}

/*
 * repair_node: replace the dead links of a node at a level.
 */
static void
repair_node(Vacuum *v, SwarmNodeId id, int level)
{
	SwarmHnswIndex *index = v->index;
	int			max = swarm_hnsw_max_degree(index, level);
	SwarmNodeId old[MAX_LINKS];
	SwarmNodeId beyond[MAX_LINKS];
	SwarmNodeId candidates[MAX_CANDIDATES];
	SwarmNodeId wanted[MAX_LINKS];
	int			nold;
	int			count;

	do
	{
		int			n = 0;

		nold = swarm_hnsw_read_links(index, v->rel, id, level, old);
		for (int i = 0; i < nold; i++)
			if (old[i] >= v->nodes || !has_bit(v->dead, old[i]))
				candidates[n++] = old[i];
		for (int i = 0; i < nold; i++)
		{
			int			m;

			if (old[i] >= v->nodes || !has_bit(v->dead, old[i]))
				continue;
			m = swarm_hnsw_read_links(index, v->rel, old[i], level, beyond);
			for (int j = 0; j < m && n < MAX_CANDIDATES; j++)
			{
				bool		known = beyond[j] == id ||
					(beyond[j] < v->nodes && has_bit(v->dead, beyond[j]));

				for (int k = 0; k < n && !known; k++)
					known = candidates[k] == beyond[j];
				if (!known)
					candidates[n++] = beyond[j];
			}
		}
		count = swarm_hnsw_choose(index, v->rel, id, candidates, n, max, wanted);
	} while (!swarm_hnsw_swap_links(index, v->rel, id, level, old, nold, wanted,
									count));
}

/*
 * replace_entry: searches must not begin at a node that is about to be freed:
 * take the highest live one.
 */
static void
replace_entry(Vacuum *v)
{
	SwarmHnswIndex *index = swarm_hnsw_open(v->rel);
	SwarmNodeId best = SWARM_NODE_NONE;
	int			best_level = -1;
	Buffer		buffer;
	GenericXLogState *state;
	SwarmHnswMeta *meta;

	if (index->meta.entry == SWARM_NODE_NONE || index->meta.entry >= v->nodes ||
		!has_bit(v->dead, index->meta.entry))
		return;
	for (SwarmNodeId id = 0; id < index->meta.nodes; id++)
	{
		int			level = swarm_hnsw_level(&index->meta, id);
		SwarmNodeState node_state;
		SwarmNode  *node;

		if (level <= best_level || (id < v->nodes && has_bit(v->dead, id)))
			continue;
		buffer = swarm_hnsw_read_node(index, v->rel, id, BUFFER_LOCK_SHARE);
		node = swarm_hnsw_node(index, BufferGetPage(buffer), id);
		node_state = node->state;
		/* Level 0 may be without links in a graph of one node. */
		UnlockReleaseBuffer(buffer);
		if (node_state != SWARM_NODE_LINKED)
			continue;
		best = id;
		best_level = level;
	}

	buffer = ReadBuffer(v->rel, SWARM_HNSW_META_BLOCK);
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	state = GenericXLogStart(v->rel);
	meta = swarm_hnsw_meta(GenericXLogRegisterBuffer(state, buffer, 0));
	if (meta->entry < v->nodes && has_bit(v->dead, meta->entry))
	{
		meta->entry = best;
		GenericXLogFinish(state);
	}
	else
		GenericXLogAbort(state);
	UnlockReleaseBuffer(buffer);
}

/*
 * free_nodes: pass 3: put the slots into the free list, a page at a time.
 */
static void
free_nodes(Vacuum *v)
{
	SwarmHnswIndex *index = v->index;
	uint32		per_page = index->layout.per_page[SWARM_STREAM_NODE];
	Buffer		meta_buffer = ReadBuffer(v->rel, SWARM_HNSW_META_BLOCK);

	for (SwarmNodeId first = 0; first < v->nodes; first += per_page)
	{
		uint32		n = Min(per_page, v->nodes - first);
		GenericXLogState *state;
		Buffer		buffer;
		SwarmHnswMeta *meta;
		Page		page;
		bool		any = false;

		for (uint32 i = 0; i < n; i++)
		{
			SwarmNodeId id = first + i;
			int			level;

			if (!has_bit(v->dead, id) && !has_bit(v->gone, id))
				continue;
			any = true;
			level = swarm_hnsw_level(&index->meta, id);
			for (int lc = 1; lc <= level; lc++)
				swarm_hnsw_swap_links(index, v->rel, id, lc, NULL, -1, NULL, 0);
		}
		if (!any)
			continue;
		swarm_vacuum_delay();

		LockBuffer(meta_buffer, BUFFER_LOCK_EXCLUSIVE);
		buffer = swarm_hnsw_read(index, v->rel, SWARM_STREAM_NODE,
								 first / per_page, BUFFER_LOCK_EXCLUSIVE);
		state = GenericXLogStart(v->rel);
		meta = swarm_hnsw_meta(GenericXLogRegisterBuffer(state, meta_buffer, 0));
		page = GenericXLogRegisterBuffer(state, buffer, 0);
		for (uint32 i = n; i-- > 0;)
		{
			SwarmNodeId id = first + i;
			SwarmNode  *node = swarm_hnsw_node(index, page, id);

			if (!has_bit(v->dead, id) && !has_bit(v->gone, id))
				continue;
			Assert(swarm_hnsw_may_follow(node->state, SWARM_NODE_FREE));
			if (node->state == SWARM_NODE_ODD)
				meta->odd--;
			node->state = SWARM_NODE_FREE;
			node->version++;
			node->degree = 0;
			node->flags = 0;
			ItemPointerSetInvalid(&node->tid);
			node->next = meta->free_head;
			meta->free_head = id;
			meta->free_nodes++;
		}
		GenericXLogFinish(state);
		UnlockReleaseBuffer(buffer);
		LockBuffer(meta_buffer, BUFFER_LOCK_UNLOCK);
	}
	ReleaseBuffer(meta_buffer);
}
