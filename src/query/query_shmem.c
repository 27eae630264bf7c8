/*
 * query_shmem.c
 *	  What all processes share about running queries: who works on which, what
 *	  is wanted of it, and what has happened that is not in the table yet.
 *
 * A process that works on a query has the slot with the number of its PGPROC.
 * Whoever wants something writes it there and sends SIGUSR2, which the process
 * takes once it has a slot (query_pause.c).  Signals are sent under the lock to
 * a process that is registered, and a process that ends leaves under the lock,
 * so that no signal ever reaches another one: SIGUSR2 would stop a checkpointer.
 */
#include "postgres.h"

#include <signal.h>

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/proc.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/doorbell.h"
#include "base/shmem.h"
#include "base/steer.h"
#include "job/job.h"
#include "query/query_int.h"

#define NEWS			2048
#define WAIT_BUCKETS	64
#define EVENTS_BURST	200		/* events of one query that are written in a
								 * row */
#define EVENTS_RATE		100		/* and a second after that */

typedef struct QueryShared
{
	uint64		news_number;	/* of the newest */
	int64		news_lost;		/* since the server's start */
	pg_atomic_uint32 news_waiting;
	pg_atomic_uint32 watch;		/* counts changes of rows */
	ConditionVariable waiters[WAIT_BUCKETS];
	SwarmQueryNews news[NEWS];
	SwarmMailbox mailboxes[SWARM_MAILBOXES];
	SwarmQuerySlot slots[FLEXIBLE_ARRAY_MEMBER];
} QueryShared;

/* News that a transaction has written down. */
typedef struct NewsWritten
{
	int			n;
	struct
	{
		int			place;
		uint64		number;
	}			which[FLEXIBLE_ARRAY_MEMBER];
} NewsWritten;

LWLock	   *swarm_query_lock = NULL;
SwarmQuerySlot *swarm_query_me = NULL;

static QueryShared *shared = NULL;

static Size shared_size(void);
static void shared_attach(void *memory, bool found);
static void attach(int64 query, SwarmQueryKind kind, Oid owner, int leader, bool read_only);
static void leave_at_exit(int code, Datum arg);
static SwarmSteer steer(int64 query);
static void ring_waiters(void *item);
static void ring_watch(void *item);
static bool may_tell(SwarmQuerySlot *slot, SwarmQueryEvent event);
static int	compare_ids(const void *a, const void *b);
static void forget_news(void *item);

static SwarmShmemPiece piece = {
	.name = "pg_swarm queries",
	.size = shared_size,
	.init = shared_attach,
	.pointer = (void **) &shared,
	.lock = &swarm_query_lock
};

void
swarm_query_shmem_init(void)
{
	swarm_shmem_register(&piece);
}

int
swarm_query_slots(void)
{
	return shared == NULL ? 0 : MaxBackends;
}

static Size
shared_size(void)
{
	return offsetof(QueryShared, slots) + MaxBackends * sizeof(SwarmQuerySlot);
}

static void
shared_attach(void *memory, bool found)
{
	QueryShared *s = memory;

	swarm_steer_hook = steer;
	if (found)
		return;
	pg_atomic_init_u32(&s->news_waiting, 0);
	pg_atomic_init_u32(&s->watch, 1);
	for (int i = 0; i < WAIT_BUCKETS; i++)
		ConditionVariableInit(&s->waiters[i]);
	for (int i = 0; i < MaxBackends; i++)
	{
		pg_atomic_init_u32(&s->slots[i].request, 0);
		ConditionVariableInit(&s->slots[i].changed);
	}
}

SwarmQuerySlot *
swarm_query_slot(int i)
{
	return &shared->slots[i];
}

int
swarm_query_slot_number(const SwarmQuerySlot *slot)
{
	return slot - shared->slots;
}

SwarmMailbox *
swarm_query_mailbox(int i)
{
	return &shared->mailboxes[i];
}

/* ------------------------------------------------------------------------
 * The own slot
 * ------------------------------------------------------------------------ */

void
swarm_query_attach(int64 query, SwarmQueryKind kind, Oid owner, bool read_only)
{
	attach(query, kind, owner, -1, read_only);
}

