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

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/memutils.h"

#include "s3/s3_folder.h"

static void visit(SwarmFolderVisit *v);
static void leave(SwarmFolderVisit *v);
static void get(SwarmFolderVisit *v);
static void delete(SwarmFolderVisit *v);

/* ------------------------------------------------------------------------
 * Small tools
 * ------------------------------------------------------------------------ */

void
swarm_folder_shut(int *fd)
{
	int			save_errno = errno;

	if (*fd >= 0)
		close(*fd);
	*fd = -1;
	errno = save_errno;
}

int
swarm_folder_open(int at, const char *name)
{
	return openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* swarm_folder_make: open it, after it has been created if need be; -1 with errno. */
int
swarm_folder_make(int at, const char *name)
{
	int			fd = swarm_folder_open(at, name);

	if (fd >= 0 || errno != ENOENT)
		return fd;
	if (mkdirat(at, name, 0700) == 0)
	{
		if (pg_fsync(at) != 0)
			return -1;
	}
	else if (errno != EEXIST)
		return -1;
	return swarm_folder_open(at, name);
}

/* is_symlink: to tell why a component cannot be opened. */
bool
swarm_folder_is_symlink(int at, const char *name)
{
	struct stat st;

	return fstatat(at, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISLNK(st.st_mode);
}

void
swarm_folder_meta_name(char *name, const struct stat *st)
{
	snprintf(name, SWARM_FOLDER_NAME, "%llx-%llx-%llx-%lx", (unsigned long long) st->st_ino,
			 (unsigned long long) st->st_size, (unsigned long long) st->st_mtim.tv_sec, (long) st->st_mtim.tv_nsec);
}

/* swarm_folder_write: all of it, or false with errno. */
bool
swarm_folder_write(int fd, const char *data, size_t length)
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

const char *
swarm_folder_query(const SwarmS3Call *call, const char *name)
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
	SwarmFolderVisit v = {.request = request, .call = request->caller, .bucket = -1, .dir = -1,
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
leave(SwarmFolderVisit *v)
{
	if (v->temp_name[0])
		(void) unlinkat(v->tmp, v->temp_name, 0);
	if (v->meta_name[0])
		(void) unlinkat(v->meta, v->meta_name, 0);
	swarm_folder_shut(&v->temp);
	swarm_folder_shut(&v->object);
	swarm_folder_shut(&v->meta);
	swarm_folder_shut(&v->tmp);
	swarm_folder_shut(&v->dir);
	swarm_folder_shut(&v->bucket);
	swarm_folder_shut(&v->root);
}

static void
visit(SwarmFolderVisit *v)
{
	SwarmS3Call *call = v->call;
	const char *method = call->method;
	bool		puts = strcmp(method, "PUT") == 0;

	if (strchr(call->bucket, '/') != NULL || call->bucket[0] == '.' || call->bucket[0] == '\0')
	{
		swarm_folder_refuse(v, 400, "InvalidBucketName", "not the name of a bucket");
		return;
	}
	if (swarm_folder_query(call, "uploadId") != NULL)
	{
		swarm_folder_refuse(v, 404, "NoSuchUpload", "a folder has no multipart uploads");
		return;
	}
	if (call->key != NULL && !segments_fit(call->key))
	{
		swarm_folder_refuse(v, 400, "InvalidKey", "a folder cannot hold a key with an empty segment or one of more than 255 bytes");
		return;
	}
	v->bucket = puts ? swarm_folder_make(v->root, call->bucket) : swarm_folder_open(v->root, call->bucket);
	if (v->bucket < 0 && errno == ENOENT)
		swarm_folder_refuse(v, 404, "NoSuchBucket", "there is no such bucket");
	else if (v->bucket < 0 && swarm_folder_is_symlink(v->root, call->bucket))
		swarm_folder_refuse(v, 403, "AccessDenied", "symbolic links are not followed");
	else if (v->bucket < 0)
		swarm_folder_refuse_errno(v, "could not open the bucket");
	else if (call->key == NULL && strcmp(method, "GET") == 0 && swarm_folder_query(call, "list-type") != NULL)
		swarm_folder_list(v);
	else if (call->key == NULL || call->query != NIL)
		swarm_folder_refuse(v, 501, "NotImplemented", "a folder does not do that");
	else if (puts)
		swarm_folder_put(v);
	else if (strcmp(method, "DELETE") == 0)
		delete(v);
	else if (strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0)
		get(v);
	else
		swarm_folder_refuse(v, 501, "NotImplemented", "a folder does not do that");
}

/* swarm_folder_refuse: answer with an error, in S3's form. */
void
swarm_folder_refuse(SwarmFolderVisit *v, int status, const char *code, const char *text)
{
	char	   *xml = psprintf("<Error><Code>%s</Code><Message>%s</Message></Error>", code, swarm_s3_xml_escape(text));

	swarm_net_answer(v->request, status, "", xml, strlen(xml));
}

void
swarm_folder_refuse_errno(SwarmFolderVisit *v, const char *what)
{
	int			error = errno;
	int			status = 500;
	const char *code = "InternalError";
	char	   *text = psprintf("%s: %s", what, strerror(error));

	if (error == EACCES || error == EPERM || error == EROFS || error == ELOOP)
		status = 403, code = "AccessDenied";
	else if (error == ENAMETOOLONG)
		status = 400, code = "KeyTooLongError";
	swarm_folder_refuse(v, status, code, text);
}

/*
 * swarm_folder_parent: the folder of the key, created if asked for, and its last
 * segment.  False with errno: ELOOP for a symbolic link.
 */
bool
swarm_folder_parent(SwarmFolderVisit *v, const char *key, bool create)
{
	char	   *path = pstrdup(key);
	char	   *segment = path;
	char	   *slash;

	swarm_folder_shut(&v->dir);
	v->dir = dup(v->bucket);
	while (v->dir >= 0 && (slash = strchr(segment, '/')) != NULL)
	{
		int			next;

		*slash = '\0';
		next = create ? swarm_folder_make(v->dir, segment) : swarm_folder_open(v->dir, segment);
		if (next < 0 && (errno == ENOTDIR || errno == ELOOP))
			errno = swarm_folder_is_symlink(v->dir, segment) ? ELOOP : ENOTDIR;
		swarm_folder_shut(&v->dir);
		v->dir = next;
		segment = slash + 1;
	}
	v->leaf = segment;
	return v->dir >= 0;
}

/* ------------------------------------------------------------------------
 * GET, HEAD, DELETE
 * ------------------------------------------------------------------------ */

/* open_object: false if there is none, or it is no regular file. */
static bool
open_object(SwarmFolderVisit *v, const char *key, struct stat *st)
{
	swarm_folder_shut(&v->object);
	if (!swarm_folder_parent(v, key, false))
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
read_meta(SwarmFolderVisit *v, const struct stat *st)
{
	char		name[SWARM_FOLDER_NAME];
	char	   *text = palloc(SWARM_FOLDER_META + 1);
	ssize_t		n;
	int			fd;

	if (v->meta < 0)
	{
		int			control = swarm_folder_open(v->root, SWARM_FOLDER_CONTROL);

		if (control >= 0)
			v->meta = swarm_folder_open(control, "meta");
		swarm_folder_shut(&control);
	}
	if (v->meta < 0)
		return NULL;
	swarm_folder_meta_name(name, st);
	fd = openat(v->meta, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	n = read(fd, text, SWARM_FOLDER_META);
	swarm_folder_shut(&fd);
	if (n <= 0)
		return NULL;
	text[		n] = '\0';
	return text;
}

/*
 * swarm_folder_object: the object and the header lines that belong to it.  One
 * that is replaced meanwhile takes its metadata along: look again then.
 */
char *
swarm_folder_object(SwarmFolderVisit *v, const char *key, struct stat *st)
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
		if (i >= SWARM_FOLDER_RACES ||
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
get(SwarmFolderVisit *v)
{
	SwarmNetRequest *request = v->request;
	StringInfoData head;
	struct stat st;
	char	   *meta = swarm_folder_object(v, v->call->key, &st);
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
			swarm_folder_refuse(v, 404, "NoSuchKey", "there is no such object");
		else if (errno == ELOOP)
			swarm_folder_refuse(v, 403, "AccessDenied", "symbolic links are not followed");
		else
			swarm_folder_refuse_errno(v, "could not open the object");
		return;
	}
	if (!range(v->call, st.st_size, &first, &length, &partial))
	{
		swarm_folder_refuse(v, 416, "InvalidRange", "the object has no such range");
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
	piece = palloc(request->sink >= 0 ? SWARM_FOLDER_PIECE : Max(length, 1));
	for (int64 done = 0; done < length;)
	{
		int64		most = Min(SWARM_FOLDER_PIECE, length - done);
		char	   *to = request->sink >= 0 ? piece : piece + done;
		ssize_t		n;

		CHECK_FOR_INTERRUPTS();
		n = pread(v->object, to, most, first + done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
		{
			swarm_folder_refuse(v, 500, "InternalError", n == 0 ? "the object became shorter while it was read" : strerror(errno));
			return;
		}
		if (request->sink >= 0 && !swarm_folder_write(request->sink, piece, n))
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
delete(SwarmFolderVisit *v)
{
	char	   *path = pstrdup(v->call->key);
	char		name[SWARM_FOLDER_NAME];
	struct stat st;
	char	   *slash;

	if (open_object(v, v->call->key, &st))
	{
		(void) read_meta(v, &st);	/* opens the folder */
		if (unlinkat(v->dir, v->leaf, 0) != 0 && errno != ENOENT)
		{
			swarm_folder_refuse_errno(v, "could not remove the object");
			return;
		}
		swarm_folder_meta_name(name, &st);
		if (v->meta >= 0)
			(void) unlinkat(v->meta, name, 0);
		if (pg_fsync(v->dir) != 0)
		{
			swarm_folder_refuse_errno(v, "could not remove the object");
			return;
		}
	}
	else if (errno == ELOOP)
	{
		swarm_folder_refuse(v, 403, "AccessDenied", "symbolic links are not followed");
		return;
	}
	else if (errno != ENOENT && errno != ENOTDIR && errno != EISDIR && errno != ENXIO)
	{
		swarm_folder_refuse_errno(v, "could not remove the object");
		return;
	}
	/* folders are no objects: the empty ones go */
	while ((slash = strrchr(path, '/')) != NULL)
	{
		*slash = '\0';
		if (!swarm_folder_parent(v, path, false) || unlinkat(v->dir, v->leaf, AT_REMOVEDIR) != 0)
			break;
	}
	swarm_net_answer(v->request, 204, "", "", 0);
}
