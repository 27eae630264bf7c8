/*
 * s3_request.c
 *	  A call of S3 as a request of module net: signed anew for each attempt,
 *	  and its answer judged by what it says, not by its status alone.
 */
#include "postgres.h"

#include <time.h>

#include "lib/stringinfo.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "s3/s3_int.h"

#define UNSIGNED	"UNSIGNED-PAYLOAD"

/* Names by which S3, and this file, call an error. */
const SwarmNetRule swarm_s3_rules[] = {
	{SWARM_NET_NAME, 0, 0, "SlowDown", SWARM_NET_SLOW, false, "the server asks for fewer requests"},
	{SWARM_NET_NAME, 0, 0, "ServiceUnavailable", SWARM_NET_SLOW, true, "overloaded"},
	{SWARM_NET_NAME, 0, 0, "TooManyRequests", SWARM_NET_SLOW, false, "the server asks for fewer requests"},
	{SWARM_NET_NAME, 0, 0, "RequestLimitExceeded", SWARM_NET_SLOW, false, "the server asks for fewer requests"},
	{SWARM_NET_NAME, 0, 0, "Throttling", SWARM_NET_SLOW, false, "the server asks for fewer requests"},
	{SWARM_NET_NAME, 0, 0, "InternalError", SWARM_NET_RETRY, true, "the server failed"},
	{SWARM_NET_NAME, 0, 0, "RequestTimeout", SWARM_NET_RETRY, false, "the body did not come in time"},
	{SWARM_NET_NAME, 0, 0, "OperationAborted", SWARM_NET_RETRY, false, "a conflicting request is under way"},
	{SWARM_NET_NAME, 0, 0, "BadDigest", SWARM_NET_RETRY, false, "the body was damaged on its way"},
	{SWARM_NET_NAME, 0, 0, "XAmzContentSHA256Mismatch", SWARM_NET_RETRY, false, "the body was damaged on its way"},
	{SWARM_NET_NAME, 0, 0, "XAmzContentChecksumMismatch", SWARM_NET_RETRY, false, "the body was damaged on its way"},
	{SWARM_NET_NAME, 0, 0, "IncompleteBody", SWARM_NET_RETRY, false, "the body was cut on its way"},
	{SWARM_NET_NAME, 0, 0, "ETagMismatch", SWARM_NET_RETRY, false, "what is stored is not what was sent"},
	{SWARM_NET_NAME, 0, 0, "UnexpectedAnswer", SWARM_NET_RETRY, false, "success was announced, but the answer is not one"},
	{SWARM_NET_NAME, 0, 0, "RequestTimeTooSkewed", SWARM_NET_ONCE, false, "clocks differ: signed again with the server's"},
	{SWARM_NET_NAME, 0, 0, "WrongRegion", SWARM_NET_ONCE, false, "signed again for the bucket's region, same host"}
};
const int	swarm_s3_nrules = lengthof(swarm_s3_rules);

static void prepare(SwarmNetRequest *request);
static const SwarmNetRule *judge(SwarmNetRequest *request);
static void note_error(SwarmNetRequest *request);
static bool note_region(SwarmNetRequest *request);
static void note_clock(SwarmNetRequest *request);
static bool etag_is_wrong(SwarmNetRequest *request);
static char *object_path(const SwarmS3Server *server, const char *bucket, const char *key);
static char *object_host(const SwarmS3Server *server, const char *bucket);
static void make_printable(char *text);
static const SwarmNetRule *named(SwarmNetRequest *request, const char *name, const char *text);

SwarmNetRequest *
swarm_s3_request(MemoryContext context, SwarmS3Call *call)
{
	SwarmNetRequest *request = swarm_net_request(context);

	request->method = call->method;
	request->endpoint = call->server->endpoint;
	request->policy = call->server->policy;
	request->parallel = call->server->max_parallel;
	request->ca_file = call->server->ca_file;
	request->host_is_literal = call->server->literal;
	request->body = call->body;
	request->prepare = call->server->folder ? swarm_s3_folder_answer : prepare;
	request->judge = judge;
	request->caller = call;
	return request;
}

