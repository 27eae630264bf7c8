/*
 * quant_avx512vnni.c
 *	  The kernels over codes for AVX-512 with BW, VL, VNNI and VPOPCNTDQ: 64
 *	  bytes a register, and products of bytes that are added up to 32 bits.
 *
 * The distances of this level are those of quant_avx512.c.  What is left of a
 * code, fewer than 64 bytes, is read under a mask.
 */
#include "quant/quant_int.h"

#ifdef SWARM_QUANT_X86

#include <immintrin.h>

#define TARGET	__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx512vpopcntdq")))
#define WIDTH	16

/*
 * bytes: up to 64 bytes from p, zeros after them.
 */
TARGET static inline __m512i
bytes(const void *p, size_t count)
{
	if (count >= 64)
		return _mm512_loadu_si512(p);
	return _mm512_maskz_loadu_epi8(~UINT64_C(0) >> (64 - count), p);
}

/*
 * add_field: sum + the products of 64 unsigned bytes and the query's.
 */
TARGET static inline __m512i
add_field(__m512i sum, __m512i field, const int8_t *q)
{
	return _mm512_dpbusd_epi32(sum, field, _mm512_loadu_si512(q));
}

/*
 * dot1: sum of q where the bit is set.
 */
TARGET static int32_t
dot1(const uint8_t *code, const int8_t *q, size_t size)
{
	const		__m512i low = _mm512_set1_epi8(1);
	__m512i		sum0 = _mm512_setzero_si512();
	__m512i		sum1 = _mm512_setzero_si512();

	for (size_t i = 0; i < size; i += 64, q += 512)
	{
		__m512i		c = bytes(code + i, size - i);

#define FIELD(k)	_mm512_and_si512(_mm512_srli_epi16(c, k), low)
		sum0 = add_field(sum0, _mm512_and_si512(c, low), q);
		sum1 = add_field(sum1, FIELD(1), q + 64);
		sum0 = add_field(sum0, FIELD(2), q + 128);
		sum1 = add_field(sum1, FIELD(3), q + 192);
		sum0 = add_field(sum0, FIELD(4), q + 256);
		sum1 = add_field(sum1, FIELD(5), q + 320);
		sum0 = add_field(sum0, FIELD(6), q + 384);
		sum1 = add_field(sum1, FIELD(7), q + 448);
#undef FIELD
	}
	return _mm512_reduce_add_epi32(_mm512_add_epi32(sum0, sum1));
}

/*
 * dot2: sum of q times the level of 2 bits.
 */
TARGET static int32_t
dot2(const uint8_t *code, const int8_t *q, size_t size)
{
	const		__m512i lut =
	_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *) swarm_codec_lut2));
	const		__m512i low = _mm512_set1_epi8(3);
	__m512i		sum0 = _mm512_setzero_si512();
	__m512i		sum1 = _mm512_setzero_si512();

	for (size_t i = 0; i < size; i += 64, q += 256)
	{
		__m512i		c = bytes(code + i, size - i);

#define FIELD(k)	_mm512_shuffle_epi8(lut, _mm512_and_si512(_mm512_srli_epi16(c, k), low))
		sum0 = add_field(sum0, _mm512_shuffle_epi8(lut, _mm512_and_si512(c, low)), q);
		sum1 = add_field(sum1, FIELD(2), q + 64);
		sum0 = add_field(sum0, FIELD(4), q + 128);
		sum1 = add_field(sum1, FIELD(6), q + 192);
#undef FIELD
	}
	return _mm512_reduce_add_epi32(_mm512_add_epi32(sum0, sum1));
}

/*
 * dot4: sum of q times the level of 4 bits.
 */
TARGET static int32_t
dot4(const uint8_t *code, const int8_t *q, size_t size)
{
	const		__m512i lut =
	_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *) swarm_codec_lut4));
	const		__m512i low = _mm512_set1_epi8(15);
	__m512i		sum0 = _mm512_setzero_si512();
	__m512i		sum1 = _mm512_setzero_si512();

	for (size_t i = 0; i < size; i += 64, q += 128)
	{
		__m512i		c = bytes(code + i, size - i);
		__m512i		high = _mm512_and_si512(_mm512_srli_epi16(c, 4), low);

		sum0 = add_field(sum0, _mm512_shuffle_epi8(lut, _mm512_and_si512(c, low)), q);
		sum1 = add_field(sum1, _mm512_shuffle_epi8(lut, high), q + 64);
	}
	return _mm512_reduce_add_epi32(_mm512_add_epi32(sum0, sum1));
}

/*
 * dot_s8: sum of the products of signed bytes: of a + 128, unsigned, and b,
 * less 128 times the sum of b.
 */
