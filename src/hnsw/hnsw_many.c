/*
 * hnsw_many.c
 *	  swarm.search_many: one call, many queries.
 *
 * One statement is planned once and run for every query, with the rights, the
 * policies and the snapshot of the caller.  What many queries share they share
 * through the backend's open index: its hints, its entries, and pages that are
 * still in the processor's cache.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/relation.h"
#include "catalog/pg_operator.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "executor/spi.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "base/export.h"
#include "hnsw/hnsw_int.h"

#define MAX_LIMIT	10000

static Oid	find_operator(Oid relid, const char *column, Oid *type);
static char *many_statement(Oid relid, const char *column, Oid operator,
							Oid type);
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
	Oid			type;
	Oid			operator;
	Oid			types[2] = {FLOAT4ARRAYOID, INT4OID};
	SPIPlanPtr	plan;

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
	operator = find_operator(relid, column, &type);
	if (ARR_NDIM(queries) == 0)
		PG_RETURN_NULL();

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	plan = SPI_prepare_cursor(many_statement(relid, column, operator, type), 2,
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
	PG_RETURN_NULL();
}

/*
 * find_operator: the distance that a valid qhnsw index of the column is for,
 * and the type of the column.
 */
static Oid
find_operator(Oid relid, const char *column, Oid *type)
{
	Relation	rel = relation_open(relid, AccessShareLock);
	AttrNumber	attribute = get_attnum(relid, column);
	Oid			am = get_index_am_oid("qhnsw", false);
	List	   *indexes;
	ListCell   *cell;
	Oid			operator = InvalidOid;

	if (attribute == InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of relation \"%s\" does not exist", column,
						RelationGetRelationName(rel))));
	*type = get_atttype(relid, attribute);
	indexes = RelationGetIndexList(rel);
	foreach(cell, indexes)
	{
		Relation	index = index_open(lfirst_oid(cell), AccessShareLock);

		if (index->rd_rel->relam == am && index->rd_index->indisvalid &&
			index->rd_index->indkey.values[0] == attribute)
			operator = get_opfamily_member(index->rd_opfamily[0],
										   index->rd_opcintype[0],
										   index->rd_opcintype[0], 1);
		index_close(index, AccessShareLock);
		if (OidIsValid(operator))
			break;
	}
	if (!OidIsValid(operator))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("column \"%s\" of relation \"%s\" has no qhnsw index",
						column, RelationGetRelationName(rel)),
				 errhint("Create one with CREATE INDEX ... USING qhnsw.")));
	/* The lock stays: the names looked up next must still be there. */
	relation_close(rel, NoLock);
	return operator;
}

/*
 * many_statement: the statement for one query: $1 the vector, $2 the limit.
 * The order within a query is that of the exact distance.
 */
static char *
many_statement(Oid relid, const char *column, Oid operator, Oid type)
{
	const char *schema = get_namespace_name(get_rel_namespace(relid));
	const char *name = quote_qualified_identifier(schema, get_rel_name(relid));
	HeapTuple	tuple = SearchSysCache1(OPEROID, ObjectIdGetDatum(operator));
	Form_pg_operator form = (Form_pg_operator) GETSTRUCT(tuple);
	char	   *distance = psprintf("%s OPERATOR(%s.%s) $1::%s",
									quote_identifier(column),
									quote_identifier(get_namespace_name(form->oprnamespace)),
									NameStr(form->oprname),
									format_type_be_qualified(type));

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
