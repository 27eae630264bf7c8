/*
 * job_run.c
 *	  Running claimed jobs, and what becomes of them.
 *
 * One transaction runs a batch (usually of one): each job in a subtransaction
 * as its owner, with the handler's effects, the delete from _job and the
 * history row together.  A job that fails is rolled back alone; its failure is
 * recorded in the same transaction.  So a job costs one commit.  After it the
 * claims are settled in memory.
 *
 * A handler that is a procedure may commit; it runs outside of a
 * subtransaction and alone, and its end is recorded in its last transaction.
 *
 * If the batch's commit itself fails (a deferred constraint, say), every job
 * is run again alone, and the one that fails alone is the one to blame.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "commands/defrem.h"
#include "commands/prepare.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "catalog/namespace.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "pgstat.h"
#include "replication/syncrep.h"
#include "storage/lock.h"
#include "tcop/pquery.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/fault.h"
#include "job/job_int.h"
#include "job/job_handler.h"

#define FREE_RETRIES		10
#define FREE_RETRY_US		20000
#define LOST_ERROR			"the worker that ran the job was lost"

/* What a claim came to; settled in memory after the commit. */
typedef enum OutcomeKind
{
	OUTCOME_NONE,
	OUTCOME_ENDED,				/* row moved to the history: state */
	OUTCOME_RETURNED,			/* claim->job says when and with what flags */
	OUTCOME_GONE				/* no row: somebody else ended it */
} OutcomeKind;

typedef struct Outcome
{
	OutcomeKind kind;
	SwarmJobState state;
} Outcome;

void		(*swarm_job_inflight_hook) (int64 id, int attempt) = NULL;
SwarmSlot  *swarm_job_current_slot = NULL;

static TimeoutId timeout_id;
static volatile sig_atomic_t timed_out = false;
static TimestampTz deadline = 0;	/* of the job begun last; 0 = none */

static bool run_batch(SwarmSlot *slot, SwarmClaim *claims, Outcome *out, int n,
					  XLogRecPtr *unflushed);
static void run_one(SwarmSlot *slot, SwarmClaim *claim, Outcome *out, bool alone);
static void run_in_subtransaction(SwarmSlot *slot, SwarmClaim *claim,
								  SwarmJobRow *row, Outcome *out);
static void run_procedure(SwarmSlot *slot, SwarmClaim *claim,
						  SwarmJobRow *row, Outcome *out);
static bool group_commit_possible(const SwarmClaim *claims);
static void settle(SwarmShard *shard, const SwarmClaim *claim, const Outcome *out,
				   XLogRecPtr unflushed);
static void cancel_late(const SwarmClaim *claim);
static void record_failure(SwarmSlot *slot, SwarmClaim *claim, const SwarmJobRow *row,
						   int sqlstate, const char *error, Outcome *out);
static void fail_alone(SwarmSlot *slot, SwarmClaim *claim, int sqlstate,
					   const char *error, Outcome *out);
static void return_for(SwarmClaim *claim, int64 wait_us, Outcome *out);
static void begin_as_owner(const SwarmJobRow *row, int sec_context);
static void commit_as(Oid owner, bool limited);
static void lock_role(bool locked);
static void check_interrupted(SwarmSlot *slot);
static void stop_clock(void);
static void on_timeout(void);
static char *error_text(const ErrorData *edata);
static void begin_transaction(void);
static void clean_session(void);
static void drop_leftovers(void);

void
swarm_job_run_init(void)
{
	static bool done = false;

	if (!done)
		timeout_id = RegisterTimeout(USER_TIMEOUT, on_timeout);
	done = true;
}

void
swarm_job_run(SwarmShard *shard, SwarmSlot *slot, SwarmClaim *claims, int n)
{
	Outcome    *out = palloc0(n * sizeof(Outcome));
	XLogRecPtr	unflushed = InvalidXLogRecPtr;

	swarm_job_current_slot = slot;
	if (!run_batch(slot, claims, out, n, &unflushed))
	{
		/* Nothing of it was committed: once more, one by one. */
		memset(out, 0, n * sizeof(Outcome));
		for (int i = 0; i < n; i++)
		{
			claims[i].job.flags |= SWARM_READY_NO_BATCH;
			return_for(&claims[i], 0, &out[i]);
		}
	}
	/* before anybody hears that the jobs have ended: he may want the same */
	LockReleaseAll(USER_LOCKMETHOD, true);
	for (int i = 0; i < n; i++)
		settle(shard, &claims[i], &out[i], unflushed);
	swarm_job_current_slot = NULL;
	swarm_queue_running(slot, NULL);
	clean_session();
}

