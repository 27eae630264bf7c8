/*
 * memory_sql.c
 *	  SQL functions on single entries.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "tcop/utility.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/fmgrprotos.h"
#include "utils/inval.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"
#include "utils/rel.h"

#include "base/clock.h"
#include "base/compat.h"
#include "base/export.h"
#include "base/shmem.h"
#include "memory/memory_int.h"

#define ENTRY_COLUMNS	8

static void use_argument(FunctionCallInfo fcinfo, int n, SwarmNeed need, SwarmSpace *space);
static text *key_argument(FunctionCallInfo fcinfo, int n);
static void check_embedding(const SwarmSpace *space, Datum embedding);
static void check_tags(Datum tags);
static void store_from_json(SwarmMemoryStore *what, JsonbContainer *entry, int position);
static void store_option(SwarmMemoryStore *what, const char *name, JsonbValue *v, int position);
static bool expire(FunctionCallInfo fcinfo, const SwarmSpace *space, bool expires, TimestampTz at);
static void form_entry(const char *space_name, text *key, const SwarmMemoryRow *row,
					   Datum *values, bool *nulls);
static void still_allowed(FunctionCallInfo fcinfo, const SwarmSpace *space);
static bool waited_enough(const SwarmSpace *space, text *key, bool since, int64 version,
						  SwarmMemoryReader *reader, SwarmMemoryRow *row, bool *found);

static void
use_argument(FunctionCallInfo fcinfo, int n, SwarmNeed need, SwarmSpace *space)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("namespace must not be null")));
	swarm_space_use(text_to_cstring(PG_GETARG_TEXT_PP(n)), GetUserId(), need, space);
}

static text *
key_argument(FunctionCallInfo fcinfo, int n)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("key must not be null")));
	return PG_GETARG_TEXT_PP(n);
}

/* ------------------------------------------------------------------------
 * Storing
 * ------------------------------------------------------------------------ */

/*
 * swarm.memory_store(namespace, key, value, ttl, if_absent, expect_version,
 * keep_ttl, tags, embedding) returns bigint
 */
SWARM_FUNCTION(swarm_memory_store);
Datum
swarm_memory_store(PG_FUNCTION_ARGS)
{
	SwarmSpace	space;
	SwarmMemoryStore what = {0};
	int64		version;

	use_argument(fcinfo, 0, NEED_WRITE, &space);
	what.key = key_argument(fcinfo, 1);
	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("value must not be null"),
				 errhint("JSON has a null of its own: 'null'.")));
	what.value = PointerGetDatum(PG_DETOAST_DATUM(PG_GETARG_DATUM(2)));
	what.has_ttl = !PG_ARGISNULL(3);
	if (what.has_ttl)
		what.ttl = *PG_GETARG_INTERVAL_P(3);
	what.if_absent = !PG_ARGISNULL(4) && PG_GETARG_BOOL(4);
	what.has_expected = !PG_ARGISNULL(5);
	if (what.has_expected)
		what.expected = PG_GETARG_INT64(5);
	what.keep_ttl = !PG_ARGISNULL(6) && PG_GETARG_BOOL(6);
	if (!PG_ARGISNULL(7))
	{
		what.tags = PG_GETARG_DATUM(7);
		check_tags(what.tags);
	}
	if (!PG_ARGISNULL(8))
	{
		what.embedding = PG_GETARG_DATUM(8);
		check_embedding(&space, what.embedding);
	}
	swarm_memory_hook(SWARM_HOOK_BEFORE, "memory_store", fcinfo, what.key, what.value);
	version = swarm_memory_store_entry(&space, GetUserId(), &what);
	if (version == 0)
		PG_RETURN_NULL();
	swarm_memory_hook(SWARM_HOOK_AFTER, "memory_store", fcinfo, what.key, what.value);
	PG_RETURN_INT64(version);
}

static void
check_tags(Datum tags)
{
	ArrayType  *array = DatumGetArrayTypeP(tags);

	if (ARR_NDIM(array) > 1 || array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("tags must be a list without nulls")));
}