/*
 * swarm_query_attach_worker: a parallel worker of the query of slot `leader`.
 */
void
swarm_query_attach_worker(int leader)
{
	SwarmQuerySlot *l = &shared->slots[leader];
	int64		query;
	SwarmQueryKind kind;
	Oid			owner;
	bool		live;

	LWLockAcquire(swarm_query_lock, LW_SHARED);
	live = l->pid != 0 && l->leader < 0;
	query = l->query;
	kind = l->kind;
	owner = l->owner;
	LWLockRelease(swarm_query_lock);
	if (live)
		attach(query, kind, owner, leader, false);
}

static void
attach(int64 query, SwarmQueryKind kind, Oid owner, int leader, bool read_only)
{
	static bool exit_registered = false;
	SwarmQuerySlot *slot = &shared->slots[swarm_proc_number(MyProc)];

	if (!exit_registered)
		before_shmem_exit(leave_at_exit, (Datum) 0);
	exit_registered = true;
	swarm_query_listen();

	LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
	slot->database = MyDatabaseId;
	slot->owner = owner;
	slot->query = query;
	slot->kind = kind;
	slot->latch = MyLatch;
	slot->leader = leader;
	slot->actor = owner;
	slot->resume_at = slot->kill_at = DT_NOEND;
	slot->asked_at = 0;
	slot->read_only = read_only;
	slot->ended = slot->by_workers = false;
	slot->mailbox = -1;
	slot->state = SWARM_QUERY_RUNNING;
	slot->node[0] = '\0';
	slot->started_at = swarm_now();
	slot->paused_at = slot->resumed_at = 0;
	slot->paused_us = 0;
	slot->pauses = 0;
	slot->tokens = EVENTS_BURST;
	slot->tokens_at = slot->started_at;

	/* a worker that comes while its leader is held waits like the others */
	pg_atomic_write_u32(&slot->request,
						leader >= 0 && shared->slots[leader].pid != 0 &&
						shared->slots[leader].state == SWARM_QUERY_PAUSED ? SWARM_REQ_HOLD : 0);
	slot->pid = MyProcPid;
	LWLockRelease(swarm_query_lock);
	swarm_query_me = slot;
}

/*
 * swarm_query_detach: the process has done with the query.  `news`: an edge
 * that only the scheduler can write down, as text of what happened; NULL if
 * the caller has done it.
 */
void
swarm_query_detach(const char *news)
{
	SwarmQuerySlot *slot = swarm_query_me;
	bool		is_worker;

	if (slot == NULL)
		return;
	LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
	is_worker = slot->leader >= 0;
	if (news != NULL && slot->query != 0 && slot->leader < 0)
	{
		if (slot->kind == SWARM_KIND_SESSION && slot->state == SWARM_QUERY_RUNNING)
			swarm_query_tell(slot, SWARM_QUERY_FINISH, slot->state, SWARM_QUERY_COMPLETE, news);
		else if (slot->kind == SWARM_KIND_SESSION)
			swarm_query_tell(slot, SWARM_QUERY_FAIL, slot->state, SWARM_QUERY_ERROR, news);
	}
	if (slot->mailbox >= 0)
	{
		SwarmMailbox *mail = &shared->mailboxes[slot->mailbox];

		mail->done = true;
		strlcpy(mail->sqlstate, "55000", sizeof(mail->sqlstate));
		strlcpy(mail->result, "the query has ended", sizeof(mail->result));
		if (mail->abandoned)
			mail->used = false;
		slot->mailbox = -1;
	}
	slot->pid = 0;
	slot->query = 0;
	slot->latch = NULL;
	slot->leader = -1;
	pg_atomic_write_u32(&slot->request, 0);
	LWLockRelease(swarm_query_lock);
	swarm_query_me = NULL;
	ConditionVariableBroadcast(&slot->changed);
	if (is_worker)
		return;
	pg_atomic_fetch_add_u32(&shared->watch, 1); /* is its row closed? */
	swarm_query_wake_scheduler(MyDatabaseId);
}

static void
leave_at_exit(int code, Datum arg)
{
	swarm_query_detach("its process has ended");
}

