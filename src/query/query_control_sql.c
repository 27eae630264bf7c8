/*
 * query_control_sql.c
 *	  What is done to a query from outside: one function for all actions, which
 *	  swarm.query_control() and its shorter forms call.
 *
 * A query that runs is asked through its slot, and answers there: the wish
 * takes effect at once, whatever becomes of the caller's transaction, and what
 * came of it is written down by the scheduler.  An llm query between two turns
 * is but a row, and changes with the caller's transaction.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "storage/ipc.h"
#include "storage/proc.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/export.h"
#include "base/hook.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "query/query_int.h"

#define ANSWER_MS		1000	/* default wait for a pause */
#define BEGIN_MS		10		/* between looks whether a query has begun */
#define WORKERS_MS		100		/* then parallel workers are held by
								 * themselves */

typedef struct Request
{
	SwarmQueryRow row;
	Jsonb	   *params;
} Request;

typedef const char *(*Action) (Request *r);

static void call_hooks(const char *event, SwarmHookPhase phase, const Request *r, const char *answer);

static const char *act_pause(Request *r);
static const char *pause_turn(Request *r);
static const char *await_pause(SwarmQuerySlot *slot, int64 id, long ms);
static bool held_by_workers(SwarmQuerySlot *slot);
static const char *act_resume(Request *r);
static const char *act_terminate(Request *r);
static const char *act_command(Request *r);
static void inject(Request *r, const char *text);
static int	take_mailbox(const char *command, bool abandoned);
static const char *act_permissions(Request *r);
static const char *act_model(Request *r);
static const char *act_approve(Request *r);
static SwarmQuerySlot *live_slot(const SwarmQueryRow *row, SwarmQueryEvent event);
static void set_wanted(const SwarmQueryRow *row, const char *wanted, const char *mode);
static void cancel_job(int64 job);
static char *text_param(Request *r, const char *key);
static long await_begin(SwarmQueryRow *row, long ms);
static long ms_param(Request *r, const char *key, long none);

bool		swarm_query_may_post = false;

static const struct
{
	const char *name;
	Action		act;
}			actions[] = {
	{"pause", act_pause},
	{"resume", act_resume},
	{"terminate", act_terminate},
	{"execute_command", act_command},
	{"change_permissions", act_permissions},
	{"change_model", act_model},
	{"approve", act_approve}
};

/*
 * swarm._query_act(action text, query_id bigint, params jsonb) returns text:
 * the state after it, or the result of a command.
 */
SWARM_FUNCTION(swarm_query_action);
Datum
swarm_query_action(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Request		request = {.params = PG_GETARG_JSONB_P(2)};

	for (int i = 0; i < lengthof(actions); i++)
	{
		const char *answer;
		char	   *event;

		if (strcmp(name, actions[i].name) != 0)
			continue;
		event = psprintf("query_%s", name);
		PreventCommandDuringRecovery("query_control()");
		swarm_require_preload("controlling a query");
		swarm_query_get(PG_GETARG_INT64(1), false, &request.row);
		swarm_query_check_control(&request.row, actions[i].act == act_command);
		call_hooks(event, SWARM_HOOK_BEFORE, &request, NULL);
		answer = actions[i].act(&request);
		call_hooks(event, SWARM_HOOK_AFTER, &request, answer);
		if (answer == NULL)
			PG_RETURN_NULL();
		PG_RETURN_TEXT_P(cstring_to_text(answer));
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown action \"%s\"", name),
			 errhint("Actions are pause, resume, terminate, change_model, change_permissions, execute_command, approve, optimize, list, status and stats.")));
}

/* call_hooks: those of users around an action. */
static void
call_hooks(const char *event, SwarmHookPhase phase, const Request *r, const char *answer)
{
	SwarmHookData data;

	if (!swarm_hook_wanted(event, phase))
		return;
	swarm_hook_data(&data);
	swarm_hook_int64(&data, "id", r->row.id);
	swarm_hook_text(&data, "kind", r->row.kind);
	swarm_hook_text(&data, "body", r->row.body);
	swarm_hook_jsonb(&data, "params", JsonbPGetDatum(r->params));
	if (phase == SWARM_HOOK_BEFORE)
		swarm_hook_before(event, GetUserId(), &data);
	else
	{
		swarm_hook_text(&data, "answer", answer);
		swarm_hook_after(event, GetUserId(), &data);
	}
}

