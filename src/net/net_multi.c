/*
 * net_multi.c
 *	  The engine: requests of this process through one curl multi handle.
 *
 * curl's sockets are in an epoll descriptor, and that one descriptor is
 * waited for together with the latch.  All signals are blocked around calls
 * into curl, since a thread that resolves names inherits the mask and must
 * not run a handler of the server's.
 *
 * A request is in one place: the queue (waiting for its time, for room or for
 * the breaker), under way (has an easy handle), or among the finished.
 */
#include "postgres.h"

#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "base/compat.h"
#include "base/fault.h"
#include "net/net_int.h"

#define CONNECTIONS_KEPT	64L
#define EVENTS				64
#define LONGEST_TURN_MS		60000

typedef struct Engine
{
	CURLM	   *multi;
	int			epoll;
	int64		timer_ms;		/* when curl wants to be called; 0 = never */
	int			running;
	uint32		wait_event;
	dlist_head	waiting;
	dlist_head	finished;
} Engine;

static Engine engine;
static bool engine_up = false;

static void engine_start(void);
static void engine_stop(int code, Datum arg);
static int	on_timer(CURLM *multi, long ms, void *arg);
static int	on_socket(CURL *easy, curl_socket_t s, int what, void *arg, void *known);
static int64 start_waiting(int64 now);
static void prepare(SwarmNetState *state);
static bool start_attempt(SwarmNetState *state);
static void refuse_attempt(SwarmNetState *state);
static int	running_at(const SwarmNetEndpoint *endpoint);
static bool serve(void);
static void collect(void);
static void attempt_ended(SwarmNetState *state, CURLcode code);
static const SwarmNetRule *judge(SwarmNetState *state);
static void describe_failure(SwarmNetState *state);
static void settle(SwarmNetState *state, const SwarmNetRule *rule);
static void finish(SwarmNetState *state, bool succeeded);
static bool no_more_attempts(const SwarmNetRequest *request);
static void drop_attempt(SwarmNetState *state);
static void forget_request(void *arg);

/* Requests under way, to count those of an endpoint. */
#define MAX_RUNNING		1024
static SwarmNetState *under_way[MAX_RUNNING];

#define WITHOUT_SIGNALS_BEGIN() \
	do { \
		sigset_t	all_signals, before_signals; \
		sigfillset(&all_signals); \
		sigprocmask(SIG_SETMASK, &all_signals, &before_signals)
#define WITHOUT_SIGNALS_END() \
		sigprocmask(SIG_SETMASK, &before_signals, NULL); \
	} while (0)

int64
swarm_net_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64CONST(1000) + t.tv_nsec / 1000000 + 1;
}

/* ------------------------------------------------------------------------
 * Start and end
 * ------------------------------------------------------------------------ */

/*
 * engine_start: at the first request of the process, never in the postmaster,
 * whose children would share what it opened.
 */
static void
engine_start(void)
{
	bool		ok = true;

	if (engine_up)
		return;
	if (engine.wait_event == 0)
		engine.wait_event = swarm_wait_event_new("SwarmNet");
	engine.epoll = epoll_create1(EPOLL_CLOEXEC);
	if (engine.epoll < 0)
		ereport(ERROR,
				(errcode_for_file_access(), errmsg("could not create an epoll descriptor: %m")));
	(void) AcquireExternalFD();
	WITHOUT_SIGNALS_BEGIN();
	engine.multi = curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK ? curl_multi_init() : NULL;
	if (engine.multi != NULL)
		ok = curl_multi_setopt(engine.multi, CURLMOPT_SOCKETFUNCTION, on_socket) == CURLM_OK &&
			curl_multi_setopt(engine.multi, CURLMOPT_TIMERFUNCTION, on_timer) == CURLM_OK &&
			curl_multi_setopt(engine.multi, CURLMOPT_MAXCONNECTS, CONNECTIONS_KEPT) == CURLM_OK &&
			curl_multi_setopt(engine.multi, CURLMOPT_PIPELINING, (long) CURLPIPE_NOTHING) == CURLM_OK;
	WITHOUT_SIGNALS_END();
	if (engine.multi == NULL || !ok)
	{
		close(engine.epoll);
		ReleaseExternalFD();
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY), errmsg("could not start libcurl")));
	}
	dlist_init(&engine.waiting);
	dlist_init(&engine.finished);
	engine.timer_ms = 0;
	engine.running = 0;
	engine_up = true;
	before_shmem_exit(engine_stop, (Datum) 0);
}

