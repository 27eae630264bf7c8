/*
 * job.h
 *	  The job store: tables, the queue in shared memory, and running a job.
 *
 * src/job/README.md has the idea, the invariants and the order of writes.
 * Module worker drives what is declared here: its runners claim and run jobs,
 * its scheduler sweeps, ticks and keeps house.
 */
#ifndef SWARM_JOB_JOB_H
#define SWARM_JOB_JOB_H

#include "access/htup.h"
#include "datatype/timestamp.h"
#include "lib/ilist.h"
#include "lib/pairingheap.h"
#include "nodes/pg_list.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "utils/rel.h"

#define SWARM_PRIORITIES		4
#define SWARM_PRIORITY_CRITICAL 3
#define SWARM_BATCH_MAX			1000
#define SWARM_NO_SCAN			PG_INT64_MAX

/* Queue and kind that exist without a row in their tables. */
#define SWARM_QUEUE_DEFAULT		1
#define SWARM_KIND_SQL			1

/* ------------------------------------------------------------------------
 * States (job_state.c)
 * ------------------------------------------------------------------------ */

/* The order is that of the SQL enum swarm.job_state. */
typedef enum SwarmJobState
{
	SWARM_JOB_SCHEDULED,
	SWARM_JOB_BLOCKED,
	SWARM_JOB_READY,
	SWARM_JOB_RUNNING,
	SWARM_JOB_COMPLETED,
	SWARM_JOB_FAILED,
	SWARM_JOB_DEAD,
	SWARM_JOB_CANCELLED,
	SWARM_JOB_STATES
} SwarmJobState;

typedef enum SwarmJobEvent
{
	SWARM_EVENT_DUE,
	SWARM_EVENT_RELEASE,
	SWARM_EVENT_CLAIM,
	SWARM_EVENT_COMPLETE,
	SWARM_EVENT_FAIL,
	SWARM_EVENT_EXHAUST,
	SWARM_EVENT_REQUEUE,
	SWARM_EVENT_CANCEL,
	SWARM_EVENT_RETRY
} SwarmJobEvent;

typedef struct SwarmJobTransition
{
	SwarmJobState from;
	SwarmJobEvent event;
	SwarmJobState to;
	const char *why;
} SwarmJobTransition;

extern const SwarmJobTransition swarm_job_transitions[];
extern const int swarm_job_ntransitions;

extern const char *swarm_job_state_name(SwarmJobState state);
extern const char *swarm_job_event_name(SwarmJobEvent event);
extern bool swarm_job_state_is_terminal(SwarmJobState state);

/* State after `event` in `from`; raises 55000 if the table has no such edge. */
extern SwarmJobState swarm_job_state_next(SwarmJobState from, SwarmJobEvent event,
										  int64 id);

/*
 * When attempt number `attempts` (1 = the first) has failed: how long to wait
 * for the next, in microseconds.  Exponential, with jitter in [0.5, 1.5) and
 * the cap pg_swarm.job_backoff_max.
 */
extern int64 swarm_job_backoff_us(int attempts);

/* ------------------------------------------------------------------------
 * The queue in shared memory (job_shmem.c, job_limits.c, job_queue.c, job_claim.c)
 * ------------------------------------------------------------------------ */

/* What a job is to the queue: enough to order, limit and find it. */
typedef struct SwarmReady
{
	Oid			database;
	Oid			owner;
	int64		id;
	TimestampTz due;
	int32		queue;
	int32		kind;
	int16		attempts;		/* finished ones */
	int16		free_retries;	/* not counted: deadlocks and the like */
	uint8		priority;
	uint8		flags;
} SwarmReady;

#define SWARM_READY_EXTERNAL	0x01	/* kind without handler: for
										 * job_claim() */
#define SWARM_READY_BLOCKED		0x02	/* waits for its parents */
#define SWARM_READY_PARENT		0x04	/* others depend on it */
#define SWARM_READY_KEYED		0x08	/* has a unique key */
#define SWARM_READY_LOST		0x10	/* its worker died: count the attempt */
#define SWARM_READY_SUSPECT		0x20	/* ran when the server crashed */
#define SWARM_READY_NO_BATCH	0x40	/* run it in a transaction of its own */

