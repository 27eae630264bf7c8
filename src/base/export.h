/*
 * export.h
 *	  Which symbols of the library other code can see.
 *
 * PostgreSQL 15 loads libraries with RTLD_GLOBAL, so two extensions that
 * both have a global function `hnsw_build` call each other's.  The library is
 * compiled with -fvisibility=hidden; only what carries PGDLLEXPORT is seen
 * (the Makefile defines it as default visibility for version 15):
 * the functions that SQL calls and the entry points of background workers.
 */
#ifndef SWARM_BASE_EXPORT_H
#define SWARM_BASE_EXPORT_H

#include "fmgr.h"

/*
 * SWARM_FUNCTION(name) goes above the definition of a function that SQL
 * calls, in place of PG_FUNCTION_INFO_V1, which in version 15 does not export
 * the function itself.
 */
#define SWARM_FUNCTION(name) \
	extern PGDLLEXPORT Datum name(PG_FUNCTION_ARGS); \
	PG_FUNCTION_INFO_V1(name)

#endif							/* SWARM_BASE_EXPORT_H */
