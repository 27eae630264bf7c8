/*
 * worker_hooks.c
 *	  Keeping out of the way of DROP DATABASE and the like.
 *
 * A command that needs a database without sessions, or the extension without
 * users, first puts a hold on the database: its scheduler and runners end
 * (what they ran is ready again), and the launcher starts none until the
 * command's transaction is over: before, a new one would still find the old
 * name or place.  Only for callers who may do what they ask.
 *
 * COMMIT PREPARED is watched because a prepared transaction's doorbell does
 * not ring.
 */
#include "postgres.h"

#include <signal.h>

#include "access/xact.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/doorbell.h"
#include "base/export.h"
#include "worker/worker_int.h"

#define HOLD_WAIT_MS	3000
#define HOLD_POLL_MS	5

static ProcessUtility_hook_type previous_utility = NULL;
static object_access_hook_type previous_access = NULL;

static void utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
					ProcessUtilityContext context, ParamListInfo params,
					QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc);
static void call_previous(PlannedStmt *pstmt, const char *query, bool read_only_tree,
						  ProcessUtilityContext context, ParamListInfo params,
						  QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc);
static void object_access(ObjectAccessType access, Oid class_id, Oid object_id,
						  int sub_id, void *arg);
static Oid	database_to_hold(Node *stmt);
static Oid	template_database(CreatedbStmt *stmt);
static Oid	database_to_probe(Node *stmt);
static bool touches_extension(Node *stmt);
static bool may_alter_database(Oid database);
static bool hold(Oid database);
static void await_end(Oid database);
static void release(void *item);
static bool all_gone(Oid database);
static void probe_at_commit(Oid database);
static void ring_probe(void *item);
static void ring_reprobe(void *item);
static void prepared_ended(void);

void
swarm_worker_hooks_init(void)
{
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = utility;
	previous_access = object_access_hook;
	object_access_hook = object_access;
}

static void
utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
		ProcessUtilityContext context, ParamListInfo params,
		QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *stmt = pstmt->utilityStmt;
	Oid			database = touches_extension(stmt) ? MyDatabaseId : database_to_hold(stmt);

	if (OidIsValid(database))
	{
		if (hold(database))
			swarm_doorbell_add(release, release, &database, sizeof(database));
		await_end(database);
	}
	call_previous(pstmt, query, read_only_tree, context, params, env, dest, qc);

	if (OidIsValid(database = database_to_probe(stmt)))
		probe_at_commit(database);
	else if (IsA(stmt, TransactionStmt) &&
			 (((TransactionStmt *) stmt)->kind == TRANS_STMT_COMMIT_PREPARED ||
			  ((TransactionStmt *) stmt)->kind == TRANS_STMT_ROLLBACK_PREPARED))
		prepared_ended();
}

static void
call_previous(PlannedStmt *pstmt, const char *query, bool read_only_tree,
			  ProcessUtilityContext context, ParamListInfo params,
			  QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	if (previous_utility)
		previous_utility(pstmt, query, read_only_tree, context, params, env, dest, qc);
	else
		standard_ProcessUtility(pstmt, query, read_only_tree, context, params, env, dest, qc);
}

/*
 * object_access: the extension is being dropped, by whatever command: its
 * scheduler shall look at commit.
 */
static void
object_access(ObjectAccessType access, Oid class_id, Oid object_id, int sub_id, void *arg)
{
	if (previous_access)
		previous_access(access, class_id, object_id, sub_id, arg);
	if (access == OAT_DROP && class_id == ExtensionRelationId &&
		object_id == get_extension_oid("pg_swarm", true))
	{
		Oid			database = MyDatabaseId;

		swarm_job_names_changed(0);
		swarm_doorbell_add(ring_reprobe, NULL, &database, sizeof(database));
	}
}

/*
 * database_to_hold: which database the command wants without sessions;
 * InvalidOid for other commands and for callers who may not do it.
 */
