/*
 * job_int.h
 *	  Private parts of module job: the shared structures behind the queue.
 */
#ifndef SWARM_JOB_JOB_INT_H
#define SWARM_JOB_JOB_INT_H

#include "port/atomics.h"
#include "utils/hsearch.h"

#include "base/clock.h"
#include "base/hook.h"
#include "job/job.h"

#define WAIT_BUCKETS	64

/* A token bucket; never lets more than its limit start in one period. */
typedef struct SwarmBucket
{
	double		capacity;		/* 0 = no limit */
	double		per_us;
	double		tokens;
	TimestampTz at;				/* of `tokens` */
} SwarmBucket;

/* What a timer of a shard is for. */
typedef enum SwarmTimerKind
{
	TIMER_JOB,
	TIMER_QUEUE,
	TIMER_KIND,
	TIMER_CHORE
} SwarmTimerKind;

typedef struct SwarmTimer
{
	pairingheap_node node;
	TimestampTz due;
	SwarmTimerKind kind;
	bool		armed;
} SwarmTimer;

typedef struct SwarmIdKey
{
	Oid			database;
	int32		id;
} SwarmIdKey;

/* A job kind in memory: limits across all queues of the database. */
typedef struct SwarmKind
{
	SwarmIdKey	key;
	int			max_running;
	int			running;
	int			entries;		/* of jobs in memory */
	SwarmBucket bucket;
	dlist_head	parked;			/* ready, but the kind may not start now */
	SwarmTimer	timer;
} SwarmKind;

/* A queue in memory. */
typedef struct SwarmQueue
{
	SwarmIdKey	key;
	dlist_head	ready[SWARM_PRIORITIES];
	dlist_head	external[SWARM_PRIORITIES];
	int			nready;
	int			nexternal;
	int			running;
	int			unflushed;		/* ended, but not known to be on disk */
	int			unclaimed;		/* in any list or timer */
	int			ntimers;		/* of them due later */
	int			nparked;		/* of them parked with their kind */
	int			max_running;
	int			batch;
	bool		paused;
	bool		notify;
	bool		group_commit;
	char		dependency_failure;
	SwarmBucket bucket;
	SwarmTimer	timer;
	int			critical_run;	/* critical claims in a row */
	bool		in_ring;
	dlist_node	ring_node;
	int64		started;		/* since server start */
	int64		finished;
	double		rate;			/* finished a second, decaying; as of rate_at */
	TimestampTz rate_at;
} SwarmQueue;

typedef enum SwarmEntryState
{
	ENTRY_TIMER,				/* due later: timer armed */
	ENTRY_READY,				/* in queue->ready */
	ENTRY_EXTERNAL,				/* in queue->external */
	ENTRY_PARKED,				/* in kind->parked */
	ENTRY_CLAIMED,				/* a runner has it: slot */
	ENTRY_LEASED,				/* an outside worker has it: timer, token */
	ENTRY_COMMITTED				/* ended, commit not flushed: shard->committed */
} SwarmEntryState;

typedef struct SwarmEntryKey
{
	int64		id;
	Oid			database;
	uint32		zero;			/* padding is part of the hash key */
} SwarmEntryKey;

/*
 * A live job in memory.  One per (database, id): that is what makes a second
 * claim of the same job impossible.
 */
struct SwarmEntry
{
	SwarmEntryKey key;
	SwarmReady	job;
	SwarmEntryState state;
	TimestampTz since;			/* ready since; leased since */
	dlist_node	link;
	SwarmTimer	timer;
	SwarmQueue *queue;
	SwarmKind  *kind;
	int			slot;			/* ENTRY_CLAIMED: slot number */
	int64		token;			/* ENTRY_LEASED */
	uint64		lsn;			/* ENTRY_COMMITTED: end of the commit record */
	SwarmJobState ended;		/* ENTRY_COMMITTED */
	bool		gone;			/* ENTRY_CLAIMED: somebody has ended the job */
	bool		due_now;		/* ENTRY_CLAIMED: retried when it had failed */
	bool		again;			/* enqueued again before this one is removed */
	double		fraction;
};

typedef enum SwarmChoreState
{
	CHORE_WAITING,				/* in shard->chores */
	CHORE_RUNNING,				/* slot->chore */
	CHORE_LATER					/* timer armed */
} SwarmChoreState;

typedef struct SwarmChoreKey
{
	Oid			database;
	Oid			object;
	int			kind;
} SwarmChoreKey;

/* Background work that somebody asked for; see job_chore.c. */
struct SwarmChore
{
	SwarmChoreKey key;
	SwarmChoreState state;
	dlist_node	link;
	SwarmTimer	timer;
	int			tries;			/* in vain, in a row */
	bool		again;			/* asked for while it runs */
	bool		failing;
};

/* Chores of all databases; who finds no room asks another time. */
#define SWARM_MAX_CHORES	2048

typedef struct SwarmJobShared
{
	int			used;			/* entries */
	bool		starved;		/* a job has found no room since the last look */
	pg_atomic_uint64 names_generation;	/* counts changes of queues and kinds */
	ConditionVariable waiters[WAIT_BUCKETS];
	/* followed by shards and slots */
} SwarmJobShared;

extern SwarmJobShared *swarm_job_shared;
extern HTAB *swarm_job_entries;
extern HTAB *swarm_queue_table;
extern HTAB *swarm_kind_table;
extern HTAB *swarm_chore_table;
extern int	swarm_max_queues;
extern int	swarm_job_slots;
extern int	swarm_job_ageing_ms;

