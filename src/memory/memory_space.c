/*
 * memory_space.c
 *	  Namespaces and who may use them.
 *
 * A session keeps what it has looked up.  Statement triggers on the two
 * tables send an invalidation of their relation, as DDL would, so that every
 * session looks again after the commit (standbys too), this one at once, and
 * also after a rollback.
 */
#include "postgres.h"

#include "access/parallel.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "base/doorbell.h"
#include "base/export.h"
#include "memory/memory_int.h"

#define NAME_SIZE		208		/* of a namespace: 200 bytes, terminated */
#define BUILTIN_IDS		16		/* ids below are those made at install */

typedef struct Grant
{
	Oid			grantee;		/* 0 = PUBLIC */
	bool		may_write;
} Grant;

/* A namespace with all that says who may use it. */
typedef struct KnownSpace
{
	char		name[NAME_SIZE];	/* hash key */
	SwarmSpace	space;
	int			nowners;		/* its own and those of the ones above */
	Oid		   *owners;
	int			ngrants;
	Grant	   *grants;
} KnownSpace;

typedef struct KnownId
{
	int32		id;				/* hash key */
	KnownSpace *known;			/* NULL: there is none */
} KnownId;

static MemoryContext context = NULL;	/* of all below */
static HTAB *by_name = NULL;
static HTAB *by_id = NULL;
static uint32 generation = 1;	/* counts invalidations */
static uint32 known_generation = 0;
static Oid	namespace_table = InvalidOid;
static Oid	grant_table = InvalidOid;
static Oid	memory_tables[2];
static Oid	memory_indexes[2];

static void relation_changed(Datum arg, Oid relid);
static void start_afresh(void);
static Oid	relation_oid(const char *name);
static KnownSpace *find_name(const char *name);
static KnownSpace *find_id(int32 id);
static KnownSpace *load(const char *name, int32 id);
static KnownSpace *remember(uint64 row);
static bool may(const KnownSpace *known, Oid role, SwarmNeed need);
static SwarmNeed parse_need(text *need);
static void wake_waiters(void *item);

void
swarm_space_init(void)
{
	CacheRegisterRelcacheCallback(relation_changed, (Datum) 0);
}

/*
 * relation_changed: one of the two tables, or something that is not known.
 * What is kept may be in use: the next search throws it away.
 */
static void
relation_changed(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == namespace_table || relid == grant_table ||
		relid == memory_tables[0] || relid == memory_tables[1])
		generation++;
}

void
swarm_space_use(const char *name, Oid role, SwarmNeed need, SwarmSpace *space)
{
	KnownSpace *known = find_name(name);
	bool		something = known != NULL &&
	(may(known, role, NEED_READ) || known->space.id < BUILTIN_IDS);

	if (!something)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("namespace \"%s\" does not exist", name),
				 errhint("Create it with swarm.namespace_create().")));
	if (!may(known, role, need))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 need == NEED_OWN ?
				 errmsg("must be owner of namespace \"%s\"", name) :
				 errmsg("permission denied for namespace \"%s\"", name),
				 need == NEED_OWN ? 0 :
				 errhint("Its owner can call swarm.namespace_grant().")));
	*space = known->space;
}

bool
swarm_space_by_id(int32 id, SwarmSpace *space)
{
	KnownSpace *known = find_id(id);

	if (known == NULL)
		return false;
	*space = known->space;
	return true;
}

void
swarm_space_still_there(const SwarmSpace *space, const char *name)
{
	SwarmSpi	spi;
	Oid			types[] = {INT4OID};
	Datum		values[] = {Int32GetDatum(space->id)};
	uint64		n;

	if (space->id < BUILTIN_IDS)
		return;
	swarm_spi_begin(&spi);
	n = swarm_spi_query("SELECT FROM swarm._namespace WHERE id = $1", 1, types, values, NULL);
	swarm_spi_end(&spi);
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("namespace \"%s\" was dropped", name)));
}

