/*
 * quant_rotate.c
 *	  The rotation of codec.h: Hadamard transforms and a Kac walk.
 *
 * The construction, for d dimensions; m is the largest power of two that is at
 * most d, and h = d / 2 rounded down.  Four times, r = 0, 1, 2, 3:
 *
 *	1. for each i, x[i] = -x[i] when bit i % 64 of word(seed, r, i / 64) is set
 *	2. y = H y / sqrt(m), the fast Walsh-Hadamard transform in natural order
 *	   (half-distances 1, 2, 4, ...), for y = x[0..m-1] when r is even and
 *	   y = x[d-m..d-1] when r is odd
 *	3. unless d = m, for each i < h: x[i], x[i+d-h] = their sum / sqrt(2), their
 *	   difference / sqrt(2)
 *
 * word(seed, r, w) is output number w of splitmix64 from the state that is
 * output number r of splitmix64 from the state `seed`.
 *
 * Every level adds, subtracts and multiplies the same pairs in the same order,
 * with no product in a sum, so the bits do not depend on the level.
 */
#include "quant/codec.h"
#include "quant/quant_int.h"

#include <string.h>

#define ROUNDS		4
#define SQRT_HALF	0.70710678f

void
swarm_rotate(uint64_t seed, int dims, const float *in, float *out)
{
	const SwarmCodecKernels *kernels = swarm_quant->codec;
	size_t		m = 1;
	size_t		h = dims / 2;
	float		scale = 1;
	bool		even = true;

	/* halved every other time, and multiplied by sqrt(1/2) once at the end */
	for (; m * 2 <= (size_t) dims; m *= 2)
	{
		even = !even;
		if (even)
			scale *= 0.5f;
	}
	if (!even)
		scale *= SQRT_HALF;
	if (out != in)
		memcpy(out, in, dims * sizeof(float));
	for (int round = 0; round < ROUNDS; round++)
	{
		kernels->flip(out, dims, swarm_codec_word(seed, round));
		kernels->hadamard(round % 2 == 0 ? out : out + (dims - m), m, scale);
		if ((size_t) dims != m)
			kernels->mix(out, out + (dims - h), h, SQRT_HALF);
	}
}
