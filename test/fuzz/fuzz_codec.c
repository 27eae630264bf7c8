/*
 * fuzz_codec.c
 *	  libFuzzer target: codes of vectors and the rotation, every SIMD level
 *	  against the scalar one.  With -DSTANDALONE a program that checks a fixed
 *	  list of cases.
 *
 * The input names a codec, a kind of vector and a seed.  Arrays have exactly
 * their size, so that the sanitizer sees a read past the end.
 */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quant/codec.h"
#include "quant/quant.h"
#include "quant/quant_int.h"

#define NCODES	5
#define KINDS	8

extern int	LLVMFuzzerTestOneInput(const unsigned char *data, size_t size);

static uint64_t state;

#define CHECK(ok) \
	do { \
		if (!(ok)) \
		{ \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #ok); \
			abort(); \
		} \
	} while (0)

/*
 * chance: the next 64 pseudo-random bits.
 */
static uint64_t
chance(void)
{
	return swarm_codec_word(state++, 0);
}

/*
 * normal: about a draw of the standard normal distribution.
 */
static float
normal(void)
{
	double		sum = -6;

	for (int i = 0; i < 12; i++)
		sum += (chance() >> 11) * 0x1p-53;
	return sum;
}

/*
 * fill: a vector of one kind.
 */
static void
fill(float *x, int dims, int kind)
{
	for (int i = 0; i < dims; i++)
		switch (kind)
		{
			case 0:
				x[i] = normal();
				break;
			case 1:
				x[i] = 1e18f * normal();
				break;
			case 2:
				x[i] = 1e-30f * normal();
				break;
			case 3:
				x[i] = 1;
				break;
			case 4:
				x[i] = i == dims / 2 ? -3 : 0;
				break;
			case 5:
				x[i] = 0;
				break;
			case 6:
				x[i] = normal() * normal() * normal() * normal();
				break;
			default:
				x[i] = (int) (chance() % 5) - 2;
		}
}

/*
 * exact_size: an array of random bytes.
 */
static void *
exact_size(size_t size)
{
	uint8_t    *p = malloc(size > 0 ? size : 1);

	for (size_t i = 0; i < size; i++)
		p[i] = chance();
	return p;
}

/*
 * dot: in double.
 */
static double
dot(const float *a, const float *b, int dims)
{
	return swarm_quant_dot_exact(a, b, dims);
}

/*
 * magnitude: sum of the magnitudes of the products.
 */
static double
magnitude(const float *a, const float *b, int dims)
{
	double		sum = 0;

	for (int i = 0; i < dims; i++)
		sum += fabs((double) a[i] * b[i]);
	return sum;
}

/*
 * query_error: how far the rounding of a query to `max` steps can move <x, q>.
 */
static double
query_error(const float *x, const float *q, int dims, int max)
{
	double		sum = 0;
	double		largest = 0;

	for (int i = 0; i < dims; i++)
	{
		sum += fabs((double) x[i]);
		largest = fmax(largest, fabs((double) q[i]));
	}
	return 0.5001 * sum * largest / max;
}

/*
 * near: two sums agree within `error` and what float rounds.
 */
static bool
near(double a, double b, double error, double size)
{
	return fabs(a - b) <= error + 1e-4 * size + 1e-37 || size > FLT_MAX / 8;
}

/*
 * check_rotation: it keeps inner products, and every level gives its bits.
 */
static void
check_rotation(int dims, int kind, uint64_t seed)
{
	size_t		size = dims * sizeof(float);
	float	   *x = exact_size(size);
	float	   *y = exact_size(size);
	float	   *rx = exact_size(size);
	float	   *ry = exact_size(size);
	double		lengths;

	fill(x, dims, kind);
	fill(y, dims, 0);
	swarm_quant_select("scalar");
	swarm_rotate(seed, dims, x, rx);
	swarm_rotate(seed, dims, y, ry);
	lengths = sqrt(dot(x, x, dims) * dot(y, y, dims));
	CHECK(fabs(dot(x, x, dims) - dot(rx, rx, dims)) <= 1e-5 * dot(x, x, dims));
	CHECK(fabs(dot(x, y, dims) - dot(rx, ry, dims)) <= 1e-5 * lengths);
	for (int level = 0; level < SWARM_QUANT_LEVELS; level++)
		if (swarm_quant_select(swarm_quant_level_name(level)))
		{
			memcpy(ry, x, size);
			swarm_rotate(seed, dims, ry, ry);
			CHECK(memcmp(rx, ry, size) == 0);
		}
	free(x);
	free(y);
	free(rx);
	free(ry);
}

/*
 * check_encoding: every byte is written, scales make <s l, x> = |x|^2, and the
 * traversal code does not depend on the refine code.
 */
