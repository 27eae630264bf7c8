/*
 * hnsw_vector.c
 *	  From a value of the column to a code, and from a query to its scores.
 *
 * A value becomes coordinates (its floats, for cosine at unit length, for
 * inner product with one more coordinate), these are rotated, the centre of
 * the generation is subtracted, and the codec codes what is left.
 *
 * Inner product becomes L2 by the coordinate sqrt(r^2 - |x|^2), r the largest
 * norm when the model was made (Bachrach and others, 2014): all rows get the
 * same length, so links are made in a true metric, in which every node can be
 * reached.  Queries have 0 there and are scored by the inner product itself,
 * which stays right for rows longer than r.
 */
#include "postgres.h"

#include <float.h>
#include <math.h>

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/rel.h"

#include "base/compat.h"
#include "hnsw/hnsw_int.h"
#include "quant/quant.h"

/* The layout of pgvector's vector and halfvec. */
typedef struct PgVector
{
	int32		vl_len_;
	int16		dim;
	int16		unused;
	char		x[FLEXIBLE_ARRAY_MEMBER];
} PgVector;

static int	real_dims(const ArrayType *array);
static float half_to_float(uint16 half);

/*
 * swarm_hnsw_floats: the coordinates of a value.
 *
 * *tofree is what to pfree afterwards, or NULL.  Errors: 22023 an empty array,
 * 2202E more than one dimension, 22004 a null element.
 */
const float *
swarm_hnsw_floats(const SwarmHnswOpclass *opclass, Datum value, int *dims,
				  void **tofree)
{
	struct varlena *datum = PG_DETOAST_DATUM(value);
	const PgVector *vector = (const PgVector *) datum;
	float	   *floats;

	*tofree = (Pointer) datum != DatumGetPointer(value) ? datum : NULL;
	switch (opclass->type)
	{
		case SWARM_TYPE_REAL:
			*dims = real_dims((ArrayType *) datum);
			return (const float *) ARR_DATA_PTR((ArrayType *) datum);
		case SWARM_TYPE_VECTOR:
			*dims = vector->dim;
			if (VARSIZE(datum) < offsetof(PgVector, x) + *dims * sizeof(float))
				elog(ERROR, "value is no vector of pgvector");
			return (const float *) vector->x;
		case SWARM_TYPE_HALFVEC:
			break;
	}

	*dims = vector->dim;
	if (VARSIZE(datum) < offsetof(PgVector, x) + *dims * sizeof(uint16))
		elog(ERROR, "value is no halfvec of pgvector");
	floats = palloc(*dims * sizeof(float));
	for (int i = 0; i < *dims; i++)
		floats[i] = half_to_float(((const uint16 *) vector->x)[i]);
	if (*tofree != NULL)
		pfree(*tofree);
	*tofree = floats;
	return floats;
}

/*
 * swarm_hnsw_value_dims: the dimensions of a value.
 */
int
swarm_hnsw_value_dims(const SwarmHnswOpclass *opclass, Datum value)
{
	void	   *tofree;
	int			dims;

	swarm_hnsw_floats(opclass, value, &dims, &tofree);
	if (tofree != NULL)
		pfree(tofree);
	return dims;
}

/*
 * real_dims: the length of a real[] that is a vector; raises what the
 * operators raise when it is not.
 */
static int
real_dims(const ArrayType *array)
{
	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
				 errmsg("vector must be a one-dimensional array")));
	if (ARR_NDIM(array) == 0 || ARR_DIMS(array)[0] == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("vector must not be empty")));
	if (ARR_HASNULL(array) && array_contains_nulls((ArrayType *) array))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("vector must not contain nulls")));
	return ARR_DIMS(array)[0];
}

/*
 * half_to_float: from IEEE 754 binary16.
 */
