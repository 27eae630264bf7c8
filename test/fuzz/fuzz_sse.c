/*
 * fuzz_sse.c
 *	  Server-sent events: wherever a stream is cut, the events are the same.
 *
 * The first byte of the input seeds the cuts, the rest is the stream.  With
 * -DSTANDALONE a program that cuts a list of streams at every byte.
 */
#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llm/llm_sse.h"

typedef struct Seen
{
	char	   *text;
	size_t		length;
	int			events;
} Seen;

static void
emit(void *arg, const char *name, const char *data, size_t length)
{
	Seen	   *seen = arg;
	size_t		n = strlen(name);

	assert(strlen(data) <= length);
	seen->text = realloc(seen->text, seen->length + n + length + 2);
	memcpy(seen->text + seen->length, name, n);
	seen->text[seen->length + n] = '\1';
	memcpy(seen->text + seen->length + n + 1, data, length);
	seen->text[seen->length + n + length + 1] = '\2';
	seen->length += n + length + 2;
	seen->events++;
}

/* run: feed in pieces whose lengths come from the seed; 0: all at once. */
static Seen
run(const char *bytes, size_t length, unsigned seed)
{
	SwarmSse	sse;
	Seen		seen = {0};

	swarm_sse_init(&sse, emit, &seen);
	for (size_t at = 0; at < length;)
	{
		size_t		n = length - at;

		if (seed != 0)
		{
			seed = seed * 1103515245 + 12345;
			n = (seed >> 16) % 7 + 1;
			if (n > length - at)
				n = length - at;
		}
		swarm_sse_feed(&sse, bytes + at, n);
		at += n;
	}
	swarm_sse_free(&sse);
	return seen;
}

static void
same(Seen a, Seen b)
{
	if (a.events != b.events || a.length != b.length ||
		(a.length > 0 && memcmp(a.text, b.text, a.length) != 0))
		abort();
	free(a.text);
	free(b.text);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 1)
		return 0;
	same(run((const char *) data + 1, size - 1, 0), run((const char *) data + 1, size - 1, data[0] + 1));
	return 0;
}

#ifdef STANDALONE
static const struct
{
	const char *stream;
	int			events;
}			cases[] = {
	{"data: a\n\n", 1},
	{"data: a\r\n\r\ndata: b\r\n\r\n", 2},
	{"data: a\r\rdata: b\r\r", 2},
	{"\xEF\xBB\xBF" "event: x\ndata: 1\ndata: 2\n\n: ping\n\nevent: y\ndata\n\n", 2},
	{"event: message_start\ndata: {\"type\": \"message_start\"}\n\nevent: ping\ndata: {\"type\": \"ping\"}\n\ndata: [DONE]\n\n", 3},
	{"data: \xC3\xA9\xE2\x82\xAC\n\nid: 7\nretry: 10\n\n\n\ndata:x\n\n", 2},
	{"data: never ended", 0},
	{"", 0}
};

int
main(void)
{
	for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++)
	{
		const char *s = cases[c].stream;
		size_t		length = strlen(s);
		Seen		whole = run(s, length, 0);

		if (whole.events != cases[c].events)
			return fprintf(stderr, "case %zu: %d events\n", c, whole.events), 1;
		for (size_t cut = 0; cut <= length; cut++)
		{
			SwarmSse	sse;
			Seen		seen = {0};

			swarm_sse_init(&sse, emit, &seen);
			swarm_sse_feed(&sse, s, cut);
			swarm_sse_feed(&sse, s + cut, length - cut);
			swarm_sse_free(&sse);
			same(run(s, length, 0), seen);
		}
		for (unsigned seed = 1; seed < 1000; seed++)
			same(run(s, length, 0), run(s, length, seed));
		free(whole.text);
	}
	puts("ok");
	return 0;
}
#endif
