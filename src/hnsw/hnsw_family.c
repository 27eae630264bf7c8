/*
 * hnsw_family.c
 *	  The rows of a node: its own, and those of its twins.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "hnsw/hnsw_scan_int.h"

/* How often a chain of equal rows may change under a scan. */
#define MAX_RESTARTS	1000

/*
 * swarm_scan_tid: the row of a candidate, and its first twin; false when the node
 * has been freed since it was scored.
 */
bool
swarm_scan_tid(SwarmScan *scan, Relation rel, const SwarmCandidate *c, ItemPointer tid,
			   SwarmNodeId *twin)
{
	Buffer		buffer = swarm_hnsw_read_node(scan->index, rel, c->id,
											  BUFFER_LOCK_SHARE);
	const SwarmNode *node = swarm_hnsw_node(scan->index, BufferGetPage(buffer),
											c->id);
	bool		valid = node->version == c->version &&
	node->state != SWARM_NODE_FREE && ItemPointerIsValid(&node->tid);

	*twin = SWARM_NODE_NONE;
	if (node->version == c->version)
	{
		*tid = node->tid;
		if (node->state == SWARM_NODE_LINKED)
			*twin = node->next;
	}
	UnlockReleaseBuffer(buffer);
	if (!valid && (c->state == SWARM_NODE_PENDING || c->state == SWARM_NODE_JOINING))
		scan->astray = true;
	return valid;
}

/*
 * swarm_scan_begin_family: the row of a node was returned, those of its twins come next.
 */
void
swarm_scan_begin_family(SwarmScan *scan, const SwarmCandidate *c, const ItemPointerData *tid)
{
	scan->in_family = true;
	scan->primary = c->id;
	scan->primary_version = c->version;
	scan->primary_tid = *tid;
	scan->steps = 0;
	scan->restarts = 0;
}

/*
 * swarm_scan_new_row: was the row not returned before?
 *
 * Nodes tell that, by their ids, as long as a row stays in its node.  It leaves
 * it when it is a twin and vacuum lets it take the place of a dead row in the
 * node of the family; we may have returned either node before.  The rows of a
 * family are therefore remembered while it is read, and all rows when the scan
 * began with some that were not in the graph: those may become twins of nodes
 * that were returned.  What else becomes a twin meanwhile is too new for us.
 */
bool
swarm_scan_new_row(SwarmScan *scan, const ItemPointerData *tid)
{
	bool		found;

	if (!scan->by_row && !scan->in_family)
		return true;
	if (scan->rows == NULL)
	{
		HASHCTL		ctl = {
			.keysize = sizeof(ItemPointerData),
			.entrysize = sizeof(ItemPointerData),
			.hcxt = scan->context
		};

		scan->rows = hash_create("qhnsw rows returned", 256, &ctl,
								 HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	hash_search(scan->rows, tid, HASH_ENTER, &found);
	return !found;
}

/*
 * swarm_scan_next_twin: one step along the chain of a family; true when *tid is a row to
 * return.  scan->in_family becomes false at its end.
 *
 * Vacuum may take twins out of the chain meanwhile, and move the row of one
 * into the primary.  So a step that finds no twin of this primary goes back to
 * the primary, and so does the end of the chain.
 */
bool
swarm_scan_next_twin(SwarmScan *scan, Relation rel, ItemPointer tid)
{
	SwarmNodeId id = scan->twin;
	Buffer		buffer;
	const SwarmNode *node;
	bool		lost = false;

	CHECK_FOR_INTERRUPTS();
	if (scan->steps++ > scan->index->meta.nodes)
		swarm_hnsw_damaged(rel, "chain of equal rows at node", id);
	if (id != SWARM_NODE_NONE)
	{
		bool		valid;

		buffer = swarm_hnsw_read_node(scan->index, rel, id, BUFFER_LOCK_SHARE);
		node = swarm_hnsw_node(scan->index, BufferGetPage(buffer), id);
		valid = node->state == SWARM_NODE_TWIN &&
			swarm_hnsw_links(scan->index, (SwarmNode *) node)[0] == scan->primary;
		lost = !valid;
		*tid = node->tid;
		if (valid)
			scan->twin = node->next;
		UnlockReleaseBuffer(buffer);
		if (valid)
			return swarm_idset_add(&scan->returned, id) &&
				ItemPointerIsValid(tid) && swarm_scan_new_row(scan, tid);
	}

	buffer = swarm_hnsw_read_node(scan->index, rel, scan->primary,
								  BUFFER_LOCK_SHARE);
	node = swarm_hnsw_node(scan->index, BufferGetPage(buffer), scan->primary);
	scan->twin = SWARM_NODE_NONE;
	*tid = node->tid;
	if (node->version != scan->primary_version ||
		node->state != SWARM_NODE_LINKED)
	{
		/* All rows of the family are dead. */
		scan->in_family = false;
		lost = false;
	}
	else if (lost)
	{
		if (scan->restarts++ > MAX_RESTARTS)
			swarm_hnsw_damaged(rel, "chain of equal rows at node", id);
		scan->twin = node->next;
		scan->steps = 0;
	}
	else if (ItemPointerEquals(tid, &scan->primary_tid))
		scan->in_family = false;
	UnlockReleaseBuffer(buffer);
	if (!scan->in_family || ItemPointerEquals(tid, &scan->primary_tid))
		return false;

	/* The row of a twin moved in: was it returned there? */
	scan->primary_tid = *tid;
	return ItemPointerIsValid(tid) && swarm_scan_new_row(scan, tid);
}
