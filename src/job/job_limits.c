/*
 * job_limits.c
 *	  Queues and kinds of jobs in memory: settings, limits, rates, counters.
 */
#include "postgres.h"

#include <math.h>

#include "utils/timestamp.h"

#include "base/clock.h"
#include "job/job_int.h"

#define RATE_WINDOW_S	60

static bool evict_queue(void);
static bool evict_kind(void);
static void bucket_refill(SwarmBucket *b, TimestampTz now);

/* ------------------------------------------------------------------------
 * Queues and kinds
 * ------------------------------------------------------------------------ */

/* swarm_queue_get: NULL if absent and not to be created, or if memory is full */
SwarmQueue *
swarm_queue_get(Oid database, int32 id, bool create)
{
	SwarmIdKey	key = {database, id};
	HASHACTION	action = create ? HASH_ENTER_NULL : HASH_FIND;
	bool		found;
	SwarmQueue *q = hash_search(swarm_queue_table, &key, action, &found);

	if (q == NULL && create && evict_queue())
		q = hash_search(swarm_queue_table, &key, action, &found);
	if (q == NULL || found)
		return q;
	memset((char *) q + sizeof(SwarmIdKey), 0, sizeof(*q) - sizeof(SwarmIdKey));
	for (int i = 0; i < SWARM_PRIORITIES; i++)
	{
		dlist_init(&q->ready[i]);
		dlist_init(&q->external[i]);
	}
	q->batch = 1;
	q->dependency_failure = 'c';
	q->timer.kind = TIMER_QUEUE;
	return q;
}

SwarmKind *
swarm_kind_get(Oid database, int32 id, bool create)
{
	SwarmIdKey	key = {database, id};
	HASHACTION	action = create ? HASH_ENTER_NULL : HASH_FIND;
	bool		found;
	SwarmKind  *k = hash_search(swarm_kind_table, &key, action, &found);

	if (k == NULL && create && evict_kind())
		k = hash_search(swarm_kind_table, &key, action, &found);
	if (k == NULL || found)
		return k;
	memset((char *) k + sizeof(SwarmIdKey), 0, sizeof(*k) - sizeof(SwarmIdKey));
	dlist_init(&k->parked);
	k->timer.kind = TIMER_KIND;
	return k;
}

/*
 * evict_queue, evict_kind: make room in the full table by forgetting one that
 * has no jobs and no settings: perhaps it was dropped, and if not, only its
 * counters are lost.  False if there is none.
 */
static bool
evict_queue(void)
{
	HASH_SEQ_STATUS seq;
	SwarmQueue *q;

	hash_seq_init(&seq, swarm_queue_table);
	while ((q = hash_seq_search(&seq)) != NULL)
	{
		if (q->unclaimed > 0 || q->running > 0 || q->unflushed > 0 || q->max_running > 0 || q->batch > 1 ||
			q->paused || q->notify || q->dependency_failure != 'c' ||
			q->bucket.capacity > 0 || q->timer.armed)
			continue;
		hash_search(swarm_queue_table, &q->key, HASH_REMOVE, NULL);
		hash_seq_term(&seq);
		return true;
	}
	return false;
}

static bool
evict_kind(void)
{
	HASH_SEQ_STATUS seq;
	SwarmKind  *k;

	hash_seq_init(&seq, swarm_kind_table);
	while ((k = hash_seq_search(&seq)) != NULL)
	{
		if (k->entries > 0 || k->max_running > 0 || k->bucket.capacity > 0 || k->timer.armed)
			continue;
		hash_search(swarm_kind_table, &k->key, HASH_REMOVE, NULL);
		hash_seq_term(&seq);
		return true;
	}
	return false;
}

/* queue_has_room: may the queue start one more job now? */
static bool
queue_has_room(const SwarmQueue *q)
{
	return !q->paused && !q->timer.armed &&
		(q->max_running == 0 || q->running < q->max_running);
}

/*
 * swarm_kind_unpark: the kind has room: the first of its parked jobs whose
 * queue has room too may compete again, ahead of its equals.  Those of a full
 * queue are looked at again when that queue has room.
 */
void
swarm_kind_unpark(SwarmShard *shard, SwarmKind *k)
{
	dlist_iter	iter;

	dlist_foreach(iter, &k->parked)
	{
		SwarmEntry *e = dlist_container(SwarmEntry, link, iter.cur);

		if (queue_has_room(e->queue))
		{
			swarm_entry_unlist(shard, e);
			swarm_entry_place(shard, e, true);
			return;
		}
	}
}

