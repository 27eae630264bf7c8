/*
 * query_pause.c
 *	  Holding a statement between two rows, in the process that runs it.
 *
 * When a statement starts in a process that works on a query, the addresses
 * of all its plan nodes are noted; nothing else, so a row costs nothing.  Who
 * wants something sends SIGUSR2; the handler puts our function in place of
 * each node's ExecProcNode: plain stores into memory prepared before.  The
 * next request for a row, of whatever node, then comes here: the pointers are
 * put back, and the process waits on its latch for as long as it is asked to.
 * CHECK_FOR_INTERRUPTS in the wait, so that cancelling, ending, recovery
 * conflicts and the server's shutdown work as ever.
 *
 * A node boundary is a safe place: no lock of the server's internals is held
 * (the interrupt holdoff counters say so), and whatever can be called from an
 * expression may be done there.  Loops of PL/pgSQL that run no plan come by
 * through the plugin hook of the language, which the handler sets too.
 */
#include "postgres.h"

#include <signal.h>

#include "access/parallel.h"
#include "access/xact.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "pgstat.h"
#include "plpgsql.h"
#include "storage/proc.h"
#include "tcop/utility.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timeout.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/fault.h"
#include "query/query_int.h"

#define FEW_NODES	8			/* what a frame has room for by itself */

/* The nodes of a statement under way; they nest. */
typedef struct Frame
{
	struct Frame *outer;
	int			n;
	int			room;
	PlanState **nodes;
	ExecProcNodeMtd *methods;	/* what stood there, while `armed` */
	volatile sig_atomic_t armed;
	MemoryContextCallback end;
	PlanState  *few_nodes[FEW_NODES];
	ExecProcNodeMtd few_methods[FEW_NODES];
} Frame;

static Frame *volatile top = NULL;
static volatile sig_atomic_t held = false;	/* we are in hold() */
static const char *volatile utility = NULL; /* a utility command runs */
static ExecutorStart_hook_type previous_start = NULL;
static ProcessUtility_hook_type previous_utility = NULL;
static struct sigaction previous_signal;
static PLpgSQL_plugin **plugin_place;	/* where the language looks */
static PLpgSQL_plugin plugin;
static PLpgSQL_plugin *previous_plugin = NULL;

static void on_signal(SIGNAL_ARGS);
static void arm(void);
static void disarm(void);
static void note_obstacle(void);
static TupleTableSlot *stop_here(PlanState *node);
static void hold(const char *where);
static void enter_hold(const char *where);
static void leave_hold(bool interrupted);
static bool safe_here(void);
static uint32 wanted(void);
static void make_read_only(void);
static void join_in(void);
static void start(QueryDesc *desc, int flags);
static bool collect(PlanState *node, void *frame);
static void end_frame(void *arg);
static void run_utility(PlannedStmt *stmt, const char *text, bool read_only_tree,
						ProcessUtilityContext context, ParamListInfo params,
						QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc);
static const char *node_name(const PlanState *node);
static void plugin_setup(PLpgSQL_execstate *estate, PLpgSQL_function *func);
static void plugin_begin(PLpgSQL_execstate *estate, PLpgSQL_stmt *stmt);

void
swarm_query_pause_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		return;
	previous_start = ExecutorStart_hook;
	ExecutorStart_hook = start;
	previous_utility = ProcessUtility_hook;
	ProcessUtility_hook = run_utility;
}

/*
 * swarm_query_listen: from now on this process can be asked.  Backends and
 * background workers ignore SIGUSR2; if some other library has taken it, its
 * handler is called too.
 */
void
swarm_query_listen(void)
{
	static bool done = false;

	if (done)
		return;
	done = true;
	plugin_place = (PLpgSQL_plugin **) find_rendezvous_variable("PLpgSQL_plugin");
	previous_plugin = *plugin_place;
	plugin.stmt_beg = plugin_begin;
	if (previous_plugin != NULL)
	{
		plugin = *previous_plugin;
		plugin.func_setup = plugin_setup;
		plugin.stmt_beg = plugin_begin;
		*plugin_place = &plugin;
	}
	sigaction(SIGUSR2, NULL, &previous_signal);
	pqsignal(SIGUSR2, on_signal);
}

/* ------------------------------------------------------------------------
 * Arming
 * ------------------------------------------------------------------------ */

