/*
 * s3_folder_put.c
 *	  Storing an object in a folder: written under another name, synced with
 *	  its metadata, renamed.
 */
#include "postgres.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/fd.h"

#include "base/fault.h"
#include "s3/s3_folder.h"

/*
 * sweep: remove what processes that are gone were writing.  Whoever lives
 * holds a lock on his file.
 */
static void
sweep(SwarmFolderVisit *v)
{
	int			fd = swarm_folder_open(v->tmp, ".");
	DIR		   *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;

	if (dir == NULL)
	{
		swarm_folder_shut(&fd);
		return;
	}
	while ((entry = readdir(dir)) != NULL)
	{
		if (entry->d_name[0] == '.')
			continue;
		fd = openat(v->tmp, entry->d_name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
		if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0)
			(void) unlinkat(v->tmp, entry->d_name, 0);
		swarm_folder_shut(&fd);
	}
	closedir(dir);
}

static bool
create_temp(SwarmFolderVisit *v)
{
	static uint32 count = 0;
	char		name[SWARM_FOLDER_NAME];

	for (int i = 0; i < SWARM_FOLDER_RACES; i++)
	{
		snprintf(name, sizeof(name), "%d.%u", MyProcPid, ++count);
		v->temp = openat(v->tmp, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
		if (v->temp < 0 && errno == EEXIST)
			continue;
		if (v->temp >= 0)
		{
			struct stat st;

			strlcpy(v->temp_name, name, sizeof(v->temp_name));
			if (flock(v->temp, LOCK_EX) != 0 || fstat(v->temp, &st) != 0)
				return false;
			if (st.st_nlink > 0)
				return true;
			/* another one's sweep() came between open and lock */
			v->temp_name[0] = '\0';
			swarm_folder_shut(&v->temp);
			continue;
		}
		break;
	}
	return false;
}

/* copy_body: into the temporary file; false with an answer. */
static bool
copy_body(SwarmFolderVisit *v)
{
	SwarmNetBody *body = &v->request->body;
	char	   *buffer = body->fd < 0 ? NULL : palloc(SWARM_FOLDER_PIECE);

	body->read = 0;
	while (body->read < body->length)
	{
		int64		n = SWARM_FOLDER_PIECE;
		const char *piece = swarm_net_body_at(body, body->read, &n);

		CHECK_FOR_INTERRUPTS();
		if (piece == NULL)
		{
			n = pread(body->fd, buffer, n, body->offset + body->read);
			piece = buffer;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
		{
			strlcpy(v->request->error_name, "SourceChanged", sizeof(v->request->error_name));
			swarm_net_text(v->request->error_text, sizeof(v->request->error_text),
						   n == 0 ? "the source became shorter while it was sent" : strerror(errno));
			return false;
		}
		if (!swarm_folder_write(v->temp, piece, n))
		{
			swarm_folder_refuse_errno(v, "could not write the object");
			return false;
		}
		body->read += n;
	}
	return true;
}

/* write_meta: what is kept beside the bytes; false with an answer. */
static bool
write_meta(SwarmFolderVisit *v)
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
			swarm_folder_refuse(v, 501, "NotImplemented", "a folder neither encrypts nor has access control lists");
			return false;
		}
		appendStringInfo(&text, "%s: %s\n", pair->name, pair->value);
	}
	if (text.len > SWARM_FOLDER_META)
	{
		swarm_folder_refuse(v, 400, "MetadataTooLarge", "headers and metadata are too large");
		return false;
	}
	if (fstat(v->temp, &st) != 0)
	{
		swarm_folder_refuse_errno(v, "could not write the object");
		return false;
	}
	swarm_folder_meta_name(v->meta_name, &st);
	fd = openat(v->meta, v->meta_name, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	ok = fd >= 0 && swarm_folder_write(fd, text.data, text.len) && pg_fsync(fd) == 0 && pg_fsync(v->meta) == 0;
	if (!ok)
		swarm_folder_refuse_errno(v, "could not write the metadata of the object");
	swarm_folder_shut(&fd);
	return ok;
}

/* move: give the file its name; others may remove empty folders meanwhile. */
static bool
move(SwarmFolderVisit *v, struct stat *old)
{
	for (int i = 0; i < SWARM_FOLDER_RACES; i++)
	{
		if (swarm_folder_parent(v, v->call->key, true))
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

void
swarm_folder_put(SwarmFolderVisit *v)
{
	SwarmS3Call *call = v->call;
	SwarmNetBody written = {.fd = -1};
	struct stat old = {0};
	const char *error;
	int			control = swarm_folder_make(v->root, SWARM_FOLDER_CONTROL);

	if (control >= 0)
	{
		v->tmp = swarm_folder_make(control, "tmp");
		v->meta = v->tmp < 0 ? -1 : swarm_folder_make(control, "meta");
	}
	if (control < 0 || v->tmp < 0 || v->meta < 0)
	{
		swarm_folder_refuse_errno(v, "could not open folder \"" SWARM_FOLDER_CONTROL "\"");
		swarm_folder_shut(&control);
		return;
	}
	swarm_folder_shut(&control);
	sweep(v);
	if (!create_temp(v))
	{
		swarm_folder_refuse_errno(v, "could not create the object");
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
		swarm_folder_refuse(v, 500, "InternalError", error);
		return;
	}
	if (pg_fsync(v->temp) != 0)
	{
		swarm_folder_refuse_errno(v, "could not write the object");
		return;
	}
	if (!write_meta(v))
		return;
	if (!move(v, &old))
	{
		if (errno == ELOOP)
			swarm_folder_refuse(v, 403, "AccessDenied", "symbolic links are not followed");
		else if (errno == ENOTDIR || errno == EISDIR || errno == EEXIST || errno == ENOTEMPTY)
			swarm_folder_refuse(v, 409, "KeyConflict", "in a folder no key can be the beginning of another one's path");
		else
			swarm_folder_refuse_errno(v, "could not name the object");
		return;
	}
	if (S_ISREG(old.st_mode))
	{
		char		name[SWARM_FOLDER_NAME];

		swarm_folder_meta_name(name, &old);
		(void) unlinkat(v->meta, name, 0);
	}
	swarm_net_answer(v->request, 200, psprintf("etag: \"%s\"\n", call->digest.md5), "", 0);
}
