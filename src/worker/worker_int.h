/*
 * worker_int.h
 *	  Private parts of module worker.
 */
#ifndef SWARM_WORKER_WORKER_INT_H
#define SWARM_WORKER_WORKER_INT_H

#include "postmaster/bgworker.h"
#include "storage/latch.h"

#include "worker/worker.h"

#define PROBE_REQUESTS	16

/* A job that ran when the server crashed. */
typedef struct SwarmSuspect
{
	Oid			database;		/* InvalidOid = none */
	int			attempt;
	int64		id;
} SwarmSuspect;

/* Guarded by swarm_job_lock, as shards and slots are. */
typedef struct SwarmWorkerShared
{
	int			launcher_pid;
	Latch	   *launcher_latch;
	TimestampTz launcher_since;
	bool		inflight_read;	/* the file of the last run has been read */
	bool		probe_all;		/* look at every database */
	int			nprobes;
	Oid			probes[PROBE_REQUESTS];
	bool		schedulers_exhausted;	/* no worker slot for a scheduler */
	int			unserved;		/* databases without a shard: too many */
	TimestampTz last_exhausted_warning;
	SwarmSuspect suspects[FLEXIBLE_ARRAY_MEMBER];	/* swarm_max_slots */
} SwarmWorkerShared;

/* What a scheduler or runner is told by bgw_extra. */
typedef struct SwarmWorkerArg
{
	int			shard;
	int			slot;
	uint32		generation;
	Oid			database;
} SwarmWorkerArg;

extern SwarmWorkerShared *swarm_worker_shared;
extern int	swarm_runner_idle_timeout_ms;
extern bool swarm_databases_changed;	/* pg_swarm.databases was set */

/* worker.c */
extern void swarm_launcher_wake(void);
extern void swarm_launcher_probe(Oid database); /* with the lock held */
extern bool swarm_worker_register(const char *type, const char *function,
								  const SwarmWorkerArg *arg,
								  BackgroundWorkerHandle **handle);
extern SwarmWorkerArg swarm_worker_arg(void);
extern void swarm_worker_signals(void);
extern bool swarm_server_stopping(void);
extern void swarm_worker_settings(void);
extern void swarm_worker_sleep(long ms, uint32 wait_event);
extern bool swarm_database_wanted(const char *name);

/* worker_inflight.c */
extern void swarm_inflight_read(void);
extern void swarm_inflight_open(int slot);
extern void swarm_inflight_note(int64 id, int attempt);

/* worker_hooks.c */
extern void swarm_worker_hooks_init(void);

/* worker_runner.c: run what there is, in this process, with this slot. */
extern bool swarm_runner_turn(SwarmShard *shard, SwarmSlot *slot,
							  MemoryContext context);

extern PGDLLEXPORT void swarm_launcher_main(Datum arg);
extern PGDLLEXPORT void swarm_scheduler_main(Datum arg);
extern PGDLLEXPORT void swarm_runner_main(Datum arg);

#endif							/* SWARM_WORKER_WORKER_INT_H */
