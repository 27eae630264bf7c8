/*
 * codec.c
 *	  Codes of vectors: decoding, queries, and scores by the kernels of the
 *	  level in use.  See codec.h; quant_int.h has the layout of a code, and
 *	  codec_encode.c makes them.
 *
 * Codes of 1, 2 and 4 bits, and refine codes with them, quantize coordinates in
 * units of the vector's root mean square by the levels of quant_levels.c.  A
 * refine code of r bits is up to three codes of 4, 2 and 1 bits, one after the
 * other, whose fields continue that of the traversal code: all of them together
 * are the index of a level.
 */
#include "quant/codec.h"
#include "quant/quant_int.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define BLOCK		SWARM_CODEC_BLOCK

/* How many codes swarm_codec_dots prefetches before it needs them. */
#define AHEAD		4

/*
 * What the kernels want of a query.  Behind it: for bits 1, 2, 4 the query as
 * bytes, in the order of the fields; for 8, in the order of the dimensions; for
 * 16 and 32 as float.  Then, with refine bits, as int16_t.
 */
struct SwarmCodecQuery
{
	float		scale;			/* of the bytes */
	float		fine_scale;		/* of the int16_t */
	int32_t		factor;			/* <l, q> = scale * (factor * sum - offset) */
	int32_t		offset;
	SwarmCodecLevels levels;
	char		padding[128 - 4 * 4 - sizeof(SwarmCodecLevels)];
};

/* Which arrays follow; all 64-byte aligned when the query is. */
#define QUERY_S8(query)		((int8_t *) ((query) + 1))
#define QUERY_FLOAT(query)	((float *) ((query) + 1))

/*
 * round_up: the next multiple of a power of two.
 */
static inline size_t
round_up(size_t n, size_t to)
{
	return (n + to - 1) & ~(to - 1);
}

bool
swarm_codec_init(SwarmCodec *codec, int dims, int bits, int refine_bits)
{
	bool		small = bits == 1 || bits == 2 || bits == 4;

	if (dims < 1 || dims > SWARM_CODEC_MAX_DIMS)
		return false;
	if (!small && bits != 8 && bits != 16 && bits != 32)
		return false;
	if (refine_bits < 0 || (refine_bits > 0 && (!small || bits + refine_bits > 8)))
		return false;

	codec->dims = dims;
	codec->bits = bits;
	codec->refine_bits = refine_bits;
	codec->code_size = small ? swarm_codec_packed(dims, bits) :
		round_up((size_t) dims * (bits / 8), 4);
	codec->refine_size = 0;
	for (int w = 4; w >= 1; w /= 2)
		if (refine_bits & w)
			codec->refine_size += swarm_codec_packed(dims, w);
	return true;
}

/*
 * levels_of: the levels of all indexes, negative ones first.
 */
static void
levels_of(const SwarmQuantizer *quantizer, SwarmCodecLevels *levels)
{
	int			half = swarm_quantizer_segments(quantizer);
	int			rest;

	memset(levels, 0, sizeof(*levels));
	levels->rest_bits = swarm_quantizer_rest(quantizer);
	rest = (1 << levels->rest_bits) - 1;
	for (int i = 0; i < half; i++)
	{
		int			step = quantizer->step[i];

		levels->base[half + i] = quantizer->base[i];
		levels->step[half + i] = step;
		levels->base[half - 1 - i] = -(quantizer->base[i] + step * rest);
		levels->step[half - 1 - i] = step;
	}
}

/*
 * open_fields: a code of w bits for reading.
 */
static void
open_fields(SwarmCodecFields *fields, const uint8_t *code, size_t dims, int w)
{
	size_t		per_block = BLOCK * 8 / w;
	size_t		count = dims % per_block;
	size_t		size = swarm_codec_tail(count, w);
	uint64_t	mask = ((1u << w) - 1) * UINT64_C(0x0101010101010101);
	uint64_t	words[BLOCK / 8] = {0};

	fields->code = code;
	fields->width = w;
	fields->whole = dims / per_block * (8 / w);
	if (count == 0)
		return;
	memcpy(words, code + dims / per_block * BLOCK, size);
	memset(fields->tail + count / BLOCK * BLOCK, 0, BLOCK);
	/* what a field writes too much is zeros, or overwritten by the next */
	for (size_t k = 0; k * size < count; k++)
		for (size_t j = 0; j * 8 < size; j++)
		{
			uint64_t	word = (words[j] >> (w * k)) & mask;

			memcpy(fields->tail + k * size + j * 8, &word, 8);
		}
}

/*
 * open_code: traversal and refine code for reading, or the traversal code
 * alone when refine is NULL.  Returns the number of parts.
 */
static int
open_code(const SwarmCodec *codec, const uint8_t *code, const uint8_t *refine,
		  SwarmCodecFields *fields)
{
	int			parts = 1;

	open_fields(fields, code, codec->dims, codec->bits);
	if (refine != NULL)
		for (int w = 4; w >= 1; w /= 2)
			if (codec->refine_bits & w)
			{
				open_fields(&fields[parts++], refine, codec->dims, w);
				refine += swarm_codec_packed(codec->dims, w);
			}
	return parts;
}

