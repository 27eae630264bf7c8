/*
 * quant_scalar.c
 *	  The kernels in plain C: for every processor, and what the other levels
 *	  are tested against.
 *
 * Four sums are kept so that the additions do not wait for each other.
 */
#include "quant/quant_int.h"

/*
 * l2_squared: sum of the squared differences.
 */
static float
l2_squared(const float *a, const float *b, size_t n)
{
	float		sum[4] = {0};
	size_t		i = 0;

	for (; i + 4 <= n; i += 4)
		for (int k = 0; k < 4; k++)
		{
			float		d = a[i + k] - b[i + k];

			sum[k] += d * d;
		}
	for (; i < n; i++)
	{
		float		d = a[i] - b[i];

		sum[0] += d * d;
	}
	return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/*
 * dot: sum of the products.
 */
static float
dot(const float *a, const float *b, size_t n)
{
	float		sum[4] = {0};
	size_t		i = 0;

	for (; i + 4 <= n; i += 4)
		for (int k = 0; k < 4; k++)
			sum[k] += a[i + k] * b[i + k];
	for (; i < n; i++)
		sum[0] += a[i] * b[i];
	return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/*
 * cosine: the three products of a cosine.
 */
static SwarmQuantCosine
cosine(const float *a, const float *b, size_t n)
{
	SwarmQuantCosine result;

	result.dot = dot(a, b, n);
	result.norm_a = dot(a, a, n);
	result.norm_b = dot(b, b, n);
	return result;
}

const SwarmQuantKernels swarm_quant_scalar = {
	.level = SWARM_QUANT_SCALAR,
	.l2_squared = l2_squared,
	.dot = dot,
	.cosine = cosine,
};

double
swarm_quant_l2_squared_exact(const float *a, const float *b, size_t n)
{
	double		sum = 0;

	for (size_t i = 0; i < n; i++)
	{
		double		d = (double) a[i] - (double) b[i];

		sum += d * d;
	}
	return sum;
}

double
swarm_quant_dot_exact(const float *a, const float *b, size_t n)
{
	double		sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += (double) a[i] * (double) b[i];
	return sum;
}
