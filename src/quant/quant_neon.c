/*
 * quant_neon.c
 *	  The kernels for NEON, which every aarch64 has: 4 floats a register.
 *
 * Two registers a sum hide the latency of the addition.  The rest of the
 * vector is done float by float.
 */
#include "quant/quant_int.h"

#ifdef SWARM_QUANT_ARM

#include <arm_neon.h>

#define WIDTH	4

/*
 * l2_squared: sum of the squared differences.
 */
static float
l2_squared(const float *a, const float *b, size_t n)
{
	float32x4_t sum0 = vdupq_n_f32(0);
	float32x4_t sum1 = vdupq_n_f32(0);
	float		sum;
	size_t		i = 0;

	for (; i + 2 * WIDTH <= n; i += 2 * WIDTH)
	{
		float32x4_t d0 = vsubq_f32(vld1q_f32(a + i), vld1q_f32(b + i));
		float32x4_t d1 = vsubq_f32(vld1q_f32(a + i + WIDTH),
								   vld1q_f32(b + i + WIDTH));

		sum0 = vfmaq_f32(sum0, d0, d0);
		sum1 = vfmaq_f32(sum1, d1, d1);
	}
	sum = vaddvq_f32(vaddq_f32(sum0, sum1));
	for (; i < n; i++)
		sum += (a[i] - b[i]) * (a[i] - b[i]);
	return sum;
}

/*
 * dot: sum of the products.
 */
static float
dot(const float *a, const float *b, size_t n)
{
	float32x4_t sum0 = vdupq_n_f32(0);
	float32x4_t sum1 = vdupq_n_f32(0);
	float		sum;
	size_t		i = 0;

	for (; i + 2 * WIDTH <= n; i += 2 * WIDTH)
	{
		sum0 = vfmaq_f32(sum0, vld1q_f32(a + i), vld1q_f32(b + i));
		sum1 = vfmaq_f32(sum1, vld1q_f32(a + i + WIDTH),
						 vld1q_f32(b + i + WIDTH));
	}
	sum = vaddvq_f32(vaddq_f32(sum0, sum1));
	for (; i < n; i++)
		sum += a[i] * b[i];
	return sum;
}

/*
 * cosine: the three products of a cosine, in one pass.
 */
static SwarmQuantCosine
cosine(const float *a, const float *b, size_t n)
{
	float32x4_t ab = vdupq_n_f32(0);
	float32x4_t aa = vdupq_n_f32(0);
	float32x4_t bb = vdupq_n_f32(0);
	SwarmQuantCosine result;
	size_t		i = 0;

	for (; i + WIDTH <= n; i += WIDTH)
	{
		float32x4_t va = vld1q_f32(a + i);
		float32x4_t vb = vld1q_f32(b + i);

		ab = vfmaq_f32(ab, va, vb);
		aa = vfmaq_f32(aa, va, va);
		bb = vfmaq_f32(bb, vb, vb);
	}
	result.dot = vaddvq_f32(ab);
	result.norm_a = vaddvq_f32(aa);
	result.norm_b = vaddvq_f32(bb);
	for (; i < n; i++)
	{
		result.dot += a[i] * b[i];
		result.norm_a += a[i] * a[i];
		result.norm_b += b[i] * b[i];
	}
	return result;
}

/* ---------- codes ---------- */

/* The instruction of ARMv8.4 that adds four products of bytes, where built in. */
#ifdef __ARM_FEATURE_DOTPROD
#define HAVE_DOTPROD
#endif

/*
 * code_bytes: up to 16 bytes of a code, zeros after them.
 */
static inline uint8x16_t
code_bytes(const uint8_t *code, size_t size)
{
	uint8_t		last[16] = {0};

	if (size >= 16)
		return vld1q_u8(code);
	memcpy(last, code, size);
	return vld1q_u8(last);
}

/*
 * add_s8: sum + the products of signed bytes.  A product of -128 and 127 twice
 * fits 16 bits.
 */
