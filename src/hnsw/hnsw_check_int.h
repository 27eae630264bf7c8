/*
 * hnsw_check_int.h
 *	  A check, as the files that make it up see it: hnsw_check.c reads the
 *	  pages, hnsw_check_graph.c follows lists, links and chains, and
 *	  hnsw_check_rows.c compares the index with its table.
 */
#ifndef SWARM_HNSW_CHECK_INT_H
#define SWARM_HNSW_CHECK_INT_H

#include "utils/snapshot.h"
#include "utils/tuplesort.h"

#include "hnsw/hnsw_int.h"

/* What is kept of a node. */
#define MARK_STATE		0x07
#define MARK_UNKNOWN	0x07	/* damaged: nothing more is said about it */
#define MARK_LISTED		0x08	/* seen in its list or chain */
#define MARK_REACHED	0x10	/* some way leads there */
#define MARK_EXPANDED	0x20	/* and its links were followed */

#define IN_GRAPH \
	(1u << SWARM_NODE_LINKED | 1u << SWARM_NODE_DEAD | \
	 1u << SWARM_NODE_PENDING | 1u << SWARM_NODE_JOINING | 1u << MARK_UNKNOWN)

#define HAS_ROW \
	(1u << SWARM_NODE_LINKED | 1u << SWARM_NODE_TWIN | \
	 1u << SWARM_NODE_PENDING | 1u << SWARM_NODE_JOINING)

#define HAS_CODE	(HAS_ROW | 1u << SWARM_NODE_DEAD)

typedef struct SwarmCheck
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
} SwarmCheck;

/* Where a row of the comparison comes from. */
typedef enum RowSource
{
	FROM_INDEX,
	FROM_TABLE
} RowSource;

/* The state of a node as it was read, and whether it is one of a mask's. */
static inline unsigned int
state_of(const SwarmCheck *c, SwarmNodeId id)
{
	return c->marks[id] & MARK_STATE;
}

static inline bool
in_states(const SwarmCheck *c, SwarmNodeId id, uint32 states)
{
	return (1u << state_of(c, id)) & states;
}

/* hnsw_check.c */
extern void swarm_check_problem(SwarmCheck *c, SwarmNodeId node,
								const char *what, const char *detail,...)
			pg_attribute_printf(4, 5);
extern Buffer swarm_check_page(SwarmCheck *c, SwarmHnswStream stream,
							   uint32 page, bool known);
extern Buffer swarm_check_node_page(SwarmCheck *c, SwarmNodeId id);

/* hnsw_check_graph.c */
extern void swarm_check_lists(SwarmCheck *c);
extern void swarm_check_links(SwarmCheck *c);
extern void swarm_check_upper(SwarmCheck *c);
extern void swarm_check_reach(SwarmCheck *c);

/* hnsw_check_rows.c */
extern void swarm_check_begin_rows(SwarmCheck *c);
extern void swarm_check_add_row(SwarmCheck *c, const ItemPointerData *tid,
								RowSource source, SwarmNodeId node,
								unsigned int state);
extern void swarm_check_rows(SwarmCheck *c, Snapshot snapshot);

#endif							/* SWARM_HNSW_CHECK_INT_H */