SwarmQuerySlot *
swarm_query_find(int64 query)
{
	for (int i = 0; i < swarm_query_slots(); i++)
	{
		SwarmQuerySlot *slot = &shared->slots[i];

		if (slot->pid != 0 && slot->query == query && slot->leader < 0 && !slot->ended &&
			slot->database == MyDatabaseId)
			return slot;
	}
	return NULL;
}

SwarmQueryState
swarm_query_live_state(SwarmQuerySlot *slot)
{
	if ((pg_atomic_read_u32(&slot->request) & SWARM_REQ_PAUSE) == 0)
		return SWARM_QUERY_RUNNING;
	return slot->state;
}

bool
swarm_query_is_live(int64 query)
{
	int64	   *ids;
	int			n = swarm_query_live_ids(&ids);
	bool		live = swarm_query_is_among(query, ids, n);

	pfree(ids);
	return live;
}

int
swarm_query_live_ids(int64 **ids)
{
	int			n = 0;

	*ids = palloc((swarm_query_slots() + NEWS) * sizeof(int64));
	if (shared == NULL)
		return 0;
	LWLockAcquire(swarm_query_lock, LW_SHARED);
	for (int i = 0; i < swarm_query_slots(); i++)
	{
		SwarmQuerySlot *slot = &shared->slots[i];

		if (slot->pid != 0 && slot->query != 0 && slot->leader < 0 && !slot->ended &&
			slot->database == MyDatabaseId)
			(*ids)[n++] = slot->query;
	}
	for (int i = 0; i < NEWS && pg_atomic_read_u32(&shared->news_waiting) > 0; i++)
	{
		if (shared->news[i].number != 0 && shared->news[i].database == MyDatabaseId)
			(*ids)[n++] = shared->news[i].query;
	}
	LWLockRelease(swarm_query_lock);
	qsort(*ids, n, sizeof(int64), compare_ids);
	return n;
}

bool
swarm_query_is_among(int64 query, const int64 *ids, int n)
{
	return bsearch(&query, ids, n, sizeof(int64), compare_ids) != NULL;
}

static int
compare_ids(const void *a, const void *b)
{
	int64		x = *(const int64 *) a;
	int64		y = *(const int64 *) b;

	return x < y ? -1 : x > y;
}

/* steer: see base/steer.h. */
static SwarmSteer
steer(int64 query)
{
	uint32		request;

	if (swarm_query_me == NULL || swarm_query_me->query != query)
		return SWARM_STEER_GO;
	request = pg_atomic_read_u32(&swarm_query_me->request);
	if (request & SWARM_REQ_STOP)
		return SWARM_STEER_STOP;
	if ((request & SWARM_REQ_PAUSE) == 0)
		return SWARM_STEER_GO;
	if (request & SWARM_REQ_NOW)
		return SWARM_STEER_NOW;
	return (request & SWARM_REQ_DRAIN) ? SWARM_STEER_DRAIN : SWARM_STEER_HOLD;
}

/* ------------------------------------------------------------------------
 * Wishes; all with the lock held
 * ------------------------------------------------------------------------ */

/*
 * swarm_query_ask: set the bits and see that the process notices: by SIGUSR2
 * while it computes, by its latch while it waits.  `interrupt`: cancel what it
 * does.
 */
void
swarm_query_ask(SwarmQuerySlot *slot, uint32 bits, bool interrupt)
{
	pg_atomic_fetch_or_u32(&slot->request, bits);
	if (slot->latch != NULL)
		SetLatch(slot->latch);
	kill(slot->pid, SIGUSR2);
	if (interrupt)
		kill(slot->pid, SIGINT);
}

/* swarm_query_ask_workers: the same for the parallel workers of a leader. */
void
swarm_query_ask_workers(SwarmQuerySlot *slot, uint32 bits)
{
	int			leader = slot - shared->slots;

	for (int i = 0; i < swarm_query_slots(); i++)
	{
		if (shared->slots[i].pid != 0 && shared->slots[i].leader == leader)
			swarm_query_ask(&shared->slots[i], bits, false);
	}
}

