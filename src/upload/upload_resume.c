/*
 * upload_resume.c
 *	  What a lost run has left at the server: multipart uploads, and parts of
 *	  them that need not be sent again.
 */
#include "postgres.h"

#include <time.h>

#include "common/cryptohash.h"
#include "common/md5.h"
#include "utils/memutils.h"

#include "base/clock.h"
#include "upload/upload_int.h"

#define CLOCK_SLACK_S	2

static bool begun_by_us(const SwarmUploadStep *step, const char *initiated);
static bool parse_time(const char *text, const char *format, int64 *seconds);
static bool part_is_equal(SwarmUploadFile *file, int part, const char *size, const char *etag);
static int	hex_digits(const char *text);
static uint8 hex_byte(const char *text);

/*
 * swarm_upload_searched: an upload for exactly this key that was begun since
 * the batch was is taken for that of a run that died before it had the id.
 * It has no parts: an id is committed before the first one.
 */
SwarmFileEvent
swarm_upload_searched(SwarmUploadStep *step)
{
	SwarmUploadFile *file = step->file;
	const char *position = NULL;
	char	   *upload;

	while ((upload = swarm_s3_xml_inner(step->request->answer, "Upload", &position)) != NULL)
	{
		char	   *key = swarm_s3_xml_text(upload, "Key", NULL);
		char	   *id = swarm_s3_xml_text(upload, "UploadId", NULL);
		char	   *initiated = swarm_s3_xml_text(upload, "Initiated", NULL);

		if (key == NULL || id == NULL || initiated == NULL || strcmp(key, file->key) != 0 ||
			*id == '\0' || strlen(id) > UPLOAD_ID_MAX || !begun_by_us(step, initiated))
			continue;
		file->upload_id = MemoryContextStrdup(file->upload->context, id);
		return FILE_EVENT_STALE;
	}
	return FILE_EVENT_OK;
}

/* begun_by_us: by the clock of the server, which the answer has. */
static bool
begun_by_us(const SwarmUploadStep *step, const char *initiated)
{
	char	   *date = swarm_net_answer_header(step->request, "date");
	int64		begun;
	int64		now;

	if (!parse_time(initiated, "%Y-%m-%dT%H:%M:%S", &begun) ||
		date == NULL || !parse_time(date, "%a, %d %b %Y %H:%M:%S", &now))
		return false;
	return now - begun <= (swarm_now() - step->file->upload->since) / USECS_PER_SEC + CLOCK_SLACK_S;
}

static bool
parse_time(const char *text, const char *format, int64 *seconds)
{
	struct tm	t = {0};

	if (strptime(text, format, &t) == NULL)
		return false;
	*seconds = timegm(&t);
	return true;
}

/*
 * swarm_upload_listed: take over the parts of an answer.  True if it is the
 * last page.
 */
bool
swarm_upload_listed(SwarmUploadStep *step)
{
	SwarmUploadFile *file = step->file;
	const char *answer = step->request->answer;
	const char *position = NULL;
	char	   *truncated = swarm_s3_xml_text(answer, "IsTruncated", NULL);
	int			last = file->parts_listed;
	char	   *item;

	while ((item = swarm_s3_xml_inner(answer, "Part", &position)) != NULL)
	{
		char	   *number = swarm_s3_xml_text(item, "PartNumber", NULL);
		char	   *etag = swarm_s3_etag(swarm_s3_xml_text(item, "ETag", NULL));
		int			part = number ? atoi(number) : 0;

		last = Max(last, part);
		if (part < 1 || part > file->parts || file->etags[part - 1] != NULL ||
			!part_is_equal(file, part, swarm_s3_xml_text(item, "Size", NULL), etag))
			continue;
		file->etags[part - 1] = MemoryContextStrdup(file->context, etag);
		file->parts_done++;
		file->bytes_done += swarm_upload_part(file, part).length;
	}
	if (truncated == NULL || strcmp(truncated, "true") != 0 || last == file->parts_listed)
		return true;
	file->parts_listed = last;
	return false;
}

/* part_is_equal: the source may have changed since; what is not known to be equal is not. */
static bool
part_is_equal(SwarmUploadFile *file, int part, const char *size, const char *etag)
{
	SwarmNetBody body = swarm_upload_part(file, part);
	SwarmS3Digest digest = {.want_md5 = true};

	if (size == NULL || strtoll(size, NULL, 10) != body.length || hex_digits(etag) != 32 || etag[32] != '\0')
		return false;
	return swarm_s3_digest(&body, &digest) == NULL && digest.md5[0] != '\0' &&
		pg_strcasecmp(digest.md5, etag) == 0;
}

/*
 * swarm_upload_etag_fits: may an object with this ETag be what was sent in
 * parts?  No where it has the usual form and says otherwise.
 */
bool
swarm_upload_etag_fits(SwarmUploadStep *step, const char *etag)
{
	SwarmUploadFile *file = step->file;
	char	   *sse = swarm_net_answer_header(step->request, "x-amz-server-side-encryption");
	const char *dash = strchr(etag, '-');
	pg_cryptohash_ctx *ctx;
	uint8		bytes[MD5_DIGEST_LENGTH];
	bool		known = true;
	bool		fits = true;

	if (dash == NULL)
		return true;
	if (strcmp(dash + 1, psprintf("%d", file->parts)) != 0)
		return false;
	if (hex_digits(etag) != 32 || dash != etag + 32 || (sse != NULL && strcmp(sse, "AES256") != 0))
		return true;
	ctx = pg_cryptohash_create(PG_MD5);
	if (ctx == NULL || pg_cryptohash_init(ctx) < 0)
		known = false;			/* MD5 is forbidden here */
	for (int i = 0; known && i < file->parts; i++)
	{
		known = hex_digits(file->etags[i]) == 32 && file->etags[i][32] == '\0';
		for (int j = 0; known && j < MD5_DIGEST_LENGTH; j++)
			bytes[j] = hex_byte(file->etags[i] + 2 * j);
		known = known && pg_cryptohash_update(ctx, bytes, sizeof(bytes)) >= 0;
	}
	if (known && pg_cryptohash_final(ctx, bytes, sizeof(bytes)) >= 0)
	{
		for (int j = 0; j < MD5_DIGEST_LENGTH; j++)
			fits = fits && hex_byte(etag + 2 * j) == bytes[j];
	}
	if (ctx != NULL)
		pg_cryptohash_free(ctx);
	return fits;
}

static int
hex_digits(const char *text)
{
	return (int) strspn(text, "0123456789abcdefABCDEF");
}

static uint8
hex_byte(const char *text)
{
	char		two[3];

	strlcpy(two, text, sizeof(two));
	return (uint8) strtoul(two, NULL, 16);
}
