/*
 * quant_simhash.c
 *	  Sign hashes: bits whose Hamming distance follows the angle (Charikar,
 *	  STOC 2002), from structured random projections (Andoni et al., NIPS
 *	  2015: three rounds of sign flips and Hadamard transforms).
 *
 * The construction, byte for byte.  Let m be the smallest power of two that
 * is at least n and 64.  Bits come in blocks of m.  For block b = 0, 1, ...:
 *
 *	1. x[0..n-1] = v as doubles, x[n..m-1] = 0
 *	2. three times, r = 0, 1, 2: for each i, x[i] = -x[i] when bit i % 64 of
 *	   word(b, r, i / 64) is set; then x = H x, the unnormalised fast
 *	   Walsh-Hadamard transform in natural order (half-distances 1, 2, 4, ...)
 *	3. bit b * m + i of the hash is set when x[i] > 0
 *
 * word(b, r, w) is splitmix64's output for the state
 * ((b << 32) + (r << 24) + w + 1) * 0x9E3779B97F4A7C15 (mod 2^64).
 *
 * Only additions, subtractions and changes of sign of IEEE doubles in a fixed
 * order: no compiler can contract or reorder them, so the bits are the same
 * everywhere.  The time is O(m log m) a block and no matrix is kept.
 */
#include "quant/quant.h"

#include <string.h>

#define MIN_BLOCK	64
#define ROUNDS		3

/*
 * block_size: how many bits one rotation of an n-dimensional vector gives.
 */
static size_t
block_size(size_t n)
{
	size_t		m = MIN_BLOCK;

	while (m < n)
		m *= 2;
	return m;
}

size_t
swarm_quant_simhash_work(size_t n)
{
	return block_size(n);
}

/*
 * sign_word: 64 pseudo-random sign bits for elements 64 w .. 64 w + 63.
 */
static uint64_t
sign_word(uint64_t block, uint64_t round, uint64_t w)
{
	uint64_t	z;

	z = ((block << 32) + (round << 24) + w + 1) * UINT64_C(0x9E3779B97F4A7C15);
	z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
	return z ^ (z >> 31);
}

/*
 * flip_signs: change the sign of a pseudo-random half of x.
 */
static void
flip_signs(double *x, size_t m, uint64_t block, uint64_t round)
{
	for (size_t w = 0; w < m / 64; w++)
	{
		uint64_t	signs = sign_word(block, round, w);

		for (int i = 0; i < 64; i++)
			if ((signs >> i) & 1)
				x[w * 64 + i] = -x[w * 64 + i];
	}
}

/*
 * hadamard: x = H x in place.
 */
static void
hadamard(double *x, size_t m)
{
	for (size_t half = 1; half < m; half *= 2)
		for (size_t i = 0; i < m; i += 2 * half)
			for (size_t j = i; j < i + half; j++)
			{
				double		a = x[j];
				double		b = x[j + half];

				x[j] = a + b;
				x[j + half] = a - b;
			}
}

void
swarm_quant_simhash(const float *v, size_t n, uint8_t *out, size_t bits,
					double *work)
{
	size_t		m = block_size(n);

	memset(out, 0, (bits + 7) / 8);
	for (size_t first = 0; first < bits; first += m)
	{
		size_t		count = bits - first < m ? bits - first : m;

		for (size_t i = 0; i < m; i++)
			work[i] = i < n ? (double) v[i] : 0;
		for (int round = 0; round < ROUNDS; round++)
		{
			flip_signs(work, m, first / m, round);
			hadamard(work, m);
		}
		for (size_t i = 0; i < count; i++)
			if (work[i] > 0)
				out[(first + i) / 8] |= 0x80 >> ((first + i) % 8);
	}
}
