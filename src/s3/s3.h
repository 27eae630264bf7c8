/*
 * s3.h
 *	  S3's protocol: who a server is, signing, requests, answers.
 *
 * Built on module net.  Knows catalogs only to read a foreign server and its
 * user mapping; keeps no state but what a caller holds.
 */
#ifndef SWARM_S3_S3_H
#define SWARM_S3_S3_H

#include "base/compat.h"
#include "net/net.h"
#include "nodes/pg_list.h"

#define SWARM_S3_KEY_MAX		1024	/* bytes */
#define SWARM_S3_PARTS_MAX		10000
#define SWARM_S3_PART_MIN		(5 * 1024 * 1024)
#define SWARM_S3_PUT_MAX		(INT64CONST(5) * 1024 * 1024 * 1024)
#define SWARM_S3_FILE_MAX		(INT64CONST(5) * 1024 * 1024 * 1024 * 1024)
#define SWARM_S3_STAMP			17	/* 20130524T000000Z and its zero */

/* ------------------------------------------------------------------------
 * Servers (s3_server.c)
 * ------------------------------------------------------------------------ */

/*
 * A foreign server and the credentials of its user mapping, as they are now.
 * The secrets are overwritten when the context that holds it goes away.
 */
typedef struct SwarmS3Server
{
	char	   *name;
	bool		https;
	char	   *host;			/* as in the Host header, with port */
	char	   *folder;			/* of the embedded store; NULL: a server */
	char	   *region;
	bool		path_style;
	bool		sign_payload;	/* with its SHA-256; else a checksum protects
								 * it */
	bool		literal;		/* the host is an address or localhost */
	int			max_parallel;
	char	   *ca_file;		/* or NULL */
	char	   *allowed_bucket; /* or NULL: any */
	char	   *allowed_prefix; /* or NULL */
	char	   *access_key;		/* NULL: no credentials, unsigned */
	char	   *secret_key;
	char	   *session_token;	/* or NULL */
	int64		skew_s;			/* the server's clock less ours */
	SwarmPolicy policy;
	SwarmNetEndpoint *endpoint;
} SwarmS3Server;

/*
 * Read a server of wrapper swarm_s3 into the current memory context.  The
 * current user needs USAGE on it.  Errors: 42704, 42501, 22023.
 */
extern SwarmS3Server *swarm_s3_server(const char *name);

/* Read its credentials again.  Also error 55000. */
extern void swarm_s3_server_renew(SwarmS3Server *server);

/* The same, but only the check that it may be used. */
extern void swarm_s3_server_check(const char *name);

/* Settings; called from _PG_init. */
extern void swarm_s3_init(void);

/*
 * Error 42501 unless the server allows that bucket and key; 22023 if one of
 * them can be no bucket or key.  A NULL key is not looked at.
 */
extern void swarm_s3_check_object(const SwarmS3Server *server, const char *bucket,
								  const char *key);

/* The same for the beginning of keys. */
extern void swarm_s3_check_prefix(const SwarmS3Server *server, const char *bucket,
								  const char *prefix);

/* Error 22023 unless the value may stand in a header line. */
extern void swarm_s3_check_header(const char *what, const char *value);

/* ------------------------------------------------------------------------
 * Signing (s3_sign.c)
 * ------------------------------------------------------------------------ */

typedef struct SwarmS3Pair
{
	char	   *name;
	char	   *value;
} SwarmS3Pair;

/* What is signed.  Names of headers are in lower case. */
typedef struct SwarmS3Sign
{
	const char *method;
	const char *path;			/* encoded: swarm_s3_encode() */
	List	   *query;			/* of SwarmS3Pair, not encoded */
	List	   *headers;		/* of SwarmS3Pair, with host and x-amz-* */
	const char *payload_hash;
	const char *stamp;			/* 20130524T000000Z */
	const char *region;
	const char *access_key;
	const char *secret_key;
} SwarmS3Sign;

extern SwarmS3Pair *swarm_s3_pair(const char *name, const char *value);

