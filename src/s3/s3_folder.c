/*
 * s3_folder.c
 *	  The embedded store: an endpoint file:///path answers the calls of S3 from
 *	  a folder of this machine, for development and demonstrations.
 *
 * An object is the file <folder>/<bucket>/<key>.  What S3 keeps beside the bytes
 * (ETag, type, metadata) is in <folder>/.pg_swarm/meta, in a file whose name
 * is the identity of the object's file: inode, size and time of change.  So it
 * is there before the object is, one rename makes both visible, and a file
 * that another program has put there or changed has none and gets defaults.
 *
 * Every component below the folder is opened by itself, relative to the one
 * before it and without following symbolic links.
 */
#include "postgres.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#include "base/fault.h"
#include "s3/s3_int.h"

#define CONTROL			".pg_swarm"	/* no bucket has such a name */
#define PIECE			(1024 * 1024)
#define META_MAX		(8 * 1024)
#define META_NAME		64
#define RACES			100		/* times that others may interfere */
#define LIST_PAGE		1000

/* A call being answered; what is open is closed at its end, whatever happens. */
typedef struct Visit
{
	SwarmNetRequest *request;
	SwarmS3Call *call;
	int			root;
	int			bucket;			/* -1: there is no such bucket */
	int			dir;			/* of the key */
	int			object;
	int			tmp;			/* folder of files that are being written */
	int			meta;
	int			temp;			/* the file that is being written */
	char		temp_name[META_NAME];	/* "" = it has none any more */
	char		meta_name[META_NAME];	/* written, but not in use yet, or "" */
	const char *leaf;			/* last segment of the key */
} Visit;

/* A page of a listing. */
typedef struct Listing
{
	Visit	   *visit;
	const char *prefix;
	const char *after;
	int			most;
	int			n;
	bool		more;
	char	   *last;
	StringInfoData xml;
} Listing;

static void visit(Visit *v);
static void leave(Visit *v);
static void refuse(Visit *v, int status, const char *code, const char *text);
static void refuse_errno(Visit *v, const char *what);
static void put(Visit *v);
static void get(Visit *v);
static void delete(Visit *v);
static void list(Visit *v);
static bool list_folder(Listing *l, const char *path);
static bool list_object(Listing *l, const char *key);

/* ------------------------------------------------------------------------
 * Small tools
 * ------------------------------------------------------------------------ */

static void
shut(int *fd)
{
	int			save_errno = errno;

	if (*fd >= 0)
		close(*fd);
	*fd = -1;
	errno = save_errno;
}

