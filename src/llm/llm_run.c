/*
 * llm_run.c
 *	  The job of a conversation: a procedure, run by a runner as the role that
 *	  asked.
 *
 * The loop asks swarm._llm_next() what to do, in a short transaction, and does
 * it: a turn, for which no transaction is open while the network is waited
 * for, or tool calls, each in a transaction of its own together with its
 * result.  What the loop has to know is in the tables, so that another runner
 * goes on after a crash.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/memutils.h"

#include "base/attempt.h"
#include "base/export.h"
#include "base/fault.h"
#include "base/procedure.h"
#include "base/spi.h"
#include "base/steer.h"
#include "llm/llm_int.h"

#define JOB_ID			1		/* fields of swarm.job */
#define JOB_ARGS		4

#define FLUSH_MS		250		/* what has come is stored at least so often */
#define FLUSH_BYTES		4096
#define FLUSH_MORE		16		/* of a long text, which is stored as a whole,
								 * by this part more */
#define TURN_MS			1000

/* A run; lives in its own memory context. */
typedef struct Run
{
	MemoryContext context;
	MemoryContext turn;			/* of one turn or tool call */
	int64		conversation;
	int64		job;

	/* what _llm_next() has said */
	char	   *action;
	char	   *server;
	char	   *path;
	char	   *body;
	int			message;		/* 0: no answer is under way */
	bool		chat;
	int64		query;			/* 0 = none */
	int64		most_out;		/* tokens that are reserved for the answer */
	SwarmLlmRequest *request;	/* under way, or NULL */
} Run;

static void run(Run *r);
static void next(Run *r);
static bool take_turn(Run *r);
static SwarmLlmServer *read_server(Run *r, char **outcome);
static SwarmLlmServer *try_server(Run *r, const char *name, ErrorData **edata);
static bool again(SwarmLlmRequest *request);
static int64 flush_ms(int stored);
static bool receive(Run *r);
static void flush(Run *r);
static bool turn_end(Run *r, const char *outcome);
static char *outcome_of(Run *r, const char *state);
static char *result_of(Run *r);
static bool call_tools(Run *r);
static void execute_tool(Run *r, Oid function, Datum input, bool read_only, char **result, bool *failed);
static void cancelled(Run *r);
static void leave(Run *r);
static void enter(Run *r);

/*
 * swarm._llm_run(job swarm.job): procedure, handler of kind llm.
 */
SWARM_FUNCTION(swarm_llm_job);
Datum
swarm_llm_job(PG_FUNCTION_ARGS)
{
	HeapTupleHeader row;
	MemoryContext before = CurrentMemoryContext;
	Run			r = {0};
	Oid			types[] = {OIDOID, JSONBOID, INT8OID};
	Datum		values[3];
	bool		isnull;
	SwarmSpi	spi;

	if (PG_ARGISNULL(0) || MyBackendType != B_BG_WORKER || fcinfo->context == NULL ||
		!IsA(fcinfo->context, CallContext) || ((CallContext *) fcinfo->context)->atomic)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("only a runner can ask a model"),
				 errhint("Use swarm.llm_ask().")));
	row = PG_GETARG_HEAPTUPLEHEADER(0);
	r.context = AllocSetContextCreate(before, "pg_swarm conversation", ALLOCSET_DEFAULT_SIZES);
	r.turn = AllocSetContextCreate(r.context, "pg_swarm turn", ALLOCSET_DEFAULT_SIZES);
	r.job = DatumGetInt64(GetAttributeByNum(row, JOB_ID, &isnull));
	values[0] = ObjectIdGetDatum(GetUserId());
	values[1] = GetAttributeByNum(row, JOB_ARGS, &isnull);
	if (isnull)
	{
		MemoryContextDelete(r.context);
		PG_RETURN_NULL();
	}
	values[2] = Int64GetDatum(r.job);
	swarm_spi_begin(&spi);
	swarm_spi_execute("SELECT swarm._llm_begin($1, $2, $3)", 3, types, values, NULL);
	r.conversation = DatumGetInt64(swarm_spi_column(0, 1, &isnull));
	swarm_spi_end(&spi);
	if (!isnull)
	{
		PG_TRY();
		{
			run(&r);
		}
		PG_CATCH();
		{
			ErrorData  *edata;

			MemoryContextSwitchTo(before);
			edata = CopyErrorData();
			FlushErrorState();
			if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED && !IsTransactionState())
				cancelled(&r);
			MemoryContextSwitchTo(before);
			MemoryContextDelete(r.context);
			ReThrowError(edata);
		}
		PG_END_TRY();
	}
	MemoryContextSwitchTo(before);
	MemoryContextDelete(r.context);
	PG_RETURN_VOID();
}

