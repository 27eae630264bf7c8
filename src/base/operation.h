/*
 * operation.h
 *	  Functions of SQL with the hooks of users around them.
 *
 * swarm.NAME is declared with the symbol swarm_hooked_NAME, which calls the hooks of
 * event NAME (base/hook.h) before and after the function itself.  What a hook is
 * told are the arguments by name and, after it, the result, unless that is void, a
 * set or a record, and how many milliseconds (ms) it took.
 *
 *		SWARM_HOOKED(NAME)		the function is in C: swarm_NAME
 *		SWARM_HOOKED_SQL(NAME)	it is in SQL or PL/pgSQL: swarm._NAME, which nobody may
 *								call; it runs as the caller of swarm.NAME
 */
#ifndef SWARM_BASE_OPERATION_H
#define SWARM_BASE_OPERATION_H

#include "base/export.h"

/* function NULL: swarm._NAME */
extern Datum swarm_operation(FunctionCallInfo fcinfo, const char *name, PGFunction function);

#define SWARM_HOOKED_BY(name, function) \
	SWARM_FUNCTION(swarm_hooked_##name); \
	Datum \
	swarm_hooked_##name(PG_FUNCTION_ARGS) \
	{ \
		return swarm_operation(fcinfo, #name, function); \
	} \
	extern int	swarm_semicolon

#define SWARM_HOOKED(name) \
	extern PGDLLEXPORT Datum swarm_##name(PG_FUNCTION_ARGS); \
	SWARM_HOOKED_BY(name, swarm_##name)

#define SWARM_HOOKED_SQL(name) SWARM_HOOKED_BY(name, NULL)

#endif							/* SWARM_BASE_OPERATION_H */
