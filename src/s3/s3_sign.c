/*
 * s3_sign.c
 *	  AWS Signature Version 4, as S3 wants it.
 *
 * S3 signs the path as it is: encoded once, nothing folded.  libcurl's own
 * signer is not used: with keys that users choose it can sign a path that
 * leads into another bucket (README).
 */
#include "postgres.h"

#include <time.h>
#include <unistd.h>

#include "common/base64.h"
#include "common/cryptohash.h"
#include "common/hmac.h"
#include "common/md5.h"
#include "common/sha2.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "port/pg_crc32c.h"
#include "utils/resowner.h"

#include "s3/s3.h"

#define READ_SIZE	(128 * 1024)

static ResourceOwner our_owner = NULL;
static ResourceOwner owner_before = NULL;

static char *canonical_request(SwarmS3Sign *sign, char **signed_headers);
static void hmac(const uint8 *key, size_t key_length, const char *text, uint8 *result);
static void hex(const uint8 *bytes, int n, char *out);
static void base64(const uint8 *bytes, int n, char *out, int room);
static int	compare_pairs(const ListCell *a, const ListCell *b);

void
swarm_s3_owner_begin(void)
{
	Assert(our_owner == NULL);
	owner_before = CurrentResourceOwner;
	our_owner = ResourceOwnerCreate(NULL, "pg_swarm s3");
	CurrentResourceOwner = our_owner;
}

void
swarm_s3_owner_end(void)
{
	if (our_owner == NULL)
		return;
	CurrentResourceOwner = owner_before;
	ResourceOwnerRelease(our_owner, RESOURCE_RELEASE_BEFORE_LOCKS, false, true);
	ResourceOwnerRelease(our_owner, RESOURCE_RELEASE_LOCKS, false, true);
	ResourceOwnerRelease(our_owner, RESOURCE_RELEASE_AFTER_LOCKS, false, true);
	ResourceOwnerDelete(our_owner);
	our_owner = NULL;
}

SwarmS3Pair *
swarm_s3_pair(const char *name, const char *value)
{
	SwarmS3Pair *pair = palloc(sizeof(SwarmS3Pair));

	pair->name = pstrdup(name);
	pair->value = pstrdup(value);
	return pair;
}

char *
swarm_s3_encode(const char *text, bool keep_slashes)
{
	StringInfoData out;

	initStringInfo(&out);
	for (const unsigned char *p = (const unsigned char *) text; *p; p++)
	{
		if ((*p >= 'A' && *p <= 'Z') || (*p >= 'a' && *p <= 'z') || (*p >= '0' && *p <= '9') ||
			*p == '-' || *p == '.' || *p == '_' || *p == '~' || (*p == '/' && keep_slashes))
			appendStringInfoChar(&out, *p);
		else
			appendStringInfo(&out, "%%%02X", *p);
	}
	return out.data;
}

static int
compare_pairs(const ListCell *a, const ListCell *b)
{
	const SwarmS3Pair *x = lfirst(a);
	const SwarmS3Pair *y = lfirst(b);
	int			c = strcmp(x->name, y->name);

	return c != 0 ? c : strcmp(x->value, y->value);
}

char *
swarm_s3_query(List *pairs)
{
	StringInfoData out;
	List	   *encoded = NIL;
	ListCell   *lc;

	foreach(lc, pairs)
	{
		SwarmS3Pair *pair = lfirst(lc);

		encoded = lappend(encoded, swarm_s3_pair(swarm_s3_encode(pair->name, false),
												 swarm_s3_encode(pair->value, false)));
	}
	list_sort(encoded, compare_pairs);
	initStringInfo(&out);
	foreach(lc, encoded)
	{
		SwarmS3Pair *pair = lfirst(lc);

		appendStringInfo(&out, "%s%s=%s", out.len ? "&" : "", pair->name, pair->value);
	}
	return out.data;
}