/*
 * run: called in a transaction, returns in one.
 */
static void
run(Run *r)
{
	bool		on = true;

	while (on)
	{
		MemoryContextReset(r->turn);
		MemoryContextSwitchTo(r->turn);
		next(r);
		if (strcmp(r->action, "turn") == 0)
			on = take_turn(r);
		else if (strcmp(r->action, "tools") == 0)
			on = call_tools(r);
		else
			on = false;
	}
}

/* next: ask what to do. */
static void
next(Run *r)
{
	Oid			types[] = {INT8OID, INT8OID};
	Datum		values[] = {Int64GetDatum(r->conversation), Int64GetDatum(r->job)};
	SwarmSpi	spi;
	Datum		message;
	Datum		query;
	bool		no_message;
	bool		no_query;

	swarm_spi_begin(&spi);
	swarm_spi_execute("SELECT action, server, path, body, message, chat, query, coalesce(most_out, 0) FROM swarm._llm_next($1, $2)",
					  2, types, values, NULL);
	MemoryContextSwitchTo(r->turn);
	r->action = pstrdup(swarm_spi_text(0, 1));
	if (strcmp(r->action, "turn") == 0)
	{
		r->server = pstrdup(swarm_spi_text(0, 2));
		r->path = pstrdup(swarm_spi_text(0, 3));
		r->body = pstrdup(swarm_spi_text(0, 4));
	}
	message = swarm_spi_column(0, 5, &no_message);
	r->message = no_message ? 0 : DatumGetInt32(message);
	r->chat = swarm_spi_bool(0, 6);
	query = swarm_spi_column(0, 7, &no_query);
	r->query = no_query ? 0 : DatumGetInt64(query);
	r->most_out = DatumGetInt64(swarm_spi_column(0, 8, &no_query));
	swarm_spi_end(&spi);
	MemoryContextSwitchTo(r->turn);
}

/* ------------------------------------------------------------------------
 * A turn
 * ------------------------------------------------------------------------ */

/*
 * take_turn: send, receive, store.  Returns whether the conversation goes on.
 */
static bool
take_turn(Run *r)
{
	char	   *outcome = NULL;
	SwarmLlmServer *server = read_server(r, &outcome);
	bool		whole;

	if (server == NULL)
	{
		whole = turn_end(r, outcome);
		leave(r);
		enter(r);
		return whole;
	}
	r->request = swarm_llm_submit(server, r->path, r->body, r->chat);
	r->request->again = again;
	r->request->caller = r;
	leave(r);
	whole = receive(r);

	/* what has come is stored before a cancellation is heard */
	HOLD_CANCEL_INTERRUPTS();
	enter(r);
	if (r->message == 0)
	{
		/* stopped between two attempts: all is stored */
		r->request = NULL;
		RESUME_CANCEL_INTERRUPTS();
		return true;
	}
	outcome = outcome_of(r, !whole ? "partial" : r->request->net->succeeded ? "done" : "failed");
	r->request = NULL;
	whole = turn_end(r, outcome);
	leave(r);
	RESUME_CANCEL_INTERRUPTS();
	enter(r);
	return whole;
}

