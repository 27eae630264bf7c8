/*
 * hnsw_page.c
 *	  Where things are: levels of ids, the order of the pages, slots, states.
 *
 * Every address is computed from the metapage's fixed part; nothing on disk
 * points to a block.  Any backend, no locks but of the page that is read.
 */
#include "postgres.h"

#include "utils/rel.h"

#include "base/compat.h"
#include "hnsw/hnsw_int.h"

/* Slots of an upper page for level 3 and above: two a level. */
#define TOP_SLOTS	(2 * (SWARM_HNSW_MAX_LEVEL - 2))

/* The most level-1 nodes of an upper page: level 3 has one slot in 4,096. */
#define MAX_UPPERS	256

static uint32 uppers_per_page(uint32 slot_size);
static uint64 mix(uint64 x);

/* What may follow a state, and who does it. */
static const struct
{
	uint8		from;
	uint8		to;
	const char *why;
}			transitions[] = {
	{SWARM_NODE_FREE, SWARM_NODE_PENDING, "insert with fastupdate"},
	{SWARM_NODE_FREE, SWARM_NODE_JOINING, "insert without"},
	{SWARM_NODE_FREE, SWARM_NODE_ODD, "insert of a null or a zero vector"},
	{SWARM_NODE_PENDING, SWARM_NODE_LINKED, "fold"},
	{SWARM_NODE_PENDING, SWARM_NODE_TWIN, "fold, the same codes are there"},
	{SWARM_NODE_JOINING, SWARM_NODE_LINKED, "links are written"},
	{SWARM_NODE_JOINING, SWARM_NODE_TWIN, "the same codes are there"},
	{SWARM_NODE_JOINING, SWARM_NODE_DEAD, "vacuum, its inserter failed"},
	{SWARM_NODE_LINKED, SWARM_NODE_DEAD, "vacuum, the row is gone"},
	{SWARM_NODE_TWIN, SWARM_NODE_FREE, "vacuum"},
	{SWARM_NODE_ODD, SWARM_NODE_FREE, "vacuum"},
	{SWARM_NODE_DEAD, SWARM_NODE_FREE, "vacuum, nothing links to it"},
};

static const char *const state_names[SWARM_NODE_STATES] = {
	[SWARM_NODE_FREE] = "free",
	[SWARM_NODE_PENDING] = "pending",
	[SWARM_NODE_JOINING] = "joining",
	[SWARM_NODE_LINKED] = "linked",
	[SWARM_NODE_TWIN] = "twin",
	[SWARM_NODE_ODD] = "odd",
	[SWARM_NODE_DEAD] = "dead",
};

/*
 * swarm_hnsw_may_follow: may a node go from one state to the other?
 */
bool
swarm_hnsw_may_follow(SwarmNodeState from, SwarmNodeState to)
{
	for (int i = 0; i < lengthof(transitions); i++)
		if (transitions[i].from == from && transitions[i].to == to)
			return true;
	return false;
}

/*
 * swarm_hnsw_state_name: for messages; never NULL.
 */
const char *
swarm_hnsw_state_name(SwarmNodeState state)
{
	return (unsigned int) state < SWARM_NODE_STATES ?
		state_names[state] : "unknown";
}

/*
 * swarm_hnsw_damaged: raise XX002.
 */
void
swarm_hnsw_damaged(Relation rel, const char *what, uint32 number)
{
	ereport(ERROR,
			(errcode(ERRCODE_INDEX_CORRUPTED),
			 errmsg("index \"%s\" is damaged: %s %u",
					RelationGetRelationName(rel), what, number),
			 errhint("REINDEX it.")));
	pg_unreachable();
}

/*
 * swarm_hnsw_check_row: raise XX002 unless the table has the block of a row.
 * *blocks is what the caller knows of the table's length, 0 at first.
 *
 * The server trusts an index: it would extend the table for the block number
 * that means a new one.
 */
void
swarm_hnsw_check_row(Relation rel, Relation heap, ItemPointer tid,
					 BlockNumber *blocks)
{
	BlockNumber block = ItemPointerGetBlockNumberNoCheck(tid);

	if (likely(block < *blocks))
		return;
	*blocks = RelationGetNumberOfBlocks(heap);
	if (block >= *blocks)
		swarm_hnsw_damaged(rel, "a row beyond the table's end, in block", block);
}

/*
 * swarm_hnsw_layout: compute the addresses of an index.
 */