static int
open_folder(int at, const char *name)
{
	return openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* make_folder: open it, after it has been created if need be; -1 with errno. */
static int
make_folder(int at, const char *name)
{
	int			fd = open_folder(at, name);

	if (fd >= 0 || errno != ENOENT)
		return fd;
	if (mkdirat(at, name, 0700) == 0)
	{
		if (pg_fsync(at) != 0)
			return -1;
	}
	else if (errno != EEXIST)
		return -1;
	return open_folder(at, name);
}

/* is_symlink: to tell why a component cannot be opened. */
static bool
is_symlink(int at, const char *name)
{
	struct stat st;

	return fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(st.st_mode);
}

static void
name_meta(char *name, const struct stat *st)
{
	snprintf(name, META_NAME, "%llx-%llx-%llx-%lx", (unsigned long long) st->st_ino,
			 (unsigned long long) st->st_size, (unsigned long long) st->st_mtim.tv_sec, (long) st->st_mtim.tv_nsec);
}

/* write_all: all of it, or false with errno. */
static bool
write_all(int fd, const char *data, size_t length)
{
	for (size_t done = 0; done < length;)
	{
		ssize_t		n = write(fd, data + done, length - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n == 0)
			errno = ENOSPC;
		if (n <= 0)
			return false;
		done += n;
	}
	return true;
}

/* segments_fit: can a folder hold an object of that key? */
static bool
segments_fit(const char *key)
{
	while (key != NULL)
	{
		size_t		length = strcspn(key, "/");

		if (length == 0 || length > NAME_MAX || (length == 1 && key[0] == '.') ||
			(length == 2 && key[0] == '.' && key[1] == '.'))
			return false;
		key = key[length] == '/' ? key + length + 1 : NULL;
	}
	return true;
}

static const char *
query_value(const SwarmS3Call *call, const char *name)
{
	ListCell   *lc;

	foreach(lc, call->query)
	{
		SwarmS3Pair *pair = lfirst(lc);

		if (strcmp(pair->name, name) == 0)
			return pair->value;
	}
	return NULL;
}

/* ------------------------------------------------------------------------
 * A call
 * ------------------------------------------------------------------------ */

/*
 * swarm_s3_folder_answer: the prepare() of requests to such an endpoint: it
 * does what is asked and gives the answer that a server would.
 */
void
swarm_s3_folder_answer(SwarmNetRequest *request)
{
	Visit		v = {.request = request, .call = request->caller, .bucket = -1, .dir = -1,
	.object = -1, .tmp = -1, .meta = -1, .temp = -1};
	const char *folder = v.call->server->folder;

	v.root = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (v.root < 0)
	{
		swarm_net_unreachable(request, psprintf("could not open folder \"%s\": %s", folder, strerror(errno)));
		return;
	}
	PG_TRY();
	{
		visit(&v);
	}
	PG_FINALLY();
	{
		leave(&v);
	}
	PG_END_TRY();
}

static void
leave(Visit *v)
{
	if (v->temp_name[0])
		(void) unlinkat(v->tmp, v->temp_name, 0);
	if (v->meta_name[0])
		(void) unlinkat(v->meta, v->meta_name, 0);
	shut(&v->temp);
	shut(&v->object);
	shut(&v->meta);
	shut(&v->tmp);
	shut(&v->dir);
	shut(&v->bucket);
	shut(&v->root);
}

static void
visit(Visit *v)
{
	SwarmS3Call *call = v->call;
	const char *method = call->method;
	bool		puts = strcmp(method, "PUT") == 0;

	if (strchr(call->bucket, '/') != NULL || call->bucket[0] == '.' || call->bucket[0] == '\0')
	{
		refuse(v, 400, "InvalidBucketName", "not the name of a bucket");
		return;
	}
	if (query_value(call, "uploadId") != NULL)
	{
		refuse(v, 404, "NoSuchUpload", "a folder has no multipart uploads");
		return;
	}
	if (call->key != NULL && !segments_fit(call->key))
	{
		refuse(v, 400, "InvalidKey", "a folder cannot hold a key with an empty segment or one of more than 255 bytes");
		return;
	}
	v->bucket = puts ? make_folder(v->root, call->bucket) : open_folder(v->root, call->bucket);
	if (v->bucket < 0 && errno == ENOENT)
		refuse(v, 404, "NoSuchBucket", "there is no such bucket");
	else if (v->bucket < 0 && is_symlink(v->root, call->bucket))
		refuse(v, 403, "AccessDenied", "symbolic links are not followed");
	else if (v->bucket < 0)
		refuse_errno(v, "could not open the bucket");
	else if (call->key == NULL && strcmp(method, "GET") == 0 && query_value(call, "list-type") != NULL)
		list(v);
	else if (call->key == NULL || call->query != NIL)
		refuse(v, 501, "NotImplemented", "a folder does not do that");
	else if (puts)
		put(v);
	else if (strcmp(method, "DELETE") == 0)
		delete(v);
	else if (strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0)
		get(v);
	else
		refuse(v, 501, "NotImplemented", "a folder does not do that");
}

/* refuse: answer with an error, in S3's form. */
static void
refuse(Visit *v, int status, const char *code, const char *text)
{
	char	   *xml = psprintf("<Error><Code>%s</Code><Message>%s</Message></Error>", code, swarm_s3_xml_escape(text));

	swarm_net_answer(v->request, status, "", xml, strlen(xml));
}

static void
refuse_errno(Visit *v, const char *what)
{
	int			status = 500;
	const char *code = "InternalError";
	char	   *text = psprintf("%s: %s", what, strerror(errno));

	if (errno == EACCES || errno == EPERM || errno == EROFS || errno == ELOOP)
		status = 403, code = "AccessDenied";
	else if (errno == ENAMETOOLONG)
		status = 400, code = "KeyTooLongError";
	refuse(v, status, code, text);
}

/*
 * open_parent: the folder of the key, created if asked for, and its last
 * segment.  False with errno: ELOOP for a symbolic link.
 */
static bool
open_parent(Visit *v, const char *key, bool create)
{
	char	   *path = pstrdup(key);
	char	   *segment = path;
	char	   *slash;

	shut(&v->dir);
	v->dir = dup(v->bucket);
	while (v->dir >= 0 && (slash = strchr(segment, '/')) != NULL)
	{
		int			next;

		*slash = '\0';
		next = create ? make_folder(v->dir, segment) : open_folder(v->dir, segment);
		if (next < 0 && (errno == ENOTDIR || errno == ELOOP))
			errno = is_symlink(v->dir, segment) ? ELOOP : ENOTDIR;
		shut(&v->dir);
		v->dir = next;
		segment = slash + 1;
	}
	v->leaf = segment;
	return v->dir >= 0;
}

/* ------------------------------------------------------------------------
 * PUT
 * ------------------------------------------------------------------------ */

/*
 * sweep: remove what processes that are gone were writing.  Whoever lives
 * holds a lock on his file.
 */
static void
sweep(Visit *v)
{
	int			fd = open_folder(v->tmp, ".");
	DIR		   *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;

	if (dir == NULL)
	{
		shut(&fd);
		return;
	}
	while ((entry = readdir(dir)) != NULL)
	{
		if (entry->d_name[0] == '.')
			continue;
		fd = openat(v->tmp, entry->d_name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
		if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0)
			(void) unlinkat(v->tmp, entry->d_name, 0);
		shut(&fd);
	}
	closedir(dir);
}

static bool
create_temp(Visit *v)
{
	static uint32 count = 0;
	char		name[META_NAME];

	for (int i = 0; i < RACES; i++)
	{
		snprintf(name, sizeof(name), "%d.%u", MyProcPid, ++count);
		v->temp = openat(v->tmp, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
		if (v->temp < 0 && errno == EEXIST)
			continue;
		if (v->temp >= 0)
		{
			strlcpy(v->temp_name, name, sizeof(v->temp_name));
			return flock(v->temp, LOCK_EX) == 0;
		}
		break;
	}
	return false;
}

/* copy_body: into the temporary file; false with an answer. */
static bool
copy_body(Visit *v)
{
	SwarmNetBody *body = &v->request->body;
	char	   *buffer = body->memory ? NULL : palloc(PIECE);

	body->read = 0;
	while (body->read < body->length)
	{
		ssize_t		n = Min(PIECE, body->length - body->read);

		CHECK_FOR_INTERRUPTS();
		if (body->memory == NULL)
			n = pread(body->fd, buffer, n, body->offset + body->read);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
		{
			strlcpy(v->request->error_name, "SourceChanged", sizeof(v->request->error_name));
			snprintf(v->request->error_text, sizeof(v->request->error_text), "%s",
					 n == 0 ? "the source became shorter while it was sent" : strerror(errno));
			return false;
		}
		if (!write_all(v->temp, body->memory ? body->memory + body->read : buffer, n))
		{
			refuse_errno(v, "could not write the object");
			return false;
		}
		body->read += n;
	}
	return true;
}

/* write_meta: what is kept beside the bytes; false with an answer. */
static bool
write_meta(Visit *v)
{
	StringInfoData text;
	struct stat st;
	ListCell   *lc;
	int			fd;
	bool		ok;

	initStringInfo(&text);
	appendStringInfo(&text, "etag: \"%s\"\n", v->call->digest.md5);
	foreach(lc, v->call->headers)
	{
		SwarmS3Pair *pair = lfirst(lc);

		if (strncmp(pair->name, "x-amz-server-side-encryption", 28) == 0 || strcmp(pair->name, "x-amz-acl") == 0)
		{
			refuse(v, 501, "NotImplemented", "a folder neither encrypts nor has access control lists");
			return false;
		}
		appendStringInfo(&text, "%s: %s\n", pair->name, pair->value);
	}
	if (text.len > META_MAX)
	{
		refuse(v, 400, "MetadataTooLarge", "headers and metadata are too large");
		return false;
	}
	if (fstat(v->temp, &st) != 0)
	{
		refuse_errno(v, "could not write the object");
		return false;
	}
	name_meta(v->meta_name, &st);
	fd = openat(v->meta, v->meta_name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	ok = fd >= 0 && write_all(fd, text.data, text.len) && pg_fsync(fd) == 0 && pg_fsync(v->meta) == 0;
	if (!ok)
		refuse_errno(v, "could not write the metadata of the object");
	shut(&fd);
	return ok;
}

/* move: give the file its name; others may remove empty folders meanwhile. */
static bool
move(Visit *v, struct stat *old)
{
	for (int i = 0; i < RACES; i++)
	{
		if (open_parent(v, v->call->key, true))
		{
			if (fstatat(v->dir, v->leaf, old, AT_SYMLINK_NOFOLLOW) != 0)
				old->st_mode = 0;
			if (S_ISLNK(old->st_mode))
			{
				errno = ELOOP;
				return false;
			}
			if (renameat(v->tmp, v->temp_name, v->dir, v->leaf) == 0)
			{
				v->temp_name[0] = v->meta_name[0] = '\0';
				return pg_fsync(v->dir) == 0;
			}
		}
		if (errno != ENOENT)
			return false;
	}
	return false;
}

static void
put(Visit *v)
{
	SwarmS3Call *call = v->call;
	SwarmNetBody written = {.fd = -1};
	struct stat old = {0};
	const char *error;
	int			control = make_folder(v->root, CONTROL);

	if (control >= 0)
	{
		v->tmp = make_folder(control, "tmp");
		v->meta = v->tmp < 0 ? -1 : make_folder(control, "meta");
	}
	if (control < 0 || v->tmp < 0 || v->meta < 0)
	{
		refuse_errno(v, "could not open folder \"" CONTROL "\"");
		shut(&control);
		return;
	}
	shut(&control);
	sweep(v);
	if (!create_temp(v))
	{
		refuse_errno(v, "could not create the object");
		return;
	}
	if (!copy_body(v))
		return;
	SWARM_FAULT("s3.folder");
	written.fd = v->temp;
	written.length = v->request->body.length;
	call->digest.want_md5 = true;
	error = swarm_s3_digest(&written, &call->digest);
	if (error != NULL)
	{
		refuse(v, 500, "InternalError", error);
		return;
	}
	if (pg_fsync(v->temp) != 0)
	{
		refuse_errno(v, "could not write the object");
		return;
	}
	if (!write_meta(v))
		return;
	if (!move(v, &old))
	{
		if (errno == ELOOP)
			refuse(v, 403, "AccessDenied", "symbolic links are not followed");
		else if (errno == ENOTDIR || errno == EISDIR || errno == EEXIST || errno == ENOTEMPTY)
			refuse(v, 409, "KeyConflict", "in a folder no key can be the beginning of another one's path");
		else
			refuse_errno(v, "could not name the object");
		return;
	}
	if (S_ISREG(old.st_mode))
	{
		char		name[META_NAME];

		name_meta(name, &old);
		(void) unlinkat(v->meta, name, 0);
	}
	swarm_net_answer(v->request, 200, psprintf("etag: \"%s\"\n", call->digest.md5), "", 0);
}

/* ------------------------------------------------------------------------
 * GET, HEAD, DELETE
 * ------------------------------------------------------------------------ */

/* open_object: false if there is none, or it is no regular file. */
static bool
open_object(Visit *v, const char *key, struct stat *st)
{
	shut(&v->object);
	if (!open_parent(v, key, false))
		return false;
	v->object = openat(v->dir, v->leaf, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (v->object < 0 || fstat(v->object, st) != 0)
		return false;
	if (!S_ISREG(st->st_mode))
	{
		errno = ENOENT;
		return false;
	}
	return true;
}

/* read_meta: header lines of the object that is open, or NULL. */
static char *
read_meta(Visit *v, const struct stat *st)
{
	char		name[META_NAME];
	char	   *text = palloc(META_MAX + 1);
	ssize_t		n;
	int			fd;

	if (v->meta < 0)
	{
		int			control = open_folder(v->root, CONTROL);

		if (control >= 0)
			v->meta = open_folder(control, "meta");
		shut(&control);
	}
	if (v->meta < 0)
		return NULL;
	name_meta(name, st);
	fd = openat(v->meta, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	n = read(fd, text, META_MAX);
	shut(&fd);
	if (n <= 0)
		return NULL;
	text[n] = '\0';
	return text;
}

/*
 * open_described: the object and the header lines that belong to it.  One
 * that is replaced meanwhile takes its metadata along: look again then.
 */
static char *
open_described(Visit *v, const char *key, struct stat *st)
{
	SwarmNetBody body = {.fd = -1};
	SwarmS3Digest digest = {.want_md5 = true};
	char	   *meta;

	for (int i = 0;; i++)
	{
		struct stat now;

		if (!open_object(v, key, st))
			return NULL;
		meta = read_meta(v, st);
		if (meta != NULL)
			return meta;
		if (i >= RACES ||
			(fstatat(v->dir, v->leaf, &now, AT_SYMLINK_NOFOLLOW) == 0 &&
			 now.st_ino == st->st_ino && now.st_dev == st->st_dev))
			break;
	}
	body.fd = v->object;
	body.length = st->st_size;
	(void) swarm_s3_digest(&body, &digest);
	return psprintf("etag: \"%s\"\ncontent-type: application/octet-stream\n", digest.md5);
}

/*
 * range: the first byte and the length that are asked for; false if there
 * are none.
 */
static bool
range(const SwarmS3Call *call, int64 size, int64 *first, int64 *length, bool *partial)
{
	ListCell   *lc;

	*first = 0;
	*length = size;
	*partial = false;
	foreach(lc, call->headers)
	{
		SwarmS3Pair *pair = lfirst(lc);
		char	   *end;
		int64		last = size - 1;

		if (strcmp(pair->name, "range") != 0 || strncmp(pair->value, "bytes=", 6) != 0)
			continue;
		*first = strtoll(pair->value + 6, &end, 10);
		if (*end == '-' && end[1] != '\0')
			last = Min(last, strtoll(end + 1, NULL, 10));
		*length = last - *first + 1;
		*partial = true;
		return *first >= 0 && *length > 0;
	}
	return true;
}

static void
get(Visit *v)
{
	SwarmNetRequest *request = v->request;
	StringInfoData head;
	struct stat st;
	char	   *meta = open_described(v, v->call->key, &st);
	char		date[64];
	struct tm	t;
	time_t		modified;
	int64		first;
	int64		length;
	bool		partial;
	char	   *piece;

	if (meta == NULL)
	{
		if (errno == ENOENT || errno == ENOTDIR || errno == EISDIR)
			refuse(v, 404, "NoSuchKey", "there is no such object");
		else if (errno == ELOOP)
			refuse(v, 403, "AccessDenied", "symbolic links are not followed");
		else
			refuse_errno(v, "could not open the object");
		return;
	}
	if (!range(v->call, st.st_size, &first, &length, &partial))
	{
		refuse(v, 416, "InvalidRange", "the object has no such range");
		return;
	}
	modified = st.st_mtime;
	strftime(date, sizeof(date), "%a, %d %b %Y %H:%M:%S GMT", gmtime_r(&modified, &t));
	initStringInfo(&head);
	appendStringInfo(&head, "content-length: " INT64_FORMAT "\nlast-modified: %s\n%s", length, date, meta);
	if (strcmp(v->call->method, "HEAD") == 0)
	{
		swarm_net_answer(request, 200, head.data, "", 0);
		return;
	}
	if ((request->answer_limit > 0 && length > request->answer_limit) ||
		(request->sink < 0 && length > (int64) MaxAllocSize))
	{
		swarm_net_unacceptable(request, "the answer is larger than allowed");
		return;
	}
	piece = palloc(request->sink >= 0 ? PIECE : Max(length, 1));
	for (int64 done = 0; done < length;)
	{
		int64		most = Min(PIECE, length - done);
		char	   *to = request->sink >= 0 ? piece : piece + done;
		ssize_t		n;

		CHECK_FOR_INTERRUPTS();
		n = pread(v->object, to, most, first + done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
		{
			refuse(v, 500, "InternalError", n == 0 ? "the object became shorter while it was read" : strerror(errno));
			return;
		}
		if (request->sink >= 0 && !write_all(request->sink, piece, n))
		{
			swarm_net_unacceptable(request, psprintf("could not write the answer to a temporary file: %s", strerror(errno)));
			return;
		}
		done += n;
	}
	swarm_net_answer(request, partial ? 206 : 200, head.data, piece, request->sink >= 0 ? 0 : length);
	request->received = length;
}

static void
delete(Visit *v)
{
	char	   *path = pstrdup(v->call->key);
	char		name[META_NAME];
	struct stat st;
	char	   *slash;

	if (open_object(v, v->call->key, &st))
	{
		(void) read_meta(v, &st);	/* opens the folder */
		if (unlinkat(v->dir, v->leaf, 0) != 0 && errno != ENOENT)
		{
			refuse_errno(v, "could not remove the object");
			return;
		}
		name_meta(name, &st);
		if (v->meta >= 0)
			(void) unlinkat(v->meta, name, 0);
		if (pg_fsync(v->dir) != 0)
		{
			refuse_errno(v, "could not remove the object");
			return;
		}
	}
	else if (errno == EACCES || errno == EPERM)
	{
		refuse_errno(v, "could not remove the object");
		return;
	}
	/* folders are no objects: the empty ones go */
	while ((slash = strrchr(path, '/')) != NULL)
	{
		*slash = '\0';
		if (!open_parent(v, path, false) || unlinkat(v->dir, v->leaf, AT_REMOVEDIR) != 0)
			break;
	}
	swarm_net_answer(v->request, 204, "", "", 0);
}

/* ------------------------------------------------------------------------
 * Listings
 * ------------------------------------------------------------------------ */

static void
list(Visit *v)
{
	const char *most = query_value(v->call, "max-keys");
	const char *prefix = query_value(v->call, "prefix");
	const char *after = query_value(v->call, "continuation-token");
	Listing		l = {.visit = v};

	l.prefix = prefix ? prefix : "";
	l.after = after ? after : query_value(v->call, "start-after");
	l.most = most ? Min(atoi(most), LIST_PAGE) : LIST_PAGE;
	initStringInfo(&l.xml);
	appendStringInfoString(&l.xml, "<ListBucketResult>");
	if (!list_folder(&l, ""))
	{
		refuse_errno(v, "could not read the folder");
		return;
	}
	appendStringInfo(&l.xml, "<KeyCount>%d</KeyCount><IsTruncated>%s</IsTruncated>", l.n, l.more ? "true" : "false");
	if (l.more)
		appendStringInfo(&l.xml, "<NextContinuationToken>%s</NextContinuationToken>", swarm_s3_xml_escape(l.last));
	appendStringInfoString(&l.xml, "</ListBucketResult>");
	swarm_net_answer(v->request, 200, "", l.xml.data, l.xml.len);
}

static int
compare_names(const ListCell *a, const ListCell *b)
{
	return strcmp(lfirst(a), lfirst(b));
}

/*
 * entries_of: names of a folder in the order of keys: those of folders end in
 * a slash.  False if it cannot be read; one that is gone is empty.
 */
static bool
entries_of(Visit *v, const char *path, List **names)
{
	struct dirent *entry;
	DIR		   *dir;
	int			fd;

	*names = NIL;
	if (!open_parent(v, psprintf("%sx", path), false))
		return errno == ENOENT || errno == ENOTDIR || errno == ELOOP;
	fd = open_folder(v->dir, ".");
	dir = fd < 0 ? NULL : fdopendir(fd);
	if (dir == NULL)
	{
		shut(&fd);
		return false;
	}
	PG_TRY();
	{
		while ((entry = readdir(dir)) != NULL)
		{
			char	   *name = entry->d_name;
			struct stat st;
			bool		fits = strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
				pg_verify_mbstr(PG_UTF8, name, strlen(name), true);

			for (const char *p = name; *p; p++)
				fits = fits && (unsigned char) *p >= 0x20 && *p != 0x7f;
			if (!fits || fstatat(v->dir, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
				continue;
			if (S_ISDIR(st.st_mode))
				*names = lappend(*names, psprintf("%s/", name));
			else if (S_ISREG(st.st_mode))
				*names = lappend(*names, pstrdup(name));
		}
	}
	PG_FINALLY();
	{
		closedir(dir);
	}
	PG_END_TRY();
	list_sort(*names, compare_names);
	return true;
}

/* list_folder: what is below; path is "" or ends in a slash. */
static bool
list_folder(Listing *l, const char *path)
{
	List	   *names;
	ListCell   *lc;

	check_stack_depth();
	CHECK_FOR_INTERRUPTS();
	if (!entries_of(l->visit, path, &names))
		return false;
	foreach(lc, names)
	{
		char	   *key = psprintf("%s%s", path, (char *) lfirst(lc));
		size_t		length = strlen(key);
		bool		ok = true;

		if (key[length - 1] == '/')
		{
			bool		may = strncmp(key, l->prefix, Min(length, strlen(l->prefix))) == 0;

			/* all that is below comes before what is asked for? */
			if (l->after != NULL && strncmp(key, l->after, length) < 0)
				may = false;
			ok = !may || list_folder(l, key);
		}
		else if (strncmp(key, l->prefix, strlen(l->prefix)) == 0 && length <= SWARM_S3_KEY_MAX &&
				 (l->after == NULL || strcmp(key, l->after) > 0))
			ok = list_object(l, key);
		if (!ok || l->more)
			return ok;
	}
	return true;
}

/* list_object: one more, or the note that there are more. */
static bool
list_object(Listing *l, const char *key)
{
	Visit	   *v = l->visit;
	struct stat st;
	struct tm	t;
	time_t		modified;
	char		date[64];
	char	   *meta;

	if (l->n >= l->most)
	{
		l->more = true;
		return true;
	}
	meta = open_described(v, key, &st);
	if (meta == NULL)
		return true;			/* gone meanwhile */
	modified = st.st_mtime;
	strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%S", gmtime_r(&modified, &t));
	appendStringInfo(&l->xml, "<Contents><Key>%s</Key><Size>%lld</Size><LastModified>%s.%03ldZ</LastModified>"
					 "<ETag>%s</ETag><StorageClass>STANDARD</StorageClass></Contents>",
					 swarm_s3_xml_escape(key), (long long) st.st_size, date, (long) st.st_mtim.tv_nsec / 1000000,
					 swarm_s3_xml_escape(pnstrdup(meta + 6, strcspn(meta + 6, "\n"))));
	l->n++;
	l->last = pstrdup(key);
	return true;
}
