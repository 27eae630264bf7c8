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

#include "access/heapam.h"
#include "access/tableam.h"
#include "catalog/index.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/tuplesort.h"
#include "utils/typcache.h"
#include "utils/uuid.h"

#include "base/compat.h"
#include "hnsw/hnsw_int.h"

/* What is kept of a node. */
#define MARK_STATE		0x07
#define MARK_UNKNOWN	0x07	/* damaged: nothing more is said about it */
#define MARK_LISTED		0x08	/* seen in its list or chain */
#define MARK_REACHED	0x10	/* some way leads there */
#define MARK_EXPANDED	0x20	/* and its links were followed */

/* After so many problems the rest is not worth reading. */
#define MAX_PROBLEMS	10000

#define IN_GRAPH \
	(1u << SWARM_NODE_LINKED | 1u << SWARM_NODE_DEAD | \
	 1u << SWARM_NODE_PENDING | 1u << SWARM_NODE_JOINING | 1u << MARK_UNKNOWN)

#define HAS_ROW \
	(1u << SWARM_NODE_LINKED | 1u << SWARM_NODE_TWIN | \
	 1u << SWARM_NODE_PENDING | 1u << SWARM_NODE_JOINING)

#define HAS_CODE	(HAS_ROW | 1u << SWARM_NODE_DEAD)

typedef struct Check
{
	Relation	rel;
	Relation	heap;			/* NULL: leave the table alone */
	SwarmHnswIndex index;		/* metapage, addresses and codec only */
	BlockNumber blocks;
	uint32		nodes;			/* ids whose pages are there */
	uint8	   *marks;
	SwarmHnswReport report;
	void	   *arg;
	uint32		problems;
	MemoryContext work;			/* reset for each page */
	char	   *code;			/* of the first of a chain */
	Tuplesortstate *rows;
} Check;

/*
 * What is sorted to compare index and table: in the form of a uuid, as that is
 * the type of this size whose order is that of its bytes.
 */
typedef struct RowKey
{
	uint8		block[4];		/* big endian */
	uint8		offset[2];
	uint8		source;			/* 0 index, 1 table */
	uint8		state;
	uint8		node[4];
	uint8		unused[4];
} RowKey;

StaticAssertDecl(sizeof(RowKey) == UUID_LEN, "a row key is as long as a uuid");

typedef enum RowSource
{
	FROM_INDEX,
	FROM_TABLE
} RowSource;

static bool check_meta(Check *c);
static bool check_format(Check *c);
static void check_size(Check *c);
static void check_models(Check *c);
static void check_nodes(Check *c);
static void check_node(Check *c, SwarmNodeId id, SwarmNode *node);
static void check_lists(Check *c);
static uint32 check_list(Check *c, const char *name, SwarmNodeId head,
						 SwarmNodeState state);
static void check_unlisted(Check *c, SwarmNodeState state);
static void check_links(Check *c);
static void check_upper(Check *c);
static void check_degree(Check *c, SwarmNodeId id, int level, uint32 degree,
						 const SwarmNodeId *links);
static void check_chain(Check *c, SwarmNodeId first, SwarmNodeId id);
static void check_refine(Check *c);
static void check_reach(Check *c);
static void check_rows(Check *c, Snapshot snapshot);
static void check_table_row(Relation rel, ItemPointer tid, Datum *values,
							bool *isnull, bool alive, void *state);

/*
 * problem: report one.
 */
static void
			problem(Check *c, SwarmNodeId node, const char *what, const char *detail,...)
			pg_attribute_printf(4, 5);

static void
problem(Check *c, SwarmNodeId node, const char *what, const char *detail,...)
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

static inline unsigned int
state_of(const Check *c, SwarmNodeId id)
{
	return c->marks[id] & MARK_STATE;
}

