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

/*
 * dot_fields: sum of q times table[field] over a code of w bits; quant_int.h
 * describes both.  Inlined with a constant w.
 */
static inline int32_t
dot_fields(const uint8_t *code, const int8_t *q, size_t size, int w,
		   const uint8_t *table)
{
	int			mask = (1 << w) - 1;
	int32_t		sum = 0;

	for (size_t i = 0; i < size; i++)
	{
		const int8_t *at = q + i / SWARM_CODEC_BLOCK *
		(SWARM_CODEC_BLOCK * 8 / w) + i % SWARM_CODEC_BLOCK;

		for (int k = 0; k < 8 / w; k++)
			sum += table[(code[i] >> (w * k)) & mask] * at[SWARM_CODEC_BLOCK * k];
	}
	return sum;
}

/*
 * dot1: sum of q where the bit is set.
 */
static int32_t
dot1(const uint8_t *code, const int8_t *q, size_t size)
{
	static const uint8_t bits[2] = {0, 1};

	return dot_fields(code, q, size, 1, bits);
}

/*
 * dot2: sum of q times the level of 2 bits.
 */
static int32_t
dot2(const uint8_t *code, const int8_t *q, size_t size)
{
	return dot_fields(code, q, size, 2, swarm_codec_lut2);
}

/*
 * dot4: sum of q times the level of 4 bits.
 */
static int32_t
dot4(const uint8_t *code, const int8_t *q, size_t size)
{
	return dot_fields(code, q, size, 4, swarm_codec_lut4);
}

/*
 * dot_s8: sum of the products of signed bytes.
 */
static int32_t
dot_s8(const int8_t *a, const int8_t *b, size_t n)
{
	int32_t		sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += a[i] * b[i];
	return sum;
}

/*
 * dot_f16: sum of q times halves.
 */
static float
dot_f16(const uint8_t *code, const float *q, size_t n)
{
	float		sum = 0;

	for (size_t i = 0; i < n; i++)
	{
		uint16_t	half;

		memcpy(&half, code + i * sizeof(half), sizeof(half));
		sum += swarm_codec_from_half(half) * q[i];
	}
	return sum;
}

/*
 * dot_f32: sum of q times floats.
 */
static float
dot_f32(const uint8_t *code, const float *q, size_t n)
{
	float		sum = 0;

	for (size_t i = 0; i < n; i++)
	{
		float		x;

		memcpy(&x, code + i * sizeof(x), sizeof(x));
		sum += x * q[i];
	}
	return sum;
}

/*
 * dot_levels: sum of q times the levels of both codes together.
 */
static int64_t
dot_levels(const SwarmCodecFields *fields, int parts, size_t groups,
		   const int16_t *q, const SwarmCodecLevels *levels)
{
	int64_t		sum = 0;

	for (size_t group = 0; group < groups; group++, q += SWARM_CODEC_BLOCK)
	{
		uint8_t		index[SWARM_CODEC_BLOCK];

		swarm_codec_indexes(fields, parts, group, index);
		for (int j = 0; j < SWARM_CODEC_BLOCK; j++)
			sum += swarm_codec_level(levels, index[j]) * q[j];
	}
	return sum;
}

/*
 * flip: pseudo-random changes of sign, without branches.
 */
static void
flip(float *x, size_t n, uint64_t key)
{
	for (size_t i = 0; i < n; i += 64)
	{
		uint64_t	word = swarm_codec_word(key, i / 64);

		for (size_t j = i; j < n && j < i + 64; j++, word >>= 1)
		{
			uint32_t	bits;

			memcpy(&bits, &x[j], sizeof(bits));
			bits ^= (uint32_t) word << 31;
			memcpy(&x[j], &bits, sizeof(bits));
		}
	}
}

/*
 * stage: one stage of a Hadamard transform.  Copies of four floats let the
 * compiler use registers of four.
 */
static inline void
stage(float *x, size_t n, size_t half)
{
	for (size_t i = 0; i < n; i += 2 * half)
		for (size_t j = i; j < i + half; j += 4)
		{
			float		a[4];
			float		b[4];
			float		sum[4];
			float		difference[4];

			memcpy(a, x + j, sizeof(a));
			memcpy(b, x + j + half, sizeof(b));
			for (int k = 0; k < 4; k++)
				sum[k] = a[k] + b[k];
			for (int k = 0; k < 4; k++)
				difference[k] = a[k] - b[k];
			memcpy(x + j, sum, sizeof(sum));
			memcpy(x + j + half, difference, sizeof(difference));
		}
}

/*
 * hadamard: the Hadamard transform, the first two stages in one pass.
 */
static void
hadamard(float *x, size_t n, float scale)
{
	if (n == 2)
	{
		float		a = x[0];

		x[0] = a + x[1];
		x[1] = a - x[1];
	}
	for (size_t i = 0; i + 4 <= n; i += 4)
	{
		float		ab = x[i] + x[i + 1];
		float		a_b = x[i] - x[i + 1];
		float		cd = x[i + 2] + x[i + 3];
		float		c_d = x[i + 2] - x[i + 3];

		x[i] = ab + cd;
		x[i + 1] = a_b + c_d;
		x[i + 2] = ab - cd;
		x[i + 3] = a_b - c_d;
	}
	for (size_t half = 4; half < n; half *= 2)
		stage(x, n, half);
	for (size_t i = 0; i < n; i++)
		x[i] *= scale;
}

/*
 * mix: sums and differences of two arrays.
 */
static void
mix(float *a, float *b, size_t n, float scale)
{
	for (size_t i = 0; i < n; i++)
	{
		float		sum = a[i] + b[i];
		float		difference = a[i] - b[i];

		a[i] = sum * scale;
		b[i] = difference * scale;
	}
}

const SwarmCodecKernels swarm_codec_scalar = {
	.dot1 = dot1,
	.dot2 = dot2,
	.dot4 = dot4,
	.dot_s8 = dot_s8,
	.dot_f16 = dot_f16,
	.dot_f32 = dot_f32,
	.dot_levels = dot_levels,
	.flip = flip,
	.hadamard = hadamard,
	.mix = mix,
};

const SwarmQuantKernels swarm_quant_scalar = {
	.level = SWARM_QUANT_SCALAR,
	.l2_squared = l2_squared,
	.dot = dot,
	.cosine = cosine,
	.codec = &swarm_codec_scalar,
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