static char *
object_path(const SwarmS3Server *server, const char *bucket, const char *key)
{
	if (bucket == NULL)
		return pstrdup("/");
	if (server->path_style)
		return psprintf("/%s%s%s", swarm_s3_encode(bucket, false), key ? "/" : "",
						key ? swarm_s3_encode(key, true) : "");
	return psprintf("/%s", key ? swarm_s3_encode(key, true) : "");
}

static char *
object_host(const SwarmS3Server *server, const char *bucket)
{
	if (server->path_style || bucket == NULL)
		return pstrdup(server->host);
	return psprintf("%s.%s", bucket, server->host);
}

/*
 * prepare: the next attempt: date, digests, signature.
 */
static void
prepare(SwarmNetRequest *request)
{
	SwarmS3Call *call = request->caller;
	SwarmS3Server *server = call->server;
	bool		sends = call->body.memory != NULL || call->body.blocks != NULL || call->body.fd >= 0;
	char		stamp[SWARM_S3_STAMP];
	char	   *host = object_host(server, call->bucket);
	char	   *path = object_path(server, call->bucket, call->key);
	char	   *query = swarm_s3_query(call->query);
	const char *hash = UNSIGNED;
	List	   *headers = list_copy(call->headers);
	ListCell   *lc;

	if (sends && !call->digest.done)
	{
		const char *error;

		/* one digest that the server verifies is enough, and costs enough */
		call->digest.want_sha256 = server->sign_payload || call->checksum_sha256;
		call->digest.want_crc32c = call->checksum_crc32c;
		call->digest.want_md5 = !call->digest.want_sha256 && !call->digest.want_crc32c;
		error = swarm_s3_digest(&call->body, &call->digest);
		if (error != NULL)
		{
			strlcpy(request->error_name, "SourceChanged", sizeof(request->error_name));
			swarm_net_text(request->error_text, sizeof(request->error_text), error);
			return;
		}
	}
	if (!sends)
	{
		swarm_s3_sha256_hex("", 0, call->digest.sha256);
		hash = call->digest.sha256;
	}
	else if (server->sign_payload)
		hash = call->digest.sha256; /* else TLS and a checksum protect it */
	swarm_s3_stamp(stamp, server->skew_s);

	headers = lappend(headers, swarm_s3_pair("host", host));
	headers = lappend(headers, swarm_s3_pair("x-amz-date", stamp));
	headers = lappend(headers, swarm_s3_pair("x-amz-content-sha256", hash));
	if (server->session_token != NULL)
		headers = lappend(headers, swarm_s3_pair("x-amz-security-token", server->session_token));
	if (sends && call->digest.md5_base64[0])
		headers = lappend(headers, swarm_s3_pair("content-md5", call->digest.md5_base64));
	if (sends && call->checksum_crc32c)
	{
		headers = lappend(headers, swarm_s3_pair("x-amz-checksum-crc32c", call->digest.crc32c_base64));
		headers = lappend(headers, swarm_s3_pair("x-amz-sdk-checksum-algorithm", "CRC32C"));
	}
	if (sends && call->checksum_sha256)
	{
		headers = lappend(headers, swarm_s3_pair("x-amz-checksum-sha256", call->digest.sha256_base64));
		headers = lappend(headers, swarm_s3_pair("x-amz-sdk-checksum-algorithm", "SHA256"));
	}
	foreach(lc, headers)
	{
		SwarmS3Pair *pair = lfirst(lc);

		swarm_net_header(request, pair->name, pair->value);
	}
	if (server->access_key != NULL)
	{
		SwarmS3Sign sign = {
			.method = call->method, .path = path, .query = call->query, .headers = headers,
			.payload_hash = hash, .stamp = stamp,
			.region = call->region ? call->region : server->region,
			.access_key = server->access_key, .secret_key = server->secret_key
		};

		swarm_net_header(request, "Authorization", swarm_s3_authorization(&sign, NULL));
	}
	swarm_net_url(request, psprintf("%s://%s%s%s%s", server->https ? "https" : "http", host, path,
									*query ? "?" : "", query));
}

