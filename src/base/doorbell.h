/*
 * doorbell.h
 *	  Ring at commit: what a transaction tells other processes, told once it
 *	  is committed and visible, and never if it is rolled back.
 *
 * A savepoint that is rolled back takes its items with it.  A prepared
 * transaction rings nothing: whoever depends on a ring must also find the
 * work by looking (the job sweep does).
 */
#ifndef SWARM_BASE_DOORBELL_H
#define SWARM_BASE_DOORBELL_H

/*
 * Called after the transaction has become visible to others, with interrupts
 * held off.  It must not raise an error and must not allocate.
 */
typedef void (*SwarmRing) (void *item);

/*
 * Remember to call ring(item) when the current transaction commits.  The
 * item, `size` bytes, is copied.  Items ring in the order they were added.
 * `undo`, if not NULL, is called instead when the transaction or the
 * savepoint that added the item is rolled back, or when it is prepared.
 */
extern void swarm_doorbell_add(SwarmRing ring, SwarmRing undo,
							   const void *item, Size size);

/* True while undo callbacks run because the transaction is prepared. */
extern bool swarm_doorbell_preparing;

#endif							/* SWARM_BASE_DOORBELL_H */
