/*
 * custom_scan.c
 *	  For tests: a provider of custom scans, so that there is a Custom Scan to
 *	  pause.
 *
 * Plans of the session read the table that custom_scan.relation names through it.
 * With custom_scan.wait, the scan takes and gives back that advisory lock in its
 * first call: foreign code that does not return while somebody holds the lock.
 */
#include "postgres.h"

#include "access/tableam.h"
#include "executor/executor.h"
#include "nodes/extensible.h"
#include "optimizer/pathnode.h"
#include "optimizer/paths.h"
#include "optimizer/restrictinfo.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

typedef struct TestScan
{
	CustomScanState css;
	TableScanDesc scan;
	TupleTableSlot *slot;
	bool		begun;
} TestScan;

static Plan *make_plan(PlannerInfo *root, RelOptInfo *rel, CustomPath *path,
					   List *targets, List *clauses, List *plans);
static Node *make_state(CustomScan *plan);
static void begin_scan(CustomScanState *node, EState *estate, int flags);
static TupleTableSlot *next_row(CustomScanState *node);
static void end_scan(CustomScanState *node);
static void rescan(CustomScanState *node);

static const CustomPathMethods path_methods = {
	.CustomName = "test",
	.PlanCustomPath = make_plan
};
static const CustomScanMethods plan_methods = {
	.CustomName = "test",
	.CreateCustomScanState = make_state
};
static const CustomExecMethods exec_methods = {
	.CustomName = "test",
	.BeginCustomScan = begin_scan,
	.ExecCustomScan = next_row,
	.EndCustomScan = end_scan,
	.ReScanCustomScan = rescan
};

static char *table = NULL;
static int	wait_for = 0;
static set_rel_pathlist_hook_type previous = NULL;

static void
add_custom_path(PlannerInfo *root, RelOptInfo *rel, Index rti, RangeTblEntry *rte)
{
	CustomPath *path;
	char	   *name;

	if (previous)
		previous(root, rel, rti, rte);
	if (rel->reloptkind != RELOPT_BASEREL || rte->rtekind != RTE_RELATION ||
		rel->lateral_relids != NULL || rte->relkind != RELKIND_RELATION)
		return;
	name = get_rel_name(rte->relid);
	if (name == NULL || strcmp(name, table) != 0)
		return;
	path = makeNode(CustomPath);
	path->path.pathtype = T_CustomScan;
	path->path.parent = rel;
	path->path.pathtarget = rel->reltarget;
	path->path.rows = rel->rows;
	path->methods = &path_methods;
	rel->pathlist = NIL;
	rel->partial_pathlist = NIL;
	add_path(rel, &path->path);
}

static Plan *
make_plan(PlannerInfo *root, RelOptInfo *rel, CustomPath *path,
		  List *targets, List *clauses, List *plans)
{
	CustomScan *scan = makeNode(CustomScan);

	scan->scan.plan.targetlist = targets;
	scan->scan.plan.qual = extract_actual_clauses(clauses, false);
	scan->scan.scanrelid = rel->relid;
	scan->flags = path->flags;
	scan->methods = &plan_methods;
	return &scan->scan.plan;
}

static Node *
make_state(CustomScan *plan)
{
	TestScan   *state = palloc0(sizeof(TestScan));

	NodeSetTag(state, T_CustomScanState);
	state->css.methods = &exec_methods;
	return (Node *) state;
}

static void
begin_scan(CustomScanState *node, EState *estate, int flags)
{
	TestScan   *state = (TestScan *) node;

	state->slot = table_slot_create(node->ss.ss_currentRelation, NULL);
	state->scan = table_beginscan(node->ss.ss_currentRelation, estate->es_snapshot, 0, NULL);
}

static TupleTableSlot *
fetch(ScanState *node)
{
	TestScan   *state = (TestScan *) node;

	if (!state->begun && wait_for != 0)
	{
		DirectFunctionCall1(pg_advisory_lock_int8, Int64GetDatum(wait_for));
		DirectFunctionCall1(pg_advisory_unlock_int8, Int64GetDatum(wait_for));
	}
	state->begun = true;
	if (!table_scan_getnextslot(state->scan, ForwardScanDirection, state->slot))
		return ExecClearTuple(node->ss_ScanTupleSlot);
	return ExecCopySlot(node->ss_ScanTupleSlot, state->slot);
}

static bool
recheck(ScanState *node, TupleTableSlot *slot)
{
	return true;
}

static TupleTableSlot *
next_row(CustomScanState *node)
{
	return ExecScan(&node->ss, fetch, recheck);
}

static void
end_scan(CustomScanState *node)
{
	TestScan   *state = (TestScan *) node;

	table_endscan(state->scan);
	ExecDropSingleTupleTableSlot(state->slot);
}

static void
rescan(CustomScanState *node)
{
	table_rescan(((TestScan *) node)->scan, NULL);
	ExecScanReScan(&node->ss);
}

void
_PG_init(void)
{
	DefineCustomStringVariable("custom_scan.relation", "Table that is read by custom scans.", NULL,
							   &table, "", PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("custom_scan.wait", "Advisory lock that a scan waits for.", NULL,
							&wait_for, 0, 0, INT_MAX, PGC_USERSET, 0, NULL, NULL, NULL);
	RegisterCustomScanMethods(&plan_methods);
	previous = set_rel_pathlist_hook;
	set_rel_pathlist_hook = add_custom_path;
}
