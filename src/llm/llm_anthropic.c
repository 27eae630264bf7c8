/*
 * llm_anthropic.c
 *	  Answers of the Messages API.
 *
 * Every event is optional: servers that only look like this API leave some
 * out.
 */
#include "postgres.h"

#include "llm/llm_int.h"

static void note_usage(SwarmLlmAnswer *answer, JsonbContainer *usage);
static void block_start(SwarmLlmAnswer *answer, int i, JsonbContainer *start);
static void block_delta(SwarmLlmAnswer *answer, int i, JsonbContainer *delta);

void
swarm_llm_anthropic_event(SwarmLlmAnswer *answer, JsonbContainer *event)
{
	char	   *type = swarm_llm_string(event, "type");
	int			i = (int) swarm_llm_integer(event, "index", 0);

	if (type == NULL)
		return;
	if (strcmp(type, "message_start") == 0)
		note_usage(answer, swarm_llm_member(swarm_llm_member(event, "message"), "usage"));
	else if (strcmp(type, "content_block_start") == 0)
		block_start(answer, i, swarm_llm_member(event, "content_block"));
	else if (strcmp(type, "content_block_delta") == 0)
		block_delta(answer, i, swarm_llm_member(event, "delta"));
	else if (strcmp(type, "message_delta") == 0)
	{
		char	   *reason = swarm_llm_string(swarm_llm_member(event, "delta"), "stop_reason");

		if (reason != NULL)
			answer->stop_reason = reason;
		note_usage(answer, swarm_llm_member(event, "usage"));
	}
	else if (strcmp(type, "message_stop") == 0)
		answer->complete = true;
}

/* note_usage: counts are totals so far: the later ones replace the earlier. */
static void
note_usage(SwarmLlmAnswer *answer, JsonbContainer *usage)
{
	int64		input = swarm_llm_integer(usage, "input_tokens", -1);

	answer->cache_read = swarm_llm_integer(usage, "cache_read_input_tokens", answer->cache_read);
	answer->cache_write = swarm_llm_integer(usage, "cache_creation_input_tokens", answer->cache_write);
	if (input >= 0)
		answer->tokens_in = input + answer->cache_read + answer->cache_write;
	answer->tokens_out = swarm_llm_integer(usage, "output_tokens", answer->tokens_out);
}

static void
block_start(SwarmLlmAnswer *answer, int i, JsonbContainer *start)
{
	char	   *type = swarm_llm_string(start, "type");
	SwarmLlmBlock *block;
	char	   *text;

	if (type == NULL)
		return;
	block = swarm_llm_block(answer, i, type);
	block->type = type;
	if (strcmp(type, "text") == 0)
	{
		if ((text = swarm_llm_string(start, "text")) !=NULL)
			swarm_llm_block_text(answer, block, text);
	}
	else if (strcmp(type, "thinking") == 0)
	{
		if ((text = swarm_llm_string(start, "thinking")) !=NULL)
			appendStringInfoString(&block->text, text);
		block->signature = swarm_llm_string(start, "signature");
	}
	else if (strcmp(type, "tool_use") == 0)
	{
		JsonbContainer *input = swarm_llm_member(start, "input");

		block->id = swarm_llm_string(start, "id");
		block->name = swarm_llm_string(start, "name");
		/* a whole answer has the input here, a stream in what follows */
		if (input != NULL && JsonContainerSize(input) > 0)
			appendStringInfoString(&block->text, JsonbToCString(NULL, input, 0));
	}
	else
		block->raw = JsonbToCString(NULL, start, 0);
}

static void
block_delta(SwarmLlmAnswer *answer, int i, JsonbContainer *delta)
{
	char	   *text;

	if ((text = swarm_llm_string(delta, "text")) !=NULL)
		swarm_llm_block_text(answer, swarm_llm_block(answer, i, "text"), text);
	else if ((text = swarm_llm_string(delta, "partial_json")) !=NULL)
		appendStringInfoString(&swarm_llm_block(answer, i, "tool_use")->text, text);
	else if ((text = swarm_llm_string(delta, "thinking")) !=NULL)
		appendStringInfoString(&swarm_llm_block(answer, i, "thinking")->text, text);
	else if ((text = swarm_llm_string(delta, "signature")) !=NULL)
		swarm_llm_block(answer, i, "thinking")->signature = text;
}

bool
swarm_llm_anthropic_document(SwarmLlmAnswer *answer, JsonbContainer *document)
{
	JsonbContainer *content = swarm_llm_member(document, "content");
	JsonbContainer *block;

	if (content == NULL)
		return false;
	for (int i = 0; (block = swarm_llm_element(content, i)) != NULL; i++)
		block_start(answer, i, block);
	answer->stop_reason = swarm_llm_string(document, "stop_reason");
	note_usage(answer, swarm_llm_member(document, "usage"));
	return true;
}
