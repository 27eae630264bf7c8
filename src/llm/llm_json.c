/*
 * llm_json.c
 *	  JSON that came from outside: parsed without a transaction, and without
 *	  an error for what is none.
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

#include "base/json.h"
#include "llm/llm_int.h"

/*
 * swarm_llm_json: jsonb_in() touches nothing but memory, so what it raises may
 * be caught outside of a transaction; what is left over goes with the context.
 */
Jsonb *
swarm_llm_json(const char *text, size_t length)
{
	MemoryContext context = CurrentMemoryContext;
	Jsonb	   *volatile result = NULL;

	if (!pg_verify_mbstr(PG_UTF8, text, (int) length, true) || memchr(text, '\0', length) != NULL)
		return NULL;
	PG_TRY();
	{
		result = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
													CStringGetDatum(swarm_json_storable(pnstrdup(text, length)))));
	}
	PG_CATCH();
	{
		int			category = ERRCODE_TO_CATEGORY(geterrcode());

		MemoryContextSwitchTo(context);
		if (category != ERRCODE_DATA_EXCEPTION && category != ERRCODE_TO_CATEGORY(ERRCODE_STATEMENT_TOO_COMPLEX) &&
			category != ERRCODE_PROGRAM_LIMIT_EXCEEDED)
			PG_RE_THROW();
		FlushErrorState();
		result = NULL;
	}
	PG_END_TRY();
	return result;
}

static JsonbValue *
get(JsonbContainer *object, const char *key, JsonbValue *value)
{
	if (object == NULL || !JsonContainerIsObject(object))
		return NULL;
	return getKeyJsonValueFromContainer(object, key, strlen(key), value);
}

JsonbContainer *
swarm_llm_member(JsonbContainer *object, const char *key)
{
	JsonbValue	value;
	JsonbValue *found = get(object, key, &value);

	return found != NULL && found->type == jbvBinary ? found->val.binary.data : NULL;
}

char *
swarm_llm_string(JsonbContainer *object, const char *key)
{
	JsonbValue	value;
	JsonbValue *found = get(object, key, &value);

	return found != NULL && found->type == jbvString ?
		pnstrdup(found->val.string.val, found->val.string.len) : NULL;
}

int64
swarm_llm_integer(JsonbContainer *object, const char *key, int64 otherwise)
{
	JsonbValue	value;
	JsonbValue *found = get(object, key, &value);
	char	   *text;
	double		number;

	if (found == NULL || found->type != jbvNumeric)
		return otherwise;
	text = DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(found->val.numeric)));

	number = strtod(text, NULL);
	return number >= 0 && number < 1e15 ? (int64) number : otherwise;
}

JsonbContainer *
swarm_llm_element(JsonbContainer *array, uint32 i)
{
	JsonbValue *found;

	if (array == NULL || !JsonContainerIsArray(array) || i >= JsonContainerSize(array))
		return NULL;
	found = getIthJsonbValueFromContainer(array, i);
	return found != NULL && found->type == jbvBinary ? found->val.binary.data : NULL;
}

void
swarm_llm_printable(char *to, const char *from, size_t room)
{
	size_t		n = 0;

	for (; *from && n + 1 < room; from++)
		to[n++] = *from >= ' ' && *from < 127 ? *from : '?';
	to[n] = '\0';
}