/* canonical_request: what both sides hash; names of the headers in it. */
static char *
canonical_request(SwarmS3Sign *sign, char **signed_headers)
{
	StringInfoData out;
	StringInfoData names;
	List	   *headers = list_copy(sign->headers);
	ListCell   *lc;

	list_sort(headers, compare_pairs);
	initStringInfo(&out);
	initStringInfo(&names);
	appendStringInfo(&out, "%s\n%s\n%s\n", sign->method, sign->path, swarm_s3_query(sign->query));
	foreach(lc, headers)
	{
		SwarmS3Pair *pair = lfirst(lc);
		const char *p = pair->value;
		bool		blank = false;

		appendStringInfo(&out, "%s:", pair->name);
		while (*p == ' ')
			p++;
		for (; *p; p++)
		{
			/* runs of blanks are one, none at the end */
			if (*p == ' ')
				blank = true;
			else
			{
				if (blank)
					appendStringInfoChar(&out, ' ');
				blank = false;
				appendStringInfoChar(&out, *p);
			}
		}
		appendStringInfoChar(&out, '\n');
		appendStringInfo(&names, "%s%s", names.len ? ";" : "", pair->name);
	}
	appendStringInfo(&out, "\n%s\n%s", names.data, sign->payload_hash);
	*signed_headers = names.data;
	return out.data;
}

char *
swarm_s3_signature(SwarmS3Sign *sign, char **canonical, char **signed_headers)
{
	char	   *request = canonical_request(sign, signed_headers);
	char		hash[65];
	char		day[9];
	char	   *first;
	uint8		key[PG_SHA256_DIGEST_LENGTH];
	char	   *signature = palloc(65);
	char	   *to_sign;

	if (canonical != NULL)
		*canonical = request;
	strlcpy(day, sign->stamp, sizeof(day));
	swarm_s3_sha256_hex(request, strlen(request), hash);
	to_sign = psprintf("AWS4-HMAC-SHA256\n%s\n%s/%s/s3/aws4_request\n%s",
					   sign->stamp, day, sign->region, hash);
	first = psprintf("AWS4%s", sign->secret_key);
	hmac((uint8 *) first, strlen(first), day, key);
	explicit_bzero(first, strlen(first));
	hmac(key, sizeof(key), sign->region, key);
	hmac(key, sizeof(key), "s3", key);
	hmac(key, sizeof(key), "aws4_request", key);
	hmac(key, sizeof(key), to_sign, key);
	hex(key, sizeof(key), signature);
	return signature;
}

char *
swarm_s3_authorization(SwarmS3Sign *sign, char **canonical)
{
	char	   *names;
	char	   *signature = swarm_s3_signature(sign, canonical, &names);

	return psprintf("AWS4-HMAC-SHA256 Credential=%s/%.8s/%s/s3/aws4_request,SignedHeaders=%s,Signature=%s",
					sign->access_key, sign->stamp, sign->region, names, signature);
}

/* swarm_s3_stamp: now, as the server's clock has it. */
void
swarm_s3_stamp(char *stamp, int64 skew_s)
{
	time_t		now = time(NULL) + skew_s;
	struct tm	t;

	gmtime_r(&now, &t);
	strftime(stamp, SWARM_S3_STAMP, "%Y%m%dT%H%M%SZ", &t);
}

static void
hmac(const uint8 *key, size_t key_length, const char *text, uint8 *result)
{
	pg_hmac_ctx *ctx = pg_hmac_create(PG_SHA256);

	if (ctx == NULL || pg_hmac_init(ctx, key, key_length) < 0 ||
		pg_hmac_update(ctx, (const uint8 *) text, strlen(text)) < 0 ||
		pg_hmac_final(ctx, result, PG_SHA256_DIGEST_LENGTH) < 0)
		elog(ERROR, "could not compute HMAC: %s", pg_hmac_error(ctx));
	pg_hmac_free(ctx);
}

void
swarm_s3_sha256_hex(const char *data, size_t length, char *out)
{
	uint8		bytes[PG_SHA256_DIGEST_LENGTH];
	pg_cryptohash_ctx *ctx = pg_cryptohash_create(PG_SHA256);

	if (ctx == NULL || pg_cryptohash_init(ctx) < 0 ||
		pg_cryptohash_update(ctx, (const uint8 *) data, length) < 0 ||
		pg_cryptohash_final(ctx, bytes, sizeof(bytes)) < 0)
		elog(ERROR, "could not compute SHA-256: %s", pg_cryptohash_error(ctx));
	pg_cryptohash_free(ctx);
	hex(bytes, sizeof(bytes), out);
}