static inline bool
in_states(const Check *c, SwarmNodeId id, uint32 states)
{
	return (1u << state_of(c, id)) & states;
}

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
	Check		c = {.rel = rel, .heap = heap, .report = report, .arg = arg};
	Snapshot	snapshot = NULL;

	c.blocks = RelationGetNumberOfBlocks(rel);
	c.work = AllocSetContextCreate(context, "qhnsw check page",
								   ALLOCSET_DEFAULT_SIZES);
	if (heap != NULL)
	{
		TypeCacheEntry *type = lookup_type_cache(UUIDOID, TYPECACHE_LT_OPR);

		c.rows = tuplesort_begin_datum(UUIDOID, type->lt_opr, InvalidOid, false,
									   work_mem, NULL, TUPLESORT_NONE);

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
			check_lists(&c);
			check_links(&c);
			check_upper(&c);
			check_refine(&c);
			check_reach(&c);
		}
		if (heap != NULL)
			check_rows(&c, snapshot);
	}
	if (heap != NULL)
	{
		tuplesort_end(c.rows);
		UnregisterSnapshot(snapshot);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

/* ------------------------------------------------------------- the pages */

/*
 * read_block: pin and share-lock a block whose page is what it should be;
 * else InvalidBuffer, and a problem unless it is already known.
 */
static Buffer
read_block(Check *c, BlockNumber block, uint16 kind, uint32 number, bool known)
{
	Buffer		buffer;

	CHECK_FOR_INTERRUPTS();
	if (block >= c->blocks)
	{
		if (!known)
			problem(c, SWARM_NODE_NONE, "page is missing",
					"Block %u is beyond the end of the file.", block);
		return InvalidBuffer;
	}
	buffer = ReadBuffer(c->rel, block);
	LockBuffer(buffer, BUFFER_LOCK_SHARE);
	if (swarm_hnsw_page_is(BufferGetPage(buffer), kind, number))
		return buffer;
	UnlockReleaseBuffer(buffer);
	if (!known)
		problem(c, SWARM_NODE_NONE, "wrong page",
				"Block %u is not page %u of kind %u.", block, number, kind);
	return InvalidBuffer;
}

/*
 * read_page: the same for a page of a stream.
 */
static Buffer
read_page(Check *c, SwarmHnswStream stream, uint32 page, bool known)
{
	return read_block(c, swarm_hnsw_block(&c->index.layout, stream, page),
					  stream, page, known);
}

/*
 * read_node: the page of a node, or InvalidBuffer when it was found damaged.
 */
static Buffer
read_node(Check *c, SwarmNodeId id)
{
	return read_page(c, SWARM_STREAM_NODE,
					 id / c->index.layout.per_page[SWARM_STREAM_NODE], true);
}

/*
 * check_meta: invariants 1 and 2.  False: the rest cannot be read.
 */
static bool
check_meta(Check *c)
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
check_format(Check *c)
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
	problem(c, SWARM_NODE_NONE, "metapage is damaged", "The %s is wrong.", what);
	return false;
}

/*
 * check_size: are the pages of all nodes in the file?  Later ones may be there
 * too: an insert that failed has made them.
 */
static void
check_size(Check *c)
{
	const SwarmHnswLayout *layout = &c->index.layout;
	uint32		per_page = layout->per_page[SWARM_STREAM_NODE];
	uint32		nodes = c->index.meta.nodes;
	BlockNumber needed = swarm_hnsw_blocks(layout, nodes);
	uint32		low = 0;
	uint32		high = (nodes + per_page - 1) / per_page;

	if (needed == InvalidBlockNumber || needed > c->blocks)
		problem(c, SWARM_NODE_NONE, "file is too short",
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
check_models(Check *c)
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
			problem(c, SWARM_NODE_NONE, "centre is not finite",
					"It is in block %u.", SWARM_HNSW_MODEL_BLOCK + i);
	}
}

/* ------------------------------------------------------------- the nodes */

/*
 * add_row: let a row take part in the comparison with the table.
 */
static void
add_row(Check *c, const ItemPointerData *tid, RowSource source,
		SwarmNodeId node, unsigned int state)
{
	BlockNumber block = ItemPointerGetBlockNumberNoCheck(tid);
	OffsetNumber offset = ItemPointerGetOffsetNumberNoCheck(tid);
	RowKey		key = {
		.block = {block >> 24, block >> 16, block >> 8, block},
		.offset = {offset >> 8, offset},
		.source = source,
		.state = state,
		.node = {node >> 24, node >> 16, node >> 8, node}
	};

	tuplesort_putdatum(c->rows, PointerGetDatum(&key), false);
}

