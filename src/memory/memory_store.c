/*
 * memory_store.c
 *	  Reading and writing the tables of entries.
 *
 * Reads by key go to the index and the table without a query; writes are
 * saved plans, so that conflicts, triggers and locks are the executor's
 * affair.  What has expired is, to each of them, not there.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/hsearch.h"
#include "utils/snapmgr.h"

#include "base/clock.h"
#include "base/compat.h"
#include "memory/memory_int.h"

#define MAX_ARGS	9

/* An entry that is there, whatever the sweep has done; m is the table. */
#define LIVE		"(m.expires_at IS NULL OR m.expires_at > swarm._now())"

/* The value as what can be added to, or an error. */
#define NUMBER \
	"CASE WHEN jsonb_typeof(m.value) = 'number' THEN m.value::numeric ELSE swarm._memory_no_number(m.value) END"

/*
 * When the sweep shall look at an entry that is to expire at `new`: as before,
 * unless that is too late; the index stays as it is, and the update HOT.
 */
#define SWEEP_AT(new) \
	"CASE WHEN " new " IS NULL OR m.sweep_at <= " new " + interval '1 min' THEN m.sweep_at ELSE " new " END"

/* $1 namespace, $2 key in all of them; %s is the table. */
static const struct
{
	const char *sql;
	int			nargs;
	Oid			types[MAX_ARGS];
}			statements[STATEMENTS] =