/* ------------------------------------------------------------------------
 * Pause and resume
 * ------------------------------------------------------------------------ */

/*
 * act_pause: params mode (llm only), timeout (how long to wait for it to
 * hold), length (it goes on by itself after that).
 */
static const char *
act_pause(Request *r)
{
	long		ms = ms_param(r, "timeout", ANSWER_MS);
	long		length = ms_param(r, "length", -1);
	SwarmQuerySlot *slot;

	if (strcmp(r->row.kind, "llm") == 0)
		return pause_turn(r);
	if (text_param(r, "mode") != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a query of kind \"%s\" has no pause modes", r->row.kind)));
	ms -= await_begin(&r->row, ms);
	LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
	slot = live_slot(&r->row, SWARM_QUERY_PAUSE);
	slot->actor = GetUserId();
	slot->asked_at = swarm_now();
	slot->resume_at = length >= 0 ? slot->asked_at + length * INT64CONST(1000) : DT_NOEND;
	swarm_query_ask(slot, SWARM_REQ_PAUSE, false);
	LWLockRelease(swarm_query_lock);
	return await_pause(slot, r->row.id, ms);
}

/*
 * await_begin: a query that was just started is in its queue for a moment; wait
 * at most `ms` until a process has it.  Returns how long that took.
 */
static long
await_begin(SwarmQueryRow *row, long ms)
{
	static uint32 wait_event = 0;
	TimestampTz start = GetCurrentTimestamp();
	ConditionVariable *cv = swarm_query_waiters(row->id);
	long		passed = 0;

	if (wait_event == 0)
		wait_event = swarm_wait_event_new("SwarmQueryBegin");
	ConditionVariablePrepareToSleep(cv);
	while (row->state == SWARM_QUERY_INIT && passed < ms)
	{
		bool		begun;

		LWLockAcquire(swarm_query_lock, LW_SHARED);
		begun = swarm_query_find(row->id) != NULL;
		LWLockRelease(swarm_query_lock);
		if (begun)
			break;
		(void) ConditionVariableTimedSleep(cv, BEGIN_MS, wait_event);
		passed = (long) ((GetCurrentTimestamp() - start) / 1000);
		(void) swarm_query_fetch(row->id, false, row);
	}
	ConditionVariableCancelSleep();
	return Min(passed, ms);
}

/*
 * await_pause: "paused", or "pausing" after `ms`; the wish stands.
 */
static const char *
await_pause(SwarmQuerySlot *slot, int64 id, long ms)
{
	static uint32 wait_event = 0;
	TimestampTz start = GetCurrentTimestamp();
	const char *answer = NULL;

	if (wait_event == 0)
		wait_event = swarm_wait_event_new("SwarmQueryControl");
	ConditionVariablePrepareToSleep(&slot->changed);
	for (;;)
	{
		long		passed = (long) ((GetCurrentTimestamp() - start) / 1000);

		LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
		if (slot->pid == 0 || slot->query != id)
			answer = "ended";
		else if (slot->state == SWARM_QUERY_PAUSED || held_by_workers(slot))
			answer = "paused";
		else if ((pg_atomic_read_u32(&slot->request) & SWARM_REQ_PAUSE) == 0)
			answer = "running"; /* somebody has resumed it */
		else if (passed >= ms)
			answer = "pausing";
		else if (passed >= WORKERS_MS)
			swarm_query_ask_workers(slot, SWARM_REQ_HOLD);
		LWLockRelease(swarm_query_lock);
		if (answer != NULL)
			break;
		(void) ConditionVariableTimedSleep(&slot->changed, Max(Min(ms - passed, WORKERS_MS), 1),
										   wait_event);
	}
	ConditionVariableCancelSleep();
	return answer;
}

/*
 * held_by_workers: a leader that waits for its parallel workers gets nowhere
 * while all of them are held.  Then it counts as paused, and is marked so.
 */
