/*
 * quant_avx2.c
 *	  The kernels for AVX2 with FMA: 8 floats a register.
 *
 * Two registers a sum hide the latency of the addition.  The rest of the
 * vector is done float by float.
 */
#include "quant/quant_int.h"

#ifdef SWARM_QUANT_X86

#include <immintrin.h>

#define TARGET	__attribute__((target("avx2,fma,f16c")))
#define WIDTH	8

/*
 * total: the sum of a register.
 */
TARGET static inline float
total(__m256 v)
{
	__m128		half = _mm_add_ps(_mm256_castps256_ps128(v),
								  _mm256_extractf128_ps(v, 1));

	half = _mm_add_ps(half, _mm_movehl_ps(half, half));
	half = _mm_add_ss(half, _mm_shuffle_ps(half, half, 1));
	return _mm_cvtss_f32(half);
}

/*
 * l2_squared: sum of the squared differences.
 */
TARGET static float
l2_squared(const float *a, const float *b, size_t n)
{
	__m256		sum0 = _mm256_setzero_ps();
	__m256		sum1 = _mm256_setzero_ps();
	float		sum;
	size_t		i = 0;

	for (; i + 2 * WIDTH <= n; i += 2 * WIDTH)
	{
		__m256		d0 = _mm256_sub_ps(_mm256_loadu_ps(a + i),
									   _mm256_loadu_ps(b + i));
		__m256		d1 = _mm256_sub_ps(_mm256_loadu_ps(a + i + WIDTH),
									   _mm256_loadu_ps(b + i + WIDTH));

		sum0 = _mm256_fmadd_ps(d0, d0, sum0);
		sum1 = _mm256_fmadd_ps(d1, d1, sum1);
	}
	sum = total(_mm256_add_ps(sum0, sum1));
	for (; i < n; i++)
		sum += (a[i] - b[i]) * (a[i] - b[i]);
	return sum;
}

/*
 * dot: sum of the products.
 */
TARGET static float
dot(const float *a, const float *b, size_t n)
{
	__m256		sum0 = _mm256_setzero_ps();
	__m256		sum1 = _mm256_setzero_ps();
	float		sum;
	size_t		i = 0;

	for (; i + 2 * WIDTH <= n; i += 2 * WIDTH)
	{
		sum0 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i),
							   _mm256_loadu_ps(b + i), sum0);
		sum1 = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + WIDTH),
							   _mm256_loadu_ps(b + i + WIDTH), sum1);
	}
	sum = total(_mm256_add_ps(sum0, sum1));
	for (; i < n; i++)
		sum += a[i] * b[i];
	return sum;
}

/*
 * cosine: the three products of a cosine, in one pass.
 */
TARGET static SwarmQuantCosine
cosine(const float *a, const float *b, size_t n)
{
	__m256		ab = _mm256_setzero_ps();
	__m256		aa = _mm256_setzero_ps();
	__m256		bb = _mm256_setzero_ps();
	SwarmQuantCosine result;
	size_t		i = 0;

	for (; i + WIDTH <= n; i += WIDTH)
	{
		__m256		va = _mm256_loadu_ps(a + i);
		__m256		vb = _mm256_loadu_ps(b + i);

		ab = _mm256_fmadd_ps(va, vb, ab);
		aa = _mm256_fmadd_ps(va, va, aa);
		bb = _mm256_fmadd_ps(vb, vb, bb);
	}
	result.dot = total(ab);
	result.norm_a = total(aa);
	result.norm_b = total(bb);
	for (; i < n; i++)
	{
		result.dot += a[i] * b[i];
		result.norm_a += a[i] * a[i];
		result.norm_b += b[i] * b[i];
	}
	return result;
}

/* ---------- codes ---------- */

/*
 * total_s32: the sum of a register of int32.
 */
TARGET static inline int32_t
total_s32(__m256i v)
{
	__m128i		half = _mm_add_epi32(_mm256_castsi256_si128(v),
									 _mm256_extracti128_si256(v, 1));

	half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
	half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
	return _mm_cvtsi128_si32(half);
}

/*
 * code_bytes: up to 32 bytes of a code, zeros after them.  The size of a code
 * is a multiple of 4.
 */
