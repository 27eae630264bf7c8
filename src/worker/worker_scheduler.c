/*
 * worker_scheduler.c
 *	  The scheduler of one database.
 *
 * It starts runners when there is more to do than idle ones, moves what is
 * due, sweeps the table for what memory may have missed, settles dependencies
 * and keeps the history.  It does not hand out jobs: an enqueueing backend
 * wakes a runner itself.  Only when no runner can be started at all, the
 * scheduler runs jobs in its own process, so that one worker slot is enough
 * for progress.
 *
 * It sleeps on its latch until something is due; with nothing scheduled it
 * wakes once an hour, to look at a clock that may have been set, and runs no
 * query.  It holds no transaction while it sleeps.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "commands/dbcommands.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/fault.h"
#include "memory/memory.h"
#include "worker/worker_int.h"

#define RETRY_MS			1000
#define LOOK_SOON_MS		1000
#define STARTING_MAX_MS		10000
#define WARN_EVERY_MS		60000
#define LONGEST_SLEEP_MS	(3600L * 1000)

typedef void (*Step) (SwarmShard *shard);

static SwarmShard *shard;
static int	shard_number;
static BackgroundWorkerHandle **handles;	/* of runners, by slot */
static SwarmSlot *own_slot = NULL;	/* while the scheduler runs jobs itself */
static TimestampTz next_history = 0;
static SwarmStep *registered = NULL;	/* steps of modules above */
static SwarmStep *current = NULL;
static bool step_failed = false;
static bool look_soon = false;	/* runners are missing, or just starting */

static bool attach(const SwarmWorkerArg *arg);
static void scheduler_exit(int code, Datum arg);
static bool serve_here(void);
static void first_turn(void);
static long turn(void);
static bool told_to_end(void);
static bool step(const char *what, Step run);
static void step_config(SwarmShard *s);
static void step_sweep(SwarmShard *s);
static void step_suspects(SwarmShard *s);
static void forget_suspects(void);
static void step_history(SwarmShard *s);
static void step_memory(SwarmShard *s);
static void step_origins(SwarmShard *s);
static void step_registered(SwarmShard *s);
static void start_runners(void);
static bool starts_fail(void);
static void want_place(void);
static bool work_waits(void);
static int	runners_wanted(void);
static bool start_runner(bool critical_only);
static void count_runner(const SwarmSlot *slot, int by);
static void check_starting_runners(void);
static bool run_here(void);