static bool
held_by_workers(SwarmQuerySlot *slot)
{
	int			leader = swarm_query_slot_number(slot);
	int			held = 0;

	if ((GetPGProcByNumber(leader)->wait_event_info & 0xFF000000U) != PG_WAIT_IPC)
		return false;
	for (int i = 0; i < swarm_query_slots(); i++)
	{
		SwarmQuerySlot *worker = swarm_query_slot(i);

		if (worker->pid == 0 || worker->leader != leader)
			continue;
		if (worker->state != SWARM_QUERY_PAUSED)
			return false;
		held++;
	}
	if (held == 0)
		return false;
	slot->by_workers = true;
	slot->state = SWARM_QUERY_PAUSED;
	slot->paused_at = swarm_now();
	slot->pauses++;
	strlcpy(slot->node, "Gather", sizeof(slot->node));
	swarm_query_tell(slot, SWARM_QUERY_PAUSE, SWARM_QUERY_RUNNING, SWARM_QUERY_PAUSED, "Gather");
	return true;
}

/*
 * pause_turn: an llm query holds between two turns; its row says that it
 * shall, and its process, if there is one, is told how.
 */
static const char *
pause_turn(Request *r)
{
	char	   *mode = text_param(r, "mode");
	SwarmQuerySlot *slot;

	if (mode == NULL)
		mode = "turn";
	if (strcmp(mode, "turn") != 0 && strcmp(mode, "drain") != 0 && strcmp(mode, "now") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown pause mode \"%s\"", mode),
				 errhint("Modes are turn, drain and now.")));
	swarm_query_get(r->row.id, true, &r->row);
	(void) swarm_query_require(r->row.state, SWARM_QUERY_PAUSE, r->row.id);
	set_wanted(&r->row, "pause", mode);
	LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
	slot = swarm_query_find(r->row.id);
	if (slot != NULL)
	{
		slot->actor = GetUserId();
		swarm_query_ask(slot, SWARM_REQ_PAUSE |
						(strcmp(mode, "now") == 0 ? SWARM_REQ_NOW :
						 strcmp(mode, "drain") == 0 ? SWARM_REQ_DRAIN : 0), false);
	}
	LWLockRelease(swarm_query_lock);
	if (slot != NULL)
		return "pausing";
	swarm_query_move(&r->row, SWARM_QUERY_PAUSE, GetUserId(), "between two turns");
	return "paused";
}

static const char *
act_resume(Request *r)
{
	SwarmQuerySlot *slot;
	bool		asked;

	if (strcmp(r->row.kind, "llm") == 0)
	{
		swarm_query_get(r->row.id, true, &r->row);
		LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
		slot = swarm_query_find(r->row.id);
		if (slot != NULL)
			(void) swarm_query_unpause(slot, GetUserId());
		LWLockRelease(swarm_query_lock);
		if (r->row.state == SWARM_QUERY_RUNNING && strcmp(r->row.wanted, "pause") == 0)
		{
			set_wanted(&r->row, "run", NULL);	/* it is not paused yet */
			return "running";
		}
		swarm_query_move(&r->row, SWARM_QUERY_RESUME, GetUserId(), NULL);
		set_wanted(&r->row, "run", NULL);
		swarm_query_enqueue_turn(&r->row);
		return "running";
	}
	LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
	slot = swarm_query_find(r->row.id);
	asked = slot != NULL && swarm_query_unpause(slot, GetUserId());
	LWLockRelease(swarm_query_lock);
	if (!asked)
		(void) swarm_query_require(slot != NULL ? SWARM_QUERY_RUNNING : r->row.state,
								   SWARM_QUERY_RESUME, r->row.id);
	return "running";
}

/* ------------------------------------------------------------------------
 * Terminate
 * ------------------------------------------------------------------------ */

static const char *
act_terminate(Request *r)
{
	SwarmQuerySlot *slot;

	LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
	slot = swarm_query_find(r->row.id);
	if (slot == swarm_query_me)
	{
		LWLockRelease(swarm_query_lock);
		if (slot != NULL)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("a session cannot terminate its own query")));
	}
	else
	{
		if (slot != NULL)
			swarm_query_stop(slot, GetUserId());
		LWLockRelease(swarm_query_lock);
	}
	if (slot == NULL)
	{
		/* nobody works on it: the row is all there is */
		swarm_query_get(r->row.id, true, &r->row);
		if (r->row.state == SWARM_QUERY_INIT || strcmp(r->row.kind, "llm") == 0 ||
			swarm_query_is_final(r->row.state))
			swarm_query_move(&r->row, SWARM_QUERY_TERMINATE, GetUserId(), NULL);
		else
			set_wanted(&r->row, "terminate", NULL); /* it has just ended */
		cancel_job(r->row.job);
	}
	else if (strcmp(r->row.kind, "llm") == 0)
		set_wanted(&r->row, "terminate", NULL);
	else
		swarm_query_wake_scheduler(MyDatabaseId);
	return "terminated";
}

