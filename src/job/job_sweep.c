/*
 * job_sweep.c
 *	  Keeping house: what the scheduler does for the job store.
 *
 * All is level-triggered: each function looks at what is, so that it may be
 * called at any time and after any crash, and repeats what was not finished.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "catalog/namespace.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/doorbell.h"
#include "base/fault.h"
#include "base/spi.h"
#include "job/job_int.h"

#define SWEEP_PAGE		1000
#define CRASH_ERROR		"the server crashed while the job ran"

static int	history_keep_min = 7 * 24 * 60;

/* What a transaction tells memory about one job at its commit. */
typedef struct JobTold
{
	Oid			database;
	int64		id;
	SwarmJobState state;
} JobTold;

static void ring_ended(void *item);
static void ring_released(void *item);
static void mark_parents(SwarmShard *shard, Datum ids, bool all);
static void settle_dependency(int64 child, int64 parent, int parent_state, char policy);
static void release_if_free(int64 child);
static void make_partition(int64 day);
static void drop_old_partitions(int64 today);
static int64 day_of(TimestampTz t);
static void partition_name(char *name, Size size, int64 day);

void
swarm_job_sweep_init(void)
{
	DefineCustomIntVariable("pg_swarm.job_history_keep",
							"How long finished jobs are kept; -1 keeps them for ever.",
							"A day's jobs are dropped together once the whole day is older.",
							&history_keep_min, 7 * 24 * 60, -1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MIN, NULL, NULL, NULL);
}

/* ------------------------------------------------------------------------
 * Settings and sweep
 * ------------------------------------------------------------------------ */

void
swarm_job_load_config(SwarmShard *shard)
{
	SwarmSpi	spi;
	SwarmQueueConfig *queues;
	SwarmKindConfig *kinds;
	int			nqueues,
				nkinds;

	swarm_spi_begin(&spi);
	nqueues = (int) swarm_spi_query(
									"SELECT id, coalesce(max_running, 0), coalesce(rate_limit, 0), "
									"(extract(epoch FROM rate_period) * 1000000)::bigint, batch, paused, notify, "
									"dependency_failure, group_commit FROM swarm._queue "
									"WHERE max_running IS NOT NULL OR rate_limit IS NOT NULL OR batch > 1 "
									"OR paused OR notify OR group_commit OR dependency_failure <> 'cancel'",
									0, NULL, NULL, NULL);
	queues = palloc0((nqueues + 1) * sizeof(*queues));
	for (int i = 0; i < nqueues; i++)
	{
		queues[i].id = swarm_spi_int32(i, 1);
		queues[i].max_running = swarm_spi_int32(i, 2);
		queues[i].rate_limit = swarm_spi_int32(i, 3);
		queues[i].rate_period_us = swarm_spi_int64(i, 4);
		queues[i].batch = swarm_spi_int32(i, 5);
		queues[i].paused = swarm_spi_bool(i, 6);
		queues[i].notify = swarm_spi_bool(i, 7);
		queues[i].dependency_failure = swarm_spi_text(i, 8)[0];
		queues[i].group_commit = swarm_spi_bool(i, 9);
	}
	nkinds = (int) swarm_spi_query(
								   "SELECT id, coalesce(max_running, 0), "
								   "coalesce((extract(epoch FROM rate) * 1000000)::bigint, 0) FROM swarm._handler "
								   "WHERE max_running IS NOT NULL OR rate IS NOT NULL",
								   0, NULL, NULL, NULL);
	kinds = palloc0((nkinds + 1) * sizeof(*kinds));
	for (int i = 0; i < nkinds; i++)
	{
		kinds[i].id = swarm_spi_int32(i, 1);
		kinds[i].max_running = swarm_spi_int32(i, 2);
		kinds[i].rate_us = swarm_spi_int64(i, 3);
	}
	swarm_queue_configure(shard, queues, nqueues, kinds, nkinds);
	swarm_spi_end(&spi);
}

