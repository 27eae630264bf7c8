/*
 * hnsw_int.h
 *	  What the files of the access method share: the format of the pages, the
 *	  opened index, the query, the search, and the acts.
 *
 * Read README.md first.
 */
#ifndef SWARM_HNSW_INT_H
#define SWARM_HNSW_INT_H

#include "access/amapi.h"
#include "access/generic_xlog.h"
#include "access/genam.h"
#include "nodes/execnodes.h"
#include "nodes/pathnodes.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "storage/itemptr.h"
#include "utils/rel.h"
#include "utils/relcache.h"

#include "base/compat.h"
#include "quant/codec.h"

/* ---------------------------------------------------------------- pages */

typedef uint32 SwarmNodeId;

#define SWARM_NODE_NONE			PG_UINT32_MAX

#define SWARM_HNSW_MAGIC		0x71686e73
#define SWARM_HNSW_FORMAT		1

#define SWARM_HNSW_META_BLOCK	0
#define SWARM_HNSW_MODEL_BLOCK	1

/* A node of level l has level l + 1 with this chance, as 1/m for m = 16. */
#define SWARM_HNSW_FANOUT_BITS	4
#define SWARM_HNSW_FANOUT		(1 << SWARM_HNSW_FANOUT_BITS)
#define SWARM_HNSW_MAX_LEVEL	7

/*
 * The streams of pages.  Each holds slots of one kind for ascending node ids,
 * in the order in which ids first need them: swarm_hnsw_block computes where.
 */
typedef enum SwarmHnswStream
{
	SWARM_STREAM_UPPER,			/* links of level 1 and above */
	SWARM_STREAM_NODE,			/* the node, its code, its links of level 0 */
	SWARM_STREAM_REFINE			/* the refine code */
} SwarmHnswStream;

#define SWARM_HNSW_STREAMS		(SWARM_STREAM_REFINE + 1)

/* Kinds of pages, in the special space. */
#define SWARM_PAGE_META			(SWARM_HNSW_STREAMS + 1)
#define SWARM_PAGE_MODEL		(SWARM_HNSW_STREAMS + 2)

typedef struct SwarmHnswSpecial
{
	uint16		kind;			/* stream + 0, or one of the above */
	uint16		magic;			/* SWARM_HNSW_PAGE_MAGIC */
	uint32		number;			/* of the page in its stream */
} SwarmHnswSpecial;

#define SWARM_HNSW_PAGE_MAGIC	0x7148
#define SWARM_HNSW_PAGE_ROOM \
	(BLCKSZ - MAXALIGN(SizeOfPageHeaderData) - MAXALIGN(sizeof(SwarmHnswSpecial)))

/* What distance an index is for, and what its vectors are made of. */
typedef enum SwarmHnswMetric
{
	SWARM_METRIC_L2,
	SWARM_METRIC_COSINE,		/* L2 of unit vectors */
	SWARM_METRIC_IP				/* L2 after one more coordinate; see README */
} SwarmHnswMetric;

typedef enum SwarmHnswType
{
	SWARM_TYPE_REAL,			/* real[] */
	SWARM_TYPE_VECTOR,			/* pgvector's vector */
	SWARM_TYPE_HALFVEC			/* pgvector's halfvec */
} SwarmHnswType;

typedef struct SwarmHnswOpclass
{
	SwarmHnswMetric metric;
	SwarmHnswType type;
} SwarmHnswOpclass;

typedef enum SwarmHnswRerank
{
	SWARM_RERANK_OFF,
	SWARM_RERANK_INDEX,
	SWARM_RERANK_HEAP
} SwarmHnswRerank;