bool
swarm_query_unpause(SwarmQuerySlot *slot, Oid actor)
{
	uint32		before;

	slot->actor = actor;
	slot->resume_at = DT_NOEND;
	slot->asked_at = 0;
	before = pg_atomic_fetch_and_u32(&slot->request,
									 ~(SWARM_REQ_PAUSE | SWARM_REQ_HOLD | SWARM_REQ_DRAIN | SWARM_REQ_NOW));
	SetLatch(slot->latch);
	for (int i = 0; i < swarm_query_slots(); i++)
	{
		SwarmQuerySlot *worker = &shared->slots[i];

		if (worker->pid == 0 || worker->leader != slot - shared->slots)
			continue;
		pg_atomic_fetch_and_u32(&worker->request, ~(SWARM_REQ_PAUSE | SWARM_REQ_HOLD));
		SetLatch(worker->latch);
	}
	if (slot->by_workers)
	{
		slot->by_workers = false;
		slot->state = SWARM_QUERY_RUNNING;
		slot->resumed_at = swarm_now();
		slot->paused_us += Max(slot->resumed_at - slot->paused_at, 0);
		swarm_query_tell(slot, SWARM_QUERY_RESUME, SWARM_QUERY_PAUSED, SWARM_QUERY_RUNNING, NULL);
	}
	return (before & SWARM_REQ_PAUSE) != 0;
}

/*
 * swarm_query_stop: a statement or turn ends as terminated when its process
 * has noticed; a session is not a query any more from now on, and its statement
 * is cancelled.
 */
void
swarm_query_stop(SwarmQuerySlot *slot, Oid actor)
{
	slot->actor = actor;
	slot->kill_at = swarm_now() + swarm_query_grace_ms * INT64CONST(1000);
	if (slot->kind == SWARM_KIND_SESSION)
	{
		swarm_query_tell(slot, SWARM_QUERY_TERMINATE, slot->state, SWARM_QUERY_TERMINATED, NULL);
		slot->ended = true;
	}
	swarm_query_ask(slot, SWARM_REQ_STOP, slot->kind != SWARM_KIND_TURN);
}

/* ------------------------------------------------------------------------
 * News
 * ------------------------------------------------------------------------ */

void
swarm_query_tell(SwarmQuerySlot *slot, SwarmQueryEvent event, SwarmQueryState from,
				 SwarmQueryState to, const char *detail)
{
	SwarmQueryNews *news = NULL;

	if (slot->ended || slot->query == 0)
		return;
	if (may_tell(slot, event) && pg_atomic_read_u32(&shared->news_waiting) < NEWS)
	{
		for (int i = 0; i < NEWS && news == NULL; i++)
		{
			int			place = (shared->news_number + i) % NEWS;

			if (shared->news[place].number == 0)
			{
				news = &shared->news[place];
				news->place = place;
			}
		}
	}
	if (news == NULL)
	{
		shared->news_lost++;
		return;
	}
	news->number = ++shared->news_number;
	news->database = slot->database;
	news->actor = slot->actor;
	news->query = slot->query;
	news->at = swarm_now();
	news->event = event;
	news->from = from;
	news->to = to;
	news->paused_us = slot->paused_us;
	news->pauses = slot->pauses;
	swarm_query_copy_text(news->detail, detail ? detail : "", sizeof(news->detail));
	pg_atomic_fetch_add_u32(&shared->news_waiting, 1);
}

/*
 * may_tell: a query that is paused and resumed in a loop must not drown what
 * others tell, nor keep the scheduler busy: a token bucket for what is only
 * history.  How it ends is always told.
 */
static bool
may_tell(SwarmQuerySlot *slot, SwarmQueryEvent event)
{
	TimestampTz now = swarm_now();

	if (event != SWARM_QUERY_PAUSE && event != SWARM_QUERY_RESUME && event != SWARM_QUERY_COMMAND)
		return true;
	if (now > slot->tokens_at)
		slot->tokens = Min(slot->tokens + (now - slot->tokens_at) * (EVENTS_RATE / (double) USECS_PER_SEC),
						   EVENTS_BURST);
	slot->tokens_at = now;
	if (slot->tokens < 1)
		return false;
	slot->tokens -= 1;
	return true;
}

