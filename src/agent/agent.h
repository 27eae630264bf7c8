/*
 * agent.h
 *	  Agents: durable rows that work in the runners as their own role.
 *
 * src/agent/README.md has the idea and the table of states.
 */
#ifndef SWARM_AGENT_AGENT_H
#define SWARM_AGENT_AGENT_H

extern void swarm_agent_init(void);

#endif							/* SWARM_AGENT_AGENT_H */
