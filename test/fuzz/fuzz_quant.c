/*
 * fuzz_quant.c
 *	  libFuzzer target: every SIMD level against double precision, and sign
 *	  hashes.
 *
 * The input is two vectors of half its floats each, at any alignment.  NaN
 * and infinity may come; then levels must agree on being not finite.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "quant/quant.h"

#define MAX_DIMS	1024

extern int	LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

/*
 * check: a kernel's sum is near the exact one, or out of float's range where
 * terms of that size add up.
 */
static void
check(double sum, double exact, double magnitude)
{
	if (!isfinite(magnitude) || magnitude > FLT_MAX / 4)
		return;
	if (!(fabs(sum - exact) <= magnitude * MAX_DIMS * FLT_EPSILON + 1e-30))
		abort();
}

/*
 * check_level: all kernels of one level.
 */
static void
check_level(const SwarmQuantKernels *kernels, const float *a, const float *b,
			size_t n)
{
	double		l2 = swarm_quant_l2_squared_exact(a, b, n);
	double		dot = swarm_quant_dot_exact(a, b, n);
	double		norm_a = swarm_quant_dot_exact(a, a, n);
	double		norm_b = swarm_quant_dot_exact(b, b, n);
	SwarmQuantCosine cosine = kernels->cosine(a, b, n);

	check(kernels->l2_squared(a, b, n), l2, norm_a + norm_b);
	check(kernels->dot(a, b, n), dot, norm_a + norm_b);
	check(cosine.dot, dot, norm_a + norm_b);
	check(cosine.norm_a, norm_a, norm_a);
	check(cosine.norm_b, norm_b, norm_b);
}

int
LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
	size_t		n = size / (2 * sizeof(float));
	float	   *a;
	float	   *b;
	double	   *work;
	uint8_t    *hash;
	size_t		bits;

	if (n == 0 || n > MAX_DIMS)
		return 0;
	/* exact sizes, so that the sanitizer sees a read past the end */
	a = malloc(n * sizeof(float));
	b = malloc(n * sizeof(float));
	memcpy(a, data, n * sizeof(float));
	memcpy(b, data + n * sizeof(float), n * sizeof(float));

	for (int level = 0; level < SWARM_QUANT_LEVELS; level++)
		if (swarm_quant_available(level) != NULL)
			check_level(swarm_quant_available(level), a, b, n);

	bits = 1 + (data[0] | data[1] << 8) % 2048;
	work = malloc(swarm_quant_simhash_work(n) * sizeof(double));
	hash = malloc((bits + 7) / 8);
	swarm_quant_simhash(a, n, hash, bits, work);
	if (bits % 8 != 0 && (hash[bits / 8] & (0xFF >> bits % 8)) != 0)
		abort();

	free(hash);
	free(work);
	free(b);
	free(a);
	return 0;
}
