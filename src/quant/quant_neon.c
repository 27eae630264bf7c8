/*
 * quant_neon.c
 *	  The kernels for NEON, which every aarch64 has: 4 floats a register.
 *
 * Two registers a sum hide the latency of the addition.  The rest of the
 * vector is done float by float.
 */
#include "quant/quant_int.h"

#ifdef SWARM_QUANT_ARM

#include <arm_neon.h>

#define WIDTH	4

/*
 * l2_squared: sum of the squared differences.
 */
static float
l2_squared(const float *a, const float *b, size_t n)
{
	float32x4_t sum0 = vdupq_n_f32(0);
	float32x4_t sum1 = vdupq_n_f32(0);
	float		sum;
	size_t		i = 0;

	for (; i + 2 * WIDTH <= n; i += 2 * WIDTH)
	{
		float32x4_t d0 = vsubq_f32(vld1q_f32(a + i), vld1q_f32(b + i));
		float32x4_t d1 = vsubq_f32(vld1q_f32(a + i + WIDTH),
								   vld1q_f32(b + i + WIDTH));

		sum0 = vfmaq_f32(sum0, d0, d0);
		sum1 = vfmaq_f32(sum1, d1, d1);
	}
	sum = vaddvq_f32(vaddq_f32(sum0, sum1));
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
	float32x4_t sum0 = vdupq_n_f32(0);
	float32x4_t sum1 = vdupq_n_f32(0);
	float		sum;
	size_t		i = 0;

	for (; i + 2 * WIDTH <= n; i += 2 * WIDTH)
	{
		sum0 = vfmaq_f32(sum0, vld1q_f32(a + i), vld1q_f32(b + i));
		sum1 = vfmaq_f32(sum1, vld1q_f32(a + i + WIDTH),
						 vld1q_f32(b + i + WIDTH));
	}
	sum = vaddvq_f32(vaddq_f32(sum0, sum1));
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
	float32x4_t ab = vdupq_n_f32(0);
	float32x4_t aa = vdupq_n_f32(0);
	float32x4_t bb = vdupq_n_f32(0);
	SwarmQuantCosine result;
	size_t		i = 0;

	for (; i + WIDTH <= n; i += WIDTH)
	{
		float32x4_t va = vld1q_f32(a + i);
		float32x4_t vb = vld1q_f32(b + i);

		ab = vfmaq_f32(ab, va, vb);
		aa = vfmaq_f32(aa, va, va);
		bb = vfmaq_f32(bb, vb, vb);
	}
	result.dot = vaddvq_f32(ab);
	result.norm_a = vaddvq_f32(aa);
	result.norm_b = vaddvq_f32(bb);
	for (; i < n; i++)
	{
		result.dot += a[i] * b[i];
		result.norm_a += a[i] * a[i];
		result.norm_b += b[i] * b[i];
	}
	return result;
}

const SwarmQuantKernels swarm_quant_neon = {
	.level = SWARM_QUANT_NEON,
	.l2_squared = l2_squared,
	.dot = dot,
	.cosine = cosine,
	.codec = &swarm_codec_scalar,
};

#else
typedef int swarm_quant_neon_unused;	/* a file may not be empty */
#endif							/* SWARM_QUANT_ARM */
