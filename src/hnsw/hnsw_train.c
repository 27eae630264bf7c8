/*
 * hnsw_train.c
 *	  A new centre for an index that has grown.
 *
 * Codes are relative to a centre, the mean of the rows.  CREATE INDEX takes it
 * from the rows there are; when there are none, or they are not like those that
 * come later, codes are less exact than they could be.  So a fold looks at the
 * mean whenever the index has become GROWTH times as large as when it looked
 * last, and when it has moved, codes all rows anew:
 *
 * 1. the new centre is stored beside the old one, under the next generation;
 * 2. the metapage makes it the newest: from now on rows are coded with it, and
 *	  searches score codes of both;
 * 3. every code of the old generation is replaced, from its row where that can
 *	  be read, else from what the old code says;
 * 4. the metapage says that no old code is left.
 *
 * After an error or a crash the next fold goes on with step 3.  One process at
 * a time: it holds the fold lock.  Folds in parallel mode (of a parallel VACUUM,
 * or at the end of a parallel CREATE INDEX) leave all of it to a later one.
 */
#include "postgres.h"

#include <math.h>

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "base/fault.h"
#include "hnsw/hnsw_int.h"

/* An index is looked at when it has become so many times larger. */
#define GROWTH			4

/* Nodes that the mean is made from. */
#define SAMPLE_NODES	10000

/*
 * The centre is replaced when the square of its way is more than this share of
 * the mean square of the residuals: then codes gain about as much from it.
 */
#define MIN_SHIFT		0.02

typedef struct Trainer
{
	SwarmHnswIndex *index;
	Relation	rel;
	Relation	heap;
	BlockNumber heap_blocks;	/* known to exist */
	IndexFetchTableData *fetch;
	TupleTableSlot *slot;
	AttrNumber	attribute;		/* of the table; 0: rows are not read */
	SwarmHnswCode *code;
	float	   *rotated;
	uint8	   *old_code;
	uint8	   *old_refine;
	SwarmNodeId first;			/* of a twin */
} Trainer;

static bool mean_moved(SwarmHnswIndex *index, Relation rel, float *mean,
					   float *radius);
static void begin_generation(SwarmHnswIndex *index, Relation rel,
							 const float *mean, float radius);
static void recode_all(Relation rel);
static void recode(Trainer *t, SwarmNodeId id);
static bool recode_twin(Trainer *t, SwarmNodeId id);
static bool take_code(Trainer *t, SwarmNodeId id);
static bool read_row(Trainer *t, ItemPointer tid);
static bool read_codes(Trainer *t, SwarmNodeId id, SwarmNode *header);
static void write_code(Trainer *t, SwarmNodeId id, uint16 version);
static void finish_generation(Relation rel, uint32 generation);
static void note_size(Relation rel, uint64 rows);

/*
 * swarm_hnsw_has_grown: is it time to look at the mean?
 */
bool
swarm_hnsw_has_grown(const SwarmHnswIndex *index)
{
	uint64		rows = index->meta.nodes - index->meta.free_nodes;

	return rows > 0 && rows >= index->meta.trained * GROWTH;
}

/*
 * swarm_hnsw_train: see above; does nothing in most cases.  The caller holds
 * the fold lock.
 */
