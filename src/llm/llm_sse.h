/*
 * llm_sse.h
 *	  Server-sent events, parsed as they come.  Pure C: knows no server.
 *
 * The bytes of a stream are given in pieces of any size; where they are cut
 * changes nothing.  An event has a name and data, as the HTML standard says:
 * lines end with CR, LF or both, data lines are joined by LF, a blank line
 * ends an event, comments and unknown fields are ignored.
 */
#ifndef SWARM_LLM_SSE_H
#define SWARM_LLM_SSE_H

#include <stdbool.h>
#include <stddef.h>

#define SWARM_SSE_NAME		64
#define SWARM_SSE_LIMIT		(16 * 1024 * 1024)	/* bytes of a line, of an
												 * event */

typedef struct SwarmSseBuffer
{
	char	   *data;			/* on malloc, zero-terminated once used */
	size_t		length;
	size_t		room;
} SwarmSseBuffer;

/* Called with each event that has data; must not come back into the parser. */
typedef void (*SwarmSseEmit) (void *arg, const char *name, const char *data, size_t length);

typedef struct SwarmSse
{
	SwarmSseEmit emit;
	void	   *arg;
	SwarmSseBuffer line;
	SwarmSseBuffer data;
	char		name[SWARM_SSE_NAME];
	bool		has_data;		/* a data line was there, perhaps empty */
	bool		after_cr;		/* a LF that comes now belongs to it */
	bool		past_first;		/* the first line, which may have a BOM, is
								 * over */
	bool		failed;			/* a line or an event was too long, or no
								 * memory */
} SwarmSse;

extern void swarm_sse_init(SwarmSse *sse, SwarmSseEmit emit, void *arg);

/* Parse the next bytes.  False once something was too long; then give up. */
extern bool swarm_sse_feed(SwarmSse *sse, const char *bytes, size_t length);

/* Free what it holds; it can be used again after swarm_sse_init(). */
extern void swarm_sse_free(SwarmSse *sse);

#endif							/* SWARM_LLM_SSE_H */