/*
 * run_batch: one transaction for all claims.  False if its commit failed and
 * there was more than one: then nothing has happened.  *unflushed is set if
 * the commit is left to the scheduler to flush.
 */
static bool
run_batch(SwarmSlot *slot, SwarmClaim *claims, Outcome *out, int n,
		  XLogRecPtr *unflushed)
{
	MemoryContext turn = CurrentMemoryContext;
	MemoryContext one = AllocSetContextCreate(turn, "pg_swarm job", ALLOCSET_DEFAULT_SIZES);
	SwarmReady *before = palloc(n * sizeof(SwarmReady));
	volatile bool done = true;

	for (int i = 0; i < n; i++)
		before[i] = claims[i].job;
	swarm_job_names_keep(turn);
	PG_TRY();
	{
		begin_transaction();
		swarm_role_take(claims[0].job.owner, !slot->lent);
		if (!swarm_job_history_ready())
		{
			swarm_job_history_prepare();
			PopActiveSnapshot();
			CommitTransactionCommand(); /* its locks must not last a job long */
			begin_transaction();
		}
		for (int i = 0; i < n; i++)
		{
			if (i > 0 && IsTransactionState())
				drop_leftovers();
			MemoryContextSwitchTo(one);
			run_one(slot, &claims[i], &out[i], n == 1);
			MemoryContextReset(one);
		}
		MemoryContextSwitchTo(turn);
		SWARM_FAULT("job.commit");
		if (IsTransactionState())
		{
			bool		group = group_commit_possible(claims);

			if (group)
				(void) set_config_option("synchronous_commit", "off",
										 PGC_USERSET, PGC_S_SESSION,
										 GUC_ACTION_LOCAL, true, 0, false);
			commit_as(claims[0].job.owner, n == 1 &&
					  out[0].kind == OUTCOME_ENDED && out[0].state == SWARM_JOB_COMPLETED);
			if (group)
				*unflushed = XactLastCommitEnd;
		}
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(turn);
		edata = CopyErrorData();
		FlushErrorState();
		stop_clock();
		AbortCurrentTransaction();
		SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, 0);
		for (int i = 0; i < n; i++)
			claims[i].job = before[i];	/* failures counted here did not
										 * happen */
		if (n == 1)
			fail_alone(slot, &claims[0], edata->sqlerrcode, error_text(edata), &out[0]);
		else
			done = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(turn);
	swarm_job_names_keep(NULL);
	return done;
}

/*
 * run_one: a claim inside the batch's transaction.  `alone` says that a
 * procedure may be run here: nothing else has happened in the transaction.
 */
static void
run_one(SwarmSlot *slot, SwarmClaim *claim, Outcome *out, bool alone)
{
	SwarmJobRow row;
	bool		procedure;
	char	   *veto;
	char		activity[64];

	snprintf(activity, sizeof(activity), "job " INT64_FORMAT " (attempt %d)",
			 claim->job.id, claim->job.attempts + 1);
	pgstat_report_activity(STATE_RUNNING, activity);
	swarm_queue_running(slot, claim);
	if (swarm_job_inflight_hook)
		swarm_job_inflight_hook(claim->job.id, claim->job.attempts + 1);
	SWARM_FAULT("job.claimed");

	if (!IsTransactionState())
	{
		/* A procedure ran before this one: leave it to the next turn. */
		return_for(claim, 0, out);
		return;
	}
	if (!swarm_job_fetch(claim->job.id, &row))
	{
		out->kind = OUTCOME_GONE;
		return;
	}
	row.attempts = claim->job.attempts;
	if (claim->job.flags & SWARM_READY_LOST)
	{
		claim->job.flags &= ~SWARM_READY_LOST;
		if (row.kind != SWARM_KIND_SQL && swarm_job_handler(row.kind) == NULL)
			claim->job.flags |= SWARM_READY_EXTERNAL;
		record_failure(slot, claim, &row, ERRCODE_ADMIN_SHUTDOWN, LOST_ERROR, out);
		return;
	}
	procedure = row.kind != SWARM_KIND_SQL && swarm_handler_is_procedure(&row);
	if (procedure && !alone)
	{
		claim->job.flags |= SWARM_READY_NO_BATCH;
		return_for(claim, 0, out);
		return;
	}
	veto = swarm_job_ask_hooks(&row);
	if (veto != NULL)
	{
		row.max_attempts = row.attempts + 1;	/* another one would end the
												 * same */
		record_failure(slot, claim, &row, ERRCODE_EXTERNAL_ROUTINE_EXCEPTION, veto, out);
	}
	else if (procedure)
		run_procedure(slot, claim, &row, out);
	else
		run_in_subtransaction(slot, claim, &row, out);
}

