/*
 * worker_sql.c
 *	  SQL functions that show processes and health.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "common/string.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/chore.h"
#include "base/clock.h"
#include "base/export.h"
#include "base/shmem.h"
#include "worker/worker_int.h"

#define PROCESS_COLUMNS 18

static const char *const slot_states[] = {"free", "starting", "idle", "running"};
static const char *const shard_states[] = {"free", "probing", "loading", "serving"};

static void put_process(ReturnSetInfo *rsinfo, const char *role, int pid, Oid database,
						const SwarmSlot *slot, int number, const char *state,
						TimestampTz since);
static void put_check(ReturnSetInfo *rsinfo, const char *name, bool ok,
					  const char *detail, const char *hint);
static void check_shard(ReturnSetInfo *rsinfo, const SwarmShard *shard);

/*
 * swarm._worker_processes(): every process of ours, of all databases.
 */
SWARM_FUNCTION(swarm_worker_processes);
Datum
swarm_worker_processes(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SwarmSlot  *slots;
	SwarmShard *shards;
	SwarmWorkerShared launcher;

	InitMaterializedSRF(fcinfo, 0);
	if (swarm_worker_shared == NULL)
		return (Datum) 0;
	slots = palloc(swarm_max_slots * sizeof(SwarmSlot));
	shards = palloc(swarm_max_databases * sizeof(SwarmShard));
	LWLockAcquire(swarm_job_lock, LW_SHARED);
	memcpy(slots, swarm_slot_at(0), swarm_max_slots * sizeof(SwarmSlot));
	memcpy(shards, swarm_shard_at(0), swarm_max_databases * sizeof(SwarmShard));
	memcpy(&launcher, swarm_worker_shared, sizeof(launcher));
	LWLockRelease(swarm_job_lock);

	if (launcher.launcher_pid != 0)
		put_process(rsinfo, "launcher", launcher.launcher_pid, InvalidOid, NULL, -1,
					"running", launcher.launcher_since);
	for (int i = 0; i < swarm_max_databases; i++)
	{
		if (shards[i].state != SWARM_SHARD_FREE && shards[i].scheduler_pid != 0)
			put_process(rsinfo, "scheduler", shards[i].scheduler_pid, shards[i].database,
						NULL, -1, shard_states[shards[i].state], shards[i].scheduler_since);
	}
	for (int i = 0; i < swarm_max_slots; i++)
	{
		if (slots[i].state != SWARM_SLOT_FREE)
			put_process(rsinfo, "runner", slots[i].pid, slots[i].database, &slots[i], i,
						slot_states[slots[i].state], slots[i].since);
	}
	return (Datum) 0;
}

