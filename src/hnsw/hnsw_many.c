/*
 * hnsw_many.c
 *	  swarm.search_many: one call, many queries.
 *
 * All queries use the rights, the policies and the snapshot of the caller.
 * Where nothing but the rows of one table of real[] is involved, one scan of the index is
 * opened and started anew for every query; else one statement is planned once
 * and run for every query.  What many queries share besides, they share
 * through the backend's open index: its hints, its entries, and pages that are
 * still in the processor's cache.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relation.h"
#include "access/relscan.h"
#include "access/tableam.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "executor/executor.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "optimizer/cost.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/float.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "base/export.h"
#include "hnsw/hnsw_int.h"

#define MAX_LIMIT	10000

/* What to search by. */
typedef struct ManyTarget
{
	Oid			relid;
	const char *column;
	AttrNumber	attribute;
	Oid			type;			/* of the column */
	Oid			index;
	Oid			operator;		/* the index's distance */
} ManyTarget;

/* A row that a query found. */
typedef struct ManyRow
{
	ItemPointerData tid;
	bool		isnull;
	double		distance;
} ManyRow;

static void find_target(Oid relid, const char *column, ManyTarget *target);
static bool may_scan(const ManyTarget *target);
static void many_by_scan(const ManyTarget *target, ArrayType *queries,
						 int32 lim, ReturnSetInfo *result);
static void many_by_statement(const ManyTarget *target, ArrayType *queries,
							  int32 lim, ReturnSetInfo *result);
static char *many_statement(const ManyTarget *target);
static ArrayType *nth_query(ArrayType *queries, int n);

/*
 * swarm.search_many(rel regclass, col name, queries real[][], lim int)
 * returns table (query int, row_id tid, distance float8)
 */
SWARM_FUNCTION(swarm_search_many);
Datum
swarm_search_many(PG_FUNCTION_ARGS)
{
	Oid			relid = PG_GETARG_OID(0);
	const char *column = NameStr(*PG_GETARG_NAME(1));
	ArrayType  *queries = PG_GETARG_ARRAYTYPE_P(2);
	int32		lim = PG_GETARG_INT32(3);
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	ManyTarget	target;

	if (lim < 1 || lim > MAX_LIMIT)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid number of rows: %d", lim),
				 errhint("It must be between 1 and %d.", MAX_LIMIT)));
	if (ARR_NDIM(queries) != 2 && ARR_NDIM(queries) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("queries must be a two-dimensional array"),
				 errhint("One row is one query: array[q1, q2].")));
	if (array_contains_nulls(queries))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("queries must not contain nulls")));

	InitMaterializedSRF(fcinfo, 0);
	find_target(relid, column, &target);
	if (ARR_NDIM(queries) == 0)
		PG_RETURN_NULL();
	if (may_scan(&target))
		many_by_scan(&target, queries, lim, result);
	else
		many_by_statement(&target, queries, lim, result);
	PG_RETURN_NULL();
}

/*
 * may_scan: would the statement do nothing but read the index and the rows of
 * this very table?  Then that is done directly.  Policies, partitions and
 * other children, a hook that checks rights, and an index that the planner
 * would not take are left to the statement, as is the message to those who may
 * not read the table.
 */
static bool
may_scan(const ManyTarget *target)
{
	Relation	rel = relation_open(target->relid, NoLock);
	Relation	index;
	bool		good = target->type == FLOAT4ARRAYOID &&
	(rel->rd_rel->relkind == RELKIND_RELATION ||
	 rel->rd_rel->relkind == RELKIND_MATVIEW) &&
	!has_subclass(target->relid) && RelationIsPopulated(rel);

	relation_close(rel, NoLock);
	if (!good || ExecutorCheckPerms_hook != NULL || !enable_indexscan ||
		check_enable_rls(target->relid, InvalidOid, true) != RLS_NONE ||
		pg_class_aclcheck(target->relid, GetUserId(), ACL_SELECT) != ACLCHECK_OK ||
		swarm_proc_aclcheck(get_opcode(target->operator), GetUserId(),
							ACL_EXECUTE) != ACLCHECK_OK)
		return false;

	/* As get_relation_info() has it. */
	index = index_open(target->index, AccessShareLock);
	good = RelationGetIndexPredicate(index) == NIL &&
		(!index->rd_index->indcheckxmin ||
		 TransactionIdPrecedes(HeapTupleHeaderGetXmin(index->rd_indextuple->t_data),
							   TransactionXmin));
	index_close(index, NoLock);
	return good;
}

