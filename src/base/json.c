/*
 * json.c
 *	  JSON whose strings a database can hold: type json takes every escape,
 *	  jsonb and text do not.
 */
#include "postgres.h"

#include <ctype.h>

#include "catalog/namespace.h"
#include "mb/pg_wchar.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "base/export.h"
#include "base/json.h"

/* code: what the escape at s, of four hexadecimal digits, stands for, or -1. */
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

/* has: does the database's encoding have this character? */
static bool
has(pg_wchar c)
{
	unsigned char utf8[MAX_MULTIBYTE_CHAR_LEN + 1] = {0};
	unsigned char own[MAX_MULTIBYTE_CHAR_LEN * MAX_CONVERSION_GROWTH + 1];
	int			encoding = GetDatabaseEncoding();
	int			length;
	Oid			proc;

	if (c <= 0x7F || encoding == PG_UTF8)
		return true;
	proc = FindDefaultConversionProc(PG_UTF8, encoding);
	if (!OidIsValid(proc))
		return false;
	length = pg_utf_mblen(unicode_to_utf8(c, utf8));
	return pg_do_encoding_conversion_buf(proc, PG_UTF8, encoding, utf8, length,
										 own, sizeof(own), true) == length;
}

char *
swarm_json_storable(char *text)
{
	const char *instead = GetDatabaseEncoding() == PG_UTF8 ? "fffd" : "003f";

	for (char *s = text; (s = strchr(s, '\\')) != NULL;)
	{
		int			c = code(s);
		int			low = c >= 0xD800 && c <= 0xDBFF ? code(s + 6) : -1;

		if (low >= 0xDC00 && low <= 0xDFFF)
		{
			if (!has(surrogate_pair_to_codepoint(c, low)))
			{
				memcpy(s + 2, instead, 4);
				memcpy(s + 8, instead, 4);
			}
			s += 12;
		}
		else if (c >= 0)
		{
			if (c == 0 || (c >= 0xD800 && c <= 0xDFFF) || !has(c))
				memcpy(s + 2, instead, 4);
			s += 6;
		}
		else
			s += s[1] == '\0' ? 1 : 2;
	}
	return text;
}

/*
 * swarm._json_storable(document text) returns jsonb
 */
SWARM_FUNCTION(swarm_json_to_jsonb);
Datum
swarm_json_to_jsonb(PG_FUNCTION_ARGS)
{
	return DirectFunctionCall1(jsonb_in,
							   CStringGetDatum(swarm_json_storable(text_to_cstring(PG_GETARG_TEXT_PP(0)))));
}