typedef struct SwarmEntry SwarmEntry;	/* job_int.h */
typedef struct SwarmChore SwarmChore;	/* job_int.h */

/* A claimed job, as a runner sees it. */
typedef struct SwarmClaim
{
	SwarmReady	job;
	SwarmEntry *entry;
	bool		notify;			/* its queue publishes events */
	bool		group_commit;	/* its queue lets the scheduler flush */
} SwarmClaim;

typedef enum SwarmSlotState
{
	SWARM_SLOT_FREE,
	SWARM_SLOT_STARTING,
	SWARM_SLOT_IDLE,
	SWARM_SLOT_RUNNING
} SwarmSlotState;

#define SWARM_MESSAGE_SIZE		128

/*
 * A runner's place.  Identity is (server start, slot number, generation),
 * never a pid.  Guarded by swarm_job_lock; fraction and message are written
 * by the runner alone under the lock.
 */
typedef struct SwarmSlot
{
	SwarmSlotState state;
	uint32		generation;
	Oid			database;
	int			pid;
	Latch	   *latch;
	Oid			role;			/* whose work it does; InvalidOid = none yet */
	TimestampTz role_since;
	bool		lent;			/* to the scheduler, which keeps no role */
	bool		critical_only;	/* the extra runner beyond the maximum */
	bool		leaving;		/* makes room for one of another role */
	bool		stop;			/* asked to end */
	bool		idle_listed;
	dlist_node	idle_node;
	TimestampTz since;			/* of the state */

	/* what it runs */
	int64		job;			/* 0 = nothing */
	int			attempt;
	Oid			owner;
	int32		kind;
	int32		queue;
	TimestampTz started;
	bool		cancel;			/* cancel what it runs now */
	char		cancel_reason[SWARM_MESSAGE_SIZE];
	double		fraction;
	char		message[SWARM_MESSAGE_SIZE];
	int64		finished;		/* jobs since it started */
	SwarmChore *chore;			/* or the chore it runs, NULL = none */
	int			chore_kind;
	Oid			chore_object;
} SwarmSlot;

typedef enum SwarmShardState
{
	SWARM_SHARD_FREE,
	SWARM_SHARD_PROBING,		/* scheduler looks for the extension */
	SWARM_SHARD_LOADING,		/* extension found, first sweep under way */
	SWARM_SHARD_SERVING
} SwarmShardState;

#define SWARM_FINISHED_PARENTS	64
#define SWARM_EVENTS			256

typedef struct SwarmEvent
{
	int64		id;
	int32		queue;
	SwarmJobState state;
} SwarmEvent;

/*
 * One served database.  Guarded by swarm_job_lock.
 */
typedef struct SwarmShard
{
	Oid			database;
	SwarmShardState state;

	/* scheduler */
	int			scheduler_pid;	/* 0 = none */
	Latch	   *scheduler_latch;
	TimestampTz scheduler_since;
	uint32		scheduler_wakes;	/* counts calls of
									 * swarm_shard_wake_scheduler() */
	TimestampTz restart_at;		/* not before */
	int			restarts;		/* in a row, for the backoff */
	bool		starting;		/* registered, not yet attached */
	int			holds;			/* DROP DATABASE and the like under way */
	bool		stop;			/* not served any more: everybody out */
	bool		reprobe;		/* the scheduler shall look again: new process */
	bool		slots_exhausted;	/* a runner could not be started */
	bool		held;			/* copied or restored: claims wait for
								 * jobs_resume() */

	/* runners */
	dlist_head	idle;
	int			runners;		/* started or starting */
	int			failed_starts;	/* in a row, of runners that could not begin */
	TimestampTz start_after;	/* none is started before, then */
	int			extra;			/* the same, for critical jobs only */
	bool		want_runner;

	/* work */
	dlist_head	ring;			/* queues with jobs that may run */
	int64		scan_from;		/* lowest id that may be missing in memory */
	bool		sweeping;		/* ... apart from what is being read just now */
	int64		prepared_from;	/* lowest id a prepared transaction may hold */
	uint32		prepared_count; /* counts changes of it */
	TimestampTz disk_due;		/* earliest timer left on disk */
	bool		config_stale;	/* claims wait for the reload */
	uint32		config_changes; /* counts what made it so */
	bool		want_partition; /* a session needs today's partition */
	bool		left_behind;	/* a queue's jobs exceed its share of memory */
	bool		rebuild;		/* forget unclaimed entries and sweep again */
	bool		refilling;		/* that sweep is not over yet */
	int			queued;			/* entries in memory, unclaimed */
	int			critical;		/* of them ready and critical */
	int			suspects_running;
	int			leased;			/* entries that outside workers have */
	pairingheap timers;
	TimestampTz ticked;			/* when they were looked at last */
	int			ntimers;

	/* background work that is no job: job_chore.c */
	dlist_head	chores;			/* that wait for a runner */
	bool		chore_running;
	int			nchores;		/* waiting, running, postponed */
	int			chores_failing;

	/* ended in a commit that is not flushed yet; the scheduler flushes */
	dlist_head	committed;

	/* dependencies to look at: finished parents, newly blocked children */
	int			nrechecks;		/* > SWARM_FINISHED_PARENTS: look at all */
	int64		rechecks[SWARM_FINISHED_PARENTS];

	/* NOTIFY swarm_events */
	uint32		events_written;
	uint32		events_read;
	SwarmEvent	events[SWARM_EVENTS];

	/* counters since server start */
	int64		completed;
	int64		failed;
	int64		dead;
	int64		cancelled;
} SwarmShard;

