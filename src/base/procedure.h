/*
 * procedure.h
 *	  Between two transactions of a procedure: where its C code may wait.
 */
#ifndef SWARM_BASE_PROCEDURE_H
#define SWARM_BASE_PROCEDURE_H

/*
 * Commit, as COMMIT in a procedure does, but begin no new transaction yet; and
 * begin it.  Both return in that memory context.
 */
extern void swarm_procedure_leave(MemoryContext context);
extern void swarm_procedure_enter(MemoryContext context);

#endif							/* SWARM_BASE_PROCEDURE_H */
