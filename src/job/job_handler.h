/*
 * job_handler.h
 *	  Calling the code of a job: a function, a procedure, or the sql kind.
 *
 * Private to module job.  All run in a transaction, as the job's owner, and
 * raise whatever the handler raises.
 */
#ifndef SWARM_JOB_JOB_HANDLER_H
#define SWARM_JOB_JOB_HANDLER_H

#include "job/job.h"

/* Is the handler of the row's kind a procedure? */
extern bool swarm_handler_is_procedure(const SwarmJobRow *row);

/* Call a function, or run the statement of the sql kind; jsonb or 0 (NULL). */
extern Datum swarm_handler_call(const SwarmJobRow *row);

/* Call a procedure; it may commit. */
extern void swarm_handler_call_procedure(const SwarmJobRow *row);

/*
 * Look up the handler `name` with the argument swarm.job; InvalidOid if there
 * is none.
 */
extern Oid	swarm_handler_lookup(List *name);

#endif							/* SWARM_JOB_JOB_HANDLER_H */
