/*
 * hnsw_sql.c
 *	  The functions on indexes that SQL calls: look, check, measure, maintain.
 *
 * Each names an index by its regclass, checks what the caller may do, locks
 * the table and then the index.  Reference: docs/reference/qhnsw.md.
 */
#include "postgres.h"

#include <math.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/index.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "portability/instr_time.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/ruleutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "base/export.h"
#include "hnsw/hnsw_int.h"

/* Limits of swarm.qhnsw_recall. */
#define MAX_SAMPLES		100000
#define MAX_K			10000

/* What a caller may do. */
typedef enum Right
{
	MAY_LOOK,					/* SELECT, or pg_stat_scan_tables */
	MAY_SELECT,
	MAY_MAINTAIN				/* owner, or whoever may VACUUM it */
} Right;

/* An index and its table, open and locked. */
typedef struct Target
{
	Relation	heap;
	Relation	rel;
	LOCKMODE	lock;			/* of both */
} Target;

/* The parts of the queries of swarm.qhnsw_recall. */
typedef struct RecallSql
{
	char	   *table;
	char	   *value;			/* column or expression */
	char	   *filter;
	char	   *operator;
	Oid			type;
	FmgrInfo	distance;
} RecallSql;

static Target open_target(Oid relid, Right right, LOCKMODE lock);
static void check_right(Oid relid, Oid table, Right right);
static void close_target(Target *target);
static void add_problem(void *arg, const char *problem, SwarmNodeId node,
						const char *detail);
static void recall_sql(Relation heap, Relation rel, RecallSql *sql);
static double run_exact(SPIPlanPtr plan, Datum query, int k, double *farthest,
						int *rows);
static double run_index(Target *target, IndexScanDesc scan,
						const RecallSql *sql, Datum query, int k,
						double farthest, int *hits);

/*
 * open_target: what the functions begin with.
 *
 * Errors: 42P01 no such relation, 42809 no index of this method, 42501 the
 * caller may not, 0A000 a temporary table of another session, 55000 an index
 * whose build has not succeeded or that a standby has no data of.
 */
static Target
open_target(Oid relid, Right right, LOCKMODE lock)
{
	Target		target = {.lock = lock};
	char		kind = get_rel_relkind(relid);
	char	   *name = get_rel_name(relid);
	Oid			table = kind == RELKIND_INDEX ? IndexGetRelation(relid, true) :
	InvalidOid;

	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation with OID %u does not exist", relid)));
	if (!OidIsValid(table))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not an index of access method \"qhnsw\"", name),
				 kind == RELKIND_PARTITIONED_INDEX ?
				 errhint("Name the index of a partition.") :
				 errhint("Name an index, not its table.")));
	check_right(relid, table, right);

	target.heap = table_open(table, lock);
	target.rel = index_open(relid, lock);
	if (target.rel->rd_index->indrelid != table)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("index \"%s\" was changed meanwhile", name)));
	if (target.rel->rd_indam->amgettuple != swarm_hnsw_get_tuple)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not an index of access method \"qhnsw\"", name),
				 errhint("Name an index that was created USING qhnsw.")));
	if (RELATION_IS_OTHER_TEMP(target.rel))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot access temporary tables of other sessions")));
	if (!target.rel->rd_index->indisvalid)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("index \"%s\" is not valid", name),
				 errhint("Wait until it is built, or REINDEX it.")));
	if (RecoveryInProgress() &&
		target.rel->rd_rel->relpersistence != RELPERSISTENCE_PERMANENT)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("unlogged index \"%s\" has no data during recovery", name)));
	return target;
}

/*
 * check_right: raise 42501 unless the caller has a right on an index.
 */
static void
check_right(Oid relid, Oid table, Right right)
{
	Oid			user = GetUserId();

	if (right == MAY_MAINTAIN)
	{
		if (!swarm_may_maintain(table, user))
			aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_INDEX, get_rel_name(relid));
		return;
	}
	if (right == MAY_LOOK && has_privs_of_role(user, ROLE_PG_STAT_SCAN_TABLES))
		return;
	if (pg_class_aclcheck(table, user, ACL_SELECT) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, get_rel_name(table));
}

/*
 * close_target: the end of it.  Locks stay to the end of the transaction when
 * something was written.
 */