TARGET static inline __m256i
code_bytes(const uint8_t *code, size_t size)
{
	const		__m256i lane = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);

	if (size >= 32)
		return _mm256_loadu_si256((const __m256i *) code);
	return _mm256_maskload_epi32((const int *) code,
								 _mm256_cmpgt_epi32(_mm256_set1_epi32((int) size), lane));
}

/*
 * query_bytes: 32 bytes of a query, those for field k of the code bytes at i of
 * a code with `fields` fields a byte.
 */
TARGET static inline __m256i
query_bytes(const int8_t *q, size_t i, int fields, int k)
{
	return _mm256_loadu_si256((const __m256i *) (q + i / SWARM_CODEC_BLOCK * (SWARM_CODEC_BLOCK * fields) +
												 i % SWARM_CODEC_BLOCK + SWARM_CODEC_BLOCK * k));
}

/*
 * dot1: sum of q where the bit is set.  8 fields of at most 2 * 127 fit 16 bits.
 */
TARGET static int32_t
dot1(const uint8_t *code, const int8_t *q, size_t size)
{
	const		__m256i low = _mm256_set1_epi8(1);
	const		__m256i ones = _mm256_set1_epi16(1);
	__m256i		sum = _mm256_setzero_si256();

	for (size_t i = 0; i < size; i += 32)
	{
		__m256i		c = code_bytes(code + i, size - i);
		__m256i		part = _mm256_setzero_si256();

#define FIELD(k) \
	part = _mm256_add_epi16(part, _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(c, k), low), \
													   query_bytes(q, i, 8, k)))
		FIELD(0);
		FIELD(1);
		FIELD(2);
		FIELD(3);
		FIELD(4);
		FIELD(5);
		FIELD(6);
		FIELD(7);
#undef FIELD
		sum = _mm256_add_epi32(sum, _mm256_madd_epi16(part, ones));
	}
	return total_s32(sum);
}

/*
 * add_field: sum + the products of q and the entries of `lut` that the bytes of
 * `field` name.  2 * 127 * 127 fits 16 bits.
 */
TARGET static inline __m256i
add_field(__m256i sum, __m256i lut, __m256i field, __m256i q)
{
	__m256i		pairs = _mm256_maddubs_epi16(_mm256_shuffle_epi8(lut, field), q);

	return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/*
 * dot2: sum of q times the level of 2 bits.
 */
TARGET static int32_t
dot2(const uint8_t *code, const int8_t *q, size_t size)
{
	const		__m256i lut =
	_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) swarm_codec_lut2));
	const		__m256i low = _mm256_set1_epi8(3);
	__m256i		sum0 = _mm256_setzero_si256();
	__m256i		sum1 = _mm256_setzero_si256();

	for (size_t i = 0; i < size; i += 32)
	{
		__m256i		c = code_bytes(code + i, size - i);

		sum0 = add_field(sum0, lut, _mm256_and_si256(c, low),
						 query_bytes(q, i, 4, 0));
		sum1 = add_field(sum1, lut, _mm256_and_si256(_mm256_srli_epi16(c, 2), low),
						 query_bytes(q, i, 4, 1));
		sum0 = add_field(sum0, lut, _mm256_and_si256(_mm256_srli_epi16(c, 4), low),
						 query_bytes(q, i, 4, 2));
		sum1 = add_field(sum1, lut, _mm256_and_si256(_mm256_srli_epi16(c, 6), low),
						 query_bytes(q, i, 4, 3));
	}
	return total_s32(_mm256_add_epi32(sum0, sum1));
}

/*
 * dot4: sum of q times the level of 4 bits.
 */
TARGET static int32_t
dot4(const uint8_t *code, const int8_t *q, size_t size)
{
	const		__m256i lut =
	_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *) swarm_codec_lut4));
	const		__m256i low = _mm256_set1_epi8(15);
	__m256i		sum0 = _mm256_setzero_si256();
	__m256i		sum1 = _mm256_setzero_si256();

	for (size_t i = 0; i < size; i += 32)
	{
		__m256i		c = code_bytes(code + i, size - i);

		sum0 = add_field(sum0, lut, _mm256_and_si256(c, low),
						 query_bytes(q, i, 2, 0));
		sum1 = add_field(sum1, lut, _mm256_and_si256(_mm256_srli_epi16(c, 4), low),
						 query_bytes(q, i, 2, 1));
	}
	return total_s32(_mm256_add_epi32(sum0, sum1));
}