static float
half_to_float(uint16 half)
{
	int			exponent = (half >> 10) & 0x1f;
	int			mantissa = half & 0x3ff;
	float		value;

	if (exponent == 0)
		value = ldexpf((float) mantissa, -24);
	else if (exponent == 31)
		value = mantissa != 0 ? NAN : INFINITY;
	else
		value = ldexpf((float) (mantissa + 0x400), exponent - 25);
	return half & 0x8000 ? -value : value;
}

/*
 * swarm_hnsw_norm2: check the elements of a vector; the square of its length.
 *
 * Errors: 22023 an element that is not finite, 22003 a length that no float
 * holds.
 */
double
swarm_hnsw_norm2(const SwarmHnswOpclass *opclass, const float *v, int dims)
{
	double		norm2 = 0;

	for (int i = 0; i < dims; i++)
		norm2 += (double) v[i] * v[i];
	if (!isfinite(norm2))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("vector contains NaN or infinity"),
				 errhint("An index of this method holds finite vectors only.")));
	if (opclass->metric != SWARM_METRIC_COSINE && norm2 > FLT_MAX / 16)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("vector is too long for an index"),
				 errdetail("The square of its length must fit into a real.")));
	return norm2;
}

/*
 * swarm_hnsw_coordinates: check a vector and rotate its coordinates into
 * `out`, of index->dims floats.
 *
 * Returns SWARM_VALUE_ZERO, and leaves `out` undefined, for a zero vector
 * under cosine.  Errors: 22000 other dimensions than the index, and those of
 * swarm_hnsw_norm2.
 */
SwarmHnswValue
swarm_hnsw_coordinates(const SwarmHnswIndex *index, const float *v, int dims,
					   bool query, float *out)
{
	double		norm2;

	if (dims != index->meta.dims)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_EXCEPTION),
				 errmsg("vector has %d dimensions, the index has %u", dims,
						index->meta.dims),
				 query ? 0 : errhint("An index has the dimensions of its option \"dims\", else those of the first vector since it was created, reindexed or truncated.")));
	norm2 = swarm_hnsw_norm2(&index->opclass, v, dims);

	if (index->opclass.metric == SWARM_METRIC_COSINE)
	{
		double		factor;

		if (norm2 == 0)
			return SWARM_VALUE_ZERO;
		factor = 1.0 / sqrt(norm2);
		for (int i = 0; i < dims; i++)
			out[i] = (float) (v[i] * factor);
	}
	else
	{
		memcpy(out, v, dims * sizeof(float));
		if (index->opclass.metric == SWARM_METRIC_IP)
		{
			double		radius = index->meta.radius[index->meta.generation & 1];

			out[dims] = query ? 0 : sqrt(Max(radius * radius - norm2, 0));
		}
	}
	swarm_rotate(index->meta.seed, index->dims, out, out);
	return SWARM_VALUE_VECTOR;
}

/*
 * swarm_hnsw_exact: the distance of two vectors, comparable with the scores
 * of codes: squared length, that of unit vectors, or negative inner product.
 */
double
swarm_hnsw_exact(SwarmHnswMetric metric, const float *a, const float *b,
				 int dims)
{
	SwarmQuantCosine cosine;

	switch (metric)
	{
		case SWARM_METRIC_L2:
			return swarm_quant->l2_squared(a, b, dims);
		case SWARM_METRIC_IP:
			return -swarm_quant->dot(a, b, dims);
		case SWARM_METRIC_COSINE:
			break;
	}
	cosine = swarm_quant->cosine(a, b, dims);
	return 2.0 - 2.0 * cosine.dot /
		sqrt((double) cosine.norm_a * cosine.norm_b);
}

/*
 * swarm_hnsw_code_new: room for a code, in the current context.
 */
SwarmHnswCode *
swarm_hnsw_code_new(const SwarmHnswIndex *index)
{
	SwarmHnswCode *code = palloc0(sizeof(SwarmHnswCode));

	code->code = palloc0(index->codec.code_size);
	if (index->codec.refine_size > 0)
		code->refine = palloc0(index->codec.refine_size);
	return code;
}

