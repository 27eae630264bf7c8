/*
 * agent_call.c
 *	  Calling a function for somebody: with his rights, in a subtransaction,
 *	  for a limited time.
 *
 * Agents' handlers, hooks and the steps of protocols all go through here.
 * Who calls has other rights than the function's, so the function can neither
 * SET ROLE nor leave settings behind, and its error is its own.  For another
 * role than the current one nothing of it may be left to the transaction's end
 * either (cursors WITH HOLD, deferred triggers), which has other rights.
 *
 * Calls nest, as a handler's statements call hooks.  There is one timer: the
 * inner call's is never later than the outer one's, which is set again after.
 *
 * Calls may share a subtransaction as long as they go well: that saves it, and
 * an SQL-language function is parsed and planned once in it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "storage/latch.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/guc.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rls.h"
#include "utils/syscache.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "agent/agent_int.h"
#include "base/compat.h"
#include "base/export.h"
#include "base/fault.h"

static volatile sig_atomic_t call_timed_out = false;
static TimeoutId call_timeout = MAX_TIMEOUTS;

static Datum call_function(SwarmCallee *callee, Datum task, Datum agent);
static void on_timeout(void);

void
swarm_agent_check_call(Oid role, Oid proc)
{
	Oid			nsp;
	AclResult	acl;

	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(role)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role with OID %u does not exist", role)));
	if (!OidIsValid(proc))
		return;
	nsp = get_func_namespace(proc);
	if (!OidIsValid(nsp))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function with OID %u does not exist", proc)));
	acl = swarm_namespace_aclcheck(nsp, role, ACL_USAGE);
	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_SCHEMA, get_namespace_name(nsp));
	acl = swarm_proc_aclcheck(proc, role, ACL_EXECUTE);
	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_FUNCTION, get_func_name(proc));
}

void
swarm_agent_call(Oid role, Oid proc, Datum task, Datum agent,
				 int64 timeout_us, bool read_only, SwarmCall *call)
{
	SwarmCallee callee = {.role = role, .proc = proc, .timeout_us = timeout_us, .context = CurrentMemoryContext};
	SwarmCalls	calls;
	ErrorData  *volatile edata = NULL;

	swarm_agent_calls_begin(&calls);
	PG_TRY();
	{
		swarm_agent_calls_next(&calls, &callee, task, agent, read_only, call);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		edata = swarm_agent_calls_failed(&calls);
	}
	PG_END_TRY();
	swarm_agent_calls_end(&calls, edata, call);
}

void
swarm_agent_calls_begin(SwarmCalls *calls)
{
	calls->context = CurrentMemoryContext;
	calls->owner = CurrentResourceOwner;
	calls->outer = DT_NOEND;
	calls->timeout_us = 0;
	if (call_timeout == MAX_TIMEOUTS)
		call_timeout = RegisterTimeout(USER_TIMEOUT, on_timeout);
	if (get_timeout_active(call_timeout))
	{
		calls->outer = get_timeout_finish_time(call_timeout);
		disable_timeout(call_timeout, false);
	}
	calls->finish = calls->outer;
	calls->outer_timed_out = call_timed_out;
	INSTR_TIME_SET_CURRENT(calls->start);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(calls->context);
	call_timed_out = false;
}

void
swarm_agent_calls_next(SwarmCalls *calls, SwarmCallee *callee, Datum task, Datum agent,
					   bool read_only, SwarmCall *call)
{
	Oid			user;
	int			sec_context;
	int			guc_level;
	instr_time	end;
	Datum		result;

	memset(call, 0, sizeof(*call));
	calls->timeout_us = callee->timeout_us;
	calls->finish = calls->outer;
	if (callee->timeout_us > 0)
		calls->finish = Min(calls->outer, GetCurrentTimestamp() + Max(callee->timeout_us, 1000));
	if (!row_security)			/* until the end of the subtransaction */
		(void) set_config_option("row_security", "on", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	guc_level = NewGUCNestLevel();
	GetUserIdAndSecContext(&user, &sec_context);
	if (!OidIsValid(callee->proc))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("the function that is to be called does not exist any more")));
	if (!OidIsValid(callee->flinfo.fn_oid))
		swarm_agent_check_call(callee->role, callee->proc);
	SetUserIdAndSecContext(callee->role, sec_context | SECURITY_LOCAL_USERID_CHANGE |
						   (callee->role != user ? SECURITY_RESTRICTED_OPERATION : 0));
	if (calls->finish != DT_NOEND)
		enable_timeout_at(call_timeout, calls->finish);
	if (read_only)
		XactReadOnly = true;	/* until the end of the subtransaction */
	SWARM_FAULT("agent.call");
	result = call_function(callee, task, agent);
	disable_timeout(call_timeout, false);
	if (call_timed_out)			/* and caught by the function */
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED), errmsg("the call was interrupted")));
	AtEOXact_GUC(false, guc_level);
	SetUserIdAndSecContext(user, sec_context);
	MemoryContextSwitchTo(calls->context);
	if (result != (Datum) 0)
		call->result = datumCopy(result, false, -1);
	INSTR_TIME_SET_CURRENT(end);
	call->us = INSTR_TIME_GET_MICROSEC(end) - INSTR_TIME_GET_MICROSEC(calls->start);
	calls->start = end;
}

