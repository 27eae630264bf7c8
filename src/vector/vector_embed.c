/*
 * vector_embed.c
 *	  Text to vector by signed feature hashing (Weinberger et al., ICML 2009).
 *
 * Features are words (stemmed), pairs of words in sequence, and the character
 * n-grams of each word between two marks.  Each feature is hashed to a few
 * elements of the vector and to a sign there, and its weight is added.  Words
 * and pairs are first counted in a table, because a word that stands ten times
 * in a text does not say ten times as much: its weight grows with the
 * logarithm of its count.  The first words, which mostly are the title, count
 * several times.  The n-grams of a word are weighted with the word,
 * so they are hashed once for each different word only.
 *
 * Same bits on every platform: hashes are arithmetic on 64-bit integers (no
 * bytes are reinterpreted), sums are integers, so that their order does not
 * matter, and what is left for floating point is one square root and one
 * division for each element, which IEEE 754 rounds correctly.
 *
 * When the table is full its counts are added to the vector and it starts
 * afresh, which bounds the memory; that happens after some 100,000 different
 * words and pairs.
 */
#include "vector/vector_int.h"

#include <math.h>
#include <string.h>

#define TABLE_FIRST		1024	/* entries of the table at first */
#define TABLE_LAST		(1 << 18)	/* and at most; powers of two */
#define LETTERS_PER_ENTRY 4

/* Begin and end of a word in its n-grams; no code point. */
#define MARK_BEGIN		0x120000
#define MARK_END		0x120001

/* Seeds that keep the kinds of features apart. */
#define SEED_WORD		UINT64_C(0x736D7277)
#define SEED_PAIR		UINT64_C(0x72696170)
#define SEED_GRAM		UINT64_C(0x6D617267)

#define GOLDEN			UINT64_C(0x9E3779B97F4A7C15)

/*
 * A word or a pair of words, and how often it came.  A pair has no letters.
 */
typedef struct Entry
{
	uint64_t	hash;			/* 0: free */
	uint32_t	count;
	uint32_t	letters;		/* where they are in SwarmEmbedder.letters */
	uint16_t	length;
	uint16_t	factor;			/* of the weight, in 1/64 */
} Entry;

struct SwarmEmbedder
{
	int			dims;
	const SwarmEmbedWeights *weights;
	const SwarmEmbedAllocator *allocator;

	SwarmWord	word;			/* the word that is being read */
	uint64_t	previous;		/* hash of the word before it; 0: none */
	int			previous_factor;
	int64_t		words;			/* words so far */

	Entry	   *table;
	uint32_t	table_size;
	uint32_t	entries;
	uint32_t   *letters;		/* of all words in the table */
	uint32_t	letters_used;

	int64_t    *sums;			/* the vector, dims elements */
};

/* Chosen by bench/embed; see bench/results. */
const SwarmEmbedWeights swarm_embed_weights = {
	.word = 64,
	.single = 32,
	.pair = 32,
	.stop = 4,
	.number = 32,
	.gram_min = 3,
	.gram_max = 5,
	.gram = 32,
	.tf_slope = 64,
	.buckets = 2,
	.lead_words = 12,
	.lead = 6,
};

static void end_word(SwarmEmbedder *e, bool single);
static int	word_factor(const SwarmEmbedder *e, const SwarmWord *word);
static void count_feature(SwarmEmbedder *e, uint64_t hash, int factor,
						  const SwarmWord *word);
static Entry *find_entry(Entry *table, uint32_t size, uint64_t hash);
static void new_table(SwarmEmbedder *e, uint32_t size);
static void grow_table(SwarmEmbedder *e);
static void flush_table(SwarmEmbedder *e);
static int64_t frequency_weight(const SwarmEmbedder *e, uint32_t count);
static void add_grams(SwarmEmbedder *e, const Entry *entry, int64_t weight);
static void add_feature(SwarmEmbedder *e, uint64_t hash, int64_t weight);
static void normalize(const int64_t *sums, int dims, float *vector);

/*
 * scramble: the finalizer of splitmix64; every bit depends on every bit.
 */
static inline uint64_t
scramble(uint64_t z)
{
	z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
	return z ^ (z >> 31);
}

/*
 * extend: a running hash with one more letter.
 */
static inline uint64_t
extend(uint64_t hash, uint64_t letter)
{
	hash = (hash ^ letter) * GOLDEN;
	return hash ^ (hash >> 32);
}

SwarmEmbedder *
swarm_embedder_begin(int dims, const SwarmEmbedWeights *weights,
					 const SwarmEmbedAllocator *allocator)
{
	SwarmEmbedder *e = allocator->alloc_zeroed(sizeof(SwarmEmbedder));

	e->dims = dims;
	e->weights = weights;
	e->allocator = allocator;
	e->sums = allocator->alloc_zeroed(dims * sizeof(int64_t));
	new_table(e, TABLE_FIRST);
	return e;
}

