/*
 * hnsw_options.c
 *	  Settings and storage options.
 *
 * A setting that the user made wins over the storage option of the index,
 * which wins over the setting's default.
 */
#include "postgres.h"

#include "access/reloptions.h"
#include "utils/guc.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "hnsw/hnsw.h"
#include "hnsw/hnsw_int.h"

/* Limits and defaults of the storage options. */
#define DEFAULT_M					16
#define MIN_M						2
#define MAX_M						100
#define DEFAULT_EF_CONSTRUCTION		200
#define MIN_EF_CONSTRUCTION			4
#define MAX_EF_CONSTRUCTION			2000
#define DEFAULT_EF_SEARCH			64
#define MAX_EF_SEARCH				10000

typedef enum SwarmHnswQuantizer
{
	QUANTIZER_AUTO,
	QUANTIZER_SQ8,
	QUANTIZER_RABITQ4,
	QUANTIZER_RABITQ2,
	QUANTIZER_RABITQ1,
	QUANTIZER_HALF,
	QUANTIZER_NONE
} SwarmHnswQuantizer;

/* A quantizer's bits a dimension: to traverse, to refine by default. */
static const struct
{
	uint8		bits;
	uint8		refine_bits;
}			quantizers[] = {
	[QUANTIZER_SQ8] = {8, 0},
	[QUANTIZER_RABITQ4] = {4, 1},
	[QUANTIZER_RABITQ2] = {2, 3},
	[QUANTIZER_RABITQ1] = {1, 4},
	[QUANTIZER_HALF] = {16, 0},
	[QUANTIZER_NONE] = {32, 0},
};

/* Below this many dimensions a code is small beside its links: spend more. */
#define SMALL_DIMS	512
#define SMALL_DIMS_BITS	2

static relopt_enum_elt_def quantizer_values[] = {
	{"auto", QUANTIZER_AUTO},
	{"sq8", QUANTIZER_SQ8},
	{"rabitq4", QUANTIZER_RABITQ4},
	{"rabitq2", QUANTIZER_RABITQ2},
	{"rabitq1", QUANTIZER_RABITQ1},
	{"half", QUANTIZER_HALF},
	{"none", QUANTIZER_NONE},
	{NULL, 0}
};

static relopt_enum_elt_def rerank_values[] = {
	{"off", SWARM_RERANK_OFF},
	{"index", SWARM_RERANK_INDEX},
	{"heap", SWARM_RERANK_HEAP},
	{NULL, 0}
};

static relopt_enum_elt_def layout_values[] = {
	{"compact", 0},
	{NULL, 0}
};

#define RERANK_DEFAULT	(-1)	/* of the setting: as the index says */

static const struct config_enum_entry rerank_settings[] = {
	{"default", RERANK_DEFAULT, false},
	{"off", SWARM_RERANK_OFF, false},
	{"index", SWARM_RERANK_INDEX, false},
	{"heap", SWARM_RERANK_HEAP, false},
	{NULL, 0, false}
};

static const struct config_enum_entry iterative_settings[] = {
	{"off", SWARM_ITERATIVE_OFF, false},
	{"relaxed", SWARM_ITERATIVE_RELAXED, false},
	{"strict", SWARM_ITERATIVE_STRICT, false},
	{NULL, 0, false}
};

static relopt_kind kind;

int			swarm_hnsw_pending_list_limit;
int			swarm_hnsw_flush_after;
static int	ef_search;
static int	rerank;
static int	iterative_scan;
static int	max_scan_tuples;

/*
 * swarm_hnsw_options_init: define all of them; from _PG_init.
 */
