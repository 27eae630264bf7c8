/*
 * agent_int.h
 *	  Private parts of module agent.
 */
#ifndef SWARM_AGENT_AGENT_INT_H
#define SWARM_AGENT_AGENT_INT_H

#include "datatype/timestamp.h"
#include "fmgr.h"
#include "portability/instr_time.h"
#include "utils/resowner.h"

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

/* A function that is called for somebody, perhaps more than once. */
typedef struct SwarmCallee
{
	Oid			role;			/* whose rights it has */
	Oid			proc;
	int64		timeout_us;		/* 0: no limit */
	FmgrInfo	flinfo;			/* fn_oid InvalidOid: not called yet */
	MemoryContext context;		/* of flinfo */
} SwarmCallee;

/* Calls that share a subtransaction: what was before it. */
typedef struct SwarmCalls
{
	MemoryContext context;		/* results go there */
	ResourceOwner owner;
	TimestampTz outer;			/* when the call around these must end */
	bool		outer_timed_out;
	TimestampTz finish;			/* when the last one must */
	int64		timeout_us;		/* that it had */
	instr_time	start;			/* of it */
} SwarmCalls;

/*
 * The same for calls one after the other in one subtransaction, as long as all
 * go well: _begin, then, in PG_TRY, _next for each and release of the
 * subtransaction, in PG_CATCH _failed, which rolls all of them back and returns
 * the error; then _end with that or NULL, which raises a cancellation by somebody
 * else, or fills in `call` for the one that failed.
 */
extern void swarm_agent_calls_begin(SwarmCalls *calls);
extern void swarm_agent_calls_next(SwarmCalls *calls, SwarmCallee *callee, Datum task,
								   Datum agent, bool read_only, SwarmCall *call);
extern ErrorData *swarm_agent_calls_failed(SwarmCalls *calls);
extern void swarm_agent_calls_end(SwarmCalls *calls, ErrorData *edata, SwarmCall *call);

/* Error if `role` may not call it. */
extern void swarm_agent_check_call(Oid role, Oid proc);

extern void swarm_agent_hook_init(void);
extern void swarm_agent_start_init(void);
extern void swarm_agent_wait_init(void);

#endif							/* SWARM_AGENT_AGENT_INT_H */
