/*
 * worker_runner.c
 *	  A runner: claims jobs of its database and runs them, one turn at a time.
 *
 * A turn is a claim (shared memory, no query), then one transaction.  With
 * nothing to claim the runner is on the idle list, does a piece of a chore if
 * there is one, and else sleeps; who pushes a job or asks for a chore takes it
 * off the list and sets its latch.  Runners beyond the minimum
 * end after some idle time.
 */
#include "postgres.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "access/xact.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/compat.h"
#include "worker/worker_int.h"

#define START_PAUSE_MAX_MS	60000

static SwarmSlot *slot;
static SwarmShard *shard;
static bool begun = false;		/* is past what may fail for each of us */

static bool attach(const SwarmWorkerArg *arg);
static void runner_exit(int code, Datum arg);
static void count_start(bool good);
static bool told_to_end(void);
static bool superfluous(void);

void
swarm_runner_main(Datum main_arg)
{
	SwarmWorkerArg arg = swarm_worker_arg();
	uint32		wait_event;
	MemoryContext context;

	shard = swarm_shard_at(arg.shard);
	swarm_worker_signals();
	if (!attach(&arg))
		proc_exit(0);
	BackgroundWorkerInitializeConnectionByOid(arg.database, InvalidOid, 0);
	swarm_worker_settings();
	wait_event = swarm_wait_event_new("SwarmRunnerIdle");
	pgstat_report_appname("pg_swarm runner");
	swarm_inflight_open(arg.slot);
	swarm_job_run_init();
#ifdef M_TRIM_THRESHOLD
	/* a turn frees what the next one needs: do not give it to the kernel */
	(void) mallopt(M_TRIM_THRESHOLD, 16 * 1024 * 1024);
#endif
	context = AllocSetContextCreate(TopMemoryContext, "pg_swarm runner turn",
									ALLOCSET_DEFAULT_SIZES);
	count_start(true);
	while (!told_to_end())
	{
		bool		worked = swarm_runner_turn(shard, slot, context);

		if (worked)
		{
			swarm_worker_sleep(0, wait_event);	/* settle interrupts only */
			continue;
		}
		if (slot->critical_only || slot->leaving)
			break;				/* what it was started for is done; or there
								 * is work that another role's runner has to
								 * do */
		swarm_inflight_note(0, 0);
		pgstat_report_stat(true);
		pgstat_report_activity(STATE_IDLE, NULL);
		swarm_worker_sleep(superfluous() ? swarm_runner_idle_timeout_ms : -1,
						   wait_event);
	}
	proc_exit(0);
}

/*
 * attach: take the slot the scheduler has reserved; false if it was given up
 * meanwhile.
 */
static bool
attach(const SwarmWorkerArg *arg)
{
	bool		ours;

	slot = swarm_slot_at(arg->slot);
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	ours = slot->state == SWARM_SLOT_STARTING && slot->generation == arg->generation;
	if (ours)
	{
		slot->pid = MyProcPid;
		slot->latch = MyLatch;
		slot->state = SWARM_SLOT_IDLE;
		slot->since = swarm_now();
	}
	LWLockRelease(swarm_job_lock);
	if (ours)
		before_shmem_exit(runner_exit, (Datum) 0);
	return ours;
}

/*
 * runner_exit: whatever way the process ends short of a crash, its jobs are
 * free again at once.
 */
static void
runner_exit(int code, Datum arg)
{
	if (!begun)
		count_start(false);
	swarm_inflight_note(0, 0);
	swarm_queue_slot_died(slot, !swarm_server_stopping());
	swarm_launcher_wake();		/* the scheduler may have left already */
}

/*
 * count_start: after one that could not begin, the next ones wait 1, 2, 4 ...
 * 60 s: they would fail alike, as fast as they are forked.
 */
static void
count_start(bool good)
{
	TimestampTz now = GetCurrentTimestamp();

	begun = good;
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	if (good)
		shard->failed_starts = 0;
	else if (now >= shard->start_after) /* and not one of several at once */
	{
		shard->failed_starts++;
		shard->start_after = TimestampTzPlusMilliseconds(now,
														 Min(500L << Min(shard->failed_starts, 10), START_PAUSE_MAX_MS));
	}
	LWLockRelease(swarm_job_lock);
}

/*
 * swarm_runner_turn: claim and run, without a job a piece of a chore; false if
 * there was nothing (the slot is then on the idle list).
 */
bool
swarm_runner_turn(SwarmShard *my_shard, SwarmSlot *my_slot, MemoryContext context)
{
	static SwarmClaim claims[SWARM_BATCH_MAX];
	MemoryContext turn;
	int			n = swarm_queue_claim(my_shard, my_slot, claims, SWARM_BATCH_MAX);

	if (n == 0)
		return swarm_errand_turn(my_shard, my_slot) || swarm_chore_turn(my_shard, my_slot);
	turn = AllocSetContextCreate(context, "pg_swarm jobs", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(turn);
	swarm_job_run(my_shard, my_slot, claims, n);
	MemoryContextSwitchTo(context);
	MemoryContextDelete(turn);
	pgstat_report_stat(false);
	(void) swarm_errand_turn(my_shard, my_slot);	/* who waits, waits not
													 * for all jobs */
	return true;
}

static bool
told_to_end(void)
{
	bool		end;

	LWLockAcquire(swarm_job_lock, LW_SHARED);
	end = slot->stop || slot->leaving || shard->stop || shard->holds > 0 ||
		(!slot->critical_only &&
		 ((slot->state == SWARM_SLOT_IDLE && slot->idle_listed &&
		   shard->runners > swarm_min_runners &&
		   swarm_now() - slot->since >= swarm_runner_idle_timeout_ms * INT64CONST(1000)) ||
		  shard->runners > swarm_max_runners));
	LWLockRelease(swarm_job_lock);
	return end;
}

/* superfluous: may this runner end when it has been idle long enough? */
static bool
superfluous(void)
{
	bool		yes;

	LWLockAcquire(swarm_job_lock, LW_SHARED);
	yes = shard->runners > swarm_min_runners;
	LWLockRelease(swarm_job_lock);
	return yes;
}
