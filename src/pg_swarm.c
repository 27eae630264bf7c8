/*
 * pg_swarm.c
 *	  Loading of the library: every module's init function, in order.
 *
 * Nothing else happens here.  A module defines its settings, asks for shared
 * memory and registers its hooks in its own init function.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/guc.h"

#include "agent/agent.h"
#include "base/clock.h"
#include "base/export.h"
#include "base/fault.h"
#include "base/shmem.h"
#include "hnsw/hnsw.h"
#include "job/job.h"
#include "llm/llm.h"
#include "memory/memory.h"
#include "net/net.h"
#include "query/query.h"
#include "s3/s3.h"
#include "upload/upload.h"
#include "vector/vector.h"
#include "worker/worker.h"

PG_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

/*
 * _PG_init: called when the library is loaded, by the postmaster
 * (shared_preload_libraries) or by a backend at the first call.
 */
void
_PG_init(void)
{
	swarm_vector_init();
	swarm_hnsw_init();

	/*
	 * pg_upgrade copies databases: nothing of ours may run meanwhile. It does
	 * create indexes, with their options.
	 */
	if (IsBinaryUpgrade)
		return;

	swarm_clock_init();
	swarm_fault_init();
	swarm_job_init();
	swarm_worker_init();
	swarm_memory_init();
	swarm_agent_init();
	swarm_net_init();
	swarm_s3_init();
	swarm_upload_init();
	swarm_llm_init();
	swarm_query_init();
	swarm_shmem_init();

	MarkGUCPrefixReserved("pg_swarm");
}
