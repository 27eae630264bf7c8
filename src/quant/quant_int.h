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

#include <string.h>

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

/* The most dimensions of a block; blocks of every w start at its multiples. */
#define SWARM_CODEC_CHUNK	512

/*
 * A code for reading: 64 dimensions, a group, are one field of 64 successive
 * bytes.  Those of a last block that is not whole are in `tail`, a byte each.
 */
typedef struct SwarmCodecFields
{
	const uint8_t *code;
	int			width;			/* w */
	size_t		whole;			/* groups in whole blocks */
	uint8_t		tail[SWARM_CODEC_CHUNK + SWARM_CODEC_BLOCK];
} SwarmCodecFields;

/* The most codes that make an index: of 4, 2 and 1 bits beside the first. */
#define SWARM_CODEC_PARTS	4

/*
 * swarm_codec_group: the bytes of a group, and by how many bits the field is
 * shifted in them.
 */
static inline const uint8_t *
swarm_codec_group(const SwarmCodecFields *fields, size_t group, int *shift)
{
	size_t		bit = group * fields->width;

	if (group >= fields->whole)
	{
		*shift = 0;
		return fields->tail + (group - fields->whole) * SWARM_CODEC_BLOCK;
	}
	*shift = bit % 8;
	return fields->code + bit / 8 * SWARM_CODEC_BLOCK;
}

/*
 * swarm_codec_tail: bytes of a last block of `count` dimensions.
 */
static inline size_t
swarm_codec_tail(size_t count, int w)
{
	return ((count * w + 7) / 8 + 3) & ~(size_t) 3;
}

/*
 * swarm_codec_packed: bytes of a code of w bits a dimension.
 */
static inline size_t
swarm_codec_packed(size_t dims, int w)
{
	size_t		per_block = SWARM_CODEC_BLOCK * 8 / w;

	return dims / per_block * SWARM_CODEC_BLOCK +
		swarm_codec_tail(dims % per_block, w);
}

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

/*
 * swarm_quantizer: the quantizer of so many bits.
 */
static inline const SwarmQuantizer *
swarm_quantizer(int bits, int refine_bits)
{
	const SwarmQuantizer *quantizer = swarm_quantizers;

	while (quantizer->bits != bits || quantizer->refine_bits != refine_bits)
		quantizer++;
	return quantizer;
}

/*
 * swarm_quantizer_segments: how many segments the positive half has.
 */
static inline int
swarm_quantizer_segments(const SwarmQuantizer *quantizer)
{
	int			bits = quantizer->bits + quantizer->refine_bits;

	return bits > 4 ? 8 : 1 << (bits - 1);
}

/*
 * swarm_quantizer_rest: bits of an index behind those that name the segment.
 */
static inline int
swarm_quantizer_rest(const SwarmQuantizer *quantizer)
{
	int			bits = quantizer->bits + quantizer->refine_bits;

	return bits > 4 ? bits - 4 : 0;
}

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

/*
 * swarm_codec_level: the level of an index.
 */
static inline int
swarm_codec_level(const SwarmCodecLevels *levels, unsigned index)
{
	unsigned	segment = index >> levels->rest_bits;

	return levels->base[segment] +
		levels->step[segment] * (int) (index - (segment << levels->rest_bits));
}

/*
 * swarm_codec_indexes: the indexes of a group, one by one.
 */
static inline void
swarm_codec_indexes(const SwarmCodecFields *fields, int parts, size_t group,
					uint8_t *index)
{
	for (int part = 0; part < parts; part++)
	{
		int			w = fields[part].width;
		int			shift;
		const uint8_t *bytes = swarm_codec_group(&fields[part], group, &shift);

		for (int j = 0; j < SWARM_CODEC_BLOCK; j++)
			index[j] = (part == 0 ? 0 : index[j] << w) |
				((bytes[j] >> shift) & ((1 << w) - 1));
	}
}

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
	 * Sum of q times the level of each index of `groups` groups; the index is
	 * made of the fields of `parts` codes, the first one's highest.  |q| is
	 * at most SWARM_CODEC_FINE_MAX, and 0 behind the last dimension.
	 */
	int64_t		(*dot_levels) (const SwarmCodecFields *fields, int parts,
							   size_t groups, const int16_t *q,
							   const SwarmCodecLevels *levels);
	/* change the sign of x[i] where bit i % 64 of word(key, i / 64) is set */
	void		(*flip) (float *x, size_t n, uint64_t key);
	/* x = scale H x; n a power of two */
	void		(*hadamard) (float *x, size_t n, float scale);
	/* a, b = scale (a + b), scale (a - b) */
	void		(*mix) (float *a, float *b, size_t n, float scale);
} SwarmCodecKernels;

/*
 * swarm_codec_nearest: the nearest integer, for |x| < 2^22.  The addition rounds
 * to integers and leaves them in the low bits.
 */
static inline int32_t
swarm_codec_nearest(float x)
{
	float		shifted = x + 12582912.0f;
	int32_t		bits;

	memcpy(&bits, &shifted, sizeof(bits));
	return bits - 0x4b400000;
}

/*
 * swarm_codec_unit: what maps `value` to `to`; less for the tiniest values.
 */
static inline float
swarm_codec_unit(double to, double value)
{
	return to / value < 1e38 ? (float) (to / value) : 1e38f;
}

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
