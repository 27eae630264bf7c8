/*
 * quant_sse.c
 *	  The kernels for SSE2, which every x86-64 has: 4 floats a register.
 *
 * Two registers a sum hide the latency of the addition.  The rest of the
 * vector is done float by float.
 */
#include "quant/quant_int.h"

#ifdef SWARM_QUANT_X86

#include <emmintrin.h>

#define WIDTH	4

/*
 * total: the sum of a register.
 */
static inline float
total(__m128 v)
{
	v = _mm_add_ps(v, _mm_movehl_ps(v, v));
	v = _mm_add_ss(v, _mm_shuffle_ps(v, v, 1));
	return _mm_cvtss_f32(v);
}

/*
 * l2_squared: sum of the squared differences.
 */
static float
l2_squared(const float *a, const float *b, size_t n)
{
	__m128		sum0 = _mm_setzero_ps();
	__m128		sum1 = _mm_setzero_ps();
	float		sum;
	size_t		i = 0;

	for (; i + 2 * WIDTH <= n; i += 2 * WIDTH)
	{
		__m128		d0 = _mm_sub_ps(_mm_loadu_ps(a + i), _mm_loadu_ps(b + i));
		__m128		d1 = _mm_sub_ps(_mm_loadu_ps(a + i + WIDTH),
									_mm_loadu_ps(b + i + WIDTH));

		sum0 = _mm_add_ps(sum0, _mm_mul_ps(d0, d0));
		sum1 = _mm_add_ps(sum1, _mm_mul_ps(d1, d1));
	}
	sum = total(_mm_add_ps(sum0, sum1));
	for (; i < n; i++)
		sum += (a[i] - b[i]) * (a[i] - b[i]);
	return sum;
}

/*
 * dot: sum of the products.
 */
static float
dot(const float *a, const float *b, size_t n)
{
	__m128		sum0 = _mm_setzero_ps();
	__m128		sum1 = _mm_setzero_ps();
	float		sum;
	size_t		i = 0;

	for (; i + 2 * WIDTH <= n; i += 2 * WIDTH)
	{
		sum0 = _mm_add_ps(sum0, _mm_mul_ps(_mm_loadu_ps(a + i),
										   _mm_loadu_ps(b + i)));
		sum1 = _mm_add_ps(sum1, _mm_mul_ps(_mm_loadu_ps(a + i + WIDTH),
										   _mm_loadu_ps(b + i + WIDTH)));
	}
	sum = total(_mm_add_ps(sum0, sum1));
	for (; i < n; i++)
		sum += a[i] * b[i];
	return sum;
}

/*
 * cosine: the three products of a cosine, in one pass.
 */
static SwarmQuantCosine
cosine(const float *a, const float *b, size_t n)
{
	__m128		ab = _mm_setzero_ps();
	__m128		aa = _mm_setzero_ps();
	__m128		bb = _mm_setzero_ps();
	SwarmQuantCosine result;
	size_t		i = 0;

	for (; i + WIDTH <= n; i += WIDTH)
	{
		__m128		va = _mm_loadu_ps(a + i);
		__m128		vb = _mm_loadu_ps(b + i);

		ab = _mm_add_ps(ab, _mm_mul_ps(va, vb));
		aa = _mm_add_ps(aa, _mm_mul_ps(va, va));
		bb = _mm_add_ps(bb, _mm_mul_ps(vb, vb));
	}
	result.dot = total(ab);
	result.norm_a = total(aa);
	result.norm_b = total(bb);
	for (; i < n; i++)
	{
		result.dot += a[i] * b[i];
		result.norm_a += a[i] * a[i];
		result.norm_b += b[i] * b[i];
	}
	return result;
}

const SwarmQuantKernels swarm_quant_sse = {
	.level = SWARM_QUANT_SSE,
	.l2_squared = l2_squared,
	.dot = dot,
	.cosine = cosine,
	.codec = &swarm_codec_scalar,
};

#else
typedef int swarm_quant_sse_unused; /* a file may not be empty */
#endif							/* SWARM_QUANT_X86 */