static Oid
database_to_hold(Node *stmt)
{
	Oid			database = InvalidOid;

	if (!IsTransactionState())
		return InvalidOid;
	if (IsA(stmt, CreatedbStmt))
		return template_database((CreatedbStmt *) stmt);
	if (IsA(stmt, DropdbStmt))
		database = get_database_oid(((DropdbStmt *) stmt)->dbname, true);
	else if (IsA(stmt, RenameStmt) && ((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
		database = get_database_oid(((RenameStmt *) stmt)->subname, true);
	else if (IsA(stmt, AlterDatabaseStmt))
	{
		ListCell   *lc;

		foreach(lc, ((AlterDatabaseStmt *) stmt)->options)
		{
			if (strcmp(((DefElem *) lfirst(lc))->defname, "tablespace") == 0)
				database = get_database_oid(((AlterDatabaseStmt *) stmt)->dbname, true);
		}
	}
	if (!OidIsValid(database) || database == MyDatabaseId || !may_alter_database(database))
		return InvalidOid;
	return database;
}

static Oid
template_database(CreatedbStmt *stmt)
{
	ListCell   *lc;

	foreach(lc, stmt->options)
	{
		DefElem    *option = lfirst(lc);

		if (strcmp(option->defname, "template") == 0 && option->arg != NULL)
		{
			Oid			database = get_database_oid(defGetString(option), true);

			if (OidIsValid(database) && may_alter_database(database))
				return database;
		}
	}
	return InvalidOid;
}

/*
 * database_to_probe: which database may be served only after the command: it
 * is new, has another name, or takes connections; InvalidOid for others.
 */
static Oid
database_to_probe(Node *stmt)
{
	ListCell   *lc;

	if (IsA(stmt, CreatedbStmt))
		return get_database_oid(((CreatedbStmt *) stmt)->dbname, true);
	if (IsA(stmt, RenameStmt) && ((RenameStmt *) stmt)->renameType == OBJECT_DATABASE)
		return get_database_oid(((RenameStmt *) stmt)->newname, true);
	if (!IsA(stmt, AlterDatabaseStmt))
		return InvalidOid;
	foreach(lc, ((AlterDatabaseStmt *) stmt)->options)
	{
		DefElem    *option = lfirst(lc);

		if ((strcmp(option->defname, "allow_connections") == 0 && defGetBoolean(option)) ||
			(strcmp(option->defname, "is_template") == 0 && !defGetBoolean(option)))
			return get_database_oid(((AlterDatabaseStmt *) stmt)->dbname, true);
	}
	return InvalidOid;
}

static bool
may_alter_database(Oid database)
{
	return swarm_database_ownercheck(database, GetUserId());
}

/*
 * touches_extension: DROP or ALTER EXTENSION pg_swarm, by somebody who may.
 */
static bool
touches_extension(Node *stmt)
{
	bool		touches = false;
	Oid			extension;

	if (IsA(stmt, DropStmt) && ((DropStmt *) stmt)->removeType == OBJECT_EXTENSION)
	{
		ListCell   *lc;

		foreach(lc, ((DropStmt *) stmt)->objects)
			touches |= strcmp(strVal(lfirst(lc)), "pg_swarm") == 0;
	}
	else if (IsA(stmt, AlterExtensionStmt))
		touches = strcmp(((AlterExtensionStmt *) stmt)->extname, "pg_swarm") == 0;
	if (!touches)
		return false;
	extension = get_extension_oid("pg_swarm", true);
	return OidIsValid(extension) && swarm_extension_ownercheck(extension, GetUserId());
}

/* ------------------------------------------------------------------------
 * Holds
 * ------------------------------------------------------------------------ */

/*
 * hold: nobody of ours in this database until release(); those inside are told
 * to leave.  False if it is not served: nothing to release.
 */
static bool
hold(Oid database)
{
	SwarmShard *shard;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard = swarm_shard_find(database);
	if (shard != NULL)
	{
		shard->holds++;
		swarm_shard_stop_runners(shard);
		/* a latch is not enough: it may run a job itself, or wait for a lock */
		if (shard->scheduler_pid != 0)
			kill(shard->scheduler_pid, SIGTERM);
	}
	LWLockRelease(swarm_job_lock);
	return shard != NULL;
}

/*
 * await_end: wait for those inside to leave, a few seconds at most; the
 * command itself then waits or fails as the server does.
 */
static void
await_end(Oid database)
{
	TimestampTz start = GetCurrentTimestamp();

	while (!all_gone(database) &&
		   !TimestampDifferenceExceeds(start, GetCurrentTimestamp(), HOLD_WAIT_MS))
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						 HOLD_POLL_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

static bool
all_gone(Oid database)
{
	SwarmShard *shard;
	bool		gone;

	LWLockAcquire(swarm_job_lock, LW_SHARED);
	shard = swarm_shard_find(database);
	gone = shard == NULL ||
		(shard->runners == 0 && shard->extra == 0 && shard->scheduler_pid == 0 &&
		 !shard->starting);
	LWLockRelease(swarm_job_lock);
	return gone;
}

/* release: safe at commit and abort: raises nothing. */
static void
release(void *item)
{
	SwarmShard *shard;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard = swarm_shard_find(*(Oid *) item);
	if (shard != NULL && shard->holds > 0)
	{
		shard->holds--;
		shard->restart_at = 0;
		shard->restarts = 0;
	}
	LWLockRelease(swarm_job_lock);
	swarm_launcher_wake();
}

/* ------------------------------------------------------------------------
 * New databases, new extensions
 * ------------------------------------------------------------------------ */

/*
 * swarm._installed(): called by the install script.
 */
SWARM_FUNCTION(swarm_worker_installed);
Datum
swarm_worker_installed(PG_FUNCTION_ARGS)
{
	if (swarm_worker_shared != NULL)
		probe_at_commit(MyDatabaseId);
	PG_RETURN_VOID();
}

static void
probe_at_commit(Oid database)
{
	swarm_doorbell_add(ring_probe, NULL, &database, sizeof(database));
}

static void
ring_probe(void *item)
{
	Oid			database = *(Oid *) item;
	SwarmShard *shard;

	if (!OidIsValid(database))
		return;
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard = swarm_shard_find(database);
	if (shard != NULL)
	{
		/* its scheduler may have looked before this commit */
		shard->reprobe = true;
		shard->restart_at = 0;
		swarm_shard_wake_scheduler(shard);
	}
	swarm_launcher_probe(database);
	LWLockRelease(swarm_job_lock);
}

static void
ring_reprobe(void *item)
{
	SwarmShard *shard;

	swarm_job_names_changed(0);
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard = swarm_shard_find(*(Oid *) item);
	if (shard != NULL)
	{
		shard->reprobe = true;
		shard->restart_at = 0;
		shard->state = SWARM_SHARD_PROBING;
		swarm_shard_stop_runners(shard);
		swarm_shard_wake_scheduler(shard);
	}
	LWLockRelease(swarm_job_lock);
}

/*
 * prepared_ended: its doorbell did not ring: look for its jobs, and whether it
 * has brought the extension or taken it away.
 */
static void
prepared_ended(void)
{
	Oid			database = MyDatabaseId;
	bool		installed = OidIsValid(get_extension_oid("pg_swarm", true));
	bool		served;

	swarm_job_prepared_ended(database);
	LWLockAcquire(swarm_job_lock, LW_SHARED);
	served = swarm_shard_find(database) != NULL;
	LWLockRelease(swarm_job_lock);
	if (installed && !served)
		ring_probe(&database);
	else if (served && !installed)
		ring_reprobe(&database);
}