char *
swarm_s3_presign_url(SwarmS3Server *server, const char *method, const char *bucket,
					 const char *key, int seconds, const char *given_stamp)
{
	char		stamp[SWARM_S3_STAMP];
	char	   *host = object_host(server, bucket);
	char	   *path = object_path(server, bucket, key);
	char	   *names;
	SwarmS3Sign sign = {
		.method = method, .path = path, .payload_hash = UNSIGNED, .region = server->region,
		.access_key = server->access_key, .secret_key = server->secret_key
	};

	if (server->folder != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("server \"%s\" is a folder, whose objects have no URLs", server->name),
				 errhint("Use swarm.s3_get(), or a server with an endpoint http:// or https://.")));
	if (server->access_key == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION),
				 errmsg("server \"%s\" has no credentials to sign with", server->name),
				 errhint("Use CREATE USER MAPPING FOR PUBLIC.")));
	if (given_stamp != NULL)
		strlcpy(stamp, given_stamp, sizeof(stamp));
	else
		swarm_s3_stamp(stamp, server->skew_s);
	sign.stamp = stamp;
	sign.headers = list_make1(swarm_s3_pair("host", host));
	sign.query = list_make5(swarm_s3_pair("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
							swarm_s3_pair("X-Amz-Credential",
										  psprintf("%s/%.8s/%s/s3/aws4_request", server->access_key,
												   stamp, server->region)),
							swarm_s3_pair("X-Amz-Date", stamp),
							swarm_s3_pair("X-Amz-Expires", psprintf("%d", seconds)),
							swarm_s3_pair("X-Amz-SignedHeaders", "host"));
	if (server->session_token != NULL)
		sign.query = lappend(sign.query, swarm_s3_pair("X-Amz-Security-Token", server->session_token));
	return psprintf("%s://%s%s?%s&X-Amz-Signature=%s", server->https ? "https" : "http",
					host, path, swarm_s3_query(sign.query), swarm_s3_signature(&sign, NULL, &names));
}

/* ------------------------------------------------------------------------
 * Answers
 * ------------------------------------------------------------------------ */

/*
 * judge: the rule for an answer, by the error it names; NULL leaves it to the
 * status.
 */
static const SwarmNetRule *
judge(SwarmNetRequest *request)
{
	SwarmS3Call *call = request->caller;
	bool		success = request->status >= 200 && request->status <= 299;
	char	   *root = request->answer_length > 0 ? swarm_s3_xml_root(request->answer) : NULL;

	if (success && request->sink < 0 && root != NULL && strcmp(root, "Error") == 0)
	{
		/* S3 says 200 before it knows how a long request ends */
		note_error(request);
		request->status = 500;
	}
	else if (success)
	{
		if (call->answer_root != NULL && (root == NULL || strcmp(root, call->answer_root) != 0))
			return named(request, "UnexpectedAnswer", "the server announced success, but did not answer the request");
		if (call->verify_etag && etag_is_wrong(request))
			return named(request, "ETagMismatch", "the ETag of the object is not the MD5 of what was sent");
		return NULL;
	}
	else
		note_error(request);
	if (note_region(request))
		return named(request, "WrongRegion", request->error_text);
	if (strcmp(request->error_name, "RequestTimeTooSkewed") == 0)
		note_clock(request);
	return swarm_net_rule_named(swarm_s3_rules, swarm_s3_nrules, request->error_name);
}

static const SwarmNetRule *
named(SwarmNetRequest *request, const char *name, const char *text)
{
	strlcpy(request->error_name, name, sizeof(request->error_name));
	if (text !=request->error_text)
		strlcpy(request->error_text, text, sizeof(request->error_text));
	return swarm_net_rule_named(swarm_s3_rules, swarm_s3_nrules, name);
}

/* note_error: name and text of the answer's error document, made printable. */
static void
note_error(SwarmNetRequest *request)
{
	char	   *name = request->answer_length > 0 ? swarm_s3_xml_text(request->answer, "Code", NULL) : NULL;
	char	   *text = request->answer_length > 0 ? swarm_s3_xml_text(request->answer, "Message", NULL) : NULL;

	if (name == NULL || *name == '\0')
	{
		static const struct
		{
			int			status;
			const char *name;
		}			usual[] = {{400, "BadRequest"}, {403, "AccessDenied"}, {404, "NotFound"},
		{412, "PreconditionFailed"}, {503, "ServiceUnavailable"}};

		name = psprintf("HTTP %d", request->status);
		for (int i = 0; i < lengthof(usual); i++)
		{
			if (usual[i].status == request->status)
				name = pstrdup(usual[i].name);
		}
	}
	strlcpy(request->error_name, name, sizeof(request->error_name));
	if (text == NULL || *text == '\0')
		text = psprintf("the server answered with status %d", request->status);

	strlcpy(request->error_text, text, sizeof(request->error_text));
	make_printable(request->error_name);
	make_printable(request->error_text);
}

