/*
 * memory_cache.c
 *	  The shared cache of entries.
 *
 * Partitions by hash, each with a lock, a hash table and two rings of bytes.
 * An entry goes to the end of a ring; room is made at its beginning, where the
 * oldest entries are.  A new entry goes to the small ring, FRESH.  At its
 * beginning, one that was used moves to the other, KEPT; what was read once
 * goes, so that a scan takes no more than a tenth of the cache.  Its hash is
 * remembered for a while: if it comes back it goes to KEPT at once.  In KEPT an
 * entry stays, moved to the end, as many times as it was used, up to three
 * (CLOCK with counts; the whole is known as S3-FIFO).
 *
 * Nothing is ever taken out by who changes an entry.  A guard counts changes
 * of the keys that hash to it, an entry has the count of when it was read from
 * its table, and is worth something only while the two are equal and nobody
 * is committing a change (memory_change.c).
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"

#include "base/clock.h"
#include "base/fault.h"
#include "memory/memory_int.h"

#define PARTITIONS		32
#define MIN_PARTITION	(16 * 1024) /* bytes; less is no cache */
#define UNIT			8		/* bytes; places in a ring count units */
#define BYTES_A_HEAD	512		/* of a partition's rings */
#define BYTES_A_GHOST	128
#define FRESH_SHARE		10		/* of the rings, for new entries */
#define BIGGEST_SHARE	4		/* of the rings, or of FRESH, that an entry
								 * may take */
#define CHANCES			16		/* used entries that are kept in a row */
#define MOST_USED		3

typedef enum CacheRingName
{
	FRESH,
	KEPT
} CacheRingName;

/* At a place in a ring; a gap at the ring's end has only the first word. */
typedef struct CacheEntry
{
	uint32		units;			/* with all that follows */
	uint32		next;			/* place of the next of its chain; 0 = none */
	uint32		hash;
	uint32		changes;		/* of its guard, and of all, when read */
	uint32		all_changes;
	Oid			database;
	Oid			table;
	int32		space;
	TimestampTz expires_at;		/* DT_NOEND: never */
	uint16		key_length;
	bool		gap;			/* nothing; or an entry that was replaced */
	pg_atomic_uint32 used;		/* times since it came there, up to MOST_USED */
	uint32		value_length;
	char		data[FLEXIBLE_ARRAY_MEMBER];	/* the key; aligned, the value */
} CacheEntry;

/* Places from .. to - 1 of a partition. */
typedef struct CacheRing
{
	uint32		from;
	uint32		to;
	uint32		first;			/* place of the oldest entry */
	uint32		end;			/* place after the newest */
	uint32		used;			/* units in use, gaps included */
} CacheRing;

typedef struct CachePartition
{
	LWLock		lock;
	CacheRing	rings[2];
	uint32		entries;
	pg_atomic_uint64 hits;
	pg_atomic_uint64 misses;
	uint64		fills;
	uint64		evictions;
	char		pad[64];
} CachePartition;

static CachePartition *partitions = NULL;
static uint32 *all_heads;
static uint32 *all_ghosts;		/* hashes of what left FRESH unused; 0 = none */
static char *all_rings;
static uint32 ring_units = 0;	/* of each partition */
static uint32 nheads = 0;
static uint32 nghosts = 0;

static Size partition_bytes(void);
static CacheEntry *at(int partition, uint32 place);
static uint32 *chain(int partition, uint32 hash);
static uint32 *ghost(int partition, uint32 hash);
static CacheEntry *find(int partition, const SwarmCacheKey *key);
static bool current(const CacheEntry *e);
static void unchain(int partition, uint32 place);
static void move(int partition, uint32 place, uint32 to, uint32 used);
static bool has_room(const CacheRing *ring, uint32 units);
static uint32 make_room(int partition, CacheRingName name, uint32 units);
static void evict(int partition, CacheRingName name, int *chances);

#define VALUE_OFFSET(key_length) \
	(MAXALIGN(offsetof(CacheEntry, data) + (key_length)))

/* ------------------------------------------------------------------------
 * Set-up
 * ------------------------------------------------------------------------ */

static Size
partition_bytes(void)
{
	Size		bytes = (Size) swarm_cache_size_kb * 1024 / PARTITIONS;

	/* places are 32 bits wide, units of eight bytes */
	bytes = Min(bytes, (Size) 8 * 1024 * 1024 * 1024);
	return bytes < MIN_PARTITION ? 0 : TYPEALIGN_DOWN(BYTES_A_HEAD, bytes);
}

