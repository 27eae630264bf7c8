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

#endif							/* SWARM_WORKER_WORKER_H */
