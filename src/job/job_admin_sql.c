/*
 * job_admin_sql.c
 *	  SQL functions that define queues and kinds of jobs.
 *
 * They check and write the table's row; the statement triggers on _queue and
 * _handler tell the scheduler at commit, and until it has read the new
 * settings nothing is claimed.
 */
#include "postgres.h"

#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "base/compat.h"
#include "base/doorbell.h"
#include "base/export.h"
#include "base/spi.h"
#include "job/job_handler.h"
#include "job/job_int.h"


static char *checked_name(text *name, const char *what);
static char *checked_handler(Oid proc);
static void set_paused(text *name, bool paused);
static Oid	owner_of(const char *table, const char *column, const char *name);
static void check_owner(Oid owner, const char *what, const char *name);
static void refuse_builtin(const char *kind);
static void refuse_live_jobs(const char *column, int32 id, const char *what, const char *name);
static void hold_jobs(void);
static void ring_scan_all(void *item);
static void undo_config(void *item);
static void ring_config(void *item);
static void ring_rebuild(void *item);

/* ------------------------------------------------------------------------
 * Kinds
 * ------------------------------------------------------------------------ */

/*
 * swarm.handler_register(kind, handler, max_running, rate) returns void
 */
SWARM_FUNCTION(swarm_handler_register);
Datum
swarm_handler_register(PG_FUNCTION_ARGS)
{
	SwarmSpi	spi;
	Oid			types[] = {TEXTOID, OIDOID, TEXTOID, INT4OID, INTERVALOID};
	Datum		values[5];
	char		nulls[5] = {' ', ' ', ' ', ' ', ' '};
	char	   *kind;
	Oid			owner;

	PreventCommandIfReadOnly("handler_register()");
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("kind must not be null")));
	kind = checked_name(PG_GETARG_TEXT_PP(0), "kind");
	refuse_builtin(kind);
	if (!PG_ARGISNULL(2) && PG_GETARG_INT32(2) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_running must be at least 1, or null for no limit")));
	if (!PG_ARGISNULL(3))
	{
		int64		us = swarm_interval_us(PG_GETARG_INTERVAL_P(3));

		if (us <= 0 || us == SWARM_INTERVAL_MAX)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("rate must be greater than zero and finite, or null for no limit")));
	}

	values[0] = CStringGetTextDatum(kind);
	values[1] = ObjectIdGetDatum(GetUserId());
	values[2] = PG_ARGISNULL(1) ? (Datum) 0 : CStringGetTextDatum(checked_handler(PG_GETARG_OID(1)));
	values[3] = PG_GETARG_DATUM(2);
	values[4] = PG_GETARG_DATUM(3);
	for (int i = 1; i < 4; i++)
		nulls[i + 1] = PG_ARGISNULL(i) ? 'n' : ' ';

	owner = owner_of("_handler", "kind", kind);
	if (OidIsValid(owner))
		check_owner(owner, "kind", kind);
	swarm_spi_begin(&spi);
	swarm_spi_execute("INSERT INTO swarm._handler (kind, owner, handler, max_running, rate) "
					  "VALUES ($1, $2::regrole, $3, $4, $5) ON CONFLICT (kind) DO UPDATE "
					  "SET handler = EXCLUDED.handler, max_running = EXCLUDED.max_running, "
					  "rate = EXCLUDED.rate",
					  5, types, values, nulls);
	swarm_spi_end(&spi);
	PG_RETURN_VOID();
}

/*
 * checked_handler: the qualified name of a function f(swarm.job) that returns
 * jsonb or nothing, or of a procedure; error for anything else.
 */
static char *
checked_handler(Oid proc)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(proc));
	Form_pg_proc form;
	char	   *name;
	Oid			found;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function with OID %u does not exist", proc)));
	form = (Form_pg_proc) GETSTRUCT(tuple);
	name = quote_qualified_identifier(get_namespace_name(form->pronamespace),
									  NameStr(form->proname));
	found = swarm_handler_lookup(list_make2(makeString(get_namespace_name(form->pronamespace)),
											makeString(pstrdup(NameStr(form->proname)))));
	if (found != proc || form->proretset ||
		(form->prokind == PROKIND_FUNCTION &&
		 form->prorettype != JSONBOID && form->prorettype != VOIDOID) ||
		(form->prokind != PROKIND_FUNCTION && form->prokind != PROKIND_PROCEDURE))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("%s cannot be a job handler", name),
				 errhint("A handler is a function (job swarm.job) returning jsonb or void, or a procedure (job swarm.job).")));
	ReleaseSysCache(tuple);
	if (swarm_proc_aclcheck(proc, GetUserId(), ACL_EXECUTE) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FUNCTION, name);
	return name;
}

