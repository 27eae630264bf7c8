/*
 * forward.h
 *	  SQL functions whose work is a private function of the same name.
 *
 * swarm.NAME(a, b) runs SELECT * FROM swarm._NAME(caller, a, b) as the
 * extension.  The private function, in the module's SQL, is given the caller
 * and begins with asking for his right.
 */
#ifndef SWARM_BASE_FORWARD_H
#define SWARM_BASE_FORWARD_H

#include "executor/spi.h"
#include "fmgr.h"

#include "base/export.h"

/* One value; `plan` is kept by the caller, NULL at first. */
extern Datum swarm_forward(FunctionCallInfo fcinfo, const char *name, SPIPlanPtr *plan);

/* A set of rows. */
extern Datum swarm_forward_rows(FunctionCallInfo fcinfo, const char *name, SPIPlanPtr *plan);

/* Define the C function swarm_NAME of the SQL function swarm.NAME. */
#define SWARM_FORWARD(how, name) \
	SWARM_FUNCTION(swarm_##name); \
	Datum \
	swarm_##name(PG_FUNCTION_ARGS) \
	{ \
		static SPIPlanPtr plan = NULL; \
		return how(fcinfo, #name, &plan); \
	} \
	extern int	swarm_semicolon

#endif							/* SWARM_BASE_FORWARD_H */
