/*
 * vector_fold.c
 *	  UTF-8 to folded code points, without a locale.
 *
 * swarm.embed is immutable: its result may not change with the collation,
 * with the operating system or with the next ICU.  So the rules are here, and
 * they are small: case and accents are folded for Latin, Greek and Cyrillic
 * (with and without combining marks a text gives the same letters), scripts
 * without spaces give one word a character, and what is not known here is a
 * letter.  Not folded: Georgian, Cherokee, polytonic Greek, Latin letters of
 * Africa; not composed: decomposed Hangul.
 */
#include "vector/vector_int.h"

/* A code point that folds to itself, or that separates words. */
#define SELF	'.'
#define SPLIT	'-'

/*
 * The base letters of U+00C0 to U+024F and U+1E00 to U+1EFF: the first
 * character of the canonical decomposition, in lower case; upper case stands
 * for the two letters of expansions[].
 */
static const char latin[] =
"aaaaaaAceeeeiiiidnooooo-ouuuuyTSaaaaaaAceeeeiiiidnooooo-ouuuuyTy"
"aaaaaaccccccccddddeeeeeeeeeegggggggghhhhiiiiiiiiiiIIjjkkklllllll"
"lllnnnnnnnnnooooooOOrrrrrrssssssssttttttuuuuuuuuuuuuwwyyyzzzzzzs"
"b........d.............i..l.....oo.............uu....zz........."
".............aaiioouuuuuuuuuu.aaaaAAggggkkoooo..j...gg..nnaaAAoo"
"aaaaeeeeiiiioooorrrruuuusstt..hh......aaeeooooooooyy......acclt."
"...b..eejj..rryy";
static const char latin_additional[] =
"aabbbbbbccddddddddddeeeeeeeeeeffgghhhhhhhhhhiiiikkkkkkllllllllmm"
"mmmmnnnnnnnnoooooooopppprrrrrrrrssssssssssttttttttuuuuuuuuuuvvvv"
"wwwwwwwwwwxxxxyyzzzzzzhtwy....S.aaaaaaaaaaaaaaaaaaaaaaaaeeeeeeee"
"eeeeeeeeiiiioooooooooooooooooooooooouuuuuuuuuuuuuuyyyyyyyy......";

static const struct
{
	char		from;
	char		to[2];
}			expansions[] = {
	{'A', {'a', 'e'}}, {'I', {'i', 'j'}}, {'O', {'o', 'e'}},
	{'S', {'s', 's'}}, {'T', {'t', 'h'}}
};

/* The base letters of U+0386 to U+0390 and U+03AA to U+03CE; 0: itself. */
static const uint16_t greek_capitals[] = {
	0x3B1, 0, 0x3B5, 0x3B7, 0x3B9, 0, 0x3BF, 0, 0x3C5, 0x3C9, 0x3B9
};
static const uint16_t greek_accented[] = {
	0x3B9, 0x3C5, 0x3B1, 0x3B5, 0x3B7, 0x3B9, 0x3C5
};
static const uint16_t greek_last[] = {
	0x3B9, 0x3C5, 0x3BF, 0x3C5, 0x3C9
};