void
swarm_embedder_add(SwarmEmbedder *e, const char *text, size_t length)
{
	const unsigned char *p = (const unsigned char *) text;
	const unsigned char *end = p + length;

	while (p < end)
	{
		SwarmFolded folded;
		uint32_t	cp;

		p += swarm_vector_decode(p, end - p, &cp);
		folded = swarm_vector_fold(cp);

		if (folded.kind == SWARM_CHAR_IGNORE)
			continue;
		if (folded.kind != SWARM_CHAR_LETTER ||
			e->word.length + folded.count > SWARM_WORD_MAX)
			end_word(e, false);
		if (folded.kind == SWARM_CHAR_BREAK)
			continue;
		for (int i = 0; i < folded.count; i++)
			e->word.letter[e->word.length++] = folded.letter[i];
		if (folded.kind == SWARM_CHAR_SINGLE)
			end_word(e, true);
	}
}

void
swarm_embedder_finish(SwarmEmbedder *e, float *vector)
{
	const SwarmEmbedAllocator *allocator = e->allocator;

	end_word(e, false);
	flush_table(e);
	normalize(e->sums, e->dims, vector);

	allocator->release(e->letters);
	allocator->release(e->table);
	allocator->release(e->sums);
	allocator->release(e);
}

/*
 * end_word: count the word that was read, and its pair with the one before.
 */
static void
end_word(SwarmEmbedder *e, bool single)
{
	uint64_t	hash = SEED_WORD;
	int			factor;

	if (e->word.length == 0)
		return;

	factor = word_factor(e, &e->word);
	swarm_vector_stem(&e->word);
	for (int i = 0; i < e->word.length; i++)
		hash = extend(hash, e->word.letter[i]);
	hash = scramble(hash);

	if (single)
		factor = factor * e->weights->single / 64;
	count_feature(e, hash, factor, &e->word);

	if (e->previous != 0)
	{
		int			lesser = factor;

		if (single)
			lesser = 64;		/* two ideographs say more than each */
		else if (e->previous_factor < factor)
			lesser = e->previous_factor;
		count_feature(e, scramble(extend(extend(SEED_PAIR, e->previous), hash)),
					  lesser, NULL);
	}
	e->words++;
	e->previous = hash;
	e->previous_factor = factor;
	e->word.length = 0;
}

/*
 * word_factor: how much a word says by itself, in 1/64.
 */
static int
word_factor(const SwarmEmbedder *e, const SwarmWord *word)
{
	bool		digits = true;

	for (int i = 0; i < word->length; i++)
		digits = digits && word->letter[i] >= '0' && word->letter[i] <= '9';
	if (digits)
		return e->weights->number;
	if (swarm_vector_is_stop_word(word))
		return e->weights->stop;
	return 64;
}

/*
 * count_feature: one more of a word, or of a pair (word is NULL).
 */
static void
count_feature(SwarmEmbedder *e, uint64_t hash, int factor,
			  const SwarmWord *word)
{
	Entry	   *entry;

	if (hash == 0)
		hash = 1;
	if (e->entries >= e->table_size / 2 ||
		e->letters_used + SWARM_WORD_MAX > e->table_size * LETTERS_PER_ENTRY)
		grow_table(e);

	entry = find_entry(e->table, e->table_size, hash);
	if (entry->hash == 0)
	{
		e->entries++;
		entry->hash = hash;
		entry->factor = (uint16_t) factor;
		if (word != NULL)
		{
			entry->letters = e->letters_used;
			entry->length = (uint16_t) word->length;
			memcpy(e->letters + e->letters_used, word->letter,
				   word->length * sizeof(uint32_t));
			e->letters_used += word->length;
		}
	}
	entry->count += e->words < e->weights->lead_words ? e->weights->lead : 1;
}

/*
 * find_entry: the entry with a hash, or the free one where it belongs.
 */
static Entry *
find_entry(Entry *table, uint32_t size, uint64_t hash)
{
	uint32_t	i = (uint32_t) hash & (size - 1);

	while (table[i].hash != 0 && table[i].hash != hash)
		i = (i + 1) & (size - 1);
	return &table[i];
}

/*
 * new_table: an empty table, and room for its letters.
 */
static void
new_table(SwarmEmbedder *e, uint32_t size)
{
	e->table = e->allocator->alloc_zeroed(size * sizeof(Entry));
	e->letters = e->allocator->alloc_zeroed(size * LETTERS_PER_ENTRY *
											sizeof(uint32_t));
	e->table_size = size;
}

/*
 * grow_table: make room, or empty the table when it may not grow.
 */
