/*
 * hnsw_insert.c
 *	  From a row to its node.
 *
 * INSERT, read top to bottom: the value becomes a code (hnsw_vector.c), the
 * code gets a node id and is stored in one record (store_node), the node waits
 * in the pending list, which every search scans, until somebody folds it into
 * the graph (swarm_hnsw_fold, hnsw_link.c); without fastupdate at once.
 *
 * Locks: the metapage first, then pages of the new id in the order upper,
 * node, refine.  Nobody holds two of them in another order.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "base/fault.h"
#include "hnsw/hnsw_int.h"

/* The page number that stands for the fold: one at a time. */
#define FOLD_LOCK		0

/*
 * An insert that finds the pending list too long links so many rows; when
 * others add faster than that, it waits for its turn from a list this many
 * times too long on.
 */
#define FOLD_AT_ONCE	16
#define FOLD_WAIT		2

/* A fold of more than this part of the nodes makes sure that all are found. */
#define CONNECT_SHARE	256

static SwarmNodeId insert_vector(Relation rel, Datum value, ItemPointer tid,
								 uint32 *over);
static SwarmNodeId insert_odd(Relation rel, ItemPointer tid, uint16 flags);
static SwarmNodeId store_node(SwarmHnswIndex *index, Relation rel,
							  ItemPointer tid, const SwarmHnswCode *code,
							  SwarmNodeState state, uint16 flags);
static SwarmNodeId take_id(SwarmHnswIndex *index, Relation rel,
						   SwarmHnswMeta *meta, Buffer buffers[], bool fresh[]);
static bool next_to_fold(Relation rel, SwarmNodeId *id, bool *taken);

/*
 * swarm_hnsw_insert: aminsert.
 */
bool
swarm_hnsw_insert(Relation rel, Datum *values, bool *isnull, ItemPointer tid,
				  Relation heap, IndexUniqueCheck unique, bool unchanged,
				  IndexInfo *info)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "qhnsw insert",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	uint32		over = 0;

	if (isnull[0])
		insert_odd(rel, tid, SWARM_NODE_NULL);
	else
		insert_vector(rel, values[0], tid, &over);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	if (over > 0)
		swarm_hnsw_fold_some(rel, over >= FOLD_WAIT, FOLD_AT_ONCE);
	return false;
}

/*
 * insert_vector: store a vector, and link it when the index says so.  *over:
 * how many times as long as it may be the pending list is.
 */
static SwarmNodeId
insert_vector(Relation rel, Datum value, ItemPointer tid, uint32 *over)
{
	SwarmHnswIndex *index = swarm_hnsw_open(rel);
	bool		fast = swarm_hnsw_get_options(rel)->fastupdate;
	const float *v;
	void	   *tofree;
	int			dims;
	SwarmHnswCode *code;
	float	   *rotated;
	SwarmNodeId id;

	v = swarm_hnsw_floats(&index->opclass, value, &dims, &tofree);
	if (index->meta.dims == 0)
	{
		/* A vector that is refused must not fix the format. */
		swarm_hnsw_norm2(&index->opclass, v, dims);
		swarm_hnsw_prepare_dims(rel, dims);
		index = swarm_hnsw_open(rel);
	}
	code = swarm_hnsw_code_new(index);
	rotated = palloc(sizeof(float) * index->dims);

	do
	{
		if (swarm_hnsw_coordinates(index, v, dims, false, rotated) ==
			SWARM_VALUE_ZERO)
			return insert_odd(rel, tid, 0);
		swarm_hnsw_encode(index, rotated, code);
		id = store_node(index, rel, tid, code,
						fast ? SWARM_NODE_PENDING : SWARM_NODE_JOINING, 0);
		if (id == SWARM_NODE_NONE)
			index = swarm_hnsw_open(rel);
	} while (id == SWARM_NODE_NONE);

	if (fast)
	{
		Size		bytes = (Size) index->meta.pending *
		index->layout.slot_size[SWARM_STREAM_NODE];

		*over = bytes / 1024 / swarm_hnsw_pending_list_limit;
		swarm_hnsw_ask_fold(index, rel);
	}
	else
	{
		swarm_hnsw_lock_links(rel);
		index = swarm_hnsw_open(rel);
		swarm_hnsw_link(index, rel, id, rotated, false);
		swarm_hnsw_unlock_links(rel);
	}
	return id;
}

