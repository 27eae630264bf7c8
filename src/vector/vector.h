/*
 * vector.h
 *	  Vectors as real[]: distances, embeddings of text, and sign hashes.
 *
 * SQL: sql/modules/20_vector.sql; reference: docs/reference/vector.md.
 */
#ifndef SWARM_VECTOR_H
#define SWARM_VECTOR_H

#include <stddef.h>

/* Limits of the dimensions of an embedding, and of a vector to hash. */
#define SWARM_EMBED_MIN_DIMS	8
#define SWARM_VECTOR_MAX_DIMS	16000

/* Limit of the bits of a sign hash. */
#define SWARM_SIMHASH_MAX_BITS	16384

/* swarm_vector_init: define the module's settings; from _PG_init. */
extern void swarm_vector_init(void);

/*
 * Distances of two vectors of n floats, by the kernels in use.
 *
 * When a float sum leaves float's range, or vanishes, it is done again in
 * double: finite vectors give a finite distance.  The cosine distance of a
 * zero vector is NaN.  No errors, no allocation.
 */
extern double swarm_vector_l2_distance(const float *a, const float *b,
									   size_t n);
extern double swarm_vector_cosine_distance(const float *a, const float *b,
										   size_t n);
extern double swarm_vector_inner_product(const float *a, const float *b,
										 size_t n);

#endif							/* SWARM_VECTOR_H */
