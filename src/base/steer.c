/*
 * steer.c
 *	  What a long wait asks between its steps: see steer.h.
 */
#include "postgres.h"

#include "base/steer.h"

SwarmSteer	(*swarm_steer_hook) (int64 query) = NULL;
