/*
 * query_store.c
 *	  The tables of queries and of what happened to them.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/spi.h"
#include "query/query_int.h"

#define ROW_COLUMNS \
	"SELECT q.kind, q.owner::oid, q.body, q.model, q.permission_mode, q.state::text, q.wanted, q.pause_mode, " \
	"coalesce(q.metadata->>'notify' = 'true', false), coalesce(q.job, 0), " \
	"EXISTS (SELECT FROM swarm._query_request r WHERE r.query = q.id AND r.decision IS NULL), q.result_table " \
	"FROM swarm._query q WHERE q.id = $1"

bool
swarm_query_fetch(int64 id, bool lock, SwarmQueryRow *row)
{
	MemoryContext caller = CurrentMemoryContext;
	SwarmSpi	spi;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(id)};
	bool		found;

	swarm_spi_begin(&spi);
	if (lock)
		found = swarm_spi_execute(ROW_COLUMNS " FOR UPDATE", 1, types, values, NULL) > 0;
	else
		found = swarm_spi_query(ROW_COLUMNS, 1, types, values, NULL) > 0;
	if (found)
	{
		MemoryContext spi_context = MemoryContextSwitchTo(caller);
		bool		isnull;

		row->id = id;
		row->kind = swarm_spi_text(0, 1);
		row->owner = DatumGetObjectId(swarm_spi_column(0, 2, &isnull));
		row->body = swarm_spi_text(0, 3);
		row->model = swarm_spi_text(0, 4);
		row->permission_mode = swarm_spi_text(0, 5);
		row->state = swarm_query_state_parse(swarm_spi_text(0, 6));
		row->wanted = swarm_spi_text(0, 7);
		row->pause_mode = swarm_spi_text(0, 8);
		row->notify = swarm_spi_bool(0, 9);
		row->job = swarm_spi_int64(0, 10);
		row->approval = swarm_spi_bool(0, 11);
		row->result_table = swarm_spi_text(0, 12);
		MemoryContextSwitchTo(spi_context);
	}
	swarm_spi_end(&spi);
	return found;
}

bool
swarm_query_try_lock(int64 id)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(id)};
	bool		locked;

	swarm_spi_begin(&spi);
	swarm_spi_execute("SELECT EXISTS (SELECT FROM swarm._query WHERE id = $1) AND NOT EXISTS "
					  "(SELECT FROM (SELECT FROM swarm._query WHERE id = $1 FOR UPDATE SKIP LOCKED) l)",
					  1, types, values, NULL);
	locked = swarm_spi_bool(0, 1);
	swarm_spi_end(&spi);
	return !locked;
}

void
swarm_query_get(int64 id, bool lock, SwarmQueryRow *row)
{
	CommandCounterIncrement();	/* it may have been started by this statement */
	if (!swarm_query_fetch(id, lock, row) || !has_privs_of_role(GetUserId(), row->owner))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("query " INT64_FORMAT " does not exist", id)));
}

/*
 * swarm_query_check_control: as pg_cancel_backend() has it, what a superuser
 * runs is for superusers; and a command in a query does what its owner may, so
 * it takes the right to become the owner.
 */
void
swarm_query_check_control(const SwarmQueryRow *row, bool as_owner)
{
	if (superuser())
		return;
	if (superuser_arg(row->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to control query " INT64_FORMAT, row->id),
				 errdetail("Only superusers control what a superuser runs.")));
	if (as_owner && !swarm_may_become(GetUserId(), row->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to execute a command in query " INT64_FORMAT, row->id),
				 errdetail("This takes the right to SET ROLE to its owner.")));
}

/*
 * swarm_query_copy_text: as much as has room, whole characters only.
 */
void
swarm_query_copy_text(char *to, const char *from, Size size)
{
	int			n = pg_mbcliplen(from, strlen(from), (int) size - 1);

	memcpy(to, from, n);
	to[n] = '\0';
}

/*
 * swarm_query_prune: what has ended, and alerts that are over, go with the
 * history of jobs.
 */
void
swarm_query_prune(TimestampTz before)
{
	SwarmSpi	spi;
	Oid			types[] = {TIMESTAMPTZOID};
	Datum		values[] = {TimestampTzGetDatum(before)};

	swarm_spi_begin(&spi);
	swarm_spi_execute("WITH gone AS (DELETE FROM swarm._query WHERE id IN ("
					  "SELECT id FROM swarm._query q WHERE q.finished_at < $1 FOR UPDATE SKIP LOCKED) RETURNING id) "
					  "DELETE FROM swarm._query_event e USING gone WHERE e.query = gone.id", 1, types, values, NULL);
	swarm_spi_execute("DELETE FROM swarm.alerts WHERE cleared_at < $1", 1, types, values, NULL);
	swarm_spi_end(&spi);
}

