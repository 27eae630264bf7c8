/*
 * query_start_sql.c
 *	  Queries begin, are registered, and are waited for.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "parser/parse_func.h"
#include "tcop/utility.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/doorbell.h"
#include "base/export.h"
#include "base/shmem.h"
#include "base/hook.h"
#include "base/spi.h"
#include "query/query_int.h"

static int64 insert_row(const char *kind, Oid owner, Datum body, const char *model,
						const char *mode, Datum budget, Datum metadata);
static int64 enqueue(const char *kind, int64 query);
static char *result_table(FunctionCallInfo fcinfo);
static void call_hooks(FunctionCallInfo fcinfo, SwarmHookPhase phase, int64 id);
static void registered(void *item);
static void undo_register(void *item);

/*
 * swarm.query_start(kind, body, model, permission_mode, budget, metadata, result_table)
 */
SWARM_FUNCTION(swarm_query_start);
Datum
swarm_query_start(PG_FUNCTION_ARGS)
{
	char	   *kind = PG_ARGISNULL(0) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(0));
	char	   *model = PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2));
	char	   *mode = PG_ARGISNULL(3) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(3));
	char	   *table = NULL;
	bool		llm;
	int64		id;
	int64		job;
	SwarmSpi	spi;
	Oid			types[] = {INT8OID, INT8OID, TEXTOID};
	Datum		values[3];

	PreventCommandIfReadOnly("query_start()");
	PreventCommandDuringRecovery("query_start()");
	if (kind == NULL || (strcmp(kind, "sql") != 0 && strcmp(kind, "llm") != 0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown kind of query \"%s\"", kind ? kind : "null"),
				 errhint("Kinds are sql and llm.")));
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("the body of a query must not be null")));
	llm = strcmp(kind, "llm") == 0;
	if (model != NULL && !llm)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("a query of kind \"sql\" has no model")));
	swarm_query_check_mode(mode);
	if (!PG_ARGISNULL(5) && !JB_ROOT_IS_OBJECT(PG_GETARG_JSONB_P(5)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("metadata must be a JSON object")));
	if (!PG_ARGISNULL(4) && !JB_ROOT_IS_OBJECT(PG_GETARG_JSONB_P(4)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("the budget must be a JSON object")));
	if (!PG_ARGISNULL(6) && llm)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("a query of kind \"llm\" has no rows for a table")));
	if (!PG_ARGISNULL(6))
		table = result_table(fcinfo);
	if (llm && model != NULL)
		model = swarm_query_resolve_model(model);
	call_hooks(fcinfo, SWARM_HOOK_BEFORE, 0);
	id = insert_row(kind, GetUserId(), PG_GETARG_DATUM(1), model, mode,
					PG_ARGISNULL(4) ? (Datum) 0 : PG_GETARG_DATUM(4),
					PG_ARGISNULL(5) ? (Datum) 0 : PG_GETARG_DATUM(5));
	job = enqueue(llm ? "llm" : "query", id);
	values[0] = Int64GetDatum(id);
	values[1] = Int64GetDatum(job);
	values[2] = table ? CStringGetTextDatum(table) : (Datum) 0;
	swarm_spi_begin(&spi);
	swarm_spi_execute("UPDATE swarm._query SET job = $2, result_table = $3 WHERE id = $1", 3, types, values,
					  table ? NULL : "  n");
	swarm_spi_end(&spi);
	swarm_query_watch();
	call_hooks(fcinfo, SWARM_HOOK_AFTER, id);
	PG_RETURN_INT64(id);
}

/*
 * result_table: the name of the table that the rows shall become, as the caller's
 * search_path means it.  It is made, with all the server's checks, when the query
 * runs; what is wrong already is said at once.
 */