/* The metapage. */
typedef struct SwarmHnswMeta
{
	uint32		magic;
	uint32		format;

	/* fixed when the first vector is known, or at CREATE INDEX */
	uint32		dims;			/* of the column; 0: not known yet */
	uint8		metric;
	uint8		bits;			/* of the traversal code */
	uint8		refine_bits;
	bool		nulls_left_out; /* nulls came before dims were known */
	uint32		m;
	uint32		ef_construction;
	uint64		seed;			/* of the rotation and the levels */

	/* the models: codes are made with the one of their generation */
	uint32		generation;		/* newest; its parity names the area */
	uint32		oldest;			/* generation of the oldest code */
	uint64		trained;		/* rows that the newest was made from */
	float4		radius[2];		/* inner product: the largest norm */

	/* the nodes */
	uint32		nodes;			/* ids given out */
	uint32		free_nodes;
	SwarmNodeId free_head;
	SwarmNodeId entry;
	SwarmNodeId pending_head;	/* inserts push here */
	SwarmNodeId folding_head;	/* a fold pops here */
	uint32		pending;		/* nodes in both lists */
	uint32		odd;			/* nodes without a code, ever */
} SwarmHnswMeta;

/*
 * States of a node; the table of what may follow what is in hnsw_page.c.
 */
typedef enum SwarmNodeState
{
	SWARM_NODE_FREE,			/* in the free list */
	SWARM_NODE_PENDING,			/* in a pending list */
	SWARM_NODE_JOINING,			/* its inserter is linking it */
	SWARM_NODE_LINKED,			/* in the graph */
	SWARM_NODE_TWIN,			/* same codes as the node in links[0] */
	SWARM_NODE_ODD,				/* null, or zero under cosine: no code */
	SWARM_NODE_DEAD				/* row is gone, still in the graph */
} SwarmNodeState;

#define SWARM_NODE_STATES		(SWARM_NODE_DEAD + 1)

#define SWARM_NODE_GENERATION	0x01	/* parity of the code's generation */
#define SWARM_NODE_NULL			0x02	/* odd: the value is null */

/*
 * A slot of a node page: this header, the traversal code (code_size bytes),
 * links of level 0 (2 m ids).
 */
typedef struct SwarmNode
{
	uint16		version;		/* changes when the slot is freed */
	uint8		state;
	uint8		degree;			/* links in use */
	SwarmNodeId next;			/* in the list of its state, or its twins */
	float4		norm2;
	float4		scale;
	ItemPointerData tid;
	uint16		flags;
	uint8		code[FLEXIBLE_ARRAY_MEMBER];
} SwarmNode;

/* A slot of an upper page. */
typedef struct SwarmUpper
{
	uint32		degree;
	SwarmNodeId links[FLEXIBLE_ARRAY_MEMBER];	/* m ids */
} SwarmUpper;

/* A slot of a refine page. */
typedef struct SwarmRefine
{
	float4		scale;
	uint8		code[FLEXIBLE_ARRAY_MEMBER];
} SwarmRefine;

/* Where things are; computed from the metapage. */
typedef struct SwarmHnswLayout
{
	BlockNumber first;			/* of the streams */
	uint32		model_pages;	/* of one model */
	uint32		slot_size[SWARM_HNSW_STREAMS];
	uint32		per_page[SWARM_HNSW_STREAMS];	/* ids a page covers; 0: no
												 * such stream */
} SwarmHnswLayout;

/* A page of a stream that this backend read before. */
typedef struct SwarmPageHint
{
	BlockNumber block;			/* InvalidBlockNumber: not computed yet */
	Buffer		buffer;			/* where it was */
} SwarmPageHint;

/* The nodes of an upper level, kept to begin at; see hnsw_entry.c. */
typedef struct SwarmHnswEntries
{
	MemoryContext context;
	int			searches;		/* that did without */
	int			level;
	int			count;			/* 0: none are kept */
	uint32		nodes;			/* of the index when they were read */
	uint32		generation;
	SwarmNodeId *ids;
	float	   *norm2;
	float	   *scale;
	const uint8 **codes;
} SwarmHnswEntries;

/*
 * An open index: what one backend remembers of it between statements.
 * From swarm_hnsw_open; lives in its own context in the cache of hnsw_open.c.
 */
