/*
 * worker.c
 *	  Set-up of module worker, and what its processes have in common.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/pidfile.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/shmem.h"
#include "memory/memory.h"
#include "worker/worker_int.h"

SwarmWorkerShared *swarm_worker_shared = NULL;
int			swarm_max_runners = 4;
int			swarm_min_runners = 1;
int			swarm_runner_idle_timeout_ms = 30000;
static char *databases = NULL;
bool		swarm_databases_changed = false;

static Size worker_size(void);
static void worker_attach(void *memory, bool found);
static bool check_databases(char **newval, void **extra, GucSource source);
static void assign_databases(const char *newval, void *extra);
static void clock_moved(void);
static void memory_due(void);

static SwarmShmemPiece worker_piece = {
	.name = "pg_swarm workers",
	.size = worker_size,
	.init = worker_attach,
	.pointer = (void **) &swarm_worker_shared
};

/*
 * swarm_worker_init: called from _PG_init.
 */
void
swarm_worker_init(void)
{
	BackgroundWorker worker = {0};

	DefineCustomIntVariable("pg_swarm.max_runners",
							"Most runner processes of one database.",
							"One more is started for a critical job when all are busy.",
							&swarm_max_runners, 4, 0, 1000,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.min_runners",
							"Runner processes of one database that are kept when idle.",
							NULL, &swarm_min_runners, 1, 0, 1000,
							PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.runner_idle_timeout",
							"How long a runner beyond the minimum waits for work before it ends.",
							NULL, &swarm_runner_idle_timeout_ms, 30000, 10, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomStringVariable("pg_swarm.databases",
							   "Databases that are served; empty serves every one that has the extension.",
							   NULL, &databases, "",
							   PGC_SIGHUP, GUC_LIST_INPUT,
							   check_databases, assign_databases, NULL);

	swarm_shmem_register(&worker_piece);
	swarm_clock_moved_hook = clock_moved;
	swarm_job_inflight_hook = swarm_inflight_note;
	swarm_memory_due_hook = memory_due;
	if (!process_shared_preload_libraries_in_progress)
		return;
	swarm_worker_hooks_init();

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "pg_swarm", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "swarm_launcher_main", sizeof(worker.bgw_function_name));
	strlcpy(worker.bgw_name, "pg_swarm launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "pg_swarm launcher", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

static Size
worker_size(void)
{
	return add_size(offsetof(SwarmWorkerShared, suspects),
					mul_size(max_worker_processes, sizeof(SwarmSuspect)));
}

static void
worker_attach(void *memory, bool found)
{
	if (!found)
		((SwarmWorkerShared *) memory)->probe_all = true;
}

static bool
check_databases(char **newval, void **extra, GucSource source)
{
	char	   *copy = pstrdup(*newval);
	List	   *names;
	bool		good = SplitIdentifierString(copy, ',', &names);

	if (!good)
		GUC_check_errdetail("List syntax is invalid.");
	list_free(names);
	pfree(copy);
	return good;
}

static void
assign_databases(const char *newval, void *extra)
{
	swarm_databases_changed = true;
}

/*
 * swarm_database_wanted: does pg_swarm.databases let this one be served?
 */
bool
swarm_database_wanted(const char *name)
{
	char	   *copy;
	List	   *names;
	ListCell   *lc;

	if (databases == NULL || databases[0] == '\0')
		return true;
	copy = pstrdup(databases);
	if (!SplitIdentifierString(copy, ',', &names))
		return false;
	foreach(lc, names)
	{
		if (strcmp(lfirst(lc), name) == 0)
			return true;
	}
	return false;
}

/*
 * clock_moved: who waits for a time shall look at the clock again; queues do so
 * before the clock can move once more.
 */
static void
clock_moved(void)
{
	if (swarm_worker_shared == NULL)
		return;
	for (int i = 0; i < swarm_max_databases; i++)
	{
		SwarmShard *shard = swarm_shard_at(i);

		if (shard->state == SWARM_SHARD_FREE)
			continue;
		(void) swarm_queue_tick(shard);
		LWLockAcquire(swarm_job_lock, LW_SHARED);
		swarm_shard_wake_scheduler(shard);
		LWLockRelease(swarm_job_lock);
	}
	swarm_launcher_wake();
}

void
swarm_launcher_wake(void)
{
	Latch	   *latch = swarm_worker_shared->launcher_latch;

	if (latch)
		SetLatch(latch);
}

/*
 * swarm_launcher_probe: ask the launcher to look whether this database has
 * the extension.
 */
void
swarm_launcher_probe(Oid database)
{
	SwarmWorkerShared *w = swarm_worker_shared;

	if (w->nprobes < PROBE_REQUESTS)
		w->probes[w->nprobes++] = database;
	else
		w->probe_all = true;
	swarm_launcher_wake();
}

/*
 * swarm_worker_register: start a scheduler or runner; false when
 * max_worker_processes leaves no place.
 */
bool
swarm_worker_register(const char *type, const char *function,
					  const SwarmWorkerArg *arg, BackgroundWorkerHandle **handle)
{
	BackgroundWorker worker = {0};

	StaticAssertStmt(sizeof(SwarmWorkerArg) <= BGW_EXTRALEN, "argument fits bgw_extra");
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	strlcpy(worker.bgw_library_name, "pg_swarm", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, function, sizeof(worker.bgw_function_name));
	snprintf(worker.bgw_name, BGW_MAXLEN, "%s for database %u", type, arg->database);
	strlcpy(worker.bgw_type, type, BGW_MAXLEN);
	memcpy(worker.bgw_extra, arg, sizeof(*arg));
	return RegisterDynamicBackgroundWorker(&worker, handle);
}

SwarmWorkerArg
swarm_worker_arg(void)
{
	SwarmWorkerArg arg;

	memcpy(&arg, MyBgworkerEntry->bgw_extra, sizeof(arg));
	return arg;
}

/*
 * swarm_worker_signals: SIGTERM ends, SIGINT cancels what runs (the server's
 * handlers), SIGHUP reloads.
 */
void
swarm_worker_signals(void)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();
}

/*
 * swarm_server_stopping: does the whole server stop?  The postmaster says so in
 * its lock file before it signals anybody; nothing in shared memory tells a
 * process whether its SIGTERM was meant for all.
 */
bool
swarm_server_stopping(void)
{
	char		line[MAXPGPATH];
	FILE	   *file = fopen("postmaster.pid", "r");
	bool		stopping = false;

	if (file == NULL)
		return false;
	for (int i = 1; i <= LOCK_FILE_LINE_PM_STATUS && fgets(line, sizeof(line), file); i++)
		stopping = i == LOCK_FILE_LINE_PM_STATUS &&
			strncmp(line, PM_STATUS_STOPPING, strlen(PM_STATUS_STOPPING)) == 0;
	fclose(file);
	return stopping;
}

/*
 * swarm_worker_settings: what a database or the configuration sets for its
 * sessions does not always suit a worker: jobs have a time limit of their
 * own, and are read committed and writable until they say otherwise.
 */
void
swarm_worker_settings(void)
{
	static const char *const settings[][2] = {
		{"statement_timeout", "0"},
		{"lock_timeout", "0"},
		{"idle_in_transaction_session_timeout", "0"},
		{"transaction_timeout", "0"},	/* since 17 */
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"zero_damaged_pages", "off"},
	};

	for (int i = 0; i < lengthof(settings); i++)
	{
		if (swarm_guc_find(settings[i][0]) != NULL)
			SetConfigOption(settings[i][0], settings[i][1], PGC_SUSET, PGC_S_OVERRIDE);
	}
}

/*
 * swarm_worker_sleep: until the latch is set or `ms` have passed (-1: for
 * ever); then settle interrupts and settings.
 */
void
swarm_worker_sleep(long ms, uint32 wait_event)
{
	(void) WaitLatch(MyLatch,
					 WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (ms >= 0 ? WL_TIMEOUT : 0),
					 ms, wait_event);
	ResetLatch(MyLatch);
	QueryCancelPending = false; /* there is nothing to cancel */
	if (ProcDiePending)
		proc_exit(1);			/* between turns: quietly */
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/*
 * memory_due: entries of this database expire before its scheduler means to
 * look; called after the commit.
 */
static void
memory_due(void)
{
	SwarmShard *shard;

	if (swarm_worker_shared == NULL)
		return;
	LWLockAcquire(swarm_job_lock, LW_SHARED);
	shard = swarm_shard_find(MyDatabaseId);
	if (shard != NULL)
		swarm_shard_wake_scheduler(shard);
	LWLockRelease(swarm_job_lock);
}