static char *
result_table(FunctionCallInfo fcinfo)
{
	RangeVar   *table = makeRangeVarFromNameList(textToQualifiedNameList(PG_GETARG_TEXT_PP(6)));
	Oid			schema = RangeVarGetCreationNamespace(table);
	AclResult	acl = swarm_namespace_aclcheck(schema, GetUserId(), ACL_CREATE);
	char	   *name;

	if (isAnyTempNamespace(schema))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the table of a result cannot be temporary"),
				 errhint("It is made in another process.")));
	if (acl != ACLCHECK_OK)
		aclcheck_error(acl, OBJECT_SCHEMA, get_namespace_name(schema));
	if (OidIsValid(get_relname_relid(table->relname, schema)))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_TABLE),
				 errmsg("relation \"%s\" already exists", table->relname)));
	name = quote_qualified_identifier(get_namespace_name(schema), table->relname);
	(void) swarm_query_into(text_to_cstring(PG_GETARG_TEXT_PP(1)), name);
	return name;
}

/* call_hooks: those of users around query_start(); its arguments are checked. */
static void
call_hooks(FunctionCallInfo fcinfo, SwarmHookPhase phase, int64 id)
{
	SwarmHookData data;

	if (!swarm_hook_wanted("query_start", phase))
		return;
	swarm_hook_data(&data);
	if (id != 0)
		swarm_hook_int64(&data, "id", id);
	swarm_hook_text(&data, "kind", text_to_cstring(PG_GETARG_TEXT_PP(0)));
	swarm_hook_text(&data, "body", text_to_cstring(PG_GETARG_TEXT_PP(1)));
	swarm_hook_text(&data, "model", PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2)));
	swarm_hook_text(&data, "permission_mode", text_to_cstring(PG_GETARG_TEXT_PP(3)));
	swarm_hook_jsonb(&data, "budget", PG_ARGISNULL(4) ? (Datum) 0 : PG_GETARG_DATUM(4));
	swarm_hook_jsonb(&data, "metadata", PG_ARGISNULL(5) ? (Datum) 0 : PG_GETARG_DATUM(5));
	if (!PG_ARGISNULL(6))
		swarm_hook_text(&data, "result_table", text_to_cstring(PG_GETARG_TEXT_PP(6)));
	if (phase == SWARM_HOOK_BEFORE)
		swarm_hook_before("query_start", GetUserId(), &data);
	else
		swarm_hook_after("query_start", GetUserId(), &data);
}

static int64
insert_row(const char *kind, Oid owner, Datum body, const char *model,
		   const char *mode, Datum budget, Datum metadata)
{
	SwarmSpi	spi;
	Oid			types[] = {TEXTOID, OIDOID, TEXTOID, TEXTOID, TEXTOID, JSONBOID, JSONBOID};
	Datum		values[] = {CStringGetTextDatum(kind), ObjectIdGetDatum(owner), body,
		model ? CStringGetTextDatum(model) : (Datum) 0, CStringGetTextDatum(mode),
	budget, metadata};
	char		nulls[] = "       ";
	int64		id;

	nulls[2] = body ? ' ' : 'n';
	nulls[3] = model ? ' ' : 'n';
	nulls[5] = budget ? ' ' : 'n';
	nulls[6] = metadata ? ' ' : 'n';
	swarm_spi_begin(&spi);
	swarm_spi_execute("INSERT INTO swarm._query (kind, owner, body, model, permission_mode, budget, metadata) "
					  "VALUES ($1, $2::regrole, $3, $4, $5, $6, coalesce($7, '{}')) RETURNING id",
					  7, types, values, nulls);
	id = swarm_spi_int64(0, 1);
	swarm_spi_end(&spi);
	return id;
}

/*
 * enqueue: the job, as the caller.  A statement is tried once: what it did
 * before a crash nobody knows.
 */