static void
check_embedding(const SwarmSpace *space, Datum embedding)
{
	ArrayType  *array = DatumGetArrayTypeP(embedding);

	if (!space->embed)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("namespace keeps no embeddings"),
				 errhint("Its owner can set embed with swarm.namespace_alter().")));
	if (ARR_NDIM(array) != 1 || ARR_DIMS(array)[0] != space->dims || array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("embedding must have %d dimensions", space->dims)));
}

/*
 * swarm._memory_store_as(caller, namespace, key, value, ttl) returns bigint:
 * for private functions, which have looked at the rights.
 */
SWARM_FUNCTION(swarm__memory_store_as);
Datum
swarm__memory_store_as(PG_FUNCTION_ARGS)
{
	SwarmSpace	space;
	SwarmMemoryStore what = {0};

	use_argument(fcinfo, 1, NEED_WRITE, &space);
	what.key = key_argument(fcinfo, 2);
	what.value = PointerGetDatum(PG_DETOAST_DATUM(PG_GETARG_DATUM(3)));
	what.has_ttl = !PG_ARGISNULL(4);
	if (what.has_ttl)
		what.ttl = *PG_GETARG_INTERVAL_P(4);
	PG_RETURN_INT64(swarm_memory_store_entry(&space, PG_GETARG_OID(0), &what));
}

/*
 * swarm.memory_store_many(namespace, entries) returns bigint
 */
SWARM_FUNCTION(swarm_memory_store_many);
Datum
swarm_memory_store_many(PG_FUNCTION_ARGS)
{
	SwarmSpace	space;
	Jsonb	   *entries;
	JsonbIterator *it;
	JsonbValue	v;
	JsonbIteratorToken token;
	bool		array;
	int			position = 0;
	int64		stored = 0;
	SwarmMemoryStore what = {0};

	use_argument(fcinfo, 0, NEED_WRITE, &space);
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("entries must not be null")));
	entries = PG_GETARG_JSONB_P(1);
	if (JB_ROOT_IS_SCALAR(entries))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("entries must be a JSON array or object")));
	array = JB_ROOT_IS_ARRAY(entries);
	it = JsonbIteratorInit(&entries->root);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
		{
			memset(&what, 0, sizeof(what));
			what.key = cstring_to_text_with_len(v.val.string.val, v.val.string.len);
			continue;
		}
		if (token == WJB_VALUE && !array)
			what.value = PointerGetDatum(JsonbValueToJsonb(&v));
		else if (token == WJB_ELEM && array)
		{
			position++;
			if (v.type != jbvBinary || !JsonContainerIsObject(v.val.binary.data))
				ereport(ERROR,
						(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
						 errmsg("entry %d is not a JSON object", position)));
			store_from_json(&what, v.val.binary.data, position);
		}
		else
			continue;
		CHECK_FOR_INTERRUPTS();
		swarm_memory_hook(SWARM_HOOK_BEFORE, "memory_store", fcinfo, what.key, what.value);
		if (swarm_memory_store_entry(&space, GetUserId(), &what) != 0)
		{
			stored++;
			swarm_memory_hook(SWARM_HOOK_AFTER, "memory_store", fcinfo, what.key, what.value);
		}
	}
	PG_RETURN_INT64(stored);
}

static void
store_from_json(SwarmMemoryStore *what, JsonbContainer *entry, int position)
{
	JsonbIterator *it = JsonbIteratorInit(entry);
	JsonbValue	v;
	JsonbIteratorToken token;
	char	   *name = NULL;

	memset(what, 0, sizeof(*what));
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
			name = pnstrdup(v.val.string.val, v.val.string.len);
		else if (token == WJB_VALUE)
			store_option(what, name, &v, position);
	}
	if (what->key == NULL || what->value == (Datum) 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("entry %d has no %s", position, what->key == NULL ? "key" : "value")));
}

