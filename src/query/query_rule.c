/*
 * query_rule.c
 *	  The optimizer: rules, rows of swarm._rule, that act on queries.
 *
 * A tick of the scheduler asks each rule, the highest priority first, which of
 * the queries that have not ended it matches, and lets it act on those that no
 * rule has acted on in this tick.  Condition and action run with the rights of
 * the rule's owner, the condition read-only and within a second; a rule that
 * fails is noted in its row, and the next one is tried.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/resowner.h"
#include "utils/timeout.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/export.h"
#include "base/spi.h"
#include "query/query_int.h"
#include "worker/worker.h"

#define CONDITION_MS	1000

typedef struct Rule
{
	char	   *name;
	Oid			owner;
	char	   *condition;
	char	   *action;
	Datum		params;			/* jsonb */

	/* what has come of it this time */
	int64		acted;
	int64		failed;
	char	   *error;
} Rule;

static int	load_rules(bool on_demand, Rule **rules);
static TimestampTz due(void);
static void tick(void);
static int	apply(Rule *rules, int n, int64 only);
static bool matches(Rule *rule, int64 only, int64 **ids, int *n);
static bool act(Rule *rule, int64 id);
static bool guarded(Rule *rule, int64 id, int64 **ids, int *n);
static void ask_condition(const Rule *rule, int64 only, MemoryContext context, int64 **ids, int *n);
static void do_action(const Rule *rule, int64 id);
static void note(const Rule *rules, int n);
static bool contains(const int64 *ids, int n, int64 id);

static TimestampTz next_tick = DT_NOEND;
static uint32 seen = PG_UINT32_MAX; /* changes of rows that we have looked at;
									 * at first, none */

/* A step of its own: what fails here does not keep news from being written. */
static SwarmStep step = {
	.name = "rules",
	.due = due,
	.run = tick
};

void
swarm_rule_init(void)
{
	swarm_step_register(&step);
}

bool
swarm_rule_running(void)
{
	return !TIMESTAMP_IS_NOEND(next_tick);
}

static TimestampTz
due(void)
{
	if (swarm_query_slots() == 0)
		return DT_NOEND;
	return seen != swarm_query_watch_count() ? 0 : next_tick;
}

/*
 * tick: acts when the period of swarm._optimizer is over.
 */
static void
tick(void)
{
	SwarmSpi	spi;
	TimestampTz now = swarm_now();
	bool		enabled = false;
	int64		period = 0;
	Rule	   *rules;
	int			n;

	seen = swarm_query_watch_count();
	(void) set_config_option("lock_timeout", "200ms", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	swarm_spi_begin(&spi);
	if (swarm_spi_query("SELECT enabled, (extract(epoch FROM period) * 1000000)::bigint FROM swarm._optimizer",
						0, NULL, NULL, NULL) > 0)
	{
		enabled = swarm_spi_bool(0, 1);
		period = swarm_spi_int64(0, 2);
	}
	swarm_spi_end(&spi);
	if (!enabled)
	{
		next_tick = DT_NOEND;
		return;
	}
	if (TIMESTAMP_IS_NOEND(next_tick) || next_tick > now + period)
		next_tick = now;
	if (next_tick > now)
		return;
	next_tick = now + period;
	n = load_rules(false, &rules);
	(void) apply(rules, n, 0);
}

/*
 * swarm._query_optimize(query_id) returns text: the rule that has acted, by
 * the rules for this; NULL if none matched.
 */
SWARM_FUNCTION(swarm_query_optimize);
Datum
swarm_query_optimize(PG_FUNCTION_ARGS)
{
	SwarmQueryRow row;
	Rule	   *rules;
	int			n;
	int			acted;

	swarm_query_get(PG_GETARG_INT64(0), false, &row);
	swarm_query_check_control(&row, false);
	(void) swarm_query_require(row.state, SWARM_QUERY_OPTIMIZE, row.id);
	n = load_rules(true, &rules);
	acted = apply(rules, n, row.id);
	if (acted < 0)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(rules[acted].name));
}