{
	/* $3 value, $4 tags, $5 size, $6 expires_at, $7 now, $8 owner, $9 flags */
	[STATEMENT_STORE] = {
		"INSERT INTO %s AS m (namespace, key, version, value, tags, size, expires_at, sweep_at, created_at, updated_at, owner) "
		"VALUES ($1, $2, 1, $3, $4, $5, $6, $6, $7, $7, $8) "
		"ON CONFLICT (namespace, key) DO UPDATE SET "
		"version = CASE WHEN " LIVE " THEN m.version + 1 ELSE 1 END, value = $3, tags = $4, size = $5, "
		"expires_at = CASE WHEN $9 & 2 <> 0 AND " LIVE " THEN m.expires_at ELSE $6 END, "
		"sweep_at = CASE WHEN $9 & 2 <> 0 AND " LIVE " THEN m.sweep_at ELSE " SWEEP_AT("$6") " END, "
		"created_at = CASE WHEN " LIVE " THEN m.created_at ELSE $7 END, updated_at = $7, owner = $8 "
		"WHERE $9 & 1 = 0 OR NOT " LIVE " RETURNING version",
	9, {INT4OID, TEXTOID, JSONBOID, TEXTARRAYOID, INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID, OIDOID, INT4OID}},
	/* the same; $9 the version it must have; $8 flags and owner are split */
	[STATEMENT_REPLACE] = {
		"UPDATE %s AS m SET version = m.version + 1, value = $3, tags = $4, size = $5, "
		"expires_at = CASE WHEN $6 = '-infinity' THEN m.expires_at ELSE $6 END, "
		"sweep_at = CASE WHEN $6 = '-infinity' THEN m.sweep_at ELSE " SWEEP_AT("$6") " END, updated_at = $7, owner = $8 "
		"WHERE namespace = $1 AND key = $2 AND version = $9 AND " LIVE " RETURNING version",
	9, {INT4OID, TEXTOID, JSONBOID, TEXTARRAYOID, INT4OID, TIMESTAMPTZOID, TIMESTAMPTZOID, OIDOID, INT8OID}},
	[STATEMENT_DELETE] = {
		"DELETE FROM %s AS m WHERE namespace = $1 AND key = $2 RETURNING " LIVE,
	2, {INT4OID, TEXTOID}},
	/* $3 expires_at, $4 condition */
	[STATEMENT_EXPIRE] = {
		"UPDATE %s AS m SET expires_at = nullif($3, 'infinity'), sweep_at = " SWEEP_AT("nullif($3, 'infinity')")
		" WHERE namespace = $1 AND key = $2 AND " LIVE " AND CASE $4 WHEN 'nx' THEN expires_at IS NULL "
		"WHEN 'xx' THEN expires_at IS NOT NULL WHEN 'gt' THEN expires_at < $3 "
		"WHEN 'lt' THEN expires_at IS NULL OR expires_at > $3 ELSE true END",
	4, {INT4OID, TEXTOID, TIMESTAMPTZOID, TEXTOID}},
	[STATEMENT_EXPIRE_NOW] = {
		"DELETE FROM %s AS m WHERE namespace = $1 AND key = $2 AND " LIVE " AND CASE $4 WHEN 'nx' THEN expires_at IS NULL "
		"WHEN 'xx' THEN expires_at IS NOT NULL WHEN 'gt' THEN expires_at < $3 "
		"WHEN 'lt' THEN expires_at IS NULL OR expires_at > $3 ELSE true END",
	4, {INT4OID, TEXTOID, TIMESTAMPTZOID, TEXTOID}},
	[STATEMENT_PERSIST] = {
		"UPDATE %s AS m SET expires_at = NULL WHERE namespace = $1 AND key = $2 AND expires_at IS NOT NULL AND " LIVE,
	2, {INT4OID, TEXTOID}},
	/* $3 by, $4 expires_at, $5 now, $6 owner */
	[STATEMENT_INCREMENT] = {
		"INSERT INTO %s AS m (namespace, key, version, value, tags, size, expires_at, sweep_at, created_at, updated_at, owner) "
		"VALUES ($1, $2, 1, to_jsonb($3), '{}', octet_length($2) + pg_column_size(to_jsonb($3)), $4, $4, $5, $5, $6) "
		"ON CONFLICT (namespace, key) DO UPDATE SET "
		"version = CASE WHEN " LIVE " THEN m.version + 1 ELSE 1 END, "
		"value = to_jsonb(CASE WHEN " LIVE " THEN " NUMBER " + $3 ELSE $3 END), "
		"size = octet_length($2) + pg_column_size(to_jsonb(CASE WHEN " LIVE " THEN " NUMBER " + $3 ELSE $3 END)), "
		"tags = CASE WHEN " LIVE " THEN m.tags ELSE '{}' END, "
		"expires_at = CASE WHEN " LIVE " THEN m.expires_at ELSE $4 END, "
		"sweep_at = CASE WHEN " LIVE " THEN m.sweep_at ELSE " SWEEP_AT("$4") " END, "
		"created_at = CASE WHEN " LIVE " THEN m.created_at ELSE $5 END, updated_at = $5, owner = $6 "
		"RETURNING value::numeric, value",
	6, {INT4OID, TEXTOID, NUMERICOID, TIMESTAMPTZOID, TIMESTAMPTZOID, OIDOID}},

	/* for limits; $2 is the key that stays */
	[STATEMENT_COUNT] = {
		"SELECT count(*), coalesce(sum(size), 0)::bigint FROM %s WHERE namespace = $1",
	1, {INT4OID}},

	/*
	 * what has expired has a sweep_at, a minute later at most, and an index
	 * on it
	 */
	[STATEMENT_COUNT_EXPIRED] = {
		"SELECT count(*), coalesce(sum(size), 0)::bigint FROM %s AS m WHERE namespace = $1 "
		"AND NOT " LIVE " AND sweep_at <= swarm._now() + interval '1 min'",
	1, {INT4OID}},
	[STATEMENT_PURGE] = {
		"DELETE FROM %s WHERE ctid = ANY (ARRAY(SELECT ctid FROM %s AS m WHERE namespace = $1 AND key <> $2 "
		"AND NOT " LIVE " AND sweep_at <= swarm._now() + interval '1 min' FOR UPDATE SKIP LOCKED))",
	2, {INT4OID, TEXTOID}},
	[STATEMENT_EVICT_OLDEST] = {
		"DELETE FROM %s WHERE ctid = ANY (ARRAY(SELECT ctid FROM %s WHERE namespace = $1 AND key <> $2 "
		"ORDER BY updated_at, key LIMIT $3 FOR UPDATE SKIP LOCKED))",
	3, {INT4OID, TEXTOID, INT8OID}},
	[STATEMENT_EVICT_SOONEST] = {
		"DELETE FROM %s WHERE ctid = ANY (ARRAY(SELECT ctid FROM %s WHERE namespace = $1 AND key <> $2 "
		"ORDER BY expires_at NULLS LAST, updated_at, key LIMIT $3 FOR UPDATE SKIP LOCKED))",
	3, {INT4OID, TEXTOID, INT8OID}}
};

