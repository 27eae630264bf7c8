// lib: the same data in hnswlib, one thread, outside of any server.
//
//     lib DATA/SET NAME ROUNDS
//
// Prints a line of JSON per round and knob: CPU time of a query and recall@10 (a row counts when its exact
// distance is not above that of the exact tenth).  Cosine sets are unit vectors, so L2 ranks them alike.
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include <hnswlib/hnswlib.h>

static constexpr int M = 16, EF_CONSTRUCTION = 200, K = 10;
static constexpr int KNOBS[] = {10, 12, 15, 20, 30, 40, 64, 100, 200};

struct Matrix {
	int rows = 0, columns = 0;
	std::vector<float> data;

	explicit Matrix(const std::string &name)
	{
		FILE *f = fopen(name.c_str(), "rb");
		int head[2];
		if (!f || fread(head, 4, 2, f) != 2) {
			fprintf(stderr, "lib: cannot read %s\n", name.c_str());
			exit(1);
		}
		rows = head[0], columns = head[1];
		data.resize((size_t) rows * columns);
		if (fread(data.data(), 4, data.size(), f) != data.size())
			exit(1);
		fclose(f);
	}
	const float *operator[](size_t i) const { return &data[i * columns]; }
};

static double cpu()
{
	timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static double exact(const float *a, const float *b, int n)
{
	double s = 0;
	for (int i = 0; i < n; i++)
		s += ((double) a[i] - b[i]) * ((double) a[i] - b[i]);
	return s;
}

using Search = std::function<void(const float *query, int knob, long *ids)>;

struct Bench {
	std::string name;
	int rounds;
	Matrix base, query, truth;
	std::vector<double> limit;	// squared distance of the tenth nearest row, with room for rounding

	void sweep(const char *engine, double build, const Search &search) const
	{
		for (int round = 0; round < rounds; round++)
			for (int knob : KNOBS) {
				std::vector<long> ids((size_t) query.rows * K, -1);
				long good = 0;
				for (int i = 0; i < 50; i++)
					search(query[i], knob, &ids[0]);
				double start = cpu();
				for (int i = 0; i < query.rows; i++)
					search(query[i], knob, &ids[(size_t) i * K]);
				double spent = cpu() - start;
				for (int i = 0; i < query.rows; i++) {
					for (int j = 0; j < K; j++)
						if (long id = ids[(size_t) i * K + j]; id >= 0)
							good += exact(base[id], query[i], base.columns) <= limit[i];
				}
				printf("{\"engine\": \"%s\", \"set\": \"%s\", \"measure\": \"lib\", \"round\": %d, \"knob\": %d, \"recall\": %.4f, \"cpu_us\": %.2f, \"build_cpu\": %.2f}\n",
					   engine, name.c_str(), round, knob, (double) good / ((double) query.rows * K), spent / query.rows * 1e6, build);
				fflush(stdout);
			}
	}
};

int main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: lib DATA/SET NAME ROUNDS\n");
		return 2;
	}
	std::string folder = argv[1];
	Bench b{argv[2], atoi(argv[3]), Matrix(folder + "/base.fbin"), Matrix(folder + "/query.fbin"), Matrix(folder + "/gt.ibin"), {}};
	for (int i = 0; i < b.query.rows; i++) {
		int tenth = reinterpret_cast<const int *>(b.truth[i])[K - 1];
		b.limit.push_back(exact(b.base[tenth], b.query[i], b.base.columns) * (1 + 2e-5) + 1e-6);
	}

	double start = cpu();
	hnswlib::L2Space space(b.base.columns);
	hnswlib::HierarchicalNSW<float> graph(&space, b.base.rows, M, EF_CONSTRUCTION);
	for (int i = 0; i < b.base.rows; i++)
		graph.addPoint(b.base[i], i);
	b.sweep("hnswlib", cpu() - start, [&](const float *q, int knob, long *ids) {
		graph.setEf(knob);
		auto found = graph.searchKnn(q, K);
		for (size_t i = found.size(); i > 0; i--, found.pop())
			ids[i - 1] = (long) found.top().second;
	});
	return 0;
}