ErrorData *
swarm_agent_calls_failed(SwarmCalls *calls)
{
	ErrorData  *edata;

	MemoryContextSwitchTo(calls->context);
	edata = CopyErrorData();
	FlushErrorState();
	disable_timeout(call_timeout, false);
	RollbackAndReleaseCurrentSubTransaction();
	return edata;
}

void
swarm_agent_calls_end(SwarmCalls *calls, ErrorData *edata, SwarmCall *call)
{
	bool		timed_out = call_timed_out;
	instr_time	end;

	MemoryContextSwitchTo(calls->context);
	CurrentResourceOwner = calls->owner;
	if (timed_out)
		QueryCancelPending = false;
	call_timed_out = calls->outer_timed_out || (timed_out && calls->finish == calls->outer);
	if (calls->outer != DT_NOEND)
		enable_timeout_at(call_timeout, calls->outer);	/* at once if that is
														 * over */
	if (edata == NULL)
		return;
	if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED && (!timed_out || calls->finish == calls->outer))
		ReThrowError(edata);
	memset(call, 0, sizeof(*call));
	INSTR_TIME_SET_CURRENT(end);
	call->us = INSTR_TIME_GET_MICROSEC(end) - INSTR_TIME_GET_MICROSEC(calls->start);
	if (timed_out)
	{
		call->timed_out = true;
		call->error = psprintf("ran longer than its timeout of %g s", calls->timeout_us / 1e6);
	}
	else
		call->error = edata->message ? edata->message : "missing error text";
	call->sqlstate = pstrdup(unpack_sql_state(edata->sqlerrcode));
}

static Datum
call_function(SwarmCallee *callee, Datum task, Datum agent)
{
	Datum		result;

	LOCAL_FCINFO(fcinfo, 2);

	InvokeFunctionExecuteHook(callee->proc);
	if (!OidIsValid(callee->flinfo.fn_oid))
		fmgr_info_cxt(callee->proc, &callee->flinfo, callee->context);
	InitFunctionCallInfoData(*fcinfo, &callee->flinfo, callee->flinfo.fn_nargs, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = task;
	fcinfo->args[0].isnull = false;
	fcinfo->args[1].value = agent;
	fcinfo->args[1].isnull = agent == (Datum) 0;
	result = FunctionCallInvoke(fcinfo);
	if (fcinfo->isnull || get_func_rettype(callee->proc) != JSONBOID)
		return (Datum) 0;
	return PointerGetDatum(PG_DETOAST_DATUM(result));
}

static void
on_timeout(void)
{
	call_timed_out = true;
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
}

/*
 * swarm._agent_call(role oid, proc oid, argument jsonb, timeout_ms int, OUT result
 * jsonb, OUT error text, OUT state text, OUT timed_out boolean, OUT ms float8)
 */
SWARM_FUNCTION(swarm__agent_call);
Datum
swarm__agent_call(PG_FUNCTION_ARGS)
{
	SwarmCall	call;
	TupleDesc	desc;
	Datum		values[5];
	bool		nulls[5] = {false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	swarm_agent_call(PG_GETARG_OID(0), PG_GETARG_OID(1), PG_GETARG_DATUM(2), (Datum) 0,
					 PG_GETARG_INT32(3) * INT64CONST(1000), false, &call);
	values[0] = call.result;
	nulls[0] = call.result == (Datum) 0;
	nulls[1] = nulls[2] = call.error == NULL;
	if (call.error != NULL)
	{
		values[1] = CStringGetTextDatum(call.error);
		values[2] = CStringGetTextDatum(call.sqlstate);
	}
	values[3] = BoolGetDatum(call.timed_out);
	values[4] = Float8GetDatum(call.us / 1000.0);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}
