/*
 * codec.c
 *	  Codes of vectors: encoding, decoding, and scores by the kernels of the
 *	  level in use.  See codec.h; quant_int.h has the layout of a code.
 *
 * Codes of 1, 2 and 4 bits, and refine codes with them, quantize coordinates in
 * units of the vector's root mean square by the levels of quant_levels.c.  A
 * refine code of r bits is up to three codes of 4, 2 and 1 bits, one after the
 * other, whose fields continue that of the traversal code: all of them together
 * are the index of a level.
 *
 * A vector is taken in chunks of SWARM_CODEC_CHUNK dimensions, as indexes of a
 * byte a dimension, so that no memory is allocated.
 */
#include "quant/codec.h"
#include "quant/quant_int.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define CHUNK		SWARM_CODEC_CHUNK
#define BLOCK		SWARM_CODEC_BLOCK
#define HALF_MAX	65504.0f

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

/*
 * tail_size: bytes of a last block of `count` dimensions, w bits each.
 */
static inline size_t
tail_size(size_t count, int w)
{
	return round_up((count * w + 7) / 8, 4);
}

/*
 * packed_size: bytes of a code of w bits a dimension.
 */
static size_t
packed_size(size_t dims, int w)
{
	size_t		per_block = BLOCK * 8 / w;

	return dims / per_block * BLOCK + tail_size(dims % per_block, w);
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
	codec->code_size = small ? packed_size(dims, bits) :
		round_up((size_t) dims * (bits / 8), 4);
	codec->refine_size = 0;
	for (int w = 4; w >= 1; w /= 2)
		if (refine_bits & w)
			codec->refine_size += packed_size(dims, w);
	return true;
}

/*
 * quantizer_of: the quantizer of so many bits.
 */
static const SwarmQuantizer *
quantizer_of(int bits, int refine_bits)
{
	const SwarmQuantizer *quantizer = swarm_quantizers;

	while (quantizer->bits != bits || quantizer->refine_bits != refine_bits)
		quantizer++;
	return quantizer;
}

/*
 * rest_bits: bits of an index behind those that name the segment.
 */
static inline int
rest_bits(const SwarmQuantizer *quantizer)
{
	int			bits = quantizer->bits + quantizer->refine_bits;

	return bits > 4 ? bits - 4 : 0;
}

/*
 * segments: how many segments the positive half has.
 */
static inline int
segments(const SwarmQuantizer *quantizer)
{
	int			bits = quantizer->bits + quantizer->refine_bits;

	return bits > 4 ? 8 : 1 << (bits - 1);
}

/*
 * levels_of: the levels of all indexes, negative ones first.
 */
