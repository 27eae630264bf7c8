/*
 * job_handler.c
 *	  Calling the code of a job: a function, a procedure, or the sql kind.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_enum.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "parser/analyze.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"
#include "utils/typcache.h"
#include "utils/varlena.h"

#include "base/compat.h"
#include "base/json.h"
#include "job/job_handler.h"
#include "job/job_int.h"

#define SQL_RESULT_ROWS 100

static Oid	job_type(const char *name);
static Oid	handler_of(const SwarmJobRow *row);
static void check_may_call(Oid proc, ObjectType type);
static Datum job_datum(const SwarmJobRow *row);
static Datum run_sql(const SwarmJobRow *row);
static Oid *parameter_types(const char *sql, int n);
static void parameter_values(JsonbContainer *params, int n, const Oid *types,
							 Datum *values, char *nulls);
static Datum sql_result(MemoryContext context);

/* job_type: OID of a type of schema swarm. */
static Oid
job_type(const char *name)
{
	Oid			type = GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid,
									   CStringGetDatum(name),
									   ObjectIdGetDatum(get_namespace_oid("swarm", false)));

	if (!OidIsValid(type))
		elog(ERROR, "type swarm.%s does not exist", name);
	return type;
}

/*
 * swarm_handler_lookup: the function or procedure schema.name(swarm.job), or
 * InvalidOid.  LookupFuncName() does not find procedures.
 */
Oid
swarm_handler_lookup(List *name)
{
	Oid			arg = job_type("job");
	Oid			nsp = get_namespace_oid(strVal(linitial(name)), true);

	if (!OidIsValid(nsp))
		return InvalidOid;
	return GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid,
						   CStringGetDatum(strVal(lsecond(name))),
						   PointerGetDatum(buildoidvector(&arg, 1)),
						   ObjectIdGetDatum(nsp));
}

/*
 * handler_of: OID of the function or procedure of the row's kind, resolved
 * by its qualified name; error if it is gone.
 */
static Oid
handler_of(const SwarmJobRow *row)
{
	char	   *name = swarm_job_handler(row->kind);
	Oid			proc = InvalidOid;

	if (name != NULL)
		proc = swarm_handler_lookup(swarm_string_to_name_list(name));
	if (!OidIsValid(proc))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("handler %s of kind \"%s\" does not exist",
						name ? name : "function", swarm_job_kind_name(row->kind)),
				 errhint("Call swarm.handler_register() with the function that takes swarm.job.")));
	return proc;
}

bool
swarm_handler_is_procedure(const SwarmJobRow *row)
{
	if (swarm_job_handler(row->kind) == NULL)
		return false;
	return get_func_prokind(handler_of(row)) == PROKIND_PROCEDURE;
}

Datum
swarm_handler_call(const SwarmJobRow *row)
{
	Oid			proc;
	FmgrInfo	flinfo;
	Datum		result;

	LOCAL_FCINFO(fcinfo, 1);

	if (row->kind == SWARM_KIND_SQL)
		return run_sql(row);

	proc = handler_of(row);
	check_may_call(proc, OBJECT_FUNCTION);
	InvokeFunctionExecuteHook(proc);

	fmgr_info(proc, &flinfo);
	InitFunctionCallInfoData(*fcinfo, &flinfo, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = job_datum(row);
	fcinfo->args[0].isnull = false;
	result = FunctionCallInvoke(fcinfo);
	if (fcinfo->isnull || get_func_rettype(proc) != JSONBOID)
		return (Datum) 0;
	return result;
}

void
swarm_handler_call_procedure(const SwarmJobRow *row)
{
	CallStmt   *call = makeNode(CallStmt);
	Oid			proc = handler_of(row);
	Const	   *arg = makeConst(job_type("job"), -1, InvalidOid, -1,
								job_datum(row), false, false);

	check_may_call(proc, OBJECT_PROCEDURE);
	call->funcexpr = makeFuncExpr(proc, VOIDOID, list_make1(arg),
								  InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL);
	ExecuteCallStmt(call, NULL, false, None_Receiver);
}

/*
 * check_may_call: the current user, the job's owner, must have the rights he
 * would need to call the handler himself.
 */
static void
check_may_call(Oid proc, ObjectType type)
{
	Oid			nsp = get_func_namespace(proc);
	AclResult	acl = swarm_namespace_aclcheck(nsp, GetUserId(), ACL_USAGE);

	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_SCHEMA, get_namespace_name(nsp));
	acl = swarm_proc_aclcheck(proc, GetUserId(), ACL_EXECUTE);
	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, type, get_func_name(proc));
}

