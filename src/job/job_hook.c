/*
 * job_hook.c
 *	  Hooks of users around jobs: job_enqueue, and job, which is one attempt
 *	  before it and the end of the job after it.
 *
 * The extension's own kinds (agents, uploads, queries ...) have none here:
 * those operations have events of their own.
 */
#include "postgres.h"

#include "miscadmin.h"

#include "job/job_int.h"

#define FIRST_USER_KIND	16		/* swarm._handler_id_seq */

static bool wanted(const char *event, SwarmHookPhase phase, const SwarmJobRow *row);
static void describe(SwarmHookData *data, const SwarmJobRow *row);

static bool
wanted(const char *event, SwarmHookPhase phase, const SwarmJobRow *row)
{
	return (row->kind == SWARM_KIND_SQL || row->kind >= FIRST_USER_KIND) &&
		swarm_hook_wanted(event, phase);
}

static void
describe(SwarmHookData *data, const SwarmJobRow *row)
{
	static const char *const priorities[] = {"low", "medium", "high", "critical"};

	swarm_hook_data(data);
	if (row->id != 0)
		swarm_hook_int64(data, "id", row->id);
	swarm_hook_text(data, "kind", swarm_job_kind_name(row->kind));
	swarm_hook_text(data, "queue", swarm_job_queue_name(row->queue));
	swarm_hook_text(data, "priority", priorities[row->priority]);
	swarm_hook_text(data, "unique_key", row->unique_key);
	swarm_hook_jsonb(data, "args", row->args);
	swarm_hook_jsonb(data, "tags", row->tags);
}

/*
 * swarm_job_enqueue_hooks: of a row about to be inserted, id 0, or inserted.
 */
void
swarm_job_enqueue_hooks(SwarmHookPhase phase, const SwarmJobRow *row)
{
	SwarmHookData data;

	if (!wanted("job_enqueue", phase, row))
		return;
	describe(&data, row);
	if (phase == SWARM_HOOK_BEFORE)
		swarm_hook_before("job_enqueue", GetUserId(), &data);
	else
		swarm_hook_after("job_enqueue", GetUserId(), &data);
}

/*
 * swarm_job_ask_hooks: before an attempt: why the job must not run, or NULL.
 */
char *
swarm_job_ask_hooks(const SwarmJobRow *row)
{
	SwarmHookData data;
	char	   *veto;

	if (!wanted("job", SWARM_HOOK_BEFORE, row))
		return NULL;
	describe(&data, row);
	swarm_hook_int64(&data, "attempt", row->attempts + 1);
	veto = swarm_hook_ask("job", row->owner, &data);
	return veto ? psprintf("the job was refused: %s", veto) : NULL;
}

/*
 * swarm_job_end_hooks: the job has ended so, in this transaction.
 */
void
swarm_job_end_hooks(const SwarmJobRow *row, const SwarmJobEnd *end)
{
	SwarmHookData data;

	if (!wanted("job", SWARM_HOOK_AFTER, row))
		return;
	describe(&data, row);
	swarm_hook_int64(&data, "attempt", end->attempts);
	swarm_hook_text(&data, "state", swarm_job_state_name(end->state));
	swarm_hook_jsonb(&data, "result", end->result);
	swarm_hook_text(&data, "error", end->error);
	swarm_hook_after("job", row->owner, &data);
}
