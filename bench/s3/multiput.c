/*
 * multiput.c
 *	  What libcurl can do: batches of uploads through one multi handle, 20 at a
 *	  time, or one after another.  libcurl signs, the payload's SHA-256 too.
 *
 *	multiput seq|par FILES BYTES BATCHES
 *
 * Prints a JSON line: ms of each batch, failed, rss_mb, cpu_s.
 */
#define _GNU_SOURCE
#include <curl/curl.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

struct source
{
	const char *data;
	size_t		length;
	size_t		read;
};

static size_t bytes;
static char *body;
static char credentials[512];
static long failed;

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static double
cpu(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static size_t
read_body(char *buffer, size_t size, size_t n, void *arg)
{
	struct source *s = arg;
	size_t		want = size * n < s->length - s->read ? size * n : s->length - s->read;

	memcpy(buffer, s->data + s->read, want);
	s->read += want;
	return want;
}

static int
seek_body(void *arg, curl_off_t offset, int origin)
{
	((struct source *) arg)->read = offset;
	return origin == SEEK_SET ? CURL_SEEKFUNC_OK : CURL_SEEKFUNC_FAIL;
}

static size_t
ignore(void *data, size_t size, size_t n, void *arg)
{
	(void) data, (void) arg;
	return size * n;
}

static struct curl_slist *
prepare(CURL *easy, struct source *s, int i)
{
	char		url[512];
	char		line[128] = "x-amz-content-sha256: ";
	unsigned char hash[SHA256_DIGEST_LENGTH];
	struct curl_slist *headers;

	SHA256((unsigned char *) body, bytes, hash);
	for (int k = 0; k < SHA256_DIGEST_LENGTH; k++)
		sprintf(line + 22 + 2 * k, "%02x", hash[k]);
	headers = curl_slist_append(NULL, line);
	snprintf(url, sizeof(url), "%s/bench/curl/%d", getenv("S3_ENDPOINT"), i);
	*s = (struct source) {body, bytes, 0};
	curl_easy_reset(easy);
	curl_easy_setopt(easy, CURLOPT_URL, url);
	curl_easy_setopt(easy, CURLOPT_AWS_SIGV4, "aws:amz:us-east-1:s3");
	curl_easy_setopt(easy, CURLOPT_USERPWD, credentials);
	curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(easy, CURLOPT_UPLOAD, 1L);
	curl_easy_setopt(easy, CURLOPT_READFUNCTION, read_body);
	curl_easy_setopt(easy, CURLOPT_READDATA, s);
	curl_easy_setopt(easy, CURLOPT_SEEKFUNCTION, seek_body);
	curl_easy_setopt(easy, CURLOPT_SEEKDATA, s);
	curl_easy_setopt(easy, CURLOPT_INFILESIZE_LARGE, (curl_off_t) bytes);
	curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, ignore);
	curl_easy_setopt(easy, CURLOPT_UPLOAD_BUFFERSIZE, 512L * 1024);
	curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
	curl_easy_setopt(easy, CURLOPT_TCP_NODELAY, 1L);
	return headers;
}

static void
count(CURL *easy, CURLcode code)
{
	long		status = 0;

	curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
	failed += code != CURLE_OK || status != 200;
}

static void
perform(CURLM *multi)
{
	int			running;
	int			left;
	CURLMsg    *message;

	do
	{
		curl_multi_perform(multi, &running);
		while ((message = curl_multi_info_read(multi, &left)) != NULL)
		{
			count(message->easy_handle, message->data.result);
			curl_multi_remove_handle(multi, message->easy_handle);
		}
		if (running)
			curl_multi_poll(multi, NULL, 0, 1000, NULL);
	} while (running);
}

int
main(int argc, char **argv)
{
	int			parallel = argc == 5 && strcmp(argv[1], "par") == 0;
	int			files = argc == 5 ? atoi(argv[2]) : 0;
	int			batches = argc == 5 ? atoi(argv[4]) : 0;
	CURLM	   *multi;
	CURL	  **easy = calloc(files, sizeof(CURL *));
	struct source *sources = calloc(files, sizeof(struct source));
	struct curl_slist **headers = calloc(files, sizeof(*headers));
	double		cpu_before = 0;
	struct rusage usage;
	FILE	   *random = fopen("/dev/urandom", "r");

	if (files == 0)
		return 2;
	bytes = atol(argv[3]);
	body = malloc(bytes);
	if (random == NULL || fread(body, 1, bytes, random) != bytes)
		return 1;
	fclose(random);
	snprintf(credentials, sizeof(credentials), "%s:%s", getenv("S3_ACCESS_KEY"), getenv("S3_SECRET_KEY"));
	curl_global_init(CURL_GLOBAL_ALL);
	multi = curl_multi_init();
	curl_multi_setopt(multi, CURLMOPT_MAX_HOST_CONNECTIONS, 20L);
	curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, 20L);
	for (int i = 0; i < files; i++)
		easy[i] = curl_easy_init();
	printf("{\"ms\": [");
	for (int b = 0; b < batches; b++)
	{
		double		start = now();

		/* the first batch is not counted: everybody warms up */
		if (b == 1 || batches == 1)
			cpu_before = cpu();
		for (int i = 0; i < files; i++)
		{
			CURL	   *c = easy[parallel ? i : 0];

			headers[i] = prepare(c, &sources[i], i);
			if (parallel)
				curl_multi_add_handle(multi, c);
			else
				count(c, curl_easy_perform(c));
		}
		if (parallel)
			perform(multi);
		printf("%s%.1f", b ? ", " : "", now() - start);
		for (int i = 0; i < files; i++)
			curl_slist_free_all(headers[i]);
	}
	getrusage(RUSAGE_SELF, &usage);
	printf("], \"failed\": %ld, \"rss_mb\": %.1f, \"cpu_s\": %.3f}\n", failed, usage.ru_maxrss / 1024.0, cpu() - cpu_before);
	return 0;
}