/* Ranges of code points that are not letters; all others are. */
static const struct
{
	uint32_t	first;
	uint32_t	last;
	SwarmCharKind kind;
}			ranges[] = {
	{0x0000, 0x0026, SWARM_CHAR_BREAK},
	{0x0027, 0x0027, SWARM_CHAR_IGNORE},	/* apostrophe */
	{0x0028, 0x002F, SWARM_CHAR_BREAK},
	{0x003A, 0x0040, SWARM_CHAR_BREAK},
	{0x005B, 0x0060, SWARM_CHAR_BREAK},
	{0x007B, 0x00A9, SWARM_CHAR_BREAK},
	{0x00AB, 0x00AC, SWARM_CHAR_BREAK},
	{0x00AD, 0x00AD, SWARM_CHAR_IGNORE},	/* soft hyphen */
	{0x00AE, 0x00B1, SWARM_CHAR_BREAK},
	{0x00B4, 0x00B4, SWARM_CHAR_BREAK},
	{0x00B6, 0x00B8, SWARM_CHAR_BREAK},
	{0x00BB, 0x00BF, SWARM_CHAR_BREAK},
	{0x0300, 0x036F, SWARM_CHAR_IGNORE},	/* combining marks */
	{0x037E, 0x037E, SWARM_CHAR_BREAK},
	{0x0387, 0x0387, SWARM_CHAR_BREAK},
	{0x055A, 0x055F, SWARM_CHAR_BREAK},
	{0x0589, 0x058A, SWARM_CHAR_BREAK},
	{0x0591, 0x05BD, SWARM_CHAR_IGNORE},	/* Hebrew points */
	{0x05BE, 0x05C0, SWARM_CHAR_BREAK},
	{0x060C, 0x060D, SWARM_CHAR_BREAK},
	{0x061B, 0x061F, SWARM_CHAR_BREAK},
	{0x0640, 0x0640, SWARM_CHAR_IGNORE},	/* Arabic tatweel */
	{0x064B, 0x0652, SWARM_CHAR_IGNORE},	/* Arabic vowel marks */
	{0x066A, 0x066D, SWARM_CHAR_BREAK},
	{0x06D4, 0x06D4, SWARM_CHAR_BREAK},
	{0x0964, 0x0965, SWARM_CHAR_BREAK},
	{0x1680, 0x1680, SWARM_CHAR_BREAK},
	{0x2000, 0x200A, SWARM_CHAR_BREAK},
	{0x200B, 0x200F, SWARM_CHAR_IGNORE},	/* zero width, direction */
	{0x2010, 0x2018, SWARM_CHAR_BREAK},
	{0x2019, 0x2019, SWARM_CHAR_IGNORE},	/* apostrophe */
	{0x201A, 0x2029, SWARM_CHAR_BREAK},
	{0x202A, 0x202E, SWARM_CHAR_IGNORE},
	{0x202F, 0x205F, SWARM_CHAR_BREAK},
	{0x2060, 0x206F, SWARM_CHAR_IGNORE},
	{0x2070, 0x20CF, SWARM_CHAR_BREAK},
	{0x20D0, 0x20FF, SWARM_CHAR_IGNORE},
	{0x2100, 0x25FF, SWARM_CHAR_BREAK}, /* symbols, arrows, frames */
	{0x2600, 0x27BF, SWARM_CHAR_SINGLE},	/* pictures */
	{0x27C0, 0x2BFF, SWARM_CHAR_BREAK},
	{0x2E00, 0x2E7F, SWARM_CHAR_BREAK},
	{0x2E80, 0x2FFF, SWARM_CHAR_SINGLE},	/* CJK radicals */
	{0x3000, 0x3004, SWARM_CHAR_BREAK},
	{0x3005, 0x3007, SWARM_CHAR_SINGLE},
	{0x3008, 0x3030, SWARM_CHAR_BREAK},
	{0x3031, 0x3098, SWARM_CHAR_SINGLE},	/* Hiragana */
	{0x3099, 0x309A, SWARM_CHAR_IGNORE},
	{0x309B, 0x309C, SWARM_CHAR_BREAK},
	{0x309D, 0x309F, SWARM_CHAR_SINGLE},
	{0x30A0, 0x30A0, SWARM_CHAR_BREAK},
	{0x30A1, 0x30FA, SWARM_CHAR_SINGLE},	/* Katakana */
	{0x30FB, 0x30FB, SWARM_CHAR_BREAK},
	{0x30FC, 0x9FFF, SWARM_CHAR_SINGLE},	/* Katakana to ideographs */
	{0xAC00, 0xD7A3, SWARM_CHAR_SINGLE},	/* Hangul syllables */
	{0xF900, 0xFAFF, SWARM_CHAR_SINGLE},	/* ideographs */
	{0xFE00, 0xFE0F, SWARM_CHAR_IGNORE},	/* variation selectors */
	{0xFE10, 0xFE1F, SWARM_CHAR_BREAK},
	{0xFE20, 0xFE2F, SWARM_CHAR_IGNORE},
	{0xFE30, 0xFE6F, SWARM_CHAR_BREAK},
	{0xFEFF, 0xFEFF, SWARM_CHAR_IGNORE},	/* byte order mark */
	{0xFF5F, 0xFF65, SWARM_CHAR_BREAK},
	{0xFF66, 0xFFDC, SWARM_CHAR_SINGLE},	/* half-width Katakana, Hangul */
	{0xFFE0, 0xFFFF, SWARM_CHAR_BREAK},
	{0x1F000, 0x1F3FA, SWARM_CHAR_SINGLE},	/* pictures */
	{0x1F3FB, 0x1F3FF, SWARM_CHAR_IGNORE},	/* skin tones */
	{0x1F400, 0x1FAFF, SWARM_CHAR_SINGLE},	/* pictures */
	{0x20000, 0x3FFFF, SWARM_CHAR_SINGLE},	/* ideographs */
	{0xE0000, 0xE0FFF, SWARM_CHAR_IGNORE},	/* tags, variation selectors */
};

static SwarmCharKind kind_of(uint32_t cp);
static uint32_t fold_greek(uint32_t cp);
static uint32_t fold_cyrillic(uint32_t cp);
static SwarmFolded fold_latin(uint32_t cp, char base);

int
swarm_vector_decode(const unsigned char *p, size_t left, uint32_t *cp)
{
	static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
	int			length;
	uint32_t	value;

	*cp = p[0];
	if (p[0] < 0x80)
		return 1;
	*cp = SWARM_INVALID_BYTE + p[0];
	length = p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
	if (p[0] < 0xC2 || p[0] > 0xF4 || (size_t) length > left)
		return 1;

	value = p[0] & (0x7F >> length);
	for (int i = 1; i < length; i++)
	{
		if ((p[i] & 0xC0) != 0x80)
			return 1;
		value = value << 6 | (p[i] & 0x3F);
	}
	if (value < least[length] || value > 0x10FFFF ||
		(value >= 0xD800 && value <= 0xDFFF))
		return 1;
	*cp = value;
	return length;
}