/*
 * refuse_builtin: error 42939 for a kind that comes with the extension: its
 * jobs would be run by nobody, and no dump would tell.
 */
static void
refuse_builtin(const char *kind)
{
	bool		external;
	int32		id = swarm_job_find_kind(kind, &external);

	if (id > 0 && id < SWARM_FIRST_KIND)
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME), errmsg("kind \"%s\" is built in", kind)));
}

/*
 * swarm.handler_drop(kind) returns void
 */
SWARM_FUNCTION(swarm_handler_drop);
Datum
swarm_handler_drop(PG_FUNCTION_ARGS)
{
	char	   *kind = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Oid			owner = owner_of("_handler", "kind", kind);
	SwarmSpi	spi;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(kind)};
	bool		external;

	PreventCommandIfReadOnly("handler_drop()");
	refuse_builtin(kind);
	if (!OidIsValid(owner))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("job kind \"%s\" does not exist", kind)));
	check_owner(owner, "kind", kind);
	refuse_live_jobs("kind", swarm_job_find_kind(kind, &external), "kind", kind);
	swarm_spi_begin(&spi);
	swarm_spi_execute("DELETE FROM swarm._handler WHERE kind = $1", 1, types, values, NULL);
	swarm_spi_end(&spi);
	PG_RETURN_VOID();
}

/* ------------------------------------------------------------------------
 * Queues
 * ------------------------------------------------------------------------ */

/*
 * swarm.queue_create(name, max_running, rate_limit, rate_period, notify,
 * batch, dependency_failure, group_commit) returns void
 */
SWARM_FUNCTION(swarm_queue_create);
Datum
swarm_queue_create(PG_FUNCTION_ARGS)
{
	SwarmSpi	spi;
	Oid			types[] = {TEXTOID, OIDOID, INT4OID, INT4OID, INTERVALOID,
	BOOLOID, INT4OID, TEXTOID, BOOLOID};
	Datum		values[9];
	char		nulls[9] = {' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' '};
	char	   *name;
	char	   *policy;
	Oid			owner;
	Interval   *period;

	PreventCommandIfReadOnly("queue_create()");
	for (int i = 0; i < 8; i++)
	{
		if (PG_ARGISNULL(i) && i != 1 && i != 2)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("only max_running and rate_limit of a queue may be null")));
	}
	name = checked_name(PG_GETARG_TEXT_PP(0), "queue");
	policy = text_to_cstring(PG_GETARG_TEXT_PP(6));
	period = PG_GETARG_INTERVAL_P(3);
	if ((!PG_ARGISNULL(1) && PG_GETARG_INT32(1) < 1) ||
		(!PG_ARGISNULL(2) && PG_GETARG_INT32(2) < 1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_running and rate_limit must be at least 1, or null for no limit")));
	if (swarm_interval_us(period) < 1000 || swarm_interval_us(period) == SWARM_INTERVAL_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("rate_period must be at least one millisecond, and finite")));
	if (PG_GETARG_INT32(5) < 1 || PG_GETARG_INT32(5) > SWARM_BATCH_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("batch must be between 1 and %d", SWARM_BATCH_MAX)));
	if (strcmp(policy, "cancel") != 0 && strcmp(policy, "run") != 0 && strcmp(policy, "wait") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid dependency_failure \"%s\"", policy),
				 errhint("It is cancel, run or wait.")));

	owner = owner_of("_queue", "name", name);
	if (OidIsValid(owner))
		check_owner(owner, "queue", name);
	else if (strcmp(name, "default") == 0 && !superuser())
		check_owner(InvalidOid, "queue", name);
	values[0] = CStringGetTextDatum(name);
	values[1] = ObjectIdGetDatum(GetUserId());
	for (int i = 1; i < 8; i++)
	{
		values[i + 1] = PG_GETARG_DATUM(i);
		nulls[i + 1] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	swarm_spi_begin(&spi);
	swarm_spi_execute("INSERT INTO swarm._queue (id, name, owner, max_running, rate_limit, "
					  "rate_period, notify, batch, dependency_failure, group_commit) "
					  "VALUES (CASE WHEN $1 = 'default' THEN 1 ELSE nextval('swarm._queue_id_seq') END, "
					  "$1, $2::regrole, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (name) DO UPDATE SET "
					  "max_running = EXCLUDED.max_running, rate_limit = EXCLUDED.rate_limit, "
					  "rate_period = EXCLUDED.rate_period, notify = EXCLUDED.notify, "
					  "batch = EXCLUDED.batch, dependency_failure = EXCLUDED.dependency_failure, "
					  "group_commit = EXCLUDED.group_commit",
					  9, types, values, nulls);
	swarm_spi_end(&spi);
	PG_RETURN_VOID();
}