/*
 * run_in_subtransaction: the handler's effects and the end of the job, or
 * neither.
 */
static void
run_in_subtransaction(SwarmSlot *slot, SwarmClaim *claim, SwarmJobRow *row, Outcome *out)
{
	MemoryContext turn = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	TimestampTz started = swarm_now();
	volatile bool moved = false;
	ErrorData  *edata = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(turn);
	PG_TRY();
	{
		SwarmJobEnd end = {.state = SWARM_JOB_COMPLETED};
		int			guc_level = NewGUCNestLevel();
		Oid			user;
		int			sec_context;

		GetUserIdAndSecContext(&user, &sec_context);
		begin_as_owner(row, SECURITY_LOCAL_USERID_CHANGE);
		end.result = swarm_handler_call(row);
		check_interrupted(slot);
		stop_clock();
		AtEOXact_GUC(false, guc_level);
		SetUserIdAndSecContext(user, sec_context);

		end.started = started;
		end.attempts = row->attempts + 1;
		moved = swarm_job_end(row, &end);
		if (moved)
			ReleaseCurrentSubTransaction();
		else
			RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(turn);
		CurrentResourceOwner = owner;
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(turn);
		edata = CopyErrorData();
		FlushErrorState();
		stop_clock();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(turn);
		CurrentResourceOwner = owner;
	}
	PG_END_TRY();

	if (edata != NULL)
		record_failure(slot, claim, row, edata->sqlerrcode, error_text(edata), out);
	else
	{
		out->kind = moved ? OUTCOME_ENDED : OUTCOME_GONE;
		out->state = SWARM_JOB_COMPLETED;
	}
}

/*
 * run_procedure: CALL outside of any block, so that it may commit.  Leaves no
 * transaction open.  An error is handled by the caller, run_batch, as that of
 * a job that ran alone.
 *
 * Its transactions are begun as the owner, because a ROLLBACK goes back to
 * the user that began the transaction.  And without a security context, which
 * must not be set when a transaction begins: lock_role() stands in for it.
 */
static void
run_procedure(SwarmSlot *slot, SwarmClaim *claim, SwarmJobRow *row, Outcome *out)
{
	MemoryContext turn = CurrentMemoryContext;
	TimestampTz started = swarm_now();
	SwarmJobEnd end = {.state = SWARM_JOB_COMPLETED};
	Portal		portal;
	SwarmJobRow again;

	PopActiveSnapshot();
	CommitTransactionCommand();
	SetUserIdAndSecContext(row->owner, 0);
	StartTransactionCommand();

	/* COMMIT inside a procedure needs a portal that outlives transactions. */
	portal = CreateNewPortal();
	portal->visible = false;
	portal->status = PORTAL_ACTIVE;
	MemoryContextSwitchTo(turn);
	lock_role(true);
	PG_TRY();
	{
		ActivePortal = portal;
		PortalContext = portal->portalContext;
		EnsurePortalSnapshotExists();
		begin_as_owner(row, 0);
		swarm_handler_call_procedure(row);
		check_interrupted(slot);
		stop_clock();
	}
	PG_FINALLY();
	{
		lock_role(false);
		SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, 0);
		portal->portalSnapshot = NULL;
		portal->status = PORTAL_DONE;
		ActivePortal = NULL;
		PortalContext = NULL;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(turn);

	if (!ActiveSnapshotSet())
		PushActiveSnapshot(GetTransactionSnapshot());
	end.started = started;
	end.attempts = row->attempts + 1;
	if (swarm_job_fetch(row->id, &again) && swarm_job_end(&again, &end))
	{
		out->kind = OUTCOME_ENDED;
		out->state = SWARM_JOB_COMPLETED;
		while (ActiveSnapshotSet())
			PopActiveSnapshot();
		PortalDrop(portal, false);
		commit_as(row->owner, true);
	}
	else
	{
		out->kind = OUTCOME_GONE;
		AbortCurrentTransaction();
		SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, 0);
	}
	MemoryContextSwitchTo(turn);
}

/* ------------------------------------------------------------------------
 * Failure
 * ------------------------------------------------------------------------ */

/*
 * record_failure: decide by the error what becomes of the job, and write it in
 * the current transaction.
 */