SwarmFolded
swarm_vector_fold(uint32_t cp)
{
	SwarmFolded folded = {.count = 1, .letter = {cp}};

	if (cp >= 0xFF01 && cp <= 0xFF5E)	/* full-width forms of ASCII */
		cp -= 0xFEE0;

	folded.kind = kind_of(cp);
	folded.letter[0] = cp;
	if (folded.kind != SWARM_CHAR_LETTER)
		return folded;

	if (cp >= 'A' && cp <= 'Z')
		folded.letter[0] = cp + ('a' - 'A');
	else if (cp < 0xAA)
		;
	else if (cp >= 0xC0 && cp <= 0x24F)
		folded = fold_latin(cp, latin[cp - 0xC0]);
	else if (cp >= 0x1E00 && cp <= 0x1EFF)
		folded = fold_latin(cp, latin_additional[cp - 0x1E00]);
	else if (cp == 0xAA || cp == 0xBA)	/* ordinal indicators */
		folded.letter[0] = cp == 0xAA ? 'a' : 'o';
	else if (cp == 0xB2 || cp == 0xB3 || cp == 0xB9)	/* superscripts */
		folded.letter[0] = cp == 0xB9 ? '1' : cp - 0xB2 + '2';
	else if (cp == 0xB5)		/* micro sign */
		folded.letter[0] = 0x3BC;
	else if (cp >= 0x386 && cp <= 0x3CE)
		folded.letter[0] = fold_greek(cp);
	else if (cp >= 0x400 && cp <= 0x52F)
		folded.letter[0] = fold_cyrillic(cp);
	else if (cp >= 0x531 && cp <= 0x556)	/* Armenian */
		folded.letter[0] = cp + 0x30;
	return folded;
}

/*
 * kind_of: what a code point is, by binary search in ranges[].
 */
static SwarmCharKind
kind_of(uint32_t cp)
{
	int			low = 0;
	int			high = sizeof(ranges) / sizeof(ranges[0]) - 1;

	if ((cp >= 'a' && cp <= 'z') || cp >= SWARM_INVALID_BYTE)
		return SWARM_CHAR_LETTER;
	while (low <= high)
	{
		int			middle = (low + high) / 2;

		if (cp < ranges[middle].first)
			high = middle - 1;
		else if (cp > ranges[middle].last)
			low = middle + 1;
		else
			return ranges[middle].kind;
	}
	return SWARM_CHAR_LETTER;
}

/*
 * fold_latin: a letter by its entry in one of the tables.
 */
static SwarmFolded
fold_latin(uint32_t cp, char base)
{
	SwarmFolded folded = {SWARM_CHAR_LETTER, 1, {(unsigned char) base}};

	if (base == SELF)
		folded.letter[0] = cp;
	else if (base == SPLIT)
		folded.kind = SWARM_CHAR_BREAK;
	for (size_t i = 0; i < sizeof(expansions) / sizeof(expansions[0]); i++)
		if (expansions[i].from == base)
		{
			folded.count = 2;
			folded.letter[0] = expansions[i].to[0];
			folded.letter[1] = expansions[i].to[1];
		}
	return folded;
}

/*
 * fold_greek: lower case without accents, final sigma as sigma.
 */
static uint32_t
fold_greek(uint32_t cp)
{
	uint32_t	base = 0;

	if (cp <= 0x390)
		base = greek_capitals[cp - 0x386];
	else if (cp <= 0x3A9)
		base = cp + 0x20;
	else if (cp <= 0x3B0)
		base = greek_accented[cp - 0x3AA];
	else if (cp == 0x3C2)
		base = 0x3C3;
	else if (cp >= 0x3CA)
		base = greek_last[cp - 0x3CA];
	return base != 0 ? base : cp;
}

/*
 * fold_cyrillic: lower case, without the marks that Unicode decomposes.
 */
static uint32_t
fold_cyrillic(uint32_t cp)
{
	if (cp <= 0x40F)
		cp += 0x50;
	else if (cp <= 0x42F)
		cp += 0x20;
	else if (((cp >= 0x460 && cp <= 0x481) || (cp >= 0x48A && cp <= 0x4BF) ||
			  cp >= 0x4D0) && cp % 2 == 0)
		cp += 1;

	switch (cp)
	{
		case 0x450:
		case 0x451:
			return 0x435;		/* IE */
		case 0x453:
			return 0x433;		/* GHE */
		case 0x457:
			return 0x456;		/* Byelorussian-Ukrainian I */
		case 0x439:
		case 0x45D:
			return 0x438;		/* I */
		case 0x45C:
			return 0x43A;		/* KA */
		case 0x45E:
			return 0x443;		/* U */
		default:
			return cp;
	}
}