static inline int32x4_t
add_s8(int32x4_t sum, int8x16_t a, int8x16_t b)
{
#ifdef HAVE_DOTPROD
	return vdotq_s32(sum, a, b);
#else
	int16x8_t	pairs = vmull_s8(vget_low_s8(a), vget_low_s8(b));

	return vpadalq_s16(sum, vmlal_s8(pairs, vget_high_s8(a), vget_high_s8(b)));
#endif
}

/*
 * dot_fields: sum of q times the entry of `table` that each field of w bits
 * names; entries are at most 127, so signed.  Inlined with a constant w.
 */
static inline int32_t
dot_fields(const uint8_t *code, const int8_t *q, size_t size, int w,
		   const uint8_t *table)
{
	uint8x16_t	lut = vld1q_u8(table);
	uint8x16_t	mask = vdupq_n_u8((1 << w) - 1);
	int32x4_t	sum = vdupq_n_s32(0);

	for (size_t i = 0; i < size; i += 16)
	{
		uint8x16_t	c = code_bytes(code + i, size - i);
		const int8_t *at = q + i / SWARM_CODEC_BLOCK *
		(SWARM_CODEC_BLOCK * 8 / w) + i % SWARM_CODEC_BLOCK;

		for (int k = 0; k < 8; k += w, at += SWARM_CODEC_BLOCK)
		{
			uint8x16_t	field = vandq_u8(vshlq_u8(c, vdupq_n_s8(-k)), mask);

			sum = add_s8(sum, vreinterpretq_s8_u8(vqtbl1q_u8(lut, field)),
						 vld1q_s8(at));
		}
	}
	return vaddvq_s32(sum);
}

/*
 * dot1: sum of q where the bit is set.
 */
static int32_t
dot1(const uint8_t *code, const int8_t *q, size_t size)
{
	static const uint8_t bits[16] = {0, 1};

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
	int32x4_t	sum0 = vdupq_n_s32(0);
	int32x4_t	sum1 = vdupq_n_s32(0);
	int32_t		sum;
	size_t		i = 0;

	for (; i + 32 <= n; i += 32)
	{
		sum0 = add_s8(sum0, vld1q_s8(a + i), vld1q_s8(b + i));
		sum1 = add_s8(sum1, vld1q_s8(a + i + 16), vld1q_s8(b + i + 16));
	}
	if (i + 16 <= n)
	{
		sum0 = add_s8(sum0, vld1q_s8(a + i), vld1q_s8(b + i));
		i += 16;
	}
	sum = vaddvq_s32(vaddq_s32(sum0, sum1));
	for (; i < n; i++)
		sum += a[i] * b[i];
	return sum;
}

/*
 * four_halves: four halves as float.
 */
static inline float32x4_t
four_halves(const uint8_t *code)
{
	return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(code)));
}

/*
 * dot_f16: sum of q times halves.
 */
static float
dot_f16(const uint8_t *code, const float *q, size_t n)
{
	float32x4_t sum0 = vdupq_n_f32(0);
	float32x4_t sum1 = vdupq_n_f32(0);
	size_t		i = 0;

	for (; i + 2 * WIDTH <= n; i += 2 * WIDTH)
	{
		sum0 = vfmaq_f32(sum0, four_halves(code + 2 * i), vld1q_f32(q + i));
		sum1 = vfmaq_f32(sum1, four_halves(code + 2 * (i + WIDTH)),
						 vld1q_f32(q + i + WIDTH));
	}
	return vaddvq_f32(vaddq_f32(sum0, sum1)) +
		swarm_codec_scalar.dot_f16(code + 2 * i, q + i, n - i);
}

/*
 * dot_f32: sum of q times floats at any address.
 */
static float
dot_f32(const uint8_t *code, const float *q, size_t n)
{
	float32x4_t sum0 = vdupq_n_f32(0);
	float32x4_t sum1 = vdupq_n_f32(0);
	size_t		i = 0;

	for (; i + 2 * WIDTH <= n; i += 2 * WIDTH)
	{
		sum0 = vfmaq_f32(sum0, vreinterpretq_f32_u8(vld1q_u8(code + 4 * i)),
						 vld1q_f32(q + i));
		sum1 = vfmaq_f32(sum1, vreinterpretq_f32_u8(vld1q_u8(code + 4 * (i + WIDTH))),
						 vld1q_f32(q + i + WIDTH));
	}
	return vaddvq_f32(vaddq_f32(sum0, sum1)) +
		swarm_codec_scalar.dot_f32(code + 4 * i, q + i, n - i);
}

