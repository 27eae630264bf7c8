/*
 * hnsw_explain.c
 *	  What EXPLAIN (ANALYZE, VERBOSE) says of an index scan, where the server
 *	  asks extensions: what swarm.qhnsw_scan_stats counts, over all loops.
 *
 * Not in parallel workers: their scans are gone when the leader explains.
 */
#include "postgres.h"

#include "access/relscan.h"
#include "commands/explain.h"
#include "nodes/execnodes.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "hnsw/hnsw_int.h"

#ifdef SWARM_EXPLAINS_NODES

#include "commands/explain_format.h"
#include "commands/explain_state.h"

static explain_per_node_hook_type next_hook = NULL;

/*
 * explain_node: the hook.
 */
static void
explain_node(PlanState *planstate, List *ancestors, const char *relationship,
			 const char *plan_name, ExplainState *es)
{
	IndexScanDesc scan;
	SwarmHnswCounters counters;

	if (next_hook != NULL)
		next_hook(planstate, ancestors, relationship, plan_name, es);
	if (!es->analyze || !es->verbose || !IsA(planstate, IndexScanState))
		return;
	scan = ((IndexScanState *) planstate)->iss_ScanDesc;
	if (scan == NULL ||
		scan->indexRelation->rd_indam->amgettuple != swarm_hnsw_get_tuple)
		return;
	swarm_hnsw_scan_counters(scan->opaque, &counters);
	ExplainPropertyUInteger("Graph Hops", NULL, counters.hops, es);
	ExplainPropertyUInteger("Pages Visited", NULL, counters.pages, es);
	ExplainPropertyUInteger("Codes Scored", NULL, counters.scored, es);
	ExplainPropertyUInteger("Codes Refined", NULL, counters.refined, es);
	ExplainPropertyUInteger("Rows Reranked", NULL, counters.fetched, es);
}

/*
 * swarm_hnsw_explain_init: from _PG_init.
 */
void
swarm_hnsw_explain_init(void)
{
	next_hook = explain_per_node_hook;
	explain_per_node_hook = explain_node;
}

#else

void
swarm_hnsw_explain_init(void)
{
}

#endif
