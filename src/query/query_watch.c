/*
 * query_watch.c
 *	  The scheduler's part: it writes down what running queries have told, gives
 *	  registered sessions their ids, ends pauses that last too long and queries
 *	  that did not heed their cancellation, and closes the rows of those whose
 *	  process is gone.
 */
#include "postgres.h"

#include <signal.h>

#include "catalog/pg_type.h"
#include "commands/async.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/fault.h"
#include "base/spi.h"
#include "query/query_int.h"
#include "worker/worker.h"

#define LOOK_EVERY_US	(2 * USECS_PER_SEC)
#define RETRY_US		(USECS_PER_SEC / 5) /* news of a row that was locked */

static TimestampTz due(void);
static TimestampTz slots_due(bool *unnamed);
static void watch(void);
static void write_all_news(void);
static void write_news(const SwarmQueryNews *news);
static bool name_sessions(void);
static void end_pauses(void);
static void end_obstinate(void);
static void end_process(int pid, int64 query, TimestampTz asked);
static void close_lost(void);

static uint32 seen = 0;			/* changes of rows that we have looked at */
static int64 open_rows = -1;	/* queries that have not ended; -1 = look */
static TimestampTz next_look = 0;
static uint64 newest_seen = 0;	/* of the news */
static TimestampTz retry_at = 0;	/* for those put aside */

static SwarmStep step = {
	.name = "queries",
	.due = due,
	.run = watch
};

void
swarm_query_watch_init(void)
{
	swarm_step_register(&step);
	swarm_rule_init();
	swarm_query_alert_init();
}

/*
 * due: when there is something to do.  With no query that could end without
 * us, never.
 */
static TimestampTz
due(void)
{
	bool		unnamed = false;
	TimestampTz when;
	uint64		newest;

	if (swarm_query_slots() == 0)
		return DT_NOEND;
	when = slots_due(&unnamed);
	newest = swarm_query_newest_news();
	if (unnamed || newest > newest_seen || seen != swarm_query_watch_count())
		return 0;
	if (newest != 0)
		when = Min(when, retry_at);
	if (open_rows != 0)
		when = Min(when, next_look);
	return when;
}

static TimestampTz
slots_due(bool *unnamed)
{
	TimestampTz when = DT_NOEND;

	LWLockAcquire(swarm_query_lock, LW_SHARED);
	for (int i = 0; i < swarm_query_slots(); i++)
	{
		SwarmQuerySlot *slot = swarm_query_slot(i);

		if (slot->pid == 0 || slot->leader >= 0 || slot->database != MyDatabaseId)
			continue;
		when = Min(when, slot->kill_at);
		if (slot->kind == SWARM_KIND_SESSION && slot->query == 0 && !slot->ended)
			*unnamed = true;
		if (slot->state != SWARM_QUERY_PAUSED)
			continue;
		when = Min(when, slot->resume_at);
		if (swarm_query_max_pause_ms > 0)
			when = Min(when, slot->paused_at + swarm_query_max_pause_ms * INT64CONST(1000));
	}
	LWLockRelease(swarm_query_lock);
	return when;
}

