/*
 * llm_request.c
 *	  A request to a model's server, over module net: headers, the stream as
 *	  it comes, and what becomes of an attempt by the error that is named.
 *
 * The stream is parsed between the turns of the network, not in curl's
 * callbacks, so that parsing may allocate and raise errors.
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "llm/llm_int.h"

/* Names by which servers, and this file, call an error. */
const SwarmNetRule swarm_llm_rules[] = {
	{SWARM_NET_NAME, 0, 0, "rate_limit_error", SWARM_NET_SLOW, false, "the server asks for fewer requests"},
	{SWARM_NET_NAME, 0, 0, "rate_limit_exceeded", SWARM_NET_SLOW, false, "the server asks for fewer requests"},
	{SWARM_NET_NAME, 0, 0, "overloaded_error", SWARM_NET_SLOW, true, "overloaded, status 529"},
	{SWARM_NET_NAME, 0, 0, "unavailable_error", SWARM_NET_SLOW, true, "the model is being loaded"},
	{SWARM_NET_NAME, 0, 0, "api_error", SWARM_NET_RETRY, true, "the server failed"},
	{SWARM_NET_NAME, 0, 0, "server_error", SWARM_NET_RETRY, true, "the server failed"},
	{SWARM_NET_NAME, 0, 0, "timeout_error", SWARM_NET_RETRY, true, "the server took too long"},
	{SWARM_NET_NAME, 0, 0, "insufficient_quota", SWARM_NET_FAIL, false, "the account is used up: waiting does not help"},
	{SWARM_NET_NAME, 0, 0, "invalid_request_error", SWARM_NET_FAIL, false, "another attempt would end the same"},
	{SWARM_NET_NAME, 0, 0, "authentication_error", SWARM_NET_FAIL, false, "another attempt would end the same"},
	{SWARM_NET_NAME, 0, 0, "permission_error", SWARM_NET_FAIL, false, "another attempt would end the same"},
	{SWARM_NET_NAME, 0, 0, "not_found_error", SWARM_NET_FAIL, false, "the server does not know the model"},
	{SWARM_NET_NAME, 0, 0, "request_too_large", SWARM_NET_FAIL, false, "another attempt would end the same"},
	{SWARM_NET_NAME, 0, 0, "billing_error", SWARM_NET_FAIL, false, "the account is used up: waiting does not help"},
	{SWARM_NET_NAME, 0, 0, "StreamCut", SWARM_NET_RETRY, true, "the stream ended before the answer did"},
	{SWARM_NET_NAME, 0, 0, "BadStream", SWARM_NET_RETRY, true, "an event is not JSON, or too long"},
	{SWARM_NET_NAME, 0, 0, "BadAnswer", SWARM_NET_RETRY, true, "success was announced, but the answer is none"}
};
const int	swarm_llm_nrules = lengthof(swarm_llm_rules);

static void prepare(SwarmNetRequest *net);
static const SwarmNetRule *judge(SwarmNetRequest *net);
static const SwarmNetRule *judge_success(SwarmLlmRequest *request);
static const SwarmNetRule *named(SwarmNetRequest *net, const char *name, const char *text);
static void feed(SwarmLlmRequest *request);
static void note_spent(SwarmLlmRequest *request);
static void on_event(void *arg, const char *name, const char *data, size_t length);
static void release(void *arg);

SwarmLlmRequest *
swarm_llm_submit(SwarmLlmServer *server, const char *path, const char *body, bool chat)
{
	SwarmLlmRequest *request = palloc0(sizeof(SwarmLlmRequest));
	SwarmNetRequest *net = swarm_net_request(CurrentMemoryContext);

	request->server = server;
	request->path = path;
	request->body = body;
	request->chat = chat;
	request->answer.dialect = server->dialect;
	request->answer.secret = server->api_key;
	swarm_llm_answer_reset(&request->answer);
	swarm_sse_init(&request->sse, on_event, request);
	request->callback.func = release;
	request->callback.arg = request;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &request->callback);
	request->net = net;

	net->method = "POST";
	net->endpoint = server->endpoint;
	net->policy = server->policy;
	net->parallel = server->max_parallel;
	net->ca_file = server->ca_file;
	net->host_is_literal = server->literal;
	net->body.memory = body;
	net->body.fd = -1;
	net->body.length = strlen(body);
	net->at_once = true;
	net->answer_limit = swarm_llm_max_answer_kb * INT64CONST(1024);
	net->timeout_ms = server->timeout_ms;
	net->stall_ms = server->stall_ms;
	net->prepare = prepare;
	net->judge = judge;
	net->caller = request;
	swarm_net_submit(net);
	return request;
}

static void
release(void *arg)
{
	swarm_sse_free(&((SwarmLlmRequest *) arg)->sse);
}

bool
swarm_llm_turn(SwarmLlmRequest *request, long max_ms)
{
	swarm_net_turn(max_ms);
	while (swarm_net_next() != NULL)
		 /* there is no other request in this process */ ;
	/* status 0: a stream that broke off, whose last bytes count too */
	if (request->net->status == 0 || (request->net->status >= 200 && request->net->status <= 299))
		feed(request);
	note_spent(request);
	return request->net->finished;
}

