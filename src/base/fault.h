/*
 * fault.h
 *	  Named points where a test makes the code fail.
 *
 * SWARM_FAULT("job.commit") costs one read of shared memory when no fault is
 * armed.  A superuser arms one with swarm._fault_arm(name, action, skip,
 * times).  Actions:
 *
 *   error   ereport(ERROR), SQLSTATE XX000
 *   fatal   ereport(FATAL): the process ends, its exit callbacks run
 *   kill    SIGKILL to the process itself: the server goes through a crash
 *   wait    until the fault is disarmed; stays cancellable
 */
#ifndef SWARM_BASE_FAULT_H
#define SWARM_BASE_FAULT_H

#include "port/atomics.h"

extern pg_atomic_uint32 *swarm_fault_armed;

extern void swarm_fault_init(void);
extern void swarm_fault_reached(const char *point);

#define SWARM_FAULT(point) \
	do { \
		if (swarm_fault_armed != NULL && \
			unlikely(pg_atomic_read_u32(swarm_fault_armed) != 0)) \
			swarm_fault_reached(point); \
	} while (0)

#endif							/* SWARM_BASE_FAULT_H */
