/*
 * memory_prepared.c
 *	  Prepared transactions that have written entries.
 *
 * Such a transaction becomes visible in whatever process ends it, which knows
 * nothing of its keys: a session by COMMIT PREPARED, or a worker of logical
 * replication, which calls no hook.  So its guards are marked when it is
 * prepared, and stay so, noted here, until it has ended: no reader goes by the
 * cache for these keys meanwhile.  Who may have ended one looks at the end of his own
 * transaction which of those noted are no longer in progress, and unmarks them:
 * those of his database, whose counts and scheduler he alone can tell of it.
 * If nobody does, nothing is wrong but that the table is read.
 *
 * Those of before the server's start are looked for once, before the first can
 * be ended, and guarded as a whole: their keys are not known.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/twophase.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "replication/logicalworker.h"
#include "storage/procarray.h"
#include "tcop/utility.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/shmem.h"
#include "memory/memory_int.h"

#define MOST_KEYS	64			/* guarded one by one */

typedef struct PreparedWriter
{
	pg_atomic_uint32 xid;		/* invalid: the place is free */
	Oid			database;
	bool		all;			/* everything is guarded */
	int			n;
	uint32		hashes[MOST_KEYS];
} PreparedWriter;

/* Places are taken and left under the lock. */
typedef struct PreparedWriters
{
	pg_atomic_uint32 taken;
	pg_atomic_uint32 looked;	/* for those of before the start */
	int			places;
	PreparedWriter writers[FLEXIBLE_ARRAY_MEMBER];
} PreparedWriters;

static PreparedWriters *prepared = NULL;
static LWLock *prepared_lock = NULL;
static ProcessUtility_hook_type previous_utility = NULL;
static TransactionId preparing = InvalidTransactionId;	/* by this process */
static bool may_have_ended = false; /* one was, in this transaction */

static Size prepared_size(void);
static void prepared_attach(void *memory, bool found);
static int	count_places(void);
static void look(void);
static bool enter(TransactionId xid, Oid database, const uint32 *hashes, int n, bool all);
static void leave(PreparedWriter *place, TransactionId xid);
static void settle(bool everywhere);
static void utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
					ProcessUtilityContext utility_context, ParamListInfo params,
					QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc);

static SwarmShmemPiece prepared_piece = {
	.name = "pg_swarm prepared memory",
	.size = prepared_size,
	.init = prepared_attach,
	.pointer = (void **) &prepared,
	.lock = &prepared_lock
};

void
swarm_memory_prepared_init(void)
{
	swarm_shmem_register(&prepared_piece);
	if (!process_shared_preload_libraries_in_progress)
		return;
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = utility;
}

/* Those prepared, and one that each backend is about to prepare, or has just ended. */
static int
count_places(void)
{
	return max_prepared_xacts > 0 ? max_prepared_xacts + MaxBackends : 0;
}

static Size
prepared_size(void)
{
	return add_size(offsetof(PreparedWriters, writers),
					mul_size(count_places(), sizeof(PreparedWriter)));
}

static void
prepared_attach(void *memory, bool found)
{
	PreparedWriters *p = memory;

	if (found)
		return;
	pg_atomic_init_u32(&p->taken, 0);
	pg_atomic_init_u32(&p->looked, 0);
	p->places = count_places();
	for (int i = 0; i < p->places; i++)
		pg_atomic_init_u32(&p->writers[i].xid, InvalidTransactionId);
}

/* ------------------------------------------------------------------------
 * Prepare
 * ------------------------------------------------------------------------ */

void
swarm_memory_prepare(const uint32 *hashes, int n, bool all)
{
	TransactionId xid = GetTopTransactionIdIfAny();

	/* without places, none can be prepared: the server says why */
	if (prepared == NULL || prepared->places == 0)
		return;
	look();
	if ((n == 0 && !all) || !TransactionIdIsValid(xid))
		return;
	if (!enter(xid, MyDatabaseId, hashes, n, all))
	{
		settle(true);
		if (!enter(xid, MyDatabaseId, hashes, n, all))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
					 errmsg("too many prepared transactions have stored memory entries")));
	}
	preparing = xid;
}

/*
 * look: note the prepared transactions of before the server's start.  In a
 * transaction; later than this nobody can end one that is not noted.
 */
static void
look(void)
{
	SwarmSpi	spi;
	uint64		n;

	if (prepared->places == 0 || RecoveryInProgress() || pg_atomic_read_u32(&prepared->looked) != 0)
		return;
	swarm_spi_begin(&spi);
	n = swarm_spi_query("SELECT transaction, dbid FROM pg_catalog.pg_prepared_xact()", 0, NULL, NULL, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		TransactionId xid = DatumGetTransactionId(swarm_spi_column(i, 1, &isnull));

		if (!enter(xid, DatumGetObjectId(swarm_spi_column(i, 2, &isnull)), NULL, 0, true))
			elog(ERROR, "no place to note a prepared transaction");
	}
	swarm_spi_end(&spi);
	pg_atomic_write_u32(&prepared->looked, 1);
}

