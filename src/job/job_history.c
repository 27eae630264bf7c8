/*
 * job_history.c
 *	  Partitions of the history of jobs: one a day, UTC.
 *
 * A runner makes the partition of the day, and of the next, before its first
 * job of a day if the scheduler has not; anybody else who ends a job has the
 * scheduler make it.  There is no default partition: attaching beside one locks out
 * its readers, and every job_wait() is a reader.  Attaching locks only out
 * other attaching.
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/defrem.h"
#include "commands/tablespace.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/spi.h"
#include "job/job_int.h"

#define PARTITION_TRIES		500
#define PARTITION_WAIT_US	5000

#define MAX_PRUNES			8

static SwarmHistoryPrune prunes[MAX_PRUNES];
static int	nprunes = 0;

static int	history_keep_min = 7 * 24 * 60;

static bool scheduler_makes_partition(int64 day);
static Oid	find_partition(int64 day);
static void make_partition(int64 day);
static void as_extension_tables(void);
static int64 day_of(TimestampTz t);
static void partition_name(char *name, Size size, int64 day);

void
swarm_job_history_register(SwarmHistoryPrune prune)
{
	Assert(nprunes < MAX_PRUNES);
	prunes[nprunes++] = prune;
}

void
swarm_job_history_init(void)
{
	DefineCustomIntVariable("pg_swarm.job_history_keep",
							"How long finished jobs are kept; -1 keeps them for ever.",
							"A day's jobs are dropped together once the whole day is older.",
							&history_keep_min, 7 * 24 * 60, -1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);
}

bool
swarm_job_history_ready(void)
{
	return OidIsValid(find_partition(day_of(swarm_now())));
}

void
swarm_job_history_prepare(void)
{
	int64		today = day_of(swarm_now());

	make_partition(today);
	make_partition(today + 1);
}

Relation
swarm_job_history_open(TimestampTz finished)
{
	int64		day = day_of(finished);
	Oid			relid = find_partition(day);

	if (!OidIsValid(relid))
	{
		if (!scheduler_makes_partition(day))
			make_partition(day);
		relid = find_partition(day);
	}
	return table_open(relid, RowExclusiveLock);
}

/*
 * scheduler_makes_partition: ask it and wait.  A session that made the
 * partition itself would keep all others from theirs until its transaction
 * is over.  False if there is no scheduler, or this is it, or it cannot.
 */
static bool
scheduler_makes_partition(int64 day)
{
	bool		asked = false;

	if (swarm_job_shared == NULL)
		return false;
	for (int i = 0; i < PARTITION_TRIES; i++)
	{
		SwarmShard *shard;

		LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
		shard = swarm_shard_find(MyDatabaseId);
		asked = shard != NULL && shard->scheduler_pid != 0 &&
			shard->scheduler_pid != MyProcPid;
		if (asked && i % 10 == 0)
		{
			shard->want_partition = true;
			swarm_shard_wake_scheduler(shard);
		}
		LWLockRelease(swarm_job_lock);
		if (!asked)
			return false;
		CHECK_FOR_INTERRUPTS();
		pg_usleep(PARTITION_WAIT_US);
		AcceptInvalidationMessages();
		if (OidIsValid(find_partition(day)))
			return true;
	}
	return false;
}

/*
 * swarm_job_history_drop_old: does not wait long for a reader; the next call
 * will find the partition again.  One stays in which a child's parent ended:
 * how, is still needed.
 */