typedef struct SwarmHnswIndex
{
	MemoryContext context;
	Oid			relid;
	Oid			file;			/* number of the relation's file */
	uint64		used;			/* for eviction */
	TransactionId asked;		/* for a fold, by this (sub)transaction */
	int			pins;			/* scans that hold it */
	bool		forgotten;		/* goes with its last pin */
	SwarmHnswOpclass opclass;
	SwarmHnswMeta meta;			/* as of the last open */
	SwarmHnswLayout layout;
	SwarmCodec	codec;
	int			dims;			/* of a coded vector: with inner product one
								 * more than the column's */
	float	   *centre[2];		/* rotated, by parity of generation */
	uint32		loaded[2];		/* generations there */
	BlockNumber blocks;			/* pages known to exist */
	SwarmPageHint *hints[SWARM_HNSW_STREAMS];
	uint32		hinted[SWARM_HNSW_STREAMS];
	float	   *work;			/* 2 dims floats, for the encoder */
	SwarmHnswEntries entries;
} SwarmHnswIndex;

/* hnsw_page.c */
extern void swarm_hnsw_layout(SwarmHnswLayout *layout,
							  const SwarmHnswMeta *meta,
							  const SwarmCodec *codec);
extern int	swarm_hnsw_level(const SwarmHnswMeta *meta, SwarmNodeId id);
extern uint32 swarm_hnsw_level_digit(const SwarmHnswMeta *meta, int level,
									 uint32 block);
extern BlockNumber swarm_hnsw_block(const SwarmHnswLayout *layout,
									SwarmHnswStream stream, uint32 page);
extern BlockNumber swarm_hnsw_blocks(const SwarmHnswLayout *layout,
									 uint32 nodes);
extern void swarm_hnsw_init_page(Page page, uint16 kind, uint32 number);
extern bool swarm_hnsw_page_is(Page page, uint16 kind, uint32 number);
extern void swarm_hnsw_use_page(Page page, const void *end);
extern void swarm_hnsw_check_page(Relation rel, BlockNumber block, Page page,
								  uint16 kind, uint32 number);
extern bool swarm_hnsw_may_follow(SwarmNodeState from, SwarmNodeState to);
extern const char *swarm_hnsw_state_name(SwarmNodeState state);
swarm_noreturn extern void swarm_hnsw_damaged(Relation rel, const char *what,
											  uint32 number);
extern void swarm_hnsw_check_row(Relation rel, Relation heap, ItemPointer tid,
								 BlockNumber *blocks);
extern Buffer swarm_hnsw_read(SwarmHnswIndex *index, Relation rel,
							  SwarmHnswStream stream, uint32 page,
							  int lock);

/* The slot of a node in its locked page, and its parts. */
static inline SwarmNode *
swarm_hnsw_node(const SwarmHnswIndex *index, Page page, SwarmNodeId id)
{
	return (SwarmNode *) (PageGetContents(page) +
						  (Size) (id % index->layout.per_page[SWARM_STREAM_NODE]) *
						  index->layout.slot_size[SWARM_STREAM_NODE]);
}

static inline SwarmNodeId *
swarm_hnsw_links(const SwarmHnswIndex *index, SwarmNode *node)
{
	return (SwarmNodeId *) (node->code + index->codec.code_size);
}

static inline SwarmRefine *
swarm_hnsw_refine(const SwarmHnswIndex *index, Page page, SwarmNodeId id)
{
	return (SwarmRefine *) (PageGetContents(page) +
							(Size) (id % index->layout.per_page[SWARM_STREAM_REFINE]) *
							index->layout.slot_size[SWARM_STREAM_REFINE]);
}

extern SwarmUpper *swarm_hnsw_upper(const SwarmHnswIndex *index, Page page,
									SwarmNodeId id, int level);

static inline Buffer
swarm_hnsw_read_node(SwarmHnswIndex *index, Relation rel, SwarmNodeId id,
					 int lock)
{
	return swarm_hnsw_read(index, rel, SWARM_STREAM_NODE,
						   id / index->layout.per_page[SWARM_STREAM_NODE], lock);
}