static int
compare_news(const void *a, const void *b)
{
	uint64		x = ((const SwarmQueryNews *) a)->number;
	uint64		y = ((const SwarmQueryNews *) b)->number;

	return x < y ? -1 : x > y;
}

int
swarm_query_take_news(SwarmQueryNews **result)
{
	SwarmQueryNews *news;
	int			n = 0;

	*result = NULL;
	if (swarm_query_newest_news() == 0)
		return 0;
	news = palloc(NEWS * sizeof(SwarmQueryNews));
	LWLockAcquire(swarm_query_lock, LW_SHARED);
	for (int i = 0; i < NEWS; i++)
	{
		if (shared->news[i].number != 0 && shared->news[i].database == MyDatabaseId)
			news[n++] = shared->news[i];
	}
	LWLockRelease(swarm_query_lock);
	qsort(news, n, sizeof(SwarmQueryNews), compare_news);
	*result = news;
	return n;
}

void
swarm_query_forget_news(const SwarmQueryNews *news, int n)
{
	Size		size = offsetof(NewsWritten, which) + n * sizeof(((NewsWritten *) NULL)->which[0]);
	NewsWritten *written;

	if (n == 0)
		return;
	written = palloc(size);
	written->n = n;
	for (int i = 0; i < n; i++)
	{
		written->which[i].place = news[i].place;
		written->which[i].number = news[i].number;
	}
	swarm_doorbell_add(forget_news, NULL, written, size);
}

static void
forget_news(void *item)
{
	NewsWritten *written = item;

	LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
	for (int i = 0; i < written->n; i++)
	{
		SwarmQueryNews *n = &shared->news[written->which[i].place];

		if (n->number == written->which[i].number)
		{
			n->number = 0;
			pg_atomic_fetch_sub_u32(&shared->news_waiting, 1);
		}
	}
	LWLockRelease(swarm_query_lock);
}

uint64
swarm_query_newest_news(void)
{
	uint64		newest = 0;

	if (shared == NULL || pg_atomic_read_u32(&shared->news_waiting) == 0)
		return 0;
	LWLockAcquire(swarm_query_lock, LW_SHARED);
	for (int i = 0; i < NEWS; i++)
	{
		if (shared->news[i].number > newest && shared->news[i].database == MyDatabaseId)
			newest = shared->news[i].number;
	}
	LWLockRelease(swarm_query_lock);
	return newest;
}

int64
swarm_query_news_lost(void)
{
	return shared == NULL ? 0 : shared->news_lost;
}

/* ------------------------------------------------------------------------
 * Who waits for what
 * ------------------------------------------------------------------------ */

void
swarm_query_wake_scheduler(Oid database)
{
	SwarmShard *shard;

	if (shared == NULL || swarm_job_lock == NULL)
		return;
	LWLockAcquire(swarm_job_lock, LW_SHARED);
	shard = swarm_shard_find(database);
	if (shard != NULL)
		swarm_shard_wake_scheduler(shard);
	LWLockRelease(swarm_job_lock);
}

ConditionVariable *
swarm_query_waiters(int64 query)
{
	return &shared->waiters[(uint64) query % WAIT_BUCKETS];
}

/* swarm_query_ring: tell those who wait for the query, at commit. */
void
swarm_query_ring(int64 query)
{
	if (shared != NULL)
		swarm_doorbell_add(ring_waiters, NULL, &query, sizeof(query));
}

static void
ring_waiters(void *item)
{
	ConditionVariableBroadcast(swarm_query_waiters(*(int64 *) item));
}

/*
 * swarm_query_watch: rows have changed that the scheduler looks at (queries,
 * rules, the optimizer): let it look again, at commit.
 */
void
swarm_query_watch(void)
{
	if (shared != NULL)
		swarm_doorbell_add(ring_watch, NULL, &MyDatabaseId, sizeof(Oid));
}

static void
ring_watch(void *item)
{
	pg_atomic_fetch_add_u32(&shared->watch, 1);
	swarm_query_wake_scheduler(*(Oid *) item);
}

uint32
swarm_query_watch_count(void)
{
	return shared == NULL ? 0 : pg_atomic_read_u32(&shared->watch);
}