/*
 * compare_rows: by distance; without one last.
 */
static int
compare_rows(const void *a, const void *b)
{
	const ManyRow *x = a;
	const ManyRow *y = b;

	if (x->isnull || y->isnull)
		return x->isnull - y->isnull;
	return float8_cmp_internal(x->distance, y->distance);
}

/*
 * many_by_scan: every query by a rescan of one index scan.
 */
static void
many_by_scan(const ManyTarget *target, ArrayType *queries, int32 lim,
			 ReturnSetInfo *result)
{
	Relation	rel = relation_open(target->relid, NoLock);
	Relation	index = index_open(target->index, NoLock);
	IndexScanDesc scan = swarm_index_beginscan(rel, index, GetActiveSnapshot(),
											   0, 1);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	ManyRow    *rows = palloc(lim * sizeof(ManyRow));
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "search_many row",
												  ALLOCSET_DEFAULT_SIZES);
	FmgrInfo	distance;
	ScanKeyData key;

	fmgr_info(get_opcode(target->operator), &distance);
	for (int i = 0; i < ARR_DIMS(queries)[0]; i++)
	{
		Datum		query = PointerGetDatum(nth_query(queries, i));
		int			n = 0;

		CHECK_FOR_INTERRUPTS();
		ScanKeyEntryInitialize(&key, SK_ORDER_BY, 1, 1, InvalidOid, InvalidOid,
							   distance.fn_oid, query);
		index_rescan(scan, NULL, 0, &key, 1);
		while (n < lim && index_getnext_slot(scan, ForwardScanDirection, slot))
		{
			MemoryContext old = MemoryContextSwitchTo(context);
			ManyRow    *row = &rows[n++];
			Datum		value = slot_getattr(slot, target->attribute, &row->isnull);

			row->tid = slot->tts_tid;
			if (!row->isnull)
				row->distance = DatumGetFloat8(FunctionCall2(&distance, value, query));
			MemoryContextSwitchTo(old);
			MemoryContextReset(context);
		}
		qsort(rows, n, sizeof(ManyRow), compare_rows);
		for (int j = 0; j < n; j++)
		{
			Datum		values[3] = {
				Int32GetDatum(i + 1), PointerGetDatum(&rows[j].tid),
				Float8GetDatum(rows[j].distance)
			};
			bool		isnull[3] = {false, false, rows[j].isnull};

			tuplestore_putvalues(result->setResult, result->setDesc, values,
								 isnull);
		}
		pfree(DatumGetPointer(query));
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	MemoryContextDelete(context);
	index_close(index, NoLock);
	relation_close(rel, NoLock);
}

/*
 * many_by_statement: every query by a statement, as anyone could write it.
 */
static void
many_by_statement(const ManyTarget *target, ArrayType *queries, int32 lim,
				  ReturnSetInfo *result)
{
	Oid			types[2] = {FLOAT4ARRAYOID, INT4OID};
	SPIPlanPtr	plan;

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	plan = SPI_prepare_cursor(many_statement(target), 2,
							  types, CURSOR_OPT_GENERIC_PLAN);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	for (int i = 0; i < ARR_DIMS(queries)[0]; i++)
	{
		ArrayType  *query = nth_query(queries, i);
		Datum		values[2] = {PointerGetDatum(query), Int32GetDatum(lim)};

		CHECK_FOR_INTERRUPTS();
		if (SPI_execute_plan(plan, values, NULL, true, 0) != SPI_OK_SELECT)
			elog(ERROR, "search failed: %s", SPI_result_code_string(SPI_result));
		for (uint64 j = 0; j < SPI_processed; j++)
		{
			HeapTuple	tuple = SPI_tuptable->vals[j];
			Datum		row[3];
			bool		isnull[3] = {false};

			row[0] = Int32GetDatum(i + 1);
			row[1] = SPI_getbinval(tuple, SPI_tuptable->tupdesc, 1, &isnull[1]);
			row[2] = SPI_getbinval(tuple, SPI_tuptable->tupdesc, 2, &isnull[2]);
			tuplestore_putvalues(result->setResult, result->setDesc, row, isnull);
		}
		SPI_freetuptable(SPI_tuptable);
		pfree(query);
	}
	SPI_finish();
}