static void
watch(void)
{
	uint32		changes = swarm_query_watch_count();
	bool		look = changes != seen || open_rows <= 0 || next_look <= swarm_now();

	end_pauses();
	end_obstinate();

	/* whoever locks our tables for long must not stop the scheduler */
	(void) set_config_option("lock_timeout", "200ms", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	look |= name_sessions();
	write_all_news();
	if (look)
	{
		next_look = swarm_now() + LOOK_EVERY_US;
		close_lost();
	}
	seen = changes;				/* not if something has failed */
}

/*
 * write_all_news: in their order.  Those of a query whose row somebody has
 * locked are put aside: one long transaction must not hold up the others.
 */
static void
write_all_news(void)
{
	SwarmQueryNews *news;
	int			n = swarm_query_take_news(&news);
	int			written = 0;
	List	   *aside = NIL;
	uint64		newest = n > 0 ? news[n - 1].number : newest_seen;

	for (int i = 0; i < n; i++)
	{
		bool		locked = false;
		ListCell   *lc;

		foreach(lc, aside)
			locked |= *(int64 *) lfirst(lc) == news[i].query;
		if (!locked && !swarm_query_try_lock(news[i].query))
		{
			int64	   *query = palloc(sizeof(int64));

			*query = news[i].query;
			aside = lappend(aside, query);
			locked = true;
		}
		if (locked)
			continue;
		write_news(&news[i]);
		news[written++] = news[i];
	}
	swarm_query_forget_news(news, written);
	newest_seen = newest;
	retry_at = swarm_now() + RETRY_US;
}

/*
 * write_news: the event, and the row's state unless its end is written.
 */
static void
write_news(const SwarmQueryNews *news)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID, TEXTOID, TIMESTAMPTZOID, INT8OID, INT4OID};
	Datum		values[] = {Int64GetDatum(news->query), CStringGetTextDatum(swarm_query_state_name(news->to)),
	TimestampTzGetDatum(news->at), Int64GetDatum(news->paused_us), Int32GetDatum(news->pauses)};
	bool		changed;
	bool		notify = false;

	swarm_spi_begin(&spi);
	changed = swarm_spi_execute("UPDATE swarm._query SET state = $2::swarm.query_state, "
								"started_at = coalesce(started_at, $3), "
								"paused_at = CASE WHEN $2 = 'paused' THEN $3 ELSE paused_at END, "
								"resumed_at = CASE WHEN state = 'paused' AND $2 = 'running' THEN $3 ELSE resumed_at END, "
								"finished_at = CASE WHEN $2 IN ('complete', 'terminated', 'error') THEN $3 END, "
								"total_pause = $4 * interval '1 microsecond', pauses = $5 "
								"WHERE id = $1 AND state IN ('init', 'running', 'paused') "
								"RETURNING coalesce(metadata->>'notify' = 'true', false)",
								5, types, values, NULL) > 0;
	if (changed)
		notify = swarm_spi_bool(0, 1);
	swarm_spi_end(&spi);
	swarm_query_log(news->query, news->at, news->actor, news->event, news->from, news->to,
					news->detail);
	if (changed && news->from != news->to)
	{
		swarm_query_ring(news->query);
		if (notify)
			swarm_query_notify(news->query, news->to);
	}
}

/*
 * name_sessions: rows for those that pg_swarm.query_control has registered.
 * The id is told before the commit; should that fail, the row is missing, and
 * the session goes on without being a query.  True if there were any.
 */
static bool
name_sessions(void)
{
	bool		any = false;

	for (int i = 0; i < swarm_query_slots(); i++)
	{
		SwarmQuerySlot *slot = swarm_query_slot(i);
		SwarmSpi	spi;
		Oid			types[] = {OIDOID, TIMESTAMPTZOID};
		Datum		values[2];
		int			pid;
		int64		id;

		LWLockAcquire(swarm_query_lock, LW_SHARED);
		pid = slot->pid;
		values[0] = ObjectIdGetDatum(slot->owner);
		values[1] = TimestampTzGetDatum(slot->started_at);
		if (slot->kind != SWARM_KIND_SESSION || slot->query != 0 || slot->ended ||
			slot->leader >= 0 || slot->database != MyDatabaseId)
			pid = 0;
		LWLockRelease(swarm_query_lock);
		if (pid == 0)
			continue;
		swarm_spi_begin(&spi);
		swarm_spi_execute("INSERT INTO swarm._query (kind, owner, permission_mode, state, started_at) "
						  "VALUES ('session', $1::regrole, 'default', 'init', $2) RETURNING id",
						  2, types, values, NULL);
		id = swarm_spi_int64(0, 1);
		swarm_spi_end(&spi);
		LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
		if (slot->pid == pid && slot->query == 0)
		{
			slot->query = id;
			slot->actor = slot->owner;
			swarm_query_tell(slot, SWARM_QUERY_START, SWARM_QUERY_INIT, SWARM_QUERY_RUNNING,
							 "pg_swarm.query_control");
		}
		LWLockRelease(swarm_query_lock);
		any = true;
	}
	return any;
}

/*
 * end_pauses: those that were to last so long, and those that last too long.
 */
static void
end_pauses(void)
{
	TimestampTz now = swarm_now();

	LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
	for (int i = 0; i < swarm_query_slots(); i++)
	{
		SwarmQuerySlot *slot = swarm_query_slot(i);

		if (slot->pid == 0 || slot->leader >= 0 || slot->database != MyDatabaseId ||
			slot->ended || slot->state != SWARM_QUERY_PAUSED)
			continue;
		if (slot->resume_at <= now)
			(void) swarm_query_unpause(slot, slot->actor);
		else if (swarm_query_max_pause_ms > 0 &&
				 slot->paused_at + swarm_query_max_pause_ms * INT64CONST(1000) <= now)
		{
			if (swarm_query_max_pause_action == 0)
				(void) swarm_query_unpause(slot, InvalidOid);
			else if ((pg_atomic_read_u32(&slot->request) & SWARM_REQ_STOP) == 0)
				swarm_query_stop(slot, InvalidOid);
		}
	}
	LWLockRelease(swarm_query_lock);
}

