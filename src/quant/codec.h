/*
 * codec.h
 *	  Codes of vectors: a seeded rotation, scalar quantizers of 1 to 32 bits a
 *	  dimension, and the integer kernels that score a query against codes.
 *
 * The vectors here are rotated residuals: R(x - c) for a rotation R and a
 * centre c, which the caller keeps.  A rotation makes the coordinates of any
 * vector look like draws of one normal distribution, so that one fixed set of
 * levels serves all data (Gao and Long, RaBitQ, 2024; the extended form, 2025).
 *
 * A code of b bits a dimension is a traversal code: small, scored by the
 * thousand.  r further bits a dimension, the refine code, are kept elsewhere
 * and make both together a code of b + r bits.
 *
 * Estimates.  With |x|^2 and a scale s kept beside the code, and levels l:
 *		<x, q>	  ~ s * <l, q>				(unbiased: s = |x|^2 / <l, x>)
 *		|x - q|^2 ~ |x|^2 + |q|^2 - 2 <x, q>
 * Sums over codes of 1, 2, 4 and 8 bits are integer: every SIMD level gives the
 * same bits.
 *
 * Pure C without postgres.h; nothing allocates, locks or fails.
 */
#ifndef SWARM_QUANT_CODEC_H
#define SWARM_QUANT_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The largest dimension: 16,000 and the coordinate that inner product adds. */
#define SWARM_CODEC_MAX_DIMS	16001

/*
 * swarm_rotate: out = R in, the rotation of `dims` coordinates that `seed`
 * names; in and out may be the same array.  Orthogonal; O(dims log dims).
 */
extern void swarm_rotate(uint64_t seed, int dims, const float *in, float *out);

/* What a code looks like; made by swarm_codec_init, then never changed. */
typedef struct SwarmCodec
{
	int			dims;
	int			bits;			/* of the traversal code: 1, 2, 4, 8, 16 (IEEE
								 * half), 32 (float) */
	int			refine_bits;	/* further bits of the refine code; 0 none */
	uint32_t	code_size;		/* bytes of a traversal code, a multiple of 4 */
	uint32_t	refine_size;	/* bytes of a refine code, a multiple of 4 */
} SwarmCodec;

/*
 * swarm_codec_init: false when there is no such code.  bits 1, 2 and 4 may
 * have refine_bits with bits + refine_bits <= 8; 8, 16 and 32 have none.
 */
extern bool swarm_codec_init(SwarmCodec *codec, int dims, int bits,
							 int refine_bits);

/* What is kept beside the codes of one vector. */
typedef struct SwarmCodeFactors
{
	float		norm2;			/* |x|^2 */
	float		scale;			/* s of the traversal code; 0 when x is 0 */
	float		refine_scale;	/* s of traversal and refine code together */
} SwarmCodeFactors;

/*
 * swarm_codec_encode: code a vector of codec->dims finite coordinates.
 * `code` has room for code_size, `refine` for refine_size bytes (NULL when
 * there are none).  Every byte of both is written.
 */
extern void swarm_codec_encode(const SwarmCodec *codec, const float *x,
							   uint8_t *code, uint8_t *refine,
							   SwarmCodeFactors *factors);

/*
 * swarm_codec_decode: the vector that the codes stand for, s * l.  With refine
 * NULL the traversal code alone, and scale is its scale; else both.
 */
extern void swarm_codec_decode(const SwarmCodec *codec, const uint8_t *code,
							   const uint8_t *refine, float scale, float *x);

/*
 * A query, in the form that the kernels of one codec want.  Opaque, 64-byte
 * aligned, swarm_codec_query_size bytes long.
 */
typedef struct SwarmCodecQuery SwarmCodecQuery;

extern size_t swarm_codec_query_size(const SwarmCodec *codec);

/* swarm_codec_query: prepare a query from a rotated vector. */
extern void swarm_codec_query(const SwarmCodec *codec, const float *q,
							  SwarmCodecQuery *query);

/*
 * swarm_codec_dots: dots[i] ~ <l_i, q> for n traversal codes, so that
 * s_i * dots[i] estimates <x_i, q>.  Codes need no alignment.
 */
extern void swarm_codec_dots(const SwarmCodec *codec,
							 const SwarmCodecQuery *query,
							 const uint8_t *const *codes, int n, float *dots);

/* swarm_codec_refine_dot: the same for traversal and refine code together. */
extern float swarm_codec_refine_dot(const SwarmCodec *codec,
									const SwarmCodecQuery *query,
									const uint8_t *code,
									const uint8_t *refine);

/*
 * swarm_codec_error: the standard deviation, as a share of |x| |q|, of the
 * estimate of <x, q> by `bits` bits a dimension in `dims` dimensions.
 */
extern float swarm_codec_error(int bits, int dims);

/*
 * swarm_codec_dot_s8: sum of a[i] * b[i] over n signed bytes, each in -127 to
 * 127: the inner product of two codes of 8 bits without their scales.
 */
extern int32_t swarm_codec_dot_s8(const int8_t *a, const int8_t *b, size_t n);

#endif							/* SWARM_QUANT_CODEC_H */