/* cancel_job: if there is one that has not begun. */
static void
cancel_job(int64 job)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(job)};

	if (job == 0)
		return;
	swarm_spi_begin(&spi);
	swarm_spi_execute("SELECT swarm._job_cancel(id, 'the query was terminated') FROM swarm._job WHERE id = $1",
					  1, types, values, NULL);
	swarm_spi_end(&spi);
}

/* ------------------------------------------------------------------------
 * Commands
 * ------------------------------------------------------------------------ */

/*
 * abandon: nobody waits for an answer any more, also when the process ends.
 */
static void
abandon(int code, Datum box)
{
	SwarmMailbox *mail = swarm_query_mailbox(DatumGetInt32(box));

	LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
	mail->abandoned = true;
	if (mail->done)
		mail->used = false;
	LWLockRelease(swarm_query_lock);
}

/*
 * act_command: params command; with "post" it is left for the next node of a
 * query that runs, and nobody waits for it: a rule's way to change settings.
 */
static const char *
act_command(Request *r)
{
	char	   *command = text_param(r, "command");
	bool		post = swarm_query_may_post && text_param(r, "post") != NULL;
	SwarmQuerySlot *slot;
	SwarmMailbox *mail;
	int			box;
	bool		done = false;
	char	   *result;
	char		sqlstate[6];

	if (command == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("there is no command to execute")));
	if (strlen(command) >= SWARM_MAIL_SIZE)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("a command has at most %d bytes", SWARM_MAIL_SIZE - 1)));
	if (strcmp(r->row.kind, "llm") == 0)
	{
		inject(r, command);
		return NULL;
	}
	LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
	slot = live_slot(&r->row, post ? SWARM_QUERY_MODE : SWARM_QUERY_COMMAND);
	if (!post && slot->by_workers)
	{
		LWLockRelease(swarm_query_lock);
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot execute a command in a query that waits for its parallel workers"),
				 errhint("Resume it, and pause it again.")));
	}
	box = slot->mailbox >= 0 ? -1 : take_mailbox(command, post);
	if (box < 0)
	{
		LWLockRelease(swarm_query_lock);
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many commands are being executed in queries")));
	}
	slot->mailbox = box;
	slot->actor = GetUserId();
	swarm_query_tell(slot, SWARM_QUERY_COMMAND, slot->state, slot->state, command);
	swarm_query_ask(slot, SWARM_REQ_COMMAND, false);
	LWLockRelease(swarm_query_lock);
	swarm_query_wake_scheduler(MyDatabaseId);
	if (post)
		return NULL;

	mail = swarm_query_mailbox(box);
	PG_ENSURE_ERROR_CLEANUP(abandon, Int32GetDatum(box));
	{
		ConditionVariablePrepareToSleep(&slot->changed);
		for (;;)
		{
			LWLockAcquire(swarm_query_lock, LW_SHARED);
			done = mail->done;
			LWLockRelease(swarm_query_lock);
			if (done)
				break;
			ConditionVariableSleep(&slot->changed, PG_WAIT_EXTENSION);
		}
		ConditionVariableCancelSleep();
	}
	PG_END_ENSURE_ERROR_CLEANUP(abandon, Int32GetDatum(box));
	LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
	result = pstrdup(mail->result);
	strlcpy(sqlstate, mail->sqlstate, sizeof(sqlstate));
	mail->used = false;
	LWLockRelease(swarm_query_lock);
	if (strcmp(sqlstate, "00000") != 0)
		ereport(ERROR,
				(errcode(MAKE_SQLSTATE(sqlstate[0], sqlstate[1], sqlstate[2], sqlstate[3], sqlstate[4])),
				 errmsg_internal("%s", result),
				 errcontext("command in query " INT64_FORMAT, r->row.id)));
	return result;
}

/* take_mailbox: -1 if none is free; lock held. */
static int
take_mailbox(const char *command, bool abandoned)
{
	for (int i = 0; i < SWARM_MAILBOXES; i++)
	{
		SwarmMailbox *mail = swarm_query_mailbox(i);

		if (mail->used)
			continue;
		mail->used = true;
		mail->done = false;
		mail->abandoned = abandoned;
		strlcpy(mail->command, command, sizeof(mail->command));
		return i;
	}
	return -1;
}

