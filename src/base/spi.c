/*
 * spi.c
 *	  SQL on the extension's own tables, with the rights for it.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"

#include "base/compat.h"
#include "base/spi.h"

#define SEARCH_PATH	"pg_catalog, pg_temp"

void
swarm_spi_begin(SwarmSpi *spi)
{
	GetUserIdAndSecContext(&spi->user, &spi->sec_context);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID,
						   spi->sec_context | SECURITY_LOCAL_USERID_CHANGE);
	spi->guc_level = NewGUCNestLevel();

	/*
	 * not again what a statement around this one has set: it costs as much as
	 * one
	 */
	if (strcmp(namespace_search_path, SEARCH_PATH) != 0)
		(void) set_config_option("search_path", SEARCH_PATH,
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	if (row_security)
		(void) set_config_option("row_security", "off",
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
	SPI_connect();
}

void
swarm_spi_end(SwarmSpi *spi)
{
	SPI_finish();
	AtEOXact_GUC(true, spi->guc_level);
	SetUserIdAndSecContext(spi->user, spi->sec_context);
}

uint64
swarm_spi_execute(const char *sql, int nargs, Oid *types, Datum *values,
				  const char *nulls)
{
	int			rc = SPI_execute_with_args(sql, nargs, types, values, nulls, false, 0);

	if (rc < 0)
		elog(ERROR, "statement failed: %s: %s", SPI_result_code_string(rc), sql);
	return SPI_processed;
}

uint64
swarm_spi_execute_latest(const char *sql, int nargs, Oid *types, Datum *values,
						 const char *nulls)
{
	SPIPlanPtr	plan = SPI_prepare(sql, nargs, types);
	int			rc;

	if (plan == NULL)
		elog(ERROR, "could not prepare: %s: %s", SPI_result_code_string(SPI_result), sql);
	rc = SPI_execute_snapshot(plan, values, nulls, GetLatestSnapshot(), InvalidSnapshot,
							  false, true, 0);
	if (rc < 0)
		elog(ERROR, "statement failed: %s: %s", SPI_result_code_string(rc), sql);
	return SPI_processed;
}

uint64
swarm_spi_query(const char *sql, int nargs, Oid *types, Datum *values,
				const char *nulls)
{
	int			rc;

	PushActiveSnapshot(GetLatestSnapshot());
	rc = SPI_execute_with_args(sql, nargs, types, values, nulls, true, 0);
	PopActiveSnapshot();
	if (rc < 0)
		elog(ERROR, "query failed: %s: %s", SPI_result_code_string(rc), sql);
	return SPI_processed;
}

Datum
swarm_spi_column(uint64 row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, isnull);
}

int64
swarm_spi_int64(uint64 row, int column)
{
	bool		isnull;

	return DatumGetInt64(swarm_spi_column(row, column, &isnull));
}

int32
swarm_spi_int32(uint64 row, int column)
{
	bool		isnull;

	return DatumGetInt32(swarm_spi_column(row, column, &isnull));
}

bool
swarm_spi_bool(uint64 row, int column)
{
	bool		isnull;

	return DatumGetBool(swarm_spi_column(row, column, &isnull));
}

char *
swarm_spi_text(uint64 row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);
}
