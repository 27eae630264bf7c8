/*
 * grid.c
 *	  Quality of swarm.embed's features for given weights, outside a server.
 *
 *	  grid CORPUS QUESTIONS HALF DIMS < settings
 *
 * A line of settings is a name and name=value pairs (word=64 pair=32 ...) that
 * replace defaults; the answer is a line: accuracy of the nearest neighbour's
 * chapter within the half (sections of the same page excluded), and of the
 * half's questions: hit@1, hit@5 and mean reciprocal rank over all sections.
 */
#include "vector/vector_int.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ROWS 8192

typedef struct Row
{
	int			half;
	char	   *label;
	char	   *page;
	char	   *text;
	float	   *vector;
} Row;

static Row	rows[MAX_ROWS];
static Row	questions[256];
static int	nrows,
			nquestions;

static void *
zeroed(size_t size)
{
	return calloc(1, size);
}

static const SwarmEmbedAllocator allocator = {zeroed, free};

/*
 * embed: the vector of a title and a text.
 */
static void
embed(const SwarmEmbedWeights *w, int dims, Row *row)
{
	SwarmEmbedder *e = swarm_embedder_begin(dims, w, &allocator);

	if (row->vector == NULL)
		row->vector = malloc(dims * sizeof(float));
	swarm_embedder_add(e, row->text, strlen(row->text));
	swarm_embedder_finish(e, row->vector);
}

/*
 * dot: similarity of two unit vectors.
 */
static float
dot(const float *a, const float *b, int n)
{
	float		sum[8] = {0};

	for (int i = 0; i + 8 <= n; i += 8)
		for (int k = 0; k < 8; k++)
			sum[k] += a[i + k] * b[i + k];
	return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

/*
 * nearest_accuracy: share of the half's sections whose nearest neighbour has
 * their label.
 */
static double
nearest_accuracy(int half, int dims)
{
	int			right = 0,
				total = 0;

	for (int i = 0; i < nrows; i++)
	{
		int			best = -1;
		float		best_dot = -2;

		if (rows[i].half != half)
			continue;
		for (int j = 0; j < nrows; j++)
		{
			float		d;

			if (rows[j].half != half || strcmp(rows[i].page, rows[j].page) == 0)
				continue;
			d = dot(rows[i].vector, rows[j].vector, dims);
			if (d > best_dot)
			{
				best = j;
				best_dot = d;
			}
		}
		total++;
		right += strcmp(rows[i].label, rows[best].label) == 0;
	}
	return (double) right / total;
}

/*
 * accepted: the page is in the question's list.
 */
static bool
accepted(const char *list, const char *page)
{
	size_t		n = strlen(page);

	for (const char *p = list; (p = strstr(p, page)) != NULL; p++)
		if ((p == list || p[-1] == ' ') && (p[n] == ' ' || p[n] == '\0'))
			return true;
	return false;
}

/*
 * rank_of: place of the first section of an accepted page, from 1.
 */
static int
rank_of(const Row *q, int dims)
{
	float		best = -2;
	int			rank = 1;

	for (int i = 0; i < nrows; i++)
		if (accepted(q->page, rows[i].page))
		{
			float		d = dot(q->vector, rows[i].vector, dims);

			best = d > best ? d : best;
		}
	for (int i = 0; i < nrows; i++)
		rank += dot(q->vector, rows[i].vector, dims) > best;
	return rank;
}

/*
 * set_weight: one name=value.
 */
static void
set_weight(SwarmEmbedWeights *w, const char *name, int value)
{
	const struct
	{
		const char *name;
		int		   *field;
	}			fields[] = {
		{"word", &w->word}, {"single", &w->single}, {"pair", &w->pair},
		{"stop", &w->stop}, {"number", &w->number},
		{"gram_min", &w->gram_min}, {"gram_max", &w->gram_max},
		{"gram", &w->gram}, {"tf_slope", &w->tf_slope},
		{"buckets", &w->buckets},
		{"lead_words", &w->lead_words}, {"lead", &w->lead},
	};

	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
		if (strcmp(fields[i].name, name) == 0)
		{
			*fields[i].field = value;
			return;
		}
	fprintf(stderr, "no weight \"%s\"\n", name);
	exit(2);
}

/*
 * read_rows: the corpus: id, half, label, page, title, text.
 */
static void
read_rows(const char *file)
{
	FILE	   *f = fopen(file, "r");
	char	   *line = NULL;
	size_t		size = 0;

	while (f != NULL && getline(&line, &size, f) > 0 && nrows < MAX_ROWS)
	{
		char	   *p = strdup(line);
		Row		   *row = &rows[nrows++];

		strsep(&p, "\t");
		row->half = atoi(strsep(&p, "\t"));
		row->label = strsep(&p, "\t");
		row->page = strsep(&p, "\t");
		row->text = p;			/* title, tab, text */
	}
}

/*
 * read_questions: half, question, pages.
 */
static void
read_questions(const char *file)
{
	FILE	   *f = fopen(file, "r");
	char	   *line = NULL;
	size_t		size = 0;

	while (f != NULL && getline(&line, &size, f) > 0)
	{
		char	   *p = strdup(line);
		Row		   *row = &questions[nquestions++];

		p[strcspn(p, "\n")] = '\0';
		row->half = atoi(strsep(&p, "\t"));
		row->text = strsep(&p, "\t");
		row->page = p;
	}
}

int
main(int argc, char **argv)
{
	char		line[1024];
	int			half = atoi(argv[3]),
				dims = atoi(argv[4]);

	(void) argc;
	read_rows(argv[1]);
	read_questions(argv[2]);
	while (fgets(line, sizeof(line), stdin))
	{
		SwarmEmbedWeights w = swarm_embed_weights;
		char	   *p = line;
		double		mrr = 0;
		int			n = 0,
					hit1 = 0,
					hit5 = 0;
		char	   *name;

		line[strcspn(line, "\n")] = '\0';
		printf("%-60s", line);
		name = strsep(&p, " ");
		while (p != NULL && (name = strsep(&p, " ")) != NULL)
		{
			char	   *value = strchr(name, '=');

			*value = '\0';
			set_weight(&w, name, atoi(value + 1));
		}
		for (int i = 0; i < nrows; i++)
			embed(&w, dims, &rows[i]);
		for (int i = 0; i < nquestions; i++)
		{
			int			rank;

			embed(&w, dims, &questions[i]);
			if (questions[i].half != half)
				continue;
			rank = rank_of(&questions[i], dims);
			if (getenv("VERBOSE"))
				fprintf(stderr, "%4d %s\n", rank, questions[i].text);
			n++;
			hit1 += rank == 1;
			hit5 += rank <= 5;
			mrr += 1.0 / rank;
		}
		printf(" nn %.3f  hit1 %2d/%d hit5 %2d mrr %.3f\n",
			   nearest_accuracy(half, dims), hit1, n, hit5, mrr / n);
		fflush(stdout);
	}
	return 0;
}
