/*
 * hnsw_parallel.c
 *	  CREATE INDEX with parallel workers.
 *
 * The graph lies in dynamic shared memory; the leader and its workers scan the
 * table together and link rows at the same time (hnsw_graph.c has a lock a
 * node).  When they are done the leader goes on alone.
 */
#include "postgres.h"

#include <sys/statvfs.h>

#include "access/parallel.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "miscadmin.h"
#include "optimizer/optimizer.h"
#include "pgstat.h"
#include "storage/dsm_impl.h"
#include "tcop/tcopprot.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "hnsw/hnsw_build_int.h"

/* Keys in the segment. */
#define KEY_BUILD		UINT64CONST(0x7148000000000001)
#define KEY_SCAN		UINT64CONST(0x7148000000000002)
#define KEY_GRAPH		UINT64CONST(0x7148000000000003)
#define KEY_QUERY		UINT64CONST(0x7148000000000004)

/* Left free where dynamic shared memory comes from. */
#define SHM_RESERVE		(1024 * 1024)

typedef struct ParallelBuild
{
	Oid			heap;
	Oid			rel;
	bool		concurrent;
	slock_t		lock;			/* of the rest */
	double		heap_tuples;
	double		index_tuples;
	bool		full;
	bool		broken;			/* a HOT chain is; see IndexInfo */
} ParallelBuild;

struct SwarmParallel
{
	ParallelContext *context;
	Snapshot	snapshot;
};

extern PGDLLEXPORT void swarm_hnsw_build_worker(dsm_segment *seg, shm_toc *toc);

static bool has_shared_memory(SwarmBuild *build, Size size);
static void add_result(ParallelBuild *shared, const SwarmBuild *build);

/*
 * swarm_hnsw_parallel_begin: scan the table with parallel workers; NULL when
 * there are none to be had, and then nothing was scanned.  The graph can be
 * used until swarm_hnsw_parallel_end.
 */
SwarmParallel *
swarm_hnsw_parallel_begin(SwarmBuild *build, uint32 room)
{
	int			workers = plan_create_index_workers(RelationGetRelid(build->heap),
													RelationGetRelid(build->rel));
	Size		graph_size = swarm_graph_size(build->index, room);
	SwarmParallel *parallel;
	ParallelContext *context;
	ParallelBuild *shared;
	ParallelTableScanDesc scan;
	SwarmGraphShared *graph;
	Snapshot	snapshot;
	Size		scan_size;
	Size		query_size = debug_query_string != NULL ?
	strlen(debug_query_string) + 1 : 0;

	if (workers == 0 || !has_shared_memory(build, graph_size))
		return NULL;

	EnterParallelMode();
	context = CreateParallelContext("pg_swarm", "swarm_hnsw_build_worker", workers);
	snapshot = build->info->ii_Concurrent ?
		RegisterSnapshot(GetTransactionSnapshot()) : SnapshotAny;
	scan_size = table_parallelscan_estimate(build->heap, snapshot);
	shm_toc_estimate_chunk(&context->estimator, sizeof(ParallelBuild));
	shm_toc_estimate_chunk(&context->estimator, scan_size);
	shm_toc_estimate_chunk(&context->estimator, graph_size);
	shm_toc_estimate_chunk(&context->estimator, query_size);
	shm_toc_estimate_keys(&context->estimator, 4);
	InitializeParallelDSM(context);

	parallel = palloc0(sizeof(SwarmParallel));
	parallel->context = context;
	parallel->snapshot = snapshot;
	if (context->seg == NULL)
	{
		swarm_hnsw_parallel_end(parallel);
		return NULL;
	}

	shared = shm_toc_allocate(context->toc, sizeof(ParallelBuild));
	memset(shared, 0, sizeof(ParallelBuild));
	shared->heap = RelationGetRelid(build->heap);
	shared->rel = RelationGetRelid(build->rel);
	shared->concurrent = build->info->ii_Concurrent;
	SpinLockInit(&shared->lock);
	shm_toc_insert(context->toc, KEY_BUILD, shared);
	scan = shm_toc_allocate(context->toc, scan_size);
	table_parallelscan_initialize(build->heap, scan, snapshot);
	shm_toc_insert(context->toc, KEY_SCAN, scan);
	graph = shm_toc_allocate(context->toc, graph_size);
	swarm_graph_init(graph, room);
	shm_toc_insert(context->toc, KEY_GRAPH, graph);
	if (query_size > 0)
	{
		char	   *query = shm_toc_allocate(context->toc, query_size);

		memcpy(query, debug_query_string, query_size);
		shm_toc_insert(context->toc, KEY_QUERY, query);
	}

	LaunchParallelWorkers(context);
	if (context->nworkers_launched == 0)
	{
		WaitForParallelWorkersToFinish(context);
		swarm_hnsw_parallel_end(parallel);
		return NULL;
	}

	swarm_hnsw_build_scan(build, graph,
						  table_beginscan_parallel(build->heap, scan));
	WaitForParallelWorkersToFinish(context);
	add_result(shared, build);
	build->heap_tuples = shared->heap_tuples;
	build->index_tuples = shared->index_tuples;
	build->full = shared->full;
	build->info->ii_BrokenHotChain = shared->broken;
	return parallel;
}