#define swarm_hnsw_max_degree(index, level) \
	((level) == 0 ? 2 * (index)->meta.m : (index)->meta.m)

/*
 * Links that a new node is given; others that link to it add more.  On level 0
 * a quarter more than the m of the paper: for the same recall a walk expands a
 * tenth fewer nodes.
 */
#define swarm_hnsw_new_degree(index, level) \
	((level) == 0 ? (index)->meta.m + (index)->meta.m / 4 : (index)->meta.m)

/* ------------------------------------------------------ the open index */

/* hnsw_open.c */
extern SwarmHnswIndex *swarm_hnsw_open(Relation rel);
extern void swarm_hnsw_forget(Relation rel);
extern void swarm_hnsw_unpin(SwarmHnswIndex *index);
extern const SwarmHnswOpclass *swarm_hnsw_opclass(Relation rel);
extern void swarm_hnsw_setup(SwarmHnswIndex *index);
extern void swarm_hnsw_meta_fill(Relation rel, SwarmHnswMeta *meta, int dims);
extern void swarm_hnsw_model_load(SwarmHnswIndex *index, Relation rel,
								  uint32 generation);
extern void swarm_hnsw_model_store(Relation rel, SwarmHnswIndex *index,
								   uint32 generation, const float *centre,
								   bool wal);
extern SwarmHnswMeta *swarm_hnsw_meta(Page page);

/* hnsw_options.c */
typedef struct SwarmHnswOptions
{
	int32		vl_len_;
	int			m;
	int			ef_construction;
	int			ef_search;		/* 0: not given */
	int			quantizer;		/* SwarmHnswQuantizer */
	int			refine_bits;	/* -1: by the quantizer */
	int			rerank;			/* SwarmHnswRerank */
	int			layout;
	int			dims;			/* 0: from the first row */
	bool		fastupdate;
} SwarmHnswOptions;

extern int	swarm_hnsw_pending_list_limit;	/* kB */
extern int	swarm_hnsw_flush_after;

extern void swarm_hnsw_options_init(void);
extern bytea *swarm_hnsw_options(Datum reloptions, bool validate);
extern const SwarmHnswOptions *swarm_hnsw_get_options(Relation rel);
extern int	swarm_hnsw_ef_search(Relation rel);
extern SwarmHnswRerank swarm_hnsw_rerank(Relation rel);
extern int	swarm_hnsw_max_scan_tuples(void);
extern void swarm_hnsw_quantizer(const SwarmHnswOptions *options, int dims,
								 int *bits, int *refine_bits);

typedef enum SwarmHnswIterative
{
	SWARM_ITERATIVE_OFF,
	SWARM_ITERATIVE_RELAXED,
	SWARM_ITERATIVE_STRICT
} SwarmHnswIterative;

extern SwarmHnswIterative swarm_hnsw_iterative(void);

/* ------------------------------------------------------------- vectors */

/* What a datum of the column is. */
typedef enum SwarmHnswValue
{
	SWARM_VALUE_VECTOR,
	SWARM_VALUE_ZERO			/* zero under cosine */
} SwarmHnswValue;

/* hnsw_vector.c */
extern const float *swarm_hnsw_floats(const SwarmHnswOpclass *opclass,
									  Datum value, int *dims, void **tofree);
extern double swarm_hnsw_norm2(const SwarmHnswOpclass *opclass, const float *v,
							   int dims);
extern SwarmHnswValue swarm_hnsw_coordinates(const SwarmHnswIndex *index,
											 const float *v, int dims,
											 bool query, float *out);
extern int	swarm_hnsw_value_dims(const SwarmHnswOpclass *opclass, Datum value);
extern double swarm_hnsw_exact(SwarmHnswMetric metric, const float *a,
							   const float *b, int dims);

/* A vector in code, as it goes to the pages. */
typedef struct SwarmHnswCode
{
	SwarmCodeFactors factors;
	uint8	   *code;
	uint8	   *refine;			/* NULL when there is none */
	uint32		generation;
} SwarmHnswCode;