/* Called by swarm_job_init(): each file defines its settings. */
extern void swarm_job_shmem_init(void);
extern void swarm_job_state_init(void);
extern void swarm_job_history_init(void);

/* One line of the view of queues. */
typedef struct SwarmQueueStatus
{
	int32		id;
	int			ready;
	int			running;
	int			depth;			/* all unclaimed in memory: also due later */
	TimestampTz oldest;			/* ready since; 0 = none */
	int64		started;
	int64		finished;
	double		rate;			/* finished a second, over about a minute */
} SwarmQueueStatus;

/* job_limits.c; takes the lock.  complete: nothing is on disk only. */
extern int	swarm_queue_status(Oid database, SwarmQueueStatus **list, bool *complete);

/* job_shmem.c, job_limits.c, job_queue.c; all with the lock held */
extern SwarmEntry *swarm_entry_find(Oid database, int64 id);
extern void swarm_entry_place(SwarmShard *shard, SwarmEntry *e, bool front);
extern void swarm_entry_unlist(SwarmShard *shard, SwarmEntry *e);
extern void swarm_entry_remove(SwarmShard *shard, SwarmEntry *e);
extern int	swarm_timer_compare(const pairingheap_node *a, const pairingheap_node *b,
								void *arg);
extern void swarm_timer_arm(SwarmShard *shard, SwarmTimer *t, TimestampTz due);
extern void swarm_timer_disarm(SwarmShard *shard, SwarmTimer *t);
extern void swarm_queue_consider(SwarmShard *shard, SwarmQueue *q);
extern void swarm_shard_wake_runner(SwarmShard *shard);
extern void swarm_shard_wake_for(SwarmShard *shard, Oid role);
extern Oid	swarm_queue_next_role(SwarmQueue *q);
extern Oid	swarm_errand_next_role(const SwarmShard *shard);

/* job_claim.c; lock held: the slot works for that role from now on. */
extern void swarm_slot_bind(SwarmSlot *slot, Oid role);

/* The same: it ends, if what waits is not its role's and nobody else comes. */
extern bool swarm_slot_make_room(SwarmShard *shard, SwarmSlot *slot);
extern void swarm_errand_init(void);
extern void swarm_errand_slot_died(const SwarmSlot *slot);
extern void swarm_shard_config_changed(SwarmShard *shard);
extern void swarm_shard_recheck(SwarmShard *shard, int64 id);
extern void swarm_queue_count_finished(SwarmQueue *q);
extern void swarm_shard_event(SwarmShard *shard, int64 id, int32 queue,
							  SwarmJobState state);
extern ConditionVariable *swarm_job_waiters(int64 id);

/* job_store.c: the longest name of a queue or kind, in bytes */
#define SWARM_NAME_MAX		128

/* Kinds below it come with the extension; where their sequence starts. */
#define SWARM_FIRST_KIND	16

/* job_sweep.c: undo of a doorbell item that begins with the database */
extern void swarm_job_undo_told(void *item);

/* job_enqueue_sql.c: take the unique key of a new row; the id of the job that has it. */
extern int64 swarm_job_take_key(const SwarmJobRow *row);

/* At commit the job goes to memory. */
extern void swarm_job_push_at_commit(const SwarmJobRow *row, bool external);

/* job_run.c: the slot of this process while it runs a job, or NULL */
extern SwarmSlot *swarm_job_current_slot;

/* job_limits.c */
extern SwarmQueue *swarm_queue_get(Oid database, int32 id, bool create);
extern SwarmKind *swarm_kind_get(Oid database, int32 id, bool create);
extern void swarm_kind_unpark(SwarmShard *shard, SwarmKind *k);
extern void swarm_kind_unpark_each(SwarmShard *shard);
extern void swarm_limits_again(SwarmShard *shard, TimestampTz now);
extern void swarm_bucket_set(SwarmBucket *b, int limit, int64 period_us);
extern bool swarm_bucket_has(SwarmBucket *b, TimestampTz now);
extern bool swarm_bucket_take(SwarmBucket *b, TimestampTz now);
extern TimestampTz swarm_bucket_next(const SwarmBucket *b, TimestampTz now);

/* job_chore.c; the first takes the lock */
extern void swarm_chore_push(Oid database, int kind, Oid object);
extern void swarm_chore_slot_died(SwarmShard *shard, SwarmSlot *slot);
extern void swarm_chore_due(SwarmShard *shard, SwarmChore *chore);
extern void swarm_chore_forget(SwarmShard *shard);

/* job_queue.c; takes the lock */
extern void swarm_queue_mark_parent(SwarmShard *shard, int64 id);

/* job_claim.c; the first takes the lock */
extern int	swarm_queue_lease(SwarmShard *shard, int32 queue, int max,
							  int64 lease_us, SwarmReady *jobs, int64 *tokens);
extern void swarm_entry_release(SwarmShard *shard, SwarmEntry *e);

/* ------------------------------------------------------------------------
 * Hooks of users (job_hook.c)
 * ------------------------------------------------------------------------ */

extern void swarm_job_enqueue_hooks(SwarmHookPhase phase, const SwarmJobRow *row);
extern char *swarm_job_ask_hooks(const SwarmJobRow *row);
extern void swarm_job_end_hooks(const SwarmJobRow *row, const SwarmJobEnd *end);

#endif							/* SWARM_JOB_JOB_INT_H */
