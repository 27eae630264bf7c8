/*
 * vector_distance.c
 *	  Distances of float vectors for SQL: range and special cases around the
 *	  kernels of src/quant.
 *
 * The kernels sum in float.  A finite vector can have a square that float
 * does not hold (1e20), or one that vanishes (1e-30): both show in the sum,
 * and only then the sum is done again in double.
 */
#include "vector/vector.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>

#include "quant/quant.h"

/*
 * Below this, terms of the sum may have been subnormal or zero.
 */
#define SMALLEST_TRUSTED	(FLT_MIN / FLT_EPSILON)

/*
 * is_trusted: a sum of squares that float arithmetic got right.
 */
static inline bool
is_trusted(float sum)
{
	return sum >= SMALLEST_TRUSTED && sum <= FLT_MAX;
}

double
swarm_vector_l2_distance(const float *a, const float *b, size_t n)
{
	float		sum = swarm_quant->l2_squared(a, b, n);

	if (is_trusted(sum))
		return sqrt(sum);
	return sqrt(swarm_quant_l2_squared_exact(a, b, n));
}

double
swarm_vector_inner_product(const float *a, const float *b, size_t n)
{
	float		sum = swarm_quant->dot(a, b, n);

	if (fabsf(sum) >= SMALLEST_TRUSTED && fabsf(sum) <= FLT_MAX)
		return sum;
	return swarm_quant_dot_exact(a, b, n);
}

double
swarm_vector_cosine_distance(const float *a, const float *b, size_t n)
{
	SwarmQuantCosine c = swarm_quant->cosine(a, b, n);
	double		similarity;

	if (is_trusted(c.norm_a) && is_trusted(c.norm_b))
		similarity = c.dot / sqrt((double) c.norm_a * c.norm_b);
	else
		similarity = swarm_quant_dot_exact(a, b, n) /
			(sqrt(swarm_quant_dot_exact(a, a, n)) *
			 sqrt(swarm_quant_dot_exact(b, b, n)));

	/* rounding; NaN stays, for a zero vector */
	if (similarity > 1)
		similarity = 1;
	if (similarity < -1)
		similarity = -1;
	return 1 - similarity;
}