/*
 * swarm_hnsw_encode: code rotated coordinates in the newest generation.
 */
void
swarm_hnsw_encode(SwarmHnswIndex *index, const float *rotated,
				  SwarmHnswCode *code)
{
	const float *centre = index->centre[index->meta.generation & 1];
	float	   *residual = index->work;

	for (int i = 0; i < index->dims; i++)
		residual[i] = rotated[i] - centre[i];
	swarm_codec_encode(&index->codec, residual, code->code, code->refine,
					   &code->factors);
	code->generation = index->meta.generation;
}

/*
 * swarm_hnsw_decode: the rotated coordinates that a code stands for; refine
 * NULL and scale as swarm_codec_decode has them.
 */
void
swarm_hnsw_decode(SwarmHnswIndex *index, const uint8 *code,
				  const uint8 *refine, float scale, int parity, float *rotated)
{
	const float *centre = index->centre[parity];

	swarm_codec_decode(&index->codec, code, refine, scale, rotated);
	for (int i = 0; i < index->dims; i++)
		rotated[i] += centre[i];
}

/*
 * swarm_hnsw_query_new: room for a query, in the current context.
 */
SwarmHnswQuery *
swarm_hnsw_query_new(const SwarmHnswIndex *index)
{
	SwarmHnswQuery *query = palloc0(sizeof(SwarmHnswQuery));
	Size		size = TYPEALIGN(64, swarm_codec_query_size(&index->codec));
	char	   *space = palloc0(2 * size + 64);

	space = (char *) TYPEALIGN(64, space);
	query->codec[0] = (SwarmCodecQuery *) space;
	query->codec[1] = (SwarmCodecQuery *) (space + size);
	query->rotated = palloc(index->dims * sizeof(float));
	return query;
}

/*
 * swarm_hnsw_query_set: prepare a query for all generations of codes that the
 * index has.  inner: score by inner product.
 */
void
swarm_hnsw_query_set(SwarmHnswIndex *index, SwarmHnswQuery *query,
					 const float *rotated, bool inner)
{
	float	   *residual = index->work;

	if (rotated != query->rotated)
		memcpy(query->rotated, rotated, index->dims * sizeof(float));
	query->inner = inner;
	query->generation = index->meta.generation;
	query->oldest = index->meta.oldest;
	query->ready[0] = query->ready[1] = false;
	for (uint32 generation = index->meta.oldest;
		 generation <= index->meta.generation; generation++)
	{
		int			parity = generation & 1;
		const float *centre = index->centre[parity];

		if (inner)
		{
			/* <q, x> = <q, c> + <q, x - c> */
			query->base[parity] = swarm_quant->dot(rotated, centre, index->dims);
			swarm_codec_query(&index->codec, rotated, query->codec[parity]);
			query->norm2[parity] = swarm_quant->dot(rotated, rotated, index->dims);
		}
		else
		{
			for (int i = 0; i < index->dims; i++)
				residual[i] = rotated[i] - centre[i];
			query->norm2[parity] = swarm_quant->dot(residual, residual,
													index->dims);
			swarm_codec_query(&index->codec, residual, query->codec[parity]);
		}
		query->ready[parity] = true;
	}
}

/*
 * swarm_hnsw_point_set: reduce a vector to a point; point->levels has room
 * for `dims` bytes.
 */
void
swarm_hnsw_point_set(const float *v, int dims, SwarmPoint *point)
{
	float		largest = 0;
	float		inverse;

	for (int i = 0; i < dims; i++)
		largest = Max(largest, fabsf(v[i]));
	point->step = largest / 127;
	inverse = largest > 0 ? 127 / largest : 0;
	if (!isfinite(inverse))
		inverse = 0;
	for (int i = 0; i < dims; i++)
		point->levels[i] = (int8) rintf(v[i] * inverse);
	point->norm2 = swarm_quant->dot(v, v, dims);
}