/*
 * swarm.queue_pause(name), swarm.queue_resume(name) return void
 */
SWARM_FUNCTION(swarm_queue_pause);
Datum
swarm_queue_pause(PG_FUNCTION_ARGS)
{
	set_paused(PG_GETARG_TEXT_PP(0), true);
	PG_RETURN_VOID();
}

SWARM_FUNCTION(swarm_queue_resume);
Datum
swarm_queue_resume(PG_FUNCTION_ARGS)
{
	set_paused(PG_GETARG_TEXT_PP(0), false);
	PG_RETURN_VOID();
}

static void
set_paused(text *name, bool paused)
{
	char	   *queue = text_to_cstring(name);
	Oid			owner = owner_of("_queue", "name", queue);
	SwarmSpi	spi;
	Oid			types[] = {TEXTOID, BOOLOID, OIDOID};
	Datum		values[] = {PointerGetDatum(name), BoolGetDatum(paused),
	ObjectIdGetDatum(GetUserId())};

	PreventCommandIfReadOnly(paused ? "queue_pause()" : "queue_resume()");
	if (!OidIsValid(owner) && strcmp(queue, "default") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("queue \"%s\" does not exist", queue)));
	check_owner(owner, "queue", queue);
	swarm_spi_begin(&spi);
	if (!OidIsValid(owner))
		swarm_spi_execute("INSERT INTO swarm._queue (id, name, owner, paused) "
						  "VALUES (1, $1, $3::regrole, $2) ON CONFLICT (name) DO UPDATE "
						  "SET paused = EXCLUDED.paused",
						  3, types, values, NULL);
	else
		swarm_spi_execute("UPDATE swarm._queue SET paused = $2 WHERE name = $1",
						  2, types, values, NULL);
	swarm_spi_end(&spi);
}

/*
 * swarm.queue_drop(name) returns void
 */
SWARM_FUNCTION(swarm_queue_drop);
Datum
swarm_queue_drop(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Oid			owner = owner_of("_queue", "name", name);
	SwarmSpi	spi;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};

	PreventCommandIfReadOnly("queue_drop()");
	if (strcmp(name, "default") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("queue \"default\" cannot be dropped")));
	if (!OidIsValid(owner))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("queue \"%s\" does not exist", name)));
	check_owner(owner, "queue", name);
	refuse_live_jobs("queue", swarm_job_find_queue(name), "queue", name);
	swarm_spi_begin(&spi);
	swarm_spi_execute("DELETE FROM swarm._queue WHERE name = $1", 1, types, values, NULL);
	swarm_spi_end(&spi);
	PG_RETURN_VOID();
}

/* ------------------------------------------------------------------------
 * Checks
 * ------------------------------------------------------------------------ */

static char *
checked_name(text *name, const char *what)
{
	char	   *s = text_to_cstring(name);

	if (s[0] == '\0' || strlen(s) > SWARM_NAME_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_NAME),
				 errmsg("the name of a %s must have 1 to %d bytes", what, SWARM_NAME_MAX)));
	return s;
}

