/*
 * hnsw_prefetch.h
 *	  Bringing a slot nearer before its page is read.
 */
#ifndef SWARM_HNSW_PREFETCH_H
#define SWARM_HNSW_PREFETCH_H

#include "storage/buf_internals.h"

#include "hnsw/hnsw_int.h"

/* Bytes that one prefetch brings. */
#define SWARM_CACHE_LINE	64

/*
 * swarm_hnsw_prefetch: ask for the bytes [from, end) of a slot, and with `pin`
 * for what pinning its page writes to, if we know where it was.  The buffer
 * may hold another page by now, which costs nothing but the prefetch.
 *
 * Slots are not aligned, so the last bytes are often in one line more than
 * there are multiples of a line; reading a line that was not asked for costs
 * several times as much as asking for it.
 *
 * Always inline: gcc takes a function that only prefetches for one without
 * effects, and leaves its calls out.
 */
static pg_attribute_always_inline void
swarm_hnsw_prefetch(const SwarmHnswIndex *index, SwarmHnswStream stream,
					SwarmNodeId id, Size from, Size end, bool pin)
{
	uint32		per_page = index->layout.per_page[stream];
	uint32		page = id / per_page;
	const char *slot;
	const char *line;
	Buffer		buffer;

	if (page >= index->hinted[stream])
		return;
	buffer = index->hints[stream][page].buffer;
	if (buffer <= 0)
		return;
	if (pin)
		__builtin_prefetch(GetBufferDescriptor(buffer - 1), 1);
	slot = (const char *) BufferGetBlock(buffer) +
		MAXALIGN(SizeOfPageHeaderData) +
		(Size) (id - page * per_page) * index->layout.slot_size[stream];
	line = (const char *) TYPEALIGN_DOWN(SWARM_CACHE_LINE, slot + from);
	for (; line < slot + end; line += SWARM_CACHE_LINE)
		__builtin_prefetch(line);
}

#endif							/* SWARM_HNSW_PREFETCH_H */
