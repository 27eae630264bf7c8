/*
 * procedure.c
 *	  Between two transactions of a procedure: where its C code may wait.
 */
#include "postgres.h"

#include "access/xact.h"
#include "pgstat.h"
#include "tcop/pquery.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"

#include "base/procedure.h"

void
swarm_procedure_leave(MemoryContext context)
{
	HoldPinnedPortals();
	ForgetPortalSnapshots();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	pgstat_report_stat(false);
}

void
swarm_procedure_enter(MemoryContext context)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	EnsurePortalSnapshotExists();
	MemoryContextSwitchTo(context);
}