extern LWLock *swarm_job_lock;
extern int	swarm_max_runners;
extern int	swarm_min_runners;
extern int	swarm_max_slots;
extern int	swarm_max_databases;

extern void swarm_job_init(void);

/* Shards and slots; caller holds swarm_job_lock except where noted. */
extern SwarmShard *swarm_shard_find(Oid database);
extern SwarmShard *swarm_shard_create(Oid database);	/* NULL when full */
extern void swarm_shard_free(SwarmShard *shard);
extern SwarmShard *swarm_shard_at(int i);	/* any state; 0..max-1 */
extern SwarmSlot *swarm_slot_at(int i);
extern int	swarm_slot_number(const SwarmSlot *slot);
extern void swarm_shard_wake_scheduler(SwarmShard *shard);
extern bool swarm_shard_has_ready(const SwarmShard *shard);
extern void swarm_shard_wake_all(SwarmShard *shard);
extern void swarm_shard_wake_longest_idle(SwarmShard *shard);
extern bool swarm_shard_makes_room(const SwarmShard *shard);
extern void swarm_shard_stop_runners(SwarmShard *shard);
extern void swarm_slot_cancel(SwarmSlot *slot, const char *reason);

/* The following take the lock themselves. */

/* Put a job into memory, or note that it is only on disk.  Does not throw. */
extern void swarm_queue_push(const SwarmReady *job);

/* Jobs from this id on may be missing in memory.  Does not throw. */
extern void swarm_queue_scan_from(Oid database, int64 id);

/* The same for one found by the sweep; false: memory is full, stop. */
extern bool swarm_queue_push_swept(SwarmShard *shard, const SwarmReady *job);

/*
 * Take up to `max` jobs of one queue, or put the slot on the idle list and
 * return 0, in one critical section, so that no wake-up is lost.
 */
extern int	swarm_queue_claim(SwarmShard *shard, SwarmSlot *slot,
							  SwarmClaim *claims, int max);

/* Announce which claimed job a slot works on now; clears an old cancel. */
extern void swarm_queue_running(SwarmSlot *slot, const SwarmClaim *claim);

/* A claimed job has reached a terminal state and the fact is committed. */
extern void swarm_queue_finished(SwarmShard *shard, const SwarmClaim *claim,
								 SwarmJobState state);

/*
 * The same for a commit that has not been flushed: the job's limits are free,
 * but it counts as finished only after swarm_queue_flush().
 */
extern void swarm_queue_committed(SwarmShard *shard, const SwarmClaim *claim,
								  SwarmJobState state, uint64 lsn);

/* Flush the commits that wait for it and finish their jobs; false: none. */
extern bool swarm_queue_flush(SwarmShard *shard);

/*
 * A claimed job goes back: due again at claim->job.due, flags from job.  True
 * if it was to be cancelled: the caller shall do it.
 */
