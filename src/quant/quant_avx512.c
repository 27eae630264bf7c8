/*
 * quant_avx512.c
 *	  The kernels for AVX-512 F: 16 floats a register.
 *
 * Two registers a sum hide the latency of the addition.  The rest of the
 * vector, fewer than 16 floats, is read under a mask.
 */
#include "quant/quant_int.h"

#ifdef SWARM_QUANT_X86

#include <immintrin.h>

#define TARGET	__attribute__((target("avx512f")))
#define WIDTH	16

/*
 * rest: up to WIDTH floats from p, zeros after them.
 */
TARGET static inline __m512
rest(const float *p, size_t count)
{
	__mmask16	mask = count >= WIDTH ? 0xffff : (1 << count) - 1;

	return _mm512_maskz_loadu_ps(mask, p);
}

/*
 * l2_squared: sum of the squared differences.
 */
TARGET static float
l2_squared(const float *a, const float *b, size_t n)
{
	__m512		sum0 = _mm512_setzero_ps();
	__m512		sum1 = _mm512_setzero_ps();
	size_t		i = 0;

	for (; i + 2 * WIDTH <= n; i += 2 * WIDTH)
	{
		__m512		d0 = _mm512_sub_ps(_mm512_loadu_ps(a + i),
									   _mm512_loadu_ps(b + i));
		__m512		d1 = _mm512_sub_ps(_mm512_loadu_ps(a + i + WIDTH),
									   _mm512_loadu_ps(b + i + WIDTH));

		sum0 = _mm512_fmadd_ps(d0, d0, sum0);
		sum1 = _mm512_fmadd_ps(d1, d1, sum1);
	}
	for (; i < n; i += WIDTH)
	{
		__m512		d = _mm512_sub_ps(rest(a + i, n - i), rest(b + i, n - i));

		sum0 = _mm512_fmadd_ps(d, d, sum0);
	}
	return _mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1));
}

/*
 * dot: sum of the products.
 */
TARGET static float
dot(const float *a, const float *b, size_t n)
{
	__m512		sum0 = _mm512_setzero_ps();
	__m512		sum1 = _mm512_setzero_ps();
	size_t		i = 0;

	for (; i + 2 * WIDTH <= n; i += 2 * WIDTH)
	{
		sum0 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i),
							   _mm512_loadu_ps(b + i), sum0);
		sum1 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + WIDTH),
							   _mm512_loadu_ps(b + i + WIDTH), sum1);
	}
	for (; i < n; i += WIDTH)
		sum0 = _mm512_fmadd_ps(rest(a + i, n - i), rest(b + i, n - i), sum0);
	return _mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1));
}

/*
 * cosine: the three products of a cosine, in one pass.
 */
TARGET static SwarmQuantCosine
cosine(const float *a, const float *b, size_t n)
{
	__m512		ab = _mm512_setzero_ps();
	__m512		aa = _mm512_setzero_ps();
	__m512		bb = _mm512_setzero_ps();
	SwarmQuantCosine result;

	for (size_t i = 0; i < n; i += WIDTH)
	{
		__m512		va = rest(a + i, n - i);
		__m512		vb = rest(b + i, n - i);

		ab = _mm512_fmadd_ps(va, vb, ab);
		aa = _mm512_fmadd_ps(va, va, aa);
		bb = _mm512_fmadd_ps(vb, vb, bb);
	}
	result.dot = _mm512_reduce_add_ps(ab);
	result.norm_a = _mm512_reduce_add_ps(aa);
	result.norm_b = _mm512_reduce_add_ps(bb);
	return result;
}

const SwarmQuantKernels swarm_quant_avx512 = {
	.level = SWARM_QUANT_AVX512,
	.l2_squared = l2_squared,
	.dot = dot,
	.cosine = cosine,
	.codec = &swarm_codec_avx2,
};

/* The same, with other kernels for codes: quant_avx512vnni.c. */
const SwarmQuantKernels swarm_quant_avx512vnni = {
	.level = SWARM_QUANT_AVX512VNNI,
	.l2_squared = l2_squared,
	.dot = dot,
	.cosine = cosine,
	.codec = &swarm_codec_avx512vnni,
};

#else
typedef int swarm_quant_avx512_unused;	/* a file may not be empty */
#endif							/* SWARM_QUANT_X86 */
