/*
 * vector_int.h
 *	  The hash embedder: text to vector without a model.
 *
 * Pure C, no postgres.h: vector_embed.c, vector_fold.c and vector_stem.c are
 * fuzzed and tuned outside a server (test/fuzz, bench/embed).
 */
#ifndef SWARM_VECTOR_INT_H
#define SWARM_VECTOR_INT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vector/vector.h"

/* Longer words are cut: nothing readable is that long. */
#define SWARM_WORD_MAX	64

/*
 * One word: folded code points, without separators.
 */
typedef struct SwarmWord
{
	int			length;
	uint32_t	letter[SWARM_WORD_MAX];
} SwarmWord;

/* What a code point is to the word segmentation. */
typedef enum SwarmCharKind
{
	SWARM_CHAR_BREAK,			/* separates words */
	SWARM_CHAR_IGNORE,			/* as if it were not there */
	SWARM_CHAR_LETTER,			/* part of a word */
	SWARM_CHAR_SINGLE			/* a word of its own: ideograph, emoji */
} SwarmCharKind;

/* A code point after folding of case and accents: none to two code points. */
typedef struct SwarmFolded
{
	SwarmCharKind kind;
	int			count;
	uint32_t	letter[2];
} SwarmFolded;

/* Bytes that are not UTF-8 become letters from here on. */
#define SWARM_INVALID_BYTE	0x110000

/*
 * swarm_vector_decode: the code point at p, of `left` > 0 bytes; returns its
 * length in bytes.  A byte that begins no valid sequence is one code point.
 */
extern int	swarm_vector_decode(const unsigned char *p, size_t left,
								uint32_t *cp);

/* swarm_vector_fold: classify and fold one code point. */
extern SwarmFolded swarm_vector_fold(uint32_t cp);

/* swarm_vector_is_stop_word: a word too common in English to mean much. */
extern bool swarm_vector_is_stop_word(const SwarmWord *word);

/* swarm_vector_stem: take the English endings -s, -ed, -ing, -e off. */
extern void swarm_vector_stem(SwarmWord *word);

/*
 * Weights of the features, in units of 1/64.  The defaults are what
 * bench/embed measured to be best; changing one changes every embedding.
 */
typedef struct SwarmEmbedWeights
{
	int			word;
	int			single;			/* a word that is one ideograph or emoji */
	int			pair;			/* two words in sequence */
	int			stop;			/* factor for stop words and their n-grams */
	int			number;			/* factor for words of digits only */
	int			gram_min;		/* length of the shortest and longest */
	int			gram_max;		/* character n-gram */
	int			gram;			/* all n-grams of a word together */
	int			tf_slope;		/* weight of a doubling of the frequency */
	int			buckets;		/* elements that a feature is added to */
	int			lead_words;		/* the first words of a text, its title, */
	int			lead;			/* count this many times */
} SwarmEmbedWeights;

extern const SwarmEmbedWeights swarm_embed_weights;

/* Where the embedder gets memory; it never returns NULL. */
typedef struct SwarmEmbedAllocator
{
	void	   *(*alloc_zeroed) (size_t size);
	void		(*release) (void *p);
} SwarmEmbedAllocator;

typedef struct SwarmEmbedder SwarmEmbedder;

/*
 * swarm_embedder_begin: an embedder for one text.
 * swarm_embedder_add: the next piece of it.  Pieces may end anywhere between
 * two code points; where they end does not change the result.
 * swarm_embedder_finish: writes the `dims` floats of the unit vector, or zeros
 * when the text had no words, and frees the embedder.
 *
 * The memory used is bounded (about 11 MB) whatever the length of the text.
 */
extern SwarmEmbedder *swarm_embedder_begin(int dims,
										   const SwarmEmbedWeights *weights,
										   const SwarmEmbedAllocator *allocator);
extern void swarm_embedder_add(SwarmEmbedder *embedder, const char *text,
							   size_t length);
extern void swarm_embedder_finish(SwarmEmbedder *embedder, float *vector);

#endif							/* SWARM_VECTOR_INT_H */