/*
 * insert_odd: store a row without a code: its value is null, or zero under
 * cosine.  Scans return such rows last.
 */
static SwarmNodeId
insert_odd(Relation rel, ItemPointer tid, uint16 flags)
{
	SwarmHnswIndex *index = swarm_hnsw_open(rel);
	SwarmHnswCode code = {0};

	/* Nothing can be stored before the first vector fixed the format. */
	if (index->meta.dims == 0)
		swarm_hnsw_leave_out_null(rel);
	if (index->meta.dims == 0)
		return SWARM_NODE_NONE;
	code.generation = index->meta.generation;
	return store_node(index, rel, tid, &code, SWARM_NODE_ODD, flags);
}

/*
 * swarm_hnsw_new_buffer: the buffer of a block that is the next one of the
 * file, or was left there by an insert that did not get to log it; locked
 * exclusively.  The caller holds the metapage's lock, so nobody else extends.
 */
Buffer
swarm_hnsw_new_buffer(Relation rel, BlockNumber block)
{
	BlockNumber blocks = RelationGetNumberOfBlocks(rel);
	Buffer		buffer;

	if (block == InvalidBlockNumber)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("index \"%s\" has as many pages as a file can have",
						RelationGetRelationName(rel)),
				 errhint("Partition the table.")));
	if (block < blocks)
		return ReadBufferExtended(rel, MAIN_FORKNUM, block, RBM_ZERO_AND_LOCK,
								  NULL);
	if (block > blocks)
		swarm_hnsw_damaged(rel, "file ends before block", block);
	buffer = ReadBuffer(rel, P_NEW);
	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	return buffer;
}

/*
 * swarm_hnsw_register: a buffer's page to change in a record.
 */
Page
swarm_hnsw_register(GenericXLogState *state, Buffer buffer, bool fresh)
{
	return GenericXLogRegisterBuffer(state, buffer,
									 fresh ? GENERIC_XLOG_FULL_IMAGE : 0);
}

/*
 * swarm_hnsw_prepare_dims: fix the format of an index that has had no vector,
 * unless somebody else just did.
 */
void
swarm_hnsw_prepare_dims(Relation rel, int dims)
{
	const SwarmHnswOptions *options = swarm_hnsw_get_options(rel);
	Buffer		meta_buffer = ReadBuffer(rel, SWARM_HNSW_META_BLOCK);
	SwarmHnswMeta fixed;
	SwarmHnswLayout layout;
	SwarmCodec	codec;
	GenericXLogState *state;
	int			bits;
	int			refine_bits;

	if (dims > SWARM_CODEC_MAX_DIMS - 1)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("vector has %d dimensions, an index can have %d", dims,
						SWARM_CODEC_MAX_DIMS - 1)));
	if (options->dims > 0 && dims != options->dims)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("vector has %d dimensions, the index has %d", dims,
						options->dims)));
	swarm_hnsw_quantizer(options, dims, &bits, &refine_bits);

	LockBuffer(meta_buffer, BUFFER_LOCK_EXCLUSIVE);
	fixed = *swarm_hnsw_meta(BufferGetPage(meta_buffer));
	if (fixed.dims != 0)
	{
		UnlockReleaseBuffer(meta_buffer);
		return;
	}
	fixed.dims = dims;
	fixed.bits = bits;
	fixed.refine_bits = refine_bits;
	if (!swarm_codec_init(&codec, dims + (fixed.metric == SWARM_METRIC_IP),
						  bits, refine_bits))
		elog(ERROR, "no codec of %d and %d bits", bits, refine_bits);
	swarm_hnsw_layout(&layout, &fixed, &codec);
	if (layout.per_page[SWARM_STREAM_NODE] == 0)
	{
		UnlockReleaseBuffer(meta_buffer);
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("a code of %u bytes and its links do not fit into a page",
						codec.code_size),
				 errhint("Use a quantizer with fewer bits, or a smaller m.")));
	}
	if (codec.refine_size > 0 && layout.per_page[SWARM_STREAM_REFINE] == 0)
	{
		UnlockReleaseBuffer(meta_buffer);
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("a refine code of %u bytes does not fit into a page",
						codec.refine_size),
				 errhint("Use fewer refine_bits.")));
	}

	/* The centre of both generations is zero until a model is made. */
	for (uint32 i = 0; i < 2 * layout.model_pages; i++)
	{
		Buffer		buffer = swarm_hnsw_new_buffer(rel, SWARM_HNSW_MODEL_BLOCK + i);

		state = GenericXLogStart(rel);
		swarm_hnsw_init_page(swarm_hnsw_register(state, buffer, true),
							 SWARM_PAGE_MODEL, i);
		GenericXLogFinish(state);
		UnlockReleaseBuffer(buffer);
	}
	/* As a whole: a build has not logged it before. */
	state = GenericXLogStart(rel);
	*swarm_hnsw_meta(swarm_hnsw_register(state, meta_buffer, true)) = fixed;
	GenericXLogFinish(state);
	UnlockReleaseBuffer(meta_buffer);
}