extern SwarmHnswCode *swarm_hnsw_code_new(const SwarmHnswIndex *index);
extern void swarm_hnsw_encode(SwarmHnswIndex *index, const float *rotated,
							  SwarmHnswCode *code);
extern void swarm_hnsw_decode(SwarmHnswIndex *index, const uint8 *code,
							  const uint8 *refine, float scale, int parity,
							  float *rotated);

/* A query against an open index. */
typedef struct SwarmHnswQuery
{
	bool		inner;			/* score by inner product, not by L2 */
	uint32		generation;		/* newest and oldest that it is ready for */
	uint32		oldest;
	float	   *rotated;
	bool		ready[2];		/* by parity of generation */
	float		norm2[2];		/* |q - c|^2 */
	float		base[2];		/* <q, c> */
	SwarmCodecQuery *codec[2];
} SwarmHnswQuery;

extern SwarmHnswQuery *swarm_hnsw_query_new(const SwarmHnswIndex *index);
extern void swarm_hnsw_query_set(SwarmHnswIndex *index, SwarmHnswQuery *query,
								 const float *rotated, bool inner);

/*
 * swarm_hnsw_query_refresh: make a query ready again after the index was
 * opened anew, by this scan or by another statement of the session, and has
 * another model since.
 */
static inline void
swarm_hnsw_query_refresh(SwarmHnswIndex *index, SwarmHnswQuery *query)
{
	if (unlikely(query->generation != index->meta.generation ||
				 query->oldest != index->meta.oldest))
		swarm_hnsw_query_set(index, query, query->rotated, query->inner);
}

/*
 * swarm_hnsw_score: the estimated distance of a code from the query, from the
 * dot product that the codec computed: squared length, or for inner product
 * its negative.
 */
static inline float
swarm_hnsw_score(const SwarmHnswQuery *query, int parity, float norm2,
				 float scale, float dot)
{
	if (query->inner)
		return -(query->base[parity] + scale * dot);
	return norm2 + query->norm2[parity] - 2.0f * scale * dot;
}

/*
 * A vector to compare with others when links are chosen: one signed byte a
 * coordinate, relative to the centre of the newest generation.
 */
typedef struct SwarmPoint
{
	int8	   *levels;
	float		step;
	float		norm2;
} SwarmPoint;

extern void swarm_hnsw_point_set(const float *v, int dims, SwarmPoint *point);

static inline float
swarm_hnsw_point_distance(const SwarmPoint *a, const SwarmPoint *b, int dims)
{
	return a->norm2 + b->norm2 - 2.0f * a->step * b->step *
		(float) swarm_codec_dot_s8(a->levels, b->levels, dims);
}

/* ----------------------------------------------------------- the graph */

typedef struct SwarmCandidate
{
	float		distance;
	SwarmNodeId id;
	uint16		version;
	uint8		state;
	uint8		flags;
} SwarmCandidate;

/* A growing array of candidates, often used as a heap. */
typedef struct SwarmCandidates
{
	SwarmCandidate *items;
	int			count;
	int			room;
} SwarmCandidates;

/* A set of node ids: open addressing. */
typedef struct SwarmIdSet
{
	SwarmNodeId *slots;
	uint32		room;			/* a power of two */
	uint32		count;
} SwarmIdSet;

typedef struct SwarmHnswSearch
{
	SwarmHnswIndex *index;
	Relation	rel;
	SwarmHnswQuery *query;
	MemoryContext context;
	SwarmIdSet	visited;
	SwarmCandidates near;		/* min-heap: found, not expanded */
	SwarmCandidates best;		/* max-heap: the ef nearest rows */
	SwarmCandidates evicted;	/* fell out of best */
	SwarmCandidates rejected;	/* never came into best, not expanded */
	bool		keep;			/* keep the last two, to go on later */
	/* counters */
	uint64		hops;
	uint64		pages;
	uint64		scored;
	uint64		refined;
	uint64		fetched;		/* rows of the heap */
} SwarmHnswSearch;