/* Percent-encode as S3 does: all but A-Za-z0-9-._~, and / if asked for. */
extern char *swarm_s3_encode(const char *text, bool keep_slashes);

/* name=value&..., encoded and sorted. */
extern char *swarm_s3_query(List *pairs);

/* The value of the Authorization header; *canonical may be NULL. */
extern char *swarm_s3_authorization(SwarmS3Sign *sign, char **canonical);

/* The signature alone, of a presigned URL's query. */
extern char *swarm_s3_signature(SwarmS3Sign *sign, char **canonical, char **signed_headers);

extern void swarm_s3_stamp(char *stamp, int64 skew_s);

/* Digests of a body that may be large; read in pieces. */
typedef struct SwarmS3Digest
{
	bool		want_sha256;
	bool		want_md5;
	bool		want_crc32c;
	char		sha256[65];		/* hex */
	char		sha256_base64[45];
	char		md5[33];		/* hex; "" where the server forbids MD5 */
	char		md5_base64[25];
	char		crc32c_base64[9];
	bool		done;
} SwarmS3Digest;

/* Fill in what is wanted; NULL, or why the body cannot be read. */
extern const char *swarm_s3_digest(const SwarmNetBody *body, SwarmS3Digest *digest);
extern void swarm_s3_sha256_hex(const char *data, size_t length, char *hex);

/*
 * Hashing needs a resource owner, which there is none outside of a
 * transaction: use one of our own between the two.
 */
extern void swarm_s3_owner_begin(void);
extern void swarm_s3_owner_end(void);

/* ------------------------------------------------------------------------
 * Requests (s3_request.c)
 * ------------------------------------------------------------------------ */

/* What to ask; copied shallowly, so it must live as long as the request. */
typedef struct SwarmS3Call
{
	SwarmS3Server *server;
	const char *method;
	const char *bucket;
	const char *key;			/* or NULL */
	List	   *query;			/* of SwarmS3Pair */
	List	   *headers;		/* of SwarmS3Pair, lower case, beside the
								 * usual */
	SwarmNetBody body;
	bool		checksum_crc32c;
	bool		checksum_sha256;
	bool		verify_etag;	/* the answer's ETag is the body's MD5 */
	const char *answer_root;	/* root element an answer must have, or NULL */
	char	   *region;			/* found out by a redirect, or NULL */
	SwarmS3Digest digest;
	void	   *caller;
} SwarmS3Call;

/* A request for it, to be submitted; request->caller is the call. */
extern SwarmNetRequest *swarm_s3_request(MemoryContext context, SwarmS3Call *call);

/* A URL that is good for so many seconds, for whoever has it.  Not of a folder. */
extern char *swarm_s3_presign_url(SwarmS3Server *server, const char *method,
								  const char *bucket, const char *key, int seconds,
								  const char *stamp);

/* Raise the error of a request that has failed. */
swarm_noreturn extern void swarm_s3_raise(const SwarmNetRequest *request, const char *bucket,
										  const char *key);

/* Rules for S3's error names, before those of the status. */
extern const SwarmNetRule swarm_s3_rules[];
extern const int swarm_s3_nrules;

/* An ETag without its quotes, made printable ASCII; "" for NULL. */
extern char *swarm_s3_etag(const char *header);

/* ------------------------------------------------------------------------
 * XML of answers (s3_xml.c)
 * ------------------------------------------------------------------------ */

/* The name of the root element, or NULL. */
extern char *swarm_s3_xml_root(const char *xml);

/*
 * The text of the first element of that name at or after *position, which is
 * moved behind it; NULL if there is none.  Entities are resolved.
 */
extern char *swarm_s3_xml_text(const char *xml, const char *name, const char **position);

/* The same, as it stands, to look for elements in it. */
extern char *swarm_s3_xml_inner(const char *xml, const char *name, const char **position);

extern char *swarm_s3_xml_escape(const char *text);

#endif							/* SWARM_S3_S3_H */
