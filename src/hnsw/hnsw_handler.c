/*
 * hnsw_handler.c
 *	  The access method as the server knows it.
 */
#include "postgres.h"

#include "access/amapi.h"
#include "access/amvalidate.h"
#include "access/htup_details.h"
#include "catalog/pg_amop.h"
#include "catalog/pg_amproc.h"
#include "catalog/pg_opclass.h"
#include "catalog/pg_type.h"
#include "commands/progress.h"
#include "utils/catcache.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "base/compat.h"
#include "base/export.h"
#include "hnsw/hnsw.h"
#include "hnsw/hnsw_int.h"

static bool validate(Oid opclass);
static char *phase_name(int64 phase);

/*
 * swarm_hnsw_init: see hnsw.h.
 */
void
swarm_hnsw_init(void)
{
	swarm_hnsw_options_init();
	swarm_hnsw_chore_init();
	swarm_hnsw_explain_init();
}

/*
 * swarm._qhnsw_handler(internal) returns index_am_handler
 */
SWARM_FUNCTION(swarm__qhnsw_handler);
Datum
swarm__qhnsw_handler(PG_FUNCTION_ARGS)
{
	IndexAmRoutine *am = makeNode(IndexAmRoutine);

	am->amstrategies = 1;
	am->amsupport = 1;
	am->amcanorderbyop = true;
	am->amoptionalkey = true;
	am->amparallelvacuumoptions = VACUUM_OPTION_PARALLEL_BULKDEL |
		VACUUM_OPTION_PARALLEL_COND_CLEANUP;
	am->amkeytype = InvalidOid;

	am->ambuild = swarm_hnsw_build;
	am->ambuildempty = swarm_hnsw_build_empty;
	am->aminsert = swarm_hnsw_insert;
	am->ambulkdelete = swarm_hnsw_bulk_delete;
	am->amvacuumcleanup = swarm_hnsw_vacuum_cleanup;
	am->amcostestimate = swarm_hnsw_cost;
	am->amoptions = swarm_hnsw_options;
	am->ambuildphasename = phase_name;
	am->amvalidate = validate;
	am->ambeginscan = swarm_hnsw_begin_scan;
	am->amrescan = swarm_hnsw_rescan;
	am->amgettuple = swarm_hnsw_get_tuple;
	am->amendscan = swarm_hnsw_end_scan;
	PG_RETURN_POINTER(am);
}

/*
 * phase_name: ambuildphasename, for pg_stat_progress_create_index.
 */
static char *
phase_name(int64 phase)
{
	switch (phase)
	{
		case PROGRESS_CREATEIDX_SUBPHASE_INITIALIZE:
			return "initializing";
		case 2:
			return "sampling table";
		case 3:
			return "building graph";
		case 4:
			return "writing pages";
		default:
			return NULL;
	}
}

/*
 * validate: amvalidate: one ordering operator that returns float8, and support
 * function 1.
 */
static bool
validate(Oid opclass)
{
	HeapTuple	tuple = SearchSysCache1(CLAOID, ObjectIdGetDatum(opclass));
	Form_pg_opclass form;
	CatCList   *operators;
	CatCList   *procs;
	Oid			family;
	Oid			type;
	char	   *name;
	bool		valid = true;
	bool		support = false;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for operator class %u", opclass);
	form = (Form_pg_opclass) GETSTRUCT(tuple);
	family = form->opcfamily;
	type = form->opcintype;
	name = pstrdup(NameStr(form->opcname));
	ReleaseSysCache(tuple);

	operators = SearchSysCacheList1(AMOPSTRATEGY, ObjectIdGetDatum(family));
	for (int i = 0; i < operators->n_members; i++)
	{
		Form_pg_amop op = (Form_pg_amop) GETSTRUCT(&operators->members[i]->tuple);

		if (op->amopstrategy != 1 || op->amoppurpose != AMOP_ORDER)
			valid = false;
		else if (!check_amop_signature(op->amopopr, FLOAT8OID, op->amoplefttype,
									   op->amoprighttype))
			valid = false;
		if (!valid)
			ereport(INFO,
					(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
					 errmsg("operator class \"%s\" of access method qhnsw has an operator it cannot use",
							name)));
	}
	procs = SearchSysCacheList1(AMPROCNUM, ObjectIdGetDatum(family));
	for (int i = 0; i < procs->n_members; i++)
	{
		Form_pg_amproc proc = (Form_pg_amproc) GETSTRUCT(&procs->members[i]->tuple);

		if (proc->amprocnum == 1 && proc->amproclefttype == type)
			support = true;
		if (proc->amprocnum != 1 ||
			!check_amproc_signature(proc->amproc, INTERNALOID, true, 1, 1,
									INTERNALOID))
		{
			ereport(INFO,
					(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
					 errmsg("operator class \"%s\" of access method qhnsw has a support function it cannot use",
							name)));
			valid = false;
		}
	}
	if (!support)
	{
		ereport(INFO,
				(errcode(ERRCODE_INVALID_OBJECT_DEFINITION),
				 errmsg("operator class \"%s\" of access method qhnsw is missing support function %d",
						name, 1)));
		valid = false;
	}
	ReleaseCatCacheList(operators);
	ReleaseCatCacheList(procs);
	return valid;
}

/*
 * The support functions of the operator classes: each returns what its class
 * is for.  They take an internal argument so that SQL cannot call them.
 */
#define OPCLASS(name, metric_, type_) \
SWARM_FUNCTION(name); \
Datum \
name(PG_FUNCTION_ARGS) \
{ \
	static const SwarmHnswOpclass opclass = {.metric = metric_, .type = type_}; \
\
	PG_RETURN_POINTER(&opclass); \
}

OPCLASS(swarm__qhnsw_real_l2, SWARM_METRIC_L2, SWARM_TYPE_REAL)
OPCLASS(swarm__qhnsw_real_cosine, SWARM_METRIC_COSINE, SWARM_TYPE_REAL)
OPCLASS(swarm__qhnsw_real_ip, SWARM_METRIC_IP, SWARM_TYPE_REAL)
OPCLASS(swarm__qhnsw_vector_l2, SWARM_METRIC_L2, SWARM_TYPE_VECTOR)
OPCLASS(swarm__qhnsw_vector_cosine, SWARM_METRIC_COSINE, SWARM_TYPE_VECTOR)
OPCLASS(swarm__qhnsw_vector_ip, SWARM_METRIC_IP, SWARM_TYPE_VECTOR)
OPCLASS(swarm__qhnsw_halfvec_l2, SWARM_METRIC_L2, SWARM_TYPE_HALFVEC)
OPCLASS(swarm__qhnsw_halfvec_cosine, SWARM_METRIC_COSINE, SWARM_TYPE_HALFVEC)
OPCLASS(swarm__qhnsw_halfvec_ip, SWARM_METRIC_IP, SWARM_TYPE_HALFVEC)
