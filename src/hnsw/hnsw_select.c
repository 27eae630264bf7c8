/*
 * hnsw_select.c
 *	  Which of the candidates a node is linked to.
 *
 * The heuristic of the HNSW paper (Malkov and Yashunin, 2018, algorithm 4): a
 * candidate is taken unless one that was taken before is nearer to it than the
 * node is.  So links point in many directions.  It fills half of the room; the
 * other half is for what a relaxed form of the rule takes besides.
 *
 * Pure computation; used by the build in memory and by the pages alike.
 */
#include "postgres.h"

#include "base/compat.h"
#include "hnsw/hnsw_int.h"

/*
 * The relaxed rule: how many times nearer, by squared distance, one that was
 * taken has to be.
 *
 * The paper's 1 makes a graph for walks that come from far away.  Ours begin
 * near the query, at the nearest of many nodes of an upper level, and need the
 * links among the nodes around it: with more of these a walk scores fewer codes
 * for the same recall.  (DiskANN has such a factor too: Subramanya and others,
 * 2019.)  By this rule alone, or with a larger factor, the near ones would take
 * all the room, and walks get stuck in clusters.
 */
#define CLEARLY			1.2f

/*
 * is_chosen: is a point among those that were taken?
 */
static bool
is_chosen(const int *chosen, int count, int i)
{
	for (int j = 0; j < count; j++)
		if (chosen[j] == i)
			return true;
	return false;
}

/*
 * swarm_hnsw_select: choose at most `max` of n points, which ascend by their
 * distance from the node.  Writes their indexes to `chosen` and returns how
 * many.  `load` (may be NULL) makes points[i] ready before it is looked at.
 *
 * When few are taken, the nearest of the others fill up to half of `max`: in
 * tight clusters the rules alone leave so few links that parts of the graph
 * hang together with nothing.
 */
int
swarm_hnsw_select(SwarmPoint *points, const float *distances, int n,
				  int dims, int max, int *chosen, SwarmPointLoad load,
				  void *arg)
{
	int			count = 0;
	int			loaded = 0;

	/* By the rule of the paper, then by the relaxed one. */
	for (int pass = 0; pass < 2; pass++)
	{
		int			room = pass == 0 ? (max + 1) / 2 : max;
		float		factor = pass == 0 ? 1.0f : CLEARLY;

		for (int i = 0; i < n && count < room; i++)
		{
			bool		take = !is_chosen(chosen, count, i);

			if (load != NULL && i >= loaded)
			{
				load(arg, i);
				loaded = i + 1;
			}
			for (int j = 0; j < count && take; j++)
				take = factor * swarm_hnsw_point_distance(&points[i],
														  &points[chosen[j]],
														  dims) >= distances[i];
			if (take)
				chosen[count++] = i;
		}
	}
	for (int i = 0; i < n && count < max / 2; i++)
		if (!is_chosen(chosen, count, i))
			chosen[count++] = i;
	return count;
}
