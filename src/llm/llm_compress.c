/*
 * llm_compress.c
 *	  Messages with fewer tokens: what recurs is said once.
 *
 * Level 1 loses nothing.  Passages and terms that recur become symbols, a
 * marker that the text does not contain and a letter; a table at the top, which
 * a model reads as well as swarm.message_expand() does, says what they stand
 * for:
 *
 *	   §§1
 *	   §A=the passage that recurs
 *	   §§
 *	   text with §A
 *
 * Level 2 also takes whitespace that says nothing, level 3 also phrases and "the".
 *
 * The text is cut into units (words with the blank before them, signs, runs of
 * whitespace).  For lengths from many units down to one, runs of so many units
 * that occur more than once are counted by their hash; those that save most
 * are taken first, and made as long as all their occurrences agree.
 */
#include "postgres.h"

#include <limits.h>

#include "common/hashfn.h"
#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "base/export.h"
#include "llm/llm_int.h"

#define LEVELS			3
#define MOST_SYMBOLS	62
#define SYMBOL_TOKENS	2		/* of a marker and a letter */
#define ENTRY_TOKENS	4		/* of a line of the table, beside its text */
#define HEAD_TOKENS		6		/* of the lines around the table */

static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
static const char *const markers[] = {"\xC2\xA7", "\xC2\xB6", "\xC2\xA4", "~", "^"};
static const int lengths[] = {96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1};

/* Phrases that level 3 replaces, in lower case. */
static const char *const phrases[][2] = {
	{"it is important to note that ", ""}, {"it should be noted that ", ""}, {"please note that ", ""},
	{"note that ", ""}, {"as a matter of fact, ", ""}, {"as you can see, ", ""}, {"in order to ", "to "},
	{"due to the fact that ", "because "}, {"at this point in time ", "now "}, {"in the event that ", "if "},
	{"for the purpose of ", "for "}, {"a large number of ", "many "}, {"is able to ", "can "}, {"are able to ", "can "},
	{"with regard to ", "on "}, {"in terms of ", "in "}, {"basically ", ""}, {"actually ", ""}, {"essentially ", ""},
	{"really ", ""}, {"very ", ""}, {"quite ", ""}, {"simply ", ""}, {"just ", ""}, {"of course, ", ""},
	{"the ", ""}, {"i think that ", ""}, {"i would like to ", "I want to "}, {"could you please ", ""}, {"please ", ""}
};

typedef struct Unit
{
	int			start;			/* in the text */
	int			length;
	uint32		hash;
	int			tokens;
	int			symbol;			/* -1 = none; it stands for the run from here */
	bool		covered;		/* by a symbol that began before, or here */
} Unit;

typedef struct Units
{
	const char *text;
	Unit	   *list;
	int			n;
} Units;

typedef struct Run
{
	uint64		key;			/* hash of its units */
	int			first;			/* where it was seen first */
	int			count;			/* occurrences that do not overlap */
	int			end;			/* of the last one counted */
} Run;

typedef struct Candidate
{
	int			first;
	int			saves;
} Candidate;

typedef struct Symbol
{
	int			first;			/* unit */
	int			length;
} Symbol;

static char *clean(const char *text, int level);
static int	unit_length(const char *p, const char *end);
static int	unit_tokens(const char *p, int length);
static void split(Units *units, const char *text);
static void find_symbols(Units *units, Symbol *symbols, int *n);
static int	take(Units *units, int first, int length, Symbol *symbols, int n);
static bool same(const Units *units, int a, int b, int length);
static bool is_free(const Units *units, int first, int length);
static const char *marker_for(const char *text);
static bool is_compressed(const char *text, const char **marker);
static void append_escaped(StringInfo out, const char *text, int length, const char *marker);

/*
 * swarm.token_estimate(text) returns int
 */
SWARM_FUNCTION(swarm_llm_token_estimate);
Datum
swarm_llm_token_estimate(PG_FUNCTION_ARGS)
{
	text	   *t = PG_GETARG_TEXT_PP(0);
	const char *p = VARDATA_ANY(t);
	const char *end = p + VARSIZE_ANY_EXHDR(t);
	int64		tokens = 0;

	while (p < end)
	{
		int			length = unit_length(p, end);

		tokens += unit_tokens(p, length);
		p += length;
	}
	PG_RETURN_INT32((int32) Min(tokens, INT_MAX));
}

/*
 * swarm.message_compress(text, level) returns text
 */