static void
store_option(SwarmMemoryStore *what, const char *name, JsonbValue *v, int position)
{
	bool		good = true;

	if (strcmp(name, "value") == 0)
		what->value = PointerGetDatum(JsonbValueToJsonb(v));
	else if (strcmp(name, "key") == 0 && v->type == jbvString)
		what->key = cstring_to_text_with_len(v->val.string.val, v->val.string.len);
	else if (v->type == jbvNull)
		good = strcmp(name, "key") != 0;
	else if (strcmp(name, "ttl") == 0 && v->type == jbvString)
	{
		what->has_ttl = true;
		what->ttl = *DatumGetIntervalP(DirectFunctionCall3(interval_in,
														   CStringGetDatum(pnstrdup(v->val.string.val, v->val.string.len)),
														   ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
	}
	else if (strcmp(name, "if_absent") == 0 && v->type == jbvBool)
		what->if_absent = v->val.boolean;
	else if (strcmp(name, "keep_ttl") == 0 && v->type == jbvBool)
		what->keep_ttl = v->val.boolean;
	else if (strcmp(name, "expect_version") == 0 && v->type == jbvNumeric)
	{
		what->has_expected = true;
		what->expected = DatumGetInt64(DirectFunctionCall1(numeric_int8, NumericGetDatum(v->val.numeric)));
	}
	else if (strcmp(name, "tags") == 0 && v->type == jbvBinary && JsonContainerIsArray(v->val.binary.data))
	{
		int			n = JsonContainerSize(v->val.binary.data);
		Datum	   *tags = palloc(sizeof(Datum) * Max(n, 1));

		for (int i = 0; i < n && good; i++)
		{
			JsonbValue *tag = getIthJsonbValueFromContainer(v->val.binary.data, i);

			good = tag->type == jbvString;
			if (good)
				tags[i] = PointerGetDatum(cstring_to_text_with_len(tag->val.string.val, tag->val.string.len));
		}
		if (good)
			what->tags = PointerGetDatum(construct_array(tags, n, TEXTOID, -1, false, TYPALIGN_INT));
	}
	else
		good = false;
	if (!good)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"%s\" of entry %d is not known, or not of its type", name, position),
				 errhint("key and ttl are strings, expect_version is a number, if_absent and keep_ttl are booleans, tags is an array of strings.")));
}

/* ------------------------------------------------------------------------
 * Reading
 * ------------------------------------------------------------------------ */

/*
 * swarm.memory_get(namespace, key) returns jsonb
 */
SWARM_FUNCTION(swarm_memory_get);
Datum
swarm_memory_get(PG_FUNCTION_ARGS)
{
	SwarmSpace	space;
	SwarmMemoryReader reader;
	SwarmMemoryRow row;
	SwarmCacheKey cache_key;
	SwarmCacheTicket ticket = {.fill = false};
	text	   *key;
	struct varlena *value = NULL;

	use_argument(fcinfo, 0, NEED_READ, &space);
	key = key_argument(fcinfo, 1);
	if (VARSIZE_ANY_EXHDR(key) > SWARM_KEY_MAX_BYTES)
		PG_RETURN_NULL();
	if (space.cached && swarm_memory_shared != NULL)
	{
		swarm_cache_key(&cache_key, swarm_memory_table(space.logged), space.id, key);
		value = swarm_cache_get(&cache_key, &ticket);
		if (value != NULL)
			PG_RETURN_POINTER(value);
	}
	swarm_memory_reader_open(&reader, &space);
	if (swarm_memory_read(&reader, key, &row))
		value = PG_DETOAST_DATUM_COPY(row.value);
	if (value != NULL && ticket.fill)
		swarm_cache_put(&cache_key, &ticket, row.expires, row.expires_at, value);
	swarm_memory_reader_close(&reader);
	if (swarm_memory_shared != NULL)
		pg_atomic_fetch_add_u64(value != NULL ? &swarm_memory_shared->table_hits :
								&swarm_memory_shared->table_misses, 1);
	if (value == NULL)
	{
		swarm_origin_ask(&space, key);
		PG_RETURN_NULL();
	}
	PG_RETURN_POINTER(value);
}

/*
 * swarm.memory_get_many(namespace, keys) returns setof swarm.memory_entry
 */
