/*
 * quant_int.h
 *	  The kernels of every level, for the dispatcher.
 *
 * A file per level holds only functions that carry their level's target
 * attribute, so that no other function is compiled with instructions that the
 * processor may not have.
 */
#ifndef SWARM_QUANT_INT_H
#define SWARM_QUANT_INT_H

#include "quant/quant.h"

#if defined(__x86_64__)
#define SWARM_QUANT_X86
#endif
#if defined(__aarch64__)
#define SWARM_QUANT_ARM
#endif

extern const SwarmQuantKernels swarm_quant_scalar;

#ifdef SWARM_QUANT_X86
extern const SwarmQuantKernels swarm_quant_sse;
extern const SwarmQuantKernels swarm_quant_avx2;
extern const SwarmQuantKernels swarm_quant_avx512;
#endif

#ifdef SWARM_QUANT_ARM
extern const SwarmQuantKernels swarm_quant_neon;
#endif

#endif							/* SWARM_QUANT_INT_H */