void
swarm_hnsw_layout(SwarmHnswLayout *layout, const SwarmHnswMeta *meta,
				  const SwarmCodec *codec)
{
	uint32		node = offsetof(SwarmNode, code) + codec->code_size +
	2 * meta->m * sizeof(SwarmNodeId);
	uint32		upper = offsetof(SwarmUpper, links) +
	meta->m * sizeof(SwarmNodeId);
	uint32		refine = offsetof(SwarmRefine, code) + codec->refine_size;

	layout->slot_size[SWARM_STREAM_NODE] = node;
	layout->slot_size[SWARM_STREAM_UPPER] = upper;
	layout->slot_size[SWARM_STREAM_REFINE] = refine;
	layout->per_page[SWARM_STREAM_NODE] = SWARM_HNSW_PAGE_ROOM / node;
	layout->per_page[SWARM_STREAM_UPPER] =
		uppers_per_page(upper) * SWARM_HNSW_FANOUT;
	layout->per_page[SWARM_STREAM_REFINE] =
		codec->refine_size > 0 ? SWARM_HNSW_PAGE_ROOM / refine : 0;

	layout->model_pages = (codec->dims * sizeof(float4) +
						   SWARM_HNSW_PAGE_ROOM - 1) / SWARM_HNSW_PAGE_ROOM;
	layout->first = SWARM_HNSW_MODEL_BLOCK + 2 * layout->model_pages;
}

/*
 * uppers_per_page: how many nodes of level 1 an upper page serves: with their
 * slots it has those of the higher levels that may fall among them.
 */
static uint32
uppers_per_page(uint32 slot_size)
{
	uint32		slots = SWARM_HNSW_PAGE_ROOM / slot_size;
	uint32		uppers = Min(slots, MAX_UPPERS);

	while (uppers > 1 &&
		   uppers + uppers / SWARM_HNSW_FANOUT + 2 + TOP_SLOTS > slots)
		uppers--;
	return uppers;
}

/*
 * mix: a 64-bit hash (the finalizer of splitmix64, Steele and others, 2014).
 */