void
swarm_hnsw_train(Relation rel)
{
	SwarmHnswIndex *index = swarm_hnsw_open(rel);
	uint64		rows = index->meta.nodes - index->meta.free_nodes;
	MemoryContext context;
	MemoryContext old;
	float	   *mean;
	float		radius;

	/* A parallel VACUUM may not take the snapshots of this: the next fold. */
	if (index->meta.dims == 0 || IsInParallelMode())
		return;
	if (index->meta.oldest != index->meta.generation)
		recode_all(rel);
	if (!swarm_hnsw_has_grown(index))
		return;

	context = AllocSetContextCreate(CurrentMemoryContext, "qhnsw training",
									ALLOCSET_DEFAULT_SIZES);
	old = MemoryContextSwitchTo(context);
	mean = palloc(sizeof(float) * index->dims);
	if (mean_moved(index, rel, mean, &radius))
	{
		begin_generation(index, rel, mean, radius);
		recode_all(rel);
	}
	note_size(rel, rows);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/*
 * mean_moved: the mean of a sample of the nodes, by their codes, and whether
 * it is worth a new generation.  *radius: the longest of them, for inner
 * product.
 */
static bool
mean_moved(SwarmHnswIndex *index, Relation rel, float *mean, float *radius)
{
	uint32		step = Max(index->meta.nodes / SAMPLE_NODES, 1);
	const float *centre = index->centre[index->meta.generation & 1];
	double	   *sum = palloc0(sizeof(double) * index->dims);
	float	   *rotated = palloc(sizeof(float) * index->dims);
	double		residual2 = 0;
	double		shift2 = 0;
	double		length2 = 0;
	uint32		count = 0;

	for (uint64 id = 0; id < index->meta.nodes; id += step)
	{
		Buffer		buffer;
		SwarmNode  *node;
		bool		used;
		double		own2 = 0;

		swarm_hnsw_interrupts();
		buffer = swarm_hnsw_read_node(index, rel, id, BUFFER_LOCK_SHARE);
		node = swarm_hnsw_node(index, BufferGetPage(buffer), id);
		used = node->state == SWARM_NODE_LINKED ||
			node->state == SWARM_NODE_PENDING ||
			node->state == SWARM_NODE_TWIN;
		if (used)
		{
			swarm_hnsw_decode(index, node->code, NULL, node->scale,
							  node->flags & SWARM_NODE_GENERATION, rotated);
			residual2 += node->norm2;
			count++;
		}
		UnlockReleaseBuffer(buffer);
		if (!used)
			continue;
		for (int i = 0; i < index->dims; i++)
		{
			sum[i] += rotated[i];
			own2 += (double) rotated[i] * rotated[i];
		}
		length2 = Max(length2, own2);
	}
	if (count == 0)
		return false;
	for (int i = 0; i < index->dims; i++)
	{
		mean[i] = sum[i] / count;
		shift2 += ((double) mean[i] - centre[i]) * ((double) mean[i] - centre[i]);
	}
	*radius = sqrt(length2);
	return shift2 > MIN_SHIFT * residual2 / count;
}

/*
 * begin_generation: steps 1 and 2.
 */
static void
begin_generation(SwarmHnswIndex *index, Relation rel, const float *mean,
				 float radius)
{
	uint32		generation = index->meta.generation + 1;
	Buffer		buffer;
	GenericXLogState *state;
	SwarmHnswMeta *meta;

	swarm_hnsw_model_store(rel, index, generation, mean, true);
	/* After an error somebody else may store another one of this number. */
	index->loaded[generation & 1] = PG_UINT32_MAX;
	SWARM_FAULT("hnsw.train.model");
	buffer = ReadBuffer(rel, SWARM_HNSW_META_BLOCK);
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	state = GenericXLogStart(rel);
	meta = swarm_hnsw_meta(GenericXLogRegisterBuffer(state, buffer, 0));
	meta->radius[generation & 1] = radius;
	meta->generation = generation;
	GenericXLogFinish(state);
	UnlockReleaseBuffer(buffer);
}

/*
 * recode_all: steps 3 and 4.
 *
 * Rows are read by a plain column only: an expression would run its functions
 * as whoever happens to fold.
 */
static void
recode_all(Relation rel)
{
	Trainer		t = {.rel = rel, .index = swarm_hnsw_open(rel)};
	SwarmHnswIndex *index = t.index;
	uint32		generation = index->meta.generation;

	index->pins++;
	PG_TRY();
	{
		t.heap = swarm_hnsw_open_table(rel);
		t.attribute = rel->rd_index->indkey.values[0];
		t.fetch = table_index_fetch_begin(t.heap);
		t.slot = table_slot_create(t.heap, NULL);
		t.code = swarm_hnsw_code_new(index);
		t.rotated = palloc(sizeof(float) * index->dims);
		t.old_code = palloc(index->codec.code_size);
		t.old_refine = palloc(index->codec.refine_size + 1);

		for (SwarmNodeId id = 0; id < index->meta.nodes; id++)
		{
			swarm_hnsw_interrupts();
			if (!recode_twin(&t, id))
				recode(&t, id);
		}

		ExecDropSingleTupleTableSlot(t.slot);
		table_index_fetch_end(t.fetch);
		swarm_hnsw_close_table(t.heap);
	}
	PG_FINALLY();
	{
		index->pins--;
	}
	PG_END_TRY();
	finish_generation(rel, generation);
	swarm_hnsw_open(rel);
}

/*
 * recode_twin: give a twin the code of its first node; false when it is no
 * twin.  Were it coded by itself it could get another one: the row of one of
 * them may be dead already, and its code is made from its old code then.
 */
static bool
recode_twin(Trainer *t, SwarmNodeId id)
{
	SwarmNode	header;
	SwarmNodeId first;

	if (!read_codes(t, id, &header))
		return false;
	first = t->first;
	if (header.state != SWARM_NODE_TWIN || first >= t->index->meta.nodes)
		return false;
	recode(t, first);
	if (!take_code(t, first))
		return false;
	write_code(t, id, header.version);
	return true;
}

/*
 * take_code: copy the new code of a linked node; false when it has none.
 */
static bool
take_code(Trainer *t, SwarmNodeId id)
{
	SwarmHnswIndex *index = t->index;
	Buffer		buffer = swarm_hnsw_read_node(index, t->rel, id, BUFFER_LOCK_SHARE);
	SwarmNode  *node = swarm_hnsw_node(index, BufferGetPage(buffer), id);
	bool		found = node->state == SWARM_NODE_LINKED &&
	(node->flags & SWARM_NODE_GENERATION) == (index->meta.generation & 1);

	t->code->generation = index->meta.generation;
	t->code->factors.norm2 = node->norm2;
	t->code->factors.scale = node->scale;
	memcpy(t->code->code, node->code, index->codec.code_size);
	UnlockReleaseBuffer(buffer);
	if (found && index->codec.refine_size > 0)
	{
		SwarmRefine *refine;

		buffer = swarm_hnsw_read(index, t->rel, SWARM_STREAM_REFINE,
								 id / index->layout.per_page[SWARM_STREAM_REFINE],
								 BUFFER_LOCK_SHARE);
		refine = swarm_hnsw_refine(index, BufferGetPage(buffer), id);
		t->code->factors.refine_scale = refine->scale;
		memcpy(t->code->refine, refine->code, index->codec.refine_size);
		UnlockReleaseBuffer(buffer);
	}
	return found;
}

/*
 * recode: code one node anew, unless it has no code or a new one.
 */
static void
recode(Trainer *t, SwarmNodeId id)
{
	SwarmHnswIndex *index = t->index;
	SwarmNode	header;

	if (!read_codes(t, id, &header))
		return;
	SWARM_FAULT("hnsw.train.recode");
	if (!read_row(t, &header.tid))
	{
		bool		fine = index->codec.refine_size > 0;

		swarm_hnsw_decode(index, t->old_code, fine ? t->old_refine : NULL,
						  header.scale, header.flags & SWARM_NODE_GENERATION,
						  t->rotated);
	}
	swarm_hnsw_encode(index, t->rotated, t->code);
	write_code(t, id, header.version);
}

/*
 * read_codes: copy what a node has; false when there is nothing to do.  The
 * scale in *header is that of the finest code.
 */
static bool
read_codes(Trainer *t, SwarmNodeId id, SwarmNode *header)
{
	SwarmHnswIndex *index = t->index;
	Buffer		buffer = swarm_hnsw_read_node(index, t->rel, id, BUFFER_LOCK_SHARE);
	SwarmNode  *node = swarm_hnsw_node(index, BufferGetPage(buffer), id);
	bool		old = node->state != SWARM_NODE_FREE &&
	node->state != SWARM_NODE_ODD &&
	(node->flags & SWARM_NODE_GENERATION) != (index->meta.generation & 1);

	*header = *node;
	t->first = swarm_hnsw_links(index, node)[0];
	if (old)
		memcpy(t->old_code, node->code, index->codec.code_size);
	UnlockReleaseBuffer(buffer);
	if (old && index->codec.refine_size > 0)
	{
		SwarmRefine *refine;

		buffer = swarm_hnsw_read(index, t->rel, SWARM_STREAM_REFINE,
								 id / index->layout.per_page[SWARM_STREAM_REFINE],
								 BUFFER_LOCK_SHARE);
		refine = swarm_hnsw_refine(index, BufferGetPage(buffer), id);
		header->scale = refine->scale;
		memcpy(t->old_refine, refine->code, index->codec.refine_size);
		UnlockReleaseBuffer(buffer);
	}
	return old;
}

/*
 * read_row: the coordinates of a row into t->rotated; false when the row is
 * not visible, or not a column.
 */
static bool
read_row(Trainer *t, ItemPointer tid)
{
	SwarmHnswIndex *index = t->index;
	bool		again = false;
	bool		isnull;
	bool		done = false;
	Datum		value;
	Snapshot	snapshot;

	if (t->attribute == InvalidAttrNumber || !ItemPointerIsValid(tid))
		return false;

	swarm_hnsw_check_row(t->rel, t->heap, tid, &t->heap_blocks);

	/* The newest snapshot: what it sees, nobody has removed yet. */
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	if (table_index_fetch_tuple(t->fetch, tid, snapshot, t->slot, &again, NULL))
	{
		value = slot_getattr(t->slot, t->attribute, &isnull);
		if (!isnull)
		{
			void	   *tofree;
			int			dims;
			const float *v = swarm_hnsw_floats(&index->opclass, value, &dims,
											   &tofree);

			done = dims == index->meta.dims &&
				swarm_hnsw_coordinates(index, v, dims, false, t->rotated) ==
				SWARM_VALUE_VECTOR;
			if (tofree != NULL)
				pfree(tofree);
		}
	}
	ExecClearTuple(t->slot);
	UnregisterSnapshot(snapshot);
	return done;
}

/*
 * write_code: replace the codes of a node, in one record, unless the node was
 * freed since.
 */
static void
write_code(Trainer *t, SwarmNodeId id, uint16 version)
{
	SwarmHnswIndex *index = t->index;
	bool		fine = index->codec.refine_size > 0;
	Buffer		buffer = swarm_hnsw_read_node(index, t->rel, id,
											  BUFFER_LOCK_EXCLUSIVE);
	Buffer		refine_buffer = InvalidBuffer;
	GenericXLogState *state;
	SwarmNode  *node;

	if (fine)
		refine_buffer = swarm_hnsw_read(index, t->rel, SWARM_STREAM_REFINE,
										id / index->layout.per_page[SWARM_STREAM_REFINE],
										BUFFER_LOCK_EXCLUSIVE);
	state = GenericXLogStart(t->rel);
	node = swarm_hnsw_node(index, GenericXLogRegisterBuffer(state, buffer, 0), id);
	if (node->version == version && node->state != SWARM_NODE_FREE)
	{
		node->norm2 = t->code->factors.norm2;
		node->scale = t->code->factors.scale;
		node->flags = (node->flags & ~SWARM_NODE_GENERATION) |
			(t->code->generation & SWARM_NODE_GENERATION);
		memcpy(node->code, t->code->code, index->codec.code_size);
		if (fine)
		{
			SwarmRefine *refine = swarm_hnsw_refine(index,
													GenericXLogRegisterBuffer(state, refine_buffer, 0),
													id);

			refine->scale = t->code->factors.refine_scale;
			memcpy(refine->code, t->code->refine, index->codec.refine_size);
		}
		GenericXLogFinish(state);
	}
	else
		GenericXLogAbort(state);
	if (fine)
		UnlockReleaseBuffer(refine_buffer);
	UnlockReleaseBuffer(buffer);
}

/*
 * finish_generation: step 4.  Since step 2 only new codes were stored (see
 * store_node), so that no old one has come behind the loop.
 */
static void
finish_generation(Relation rel, uint32 generation)
{
	Buffer		buffer = ReadBuffer(rel, SWARM_HNSW_META_BLOCK);
	GenericXLogState *state;
	SwarmHnswMeta *meta;

	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	state = GenericXLogStart(rel);
	meta = swarm_hnsw_meta(GenericXLogRegisterBuffer(state, buffer, 0));
	if (meta->generation == generation)
		meta->oldest = generation;
	GenericXLogFinish(state);
	UnlockReleaseBuffer(buffer);
}

/*
 * note_size: remember for how many rows the centre is good.
 */
static void
note_size(Relation rel, uint64 rows)
{
	Buffer		buffer = ReadBuffer(rel, SWARM_HNSW_META_BLOCK);
	GenericXLogState *state;
	SwarmHnswMeta *meta;

	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	state = GenericXLogStart(rel);
	meta = swarm_hnsw_meta(GenericXLogRegisterBuffer(state, buffer, 0));
	meta->trained = rows;
	GenericXLogFinish(state);
	UnlockReleaseBuffer(buffer);
}