/*
 * note_spent: whether the attempt may have cost something: it is answered, or
 * nobody knows what became of it.  A refusal costs nothing.
 */
static void
note_spent(SwarmLlmRequest *request)
{
	SwarmNetRequest *net = request->net;

	if (request->answer.events > 0 || (net->status >= 200 && net->status <= 299) ||
		(net->curl_code != 0 && net->status == 0 && net->sent > 0))
		request->spent = true;
	if (request->spent && net->error_name[0] != '\0')
		snprintf(request->why, sizeof(request->why), "%s (%s)", net->error_text, net->error_name);
}

/* prepare: the next attempt: what the last one has left is forgotten. */
static void
prepare(SwarmNetRequest *net)
{
	SwarmLlmRequest *request = net->caller;
	SwarmLlmServer *server = request->server;

	if (request->spent && request->again != NULL && !request->again(request))
	{
		strlcpy(net->error_name, "Stopped", sizeof(net->error_name));
		strlcpy(net->error_text, "no further attempt", sizeof(net->error_text));
		return;
	}
	request->spent = false;
	request->why[0] = '\0';
	swarm_sse_free(&request->sse);
	swarm_sse_init(&request->sse, on_event, request);
	swarm_llm_answer_reset(&request->answer);
	request->fed = 0;
	request->started_ms = swarm_net_ms();
	request->first_ms = -1;
	swarm_net_url(net, psprintf("%s%s", server->base, request->path));
	swarm_net_header(net, "Content-Type", "application/json");
	if (server->dialect == LLM_ANTHROPIC)
		swarm_net_header(net, "anthropic-version", server->version);
	if (server->api_key == NULL)
		return;
	if (server->dialect == LLM_ANTHROPIC)
		swarm_net_header(net, "x-api-key", server->api_key);
	else
	{
		char	   *value = psprintf("Bearer %s", server->api_key);

		swarm_net_header(net, "Authorization", value);
		explicit_bzero(value, strlen(value));
	}
}

/* feed: parse what has come since the last time. */
static void
feed(SwarmLlmRequest *request)
{
	SwarmNetRequest *net = request->net;

	if (!request->chat || net->answer_length <= request->fed)
		return;
	(void) swarm_sse_feed(&request->sse, net->answer + request->fed, net->answer_length - request->fed);
	request->fed = net->answer_length;
	if (request->first_ms < 0 && request->answer.text.len > 0)
		request->first_ms = swarm_net_ms() - request->started_ms;
}

static void
on_event(void *arg, const char *name, const char *data, size_t length)
{
	swarm_llm_answer_event(&((SwarmLlmRequest *) arg)->answer, data, length);
}

/*
 * judge: the rule for an answer, by the error it names; NULL leaves it to the
 * status.
 */
static const SwarmNetRule *
judge(SwarmNetRequest *net)
{
	SwarmLlmRequest *request = net->caller;
	Jsonb	   *document;

	if (net->status >= 200 && net->status <= 299)
		return judge_success(request);
	document = swarm_llm_json(net->answer, net->answer_length);
	if (document != NULL && JB_ROOT_IS_OBJECT(document))
	{
		JsonbContainer *error = swarm_llm_member(&document->root, "error");

		if (error != NULL)
			swarm_llm_note_error(error, request->server->api_key, net->error_name, sizeof(net->error_name),
								 net->error_text, sizeof(net->error_text));
	}
	return swarm_net_rule_named(swarm_llm_rules, swarm_llm_nrules, net->error_name);
}

static const SwarmNetRule *
judge_success(SwarmLlmRequest *request)
{
	SwarmNetRequest *net = request->net;
	SwarmLlmAnswer *answer = &request->answer;

	if (!request->chat)
		return swarm_llm_json(net->answer, net->answer_length) != NULL ? NULL :
			named(net, "BadAnswer", "the server announced success, but the answer is not JSON");
	feed(request);
	if (answer->error_name[0] != '\0')
	{
		const SwarmNetRule *rule = named(net, answer->error_name, answer->error_text);

		/* an error that nobody knows, in a stream that has begun well */
		return rule ? rule : swarm_net_rule_named(swarm_llm_rules, swarm_llm_nrules, "api_error");
	}
	if (request->sse.failed || answer->bad_events > 0)
		return named(net, "BadStream", "an event of the stream is not JSON, or too long");
	if (answer->complete)
		return NULL;
	if (answer->events > 0)
		return named(net, "StreamCut", "the stream ended before the answer did");
	/* a server that does not stream answers with one document */
	if (swarm_llm_answer_document(answer, net->answer, net->answer_length))
		return NULL;
	return named(net, "BadAnswer", "the server announced success, but did not answer the request");
}

static const SwarmNetRule *
named(SwarmNetRequest *net, const char *name, const char *text)
{
	strlcpy(net->error_name, name, sizeof(net->error_name));
	strlcpy(net->error_text, text, sizeof(net->error_text));
	return swarm_net_rule_named(swarm_llm_rules, swarm_llm_nrules, name);
}
