/*
 * memory_database.c
 *	  A database is dropped: shared memory forgets it.
 *
 * Its OID may be given to another one (CREATE DATABASE ... OID), and tables
 * copied from a template have the OIDs that those there have: the cache would
 * take the new database's keys for the old one's.  So nothing of the cache is
 * trusted from before DROP DATABASE looks for sessions until it is visible that
 * the database is gone: by then everything that was read there is void.  Its
 * counts, and its place among those that are swept, become free.
 */
#include "postgres.h"

#include "catalog/objectaccess.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"

#include "base/doorbell.h"
#include "memory/memory_int.h"

static object_access_hook_type previous_access = NULL;

static void object_access(ObjectAccessType access, Oid class_id, Oid object_id,
						  int sub_id, void *arg);
static void database_is_gone(void *item);
static void database_stays(void *item);

void
swarm_memory_database_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		return;
	previous_access = object_access_hook;
	object_access_hook = object_access;
}

static void
object_access(ObjectAccessType access, Oid class_id, Oid object_id, int sub_id, void *arg)
{
	if (previous_access)
		previous_access(access, class_id, object_id, sub_id, arg);
	if (access != OAT_DROP || class_id != DatabaseRelationId || swarm_memory_shared == NULL)
		return;
	/* out of memory before it is marked */
	swarm_doorbell_add(database_is_gone, database_stays, &object_id, sizeof(object_id));
	swarm_guards_begin(NULL, 0, true);
}

static void
database_is_gone(void *item)
{
	Oid			database = *(Oid *) item;

	swarm_guards_end(NULL, 0, true);
	swarm_memory_sweep_forget(database);
	swarm_quota_forget_database(database);
	swarm_origin_forget_database(database);
}

static void
database_stays(void *item)
{
	swarm_guards_end(NULL, 0, true);
}
