/*
 * hnsw_build.c
 *	  CREATE INDEX: the graph is made in memory and written once.
 *
 * Step 1 samples the table for the centre.  Step 2 scans it, codes every row
 * and links it in memory, with codes of 8 bits whatever the index stores; when
 * there are parallel workers, all of them do (hnsw_parallel.c).  Step 3 orders
 * the nodes so that neighbours share pages and writes the pages, which are
 * logged as a whole at the end.  Rows for which there was no memory
 * (maintenance_work_mem) are found by another scan and inserted as INSERT does
 * it.
 *
 * Nobody else sees the index meanwhile.
 */
#include "postgres.h"

#include <math.h>

#include "access/tableam.h"
#include "access/xloginsert.h"
#include "catalog/index.h"
#include "commands/progress.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/smgr.h"
#include "utils/backend_progress.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "base/fault.h"
#include "hnsw/hnsw_build_int.h"
#include "hnsw/hnsw_int.h"

/* Rows that the centre is made from, and the parts of the table they lie in. */
#define SAMPLE_ROWS		10000
#define SAMPLE_PARTS	64

/* Phases in pg_stat_progress_create_index; 1 is the server's. */
#define PHASE_SAMPLE	2
#define PHASE_GRAPH		3
#define PHASE_WRITE		4

typedef struct Sample
{
	SwarmHnswOpclass opclass;
	MemoryContext context;
	int			dims;
	SwarmHnswIndex *index;		/* once dims are known */
	double	   *sum;			/* of rotated coordinates */
	int64		rows;
	int64		tuples;			/* with those that are null or zero */
	int64		blocks;			/* that they were in */
	double		radius2;
	float	   *work;
} Sample;

/* Rows that the graph has no place for, found by what it has. */
typedef struct Rest
{
	SwarmBuild *build;
	ItemPointerData *tids;		/* of the graph, sorted */
	uint32		count;
	MemoryContext context;
} Rest;

static void sample_table(Relation heap, Relation rel, IndexInfo *info,
						 Sample *sample);
static void sample_row(Relation rel, ItemPointer tid, Datum *values,
					   bool *isnull, bool alive, void *state);
static void make_model(Relation rel, SwarmHnswIndex *index,
					   const Sample *sample);
static void build_row(Relation rel, ItemPointer tid, Datum *values,
					  bool *isnull, bool alive, void *state);
static void write_graph(SwarmBuild *build);
static void insert_rest(SwarmBuild *build);
static void insert_row(Relation rel, ItemPointer tid, Datum *values,
					   bool *isnull, bool alive, void *state);
static int	compare_tids(const void *a, const void *b);
static void let_interrupt(const Buffer *buffers);
static void write_meta(Relation rel, ForkNumber fork,
					   const SwarmHnswMeta *meta);

/*
 * swarm_hnsw_build_empty: the init fork of an unlogged index.
 */
void
swarm_hnsw_build_empty(Relation rel)
{
	SwarmHnswMeta meta;

	swarm_hnsw_meta_fill(rel, &meta, 0);
	write_meta(rel, INIT_FORKNUM, &meta);
}

/*
 * write_meta: the first page of a fork.  The init fork is logged at once.
 */
static void
write_meta(Relation rel, ForkNumber fork, const SwarmHnswMeta *meta)
{
	Buffer		buffer = ReadBufferExtended(rel, fork, P_NEW, RBM_NORMAL, NULL);
	Page		page = BufferGetPage(buffer);

	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	START_CRIT_SECTION();
	swarm_hnsw_init_page(page, SWARM_PAGE_META, 0);
	*swarm_hnsw_meta(page) = *meta;
	swarm_hnsw_use_page(page, swarm_hnsw_meta(page) + 1);
	MarkBufferDirty(buffer);
	if (fork == INIT_FORKNUM)
		log_newpage_buffer(buffer, false);
	END_CRIT_SECTION();
	UnlockReleaseBuffer(buffer);
}

/*
 * swarm_hnsw_build: ambuild.
 */