static void
close_target(Target *target)
{
	LOCKMODE	unlock = target->lock == AccessShareLock ? target->lock : NoLock;

	index_close(target->rel, unlock);
	table_close(target->heap, unlock);
}

/*
 * row_result: a composite result of the type that the function declares.
 */
static Datum
row_result(FunctionCallInfo fcinfo, Datum *values, bool *nulls)
{
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

/*
 * quantizer_name: of the bits a dimension of the traversal code.
 */
static const char *
quantizer_name(int bits)
{
	switch (bits)
	{
		case 1:
			return "rabitq1";
		case 2:
			return "rabitq2";
		case 4:
			return "rabitq4";
		case 8:
			return "sq8";
		case 16:
			return "half";
		default:
			return "none";
	}
}

/*
 * swarm.qhnsw_stats(index regclass): what is in an index; one row.
 */
SWARM_FUNCTION(swarm_qhnsw_stats);
Datum
swarm_qhnsw_stats(PG_FUNCTION_ARGS)
{
	static const char *const metrics[] = {
		[SWARM_METRIC_L2] = "l2",
		[SWARM_METRIC_COSINE] = "cosine",
		[SWARM_METRIC_IP] = "ip"
	};
	static const int states[] = {
		SWARM_NODE_LINKED, SWARM_NODE_TWIN, SWARM_NODE_PENDING,
		SWARM_NODE_JOINING, SWARM_NODE_ODD, SWARM_NODE_DEAD, SWARM_NODE_FREE
	};
	static const int kinds[] = {
		SWARM_PAGE_META, SWARM_PAGE_MODEL, SWARM_STREAM_NODE,
		SWARM_STREAM_UPPER, SWARM_STREAM_REFINE
	};
	Target		target = open_target(PG_GETARG_OID(0), MAY_LOOK, AccessShareLock);
	SwarmHnswMeasures m;
	Datum		values[28];
	bool		nulls[28] = {false};
	Datum		levels[SWARM_HNSW_MAX_LEVEL + 1];
	int			nlevels = 0;
	uint64		rows = 0;
	double		bytes = (double) RelationGetNumberOfBlocks(target.rel) * BLCKSZ;
	int			n = 0;

	swarm_hnsw_measure(target.rel, &m);
	for (int i = 0; i < lengthof(states); i++)
	{
		values[n++] = Int64GetDatum(m.rows[states[i]]);
		if (states[i] != SWARM_NODE_DEAD && states[i] != SWARM_NODE_FREE)
			rows += m.rows[states[i]];
	}
	while (nlevels <= SWARM_HNSW_MAX_LEVEL && m.levels[nlevels] > 0)
	{
		levels[nlevels] = Int64GetDatum(m.levels[nlevels]);
		nlevels++;
	}
	values[n++] = PointerGetDatum(construct_array(levels, nlevels, INT8OID, 8,
												  true, TYPALIGN_DOUBLE));
	nulls[n] = m.meta.entry == SWARM_NODE_NONE;
	values[n++] = Int64GetDatum(m.meta.entry);
	for (int i = 0; i < lengthof(kinds); i++)
		values[n++] = Int64GetDatum(m.pages[kinds[i]] * BLCKSZ);
	nulls[n] = rows == 0;
	values[n++] = Float8GetDatum(rows == 0 ? 0 : bytes / rows);
	nulls[n] = m.meta.dims == 0;
	values[n++] = Int32GetDatum(m.meta.dims);
	values[n++] = CStringGetTextDatum(metrics[m.meta.metric]);
	nulls[n] = m.meta.dims == 0;
	values[n++] = CStringGetTextDatum(quantizer_name(m.meta.bits));
	nulls[n] = m.meta.dims == 0;
	values[n++] = Int32GetDatum(m.meta.bits);
	nulls[n] = m.meta.dims == 0;
	values[n++] = Int32GetDatum(m.meta.refine_bits);
	values[n++] = Int32GetDatum(m.meta.m);
	values[n++] = Int32GetDatum(m.meta.ef_construction);
	values[n++] = Int64GetDatum(m.meta.generation);
	values[n++] = Int64GetDatum(m.meta.trained);
	nulls[n] = m.drift < 0;
	values[n++] = Float8GetDatum(m.drift);
	Assert(n <= lengthof(values));
	close_target(&target);
	PG_RETURN_DATUM(row_result(fcinfo, values, nulls));
}

/*
 * swarm.qhnsw_check(index regclass, heap boolean): the problems of an index.
 *
 * Expressions of the index are evaluated as the owner of the table, who can do
 * no more than that.
 */
SWARM_FUNCTION(swarm_qhnsw_check);
Datum
swarm_qhnsw_check(PG_FUNCTION_ARGS)
{
	Target		target = open_target(PG_GETARG_OID(0), MAY_LOOK, AccessShareLock);
	bool		heap = PG_GETARG_BOOL(1);
	Oid			user;
	int			context;
	int			level;

	InitMaterializedSRF(fcinfo, 0);
	if (heap && IsolationUsesXactSnapshot() &&
		target.rel->rd_index->indcheckxmin &&
		!TransactionIdPrecedes(HeapTupleHeaderGetXmin(target.rel->rd_indextuple->t_data),
							   GetTransactionSnapshot()->xmin))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("index \"%s\" cannot be compared with its table in this transaction",
						RelationGetRelationName(target.rel)),
				 errhint("Use isolation level READ COMMITTED.")));
	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(target.heap->rd_rel->relowner,
						   context | SECURITY_RESTRICTED_OPERATION);
	level = NewGUCNestLevel();
	swarm_restrict_search_path();
	swarm_hnsw_check(target.rel, heap ? target.heap : NULL, add_problem,
					 fcinfo->resultinfo);
	AtEOXact_GUC(false, level);
	SetUserIdAndSecContext(user, context);
	close_target(&target);
	return (Datum) 0;
}