TARGET static int32_t
dot_s8(const int8_t *a, const int8_t *b, size_t n)
{
	const		__m512i bias = _mm512_set1_epi8((char) 0x80);
	__m512i		sum = _mm512_setzero_si512();
	__m512i		more = _mm512_setzero_si512();

	for (size_t i = 0; i < n; i += 64)
	{
		__m512i		x = _mm512_xor_si512(bytes(a + i, n - i), bias);
		__m512i		y = bytes(b + i, n - i);

		sum = _mm512_dpbusd_epi32(sum, x, y);
		more = _mm512_dpbusd_epi32(more, bias, y);
	}
	return _mm512_reduce_add_epi32(_mm512_sub_epi32(sum, more));
}

/*
 * dot_f16: sum of q times halves.
 */
TARGET static float
dot_f16(const uint8_t *code, const float *q, size_t n)
{
	__m512		sum0 = _mm512_setzero_ps();
	__m512		sum1 = _mm512_setzero_ps();

	for (size_t i = 0; i < n; i += 2 * WIDTH)
	{
		__m512i		c = bytes(code + 2 * i, 2 * (n - i));
		__mmask32	mask = n - i >= 32 ? 0xffffffff : (1u << (n - i)) - 1;

		sum0 = _mm512_fmadd_ps(_mm512_cvtph_ps(_mm512_castsi512_si256(c)),
							   _mm512_maskz_loadu_ps((__mmask16) mask, q + i),
							   sum0);
		sum1 = _mm512_fmadd_ps(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(c, 1)),
							   _mm512_maskz_loadu_ps((__mmask16) (mask >> 16),
													 q + i + WIDTH),
							   sum1);
	}
	return _mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1));
}

/*
 * dot_f32: sum of q times floats at any address.
 */
TARGET static float
dot_f32(const uint8_t *code, const float *q, size_t n)
{
	__m512		sum0 = _mm512_setzero_ps();
	__m512		sum1 = _mm512_setzero_ps();
	size_t		i = 0;

	for (; i + 2 * WIDTH <= n; i += 2 * WIDTH)
	{
		sum0 = _mm512_fmadd_ps(_mm512_loadu_ps(code + 4 * i),
							   _mm512_loadu_ps(q + i), sum0);
		sum1 = _mm512_fmadd_ps(_mm512_loadu_ps(code + 4 * i + 64),
							   _mm512_loadu_ps(q + i + WIDTH), sum1);
	}
	for (; i < n; i += WIDTH)
		sum0 = _mm512_fmadd_ps(_mm512_castsi512_ps(bytes(code + 4 * i, 4 * (n - i))),
							   _mm512_castsi512_ps(bytes(q + i, 4 * (n - i))), sum0);
	return _mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1));
}

/*
 * indexes: the indexes of a group.
 */
TARGET static inline __m512i
indexes(const SwarmCodecFields *fields, int parts, size_t group)
{
	__m512i		index = _mm512_setzero_si512();

	for (int part = 0; part < parts; part++)
	{
		int			w = fields[part].width;
		int			shift;
		const uint8_t *bytes = swarm_codec_group(&fields[part], group, &shift);
		__m512i		field = _mm512_loadu_si512(bytes);

		field = _mm512_and_si512(_mm512_srl_epi16(field, _mm_cvtsi32_si128(shift)),
								 _mm512_set1_epi8((1 << w) - 1));
		index = _mm512_or_si512(_mm512_sll_epi16(index, _mm_cvtsi32_si128(w)), field);
	}
	return index;
}

/*
 * add_levels: sum + q times the levels of 32 indexes.
 */
TARGET static inline __m512i
add_levels(__m512i sum, __m256i index, const int16_t *q, __m512i base,
		   __m512i step, int rest_bits)
{
	__m512i		x = _mm512_cvtepu8_epi16(index);
	__m512i		segment = _mm512_srl_epi16(x, _mm_cvtsi32_si128(rest_bits));
	__m512i		rest = _mm512_and_si512(x, _mm512_set1_epi16((1 << rest_bits) - 1));
	__m512i		level = _mm512_mullo_epi16(_mm512_permutexvar_epi16(segment, step), rest);

	level = _mm512_add_epi16(level, _mm512_permutexvar_epi16(segment, base));
	return _mm512_dpwssd_epi32(sum, level, _mm512_loadu_si512(q));
}

/*
 * widen: 16 32-bit sums as 8 of 64 bits.
 */
TARGET static inline __m512i
widen(__m512i sum)
{
	return _mm512_add_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(sum)),
							_mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64(sum, 1)));
}

/*
 * dot_levels: sum of q times the levels of both codes together.  16 products
 * of pairs of at most 16,010 * 4,095, those of 8 groups, fit 32 bits.
 */
