/*
 * shmem.c
 *	  Shared memory of the library: one request hook and one startup hook for
 *	  all modules.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"

#include "base/shmem.h"

static SwarmShmemPiece *pieces = NULL;
static bool attached = false;
static shmem_request_hook_type previous_request = NULL;
static shmem_startup_hook_type previous_startup = NULL;

static void request_pieces(void);
static void attach_pieces(void);

/*
 * swarm_shmem_register: remember a piece; takes effect at server start.
 */
void
swarm_shmem_register(SwarmShmemPiece *piece)
{
	piece->next = pieces;
	pieces = piece;
}

/*
 * swarm_shmem_init: install the hooks.  Does nothing unless the postmaster is
 * loading the library.
 */
void
swarm_shmem_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		return;
	previous_request = shmem_request_hook;
	shmem_request_hook = request_pieces;
	previous_startup = shmem_startup_hook;
	shmem_startup_hook = attach_pieces;
}

bool
swarm_preloaded(void)
{
	return attached;
}

void
swarm_require_preload(const char *what)
{
	if (attached)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s requires pg_swarm to be preloaded", what),
			 errhint("Add pg_swarm to shared_preload_libraries and restart the server.")));
}

static void
request_pieces(void)
{
	if (previous_request)
		previous_request();
	for (SwarmShmemPiece *p = pieces; p; p = p->next)
	{
		RequestAddinShmemSpace(MAXALIGN(p->size()));
		if (p->hashes)
			RequestAddinShmemSpace(MAXALIGN(p->hashes()));
		if (p->lock)
			RequestNamedLWLockTranche(p->name, 1);
	}
}

static void
attach_pieces(void)
{
	if (previous_startup)
		previous_startup();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	for (SwarmShmemPiece *p = pieces; p; p = p->next)
	{
		bool		found;
		Size		size = p->size();

		*p->pointer = ShmemInitStruct(p->name, size, &found);
		if (!found)
			memset(*p->pointer, 0, size);
		if (p->lock)
			*p->lock = &GetNamedLWLockTranche(p->name)->lock;
		if (p->init)
			p->init(*p->pointer, found);
	}
	LWLockRelease(AddinShmemInitLock);
	attached = true;
}
