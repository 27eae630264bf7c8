/*
 * hnsw_scan_int.h
 *	  A scan, as the files that make it up see it: hnsw_scan.c leads it through
 *	  its phases, hnsw_flat.c reads what no walk finds, hnsw_refine.c makes
 *	  distances better, hnsw_family.c returns equal rows.
 */
#ifndef SWARM_HNSW_SCAN_INT_H
#define SWARM_HNSW_SCAN_INT_H

#include "access/relscan.h"
#include "executor/tuptable.h"
#include "utils/hsearch.h"

#include "hnsw/hnsw_int.h"

typedef enum SwarmScanPhase
{
	PHASE_START,
	PHASE_GRAPH,
	PHASE_FLAT,
	PHASE_ODD,
	PHASE_NULLS,
	PHASE_END
} SwarmScanPhase;

typedef struct SwarmScan
{
	SwarmHnswIndex *index;		/* pinned; NULL before the first row */
	MemoryContext context;		/* of one rescan */
	MemoryContextCallback unpin;
	SwarmScanPhase phase;
	bool		any_order;		/* the query has no distance to anything */
	int			ef;
	SwarmHnswRerank rerank;
	SwarmHnswIterative iterative;
	int64		left;			/* rows that may still be returned */
	SwarmHnswQuery *query;
	SwarmHnswSearch *search;
	SwarmCandidates waiting;	/* min-heap by estimate */
	SwarmCandidates ready;		/* min-heap by better distance */
	float		slack;			/* what an estimate may be off */
	int			round;			/* rows to return before the walk goes on,
								 * once rest_taken */
	float		farthest;		/* of its best */
	bool		rest_taken;		/* what it found beside its best waits, too */
	SwarmIdSet	returned;
	float		last;			/* distance of the last row returned */

	/* rows that may move to another node while we read; see hnsw_family.c */
	HTAB	   *rows;			/* TIDs of rows returned; NULL: none yet */
	bool		by_row;			/* all of them, from the first one on */
	bool		unlinked;		/* a candidate was not in the graph yet */
	bool		astray;			/* the node of one does not have its row now */

	BlockNumber heap_blocks;	/* of the table, known to exist */

	/* the family whose rows are being returned */
	SwarmNodeId twin;			/* the next one to return; NONE: the end */
	bool		in_family;
	SwarmNodeId primary;
	uint16		primary_version;
	ItemPointerData primary_tid;
	uint32		steps;			/* twins looked at since the chain's begin */
	int			restarts;

	/* the flat phase */
	SwarmCandidate mark;		/* everything up to here was read */
	bool		marked;
	SwarmCandidates odd;		/* zero vectors, then nulls */
	int			odd_next;

	/* nulls that the index may not have: these are read from the table */
	bool		nulls_left_out;
	ItemPointerData *nulls;		/* NULL: not read yet */
	int64		null_count;
	int64		null_next;

	/* rerank by rows */
	const float *exact_query;
	int			exact_dims;
	IndexFetchTableData *fetch;
	TupleTableSlot *slot;
	AttrNumber	attribute;		/* of the table; 0: an expression, by these */
	IndexInfo  *info;
	EState	   *estate;

	SwarmHnswCounters total;	/* of the rescans before this one */
} SwarmScan;

/* hnsw_flat.c */
extern void swarm_scan_pending(SwarmScan *scan, Relation rel);
extern void swarm_scan_flat(IndexScanDesc desc);

/* hnsw_refine.c */
extern void swarm_scan_refine(IndexScanDesc desc, SwarmCandidate *batch, int n);
extern void swarm_scan_end_fetch(SwarmScan *scan);

/* hnsw_family.c */
extern bool swarm_scan_tid(SwarmScan *scan, Relation rel,
						   const SwarmCandidate *c, ItemPointer tid,
						   SwarmNodeId *twin);
extern void swarm_scan_begin_family(SwarmScan *scan, const SwarmCandidate *c,
									const ItemPointerData *tid);
extern bool swarm_scan_new_row(SwarmScan *scan, const ItemPointerData *tid);
extern bool swarm_scan_next_twin(SwarmScan *scan, Relation rel,
								 ItemPointer tid);

#endif							/* SWARM_HNSW_SCAN_INT_H */