static void
grow_table(SwarmEmbedder *e)
{
	Entry	   *table = e->table;
	uint32_t   *letters = e->letters;
	uint32_t	size = e->table_size;

	if (size == TABLE_LAST)
	{
		flush_table(e);
		memset(e->table, 0, size * sizeof(Entry));
		e->entries = 0;
		e->letters_used = 0;
		return;
	}

	new_table(e, size * 2);
	memcpy(e->letters, letters, e->letters_used * sizeof(uint32_t));
	for (uint32_t i = 0; i < size; i++)
		if (table[i].hash != 0)
			*find_entry(e->table, e->table_size, table[i].hash) = table[i];
	e->allocator->release(letters);
	e->allocator->release(table);
}

/*
 * flush_table: add all features of the table to the vector.
 */
static void
flush_table(SwarmEmbedder *e)
{
	for (uint32_t i = 0; i < e->table_size; i++)
	{
		const Entry *entry = &e->table[i];
		int64_t		weight;

		if (entry->hash == 0)
			continue;
		weight = frequency_weight(e, entry->count) * entry->factor;
		if (entry->length == 0)
			add_feature(e, entry->hash, weight * e->weights->pair);
		else
		{
			add_feature(e, entry->hash, weight * e->weights->word);
			add_grams(e, entry, weight * e->weights->gram);
		}
	}
}

/*
 * frequency_weight: 1 + slope * log2(count), in 1/64; the logarithm is linear
 * between the powers of two.
 */
static int64_t
frequency_weight(const SwarmEmbedder *e, uint32_t count)
{
	int			exponent = 0;
	int64_t		log;

	while (count >> exponent > 1)
		exponent++;
	log = (int64_t) exponent * 64 +
		((int64_t) (count - (UINT32_C(1) << exponent)) * 64 >> exponent);
	return 64 + log * e->weights->tf_slope / 64;
}

/*
 * add_grams: the character n-grams of a word; together they weigh about as
 * much as one feature with this weight.
 */
static void
add_grams(SwarmEmbedder *e, const Entry *entry, int64_t weight)
{
	/* 64 / sqrt(i) */
	static const unsigned char inverse_root[] = {
		64, 64, 45, 37, 32, 29, 26, 24, 23, 21, 20, 19, 18, 18, 17, 17, 16,
		16, 15, 15, 14, 14, 14, 13, 13, 13, 13, 12, 12, 12, 12, 11, 11
	};
	const SwarmEmbedWeights *w = e->weights;
	uint32_t	marked[SWARM_WORD_MAX + 2];
	int			length = entry->length + 2;
	int			grams = 0;

	if (weight == 0 || entry->length < 2)
		return;
	marked[0] = MARK_BEGIN;
	memcpy(marked + 1, e->letters + entry->letters,
		   entry->length * sizeof(uint32_t));
	marked[length - 1] = MARK_END;

	for (int n = w->gram_min; n <= w->gram_max && n <= length; n++)
		grams += length - n + 1;
	weight = weight * inverse_root[grams < 32 ? grams : 32] / 64;

	for (int from = 0; from + w->gram_min <= length; from++)
	{
		uint64_t	hash = SEED_GRAM;

		for (int n = 1; n <= w->gram_max && from + n <= length; n++)
		{
			hash = extend(hash, marked[from + n - 1]);
			if (n >= w->gram_min)
				add_feature(e, scramble(hash), weight);
		}
	}
}

/*
 * add_feature: add a weight to the elements that a feature is hashed to.
 */
static void
add_feature(SwarmEmbedder *e, uint64_t hash, int64_t weight)
{
	for (int i = 0; i < e->weights->buckets; i++)
	{
		uint32_t	element = (uint32_t) ((hash >> 32) * e->dims >> 32);

		e->sums[element] += (hash & 1) ? weight : -weight;
		hash = scramble(hash + GOLDEN);
	}
}

/*
 * normalize: the unit vector of the sums.
 *
 * The sums are shortened to 24 bits first: then a square has 48 bits and the
 * sum of 16,000 of them fits in 64 bits, without rounding.
 */
static void
normalize(const int64_t *sums, int dims, float *vector)
{
	int64_t		largest = 0;
	int			shift = 0;
	uint64_t	squares = 0;
	double		norm;

	for (int i = 0; i < dims; i++)
	{
		int64_t		magnitude = sums[i] < 0 ? -sums[i] : sums[i];

		if (magnitude > largest)
			largest = magnitude;
	}
	while (largest >> shift >= INT64_C(1) << 24)
		shift++;

	for (int i = 0; i < dims; i++)
	{
		int64_t		magnitude = (sums[i] < 0 ? -sums[i] : sums[i]) >> shift;

		squares += (uint64_t) (magnitude * magnitude);
	}
	norm = sqrt((double) squares);
	for (int i = 0; i < dims; i++)
	{
		int64_t		magnitude = (sums[i] < 0 ? -sums[i] : sums[i]) >> shift;
		double		value = norm > 0 ? (double) magnitude / norm : 0;

		vector[i] = (float) (sums[i] < 0 && magnitude > 0 ? -value : value);
	}
}
