/*
 * job_view_sql.c
 *	  What is only in shared memory, for the views.
 */
#include "postgres.h"

#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "base/export.h"
#include "job/job_int.h"

typedef struct RunningJob
{
	int64		id;
	Oid			owner;
	int			attempt;
	TimestampTz started;
	int			worker;			/* slot, or -1 for an outside worker */
	double		fraction;
	char		message[SWARM_MESSAGE_SIZE];
} RunningJob;

static int	collect_running(RunningJob **list);

/*
 * swarm._job_running() returns setof (id, attempt, started_at, worker,
 * fraction, message): of this database, as far as the caller may see.
 */
SWARM_FUNCTION(swarm_job_running);
Datum
swarm_job_running(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	RunningJob *list = NULL;
	int			n = 0;

	InitMaterializedSRF(fcinfo, 0);
	if (swarm_job_shared != NULL)
		n = collect_running(&list);
	for (int i = 0; i < n; i++)
	{
		Datum		values[6];
		bool		nulls[6] = {0};

		if (!has_privs_of_role(GetUserId(), list[i].owner))
			continue;
		values[0] = Int64GetDatum(list[i].id);
		values[1] = Int32GetDatum(list[i].attempt);
		values[2] = TimestampTzGetDatum(list[i].started);
		nulls[3] = list[i].worker < 0;
		values[3] = Int32GetDatum(list[i].worker);
		values[4] = Float8GetDatum(list[i].fraction);
		nulls[5] = list[i].message[0] == '\0';
		values[5] = CStringGetTextDatum(list[i].message);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

static int
collect_running(RunningJob **list)
{
	SwarmShard *shard;
	HASH_SEQ_STATUS seq;
	SwarmEntry *e;
	int			size;
	int			n = 0;

	/* allocate before locking; leases beyond this many are not shown */
	size = swarm_max_slots + 1000;
	*list = palloc0(size * sizeof(RunningJob));

	LWLockAcquire(swarm_job_lock, LW_SHARED);
	shard = swarm_shard_find(MyDatabaseId);
	for (int i = 0; i < swarm_max_slots; i++)
	{
		SwarmSlot  *slot = swarm_slot_at(i);
		RunningJob *r = &(*list)[n];

		if (slot->state != SWARM_SLOT_RUNNING || slot->database != MyDatabaseId ||
			slot->job == 0)
			continue;
		r->id = slot->job;
		r->owner = slot->owner;
		r->attempt = slot->attempt;
		r->started = slot->started;
		r->worker = i;
		r->fraction = slot->fraction;
		strlcpy(r->message, slot->message, SWARM_MESSAGE_SIZE);
		n++;
	}
	if (shard != NULL && shard->leased > 0)
	{
		hash_seq_init(&seq, swarm_job_entries);
		while ((e = hash_seq_search(&seq)) != NULL)
		{
			if (e->key.database != MyDatabaseId || e->state != ENTRY_LEASED || n >= size)
				continue;
			(*list)[n].id = e->job.id;
			(*list)[n].owner = e->job.owner;
			(*list)[n].attempt = e->job.attempts + 1;
			(*list)[n].started = e->since;
			(*list)[n].worker = -1;
			(*list)[n].fraction = e->fraction;
			n++;
		}
	}
	LWLockRelease(swarm_job_lock);
	return n;
}

/*
 * swarm._job_queues() returns setof (queue, ready, running, oldest, started,
 * finished, in_memory, complete, rate): queues of this database that have had jobs.
 */
SWARM_FUNCTION(swarm_job_queues);
Datum
swarm_job_queues(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SwarmQueueStatus *list;
	int			n;
	bool		complete;

	InitMaterializedSRF(fcinfo, 0);
	if (swarm_job_shared == NULL)
		return (Datum) 0;
	n = swarm_queue_status(MyDatabaseId, &list, &complete);
	for (int i = 0; i < n; i++)
	{
		Datum		values[9];
		bool		nulls[9] = {0};

		values[0] = Int32GetDatum(list[i].id);
		values[1] = Int32GetDatum(list[i].ready);
		values[2] = Int32GetDatum(list[i].running);
		nulls[3] = list[i].oldest == 0;
		values[3] = TimestampTzGetDatum(list[i].oldest);
		values[4] = Int64GetDatum(list[i].started);
		values[5] = Int64GetDatum(list[i].finished);
		values[6] = Int32GetDatum(list[i].depth);
		values[7] = BoolGetDatum(complete);
		values[8] = Float8GetDatum(list[i].rate);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