/* Plans of the partitions of _recall. */
typedef struct RecallPlans
{
	int32		space;			/* hash key */
	SPIPlanPtr	write;
	SPIPlanPtr	forget;
} RecallPlans;

static SPIPlanPtr plans[STATEMENTS][2];
static HTAB *recall_plans = NULL;

static SPIPlanPtr plan_of(SwarmMemoryStatement statement, bool logged);
static SPIPlanPtr keep_plan(const char *sql, int nargs, const Oid *types);
static uint64 run_plan(SPIPlanPtr plan, Datum *values, const char *nulls);
static int64 write_by_statement(const SwarmSpace *space, const SwarmMemoryWrite *write);
static RecallPlans *plans_of(int32 space);

uint64
swarm_memory_run(SwarmMemoryStatement statement, bool logged, Datum *values,
				 const char *nulls)
{
	return run_plan(plan_of(statement, logged), values, nulls);
}

uint64
swarm_memory_run_now(SwarmMemoryStatement statement, bool logged, Datum *values)
{
	int			rc;

	/* a trigger's caller has not made its own rows visible yet */
	CommandCounterIncrement();
	rc = SPI_execute_snapshot(plan_of(statement, logged), values, NULL,
							  GetLatestSnapshot(), InvalidSnapshot, true, false, 0);
	if (rc < 0)
		elog(ERROR, "statement failed: %s", SPI_result_code_string(rc));
	return SPI_processed;
}

static SPIPlanPtr
plan_of(SwarmMemoryStatement statement, bool logged)
{
	if (plans[statement][logged] == NULL)
	{
		const char *table = logged ? "swarm._memory" : "swarm._memory_unlogged";

		plans[statement][logged] =
			keep_plan(psprintf(statements[statement].sql, table, table),
					  statements[statement].nargs, statements[statement].types);
	}
	return plans[statement][logged];
}

static SPIPlanPtr
keep_plan(const char *sql, int nargs, const Oid *types)
{
	SPIPlanPtr	plan = SPI_prepare(sql, nargs, unconstify(Oid *, types));

	if (plan == NULL || SPI_keepplan(plan) != 0)
		elog(ERROR, "could not prepare a statement: %s", SPI_result_code_string(SPI_result));
	return plan;
}

static uint64
run_plan(SPIPlanPtr plan, Datum *values, const char *nulls)
{
	int			rc = SPI_execute_plan(plan, values, nulls, false, 0);

	if (rc < 0)
		elog(ERROR, "statement failed: %s", SPI_result_code_string(rc));
	return SPI_processed;
}

/* ------------------------------------------------------------------------
 * Reading
 * ------------------------------------------------------------------------ */

void
swarm_memory_reader_open(SwarmMemoryReader *reader, const SwarmSpace *space)
{
	reader->table = NULL;
	reader->space = space->id;
	if (!space->logged && RecoveryInProgress())
		return;
	reader->table = table_open(swarm_memory_table(space->logged), AccessShareLock);
	reader->index = index_open(swarm_memory_index(space->logged), AccessShareLock);
	reader->slot = table_slot_create(reader->table, NULL);
	PushActiveSnapshot(GetTransactionSnapshot());
}

bool
swarm_memory_find(SwarmMemoryReader *reader, const text *key)
{
	ScanKeyData keys[2];
	IndexScanDesc scan;
	bool		found;

	if (reader->table == NULL)
		return false;
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(reader->space));
	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_TEXTEQ, PointerGetDatum(key));
	keys[1].sk_collation = C_COLLATION_OID;
	scan = swarm_index_beginscan(reader->table, reader->index, GetActiveSnapshot(), 2, 0);
	index_rescan(scan, keys, 2, NULL, 0);
	/* the slot has a pin of its own */
	found = index_getnext_slot(scan, ForwardScanDirection, reader->slot);
	index_endscan(scan);
	return found;
}