/*
 * end_obstinate: what goes on with the same statement although it was
 * cancelled, loses its process.
 */
static void
end_obstinate(void)
{
	TimestampTz now = swarm_now();

	for (int i = 0; i < swarm_query_slots(); i++)
	{
		SwarmQuerySlot *slot = swarm_query_slot(i);
		int			pid = 0;
		int64		query = 0;

		LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
		if (slot->pid != 0 && slot->database == MyDatabaseId && slot->kill_at <= now)
		{
			pid = slot->pid;
			query = slot->query;
			slot->kill_at = DT_NOEND;
		}
		LWLockRelease(swarm_query_lock);
		if (pid != 0)
			end_process(pid, query, GetCurrentTimestamp() - swarm_query_grace_ms * INT64CONST(1000));
	}
}

/*
 * end_process: and note in the query's row why it is lost, for close_lost();
 * who has the row locked is writing how it has ended.
 */
static void
end_process(int pid, int64 query, TimestampTz asked)
{
	SwarmSpi	spi;
	Oid			types[] = {INT4OID, TIMESTAMPTZOID, INT8OID};
	Datum		values[] = {Int32GetDatum(pid), TimestampTzGetDatum(asked), Int64GetDatum(query)};

	swarm_spi_begin(&spi);
	if (swarm_spi_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
						  "WHERE pid = $1 AND state = 'active' AND query_start <= $2",
						  2, types, values, NULL) > 0)
		swarm_spi_execute("UPDATE swarm._query SET wanted = 'terminate' WHERE id = "
						  "(SELECT id FROM swarm._query WHERE id = $3 AND state IN ('init', 'running', 'paused') "
						  "FOR UPDATE SKIP LOCKED)", 3, types, values, NULL);
	swarm_spi_end(&spi);
}

/*
 * close_lost: a row that says it is alive, with no process, whose job has
 * ended or never was; also those of the server's last life.
 */
static void
close_lost(void)
{
	SwarmSpi	spi;
	uint64		n;
	SwarmQueryRow *rows;
	char	  **errors;
	bool	   *cancelled;
	int64	   *live;
	int			nlive;
	int64		kept = 0;
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext old;

	swarm_spi_begin(&spi);
	n = swarm_spi_query("SELECT q.id, q.state::text, q.owner::oid, "
						"coalesce(q.metadata->>'notify' = 'true', false), "
						"h.error, coalesce(h.state = 7, false) OR q.wanted = 'terminate', q.kind = 'llm' AND q.state <> 'init' OR q.job IS NULL AND q.kind <> 'session', "
						"EXISTS (SELECT FROM swarm._job j WHERE j.id = q.job) "
						"FROM swarm._query q LEFT JOIN swarm._job_history h ON h.id = q.job "
						"WHERE q.state IN ('init', 'running', 'paused') ORDER BY q.id",
						0, NULL, NULL, NULL);
	old = MemoryContextSwitchTo(caller);
	nlive = swarm_query_live_ids(&live);	/* now: no row is older than its
											 * process */
	rows = palloc0((n + 1) * sizeof(SwarmQueryRow));
	errors = palloc0((n + 1) * sizeof(char *));
	cancelled = palloc0((n + 1) * sizeof(bool));
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;

		rows[i].id = swarm_spi_int64(i, 1);
		rows[i].state = swarm_query_state_parse(swarm_spi_text(i, 2));
		rows[i].owner = DatumGetObjectId(swarm_spi_column(i, 3, &isnull));
		rows[i].notify = swarm_spi_bool(i, 4);
		errors[i] = swarm_spi_text(i, 5);
		cancelled[i] = swarm_spi_bool(i, 6);

		/* a conversation that waits, for a decision or to go on, has no job */
		if (swarm_spi_bool(i, 8) || (swarm_spi_bool(i, 7) && errors[i] == NULL) ||
			swarm_query_is_among(rows[i].id, live, nlive))
			rows[i].id = 0;
	}
	MemoryContextSwitchTo(old);
	swarm_spi_end(&spi);
	for (uint64 i = 0; i < n; i++)
	{
		SwarmQueryRow now;

		if (rows[i].id == 0 || !swarm_query_try_lock(rows[i].id))
			kept++;
		else if (!swarm_query_fetch(rows[i].id, true, &now) || swarm_query_is_final(now.state))
			continue;			/* it has ended meanwhile */
		else
			swarm_query_move(&now, cancelled[i] ? SWARM_QUERY_TERMINATE : SWARM_QUERY_FAIL,
							 InvalidOid, errors[i] ? errors[i] : "its process was lost");
	}
	open_rows = kept;
}
