/*
 * spi.h
 *	  SQL on the extension's own tables, with the rights for it.
 *
 * Users have no privilege to write these tables: a function checks what the
 * caller may do, then runs its statement here.  Text is a constant, names are
 * qualified, values are parameters.
 */
#ifndef SWARM_BASE_SPI_H
#define SWARM_BASE_SPI_H

#include "executor/spi.h"

#define SWARM_SPI_MAX_ARGS 16

/* State between swarm_spi_begin() and swarm_spi_end(). */
typedef struct SwarmSpi
{
	Oid			user;
	int			sec_context;
	int			guc_level;
} SwarmSpi;

/*
 * Become the bootstrap superuser with search_path pg_catalog, connect to SPI.
 * An error in between is undone by the transaction's abort.
 */
extern void swarm_spi_begin(SwarmSpi *spi);
extern void swarm_spi_end(SwarmSpi *spi);

/*
 * Run one statement that writes, with the snapshot rules of the transaction's
 * isolation level.  Returns the number of rows; results are in SPI_tuptable.
 */
extern uint64 swarm_spi_execute(const char *sql, int nargs, Oid *types,
								Datum *values, const char *nulls);

/*
 * The same with the snapshot of now: also under REPEATABLE READ it finds rows
 * that others have committed since the transaction's first statement.
 */
extern uint64 swarm_spi_execute_latest(const char *sql, int nargs, Oid *types,
									   Datum *values, const char *nulls);

/* Run one query that sees what is committed now, at any isolation level. */
extern uint64 swarm_spi_query(const char *sql, int nargs, Oid *types,
							  Datum *values, const char *nulls);

/* Columns of the last result; rows from 0, columns from 1. */
extern Datum swarm_spi_column(uint64 row, int column, bool *isnull);
extern int64 swarm_spi_int64(uint64 row, int column);
extern int32 swarm_spi_int32(uint64 row, int column);
extern bool swarm_spi_bool(uint64 row, int column);
extern char *swarm_spi_text(uint64 row, int column);	/* NULL for NULL */

#endif							/* SWARM_BASE_SPI_H */
