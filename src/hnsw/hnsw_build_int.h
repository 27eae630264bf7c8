/*
 * hnsw_build_int.h
 *	  The graph in memory that CREATE INDEX makes: flat arrays, indexed by the
 *	  order in which rows came.
 */
#ifndef SWARM_HNSW_BUILD_INT_H
#define SWARM_HNSW_BUILD_INT_H

#include "hnsw/hnsw_int.h"

typedef struct SwarmGraphNode
{
	ItemPointerData tid;
	uint8		state;			/* linked, twin or odd */
	uint8		flags;
	SwarmNodeId next;			/* twins */
	float		step;			/* of the 8-bit levels */
	float		norm2;
	SwarmCodeFactors factors;
} SwarmGraphNode;

typedef struct SwarmGraph
{
	SwarmHnswIndex *index;
	MemoryContext context;
	Size		limit;			/* bytes */
	uint32		count;
	uint32		room;
	uint32		odd;
	SwarmNodeId entry;
	int			entry_level;
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

extern SwarmGraph *swarm_graph_new(SwarmHnswIndex *index, double rows);
extern void swarm_graph_free(SwarmGraph *graph);
extern bool swarm_graph_reserve(SwarmGraph *graph);
extern void swarm_graph_add(SwarmGraph *graph, ItemPointer tid,
							const SwarmHnswCode *code, const float *residual);
extern void swarm_graph_add_odd(SwarmGraph *graph, ItemPointer tid,
								uint8 flags);
extern int	swarm_graph_links(const SwarmGraph *graph, SwarmNodeId node,
							  const SwarmNodeId **links);
extern void swarm_graph_write(const SwarmGraph *graph, SwarmNodeId place,
							  const SwarmNodeId *ids, SwarmNodeId id,
							  Page node_page, Page upper_page,
							  Page refine_page);

#endif							/* SWARM_HNSW_BUILD_INT_H */