SWARM_FUNCTION(swarm_llm_message_compress);
Datum
swarm_llm_message_compress(PG_FUNCTION_ARGS)
{
	char	   *input = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int			level = PG_GETARG_INT32(1);
	const char *found;
	const char *marker;
	Units		units;
	Symbol		symbols[MOST_SYMBOLS];
	int			n = 0;
	StringInfoData out;

	if (level < 1 || level > LEVELS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("level must be between 1 and %d", LEVELS)));
	if (level > 1)
		input = clean(input, level);
	marker = marker_for(input);
	if (marker != NULL)
	{
		split(&units, input);
		find_symbols(&units, symbols, &n);
	}
	/* a text that only looks compressed must come back as it is */
	if (n == 0 && !is_compressed(input, &found))
		PG_RETURN_TEXT_P(cstring_to_text(input));
	if (marker == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the text contains all characters that could mark a symbol")));
	initStringInfo(&out);
	appendStringInfo(&out, "%s%s%d\n", marker, marker, level);
	for (int i = 0; i < n; i++)
	{
		Unit	   *first = &units.list[symbols[i].first];
		Unit	   *last = &units.list[symbols[i].first + symbols[i].length - 1];

		appendStringInfo(&out, "%s%c=", marker, letters[i]);
		append_escaped(&out, input + first->start, last->start + last->length - first->start, marker);
		appendStringInfoChar(&out, '\n');
	}
	appendStringInfo(&out, "%s%s\n", marker, marker);
	for (int i = 0; n > 0 && i < units.n; i++)
	{
		Unit	   *unit = &units.list[i];

		if (unit->symbol >= 0)
			appendStringInfo(&out, "%s%c", marker, letters[unit->symbol]);
		else if (!unit->covered)
			appendBinaryStringInfo(&out, input + unit->start, unit->length);
	}
	if (n == 0)
		appendStringInfoString(&out, input);
	PG_RETURN_TEXT_P(cstring_to_text_with_len(out.data, out.len));
}

/*
 * swarm.message_expand(text) returns text
 */
SWARM_FUNCTION(swarm_llm_message_expand);
Datum
swarm_llm_message_expand(PG_FUNCTION_ARGS)
{
	char	   *input = text_to_cstring(PG_GETARG_TEXT_PP(0));
	const char *marker;
	const char *p;
	size_t		width;
	StringInfoData values[256];
	bool		known[256] = {0};
	StringInfoData out;

	if (!is_compressed(input, &marker))
		PG_RETURN_TEXT_P(cstring_to_text(input));
	width = strlen(marker);
	p = strchr(input, '\n') + 1;
	while (strncmp(p, marker, width) == 0 && p[width] != '\0' && p[width + 1] == '=')
	{
		unsigned char letter = p[width];

		initStringInfo(&values[letter]);
		known[letter] = true;
		for (p += width + 2; *p && *p != '\n'; p++)
		{
			bool		newline = strncmp(p, marker, width) == 0 && p[width] == 'n';

			appendStringInfoChar(&values[letter], newline ? '\n' : *p);
			if (newline)
				p += width;
		}
		p += *p == '\n';
	}
	if (strncmp(p, marker, width) != 0 || strncmp(p + width, marker, width) != 0 || p[2 * width] != '\n')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the table of symbols of a compressed text has no end")));
	initStringInfo(&out);
	for (p += 2 * width + 1; *p; p++)
	{
		unsigned char letter;

		if (strncmp(p, marker, width) != 0)
		{
			appendStringInfoChar(&out, *p);
			continue;
		}
		letter = p[width];
		if (!known[letter])
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("a compressed text uses a symbol that its table does not have")));
		appendBinaryStringInfo(&out, values[letter].data, values[letter].len);
		p += width;
	}
	PG_RETURN_TEXT_P(cstring_to_text_with_len(out.data, out.len));
}

/* ------------------------------------------------------------------------
 * The form of a compressed text
 * ------------------------------------------------------------------------ */

static const char *
marker_for(const char *text)
{
	for (int i = 0; i < lengthof(markers); i++)
	{
		if (strstr(text, markers[i]) == NULL &&
			(!IS_HIGHBIT_SET(*markers[i]) || GetDatabaseEncoding() == PG_UTF8))
			return markers[i];
	}
	return NULL;
}

/* is_compressed: does it begin as one? */
static bool
is_compressed(const char *text, const char **marker)
{
	for (int i = 0; i < lengthof(markers); i++)
	{
		size_t		width = strlen(markers[i]);

		*marker = markers[i];
		if (strncmp(text, markers[i], width) == 0 && strncmp(text +width, markers[i], width) == 0 &&
			text[2 * width] >= '1' && text[2 * width] <= '0' + LEVELS && text[2 * width + 1] == '\n')
			return true;
	}
	return false;
}