/*
 * swarm_job_sweep: the rows that may be missing in memory, from scan_from on.
 * A row that a concurrent transaction finishes meanwhile may be pushed after
 * its end; its claim finds no row and drops it.
 */
bool
swarm_job_sweep(SwarmShard *shard)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID};
	Datum		values[1];
	int64		from;
	uint64		n;
	bool		more = false;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	from = shard->scan_from;
	shard->scan_from = SWARM_NO_SCAN;
	LWLockRelease(swarm_job_lock);
	if (from == SWARM_NO_SCAN)
		return false;
	SWARM_FAULT("job.sweep");

	swarm_spi_begin(&spi);
	values[0] = Int64GetDatum(from);
	n = swarm_spi_query(
						"SELECT j.id, j.queue, j.kind, j.owner::oid, j.priority::int4, "
						"coalesce(a.run_at, j.run_at), coalesce(a.attempts, 0), a.id IS NOT NULL, "
						"j.unique_key IS NOT NULL, j.kind <> 1 AND h.handler IS NULL, "
						"j.blocked AND EXISTS (SELECT FROM swarm._job_dep d WHERE d.child = j.id), "
						"EXISTS (SELECT FROM swarm._job_dep d WHERE d.parent = j.id), "
						"coalesce(a.crashed, false) "
						"FROM swarm._job j LEFT JOIN swarm._job_attempt a ON a.id = j.id "
						"LEFT JOIN swarm._handler h ON h.id = j.kind "
						"WHERE j.id >= $1 ORDER BY j.id LIMIT 1000",
						1, types, values, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		SwarmReady	job = {.database = MyDatabaseId};
		bool		isnull;

		job.id = swarm_spi_int64(i, 1);
		job.queue = swarm_spi_int32(i, 2);
		job.kind = swarm_spi_int32(i, 3);
		job.owner = DatumGetObjectId(swarm_spi_column(i, 4, &isnull));
		job.priority = swarm_spi_int32(i, 5);
		job.due = DatumGetTimestampTz(swarm_spi_column(i, 6, &isnull));
		job.attempts = swarm_spi_int32(i, 7);
		job.flags = (swarm_spi_bool(i, 8) ? SWARM_READY_TOUCHED : 0) |
			(swarm_spi_bool(i, 9) ? SWARM_READY_KEYED : 0) |
			(swarm_spi_bool(i, 10) ? SWARM_READY_EXTERNAL : 0) |
			(swarm_spi_bool(i, 11) ? SWARM_READY_BLOCKED : 0) |
			(swarm_spi_bool(i, 12) ? SWARM_READY_PARENT : 0) |
			(swarm_spi_bool(i, 13) ? SWARM_READY_SUSPECT : 0);
		from = job.id + 1;
		if (!swarm_queue_push_swept(shard, &job))
			break;
	}
	if (n == SWEEP_PAGE)
	{
		LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
		more = shard->scan_from >= from;
		shard->scan_from = Min(shard->scan_from, from);
		LWLockRelease(swarm_job_lock);
	}
	swarm_spi_end(&spi);
	return more;
}

/*
 * swarm_job_undo_told: the undo of what a transaction tells memory at its
 * commit; `item` begins with the database.  A prepared transaction will not
 * tell: when it ends, the scheduler looks at everything.
 */
void
swarm_job_undo_told(void *item)
{
	SwarmShard *shard;

	if (!swarm_doorbell_preparing || swarm_job_shared == NULL)
		return;
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard = swarm_shard_find(*(Oid *) item);
	if (shard != NULL)
	{
		shard->prepared_from = 0;
		shard->prepared_count++;
	}
	LWLockRelease(swarm_job_lock);
}

/*
 * swarm_job_prepared_ended: its jobs, if it had any, are to be found, and
 * what else it may have changed.
 */