static void
on_signal(SIGNAL_ARGS)
{
	int			save_errno = errno;

	if (swarm_query_me != NULL && wanted() != 0)
	{
		arm();
		note_obstacle();
	}
	if (MyLatch != NULL)
		SetLatch(MyLatch);
	if (previous_signal.sa_handler != SIG_IGN && previous_signal.sa_handler != SIG_DFL &&
		(previous_signal.sa_flags & SA_SIGINFO) == 0)
		previous_signal.sa_handler(postgres_signal_arg);
	errno = save_errno;
}

/*
 * arm: in a signal handler, or where one may come at any time.  All methods
 * are saved before the first is replaced, as a node may be in the list twice.
 */
static void
arm(void)
{
	static volatile sig_atomic_t arming = false;

	if (held || arming)
		return;
	arming = true;				/* a signal in the middle leaves it to us */
	for (Frame *f = top; f != NULL; f = f->outer)
	{
		if (f->armed)
			continue;
		for (int i = 0; i < f->n; i++)
			f->methods[i] = f->nodes[i]->ExecProcNode;
		for (int i = 0; i < f->n; i++)
			f->nodes[i]->ExecProcNode = stop_here;
		f->armed = true;
	}
	if (*plugin_place == NULL)
		*plugin_place = &plugin;
	arming = false;
}

/*
 * disarm: a node that was called for the first time has replaced our function
 * itself, and is left alone.  A signal in the middle may not arm what we have
 * not come to: whoever calls this looks for wishes afterwards, by hold().
 */
static void
disarm(void)
{
	if (previous_plugin == NULL && *plugin_place == &plugin)
		*plugin_place = NULL;
	for (Frame *f = top; f != NULL; f = f->outer)
	{
		if (!f->armed)
			continue;
		for (int i = 0; i < f->n; i++)
		{
			if (f->nodes[i]->ExecProcNode == stop_here)
				f->nodes[i]->ExecProcNode = f->methods[i];
		}
		f->armed = false;
	}
}

/*
 * note_obstacle: what keeps the process from coming by, for who waits for it:
 * a sort that has read all its rows and sorts them, foreign code in the plan, a
 * utility command, nothing at all.  Called by the signal handler; the slot's text
 * is only ever a hint.
 */
static void
note_obstacle(void)
{
	const char *what = "idle";

	if (held)
		return;
	if (utility != NULL)
		what = utility;
	else if (top != NULL && top->n > 0)
	{
		what = node_name(top->nodes[0]);
		for (int i = 0; i < top->n; i++)
		{
			PlanState  *node = top->nodes[i];

			if (IsA(node, SortState) &&
				((SortState *) node)->tuplesortstate != NULL && !((SortState *) node)->sort_Done)
			{
				what = "Sort";
				break;
			}
			if (IsA(node, ForeignScanState) || IsA(node, CustomScanState))
				what = node_name(node);
		}
	}
	strlcpy(swarm_query_me->node, what, sizeof(swarm_query_me->node));
}

/*
 * stop_here: ExecProcNode of every node while armed.
 */
static TupleTableSlot *
stop_here(PlanState *node)
{
	if (safe_here())
	{
		disarm();
		hold(node_name(node));
		return node->ExecProcNode(node);
	}
	/* stay armed; the next call comes soon */
	for (Frame *f = top; f != NULL; f = f->outer)
	{
		if (!f->armed)
			continue;
		for (int i = 0; i < f->n; i++)
		{
			if (f->nodes[i] == node)
				return f->methods[i] (node);
		}
	}
	elog(ERROR, "plan node is not known");
}

static bool
safe_here(void)
{
	return InterruptHoldoffCount == 0 && QueryCancelHoldoffCount == 0 && CritSectionCount == 0;
}

/* wanted: what this process is to come by for. */
static uint32
wanted(void)
{
	uint32		request = pg_atomic_read_u32(&swarm_query_me->request);

	if (swarm_query_me->kind == SWARM_KIND_TURN || swarm_query_me->ended)
		return 0;				/* the one asks by itself, between two turns */
	if (swarm_query_me->leader >= 0)
		return request & SWARM_REQ_HOLD;
	return request & (SWARM_REQ_PAUSE | SWARM_REQ_COMMAND | SWARM_REQ_MODE);
}

/* ------------------------------------------------------------------------
 * Holding
 * ------------------------------------------------------------------------ */

