/*
 * net.h
 *	  HTTP requests of one process, many at a time, driven from its latch.
 *
 * One curl multi handle a process.  A caller makes requests, submits them and
 * calls swarm_net_turn() until they are done; a turn waits on the latch and
 * on all sockets together, and heeds interrupts.  What is tried again, how
 * long after, and when an endpoint is left alone, is decided here, from
 * tables.  Nothing here knows SQL, transactions or S3; of foreign servers only
 * what all of ours have in common (net_server.c).
 */
#ifndef SWARM_NET_NET_H
#define SWARM_NET_NET_H

#include "datatype/timestamp.h"
#include "foreign/foreign.h"
#include "lib/ilist.h"

#include "base/policy.h"

/* ------------------------------------------------------------------------
 * What becomes of an attempt (net_retry.c)
 * ------------------------------------------------------------------------ */

typedef enum SwarmNetVerdict
{
	SWARM_NET_DONE,				/* an answer the caller wants */
	SWARM_NET_FAIL,				/* another attempt would end the same */
	SWARM_NET_RETRY,			/* after a pause */
	SWARM_NET_SLOW,				/* the same, and fewer at a time */
	SWARM_NET_ONCE,				/* at once, but only one time */
	SWARM_NET_FRESH				/* at once, on a new connection */
} SwarmNetVerdict;

/* How an attempt ended: a rule matches a curl code, a status or an error name. */
typedef enum SwarmNetLayer
{
	SWARM_NET_KEPT,				/* a curl code, before any answer, of a
								 * connection that had been used before */
	SWARM_NET_CURL,
	SWARM_NET_HTTP,
	SWARM_NET_NAME
} SwarmNetLayer;

typedef struct SwarmNetRule
{
	SwarmNetLayer layer;
	int			from;			/* curl codes or statuses from .. to */
	int			to;
	const char *name;			/* error name, or NULL */
	SwarmNetVerdict verdict;
	bool		harms;			/* counts against the endpoint */
	const char *why;
} SwarmNetRule;

extern const SwarmNetRule swarm_net_rules[];
extern const int swarm_net_nrules;
extern const char *swarm_net_verdict_name(SwarmNetVerdict verdict);
extern const char *swarm_net_layer_name(SwarmNetLayer layer);

/* The first rule of `rules` for that name, or NULL. */
extern const SwarmNetRule *swarm_net_rule_named(const SwarmNetRule *rules, int n,
												const char *name);

/* ------------------------------------------------------------------------
 * Endpoints (net_breaker.c)
 * ------------------------------------------------------------------------ */

#define SWARM_NET_ENDPOINT_NAME	192
#define SWARM_NET_ENDPOINTS		64

typedef enum SwarmBreakerState
{
	SWARM_BREAKER_CLOSED,
	SWARM_BREAKER_OPEN,
	SWARM_BREAKER_HALF_OPEN,
	SWARM_BREAKER_STATES
} SwarmBreakerState;

typedef enum SwarmBreakerEvent
{
	SWARM_BREAKER_SUCCESS,		/* an answer came */
	SWARM_BREAKER_HARM,			/* none came, or one that says it is unwell */
	SWARM_BREAKER_TRIP,			/* as many harms in a row as are allowed */
	SWARM_BREAKER_COOLED		/* the pause is over, and somebody asks */
} SwarmBreakerEvent;

typedef struct SwarmBreakerEdge
{
	SwarmBreakerState from;
	SwarmBreakerEvent event;
	SwarmBreakerState to;
	const char *why;
} SwarmBreakerEdge;

extern const SwarmBreakerEdge swarm_breaker_edges[];
extern const int swarm_breaker_nedges;
extern const char *swarm_breaker_state_name(SwarmBreakerState state);
extern const char *swarm_breaker_event_name(SwarmBreakerEvent event);

/*
 * What all processes know of an endpoint, scheme://host:port.  In shared
 * memory where there is some; forgotten at restart.
 */
typedef struct SwarmNetEndpoint
{
	char		name[SWARM_NET_ENDPOINT_NAME];	/* "" = free */
	SwarmBreakerState state;
	int			harms;			/* in a row */
	int			trips;			/* in a row, for the length of the pause */
	TimestampTz until;			/* open until; half-open: the probe's time */
	int			probe_pid;
	int			running;		/* requests under way, all processes */
	double		limit;			/* at a time; 0 = not lowered */
	TimestampTz used;
	int64		requests;
	int64		failures;
	int64		slowdowns;
	int64		bytes_sent;
	int64		bytes_received;
	double		latency_ms;		/* moving average */
	double		latency_max_ms;
} SwarmNetEndpoint;

