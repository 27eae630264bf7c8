/*
 * hnsw_cost.c
 *	  What the planner is told of a scan.
 *
 * Searching costs the first row; every row after that costs about what a row
 * of another ordered index costs, as scans go on until all rows are returned.
 */
#include "postgres.h"

#include <math.h>

#include "access/genam.h"
#include "optimizer/cost.h"
#include "optimizer/optimizer.h"
#include "utils/float.h"
#include "utils/rel.h"
#include "utils/selfuncs.h"
#include "utils/spccache.h"

#include "base/compat.h"
#include "hnsw/hnsw_int.h"

/* Codes scored a node expanded, as measured on real data; see the README. */
#define CODES_PER_HOP	14

/* Of the pages that a walk touches, those that another walk did not. */
#define COLD_SHARE		0.02

/*
 * swarm_hnsw_cost: amcostestimate.
 */
void
swarm_hnsw_cost(PlannerInfo *root, IndexPath *path, double loop_count,
				Cost *startup, Cost *total, Selectivity *selectivity,
				double *correlation, double *pages)
{
	IndexOptInfo *info = path->indexinfo;
	GenericCosts costs = {0};
	Relation	rel;
	double		rows = Max(info->tuples, 1.0);
	double		ef;
	double		scored;
	double		touched;
	double		spc_seq_page_cost;
	double		spc_random_page_cost;

	/* It gives rows in the order of a distance and does nothing else. */
	if (path->indexorderbys == NIL || path->indexclauses != NIL)
	{
		*startup = *total = get_float8_infinity();
		*selectivity = 1;
		*correlation = 0;
		*pages = info->pages;
		swarm_disable_path(path);
		return;
	}

	rel = index_open(info->indexoid, NoLock);
	ef = swarm_hnsw_ef_search(rel);
	index_close(rel, NoLock);

	scored = Min(rows, ef * CODES_PER_HOP + 16 * log(rows + 1));
	touched = Min((double) info->pages, scored * COLD_SHARE + 2);

	costs.numIndexTuples = rows;
	costs.numIndexPages = info->pages;
	genericcostestimate(root, path, loop_count, &costs);
	get_tablespace_page_costs(info->reltablespace, &spc_random_page_cost,
							  &spc_seq_page_cost);

	*startup = touched * spc_random_page_cost + scored * cpu_operator_cost;
	*total = *startup + info->pages * spc_seq_page_cost +
		rows * (cpu_operator_cost + cpu_index_tuple_cost) * 2;
	*selectivity = costs.indexSelectivity;
	*correlation = 0;
	*pages = touched;
}
