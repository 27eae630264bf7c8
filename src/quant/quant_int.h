/*
 * quant_int.h
 *	  The kernels of every level, for the dispatcher, and what the codes of
 *	  vectors (codec.h) share with their kernels.
 *
 * A file per level holds only functions that carry their level's target
 * attribute, so that no other function is compiled with instructions that the
 * processor may not have.
 */
#ifndef SWARM_QUANT_INT_H
#define SWARM_QUANT_INT_H

#include "quant/quant.h"

#if defined(__x86_64__)
#define SWARM_QUANT_X86
#endif
#if defined(__aarch64__)
#define SWARM_QUANT_ARM
#endif

extern const SwarmQuantKernels swarm_quant_scalar;
extern const struct SwarmCodecKernels swarm_codec_scalar;

#ifdef SWARM_QUANT_X86
extern const SwarmQuantKernels swarm_quant_sse;
extern const SwarmQuantKernels swarm_quant_avx2;
extern const SwarmQuantKernels swarm_quant_avx512;
extern const SwarmQuantKernels swarm_quant_avx512vnni;
extern const struct SwarmCodecKernels swarm_codec_avx2;
extern const struct SwarmCodecKernels swarm_codec_avx512vnni;
#endif

#ifdef SWARM_QUANT_ARM
extern const SwarmQuantKernels swarm_quant_neon;
extern const struct SwarmCodecKernels swarm_codec_neon;
#endif

/*
 * Layout of a code of w bits a dimension, w = 1, 2 or 4, and f = 8 / w: blocks
 * of 64 bytes hold 64 f dimensions.  Field k of byte j, bits w k and up, is
 * dimension 64 k + j of the block.  The last block may have fewer dimensions
 * and then T bytes, the fewest that hold them, rounded up to a multiple of 4;
 * there field k of byte j is dimension T k + j.  Fields of no dimension are 0.
 */
#define SWARM_CODEC_BLOCK	64

/* Blocks of every w start at the multiples of this many dimensions. */
#define SWARM_CODEC_CHUNK	512

/*
 * A quantizer of bits + refine_bits: see test/tools/quant_levels.  Edges and
 * levels of the positive half; the negative one is its mirror.
 */
typedef struct SwarmQuantizer
{
	uint8_t		bits;
	uint8_t		refine_bits;
	float		unit;			/* of the levels: one standard deviation */
	float		edges[7];		/* between segments; in standard deviations */
	int16_t		base[8];		/* first level of a segment */
	int16_t		step[8];		/* between the levels of a segment */
} SwarmQuantizer;

#define SWARM_QUANTIZERS	20

extern const SwarmQuantizer swarm_quantizers[SWARM_QUANTIZERS];

/* Levels of 2 and 4 bits + SWARM_CODEC_BIAS, for kernels with unsigned bytes. */
#define SWARM_CODEC_BIAS	64

extern const uint8_t swarm_codec_lut2[16];
extern const uint8_t swarm_codec_lut4[16];

/*
 * Levels of both codes together: of index i, base[i >> rest_bits] +
 * step[i >> rest_bits] * (i & (2^rest_bits - 1)).  None exceeds 16,010.
 */
typedef struct SwarmCodecLevels
{
	int			rest_bits;
	int16_t		base[16];
	int16_t		step[16];
} SwarmCodecLevels;

/* The largest value of a query of the traversal and of the refine kernels. */
#define SWARM_CODEC_QUERY_MAX	127
#define SWARM_CODEC_FINE_MAX	4095

/*
 * The kernels of one level for codes.  Integer sums are the same on every
 * level, and so is what rotates.  Nothing is read after the given sizes.
 *
 * dot1, dot2, dot4: sum of q times the bit, or the entry of the table above,
 * of each field.  `size` is that of the code; q holds 64 values for each field
 * of each block, in this order, zeros where there is no dimension.
 */
typedef struct SwarmCodecKernels
{
	int32_t		(*dot1) (const uint8_t *code, const int8_t *q, size_t size);
	int32_t		(*dot2) (const uint8_t *code, const int8_t *q, size_t size);
	int32_t		(*dot4) (const uint8_t *code, const int8_t *q, size_t size);
	/* values -127 to 127 */
	int32_t		(*dot_s8) (const int8_t *a, const int8_t *b, size_t n);
	/* codes of IEEE half and float, at any address */
	float		(*dot_f16) (const uint8_t *code, const float *q, size_t n);
	float		(*dot_f32) (const uint8_t *code, const float *q, size_t n);

	/*
	 * Sum of q times the level of each index; n a multiple of 64, at most
	 * SWARM_CODEC_CHUNK, and |q| at most SWARM_CODEC_FINE_MAX.
	 */
	int64_t		(*dot_levels) (const uint8_t *index, const int16_t *q,
							   size_t n, const SwarmCodecLevels *levels);
	/* change the sign of x[i] where bit i % 64 of word(key, i / 64) is set */
	void		(*flip) (float *x, size_t n, uint64_t key);
	/* x = scale H x; n a power of two */
	void		(*hadamard) (float *x, size_t n, float scale);
	/* a, b = scale (a + b), scale (a - b) */
	void		(*mix) (float *a, float *b, size_t n, float scale);
} SwarmCodecKernels;

/*
 * swarm_codec_word: pseudo-random bits number w of a key: splitmix64.
 */
static inline uint64_t
swarm_codec_word(uint64_t key, uint64_t w)
{
	uint64_t	z = key + (w + 1) * UINT64_C(0x9E3779B97F4A7C15);

	z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
	return z ^ (z >> 31);
}

/*
 * IEEE half: to the nearest, ties to even, at most 65504 away from zero; and
 * back, exactly.  For finite values.
 */
extern uint16_t swarm_codec_to_half(float x);
extern float swarm_codec_from_half(uint16_t half);

#endif							/* SWARM_QUANT_INT_H */