static int64
enqueue(const char *kind, int64 query)
{
	Oid			types[] = {TEXTOID, INT8OID, BOOLOID};
	Datum		values[] = {CStringGetTextDatum(kind), Int64GetDatum(query),
	BoolGetDatum(strcmp(kind, "llm") == 0)};
	bool		isnull;
	int64		job;

	SPI_connect();
	if (SPI_execute_with_args("SELECT swarm.job_enqueue($1, pg_catalog.jsonb_build_object('query', $2), "
							  "max_attempts => CASE WHEN $3 THEN 5 ELSE 1 END, timeout => NULL)",
							  3, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not enqueue");
	job = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	return job;
}

/*
 * swarm_query_enqueue_turn: a conversation goes on, as its owner, unless a job
 * of it waits already.
 */
void
swarm_query_enqueue_turn(const SwarmQueryRow *row)
{
	Oid			user;
	int			sec_context;
	SwarmSpi	spi;
	Oid			types[] = {INT8OID, INT8OID};
	Datum		values[] = {Int64GetDatum(row->id), Int64GetDatum(row->job)};
	bool		waits;

	swarm_spi_begin(&spi);
	waits = swarm_spi_query("SELECT FROM swarm._job WHERE id = $2", 2, types, values, NULL) > 0;
	swarm_spi_end(&spi);
	if (waits && swarm_query_is_live(row->id))
		return;					/* its process will see */
	GetUserIdAndSecContext(&user, &sec_context);
	SetUserIdAndSecContext(row->owner, sec_context | SECURITY_LOCAL_USERID_CHANGE);
	values[1] = Int64GetDatum(enqueue("llm", row->id));
	SetUserIdAndSecContext(user, sec_context);
	swarm_spi_begin(&spi);
	swarm_spi_execute("UPDATE swarm._query SET job = $2 WHERE id = $1", 2, types, values, NULL);
	swarm_spi_end(&spi);
}

/*
 * swarm_query_resolve_model: what swarm._model_resolve() says, where models
 * are known.
 */
char *
swarm_query_resolve_model(const char *name)
{
	SwarmSpi	spi;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext old;
	List	   *function = list_make2(makeString("swarm"), makeString("_model_resolve"));
	char	   *result;

	if (!OidIsValid(LookupFuncName(function, 1, types, true)))
		return pstrdup(name);
	swarm_spi_begin(&spi);
	(void) swarm_spi_query("SELECT swarm._model_resolve($1)", 1, types, values, NULL);
	old = MemoryContextSwitchTo(caller);
	result = swarm_spi_text(0, 1);
	MemoryContextSwitchTo(old);
	swarm_spi_end(&spi);
	return result;
}

/*
 * swarm.query_register(metadata) returns bigint: this session, from now on.
 */
SWARM_FUNCTION(swarm_query_register);
Datum
swarm_query_register(PG_FUNCTION_ARGS)
{
	SwarmQueryRow row;
	int64		id;

	PreventCommandIfReadOnly("query_register()");
	PreventCommandDuringRecovery("query_register()");
	PreventCommandIfParallelMode("query_register()");
	swarm_require_preload("controlling a session");
	if (MyBackendType != B_BACKEND)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("only a client's session can be registered")));
	if (swarm_query_me != NULL && swarm_query_me->ended)
		swarm_query_detach(NULL);
	if (swarm_query_me != NULL)
	{
		if (swarm_query_me->query == 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the session is being registered already")));
		PG_RETURN_INT64(swarm_query_me->query);
	}
	if (PG_ARGISNULL(0) || !JB_ROOT_IS_OBJECT(PG_GETARG_JSONB_P(0)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("metadata must be a JSON object")));
	id = insert_row("session", MyProc->roleId, (Datum) 0, NULL, "default", (Datum) 0,
					PG_GETARG_DATUM(0));
	row = (SwarmQueryRow)
	{
		.id = id, .state = SWARM_QUERY_INIT
	};
	swarm_query_move(&row, SWARM_QUERY_START, MyProc->roleId, NULL);
	swarm_query_attach(id, SWARM_KIND_SESSION, MyProc->roleId, false);
	swarm_doorbell_add(registered, undo_register, &id, sizeof(id));
	swarm_query_watch();
	PG_RETURN_INT64(id);
}

static void
registered(void *item)
{
}

/* undo_register: the row is rolled back, or its fate unknown. */
static void
undo_register(void *item)
{
	swarm_query_detach(NULL);
}

/*
 * swarm.query_wait(id, timeout) returns text: the state it has come to; an
 * end, or what it is in when the timeout is over.
 */
SWARM_FUNCTION(swarm_query_wait);
Datum
swarm_query_wait(PG_FUNCTION_ARGS)
{
	static uint32 wait_event = 0;
	int64		id = PG_GETARG_INT64(0);
	TimestampTz until = swarm_wait_deadline(fcinfo, 1);
	SwarmQueryRow row;
	ConditionVariable *cv;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	swarm_require_preload("waiting for a query");
	if (wait_event == 0)
		wait_event = swarm_wait_event_new("SwarmQueryWait");
	swarm_query_get(id, false, &row);
	cv = swarm_query_waiters(id);
	ConditionVariablePrepareToSleep(cv);
	while (swarm_query_fetch(id, false, &row) && !swarm_query_is_final(row.state))
	{
		long		ms = swarm_wait_left_ms(until);

		if (ms == 0)
			break;
		(void) ConditionVariableTimedSleep(cv, ms, wait_event);
	}
	ConditionVariableCancelSleep();
	if (swarm_query_is_final(row.state))
		swarm_query_await_end(id);
	PG_RETURN_TEXT_P(cstring_to_text(swarm_query_state_name(row.state)));
}

/*
 * swarm._query_live() returns setof: queries of this database that a process
 * works on; parallel workers are counted.
 */
SWARM_FUNCTION(swarm_query_live);
Datum
swarm_query_live(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < swarm_query_slots(); i++)
	{
		SwarmQuerySlot *slot = swarm_query_slot(i);
		SwarmQuerySlot copy;
		int			workers = 0;
		uint32		request;
		Datum		values[11];
		bool		nulls[11] = {0};

		LWLockAcquire(swarm_query_lock, LW_SHARED);
		copy = *slot;
		copy.state = swarm_query_live_state(slot);
		request = pg_atomic_read_u32(&slot->request);
		for (int j = 0; j < swarm_query_slots() && copy.query != 0; j++)
			workers += swarm_query_slot(j)->pid != 0 && swarm_query_slot(j)->leader == i;
		LWLockRelease(swarm_query_lock);
		if (copy.pid == 0 || copy.query == 0 || copy.leader >= 0 || copy.ended ||
			copy.database != MyDatabaseId)
			continue;
		values[0] = Int64GetDatum(copy.query);
		values[1] = Int32GetDatum(copy.pid);
		values[2] = CStringGetTextDatum(swarm_query_state_name(copy.state));
		values[3] = BoolGetDatum((request & SWARM_REQ_PAUSE) != 0 && copy.state == SWARM_QUERY_RUNNING);
		values[4] = CStringGetTextDatum(copy.node);
		nulls[4] = copy.node[0] == '\0';
		values[5] = TimestampTzGetDatum(copy.started_at);
		values[6] = TimestampTzGetDatum(copy.paused_at);
		nulls[6] = copy.paused_at == 0;
		values[7] = TimestampTzGetDatum(copy.resumed_at);
		nulls[7] = copy.resumed_at == 0;
		values[8] = Int64GetDatum(copy.paused_us +
								  (copy.state == SWARM_QUERY_PAUSED ? swarm_now() - copy.paused_at : 0));
		values[9] = Int32GetDatum(copy.pauses);
		values[10] = Int32GetDatum(workers);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

/*
 * swarm._query_events_dropped() returns bigint
 */
SWARM_FUNCTION(swarm_query_events_dropped);
Datum
swarm_query_events_dropped(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(swarm_query_news_lost());
}
