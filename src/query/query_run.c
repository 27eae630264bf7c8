/*
 * query_run.c
 *	  The job that runs a statement of query_start('sql', ...), as the role that
 *	  started it, and keeps its rows within limits.
 *
 * The statement's effects, its result and its last state are one transaction;
 * a failed or terminated statement is rolled back alone, and its row says so.
 * Rows that are to be a table become one by CREATE TABLE AS, so that this is the
 * server's own, with its rights, event triggers and errors.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/ipc.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/numeric.h"
#include "utils/resowner.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/export.h"
#include "base/fault.h"
#include "base/json.h"
#include "base/spi.h"
#include "query/query_int.h"

#define JOB_ARGS	4			/* field of swarm.job */

/* A receiver that keeps the first rows, as JSON, and counts the others. */
typedef struct RowReceiver
{
	DestReceiver pub;
	SwarmQueryRows *rows;
	TupleDesc	desc;
	MemoryContext row_context;
} RowReceiver;

typedef struct Outcome
{
	SwarmQueryEvent event;
	Datum		result;			/* jsonb, or 0 */
	char	   *error;
	char		sqlstate[6];
} Outcome;

static void rows_startup(DestReceiver *self, int operation, TupleDesc desc);
static bool rows_receive(TupleTableSlot *slot, DestReceiver *self);
static void rows_nothing(DestReceiver *self);
static void run_statement(const SwarmQueryRow *row, Outcome *out);
static void check_table_size(const char *table);
static Datum rows_to_jsonb(const SwarmQueryRows *rows, const char *table);
static void store_outcome(const Outcome *out, SwarmQueryRow *row,
						  const SwarmQuerySlot *last);

/*
 * swarm_query_execute: run `sql`, one or more statements; `rows` gets those
 * of the last one.  Memory is that of the caller.  Returns what SPI says.
 */
int
swarm_query_execute(const char *sql, bool read_only, SwarmQueryRows *rows)
{
	RowReceiver receiver = {0};
	SPIExecuteOptions options = {0};
	int			rc;

	initStringInfo(&rows->text);
	receiver.pub.receiveSlot = rows_receive;
	receiver.pub.rStartup = rows_startup;
	receiver.pub.rShutdown = rows_nothing;
	receiver.pub.rDestroy = rows_nothing;
	receiver.pub.mydest = DestNone;
	receiver.rows = rows;
	receiver.row_context = AllocSetContextCreate(CurrentMemoryContext, "pg_swarm row",
												 ALLOCSET_DEFAULT_SIZES);
	options.read_only = read_only;
	options.dest = (DestReceiver *) &receiver;

	SPI_connect();
	rc = SPI_execute_extended(sql, &options);
	if (rc == SPI_ERROR_TRANSACTION)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("transaction control is not possible in a query")));
	if (rc < 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("statement is not possible in a query: %s", SPI_result_code_string(rc))));
	if (rows->columns == 0)
		rows->count = SPI_processed;
	SPI_finish();
	MemoryContextDelete(receiver.row_context);
	return rc;
}

static void
rows_startup(DestReceiver *self, int operation, TupleDesc desc)
{
	RowReceiver *r = (RowReceiver *) self;

	r->rows->count = 0;
	r->rows->truncated = false;
	r->rows->value = NULL;
	r->rows->columns = desc->natts;
	resetStringInfo(&r->rows->text);
	r->desc = NULL;
	if (desc->natts > 0)
	{
		MemoryContext old = MemoryContextSwitchTo(GetMemoryChunkContext(r->rows->text.data));

		r->desc = BlessTupleDesc(CreateTupleDescCopy(desc));
		MemoryContextSwitchTo(old);
	}
}

