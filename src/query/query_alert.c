/*
 * query_alert.c
 *	  The scheduler's part of alerts: it asks SQL, swarm._alert_check(), at most
 *	  once a minute, while queries come and go, the optimizer runs, or an alert
 *	  lasts.  A server at rest is left alone.
 */
#include "postgres.h"

#include "utils/guc.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/spi.h"
#include "query/query_int.h"
#include "worker/worker.h"

#define CHECK_EVERY_US	(60 * USECS_PER_SEC)

static TimestampTz due(void);
static void check(void);

static TimestampTz next_check = 0;
static uint32 seen = PG_UINT32_MAX; /* changes of queries; at first, none */
static int64 lasting = 0;		/* alerts */

static SwarmStep step = {
	.name = "alerts",
	.due = due,
	.run = check
};

void
swarm_query_alert_init(void)
{
	swarm_step_register(&step);
}

static TimestampTz
due(void)
{
	if (swarm_query_slots() == 0 ||
		(lasting == 0 && !swarm_rule_running() && seen == swarm_query_watch_count()))
		return DT_NOEND;
	if (next_check > swarm_now() + CHECK_EVERY_US)
		return 0;				/* the clock was put back */
	return next_check;
}

static void
check(void)
{
	SwarmSpi	spi;

	seen = swarm_query_watch_count();
	next_check = swarm_now() + CHECK_EVERY_US;	/* also if it fails */
	(void) set_config_option("lock_timeout", "200ms", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	swarm_spi_begin(&spi);
	swarm_spi_execute("SELECT swarm._alert_check()", 0, NULL, NULL, NULL);
	lasting = swarm_spi_int64(0, 1);
	swarm_spi_end(&spi);
}