/*
 * decode_wide: swarm_codec_decode for codes of 8 bits and more.
 */
static void
decode_wide(const SwarmCodec *codec, const uint8_t *code, float scale, float *x)
{
	for (int i = 0; i < codec->dims; i++)
	{
		float		level;
		uint16_t	half;

		if (codec->bits == 8)
			level = (int8_t) code[i];
		else if (codec->bits == 16)
		{
			memcpy(&half, code + i * sizeof(half), sizeof(half));
			level = swarm_codec_from_half(half);
		}
		else
			memcpy(&level, code + i * sizeof(level), sizeof(level));
		x[i] = scale * level;
	}
}

void
swarm_codec_decode(const SwarmCodec *codec, const uint8_t *code,
				   const uint8_t *refine, float scale, float *x)
{
	SwarmCodecFields fields[SWARM_CODEC_PARTS];
	SwarmCodecLevels levels;
	size_t		dims = codec->dims;
	int			parts;

	if (codec->bits >= 8)
	{
		decode_wide(codec, code, scale, x);
		return;
	}
	if (codec->refine_bits == 0)
		refine = NULL;
	levels_of(swarm_quantizer(codec->bits, refine != NULL ? codec->refine_bits : 0),
			  &levels);
	parts = open_code(codec, code, refine, fields);
	for (size_t first = 0; first < dims; first += BLOCK)
	{
		uint8_t		index[BLOCK];

		swarm_codec_indexes(fields, parts, first / BLOCK, index);
		for (size_t i = 0; i < BLOCK && first + i < dims; i++)
			x[first + i] = scale * swarm_codec_level(&levels, index[i]);
	}
}

/* ---------- queries ---------- */

/*
 * query_array: bytes of the first array behind a query.
 */
static size_t
query_array(const SwarmCodec *codec)
{
	size_t		dims = codec->dims;

	if (codec->bits < 8)
		return round_up(dims, BLOCK * 8 / codec->bits);
	return round_up(codec->bits == 8 ? dims : dims * sizeof(float), 64);
}

size_t
swarm_codec_query_size(const SwarmCodec *codec)
{
	size_t		size = sizeof(SwarmCodecQuery) + query_array(codec);

	if (codec->refine_bits > 0)
		size += round_up(codec->dims, BLOCK) * sizeof(int16_t);
	return round_up(size, 64);
}

/*
 * largest: the largest magnitude.
 */
static float
largest(const float *x, size_t n)
{
	float		max[8] = {0};
	size_t		i = 0;

	for (; i + 8 <= n; i += 8)
		for (int k = 0; k < 8; k++)
			max[k] = fabsf(x[i + k]) > max[k] ? fabsf(x[i + k]) : max[k];
	for (; i < n; i++)
		max[0] = fabsf(x[i]) > max[0] ? fabsf(x[i]) : max[0];
	for (int k = 1; k < 8; k++)
		max[0] = max[k] > max[0] ? max[k] : max[0];
	return max[0];
}

/*
 * round_bytes: out = x in units, to the nearest integer.  Returns their sum.
 */
static int32_t
round_bytes(const float *x, size_t n, float unit, int8_t *out)
{
	int32_t		sum = 0;

	for (size_t i = 0; i < n; i++)
	{
		out[i] = swarm_codec_nearest(x[i] * unit);
		sum += out[i];
	}
	return sum;
}

/*
 * query_fields: the query as bytes in the order of the fields of a code.
 * Returns their sum.
 */
static int32_t
query_fields(const SwarmCodec *codec, const float *q, float unit, int8_t *out)
{
	size_t		per_block = BLOCK * 8 / codec->bits;
	size_t		dims = codec->dims;
	int32_t		sum = 0;

	for (size_t first = 0; first < dims; first += per_block)
	{
		size_t		count = dims - first < per_block ? dims - first : per_block;
		size_t		size = swarm_codec_tail(count, codec->bits);
		int8_t	   *row = out + first;

		for (size_t i = 0; i < count; i += size, row += BLOCK)
			sum += round_bytes(q + first + i, count - i < size ? count - i : size,
							   unit, row);
	}
	return sum;
}