/* inject: a text that the conversation gets before its next turn. */
static void
inject(Request *r, const char *text)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID, TEXTOID};
	Datum		values[] = {Int64GetDatum(r->row.id), CStringGetTextDatum(text)};

	(void) swarm_query_require(r->row.state, SWARM_QUERY_MODE, r->row.id);
	swarm_spi_begin(&spi);
	swarm_spi_execute("INSERT INTO swarm._query_command (query, command) VALUES ($1, $2)",
					  2, types, values, NULL);
	swarm_spi_end(&spi);
	swarm_query_log(r->row.id, swarm_now(), GetUserId(), SWARM_QUERY_COMMAND, r->row.state,
					r->row.state, text);
}

/* ------------------------------------------------------------------------
 * Permissions, model, approval
 * ------------------------------------------------------------------------ */

void
swarm_query_check_mode(const char *mode)
{
	static const char *const modes[] = {"plan", "default", "acceptEdits", "bypassPermissions"};

	for (int i = 0; i < lengthof(modes); i++)
	{
		if (mode == NULL || strcmp(mode, modes[i]) != 0)
			continue;
		if (i == 3)
		{
			List	   *name = list_make2(makeString("swarm"), makeString("permission_bypass"));
			Oid			right = LookupFuncName(name, 0, NULL, false);

			if (swarm_proc_aclcheck(right, GetUserId(), ACL_EXECUTE) != ACLCHECK_OK)
				ereport(ERROR,
						(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
						 errmsg("permission denied for permission mode \"bypassPermissions\""),
						 errhint("The right to it is EXECUTE on function swarm.permission_bypass().")));
		}
		return;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("unknown permission mode \"%s\"", mode ? mode : "null"),
			 errhint("Modes are plan, default, acceptEdits and bypassPermissions.")));
}

static const char *
act_permissions(Request *r)
{
	char	   *mode = text_param(r, "mode");
	SwarmQuerySlot *slot;
	SwarmQueryState state = r->row.state;
	SwarmSpi	spi;
	Oid			types[] = {INT8OID, TEXTOID};
	Datum		values[] = {Int64GetDatum(r->row.id), (Datum) 0};

	swarm_query_check_mode(mode);
	(void) swarm_query_require(r->row.state, SWARM_QUERY_MODE, r->row.id);
	values[1] = CStringGetTextDatum(mode);
	swarm_spi_begin(&spi);
	swarm_spi_execute("UPDATE swarm._query SET permission_mode = $2 WHERE id = $1", 2, types, values, NULL);
	swarm_spi_end(&spi);
	LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
	slot = swarm_query_find(r->row.id);
	if (slot != NULL)
	{
		state = swarm_query_live_state(slot);
		slot->read_only = strcmp(mode, "plan") == 0;
		if (slot->read_only)
			swarm_query_ask(slot, SWARM_REQ_MODE, false);
	}
	LWLockRelease(swarm_query_lock);
	swarm_query_log(r->row.id, swarm_now(), GetUserId(), SWARM_QUERY_MODE, state, state, mode);
	return swarm_query_state_name(state);
}

static const char *
act_model(Request *r)
{
	char	   *model = text_param(r, "model");
	SwarmSpi	spi;
	Oid			types[] = {INT8OID, TEXTOID};
	Datum		values[] = {Int64GetDatum(r->row.id), (Datum) 0};

	if (strcmp(r->row.kind, "llm") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("a query of kind \"%s\" has no model", r->row.kind)));
	if (model == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("there is no model to change to")));
	(void) swarm_query_require(r->row.state, SWARM_QUERY_MODEL, r->row.id);
	model = swarm_query_resolve_model(model);
	values[1] = CStringGetTextDatum(model);
	swarm_spi_begin(&spi);
	swarm_spi_execute("UPDATE swarm._query SET model = $2 WHERE id = $1", 2, types, values, NULL);
	swarm_spi_end(&spi);
	swarm_query_log(r->row.id, swarm_now(), GetUserId(), SWARM_QUERY_MODEL, r->row.state,
					r->row.state, model);
	return swarm_query_state_name(r->row.state);
}