/*
 * engine_stop: the process ends; nothing may be left marked as under way, nor
 * be counted again when the memory of a request goes.  The handles are left to
 * the kernel: closing them could wait for a thread that resolves a name.
 */
static void
engine_stop(int code, Datum arg)
{
	for (int i = 0; i < MAX_RUNNING; i++)
	{
		if (under_way[i] == NULL)
			continue;
		swarm_breaker_dropped(under_way[i]->request->endpoint, under_way[i]->probing);
		under_way[i]->easy = NULL;
		under_way[i] = NULL;
	}
}

SwarmNetRequest *
swarm_net_request(MemoryContext context)
{
	SwarmNetRequest *request;
	SwarmNetState *state;

	engine_start();
	request = MemoryContextAllocZero(context, sizeof(SwarmNetRequest));
	state = MemoryContextAllocZero(context, sizeof(SwarmNetState));
	request->net = state;
	request->answer = "";
	request->sink = -1;
	request->body.fd = -1;
	state->request = request;
	state->attempt = AllocSetContextCreate(context, "pg_swarm attempt", ALLOCSET_SMALL_SIZES);
	state->callback.func = forget_request;
	state->callback.arg = state;
	MemoryContextRegisterResetCallback(context, &state->callback);
	return request;
}

/* forget_request: the memory of a request goes away. */
static void
forget_request(void *arg)
{
	SwarmNetState *state = arg;

	if (state->request == NULL)
		return;
	drop_attempt(state);
	if (state->listed)
		dlist_delete(&state->node);
	state->listed = false;
	curl_slist_free_all(state->headers);
	free(state->url);
	free(state->answer);
	state->headers = NULL;
	state->url = NULL;
	state->answer = NULL;
	state->request = NULL;
}

void
swarm_net_free(SwarmNetRequest *request)
{
	SwarmNetState *state = request->net;

	forget_request(state);
	MemoryContextReset(state->attempt);
}

void
swarm_net_submit(SwarmNetRequest *request)
{
	SwarmNetState *state = request->net;

	Assert(!state->listed && state->easy == NULL);
	request->finished = request->succeeded = false;
	state->due_ms = 0;
	state->listed = true;
	dlist_push_tail(&engine.waiting, &state->node);
}

void
swarm_net_cancel(SwarmNetRequest *request, const char *why)
{
	SwarmNetState *state = request->net;

	if (request->finished)
		return;
	drop_attempt(state);
	if (state->listed)
		dlist_delete(&state->node);
	state->listed = false;
	strlcpy(request->error_name, "Cancelled", sizeof(request->error_name));
	strlcpy(request->error_text, why, sizeof(request->error_text));
	finish(state, false);
}

bool
swarm_net_pending(const SwarmNetRequest *request)
{
	return !request->finished && request->net->request != NULL &&
		(request->net->listed || request->net->easy != NULL);
}

SwarmNetRequest *
swarm_net_next(void)
{
	SwarmNetState *state;

	if (!engine_up || dlist_is_empty(&engine.finished))
		return NULL;
	state = dlist_head_element(SwarmNetState, node, &engine.finished);
	dlist_delete(&state->node);
	state->listed = false;
	return state->request;
}

void
swarm_net_perform(SwarmNetRequest *request)
{
	swarm_net_submit(request);
	while (!request->finished)
		swarm_net_turn(LONGEST_TURN_MS);
	dlist_delete(&request->net->node);
	request->net->listed = false;
}

/* ------------------------------------------------------------------------
 * A turn
 * ------------------------------------------------------------------------ */

bool
swarm_net_turn(long max_ms)
{
	bool		events;
	int64		now = swarm_net_ms();
	int64		wake;
	int			rc;

	engine_start();
	wake = Min(start_waiting(now), now + Min(max_ms, LONGEST_TURN_MS));
	if (engine.timer_ms != 0)
		wake = Min(wake, engine.timer_ms);
	if (!dlist_is_empty(&engine.finished))
		wake = now;
	rc = WaitLatchOrSocket(MyLatch, WL_LATCH_SET | WL_SOCKET_READABLE | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
						   engine.epoll, Max(wake - swarm_net_ms(), 0), engine.wait_event);
	if (rc & WL_LATCH_SET)
		ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	events = serve();
	collect();
	SWARM_FAULT("net.turn");
	return events;
}

