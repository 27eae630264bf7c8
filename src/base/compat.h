/*
 * compat.h
 *	  The differences between PostgreSQL 15, 16, 17 and 18, in one place.
 *
 * No other file of the project may test PG_VERSION_NUM (make lint checks).
 */
#ifndef SWARM_BASE_COMPAT_H
#define SWARM_BASE_COMPAT_H

#if PG_VERSION_NUM < 150000
#error "pg_swarm needs PostgreSQL 15 or later"
#endif

/* varatt.h was split from postgres.h in 16 */
#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#endif

#include "utils/wait_event.h"

/* Custom wait events have names since 17; before, they all are "Extension". */
#if PG_VERSION_NUM >= 170000
#define swarm_wait_event_new(name)	WaitEventExtensionNew(name)
#else
#define swarm_wait_event_new(name)	((void) (name), PG_WAIT_EXTENSION)
#endif

/* pg_proc_aclcheck() and its siblings became object_aclcheck() in 16. */
#if PG_VERSION_NUM >= 160000
#define swarm_proc_aclcheck(proc, role, mode) \
	object_aclcheck(ProcedureRelationId, proc, role, mode)
#define swarm_namespace_aclcheck(nsp, role, mode) \
	object_aclcheck(NamespaceRelationId, nsp, role, mode)
#define swarm_database_ownercheck(db, role) \
	object_ownercheck(DatabaseRelationId, db, role)
#define swarm_extension_ownercheck(ext, role) \
	object_ownercheck(ExtensionRelationId, ext, role)
#define swarm_class_ownercheck(rel, role) \
	object_ownercheck(RelationRelationId, rel, role)
#define swarm_server_aclcheck(server, role, mode) \
	object_aclcheck(ForeignServerRelationId, server, role, mode)
#else
#define swarm_proc_aclcheck(proc, role, mode)	pg_proc_aclcheck(proc, role, mode)
#define swarm_namespace_aclcheck(nsp, role, mode)	pg_namespace_aclcheck(nsp, role, mode)
#define swarm_database_ownercheck(db, role)	pg_database_ownercheck(db, role)
#define swarm_extension_ownercheck(ext, role)	pg_extension_ownercheck(ext, role)
#define swarm_class_ownercheck(rel, role)	pg_class_ownercheck(rel, role)
#define swarm_server_aclcheck(server, role, mode)	pg_foreign_server_aclcheck(server, role, mode)
#endif

/* Who may VACUUM a table: with 17 also whoever has MAINTAIN on it. */
#if PG_VERSION_NUM >= 170000
#define swarm_may_maintain(rel, role) \
	(pg_class_aclcheck(rel, role, ACL_MAINTAIN) == ACLCHECK_OK || \
	 swarm_database_ownercheck(MyDatabaseId, role))
#else
#define swarm_may_maintain(rel, role) \
	(swarm_class_ownercheck(rel, role) || \
	 swarm_database_ownercheck(MyDatabaseId, role))
#endif

/* Who may SET ROLE to another one: since 16 not every member. */
#if PG_VERSION_NUM >= 160000
#define swarm_may_become(member, role)	member_can_set_role(member, role)
#else
#define swarm_may_become(member, role)	is_member_of_role(member, role)
#endif

/* Maintenance runs with a safe search_path since 17. */
#if PG_VERSION_NUM >= 170000
#define swarm_restrict_search_path()	RestrictSearchPath()
#else
#define swarm_restrict_search_path()	((void) 0)
#endif

/* Input functions gained a place for soft errors in 16. */
#if PG_VERSION_NUM >= 160000
#define swarm_string_to_name_list(s)	stringToQualifiedNameList(s, NULL)
#else
#define swarm_string_to_name_list(s)	stringToQualifiedNameList(s)
#endif

/* The record of a setting, by name; find_option() became public in 16. */
#include "utils/guc_tables.h"
#if PG_VERSION_NUM >= 160000
#define swarm_guc_find(name)	find_option(name, false, true, LOG)
#else
static inline struct config_generic *
swarm_guc_find(const char *name)
{
	struct config_generic **all = get_guc_variables();

	for (int i = 0; i < GetNumConfigOptions(); i++)
	{
		if (strcmp(all[i]->name, name) == 0)
			return all[i];
	}
	return NULL;
}
#endif

/* The file of a relation was renamed in 16. */
#include "storage/bufmgr.h"
#if PG_VERSION_NUM >= 160000
#define swarm_relation_file(rel)	((rel)->rd_locator.relNumber)
#define swarm_read_recent_buffer(rel, block, buffer) \
	ReadRecentBuffer((rel)->rd_locator, MAIN_FORKNUM, block, buffer)