void
swarm_job_prepared_ended(Oid database)
{
	SwarmShard *shard;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard = swarm_shard_find(database);
	if (shard != NULL && shard->prepared_from != SWARM_NO_SCAN)
	{
		if (shard->prepared_from == 0)
		{
			shard->config_stale = true;
			shard->rebuild = true;
			shard->nrechecks = SWARM_FINISHED_PARENTS + 1;
		}
		shard->scan_from = Min(shard->scan_from, shard->prepared_from);
		swarm_shard_wake_scheduler(shard);
	}
	LWLockRelease(swarm_job_lock);
}

void
swarm_job_check_prepared(SwarmShard *shard)
{
	SwarmSpi	spi;
	uint32		seen;
	bool		none;

	LWLockAcquire(swarm_job_lock, LW_SHARED);
	seen = shard->prepared_count;
	none = shard->prepared_from == SWARM_NO_SCAN;
	LWLockRelease(swarm_job_lock);
	if (none)
		return;
	swarm_spi_begin(&spi);
	if (swarm_spi_query("SELECT FROM pg_prepared_xacts WHERE database = current_database()",
						0, NULL, NULL, NULL) == 0)
	{
		LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
		if (shard->prepared_count == seen)
			shard->prepared_from = SWARM_NO_SCAN;
		LWLockRelease(swarm_job_lock);
	}
	swarm_spi_end(&spi);
}

/* ------------------------------------------------------------------------
 * Dependencies
 *
 * The scheduler alone deletes rows of _job_dep, so "was that the last parent"
 * has one answer.  A child is looked at after its enqueue has committed, a
 * parent after its end has: whichever is later sees both.
 * ------------------------------------------------------------------------ */

void
swarm_job_resolve_dependencies(SwarmShard *shard)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8ARRAYOID, BOOLOID};
	Datum		values[2];
	Datum		ids[SWARM_FINISHED_PARENTS];
	int			n;
	bool		all;
	uint64		rows;
	int64	   *children;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	all = shard->nrechecks > SWARM_FINISHED_PARENTS;
	n = Min(shard->nrechecks, SWARM_FINISHED_PARENTS);
	for (int i = 0; i < n; i++)
		ids[i] = Int64GetDatum(shard->rechecks[i]);
	shard->nrechecks = 0;
	LWLockRelease(swarm_job_lock);
	if (n == 0 && !all)
		return;

	swarm_spi_begin(&spi);
	values[0] = PointerGetDatum(construct_array(ids, n, INT8OID, 8, FLOAT8PASSBYVAL, 'd'));
	values[1] = BoolGetDatum(all);
	mark_parents(shard, values[0], all);
	rows = swarm_spi_query(
						   "SELECT d.child, d.parent, coalesce(h.state, 4)::int4, coalesce(q.dependency_failure, 'cancel') "
						   "FROM swarm._job_dep d JOIN swarm._job c ON c.id = d.child "
						   "LEFT JOIN swarm._queue q ON q.id = c.queue "
						   "LEFT JOIN LATERAL (SELECT state FROM swarm._job_history WHERE id = d.parent "
						   "ORDER BY finished_at DESC LIMIT 1) h ON true "
						   "WHERE ($2 OR d.child = ANY ($1) OR d.parent = ANY ($1)) "
						   "AND NOT EXISTS (SELECT FROM swarm._job p WHERE p.id = d.parent) "
						   "ORDER BY d.child",
						   2, types, values, NULL);
	children = palloc((rows + 1) * sizeof(int64));
	if (rows > 0)
	{
		SPITupleTable *table = SPI_tuptable;

		for (uint64 i = 0; i < rows; i++)
		{
			SPI_tuptable = table;
			children[i] = swarm_spi_int64(i, 1);
			settle_dependency(children[i], swarm_spi_int64(i, 2), swarm_spi_int32(i, 3),
							  swarm_spi_text(i, 4)[0]);
		}
		for (uint64 i = 0; i < rows; i++)
		{
			if (i == 0 || children[i] != children[i - 1])
				release_if_free(children[i]);
		}
	}
	swarm_spi_end(&spi);
}

