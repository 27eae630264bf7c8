/*
 * net_int.h
 *	  Private parts of module net.
 */
#ifndef SWARM_NET_NET_INT_H
#define SWARM_NET_NET_INT_H

#include <curl/curl.h>
#include <signal.h>

#include "net/net.h"

#define NET_HEADER_ROOM		(16 * 1024)
#define NET_ANSWER_ERROR	(64 * 1024) /* bytes of an error that are kept */

/* What curl and its callbacks know of a request.  On malloc: see README. */
typedef struct SwarmNetState
{
	SwarmNetRequest *request;
	CURL	   *easy;			/* NULL: no attempt under way */
	struct curl_slist *headers;
	char	   *url;
	char	   *answer;
	size_t		answer_room;
	char		head[NET_HEADER_ROOM];	/* header lines of the last answer */
	size_t		head_length;
	int			starts;			/* times curl has sent it in this attempt */
	char		message[CURL_ERROR_SIZE];
	const char *note;			/* why a callback stopped the attempt */
	int			note_errno;
	bool		answered;		/* by prepare(), with answer_code */
	CURLcode	answer_code;
	bool		listed;			/* in the queue, or among the finished */
	bool		probing;		/* it is the endpoint's probe */
	bool		once;			/* has had its verdict ONCE */
	bool		kept;			/* the attempt had no other connection than
								 * ones that were used before */
	bool		fresh;			/* the next attempt opens a connection */
	int			spared;			/* attempts that say nothing of the endpoint:
								 * their connection had been closed */
	int64		due_ms;			/* not before */
	int64		started_ms;
	dlist_node	node;
	MemoryContextCallback callback;
	MemoryContext attempt;		/* for prepare() */
} SwarmNetState;

/* net.c */
extern int	swarm_net_connect_timeout_ms;
extern int	swarm_net_stall_timeout_ms;
extern int	swarm_net_timeout_ms;
extern int	swarm_net_backoff_ms;
extern int	swarm_net_backoff_max_ms;
extern int	swarm_net_breaker_harms;
extern int	swarm_net_breaker_pause_ms;
extern char *swarm_net_proxy;
extern char *swarm_net_allowed_addresses;

/* net_request.c: options of an easy handle; NULL if memory is short */
extern CURL *swarm_net_easy(SwarmNetState *state);
extern void swarm_net_attempt_reset(SwarmNetState *state);

/* net_address.c: may this process connect there? */
extern bool swarm_net_address_allowed(const struct sockaddr *address, bool literal);
extern bool swarm_net_check_addresses(char **value, void **extra, int source);

/* net_retry.c */
extern const SwarmNetRule *swarm_net_rule_of(SwarmNetRequest *request);
extern int64 swarm_net_pause_ms(const SwarmNetRequest *request);

/* net_breaker.c */
extern void swarm_breaker_init(void);
extern bool swarm_breaker_admits(SwarmNetEndpoint *endpoint, bool *probing);
extern void swarm_breaker_started(SwarmNetEndpoint *endpoint);
extern void swarm_breaker_ended(SwarmNetRequest *request, SwarmNetVerdict verdict,
								bool harms, bool probing);
extern void swarm_breaker_dropped(SwarmNetEndpoint *endpoint, bool probing);
extern int	swarm_breaker_room(const SwarmNetEndpoint *endpoint, int parallel);

#endif							/* SWARM_NET_NET_INT_H */
