/*
 * llm_openai.c
 *	  Answers of chat completions, as OpenAI and many others give them.
 *
 * Block 0 is the text, the tool calls follow in their order.
 */
#include "postgres.h"

#include "llm/llm_int.h"

static void note_usage(SwarmLlmAnswer *answer, JsonbContainer *usage);
static void note_reason(SwarmLlmAnswer *answer, const char *reason);
static void note_message(SwarmLlmAnswer *answer, JsonbContainer *message);

void
swarm_llm_openai_event(SwarmLlmAnswer *answer, JsonbContainer *event)
{
	JsonbContainer *choice = swarm_llm_element(swarm_llm_member(event, "choices"), 0);
	char	   *reason = swarm_llm_string(choice, "finish_reason");

	note_message(answer, swarm_llm_member(choice, "delta"));
	if (reason != NULL)
		note_reason(answer, reason);
	note_usage(answer, swarm_llm_member(event, "usage"));
}

bool
swarm_llm_openai_document(SwarmLlmAnswer *answer, JsonbContainer *document)
{
	JsonbContainer *choice = swarm_llm_element(swarm_llm_member(document, "choices"), 0);
	JsonbContainer *message = swarm_llm_member(choice, "message");
	char	   *reason = swarm_llm_string(choice, "finish_reason");

	if (message == NULL)
		return false;
	note_message(answer, message);
	note_reason(answer, reason ? reason : "stop");
	note_usage(answer, swarm_llm_member(document, "usage"));
	return true;
}

static void
note_usage(SwarmLlmAnswer *answer, JsonbContainer *usage)
{
	answer->tokens_in = swarm_llm_integer(usage, "prompt_tokens", answer->tokens_in);
	answer->tokens_out = swarm_llm_integer(usage, "completion_tokens", answer->tokens_out);
	answer->cache_read = swarm_llm_integer(swarm_llm_member(usage, "prompt_tokens_details"),
										   "cached_tokens", answer->cache_read);
}

/* note_reason: by the name that the Messages API has for it. */
static void
note_reason(SwarmLlmAnswer *answer, const char *reason)
{
	static const char *const names[][2] = {
		{"stop", "end_turn"}, {"length", "max_tokens"}, {"tool_calls", "tool_use"},
		{"function_call", "tool_use"}, {"content_filter", "refusal"}
	};

	answer->complete = true;
	answer->stop_reason = pstrdup(reason);
	for (int i = 0; i < lengthof(names); i++)
	{
		if (strcmp(reason, names[i][0]) == 0)
			answer->stop_reason = pstrdup(names[i][1]);
	}
}

/* note_message: a delta, or a whole message. */
static void
note_message(SwarmLlmAnswer *answer, JsonbContainer *message)
{
	char	   *text = swarm_llm_string(message, "content");
	JsonbContainer *calls = swarm_llm_member(message, "tool_calls");
	JsonbContainer *call;

	if (text == NULL)
		text = swarm_llm_string(message, "refusal");

	if (text !=NULL && *text)
		swarm_llm_block_text(answer, swarm_llm_block(answer, 0, "text"), text);
	for (int i = 0; (call = swarm_llm_element(calls, i)) != NULL; i++)
	{
		JsonbContainer *function = swarm_llm_member(call, "function");
		char	   *id = swarm_llm_string(call, "id");
		char	   *name = swarm_llm_string(function, "name");
		SwarmLlmBlock *block;

		(void) swarm_llm_block(answer, 0, "text");
		block = swarm_llm_block(answer, 1 + (int) swarm_llm_integer(call, "index", i), "tool_use");
		if (id != NULL && block->id == NULL)
			block->id = id;
		if (name != NULL && block->name == NULL)
			block->name = name;
		if ((text = swarm_llm_string(function, "arguments")) !=NULL)
			appendStringInfoString(&block->text, text);
	}
}