/* note_region: does the answer say that the bucket is elsewhere? */
static bool
note_region(SwarmNetRequest *request)
{
	SwarmS3Call *call = request->caller;
	char	   *region;

	if (request->status != 301 && request->status != 302 && request->status != 307 &&
		strcmp(request->error_name, "AuthorizationHeaderMalformed") != 0 &&
		strcmp(request->error_name, "PermanentRedirect") != 0)
		return false;
	region = swarm_net_answer_header(request, "x-amz-bucket-region");
	if (region == NULL && request->answer_length > 0)
		region = swarm_s3_xml_text(request->answer, "Region", NULL);
	if (region == NULL || *region == '\0' || strlen(region) > 63 ||
		strspn(region, "abcdefghijklmnopqrstuvwxyz0123456789-") != strlen(region) ||
		strcmp(region, call->region ? call->region : call->server->region) == 0)
		return false;
	call->region = MemoryContextStrdup(GetMemoryChunkContext(request), region);
	return true;
}

/* note_clock: how far the server's clock is from ours. */
static void
note_clock(SwarmNetRequest *request)
{
	SwarmS3Call *call = request->caller;
	char	   *date = swarm_net_answer_header(request, "date");
	struct tm	t = {0};

	if (date != NULL && strptime(date, "%a, %d %b %Y %H:%M:%S", &t) != NULL)
		call->server->skew_s = (int64) timegm(&t) - (int64) time(NULL);
}

char *
swarm_s3_etag(const char *header)
{
	size_t		length;
	char	   *etag;

	if (header == NULL)
		return pstrdup("");
	if (strncmp(header, "W/", 2) == 0)
		header += 2;
	length = strlen(header);
	if (length >= 2 && header[0] == '"' && header[length - 1] == '"')
		etag = pnstrdup(header + 1, length - 2);
	else
		etag = pstrdup(header);
	make_printable(etag);
	return etag;
}

/* make_printable: it goes to tables, whatever the server says. */
static void
make_printable(char *text)
{
	for (char *p = text; *p; p++)
		*p = *p >= ' ' && *p < 127 ? *p : '?';
}

/*
 * etag_is_wrong: only where the ETag is an MD5 by its form, and nothing says
 * that it is not (encryption with a key of one's own).
 */
static bool
etag_is_wrong(SwarmNetRequest *request)
{
	SwarmS3Call *call = request->caller;
	char	   *etag = swarm_s3_etag(swarm_net_answer_header(request, "etag"));
	char	   *sse = swarm_net_answer_header(request, "x-amz-server-side-encryption");

	if (strlen(etag) != 32 || strspn(etag, "0123456789abcdefABCDEF") != 32 ||
		call->digest.md5[0] == '\0' || (sse != NULL && strcmp(sse, "AES256") != 0))
		return false;
	return pg_strcasecmp(etag, call->digest.md5) != 0;
}

void
swarm_s3_raise(const SwarmNetRequest *request, const char *bucket, const char *key)
{
	int			code = ERRCODE_EXTERNAL_ROUTINE_EXCEPTION;

	if (request->status == 0)
		code = ERRCODE_CONNECTION_FAILURE;
	if (strcmp(request->error_name, "NoSuchKey") == 0 || strcmp(request->error_name, "NoSuchBucket") == 0 ||
		request->status == 404)
		code = ERRCODE_UNDEFINED_OBJECT;
	ereport(ERROR,
			(errcode(code),
			 key != NULL ? errmsg("S3 request for \"%s\" in bucket \"%s\" failed: %s", key, bucket, request->error_text) :
			 errmsg("S3 request for bucket \"%s\" failed: %s", bucket, request->error_text),
			 errdetail("Error %s, status %d, %d attempts.", request->error_name, request->status,
					   request->attempts)));
}
