/*
 * hook.c
 *	  Is there a hook, and calling it: see hook.h.
 *
 * The enabled hooks are kept in the process, in the order in which they are
 * called.  They are read when they are first asked for, and again after an
 * invalidation of the relation swarm._hook, which the triggers of that table
 * send (swarm__hook_changed()).  The relation's cache is invalidated as
 * transactions do it: our own process at the next command and again on
 * rollback, the others at commit.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

#include "base/export.h"
#include "base/hook.h"
#include "base/spi.h"

static const char *const phase_names[] = {"before", "after"};

void		(*swarm_hook_call) (SwarmHook **hooks, int nhooks, const Datum *payloads, int n, char **vetoes) = NULL;

static bool known = false;		/* hooks[] is what the table has */
static bool changed = false;	/* it has changed since it was read */
static Oid	relation = InvalidOid;	/* swarm._hook, as it was read */
static SwarmHook *hooks = NULL;
static int	nhooks = 0;
static MemoryContext context = NULL;
static bool inside = false;		/* a hook is being called; hooks[] stays */

static void read_hooks(void);
static void on_invalidation(Datum arg, Oid relid);
static char *call_one(const char *event, SwarmHookPhase phase, Oid role, Datum data);
static void call(const char *event, SwarmHookPhase phase, Oid role, Datum *data, int n, char **vetoes);
static Datum payload(const char *event, SwarmHookPhase phase, Oid role, Datum data);
static void push_text(JsonbParseState **state, JsonbIteratorToken token, const char *text);
static Datum payload_of(SwarmHookData *data);
static void field(SwarmHookData *data, const char *key);

bool
swarm_hook_wanted(const char *event, SwarmHookPhase phase)
{
	if (known && nhooks == 0)
		return false;
	if (inside)
		return false;
	if (!known)
		read_hooks();
	for (int i = 0; i < nhooks; i++)
	{
		if (hooks[i].phase == phase && strcmp(hooks[i].event, event) == 0)
			return true;
	}
	return false;
}

static void
read_hooks(void)
{
	static bool registered = false;
	SwarmSpi	spi;
	uint64		n;

	if (!registered)
		CacheRegisterRelcacheCallback(on_invalidation, (Datum) 0);
	registered = true;
	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "pg_swarm hooks", ALLOCSET_SMALL_SIZES);
	nhooks = 0;
	MemoryContextReset(context);
	relation = get_relname_relid("_hook", get_namespace_oid("swarm", true));
	if (!OidIsValid(relation))
		return;					/* the extension is just being created */
	changed = false;
	swarm_spi_begin(&spi);
	n = swarm_spi_query("SELECT id, event, phase = 'after', owner::oid::int8, "
						"(extract(epoch FROM timeout) * 1000000)::int8, f[1], f[2] "
						"FROM swarm._hook, parse_ident(handler) f WHERE enabled ORDER BY priority DESC, id",
						0, NULL, NULL, NULL);
	hooks = MemoryContextAllocZero(context, Max(n, 1) * sizeof(SwarmHook));
	for (uint64 i = 0; i < n; i++)
	{
		hooks[i].id = swarm_spi_int32(i, 1);
		hooks[i].event = MemoryContextStrdup(context, swarm_spi_text(i, 2));
		hooks[i].phase = swarm_spi_bool(i, 3) ? SWARM_HOOK_AFTER : SWARM_HOOK_BEFORE;
		hooks[i].owner = (Oid) swarm_spi_int64(i, 4);
		hooks[i].timeout_us = swarm_spi_int64(i, 5);
		hooks[i].schema = MemoryContextStrdup(context, swarm_spi_text(i, 6));
		hooks[i].function = MemoryContextStrdup(context, swarm_spi_text(i, 7));
	}
	nhooks = n;
	known = !changed;
	swarm_spi_end(&spi);
}

static void
on_invalidation(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == relation)
	{
		known = false;
		changed = true;
	}
}

/* ------------------------------------------------------------------------
 * What a hook is told
 * ------------------------------------------------------------------------ */

void
swarm_hook_data(SwarmHookData *data)
{
	initStringInfo(&data->json);
	appendStringInfoChar(&data->json, '{');
}