static bool
rows_receive(TupleTableSlot *slot, DestReceiver *self)
{
	RowReceiver *r = (RowReceiver *) self;
	SwarmQueryRows *rows = r->rows;
	MemoryContext old;
	Datum		json;
	char	   *line;
	bool		free_tuple;
	HeapTuple	tuple;

	rows->count++;
	if (rows->truncated || rows->count > rows->limit || r->desc == NULL)
	{
		rows->truncated = true;
		return true;
	}
	old = MemoryContextSwitchTo(r->row_context);
	tuple = ExecFetchSlotHeapTuple(slot, false, &free_tuple);
	json = OidFunctionCall1(F_ROW_TO_JSON_RECORD, heap_copy_tuple_as_datum(tuple, r->desc));
	line = TextDatumGetCString(json);
	if (rows->text.len + strlen(line) + strlen(rows->separator) > rows->size)
		rows->truncated = true;
	else
	{
		if (rows->text.len > 0)
			appendStringInfoString(&rows->text, rows->separator);
		appendStringInfoString(&rows->text, line);
	}
	if (rows->as_value && rows->columns == 1 && rows->count == 1)
	{
		bool		isnull;
		Datum		value = heap_getattr(tuple, 1, r->desc, &isnull);

		if (!isnull)
		{
			Oid			output;
			bool		varlena;

			getTypeOutputInfo(TupleDescAttr(r->desc, 0)->atttypid, &output, &varlena);
			rows->value = MemoryContextStrdup(GetMemoryChunkContext(rows->text.data),
											  OidOutputFunctionCall(output, value));
		}
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(r->row_context);
	return true;
}

static void
rows_nothing(DestReceiver *self)
{
}

/*
 * swarm._query_run(job swarm.job): handler of kind query.
 */
SWARM_FUNCTION(swarm_query_job);
Datum
swarm_query_job(PG_FUNCTION_ARGS)
{
	HeapTupleHeader job = PG_GETARG_HEAPTUPLEHEADER(0);
	bool		isnull;
	Datum		datum = GetAttributeByNum(job, JOB_ARGS, &isnull);
	Jsonb	   *args = isnull ? NULL : DatumGetJsonbP(datum);
	JsonbValue	buffer;
	JsonbValue *value = args != NULL && JB_ROOT_IS_OBJECT(args) ?
	getKeyJsonValueFromContainer(&args->root, "query", 5, &buffer) : NULL;
	SwarmQueryRow row;
	Outcome		out = {0};
	SwarmQuerySlot last;

	if (MyBackendType != B_BG_WORKER || swarm_query_me != NULL ||
		value == NULL || value->type != jbvNumeric)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("only a runner can run a query"),
				 errhint("Use swarm.query_start().")));
	swarm_query_get(DatumGetInt64(DirectFunctionCall1(numeric_int8, NumericGetDatum(value->val.numeric))),
					false, &row);
	if (row.owner != GetUserId() || strcmp(row.kind, "sql") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("query " INT64_FORMAT " does not exist", row.id)));
	if (row.state != SWARM_QUERY_INIT && row.state != SWARM_QUERY_RUNNING)
		PG_RETURN_NULL();

	swarm_query_attach(row.id, SWARM_KIND_STATEMENT, row.owner,
					   strcmp(row.permission_mode, "plan") == 0);
	LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
	swarm_query_tell(swarm_query_me, SWARM_QUERY_START, SWARM_QUERY_INIT, SWARM_QUERY_RUNNING, NULL);
	LWLockRelease(swarm_query_lock);
	swarm_query_wake_scheduler(MyDatabaseId);
	SWARM_FAULT("query.run");
	PG_TRY();
	{
		run_statement(&row, &out);
	}
	PG_CATCH();
	{
		swarm_query_detach(NULL);
		PG_RE_THROW();
	}
	PG_END_TRY();
	last = *swarm_query_me;
	swarm_query_detach(NULL);
	store_outcome(&out, &row, &last);
	PG_RETURN_NULL();
}

/*
 * run_statement: in a subtransaction with settings of its own.  Raises
 * nothing but what ends the process, or an interrupt that was not meant for
 * the query but for its job.
 */
static void
run_statement(const SwarmQueryRow *row, Outcome *out)
{
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	int			guc_level = NewGUCNestLevel();
	Oid			user;
	int			sec_context;
	volatile bool stopped = false;
	SwarmQueryRows rows = {.limit = swarm_query_result_rows, .size = swarm_query_result_kb * (Size) 1024,
	.separator = ", "};

	GetUserIdAndSecContext(&user, &sec_context);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(caller);
	PG_TRY();
	{
		if (row->result_table != NULL)
		{
			(void) swarm_query_execute(swarm_query_into(row->body, row->result_table), false, &rows);
			check_table_size(row->result_table);
		}
		else
			(void) swarm_query_execute(row->body, false, &rows);
		out->result = rows_to_jsonb(&rows, row->result_table);

		/* whoever has said that it shall be terminated is right until here */
		LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
		stopped = (pg_atomic_read_u32(&swarm_query_me->request) & SWARM_REQ_STOP) != 0;
		swarm_query_me->query = 0;	/* from now on nobody finds it */
		LWLockRelease(swarm_query_lock);
		if (stopped)
			RollbackAndReleaseCurrentSubTransaction();
		else
			ReleaseCurrentSubTransaction();
		out->event = SWARM_QUERY_FINISH;
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(caller);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
		stopped = (pg_atomic_read_u32(&swarm_query_me->request) & SWARM_REQ_STOP) != 0;
		swarm_query_me->query = 0;
		LWLockRelease(swarm_query_lock);
		MemoryContextSwitchTo(caller);
		CurrentResourceOwner = owner;
		if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED && !stopped)
			ReThrowError(edata);	/* swarm.job_cancel(), or the job's time
									 * limit */
		out->event = SWARM_QUERY_FAIL;
		out->error = edata->message;
		strlcpy(out->sqlstate, unpack_sql_state(edata->sqlerrcode), sizeof(out->sqlstate));
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	CurrentResourceOwner = owner;
	SetUserIdAndSecContext(user, sec_context);
	AtEOXact_GUC(false, guc_level);
	if (stopped)
	{
		QueryCancelPending = false; /* sent for the statement, which is over */
		out->event = SWARM_QUERY_TERMINATE;
		out->result = (Datum) 0;
		out->error = NULL;
		out->sqlstate[0] = '\0';
	}
}

