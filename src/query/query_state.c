/*
 * query_state.c
 *	  The states of a query, every way from one to another, and what may be
 *	  done to it in each.
 *
 * The tables are the definition: swarm._query_transitions() prints them, the
 * page docs/reference/queries.md shows them, and test/sql/query_state.sql
 * drives a query along every edge and is refused everything else.
 */
#include "postgres.h"

#include "funcapi.h"
#include "utils/builtins.h"

#include "base/compat.h"
#include "base/export.h"
#include "query/query_int.h"

static const SwarmQueryTransition transitions[] = {
	{SWARM_QUERY_INIT, SWARM_QUERY_START, SWARM_QUERY_RUNNING,
	"a runner begins, or the session has registered"},
	{SWARM_QUERY_INIT, SWARM_QUERY_FAIL, SWARM_QUERY_ERROR,
	"its job ended without running it"},
	{SWARM_QUERY_INIT, SWARM_QUERY_TERMINATE, SWARM_QUERY_TERMINATED,
	"query_terminate(), or its job was cancelled"},
	{SWARM_QUERY_RUNNING, SWARM_QUERY_PAUSE, SWARM_QUERY_PAUSED,
	"it has reached a point where it can be held"},
	{SWARM_QUERY_RUNNING, SWARM_QUERY_FINISH, SWARM_QUERY_COMPLETE,
	"the statement or conversation is done, the session has ended"},
	{SWARM_QUERY_RUNNING, SWARM_QUERY_FAIL, SWARM_QUERY_ERROR,
	"an error, or its process was lost"},
	{SWARM_QUERY_RUNNING, SWARM_QUERY_TERMINATE, SWARM_QUERY_TERMINATED,
	"query_terminate(), or its job was cancelled"},
	{SWARM_QUERY_PAUSED, SWARM_QUERY_RESUME, SWARM_QUERY_RUNNING,
	"query_resume(), or the pause lasted pg_swarm.query_max_pause"},
	{SWARM_QUERY_PAUSED, SWARM_QUERY_FAIL, SWARM_QUERY_ERROR,
	"it was cancelled, or its process was lost"},
	{SWARM_QUERY_PAUSED, SWARM_QUERY_TERMINATE, SWARM_QUERY_TERMINATED,
	"query_terminate(), or the longest pause if so configured"}
};

#define IN(state)	(1 << SWARM_QUERY_##state)

/* Actions that change no state, and in which states they may be done. */
static const struct
{
	SwarmQueryEvent action;
	int			states;
}			actions[] = {
	{SWARM_QUERY_COMMAND, IN(PAUSED)},
	{SWARM_QUERY_MODE, IN(INIT) | IN(RUNNING) | IN(PAUSED)},
	{SWARM_QUERY_MODEL, IN(INIT) | IN(RUNNING) | IN(PAUSED)},
	{SWARM_QUERY_OPTIMIZE, IN(INIT) | IN(RUNNING) | IN(PAUSED)},
	{SWARM_QUERY_APPROVE, IN(RUNNING) | IN(PAUSED)}
};

static const char *const state_names[SWARM_QUERY_STATES] = {
	"init", "running", "paused", "complete", "terminated", "error"
};

static const char *const event_names[SWARM_QUERY_ACTIONS] = {
	"start", "pause", "resume", "complete", "fail", "terminate",
	"execute_command", "change_permissions", "change_model", "optimize", "approve"
};

const char *
swarm_query_state_name(SwarmQueryState state)
{
	return state_names[state];
}

const char *
swarm_query_event_name(SwarmQueryEvent event)
{
	return event_names[event];
}

SwarmQueryState
swarm_query_state_parse(const char *name)
{
	for (int i = 0; i < SWARM_QUERY_STATES; i++)
	{
		if (strcmp(name, state_names[i]) == 0)
			return i;
	}
	elog(ERROR, "unknown query state \"%s\"", name);
}

bool
swarm_query_is_final(SwarmQueryState state)
{
	return state >= SWARM_QUERY_COMPLETE;
}

bool
swarm_query_next(SwarmQueryState from, SwarmQueryEvent event, SwarmQueryState *to)
{
	for (int i = 0; i < lengthof(transitions); i++)
	{
		if (transitions[i].from == from && transitions[i].event == event)
		{
			*to = transitions[i].to;
			return true;
		}
	}
	for (int i = 0; i < lengthof(actions); i++)
	{
		if (actions[i].action == event && (actions[i].states & (1 << from)) != 0)
		{
			*to = from;
			return true;
		}
	}
	return false;
}

SwarmQueryState
swarm_query_require(SwarmQueryState from, SwarmQueryEvent event, int64 query)
{
	SwarmQueryState to;

	if (!swarm_query_next(from, event, &to))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("cannot %s query " INT64_FORMAT " in state \"%s\"",
						event == SWARM_QUERY_COMMAND ? "execute a command in" :
						event == SWARM_QUERY_MODE ? "change the permissions of" :
						event == SWARM_QUERY_MODEL ? "change the model of" :
						event_names[event], query, state_names[from]),
				 event == SWARM_QUERY_COMMAND && !swarm_query_is_final(from) ?
				 errhint("Pause it with swarm.query_pause().") : 0));
	return to;
}

/*
 * swarm._query_transitions() returns setof (from_state, event, to_state, why);
 * an action that changes no state has the same state twice, and no why.
 */
SWARM_FUNCTION(swarm_query_transition_list);
Datum
swarm_query_transition_list(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int from = 0; from < SWARM_QUERY_STATES; from++)
	{
		for (int event = 0; event < SWARM_QUERY_ACTIONS; event++)
		{
			SwarmQueryState to;
			const char *why = NULL;
			Datum		values[4];
			bool		nulls[4] = {0};

			if (!swarm_query_next(from, event, &to))
				continue;
			for (int i = 0; i < lengthof(transitions); i++)
			{
				if (transitions[i].from == from && transitions[i].event == event)
					why = transitions[i].why;
			}
			values[0] = CStringGetTextDatum(state_names[from]);
			values[1] = CStringGetTextDatum(event_names[event]);
			values[2] = CStringGetTextDatum(state_names[to]);
			nulls[3] = why == NULL;
			values[3] = why ? CStringGetTextDatum(why) : (Datum) 0;
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		}
	}
	return (Datum) 0;
}