/*
 * add_problem: one row of swarm.qhnsw_check.
 */
static void
add_problem(void *arg, const char *problem, SwarmNodeId node,
			const char *detail)
{
	ReturnSetInfo *result = arg;
	Datum		values[3];
	bool		nulls[3] = {false};

	values[0] = CStringGetTextDatum(problem);
	nulls[1] = node == SWARM_NODE_NONE;
	values[1] = Int64GetDatum(node);
	values[2] = CStringGetTextDatum(detail);
	tuplestore_putvalues(result->setResult, result->setDesc, values, nulls);
}

/*
 * swarm.qhnsw_prewarm(index regclass): read an index into shared buffers, from
 * its beginning (where the nodes near the entry point are) and no more than
 * fits; returns the number of blocks.
 */
SWARM_FUNCTION(swarm_qhnsw_prewarm);
Datum
swarm_qhnsw_prewarm(PG_FUNCTION_ARGS)
{
	Target		target = open_target(PG_GETARG_OID(0), MAY_SELECT, AccessShareLock);
	BlockNumber blocks = Min(RelationGetNumberOfBlocks(target.rel),
							 (BlockNumber) NBuffers);

	for (BlockNumber block = 0; block < blocks; block++)
	{
		CHECK_FOR_INTERRUPTS();
		ReleaseBuffer(ReadBuffer(target.rel, block));
	}
	close_target(&target);
	PG_RETURN_INT64(blocks);
}

/*
 * swarm.qhnsw_flush(index regclass): link all pending rows; returns how many.
 */
SWARM_FUNCTION(swarm_qhnsw_flush);
Datum
swarm_qhnsw_flush(PG_FUNCTION_ARGS)
{
	Target		target;
	int64		count;

	PreventCommandIfReadOnly("swarm.qhnsw_flush()");
	PreventCommandDuringRecovery("swarm.qhnsw_flush()");
	target = open_target(PG_GETARG_OID(0), MAY_MAINTAIN, RowExclusiveLock);
	count = swarm_hnsw_fold(target.rel, true);
	close_target(&target);
	PG_RETURN_INT64(count);
}

/*
 * swarm.qhnsw_scan_stats(): what the last scan of this session did.
 */
