/*
 * codes.c
 *	  How good the codes of src/quant are: recall@10 of an exhaustive search by
 *	  codes alone, and after exact rerank of the best 20 and 40.
 *
 *	gcc -O2 -Isrc bench/ann/codes.c $(ls src/quant/[cq]*.c) -lm -o /tmp/codes
 *	/tmp/codes DIR [BITS[+REFINE]...]
 *
 * DIR has base.u8.gz and query.u8.gz (int32 rows, int32 dimensions, bytes) and
 * gt.ibin (int32 rows, int32 k, int32 ids, nearest first), as the data of
 * fashion-784.  Vectors are centred on the mean of the rows.  Beside recall: the
 * standard deviation of the estimate of <x, q>, as a share of |x| |q|, times
 * the root of the dimensions, and what swarm_codec_error says.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quant/codec.h"
#include "quant/quant.h"

#define QUERIES	200
#define K		10
#define KEEP	40

typedef struct Data
{
	int			rows;
	int			dims;
	int			queries;
	float	   *base;			/* rotated, centred */
	float	   *query;
	int		   *truth;			/* K ids a query */
} Data;

/*
 * read_bytes: vectors of a gzipped file as float.
 */
static float *
read_bytes(const char *dir, const char *name, int *rows, int *dims)
{
	char		command[1000];
	int			shape[2];
	FILE	   *f;
	unsigned char *row;
	float	   *out;

	snprintf(command, sizeof(command), "gzip -dc '%s/%s'", dir, name);
	f = popen(command, "r");
	if (f == NULL || fread(shape, sizeof(int), 2, f) != 2)
		exit(1);
	*rows = *rows < shape[0] ? *rows : shape[0];
	*dims = shape[1];
	out = malloc((size_t) *rows * *dims * sizeof(float));
	row = malloc(*dims);
	for (int i = 0; i < *rows; i++)
	{
		if (fread(row, *dims, 1, f) != 1)
			exit(1);
		for (int j = 0; j < *dims; j++)
			out[(size_t) i * *dims + j] = row[j];
	}
	free(row);
	pclose(f);
	return out;
}

/*
 * read_truth: the first K ids of each query.
 */
static int *
read_truth(const char *dir, int queries)
{
	char		name[1000];
	int			shape[2];
	FILE	   *f;
	int		   *out = malloc(queries * K * sizeof(int));

	snprintf(name, sizeof(name), "%s/gt.ibin", dir);
	f = fopen(name, "r");
	if (f == NULL || fread(shape, sizeof(int), 2, f) != 2)
		exit(1);
	for (int i = 0; i < queries; i++)
	{
		fseek(f, 8 + (long) i * shape[1] * sizeof(int), SEEK_SET);
		if (fread(out + i * K, sizeof(int), K, f) != K)
			exit(1);
	}
	fclose(f);
	return out;
}

/*
 * centre: subtract and rotate.
 */
static void
centre(float *x, int rows, int dims, const double *mean)
{
	for (int i = 0; i < rows; i++, x += dims)
	{
		for (int j = 0; j < dims; j++)
			x[j] -= mean[j];
		swarm_rotate(42, dims, x, x);
	}
}

/*
 * read_data: everything from a folder.
 */
static void
read_data(const char *dir, Data *data)
{
	double	   *mean;

	data->rows = 1 << 30;
	data->queries = QUERIES;
	data->base = read_bytes(dir, "base.u8.gz", &data->rows, &data->dims);
	data->query = read_bytes(dir, "query.u8.gz", &data->queries, &data->dims);
	data->truth = read_truth(dir, data->queries);
	mean = calloc(data->dims, sizeof(double));
	for (int i = 0; i < data->rows; i++)
		for (int j = 0; j < data->dims; j++)
			mean[j] += data->base[(size_t) i * data->dims + j] / data->rows;
	centre(data->base, data->rows, data->dims, mean);
	centre(data->query, data->queries, data->dims, mean);
	free(mean);
}

/*
 * keep: insert a candidate into the best KEEP, nearest first.
 */