SWARM_FUNCTION(swarm_memory_get_many);
Datum
swarm_memory_get_many(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SwarmSpace	space;
	SwarmMemoryReader reader;
	char	   *name;
	Datum	   *keys;
	bool	   *key_nulls;
	int			n;

	use_argument(fcinfo, 0, NEED_READ, &space);
	InitMaterializedSRF(fcinfo, 0);
	if (PG_ARGISNULL(1))
		return (Datum) 0;
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT,
					  &keys, &key_nulls, &n);
	swarm_memory_reader_open(&reader, &space);
	for (int i = 0; i < n; i++)
	{
		SwarmMemoryRow row;
		Datum		values[ENTRY_COLUMNS];
		bool		nulls[ENTRY_COLUMNS];

		text	   *key = key_nulls[i] ? NULL : DatumGetTextPP(keys[i]);

		if (key == NULL || VARSIZE_ANY_EXHDR(key) > SWARM_KEY_MAX_BYTES)
			continue;
		if (!swarm_memory_read(&reader, key, &row))
		{
			swarm_origin_ask(&space, key);
			continue;
		}
		form_entry(name, key, &row, values, nulls);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	swarm_memory_reader_close(&reader);
	return (Datum) 0;
}

static void
form_entry(const char *space_name, text *key, const SwarmMemoryRow *row,
		   Datum *values, bool *nulls)
{
	memset(nulls, false, ENTRY_COLUMNS * sizeof(bool));
	values[0] = CStringGetTextDatum(space_name);
	values[1] = PointerGetDatum(key);
	values[2] = row->value;
	values[3] = Int64GetDatum(row->version);
	values[4] = row->tags;
	values[5] = TimestampTzGetDatum(row->expires_at);
	nulls[5] = !row->expires;
	values[6] = TimestampTzGetDatum(row->created_at);
	values[7] = TimestampTzGetDatum(row->updated_at);
}

/*
 * swarm.memory_ttl(namespace, key) returns interval
 */
SWARM_FUNCTION(swarm_memory_ttl);
Datum
swarm_memory_ttl(PG_FUNCTION_ARGS)
{
	SwarmSpace	space;
	SwarmMemoryReader reader;
	SwarmMemoryRow row;
	text	   *key;
	bool		found;

	use_argument(fcinfo, 0, NEED_READ, &space);
	key = key_argument(fcinfo, 1);
	swarm_memory_reader_open(&reader, &space);
	found = swarm_memory_read(&reader, key, &row);
	swarm_memory_reader_close(&reader);
	if (!found || !row.expires)
		PG_RETURN_NULL();
	return DirectFunctionCall2(timestamp_mi, TimestampTzGetDatum(row.expires_at),
							   TimestampTzGetDatum(swarm_now()));
}

/* ------------------------------------------------------------------------
 * Changing
 * ------------------------------------------------------------------------ */

/*
 * swarm.memory_delete(namespace, key) returns boolean
 */
SWARM_FUNCTION(swarm_memory_delete);
Datum
swarm_memory_delete(PG_FUNCTION_ARGS)
{
	SwarmSpace	space;
	SwarmSpi	spi;
	Datum		values[2];
	bool		deleted;

	use_argument(fcinfo, 0, NEED_WRITE, &space);
	values[0] = Int32GetDatum(space.id);
	values[1] = PointerGetDatum(key_argument(fcinfo, 1));
	swarm_memory_hook(SWARM_HOOK_BEFORE, "memory_delete", fcinfo, PG_GETARG_TEXT_PP(1), (Datum) 0);
	swarm_spi_begin(&spi);
	deleted = swarm_memory_run(STATEMENT_DELETE, space.logged, values, NULL) > 0 &&
		swarm_spi_bool(0, 1);
	swarm_spi_end(&spi);
	if (deleted)
		swarm_memory_hook(SWARM_HOOK_AFTER, "memory_delete", fcinfo, PG_GETARG_TEXT_PP(1), (Datum) 0);
	PG_RETURN_BOOL(deleted);
}