Size
swarm_cache_bytes(void)
{
	Size		bytes = partition_bytes();

	if (bytes == 0)
		return 0;
	return PARTITIONS * (MAXALIGN(sizeof(CachePartition)) + bytes +
						 bytes / BYTES_A_HEAD * sizeof(uint32) +
						 bytes / BYTES_A_GHOST * sizeof(uint32)) + 1024;
}

void
swarm_cache_attach(bool found)
{
	Size		bytes = partition_bytes();
	bool		have;

	if (bytes == 0)
		return;
	ring_units = bytes / UNIT;
	nheads = bytes / BYTES_A_HEAD;
	nghosts = bytes / BYTES_A_GHOST;
	partitions = ShmemInitStruct("pg_swarm cache partitions",
								 PARTITIONS * sizeof(CachePartition), &have);
	all_heads = ShmemInitStruct("pg_swarm cache heads",
								(Size) PARTITIONS * nheads * sizeof(uint32), &have);
	all_ghosts = ShmemInitStruct("pg_swarm cache ghosts",
								 (Size) PARTITIONS * nghosts * sizeof(uint32), &have);
	all_rings = ShmemInitStruct("pg_swarm cache rings", PARTITIONS * bytes, &have);
	if (found)
		return;
	memset(partitions, 0, PARTITIONS * sizeof(CachePartition));
	memset(all_heads, 0, (Size) PARTITIONS * nheads * sizeof(uint32));
	memset(all_ghosts, 0, (Size) PARTITIONS * nghosts * sizeof(uint32));
	for (int i = 0; i < PARTITIONS; i++)
	{
		CacheRing  *rings = partitions[i].rings;

		LWLockInitialize(&partitions[i].lock, swarm_memory_shared->tranche);
		/* place 0 is none */
		rings[FRESH].from = 1;
		rings[FRESH].to = rings[KEPT].from = 1 + ring_units / FRESH_SHARE;
		rings[KEPT].to = ring_units;
		pg_atomic_init_u64(&partitions[i].hits, 0);
		pg_atomic_init_u64(&partitions[i].misses, 0);
	}
}

/* ------------------------------------------------------------------------
 * Get and put
 * ------------------------------------------------------------------------ */

void
swarm_cache_key(SwarmCacheKey *key, Oid table, int32 space, const text *name)
{
	key->database = MyDatabaseId;
	key->table = table;
	key->space = space;
	key->key = VARDATA_ANY(name);
	key->length = VARSIZE_ANY_EXHDR(name);
	key->hash = swarm_memory_hash(table, space, key->key, key->length);
}

struct varlena *
swarm_cache_get(const SwarmCacheKey *key, SwarmCacheTicket *ticket)
{
	int			n = key->hash % PARTITIONS;
	SwarmCacheGuard *guard;
	CacheEntry *e;
	struct varlena *value = NULL;

	ticket->fill = false;
	if (partitions == NULL || RecoveryInProgress())
		return NULL;
	if (IsolationUsesXactSnapshot() || swarm_memory_written())
	{
		pg_atomic_fetch_add_u64(&swarm_memory_shared->bypasses, 1);
		return NULL;
	}

	LWLockAcquire(&partitions[n].lock, LW_SHARED);
	e = find(n, key);
	if (e != NULL && current(e) && e->expires_at > swarm_now())
	{
		uint32		used = pg_atomic_read_u32(&e->used);

		/* if two do it at once, one does not count */
		if (used < MOST_USED)
			pg_atomic_write_u32(&e->used, used + 1);
		/* out of memory releases the lock, as any error does */
		value = palloc(e->value_length);
		memcpy(value, (char *) e + VALUE_OFFSET(e->key_length), e->value_length);
	}
	LWLockRelease(&partitions[n].lock);
	if (value != NULL)
	{
		pg_atomic_fetch_add_u64(&partitions[n].hits, 1);
		return value;
	}

	pg_atomic_fetch_add_u64(&partitions[n].misses, 1);
	guard = &swarm_memory_shared->guards[key->hash % swarm_memory_shared->nguards];
	ticket->changes = pg_atomic_read_u32(&guard->changes);
	ticket->all_changes = pg_atomic_read_u32(&swarm_memory_shared->all.changes);
	pg_memory_barrier();
	ticket->fill = pg_atomic_read_u32(&guard->committing) == 0 &&
		pg_atomic_read_u32(&swarm_memory_shared->all.committing) == 0;
	/* before the snapshot that the caller takes now */
	pg_memory_barrier();
	return NULL;
}