/*
 * again: another attempt follows one that may have cost something: that one is
 * stored and booked, and the next one reserved for.
 */
static bool
again(SwarmLlmRequest *request)
{
	Run		   *r = request->caller;
	MemoryContext old = MemoryContextSwitchTo(r->turn);
	Oid			types[] = {INT8OID, INT4OID, INT8OID, INT8OID, TEXTOID};
	Datum		values[5];
	SwarmSpi	spi;
	bool		isnull;

	HOLD_CANCEL_INTERRUPTS();
	enter(r);
	values[0] = Int64GetDatum(r->conversation);
	values[1] = Int32GetDatum(r->message);
	values[2] = Int64GetDatum(r->job);
	values[3] = Int64GetDatum(r->most_out);
	request->net->attempts--;	/* the next one is counted already */
	values[4] = CStringGetTextDatum(outcome_of(r, "partial"));
	request->net->attempts++;
	swarm_spi_begin(&spi);
	swarm_spi_execute("SELECT swarm._llm_turn_again($1, $2, $3, $4, $5::jsonb)", 5, types, values, NULL);
	r->message = DatumGetInt32(swarm_spi_column(0, 1, &isnull));
	swarm_spi_end(&spi);
	if (isnull)
		r->message = 0;
	leave(r);
	RESUME_CANCEL_INTERRUPTS();
	MemoryContextSwitchTo(old);
	return !isnull;
}

/*
 * read_server: the server of a query, with the key of the current user; while its
 * circuit breaker is open the fallback of its retry policy, if that can be
 * used and speaks the same dialect.  NULL if the server cannot be used.
 */
static SwarmLlmServer *
read_server(Run *r, char **outcome)
{
	ErrorData  *edata;
	SwarmLlmServer *server = try_server(r, r->server, &edata);
	SwarmLlmServer *other;
	StringInfoData json;

	if (server == NULL)
	{
		initStringInfo(&json);
		appendStringInfoString(&json, "{\"state\": \"failed\", \"sent\": false, \"error\": ");
		escape_json(&json, edata->message);
		appendStringInfo(&json, ", \"sqlstate\": \"%s\"}", unpack_sql_state(edata->sqlerrcode));
		*outcome = json.data;
		return NULL;
	}
	if (server->policy.fallback == NULL || !swarm_net_endpoint_is_open(server->endpoint))
		return server;
	other = try_server(r, server->policy.fallback, &edata);
	if (other == NULL)
		ereport(WARNING,
				(errmsg("fallback \"%s\" of server \"%s\" is not used: %s", server->policy.fallback,
						server->name, edata->message)));
	return other != NULL && other->dialect == server->dialect ? other : server;
}

/* A server that is read. */
typedef struct Reading
{
	const char *name;
	SwarmLlmServer *server;
} Reading;

static void
read_it(void *arg)
{
	Reading    *reading = arg;

	reading->server = swarm_llm_server(reading->name);
}

/* try_server: NULL if it cannot be used, *edata says why. */
static SwarmLlmServer *
try_server(Run *r, const char *name, ErrorData **edata)
{
	Reading		reading = {.name = name};

	*edata = swarm_attempt(read_it, &reading, r->turn);
	MemoryContextSwitchTo(r->turn);
	return *edata ? NULL : reading.server;
}

/* flush_ms: how long what has come may wait; longer for a text that is long. */
static int64
flush_ms(int stored)
{
	return FLUSH_MS * (int64) (1 + stored / (FLUSH_BYTES * FLUSH_MORE));
}

/*
 * receive: until the request is finished; what has come is stored at once, and
 * then from time to time.  False if it was given up because the query wants
 * it.
 */
