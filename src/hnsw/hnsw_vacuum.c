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
#include "base/fault.h"
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
	uint8	   *gone;			/* a bit a node: to be freed, linked from
								 * nowhere */
	uint32		ndead;
	uint32		ngone;
	SwarmIdSet	families;		/* nodes with a dead twin, or dead with twins */
	SwarmIdSet	twins;			/* dead ones */
	double		live;
	double		removed;		/* rows whose nodes were marked */
	double		attached;		/* dead rows in families, not marked yet */
	bool		pending;		/* a dead row is still pending */
} Vacuum;

static void mark_dead(Vacuum *v);
static void mark_page(Vacuum *v, uint32 page);
static void mend_families(Vacuum *v);
static uint8 *grow_bits(const uint8 *bits, uint32 from, uint32 to);
static void skip_dead(Vacuum *v, SwarmNodeId primary);
static void detach(Vacuum *v, SwarmNodeId id);
static void replace_primary(Vacuum *v, SwarmNodeId primary);
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
	Vacuum		v = {.info = info, .rel = info->index, .callback = callback, .state = state};

	if (stats == NULL)
		stats = palloc0(sizeof(IndexBulkDeleteResult));
	old = MemoryContextSwitchTo(context);

	/* Only nodes in the graph can be removed from it. */
	do
	{
		v.pending = false;
		swarm_hnsw_fold(v.rel, true);
		v.index = swarm_hnsw_open(v.rel);
		if (v.index->meta.dims == 0)
			break;
		v.nodes = v.index->meta.nodes;
		v.dead = MemoryContextAllocExtended(context, v.nodes / 8 + 1,
											MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
		v.gone = MemoryContextAllocExtended(context, v.nodes / 8 + 1,
											MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
		v.ndead = v.ngone = 0;
		v.live = v.attached = 0;
		memset(&v.families, 0, sizeof(v.families));
		memset(&v.twins, 0, sizeof(v.twins));
		swarm_idset_reset(&v.families);
		swarm_idset_reset(&v.twins);
		mark_dead(&v);
	} while (v.pending);

	if (v.index->meta.dims != 0)
	{
		if (v.families.count > 0 || v.twins.count > 0)
			mend_families(&v);
		if (v.ndead > 0)
		{
			swarm_hnsw_drain_links(v.rel);
			repair_links(&v);
			replace_entry(&v);
		}
		if (v.ndead > 0 || v.ngone > 0)
			free_nodes(&v);
		if (v.ndead > 0)
			swarm_hnsw_connect(v.rel);
	}
	stats->num_pages = RelationGetNumberOfBlocks(v.rel);
	stats->num_index_tuples = v.live;
	stats->tuples_removed += v.removed + v.attached;
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
	if (swarm_hnsw_fold(info->index, true) > 0)
		swarm_hnsw_connect(info->index);
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
		SWARM_FAULT("hnsw.vacuum.mark");
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
		bool		had_row = ItemPointerIsValid(&node->tid);
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
		died = !had_row || v->callback(&node->tid, v->state);
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
		if (node->state == SWARM_NODE_TWIN)
		{
			SwarmNodeId primary = swarm_hnsw_links(index, node)[0];

			/* Without one it was taken out by a vacuum that did not end. */
			if (primary != SWARM_NODE_NONE)
				swarm_idset_add(&v->families, primary);
			swarm_idset_add(&v->twins, id);
			set_bit(v->gone, id);
			v->ngone++;
			v->attached += had_row;
			continue;
		}
		if (node->state == SWARM_NODE_LINKED && node->next != SWARM_NODE_NONE)
		{
			/* Its node serves the twins. */
			swarm_idset_add(&v->families, id);
			set_bit(v->gone, id);
			v->ngone++;
			v->attached += had_row;
			continue;
		}

		v->removed += had_row;
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
		if (!swarm_hnsw_may_follow(node->state, SWARM_NODE_DEAD))
			swarm_hnsw_damaged(v->rel, "state of node", id);
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
 * node of a dead row.  Nobody links meanwhile, so that no chain grows.
 *
 * Chains have grown since the nodes were marked, by rows of then and by younger
 * ones, whose nodes may have to be freed: so all that there are now count.
 *
 * First chains go around dead twins, then these are detached, then primaries
 * are replaced.  Wherever that stops, chains are right, and the next vacuum
 * finds what is left: dead rows in a chain, dead twins of a linked primary,
 * detached twins.
 */
static void
mend_families(Vacuum *v)
{
	const SwarmIdSet *families = &v->families;
	uint32		marked = v->nodes;

	LockPage(v->rel, 1, ExclusiveLock);
	v->index = swarm_hnsw_open(v->rel);
	v->nodes = v->index->meta.nodes;
	v->dead = grow_bits(v->dead, marked, v->nodes);
	v->gone = grow_bits(v->gone, marked, v->nodes);
	for (uint32 i = 0; i < families->room; i++)
		if (families->slots[i] != SWARM_NODE_NONE)
			skip_dead(v, families->slots[i]);
	SWARM_FAULT("hnsw.vacuum.mend");
	for (uint32 i = 0; i < v->twins.room; i++)
		if (v->twins.slots[i] != SWARM_NODE_NONE)
		{
			swarm_vacuum_delay();
			detach(v, v->twins.slots[i]);
		}
	for (uint32 i = 0; i < families->room; i++)
		if (families->slots[i] < v->nodes && has_bit(v->gone, families->slots[i]))
		{
			swarm_vacuum_delay();
			replace_primary(v, families->slots[i]);
			SWARM_FAULT("hnsw.vacuum.mend");
		}
	UnlockPage(v->rel, 1, ExclusiveLock);
}

/*
 * grow_bits: a set of bits with room for more nodes, which are not in it.
 */
static uint8 *
grow_bits(const uint8 *bits, uint32 from, uint32 to)
{
	uint8	   *grown = MemoryContextAllocExtended(CurrentMemoryContext,
												   to / 8 + 1,
												   MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);

	memcpy(grown, bits, Min(from, to) / 8 + 1);
	return grown;
}

/*
 * set_next: change the successor of a node in its chain.
 */
static void
set_next(Vacuum *v, SwarmNodeId id, SwarmNodeId next)
{
	Buffer		buffer = swarm_hnsw_read_node(v->index, v->rel, id,
											  BUFFER_LOCK_EXCLUSIVE);
	GenericXLogState *state = GenericXLogStart(v->rel);
	Page		page = GenericXLogRegisterBuffer(state, buffer, 0);

	swarm_hnsw_node(v->index, page, id)->next = next;
	GenericXLogFinish(state);
	UnlockReleaseBuffer(buffer);
}

/*
 * detach: a twin belongs to no family any more, and waits to be freed.  It is
 * not in its chain any more; its own successor stays, for scans that are at it.
 */
static void
detach(Vacuum *v, SwarmNodeId id)
{
	Buffer		buffer = swarm_hnsw_read_node(v->index, v->rel, id,
											  BUFFER_LOCK_EXCLUSIVE);
	GenericXLogState *state = GenericXLogStart(v->rel);
	SwarmNode  *node = swarm_hnsw_node(v->index,
									   GenericXLogRegisterBuffer(state, buffer, 0),
									   id);

	swarm_hnsw_links(v->index, node)[0] = SWARM_NODE_NONE;
	ItemPointerSetInvalid(&node->tid);
	GenericXLogFinish(state);
	UnlockReleaseBuffer(buffer);
}

/*
 * kill_primary: the row of a family's node is dead.  If it has a twin, whose
 * row this is, the twin's row moves in and the twin is detached, in one record;
 * else the node is dead.
 */
static void
kill_primary(Vacuum *v, SwarmNodeId primary, SwarmNodeId twin)
{
	uint32		per_page = v->index->layout.per_page[SWARM_STREAM_NODE];
	bool		two = twin != SWARM_NODE_NONE &&
	twin / per_page != primary / per_page;
	Buffer		buffer = swarm_hnsw_read_node(v->index, v->rel, primary, 0);
	Buffer		twin_buffer = two ?
	swarm_hnsw_read_node(v->index, v->rel, twin, 0) : buffer;
	GenericXLogState *state;
	Page		page;
	SwarmNode  *node;

	if (two && twin < primary)
		LockBuffer(twin_buffer, BUFFER_LOCK_EXCLUSIVE);
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	if (two && twin > primary)
		LockBuffer(twin_buffer, BUFFER_LOCK_EXCLUSIVE);

	state = GenericXLogStart(v->rel);
	page = GenericXLogRegisterBuffer(state, buffer, 0);
	node = swarm_hnsw_node(v->index, page, primary);
	if (twin == SWARM_NODE_NONE)
	{
		ItemPointerSetInvalid(&node->tid);
		node->next = SWARM_NODE_NONE;
		node->state = SWARM_NODE_DEAD;
	}
	else
	{
		Page		twin_page = two ?
		GenericXLogRegisterBuffer(state, twin_buffer, 0) : page;
		SwarmNode  *from = swarm_hnsw_node(v->index, twin_page, twin);

		node->tid = from->tid;
		node->next = from->next;
		swarm_hnsw_links(v->index, from)[0] = SWARM_NODE_NONE;
		ItemPointerSetInvalid(&from->tid);
	}
	GenericXLogFinish(state);
	UnlockReleaseBuffer(buffer);
	if (two)
		UnlockReleaseBuffer(twin_buffer);
}

/*
 * skip_dead: let a chain go around its dead twins.
 *
 * A vacuum that did not get to its end may have taken them all out and left
 * them attached.  Then the node was marked dead like one without twins, and
 * there is no chain.
 */
static void
skip_dead(Vacuum *v, SwarmNodeId primary)
{
	SwarmNodeId last = primary;
	SwarmNodeId id = primary;
	bool		skipped = false;

	for (uint32 n = 0;; n++)
	{
		SwarmNodeId next = SWARM_NODE_NONE;

		if (id != SWARM_NODE_NONE)
		{
			Buffer		buffer = swarm_hnsw_read_node(v->index, v->rel, id,
													  BUFFER_LOCK_SHARE);
			SwarmNode  *node = swarm_hnsw_node(v->index, BufferGetPage(buffer), id);
			bool		dead = n == 0 && node->state == SWARM_NODE_DEAD;

			next = node->next;
			if (!dead && (n > v->index->meta.nodes ||
						  node->state != (n == 0 ? SWARM_NODE_LINKED :
										  SWARM_NODE_TWIN)))
				swarm_hnsw_damaged(v->rel, "chain of equal rows at node", id);
			UnlockReleaseBuffer(buffer);
			if (dead)
				return;
		}
		if (n > 0 && id != SWARM_NODE_NONE && id < v->nodes && has_bit(v->gone, id))
			skipped = true;
		else if (n > 0)
		{
			if (skipped)
				set_next(v, last, id);
			skipped = false;
			last = id;
		}
		if (id == SWARM_NODE_NONE)
			break;
		id = next;
		swarm_vacuum_delay();
	}
}

/*
 * replace_primary: let the first twin take the node of a family whose own row
 * is dead.
 */
static void
replace_primary(Vacuum *v, SwarmNodeId primary)
{
	Buffer		buffer = swarm_hnsw_read_node(v->index, v->rel, primary,
											  BUFFER_LOCK_SHARE);
	SwarmNodeId twin = swarm_hnsw_node(v->index, BufferGetPage(buffer),
									   primary)->next;

	UnlockReleaseBuffer(buffer);
	if (twin != SWARM_NODE_NONE && twin >= v->nodes)
		swarm_hnsw_damaged(v->rel, "chain of equal rows at node", primary);
	kill_primary(v, primary, twin);
	v->gone[primary / 8] &= ~(1 << (primary % 8));
	v->ngone--;
	if (twin == SWARM_NODE_NONE)
	{
		set_bit(v->dead, primary);
		v->ndead++;
	}
	else
	{
		set_bit(v->gone, twin);
		v->ngone++;
	}
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
					SWARM_FAULT("hnsw.vacuum.repair");
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
	SwarmNodeId chosen[MAX_LINKS];
	SwarmNodeId wanted[MAX_LINKS];
	int			nold;
	int			count;

	do
	{
		int			n = 0;
		int			nlive;
		int			nwanted;

		nold = swarm_hnsw_read_links(index, v->rel, id, level, old);
		for (int i = 0; i < nold; i++)
			if (old[i] >= v->nodes || !has_bit(v->dead, old[i]))
				candidates[n++] = old[i];
		nlive = nwanted = n;
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

		/*
		 * Live links stay, also those that choosing anew would leave out:
		 * each may be the only one that leads there.
		 */
		count = swarm_hnsw_choose(index, v->rel, id, candidates, n, max, chosen);
		memcpy(wanted, candidates, nlive * sizeof(SwarmNodeId));
		for (int i = 0; i < count && nwanted < max; i++)
		{
			bool		known = false;

			for (int j = 0; j < nlive && !known; j++)
				known = candidates[j] == chosen[i];
			if (!known)
				wanted[nwanted++] = chosen[i];
		}
		count = nwanted;
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
		SWARM_FAULT("hnsw.vacuum.free");

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
			if (!swarm_hnsw_may_follow(node->state, SWARM_NODE_FREE))
				swarm_hnsw_damaged(v->rel, "state of node", id);
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
