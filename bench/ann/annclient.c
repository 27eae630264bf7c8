/*
 * annclient: sends one prepared statement many times and says what it cost.
 *
 * One connection, binary parameters and results, one PQexecPrepared() a
 * query.  Prints a JSON object: latencies by CLOCK_MONOTONIC, and per query
 * the CPU time of the backend and the time that it was ready to run without
 * a processor (both from /proc/PID/schedstat, so the server must be on this
 * machine), and the CPU time of this program.
 *
 *	annclient --sql SQL [--setup SQL]... [--queries FILE] [--param KIND]
 *			  [--group N] [--first N] [--limit N] [--warmup N] [--k N]
 *			  [--id-base N] [--ids-out FILE] [--text-out FILE]
 *
 *	--queries	int32 rows, int32 columns, float32 values
 *	--param		how a query is sent: array (real[]), vector (pgvector's), none
 *	--group		N queries in one statement, as real[][]
 *	--first		the first row of the file to use;  --limit: how many
 *	--id-base	$1 is an int4 that counts up from here, the query is $2
 *	--ids-out	writes the first column of the first k rows of each result
 *	--text-out	writes the first column of each result's first row, with a zero byte
 *
 * Connects as libpq does by its environment.
 */
#include <arpa/inet.h>
#include <libpq-fe.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_SETUP 16
#define FLOAT4_OID 700
#define FLOAT4_ARRAY_OID 1021
#define INT4_OID 23

typedef struct Options
{
	const char *sql;
	const char *setup[MAX_SETUP];
	int			nsetup;
	const char *queries;
	const char *param;
	const char *ids_out;
	const char *text_out;
	int			group;
	int			first;
	int			limit;
	int			warmup;
	int			k;
	int			id_base;		/* -1: there is no id */
} Options;

/* Encoded parameters, all of the same length. */
typedef struct Params
{
	int			count;
	int			len;
	char	   *data;
	Oid			type;
} Params;

typedef struct Cost
{
	unsigned long long cpu;		/* ns */
	unsigned long long wait;
} Cost;

static void
die(const char *what, const char *detail)
{
	fprintf(stderr, "annclient: %s: %s\n", what, detail ? detail : "");
	exit(2);
}

static double
now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static Cost
backend_cost(int pid)
{
	char		name[64];
	FILE	   *f;
	Cost		c = {0, 0};

	snprintf(name, sizeof(name), "/proc/%d/schedstat", pid);
	f = fopen(name, "r");
	if (f == NULL || fscanf(f, "%llu %llu", &c.cpu, &c.wait) != 2)
		die("cannot read", name);
	fclose(f);
	return c;
}

static char *
put32(char *p, uint32_t x)
{
	x = htonl(x);
	memcpy(p, &x, 4);
	return p + 4;
}

static char *
put_float(char *p, float x)
{
	uint32_t	u;

	memcpy(&u, &x, 4);
	return put32(p, u);
}

/* The header of a real[] of one dimension, or of two when rows > 0. */
static char *
put_array_header(char *p, int rows, int dim)
{
	p = put32(p, rows > 0 ? 2 : 1);
	p = put32(p, 0);
	p = put32(p, FLOAT4_OID);
	if (rows > 0)
	{
		p = put32(p, rows);
		p = put32(p, 1);
	}
	p = put32(p, dim);
	return put32(p, 1);
}

