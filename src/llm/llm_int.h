/*
 * llm_int.h
 *	  Private parts of module llm.
 */
#ifndef SWARM_LLM_LLM_INT_H
#define SWARM_LLM_LLM_INT_H

#include "lib/stringinfo.h"
#include "nodes/pg_list.h"
#include "utils/jsonb.h"

#include "llm/llm.h"
#include "llm/llm_sse.h"
#include "net/net.h"

extern char *swarm_llm_allowed_endpoints;
extern int	swarm_llm_max_answer_kb;

/* ------------------------------------------------------------------------
 * Servers (llm_server.c)
 * ------------------------------------------------------------------------ */

typedef enum SwarmLlmDialect
{
	LLM_ANTHROPIC,				/* the Messages API */
	LLM_OPENAI					/* chat completions */
} SwarmLlmDialect;

/*
 * A foreign server and the key of its user mapping, as they are now.  The key
 * is overwritten when the context that holds it goes away.
 */
typedef struct SwarmLlmServer
{
	char	   *name;
	char	   *base;			/* https://host:port/v1 */
	SwarmLlmDialect dialect;
	char	   *version;		/* of the Messages API */
	bool		literal;		/* the host is an address or localhost */
	int			timeout_ms;		/* of an attempt; 0 = net's */
	int			stall_ms;
	int			max_parallel;
	char	   *ca_file;		/* or NULL */
	char	   *api_key;		/* or NULL: none is sent */
	SwarmPolicy policy;
	SwarmNetEndpoint *endpoint;
} SwarmLlmServer;

/*
 * Read a server of wrapper swarm_llm into the current memory context.  The
 * current user needs USAGE on it.  Errors: 42704, 42501, 22023, 42809.
 */
extern SwarmLlmServer *swarm_llm_server(const char *name);

/* ------------------------------------------------------------------------
 * JSON that came from outside (llm_json.c)
 * ------------------------------------------------------------------------ */

/* The document, or NULL if it is none.  Needs no transaction. */
extern Jsonb *swarm_llm_json(const char *text, size_t length);

/* A member of an object: object or array, string, number. NULL or otherwise
 * if there is none of that type. */
extern JsonbContainer *swarm_llm_member(JsonbContainer *object, const char *key);
extern char *swarm_llm_string(JsonbContainer *object, const char *key);
extern int64 swarm_llm_integer(JsonbContainer *object, const char *key, int64 otherwise);
extern JsonbContainer *swarm_llm_element(JsonbContainer *array, uint32 i);

/* Text of a server, shortened and made printable ASCII, for messages. */
extern void swarm_llm_printable(char *to, const char *from, size_t room);

/* ------------------------------------------------------------------------
 * An answer (llm_answer.c, llm_anthropic.c, llm_openai.c)
 * ------------------------------------------------------------------------ */

typedef struct SwarmLlmBlock
{
	char	   *type;			/* text, tool_use, thinking, or another */
	StringInfoData text;		/* text, thinking, or a tool's input as JSON */
	char	   *id;				/* of a tool call */
	char	   *name;			/* of a tool */
	char	   *signature;		/* of thinking */
	char	   *raw;			/* of another type: the block as it came */
} SwarmLlmBlock;

/* What has come of the answer to one attempt. */
typedef struct SwarmLlmAnswer
{
	MemoryContext context;
	SwarmLlmDialect dialect;
	const char *secret;			/* the key, which no error may show; or NULL */
	List	   *blocks;			/* of SwarmLlmBlock */
	StringInfoData text;		/* what a reader sees */
	int64		tokens_in;		/* with the cached ones; -1 = not told */
	int64		tokens_out;		/* -1 = not told */
	int64		cache_read;
	int64		cache_write;
	char	   *stop_reason;	/* as the Messages API calls it, or NULL */
	bool		complete;		/* the server has said that this is all */
	int			events;
	int			bad_events;		/* not JSON, or not an object */
	char		error_name[64]; /* an error inside the stream */
	char		error_text[256];
} SwarmLlmAnswer;

extern void swarm_llm_answer_reset(SwarmLlmAnswer *answer);
extern void swarm_llm_answer_event(SwarmLlmAnswer *answer, const char *data, size_t length);

/* A whole answer in one document; false if it is none. */
extern bool swarm_llm_answer_document(SwarmLlmAnswer *answer, const char *data, size_t length);

/* The i-th block; made, of that type, if it is not there. */
extern SwarmLlmBlock *swarm_llm_block(SwarmLlmAnswer *answer, int i, const char *type);

/* The text grows: in the block and for readers. */
extern void swarm_llm_block_text(SwarmLlmAnswer *answer, SwarmLlmBlock *block, const char *text);

/* Bytes of all that has come, which is not only text. */
extern int64 swarm_llm_answer_bytes(const SwarmLlmAnswer *answer);

/* The blocks as a JSON array in the form of the Messages API. */
extern char *swarm_llm_content(const SwarmLlmAnswer *answer);

/* An error object of either dialect: its name and text, without the secret. */
extern void swarm_llm_note_error(JsonbContainer *error, const char *secret, char *name, size_t name_room,
								 char *text, size_t text_room);

extern void swarm_llm_anthropic_event(SwarmLlmAnswer *answer, JsonbContainer *event);
extern bool swarm_llm_anthropic_document(SwarmLlmAnswer *answer, JsonbContainer *document);
extern void swarm_llm_openai_event(SwarmLlmAnswer *answer, JsonbContainer *event);
extern bool swarm_llm_openai_document(SwarmLlmAnswer *answer, JsonbContainer *document);

/* ------------------------------------------------------------------------
 * Requests (llm_request.c)
 * ------------------------------------------------------------------------ */

typedef struct SwarmLlmRequest SwarmLlmRequest;

/* What is asked of a server. */
struct SwarmLlmRequest
{
	SwarmLlmServer *server;
	const char *path;			/* below the server's base: /messages */
	const char *body;			/* JSON */
	bool		chat;			/* an answer to be parsed; else a document */
	SwarmLlmAnswer answer;
	SwarmNetRequest *net;
	SwarmSse	sse;
	size_t		fed;			/* bytes of the attempt that were parsed */
	int64		started_ms;		/* of the attempt, monotonic */
	int64		first_ms;		/* first text after its start; -1 = none yet */
	bool		spent;			/* the attempt may have cost something */
	char		why[384];		/* ... and has failed, so */

	/*
	 * Called before another attempt follows one that may have cost something:
	 * outside of a transaction, in a turn.  False: none shall follow.
	 */
	bool		(*again) (SwarmLlmRequest *request);
	void	   *caller;			/* for the caller's own use */
	MemoryContextCallback callback;
};

/* Submit; ends with the current memory context. */
extern SwarmLlmRequest *swarm_llm_submit(SwarmLlmServer *server, const char *path,
										 const char *body, bool chat);

/* One turn of the network; parses what has come. True: it is finished. */
extern bool swarm_llm_turn(SwarmLlmRequest *request, long max_ms);

/* Rules for the names of errors, before those of the status. */
extern const SwarmNetRule swarm_llm_rules[];
extern const int swarm_llm_nrules;

#endif							/* SWARM_LLM_LLM_INT_H */
