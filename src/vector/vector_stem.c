/*
 * vector_stem.c
 *	  English stop words and endings.
 *
 * An immutable function has no corpus to count in how many texts a word
 * stands, so a list of the words that stand in nearly all of them takes the
 * place of the inverse document frequency.  Words of other languages are not
 * in it and keep their weight.  The stemmer only brings the forms of one word
 * together ("index", "indexes", "indexed", "indexing"); what it leaves need
 * not be a word.
 */
#include "vector/vector_int.h"

#include <string.h>

/* Sorted, for the binary search; apostrophes are gone ("dont"). */
static const char *const stop_words[] = {
	"a", "about", "above", "after", "again", "all", "almost", "along",
	"already", "also", "although", "always", "am", "among", "an", "and",
	"another", "any", "anything", "are", "arent", "around", "as", "at",
	"away", "be", "became", "because", "become", "becomes", "been", "before",
	"being", "below", "between", "both", "but", "by", "can", "cannot",
	"cant", "case", "come", "could", "couldnt", "did", "didnt", "do", "does",
	"doesnt", "doing", "done", "dont", "down", "during", "each", "either",
	"else", "enough", "etc", "even", "ever", "every", "everything",
	"example", "few", "find", "first", "following", "for", "from", "further",
	"gave", "get", "gets", "getting", "give", "given", "gives", "go", "goes",
	"going", "got", "had", "has", "hasnt", "have", "havent", "having", "he",
	"her", "here", "hers", "herself", "him", "himself", "his", "how",
	"however", "i", "if", "im", "in", "instead", "into", "is", "isnt", "it",
	"its", "itself", "ive", "just", "keep", "know", "last", "later", "least",
	"less", "let", "lets", "like", "likely", "look", "made", "mainly",
	"make", "makes", "making", "many", "may", "me", "mean", "means", "might",
	"mine", "more", "most", "mostly", "much", "must", "my", "myself", "need",
	"needed", "needs", "neither", "never", "new", "no", "nor", "not",
	"nothing", "now", "of", "off", "often", "on", "once", "one", "only",
	"onto", "or", "other", "others", "otherwise", "ought", "our", "ours",
	"ourselves", "out", "over", "own", "per", "perhaps", "possible", "put",
	"quite", "rather", "really", "same", "say", "says", "see", "seem",
	"seems", "several", "shall", "she", "should", "show", "shown", "shows",
	"simply", "since", "so", "some", "something", "sometimes", "somewhat",
	"soon", "still", "such", "take", "taken", "takes", "tell", "than",
	"that", "thats", "the", "their", "theirs", "them", "themselves", "then",
	"there", "therefore", "these", "they", "theyre", "thing", "things",
	"this", "those", "though", "through", "thus", "to", "together", "too",
	"toward", "two", "under", "unless", "until", "up", "upon", "us", "use",
	"used", "useful", "uses", "using", "usually", "very", "via", "want",
	"wants", "was", "wasnt", "way", "ways", "we", "well", "went", "were",
	"werent", "what", "whatever", "when", "whenever", "where", "whether",
	"which", "while", "who", "whole", "whom", "whose", "why", "will", "with",
	"within", "without", "wont", "would", "wouldnt", "yes", "yet", "you",
	"your", "youre", "yours", "yourself"
};

static bool ends_with(const SwarmWord *word, const char *ending);
static bool has_vowel(const SwarmWord *word, int length);
static bool is_consonant(uint32_t letter);

bool
swarm_vector_is_stop_word(const SwarmWord *word)
{
	char		ascii[SWARM_WORD_MAX + 1];
	int			low = 0;
	int			high = sizeof(stop_words) / sizeof(stop_words[0]) - 1;

	if (word->length == 1 && word->letter[0] < 0x80)
		return true;
	for (int i = 0; i < word->length; i++)
	{
		if (word->letter[i] >= 0x80)
			return false;
		ascii[i] = (char) word->letter[i];
	}
	ascii[word->length] = '\0';

	while (low <= high)
	{
		int			middle = (low + high) / 2;
		int			order = strcmp(ascii, stop_words[middle]);

		if (order == 0)
			return true;
		if (order < 0)
			high = middle - 1;
		else
			low = middle + 1;
	}
	return false;
}

void
swarm_vector_stem(SwarmWord *word)
{
	int			stem = 0;

	for (int i = 0; i < word->length; i++)
		if (word->letter[i] < 'a' || word->letter[i] > 'z')
			return;

	/* plural: queries, indexes, rows; not status, access, analysis */
	if (word->length > 4 && ends_with(word, "ies"))
	{
		word->length -= 2;
		word->letter[word->length - 1] = 'y';
	}
	else if (word->length > 3 && ends_with(word, "s") &&
			 !ends_with(word, "ss") && !ends_with(word, "us") &&
			 !ends_with(word, "is"))
		word->length--;

	/* forms of a verb: created, creating; not speed, string */
	if (ends_with(word, "ing"))
		stem = word->length - 3;
	else if (ends_with(word, "ed") && !ends_with(word, "eed"))
		stem = word->length - 2;
	if (stem >= 3 && has_vowel(word, stem))
	{
		word->length = stem;
		if (stem > 3 && word->letter[stem - 1] == word->letter[stem - 2] &&
			is_consonant(word->letter[stem - 1]) &&
			!ends_with(word, "ll") && !ends_with(word, "ss"))
			word->length--;		/* dropped, dropping */
	}

	if (word->length > 3 && ends_with(word, "e"))
		word->length--;
	if (word->length > 3 && ends_with(word, "i"))	/* modified, copied */
		word->letter[word->length - 1] = 'y';
}

/*
 * ends_with: the word has this ending.
 */
static bool
ends_with(const SwarmWord *word, const char *ending)
{
	int			length = (int) strlen(ending);

	if (word->length < length)
		return false;
	for (int i = 0; i < length; i++)
		if (word->letter[word->length - length + i] != (unsigned char) ending[i])
			return false;
	return true;
}

/*
 * has_vowel: there is a vowel in the first letters of the word.
 */
static bool
has_vowel(const SwarmWord *word, int length)
{
	for (int i = 0; i < length; i++)
		if (!is_consonant(word->letter[i]))
			return true;
	return false;
}

/*
 * is_consonant: not a, e, i, o, u or y.
 */
static bool
is_consonant(uint32_t letter)
{
	return letter >= 0x80 || strchr("aeiouy", (int) letter) == NULL;
}