void
swarm_scheduler_main(Datum main_arg)
{
	SwarmWorkerArg arg = swarm_worker_arg();
	uint32		wait_event;
	MemoryContext context;

	swarm_worker_signals();
	if (!attach(&arg))
		proc_exit(0);
	BackgroundWorkerInitializeConnectionByOid(arg.database, InvalidOid, 0);
	swarm_worker_settings();
	wait_event = swarm_wait_event_new("SwarmScheduler");
	pgstat_report_appname("pg_swarm scheduler");
	handles = MemoryContextAllocZero(TopMemoryContext,
									 swarm_max_slots * sizeof(*handles));
	context = AllocSetContextCreate(TopMemoryContext, "pg_swarm scheduler turn",
									ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	if (!serve_here())
		proc_exit(0);
	first_turn();
	for (;;)
	{
		long		wait_ms;

		MemoryContextReset(context);
		MemoryContextSwitchTo(context);
		if (told_to_end())
			break;
		wait_ms = turn();
		MemoryContextSwitchTo(context);
		if (wait_ms != 0)
		{
			pgstat_report_stat(true);
			pgstat_report_activity(STATE_IDLE, NULL);
			swarm_worker_sleep(wait_ms, wait_event);
		}
		else
			swarm_worker_sleep(0, wait_event);
	}
	proc_exit(0);
}

/*
 * attach: take the place the launcher has prepared; false if it is not there
 * any more.
 */
static bool
attach(const SwarmWorkerArg *arg)
{
	bool		ours;

	shard_number = arg->shard;
	shard = swarm_shard_at(arg->shard);
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	ours = shard->state != SWARM_SHARD_FREE && shard->database == arg->database &&
		shard->scheduler_pid == 0 && shard->holds == 0;
	if (shard->database == arg->database)
		shard->starting = false;
	if (ours)
	{
		shard->reprobe = false; /* who asks from now on may not be seen */
		shard->scheduler_pid = MyProcPid;
		shard->scheduler_latch = MyLatch;
		shard->scheduler_since = GetCurrentTimestamp();
	}
	LWLockRelease(swarm_job_lock);
	if (ours)
		before_shmem_exit(scheduler_exit, (Datum) 0);
	return ours;
}

static void
scheduler_exit(int code, Datum arg)
{
	if (own_slot != NULL)
		swarm_queue_slot_died(own_slot, !swarm_server_stopping());
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard->scheduler_pid = 0;
	shard->scheduler_latch = NULL;
	LWLockRelease(swarm_job_lock);
	swarm_launcher_wake();
}

/*
 * serve_here: has this database the extension?  If not, the launcher shall
 * forget it until it is told again.
 */
static bool
serve_here(void)
{
	MemoryContext context = CurrentMemoryContext;
	bool		installed;
	bool		wanted;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	installed = OidIsValid(get_extension_oid("pg_swarm", true));
	wanted = swarm_database_wanted(get_database_name(MyDatabaseId));
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	if (installed && wanted)
		return true;
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard->stop = true;
	swarm_shard_stop_runners(shard);
	LWLockRelease(swarm_job_lock);
	return false;
}

/*
 * first_turn: bring memory up from the tables, then open the gate.  A
 * scheduler that replaces another finds it open.
 */
static void
first_turn(void)
{
	bool		open;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	open = shard->state == SWARM_SHARD_SERVING;
	if (!open)
		shard->state = SWARM_SHARD_LOADING;
	shard->config_stale = true;
	shard->scan_from = 0;
	shard->nrechecks = SWARM_FINISHED_PARENTS + 1;
	LWLockRelease(swarm_job_lock);
	if (!open)
		swarm_queue_forget(shard, true);	/* of an extension that was
											 * dropped */

	while (!step("suspects", step_suspects) || !step("settings", step_config))
	{
		if (told_to_end())
			proc_exit(0);
		swarm_worker_sleep(RETRY_MS, PG_WAIT_EXTENSION);
	}
	forget_suspects();
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard->state = SWARM_SHARD_SERVING;
	shard->restarts = 0;
	shard->failed_starts = 0;	/* this process could connect */
	shard->start_after = 0;
	swarm_shard_wake_all(shard);
	LWLockRelease(swarm_job_lock);

}

/*
 * turn: all there is to do now.  Returns how long to sleep; 0 = look again.
 * A step that waits for a lock resets the latch, so who has called meanwhile
 * is known by the count of calls.
 */
static long
turn(void)
{
	TimestampTz next;
	uint32		wakes;
	uint32		events_read;
	bool		rebuild,
				held,
				config,
				scan,
				rechecks,
				events,
				history,
				more = false;
	long		wait_ms;

	LWLockAcquire(swarm_job_lock, LW_SHARED);
	wakes = shard->scheduler_wakes;
	LWLockRelease(swarm_job_lock);
	step_failed = false;
	look_soon = false;
	next = swarm_queue_tick(shard);
	more = swarm_queue_flush(shard);
	check_starting_runners();
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	rebuild = shard->rebuild;
	held = shard->held;
	config = shard->config_stale;
	/* half a restore is no base for decisions */
	scan = shard->scan_from != SWARM_NO_SCAN && !shard->held;
	rechecks = shard->nrechecks > 0 && !shard->held;
	events_read = shard->events_read;
	events = shard->events_written != events_read;
	history = shard->want_partition ||
		(swarm_now() >= next_history &&
		 shard->completed + shard->dead + shard->cancelled > 0);
	shard->want_partition = false;
	LWLockRelease(swarm_job_lock);

	if (rebuild)
		swarm_queue_forget(shard, false);
	if (history)
		step("history", step_history);
	if (swarm_memory_sweep_due() <= swarm_now())
		step("memory", step_memory);
	if (swarm_memory_origins_asked())
		step("origins", step_origins);
	for (current = registered; current != NULL; current = current->next)
	{
		if (current->due() <= swarm_now())
			step(current->name, step_registered);
	}
	/* what a failed step had taken up is to be looked for everywhere */
	if (config)
		step("settings", step_config);
	if ((scan || (rebuild && !held)) && !step("sweep", step_sweep))
		swarm_queue_scan_from(MyDatabaseId, 0);
	if ((rechecks || (rebuild && !held)) && !step("dependencies", swarm_job_resolve_dependencies))
	{
		LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
		shard->nrechecks = SWARM_FINISHED_PARENTS + 1;
		LWLockRelease(swarm_job_lock);
	}
	if (events && !step("events", swarm_job_send_events))
	{
		LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
		shard->events_read = events_read;	/* those, and what came since */
		LWLockRelease(swarm_job_lock);
	}
	start_runners();
	if (run_here())
		more = true;

	LWLockAcquire(swarm_job_lock, LW_SHARED);
	more |= (shard->nrechecks > 0 && !shard->held) || shard->config_stale ||
		shard->rebuild || shard->scheduler_wakes != wakes;
	LWLockRelease(swarm_job_lock);
	if (step_failed)
		return RETRY_MS;
	if (more || ConfigReloadPending)
		return 0;
	if (next_history > swarm_now())
		next = Min(next, next_history);
	next = Min(next, swarm_memory_sweep_due());
	for (SwarmStep *s = registered; s != NULL; s = s->next)
		next = Min(next, s->due());
	wait_ms = TIMESTAMP_IS_NOEND(next) ? LONGEST_SLEEP_MS : Max(swarm_clock_wait_ms(next), 1);
	return look_soon ? Min(wait_ms, LOOK_SOON_MS) : wait_ms;
}

static bool
told_to_end(void)
{
	bool		end;

	if (swarm_databases_changed)
	{
		swarm_databases_changed = false;
		(void) serve_here();
	}
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	end = shard->stop || shard->holds > 0 || shard->reprobe;
	shard->reprobe = false;
	LWLockRelease(swarm_job_lock);
	return end;
}

/* ------------------------------------------------------------------------
 * Steps: each in a transaction of its own; an error is reported and leaves
 * the rest of the turn alone
 * ------------------------------------------------------------------------ */

static bool
step(const char *what, Step run)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool done = true;

	PG_TRY();
	{
		SetCurrentStatementStartTimestamp();
		pgstat_report_activity(STATE_RUNNING, what);
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		SWARM_FAULT("scheduler.step");
		run(shard);
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		HOLD_INTERRUPTS();
		errcontext("scheduler step \"%s\"", what);
		EmitErrorReport();
		FlushErrorState();
		AbortCurrentTransaction();
		RESUME_INTERRUPTS();
		done = false;
		step_failed = true;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	return done;
}

static void
step_config(SwarmShard *s)
{
	swarm_job_load_config(s);
}

static void
step_sweep(SwarmShard *s)
{
	while (swarm_job_sweep(s))
		CHECK_FOR_INTERRUPTS();
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	s->refilling = false;
	LWLockRelease(swarm_job_lock);
	swarm_job_check_prepared(s);
}

/* What ran here when the server crashed has used an attempt. */
static void
step_suspects(SwarmShard *s)
{
	for (int i = 0; i < swarm_max_slots; i++)
	{
		SwarmSuspect *suspect = &swarm_worker_shared->suspects[i];

		if (suspect->database == MyDatabaseId)
			swarm_job_count_crash(suspect->id, suspect->attempt);
	}
}

/* They are counted, and it is committed. */
static void
forget_suspects(void)
{
	for (int i = 0; i < swarm_max_slots; i++)
	{
		if (swarm_worker_shared->suspects[i].database == MyDatabaseId)
			swarm_worker_shared->suspects[i].database = InvalidOid;
	}
}

/*
 * step_history: tomorrow's partition, and the end of old ones; once a day,
 * and again in ten minutes when it fails, for a lock perhaps.
 */
static void
step_history(SwarmShard *s)
{
	TimestampTz now = swarm_now();

	next_history = now + 10 * USECS_PER_MINUTE;
	swarm_job_history_prepare();
	swarm_job_history_drop_old();
	next_history = now - now % USECS_PER_DAY + USECS_PER_DAY + USECS_PER_MINUTE;
}

/* One batch; when the next is due is in shared memory. */
static void
step_memory(SwarmShard *s)
{
	swarm_memory_sweep_step();
}

static void
step_origins(SwarmShard *s)
{
	swarm_memory_origins_step();
}

void
swarm_step_register(SwarmStep *step_of)
{
	step_of->next = registered;
	registered = step_of;
}

static void
step_registered(SwarmShard *s)
{
	current->run();
}

/* ------------------------------------------------------------------------
 * Runners
 * ------------------------------------------------------------------------ */

/*
 * start_runners: as many as there are jobs that nobody idle could take, up to
 * the maximum; and an extra one for a critical job.
 */
static void
start_runners(void)
{
	int			n;
	bool		critical;

	if (starts_fail())
		return;
	n = runners_wanted();
	for (int i = 0; i < n; i++)
	{
		if (!start_runner(false))
		{
			want_place();
			return;
		}
	}
	LWLockAcquire(swarm_job_lock, LW_SHARED);
	critical = shard->critical > 0 && dlist_is_empty(&shard->idle) &&
		shard->runners >= swarm_max_runners && shard->extra == 0 &&
		swarm_max_runners > 0;
	LWLockRelease(swarm_job_lock);
	if (critical)
		(void) start_runner(true);
}

/*
 * starts_fail: the last runner could not begin, because the database takes no
 * connections perhaps: none is started for a while.
 */
static bool
starts_fail(void)
{
	bool		yes;

	LWLockAcquire(swarm_job_lock, LW_SHARED);
	yes = shard->start_after > GetCurrentTimestamp();
	LWLockRelease(swarm_job_lock);
	look_soon |= yes;
	return yes;
}

/*
 * want_place: nobody tells when others give worker slots back.  Without any
 * runner the work is done here, and with one it may last.  Who is idle then is
 * of another role than what waits, and makes room.
 */
static void
want_place(void)
{
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	if (shard->runners > 0 && work_waits())
	{
		shard->want_runner = look_soon = true;
		if (!swarm_shard_makes_room(shard))
			swarm_shard_wake_longest_idle(shard);
	}
	LWLockRelease(swarm_job_lock);
}

/* work_waits: is there something for a runner to do?  Lock held. */
static bool
work_waits(void)
{
	return !dlist_is_empty(&shard->ring) || swarm_chore_ready(shard) ||
		swarm_errands_waiting(shard) > 0;
}

/*
 * runners_wanted: how many to start now.  Of those below the minimum, which
 * may be missing because they cannot live, a set a second; where there is no
 * place for them, none until something else is to be done.
 */
static int
runners_wanted(void)
{
	static int	allowed = 0;	/* the maximum at the last call */
	static TimestampTz refilled = 0;
	TimestampTz now = GetCurrentTimestamp();
	int			n = 0;
	int			missing;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	/* idle ones may be of other roles than what waits */
	if (shard->want_runner ||
		(swarm_max_runners > allowed && dlist_is_empty(&shard->idle)))
	{
		int			work = dlist_is_empty(&shard->ring) ? 0 : shard->queued;

		n = Min(swarm_max_runners - shard->runners, work + swarm_chore_ready(shard) +
				swarm_errands_waiting(shard));
	}
	shard->want_runner = false;
	allowed = swarm_max_runners;
	missing = Min(swarm_min_runners, swarm_max_runners) - shard->runners;
	if (missing > Max(n, 0))
	{
		if (TimestampDifferenceExceeds(refilled, now, LOOK_SOON_MS))
		{
			n = missing;
			refilled = now;
		}
		else
			look_soon |= !shard->slots_exhausted;
	}
	LWLockRelease(swarm_job_lock);
	return Max(n, 0);
}

/*
 * start_runner: reserve a slot and register the process; false if there is no
 * place for it.
 */
static bool
start_runner(bool critical_only)
{
	SwarmWorkerArg arg = {.shard = shard_number, .database = MyDatabaseId};
	SwarmSlot  *slot = NULL;
	bool		started;
	bool		warn = false;
	MemoryContext context;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	for (int i = 0; i < swarm_max_slots && slot == NULL; i++)
	{
		if (swarm_slot_at(i)->state == SWARM_SLOT_FREE)
			slot = swarm_slot_at(i);
	}
	if (slot != NULL)
	{
		slot->state = SWARM_SLOT_STARTING;
		slot->database = MyDatabaseId;
		slot->since = GetCurrentTimestamp();
		slot->critical_only = critical_only;
		slot->role = InvalidOid;
		slot->lent = false;
		slot->leaving = false;
		slot->stop = false;
		slot->idle_listed = false;
		slot->finished = 0;
		slot->job = 0;
		arg.slot = swarm_slot_number(slot);
		arg.generation = ++slot->generation;
		count_runner(slot, 1);
	}
	LWLockRelease(swarm_job_lock);
	if (slot == NULL)
		return false;

	if (handles[arg.slot])
		pfree(handles[arg.slot]);
	handles[arg.slot] = NULL;
	context = MemoryContextSwitchTo(TopMemoryContext);
	started = swarm_worker_register("pg_swarm runner", "swarm_runner_main",
									&arg, &handles[arg.slot]);
	MemoryContextSwitchTo(context);

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard->slots_exhausted = !started;
	if (!started)
	{
		TimestampTz now = GetCurrentTimestamp();

		slot->state = SWARM_SLOT_FREE;
		count_runner(slot, -1);
		if (TimestampDifferenceExceeds(swarm_worker_shared->last_exhausted_warning,
									   now, WARN_EVERY_MS))
		{
			swarm_worker_shared->last_exhausted_warning = now;
			warn = true;
		}
	}
	LWLockRelease(swarm_job_lock);
	if (warn)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no background worker slot is free for a job runner"),
				 errdetail("Jobs go on in the processes that are there."),
				 errhint("Raise max_worker_processes.")));
	return started;
}

