/*
 * clock.h
 *	  The one clock of the extension, which tests can move.
 *
 * Whatever decides something by time (due, expired, backoff, rate, history
 * day) asks swarm_now().  It is the server's clock plus an offset that a
 * superuser may set with swarm._clock_advance(); the offset lives in shared
 * memory, so that all processes agree, and is zero after a restart.
 */
#ifndef SWARM_BASE_CLOCK_H
#define SWARM_BASE_CLOCK_H

#include "datatype/timestamp.h"
#include "fmgr.h"

extern void swarm_clock_init(void);

/* Now, in microseconds since 2000-01-01 UTC, moved by the test offset. */
extern TimestampTz swarm_now(void);

/* Called after the clock was moved; set by the module that has timers. */
extern void (*swarm_clock_moved_hook) (void);

/*
 * Milliseconds from now until `due`, rounded up; 0 when it has passed, and
 * at most an hour, so that it fits WaitLatch() and survives a moved clock.
 */
extern long swarm_clock_wait_ms(TimestampTz due);

/* An interval in microseconds, at most SWARM_INTERVAL_MAX; months have 30 days. */
#define SWARM_INTERVAL_MAX	(PG_INT64_MAX / 4)
extern int64 swarm_interval_us(const Interval *interval);

/*
 * For functions that wait: until when, by the true clock, as argument `arg`
 * (an interval) says: NULL without limit, zero not at all; error 22023 if it
 * is negative.
 */
extern TimestampTz swarm_wait_deadline(FunctionCallInfo fcinfo, int arg);

/* Milliseconds left until a deadline, 0 when it has passed, at most an hour. */
extern long swarm_wait_left_ms(TimestampTz deadline);

#endif							/* SWARM_BASE_CLOCK_H */