/*
 * indexes: 16 indexes of a group, from the `first` on.
 */
static inline uint8x16_t
indexes(const SwarmCodecFields *fields, int parts, size_t group, size_t first)
{
	uint8x16_t	index = vdupq_n_u8(0);

	for (int part = 0; part < parts; part++)
	{
		int			w = fields[part].width;
		int			shift;
		const uint8_t *bytes = swarm_codec_group(&fields[part], group, &shift);
		uint8x16_t	field = vshlq_u8(vld1q_u8(bytes + first), vdupq_n_s8(-shift));

		field = vandq_u8(field, vdupq_n_u8((1 << w) - 1));
		index = vorrq_u8(vshlq_u8(index, vdupq_n_s8(w)), field);
	}
	return index;
}

/*
 * entries: those of a table of 16-bit entries, low and high bytes apart, that
 * bytes name: the first or the last 8.
 */
static inline int16x8_t
entries(uint8x16x2_t table, uint8x16_t segment, bool last)
{
	uint8x16_t	low = vqtbl1q_u8(table.val[0], segment);
	uint8x16_t	high = vqtbl1q_u8(table.val[1], segment);

	return vreinterpretq_s16_u8(last ? vzip2q_u8(low, high) : vzip1q_u8(low, high));
}

/*
 * add_levels: sum + q times the levels of 8 indexes.
 */
static inline int32x4_t
add_levels(int32x4_t sum, int16x8_t base, int16x8_t step, uint8x8_t rest,
		   const int16_t *q)
{
	int16x8_t	level = vmlaq_s16(base, step, vreinterpretq_s16_u16(vmovl_u8(rest)));
	int16x8_t	values = vld1q_s16(q);

	sum = vmlal_s16(sum, vget_low_s16(level), vget_low_s16(values));
	return vmlal_s16(sum, vget_high_s16(level), vget_high_s16(values));
}

/*
 * dot_levels: sum of q times the levels of both codes together.  16 products
 * of at most 16,010 * 4,095, those of a group, fit 32 bits.
 */
static int64_t
dot_levels(const SwarmCodecFields *fields, int parts, size_t groups,
		   const int16_t *q, const SwarmCodecLevels *levels)
{
	uint8x16x2_t base = vld2q_u8((const uint8_t *) levels->base);
	uint8x16x2_t step = vld2q_u8((const uint8_t *) levels->step);
	int8x16_t	shift = vdupq_n_s8(-levels->rest_bits);
	uint8x16_t	mask = vdupq_n_u8((1 << levels->rest_bits) - 1);
	int64x2_t	total = vdupq_n_s64(0);

	for (size_t group = 0; group < groups; group++)
	{
		int32x4_t	sum = vdupq_n_s32(0);

		for (size_t first = 0; first < SWARM_CODEC_BLOCK; first += 16, q += 16)
		{
			uint8x16_t	index = indexes(fields, parts, group, first);
			uint8x16_t	segment = vshlq_u8(index, shift);
			uint8x16_t	rest = vandq_u8(index, mask);

			sum = add_levels(sum, entries(base, segment, false),
							 entries(step, segment, false), vget_low_u8(rest), q);
			sum = add_levels(sum, entries(base, segment, true),
							 entries(step, segment, true), vget_high_u8(rest), q + 8);
		}
		total = vpadalq_s32(total, sum);
	}
	return vaddvq_s64(total);
}

/* ---------- rotation ---------- */

/*
 * inside: the stages of a Hadamard transform with half-distances 1 and 2,
 * within a register.
 */
