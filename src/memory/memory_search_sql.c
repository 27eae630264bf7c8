/*
 * memory_search_sql.c
 *	  The statement of a search, planned once in a session.
 *
 * swarm._memory_search() makes the statement: its text depends on the
 * namespace, on what is asked for and on the limit.  Planning it takes longer
 * than most searches by meaning, so the last of them are kept, by their text.
 * The server plans a kept one again when its tables have changed.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

#include "base/export.h"
#include "base/spi.h"

#define KEPT			64
#define STATEMENT_ARGS	5		/* arguments after the text and one_plan */

typedef struct KeptStatement
{
	char	   *sql;
	SPIPlanPtr	plan;
} KeptStatement;

static KeptStatement kept[KEPT];
static int	next_out = 0;

static SPIPlanPtr keep(const char *sql, bool one_plan);

/*
 * keep: the plan of a statement; of the kept ones the first goes for it.
 * Between SPI_connect() and SPI_finish().
 */
static SPIPlanPtr
keep(const char *sql, bool one_plan)
{
	Oid			types[STATEMENT_ARGS] = {TEXTOID, INT4OID, JSONBOID, TSQUERYOID, FLOAT4ARRAYOID};
	KeptStatement *k;
	SPIPlanPtr	plan;
	char	   *text;

	for (int i = 0; i < KEPT; i++)
		if (kept[i].sql != NULL && strcmp(kept[i].sql, sql) == 0)
			return kept[i].plan;
	plan = SPI_prepare_cursor(sql, STATEMENT_ARGS, types, one_plan ? CURSOR_OPT_GENERIC_PLAN : 0);
	if (plan == NULL)
		elog(ERROR, "could not prepare %s", sql);
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "could not keep the plan of %s", sql);
	text = MemoryContextStrdup(TopMemoryContext, sql);

	k = &kept[next_out];
	next_out = (next_out + 1) % KEPT;
	if (k->sql != NULL)
	{
		SPI_freeplan(k->plan);
		pfree(k->sql);
	}
	k->sql = text;

	k->plan = plan;
	return plan;
}

/*
 * swarm._memory_search_run(sql, one_plan, namespace, space, filter, words,
 * embedding) returns setof swarm.memory_match
 */
SWARM_FUNCTION(swarm__memory_search_run);
Datum
swarm__memory_search_run(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Datum		values[STATEMENT_ARGS];
	char		nulls[STATEMENT_ARGS];
	SPIPlanPtr	plan;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("sql and one_plan must not be null")));
	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < STATEMENT_ARGS; i++)
	{
		values[i] = PG_GETARG_DATUM(i + 2);
		nulls[i] = PG_ARGISNULL(i + 2) ? 'n' : ' ';
	}
	SPI_connect();
	plan = keep(text_to_cstring(PG_GETARG_TEXT_PP(0)), PG_GETARG_BOOL(1));
	if (SPI_execute_plan(plan, values, nulls, false, 0) < 0)
		elog(ERROR, "search failed");
	for (uint64 i = 0; i < SPI_processed; i++)
		tuplestore_puttuple(rsinfo->setResult, SPI_tuptable->vals[i]);
	SPI_finish();
	return (Datum) 0;
}
