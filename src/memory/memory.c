/*
 * memory.c
 *	  Set-up of module memory.
 */
#include "postgres.h"

#include "utils/guc.h"

#include "memory/memory_int.h"

static bool swarm_track_agents = true;

void
swarm_memory_init(void)
{
	DefineCustomBoolVariable("pg_swarm.track_agents",
							 "Keep what swarm.track_spawn() and its like are told.",
							 NULL, &swarm_track_agents, true,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	swarm_space_init();
	swarm_memory_shmem_init();
	swarm_memory_change_init();
	swarm_origin_init();
	swarm_memory_database_init();
}