static void
keep(float *distances, int *ids, float distance, int id)
{
	int			at = KEEP - 1;

	if (distance >= distances[at])
		return;
	for (; at > 0 && distances[at - 1] > distance; at--)
	{
		distances[at] = distances[at - 1];
		ids[at] = ids[at - 1];
	}
	distances[at] = distance;
	ids[at] = id;
}

/*
 * hits: how many of the K nearest are among the first n of ids.
 */
static int
hits(const int *truth, const int *ids, int n)
{
	int			count = 0;

	for (int i = 0; i < K; i++)
		for (int j = 0; j < n; j++)
			count += truth[i] == ids[j];
	return count;
}

/*
 * measure: one codec.
 */
static void
measure(const Data *data, int bits, int refine_bits)
{
	SwarmCodec	codec;
	SwarmCodeFactors *factors = malloc(data->rows * sizeof(*factors));
	SwarmCodecQuery *query;
	uint8_t    *codes;
	uint8_t    *refines;
	int			found[3] = {0};
	double		error = 0;

	if (!swarm_codec_init(&codec, data->dims, bits, refine_bits))
		exit(1);
	codes = malloc((size_t) data->rows * codec.code_size);
	refines = malloc((size_t) data->rows * codec.refine_size + 1);
	query = aligned_alloc(64, swarm_codec_query_size(&codec));
	for (int i = 0; i < data->rows; i++)
		swarm_codec_encode(&codec, data->base + (size_t) i * data->dims,
						   codes + (size_t) i * codec.code_size,
						   refines + (size_t) i * codec.refine_size, &factors[i]);
	for (int k = 0; k < data->queries; k++)
	{
		const float *q = data->query + (size_t) k * data->dims;
		double		q2 = swarm_quant_dot_exact(q, q, data->dims);
		float		distances[KEEP];
		int			ids[KEEP];

		for (int i = 0; i < KEEP; i++)
			distances[i] = INFINITY;
		swarm_codec_query(&codec, q, query);
		for (int i = 0; i < data->rows; i++)
		{
			const uint8_t *code = codes + (size_t) i * codec.code_size;
			float		dot;

			if (refine_bits > 0)
				dot = factors[i].refine_scale *
					swarm_codec_refine_dot(&codec, query, code,
										   refines + (size_t) i * codec.refine_size);
			else
			{
				swarm_codec_dots(&codec, query, &code, 1, &dot);
				dot *= factors[i].scale;
			}
			keep(distances, ids, factors[i].norm2 - 2 * dot, i);
			if (i % 97 == 0)
			{
				const float *x = data->base + (size_t) i * data->dims;
				double		d = dot - swarm_quant_dot_exact(x, q, data->dims);

				error += d * d / (q2 * factors[i].norm2);
			}
		}
		for (int r = 0; r < 3; r++)
			found[r] += hits(data->truth + k * K, ids, K << r);
	}
	error = sqrt(error / (data->queries * ((data->rows + 96) / 97)));
	printf("%2d+%d  %.4f  %.4f  %.4f   %.4f  %.4f   %u+%u\n", bits, refine_bits,
		   found[0] / (double) (K * data->queries), found[1] / (double) (K * data->queries),
		   found[2] / (double) (K * data->queries), error * sqrt(data->dims),
		   swarm_codec_error(bits + refine_bits, data->dims) * sqrt(data->dims),
		   codec.code_size, codec.refine_size);
	free(query);
	free(refines);
	free(codes);
	free(factors);
}

int
main(int argc, char **argv)
{
	static const char *const all[] = {"1", "2", "4", "8", "16", "32", "4+1", "4+2", "4+4", "2+3", "1+4"};
	Data		data;

	if (argc < 2)
		return 1;
	swarm_quant_init();
	read_data(argv[1], &data);
	printf("bits recall@10: 0   20      40       error   said     bytes\n");
	for (int i = 0; i < (argc > 2 ? argc - 2 : (int) (sizeof(all) / sizeof(all[0]))); i++)
	{
		const char *what = argc > 2 ? argv[i + 2] : all[i];
		const char *plus = strchr(what, '+');

		measure(&data, atoi(what), plus ? atoi(plus + 1) : 0);
		fflush(stdout);
	}
	return 0;
}