IndexBuildResult *
swarm_hnsw_build(Relation heap, Relation rel, IndexInfo *info)
{
	IndexBuildResult *result = palloc0(sizeof(IndexBuildResult));
	SwarmBuild	build = {.heap = heap, .rel = rel, .info = info, .progress = true};
	Sample		sample = {0};
	SwarmHnswMeta meta;
	int			dims = swarm_hnsw_get_options(rel)->dims;

	if (RelationGetNumberOfBlocks(rel) != 0)
		elog(ERROR, "index \"%s\" already contains data",
			 RelationGetRelationName(rel));

	swarm_hnsw_meta_fill(rel, &meta, 0);
	write_meta(rel, MAIN_FORKNUM, &meta);

	pgstat_progress_update_param(PROGRESS_CREATEIDX_SUBPHASE, PHASE_SAMPLE);
	sample_table(heap, rel, info, &sample);
	if (sample.dims == 0 && dims > 0)
	{
		/* Told by the user: nulls and later rows need not wait for a vector. */
		swarm_hnsw_prepare_dims(rel, dims);
		sample.index = swarm_hnsw_open(rel);
	}
	if (sample.index != NULL)
	{
		double		rows = (double) sample.tuples / Max(sample.blocks, 1) *
		RelationGetNumberOfBlocks(heap);
		SwarmParallel *parallel;
		SwarmGraphShared *private = NULL;
		uint32		room;

		build.index = sample.index;
		make_model(rel, build.index, &sample);
		room = swarm_graph_room(build.index, rows);

		pgstat_progress_update_param(PROGRESS_CREATEIDX_SUBPHASE, PHASE_GRAPH);
		parallel = swarm_hnsw_parallel_begin(&build, room);
		if (parallel == NULL)
		{
			private = MemoryContextAllocHuge(CurrentMemoryContext,
											 swarm_graph_size(build.index, room));
			swarm_graph_init(private, room);
			swarm_hnsw_build_scan(&build, private, NULL);
		}

		pgstat_progress_update_param(PROGRESS_CREATEIDX_SUBPHASE, PHASE_WRITE);
		write_graph(&build);
		if (RelationNeedsWAL(rel))
			log_newpage_range(rel, MAIN_FORKNUM, 0,
							  RelationGetNumberOfBlocks(rel), true);
		if (build.full)
			insert_rest(&build);
		swarm_hnsw_connect(rel);
		if (parallel != NULL)
			swarm_hnsw_parallel_end(parallel);
		else
			pfree(private);
		result->heap_tuples = build.heap_tuples;
		result->index_tuples = build.index_tuples;
	}
	else
	{
		if (sample.tuples > 0)
			swarm_hnsw_leave_out_null(rel);
		if (RelationNeedsWAL(rel))
			log_newpage_range(rel, MAIN_FORKNUM, 0,
							  RelationGetNumberOfBlocks(rel), true);
		result->heap_tuples = sample.tuples;
	}
	swarm_hnsw_forget(rel);
	return result;
}

/*
 * swarm_hnsw_build_scan: scan the table, or this process's part of it, into
 * the graph.
 */
void
swarm_hnsw_build_scan(SwarmBuild *build, SwarmGraphShared *shared,
					  TableScanDesc scan)
{
	build->graph = swarm_graph_attach(build->index, shared);
	build->code = swarm_hnsw_code_new(build->index);
	build->context = AllocSetContextCreate(CurrentMemoryContext,
										   "qhnsw build row",
										   ALLOCSET_DEFAULT_SIZES);
	build->heap_tuples = table_index_build_scan(build->heap, build->rel,
												build->info, true,
												build->progress, build_row,
												build, scan);
	MemoryContextDelete(build->context);
}

/*
 * sample_table: the mean of a sample of rows, and their dimensions.
 *
 * Scans parts of the table that lie evenly in it, as the build itself does,
 * so that no row is read that a snapshot may not see.
 */
static void
sample_table(Relation heap, Relation rel, IndexInfo *info, Sample *sample)
{
	BlockNumber blocks = RelationGetNumberOfBlocks(heap);
	double		per_block = heap->rd_rel->reltuples > 0 && blocks > 0 ?
	Max(heap->rd_rel->reltuples / blocks, 1.0) : 4.0;
	BlockNumber part = Max((BlockNumber) (SAMPLE_ROWS / per_block / SAMPLE_PARTS), 1);
	BlockNumber step = Max(blocks / SAMPLE_PARTS, part);

	sample->opclass = *swarm_hnsw_opclass(rel);
	sample->context = AllocSetContextCreate(CurrentMemoryContext,
											"qhnsw sample row",
											ALLOCSET_DEFAULT_SIZES);
	for (BlockNumber block = 0; block < blocks;)
	{
		BlockNumber count = Min(part, blocks - block);

		table_index_build_range_scan(heap, rel, info, false, false, false,
									 block, count, sample_row, sample, NULL);
		sample->blocks += count;
		CHECK_FOR_INTERRUPTS();

		/*
		 * Until there is a vector to know the dimensions by, leave nothing
		 * out.
		 */
		block += sample->dims > 0 ? step : count;
	}
	MemoryContextDelete(sample->context);
}

/*
 * sample_row: add a row to the sample; the first one fixes the format.
 *
 * Also one that is not alive: older snapshots may see it, so that the build
 * will store it.
 */
