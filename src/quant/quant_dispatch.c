/*
 * quant_dispatch.c
 *	  Which SIMD level the kernels use.
 *
 * The choice is made once at load from what the processor reports and, for
 * registers that a context switch must save, from what the operating system
 * has switched on; swarm_quant_select changes it.  A process has one choice;
 * no other process is involved.
 */
#include "quant/quant_int.h"

#include <string.h>

#ifdef SWARM_QUANT_X86
#include <cpuid.h>
#endif

static const char *const level_names[SWARM_QUANT_LEVELS] = {
	[SWARM_QUANT_SCALAR] = "scalar",
	[SWARM_QUANT_SSE] = "sse",
	[SWARM_QUANT_AVX2] = "avx2",
	[SWARM_QUANT_AVX512] = "avx512",
	[SWARM_QUANT_AVX512VNNI] = "avx512vnni",
	[SWARM_QUANT_NEON] = "neon",
};

const SwarmQuantKernels *swarm_quant = &swarm_quant_scalar;

void
swarm_quant_init(void)
{
	swarm_quant_select("auto");
}

bool
swarm_quant_select(const char *name)
{
	const SwarmQuantKernels *kernels = swarm_quant_find(name);

	if (kernels == NULL)
		return false;
	swarm_quant = kernels;
	return true;
}

const SwarmQuantKernels *
swarm_quant_find(const char *name)
{
	bool		any = strcmp(name, "auto") == 0;

	for (int level = SWARM_QUANT_LEVELS - 1; level >= 0; level--)
	{
		const SwarmQuantKernels *kernels = swarm_quant_available(level);

		if (kernels != NULL && (any || strcmp(name, level_names[level]) == 0))
			return kernels;
	}
	return NULL;
}

const char *
swarm_quant_level_name(SwarmQuantLevel level)
{
	return level_names[level];
}

#ifdef SWARM_QUANT_X86

/* Bits of XCR0: the register files that the operating system saves. */
#define XCR0_AVX	0x06		/* XMM, YMM */
#define XCR0_AVX512	0xe6		/* and opmask, both halves of ZMM */

/*
 * xcr0: what the operating system saves; 0 when it cannot be asked.
 */
static uint32_t
xcr0(void)
{
	uint32_t	eax,
				ebx,
				ecx,
				edx;

	if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE))
		return 0;
	__asm__ volatile ("xgetbv":"=a" (eax), "=d"(edx):"c"(0));

	return eax;
}

/*
 * has_avx2: AVX2, FMA and F16C can be used.
 */
static bool
has_avx2(void)
{
	uint32_t	eax,
				ebx,
				ecx,
				edx;

	if ((xcr0() & XCR0_AVX) != XCR0_AVX ||
		!__get_cpuid(1, &eax, &ebx, &ecx, &edx) ||
		!(ecx & bit_AVX) || !(ecx & bit_FMA) || !(ecx & bit_F16C))
		return false;
	return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) &&
		(ebx & bit_AVX2) != 0;
}

/*
 * has_avx512: AVX-512 with these features of leaf 7 can be used.  Asks for
 * AVX2 as well, whose kernels the level avx512 has for codes.
 */
static bool
has_avx512(uint32_t want_ebx, uint32_t want_ecx)
{
	uint32_t	eax,
				ebx,
				ecx,
				edx;

	return has_avx2() && (xcr0() & XCR0_AVX512) == XCR0_AVX512 &&
		__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) &&
		(ebx & want_ebx) == want_ebx && (ecx & want_ecx) == want_ecx;
}

const SwarmQuantKernels *
swarm_quant_available(SwarmQuantLevel level)
{
	switch (level)
	{
		case SWARM_QUANT_SCALAR:
			return &swarm_quant_scalar;
		case SWARM_QUANT_SSE:
			return &swarm_quant_sse;
		case SWARM_QUANT_AVX2:
			return has_avx2() ? &swarm_quant_avx2 : NULL;
		case SWARM_QUANT_AVX512:
			return has_avx512(bit_AVX512F, 0) ? &swarm_quant_avx512 : NULL;
		case SWARM_QUANT_AVX512VNNI:
			return has_avx512(bit_AVX512F | bit_AVX512BW | bit_AVX512VL,
							  bit_AVX512VNNI | bit_AVX512VPOPCNTDQ) ?
				&swarm_quant_avx512vnni : NULL;
		default:
			return NULL;
	}
}

#else

const SwarmQuantKernels *
swarm_quant_available(SwarmQuantLevel level)
{
#ifdef SWARM_QUANT_ARM
	if (level == SWARM_QUANT_NEON)
		return &swarm_quant_neon;
#endif
	return level == SWARM_QUANT_SCALAR ? &swarm_quant_scalar : NULL;
}

#endif							/* SWARM_QUANT_X86 */