/* swarm_kind_unpark_each: one job of every kind of the database. */
void
swarm_kind_unpark_each(SwarmShard *shard)
{
	HASH_SEQ_STATUS seq;
	SwarmKind  *k;

	hash_seq_init(&seq, swarm_kind_table);
	while ((k = hash_seq_search(&seq)) != NULL)
	{
		if (k->key.database == shard->database)
			swarm_kind_unpark(shard, k);
	}
}

/*
 * swarm_limits_again: the clock was set back: who waits for a rate, waits from
 * now on, not until the time of the old clock.
 */
void
swarm_limits_again(SwarmShard *shard, TimestampTz now)
{
	HASH_SEQ_STATUS seq;
	SwarmQueue *q;
	SwarmKind  *k;

	hash_seq_init(&seq, swarm_queue_table);
	while ((q = hash_seq_search(&seq)) != NULL)
	{
		if (q->key.database != shard->database)
			continue;
		bucket_refill(&q->bucket, now);
		swarm_timer_disarm(shard, &q->timer);
		swarm_queue_consider(shard, q);
	}
	hash_seq_init(&seq, swarm_kind_table);
	while ((k = hash_seq_search(&seq)) != NULL)
	{
		if (k->key.database != shard->database)
			continue;
		bucket_refill(&k->bucket, now);
		swarm_timer_disarm(shard, &k->timer);
		swarm_kind_unpark(shard, k);
	}
}

/*
 * swarm_queue_configure: bring the settings in memory up to what the tables
 * said when `changes` was the count of changes.  Queues and kinds that are not
 * listed have none.
 */
void
swarm_queue_configure(SwarmShard *shard,
					  const SwarmQueueConfig *queue_config, int nqueues,
					  const SwarmKindConfig *kind_config, int nkinds,
					  uint32 changes)
{
	HASH_SEQ_STATUS seq;
	SwarmQueue *q;
	SwarmKind  *k;
	static const SwarmQueueConfig plain = {.batch = 1, .dependency_failure = 'c'};

	LWLockAcquire(swarm_job_lock, LW_EXCLUSIVE);
	/* set something, so that the next one does not evict it */
	for (int i = 0; i < nqueues; i++)
	{
		if ((q = swarm_queue_get(shard->database, queue_config[i].id, true)) != NULL)
			q->max_running = INT_MAX;
	}
	for (int i = 0; i < nkinds; i++)
	{
		if ((k = swarm_kind_get(shard->database, kind_config[i].id, true)) != NULL)
			k->max_running = INT_MAX;
	}

	hash_seq_init(&seq, swarm_queue_table);
	while ((q = hash_seq_search(&seq)) != NULL)
	{
		const SwarmQueueConfig *c = &plain;

		if (q->key.database != shard->database)
			continue;
		for (int i = 0; i < nqueues; i++)
		{
			if (queue_config[i].id == q->key.id)
				c = &queue_config[i];
		}
		q->max_running = c->max_running;
		q->batch = c->batch;
		q->paused = c->paused;
		q->notify = c->notify;
		q->group_commit = c->group_commit;
		q->dependency_failure = c->dependency_failure;
		swarm_bucket_set(&q->bucket, c->rate_limit, c->rate_period_us);
		swarm_timer_disarm(shard, &q->timer);	/* of the old rate */
		swarm_queue_consider(shard, q);
	}
	hash_seq_init(&seq, swarm_kind_table);
	while ((k = hash_seq_search(&seq)) != NULL)
	{
		int			max_running = 0;
		int64		rate_us = 0;

		if (k->key.database != shard->database)
			continue;
		for (int i = 0; i < nkinds; i++)
		{
			if (kind_config[i].id == k->key.id)
			{
				max_running = kind_config[i].max_running;
				rate_us = kind_config[i].rate_us;
			}
		}
		k->max_running = max_running;
		swarm_bucket_set(&k->bucket, rate_us > 0 ? 1 : 0, rate_us);
		swarm_timer_disarm(shard, &k->timer);
		while (!dlist_is_empty(&k->parked))
		{
			SwarmEntry *e = dlist_container(SwarmEntry, link,
											dlist_head_node(&k->parked));

			swarm_entry_unlist(shard, e);
			swarm_entry_place(shard, e, true);
		}
	}
	if (shard->left_behind)
		shard->scan_from = 0;
	shard->config_stale = shard->config_changes != changes;
	swarm_shard_wake_all(shard);
	LWLockRelease(swarm_job_lock);
}

/*
 * swarm_queue_consider: put the queue into the ring if it has something that
 * may run, take it out if not.
 */
