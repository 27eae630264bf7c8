/*
 * net_retry.c
 *	  What becomes of an attempt, as a table, and how long to pause.
 *
 * The first rule that matches decides; a caller with error names of its own
 * has a table of the same form for them.
 */
#include "postgres.h"

#include <curl/curl.h>

#include "common/pg_prng.h"

#include "net/net_int.h"

const SwarmNetRule swarm_net_rules[] = {
	{SWARM_NET_KEPT, CURLE_GOT_NOTHING, CURLE_GOT_NOTHING, NULL, SWARM_NET_FRESH, false, "it was closed while nobody used it"},
	{SWARM_NET_KEPT, CURLE_SEND_ERROR, CURLE_RECV_ERROR, NULL, SWARM_NET_FRESH, false, "it was closed while nobody used it"},
	{SWARM_NET_KEPT, CURLE_SEND_FAIL_REWIND, CURLE_SEND_FAIL_REWIND, NULL, SWARM_NET_FRESH, false, "it was closed while nobody used it"},
	{SWARM_NET_CURL, CURLE_COULDNT_RESOLVE_PROXY, CURLE_COULDNT_RESOLVE_HOST, NULL, SWARM_NET_RETRY, true, "a name server may be away for a moment"},
	{SWARM_NET_CURL, CURLE_COULDNT_CONNECT, CURLE_COULDNT_CONNECT, NULL, SWARM_NET_RETRY, true, "nobody listens there now"},
	{SWARM_NET_CURL, CURLE_PARTIAL_FILE, CURLE_PARTIAL_FILE, NULL, SWARM_NET_RETRY, true, "the answer was cut"},
	{SWARM_NET_CURL, CURLE_OPERATION_TIMEDOUT, CURLE_OPERATION_TIMEDOUT, NULL, SWARM_NET_RETRY, true, "no answer in time, or no byte for too long"},
	{SWARM_NET_CURL, CURLE_SSL_CONNECT_ERROR, CURLE_SSL_CONNECT_ERROR, NULL, SWARM_NET_RETRY, true, "the connection broke while TLS was agreed on"},
	{SWARM_NET_CURL, CURLE_GOT_NOTHING, CURLE_GOT_NOTHING, NULL, SWARM_NET_RETRY, true, "the connection closed without an answer"},
	{SWARM_NET_CURL, CURLE_SEND_ERROR, CURLE_RECV_ERROR, NULL, SWARM_NET_RETRY, true, "the connection broke"},
	{SWARM_NET_CURL, CURLE_SEND_FAIL_REWIND, CURLE_SEND_FAIL_REWIND, NULL, SWARM_NET_RETRY, true, "a kept connection was closed meanwhile"},
	{SWARM_NET_CURL, CURLE_WEIRD_SERVER_REPLY, CURLE_WEIRD_SERVER_REPLY, NULL, SWARM_NET_RETRY, true, "not an HTTP answer"},
	{SWARM_NET_CURL, 1, 999, NULL, SWARM_NET_FAIL, false, "certificate, address or request is not acceptable"},
	{SWARM_NET_HTTP, 200, 299, NULL, SWARM_NET_DONE, false, "success"},
	{SWARM_NET_HTTP, 300, 399, NULL, SWARM_NET_FAIL, false, "redirects are not followed: another host would see the credentials"},
	{SWARM_NET_HTTP, 408, 408, NULL, SWARM_NET_RETRY, true, "the server did not get the request in time"},
	{SWARM_NET_HTTP, 425, 425, NULL, SWARM_NET_RETRY, false, "too early"},
	{SWARM_NET_HTTP, 429, 429, NULL, SWARM_NET_SLOW, false, "too many requests"},
	{SWARM_NET_HTTP, 400, 499, NULL, SWARM_NET_FAIL, false, "the request is refused"},
	{SWARM_NET_HTTP, 501, 501, NULL, SWARM_NET_FAIL, false, "not implemented there"},
	{SWARM_NET_HTTP, 503, 503, NULL, SWARM_NET_SLOW, true, "overloaded or being restarted"},
	{SWARM_NET_HTTP, 500, 599, NULL, SWARM_NET_RETRY, true, "the server failed"},
	{SWARM_NET_HTTP, 0, 999, NULL, SWARM_NET_FAIL, false, "not an answer to such a request"}
};
const int	swarm_net_nrules = lengthof(swarm_net_rules);

const char *
swarm_net_verdict_name(SwarmNetVerdict verdict)
{
	static const char *const names[] = {"done", "fail", "retry", "slow down", "once more", "new connection"};

	return names[verdict];
}

const char *
swarm_net_layer_name(SwarmNetLayer layer)
{
	static const char *const names[] = {"kept connection", "connection", "status", "error"};

	return names[layer];
}

const SwarmNetRule *
swarm_net_rule_named(const SwarmNetRule *rules, int n, const char *name)
{
	for (int i = 0; i < n; i++)
	{
		if (rules[i].name != NULL && strcmp(rules[i].name, name) == 0)
			return &rules[i];
	}
	return NULL;
}

/*
 * swarm_net_rule_of: the rule for how the request's attempt ended.
 */
const SwarmNetRule *
swarm_net_rule_of(SwarmNetRequest *request)
{
	SwarmNetLayer layer = request->curl_code != CURLE_OK ? SWARM_NET_CURL : SWARM_NET_HTTP;
	int			code = layer == SWARM_NET_CURL ? request->curl_code : request->status;

	if (layer == SWARM_NET_HTTP && request->judge != NULL)
	{
		const SwarmNetRule *rule = request->judge(request);

		if (rule != NULL)
			return rule;
	}
	for (int i = 0; i < swarm_net_nrules; i++)
	{
		const SwarmNetRule *rule = &swarm_net_rules[i];

		if (rule->layer == SWARM_NET_KEPT && (layer != SWARM_NET_CURL || !request->net->kept))
			continue;
		if ((rule->layer == layer || rule->layer == SWARM_NET_KEPT) &&
			code >= rule->from && code <= rule->to)
			return rule;
	}
	pg_unreachable();
}

/*
 * swarm_net_pause_ms: how long to wait after the request's failed attempt.
 * Exponential with jitter in [0.5, 1.5), not less than the server asked for in
 * Retry-After, not more than its policy says, or pg_swarm.net_backoff_max.
 */
int64
swarm_net_pause_ms(const SwarmNetRequest *request)
{
	const SwarmPolicy *policy = &request->policy;
	double		ms = policy->first_wait_ms > 0 ? policy->first_wait_ms : swarm_net_backoff_ms;
	double		most = policy->max_wait_ms > 0 ? policy->max_wait_ms : swarm_net_backoff_max_ms;
	char	   *asked = swarm_net_answer_header(request, "retry-after");

	for (int i = 1; i < request->attempts - request->net->spared && ms < most; i++)
		ms *= policy->factor > 0 ? policy->factor : 2;
	ms *= 0.5 + pg_prng_double(&pg_global_prng_state);
	if (asked != NULL && atoi(asked) > 0)
		ms = Max(ms, atoi(asked) * 1000.0);
	return (int64) Min(ms, most);
}