/* table_oid: of swarm._query, for locks. */
static Oid
table_oid(void)
{
	return get_relname_relid("_query", get_namespace_oid("swarm", false));
}

void
swarm_query_lock_end(int64 id)
{
	LockDatabaseObject(table_oid(), (Oid) id, (uint16) (id >> 32), AccessExclusiveLock);
}

void
swarm_query_await_end(int64 id)
{
	Oid			table = table_oid();

	LockDatabaseObject(table, (Oid) id, (uint16) (id >> 32), AccessShareLock);
	UnlockDatabaseObject(table, (Oid) id, (uint16) (id >> 32), AccessShareLock);
}

/*
 * swarm_query_move: an edge of a row that is not final; `row` follows.
 */
void
swarm_query_move(SwarmQueryRow *row, SwarmQueryEvent event, Oid actor, const char *detail)
{
	SwarmSpi	spi;
	SwarmQueryState from = row->state;
	TimestampTz now = swarm_now();
	Oid			types[] = {INT8OID, TEXTOID, TIMESTAMPTZOID, TEXTOID};
	Datum		values[4];

	row->state = swarm_query_require(from, event, row->id);
	values[0] = Int64GetDatum(row->id);
	values[1] = CStringGetTextDatum(swarm_query_state_name(row->state));
	values[2] = TimestampTzGetDatum(now);
	values[3] = detail ? CStringGetTextDatum(detail) : (Datum) 0;
	swarm_spi_begin(&spi);
	swarm_spi_execute("UPDATE swarm._query SET state = $2::swarm.query_state, "
					  "started_at = CASE WHEN $2 = 'running' THEN coalesce(started_at, $3) ELSE started_at END, "
					  "total_pause = total_pause + CASE WHEN state = 'paused' AND kind = 'llm' "
					  "THEN coalesce($3 - paused_at, '0') ELSE '0' END, "
					  "pauses = pauses + (CASE WHEN $2 = 'paused' THEN 1 ELSE 0 END), "
					  "paused_at = CASE WHEN $2 = 'paused' THEN $3 ELSE paused_at END, "
					  "resumed_at = CASE WHEN state = 'paused' AND $2 = 'running' THEN $3 ELSE resumed_at END, "
					  "finished_at = CASE WHEN $2 IN ('complete', 'terminated', 'error') THEN $3 END, "
					  "error = CASE WHEN $2 = 'error' THEN coalesce(error, $4) ELSE error END, "
					  "wanted = CASE WHEN $2 IN ('complete', 'terminated', 'error') THEN 'run' ELSE wanted END "
					  "WHERE id = $1", 4, types, values, detail ? NULL : "   n");
	swarm_spi_end(&spi);
	swarm_query_log(row->id, now, actor, event, from, row->state, detail);
	swarm_query_ring(row->id);
	if (row->notify)
		swarm_query_notify(row->id, row->state);
}

void
swarm_query_log(int64 id, TimestampTz at, Oid actor, SwarmQueryEvent event,
				SwarmQueryState from, SwarmQueryState to, const char *detail)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID, TIMESTAMPTZOID, OIDOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID};
	Datum		values[] = {Int64GetDatum(id), TimestampTzGetDatum(at), ObjectIdGetDatum(actor),
		CStringGetTextDatum(swarm_query_event_name(event)),
		CStringGetTextDatum(swarm_query_state_name(from)),
		CStringGetTextDatum(swarm_query_state_name(to)),
	detail ? CStringGetTextDatum(detail) : (Datum) 0};
	char		nulls[] = "       ";

	nulls[6] = detail != NULL && detail[0] != '\0' ? ' ' : 'n';
	swarm_spi_begin(&spi);
	swarm_spi_execute("INSERT INTO swarm._query_event (query, at, actor, action, before, after, detail) "
					  "VALUES ($1, $2, nullif($3, 0)::regrole, $4, $5::swarm.query_state, $6::swarm.query_state, $7)",
					  7, types, values, nulls);
	swarm_spi_end(&spi);
}

void
swarm_query_notify(int64 id, SwarmQueryState state)
{
	char	   *text = psprintf("{\"query\": " INT64_FORMAT ", \"state\": \"%s\"}",
								id, swarm_query_state_name(state));

	Async_Notify("swarm_events", text);
}