/*
 * mark_parents: whoever of these is still live shall be reported when it
 * ends.  Before looking who has ended: one of the two sees it.
 */
static void
mark_parents(SwarmShard *shard, Datum ids, bool all)
{
	Oid			types[] = {INT8ARRAYOID, BOOLOID};
	Datum		values[] = {ids, BoolGetDatum(all)};
	uint64		n;

	n = swarm_spi_query("SELECT DISTINCT parent FROM swarm._job_dep "
						"WHERE $2 OR child = ANY ($1) OR parent = ANY ($1)",
						2, types, values, NULL);
	for (uint64 i = 0; i < n; i++)
		swarm_queue_mark_parent(shard, swarm_spi_int64(i, 1));
}

/*
 * settle_dependency: a parent of this child has ended.
 */
static void
settle_dependency(int64 child, int64 parent, int parent_state, char policy)
{
	Oid			types[] = {INT8OID, INT8OID};
	Datum		values[] = {Int64GetDatum(child), Int64GetDatum(parent)};
	SwarmJobRow row;

	if (parent_state == SWARM_JOB_COMPLETED || policy == 'r')
		swarm_spi_execute("DELETE FROM swarm._job_dep WHERE child = $1 AND parent = $2",
						  2, types, values, NULL);
	else if (policy == 'c' && swarm_job_fetch(child, &row))
	{
		SwarmJobEnd end = {.state = SWARM_JOB_CANCELLED};

		end.error = psprintf("job " INT64_FORMAT ", on which this job depends, is %s",
							 parent, swarm_job_state_name(parent_state));
		if (swarm_job_end(&row, &end, SWARM_READY_TOUCHED))
			swarm_job_ring_ended(child, SWARM_JOB_CANCELLED);
	}
}

static void
release_if_free(int64 child)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(child)};

	if (swarm_spi_execute("SELECT FROM swarm._job j WHERE id = $1 AND NOT EXISTS "
						  "(SELECT FROM swarm._job_dep WHERE child = $1)",
						  1, types, values, NULL) > 0)
	{
		JobTold		told = {MyDatabaseId, child, SWARM_JOB_READY};

		swarm_doorbell_add(ring_released, NULL, &told, sizeof(told));
	}
}

static void
ring_released(void *item)
{
	JobTold    *told = item;
	SwarmShard *shard;
	SwarmEntry *e;

	if (swarm_job_shared == NULL)
		return;
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard = swarm_shard_find(told->database);
	e = shard ? swarm_entry_find(told->database, told->id) : NULL;
	if (e != NULL && e->state == ENTRY_BLOCKED)
	{
		swarm_entry_unlist(shard, e);
		e->job.flags &= ~SWARM_READY_BLOCKED;
		swarm_entry_place(shard, e, false);
	}
	LWLockRelease(swarm_job_lock);
}

void
swarm_job_ring_ended(int64 id, SwarmJobState state)
{
	JobTold		told = {MyDatabaseId, id, state};

	swarm_doorbell_add(ring_ended, swarm_job_undo_told, &told, sizeof(told));
}

/*
 * ring_ended: a transaction other than a runner's has ended the job.
 */
