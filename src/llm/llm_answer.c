/*
 * llm_answer.c
 *	  What has come of an answer, in the form that both dialects share.
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/memutils.h"

#include "llm/llm_int.h"

#define MOST_BLOCKS		1000

/*
 * swarm_llm_answer_reset: forget what has come; a new attempt begins.  The
 * first call makes the context, a child of the current one.
 */
void
swarm_llm_answer_reset(SwarmLlmAnswer *answer)
{
	MemoryContext context = answer->context;
	SwarmLlmDialect dialect = answer->dialect;
	const char *secret = answer->secret;
	MemoryContext old;

	if (context == NULL)
		context = AllocSetContextCreate(CurrentMemoryContext, "pg_swarm answer", ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(context);
	memset(answer, 0, sizeof(*answer));
	answer->context = context;
	answer->dialect = dialect;
	answer->secret = secret;
	answer->tokens_in = answer->tokens_out = -1;
	old = MemoryContextSwitchTo(context);
	initStringInfo(&answer->text);
	MemoryContextSwitchTo(old);
}

SwarmLlmBlock *
swarm_llm_block(SwarmLlmAnswer *answer, int i, const char *type)
{
	if (i < 0 || i >= MOST_BLOCKS)
		i = Max(list_length(answer->blocks) - 1, 0);
	while (list_length(answer->blocks) <= i)
	{
		SwarmLlmBlock *block = palloc0(sizeof(SwarmLlmBlock));

		block->type = pstrdup(type);
		initStringInfo(&block->text);
		answer->blocks = lappend(answer->blocks, block);
	}
	return list_nth(answer->blocks, i);
}

void
swarm_llm_block_text(SwarmLlmAnswer *answer, SwarmLlmBlock *block, const char *text)
{
	/* blocks of text are apart for a reader too */
	if (block->text.len == 0 && answer->text.len > 0 && *text)
		appendStringInfoString(&answer->text, "\n\n");
	appendStringInfoString(&block->text, text);
	appendStringInfoString(&answer->text, text);
}

/*
 * swarm_llm_answer_event: the data of an event.
 */
void
swarm_llm_answer_event(SwarmLlmAnswer *answer, const char *data, size_t length)
{
	MemoryContext old = MemoryContextSwitchTo(answer->context);
	Jsonb	   *event;

	answer->events++;
	if (length == 6 && memcmp(data, "[DONE]", 6) == 0)
		answer->complete = true;
	else if ((event = swarm_llm_json(data, length)) == NULL || !JB_ROOT_IS_OBJECT(event))
		answer->bad_events++;
	else
	{
		JsonbContainer *error = swarm_llm_member(&event->root, "error");

		if (error != NULL)
			swarm_llm_note_error(error, answer->secret, answer->error_name, sizeof(answer->error_name),
								 answer->error_text, sizeof(answer->error_text));
		else if (answer->dialect == LLM_ANTHROPIC)
			swarm_llm_anthropic_event(answer, &event->root);
		else
			swarm_llm_openai_event(answer, &event->root);
	}
	MemoryContextSwitchTo(old);
}

bool
swarm_llm_answer_document(SwarmLlmAnswer *answer, const char *data, size_t length)
{
	MemoryContext old = MemoryContextSwitchTo(answer->context);
	Jsonb	   *document = swarm_llm_json(data, length);
	bool		ok = false;

	if (document != NULL && JB_ROOT_IS_OBJECT(document))
		ok = answer->dialect == LLM_ANTHROPIC ?
			swarm_llm_anthropic_document(answer, &document->root) :
			swarm_llm_openai_document(answer, &document->root);
	MemoryContextSwitchTo(old);
	answer->complete = ok;
	return ok;
}

/* hide: stars where a text has the secret: servers tell what they were sent. */
static void
hide(char *text, const char *secret)
{
	size_t		length = secret ? strlen(secret) : 0;

	while (text !=NULL && length > 0 && (text = strstr(text, secret)) !=NULL)
		memset(text, '*', length);
}

void
swarm_llm_note_error(JsonbContainer *error, const char *secret, char *name, size_t name_room,
					 char *text, size_t text_room)
{
	char	   *code = swarm_llm_string(error, "code");
	char	   *type = swarm_llm_string(error, "type");
	char	   *message = swarm_llm_string(error, "message");

	hide(code, secret);
	hide(type, secret);
	hide(message, secret);

	/* OpenAI's code is the finer name; of others' it may be the status */
	swarm_llm_printable(name, code != NULL && *code && strspn(code, "0123456789") != strlen(code) ? code :
						type != NULL && *type ? type : "error", name_room);
	swarm_llm_printable(text, message != NULL && *message ? message : "the server gave no reason", text_room);
}

int64
swarm_llm_answer_bytes(const SwarmLlmAnswer *answer)
{
	int64		bytes = 0;
	ListCell   *lc;

	foreach(lc, answer->blocks)
	{
		SwarmLlmBlock *block = lfirst(lc);

		bytes += block->text.len + (block->raw ? strlen(block->raw) : 0);
	}
	return bytes;
}

/*
 * swarm_llm_content: a tool's input that is no JSON object, because the answer
 * was cut, say, becomes an empty one, and "input_text" has it.
 */
char *
swarm_llm_content(const SwarmLlmAnswer *answer)
{
	StringInfoData json;
	ListCell   *lc;
	const char *comma = "";

	initStringInfo(&json);
	appendStringInfoChar(&json, '[');
	foreach(lc, answer->blocks)
	{
		SwarmLlmBlock *block = lfirst(lc);

		if (block->raw == NULL && block->text.len == 0 && strcmp(block->type, "tool_use") != 0)
			continue;
		appendStringInfoString(&json, comma);
		comma = ", ";
		if (block->raw != NULL)
		{
			appendStringInfoString(&json, block->raw);
			continue;
		}
		appendStringInfoString(&json, "{\"type\": ");
		escape_json(&json, block->type);
		if (strcmp(block->type, "tool_use") == 0)
		{
			Jsonb	   *input = block->text.len > 0 ? swarm_llm_json(block->text.data, block->text.len) : NULL;

			appendStringInfoString(&json, ", \"id\": ");
			escape_json(&json, block->id ? block->id : "");
			appendStringInfoString(&json, ", \"name\": ");
			escape_json(&json, block->name ? block->name : "");
			appendStringInfo(&json, ", \"input\": %s", input != NULL && JB_ROOT_IS_OBJECT(input) ?
							 JsonbToCString(NULL, &input->root, VARSIZE(input)) : "{}");
			if (block->text.len > 0 && (input == NULL || !JB_ROOT_IS_OBJECT(input)))
			{
				appendStringInfoString(&json, ", \"input_text\": ");
				escape_json(&json, block->text.data);
			}
		}
		else
		{
			appendStringInfo(&json, ", \"%s\": ", strcmp(block->type, "thinking") == 0 ? "thinking" : "text");
			escape_json(&json, block->text.data);
			if (block->signature != NULL)
			{
				appendStringInfoString(&json, ", \"signature\": ");
				escape_json(&json, block->signature);
			}
		}
		appendStringInfoChar(&json, '}');
	}
	appendStringInfoChar(&json, ']');
	return json.data;
}