static Params
read_params(const Options *o)
{
	Params		ps = {o->limit, 0, NULL, 0};
	int			vector = strcmp(o->param, "vector") == 0;
	int			group = o->group > 0 ? o->group : 1;
	int32_t		head[2];
	float	   *row;
	FILE	   *f = fopen(o->queries, "rb");

	if (f == NULL || fread(head, 4, 2, f) != 2)
		die("cannot read", o->queries);
	ps.count = (head[0] - o->first) / group;
	if (o->limit > 0 && o->limit < ps.count)
		ps.count = o->limit;
	ps.type = vector ? 0 : FLOAT4_ARRAY_OID;
	ps.len = vector ? 4 + 4 * head[1] : 20 + (o->group > 0 ? 8 : 0) + 8 * head[1] * group;
	ps.data = malloc((size_t) ps.len * (ps.count > 0 ? ps.count : 1));
	row = malloc(sizeof(float) * head[1]);
	if (ps.count <= 0 || ps.data == NULL || row == NULL ||
		fseek(f, (long) o->first * head[1] * 4, SEEK_CUR) != 0)
		die("no rows", o->queries);
	for (int i = 0; i < ps.count; i++)
	{
		char	   *p = ps.data + (size_t) i * ps.len;

		p = vector ? put32(p, (uint32_t) head[1] << 16) : put_array_header(p, o->group, head[1]);
		for (int g = 0; g < group; g++)
		{
			if (fread(row, 4, head[1], f) != (size_t) head[1])
				die("short file", o->queries);
			for (int j = 0; j < head[1]; j++)
			{
				if (!vector)
					p = put32(p, 4);
				p = put_float(p, row[j]);
			}
		}
	}
	free(row);
	fclose(f);
	return ps;
}

static PGconn *
connect_and_prepare(const Options *o, Oid type)
{
	PGconn	   *pg = PQconnectdb("");
	PGresult   *r;
	Oid			types[2];
	int			n = 0;

	if (PQstatus(pg) != CONNECTION_OK)
		die("connect", PQerrorMessage(pg));
	for (int i = 0; i < o->nsetup; i++)
	{
		r = PQexec(pg, o->setup[i]);
		if (PQresultStatus(r) != PGRES_COMMAND_OK && PQresultStatus(r) != PGRES_TUPLES_OK)
			die(o->setup[i], PQerrorMessage(pg));
		PQclear(r);
	}
	if (o->id_base >= 0)
		types[n++] = INT4_OID;
	if (o->queries != NULL)
		types[n++] = type;
	r = PQprepare(pg, "q", o->sql, n, types);
	if (PQresultStatus(r) != PGRES_COMMAND_OK)
		die(o->sql, PQerrorMessage(pg));
	PQclear(r);
	return pg;
}

static PGresult *
execute(PGconn *pg, const Options *o, const Params *ps, int i)
{
	const char *values[2];
	int			lengths[2],
				formats[2] = {1, 1},
				n = 0;
	char		id[4];
	PGresult   *r;

	if (o->id_base >= 0)
	{
		put32(id, (uint32_t) (o->id_base + i));
		values[n] = id;
		lengths[n++] = 4;
	}
	if (ps->data != NULL)
	{
		values[n] = ps->data + (size_t) i * ps->len;
		lengths[n++] = ps->len;
	}
	r = PQexecPrepared(pg, "q", n, values, lengths, formats, 1);
	if (PQresultStatus(r) != PGRES_TUPLES_OK && PQresultStatus(r) != PGRES_COMMAND_OK)
		die("execute", PQerrorMessage(pg));
	return r;
}

/* Copy the first k ids of a result; those that are missing stay -1. */
static void
keep_ids(const PGresult *r, int32_t *ids, int k)
{
	for (int j = 0; j < k && j < PQntuples(r); j++)
	{
		uint32_t	x;

		memcpy(&x, PQgetvalue(r, j, 0), 4);
		ids[j] = (int32_t) ntohl(x);
	}
}

static void
write_ids(const char *name, const int32_t *ids, int count, int k)
{
	int32_t		head[2] = {count, k};
	size_t		n = (size_t) count * k;
	FILE	   *f = fopen(name, "wb");

	if (f == NULL || fwrite(head, 4, 2, f) != 2 || fwrite(ids, 4, n, f) != n || fclose(f) != 0)
		die("cannot write", name);
}

static int
compare(const void *a, const void *b)
{
	double		x = *(const double *) a,
				y = *(const double *) b;

	return (x > y) - (x < y);
}