void
swarm_codec_query(const SwarmCodec *codec, const float *q,
				  SwarmCodecQuery *query)
{
	float		max = largest(q, codec->dims);
	int8_t	   *bytes = QUERY_S8(query);
	float		unit;
	int32_t		sum;

	memset(query, 0, swarm_codec_query_size(codec));
	if (codec->bits > 8)
	{
		memcpy(QUERY_FLOAT(query), q, codec->dims * sizeof(float));
		return;
	}
	if (max == 0)
		return;

	unit = swarm_codec_unit(SWARM_CODEC_QUERY_MAX, max);
	query->scale = 1 / unit;
	query->factor = codec->bits == 1 ? 2 : 1;
	if (codec->bits == 8)
	{
		round_bytes(q, codec->dims, unit, bytes);
		return;
	}
	sum = query_fields(codec, q, unit, bytes);
	query->offset = codec->bits == 1 ? sum : SWARM_CODEC_BIAS * sum;
	if (codec->refine_bits > 0)
	{
		int16_t    *fine = (int16_t *) (bytes + query_array(codec));

		levels_of(swarm_quantizer(codec->bits, codec->refine_bits), &query->levels);
		unit = swarm_codec_unit(SWARM_CODEC_FINE_MAX, max);
		query->fine_scale = 1 / unit;
		for (int i = 0; i < codec->dims; i++)
			fine[i] = swarm_codec_nearest(q[i] * unit);
	}
}

/* ---------- scores ---------- */

/*
 * prefetch: bring code i of n into the cache.
 */
static inline void
prefetch(const uint8_t *const *codes, int i, int n, size_t size)
{
	if (i < n)
		for (size_t k = 0; k < size; k += 64)
			__builtin_prefetch(codes[i] + k);
}

/*
 * dots_float: swarm_codec_dots for codes of 16 and 32 bits.
 */
static void
dots_float(const SwarmCodec *codec, const SwarmCodecQuery *query,
		   const uint8_t *const *codes, int n, float *dots)
{
	const SwarmCodecKernels *kernels = swarm_quant->codec;
	float		(*kernel) (const uint8_t *, const float *, size_t) =
	codec->bits == 16 ? kernels->dot_f16 : kernels->dot_f32;

	for (int i = 0; i < n; i++)
	{
		prefetch(codes, i + 1, n, codec->code_size);
		dots[i] = kernel(codes[i], QUERY_FLOAT(query), codec->dims);
	}
}

void
swarm_codec_dots(const SwarmCodec *codec, const SwarmCodecQuery *query,
				 const uint8_t *const *codes, int n, float *dots)
{
	const SwarmCodecKernels *kernels = swarm_quant->codec;
	int32_t		(*kernel) (const uint8_t *, const int8_t *, size_t);

	if (codec->bits > 8)
	{
		dots_float(codec, query, codes, n, dots);
		return;
	}
	kernel = codec->bits == 1 ? kernels->dot1 :
		codec->bits == 2 ? kernels->dot2 : kernels->dot4;
	for (int i = 1; i < AHEAD; i++)
		prefetch(codes, i, n, codec->code_size);
	for (int i = 0; i < n; i++)
	{
		int32_t		sum;

		prefetch(codes, i + AHEAD, n, codec->code_size);
		if (codec->bits == 8)
			sum = kernels->dot_s8((const int8_t *) codes[i], QUERY_S8(query),
								  codec->dims);
		else
			sum = kernel(codes[i], QUERY_S8(query), codec->code_size);
		dots[i] = query->scale * (float) (query->factor * sum - query->offset);
	}
}

float
swarm_codec_refine_dot(const SwarmCodec *codec, const SwarmCodecQuery *query,
					   const uint8_t *code, const uint8_t *refine)
{
	const int16_t *fine = (const int16_t *) (QUERY_S8(query) + query_array(codec));
	SwarmCodecFields fields[SWARM_CODEC_PARTS];
	int			parts = open_code(codec, code, refine, fields);
	int64_t		sum;

	sum = swarm_quant->codec->dot_levels(fields, parts,
										 round_up(codec->dims, BLOCK) / BLOCK,
										 fine, &query->levels);
	return query->fine_scale * (float) sum;
}

int32_t
swarm_codec_dot_s8(const int8_t *a, const int8_t *b, size_t n)
{
	return swarm_quant->codec->dot_s8(a, b, n);
}

/*
 * A code s l with <s l, x> = |x|^2 differs from x by a vector orthogonal to x,
 * of squared length |x|^2 D / (1 - D) where D is the quantizer's mean squared
 * error; its direction is that of chance among dims - 1.  The query's rounding
 * to bytes adds a like error, of a step of max / 127.
 */
float
swarm_codec_error(int bits, int dims)
{
	static const float quantizer_error[] = {
		1, 0.3634f, 0.1175f, 0.0348f, 0.00973f, 0.0026f, 0.0007f, 0.000187f
	};
	double		n = dims > 1 ? dims - 1 : 1;
	double		step;
	double		rounding;

	if (bits > 16)
		return FLT_EPSILON;
	if (bits > 8)
		return (float) (0.000244 / sqrt(n));
	step = sqrt(2 * log(2.0 * dims)) / SWARM_CODEC_QUERY_MAX;
	rounding = step * step / 12;
	if (bits == 8)
		return (float) sqrt(2 * rounding / n);
	return (float) sqrt((quantizer_error[bits] / (1 - quantizer_error[bits]) +
						 rounding) / n);
}