/*
 * start_waiting: begin what is due and has room.  Returns when to look again.
 */
static int64
start_waiting(int64 now)
{
	dlist_mutable_iter i;
	int64		next = now + LONGEST_TURN_MS;

	dlist_foreach_modify(i, &engine.waiting)
	{
		SwarmNetState *state = dlist_container(SwarmNetState, node, i.cur);
		SwarmNetRequest *request = state->request;
		bool		probing;

		if (state->due_ms > now)
		{
			next = Min(next, state->due_ms);
			continue;
		}
		if (engine.running >= MAX_RUNNING ||
			running_at(request->endpoint) >= swarm_breaker_room(request->endpoint, request->parallel))
			continue;
		dlist_delete(&state->node);
		state->listed = false;
		request->attempts++;
		if (!swarm_breaker_admits(request->endpoint, &probing))
		{
			refuse_attempt(state);
			next = now;
			continue;
		}
		state->probing = probing;
		if (!start_attempt(state))
			next = now;
	}
	return next;
}

static int
running_at(const SwarmNetEndpoint *endpoint)
{
	int			n = 0;

	for (int i = 0, seen = 0; i < MAX_RUNNING && seen < engine.running; i++)
	{
		if (under_way[i] == NULL)
			continue;
		seen++;
		n += under_way[i]->request->endpoint == endpoint;
	}
	return n;
}

/* prepare: url, headers, signature; an error leaves nothing counted. */
static void
prepare(SwarmNetState *state)
{
	PG_TRY();
	{
		state->request->prepare(state->request);
	}
	PG_CATCH();
	{
		swarm_breaker_dropped(state->request->endpoint, state->probing);
		PG_RE_THROW();
	}
	PG_END_TRY();
}

/*
 * start_attempt: sign and send.  False if it has ended at once.
 */
static bool
start_attempt(SwarmNetState *state)
{
	SwarmNetRequest *request = state->request;
	MemoryContext old = MemoryContextSwitchTo(state->attempt);
	CURLMcode	rc = CURLM_OUT_OF_MEMORY;
	int			place = 0;

	MemoryContextReset(state->attempt);
	swarm_net_attempt_reset(state);
	swarm_breaker_started(request->endpoint);
	state->started_ms = swarm_net_ms();
	prepare(state);
	MemoryContextSwitchTo(old);
	if (request->error_name[0] != '\0')
	{
		swarm_breaker_dropped(request->endpoint, state->probing);
		state->probing = false;
		finish(state, false);
		return false;
	}
	if (state->answered)
	{
		attempt_ended(state, state->answer_code);
		return false;
	}

	while (under_way[place] != NULL)
		place++;
	state->started_ms = swarm_net_ms();
	WITHOUT_SIGNALS_BEGIN();
	state->easy = swarm_net_easy(state);
	if (state->easy != NULL)
	{
		rc = curl_multi_add_handle(engine.multi, state->easy);
		if (rc != CURLM_OK)
			curl_easy_cleanup(state->easy);
	}
	WITHOUT_SIGNALS_END();
	if (rc != CURLM_OK)
	{
		state->easy = NULL;
		attempt_ended(state, CURLE_OUT_OF_MEMORY);
		return false;
	}
	under_way[place] = state;
	engine.running++;
	return true;
}

/* refuse_attempt: the breaker is open: an attempt that fails without a byte. */
static void
refuse_attempt(SwarmNetState *state)
{
	SwarmNetRequest *request = state->request;

	/* what the endpoint said last is the better explanation */
	if (request->error_name[0] == '\0')
	{
		strlcpy(request->error_name, "CircuitOpen", sizeof(request->error_name));
		snprintf(request->error_text, sizeof(request->error_text),
				 "endpoint %s has failed too often and is left alone for a while",
				 request->endpoint->name);
	}
	if (no_more_attempts(request))
	{
		finish(state, false);
		return;
	}
	state->due_ms = swarm_net_ms() + swarm_net_pause_ms(request);
	state->listed = true;
	dlist_push_tail(&engine.waiting, &state->node);
}