bool
swarm_space_may(int32 id, Oid role, SwarmNeed need)
{
	KnownSpace *known = find_id(id);

	return known != NULL && may(known, role, need);
}

Oid
swarm_memory_table(bool logged)
{
	start_afresh();
	if (!OidIsValid(memory_tables[logged]))
		memory_tables[logged] = relation_oid(logged ? "_memory" : "_memory_unlogged");
	return memory_tables[logged];
}

Oid
swarm_memory_index(bool logged)
{
	start_afresh();
	if (!OidIsValid(memory_indexes[logged]))
		memory_indexes[logged] = relation_oid(logged ? "_memory_pkey" : "_memory_unlogged_pkey");
	return memory_indexes[logged];
}

void
swarm_space_begin_write(SwarmSpace *space)
{
	bool		limited;

	do
	{
		limited = swarm_space_limited(space);
		if (limited)
			swarm_quota_begin(space);
		LockRelationOid(swarm_memory_table(space->logged), RowExclusiveLock);

		/*
		 * one that was dropped meanwhile is as it was: the sweep removes what
		 * is stored
		 */
	} while (swarm_space_by_id(space->id, space) && swarm_space_limited(space) && !limited);
}

void
swarm_space_lock(int32 id, LOCKMODE mode)
{
	LockDatabaseObject(relation_oid("_namespace"), (Oid) id, 0, mode);
}

void
swarm_space_unlock(int32 id, LOCKMODE mode)
{
	UnlockDatabaseObject(relation_oid("_namespace"), (Oid) id, 0, mode);
}

/* ------------------------------------------------------------------------
 * What the session knows
 * ------------------------------------------------------------------------ */

/*
 * start_afresh: throw away what an invalidation has made doubtful.
 */
static void
start_afresh(void)
{
	HASHCTL		ctl = {0};

	AcceptInvalidationMessages();
	if (context != NULL && known_generation == generation)
		return;
	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "pg_swarm namespaces",
										ALLOCSET_DEFAULT_SIZES);
	by_name = by_id = NULL;
	MemoryContextReset(context);
	ctl.hcxt = context;
	ctl.keysize = NAME_SIZE;
	ctl.entrysize = sizeof(KnownSpace);
	by_name = hash_create("pg_swarm namespaces", 32, &ctl,
						  HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
	ctl.keysize = sizeof(int32);
	ctl.entrysize = sizeof(KnownId);
	by_id = hash_create("pg_swarm namespace ids", 32, &ctl,
						HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	namespace_table = grant_table = InvalidOid;
	memset(memory_tables, 0, sizeof(memory_tables));
	memset(memory_indexes, 0, sizeof(memory_indexes));
	known_generation = generation;
}

static Oid
relation_oid(const char *name)
{
	Oid			relid = get_relname_relid(name, get_namespace_oid("swarm", false));

	if (!OidIsValid(relid))
		elog(ERROR, "relation swarm.%s does not exist", name);
	return relid;
}

static KnownSpace *
find_name(const char *name)
{
	KnownSpace *known;

	if (strlen(name) >= NAME_SIZE)
		return NULL;
	start_afresh();
	known = hash_search(by_name, name, HASH_FIND, NULL);
	return known ? known : load(name, 0);
}

/*
 * find_id: also remembers that there is none, for triggers on many rows.
 */
static KnownSpace *
find_id(int32 id)
{
	KnownId    *entry;
	KnownSpace *known;

	start_afresh();
	entry = hash_search(by_id, &id, HASH_FIND, NULL);
	if (entry)
		return entry->known;
	known = load(NULL, id);
	if (known == NULL)
	{
		entry = hash_search(by_id, &id, HASH_ENTER, NULL);
		entry->known = NULL;
	}
	return known;
}

/*
 * load: read a namespace, by name or else by id; NULL if there is none.  Read
 * again if it was changed meanwhile.
 */
static KnownSpace *
load(const char *name, int32 id)
{
	KnownSpace *known;

	/* where the snapshot of now cannot be had, nor is known what was written */
	if (IsParallelWorker())
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TRANSACTION_STATE),
				 errmsg("cannot use a memory namespace in a parallel worker"),
				 errhint("A function that calls those of memory must not be PARALLEL SAFE.")));
	do
	{
		SwarmSpi	spi;
		Oid			types[] = {TEXTOID, INT4OID};
		Datum		values[2];
		char		nulls[2] = {name ? ' ' : 'n', name ? 'n' : ' '};

		start_afresh();
		namespace_table = relation_oid("_namespace");
		grant_table = relation_oid("_namespace_grant");
		values[0] = name ? CStringGetTextDatum(name) : (Datum) 0;
		values[1] = Int32GetDatum(id);
		known = NULL;
		swarm_spi_begin(&spi);
		if (swarm_spi_query("WITH above AS (SELECT n.id AS space, a.id, a.owner FROM swarm._namespace_all n "
							"JOIN swarm._namespace_all a ON a.name = n.name OR starts_with(n.name, a.name || '/') "
							"WHERE n.name = $1 OR n.id = $2) "
							"SELECT name::text, id, durability = 'logged', cached, embed, dims, default_ttl, "
							"coalesce(max_entries, 0), coalesce(max_bytes, 0), left(evict, 1), "
							"ARRAY(SELECT owner::oid FROM above), "
							"ARRAY(SELECT g.grantee::oid FROM above JOIN swarm._namespace_grant g ON g.namespace = above.id WHERE g.may_write), "
							"ARRAY(SELECT g.grantee::oid FROM above JOIN swarm._namespace_grant g ON g.namespace = above.id WHERE NOT g.may_write), "
							"origin IS NOT NULL, embed OR words "
							"FROM swarm._namespace_all WHERE name = $1 OR id = $2",
							2, types, values, nulls) > 0)
			known = remember(0);
		swarm_spi_end(&spi);
		AcceptInvalidationMessages();
	} while (known_generation != generation);
	return known;
}

