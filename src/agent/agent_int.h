/*
 * agent_int.h
 *	  Private parts of module agent.
 */
#ifndef SWARM_AGENT_AGENT_INT_H
#define SWARM_AGENT_AGENT_INT_H

#include "datatype/timestamp.h"

#include "agent/agent.h"

/* Outcome of a function that was called for somebody; error NULL: it went well. */
typedef struct SwarmCall
{
	Datum		result;			/* jsonb in the caller's context, or 0: NULL */
	char	   *error;			/* message */
	char	   *sqlstate;		/* five characters */
	bool		timed_out;
	int64		us;				/* how long it took */
} SwarmCall;

/*
 * Call `proc` (agent_call.c) with the rights of `role`, in a subtransaction
 * that is rolled back on an error, for at most `timeout_us` (0: no limit);
 * `read_only`: it may write nothing.
 * The arguments are jsonb and, if it takes two, swarm.agent.  A cancellation
 * by somebody else is raised, with the subtransaction rolled back.
 */
extern void swarm_agent_call(Oid role, Oid proc, Datum task, Datum agent,
							 int64 timeout_us, bool read_only, SwarmCall *call);

/* Error if `role` may not call it. */
extern void swarm_agent_check_call(Oid role, Oid proc);

extern void swarm_agent_hook_init(void);
extern void swarm_agent_start_init(void);
extern void swarm_agent_wait_init(void);

#endif							/* SWARM_AGENT_AGENT_INT_H */
