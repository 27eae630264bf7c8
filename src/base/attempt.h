/*
 * attempt.h
 *	  Something that may fail without costing the transaction.
 */
#ifndef SWARM_BASE_ATTEMPT_H
#define SWARM_BASE_ATTEMPT_H

/*
 * Call what(arg) in a subtransaction, in `context`, where its error is copied
 * to; NULL if it has none.  Who is cancelled is: that error is raised again.
 * The caller's memory context is as before.
 */
extern ErrorData *swarm_attempt(void (*what) (void *arg), void *arg, MemoryContext context);

#endif							/* SWARM_BASE_ATTEMPT_H */
