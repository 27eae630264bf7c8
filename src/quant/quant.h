/*
 * quant.h
 *	  Kernels over vectors of float: distances, with one version a SIMD level
 *	  chosen at load, and sign hashes.
 *
 * Everything in src/quant is pure C without postgres.h, so that it can be
 * fuzzed and tested outside a server.  Nothing here allocates, locks or fails.
 */
#ifndef SWARM_QUANT_H
#define SWARM_QUANT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * SIMD levels, from the most portable to the widest.  A level is available
 * when the library was compiled for its architecture and the processor and
 * the operating system support it.
 */
typedef enum SwarmQuantLevel
{
	SWARM_QUANT_SCALAR,
	SWARM_QUANT_SSE,
	SWARM_QUANT_AVX2,			/* with FMA */
	SWARM_QUANT_AVX512,			/* F */
	SWARM_QUANT_AVX512VNNI,		/* F, BW, VL, VNNI, VPOPCNTDQ */
	SWARM_QUANT_NEON
} SwarmQuantLevel;

#define SWARM_QUANT_LEVELS	(SWARM_QUANT_NEON + 1)

/* What a cosine needs, from one pass over both vectors. */
typedef struct SwarmQuantCosine
{
	float		dot;			/* a . b */
	float		norm_a;			/* a . a */
	float		norm_b;			/* b . b */
} SwarmQuantCosine;

/*
 * The kernels of one level.  Vectors need the alignment of a float only.
 * Sums are accumulated as float, so the last bits differ between levels.
 */
typedef struct SwarmQuantKernels
{
	SwarmQuantLevel level;
	float		(*l2_squared) (const float *a, const float *b, size_t n);
	float		(*dot) (const float *a, const float *b, size_t n);
	SwarmQuantCosine (*cosine) (const float *a, const float *b, size_t n);
	const struct SwarmCodecKernels *codec;	/* for codec.c and quant_rotate.c */
} SwarmQuantKernels;

/* The kernels in use: scalar until swarm_quant_init ran. */
extern const SwarmQuantKernels *swarm_quant;

/* swarm_quant_init: choose the best level that is available. */
extern void swarm_quant_init(void);

/*
 * swarm_quant_select: use the level with this name ("auto": the best one).
 * Returns false, and changes nothing, when there is no such level or it is
 * not available here.
 */
extern bool swarm_quant_select(const char *name);

/* swarm_quant_find: a level by name, "auto" included; NULL as above. */
extern const SwarmQuantKernels *swarm_quant_find(const char *name);

/* swarm_quant_available: kernels of a level; NULL when not available. */
extern const SwarmQuantKernels *swarm_quant_available(SwarmQuantLevel level);

/* swarm_quant_level_name: the name of a level, as the setting spells it. */
extern const char *swarm_quant_level_name(SwarmQuantLevel level);

/*
 * The same sums in double, in index order: for values whose squares leave
 * float's range.  Products are exact and a sum of doubles cannot overflow.
 */
extern double swarm_quant_l2_squared_exact(const float *a, const float *b,
										   size_t n);
extern double swarm_quant_dot_exact(const float *a, const float *b, size_t n);

/*
 * swarm_quant_simhash: the sign bits of `bits` random projections of v.
 *
 * `work` has room for swarm_quant_simhash_work(n) doubles; `out` for
 * (bits + 7) / 8 bytes, and gets bit 0 in the highest bit of byte 0 and zeros
 * after the last bit.  n is at least 1.  The same bits on every platform for
 * finite input; see quant_simhash.c for the construction.
 */
extern void swarm_quant_simhash(const float *v, size_t n, uint8_t *out,
								size_t bits, double *work);
extern size_t swarm_quant_simhash_work(size_t n);

#endif							/* SWARM_QUANT_H */