/*
 * oids: an array of them, in the context of what is known.
 */
static int
oids(uint64 row, int column, Oid **result)
{
	bool		isnull;
	Datum	   *elements;
	int			n;

	deconstruct_array(DatumGetArrayTypeP(swarm_spi_column(row, column, &isnull)),
					  OIDOID, sizeof(Oid), true, TYPALIGN_INT, &elements, NULL, &n);
	*result = MemoryContextAlloc(context, sizeof(Oid) * Max(n, 1));
	for (int i = 0; i < n; i++)
		(*result)[i] = DatumGetObjectId(elements[i]);
	return n;
}

/*
 * remember: entered when it is complete, so that an error leaves nothing
 * half filled.
 */
static KnownSpace *
remember(uint64 row)
{
	KnownSpace	read = {0};
	SwarmSpace *s = &read.space;
	KnownSpace *known;
	KnownId    *entry;
	Oid		   *writers;
	Oid		   *readers;
	int			nwriters;
	int			nreaders;
	bool		isnull;
	Datum		ttl;

	strlcpy(read.name, swarm_spi_text(row, 1), sizeof(read.name));
	s->id = swarm_spi_int32(row, 2);
	s->logged = swarm_spi_bool(row, 3);
	s->cached = swarm_spi_bool(row, 4);
	s->embed = swarm_spi_bool(row, 5);
	s->dims = swarm_spi_int32(row, 6);
	ttl = swarm_spi_column(row, 7, &isnull);
	s->has_ttl = !isnull;
	if (!isnull)
		s->default_ttl = *DatumGetIntervalP(ttl);
	s->max_entries = swarm_spi_int64(row, 8);
	s->max_bytes = swarm_spi_int64(row, 9);
	s->evict = swarm_spi_text(row, 10)[0];
	s->origin = swarm_spi_bool(row, 14);
	s->recall = swarm_spi_bool(row, 15);
	read.nowners = oids(row, 11, &read.owners);
	nwriters = oids(row, 12, &writers);
	nreaders = oids(row, 13, &readers);
	read.ngrants = nwriters + nreaders;
	read.grants = MemoryContextAlloc(context, sizeof(Grant) * Max(read.ngrants, 1));
	for (int i = 0; i < read.ngrants; i++)
	{
		read.grants[i].may_write = i < nwriters;
		read.grants[i].grantee = i < nwriters ? writers[i] : readers[i - nwriters];
	}
	known = hash_search(by_name, read.name, HASH_ENTER, NULL);
	*known = read;
	entry = hash_search(by_id, &s->id, HASH_ENTER, NULL);
	entry->known = known;
	return known;
}