static void
record_failure(SwarmSlot *slot, SwarmClaim *claim, const SwarmJobRow *row,
			   int sqlstate, const char *error, Outcome *out)
{
	SwarmJobEnd end = {.state = SWARM_JOB_DEAD, .error = error,
	.started = slot->started, .attempts = row->attempts + 1};

	if (slot->cancel)
	{
		end.state = SWARM_JOB_CANCELLED;
		end.error = slot->cancel_reason[0] ? slot->cancel_reason : "cancelled while running";
	}
	else if (sqlstate == ERRCODE_QUERY_CANCELED && timed_out)
		end.error = psprintf("the job ran longer than its timeout of %g s",
							 row->timeout_us / 1e6);
	else if ((sqlstate == ERRCODE_T_R_SERIALIZATION_FAILURE ||
			  sqlstate == ERRCODE_T_R_DEADLOCK_DETECTED) &&
			 claim->job.free_retries < FREE_RETRIES)
	{
		claim->job.free_retries++;
		return_for(claim, FREE_RETRY_US * claim->job.free_retries, out);
		return;
	}

	if (end.state == SWARM_JOB_DEAD && end.attempts < row->max_attempts)
	{
		int64		wait = swarm_job_backoff_us(end.attempts);

		claim->job.attempts = end.attempts;
		return_for(claim, wait, out);
		if (!swarm_job_record_attempt(row, end.attempts, claim->job.due, end.error, false))
			out->kind = OUTCOME_GONE;
		return;
	}
	if (!swarm_job_end(row, &end))
	{
		out->kind = OUTCOME_GONE;
		return;
	}
	out->kind = OUTCOME_ENDED;
	out->state = end.state;
	if (end.state == SWARM_JOB_DEAD)
		ereport(LOG,
				(errmsg("job " INT64_FORMAT " is dead after %d attempts: %s",
						row->id, end.attempts, end.error)));
}

/*
 * fail_alone: the transaction of a single job is lost; record that in a new
 * one.  If even that fails, the job goes back with the longest wait of its
 * attempt, counted in memory only.
 */
static void
fail_alone(SwarmSlot *slot, SwarmClaim *claim, int sqlstate,
		   const char *error, Outcome *out)
{
	MemoryContext turn = CurrentMemoryContext;

	PG_TRY();
	{
		SwarmJobRow row;

		begin_transaction();
		if (swarm_job_fetch(claim->job.id, &row))
		{
			row.attempts = claim->job.attempts;
			record_failure(slot, claim, &row, sqlstate, error, out);
		}
		else
			out->kind = OUTCOME_GONE;
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(turn);
		EmitErrorReport();
		FlushErrorState();
		AbortCurrentTransaction();
		claim->job.attempts++;
		return_for(claim, swarm_job_backoff_us(claim->job.attempts), out);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(turn);
}

static void
return_for(SwarmClaim *claim, int64 wait_us, Outcome *out)
{
	claim->job.due = swarm_now() + wait_us;
	out->kind = OUTCOME_RETURNED;
}

/*
 * group_commit_possible: may the scheduler flush this commit, together with
 * others?  If the queue asks for it, and nobody wants a standby to confirm.
 */
static bool
group_commit_possible(const SwarmClaim *claims)
{
	return claims[0].group_commit &&
		!(synchronous_commit > SYNCHRONOUS_COMMIT_LOCAL_FLUSH &&
		  SyncRepStandbyNames != NULL && SyncRepStandbyNames[0] != '\0');
}

static void
settle(SwarmShard *shard, const SwarmClaim *claim, const Outcome *out,
	   XLogRecPtr unflushed)
{
	switch (out->kind)
	{
		case OUTCOME_ENDED:
			if (XLogRecPtrIsInvalid(unflushed))
				swarm_queue_finished(shard, claim, out->state);
			else
				swarm_queue_committed(shard, claim, out->state, unflushed);
			break;
		case OUTCOME_RETURNED:
			if (swarm_queue_return(shard, claim))
				cancel_late(claim);
			break;
		case OUTCOME_GONE:
		case OUTCOME_NONE:
			swarm_queue_discard(shard, claim);
			break;
	}
}

/*
 * cancel_late: the job was cancelled when its failure had been committed but
 * not yet settled in memory.  job_cancel() has said yes: so be it.
 */
static void
cancel_late(const SwarmClaim *claim)
{
	MemoryContext turn = CurrentMemoryContext;

	PG_TRY();
	{
		SwarmJobEnd end = {.state = SWARM_JOB_CANCELLED, .error = "cancelled",
		.started = swarm_job_current_slot->started, .attempts = claim->job.attempts};
		SwarmJobRow row;

		begin_transaction();
		if (swarm_job_fetch(claim->job.id, &row) &&
			swarm_job_end(&row, &end))
			swarm_job_ring_ended(row.id, SWARM_JOB_CANCELLED);
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(turn);
		EmitErrorReport();
		FlushErrorState();
		AbortCurrentTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(turn);
}

/* error_text: what the job's row tells: message and SQLSTATE. */
static char *
error_text(const ErrorData *edata)
{
	return psprintf("%s (SQLSTATE %s)",
					edata->message ? edata->message : "missing error text",
					unpack_sql_state(edata->sqlerrcode));
}

/* ------------------------------------------------------------------------
 * Surroundings of a handler
 * ------------------------------------------------------------------------ */

static void
begin_transaction(void)
{
	MemoryContext turn = CurrentMemoryContext;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	MemoryContextSwitchTo(turn);
}

/*
 * begin_as_owner: from here on the handler's world: its owner's rights, and
 * its time limit.  SET ROLE and RESET ROLE are refused inside, by the security
 * context or by lock_role().
 *
 * A cancellation that came since swarm_queue_running() is pending, and must
 * stay so: it ends the handler at its first look for interrupts.
 */
static void
begin_as_owner(const SwarmJobRow *row, int sec_context)
{
	HOLD_INTERRUPTS();
	SWARM_FAULT("job.begin");
	RESUME_INTERRUPTS();
	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(row->owner)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role with OID %u, owner of the job, does not exist", row->owner)));
	SetUserIdAndSecContext(row->owner, sec_context);
	timed_out = false;
	deadline = 0;
	if (row->timeout_us > 0)
	{
		int			ms = (int) Min(Max(row->timeout_us / 1000, 1), INT_MAX);

		deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), ms);
		enable_timeout_at(timeout_id, deadline);
	}
}

