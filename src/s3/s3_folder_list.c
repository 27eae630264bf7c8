/*
 * s3_folder_list.c
 *	  The objects of a folder in the order of their keys, page by page.
 *
 * No path is made of the prefix: the walk leaves out what cannot begin so.
 */
#include "postgres.h"

#include <dirent.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"

#include "s3/s3_folder.h"

#define LIST_PAGE		1000

/* A page of a listing. */
typedef struct Listing
{
	SwarmFolderVisit *visit;
	const char *prefix;
	const char *after;
	int			most;
	int			n;
	bool		more;
	char	   *last;
	StringInfoData xml;
} Listing;

static bool list_folder(Listing *l, const char *path);
static bool list_object(Listing *l, const char *key);

void
swarm_folder_list(SwarmFolderVisit *v)
{
	const char *most = swarm_folder_query(v->call, "max-keys");
	const char *prefix = swarm_folder_query(v->call, "prefix");
	const char *after = swarm_folder_query(v->call, "continuation-token");
	Listing		l = {.visit = v};

	l.prefix = prefix ? prefix : "";
	l.after = after ? after : swarm_folder_query(v->call, "start-after");
	l.most = most ? Min(atoi(most), LIST_PAGE) : LIST_PAGE;
	initStringInfo(&l.xml);
	appendStringInfoString(&l.xml, "<ListBucketResult>");
	if (!list_folder(&l, ""))
	{
		swarm_folder_refuse_errno(v, "could not read the folder");
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
entries_of(SwarmFolderVisit *v, const char *path, List **names)
{
	struct dirent *entry;
	DIR		   *dir;
	int			fd;

	*names = NIL;
	if (!swarm_folder_parent(v, psprintf("%sx", path), false))
		return errno == ENOENT || errno == ENOTDIR || errno == EISDIR || errno == ELOOP;
	fd = swarm_folder_open(v->dir, ".");
	dir = fd < 0 ? NULL : fdopendir(fd);
	if (dir == NULL)
	{
		swarm_folder_shut(&fd);
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
	SwarmFolderVisit *v = l->visit;
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
	meta = swarm_folder_object(v, key, &st);
	if (meta == NULL)			/* gone meanwhile, or none of ours: no object */
		return errno == ENOENT || errno == ENOTDIR || errno == ELOOP || errno == ENXIO || errno == EACCES;
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
