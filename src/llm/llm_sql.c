/*
 * llm_sql.c
 *	  SQL functions of module llm: most are private functions of the same
 *	  name, in sql/modules/80_llm.sql; some of them want a job.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/tuplestore.h"

#include "base/forward.h"
#include "base/shmem.h"
#include "base/spi.h"
#include "llm/llm_int.h"

static Datum forward_and_run(FunctionCallInfo fcinfo, const char *name, SPIPlanPtr *plan);
static void enqueue(int64 conversation);

SWARM_FORWARD(swarm_forward, tool_create);
SWARM_FORWARD(swarm_forward, tool_drop);
SWARM_FORWARD(swarm_forward, llm_cancel);
SWARM_FORWARD(swarm_forward, llm_permission_mode);
SWARM_FORWARD(forward_and_run, llm_ask);
SWARM_FORWARD(forward_and_run, llm_embed);
SWARM_FORWARD(forward_and_run, llm_count_tokens);
SWARM_FORWARD(forward_and_run, llm_say);
SWARM_FORWARD(forward_and_run, llm_resume);
SWARM_FORWARD(forward_and_run, llm_approve);

/*
 * forward_and_run: the private function returns the conversation that wants a
 * job, or NULL.
 */
static Datum
forward_and_run(FunctionCallInfo fcinfo, const char *name, SPIPlanPtr *plan)
{
	int64		conversation;

	PreventCommandIfReadOnly(psprintf("%s()", name));
	swarm_require_preload("asking a model");
	conversation = swarm_forward_id(fcinfo, name, plan);
	if (conversation != 0)
		enqueue(conversation);
	PG_RETURN_INT64(conversation);
}

/*
 * enqueue: the job of a conversation, which is its owner's, whoever of his
 * role's members lets it go on.
 */
static void
enqueue(int64 conversation)
{
	Oid			types[] = {INT8OID, INT8OID};
	Datum		values[] = {Int64GetDatum(conversation), 0};
	bool		isnull;
	Oid			owner;
	Oid			user;
	int			sec_context;
	SwarmSpi	spi;

	swarm_spi_begin(&spi);
	(void) swarm_spi_query("SELECT owner FROM swarm._llm_conversation WHERE id = $1", 1, types, values, NULL);
	owner = DatumGetObjectId(swarm_spi_column(0, 1, &isnull));
	swarm_spi_end(&spi);
	GetUserIdAndSecContext(&user, &sec_context);
	SPI_connect();
	SetUserIdAndSecContext(owner, sec_context | SECURITY_LOCAL_USERID_CHANGE);
	if (SPI_execute_with_args("SELECT swarm.job_enqueue('llm', pg_catalog.jsonb_build_object('conversation', $1), "
							  "max_attempts => 20, timeout => NULL)",
							  1, types, values, NULL, false, 1) != SPI_OK_SELECT || SPI_processed != 1)
		elog(ERROR, "could not enqueue the job of conversation " INT64_FORMAT, conversation);
	SetUserIdAndSecContext(user, sec_context);
	values[1] = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	values[1] = Int64GetDatum(DatumGetInt64(values[1]));
	SPI_finish();
	swarm_spi_begin(&spi);
	swarm_spi_execute("UPDATE swarm._llm_conversation SET job = $2 WHERE id = $1", 2, types, values, NULL);
	swarm_spi_end(&spi);
}

/*
 * swarm._llm_decisions(): the rules for names of errors.
 */
SWARM_FUNCTION(swarm_llm_decisions);
Datum
swarm_llm_decisions(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < swarm_llm_nrules; i++)
	{
		const SwarmNetRule *rule = &swarm_llm_rules[i];
		Datum		values[4];
		bool		nulls[4] = {0};

		values[0] = CStringGetTextDatum(rule->name);
		values[1] = CStringGetTextDatum(swarm_net_verdict_name(rule->verdict));
		values[2] = BoolGetDatum(rule->harms);
		values[3] = CStringGetTextDatum(rule->why);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}

static void
parse_event(void *arg, const char *name, const char *data, size_t length)
{
	swarm_llm_answer_event(arg, data, length);
}

/*
 * swarm._llm_parse(dialect, stream, piece) returns jsonb: what the parser makes
 * of a stream that comes in pieces of so many bytes; 0: of a whole document.
 */
SWARM_FUNCTION(swarm_llm_parse);
Datum
swarm_llm_parse(PG_FUNCTION_ARGS)
{
	bytea	   *stream = PG_GETARG_BYTEA_PP(1);
	const char *bytes = VARDATA_ANY(stream);
	size_t		length = VARSIZE_ANY_EXHDR(stream);
	size_t		piece = PG_GETARG_INT32(2);
	SwarmLlmAnswer answer = {0};
	StringInfoData json;

	answer.dialect = strcmp(text_to_cstring(PG_GETARG_TEXT_PP(0)), "openai") == 0 ? LLM_OPENAI : LLM_ANTHROPIC;
	swarm_llm_answer_reset(&answer);
	if (piece == 0)
		(void) swarm_llm_answer_document(&answer, bytes, length);
	else
	{
		SwarmSse	sse;

		swarm_sse_init(&sse, parse_event, &answer);
		for (size_t at = 0; at < length; at += piece)
			(void) swarm_sse_feed(&sse, bytes + at, Min(piece, length - at));
		swarm_sse_free(&sse);
	}
	initStringInfo(&json);
	appendStringInfo(&json, "{\"content\": %s, \"text\": ", swarm_llm_content(&answer));
	escape_json(&json, answer.text.data);
	appendStringInfo(&json, ", \"complete\": %s, \"tokens_in\": " INT64_FORMAT ", \"tokens_out\": " INT64_FORMAT
					 ", \"cache_read\": " INT64_FORMAT ", \"cache_write\": " INT64_FORMAT ", \"bad_events\": %d, \"stop_reason\": ",
					 answer.complete ? "true" : "false", answer.tokens_in, answer.tokens_out,
					 answer.cache_read, answer.cache_write, answer.bad_events);
	escape_json(&json, answer.stop_reason ? answer.stop_reason : "");
	appendStringInfoString(&json, ", \"error\": ");
	escape_json(&json, answer.error_name);
	appendStringInfoChar(&json, '}');
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data));
}