static void
put_process(ReturnSetInfo *rsinfo, const char *role, int pid, Oid database,
			const SwarmSlot *slot, int number, const char *state, TimestampTz since)
{
	Datum		values[PROCESS_COLUMNS] = {0};
	bool		nulls[PROCESS_COLUMNS];

	memset(nulls, true, sizeof(nulls));
	values[0] = CStringGetTextDatum(role);
	values[1] = Int32GetDatum(pid);
	values[2] = ObjectIdGetDatum(database);
	values[5] = CStringGetTextDatum(state);
	values[6] = TimestampTzGetDatum(since);
	nulls[0] = nulls[5] = nulls[6] = false;
	nulls[1] = pid == 0;
	nulls[2] = !OidIsValid(database);
	if (slot != NULL)
	{
		values[3] = Int32GetDatum(number);
		values[4] = Int64GetDatum((int64) slot->generation);
		values[14] = Int64GetDatum(slot->finished);
		nulls[3] = nulls[4] = nulls[14] = false;
		if (slot->job != 0)
		{
			values[7] = Int64GetDatum(slot->job);
			values[8] = Int32GetDatum(slot->attempt);
			values[9] = Int32GetDatum(slot->kind);
			values[10] = ObjectIdGetDatum(slot->owner);
			values[11] = TimestampTzGetDatum(slot->started);
			values[12] = Float8GetDatum(slot->fraction);
			values[13] = CStringGetTextDatum(slot->message);
			for (int i = 7; i <= 13; i++)
				nulls[i] = false;
			nulls[12] = nulls[13] = !has_privs_of_role(GetUserId(), slot->owner);
			/* the encoding of another database may be another one */
			nulls[13] |= slot->message[0] == '\0' ||
				(database != MyDatabaseId && !pg_is_ascii(slot->message));
		}
		values[17] = ObjectIdGetDatum(slot->role);
		nulls[17] = !OidIsValid(slot->role);
		if (slot->chore != NULL)
		{
			values[15] = CStringGetTextDatum(swarm_chore_name(slot->chore_kind));
			values[16] = ObjectIdGetDatum(slot->chore_object);
			nulls[15] = nulls[16] = false;
		}
	}
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * swarm.health(): what could keep jobs from running, check by check.
 */
SWARM_FUNCTION(swarm_worker_health);
Datum
swarm_worker_health(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SwarmShard *copy = NULL;
	SwarmShard *shard;
	SwarmWorkerShared w;
	int			slots_used = 0;

	InitMaterializedSRF(fcinfo, 0);
	put_check(rsinfo, "preload", swarm_preloaded(),
			  swarm_preloaded() ? "the library is preloaded" :
			  "the library is not preloaded: nothing runs in the background",
			  "Add pg_swarm to shared_preload_libraries and restart the server.");
	if (!swarm_preloaded())
		return (Datum) 0;

	copy = palloc(sizeof(SwarmShard));
	LWLockAcquire(swarm_job_lock, LW_SHARED);
	shard = swarm_shard_find(MyDatabaseId);
	if (shard != NULL)
		*copy = *shard;
	memcpy(&w, swarm_worker_shared, sizeof(w));
	for (int i = 0; i < swarm_max_slots; i++)
		slots_used += swarm_slot_at(i)->state != SWARM_SLOT_FREE;
	LWLockRelease(swarm_job_lock);

	put_check(rsinfo, "primary", !RecoveryInProgress(),
			  RecoveryInProgress() ? "this server is a standby: nothing runs until it is promoted" :
			  "this server is a primary", NULL);
	put_check(rsinfo, "launcher", w.launcher_pid != 0,
			  w.launcher_pid != 0 ? "the launcher runs" : "the launcher is not running",
			  "It is restarted after a second; see the server log if it is not, and max_worker_processes.");
	put_check(rsinfo, "worker slots", !w.schedulers_exhausted && (shard == NULL || !copy->slots_exhausted),
			  psprintf("%d runners in all databases; max_worker_processes is %d, shared with parallel queries and others",
					   slots_used, max_worker_processes),
			  "Raise max_worker_processes.");
	put_check(rsinfo, "databases", w.unserved == 0,
			  w.unserved == 0 ? "all databases have been looked at" :
			  psprintf("%d databases could not be looked at", w.unserved),
			  "Raise pg_swarm.max_databases.");
	put_check(rsinfo, "database served", shard != NULL && copy->scheduler_pid != 0,
			  shard == NULL ? "this database is not served" :
			  psprintf("this database is %s", shard_states[copy->state]),
			  "See pg_swarm.databases and pg_swarm.max_databases, and the server log.");
	if (shard != NULL)
		check_shard(rsinfo, copy);
	put_check(rsinfo, "clock", swarm_now() - GetCurrentTimestamp() < USECS_PER_SEC,
			  swarm_now() - GetCurrentTimestamp() < USECS_PER_SEC ?
			  "the clock is the server's" : "the clock has been moved for a test",
			  "Call swarm._clock_advance(NULL).");
	return (Datum) 0;
}

static void
check_shard(ReturnSetInfo *rsinfo, const SwarmShard *shard)
{
	bool		in_memory = swarm_shard_has_ready(shard);

	put_check(rsinfo, "scheduler", shard->restarts <= 1,
			  shard->restarts <= 1 ? "the scheduler is stable" :
			  psprintf("the scheduler was restarted %d times in a row", shard->restarts),
			  "The server log tells why it ended.");
	if (shard->failed_starts > 1)
		put_check(rsinfo, "runners", false,
				  psprintf("%d runners in a row could not start", shard->failed_starts),
				  "The server log tells why.");
	else
		put_check(rsinfo, "runners", shard->runners > 0 || swarm_min_runners == 0 || shard->queued == 0,
				  psprintf("%d runners of at most %d", shard->runners, swarm_max_runners),
				  "See pg_swarm.max_runners and max_worker_processes.");
	put_check(rsinfo, "chores", shard->chores_failing == 0,
			  psprintf("background work on %d objects, failing on %d",
					   shard->nchores, shard->chores_failing),
			  "It is tried again after a minute; the server log tells why it failed.");
	put_check(rsinfo, "memory", in_memory,
			  in_memory ? "all ready jobs are in memory" :
			  "some jobs wait on disk until there is room in memory",
			  "Raise pg_swarm.job_slots if this lasts.");
	put_check(rsinfo, "jobs released", !shard->held,
			  shard->held ? "the database was copied or restored: its jobs are held" :
			  "jobs are not held",
			  "Call swarm.jobs_resume() if they shall run here.");
}

static void
put_check(ReturnSetInfo *rsinfo, const char *name, bool ok, const char *detail,
		  const char *hint)
{
	Datum		values[4];
	bool		nulls[4] = {0};

	values[0] = CStringGetTextDatum(name);
	values[1] = BoolGetDatum(ok);
	values[2] = CStringGetTextDatum(detail);
	nulls[3] = ok || hint == NULL;
	values[3] = nulls[3] ? (Datum) 0 : CStringGetTextDatum(hint);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}
