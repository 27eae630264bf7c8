/*
 * vector_simd.c
 *	  The setting qhnsw.simd.
 *
 * Which kernels a process uses is its own affair: a session that changes the
 * setting changes its results in the last bits and nobody else's.
 */
#include "postgres.h"

#include "utils/guc.h"

#include "quant/quant.h"
#include "vector/vector.h"

/* Beside the levels themselves. */
#define SIMD_AUTO	(-1)

static const struct config_enum_entry simd_options[] = {
	{"auto", SIMD_AUTO, false},
	{"scalar", SWARM_QUANT_SCALAR, false},
	{"sse", SWARM_QUANT_SSE, false},
	{"avx2", SWARM_QUANT_AVX2, false},
	{"avx512", SWARM_QUANT_AVX512, false},
	{"avx512vnni", SWARM_QUANT_AVX512VNNI, false},
	{"neon", SWARM_QUANT_NEON, false},
	{NULL, 0, false}
};

static int	simd = SIMD_AUTO;

/*
 * check_simd: refuse a level that this processor does not have.
 */
static bool
check_simd(int *newval, void **extra, GucSource source)
{
	char		available[64] = "";

	if (*newval == SIMD_AUTO || swarm_quant_available(*newval) != NULL)
		return true;

	for (int level = 0; level < SWARM_QUANT_LEVELS; level++)
		if (swarm_quant_available(level) != NULL)
		{
			strlcat(available, ", ", sizeof(available));
			strlcat(available, swarm_quant_level_name(level),
					sizeof(available));
		}
	GUC_check_errdetail("This processor or operating system has no SIMD level \"%s\".",
						swarm_quant_level_name(*newval));
	GUC_check_errhint("Available values: auto%s.", available);
	return false;
}

/*
 * assign_simd: switch the kernels of this process.
 */
static void
assign_simd(int newval, void *extra)
{
	swarm_quant_select(newval == SIMD_AUTO ? "auto" :
					   swarm_quant_level_name(newval));
}

void
swarm_vector_init(void)
{
	swarm_quant_init();
	DefineCustomEnumVariable("qhnsw.simd",
							 "Selects the processor instructions that compute distances.",
							 "\"auto\" uses the widest that the processor has; results differ in the last bits.",
							 &simd,
							 SIMD_AUTO,
							 simd_options,
							 PGC_USERSET,
							 0,
							 check_simd,
							 assign_simd,
							 NULL);
}