/*
 * find_target: a valid qhnsw index of the column, the distance that it is for,
 * and the type of the column.  The table stays locked.
 */
static void
find_target(Oid relid, const char *column, ManyTarget *target)
{
	Relation	rel = relation_open(relid, AccessShareLock);
	AttrNumber	attribute = get_attnum(relid, column);
	Oid			am = get_index_am_oid("qhnsw", false);
	List	   *indexes;
	ListCell   *cell;

	if (attribute == InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of relation \"%s\" does not exist", column,
						RelationGetRelationName(rel))));
	target->relid = relid;
	target->column = column;
	target->attribute = attribute;
	target->type = get_atttype(relid, attribute);
	target->index = InvalidOid;
	indexes = RelationGetIndexList(rel);
	foreach(cell, indexes)
	{
		Relation	index = index_open(lfirst_oid(cell), AccessShareLock);

		if (index->rd_rel->relam == am && index->rd_index->indisvalid &&
			index->rd_index->indkey.values[0] == attribute)
		{
			target->index = RelationGetRelid(index);
			target->operator = get_opfamily_member(index->rd_opfamily[0],
												   index->rd_opcintype[0],
												   index->rd_opcintype[0], 1);
		}
		index_close(index, AccessShareLock);
		if (OidIsValid(target->index))
			break;
	}
	if (!OidIsValid(target->index))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("column \"%s\" of relation \"%s\" has no qhnsw index",
						column, RelationGetRelationName(rel)),
				 errhint("Create one with CREATE INDEX ... USING qhnsw.")));
	/* The lock stays: the names looked up next must still be there. */
	relation_close(rel, NoLock);
}

/*
 * many_statement: the statement for one query: $1 the vector, $2 the limit.
 * The order within a query is that of the exact distance.
 */
static char *
many_statement(const ManyTarget *target)
{
	const char *schema = get_namespace_name(get_rel_namespace(target->relid));
	const char *name = quote_qualified_identifier(schema, get_rel_name(target->relid));
	HeapTuple	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(target->operator));
	Form_pg_operator form = (Form_pg_operator) GETSTRUCT(tuple);
	char	   *distance = psprintf("%s OPERATOR(%s.%s) $1::%s",
									quote_identifier(target->column),
									quote_identifier(get_namespace_name(form->oprnamespace)),
									NameStr(form->oprname),
									format_type_be_qualified(target->type));

	ReleaseSysCache(tuple);
	return psprintf("SELECT row_id, distance FROM"
					" (SELECT ctid AS row_id, %s AS distance FROM %s"
					" ORDER BY %s LIMIT $2) nearest ORDER BY distance",
					distance, name, distance);
}

/*
 * nth_query: a row of a two-dimensional real[] as an array of its own.
 */
static ArrayType *
nth_query(ArrayType *queries, int n)
{
	int			dims = ARR_DIMS(queries)[1];
	Size		size = ARR_OVERHEAD_NONULLS(1) + sizeof(float4) * dims;
	ArrayType  *query = palloc0(size);

	SET_VARSIZE(query, size);
	query->ndim = 1;
	query->elemtype = FLOAT4OID;
	ARR_DIMS(query)[0] = dims;
	ARR_LBOUND(query)[0] = 1;
	memcpy(ARR_DATA_PTR(query),
		   (float4 *) ARR_DATA_PTR(queries) + (Size) n * dims,
		   sizeof(float4) * dims);
	return query;
}