/* act_approve: params request (a number) and decision (allow or deny). */
static const char *
act_approve(Request *r)
{
	char	   *request = text_param(r, "request");
	char	   *decision = text_param(r, "decision");
	SwarmSpi	spi;
	Oid			types[] = {INT8OID, INT8OID, TEXTOID, OIDOID};
	Datum		values[4];
	bool		found;

	if (request == NULL || decision == NULL ||
		(strcmp(decision, "allow") != 0 && strcmp(decision, "deny") != 0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a decision on a request is \"allow\" or \"deny\"")));
	swarm_query_get(r->row.id, true, &r->row);
	(void) swarm_query_require(r->row.state, SWARM_QUERY_APPROVE, r->row.id);
	values[0] = Int64GetDatum(r->row.id);
	values[1] = DirectFunctionCall1(int8in, CStringGetDatum(request));
	values[2] = CStringGetTextDatum(decision);
	values[3] = ObjectIdGetDatum(GetUserId());
	swarm_spi_begin(&spi);
	found = swarm_spi_execute("UPDATE swarm._query_request SET decision = $3, decided_by = $4::regrole, "
							  "decided_at = swarm._now() WHERE query = $1 AND id = $2 AND decision IS NULL",
							  4, types, values, NULL) > 0;
	swarm_spi_end(&spi);
	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("query " INT64_FORMAT " has no open request %s", r->row.id, request)));
	swarm_query_log(r->row.id, swarm_now(), GetUserId(), SWARM_QUERY_APPROVE, r->row.state,
					r->row.state, psprintf("%s: %s", request, decision));
	if (r->row.state == SWARM_QUERY_RUNNING)
		swarm_query_enqueue_turn(&r->row);
	return swarm_query_state_name(r->row.state);
}

/* ------------------------------------------------------------------------
 * Common
 * ------------------------------------------------------------------------ */

/*
 * live_slot: the slot of a query that runs, if `event` is possible now; the
 * lock is held, and released where an error is raised.
 */
static SwarmQuerySlot *
live_slot(const SwarmQueryRow *row, SwarmQueryEvent event)
{
	SwarmQuerySlot *slot = swarm_query_find(row->id);
	SwarmQueryState state = slot != NULL ? swarm_query_live_state(slot) : row->state;
	SwarmQueryState to;

	if (slot != NULL && slot != swarm_query_me && swarm_query_next(state, event, &to))
		return slot;
	LWLockRelease(swarm_query_lock);
	if (slot != NULL && slot == swarm_query_me)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a session cannot control its own query")));
	(void) swarm_query_require(state, event, row->id);
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("query " INT64_FORMAT " has just ended", row->id)));
}

static void
set_wanted(const SwarmQueryRow *row, const char *wanted, const char *mode)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID, TEXTOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(row->id), CStringGetTextDatum(wanted),
	mode ? CStringGetTextDatum(mode) : (Datum) 0};
	char		nulls[] = "   ";

	nulls[2] = mode ? ' ' : 'n';
	swarm_spi_begin(&spi);
	swarm_spi_execute("UPDATE swarm._query SET wanted = $2, pause_mode = $3 WHERE id = $1",
					  3, types, values, nulls);
	swarm_spi_end(&spi);
}

/* text_param: a string, number or true of the parameters; NULL if not there. */
static char *
text_param(Request *r, const char *key)
{
	JsonbValue	buffer;
	JsonbValue *v = NULL;

	if (JB_ROOT_IS_OBJECT(r->params))
		v = getKeyJsonValueFromContainer(&r->params->root, key, strlen(key), &buffer);
	if (v == NULL || v->type == jbvNull)
		return NULL;
	switch (v->type)
	{
		case jbvString:
			return pnstrdup(v->val.string.val, v->val.string.len);
		case jbvNumeric:
			return DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(v->val.numeric)));
		case jbvBool:
			return v->val.boolean ? "true" : NULL;
		default:
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("parameter \"%s\" is neither a text nor a number", key)));
	}
}

/* ms_param: an interval as text. */
static long
ms_param(Request *r, const char *key, long none)
{
	char	   *text = text_param(r, key);
	Interval   *span;
	double		ms;

	if (text == NULL)
		return none;
	span = DatumGetIntervalP(DirectFunctionCall3(interval_in, CStringGetDatum(text),
												 ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
	ms = span->time / 1000.0 + (span->day + span->month * 30.0) * 86400000.0;
	if (ms < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" must not be negative", key)));
	return (long) Min(ms, (double) INT_MAX);
}