/*
 * job_datum: the row as a value of type swarm.job.
 */
static Datum
job_datum(const SwarmJobRow *row)
{
	static const char *const labels[] = {"low", "medium", "high", "critical"};
	TupleDesc	desc = lookup_rowtype_tupdesc(job_type("job"), -1);
	Datum		values[11];
	bool		nulls[11] = {0};
	char	   *queue = swarm_job_queue_name(row->queue);
	char	   *kind = swarm_job_kind_name(row->kind);
	HeapTuple	tuple;

	values[0] = Int64GetDatum(row->id);
	values[1] = CStringGetTextDatum(queue ? queue : "(dropped)");
	values[2] = CStringGetTextDatum(kind ? kind : "(dropped)");
	values[3] = row->args;
	values[4] = Int32GetDatum(row->attempts + 1);
	values[5] = Int32GetDatum(row->max_attempts);
	values[6] = ObjectIdGetDatum(GetSysCacheOid2(ENUMTYPOIDNAME, Anum_pg_enum_oid,
												 ObjectIdGetDatum(job_type("priority")),
												 CStringGetDatum(labels[row->priority])));
	nulls[7] = row->unique_key == NULL;
	values[7] = row->unique_key ? CStringGetTextDatum(row->unique_key) : (Datum) 0;
	values[8] = row->tags;
	values[9] = TimestampTzGetDatum(row->enqueued_at);
	values[10] = TimestampTzGetDatum(row->run_at);
	tuple = heap_form_tuple(desc, values, nulls);
	ReleaseTupleDesc(desc);
	return HeapTupleGetDatum(tuple);
}

/* ------------------------------------------------------------------------
 * Kind sql: {"sql": "...", "params": [...]}
 * ------------------------------------------------------------------------ */

/*
 * run_sql: the result is {"rows": number processed} and, if the statement
 * returns rows, "data" with the first hundred of them.
 */
static Datum
run_sql(const SwarmJobRow *row)
{
	Jsonb	   *args = DatumGetJsonbP(row->args);
	JsonbValue *sql = NULL;
	JsonbValue *params = NULL;
	JsonbValue	buffer1,
				buffer2;
	char	   *text;
	int			nparams = 0;
	int			rc;
	Datum		result;
	MemoryContext outer = CurrentMemoryContext;

	if (JB_ROOT_IS_OBJECT(args))
	{
		sql = getKeyJsonValueFromContainer(&args->root, "sql", 3, &buffer1);
		params = getKeyJsonValueFromContainer(&args->root, "params", 6, &buffer2);
	}
	if (sql == NULL || sql->type != jbvString)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a job of kind \"sql\" needs a string \"sql\" in its args"),
				 errhint("For example: {\"sql\": \"select $1 + 1\", \"params\": [41]}.")));
	if (params != NULL && params->type == jbvNull)
		params = NULL;
	if (params != NULL &&
		(params->type != jbvBinary || !JsonContainerIsArray(params->val.binary.data)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"params\" of a job of kind \"sql\" must be an array")));
	text = pnstrdup(sql->val.string.val, sql->val.string.len);

	if (params != NULL)
		nparams = JsonContainerSize(params->val.binary.data);

	SPI_connect();
	if (nparams == 0)
		rc = SPI_execute(text, false, 0);
	else
	{
		Oid		   *types = parameter_types(text, nparams);
		Datum	   *values = palloc0(nparams * sizeof(Datum));
		char	   *nulls = palloc0(nparams + 1);

		parameter_values(params->val.binary.data, nparams, types, values, nulls);
		rc = SPI_execute_with_args(text, nparams, types, values, nulls, false, 0);
	}
	if (rc == SPI_ERROR_TRANSACTION)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("transaction control is not possible in a job of kind \"sql\""),
				 errhint("It needs a handler that is a procedure.")));
	if (rc < 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("statement is not possible in a job: %s", SPI_result_code_string(rc))));
	result = sql_result(outer);
	SPI_finish();
	return result;
}