bool
swarm_memory_read(SwarmMemoryReader *reader, text *key, SwarmMemoryRow *row)
{
	TupleTableSlot *slot = reader->slot;
	bool		isnull;

	if (!swarm_memory_find(reader, key))
		return false;
	row->expires_at = DatumGetTimestampTz(slot_getattr(slot, MEMORY_EXPIRES_AT, &isnull));
	row->expires = !isnull;
	if (row->expires && row->expires_at <= swarm_now())
		return false;
	row->version = DatumGetInt64(slot_getattr(slot, MEMORY_VERSION, &isnull));
	row->created_at = DatumGetTimestampTz(slot_getattr(slot, MEMORY_CREATED_AT, &isnull));
	row->updated_at = DatumGetTimestampTz(slot_getattr(slot, MEMORY_UPDATED_AT, &isnull));
	row->tags = slot_getattr(slot, MEMORY_TAGS, &isnull);
	row->value = slot_getattr(slot, MEMORY_VALUE, &isnull);
	return true;
}

void
swarm_memory_reader_close(SwarmMemoryReader *reader)
{
	if (reader->table == NULL)
		return;
	PopActiveSnapshot();
	ExecDropSingleTupleTableSlot(reader->slot);
	index_close(reader->index, AccessShareLock);
	table_close(reader->table, AccessShareLock);
	reader->table = NULL;
}

/* ------------------------------------------------------------------------
 * Storing
 * ------------------------------------------------------------------------ */

void
swarm_memory_check_key(const text *key)
{
	if (VARSIZE_ANY_EXHDR(key) > SWARM_KEY_MAX_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("key must not be longer than %d bytes", SWARM_KEY_MAX_BYTES)));
}

bool
swarm_memory_expiry(const Interval *ttl, TimestampTz now, TimestampTz *expires_at)
{
	*expires_at = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
														  TimestampTzGetDatum(now),
														  IntervalPGetDatum(ttl)));
	if (*expires_at <= now)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("ttl must be greater than zero"),
				 errhint("Null stands for the default of the namespace.")));
	return !TIMESTAMP_IS_NOEND(*expires_at);
}

int64
swarm_memory_store_entry(SwarmSpace *space, Oid owner, const SwarmMemoryStore *what)
{
	bool		replace = what->has_expected && what->expected != 0;
	SwarmMemoryWrite write = {0};
	int64		version;

	PreventCommandIfReadOnly("memory_store()");
	swarm_memory_check_key(what->key);
	swarm_space_begin_write(space);
	write.key = what->key;
	write.value = what->value;
	write.tags = what->tags != (Datum) 0 ? what->tags : PointerGetDatum(construct_empty_array(TEXTOID));
	write.size = VARSIZE_ANY_EXHDR(what->key) + VARSIZE_ANY(DatumGetPointer(what->value));
	write.owner = owner;
	write.now = swarm_now();
	if (what->has_ttl)
		write.expires = swarm_memory_expiry(&what->ttl, write.now, &write.expires_at);
	else if (space->has_ttl)
		write.expires = swarm_memory_expiry(&space->default_ttl, write.now, &write.expires_at);
	if (what->has_ttl && what->keep_ttl)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("ttl and keep_ttl cannot both be given")));
	write.keep_ttl = what->keep_ttl;
	write.if_absent = what->if_absent || (what->has_expected && !replace);
	write.expected = replace ? what->expected : 0;
	/* a version that must be there is none that must be absent */
	if (replace && what->if_absent)
		return 0;

	if (!swarm_memory_store_direct(space, &write, &version))
		version = write_by_statement(space, &write);
	if (version != 0 && space->recall)
	{
		SwarmSpi	spi;

		swarm_spi_begin(&spi);
		swarm_memory_recall(space, what->key, what->value, what->embedding);
		swarm_spi_end(&spi);
	}
	return version;
}

