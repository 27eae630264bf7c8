/*
 * hnsw_check.c
 *	  Is an index what README.md says it is?  The numbers in this file are
 *	  those of its invariants.
 *
 * The check reads every page once, then follows lists, chains and links.  It
 * trusts nothing that it reads: a page that is not what it should be is
 * reported and left out.  A byte a node is all that it keeps in memory; the
 * comparison with the table goes through a sort.
 *
 * One share lock at a time and no other lock, so whoever writes meanwhile may
 * make it report what is only between two steps of his.
 */
#include "postgres.h"

#include <math.h>

#include "access/tableam.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "hnsw/hnsw_check_int.h"

/* After so many problems the rest is not worth reading. */
#define MAX_PROBLEMS	10000

static bool check_meta(SwarmCheck *c);
static bool check_format(SwarmCheck *c);
static void check_size(SwarmCheck *c);
static void check_models(SwarmCheck *c);
static void check_nodes(SwarmCheck *c);
static void check_node(SwarmCheck *c, SwarmNodeId id, SwarmNode *node);
static void check_refine(SwarmCheck *c);

/*
 * swarm_hnsw_check: report every problem of an index; with a table, also where
 * they differ.  Both are locked by the caller.
 */
void
swarm_hnsw_check(Relation rel, Relation heap, SwarmHnswReport report, void *arg)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "qhnsw check",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	SwarmCheck	c = {.rel = rel, .heap = heap, .report = report, .arg = arg};
	Snapshot	snapshot = NULL;

	c.blocks = RelationGetNumberOfBlocks(rel);
	c.work = AllocSetContextCreate(context, "qhnsw check page",
								   ALLOCSET_DEFAULT_SIZES);
	if (heap != NULL)
	{
		swarm_check_begin_rows(&c);

		/*
		 * What this snapshot sees was put into the index before it was
		 * committed, and is not removed while the snapshot lives; so reading
		 * the index after it misses nothing.
		 */
		snapshot = RegisterSnapshot(GetTransactionSnapshot());
	}
	if (check_meta(&c))
	{
		if (c.index.meta.dims != 0)
		{
			check_models(&c);
			check_nodes(&c);
			swarm_check_lists(&c);
			swarm_check_links(&c);
			swarm_check_upper(&c);
			check_refine(&c);
			swarm_check_reach(&c);
		}
		if (heap != NULL)
			swarm_check_rows(&c, snapshot);
	}
	if (heap != NULL)
	{
		tuplesort_end(c.rows);
		UnregisterSnapshot(snapshot);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/*
 * swarm_check_problem: report one.
 */
void
swarm_check_problem(SwarmCheck *c, SwarmNodeId node, const char *what, const char *detail,...)
{
	char text[	256];
	va_list		args;

	if (++c->problems > MAX_PROBLEMS)
		return;
	if (c->problems == MAX_PROBLEMS)
	{
		c->report(c->arg, "too many problems", SWARM_NODE_NONE,
				  "The rest is not reported.");
		return;
	}
	va_start(args, detail);
	vsnprintf(text, sizeof(text), detail, args);
	va_end(args);
	c->report(c->arg, what, node, text);
}

/* ------------------------------------------------------------- the pages */

/*
 * read_block: pin and share-lock a block whose page is what it should be;
 * else InvalidBuffer, and a problem unless it is already known.
 */
static Buffer
read_block(SwarmCheck *c, BlockNumber block, uint16 kind, uint32 number, bool known)
{
	Buffer		buffer;

	CHECK_FOR_INTERRUPTS();
	if (block >= c->blocks)
	{
		if (!known)
			swarm_check_problem(c, SWARM_NODE_NONE, "page is missing",
								"Block %u is beyond the end of the file.", block);
		return InvalidBuffer;
	}
	buffer = ReadBuffer(c->rel, block);
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	if (swarm_hnsw_page_is(BufferGetPage(buffer), kind, number))
		return buffer;
	UnlockReleaseBuffer(buffer);
	if (!known)
		swarm_check_problem(c, SWARM_NODE_NONE, "wrong page",
							"Block %u is not page %u of kind %u.", block, number, kind);
	return InvalidBuffer;
}

/*
 * swarm_check_page: the same for a page of a stream.
 */
Buffer
swarm_check_page(SwarmCheck *c, SwarmHnswStream stream, uint32 page, bool known)
{
	return read_block(c, swarm_hnsw_block(&c->index.layout, stream, page),
					  stream, page, known);
}

/*
 * swarm_check_node_page: the page of a node, or InvalidBuffer when it was found damaged.
 */
Buffer
swarm_check_node_page(SwarmCheck *c, SwarmNodeId id)
{
	return swarm_check_page(c, SWARM_STREAM_NODE,
							id / c->index.layout.per_page[SWARM_STREAM_NODE], true);
}

/*
 * check_meta: invariants 1 and 2.  False: the rest cannot be read.
 */
static bool
check_meta(SwarmCheck *c)
{
	Buffer		buffer = read_block(c, SWARM_HNSW_META_BLOCK, SWARM_PAGE_META, 0,
									false);

	if (buffer == InvalidBuffer)
		return false;
	c->index.meta = *swarm_hnsw_meta(BufferGetPage(buffer));
	UnlockReleaseBuffer(buffer);
	c->index.opclass = *swarm_hnsw_opclass(c->rel);
	if (!check_format(c))
		return false;
	if (c->index.meta.dims != 0)
		check_size(c);
	return true;
}

/*
 * check_format: is what addresses are computed from right?
 */
static bool
check_format(SwarmCheck *c)
{
	const SwarmHnswMeta *meta = &c->index.meta;
	SwarmHnswIndex *index = &c->index;
	const char *what = NULL;
	int			dims = meta->dims + (meta->metric == SWARM_METRIC_IP);

	if (meta->magic != SWARM_HNSW_MAGIC)
		what = "magic number";
	else if (meta->format != SWARM_HNSW_FORMAT)
		what = "format";
	else if (meta->dims > SWARM_CODEC_MAX_DIMS - 1)
		what = "number of dimensions";
	else if (meta->metric != c->index.opclass.metric)
		what = "metric";
	else if (meta->m < 2 || meta->m > 100)
		what = "m";
	else if (meta->ef_construction < 1)
		what = "ef_construction";
	else if (meta->generation - meta->oldest > 1)
		what = "generation";
	else if (!isfinite(meta->radius[0]) || !isfinite(meta->radius[1]) ||
			 meta->radius[0] < 0 || meta->radius[1] < 0)
		what = "radius";
	else if (meta->dims == 0)
	{
		if (meta->nodes != 0)
			what = "number of nodes";
	}
	else if (!swarm_codec_init(&index->codec, dims, meta->bits,
							   meta->refine_bits))
		what = "number of bits";
	else
	{
		index->dims = dims;
		swarm_hnsw_layout(&index->layout, meta, &index->codec);
		if (index->layout.per_page[SWARM_STREAM_NODE] == 0 ||
			index->layout.per_page[SWARM_STREAM_UPPER] == 0 ||
			(index->codec.refine_size > 0 &&
			 index->layout.per_page[SWARM_STREAM_REFINE] == 0))
			what = "size of a code";
	}
	if (what == NULL)
		return true;
	swarm_check_problem(c, SWARM_NODE_NONE, "metapage is damaged", "The %s is wrong.", what);
	return false;
}

/*
 * check_size: are the pages of all nodes in the file?  Later ones may be there
 * too: an insert that failed has made them.
 */
static void
check_size(SwarmCheck *c)
{
	const SwarmHnswLayout *layout = &c->index.layout;
	uint32		per_page = layout->per_page[SWARM_STREAM_NODE];
	uint32		nodes = c->index.meta.nodes;
	BlockNumber needed = swarm_hnsw_blocks(layout, nodes);
	uint32		low = 0;
	uint32		high = (nodes + per_page - 1) / per_page;

	if (needed == InvalidBlockNumber || needed > c->blocks)
		swarm_check_problem(c, SWARM_NODE_NONE, "file is too short",
							"%u nodes need %u blocks, there are %u.", nodes, needed,
							c->blocks);
	while (low < high)
	{
		uint32		middle = low + (high - low) / 2;

		if (swarm_hnsw_block(layout, SWARM_STREAM_NODE, middle) < c->blocks)
			low = middle + 1;
		else
			high = middle;
	}
	c->nodes = (uint32) Min((uint64) low * per_page, nodes);
}

/*
 * check_models: invariants 3 and 4 of the centres.
 */
static void
check_models(SwarmCheck *c)
{
	const SwarmHnswLayout *layout = &c->index.layout;
	const SwarmHnswMeta *meta = &c->index.meta;

	for (uint32 i = 0; i < 2 * layout->model_pages; i++)
	{
		Buffer		buffer = read_block(c, SWARM_HNSW_MODEL_BLOCK + i,
										SWARM_PAGE_MODEL, i, false);
		uint32		area = i / layout->model_pages;
		Size		before = (Size) (i % layout->model_pages) *
		SWARM_HNSW_PAGE_ROOM / sizeof(float4);
		const float4 *centre;
		bool		finite = true;

		if (buffer == InvalidBuffer)
			continue;
		centre = (const float4 *) PageGetContents(BufferGetPage(buffer));
		for (Size j = 0; j < SWARM_HNSW_PAGE_ROOM / sizeof(float4) &&
			 before + j < c->index.dims; j++)
			finite &= isfinite(centre[j]);
		UnlockReleaseBuffer(buffer);
		if (!finite &&
			((meta->generation & 1) == area || (meta->oldest & 1) == area))
			swarm_check_problem(c, SWARM_NODE_NONE, "centre is not finite",
								"It is in block %u.", SWARM_HNSW_MODEL_BLOCK + i);
	}
}

/* ------------------------------------------------------------- the nodes */

/*
 * check_nodes: read every node, for what can be said of one alone.
 */
static void
check_nodes(SwarmCheck *c)
{
	SwarmHnswIndex *index = &c->index;
	uint32		per_page = index->layout.per_page[SWARM_STREAM_NODE];

	c->marks = MemoryContextAllocHuge(CurrentMemoryContext, Max(c->nodes, 1));
	memset(c->marks, MARK_UNKNOWN, c->nodes);
	c->code = palloc(index->codec.code_size + index->codec.refine_size +
					 3 * sizeof(float4));
	for (SwarmNodeId first = 0; first < c->nodes; first += per_page)
	{
		Buffer		buffer = swarm_check_page(c, SWARM_STREAM_NODE, first / per_page,
											  false);
		uint32		n = Min(per_page, c->nodes - first);

		if (buffer == InvalidBuffer)
			continue;
		for (uint32 i = 0; i < n; i++)
			check_node(c, first + i,
					   swarm_hnsw_node(index, BufferGetPage(buffer), first + i));
		UnlockReleaseBuffer(buffer);
	}
}

/*
 * check_node: invariants 5, 6, 13 and 14, and the tid of 15.
 */
static void
check_node(SwarmCheck *c, SwarmNodeId id, SwarmNode *node)
{
	const SwarmHnswMeta *meta = &c->index.meta;
	bool		one = meta->oldest == meta->generation;
	uint32		bit;

	if (node->state >= SWARM_NODE_STATES)
	{
		swarm_check_problem(c, id, "unknown state", "It is %u.", node->state);
		return;
	}
	c->marks[id] = node->state;
	bit = 1u << node->state;

	if (node->flags & ~(SWARM_NODE_GENERATION | SWARM_NODE_NULL) ||
		(node->flags & SWARM_NODE_NULL && node->state != SWARM_NODE_ODD))
		swarm_check_problem(c, id, "wrong flags", "They are 0x%x in state %s.", node->flags,
							swarm_hnsw_state_name(node->state));
	else if ((bit & HAS_CODE) && one &&
			 (node->flags & SWARM_NODE_GENERATION) != (meta->generation & 1))
		swarm_check_problem(c, id, "wrong generation",
							"All codes are of generation %u, this one is not.",
							meta->generation);
	if ((bit & HAS_CODE) &&
		(!isfinite(node->norm2) || node->norm2 < 0 || !isfinite(node->scale)))
		swarm_check_problem(c, id, "wrong factors", "Norm %g, scale %g.", node->norm2,
							node->scale);
	if (!(bit & IN_GRAPH) && node->degree != 0)
		swarm_check_problem(c, id, "links of a node outside the graph",
							"%u links in state %s.", node->degree,
							swarm_hnsw_state_name(node->state));

	if (ItemPointerIsValid(&node->tid))
	{
		if (!(bit & (HAS_ROW | 1u << SWARM_NODE_ODD)))
			swarm_check_problem(c, id, "row of a node without one", "Row (%u,%u), state %s.",
								ItemPointerGetBlockNumberNoCheck(&node->tid),
								ItemPointerGetOffsetNumberNoCheck(&node->tid),
								swarm_hnsw_state_name(node->state));
		else if (c->rows != NULL)
			swarm_check_add_row(c, &node->tid, FROM_INDEX, id, node->state);
	}
	else if (bit & HAS_ROW)
		swarm_check_problem(c, id, "no row", "State %s.", swarm_hnsw_state_name(node->state));
}

/*
 * check_refine: invariants 3 and 14 of the refine codes.
 */
static void
check_refine(SwarmCheck *c)
{
	SwarmHnswIndex *index = &c->index;
	uint32		per_page = index->layout.per_page[SWARM_STREAM_REFINE];

	for (SwarmNodeId first = 0; per_page > 0 && first < c->nodes;
		 first += per_page)
	{
		Buffer		buffer = swarm_check_page(c, SWARM_STREAM_REFINE, first / per_page,
											  false);
		uint32		n = Min(per_page, c->nodes - first);

		if (buffer == InvalidBuffer)
			continue;
		for (SwarmNodeId id = first; id < first + n; id++)
		{
			float4		scale = swarm_hnsw_refine(index, BufferGetPage(buffer),
												  id)->scale;

			if (in_states(c, id, HAS_CODE) && !isfinite(scale))
				swarm_check_problem(c, id, "wrong factors", "Scale %g of the refine code.",
									scale);
		}
		UnlockReleaseBuffer(buffer);
	}
}
