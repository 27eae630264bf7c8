/*
 * net_breaker.c
 *	  What all processes know of an endpoint: its circuit breaker, how many
 *	  requests it takes at a time, and counters.
 *
 * In shared memory where the library is preloaded, else in the process.  One
 * lock guards all records; nothing under it waits or raises an error.
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "utils/timestamp.h"

#include "base/clock.h"
#include "base/shmem.h"
#include "net/net_int.h"

#define LATENCY_SHARE		0.1
#define LONGEST_PAUSE		8	/* times pg_swarm.net_breaker_pause */

const SwarmBreakerEdge swarm_breaker_edges[] = {
	{SWARM_BREAKER_CLOSED, SWARM_BREAKER_SUCCESS, SWARM_BREAKER_CLOSED, "all is well"},
	{SWARM_BREAKER_CLOSED, SWARM_BREAKER_HARM, SWARM_BREAKER_CLOSED, "a failure may be a single one"},
	{SWARM_BREAKER_CLOSED, SWARM_BREAKER_TRIP, SWARM_BREAKER_OPEN, "so many in a row are not"},
	{SWARM_BREAKER_OPEN, SWARM_BREAKER_SUCCESS, SWARM_BREAKER_CLOSED, "a request that was under way got its answer"},
	{SWARM_BREAKER_OPEN, SWARM_BREAKER_HARM, SWARM_BREAKER_OPEN, "a request that was under way"},
	{SWARM_BREAKER_OPEN, SWARM_BREAKER_COOLED, SWARM_BREAKER_HALF_OPEN, "one request may try"},
	{SWARM_BREAKER_HALF_OPEN, SWARM_BREAKER_SUCCESS, SWARM_BREAKER_CLOSED, "the endpoint is back"},
	{SWARM_BREAKER_HALF_OPEN, SWARM_BREAKER_HARM, SWARM_BREAKER_OPEN, "the probe failed: a longer pause"},
	{SWARM_BREAKER_HALF_OPEN, SWARM_BREAKER_COOLED, SWARM_BREAKER_HALF_OPEN, "the probe was lost: another one"}
};
const int	swarm_breaker_nedges = lengthof(swarm_breaker_edges);

typedef struct Endpoints
{
	SwarmNetEndpoint endpoints[SWARM_NET_ENDPOINTS];
} Endpoints;

static Endpoints *shared = NULL;
static Endpoints local;
static LWLock *shared_lock = NULL;

static Size endpoints_size(void);
static void endpoints_attach(void *memory, bool found);
static void lock(void);
static void unlock(void);
static bool less_missed(const SwarmNetEndpoint *a, const SwarmNetEndpoint *b);
static int	threshold_of(const SwarmPolicy *policy);
static double pause_of(const SwarmPolicy *policy);
static void step(SwarmNetEndpoint *e, SwarmBreakerEvent event, double pause_ms);

static SwarmShmemPiece endpoints_piece = {
	.name = "pg_swarm endpoints",
	.size = endpoints_size,
	.init = endpoints_attach,
	.pointer = (void **) &shared,
	.lock = &shared_lock
};

void
swarm_breaker_init(void)
{
	swarm_shmem_register(&endpoints_piece);
}

static Size
endpoints_size(void)
{
	return sizeof(Endpoints);
}

static void
endpoints_attach(void *memory, bool found)
{
}

static void
lock(void)
{
	if (shared != NULL)
		LWLockAcquire(shared_lock, LW_EXCLUSIVE);
}

static void
unlock(void)
{
	if (shared != NULL)
		LWLockRelease(shared_lock);
}

const char *
swarm_breaker_state_name(SwarmBreakerState state)
{
	static const char *const names[] = {"closed", "open", "half-open"};

	return names[state];
}

const char *
swarm_breaker_event_name(SwarmBreakerEvent event)
{
	static const char *const names[] = {"success", "failure", "limit", "pause is over"};

	return names[event];
}

/* less_missed: free, else idle, else used longer ago. */
static bool
less_missed(const SwarmNetEndpoint *a, const SwarmNetEndpoint *b)
{
	if ((a->name[0] == '\0') != (b->name[0] == '\0'))
		return a->name[0] == '\0';
	if ((a->running == 0) != (b->running == 0))
		return a->running == 0;
	return a->used < b->used;
}

/*
 * swarm_net_endpoint: the record of that name.  When all are taken, that of
 * an idle endpoint that was used longest ago is given away.
 */
SwarmNetEndpoint *
swarm_net_endpoint(const char *name)
{
	Endpoints  *all = shared ? shared : &local;
	SwarmNetEndpoint *found = NULL;
	SwarmNetEndpoint *given = &all->endpoints[0];

	lock();
	for (int i = 0; i < SWARM_NET_ENDPOINTS && found == NULL; i++)
	{
		SwarmNetEndpoint *e = &all->endpoints[i];

		if (strncmp(e->name, name, SWARM_NET_ENDPOINT_NAME - 1) == 0)
			found = e;
		else if (less_missed(e, given))
			given = e;
	}
	if (found == NULL)
	{
		found = given;
		memset(found, 0, sizeof(*found));
		strlcpy(found->name, name, SWARM_NET_ENDPOINT_NAME);
	}
	found->used = GetCurrentTimestamp();
	unlock();
	return found;
}