TARGET static int64_t
dot_levels(const SwarmCodecFields *fields, int parts, size_t groups,
		   const int16_t *q, const SwarmCodecLevels *levels)
{
	const		__m512i base =
	_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *) levels->base));
	const		__m512i step =
	_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *) levels->step));
	__m512i		total = _mm512_setzero_si512();
	__m512i		sum = _mm512_setzero_si512();

	for (size_t group = 0; group < groups; group++, q += SWARM_CODEC_BLOCK)
	{
		__m512i		index = indexes(fields, parts, group);

		sum = add_levels(sum, _mm512_castsi512_si256(index), q, base, step,
						 levels->rest_bits);
		sum = add_levels(sum, _mm512_extracti64x4_epi64(index, 1), q + 32, base,
						 step, levels->rest_bits);
		if (group % 8 == 7)
		{
			total = _mm512_add_epi64(total, widen(sum));
			sum = _mm512_setzero_si512();
		}
	}
	return _mm512_reduce_add_epi64(_mm512_add_epi64(total, widen(sum)));
}

/* ---------- rotation ---------- */

/*
 * flip: pseudo-random changes of sign.
 */
TARGET static void
flip(float *x, size_t n, uint64_t key)
{
	const		__m512i sign = _mm512_set1_epi32((int) 0x80000000);
	uint64_t	word = 0;

	for (size_t i = 0; i < n; i += WIDTH)
	{
		__mmask16	mask = n - i >= WIDTH ? 0xffff : (1 << (n - i)) - 1;
		__m512i		v = _mm512_maskz_loadu_epi32(mask, x + i);

		if (i % 64 == 0)
			word = swarm_codec_word(key, i / 64);
		v = _mm512_mask_xor_epi32(v, (__mmask16) (word >> (i % 64)), v, sign);
		_mm512_mask_storeu_epi32(x + i, mask, v);
	}
}

/*
 * inside: the stages of a Hadamard transform with half-distances 1, 2, 4 and 8,
 * within a register.  Where the mask says so, the difference.
 */
TARGET static inline __m512
inside(__m512 x)
{
	__m512		y = _mm512_permute_ps(x, 0xb1);

	x = _mm512_mask_sub_ps(_mm512_add_ps(x, y), 0xaaaa, y, x);
	y = _mm512_permute_ps(x, 0x4e);
	x = _mm512_mask_sub_ps(_mm512_add_ps(x, y), 0xcccc, y, x);
	y = _mm512_shuffle_f32x4(x, x, 0xb1);
	x = _mm512_mask_sub_ps(_mm512_add_ps(x, y), 0xf0f0, y, x);
	y = _mm512_shuffle_f32x4(x, x, 0x4e);
	return _mm512_mask_sub_ps(_mm512_add_ps(x, y), 0xff00, y, x);
}

/*
 * two_stages: the stages with half-distances `half` and 2 half on the registers
 * at x, x + half, x + 2 half, x + 3 half, or `first` all stages up to there.
 */
TARGET static inline void
two_stages(float *x, size_t half, bool first, __m512 scale)
{
	__m512		a = _mm512_loadu_ps(x);
	__m512		b = _mm512_loadu_ps(x + half);
	__m512		c = _mm512_loadu_ps(x + 2 * half);
	__m512		d = _mm512_loadu_ps(x + 3 * half);
	__m512		ab,
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
	ab = _mm512_add_ps(a, b);
	a_b = _mm512_sub_ps(a, b);
	cd = _mm512_add_ps(c, d);
	c_d = _mm512_sub_ps(c, d);
	_mm512_storeu_ps(x, _mm512_mul_ps(_mm512_add_ps(ab, cd), scale));
	_mm512_storeu_ps(x + half, _mm512_mul_ps(_mm512_add_ps(a_b, c_d), scale));
	_mm512_storeu_ps(x + 2 * half, _mm512_mul_ps(_mm512_sub_ps(ab, cd), scale));
	_mm512_storeu_ps(x + 3 * half, _mm512_mul_ps(_mm512_sub_ps(a_b, c_d), scale));
}

/*
 * mix: sums and differences of two arrays.
 */
TARGET static void
mix(float *a, float *b, size_t n, float scale)
{
	const		__m512 factor = _mm512_set1_ps(scale);

	for (size_t i = 0; i < n; i += WIDTH)
	{
		__mmask16	mask = n - i >= WIDTH ? 0xffff : (1 << (n - i)) - 1;
		__m512		x = _mm512_maskz_loadu_ps(mask, a + i);
		__m512		y = _mm512_maskz_loadu_ps(mask, b + i);

		_mm512_mask_storeu_ps(a + i, mask,
							  _mm512_mul_ps(_mm512_add_ps(x, y), factor));
		_mm512_mask_storeu_ps(b + i, mask,
							  _mm512_mul_ps(_mm512_sub_ps(x, y), factor));
	}
}

/*
 * hadamard: the Hadamard transform, two stages a pass.
 */
TARGET static void
hadamard(float *x, size_t n, float scale)
{
	const		__m512 one = _mm512_set1_ps(1);
	const		__m512 factor = _mm512_set1_ps(scale);
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

const SwarmCodecKernels swarm_codec_avx512vnni = {
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

#else
typedef int swarm_quant_avx512vnni_unused;	/* a file may not be empty */
#endif							/* SWARM_QUANT_X86 */