/*
 * store_node: give a row an id and write its node, in one record.
 *
 * SWARM_NODE_NONE when there is a newer generation than the code's: then the
 * caller opens the index again and codes anew.
 */
static SwarmNodeId
store_node(SwarmHnswIndex *index, Relation rel, ItemPointer tid,
		   const SwarmHnswCode *code, SwarmNodeState state, uint16 flags)
{
	Buffer		meta_buffer = ReadBuffer(rel, SWARM_HNSW_META_BLOCK);
	Buffer		buffers[SWARM_HNSW_STREAMS];
	bool		fresh[SWARM_HNSW_STREAMS];
	GenericXLogState *xlog;
	SwarmHnswMeta *meta;
	SwarmNode  *node;
	SwarmNodeId id;

	SWARM_FAULT("hnsw.insert");
	LockBuffer(meta_buffer, BUFFER_LOCK_EXCLUSIVE);
	meta = swarm_hnsw_meta(BufferGetPage(meta_buffer));
	if (code->code != NULL && code->generation != meta->generation)
	{
		UnlockReleaseBuffer(meta_buffer);
		return SWARM_NODE_NONE;
	}

	SWARM_FAULT("hnsw.insert.store");
	xlog = GenericXLogStart(rel);
	meta = swarm_hnsw_meta(swarm_hnsw_register(xlog, meta_buffer, false));
	id = take_id(index, rel, meta, buffers, fresh);
	for (int stream = 0; stream < SWARM_HNSW_STREAMS; stream++)
	{
		Page		page;

		if (buffers[stream] == InvalidBuffer)
			continue;
		page = swarm_hnsw_register(xlog, buffers[stream], fresh[stream]);
		if (fresh[stream])
			swarm_hnsw_init_page(page, stream, id / index->layout.per_page[stream]);
		if (stream == SWARM_STREAM_NODE)
		{
			node = swarm_hnsw_node(index, page, id);
			swarm_hnsw_use_page(page, (char *) node +
								index->layout.slot_size[stream]);
			if (!fresh[stream] && id == meta->free_head)
			{
				if (node->state != SWARM_NODE_FREE)
					swarm_hnsw_damaged(rel, "list of free nodes at node", id);
				meta->free_head = node->next;
				meta->free_nodes--;
			}
			node->state = state;
			node->degree = 0;
			node->next = SWARM_NODE_NONE;
			node->norm2 = code->factors.norm2;
			node->scale = code->factors.scale;
			node->tid = *tid;
			node->flags = flags | (code->generation & SWARM_NODE_GENERATION);
			if (code->code != NULL)
				memcpy(node->code, code->code, index->codec.code_size);
			if (state == SWARM_NODE_PENDING)
			{
				node->next = meta->pending_head;
				meta->pending_head = id;
				meta->pending++;
			}
			else if (state == SWARM_NODE_ODD)
				meta->odd++;
		}
		else if (stream == SWARM_STREAM_REFINE && code->refine != NULL)
		{
			SwarmRefine *refine = swarm_hnsw_refine(index, page, id);

			swarm_hnsw_use_page(page, (char *) refine +
								index->layout.slot_size[stream]);
			refine->scale = code->factors.refine_scale;
			memcpy(refine->code, code->refine, index->codec.refine_size);
		}
	}
	index->meta.pending = meta->pending;
	index->meta.nodes = meta->nodes;
	GenericXLogFinish(xlog);
	for (int stream = 0; stream < SWARM_HNSW_STREAMS; stream++)
		if (buffers[stream] != InvalidBuffer)
			UnlockReleaseBuffer(buffers[stream]);
	UnlockReleaseBuffer(meta_buffer);
	return id;
}