static void
run(const Options *o)
{
	Params		ps = {o->limit, 0, NULL, 0};
	PGconn	   *pg;
	double	   *latency,
				start,
				wall,
				own;
	int32_t    *ids = NULL;
	long		rows = 0;
	Cost		before,
				after;
	FILE	   *file = NULL;

	if (o->text_out != NULL && (file = fopen(o->text_out, "wb")) == NULL)
		die("cannot write", o->text_out);

	if (o->queries != NULL)
		ps = read_params(o);
	if (ps.count <= 0)
		die("nothing to do", "give --queries or --limit");
	latency = malloc(sizeof(double) * ps.count);
	if (o->ids_out != NULL)
	{
		ids = malloc((size_t) ps.count * o->k * 4);
		memset(ids, 0xff, (size_t) ps.count * o->k * 4);
	}
	pg = connect_and_prepare(o, ps.type);
	for (int i = 0; i < o->warmup; i++)
		PQclear(execute(pg, o, &ps, i % ps.count));

	before = backend_cost(PQbackendPID(pg));
	own = now(CLOCK_PROCESS_CPUTIME_ID);
	start = now(CLOCK_MONOTONIC);
	for (int i = 0; i < ps.count; i++)
	{
		double		t = now(CLOCK_MONOTONIC);
		PGresult   *r = execute(pg, o, &ps, i);

		latency[i] = now(CLOCK_MONOTONIC) - t;
		rows += PQntuples(r);
		if (ids != NULL)
			keep_ids(r, ids + (size_t) i * o->k, o->k);
		if (file != NULL)
			fwrite(PQgetvalue(r, 0, 0), PQgetlength(r, 0, 0) + 1, 1, file);
		PQclear(r);
	}
	wall = now(CLOCK_MONOTONIC) - start;
	own = now(CLOCK_PROCESS_CPUTIME_ID) - own;
	after = backend_cost(PQbackendPID(pg));
	PQfinish(pg);

	if (file != NULL && fclose(file) != 0)
		die("cannot write", o->text_out);
	if (ids != NULL)
		write_ids(o->ids_out, ids, ps.count, o->k);
	qsort(latency, ps.count, sizeof(double), compare);
#define PERCENTILE(x) (latency[(int) ((ps.count - 1) * (x))] * 1e6)
	printf("{\"n\": %d, \"rows\": %ld, \"qps\": %.2f, \"p50_us\": %.2f, \"p95_us\": %.2f, \"p99_us\": %.2f, "
		   "\"cpu_us\": %.2f, \"wait_us\": %.2f, \"client_us\": %.2f}\n",
		   ps.count, rows, ps.count / wall, PERCENTILE(0.5), PERCENTILE(0.95), PERCENTILE(0.99),
		   (after.cpu - before.cpu) / 1e3 / ps.count, (after.wait - before.wait) / 1e3 / ps.count, own / ps.count * 1e6);
}

static int *
number_option(Options *o, const char *name)
{
	if (strcmp(name, "--group") == 0)
		return &o->group;
	if (strcmp(name, "--first") == 0)
		return &o->first;
	if (strcmp(name, "--limit") == 0)
		return &o->limit;
	if (strcmp(name, "--warmup") == 0)
		return &o->warmup;
	if (strcmp(name, "--k") == 0)
		return &o->k;
	if (strcmp(name, "--id-base") == 0)
		return &o->id_base;
	return NULL;
}

static const char **
text_option(Options *o, const char *name)
{
	if (strcmp(name, "--sql") == 0)
		return &o->sql;
	if (strcmp(name, "--queries") == 0)
		return &o->queries;
	if (strcmp(name, "--param") == 0)
		return &o->param;
	if (strcmp(name, "--ids-out") == 0)
		return &o->ids_out;
	if (strcmp(name, "--text-out") == 0)
		return &o->text_out;
	if (strcmp(name, "--setup") == 0 && o->nsetup < MAX_SETUP)
		return &o->setup[o->nsetup++];
	return NULL;
}

int
main(int argc, char **argv)
{
	Options		o = {.param = "array", .k = 10, .id_base = -1};

	for (int i = 1; i < argc; i += 2)
	{
		int		   *number = number_option(&o, argv[i]);
		const char **text = number == NULL ? text_option(&o, argv[i]) : NULL;

		if (i + 1 == argc || (number == NULL && text == NULL))
			die("unknown option, or no value", argv[i]);
		if (number != NULL)
			*number = atoi(argv[i + 1]);
		else
			*text = argv[i + 1];
	}
	if (o.sql == NULL)
		die("no --sql", NULL);
	run(&o);
	return 0;
}