/*
 * hold: do what is asked, wait while that is asked.  The statement's timeout
 * does not count meanwhile.
 */
static void
hold(const char *where)
{
	static uint32 wait_event = 0;
	volatile bool entered = false;
	volatile bool timeout = false;
	volatile TimestampTz left = 0;
	volatile bool normal = false;

	if (held || swarm_query_me == NULL || wanted() == 0)
		return;
	if (wait_event == 0)
		wait_event = swarm_wait_event_new("SwarmQueryPaused");
	held = true;
	PG_TRY();
	{
		for (;;)
		{
			uint32		request = wanted();

			if (request & SWARM_REQ_MODE)
			{
				pg_atomic_fetch_and_u32(&swarm_query_me->request, ~SWARM_REQ_MODE);
				make_read_only();
				continue;
			}
			if (request & SWARM_REQ_COMMAND)
			{
				swarm_query_run_command(swarm_query_me);
				continue;
			}
			if (request == 0)
				break;
			if (!entered)
			{
				if (get_timeout_active(STATEMENT_TIMEOUT))
				{
					left = get_timeout_finish_time(STATEMENT_TIMEOUT) - GetCurrentTimestamp();
					disable_timeout(STATEMENT_TIMEOUT, false);
					timeout = true;
				}
				enter_hold(where);
				entered = true;
				SWARM_FAULT("query.paused");
			}
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH, -1L, wait_event);
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
		}
		normal = true;
	}
	PG_FINALLY();
	{
		held = false;
		if (entered)
			leave_hold(!normal);
		/* also after an error, which the statement may catch and go on */
		if (timeout)
			enable_timeout_after(STATEMENT_TIMEOUT, (int) Min(Max(left / 1000, 1), INT_MAX));
		if (wanted() != 0)
			arm();				/* asked again while the signal was ignored */
	}
	PG_END_TRY();
}

/*
 * enter_hold: this is where it is paused.  A leader takes its workers along,
 * now: before, it may have needed their rows to come here.
 */
static void
enter_hold(const char *where)
{
	SwarmQuerySlot *slot = swarm_query_me;

	LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
	strlcpy(slot->node, where, sizeof(slot->node));
	if (slot->by_workers)
		slot->by_workers = false;	/* counted already */
	else
	{
		slot->state = SWARM_QUERY_PAUSED;
		slot->paused_at = swarm_now();
		slot->pauses++;
		if (slot->leader < 0)
			swarm_query_tell(slot, SWARM_QUERY_PAUSE, SWARM_QUERY_RUNNING, SWARM_QUERY_PAUSED, where);
	}
	if (slot->leader < 0)
		swarm_query_ask_workers(slot, SWARM_REQ_HOLD);
	LWLockRelease(swarm_query_lock);
	if (slot->leader < 0)
	{
		ConditionVariableBroadcast(&slot->changed);
		swarm_query_wake_scheduler(MyDatabaseId);
	}
	else
		ConditionVariableBroadcast(&swarm_query_slot(slot->leader)->changed);
}

static void
leave_hold(bool interrupted)
{
	SwarmQuerySlot *slot = swarm_query_me;

	LWLockAcquire(swarm_query_lock, LW_EXCLUSIVE);
	slot->resumed_at = swarm_now();
	slot->paused_us += Max(slot->resumed_at - slot->paused_at, 0);
	slot->node[0] = '\0';

	/* a statement that is terminated while paused goes from there to its end */
	if (!interrupted || slot->kind == SWARM_KIND_SESSION ||
		(pg_atomic_read_u32(&slot->request) & SWARM_REQ_STOP) == 0)
		slot->state = SWARM_QUERY_RUNNING;
	if (slot->leader < 0 && slot->state == SWARM_QUERY_RUNNING)
	{
		if (interrupted)
			(void) swarm_query_unpause(slot, InvalidOid);
		swarm_query_tell(slot, SWARM_QUERY_RESUME, SWARM_QUERY_PAUSED, SWARM_QUERY_RUNNING,
						 interrupted ? "interrupted" : NULL);
	}
	LWLockRelease(swarm_query_lock);
	ConditionVariableBroadcast(&slot->changed);
	swarm_query_wake_scheduler(MyDatabaseId);
}

/*
 * make_read_only: for the rest of the transaction, if the query's permission
 * mode wants it; the next one is seen to when its first statement starts.
 */