/*
 * swarm_query_into: parsed, so that the body is that one statement and cannot
 * have more to say than a SELECT.
 */
char *
swarm_query_into(const char *body, const char *table)
{
	List	   *parsed = pg_parse_query(body);
	RawStmt    *raw = list_length(parsed) == 1 ? linitial_node(RawStmt, parsed) : NULL;

	if (raw == NULL || !IsA(raw->stmt, SelectStmt) || ((SelectStmt *) raw->stmt)->intoClause != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("only the rows of a single SELECT can become a table"),
				 errhint("What INSERT, UPDATE and DELETE return can be selected: WITH r AS (DELETE ... RETURNING ...) SELECT ... FROM r.")));
	body += raw->stmt_location;
	return psprintf("CREATE TABLE %s AS %s", table,
					raw->stmt_len > 0 ? pnstrdup(body, raw->stmt_len) : body);
}

/* check_table_size: an error undoes the table. */
static void
check_table_size(const char *table)
{
	Datum		name = CStringGetTextDatum(table);
	int64		size = DatumGetInt64(DirectFunctionCall1(pg_total_relation_size,
														 DirectFunctionCall1(to_regclass, name)));

	if (swarm_query_result_table_mb > 0 && size > swarm_query_result_table_mb * INT64CONST(1024) * 1024)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("table %s would be larger than %d MB", table, swarm_query_result_table_mb),
				 errhint("The limit is pg_swarm.query_result_table_size.")));
}

static Datum
rows_to_jsonb(const SwarmQueryRows *rows, const char *table)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfo(&json, "{\"rows\": " UINT64_FORMAT, rows->count);
	if (table != NULL)
	{
		appendStringInfoString(&json, ", \"table\": ");
		escape_json(&json, table);
	}
	else if (rows->columns > 0)
		appendStringInfo(&json, ", \"data\": [%s], \"truncated\": %s", rows->text.data,
						 rows->truncated ? "true" : "false");
	appendStringInfoChar(&json, '}');
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(swarm_json_storable(json.data)));
}

/*
 * store_outcome: the row's end, in the transaction of the statement.
 */
static void
store_outcome(const Outcome *out, SwarmQueryRow *row, const SwarmQuerySlot *last)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID, JSONBOID, TEXTOID, TEXTOID, TIMESTAMPTZOID, INT8OID, INT4OID,
	TIMESTAMPTZOID, TIMESTAMPTZOID};
	Datum		values[] = {Int64GetDatum(row->id), out->result,
		out->error ? CStringGetTextDatum(out->error) : (Datum) 0,
		CStringGetTextDatum(out->sqlstate), TimestampTzGetDatum(last->started_at),
		Int64GetDatum(last->paused_us), Int32GetDatum(last->pauses),
	TimestampTzGetDatum(last->paused_at), TimestampTzGetDatum(last->resumed_at)};
	char		nulls[] = "         ";

	swarm_query_lock_end(row->id);
	nulls[1] = out->result ? ' ' : 'n';
	nulls[2] = out->error ? ' ' : 'n';
	nulls[3] = out->error ? ' ' : 'n';
	nulls[7] = last->paused_at != 0 ? ' ' : 'n';
	nulls[8] = last->resumed_at != 0 ? ' ' : 'n';
	swarm_spi_begin(&spi);
	swarm_spi_execute("UPDATE swarm._query SET result = $2, error = $3, sqlstate = $4, started_at = $5, "
					  "total_pause = $6 * interval '1 microsecond', pauses = $7, "
					  "paused_at = $8, resumed_at = $9 WHERE id = $1",
					  9, types, values, nulls);
	swarm_spi_end(&spi);
	row->state = last->state;
	swarm_query_move(row, out->event, row->owner, out->error);
}