extern bool swarm_queue_return(SwarmShard *shard, const SwarmClaim *claim);

/* A claimed job turned out not to exist (stale entry). */
extern void swarm_queue_discard(SwarmShard *shard, const SwarmClaim *claim);

/* All that a slot had claimed goes back; the one it ran counts as lost. */
extern void swarm_queue_slot_died(SwarmSlot *slot, bool counts);

/* Move what is due to ready; returns when to look again (DT_NOEND: never). */
extern TimestampTz swarm_queue_tick(SwarmShard *shard);

/* Forget all entries of a database that nobody has claimed; or truly all. */
extern void swarm_queue_forget(SwarmShard *shard, bool all);

/* Settings of queues and kinds, from the tables. */
typedef struct SwarmQueueConfig
{
	int32		id;
	int			max_running;	/* 0 = no limit */
	int			rate_limit;		/* 0 = no limit */
	int64		rate_period_us;
	int			batch;
	bool		paused;
	bool		notify;
	bool		group_commit;
	char		dependency_failure; /* c(ancel), r(un), w(ait) */
} SwarmQueueConfig;

typedef struct SwarmKindConfig
{
	int32		id;
	int			max_running;
	int64		rate_us;		/* least time between two starts */
} SwarmKindConfig;

extern void swarm_queue_configure(SwarmShard *shard,
								  const SwarmQueueConfig *queues, int nqueues,
								  const SwarmKindConfig *kinds, int nkinds,
								  uint32 changes);

/* ------------------------------------------------------------------------
 * The tables (job_store.c); all inside a transaction, as a superuser
 * ------------------------------------------------------------------------ */

/* A row of swarm._job, in the caller's memory context. */
typedef struct SwarmJobRow
{
	int64		id;
	int32		queue;
	int32		kind;
	Oid			owner;
	int			priority;
	int			max_attempts;
	int64		timeout_us;		/* 0 = none */
	TimestampTz run_at;
	TimestampTz enqueued_at;
	char	   *unique_key;		/* NULL = none */
	bool		blocked;		/* was enqueued with parents */
	Datum		args;			/* jsonb, detoasted */
	Datum		tags;			/* jsonb, detoasted */
	ItemPointerData tid;
	bool		own;			/* inserted by the current transaction */
	int			attempts;		/* set by the caller, not in the row */
} SwarmJobRow;

/* How a job ended. */
typedef struct SwarmJobEnd
{
	SwarmJobState state;
	Datum		result;			/* jsonb, or 0 for NULL */
	const char *error;			/* or NULL */
	TimestampTz started;		/* 0 = never */
	int			attempts;
} SwarmJobEnd;

extern Oid	swarm_job_relation(const char *name);
extern int64 swarm_job_next_id(void);
extern void swarm_job_insert(SwarmJobRow *row);
extern bool swarm_job_fetch(int64 id, SwarmJobRow *row);

/* Delete the live row and append to the history; false: somebody was faster. */
extern bool swarm_job_end(const SwarmJobRow *row, const SwarmJobEnd *end);

/* Nobody else ends the job before this transaction; false: somebody has. */
extern bool swarm_job_keep_live(const SwarmJobRow *row);

/*
 * Record a failed attempt: the job's next one is due at `run_at`; `crashed`:
 * it ran when the server crashed.  False: somebody has ended the job.
 */
extern bool swarm_job_record_attempt(const SwarmJobRow *row, int attempts, TimestampTz run_at,
									 const char *error, bool crashed);
extern char *swarm_job_queue_name(int32 id);
extern char *swarm_job_kind_name(int32 id);
extern void swarm_job_names_keep(MemoryContext context);
extern void swarm_job_names_changed(int by);
extern int32 swarm_job_find_queue(const char *name);	/* 0 = none */
extern int32 swarm_job_find_kind(const char *name, bool *external); /* 0 = none */

/* Name of the handler function of a kind, or NULL. */
extern char *swarm_job_handler(int32 kind);

/* ------------------------------------------------------------------------
 * Keeping house (job_sweep.c); the scheduler calls these in a transaction
 * ------------------------------------------------------------------------ */

/* Read the tables of queues and kinds into memory. */
extern void swarm_job_load_config(SwarmShard *shard);