static void
make_read_only(void)
{
	if (swarm_query_me->read_only && !XactReadOnly && IsTransactionState() &&
		!IsInParallelMode())
		(void) set_config_option("transaction_read_only", "on", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
}

/* ------------------------------------------------------------------------
 * Statements
 * ------------------------------------------------------------------------ */

/*
 * join_in: a process becomes that of a query: a parallel worker as its leader
 * is one, a session by pg_swarm.query_control.  The scheduler shall give that
 * an id.  It belongs to who has logged in: what SET ROLE gives comes and goes.
 */
static void
join_in(void)
{
	if (swarm_query_me != NULL && swarm_query_me->ended && top == NULL && utility == NULL)
		swarm_query_detach(NULL);
	if (swarm_query_me != NULL || swarm_query_slots() == 0)
		return;
	if (IsParallelWorker())
	{
		if (MyProc->lockGroupLeader != NULL)
			swarm_query_attach_worker(swarm_proc_number(MyProc->lockGroupLeader));
	}
	else if (swarm_query_control && MyBackendType == B_BACKEND && !RecoveryInProgress())
	{
		swarm_query_attach(0, SWARM_KIND_SESSION, MyProc->roleId, false);
		swarm_query_wake_scheduler(MyDatabaseId);
	}
}

/*
 * start: ExecutorStart_hook.
 */
static void
start(QueryDesc *desc, int flags)
{
	Frame	   *frame;
	MemoryContext old;
	ListCell   *lc;

	join_in();
	if (swarm_query_me != NULL)
		make_read_only();
	if (previous_start)
		previous_start(desc, flags);
	else
		standard_ExecutorStart(desc, flags);
	if (swarm_query_me == NULL || (flags & EXEC_FLAG_EXPLAIN_ONLY) != 0)
		return;

	old = MemoryContextSwitchTo(desc->estate->es_query_cxt);
	frame = palloc(sizeof(Frame));	/* small statements come by the million */
	frame->n = 0;
	frame->room = FEW_NODES;
	frame->nodes = frame->few_nodes;
	frame->methods = frame->few_methods;
	frame->armed = false;
	(void) collect(desc->planstate, frame);
	foreach(lc, desc->estate->es_subplanstates)
		(void) collect(lfirst(lc), frame);
	if (frame->n > FEW_NODES)
		frame->methods = palloc(frame->n * sizeof(ExecProcNodeMtd));
	frame->outer = top;
	frame->end.func = end_frame;
	frame->end.arg = frame;
	MemoryContextRegisterResetCallback(desc->estate->es_query_cxt, &frame->end);
	MemoryContextSwitchTo(old);
	pg_compiler_barrier();
	top = frame;				/* from here on a signal arms it */
	if (wanted() != 0)
		arm();
}

static bool
collect(PlanState *node, void *arg)
{
	Frame	   *frame = arg;

	if (node == NULL)
		return false;
	if (frame->n == frame->room)
	{
		PlanState **more = palloc(2 * frame->room * sizeof(PlanState *));

		memcpy(more, frame->nodes, frame->room * sizeof(PlanState *));
		frame->nodes = more;
		frame->room *= 2;
	}
	frame->nodes[frame->n++] = node;
	/* what small statements are made of, and what has nothing below it */
	if ((IsA(node, IndexScanState) || IsA(node, SeqScanState)) &&
		node->initPlan == NIL && node->subPlan == NIL)
		return false;
	return planstate_tree_walker(node, collect, arg);
}

/*
 * end_frame: the memory of the statement goes, after its end or an error.
 */
static void
end_frame(void *arg)
{
	Frame	   *frame = arg;

	if (top == frame)
		top = frame->outer;
	else
	{
		for (Frame *f = top; f != NULL; f = f->outer)
		{
			if (f->outer == frame)
				f->outer = frame->outer;
		}
	}
}

/*
 * run_utility: ProcessUtility_hook: a read-only query refuses these too, and
 * whoever waits shall know what for.
 */
static void
run_utility(PlannedStmt *stmt, const char *text, bool read_only_tree,
			ProcessUtilityContext context, ParamListInfo params,
			QueryEnvironment *env, DestReceiver *dest, QueryCompletion *qc)
{
	ProcessUtility_hook_type next = previous_utility ? previous_utility : standard_ProcessUtility;
	const char *outer = utility;

	join_in();					/* DO may run for long without any plan */
	if (swarm_query_me == NULL)
	{
		next(stmt, text, read_only_tree, context, params, env, dest, qc);
		return;
	}
	make_read_only();
	utility = GetCommandTagName(CreateCommandTag((Node *) stmt));
	PG_TRY();
	{
		next(stmt, text, read_only_tree, context, params, env, dest, qc);
	}
	PG_FINALLY();
	{
		utility = outer;
	}
	PG_END_TRY();
}

static const char *
node_name(const PlanState *node)
{
	static const struct
	{
		NodeTag		tag;
		const char *name;
	}			names[] = {
		{T_ResultState, "Result"}, {T_ProjectSetState, "ProjectSet"},
		{T_ModifyTableState, "ModifyTable"}, {T_AppendState, "Append"},
		{T_MergeAppendState, "Merge Append"}, {T_RecursiveUnionState, "Recursive Union"},
		{T_BitmapAndState, "BitmapAnd"}, {T_BitmapOrState, "BitmapOr"},
		{T_SeqScanState, "Seq Scan"}, {T_SampleScanState, "Sample Scan"},
		{T_IndexScanState, "Index Scan"}, {T_IndexOnlyScanState, "Index Only Scan"},
		{T_BitmapIndexScanState, "Bitmap Index Scan"}, {T_BitmapHeapScanState, "Bitmap Heap Scan"},
		{T_TidScanState, "Tid Scan"}, {T_TidRangeScanState, "Tid Range Scan"},
		{T_SubqueryScanState, "Subquery Scan"}, {T_FunctionScanState, "Function Scan"},
		{T_TableFuncScanState, "Table Function Scan"}, {T_ValuesScanState, "Values Scan"},
		{T_CteScanState, "CTE Scan"}, {T_NamedTuplestoreScanState, "Named Tuplestore Scan"},
		{T_WorkTableScanState, "WorkTable Scan"}, {T_ForeignScanState, "Foreign Scan"},
		{T_CustomScanState, "Custom Scan"}, {T_NestLoopState, "Nested Loop"},
		{T_MergeJoinState, "Merge Join"}, {T_HashJoinState, "Hash Join"},
		{T_MaterialState, "Materialize"}, {T_MemoizeState, "Memoize"},
		{T_SortState, "Sort"}, {T_IncrementalSortState, "Incremental Sort"},
		{T_GroupState, "Group"}, {T_AggState, "Aggregate"},
		{T_WindowAggState, "WindowAgg"}, {T_UniqueState, "Unique"},
		{T_GatherState, "Gather"}, {T_GatherMergeState, "Gather Merge"},
		{T_HashState, "Hash"}, {T_SetOpState, "SetOp"},
		{T_LockRowsState, "LockRows"}, {T_LimitState, "Limit"}
	};

	for (int i = 0; i < lengthof(names); i++)
	{
		if (nodeTag(node) == names[i].tag)
			return names[i].name;
	}
	return "other";
}

/* ------------------------------------------------------------------------
 * PL/pgSQL
 * ------------------------------------------------------------------------ */

/*
 * plugin_setup: a plugin that was there before ours calls the language through
 * functions that it has put into our struct.
 */
static void
plugin_setup(PLpgSQL_execstate *estate, PLpgSQL_function *func)
{
	previous_plugin->error_callback = plugin.error_callback;
	previous_plugin->assign_expr = plugin.assign_expr;
	previous_plugin->assign_value = plugin.assign_value;
	previous_plugin->eval_datum = plugin.eval_datum;
	previous_plugin->cast_value = plugin.cast_value;
	if (previous_plugin->func_setup)
		previous_plugin->func_setup(estate, func);
}

/*
 * plugin_begin: before each statement, from when we were armed; always where
 * there was a plugin before ours.
 */
static void
plugin_begin(PLpgSQL_execstate *estate, PLpgSQL_stmt *stmt)
{
	bool		asked = swarm_query_me != NULL && pg_atomic_read_u32(&swarm_query_me->request) != 0;

	if ((asked || previous_plugin == NULL) && safe_here())
	{
		disarm();
		hold("PL/pgSQL");
	}
	if (previous_plugin != NULL && previous_plugin->stmt_beg)
		previous_plugin->stmt_beg(estate, stmt);
}