static void
append_escaped(StringInfo out, const char *text, int length, const char *marker)
{
	for (int i = 0; i < length; i++)
	{
		if (text[i] == '\n')
			appendStringInfo(out, "%sn", marker);
		else
			appendStringInfoChar(out, text[i]);
	}
}

/* ------------------------------------------------------------------------
 * Levels 2 and 3
 * ------------------------------------------------------------------------ */

/*
 * clean: blanks at the end of lines, more than one of them inside, more than
 * one empty line; and phrases.
 */
static char *
clean(const char *text, int level)
{
	StringInfoData out;
	const char *p = text;

	initStringInfo(&out);
	while (*p)
	{
		bool		word = p == text ||!(isalnum((unsigned char) p[-1]) || IS_HIGHBIT_SET(p[-1]));
		bool		replaced = false;

		for (int i = 0; level >= 3 && word && !replaced && i < lengthof(phrases); i++)
		{
			size_t		length = strlen(phrases[i][0]);

			if (pg_strncasecmp(p, phrases[i][0], length) == 0)
			{
				appendStringInfoString(&out, phrases[i][1]);
				p += length;
				replaced = true;
			}
		}
		if (replaced)
			continue;
		if (*p == ' ' || *p == '\t')
		{
			const char *after = p + strspn(p, " \t");

			/* indentation says something: it stays */
			if (*after == '\n' || *after == '\0')
				 /* nothing */ ;
			else if (p == text ||p[-1] == '\n')
				appendBinaryStringInfo(&out, p, after - p);
			else if (out.len > 0 && out.data[out.len - 1] != '\n')
				appendStringInfoChar(&out, ' ');
			p = after;
			continue;
		}
		if (*p != '\n' || out.len < 2 || out.data[out.len - 1] != '\n' || out.data[out.len - 2] != '\n')
			appendStringInfoChar(&out, *p);
		p++;
	}
	return out.data;
}

/* ------------------------------------------------------------------------
 * Units
 * ------------------------------------------------------------------------ */

static bool
is_word(unsigned char c)
{
	return isalnum(c) || c == '_' || IS_HIGHBIT_SET(c);
}

/* unit_length: a word with one blank before it, blanks, newlines, or a sign. */
static int
unit_length(const char *p, const char *end)
{
	const char *q = p;

	if (*q == ' ' && q + 1 < end && is_word(q[1]))
		q++;
	if (is_word(*q))
	{
		while (q < end && is_word(*q))
			q++;
		return q - p;
	}
	if (*p == ' ' || *p == '\t' || *p == '\n')
	{
		while (q < end && *q == *p)
			q++;
		/* the last blank belongs to the word after it */
		if (*p == ' ' && q < end && is_word(*q) && q - p > 1)
			q--;
		return q - p;
	}
	return 1;
}

/* unit_tokens: a rule of thumb for the tokenizers of current models. */
static int
unit_tokens(const char *p, int length)
{
	int			ascii = 0;
	int			digits = 0;
	int			other = 0;

	if (*p == ' ' && length > 1 && is_word(p[1]))
		p++, length--;
	if (!is_word(*p))
		return 1;
	for (int i = 0; i < length; i++)
	{
		if (IS_HIGHBIT_SET(p[i]))
			other++;
		else if (isdigit((unsigned char) p[i]))
			digits++;
		else
			ascii++;
	}
	return Max((ascii + 6) / 7 + (digits + 2) / 3 + (other + 2) / 3, 1);
}

static void
split(Units *units, const char *text)
{
	const char *end = text +strlen(text);
	int			room = 1024;

	units->text = text;

	units->n = 0;
	units->list = palloc(room * sizeof(Unit));
	for (const char *p = text; p < end;)
	{
		Unit	   *unit;

		if (units->n == room)
		{
			room *= 2;
			units->list = repalloc_huge(units->list, room * sizeof(Unit));
		}
		unit = &units->list[units->n++];
		unit->start = p - text;

		unit->length = unit_length(p, end);
		unit->hash = hash_bytes((const unsigned char *) p, unit->length);
		unit->tokens = unit_tokens(p, unit->length);
		unit->symbol = -1;
		unit->covered = false;
		p += unit->length;
	}
}

/* ------------------------------------------------------------------------
 * What recurs
 * ------------------------------------------------------------------------ */

static int
by_savings(const void *a, const void *b)
{
	const Candidate *x = a;
	const Candidate *y = b;

	if (x->saves != y->saves)
		return x->saves > y->saves ? -1 : 1;
	return x->first < y->first ? -1 : x->first > y->first;
}