static void
check_encoding(const SwarmCodec *codec, const float *x, const uint8_t *code,
			   const uint8_t *refine, const SwarmCodeFactors *factors)
{
	int			dims = codec->dims;
	double		norm2 = dot(x, x, dims);
	double		tolerance = codec->bits >= 16 ? 2e-3 : 1e-4;
	uint8_t    *code2 = exact_size(codec->code_size);
	uint8_t    *refine2 = exact_size(codec->refine_size);
	float	   *decoded = exact_size(dims * sizeof(float));
	SwarmCodeFactors factors2;
	SwarmCodec	plain;

	swarm_codec_encode(codec, x, code2, refine2, &factors2);
	CHECK(memcmp(code, code2, codec->code_size) == 0);
	CHECK(memcmp(refine, refine2, codec->refine_size) == 0);
	CHECK(memcmp(factors, &factors2, sizeof(factors2)) == 0);
	CHECK(swarm_codec_init(&plain, dims, codec->bits, 0));
	CHECK(plain.code_size == codec->code_size && plain.refine_size == 0);
	swarm_codec_encode(&plain, x, code2, NULL, &factors2);
	CHECK(memcmp(code, code2, codec->code_size) == 0);
	CHECK(factors->scale == factors2.scale);

	CHECK(norm2 > FLT_MAX / 2 || fabs(factors->norm2 - norm2) <= 1e-5 * norm2 + 1e-37);
	CHECK(isfinite(factors->norm2) && isfinite(factors->scale) && isfinite(factors->refine_scale));
	if (norm2 == 0)
		CHECK(factors->scale == 0 && factors->refine_scale == 0);
	swarm_codec_decode(codec, code, NULL, factors->scale, decoded);
	/* halves have no exponent for these */
	if (codec->bits != 16 || (norm2 > 1e-8 && norm2 < 1e9))
		CHECK(fabs(dot(decoded, x, dims) - norm2) <= tolerance * norm2);
	if (codec->refine_bits > 0)
	{
		swarm_codec_decode(codec, code, refine, factors->refine_scale, decoded);
		CHECK(fabs(dot(decoded, x, dims) - norm2) <= tolerance * norm2);
	}
	free(code2);
	free(refine2);
	free(decoded);
}

/*
 * check_scores: scores of one level are those of the scalar level and those of
 * the decoded vectors.
 */
static void
check_scores(const SwarmCodec *codec, const uint8_t *const *codes,
			 uint8_t *const *refines, const float *q,
			 const float *scalar_dots, const float *scalar_refined)
{
	int			dims = codec->dims;
	float	   *decoded = exact_size(dims * sizeof(float));
	SwarmCodecQuery *query = aligned_alloc(64, swarm_codec_query_size(codec));
	float		dots[NCODES];

	swarm_codec_query(codec, q, query);
	swarm_codec_dots(codec, query, codes, NCODES, dots);
	for (int i = 0; i < NCODES; i++)
	{
		double		size;
		double		exact;

		swarm_codec_decode(codec, codes[i], NULL, 1, decoded);
		exact = dot(decoded, q, dims);
		size = magnitude(decoded, q, dims);
		CHECK(near(dots[i], exact, codec->bits > 8 ? 0 :
				   query_error(decoded, q, dims, SWARM_CODEC_QUERY_MAX), size));
		if (codec->bits <= 8)
			CHECK(dots[i] == scalar_dots[i]);
		if (codec->refine_bits > 0)
		{
			float		refined = swarm_codec_refine_dot(codec, query, codes[i],
														 refines[i]);

			CHECK(refined == scalar_refined[i]);
			swarm_codec_decode(codec, codes[i], refines[i], 1, decoded);
			CHECK(near(refined, dot(decoded, q, dims),
					   query_error(decoded, q, dims, SWARM_CODEC_FINE_MAX),
					   magnitude(decoded, q, dims)));
		}
	}
	free(query);
	free(decoded);
}

/*
 * check_codec: one codec, vectors of one kind and random codes.
 */
static void
check_codec(int dims, int bits, int refine_bits, int kind)
{
	float	   *x = exact_size(dims * sizeof(float));
	float	   *q = exact_size(dims * sizeof(float));
	uint8_t    *codes[NCODES];
	uint8_t    *refines[NCODES];
	float		dots[NCODES];
	float		refined[NCODES] = {0};
	SwarmCodecQuery *query;
	SwarmCodec	codec;

	CHECK(swarm_codec_init(&codec, dims, bits, refine_bits));
	CHECK(codec.code_size % 4 == 0 && codec.refine_size % 4 == 0);
	CHECK(codec.code_size < ((size_t) dims * bits + 7) / 8 + 4);
	fill(q, dims, kind <= 3 ? kind : 0);
	for (int i = 0; i < NCODES; i++)
	{
		SwarmCodeFactors factors;

		codes[i] = exact_size(codec.code_size);
		refines[i] = exact_size(codec.refine_size);
		/* the first ones are real, the others are random if they may be */
		if (i >= 2 && bits <= 8)
		{
			/* all the largest levels, so that sums would overflow */
			if (i == 2)
			{
				memset(codes[i], 0xff, codec.code_size);
				memset(refines[i], 0xff, codec.refine_size);
			}
			for (size_t k = 0; bits == 8 && k < codec.code_size; k++)
				codes[i][k] = codes[i][k] == 0x80 ? 0x81 : codes[i][k];
			continue;
		}
		fill(x, dims, kind);
		swarm_codec_encode(&codec, x, codes[i], refines[i], &factors);
		check_encoding(&codec, x, codes[i], refines[i], &factors);
	}

	swarm_quant_select("scalar");
	query = aligned_alloc(64, swarm_codec_query_size(&codec));
	swarm_codec_query(&codec, q, query);
	swarm_codec_dots(&codec, query, (const uint8_t *const *) codes, NCODES, dots);
	for (int i = 0; i < NCODES && refine_bits > 0; i++)
		refined[i] = swarm_codec_refine_dot(&codec, query, codes[i], refines[i]);
	for (int level = 0; level < SWARM_QUANT_LEVELS; level++)
		if (swarm_quant_select(swarm_quant_level_name(level)))
			check_scores(&codec, (const uint8_t *const *) codes, refines, q,
						 dots, refined);
	free(query);
	for (int i = 0; i < NCODES; i++)
	{
		free(codes[i]);
		free(refines[i]);
	}
	free(x);
	free(q);
}

