/*
 * job.c
 *	  Set-up of module job.
 */
#include "postgres.h"

#include "job/job_int.h"

/*
 * swarm_job_init: called from _PG_init.
 */
void
swarm_job_init(void)
{
	swarm_job_state_init();
	swarm_job_shmem_init();
	swarm_job_history_init();
}