static int
load_rules(bool on_demand, Rule **rules)
{
	SwarmSpi	spi;
	Oid			types[] = {BOOLOID};
	Datum		values[] = {BoolGetDatum(on_demand)};
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext old;
	int			n;

	swarm_spi_begin(&spi);
	n = (int) swarm_spi_query("SELECT name, owner::oid, condition, action, params FROM swarm._rule "
							  "WHERE enabled AND on_demand = $1 ORDER BY priority DESC, name",
							  1, types, values, NULL);
	old = MemoryContextSwitchTo(caller);
	*rules = palloc0((n + 1) * sizeof(Rule));
	for (int i = 0; i < n; i++)
	{
		bool		isnull;

		(*rules)[i].name = swarm_spi_text(i, 1);
		(*rules)[i].owner = DatumGetObjectId(swarm_spi_column(i, 2, &isnull));
		(*rules)[i].condition = swarm_spi_text(i, 3);
		(*rules)[i].action = swarm_spi_text(i, 4);
		(*rules)[i].params = PointerGetDatum(PG_DETOAST_DATUM_COPY(swarm_spi_column(i, 5, &isnull)));
	}
	MemoryContextSwitchTo(old);
	swarm_spi_end(&spi);
	return n;
}

/*
 * apply: `only` 0: to all queries.  Returns the number of the last rule that
 * has acted, -1 if none.
 */
static int
apply(Rule *rules, int n, int64 only)
{
	int64	   *done = NULL;
	int			ndone = 0;
	int			last = -1;

	for (int i = 0; i < n; i++)
	{
		int64	   *ids;
		int			nids;

		if (!matches(&rules[i], only, &ids, &nids))
			continue;
		for (int j = 0; j < nids; j++)
		{
			if (contains(done, ndone, ids[j]) || !act(&rules[i], ids[j]))
				continue;
			done = done == NULL ? palloc(sizeof(int64)) : repalloc(done, (ndone + 1) * sizeof(int64));
			done[ndone++] = ids[j];
			last = i;
		}
	}
	note(rules, n);
	return last;
}

static bool
contains(const int64 *ids, int n, int64 id)
{
	for (int i = 0; i < n; i++)
	{
		if (ids[i] == id)
			return true;
	}
	return false;
}

/* matches: false if the condition fails. */
static bool
matches(Rule *rule, int64 only, int64 **ids, int *n)
{
	*ids = NULL;
	*n = 0;
	return guarded(rule, only, ids, n);
}

static bool
act(Rule *rule, int64 id)
{
	SwarmQueryRow row;

	if (!guarded(rule, id, NULL, NULL))
		return false;
	if (swarm_query_fetch(id, false, &row))
		swarm_query_log(id, swarm_now(), rule->owner, SWARM_QUERY_OPTIMIZE, row.state, row.state,
						rule->name);
	rule->acted++;
	return true;
}

/*
 * guarded: the condition (`ids` wanted) or the action, in a subtransaction, as
 * the owner of the rule.  False if it failed; that is noted.
 */
