/*
 * clock.c
 *	  The one clock of the extension, which tests can move.
 */
#include "postgres.h"

#include "fmgr.h"
#include "port/atomics.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/export.h"
#include "base/shmem.h"

#define LONGEST_WAIT_MS		(60L * 60 * 1000)

typedef struct SwarmClock
{
	pg_atomic_uint64 offset;	/* microseconds, two's complement */
} SwarmClock;

static SwarmClock *clock_shared = NULL;
static SwarmClock clock_local;	/* without preload */

void		(*swarm_clock_moved_hook) (void) = NULL;

static Size clock_size(void);
static void clock_attach(void *memory, bool found);
static pg_atomic_uint64 *clock_offset(void);

static SwarmShmemPiece clock_piece = {
	.name = "pg_swarm clock",
	.size = clock_size,
	.init = clock_attach,
	.pointer = (void **) &clock_shared
};

void
swarm_clock_init(void)
{
	pg_atomic_init_u64(&clock_local.offset, 0);
	swarm_shmem_register(&clock_piece);
}

TimestampTz
swarm_now(void)
{
	return GetCurrentTimestamp() + (int64) pg_atomic_read_u64(clock_offset());
}

long
swarm_clock_wait_ms(TimestampTz due)
{
	int64		us = due - swarm_now();

	if (us <= 0)
		return 0;
	return Min((us + 999) / 1000, LONGEST_WAIT_MS);
}

/* swarm_interval_us: months count 30 days; no more than SWARM_INTERVAL_MAX. */
int64
swarm_interval_us(const Interval *interval)
{
	double		us = (double) interval->time + (double) interval->day * USECS_PER_DAY +
	(double) interval->month * DAYS_PER_MONTH * USECS_PER_DAY;

	if (us >= (double) SWARM_INTERVAL_MAX)
		return SWARM_INTERVAL_MAX;
	if (us <= -(double) SWARM_INTERVAL_MAX)
		return -SWARM_INTERVAL_MAX;
	return interval->time + interval->day * USECS_PER_DAY +
		(int64) interval->month * DAYS_PER_MONTH * USECS_PER_DAY;
}

TimestampTz
swarm_wait_deadline(FunctionCallInfo fcinfo, int arg)
{
	int64		us = PG_ARGISNULL(arg) ? SWARM_INTERVAL_MAX : swarm_interval_us(PG_GETARG_INTERVAL_P(arg));

	if (us < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("timeout must not be negative"),
				 errhint("NULL waits without limit.")));
	return us == SWARM_INTERVAL_MAX ? DT_NOEND : GetCurrentTimestamp() + us;
}

long
swarm_wait_left_ms(TimestampTz deadline)
{
	int64		us = deadline - GetCurrentTimestamp();

	if (us <= 0)
		return 0;
	return Min(us / 1000 + (us % 1000 != 0), LONGEST_WAIT_MS);
}

static Size
clock_size(void)
{
	return sizeof(SwarmClock);
}

static void
clock_attach(void *memory, bool found)
{
	if (!found)
		pg_atomic_init_u64(&((SwarmClock *) memory)->offset, 0);
}

static pg_atomic_uint64 *
clock_offset(void)
{
	return clock_shared ? &clock_shared->offset : &clock_local.offset;
}

/*
 * swarm._now() returns timestamptz: the extension's clock.
 */
SWARM_FUNCTION(swarm_clock_now);
Datum
swarm_clock_now(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(swarm_now());
}

/*
 * swarm._clock_advance(interval) returns timestamptz: move the clock of the
 * whole server, for tests; NULL sets it back to the true time.
 */
SWARM_FUNCTION(swarm_clock_advance);
Datum
swarm_clock_advance(PG_FUNCTION_ARGS)
{
	if (PG_ARGISNULL(0))
		pg_atomic_write_u64(clock_offset(), 0);
	else
	{
		TimestampTz moved = DatumGetTimestampTz(
												DirectFunctionCall2(timestamptz_pl_interval,
																	TimestampTzGetDatum(swarm_now()),
																	PG_GETARG_DATUM(0)));

		pg_atomic_write_u64(clock_offset(),
							(uint64) (moved - GetCurrentTimestamp()));
	}
	if (swarm_clock_moved_hook)
		swarm_clock_moved_hook();
	PG_RETURN_TIMESTAMPTZ(swarm_now());
}
