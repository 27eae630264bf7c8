/*
 * s3_xml.c
 *	  The little XML that S3 answers with.
 *
 * Elements without attributes that matter, no CDATA, no entities of its own:
 * finding an element by name is enough, and nothing an answer says can make
 * this read outside of it.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"

#include "s3/s3.h"

static void append_entity(StringInfo out, const char *entity, size_t length);

/* skip_prolog: to the first character of the root element's name, or NULL. */
static const char *
skip_prolog(const char *p)
{
	for (;;)
	{
		p = strchr(p, '<');
		if (p == NULL)
			return NULL;
		if (p[1] != '?' && p[1] != '!')
			return p + 1;
		p = strchr(p, '>');
		if (p == NULL)
			return NULL;
	}
}

char *
swarm_s3_xml_root(const char *xml)
{
	const char *p = skip_prolog(xml);

	return p == NULL ? NULL : pnstrdup(p, strcspn(p, " \t\r\n/>"));
}

char *
swarm_s3_xml_inner(const char *xml, const char *name, const char **position)
{
	const char *p = position != NULL && *position != NULL ? *position : xml;
	size_t		length = strlen(name);

	while ((p = strchr(p, '<')) != NULL)
	{
		const char *end;
		const char *close;

		p++;
		if (strncmp(p, name, length) != 0 || strchr(" \t\r\n/>", p[length]) == NULL)
			continue;
		end = strchr(p, '>');
		if (end == NULL)
			return NULL;
		if (end[-1] == '/')
		{
			if (position)
				*position = end + 1;
			return pstrdup("");
		}
		for (close = end + 1; (close = strstr(close, "</")) != NULL; close += 2)
		{
			if (strncmp(close + 2, name, length) == 0 && strchr(" \t\r\n>", close[2 + length]) != NULL)
				break;
		}
		if (close == NULL)
			return NULL;
		if (position)
			*position = close + 2;
		return pnstrdup(end + 1, close - end - 1);
	}
	return NULL;
}

char *
swarm_s3_xml_text(const char *xml, const char *name, const char **position)
{
	char	   *raw = swarm_s3_xml_inner(xml, name, position);
	StringInfoData out;

	if (raw == NULL || strchr(raw, '&') == NULL)
		return raw;
	initStringInfo(&out);
	for (const char *p = raw; *p; p++)
	{
		const char *semicolon = *p == '&' ? strchr(p, ';') : NULL;

		if (semicolon == NULL || semicolon - p > 10)
		{
			appendStringInfoChar(&out, *p);
			continue;
		}
		append_entity(&out, p + 1, semicolon - p - 1);
		p = semicolon;
	}
	return out.data;
}

static void
append_entity(StringInfo out, const char *entity, size_t length)
{
	static const struct
	{
		const char *name;
		char		c;
	}			known[] = {{"amp", '&'}, {"lt", '<'}, {"gt", '>'}, {"quot", '"'}, {"apos", '\''}};

	for (int i = 0; i < lengthof(known); i++)
	{
		if (strlen(known[i].name) == length && memcmp(known[i].name, entity, length) == 0)
		{
			appendStringInfoChar(out, known[i].c);
			return;
		}
	}
	if (length > 1 && entity[0] == '#')
	{
		unsigned long code = entity[1] == 'x' ? strtoul(entity + 2, NULL, 16) : strtoul(entity + 1, NULL, 10);
		unsigned char utf8[8] = {0};

		if (code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code <= 0xdfff))
		{
			unicode_to_utf8(code, utf8);
			appendBinaryStringInfo(out, (char *) utf8, pg_utf_mblen(utf8));
		}
		return;
	}
	appendStringInfo(out, "&%.*s;", (int) length, entity);
}

char *
swarm_s3_xml_escape(const char *text)
{
	StringInfoData out;

	initStringInfo(&out);
	for (const char *p = text; *p; p++)
	{
		switch (*p)
		{
			case '&':
				appendStringInfoString(&out, "&amp;");
				break;
			case '<':
				appendStringInfoString(&out, "&lt;");
				break;
			case '>':
				appendStringInfoString(&out, "&gt;");
				break;
			case '"':
				appendStringInfoString(&out, "&quot;");
				break;
			default:
				if ((unsigned char) *p < 0x20)
					appendStringInfo(&out, "&#%d;", *p);
				else
					appendStringInfoChar(&out, *p);
		}
	}
	return out.data;
}
