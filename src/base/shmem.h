/*
 * shmem.h
 *	  Shared memory of the library: each module names its piece once.
 *
 * A module calls swarm_shmem_register() in its init function.  The pieces
 * exist only when the library is in shared_preload_libraries; otherwise the
 * module's pointer stays NULL, and swarm_require_preload() says so to users.
 */
#ifndef SWARM_BASE_SHMEM_H
#define SWARM_BASE_SHMEM_H

#include "storage/lwlock.h"

/*
 * One piece of shared memory.
 *
 * name		of the segment and of its lock's tranche
 * size		called once, after all settings are read; bytes
 * hashes	bytes that init() takes itself through ShmemInitHash(); may be NULL
 * init		called once with zeroed memory and, later, by nobody; may be NULL
 * pointer	where the address goes
 * lock		where the address of the piece's LWLock goes; may be NULL
 *
 * The struct must live as long as the process (static).
 */
typedef struct SwarmShmemPiece
{
	const char *name;
	Size		(*size) (void);
	Size		(*hashes) (void);
	void		(*init) (void *memory, bool found);
	void	  **pointer;
	LWLock	  **lock;
	struct SwarmShmemPiece *next;
} SwarmShmemPiece;

extern void swarm_shmem_register(SwarmShmemPiece *piece);
extern void swarm_shmem_init(void);

/* True when the library was preloaded and its shared memory is attached. */
extern bool swarm_preloaded(void);

/*
 * Raise 55000 with the hint to preload the library.  `what` is what needs
 * it, as the subject of a sentence: "claiming a job".
 */
extern void swarm_require_preload(const char *what);

#endif							/* SWARM_BASE_SHMEM_H */