static bool
receive(Run *r)
{
	SwarmLlmRequest *request = r->request;
	int			stored = 0;		/* bytes of the text that are in the table */
	int			attempt = 0;
	int64		stored_ms = 0;
	bool		finished;

	do
	{
		int64		due = 0;

		if (stored < request->answer.text.len)
			due = Max(stored_ms + flush_ms(stored) - swarm_net_ms(), 0);
		SWARM_FAULT("llm.turn");
		finished = swarm_llm_turn(request, stored < request->answer.text.len ? (long) due : TURN_MS);
		if (attempt != request->net->attempts)
		{
			/*
			 * the text begins anew; the old one is replaced with the first
			 * new
			 */
			attempt = request->net->attempts;
			stored = 0;
		}
		if (!finished && r->query != 0 && swarm_steer_hook != NULL)
		{
			SwarmSteer	steer = swarm_steer_hook(r->query);

			if (steer == SWARM_STEER_NOW || steer == SWARM_STEER_STOP)
			{
				swarm_net_cancel(request->net, "the query was stopped");
				return false;
			}
		}
		if (!finished && request->answer.text.len > stored &&
			(stored == 0 || request->answer.text.len - stored >= Max(FLUSH_BYTES, stored / FLUSH_MORE) ||
			 swarm_net_ms() - stored_ms >= flush_ms(stored)))
		{
			flush(r);
			stored = request->answer.text.len;
			stored_ms = swarm_net_ms();
		}
	} while (!finished);
	return true;
}

/*
 * flush: what has come so far, for others to see.  It need not survive a
 * crash.
 */
static void
flush(Run *r)
{
	MemoryContext old = MemoryContextSwitchTo(r->turn);
	Oid			types[] = {INT8OID, INT4OID, TEXTOID};
	Datum		values[3];
	SwarmSpi	spi;

	/* a cancellation between two transactions is one that is answered */
	HOLD_CANCEL_INTERRUPTS();
	enter(r);
	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	values[0] = Int64GetDatum(r->conversation);
	values[1] = Int32GetDatum(r->message);
	swarm_spi_begin(&spi);
	values[2] = CStringGetTextDatum(r->request->answer.text.data);
	swarm_spi_execute("SELECT swarm._llm_stream($1, $2, $3)", 3, types, values, NULL);
	swarm_spi_end(&spi);
	leave(r);
	RESUME_CANCEL_INTERRUPTS();
	MemoryContextSwitchTo(old);
}

/* turn_end: store the outcome.  Returns whether to go on. */
static bool
turn_end(Run *r, const char *outcome)
{
	Oid			types[] = {INT8OID, INT4OID, TEXTOID};
	Datum		values[3];
	SwarmSpi	spi;
	bool		on;

	values[0] = Int64GetDatum(r->conversation);
	values[1] = Int32GetDatum(r->message);
	values[2] = CStringGetTextDatum(outcome);
	swarm_spi_begin(&spi);
	swarm_spi_execute("SELECT swarm._llm_turn_end($1, $2, $3::jsonb)", 3, types, values, NULL);
	on = swarm_spi_bool(0, 1);
	swarm_spi_end(&spi);
	r->message = 0;
	SWARM_FAULT("llm.store");
	return on;
}

/*
 * outcome_of: what came of the request, as swarm._llm_turn_store() reads it.
 */