/*
 * swarm_hnsw_parallel_end: let the workers' shared memory go.
 */
void
swarm_hnsw_parallel_end(SwarmParallel *parallel)
{
	if (IsMVCCSnapshot(parallel->snapshot))
		UnregisterSnapshot(parallel->snapshot);
	DestroyParallelContext(parallel->context);
	ExitParallelMode();
	pfree(parallel);
}

/*
 * has_shared_memory: is there room for the graph where the server takes
 * dynamic shared memory from?  A notice says when there is not.
 */
static bool
has_shared_memory(SwarmBuild *build, Size size)
{
	struct statvfs fs;

	if (dynamic_shared_memory_type != DSM_IMPL_POSIX ||
		statvfs("/dev/shm", &fs) != 0 ||
		(double) fs.f_bavail * fs.f_frsize >= (double) size + SHM_RESERVE)
		return true;
	ereport(NOTICE,
			(errmsg("building index \"%s\" without parallel workers",
					RelationGetRelationName(build->rel)),
			 errdetail("The graph takes %zu kB, and /dev/shm has %.0f kB left.",
					   size / 1024, (double) fs.f_bavail * fs.f_frsize / 1024)));
	return false;
}

/*
 * add_result: what one process did.
 */
static void
add_result(ParallelBuild *shared, const SwarmBuild *build)
{
	SpinLockAcquire(&shared->lock);
	shared->heap_tuples += build->heap_tuples;
	shared->index_tuples += build->index_tuples;
	shared->full |= build->full;
	shared->broken |= build->info->ii_BrokenHotChain;
	SpinLockRelease(&shared->lock);
}

/*
 * swarm_hnsw_build_worker: the entry point of a parallel worker.
 */
void
swarm_hnsw_build_worker(dsm_segment *seg, shm_toc *toc)
{
	ParallelBuild *shared = shm_toc_lookup(toc, KEY_BUILD, false);
	ParallelTableScanDesc scan = shm_toc_lookup(toc, KEY_SCAN, false);
	SwarmGraphShared *graph = shm_toc_lookup(toc, KEY_GRAPH, false);
	LOCKMODE	heap_lock = shared->concurrent ? ShareUpdateExclusiveLock : ShareLock;
	LOCKMODE	rel_lock = shared->concurrent ? RowExclusiveLock : AccessExclusiveLock;
	SwarmBuild	build = {0};

	debug_query_string = shm_toc_lookup(toc, KEY_QUERY, true);
	pgstat_report_activity(STATE_RUNNING, debug_query_string);

	build.heap = table_open(shared->heap, heap_lock);
	build.rel = index_open(shared->rel, rel_lock);
	build.info = BuildIndexInfo(build.rel);
	build.info->ii_Concurrent = shared->concurrent;
	build.index = swarm_hnsw_open(build.rel);
	swarm_hnsw_build_scan(&build, graph,
						  table_beginscan_parallel(build.heap, scan));
	add_result(shared, &build);
	index_close(build.rel, rel_lock);
	table_close(build.heap, heap_lock);
}