/*
 * add_s8: sum + the products of signed bytes, |a| times b with the sign of a.
 */
TARGET static inline __m256i
add_s8(__m256i sum, __m256i a, __m256i b)
{
	__m256i		pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(a),
											 _mm256_sign_epi8(b, a));

	return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/*
 * dot_s8: sum of the products of signed bytes.
 */
TARGET static int32_t
dot_s8(const int8_t *a, const int8_t *b, size_t n)
{
	__m256i		sum0 = _mm256_setzero_si256();
	__m256i		sum1 = _mm256_setzero_si256();
	int32_t		sum;
	size_t		i = 0;

	for (; i + 64 <= n; i += 64)
	{
		sum0 = add_s8(sum0, _mm256_loadu_si256((const __m256i *) (a + i)),
					  _mm256_loadu_si256((const __m256i *) (b + i)));
		sum1 = add_s8(sum1, _mm256_loadu_si256((const __m256i *) (a + i + 32)),
					  _mm256_loadu_si256((const __m256i *) (b + i + 32)));
	}
	if (i + 32 <= n)
	{
		sum0 = add_s8(sum0, _mm256_loadu_si256((const __m256i *) (a + i)),
					  _mm256_loadu_si256((const __m256i *) (b + i)));
		i += 32;
	}
	if (i + 16 <= n)
	{
		sum1 = add_s8(sum1, _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *) (a + i))),
					  _mm256_zextsi128_si256(_mm_loadu_si128((const __m128i *) (b + i))));
		i += 16;
	}
	sum = total_s32(_mm256_add_epi32(sum0, sum1));
	for (; i < n; i++)
		sum += a[i] * b[i];
	return sum;
}

/*
 * dot_f16: sum of q times halves.
 */
TARGET static float
dot_f16(const uint8_t *code, const float *q, size_t n)
{
	__m256		sum0 = _mm256_setzero_ps();
	__m256		sum1 = _mm256_setzero_ps();
	uint16_t	last[WIDTH] = {0};
	float		sum;
	size_t		i = 0;

	for (; i + 2 * WIDTH <= n; i += 2 * WIDTH)
	{
		__m256i		c = _mm256_loadu_si256((const __m256i *) (code + 2 * i));

		sum0 = _mm256_fmadd_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(c)),
							   _mm256_loadu_ps(q + i), sum0);
		sum1 = _mm256_fmadd_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(c, 1)),
							   _mm256_loadu_ps(q + i + WIDTH), sum1);
	}
	sum = total(_mm256_add_ps(sum0, sum1));
	while (i < n)
	{
		size_t		count = n - i < WIDTH ? n - i : WIDTH;
		float		x[WIDTH];

		memcpy(last, code + 2 * i, 2 * count);
		_mm256_storeu_ps(x, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) last)));
		for (size_t k = 0; k < count; k++)
			sum += x[k] * q[i + k];
		i += count;
	}
	return sum;
}

/*
 * dot_f32: sum of q times floats at any address.
 */
TARGET static float
dot_f32(const uint8_t *code, const float *q, size_t n)
{
	size_t		whole = n / WIDTH * WIDTH;
	float		last[WIDTH];

	memcpy(last, code + whole * sizeof(float), (n - whole) * sizeof(float));
	return dot((const float *) (const void *) code, q, whole) +
		dot(last, q + whole, n - whole);
}

/*
 * entries: of 16 16-bit entries, low and high bytes in two tables, those that
 * the 16-bit lanes of `index` name.
 */
TARGET static inline __m256i
entries(__m256i low, __m256i high, __m256i index)
{
	const		__m256i unused = _mm256_set1_epi16((short) 0x8000);
	__m256i		low_bytes = _mm256_shuffle_epi8(low, _mm256_or_si256(index, unused));
	__m256i		high_bytes = _mm256_shuffle_epi8(high, _mm256_or_si256(index, unused));

	return _mm256_or_si256(low_bytes, _mm256_slli_epi16(high_bytes, 8));
}

/*
 * bytes_of: the low or high bytes of 16 16-bit entries, in both lanes.
 */
