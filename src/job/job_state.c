/*
 * job_state.c
 *	  The states of a job and every way from one to another.
 *
 * The table is the definition: swarm._job_transitions() prints it, the page
 * docs/reference/job.md shows it, and test/sql/job_state.sql drives a real
 * job along every edge.
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/guc.h"

#include "base/compat.h"
#include "base/export.h"
#include "job/job_int.h"

static int	backoff_base_ms = 1000;
static int	backoff_max_ms = 3600 * 1000;

const SwarmJobTransition swarm_job_transitions[] = {
	{SWARM_JOB_SCHEDULED, SWARM_EVENT_DUE, SWARM_JOB_READY,
	"run_at has come"},
	{SWARM_JOB_SCHEDULED, SWARM_EVENT_CANCEL, SWARM_JOB_CANCELLED,
	"job_cancel()"},
	{SWARM_JOB_SCHEDULED, SWARM_EVENT_RETRY, SWARM_JOB_READY,
	"job_retry() does not wait for run_at"},
	{SWARM_JOB_BLOCKED, SWARM_EVENT_RELEASE, SWARM_JOB_READY,
	"the last parent completed"},
	{SWARM_JOB_BLOCKED, SWARM_EVENT_CANCEL, SWARM_JOB_CANCELLED,
	"job_cancel(), or a parent died and its queue says so"},
	{SWARM_JOB_READY, SWARM_EVENT_CLAIM, SWARM_JOB_RUNNING,
	"a runner or job_claim() took it"},
	{SWARM_JOB_READY, SWARM_EVENT_CANCEL, SWARM_JOB_CANCELLED,
	"job_cancel()"},
	{SWARM_JOB_RUNNING, SWARM_EVENT_COMPLETE, SWARM_JOB_COMPLETED,
	"the handler returned and its transaction committed"},
	{SWARM_JOB_RUNNING, SWARM_EVENT_FAIL, SWARM_JOB_FAILED,
	"error, timeout, lost worker or lease, with attempts left"},
	{SWARM_JOB_RUNNING, SWARM_EVENT_EXHAUST, SWARM_JOB_DEAD,
	"the same on the last attempt, or job_fail(retry => false)"},
	{SWARM_JOB_RUNNING, SWARM_EVENT_REQUEUE, SWARM_JOB_READY,
	"server shutdown, deadlock or serialization failure: not counted"},
	{SWARM_JOB_RUNNING, SWARM_EVENT_CANCEL, SWARM_JOB_CANCELLED,
	"job_cancel() interrupted the handler"},
	{SWARM_JOB_FAILED, SWARM_EVENT_DUE, SWARM_JOB_READY,
	"the backoff is over"},
	{SWARM_JOB_FAILED, SWARM_EVENT_RETRY, SWARM_JOB_READY,
	"job_retry() does not wait for the backoff"},
	{SWARM_JOB_FAILED, SWARM_EVENT_CANCEL, SWARM_JOB_CANCELLED,
	"job_cancel()"},
	{SWARM_JOB_DEAD, SWARM_EVENT_RETRY, SWARM_JOB_READY,
	"job_retry(): same id, attempts start again"},
	{SWARM_JOB_CANCELLED, SWARM_EVENT_RETRY, SWARM_JOB_READY,
	"job_retry(): same id, attempts start again"}
};

const int	swarm_job_ntransitions = lengthof(swarm_job_transitions);

static const char *const state_names[SWARM_JOB_STATES] = {
	"scheduled", "blocked", "ready", "running",
	"completed", "failed", "dead", "cancelled"
};

static const char *const event_names[] = {
	"due", "release", "claim", "complete", "fail", "exhaust", "requeue",
	"cancel", "retry"
};

void
swarm_job_state_init(void)
{
	DefineCustomIntVariable("pg_swarm.job_backoff",
							"Wait before a job's second attempt; doubles with every further one.",
							NULL, &backoff_base_ms, 1000, 1, INT_MAX / 2,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_swarm.job_backoff_max",
							"Longest wait between two attempts of a job.",
							NULL, &backoff_max_ms, 3600 * 1000, 1, INT_MAX / 2,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
}

const char *
swarm_job_state_name(SwarmJobState state)
{
	return state_names[state];
}

const char *
swarm_job_event_name(SwarmJobEvent event)
{
	return event_names[event];
}

bool
swarm_job_state_is_terminal(SwarmJobState state)
{
	return state == SWARM_JOB_COMPLETED || state == SWARM_JOB_DEAD ||
		state == SWARM_JOB_CANCELLED;
}

SwarmJobState
swarm_job_state_next(SwarmJobState from, SwarmJobEvent event, int64 id)
{
	for (int i = 0; i < swarm_job_ntransitions; i++)
	{
		if (swarm_job_transitions[i].from == from &&
			swarm_job_transitions[i].event == event)
			return swarm_job_transitions[i].to;
	}
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("cannot %s job " INT64_FORMAT " in state \"%s\"",
					event_names[event], id, state_names[from])));
}

int64
swarm_job_backoff_us(int attempts)
{
	double		ms = backoff_base_ms;

	for (int i = 1; i < attempts && ms < backoff_max_ms; i++)
		ms *= 2;
	ms = Min(ms, (double) backoff_max_ms);
	return (int64) (ms * 1000 * (0.5 + pg_prng_double(&pg_global_prng_state)));
}

/*
 * swarm._job_transitions() returns setof (from_state, event, to_state, why)
 */
SWARM_FUNCTION(swarm_job_transition_list);
Datum
swarm_job_transition_list(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < swarm_job_ntransitions; i++)
	{
		const SwarmJobTransition *t = &swarm_job_transitions[i];
		Datum		values[4];
		bool		nulls[4] = {0};

		values[0] = CStringGetTextDatum(state_names[t->from]);
		values[1] = CStringGetTextDatum(event_names[t->event]);
		values[2] = CStringGetTextDatum(state_names[t->to]);
		values[3] = CStringGetTextDatum(t->why);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
