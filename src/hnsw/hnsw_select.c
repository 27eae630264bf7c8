/*
 * hnsw_select.c
 *	  Which of the candidates a node is linked to.
 *
 * The heuristic of the HNSW paper (Malkov and Yashunin, 2018, algorithm 4,
 * without its options): a candidate is taken unless one that was taken before
 * is nearer to it than the node is.  So links point in many directions.
 *
 * Pure computation; used by the build in memory and by the pages alike.
 */
#include "postgres.h"

#include "base/compat.h"
#include "hnsw/hnsw_int.h"

/*
 * swarm_hnsw_select: choose at most `max` of n points, which ascend by their
 * distance from the node.  Writes their indexes, ascending, to `chosen` and
 * returns how many.  `load` (may be NULL) makes points[i] ready before it is
 * looked at.
 */
int
swarm_hnsw_select(const SwarmPoint *points, const float *distances, int n,
				  int dims, int max, int *chosen, SwarmPointLoad load,
				  void *arg)
{
	int			count = 0;

	for (int i = 0; i < n && count < max; i++)
	{
		bool		take = true;

		if (load != NULL)
			load(arg, i);
		for (int j = 0; j < count && take; j++)
			take = swarm_hnsw_point_distance(&points[i], &points[chosen[j]],
											 dims) >= distances[i];
		if (take)
			chosen[count++] = i;
	}
	return count;
}