/*
 * swarm.memory_expire(namespace, key, ttl, condition) returns boolean
 */
SWARM_FUNCTION(swarm_memory_expire);
Datum
swarm_memory_expire(PG_FUNCTION_ARGS)
{
	SwarmSpace	space;
	TimestampTz at;
	bool		expires;

	use_argument(fcinfo, 0, NEED_WRITE, &space);
	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("ttl must not be null"),
				 errhint("swarm.memory_persist() takes the expiry away.")));
	expires = swarm_memory_expiry(PG_GETARG_INTERVAL_P(2), swarm_now(), &at);
	PG_RETURN_BOOL(expire(fcinfo, &space, expires, at));
}

/*
 * swarm.memory_expire_at(namespace, key, at, condition) returns boolean
 */
SWARM_FUNCTION(swarm_memory_expire_at);
Datum
swarm_memory_expire_at(PG_FUNCTION_ARGS)
{
	SwarmSpace	space;
	TimestampTz at;

	use_argument(fcinfo, 0, NEED_WRITE, &space);
	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("instant must not be null"),
				 errhint("swarm.memory_persist() takes the expiry away.")));
	at = PG_GETARG_TIMESTAMPTZ(2);
	PG_RETURN_BOOL(expire(fcinfo, &space, !TIMESTAMP_IS_NOEND(at), at));
}

static bool
expire(FunctionCallInfo fcinfo, const SwarmSpace *space, bool expires, TimestampTz at)
{
	SwarmSpi	spi;
	Datum		values[4];
	char		nulls[5] = "    ";
	char	   *condition = PG_ARGISNULL(3) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(3));
	bool		changed;

	if (condition != NULL && strcmp(condition, "nx") != 0 && strcmp(condition, "xx") != 0 &&
		strcmp(condition, "gt") != 0 && strcmp(condition, "lt") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("condition must be \"nx\", \"xx\", \"gt\", \"lt\" or null")));
	values[0] = Int32GetDatum(space->id);
	values[1] = PointerGetDatum(key_argument(fcinfo, 1));
	values[2] = TimestampTzGetDatum(expires ? at : DT_NOEND);
	values[3] = condition ? CStringGetTextDatum(condition) : (Datum) 0;
	nulls[3] = condition ? ' ' : 'n';
	swarm_spi_begin(&spi);
	changed = swarm_memory_run(expires && at <= swarm_now() ? STATEMENT_EXPIRE_NOW : STATEMENT_EXPIRE,
							   space->logged, values, nulls) > 0;
	swarm_spi_end(&spi);
	return changed;
}

/*
 * swarm.memory_persist(namespace, key) returns boolean
 */
SWARM_FUNCTION(swarm_memory_persist);
Datum
swarm_memory_persist(PG_FUNCTION_ARGS)
{
	SwarmSpace	space;
	SwarmSpi	spi;
	Datum		values[2];
	bool		changed;

	use_argument(fcinfo, 0, NEED_WRITE, &space);
	values[0] = Int32GetDatum(space.id);
	values[1] = PointerGetDatum(key_argument(fcinfo, 1));
	swarm_spi_begin(&spi);
	changed = swarm_memory_run(STATEMENT_PERSIST, space.logged, values, NULL) > 0;
	swarm_spi_end(&spi);
	PG_RETURN_BOOL(changed);
}

/*
 * swarm.memory_increment(namespace, key, by) returns numeric
 */