/*
 * commit_as: commit, with the rights of the owner of the jobs: deferred
 * triggers and the queries of WITH HOLD cursors run now.  `limited`: of a
 * single job, whose time limit holds for its deferred triggers; but not for
 * the commit itself, which a standby may have to confirm.
 */
static void
commit_as(Oid owner, bool limited)
{
	if (ActiveSnapshotSet())
		PopActiveSnapshot();
	SetUserIdAndSecContext(owner, SECURITY_LOCAL_USERID_CHANGE);
	if (limited)
	{
		if (deadline != 0)
			enable_timeout_at(timeout_id, deadline);
		AfterTriggerFireDeferred();
		check_interrupted(swarm_job_current_slot);
		stop_clock();
	}
	CommitTransactionCommand();
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, 0);
}

/*
 * lock_role: the settings that change the current user cannot be set now, in
 * this process.  They are not made constants: parallel workers would not get
 * those.  Raises nothing.
 */
static void
lock_role(bool locked)
{
	static const char *const names[] = {"role", "session_authorization"};

	for (int i = 0; i < lengthof(names); i++)
	{
		struct config_generic *setting = swarm_guc_find(names[i]);

		if (setting != NULL)
			setting->context = locked ? PGC_SIGHUP : PGC_USERSET;
	}
}

/*
 * check_interrupted: a handler that caught its cancellation, or its timeout,
 * has not done its work.
 */
static void
check_interrupted(SwarmSlot *slot)
{
	if (slot->cancel || timed_out)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED), errmsg("the job was interrupted")));
}

static void
stop_clock(void)
{
	disable_timeout(timeout_id, false);
	QueryCancelPending = false;
}

bool
swarm_job_cancelled(void)
{
	return swarm_job_current_slot != NULL && swarm_job_current_slot->cancel;
}

static void
on_timeout(void)
{
	timed_out = true;
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
}

/*
 * clean_session: after a batch: nothing that a job left in the session may
 * meet the next one, which may have another owner.  Outside of a transaction.
 */
static void
clean_session(void)
{
	MemoryContext turn = CurrentMemoryContext;

	ResetAllOptions();			/* set by a procedure, or a deferred trigger */
	drop_leftovers();
	MemoryContextSwitchTo(turn);
}

/*
 * drop_leftovers: between the jobs of a batch, in its transaction, and after
 * the last one: objects of the session by whose names the next job could
 * stumble.  Settings are reset already where a job ends; advisory locks
 * protect what is not committed yet, and last until it is.  An error (of a
 * temporary table with pending triggers, say) is one of the batch.
 */
static void
drop_leftovers(void)
{
	Oid			temp_namespace;
	Oid			temp_toast_namespace;
	bool		inside = IsTransactionState();

	PortalHashTableDeleteAll();
	DropAllPreparedStatements();
	ResetSequenceCaches();
	GetTempNamespaceState(&temp_namespace, &temp_toast_namespace);
	if (!OidIsValid(temp_namespace))
		return;
	if (!inside)
	{
		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
	}
	ResetTempTableNamespace();
	if (!inside)
	{
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
}