/*
 * check_s8: the inner product of two codes of 8 bits.
 */
static void
check_s8(size_t n)
{
	int8_t	   *a = exact_size(n);
	int8_t	   *b = exact_size(n);
	int64_t		sum = 0;

	for (size_t i = 0; i < n; i++)
	{
		a[i] = a[i] == -128 ? 127 : a[i];
		b[i] = b[i] == -128 ? -127 : b[i];
		sum += a[i] * b[i];
	}
	for (int level = 0; level < SWARM_QUANT_LEVELS; level++)
		if (swarm_quant_select(swarm_quant_level_name(level)))
			CHECK(swarm_codec_dot_s8(a, b, n) == sum);
	free(a);
	free(b);
}

/*
 * check_case: everything for one number of dimensions and kind of vector.
 */
static void
check_case(int dims, int bits, int refine_bits, int kind, uint64_t seed)
{
	SwarmCodec	codec;

	state = seed;
	check_rotation(dims, kind, seed);
	check_s8(dims);
	if (swarm_codec_init(&codec, dims, bits, refine_bits))
		check_codec(dims, bits, refine_bits, kind);
}

int
LLVMFuzzerTestOneInput(const unsigned char *data, size_t size)
{
	if (size < 7)
		return 0;
	check_case(1 + (data[0] | data[1] << 8) % (data[2] & 1 ? 300 : SWARM_CODEC_MAX_DIMS),
			   1 << data[3] % 6, data[4] % 8, data[5] % KINDS, data[6]);
	return 0;
}

#ifdef STANDALONE

/*
 * check_halves: every half survives, and what lies between two goes to the
 * nearer one.
 */
static void
check_halves(void)
{
	for (uint32_t half = 0; half < 0x7c00; half++)
	{
		float		x = swarm_codec_from_half(half);
		float		up = swarm_codec_from_half(half + 1);

		CHECK(swarm_codec_to_half(x) == half);
		CHECK(swarm_codec_to_half(-x) == (half | 0x8000));
		if (half + 1 == 0x7c00)
			continue;
		CHECK(x < up);
		CHECK(swarm_codec_to_half((x + up) / 2) == half + half % 2);
		CHECK(swarm_codec_to_half(nextafterf((x + up) / 2, x)) == half);
		CHECK(swarm_codec_to_half(nextafterf((x + up) / 2, up)) == half + 1);
	}
	CHECK(swarm_codec_to_half(1e18f) == 0x7bff && swarm_codec_to_half(-FLT_MAX) == 0xfbff);
	CHECK(swarm_codec_to_half(65519.0f) == 0x7bff && swarm_codec_to_half(1e-30f) == 0);
}

int
main(void)
{
	static const int dims[] = {1, 2, 3, 7, 8, 14, 28, 31, 47, 56, 63, 64, 65, 99, 112, 127, 128, 129, 224, 240, 255,
	383, 384, 385, 511, 512, 513, 768, 784, 1536, 4096, 16001};
	SwarmCodec	codec;

	CHECK(!swarm_codec_init(&codec, 0, 4, 0) && !swarm_codec_init(&codec, 16002, 4, 0) &&
		  !swarm_codec_init(&codec, 8, 3, 0) && !swarm_codec_init(&codec, 8, 8, 1) &&
		  !swarm_codec_init(&codec, 8, 4, 5) && !swarm_codec_init(&codec, 8, 4, -1));
	check_halves();
	for (size_t i = 0; i < sizeof(dims) / sizeof(dims[0]); i++)
		for (int bits = 1; bits <= 32; bits *= 2)
			for (int refine_bits = 0; refine_bits < 8; refine_bits++)
				for (int kind = 0; kind < (dims[i] > 2000 ? 4 : KINDS); kind++)
					if (swarm_codec_init(&codec, dims[i], bits, refine_bits))
						check_case(dims[i], bits, refine_bits, kind, i);
	for (int level = 0; level < SWARM_QUANT_LEVELS; level++)
		if (swarm_quant_available(level) != NULL)
			printf("%s ", swarm_quant_level_name(level));
	printf("ok\n");
	return 0;
}

#endif							/* STANDALONE */