/*
 * check_nodes: read every node, for what can be said of one alone.
 */
static void
check_nodes(Check *c)
{
	SwarmHnswIndex *index = &c->index;
	uint32		per_page = index->layout.per_page[SWARM_STREAM_NODE];

	c->marks = MemoryContextAllocHuge(CurrentMemoryContext, Max(c->nodes, 1));
	memset(c->marks, MARK_UNKNOWN, c->nodes);
	c->code = palloc(index->codec.code_size + index->codec.refine_size +
					 3 * sizeof(float4));
	for (SwarmNodeId first = 0; first < c->nodes; first += per_page)
	{
		Buffer		buffer = read_page(c, SWARM_STREAM_NODE, first / per_page,
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
check_node(Check *c, SwarmNodeId id, SwarmNode *node)
{
	const SwarmHnswMeta *meta = &c->index.meta;
	bool		one = meta->oldest == meta->generation;
	uint32		bit;

	if (node->state >= SWARM_NODE_STATES)
	{
		problem(c, id, "unknown state", "It is %u.", node->state);
		return;
	}
	c->marks[id] = node->state;
	bit = 1u << node->state;

	if (node->flags & ~(SWARM_NODE_GENERATION | SWARM_NODE_NULL) ||
		(node->flags & SWARM_NODE_NULL && node->state != SWARM_NODE_ODD))
		problem(c, id, "wrong flags", "They are 0x%x in state %s.", node->flags,
				swarm_hnsw_state_name(node->state));
	else if ((bit & HAS_CODE) && one &&
			 (node->flags & SWARM_NODE_GENERATION) != (meta->generation & 1))
		problem(c, id, "wrong generation",
				"All codes are of generation %u, this one is not.",
				meta->generation);
	if ((bit & HAS_CODE) &&
		(!isfinite(node->norm2) || node->norm2 < 0 || !isfinite(node->scale)))
		problem(c, id, "wrong factors", "Norm %g, scale %g.", node->norm2,
				node->scale);
	if (!(bit & IN_GRAPH) && node->degree != 0)
		problem(c, id, "links of a node outside the graph",
				"%u links in state %s.", node->degree,
				swarm_hnsw_state_name(node->state));

	if (ItemPointerIsValid(&node->tid))
	{
		if (!(bit & (HAS_ROW | 1u << SWARM_NODE_ODD)))
			problem(c, id, "row of a node without one", "Row (%u,%u), state %s.",
					ItemPointerGetBlockNumberNoCheck(&node->tid),
					ItemPointerGetOffsetNumberNoCheck(&node->tid),
					swarm_hnsw_state_name(node->state));
		else if (c->rows != NULL)
			add_row(c, &node->tid, FROM_INDEX, id, node->state);
	}
	else if (bit & HAS_ROW)
		problem(c, id, "no row", "State %s.", swarm_hnsw_state_name(node->state));
}

/*
 * check_lists: invariants 9, 10 and 12.
 */
static void
check_lists(Check *c)
{
	const SwarmHnswMeta *meta = &c->index.meta;
	uint32		odd = 0;
	uint32		count;

	count = check_list(c, "list of free nodes", meta->free_head,
					   SWARM_NODE_FREE);
	if (count != meta->free_nodes)
		problem(c, SWARM_NODE_NONE, "wrong number of free nodes",
				"The metapage says %u, the list has %u.", meta->free_nodes,
				count);
	check_unlisted(c, SWARM_NODE_FREE);

	count = check_list(c, "list of pending nodes", meta->pending_head,
					   SWARM_NODE_PENDING) +
		check_list(c, "list of the fold", meta->folding_head,
				   SWARM_NODE_PENDING);
	if (count != meta->pending)
		problem(c, SWARM_NODE_NONE, "wrong number of pending nodes",
				"The metapage says %u, the lists have %u.", meta->pending,
				count);
	check_unlisted(c, SWARM_NODE_PENDING);

	for (SwarmNodeId id = 0; id < c->nodes; id++)
		odd += state_of(c, id) == SWARM_NODE_ODD;
	if (odd != meta->odd)
		problem(c, SWARM_NODE_NONE, "wrong number of odd nodes",
				"The metapage says %u, there are %u.", meta->odd, odd);
}

/*
 * check_list: follow a list; returns how long it is.
 */
static uint32
check_list(Check *c, const char *name, SwarmNodeId head, SwarmNodeState state)
{
	SwarmNodeId id = head;
	SwarmNodeId before = SWARM_NODE_NONE;
	uint32		count = 0;

	while (id != SWARM_NODE_NONE)
	{
		Buffer		buffer;

		if (id >= c->nodes)
		{
			problem(c, before, "broken list", "The %s leads to node %u of %u.",
					name, id, c->nodes);
			break;
		}
		if (state_of(c, id) != state)
		{
			if (state_of(c, id) != MARK_UNKNOWN)
				problem(c, id, "wrong node in a list", "State %s in the %s.",
						swarm_hnsw_state_name(state_of(c, id)), name);
			break;
		}
		if (c->marks[id] & MARK_LISTED)
		{
			problem(c, id, "broken list", "The %s leads there twice.", name);
			break;
		}
		c->marks[id] |= MARK_LISTED;
		count++;
		buffer = read_node(c, id);
		if (buffer == InvalidBuffer)
			break;
		before = id;
		id = swarm_hnsw_node(&c->index, BufferGetPage(buffer), id)->next;
		UnlockReleaseBuffer(buffer);
	}
	return count;
}

/*
 * check_unlisted: report the nodes of a state that were in no list.
 */
static void
check_unlisted(Check *c, SwarmNodeState state)
{
	for (SwarmNodeId id = 0; id < c->nodes; id++)
		if (state_of(c, id) == state && !(c->marks[id] & MARK_LISTED))
			problem(c, id, "node is in no list", "State %s.",
					swarm_hnsw_state_name(state));
}

/* ------------------------------------------------------------- the graph */

/*
 * check_links: invariants 6 and 7 on level 0, and 11.
 */
static void
check_links(Check *c)
{
	SwarmHnswIndex *index = &c->index;
	uint32		per_page = index->layout.per_page[SWARM_STREAM_NODE];
	SwarmNodeId *chains = palloc(per_page * sizeof(SwarmNodeId));

	for (SwarmNodeId first = 0; first < c->nodes; first += per_page)
	{
		Buffer		buffer = read_node(c, first);
		uint32		n = Min(per_page, c->nodes - first);
		Page		page;

		if (buffer == InvalidBuffer)
			continue;
		page = BufferGetPage(buffer);
		for (uint32 i = 0; i < n; i++)
		{
			SwarmNode  *node = swarm_hnsw_node(index, page, first + i);

			chains[i] = SWARM_NODE_NONE;
			if (in_states(c, first + i, IN_GRAPH & ~(1u << MARK_UNKNOWN)))
				check_degree(c, first + i, 0, node->degree,
							 swarm_hnsw_links(index, node));
			if (state_of(c, first + i) == SWARM_NODE_LINKED)
				chains[i] = node->next;
		}
		UnlockReleaseBuffer(buffer);
		for (uint32 i = 0; i < n; i++)
			if (chains[i] != SWARM_NODE_NONE)
				check_chain(c, first + i, chains[i]);
	}
	check_unlisted(c, SWARM_NODE_TWIN);
	pfree(chains);
}

/*
 * check_degree: the links of one node at one level.
 *
 * Those of a dead node may lead to what was freed before it.
 */
static void
check_degree(Check *c, SwarmNodeId id, int level, uint32 degree,
			 const SwarmNodeId *links)
{
	bool		dead = state_of(c, id) == SWARM_NODE_DEAD;

	if (degree > swarm_hnsw_max_degree(&c->index, level))
	{
		problem(c, id, "too many links", "%u on level %d.", degree, level);
		return;
	}
	for (uint32 i = 0; i < degree; i++)
	{
		SwarmNodeId to = links[i];

		if (to >= c->nodes)
			/* What was added since we read the metapage is no problem. */
			problem(c, id, "link to no node", "To %u of %u on level %d.", to,
					c->nodes, level);
		else if (to == id)
			problem(c, id, "link to itself", "On level %d.", level);
		else if (!dead && !in_states(c, to, IN_GRAPH))
			problem(c, id, "link to a node outside the graph",
					"To %u on level %d, state %s.", to, level,
					swarm_hnsw_state_name(state_of(c, to)));
		else if (swarm_hnsw_level(&c->index.meta, to) < level)
			problem(c, id, "link to a node of a lower level",
					"To %u on level %d.", to, level);
		for (uint32 j = 0; j < i; j++)
			if (links[j] == to)
				problem(c, id, "link is there twice", "To %u on level %d.", to,
						level);
	}
}

/*
 * copy_code: what makes two nodes twins, except their refine codes.
 */
static Size
copy_code(const Check *c, const SwarmNode *node, char *to)
{
	float4		generation = node->flags & SWARM_NODE_GENERATION;

	memcpy(to, &node->norm2, sizeof(float4));
	memcpy(to + sizeof(float4), &node->scale, sizeof(float4));
	memcpy(to + 2 * sizeof(float4), &generation, sizeof(float4));
	memcpy(to + 3 * sizeof(float4), node->code, c->index.codec.code_size);
	return 3 * sizeof(float4) + c->index.codec.code_size;
}

/*
 * check_chain: follow the twins of a node, of which `id` is the first.
 */
static void
check_chain(Check *c, SwarmNodeId first, SwarmNodeId id)
{
	SwarmHnswIndex *index = &c->index;
	Buffer		buffer = read_node(c, first);
	char	   *code;

	if (buffer == InvalidBuffer)
		return;
	copy_code(c, swarm_hnsw_node(index, BufferGetPage(buffer), first), c->code);
	UnlockReleaseBuffer(buffer);
	code = MemoryContextAlloc(c->work, index->codec.code_size +
							  3 * sizeof(float4));
	while (id != SWARM_NODE_NONE)
	{
		SwarmNode  *node;
		SwarmNodeId back;
		SwarmNodeId next;
		Size		size;

		if (id >= c->nodes || state_of(c, id) != SWARM_NODE_TWIN)
		{
			if (id >= c->nodes || state_of(c, id) != MARK_UNKNOWN)
				problem(c, first, "broken chain of twins",
						"It leads to node %u, which is no twin.", id);
			break;
		}
		if (c->marks[id] & MARK_LISTED)
		{
			problem(c, first, "broken chain of twins",
					"Node %u is in it twice, or in two.", id);
			break;
		}
		c->marks[id] |= MARK_LISTED;
		buffer = read_node(c, id);
		if (buffer == InvalidBuffer)
			break;
		node = swarm_hnsw_node(index, BufferGetPage(buffer), id);
		back = swarm_hnsw_links(index, node)[0];
		size = copy_code(c, node, code);
		next = node->next;
		UnlockReleaseBuffer(buffer);
		if (back != first)
			problem(c, id, "twin of another node",
					"It is in the chain of %u and says %u.", first, back);
		if (memcmp(code, c->code, size) != 0)
			problem(c, id, "twin with another code",
					"It is in the chain of %u.", first);
		id = next;
	}
	MemoryContextReset(c->work);
}

/*
 * check_upper: invariants 3, 6 and 7 on level 1 and above.
 */
static void
check_upper(Check *c)
{
	SwarmHnswIndex *index = &c->index;
	uint32		per_page = index->layout.per_page[SWARM_STREAM_UPPER];

	for (SwarmNodeId first = 0; first < c->nodes; first += per_page)
	{
		Buffer		buffer = read_page(c, SWARM_STREAM_UPPER, first / per_page,
									   false);
		uint32		n = Min(per_page, c->nodes - first);

		if (buffer == InvalidBuffer)
			continue;
		for (SwarmNodeId id = first; id < first + n; id++)
		{
			int			top = swarm_hnsw_level(&index->meta, id);

			for (int level = 1; level <= top; level++)
			{
				SwarmUpper *upper = swarm_hnsw_upper(index,
													 BufferGetPage(buffer), id,
													 level);

				if (in_states(c, id, IN_GRAPH))
					check_degree(c, id, level, upper->degree, upper->links);
				else if (upper->degree != 0)
					problem(c, id, "links of a node outside the graph",
							"%u links on level %d in state %s.", upper->degree,
							level, swarm_hnsw_state_name(state_of(c, id)));
			}
		}
		UnlockReleaseBuffer(buffer);
	}
}

/*
 * check_refine: invariants 3 and 14 of the refine codes.
 */
static void
check_refine(Check *c)
{
	SwarmHnswIndex *index = &c->index;
	uint32		per_page = index->layout.per_page[SWARM_STREAM_REFINE];

	for (SwarmNodeId first = 0; per_page > 0 && first < c->nodes;
		 first += per_page)
	{
		Buffer		buffer = read_page(c, SWARM_STREAM_REFINE, first / per_page,
									   false);
		uint32		n = Min(per_page, c->nodes - first);

		if (buffer == InvalidBuffer)
			continue;
		for (SwarmNodeId id = first; id < first + n; id++)
		{
			float4		scale = swarm_hnsw_refine(index, BufferGetPage(buffer),
												  id)->scale;

			if (in_states(c, id, HAS_CODE) && !isfinite(scale))
				problem(c, id, "wrong factors", "Scale %g of the refine code.",
						scale);
		}
		UnlockReleaseBuffer(buffer);
	}
}

/*
 * expand_page: follow the links of the nodes of a page that are reached; how
 * many nodes were that anew.
 */
static uint32
expand_page(Check *c, SwarmNodeId first, uint32 n)
{
	SwarmHnswIndex *index = &c->index;
	Buffer		buffer;
	uint32		fresh = 0;
	bool		any = false;

	for (uint32 i = 0; i < n && !any; i++)
		any = (c->marks[first + i] & (MARK_REACHED | MARK_EXPANDED)) ==
			MARK_REACHED;
	if (!any)
		return 0;
	buffer = read_node(c, first);
	if (buffer == InvalidBuffer)
		return 0;
	for (uint32 i = 0; i < n; i++)
	{
		uint8	   *mark = &c->marks[first + i];
		SwarmNode  *node;
		SwarmNodeId *links;

		if ((*mark & (MARK_REACHED | MARK_EXPANDED)) != MARK_REACHED)
			continue;
		*mark |= MARK_EXPANDED;
		node = swarm_hnsw_node(index, BufferGetPage(buffer), first + i);
		links = swarm_hnsw_links(index, node);
		for (uint32 j = 0; j < node->degree &&
			 j < swarm_hnsw_max_degree(index, 0); j++)
			if (links[j] < c->nodes && in_states(c, links[j], IN_GRAPH) &&
				!(c->marks[links[j]] & MARK_REACHED))
			{
				c->marks[links[j]] |= MARK_REACHED;
				fresh++;
			}
	}
	UnlockReleaseBuffer(buffer);
	return fresh;
}

/*
 * check_reach: invariant 8: from the entry point, page by page, until nothing
 * new is reached.
 */
static void
check_reach(Check *c)
{
	const SwarmHnswMeta *meta = &c->index.meta;
	uint32		per_page = c->index.layout.per_page[SWARM_STREAM_NODE];
	uint32		fresh = 1;

	if (meta->entry != SWARM_NODE_NONE &&
		(meta->entry >= c->nodes || !in_states(c, meta->entry, IN_GRAPH)))
		problem(c, SWARM_NODE_NONE, "wrong entry point",
				"Node %u, state %s.", meta->entry, meta->entry >= c->nodes ?
				"none" : swarm_hnsw_state_name(state_of(c, meta->entry)));
	else if (meta->entry != SWARM_NODE_NONE)
		c->marks[meta->entry] |= MARK_REACHED;

	while (fresh > 0)
	{
		fresh = 0;
		for (SwarmNodeId first = 0; first < c->nodes; first += per_page)
			fresh += expand_page(c, first, Min(per_page, c->nodes - first));
	}
	for (SwarmNodeId id = 0; id < c->nodes; id++)
		if (state_of(c, id) == SWARM_NODE_LINKED &&
			!(c->marks[id] & MARK_REACHED))
			problem(c, id, "node cannot be reached", "From the entry point, node %u.",
					meta->entry);
}

/* ------------------------------------------------------------- the table */

/*
 * check_table_row: a visible row of the table.
 *
 * A null that came before the first vector is in no page: invariant 16.
 */
static void
check_table_row(Relation rel, ItemPointer tid, Datum *values, bool *isnull,
				bool alive, void *state)
{
	Check	   *c = state;

	if (!isnull[0])
		add_row(c, tid, FROM_TABLE, SWARM_NODE_NONE, 0);
}

/*
 * line_pointer: has the table something where a node says that its row is?
 * *buffer is the page that was looked at last.
 */
static bool
line_pointer(Check *c, BlockNumber block, OffsetNumber offset,
			 BlockNumber blocks, Buffer *buffer)
{
	Page		page;
	bool		used;

	if (block >= blocks)
		return false;
	if (*buffer == InvalidBuffer || BufferGetBlockNumber(*buffer) != block)
	{
		if (*buffer != InvalidBuffer)
			ReleaseBuffer(*buffer);
		*buffer = ReadBuffer(c->heap, block);
	}
	LockBuffer(*buffer, BUFFER_LOCK_SHARE);
	page = BufferGetPage(*buffer);
	used = !PageIsNew(page) && offset >= FirstOffsetNumber &&
		offset <= PageGetMaxOffsetNumber(page) &&
		ItemIdIsUsed(PageGetItemId(page, offset));
	LockBuffer(*buffer, BUFFER_LOCK_UNLOCK);
	return used;
}

/*
 * check_rows: invariants 15 and 16: put the rows of the table beside those of
 * the index.
 */
static void
check_rows(Check *c, Snapshot snapshot)
{
	IndexInfo  *info = BuildIndexInfo(c->rel);
	TableScanDesc scan = table_beginscan_strat(c->heap, snapshot, 0, NULL, true,
											   true);
	bool		is_heap = c->heap->rd_tableam == GetHeapamTableAmRoutine();
	BlockNumber blocks;
	Buffer		buffer = InvalidBuffer;
	RowKey		last = {0};
	bool		any = false;
	Datum		datum;
	bool		isnull;

	/* Taken as if concurrent, it makes do with a snapshot. */
	info->ii_Concurrent = true;
	info->ii_Unique = false;
	info->ii_ExclusionOps = NULL;
	table_index_build_scan(c->heap, c->rel, info, true, false, check_table_row,
						   c, scan);
	tuplesort_performsort(c->rows);

	blocks = RelationGetNumberOfBlocks(c->heap);
	while (swarm_tuplesort_getdatum(c->rows, &datum, &isnull))
	{
		RowKey		key = *(RowKey *) DatumGetPointer(datum);
		BlockNumber block = (uint32) key.block[0] << 24 | key.block[1] << 16 |
		key.block[2] << 8 | key.block[3];
		OffsetNumber offset = key.offset[0] << 8 | key.offset[1];
		SwarmNodeId node = (uint32) key.node[0] << 24 | key.node[1] << 16 |
		key.node[2] << 8 | key.node[3];
		bool		same = any && memcmp(&last, &key, offsetof(RowKey, source)) == 0;

		CHECK_FOR_INTERRUPTS();
		swarm_tuplesort_freedatum(datum);
		if (key.source == FROM_TABLE && !same)
			problem(c, SWARM_NODE_NONE, "row is missing",
					"Row (%u,%u) of the table is not in the index.", block,
					offset);
		else if (key.source == FROM_INDEX && same)
			problem(c, node, "row is there twice", "Row (%u,%u), state %s.",
					block, offset, swarm_hnsw_state_name(key.state));
		else if (key.source == FROM_INDEX && is_heap &&
				 !line_pointer(c, block, offset, blocks, &buffer))
			problem(c, node, "row does not exist",
					"The table has no row (%u,%u); state %s.", block, offset,
					swarm_hnsw_state_name(key.state));
		last = key;
		any = true;
	}
	if (buffer != InvalidBuffer)
		ReleaseBuffer(buffer);
}