/*
 * take_id: a free id, or the next one with the pages that it is the first to
 * need; the pages of the id, locked.  The metapage is locked.
 */
static SwarmNodeId
take_id(SwarmHnswIndex *index, Relation rel, SwarmHnswMeta *meta,
		Buffer buffers[], bool fresh[])
{
	bool		reuse = meta->free_head != SWARM_NODE_NONE;
	SwarmNodeId id = reuse ? meta->free_head : meta->nodes;

	if (!reuse && id >= SWARM_NODE_NONE - 1)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("index \"%s\" has as many rows as it can have",
						RelationGetRelationName(rel)),
				 errhint("Partition the table.")));
	for (int stream = 0; stream < SWARM_HNSW_STREAMS; stream++)
	{
		uint32		covers = index->layout.per_page[stream];

		buffers[stream] = InvalidBuffer;
		fresh[stream] = covers > 0 && !reuse && id % covers == 0;
		if (fresh[stream])
			buffers[stream] = swarm_hnsw_new_buffer(rel, swarm_hnsw_block(&index->layout, stream, id / covers));
		else if (covers > 0 && stream != SWARM_STREAM_UPPER)
			buffers[stream] = swarm_hnsw_read(index, rel, stream, id / covers,
											  BUFFER_LOCK_EXCLUSIVE);
	}
	if (!reuse)
		meta->nodes++;
	return id;
}

/*
 * swarm_hnsw_fold: link the rows that are pending now.  Returns how many.  When
 * somebody else folds: with `wait` waits for him and links what is left, else
 * leaves it to him.
 *
 * Rows that come while it works are not its business: others may insert faster
 * than it links, and it would never end.
 */
int64
swarm_hnsw_fold(Relation rel, bool wait)
{
	int64		count = swarm_hnsw_fold_some(rel, wait, PG_INT64_MAX);

	return Max(count, 0);
}

/*
 * swarm_hnsw_fold_some: the same for at most so many rows; -1 when somebody
 * else folds.
 */
int64
swarm_hnsw_fold_some(Relation rel, bool wait, int64 limit)
{
	SwarmHnswIndex *index = swarm_hnsw_open(rel);
	int64		count = 0;
	SwarmNodeId id;
	bool		taken = false;

	if (index->meta.pending == 0 &&
		index->meta.oldest == index->meta.generation &&
		!swarm_hnsw_has_grown(index))
		return 0;
	if (wait)
		LockPage(rel, FOLD_LOCK, ExclusiveLock);
	else if (!ConditionalLockPage(rel, FOLD_LOCK, ExclusiveLock))
		return -1;
	swarm_hnsw_train(rel);
	while (count < limit && next_to_fold(rel, &id, &taken))
	{
		swarm_hnsw_interrupts();
		SWARM_FAULT("hnsw.fold");
		swarm_hnsw_lock_links(rel);
		swarm_hnsw_link(swarm_hnsw_open(rel), rel, id, NULL, true);
		swarm_hnsw_unlock_links(rel);
		count++;
	}
	/* Looking at all nodes must not cost more than linking these did. */
	if (count > index->meta.nodes / CONNECT_SHARE)
		swarm_hnsw_connect(rel);
	UnlockPage(rel, FOLD_LOCK, ExclusiveLock);
	return count;
}

/*
 * next_to_fold: the head of the list that is being folded; when that is empty
 * the pending list becomes it, once: *taken says that it has.  False when there
 * is nothing more to do.
 */
static bool
next_to_fold(Relation rel, SwarmNodeId *id, bool *taken)
{
	Buffer		buffer = ReadBuffer(rel, SWARM_HNSW_META_BLOCK);
	SwarmHnswMeta *meta = swarm_hnsw_meta(BufferGetPage(buffer));

	LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
	if (meta->folding_head == SWARM_NODE_NONE &&
		meta->pending_head != SWARM_NODE_NONE && !*taken)
	{
		GenericXLogState *state = GenericXLogStart(rel);
		SwarmHnswMeta *changed = swarm_hnsw_meta(swarm_hnsw_register(state, buffer, false));

		changed->folding_head = changed->pending_head;
		changed->pending_head = SWARM_NODE_NONE;
		GenericXLogFinish(state);
		*taken = true;
	}
	*id = meta->folding_head;
	UnlockReleaseBuffer(buffer);
	return *id != SWARM_NODE_NONE;
}