void
swarm_job_history_drop_old(void)
{
	SwarmSpi	spi;
	char		oldest[NAMEDATALEN];
	Oid			types[] = {TEXTOID};
	Datum		values[1];
	uint64		n;
	SPITupleTable *table;

	TimestampTz before = swarm_now() - (int64) history_keep_min * USECS_PER_MINUTE;

	if (history_keep_min < 0)
		return;
	partition_name(oldest, sizeof(oldest), day_of(before));
	swarm_spi_begin(&spi);
	(void) set_config_option("lock_timeout", "200ms", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	values[0] = CStringGetTextDatum(oldest);
	n = swarm_spi_query("SELECT c.relname::text FROM pg_inherits i "
						"JOIN pg_class c ON c.oid = i.inhrelid "
						"WHERE i.inhparent = 'swarm._job_history'::regclass "
						"AND c.relname ~ '^_job_history_[0-9]{8}$' "
						"AND c.relname::text COLLATE \"C\" < $1",
						1, types, values, NULL);
	table = SPI_tuptable;
	for (uint64 i = 0; i < n; i++)
	{
		char	   *name;

		SPI_tuptable = table;
		name = swarm_spi_text(i, 1);
		if (swarm_spi_query(psprintf("SELECT FROM swarm._job_dep d JOIN swarm.%s h ON h.id = d.parent LIMIT 1", name),
							0, NULL, NULL, NULL) == 0)
			swarm_spi_execute(psprintf("DROP TABLE swarm.%s", name), 0, NULL, NULL, NULL);
	}
	swarm_spi_end(&spi);
	for (int i = 0; i < nprunes; i++)
		prunes[i] (before - before % USECS_PER_DAY);
}

/*
 * make_partition: unless it is there.  Waits for somebody who is making it.
 */
static void
make_partition(int64 day)
{
	SwarmSpi	spi;
	char		name[NAMEDATALEN];
	char	   *attach;

	if (OidIsValid(find_partition(day)))
		return;
	LockRelationOid(swarm_job_relation("_job_history"), ShareUpdateExclusiveLock);
	if (OidIsValid(find_partition(day)))
		return;
	partition_name(name, sizeof(name), day);
	attach = psprintf("ALTER TABLE swarm._job_history ATTACH PARTITION swarm.%s "
					  "FOR VALUES FROM (%s) TO (%s)", name,
					  quote_literal_cstr(timestamptz_to_str(day * USECS_PER_DAY)),
					  quote_literal_cstr(timestamptz_to_str((day + 1) * USECS_PER_DAY)));
	swarm_spi_begin(&spi);
	as_extension_tables();
	swarm_spi_execute(psprintf("CREATE TABLE swarm.%s (LIKE swarm._job_history "
							   "INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING COMPRESSION)",
							   name),
					  0, NULL, NULL, NULL);
	swarm_spi_execute(psprintf("CREATE INDEX ON swarm.%s (id)", name), 0, NULL, NULL, NULL);
	swarm_spi_execute(attach, 0, NULL, NULL, NULL);
	swarm_spi_end(&spi);
}

/*
 * as_extension_tables: in the tablespace of the partitioned table, with the
 * access method of the live jobs: not as this session makes tables of its own.
 */
static void
as_extension_tables(void)
{
	Oid			space = get_rel_tablespace(swarm_job_relation("_job_history"));
	Relation	jobs = table_open(swarm_job_relation("_job"), AccessShareLock);

	(void) set_config_option("default_tablespace", OidIsValid(space) ? get_tablespace_name(space) : "",
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("default_table_access_method", get_am_name(jobs->rd_rel->relam),
							 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	table_close(jobs, NoLock);
}

static Oid
find_partition(int64 day)
{
	char		name[NAMEDATALEN];

	partition_name(name, sizeof(name), day);
	return get_relname_relid(name, get_namespace_oid("swarm", false));
}

/* day_of: days since 2000-01-01 UTC. */
static int64
day_of(TimestampTz t)
{
	int64		day = t / USECS_PER_DAY;

	return t < 0 && t % USECS_PER_DAY != 0 ? day - 1 : day;
}

static void
partition_name(char *name, Size size, int64 day)
{
	int			year,
				month,
				mday;

	j2date((int) day + POSTGRES_EPOCH_JDATE, &year, &month, &mday);
	snprintf(name, size, "_job_history_%04d%02d%02d", year, month, mday);
}
