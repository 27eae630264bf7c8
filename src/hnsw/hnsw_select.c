/*
 * hnsw_select.c
 *	  Which of the candidates a node is linked to.
 *
 * The heuristic of the HNSW paper (Malkov and Yashunin, 2018, algorithm 4): a
 * candidate is taken unless one that was taken before is clearly nearer to it
 * than the node is.  So links point in many directions.
 *
 * Pure computation; used by the build in memory and by the pages alike.
 */
#include "postgres.h"

#include "base/compat.h"
#include "hnsw/hnsw_int.h"

/*
 * How many times nearer, by squared distance, one that was taken has to be.
 *
 * The paper's 1 makes a graph for walks that come from far away.  Ours begin
 * near the query, at the nearest of many nodes of an upper level, and need the
 * links among the nodes around it: with more of these a walk scores fewer codes
 * for the same recall.  (DiskANN has such a factor too: Subramanya and others,
 * 2019.)  With too large a factor the near ones take all the room: at 1.3 walks
 * of 100,000 x 384 get stuck in clusters.
 */
#define CLEARLY			1.2f

/*
 * swarm_hnsw_select: choose at most `max` of n points, which ascend by their
 * distance from the node.  Writes their indexes to `chosen` and returns how
 * many.  `load` (may be NULL) makes points[i] ready before it is looked at.
 *
 * When few are taken, the nearest of the others fill up to half of `max`: in
 * tight clusters the rule alone leaves so few links that parts of the graph
 * hang together with nothing.
 */
int
swarm_hnsw_select(SwarmPoint *points, const float *distances, int n,
				  int dims, int max, int *chosen, SwarmPointLoad load,
				  void *arg)
{
	int			count = 0;
	int			taken;

	for (int i = 0; i < n && count < max; i++)
	{
		bool		take = true;

		if (load != NULL)
			load(arg, i);
		for (int j = 0; j < count && take; j++)
			take = CLEARLY * swarm_hnsw_point_distance(&points[i],
													   &points[chosen[j]],
													   dims) >= distances[i];
		if (take)
			chosen[count++] = i;
	}

	/* Those that were taken ascend. */
	taken = count;
	for (int i = 0, j = 0; i < n && count < max / 2; i++)
	{
		if (j < taken && chosen[j] == i)
			j++;
		else
			chosen[count++] = i;
	}
	return count;
}