#else
#define swarm_relation_file(rel)	((rel)->rd_node.relNode)
#define swarm_read_recent_buffer(rel, block, buffer) \
	ReadRecentBuffer((rel)->rd_node, MAIN_FORKNUM, block, buffer)
#endif

/* EXPLAIN counts the searches of an index scan since 18. */
#if PG_VERSION_NUM >= 180000
#define swarm_count_search(scan) \
	do { if ((scan)->instrument) (scan)->instrument->nsearches++; } while (0)
#else
#define swarm_count_search(scan)	((void) 0)
#endif

/* An extension can add to what EXPLAIN says of a node since 18. */
#if PG_VERSION_NUM >= 180000
#define SWARM_EXPLAINS_NODES	1
#endif

/* A mark after a declaration until 17, a word before it since 18. */
#if PG_VERSION_NUM >= 180000
#define swarm_noreturn		pg_noreturn
#else
#define swarm_noreturn		pg_attribute_noreturn()
#endif

/* A path that must not be used says so since 18, beside its infinite cost. */
#if PG_VERSION_NUM >= 180000
#define swarm_disable_path(path)	((path)->path.disabled_nodes = 2)
#else
#define swarm_disable_path(path)	((void) 0)
#endif

/* Those who scan an index tell who counts the searches since 18. */
#if PG_VERSION_NUM >= 180000
#define swarm_index_beginscan(heap, rel, snapshot, nkeys, norderbys) \
	index_beginscan(heap, rel, snapshot, NULL, nkeys, norderbys)
#else
#define swarm_index_beginscan(heap, rel, snapshot, nkeys, norderbys) \
	index_beginscan(heap, rel, snapshot, nkeys, norderbys)
#endif

/* A sort gives what it was given, or a copy of it, since 16 as one likes. */
#if PG_VERSION_NUM >= 160000
#define swarm_tuplesort_getdatum(sort, value, isnull) \
	tuplesort_getdatum(sort, true, false, value, isnull, NULL)
#define swarm_tuplesort_freedatum(value)	((void) 0)
#else
#define swarm_tuplesort_getdatum(sort, value, isnull) \
	tuplesort_getdatum(sort, true, value, isnull, NULL)
#define swarm_tuplesort_freedatum(value)	pfree(DatumGetPointer(value))
#endif

/* Work that a cost delay may interrupt, since 18 told what it is. */
#include "commands/vacuum.h"
#if PG_VERSION_NUM >= 180000
#define swarm_vacuum_delay()	vacuum_delay_point(false)
#else
#define swarm_vacuum_delay()	vacuum_delay_point()
#endif

/* What an update says of the indexes it has to be entered in, since 16 in three words. */
#if PG_VERSION_NUM >= 160000
#define SwarmUpdateIndexes	TU_UpdateIndexes
#define swarm_update_needs_indexes(u)	((u) != TU_None)
#define swarm_insert_index_tuples(result, slot, estate, update, conflict, arbiters) \
	ExecInsertIndexTuples(result, slot, estate, update, (conflict) != NULL, conflict, arbiters, false)
#else
#define SwarmUpdateIndexes	bool
#define swarm_update_needs_indexes(u)	(u)
#define swarm_insert_index_tuples(result, slot, estate, update, conflict, arbiters) \
	ExecInsertIndexTuples(result, slot, estate, update, (conflict) != NULL, conflict, arbiters)
#endif

/* COPY TO can call back with each row since 16. */
#if PG_VERSION_NUM >= 160000
#define swarm_begin_copy_to(pstate, query, file, options) \
	BeginCopyTo(pstate, NULL, query, InvalidOid, file, false, NULL, NIL, options)
#else
#define swarm_begin_copy_to(pstate, query, file, options) \
	BeginCopyTo(pstate, NULL, query, InvalidOid, file, false, NIL, options)
#endif

/* Who hooks ExecutorRun() is told no more since 18 whether it is called once. */
#if PG_VERSION_NUM >= 180000
#define SWARM_EXECUTOR_RUN_PARAMETERS	QueryDesc *query, ScanDirection direction, uint64 count
#define SWARM_EXECUTOR_RUN_ARGUMENTS	query, direction, count
#else
#define SWARM_EXECUTOR_RUN_PARAMETERS	QueryDesc *query, ScanDirection direction, uint64 count, bool once
#define SWARM_EXECUTOR_RUN_ARGUMENTS	query, direction, count, once
#endif

/* The number of a process's PGPROC, below MaxBackends, moved in 17. */
#if PG_VERSION_NUM >= 170000
#define swarm_proc_number(proc)	GetNumberFromPGProc(proc)
#else
#define swarm_proc_number(proc)	((proc)->pgprocno)
#endif

#endif							/* SWARM_BASE_COMPAT_H */