/* Read a page of live jobs into memory; true: there is more to read. */
extern bool swarm_job_sweep(SwarmShard *shard);

/* Release or cancel the children of parents that ended. */
extern void swarm_job_resolve_dependencies(SwarmShard *shard);

/* NOTIFY swarm_events for what happened since the last call. */
extern void swarm_job_send_events(SwarmShard *shard);

/* job_history.c: is there a partition for what finishes now? */
extern bool swarm_job_history_ready(void);

/* Make the partitions of today and tomorrow. */
extern void swarm_job_history_prepare(void);

/* Drop the partitions that pg_swarm.job_history_keep says are too old. */
extern void swarm_job_history_drop_old(void);

/* Called with it: what a module keeps of jobs that ended before then may go. */
typedef void (*SwarmHistoryPrune) (TimestampTz before);
extern void swarm_job_history_register(SwarmHistoryPrune prune);

/* Open, for writing, the partition of that time; makes it if need be. */
extern Relation swarm_job_history_open(TimestampTz finished);

/* The job ran, as attempt `attempt`, when the server crashed. */
extern void swarm_job_count_crash(int64 id, int attempt);

/* A prepared transaction of this database ended; takes the lock. */
extern void swarm_job_prepared_ended(Oid database);

/* Forget about prepared transactions if there are none. */
extern void swarm_job_check_prepared(SwarmShard *shard);

/* At commit of the current transaction: the job has ended, tell memory. */
extern void swarm_job_ring_ended(int64 id, SwarmJobState state);

/* ------------------------------------------------------------------------
 * Running (job_run.c)
 * ------------------------------------------------------------------------ */

/*
 * Run claimed jobs of one queue to their end, in one transaction (several if
 * a handler is a procedure), and settle every claim.  Called outside of a
 * transaction; raises no error that a job caused.
 */
extern void swarm_job_run(SwarmShard *shard, SwarmSlot *slot,
						  SwarmClaim *claims, int n);

/*
 * job_role.c: this process works for `role` from now on, with its settings too
 * if it keeps the role to its end.  Inside a transaction.
 */
extern void swarm_role_take(Oid role, bool settings);

/* Called by the runner's init: the timeout that ends a handler. */
extern void swarm_job_run_init(void);

/*
 * Run a piece of a chore (job_chore.c), if there is one and the slot is on the
 * idle list, as it is after a claim of nothing; false if not.  Called outside
 * of a transaction.
 */
extern bool swarm_chore_turn(SwarmShard *shard, SwarmSlot *slot);

/* Is there one that a runner could take?  With the lock held. */
extern bool swarm_chore_ready(const SwarmShard *shard);

/*
 * Errands (job_errand.c): a runner does something for this session, which
 * waits; also in the middle of a transaction.  Needs shared memory.
 */
#define SWARM_ERRAND_ERROR	256

typedef struct SwarmErrandResult
{
	int			sqlstate;		/* 0 = well */
	int			pid;			/* of the process that did it */
	double		ms;				/* from post to end */
	char		error[SWARM_ERRAND_ERROR];
} SwarmErrandResult;

/*
 * What a runner does: called in a transaction, without a snapshot, as the
 * bootstrap superuser; errors become the result.
 */
extern void (*swarm_errand_hook) (Oid role, Oid object);

/* Its number, or -1 if there is no place; every post needs a drop. */
extern int	swarm_errand_post(Oid role, Oid object);

/* Has it ended?  If not, MyLatch will be set when it has. */
extern bool swarm_errand_done(int n, SwarmErrandResult *result);

/* Nobody waits for it any more; also after it is done.  Raises nothing. */
extern void swarm_errand_drop(int n);

/* How many wait for a runner of this database?  With the lock held. */
extern int	swarm_errands_waiting(const SwarmShard *shard);

/* For a runner: run one; false if there is none. */
extern bool swarm_errand_turn(SwarmShard *shard, SwarmSlot *slot);

/* For a handler: was the job it runs cancelled? */
extern bool swarm_job_cancelled(void);

/* Hook of module worker: a job starts (id > 0) or none runs (id = 0). */
extern void (*swarm_job_inflight_hook) (int64 id, int attempt);

#endif							/* SWARM_JOB_JOB_H */