/*
 * write_by_statement: the new version, or 0.
 */
static int64
write_by_statement(const SwarmSpace *space, const SwarmMemoryWrite *write)
{
	bool		replace = write->expected != 0;
	Datum		values[MAX_ARGS];
	char		nulls[MAX_ARGS + 1] = "         ";
	SwarmSpi	spi;
	int64		version = 0;

	values[0] = Int32GetDatum(space->id);
	values[1] = PointerGetDatum(write->key);
	values[2] = write->value;
	values[3] = write->tags;
	values[4] = Int32GetDatum(write->size);
	values[5] = TimestampTzGetDatum(write->expires_at);
	nulls[5] = write->expires ? ' ' : 'n';
	values[6] = TimestampTzGetDatum(write->now);
	values[7] = ObjectIdGetDatum(write->owner);
	if (!replace)
		values[8] = Int32GetDatum((write->if_absent ? 1 : 0) | (write->keep_ttl ? 2 : 0));
	else
	{
		values[8] = Int64GetDatum(write->expected);
		if (write->keep_ttl)
		{
			values[5] = TimestampTzGetDatum(DT_NOBEGIN);
			nulls[5] = ' ';
		}
	}
	swarm_spi_begin(&spi);
	if (swarm_memory_run(replace ? STATEMENT_REPLACE : STATEMENT_STORE, space->logged,
						 values, nulls) > 0)
		version = swarm_spi_int64(0, 1);
	swarm_spi_end(&spi);
	return version;
}

/* ------------------------------------------------------------------------
 * What entries are found by
 * ------------------------------------------------------------------------ */

void
swarm_memory_recall(const SwarmSpace *space, text *key, Datum value, Datum embedding)
{
	RecallPlans *p = plans_of(space->id);
	Datum		values[5];
	char		nulls[6] = "     ";

	if (p->write == NULL)
	{
		Oid			types[] = {INT4OID, TEXTOID, JSONBOID, FLOAT4ARRAYOID, INT4OID};

		p->write = keep_plan(psprintf("INSERT INTO swarm._recall_%d AS r (namespace, key, embedding, words) "
									  "SELECT $1, $2, coalesce($4, CASE WHEN $5 > 0 THEN swarm.embed(t, $5) END), to_tsvector('english'::regconfig, t) "
									  "FROM swarm._memory_text($2, $3) t "
									  "ON CONFLICT (key) DO UPDATE SET embedding = EXCLUDED.embedding, words = EXCLUDED.words "
									  "WHERE r.embedding IS DISTINCT FROM EXCLUDED.embedding "
									  "OR r.words IS DISTINCT FROM EXCLUDED.words",
									  space->id),
							 5, types);
	}
	values[0] = Int32GetDatum(space->id);
	values[1] = PointerGetDatum(key);
	values[2] = value;
	values[3] = embedding;
	nulls[3] = embedding != (Datum) 0 ? ' ' : 'n';
	values[4] = Int32GetDatum(space->embed ? space->dims : 0);
	run_plan(p->write, values, nulls);
}

void
swarm_memory_forget(const SwarmSpace *space, Datum key)
{
	RecallPlans *p = plans_of(space->id);

	if (p->forget == NULL)
	{
		Oid			types[] = {TEXTOID};

		p->forget = keep_plan(psprintf("DELETE FROM swarm._recall_%d WHERE key = $1", space->id),
							  1, types);
	}
	run_plan(p->forget, &key, NULL);
}

static RecallPlans *
plans_of(int32 space)
{
	RecallPlans *p;
	bool		found;

	if (recall_plans == NULL)
	{
		HASHCTL		ctl = {.keysize = sizeof(int32), .entrysize = sizeof(RecallPlans)};

		recall_plans = hash_create("pg_swarm recall plans", 16, &ctl, HASH_ELEM | HASH_BLOBS);
	}
	p = hash_search(recall_plans, &space, HASH_ENTER, &found);
	if (!found)
		p->write = p->forget = NULL;
	return p;
}
