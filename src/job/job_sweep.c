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
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/doorbell.h"
#include "base/fault.h"
#include "base/spi.h"
#include "job/job_int.h"

#define SWEEP_PAGE		1000
#define CRASH_ERROR		"the server crashed while the job ran"

/* What ready_from_row() reads. */
#define READY_COLUMNS \
	"j.id, j.queue, j.kind, j.owner::oid, j.priority::int4, " \
	"coalesce(a.run_at, j.run_at), coalesce(a.attempts, 0), " \
	"j.unique_key IS NOT NULL, j.kind <> 1 AND h.handler IS NULL, " \
	"j.blocked AND EXISTS (SELECT FROM swarm._job_dep d WHERE d.child = j.id), " \
	"EXISTS (SELECT FROM swarm._job_dep d WHERE d.parent = j.id), " \
	"coalesce(a.crashed, false) " \
	"FROM swarm._job j LEFT JOIN swarm._job_attempt a ON a.id = j.id " \
	"LEFT JOIN swarm._handler h ON h.id = j.kind "

/* What a transaction tells memory about one job at its commit. */
typedef struct JobTold
{
	Oid			database;
	int64		id;
	SwarmJobState state;
} JobTold;

static void ring_ended(void *item);
static void ring_released(void *item);
static SwarmReady ready_from_row(uint64 row);
static void mark_parents(SwarmShard *shard, Datum ids, bool all);
static void settle_dependency(int64 child, int64 parent, int parent_state, char policy);
static void release_if_free(int64 child);
static bool is_held(void);

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
	bool		held;
	uint32		changes;

	LWLockAcquire(swarm_job_lock, LW_SHARED);
	changes = shard->config_changes;
	LWLockRelease(swarm_job_lock);
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
	held = is_held();
	/* what memory has of half a restore is looked at anew, before any claim */
	if (shard->held && !held)
		swarm_queue_forget(shard, false);
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	if (shard->held && !held)
		shard->nrechecks = SWARM_FINISHED_PARENTS + 1;
	shard->held = held;
	LWLockRelease(swarm_job_lock);
	swarm_queue_configure(shard, queues, nqueues, kinds, nkinds, changes);
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
	shard->sweeping = from != SWARM_NO_SCAN;
	LWLockRelease(swarm_job_lock);
	if (from == SWARM_NO_SCAN)
		return false;
	SWARM_FAULT("job.sweep");

	swarm_spi_begin(&spi);
	values[0] = Int64GetDatum(from);
	n = swarm_spi_query("SELECT " READY_COLUMNS "WHERE j.id >= $1 ORDER BY j.id LIMIT 1000",
						1, types, values, NULL);
	SWARM_FAULT("job.swept");
	for (uint64 i = 0; i < n; i++)
	{
		SwarmReady	job = ready_from_row(i);

		from = job.id + 1;
		if (!swarm_queue_push_swept(shard, &job))
			break;
	}
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	if (n == SWEEP_PAGE)
	{
		more = shard->scan_from >= from;
		shard->scan_from = Min(shard->scan_from, from);
	}
	shard->sweeping = false;
	LWLockRelease(swarm_job_lock);
	swarm_spi_end(&spi);
	return more;
}

/*
 * ready_from_row: a row of READY_COLUMNS in the last result.
 */
