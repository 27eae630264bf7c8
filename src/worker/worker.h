/*
 * worker.h
 *	  Processes of the extension: launcher, schedulers, runners.
 *
 * src/worker/README.md tells who starts and wakes whom.
 */
#ifndef SWARM_WORKER_WORKER_H
#define SWARM_WORKER_WORKER_H

#include "job/job.h"

extern void swarm_worker_init(void);

/*
 * A step of every database's scheduler that a module above registers at init
 * (static).  `due` says when it is to run, by swarm_now(); 0 is now, DT_NOEND
 * never; it is asked at each turn, outside of transactions.  `run` is called
 * in a transaction; an error is reported, and the step comes again.
 */
typedef struct SwarmStep
{
	const char *name;
	TimestampTz (*due) (void);
	void		(*run) (void);
	struct SwarmStep *next;
} SwarmStep;

extern void swarm_step_register(SwarmStep *step);

#endif							/* SWARM_WORKER_WORKER_H */