static uint64
mix(uint64 x)
{
	x = (x ^ (x >> 30)) * UINT64CONST(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64CONST(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

/*
 * swarm_hnsw_level: the highest level of a node.
 *
 * It is a function of the id, so that the links of the upper levels have
 * computed addresses: of 16 consecutive ids one, drawn by a hash, has level 1,
 * of 16 of those one has level 2, and so on.
 */
int
swarm_hnsw_level(const SwarmHnswMeta *meta, SwarmNodeId id)
{
	int			level = 0;
	uint32		rest = id;

	while (level < SWARM_HNSW_MAX_LEVEL)
	{
		uint32		block = rest >> SWARM_HNSW_FANOUT_BITS;

		if ((rest & (SWARM_HNSW_FANOUT - 1)) !=
			swarm_hnsw_level_digit(meta, level, block))
			break;
		level++;
		rest = block;
	}
	return level;
}

/*
 * swarm_hnsw_level_digit: which one of the 16 nodes of a level in a block goes
 * up to the next level.
 */
uint32
swarm_hnsw_level_digit(const SwarmHnswMeta *meta, int level, uint32 block)
{
	return mix(meta->seed + level * UINT64CONST(0x9e3779b97f4a7c15) +
			   ((uint64) block << 8)) & (SWARM_HNSW_FANOUT - 1);
}

/*
 * swarm_hnsw_upper: the links of a node at level 1 or above, in the locked
 * upper page that covers it.
 */
SwarmUpper *
swarm_hnsw_upper(const SwarmHnswIndex *index, Page page, SwarmNodeId id,
				 int level)
{
	const SwarmHnswLayout *layout = &index->layout;
	uint32		per_page = layout->per_page[SWARM_STREAM_UPPER];
	uint32		uppers = per_page / SWARM_HNSW_FANOUT;
	SwarmNodeId first = id - id % per_page;
	uint32		place = (id >> (level * SWARM_HNSW_FANOUT_BITS)) -
	(first >> (level * SWARM_HNSW_FANOUT_BITS));
	uint32		slot;

	Assert(level >= 1 && level <= SWARM_HNSW_MAX_LEVEL);
	if (level == 1)
		slot = place;
	else if (level == 2)
		slot = uppers + place;
	else
		slot = uppers + uppers / SWARM_HNSW_FANOUT + 2 + 2 * (level - 3) + place;
	Assert((slot + 1) * layout->slot_size[SWARM_STREAM_UPPER] <=
		   SWARM_HNSW_PAGE_ROOM);
	return (SwarmUpper *) (PageGetContents(page) +
						   (Size) slot * layout->slot_size[SWARM_STREAM_UPPER]);
}

/*
 * swarm_hnsw_block: the block of a page of a stream.
 *
 * Pages follow each other in the order of the first id that they cover, of
 * equal ones the lower stream first; so the block is the number of pages of
 * all streams that come before.
 */
BlockNumber
swarm_hnsw_block(const SwarmHnswLayout *layout, SwarmHnswStream stream,
				 uint32 page)
{
	uint64		start = (uint64) page * layout->per_page[stream];
	uint64		block = layout->first + page;

	for (int other = 0; other < SWARM_HNSW_STREAMS; other++)
	{
		uint32		covers = layout->per_page[other];

		if (other == stream || covers == 0)
			continue;
		if (other < stream)
			block += start / covers + 1;
		else
			block += (start + covers - 1) / covers;
	}
	return block < MaxBlockNumber ? block : InvalidBlockNumber;
}

/*
 * swarm_hnsw_blocks: how many blocks an index with this many nodes has.
 */
BlockNumber
swarm_hnsw_blocks(const SwarmHnswLayout *layout, uint32 nodes)
{
	uint64		blocks = layout->first;

	for (int stream = 0; stream < SWARM_HNSW_STREAMS; stream++)
		if (layout->per_page[stream] > 0)
			blocks += ((uint64) nodes + layout->per_page[stream] - 1) /
				layout->per_page[stream];
	return blocks < MaxBlockNumber ? blocks : InvalidBlockNumber;
}

/*
 * swarm_hnsw_init_page: make an empty page of a kind.
 *
 * Pages of nodes and of refine codes, and the metapage, count as used as far
 * as swarm_hnsw_use_page says: what lies behind is not looked at when changes
 * are logged.  All of the others counts as used.
 */
void
swarm_hnsw_init_page(Page page, uint16 kind, uint32 number)
{
	SwarmHnswSpecial *special;

	PageInit(page, BLCKSZ, sizeof(SwarmHnswSpecial));
	if (kind == SWARM_STREAM_UPPER || kind == SWARM_PAGE_MODEL)
		((PageHeader) page)->pd_lower = ((PageHeader) page)->pd_upper;
	special = (SwarmHnswSpecial *) PageGetSpecialPointer(page);
	special->kind = kind;
	special->magic = SWARM_HNSW_PAGE_MAGIC;
	special->number = number;
}

/*
 * swarm_hnsw_use_page: the page is used up to, and without, a byte.
 */
void
swarm_hnsw_use_page(Page page, const void *end)
{
	PageHeader	header = (PageHeader) page;
	Size		used = (const char *) end - (const char *) page;

	Assert(used <= header->pd_upper);
	if (header->pd_lower < used)
		header->pd_lower = used;
}

/*
 * swarm_hnsw_page_is: is a page what its block should hold?
 */
bool
swarm_hnsw_page_is(Page page, uint16 kind, uint32 number)
{
	const SwarmHnswSpecial *special = (const SwarmHnswSpecial *)
	(page + BLCKSZ - MAXALIGN(sizeof(SwarmHnswSpecial)));

	return ((PageHeader) page)->pd_special ==
		BLCKSZ - MAXALIGN(sizeof(SwarmHnswSpecial)) &&
		special->magic == SWARM_HNSW_PAGE_MAGIC && special->kind == kind &&
		special->number == number;
}

/*
 * swarm_hnsw_check_page: raise XX002 unless the page is what was expected.
 */
void
swarm_hnsw_check_page(Relation rel, BlockNumber block, Page page, uint16 kind,
					  uint32 number)
{
	if (!swarm_hnsw_page_is(page, kind, number))
		swarm_hnsw_damaged(rel, "another page than expected at block", block);
}

/*
 * new_hint: make room for the hint of a page, and compute its block.
 */
static void
new_hint(SwarmHnswIndex *index, Relation rel, SwarmHnswStream stream,
		 uint32 page)
{
	BlockNumber block = swarm_hnsw_block(&index->layout, stream, page);
	SwarmPageHint *hints = index->hints[stream];
	uint32		old = index->hinted[stream];

	if (block >= index->blocks)
		index->blocks = RelationGetNumberOfBlocks(rel);
	if (block >= index->blocks)
		swarm_hnsw_damaged(rel, "a reference beyond its end, to block", block);

	if (page >= old)
	{
		uint32		room = Max(64, page + page / 4 + 1);

		hints = hints == NULL ?
			MemoryContextAllocHuge(index->context, room * sizeof(SwarmPageHint)) :
			repalloc_huge(hints, room * sizeof(SwarmPageHint));
		for (uint32 i = old; i < room; i++)
		{
			hints[i].block = InvalidBlockNumber;
			hints[i].buffer = InvalidBuffer;
		}
		index->hints[stream] = hints;
		index->hinted[stream] = room;
	}
	hints[page].block = block;
}

/*
 * swarm_hnsw_read: pin a page of a stream and lock it (0: do not).
 *
 * A backend remembers in which buffer it saw a page last, which saves the
 * look-up in the buffer table as long as the page is still there.
 */
Buffer
swarm_hnsw_read(SwarmHnswIndex *index, Relation rel, SwarmHnswStream stream,
				uint32 page, int lock)
{
	SwarmPageHint *hint;
	Buffer		buffer;

	if (unlikely(page >= index->hinted[stream] ||
				 index->hints[stream][page].block == InvalidBlockNumber))
		new_hint(index, rel, stream, page);
	hint = &index->hints[stream][page];

	if (likely(hint->buffer != InvalidBuffer) &&
		swarm_read_recent_buffer(rel, hint->block, hint->buffer))
	{
		/* It was checked when we saw it first. */
		buffer = hint->buffer;
		if (lock != 0)
			LockBuffer(buffer, lock);
		return buffer;
	}

	buffer = ReadBuffer(rel, hint->block);
	LockBuffer(buffer, lock != 0 ? lock : BUFFER_LOCK_SHARE);
	swarm_hnsw_check_page(rel, hint->block, BufferGetPage(buffer), stream, page);
	if (lock == 0)
		LockBuffer(buffer, BUFFER_LOCK_UNLOCK);
	hint->buffer = buffer;
	return buffer;
}