SWARM_FUNCTION(swarm_memory_increment);
Datum
swarm_memory_increment(PG_FUNCTION_ARGS)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext old;
	SwarmSpace	space;
	SwarmSpi	spi;
	Datum		values[6];
	char		nulls[7] = "      ";
	TimestampTz now = swarm_now();
	TimestampTz expires_at = 0;
	bool		isnull;
	Datum		result;
	text	   *key;

	use_argument(fcinfo, 0, NEED_WRITE, &space);
	PreventCommandIfReadOnly("memory_increment()");
	key = key_argument(fcinfo, 1);
	swarm_memory_check_key(key);
	if (PG_ARGISNULL(2) || numeric_is_nan(PG_GETARG_NUMERIC(2)) || numeric_is_inf(PG_GETARG_NUMERIC(2)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("increment must be a finite number")));
	swarm_memory_hook(SWARM_HOOK_BEFORE, "memory_store", fcinfo, key, (Datum) 0);
	swarm_space_begin_write(&space);
	values[0] = Int32GetDatum(space.id);
	values[1] = PointerGetDatum(key);
	values[2] = PG_GETARG_DATUM(2);
	nulls[3] = space.has_ttl && swarm_memory_expiry(&space.default_ttl, now, &expires_at) ? ' ' : 'n';
	values[3] = TimestampTzGetDatum(expires_at);
	values[4] = TimestampTzGetDatum(now);
	values[5] = ObjectIdGetDatum(GetUserId());
	swarm_spi_begin(&spi);
	swarm_memory_run(STATEMENT_INCREMENT, space.logged, values, nulls);
	result = swarm_spi_column(0, 1, &isnull);
	old = MemoryContextSwitchTo(context);
	result = datumCopy(result, false, -1);
	MemoryContextSwitchTo(old);
	if (space.recall)
		swarm_memory_recall(&space, key, swarm_spi_column(0, 2, &isnull), (Datum) 0);
	swarm_spi_end(&spi);
	swarm_memory_hook(SWARM_HOOK_AFTER, "memory_store", fcinfo, key, (Datum) 0);
	PG_RETURN_DATUM(result);
}

/* ------------------------------------------------------------------------
 * Waiting
 * ------------------------------------------------------------------------ */

/*
 * swarm.memory_wait(namespace, key, timeout, since_version) returns
 * swarm.memory_entry
 */
SWARM_FUNCTION(swarm_memory_wait);
Datum
swarm_memory_wait(PG_FUNCTION_ARGS)
{
	static uint32 wait_event = 0;
	SwarmSpace	space;
	SwarmMemoryReader reader;
	SwarmMemoryRow row;
	ConditionVariable *cv;
	TimestampTz until = swarm_wait_deadline(fcinfo, 2);
	text	   *key;
	bool		since = !PG_ARGISNULL(3);
	int64		version = since ? PG_GETARG_INT64(3) : 0;
	bool		found;
	Datum		values[ENTRY_COLUMNS];
	bool		nulls[ENTRY_COLUMNS];
	Datum		result;
	TupleDesc	desc;

	swarm_require_preload("waiting for a memory entry");
	use_argument(fcinfo, 0, NEED_READ, &space);
	key = key_argument(fcinfo, 1);
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (wait_event == 0)
		wait_event = swarm_wait_event_new("SwarmMemoryWait");

	cv = swarm_memory_waiters(swarm_memory_hash(swarm_memory_table(space.logged), space.id,
												VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key)));
	ConditionVariablePrepareToSleep(cv);
	while (!waited_enough(&space, key, since, version, &reader, &row, &found))
	{
		long		ms = swarm_wait_left_ms(until);

		swarm_memory_reader_close(&reader);
		still_allowed(fcinfo, &space);
		if (!found)
			swarm_origin_ask(&space, key);
		if (RecoveryInProgress())
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot wait for a memory entry during recovery"),
					 errhint("Wait on the primary server.")));
		if (IsolationUsesXactSnapshot())
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("cannot wait for a memory entry in a transaction that does not see new ones"),
					 errhint("Use isolation level read committed.")));
		if (ms == 0)
		{
			ConditionVariableCancelSleep();
			PG_RETURN_NULL();
		}
		/* its expiry is a change that nobody rings for */
		if (since && found && row.expires)
			ms = Min(ms, Max(swarm_clock_wait_ms(row.expires_at), 1));
		(void) ConditionVariableTimedSleep(cv, Max(ms, 1), wait_event);
		CHECK_FOR_INTERRUPTS();
		AcceptInvalidationMessages();
		still_allowed(fcinfo, &space);
	}
	ConditionVariableCancelSleep();
	if (!found)
	{
		swarm_memory_reader_close(&reader);
		PG_RETURN_NULL();
	}
	form_entry(text_to_cstring(PG_GETARG_TEXT_PP(0)), key, &row, values, nulls);
	values[2] = PointerGetDatum(PG_DETOAST_DATUM(values[2]));
	result = HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
	swarm_memory_reader_close(&reader);
	PG_RETURN_DATUM(result);
}

