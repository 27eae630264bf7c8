/*
 * hnsw_measure.c
 *	  What an index is made of, in figures: nodes by state and level, pages by
 *	  kind, and how far the rows have moved from the centre of the codes.
 */
#include "postgres.h"

#include <math.h>

#include "miscadmin.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "hnsw/hnsw_int.h"

/* Nodes that codes are decoded of, to measure the drift. */
#define DRIFT_NODES		1000

/*
 * measure_drift: how far the mean of some codes has moved from the centre, as
 * a share of their mean distance from it.
 */
static double
measure_drift(Relation rel, SwarmHnswIndex *index)
{
	uint32		nodes = index->meta.nodes;
	uint32		step = Max(nodes / DRIFT_NODES, 1);
	int			parity = index->meta.generation & 1;
	float	   *x = palloc(sizeof(float) * index->dims);
	double	   *sum = palloc0(sizeof(double) * index->dims);
	double		length = 0;
	double		moved = 0;
	uint32		count = 0;

	for (uint64 id = 0; id < nodes; id += step)
	{
		Buffer		buffer = swarm_hnsw_read_node(index, rel, id,
												  BUFFER_LOCK_SHARE);
		SwarmNode  *node = swarm_hnsw_node(index, BufferGetPage(buffer), id);
		bool		take = (node->state == SWARM_NODE_LINKED ||
							node->state == SWARM_NODE_TWIN ||
							node->state == SWARM_NODE_PENDING) &&
		(node->flags & SWARM_NODE_GENERATION) == parity;

		CHECK_FOR_INTERRUPTS();
		if (take)
		{
			swarm_codec_decode(&index->codec, node->code, NULL, node->scale, x);
			length += sqrt(node->norm2);
			count++;
		}
		UnlockReleaseBuffer(buffer);
		for (int i = 0; i < index->dims && take; i++)
			sum[i] += x[i];
	}
	for (int i = 0; i < index->dims; i++)
		moved += sum[i] * sum[i];
	pfree(x);
	pfree(sum);
	if (count == 0)
		return -1;
	return length > 0 ? sqrt(moved) / length : 0;
}

/*
 * swarm_hnsw_measure: count nodes and pages.  Raises XX002 when the index is
 * damaged.
 */
void
swarm_hnsw_measure(Relation rel, SwarmHnswMeasures *measures)
{
	SwarmHnswIndex *index = swarm_hnsw_open(rel);
	SwarmHnswLayout *layout = &index->layout;
	uint32		nodes = index->meta.nodes;
	uint32		per_page;

	memset(measures, 0, sizeof(*measures));
	measures->meta = index->meta;
	measures->drift = -1;
	measures->pages[SWARM_PAGE_META] = 1;
	if (index->meta.dims == 0)
		return;

	per_page = layout->per_page[SWARM_STREAM_NODE];
	measures->pages[SWARM_PAGE_MODEL] = 2 * layout->model_pages;
	for (int stream = 0; stream < SWARM_HNSW_STREAMS; stream++)
		if (layout->per_page[stream] > 0)
			measures->pages[stream] = ((uint64) nodes + layout->per_page[stream] - 1) /
				layout->per_page[stream];
	for (uint64 first = 0; first < nodes; first += per_page)
	{
		Buffer		buffer = swarm_hnsw_read_node(index, rel, first,
												  BUFFER_LOCK_SHARE);

		CHECK_FOR_INTERRUPTS();
		for (SwarmNodeId id = first; id < Min(first + per_page, nodes); id++)
		{
			unsigned int state = swarm_hnsw_node(index, BufferGetPage(buffer),
												 id)->state;

			if (state >= SWARM_NODE_STATES)
				swarm_hnsw_damaged(rel, "state of node", id);
			measures->rows[state]++;
			if (state == SWARM_NODE_LINKED)
				measures->levels[swarm_hnsw_level(&index->meta, id)]++;
		}
		UnlockReleaseBuffer(buffer);
	}
	/* A node is on all levels up to its own. */
	for (int level = SWARM_HNSW_MAX_LEVEL - 1; level >= 0; level--)
		measures->levels[level] += measures->levels[level + 1];
	measures->drift = measure_drift(rel, index);
}
