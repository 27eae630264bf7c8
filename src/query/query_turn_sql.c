/*
 * query_turn_sql.c
 *	  What the engine of conversations asks between two turns: may the next one
 *	  begin, and with which model and permissions; what came of the last one.
 *
 * Each call locks the row, so that a wish is either seen here or comes to the
 * process, which has a slot while it is at a turn.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/export.h"
#include "base/spi.h"
#include "query/query_int.h"

static bool settle_wishes(SwarmQueryRow *row);
static Datum answer(FunctionCallInfo fcinfo, const SwarmQueryRow *row, bool go, bool commands);
static Datum take_commands(int64 id, MemoryContext context, bool *isnull);
static char *key_text(Jsonb *j, const char *key);
static void count_turn(const SwarmQueryRow *row, Jsonb *outcome);

/*
 * swarm._query_turn_begin(query) returns record (go, state, model,
 * permission_mode, commands)
 */
SWARM_FUNCTION(swarm_query_turn_begin);
Datum
swarm_query_turn_begin(PG_FUNCTION_ARGS)
{
	SwarmQueryRow row;
	bool		go;

	swarm_query_get(PG_GETARG_INT64(0), true, &row);
	if (strcmp(row.kind, "llm") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("a query of kind \"%s\" has no turns", row.kind)));
	if (swarm_query_slots() > 0 && (swarm_query_me == NULL || swarm_query_me->query != row.id) &&
		!swarm_query_is_final(row.state))
	{
		swarm_query_detach(NULL);
		swarm_query_attach(row.id, SWARM_KIND_TURN, row.owner, false);
	}
	if (row.state == SWARM_QUERY_INIT && strcmp(row.wanted, "run") == 0)
		swarm_query_move(&row, SWARM_QUERY_START, row.owner, NULL);
	go = settle_wishes(&row) && !row.approval;
	if (!go)
		swarm_query_detach(NULL);
	return answer(fcinfo, &row, go, true);
}

/*
 * swarm._query_turn_end(query, outcome) returns record (go, state, model,
 * permission_mode)
 */
SWARM_FUNCTION(swarm_query_turn_end);
Datum
swarm_query_turn_end(PG_FUNCTION_ARGS)
{
	Jsonb	   *outcome = PG_GETARG_JSONB_P(1);
	SwarmQueryRow row;
	bool		go = false;
	char	   *text;

	swarm_query_get(PG_GETARG_INT64(0), true, &row);
	count_turn(&row, outcome);
	if (row.state == SWARM_QUERY_RUNNING)
	{
		if (strcmp(row.wanted, "terminate") == 0)
			go = settle_wishes(&row);
		else if (key_text(outcome, "error") != NULL)
			swarm_query_move(&row, SWARM_QUERY_FAIL, row.owner, key_text(outcome, "error"));
		else if (key_text(outcome, "done") != NULL)
			swarm_query_move(&row, SWARM_QUERY_FINISH, row.owner, NULL);
		else if ((text = key_text(outcome, "pause")) !=NULL)
			swarm_query_move(&row, SWARM_QUERY_PAUSE, row.owner, text);
		else
			go = settle_wishes(&row) && !row.approval && key_text(outcome, "approval") == NULL;
	}
	if (!go)
		swarm_query_detach(NULL);
	return answer(fcinfo, &row, go, false);
}

/*
 * settle_wishes: what is wanted of a conversation that is between two turns;
 * true if it may go on.
 */
static bool
settle_wishes(SwarmQueryRow *row)
{
	if (swarm_query_is_final(row->state) || row->state == SWARM_QUERY_PAUSED)
		return false;
	if (strcmp(row->wanted, "terminate") == 0)
		swarm_query_move(row, SWARM_QUERY_TERMINATE, row->owner, NULL);
	else if (strcmp(row->wanted, "pause") == 0 && row->state == SWARM_QUERY_RUNNING)
		swarm_query_move(row, SWARM_QUERY_PAUSE, row->owner, row->pause_mode);
	return row->state == SWARM_QUERY_RUNNING;
}