/*
 * Scheme and host, with port, of an endpoint; false if it is none: there may
 * be a slash at its end, but no path, query or user (net_endpoint.c).
 */
extern bool swarm_net_split_endpoint(const char *endpoint, bool *https, char **host);

/* Is the host an address, or localhost? */
extern bool swarm_net_host_is_literal(const char *host);

/* Is the endpoint left alone at the moment? */
extern bool swarm_net_endpoint_is_open(const SwarmNetEndpoint *endpoint);

/* Find or make the record of an endpoint; never NULL. */
extern SwarmNetEndpoint *swarm_net_endpoint(const char *name);

/* Copy up to SWARM_NET_ENDPOINTS records in use; returns how many. */
extern int	swarm_net_endpoints(SwarmNetEndpoint *copies);

/* ------------------------------------------------------------------------
 * Requests (net_request.c, net_multi.c)
 * ------------------------------------------------------------------------ */

/*
 * A body to send: a stretch of memory, of blocks of memory or of a file.  It
 * can be read again from its start, since an attempt may be.
 */
#define SWARM_NET_BLOCK		(128 * 1024)

typedef struct SwarmNetBody
{
	const char *memory;			/* or NULL */
	char	  **blocks;			/* of SWARM_NET_BLOCK bytes each; or NULL */
	int			fd;				/* or -1 */
	int64		offset;			/* of the stretch's first byte */
	int64		length;
	int64		read;			/* so far, by the attempt under way */
} SwarmNetBody;

/*
 * Where the byte at `at` of a body is, and how many follow it there, at most
 * *length; NULL for a body in a file.
 */
static inline const char *
swarm_net_body_at(const SwarmNetBody *body, int64 at, int64 *length)
{
	*length = Min(*length, body->length - at);
	at += body->offset;
	if (body->blocks != NULL)
	{
		*length = Min(*length, SWARM_NET_BLOCK - at % SWARM_NET_BLOCK);
		return body->blocks[at / SWARM_NET_BLOCK] + at % SWARM_NET_BLOCK;
	}
	return body->memory != NULL ? body->memory + at : NULL;
}

typedef struct SwarmNetRequest SwarmNetRequest;

/*
 * A request.  Made by swarm_net_request(); the first part is the caller's to
 * fill in before swarm_net_submit(), the second is the result.
 */
struct SwarmNetRequest
{
	const char *method;
	SwarmNetEndpoint *endpoint;
	int			parallel;		/* at most so many at a time there */
	const char *ca_file;		/* or NULL: the system's */
	bool		host_is_literal;	/* an address or localhost */
	SwarmNetBody body;
	bool		at_once;		/* send the body without asking first */
	int			sink;			/* file for the body of a 2xx answer, or -1 */
	int64		answer_limit;	/* bytes of an answer that are accepted */
	SwarmPolicy policy;			/* zero: the settings */
	int			max_attempts;	/* 0: the policy's, or the setting */
	int			stall_ms;		/* 0: pg_swarm.net_stall_timeout */
	int			timeout_ms;		/* of an attempt; 0: pg_swarm.net_timeout */
	void	   *caller;			/* for the caller's own use */

	/*
	 * Called before each attempt: gives url and headers by swarm_net_url()
	 * and swarm_net_header(), or sets error_name to fail the request, or has
	 * the answer itself: swarm_net_answer().
	 */
	void		(*prepare) (SwarmNetRequest *request);

	/*
	 * Called after an answer, whatever its status: the rule that decides, or
	 * NULL for that of the status.  Sets error_name and error_text.
	 */
	const SwarmNetRule *(*judge) (SwarmNetRequest *request);

	/* result */
	bool		finished;
	bool		succeeded;
	int			status;			/* of the last answer, as soon as its head is
								 * there; 0 = none came */
	int			curl_code;
	int			attempts;
	const char *answer;			/* body so far, zero-terminated; "" if it went
								 * to sink.  Between two turns a caller may
								 * read what has come */
	size_t		answer_length;
	int64		sent;			/* body bytes, of the last attempt */
	int64		received;
	double		latency_ms;		/* of the last attempt */
	char		error_name[64]; /* as the remote or curl calls it */
	char		error_text[256];

	struct SwarmNetState *net;	/* private to the module */
};

/*
 * A new request.  It ends with `context`: an attempt under way is dropped then,
 * so that an error anywhere leaves nothing behind.
 */
extern SwarmNetRequest *swarm_net_request(MemoryContext context);
extern void swarm_net_url(SwarmNetRequest *request, const char *url);
extern void swarm_net_header(SwarmNetRequest *request, const char *name, const char *value);

