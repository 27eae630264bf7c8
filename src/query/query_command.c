/*
 * query_command.c
 *	  A command inside a query: run at the point where it is held, by its own
 *	  process, in a subtransaction.
 *
 * So it sees what the query sees: its snapshot rules, temporary tables,
 * settings, its own changes; an error in it is text for who asked.  It runs as
 * the query's owner, and only where the owner's own statement runs: inside a
 * function with the rights of somebody else a change of settings could make
 * that function do what its owner did not mean.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "query/query_int.h"

static void execute(const SwarmQuerySlot *slot, const char *command, StringInfo result);

void
swarm_query_run_command(SwarmQuerySlot *slot)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context = AllocSetContextCreate(caller, "pg_swarm command",
												  ALLOCSET_DEFAULT_SIZES);
	ResourceOwner owner = CurrentResourceOwner;
	SwarmMailbox *mail = NULL;
	const char *sqlstate = "00000";
	char	   *command = NULL;
	bool		stopped = false;
	StringInfoData result;

	MemoryContextSwitchTo(context);
	initStringInfo(&result);
	LWLockAcquire(swarm_query_lock, LW_SHARED);
	if (slot->mailbox >= 0)
	{
		mail = swarm_query_mailbox(slot->mailbox);
		command = mail->command;
	}
	LWLockRelease(swarm_query_lock);
	if (mail != NULL)
	{
		volatile bool begun = false;

		PG_TRY();
		{
			if (IsInParallelMode())
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						 errmsg("cannot execute a command while the query runs in parallel")));
			BeginInternalSubTransaction(NULL);
			begun = true;
			MemoryContextSwitchTo(context);
			execute(slot, command, &result);
			ReleaseCurrentSubTransaction();
		}
		PG_CATCH();
		{
			ErrorData  *edata;

			MemoryContextSwitchTo(context);
			edata = CopyErrorData();
			FlushErrorState();
			if (begun)
				RollbackAndReleaseCurrentSubTransaction();
			MemoryContextSwitchTo(context);
			resetStringInfo(&result);
			appendStringInfoString(&result, edata->message ? edata->message : "missing error text");
			sqlstate = pstrdup(unpack_sql_state(edata->sqlerrcode));
		}
		PG_END_TRY();
		CurrentResourceOwner = owner;
	}

	LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
	stopped = (pg_atomic_fetch_and_u32(&slot->request, ~SWARM_REQ_COMMAND) & SWARM_REQ_STOP) != 0 &&
		strcmp(sqlstate, "57014") == 0;
	if (mail != NULL)
	{
		slot->mailbox = -1;
		strlcpy(mail->sqlstate, sqlstate, sizeof(mail->sqlstate));
		swarm_query_copy_text(mail->result, result.data, sizeof(mail->result));
		mail->done = true;
		if (mail->abandoned)
			mail->used = false;
	}
	LWLockRelease(swarm_query_lock);
	ConditionVariableBroadcast(&slot->changed);
	MemoryContextSwitchTo(caller);
	MemoryContextDelete(context);

	/*
	 * Who cancels while a command runs means the command; but if that was to
	 * terminate the query, the command has eaten it.
	 */
	if (stopped)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("canceling statement due to user request")));
	CHECK_FOR_INTERRUPTS();
}

/*
 * execute: as the owner.  Settings that the command sets stay, as those that
 * a function sets do.
 */
static void
execute(const SwarmQuerySlot *slot, const char *command, StringInfo result)
{
	Oid			user;
	int			sec_context;
	SwarmQueryRows rows = {.limit = 1000, .size = SWARM_MAIL_SIZE - 1,
	.as_value = true, .separator = "\n"};

	GetUserIdAndSecContext(&user, &sec_context);
	if (user != slot->owner || (sec_context & SECURITY_RESTRICTED_OPERATION) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("cannot execute a command while the query runs with the rights of another role")));
	SetUserIdAndSecContext(user, sec_context | SECURITY_LOCAL_USERID_CHANGE);
	(void) swarm_query_execute(command, false, &rows);
	SetUserIdAndSecContext(user, sec_context);
	if (rows.columns == 1 && rows.count == 1 && rows.value != NULL)
		appendStringInfoString(result, rows.value);
	else if (rows.columns > 0)
		appendStringInfoString(result, rows.text.data);
	else
		appendStringInfo(result, UINT64_FORMAT, rows.count);
}