static char *
outcome_of(Run *r, const char *state)
{
	SwarmLlmRequest *request = r->request;
	SwarmNetRequest *net = request->net;
	SwarmLlmAnswer *answer = &request->answer;
	StringInfoData json;
	char	   *result = NULL;

	if (!r->chat && strcmp(state, "done") == 0 && (result = result_of(r)) == NULL)
	{
		state = "failed";
		strlcpy(net->error_name, "BadAnswer", sizeof(net->error_name));
		strlcpy(net->error_text, "the server announced success, but did not answer the request",
				sizeof(net->error_text));
	}
	initStringInfo(&json);
	appendStringInfo(&json, "{\"state\": \"%s\", \"attempts\": %d, \"status\": %d, \"latency_ms\": " INT64_FORMAT,
					 state, net->attempts, net->status, swarm_net_ms() - request->started_ms);
	if (request->first_ms >= 0)
		appendStringInfo(&json, ", \"first_text_ms\": " INT64_FORMAT, request->first_ms);
	if (r->chat)
	{
		appendStringInfo(&json, ", \"content\": %s, \"text\": ", swarm_llm_content(answer));
		escape_json(&json, answer->text.data);
	}
	if (answer->tokens_in >= 0)
		appendStringInfo(&json, ", \"tokens_in\": " INT64_FORMAT, answer->tokens_in);
	if (answer->tokens_out >= 0 && strcmp(state, "done") == 0)
		appendStringInfo(&json, ", \"tokens_out\": " INT64_FORMAT, answer->tokens_out);
	else if (r->chat)
		appendStringInfo(&json, ", \"bytes_out\": " INT64_FORMAT,
						 Max(swarm_llm_answer_bytes(answer), 4 * answer->tokens_out));
	if (strcmp(state, "partial") == 0 && request->why[0] != '\0')
	{
		appendStringInfoString(&json, ", \"error\": ");
		escape_json(&json, request->why);
	}
	appendStringInfo(&json, ", \"cache_read\": " INT64_FORMAT ", \"cache_write\": " INT64_FORMAT,
					 answer->cache_read, answer->cache_write);
	if (answer->stop_reason != NULL)
	{
		appendStringInfoString(&json, ", \"stop_reason\": ");
		escape_json(&json, answer->stop_reason);
	}
	if (result != NULL)
		appendStringInfo(&json, ", \"result\": %s", result);
	if (strcmp(state, "failed") == 0)
	{
		char	   *error = psprintf("server \"%s\" failed: %s (%s, status %d, %d attempts)", r->server,
									 net->error_text, net->error_name, net->status, net->attempts);

		/* a request that was refused, or not sent, has cost nothing */
		appendStringInfo(&json, ", \"sent\": %s, \"sqlstate\": \"%s\", \"error\": ",
						 request->spent ? "true" : "false", net->status == 0 ? "08006" : "38000");
		escape_json(&json, error);
	}
	appendStringInfoChar(&json, '}');
	return json.data;
}

/*
 * result_of: of a request that is no conversation; NULL if the document is
 * not the answer to one.
 */
static char *
result_of(Run *r)
{
	SwarmNetRequest *net = r->request->net;
	SwarmLlmAnswer *answer = &r->request->answer;
	Jsonb	   *document = swarm_llm_json(net->answer, net->answer_length);
	JsonbContainer *root;
	JsonbContainer *data;
	JsonbContainer *item;
	StringInfoData json;

	if (document == NULL || !JB_ROOT_IS_OBJECT(document))
		return NULL;
	root = &document->root;
	answer->tokens_out = 0;
	if (strcmp(r->path, "/embeddings") != 0)
	{
		int64		count = swarm_llm_integer(root, "input_tokens", -1);

		answer->tokens_in = 0;
		return count < 0 ? NULL : psprintf("{\"input_tokens\": " INT64_FORMAT "}", count);
	}
	answer->tokens_in = swarm_llm_integer(swarm_llm_member(root, "usage"), "prompt_tokens", -1);
	data = swarm_llm_member(root, "data");
	if (data == NULL)
		return NULL;
	initStringInfo(&json);
	appendStringInfoString(&json, "{\"embeddings\": [");
	for (int i = 0; (item = swarm_llm_element(data, i)) != NULL; i++)
	{
		JsonbContainer *embedding = swarm_llm_member(item, "embedding");

		if (embedding == NULL || !JsonContainerIsArray(embedding))
			return NULL;
		appendStringInfo(&json, "%s%s", i ? ", " : "", JsonbToCString(NULL, embedding, 0));
	}
	appendStringInfoString(&json, "]}");
	return json.data;
}

