/*
 * worker_launcher.c
 *	  The launcher: one static process that sees to it that every database
 *	  with the extension has a scheduler.
 *
 * Which databases have it cannot be told from outside, so at server start
 * every database gets a scheduler that looks, and ends at once where there is
 * none.  After that the launcher is told: by CREATE EXTENSION and CREATE
 * DATABASE at their commit, and by the end of a scheduler.  It sleeps without
 * a timeout unless a restart is due.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "worker/worker_int.h"

#define PROBES_AT_ONCE		4
#define RESTART_MAX_MS		60000
#define STARTING_MAX_MS		10000
#define WARN_EVERY_MS		60000

static BackgroundWorkerHandle **handles;	/* of schedulers, by shard */

static void launcher_exit(int code, Datum arg);
static List *databases_to_probe(void);
static List *list_databases(void);
static void create_shards(List *candidates);
static long look_after_shards(void);
static bool shard_is_due(SwarmShard *shard, TimestampTz now, long *wait_ms);
static void start_scheduler(int shard_number);
static bool database_exists(Oid database);

void
swarm_launcher_main(Datum arg)
{
	uint32		wait_event = swarm_wait_event_new("SwarmLauncher");
	MemoryContext turn;

	swarm_worker_signals();
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	swarm_worker_shared->launcher_pid = MyProcPid;
	swarm_worker_shared->launcher_latch = MyLatch;
	swarm_worker_shared->launcher_since = GetCurrentTimestamp();
	swarm_worker_shared->probe_all = true;
	LWLockRelease(swarm_job_lock);
	before_shmem_exit(launcher_exit, (Datum) 0);

	handles = MemoryContextAllocZero(TopMemoryContext,
									 swarm_max_databases * sizeof(*handles));
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	swarm_inflight_read();
	turn = AllocSetContextCreate(TopMemoryContext, "pg_swarm launcher turn",
								 ALLOCSET_DEFAULT_SIZES);
	for (;;)
	{
		long		wait_ms;

		MemoryContextSwitchTo(turn);
		create_shards(databases_to_probe());
		wait_ms = look_after_shards();
		MemoryContextSwitchTo(TopMemoryContext);
		MemoryContextReset(turn);
		pgstat_report_activity(STATE_IDLE, NULL);
		swarm_worker_sleep(wait_ms, wait_event);
	}
}

static void
launcher_exit(int code, Datum arg)
{
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	swarm_worker_shared->launcher_pid = 0;
	swarm_worker_shared->launcher_latch = NULL;
	LWLockRelease(swarm_job_lock);
}

/*
 * databases_to_probe: OIDs of those that somebody asked about and that have
 * no shard yet.
 */
static List *
databases_to_probe(void)
{
	SwarmWorkerShared *w = swarm_worker_shared;
	List	   *asked = NIL;
	bool		all;
	List	   *present;
	ListCell   *lc;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	all = w->probe_all || swarm_databases_changed;
	swarm_databases_changed = false;
	w->probe_all = false;
	for (int i = 0; i < w->nprobes; i++)
		asked = list_append_unique_oid(asked, w->probes[i]);
	w->nprobes = 0;
	LWLockRelease(swarm_job_lock);
	if (!all && asked == NIL)
		return NIL;
	present = list_databases();
	if (all)
		return present;
	foreach(lc, asked)
	{
		if (!list_member_oid(present, lfirst_oid(lc)))
			asked = foreach_delete_current(asked, lc);
	}
	return asked;
}

/*
 * list_databases: that take connections, are no templates, and are wanted.
 */
static List *
list_databases(void)
{
	MemoryContext turn = CurrentMemoryContext;
	List	   *oids = NIL;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database db = (Form_pg_database) GETSTRUCT(tuple);
		MemoryContext old;

		if (!db->datallowconn || db->datistemplate || db->datconnlimit == -2 ||
			!swarm_database_wanted(NameStr(db->datname)))
			continue;
		old = MemoryContextSwitchTo(turn);
		oids = lappend_oid(oids, db->oid);
		MemoryContextSwitchTo(old);
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(turn);
	SetLatch(MyLatch);			/* waiting for a lock may have reset it */
	return oids;
}

static void
create_shards(List *candidates)
{
	ListCell   *lc;
	int			unserved = 0;

	if (candidates == NIL)
		return;
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	foreach(lc, candidates)
	{
		if (swarm_shard_find(lfirst_oid(lc)) == NULL &&
			swarm_shard_create(lfirst_oid(lc)) == NULL)
			unserved++;
	}
	swarm_worker_shared->unserved = unserved;
	/* those left over are tried again when a shard becomes free */
	LWLockRelease(swarm_job_lock);
}