/*
 * serve: let curl do what its sockets and its timer ask for.  False if no
 * socket did.
 */
static bool
serve(void)
{
	struct epoll_event events[EVENTS];
	int			n;
	int			still;

	WITHOUT_SIGNALS_BEGIN();
	n = epoll_wait(engine.epoll, events, EVENTS, 0);
	for (int i = 0; i < n; i++)
	{
		int			what = 0;

		if (events[i].events & EPOLLIN)
			what |= CURL_CSELECT_IN;
		if (events[i].events & EPOLLOUT)
			what |= CURL_CSELECT_OUT;
		if (events[i].events & (EPOLLERR | EPOLLHUP))
			what |= CURL_CSELECT_ERR;
		curl_multi_socket_action(engine.multi, events[i].data.fd, what, &still);
	}
	if (engine.timer_ms != 0 && swarm_net_ms() >= engine.timer_ms)
	{
		engine.timer_ms = 0;
		curl_multi_socket_action(engine.multi, CURL_SOCKET_TIMEOUT, 0, &still);
	}
	WITHOUT_SIGNALS_END();
	return n > 0;
}

static int
on_timer(CURLM *multi, long ms, void *arg)
{
	engine.timer_ms = ms < 0 ? 0 : swarm_net_ms() + ms;
	return 0;
}

static int
on_socket(CURL *easy, curl_socket_t s, int what, void *arg, void *known)
{
	struct epoll_event event = {0};

	if (what == CURL_POLL_REMOVE)
	{
		(void) epoll_ctl(engine.epoll, EPOLL_CTL_DEL, s, &event);
		return 0;
	}
	event.data.fd = s;
	if (what & CURL_POLL_IN)
		event.events |= EPOLLIN;
	if (what & CURL_POLL_OUT)
		event.events |= EPOLLOUT;
	if (epoll_ctl(engine.epoll, EPOLL_CTL_MOD, s, &event) != 0 && errno == ENOENT)
		(void) epoll_ctl(engine.epoll, EPOLL_CTL_ADD, s, &event);
	return 0;
}

/* ------------------------------------------------------------------------
 * The end of an attempt
 * ------------------------------------------------------------------------ */

static void
collect(void)
{
	CURLMsg    *message;
	int			left;

	while ((message = curl_multi_info_read(engine.multi, &left)) != NULL)
	{
		SwarmNetState *state = NULL;
		CURLcode	code = message->data.result;

		if (message->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **) &state);
		attempt_ended(state, code);
	}
}

/* judge: an error leaves nothing counted. */
static const SwarmNetRule *
judge(SwarmNetState *state)
{
	const SwarmNetRule *volatile rule = NULL;

	PG_TRY();
	{
		rule = swarm_net_rule_of(state->request);
	}
	PG_CATCH();
	{
		swarm_breaker_dropped(state->request->endpoint, state->probing);
		PG_RE_THROW();
	}
	PG_END_TRY();
	return rule;
}

static void
attempt_ended(SwarmNetState *state, CURLcode code)
{
	SwarmNetRequest *request = state->request;
	const SwarmNetRule *rule;
	MemoryContext old;

	request->curl_code = code;
	request->latency_ms = swarm_net_ms() - state->started_ms;
	if (state->easy != NULL)
	{
		long		status = 0;
		long		connects = 0;
		curl_off_t	sent = 0;

		curl_easy_getinfo(state->easy, CURLINFO_RESPONSE_CODE, &status);
		curl_easy_getinfo(state->easy, CURLINFO_NUM_CONNECTS, &connects);
		curl_easy_getinfo(state->easy, CURLINFO_SIZE_UPLOAD_T, &sent);
		request->status = (int) status;
		request->sent = sent;
		state->kept = connects == 0 && state->starts > 0 && status == 0 && state->head_length == 0;
		request->attempts += Max(state->starts - 1, 0);
		state->spared += Max(state->starts - 1, 0);
		WITHOUT_SIGNALS_BEGIN();
		curl_multi_remove_handle(engine.multi, state->easy);
		curl_easy_cleanup(state->easy);
		WITHOUT_SIGNALS_END();
		state->easy = NULL;
		for (int i = 0; i < MAX_RUNNING; i++)
		{
			if (under_way[i] == state)
			{
				under_way[i] = NULL;
				engine.running--;
				break;
			}
		}
	}

	/*
	 * A server may answer and close before it has read the whole body: then
	 * the answer counts, not that sending failed.
	 */
	if ((code == CURLE_SEND_ERROR || code == CURLE_RECV_ERROR) && request->status >= 400)
		request->curl_code = CURLE_OK;
	old = MemoryContextSwitchTo(state->attempt);
	if (request->curl_code != CURLE_OK)
		describe_failure(state);
	rule = judge(state);
	if (rule->verdict == SWARM_NET_FRESH)
		swarm_breaker_dropped(request->endpoint, state->probing);
	else
		swarm_breaker_ended(request, rule->verdict, rule->harms, state->probing);
	state->probing = false;
	state->fresh = request->curl_code != CURLE_OK;
	settle(state, rule);
	MemoryContextSwitchTo(old);
}