static Datum
answer(FunctionCallInfo fcinfo, const SwarmQueryRow *row, bool go, bool commands)
{
	TupleDesc	desc;
	Datum		values[5];
	bool		nulls[5] = {0};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = BoolGetDatum(go);
	values[1] = CStringGetTextDatum(swarm_query_state_name(row->state));
	values[2] = row->model ? CStringGetTextDatum(row->model) : (Datum) 0;
	nulls[2] = row->model == NULL;
	values[3] = CStringGetTextDatum(row->permission_mode);
	nulls[4] = true;
	if (commands && go)
		values[4] = take_commands(row->id, CurrentMemoryContext, &nulls[4]);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

static Datum
take_commands(int64 id, MemoryContext context, bool *isnull)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(id)};
	MemoryContext old;
	Datum		result;

	swarm_spi_begin(&spi);
	swarm_spi_execute("WITH taken AS (DELETE FROM swarm._query_command WHERE query = $1 RETURNING id, command) "
					  "SELECT jsonb_agg(command ORDER BY id) FROM taken", 1, types, values, NULL);
	result = swarm_spi_column(0, 1, isnull);
	old = MemoryContextSwitchTo(context);
	if (!*isnull)
		result = PointerGetDatum(PG_DETOAST_DATUM_COPY(result));
	MemoryContextSwitchTo(old);
	swarm_spi_end(&spi);
	return result;
}

/* count_turn: add what the turn used, and keep the result. */
static void
count_turn(const SwarmQueryRow *row, Jsonb *outcome)
{
	SwarmSpi	spi;
	Oid			types[] = {INT8OID, JSONBOID};
	Datum		values[] = {Int64GetDatum(row->id), JsonbPGetDatum(outcome)};

	swarm_spi_begin(&spi);
	swarm_spi_execute("UPDATE swarm._query SET turns = turns + 1, "
					  "tokens_in = tokens_in + coalesce(($2->>'tokens_in')::bigint, 0), "
					  "tokens_out = tokens_out + coalesce(($2->>'tokens_out')::bigint, 0), "
					  "tokens_cached = tokens_cached + coalesce(($2->>'tokens_cached')::bigint, 0), "
					  "cost = cost + coalesce(($2->>'cost')::numeric, 0), "
					  "latency_ms = CASE WHEN $2 ? 'latency_ms' THEN (coalesce(latency_ms, 0) * turns + "
					  "($2->>'latency_ms')::float8) / (turns + 1) ELSE latency_ms END, "
					  "failures = failures + (CASE WHEN $2->>'failed' = 'true' OR $2 ? 'error' THEN 1 ELSE 0 END), "
					  "result = coalesce($2->'result', result), error = coalesce($2->>'error', error), "
					  "sqlstate = coalesce($2->>'sqlstate', sqlstate) WHERE id = $1",
					  2, types, values, NULL);
	swarm_spi_end(&spi);
}

/* key_text: a value as text; NULL for false, null and what is not there. */
static char *
key_text(Jsonb *j, const char *key)
{
	JsonbValue	buffer;
	JsonbValue *v = NULL;

	if (JB_ROOT_IS_OBJECT(j))
		v = getKeyJsonValueFromContainer(&j->root, key, strlen(key), &buffer);
	if (v == NULL || v->type == jbvNull || (v->type == jbvBool && !v->val.boolean))
		return NULL;
	if (v->type == jbvString)
		return pnstrdup(v->val.string.val, v->val.string.len);
	return pstrdup("true");
}

/*
 * swarm._query_set_state(query, event, detail) returns text: one edge.
 */
SWARM_FUNCTION(swarm_query_set_state);
Datum
swarm_query_set_state(PG_FUNCTION_ARGS)
{
	char	   *name;
	SwarmQueryRow row;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	name = text_to_cstring(PG_GETARG_TEXT_PP(1));
	swarm_query_get(PG_GETARG_INT64(0), true, &row);
	for (int event = 0; event < SWARM_QUERY_EVENTS; event++)
	{
		if (strcmp(name, swarm_query_event_name(event)) != 0)
			continue;
		swarm_query_move(&row, event, GetUserId(),
						 PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2)));
		PG_RETURN_TEXT_P(cstring_to_text(swarm_query_state_name(row.state)));
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("unknown event \"%s\"", name)));
}