static void
sample_row(Relation rel, ItemPointer tid, Datum *values, bool *isnull,
		   bool alive, void *state)
{
	Sample	   *sample = state;
	MemoryContext old;
	const float *v;
	double		norm2 = 0;
	void	   *tofree;
	int			dims;

	sample->tuples++;
	if (isnull[0])
		return;
	old = MemoryContextSwitchTo(sample->context);
	v = swarm_hnsw_floats(&sample->opclass, values[0], &dims, &tofree);
	if (sample->dims == 0)
	{
		swarm_hnsw_prepare_dims(rel, dims);
		sample->index = swarm_hnsw_open(rel);
		MemoryContextSwitchTo(old);
		sample->sum = palloc0(sizeof(double) * sample->index->dims);
		sample->work = palloc(sizeof(float) * sample->index->dims);
		MemoryContextSwitchTo(sample->context);
		sample->dims = dims;
	}
	if (swarm_hnsw_coordinates(sample->index, v, dims, false, sample->work) ==
		SWARM_VALUE_VECTOR)
	{
		for (int i = 0; i < sample->index->dims; i++)
			sample->sum[i] += sample->work[i];
		for (int i = 0; i < dims; i++)
			norm2 += (double) v[i] * v[i];
		sample->radius2 = Max(sample->radius2, norm2);
		sample->rows++;
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(sample->context);
}

/*
 * make_model: the first generation of codes, from the sample.
 *
 * The extra coordinate of inner product was 0 in the sample, so its part of
 * the centre is that of the other coordinates only; it costs a little
 * precision, and nothing else.
 */
static void
make_model(Relation rel, SwarmHnswIndex *index, const Sample *sample)
{
	float	   *centre = palloc(sizeof(float) * index->dims);
	Buffer		buffer;
	SwarmHnswMeta *meta;

	for (int i = 0; i < index->dims; i++)
		centre[i] = sample->rows > 0 ? sample->sum[i] / sample->rows : 0;
	swarm_hnsw_model_store(rel, index, 0, centre, false);
	pfree(centre);

	buffer = ReadBuffer(rel, SWARM_HNSW_META_BLOCK);
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	meta = swarm_hnsw_meta(BufferGetPage(buffer));
	meta->trained = sample->rows;
	meta->radius[0] = sqrt(sample->radius2);
	MarkBufferDirty(buffer);
	index->meta = *meta;
	UnlockReleaseBuffer(buffer);
}

/*
 * build_row: code a row and link it in memory.
 */
static void
build_row(Relation rel, ItemPointer tid, Datum *values, bool *isnull,
		  bool alive, void *state)
{
	SwarmBuild *build = state;
	SwarmHnswIndex *index = build->index;
	MemoryContext old = MemoryContextSwitchTo(build->context);
	bool		added;

	SWARM_FAULT("hnsw.build");
	if (build->full)
		added = false;
	else if (isnull[0])
		added = swarm_graph_add_odd(build->graph, tid, SWARM_NODE_NULL);
	else
	{
		int			dims;
		void	   *tofree;
		const float *v = swarm_hnsw_floats(&index->opclass, values[0], &dims,
										   &tofree);
		float	   *rotated = palloc(sizeof(float) * index->dims);

		if (swarm_hnsw_coordinates(index, v, dims, false, rotated) ==
			SWARM_VALUE_ZERO)
			added = swarm_graph_add_odd(build->graph, tid, 0);
		else
		{
			/* The encoding leaves the residual in index->work. */
			swarm_hnsw_encode(index, rotated, build->code);
			added = swarm_graph_add(build->graph, tid, build->code, index->work);
		}
	}
	if (added)
		build->index_tuples++;
	else
		build->full = true;
	if (build->progress)
		pgstat_progress_update_param(PROGRESS_CREATEIDX_TUPLES_DONE,
									 swarm_graph_count(build->graph));
	MemoryContextSwitchTo(old);
	MemoryContextReset(build->context);
}

/*
 * insert_rest: insert the rows that the graph had no place for.
 */
static void
insert_rest(SwarmBuild *build)
{
	SwarmGraph *graph = build->graph;
	Rest		rest = {.build = build, .count = swarm_graph_count(graph)};

	ereport(NOTICE,
			(errmsg("graph of index \"%s\" no longer fits into maintenance_work_mem after %u rows",
					RelationGetRelationName(build->rel), rest.count),
			 errdetail("The other rows are inserted one by one, which takes longer."),
			 errhint("Increase maintenance_work_mem.")));
	rest.tids = MemoryContextAllocHuge(CurrentMemoryContext,
									   sizeof(ItemPointerData) * (Size) Max(rest.count, 1));
	for (uint32 i = 0; i < rest.count; i++)
		rest.tids[i] = graph->nodes[i].tid;
	qsort(rest.tids, rest.count, sizeof(ItemPointerData), compare_tids);
	build->heap_tuples = table_index_build_scan(build->heap, build->rel,
												build->info, true, false,
												insert_row, &rest, NULL);
	pfree(rest.tids);
	swarm_hnsw_fold(build->rel, true);
}

/*
 * insert_row: insert a row unless it is in the graph.
 */
static void
insert_row(Relation rel, ItemPointer tid, Datum *values, bool *isnull,
		   bool alive, void *state)
{
	Rest	   *rest = state;

	if (bsearch(tid, rest->tids, rest->count, sizeof(ItemPointerData),
				compare_tids) != NULL)
		return;
	swarm_hnsw_insert(rel, values, isnull, tid, NULL, UNIQUE_CHECK_NO, false,
					  NULL);
	rest->build->index_tuples++;
	pgstat_progress_update_param(PROGRESS_CREATEIDX_TUPLES_DONE,
								 rest->build->index_tuples);
}

/*
 * compare_tids: for qsort and bsearch.
 */
static int
compare_tids(const void *a, const void *b)
{
	return ItemPointerCompare((ItemPointer) a, (ItemPointer) b);
}

/*
 * write_graph: give the nodes their ids and write the pages.
 */
static void
write_graph(SwarmBuild *build)
{
	SwarmHnswIndex *index = build->index;
	SwarmGraph *graph = build->graph;
	const SwarmHnswLayout *layout = &index->layout;
	Relation	rel = build->rel;
	SwarmNodeId *order = swarm_graph_place(graph, &index->meta,
										   layout->per_page[SWARM_STREAM_NODE]);
	SwarmNodeId *ids;
	Buffer		buffers[SWARM_HNSW_STREAMS] = {InvalidBuffer};
	Buffer		meta_buffer;
	SwarmHnswMeta *meta;
	uint32		n = swarm_graph_count(graph);

	ids = MemoryContextAllocHuge(CurrentMemoryContext,
								 sizeof(SwarmNodeId) * Max(n, 1));
	for (SwarmNodeId id = 0; id < n; id++)
		ids[order[id]] = id;

	for (SwarmNodeId id = 0; id < n; id++)
	{
		for (int stream = 0; stream < SWARM_HNSW_STREAMS; stream++)
		{
			uint32		covers = layout->per_page[stream];
			BlockNumber block;

			if (covers == 0 || id % covers != 0)
				continue;
			let_interrupt(buffers);
			if (buffers[stream] != InvalidBuffer)
			{
				MarkBufferDirty(buffers[stream]);
				UnlockReleaseBuffer(buffers[stream]);
			}
			block = swarm_hnsw_block(layout, stream, id / covers);
			buffers[stream] = swarm_hnsw_new_buffer(rel, block);
			swarm_hnsw_init_page(BufferGetPage(buffers[stream]), stream,
								 id / covers);
		}
		swarm_graph_write(graph, order[id], ids, id,
						  BufferGetPage(buffers[SWARM_STREAM_NODE]),
						  BufferGetPage(buffers[SWARM_STREAM_UPPER]),
						  layout->per_page[SWARM_STREAM_REFINE] == 0 ? NULL :
						  BufferGetPage(buffers[SWARM_STREAM_REFINE]));
	}
	for (int stream = 0; stream < SWARM_HNSW_STREAMS; stream++)
		if (buffers[stream] != InvalidBuffer)
		{
			MarkBufferDirty(buffers[stream]);
			UnlockReleaseBuffer(buffers[stream]);
		}

	meta_buffer = ReadBuffer(rel, SWARM_HNSW_META_BLOCK);
	LockBuffer(meta_buffer, BUFFER_LOCK_EXCLUSIVE);
	meta = swarm_hnsw_meta(BufferGetPage(meta_buffer));
	meta->nodes = n;
	meta->odd = pg_atomic_read_u32(&graph->shared->odd);
	meta->trained = n;
	meta->entry = graph->shared->entry == SWARM_NODE_NONE ?
		SWARM_NODE_NONE : ids[graph->shared->entry];
	MarkBufferDirty(meta_buffer);
	UnlockReleaseBuffer(meta_buffer);
	pfree(order);
	pfree(ids);
}

/*
 * let_interrupt: a place where the writing can be cancelled, which it cannot
 * while it holds locks of buffers.
 */
static void
let_interrupt(const Buffer *buffers)
{
	for (int stream = 0; stream < SWARM_HNSW_STREAMS; stream++)
		if (buffers[stream] != InvalidBuffer)
			LockBuffer(buffers[stream], BUFFER_LOCK_UNLOCK);
	CHECK_FOR_INTERRUPTS();
	SWARM_FAULT("hnsw.build.write");
	for (int stream = 0; stream < SWARM_HNSW_STREAMS; stream++)
		if (buffers[stream] != InvalidBuffer)
			LockBuffer(buffers[stream], BUFFER_LOCK_EXCLUSIVE);
}