/* ------------------------------------------------------------------------
 * Tools
 * ------------------------------------------------------------------------ */

/*
 * call_tools: each call and its result are one transaction, so that a crash
 * repeats neither.  Returns whether the conversation goes on.
 */
static bool
call_tools(Run *r)
{
	for (;;)
	{
		Oid			types[] = {INT8OID, INT4OID, INT4OID, TEXTOID, BOOLOID};
		Datum		values[5];
		SwarmSpi	spi;
		char	   *decision;
		Oid			function;
		Datum		input;
		bool		isnull;
		char	   *result;
		bool		failed;

		MemoryContextReset(r->turn);
		MemoryContextSwitchTo(r->turn);
		values[0] = Int64GetDatum(r->conversation);
		values[1] = Int64GetDatum(r->job);
		types[1] = INT8OID;
		swarm_spi_begin(&spi);
		swarm_spi_execute("SELECT decision, message, no, function, input FROM swarm._llm_call_next($1, $2)",
						  2, types, values, NULL);
		MemoryContextSwitchTo(r->turn);
		decision = pstrdup(swarm_spi_text(0, 1));
		values[1] = swarm_spi_column(0, 2, &isnull);
		values[2] = swarm_spi_column(0, 3, &isnull);
		function = DatumGetObjectId(swarm_spi_column(0, 4, &isnull));
		input = swarm_spi_column(0, 5, &isnull);
		if (!isnull)
			input = PointerGetDatum(PG_DETOAST_DATUM_COPY(input));
		swarm_spi_end(&spi);
		MemoryContextSwitchTo(r->turn);
		if (strcmp(decision, "read") != 0 && strcmp(decision, "run") != 0)
			return strcmp(decision, "done") == 0;

		execute_tool(r, function, input, strcmp(decision, "read") == 0, &result, &failed);
		types[1] = INT4OID;
		values[3] = CStringGetTextDatum(result);
		values[4] = BoolGetDatum(failed);
		swarm_spi_begin(&spi);
		swarm_spi_execute("SELECT swarm._llm_call_done($1, $2, $3, $4, $5)", 5, types, values, NULL);
		swarm_spi_end(&spi);
		SWARM_FAULT("llm.tool");
		leave(r);
		enter(r);
	}
}

/*
 * execute_tool: as the current user, the owner of the conversation.
 */
static void
execute_tool(Run *r, Oid function, Datum input, bool read_only, char **result, bool *failed)
{
	Oid			types[] = {OIDOID, JSONBOID, BOOLOID};
	Datum		values[] = {ObjectIdGetDatum(function), input, BoolGetDatum(read_only)};
	char	   *text;
	bool		isnull;

	SPI_connect();
	if (SPI_execute_with_args("SELECT result, failed FROM swarm._llm_tool_execute($1, $2, $3)",
							  3, types, values, NULL, false, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not call function %u", function);
	text = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);

	*result = MemoryContextStrdup(r->turn, text ? text : "");
	*failed = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	SPI_finish();
	MemoryContextSwitchTo(r->turn);
}

/* ------------------------------------------------------------------------
 * The end by cancellation, transactions
 * ------------------------------------------------------------------------ */

/*
 * cancelled: the job was cancelled while it waited for the network: nobody
 * will run it again.  Keep what has come of the answer, and book it.
 */
static void
cancelled(Run *r)
{
	char	   *outcome;

	if (r->request == NULL || r->message == 0)
		return;
	MemoryContextSwitchTo(r->turn);
	swarm_net_cancel(r->request->net, "the conversation was cancelled");
	outcome = outcome_of(r, "partial");
	r->request = NULL;
	enter(r);
	(void) turn_end(r, outcome);
	leave(r);
}

static void
leave(Run *r)
{
	swarm_procedure_leave(r->turn);
}

static void
enter(Run *r)
{
	swarm_procedure_enter(r->turn);
}