/* Nodes of the level above that a walk begins at, at most. */
#define SWARM_HNSW_STARTS	8

/* hnsw_search.c */
extern SwarmHnswSearch *swarm_hnsw_search_new(SwarmHnswIndex *index,
											  Relation rel,
											  SwarmHnswQuery *query);
extern void swarm_hnsw_search_reset(SwarmHnswSearch *search);
extern int	swarm_hnsw_search_descend(SwarmHnswSearch *search, int to_level,
									  SwarmCandidate *starts);
extern void swarm_hnsw_search_layer(SwarmHnswSearch *search, int level, int ef,
									const SwarmCandidate *starts, int nstarts);
extern bool swarm_hnsw_search_resume(SwarmHnswSearch *search, int ef);
extern int	swarm_hnsw_read_links(SwarmHnswIndex *index, Relation rel,
								  SwarmNodeId id, int level,
								  SwarmNodeId *links);
extern int	swarm_hnsw_score_ids(SwarmHnswSearch *search,
								 const SwarmNodeId *ids, int n,
								 SwarmCandidate *out);
extern int	swarm_hnsw_score_page(SwarmHnswSearch *search, Page page,
								  const SwarmNodeId *ids, int n, uint32 states,
								  SwarmCandidate *out);
extern void swarm_hnsw_push_min(SwarmCandidates *heap, SwarmCandidate c);
extern SwarmCandidate swarm_hnsw_pop_min(SwarmCandidates *heap);
extern void swarm_hnsw_push_max(SwarmCandidates *heap, SwarmCandidate c);
extern SwarmCandidate swarm_hnsw_pop_max(SwarmCandidates *heap);
extern void swarm_hnsw_append(SwarmCandidates *array, SwarmCandidate c);
extern void swarm_hnsw_sort(SwarmCandidates *array);
extern void swarm_idset_reset(SwarmIdSet *set);
extern bool swarm_idset_add(SwarmIdSet *set, SwarmNodeId id);
extern bool swarm_idset_has(const SwarmIdSet *set, SwarmNodeId id);

/* hnsw_entry.c */
extern bool swarm_hnsw_nearest_entry(SwarmHnswSearch *search, int to_level,
									 int *level, SwarmCandidate *nearest);

/* hnsw_select.c */
typedef void (*SwarmPointLoad) (void *arg, int i);

extern int	swarm_hnsw_select(SwarmPoint *points, const float *distances,
							  int n, int dims, int max, int *chosen,
							  SwarmPointLoad load, void *arg);

/* hnsw_link.c */
extern void swarm_hnsw_link(SwarmHnswIndex *index, Relation rel,
							SwarmNodeId id, const float *rotated, bool popping);
extern int	swarm_hnsw_choose(SwarmHnswIndex *index, Relation rel,
							  SwarmNodeId id, SwarmNodeId *candidates, int n,
							  int max, SwarmNodeId *chosen);
extern bool swarm_hnsw_swap_links(SwarmHnswIndex *index, Relation rel,
								  SwarmNodeId id, int level,
								  const SwarmNodeId *old, int nold,
								  const SwarmNodeId *wanted, int nwanted);
extern void swarm_hnsw_lock_links(Relation rel);
extern void swarm_hnsw_unlock_links(Relation rel);
extern void swarm_hnsw_drain_links(Relation rel);

extern float *swarm_hnsw_read_vector(SwarmHnswIndex *index, Relation rel,
									 SwarmNodeId id, float *rotated);

/* hnsw_connect.c */
extern int64 swarm_hnsw_connect(Relation rel);

/* hnsw_insert.c */
extern bool swarm_hnsw_insert(Relation rel, Datum *values, bool *isnull,
							  ItemPointer tid, Relation heap,
							  IndexUniqueCheck unique, bool unchanged,
							  IndexInfo *info);
