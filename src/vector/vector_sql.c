/*
 * vector_sql.c
 *	  The SQL functions of the module: check the arguments, call the module.
 *
 * Any backend and any parallel worker runs them; they share nothing.
 */
#include "postgres.h"

#include <math.h>

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/varbit.h"

#include "base/compat.h"
#include "base/export.h"
#include "quant/quant.h"
#include "vector/vector.h"
#include "vector/vector_int.h"

/* Bytes of text between two looks for a cancel request. */
#define EMBED_BLOCK		65536

typedef double (*DistanceFunction) (const float *a, const float *b, size_t n);

static Datum distance(FunctionCallInfo fcinfo, DistanceFunction function);
static int	check_vector(ArrayType *array);
static void check_simhash_arguments(const float *v, int dims, int bits);
static void embed_server_text(SwarmEmbedder *embedder, const char *bytes,
							  int length);
static void embed_utf8(SwarmEmbedder *embedder, const char *bytes, int length);

/*
 * embed_alloc: zeroed memory for the embedder, in the current context.
 */
static void *
embed_alloc(size_t size)
{
	return palloc0(size);
}

/*
 * embed_free: give it back.
 */
static void
embed_free(void *p)
{
	pfree(p);
}

/*
 * float_array: an empty one-dimensional real[] of a size, elements unset.
 */
static ArrayType *
float_array(int dims)
{
	Size		size = ARR_OVERHEAD_NONULLS(1) + sizeof(float4) * dims;
	ArrayType  *array = palloc0(size);

	SET_VARSIZE(array, size);
	array->ndim = 1;
	array->elemtype = FLOAT4OID;
	ARR_DIMS(array)[0] = dims;
	ARR_LBOUND(array)[0] = 1;
	return array;
}

/*
 * swarm.embed(content text, dims int) returns real[]
 */
SWARM_FUNCTION(swarm_embed);
Datum
swarm_embed(PG_FUNCTION_ARGS)
{
	static const SwarmEmbedAllocator allocator = {embed_alloc, embed_free};
	int32		dims = PG_GETARG_INT32(1);
	text	   *content;
	ArrayType  *array;
	SwarmEmbedder *embedder;

	if (dims < SWARM_EMBED_MIN_DIMS || dims > SWARM_VECTOR_MAX_DIMS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid number of dimensions: %d", dims),
				 errhint("Dimensions must be between %d and %d.",
						 SWARM_EMBED_MIN_DIMS, SWARM_VECTOR_MAX_DIMS)));

	content = PG_GETARG_TEXT_PP(0);
	array = float_array(dims);
	embedder = swarm_embedder_begin(dims, &swarm_embed_weights, &allocator);
	embed_server_text(embedder, VARDATA_ANY(content),
					  VARSIZE_ANY_EXHDR(content));
	swarm_embedder_finish(embedder, (float *) ARR_DATA_PTR(array));

	PG_FREE_IF_COPY(content, 0);
	PG_RETURN_ARRAYTYPE_P(array);
}

/*
 * embed_server_text: embed text in the server's encoding.
 *
 * What has no counterpart in Unicode is embedded as single bytes, as in
 * SQL_ASCII everything is that is not UTF-8: embedding never fails.
 */
static void
embed_server_text(SwarmEmbedder *embedder, const char *bytes, int length)
{
	int			encoding = GetDatabaseEncoding();
	Oid			conversion;
	Size		room;
	unsigned char *utf8;

	if (encoding == PG_UTF8 || encoding == PG_SQL_ASCII)
	{
		embed_utf8(embedder, bytes, length);
		return;
	}

	conversion = FindDefaultConversionProc(encoding, PG_UTF8);
	room = (Size) length * MAX_CONVERSION_GROWTH + 1;
	utf8 = palloc_extended(room, MCXT_ALLOC_HUGE);
	while (length > 0)
	{
		int			done = 0;

		if (OidIsValid(conversion))
			done = pg_do_encoding_conversion_buf(conversion, encoding, PG_UTF8,
												 (unsigned char *) bytes, length,
												 utf8, Min(room, INT_MAX), true);
		if (done > 0)
			embed_utf8(embedder, (char *) utf8, strlen((char *) utf8));
		if (done < length)
			swarm_embedder_add(embedder, bytes + done++, 1);
		bytes += done;
		length -= done;
	}
	pfree(utf8);
}

/*
 * embed_utf8: embed text block by block, cut between characters.
 */
static void
embed_utf8(SwarmEmbedder *embedder, const char *bytes, int length)
{
	while (length > 0)
	{
		int			block = Min(length, EMBED_BLOCK);
		int			back = 0;

		/* at most three bytes of a character can be behind the cut */
		while (block < length && back < 3 && (bytes[block - back] & 0xC0) == 0x80)
			back++;
		if (block < length && (bytes[block - back] & 0xC0) != 0x80)
			block -= back;

		CHECK_FOR_INTERRUPTS();
		swarm_embedder_add(embedder, bytes, block);
		bytes += block;
		length -= block;
	}
}

/*
 * swarm.l2_distance(a real[], b real[]) returns double precision
 */
