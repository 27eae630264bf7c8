/*
 * llm_json.c
 *	  JSON that came from outside: parsed without a transaction, and without
 *	  an error for what is none.
 */
#include "postgres.h"

#include <ctype.h>

#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/numeric.h"

#include "llm/llm_int.h"

/* code: of an escape \uXXXX at s, or -1. */
static int
code(const char *s)
{
	int			value = 0;

	if (s[0] != '\\' || s[1] != 'u')
		return -1;
	for (int i = 2; i < 6; i++)
	{
		if (!isxdigit((unsigned char) s[i]))
			return -1;
		value = value * 16 + (isdigit((unsigned char) s[i]) ? s[i] - '0' : (s[i] | ' ') - 'a' + 10);
	}
	return value;
}

/*
 * storable: what JSON may escape but text in a database cannot hold, zero and halves of
 * pairs, becomes U+FFFD, the character for what is none: models say such things.
 */
static char *
storable(char *text)
{
	for (char *s = text; (s = strchr(s, '\\')) != NULL;)
	{
		int			c = code(s);

		if (c >= 0xD800 && c <= 0xDBFF && code(s + 6) >= 0xDC00 && code(s + 6) <= 0xDFFF)
			s += 12;
		else if (c == 0 || (c >= 0xD800 && c <= 0xDFFF))
		{
			memcpy(s + 2, "fffd", 4);
			s += 6;
		}
		else
			s += s[1] == '\0' ? 1 : 2;
	}
	return text;
}

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
													CStringGetDatum(storable(pnstrdup(text, length)))));
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
