/*
 * forward.h
 *	  SQL functions whose work is a private function of the same name.
 *
 * swarm.NAME(a, b) runs SELECT * FROM swarm._NAME(caller, a, b) as the
 * extension.  The private function is given the caller's OID and begins with
 * asking for his right.
 */
#ifndef SWARM_BASE_FORWARD_H
#define SWARM_BASE_FORWARD_H

#include "executor/spi.h"

#include "base/export.h"

/* One value, or a set of rows. */
extern Datum swarm_forward(FunctionCallInfo fcinfo, const char *name, SPIPlanPtr *plan);
extern Datum swarm_forward_rows(FunctionCallInfo fcinfo, const char *name, SPIPlanPtr *plan);

/* An id, which the public function need not return; 0 for NULL. */
extern int64 swarm_forward_id(FunctionCallInfo fcinfo, const char *name, SPIPlanPtr *plan);

/* SWARM_FORWARD(swarm_forward, name): the function that SQL calls for swarm.name */
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