/* count_runner: the extra one is not counted with the others.  Lock held. */
static void
count_runner(const SwarmSlot *slot, int by)
{
	if (slot->critical_only)
		shard->extra += by;
	else
		shard->runners += by;
}

/*
 * check_starting_runners: one that ended before it took its slot, because the
 * fork or the connection failed, leaves the slot to others.
 */
static void
check_starting_runners(void)
{
	TimestampTz now = GetCurrentTimestamp();

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	for (int i = 0; i < swarm_max_slots; i++)
	{
		SwarmSlot  *slot = swarm_slot_at(i);
		pid_t		pid;

		if (slot->state != SWARM_SLOT_STARTING || slot->database != MyDatabaseId)
			continue;
		if (handles[i] != NULL ?
			GetBackgroundWorkerPid(handles[i], &pid) == BGWH_STOPPED :
			TimestampDifferenceExceeds(slot->since, now, STARTING_MAX_MS))
		{
			slot->state = SWARM_SLOT_FREE;
			slot->generation++;
			count_runner(slot, -1);
			shard->want_runner = true;
		}
		else
			look_soon = true;
	}
	LWLockRelease(swarm_job_lock);
}

/*
 * run_here: when there is work and no runner can be had, one turn of it in
 * this process.
 */
static bool
run_here(void)
{
	bool		needed;
	bool		did;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	needed = shard->runners == 0 && shard->slots_exhausted &&
		work_waits();
	if (needed && own_slot == NULL)
	{
		for (int i = 0; i < swarm_max_slots && own_slot == NULL; i++)
		{
			if (swarm_slot_at(i)->state == SWARM_SLOT_FREE)
				own_slot = swarm_slot_at(i);
		}
		if (own_slot != NULL)
		{
			own_slot->state = SWARM_SLOT_STARTING;
			own_slot->generation++;
			own_slot->database = MyDatabaseId;
			own_slot->pid = MyProcPid;
			own_slot->latch = MyLatch;
			own_slot->role = InvalidOid;
			own_slot->lent = true;
			own_slot->leaving = false;
			own_slot->critical_only = false;
			own_slot->stop = false;
			shard->runners++;
		}
	}
	LWLockRelease(swarm_job_lock);
	if (!needed || own_slot == NULL)
		return false;

	swarm_inflight_open(swarm_slot_number(own_slot));
	swarm_job_run_init();
	did = swarm_runner_turn(shard, own_slot, CurrentMemoryContext);
	swarm_inflight_note(0, 0);
	swarm_queue_slot_died(own_slot, true);
	own_slot = NULL;
	if (GetSessionUserId() != BOOTSTRAP_SUPERUSERID)
	{
		StartTransactionCommand();
		swarm_role_take(BOOTSTRAP_SUPERUSERID, false);
		CommitTransactionCommand();
	}
	return did;
}