/*
 * How an attempt ended that needs no network; for prepare().  `head` has lines
 * "name: value".  With a sink the body is there already.
 */
extern void swarm_net_answer(SwarmNetRequest *request, int status, const char *head,
							 const char *body, size_t length);

/* The same: nobody is there, which is tried again; it can't be taken, which isn't. */
extern void swarm_net_unreachable(SwarmNetRequest *request, const char *why);
extern void swarm_net_unacceptable(SwarmNetRequest *request, const char *why);

/* Queue a request; it starts in a turn when there is room for it. */
extern void swarm_net_submit(SwarmNetRequest *request);

/* Drop what is under way; the request counts as finished, failed. */
extern void swarm_net_cancel(SwarmNetRequest *request, const char *why);

/* Is it waiting or under way? */
extern bool swarm_net_pending(const SwarmNetRequest *request);

/* End a request now, rather than with its memory context. */
extern void swarm_net_free(SwarmNetRequest *request);

/*
 * One turn: start what may start, wait until something happens or max_ms are
 * over, serve it.  Handles interrupts, so it may raise an error; must not be
 * called with a transaction open in a process that others may wait for.  False
 * if no socket had anything to say.
 */
extern bool swarm_net_turn(long max_ms);

/* The next request that has finished since it was submitted, or NULL. */
extern SwarmNetRequest *swarm_net_next(void);

/* Run one request to its end. */
extern void swarm_net_perform(SwarmNetRequest *request);

/* A header of the last answer, in CurrentMemoryContext, or NULL. */
extern char *swarm_net_answer_header(const SwarmNetRequest *request, const char *name);

/* The first header from *position whose name begins so: its name and value. */
extern bool swarm_net_answer_headers(const SwarmNetRequest *request, const char *prefix,
									 int *position, char **name, char **value);

/*
 * Copy a text that goes to tables and messages: cut between characters, with '?'
 * for what is no text in the database's encoding.
 */
extern void swarm_net_text(char *to, size_t room, const char *from);

/* Milliseconds of a clock that nobody moves. */
extern int64 swarm_net_ms(void);

/* ------------------------------------------------------------------------
 * Foreign servers that stand for endpoints (net_server.c)
 * ------------------------------------------------------------------------ */

/* An option; check raises 22023 for a bad value. */
typedef struct SwarmNetOption
{
	const char *name;
	Oid			catalog;		/* of servers, or of user mappings */
	void		(*check) (const char *name, const char *value);
} SwarmNetOption;

/* A foreign data wrapper of ours. */
typedef struct SwarmNetWrapper
{
	const char *name;
	const SwarmNetOption *options;
	int			noptions;
	const char *options_hint;	/* which ones there are */
	const char *secrets_hint;	/* where those of user mappings belong */
	const char *example;		/* of an endpoint */
	const char *setting;		/* lists the endpoints that are allowed */
	char	  **allowed;		/* its value */

	/* or NULL: raises 42501 for endpoints that are for superusers only */
	void		(*for_superusers) (const char *endpoint);
} SwarmNetWrapper;

/*
 * For a validator: check the options, and that the current user may create a
 * server with them.  Errors: HV00D, HV00P, 22023, 42501.
 */
extern List *swarm_net_options(const SwarmNetWrapper *wrapper, Datum options, Oid catalog);
extern void swarm_net_option_invalid(const char *name, const char *value, const char *hint);

/* Checks that more than one wrapper needs: endpoint, max_parallel, ca_file. */
extern void swarm_net_check_endpoint(const char *name, const char *value);
extern void swarm_net_check_parallel(const char *name, const char *value);
extern void swarm_net_check_file(const char *name, const char *value);

/* Define wrapper->setting; called from _PG_init. */
extern void swarm_net_define_allowed(const SwarmNetWrapper *wrapper);

/* The value of an option, or NULL. */
extern char *swarm_net_option(List *options, const char *name);

/* A server of the wrapper that the current user may use.  Errors: 42704, 42809, 42501. */
extern ForeignServer *swarm_net_server(const SwarmNetWrapper *wrapper, const char *name);

/*
 * Options of the user mapping of the current user, or of PUBLIC: false if there
 * is neither.  They hold secrets: the caller wipes what it keeps.
 */
extern bool swarm_net_mapping(const ForeignServer *server, List **options);

/* Settings and shared memory; called from _PG_init. */
extern void swarm_net_init(void);

extern int	swarm_net_max_attempts;

#endif							/* SWARM_NET_NET_H */