/*
 * still_allowed: a right may be revoked, and the namespace dropped, while
 * somebody waits.
 */
static void
still_allowed(FunctionCallInfo fcinfo, const SwarmSpace *space)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));

	swarm_space_still_there(space, name);
	if (!swarm_space_may(space->id, GetUserId(), NEED_READ))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for namespace \"%s\"", name)));
}

/*
 * waited_enough: is the entry what is waited for?  Leaves the reader open,
 * for row points into it.
 */
static bool
waited_enough(const SwarmSpace *space, text *key, bool since, int64 version,
			  SwarmMemoryReader *reader, SwarmMemoryRow *row, bool *found)
{
	swarm_memory_reader_open(reader, space);
	*found = swarm_memory_read(reader, key, row);
	return since ? !*found || row->version != version : *found;
}

/* ------------------------------------------------------------------------
 * Text, counters
 * ------------------------------------------------------------------------ */

/*
 * swarm._memory_text(key, value) returns text: the key, and the strings and
 * numbers of the value, in their order.
 */
SWARM_FUNCTION(swarm__memory_text);
Datum
swarm__memory_text(PG_FUNCTION_ARGS)
{
	text	   *key = PG_GETARG_TEXT_PP(0);
	Jsonb	   *value = PG_GETARG_JSONB_P(1);
	JsonbIterator *it = JsonbIteratorInit(&value->root);
	JsonbIteratorToken token;
	JsonbValue	v;
	StringInfoData words;

	initStringInfo(&words);
	appendBinaryStringInfo(&words, VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key));
	while ((token = JsonbIteratorNext(&it, &v, false)) != WJB_DONE)
	{
		if (token != WJB_VALUE && token != WJB_ELEM)
			continue;
		if (v.type == jbvString)
		{
			appendStringInfoChar(&words, ' ');
			appendBinaryStringInfo(&words, v.val.string.val, v.val.string.len);
		}
		else if (v.type == jbvNumeric)
			appendStringInfo(&words, " %s", numeric_normalize(v.val.numeric));
	}
	PG_RETURN_TEXT_P(cstring_to_text_with_len(words.data, words.len));
}

/*
 * swarm._cache_stats()
 */
SWARM_FUNCTION(swarm__cache_stats);
Datum
swarm__cache_stats(PG_FUNCTION_ARGS)
{
	SwarmCacheStats stats;
	SwarmMemoryShared *s = swarm_memory_shared;
	Datum		values[14];
	bool		nulls[14] = {false};
	TupleDesc	desc;
	uint64		asks;
	uint64		fills;
	uint64		absent;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	swarm_cache_stats(&stats);
	values[0] = Int64GetDatum(stats.size);
	values[1] = Int64GetDatum(stats.used);
	values[2] = Int64GetDatum(stats.entries);
	values[3] = Int64GetDatum(stats.hits);
	values[4] = Int64GetDatum(stats.misses);
	values[5] = Int64GetDatum(s ? pg_atomic_read_u64(&s->bypasses) : 0);
	values[6] = Int64GetDatum(s ? pg_atomic_read_u64(&s->table_hits) : 0);
	values[7] = Int64GetDatum(s ? pg_atomic_read_u64(&s->table_misses) : 0);
	values[8] = Int64GetDatum(stats.fills);
	values[9] = Int64GetDatum(stats.evictions);
	values[10] = Int64GetDatum(s ? pg_atomic_read_u64(&s->invalidations) : 0);
	swarm_origin_stats(&asks, &fills, &absent);
	values[11] = Int64GetDatum(asks);
	values[12] = Int64GetDatum(fills);
	values[13] = Int64GetDatum(absent);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}
