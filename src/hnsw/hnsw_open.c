/*
 * hnsw_open.c
 *	  The open index: what a backend remembers of an index, and the metapage
 *	  and model pages that it comes from.
 *
 * Every statement opens the index anew, which reads the metapage; addresses,
 * centres and page hints stay until the relation has another file.
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/xloginsert.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "hnsw/hnsw_int.h"

/* Open indexes that a backend remembers. */
#define MAX_OPEN	64

typedef struct OpenEntry
{
	Oid			relid;
	SwarmHnswIndex *index;
} OpenEntry;

static HTAB *open_indexes = NULL;
static uint64 open_count = 0;

static SwarmHnswIndex *remember(Relation rel);
static void read_meta(Relation rel, SwarmHnswMeta *meta);

/*
 * swarm_hnsw_opclass: the metric and the type of an index's column.
 */
const SwarmHnswOpclass *
swarm_hnsw_opclass(Relation rel)
{
	FmgrInfo   *proc = index_getprocinfo(rel, 1, 1);

	return (const SwarmHnswOpclass *)
		DatumGetPointer(FunctionCall1(proc, PointerGetDatum(NULL)));
}

/*
 * swarm_hnsw_open: an index, with its metapage as it is now.
 *
 * The result stays valid until the backend opens MAX_OPEN other indexes, or
 * longer when pinned.
 */
SwarmHnswIndex *
swarm_hnsw_open(Relation rel)
{
	SwarmHnswIndex *index = remember(rel);

	read_meta(rel, &index->meta);
	index->used = ++open_count;
	if (index->meta.dims == 0)
		return index;
	if (index->dims == 0)
		swarm_hnsw_setup(index);
	for (uint32 generation = index->meta.oldest;
		 generation <= index->meta.generation; generation++)
		if (index->loaded[generation & 1] != generation)
			swarm_hnsw_model_load(index, rel, generation);
	return index;
}

/*
 * remember: the cache entry of an index, made or made anew when its file has
 * changed.
 */
static SwarmHnswIndex *
remember(Relation rel)
{
	Oid			relid = RelationGetRelid(rel);
	OpenEntry  *entry;
	SwarmHnswIndex *index;
	MemoryContext context;
	bool		found;

	if (open_indexes == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(OpenEntry)};

		open_indexes = hash_create("qhnsw open indexes", MAX_OPEN, &ctl,
								   HASH_ELEM | HASH_BLOBS);
	}

	entry = hash_search(open_indexes, &relid, HASH_FIND, NULL);
	if (entry != NULL && entry->index->file == swarm_relation_file(rel))
		return entry->index;
	swarm_hnsw_forget(rel);

	if (hash_get_num_entries(open_indexes) >= MAX_OPEN)
	{
		HASH_SEQ_STATUS seq;
		OpenEntry  *oldest = NULL;

		hash_seq_init(&seq, open_indexes);
		while ((entry = hash_seq_search(&seq)) != NULL)
			if (entry->index->pins == 0 &&
				(oldest == NULL || entry->index->used < oldest->index->used))
				oldest = entry;
		if (oldest != NULL)
		{
			MemoryContextDelete(oldest->index->context);
			hash_search(open_indexes, &oldest->relid, HASH_REMOVE, NULL);
		}
	}

	context = AllocSetContextCreate(CacheMemoryContext, "qhnsw index",
									ALLOCSET_SMALL_SIZES);
	MemoryContextCopyAndSetIdentifier(context, RelationGetRelationName(rel));
	index = MemoryContextAllocZero(context, sizeof(SwarmHnswIndex));
	index->context = context;
	index->relid = relid;
	index->file = swarm_relation_file(rel);
	index->opclass = *swarm_hnsw_opclass(rel);
	entry = hash_search(open_indexes, &relid, HASH_ENTER, &found);
	entry->index = index;
	return index;
}