static void
ring_ended(void *item)
{
	JobTold    *told = item;
	SwarmShard *shard;
	SwarmEntry *e;

	if (swarm_job_shared == NULL)
		return;
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard = swarm_shard_find(told->database);
	e = shard ? swarm_entry_find(told->database, told->id) : NULL;
	if (shard != NULL)
	{
		shard->completed += told->state == SWARM_JOB_COMPLETED;
		shard->dead += told->state == SWARM_JOB_DEAD;
		shard->cancelled += told->state == SWARM_JOB_CANCELLED;
		if (e == NULL || (e->job.flags & SWARM_READY_PARENT))
			swarm_shard_recheck(shard, told->id);
	}
	if (e != NULL)
	{
		swarm_queue_count_finished(e->queue);
		if (e->queue->notify)
			swarm_shard_event(shard, told->id, e->job.queue, told->state);
		if (e->state == ENTRY_CLAIMED)
		{
			/* its runner will find no row; no need to run to the end */
			e->gone = true;
			if (swarm_slot_at(e->slot)->job == told->id)
				swarm_slot_cancel(swarm_slot_at(e->slot), NULL);
		}
		else
			swarm_entry_remove(shard, e);
	}
	LWLockRelease(swarm_job_lock);
	ConditionVariableBroadcast(swarm_job_waiters(told->id));
}

/* ------------------------------------------------------------------------
 * NOTIFY swarm_events
 * ------------------------------------------------------------------------ */

void
swarm_job_send_events(SwarmShard *shard)
{
	SwarmEvent *events = palloc(SWARM_EVENTS * sizeof(SwarmEvent));
	uint32		n,
				lost = 0;

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	n = shard->events_written - shard->events_read;
	if (n > SWARM_EVENTS)
	{
		lost = n - SWARM_EVENTS;
		n = SWARM_EVENTS;
	}
	for (uint32 i = 0; i < n; i++)
		events[i] = shard->events[(shard->events_written - n + i) % SWARM_EVENTS];
	shard->events_read = shard->events_written;
	LWLockRelease(swarm_job_lock);

	if (lost > 0)
		Async_Notify("swarm_events", psprintf("{\"lost\": %u}", lost));
	for (uint32 i = 0; i < n; i++)
	{
		StringInfoData json;
		char	   *queue = swarm_job_queue_name(events[i].queue);

		initStringInfo(&json);
		appendStringInfo(&json, "{\"job\": " INT64_FORMAT ", \"state\": \"%s\", \"queue\": ",
						 events[i].id, swarm_job_state_name(events[i].state));
		escape_json(&json, queue ? queue : "");
		appendStringInfoChar(&json, '}');
		Async_Notify("swarm_events", json.data);
	}
}

/* ------------------------------------------------------------------------
 * History partitions: one a day, UTC
 * ------------------------------------------------------------------------ */

bool
swarm_job_history_ready(void)
{
	char		name[NAMEDATALEN];

	partition_name(name, sizeof(name), day_of(swarm_now()));
	return OidIsValid(get_relname_relid(name, get_namespace_oid("swarm", false)));
}

/*
 * swarm_job_keep_history: gives up, for this time, on a lock that somebody
 * holds: rows of a day without a partition go to the default one.
 */
