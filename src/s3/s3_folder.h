/*
 * s3_folder.h
 *	  Private parts of the embedded store: s3_folder.c answers, s3_folder_put.c
 *	  stores, s3_folder_list.c lists.
 */
#ifndef SWARM_S3_S3_FOLDER_H
#define SWARM_S3_S3_FOLDER_H

#include <sys/stat.h>

#include "s3/s3_int.h"

#define SWARM_FOLDER_CONTROL	".pg_swarm" /* no bucket has such a name */
#define SWARM_FOLDER_PIECE		(1024 * 1024)
#define SWARM_FOLDER_META		(8 * 1024)
#define SWARM_FOLDER_NAME		64
#define SWARM_FOLDER_RACES		100 /* times that others may interfere */

/* A call being answered; what is open is closed at its end, whatever happens. */
typedef struct SwarmFolderVisit
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
	char		temp_name[SWARM_FOLDER_NAME];	/* "" = it has none any more */
	char		meta_name[SWARM_FOLDER_NAME];	/* written, but not in use
												 * yet, or "" */
	const char *leaf;			/* last segment of the key */
} SwarmFolderVisit;

/* What returns -1 or false has set errno. */
extern void swarm_folder_shut(int *fd);
extern int	swarm_folder_open(int at, const char *name);
extern int	swarm_folder_make(int at, const char *name);
extern void swarm_folder_meta_name(char *name, const struct stat *st);
extern bool swarm_folder_write(int fd, const char *data, size_t length);
extern const char *swarm_folder_query(const SwarmS3Call *call, const char *name);
extern bool swarm_folder_is_symlink(int at, const char *name);
extern void swarm_folder_refuse(SwarmFolderVisit *v, int status, const char *code, const char *text);
extern void swarm_folder_refuse_errno(SwarmFolderVisit *v, const char *what);
extern bool swarm_folder_parent(SwarmFolderVisit *v, const char *key, bool create);
extern void swarm_folder_put(SwarmFolderVisit *v);
extern char *swarm_folder_object(SwarmFolderVisit *v, const char *key, struct stat *st);
extern void swarm_folder_list(SwarmFolderVisit *v);

#endif							/* SWARM_S3_S3_FOLDER_H */
