/*
 * hnsw_build_int.h
 *	  The graph in memory that CREATE INDEX makes: flat arrays, indexed by the
 *	  order in which rows came.
 */
#ifndef SWARM_HNSW_BUILD_INT_H
#define SWARM_HNSW_BUILD_INT_H

#include "access/tableam.h"
#include "port/atomics.h"
#include "storage/spin.h"

#include "hnsw/hnsw_int.h"

typedef struct SwarmGraphNode
{
	slock_t		lock;			/* of its links at all levels, and of next */
	uint8		state;			/* linked, twin or odd */
	uint8		flags;
	ItemPointerData tid;
	SwarmNodeId next;			/* twins */
	float		step;			/* of the 8-bit levels */
	float		norm2;
	SwarmCodeFactors factors;
} SwarmGraphNode;

/* What all processes of a build share, ahead of the arrays. */
typedef struct SwarmGraphShared
{
	pg_atomic_uint32 count;		/* nodes; more than room when it is full */
	pg_atomic_uint32 odd;
	uint32		room;
	slock_t		lock;			/* of the rest */
	SwarmNodeId entry;
	int			entry_level;
} SwarmGraphShared;

/*
 * The graph as one process sees it.  The arrays have a fixed size, in private
 * or in dynamic shared memory.
 */
typedef struct SwarmGraph
{
	SwarmHnswIndex *index;
	MemoryContext context;		/* of what is private */
	SwarmGraphShared *shared;
	int			m;
	SwarmGraphNode *nodes;
	int8	   *levels;			/* dims a node */
	uint8	   *codes;			/* traversal and refine code */
	Size		code_size;
	SwarmNodeId *links;			/* level 0: 1 + 2 m a node, first the degree */
	SwarmNodeId *upper[SWARM_HNSW_MAX_LEVEL + 1];	/* 1 + m a node of that
													 * level */
	uint32	   *seen;			/* turn in which a node was visited */
	uint32		turn;
	SwarmCandidates near;
	SwarmCandidates best;
	SwarmCandidates starts;
} SwarmGraph;

extern uint32 swarm_graph_room(const SwarmHnswIndex *index, double rows);
extern Size swarm_graph_size(const SwarmHnswIndex *index, uint32 room);
extern void swarm_graph_init(SwarmGraphShared *shared, uint32 room);
extern SwarmGraph *swarm_graph_attach(SwarmHnswIndex *index,
									  SwarmGraphShared *shared);
extern uint32 swarm_graph_count(const SwarmGraph *graph);
extern bool swarm_graph_add(SwarmGraph *graph, ItemPointer tid,
							const SwarmHnswCode *code, const float *residual);
extern bool swarm_graph_add_odd(SwarmGraph *graph, ItemPointer tid,
								uint8 flags);
extern int	swarm_graph_links(const SwarmGraph *graph, SwarmNodeId node,
							  const SwarmNodeId **links);
extern void swarm_graph_write(const SwarmGraph *graph, SwarmNodeId place,
							  const SwarmNodeId *ids, SwarmNodeId id,
							  Page node_page, Page upper_page,
							  Page refine_page);

/* hnsw_place.c */
extern SwarmNodeId *swarm_graph_place(const SwarmGraph *graph,
									  const SwarmHnswMeta *meta,
									  uint32 per_page);

/* A build, as one process sees it. */
typedef struct SwarmBuild
{
	Relation	heap;
	Relation	rel;
	IndexInfo  *info;
	SwarmHnswIndex *index;
	SwarmGraph *graph;
	SwarmHnswCode *code;
	MemoryContext context;		/* reset for every row */
	double		heap_tuples;
	double		index_tuples;
	bool		full;			/* a row found no place in the graph */
	bool		progress;		/* report it */
} SwarmBuild;

extern void swarm_hnsw_build_scan(SwarmBuild *build, SwarmGraphShared *shared,
								  TableScanDesc scan);

/* hnsw_parallel.c */
typedef struct SwarmParallel SwarmParallel;

extern SwarmParallel *swarm_hnsw_parallel_begin(SwarmBuild *build,
												uint32 room);
extern void swarm_hnsw_parallel_end(SwarmParallel *parallel);

#endif							/* SWARM_HNSW_BUILD_INT_H */
