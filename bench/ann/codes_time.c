/*
 * codes_time.c
 *	  How fast the codes of src/quant are, for each SIMD level.
 *
 *	gcc -O2 -Isrc bench/ann/codes_time.c $(ls src/quant/[cq]*.c) -lm -o /tmp/codes_time
 *	/tmp/codes_time [LEVEL...]
 *
 * Nanoseconds a call, the best of several runs.  `dot` is one code of a batch of
 * 32 in the first cache, `cold` one of a batch of 32 at random in 256 MB.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "quant/codec.h"
#include "quant/quant.h"

#define RUNS	9
#define BATCH	32
#define COLD	(256 << 20)

static volatile float sink;

/*
 * now: nanoseconds.
 */
static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

#define BEST(result, times, what) \
	do { \
		(result) = 1e30; \
		for (int run = 0; run < RUNS; run++) \
		{ \
			double		start = now(); \
			double		took; \
			for (int time = 0; time < (times); time++) \
				what; \
			took = (now() - start) / (times); \
			if (took < (result)) \
				(result) = took; \
		} \
	} while (0)

/*
 * normal: about a draw of the standard normal distribution.
 */
static float
normal(void)
{
	double		sum = -6;

	for (int i = 0; i < 12; i++)
		sum += drand48();
	return sum;
}

/*
 * time_codec: one codec.
 */
static void
time_codec(int dims, int bits, int refine_bits, const float *x, uint8_t *cold)
{
	SwarmCodec	codec;
	SwarmCodecQuery *query;
	SwarmCodeFactors factors;
	const uint8_t *codes[BATCH];
	const uint8_t *far[BATCH];
	uint8_t    *code;
	uint8_t    *refine;
	float		dots[BATCH];
	double		prepare,
				encode,
				dot,
				away,
				refined = 0;

	swarm_codec_init(&codec, dims, bits, refine_bits);
	query = aligned_alloc(64, swarm_codec_query_size(&codec));
	code = malloc(codec.code_size * BATCH);
	refine = malloc(codec.refine_size + 1);
	for (int i = 0; i < BATCH; i++)
	{
		codes[i] = code + i * codec.code_size;
		swarm_codec_encode(&codec, x, code + i * codec.code_size, refine, &factors);
	}
	BEST(prepare, 300, swarm_codec_query(&codec, x, query));
	BEST(encode, 200, swarm_codec_encode(&codec, x, code, refine, &factors));
	BEST(dot, 1000, (swarm_codec_dots(&codec, query, codes, BATCH, dots), sink = dots[0]));
	BEST(away, 200,
		 {
			 for (int i = 0; i < BATCH; i++)
				 far[i] = cold + lrand48() % (COLD - codec.code_size);
			 swarm_codec_dots(&codec, query, far, BATCH, dots);
			 sink = dots[0];
		 });
	if (refine_bits > 0)
		BEST(refined, 1000, sink = swarm_codec_refine_dot(&codec, query, code, refine));
	printf("%4d  %2d+%d %7.0f %7.0f %7.1f %7.1f %7.1f\n", dims, bits, refine_bits,
		   prepare, encode, dot / BATCH, away / BATCH, refined);
	free(refine);
	free(code);
	free(query);
}

int
main(int argc, char **argv)
{
	static const int sizes[] = {384, 784, 1536};
	static const int codecs[][2] = {{1, 0}, {2, 0}, {4, 0}, {8, 0}, {16, 0}, {32, 0},
	{1, 4}, {2, 3}, {4, 1}, {4, 4}};
	uint8_t    *cold = calloc(COLD, 1);

	for (size_t i = 0; i < COLD; i += 64)
		cold[i] = i >> 12;
	for (int level = 0; level < SWARM_QUANT_LEVELS; level++)
	{
		const char *name = swarm_quant_level_name(level);
		bool		wanted = argc < 2;

		for (int i = 1; i < argc; i++)
			wanted |= strcmp(argv[i], name) == 0;
		if (!wanted || !swarm_quant_select(name))
			continue;
		for (size_t k = 0; k < sizeof(sizes) / sizeof(sizes[0]); k++)
		{
			int			dims = sizes[k];
			float	   *x = malloc(dims * sizeof(float));
			int8_t	   *bytes = malloc(dims);
			double		rotate,
						s8;

			for (int i = 0; i < dims; i++)
			{
				x[i] = normal();
				bytes[i] = x[i] * 30;
			}
			BEST(rotate, 500, swarm_rotate(1, dims, x, x));
			BEST(s8, 5000, sink = swarm_codec_dot_s8(bytes, bytes, dims));
			printf("%s, %d: rotate %.0f, dot_s8 %.1f\n"
				   "dims  bits   query  encode     dot    cold  refine\n",
				   name, dims, rotate, s8);
			for (size_t i = 0; i < sizeof(codecs) / sizeof(codecs[0]); i++)
				time_codec(dims, codecs[i][0], codecs[i][1], x, cold);
			free(bytes);
			free(x);
		}
	}
	return 0;
}
