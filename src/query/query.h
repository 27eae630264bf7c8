/*
 * query.h
 *	  Query control: pause, resume, stop and steer what runs.
 *
 * src/query/README.md has the technique, the states and the invariants.
 */
#ifndef SWARM_QUERY_QUERY_H
#define SWARM_QUERY_QUERY_H

extern void swarm_query_init(void);

#endif							/* SWARM_QUERY_QUERY_H */
