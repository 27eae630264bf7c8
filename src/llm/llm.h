/*
 * llm.h
 *	  Language models: servers, conversations, tools, budgets.
 */
#ifndef SWARM_LLM_LLM_H
#define SWARM_LLM_LLM_H

/* Settings; called from _PG_init. */
extern void swarm_llm_init(void);

#endif							/* SWARM_LLM_LLM_H */