static int
run_tokens(const Units *units, int first, int length)
{
	int			tokens = 0;

	for (int i = first; i < first + length; i++)
		tokens += units->list[i].tokens;
	return tokens;
}

static int
saving(int count, int tokens)
{
	return count * (tokens - SYMBOL_TOKENS) - tokens - ENTRY_TOKENS;
}

static void
find_symbols(Units *units, Symbol *symbols, int *n)
{
	int			saved = 0;

	for (int l = 0; l < lengthof(lengths) && *n < MOST_SYMBOLS; l++)
	{
		int			length = lengths[l];
		HASHCTL		control = {.keysize = sizeof(uint64), .entrysize = sizeof(Run), .hcxt = CurrentMemoryContext};
		HTAB	   *runs;
		HASH_SEQ_STATUS scan;
		Run		   *run;
		Candidate  *candidates;
		int			ncandidates = 0;

		if (length * 2 > units->n)
			continue;
		CHECK_FOR_INTERRUPTS();
		runs = hash_create("pg_swarm runs", units->n, &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
		for (int i = 0; i + length <= units->n; i++)
		{
			uint64		key = 0;
			bool		found;

			if (!is_free(units, i, length))
				continue;
			for (int k = i; k < i + length; k++)
				key = hash_combine64(key, units->list[k].hash);
			run = hash_search(runs, &key, HASH_ENTER, &found);
			if (!found)
			{
				run->first = i;
				run->count = 1;
				run->end = i + length;
			}
			else if (i >= run->end)
			{
				run->count++;
				run->end = i + length;
			}
		}
		candidates = palloc_extended((hash_get_num_entries(runs) + 1) * sizeof(Candidate), MCXT_ALLOC_HUGE);
		hash_seq_init(&scan, runs);
		while ((run = hash_seq_search(&scan)) != NULL)
		{
			int			saves = run->count > 1 ? saving(run->count, run_tokens(units, run->first, length)) : 0;

			if (saves > 0)
				candidates[ncandidates++] = (Candidate)
			{
				run->first, saves
			};
		}
		qsort(candidates, ncandidates, sizeof(Candidate), by_savings);
		for (int i = 0; i < ncandidates && *n < MOST_SYMBOLS; i++)
		{
			int			saves = take(units, candidates[i].first, length, symbols, *n);

			if (saves > 0)
			{
				saved += saves;
				(*n)++;
			}
		}
		hash_destroy(runs);
		pfree(candidates);
	}
	if (saved <= HEAD_TOKENS)
		*n = 0;
}

/*
 * take: make the run a symbol, as long as its occurrences agree; what it saves,
 * or 0 if that has become nothing meanwhile.
 */
static int
take(Units *units, int first, int length, Symbol *symbols, int n)
{
	int		   *at = palloc_extended(units->n * sizeof(int), MCXT_ALLOC_HUGE);
	int			count = 0;
	int			saves;
	bool		longer = true;

	for (int i = first; is_free(units, first, length) && i + length <= units->n; i++)
	{
		if (is_free(units, i, length) && same(units, first, i, length))
		{
			at[count++] = i;
			i += length - 1;
		}
	}
	while (count > 1 && longer)
	{
		for (int i = 0; i < count && longer; i++)
		{
			int			next = at[i] + length;

			longer = next < units->n && !units->list[next].covered &&
				same(units, at[0] + length, next, 1) && (i + 1 == count || next < at[i + 1]);
		}
		length += longer;
	}
	saves = count > 1 ? saving(count, run_tokens(units, at[0], length)) : 0;
	if (saves > 0)
	{
		symbols[n].first = at[0];
		symbols[n].length = length;
		for (int i = 0; i < count; i++)
		{
			units->list[at[i]].symbol = n;
			for (int k = at[i]; k < at[i] + length; k++)
				units->list[k].covered = true;
		}
	}
	pfree(at);
	return Max(saves, 0);
}

static bool
is_free(const Units *units, int first, int length)
{
	/* the ends first: runs that are taken are long */
	if (units->list[first].covered || units->list[first + length - 1].covered)
		return false;
	for (int i = first; i < first + length; i++)
	{
		if (units->list[i].covered)
			return false;
	}
	return true;
}

/* same: are the runs equal, byte by byte? */
static bool
same(const Units *units, int a, int b, int length)
{
	for (int i = 0; i < length; i++)
	{
		const Unit *x = &units->list[a + i];
		const Unit *y = &units->list[b + i];

		if (x->hash != y->hash || x->length != y->length ||
			memcmp(units->text +x->start, units->text +y->start, x->length) != 0)
			return false;
	}
	return true;
}