static void
field(SwarmHookData *data, const char *key)
{
	if (data->json.len > 1)
		appendStringInfoChar(&data->json, ',');
	escape_json(&data->json, key);
	appendStringInfoChar(&data->json, ':');
}

void
swarm_hook_text(SwarmHookData *data, const char *key, const char *value)
{
	field(data, key);
	if (value == NULL)
		appendStringInfoString(&data->json, "null");
	else
		escape_json(&data->json, value);
}

void
swarm_hook_int64(SwarmHookData *data, const char *key, int64 value)
{
	field(data, key);
	appendStringInfo(&data->json, INT64_FORMAT, value);
}

void
swarm_hook_ms(SwarmHookData *data, const char *key, int64 us)
{
	field(data, key);
	appendStringInfo(&data->json, INT64_FORMAT ".%03d", us / 1000, (int) (us % 1000));
}

void
swarm_hook_jsonb(SwarmHookData *data, const char *key, Datum value)
{
	Jsonb	   *jsonb = value != (Datum) 0 ? DatumGetJsonbP(value) : NULL;

	field(data, key);
	if (jsonb == NULL)
		appendStringInfoString(&data->json, "null");
	else
		(void) JsonbToCString(&data->json, &jsonb->root, VARSIZE(jsonb));
}

static Datum
payload_of(SwarmHookData *data)
{
	appendStringInfoChar(&data->json, '}');
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(data->json.data));
}

/* ------------------------------------------------------------------------
 * Calling hooks
 * ------------------------------------------------------------------------ */

char *
swarm_hook_ask(const char *event, Oid role, SwarmHookData *data)
{
	return call_one(event, SWARM_HOOK_BEFORE, role, payload_of(data));
}

void
swarm_hook_before(const char *event, Oid role, SwarmHookData *data)
{
	char	   *veto = swarm_hook_ask(event, role, data);

	if (veto != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_EXTERNAL_ROUTINE_EXCEPTION),
				 errmsg("operation \"%s\" was refused: %s", event, veto)));
}

void
swarm_hook_after(const char *event, Oid role, SwarmHookData *data)
{
	(void) call_one(event, SWARM_HOOK_AFTER, role, payload_of(data));
}

static char *
call_one(const char *event, SwarmHookPhase phase, Oid role, Datum data)
{
	char	   *veto;

	call(event, phase, role, &data, 1, &veto);
	return veto;
}

/*
 * call: all hooks of an event, for each of n operations until one refuses it.
 * What a hook does calls no hooks, or one that does what it is called for would
 * call itself.
 */
static void
call(const char *event, SwarmHookPhase phase, Oid role, Datum *data, int n, char **vetoes)
{
	MemoryContext caller = CurrentMemoryContext;

	if (!known)
		read_hooks();
	inside = true;
	PG_TRY();
	{
		SwarmSpi	spi;
		SwarmHook **wanted;
		Datum	   *told;
		int			nwanted = 0;

		swarm_spi_begin(&spi);
		wanted = palloc(Max(nhooks, 1) * sizeof(SwarmHook *));
		for (int i = 0; i < nhooks; i++)
		{
			if (hooks[i].phase == phase && strcmp(hooks[i].event, event) == 0)
				wanted[nwanted++] = &hooks[i];
		}
		told = palloc(Max(n, 1) * sizeof(Datum));
		for (int i = 0; i < n; i++)
		{
			vetoes[i] = NULL;
			told[i] = nwanted > 0 ? payload(event, phase, role, data[i]) : (Datum) 0;
		}
		if (nwanted > 0)
			swarm_hook_call(wanted, nwanted, told, n, vetoes);
		for (int i = 0; i < n; i++)
		{
			if (vetoes[i] != NULL)
				vetoes[i] = MemoryContextStrdup(caller, vetoes[i]);
		}
		swarm_spi_end(&spi);
	}
	PG_FINALLY();
	{
		inside = false;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(caller);
}

/* payload: what a hook is called with: event, phase, role and the operation's data. */
static Datum
payload(const char *event, SwarmHookPhase phase, Oid role, Datum data)
{
	JsonbParseState *state = NULL;
	JsonbValue	value;
	Jsonb	   *jsonb = DatumGetJsonbP(data);

	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	push_text(&state, WJB_KEY, "event");
	push_text(&state, WJB_VALUE, event);
	push_text(&state, WJB_KEY, "phase");
	push_text(&state, WJB_VALUE, phase_names[phase]);
	push_text(&state, WJB_KEY, "role");
	push_text(&state, WJB_VALUE, GetUserNameFromId(role, true));
	push_text(&state, WJB_KEY, "data");
	value.type = jbvBinary;
	value.val.binary.data = &jsonb->root;
	value.val.binary.len = VARSIZE(jsonb) - VARHDRSZ;
	(void) pushJsonbValue(&state, WJB_VALUE, &value);
	return JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL)));
}