static bool
guarded(Rule *rule, int64 id, int64 **ids, int *n)
{
	MemoryContext caller = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool own_timeout = false;
	char	   *volatile error = NULL;
	Oid			user;
	int			sec_context;
	int			guc_level = NewGUCNestLevel();

	GetUserIdAndSecContext(&user, &sec_context);
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(caller);
	PG_TRY();
	{
		SetUserIdAndSecContext(rule->owner, SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION);
		/* query_optimize() comes here from anybody's session */
		(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_SAVE, true, 0, false);
		if (ids == NULL)
		{
			swarm_query_may_post = true;
			do_action(rule, id);
			swarm_query_may_post = false;
		}
		else
		{
			(void) set_config_option("transaction_read_only", "on", PGC_USERSET, PGC_S_SESSION,
									 GUC_ACTION_LOCAL, true, 0, false);
			if (!get_timeout_active(STATEMENT_TIMEOUT))
			{
				enable_timeout_after(STATEMENT_TIMEOUT, CONDITION_MS);
				own_timeout = true;
			}
			ask_condition(rule, id, caller, ids, n);
		}
		SetUserIdAndSecContext(user, sec_context);
		if (own_timeout)
			disable_timeout(STATEMENT_TIMEOUT, false);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		ErrorData  *edata;

		MemoryContextSwitchTo(caller);
		swarm_query_may_post = false;
		if (own_timeout)
			disable_timeout(STATEMENT_TIMEOUT, false);
		edata = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(caller);
		if (edata->sqlerrcode == ERRCODE_QUERY_CANCELED && !own_timeout)
			ReThrowError(edata);
		error = psprintf("%s (SQLSTATE %s)", edata->message, unpack_sql_state(edata->sqlerrcode));
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
	CurrentResourceOwner = owner;
	SetUserIdAndSecContext(user, sec_context);
	AtEOXact_GUC(false, guc_level);
	if (error != NULL)
	{
		rule->failed++;
		rule->error = error;
	}
	return error == NULL;
}

static void
ask_condition(const Rule *rule, int64 only, MemoryContext context, int64 **ids, int *n)
{
	Oid			types[] = {INT8OID};
	Datum		values[] = {Int64GetDatum(only)};
	char	   *sql = psprintf("SELECT q.id FROM swarm.queries q WHERE q.state IN ('init', 'running', 'paused') "
							   "AND $1 IN (0, q.id) AND (%s\n) ORDER BY q.id", rule->condition);

	SPI_connect();
	if (SPI_execute_with_args(sql, 1, types, values, NULL, true, 0) != SPI_OK_SELECT)
		elog(ERROR, "condition is no expression");
	*n = (int) SPI_processed;
	*ids = MemoryContextAlloc(context, (*n + 1) * sizeof(int64));
	for (int i = 0; i < *n; i++)
	{
		bool		isnull;

		(*ids)[i] = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
	}
	SPI_finish();
}

/* do_action: nobody waits for a pause or a command. */
static void
do_action(const Rule *rule, int64 id)
{
	Oid			types[] = {TEXTOID, INT8OID, JSONBOID};
	Datum		values[] = {CStringGetTextDatum(rule->action), Int64GetDatum(id), rule->params};

	SPI_connect();
	if (SPI_execute_with_args("SELECT swarm._query_act($1, $2, '{\"timeout\": \"0\", \"post\": true}' OPERATOR(pg_catalog.||) $3)",
							  3, types, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "action failed");
	SPI_finish();
}

/*
 * note: that they have acted, or why not.  In a table of its own, whose locks
 * keep nobody from switching rules off, and only where nobody else is at it.
 */
static void
note(const Rule *rules, int n)
{
	SwarmSpi	spi;
	Oid			types[] = {TEXTOID, INT8OID, INT8OID, TEXTOID};

	for (int i = 0; i < n; i++)
	{
		Datum		values[] = {CStringGetTextDatum(rules[i].name), Int64GetDatum(rules[i].acted),
			Int64GetDatum(rules[i].failed),
		rules[i].error ? CStringGetTextDatum(rules[i].error) : (Datum) 0};

		if (rules[i].acted == 0 && rules[i].failed == 0)
			continue;
		swarm_spi_begin(&spi);
		swarm_spi_execute("UPDATE swarm._rule_use SET acted = acted + $2, failed = failed + $3, "
						  "acted_at = CASE WHEN $2 > 0 THEN swarm._now() ELSE acted_at END, "
						  "error = coalesce($4, error) "
						  "WHERE name = (SELECT name FROM swarm._rule_use WHERE name = $1 FOR UPDATE SKIP LOCKED)",
						  4, types, values, rules[i].error ? "    " : "   n");
		swarm_spi_end(&spi);
	}
}

/*
 * swarm._optimizer_changed() returns trigger: the scheduler shall look at the
 * optimizer's row, at commit.
 */
SWARM_FUNCTION(swarm_optimizer_changed);
Datum
swarm_optimizer_changed(PG_FUNCTION_ARGS)
{
	swarm_query_watch();
	PG_RETURN_POINTER(NULL);
}

/*
 * swarm._rule_model(name) returns text: what an alias of a model stands for.
 */
SWARM_FUNCTION(swarm_rule_model);
Datum
swarm_rule_model(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(swarm_query_resolve_model(text_to_cstring(PG_GETARG_TEXT_PP(0)))));
}
