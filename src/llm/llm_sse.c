/*
 * llm_sse.c
 *	  Server-sent events, parsed as they come.
 *
 * On malloc and without the server's headers, so that it can be fuzzed alone
 * (test/fuzz).
 */
#include <stdlib.h>
#include <string.h>

#include "llm/llm_sse.h"

static bool append(SwarmSseBuffer *buffer, const char *bytes, size_t length);
static bool line_ended(SwarmSse *sse);
static bool field(SwarmSse *sse, const char *name, size_t name_length,
				  const char *value, size_t value_length);
static void event_ended(SwarmSse *sse);

void
swarm_sse_init(SwarmSse *sse, SwarmSseEmit emit, void *arg)
{
	memset(sse, 0, sizeof(*sse));
	sse->emit = emit;
	sse->arg = arg;
}

void
swarm_sse_free(SwarmSse *sse)
{
	free(sse->line.data);
	free(sse->data.data);
	memset(sse, 0, sizeof(*sse));
}

bool
swarm_sse_feed(SwarmSse *sse, const char *bytes, size_t length)
{
	const char *end = bytes + length;

	while (bytes < end && !sse->failed)
	{
		const char *stop = bytes;

		if (sse->after_cr && *bytes == '\n')
		{
			sse->after_cr = false;
			bytes++;
			continue;
		}
		sse->after_cr = false;
		while (stop < end && *stop != '\n' && *stop != '\r')
			stop++;
		if (!append(&sse->line, bytes, stop - bytes))
			sse->failed = true;
		else if (stop < end)
		{
			sse->after_cr = *stop == '\r';
			if (!line_ended(sse))
				sse->failed = true;
			stop++;
		}
		bytes = stop;
	}
	return !sse->failed;
}

static bool
append(SwarmSseBuffer *buffer, const char *bytes, size_t length)
{
	if (length > SWARM_SSE_LIMIT || buffer->length + length > SWARM_SSE_LIMIT)
		return false;
	if (buffer->length + length + 1 > buffer->room)
	{
		size_t		room = buffer->room * 2;
		char	   *larger;

		if (room < buffer->length + length + 1)
			room = buffer->length + length + 1;
		if (room < 256)
			room = 256;
		larger = realloc(buffer->data, room);
		if (larger == NULL)
			return false;
		buffer->data = larger;
		buffer->room = room;
	}
	if (length > 0)
		memcpy(buffer->data + buffer->length, bytes, length);
	buffer->length += length;
	buffer->data[buffer->length] = '\0';
	return true;
}

/* line_ended: what the line in the buffer means. */
static bool
line_ended(SwarmSse *sse)
{
	const char *line = sse->line.data;
	size_t		length = sse->line.length;
	const char *colon;
	bool		ok = true;

	if (!sse->past_first && length >= 3 && memcmp(line, "\xEF\xBB\xBF", 3) == 0)
		line += 3, length -= 3;
	sse->past_first = true;
	if (length == 0)
		event_ended(sse);
	else if ((colon = memchr(line, ':', length)) == NULL)
		ok = field(sse, line, length, "", 0);
	else
	{
		const char *value = colon + 1;

		if (value < line + length && *value == ' ')
			value++;
		ok = field(sse, line, colon - line, value, line + length - value);
	}
	sse->line.length = 0;
	return ok;
}

static bool
field(SwarmSse *sse, const char *name, size_t name_length, const char *value, size_t value_length)
{
	if (name_length == 4 && memcmp(name, "data", 4) == 0)
	{
		bool		first = !sse->has_data;

		sse->has_data = true;
		return (first || append(&sse->data, "\n", 1)) && append(&sse->data, value, value_length);
	}
	if (name_length == 5 && memcmp(name, "event", 5) == 0)
	{
		size_t		keep = value_length < SWARM_SSE_NAME - 1 ? value_length : SWARM_SSE_NAME - 1;

		memcpy(sse->name, value, keep);
		sse->name[keep] = '\0';
	}
	return true;				/* comments have an empty name; id and retry
								 * are not used */
}

static void
event_ended(SwarmSse *sse)
{
	if (sse->has_data)
		sse->emit(sse->arg, sse->name, sse->data.data, sse->data.length);
	sse->data.length = 0;
	sse->has_data = false;
	sse->name[0] = '\0';
}