static void
push_text(JsonbParseState **state, JsonbIteratorToken token, const char *text)
{
	JsonbValue	value = {.type = jbvNull};

	if (text !=NULL)
	{
		value.type = jbvString;
		value.val.string.val = unconstify(char *, text);
		value.val.string.len = strlen(text);
	}
	(void) pushJsonbValue(state, token, &value);
}

/*
 * swarm._hook_run(role oid, event text, phase text, data jsonb) returns text:
 * the same for operations that are written in SQL
 */
SWARM_FUNCTION(swarm__hook_run);
Datum
swarm__hook_run(PG_FUNCTION_ARGS)
{
	char		event[NAMEDATALEN];
	SwarmHookPhase phase;
	char	   *veto;

	for (int i = 0; i < 3; i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("only the payload of a hook may be null")));
	}
	text_to_cstring_buffer(PG_GETARG_TEXT_PP(1), event, sizeof(event));
	phase = VARSIZE_ANY_EXHDR(PG_GETARG_TEXT_PP(2)) == 6 ? SWARM_HOOK_BEFORE : SWARM_HOOK_AFTER;
	if (!swarm_hook_wanted(event, phase))
		PG_RETURN_NULL();
	veto = call_one(event, phase, PG_GETARG_OID(0),
					PG_ARGISNULL(3) ? DirectFunctionCall1(jsonb_in, CStringGetDatum("null")) : PG_GETARG_DATUM(3));
	if (veto == NULL)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(veto));
}

/*
 * swarm._hook_run_all(role oid, event text, phase text, data jsonb[]) returns
 * text[]: the same for many operations; NULL: there are no hooks
 */
SWARM_FUNCTION(swarm__hook_run_all);
Datum
swarm__hook_run_all(PG_FUNCTION_ARGS)
{
	char		event[NAMEDATALEN];
	SwarmHookPhase phase;
	Datum	   *data;
	bool	   *nulls;
	char	  **vetoes;
	int			n;
	int			first = 1;
	Datum	   *result;

	text_to_cstring_buffer(PG_GETARG_TEXT_PP(1), event, sizeof(event));
	phase = VARSIZE_ANY_EXHDR(PG_GETARG_TEXT_PP(2)) == 6 ? SWARM_HOOK_BEFORE : SWARM_HOOK_AFTER;
	if (!swarm_hook_wanted(event, phase))
		PG_RETURN_NULL();
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(3), JSONBOID, -1, false, TYPALIGN_INT, &data, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i])
			data[i] = DirectFunctionCall1(jsonb_in, CStringGetDatum("null"));
	}
	vetoes = palloc0(Max(n, 1) * sizeof(char *));
	result = palloc0(Max(n, 1) * sizeof(Datum));
	call(event, phase, PG_GETARG_OID(0), data, n, vetoes);
	for (int i = 0; i < n; i++)
	{
		nulls[i] = vetoes[i] == NULL;
		if (vetoes[i] != NULL)
			result[i] = CStringGetTextDatum(vetoes[i]);
	}
	if (n == 0)
		PG_RETURN_ARRAYTYPE_P(construct_empty_array(TEXTOID));
	PG_RETURN_ARRAYTYPE_P(construct_md_array(result, nulls, 1, &n, &first, TEXTOID, -1, false, TYPALIGN_INT));
}

/*
 * swarm._hook_changed() returns trigger, of swarm._hook
 */
SWARM_FUNCTION(swarm__hook_changed);
Datum
swarm__hook_changed(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		elog(ERROR, "not called by a trigger");
	CacheInvalidateRelcache(((TriggerData *) fcinfo->context)->tg_relation);
	return PointerGetDatum(NULL);
}