TimestampTz
swarm_job_keep_history(void)
{
	SwarmSpi	spi;
	int64		today = day_of(swarm_now());

	swarm_spi_begin(&spi);
	(void) set_config_option("lock_timeout", "200ms", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	make_partition(today);
	make_partition(today + 1);
	drop_old_partitions(today);
	swarm_spi_end(&spi);
	return (today + 1) * USECS_PER_DAY + USECS_PER_MINUTE;
}

static void
make_partition(int64 day)
{
	char		name[NAMEDATALEN];
	Oid			types[] = {TIMESTAMPTZOID, TIMESTAMPTZOID};
	Datum		values[] = {TimestampTzGetDatum(day * USECS_PER_DAY),
	TimestampTzGetDatum((day + 1) * USECS_PER_DAY)};

	partition_name(name, sizeof(name), day);
	if (OidIsValid(get_relname_relid(name, get_namespace_oid("swarm", false))))
		return;
	if (swarm_spi_execute("SELECT FROM ONLY swarm._job_history_default "
						  "WHERE finished_at >= $1 AND finished_at < $2 LIMIT 1",
						  2, types, values, NULL) > 0)
		return;
	swarm_spi_execute(psprintf("CREATE TABLE swarm.%s (LIKE swarm._job_history "
							   "INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING COMPRESSION)", name),
					  0, NULL, NULL, NULL);
	swarm_spi_execute(psprintf("ALTER TABLE swarm._job_history ATTACH PARTITION swarm.%s "
							   "FOR VALUES FROM (%s) TO (%s)", name,
							   quote_literal_cstr(timestamptz_to_str(day * USECS_PER_DAY)),
							   quote_literal_cstr(timestamptz_to_str((day + 1) * USECS_PER_DAY))),
					  0, NULL, NULL, NULL);
}

static void
drop_old_partitions(int64 today)
{
	char		oldest[NAMEDATALEN];
	Oid			types[] = {TEXTOID, TIMESTAMPTZOID};
	Datum		values[2];
	int64		keep_days;
	uint64		n;
	SPITupleTable *table;

	if (history_keep_min < 0)
		return;
	keep_days = (history_keep_min + 24 * 60 - 1) / (24 * 60);
	partition_name(oldest, sizeof(oldest), today - keep_days);
	values[0] = CStringGetTextDatum(oldest);
	values[1] = TimestampTzGetDatum(swarm_now() - (int64) history_keep_min * USECS_PER_MINUTE);
	swarm_spi_execute("DELETE FROM ONLY swarm._job_history_default WHERE finished_at < $2",
					  2, types, values, NULL);
	n = swarm_spi_query("SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
						"WHERE i.inhparent = 'swarm._job_history'::regclass "
						"AND c.relname ~ '^_job_history_[0-9]{8}$' AND c.relname::text COLLATE \"C\" < $1",
						1, types, values, NULL);
	table = SPI_tuptable;
	for (uint64 i = 0; i < n; i++)
	{
		SPI_tuptable = table;
		swarm_spi_execute(psprintf("DROP TABLE swarm.%s",
								   swarm_spi_text(i, 1)),
						  0, NULL, NULL, NULL);
	}
}

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

/* ------------------------------------------------------------------------
 * After a crash, after a copy
 * ------------------------------------------------------------------------ */

/*
 * swarm_job_count_crash: what the in-flight file says.  A job that is still
 * live has used an attempt; on its last one it is dead, so that the server
 * does not crash for ever.
 */
void
swarm_job_count_crash(int64 id, int attempt)
{
	SwarmJobRow row;

	if (!swarm_job_fetch(id, &row))
		return;
	if (attempt >= row.max_attempts)
	{
		SwarmJobEnd end = {.state = SWARM_JOB_DEAD, .error = CRASH_ERROR,
		.attempts = attempt};

		if (swarm_job_end(&row, &end, SWARM_READY_TOUCHED))
			ereport(LOG,
					(errmsg("job " INT64_FORMAT " is dead: the server crashed in each of %d attempts",
							id, attempt)));
	}
	else
		swarm_job_record_attempt(id, attempt, swarm_now() + swarm_job_backoff_us(attempt),
								 CRASH_ERROR, true);
}

bool
swarm_job_pause_if_cloned(void)
{
	SwarmSpi	spi;
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(MyDatabaseId)};
	bool		cloned;

	swarm_spi_begin(&spi);
	cloned = swarm_spi_execute("UPDATE swarm._instance SET database = $1 WHERE database <> $1",
							   1, types, values, NULL) > 0;
	if (cloned)
	{
		swarm_spi_execute("INSERT INTO swarm._queue (id, name, owner) "
						  "VALUES (1, 'default', current_user::regrole) ON CONFLICT DO NOTHING",
						  0, NULL, NULL, NULL);
		swarm_spi_execute("UPDATE swarm._queue SET paused = true", 0, NULL, NULL, NULL);
	}
	swarm_spi_end(&spi);
	if (cloned)
		ereport(WARNING,
				(errmsg("database is a copy of another: its job queues are paused"),
				 errhint("Call swarm.queue_resume() for each queue whose jobs shall run here.")));
	return cloned;
}
