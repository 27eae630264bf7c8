/*
 * steer.h
 *	  What others want of the query this process works on: asked by code that
 *	  waits for the network, answered by the module that has the wishes.
 */
#ifndef SWARM_BASE_STEER_H
#define SWARM_BASE_STEER_H

typedef enum SwarmSteer
{
	SWARM_STEER_GO,				/* nothing is wanted */
	SWARM_STEER_HOLD,			/* end the turn, act on nothing */
	SWARM_STEER_DRAIN,			/* end it, and the tools already asked for */
	SWARM_STEER_NOW,			/* hang up; the turn is asked again on resume */
	SWARM_STEER_STOP			/* hang up; the query is terminated */
} SwarmSteer;

/*
 * NULL without preloading.  Takes no lock, allocates nothing, raises nothing;
 * may be called outside of a transaction.  Whoever wants something else sets
 * the latch of the process.
 */
extern SwarmSteer (*swarm_steer_hook) (int64 query);

#endif							/* SWARM_BASE_STEER_H */
