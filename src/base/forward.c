/*
 * forward.c
 *	  SQL functions whose work is a private function of the same name.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "utils/datum.h"
#include "utils/lsyscache.h"
#include "utils/tuplestore.h"

#include "base/forward.h"
#include "base/spi.h"

#define MOST_ARGS	11

static void run(FunctionCallInfo fcinfo, Oid caller, const char *name, SPIPlanPtr *plan);

/*
 * run: between swarm_spi_begin() and _end(); the result is in SPI_tuptable.
 */
static void
run(FunctionCallInfo fcinfo, Oid caller, const char *name, SPIPlanPtr *plan)
{
	int			nargs = PG_NARGS();
	Datum		values[MOST_ARGS + 1];
	char		nulls[MOST_ARGS + 2];

	Assert(nargs <= MOST_ARGS);
	if (*plan == NULL)
	{
		Oid			types[MOST_ARGS + 1] = {OIDOID};
		Oid		   *own;
		int			n;
		StringInfoData sql;

		(void) get_func_signature(fcinfo->flinfo->fn_oid, &own, &n);
		initStringInfo(&sql);
		appendStringInfo(&sql, "SELECT * FROM swarm._%s($1", name);
		for (int i = 0; i < nargs; i++)
		{
			types[i + 1] = own[i];
			appendStringInfo(&sql, ", $%d", i + 2);
		}
		appendStringInfoChar(&sql, ')');
		*plan = SPI_prepare(sql.data, nargs + 1, types);
		if (*plan == NULL || SPI_keepplan(*plan) != 0)
			elog(ERROR, "could not prepare %s", sql.data);
	}
	values[0] = ObjectIdGetDatum(caller);
	nulls[0] = ' ';
	for (int i = 0; i < nargs; i++)
	{
		values[i + 1] = PG_GETARG_DATUM(i);
		nulls[i + 1] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	if (SPI_execute_plan(*plan, values, nulls, false, 0) < 0)
		elog(ERROR, "swarm._%s failed", name);
}

/*
 * swarm_forward: one value.
 */
Datum
swarm_forward(FunctionCallInfo fcinfo, const char *name, SPIPlanPtr *plan)
{
	MemoryContext context = CurrentMemoryContext;
	Oid			caller = GetUserId();
	SwarmSpi	spi;
	Datum		result = (Datum) 0;
	bool		isnull = true;

	swarm_spi_begin(&spi);
	run(fcinfo, caller, name, plan);
	if (SPI_processed > 0 && get_func_rettype(fcinfo->flinfo->fn_oid) != VOIDOID)
	{
		result = swarm_spi_column(0, 1, &isnull);
		if (!isnull)
		{
			Form_pg_attribute a = TupleDescAttr(SPI_tuptable->tupdesc, 0);
			MemoryContext old = MemoryContextSwitchTo(context);

			result = datumCopy(result, a->attbyval, a->attlen);
			MemoryContextSwitchTo(old);
		}
	}
	else
		isnull = get_func_rettype(fcinfo->flinfo->fn_oid) != VOIDOID;
	swarm_spi_end(&spi);
	fcinfo->isnull = isnull;
	return result;
}

/*
 * swarm_forward_rows: a set of rows.
 */
Datum
swarm_forward_rows(FunctionCallInfo fcinfo, const char *name, SPIPlanPtr *plan)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid			caller = GetUserId();
	SwarmSpi	spi;

	InitMaterializedSRF(fcinfo, 0);
	swarm_spi_begin(&spi);
	run(fcinfo, caller, name, plan);
	for (uint64 i = 0; i < SPI_processed; i++)
		tuplestore_puttuple(rsinfo->setResult, SPI_tuptable->vals[i]);
	swarm_spi_end(&spi);
	return (Datum) 0;
}

/*
 * swarm_forward_id: an id that the private function returns, whatever its
 * public one does; 0 for NULL.
 */
int64
swarm_forward_id(FunctionCallInfo fcinfo, const char *name, SPIPlanPtr *plan)
{
	Oid			caller = GetUserId();
	SwarmSpi	spi;
	Datum		id;
	bool		isnull;

	swarm_spi_begin(&spi);
	run(fcinfo, caller, name, plan);
	id = swarm_spi_column(0, 1, &isnull);
	swarm_spi_end(&spi);
	return isnull ? 0 : DatumGetInt64(id);
}