/*
 * may: owners, also of a namespace above, and superusers may do everything.
 */
static bool
may(const KnownSpace *known, Oid role, SwarmNeed need)
{
	if (superuser_arg(role))
		return true;
	for (int i = 0; i < known->nowners; i++)
	{
		if (has_privs_of_role(role, known->owners[i]))
			return true;
	}
	if (need == NEED_OWN)
		return false;
	for (int i = 0; i < known->ngrants; i++)
	{
		const Grant *g = &known->grants[i];

		if ((g->may_write || need == NEED_READ) &&
			(!OidIsValid(g->grantee) || has_privs_of_role(role, g->grantee)))
			return true;
	}
	return false;
}

/* ------------------------------------------------------------------------
 * SQL functions
 * ------------------------------------------------------------------------ */

static SwarmNeed
parse_need(text *need)
{
	char	   *word = text_to_cstring(need);

	if (strcmp(word, "read") == 0)
		return NEED_READ;
	if (strcmp(word, "write") == 0)
		return NEED_WRITE;
	if (strcmp(word, "own") == 0)
		return NEED_OWN;
	elog(ERROR, "unknown right \"%s\"", word);
}

/*
 * swarm._namespace_check(caller, name, need) returns int
 */
SWARM_FUNCTION(swarm__namespace_check);
Datum
swarm__namespace_check(PG_FUNCTION_ARGS)
{
	SwarmSpace	space;

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("namespace must not be null")));
	swarm_space_use(text_to_cstring(PG_GETARG_TEXT_PP(1)), PG_GETARG_OID(0),
					parse_need(PG_GETARG_TEXT_PP(2)), &space);
	PG_RETURN_INT32(space.id);
}

/*
 * swarm._namespace_may(id, need) returns boolean
 */
SWARM_FUNCTION(swarm__namespace_may);
Datum
swarm__namespace_may(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(swarm_space_may(PG_GETARG_INT32(0), GetUserId(),
								   parse_need(PG_GETARG_TEXT_PP(1))));
}

/*
 * swarm._namespace_may_as(caller, id) returns boolean: may he read it?
 */
SWARM_FUNCTION(swarm__namespace_may_as);
Datum
swarm__namespace_may_as(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(swarm_space_may(PG_GETARG_INT32(1), PG_GETARG_OID(0), NEED_READ));
}

/*
 * swarm._namespace_lock(id) returns void
 */
SWARM_FUNCTION(swarm__namespace_lock);
Datum
swarm__namespace_lock(PG_FUNCTION_ARGS)
{
	swarm_space_lock(PG_GETARG_INT32(0), ExclusiveLock);
	PG_RETURN_VOID();
}

/*
 * swarm._namespace_changed() returns trigger
 */
SWARM_FUNCTION(swarm__namespace_changed);
Datum
swarm__namespace_changed(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("this function can be called as a trigger only")));
	CacheInvalidateRelcache(((TriggerData *) fcinfo->context)->tg_relation);
	generation++;
	if (TRIGGER_FIRED_BY_DELETE(((TriggerData *) fcinfo->context)->tg_event))
		swarm_doorbell_add(wake_waiters, NULL, "", 0);
	PG_RETURN_POINTER(NULL);
}

/* Who waits for an entry of a namespace that is gone waits in vain. */
static void
wake_waiters(void *item)
{
	swarm_memory_wake_all();
}