/* describe_failure: what curl, or a callback, has to say. */
static void
describe_failure(SwarmNetState *state)
{
	SwarmNetRequest *request = state->request;
	const char *text = state->note != NULL ? state->note :
	state->message[0] ? state->message : curl_easy_strerror(request->curl_code);

	snprintf(request->error_name, sizeof(request->error_name), "curl %d", request->curl_code);
	if (state->note != NULL && state->note_errno != 0)
		text = psprintf("%s: %s", state->note, strerror(state->note_errno));

	swarm_net_text(request->error_text, sizeof(request->error_text), text);
	/* a callback's refusal is final whatever curl makes of it */
	if (state->note != NULL)
		request->curl_code = CURLE_ABORTED_BY_CALLBACK;
	request->status = 0;
}

/* settle: do what the rule says. */
static void
settle(SwarmNetState *state, const SwarmNetRule *rule)
{
	SwarmNetRequest *request = state->request;
	int64		pause = 0;

	switch (rule->verdict)
	{
		case SWARM_NET_DONE:
			finish(state, true);
			return;
		case SWARM_NET_FAIL:
			finish(state, false);
			return;
		case SWARM_NET_ONCE:
			if (state->once)
			{
				finish(state, false);
				return;
			}
			state->once = true;
			break;
		case SWARM_NET_FRESH:
			state->spared++;
			break;
		case SWARM_NET_RETRY:
		case SWARM_NET_SLOW:
			if (no_more_attempts(request))
			{
				finish(state, false);
				return;
			}
			pause = swarm_net_pause_ms(request);
			break;
	}
	state->due_ms = swarm_net_ms() + pause;
	state->listed = true;
	dlist_push_tail(&engine.waiting, &state->node);
}

/*
 * no_more_attempts: has a request had as many as its own limit, its policy or
 * the setting allow?
 */
static bool
no_more_attempts(const SwarmNetRequest *request)
{
	int			most = request->max_attempts > 0 ? request->max_attempts :
	request->policy.max_attempts > 0 ? request->policy.max_attempts : swarm_net_max_attempts;

	return request->attempts - request->net->spared >= most;
}

static void
finish(SwarmNetState *state, bool succeeded)
{
	SwarmNetRequest *request = state->request;

	request->finished = true;
	request->succeeded = succeeded;
	if (!succeeded && request->error_name[0] == '\0')
	{
		snprintf(request->error_name, sizeof(request->error_name), "HTTP %d", request->status);
		snprintf(request->error_text, sizeof(request->error_text),
				 "the server answered with status %d", request->status);
	}
	state->listed = true;
	dlist_push_tail(&engine.finished, &state->node);
}

/* drop_attempt: give up what is under way. */
static void
drop_attempt(SwarmNetState *state)
{
	if (state->easy == NULL)
		return;
	WITHOUT_SIGNALS_BEGIN();
	curl_multi_remove_handle(engine.multi, state->easy);
	curl_easy_cleanup(state->easy);
	WITHOUT_SIGNALS_END();
	state->easy = NULL;
	for (int i = 0; i < MAX_RUNNING; i++)
	{
		if (under_way[i] == state)
		{
			under_way[i] = NULL;
			engine.running--;
			break;
		}
	}
	state->request->status = 0;
	swarm_breaker_dropped(state->request->endpoint, state->probing);
	state->probing = false;
}