void
swarm_queue_consider(SwarmShard *shard, SwarmQueue *q)
{
	bool		able = q->nready > 0 && queue_has_room(q);

	if (able && !q->in_ring)
	{
		if (dlist_is_empty(&q->ready[SWARM_PRIORITY_CRITICAL]))
			dlist_push_tail(&shard->ring, &q->ring_node);
		else
			dlist_push_head(&shard->ring, &q->ring_node);
		q->in_ring = true;
		swarm_shard_wake_for(shard, swarm_queue_next_role(q));
	}
	else if (!able && q->in_ring)
	{
		dlist_delete(&q->ring_node);
		q->in_ring = false;
	}
}

/*
 * decayed_rate: an exponentially weighted rate, as of now: what finished a
 * minute ago counts 1/e of what finishes now.
 */
static double
decayed_rate(const SwarmQueue *q, TimestampTz now)
{
	return q->rate * exp(-Max(now - q->rate_at, 0) / (RATE_WINDOW_S * 1e6));
}

/* swarm_queue_count_finished: one more job of the queue has ended. */
void
swarm_queue_count_finished(SwarmQueue *q)
{
	TimestampTz now = swarm_now();

	q->finished++;
	q->rate = decayed_rate(q, now) + 1.0 / RATE_WINDOW_S;
	q->rate_at = now;
}

/*
 * swarm_queue_status: what the view of queues shows.
 */
int
swarm_queue_status(Oid database, SwarmQueueStatus **list, bool *complete)
{
	HASH_SEQ_STATUS seq;
	SwarmQueue *q;
	SwarmShard *shard;
	int			n = 0;

	*list = palloc0(swarm_max_queues * sizeof(SwarmQueueStatus));
	LWLockAcquire(swarm_job_lock, LW_SHARED);
	shard = swarm_shard_find(database);
	*complete = shard != NULL && swarm_shard_has_ready(shard) &&
		TIMESTAMP_IS_NOEND(shard->disk_due);
	hash_seq_init(&seq, swarm_queue_table);
	while ((q = hash_seq_search(&seq)) != NULL)
	{
		SwarmQueueStatus *s = &(*list)[n];

		if (q->key.database != database || n >= swarm_max_queues)
			continue;
		s->id = q->key.id;
		s->ready = q->nready + q->nexternal;
		s->running = q->running + q->unflushed;
		s->depth = q->unclaimed;
		s->started = q->started;
		s->finished = q->finished;
		s->rate = decayed_rate(q, swarm_now());
		for (int i = 0; i < 2 * SWARM_PRIORITIES; i++)
		{
			dlist_head *l = i < SWARM_PRIORITIES ? &q->ready[i] :
			&q->external[i - SWARM_PRIORITIES];

			if (!dlist_is_empty(l))
			{
				TimestampTz since = dlist_container(SwarmEntry, link,
													dlist_head_node(l))->since;

				if (s->oldest == 0 || since < s->oldest)
					s->oldest = since;
			}
		}
		n++;
	}
	LWLockRelease(swarm_job_lock);
	return n;
}

/* ------------------------------------------------------------------------
 * Token buckets
 *
 * A bucket holds up to `capacity` tokens and gains per_us; both are chosen so
 * that no window of one period, wherever it begins, sees more than `limit`
 * starts: capacity + per_us * period <= limit, or, for a capacity of one,
 * starts at least period / limit apart.
 * ------------------------------------------------------------------------ */

void
swarm_bucket_set(SwarmBucket *b, int limit, int64 period_us)
{
	double		capacity;
	double		per_us;

	if (limit <= 0)
	{
		b->capacity = 0;
		return;
	}
	capacity = limit >= 20 ? limit / 10 : 1;
	per_us = (limit - (capacity > 1 ? capacity : 0)) / (double) period_us;
	if (b->capacity == capacity && b->per_us == per_us)
		return;
	b->capacity = capacity;
	b->per_us = per_us;
	b->tokens = capacity;
	b->at = swarm_now();
}

static void
bucket_refill(SwarmBucket *b, TimestampTz now)
{
	/* a clock that was set back gives nothing, and takes nothing */
	if (now > b->at)
		b->tokens = Min(b->capacity, b->tokens + (now - b->at) * b->per_us);
	b->at = now;
}

bool
swarm_bucket_has(SwarmBucket *b, TimestampTz now)
{
	if (b->capacity == 0)
		return true;
	bucket_refill(b, now);
	return b->tokens >= 1;
}

bool
swarm_bucket_take(SwarmBucket *b, TimestampTz now)
{
	if (!swarm_bucket_has(b, now))
		return false;
	if (b->capacity > 0)
		b->tokens -= 1;
	return true;
}

TimestampTz
swarm_bucket_next(const SwarmBucket *b, TimestampTz now)
{
	return now + Max((int64) ((1 - b->tokens) / b->per_us) + 1, 1);
}