SWARM_FUNCTION(swarm_qhnsw_scan_stats);
Datum
swarm_qhnsw_scan_stats(PG_FUNCTION_ARGS)
{
	SwarmHnswCounters counters;
	bool		known = swarm_hnsw_last_counters(&counters);
	Datum		values[5];
	bool		nulls[5] = {!known, !known, !known, !known, !known};

	values[0] = Int64GetDatum(counters.hops);
	values[1] = Int64GetDatum(counters.pages);
	values[2] = Int64GetDatum(counters.scored);
	values[3] = Int64GetDatum(counters.refined);
	values[4] = Int64GetDatum(counters.fetched);
	PG_RETURN_DATUM(row_result(fcinfo, values, nulls));
}

/* ---------------------------------------------------------------- recall */

/*
 * swarm.qhnsw_recall(index regclass, samples int, k int): compare an index
 * with the exact answer, with rows of the table as queries.
 *
 * The index is scanned directly, so that it is this index; the exact answer
 * comes from SQL.  A row counts as found when it is no farther than the k-th
 * of the exact answer, so that equal distances do no harm.
 */
SWARM_FUNCTION(swarm_qhnsw_recall);
Datum
swarm_qhnsw_recall(PG_FUNCTION_ARGS)
{
	Target		target = open_target(PG_GETARG_OID(0), MAY_SELECT, AccessShareLock);
	int			samples = PG_GETARG_INT32(1);
	int			k = PG_GETARG_INT32(2);
	RecallSql	sql;
	char	   *command;
	SPIPlanPtr	exact;
	SPITupleTable *queries;
	IndexScanDesc scan;
	int			level;
	uint64		count;
	int64		hits = 0;
	int64		wanted = 0;
	double		index_ms = 0;
	double		exact_ms = 0;
	Datum		values[4];
	bool		nulls[4] = {false};

	if (samples < 1 || samples > MAX_SAMPLES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("samples must be between 1 and %d", MAX_SAMPLES)));
	if (k < 1 || k > MAX_K)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("k must be between 1 and %d", MAX_K)));
	if (check_enable_rls(RelationGetRelid(target.heap), InvalidOid, true) ==
		RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("recall of index \"%s\" cannot be measured under row-level security",
						RelationGetRelationName(target.rel)),
				 errhint("Let the owner of the table measure it.")));

	SPI_connect();
	recall_sql(target.heap, target.rel, &sql);
	level = NewGUCNestLevel();
	/* A sequential scan, and not at the cost that switching it off gives it. */
	(void) set_config_option("enable_indexscan", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("enable_seqscan", "on", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);

	command = psprintf("SELECT %s FROM ONLY %s WHERE %s ORDER BY pg_catalog.random() LIMIT %d",
					   sql.value, sql.table, sql.filter, samples);
	if (SPI_execute(command, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not sample table");
	queries = SPI_tuptable;
	count = SPI_processed;
	command = psprintf("SELECT (%s) %s $1 FROM ONLY %s WHERE %s ORDER BY 1 LIMIT %d",
					   sql.value, sql.operator, sql.table, sql.filter, k);
	exact = SPI_prepare(command, 1, &sql.type);
	if (exact == NULL)
		elog(ERROR, "could not prepare the exact query");

	scan = swarm_index_beginscan(target.heap, target.rel, GetActiveSnapshot(), 0, 1);
	for (uint64 i = 0; i < count; i++)
	{
		bool		isnull;
		Datum		query = SPI_getbinval(queries->vals[i], queries->tupdesc, 1,
										  &isnull);
		double		farthest;
		int			rows;
		int			found;

		exact_ms += run_exact(exact, query, k, &farthest, &rows);
		index_ms += run_index(&target, scan, &sql, query, k, farthest, &found);
		hits += Min(found, rows);
		wanted += rows;
	}
	index_endscan(scan);
	AtEOXact_GUC(false, level);
	SPI_finish();

	nulls[0] = wanted == 0;
	values[0] = Float8GetDatum(wanted == 0 ? 0 : (double) hits / wanted);
	nulls[1] = nulls[2] = count == 0;
	values[1] = Float8GetDatum(count == 0 ? 0 : index_ms / count);
	values[2] = Float8GetDatum(count == 0 ? 0 : exact_ms / count);
	values[3] = Int32GetDatum((int32) count);
	close_target(&target);
	PG_RETURN_DATUM(row_result(fcinfo, values, nulls));
}

/*
 * recall_sql: the text of what is indexed, in the current context.
 */
static void
recall_sql(Relation heap, Relation rel, RecallSql *sql)
{
	Oid			type = rel->rd_opcintype[0];
	Oid			operator = get_opfamily_member(rel->rd_opfamily[0], type, type, 1);
	HeapTuple	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(operator));
	Form_pg_operator form;
	List	   *predicate = RelationGetIndexPredicate(rel);

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator %u", operator);
	form = (Form_pg_operator) GETSTRUCT(tuple);
	sql->operator = psprintf("OPERATOR(%s.%s)",
							 quote_identifier(get_namespace_name(form->oprnamespace)),
							 NameStr(form->oprname));
	fmgr_info(form->oprcode, &sql->distance);
	ReleaseSysCache(tuple);

	sql->type = type;
	sql->table = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(heap)),
											RelationGetRelationName(heap));
	sql->value = pg_get_indexdef_columns(RelationGetRelid(rel), false);
	sql->filter = psprintf("(%s) IS NOT NULL", sql->value);
	if (predicate != NIL)
		sql->filter = psprintf("%s AND (%s)", sql->filter,
							   deparse_expression((Node *) make_ands_explicit(predicate),
												  deparse_context_for(RelationGetRelationName(heap),
																	  RelationGetRelid(heap)),
												  false, false));
}

