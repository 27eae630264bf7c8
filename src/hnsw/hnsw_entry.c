/*
 * hnsw_entry.c
 *	  Where a walk begins: the nodes of an upper level, kept by each backend.
 *
 * Going down from the entry point costs as many page accesses as a quarter of
 * a walk.  A backend that searches an index again keeps the codes of one upper
 * level, a few hundred, and begins at the nearest of them.  They are only
 * places to begin: one that has been freed or replaced since costs a longer
 * way, nothing else, and is found out when its page is read.
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "hnsw/hnsw_int.h"

/* Nodes kept, and bytes of their codes. */
#define MAX_ENTRIES		512
#define MAX_BYTES		(1024 * 1024)

/* Searches of a backend before it keeps them. */
#define FIRST_SEARCHES	2

/* Candidates that are tried before the walk begins at the entry point. */
#define TRIES			4

static bool make_entries(SwarmHnswIndex *index, Relation rel);

/*
 * swarm_hnsw_nearest_entry: the nearest of the kept nodes; *level is the level
 * that it is the best of.  False when none are kept, or none is of use.
 */
bool
swarm_hnsw_nearest_entry(SwarmHnswSearch *search, int to_level, int *level,
						 SwarmCandidate *nearest)
{
	SwarmHnswIndex *index = search->index;
	SwarmHnswEntries *entries = &index->entries;
	int			parity = index->meta.generation & 1;
	float		dots[MAX_ENTRIES];
	int			best[TRIES];
	float		distance[TRIES];
	int			nbest = 0;

	if (index->meta.oldest != index->meta.generation)
		return false;
	if ((entries->count == 0 || entries->generation != index->meta.generation ||
		 entries->nodes < index->meta.nodes - index->meta.nodes / 4) &&
		!make_entries(index, search->rel))
		return false;
	if (entries->level <= to_level)
		return false;

	swarm_hnsw_query_refresh(index, search->query);
	swarm_codec_dots(&index->codec, search->query->codec[parity],
					 entries->codes, entries->count, dots);
	for (int i = 0; i < entries->count; i++)
	{
		float		d = swarm_hnsw_score(search->query, parity,
										 entries->norm2[i], entries->scale[i],
										 dots[i]);
		int			at = nbest;

		if (nbest == TRIES && d >= distance[TRIES - 1])
			continue;
		if (nbest == TRIES)
			at--;
		else
			nbest++;
		for (; at > 0 && distance[at - 1] > d; at--)
		{
			distance[at] = distance[at - 1];
			best[at] = best[at - 1];
		}
		distance[at] = d;
		best[at] = i;
	}
	search->scored += entries->count;

	*level = entries->level;
	for (int i = 0; i < nbest; i++)
		/* A slot that was given to a new row may not have links yet. */
		if (swarm_hnsw_score_ids(search, &entries->ids[best[i]], 1, nearest) > 0 &&
			nearest->state == SWARM_NODE_LINKED)
			return true;
	return false;
}

/*
 * nth_of_level: the n-th node of a level: see swarm_hnsw_level.
 */
static SwarmNodeId
nth_of_level(const SwarmHnswMeta *meta, int level, uint32 n)
{
	uint64		id = n;

	while (level-- > 0)
		id = id << SWARM_HNSW_FANOUT_BITS |
			swarm_hnsw_level_digit(meta, level, (uint32) id);
	return id < SWARM_NODE_NONE ? (SwarmNodeId) id : SWARM_NODE_NONE;
}

/*
 * make_entries: keep the nodes of the lowest level that has few enough; false
 * when it does not pay yet.
 */
static bool
make_entries(SwarmHnswIndex *index, Relation rel)
{
	SwarmHnswEntries *entries = &index->entries;
	Size		code_size = index->codec.code_size;
	int			limit = Min(MAX_ENTRIES, MAX_BYTES / code_size);
	int			level = 1;
	MemoryContext old;
	uint8	   *codes;

	entries->count = 0;
	if (++entries->searches <= FIRST_SEARCHES)
		return false;
	while (level < SWARM_HNSW_MAX_LEVEL &&
		   (index->meta.nodes >> (level * SWARM_HNSW_FANOUT_BITS)) + 1 > limit)
		level++;
	if (level > 1 && (index->meta.nodes >> (level * SWARM_HNSW_FANOUT_BITS)) < 8)
		return false;

	if (entries->context == NULL)
		entries->context = AllocSetContextCreate(index->context, "qhnsw entries",
												 ALLOCSET_SMALL_SIZES);
	else
		MemoryContextReset(entries->context);
	old = MemoryContextSwitchTo(entries->context);
	entries->ids = palloc(limit * sizeof(SwarmNodeId));
	entries->norm2 = palloc(limit * sizeof(float));
	entries->scale = palloc(limit * sizeof(float));
	entries->codes = palloc(limit * sizeof(uint8 *));
	codes = palloc(limit * code_size);
	MemoryContextSwitchTo(old);

	for (uint32 n = 0; entries->count < limit; n++)
	{
		SwarmNodeId id = nth_of_level(&index->meta, level, n);
		uint8	   *code = codes + entries->count * code_size;
		Buffer		buffer;
		SwarmNode  *node;

		if (((uint64) n << (level * SWARM_HNSW_FANOUT_BITS)) >= index->meta.nodes)
			break;
		if (id >= index->meta.nodes)
			continue;
		buffer = swarm_hnsw_read_node(index, rel, id, BUFFER_LOCK_SHARE);
		node = swarm_hnsw_node(index, BufferGetPage(buffer), id);
		if (node->state == SWARM_NODE_LINKED)
		{
			memcpy(code, node->code, code_size);
			entries->codes[entries->count] = code;
			entries->ids[entries->count] = id;
			entries->norm2[entries->count] = node->norm2;
			entries->scale[entries->count++] = node->scale;
		}
		UnlockReleaseBuffer(buffer);
	}
	entries->level = level;
	entries->nodes = index->meta.nodes;
	entries->generation = index->meta.generation;
	return entries->count > 0;
}