static SwarmReady
ready_from_row(uint64 row)
{
	SwarmReady	job = {.database = MyDatabaseId};
	bool		isnull;

	job.id = swarm_spi_int64(row, 1);
	job.queue = swarm_spi_int32(row, 2);
	job.kind = swarm_spi_int32(row, 3);
	job.owner = DatumGetObjectId(swarm_spi_column(row, 4, &isnull));
	job.priority = swarm_spi_int32(row, 5);
	job.due = DatumGetTimestampTz(swarm_spi_column(row, 6, &isnull));
	job.attempts = swarm_spi_int32(row, 7);
	job.flags = (swarm_spi_bool(row, 8) ? SWARM_READY_KEYED : 0) |
		(swarm_spi_bool(row, 9) ? SWARM_READY_EXTERNAL : 0) |
		(swarm_spi_bool(row, 10) ? SWARM_READY_BLOCKED : 0) |
		(swarm_spi_bool(row, 11) ? SWARM_READY_PARENT : 0) |
		(swarm_spi_bool(row, 12) ? SWARM_READY_SUSPECT : 0);
	return job;
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

	swarm_job_names_changed(0);
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard = swarm_shard_find(database);
	if (shard != NULL && shard->prepared_from != SWARM_NO_SCAN)
	{
		if (shard->prepared_from == 0)
		{
			swarm_shard_config_changed(shard);
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
		{
			/* one may have ended since, and found nothing to do */
			shard->scan_from = Min(shard->scan_from, shard->prepared_from);
			if (shard->prepared_from == 0)
			{
				swarm_shard_config_changed(shard);
				shard->rebuild = true;
			}
			shard->prepared_from = SWARM_NO_SCAN;
		}
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
						   "SELECT d.child, d.parent, coalesce(h.state, 6)::int4, coalesce(q.dependency_failure, 'cancel') "
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

	/*
	 * a parent that waits itself is not in memory, and marked when it gets
	 * there
	 */
	n = swarm_spi_query("SELECT DISTINCT d.parent FROM swarm._job_dep d "
						"JOIN swarm._job p ON p.id = d.parent "
						"WHERE ($2 OR d.child = ANY ($1) OR d.parent = ANY ($1)) "
						"AND NOT EXISTS (SELECT FROM swarm._job_dep w WHERE w.child = d.parent)",
						2, types, values, NULL);
	for (uint64 i = 0; i < n; i++)
		swarm_queue_mark_parent(shard, swarm_spi_int64(i, 1));
}

/*
 * settle_dependency: a parent of this child has ended.  One that has left no
 * trace counts as dead: nothing says that it has completed.
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
		if (swarm_job_end(&row, &end))
			swarm_job_ring_ended(child, SWARM_JOB_CANCELLED);
	}
}

/*
 * release_if_free: the job waits for nobody any more: at commit it goes to
 * memory, where it has not been.
 */
static void
release_if_free(int64 child)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(child)};
	SwarmReady	job;

	CommandCounterIncrement();
	if (swarm_spi_execute("SELECT " READY_COLUMNS "WHERE j.id = $1", 1, types, values, NULL) == 0)
		return;
	job = ready_from_row(0);
	if ((job.flags & SWARM_READY_BLOCKED) == 0)
		swarm_doorbell_add(ring_released, NULL, &job, sizeof(job));
}

static void
ring_released(void *item)
{
	swarm_queue_push(item);
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
	SWARM_FAULT("job.events");
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

		if (swarm_job_end(&row, &end))
			ereport(LOG,
					(errmsg("job " INT64_FORMAT " is dead: the server crashed in each of %d attempts",
							id, attempt)));
	}
	else
		(void) swarm_job_record_attempt(&row, attempt, swarm_now() + swarm_job_backoff_us(attempt),
										CRASH_ERROR, true);
}

/*
 * is_held: shall the jobs of this database wait?  True after jobs came from a
 * dump, and from the first look at a copy of another database, until
 * swarm.jobs_resume().
 */
static bool
is_held(void)
{
	Oid			types[] = {OIDOID};
	Datum		values[] = {ObjectIdGetDatum(MyDatabaseId)};

	/* only when needed: the statement makes the settings be read again */
	if (swarm_spi_query("SELECT FROM swarm._instance WHERE database <> $1",
						1, types, values, NULL) > 0)
	{
		swarm_spi_execute("UPDATE swarm._instance SET database = $1, held = true",
						  1, types, values, NULL);
		ereport(WARNING,
				(errmsg("database is a copy of another: its jobs are held"),
				 errhint("Call swarm.jobs_resume() if they shall run here.")));
		return true;
	}
	return swarm_spi_query("SELECT FROM swarm._instance WHERE held", 0, NULL, NULL, NULL) > 0;
}
