/*
 * policy.h
 *	  Retry policies: rows of swarm._retry_policy, which swarm.retry_policy_set()
 *	  writes, for those who ask remote servers.
 *
 * Agents' policies are read where agents are, in SQL; the table is one.
 */
#ifndef SWARM_BASE_POLICY_H
#define SWARM_BASE_POLICY_H

/* Zero: as the settings say. */
typedef struct SwarmPolicy
{
	double		first_wait_ms;
	double		factor;
	double		max_wait_ms;
	int			max_attempts;
	int			threshold;		/* failures in a row that open the breaker */
	double		cooldown_ms;	/* of the breaker */
	char	   *fallback;		/* or NULL */
} SwarmPolicy;

/*
 * The policy of the target "server:name", in CurrentMemoryContext; all zero if
 * there is none.
 */
extern void swarm_policy_of_server(const char *name, SwarmPolicy *policy);

#endif							/* SWARM_BASE_POLICY_H */
