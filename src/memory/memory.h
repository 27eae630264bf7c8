/*
 * memory.h
 *	  Expiring memory in namespaces: what other modules use of it.
 *
 * SQL: sql/modules/50_memory.sql; reference: docs/reference/memory.md.
 */
#ifndef SWARM_MEMORY_MEMORY_H
#define SWARM_MEMORY_MEMORY_H

#include "datatype/timestamp.h"

/*
 * swarm_memory_init: settings, shared memory and hooks; from _PG_init, after
 * the worker module, whose hook on the clock is kept.
 */
extern void swarm_memory_init(void);

/*
 * swarm_memory_sweep_due: when this database's entries are to be swept next;
 * DT_NOEND if nothing expires.  No error, no query.
 */
extern TimestampTz swarm_memory_sweep_due(void);

/*
 * swarm_memory_sweep_step: sweep one batch and find out when the next is due.
 * Inside a transaction of its own, as a superuser.
 */
extern void swarm_memory_sweep_step(void);

/*
 * swarm_memory_origins_asked: were keys asked for that their namespace's origin
 * may have?  Then swarm_memory_origins_step(), in a transaction, as a
 * superuser, makes jobs of it.
 */
extern bool swarm_memory_origins_asked(void);
extern void swarm_memory_origins_step(void);

/*
 * Called when keys were asked for, or after a commit that made something expire earlier
 * than the next sweep; set by the module that has a scheduler.  Raises no error.
 */
extern void (*swarm_memory_due_hook) (void);

#endif							/* SWARM_MEMORY_MEMORY_H */