TARGET static inline __m256i
bytes_of(const int16_t *table, int shift)
{
	__m256i		v = _mm256_srl_epi16(_mm256_loadu_si256((const __m256i *) table),
									 _mm_cvtsi32_si128(shift));
	__m256i		bytes;

	v = _mm256_and_si256(v, _mm256_set1_epi16(0xff));
	bytes = _mm256_packus_epi16(v, v);
	return _mm256_permute4x64_epi64(bytes, 0x88);
}

/*
 * indexes: 32 indexes of a group, from the `first` on.
 */
TARGET static inline __m256i
indexes(const SwarmCodecFields *fields, int parts, size_t group, size_t first)
{
	__m256i		index = _mm256_setzero_si256();

	for (int part = 0; part < parts; part++)
	{
		int			w = fields[part].width;
		int			shift;
		const uint8_t *bytes = swarm_codec_group(&fields[part], group, &shift);
		__m256i		field = _mm256_loadu_si256((const __m256i *) (bytes + first));

		field = _mm256_and_si256(_mm256_srl_epi16(field, _mm_cvtsi32_si128(shift)),
								 _mm256_set1_epi8((1 << w) - 1));
		index = _mm256_or_si256(_mm256_sll_epi16(index, _mm_cvtsi32_si128(w)), field);
	}
	return index;
}

/*
 * dot_levels: sum of q times the levels of both codes together.  16 products
 * of pairs of at most 16,010 * 4,095 fit 32 bits.
 */
TARGET static int64_t
dot_levels(const SwarmCodecFields *fields, int parts, size_t groups,
		   const int16_t *q, const SwarmCodecLevels *levels)
{
	const		__m256i base_low = bytes_of(levels->base, 0);
	const		__m256i base_high = bytes_of(levels->base, 8);
	const		__m256i step_low = bytes_of(levels->step, 0);
	const		__m256i step_high = bytes_of(levels->step, 8);
	const		__m128i shift = _mm_cvtsi32_si128(levels->rest_bits);
	const		__m256i rest = _mm256_set1_epi16((1 << levels->rest_bits) - 1);
	__m256i		sum = _mm256_setzero_si256();
	int64_t		out[4];

	for (size_t half = 0; half < 2 * groups; half++)
	{
		__m256i		index = indexes(fields, parts, half / 2, half % 2 * 32);
		__m256i		part = _mm256_setzero_si256();

		for (int k = 0; k < 2; k++, q += 16)
		{
			__m256i		x = _mm256_cvtepu8_epi16(k == 0 ? _mm256_castsi256_si128(index) :
												 _mm256_extracti128_si256(index, 1));
			__m256i		segment = _mm256_srl_epi16(x, shift);
			__m256i		level;

			level = _mm256_mullo_epi16(entries(step_low, step_high, segment),
									   _mm256_and_si256(x, rest));
			level = _mm256_add_epi16(level, entries(base_low, base_high, segment));
			part = _mm256_add_epi32(part,
									_mm256_madd_epi16(level, _mm256_loadu_si256((const __m256i *) q)));
		}
		sum = _mm256_add_epi64(sum, _mm256_cvtepi32_epi64(_mm256_castsi256_si128(part)));
		sum = _mm256_add_epi64(sum, _mm256_cvtepi32_epi64(_mm256_extracti128_si256(part, 1)));
	}
	_mm256_storeu_si256((__m256i *) out, sum);
	return (out[0] + out[1]) + (out[2] + out[3]);
}

/* ---------- rotation ---------- */

/*
 * flip: pseudo-random changes of sign.
 */
TARGET static void
flip(float *x, size_t n, uint64_t key)
{
	const		__m256i up = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
	const		__m256i sign = _mm256_set1_epi32((int) 0x80000000);
	size_t		i = 0;
	uint64_t	word = 0;

	for (; i + WIDTH <= n; i += WIDTH)
	{
		__m256i		bits;

		if (i % 64 == 0)
			word = swarm_codec_word(key, i / 64);
		bits = _mm256_sllv_epi32(_mm256_set1_epi32((int) (word >> (i % 64))), up);
		_mm256_storeu_ps(x + i, _mm256_xor_ps(_mm256_loadu_ps(x + i),
											  _mm256_castsi256_ps(_mm256_and_si256(bits, sign))));
	}
	for (; i < n; i++)
	{
		if (i % 64 == 0)
			word = swarm_codec_word(key, i / 64);
		x[i] = (word >> (i % 64)) & 1 ? -x[i] : x[i];
	}
}