/*
 * enter: mark the guards of a transaction, unless it is noted already.  False
 * if there is no place.
 */
static bool
enter(TransactionId xid, Oid database, const uint32 *hashes, int n, bool all)
{
	PreparedWriter *place = NULL;
	bool		known = false;

	LWLockAcquire(prepared_lock, LW_EXCLUSIVE);
	for (int i = 0; i < prepared->places && !known; i++)
	{
		TransactionId other = pg_atomic_read_u32(&prepared->writers[i].xid);

		known = TransactionIdEquals(other, xid);
		if (!TransactionIdIsValid(other) && place == NULL)
			place = &prepared->writers[i];
	}
	if (!known && place != NULL)
	{
		place->database = database;
		place->all = all || n > MOST_KEYS;
		place->n = place->all ? 0 : n;
		if (place->n > 0)
			memcpy(place->hashes, hashes, n * sizeof(uint32));
		swarm_guards_begin(place->hashes, place->n, place->all);
		pg_atomic_write_u32(&place->xid, xid);
		pg_atomic_fetch_add_u32(&prepared->taken, 1);
	}
	LWLockRelease(prepared_lock);
	return known || place != NULL;
}

/* ------------------------------------------------------------------------
 * The end of one
 * ------------------------------------------------------------------------ */

void
swarm_memory_prepared_pre_commit(void)
{
	/* the first transaction of such a worker applies nothing yet */
	if (prepared != NULL && IsLogicalWorker())
		look();
	if (may_have_ended)
		SWARM_FAULT("memory.ended");
}

void
swarm_memory_prepared_end_of_transaction(XactEvent event)
{
	if (prepared == NULL)
		return;
	if (TransactionIdIsValid(preparing) && event != XACT_EVENT_PREPARE)
	{
		for (int i = 0; i < prepared->places; i++)
		{
			if (TransactionIdEquals(pg_atomic_read_u32(&prepared->writers[i].xid), preparing))
				leave(&prepared->writers[i], preparing);
		}
	}
	preparing = InvalidTransactionId;
	if (may_have_ended || IsLogicalWorker())
		settle(false);
	may_have_ended = false;
}

/*
 * settle: unmark those of this database that have ended; of all only where
 * there is no place left.  An end is visible before it is found here.
 */
static void
settle(bool everywhere)
{
	if (pg_atomic_read_u32(&prepared->taken) == 0)
		return;
	for (int i = 0; i < prepared->places; i++)
	{
		PreparedWriter *place = &prepared->writers[i];
		TransactionId xid = pg_atomic_read_u32(&place->xid);

		if (TransactionIdIsValid(xid) && (everywhere || place->database == MyDatabaseId) &&
			!TransactionIdIsInProgress(xid))
			leave(place, xid);
	}
}

/*
 * leave: the transaction is over.  Somebody else may have said so meanwhile.
 */
static void
leave(PreparedWriter *place, TransactionId xid)
{
	bool		ours;

	LWLockAcquire(prepared_lock, LW_EXCLUSIVE);
	ours = TransactionIdEquals(pg_atomic_read_u32(&place->xid), xid);
	if (ours)
	{
		swarm_guards_end(place->hashes, place->n, place->all);
		pg_atomic_write_u32(&place->xid, InvalidTransactionId);
		pg_atomic_fetch_sub_u32(&prepared->taken, 1);
	}
	LWLockRelease(prepared_lock);
	if (!ours)
		return;
	swarm_quota_forget_all();
	swarm_memory_wake_all();
	swarm_memory_announce_due(swarm_now());
}

/*
 * utility: the statement of a session that ends one.
 */
static void
utility(PlannedStmt *pstmt, const char *query, bool read_only_tree,
		ProcessUtilityContext utility_context, ParamListInfo params,
		QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	TransactionStmt *stmt = (TransactionStmt *) pstmt->utilityStmt;

	if (IsA(stmt, TransactionStmt) && prepared != NULL && !IsAbortedTransactionBlockState() &&
		(stmt->kind == TRANS_STMT_COMMIT_PREPARED || stmt->kind == TRANS_STMT_ROLLBACK_PREPARED))
	{
		look();
		may_have_ended = true;
	}
	if (previous_utility)
		previous_utility(pstmt, query, read_only_tree, utility_context, params, env, dest, qc);
	else
		standard_ProcessUtility(pstmt, query, read_only_tree, utility_context, params, env, dest, qc);
}