void
swarm_hnsw_options_init(void)
{
	LOCKMODE	lock = AccessExclusiveLock;

	kind = add_reloption_kind();
	add_int_reloption(kind, "m", "links of a node in a layer, twice as many in the lowest",
					  DEFAULT_M, MIN_M, MAX_M, lock);
	add_int_reloption(kind, "ef_construction", "candidates for the links of a new node",
					  DEFAULT_EF_CONSTRUCTION, MIN_EF_CONSTRUCTION,
					  MAX_EF_CONSTRUCTION, ShareUpdateExclusiveLock);
	add_int_reloption(kind, "ef_search", "candidates of a search, unless qhnsw.ef_search is set",
					  0, 0, MAX_EF_SEARCH, ShareUpdateExclusiveLock);
	add_enum_reloption(kind, "quantizer", "how vectors are coded",
					   quantizer_values, QUANTIZER_AUTO,
					   "Valid values are \"auto\", \"sq8\", \"rabitq4\", \"rabitq2\", \"rabitq1\", \"half\" and \"none\".",
					   lock);
	add_int_reloption(kind, "refine_bits", "further bits a dimension to rerank with",
					  -1, -1, 7, lock);
	add_enum_reloption(kind, "rerank", "where the order of the best candidates comes from",
					   rerank_values, SWARM_RERANK_INDEX,
					   "Valid values are \"off\", \"index\" and \"heap\".",
					   lock);
	add_enum_reloption(kind, "layout", "how nodes lie in pages", layout_values, 0,
					   "Valid values are \"compact\".", lock);
	add_int_reloption(kind, "dims", "dimensions of the vectors, 0: as the first row",
					  0, 0, SWARM_CODEC_MAX_DIMS - 1, lock);
	add_bool_reloption(kind, "fastupdate", "collect new rows and link them later",
					   true, ShareUpdateExclusiveLock);

	DefineCustomIntVariable("qhnsw.ef_search",
							"Sets how many candidates a search keeps.",
							"More find more of the true neighbours and take longer.",
							&ef_search, DEFAULT_EF_SEARCH, 1, MAX_EF_SEARCH,
							PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomEnumVariable("qhnsw.rerank",
							 "Sets where the order of the best candidates comes from.",
							 "\"default\" is as the index says.",
							 &rerank, RERANK_DEFAULT, rerank_settings,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomEnumVariable("qhnsw.iterative_scan",
							 "Sets whether a scan goes on when its candidates are used up.",
							 "\"strict\" leaves out rows that are found too late for their order.",
							 &iterative_scan, SWARM_ITERATIVE_STRICT,
							 iterative_settings,
							 PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("qhnsw.max_scan_tuples",
							"Sets after how many rows a scan ends.",
							"-1 means that it goes on to the last row.",
							&max_scan_tuples, -1, -1, INT_MAX,
							PGC_USERSET, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("qhnsw.pending_list_limit",
							"Sets how much an index collects before an insert links it.",
							NULL,
							&swarm_hnsw_pending_list_limit, 8192, 64,
							MAX_KILOBYTES,
							PGC_USERSET, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("qhnsw.flush_after",
							"Sets how many rows an index collects before a runner links them.",
							"-1 leaves that to VACUUM and to qhnsw.pending_list_limit.",
							&swarm_hnsw_flush_after, 1000, -1, INT_MAX,
							PGC_USERSET, 0, NULL, NULL, NULL);
	MarkGUCPrefixReserved("qhnsw");
}

/*
 * swarm_hnsw_options: parse WITH (...).
 */
bytea *
swarm_hnsw_options(Datum reloptions, bool validate)
{
	static const relopt_parse_elt table[] = {
		{"m", RELOPT_TYPE_INT, offsetof(SwarmHnswOptions, m)},
		{"ef_construction", RELOPT_TYPE_INT, offsetof(SwarmHnswOptions, ef_construction)},
		{"ef_search", RELOPT_TYPE_INT, offsetof(SwarmHnswOptions, ef_search)},
		{"quantizer", RELOPT_TYPE_ENUM, offsetof(SwarmHnswOptions, quantizer)},
		{"refine_bits", RELOPT_TYPE_INT, offsetof(SwarmHnswOptions, refine_bits)},
		{"rerank", RELOPT_TYPE_ENUM, offsetof(SwarmHnswOptions, rerank)},
		{"layout", RELOPT_TYPE_ENUM, offsetof(SwarmHnswOptions, layout)},
		{"dims", RELOPT_TYPE_INT, offsetof(SwarmHnswOptions, dims)},
		{"fastupdate", RELOPT_TYPE_BOOL, offsetof(SwarmHnswOptions, fastupdate)},
	};

	return (bytea *) build_reloptions(reloptions, validate, kind,
									  sizeof(SwarmHnswOptions), table,
									  lengthof(table));
}

/*
 * swarm_hnsw_get_options: the options of an index, never NULL.
 */
const SwarmHnswOptions *
swarm_hnsw_get_options(Relation rel)
{
	static const SwarmHnswOptions defaults = {
		.m = DEFAULT_M,
		.ef_construction = DEFAULT_EF_CONSTRUCTION,
		.quantizer = QUANTIZER_AUTO,
		.refine_bits = -1,
		.rerank = SWARM_RERANK_INDEX,
		.fastupdate = true,
	};

	return rel->rd_options != NULL ?
		(const SwarmHnswOptions *) rel->rd_options : &defaults;
}

/*
 * swarm_hnsw_quantizer: the bits of an index with these options and
 * dimensions.
 *
 * "auto" takes 4 bits, which cost no more time to score than 1 and need fewer
 * candidates (see the README), and in a few dimensions 8.
 */
void
swarm_hnsw_quantizer(const SwarmHnswOptions *options, int dims, int *bits,
					 int *refine_bits)
{
	int			quantizer = options->quantizer;

	if (quantizer == QUANTIZER_AUTO)
		quantizer = dims < 64 ? QUANTIZER_SQ8 : QUANTIZER_RABITQ4;
	*bits = quantizers[quantizer].bits;
	*refine_bits = quantizers[quantizer].refine_bits;
	if (*refine_bits > 0 && dims <= SMALL_DIMS)
		*refine_bits += SMALL_DIMS_BITS;
	if (options->refine_bits >= 0)
		*refine_bits = options->refine_bits;
	if (options->rerank != SWARM_RERANK_INDEX || *bits >= 8)
		*refine_bits = 0;
	*refine_bits = Min(*refine_bits, 8 - Min(*bits, 8));
}

/*
 * set_by_user: was a setting made, rather than left at its default?
 */
static bool
set_by_user(const char *name)
{
	struct config_generic *record = swarm_guc_find(name);

	return record != NULL && record->source != PGC_S_DEFAULT;
}

/*
 * swarm_hnsw_ef_search: candidates of a search in an index.
 */
int
swarm_hnsw_ef_search(Relation rel)
{
	const SwarmHnswOptions *options = swarm_hnsw_get_options(rel);

	if (options->ef_search > 0 && !set_by_user("qhnsw.ef_search"))
		return options->ef_search;
	return ef_search;
}

/*
 * swarm_hnsw_rerank: where the order comes from.
 */
SwarmHnswRerank
swarm_hnsw_rerank(Relation rel)
{
	return rerank == RERANK_DEFAULT ?
		swarm_hnsw_get_options(rel)->rerank : rerank;
}

/*
 * swarm_hnsw_max_scan_tuples: the rows that a scan may return.
 */
int
swarm_hnsw_max_scan_tuples(void)
{
	return max_scan_tuples < 0 ? INT_MAX : max_scan_tuples;
}

/*
 * swarm_hnsw_iterative: whether and how a scan goes on.
 */
SwarmHnswIterative
swarm_hnsw_iterative(void)
{
	return iterative_scan;
}
