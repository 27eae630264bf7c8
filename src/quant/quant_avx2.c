/*
 * quant_avx2.c
 *	  The kernels for AVX2 with FMA: 8 floats a register.
 *
 * Two registers a sum hide the latency of the addition.  The rest of the
 * vector is done float by float.
 */
#include "quant/quant_int.h"

#ifdef SWARM_QUANT_X86

#include <immintrin.h>

#define TARGET	__attribute__((target("avx2,fma")))
#define WIDTH	8

/*
 * total: the sum of a register.
 */
TARGET static inline float
total(__m256 v)
{
	__m128		half = _mm_add_ps(_mm256_castps256_ps128(v),
								  _mm256_extractf128_ps(v, 1));

	half = _mm_add_ps(half, _mm_movehl_ps(half, half));
	half = _mm_add_ss(half, _mm_shuffle_ps(half, half, 1));
	return _mm_cvtss_f32(half);
}

/*
 * l2_squared: sum of the squared differences.
 */
TARGET static float
l2_squared(const float *a, const float *b, size_t n)
{
	__m256		sum0 = _mm256_setzero_ps();
	__m256		sum1 = _mm256_setzero_ps();
	float		sum;
	size_t		i = 0;

	for (; i + 2 * WIDTH <= n; i += 2 * WIDTH)
	{
		__m256		d0 = _mm256_sub_ps(_mm256_loadu_ps(a + i),
									   _mm256_loadu_ps(b + i));
		__m256		d1 = _mm256_sub_ps(_mm256_loadu_ps(a + i + WIDTH),
									   _mm256_loadu_ps(b + i + WIDTH));

		sum0 = _mm256_fmadd_ps(d0, d0, sum0);
		sum1 = _mm256_fmadd_ps(d1, d1, sum1);
	}
	sum = total(_mm256_add_ps(sum0, sum1));
	for (; i < n; i++)
		sum += (a[i] - b[i]) * (a[i] - b[i]);
	return sum;
}

/*
 * dot: sum of the products.
 */
TARGET static float
dot(const float *a, const float *b, size_t n)
{
	__m256		sum0 = _mm256_setzero_ps();
	__m256		sum1 = _mm256_setzero_ps();
	float		sum;
	size_t		i = 0;

	for (; i + 2 * WIDTH <= n; i += 2 * WIDTH)
	{
		sum0 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i),
							   _mm256_loadu_ps(b + i), sum0);
		sum1 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + WIDTH),
							   _mm256_loadu_ps(b + i + WIDTH), sum1);
	}
	sum = total(_mm256_add_ps(sum0, sum1));
	for (; i < n; i++)
		sum += a[i] * b[i];
	return sum;
}

/*
 * cosine: the three products of a cosine, in one pass.
 */
TARGET static SwarmQuantCosine
cosine(const float *a, const float *b, size_t n)
{
	__m256		ab = _mm256_setzero_ps();
	__m256		aa = _mm256_setzero_ps();
	__m256		bb = _mm256_setzero_ps();
	SwarmQuantCosine result;
	size_t		i = 0;

	for (; i + WIDTH <= n; i += WIDTH)
	{
		__m256		va = _mm256_loadu_ps(a + i);
		__m256		vb = _mm256_loadu_ps(b + i);

		ab = _mm256_fmadd_ps(va, vb, ab);
		aa = _mm256_fmadd_ps(va, va, aa);
		bb = _mm256_fmadd_ps(vb, vb, bb);
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

const SwarmQuantKernels swarm_quant_avx2 = {
	.level = SWARM_QUANT_AVX2,
	.l2_squared = l2_squared,
	.dot = dot,
	.cosine = cosine,
};

#else
typedef int swarm_quant_avx2_unused;	/* a file may not be empty */
#endif							/* SWARM_QUANT_X86 */