/* owner_of: the owner of a queue or kind, or InvalidOid if it has no row. */
static Oid
owner_of(const char *table, const char *column, const char *name)
{
	SwarmSpi	spi;
	Oid			types[] = {TEXTOID};
	Datum		values[] = {CStringGetTextDatum(name)};
	Oid			owner = InvalidOid;
	bool		isnull;

	swarm_spi_begin(&spi);
	if (swarm_spi_query(psprintf("SELECT owner::oid FROM swarm.%s WHERE %s = $1", table, column),
						1, types, values, NULL) > 0)
		owner = DatumGetObjectId(swarm_spi_column(0, 1, &isnull));
	swarm_spi_end(&spi);
	return owner;
}

/* check_owner: InvalidOid stands for the superusers. */
static void
check_owner(Oid owner, const char *what, const char *name)
{
	if (superuser())
		return;
	if (!OidIsValid(owner) || !has_privs_of_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of %s \"%s\"", what, name)));
}

/*
 * refuse_live_jobs: also keeps new ones out until the end of the transaction.
 */
static void
refuse_live_jobs(const char *column, int32 id, const char *what, const char *name)
{
	SwarmSpi	spi;
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(id)};
	uint64		n;

	LockRelationOid(swarm_job_relation("_job"), ShareRowExclusiveLock);
	swarm_spi_begin(&spi);
	n = swarm_spi_query(psprintf("SELECT FROM swarm._job WHERE %s = $1 LIMIT 1", column),
						1, types, values, NULL);
	swarm_spi_end(&spi);
	if (n > 0)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("cannot drop %s \"%s\" because it has live jobs", what, name),
				 errhint("Wait for them, or cancel them with swarm.job_cancel().")));
}

/* ------------------------------------------------------------------------
 * Changes of the tables
 * ------------------------------------------------------------------------ */

/*
 * Statement trigger on _job, _queue and _handler.
 */
SWARM_FUNCTION(swarm_job_table_changed);
Datum
swarm_job_table_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	const char *table;
	Oid			database = MyDatabaseId;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("function was not called by trigger manager")));
	table = RelationGetRelationName(trigger->tg_relation);
	if (strcmp(table, "_job") == 0)
	{
		if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
			hold_jobs();
		swarm_doorbell_add(ring_scan_all, swarm_job_undo_told, &database, sizeof(database));
	}
	else
	{
		swarm_job_names_changed(1);
		swarm_doorbell_add(strcmp(table, "_handler") == 0 ? ring_rebuild : ring_config,
						   undo_config, &database, sizeof(database));
	}
	return PointerGetDatum(NULL);
}

/*
 * hold_jobs: rows came from a dump: in another place and time, before the data
 * they work on, perhaps into a copy for tests.  They run when somebody says so.
 */
static void
hold_jobs(void)
{
	SwarmSpi	spi;

	swarm_spi_begin(&spi);
	swarm_spi_execute("UPDATE swarm._instance SET held = true "
					  "WHERE NOT held AND EXISTS (SELECT FROM swarm._job)",
					  0, NULL, NULL, NULL);
	swarm_spi_end(&spi);
}

static void
ring_scan_all(void *item)
{
	swarm_queue_scan_from(*(Oid *) item, 0);
}

static void
undo_config(void *item)
{
	swarm_job_names_changed(-1);
	swarm_job_undo_told(item);
}

static void
ring_config(void *item)
{
	SwarmShard *shard;

	swarm_job_names_changed(-1);
	if (swarm_job_shared == NULL)
		return;
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard = swarm_shard_find(*(Oid *) item);
	if (shard != NULL)
	{
		swarm_shard_config_changed(shard);
	}
	LWLockRelease(swarm_job_lock);
}

/*
 * swarm._job_history_maintain() returns void
 */
SWARM_FUNCTION(swarm__job_history_maintain);
Datum
swarm__job_history_maintain(PG_FUNCTION_ARGS)
{
	swarm_job_history_prepare();
	swarm_job_history_drop_old();
	PG_RETURN_VOID();
}

/* A kind may have got a handler, or lost it: place its jobs anew. */
static void
ring_rebuild(void *item)
{
	SwarmShard *shard;

	swarm_job_names_changed(-1);
	if (swarm_job_shared == NULL)
		return;
	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	shard = swarm_shard_find(*(Oid *) item);
	if (shard != NULL)
	{
		shard->rebuild = true;
		swarm_shard_config_changed(shard);
	}
	LWLockRelease(swarm_job_lock);
}