static void
levels_of(const SwarmQuantizer *quantizer, SwarmCodecLevels *levels)
{
	int			half = segments(quantizer);
	int			rest;

	memset(levels, 0, sizeof(*levels));
	levels->rest_bits = rest_bits(quantizer);
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

/* ---------- packing ---------- */

/*
 * pack_words: out[j] = the field of w bits at `shift` of each index, where
 * byte j of the result takes field k from index[k * size + j].  `size` is a
 * multiple of 4.  Bytes are handled in words; no field crosses a byte.
 */
static void
pack_words(const uint8_t *index, size_t size, int w, int shift, uint8_t *out)
{
	uint32_t	mask = ((1u << w) - 1) * UINT32_C(0x01010101);

	for (size_t j = 0; j < size; j += 4)
	{
		uint32_t	packed = 0;

		for (int k = 0; k < 8 / w; k++)
		{
			uint32_t	word;

			memcpy(&word, index + k * size + j, 4);
			packed |= ((word >> shift) & mask) << (w * k);
		}
		memcpy(out + j, &packed, 4);
	}
}

/*
 * unpack_words: the reverse; fields of w bits are appended to the indexes.
 */
static void
unpack_words(const uint8_t *packed, size_t size, int w, uint8_t *index)
{
	uint32_t	mask = ((1u << w) - 1) * UINT32_C(0x01010101);

	for (size_t j = 0; j < size; j += 4)
	{
		uint32_t	fields;

		memcpy(&fields, packed + j, 4);
		for (int k = 0; k < 8 / w; k++)
		{
			uint32_t	word;

			memcpy(&word, index + k * size + j, 4);
			word = (word << w) | ((fields >> (w * k)) & mask);
			memcpy(index + k * size + j, &word, 4);
		}
	}
}

/*
 * pack: code `count` indexes, at most a chunk; indexes behind them, up to the
 * end of the chunk, are 0.
 */
static void
pack(const uint8_t *index, size_t count, int w, int shift, uint8_t *out)
{
	size_t		per_block = BLOCK * 8 / w;
	size_t		i = 0;

	for (; i + per_block <= count; i += per_block, out += BLOCK)
		pack_words(index + i, BLOCK, w, shift, out);
	if (i < count)
		pack_words(index + i, tail_size(count - i, w), w, shift, out);
}

/*
 * unpack: the reverse.
 */
static void
unpack(const uint8_t *packed, size_t count, int w, uint8_t *index)
{
	size_t		per_block = BLOCK * 8 / w;
	size_t		i = 0;

	for (; i + per_block <= count; i += per_block, packed += BLOCK)
		unpack_words(packed, BLOCK, w, index + i);
	if (i < count)
		unpack_words(packed, tail_size(count - i, w), w, index + i);
}

/*
 * pack_chunk: traversal and refine code of the indexes of a chunk, which starts
 * at dimension `first`.
 */
static void
pack_chunk(const SwarmCodec *codec, size_t first, const uint8_t *index,
		   size_t count, uint8_t *code, uint8_t *refine)
{
	int			rest = codec->refine_bits;

	pack(index, count, codec->bits, rest, code + first * codec->bits / 8);
	for (int w = 4; w >= 1; w /= 2)
		if (codec->refine_bits & w)
		{
			rest -= w;
			pack(index, count, w, rest, refine + first * w / 8);
			refine += packed_size(codec->dims, w);
		}
}

/*
 * unpack_chunk: the reverse, without `refine` (NULL) the traversal code alone.
 * Returns the number of indexes; those behind them are arbitrary.
 */
static size_t
unpack_chunk(const SwarmCodec *codec, size_t first, const uint8_t *code,
			 const uint8_t *refine, uint8_t *index)
{
	size_t		count = (size_t) codec->dims - first;

	if (count > CHUNK)
		count = CHUNK;
	memset(index, 0, CHUNK);
	unpack(code + first * codec->bits / 8, count, codec->bits, index);
	if (refine != NULL)
		for (int w = 4; w >= 1; w /= 2)
			if (codec->refine_bits & w)
			{
				unpack(refine + first * w / 8, count, w, index);
				refine += packed_size(codec->dims, w);
			}
	return count;
}

/* ---------- encoding ---------- */

/*
 * norm2_of: the squared length.
 */
static double
norm2_of(const float *x, size_t n)
{
	double		sum[4] = {0};
	size_t		i = 0;

	for (; i + 4 <= n; i += 4)
		for (int k = 0; k < 4; k++)
			sum[k] += (double) x[i + k] * x[i + k];
	for (; i < n; i++)
		sum[0] += (double) x[i] * x[i];
	return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/*
 * largest: the largest magnitude.
 */
static float
largest(const float *x, size_t n)
{
	float		max = 0;

	for (size_t i = 0; i < n; i++)
		max = fabsf(x[i]) > max ? fabsf(x[i]) : max;
	return max;
}

/*
 * nearest: the nearest integer.
 */
static inline int
nearest(double x)
{
	return (int) (x < 0 ? x - 0.5 : x + 0.5);
}

/*
 * quantize: indexes of BLOCK coordinates y, which are in standard deviations.
 * Returns the inner product of y and the levels.
 *
 * Loops of a constant length, for the compiler to vectorise.
 */
static double
quantize(const SwarmQuantizer *quantizer, const float *y, uint8_t *index)
{
	int			half = segments(quantizer);
	int			rest = rest_bits(quantizer);
	float		level[BLOCK];
	int32_t		segment[BLOCK];
	float		sum[4] = {0};

	for (int j = 0; j < BLOCK; j++)
	{
		level[j] = quantizer->base[0];
		segment[j] = 0;
	}
	for (int k = 1; k < half; k++)
	{
		float		edge = quantizer->edges[k - 1];
		float		more = quantizer->base[k] - quantizer->base[k - 1];

		for (int j = 0; j < BLOCK; j++)
		{
			bool		above = fabsf(y[j]) > edge;

			level[j] += above ? more : 0;
			segment[j] += above ? 1 : 0;
		}
	}
	for (int j = 0; j < BLOCK && rest > 0; j++)
	{
		float		step = quantizer->step[segment[j]];
		int			s = (int) ((fabsf(y[j]) * quantizer->unit - level[j]) / step + 0.5f);

		s = s < 0 ? 0 : s >= 1 << rest ? (1 << rest) - 1 : s;
		level[j] += step * s;
		segment[j] = (segment[j] << rest) + s;
	}
	half <<= rest;
	for (int j = 0; j < BLOCK; j++)
		index[j] = y[j] < 0 ? half - 1 - segment[j] : half + segment[j];
	for (int j = 0; j < BLOCK; j += 4)
		for (int k = 0; k < 4; k++)
			sum[k] += level[j + k] * fabsf(y[j + k]);
	return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/*
 * encode_small: codes of 1, 2 and 4 bits.  x is not 0.
 */
static void
encode_small(const SwarmCodec *codec, const float *x, double norm2,
			 uint8_t *code, uint8_t *refine, SwarmCodeFactors *factors)
{
	const SwarmQuantizer *coarse = quantizer_of(codec->bits, 0);
	const SwarmQuantizer *fine = quantizer_of(codec->bits, codec->refine_bits);
	double		sigma = sqrt(norm2 / codec->dims);
	double		unit = 1 / sigma;
	double		coarse_dot = 0;
	double		fine_dot = 0;

	for (size_t first = 0; first < (size_t) codec->dims; first += CHUNK)
	{
		size_t		count = (size_t) codec->dims - first;
		uint8_t		index[CHUNK];

		if (count > CHUNK)
			count = CHUNK;
		for (size_t i = 0; i < count; i += BLOCK)
		{
			size_t		n = count - i < BLOCK ? count - i : BLOCK;
			float		y[BLOCK] = {0};

			for (size_t j = 0; j < n; j++)
				y[j] = (float) (x[first + i + j] * unit);
			coarse_dot += quantize(coarse, y, index + i);
			if (fine != coarse)
				fine_dot += quantize(fine, y, index + i);
		}
		memset(index + count, 0, CHUNK - count);
		pack_chunk(codec, first, index, count, code, refine);
	}
	factors->scale = (float) (norm2 / (coarse_dot * sigma));
	if (fine != coarse)
		factors->refine_scale = (float) (norm2 / (fine_dot * sigma));
}

/*
 * encode_s8: codes of 8 bits.  x is not 0.
 */
static void
encode_s8(const SwarmCodec *codec, const float *x, double norm2,
		  uint8_t *code, SwarmCodeFactors *factors)
{
	double		unit = SWARM_CODEC_QUERY_MAX / (double) largest(x, codec->dims);
	double		dot = 0;

	for (int i = 0; i < codec->dims; i++)
	{
		int			level = nearest(x[i] * unit);

		code[i] = (uint8_t) level;
		dot += (double) x[i] * level;
	}
	factors->scale = (float) (norm2 / dot);
}

/*
 * encode_float: codes of 16 and 32 bits.
 */
static void
encode_float(const SwarmCodec *codec, const float *x, uint8_t *code)
{
	for (int i = 0; i < codec->dims; i++)
		if (codec->bits == 16)
		{
			uint16_t	half = swarm_codec_to_half(x[i]);

			memcpy(code + i * sizeof(half), &half, sizeof(half));
		}
		else
			memcpy(code + i * sizeof(float), &x[i], sizeof(float));
}

void
swarm_codec_encode(const SwarmCodec *codec, const float *x, uint8_t *code,
				   uint8_t *refine, SwarmCodeFactors *factors)
{
	double		norm2 = norm2_of(x, codec->dims);

	memset(code, 0, codec->code_size);
	if (codec->refine_size > 0)
		memset(refine, 0, codec->refine_size);
	factors->norm2 = norm2 < FLT_MAX ? (float) norm2 : FLT_MAX;
	factors->scale = 0;
	factors->refine_scale = 0;
	if (norm2 == 0)
		return;

	if (codec->bits < 8)
		encode_small(codec, x, norm2, code, refine, factors);
	else if (codec->bits == 8)
		encode_s8(codec, x, norm2, code, factors);
	else
	{
		encode_float(codec, x, code);
		factors->scale = 1;
	}
}

void
swarm_codec_decode(const SwarmCodec *codec, const uint8_t *code,
				   const uint8_t *refine, float scale, float *x)
{
	SwarmCodecLevels levels;

	if (codec->bits >= 8)
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
		return;
	}

	levels_of(quantizer_of(codec->bits, refine != NULL ? codec->refine_bits : 0),
			  &levels);
	for (size_t first = 0; first < (size_t) codec->dims; first += CHUNK)
	{
		uint8_t		index[CHUNK];
		size_t		count = unpack_chunk(codec, first, code, refine, index);

		for (size_t i = 0; i < count; i++)
		{
			int			segment = index[i] >> levels.rest_bits;
			int			rest = index[i] - (segment << levels.rest_bits);

			x[first + i] = scale *
				(levels.base[segment] + levels.step[segment] * rest);
		}
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
 * query_fields: the query as bytes in the order of the fields of a code.
 */
static void
query_fields(const SwarmCodec *codec, const float *q, double unit, int8_t *out)
{
	size_t		per_block = BLOCK * 8 / codec->bits;
	size_t		dims = codec->dims;

	for (size_t first = 0; first < dims; first += per_block)
	{
		size_t		count = dims - first < per_block ? dims - first : per_block;
		size_t		size = tail_size(count, codec->bits);

		for (size_t i = 0; i < count; i++)
			out[first + i / size * BLOCK + i % size] = nearest(q[first + i] * unit);
	}
}

void
swarm_codec_query(const SwarmCodec *codec, const float *q,
				  SwarmCodecQuery *query)
{
	float		max = largest(q, codec->dims);
	double		unit = max > 0 ? SWARM_CODEC_QUERY_MAX / (double) max : 0;
	double		fine_unit = max > 0 ? SWARM_CODEC_FINE_MAX / (double) max : 0;
	size_t		array = query_array(codec);
	int8_t	   *bytes = QUERY_S8(query);
	int32_t		total = 0;

	memset(query, 0, swarm_codec_query_size(codec));
	if (codec->bits > 8)
	{
		memcpy(QUERY_FLOAT(query), q, codec->dims * sizeof(float));
		return;
	}

	query->scale = max / SWARM_CODEC_QUERY_MAX;
	query->factor = codec->bits == 1 ? 2 : 1;
	if (codec->bits == 8)
	{
		for (int i = 0; i < codec->dims; i++)
			bytes[i] = nearest(q[i] * unit);
		return;
	}

	query_fields(codec, q, unit, bytes);
	for (size_t i = 0; i < array; i++)
		total += bytes[i];
	query->offset = codec->bits == 1 ? total : SWARM_CODEC_BIAS * total;
	if (codec->refine_bits > 0)
	{
		int16_t    *fine = (int16_t *) (bytes + array);

		query->fine_scale = max / SWARM_CODEC_FINE_MAX;
		levels_of(quantizer_of(codec->bits, codec->refine_bits), &query->levels);
		for (int i = 0; i < codec->dims; i++)
			fine[i] = nearest(q[i] * fine_unit);
	}
}

/* ---------- scores ---------- */

/*
 * prefetch: bring a code into the cache.
 */
static inline void
prefetch(const uint8_t *code, size_t size)
{
	for (size_t i = 0; i < size; i += 64)
		__builtin_prefetch(code + i);
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
		if (i + 1 < n)
			prefetch(codes[i + 1], codec->code_size);
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
	for (int i = 0; i < n; i++)
	{
		int32_t		sum;

		if (i + 1 < n)
			prefetch(codes[i + 1], codec->code_size);
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
	int64_t		sum = 0;

	for (size_t first = 0; first < (size_t) codec->dims; first += CHUNK)
	{
		uint8_t		index[CHUNK];
		size_t		count = unpack_chunk(codec, first, code, refine, index);

		sum += swarm_quant->codec->dot_levels(index, fine + first,
											  round_up(count, BLOCK),
											  &query->levels);
	}
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

/* ---------- halves ---------- */

uint16_t
swarm_codec_to_half(float x)
{
	uint32_t	bits;
	uint32_t	sign;
	float		magnitude = fabsf(x) < HALF_MAX ? fabsf(x) : HALF_MAX;

	memcpy(&bits, &x, sizeof(bits));
	sign = (bits >> 16) & 0x8000;

	/* below 2^-14: a multiple of 2^-24, rounded by the addition of 0.5 */
	if (magnitude < 6.103515625e-5f)
	{
		magnitude += 0.5f;
		memcpy(&bits, &magnitude, sizeof(bits));
		return sign | (bits - 0x3f000000);
	}
	memcpy(&bits, &magnitude, sizeof(bits));
	bits += 0xfff + ((bits >> 13) & 1);
	return sign | ((bits >> 13) - ((127 - 15) << 10));
}

float
swarm_codec_from_half(uint16_t half)
{
	uint32_t	bits = (uint32_t) (half & 0x7fff) << 13;
	float		x;

	/* the exponent's bias, by a product that also makes subnormals right */
	memcpy(&x, &bits, sizeof(x));
	x *= 5.192296858534828e33f;
	return half & 0x8000 ? -x : x;
}