/*
 * swarm_s3_digest: read the body once, compute what is wanted; MD5 stays empty
 * where the server's library forbids it.
 */
const char *
swarm_s3_digest(const SwarmNetBody *body, SwarmS3Digest *digest)
{
	pg_cryptohash_ctx *sha = digest->want_sha256 ? pg_cryptohash_create(PG_SHA256) : NULL;
	pg_cryptohash_ctx *md5 = digest->want_md5 ? pg_cryptohash_create(PG_MD5) : NULL;
	char	   *buffer = body->fd < 0 ? NULL : palloc(READ_SIZE);
	pg_crc32c	crc;
	uint8		bytes[PG_SHA256_DIGEST_LENGTH];

	INIT_CRC32C(crc);
	if (sha != NULL && pg_cryptohash_init(sha) < 0)
		elog(ERROR, "could not compute SHA-256: %s", pg_cryptohash_error(sha));
	if (md5 != NULL && pg_cryptohash_init(md5) < 0)
	{
		pg_cryptohash_free(md5);
		md5 = NULL;
	}
	for (int64 done = 0; done < body->length;)
	{
		int64		n = READ_SIZE;
		const char *piece = swarm_net_body_at(body, done, &n);

		CHECK_FOR_INTERRUPTS();
		if (piece == NULL)
		{
			n = pread(body->fd, buffer, n, body->offset + done);
			piece = buffer;
		}
		if (n <= 0)
		{
			if (sha != NULL)
				pg_cryptohash_free(sha);
			if (md5 != NULL)
				pg_cryptohash_free(md5);
			return n == 0 ? "the source became shorter while it was sent" :
				psprintf("could not read the source: %s", strerror(errno));
		}
		if (sha != NULL && pg_cryptohash_update(sha, (const uint8 *) piece, n) < 0)
			elog(ERROR, "could not compute SHA-256: %s", pg_cryptohash_error(sha));
		if (md5 != NULL && pg_cryptohash_update(md5, (const uint8 *) piece, n) < 0)
			elog(ERROR, "could not compute MD5: %s", pg_cryptohash_error(md5));
		if (digest->want_crc32c)
			COMP_CRC32C(crc, piece, n);
		done += n;
	}
	if (sha != NULL)
	{
		if (pg_cryptohash_final(sha, bytes, PG_SHA256_DIGEST_LENGTH) < 0)
			elog(ERROR, "could not compute SHA-256: %s", pg_cryptohash_error(sha));
		pg_cryptohash_free(sha);
		hex(bytes, PG_SHA256_DIGEST_LENGTH, digest->sha256);
		base64(bytes, PG_SHA256_DIGEST_LENGTH, digest->sha256_base64, sizeof(digest->sha256_base64));
	}
	digest->md5[0] = digest->md5_base64[0] = '\0';
	if (md5 != NULL)
	{
		if (pg_cryptohash_final(md5, bytes, MD5_DIGEST_LENGTH) == 0)
		{
			hex(bytes, MD5_DIGEST_LENGTH, digest->md5);
			base64(bytes, MD5_DIGEST_LENGTH, digest->md5_base64, sizeof(digest->md5_base64));
		}
		pg_cryptohash_free(md5);
	}
	if (digest->want_crc32c)
	{
		FIN_CRC32C(crc);
		for (int i = 0; i < 4; i++)
			bytes[i] = (uint8) (crc >> (24 - 8 * i));
		base64(bytes, 4, digest->crc32c_base64, sizeof(digest->crc32c_base64));
	}
	if (buffer)
		pfree(buffer);
	digest->done = true;
	return NULL;
}

static void
hex(const uint8 *bytes, int n, char *out)
{
	static const char digits[] = "0123456789abcdef";

	for (int i = 0; i < n; i++)
	{
		out[2 * i] = digits[bytes[i] >> 4];
		out[2 * i + 1] = digits[bytes[i] & 15];
	}
	out[2 * n] = '\0';
}

static void
base64(const uint8 *bytes, int n, char *out, int room)
{
	int			length = pg_b64_encode((const void *) bytes, n, out, room - 1);

	if (length < 0)
		elog(ERROR, "no room for base64");
	out[length] = '\0';
}