int
swarm_net_endpoints(SwarmNetEndpoint *copies)
{
	Endpoints  *all = shared ? shared : &local;
	int			n = 0;

	lock();
	for (int i = 0; i < SWARM_NET_ENDPOINTS; i++)
	{
		if (all->endpoints[i].name[0] != '\0')
			copies[n++] = all->endpoints[i];
	}
	unlock();
	return n;
}

bool
swarm_net_endpoint_is_open(const SwarmNetEndpoint *endpoint)
{
	bool		open;

	lock();
	open = endpoint->state != SWARM_BREAKER_CLOSED && swarm_now() < endpoint->until;
	unlock();
	return open;
}

/*
 * swarm_breaker_admits: may a request go there now?  *probing: it is the one
 * that finds out whether the endpoint is back, and must be reported as such.
 */
bool
swarm_breaker_admits(SwarmNetEndpoint *e, bool *probing)
{
	bool		yes;

	*probing = false;
	if (e->state == SWARM_BREAKER_CLOSED)
		return true;
	lock();
	yes = e->state == SWARM_BREAKER_CLOSED;
	if (!yes && swarm_now() >= e->until)
	{
		step(e, SWARM_BREAKER_COOLED, 0);
		e->probe_pid = MyProcPid;
		/* a process that dies with the probe must not close the door for good */
		e->until = swarm_now() + Max(swarm_net_breaker_pause_ms, swarm_net_connect_timeout_ms +
									 swarm_net_stall_timeout_ms) * INT64CONST(1000);
		*probing = true;
		yes = true;
	}
	unlock();
	return yes;
}

/*
 * swarm_breaker_room: how many requests may be under way from one process.
 */
int
swarm_breaker_room(const SwarmNetEndpoint *e, int parallel)
{
	double		limit = e->limit;

	return limit >= 1 && limit < parallel ? (int) limit : parallel;
}

void
swarm_breaker_started(SwarmNetEndpoint *e)
{
	lock();
	e->running++;
	e->requests++;
	unlock();
}

/* swarm_breaker_dropped: an attempt was given up without an outcome. */
void
swarm_breaker_dropped(SwarmNetEndpoint *e, bool probing)
{
	lock();
	e->running = Max(e->running - 1, 0);
	if (probing && e->state == SWARM_BREAKER_HALF_OPEN)
		e->until = swarm_now();
	unlock();
}

/*
 * swarm_breaker_ended: an attempt has ended so.
 */
void
swarm_breaker_ended(SwarmNetRequest *request, SwarmNetVerdict verdict, bool harms, bool probing)
{
	SwarmNetEndpoint *e = request->endpoint;

	lock();
	e->running = Max(e->running - 1, 0);
	e->bytes_sent += request->sent;
	e->bytes_received += request->received;
	e->used = GetCurrentTimestamp();
	if (verdict == SWARM_NET_SLOW)
	{
		e->slowdowns++;
		e->limit = Max((e->limit >= 1 ? Min(e->limit, e->running + 1) : e->running + 1) / 2.0, 1);
	}
	else if (verdict == SWARM_NET_DONE && e->limit >= 1)
	{
		/* one more for each round that went well */
		e->limit += 1 / e->limit;
		if (e->limit > request->parallel)
			e->limit = 0;
	}
	if (request->status > 0)
	{
		e->latency_ms += (request->latency_ms - e->latency_ms) *
			(e->latency_ms == 0 ? 1 : LATENCY_SHARE);
		e->latency_max_ms = Max(e->latency_max_ms, request->latency_ms);
	}
	if (harms)
	{
		e->failures++;
		e->harms++;
		if (e->state != SWARM_BREAKER_HALF_OPEN || probing)
			step(e, e->state == SWARM_BREAKER_CLOSED && e->harms >= threshold_of(&request->policy) ?
				 SWARM_BREAKER_TRIP : SWARM_BREAKER_HARM, pause_of(&request->policy));
	}
	else
	{
		if (verdict != SWARM_NET_DONE)
			e->failures++;
		e->harms = 0;
		step(e, SWARM_BREAKER_SUCCESS, 0);
	}
	unlock();
}

static int
threshold_of(const SwarmPolicy *policy)
{
	return policy->threshold > 0 ? policy->threshold : swarm_net_breaker_harms;
}

static double
pause_of(const SwarmPolicy *policy)
{
	return policy->cooldown_ms > 0 ? policy->cooldown_ms : swarm_net_breaker_pause_ms;
}

/*
 * step: walk an edge of the table; what belongs to the new state.  pause_ms:
 * for how long it is open at first.
 */
static void
step(SwarmNetEndpoint *e, SwarmBreakerEvent event, double pause_ms)
{
	SwarmBreakerState from = e->state;

	for (int i = 0; i < swarm_breaker_nedges; i++)
	{
		if (swarm_breaker_edges[i].from == from && swarm_breaker_edges[i].event == event)
		{
			e->state = swarm_breaker_edges[i].to;
			break;
		}
	}
	if (e->state == SWARM_BREAKER_CLOSED && from != SWARM_BREAKER_CLOSED)
		e->trips = 0;
	if (e->state == SWARM_BREAKER_OPEN && from != SWARM_BREAKER_OPEN)
	{
		int64		pause = (int64) (pause_ms * 1000);

		e->until = swarm_now() + pause * Min(1 << Min(e->trips, 10), LONGEST_PAUSE);
		e->trips++;
		e->probe_pid = 0;
	}
}