/*
 * look_after_shards: start schedulers that are due, free shards that are
 * done.  Returns how long to sleep, -1 for as long as nobody calls.
 */
static long
look_after_shards(void)
{
	TimestampTz now = GetCurrentTimestamp();
	long		wait_ms = -1;
	int			probing = 0;
	bool		freed = false;

	for (int i = 0; i < swarm_max_databases; i++)
	{
		SwarmShard *shard = swarm_shard_at(i);
		bool		start = false;
		pid_t		pid;

		LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);

		/*
		 * died before it attached, or was started by a launcher before this
		 * one
		 */
		if (shard->starting &&
			(handles[i] != NULL ? GetBackgroundWorkerPid(handles[i], &pid) == BGWH_STOPPED :
			 TimestampDifferenceExceeds(shard->restart_at, now, STARTING_MAX_MS)))
			shard->starting = false;
		if (shard->state != SWARM_SHARD_FREE && shard->stop &&
			shard->scheduler_pid == 0 && !shard->starting &&
			shard->runners == 0 && shard->extra == 0 &&
			shard->holds == 0)
		{
			Oid			again = shard->reprobe ? shard->database : InvalidOid;

			swarm_shard_free(shard);
			freed = true;
			if (OidIsValid(again))
				swarm_launcher_probe(again);
		}
		else if (shard->state == SWARM_SHARD_PROBING &&
				 (shard->scheduler_pid != 0 || shard->starting))
			probing++;
		else if (probing < PROBES_AT_ONCE && shard_is_due(shard, now, &wait_ms))
		{
			start = true;
			probing += shard->state == SWARM_SHARD_PROBING;
		}
		LWLockRelease(swarm_job_lock);
		if (start)
			start_scheduler(i);
	}
	if (freed && swarm_worker_shared->unserved > 0)
	{
		swarm_worker_shared->probe_all = true;
		return 0;
	}
	return wait_ms;
}

/*
 * shard_is_due: shall its scheduler be started now?  Otherwise lowers
 * *wait_ms if it will be later.  Lock held.
 */
static bool
shard_is_due(SwarmShard *shard, TimestampTz now, long *wait_ms)
{
	long		ms;

	if (shard->state == SWARM_SHARD_FREE || shard->scheduler_pid != 0 ||
		shard->starting || shard->holds > 0 || shard->stop)
		return false;
	ms = TimestampDifferenceMilliseconds(now, shard->restart_at);
	if (ms <= 0)
		return true;
	*wait_ms = *wait_ms < 0 ? ms : Min(*wait_ms, ms);
	return false;
}

/*
 * start_scheduler: register it and wait until it is forked.  Where it cannot
 * be, later again, with growing patience, and a warning a minute.
 */
static void
start_scheduler(int i)
{
	SwarmShard *shard = swarm_shard_at(i);
	SwarmWorkerArg arg = {.shard = i, .slot = -1, .database = shard->database};
	TimestampTz now = GetCurrentTimestamp();
	bool		exists = database_exists(shard->database);
	bool		started;
	bool		warn = false;
	pid_t		pid;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	if (!exists)
	{
		shard->stop = true;
		if (shard->runners == 0 && shard->extra == 0 && shard->holds == 0)
			swarm_shard_free(shard);
		LWLockRelease(swarm_job_lock);
		return;
	}
	shard->starting = true;
	shard->restarts++;
	shard->restart_at = TimestampTzPlusMilliseconds(now,
													Min(500L << Min(shard->restarts, 10), RESTART_MAX_MS));
	LWLockRelease(swarm_job_lock);

	if (handles[i])
		pfree(handles[i]);
	handles[i] = NULL;
	MemoryContextSwitchTo(TopMemoryContext);
	started = swarm_worker_register("pg_swarm scheduler", "swarm_scheduler_main",
									&arg, &handles[i]);
	if (started)
		started = WaitForBackgroundWorkerStartup(handles[i], &pid) != BGWH_POSTMASTER_DIED;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	swarm_worker_shared->schedulers_exhausted = !started;
	if (!started)
	{
		shard->starting = false;
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
				 errmsg("no background worker slot is free for the scheduler of database %u",
						shard->database),
				 errhint("Raise max_worker_processes.")));
	/* an own wake-up: the restart time must be looked at */
	SetLatch(MyLatch);
}

static bool
database_exists(Oid database)
{
	bool		exists;

	StartTransactionCommand();
	exists = SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(database));
	CommitTransactionCommand();
	return exists;
}
