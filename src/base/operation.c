/*
 * operation.c
 *	  Functions of SQL with the hooks of users around them: see operation.h.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "portability/instr_time.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "base/hook.h"
#include "base/operation.h"

static Datum call_private(FunctionCallInfo fcinfo, const char *name);
static void tell(SwarmHookData *data, FunctionCallInfo fcinfo, const NullableDatum *result);
static bool has_result(Oid proc, Oid *type);

/*
 * swarm_operation: the function, and the hooks around it, if there are any.  Error
 * 38000: one of those before it refuses it.
 */
Datum
swarm_operation(FunctionCallInfo fcinfo, const char *name, PGFunction function)
{
	Oid			role = GetUserId();
	bool		timed = swarm_hook_wanted(name, SWARM_HOOK_AFTER);
	SwarmHookData data;
	NullableDatum result;
	instr_time	start;

	if (swarm_hook_wanted(name, SWARM_HOOK_BEFORE))
	{
		tell(&data, fcinfo, NULL);
		swarm_hook_before(name, role, &data);
	}
	if (timed)
		INSTR_TIME_SET_CURRENT(start);
	result.value = function != NULL ? function(fcinfo) : call_private(fcinfo, name);
	result.isnull = fcinfo->isnull;
	if (swarm_hook_wanted(name, SWARM_HOOK_AFTER))
	{
		instr_time	took;

		tell(&data, fcinfo, &result);
		/* not of an operation that has made the first hook of itself */
		if (timed)
		{
			INSTR_TIME_SET_CURRENT(took);
			INSTR_TIME_SUBTRACT(took, start);
			swarm_hook_ms(&data, "ms", INSTR_TIME_GET_MICROSEC(took));
		}
		swarm_hook_after(name, role, &data);
	}
	return result.value;
}

/*
 * call_private: swarm._NAME with the same arguments, as who calls this, who need not
 * have the right to call it.
 */
static Datum
call_private(FunctionCallInfo fcinfo, const char *name)
{
	LOCAL_FCINFO(inner, FUNC_MAX_ARGS);
	FmgrInfo   *flinfo = fcinfo->flinfo->fn_extra;
	Datum		result;

	if (flinfo == NULL)
	{
		Oid			caller = fcinfo->flinfo->fn_oid;
		Oid		   *types;
		int			n;
		Oid			proc;

		(void) get_func_signature(caller, &types, &n);
		proc = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid, CStringGetDatum(psprintf("_%s", name)),
							   PointerGetDatum(buildoidvector(types, n)), ObjectIdGetDatum(get_func_namespace(caller)));
		if (!OidIsValid(proc))
			elog(ERROR, "there is no private function of \"%s\"", name);
		flinfo = MemoryContextAlloc(fcinfo->flinfo->fn_mcxt, sizeof(FmgrInfo));
		fmgr_info_cxt(proc, flinfo, fcinfo->flinfo->fn_mcxt);
		fcinfo->flinfo->fn_extra = flinfo;
	}
	InitFunctionCallInfoData(*inner, flinfo, PG_NARGS(), PG_GET_COLLATION(), NULL, NULL);
	memcpy(inner->args, fcinfo->args, PG_NARGS() * sizeof(NullableDatum));
	result = FunctionCallInvoke(inner);
	fcinfo->isnull = inner->isnull;
	return result;
}

/*
 * tell: the arguments by name and, if it is given, the result.
 */
static void
tell(SwarmHookData *data, FunctionCallInfo fcinfo, const NullableDatum *result)
{
	Oid			proc = fcinfo->flinfo->fn_oid;
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(proc));
	Datum	   *values = palloc((PG_NARGS() + 1) * sizeof(Datum));
	bool	   *nulls = palloc((PG_NARGS() + 1) * sizeof(bool));
	TupleDesc	desc;
	Oid			result_type;
	Oid		   *types;
	char	  **names;
	char	   *modes;
	int			all;
	int			n = 0;
	text	   *json;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", proc);
	all = get_func_arg_info(tuple, &types, &names, &modes);
	ReleaseSysCache(tuple);
	swarm_hook_data(data);
	if (result != NULL && !has_result(proc, &result_type))
		result = NULL;
	if (PG_NARGS() == 0 && result == NULL)
		return;
	desc = CreateTemplateTupleDesc(PG_NARGS() + (result != NULL));
	for (int i = 0; i < all; i++)
	{
		if (modes != NULL && modes[i] != PROARGMODE_IN && modes[i] != PROARGMODE_INOUT)
			continue;
		values[n] = PG_GETARG_DATUM(n);
		nulls[n] = PG_ARGISNULL(n);
		TupleDescInitEntry(desc, n + 1, names[i], types[i], -1, 0);
		n++;
	}
	Assert(n == PG_NARGS());
	if (result != NULL)
	{
		values[n] = result->value;
		nulls[n] = result->isnull;
		TupleDescInitEntry(desc, n + 1, "result", result_type, -1, 0);
	}
	json = DatumGetTextPP(DirectFunctionCall1(row_to_json, HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls))));
	/* without the braces, of which data has the first */
	appendBinaryStringInfo(&data->json, VARDATA_ANY(json) + 1, VARSIZE_ANY_EXHDR(json) - 2);
}

/* has_result: does it return one value?  Of what type. */
static bool
has_result(Oid proc, Oid *type)
{
	*type = get_func_rettype(proc);
	return *type != VOIDOID && *type != RECORDOID && !get_func_retset(proc);
}