/*
 * run_exact: the exact answer to a query: how many rows it has, and the
 * distance of the farthest; returns milliseconds.
 */
static double
run_exact(SPIPlanPtr plan, Datum query, int k, double *farthest, int *rows)
{
	instr_time	start;
	instr_time	end;
	bool		isnull;

	INSTR_TIME_SET_CURRENT(start);
	if (SPI_execute_plan(plan, &query, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not run the exact query");
	INSTR_TIME_SET_CURRENT(end);
	INSTR_TIME_SUBTRACT(end, start);
	*rows = SPI_processed;
	*farthest = 0;
	if (*rows > 0)
		*farthest = DatumGetFloat8(SPI_getbinval(SPI_tuptable->vals[*rows - 1],
												 SPI_tuptable->tupdesc, 1,
												 &isnull));
	SPI_freetuptable(SPI_tuptable);
	return INSTR_TIME_GET_MILLISEC(end);
}

/*
 * run_index: the answer of the index: how many of its first k rows are no
 * farther than `farthest`; returns milliseconds of the scan alone.
 */
static double
run_index(Target *target, IndexScanDesc scan, const RecallSql *sql, Datum query,
		  int k, double farthest, int *hits)
{
	IndexInfo  *info = BuildIndexInfo(target->rel);
	EState	   *estate = CreateExecutorState();
	TupleTableSlot *slot = table_slot_create(target->heap, NULL);
	ExprContext *context = GetPerTupleExprContext(estate);
	instr_time	start;
	instr_time	end;
	double		ms = 0;
	ScanKeyData key;

	context->ecxt_scantuple = slot;
	ScanKeyEntryInitialize(&key, SK_ORDER_BY, 1, 1, sql->type, InvalidOid,
						   sql->distance.fn_oid, query);
	*hits = 0;
	INSTR_TIME_SET_CURRENT(start);
	index_rescan(scan, NULL, 0, &key, 1);
	for (int i = 0; i < k; i++)
	{
		Datum		values[INDEX_MAX_KEYS];
		bool		isnull[INDEX_MAX_KEYS];
		double		distance;

		CHECK_FOR_INTERRUPTS();
		if (i > 0)
			INSTR_TIME_SET_CURRENT(start);
		if (!index_getnext_slot(scan, ForwardScanDirection, slot))
			break;
		INSTR_TIME_SET_CURRENT(end);
		INSTR_TIME_SUBTRACT(end, start);
		ms += INSTR_TIME_GET_MILLISEC(end);

		FormIndexDatum(info, slot, estate, values, isnull);
		if (!isnull[0])
		{
			distance = DatumGetFloat8(FunctionCall2((FmgrInfo *) &sql->distance,
													values[0], query));
			/* NaN, of zero vectors under cosine, is the farthest of all. */
			if (isnan(farthest) || distance <= farthest)
				(*hits)++;
		}
		ResetPerTupleExprContext(estate);
	}
	ExecDropSingleTupleTableSlot(slot);
	FreeExecutorState(estate);
	return ms;
}