/*
 * parameter_types: what the statement wants its parameters to be; text where
 * it does not say.
 */
static Oid *
parameter_types(const char *sql, int n)
{
	Oid		   *types = palloc0(n * sizeof(Oid));
	int			used = n;
	List	   *parsed = pg_parse_query(sql);

	if (list_length(parsed) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_SYNTAX_ERROR),
				 errmsg("a job of kind \"sql\" with \"params\" must have exactly one statement")));
	(void) parse_analyze_varparams(linitial_node(RawStmt, parsed), sql,
								   &types, &used, NULL);
	if (used > n)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_PARAMETER),
				 errmsg("the statement uses $%d, but \"params\" has %d values", used, n)));
	for (int i = 0; i < n; i++)
	{
		if (types[i] == InvalidOid || types[i] == UNKNOWNOID)
			types[i] = TEXTOID;
	}
	return types;
}

/*
 * parameter_values: each element of the JSON array through its type's input
 * function; objects and arrays as their JSON text.
 */
static void
parameter_values(JsonbContainer *params, int n, const Oid *types,
				 Datum *values, char *nulls)
{
	for (int i = 0; i < n; i++)
	{
		JsonbValue *v = getIthJsonbValueFromContainer(params, i);
		Oid			input;
		Oid			ioparam;
		char	   *text;

		nulls[i] = v->type == jbvNull ? 'n' : ' ';
		if (v->type == jbvNull)
			continue;
		if (v->type == jbvString)
			text = pnstrdup(v->val.string.val, v->val.string.len);

		else
		{
			Jsonb	   *j = JsonbValueToJsonb(v);

			text = JsonbToCString(NULL, &j->root, VARSIZE(j));
		}
		getTypeInputInfo(types[i], &input, &ioparam);
		values[i] = OidInputFunctionCall(input, text, ioparam, -1);
	}
}

/*
 * sql_result: the outcome of the statement just run by SPI, as jsonb in
 * `context`.
 */
static Datum
sql_result(MemoryContext context)
{
	StringInfoData json;
	uint64		shown = Min(SPI_processed, SQL_RESULT_ROWS);
	MemoryContext old;
	Datum		result;

	initStringInfo(&json);
	appendStringInfo(&json, "{\"rows\": " UINT64_FORMAT, SPI_processed);
	if (SPI_tuptable != NULL)
	{
		BlessTupleDesc(SPI_tuptable->tupdesc);
		appendStringInfoString(&json, ", \"data\": [");
		for (uint64 i = 0; i < shown; i++)
		{
			Datum		row = heap_copy_tuple_as_datum(SPI_tuptable->vals[i],
													   SPI_tuptable->tupdesc);
			Datum		row_json = OidFunctionCall1(F_ROW_TO_JSON_RECORD, row);

			appendStringInfo(&json, "%s%s", i ? ", " : "", TextDatumGetCString(row_json));
		}
		appendStringInfoChar(&json, ']');
	}
	appendStringInfoChar(&json, '}');
	old = MemoryContextSwitchTo(context);
	result = DirectFunctionCall1(jsonb_in, CStringGetDatum(swarm_json_storable(json.data)));
	MemoryContextSwitchTo(old);
	return result;
}