void
swarm_cache_put(const SwarmCacheKey *key, const SwarmCacheTicket *ticket,
				bool expires, TimestampTz expires_at, const struct varlena *value)
{
	int			n = key->hash % PARTITIONS;
	Size		length = VARSIZE(value);
	uint32		units = TYPEALIGN(UNIT, VALUE_OFFSET(key->length) + length) / UNIT;
	TimestampTz now = swarm_now();
	CacheRingName ring = FRESH;
	uint32		used = 0;
	uint32	   *seen;
	CacheEntry *e;
	uint32		place;

	if (!ticket->fill || units > ring_units / BIGGEST_SHARE)
		return;
	LWLockAcquire(&partitions[n].lock, LW_EXCLUSIVE);
	SWARM_FAULT("memory.fill");
	e = find(n, key);
	if (e != NULL)
	{
		place = ((char *) e - (char *) at(n, 0)) / UNIT;
		if (place >= partitions[n].rings[KEPT].from)
			ring = KEPT;
		used = pg_atomic_read_u32(&e->used);
		unchain(n, place);
		e->gap = true;
	}
	seen = ghost(n, key->hash);
	if (*seen == key->hash)
	{
		*seen = 0;
		ring = KEPT;
	}
	if (units > ring_units / FRESH_SHARE / BIGGEST_SHARE)
		ring = KEPT;
	place = make_room(n, ring, units);
	e = at(n, place);
	e->units = units;
	e->hash = key->hash;
	e->changes = ticket->changes;
	e->all_changes = ticket->all_changes;
	e->database = key->database;
	e->table = key->table;
	e->space = key->space;
	e->expires_at = expires ? expires_at : DT_NOEND;
	if (swarm_cache_ttl_s > 0)
		e->expires_at = Min(e->expires_at, now + swarm_cache_ttl_s * USECS_PER_SEC);
	e->gap = false;
	e->key_length = key->length;
	pg_atomic_init_u32(&e->used, used);
	e->value_length = length;
	memcpy(e->data, key->key, key->length);
	memcpy((char *) e + VALUE_OFFSET(key->length), value, length);
	e->next = *chain(n, key->hash);
	*chain(n, key->hash) = place;
	partitions[n].entries++;
	partitions[n].fills++;
	LWLockRelease(&partitions[n].lock);
}

void
swarm_cache_stats(SwarmCacheStats *stats)
{
	memset(stats, 0, sizeof(*stats));
	if (partitions == NULL)
		return;
	stats->size = (uint64) PARTITIONS * ring_units * UNIT;
	for (int i = 0; i < PARTITIONS; i++)
	{
		LWLockAcquire(&partitions[i].lock, LW_SHARED);
		stats->used += ((uint64) partitions[i].rings[FRESH].used + partitions[i].rings[KEPT].used) * UNIT;
		stats->entries += partitions[i].entries;
		stats->fills += partitions[i].fills;
		stats->evictions += partitions[i].evictions;
		LWLockRelease(&partitions[i].lock);
		stats->hits += pg_atomic_read_u64(&partitions[i].hits);
		stats->misses += pg_atomic_read_u64(&partitions[i].misses);
	}
}

/* ------------------------------------------------------------------------
 * Inside a partition; its lock is held
 * ------------------------------------------------------------------------ */

static CacheEntry *
at(int partition, uint32 place)
{
	return (CacheEntry *) (all_rings + ((Size) partition * ring_units + place) * UNIT);
}

static uint32 *
chain(int partition, uint32 hash)
{
	return &all_heads[(Size) partition * nheads + hash / PARTITIONS % nheads];
}

static uint32 *
ghost(int partition, uint32 hash)
{
	return &all_ghosts[(Size) partition * nghosts + hash / PARTITIONS % nghosts];
}