/*
 * inside: the stages of a Hadamard transform with half-distances 1, 2 and 4,
 * within a register.  Where the mask says so, the difference.
 */
TARGET static inline __m256
inside(__m256 x)
{
	__m256		y = _mm256_permute_ps(x, 0xb1);

	x = _mm256_blend_ps(_mm256_add_ps(x, y), _mm256_sub_ps(y, x), 0xaa);
	y = _mm256_permute_ps(x, 0x4e);
	x = _mm256_blend_ps(_mm256_add_ps(x, y), _mm256_sub_ps(y, x), 0xcc);
	y = _mm256_permute2f128_ps(x, x, 1);
	return _mm256_blend_ps(_mm256_add_ps(x, y), _mm256_sub_ps(y, x), 0xf0);
}

/*
 * two_stages: the stages with half-distances `half` and 2 half on the registers
 * at x, x + half, x + 2 half, x + 3 half, or `first` all stages up to there.
 */
TARGET static inline void
two_stages(float *x, size_t half, bool first, __m256 scale)
{
	__m256		a = _mm256_loadu_ps(x);
	__m256		b = _mm256_loadu_ps(x + half);
	__m256		c = _mm256_loadu_ps(x + 2 * half);
	__m256		d = _mm256_loadu_ps(x + 3 * half);
	__m256		ab,
				a_b,
				cd,
				c_d;

	if (first)
	{
		a = inside(a);
		b = inside(b);
		c = inside(c);
		d = inside(d);
	}
	ab = _mm256_add_ps(a, b);
	a_b = _mm256_sub_ps(a, b);
	cd = _mm256_add_ps(c, d);
	c_d = _mm256_sub_ps(c, d);
	_mm256_storeu_ps(x, _mm256_mul_ps(_mm256_add_ps(ab, cd), scale));
	_mm256_storeu_ps(x + half, _mm256_mul_ps(_mm256_add_ps(a_b, c_d), scale));
	_mm256_storeu_ps(x + 2 * half, _mm256_mul_ps(_mm256_sub_ps(ab, cd), scale));
	_mm256_storeu_ps(x + 3 * half, _mm256_mul_ps(_mm256_sub_ps(a_b, c_d), scale));
}

/*
 * mix: sums and differences of two arrays.
 */
TARGET static void
mix(float *a, float *b, size_t n, float scale)
{
	const		__m256 factor = _mm256_set1_ps(scale);
	size_t		i = 0;

	for (; i + WIDTH <= n; i += WIDTH)
	{
		__m256		x = _mm256_loadu_ps(a + i);
		__m256		y = _mm256_loadu_ps(b + i);

		_mm256_storeu_ps(a + i, _mm256_mul_ps(_mm256_add_ps(x, y), factor));
		_mm256_storeu_ps(b + i, _mm256_mul_ps(_mm256_sub_ps(x, y), factor));
	}
	if (i < n)
		swarm_codec_scalar.mix(a + i, b + i, n - i, scale);
}

/*
 * hadamard: the Hadamard transform, two stages a pass.
 */
TARGET static void
hadamard(float *x, size_t n, float scale)
{
	const		__m256 one = _mm256_set1_ps(1);
	const		__m256 factor = _mm256_set1_ps(scale);
	size_t		half;

	if (n < 4 * WIDTH)
	{
		swarm_codec_scalar.hadamard(x, n, scale);
		return;
	}
	for (size_t i = 0; i < n; i += 4 * WIDTH)
		two_stages(x + i, WIDTH, true, n == 4 * WIDTH ? factor : one);
	for (half = 4 * WIDTH; half * 4 <= n; half *= 4)
		for (size_t i = 0; i < n; i += 4 * half)
			for (size_t j = i; j < i + half; j += WIDTH)
				two_stages(x + j, half, false, half * 4 == n ? factor : one);
	if (half < n)
		mix(x, x + half, half, scale);
}

const SwarmCodecKernels swarm_codec_avx2 = {
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

const SwarmQuantKernels swarm_quant_avx2 = {
	.level = SWARM_QUANT_AVX2,
	.l2_squared = l2_squared,
	.dot = dot,
	.cosine = cosine,
	.codec = &swarm_codec_avx2,
};

#else
typedef int swarm_quant_avx2_unused;	/* a file may not be empty */
#endif							/* SWARM_QUANT_X86 */