/*
 * swarm_hnsw_forget: drop what is remembered of an index.  What a scan holds
 * goes when the last scan lets go of it.
 */
void
swarm_hnsw_forget(Relation rel)
{
	Oid			relid = RelationGetRelid(rel);
	OpenEntry  *entry;

	if (open_indexes == NULL)
		return;
	entry = hash_search(open_indexes, &relid, HASH_FIND, NULL);
	if (entry == NULL)
		return;
	entry->index->forgotten = true;
	if (entry->index->pins == 0)
		MemoryContextDelete(entry->index->context);
	hash_search(open_indexes, &relid, HASH_REMOVE, NULL);
}

/*
 * swarm_hnsw_unpin: a scan needs an index no longer.
 */
void
swarm_hnsw_unpin(SwarmHnswIndex *index)
{
	Assert(index->pins > 0);
	if (--index->pins == 0 && index->forgotten)
		MemoryContextDelete(index->context);
}

/*
 * swarm_hnsw_setup: codec, addresses and work space, once dims are known.
 */
void
swarm_hnsw_setup(SwarmHnswIndex *index)
{
	const SwarmHnswMeta *meta = &index->meta;
	int			dims = meta->dims + (meta->metric == SWARM_METRIC_IP ? 1 : 0);

	bool		good = swarm_codec_init(&index->codec, dims, meta->bits,
										meta->refine_bits);

	if (good)
	{
		swarm_hnsw_layout(&index->layout, meta, &index->codec);
		good = index->layout.per_page[SWARM_STREAM_NODE] > 0 &&
			(index->codec.refine_size == 0 ||
			 index->layout.per_page[SWARM_STREAM_REFINE] > 0);
	}
	if (!good)
		ereport(ERROR,
				(errcode(ERRCODE_INDEX_CORRUPTED),
				 errmsg("metapage of a qhnsw index is damaged"),
				 errhint("REINDEX it.")));
	index->centre[0] = MemoryContextAllocZero(index->context,
											  4 * (Size) dims * sizeof(float));
	index->centre[1] = index->centre[0] + dims;
	index->work = index->centre[1] + dims;
	index->loaded[0] = index->loaded[1] = PG_UINT32_MAX;
	index->dims = dims;
}

/*
 * swarm_hnsw_meta: the metapage's contents.
 */
SwarmHnswMeta *
swarm_hnsw_meta(Page page)
{
	return (SwarmHnswMeta *) PageGetContents(page);
}

/*
 * read_meta: copy the metapage, having checked it.
 */
static void
read_meta(Relation rel, SwarmHnswMeta *meta)
{
	Buffer		buffer = ReadBuffer(rel, SWARM_HNSW_META_BLOCK);
	Page		page = BufferGetPage(buffer);

	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	swarm_hnsw_check_page(rel, SWARM_HNSW_META_BLOCK, page, SWARM_PAGE_META, 0);
	*meta = *swarm_hnsw_meta(page);
	UnlockReleaseBuffer(buffer);

	if (meta->magic != SWARM_HNSW_MAGIC)
		swarm_hnsw_damaged(rel, "wrong magic number", meta->magic);
	if (meta->format != SWARM_HNSW_FORMAT)
		ereport(ERROR,
				(errcode(ERRCODE_INDEX_CORRUPTED),
				 errmsg("index \"%s\" has format %u, which this version of pg_swarm cannot read",
						RelationGetRelationName(rel), meta->format),
				 errhint("REINDEX it.")));
	if (meta->dims > SWARM_CODEC_MAX_DIMS - 1 || meta->m < 2 || meta->m > 100 ||
		meta->metric > SWARM_METRIC_IP ||
		meta->generation - meta->oldest > 1 ||
		(meta->entry != SWARM_NODE_NONE && meta->entry >= meta->nodes))
		swarm_hnsw_damaged(rel, "metapage at block", SWARM_HNSW_META_BLOCK);
}