static CacheEntry *
find(int partition, const SwarmCacheKey *key)
{
	for (uint32 place = *chain(partition, key->hash); place != 0;)
	{
		CacheEntry *e = at(partition, place);

		if (e->hash == key->hash && e->database == key->database &&
			e->table == key->table && e->space == key->space &&
			e->key_length == key->length && memcmp(e->data, key->key, key->length) == 0)
			return e;
		place = e->next;
	}
	return NULL;
}

/*
 * current: nothing has changed since the entry was read from its table, and
 * nobody is committing a change of it.
 */
static bool
current(const CacheEntry *e)
{
	SwarmCacheGuard *guard = &swarm_memory_shared->guards[e->hash % swarm_memory_shared->nguards];
	SwarmCacheGuard *all = &swarm_memory_shared->all;

	/* a committer counts a change before and after it is visible */
	return e->changes == pg_atomic_read_u32(&guard->changes) &&
		e->all_changes == pg_atomic_read_u32(&all->changes);
}

static void
unchain(int partition, uint32 place)
{
	CacheEntry *e = at(partition, place);
	uint32	   *link = chain(partition, e->hash);

	while (*link != place)
	{
		Assert(*link != 0);
		link = &at(partition, *link)->next;
	}
	*link = e->next;
	partitions[partition].entries--;
}

/*
 * move: an entry to another place; the two may overlap.
 */
static void
move(int partition, uint32 place, uint32 to, uint32 used)
{
	CacheEntry *e = at(partition, place);
	CacheEntry *moved = at(partition, to);
	uint32	   *link = chain(partition, e->hash);

	while (*link != place)
	{
		Assert(*link != 0);
		link = &at(partition, *link)->next;
	}
	*link = to;
	memmove(moved, e, (Size) e->units * UNIT);
	pg_atomic_write_u32(&moved->used, used);
}

/*
 * has_room: make_room() would throw nothing out.
 */
static bool
has_room(const CacheRing *ring, uint32 units)
{
	if (ring->used == 0)
		return true;
	if (ring->end > ring->first)
		return ring->to - ring->end >= units || ring->first - ring->from >= units;
	return ring->first - ring->end >= units;
}

/*
 * make_room: a place with so many units free, at the end of a ring.
 */
static uint32
make_room(int partition, CacheRingName name, uint32 units)
{
	CacheRing  *ring = &partitions[partition].rings[name];
	int			chances = CHANCES;
	uint32		place;

	for (;;)
	{
		if (ring->used == 0)
			ring->first = ring->end = ring->from;
		if (ring->used == 0 || ring->end > ring->first)
		{
			uint32		left = ring->to - ring->end;

			if (left >= units)
				break;
			if (left > 0)
			{
				CacheEntry *gap = at(partition, ring->end);

				/* so small a gap has no room for more than the first word */
				gap->units = left;
				gap->next = UINT32_MAX;
				ring->used += left;
			}
			ring->end = ring->from;
		}
		else if (ring->first - ring->end >= units)
			break;
		else
			evict(partition, name, &chances);
	}
	place = ring->end;
	ring->end += units;
	ring->used += units;
	return place;
}

/*
 * evict: the oldest entry of a ring goes, to KEPT or away.  In KEPT, the end of
 * the ring is before its beginning here, so that an entry moves down by the free
 * units between the two, which stay as many.
 */
static void
evict(int partition, CacheRingName name, int *chances)
{
	CachePartition *p = &partitions[partition];
	CacheRing  *ring = &p->rings[name];
	CacheEntry *e = at(partition, ring->first);
	uint32		units = e->units;
	bool		gap = e->next == UINT32_MAX || e->gap;
	uint32		used = gap ? 0 : pg_atomic_read_u32(&e->used);

	if (!gap && !current(e))
	{
		unchain(partition, ring->first);
		p->evictions++;
	}
	else if (!gap && name == FRESH && (used > 0 || has_room(&p->rings[KEPT], units)))
		move(partition, ring->first, make_room(partition, KEPT, units), 0);
	else if (!gap && name == KEPT && used > 0 && *chances > 0)
	{
		(*chances)--;
		move(partition, ring->first, ring->end, used - 1);
		ring->end += units;
		ring->used += units;
	}
	else if (!gap)
	{
		if (name == FRESH)
			*ghost(partition, e->hash) = e->hash;
		unchain(partition, ring->first);
		p->evictions++;
	}
	ring->used -= units;
	ring->first += units;
	if (ring->first >= ring->to)
		ring->first = ring->from;
}