SWARM_FUNCTION(swarm_l2_distance);
Datum
swarm_l2_distance(PG_FUNCTION_ARGS)
{
	return distance(fcinfo, swarm_vector_l2_distance);
}

/*
 * swarm.cosine_distance(a real[], b real[]) returns double precision
 */
SWARM_FUNCTION(swarm_cosine_distance);
Datum
swarm_cosine_distance(PG_FUNCTION_ARGS)
{
	return distance(fcinfo, swarm_vector_cosine_distance);
}

/*
 * swarm.inner_product(a real[], b real[]) returns double precision
 */
SWARM_FUNCTION(swarm_inner_product);
Datum
swarm_inner_product(PG_FUNCTION_ARGS)
{
	return distance(fcinfo, swarm_vector_inner_product);
}

/*
 * swarm._negative_inner_product(a real[], b real[]) returns double precision:
 * smaller is nearer, as an ORDER BY needs it.
 */
SWARM_FUNCTION(swarm__negative_inner_product);
Datum
swarm__negative_inner_product(PG_FUNCTION_ARGS)
{
	Datum		product = distance(fcinfo, swarm_vector_inner_product);

	return Float8GetDatum(-DatumGetFloat8(product));
}

/*
 * distance: check two vectors and apply a function to them.
 */
static Datum
distance(FunctionCallInfo fcinfo, DistanceFunction function)
{
	ArrayType  *a = PG_GETARG_ARRAYTYPE_P(0);
	ArrayType  *b = PG_GETARG_ARRAYTYPE_P(1);
	int			dims = check_vector(a);
	int			dims_b = check_vector(b);
	double		result;

	if (dims != dims_b)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("different vector dimensions %d and %d", dims, dims_b)));
	result = function((float *) ARR_DATA_PTR(a), (float *) ARR_DATA_PTR(b),
					  dims);

	PG_FREE_IF_COPY(a, 0);
	PG_FREE_IF_COPY(b, 1);
	return Float8GetDatum(result);
}

/*
 * check_vector: error unless an array is a vector; returns its dimensions.
 */
static int
check_vector(ArrayType *array)
{
	if (ARR_NDIM(array) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("vector must have at least one element")));
	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("vector must be a one-dimensional array"),
				 errdetail("The array has %d dimensions.", ARR_NDIM(array))));
	if (ARR_HASNULL(array) && array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("vector must not contain null values")));
	return ARR_DIMS(array)[0];
}

/*
 * swarm.simhash(v real[], bits int) returns bit varying
 */
SWARM_FUNCTION(swarm_simhash);
Datum
swarm_simhash(PG_FUNCTION_ARGS)
{
	ArrayType  *array = PG_GETARG_ARRAYTYPE_P(0);
	int32		bits = PG_GETARG_INT32(1);
	int			dims = check_vector(array);
	const float *v = (float *) ARR_DATA_PTR(array);
	double	   *work;
	VarBit	   *result;

	check_simhash_arguments(v, dims, bits);
	work = palloc(swarm_quant_simhash_work(dims) * sizeof(double));
	result = palloc0(VARBITTOTALLEN(bits));
	SET_VARSIZE(result, VARBITTOTALLEN(bits));
	VARBITLEN(result) = bits;
	swarm_quant_simhash(v, dims, VARBITS(result), bits, work);

	pfree(work);
	PG_FREE_IF_COPY(array, 0);
	PG_RETURN_VARBIT_P(result);
}

/*
 * check_simhash_arguments: error unless a vector can be hashed.
 */
static void
check_simhash_arguments(const float *v, int dims, int bits)
{
	if (bits < 1 || bits > SWARM_SIMHASH_MAX_BITS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid number of bits: %d", bits),
				 errhint("Bits must be between 1 and %d.",
						 SWARM_SIMHASH_MAX_BITS)));
	if (dims > SWARM_VECTOR_MAX_DIMS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("vector has too many dimensions: %d", dims),
				 errhint("A vector to hash may have %d dimensions at most.",
						 SWARM_VECTOR_MAX_DIMS)));
	for (int i = 0; i < dims; i++)
		if (!isfinite(v[i]))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("vector to hash must have finite elements"),
					 errdetail("Element %d is not finite.", i + 1)));
}

/*
 * swarm._simd_level() returns text: the level in use
 */
SWARM_FUNCTION(swarm__simd_level);
Datum
swarm__simd_level(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(swarm_quant_level_name(swarm_quant->level)));
}

/*
 * swarm._simd_levels() returns text[]: the levels this processor has
 */
SWARM_FUNCTION(swarm__simd_levels);
Datum
swarm__simd_levels(PG_FUNCTION_ARGS)
{
	Datum		names[SWARM_QUANT_LEVELS];
	int			count = 0;

	for (int level = 0; level < SWARM_QUANT_LEVELS; level++)
		if (swarm_quant_available(level) != NULL)
			names[count++] = CStringGetTextDatum(swarm_quant_level_name(level));
	PG_RETURN_ARRAYTYPE_P(construct_array(names, count, TEXTOID, -1, false,
										  TYPALIGN_INT));
}
