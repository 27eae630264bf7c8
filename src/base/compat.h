/*
 * compat.h
 *	  The differences between PostgreSQL 15, 16, 17 and 18, in one place.
 *
 * No other file of the project may test PG_VERSION_NUM (make lint checks).
 */
#ifndef SWARM_BASE_COMPAT_H
#define SWARM_BASE_COMPAT_H

#if PG_VERSION_NUM < 150000
#error "pg_swarm needs PostgreSQL 15 or later"
#endif

/* varatt.h was split from postgres.h in 16 */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

#include "utils/wait_event.h"

/* Custom wait events have names since 17; before, they all are "Extension". */
#if PG_VERSION_NUM >= 170000
#define swarm_wait_event_new(name)	WaitEventExtensionNew(name)
#else
#define swarm_wait_event_new(name)	((void) (name), PG_WAIT_EXTENSION)
#endif

#endif							/* SWARM_BASE_COMPAT_H */
