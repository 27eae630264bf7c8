/*
 * policy.c
 *	  Reading a retry policy: see policy.h.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"

#include "base/policy.h"
#include "base/spi.h"

static double number(int column);

void
swarm_policy_of_server(const char *name, SwarmPolicy *policy)
{
	MemoryContext caller = CurrentMemoryContext;
	SwarmSpi	spi;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};

	memset(policy, 0, sizeof(*policy));
	swarm_spi_begin(&spi);
	if (swarm_spi_query("SELECT (extract(epoch FROM first_wait) * 1000)::float8, factor, "
						"(extract(epoch FROM max_wait) * 1000)::float8, max_attempts::float8, threshold::float8, "
						"(extract(epoch FROM cooldown) * 1000)::float8, fallback "
						"FROM swarm._retry_policy WHERE target = 'server:' || $1", 1, types, values, NULL) > 0)
	{
		char	   *fallback = swarm_spi_text(0, 7);

		policy->first_wait_ms = number(1);
		policy->factor = number(2);
		policy->max_wait_ms = number(3);
		policy->max_attempts = (int) number(4);
		policy->threshold = (int) number(5);
		policy->cooldown_ms = number(6);
		if (fallback != NULL)
			policy->fallback = MemoryContextStrdup(caller, fallback);
	}
	swarm_spi_end(&spi);
	MemoryContextSwitchTo(caller);
}

/* number: a float8 column of the first row; 0 for NULL. */
static double
number(int column)
{
	bool		isnull;
	Datum		value = swarm_spi_column(0, column, &isnull);

	return isnull ? 0 : DatumGetFloat8(value);
}