extern int64 swarm_hnsw_fold(Relation rel, bool wait);
extern int64 swarm_hnsw_fold_some(Relation rel, bool wait, int64 limit);
extern void swarm_hnsw_prepare_dims(Relation rel, int dims);
extern Buffer swarm_hnsw_new_buffer(Relation rel, BlockNumber block);
extern Page swarm_hnsw_register(GenericXLogState *state, Buffer buffer,
								bool fresh);

/* hnsw_chore.c */
extern void swarm_hnsw_chore_init(void);
extern void swarm_hnsw_ask_fold(SwarmHnswIndex *index, Relation rel);
extern void swarm_hnsw_interrupts(void);
extern Relation swarm_hnsw_open_table(Relation rel);
extern void swarm_hnsw_close_table(Relation heap);

/* hnsw_train.c */
extern bool swarm_hnsw_has_grown(const SwarmHnswIndex *index);
extern void swarm_hnsw_train(Relation rel);

/* hnsw_build.c */
extern IndexBuildResult *swarm_hnsw_build(Relation heap, Relation rel,
										  IndexInfo *info);
extern void swarm_hnsw_build_empty(Relation rel);

/* hnsw_scan.c */
extern IndexScanDesc swarm_hnsw_begin_scan(Relation rel, int nkeys,
										   int norderbys);
extern void swarm_hnsw_rescan(IndexScanDesc scan, ScanKey keys, int nkeys,
							  ScanKey orderbys, int norderbys);
extern bool swarm_hnsw_get_tuple(IndexScanDesc scan, ScanDirection direction);
extern void swarm_hnsw_end_scan(IndexScanDesc scan);

/* What a scan did. */
typedef struct SwarmHnswCounters
{
	uint64		hops;			/* nodes whose links were followed */
	uint64		pages;			/* page visits to score codes */
	uint64		scored;			/* codes */
	uint64		refined;		/* distances made better by refine codes */
	uint64		fetched;		/* distances made better by rows */
} SwarmHnswCounters;

extern bool swarm_hnsw_last_counters(SwarmHnswCounters *counters);
extern void swarm_hnsw_scan_counters(const void *opaque,
									 SwarmHnswCounters *counters);

/* hnsw_nulls.c */
extern void swarm_hnsw_leave_out_null(Relation rel);
extern int64 swarm_hnsw_find_nulls(IndexScanDesc scan, ItemPointerData **tids);

/* hnsw_explain.c */
extern void swarm_hnsw_explain_init(void);

/* hnsw_vacuum.c */
extern IndexBulkDeleteResult *swarm_hnsw_bulk_delete(IndexVacuumInfo *info,
													 IndexBulkDeleteResult *stats,
													 IndexBulkDeleteCallback callback,
													 void *state);
extern IndexBulkDeleteResult *swarm_hnsw_vacuum_cleanup(IndexVacuumInfo *info,
														IndexBulkDeleteResult *stats);

/* hnsw_cost.c */
extern void swarm_hnsw_cost(PlannerInfo *root, IndexPath *path,
							double loop_count, Cost *startup, Cost *total,
							Selectivity *selectivity, double *correlation,
							double *pages);

/* hnsw_check.c */

/* What the check calls for a problem; node SWARM_NODE_NONE: of no one node. */
typedef void (*SwarmHnswReport) (void *arg, const char *problem,
								 SwarmNodeId node, const char *detail);

extern void swarm_hnsw_check(Relation rel, Relation heap, SwarmHnswReport report,
							 void *arg);

/* hnsw_measure.c */

/* What swarm_hnsw_measure finds out. */
typedef struct SwarmHnswMeasures
{
	SwarmHnswMeta meta;
	uint64		rows[SWARM_NODE_STATES];
	uint64		levels[SWARM_HNSW_MAX_LEVEL + 1];	/* linked nodes there */
	uint64		pages[SWARM_PAGE_MODEL + 1];	/* by kind */
	double		drift;			/* negative: unknown */
} SwarmHnswMeasures;

extern void swarm_hnsw_measure(Relation rel, SwarmHnswMeasures *measures);

#endif							/* SWARM_HNSW_INT_H */
