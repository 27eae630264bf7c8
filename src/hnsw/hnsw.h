/*
 * hnsw.h
 *	  The access method qhnsw: a quantized HNSW index.
 *
 * SQL: sql/modules/30_hnsw.sql; reference: docs/reference/qhnsw.md; how it
 * works: README.md beside this file.
 */
#ifndef SWARM_HNSW_H
#define SWARM_HNSW_H

/* swarm_hnsw_init: define the module's settings and options; from _PG_init. */
extern void swarm_hnsw_init(void);

#endif							/* SWARM_HNSW_H */