/*
 * swarm_hnsw_meta_fill: the metapage of an empty index; dims 0 when they are
 * not known yet.
 */
void
swarm_hnsw_meta_fill(Relation rel, SwarmHnswMeta *meta, int dims)
{
	const SwarmHnswOptions *options = swarm_hnsw_get_options(rel);
	int			bits = 0;
	int			refine_bits = 0;

	memset(meta, 0, sizeof(*meta));
	meta->magic = SWARM_HNSW_MAGIC;
	meta->format = SWARM_HNSW_FORMAT;
	meta->metric = swarm_hnsw_opclass(rel)->metric;
	meta->dims = dims;
	if (dims > 0)
		swarm_hnsw_quantizer(options, dims, &bits, &refine_bits);
	meta->bits = bits;
	meta->refine_bits = refine_bits;
	meta->m = options->m;
	meta->ef_construction = options->ef_construction;
	meta->seed = pg_prng_uint64(&pg_global_prng_state);
	meta->free_head = SWARM_NODE_NONE;
	meta->entry = SWARM_NODE_NONE;
	meta->pending_head = SWARM_NODE_NONE;
	meta->folding_head = SWARM_NODE_NONE;
}

/*
 * swarm_hnsw_model_load: read the centre of a generation.
 */
void
swarm_hnsw_model_load(SwarmHnswIndex *index, Relation rel, uint32 generation)
{
	int			area = generation & 1;
	char	   *to = (char *) index->centre[area];
	Size		left = index->dims * sizeof(float4);

	index->loaded[area] = PG_UINT32_MAX;
	for (uint32 i = 0; i < index->layout.model_pages; i++)
	{
		uint32		number = area * index->layout.model_pages + i;
		BlockNumber block = SWARM_HNSW_MODEL_BLOCK + number;
		Buffer		buffer = ReadBuffer(rel, block);
		Page		page = BufferGetPage(buffer);
		Size		size = Min(left, SWARM_HNSW_PAGE_ROOM);

		LockBuffer(buffer, BUFFER_LOCK_SHARE);
		swarm_hnsw_check_page(rel, block, page, SWARM_PAGE_MODEL, number);
		memcpy(to, PageGetContents(page), size);
		UnlockReleaseBuffer(buffer);
		to += size;
		left -= size;
	}
	index->loaded[area] = generation;
}

/*
 * swarm_hnsw_model_store: write the centre of a generation to its area.  The
 * pages exist.  wal: log them (a build logs all its pages at its end).
 */
void
swarm_hnsw_model_store(Relation rel, SwarmHnswIndex *index, uint32 generation,
					   const float *centre, bool wal)
{
	const char *from = (const char *) centre;
	Size		left = index->dims * sizeof(float4);

	for (uint32 i = 0; i < index->layout.model_pages; i++)
	{
		uint32		number = (generation & 1) * index->layout.model_pages + i;
		Buffer		buffer = ReadBuffer(rel, SWARM_HNSW_MODEL_BLOCK + number);
		Size		size = Min(left, SWARM_HNSW_PAGE_ROOM);
		GenericXLogState *state = NULL;
		Page		page = BufferGetPage(buffer);

		LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE);
		if (wal)
		{
			state = GenericXLogStart(rel);
			page = GenericXLogRegisterBuffer(state, buffer,
											 GENERIC_XLOG_FULL_IMAGE);
		}
		swarm_hnsw_init_page(page, SWARM_PAGE_MODEL, number);
		memcpy(PageGetContents(page), from, size);
		if (wal)
			GenericXLogFinish(state);
		else
			MarkBufferDirty(buffer);
		UnlockReleaseBuffer(buffer);
		from += size;
		left -= size;
	}
	if (centre != index->centre[generation & 1])
		memcpy(index->centre[generation & 1], centre,
			   index->dims * sizeof(float4));
	index->loaded[generation & 1] = generation;
}