static inline float32x4_t
inside(float32x4_t x)
{
	float32x4_t even = vtrn1q_f32(x, x);
	float32x4_t odd = vtrn2q_f32(x, x);
	float32x4_t y = vtrn1q_f32(vaddq_f32(even, odd), vsubq_f32(even, odd));
	float32x4_t low = vcombine_f32(vget_low_f32(y), vget_low_f32(y));
	float32x4_t high = vcombine_f32(vget_high_f32(y), vget_high_f32(y));

	return vcombine_f32(vget_low_f32(vaddq_f32(low, high)),
						vget_low_f32(vsubq_f32(low, high)));
}

/*
 * two_stages: the stages with half-distances `half` and 2 half on the registers
 * at x, x + half, x + 2 half, x + 3 half, or `first` all stages up to there.
 */
static inline void
two_stages(float *x, size_t half, bool first, float32x4_t scale)
{
	float32x4_t a = vld1q_f32(x);
	float32x4_t b = vld1q_f32(x + half);
	float32x4_t c = vld1q_f32(x + 2 * half);
	float32x4_t d = vld1q_f32(x + 3 * half);
	float32x4_t ab,
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
	ab = vaddq_f32(a, b);
	a_b = vsubq_f32(a, b);
	cd = vaddq_f32(c, d);
	c_d = vsubq_f32(c, d);
	vst1q_f32(x, vmulq_f32(vaddq_f32(ab, cd), scale));
	vst1q_f32(x + half, vmulq_f32(vaddq_f32(a_b, c_d), scale));
	vst1q_f32(x + 2 * half, vmulq_f32(vsubq_f32(ab, cd), scale));
	vst1q_f32(x + 3 * half, vmulq_f32(vsubq_f32(a_b, c_d), scale));
}

/*
 * flip: pseudo-random changes of sign.
 */
static void
flip(float *x, size_t n, uint64_t key)
{
	static const int32_t up[WIDTH] = {31, 30, 29, 28};
	size_t		i = 0;
	uint64_t	word = 0;

	for (; i + WIDTH <= n; i += WIDTH)
	{
		uint32x4_t	bits;

		if (i % 64 == 0)
			word = swarm_codec_word(key, i / 64);
		bits = vshlq_u32(vdupq_n_u32((uint32_t) (word >> (i % 64))), vld1q_s32(up));
		bits = vandq_u32(bits, vdupq_n_u32(0x80000000));
		vst1q_f32(x + i, vreinterpretq_f32_u32(veorq_u32(bits, vreinterpretq_u32_f32(vld1q_f32(x + i)))));
	}
	for (; i < n; i++)
	{
		if (i % 64 == 0)
			word = swarm_codec_word(key, i / 64);
		x[i] = (word >> (i % 64)) & 1 ? -x[i] : x[i];
	}
}

/*
 * mix: sums and differences of two arrays.
 */
static void
mix(float *a, float *b, size_t n, float scale)
{
	size_t		i = 0;

	for (; i + WIDTH <= n; i += WIDTH)
	{
		float32x4_t x = vld1q_f32(a + i);
		float32x4_t y = vld1q_f32(b + i);

		vst1q_f32(a + i, vmulq_n_f32(vaddq_f32(x, y), scale));
		vst1q_f32(b + i, vmulq_n_f32(vsubq_f32(x, y), scale));
	}
	if (i < n)
		swarm_codec_scalar.mix(a + i, b + i, n - i, scale);
}

/*
 * hadamard: the Hadamard transform, two stages a pass.
 */
static void
hadamard(float *x, size_t n, float scale)
{
	const		float32x4_t one = vdupq_n_f32(1);
	const		float32x4_t factor = vdupq_n_f32(scale);
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

const SwarmCodecKernels swarm_codec_neon = {
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

const SwarmQuantKernels swarm_quant_neon = {
	.level = SWARM_QUANT_NEON,
	.l2_squared = l2_squared,
	.dot = dot,
	.cosine = cosine,
	.codec = &swarm_codec_neon,
};

#else
typedef int swarm_quant_neon_unused;	/* a file may not be empty */
#endif							/* SWARM_QUANT_ARM */
